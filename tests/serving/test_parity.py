"""Training and serving see the same: the telemetry of a simulation gives the controller its very views."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dsd_env.control import DecisionView, ObservationEncoder
from dsd_env.scenario import load_scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.serving import Controller, Deployment
from tests.scenarios import tiny
from tests.serving.recorder import Recorder
from tests.serving.samples import make_bundle


def differences(mine: DecisionView, theirs: DecisionView) -> list[str]:
    """Return the paths at which two views differ."""
    found: list[str] = []

    def walk(a, b, path: str) -> None:
        if isinstance(a, dict):
            for key in a:
                walk(a[key], b[key], f"{path}.{key}")
        elif isinstance(a, (list, tuple)) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(x, y, f"{path}[{i}]")
        elif a != b:
            found.append(f"{path}: {a!r} is not {b!r}")

    walk(asdict(mine), asdict(theirs), "")
    return found


@pytest.mark.parametrize(
    ("name", "rule", "seed", "decisions"),
    [
        ("single_lan", "hf_heuristic:own", 1, 200),
        ("single_lan", "random", 2, 200),
        ("tiny", "random", 3, 250),
        ("tiny", "jsq_goodput", 5, 250),
        ("tiny", "policy", 6, 250),
        pytest.param("metro_sync", "random", 3, 500, marks=pytest.mark.slow),
        pytest.param("dsd_paper", "jsq_goodput", 4, 400, marks=pytest.mark.slow),
    ],
)
def test_views_observations_and_decisions_are_those_of_the_simulation(
    name: str, rule: str, seed: int, decisions: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # `tiny` has every kind of place, several targets, losses, and devices that differ.
    scenario = tiny() if name == "tiny" else load_scenario(name)
    if rule == "policy":
        rule = f"policy:{make_bundle(tmp_path / 'policy', scenario)}"
    recorder = Recorder(scenario, seed, monkeypatch)
    controller = Controller(
        rule,
        Deployment.of(scenario),
        clock=lambda: recorder.now_s,
        origin_s=0.0,
        reports="by_nominal_delay",
        seed=seed,
    )
    scheduler = make_scheduler(rule)
    scheduler.reset(scenario, seed)
    encoder = ObservationEncoder.of(scenario)
    moved = told = taken = 0
    while taken < decisions and (theirs := recorder.simulation.next_decision()) is not None:
        request, now_s = recorder.simulation.due_request, recorder.now_s
        told += len(recorder.before_decision())
        controller.observe_many(recorder.taken())
        served = controller.requests[str(request.number)]
        if served.control != request.control:
            recorder.move_control(request)
            controller.observe_many(recorder.taken())
            moved += 1
        mine = controller.view(str(request.number), now_s)
        assert not differences(mine, theirs), f"decision {taken} at {now_s}"
        expected = encoder.encode(theirs)
        np.testing.assert_array_equal(controller.observation(str(request.number), now_s), expected)
        decision = scheduler.decide(theirs)
        resolution = recorder.simulation.decide(decision)
        answer = controller.decide(str(request.number), now_s)
        if controller._mirror is not None:
            np.testing.assert_array_equal(controller._mirror.observations[0], expected)
        assert (answer.gamma, answer.batch_size) == (resolution.gamma, resolution.batch_size)
        assert answer.placement == decision.placement or resolution.reason
        assert answer.source == ("policy" if rule.startswith("policy:") else "rule")
        taken += 1
    assert taken == decisions or recorder.simulation.terminated or recorder.simulation.truncated
    # Where the next decision is taken follows from the last one, but for what happens on the way.
    assert moved <= taken // 4, (moved, taken)
