"""The ONNX graph of an actor.

The graph is written node by node instead of being traced. It therefore holds only standard operators, its
bytes depend on the weights and the manifest alone, and its float32 operations have the trainer's order (see
:mod:`dsd_env.policy.network` for why that matters for ties).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.policy.manifest import PolicyError
from dsd_env.policy.network import MlpActor

OPSET = 18
IR_VERSION = 9


def onnx_bytes(actor: MlpActor, manifest_json: str) -> bytes:
    """Return the actor as an ONNX model.

    Inputs: ``observation`` (float32, (batch, n_features)), ``mask`` (bool, (batch, n_logits)). Outputs:
    ``actions`` (int64, (batch, 3), or (batch, 1) with flat actions), ``logits`` (float32, (batch, n_logits),
    before masking).

    Args:
        actor: The network.
        manifest_json: Text that the model stores as metadata property ``manifest``.

    Raises:
        PolicyError: The package onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise PolicyError(
            f"a bundle is written with the package onnx ({error}): pip install 'dsd-env[export]'"
        ) from error
    graph = _Graph()
    x = "observation"
    for index, (weight, bias) in enumerate(actor.layers):
        last = index == len(actor.layers) - 1
        names = [graph.constant(f"weight_{index}", weight), graph.constant(f"bias_{index}", bias)]
        x = graph.add("Gemm", [x, *names], "logits" if last else f"linear_{index}", transB=1)
        if not last:
            x = graph.add({"tanh": "Tanh", "relu": "Relu"}[actor.activation], [x], f"hidden_{index}")
    axes = graph.constant("axes", np.array([1], dtype=np.int64))
    if actor.normalisations == 0:
        lowest = graph.constant("lowest", np.array(-np.inf, dtype=np.float32))
    else:
        forbidden = graph.constant("forbidden", np.array(-1.0, dtype=np.float32))
    if actor.normalisations == 2:
        masked_logit = graph.constant("masked_logit", np.array(-1e8, dtype=np.float32))
    chosen, start = [], 0
    for dimension, size in enumerate(actor.nvec):
        bounds = [
            graph.constant(f"{which}_{dimension}", np.array([at], dtype=np.int64))
            for which, at in (("start", start), ("stop", start + size))
        ]
        start += size
        mask = graph.add("Slice", ["mask", *bounds, axes], f"mask_{dimension}")
        part = graph.add("Slice", ["logits", *bounds, axes], f"logits_{dimension}")
        if actor.normalisations == 0:
            values = graph.add("Where", [mask, part, lowest], f"allowed_{dimension}")
            chosen.append(graph.add("ArgMax", [values], f"action_{dimension}", axis=1, keepdims=1))
            continue
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
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output


def _normalise(graph: _Graph, x: str, axes: str, name: str) -> str:
    """Add nodes for x - logsumexp(x), with the operations that torch uses."""
    top = graph.add("ReduceMax", [x, axes], f"{name}_top", keepdims=1)
    shifted = graph.add("Sub", [x, top], f"{name}_shifted")
    powers = graph.add("Exp", [shifted], f"{name}_powers")
    total = graph.add("ReduceSum", [powers, axes], f"{name}_total", keepdims=1)
    log_total = graph.add("Log", [total], f"{name}_log_total")
    log_sum = graph.add("Add", [log_total, top], f"{name}_log_sum")
    return graph.add("Sub", [x, log_sum], name)
