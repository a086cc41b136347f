#!/usr/bin/env python3
"""Print and plot what a trace set or a fitted model of acceptance amounts to.

    python scripts/inspect_traces.py qwen2.5-coder-1.5b_smollm2-135m_greedy
    python scripts/inspect_traces.py recordings/mine.npz --kind code --drafter smollm2-135m --plot figures
    python scripts/inspect_traces.py llama-3.1-8b_specdecode-bench --json
    python scripts/inspect_traces.py mine.jsonl            # the plain format, see docs/acceptance_models.md
    python scripts/inspect_traces.py --docs                # the table of guesses in docs/acceptance.md

Of a fitted model the pool is shown that simulations replay. Tokens per round are walked, bonus token
included; for prefix-only drafters (accept_prob) they are exact expectations, and run lengths and
autocorrelations are of one seeded realisation. "i.i.d." has the recording's own accepted over examined drafts
as its alpha.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance import (
    TraceError,
    TraceSet,
    available_run_models,
    available_trace_sets,
    expected_tokens_iid,
    generate_pool,
    load_run_model,
    load_trace_set,
    summary,
)
from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.stats import (
    autocorrelation,
    fanout_hits,
    guess_rate,
    hazards,
    mean_by_request,
    realised_runs,
)
from dsd_env.calibration.acceptance.importers import import_plain
from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_atomically, write_text

if TYPE_CHECKING:
    from rich.table import Table

LAGS = (1, 2, 4, 8, 16, 32)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FANOUTS = (1, 2, 3, 4, 7, 15)
DOCS = Path(__file__).resolve().parent.parent / "docs" / "acceptance.md"
BLOCK = "guesses"
BANDS = (0, 16, 32, 64, 128, 256, 512, 1024)
"""Output positions from which acceptance by position is shown together."""


def load(name: str) -> TraceSet:
    """Return the trace set of a name or path; of a fitted model its pool.

    Raises:
        TraceError: None of either, or a damaged file.
    """
    path = Path(name)
    if name in available_trace_sets() or path.suffix == ".npz":
        return load_trace_set(name)
    if path.suffix == ".jsonl":
        return import_plain(path)
    if name in available_run_models():
        return generate_pool(load_run_model(name))
    if path.suffix == ".json" and path.is_file() and not path.with_suffix(".npz").is_file():
        return generate_pool(load_run_model(path))
    if path.is_file() or path.with_name(f"{path.name}.npz").is_file():
        return load_trace_set(path)
    raise TraceError(
        f"{name!r} is neither a file nor shipped; trace sets: {', '.join(available_trace_sets())}; "
        f"fitted models: {', '.join(available_run_models())}"
    )


def figures(trace: TraceSet, drafter: str, kinds: Sequence[str], gammas: Sequence[int]) -> dict[str, Any]:
    """Return everything that is shown of one drafter on some kinds, as plain numbers."""
    entries, positions = trace.entries_of(kinds), trace.positions_of(kinds)
    offsets = np.concatenate([[0], np.cumsum(trace.lengths[entries])])
    runs = realised_runs(trace, drafter)[positions]
    accept = trace.drafters[drafter].accept_prob
    first = (runs > 0).astype(np.float64) if accept is None else accept[positions].astype(np.float64)
    totals = summary(trace, drafter, gammas, kinds)
    examined, accepted = hazards(trace, drafter, kinds)
    alpha = float(accepted.sum() / examined.sum())
    where = np.arange(len(runs)) - np.repeat(offsets[:-1], np.diff(offsets))
    bands = np.searchsorted(BANDS, where, side="right") - 1
    means = mean_by_request(runs, offsets)
    hits = fanout_hits(trace, drafter, FANOUTS, kinds)
    return {
        "trace": trace.name,
        "label": trace.label,
        "drafter": drafter,
        "form": trace.drafters[drafter].form,
        "kinds": list(kinds),
        **{key: int(totals[key]) for key in ("requests", "positions")},
        "first_draft_accepted": totals["first_draft_accepted"],
        "guessed_unseen": guess_rate(trace, drafter, kinds),
        "hits_by_fanout": {}
        if hits is None
        else {str(f): _or_none(h) for f, h in zip(FANOUTS, hits, strict=True)},
        "censored_at": trace.gamma_max,
        "censored_share": totals["saturated"],
        "continuation": _or_none(totals["continuation"]),
        "iid_alpha": alpha,
        "tokens_per_round": {str(g): totals[f"tokens_per_round@{g}"] for g in gammas},
        "drafts_per_round": {str(g): totals.get(f"drafts_per_round@{g}", float(g)) for g in gammas},
        "tokens_per_round_iid": {str(g): expected_tokens_iid(alpha, g) for g in gammas},
        "acceptance_by_place": (accepted / examined)[:16].tolist(),
        "first_draft_by_position": {
            f"{BANDS[b]}-": float(first[bands == b].mean()) for b in np.unique(bands)
        },
        "mean_run_by_request": {
            **{f"{q:.0%}": float(v) for q, v in zip(QUANTILES, np.quantile(means, QUANTILES), strict=True)},
            "sd": float(means.std()),
        },
        "run_length_share": (np.bincount(np.minimum(runs, 16), minlength=17) / len(runs)).tolist(),
        "run_autocorrelation": _by_lag(autocorrelation(np.minimum(runs, 16), offsets, LAGS)),
        "first_draft_autocorrelation": _by_lag(autocorrelation(runs > 0, offsets, LAGS)),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _by_lag(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {str(lag): _or_none(float(v)) for lag, v in zip(LAGS, values, strict=True)}


def tables(shown: list[dict[str, Any]]) -> Iterator[Table]:
    """Yield the tables of some drafters and kinds."""
    from rich.table import Table

    def table(title: str, headings: Sequence[str]) -> Table:
        made = Table(title=title)
        for number, heading in enumerate(("drafter", "kinds", *headings)):
            made.add_column(heading, justify="left" if number < 2 else "right")
        return made

    def row(made: Table, item: dict[str, Any], values: Sequence[float | None], digits: int = 3) -> None:
        cells = ("-" if v is None else f"{v:.{digits}f}" for v in values)
        made.add_row(item["drafter"], ", ".join(item["kinds"]), *cells)

    gammas = list(shown[0]["tokens_per_round"])
    made = table(
        "what there is",
        ["form", "requests", "positions", "first draft", "censored", "L' = L - 1", "i.i.d. α"],
    )
    for item in shown:
        censored = (
            "-" if item["censored_at"] is None else f"{item['censored_share']:.1%} at {item['censored_at']}"
        )
        made.add_row(
            item["drafter"],
            ", ".join(item["kinds"]),
            item["form"],
            str(item["requests"]),
            str(item["positions"]),
            f"{item['first_draft_accepted']:.1%}",
            censored,
            "-" if item["continuation"] is None else f"{item['continuation']:.0%}",
            f"{item['iid_alpha']:.3f}",
        )
    yield made
    made = table("tokens per round (second row: i.i.d.)", [f"γ={g}" for g in gammas])
    for item in shown:
        row(made, item, list(item["tokens_per_round"].values()))
        made.add_row("", "i.i.d.", *(f"{v:.3f}" for v in item["tokens_per_round_iid"].values()))
    yield made
    made = table("drafts per round (γ, unless the drafter proposes fewer)", [f"γ={g}" for g in gammas])
    for item in shown:
        row(made, item, list(item["drafts_per_round"].values()))
    yield made
    if known := [item for item in shown if item["guessed_unseen"] is not None or item["hits_by_fanout"]]:
        made = table(
            "the target's tokens: guessed unseen; among the F + 1 likeliest where the draft is rejected",
            ["guessed", *(f"F={f}" for f in FANOUTS)],
        )
        for item in known:
            row(made, item, [item["guessed_unseen"], *(item["hits_by_fanout"].get(str(f)) for f in FANOUTS)])
        yield made
    made = table("share of starts by run length", [*map(str, range(9)), "9-15", "16+"])
    for item in shown:
        share = item["run_length_share"]
        row(made, item, [*share[:9], sum(share[9:16]), share[16]])
    yield made
    made = table("acceptance by place in the round, given the places before", [str(j) for j in range(1, 11)])
    for item in shown:
        values = item["acceptance_by_place"][:10]
        row(made, item, [*values, *[None] * (10 - len(values))])
    yield made
    bands = [b for b in (f"{n}-" for n in BANDS) if any(b in i["first_draft_by_position"] for i in shown)]
    made = table("first draft accepted, by output position from", bands)
    for item in shown:
        row(made, item, [item["first_draft_by_position"].get(b) for b in bands])
    yield made
    made = table(
        "mean run length by request: quantiles, standard deviation", [f"{q:.0%}" for q in QUANTILES] + ["sd"]
    )
    for item in shown:
        row(made, item, list(item["mean_run_by_request"].values()))
    yield made
    for key, title in (
        ("run_autocorrelation", "run length"),
        ("first_draft_autocorrelation", "first draft accepted"),
    ):
        made = table(f"autocorrelation of {title}, by lag", [str(lag) for lag in LAGS])
        for item in shown:
            row(made, item, list(item[key].values()))
        yield made


def guesses() -> str:
    """Return the table of the docs: guesses and ranks in the shipped recordings that have them."""
    lines = [
        "| trace set | drafter | draft accepted | guessed unseen | "
        + " | ".join(f"F={f}" for f in FANOUTS)
        + " |",
        "|---|---|" + "---:|" * (2 + len(FANOUTS)),
    ]
    for name in available_trace_sets():
        trace = load_trace_set(name)
        for drafter in trace.drafters:
            hits, guessed = fanout_hits(trace, drafter, FANOUTS), guess_rate(trace, drafter)
            if hits is None or guessed is None:
                continue
            accepted = summary(trace, drafter, ())["first_draft_accepted"]
            shares = " | ".join(f"{share:.1%}" for share in (accepted, guessed, *hits))
            lines.append(f"| `{name}` | `{drafter}` | {shares} |")
    return "\n".join(lines)


def plot(item: dict[str, Any], directory: Path) -> Path:
    """Draw one drafter; return the figure's path."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    directory.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    figure.suptitle(
        f"{item['trace']} ({item['label']}): {item['drafter']}, {', '.join(item['kinds'])}", fontsize=11
    )
    alpha = item["iid_alpha"]
    axis = axes[0][0]
    gammas = [int(g) for g in item["tokens_per_round"]]
    axis.plot(gammas, list(item["tokens_per_round"].values()), "o-", label="here")
    axis.plot(gammas, list(item["tokens_per_round_iid"].values()), "--", label=f"i.i.d. α = {alpha:.2f}")
    axis.set(xlabel="γ (drafts per round)", ylabel="tokens per round")
    axis.legend()
    axis = axes[0][1]
    share = np.array(item["run_length_share"])
    axis.bar(range(17), share)
    iid = (1 - alpha) * alpha ** np.arange(17)
    iid[-1] = alpha**16
    axis.plot(range(17), iid, "--", color="tab:orange", label="i.i.d.")
    axis.set(xlabel="run length (16: or more)", ylabel="share of starts", yscale="log")
    axis.set_ylim(max(1e-5, 0.5 * share[share > 0].min()), 1.0)
    axis.legend()
    axis = axes[0][2]
    by_place = item["acceptance_by_place"]
    axis.plot(range(1, len(by_place) + 1), by_place, "o-")
    axis.axhline(alpha, linestyle="--", color="tab:orange", label="i.i.d.")
    axis.set(xlabel="place in the round", ylabel="accepted, given the places before", ylim=(0, 1))
    axis.legend()
    axis = axes[1][0]
    by_position = item["first_draft_by_position"]
    axis.plot(range(len(by_position)), list(by_position.values()), "o-")
    axis.set_xticks(range(len(by_position)), list(by_position))
    axis.set(xlabel="output position from", ylabel="first draft accepted", ylim=(0, 1))
    axis = axes[1][1]
    for key, label in (("run_autocorrelation", "run length"), ("first_draft_autocorrelation", "first draft")):
        values = [math.nan if v is None else v for v in item[key].values()]
        axis.semilogx(LAGS, values, "o-", base=2, label=label)
    axis.axhline(0.0, color="lightgrey")
    axis.set(xlabel="lag (tokens)", ylabel="autocorrelation")
    axis.legend()
    axis = axes[1][2]
    values = list(item["mean_run_by_request"].values())[:-1]
    axis.plot(values, QUANTILES, "o-")
    axis.set(xlabel="mean run length of a request", ylabel="share of requests below", ylim=(0, 1))
    for axis in axes[0]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    name = "_".join(("trace", item["trace"], item["drafter"], "-".join(item["kinds"])))
    path = directory / f"{name[:150]}.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=80))
    plt.close(figure)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("trace", nargs="?", metavar="NAME|PATH", help="trace set, fitted model, or plain JSONL")
    what.add_argument("--docs", action="store_true", help=f"write the table of guesses in {DOCS.name}")
    parser.add_argument(
        "--kind", action="append", help="only this kind (may be repeated); default each and all"
    )
    parser.add_argument("--drafter", action="append", help="only this drafter (may be repeated)")
    parser.add_argument("--gammas", default="1,2,3,4,5,6,8,12,16", help="speculation lengths (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw one figure per drafter there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    if options.docs:
        write_text(DOCS, replace_blocks(DOCS.read_text(encoding="utf-8"), {BLOCK: guesses()}))
        print(f"wrote {DOCS.name}")
        return 0
    try:
        gammas = [int(g) for g in options.gammas.split(",")]
    except ValueError:
        gammas = []
    if not gammas or min(gammas) < 1 or max(gammas) > MAX_RUN_LENGTH:
        parser.error(f"--gammas must be numbers in 1..{MAX_RUN_LENGTH}, with commas")
    try:
        trace = load(options.trace)
        if unknown := [d for d in options.drafter or () if d not in trace.drafters]:
            raise TraceError(f"{trace.name}: unknown drafters {unknown}; it has: {', '.join(trace.drafters)}")
        trace.entries_of(options.kind)
        drafters = options.drafter or list(trace.drafters)
        present = [k for k in trace.kinds if len(trace.entries_of([k]))]
        groups = [options.kind] if options.kind else [*([k] for k in present), present]
        if not options.kind and len(present) == 1:
            groups = [present]
        shown = [figures(trace, d, kinds, gammas) for d in drafters for kinds in groups]
    except TraceError as error:
        print(error, file=sys.stderr)
        return 1
    if options.plot is not None:
        for item in shown:
            if item["kinds"] == groups[-1]:
                print(f"wrote {plot(item, options.plot)}", file=sys.stderr)
    if options.json:
        print(json.dumps(shown, indent=2, allow_nan=False))
    else:
        from rich.console import Console

        console = Console(width=max(120, Console().width))
        console.print(f"[bold]{trace.name}[/bold] ({trace.label}; {trace.card['licence']})", highlight=False)
        for made in tables(shown):
            console.print(made)
    return 0


if __name__ == "__main__":
    _cli.run(main)
