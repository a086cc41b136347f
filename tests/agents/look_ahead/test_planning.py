"""Look-ahead: no choice is the base, clones leave the world alone, foresight is never worse than none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.benchmark.cells import located
from agents.evaluation import Task
from agents.look_ahead.clones import PlayedWorld, clone, draw_anew, put
from agents.look_ahead.config import load_look_ahead
from agents.look_ahead.futures import Course, FixedBase, better, play, read
from agents.look_ahead.planning import LookAhead, choices_of, replay
from agents.look_ahead.verdicts import QUICK, cost_of, metric
from dsd_env import policy
from dsd_env.whole_runs.fleet import run_fleet
from dsd_env.whole_runs.static import run_statics
from tests.agents.look_ahead.samples import config

pytest.importorskip("numba")

SEED = 2_000_000_000


def same(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether all metrics are the same to the last bit, but those that clones do not keep."""
    names = [name for name in expected if not name.startswith("itl_s")]
    return all(found[name] == expected[name] or math.isnan(expected[name]) for name in names)


def static(player: LookAhead, scheduler: str) -> dict[str, float]:
    [(_, metrics)] = run_statics([Task("x", player.space.scenario, scheduler, SEED, "x")])
    return metrics


@pytest.mark.parametrize(
    "changes",
    [
        {"sweeps": 0},
        {"gammas": [4], "places": ["colocated"]},
        {"gammas": [4], "places": ["colocated"], "score": "requests_in_system", "horizon_s": 4.0},
        {
            "gammas": [4],
            "places": ["colocated"],
            "score": "reward",
            "horizon_s": 4.0,
            "every": 3,
            "holds": [3],
        },
        {"gammas": [4], "places": ["colocated"], "redraws": 2, "every": 8},
    ],
)
@pytest.mark.parametrize("scenario", ["single_lan", "fleet"])
def test_with_nothing_to_choose_it_is_the_static_plan(
    scenario: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    player = LookAhead(config(tmp_path, scenario=scenario, **changes))
    episode = player.play(SEED)
    assert same(episode.metrics, static(player, "static:4:1:colocated"))
    assert len(episode.steps) == 1 and episode.changed == 0
    assert (episode.futures > 0) == (changes.get("sweeps") != 0)


def test_with_nothing_to_choose_a_bundle_as_base_plays_as_by_itself(tmp_path: Path) -> None:
    shipped = load_look_ahead("slow_cloud_from_rule").model_dump(include={"scenario", "fleet", "base"})
    player = LookAhead(config(tmp_path, **shipped, gammas=[8], places=["own"], sweeps=0))
    bundle = policy.load(located(shipped["base"]).removeprefix("policy:"))
    task = Task("x", player.space.scenario, "x", SEED, "x")
    [(_, expected)] = run_fleet([task], bundle)
    episode = player.play(SEED)
    assert len(episode.steps) > 2  # it does change its mind
    assert same(episode.metrics, expected)
    assert same(replay(player.space, SEED, episode.steps), expected)


def test_a_bundle_of_other_plans_is_no_base(tmp_path: Path) -> None:
    shipped = load_look_ahead("slow_cloud_from_rule").model_dump(include={"scenario", "base"})
    with pytest.raises(policy.PolicyError, match=r"control_period_s = 1, .*settings of fleet must"):
        LookAhead(config(tmp_path, **shipped))


def test_the_world_that_is_played_notices_nothing_of_its_clones(tmp_path: Path) -> None:
    """The plans that a look-ahead chose give the same episode without any look ahead."""
    made = config(tmp_path, scenario="fleet", gammas=[0, 2, 6], every=4, holds=[4], sweeps=1)
    player = LookAhead(made)
    episode = player.play(SEED)
    assert episode.changed > 0 and len(episode.steps) > 1
    assert episode.futures > 10
    alone = replay(player.space, SEED, episode.steps)
    assert all(alone[n] == v or math.isnan(v) for n, v in episode.metrics.items())


def test_a_clone_put_into_a_world_of_another_episode_goes_on_as_the_original(tmp_path: Path) -> None:
    space = LookAhead(config(tmp_path, scenario="fleet")).space
    world, other = PlayedWorld(space), PlayedWorld(space)
    first, second = space.uniform("8/1/own"), space.uniform("2/1/colocated")
    assert world.begin(SEED) and world.follow(first, 5.0)
    assert other.begin(SEED + 1)
    assert not other.follow(second, math.inf)  # played to the end, so that nothing of it is clean
    put(clone(world), other)
    for plan, until_s in ((second, 7.5), (first, 9.0), (second, math.inf)):
        assert world.follow(plan, until_s) == other.follow(plan, until_s)
        assert world.simulation.now_s == other.simulation.now_s
        assert world.simulation.totals == other.simulation.totals
    assert same(other.simulation.metrics(), world.simulation.metrics())


@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_to_the_end_of_the_episode_foresight_is_never_worse_than_the_base(seed: int, tmp_path: Path) -> None:
    """Whatever it does next, going on as intended is among what it compares, to the very end."""
    made = config(tmp_path, scenario="fleet", every=4, holds=[4, 12], sweeps=1, gammas=[0, 4, 8])
    player, base = LookAhead(made), LookAhead(made.model_copy(update={"sweeps": 0}))
    found = player.play(seed).metrics["e2e_s_mean"]
    assert found < base.play(seed).metrics["e2e_s_mean"]


def test_a_plan_that_is_held_too_long_is_given_up_for_the_base(tmp_path: Path) -> None:
    space = LookAhead(config(tmp_path)).space
    base, held = FixedBase(space.uniform("4/1/colocated")), space.uniform("plain")
    world = PlayedWorld(space)
    world.begin(SEED)
    _, steps = play(world, base, Course(held, 3.0), space.first_plan, math.inf)
    assert [(until_s, space.describe(plan)) for until_s, plan in steps] == [
        (3.0, "workstation=0/1/plain"),
        (math.inf, "workstation=4/1/colocated"),
    ]


def test_the_integral_ends_at_the_horizon_not_at_the_decision_after_it(tmp_path: Path) -> None:
    """Read at times between decisions, it is the area below the number of requests at these times."""
    space = LookAhead(config(tmp_path, scenario="fleet")).space
    plan, spans = space.uniform("4/1/colocated"), []
    times_s = np.linspace(2.0, 6.0, 15)
    for time_s in times_s:
        world = PlayedWorld(space)
        world.begin(SEED)
        world.follow(plan, float(time_s))
        spans.append((read(world, float(time_s)).request_s, float(world.simulation.now_s)))
        exact = read(world, float(world.simulation.now_s)).request_s
        assert exact == pytest.approx(world.simulation.totals.request_seconds)
    world = PlayedWorld(space)
    world.begin(SEED)
    world.follow(plan, math.inf)
    from dsd_env.sim.compiled.world import WorldReader

    reader = WorldReader(world.layout, world.simulation.world)
    rows = reader.rows("requests", int(world.layout.header["n_slots"]))
    rows = rows[(rows["number"] >= 0) & ~rows["done"]]
    table = reader.rows("table", int(reader.header["table_n"]))
    starts = np.concatenate([table["arrival_s"], rows["arrival_s"]])
    ends = np.concatenate([table["completed_s"], np.full(len(rows), np.inf)])
    for time_s, (found, _) in zip(times_s, spans, strict=True):
        area = np.maximum(0.0, np.minimum(ends, time_s) - starts).sum()
        assert found == pytest.approx(area, abs=1e-9)


def test_choices_are_those_that_can_be_executed(tmp_path: Path) -> None:
    made = config(tmp_path)
    space = made.space(made.contest())
    [rows] = choices_of(made, space)
    told = [space.describe(np.array([row])) for row in rows]
    assert told == ["workstation=0/1/plain"] + [
        f"workstation={gamma}/1/{place}" for gamma in (2, 4, 8) for place in ("colocated", "own")
    ]


@pytest.mark.parametrize("scenario", ["single_lan", "fleet"])
def test_quick_verdicts_are_the_metrics(scenario: str, tmp_path: Path) -> None:
    space = LookAhead(config(tmp_path, scenario=scenario)).space
    world = PlayedWorld(space)
    world.begin(SEED)
    world.follow(space.uniform("2/1/own"), 8.0)
    unfinished = world.simulation.metrics()
    for name in QUICK:  # the window is not over: what has been observed so far
        found = metric(world, name)
        assert found == unfinished[name] or math.isnan(unfinished[name])
    world.follow(space.uniform("8/1/own"), math.inf)
    expected = world.simulation.metrics()
    for name in (*QUICK, "tpot_s_p95"):
        assert metric(world, name) == pytest.approx(expected[name], rel=1e-12)


def test_a_missed_constraint_costs_more_than_any_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.benchmark.config import Objective
    from agents.look_ahead import verdicts

    cost = Objective.model_validate(
        {"metric": "usd", "better": "lower", "subject_to": {"metric": "slo", "at_least": 0.95}}
    )

    def costs(objective: Objective, **found: float) -> float:
        monkeypatch.setattr(verdicts, "metric", lambda world, name: found[name])
        return cost_of(None, objective)  # type: ignore[arg-type]

    assert costs(cost, usd=2.0, slo=0.96) == 2.0
    assert costs(cost, usd=1.0, slo=0.949) == pytest.approx(2.0)
    assert costs(cost, usd=math.nan, slo=1.0) == math.inf
    assert costs(Objective(metric="good", better="higher"), good=3.0) == -3.0


def test_a_future_that_is_drawn_anew_begins_in_the_same_present_and_is_another_one(tmp_path: Path) -> None:
    space = LookAhead(config(tmp_path, scenario="fleet")).space
    plan = space.uniform("4/1/colocated")
    world, first, second = PlayedWorld(space), PlayedWorld(space), PlayedWorld(space)
    for each in (world, first, second):
        each.begin(SEED)
    world.follow(plan, 5.0)
    for each, seed in ((first, 7), (second, 7)):
        put(clone(world), each)
        draw_anew(each, seed)
        assert each.simulation.now_s == world.simulation.now_s
        assert each.simulation.totals == world.simulation.totals
        each.follow(plan, math.inf)
    world.follow(plan, math.inf)
    assert same(first.simulation.metrics(), second.simulation.metrics())
    assert not same(first.simulation.metrics(), world.simulation.metrics())


def test_without_foresight_the_episode_is_still_the_one_that_is_played(tmp_path: Path) -> None:
    """What is drawn anew is so on clones alone, and the same look-ahead decides the same twice."""
    made = config(tmp_path, scenario="fleet", gammas=[0, 4], every=8, holds=[8], sweeps=1, redraws=2)
    player = LookAhead(made)
    episode = player.play(SEED)
    assert episode.futures % 2 == 0 and episode.changed > 0
    assert same(replay(player.space, SEED, episode.steps), episode.metrics)
    again = LookAhead(made).play(SEED)
    assert len(again.steps) == len(episode.steps) and same(again.metrics, episode.metrics)


def test_a_course_is_better_by_so_many_standard_errors() -> None:
    best = np.array([4.0, 6.0, 8.0])
    assert better(best - np.array([3.0, 0.0, 0.0]), best, 0.0)
    assert not better(best, best, 0.0)
    # A gain of 1 with a standard deviation of √3, and so a standard error of 1.
    assert better(best - np.array([3.0, 0.0, 0.0]), best, 0.99)
    assert not better(best - np.array([3.0, 0.0, 0.0]), best, 1.01)
