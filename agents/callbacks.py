"""What happens during training besides learning: checkpoints, validation, progress."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents import checkpoints
from agents.actors import actor_of
from agents.config import CheckpointConfig, Validation, most_placements
from agents.environments import EnvFactory
from agents.rollouts import ByActor, mean_metrics, play
from agents.seeds import validation_seeds
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario


class CheckpointCallback(BaseCallback):
    """Saves the learner before the first rollout after every `every_steps` steps, and keeps the newest few.

    Between an update and the next rollout parameters, optimiser and counters belong together.
    """

    def __init__(self, run: Path, config: CheckpointConfig) -> None:
        """Save into ``run``."""
        super().__init__()
        self._run, self._config = run, config

    def _on_training_start(self) -> None:
        self._due = self.num_timesteps + self._config.every_steps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self.save()
            self._due = self.num_timesteps + self._config.every_steps

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Save the learner as it is."""
        checkpoints.save(self.model, checkpoints.checkpoint_path(self._run, self.model.num_timesteps))
        checkpoints.prune(self._run, self._config.keep)


class ValidationCallback(BaseCallback):
    """Runs episodes on validation seeds every so often, logs their metrics and keeps the best learner."""

    def __init__(
        self,
        run: Path,
        config: Validation,
        scenarios: Sequence[Scenario],
        kind: str,
        *,
        make: EnvFactory | None = None,
        at_start: bool = False,
        offered: NDArray[np.bool_] | None = None,
    ) -> None:
        """Validate on a scenario, or on all of a mixture; write into ``run``.

        With ``at_start`` a new run is validated before its first step. That is for warm starts: an actor that
        has learned nothing may keep the batch size at 1 and fill the whole horizon, which takes long and says
        nothing.

        Args:
            run: Directory of the run.
            config: The settings.
            scenarios: The scenario, or those of the mixture, each with so many episodes. What a mixture is
                selected by is the geometric mean over its scenarios: a per cent counts the same in each.
            kind: ``compiled`` or ``dummy``, see :func:`agents.environments.make_vec_env`.
            make: Makes one environment, instead of the registered one.
            at_start: Validate a new run before its first step.
            offered: What each scenario of a mixture offers of the common lists.
        """
        super().__init__()
        self._run, self._config, self._scenarios = run, config, scenarios
        self._kind, self._make, self._at_start, self._offered = kind, make, at_start, offered
        self.best: float | None = None
        self._lacks = 0.0
        self._last_step = -1

    def _on_training_start(self) -> None:
        try:
            kept = checkpoints.read(self._run / checkpoints.BEST)
            self.best, self._lacks = kept.score, kept.lacks
        except checkpoints.CheckpointError:
            self.best, self._lacks = None, 0.0
        first = self._at_start and self.num_timesteps == 0
        self._due = 0 if first else self.num_timesteps + self._config.every_steps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._due:
            self.validate()
            self._due = self.num_timesteps + self._config.every_steps

    def _on_step(self) -> bool:
        return True

    def validate(self) -> None:
        """Validate the learner as it is; once per step count."""
        if self._last_step == self.model.num_timesteps:
            return
        self._last_step = self.model.num_timesteps
        actor = actor_of(self.model, self.model.action_space.nvec)  # type: ignore[arg-type, attr-defined]
        played = [self._means(number, actor) for number in range(len(self._scenarios))]
        means = played[0] if len(played) == 1 else self._of_all(played)
        for name, value in means.items():
            if math.isfinite(value):
                self.logger.record(f"validation/{name}", value)
        row = {name: value if math.isfinite(value) else None for name, value in means.items()}
        with (self._run / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self._last_step, **row}) + "\n")
        score, lacks = means[self._config.select_by], max(map(self._lacking, played))
        if math.isfinite(score) and self._is_better(score, lacks):
            self.best, self._lacks = score, lacks
            checkpoints.save(self.model, self._run / checkpoints.BEST, score, lacks)

    def _is_better(self, score: float, lacks: float) -> bool:
        """Return whether a state goes before the best one: by the bound, and if that is the same by score."""
        if self.best is None:
            return True
        if lacks != self._lacks:
            return lacks < self._lacks
        return score > self.best if self._config.maximise else score < self.best

    def _lacking(self, means: dict[str, float]) -> float:
        """Return by what share of its bound the constrained metric of a scenario misses it."""
        bound = self._config.subject_to
        if bound is None:
            return 0.0
        return bound.lacks(self._metric(means, "subject_to.metric", bound.metric))

    @staticmethod
    def _metric(means: dict[str, float], key: str, name: str) -> float:
        if name not in means:
            raise ValueError(f"validation.{key} = {name!r} is no episode metric; there are {sorted(means)}")
        return means[name]

    def _means(self, number: int, actor: MlpActor) -> dict[str, float]:
        """Return the mean metrics of the validation episodes of one scenario."""
        seeds, mixed = validation_seeds(self._config.episodes), len(self._scenarios) > 1
        episodes = play(
            self._scenarios[number],
            seeds,
            ByActor(actor),
            kind=self._kind,
            make=self._make,
            side_by_side=len(seeds),
            n_placements=most_placements(self._scenarios) if mixed else None,
            offered=None if self._offered is None else self._offered[number : number + 1],
        )
        means = mean_metrics(list(episodes))
        self._metric(means, "select_by", self._config.select_by)
        return means

    def _of_all(self, played: Sequence[dict[str, float]]) -> dict[str, float]:
        """Return what a mixture is selected by: its geometric mean, and its value in each scenario."""
        key = self._config.select_by
        values = [means[key] for means in played]
        together = math.exp(float(np.mean(np.log(values)))) if min(values) > 0.0 else math.nan
        names = [scenario.name for scenario in self._scenarios]
        return {key: together, **{f"{name}/{key}": value for name, value in zip(names, values, strict=True)}}

    def _on_training_end(self) -> None:
        self.validate()


class ProgressCallback(BaseCallback):
    """A progress bar over the whole run, resumed steps included.

    That nobody reads it any more, as behind a pipe that was closed, is no reason to stop the training.
    """

    def __init__(self, total: int) -> None:
        """Count up to ``total`` steps."""
        super().__init__()
        self._total = total
        self._bar: tqdm[Any] | None = None

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._bar = None

    def _on_training_start(self) -> None:
        with self._showing():
            self._bar = tqdm(
                total=self._total,
                initial=self.num_timesteps,
                desc="training",
                unit=" decisions",
                mininterval=0.5,
            )

    def _on_step(self) -> bool:
        if self._bar is not None:
            with self._showing():
                self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if returns and self._bar is not None:
            with self._showing():
                self._bar.set_postfix_str(f"return {np.mean(returns):.3g}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with self._showing():
                self._bar.close()
