"""What the command does: run what is missing, write summary and pages, check that they are of the records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from agents import provenance
from agents.benchmark import goals, pages
from agents.benchmark.cells import ROOT, Cell
from agents.benchmark.config import BenchmarkError, Contest, Suite
from agents.benchmark.records import Record, Store
from agents.benchmark.running import Outcome, run_here
from agents.benchmark.scoring import Standing, analysis, standings, summary
from agents.identity import engine_digest
from dsd_env import strict_json
from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_text
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario

FOLDER = ROOT / "benchmark"
PAGES = (ROOT / "docs" / "benchmark.md", ROOT / "README.md")
"""Pages of the checkout with blocks of the benchmark's tables."""


class Backend(Protocol):
    """Simulates cells and hands over each outcome."""

    def __call__(self, cells: Sequence[Cell], on_outcome: Callable[[Outcome], None], /) -> None:
        """Simulate."""
        ...


@dataclass
class Report:
    """What became of a run.

    Attributes:
        cells: What was asked for.
        before: How many of them were finished before.
        failures: Cells that failed, with the reason.
    """

    cells: int
    before: int
    failures: list[tuple[Cell, str]] = field(default_factory=list)


def backend(jobs: int, ray: str | None) -> Backend:
    """Return what simulates: processes of this machine, or a Ray cluster by its address.

    Raises:
        BenchmarkError: Ray is asked for and not installed.
    """

    def here(cells: Sequence[Cell], on_outcome: Callable[[Outcome], None]) -> None:
        run_here(cells, jobs, on_outcome)

    def there(cells: Sequence[Cell], on_outcome: Callable[[Outcome], None]) -> None:
        assert ray is not None
        cluster.run_on_ray(cells, ray, on_outcome)

    if ray is None:
        return here
    from agents.benchmark import cluster

    cluster.need_ray()
    return there


def run(
    suite_cells: Sequence[Cell],
    contests: Mapping[str, Contest],
    store: Store,
    simulate: Backend,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Simulate the cells of which there is no record; keep each as it comes, and tidy up at the end.

    Args:
        suite_cells: What is asked for, in order.
        contests: Their scenarios, by name.
        store: The records.
        simulate: What simulates.
        on_outcome: Called at each outcome, after it is on disk.
    """
    todo = [cell for cell in suite_cells if store.find(cell) is None]
    report = Report(len(suite_cells), len(suite_cells) - len(todo))

    def keep(outcome: Outcome) -> None:
        cell = outcome.cell
        if outcome.failure:
            report.failures.append((cell, outcome.failure))
        else:
            store.add(Record.of(outcome, contests[cell.entry].schedulers[cell.name][1]))
        on_outcome(outcome)

    try:
        simulate(todo, keep)
    finally:
        scenarios = {cell.entry: cell.scenario for cell in todo}
        store.tidy({name: about(contests[name], scenario) for name, scenario in scenarios.items()})
    return report


def adopt(
    suite_cells: Sequence[Cell],
    contests: Mapping[str, Contest],
    store: Store,
    simulate: Backend,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[tuple[str, str], int]:
    """Keep stale records whose numbers the code of now gives, too.

    Of every scheduler in every scenario the first stale record is simulated anew. If every metric that it
    keeps is the same to the last bit, the others of that scheduler and scenario are taken over and marked so;
    if not, they stay stale. Of another specification, or another version of the scenario, none is taken over.

    Returns:
        How many records were taken over, by scenario and scheduler; 0 where the numbers were others.
    """
    pairs: dict[tuple[str, str], list[Cell]] = {}
    for cell in suite_cells:
        record, spec = store.stale(cell), contests[cell.entry].schedulers[cell.name][1]
        if record is None or record.scheduler != spec or not set(cell.metrics) <= set(record.metrics):
            continue
        if _kind(store.about(cell.entry)) == _kind(_described(contests[cell.entry], cell.scenario)):
            pairs.setdefault((cell.entry, cell.name), []).append(cell)
    taken = dict.fromkeys(pairs, 0)

    def compare(outcome: Outcome) -> None:
        cell = outcome.cell
        first, *others = pairs[cell.entry, cell.name]
        record = store.stale(first)
        assert record is not None
        told = {name: record.metrics[name] for name in cell.metrics}
        if not outcome.failure and same(told, outcome.metrics):
            for other in others:
                old = store.stale(other)
                assert old is not None
                store.add(replace(old, inputs=other.inputs, adopted=True))
            taken[cell.entry, cell.name] = len(others)
        if not outcome.failure:
            store.add(Record.of(outcome, record.scheduler))
        on_outcome(outcome)

    try:
        simulate([cells[0] for cells in pairs.values()], compare)
    finally:
        scenarios = {cells[0].entry: cells[0].scenario for cells in pairs.values()}
        store.tidy({name: about(contests[name], scenario) for name, scenario in scenarios.items()})
    return taken


def _described(contest: Contest, scenario: Scenario) -> dict[str, Any]:
    reference = scenario_ref(scenario).model_dump()
    return {"scenario": reference, "changes": contest.changes, "cycles": contest.cycles}


def _kind(about: Mapping[str, Any]) -> list[Any]:
    """Return what says that a scenario is the same but for its card and for keys that are new."""
    scenario = about.get("scenario", {})
    return [scenario.get("name"), scenario.get("version"), about.get("changes"), about.get("cycles")]


def same(x: Mapping[str, float], y: Mapping[str, float]) -> bool:
    """Return whether metrics are the same to the last bit; nothing observed is the same as that."""
    return x.keys() == y.keys() and all(
        value == y[name] or (math.isnan(value) and math.isnan(y[name])) for name, value in x.items()
    )


def about(contest: Contest, scenario: Scenario) -> dict[str, Any]:
    """Return what a file of records says of its scenario and of the code."""
    return {
        **_described(contest, scenario),
        "source": contest.source,
        "warmup_s": scenario.episode.warmup_s,
        "window_s": scenario.episode.window_s,
        "engine": engine_digest(),
        "git_commit": provenance.git_commit(ROOT),
        "versions": provenance.versions(),
    }


def texts(suite: Suite, records: Iterable[Record], folder: Path, to: Sequence[Path]) -> dict[Path, str]:
    """Return every file that is made of records, with its content.

    Args:
        suite: The benchmark.
        records: Its records.
        folder: Where summary and analysis lie.
        to: Pages whose blocks are replaced.

    Raises:
        OSError: A page cannot be read.
    """
    found = standings(suite, records)
    whole = analysis(suite, found)
    files = {
        folder / "summary.json": json.dumps(summary(found), indent=1, allow_nan=False) + "\n",
        folder / "analysis.json": json.dumps(whole, indent=1, allow_nan=False) + "\n",
    }
    capacities = [
        strict_json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "capacity").glob("*.json"))
    ]
    blocks = blocks_of(suite, found, whole, capacities)
    for page in to:
        files[page] = replace_blocks(page.read_text(encoding="utf-8"), blocks)
    if not to:
        files[folder / "tables.md"] = "\n\n".join(blocks.values()) + "\n"
    return files


def blocks_of(
    suite: Suite,
    found: Sequence[Standing],
    whole: Mapping[str, Any],
    capacities: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Return the blocks of the pages by name."""
    made = {
        pages.SCOREBOARD: pages.scoreboard(suite, found),
        pages.SHORT_SCOREBOARD: pages.short_scoreboard(suite, found),
        goals.GOALS: goals.goals(suite, found),
        goals.ACROSS: goals.across(found),
        pages.OVER_ALL: pages.over_all(whole),
        pages.CAPACITY: pages.capacity(capacities),
        pages.SCENARIOS: pages.scenarios(suite, found),
    }
    return {name: f"\n{text}\n" for name, text in made.items()}


def write(files: Mapping[Path, str]) -> None:
    """Write files whose content changes, each as a whole."""
    for path, text in files.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def differing(files: Mapping[Path, str]) -> list[Path]:
    """Return the files that are not what the records make of them."""
    return [
        path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def states(cells: Iterable[Cell], store: Store) -> dict[str, dict[str, int]]:
    """Return per scenario how many cells are ``done``, ``stale`` and ``missing``."""
    found: dict[str, dict[str, int]] = {}
    for cell in cells:
        counts = found.setdefault(cell.entry, {"done": 0, "stale": 0, "missing": 0})
        counts[store.state(cell)] += 1
    return found


def wanted(suite: Suite, records: Iterable[Record]) -> dict[str, set[tuple[str, int]]]:
    """Return the places of records that belong to schedulers of a benchmark as it is now, by scenario."""
    contests = {contest.name: contest for contest in suite.contests()}
    found: dict[str, set[tuple[str, int]]] = {}
    for record in records:
        contest = contests.get(record.entry)
        if contest is None:
            raise BenchmarkError(f"records of {record.entry!r}, which the benchmark has not: delete the file")
        if contest.schedulers.get(record.name, ("", ""))[1] == record.scheduler:
            found.setdefault(record.entry, set()).add((record.name, record.seed))
    return found
