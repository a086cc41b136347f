"""The scripts that measure streams: what they compare and print, and simulations at the engine's pace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dsd_env
from agents.evaluation import tasks_of
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.whole_runs.static import run_statics
from tests.scenarios import tiny


@pytest.fixture
def scripts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))


SEVERAL: dict[str, Any] = {
    "protocol__kind": "streaming",
    "episode__requests": 12,
    "episode__warmup_requests": 2,
}


def asked(scenario: Scenario, scheduler: str, seed: int) -> dsd_env.Result:
    """Return an episode whose scheduler is asked for every decision."""
    return dsd_env.simulate(scenario, dsd_env.make_scheduler(scheduler), seed)


@pytest.mark.parametrize("kind", ["streaming", "synchronous"])
@pytest.mark.parametrize(
    "scheduler",
    [
        "static:4:1:own",
        "static:2:1:edge",
        "edge_sd:4",
        "cloud_ar",
        "static_map:phone=0/1/plain+laptop=2/1/own+workstation=6/1/edge@0",
        "static_map:phone=0/1/plain@0+laptop=2/1/own@pack3-1+workstation=6/1/edge@pack4",
        "by_load:above=1+quiet=4/1/own-edge+busy=2/1/colocated",
    ],
)
def test_static_runs_are_those_of_simulate(kind: str, scheduler: str) -> None:
    scenario = tiny(**{**SEVERAL, "protocol__kind": kind})
    (task,) = tasks_of("tiny", scenario, scheduler, [7])
    ((_, metrics),) = run_statics([task])
    assert metrics == pytest.approx(asked(scenario, scheduler, task.seed).metrics, 0, 0, True)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("metro", "static:8:1:edge"),
        ("metro_sync", "edge_sd:4"),
        ("flaky", "edge_sd:4"),
        ("flaky_stream", "static:8:1:edge"),
        ("flaky_stream", "static:8:1:edge-own-colocated"),
    ],
)
def test_static_runs_are_those_of_simulate_with_several_edge_servers_and_faults(
    name: str, scheduler: str
) -> None:
    scenario = measuring(load_scenario(name, episode__warmup_requests=0), 15)
    (task,) = tasks_of(name, scenario, scheduler, [7])
    ((_, metrics),) = run_statics([task])
    assert metrics == pytest.approx(asked(scenario, scheduler, task.seed).metrics, 0, 0, True)


def test_a_fixed_length_with_places_to_fall_back_on_is_the_rule_of_that_length() -> None:
    scenario = measuring(load_scenario("flaky_stream", episode__warmup_requests=0), 15)
    (task,) = tasks_of("flaky_stream", scenario, "static:8:1:edge-own-colocated", [7])
    ((_, metrics),) = run_statics([task])
    assert metrics == pytest.approx(
        dsd_env.simulate(scenario, "adaptive:8:edge", task.seed).metrics, 0, 0, True
    )


def test_static_runs_refuse_who_may_change_his_mind() -> None:
    tasks = tasks_of("tiny", tiny(), "jsq_goodput", [7])
    with pytest.raises(ValueError, match="'jsq_goodput' may change its mind"):
        list(run_statics(tasks))


def test_ways_differ_only_in_where_drafts_are_made(scripts: None) -> None:
    import _stream_node as ways

    edge = ways.node(8, ways.EDGE, 0.015)
    assert edge.n_devices == 8 and edge.links["link"].one_way_s == 0.0075
    assert edge.episode.horizon_s == ways.WARMUP_S + ways.WINDOW_S[8]
    assert not edge.targets["node"].menu
    (own,) = ways.node(8, ways.DEDICATED, 0.015).targets["node"].menu
    assert own.mode == "dedicated" and own.concurrency >= 128
    (shared,) = ways.node(8, ways.NODE_TP2, 0.015).targets["node"].menu
    assert shared.mode == "shared" and str(shared.profile).endswith("_tp2")


def test_table_shows_gains_beside_the_prototype(scripts: None) -> None:
    import stream_table

    def row(ms: float, gamma: int = 4) -> dict[str, Any]:
        branches = {
            "fanout": 4,
            "depth": 2,
            "branch_tokens_per_token": 9.0,
            "branch_tokens_used_per_token": 0.3,
        }
        return {"ms": ms, "gamma": gamma, "drafter": "x_tp2", "relative_se": 0.01, **branches}

    cell = {
        "plain": row(20, 0),
        "node_g4": row(12),
        "node": row(10, 2),
        "node_tp1": row(12.5),
        "dedicated": row(9),
    }
    cell |= {f"edge_{ms}ms": row(9.0, 16) for ms in ("5", "15", "40")}
    for way, ms in (("branch", 8.1), ("as_prototype", 10.0)):
        cell |= {f"{way}_{rtt}ms": row(ms, 12) for rtt in ("5", "15", "40")}
    text = stream_table.markdown({"engine": {"8": cell}, "kernels alone": {"8": cell}}, "a command")
    with_branches = "| 8 | 5 ms | 8.1 (W 12; 4, 2) | -10.0 | -32.5 | **-19.0** | -20.0 | -18 | 9.0, 0.30 |"
    assert with_branches in text
    assert "| 8 | 5 ms | -25.0 | **-10.0** | -10.0 | -28.0 | -14 |" in text
    assert "at most 1.0 %" in text and "a command" in text


def test_halves_of_the_devices(scripts: None) -> None:
    from _static_choices import splits

    groups = splits(dsd_env.load_scenario("metro"))
    assert frozenset({"phone", "jetson"}) in groups and frozenset({"phone"}) not in groups
    assert all(frozenset({"phone", "laptop", "jetson", "workstation"}) - group in groups for group in groups)


def test_choices_by_load_may_be_maps(scripts: None) -> None:
    from _static_choices import make_static

    by_class = "static_map:phone=0/1/plain+laptop=2/1/own+workstation=6/1/edge"
    rule = make_static(f"choices_by_load:0|static:4:1:own|{by_class}")
    busy = dsd_env.simulate(tiny(), rule, 1).metrics
    assert busy != dsd_env.simulate(tiny(), "static:4:1:own", 1).metrics
    never = make_static(f"choices_by_load:1000|static:4:1:own|{by_class}")
    assert dsd_env.simulate(tiny(), never, 1).metrics == dsd_env.simulate(tiny(), "static:4:1:own", 1).metrics


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stream_table", "--requests", "8,x"), "'x' is no whole number"),
        (("stream_table", "--confirm", "0"), "must be at least 1"),
        (("stream_gain", "--write", "README.md"), "has no block 'stream gain'"),
        (("sweep_static", "--scenario", "single_lan", "--split", "--out", "x"), "needs two targets"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[str, ...], said: str, checkout: Path, tmp_path: Path
) -> None:
    script, *rest = arguments
    if script != "sweep_static":
        rest += ["--json", str(tmp_path / "x.json")]
    result = subprocess.run(
        [sys.executable, str(checkout / "scripts" / f"{script}.py"), *rest],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2 and said in result.stderr
