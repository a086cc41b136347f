"""What a report shows of its results: plain data for the page, numbers as they stand in the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsd_env.report.reading import (
    CapacitySearch,
    Evaluated,
    Evaluation,
    Metadata,
    Probe,
    ReportError,
    Run,
    Scheduler,
    Source,
    StaticSearch,
    StaticStudy,
)
from dsd_env.report.words import better, metric_words

SCOREBOARD = (
    "e2e_s_mean",
    "e2e_s_p95",
    "ttft_s_mean",
    "tpot_s_mean",
    "goodput_requests_per_s",
    "slo_attainment",
    "throughput_tokens_per_s",
    "cloud_usd_per_1m_tokens",
    "energy_j_per_1k_tokens",
)
"""The metrics of the scoreboard; the figures show every one."""

_NOT_SHOWN = ("_se", "_drift")
"""Metrics that say something about other metrics, with which they are shown."""


def content(sources: Sequence[Source]) -> dict[str, Any]:
    """Return what a report shows.

    Args:
        sources: The results.

    Raises:
        ReportError: There are none.
    """
    if not sources:
        raise ReportError("a report needs at least one result")
    evaluations: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    capacities: list[dict[str, Any]] = []
    for source in sources:
        match source.result:
            case Evaluation() as evaluation:
                evaluations += _evaluated(source, evaluation)
            case Run() as run:
                runs.append(_run(source, run))
            case StaticSearch() as search:
                searches += [
                    _static(source, label, study, search.command) for label, study in search.scenarios.items()
                ]
            case CapacitySearch() as found:
                capacities.append(_capacity(source, found))
    names = {name for one in evaluations for name in one["metrics"]}
    names |= {name for one in runs for name in one["curves"]}
    return {
        "evaluations": _told_apart(evaluations),
        "runs": _told_apart(runs),
        "searches": _told_apart(searches),
        "capacities": _told_apart(capacities),
        "metrics": {name: {"words": metric_words(name), "better": better(name)} for name in sorted(names)},
        "selection": list(SCOREBOARD),
        "sources": [_provenance(source) for source in sources],
    }


def _told_apart(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give entries of one label the names of their files, and numbers where those are equal, too."""
    labels = [entry["label"] for entry in entries]
    for entry in entries:
        if labels.count(entry["label"]) > 1:
            entry["label"] = f"{entry['label']} ({entry['file']})"
    seen: dict[str, int] = {}
    for entry in entries:
        seen[entry["label"]] = seen.get(entry["label"], 0) + 1
        if (number := seen[entry["label"]]) > 1:
            entry["label"] += f" #{number}"
    return entries


def _evaluated(source: Source, evaluation: Evaluation) -> list[dict[str, Any]]:
    metadata = evaluation.metadata
    return [
        {
            "label": label,
            "file": source.path,
            "measured": _measured(evaluated, metadata),
            "window": _window(evaluated),
            "seeds": list(metadata.seeds),
            "ci95": metadata.ci95,
            "baseline": next(iter(evaluated.schedulers)),
            "metrics": _metric_names(evaluated),
            "schedulers": [_scheduler(name, entry) for name, entry in evaluated.schedulers.items()],
        }
        for label, evaluated in evaluation.scenarios.items()
    ]


def _measured(evaluated: Evaluated, metadata: Metadata) -> str:
    """Return in words what was measured."""
    n = len(metadata.seeds)
    episodes = f"{n} episode{'s' * (n > 1)} for each scheduler, the same for all"
    if evaluated.window_s is not None:
        cycles = evaluated.load_cycles
        of_load = f" ({cycles} load cycle{'s' * (cycles > 1)})" if cycles else ""
        return f"{episodes}; {evaluated.window_s:g} s{of_load} after {evaluated.warmup_s:g} s of warm-up"
    return f"{episodes}" + (f"; {evaluated.requests} requests" if evaluated.requests else "")


def _window(evaluated: Evaluated) -> list[float] | None:
    """Return when the measured window begins and ends; None if requests are measured by number."""
    if evaluated.window_s is None:
        return None
    return [evaluated.warmup_s, evaluated.warmup_s + evaluated.window_s]


def _metric_names(evaluated: Evaluated) -> list[str]:
    """Return the metrics that at least one scheduler has a value of, in order."""
    names: dict[str, None] = {}
    for entry in evaluated.schedulers.values():
        for name, value in entry.metrics.items():
            if value.mean is not None and not name.endswith(_NOT_SHOWN):
                names[name] = None
    return list(names)


def _scheduler(name: str, entry: Scheduler) -> dict[str, Any]:
    changes = entry.versus.metrics if entry.versus else {}
    return {
        "name": name,
        "specification": entry.specification or name,
        "metrics": {
            metric: {"mean": value.mean, "ci95": list(value.ci95), "per_seed": list(value.per_seed)}
            for metric, value in entry.metrics.items()
            if value.mean is not None and not metric.endswith(_NOT_SHOWN)
        },
        "versus": {
            metric: {"relative": change.relative, "ci95": list(change.ci95)}
            for metric, change in changes.items()
            if change.relative is not None and not metric.endswith(_NOT_SHOWN)
        },
        "history": entry.history.model_dump(mode="json") if entry.history else None,
    }


def _run(source: Source, run: Run) -> dict[str, Any]:
    return {
        "label": Path(source.path).name or source.path,
        "file": source.path,
        "steps": list(run.steps),
        "curves": {
            name: list(values)
            for name, values in run.curves.items()
            if any(value is not None for value in values)
        },
        "best_step": run.best_step,
    }


def _static(source: Source, label: str, study: StaticStudy, command: str) -> dict[str, Any]:
    return {
        "label": label,
        "file": source.path,
        "command": command,
        "best_for_all": study.best_for_all,
        "best_per_class": study.best_per_class,
        "uniform": [
            {"choice": name, **choice, "e2e_s_mean": value}
            for name, value in study.uniform_e2e_s.items()
            if value is not None and (choice := _choice(name))
        ],
        "table": [row.model_dump(mode="json") for row in study.table],
    }


def _capacity(source: Source, found: CapacitySearch) -> dict[str, Any]:
    def shown(probe: Probe | None) -> dict[str, Any] | None:
        return None if probe is None else probe.model_dump(mode="json")

    return {
        "label": found.scenario,
        "file": source.path,
        "unit": found.scaled,
        "share": found.share,
        "tolerance": found.tolerance,
        "seeds": found.seeds,
        "window_s": found.window_s,
        "warmup_s": found.warmup_s,
        "schedulers": [
            {
                "name": name,
                "best": shown(one.best),
                "above": shown(one.above),
                # A closed loop has whole clients: two factors may be the same load.
                "probes": [shown(probe) for probe in sorted(one.probes, key=lambda probe: probe.offered)],
            }
            for name, one in found.schedulers.items()
        ],
    }


def _choice(name: str) -> dict[str, Any] | None:
    """Return place and window of a choice ``static:GAMMA:B:PLACE``; None of anything else."""
    kind, _, rest = name.partition(":")
    gamma, _, rest = rest.partition(":")
    place = rest.partition(":")[2]
    return {"gamma": int(gamma), "place": place} if kind == "static" and gamma.isdecimal() and place else None


def _provenance(source: Source) -> dict[str, Any]:
    """Return where a result comes from, as name and text."""
    facts: dict[str, str] = {"SHA-256": source.sha256}
    match source.result:
        case Evaluation(metadata=metadata) as evaluation:
            kind = "evaluation"
            made_by = " ".join(metadata.command) if metadata.command else metadata.made_by
            facts |= _known(made_by, metadata.created, metadata.git_commit, metadata.versions)
            if metadata.ci95:
                facts["intervals"] = metadata.ci95
            facts["seeds"] = _seeds(metadata.seeds)
            for label, evaluated in evaluation.scenarios.items():
                if evaluated.scenario.sha256:
                    facts[f"scenario {label}"] = evaluated.scenario.sha256
        case Run(starts=starts):
            kind = "training run"
            for number, start in enumerate(starts, start=1):
                which = f"start {number}: " if len(starts) > 1 else ""
                told = _known(" ".join(start.arguments), start.time, start.git_commit, start.versions)
                facts |= {f"{which}{name}": text for name, text in told.items()}
        case StaticSearch(command=command):
            kind = "search for static choices"
            facts |= _known(command, None, None, {})
        case CapacitySearch(metadata=made):
            kind = "search for capacities"
            called = " ".join(made.command) if made.command else None
            facts |= _known(called, made.created, made.git_commit, made.versions)
    return {"file": source.path, "kind": kind, "facts": facts}


def _known(command: str | None, created: str | None, commit: str | None, versions: Any) -> dict[str, str]:
    facts = {
        "made by": command,
        "on": created,
        "commit": commit,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: text for name, text in facts.items() if text}


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds[:20])) + (", …" if len(seeds) > 20 else "")
