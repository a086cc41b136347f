"""A bundle with random weights for a scenario, and calls of the service without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.policy import Manifest, MlpActor, write_bundle
from dsd_env.policy.graph import onnx_bytes
from dsd_env.policy.manifest import Actions, Fleet, Network, Training, feature_specs, scenario_ref
from dsd_env.scenario import Scenario, load_scenario


def make_bundle(
    path: Path,
    scenario: str | Scenario = "single_lan",
    seed: int = 0,
    *,
    overwrite: bool = False,
    flat: bool = False,
    onnx: bool = False,
) -> Path:
    """Write a bundle whose weights are drawn from a seed; another seed decides otherwise.

    Only with `onnx` does it hold a graph, which the numpy backend does not look at.
    """
    scenario = load_scenario(scenario)
    encoder, space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    layers = (len(encoder.features), 64, 64, space.n_flat if flat else sum(space.nvec))
    manifest = Manifest(
        format_version=4 if space.stop_thresholds else 2 if flat else 1,
        created="2026-01-01T00:00:00+00:00",
        observation=feature_specs(encoder.features),
        action=Actions(
            gammas=space.gammas,
            batch_sizes=space.batch_sizes,
            n_placements=space.n_placements,
            stop_thresholds=space.stop_thresholds,
            flat=flat,
        ),
        network=Network(layers=layers, activation="tanh", normalisations=0 if flat else 2),
        scenario=scenario_ref(scenario),
        training=Training(algorithm="MaskablePPO", seed=seed, steps=0),
    )
    rng = np.random.default_rng(seed)
    arrays = {
        name: (0.5 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in manifest.array_shapes().items()
    }
    graph = b"not looked at by the numpy backend"
    if onnx:
        weights = [(arrays[f"weight_{i}"], arrays[f"bias_{i}"]) for i in range(3)]
        actor = MlpActor(weights, "tanh", manifest.action.heads(), manifest.network.normalisations)
        graph = onnx_bytes(actor, manifest.identity_json())
    write_bundle(path, manifest, arrays, graph, overwrite=overwrite)
    return path


def make_fleet_bundle(
    path: Path,
    space: FleetSpace,
    seed: int = 0,
    *,
    wanted: Sequence[tuple[int, int, str]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a bundle of the fleet view with weights drawn from a seed, or one that always plans the same."""
    features = FleetEncoder.of(space).features
    actions = {"gammas": space.gammas, "batch_sizes": space.batch_sizes, "n_placements": len(space.places)}
    manifest = Manifest(
        format_version=3,
        created="2026-01-01T00:00:00+00:00",
        observation=feature_specs(features),
        action=Actions(**actions, fleet=Fleet.of(space)),
        network=Network(layers=(len(features), 32, sum(space.nvec)), activation="tanh", normalisations=2),
        scenario=scenario_ref(space.scenario),
        training=Training(algorithm="MaskablePPO", seed=seed, steps=0),
    )
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in manifest.array_shapes().items()
    }
    if wanted is not None:
        arrays = {name: np.zeros_like(array) for name, array in arrays.items()}
        firsts = np.cumsum((0, *space.nvec[:-1]))
        arrays["bias_1"][firsts + space.action(wanted)] = 1.0
    write_bundle(path, manifest, arrays, b"not looked at by the numpy backend", overwrite=overwrite)
    return path


class Reply:
    """What the service answered."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | dict[str, Any] = b"",
    headers: dict[str, str] | None = None,
    pieces: int = 1,
) -> Reply:
    """Call an ASGI application; without a length told, the body comes in pieces."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    told = {key.lower(): value for key, value in (headers or {}).items()}
    if pieces == 1:
        told.setdefault("content-length", str(len(raw)))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "headers": [(key.encode("latin-1"), value.encode("latin-1")) for key, value in told.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    step = -(-len(raw) // pieces) or 1
    parts = [raw[i : i + step] for i in range(0, len(raw), step)] or [b""]
    found = Reply(0, {}, b"")

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {k.decode().lower(): v.decode() for k, v in message.get("headers", [])}
        else:
            found.body += message.get("body", b"")

    asyncio.run(app(scope, receive, send))
    return found
