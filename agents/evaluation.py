"""Paired evaluation: every scheduler plays the same episodes; results are means with bootstrap intervals."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dsd_env
from agents.environments import engine_for
from agents.identity import digests_of, key_of
from agents.processes import as_they_end, workers
from agents.rollouts import BySchedulers, play
from dsd_env.changes import changed_scenario
from dsd_env.files import append_json_line
from dsd_env.history import recorded
from dsd_env.paired import RESAMPLES, bootstrap_mean, bootstrap_ratio, evaluation_seeds
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario
from dsd_env.scenario.measuring import measuring, steady
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.adaptive import stopping_rule
from dsd_env.sim.metrics import metric_names
from dsd_env.similar import hint, metrics_like
from dsd_env.whole_runs.runs import fast_runs

SIDE_BY_SIDE = 4
"""Number of episodes that one process simulates at the same time."""

TABLE_METRICS = (
    "e2e_s_mean",
    "e2e_s_p95",
    "ttft_s_mean",
    "tpot_s_mean",
    "throughput_tokens_per_s",
    "goodput_requests_per_s",
    "slo_attainment",
    "acceptance_rate",
    "block_efficiency",
    "cloud_usd_per_1m_tokens",
    "cost_usd_per_1m_tokens",
    "load",
)
"""Metrics that the terminal shows; the JSON file holds every metric."""


class EvaluationError(RuntimeError):
    """A simulation failed; the message names scenario, scheduler and seed."""


@dataclass(frozen=True)
class Task:
    """One simulation of an evaluation.

    Attributes:
        label: Name of the scenario as the user gave it.
        scenario: The scenario.
        scheduler: Name of the scheduler.
        seed: Episode seed.
        key: Digest of everything that the result depends on.
    """

    label: str
    scenario: Scenario
    scheduler: str
    seed: int
    key: str


def plan(
    scenarios: Sequence[str],
    schedulers: Sequence[str],
    seeds: int,
    requests: int | None = None,
    *,
    cycles: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Task]:
    """Return every simulation of an evaluation, seeds innermost.

    Args:
        scenarios: Names or paths of scenarios.
        schedulers: Names of schedulers, e.g. ``jsq_goodput`` or ``policy:DIR``.
        seeds: Number of evaluation seeds.
        requests: Number of requests to measure per episode, instead of the number or the window that the
            scenario sets.
        cycles: Number of load cycles to measure instead, after a warm-up; see
            :func:`dsd_env.scenario.measuring.steady`.
        changes: Overrides of scenario keys, by dotted key.

    Raises:
        dsd_env.scenario.ScenarioError: A scenario is not valid.
        ValueError: A scheduler is unknown, a policy cannot be loaded, no scenario or scheduler is named, or
            one is named twice.
    """
    for what, names in (("scenario", scenarios), ("scheduler", schedulers)):
        if not names:
            raise ValueError(f"name at least one {what}")
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"{what} named twice: {', '.join(twice)}")
    tasks = []
    for label in scenarios:
        scenario = changed_scenario(label, changes or {})
        if requests is not None:
            scenario = measuring(scenario, requests)
        elif cycles is not None:
            scenario = steady(scenario, cycles)
        for scheduler in schedulers:
            tasks += tasks_of(label, scenario, scheduler, evaluation_seeds(seeds))
    return tasks


def tasks_of(label: str, scenario: Scenario, scheduler: str, seeds: Sequence[int]) -> list[Task]:
    """Return the simulations of one scenario and scheduler, one per seed.

    Raises:
        ValueError: The scheduler is unknown, or the policy does not fit the scenario.
    """
    # Report a wrong name or an unfit policy now, not after an hour of simulation.
    make_scheduler(scheduler).reset(scenario, 0)
    common = digests_of(scenario, scheduler)
    return [Task(label, scenario, scheduler, seed, key_of(*common, seed)) for seed in seeds]


def check_metrics(names: Sequence[str], scenario: Scenario) -> None:
    """Check, before any simulation, that episodes of a scenario have the given metrics.

    Raises:
        ValueError: A metric does not exist; the message has similar names, or else all names.
    """
    known = metric_names(scenario)
    if unknown := [name for name in names if name not in known]:
        likes = metrics_like(unknown, known)
        # With similar names at hand, do not list all two hundred.
        rest = "docs/simulator.md has all of them" if likes else f"There are: {', '.join(known)}"
        raise ValueError(f"no metric {', '.join(unknown)}{hint(likes)} {rest}")


def run_group(tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, float]]]:
    """Run simulations of one scenario and scheduler side by side; yield each with its metrics as it ends.

    The simulations run on the compiled engine if it is installed and simulates the scenario. The metrics
    equal those of :func:`dsd_env.simulate`, bit for bit.

    Raises:
        EvaluationError: A simulation failed.
    """
    label, scenario, scheduler = tasks[0].label, tasks[0].scenario, tasks[0].scheduler
    by_seed = {task.seed: task for task in tasks}
    try:
        kind, decide = engine_for(scenario), BySchedulers(scheduler)
        fast = fast_runs(tasks, compiled=kind == "compiled")
        if fast is not None:
            yield from fast
            return
        if stopping_rule(make_scheduler(scheduler)) is not None:
            # The scheduler ends drafts by its own thresholds, which the action lists may lack.
            for task in tasks:
                yield task, dsd_env.simulate(scenario, scheduler, task.seed, engine=kind).metrics
            return
        for episode in play(scenario, list(by_seed), decide, kind=kind, side_by_side=SIDE_BY_SIDE):
            yield by_seed[episode.seed], episode.metrics
    except Exception as error:
        seeds = ", ".join(map(str, by_seed))
        where = f"scenario {label!r}, scheduler {scheduler!r}, seed{'s' * (len(by_seed) > 1)} {seeds}"
        raise EvaluationError(f"{where}: {type(error).__name__}: {error}") from error


def _run_group_at_once(tasks: Sequence[Task]) -> list[tuple[Task, dict[str, float]]]:
    return list(run_group(tasks))


def groups_of(tasks: Sequence[Task], most: int) -> list[list[Task]]:
    """Return the tasks, in order, in groups of at most ``most`` with one scenario and scheduler each."""
    groups: list[list[Task]] = []
    for _, same in itertools.groupby(tasks, key=lambda task: (task.label, task.scheduler)):
        members = list(same)
        groups += [members[at : at + most] for at in range(0, len(members), most)]
    return groups


def run_all(tasks: Sequence[Task], jobs: int, on_result: Callable[[Task, dict[str, float]], None]) -> None:
    """Run tasks in this process or in several, and pass on each result as it arrives.

    Args:
        tasks: The tasks to run.
        jobs: Number of processes; 1 runs the tasks in this process.
        on_result: Function called with each result, in this process.

    Raises:
        EvaluationError: A simulation failed; the results before it have been passed on.
    """
    if jobs <= 1:
        for group in groups_of(tasks, len(tasks)):
            for task, metrics in run_group(group):
                on_result(task, metrics)
        return
    _leave_cores_to_processes()
    with closing(as_they_end(jobs, _run_group_at_once, groups_of(tasks, SIDE_BY_SIDE))) as ended:
        for _, results in ended:
            for task, metrics in results:
                on_result(task, metrics)


def _leave_cores_to_processes() -> None:
    # Thread pools of the numerical libraries would compete with the processes for cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


class PartialResults:
    """Results of finished simulations in a sidecar file, so that an interrupted evaluation loses nothing.

    Each result is one JSON line, keyed by the digest of everything it depends on, so that results of other
    settings cannot be mistaken for it.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the results in the file, if it exists; ``path`` None keeps results in memory only."""
        self.path = path
        self.results: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    data = json.loads(line)
                    metrics = {str(name): _float(value) for name, value in data["metrics"].items()}
                    self.results[str(data["key"])] = metrics
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a line that an interrupt cut short

    def add(self, task: Task, metrics: Mapping[str, float]) -> None:
        """Keep a result; it is on disk when this method returns."""
        self.results[task.key] = dict(metrics)
        if self.path is None:
            return
        kept = {name: _json(value) for name, value in metrics.items()}
        append_json_line(self.path, {"key": task.key, "metrics": kept})

    def discard(self) -> None:
        """Delete the sidecar file, once the final file holds everything."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def histories_of(tasks: Sequence[Task], jobs: int = 1) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Simulate the first episode of each scenario and scheduler, and yield its history.

    A history holds load, decisions and latencies over time; see :mod:`dsd_env.history`. Every decision is
    asked of the scheduler, so for a static rule this takes longer than computing metrics.

    Args:
        tasks: The tasks of the evaluation.
        jobs: Number of processes; 1 runs the simulations in this process.

    Raises:
        EvaluationError: A simulation failed.
    """
    firsts = [first for first, *_ in groups_of(tasks, len(tasks))]
    if jobs <= 1 or len(firsts) <= 1:
        for first in firsts:
            yield first, _history_of(first)
        return
    _leave_cores_to_processes()
    with workers(min(jobs, len(firsts))) as pool:
        futures = [pool.submit(_history_of, first) for first in firsts]
        for first, future in zip(firsts, futures, strict=True):
            yield first, future.result()


def _history_of(task: Task) -> dict[str, Any]:
    try:
        _, history = recorded(task.scenario, task.scheduler, task.seed)
    except Exception as error:
        raise EvaluationError(
            f"history of scenario {task.label!r}, scheduler {task.scheduler!r}, seed {task.seed}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return history


def summarise(
    tasks: Sequence[Task],
    results: Mapping[str, Mapping[str, float]],
    metadata: Mapping[str, Any],
    histories: Mapping[str, Mapping[str, Any]] | None = None,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Return the content of the JSON file: mean and interval of each metric, by scenario and scheduler.

    Args:
        tasks: The tasks of the evaluation.
        results: Metrics of all tasks, by task key.
        metadata: Further metadata to record.
        histories: Histories of episodes by task key, for some tasks or none.
        names: Names of schedulers by specification; default: the specification itself.

    Returns:
        A JSON-ready dict; NaN has become null.
    """
    values: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    contents: dict[str, Scenario] = {}
    for task in tasks:
        contents[task.label] = task.scenario
        values.setdefault(task.label, {}).setdefault(task.scheduler, []).append(results[task.key])
    seeds = list(dict.fromkeys(task.seed for task in tasks))
    kept = {(task.label, task.scheduler): (histories or {}).get(task.key) for task in reversed(tasks)}
    summary: dict[str, Any] = {"metadata": {**metadata, "seeds": seeds, "ci95": CI_METHOD}, "scenarios": {}}
    for label, by_scheduler in values.items():
        first = next(iter(by_scheduler))
        measured = list(by_scheduler[first][0])
        schedulers: dict[str, dict[str, Any]] = {}
        for scheduler, rows in by_scheduler.items():
            called = (names or {}).get(scheduler, scheduler)
            metrics, versus = {}, {}
            for name in measured:
                own = np.array([row[name] for row in rows], dtype=np.float64)
                mean, low, high = bootstrap_mean(own)
                metrics[name] = {
                    "mean": _json(mean),
                    "ci95": [_json(low), _json(high)],
                    **_within(rows, name),
                    "per_seed": [_json(x) for x in own.tolist()],
                }
                base = np.array([row[name] for row in by_scheduler[first]], dtype=np.float64)
                change, low, high = bootstrap_ratio(own, base)
                versus[name] = {"relative": _json(change), "ci95": [_json(low), _json(high)]}
            schedulers[called] = {"specification": scheduler, "metrics": metrics}
            if scheduler != first:
                base_name = (names or {}).get(first, first)
                schedulers[called]["versus"] = {"scheduler": base_name, "metrics": versus}
            if history := kept[label, scheduler]:
                schedulers[called]["history"] = history
        reference = scenario_ref(contents[label])
        summary["scenarios"][label] = {
            "scenario": reference.model_dump(),
            "requests": contents[label].episode.requests,
            "warmup_s": contents[label].episode.warmup_s,
            "window_s": contents[label].episode.window_s,
            "load_cycles": contents[label].load_cycles,
            "schedulers": schedulers,
        }
    return summary


DRIFT = 4.0
"""Drift from which it is reported: difference between a window's halves, over its standard error."""


def _within(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, float | None]:
    """Return a metric's standard error and drift, both of the mean over seeds, from parts of the windows.

    A drift of :data:`DRIFT` or more means that the halves of the window differ by more than chance: the
    warm-up was too short, or the system does not reach a steady state.
    """
    if f"{name}_se" not in rows[0]:
        return {}
    errors = np.array([row[f"{name}_se"] for row in rows])
    drifts = np.array([row[f"{name}_drift"] for row in rows])
    errors, drifts = errors[np.isfinite(errors)], drifts[np.isfinite(drifts)]
    se = math.sqrt(float((errors**2).sum())) / len(errors) if len(errors) else math.nan
    drift = float(drifts.sum()) / math.sqrt(len(drifts)) if len(drifts) else math.nan
    return {"se_batches": _json(se), "drift": _json(drift)}


CI_METHOD = f"percentile bootstrap over seeds, {RESAMPLES} resamples, fixed generator seed; null if < 2 seeds"


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
