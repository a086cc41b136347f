"""Speculation lengths that the drafter's own doubt ends, as entries of the action lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env import simulate
from dsd_env.control import ActionSpace, Decision, StopKind, StopRule
from dsd_env.control.actions import stop_at
from dsd_env.envs import EdgeCloudEnv, EdgeCloudVectorEnv
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.schedulers.stops import spec_dec_pp
from tests.scenarios import TINY

RECORDED = {"source": "trace", "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy", "drafter": "smollm2-135m"}
THRESHOLDS = (0.4, 0.8)
SPACE = ActionSpace((0, 2, 8), (1, 4), 3, THRESHOLDS)


def sure(thresholds: tuple[float, ...] = THRESHOLDS, **changes: Any) -> Scenario:
    """Return a scenario whose drafters' confidences are those of a recording."""
    return load_scenario(
        {**TINY, "acceptance": dict.fromkeys(TINY["acceptance"], RECORDED)},
        actions__stop_thresholds=list(thresholds),
        **changes,
    )


class AtLength:
    """Drafts with one entry of the list of speculation lengths, wherever the first drafter is."""

    def __init__(self, index: int) -> None:
        self.name, self._index = f"entry {index}", index

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._space = ActionSpace.of(scenario)

    def decide(self, view: Any) -> Decision:
        valid = [i for i, each in enumerate(view.candidates) if each.valid]
        return self._space.decision(self._index, 0, valid[0]) if valid else Decision(0, 1, 0)


def test_entries_behind_the_lengths_are_the_longest_one_with_a_stop_rule() -> None:
    assert SPACE.nvec == (5, 2, 3)
    assert SPACE.windows == (0, 2, 8, 8, 8)
    assert SPACE.decode([1, 1, 2]) == Decision(2, 4, 2)
    assert SPACE.decode([4, 0, 1]) == Decision(8, 1, 1, StopRule(StopKind.SURVIVAL, 0.8, 2, True))
    for action in np.ndindex(*SPACE.nvec):
        np.testing.assert_array_equal(SPACE.encode(SPACE.decode(action)), action)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(8, 1, 0, stop_at(0.5)),
        Decision(2, 1, 0, stop_at(0.4)),
        Decision(8, 1, 0, StopRule(StopKind.TOP1, 0.4)),
        Decision(8, 1, 0, StopRule(StopKind.SURVIVAL, 0.4, least=1)),
    ],
)
def test_other_stop_rules_are_no_actions(decision: Decision) -> None:
    with pytest.raises(ValueError, match="not on the lists"):
        SPACE.encode(decision)


def test_masks_leave_them_out_where_nothing_drafts() -> None:
    scenario = sure()
    simulation_space = ActionSpace.of(scenario)
    env = EdgeCloudEnv(scenario)
    env.reset(seed=0)
    mask = env.action_masks()
    assert mask[: simulation_space.nvec[0]].all()
    for candidate in env.view.candidates:
        candidate.valid = False
    masked = simulation_space.mask(env.view)
    assert masked[: simulation_space.nvec[0]].tolist() == [True] + [False] * (simulation_space.nvec[0] - 1)


@pytest.mark.parametrize("kind", ["synchronous", "pipelined", "streaming"])
def test_both_engines_and_the_vector_environment_agree(kind: str) -> None:
    scenario = sure(protocol__kind=kind)
    scalar = [EdgeCloudEnv(scenario, engine=engine) for engine in ("reference", "compiled")]
    vector = EdgeCloudVectorEnv(1, scenario)
    observations = [env.reset(seed=5)[0] for env in scalar] + [vector.reset(seed=[5])[0][0]]
    generator = np.random.default_rng(1)
    for _ in range(400):
        for other in observations[1:]:
            np.testing.assert_array_equal(observations[0], other)
        action = generator.integers(scalar[0].action_space.nvec)
        steps = [env.step(action) for env in scalar] + [vector.step(action[None])]
        if steps[0][2] or steps[0][3]:
            break
        observations = [steps[0][0], steps[1][0], steps[2][0][0]]
        assert steps[0][1] == steps[1][1] == steps[2][1][0]


def test_the_higher_the_threshold_the_more_is_drafted() -> None:
    scenario = sure((0.2, 0.9), episode__requests=40)
    longest = len(scenario.actions.gammas) - 1
    results = [
        simulate(scenario, AtLength(index), 3).metrics for index in (longest + 1, longest + 2, longest)
    ]
    accepted = [each["acceptance_rate"] for each in results]
    assert accepted[0] > accepted[1] + 0.05 > accepted[2] + 0.1


def test_they_stop_as_the_rule_does() -> None:
    scenario = sure((0.7,), episode__requests=30)
    index = len(scenario.actions.gammas)

    class ByRule(AtLength):
        def decide(self, view: Any) -> Decision:
            decision = super().decide(view)
            return decision if decision.gamma == 0 else decision._replace(stop=spec_dec_pp(0.7).stop(view))

    assert simulate(scenario, AtLength(index), 2).metrics == simulate(scenario, ByRule(index), 2).metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_thresholds": [0.8, 0.4]}, "strictly increasing"),
        ({"stop_thresholds": [1.0]}, "less than 1"),
        ({"stop_thresholds": [0.0]}, "greater than 0"),
        ({"stop_thresholds": [0.5], "gammas": [0]}, "the longest of gammas is 0"),
    ],
)
def test_impossible_thresholds_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        load_scenario(TINY, **{f"actions__{key}": value for key, value in changes.items()})


def test_other_lists_know_them() -> None:
    from dsd_env.policy.other_lists import places, sources

    own = ActionSpace((0, 4, 8), (1,), 3, (0.8,))
    assert places(SPACE.lengths, own.lengths) == [0, -1, 2, -1, 3]
    assert sources(SPACE, own).tolist() == [0, -1, 2, -1, 3, 4, -1, 5, 6, 7]
    assert SPACE.offered_by(own).tolist() == [True, False, True, False, True, True, False, True, True, True]
    shorter = ActionSpace((0, 2), (1,), 3, (0.8,))
    assert places(SPACE.lengths, shorter.lengths) == [0, 1, -1, -1, -1], (
        "until in doubt, but for other longest drafts"
    )


def test_a_bundle_keeps_them(tmp_path: Path) -> None:
    from dsd_env.policy.manifest import Actions

    stored = Actions(gammas=(0, 2, 8), batch_sizes=(1, 4), n_placements=3, stop_thresholds=THRESHOLDS)
    assert stored.space() == SPACE
    assert Actions.model_validate_json(stored.model_dump_json()) == stored
    with pytest.raises(ValueError, match="strictly increasing"):
        Actions(gammas=(0, 2), batch_sizes=(1,), n_placements=1, stop_thresholds=(0.8, 0.4))


def test_the_nearest_threshold_stands_for_any() -> None:
    assert SPACE.nearest(Decision(8, 1, 0, stop_at(0.55))) == Decision(8, 1, 0, stop_at(0.4))
    assert SPACE.nearest(Decision(8, 1, 0, stop_at(0.99))) == Decision(8, 1, 0, stop_at(0.8))
    for kept in (Decision(2, 1, 0), Decision(8, 1, 0, StopRule(StopKind.TOP1, 0.5))):
        assert SPACE.nearest(kept) == kept
