"""The demonstration, small: the whole way from training to a decision of the exported policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dsd_env.scenario import load_scenario
from dsd_env.schedulers import make_scheduler
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "demo.py"


def test_the_whole_way_on_the_smallest_scenario(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    options = ["--seeds", "2", "--requests", "4", "--jobs", "1", "--history"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--config", "smoke", "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "comparison.png").stat().st_size > 10_000
    schedulers = json.loads((out / "evaluation.json").read_text())["scenarios"]["single_lan"]["schedulers"]
    learned = f"policy:{out / 'policy'}"
    assert learned in schedulers and "jsq_goodput" in schedulers
    # The words follow from the numbers: some baseline is the best, and the policy is compared with it.
    best = min(
        (name for name in schedulers if name != learned),
        key=lambda name: schedulers[name]["metrics"]["e2e_s_mean"]["mean"],
    )
    verdict = done.stdout[done.stdout.index("Mean request time of the learned policy") :]
    marked = next(line for line in verdict.splitlines() if "the best baseline" in line)
    assert marked.split()[0] == best
    # The report shows over time what these two decided, and nobody else.
    assert {name for name, entry in schedulers.items() if "history" in entry} == {learned, best}
    assert schedulers[learned]["history"]["requests_measured"] == 4
    assert "one decision takes" in done.stdout
    page = (out / "report.html").read_text()
    assert "Demonstration on single_lan" in page and learned in page and "training run" in page


def test_the_strongest_opponents_are_schedulers_of_their_scenarios(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from demo import BASELINES, STRONGEST

    for name, strongest in STRONGEST.items():
        for specification in (*BASELINES, strongest):
            make_scheduler(specification).reset(load_scenario(name), 0)
