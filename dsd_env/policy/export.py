"""Export of a trained actor as a policy bundle: npz and ONNX, without pickle; running it needs no torch."""

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
    """Write a trained actor as a policy bundle.

    Args:
        actor: The network, with one head per action dimension, or a single head for flat actions.
        scenario: The scenario that the actor was trained on, which gives the observation and action schema.
            Or the scenarios of a mixture, with equal action lists; the bundle then has the longest candidate
            list among them.
        training: Provenance of the training.
        out: Directory of the bundle.
        overwrite: Whether to replace an existing bundle.
        fleet: Plan space that the actor was trained on, if it belongs to the fleet view.

    Returns:
        The manifest.

    Raises:
        PolicyError: ``out`` exists, the package onnx is not installed, or the network does not fit the
            scenario.
    """
    scenarios = [scenario] if isinstance(scenario, Scenario) else list(scenario)
    scenario = scenarios[0]
    actions = ActionSpace.of(scenario, max(each.n_placements for each in scenarios))
    flat = fleet is None and actor.nvec == (actions.n_flat,)
    # A bundle gets the lowest format version that can describe it, so that older code reads what it can.
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
