"""Tuning of every opponent of a benchmark with one budget: rules x scenarios, on training episodes.

A file says which templates of :mod:`agents.tuning` are tuned for which scenarios of a benchmark, and how
many trials and episodes each gets; objective, constraint and window are the benchmark's. What is found is
kept in a file beside it, from which the benchmark's schedulers are copied (a test holds them equal).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

import dsd_env
from agents.benchmark.config import Contest, Found, Label, Name, load_suite, read_found
from agents.config_files import ConfigModel, read_config
from agents.processes import as_they_end
from agents.tuning import Sampler, Template, prepare_database, tune
from dsd_env.files import write_text
from dsd_env.policy.manifest import scenario_ref


class TuningError(ValueError):
    """A file of tunings is wrong; the message names file, key and what is allowed."""


class Tunable(ConfigModel):
    """A rule with ranges."""

    template: str = Field(min_length=1, max_length=2000)
    sampler: Sampler = "tpe"
    trials: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Trials for this rule, instead of the common number."
    )

    @model_validator(mode="after")
    def _can_be_searched(self) -> Tunable:
        Template(self.template).check(self.sampler)
        return self


class Tunings(ConfigModel):
    """What is tuned, and with which budget."""

    suite: str = Field(min_length=1, description="Name or path of the benchmark.")
    trials: Annotated[int, Field(ge=1, le=100_000)]
    episodes: Annotated[int, Field(ge=1, le=1000)] = Field(description="Training episodes of each trial.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rules: dict[Label, Tunable] = Field(min_length=1)
    groups: dict[Label, tuple[Label, ...]] = Field(default={}, description="Names for several rules.")
    scenarios: dict[Name, tuple[Label, ...]] = Field(
        min_length=1, description="Entries of the benchmark, and the rules and groups tuned for each."
    )

    @model_validator(mode="after")
    def _known(self) -> Tunings:
        if both := sorted(set(self.groups) & set(self.rules)):
            raise ValueError(f"groups: {both} are names of rules, too")
        listed = {f"groups.{key}": rules for key, rules in self.groups.items()}
        listed |= {f"scenarios.{key}": self.of(key) for key in self.scenarios}
        for where, rules in listed.items():
            if unknown := sorted(set(rules) - set(self.rules)):
                groups = f", and groups {sorted(self.groups)}" if self.groups else ""
                raise ValueError(f"{where}: no rules {unknown}; there are {sorted(self.rules)}{groups}")
        return self

    def of(self, scenario: str) -> tuple[str, ...]:
        """Return the rules that are tuned for a scenario, each once."""
        rules = [rule for name in self.scenarios[scenario] for rule in self.groups.get(name, (name,))]
        return tuple(dict.fromkeys(rules))


@dataclass(frozen=True, slots=True)
class Study:
    """One rule, tuned for one scenario."""

    contest: Contest
    rule: str
    tunable: Tunable
    trials: int
    episodes: int
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        """What a result belongs to; another template, budget, objective or scenario asks for another."""
        return {
            **self.tunable.model_dump(mode="json", exclude={"trials"}),
            "trials": self.trials,
            "episodes": self.episodes,
            "seed": self.seed,
            "objective": self.contest.objective.model_dump(mode="json", exclude_none=True),
            "scenario_sha256": scenario_ref(self.contest.load()).sha256,
        }


def load_tunings(given: str | Path) -> Tunings:
    """Load a file of tunings, or a shipped one by its name.

    Raises:
        TuningError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(Tunings, given, "tune", "file of tunings", TuningError)


def studies(tunings: Tunings) -> list[Study]:
    """Return all that is to be tuned.

    Raises:
        TuningError: An entry is none of the benchmark's.
    """
    suite = load_suite(tunings.suite, tuned=False)
    if unknown := sorted(set(tunings.scenarios) - set(suite.scenarios)):
        raise TuningError(
            f"scenarios: {unknown} are not in {tunings.suite}, which has {list(suite.scenarios)}"
        )
    named = [(name, rule, tunings.rules[rule]) for name in tunings.scenarios for rule in tunings.of(name)]
    return [
        Study(suite.contest(name), rule, its, its.trials or tunings.trials, tunings.episodes, tunings.seed)
        for name, rule, its in named
    ]


def waiting(all_studies: Sequence[Study], found: Found) -> Iterator[Study]:
    """Yield the studies that have no result, or one of something else."""
    for study in all_studies:
        kept = found.get(study.contest.name, {}).get(study.rule)
        if kept is None or any(kept.get(key) != value for key, value in study.about.items()):
            yield study


def run_study(study: Study, database: Path | None = None) -> dict[str, Any]:
    """Tune one rule for one scenario; return the result as it is kept.

    Args:
        study: What is tuned.
        database: SQLite file that keeps each trial, so that an interrupted study goes on.
    """
    objective = study.contest.objective
    tuned = tune(
        study.contest.load(),
        Template(study.tunable.template),
        metric=objective.metric,
        direction="min" if objective.better == "lower" else "max",
        trials=study.trials,
        episodes=study.episodes,
        study=database,
        seed=study.seed,
        sampler=study.tunable.sampler,
        constraint=objective.subject_to,
    )
    return {
        "scheduler": tuned.scheduler,
        "value": tuned.value,
        **study.about,
        "version": dsd_env.__version__,
    }


def run_all(
    all_studies: Sequence[Study],
    path: Path,
    jobs: int,
    on_result: Callable[[Study, dict[str, Any]], None] = lambda study, result: None,
    database: Path | None = None,
) -> Found:
    """Tune what has no result yet; keep each result in a file as it comes.

    Args:
        all_studies: What is to be tuned.
        path: File of results.
        jobs: Processes.
        on_result: Called with every new result.
        database: SQLite file that keeps each trial.
    """
    found = read_found(path, TuningError)
    if database is not None:
        prepare_database(database)
    with closing(
        as_they_end(jobs, partial(run_study, database=database), list(waiting(all_studies, found)))
    ) as results:
        for study, result in results:
            found.setdefault(study.contest.name, {})[study.rule] = result
            write_text(path, json.dumps(found, indent=1, sort_keys=True) + "\n")
            on_result(study, result)
    return found
