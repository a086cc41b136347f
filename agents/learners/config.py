"""What a comparison of learners is: who learns, from how much, and who they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from agents.benchmark.config import Contest, contest_of
from agents.config_files import ConfigModel, read_config
from agents.identity import key_of
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario

Algorithm = Literal["ppo", "maskable_ppo", "dqn", "recurrent_ppo"]
RESERVED = frozenset({"policy", "env", "seed", "device", "_init_setup_model", "tensorboard_log", "verbose"})
"""Arguments of learners that the comparison itself sets."""


class LearnersError(ValueError):
    """A file of learners or its results are wrong; the message says what, and what to do."""


class Learner(ConfigModel):
    """One learner."""

    algorithm: Algorithm = Field(description="Whose: Stable-Baselines3's, or sb3-contrib's.")
    settings: dict[str, Any] = Field(
        default={}, description="By the library's names; the rest is as it comes."
    )
    note: str = Field(default="", max_length=200, description="What is not as it comes, in words.")

    @model_validator(mode="after")
    def _settings_are_its_own(self) -> Learner:
        if reserved := sorted(RESERVED & set(self.settings)):
            raise ValueError(f"settings: {', '.join(reserved)}: set by the comparison, leave it out")
        return self


class Comparison(ConfigModel):
    """Learners, what they learn from, and what they are compared with."""

    suite: str = Field(default="core", min_length=1, description="Benchmark whose entry it is.")
    entry: str = Field(min_length=1, description="Entry of the benchmark: scenario, window and objective.")
    timesteps: Annotated[int, Field(ge=1)] = Field(description="Decisions that each training takes.")
    n_envs: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, description="Worlds side by side.")
    train_seeds: Annotated[int, Field(ge=1, le=100)] = Field(default=3, description="Trainings of each.")
    episodes: Annotated[int, Field(ge=2, le=1000)] = Field(default=10, description="Evaluation episodes.")
    against: tuple[str, ...] = Field(min_length=1, description="The benchmark's schedulers to compare with.")
    beside: tuple[str, ...] = Field(default=(), description="Those that are shown besides.")
    learners: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._\-]*$", max_length=60)], Learner
    ] = Field(min_length=1, description="By name.")

    @model_validator(mode="after")
    def _once(self) -> Comparison:
        names = [*self.against, *self.beside, *self.learners]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(map(repr, twice))}: named twice")
        return self

    def contest(self) -> Contest:
        """Return the entry of the benchmark.

        Raises:
            LearnersError: There is none, or it has no such scheduler.
        """
        contest = contest_of(self.suite, self.entry, LearnersError)
        if unknown := [n for n in (*self.against, *self.beside) if n not in contest.schedulers]:
            raise LearnersError(
                f"{unknown[0]!r} is no scheduler of {self.entry}: {', '.join(contest.schedulers)}"
            )
        return contest

    def about(self, scenario: Scenario, learner: Learner) -> str:
        """Return the digest of what a training depends on, but for its seed."""
        parts = [
            scenario_ref(scenario).sha256,
            self.timesteps,
            self.n_envs,
            learner.algorithm,
            learner.settings,
        ]
        return key_of(*parts)


def load_comparison(given: str | Path) -> Comparison:
    """Load a file of learners.

    Args:
        given: Path of a YAML file, or the name of a shipped one.

    Raises:
        LearnersError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(Comparison, given, "learners", "file of learners", LearnersError)
