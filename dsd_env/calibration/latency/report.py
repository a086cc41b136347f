"""Tables about latency profiles: printed, and written into the documentation.

A Markdown file holds blocks between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``; what lies between is
replaced by what the functions here compute, so that no number in the documentation is typed by hand::

    python -m dsd_env.calibration.latency.report  # blocks that follow from the shipped profiles alone
    python -m dsd_env.calibration.latency.report --data-dir DATA  # rebuilds profiles: worst cells, plots

The second needs the extra ``calibrate`` and the folder of measured tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_env.calibration.latency.goals import GOAL_MEDIAN_PCT, GOAL_P95_PCT, meets_goal
from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_text
from dsd_env.latency.profile import LatencyProfile, list_profiles, load_profile

if TYPE_CHECKING:
    from dsd_env.calibration.latency.catalogue import Built

__all__ = [
    "FAMILIES",
    "family_of",
    "pages",
    "print_table",
    "profile_blocks",
    "sorted_profiles",
]

FAMILIES: dict[str, str] = {
    "a100": "A100",
    "h100_h200": "H100 and H200",
    "l40s_rtx": "L40S, RTX PRO 6000 and RTX 4090",
    "whole_iterations": "Whole measured iterations",
    "edge": "Edge drafters",
}
"""Page under ``docs/calibration`` -> title."""

_HEADER = (
    "profile",
    "label",
    "median %",
    "p95 %",
    "cells",
    "B1 q1 ms",
    "B32 q5 ms",
    "checks: measured/profile",
)


def family_of(profile: LatencyProfile) -> str:
    """Page that a profile is documented on, a key of :data:`FAMILIES`."""
    if profile.label == "published":
        return "edge"
    if profile.label == "measured" or profile.name.endswith("_vllm"):
        return "whole_iterations"
    device = profile.device
    if device.startswith("A100"):
        return "a100"
    return "h100_h200" if device.startswith(("H100", "H200")) else "l40s_rtx"


def _row(p: LatencyProfile) -> tuple[str, ...]:
    batched = f"{1e3 * p.step_s(160, 32 * 1029, 1029):.2f}" if p.label != "published" else "-"
    checks = ", ".join(f"{c.ratio_median:.2f}" for c in p.external_checks) or "-"
    e = p.error
    return (
        p.name,
        p.label,
        f"{e.heldout_median_pct:.1f}",
        f"{e.heldout_p95_pct:.1f}",
        str(e.cells),
        f"{p.step_ms_b1:.2f}",
        batched,
        checks,
    )


def print_table(profiles: Sequence[LatencyProfile]) -> None:
    """Print one line a profile: held-out error and the step times at a context of 1,024."""
    rows = [_row(p) for p in profiles]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(r[i]) for r in [_HEADER, *rows]) for i in range(len(_HEADER))]
        for r in [_HEADER, *rows]:
            print("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip())
        return
    table = Table(title="Latency profiles: error on held-out cells, step times at context 1,024")
    for i, column in enumerate(_HEADER):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i == 0)
    for r in rows:
        table.add_row(*r)
    # Piped output has no width of its own; a narrow default would cut the names.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


# --------------------------------------------------------------------------------------------- Markdown


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def _errors(p: LatencyProfile) -> str:
    e = p.error
    return f"{e.heldout_median_pct:.1f} / {e.heldout_p95_pct:.1f} / {e.heldout_max_pct or 0.0:.1f}"


def _other(p: LatencyProfile) -> str:
    e = p.error
    if e.other_form_median_pct is None or e.other_form_p95_pct is None:
        return "-"
    return f"{e.other_form_median_pct:.1f} / {e.other_form_p95_pct:.1f}"


def _form(p: LatencyProfile) -> str:
    knots = p.coefficients.compute_knots
    return f"{len(knots)} knots" if knots else "closed"


def _ms(p: LatencyProfile, batch: int, q: int, context: int = 1024) -> str:
    longest = context + q if q > 1 else 0
    return f"{1e3 * p.step_s(batch * q, batch * (context + q), longest):.1f}"


def summary_block(profiles: Sequence[LatencyProfile]) -> str:
    """How many profiles there are, how many meet the goals, and which do not."""
    fitted = [p for p in profiles if family_of(p) in ("a100", "h100_h200", "l40s_rtx")]
    missing = [p for p in fitted if not meets_goal(p)]
    medians = sum(p.error.heldout_median_pct <= GOAL_MEDIAN_PCT for p in fitted)
    tails = sum(p.error.heldout_p95_pct <= GOAL_P95_PCT for p in fitted)
    whole = [p for p in profiles if family_of(p) == "whole_iterations"]
    edge = [p for p in profiles if family_of(p) == "edge"]
    knots = sum(p.coefficients.compute_knots is not None for p in fitted)
    lines = [
        f"{len(profiles)} profiles: {len(fitted)} on sums of measured kernels, {len(whole)} on whole "
        f"measured iterations, {len(edge)} edge drafters from published figures.",
        "",
        f"Of the {len(fitted)} on kernel sums, {medians} have a held-out median of at most "
        f"{GOAL_MEDIAN_PCT} % and {tails} a held-out 95th percentile of at most {GOAL_P95_PCT:.0f} % (the "
        f"goals); {knots} use knots, {len(fitted) - knots} the closed form. Beyond a goal:",
        "",
        *(
            f"- `{p.name}`: median {p.error.heldout_median_pct} %, p95 {p.error.heldout_p95_pct} %"
            for p in missing
        ),
    ]
    return "\n".join(lines)


def profiles_block(profiles: Sequence[LatencyProfile]) -> str:
    """Every profile with its error, by family."""
    parts = []
    for family, title in FAMILIES.items():
        rows = []
        for p in (p for p in profiles if family_of(p) == family):
            batched = "-" if family == "edge" else _ms(p, 32, 5)
            rows.append(
                (f"`{p.name}`", p.label, _errors(p), str(p.error.cells), _other(p), _ms(p, 1, 1), batched)
            )
        header = (
            f"[{title}](calibration/{family}.md)",
            "label",
            "held out: median / p95 / max",
            "cells",
            "other form",
            "B1 q1 ms",
            "B32 q5 ms",
        )
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


def regions_block(profiles: Sequence[LatencyProfile]) -> str:
    """Held-out error by region, the other form's error, and step times, for fitted and measured profiles."""
    rows = []
    for p in profiles:
        by_name = {r.name: r for r in p.error.regions}
        cells = []
        for name in ("decode", "verify", "prefill"):
            r = by_name.get(name)
            cells.append(f"{r.median_pct:.1f} / {r.p95_pct:.1f} / {r.max_pct:.1f} ({r.cells})" if r else "-")
        rows.append(
            (
                f"`{p.name}`",
                _form(p),
                _errors(p),
                *cells,
                _other(p),
                _ms(p, 1, 1),
                _ms(p, 1, 9),
                _ms(p, 32, 5),
            )
        )
    header = (
        "profile",
        "form",
        "all: median / p95 / max",
        "decode (cells)",
        "verify",
        "prefill",
        "other form",
        "B1 q1 ms",
        "B1 q9",
        "B32 q5",
    )
    return _table(header, rows)


def checks_block(profiles: Sequence[LatencyProfile]) -> str:
    """Ratios to whole iterations measured elsewhere."""
    rows = [
        (f"`{p.name}`", c.name, f"{c.ratio_median:.2f} ({c.ratio_min:.2f}-{c.ratio_max:.2f})", str(c.cells))
        for p in profiles
        for c in p.external_checks
    ]
    return _table(("profile", "measured", "measured / profile: median (range)", "cells"), rows)


def edge_block(profiles: Sequence[LatencyProfile]) -> str:
    """Edge drafters: decode step, prefill of 512 tokens, eta and what the step rests on."""
    rows = []
    for p in profiles:
        text = " ".join(p.notes)
        eta = re.search(r"\beta (\d\.\d+) is (?:that of the published|the median)", text)
        if "of this very model and device" in text:
            basis = "own figure"
        elif "device's own figures with other models" in text:
            basis = "device's other models"
        else:
            basis = "class"
        prefill = next(
            (n.split(":")[1].split(",")[0].strip() for n in p.notes if n.startswith("prefill:")), "-"
        )
        rows.append(
            (
                f"`{p.name}`",
                f"{1e3 * p.step_s(1, 0, 0):.1f}",
                f"{1e3 * p.step_s(512, 512, 512):.0f}",
                eta.group(1) if eta else "-",
                basis,
                prefill,
                f"{p.error.heldout_median_pct:.0f} / {p.error.heldout_p95_pct:.0f}",
            )
        )
    header = (
        "profile",
        "step ms",
        "prefill of 512 ms",
        "eta",
        "step from",
        "prefill rate",
        "class: leave-one-out median / p95 %",
    )
    return _table(header, rows)


def noise_block(profiles: Sequence[LatencyProfile]) -> str:
    """Noise that profiles carry."""
    rows = [
        (
            f"`{p.name}`",
            f"{100 * n.sigma:.2f}",
            f"{100 * n.straggler_share:.1f}",
            f"{n.straggler_factor:.2f}",
            n.source.split(" prompt phases")[0],
        )
        for p in profiles
        if (n := p.noise) is not None
    ]
    return _table(("profile", "sigma %", "stragglers %", "factor", "from"), rows)


def notes_block(profiles: Sequence[LatencyProfile]) -> str:
    """Notes of profiles, each said once with the profiles that carry it."""
    carriers: dict[str, list[str]] = {}
    for p in profiles:
        for note in p.notes:
            carriers.setdefault(note, []).append(p.name)
    return "\n".join(
        f"- {note} ({len(names)} profiles)" if len(names) > 3 else f"- {note} (`{'`, `'.join(names)}`)"
        for note, names in carriers.items()
    )


def sources_block(profiles: Sequence[LatencyProfile]) -> str:
    """Sources of profiles, without repetition."""
    rows = {(s.name, s.url, s.commit, s.licence): None for p in profiles for s in p.provenance.sources}
    return _table(
        ("source", "address", "commit", "licence"),
        [(n, u or "-", c[:8] or "-", lic) for n, u, c, lic in rows],
    )


def profile_blocks(profiles: Sequence[LatencyProfile]) -> dict[str, str]:
    """Blocks that follow from the profiles alone: name -> Markdown."""
    blocks = {"summary": summary_block(profiles), "profiles": profiles_block(profiles)}
    for family in FAMILIES:
        members = [p for p in profiles if family_of(p) == family]
        table: Callable[[Sequence[LatencyProfile]], str] = edge_block if family == "edge" else regions_block
        blocks[f"{family}: errors"] = table(members)
        blocks[f"{family}: checks"] = checks_block(members)
        blocks[f"{family}: notes"] = notes_block([p for p in members if family != "edge"])
        blocks[f"{family}: sources"] = sources_block(members)
    blocks["noise"] = noise_block(profiles)
    return blocks


# ------------------------------------------------------------------ blocks that need the measured tables


def misses_block(built: Sequence[Built], family: str, worst: int = 5) -> str:
    """The worst held-out cells of a family's profiles that miss a goal (all of them if none does)."""
    rows = []
    for b in built:
        if (
            b.fit is None
            or family_of(b.profile) != family
            or (family != "whole_iterations" and meets_goal(b.profile))
        ):
            continue
        errors = b.fit.errors()
        order = sorted(range(len(errors)), key=lambda i: -abs(errors[i]))[:worst]
        cells = ", ".join(f"{b.fit.heldout[i].key} {100 * errors[i]:+.0f} %" for i in order)
        rows.append((f"`{b.profile.name}`", cells))
    if not rows:
        return "Every profile of this page meets both goals."
    return _table(("profile", "worst held-out cells (profile / table - 1)"), rows)


def scatter_block(data_dir: Path) -> str:
    """Noise of single iterations and of runs (Splitwise) and of kernels (Vidur)."""
    from dsd_env.calibration.latency.noise import fit_noise, kernel_scatter
    from dsd_env.calibration.latency.splitwise import load_splitwise, select

    cells = load_splitwise(data_dir)
    rows = []
    for model, hardware, tps in (
        ("llama2-70b", "a100-80gb", (2, 4, 8, None)),
        ("llama2-70b", "h100-80gb", (2, 4, 8, None)),
        ("bloom-176b", "a100-80gb", (8,)),
        ("bloom-176b", "h100-80gb", (8,)),
    ):
        for tp in tps:
            chosen = select(cells, model, hardware, tp)
            for what, groups in (
                ("one iteration (prompt)", [c.prompt_s for c in chosen if c.batch == 1]),
                ("mean of a run (decode)", [c.token_s for c in chosen]),
            ):
                n = fit_noise(groups)
                rows.append(
                    (
                        f"{model} {hardware} " + (f"TP{tp}" if tp else "all TP"),
                        what,
                        f"{100 * n.sigma:.2f}",
                        f"{100 * n.sigma_robust:.2f}",
                        f"{100 * n.straggler_share:.1f} ({n.stragglers} of {n.repeats})",
                        f"{n.straggler_factor:.2f}" if n.stragglers else "-",
                        f"{1e3 * n.straggler_extra_s:.0f}" if n.stragglers else "-",
                    )
                )
    header = ("repeats", "what", "sigma %", "robust sigma %", "stragglers %", "factor", "extra ms")
    first = _table(header, rows)
    kernels = []
    base = data_dir / "vidur" / "data" / "profiling" / "compute"
    for path, layers in (
        ("a100/meta-llama/Meta-Llama-3-70B", 80),
        ("a100/meta-llama/Llama-2-70b-hf", 80),
        ("a100/meta-llama/Meta-Llama-3-8B", 32),
        ("a40/meta-llama/Llama-2-7b-hf", 32),
    ):
        for low, high in ((1, 64), (65, 512), (513, 4096)):
            k = kernel_scatter(base / path / "mlp.csv", layers, low, high)
            kernels.append(
                (
                    path,
                    f"{low}-{high}",
                    f"{100 * k.layer:.2f} ({100 * k.layer_p95:.2f})",
                    f"{100 * k.layer_common:.2f}",
                    f"{100 * k.iteration:.3f}",
                    str(k.rows),
                )
            )
    kernel_header = (
        "kernels outside attention",
        "tokens",
        "one layer, independent %: median (p95)",
        "one layer, together %",
        "all layers, independent %",
        "rows",
    )
    return first + "\n\n" + _table(kernel_header, kernels)


def overhead_block(data_dir: Path) -> str:
    """Output projection and sampler, from measured layers."""
    from dsd_env.calibration.latency.tables import LLAMA_8B, QWEN3_32B, load_dense_layers

    rows = []
    for table, model, tp in (
        ("RTX4090", LLAMA_8B, 1),
        ("RTXPRO6000", LLAMA_8B, 1),
        ("RTXPRO6000", LLAMA_8B, 2),
        ("RTXPRO6000", QWEN3_32B, 1),
        ("RTXPRO6000", QWEN3_32B, 2),
    ):
        layers = load_dense_layers(data_dir, table, model, tp)
        for name in ("lm_head", "sampler"):
            curve = layers.per_sequence[name]
            values = [f"{1e6 * curve(n):.0f}" for n in (1, 16, 64, 128, 256)]
            rows.append((f"{model.split('/')[1]}, {table}, TP{tp}", name, *values))
    header = ("measured on", "layer", "1 row, us", "16", "64", "128", "256")
    return _table(header, rows)


def engine_block(data_dir: Path) -> str:
    """The engine's parts, and how far kernel sums with them are from a real engine's cost model."""
    import numpy as np

    from dsd_env.calibration.latency.engines import engine_fit

    fit = engine_fit(data_dir)
    engine = fit.overhead
    rows = []
    for name, errors in (
        ("kernel sums alone", fit.bare_errors_pct),
        ("with one constant", fit.constant_errors_pct),
        ("with a part per iteration and one per token", fit.two_part_errors_pct),
        ("with all four parts (shipped)", fit.errors_pct),
    ):
        low, median, p95, high = (
            np.median(errors),
            *np.percentile(np.abs(errors), [50, 95]),
            np.abs(errors).max(),
        )
        rows.append((name, f"{low:+.1f}", f"{median:.1f} / {p95:.1f} / {high:.1f}"))
    header = (f"{len(fit.cells)} held-out iterations", "median, signed %", "absolute: median / p95 / max %")
    return (
        _table(header, rows)
        + f"\n\nShipped as `vllm-v1-2025`: {1e3 * engine.per_iteration_s:.3g} ms an iteration, "
        + f"{1e6 * engine.per_sequence_s:.3g} µs a sequence, {1e6 * engine.per_token_s:.3g} µs a new token "
        + f"(up to {engine.token_limit}), {1e3 * engine.per_verifying_iteration_s:.3g} ms for drafts, "
        + f"{1e3 * engine.per_draft_pass_s:.3g} ms a draft pass; fitted on {fit.train} iterations."
    )


def eagle_block(data_dir: Path) -> str:
    """A round of three EAGLE drafts: the measured law against head profile kernels and draft passes."""
    from dsd_env.calibration.latency.engines import CHECK_BATCHES, CHECK_CONTEXTS, eagle_pairs, engine_fit

    pairs = iter(eagle_pairs(data_dir, engine_fit(data_dir).overhead.per_draft_pass_s))
    rows = []
    for batch in CHECK_BATCHES:
        row = [str(batch)]
        for _ in CHECK_CONTEXTS:
            measured, ours = next(pairs)
            row.append(f"{1e3 * measured:.2f} / {1e3 * ours:.2f} ({100.0 * (ours / measured - 1.0):+.0f} %)")
        rows.append(row)
    contexts = (f"context {context}" for context in CHECK_CONTEXTS)
    return _table(("batch: measured / ours, ms", *contexts), rows)


def links_block(data_dir: Path) -> str:
    """Iterations over other interconnects, kernels only."""
    from dsd_env.calibration.latency.entries import Link
    from dsd_env.calibration.latency.shapes import DEVICES, MODELS
    from dsd_env.calibration.latency.sums import step_model

    links = (None, Link("nvlink", 300.0), Link("pcie", 50.0), Link("pcie", 25.0), Link("pcie", 12.0))
    rows = []
    for model, device, tp in (
        ("Llama-3-8B", "RTX-PRO-6000-96GB", 2),
        ("Llama-3-70B", "RTX-PRO-6000-96GB", 4),
        ("Llama-3-70B", "L40S-48GB", 4),
        ("Llama-3-70B", "A100-SXM-80GB", 4),
        ("Llama-3-70B", "H100-SXM-80GB", 4),
    ):
        for batch, q in ((128, 1), (32, 5)):
            row = [f"{model}, {device} x{tp}, batch {batch}, q {q}"]
            for link in links:
                step = step_model(MODELS[model], DEVICES[device], tp, data_dir, link)
                seconds = step.sequences_s(batch, q, 1024)
                row.append("-" if seconds is None else f"{1e3 * seconds:.1f}")
            rows.append(row)
    names = ("as measured", *(f"{link.kind} {link.gigabytes_per_s:g} GB/s" for link in links if link))
    return _table(("ms at a context of 1,024", *names), rows)


def cross_check_block(data_dir: Path) -> str:
    """Iterations from two sets of measurements: AIConfigurator's kernels, LLMServingSim's layers."""
    import numpy as np

    from dsd_env.calibration.latency.sums import kernel_and_layer_cells

    rows = []
    for model, tp in (("Llama-3-8B", 1), ("Llama-3-8B", 2), ("Qwen3-32B", 1), ("Qwen3-32B", 2)):
        kernels, layers = kernel_and_layer_cells(model, tp, data_dir)
        row = [f"{model} TP{tp}"]
        for region in ("decode", "verify", "prefill"):
            ratios = np.array(
                [
                    layers[key].seconds / c.seconds
                    for key, c in kernels.items()
                    if key in layers and c.region == region
                ]
            )
            low, median, high = np.percentile(ratios, [5, 50, 95])
            row.append(f"{median:.2f} ({low:.2f}-{high:.2f}, {len(ratios)})")
        rows.append(row)
    header = ("RTX PRO 6000", "decode: median (p5-p95, cells)", "verify", "prefill")
    return _table(header, rows)


def experts_block(data_dir: Path) -> str:
    """What more tokens cost a mixture of experts, beside a dense model on the same GPU."""
    from dsd_env.calibration.latency.shapes import MODELS, ExpertsShape
    from dsd_env.calibration.latency.tables import QWEN3_30B_A3B, load_layer_tables

    shape = MODELS["Qwen3-30B-A3B"]
    experts = load_layer_tables(data_dir, "RTXPRO6000", QWEN3_30B_A3B).experts
    assert isinstance(shape, ExpertsShape)
    assert experts is not None
    mixture, dense = (load_profile(f"{name}_rtx-pro-6000_tp1") for name in ("qwen3-30b-a3b", "qwen3-32b"))
    rows = []
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        steps = [p.step_s(tokens, 0, 0) for p in (mixture, dense)]
        ratios = [f"{s / p.step_s(1, 0, 0):.2f}" for s, p in zip(steps, (mixture, dense), strict=True)]
        layer = f"{1e6 * experts.layer_s(shape, tokens):.0f}"
        rows.append((str(tokens), f"{shape.touched(tokens):.1f}", layer, f"{1e3 * steps[0]:.1f}", *ratios))
    header = (
        "new tokens",
        f"experts touched, of {shape.experts}",
        "experts of a layer, us",
        "iteration, ms",
        "against one token",
        "Qwen3-32B (dense): against one token",
    )
    return _table(header, rows)


def measured_blocks(built: Sequence[Built], data_dir: Path) -> dict[str, str]:
    """Blocks that need the measured tables: name -> Markdown."""
    blocks = {f"{family}: misses": misses_block(built, family) for family in FAMILIES if family != "edge"}
    blocks["scatter"] = scatter_block(data_dir)
    blocks["overhead"] = overhead_block(data_dir)
    blocks["engine"] = engine_block(data_dir)
    blocks["eagle"] = eagle_block(data_dir)
    blocks["links"] = links_block(data_dir)
    blocks["experts"] = experts_block(data_dir)
    blocks["cross-check"] = cross_check_block(data_dir)
    return blocks


# ------------------------------------------------------------------------------------------------- writing


def pages(docs: Path) -> list[Path]:
    """Files that hold blocks."""
    return [docs / "calibration.md", *(docs / "calibration" / f"{family}.md" for family in FAMILIES)]


def sorted_profiles(profiles: Sequence[LatencyProfile]) -> list[LatencyProfile]:
    """Order of the tables: by device, larger models first, then by parallelism and name."""
    return sorted(profiles, key=lambda p: (p.device, -p.weight_bytes, p.parallelism, p.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="write the tables of the calibration pages")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the documentation")
    parser.add_argument("--data-dir", type=Path, default=None, help="measured tables: rebuild and plot")
    args = parser.parse_args(argv)
    profiles = sorted_profiles([load_profile(n) for n in list_profiles()])
    blocks = profile_blocks(profiles)
    if args.data_dir is not None:
        from dsd_env.calibration.latency.catalogue import CATALOGUE, build
        from dsd_env.calibration.latency.plot import plot_documentation

        built = []
        for i, name in enumerate(CATALOGUE, start=1):
            print(f"[{i}/{len(CATALOGUE)}] {name}", file=sys.stderr, flush=True)
            built.append(build(name, args.data_dir, "not written", "2026-01-01"))
        order = {p.name: i for i, p in enumerate(profiles)}
        built.sort(key=lambda b: order.get(b.profile.name, len(order)))
        blocks |= measured_blocks(built, args.data_dir)
        plot_documentation(built, args.data_dir, args.docs / "figures")
    for page in pages(args.docs):
        if page.is_file():
            write_text(page, replace_blocks(page.read_text(encoding="utf-8"), blocks))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
