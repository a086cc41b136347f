"""Ablations: one training with something taken away, compared with the whole on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from agents.benchmark.config import Contest, contest_of
from agents.benchmark.pages import number, percent, table
from agents.benchmark.statistics import gain, in_pairs
from agents.config import TrainConfig
from agents.config_files import ConfigModel, config_sha256, read_config
from agents.evaluation import run_group, tasks_of
from agents.export import export_run
from agents.training import RunError, train
from dsd_env import strict_json
from dsd_env.files import write_json
from dsd_env.paired import evaluation_seeds
from dsd_env.scenario.loader import explain_validation_error

BLOCK = "ablations"
"""Name of the block of a page that the table is written into."""
FORMAT, FORMAT_VERSION = "dsd_env.ablations", 1


class AblationError(ValueError):
    """A file of ablations is wrong; the message names file, key and what is allowed."""


class Variant(ConfigModel):
    """What is taken away."""

    note: str = Field(default="", max_length=200, description="What is taken away, in words.")
    overrides: dict[str, Any] = Field(
        default={}, description="Changes of the scenario by dotted key, for training and for the comparison."
    )
    train: dict[str, Any] = Field(default={}, description="Top-level keys of the training, replaced.")


class Ablations(ConfigModel):
    """One training and what is taken away from it."""

    suite: str = Field(default="core", min_length=1, description="Benchmark whose entry it is.")
    entry: str = Field(min_length=1, description="Entry of the benchmark: scenario, window and objective.")
    base: dict[str, Any] = Field(description="The whole training, as in configs/train; without the scenario.")
    seeds: Annotated[int, Field(ge=2, le=1000)] = Field(default=20, description="Evaluation episodes.")
    variants: dict[str, Variant] = Field(min_length=2, description="The first one is the whole.")

    @model_validator(mode="after")
    def _first_is_whole(self) -> Ablations:
        name, first = next(iter(self.variants.items()))
        if first.overrides or first.train:
            raise ValueError(f"variants.{name}: the first is the whole training, of which nothing is taken")
        return self

    def contest(self) -> Contest:
        """Return the entry of the benchmark."""
        return contest_of(self.suite, self.entry, AblationError)

    def training(self, variant: Variant) -> TrainConfig:
        """Return the configuration of one training."""
        contest = self.contest()
        window = contest.load().episode
        overrides = {
            **contest.changes,
            **self.base.get("overrides", {}),
            **variant.overrides,
            "episode.requests": None,
            "episode.warmup_requests": 0,
            "episode.warmup_s": window.warmup_s,
            "episode.window_s": window.window_s,
        }
        keys = {**self.base, **variant.train, "scenario": contest.source, "overrides": overrides}
        try:
            return TrainConfig.model_validate(keys)
        except ValidationError as error:
            raise AblationError(explain_validation_error(error, "base", TrainConfig)) from error


def load_ablations(given: str | Path) -> Ablations:
    """Load a file of ablations.

    Args:
        given: Path of a YAML file, or the name of a shipped one.

    Raises:
        AblationError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(Ablations, given, "ablations", "file of ablations", AblationError)


@dataclass(frozen=True)
class Result:
    """One variant on the evaluation episodes.

    Attributes:
        about: Digest of the training's configuration.
        values: The objective by seed.
    """

    about: str
    values: Mapping[int, float]


def read_results(file: Path) -> dict[str, Result]:
    """Return the results of a file by variant; none if there is no such file."""
    if not file.is_file():
        return {}
    data = strict_json.loads(file.read_text(encoding="utf-8"))
    if data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise AblationError(f"{file}: no results of ablations in format version {FORMAT_VERSION}")
    return {
        name: Result(each["about"], {int(seed): value for seed, value in each["values"].items()})
        for name, each in data["variants"].items()
    }


def run_ablations(
    config: Ablations, file: Path, runs: Path, report: Callable[[str, Result], None], progress: bool = True
) -> dict[str, Result]:
    """Train, export and measure what is missing; keep each result as it comes.

    Args:
        config: What is taken away.
        file: The results.
        runs: Folder of the runs and their policies; unfinished runs go on.
        report: Is told of each result.
        progress: Show progress bars.
    """
    contest, results = config.contest(), read_results(file)
    for name, variant in config.variants.items():
        training = config.training(variant)
        about, run = config_sha256(training), runs / name.replace(" ", "_")
        if name in results and results[name].about == about and len(results[name].values) >= config.seeds:
            continue
        _trained(training, run, progress)
        changed = contest.model_copy(update={"changes": {**contest.changes, **variant.overrides}})
        seeds = evaluation_seeds(config.seeds)
        tasks = tasks_of(config.entry, changed.load(), f"policy:{run / 'policy'}", seeds)
        values = {task.seed: metrics[contest.objective.metric] for task, metrics in run_group(tasks)}
        results[name] = Result(about, dict(sorted(values.items())))
        _write(file, contest, {key: results[key] for key in config.variants if key in results})
        report(name, results[name])
    return results


def _write(file: Path, contest: Contest, results: Mapping[str, Result]) -> None:
    variants = {
        name: {"about": each.about, "values": {str(seed): value for seed, value in each.values.items()}}
        for name, each in results.items()
    }
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, "entry": contest.name}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**about, "metric": contest.objective.metric, "variants": variants})


def _trained(training: TrainConfig, run: Path, progress: bool) -> None:
    """Train, or go on, and export the best state."""
    begun = (run / "run" / "config.yaml").is_file()
    try:
        train(training, run / "run", resume=begun, progress=progress)
    except RunError as error:
        raise AblationError(f"{error}; or remove {run}") from error
    export_run(run / "run", run / "policy", overwrite=True)


def page_table(config: Ablations, results: Mapping[str, Result]) -> str:
    """Return the table of one file of ablations."""
    contest = config.contest()
    lower = contest.objective.better == "lower"
    whole = next(iter(config.variants))
    rows = []
    for name, variant in config.variants.items():
        if name not in results or whole not in results:
            continue
        values, reference = in_pairs(results[name].values, results[whole].values)
        compared = "–" if name == whole else percent(gain(values, reference, lower_is_better=lower))
        rows.append([f"`{config.entry}`", name, variant.note, number(float(values.mean())), compared])
    head = ["scenario", "policy", "what it lacks", f"`{contest.objective.metric}`", "over the whole"]
    return "\n".join(["", *table(head, rows), ""])
