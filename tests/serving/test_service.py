"""The HTTP service: its protocol, limits, reloading, and what bad bodies do to it (nothing)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsd_env.control import Decision, DecisionView
from dsd_env.policy import load
from dsd_env.serving import Controller, Deployment
from dsd_env.serving.service import Bucket, Limits, Service, manifest_digest
from tests.serving.samples import Reply, call, make_bundle

pytest.importorskip("fastapi")
from dsd_env.serving.app import create_app

TOKEN = "0123456789abcdef-token"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "policy")


@pytest.fixture
def service(bundle: Path) -> Service:
    return Service(Controller(bundle), path=bundle)


@pytest.fixture
def app(service: Service) -> Any:
    return create_app(service)


def decide(app: Any, *events: dict[str, Any], requests: tuple[Any, ...] = ()) -> Reply:
    return call(app, "POST", "/v1/decide", {"events": list(events), "requests": list(requests)})


ARRIVED = {"type": "RequestArrived", "request": "a", "prompt_tokens": 200, "target": "target"}
ROUND = {"type": "RoundVerified", "request": "a", "drafted": 4, "accepted": 2}


# ---------------------------------------------------------------------- decisions


def test_what_comes_in_one_call_is_of_one_moment(bundle: Path) -> None:
    """A target that tells its state with the question is seen as it is, however long the call takes."""
    ticks = iter(range(1, 1000))
    controller = Controller(bundle, clock=lambda: float(next(ticks)))
    app = create_app(Service(controller, path=bundle))
    state = {"type": "TargetState", "target": "target", "running": 0, "resident": 3}
    seen: list[float] = []
    choose = controller._choose

    def looking(view: DecisionView) -> Decision:
        seen.append(view.target.age_s)
        return choose(view)

    controller._choose = looking  # type: ignore[method-assign]
    controller._mirror = None
    assert decide(app, ARRIVED, state, requests=("a",)).status == 200
    assert seen == [0.0]


def test_telemetry_in_decisions_out(app: Any, service: Service) -> None:
    reply = decide(app, ARRIVED, requests=("a", "nobody"))
    assert reply.status == 200
    first, second = reply.json["decisions"]
    assert first["source"] == "policy" and first["target"] == "target" and first["counter"] == 0
    assert second["reason"] == "unknown_request"
    prefilled = {"type": "TokensCommitted", "request": "a"}
    reply = decide(app, prefilled, ROUND, requests=({"request": "a", "counter": 1},))
    again = decide(app, requests=({"request": "a", "counter": 1},))
    assert again.json == reply.json
    assert service.controller.view("a").request.committed_tokens == 1 + 3


def test_a_repeated_call_is_answered_again_and_taken_in_once(app: Any, service: Service) -> None:
    calls = {"events": [ARRIVED], "requests": ["a"], "id": "7"}
    first = call(app, "POST", "/v1/decide", calls).json
    assert call(app, "POST", "/v1/decide", calls).json == first
    assert service.controller.counts["observations"] == service.controller.counts["decisions"] == 1
    for number in range(1100):
        service.decide({"id": f"x{number}"})
    assert len(service._answers) == 1024
    assert call(app, "POST", "/v1/decide", {"id": 7}).status == 400


def test_answers_that_are_kept_are_bounded_by_their_decisions(app: Any, service: Service) -> None:
    many = 4096
    calls = [{"requests": ["a"] * many, "id": f"{number}"} for number in range(20)]
    first = call(app, "POST", "/v1/decide", calls[0])
    for each in calls[1:]:
        service.decide(each)
    kept = service._answers
    assert sum(len(answer["decisions"]) for answer in kept.values()) <= 65_536
    assert list(kept) == [f"{number}" for number in range(4, 20)]
    assert len(first.json["decisions"]) == many


def test_a_slow_reload_holds_up_nobody_else(
    service: Service, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, done = threading.Event(), threading.Event()

    def slow(path: Path) -> Any:
        reading.set()
        assert done.wait(20.0)
        return load(path)

    monkeypatch.setattr("dsd_env.serving.service.load_bundle", slow)
    thread = threading.Thread(target=service.reload)
    thread.start()
    try:
        assert reading.wait(20.0)
        service.decide({"events": [ARRIVED], "requests": ["a"]})
        service.count("/v1/decide", 200, 0.001)
        assert "dsd_http_requests_total" in service.metrics()
        assert service.reloads["done"] == 0
    finally:
        done.set()
        thread.join()
    assert service.reloads["done"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be an object, found list"),
        (b'{"events": 3}', "events must be a list"),
        (b'{"requests": [3]}', "request 3 must be a text"),
        (b'{"event": []}', "unknown key 'event'"),
        (b'{"events": [{"type": "Nothing"}]}', "type = 'Nothing' is no event"),
        (
            b'{"events": [{"type": "RttSample", "client": "a"}]}',
            "RttSample lacks rtt_s",
        ),
        (
            b'{"events": [{"type": "RttSample", "client": "a", "rtt": 1}]}',
            "RttSample.rtt is unknown; known are",
        ),
        (b'{"events": [{"type": "RttSample", "client": "a", "rtt_s": "x"}]}', "rtt_s = 'x' must be a number"),
        (
            b'{"events": [{"type": "TargetState", "target": "moon"}]}',
            "target 'moon' is not in the deployment",
        ),
        (b'{"now_s": NaN}', "now_s = nan must be a time"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_body_is_refused_with_a_reason(body: bytes, message: str, app: Any, service: Service) -> None:
    reply = call(app, "POST", "/v1/decide", body)
    assert reply.status == 400
    assert message in reply.json["error"]
    assert service.controller.counts["observations"] == 0


NAMES = st.sampled_from(
    ["events", "requests", "now_s", "type", "request", "TargetState", "RoundVerified", "a", "drafted"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["RequestArrived", "RoundVerified", "TargetState", "DraftState", "IterationDone"]
        )
    },
    optional={
        key: JSON
        for key in ("request", "prompt_tokens", "drafted", "accepted", "committed", "target", "time_s", "up")
    },
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.dictionaries(NAMES, JSON, max_size=3).map(lambda data: json.dumps(data).encode())
    | st.lists(EVENTS, max_size=4).map(lambda data: json.dumps({"events": data, "requests": ["a"]}).encode())
)
def test_whatever_comes_it_answers_and_goes_on(app: Any, body: bytes) -> None:
    for path in ("/v1/decide", "/v2/models/scheduler/infer", "/v1/reload"):
        reply = call(app, "POST", path, body)
        assert reply.status in (200, 400, 409), (path, reply.status, reply.body)
        assert reply.json
    assert decide(app, ARRIVED, requests=("a",)).json["decisions"][0]["gamma"] >= 0


# ---------------------------------------------------------------------- Open Inference Protocol


def test_health_and_metadata(app: Any, service: Service, bundle: Path) -> None:
    assert call(app, "GET", "/v2/health/live").json == {"live": True}
    assert call(app, "GET", "/v2/health/ready").status == 200
    assert call(app, "GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    told = call(app, "GET", "/v2/models/scheduler").json
    policy = load(bundle)
    assert told["inputs"][0] == {
        "name": "observation",
        "datatype": "FP32",
        "shape": [-1, len(policy.manifest.observation)],
    }
    assert told["parameters"]["sha256"] == manifest_digest(bundle)
    (version,) = told["versions"]
    assert call(app, "GET", f"/v2/models/scheduler/versions/{version}/ready").status == 200
    assert call(app, "GET", "/v2/models/scheduler/versions/9/ready").status == 404
    assert call(app, "GET", "/v2/models/other").status == 404
    reply = call(app, "GET", "/v1/decide")
    assert reply.status == 405 and reply.json["error"] == "/v1/decide takes POST"
    assert reply.headers["allow"] == "POST"
    assert call(app, "GET", "/nothing").json == {"error": "there is no /nothing"}
    service.ready = False
    assert call(app, "GET", "/v2/health/ready").status == 503
    assert call(app, "GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("binary", [False, True])
def test_infer_decides_as_the_bundle(binary: bool, app: Any, bundle: Path) -> None:
    policy = load(bundle)
    rng = np.random.default_rng(0)
    n, m = len(policy.manifest.observation), sum(policy.actions.nvec)
    x = rng.random((5, n), dtype=np.float32)
    mask = rng.random((5, m)) < 0.7
    mask[:, [0, policy.actions.nvec[0], -1]] = True
    inputs: list[dict[str, Any]] = [
        {"name": "observation", "datatype": "FP32", "shape": [5, n]},
        {"name": "mask", "datatype": "BOOL", "shape": [5, m]},
    ]
    arrays = (x, mask)
    tail = b""
    for entry, array in zip(inputs, arrays, strict=True):
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            entry["data"] = array.tolist()
    request = {"id": "7", "inputs": inputs, "parameters": {"binary_data_output": binary}}
    head = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    reply = call(app, "POST", "/v2/models/scheduler/infer", head + tail, headers)
    assert reply.status == 200, reply.body
    at = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    told = json.loads(reply.body[:at])
    assert told["id"] == "7"
    if binary:
        found = np.frombuffer(reply.body[at:], dtype=np.int64).reshape(2, 5, 3)
    else:
        found = np.array([output["data"] for output in told["outputs"]]).reshape(2, 5, 3)
    for row in range(5):
        assert found[0][row].tolist() == policy.action(x[row], mask[row])
        assert tuple(found[1][row]) == policy.decide(x[row], mask[row])[:3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "x"}, "input 'x' is unknown"),
        ({"datatype": "FP64"}, "datatype 'FP64' must be FP32"),
        ({"shape": [1, 3]}, "data must be 3 numbers"),
        ({"shape": [1, -1]}, "shape [1, -1] must be"),
        ({"shape": [10**9, 10**9]}, "must be [n] or"),
        ({"data": ["x"]}, "numbers"),
        ({"data": [float("nan")] * 105}, "not finite"),
        ({"parameters": {"binary_data_size": 420}}, "within the body"),
    ],
)
def test_a_bad_tensor_is_refused_with_a_reason(change, message: str, app: Any, bundle: Path) -> None:
    n = len(load(bundle).manifest.observation)
    tensor = {"name": "observation", "datatype": "FP32", "shape": [1, n], "data": [0.5] * n, **change}
    reply = call(app, "POST", "/v2/models/scheduler/infer", json.dumps({"inputs": [tensor]}).encode())
    assert reply.status == 400
    assert message in reply.json["error"]


def test_a_rule_reads_no_tensors() -> None:
    deployment = Deployment.of_engine(step_s=0.02, token_s=1e-4, draft_step_s=0.002, max_num_seqs=8)
    app = create_app(Service(Controller("hf_heuristic", deployment)))
    assert call(app, "GET", "/v2/models/scheduler").json["inputs"] == []
    assert "a rule decides" in call(app, "POST", "/v2/models/scheduler/infer", {}).json["error"]
    assert call(app, "POST", "/v1/reload").status == 409
    reply = decide(app, {**ARRIVED, "target": "engine"}, requests=("a",))
    assert reply.json["decisions"][0]["gamma"] == 4


# ---------------------------------------------------------------------- limits


def test_without_the_token_only_health_is_told(service: Service) -> None:
    app = create_app(service, token=TOKEN)
    assert call(app, "GET", "/v2/health/ready").status == 200
    for path in ("/metrics", "/v2", "/v1/decide"):
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": TOKEN}):
            assert call(app, "GET", path, headers=headers).status == 401
    assert call(app, "GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_long_body_is_refused_before_it_is_read(pieces: int, service: Service) -> None:
    app = create_app(service, limits=Limits(body_bytes=1000))
    reply = call(app, "POST", "/v1/decide", b"x" * 1001, pieces=pieces)
    assert reply.status == 413
    assert call(app, "POST", "/v1/decide", b"{}" + b" " * 998, pieces=pieces).status == 200


def test_too_many_calls_are_told_when_to_come_again(service: Service) -> None:
    app = create_app(service, limits=Limits(calls_per_s=0.001, burst=2))
    assert [call(app, "GET", "/v2").status for _ in range(3)] == [200, 200, 429]
    assert int(call(app, "GET", "/v2").headers["retry-after"]) > 100
    assert call(app, "GET", "/v2/health/live").status == 200
    times = iter([0.0, 0.0, 0.0, 0.5, 1.5])
    bucket = Bucket(Limits(calls_per_s=1.0, burst=1), lambda: next(times))
    assert [bucket.take() for _ in range(4)] == [0.0, 1.0, 0.5, 0.0]


def test_metrics_count_what_happened(app: Any) -> None:
    decide(app, ARRIVED, requests=("a",))
    call(app, "POST", "/v1/decide", b"x")
    for number in range(5):
        call(app, "GET", f'/made/up"{number}')
    text = call(app, "GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['dsd_http_requests_total{path="/v1/decide",status="200"}'] == "1"
    assert lines['dsd_http_requests_total{path="/v1/decide",status="400"}'] == "1"
    assert lines['dsd_http_requests_total{path="other",status="404"}'] == "5"
    assert lines["dsd_decisions_total"] == "1" and lines["dsd_requests"] == "1"
    assert (
        lines['dsd_http_request_seconds_bucket{le="+Inf"}'] == lines["dsd_http_request_seconds_count"] == "7"
    )


def test_calls_are_logged_with_fields(app: Any, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="dsd_env.serving.http"):
        call(app, "GET", "/v2/health/live")
    (record,) = caplog.records
    assert (record.path, record.status) == ("/v2/health/live", 200)


# ---------------------------------------------------------------------- reloading


def test_reload_and_roll_back(app: Any, service: Service, bundle: Path) -> None:
    decide(app, ARRIVED, {"type": "TokensCommitted", "request": "a"})
    first = service.digest
    assert call(app, "POST", "/v1/rollback").status == 409
    make_bundle(bundle, seed=1, overwrite=True)
    second = manifest_digest(bundle)
    refused = call(app, "POST", "/v1/reload", {"sha256": first})
    assert refused.status == 409 and second in refused.json["error"]
    assert service.digest == first
    assert call(app, "POST", "/v1/reload", {"sha256": second}).json == {"sha256": second}
    assert call(app, "GET", "/v2/models/scheduler").json["versions"] == [second[:12]]
    assert service.controller.view("a").request.committed_tokens == 1
    assert call(app, "POST", "/v1/rollback").json == {"sha256": first}
    assert call(app, "POST", "/v1/rollback").json == {"sha256": second}


def test_a_damaged_or_foreign_bundle_is_not_loaded(app: Any, service: Service, bundle: Path) -> None:
    first = service.digest
    content = (bundle / "policy.npz").read_bytes()
    (bundle / "policy.npz").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert call(app, "POST", "/v1/reload").status == 409
    shutil.rmtree(bundle)
    assert call(app, "POST", "/v1/reload").status == 409
    make_bundle(bundle, "dsd_paper")
    reply = call(app, "POST", "/v1/reload")
    assert reply.status == 409 and "does not fit" in reply.json["error"]
    assert service.digest == first
    assert decide(app, ARRIVED, requests=("a",)).json["decisions"][0]["source"] == "policy"
    assert service.reloads == {"done": 0, "refused": 3, "rolled_back": 0}


@pytest.mark.skipif(os.name == "nt", reason="no such links")
def test_a_linked_bundle_is_not_loaded(app: Any, bundle: Path, tmp_path: Path) -> None:
    bundle.rename(tmp_path / "elsewhere")
    bundle.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in call(app, "POST", "/v1/reload").json["error"]
