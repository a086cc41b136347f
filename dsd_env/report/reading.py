"""Reading results: the files that evaluations, searches for static choices and training runs leave.

A report is often made of files that came from elsewhere. So their sizes, types and numbers are checked here,
and a fault is one line that names the file and the place in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_json
from dsd_env.files import sha256_of
from dsd_env.strict_model import StrictNumbers, expected_type, explain_type
from dsd_env.text import TextError, read_text

MAX_FILE_BYTES = 100_000_000
MAX_SHOWN = 500
"""Scenarios, schedulers or metrics beyond this are no result that anybody could look at."""
MAX_PLACE = 300
"""Letters of a place in a file that a message shows."""
VALIDATION_FILE, RUN_FILE, BEST_FILE = "validation.jsonl", "run.json", "best.json"
"""What of a training run's folder is read."""


class ReportError(ValueError):
    """A result cannot be shown; the message names the file and says why."""


class _Model(StrictNumbers, BaseModel):
    # What newer versions add is left alone.
    model_config = ConfigDict(frozen=True, extra="ignore")


Number = float | None
Interval = tuple[Number, Number]
Name = Annotated[str, Field(min_length=1, max_length=500)]
Specification = Annotated[str, Field(min_length=1, max_length=2000)]


class Value(_Model):
    """A metric of a scheduler: its mean over the seeds, with a 95 % interval."""

    mean: Number
    ci95: Interval
    per_seed: Annotated[tuple[Number, ...], Field(max_length=100_000)]
    se_batches: Number = None
    drift: Number = None


class Change(_Model):
    """By how much a metric differs from the first scheduler's, relative to it, paired by seed."""

    relative: Number
    ci95: Interval


class Versus(_Model):
    """The differences of one scheduler from another."""

    scheduler: Name
    metrics: Annotated[dict[Name, Change], Field(max_length=MAX_SHOWN)]


Values = Annotated[tuple[Number, ...], Field(max_length=2000)]
Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=2000)]


class History(_Model):
    """Load, decisions and latencies of one episode, as :mod:`dsd_env.history` makes them."""

    seed: int
    interval_s: Annotated[float, Field(gt=0)]
    end_s: Annotated[float, Field(gt=0)]
    active_requests: Values
    tokens_per_s: Values
    decisions: Counts
    gamma_mean: Values
    batch_size_mean: Values
    places: Annotated[dict[Name, Counts], Field(max_length=20)]
    requests_measured: Annotated[int, Field(ge=0)]
    quantiles: Annotated[dict[Name, Values], Field(max_length=20)]

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        n = len(self.decisions)
        columns = (self.active_requests, self.tokens_per_s, self.gamma_mean, self.batch_size_mean)
        if any(len(column) != n for column in (*columns, *self.places.values())):
            raise ValueError(f"its columns must all have {n} values, one for each interval")
        if any(None in values for values in self.quantiles.values()):
            raise ValueError("quantiles must be numbers")
        return self


class Scheduler(_Model):
    """What one scheduler reached in a scenario."""

    specification: Specification | None = None
    metrics: Annotated[dict[Name, Value], Field(min_length=1, max_length=MAX_SHOWN)]
    versus: Versus | None = None
    history: History | None = None


class ScenarioRef(_Model):
    """Which scenario it was."""

    name: Name
    version: int | None = None
    sha256: Annotated[str, Field(max_length=64)] | None = None


class Evaluated(_Model):
    """One scenario of an evaluation."""

    scenario: ScenarioRef
    requests: int | None = None
    warmup_s: float = 0.0
    window_s: Number = None
    load_cycles: int = 0
    schedulers: Annotated[dict[Name, Scheduler], Field(min_length=1, max_length=MAX_SHOWN)]


class Metadata(_Model):
    """How an evaluation came about."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1, max_length=100_000)]
    ci95: str = ""
    created: str | None = None
    git_commit: str | None = None
    versions: Annotated[dict[str, str], Field(max_length=200)] = {}
    command: Annotated[tuple[str, ...], Field(max_length=1000)] | None = None
    made_by: str | None = None


class Evaluation(_Model):
    """What ``scripts/evaluate.py --json`` writes, and ``scripts/demo.py``."""

    metadata: Metadata
    scenarios: Annotated[dict[Name, Evaluated], Field(min_length=1, max_length=MAX_SHOWN)]

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        n = len(self.metadata.seeds)
        for label, evaluated in self.scenarios.items():
            for name, scheduler in evaluated.schedulers.items():
                for metric, value in scheduler.metrics.items():
                    if len(value.per_seed) != n:
                        where = f"scenarios.{label}.schedulers.{name}.metrics.{metric}.per_seed"
                        raise ValueError(f"{where} has {len(value.per_seed)} values for {n} seeds")
        return self


class _CommandChange(_Model):
    relative: Number
    relative_ci95: Interval


class _CommandScheduler(_Model):
    specification: Specification | None = None
    metrics: Annotated[dict[Name, Value], Field(min_length=1, max_length=MAX_SHOWN)]
    versus: Annotated[dict[Name, _CommandChange], Field(max_length=MAX_SHOWN)] | None = None
    history: History | None = None


class _CommandEvaluation(_Model):
    """What ``dsd-env evaluate --json`` prints: one scenario, the differences absolute and relative."""

    scenario: Name
    requests: int | None = None
    cycles: int | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1, max_length=100_000)]
    ci95: str = ""
    baseline: Name
    schedulers: Annotated[dict[Name, _CommandScheduler], Field(min_length=1, max_length=MAX_SHOWN)]

    def as_evaluation(self) -> dict[str, Any]:
        """Return it in the form that the script writes."""
        schedulers = {}
        for name, entry in self.schedulers.items():
            one: dict[str, Any] = {
                "specification": entry.specification,
                "metrics": entry.metrics,
                "history": entry.history,
            }
            if entry.versus is not None:
                changes = {
                    metric: {"relative": change.relative, "ci95": change.relative_ci95}
                    for metric, change in entry.versus.items()
                }
                one["versus"] = {"scheduler": self.baseline, "metrics": changes}
            schedulers[name] = one
        evaluated = {
            "scenario": {"name": self.scenario},
            "requests": self.requests,
            "load_cycles": self.cycles or 0,
            "schedulers": schedulers,
        }
        metadata = {"seeds": self.seeds, "ci95": self.ci95, "made_by": "dsd-env evaluate"}
        return {"metadata": metadata, "scenarios": {self.scenario: evaluated}}


class StaticRow(_Model):
    """A scheduler beside the best static choice, on the seeds that confirm."""

    scheduler: Name
    e2e_s_mean: Number = None
    e2e_s_p95: Number = None
    ttft_s_mean: Number = None
    tpot_s_mean: Number = None
    load: Number = None
    cloud_usd_per_1m_tokens: Number = None
    slo_by_class: Annotated[dict[Name, Number], Field(max_length=100)] = {}
    against_best_percent: Number = None
    against_best_percent_se: Number = None


class StaticStudy(_Model):
    """One scenario of a search for the best static choice."""

    best_for_all: Name
    best_per_class: Name
    uniform_e2e_s: Annotated[dict[Name, Number], Field(max_length=MAX_SHOWN)] = {}
    table: Annotated[tuple[StaticRow, ...], Field(min_length=1, max_length=MAX_SHOWN)]


class StaticSearch(_Model):
    """What ``scripts/best_static.py --json`` writes."""

    command: str = ""
    scenarios: Annotated[dict[Name, StaticStudy], Field(min_length=1, max_length=MAX_SHOWN)]


class Probe(_Model):
    """A load that was tried: a factor on the scenario's own, what it offers, and who met the SLO under it."""

    scale: Annotated[float, Field(gt=0)]
    offered: Annotated[float, Field(gt=0)]
    arrivals_per_s: Number
    attainment: Annotated[float, Field(ge=0, le=1)]
    requests: Annotated[int, Field(ge=0)]


class SchedulerCapacity(_Model):
    """The capacity of one scheduler: the largest load that it carries, and the smallest that it does not."""

    best: Probe | None
    above: Probe | None
    probes: Annotated[tuple[Probe, ...], Field(min_length=1, max_length=1000)]


class CapacityMetadata(_Model):
    """How a search for capacities came about; its seeds are told by their number."""

    created: str | None = None
    git_commit: str | None = None
    versions: Annotated[dict[str, str], Field(max_length=200)] = {}
    command: Annotated[tuple[str, ...], Field(max_length=1000)] | None = None


class CapacitySearch(_Model):
    """What ``scripts/capacity.py --json`` writes."""

    metadata: CapacityMetadata
    scenario: Name
    scaled: Name
    share: Annotated[float, Field(gt=0, lt=1)]
    tolerance: Annotated[float, Field(gt=0)]
    seeds: Annotated[int, Field(ge=1)]
    warmup_s: Annotated[float, Field(ge=0)]
    window_s: Annotated[float, Field(gt=0)]
    schedulers: Annotated[dict[Name, SchedulerCapacity], Field(min_length=1, max_length=MAX_SHOWN)]


@dataclass(frozen=True, slots=True)
class Run:
    """A training run.

    Attributes:
        steps: Decisions taken before each validation.
        curves: Mean of each metric on the validation episodes, by name, one for each of them.
        best_step: Decisions after which the run was best; None if that is not on record.
        starts: How it was begun and resumed, as ``run.json`` has it.
    """

    steps: tuple[int, ...]
    curves: dict[str, tuple[Number, ...]]
    best_step: int | None
    starts: tuple[Start, ...]


class Start(_Model):
    """When and with what a run was begun or resumed."""

    time: str | None = None
    git_commit: str | None = None
    versions: Annotated[dict[str, str], Field(max_length=200)] = {}
    arguments: Annotated[tuple[str, ...], Field(max_length=1000)] = ()


class _Record(_Model):
    starts: Annotated[tuple[Start, ...], Field(max_length=10_000)] = ()


class _Best(_Model):
    num_timesteps: int | None = None


class _Row(_Model):
    step: Annotated[int, Field(ge=0)]
    values: Annotated[dict[Name, Number], Field(max_length=MAX_SHOWN)]


@dataclass(frozen=True, slots=True)
class Source:
    """One result, and the file that it was read from.

    Attributes:
        path: The file, or a run's folder, as it was named.
        sha256: Digest of the file (of a run: of its validation results).
        result: What it holds.
    """

    path: str
    sha256: str
    result: Evaluation | StaticSearch | CapacitySearch | Run


def read_results(path: str | Path) -> Source:
    """Read one result: a JSON file, or the folder of a training run.

    Raises:
        ReportError: It cannot be read, is no result, or holds what a result cannot.
    """
    path = Path(path)
    if path.name == VALIDATION_FILE and path.is_file():
        path = path.parent
    if path.is_dir():
        return _read_run(path)
    text = _text(path)
    data = _parsed(text, path)
    return Source(str(path), sha256_of(path), _result(data, path))


def _result(data: Any, path: Path) -> Evaluation | StaticSearch | CapacitySearch:
    if isinstance(data, Mapping):
        if {"metadata", "scenarios"} <= set(data):
            return _checked(Evaluation, data, path)
        if {"baseline", "schedulers"} <= set(data):
            said = _checked(_CommandEvaluation, data, path)
            return _checked(Evaluation, said.as_evaluation(), path)
        if {"command", "scenarios", "simulations"} <= set(data):
            return _checked(StaticSearch, data, path)
        if {"scaled", "share", "schedulers"} <= set(data):
            return _checked(CapacitySearch, data, path)
    raise ReportError(
        f"{path}: is no result that a report knows: those are the JSON of evaluate.py, demo.py, "
        "best_static.py, capacity.py and `dsd-env evaluate`, and the folder of a training run"
    )


def _read_run(folder: Path) -> Source:
    """Read a training run's folder; what it lacks beside the validation results is left out."""
    path = folder / VALIDATION_FILE
    if not path.is_file():
        raise ReportError(f"{folder}: is no folder of a training run: {VALIDATION_FILE} is missing")
    text = _text(path)
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        data = _parsed(line, f"{path}, line {number}")
        if not isinstance(data, dict) or "step" not in data:
            raise ReportError(f"{path}, line {number}: is no validation: it has no step")
        step = data.pop("step")
        rows.append(_checked(_Row, {"step": step, "values": data}, f"{path}, line {number}"))
    if not rows:
        raise ReportError(f"{path}: holds no validation")
    # A run that was resumed may have validated a state again.
    by_step = {row.step: row.values for row in rows}
    steps = tuple(sorted(by_step))
    names = [name for name in rows[0].values if not name.endswith(("_se", "_drift"))]
    curves = {name: tuple(by_step[step].get(name) for step in steps) for name in names}
    best = _of_run(folder / BEST_FILE, _Best)
    record = _of_run(folder / RUN_FILE, _Record)
    run = Run(steps, curves, best.num_timesteps if best else None, record.starts if record else ())
    return Source(str(folder), sha256_of(path), run)


_M = TypeVar("_M", bound=BaseModel)


def _of_run(path: Path, model: type[_M]) -> _M | None:
    return _checked(model, _parsed(_text(path), path), path) if path.is_file() else None


def _text(path: Path) -> str:
    try:
        return read_text(path, max_bytes=MAX_FILE_BYTES)
    except TextError as error:
        raise ReportError(str(error)) from None


def _parsed(text: str, where: object) -> Any:
    try:
        # NaN is refused with the place where it stands.
        return strict_json.loads(text, nan=True)
    except ValueError as error:
        raise ReportError(f"{where}: is not JSON: {error}") from None
    except RecursionError:
        raise ReportError(f"{where}: is nested too deep") from None


def _checked(model: type[_M], data: Any, where: object) -> _M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        # Keys are a stranger's, and this is for a terminal.
        place = "".join(sign if sign.isprintable() else "?" for sign in ".".join(map(str, problem["loc"])))
        place = place if len(place) <= MAX_PLACE else f"{place[:MAX_PLACE]} …"
        said = explain_type(problem) or expected_type(problem) or problem["msg"].removeprefix("Value error, ")
        raise ReportError(f"{where}: {place}: {said}" if place else f"{where}: {said}") from None
