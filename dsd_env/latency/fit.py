"""Robust non-linear least squares of the iteration-time form, in relative error.

Needs SciPy (extra ``calibrate``); nothing in the simulator imports this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.latency.cells import Cell
from dsd_env.latency.profile import ErrorStats, RegionError, StepCoefficients

__all__ = ["FitResult", "error_stats", "fit_coefficients", "fit_split", "relative_errors", "split_cells"]

P_RANGE = (1.0, 16.0)
"""Search range of the knee's exponent; above 16 the form is the hard maximum to within a per cent or two."""


@dataclass(frozen=True)
class FitResult:
    """Coefficients fitted to the training cells, and their error on the held-out ones."""

    coefficients: StepCoefficients
    error: ErrorStats
    train: tuple[Cell, ...]
    heldout: tuple[Cell, ...]


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
        digest = hashlib.blake2b(cell.key.encode(), digest_size=8).digest()
        side = heldout if int.from_bytes(digest, "big") / 2.0**64 < heldout_share else train
        side.append(cell)
    return train, heldout


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

    def percentiles(cells: Sequence[Cell]) -> tuple[float, float, float]:
        e = 100.0 * np.abs(relative_errors(coefficients, cells))
        median, p95 = np.percentile(e, [50.0, 95.0])
        return round(float(median), 2), round(float(p95), 2), round(float(e.max()), 2)

    regions = []
    for name in dict.fromkeys(c.region for c in heldout):
        part = [c for c in heldout if c.region == name]
        median, p95, worst = percentiles(part)
        regions.append(RegionError(name=name, median_pct=median, p95_pct=p95, max_pct=worst, cells=len(part)))
    median, p95, worst = percentiles(heldout)
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
        RuntimeError: SciPy is not installed, or no start converged.
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
    best = None
    for p_start in (1.2, 2.0, 4.0, 8.0):
        for share in (0.1, 0.5):
            start = np.array([max(share, floor * 1.01), 1.0 - share, 0.8, p_start, 0.2, 0.2, 0.2])
            start[-1] = min(start[-1], upper[-1] / 2.0)
            out = least_squares(
                residuals, start, bounds=(lower, upper), loss="soft_l1", f_scale=robust_scale, max_nfev=2000
            )
            if out.success and (best is None or out.cost < best.cost * (1.0 - 1e-9)):
                best = out
    if best is None:
        raise RuntimeError("the fit did not converge from any start; check the cells for wrong units")
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


def fit_split(
    cells: Sequence[Cell], heldout_share: float = 0.25, t0_floor_s: float = 0.0, multi_kv: bool = True
) -> FitResult:
    """Split, fit on the training cells and report the error on the held-out ones."""
    train, heldout = split_cells(cells, heldout_share)
    coefficients = fit_coefficients(train, t0_floor_s=t0_floor_s, multi_kv=multi_kv)
    method = (
        f"{len(heldout)} of {len(cells)} cells held out by a hash of the cell's name, fit on {len(train)}; "
        "the error is that of the form against interpolated kernel sums"
    )
    return FitResult(
        coefficients, error_stats(coefficients, heldout, len(train), method), tuple(train), tuple(heldout)
    )
