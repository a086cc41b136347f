"""Latency profiles: what one iteration of one model on one device costs in seconds.

A profile is a handful of named coefficients fitted to measured tables, stored as YAML together with
where the numbers come from and how far the fit is from cells that it did not see::

    t = t0 + (w^p + (c*m)^p)^(1/p) + k_bw * sum_kv + [any q > 1] * (k_lat * max_kv + k_multi * sum_kv)

``m`` is the number of new tokens in the iteration over all its sequences, ``sum_kv`` the number of KV
entries attended to over all sequences, ``max_kv`` the longest context among the sequences that process
more than one new token (q > 1: a verification or a prefill chunk). The parts are the fixed cost, the soft
maximum of the weight-reading floor ``w`` and the compute line ``c*m``, and attention over the cache.

``k_multi`` is zero on GPUs whose multi-token attention kernel packs grouped heads and splits long sequences
(FlashAttention-3). Elsewhere one sequence with q > 1 in the batch puts *every* sequence of the iteration
on the slower kernel: attention of the RTX 4090's measured mixed batches takes about twice as long (1.8-2.4
times) as that of decoding alone.

The attention-free part may instead be a table of a few knots ``(m, seconds)``, linear between them
(``compute_knots``), where that describes cells better which the fit did not see: GEMM time rises in steps
that no smooth knee follows, and on CPUs it can fall where another kernel takes over. ``t0``, ``w``, ``c`` and
``p`` then still hold the closed form's fit, for comparison.

The same form serves targets (batched verification) and drafters (``m = 1`` steps and prefill).
Nothing here needs more than the standard library, numpy, pydantic and PyYAML; fitting lives in
:mod:`dsd_env.calibration.latency.fit` and the readers of measured tables in
:mod:`dsd_env.calibration.latency.tables`.
"""

from __future__ import annotations

import difflib
import functools
import os
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_yaml
from dsd_env.files import write_text
from dsd_env.latency.overhead import EngineOverhead
from dsd_env.paths import config_dir
from dsd_env.strict_model import StrictNumbers, expected_type
from dsd_env.text import whereabouts

__all__ = [
    "ErrorStats",
    "ExternalCheck",
    "Interconnect",
    "LatencyProfile",
    "Memory",
    "Noise",
    "Power",
    "ProfileError",
    "Provenance",
    "RegionError",
    "Source",
    "StepCoefficients",
    "list_profiles",
    "load_profile",
    "save_profile",
]

MAX_KNOTS = 32
"""Upper bound of ``compute_knots``: a few numbers that one can look at, no table of measurements."""

MAX_TABLE_TOKENS = 1 << 22
"""Upper bound of :meth:`LatencyProfile.compute_table_s` (32 MiB of float64)."""


class ProfileError(ValueError):
    """A latency profile cannot be loaded; the message names file, key, value and what is allowed."""


UNIT_GUARDS: dict[str, float] = {
    "t0_s": 10.0,
    "w_s": 10.0,
    "c_s_per_token": 1.0,
    "k_bw_s_per_token": 1e-2,
    "k_lat_s_per_token": 1e-2,
    "k_multi_s_per_token": 1e-2,
    "compute_knots": 10.0,
}
"""Largest coefficients of a profile whose units are not trusted: no physics, but guards against milli- or
microseconds given as seconds."""

_Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Percent = Annotated[float, Field(ge=0.0, le=1000.0, allow_inf_nan=False)]
_Watts = Annotated[float, Field(ge=0.0, le=1e5, allow_inf_nan=False)]
_PositiveInt = Annotated[int, Field(gt=0)]
_Count = Annotated[int, Field(ge=0)]
_Text = Annotated[str, Field(min_length=1)]


class _Model(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


def _between_knots(knots: tuple[tuple[int, float], ...], new_tokens: int) -> float:
    """Value at ``new_tokens``; scalar arithmetic in a fixed order: every caller gets the same bits."""
    right = bisect_right(knots, new_tokens, key=lambda knot: knot[0])
    if right == 0:
        return knots[0][1]
    right = min(right, len(knots) - 1)
    m0, s0 = knots[right - 1]
    m1, s1 = knots[right]
    return s0 + (s1 - s0) * ((new_tokens - m0) / (m1 - m0))


class StepCoefficients(_Model):
    """Coefficients of the iteration-time form (see the module's docstring).

    Attributes:
        t0_s: fixed cost of an iteration: kernel launches, norms, sampling. Seconds.
        w_s: memory floor: time to read the weights once. Seconds.
        c_s_per_token: slope of the compute-bound line. Seconds per new token.
        p: sharpness of the knee between floor and line, 1 (sum) to 64 (practically the maximum).
        k_bw_s_per_token: cost of reading one token's KV once. Seconds per cached token.
        k_lat_s_per_token: extra cost, per cached token of the longest sequence that processes more than one
            new token, of multi-token attention. Seconds per cached token.
        k_multi_s_per_token: what every cached token costs on top of ``k_bw`` in an iteration where some
            sequence processes more than one new token. Seconds per cached token.
        compute_knots: attention-free part as ``(tokens, seconds)`` pairs, 2 to 32 of them, tokens rising;
            linear between knots, constant before the first, with the last slope after the last, which must
            not fall. Between others seconds may fall, since a kernel for one or two tokens can be slower than
            the one for a few. If given it replaces ``t0 + (w^p + (c*m)^p)^(1/p)``, whose coefficients then
            only document the closed form's fit to the same cells.
        single_token_s: what an iteration of one single token takes more than that, where a matrix-vector
            kernel is slower than the kernel for a few tokens. Seconds; None: nothing.
    """

    t0_s: _Seconds
    w_s: _Seconds
    c_s_per_token: _Seconds
    p: Annotated[float, Field(ge=1.0, le=64.0, allow_inf_nan=False)]
    k_bw_s_per_token: _Seconds = 0.0
    k_lat_s_per_token: _Seconds = 0.0
    k_multi_s_per_token: _Seconds = 0.0
    compute_knots: Annotated[tuple[tuple[_PositiveInt, _Seconds], ...], Field(min_length=2)] | None = None
    single_token_s: Annotated[float, Field(ge=0.0, le=10.0)] | None = None

    @model_validator(mode="after")
    def _takes_time(self) -> StepCoefficients:
        if self.t0_s + self.w_s <= 0.0:
            raise ValueError("t0_s + w_s must be > 0: an iteration has to take time")
        return self

    @model_validator(mode="after")
    def _knots_in_order(self) -> StepCoefficients:
        knots = self.compute_knots
        if knots is None:
            return self
        if len(knots) > MAX_KNOTS:
            raise ValueError(f"compute_knots: {len(knots)} knots, allowed 2 to {MAX_KNOTS}")
        for m0, s0 in knots:
            if s0 <= 0.0:
                raise ValueError(f"compute_knots: seconds must be > 0, got ({m0}, {s0})")
        for (m0, s0), (m1, s1) in pairwise(knots):
            if m1 <= m0:
                raise ValueError(f"compute_knots: tokens must rise, got ({m0}, {s0}) before ({m1}, {s1})")
        (m0, s0), (m1, s1) = knots[-2:]
        if s1 < s0:
            raise ValueError(
                "compute_knots: seconds must not fall between the last two, since larger iterations go on "
                f"with their slope, got ({m0}, {s0}) before ({m1}, {s1})"
            )
        return self

    def compute_s(self, new_tokens: int) -> float:
        """Attention-free part of an iteration of ``new_tokens`` tokens: the knots, or the closed form."""
        if self.compute_knots is None:
            seconds = self.closed_form_s(new_tokens)
        else:
            seconds = _between_knots(self.compute_knots, new_tokens)
        if new_tokens == 1 and self.single_token_s is not None:
            seconds += self.single_token_s
        return seconds

    def closed_form_s(self, new_tokens: int) -> float:
        """Attention-free part by ``t0 + (w^p + (c*m)^p)^(1/p)``, whether or not there are knots.

        Evaluated as ``hi * (1 + (lo/hi)^p)^(1/p)``, which neither overflows nor underflows for large p.
        """
        line = self.c_s_per_token * new_tokens
        hi, lo = (self.w_s, line) if self.w_s >= line else (line, self.w_s)
        if lo <= 0.0:
            return self.t0_s + hi
        soft: float = hi * (1.0 + (lo / hi) ** self.p) ** (1.0 / self.p)
        return self.t0_s + soft

    def attention_s(self, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Attention part; see :meth:`LatencyProfile.attention_s`."""
        if max_kv_multi_tokens == 0:
            return self.k_bw_s_per_token * kv_tokens
        rate = self.k_bw_s_per_token + self.k_multi_s_per_token
        return rate * kv_tokens + self.k_lat_s_per_token * max_kv_multi_tokens

    def step_s(self, new_tokens: int, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Duration of one iteration in seconds; see :meth:`LatencyProfile.step_s`."""
        if new_tokens < 0 or kv_tokens < 0 or max_kv_multi_tokens < 0:
            raise ValueError(
                "token counts must be >= 0, got "
                f"new_tokens={new_tokens}, kv_tokens={kv_tokens}, max_kv_multi_tokens={max_kv_multi_tokens}"
            )
        return self.compute_s(new_tokens) + self.attention_s(kv_tokens, max_kv_multi_tokens)


class Power(_Model):
    """Electrical power of all devices of the profile together (four GPUs at tensor parallelism 4).

    Attributes:
        idle_w: power with the model loaded and no work. Watts.
        busy_w: power while an iteration runs. Watts.
        label: ``spec`` for data-sheet figures, ``measured`` for a meter's.
        note: where the two numbers come from.
    """

    idle_w: _Watts
    busy_w: _Watts
    label: Literal["spec", "measured"]
    note: _Text

    @model_validator(mode="after")
    def _ordered(self) -> Power:
        if self.busy_w < self.idle_w:
            raise ValueError(f"busy_w ({self.busy_w}) must be >= idle_w ({self.idle_w})")
        return self


class Noise(_Model):
    """How iterations of equal work scatter, fitted to repeated measurements by ``calibration.latency.noise``.

    Attributes:
        sigma: standard deviation of the logarithm of an iteration's time, stragglers left out.
        straggler_share: share of iterations that are stragglers.
        straggler_factor: mean time of a straggler over the median of its kind.
        source: which repeats this was fitted to.
    """

    sigma: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
    straggler_share: Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)] = 0.0
    straggler_factor: Annotated[float, Field(ge=1.0, le=100.0, allow_inf_nan=False)] = 1.0
    source: _Text


class Memory(_Model):
    """Memory of the profile's GPUs, and what a running model takes of it; for each GPU.

    Attributes:
        gpu_memory_bytes: memory of one GPU, as its driver reports it.
        activation_bytes_per_sequence: sampling's peak, for each sequence in the batch.
        activation_bytes_per_token: a layer's peak, for each new token in the iteration.
        note: where the figures come from.
    """

    gpu_memory_bytes: _PositiveInt
    activation_bytes_per_sequence: _Count = 0
    activation_bytes_per_token: _Count = 0
    note: str = ""


class Interconnect(_Model):
    """What joins the GPUs of a profile that runs on several.

    Attributes:
        kind: ``nvlink`` or ``pcie``.
        bandwidth_bytes_per_s: bus bandwidth of a large all-reduce, ``2 (n - 1) / n`` times its bytes over its
            time.
        latency_s: time of the smallest all-reduce.
        source: the measured table, or that it is derived from the two figures.
    """

    kind: Literal["nvlink", "pcie"]
    bandwidth_bytes_per_s: Annotated[float, Field(ge=1e8, le=1e13, allow_inf_nan=False)]
    latency_s: Annotated[float, Field(ge=0.0, le=1e-2, allow_inf_nan=False)]
    source: _Text


class Source(_Model):
    """One origin of measured numbers."""

    name: _Text
    url: str = ""
    commit: str = ""
    licence: _Text
    used_for: str = ""


class Provenance(_Model):
    """Where a profile comes from: sources, and the command that rebuilds it."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    command: _Text
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class RegionError(_Model):
    """Held-out relative error inside one part of the grid (for example ``decode`` or ``prefill``)."""

    name: _Text
    median_pct: _Percent
    p95_pct: _Percent
    max_pct: _Percent
    cells: _PositiveInt


class ErrorStats(_Model):
    """Absolute relative error of the fitted form on cells that the fit did not see, in per cent.

    Attributes:
        heldout_median_pct: median over held-out cells.
        heldout_p95_pct: 95th percentile over held-out cells.
        heldout_max_pct: largest error over held-out cells.
        cells: number of held-out cells.
        train_cells: number of cells fitted to.
        method: how cells were held out (for example ``split`` or ``leave-one-out``), in words.
        regions: the same statistics by part of the grid.
        other_form_median_pct: median of the form that was not taken (the closed form where the profile has
            knots, the knots where it has none) on the same cells; ``None`` if only one was fitted.
        other_form_p95_pct: its 95th percentile.
    """

    heldout_median_pct: _Percent
    heldout_p95_pct: _Percent
    heldout_max_pct: _Percent | None = None
    cells: _PositiveInt
    train_cells: _Count | None = None
    method: str = ""
    regions: tuple[RegionError, ...] = ()
    other_form_median_pct: _Percent | None = None
    other_form_p95_pct: _Percent | None = None


class ExternalCheck(_Model):
    """Comparison with whole iterations measured elsewhere: ratios measured / profile.

    A ratio above 1 means that the real system was slower than this profile says.
    """

    name: _Text
    ratio_median: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    ratio_min: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    ratio_max: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    cells: _PositiveInt
    note: str = ""


class LatencyProfile(_Model):
    """Latency of one (model, device, parallelism, precision) with provenance and error.

    Attributes:
        name: name of the profile; equals the file's stem for shipped profiles.
        role: ``target`` (batched, verifies) or ``drafter``. A drafter's coefficients have the same meaning.
        model: model name, for example ``Llama-3-70B``.
        device: device name, for example ``H100-SXM-80GB``.
        parallelism: tensor-parallel degree, i.e. number of devices used together.
        precision: number format of weights (and activations), for example ``bf16`` or ``int4``.
        label: ``measured`` (whole iterations), ``fitted`` (to sums of measured kernels), ``published``
            (derived from published tokens/s).
        coefficients: see :class:`StepCoefficients`.
        interconnect: what joins the devices, see :class:`Interconnect`; ``None`` for one, or if not known.
        weight_bytes: bytes of weights over all devices; a draft head's are its own, not those it shares.
        kv_bytes_per_token: bytes of KV cache of one token over all layers and devices.
        memory: see :class:`Memory`; ``None`` if not known.
        context_limit_tokens: longest context of the model, or ``None`` if no limit is modelled.
        kv_capacity_tokens: tokens of KV cache that fit beside the weights, or ``None`` if not stated.
        kv_capacity_note: how ``kv_capacity_tokens`` was derived.
        power: see :class:`Power`; all devices together.
        provenance: see :class:`Provenance`.
        error: see :class:`ErrorStats`.
        external_checks: comparisons with whole iterations measured elsewhere.
        noise: scatter of iterations of equal work, or ``None`` where no repeats were measured.
        notes: anything a reader should know before trusting the numbers.
        overhead: what the engine adds to these times (see :class:`dsd_env.latency.overhead.EngineOverhead`);
            ``None``: nothing is known, or it is part of them.
        trust_units: whoever made it says that units are right, so that coefficients of any size load
            (:data:`UNIT_GUARDS`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    role: Literal["target", "drafter"]
    model: _Text
    device: _Text
    parallelism: Annotated[int, Field(ge=1, le=64)]
    precision: _Text
    label: Literal["measured", "fitted", "published"]
    coefficients: StepCoefficients
    interconnect: Interconnect | None = None
    weight_bytes: _PositiveInt
    kv_bytes_per_token: _PositiveInt
    memory: Memory | None = None
    context_limit_tokens: _PositiveInt | None = None
    kv_capacity_tokens: _PositiveInt | None = None
    kv_capacity_note: str = ""
    power: Power
    provenance: Provenance
    error: ErrorStats
    external_checks: tuple[ExternalCheck, ...] = ()
    noise: Noise | None = None
    notes: tuple[str, ...] = ()
    overhead: EngineOverhead | None = None
    trust_units: Annotated[bool | None, AfterValidator(lambda value: value or None)] = None

    @model_validator(mode="after")
    def _plausible_units(self) -> LatencyProfile:
        beyond = beyond_guards(self.coefficients)
        if beyond and not self.trust_units:
            raise ValueError(
                "\n  ".join(beyond)
                + "\n  (if the units are right: trust_units: true in the profile, or calibrate.py "
                "--trust-units)"
            )
        return self

    def step_s(self, new_tokens: int, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Duration of one iteration.

        Args:
            new_tokens: new tokens processed in the iteration, summed over its sequences (m >= 0).
            kv_tokens: tokens attended to, summed over the sequences: each one's context, its new tokens
                included.
            max_kv_multi_tokens: the same for the longest sequence with more than one new token
                (verification or prefill chunk); 0 if there is none. Being positive is what tells the form
                that the iteration holds such a sequence.

        Returns:
            Seconds. Equals ``compute_table_s(M)[new_tokens] + attention_s(kv_tokens, max_kv_multi_tokens)``
            bit for bit.

        Raises:
            ValueError: a count is negative.
        """
        return self.coefficients.step_s(new_tokens, kv_tokens, max_kv_multi_tokens)

    def attention_s(self, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Attention part of :meth:`step_s`, for engines that read the rest from :meth:`compute_table_s`.

        ``k_bw*kv`` if ``max_kv_multi_tokens == 0``, else ``(k_bw + k_multi)*kv + k_lat*max_kv_multi``;
        products and sum in this order, so that a compiled engine can reproduce every bit. Arguments as in
        :meth:`step_s`, not checked here.
        """
        return self.coefficients.attention_s(kv_tokens, max_kv_multi_tokens)

    def compute_table_s(self, max_tokens: int) -> NDArray[np.float64]:
        """Table of the attention-free part for m = 0 … ``max_tokens`` new tokens.

        Engines read the powers from this table instead of computing them, so that all of them, compiled
        ones included, see the same floats.

        Args:
            max_tokens: largest number of new tokens in an iteration, 0 … 2**22.

        Returns:
            float64 array of shape ``(max_tokens + 1,)``, seconds; entry 0 is ``t0 + w``, or the
            first knot's seconds.

        Raises:
            ValueError: ``max_tokens`` out of range.
        """
        if not 0 <= max_tokens <= MAX_TABLE_TOKENS:
            raise ValueError(f"max_tokens must be in [0, {MAX_TABLE_TOKENS}], got {max_tokens}")
        # Scalar arithmetic on purpose: numpy's vectorised pow may differ from the scalar one in the last bit.
        compute = self.coefficients.compute_s
        return np.fromiter(
            (compute(m) for m in range(max_tokens + 1)), dtype=np.float64, count=max_tokens + 1
        )

    @property
    def step_ms_b1(self) -> float:
        """Milliseconds of a single-sequence, single-token step at a context of 1,024 tokens."""
        return 1e3 * self.step_s(1, 1024, 0)

    def describe(self) -> str:
        """Several lines for people: what it is, its coefficients, its error, where it comes from."""
        k, e = self.coefficients, self.error
        lines = [
            str(self),
            f"  t0 {k.t0_s * 1e3:.3f} ms, w {k.w_s * 1e3:.3f} ms, c {k.c_s_per_token * 1e6:.3f} "
            f"us/token, p {k.p:.2f}, "
            f"k_bw {k.k_bw_s_per_token * 1e9:.3f} ns/token, k_lat {k.k_lat_s_per_token * 1e9:.3f} ns/token, "
            f"k_multi {k.k_multi_s_per_token * 1e9:.3f} ns/token",
            *([_knots_line(k.compute_knots)] if k.compute_knots else []),
            f"  weights {self.weight_bytes / 1e9:.2f} GB, KV {self.kv_bytes_per_token / 1024:.0f} KiB/token"
            + (f", room for {self.kv_capacity_tokens:,} tokens" if self.kv_capacity_tokens else ""),
            *(
                [
                    f"  {self.interconnect.kind}, {self.interconnect.bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
                    f"{1e6 * self.interconnect.latency_s:.1f} us ({self.interconnect.source})"
                ]
                if self.interconnect
                else []
            ),
            *([f"  engine adds {self.overhead.describe()}"] if self.overhead else []),
            f"  power idle {self.power.idle_w:.0f} W, busy {self.power.busy_w:.0f} W ({self.power.label})",
            f"  held out: {e.method}" if e.method else f"  held out: {e.cells} cells",
        ]
        lines += [
            f"  error in {r.name}: median {r.median_pct:.1f} %, p95 {r.p95_pct:.1f} %" for r in e.regions
        ]
        lines += [
            f"  check against {x.name}: measured/profile {x.ratio_median:.2f} "
            f"({x.ratio_min:.2f}-{x.ratio_max:.2f}, {x.cells} cells)"
            for x in self.external_checks
        ]
        if self.noise is not None:
            lines.append(
                f"  noise: sigma {100 * self.noise.sigma:.2f} %, stragglers "
                f"{100 * self.noise.straggler_share:.1f} % at x{self.noise.straggler_factor:.2f} "
                f"({self.noise.source})"
            )
        lines += [f"  source: {s.name} ({s.licence})" for s in self.provenance.sources]
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        """One line that always shows the held-out error."""
        e = self.error
        tp = f" x{self.parallelism}" if self.parallelism > 1 else ""
        return (
            f"{self.name}: {self.model} {self.precision} on {self.device}{tp} ({self.role}, {self.label}), "
            f"step {self.step_ms_b1:.2f} ms at batch 1, held-out error median {e.heldout_median_pct:.1f} % "
            f"p95 {e.heldout_p95_pct:.1f} % over {e.cells} cells"
        )


def beyond_guards(coefficients: StepCoefficients) -> list[str]:
    """Return a line for each coefficient that looks as if it were in another unit than seconds."""
    lines = []
    for name, limit in UNIT_GUARDS.items():
        value = getattr(coefficients, name)
        numbers = {name: value}
        if name == "compute_knots":
            numbers = {f"{name}.{i}.1": seconds for i, (_, seconds) in enumerate(value or ())}
        lines += [
            f"coefficients.{key} = {number:g}: must be <= {limit:g} (allowed 0 to {limit:g})"
            for key, number in numbers.items()
            if number > limit
        ]
    return lines


def _knots_line(knots: tuple[tuple[int, float], ...]) -> str:
    return "  knots (tokens: ms) " + ", ".join(f"{m}: {1e3 * s:.3g}" for m, s in knots)


class _Dumper(strict_yaml.Dumper):
    """Safe dumper that writes a short list of numbers on one line."""


def _numbers_on_one_line(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flow = bool(value) and all(isinstance(v, int | float) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _numbers_on_one_line)


_RANGE_WORDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _allowed(error: Mapping[str, Any]) -> str:
    """What pydantic's error says about the allowed values, in one phrase."""
    ctx = error.get("ctx") or {}
    bounds = [f"{_RANGE_WORDS[k]} {v}" for k, v in ctx.items() if k in _RANGE_WORDS]
    kind = error["type"]
    wrong = expected_type(error)
    if wrong is not None:
        return wrong
    if kind == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    if kind == "missing":
        return "this key is required"
    if kind == "literal_error":
        return f"must be one of {ctx.get('expected')}"
    if bounds:
        return "must be " + " and ".join(bounds)
    message: str = error["msg"]
    return message.removeprefix("Value error, ")


def _full_range(loc: tuple[Any, ...]) -> str:
    """Both bounds of a coefficient (pydantic's error names only the one that was crossed)."""
    if len(loc) < 2 or loc[0] != "coefficients":
        return ""
    high = UNIT_GUARDS.get(str(loc[1]), 64.0 if loc[1] == "p" else None)
    low = 1 if loc[1] == "p" else 0
    return "" if high is None else f" (allowed {low} to {high:g})"


def _explain(path: Path, error: ValidationError) -> ProfileError:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if not item["loc"] and item["type"] == "value_error":
            lines.append(f"  {_allowed(item)}")
            continue
        shown = "" if item["type"] == "missing" else f" = {item['input']!r:.80}"
        full_range = _full_range(item["loc"])
        lines.append(f"  {key}{shown}: {_allowed(item)}{full_range}")
    return ProfileError(f"{path}: not a valid latency profile:\n" + "\n".join(lines))


def _latency_dir() -> Path:
    return config_dir() / "latency"


def list_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(p.stem for p in _latency_dir().glob("*.yaml"))


def load_profile(name_or_path: str | os.PathLike[str]) -> LatencyProfile:
    """Load a profile by name (from the configuration directory) or from a YAML file.

    Args:
        name_or_path: a name such as ``llama-3-70b_h100-sxm_tp4``, or a path: anything that is a
            ``Path``, holds a path separator or ends in ``.yaml``/``.yml``.

    Returns:
        The validated profile. ``str(profile)`` shows its held-out error.

    Raises:
        ProfileError: no such profile, unreadable or malformed YAML, unknown key, impossible value. The
            message names file, key, value and what is allowed.
    """
    text_name = os.fspath(name_or_path)
    is_path = (
        not isinstance(name_or_path, str)
        or os.sep in text_name
        or "/" in text_name
        or text_name.endswith((".yaml", ".yml"))
    )
    if is_path:
        path = Path(text_name)
        if not path.is_file():
            raise ProfileError(f"{path}: no such latency profile file{whereabouts(path)}")
    else:
        path = _latency_dir() / f"{text_name}.yaml"
        if not path.is_file():
            names = list_profiles()
            close = difflib.get_close_matches(text_name, names, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(names) or 'none'}"
            raise ProfileError(f"{path}: no latency profile named '{text_name}'; {hint}")
    stamp = strict_yaml.stamp(path)
    profile = _read(path) if stamp is None else _known(path.absolute(), stamp)
    if not is_path and profile.name != text_name:
        raise ProfileError(f"{path}: name = '{profile.name}': must equal the file's stem '{text_name}'")
    return profile


@functools.lru_cache(maxsize=256)
def _known(path: Path, _stamp: strict_yaml.Stamp) -> LatencyProfile:
    """Return a file's profile, which nobody can change, as long as the file stays the same."""
    return _read(path)


def _read(path: Path) -> LatencyProfile:
    try:
        data = strict_yaml.load(path)
    except strict_yaml.StrictYamlError as e:
        raise ProfileError(str(e)) from e
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    try:
        return LatencyProfile.model_validate(data)
    except ValidationError as e:
        raise _explain(path, e) from e


def save_profile(profile: LatencyProfile, path: str | os.PathLike[str]) -> Path:
    """Write a profile as YAML, atomically (a reader sees the old file or the new one, never half of it).

    Args:
        profile: what to write.
        path: file to write; its directory is created if needed.

    Returns:
        The path written.
    """
    out = Path(path)
    data = profile.model_dump(mode="json", exclude_none=True)
    text = strict_yaml.dumps(data, dumper=_Dumper, width=110)
    write_text(out, text)
    return out
