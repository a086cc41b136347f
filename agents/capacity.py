"""Capacity at SLO: the largest arrival rate at which enough requests meet their SLO, per scheduler.

Found by bisection, on the same seeds for every scheduler and rate, over windows of simulated time in the
steady state. Requests that are not done when the time after the window is over count as having missed their
SLO, so that an overloaded system cannot look good by never finishing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents.evaluation import EvaluationError, PartialResults, Task, run_all, tasks_of
from dsd_env.paired import evaluation_seeds
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import steady
from dsd_env.scenario.schema import ClosedLoop, ReplayArrivals
from dsd_env.sim.compiled import status

NOBODY_ASKED = "ends before its first decision"
"""What environments say of an episode without a request."""

FARTHEST = 64.0
"""No scale beyond this, or below its inverse, is tried."""


@dataclass(frozen=True)
class Probe:
    """What one arrival rate was found to give.

    Attributes:
        scale: Factor on the scenario's own load.
        offered: What was scaled: clients, requests per second, or the speed of a trace.
        arrivals_per_s: Requests that arrived in the windows, per second; NaN if the simulation was given up.
        attainment: Share of them that met their SLO.
        requests: How many they were.
    """

    scale: float
    offered: float
    arrivals_per_s: float
    attainment: float
    requests: int


@dataclass(frozen=True)
class Capacity:
    """The capacity of one scheduler.

    Attributes:
        scheduler: Its name.
        best: The largest rate tried at which enough requests met their SLO; None if at none.
        above: The smallest one larger than that at which they did not; None if at every one they did.
        probes: Everything tried, in order.
    """

    scheduler: str
    best: Probe | None
    above: Probe | None
    probes: tuple[Probe, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON; NaN has become null."""

        def row(probe: Probe | None) -> dict[str, Any] | None:
            if probe is None:
                return None
            finite = {k: None if math.isnan(v) else v for k, v in asdict(probe).items()}
            return finite

        probes = [row(probe) for probe in self.probes]
        return {"best": row(self.best), "above": row(self.above), "probes": probes}


def what_scales(scenario: Scenario) -> str:
    """Return what is scaled in a scenario: the unit of :attr:`Probe.offered`."""
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        return "clients"
    return "times the trace's speed" if isinstance(arrivals, ReplayArrivals) else "requests/s"


def scaled(scenario: Scenario, scale: float) -> tuple[Scenario, float]:
    """Return a scenario with its load scaled, and how much it offers.

    Open arrivals: the rate, and with a recorded trace its speed. A closed loop: the number of clients of
    every class, rounded, at least one; their think times stay what they are.
    """
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        counts = {name: max(1, round(device.count * scale)) for name, device in scenario.devices.items()}
        overrides = {f"devices__{name}__count": count for name, count in counts.items()}
        return _changed(scenario, overrides), float(sum(counts.values()))
    if isinstance(arrivals, ReplayArrivals):
        speed = arrivals.rate_scale * scale
        return _changed(scenario, {"workload__arrivals__rate_scale": speed}), speed
    rate_per_s = arrivals.rate_per_s * scale
    return _changed(scenario, {"workload__arrivals__rate_per_s": rate_per_s}), rate_per_s


def _changed(scenario: Scenario, overrides: dict[str, Any]) -> Scenario:
    return load_scenario(scenario, **overrides)


def prepared(scenario: Scenario, cycles: int | None, window_s: float | None, grace_s: float) -> Scenario:
    """Return a scenario that measures a window in the steady state and ends a while after it."""
    windowed = steady(scenario, cycles, window_s)
    return load_scenario(windowed, episode__horizon_s=windowed.episode.end_s + grace_s)


class Search:
    """Looks for the capacities of schedulers on one scenario."""

    def __init__(
        self,
        label: str,
        scenario: Scenario,
        *,
        seeds: int,
        share: float = 0.95,
        tolerance: float = 0.05,
        jobs: int = 1,
        kept: PartialResults | None = None,
        on_probe: Callable[[str, Probe], None] = lambda scheduler, probe: None,
    ) -> None:
        """Prepare a search.

        Args:
            label: The scenario as the user named it.
            scenario: Its content, with a window; see :func:`prepared`.
            seeds: Episodes per rate.
            share: Share of requests that have to meet their SLO.
            tolerance: How far the smallest rate too high may be above the largest one that is not,
            relatively.
            jobs: Processes.
            kept: Results of simulations that are known, and to which more are added.
            on_probe: Called with the scheduler's name at every rate tried.
        """
        self._label, self._scenario = label, scenario
        self._seeds, self._share, self._tolerance, self._jobs = seeds, share, tolerance, jobs
        self._kept = kept or PartialResults(None)
        self._on_probe = on_probe

    def run(self, scheduler: str) -> Capacity:
        """Return the capacity of a scheduler.

        Raises:
            EvaluationError: A simulation failed.
            ValueError: The scheduler is unknown, or the policy does not fit.
        """
        probes = [self._probe(scheduler, 1.0)]
        best = above = None
        while True:
            enough = probes[-1].attainment >= self._share
            if enough and (best is None or probes[-1].scale > best.scale):
                best = probes[-1]
            elif not enough and (above is None or probes[-1].scale < above.scale):
                above = probes[-1]
            scale = self._next_scale(best, above)
            if scale is None:
                return Capacity(scheduler, best, above, tuple(probes))
            probe = self._probe(scheduler, scale)
            probes.append(probe)
            if best is None and probe.requests == 0 and probe.attainment > 0.0:
                # So little load that nobody asked: there is no rate at which enough were seen to be served.
                return Capacity(scheduler, None, above, tuple(probes))
            if best is not None and above is not None and probe.offered in (best.offered, above.offered):
                # Clients are whole: nothing lies between.
                return Capacity(scheduler, best, above, tuple(probes))

    def _next_scale(self, best: Probe | None, above: Probe | None) -> float | None:
        """Return the next rate to try; None if the capacity is known well enough."""
        if above is None:
            assert best is not None
            return 2.0 * best.scale if best.scale < FARTHEST else None
        if best is None:
            return 0.5 * above.scale if above.scale > 1.0 / FARTHEST else None
        if above.scale <= best.scale * (1.0 + self._tolerance):
            return None
        return math.sqrt(best.scale * above.scale)

    def _probe(self, scheduler: str, scale: float) -> Probe:
        scenario, offered = scaled(self._scenario, scale)
        tasks = tasks_of(self._label, scenario, scheduler, evaluation_seeds(self._seeds))
        todo = [task for task in tasks if task.key not in self._kept.results]
        try:
            run_all(todo, self._jobs, self._kept.add)
        except EvaluationError as error:
            # More requests in the system than the engine has room for, thousands: that is overload. An
            # episode in which nobody asks has no decision to begin with.
            if status.ADVICE[status.SLOTS_FULL] in str(error):
                probe = Probe(scale, offered, math.nan, 0.0, 0)
            elif NOBODY_ASKED in str(error):
                probe = Probe(scale, offered, 0.0, 1.0, 0)
            else:
                raise
        else:
            probe = _pooled(scale, offered, tasks, self._kept)
        self._on_probe(scheduler, probe)
        return probe


def _pooled(scale: float, offered: float, tasks: Sequence[Task], kept: PartialResults) -> Probe:
    """Return what all episodes of one rate together give."""
    met = arrived = window_s = 0.0
    for task in tasks:
        metrics = kept.results[task.key]
        here = metrics["requests_measured"] + metrics["requests_unfinished"]
        if here > 0:
            met += metrics["slo_attainment"] * here
        arrived += here
        window_s += metrics["window_s"]
    # Nobody asked, nobody was let down.
    attainment = met / arrived if arrived else 1.0
    return Probe(scale, offered, arrived / window_s if window_s else math.nan, attainment, int(arrived))
