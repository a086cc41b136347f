"""Gains of one way of decoding on others: what is known is found, and what is missing is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dsd_env.calibration.engine_bench.gain import gains, lengths, markdown
from dsd_env.calibration.engine_bench.runs import Answer, Round, Run


def run(setting: str, clients: int, repeat: int, e2e_s: list[float]) -> Run:
    answers = [
        Answer(n, n % clients, "story" if n else "chat", 0.0, 0.1, seconds, [1, 2], [Round(n, 1)])
        for n, seconds in enumerate(e2e_s)
    ]
    return Run(setting, clients, answers, [], sum(e2e_s), {"repeat": repeat})


def test_a_drift_of_the_machine_cancels_and_scatter_widens_the_interval():
    runs = []
    generator = np.random.default_rng(1)
    for repeat in range(4):
        drift = 1.0 + repeat
        for clients in (1, 4):
            runs.append(run("policy", clients, repeat, [0.8 * drift] * 5))
            runs.append(run("even", clients, repeat, [1.0 * drift] * 5))
            runs.append(run("noisy", clients, repeat, list(drift * generator.uniform(0.2, 1.4, 5))))
    found = {(each.setting, each.clients): each for each in gains(runs, "policy")}
    assert set(found) == {(name, n) for name in ("even", "noisy") for n in (1, 4, None)}
    even, noisy = found["even", None], found["noisy", None]
    assert (even.gain_pct, even.low_pct, even.high_pct) == pytest.approx((20.0, 20.0, 20.0))
    assert (even.e2e_s, even.own_e2e_s) == pytest.approx((2.5, 2.0))
    assert noisy.low_pct < noisy.gain_pct < noisy.high_pct
    assert noisy.low_pct < 0.0 < noisy.high_pct
    text = markdown(gains(runs, "policy"), lengths(runs, "policy"), "policy")
    assert "| even | 0.00" not in text
    assert "**+20.0 % (+20.0 to +20.0)**" in text
    assert "| 4 | chat | 100 % | 0 % |" in text


def test_what_is_missing_is_refused():
    both = [run(name, 1, repeat, [1.0]) for name in ("policy", "plain") for repeat in range(2)]
    with pytest.raises(ValueError, match="no run of 'mine'"):
        gains(both, "mine")
    with pytest.raises(ValueError, match="at least two repeats"):
        gains([each for each in both if each.facts["repeat"] == 0], "policy")
    with pytest.raises(ValueError, match="'plain' with 1 clients ran in repeats"):
        gains(both[:-1], "policy")
