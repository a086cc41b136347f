"""Learners as their libraries ship them: their worlds, their memory, what is kept of them, their tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agents.learners.comparing import Outcome, Results, read_results, run_comparison
from agents.learners.config import Comparison, LearnersError, load_comparison
from agents.learners.page import page_table
from agents.learners.playing import ByMemory, Counted
from agents.learners.training import build
from agents.rollouts import Stage, play
from agents.seeds import TRAINING_SEEDS
from dsd_env.control import ActionSpace
from dsd_env.paths import config_dir
from dsd_env.policy import PolicyError, export_sb3

pytest.importorskip("numba")

TINY: dict[str, Any] = {
    "entry": "single_lan",
    "timesteps": 128,
    "n_envs": 2,
    "train_seeds": 1,
    "episodes": 2,
    "against": ["edge 8", "goodput"],
    "learners": {
        "DQN": {"algorithm": "dqn", "settings": {"buffer_size": 256, "learning_starts": 64}},
        "memory": {
            "algorithm": "recurrent_ppo",
            "settings": {"n_steps": 32, "n_epochs": 1, "policy_kwargs": {"lstm_hidden_size": 8}},
        },
    },
}
FOUR = {name: {"algorithm": name} for name in ("ppo", "maskable_ppo", "dqn", "recurrent_ppo")}


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def test_every_learner_meets_the_same_training_episodes() -> None:
    comparison = Comparison.model_validate({**TINY, "learners": FOUR})
    scenario = comparison.contest().load()
    begun = []
    for learner in comparison.learners.values():
        env = build(comparison, scenario, learner, 3).get_env()
        assert env is not None
        begun.append((env.reset(), env.get_attr("episode_seed")))
        env.close()
    observations, seeds = begun[0]
    assert all(seed in TRAINING_SEEDS for seed in seeds) and len(set(seeds)) == comparison.n_envs
    for others, other_seeds in begun[1:]:
        assert other_seeds == seeds
        np.testing.assert_array_equal(others, observations)


def test_every_episode_has_a_memory_of_its_own() -> None:
    comparison = Comparison.model_validate(TINY)
    scenario = comparison.contest().load()
    scenario = scenario.model_copy(
        update={"episode": scenario.episode.model_copy(update={"warmup_s": 0.0, "window_s": 4.0})}
    )
    model: Any = build(comparison, scenario, comparison.learners["memory"], 1)

    def played(decide: Any, side_by_side: int) -> tuple[dict[int, float], list[list[float]]]:
        counted = Counted(decide, scenario)
        episodes = play(scenario, [11, 12, 13, 14, 15], counted, kind="compiled", side_by_side=side_by_side)
        return {each.seed: each.reward for each in episodes}, counted.shares()

    def forgetful(stage: Stage, which: Any) -> Any:
        return model.predict(stage.observations[list(which)], deterministic=True)[0]

    alone, shares = played(ByMemory(model), 1)
    together, shares_together = played(ByMemory(model), 3)
    assert alone == together and shares == shares_together
    assert all(sum(each) == pytest.approx(1.0, abs=1e-4) for each in shares)
    assert played(forgetful, 1)[0] != alone, "its memory matters"


def test_a_memory_cannot_be_exported(tmp_path: Path) -> None:
    comparison = Comparison.model_validate(TINY)
    scenario = comparison.contest().load()
    model = build(comparison, scenario, comparison.learners["memory"], 1)
    with pytest.raises(PolicyError, match=r"RecurrentPPO cannot be exported; supported are PPO"):
        export_sb3(model, scenario, tmp_path / "policy")


def test_moves_are_drafts_elsewhere_than_in_the_last_round() -> None:
    comparison = Comparison.model_validate(TINY)
    scenario = comparison.contest().load()
    scenario = scenario.model_copy(
        update={"episode": scenario.episode.model_copy(update={"warmup_s": 0.0, "window_s": 2.0})}
    )
    actions = ActionSpace.of(scenario)

    def moves(gamma: int, places: Callable[[int], int]) -> float:
        decisions = iter(range(1_000_000))

        def decide(stage: Stage, which: Any) -> Any:
            return np.array([[gamma, 0, places(next(decisions))] for _ in which])

        counted = Counted(decide, scenario)
        assert len(list(play(scenario, [11], counted, kind="compiled", side_by_side=1))) == 1
        assert counted.shares()[0][gamma] == 1.0
        return counted.moves()

    assert actions.n_placements > 1
    assert moves(2, lambda _: 1) == 0.0 and moves(0, lambda n: n % 2) == 0.0
    assert moves(2, lambda n: n % 2) > 0.4


def test_what_is_missing_is_trained_measured_and_kept(tmp_path: Path) -> None:
    file, told = tmp_path / "out" / "tiny.json", []

    def run(**changes: object) -> Results:
        comparison = load_comparison(written(tmp_path, **changes))
        return run_comparison(
            comparison, file, tmp_path / "runs", lambda name, _: told.append(name), progress=False
        )

    results = run()
    assert told == ["edge 8", "goodput", "DQN, seed 1", "memory, seed 1"]
    assert read_results(file) == results == run() and len(told) == 4, "nothing is done twice"
    for trainings in results.learners.values():
        assert trainings[1].train_cpu_s is not None
        assert np.isfinite(list(trainings[1].values.values())).all()
    # More episodes: the same model plays them, those before with the same result.
    more = run(episodes=3)
    assert told[4:] == ["edge 8", "goodput", "DQN, seed 1", "memory, seed 1"]
    for name, trainings in results.learners.items():
        before, after = trainings[1], more.learners[name][1]
        assert after.train_cpu_s == before.train_cpu_s and len(after.values) == 3
        assert {seed: after.values[seed] for seed in before.values} == before.values
    # Other settings are another training, and what was measured of the former is not taken for it.
    other = {
        **TINY["learners"],
        "DQN": {"algorithm": "dqn", "settings": {"learning_starts": 32, "buffer_size": 128}},
    }
    del told[:]
    run(episodes=3, learners=other)
    assert told == ["DQN, seed 1"]
    table = page_table(load_comparison(written(tmp_path, episodes=3, learners=other)), read_results(file))
    assert table.count("\n| DQN |") == 2 and table.count("\n| memory |") == 2


def test_a_damaged_model_is_trained_again(tmp_path: Path) -> None:
    comparison = load_comparison(written(tmp_path, learners={"DQN": TINY["learners"]["DQN"]}))
    told: list[str] = []
    for _ in range(2):
        file = tmp_path / "out.json"
        file.unlink(missing_ok=True)
        results = run_comparison(
            comparison, file, tmp_path / "runs", lambda name, _: told.append(name), False
        )
        assert results.learners["DQN"][1].train_cpu_s is not None
        (model,) = (tmp_path / "runs" / "DQN").glob("*.zip")
        model.write_bytes(model.read_bytes()[:1000])


def test_a_table_by_hand() -> None:
    comparison = Comparison.model_validate(
        {**TINY, "train_seeds": 3, "learners": {"DQN": TINY["learners"]["DQN"]}}
    )
    scenario = comparison.contest().load()
    about = comparison.about(scenario, comparison.learners["DQN"])
    n_gamma, n_batch, n_placements = ActionSpace.of(scenario).nvec
    lengths = [0.5, 0.0, 0.25, *[0.0] * (n_gamma - 4), 0.25]
    gammas = ActionSpace.of(scenario).gammas
    choices = [lengths, [1.0, *[0.0] * (n_batch - 1)], [1.0, *[0.0] * (n_placements - 1)]]
    trainings = {
        1: Outcome(about, {1: 3.0, 2: 3.0}, {}, choices, 0.25, 10.0),
        2: Outcome(about, {1: 1.0, 2: 1.0}, {}, choices, 0.25, 20.0),
        4: Outcome(about, {1: 99.0, 2: 99.0}, {}, choices, 0.25, 20.0),
        3: Outcome("of other settings", {1: 99.0, 2: 99.0}, {}, choices, 0.25, 20.0),
    }
    schedulers = {"edge 8": Outcome("", {1: 4.0, 2: 4.0}, {}), "goodput": Outcome("", {1: 1.0, 2: 1.0}, {})}
    table = page_table(comparison, Results(schedulers, {"DQN": trainings}))
    assert "| DQN |  | 2 | 3, 1 | +50.0 % (+50.0 … +50.0) | -100.0 % (-100.0 … -100.0) | 15 |" in table
    mean = 0.5 * (gammas[2] + gammas[-1])
    assert (
        f"| DQN | 1 | 3 | 50 % | {mean:g} | 100 % |" in table and "| 25.0 % |" in table and "99" not in table
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": "nowhere"}, "entry = 'nowhere' is none of"),
        ({"against": ["nobody"]}, "'nobody' is no scheduler of single_lan: plain, "),
        ({"against": ["plain", "plain"]}, "'plain': named twice"),
        ({"learners": {"a": {"algorithm": "sac"}}}, "learners.a.algorithm"),
        (
            {"learners": {"a": {"algorithm": "dqn", "settings": {"seed": 1}}}},
            "settings: seed: set by the comp",
        ),
        ({"learners": {}}, "learners"),
        ({"timestep": 1}, "unknown key 'timestep'"),
    ],
)
def test_impossible_files(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(LearnersError, match=message):
        load_comparison(written(tmp_path, **changes)).contest()


def test_settings_that_a_library_refuses_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    learners = {**TINY["learners"], "last": {"algorithm": "ppo", "settings": {"n_step": 64}}}
    comparison = load_comparison(written(tmp_path, learners=learners))
    with pytest.raises(LearnersError, match=r"PPO: settings \{'n_step': 64\}: .*unexpected keyword argument"):
        run_comparison(comparison, tmp_path / "out.json", tmp_path / "runs", lambda *_: None, progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "dsd_env.ablations", "format_version": 1}', "{"])
def test_files_of_something_else_are_not_overwritten(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(text)
    with pytest.raises(LearnersError, match="no results of learners"):
        run_comparison(load_comparison(written(tmp_path)), file, tmp_path, lambda *_: None, progress=False)
    assert file.read_text() == text


@pytest.mark.parametrize(
    "path", sorted((config_dir() / "learners").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_files_can_be_trained(path: Path) -> None:
    comparison = load_comparison(path.stem)
    scenario = comparison.contest().load()
    for learner in comparison.learners.values():
        env = build(comparison, scenario, learner, 1).get_env()
        assert env is not None and env.num_envs == comparison.n_envs
        env.close()
