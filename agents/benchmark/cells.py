"""Single simulations of a benchmark, in the order in which they are worth running."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import dsd_env
from agents.benchmark.config import ROLES, BenchmarkError, Contest, Role, Suite
from agents.identity import digests_of, key_of
from dsd_env.paired import EVALUATION_SEEDS, evaluation_seeds
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler

ROOT = Path(dsd_env.__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """One simulation.

    Attributes:
        entry: Name of the scenario in the benchmark.
        scenario: Its content, with the window that is measured.
        name: Name of the scheduler in the benchmark.
        scheduler: Its specification, as the registry reads it.
        role: What it is.
        seed: Episode seed.
        inputs: Digest of all that the result depends on.
        metrics: What its record keeps.
    """

    entry: str
    scenario: Scenario
    name: str
    scheduler: str
    role: Role
    seed: int
    inputs: str
    metrics: tuple[str, ...]


def located(spec: str, beside: Path | None = None) -> str:
    """Return a specification whose file is found: beside what names it, from here, or from the checkout.

    Args:
        spec: The specification.
        beside: Folder of the file that names it, if any.
    """
    name, colon, argument = spec.partition(":")
    if name in ("policy", "table"):
        for folder in (beside, Path(), ROOT):
            if folder is not None and (folder / argument).exists():
                return f"{name}{colon}{folder / argument}"
    return spec


def cells_of(
    contest: Contest, scenario: Scenario, name: str, seeds: Sequence[int], beside: Path | None = None
) -> list[Cell]:
    """Return the simulations of one scheduler of a contest.

    Args:
        contest: The contest.
        scenario: Its scenario.
        name: The scheduler's name in it.
        seeds: Evaluation seeds.
        beside: Where a bundle's or table's relative path begins, before the current folder and the checkout.

    Raises:
        BenchmarkError: The scheduler is unknown or does not fit, or a seed is not an evaluation seed.
    """
    role, given = contest.schedulers[name]
    spec = located(given, beside)
    if foreign := [seed for seed in seeds if seed not in EVALUATION_SEEDS]:
        raise BenchmarkError(f"seeds {foreign}: evaluation seeds begin at {EVALUATION_SEEDS.start}")
    try:
        # A wrong name or an unfit policy shows now, not after an hour.
        make_scheduler(spec).reset(scenario, 0)
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"scenarios.{contest.name}, scheduler {name!r} = {given!r}: {error}") from error
    common = [dsd_env.__version__, *digests_of(scenario, spec)]
    metrics = contest.metrics(scenario)
    return [
        Cell(
            entry=contest.name,
            scenario=scenario,
            name=name,
            scheduler=spec,
            role=role,
            seed=seed,
            inputs=key_of(*common, seed),
            metrics=metrics,
        )
        for seed in seeds
    ]


def plan(
    suite: Suite,
    *,
    seeds: int | None = None,
    entries: Collection[str] = (),
    schedulers: Collection[str] = (),
    on_contest: Callable[[str], None] = lambda name: None,
) -> list[Cell]:
    """Return the simulations of a benchmark, those first that tell most for their time.

    Static choices come before rules, and rules before policies; among those, every scheduler's first seed
    before any second one, so that a benchmark that is broken off compares on few seeds.

    Args:
        suite: The benchmark.
        seeds: Only so many seeds.
        entries: Only these scenarios, if any are named.
        schedulers: Only these schedulers, by name, if any are named.
        on_contest: Called with the name of each scenario before it is prepared.

    Raises:
        BenchmarkError: A name is unknown, or a scheduler does not fit.
    """
    contests = suite.contests()
    known = {name for contest in contests for name in contest.schedulers}
    for what, named, all_names in (
        ("scenario", entries, set(suite.scenarios)),
        ("scheduler", schedulers, known),
    ):
        if unknown := [name for name in named if name not in all_names]:
            has = ", ".join(sorted(all_names))
            close = difflib.get_close_matches(unknown[0], sorted(all_names), n=1)
            meant = f"; did you mean {close[0]!r}? It has" if close else "; it has"
            raise BenchmarkError(f"no {what} {', '.join(map(repr, unknown))} in the benchmark{meant} {has}")
    chosen = evaluation_seeds(min(seeds or suite.seeds, suite.seeds))
    cells: list[Cell] = []
    for contest in contests:
        if entries and contest.name not in entries:
            continue
        on_contest(contest.name)
        scenario = contest.load()
        for name in contest.schedulers:
            if not schedulers or name in schedulers:
                cells += cells_of(contest, scenario, name, chosen)
    order = {role: number for number, role in enumerate(ROLES)}
    return sorted(cells, key=lambda cell: (order[cell.role], cell.seed))
