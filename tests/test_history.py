"""Histories of episodes: a recorder changes nothing, and what it notes is what happened."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dsd_env
from dsd_env.control import Decision
from dsd_env.history import LATENCIES, MOST_INTERVALS, PLAIN, Recorder, recorded
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.schedulers import make_scheduler
from tests.scenarios import tiny
from tests.views import make_request, make_view


class Log:
    """A scheduler that keeps what it was asked and answered."""

    def __init__(self, name: str) -> None:
        self.name, self._inner, self.seen = name, make_scheduler(name), []

    def reset(self, scenario, seed):
        self._inner.reset(scenario, seed)

    def decide(self, view):
        decision = self._inner.decide(view)
        self.seen.append((view.now_s, view.system.active_requests, view.request.is_admission, decision))
        return decision


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_it_is_what_happened(engine):
    scenario = tiny()
    result, history = recorded(scenario, "random", 3, engine=engine)
    plain = dsd_env.simulate(scenario, log := Log("random"), 3, engine=engine)
    assert result.metrics == plain.metrics
    json.dumps(history, allow_nan=False)
    step_s, end_s = history["interval_s"], history["end_s"]
    assert end_s == result.metrics["duration_s"]
    decided = [(now_s, one) for now_s, _, is_admission, one in log.seen if not is_admission]
    counts = np.zeros(len(history["decisions"]), dtype=int)
    for now_s, _ in decided:
        counts[int(now_s / step_s)] += 1
    assert history["decisions"] == counts.tolist() and 1 < len(counts) <= MOST_INTERVALS
    assert np.sum(list(history["places"].values()), axis=0).tolist() == counts.tolist()
    assert sum(history["places"][PLAIN]) == sum(one.gamma == 0 for _, one in decided)
    at = int(np.argmax(counts))
    gammas = [one.gamma for now_s, one in decided if int(now_s / step_s) == at and one.gamma > 0]
    assert history["gamma_mean"][at] == pytest.approx(np.mean(gammas))
    # The integral of the load is that of a value that holds until the next decision.
    times_s = [now_s for now_s, *_ in log.seen] + [end_s]
    integral = sum(
        active * length for (_, active, *_), length in zip(log.seen, np.diff(times_s), strict=True)
    )
    lengths_s = np.diff(np.minimum(step_s * np.arange(len(counts) + 1), end_s))
    assert np.dot(history["active_requests"], lengths_s) == pytest.approx(integral)


@pytest.mark.parametrize("scenario", ["flaky", "single_lan"])
def test_latencies_are_those_of_the_metrics(scenario):
    result, history = recorded(measuring(load_scenario(scenario), 20), "hf_heuristic", 1, engine="reference")
    for name in LATENCIES:
        quantiles = history["quantiles"][name]
        assert quantiles[50] == pytest.approx(result.metrics[f"{name}_p50"])
        assert quantiles[95] == pytest.approx(result.metrics[f"{name}_p95"])
    assert history["requests_measured"] == result.metrics["requests_measured"] == 20


def test_long_episodes_have_long_intervals():
    class Always:
        name = "always"

        def reset(self, scenario, seed):
            pass

        def decide(self, view):
            return Decision(4, 2, 0)

    recorder = Recorder(Always())
    times_s = [0.0, 1.0, 29.9, 30.0, 100.0, 1e4]
    for now_s in times_s:
        one = make_view(now_s=now_s, request=make_request(is_admission=False))
        one.system.active_requests = 3
        assert recorder.decide(one) == Decision(4, 2, 0)
    history = recorder.history(2e4)
    assert history["interval_s"] == 0.25 * 2**10 and len(history["decisions"]) == 79
    assert sum(history["decisions"]) == len(times_s)
    assert history["active_requests"] == pytest.approx([3.0] * 79)
    assert {gamma for gamma in history["gamma_mean"] if gamma is not None} == {4.0}
