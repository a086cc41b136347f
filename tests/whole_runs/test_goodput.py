"""The goodput rule in compiled code decides as the rule that defines it does, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from agents.environments import make_vec_env
from agents.rollouts import BySchedulers, Stage
from dsd_env.scenario import load_scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.goodput import GoodputScheduler
from dsd_env.sim.compiled import CompiledSimulation, compile_scenario
from dsd_env.whole_runs.goodput import can_play, rule_bytes
from dsd_env.whole_runs.runs import fast_runs
from tests.whole_runs.asked import Asked, check_whole_runs

ODD = (
    "jsq_goodput:load_weight=0.6+prior_acceptance=0.8+price_own=0.9+price_edge=1.1+price_colocated=1.05"
    "+age_weight=1+pack=20+change_margin=1.1+slo_margin=0.7+batch_size=4+hopeless=1.2+relief=0.5+explore=3"
)


def rule(spec: str) -> GoodputScheduler:
    scheduler = make_scheduler(spec)
    assert isinstance(scheduler, GoodputScheduler)
    return scheduler


@pytest.mark.parametrize("spec", ["jsq_goodput", ODD])
@pytest.mark.parametrize(
    "name",
    ["flaky", "flaky_stream", "metro", "drafter_menu", "cost", "tiers", "dsd_paper", "regions", "reasoning"],
)
def test_every_decision_is_the_rules(name: str, spec: str) -> None:
    from dsd_env.whole_runs.goodput_kernel import decide_due

    scenario, player = load_scenario(name), rule(spec)
    compiled = rule_bytes(player, scenario)
    layout = compile_scenario(scenario)
    simulation = CompiledSimulation(scenario, 3, layout=layout)
    told = np.zeros(2, dtype=np.int64)
    drafts = 0
    for _ in range(1200):
        view = simulation.next_decision()
        if view is None:
            break
        wanted = player.decide(view)
        decide_due(layout.constants, simulation.world, compiled, told)
        assert (wanted.gamma, wanted.placement) == tuple(told.tolist())
        simulation.decide(wanted)
        drafts += wanted.gamma > 0
    assert drafts > 0


@pytest.mark.parametrize("spec", ["jsq_goodput", ODD])
@pytest.mark.parametrize("name", ["single_lan", "flaky_stream", "cost", "regions"])
def test_episodes_are_those_of_simulate(name: str, spec: str) -> None:
    scenario = load_scenario(name, episode__requests=12, episode__warmup_requests=3)
    check_whole_runs(scenario, spec, [1, 2])


def test_forgotten_yields_are_worked_out_anew() -> None:
    from dsd_env.whole_runs import goodput_kernel as kernel

    scenario, player = load_scenario("stream_node"), rule("jsq_goodput")
    compiled = rule_bytes(player, scenario)
    header = compiled[: kernel.RULE.itemsize].view(kernel.RULE.dtype)
    layout = compile_scenario(scenario)
    simulation = CompiledSimulation(scenario, 3, layout=layout)
    told, numbers = np.zeros(2, dtype=np.int64), set()
    for i in range(200):
        view = simulation.next_decision()
        assert view is not None
        if i % 20 == 19:
            header["n_yields"] = kernel.PLACES // 2
        else:
            numbers.add(int(header["n_yields"][0]))
        kernel.decide_due(layout.constants, simulation.world, compiled, told)
        wanted = player.decide(view)
        assert (wanted.gamma, wanted.placement) == tuple(told.tolist())
        simulation.decide(wanted)
    assert min(numbers) == 0 and kernel.PLACES // 2 in numbers  # some were forgotten, others known


def test_branches_are_left_to_the_rule() -> None:
    scenario = load_scenario("stream_node_branches")
    assert not can_play(scenario)
    assert fast_runs([Asked(scenario, "jsq_goodput", 1)]) is None


def test_imitation_asks_the_compiled_rule() -> None:
    """Side by side, world after world, the decisions are those of the rule asked in Python."""
    scenario = load_scenario("flaky_stream")
    env = make_vec_env(scenario, 3, lambda world, episode: 10 * world + episode, "compiled")
    stage = Stage(scenario, env, [0, 10, 20])
    teacher, player = BySchedulers("jsq_goodput"), rule("jsq_goodput")
    player.reset(scenario, 0)
    for _ in range(150):
        told = teacher(stage, [0, 1, 2])
        views = env.get_attr("view")
        assert told.tolist() == [list(stage.actions.encode(player.decide(view))) for view in views]
        stage.step(told)
    env.close()
