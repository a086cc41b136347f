"""The objectives of benchmarks, read from a finished world in a tenth of the time that all metrics take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.config import Objective
from agents.look_ahead.clones import PlayedWorld
from dsd_env.laws import slo
from dsd_env.sim.compiled.world import WorldReader

PENALTY = 1000.0
"""What an objective's constraint costs, missed by one, in units of the objective: no gain is worth a miss."""


def cost_of(world: PlayedWorld, objective: Objective) -> float:
    """Return what a finished episode costs by an objective: less is better, infinity for none observed."""
    value = metric(world, objective.metric) * (1.0 if objective.better == "lower" else -1.0)
    limit = objective.subject_to
    if limit is not None:
        found = metric(world, limit.metric)
        if not limit.holds(found):  # nor does NaN, which makes the cost infinite
            value += PENALTY * abs(found - limit.bound)
    return value if math.isfinite(value) else math.inf


def metric(world: PlayedWorld, name: str) -> float:
    """Return a metric of a finished episode, as its definition in :mod:`dsd_env.sim.metrics` has it."""
    compute = QUICK.get(name)
    reader = WorldReader(world.layout, world.simulation.world)
    ends = _window(reader)
    if compute is None or ends is None:
        return float(world.simulation.metrics()[name])
    return compute(world, reader, ends)


def _window(reader: WorldReader) -> NDArray[Any] | None:
    """Return the first and the last boundary of the window; None if it is not over, or of another kind."""
    boundaries = int(reader.layout.header["n_boundaries"])
    if boundaries == 0 or int(reader.header["n_windows"]) < boundaries:
        return None
    ends: NDArray[Any] = reader.rows("windows", boundaries)[[0, -1]]
    return ends


def _growth(ends: NDArray[Any], total: str) -> float:
    first, last = ends["totals"][total].tolist()
    return float(last - first)


def _cohort(reader: WorldReader) -> NDArray[Any]:
    table = reader.rows("table", int(reader.header["table_n"]))
    numbers = table["number"]
    measured = (numbers >= int(reader.header["first_measured"])) & (
        numbers < int(reader.header["end_measured"])
    )
    return table[measured]


def _request_time_s(world: PlayedWorld, reader: WorldReader, ends: NDArray[Any]) -> float:
    rows = _cohort(reader)
    return float((rows["last_delivery_s"] - rows["arrival_s"]).mean()) if len(rows) else math.nan


def _goodput(world: PlayedWorld, reader: WorldReader, ends: NDArray[Any]) -> float:
    first_s, last_s = ends["time_s"].tolist()
    return _growth(ends, "good") / float(last_s - first_s)


def _cloud_usd(world: PlayedWorld, reader: WorldReader, ends: NDArray[Any]) -> float:
    tokens = _growth(ends, "output_tokens")
    return 1e6 * _growth(ends, "cloud_usd") / tokens if tokens else math.nan


def _attainment(world: PlayedWorld, reader: WorldReader, ends: NDArray[Any]) -> float:
    scenario, rows = world.space.scenario, _cohort(reader)
    requests: Any = reader.rows("requests", int(world.layout.header["n_slots"]))
    numbers = requests["number"]
    first, end = int(reader.header["first_measured"]), int(reader.header["end_measured"])
    unfinished = int(((numbers >= max(0, first)) & (numbers < end) & ~requests["done"]).sum())
    classes = [scenario.slo[kind.slo] for kind in scenario.workload.kinds.values()]
    met = 0
    for number, bounds in enumerate(classes):
        own = rows[rows["kind"] == number]
        tokens = own["output_tokens"].astype(float)
        span_s = own["last_delivery_s"] - own["first_delivery_s"]
        tpot_s = np.divide(span_s, tokens - 1.0, out=np.zeros_like(span_s), where=tokens > 1.0)
        ttft_s = own["first_delivery_s"] - own["arrival_s"]
        limits = _Bounds(bounds.bounds())
        late = zip(own["late_gaps"].tolist(), own["late_tokens"].tolist(), strict=True)
        times = zip(ttft_s.tolist(), tpot_s.tolist(), own["output_tokens"].tolist(), late, strict=True)
        met += sum(slo.is_met(limits, a, b, n, gaps, tail) for a, b, n, (gaps, tail) in times)
    return met / (len(rows) + unfinished) if len(rows) + unfinished else math.nan


class _Bounds:
    """Bounds by attribute, as the law reads them."""

    def __init__(self, bounds: dict[str, float]) -> None:
        self.__dict__.update(bounds)


QUICK: dict[str, Callable[[PlayedWorld, WorldReader, NDArray[Any]], float]] = {
    "e2e_s_mean": _request_time_s,
    "goodput_requests_per_s": _goodput,
    "cloud_usd_per_1m_tokens": _cloud_usd,
    "slo_attainment": _attainment,
}
"""The metrics that are computed here; all others by the metrics of the episode."""
