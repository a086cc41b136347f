"""Step times of an engine, as the simulator's profiles say them, from steps that were measured.

vLLM verifies first and then drafts for the next step; the simulator drafts and then verifies. Either way an
iteration of requests that all draft ``k`` takes::

    target(new tokens) + k_bw * KV tokens + [drafts are verified] * verifying
        + [the engine has a drafter] * drafter + k * pass

since vLLM's drafter runs over the new tokens in every step, also where nothing is to be drafted. So its first
pass belongs to the engine, and `pass` is what every draft takes. The fit is of this sum, on whole steps as
the engine took them, its own overhead included. First all parts are fitted with a closed form for the target;
then the target is what the other parts leave of the steps, by their number of new tokens. It may fall where
many steps say so: kernels of a CPU can take longer for one or two new tokens than for four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.engine_bench.runs import Question, Step
from dsd_env.calibration.latency.rising import rising
from dsd_env.latency.profile import (
    ErrorStats,
    LatencyProfile,
    Power,
    Provenance,
    Source,
    StepCoefficients,
    save_profile,
)

Floats = NDArray[np.float64]
MAX_KNOTS = 24
"""Most knots of a fitted target."""
SURE_STEPS = 8
"""Steps of a number of new tokens from which a time longer than that of more tokens is believed."""


@dataclass(frozen=True)
class StepTimes:
    """The sum in the module's description; see :mod:`dsd_env.latency.profile` for its parts.

    Attributes:
        t0_s: Fixed part of the target's time, of the closed form.
        w_s: Time to read its weights, of the closed form.
        c_s_per_token: Time of a new token where computing is what limits, of the closed form.
        p: Sharpness of the knee between the two.
        k_bw_s_per_token: Time per KV token read.
        draft_t0_s: Time of a draft's pass.
        draft_c_s_per_token: Time that every request in it adds.
        verifying_s: What verification adds to a step.
        drafter_s: What every step takes more in an engine that has a drafter than in one that has none.
        knots: (new tokens, seconds) of the target.
        noise_sigma: Robust standard deviation of the logarithm of measured over fitted.
        error_median_pct: Median of the relative error, absolute value, per cent.
        error_p95_pct: Its 95th percentile.
        steps: Steps fitted.
    """

    t0_s: float
    w_s: float
    c_s_per_token: float
    p: float
    k_bw_s_per_token: float
    draft_t0_s: float
    draft_c_s_per_token: float
    verifying_s: float
    drafter_s: float
    knots: tuple[tuple[int, float], ...]
    noise_sigma: float
    error_median_pct: float
    error_p95_pct: float
    steps: int

    def draft_profile(self) -> dict[str, float]:
        """Return the drafter's profile as a scenario takes it."""
        return {"t0_s": self.draft_t0_s, "c_s_per_token": self.draft_c_s_per_token}

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)

    def write_target(self, path: Path, *, model: str, precision: str, date: str) -> None:
        """Write the target's profile, for a scenario to name by its path.

        Args:
            path: A ``.yaml`` file.
            model: The target, in words.
            precision: Number format of the computation.
            date: Date of the measurement, ``YYYY-MM-DD``.
        """
        coefficients = StepCoefficients(
            t0_s=self.t0_s,
            w_s=self.w_s,
            c_s_per_token=self.c_s_per_token,
            p=self.p,
            k_bw_s_per_token=self.k_bw_s_per_token,
            k_lat_s_per_token=0.0,
            k_multi_s_per_token=self.k_bw_s_per_token,
            compute_knots=self.knots,
        )
        profile = LatencyProfile(
            name=path.stem,
            role="target",
            model=model,
            device="this machine",
            parallelism=1,
            precision=precision,
            label="measured",
            coefficients=coefficients,
            weight_bytes=1,
            kv_bytes_per_token=1,
            power=Power(idle_w=0.0, busy_w=0.0, label="spec", note="not measured"),
            provenance=Provenance(
                sources=(Source(name="own measurement of whole vLLM steps", licence="own measurement"),),
                command="scripts/validate_vllm.py",
                date=date,
            ),
            error=ErrorStats(
                heldout_median_pct=self.error_median_pct,
                heldout_p95_pct=self.error_p95_pct,
                cells=self.steps,
                method="the steps that were fitted, none held out",
            ),
            notes=("Weights and KV are not stated (1 byte): only times were measured.",),
            trust_units=True,
        )
        save_profile(profile, path)


def probes(prompt: Sequence[int], batch: int, output_tokens: int) -> list[Question]:
    """Return questions that keep a batch of one size busy: the same one for everybody."""
    return [Question("probe", tuple(prompt), output_tokens) for _ in range(batch)]


class _Steps:
    """Steps as columns."""

    def __init__(self, without: Sequence[Step], with_drafter: Sequence[Step]) -> None:
        steps = [*without, *with_drafter]
        columns = np.array([list(step) for step in steps], dtype=np.float64).T
        self.time_s, self.decoding, self.prefilling, prompt, drafted, self.context, self.length = columns
        self.new = self.decoding + drafted + prompt
        self.verifies = drafted > 0
        self.drafter = np.array([0.0] * len(without) + [1.0] * len(with_drafter))
        self.sequences = self.decoding + self.prefilling

    def beside(self, x: Floats) -> Floats:
        """Return what is not the target's attention-free part, seconds, under the parameters of `fit`."""
        k_bw, draft_t0, draft_c, verifying, drafter = x[4:]
        one_pass = draft_t0 + draft_c * self.sequences
        drafting = drafter + self.length * one_pass
        return np.asarray(k_bw * self.context + verifying * self.verifies + drafting * self.drafter)

    def target(self, x: Floats) -> Floats:
        """Return the closed form of the target's attention-free part, seconds."""
        t0, w, c, p = x[:4]
        return np.asarray(t0 + (w**p + (c * self.new) ** p) ** (1.0 / p))


def fit(without: Sequence[Step], with_drafter: Sequence[Step]) -> StepTimes:
    """Fit step times.

    Args:
        without: Steps of an engine without a drafter.
        with_drafter: Steps of one with a drafter, at several lengths; may be empty.

    Raises:
        ValueError: Fewer than ten steps.
    """
    from scipy.optimize import least_squares

    if len(without) + len(with_drafter) < 10:
        raise ValueError(f"{len(without) + len(with_drafter)} steps are too few to fit step times")
    steps = _Steps(without, with_drafter)
    low = float(np.quantile(steps.time_s, 0.05))
    # Everything in units of a short step, so that all parameters are of a like size.
    begin = np.array([0.1, 0.8, 0.05, 4.0, 1e-5, 0.03, 1e-3, 0.01, 0.03])
    scale = np.array([low, low, low, 1.0, low, low, low, low, low])
    lower = np.array([0.0, 0.0, 1e-6, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    upper = np.array([20.0, 20.0, 5.0, 12.0, 0.05, 5.0, 1.0, 5.0, 5.0])

    def residuals(y: Floats) -> Floats:
        x = y * scale
        return np.asarray(np.log((steps.target(x) + steps.beside(x)) / steps.time_s))

    # A step that something else held up has a large error, which must not pull the fit: a robust loss.
    x = least_squares(residuals, begin, bounds=(lower, upper), loss="soft_l1", f_scale=0.05).x * scale
    knots = _knots(steps.new, steps.time_s - steps.beside(x))
    table = np.interp(steps.new, [m for m, _ in knots], [s for _, s in knots])
    error = np.log((table + steps.beside(x)) / steps.time_s)
    t0, w, c, p, k_bw, draft_t0, draft_c, verifying, drafter = (float(value) for value in x)
    return StepTimes(
        t0_s=t0,
        w_s=w,
        c_s_per_token=c,
        p=p,
        k_bw_s_per_token=k_bw,
        draft_t0_s=draft_t0,
        draft_c_s_per_token=draft_c,
        verifying_s=verifying,
        drafter_s=drafter,
        knots=knots,
        noise_sigma=float(1.4826 * np.median(np.abs(error - np.median(error)))),
        error_median_pct=float(100.0 * np.median(np.abs(np.expm1(error)))),
        error_p95_pct=float(100.0 * np.quantile(np.abs(np.expm1(error)), 0.95)),
        steps=len(error),
    )


def _knots(new: Floats, target_s: Floats) -> tuple[tuple[int, float], ...]:
    """Return the target's time by number of new tokens: medians, made to rise where few steps make them."""
    sizes, counts = np.unique(new.astype(np.int64), return_counts=True)
    often = sizes[np.argsort(-counts, kind="stable")][:MAX_KNOTS]
    # The ends stay, so that nothing is taken from beyond what was measured.
    chosen = np.unique(np.concatenate([often[: MAX_KNOTS - 2], sizes[[0, -1]]]))
    groups = [target_s[new == m] for m in chosen]
    medians = [max(float(np.median(group)), 1e-6) for group in groups]
    weights = [float(len(group)) for group in groups]
    values = rising(medians, weights, sure=SURE_STEPS)
    # A profile goes on with the last slope.
    values[-2:] = rising(values[-2:], weights[-2:])
    knots = tuple((int(m), float(value)) for m, value in zip(chosen, values, strict=True))
    return knots if len(knots) > 1 else (*knots, (knots[0][0] + 1, knots[0][1]))


def table(steps: Sequence[Step]) -> dict[tuple[int, int], tuple[float, int]]:
    """Return the median time of steps without prefill and how many they are, by (requests, drafts of each).

    Steps whose requests drafted different numbers are left out, and so are those after which another number
    was drafted.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for step in steps:
        if step.prefilling or not step.decoding or step.drafted % step.decoding:
            continue
        if step.drafted // step.decoding != step.next_length:
            continue
        groups.setdefault((step.decoding, step.next_length), []).append(step.duration_s)
    return {key: (float(np.median(values)), len(values)) for key, values in sorted(groups.items())}
