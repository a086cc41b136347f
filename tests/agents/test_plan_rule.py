"""Linear plan rules: what their parameters mean, as actors and as bundles."""

from __future__ import annotations

import numpy as np
import pytest

from agents.plan_rule import STRETCH, Choices, PlanRule
from dsd_env import load_scenario
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder

FEATURE = "system.active_requests"
SPACE = FleetSpace(load_scenario("cost"), 1.0, "slo", name_targets=True)
NAMES = FleetEncoder.of(SPACE).names


def rule(**changes: object) -> PlanRule:
    choices = {"gammas": (0, 2, 8), "batch_sizes": (1,), "places": ("colocated", "own@1"), "start": (2, 8)}
    return PlanRule(SPACE, (FEATURE,), Choices(**(choices | changes)))  # type: ignore[arg-type]


def chosen(made: PlanRule, parameters: list[float], x: float = 0.0) -> str:
    observation = np.full(len(NAMES), 0.37, dtype=np.float32)  # other features must not matter
    observation[NAMES.index(FEATURE)] = x
    action = made.actor(np.array(parameters)).action(observation, SPACE.mask)
    return SPACE.describe(SPACE.plan(np.array(action)))


def test_the_start_is_the_fixed_plan_whatever_is_seen() -> None:
    made = rule()
    for x in (0.0, 0.5, 1.0):
        assert chosen(made, made.start().tolist(), x) == "chat=2/1/colocated+batch=8/1/colocated"


def test_the_length_is_the_nearest_choice_to_the_line() -> None:
    made = rule()
    assert made.size == 2 * (2 + 2)  # per group a line for the length and one for the other place
    for u, gamma in ((-3.0, 0), (0.4, 0), (0.6, 2), (1.4, 2), (1.6, 8), (9.0, 8)):
        still = [u, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0]
        place = "plain" if gamma == 0 else "colocated"
        assert chosen(made, still).startswith(f"chat={gamma}/1/{place}+")
        # The same line by its slope: u = b · 4 x.
        moves = [0.0, u / (STRETCH * 0.5), -1.0, 0.0, 1.0, 0.0, -1.0, 0.0]
        assert chosen(made, moves, 0.5).startswith(f"chat={gamma}/1/{place}+")


def test_the_place_is_the_one_with_the_larger_score() -> None:
    made = rule()
    parameters = [1.0, 0.0, -1.0, 1.0, 1.0, 0.0, -1.0, 0.0]  # chat leaves where 4 x > 1
    assert chosen(made, parameters, 0.24) == "chat=2/1/colocated+batch=2/1/colocated"
    assert chosen(made, parameters, 0.26) == "chat=2/1/own@1+batch=2/1/colocated"


def test_what_may_not_be_chosen_never_is() -> None:
    made, draws = rule(), np.random.default_rng(0)
    for _ in range(200):
        plan = chosen(made, (30.0 * draws.normal(size=made.size)).tolist(), draws.random())
        for choice in plan.split("+"):
            gamma, batch, place = choice.partition("=")[2].split("/")
            assert gamma in ("0", "2", "8") and batch == "1" and place in ("colocated", "own@1", "plain")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gammas": (0, 5)}, "choices.gammas: 5 is not one of"),
        ({"places": ("colocated", "moon")}, "choices.places: 'moon'"),
        ({"places": ("colocated", "colocated")}, "twice"),
        ({"start": (2,)}, "1 speculation lengths for the 2 groups"),
        ({"start": (2, 4)}, "start: 4 is not one of"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rule(**changes)


def test_a_feature_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="features: 'future'"):
        PlanRule(SPACE, ("future",), Choices((0, 2), (1,), ("colocated",), (2, 2)))


def test_groups_can_begin_at_places_of_their_own() -> None:
    made = rule(start_places=("colocated", "own@1"))
    assert chosen(made, made.start().tolist(), 0.7) == "chat=2/1/colocated+batch=8/1/own@1"
    with pytest.raises(ValueError, match="'nowhere' is not one of"):
        rule(start_places=("colocated", "nowhere"))
