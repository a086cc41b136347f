"""Robust least squares of the iteration-time form, in relative error.

Two forms of the attention-free part are fitted: the closed one with a soft knee (non-linear least squares),
and a few knots, linear between them (non-negative least squares: no value may fall). The knots are
taken where they are better on the held-out cells; their grid is chosen by cross-validation inside the
training cells. Both errors are reported.

Needs SciPy (extra ``calibrate``); nothing in the simulator imports this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency.cells import Cell
from dsd_env.extras import needs
from dsd_env.latency.profile import ErrorStats, RegionError, StepCoefficients

__all__ = [
    "FitResult",
    "error_stats",
    "fit_coefficients",
    "fit_knots",
    "fit_split",
    "leave_one_out",
    "relative_errors",
    "split_cells",
    "summarise",
]

P_RANGE = (1.0, 16.0)
"""Search range of the knee's exponent; above 16 the form is the hard maximum to within a per cent or two."""

KNOT_GRIDS: tuple[tuple[int, ...], ...] = (
    (8, 16, 32, 64, 128, 256, 512, 1024),
    (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    (4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
    (4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 768),
    (8, 16, 32, 64, 128, 192, 256, 272, 384, 512, 544, 768, 1024, 2048),
)
"""Inner knots to choose from, in new tokens: octaves, denser where GEMM tiles fill up, and on both sides of
256 and 512 (the RTX 4090 jumps there). Smallest and largest measured numbers of tokens are added, so at most
16 knots result."""

_MIN_CELLS_PER_KNOT = 4
_FOLDS = 4
_REWEIGHTINGS = 12


@dataclass(frozen=True)
class FitResult:
    """Coefficients fitted to the training cells, and their error on the held-out ones.

    Attributes:
        coefficients: the form that was taken.
        error: its error on the held-out cells, that of the other form beside it.
        train: cells fitted to.
        heldout: cells held out.
        closed_form: coefficients with the closed form alone.
        heldout_errors: signed relative error of each held-out cell where it is not simply that of
            ``coefficients`` (leave-one-out: each cell was predicted by a fit of its own).
    """

    coefficients: StepCoefficients
    error: ErrorStats
    train: tuple[Cell, ...]
    heldout: tuple[Cell, ...]
    closed_form: StepCoefficients | None = None
    heldout_errors: tuple[float, ...] | None = None

    def errors(self) -> NDArray[np.float64]:
        """Signed relative errors of the held-out cells; shape ``(len(heldout),)``."""
        if self.heldout_errors is not None:
            return np.array(self.heldout_errors, dtype=np.float64)
        return relative_errors(self.coefficients, self.heldout)


def split_cells(cells: Sequence[Cell], heldout_share: float = 0.25) -> tuple[list[Cell], list[Cell]]:
    """Split into training and held-out cells by a hash of each cell's key.

    The side a cell falls on depends on its key alone: not on the order of cells, on a seed or on which
    other cells are there, so a table that grows keeps its old split.

    Args:
        cells: all cells; keys must be unique.
        heldout_share: expected share held out, strictly between 0 and 1.

    Returns:
        ``(train, heldout)``, both in the given order.

    Raises:
        ValueError: a key occurs twice, or the share is out of range.
    """
    if not 0.0 < heldout_share < 1.0:
        raise ValueError(f"heldout_share must be in (0, 1), got {heldout_share}")
    if len({c.key for c in cells}) != len(cells):
        raise ValueError("cell keys must be unique")
    train: list[Cell] = []
    heldout: list[Cell] = []
    for cell in cells:
        side = heldout if _hash_unit(cell.key) < heldout_share else train
        side.append(cell)
    return train, heldout


def _hash_unit(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b((salt + key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def relative_errors(coefficients: StepCoefficients, cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Signed relative error ``form / cell - 1`` of every cell; shape ``(len(cells),)``."""
    predicted = [coefficients.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens) for c in cells]
    errors: NDArray[np.float64] = np.array(predicted, dtype=np.float64)
    errors /= np.array([c.seconds for c in cells])
    return errors - 1.0


def error_stats(
    coefficients: StepCoefficients, heldout: Sequence[Cell], train_cells: int | None = None, method: str = ""
) -> ErrorStats:
    """Median, 95th percentile and maximum of the absolute relative error, overall and by region.

    Raises:
        ValueError: no held-out cells.
    """
    if not heldout:
        raise ValueError("no held-out cells: a fit without them has no error to report")

    return summarise(relative_errors(coefficients, heldout), heldout, train_cells, method)


def leave_one_out(
    cells: Sequence[Cell], fit: Callable[[Sequence[Cell]], StepCoefficients]
) -> NDArray[np.float64]:
    """Signed relative error of each cell under a fit to all the others; shape ``(len(cells),)``."""
    errors = [
        relative_errors(fit([c for j, c in enumerate(cells) if j != i]), [cell])[0]
        for i, cell in enumerate(cells)
    ]
    return np.array(errors, dtype=np.float64)


def summarise(
    errors: NDArray[np.float64], heldout: Sequence[Cell], train_cells: int | None = None, method: str = ""
) -> ErrorStats:
    """Statistics of given signed relative errors, one a cell; see :func:`error_stats`."""

    def percentiles(part: NDArray[np.float64]) -> tuple[float, float, float]:
        e = 100.0 * np.abs(part)
        median, p95 = np.percentile(e, [50.0, 95.0])
        return round(float(median), 2), round(float(p95), 2), round(float(e.max()), 2)

    regions = []
    for name in dict.fromkeys(c.region for c in heldout):
        inside = np.array([c.region == name for c in heldout])
        median, p95, worst = percentiles(errors[inside])
        regions.append(
            RegionError(name=name, median_pct=median, p95_pct=p95, max_pct=worst, cells=int(inside.sum()))
        )
    median, p95, worst = percentiles(errors)
    return ErrorStats(
        heldout_median_pct=median,
        heldout_p95_pct=p95,
        heldout_max_pct=worst,
        cells=len(heldout),
        train_cells=train_cells,
        method=method,
        regions=tuple(regions),
    )


def fit_coefficients(
    cells: Sequence[Cell], robust_scale: float = 0.05, t0_floor_s: float = 0.0, multi_kv: bool = True
) -> StepCoefficients:
    """Fit the form to cells, minimising a robust (soft-L1) loss of the relative error.

    Every coefficient is >= 0 and p >= 1 by bounds. Starts from several values of p and keeps the best, so
    the result depends on the cells alone.

    Args:
        cells: at least eight.
        robust_scale: relative error above which a cell counts linearly instead of quadratically.
        t0_floor_s: known part of the fixed cost (framework overhead); ``t0`` is not fitted below it.
        multi_kv: whether to fit ``k_multi``; otherwise it is zero.

    Returns:
        The coefficients.

    Raises:
        ValueError: fewer than eight cells.
        RuntimeError: SciPy is not installed, or no start led to finite coefficients.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as e:
        raise RuntimeError(
            "fitting needs SciPy: install the extra with `pip install 'dsd-env[calibrate]'`"
        ) from e
    if len(cells) < 8:
        raise ValueError(f"seven coefficients need at least eight cells, got {len(cells)}")

    seconds = np.array([c.seconds for c in cells])
    new = np.array([c.new_tokens for c in cells], dtype=np.float64)
    kv = np.array([c.kv_tokens for c in cells], dtype=np.float64)
    multi = np.array([c.max_kv_multi_tokens for c in cells], dtype=np.float64)
    kv_multi = np.where(multi > 0.0, kv, 0.0)
    root_weight = np.sqrt(np.array([c.weight for c in cells]))

    # Scaled so that every unknown is of order one: the solver's steps and tolerances then mean the same.
    shortest = float(seconds.min())
    slope = float((seconds / new)[np.argmax(new)])
    per_kv = float(np.median(seconds) / max(float(np.percentile(kv, 90)), 1.0))
    scale = np.array([shortest, shortest, slope, 1.0, per_kv, per_kv, per_kv])

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        t0, w, c, p, k_bw, k_lat, k_multi = x * scale
        line = c * new
        hi = np.maximum(w, line)
        lo = np.minimum(w, line)
        soft = hi * (1.0 + (lo / np.maximum(hi, 1e-300)) ** p) ** (1.0 / p)
        total = t0 + soft + k_bw * kv + k_lat * multi + k_multi * kv_multi
        result: NDArray[np.float64] = root_weight * (total / seconds - 1.0)
        return result

    floor = t0_floor_s / shortest
    if floor >= 1.0:
        raise ValueError(f"t0_floor_s = {t0_floor_s} is not below the shortest cell, {shortest}")
    lower = np.array([floor, 1e-6, 0.0, P_RANGE[0], 0.0, 0.0, 0.0])
    # A bound of width zero is not allowed: too small to matter stands for "not fitted".
    upper = np.array([10.0, 10.0, 10.0, P_RANGE[1], 1e3, 1e3, 1e3 if multi_kv else 1e-12])
    best = closest = None
    for p_start in (1.2, 2.0, 4.0, 8.0):
        for share in (0.1, 0.5):
            start = np.array([max(share, floor * 1.01), 1.0 - share, 0.8, p_start, 0.2, 0.2, 0.2])
            start[-1] = min(start[-1], upper[-1] / 2.0)
            out = least_squares(
                residuals, start, bounds=(lower, upper), loss="soft_l1", f_scale=robust_scale, max_nfev=2000
            )
            if out.success and (best is None or out.cost < best.cost * (1.0 - 1e-9)):
                best = out
            if np.isfinite(out.cost) and (closest is None or out.cost < closest.cost):
                closest = out
    # Where the form describes cells badly, the solver may creep along a flat valley for ever. Where it got
    # to is then as good as its end, and the error on cells that it did not see says how good that is.
    best = best or closest
    if best is None:
        raise RuntimeError("the fit found no finite coefficients from any start; check the cells")
    # A coefficient that moves no cell by a millionth is zero: write it as such.
    moved = best.x * scale * np.array([1.0, 1.0, new.max(), 1.0, kv.max(), multi.max(), kv.max()])
    values = np.where(moved < 1e-6 * shortest, 0.0, best.x * scale)
    t0, w, c, p, k_bw, k_lat, k_multi = (float(f"{v:.6g}") for v in values)
    return StepCoefficients(
        t0_s=max(t0, t0_floor_s),
        w_s=w,
        c_s_per_token=c,
        p=max(p, 1.0),
        k_bw_s_per_token=k_bw,
        k_lat_s_per_token=k_lat,
        k_multi_s_per_token=k_multi,
    )


def _hat_columns(tokens: NDArray[np.float64], knots: Sequence[int]) -> NDArray[np.float64]:
    """Columns whose non-negative combinations are the non-falling piecewise linear functions of tokens.

    The first is constant; column j rises from 0 at knot j-1 to 1 at knot j and stays (the last rises on).
    """
    columns = [np.ones_like(tokens)]
    for j, (left, right) in enumerate(pairwise(knots), start=1):
        upper = np.inf if j == len(knots) - 1 else 1.0
        columns.append(np.clip((tokens - left) / (right - left), 0.0, upper))
    return np.stack(columns, axis=1)


def _design(cells: Sequence[Cell], knots: Sequence[int], multi_kv: bool) -> NDArray[np.float64]:
    """Predicted seconds are this matrix times the unknowns; shape ``(cells, knots + 2 or 3)``."""
    tokens = np.array([c.new_tokens for c in cells], dtype=np.float64)
    kv = 1e-6 * np.array([c.kv_tokens for c in cells], dtype=np.float64)
    longest = 1e-6 * np.array([c.max_kv_multi_tokens for c in cells], dtype=np.float64)
    columns = [_hat_columns(tokens, knots), kv[:, None], longest[:, None]]
    if multi_kv:
        columns.append(np.where(longest > 0.0, kv, 0.0)[:, None])
    return np.hstack(columns)


def _robust_nnls(
    design: NDArray[np.float64],
    cells: Sequence[Cell],
    robust_scale: float,
    offset_s: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """Non-negative unknowns that minimise the soft-L1 loss of the relative error (reweighted NNLS).

    ``offset_s`` is a known part of every cell.
    """
    with needs("calibrate", "fitting latency profiles"):
        from scipy.optimize import nnls

    seconds = np.array([c.seconds for c in cells])
    root_weight = np.sqrt(np.array([c.weight for c in cells]))
    relative = design / seconds[:, None]
    # Columns of one order of magnitude: NNLS tells "zero" from "small" by absolute tolerances.
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    relative = relative / scale
    robust = np.ones_like(seconds)
    unknowns = np.zeros(design.shape[1])
    wanted = 1.0 - offset_s / seconds
    for _ in range(_REWEIGHTINGS):
        row_weight = root_weight * robust
        unknowns, _ = nnls(relative * row_weight[:, None], wanted * row_weight)
        residual = root_weight * (relative @ unknowns - wanted)
        robust = (1.0 + (residual / robust_scale) ** 2) ** -0.25
    result: NDArray[np.float64] = unknowns / scale
    return result


def _knots_within(cells: Sequence[Cell], inner: Sequence[int]) -> tuple[int, ...]:
    """Knots of a grid between the smallest and the largest number of tokens, each with a cell to hold it."""
    tokens = sorted({c.new_tokens for c in cells})
    knots = [tokens[0]]
    for knot in (*(k for k in inner if tokens[0] < k < tokens[-1]), tokens[-1]):
        if any(knots[-1] < t <= knot for t in tokens):
            knots.append(knot)
    return tuple(knots)


def _choose_knots(
    cells: Sequence[Cell], robust_scale: float, multi_kv: bool, grids: Sequence[Sequence[int]]
) -> tuple[int, ...] | None:
    """The grid with the smallest cross-validated loss inside the cells; ``None`` if they are too few."""
    folds = [int(_hash_unit(c.key, "fold") * _FOLDS) for c in cells]
    best: tuple[float, tuple[int, ...]] | None = None
    for grid in grids:
        knots = _knots_within(cells, grid)
        if len(knots) < 2 or len(cells) < _MIN_CELLS_PER_KNOT * (len(knots) + 3):
            continue
        loss = 0.0
        for fold in range(_FOLDS):
            inside = [c for c, f in zip(cells, folds, strict=True) if f != fold]
            outside = [c for c, f in zip(cells, folds, strict=True) if f == fold]
            if not outside:
                continue
            unknowns = _robust_nnls(_design(inside, knots, multi_kv), inside, robust_scale)
            seconds = np.array([c.seconds for c in outside])
            weight = np.array([c.weight for c in outside])
            residual = _design(outside, knots, multi_kv) @ unknowns / seconds - 1.0
            loss += float((np.sqrt(1.0 + weight * (residual / robust_scale) ** 2) - 1.0).sum())
        if best is None or loss < best[0]:
            best = loss, knots
    return None if best is None else best[1]


def _with_knots(
    closed: StepCoefficients, knots: Sequence[int], values: NDArray[np.float64], slopes: Sequence[float]
) -> StepCoefficients:
    """Validated coefficients with these knots and attention slopes, the closed form's kept beside."""
    rounded = tuple((m, float(f"{v:.6g}")) for m, v in zip(knots, values, strict=True))
    k_bw, k_lat, k_multi = slopes
    return StepCoefficients(
        t0_s=closed.t0_s,
        w_s=closed.w_s,
        c_s_per_token=closed.c_s_per_token,
        p=closed.p,
        k_bw_s_per_token=k_bw,
        k_lat_s_per_token=k_lat,
        k_multi_s_per_token=k_multi,
        compute_knots=rounded,
    )


def fit_knots(
    cells: Sequence[Cell],
    closed: StepCoefficients,
    robust_scale: float = 0.05,
    multi_kv: bool = True,
    grids: Sequence[Sequence[int]] = KNOT_GRIDS,
    attention: StepCoefficients | None = None,
) -> StepCoefficients | None:
    """Fit knots and attention together, minimising the same robust loss as :func:`fit_coefficients`.

    The problem is linear in its unknowns (rises between knots, attention coefficients), all of them >= 0.

    Args:
        cells: training cells.
        closed: closed form fitted to the same cells; its ``t0``, ``w``, ``c``, ``p`` are kept beside.
        robust_scale: relative error above which a cell counts linearly instead of quadratically.
        multi_kv: whether to fit ``k_multi``; otherwise it is zero.
        grids: inner knots to choose from by cross-validation.
        attention: if given, its attention coefficients are kept and only the knots are fitted, to the first
            grid (for measured iterations too few to tell attention from the rest).

    Returns:
        The coefficients, or ``None`` if there are fewer than four cells to each unknown.
    """
    if attention is not None:
        inner = _knots_within(cells, grids[0])
        offset = np.array([attention.attention_s(c.kv_tokens, c.max_kv_multi_tokens) for c in cells])
        tokens = np.array([c.new_tokens for c in cells], dtype=np.float64)
        rises = _robust_nnls(_hat_columns(tokens, inner), cells, robust_scale, offset)
        slopes = [attention.k_bw_s_per_token, attention.k_lat_s_per_token, attention.k_multi_s_per_token]
        return _with_knots(closed, inner, np.cumsum(rises), slopes)
    knots = _choose_knots(cells, robust_scale, multi_kv, grids)
    if knots is None:
        return None
    x = _robust_nnls(_design(cells, knots, multi_kv), cells, robust_scale)
    values = np.cumsum(x[: len(knots)])
    if values[0] <= 0.0:
        return None
    slopes = [float(f"{v * 1e-6:.6g}") for v in x[len(knots) :]] + [0.0] * (not multi_kv)
    return _with_knots(closed, knots, values, slopes)


def fit_split(
    cells: Sequence[Cell],
    heldout_share: float = 0.25,
    t0_floor_s: float = 0.0,
    multi_kv: bool = True,
    knots: bool = True,
    against: str = "interpolated kernel sums",
) -> FitResult:
    """Split, fit both forms on the training cells and take the one that is better on the held-out ones.

    Better means a smaller sum of median and 95th percentile of the absolute relative error. That choice
    between two looks at the held-out cells; nothing else does.

    Args:
        cells: all cells.
        heldout_share: expected share held out.
        t0_floor_s: known part of the fixed cost.
        multi_kv: whether to fit ``k_multi``.
        knots: whether to try knots at all.
        against: what the cells are, for the text of the method.
    """
    train, heldout = split_cells(cells, heldout_share)
    closed = fit_coefficients(train, t0_floor_s=t0_floor_s, multi_kv=multi_kv)
    method = (
        f"{len(heldout)} of {len(cells)} cells held out by a hash of the cell's name, fit on {len(train)}; "
        f"the error is that of the form against {against}"
    )
    taken, error = closed, error_stats(closed, heldout, len(train), method)
    free = fit_knots(train, closed, multi_kv=multi_kv) if knots else None
    if free is not None:
        rival = error_stats(free, heldout, len(train), method)
        if _badness(rival) < _badness(error):
            taken, error, rival = free, rival, error
        error = error.model_copy(
            update={
                "other_form_median_pct": rival.heldout_median_pct,
                "other_form_p95_pct": rival.heldout_p95_pct,
            }
        )
    return FitResult(taken, error, tuple(train), tuple(heldout), closed)


def _badness(error: ErrorStats) -> float:
    return error.heldout_median_pct + error.heldout_p95_pct
