"""The shipped fits of workloads: what each is fitted to, and how (needs SciPy, extra ``calibrate``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env import strict_yaml
from dsd_env.calibration.workload import fit
from dsd_env.calibration.workload.importers import import_trace
from dsd_env.calibration.workload.statistics import (
    arrival_statistics,
    client_arrivals,
    deviations,
    index_of_dispersion,
    length_statistics,
    lengths,
    rank_correlation,
    renewal_arrivals,
)
from dsd_env.scenario.schema import Renewal, RequestKind

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GENERATED_SEEDS = range(1000, 1256)
"""Episodes behind generated statistics; others than those that fits look at."""
GENERATED_REQUESTS = 200_000
HOURS = 8
CURVE_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)


@dataclass(frozen=True)
class Entry:
    """One fit.

    Attributes:
        path: File or folder, within the data folder.
        kind: ``requests`` (a trace, without clients) or ``clients`` (ServeGen's windows by client).
        licence: Of the data.
        clusters: Kinds of requests that the lengths are fitted with.
    """

    path: str
    kind: str
    licence: str
    clusters: int


CATALOGUE = {
    "azure-conv-2023": Entry(
        "azure_llm/AzureLLMInferenceTrace_conv.csv",
        "requests",
        "CC-BY-4.0, Azure LLM inference traces 2023",
        2,
    ),
    "servegen-deepseek-r1": Entry(
        "servegen/data/reason/deepseek-r1", "clients", "Apache-2.0, ServeGen (Alibaba)", 3
    ),
    "servegen-m-small": Entry(
        "servegen/data/language/m-small", "clients", "Apache-2.0, ServeGen (Alibaba)", 4
    ),
}


@dataclass(frozen=True)
class Model:
    """What a fit says: the arrivals and the mix of lengths."""

    arrivals: Renewal
    kinds: Mapping[str, RequestKind]

    def to_yaml(self) -> dict[str, Any]:
        """Return the fields as a scenario has them, but for what it alone knows (SLO, recordings)."""
        return {
            "arrivals": self.arrivals.model_dump(mode="json", exclude_defaults=True),
            "kinds": {
                name: kind.model_dump(mode="json", exclude={"slo", "acceptance_kinds"})
                for name, kind in self.kinds.items()
            },
        }

    @classmethod
    def from_yaml(cls, fields: Mapping[str, Any]) -> Model:
        """Return the model that :meth:`to_yaml` wrote."""
        kinds = {name: RequestKind(slo="any", **kind) for name, kind in fields["kinds"].items()}
        return cls(Renewal(**fields["arrivals"]), kinds)


@dataclass(frozen=True)
class Curves:
    """What is plotted, of data or of generated requests.

    Attributes:
        prompts: Tokens, shape (n,).
        outputs: Tokens, shape (n,).
        dispersion: Index of dispersion at :data:`CURVE_S`.
        per_minute: Requests in each minute, shape (minutes,).
        shares: Share of each client of the requests, the largest first; None if clients are not known.
    """

    prompts: IntArray
    outputs: IntArray
    dispersion: FloatArray
    per_minute: IntArray
    shares: FloatArray | None


@dataclass(frozen=True)
class Measured:
    """Data of one entry.

    Attributes:
        statistics: By name.
        ranges: 10 and 90 % of those over hours, where there are several.
        curves: For the plot.
        trace: Times, prompts, outputs and length in seconds, of ``requests``.
        clients: Of ``clients``.
    """

    statistics: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    curves: Curves
    trace: tuple[FloatArray, IntArray, IntArray, float] | None = None
    clients: fit.ClientWindows | None = None


def measure(entry: Entry, data: Path) -> Measured:
    """Read the data of an entry and take its statistics.

    Raises:
        RequestTraceError: A trace cannot be read.
        FitError: Other data cannot.
    """
    path = data / entry.path
    if entry.kind == "requests":
        trace = import_trace(path, "azure")
        length_s = trace.duration_s
        statistics = arrival_statistics(trace.arrival_s, length_s)
        statistics |= _lengths(trace.prompt_tokens, trace.output_tokens, trace.prompt_tokens)
        curves = Curves(
            trace.prompt_tokens,
            trace.output_tokens,
            _dispersion(trace.arrival_s, length_s),
            _per_minute(trace.arrival_s, length_s),
            None,
        )
        columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens, length_s)
        return Measured(statistics, {}, curves, trace=columns)
    clients = fit.read_servegen(path)
    hours = fit.typical_hours(clients, HOURS)
    statistics, ranges = fit.published_statistics(clients, hours)
    prompts, outputs = fit.pooled_lengths(clients, GENERATED_REQUESTS, 1)
    statistics |= _lengths(prompts, outputs)
    length_s = clients.window_s * len(hours[0])
    curves = _client_curves(
        prompts,
        outputs,
        [fit.regenerate(clients, hour, hour.start) for hour in hours],
        len(clients.rate_per_s),
        length_s,
    )
    return Measured(statistics, ranges, curves, clients=clients)


def fit_entry(entry: Entry, measured: Measured) -> Model:
    """Return the model of an entry."""
    if measured.trace is not None:
        times_s, prompts, outputs, length_s = measured.trace
        arrivals = fit.fit_system_arrivals(times_s, length_s)
    else:
        assert measured.clients is not None
        prompts, outputs = measured.curves.prompts, measured.curves.outputs
        arrivals = fit.fit_client_arrivals(measured.clients, measured.statistics)
    return Model(arrivals, fit.fit_kinds(prompts, outputs, entry.clusters))


def generate(
    model: Model, measured: Measured
) -> tuple[dict[str, float], dict[str, tuple[float, float]], Curves]:
    """Return statistics, their ranges over episodes, and curves of what a model generates.

    Observed for as long as the data were.
    """
    prompts, outputs, _ = lengths(model.kinds, 1, GENERATED_REQUESTS)
    drawn = GENERATED_SEEDS[:HOURS]
    if measured.trace is not None:
        length_s, arrivals = measured.trace[3], model.arrivals
        statistics, ranges = fit.mean_statistics(arrivals, length_s, GENERATED_SEEDS)
        statistics |= _lengths(prompts, outputs, measured.trace[1])
        times = [renewal_arrivals(arrivals, arrivals.rate_per_s, seed, 0, length_s) for seed in drawn]
        dispersion = np.mean([_dispersion(times_s, length_s) for times_s in times], axis=0)
        curves = Curves(prompts, outputs, dispersion, _per_minute(times[0], length_s), None)
    else:
        assert measured.clients is not None
        n, length_s = len(measured.clients.rate_per_s), 3600.0
        statistics, ranges = fit.model_statistics(model.arrivals, n, length_s, GENERATED_SEEDS[:64])
        statistics |= _lengths(prompts, outputs)
        episodes = [client_arrivals(model.arrivals, seed, n, length_s) for seed in drawn]
        curves = _client_curves(prompts, outputs, episodes, n, length_s)
    return statistics, ranges, curves


def _client_curves(
    prompts: IntArray,
    outputs: IntArray,
    episodes: list[tuple[FloatArray, IntArray]],
    clients: int,
    length_s: float,
) -> Curves:
    """Return the curves of requests by client: medians over episodes."""
    dispersion = np.median([_dispersion(times_s, length_s) for times_s, _ in episodes], axis=0)
    shares = np.median([_shares(owners, clients) for _, owners in episodes], axis=0)
    return Curves(prompts, outputs, dispersion, _per_minute(episodes[0][0], length_s), shares)


def compare(
    given: Mapping[str, float],
    generated: Mapping[str, float],
    given_ranges: Mapping[str, tuple[float, float]],
    ranges: Mapping[str, tuple[float, float]],
) -> list[dict[str, Any]]:
    """Return a row for each statistic: data, generated, how far off, and ranges over hours and episodes."""
    off = deviations(given, generated)
    rows: list[dict[str, Any]] = []
    for name, value in given.items():
        row = {"statistic": name, "data": fit.rounded(value), "generated": fit.rounded(generated[name])}
        key = "off" if "correlation" in name else "off_percent"
        row[key] = round(off[name] if key == "off" else 100.0 * off[name], 3 if key == "off" else 1)
        for label, both in (("data_range", given_ranges), ("generated_range", ranges)):
            if name in both:
                row[label] = [fit.rounded(value, 3) for value in both[name]]
        rows.append(row)
    return rows


def load_model(path: Path) -> Model:
    """Return the model of a shipped file."""
    return Model.from_yaml(strict_yaml.load(path)["workload"])


def _lengths(prompts: IntArray, outputs: IntArray, by: IntArray | None = None) -> dict[str, float]:
    """Return statistics of lengths; with ``by``, also the mean answer by fifths of those prompts."""
    result = length_statistics("prompt", prompts) | length_statistics("answer", outputs)
    result["rank correlation"] = rank_correlation(prompts, outputs)
    if by is not None:
        edges = np.quantile(by, np.arange(1, 5) / 5.0)
        fifth = np.searchsorted(edges, prompts)
        for number in range(5):
            result[f"mean answer, prompts' fifth {number + 1}"] = float(outputs[fifth == number].mean())
    return result


def _dispersion(times_s: FloatArray, length_s: float) -> FloatArray:
    return np.array([index_of_dispersion(times_s, window_s, length_s) for window_s in CURVE_S])


def _per_minute(times_s: FloatArray, length_s: float) -> IntArray:
    minutes = int(length_s // 60.0)
    return np.histogram(times_s, bins=minutes, range=(0.0, 60.0 * minutes))[0].astype(np.int64)


def _shares(owners: IntArray, clients: int) -> FloatArray:
    counts = np.sort(np.bincount(owners, minlength=clients))[::-1]
    return np.asarray(counts / counts.sum(), dtype=np.float64)
