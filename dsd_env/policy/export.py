"""Writing a trained actor as a policy bundle: npz and ONNX, no pickle, no torch needed to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsd_env import provenance
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.policy.bundle import write_bundle
from dsd_env.policy.graph import onnx_bytes
from dsd_env.policy.manifest import Actions, Fleet, Manifest, Network, Training, feature_specs, mixture_ref
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario


def export_actor(
    actor: MlpActor,
    scenario: Scenario | Sequence[Scenario],
    training: Training,
    out: str | Path,
    *,
    overwrite: bool = False,
    fleet: FleetSpace | None = None,
) -> Manifest:
    """Write an actor as a bundle.

    Args:
        actor: The network, with one head per dimension of the actions, or one for all flat actions.
        scenario: The scenario it was trained on; gives observation and action schema. Or those of the
            mixture that it was trained on, with equal lists; the list of candidates is then the longest.
        training: Provenance.
        out: Directory of the bundle.
        overwrite: Replace an existing bundle.
        fleet: The space of plans that it was trained on, if it is of the fleet view.

    Returns:
        The manifest.

    Raises:
        PolicyError: ``out`` is taken, the package onnx is not installed, or the network does not fit the
            scenario.
    """
    scenarios = [scenario] if isinstance(scenario, Scenario) else list(scenario)
    scenario = scenarios[0]
    actions = ActionSpace.of(scenario, max(each.n_placements for each in scenarios))
    flat = fleet is None and actor.nvec == (actions.n_flat,)
    # Bundles that older code cannot read get the next format version; all others keep the old one.
    newer = flat or training.seed is None or actor.normalisations == 0
    version = 2 if newer else 1
    if fleet is not None:
        version = 3
    elif actions.stop_thresholds:
        version = 4
    encoder = (
        ObservationEncoder.of(scenario, actions.n_placements) if fleet is None else FleetEncoder.of(fleet)
    )
    widths = [actor.n_inputs] + [weight.shape[0] for weight, _ in actor.layers]
    manifest = Manifest(
        format_version=version,
        created=provenance.now_utc(),
        observation=feature_specs(encoder.features),
        action=Actions(
            gammas=actions.gammas,
            batch_sizes=actions.batch_sizes,
            n_placements=actions.n_placements if fleet is None else len(fleet.places),
            stop_thresholds=actions.stop_thresholds if fleet is None else (),
            flat=flat,
            fleet=None if fleet is None else Fleet.of(fleet),
        ),
        network=Network(
            layers=tuple(widths), activation=actor.activation, normalisations=actor.normalisations
        ),
        scenario=mixture_ref(scenarios),
        training=training,
    )
    arrays = {}
    for index, (weight, bias) in enumerate(actor.layers):
        arrays[f"weight_{index}"], arrays[f"bias_{index}"] = weight, bias
    graph = onnx_bytes(actor, manifest.identity_json())
    return write_bundle(out, manifest, arrays, graph, overwrite=overwrite)
