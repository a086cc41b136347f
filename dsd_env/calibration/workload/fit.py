"""Fitting arrivals and lengths to recorded requests (needs SciPy, extra ``calibrate``)."""

from __future__ import annotations

import ast
import csv
import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env import strict_json
from dsd_env.calibration.workload.statistics import (
    WINDOWS_S,
    arrival_statistics,
    client_arrivals,
    copula_correlation,
    rank_correlation,
    renewal_arrivals,
    share_of_top_clients,
)
from dsd_env.extras import needs
from dsd_env.scenario.schema import BurstyClients, Quantiles, RateModulation, Renewal, RequestKind
from dsd_env.text import TextError, open_text
from dsd_env.workload.reading import MAX_TOKENS

with needs("calibrate", "fitting workloads"):
    from scipy.optimize import brentq, minimize

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Statistics = dict[str, float]
Ranges = dict[str, tuple[float, float]]

LEVELS = (
    *(0.0005, 0.002, 0.005, 0.01),
    *(number / 50.0 for number in range(1, 50)),
    *(0.99, 0.995, 0.998, 0.9995),
)
"""Levels of fitted tables of quantiles."""
SEEDS = 64
"""Episodes over which generated statistics are averaged while fitting."""
BURSTY_CV = 2.0
"""Where a client counts as bursty."""
_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_DAMPINGS = (0.0, 0.25, 0.5, 0.75)
_CLUSTERED = 20_000
_SLO = "any"
_MAX_JSON_BYTES = 200_000_000
FAMILIES = ("Exponential", "Gamma", "Weibull")


class FitError(ValueError):
    """Data cannot be fitted; the message names file, line and field."""


def rounded(value: float, digits: int = 4) -> float:
    """Return a value with so many significant digits."""
    return float(f"{value:.{digits}g}")


def quantile_law(tokens: IntArray | FloatArray, weights: FloatArray | None = None) -> Quantiles:
    """Return the table of quantiles of lengths.

    Args:
        tokens: Lengths, at least 1, shape (n,).
        weights: How much each counts; None: the same.
    """
    if weights is None:
        values = np.quantile(tokens, LEVELS)
    else:
        order = np.argsort(tokens)
        passed = np.cumsum(weights[order])
        places = np.searchsorted(passed, np.array(LEVELS) * passed[-1])
        values = np.asarray(tokens, dtype=np.float64)[order][np.minimum(places, len(tokens) - 1)]
    return Quantiles(
        distribution="quantiles",
        levels=LEVELS,
        values=tuple(rounded(max(1.0, float(value))) for value in values),
    )


def request_kind(prompts: IntArray, outputs: IntArray, weight: float) -> RequestKind:
    """Return a kind of requests with the lengths and the rank correlation of given ones."""
    constant = len(np.unique(prompts)) == 1 or len(np.unique(outputs)) == 1
    correlation = 0.0 if constant else copula_correlation(rank_correlation(prompts, outputs))
    return RequestKind(
        weight=rounded(weight),
        slo=_SLO,
        prompt_tokens=quantile_law(prompts),
        output_tokens=quantile_law(outputs),
        length_correlation=rounded(correlation, 3),
    )


def cluster(prompts: IntArray, outputs: IntArray, count: int, seed: int = 1) -> IntArray:
    """Return the number of the cluster of each request, by a mixture of Gaussians in the two logarithms.

    Clusters are numbered by their mean prompt.

    Args:
        prompts: Tokens, shape (n,).
        outputs: Tokens, shape (n,).
        count: Number of clusters.
        seed: Seed of the starts, of which the best of 8 is kept, and of the 20,000 requests that are looked
            at where there are more.
    """
    points = np.log(np.stack([prompts, outputs], axis=1).astype(np.float64))
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    generator = np.random.default_rng(seed)
    some = points
    if len(points) > _CLUSTERED:
        some = points[generator.choice(len(points), _CLUSTERED, replace=False)]
    found = [_mixture(some, count, generator) for _ in range(8)]
    _, (shares, centres, covariances) = max(found, key=lambda one: one[0])
    order = np.argsort(np.argsort(centres[:, 0]))
    return np.asarray(order[_log_densities(points, shares, centres, covariances).argmax(axis=1)])


def _mixture(
    points: FloatArray, count: int, generator: np.random.Generator
) -> tuple[float, tuple[FloatArray, FloatArray, FloatArray]]:
    """Return log-likelihood, and shares, centres, covariances of a mixture (expectation-maximisation)."""
    centres = points[generator.choice(len(points), count, replace=False)]
    covariances = np.repeat(0.3 * np.eye(2)[None], count, axis=0)
    shares = np.full(count, 1.0 / count)
    likelihood = -math.inf
    for _ in range(300):
        logs = _log_densities(points, shares, centres, covariances)
        highest = logs.max(axis=1, keepdims=True)
        whole = highest + np.log(np.exp(logs - highest).sum(axis=1, keepdims=True))
        before, likelihood = likelihood, float(whole.sum())
        if likelihood - before < 1e-6 * len(points):
            break
        belongs = np.exp(logs - whole)
        mass = belongs.sum(axis=0) + 1e-9
        shares = mass / mass.sum()
        centres = belongs.T @ points / mass[:, None]
        for number in range(count):
            apart = points - centres[number]
            covariances[number] = (belongs[:, number, None] * apart).T @ apart / mass[number]
            # So that a cluster of equal points keeps a density.
            covariances[number] += 1e-3 * np.eye(2)
    return likelihood, (shares, centres, covariances)


def _log_densities(
    points: FloatArray, shares: FloatArray, centres: FloatArray, covariances: FloatArray
) -> FloatArray:
    """Return the logarithm of share times density of each cluster at each point, shape (n, clusters)."""
    return np.stack(
        [
            math.log(share) + _log_gaussian(points, centre, covariance)
            for share, centre, covariance in zip(shares, centres, covariances, strict=True)
        ],
        axis=1,
    )


def _log_gaussian(points: FloatArray, centre: FloatArray, covariance: FloatArray) -> FloatArray:
    apart = points - centre
    distance = (apart @ np.linalg.inv(covariance) * apart).sum(axis=1)
    return np.asarray(-0.5 * (distance + math.log(np.linalg.det(covariance)) + 2.0 * math.log(2.0 * math.pi)))


def fit_kinds(prompts: IntArray, outputs: IntArray, count: int) -> dict[str, RequestKind]:
    """Return a mix of kinds with the joint distribution of lengths.

    One kind has the two distributions and their rank correlation. Several have whatever dependence the
    clusters have, which need not be monotone.
    """
    numbers = cluster(prompts, outputs, count) if count > 1 else np.zeros(len(prompts), dtype=np.int64)
    kinds = {}
    for number in range(count):
        mine = numbers == number
        if mine.sum() >= 2:
            kinds[f"cluster-{number}"] = request_kind(prompts[mine], outputs[mine], float(mine.mean()))
    return kinds


def fit_system_arrivals(arrival_s: FloatArray, length_s: float, seeds: int = 4 * SEEDS) -> Renewal:
    """Return one process with a random rate, fitted to the CV of gaps and to the dispersion at 1, 10, 60 s.

    Args:
        arrival_s: Times from 0 on, sorted, shape (n,).
        length_s: Time over which they were observed; generated ones are observed as long.
        seeds: Episodes that generated statistics are averaged over.
    """
    given = arrival_statistics(arrival_s, length_s)
    rate_per_s = given.pop("rate (1/s)")

    def model(x: FloatArray) -> Renewal:
        cv, sigma, correlation_s = (math.exp(value) for value in np.clip(x, *np.array(bounds).T))
        return Renewal(
            kind="renewal",
            rate_per_s=rounded(rate_per_s),
            cv=rounded(cv, 3),
            modulation=RateModulation(
                sigma=rounded(sigma, 3), correlation_s=rounded(correlation_s, 3), period_s=5.0
            ),
        )

    def loss(x: FloatArray) -> float:
        found, _ = mean_statistics(model(x), length_s, range(seeds))
        return sum(math.log(found[name] / value) ** 2 for name, value in given.items())

    bounds = [
        (math.log(0.5), math.log(5.0)),
        (math.log(0.02), math.log(2.0)),
        (math.log(10.0), math.log(3e3)),
    ]
    start = np.log([1.05, 0.2, 300.0])
    # Steps of its own choice would be shares of the start, which is near zero.
    simplex = np.vstack([start, start + np.diag([0.3, 0.3, 0.6])])
    options: Any = {"maxfev": 120, "xatol": 0.01, "fatol": 1e-5, "initial_simplex": simplex}
    best = minimize(loss, start, method="Nelder-Mead", options=options)
    return model(best.x)


def mean_statistics(arrivals: Renewal, length_s: float, seeds: range) -> tuple[Statistics, Ranges]:
    """Return the statistics of generated arrivals of one process: means over episodes, 10 and 90 %."""
    found = [
        arrival_statistics(renewal_arrivals(arrivals, arrivals.rate_per_s, seed, 0, length_s), length_s)
        for seed in seeds
    ]
    return _centre(found, np.mean)


# ---------------------------------------------------------------------- ServeGen


@dataclass(frozen=True)
class ClientWindows:
    """What ServeGen publishes of its clients: statistics by window of time.

    Attributes:
        window_s: Length of a window of the arrivals.
        rate_per_s: Shape (clients, windows); 0 where a client is not active.
        cv: Coefficient of variation of its gaps, likewise.
        family: Number in :data:`FAMILIES` of the law of its gaps, likewise.
        shape: First parameter of that law, likewise.
        prompts: Of each client: lengths, shape (k,), and how many requests had them.
        outputs: Likewise.
    """

    window_s: float
    rate_per_s: FloatArray
    cv: FloatArray
    family: IntArray
    shape: FloatArray
    prompts: tuple[tuple[FloatArray, FloatArray], ...]
    outputs: tuple[tuple[FloatArray, FloatArray], ...]


def read_servegen(folder: Path) -> ClientWindows:
    """Read ``chunk-N-trace.csv`` and ``chunk-N-dataset.json.gz`` of a folder.

    A client without a file of lengths has its arrivals only.

    Raises:
        FitError: Anything that is wrong with a file.
    """
    files = sorted(folder.glob("chunk-*-trace.csv"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise FitError(f"{folder}: there is no chunk-*-trace.csv")
    tables = [_read_windows(path) for path in files]
    if len({table.shape for table in tables}) > 1 or any((t[0] != tables[0][0]).any() for t in tables):
        raise FitError(f"{folder}: the clients' files have different windows")
    starts = tables[0][0]
    window_s = float(starts[1] - starts[0])
    every = np.stack(tables)
    prompts, outputs = [], []
    for number, path in enumerate(files):
        lengths = path.with_name(path.name.replace("trace.csv", "dataset.json.gz"))
        requests = every[number, 1] * window_s
        prompt, output = _read_lengths(lengths, starts, requests) if lengths.is_file() else (_NO, _NO)
        prompts.append(prompt)
        outputs.append(output)
    return ClientWindows(
        window_s,
        every[:, 1],
        every[:, 2],
        every[:, 3].astype(np.int64),
        every[:, 4],
        tuple(prompts),
        tuple(outputs),
    )


_NO: tuple[FloatArray, FloatArray] = (np.empty(0), np.empty(0))


def _read_windows(path: Path) -> FloatArray:
    """Return start, rate, CV, family and shape by window, shape (5, windows)."""
    rows: list[tuple[float, ...]] = []
    try:
        with open_text(path) as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not row:
                    continue
                where = f"{path}: line {reader.line_num}"
                if len(row) != 6:
                    raise FitError(
                        f"{where}: {len(row)} fields; needed are start, rate, CV, family, 2 parameters"
                    )
                start_s = _number(where, "start", row[0])
                rate, cv = _number(where, "rate", row[1]), _number(where, "CV", row[2])
                if rows and start_s <= rows[-1][0]:
                    raise FitError(f"{where}: start = {start_s} does not come after {rows[-1][0]}")
                if rate == 0.0:
                    rows.append((start_s, 0.0, 0.0, 0.0, 0.0))
                    continue
                if row[3] not in FAMILIES:
                    raise FitError(f"{where}: family = {row[3]!r} is not one of {FAMILIES}")
                shape = 1.0 if row[3] == "Exponential" else _number(where, "shape", row[4])
                if shape <= 0.0:
                    raise FitError(f"{where}: shape = {shape} must be > 0")
                rows.append((start_s, rate, cv, float(FAMILIES.index(row[3])), shape))
    except csv.Error as error:
        raise FitError(f"{path}: line {reader.line_num}: not a CSV file: {error}") from error
    except TextError as error:
        raise FitError(str(error)) from None
    if len(rows) < 2:
        raise FitError(f"{path}: {len(rows)} windows; needed are at least 2")
    return np.array(rows).T


def _number(where: str, name: str, field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise FitError(f"{where}: {name} = {field!r} is not a number") from None
    if not math.isfinite(value) or value < 0.0:
        raise FitError(f"{where}: {name} = {field} must be finite and not negative")
    return value


def _read_lengths(
    path: Path, starts_s: FloatArray, requests: FloatArray
) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """Return prompt and output histograms, each window of lengths weighted by the requests in it."""
    try:
        with gzip.open(path, "rb") as file:
            data = strict_json.loads(file.read(_MAX_JSON_BYTES).decode("utf-8-sig"))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise FitError(f"{path}: not gzipped JSON: {error}") from error
    if not isinstance(data, dict):
        raise FitError(f"{path}: needed is an object by window")
    totals: tuple[dict[int, float], dict[int, float]] = ({}, {})
    begins = sorted(_number(path.name, "window", key) for key in data)
    ends = [*begins[1:], math.inf]
    for key, window in data.items():
        begin_s = _number(f"{path}: window {key}", "start", key)
        end_s = ends[begins.index(begin_s)]
        weight = float(requests[(starts_s >= begin_s) & (starts_s < end_s)].sum())
        for name, total in zip(("input_tokens", "output_tokens"), totals, strict=True):
            for tokens, share in _histogram(f"{path}: window {key}: {name}", window, name).items():
                total[tokens] = total.get(tokens, 0.0) + weight * share
    found = []
    for total in totals:
        kept = {tokens: share for tokens, share in sorted(total.items()) if share > 0.0}
        found.append((np.array(list(kept), dtype=np.float64), np.array(list(kept.values()))))
    return found[0], found[1]


def _histogram(where: str, window: Any, name: str) -> dict[int, float]:
    """Return share by number of tokens; the file has it as the text of a dictionary."""
    try:
        histogram = ast.literal_eval(window[name])
        shares = {int(tokens): float(share) for tokens, share in histogram.items()}
    except (
        KeyError,
        TypeError,
        ValueError,
        SyntaxError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise FitError(f"{where} is not a histogram: {error!r}") from error
    if any(tokens > MAX_TOKENS for tokens in shares):
        raise FitError(f"{where}: more than {MAX_TOKENS} tokens")
    if any(tokens < 1 for tokens, share in shares.items() if share > 0.0):
        shares = {max(1, tokens): share for tokens, share in shares.items()}
    if not all(math.isfinite(share) and share >= 0.0 for share in shares.values()):
        raise FitError(f"{where}: shares must be finite and not negative")
    return shares


def regenerate(data: ClientWindows, windows: range, seed: int) -> tuple[FloatArray, IntArray]:
    """Return arrivals made of what is published: in each window each client's own law, at its own rate.

    Args:
        data: The clients.
        windows: Numbers of successive windows.
        seed: Of NumPy's draws.

    Returns:
        Times from the beginning of the first window, sorted, and the client of each.
    """
    generator = np.random.default_rng(seed)
    times: list[FloatArray] = []
    clients: list[IntArray] = []
    for client in range(len(data.rate_per_s)):
        for place, window in enumerate(windows):
            rate = data.rate_per_s[client, window]
            if rate <= 0.0:
                continue
            shape = data.shape[client, window]
            # It has gone on for 32 gaps and a random part of the next when the window starts, as the model.
            total = -32.0 - generator.random()
            passed = np.empty(0)
            wanted = rate * data.window_s
            blocks = []
            while total < wanted:
                count = int(1.1 * (wanted - total)) + 64
                if FAMILIES[int(data.family[client, window])] == "Weibull":
                    gaps = generator.weibull(shape, count) / math.gamma(1.0 + 1.0 / shape)
                else:
                    gaps = generator.gamma(shape, 1.0 / shape, count)
                block = total + np.cumsum(gaps)
                blocks.append(block)
                total = float(block[-1])
            passed = np.concatenate(blocks)
            own = passed[(passed > 0.0) & (passed < wanted)] / rate + place * data.window_s
            times.append(own)
            clients.append(np.full(len(own), client, dtype=np.int64))
    merged, owner = np.concatenate(times), np.concatenate(clients)
    order = np.argsort(merged, kind="stable")
    return merged[order], owner[order]


def pooled_lengths(data: ClientWindows, count: int, seed: int) -> tuple[IntArray, IntArray]:
    """Return prompt and output tokens of ``count`` requests of all clients, drawn by their requests.

    Within a client the two are drawn independently, since only their histograms are published.
    """
    generator = np.random.default_rng(seed)
    known = [n for n, (values, _) in enumerate(data.prompts) if len(values) and len(data.outputs[n][0])]
    if not known:
        raise FitError("no client has lengths")
    rates = data.rate_per_s[known].sum(axis=1)
    drawn = generator.choice(len(known), size=count, p=rates / rates.sum())
    prompts, outputs = np.empty(count), np.empty(count)
    for place, client in enumerate(known):
        mine = np.flatnonzero(drawn == place)
        for column, (values, weights) in ((prompts, data.prompts[client]), (outputs, data.outputs[client])):
            column[mine] = generator.choice(values, size=len(mine), p=weights / weights.sum())
    return prompts.astype(np.int64), outputs.astype(np.int64)


def typical_hours(data: ClientWindows, count: int) -> list[range]:
    """Return hours, as ranges of windows, spread evenly over those in which somebody always asks.

    Raises:
        FitError: There are not so many.
    """
    long = max(1, round(3600.0 / data.window_s))
    active = data.rate_per_s.sum(axis=0) > 0.0
    hours = [
        range(start, start + long)
        for start in range(0, len(active) - long + 1, long)
        if active[start : start + long].all()
    ]
    if len(hours) < count:
        raise FitError(f"{len(hours)} hours in which somebody always asks; needed are {count}")
    return [hours[int((number + 0.5) * len(hours) / count)] for number in range(count)]


def published_statistics(data: ClientWindows, hours: Sequence[range]) -> tuple[Statistics, Ranges]:
    """Return the statistics of arrivals regenerated in some hours, and of who makes them.

    Medians over the hours, and the 10 and 90 % percentiles.
    """
    found = []
    for hour in hours:
        times_s, clients = regenerate(data, hour, hour.start)
        requests = np.bincount(clients, minlength=len(data.rate_per_s))
        found.append(_client_statistics(times_s, requests, data.window_s * len(hour)))
    return _centre(found, np.median)


def model_statistics(
    arrivals: Renewal, clients: int, length_s: float, seeds: range
) -> tuple[Statistics, Ranges]:
    """Return the same statistics of generated arrivals, over episodes."""
    found = []
    for seed in seeds:
        times_s, owners = client_arrivals(arrivals, seed, clients, length_s)
        found.append(_client_statistics(times_s, np.bincount(owners, minlength=clients), length_s))
    return _centre(found, np.median)


def _client_statistics(times_s: FloatArray, requests: IntArray, length_s: float) -> dict[str, float]:
    return {
        **arrival_statistics(times_s, length_s),
        "share of top 10 % of clients": share_of_top_clients(requests),
    }


def _centre(found: list[Statistics], centre: Callable[[list[float]], Any]) -> tuple[Statistics, Ranges]:
    columns = {name: [one[name] for one in found] for name in found[0]}
    ranges = {
        name: (float(np.percentile(column, 10)), float(np.percentile(column, 90)))
        for name, column in columns.items()
    }
    return {name: float(centre(column)) for name, column in columns.items()}, ranges


def fit_client_arrivals(data: ClientWindows, given: dict[str, float]) -> Renewal:
    """Return processes per client: a spread of rates, how they change, and two CVs.

    The CVs are those of the clients' windows below and above :data:`BURSTY_CV`, weighted by requests. The
    share of bursty clients, and how much of the modulation is left in a usual hour, are fitted.

    Args:
        data: The clients.
        given: Of :func:`published_statistics`. The spread of rates is fitted to the share of the top clients,
            the fraction of bursty clients and the modulation to the dispersion and the CV of all gaps.
    """
    n = len(data.rate_per_s)
    spread = fit_client_spread(given["share of top 10 % of clients"], n)
    modulation = fit_modulation(data)

    calm, bursty = (
        float(np.average(data.cv[part], weights=data.rate_per_s[part])) if part.any() else 1.0
        for part in ((data.cv > 0.0) & (data.cv < BURSTY_CV), data.cv >= BURSTY_CV)
    )

    def model(fraction: float, damping: float) -> Renewal:
        return Renewal(
            kind="renewal",
            rate_per_s=rounded(given["rate (1/s)"]),
            cv=rounded(min(max(calm, 0.1), 20.0), 3),
            per_client=True,
            client_rate_cv=rounded(spread, 3),
            bursty=BurstyClients(fraction=rounded(fraction, 2), cv=rounded(min(bursty, 20.0), 3)),
            modulation=None
            if modulation is None or damping == 0.0
            else modulation.model_copy(update={"sigma": rounded(damping * modulation.sigma, 3)}),
        )

    # As long as the hours that are compared, since the rate moves within them; fewer of millions of requests.
    seeds = range(SEEDS if given["rate (1/s)"] < 100.0 else 24)
    names = ["CV of gaps", *(f"dispersion {window_s} s" for window_s in WINDOWS_S)]

    def loss(fraction: float, damping: float) -> float:
        found, _ = model_statistics(model(fraction, damping), n, 3600.0, seeds)
        return sum(math.log(found[name] / given[name]) ** 2 for name in names)

    damping = 0.5
    fraction = min(_FRACTIONS, key=lambda value: loss(value, damping))
    damping = min(_DAMPINGS, key=lambda value: loss(fraction, value))
    fraction = min(_FRACTIONS, key=lambda value: loss(value, damping))
    return model(fraction, damping)


def fit_client_spread(share: float, clients: int) -> float:
    """Return the log-normal CV of rates with which the top 10 % of clients have a share, in the median."""
    generator = np.random.default_rng(1)
    normals = generator.standard_normal((4000, clients))
    top = math.ceil(0.1 * clients)

    def off(sigma: float) -> float:
        weights = np.sort(np.exp(sigma * normals), axis=1)[:, ::-1]
        return float(np.median(weights[:, :top].sum(axis=1) / weights.sum(axis=1))) - share

    low, high = 0.01, math.sqrt(math.log1p(400.0))
    if off(low) > 0.0:
        return 0.0
    if off(high) < 0.0:
        return 20.0
    sigma = float(brentq(off, low, high))
    return math.sqrt(math.expm1(sigma * sigma))


def fit_modulation(data: ClientWindows, far: int = 6) -> RateModulation | None:
    """Return how clients' rates change from window to window, by the variogram of their logarithms.

    Half the mean squared difference over k windows is sigma² (1 - rho^k) for a first-order process; it is
    taken at 1 and at ``far`` windows, each pair weighted by its requests, less what counting noise adds. None
    if it does not grow, or there are no pairs.
    """
    near, distant = _variogram(data, 1), _variogram(data, far)
    if near is None or distant is None or near <= 0.0 or distant <= near:
        return None

    def off(rho: float) -> float:
        return (1.0 - rho**far) / (1.0 - rho) - distant / near

    low, high = 0.01, 0.999
    rho = high if off(high) < 0.0 else low if off(low) > 0.0 else float(brentq(off, low, high))
    sigma = math.sqrt(near / (1.0 - rho))
    return RateModulation(
        sigma=rounded(min(sigma, 3.0), 3),
        correlation_s=rounded(-data.window_s / math.log(rho), 3),
        period_s=data.window_s,
    )


def _variogram(data: ClientWindows, lag: int) -> float | None:
    total = weights = 0.0
    for rates, cvs in zip(data.rate_per_s, data.cv, strict=True):
        both = (rates[lag:] > 0.0) & (rates[:-lag] > 0.0)
        one, other = rates[lag:][both], rates[:-lag][both]
        noise = (cvs[lag:][both] ** 2 / one + cvs[:-lag][both] ** 2 / other) / data.window_s
        weight = np.sqrt(one * other)
        total += float((weight * 0.5 * (np.log(one / other) ** 2 - noise)).sum())
        weights += float(weight.sum())
    return None if weights == 0.0 else total / weights
