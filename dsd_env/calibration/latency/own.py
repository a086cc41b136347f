"""A latency profile from a user's own measured points.

Two ways to fit. With many points the forms of :mod:`dsd_env.calibration.latency.fit`, with the error on
points left out. With few, as from llama-bench's defaults, a straight line in new tokens and cached
tokens (p = 1), its error found by leaving out one point at a time: a knee cannot be told
from a handful of points.

Noise is fitted from repeats of the same iteration (:func:`own_noise`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency.cells import DECODE, Cell
from dsd_env.calibration.latency.fit import (
    FitResult,
    fit_coefficients,
    fit_knots,
    fit_split,
    relative_errors,
    summarise,
)
from dsd_env.calibration.latency.measurements import MeasuredPoint, MeasurementError
from dsd_env.calibration.latency.noise import STRAGGLER_THRESHOLD, NoiseFit, fit_noise
from dsd_env.calibration.latency.plausible import TRUST_HINT
from dsd_env.extras import needs
from dsd_env.latency.profile import (
    LatencyProfile,
    Memory,
    Noise,
    Power,
    Provenance,
    Source,
    StepCoefficients,
    beyond_guards,
)

__all__ = ["Facts", "describe_noise", "fit_points", "own_noise", "own_profile", "weighted_cells"]

FULL_FORM_CELLS = 24
"""From this many points on the full form is fitted (seven unknowns), its error found by cross-validation."""

HASH_SPLIT_CELLS = 160
"""From this many points on a quarter of them is held out instead, as for the shipped tables."""

FOLDS = 5

MAX_SIGMA = 1.0
"""Largest sigma that a profile can state."""

STRAGGLER_SIGMAS = 4.0
"""A repeat within this many robust sigmas is no straggler, whatever its ratio to the median."""

MOST_REPEATS = 400
"""Repeats of a cell that noise is fitted to (the fit looks at every pair)."""


# -------------------------------------------------------------------------------------------------- fitting


def weighted_cells(points: Sequence[MeasuredPoint]) -> list[Cell]:
    """Cells of the points; every region has the same total weight, however many points it has."""
    counts = {p.phase: sum(o.phase == p.phase for o in points) for p in points}
    largest = max(counts.values(), default=0)
    return [p.cell(largest / counts[p.phase]) for p in points]


def _design(cells: Sequence[Cell], columns: Sequence[str]) -> NDArray[np.float64]:
    """One row a cell, one column a coefficient, divided by the cell's duration (relative error)."""
    parts = {
        "w": lambda c: 1.0,
        "c": lambda c: float(c.new_tokens),
        "k_bw": lambda c: float(c.kv_tokens),
        "k_lat": lambda c: float(c.max_kv_multi_tokens),
    }
    return np.array([[parts[name](c) / c.seconds for name in columns] for c in cells])


def _fit_line(cells: Sequence[Cell], columns: Sequence[str]) -> StepCoefficients:
    """Non-negative least squares of the relative error with p = 1."""
    with needs("calibrate", "fitting latency profiles"):
        from scipy.optimize import nnls

    root = np.sqrt([c.weight for c in cells])
    design = _design(cells, columns) * root[:, None]
    scale = np.abs(design).max(axis=0)
    found, _ = nnls(design / scale, root)
    value = {name: float(f"{v:.6g}") for name, v in zip(columns, found / scale, strict=True)}
    if value["w"] <= 0.0:
        # All of the cost was put into slopes; an iteration of no tokens still takes some time.
        value["w"] = 1e-9
    return StepCoefficients(
        t0_s=0.0,
        w_s=value["w"],
        c_s_per_token=value["c"],
        p=1.0,
        k_bw_s_per_token=value.get("k_bw", 0.0),
        k_lat_s_per_token=value.get("k_lat", 0.0),
    )


def _fit_few(cells: Sequence[Cell]) -> tuple[FitResult, list[str]]:
    """Straight line through few cells, with leave-one-out error."""
    single = {c.kv_tokens for c in cells if c.max_kv_multi_tokens == 0}
    several = {c.max_kv_multi_tokens - c.new_tokens for c in cells if c.max_kv_multi_tokens}
    columns, notes = (
        ["w", "c"],
        ["few points: step time affine in new tokens (p = 1), t0 and w not told apart (t0 = 0)"],
    )
    if len(single) > 1:
        columns.append("k_bw")
    else:
        notes.append(
            "decoding measured at one context only: the cost of cached tokens is not known and set to 0"
        )
    if len(several) > 2 and len(cells) >= 8:
        columns.append("k_lat")
    if len(cells) < len(columns) + 2:
        raise MeasurementError(
            f"{len(cells)} point(s) for {len(columns)} coefficients: at least {len(columns) + 2} are "
            "needed to state "
            "an error; measure decoding at more contexts and prefill of more lengths"
        )
    errors = []
    for i, left_out in enumerate(cells):
        without = _fit_line([*cells[:i], *cells[i + 1 :]], columns)
        errors.append(float(relative_errors(without, [left_out])[0]))
    method = f"leave-one-out over the {len(cells)} measured points"
    # A profile states errors of up to 1000 %; beyond, the number means nothing any more.
    error = summarise(np.clip(errors, -10.0, 10.0), cells, len(cells) - 1, method)
    line = _fit_line(cells, columns)
    return FitResult(line, error, tuple(cells), tuple(cells), line, tuple(errors)), notes


def fit_points(points: Sequence[MeasuredPoint]) -> tuple[FitResult, list[str]]:
    """Fit the iteration-time form to measured points.

    Args:
        points: plausible points (see :func:`~dsd_env.calibration.latency.importers.check_plausible`),
            keys unique.

    Returns:
        The fit with its error on points it did not see, and notes on its limits.

    Raises:
        MeasurementError: no decode step, nothing with more than one new token, or too few points.
        RuntimeError: SciPy is missing, or the fit does not converge.
    """
    cells = weighted_cells(points)
    missing = []
    if not any(c.region == DECODE for c in cells):
        missing.append("no decode step (q = 1)")
    if not any(c.new_tokens > 8 for c in cells):
        missing.append("nothing with more than 8 new tokens (a prefill, or a larger batch)")
    if missing:
        raise MeasurementError(
            f"the measurements hold {' and '.join(missing)}: no profile can be made of them"
        )
    if len(cells) < FULL_FORM_CELLS:
        return _fit_few(cells)
    if not any(p.q > 1 and p.context for p in points):
        # A prompt from nothing attends to as many tokens as it has: attention over a cache cannot be told
        # from computing, and would be made up. Cells without a longest context say that it costs nothing.
        cells = [replace(c, max_kv_multi_tokens=0) for c in cells]
        fit, notes = _fit_full(cells)
        return fit, [
            *notes,
            "several new tokens on a cached context not measured: k_lat, k_multi set to 0",
        ]
    return _fit_full(cells)


def _fit_full(cells: Sequence[Cell]) -> tuple[FitResult, list[str]]:
    """Closed form or knots; the error by cross-validation, or of many cells by a held-out quarter."""
    multi = [c for c in cells if c.max_kv_multi_tokens]
    # With one sequence only, k_lat and k_multi multiply the same number.
    several = any(c.kv_tokens > c.max_kv_multi_tokens for c in multi)
    if len(cells) < HASH_SPLIT_CELLS:
        return _fit_cross_validated(cells, several), []
    fit = fit_split(cells, multi_kv=several)
    method = (
        f"{len(fit.heldout)} of {len(cells)} measured points held out by a hash of the point's name, fit on "
        f"{len(fit.train)}"
    )
    error = fit.error.model_copy(update={"method": method})
    unseen = sorted({c.region for c in cells} - {r.name for r in error.regions})
    notes = [f"no point of {name} fell into the held-out part: its error is not known" for name in unseen]
    return replace(fit, error=error), notes


def _fit_cross_validated(cells: Sequence[Cell], multi_kv: bool) -> FitResult:
    """Closed form or knots, whichever predicts cells left out better, then fitted to all cells.

    Cells of each region are dealt to folds in the order of a hash of their names, so every region is
    predicted, and by fits that saw four fifths of it. The choice between two forms looks at these errors.
    """
    fold: dict[str, int] = {}
    for region in dict.fromkeys(c.region for c in cells):
        keys = [c.key for c in cells if c.region == region]
        keys.sort(key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())
        fold |= {key: i % FOLDS for i, key in enumerate(keys)}
    errors: dict[str, NDArray[np.float64] | None] = {f: np.zeros(len(cells)) for f in ("closed", "knots")}
    for k in range(FOLDS):
        train = [c for c in cells if fold[c.key] != k]
        left_out = [i for i, c in enumerate(cells) if fold[c.key] == k]
        closed = fit_coefficients(train, multi_kv=multi_kv)
        forms = {"closed": closed, "knots": fit_knots(train, closed, multi_kv=multi_kv)}
        for name, form in forms.items():
            found = errors[name]
            if form is None:
                errors[name] = None
            elif found is not None:
                found[left_out] = relative_errors(form, [cells[i] for i in left_out])
    method = f"{FOLDS}-fold cross-validation over the {len(cells)} measured points, then fit on all of them"
    stats = {
        name: summarise(found, cells, round(len(cells) * (1 - 1 / FOLDS)), method)
        for name, found in errors.items()
        if found is not None
    }
    closed = fit_coefficients(cells, multi_kv=multi_kv)
    knots = fit_knots(cells, closed, multi_kv=multi_kv) if "knots" in stats else None
    if knots is None:
        stats.pop("knots", None)
    taken = min(stats, key=lambda name: stats[name].heldout_median_pct + stats[name].heldout_p95_pct)
    error = stats[taken]
    for other in stats.keys() - {taken}:
        error = error.model_copy(
            update={
                "other_form_median_pct": stats[other].heldout_median_pct,
                "other_form_p95_pct": stats[other].heldout_p95_pct,
            }
        )
    coefficients = knots if taken == "knots" and knots is not None else closed
    found = errors[taken]
    assert found is not None  # forms without errors are not in stats
    return FitResult(coefficients, error, tuple(cells), tuple(cells), closed, tuple(float(e) for e in found))


# ---------------------------------------------------------------------------------------------------- noise


def own_noise(samples_s: Sequence[Sequence[float]]) -> NoiseFit | None:
    """Scatter and stragglers of repeats on a machine that may be less quiet than a server.

    A straggler is a repeat beyond the ratio of :func:`~dsd_env.calibration.latency.noise.fit_noise` *and*
    beyond four robust sigmas: where ordinary scatter is 10 %, one beyond
    1.1 times the median is nothing special.

    Args:
        samples_s: repeats of each cell, in seconds; cells with fewer than five are left out, of long ones
            every n-th repeat is taken.

    Returns:
        The fit, or ``None`` if no cell has five repeats.
    """
    groups = [s[:: -(-len(s) // MOST_REPEATS)] for s in samples_s if len(s) >= 5]
    if not groups:
        return None
    first = fit_noise(groups)
    return fit_noise(groups, max(STRAGGLER_THRESHOLD, math.exp(STRAGGLER_SIGMAS * first.sigma_robust)))


def describe_noise(noise: NoiseFit | None) -> str:
    """One sentence for a profile's notes."""
    if noise is None:
        return "noise: not measured (no point has five repeats)"
    return (
        f"noise over {noise.repeats} repeats of {noise.kinds} iterations: lognormal sigma {noise.sigma:.4f} "
        f"(robust {noise.sigma_robust:.4f}); {noise.stragglers} stragglers, on average "
        f"{noise.straggler_factor:.2f} times the iteration's median"
        + (f"; the profile says {MAX_SIGMA:g}, the most that it can" if noise.sigma > MAX_SIGMA else "")
    )


# -------------------------------------------------------------------------------------------------- profile


@dataclass(frozen=True)
class Facts:
    """What a profile states besides its coefficients, and no measurement of time can tell.

    Attributes:
        name: name of the profile.
        role: ``target`` or ``drafter``.
        model: model name.
        device: device name.
        precision: number format.
        weight_bytes: bytes of weights over all devices.
        kv_bytes_per_token: bytes of KV cache of one token.
        power: power of all devices together.
        parallelism: number of devices used together.
        context_limit_tokens: longest context, if any.
        memory_bytes: memory of all devices together, if known; gives the room for KV.
    """

    name: str
    role: str
    model: str
    device: str
    precision: str
    weight_bytes: int
    kv_bytes_per_token: int
    power: Power
    parallelism: int = 1
    context_limit_tokens: int | None = None
    memory_bytes: int | None = None


def own_profile(
    facts: Facts,
    points: Sequence[MeasuredPoint],
    source: Source,
    command: str,
    date: str,
    notes: Sequence[str] = (),
    *,
    trust_units: bool = False,
) -> tuple[LatencyProfile, FitResult, NoiseFit | None]:
    """Fit points and put the profile together; its label is ``measured``.

    Args:
        facts: what no measurement of time can tell.
        points: measured points, keys unique.
        source: where they come from.
        command: the command line, for the provenance.
        date: ISO date of today.
        notes: what to know about the points.
        trust_units: the user says that units are right; the profile says so too, so that it loads. Points of
            certain unit need nobody's word.

    Returns:
        The profile, the fit behind it, and that of its noise.

    Raises:
        MeasurementError: too few points, no room for KV in the memory given, or coefficients that look like
            another unit.
        pydantic.ValidationError: a fact is impossible.
    """
    capacity, capacity_note, memory = None, "", None
    if facts.memory_bytes is not None:
        room = 0.9 * facts.memory_bytes - facts.weight_bytes
        if room < facts.kv_bytes_per_token:
            raise MeasurementError(
                f"90 % of the memory ({facts.memory_bytes / 1024**3:.1f} GiB) do not hold the weights "
                f"({facts.weight_bytes / 1024**3:.1f} GiB): check --memory-gib, --weight-bytes"
            )
        memory = Memory(
            gpu_memory_bytes=facts.memory_bytes // facts.parallelism,
            note="as given; what activations take is not known and counts as nothing",
        )
        capacity = int(room / facts.kv_bytes_per_token)
        capacity_note = (
            f"(0.9 * {facts.memory_bytes / 1024**3:.0f} GiB - {facts.weight_bytes / 1024**3:.1f} GiB of "
            "weights) / "
            f"{facts.kv_bytes_per_token / 1024:g} KiB a token"
        )
    fit, limits = fit_points(points)
    beyond = beyond_guards(fit.coefficients)
    trusted = trust_units or (bool(beyond) and all(p.certain_unit for p in points))
    if beyond and not trusted:
        raise MeasurementError(f"the fit says {'; '.join(beyond)}: not in seconds?{TRUST_HINT}")
    noise = own_noise([p.samples_s for p in points])
    scatter = None
    if noise is not None:
        scatter = Noise(
            sigma=float(f"{min(noise.sigma, MAX_SIGMA):.4g}"),
            straggler_share=float(f"{min(noise.straggler_share, 0.5):.4g}"),
            straggler_factor=float(f"{min(noise.straggler_factor, 100.0):.4g}"),
            source=f"{noise.repeats} repeats of {noise.kinds} iterations, {source.name}",
        )
    profile = LatencyProfile.model_validate(
        {
            "noise": scatter,
            "name": facts.name,
            "role": facts.role,
            "model": facts.model,
            "device": facts.device,
            "parallelism": facts.parallelism,
            "precision": facts.precision,
            "label": "measured",
            "coefficients": fit.coefficients,
            "weight_bytes": facts.weight_bytes,
            "kv_bytes_per_token": facts.kv_bytes_per_token,
            "memory": memory,
            "context_limit_tokens": facts.context_limit_tokens,
            "kv_capacity_tokens": capacity,
            "kv_capacity_note": capacity_note,
            "power": facts.power,
            "provenance": Provenance(sources=(source,), command=command, date=date),
            "error": fit.error,
            "notes": (*notes, *limits, describe_noise(noise)),
            "trust_units": trusted or None,
        }
    )
    return profile, fit, noise
