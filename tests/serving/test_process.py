"""The server as a process: its command line, load, reloading and killing under load, a stock client."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dsd_env.control.fleet import FleetSpace
from dsd_env.policy import load
from dsd_env.scenario import load_scenario
from dsd_env.serving.service import manifest_digest
from tests.serving.samples import make_bundle, make_fleet_bundle

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def serving(
    checkout: Path, policy: str | Path, port: int, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server, wait until it takes calls, and end it."""
    process = subprocess.Popen(
        [sys.executable, "scripts/serve.py", "--policy", str(policy), "--port", str(port), *arguments],
        cwd=checkout,
        stderr=subprocess.PIPE if not arguments else subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        until_s = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if get(port, "/v2/health/ready")[0] == 200:
                    break
            assert process.poll() is None and time.monotonic() < until_s, "it does not start"
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(port: int, path: str, method: str = "GET", body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


def load_test(checkout: Path, port: int, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "scripts/load_serving.py", "--url", f"http://127.0.0.1:{port}"),
            *("--clients", "4", "--seconds", str(seconds), "--target", "target"),
        ],
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_it_serves_logs_and_ends_when_told(checkout: Path, tmp_path: Path) -> None:
    bundle, port = make_bundle(tmp_path / "policy"), free_port()
    with serving(checkout, bundle, port) as process:
        status, body = get(port, "/v1/decide", "POST", '{"requests": ["a"]}')
        assert status == 200 and json.loads(body)["decisions"][0]["gamma"] == 0
        make_bundle(bundle, seed=1, overwrite=True)
        process.send_signal(signal.SIGHUP)
        wanted, until_s = manifest_digest(bundle), time.monotonic() + 10
        while json.loads(get(port, "/v2/models/scheduler")[1])["parameters"]["sha256"] != wanted:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.decode().splitlines()]
    assert {"serving", "reloaded", "call"} <= {line["message"] for line in lines}
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


@pytest.mark.slow
def test_a_policy_of_the_fleet_view_is_served_under_load(checkout: Path, tmp_path: Path) -> None:
    space = FleetSpace(load_scenario("single_lan"), 0.1)
    bundle, port = make_fleet_bundle(tmp_path / "policy", space), free_port()
    with serving(checkout, bundle, port, "--safe-plan", "2/1/colocated", "--log-level", "error"):
        under_load = load_test(checkout, port, 3.0)
        time.sleep(1.0)
        make_fleet_bundle(bundle, space, seed=1, overwrite=True)
        assert get(port, "/v1/reload", "POST")[0] == 200
        make_bundle(bundle, overwrite=True)
        status, body = get(port, "/v1/reload", "POST")
        assert status == 409 and b"one of decisions on single requests" in body
        figures = json.loads(under_load.communicate(timeout=60)[0])
        assert (figures["lost"], figures["refused"], set(figures["decisions"])) == (0, 0, {"policy"})
        plan = json.loads(get(port, "/v1/plan")[1])
        assert plan["source"] == "policy" and plan["number"] > 10
    with serving(checkout, bundle, port, "--log-level", "error"):
        assert get(port, "/v1/plan")[0] == 409


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--policy cloud_ar --deployment single_lan --host 0.0.0.0", "give --token-file too"),
        pytest.param("--policy hf_heuristic", "a rule needs a deployment", marks=pytest.mark.slow),
        pytest.param("--policy no_such_rule", "unknown scheduler", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: str, message: str, checkout: Path) -> None:
    command = [sys.executable, "scripts/serve.py", *arguments.split()]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_call_is_lost_by_reloading_or_killing_under_load(checkout: Path, tmp_path: Path) -> None:
    bundle, port = make_bundle(tmp_path / "policy"), free_port()
    with serving(checkout, bundle, port, "--log-level", "error"):
        under_load = load_test(checkout, port, 6.0)
        time.sleep(2.0)
        for seed in range(1, 11):
            make_bundle(bundle, seed=seed, overwrite=True)
            status, body = get(port, "/v1/reload", "POST")
            assert status == 200 and json.loads(body)["sha256"] == manifest_digest(bundle)
            time.sleep(0.1)
        told, _ = under_load.communicate(timeout=60)
    figures = json.loads(told)
    assert (figures["lost"], figures["refused"], figures["repeats"]) == (0, 0, 0)
    assert set(figures["decisions"]) == {"policy"} and figures["calls"] > 200

    port = free_port()
    with serving(checkout, bundle, port, "--log-level", "error") as process:
        under_load = load_test(checkout, port, 12.0)
        time.sleep(4.0)
        process.kill()
        process.wait()
        with serving(checkout, bundle, port, "--log-level", "error"):
            told, _ = under_load.communicate(timeout=90)
    figures = json.loads(told)
    assert (figures["lost"], figures["refused"]) == (0, 0)
    # Requests that the new process has not seen arrive decode plainly; the later ones are decided on again.
    assert figures["repeats"] >= 4 and figures["decisions"]["policy"] > 100
    assert figures["decisions"].get("unknown_request", 0) < figures["decisions"]["policy"]


@pytest.mark.slow
def test_a_stock_client_of_the_protocol_works(checkout: Path, tmp_path: Path) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    bundle, port = make_bundle(tmp_path / "policy"), free_port()
    policy = load(bundle)
    x = np.random.default_rng(0).random((3, len(policy.manifest.observation)), dtype=np.float32)
    mask = np.ones((3, sum(policy.actions.nvec)), dtype=np.bool_)
    with serving(checkout, bundle, port, "--log-level", "error"):
        client = client_module.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("scheduler")
        assert client.get_server_metadata()["name"] == "dsd_env"
        assert client.get_model_metadata("scheduler")["outputs"][0]["name"] == "actions"
        for binary in (True, False):
            inputs = [
                client_module.InferInput("observation", list(x.shape), "FP32"),
                client_module.InferInput("mask", list(mask.shape), "BOOL"),
            ]
            inputs[0].set_data_from_numpy(x, binary_data=binary)
            inputs[1].set_data_from_numpy(mask, binary_data=binary)
            outputs = [client_module.InferRequestedOutput("actions", binary_data=binary)]
            result = client.infer("scheduler", inputs, outputs=outputs, request_id="1")
            wanted = [policy.action(row, None) for row in x]
            assert result.as_numpy("actions").tolist() == wanted
        client.close()
