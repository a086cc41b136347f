"""Exporting a trained actor as a policy bundle: npz and ONNX, no pickle, no torch needed to run it.

The ONNX graph is written node by node instead of being traced: it then holds standard operators only, its
bytes depend on the weights alone, and the order of its float32 operations is the trainer's (see
:mod:`dsd_env.policy.network` on why that matters for ties).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from stable_baselines3.common.save_util import load_from_zip_file

from agents import checkpoints, provenance
from agents.actors import actor_layers, normalisations_of
from agents.config import TrainConfig, load_config
from agents.training import CONFIG_FILE, RECORD_FILE, SCENARIO_FILE, RunError
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.policy.bundle import write_bundle
from dsd_env.policy.manifest import Actions, Manifest, Network, Training, feature_specs, scenario_ref
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario, load_scenario

OPSET = 18
IR_VERSION = 9
ALGORITHMS = {"ppo": "PPO", "maskable_ppo": "MaskablePPO"}


def export_run(
    run: str | Path, out: str | Path, checkpoint: str = "best", *, overwrite: bool = False
) -> Manifest:
    """Export a checkpoint of a run.

    Only tensors are taken from the checkpoint (`torch.load(weights_only=True)`); its pickled part is never
    opened.

    Args:
        run: Directory of the run.
        out: Directory of the bundle to write.
        checkpoint: ``best`` (by validation; the newest state if the run has not been validated), ``last``, or
            the path of a checkpoint of this run.
        overwrite: Replace an existing bundle.

    Returns:
        The bundle's manifest.

    Raises:
        RunError: Not a run, or nothing to export yet.
        agents.checkpoints.CheckpointError: The checkpoint is damaged.
        dsd_env.policy.PolicyError: ``out`` is taken.
    """
    run = Path(run)
    for name in (CONFIG_FILE, SCENARIO_FILE, RECORD_FILE):
        if not (run / name).is_file():
            raise RunError(
                f"{run}: {name} is missing; give the directory that scripts/train.py wrote (--out)"
            )
    config = load_config(run / CONFIG_FILE)
    scenario = load_scenario(json.loads((run / SCENARIO_FILE).read_text(encoding="utf-8")))
    chosen = find_checkpoint(run, checkpoint)
    actor = actor_from_zip(chosen.path, config, ActionSpace.of(scenario))
    record = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    start = record["starts"][-1]
    warm = record.get("warm_start")
    training = Training(
        algorithm=ALGORITHMS[config.algorithm],
        seed=config.seed,
        steps=chosen.num_timesteps,
        config_sha256=config.sha256(),
        warm_start=json.dumps(warm, sort_keys=True) if warm else None,
        checkpoint=str(chosen.path.relative_to(run)) if chosen.path.is_relative_to(run) else chosen.path.name,
        versions=start["versions"],
        git_commit=start["git_commit"],
    )
    return export_actor(actor, scenario, training, out, overwrite=overwrite)


def find_checkpoint(run: Path, which: str) -> checkpoints.Checkpoint:
    """Return the checkpoint of a run that ``which`` names, see :func:`export_run`."""
    if which not in ("best", "last"):
        path = Path(which) if Path(which).is_file() else run / which
        return checkpoints.read(path)
    names = [checkpoints.BEST, checkpoints.LAST] if which == "best" else [checkpoints.LAST]
    for name in names:
        if (run / name).is_file():
            return checkpoints.read(run / name)
    newest = checkpoints.newest(run)
    if newest is None:
        raise RunError(f"{run}: has no checkpoint yet; train further, then export")
    return newest


def actor_from_zip(path: Path, config: TrainConfig, actions: ActionSpace) -> MlpActor:
    """Return the actor of a saved learner; only tensors are read.

    Raises:
        agents.checkpoints.CheckpointError: The file holds no such actor.
    """
    try:
        _, parameters, _ = load_from_zip_file(str(path), device="cpu", load_data=False)
        layers = actor_layers(cast("dict[str, torch.Tensor]", parameters["policy"]))
        return MlpActor(layers, config.network.activation, actions.nvec, normalisations_of(config.algorithm))
    except (ValueError, KeyError, RuntimeError, OSError, UnpicklingError) as error:
        raise checkpoints.CheckpointError(
            f"{path}: no actor of this run's configuration in it ({error})"
        ) from error


def export_actor(
    actor: MlpActor, scenario: Scenario, training: Training, out: str | Path, *, overwrite: bool = False
) -> Manifest:
    """Write an actor as a bundle.

    Args:
        actor: The network.
        scenario: The scenario it was trained on; gives observation and action schema.
        training: Provenance.
        out: Directory of the bundle.
        overwrite: Replace an existing bundle.

    Returns:
        The manifest.
    """
    actions = ActionSpace.of(scenario)
    widths = [actor.n_inputs] + [weight.shape[0] for weight, _ in actor.layers]
    manifest = Manifest(
        created=provenance.now_utc(),
        observation=feature_specs(ObservationEncoder.of(scenario).features),
        action=Actions(
            gammas=actions.gammas, batch_sizes=actions.batch_sizes, n_placements=actions.n_placements
        ),
        network=Network(
            layers=tuple(widths), activation=actor.activation, normalisations=actor.normalisations
        ),
        scenario=scenario_ref(scenario),
        training=training,
    )
    arrays = {}
    for index, (weight, bias) in enumerate(actor.layers):
        arrays[f"weight_{index}"], arrays[f"bias_{index}"] = weight, bias
    graph = onnx_bytes(actor, manifest.identity_json())
    return write_bundle(out, manifest, arrays, graph, overwrite=overwrite)


def onnx_bytes(actor: MlpActor, manifest_json: str) -> bytes:
    """Return the actor as an ONNX model.

    Inputs: ``observation`` (float32, (batch, n_features)), ``mask`` (bool, (batch, n_logits)). Outputs:
        ``actions``
    (int64, (batch, 3)), ``logits`` (float32, (batch, n_logits), before masking).

    Args:
        actor: The network.
        manifest_json: Stored as metadata property ``manifest``.
    """
    graph = _Graph()
    x = "observation"
    for index, (weight, bias) in enumerate(actor.layers):
        last = index == len(actor.layers) - 1
        names = [graph.constant(f"weight_{index}", weight), graph.constant(f"bias_{index}", bias)]
        x = graph.add("Gemm", [x, *names], "logits" if last else f"linear_{index}", transB=1)
        if not last:
            x = graph.add({"tanh": "Tanh", "relu": "Relu"}[actor.activation], [x], f"hidden_{index}")
    axes = graph.constant("axes", np.array([1], dtype=np.int64))
    masked_logit = graph.constant("masked_logit", np.array(-1e8, dtype=np.float32))
    forbidden = graph.constant("forbidden", np.array(-1.0, dtype=np.float32))
    chosen, start = [], 0
    for dimension, size in enumerate(actor.nvec):
        bounds = [
            graph.constant(f"{which}_{dimension}", np.array([at], dtype=np.int64))
            for which, at in (("start", start), ("stop", start + size))
        ]
        start += size
        mask = graph.add("Slice", ["mask", *bounds, axes], f"mask_{dimension}")
        part = graph.add("Slice", ["logits", *bounds, axes], f"logits_{dimension}")
        part = _normalise(graph, part, axes, f"first_{dimension}")
        if actor.normalisations == 2:
            part = graph.add("Where", [mask, part, masked_logit], f"masked_{dimension}")
            part = _normalise(graph, part, axes, f"second_{dimension}")
        probabilities = graph.add("Softmax", [part], f"softmax_{dimension}", axis=1)
        allowed = graph.add("Where", [mask, probabilities, forbidden], f"allowed_{dimension}")
        chosen.append(graph.add("ArgMax", [allowed], f"action_{dimension}", axis=1, keepdims=1))
    graph.add("Concat", chosen, "actions", axis=1)
    inputs = [
        helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", actor.n_inputs]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", actor.n_logits]),
    ]
    outputs = [
        helper.make_tensor_value_info("actions", TensorProto.INT64, ["batch", len(actor.nvec)]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", actor.n_logits]),
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dsd_env",
    )
    helper.set_model_props(model, {"manifest": manifest_json})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output


def _normalise(graph: _Graph, x: str, axes: str, name: str) -> str:
    """Add x - logsumexp(x), in the operations that torch uses."""
    top = graph.add("ReduceMax", [x, axes], f"{name}_top", keepdims=1)
    shifted = graph.add("Sub", [x, top], f"{name}_shifted")
    powers = graph.add("Exp", [shifted], f"{name}_powers")
    total = graph.add("ReduceSum", [powers, axes], f"{name}_total", keepdims=1)
    log_total = graph.add("Log", [total], f"{name}_log_total")
    log_sum = graph.add("Add", [log_total, top], f"{name}_log_sum")
    return graph.add("Sub", [x, log_sum], name)
