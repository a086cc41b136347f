"""Tuning of rules: the parameters of a scheduler's specification, searched on training episodes with Optuna.

A *template* is a specification with ranges in braces, in the words of the registry:

    jsq_goodput:prior_acceptance={0.4..0.9}+load_weight={0..2}
    pack:{4..48 whole}:{1|2|4|8}:1:colocated

``{low..high}`` is a number, ``{low..high whole}`` a whole number, ``{a|b|c}`` one of some words. A number
may say where to begin, ``{0..2 from 1}``: if all do, that is tried first, so that the result is never worse
than it on the training episodes. Every candidate meets the same training episodes. The study is kept in a
database file, and the same command goes on with it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import dsd_env
from agents.constraint import Constraint
from agents.evaluation import Task, check_metrics, run_group
from agents.seeds import training_seed
from dsd_env.extras import needs
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario
from dsd_env.schedulers import SchedulerError, make_scheduler

if TYPE_CHECKING:
    from optuna import Trial

_BRACES = re.compile(r"\{([^{}]*)\}")
_NAMED = re.compile(r"\+?\b\w+=\0")
"""A parameter by name, whose value is left open, with what separates it from others."""
_RANGE = re.compile(r"(-?[0-9.e+-]+)\.\.(-?[0-9.e+-]+)( whole)?(?: from (-?[0-9.e+-]+))?")
SHORTFALL = 10.0
"""What a candidate that breaks a constraint pays, in its value, for each share of the bound that it lacks."""


Sampler = Literal["tpe", "cmaes"]
"""Who suggests candidates."""


class TemplateError(ValueError):
    """A template cannot be read; the message shows the part and what is expected."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two bounds, both included."""

    low: float
    high: float
    whole: bool
    start: float | None = None

    @property
    def first(self) -> float | int:
        """The one to begin with."""
        start = self.low if self.start is None else self.start
        return int(start) if self.whole else start

    @property
    def ends(self) -> tuple[str, ...]:
        """Its bounds, as they stand in a specification."""
        return f"{self.low:.4g}", f"{self.high:.4g}"

    @property
    def has_start(self) -> bool:
        """Whether it says where to begin."""
        return self.start is not None

    def suggest(self, trial: Trial, name: str) -> str:
        """Return a value as it stands in a specification."""
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high)))
        return f"{trial.suggest_float(name, self.low, self.high):.4g}"


@dataclass(frozen=True, slots=True)
class Words:
    """One of some words."""

    words: tuple[str, ...]

    @property
    def first(self) -> str:
        """The one to begin with."""
        return self.words[0]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.words

    @property
    def has_start(self) -> bool:
        """Whether it says where to begin: with the first."""
        return True

    def suggest(self, trial: Trial, name: str) -> str:
        """Return one of them."""
        return str(trial.suggest_categorical(name, self.words))


class Template:
    """A scheduler's specification with ranges in it.

    Attributes:
        text: As it was given.
        holes: What stands in the braces, in order.
    """

    def __init__(self, text: str) -> None:
        """Read a template.

        Raises:
            TemplateError: There are no braces, or one cannot be read.
        """
        if text.count("{") != text.count("}"):
            raise TemplateError(f"{text!r}: a brace is not closed, or not opened")
        self.text = text
        self._between = _BRACES.split(text)[::2]
        self.holes = tuple(_hole(part) for part in _BRACES.findall(text))
        if not self.holes:
            raise TemplateError(
                f"{text!r}: nothing to tune; put a range in braces, as in pack:{{4..48 whole}}:4:1:colocated"
            )

    def fill(self, values: Sequence[str]) -> str:
        """Return the specification with these values in the place of the braces."""
        filled = [part for pair in zip(self._between, [*values, ""], strict=True) for part in pair]
        return "".join(filled)

    @property
    def first(self) -> str:
        """The specification to begin with."""
        return self.fill(
            [f"{hole.first:.4g}" if isinstance(hole, Range) else hole.first for hole in self.holes]
        )

    @property
    def untuned(self) -> str | None:
        """The rule before it is tuned; None if nobody says what that is.

        Each hole holds what it begins with, where it says so. A parameter by name is left out otherwise, so
        that the rule has its own default.
        """
        values = [f"{hole.first:.4g}" if isinstance(hole, Range) else hole.first for hole in self.holes]
        open_ = [value if hole.has_start else "\0" for hole, value in zip(self.holes, values, strict=True)]
        left = _NAMED.sub("", self.fill(open_)).replace(":+", ":").removesuffix(":")
        try:
            make_scheduler(left)
        except SchedulerError:
            return None
        return left

    @property
    def start(self) -> dict[str, Any] | None:
        """The first trial, if every number says where to begin."""
        if not all(hole.has_start for hole in self.holes):
            return None
        return {f"hole_{n}": hole.first for n, hole in enumerate(self.holes)}

    def check(self, sampler: Sampler) -> None:
        """Check that it can be searched: every bound and word makes a scheduler.

        Raises:
            TemplateError: One does not, or CMA-ES is to search what are no numbers.
        """
        if sampler == "cmaes" and (self.start is None or any(isinstance(h, Words) for h in self.holes)):
            raise TemplateError(
                f"{self.text!r}: CMA-ES searches numbers, each with a beginning ({{0..2 from 1}})"
            )
        firsts = [hole.ends[0] for hole in self.holes]
        for n, hole in enumerate(self.holes):
            for end in hole.ends:
                self.check_filled(self.fill([*firsts[:n], end, *firsts[n + 1 :]]))

    def check_filled(self, filled: str, scenario: Scenario | None = None) -> None:
        """Check that what the template was filled to is a scheduler, and one of a scenario.

        Raises:
            TemplateError: It is not.
        """
        try:
            scheduler = make_scheduler(filled)
            if scenario is not None:
                scheduler.reset(scenario, 0)
        except SchedulerError as error:
            raise TemplateError(f"{self.text!r} gives {filled!r}: {error}") from error

    def suggest(self, trial: Trial) -> str:
        """Return a specification that a trial suggests."""
        return self.fill([hole.suggest(trial, f"hole_{n}") for n, hole in enumerate(self.holes)])


def _hole(text: str) -> Range | Words:
    if "|" in text:
        words = tuple(text.split("|"))
        if "" in words or len(set(words)) != len(words):
            raise TemplateError(f"{{{text}}}: an empty word, or one that stands there twice")
        if " " in text:
            raise TemplateError(f"{{{text}}}: words have no spaces; the first is where a search begins")
        return Words(words)
    match = _RANGE.fullmatch(text)
    try:
        low, high = (float(bound) for bound in match.group(1, 2)) if match else (math.nan, math.nan)
        start = float(match.group(4)) if match and match.group(4) else None
    except ValueError:
        low = high = math.nan
        start = None
    if match is None or not low < high or not math.isfinite(high - low):
        raise TemplateError(f"{{{text}}} is neither LOW..HIGH, with LOW below HIGH, nor A|B|C")
    whole = match.group(3) is not None
    if whole and not (low.is_integer() and high.is_integer()):
        raise TemplateError(f"{{{text}}}: the bounds of whole numbers must be whole")
    if start is not None and (not low <= start <= high or (whole and not start.is_integer())):
        raise TemplateError(f"{{{text}}}: {start:g} is none of the numbers to begin with")
    return Range(low, high, whole, start)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a study has found.

    Attributes:
        scheduler: The best specification.
        value: Its mean objective on the training episodes.
        trials: Specifications tried.
        untuned: The rule before it was tuned, if that was asked for and is known.
        untuned_value: Its objective on the same episodes.
    """

    scheduler: str
    value: float
    trials: int
    untuned: str | None = None
    untuned_value: float = math.nan


def tune(
    scenario: Scenario,
    template: Template,
    *,
    metric: str,
    direction: Literal["min", "max"],
    trials: int,
    episodes: int,
    study: Path | None = None,
    seed: int = 0,
    sampler: Sampler = "tpe",
    constraint: Constraint | None = None,
    compare: bool = False,
    report: Callable[[str, float], None] = lambda scheduler, value: None,
) -> Tuned:
    """Search the parameters of a rule for one scenario.

    Args:
        scenario: The scenario, with the window that is to be measured.
        template: The rule.
        metric: Episode metric.
        direction: Whether less or more of it is better.
        trials: Specifications to try in all, those of an earlier run of the study included.
        episodes: Training episodes of each.
        study: SQLite file to keep the study in, under a name that says what is tuned: rule, scenario with all
            that is in it, metric, episodes, version.
        seed: Of the search, and of the choice of episodes.
        sampler: Who suggests: Optuna's TPE, or CMA-ES (numbers alone, each with a beginning).
        constraint: What the mean of another metric has to keep to; who does not pays for what is lacking.
        compare: Measure the rule before it is tuned, too, unless that was tried.
        report: Called after every trial.

    Returns:
        The best of them.

    Raises:
        TemplateError: No value of the template is a scheduler of the scenario, or CMA-ES cannot search it.
        ValueError: The metric is not one of the scenario's.
    """
    with needs("tune", "tuning rules"):
        import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seeds = [training_seed(seed, worker, 0, 0) for worker in range(episodes)]
    tried: dict[str, float] = {}

    def tasks_of(scheduler: str) -> list[Task]:
        return [Task(scenario.name, scenario, scheduler, each, "") for each in seeds]

    def measured(scheduler: str) -> float:
        if scheduler not in tried:
            template.check_filled(scheduler, scenario)
            rows = [metrics for _, metrics in run_group(tasks_of(scheduler))]
            value = float(np.mean([row[metric] for row in rows]))
            if constraint is not None:
                lacks = constraint.lacks(float(np.mean([row[constraint.metric] for row in rows])))
                value *= 1.0 + (SHORTFALL if direction == "min" else -SHORTFALL) * lacks
            tried[scheduler] = value
        return tried[scheduler]

    def value_of(trial: Trial) -> float:
        scheduler = template.suggest(trial)
        trial.set_user_attr("scheduler", scheduler)
        value = measured(scheduler)
        report(scheduler, value)
        return value if math.isfinite(value) else (math.inf if direction == "min" else -math.inf)

    # Mistakes are told now, not after the first simulation.
    template.check(sampler)
    template.check_filled(template.first, scenario)
    check_metrics([metric, *([] if constraint is None else [constraint.metric])], scenario)
    name = (
        f"{scenario.name} {scenario_ref(scenario).sha256[:16]} {template.text} {metric} {direction} "
        f"episodes={episodes} seed={seed} version={dsd_env.__version__}"
        + ("" if constraint is None else f" {constraint.model_dump_json(exclude_none=True)}")
        + (f" {sampler}" if sampler != "tpe" else "")
    )
    made = optuna.create_study(
        study_name=name,
        storage=None if study is None else f"sqlite:///{study}",
        direction="minimize" if direction == "min" else "maximize",
        load_if_exists=True,
    )
    # Trials that were interrupted have no value, and are none.
    done = [trial for trial in made.trials if trial.value is not None]
    for old in done:
        assert old.value is not None
        tried[old.user_attrs["scheduler"]] = old.value
    # A sampler that began again with the same seed would try the same again.
    made.sampler = _sampler(template, sampler, seed + len(made.trials))
    if template.start is not None and not made.trials:
        made.enqueue_trial(template.start)
    if len(done) < trials:
        made.optimize(value_of, n_trials=trials - len(done))
    best: Any = made.best_trial
    untuned = template.untuned if compare else None
    return Tuned(
        best.user_attrs["scheduler"],
        float(best.value),
        max(trials, len(done)),
        untuned,
        math.nan if untuned is None else measured(untuned),
    )


def prepare_database(file: Path) -> None:
    """Make a database for studies, and its folder, before several processes open it at once.

    Args:
        file: SQLite file; one that is there stays as it is.
    """
    with needs("tune", "tuning rules"):
        import optuna

    file.parent.mkdir(parents=True, exist_ok=True)
    optuna.storages.RDBStorage(f"sqlite:///{file}")


def _sampler(template: Template, sampler: Sampler, seed: int) -> Any:
    import optuna

    if sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna means to take `x0` away one day; the constraints name a version that has it.
        warnings.simplefilter("ignore", FutureWarning)
        return optuna.samplers.CmaEsSampler(x0=template.start, seed=seed, warn_independent_sampling=False)
