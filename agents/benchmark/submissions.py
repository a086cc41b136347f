"""Entries of others: a file that says who, what and how, records beside it, and a replay that checks them."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from agents.benchmark.cells import Cell, cells_of
from agents.benchmark.config import BenchmarkError, Contest, Label, Spec, Suite, load_suite
from agents.benchmark.records import Record, Store
from agents.benchmark.running import Outcome
from agents.benchmark.workflow import Backend, Report, run
from agents.config_files import ConfigModel, read_file
from dsd_env.files import sha256_of
from dsd_env.paired import evaluation_seeds

EVERYWHERE = "*"
_Text = Annotated[str, Field(min_length=1, max_length=2000)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Submission(ConfigModel):
    """An entry to a benchmark."""

    format: Literal["dsd_env.benchmark.submission"]
    format_version: Literal[1]
    name: Label = Field(description="What tables call it.")
    authors: _Text
    contact: _Text
    date: datetime.date
    suite: str = Field(default="core", min_length=1, description="Name or path of the benchmark.")
    schedulers: dict[str, Spec] = Field(
        min_length=1, description="Scheduler by scenario of the benchmark; '*' stands for all others."
    )
    code: _Text = Field(description="Where the code is that made it: address and commit.")
    command: _Text = Field(description="How it was trained or tuned, command by command.")
    training_wall_s: Annotated[float, Field(ge=0)]
    hardware: _Text
    notes: str = Field(default="", max_length=4000)
    records: dict[str, _Sha256] = Field(
        default={}, description="SHA-256 of each file in the folder `records` beside this one, by scenario."
    )

    @field_validator("date", mode="before")
    @classmethod
    def _read_date(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("must be a date such as 2026-03-31")
        return datetime.date.fromisoformat(value)


def load_submission(path: Path) -> Submission:
    """Load a submission.

    Raises:
        BenchmarkError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_file(Submission, path, "submission", BenchmarkError)


def contests_of(submission: Submission, suite: Suite) -> dict[str, Contest]:
    """Return the scenarios that a submission enters, by name, with it as the only scheduler.

    Raises:
        BenchmarkError: It names a scenario that the benchmark has not.
    """
    if unknown := sorted(set(submission.schedulers) - set(suite.scenarios) - {EVERYWHERE}):
        has = ", ".join(suite.scenarios)
        raise BenchmarkError(f"schedulers: no scenario {', '.join(unknown)} in the benchmark; it has {has}")
    found = {}
    for contest in suite.contests():
        spec = submission.schedulers.get(contest.name, submission.schedulers.get(EVERYWHERE))
        if spec is not None:
            only = {submission.name: ("learned", spec)}
            found[contest.name] = contest.model_copy(update={"schedulers": only})
    return found


def suite_of(submission: Submission, folder: Path) -> Suite:
    """Return the benchmark that a submission enters, by name or by a path that may begin at its folder.

    Raises:
        BenchmarkError: There is none, or it is wrong.
    """
    beside = folder / submission.suite
    return load_suite(str(beside) if beside.is_file() else submission.suite)


def _cells(submission: Submission, suite: Suite, contests: Mapping[str, Contest], folder: Path) -> list[Cell]:
    seeds = evaluation_seeds(suite.seeds)
    cells: list[Cell] = []
    for contest in contests.values():
        cells += cells_of(contest, contest.load(), submission.name, seeds, folder)
    return sorted(cells, key=lambda cell: cell.seed)


def submit(
    path: Path, simulate: Backend, on_plan: Callable[[Sequence[Cell], Store], Callable[[Outcome], None]]
) -> tuple[Report, dict[str, str]]:
    """Simulate what a submission enters; return what became of it and the digests to be written into it.

    Args:
        path: The submission's file; the records come into the folder ``records`` beside it.
        simulate: What simulates.
        on_plan: Given all cells and the records before it begins; returns what is called at each outcome.

    Raises:
        BenchmarkError: The submission is wrong, or a scheduler does not fit.
    """
    submission = load_submission(path)
    suite = suite_of(submission, path.parent)
    contests = contests_of(submission, suite)
    store = Store(path.parent / "records")
    cells = _cells(submission, suite, contests, path.parent)
    report = run(cells, contests, store, simulate, on_plan(cells, store))
    digests = {
        name: sha256_of(file) for name in contests if (file := store.folder / f"{name}.json").is_file()
    }
    return report, digests


def _untold(cells: Sequence[Cell]) -> Callable[[Outcome], None]:
    return lambda outcome: None


def verify(
    path: Path,
    sample: int,
    simulate: Backend,
    on_plan: Callable[[Sequence[Cell]], Callable[[Outcome], None]] = _untold,
) -> list[str]:
    """Check a submission: digests, completeness, and a sample of cells simulated anew.

    Args:
        path: The submission's file.
        sample: Number of cells to simulate, spread over its scenarios; the same ones every time.
        simulate: What simulates.
        on_plan: Given the sample before it begins; returns what is called at each outcome.

    Returns:
        What is wrong, in words; nothing if all is well.

    Raises:
        BenchmarkError: The submission or a file of records cannot be read.
    """
    submission = load_submission(path)
    suite = suite_of(submission, path.parent)
    contests = contests_of(submission, suite)
    folder = path.parent / "records"
    wrong = _wrong_files(submission, folder, contests)
    store = Store(folder)
    cells = _cells(submission, suite, contests, path.parent)
    records = {(record.entry, record.seed): record for record in store if record.name == submission.name}
    present = [cell for cell in cells if (cell.entry, cell.seed) in records]
    if len(present) < len(cells):
        wrong.append(f"{len(cells) - len(present)} of {len(cells)} cells have no record: run --submit again")
    if others := sum(records[cell.entry, cell.seed].inputs != cell.inputs for cell in present):
        wrong.append(
            f"{others} of {len(present)} records were made of other inputs: another scheduler, scenario, or "
            "version of this code; run --submit again with this one"
        )

    chosen = sampled(present, sample)
    on_outcome = on_plan(chosen)

    def compare(outcome: Outcome) -> None:
        record = records[outcome.cell.entry, outcome.cell.seed]
        wrong.extend(_differences(outcome, record))
        on_outcome(outcome)

    simulate(chosen, compare)
    return wrong


def _wrong_files(submission: Submission, folder: Path, contests: Mapping[str, Contest]) -> list[str]:
    wrong = []
    for name in contests:
        file = folder / f"{name}.json"
        if not file.is_file():
            wrong.append(f"{file}: is missing")
        elif name not in submission.records:
            wrong.append(f"records: names no digest for {name}")
        elif sha256_of(file) != submission.records[name]:
            wrong.append(f"{file}: is not the file whose digest the submission names")
    return wrong


def sampled(cells: Sequence[Cell], count: int) -> list[Cell]:
    """Return so many cells, from each scenario in turn; which ones is the same every time."""
    by_entry: dict[str, list[Cell]] = {}
    for cell in cells:
        by_entry.setdefault(cell.entry, []).append(cell)
    for entry, members in by_entry.items():
        random.Random(f"{entry} {members[0].inputs}").shuffle(members)
    turns = max((len(members) for members in by_entry.values()), default=0)
    drawn = [members[turn] for turn in range(turns) for members in by_entry.values() if turn < len(members)]
    return drawn[:count]


def _differences(outcome: Outcome, record: Record) -> list[str]:
    """Return in words how a replay differs from a record: not by a bit."""
    where = f"{record.entry}, seed {record.seed}"
    if outcome.failure:
        return [f"{where}: cannot be replayed: {outcome.failure}"]
    for name, value in outcome.metrics.items():
        told = record.metrics.get(name)
        if told is None or not (told == value or (told != told and value != value)):
            return [f"{where}: {name} is {value!r}, the record says {told!r}"]
    if outcome.digest != record.digest:
        return [f"{where}: metrics that the record does not keep differ from those of the replay"]
    return []
