"""The fleet view: plans, groups and places, both engines, checkers, vectors, what it does not see."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from pathlib import Path
from random import Random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dsd_env
from dsd_env.control.fleet import GROUPINGS, FleetError, FleetSpace, Place
from dsd_env.control.fleet_view import FleetEncoder, fleet_view
from dsd_env.control.rewards import reward_factors, reward_weights, running_totals
from dsd_env.control.view import Site
from dsd_env.envs import FLEET_ENV_ID, METRICS, REWARD_TERMS, EdgeCloudEnv, EdgeCloudFleetEnv
from dsd_env.envs.fleet_vector import EdgeCloudFleetVectorEnv
from dsd_env.envs.tables import FLEET_TABLES, with_tables
from dsd_env.scenario import Scenario
from dsd_env.schedulers.fleet import PlanScheduler
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.fuzz.scenarios import draw_case
from dsd_env.sim.telemetry import Telemetry
from tests.envs.test_no_peek import CHANGES, Change, Trace, divergence_s
from tests.scenarios import TINY, tiny

ENGINES = ("reference", "compiled")
QUESTION = TINY["workload"]["kinds"]["question"]
CLASSES: dict[str, Any] = {
    "slo": {"chat": {"ttft_s": 0.5, "tpot_s": 0.04}, "batch": {"ttft_s": 5.0, "tpot_s": 0.1}},
    "workload__kinds": {"question": QUESTION, "essay": {**QUESTION, "slo": "batch", "weight": 0.6}},
}
"""Two classes of objectives."""


def _constant(value: float) -> dict[str, Any]:
    return {"distribution": "constant", "value": value}


CRASHES: dict[str, Any] = {
    "faults": {
        "target": {
            "kind": "target_crash",
            "of": "big",
            "at_s": [1.2],
            "duration_s": {"distribution": "constant", "value": 0.8},
        },
        "edge": {
            "kind": "edge_crash",
            "of": "box",
            "at_s": [0.7, 2.5],
            "duration_s": {"distribution": "constant", "value": 0.6},
        },
        "device": {
            "kind": "device_crash",
            "of": "laptop",
            "at_s": [1.0],
            "duration_s": {"distribution": "constant", "value": 0.5},
        },
        "link": {
            "kind": "link_outage",
            "of": "phone",
            "at_s": [2.0],
            "duration_s": {"distribution": "constant", "value": 0.7},
        },
    }
}
SCENARIOS: dict[str, dict[str, Any]] = {
    "sync": {},
    "streaming": {"protocol__kind": "streaming", **CLASSES},
    "pipelined": {"protocol__kind": "pipelined"},
    "faults": {"protocol__kind": "streaming", **CLASSES, **CRASHES},
    "cabinets": {
        "protocol__kind": "streaming",
        "edge_servers__box__count": 3,
        "actions__edge_servers_offered": 2,
        **CRASHES,
    },
    "branches": {
        "protocol": {"kind": "streaming", "branches": {"fanout": 2, "depth": 3}},
        "acceptance__draft__hits": [0.4, 0.6],
        "actions__offer_branches": True,
    },
    "menu": {
        "devices__workstation__drafter": None,
        "devices__workstation__drafters": [
            {"model": "draft", "profile": {"t0_s": 0.004}},
            {"model": "big", "profile": {"t0_s": 0.009}},
        ],
        "acceptance__big": {"source": "iid", "alpha": 0.85},
    },
}


def scenario_of(name: str, **overrides: Any) -> Scenario:
    return tiny(**{"episode__requests": 20, **SCENARIOS[name], **overrides})


def play(env: gym.Env, seed: int | None, action_seed: int = 0, **reset: Any) -> list[tuple[Any, ...]]:
    """Play one episode by random plans, masked choices included; return every step."""
    observation, info = env.reset(seed=seed, **reset)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False, info)]
    rng = np.random.default_rng(action_seed)
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(rng.integers(env.action_space.nvec)))  # type: ignore[attr-defined]
    return steps


def assert_same_steps(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one[0].tobytes() == other[0].tobytes()
        assert one[1:4] == other[1:4]
        assert repr(one[4]) == repr(other[4])


# --- both engines --------------------------------------------------------------------------------


@pytest.mark.parametrize("grouping", ["device", "device_slo"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_engines_agree_tick_by_tick(name: str, grouping: str) -> None:
    arguments: dict[str, Any] = {"grouping": grouping, "control_period_s": 0.2, "discount_rate_per_s": 0.3}
    one, other = (EdgeCloudFleetEnv(scenario_of(name), engine=engine, **arguments) for engine in ENGINES)
    for seed in (1, 2):
        steps = play(one, seed)
        assert_same_steps(steps, play(other, seed))
        assert len(steps) > 8
        assert all(one.observation_space.contains(step[0]) for step in steps)
        assert one.view == other.view
        assert one.simulation.totals == other.simulation.totals


def test_the_engines_agree_where_plans_name_targets() -> None:
    scenario = scenario_of(
        "streaming", workload__arrivals__think_s={"distribution": "constant", "value": 0.2}
    )
    one, other = (EdgeCloudFleetEnv(scenario, engine=engine, name_targets=True) for engine in ENGINES)
    assert [place.word for place in one.space.places][-3:] == ["colocated@1", "own@1", "edge@1"]
    assert_same_steps(play(one, 3), play(other, 3))


# --- a fixed plan is the rule static_map ---------------------------------------------------------

MAPS = {
    ("sync", "device"): [
        ("phone", 4, 1, "edge"),
        ("laptop", 2, 4, "own"),
        ("workstation", 8, 1, "colocated"),
    ],
    ("streaming", "slo"): [("chat", 6, 1, "edge"), ("batch", 1, 2, "edge")],
    ("faults", "device"): [("phone", 4, 1, "edge"), ("laptop", 2, 1, "own"), ("workstation", 0, 2, "plain")],
    ("cabinets", "device"): [
        ("phone", 6, 1, "edge"),
        ("laptop", 2, 1, "edge"),
        ("workstation", 4, 2, "edge"),
    ],
    ("branches", "device"): [
        ("phone", 4, 1, "edge+branches"),
        ("laptop", 2, 1, "own"),
        ("workstation", 8, 1, "own+branches"),
    ],
    ("menu", "device"): [
        ("phone", 0, 1, "plain"),
        ("laptop", 4, 1, "own:big"),
        ("workstation", 4, 1, "own:big"),
    ],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "grouping"), MAPS)
def test_a_fixed_plan_is_the_rule_static_map(name: str, grouping: str, engine: str) -> None:
    choices = MAPS[name, grouping]
    scenario = scenario_of(name)
    rule = "static_map:" + "+".join(f"{group}={g}/{b}/{place}" for group, g, b, place in choices)
    env = EdgeCloudFleetEnv(scenario, control_period_s=0.3, grouping=grouping, engine=engine)
    first = env.space.places[0].word
    action = env.space.action([(g, b, first if place == "plain" else place) for _, g, b, place in choices])
    assert "static_map:" + env.space.describe(env.space.plan(action)) == rule
    # The other engine, so that what is compiled is held against the rule as it is written in Python.
    expected = dsd_env.simulate(scenario, rule, 5, engine=next(e for e in ENGINES if e != engine))
    env.reset(options={"episode_seed": 5})
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    assert repr(info["episode_metrics"]) == repr(expected.metrics)
    assert info["resolved"] == dict(sorted(expected.resolved.items()))


def test_a_map_of_targets_is_a_plan_too() -> None:
    scenario = scenario_of("sync")
    env = EdgeCloudFleetEnv(scenario, grouping="device", name_targets=True)
    action = env.space.action([(4, 1, "edge@1"), (2, 1, "own@0"), (8, 1, "edge")])
    expected = dsd_env.simulate(
        scenario, "static_map:phone=4/1/edge@1+laptop=2/1/own@0+workstation=8/1/edge", 4, engine="reference"
    )
    env.reset(options={"episode_seed": 4})
    while "episode_metrics" not in (info := env.step(action)[4]):
        pass
    assert repr(info["episode_metrics"]) == repr(expected.metrics)


def test_a_plan_acts_from_its_tick_on_and_ticks_are_multiples_of_the_period() -> None:
    scenario = scenario_of("streaming", episode__requests=30)
    env = EdgeCloudFleetEnv(scenario, control_period_s=0.4, grouping="slo")
    plain, drafting = [(0, 1, "colocated")] * 2, [(6, 1, "edge")] * 2
    env.reset(seed=1)
    last_tick = 0
    while env.simulation.now_s < 4.0:
        drafted = env.simulation.totals.drafted
        _, _, _, _, info = env.step(env.space.action(plain))
        assert env.simulation.totals.drafted == drafted == 0
        tick = math.floor(info["now_s"] / 0.4)
        assert tick > last_tick, "a step ends at the first decision at or after a multiple of the period"
        last_tick = tick
    env.step(env.space.action(drafting))
    env.step(env.space.action(drafting))
    assert env.simulation.totals.drafted > 0


# --- checkers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("scenario", ["single_lan", "tiny"])
def test_gymnasium_checker_passes_without_a_warning(scenario: str, engine: str) -> None:
    env = gym.make(FLEET_ENV_ID, scenario=tiny() if scenario == "tiny" else scenario, engine=engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_stable_baselines_checker_passes_without_a_warning(engine: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(EdgeCloudFleetEnv(tiny(), engine=engine), warn=True)


def test_passive_checker_finds_nothing_in_a_whole_episode() -> None:
    env = gym.make(FLEET_ENV_ID, scenario=tiny(), disable_env_checker=False)
    assert "PassiveEnvChecker" in str(env)
    play(env, 1)


# --- reproducibility -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_environment_did_before_does_not_matter(engine: str) -> None:
    used, fresh = (EdgeCloudFleetEnv(scenario_of("streaming"), engine=engine) for _ in range(2))
    play(used, 5, action_seed=9)
    used.reset(seed=8)
    used.step(used.space.first_plan.ravel())
    assert_same_steps(play(used, 3), play(fresh, 3))
    assert_same_steps(play(used, None), play(fresh, None))


def test_both_views_meet_the_same_worlds() -> None:
    fleet, single = EdgeCloudFleetEnv(tiny()), EdgeCloudEnv(tiny())
    infos = [env.reset(seed=7)[1] for env in (fleet, single)]
    assert infos[0]["episode_seed"] == infos[1]["episode_seed"]
    assert infos[0]["now_s"] == infos[1]["now_s"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_goes_on_alike_and_apart(engine: str) -> None:
    env = EdgeCloudFleetEnv(scenario_of("streaming"), engine=engine)
    env.reset(seed=2)
    action = env.space.action([(4, 1, "edge")] * len(env.space.groups))
    for _ in range(3):
        env.step(action)
    twin = copy.deepcopy(env)
    ahead = [env.step(action) for _ in range(3)]
    assert_same_steps(ahead, [twin.step(action) for _ in range(3)])


# --- vectors -------------------------------------------------------------------------------------


def test_a_step_is_the_one_that_was_simulated_ahead() -> None:
    env = EdgeCloudFleetEnv(tiny())
    env.reset(seed=1)
    first, other = np.zeros(len(env.space.nvec), dtype=np.int64), env.action_space.sample()
    other[0] = 1
    env.simulate_ahead(first)
    with pytest.raises(ValueError, match="simulate_ahead"):
        env.step(other)
    env.step(first)


@pytest.mark.parametrize("threads", [1, 2])
def test_world_i_of_a_vector_is_the_environment_seeded_with_i(threads: int) -> None:
    scenario = scenario_of("streaming", episode__requests=4)
    envs = gym.make_vec(FLEET_ENV_ID, num_envs=3, scenario=scenario, threads=threads, grouping="slo")
    assert isinstance(envs.unwrapped, EdgeCloudFleetVectorEnv)
    alone = [EdgeCloudFleetEnv(scenario, grouping="slo") for _ in range(3)]
    observations, _ = envs.reset(seed=11)
    expected = [env.reset(seed=11 + i)[0] for i, env in enumerate(alone)]
    assert observations.tobytes() == np.stack(expected).tobytes()
    rng, over, ended = np.random.default_rng(0), [False] * 3, 0
    for _ in range(30):
        actions = rng.integers(envs.single_action_space.nvec, size=(3, 6))  # type: ignore[attr-defined]
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        for i, env in enumerate(alone):
            if over[i]:
                row: tuple[Any, ...] = (env.reset()[0], 0.0, False, False)
            else:
                row = env.step(actions[i])[:4]
            over[i] = row[2] or row[3]
            ended += over[i]
            assert observations[i].tobytes() == row[0].tobytes()
            assert (rewards[i], terminations[i], truncations[i]) == row[1:]
    assert ended > 1, "the episodes were too long to show what follows them"
    assert envs.unwrapped.action_masks().shape == (3, sum(alone[0].space.nvec))  # type: ignore[attr-defined]
    envs.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_worlds_of_a_vec_env_are_the_environments_too(threads: int) -> None:
    pytest.importorskip("stable_baselines3")
    scenario = scenario_of("streaming", episode__requests=4)
    envs = dsd_env.make_sb3_fleet_vec_env(scenario, 2, 11, threads=threads, grouping="slo")
    alone = [EdgeCloudFleetEnv(scenario, grouping="slo") for _ in range(2)]
    observations = envs.reset()
    expected = [env.reset(seed=11 + i)[0] for i, env in enumerate(alone)]
    assert np.asarray(observations).tobytes() == np.stack(expected).tobytes()
    rng, ended = np.random.default_rng(0), 0
    for _ in range(20):
        actions = rng.integers(envs.action_space.nvec, size=(2, 6))  # type: ignore[attr-defined]
        observations, rewards, dones, infos = envs.step(actions)
        for i, env in enumerate(alone):
            observation, reward, terminated, truncated, info = env.step(actions[i])
            assert dones[i] == (terminated or truncated)
            assert rewards[i] == np.float32(reward)
            assert infos[i]["plan"] == info["plan"]
            if dones[i]:
                ended += 1
                assert infos[i]["terminal_observation"].tobytes() == observation.tobytes()
                assert infos[i]["episode_metrics"] == pytest.approx(info["episode_metrics"], nan_ok=True)
                observation = env.reset()[0]
            assert np.asarray(observations)[i].tobytes() == observation.tobytes()
    assert ended > 1
    assert np.array_equal(envs.env_method("action_masks")[1], alone[1].action_masks())
    envs.close()


# --- groups, places, masks -----------------------------------------------------------------------


def test_groups_and_places_are_those_of_the_scenario() -> None:
    scenario = scenario_of("streaming")
    space = FleetSpace(scenario)
    assert space.group_names == tuple(
        f"{device}/{slo}" for device in ("phone", "laptop", "workstation") for slo in ("chat", "batch")
    )
    assert space.places == (Place(Site.COLOCATED), Place(Site.OWN_DEVICE), Place(Site.EDGE_SERVER))
    assert space.group_of.tolist()[0] == [0, 1] and space.group_of.tolist()[-1] == [4, 5]
    assert [place.word for place in FleetSpace(scenario_of("menu")).places] == [
        *("colocated", "own:draft", "own:big", "edge"),
    ]
    branches = [place.word for place in FleetSpace(scenario_of("branches")).places]
    # A drafter on the target's own GPUs cannot stream, so it has no branches.
    assert branches == ["colocated", "own", "own+branches", "edge", "edge+branches"]


def test_classes_that_cannot_be_told_apart_are_one_group() -> None:
    alike = {"ttft_s": 0.5, "tpot_s": 0.04}
    scenario = scenario_of(
        "streaming", slo={"chat": alike, "batch": alike, "unused": {"ttft_s": 9.0, "tpot_s": 1.0}}
    )
    space = FleetSpace(scenario, grouping="slo")
    assert space.group_names == ("chat|batch",)
    assert space.group_of.tolist()[0] == [0, 0, -1]


def test_masks_say_what_a_group_can_have_and_other_choices_are_counted() -> None:
    env = EdgeCloudFleetEnv(scenario_of("sync", actions__batch_sizes=[1, 2, 32]), grouping="device")
    space = env.space
    phone, laptop, _ = np.split(env.action_masks(), 3)
    # gammas, then batch sizes (at most 16 fit), then colocated, own, edge: a phone has no drafter.
    assert phone.tolist() == [True] * 6 + [True, True, False] + [True, False, True]
    assert laptop.tolist() == [True] * 6 + [True, True, False] + [True, True, True]
    env.reset(seed=1)
    valid = space.action([(2, 1, "edge"), (2, 1, "own"), (2, 1, "own")])
    odd = space.action([(2, 1, "own"), (2, 32, "own"), (0, 1, "own")])
    assert env.step(valid)[4]["invalid_actions"] == 0
    assert env.step(odd)[4]["invalid_actions"] == 2
    # Phones that are to draft at home decode plainly; the batch size is clipped.
    info = [env.step(odd)[4] for _ in range(6)][-1]
    assert info["invalid_actions"] == 14
    assert set(info["resolved"]) == {"batch_clipped"}


def test_a_group_without_any_drafter_has_plain_decoding_alone() -> None:
    scenario = scenario_of("sync", devices__phone__edge_link=None, targets__big__colocated_drafter=None)
    phone = np.split(FleetSpace(scenario, grouping="device").mask, 3)[0]
    assert phone.tolist() == [True] + [False] * 5 + [True] * 5 + [True, False]


# --- rewards, infos, ends ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sync", "faults"])
def test_rewards_are_the_terms_integrated_over_the_episode(name: str) -> None:
    scenario = scenario_of(name)
    env = EdgeCloudFleetEnv(scenario)
    steps = play(env, 4)
    weights, factors = reward_weights(scenario), reward_factors(scenario)
    totals = running_totals(env.simulation.totals)
    expected = sum(w * f * total for w, f, total in zip(weights, factors, totals, strict=True))
    assert sum(step[1] for step in steps) == pytest.approx(expected)
    for index, term in enumerate(REWARD_TERMS):
        summed = sum(step[4]["reward_terms"][term] for step in steps[1:])
        assert summed == pytest.approx(factors[index] * totals[index])
    assert sum(step[4]["dt_s"] for step in steps) == pytest.approx(env.simulation.now_s)
    assert sum(step[4]["completed_requests"] for step in steps[1:]) == env.simulation.totals.completed


def test_the_last_info_holds_metrics_whoever_truncates() -> None:
    scenario = tiny()
    limited = EdgeCloudFleetEnv(scenario, max_episode_steps=3)
    for env in (gym.make(FLEET_ENV_ID, scenario=scenario, max_episode_steps=3), limited):
        steps = play(env, 1)
        assert len(steps) == 4 and steps[-1][3] and not steps[-1][2]
        assert set(METRICS) <= set(steps[-1][4]["episode_metrics"])
        assert not any("episode_metrics" in step[4] for step in steps[:-1])
    with pytest.raises(gym.error.ResetNeeded):
        limited.step(limited.space.first_plan.ravel())


def test_a_finished_workload_terminates() -> None:
    steps = play(EdgeCloudFleetEnv(tiny(episode__total_requests=5, episode__requests=9)), 1)
    assert steps[-1][2] and not steps[-1][3]
    assert sum(step[4]["completed_requests"] for step in steps[1:]) == 5


def test_rendering_shows_groups_plan_and_targets() -> None:
    env = gym.make(FLEET_ENV_ID, scenario=tiny(), render_mode="ansi", grouping="device")
    env.reset(seed=1)
    env.step(env.unwrapped.space.action([(4, 1, "edge")] * 3))  # type: ignore[attr-defined]
    text = str(env.render())
    for word in ("phone", "laptop", "workstation", "4/1/edge", "target 1", "resident"):
        assert word in text


def test_the_documentation_holds_the_table_of_features(checkout: Path) -> None:
    text, page = inspect.cleandoc(EdgeCloudFleetEnv.__doc__ or ""), checkout / "docs" / "environment.md"
    for holder in (text, page.read_text(encoding="utf-8")):
        assert with_tables(holder, FLEET_TABLES) == holder
    for name in FleetEncoder(1, 1, 1, 1).names:
        assert f"`{name.replace('_0.', '_i.').replace('place_0', 'place_j')}`" in text


def test_every_key_of_an_info_is_documented() -> None:
    text = EdgeCloudFleetEnv.__doc__ or ""
    steps = play(EdgeCloudFleetEnv(tiny(), discount_rate_per_s=1.0), 0)
    assert all(f"`{key}`" in text for step in steps for key in step[4])


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control_period_s": 0.0}, r"control_period_s = 0.0 must be a number of seconds above 0"),
        ({"control_period_s": -1}, r"control_period_s = -1 must be"),
        ({"control_period_s": math.inf}, r"control_period_s = inf must be .* finite"),
        ({"control_period_s": math.nan}, r"control_period_s = nan must be"),
        ({"control_period_s": "soon"}, r"control_period_s = 'soon' must be"),
        ({"control_period_s": True}, r"control_period_s = True must be"),
        ({"grouping": "city"}, r"grouping = 'city' is not one of \['device', 'slo', 'device_slo'\]"),
        ({"engine": "warp"}, "engine = 'warp' is unknown"),
        ({"render_mode": "rgb_array"}, r"render_mode = 'rgb_array' is not one of \['ansi'\]"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0"),
        ({"scenario": ["metro", "wan"]}, "the fleet view runs one scenario"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgeCloudFleetEnv(**{"scenario": tiny(), **arguments})
    assert issubclass(FleetError, ValueError)


@pytest.mark.parametrize("number", [0, True, 1.5])
def test_a_wrong_number_of_worlds_or_threads_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=r"num_envs = .* must be a whole number of at least 1"):
        EdgeCloudFleetVectorEnv(number, scenario=tiny())
    with pytest.raises(ValueError, match=r"threads = .* must be a whole number of at least 1"):
        EdgeCloudFleetVectorEnv(2, threads=number, scenario=tiny())


@pytest.mark.parametrize(
    "action",
    [[0] * 8, [0.0] * 9, [True] + [0] * 8, [-1] + [0] * 8, [6] + [0] * 8, [0, 0, 3] * 3, None, "abc"],
)
def test_what_is_no_plan_is_refused_and_nothing_happens(action: Any) -> None:
    env = EdgeCloudFleetEnv(tiny(), grouping="device")
    env.reset(seed=1)
    now_s = env.simulation.now_s
    with pytest.raises(ValueError, match=r"is outside MultiDiscrete\(\[6, 5, 3, 6, 5, 3, 6, 5, 3\]\)"):
        env.step(action)
    assert env.simulation.now_s == now_s
    env.step(np.zeros(9, dtype=np.int64))


def test_choices_off_the_lists_are_refused_in_words() -> None:
    space = FleetSpace(tiny(), grouping="slo")
    with pytest.raises(
        ValueError, match=r"group 'chat': speculation length 5 is not one of \[0, 1, 2, 4, 6, 8\]"
    ):
        space.action([(5, 1, "edge")])
    with pytest.raises(ValueError, match="place 'moon' is not one of"):
        space.action([(4, 1, "moon")])
    with pytest.raises(ValueError, match=r"2 choices for 1 groups \['chat'\]"):
        space.action([(4, 1, "edge")] * 2)


def test_before_a_reset_there_is_nothing_to_look_at() -> None:
    env = EdgeCloudFleetEnv(tiny())
    for look in (lambda: env.view, lambda: env.plan, lambda: env.simulation, lambda: env.step(None)):  # type: ignore[arg-type]
        with pytest.raises(gym.error.ResetNeeded):
            look()
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"seed": 1})


# --- nothing of the future -----------------------------------------------------------------------


def drive(simulation: ReferenceSimulation) -> Trace:
    """Let plans that look at nothing decide, and return what the fleet's controller is told every 50 ms."""
    space = FleetSpace(simulation.scenario, control_period_s=0.05)
    encoder, player, trace = FleetEncoder.of(space), PlanScheduler(space), []
    rng, next_s = np.random.default_rng(3), 0.0
    while len(trace) < 200 and (view := simulation.next_decision()) is not None:
        if view.now_s >= next_s:
            told = fleet_view(space, simulation.fleet_telemetry(), player.plan)
            trace.append((view.now_s, encoder.encode(told).tobytes() + repr(told).encode()))
            player.set_plan(space.plan(rng.integers(space.nvec)))
            next_s = space.next_tick_s(view.now_s)
        simulation.decide(player.decide(view))
    return trace


def compare(change: Change, seed: int, **overrides: Any) -> tuple[int, int]:
    """Return (observations before the futures part, those of them that differ)."""
    scenario = tiny(**{"episode__requests": 500, **overrides})
    base = ReferenceSimulation(scenario, seed, record_events=True)
    trace = drive(base)
    with pytest.MonkeyPatch.context() as patch:
        other = ReferenceSimulation(scenario, seed, record_events=True)
        change(patch, other)
        changed = drive(other)
    parted_s = divergence_s(base.events, other.events)
    before, after = ([entry for entry in t if entry[0] < parted_s] for t in (trace, changed))
    assert len(before) == len(after)
    return len(before), sum(one != two for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["synchronous", "streaming"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_future_does_not_show(name: str, kind: str) -> None:
    before, different = compare(CHANGES[name][0], 1, protocol__kind=kind)
    assert before >= (2 if name in ("acceptance", "output_lengths") else 20), "the futures part too early"
    assert different == 0


def test_a_leak_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Telemetry.fleet

    def leaky(self: Telemetry, requests: Any, now_s: float) -> Any:
        requests = list(requests)
        told = original(self, requests, now_s)
        lengths = sum(request.spec.output_tokens for request in requests)
        object.__setattr__(told, "arrivals_per_s", float(lengths))
        return told

    monkeypatch.setattr(Telemetry, "fleet", leaky)
    assert compare(CHANGES["output_lengths"][0], 1)[1] > 0


# --- random scenarios ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(12))
def test_plans_mean_the_same_to_both_engines_in_random_scenarios(number: int) -> None:
    assert fuzz(number) > 0


def fuzz(number: int) -> int:
    """Play one of the fuzzer's scenarios by random plans on both engines; return the steps compared."""
    random = Random(number)
    with draw_case(random).built() as (scenario, _):
        settings = {"grouping": random.choice(GROUPINGS), "name_targets": random.random() < 0.5}
        period_s = 10.0 ** random.uniform(-2.0, 0.5)
        one, other = (
            EdgeCloudFleetEnv(scenario, period_s, **settings, engine=engine, max_episode_steps=25)
            for engine in ENGINES
        )
        try:
            steps = play(one, number)
        except RuntimeError as error:
            assert "ends before its first decision" in str(error)
            return 1
        assert_same_steps(steps, play(other, number))
        assert one.simulation.totals == other.simulation.totals
        return len(steps)


# --- going back, and how much infos hold ----------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cloned_state_goes_on_as_before(engine: str) -> None:
    scenario = scenario_of("faults")
    env, other = (EdgeCloudFleetEnv(scenario, 0.2, engine=engine) for _ in range(2))
    with pytest.raises(gym.error.ResetNeeded):
        env.clone_state()
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    plans = [rng.integers(env.space.nvec) for _ in range(300)]
    for plan in plans[:5]:
        observation, *_ = env.step(plan)
    state = env.clone_state()

    def rest(each: EdgeCloudFleetEnv, first: int) -> list[tuple[Any, ...]]:
        steps = [each.step(plans[first])]
        while not (steps[-1][2] or steps[-1][3]):
            steps.append(each.step(plans[(first + len(steps)) % len(plans)]))
        return [*steps, (*each.reset()[:1], 0.0, False, False, {})]

    before = rest(env, 5)
    assert len(before) > 8 and "episode_metrics" in before[-2][4]
    for each in (env, other, env):
        np.testing.assert_array_equal(each.restore_state(state), observation)
        assert_same_steps(rest(each, 5), before)
    env.restore_state(state)
    assert repr(rest(env, 9)) != repr(before)
    with pytest.raises(ValueError, match=r"control_period_s = 0.2"):
        EdgeCloudFleetEnv(scenario, 0.4, engine=engine).restore_state(state)
    with pytest.raises(ValueError, match="the state was made on engine"):
        elsewhere = next(name for name in ENGINES if name != engine)
        EdgeCloudFleetEnv(scenario, 0.2, engine=elsewhere).restore_state(state)


def test_numeric_infos_have_one_form_and_say_what_full_ones_do() -> None:
    def env(infos: str) -> EdgeCloudFleetEnv:
        return EdgeCloudFleetEnv(scenario_of("faults"), 0.2, infos=infos, discount_rate_per_s=0.5)

    full, numeric, none = (play(env(infos), 2) for infos in ("full", "numeric", "none"))
    assert len(full) == len(numeric) == len(none)
    assert all(step[4] == {} for step in none)
    forms = {
        tuple((key, value.dtype, value.shape) for key, value in sorted(step[4].items())) for step in numeric
    }
    assert len(forms) == 1
    space = env("full").space
    for (*_, said), (*_, told) in zip(full, numeric, strict=True):
        assert said["plan"] == space.describe(told["plan"].reshape(-1, 3))
        assert (said["now_s"], said["dt_s"]) == (told["now_s"], told["dt_s"])
        assert sum(said.get("resolved", {}).values()) == told["resolved"].sum()
        assert list(said.get("reward_terms", {}).values()) in ([], told["reward_terms"].tolist())
        assert said.get("completed_requests", 0) == told["completed_requests"]
        assert ("episode_metrics" in said) == told["has_episode_metrics"]
    expected = [full[-1][4]["episode_metrics"][name] for name in METRICS]
    np.testing.assert_array_equal(numeric[-1][4]["episode_metrics"], expected)
    assert np.isnan(numeric[0][4]["episode_metrics"]).all()
    envs = EdgeCloudFleetVectorEnv(2, scenario=scenario_of("faults"), infos="numeric")
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[4]["plan"].shape == (2, len(space.nvec))
    envs.close()
    with pytest.raises(ValueError, match="infos = 'some'"):
        env("some")
