"""Records of a benchmark as a report: every scenario with its schedulers, episode by episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.config import BenchmarkError, Contest, Suite
from agents.benchmark.records import Record, Store
from agents.benchmark.scoring import rounded
from dsd_env.files import sha256_of, write_text
from dsd_env.paired import RESAMPLES, bootstrap_mean, bootstrap_ratio
from dsd_env.report import report_html
from dsd_env.report.reading import Evaluation, Source

_CI = f"percentile bootstrap over seeds, {RESAMPLES} resamples, fixed generator seed; null if < 2 seeds"


def write_report(suite: Suite, store: Store, out: Path) -> int:
    """Write a report of all records of a benchmark; return its size in bytes.

    Args:
        suite: The benchmark; its baseline is what differences are taken from.
        store: Its records.
        out: The HTML file.

    Raises:
        BenchmarkError: There are no records.
        OSError: The file cannot be written.
    """
    sources = []
    for contest in suite.contests():
        found = evaluation(
            contest, store.records(contest.name), store.about(contest.name) or {}, suite.baseline
        )
        path = store.folder / f"{contest.name}.json"
        if found is not None:
            sources.append(Source(str(path), sha256_of(path), found))
    if not sources:
        raise BenchmarkError(f"{store.folder}: there are no records to report")
    text = report_html(sources, suite.title)
    write_text(out, text)
    return len(text.encode("utf-8"))


def evaluation(
    contest: Contest, records: Iterable[Record], about: Mapping[str, Any], baseline: str | None
) -> Evaluation | None:
    """Return what an evaluation of one scenario would hold; None without records.

    Args:
        contest: The scenario.
        records: Its records; those of schedulers that it has no more are left out.
        about: What the file of records says of itself.
        baseline: Name of the scheduler that the others are compared with; without records of it, the first.
    """
    by_name: dict[str, dict[int, Record]] = {}
    for record in records:
        if contest.schedulers.get(record.name, ("", None))[1] == record.scheduler:
            by_name.setdefault(record.name, {})[record.seed] = record
    names = sorted(
        (name for name in contest.schedulers if name in by_name), key=lambda name: name != baseline
    )
    if not names:
        return None
    seeds = sorted({seed for of_seeds in by_name.values() for seed in of_seeds})
    first = _columns(by_name[names[0]], seeds)
    schedulers = {}
    for name in names:
        own = _columns(by_name[name], seeds)
        entry: dict[str, Any] = {
            "specification": contest.schedulers[name][1],
            "metrics": {metric: _value(values) for metric, values in own.items()},
        }
        if name != names[0]:
            changes = {metric: _change(own[metric], first[metric]) for metric in own if metric in first}
            entry["versus"] = {"scheduler": names[0], "metrics": changes}
        schedulers[name] = entry
    scenario = {
        "scenario": about.get("scenario", {"name": contest.source}),
        "warmup_s": about.get("warmup_s", 0.0),
        "window_s": about.get("window_s"),
        "load_cycles": contest.cycles,
        "schedulers": schedulers,
    }
    metadata = {
        "seeds": seeds,
        "ci95": _CI,
        "git_commit": about.get("git_commit"),
        "versions": about.get("versions", {}),
        "made_by": "benchmark_suite.py",
    }
    return Evaluation.model_validate({"metadata": metadata, "scenarios": {contest.name: scenario}})


def _columns(of_seeds: Mapping[int, Record], seeds: list[int]) -> dict[str, NDArray[np.float64]]:
    """Return each metric that all records keep, one value per seed, NaN where there is no record."""
    kept = [set(record.metrics) for record in of_seeds.values()]
    metrics = [name for name in next(iter(of_seeds.values())).metrics if all(name in each for each in kept)]
    return {
        name: np.array([of_seeds[seed].metrics[name] if seed in of_seeds else np.nan for seed in seeds])
        for name in metrics
    }


def _value(values: NDArray[np.float64]) -> dict[str, Any]:
    mean, low, high = map(rounded, bootstrap_mean(values))
    return {"mean": mean, "ci95": [low, high], "per_seed": [rounded(value) for value in values.tolist()]}


def _change(own: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    relative, low, high = map(rounded, bootstrap_ratio(own, base))
    return {"relative": relative, "ci95": [low, high]}
