"""Paired evaluation: every scheduler on the same episodes, means with bootstrap intervals."""

from __future__ import annotations

import hashlib
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
from agents.identity import data_digest, engine_digest, scenario_digest, scheduler_digest
from agents.processes import as_they_end, workers
from agents.rollouts import BySchedulers, play
from dsd_env.changes import changed_scenario
from dsd_env.files import append_json_line
from dsd_env.history import recorded
from dsd_env.paired import RESAMPLES, bootstrap_mean, bootstrap_ratio, evaluation_seeds
from dsd_env.policy.manifest import canonical_json, scenario_ref
from dsd_env.scenario import Scenario
from dsd_env.scenario.measuring import measuring, steady
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.adaptive import stopping_rule
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.sim.metrics import metric_names
from dsd_env.similar import hint, metrics_like
from dsd_env.whole_runs.runs import fast_runs

SIDE_BY_SIDE = 4
"""Episodes that one process simulates at a time."""

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
"""What the terminal shows; the JSON file holds every metric."""


class EvaluationError(RuntimeError):
    """A simulation failed; the message names scenario, scheduler and seed."""


@dataclass(frozen=True)
class Task:
    """One simulation.

    Attributes:
        label: The scenario as the user named it.
        scenario: Its content.
        scheduler: Name of the scheduler.
        seed: Episode seed.
        key: Digest of all that the result depends on.
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
        scenarios: Names or paths.
        schedulers: Names, e.g. ``jsq_goodput`` or ``policy:DIR``.
        seeds: Number of evaluation seeds.
        requests: Measured requests per episode, instead of the scenario's own or its window.
        cycles: Measure so many cycles of the load, after a warm-up, instead; see
            :func:`dsd_env.scenario.measuring.steady`.
        changes: Other values for keys of the scenarios, by dotted key.

    Raises:
        dsd_env.scenario.ScenarioError: A scenario is not valid.
        ValueError: A scheduler is unknown, a policy cannot be loaded, or something is named twice.
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
        ValueError: The scheduler is unknown, or the policy does not fit.
    """
    # Complain about a wrong name or an unfit policy now, not after an hour.
    make_scheduler(scheduler).reset(scenario, 0)
    common = digests(scenario, scheduler)
    return [Task(label, scenario, scheduler, seed, key_of(*common, seed)) for seed in seeds]


def digests(scenario: Scenario, scheduler: str) -> list[str]:
    """Return what an episode's result depends on besides its seed: code, data, scenario and scheduler."""
    return [engine_digest(), data_digest(scenario), scenario_digest(scenario), scheduler_digest(scheduler)]


def key_of(*parts: Any) -> str:
    """Return the digest of parts that JSON can hold."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


def check_metrics(names: Sequence[str], scenario: Scenario) -> None:
    """Raise ValueError if a metric is not one that episodes have: before they run, not after.

    Raises:
        ValueError: With the names most like it, and those that there are.
    """
    known = metric_names(scenario)
    if unknown := [name for name in names if name not in known]:
        likes = metrics_like(unknown, known)
        # Among two hundred names nobody finds the one that is meant.
        rest = "docs/simulator.md has all of them" if likes else f"There are: {', '.join(known)}"
        raise ValueError(f"no metric {', '.join(unknown)}{hint(likes)} {rest}")


def run_group(tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, float]]]:
    """Run simulations of one scenario and scheduler side by side; yield each with its metrics as it ends.

    On the compiled engine, if it is installed and simulates this scenario: the metrics are the same, bit for
    bit, as those of :func:`dsd_env.simulate`.

    Raises:
        EvaluationError: One failed.
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
            # It ends drafts by thresholds of its own, for which no action need stand.
            for task in tasks:
                yield task, dsd_env.simulate(scenario, scheduler, task.seed, engine=kind).metrics
            return
        places = _room_for(scheduler, scenario) if kind == "compiled" else None
        for episode in play(
            scenario, list(by_seed), decide, kind=kind, side_by_side=SIDE_BY_SIDE, n_placements=places
        ):
            yield by_seed[episode.seed], episode.metrics
    except Exception as error:
        seeds = ", ".join(map(str, by_seed))
        where = f"scenario {label!r}, scheduler {scheduler!r}, seed{'s' * (len(by_seed) > 1)} {seeds}"
        raise EvaluationError(f"{where}: {type(error).__name__}: {error}") from error


def _room_for(scheduler: str, scenario: Scenario) -> int | None:
    """Return how long the list of candidates must be for a policy to read the environment's observation."""
    player = make_scheduler(scheduler)
    if not isinstance(player, PolicyScheduler) or player.policy.fleet:
        return None
    player.policy.check_scenario(scenario)
    return player.policy.actions.n_placements


def _run_group_at_once(tasks: Sequence[Task]) -> list[tuple[Task, dict[str, float]]]:
    return list(run_group(tasks))


def groups_of(tasks: Sequence[Task], most: int) -> list[list[Task]]:
    """Return the tasks in groups of one scenario and scheduler, of at most ``most`` each, in order."""
    groups: list[list[Task]] = []
    for _, same in itertools.groupby(tasks, key=lambda task: (task.label, task.scheduler)):
        members = list(same)
        groups += [members[at : at + most] for at in range(0, len(members), most)]
    return groups


def run_all(tasks: Sequence[Task], jobs: int, on_result: Callable[[Task, dict[str, float]], None]) -> None:
    """Run tasks, in this process or several, and hand over each result as it comes.

    Args:
        tasks: What to run.
        jobs: Number of processes; 1 is this one.
        on_result: Called in this process.

    Raises:
        EvaluationError: A simulation failed; the results before it have been handed over.
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
    # Thread pools of the numerical libraries would fight over the cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


class PartialResults:
    """Finished simulations in a sidecar file, so that an interrupted evaluation loses nothing.

    One JSON line each. Lines are found again by the digest of all they depend on: results of other settings
    are not mistaken for these.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there; ``path`` None keeps results in memory only."""
        self.path = path
        self.results: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    data = json.loads(line)
                    metrics = {str(name): _float(value) for name, value in data["metrics"].items()}
                    self.results[str(data["key"])] = metrics
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # the line that an interrupt cut off

    def add(self, task: Task, metrics: Mapping[str, float]) -> None:
        """Keep a result, on disk before this returns."""
        self.results[task.key] = dict(metrics)
        if self.path is None:
            return
        kept = {name: _json(value) for name, value in metrics.items()}
        append_json_line(self.path, {"key": task.key, "metrics": kept})

    def discard(self) -> None:
        """Delete the sidecar; the final file holds everything now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def histories_of(tasks: Sequence[Task], jobs: int = 1) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Simulate the first episode of every scenario and scheduler, and yield its history.

    Load, decisions and latencies over time, as :mod:`dsd_env.history` makes them; the scheduler is asked for
    every decision, so that this takes longer than the metrics of a static rule do.

    Args:
        tasks: The evaluation's tasks.
        jobs: Number of processes; 1 is this one.

    Raises:
        EvaluationError: One failed.
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
    """Return the content of the JSON file: per scenario and scheduler every metric, mean and interval.

    Args:
        tasks: The evaluation's tasks.
        results: Metrics by task key, complete.
        metadata: What else to record.
        histories: Histories of episodes by task key, for some of them or none.
        names: What schedulers are called, by specification; without one a specification is its name.

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
"""Difference of a window's halves, in standard errors of it over all seeds, from which on it is told."""


def _within(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, float | None]:
    """Return what the parts of the windows tell of a metric: its standard error, and its drift.

    Both are of the mean over the seeds. A drift of :data:`DRIFT` or more says that the window's halves
    differ by more than chance makes them: the warm-up was too short, or the system does not settle.
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
