"""Capacity at SLO against a closed form."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.capacity import Search, prepared, scaled, what_scales
from agents.evaluation import PartialResults
from dsd_env.scenario import Scenario, load_scenario
from tests.lab import lab

SERVICE_S = 0.1
BOUND_S = 0.35


def queue(**changes: Any) -> Scenario:
    """Return a server of one constant service time; answers have one token, due within a bound."""
    return lab(
        **{
            "clients": 20,
            "verify": {"t0_s": SERVICE_S},
            "arrivals": {"kind": "poisson", "rate_per_s": 5.0},
            "output": {"distribution": "constant", "value": 1},
            "targets__target__max_num_seqs": 1,
            "slo": {"any": {"ttft_s": BOUND_S}},
            **changes,
        }
    )


def waits_at_most(wait_s: float, rate_per_s: float) -> float:
    """Return the share of customers of M/D/1 that wait no longer (Erlang 1909)."""
    load = rate_per_s * SERVICE_S
    terms = []
    for k in range(int(wait_s / SERVICE_S) + 1):
        x = rate_per_s * (k * SERVICE_S - wait_s)
        terms.append(x**k / math.factorial(k) * math.exp(-x))
    return (1.0 - load) * sum(terms)


def capacity_of_m_d_1(share: float) -> float:
    """Return the rate at which just so many are served within the bound."""
    low, high = 0.0, 1.0 / SERVICE_S
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if waits_at_most(BOUND_S - SERVICE_S, middle) >= share else (low, middle)
    return low


def test_the_closed_form_itself() -> None:
    # Whoever finds the server idle does not wait: 1 − load.
    assert waits_at_most(0.0, 5.0) == pytest.approx(0.5)
    assert waits_at_most(1.0, 5.0) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("share", [0.95, pytest.param(0.8, marks=pytest.mark.slow)])
def test_the_capacity_of_m_d_1_is_found(share: float) -> None:
    expected = capacity_of_m_d_1(share)
    scenario = prepared(queue(), None, 600.0, 30.0)
    found = Search("queue", scenario, seeds=3, share=share, tolerance=0.02).run("cloud_ar:1")
    assert found.best is not None and found.above is not None
    assert found.best.offered < found.above.offered <= 1.021 * found.best.offered
    assert found.best.offered == pytest.approx(expected, rel=0.06)
    assert found.best.arrivals_per_s == pytest.approx(found.best.offered, rel=0.06)
    assert found.best.attainment >= share > found.above.attainment


def test_what_is_scaled() -> None:
    doubled, rate = scaled(queue(), 2.0)
    assert (what_scales(queue()), rate) == ("requests/s", 10.0)
    assert doubled.workload.arrivals.rate_per_s == 10.0  # type: ignore[union-attr]
    closed = lab(clients=10)
    more, clients = scaled(closed, 1.5)
    assert (what_scales(closed), clients, more.n_devices) == ("clients", 15.0, 15)
    assert more.workload == closed.workload
    assert scaled(closed, 0.01)[1] == 1.0


def test_a_bound_that_nobody_meets_and_one_that_everybody_does() -> None:
    short = {"tolerance": 0.5, "seeds": 1}
    never = prepared(queue(slo={"any": {"ttft_s": 0.01}}, clients=2), None, 20.0, 5.0)
    found = Search("q", never, **short).run("cloud_ar:1")
    assert found.best is None and found.above is not None and found.above.scale < 1.0
    assert json.loads(json.dumps(found.to_json()))["best"] is None
    few = prepared(queue(arrivals={"kind": "poisson", "rate_per_s": 1e-3}, clients=2), None, 20.0, 5.0)
    found = Search("q", few, **short).run("cloud_ar:1")
    assert found.above is None and found.best is not None and found.best.scale >= 64


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    scenario = prepared(queue(), None, 60.0, 5.0)
    first = Search("q", scenario, seeds=1, kept=PartialResults(tmp_path / "kept")).run("cloud_ar:1")
    kept = PartialResults(tmp_path / "kept")
    known = len(kept.results)
    again = Search("q", scenario, seeds=1, kept=kept).run("cloud_ar:1")
    assert again == first
    assert len(PartialResults(tmp_path / "kept").results) == known > 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, checkout: Path) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    import capacity

    file = tmp_path / "queue.yaml"
    file.write_text(json.dumps(queue().model_dump(mode="json")), encoding="utf-8")
    assert load_scenario(str(file)).name == "lab"
    out = tmp_path / "out.json"
    command = ["capacity.py", "--scenario", str(file), "--schedulers", "cloud_ar:1", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--window-s", "60", "--tolerance", "0.2", "--json", str(out)])
    assert capacity.main() == 0
    summary = json.loads(out.read_text(encoding="utf-8"))
    best = summary["schedulers"]["cloud_ar:1"]["best"]
    assert 3.0 < best["offered"] < 10.0 and best["attainment"] >= 0.95
    text = capsys.readouterr().out
    assert "requests/s" in text and "cloud_ar:1" in text
    assert not out.with_name("out.json.partial").exists()
