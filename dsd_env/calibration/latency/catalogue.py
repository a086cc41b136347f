"""The builders of the shipped profiles.

``build(name, data_dir, command, date)`` turns measured tables into a :class:`LatencyProfile`; everything
the profile states about itself (sources, error, checks against whole iterations, notes) is put together here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.latency import engines, sums
from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY, Cell
from dsd_env.calibration.latency.edge import edge_step, resident_bytes
from dsd_env.calibration.latency.entries import (
    CATALOGUE,
    EdgeEntry,
    HeadEntry,
    KernelEntry,
    Link,
    MeasuredEntry,
    VllmEntry,
    power_of,
)
from dsd_env.calibration.latency.experts import WARM_BELOW
from dsd_env.calibration.latency.fit import (
    FitResult,
    error_stats,
    fit_coefficients,
    fit_knots,
    fit_split,
    leave_one_out,
    relative_errors,
    split_cells,
    summarise,
)
from dsd_env.calibration.latency.noise import fit_noise
from dsd_env.calibration.latency.shapes import (
    DEVICES,
    MODELS,
    DeviceSpec,
    DraftHeadShape,
    ExpertsShape,
    ModelShape,
)
from dsd_env.calibration.latency.splitwise import HARDWARE, iteration_cells, select
from dsd_env.calibration.latency.tables import StepModel, build_cells, bus_bandwidth
from dsd_env.latency.memory import kv_capacity_tokens
from dsd_env.latency.profile import (
    ExternalCheck,
    Interconnect,
    LatencyProfile,
    Memory,
    Noise,
    Provenance,
    Source,
    StepCoefficients,
)

__all__ = [
    "CATALOGUE",
    "Built",
    "EdgeEntry",
    "HeadEntry",
    "KernelEntry",
    "Link",
    "MeasuredEntry",
    "VllmEntry",
    "build",
]

_GIB = 1024**3

_LOGIT_BYTES = 41.2
"""Peak of vLLM's sampler for each sequence and entry of the vocabulary: 1.26 GiB for 256 sequences of
Llama-3-8B, the same on one H100 and on two (start-up logs in pull request 10511 of vLLM)."""

_BUS_ELEMENTS = 1 << 25
"""Message whose bandwidth stands for an interconnect: 64 MiB of bf16."""


@dataclass(frozen=True)
class Built:
    """A profile, and for fitted ones the cells behind it."""

    profile: LatencyProfile
    fit: FitResult | None = None
    cells: tuple[Cell, ...] = ()
    model: StepModel | None = None


# --------------------------------------------------------------------------------------- external checks


def _check(name: str, pairs: Sequence[tuple[float, float]], note: str) -> ExternalCheck:
    ratios = np.array([measured / predicted for measured, predicted in pairs])
    return ExternalCheck(
        name=name,
        ratio_median=round(float(np.median(ratios)), 3),
        ratio_min=round(float(ratios.min()), 3),
        ratio_max=round(float(ratios.max()), 3),
        cells=len(pairs),
        note=note,
    )


def _pairs(cells: Sequence[Cell], k: StepCoefficients, region: str) -> list[tuple[float, float]]:
    """(measured, predicted) seconds of the cells of a region."""
    return [
        (c.seconds, k.step_s(c.new_tokens, c.kv_tokens, c.max_kv_multi_tokens))
        for c in cells
        if c.region == region
    ]


def _external_checks(
    entry: KernelEntry, profile: LatencyProfile, data_dir: Path
) -> tuple[list[ExternalCheck], list[Source]]:
    checks: list[ExternalCheck] = []
    sources: list[Source] = []
    k = profile.coefficients
    if entry.model in ("Llama-3-70B", "Llama-2-70B") and entry.device in HARDWARE:
        measured = iteration_cells(
            select(sums.splitwise(data_dir), "llama2-70b", HARDWARE[entry.device], entry.tp)
        )
        stack = (
            "kernels without any engine; measured in 2023 on a serving stack without CUDA graphs, where "
            "launching some 1,000 kernels bounds an iteration: flat in batch up to 16 and far above the sum "
            "of kernels"
        )
        checks.append(_check("Splitwise Llama-2-70B decode, batch 1-64", _pairs(measured, k, DECODE), stack))
        checks.append(
            _check(
                "Splitwise Llama-2-70B prefill, 512-8192 tokens",
                _pairs([c for c in measured if c.new_tokens >= 512], k, PREFILL),
                "one prompt in one iteration",
            )
        )
        sources.append(sums.SPLITWISE)
    if entry.model == "Llama-3-8B" and entry.device == "H100-SXM-80GB" and entry.tp == 1:
        for name, queries, note in (
            ("real vLLM, Llama-3.1-8B decode", (1,), "the engine's parts were fitted to half of these cells"),
            ("real vLLM, Llama-3.1-8B verification, q 3-9", (3, 5, 9), "the same"),
        ):
            pairs = [
                (engines.vllm_8b_h100_s(b, q, c), _with_engine_s(profile, b, q, c))
                for b in engines.CHECK_BATCHES
                for c in engines.CHECK_CONTEXTS
                for q in queries
            ]
            checks.append(_check(name, pairs, note))
    if entry.model == "EAGLE-Llama-3-8B" and entry.device == "H100-SXM-80GB" and entry.tp == 1:
        assert profile.overhead is not None
        pass_s = profile.overhead.per_draft_pass_s
        pairs = []
        for b in engines.CHECK_BATCHES:
            for c in engines.CHECK_CONTEXTS:
                passes = k.step_s(2 * b, b * (c + 2), c + 2)
                passes += (engines.EAGLE_DRAFTS - 1) * k.step_s(b, b * (c + 1), 0)
                pairs.append((engines.vllm_eagle_s(b, c), passes + engines.EAGLE_DRAFTS * pass_s))
        note = "rounds of three drafts; the overhead of a pass was fitted to these"
        checks.append(_check("real vLLM, EAGLE of Llama-3.1-8B", pairs, note))
    return checks, sources


def _with_engine_s(profile: LatencyProfile, batch: int, q: int, context: int) -> float:
    """Time of an iteration of equal sequences: the profile's kernels and its engine."""
    engine = profile.overhead
    assert engine is not None
    kernels_s = profile.step_s(batch * q, batch * (context + q), context + q if q > 1 else 0)
    added_s = engine.per_iteration_s + engine.per_sequence_s * batch
    added_s += engine.per_token_s * min(batch * q, engine.token_limit)
    return kernels_s + added_s + (engine.per_verifying_iteration_s if q > 1 else 0.0)


# ------------------------------------------------------------------------------------------------ builders


def _attention_note(entry: KernelEntry, shape: ModelShape, device: DeviceSpec) -> str:
    if sums.layer_source(shape, device, entry.tp) is not None:
        return (
            "attention with q > 1 is read from the measured mixed-batch table (chunks of 16 and 32 tokens "
            "stand for q = 2 ... 17: the kernel works on tiles of 64 rows)"
        )
    if sums.borrows_attention(shape, device, entry.tp):
        return (
            "attention is read from the mixed-batch table measured with Qwen3-32B on this device: the "
            "same heads and head dimension; chunks of 16 and 32 tokens stand for q = 2 ... 17"
        )
    if device.splits_multi_token_attention:
        return (
            "attention with q > 1 on a cached context is not in any table: taken as the larger of decode "
            "attention and the tiles' work spread over all multiprocessors (FlashAttention-3 packs grouped "
            "heads and splits sequences)"
        )
    return (
        "attention with q > 1 on a cached context is not in any table: waves of one (sequence, head) per "
        "multiprocessor, each walking its context at the speed of single-head context attention "
        "(FlashAttention-2 neither packs grouped heads nor splits then); the same rule meets the RTX 4090's "
        "measured mixed batches within -11 % to +1 %"
    )


def _notes(entry: KernelEntry, shape: ModelShape, device: DeviceSpec) -> list[str]:
    notes = [
        _attention_note(entry, shape, device),
        "times are those of kernels; what the engine adds is in overhead, measured with one model, device "
        "and parallelism and taken for all. No engine that schedules asynchronously was measured: there, the "
        "part per iteration is smaller",
    ]
    if isinstance(shape, ExpertsShape):
        notes.append(
            f"a layer has {shape.experts} experts, of which a token passes {shape.experts_per_token}: an "
            "iteration reads those that its tokens touch, counted as if each chose evenly and by itself. "
            "Real routers touch fewer, so few tokens beside each other are somewhat cheaper. Fewer than "
            f"{WARM_BELOW} experts are read off the line through more, since the measured ones lay in the "
            "cache"
        )
    if isinstance(shape, DraftHeadShape):
        notes.append(
            "a pass is the layer and the output projection; the first of a round runs over the accepted "
            "tokens (the drafter's KV lag). weight_bytes are the head's own"
            + (
                "; the projection of the target's states, once a round, is left out (3 hidden² weights)"
                if shape.third
                else ": embedding and output projection are the target's"
            )
        )
    if entry.tp > 1 and entry.link is None and device.interconnect == "pcie":
        notes.append(
            "all-reduces are vLLM's own kernel with direct access between the cards; where the driver or the "
            "board does not allow that they take longer: calibrate.py --interconnect"
        )
    if entry.device == "L40S-48GB" and entry.tp == 4 and entry.link is None:
        notes.append(
            "the measured all-reduce of four L40S moves 2.5 GB/s over PCIe and takes most of a verification "
            "or prefill; another topology or library would be faster"
        )
    if entry.device == "A100-SXM-80GB" and shape.head_dim != 128:
        notes.append("the A100 attention table has heads of 128 only: 16 of them stand for 32 of 64")
    return notes


def _interconnect(entry: KernelEntry, device: DeviceSpec, data_dir: Path) -> Interconnect | None:
    curve = sums.allreduce(device, entry.tp, data_dir, entry.link)
    if curve is None:
        return None
    kind = entry.link.kind if entry.link else device.interconnect
    source = (
        "derived: latency as measured, bytes over bandwidth"
        if entry.link
        else "measured all-reduces (table), bandwidth that of 64 MiB"
    )
    measured = bus_bandwidth(curve, entry.tp, _BUS_ELEMENTS)
    bandwidth = 1e9 * entry.link.gigabytes_per_s if entry.link else measured
    return Interconnect.model_validate(
        {
            "kind": kind,
            "bandwidth_bytes_per_s": float(f"{bandwidth:.3g}"),
            "latency_s": float(f"{float(curve.y.min()):.3g}"),
            "source": source,
        }
    )


def _memory(shape: ModelShape, device: DeviceSpec, tp: int) -> Memory:
    return Memory(
        gpu_memory_bytes=device.memory_bytes,
        activation_bytes_per_sequence=round(_LOGIT_BYTES * shape.vocab),
        activation_bytes_per_token=round(2 * (3 * shape.ffn_per_token / tp + 2 * shape.hidden)),
        note=(
            "memory as CUDA reports it; a sequence: 41.2 bytes an entry of the vocabulary, of vLLM's "
            "start-up logs (8B on one and on two H100); a token: a layer's intermediate values, counted"
        ),
    )


def _kernel_profile(name: str, entry: KernelEntry, data_dir: Path, command: str, date: str) -> Built:
    shape, device = MODELS[entry.model], DEVICES[entry.device]
    is_target = entry.role == "target"
    model = replace(sums.step_model(shape, device, entry.tp, data_dir, entry.link), drafts=not is_target)
    weights, kv_bytes = 2 * shape.params, shape.kv_bytes_per_token()
    cells = build_cells(model, sums.pool_tokens(shape, device, entry.tp))
    fit = fit_split(cells, multi_kv=not device.splits_multi_token_attention)
    profile = LatencyProfile(
        name=name,
        role="target" if is_target else "drafter",
        model=shape.name,
        device=device.name,
        parallelism=entry.tp,
        precision="bf16",
        label="fitted",
        coefficients=fit.coefficients,
        interconnect=_interconnect(entry, device, data_dir),
        weight_bytes=weights,
        kv_bytes_per_token=kv_bytes,
        memory=_memory(shape, device, entry.tp),
        context_limit_tokens=shape.context_limit_tokens,
        power=power_of(entry.tp * device.idle_w, entry.tp * device.tdp_w, "spec", device.power_source),
        provenance=Provenance(sources=(sums.VLLM_MODEL,), command=command, date=date),
        error=fit.error,
        notes=tuple(_notes(entry, shape, device)),
        overhead=engines.engine_fit(data_dir).overhead,
    )
    checks, sources = _external_checks(entry, profile, data_dir)
    if sums.layer_source(shape, device, entry.tp) is not None:
        layers = "all layers, output projection, sampler, mixed-batch attention"
        if isinstance(shape, ExpertsShape):
            layers += "; experts by tokens and by how many are touched"
        sources.insert(0, sums.LLMSERVINGSIM.model_copy(update={"used_for": layers}))
    else:
        sources = [sums.AICONFIGURATOR, sums.LLMSERVINGSIM, *sources]
    sources.append(sums.VLLM_MODEL)
    capacity = {}
    if is_target:
        capacity = {
            "kv_capacity_tokens": kv_capacity_tokens(profile),
            "kv_capacity_note": "0.9 of the memory less weights, activations (256 sequences, 2,048 tokens), "
            "CUDA context and graphs; nothing beside it",
        }
    profile = _changed(
        profile,
        {
            "provenance": Provenance(sources=tuple(sources), command=command, date=date),
            "external_checks": tuple(checks),
            **capacity,
        },
    )
    return Built(profile, fit, tuple(cells), model)


def _changed(profile: LatencyProfile, changes: Mapping[str, object]) -> LatencyProfile:
    """A profile with other values, validated (pydantic's ``model_copy`` validates nothing)."""
    return LatencyProfile.model_validate({**dict(profile), **changes})


def _vllm_profile(name: str, entry: VllmEntry, data_dir: Path, command: str, date: str) -> Built:
    """Kernel sums with an overhead of ``a + b * tokens`` fitted to part of a real vLLM's cost model."""
    kernel_entry = KernelEntry(entry.model, entry.device, entry.tp, "target")
    base = _kernel_profile(name, kernel_entry, data_dir, command, date)
    assert base.model is not None
    vllm, kernels = engines.vllm_cells(data_dir)
    limit = engines.LIMIT_TOKENS
    known = dict(zip((c.key for c in vllm), kernels, strict=True))
    train, heldout = split_cells(vllm, heldout_share=0.5)
    seconds = np.array([c.seconds for c in train])
    missing = seconds - np.array([known[c.key] for c in train])
    design = np.stack([np.ones(len(train)), [float(c.new_tokens) for c in train]], axis=1)
    (a, b), *_ = np.linalg.lstsq(design / seconds[:, None], missing / seconds, rcond=None)
    fixed, slope = max(float(f"{a:.3g}"), 0.0), max(float(f"{b:.3g}"), 0.0)
    cells = [replace(c, seconds=c.seconds + fixed + slope * min(c.new_tokens, limit)) for c in base.cells]
    fit = fit_split(cells, multi_kv=not DEVICES[entry.device].splits_multi_token_attention)
    error = error_stats(
        fit.coefficients,
        heldout,
        len(train),
        f"{len(heldout)} of {len(vllm)} iterations of the vLLM cost model (batch 1-64, q 1-9, context "
        f"512-4096) held out by a hash of their names; overhead fitted on the other {len(train)}",
    )
    form = fit.error
    checks = [
        _check(
            f"real vLLM, Llama-3.1-8B {region}, held-out cells", _pairs(heldout, fit.coefficients, region), ""
        )
        for region in (DECODE, VERIFY)
    ]
    notes = (
        f"kernel sums plus {fixed * 1e3:.3g} ms and {slope * 1e6:.3g} us for every new token up to "
        f"{limit} an iteration, fitted to the vLLM cost model; beyond, the correction stays "
        "what it is there, since that model says nothing of prefill. Whole iterations: no overhead beside "
        "them",
        f"the form misses its own corrected kernel sums by {form.heldout_median_pct} % (median) and "
        f"{form.heldout_p95_pct} % (p95), held out",
        "the cost model is itself a straight line fitted to a real vLLM: its scatter is not known here",
        *base.profile.notes[:1],
    )
    profile = _changed(
        base.profile,
        {
            "coefficients": fit.coefficients,
            "error": error,
            "external_checks": tuple(checks),
            "notes": notes,
            "overhead": None,
        },
    )
    return Built(profile, replace(fit, heldout=tuple(heldout), error=error), tuple(cells), base.model)


_SPLITWISE_KNOTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def _measured_profile(name: str, entry: MeasuredEntry, data_dir: Path, command: str, date: str) -> Built:
    """Knots fitted to whole iterations; attention from the kernel sums of the same model and devices."""
    kernel_entry = KernelEntry(entry.model, entry.device, entry.tp, "target")
    base = _kernel_profile(name, kernel_entry, data_dir, command, date)
    kernel = base.profile.coefficients
    repeats = select(sums.splitwise(data_dir), "llama2-70b", HARDWARE[entry.device], entry.tp)
    cells = iteration_cells(repeats)
    closed = fit_coefficients(cells, multi_kv=False)

    def fit(train: Sequence[Cell]) -> StepCoefficients:
        found = fit_knots(train, closed, grids=(_SPLITWISE_KNOTS,), attention=kernel)
        assert found is not None
        return found

    coefficients = fit(cells)
    left_out = leave_one_out(cells, fit)
    error = summarise(
        left_out,
        cells,
        len(cells) - 1,
        f"leave-one-out over {len(cells)} measured iterations, each the median of about five repeats",
    )
    inside = 100.0 * np.abs(relative_errors(coefficients, cells))
    scatter = fit_noise([c.prompt_s for c in repeats if c.batch == 1])
    noise = Noise(
        sigma=float(f"{scatter.sigma:.3g}"),
        straggler_share=float(f"{scatter.straggler_share:.3g}"),
        straggler_factor=float(f"{scatter.straggler_factor:.3g}"),
        source=(
            f"{scatter.repeats} repeats of {scatter.kinds} prompt phases of one prompt (one iteration each); "
            f"stragglers: {scatter.stragglers} beyond 1.1 times the median of their kind"
        ),
    )
    batched = iteration_cells(repeats, prompts="batched")
    check = _check(
        "Splitwise Llama-2-70B, 2 to 32 prompts of 512 in one prompt phase",
        _pairs(batched, coefficients, PREFILL),
        "not fitted: the same number of tokens takes longer there as several prompts than as one",
    )
    profile = _changed(
        base.profile,
        {
            "label": "measured",
            "overhead": None,
            "coefficients": coefficients,
            "error": error,
            "external_checks": (check,),
            "noise": noise,
            "provenance": Provenance(
                sources=(
                    sums.SPLITWISE.model_copy(update={"used_for": "whole iterations, noise"}),
                    sums.AICONFIGURATOR.model_copy(update={"used_for": "attention coefficients"}),
                    sums.LLMSERVINGSIM,
                ),
                command=command,
                date=date,
            ),
            "notes": (
                "a serving stack of 2023 without CUDA graphs: not what a current engine does",
                "the knots were fitted to the measured iterations; k_bw, k_lat and k_multi are those of the "
                "kernel sums, since the measured cells do not tell attention from the rest",
                f"fitted to all cells the knots miss them by {np.median(inside):.1f} % (median), "
                f"{inside.max():.1f} % (max)",
                *(_affine_text(region, cells, kernel) for region in (DECODE, PREFILL)),
                "measured: batch 1-64 at a context of 576, contexts to 8,256 at batch 1, prompts of "
                "128-8,192. Long contexts in large batches and verification (q > 1) were not: there the "
                "knots and the kernels' attention stand in",
            ),
        },
    )
    parts = FitResult(
        coefficients, error, tuple(cells), tuple(cells), closed, tuple(float(e) for e in left_out)
    )
    return Built(profile, parts, tuple(cells), None)


def _affine_text(region: str, cells: Sequence[Cell], kernel: StepCoefficients) -> str:
    """The simplest correction, measured = a + b * kernel profile, fitted to a region; leave-one-out."""
    pairs = np.array(_pairs(cells, kernel, region))
    design = np.stack([1.0 / pairs[:, 0], pairs[:, 1] / pairs[:, 0]], axis=1)

    def solve(rows: NDArray[np.float64]) -> tuple[float, float]:
        (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
        return float(a), float(b)

    errors = []
    for i in range(len(pairs)):
        a, b = solve(np.delete(design, i, axis=0))
        errors.append(100.0 * abs((a + b * pairs[i, 1]) / pairs[i, 0] - 1.0))
    a, b = solve(design)
    return (
        f"for comparison: {region} = {a * 1e3:.3g} ms + {b:.3g} times the kernel-sum profile misses cells "
        f"left out by {np.median(errors):.1f} % (median), {max(errors):.1f} % (max)"
    )


def _card_memory(device: str) -> Memory | None:
    """Memory of an edge device whose name states it."""
    found = re.search(r"-(\d+)GB$", device)
    if found is None:
        return None
    return Memory(
        gpu_memory_bytes=int(found[1]) * _GIB,
        note="data sheet; on boards where processor and graphics share it, the system takes a part",
    )


def _edge_profile(name: str, entry: EdgeEntry, data_dir: Path, command: str, date: str) -> Built:
    shape = MODELS[entry.model]
    cls = sums.class_fit(data_dir, entry.cls)
    step = edge_step(shape, entry.quant, entry.figures_of, cls, sums.figures(data_dir))
    sources = tuple(
        Source(name=s, licence="figures cited from the source", used_for="published tokens/s")
        for s in step.sources
    )
    profile = LatencyProfile(
        name=name,
        role="drafter",
        model=shape.name,
        device=entry.device,
        parallelism=1,
        precision=entry.quant,
        label="published",
        coefficients=step.coefficients,
        weight_bytes=resident_bytes(shape, entry.quant),
        kv_bytes_per_token=shape.kv_bytes_per_token(),
        memory=_card_memory(entry.device),
        context_limit_tokens=shape.context_limit_tokens,
        power=entry.power,
        provenance=Provenance(sources=sources, command=command, date=date),
        error=cls.error,
        notes=(
            *step.notes,
            "step time affine in new tokens (p = 1): decode and prefill rates determine no knee",
            (
                "k_bw is derived: bytes of 16-bit KV over eta * bandwidth; no published figure varies "
                "the context"
            ),
        ),
    )
    return Built(profile)


def build(name: str, data_dir: Path, command: str, date: str, link: Link | None = None) -> Built:
    """Build one profile of the catalogue.

    Args:
        name: key of :data:`CATALOGUE`.
        data_dir: folder with the measured tables.
        command: command line to record as provenance.
        date: ISO date to record.
        link: an interconnect instead of the measured one; the profile is then named after it.

    Raises:
        ValueError: the profile is not of several GPUs' kernels, so it has no interconnect.
        KeyError: unknown name.
        TableError: a table is missing or malformed.
    """
    entry = CATALOGUE[name]
    if link is not None:
        if not isinstance(entry, KernelEntry) or entry.tp == 1:
            raise ValueError(f"{name}: an interconnect needs a profile of several GPUs' kernels")
        entry = replace(entry, link=link)
        name = entry.slug()
    if isinstance(entry, KernelEntry):
        return _kernel_profile(name, entry, data_dir, command, date)
    if isinstance(entry, VllmEntry):
        return _vllm_profile(name, entry, data_dir, command, date)
    if isinstance(entry, MeasuredEntry):
        return _measured_profile(name, entry, data_dir, command, date)
    return _edge_profile(name, entry, data_dir, command, date)
