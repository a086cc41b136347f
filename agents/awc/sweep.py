"""Oracle sweeps: what static choices take in every condition, the best of them as labels, and states.

A label says, for the devices of one class in one condition, how far ahead to draft apart from the target and
beside it, both as log2(1 + tokens). Choices that take about as long share it: each weighs
exp(-(time / least time - 1) / softness). Where drafting beside the target (or plain decoding) is faster for
all, the window's label goes to that of 1, which means just that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dsd_env
from agents.awc.config import AwcError, Condition, Sweep
from agents.processes import as_they_end
from agents.seeds import training_seed
from dsd_env.control import Decision, DecisionView, Site
from dsd_env.policy.manifest import canonical_json, scenario_ref
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.awc import APART, AwcScheduler, remote_placement
from dsd_env.schedulers.awc_network import FEATURES, features_of, load_network, to_scale
from dsd_env.schedulers.rules import SITES, drafters_at, placement_of, stay_or_route
from dsd_env.sim.engines import compiled_layout
from dsd_env.whole_runs.static import StaticPlayer, played_static

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation of a sweep."""

    scenario: Scenario
    scheduler: str
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does at a time: the sweep of a condition, or the states of one.

    Attributes:
        condition: The condition.
        sweep: What is played.
        seed: Episode seed.
        choices: Static choices whose states are recorded; empty: sweep.
        network: Folder of a network whose states are recorded instead.
    """

    condition: Condition
    sweep: Sweep
    seed: int
    choices: tuple[str, ...] = ()
    network: str | None = None


def episode_seed(seed: int, number: int) -> int:
    """Return the training seed of a condition by its number."""
    return training_seed(seed, number, 0, 0)


def choices_apart(condition: Condition, sweep: Sweep) -> dict[int, str]:
    """Return the static choices that draft apart from the target, by window."""
    if condition.site == "own":
        return {window: f"edge_sd:{window}" for window in sweep.windows}
    return {window: f"static:{window}:1:{condition.site}" for window in sweep.windows}


def choices_fused(scenario: Scenario, sweep: Sweep) -> dict[int, str]:
    """Return those that draft beside it, by length; 0 is plain decoding."""
    lengths = sweep.node_lengths if drafters_at(scenario, Site.COLOCATED) else ()
    return {0: "cloud_ar", **{length: f"colocated_sd:{length}" for length in lengths}}


def checked(condition: Condition, sweep: Sweep) -> Scenario:
    """Return a condition's scenario.

    Raises:
        dsd_env.scenario.ScenarioError: It is not valid.
        AwcError: Nothing drafts at the condition's site.
    """
    scenario = condition.load_scenario(sweep)
    if not drafters_at(scenario, SITES[condition.site]):
        raise AwcError(f"{condition.name}: nothing drafts at the site {condition.site!r} of this scenario")
    return scenario


def key_of(job: Job, round_number: int = 0) -> str:
    """Return the digest of all that a job's result depends on."""
    network = None
    if job.network is not None:
        network = hashlib.sha256((Path(job.network) / "awc.json").read_bytes()).hexdigest()
    scenario = scenario_ref(job.condition.load_scenario(job.sweep)).sha256
    content = [
        dsd_env.__version__,
        scenario,
        asdict(job.condition),
        job.sweep.model_dump(mode="json"),
        job.seed,
        list(job.choices),
        network,
        round_number,
    ]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:24]


def device_classes(scenario: Scenario) -> list[str]:
    """Return the class of every device, by number."""
    return [name for name, device in scenario.devices.items() for _ in range(device.count)]


def swept(job: Job) -> dict[str, dict[str, float]]:
    """Return the mean request time of every static choice, of all requests ("") and by class of devices."""
    from dsd_env.sim.compiled.world import WorldReader

    scenario = checked(job.condition, job.sweep)
    names = [*choices_apart(job.condition, job.sweep).values(), *choices_fused(scenario, job.sweep).values()]
    classes, first = device_classes(scenario), scenario.episode.warmup_requests
    layout = compiled_layout("compiled", scenario)
    assert layout is not None
    found: dict[str, dict[str, float]] = {}
    for name in names:
        player = make_scheduler(name)
        assert isinstance(player, StaticPlayer)
        simulation = played_static(Run(scenario, name, job.seed), player, layout)
        times: dict[str, list[float]] = {"": []}
        for request in WorldReader(layout, simulation.world).completed(deliveries=False):
            if first <= request.number < first + job.sweep.requests:
                for key in ("", classes[request.device.number]):
                    times.setdefault(key, []).append(request.completed_s - request.arrival_s)
        found[name] = {key: float(np.mean(each)) for key, each in times.items()}
    return found


def labels(
    condition: Condition, sweep: Sweep, times: Mapping[str, Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
    """Return window and fused length to be learned, as log2(1 + tokens), by class of devices.

    Args:
        condition: The condition.
        sweep: What was played.
        times: What :func:`swept` found.
    """
    scenario = condition.load_scenario(sweep)
    apart, fused = choices_apart(condition, sweep), choices_fused(scenario, sweep)
    least_apart = min(times[name][""] for name in apart.values())
    least_fused = min(times[name][""] for name in fused.values())
    gap = (least_fused - least_apart) / (sweep.softness * min(least_apart, least_fused))
    share = 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, gap))))
    node = _soft({length: times[name][""] for length, name in fused.items()}, sweep.softness)
    found = {}
    for each in scenario.devices:
        by_window = {window: times[name].get(each, times[name][""]) for window, name in apart.items()}
        window = _soft(by_window, sweep.softness)
        found[each] = (share * window + (1.0 - share) * to_scale(1.0), node)
    return found


def _soft(times: Mapping[int, float], softness: float) -> float:
    least = min(times.values())
    weights = {tokens: math.exp(-(time / least - 1.0) / softness) for tokens, time in times.items()}
    return sum(weight * to_scale(tokens) for tokens, weight in weights.items()) / sum(weights.values())


def best_of(choices: Mapping[int, str], times: Mapping[str, Mapping[str, float]]) -> str:
    """Return the choice that takes least for all."""
    return min(choices.values(), key=lambda name: times[name][""])


class Recorder:
    """Lets a scheduler decide, and keeps the network's inputs of some of its decisions.

    Attributes:
        name: Of the scheduler.
        rows: The inputs.
        devices: The device of each.
    """

    def __init__(self, player: Scheduler, sites: tuple[Site, ...], first: int, every: int) -> None:
        """Record one in ``every`` decisions of the requests from number ``first`` on."""
        self.name = player.name
        self._player, self._sites, self._first, self._every = player, sites, first, every
        self._last: dict[int, int] = {}
        self._seen = 0
        self.rows: list[Floats] = []
        self.devices: list[int] = []

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Begin an episode."""
        self._player.reset(scenario, seed)
        self._last, self._seen = {}, 0

    def decide(self, view: DecisionView) -> Decision:
        """Return the scheduler's decision."""
        if view.request_id >= self._first:
            # Admissions are few beside the decisions of rounds, and set the mode that a request begins in.
            self._seen += 1
            if view.request.is_admission or self._seen % self._every == 0:
                self._record(view)
        decision = self._player.decide(view)
        self._last[view.request_id] = decision.gamma
        return decision

    def _record(self, view: DecisionView) -> None:
        target = stay_or_route(view)
        remote = remote_placement(view, self._sites, target)
        if remote is None:
            return
        node = placement_of(view, Site.COLOCATED, target)
        at_node = None if node is None else view.candidates[node]
        last = self._last.get(view.request_id, 0)
        self.rows.append(features_of(view, view.candidates[remote], at_node, last))
        self.devices.append(view.device)


def recorded(job: Job) -> tuple[Floats, NDArray[np.int64]]:
    """Return states that static choices, or a network, lead to, and the device of each."""
    from dsd_env.sim.compiled import CompiledSimulation

    scenario = checked(job.condition, job.sweep)
    sites = APART[job.condition.site]
    players: list[Scheduler] = [make_scheduler(name) for name in job.choices]
    if job.network is not None:
        players = [AwcScheduler("awc", load_network(Path(job.network)), sites)]
    layout = compiled_layout("compiled", scenario)
    first = scenario.episode.warmup_requests // 2
    rows: list[Floats] = []
    devices: list[int] = []
    for player in players:
        recorder = Recorder(player, sites, first, job.sweep.every)
        simulation = CompiledSimulation(scenario, job.seed, layout=layout)
        recorder.reset(scenario, job.seed)
        view = simulation.next_decision()
        while view is not None and len(recorder.rows) < job.sweep.states:
            simulation.decide(recorder.decide(view))
            view = simulation.next_decision()
        rows += recorder.rows
        devices += recorder.devices
    return np.array(rows, dtype=np.float32).reshape(-1, len(FEATURES)), np.array(devices, dtype=np.int64)


def all_in_order(jobs: list[Job], processes: int, work: Any) -> Iterator[tuple[Job, Any]]:
    """Do jobs in this process or several, and yield each with its result as it ends.

    Args:
        jobs: The jobs.
        processes: Number of processes; 1 is this one.
        work: A function of a job, by name: :func:`swept` or :func:`recorded`.
    """
    if processes <= 1:
        for job in jobs:
            yield job, work(job)
        return
    with closing(as_they_end(processes, work, jobs)) as ended:
        yield from ended


def read_lines(path: Path) -> dict[str, Any]:
    """Return the results in a file of JSON lines by key, without a last one that an interrupt cut off."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            data = json.loads(line)
            found[str(data["key"])] = data["times"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def nearest_choice(choices: Mapping[int, str], tokens: float) -> str:
    """Return the choice whose length is nearest."""
    return choices[min(choices, key=lambda length: (abs(length - tokens), length))]


__all__ = [
    "Job",
    "Recorder",
    "all_in_order",
    "best_of",
    "checked",
    "choices_apart",
    "choices_fused",
    "device_classes",
    "episode_seed",
    "key_of",
    "labels",
    "nearest_choice",
    "read_lines",
    "recorded",
    "swept",
]
