"""Tensors of the Open Inference Protocol (KServe v2): as JSON, and as bytes behind the JSON.

A bundle is a model with the inputs ``observation`` (FP32) and ``mask`` (BOOL, optional) and the outputs
``actions`` (INT64, three indices) and ``decisions`` (INT64: speculation length, batch size, placement), one
row for each decision.

One of the fleet view has a row for each plan: ``actions`` are three indices for each group, and ``plans`` (in
the place of ``decisions``) the same in speculation lengths and batch sizes, with the place as its number in
the parameters' list of places. Without ``mask`` it has that of the environment, which never changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.policy import Policy
from dsd_env.serving.service import ServiceError, loads

MAX_ROWS = 4096
"""Most decisions in one call."""
DATATYPES = {"observation": ("FP32", np.dtype("<f4")), "mask": ("BOOL", np.dtype(np.bool_))}
"""Data type of each input, by its name in the protocol and in NumPy."""


def outputs_of(policy: Policy) -> dict[str, int]:
    """Return the names of a bundle's outputs, and the width of each."""
    n = len(policy.manifest.action.heads()) if policy.fleet else 3
    return {"actions": n, "plans" if policy.fleet else "decisions": n}


def metadata(name: str, policy: Policy | None, digest: str, rule: str) -> dict[str, Any]:
    """Return what the protocol tells of the model; a rule reads no tensors."""
    told: dict[str, Any] = {"name": name, "versions": [version_of(digest)], "platform": "dsd_env"}
    if policy is None:
        return {**told, "inputs": [], "outputs": [], "parameters": {"scheduler": rule}}
    manifest, fleet = policy.manifest, policy.manifest.action.fleet
    parameters: dict[str, Any] = {
        "sha256": digest,
        "scenario": manifest.scenario.name,
        "algorithm": manifest.training.algorithm,
    }
    if fleet is not None:
        parameters |= fleet.model_dump(mode="json")
    else:
        # What the indices in `actions` mean: `decisions` has the longest draft, not where doubt ends it.
        lists = policy.actions
        parameters |= {"gammas": list(lists.gammas), "batch_sizes": list(lists.batch_sizes)}
        parameters |= {"stop_thresholds": list(lists.stop_thresholds)} if lists.stop_thresholds else {}
    n_mask = sum(manifest.action.heads() if policy.fleet else policy.actions.nvec)
    return {
        **told,
        "inputs": [
            {"name": "observation", "datatype": "FP32", "shape": [-1, len(manifest.observation)]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, n_mask], "optional": True},
        ],
        "outputs": [
            {"name": output, "datatype": "INT64", "shape": [-1, width]}
            for output, width in outputs_of(policy).items()
        ],
        "parameters": parameters,
    }


def version_of(digest: str) -> str:
    """Return the version of a bundle: the beginning of its digest."""
    return digest[:12] or "1"


def infer(
    policy: Policy,
    name: str,
    version: str,
    body: bytes,
    json_bytes: int | None,
    mask: NDArray[np.bool_] | None = None,
) -> tuple[bytes, int | None]:
    """Answer a call of the protocol's ``infer``.

    Args:
        policy: The bundle.
        name: Name of the model.
        version: Its version.
        body: Body of the call.
        json_bytes: Length of the JSON at its beginning, if tensors follow as bytes; None: all is JSON.
        mask: What a call without a mask can choose among; None: all.

    Returns:
        The body of the answer, and the length of the JSON at its beginning if tensors follow.

    Raises:
        ServiceError: The call is malformed.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise ServiceError(f"Inference-Header-Content-Length {json_bytes} is not within the body")
    call = loads(body if json_bytes is None else body[:json_bytes])
    inputs = _inputs(call, b"" if json_bytes is None else body[json_bytes:])
    actions = np.array(_decide(policy, inputs, mask), dtype="<i8")
    space, known = policy.actions, outputs_of(policy)
    lists = (np.array(space.windows), np.array(space.batch_sizes), np.arange(space.n_placements))
    meant = actions.copy()
    for i, values in enumerate(lists):
        meant[:, i::3] = values[actions[:, i::3]]
    results = dict(zip(known, (actions, meant), strict=True))
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if isinstance(call.get("id"), str):
        answer["id"] = call["id"]
    outputs, tail = [], b""
    for output, binary in _wanted(call, tuple(known)):
        told: dict[str, Any] = {"name": output, "datatype": "INT64", "shape": list(actions.shape)}
        if binary:
            raw = results[output].tobytes()
            told["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            told["data"] = results[output].ravel().tolist()
        outputs.append(told)
    answer["outputs"] = outputs
    head = json.dumps(answer).encode()
    return head + tail, len(head) if tail else None


def _inputs(call: Mapping[str, Any], tail: bytes) -> dict[str, NDArray[Any]]:
    given = call.get("inputs")
    if not isinstance(given, list) or not 1 <= len(given) <= len(DATATYPES):
        raise ServiceError("inputs must be a list with observation, and mask if wanted")
    found: dict[str, NDArray[Any]] = {}
    at = 0
    for each in given:
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in DATATYPES or name in found:
            raise ServiceError(
                f"input {name!r:.80} is unknown or given twice; known are {', '.join(DATATYPES)}"
            )
        datatype, dtype = DATATYPES[name]
        if each.get("datatype") != datatype:
            raise ServiceError(f"input {name}: datatype {each.get('datatype')!r:.80} must be {datatype}")
        shape = each.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) not in (1, 2)
            or not all(type(n) is int and 1 <= n <= 1 << 20 for n in shape)
            or (len(shape) == 2 and shape[0] > MAX_ROWS)
        ):
            raise ServiceError(
                f"input {name}: shape {shape!r:.80} must be [n] or [rows, n], rows at most {MAX_ROWS}"
            )
        size = int(np.prod(shape)) * dtype.itemsize
        parameters = each.get("parameters")
        if isinstance(parameters, dict) and "binary_data_size" in parameters:
            told = parameters["binary_data_size"]
            if type(told) is not int or told != size or at + size > len(tail):
                raise ServiceError(
                    f"input {name}: binary_data_size {told!r:.80} must be {size}, within the body"
                )
            raw = np.frombuffer(tail[at : at + size], dtype=np.uint8 if dtype == np.bool_ else dtype)
            at += size
            values = raw != 0 if dtype == np.bool_ else raw
        else:
            values = _of_json(name, each.get("data"), size // dtype.itemsize, dtype)
        found[name] = values.reshape((1, *shape) if len(shape) == 1 else shape)
    if at != len(tail):
        raise ServiceError(f"{len(tail) - at} bytes behind the JSON belong to no input")
    if "observation" not in found:
        raise ServiceError("inputs lack observation")
    return found


def _of_json(name: str, data: object, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        values = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise ServiceError(f"input {name}: data must be {size} numbers") from error
    if values.dtype.kind not in ("b" if dtype == np.bool_ else "fiu") or values.size != size:
        raise ServiceError(
            f"input {name}: data must be {size} {'truth values' if dtype == np.bool_ else 'numbers'}"
        )
    return values.astype(dtype)


def _decide(
    policy: Policy, inputs: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_] | None
) -> list[list[int]]:
    observations, masks = inputs["observation"], inputs.get("mask")
    if masks is not None and len(masks) != len(observations):
        raise ServiceError(f"{len(observations)} observations have {len(masks)} masks")
    choose = policy.choose if policy.fleet else policy.action
    try:
        return [
            choose(observation, mask if masks is None else masks[row])
            for row, observation in enumerate(observations)
        ]
    except ValueError as error:
        raise ServiceError(str(error)) from error


def _wanted(call: Mapping[str, Any], known: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Return the outputs asked for, and whether each is wanted as bytes."""
    parameters = call.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = call.get("outputs")
    if outputs is None:
        return [(name, binary) for name in known]
    if not isinstance(outputs, list) or len(outputs) > len(known):
        raise ServiceError(f"outputs must be a list of some of {', '.join(known)}")
    wanted = []
    for each in outputs:
        name = each.get("name") if isinstance(each, dict) else None
        if name not in known:
            raise ServiceError(f"output {name!r:.80} is unknown; known are {', '.join(known)}")
        own = each.get("parameters")
        as_bytes = own.get("binary_data", binary) if isinstance(own, dict) else binary
        wanted.append((name, as_bytes is True))
    return wanted
