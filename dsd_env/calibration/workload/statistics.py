"""Statistics of requests, and the vectorised generators whose output is compared by them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Renewal, RequestKind
from dsd_env.scenario.variates import value_at
from dsd_env.workload.renewal import (
    RUN_IN_GAPS,
    SHORTEST,
    client_shares,
    modulation_steps,
    process_cv,
    weibull_gap,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PERCENTILES = (5, 50, 95, 99)
WINDOWS_S = (1, 10, 60)


def gap_cv(arrival_s: FloatArray) -> float:
    """Return the coefficient of variation of the times between arrivals."""
    gaps = np.diff(arrival_s)
    return float(gaps.std() / gaps.mean())


def index_of_dispersion(arrival_s: FloatArray, window_s: float, length_s: float) -> float:
    """Return variance over mean of the number of arrivals in windows of a length; 1 for a Poisson process.

    Args:
        arrival_s: Times from 0 on, sorted, shape (n,).
        window_s: Length of the windows, one after the other; a last one that is not whole is left out.
        length_s: Time over which arrivals were observed; at least two windows.
    """
    windows = math.floor(length_s / window_s)
    counts = np.histogram(arrival_s, bins=windows, range=(0.0, windows * window_s))[0]
    return float(counts.var(ddof=1) / counts.mean())


def rank_correlation(x: NDArray[np.generic], y: NDArray[np.generic]) -> float:
    """Return Spearman's rank correlation; ties get their mean rank."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: NDArray[np.generic]) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - 0.5 * (counts - 1))[inverse], dtype=np.float64)


def copula_correlation(rank: float) -> float:
    """Return the correlation of the Gaussian copula with a rank correlation (Kruskal, 1958)."""
    return 2.0 * math.sin(math.pi * rank / 6.0)


def share_of_top_clients(requests: NDArray[np.generic], top: float = 0.1) -> float:
    """Return the share of all requests that the most active clients make.

    Args:
        requests: Number of requests, or rate, of each client.
        top: Share of the clients, rounded up to whole ones.
    """
    most = np.sort(np.asarray(requests, dtype=np.float64))[::-1]
    return float(most[: math.ceil(top * len(most))].sum() / most.sum())


def length_statistics(name: str, tokens: IntArray) -> dict[str, float]:
    """Return mean and percentiles of lengths, by name."""
    result = {f"{name} mean": float(np.mean(tokens))}
    for percentile, value in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True):
        result[f"{name} p{percentile}"] = float(value)
    return result


def arrival_statistics(arrival_s: FloatArray, length_s: float) -> dict[str, float]:
    """Return rate, CV of the gaps and indices of dispersion, by name."""
    result = {"rate (1/s)": len(arrival_s) / length_s, "CV of gaps": gap_cv(arrival_s)}
    for window_s in WINDOWS_S:
        result[f"dispersion {window_s} s"] = index_of_dispersion(arrival_s, window_s, length_s)
    return result


def deviations(given: Mapping[str, float], generated: Mapping[str, float]) -> dict[str, float]:
    """Return by name how far generated statistics are from given ones, as a share of the given value.

    Correlations, which may be near zero, as a plain difference.
    """
    return {
        name: generated[name] - value if "correlation" in name else (generated[name] - value) / abs(value)
        for name, value in given.items()
    }


def renewal_arrivals(
    arrivals: Renewal, rate_per_s: float, seed: int, process: int, length_s: float
) -> FloatArray:
    """Return the arrivals of one process, as :class:`~dsd_env.workload.renewal.RenewalProcess` has them.

    The same draws, added up in another order: equal up to rounding.

    Args:
        arrivals: The law of its gaps, and of its rate.
        rate_per_s: Its mean rate.
        seed: Episode seed.
        process: Number of the process.
        length_s: Time to generate.

    Returns:
        Times within [0, length_s), shape (n,).
    """
    power, scale = weibull_gap(process_cv(arrivals, seed, process))
    ends_s, passed = _operational_time(arrivals, rate_per_s, seed, process, length_s)
    blocks: list[FloatArray] = []
    total, drawn = -RUN_IN_GAPS, 0
    while total < passed[-1]:
        count = max(64, min(1_000_000, int(1.1 * (passed[-1] - total)) + 64))
        u = rng.uniforms(seed, Stream.ARRIVAL, process, np.arange(drawn, drawn + count))
        gaps = scale * np.exp(power * np.log(np.maximum(-np.log(u), SHORTEST)))
        block = total + np.cumsum(gaps)
        blocks.append(block)
        total, drawn = float(block[-1]), drawn + count
    at = np.concatenate(blocks)
    at = at[(at > 0.0) & (at < passed[-1])]
    times = np.interp(at, passed, ends_s)
    return np.asarray(times[times < length_s], dtype=np.float64)


def _operational_time(
    arrivals: Renewal, rate_per_s: float, seed: int, process: int, length_s: float
) -> tuple[FloatArray, FloatArray]:
    """Return ends of the rate's periods and mean gaps passed by then, from 0 on."""
    if arrivals.modulation is None:
        return np.array([0.0, length_s]), np.array([0.0, length_s * rate_per_s])
    sigma, rho, step, period_s = modulation_steps(arrivals.modulation)
    periods = math.ceil(length_s / period_s)
    u = rng.uniforms(seed, Stream.LOAD_PHASE, process + 1, np.arange(2 * periods))
    normals = np.sqrt(-2.0 * np.log(u[0::2])) * np.cos(2.0 * math.pi * u[1::2])
    x = np.empty(periods)
    value = float(normals[0])
    for period in range(periods):
        value = value if period == 0 else rho * value + step * float(normals[period])
        x[period] = value
    factors = np.exp(sigma * x - 0.5 * sigma * sigma)
    passed = np.zeros(periods + 1)
    passed[1:] = np.cumsum(factors * (period_s * rate_per_s))
    return np.asarray(period_s * np.arange(periods + 1), dtype=np.float64), passed


def client_arrivals(
    arrivals: Renewal, seed: int, n_devices: int, length_s: float
) -> tuple[FloatArray, IntArray]:
    """Return times and clients of all arrivals of processes per client, sorted by time."""
    shares = client_shares(arrivals, seed, n_devices)
    times = [
        renewal_arrivals(arrivals, arrivals.rate_per_s * share, seed, device + 1, length_s)
        for device, share in enumerate(shares)
    ]
    clients = np.repeat(np.arange(n_devices), [len(own) for own in times])
    merged = np.concatenate(times)
    order = np.argsort(merged, kind="stable")
    return merged[order], clients[order]


def lengths(kinds: Mapping[str, RequestKind], seed: int, count: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return prompt tokens, output tokens and number of the kind of ``count`` requests of a mix.

    By the laws that simulations use, from draws of NumPy's.
    """
    generator = np.random.default_rng(seed)
    weights = np.array([kind.weight for kind in kinds.values()])
    kind_of = generator.choice(len(weights), size=count, p=weights / weights.sum())
    normals = generator.standard_normal((2, count))
    prompts, outputs = np.empty(count), np.empty(count)
    for number, kind in enumerate(kinds.values()):
        mine = np.flatnonzero(kind_of == number)
        z, own = normals[:, mine]
        rest = math.sqrt(1.0 - kind.length_correlation**2)
        for column, law, scores in (
            (prompts, kind.prompt_tokens, z),
            (outputs, kind.output_tokens, kind.length_correlation * z + rest * own),
        ):
            if law.distribution not in ("lognormal", "quantiles"):
                raise ValueError(f"lengths of distribution {law.distribution} are not of a normal variate")
            column[mine] = [value_at(law, score) for score in scores.tolist()]
    return (
        np.maximum(1, np.rint(prompts)).astype(np.int64),
        np.maximum(1, np.rint(outputs)).astype(np.int64),
        kind_of.astype(np.int64),
    )
