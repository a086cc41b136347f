"""How much simulated time a rollout sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import horizons
from agents.config import ConfigError, TrainConfig, load_config
from agents.horizons import Shape, decisions_per_s, describe, rollout_shape, with_shape
from agents.training import train
from tests.lab import lab


def config(**changes: Any) -> TrainConfig:
    """Return a configuration with a rollout of so much time."""
    return TrainConfig.model_validate(
        {"scenario": "single_lan", "n_envs": 64, "ppo": {"batch_size": 1000}, "rollout_s": 10.0, **changes}
    )


def test_decisions_are_counted_per_simulated_second() -> None:
    # One client who always waits: a prefill of 30 ms, then 13 rounds of 8 plain tokens at 30 ms each.
    scenario = lab(
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}}, requests=100
    )
    per_request, request_s = 1 + math.ceil(100 / 8), 101 * 0.030
    assert decisions_per_s(scenario, "cloud_ar") == pytest.approx(per_request / request_s, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "n_envs", "n_steps"),
    [
        # 10 s at 20/s are 200 steps; 64 worlds of a multiple of 125, so that batches of 1,000 divide them.
        (20.0, 64, 250),
        # 10 s are 100,000 steps: 5 worlds, and no more, fit into 524,288 decisions.
        (10_000.0, 5, 100_000),
        # 10 s would be more than one world may take: as long as it may.
        (100_000.0, 1, 524_000),
    ],
)
def test_worlds_are_given_up_before_time(
    monkeypatch: pytest.MonkeyPatch, rate: float, n_envs: int, n_steps: int
) -> None:
    monkeypatch.setattr(horizons, "decisions_per_s", lambda scenario, scheduler: rate)
    shape = rollout_shape(config(), lab())
    assert shape == Shape(n_envs, n_steps, rate)
    used = with_shape(config(), shape)
    assert (used.n_envs, used.ppo.n_steps) == (n_envs, n_steps)
    assert used.n_envs * used.ppo.n_steps % used.ppo.batch_size == 0


def test_without_rollout_s_the_steps_are_those_given() -> None:
    plain = TrainConfig()
    assert rollout_shape(plain, lab()) is None and with_shape(plain, None) is plain


def test_a_batch_that_no_rollout_holds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rollout_s: 5.0\nrollout_decisions: 100\nppo: {batch_size: 200}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"batch_size = 200 exceeds rollout_decisions = 100"):
        load_config(file)


@pytest.mark.parametrize("name", ["metro", "regions", "heavy_draft"])
def test_shipped_configurations_ask_for_more_than_a_moment(name: str) -> None:
    shipped = load_config(name)
    assert shipped.rollout_s is not None and shipped.rollout_s >= 8.0


def test_the_line_says_seconds_and_cycles() -> None:
    load = {"period_s": 40.0, "points": [[0.0, 0.5], [0.5, 1.5]]}
    text = describe(np.array([19.0, 21.0]), [lab(workload__load=load)])
    assert text == "a rollout sees 20 s of simulated time in each of 2 worlds, 0.5 load cycles"
    assert describe(np.array([2.0]), [lab()]).endswith("in each of 1 worlds, at a constant load")


@pytest.mark.parametrize("kind", ["compiled", "dummy"])
def test_training_says_what_a_rollout_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = TrainConfig.model_validate(
        {
            "scenario": "single_lan",
            "overrides": {"episode.requests": 3},
            "timesteps": 64,
            "n_envs": 2,
            "vec_env": kind,
            "ppo": {"batch_size": 16, "n_epochs": 1},
            "rollout_s": 3.0,
            "validation": None,
            "network": {"actor": [8], "critic": [8]},
        }
    )
    train(run, tmp_path / "run", progress=False)
    text = capsys.readouterr().out
    seen_s = float(text.split("a rollout sees ")[1].split(" s of")[0])
    # The learner decides otherwise than the pilot, so the time is only about what was asked for.
    assert 0.5 < seen_s < 20.0
    # A resumed run begins with the configuration as it was given.
    assert load_config(tmp_path / "run" / "config.yaml") == run
