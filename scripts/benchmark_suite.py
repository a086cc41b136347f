"""Run the benchmark: scenarios x schedulers x held-out episodes, and write its tables.

    python scripts/benchmark_suite.py --jobs 2
    python scripts/benchmark_suite.py --summary

What is finished is kept: the same command continues after an interrupt, and simulates anew what other code,
scenarios or schedulers have made stale. With --ray the cells run on a cluster, with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout
import _cli

if TYPE_CHECKING:
    from agents.benchmark.cells import Cell
    from agents.benchmark.config import Contest, Suite
    from agents.benchmark.records import Record, Store
    from agents.benchmark.running import Outcome
    from agents.benchmark.workflow import Report

SHIPPED = "core"
"""The benchmark whose results lie in the checkout."""
SAMPLE = 12
"""Cells that are simulated to verify a submission, unless another number is asked for."""
DRIFT = 4.0
"""Standard errors between a window's halves from which on it is told."""

_PART = ("scenarios", "schedulers", "seeds")
_WITHOUT_MEANING: dict[str | None, tuple[str, ...]] = {
    None: ("sample",),
    "status": ("sample", "report"),
    "adopt": ("sample",),
    "summary": (*_PART, "sample"),
    "check": (*_PART, "sample", "report"),
    "prune": (*_PART, "sample"),
    "submit": ("suite", "out", *_PART, "sample", "report"),
    "verify": ("suite", "out", *_PART, "report"),
}
"""Options that mean nothing, by what is done; None: to simulate what is missing."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = whole.add_argument
    add("--suite", metavar="S", help="name or YAML file of a benchmark (default core)")
    add("--out", type=Path, metavar="DIR", help="folder of records (default for core: benchmark/)")
    add("--jobs", type=int, default=1, metavar="J", help="processes, one thread each (default 1)")
    add("--ray", metavar="ADDRESS", help="a Ray cluster: its head's address, auto, or local (extra cluster)")
    add("--scenarios", metavar="A,B", help="only these of the benchmark")
    add("--schedulers", metavar="X,Y", help="only these, by their names in the benchmark")
    add("--seeds", type=int, metavar="N", help="only the first N episodes of each")
    add("--sample", type=int, metavar="K", help=f"cells that --verify simulates (default {SAMPLE})")
    add("--report", type=Path, metavar="FILE", help="at the end also write all records as an HTML page")
    add = whole.add_mutually_exclusive_group().add_argument
    add("--summary", action="store_true", help="simulate nothing; write summary and tables of the records")
    add("--check", action="store_true", help="simulate nothing; fail if these are not what the records say")
    add("--status", action="store_true", help="say how many cells are done, stale and missing")
    add("--prune", action="store_true", help="forget records of schedulers that the benchmark has no more")
    add(
        "--adopt",
        action="store_true",
        help="replay one stale record of each; keep the rest if it is the same",
    )
    add("--submit", type=Path, metavar="FILE", help="simulate what a submission enters")
    add("--verify", type=Path, metavar="FILE", help="check a submission, and replay a sample of it")
    return whole


def main() -> int:
    """Run the command line; return the exit status."""
    whole = parser()
    arguments = whole.parse_args()
    _cli.at_least_one(whole, arguments, ("jobs", "seeds", "sample"))
    if arguments.ray is not None and arguments.jobs != 1:
        whole.error("--jobs and --ray: processes of this machine, or a cluster")
    _check_options(whole, arguments)
    from agents.benchmark.config import BenchmarkError
    from dsd_env.scenario import ScenarioError

    def work() -> int:
        if arguments.verify:
            return _verify(arguments)
        if arguments.out is None and arguments.suite not in (None, SHIPPED):
            whole.error(f"--suite {arguments.suite} needs --out: benchmark/ holds the results of {SHIPPED}")
        folder = arguments.out or _checkout.ROOT / "benchmark"
        if arguments.submit:
            folder = arguments.submit.parent
        if arguments.check or arguments.status:
            return _work(arguments, folder)
        return _cli.alone("benchmark_suite", folder / "results", lambda: _work(arguments, folder))

    return _cli.continuing("benchmark_suite", work, (BenchmarkError, ScenarioError, OSError))


def _check_options(whole: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a usage error if an option is given that would mean nothing."""
    done = next((name for name in _WITHOUT_MEANING if name and getattr(arguments, name)), None)
    for name in _WITHOUT_MEANING[done]:
        if getattr(arguments, name) is None:
            continue
        if done is None:
            whole.error(f"--{name} is for --verify alone")
        if name == "report":
            whole.error(f"--{done} writes no tables, and takes no --report")
        if done in ("submit", "verify"):
            whole.error(f"--{done} goes by the submission's file and takes no --{name}")
        whole.error(f"--{done} is for the whole benchmark and takes no --{name}")


def _work(arguments: argparse.Namespace, folder: Path) -> int:
    from agents.benchmark import workflow
    from agents.benchmark.cells import plan
    from agents.benchmark.config import load_suite
    from agents.benchmark.records import Store

    if arguments.submit:
        return _submit(arguments)
    suite = load_suite(arguments.suite or SHIPPED)
    store = Store(folder / "results")
    if arguments.check:
        return _check(suite, store, folder)
    if arguments.prune:
        keep = workflow.wanted(suite, store)
        dropped = sum(store.drop(name, keep.get(name, set())) for name in suite.scenarios)
        store.tidy({name: store.about(name) for name in suite.scenarios if store.about(name)})
        print(f"{dropped} records dropped")
    elif not arguments.summary:
        cells = plan(
            suite,
            seeds=arguments.seeds,
            entries=_names(arguments.scenarios),
            schedulers=_names(arguments.schedulers),
        )
        if arguments.status:
            return _status(cells, store)
        contests = {contest.name: contest for contest in suite.contests()}
        if arguments.adopt:
            _adopt(arguments, cells, contests, store)
            return _summarise(suite, store, folder, arguments.report)
        simulate = workflow.backend(arguments.jobs, arguments.ray)
        on_outcome = _bar(cells, store, _workers(arguments))
        report = workflow.run(cells, contests, store, simulate, on_outcome)
        _summarise(suite, store, folder, arguments.report)
        return 1 if _told(report) else 0
    return _summarise(suite, store, folder, arguments.report)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _workers(arguments: argparse.Namespace) -> int:
    if arguments.ray is None:
        return int(arguments.jobs)
    import os

    return os.cpu_count() or 1  # of a cluster it becomes known by how fast it goes


def _bar(
    cells: Sequence[Cell], store: Store, workers: int, others: Iterable[Record] = ()
) -> Callable[[Outcome], None]:
    """Return what moves a bar of progress that says about how long the rest will take.

    Args:
        cells: What is asked for.
        store: Its records.
        workers: How many work on it.
        others: Records of other schedulers, which tell how long scenarios take.
    """
    from tqdm import tqdm

    from agents.benchmark.progress import RestTime, in_words

    waiting = [cell for cell in cells if store.find(cell) is None]
    if len(waiting) < len(cells):
        print(f"{len(cells) - len(waiting)} of {len(cells)} cells were finished before")
    rest = RestTime([*others, *store], waiting, workers)
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"
    bar: Any = tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="benchmark", bar_format=form)

    if waiting:
        bar.set_postfix_str(f"about {in_words(rest.rest_s())} left")

    def on_outcome(outcome: Outcome) -> None:
        rest.done(outcome.cell, outcome.wall_s, failed=bool(outcome.failure))
        bar.set_postfix_str(f"about {in_words(rest.rest_s())} left", refresh=False)
        bar.update(1)
        if outcome.failure:
            cell = outcome.cell
            bar.write(f"{cell.entry}, {cell.name}, seed {cell.seed}: {outcome.failure}", file=sys.stderr)
        if bar.n >= bar.total:
            bar.close()

    return on_outcome


def _told(report: Report) -> bool:
    """Say which cells failed; return whether any did."""
    for cell, why in report.failures:
        print(f"benchmark_suite: {cell.entry}, {cell.name}, seed {cell.seed}: {why}", file=sys.stderr)
    return bool(report.failures)


def _pages(folder: Path) -> list[Path]:
    from agents.benchmark import workflow

    return list(workflow.PAGES) if folder.resolve() == workflow.FOLDER else []


def _summarise(suite: Suite, store: Store, folder: Path, report: Path | None = None) -> int:
    from agents.benchmark import pages, reports, workflow
    from agents.benchmark.scoring import standings

    files = workflow.texts(suite, store, folder, _pages(folder))
    workflow.write(files)
    for note in pages.drifting(standings(suite, store), DRIFT):
        print(note)
    for path in files:
        print(path)
    if report is not None:
        reports.write_report(suite, store, report)
        print(f"{report}: open it in a browser")
    return 0


def _check(suite: Suite, store: Store, folder: Path) -> int:
    from agents.benchmark import workflow
    from agents.benchmark.cells import plan

    texts = workflow.texts(suite, store, folder, _pages(folder))
    wrong = workflow.differing(texts)
    if not wrong:
        print(f"{len(texts)} files are what the records say")
    stale = sum(counts["stale"] for counts in workflow.states(plan(suite), store).values())
    if stale:
        print(
            f"{stale} records are of other code: benchmark_suite.py --adopt keeps those that a sample says "
            "are the same",
            file=sys.stderr,
        )
    for path in wrong:
        print(
            f"benchmark_suite: {path} is not what the records say: run benchmark_suite.py --summary",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def _status(cells: Sequence[Cell], store: Store) -> int:
    from agents.benchmark import workflow
    from agents.benchmark.progress import RestTime, in_words

    for name, counts in workflow.states(cells, store).items():
        print(f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    waiting = [cell for cell in cells if store.find(cell) is None]
    if waiting:
        rest = RestTime(list(store), waiting, 1)
        print(f"about {in_words(rest.rest_s())} of simulation to do")
    return 0


def _adopt(
    arguments: argparse.Namespace, cells: Sequence[Cell], contests: Mapping[str, Contest], store: Store
) -> None:
    from agents.benchmark import workflow

    simulate = workflow.backend(arguments.jobs, arguments.ray)
    for (entry, name), count in workflow.adopt(cells, contests, store, simulate).items():
        print(f"{entry}, {name}: {f'{count} records kept' if count else 'nothing kept'}")


def _submit(arguments: argparse.Namespace) -> int:
    from agents.benchmark import workflow
    from agents.benchmark.records import Store
    from agents.benchmark.submissions import submit

    others = list(Store(workflow.FOLDER / "results"))
    simulate = workflow.backend(arguments.jobs, arguments.ray)
    workers = _workers(arguments)
    report, digests = submit(
        arguments.submit, simulate, lambda cells, store: _bar(cells, store, workers, others)
    )
    if _told(report):
        return 1
    print(f"write this into {arguments.submit}:\nrecords:")
    for name, digest in digests.items():
        print(f"  {name}: {digest}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from agents.benchmark import workflow
    from agents.benchmark.submissions import load_submission, verify

    load_submission(arguments.verify)  # what is wrong with it shows before a bar does
    simulate = workflow.backend(arguments.jobs, arguments.ray)
    with tqdm(desc="replaying", unit=" cells") as bar:

        def on_plan(cells: Sequence[Cell]) -> Callable[[Outcome], None]:
            bar.reset(total=len(cells))
            return replayed

        def replayed(outcome: Outcome) -> None:
            bar.update(1)

        wrong = verify(arguments.verify, arguments.sample or SAMPLE, simulate, on_plan)
    for each in wrong:
        print(f"benchmark_suite: {each}", file=sys.stderr)
    if not wrong:
        print(f"{arguments.verify}: digests are right, and every cell of the sample gives the same numbers")
    return 1 if wrong else 0


if __name__ == "__main__":
    _cli.run(main)
