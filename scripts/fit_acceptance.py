#!/usr/bin/env python3
"""Fit generative models of acceptance to recordings that cannot be shipped, and show how well they fit.

    python scripts/fit_acceptance.py --data-dir DATA --all
    python scripts/fit_acceptance.py --data-dir DATA --name llama-3.1-8b_specdecode-bench --plot docs/figures
    python scripts/fit_acceptance.py --data-dir DATA --all --show        # the shipped models, nothing fitted
    python scripts/fit_acceptance.py --data-dir DATA --all --select      # how many classes and states (long)
    python scripts/fit_acceptance.py --list

The data folder (or ``DSD_DATA_DIR``) holds ``accept/specdecode_bench/combined_*.jsonl``. A model is written
to ``dsd_env/acceptance/models/NAME.json`` (``--out`` for elsewhere): parameters and errors, no data. The fit
is deterministic. See docs/acceptance_models.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance import MAX_RUN_LENGTH, TraceError, load_run_model, load_trace_set, tokens_per_round
from dsd_env.acceptance.runmodel import (
    FORMAT_VERSION,
    MODEL_DIR,
    POOL_POSITIONS,
    ModelCard,
    RunModel,
    RunProcess,
    generate_pool,
)
from dsd_env.acceptance.stats import mean_by_request
from dsd_env.calibration.acceptance.compare import (
    GAMMAS,
    LAGS,
    QUANTILES,
    Statistics,
    cut,
    iid_alpha,
    iid_tokens,
    relative_errors,
    simulate_like,
    statistics_of,
    total_variation,
)
from dsd_env.calibration.acceptance.importers import import_specdecode_bench
from dsd_env.calibration.acceptance.rounds import RoundCounts, model_from_rounds
from dsd_env.calibration.acceptance.runfit import (
    fit_process,
    fit_proposed,
    halves,
    held_out_log_likelihood,
    log_likelihood,
    subset,
)
from dsd_env.files import write_atomically
from dsd_env.paths import data_dir

if TYPE_CHECKING:
    from rich.table import Table

SIMULATED_POSITIONS = 1_000_000
"""Positions to draw for a comparison, about: every recorded length 2 to 20 times."""
LONGEST_RUN = 20
"""Longest run in the data files; the n-gram drafter's recording stops there."""


@dataclass(frozen=True)
class Cell:
    """One kind and drafter of a model.

    Attributes:
        file: Name of the data file, or of a shipped trace set.
        drafter: Name of the drafter there, and in the model.
        classes: Classes of requests; by held-out likelihood, see ``--select``.
        states: States within a request; the same.
        kind: Kind of request of a trace set; empty for a data file.
    """

    file: str
    drafter: str
    classes: int
    states: int
    kind: str = ""


RECORDING = "qwen2.5-coder-1.5b_smollm2-135m_greedy"

CATALOGUE: dict[str, dict[str, tuple[Cell, ...]]] = {
    "qwen2.5-coder-1.5b_smollm2-135m": {
        kind: (Cell(RECORDING, "smollm2-135m", *sizes, kind),)
        for kind, sizes in (
            ("code", (2, 2)),
            ("maths", (2, 2)),
            ("chat", (2, 2)),
            ("instruction", (2, 2)),
            ("qa", (2, 2)),
        )
    },
    "llama-3.1-8b_specdecode-bench": {
        "maths": (Cell("combined_gsm8k.jsonl", "eagle", 2, 2), Cell("combined_gsm8k.jsonl", "ngram", 2, 2)),
        "summarisation": (
            Cell("combined_cnn.jsonl", "eagle", 2, 2),
            Cell("combined_cnn.jsonl", "ngram", 2, 2),
        ),
        "chat": (
            Cell("combined_sharegpt.jsonl", "eagle", 3, 3),
            Cell("combined_sharegpt.jsonl", "ngram", 3, 3),
        ),
    },
}


@dataclass(frozen=True)
class Published:
    """Acceptance by place that somebody has published; all there is to fit a renewal model to.

    Attributes:
        kind: Kind of request.
        drafter: Name of the drafter.
        about: Drafter, target, source and licence, for the card.
        rounds: Rounds measured.
        rates: Share of the rounds that accepted beyond each place.
        tokens: Tokens per round as published, to compare with.
    """

    kind: str
    drafter: str
    about: dict[str, str]
    rounds: int
    rates: tuple[float, ...]
    tokens: float


PUBLISHED = {
    "llama-3.1-8b_eagle3_mt-bench": Published(
        kind="chat",
        drafter="eagle3",
        about={
            "target": "Llama-3.1-8B-Instruct (vLLM, greedy)",
            "drafter": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, 7 drafts a round",
            "data": (
                "https://github.com/vllm-project/vllm/issues/26191, 'Previous AL=3.53': MT-bench, "
                "80 prompts, temperature 0; acceptance at tokens 0 to 6, two decimals"
            ),
            "licence": "Published figures, cited; the parameters are Apache-2.0 like the package.",
        },
        rounds=4816,
        rates=(0.74, 0.54, 0.41, 0.31, 0.23, 0.17, 0.13),
        tokens=3.53,
    ),
}
GRID = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 3), (4, 2), (4, 3))
"""Classes and states that ``--select`` tries."""

_METHOD = (
    "Maximum likelihood by EM: a mixture of request classes, each a Markov-switching chain of run "
    "lengths with a hard token ahead; shrunk to pooled estimates with the weight of 10 observations; "
    "numbers of classes and states by the likelihood of held-out requests."
)
CARDS: dict[str, dict[str, Any]] = {
    "qwen2.5-coder-1.5b_smollm2-135m": {
        "target": "Qwen2.5-Coder-1.5B-Instruct (Q4_K_M, computed in float32)",
        "drafters": {"smollm2-135m": "SmolLM2-135M-Instruct (Q4_1), another vocabulary than the target's"},
        "data": f"the shipped recording {RECORDING}: 30 requests of each kind",
        "licence": "Apache-2.0, like the recording.",
        "method": _METHOD,
        "notes": (
            "The recording itself is shipped and replayed by `source: trace`. This model is the shape "
            "of the published levels of independent draft models (docs/acceptance_models.md).",
            "Thirty requests of each kind: the spread between requests is rough.",
            "No confidence: its columns are constants.",
        ),
    },
    "llama-3.1-8b_specdecode-bench": {
        "target": "Llama-3.1-8B-Instruct (one H100)",
        "drafters": {
            "eagle": "EAGLE head for Llama-3.1-8B-Instruct (chain)",
            "ngram": "none (n-gram look-up in prompt and output)",
        },
        "data": (
            "github.com/SpecDecode-Bench/simulator at 2fdccbd, the recordings of arXiv 2601.11580 "
            "(Speculative Decoding: Performance or Illusion?): GSM8K (kind maths), CNN/DM "
            "(summarisation), ShareGPT (chat)"
        ),
        "licence": (
            "The data state no licence and are not redistributed, in no form. These fitted parameters "
            "describe them statistically; they are Apache-2.0 like the package."
        ),
        "method": _METHOD,
        "notes": (
            "Drafters are drawn independently, though requests easy for one are easier for the other.",
            "Output beyond the length of the recorded requests is extrapolated.",
            "What n-gram look-up proposes is independent between starts, given what is accepted.",
            "No confidence: its columns are constants.",
        ),
    },
}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="every model of the catalogue")
    what.add_argument("--name", action="append", metavar="NAME", help="this one (may be repeated)")
    what.add_argument("--list", action="store_true", help="list the catalogue and stop")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--show", action="store_true", help="compare the models there are; fit nothing")
    mode.add_argument("--select", action="store_true", help="held-out likelihood by classes and states")
    parser.add_argument("--data-dir", "--data", type=Path, help="data folder; default: DSD_DATA_DIR")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="where models lie (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw acceptance_*.png there")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Data:
    """Recorded run lengths of one cell, flat, bounds of the requests, longest run, and what was proposed."""

    runs: NDArray[np.int64]
    offsets: NDArray[np.int64]
    longest: int
    proposed: NDArray[np.int64] | None = None


def _load(folder: Path | None, cell: Cell) -> Data:
    if cell.kind:
        recorded = load_trace_set(cell.file)
        longest = recorded.gamma_max or MAX_RUN_LENGTH
        entries = recorded.entries_of([cell.kind])
        offsets = np.concatenate([[0], np.cumsum(recorded.lengths[entries])])
        positions = recorded.positions_of([cell.kind])
        values = recorded.drafters[cell.drafter]
    else:
        assert folder is not None  # asked for in main
        path = folder / "accept" / "specdecode_bench" / cell.file
        trace = import_specdecode_bench({cell.drafter: path}, drafters=[cell.drafter])
        longest, offsets, positions = LONGEST_RUN, trace.offsets, np.arange(trace.total_tokens)
        values = trace.drafters[cell.drafter]
    assert values.run_length is not None  # both have run lengths
    offered = values.proposed
    return Data(
        np.minimum(values.run_length[positions].astype(np.int64), longest),
        offsets,
        longest,
        None if offered is None else np.minimum(offered[positions].astype(np.int64), longest),
    )


@dataclass(frozen=True)
class Comparison:
    """Statistics of the data and of the model, of whole requests and of their first positions."""

    wanted: Statistics
    found: Statistics
    wanted_first: Statistics
    found_first: Statistics
    alpha: float


Comparisons = dict[tuple[str, str], Comparison]
"""By kind and drafter."""


def _compare(process: RunProcess, data: Data) -> Comparison:
    repeats = min(max(SIMULATED_POSITIONS // len(data.runs), 2), 20)
    runs, offsets = simulate_like(process, data.longest, np.diff(data.offsets), repeats)
    return Comparison(
        statistics_of(data.runs, data.offsets, data.longest),
        statistics_of(runs, offsets, data.longest),
        statistics_of(*cut(data.runs, data.offsets, POOL_POSITIONS), data.longest),
        statistics_of(*cut(runs, offsets, POOL_POSITIONS), data.longest),
        iid_alpha(data.runs, data.longest),
    )


def _needs_data(name: str) -> bool:
    """Return whether a model is fitted to files of the data folder."""
    return any(not cell.kind for group in CATALOGUE.get(name, {}).values() for cell in group)


def _percent(values: NDArray[np.float64]) -> list[float]:
    return [round(100.0 * float(v), 2) for v in values]


def _held_out(data: Data, cell: Cell) -> dict[str, Any]:
    """Return the errors of the fit to either half of the requests on the other half."""
    even, odd = (Data(*subset(data.runs, data.offsets, part), data.longest) for part in halves(data.offsets))
    errors, tokens, total = [], [], 0.0
    for train, test in ((even, odd), (odd, even)):
        process = fit_process(train.runs, train.offsets, train.longest, cell.classes, cell.states).process
        total += log_likelihood(process, test.runs, test.offsets, test.longest)
        both = _compare(process, test)
        errors.append(
            np.abs(relative_errors(both.found.tokens_per_round, both.wanted.tokens_per_round)).max()
        )
        tokens.append(both.wanted.tokens_per_round)
    return {
        "log_likelihood_per_position": round(total / len(data.runs), 5),
        "max_tokens_error_percent": _percent(np.array(errors)),
        "halves_differ_percent": _percent(np.abs(relative_errors(tokens[0], tokens[1])))[-1],
    }


def _figures(process: RunProcess, data: Data, both: Comparison) -> dict[str, Any]:
    """Return what the card says of one process."""
    wanted, found = both.wanted, both.found
    errors = relative_errors(found.tokens_per_round, wanted.tokens_per_round)
    first = relative_errors(both.found_first.tokens_per_round, both.wanted_first.tokens_per_round)
    iid = relative_errors(iid_tokens(both.alpha), wanted.tokens_per_round)
    total = log_likelihood(process, data.runs, data.offsets, data.longest)
    offered = (
        {} if data.proposed is None else {"nothing_proposed": round(float((data.proposed == 0).mean()), 4)}
    )
    return {
        "requests": len(data.offsets) - 1,
        "positions": len(data.runs),
        **offered,
        "classes": len(process.classes),
        "states": len(process.classes[0].states),
        "log_likelihood": round(total, 1),
        "iid_alpha": round(both.alpha, 4),
        "tokens_error_percent": _percent(errors),
        "tokens_error_percent_first_512": _percent(first),
        "iid_tokens_error_percent": _percent(iid),
        "run_length_total_variation": round(total_variation(found.distribution, wanted.distribution), 4),
        "run_autocorrelation_max_error": round(
            float(np.abs(found.run_correlation - wanted.run_correlation).max()), 3
        ),
        "first_draft_autocorrelation_max_error": round(
            float(np.abs(found.first_correlation - wanted.first_correlation).max()), 3
        ),
    }


def _tables(name: str, kind: str, drafter: str, both: Comparison) -> Iterator[Table]:
    from rich.table import Table

    wanted, found, iid = both.wanted, both.found, iid_tokens(both.alpha)
    table = Table(title=f"{name}: {kind}, {drafter}: tokens per round")
    for heading in ("γ", "data", "model", "error", "i.i.d.", "error"):
        table.add_column(heading, justify="right")
    for i, gamma in enumerate(GAMMAS):
        data_, model, naive = wanted.tokens_per_round[i], found.tokens_per_round[i], iid[i]
        table.add_row(
            str(gamma),
            f"{data_:.3f}",
            f"{model:.3f}",
            f"{model / data_ - 1:+.1%}",
            f"{naive:.3f}",
            f"{naive / data_ - 1:+.1%}",
        )
    yield table
    table = Table(title=f"{name}: {kind}, {drafter}: dependence and spread")
    for heading in ("", "data", "model"):
        table.add_column(heading, justify="left" if not heading else "right")
    labels = (
        *(f"autocorrelation of runs, lag {lag}" for lag in LAGS),
        *(f"autocorrelation of the first draft, lag {lag}" for lag in LAGS),
        *(f"mean run of a request, {q:.0%} quantile" for q in QUANTILES),
        "mean run of a request, standard deviation",
    )
    columns = [
        (*s.run_correlation, *s.first_correlation, *s.request_quantiles, s.request_sd)
        for s in (wanted, found)
    ]
    for label, *values in zip(labels, *columns, strict=True):
        table.add_row(label, *(f"{v:.3f}" for v in values))
    yield table


def _fit(name: str, folder: Path | None, out: Path) -> tuple[RunModel, Comparisons]:
    """Fit every cell of a model, and save it."""
    from rich.progress import Progress

    processes: dict[str, dict[str, RunProcess]] = {}
    fits: dict[str, dict[str, dict[str, Any]]] = {}
    comparisons: Comparisons = {}
    cells = [(kind, cell) for kind, group in CATALOGUE[name].items() for cell in group]
    with Progress() as progress:
        task = progress.add_task(name, total=len(cells))
        for kind, cell in cells:
            progress.update(task, description=f"{name}: {kind}, {cell.drafter}")
            data = _load(folder, cell)
            process = fit_process(data.runs, data.offsets, data.longest, cell.classes, cell.states).process
            if data.proposed is not None:
                law = fit_proposed(data.runs, data.proposed, data.longest)
                process = process.model_copy(update={"proposed": law})
            processes.setdefault(kind, {})[cell.drafter] = process
            both = comparisons[kind, cell.drafter] = _compare(process, data)
            fits.setdefault(kind, {})[cell.drafter] = {
                **_figures(process, data, both),
                "held_out": _held_out(data, cell),
            }
            progress.advance(task)
    source = " --data-dir DATA" if _needs_data(name) else ""
    command = f"python scripts/fit_acceptance.py{source} --name {name}"
    today = datetime.date.today().isoformat()
    card = ModelCard(**CARDS[name], command=command, date=today, fits=fits)
    model = RunModel(
        format_version=FORMAT_VERSION,
        name=name,
        label="fitted",
        longest_run=data.longest,
        card=card,
        processes=processes,
    )
    print(f"wrote {model.save(out)}")
    return model, comparisons


def _publish(name: str, out: Path) -> None:
    """Fit a renewal model to published figures, save it and say how it meets them."""
    entry = PUBLISHED[name]
    reached = entry.rounds * np.array([[1.0, *entry.rates]])
    counts = RoundCounts(reached[:, :-1], reached[:, 1:], np.zeros(1, np.int64), False, entry.about["data"])
    model = model_from_rounds(
        name,
        {entry.kind: {entry.drafter: counts}},
        target=entry.about["target"],
        drafters={entry.drafter: entry.about["drafter"]},
        date=datetime.date.today().isoformat(),
        data=entry.about["data"],
        licence=entry.about["licence"],
        command=f"python scripts/fit_acceptance.py --name {name}",
    )
    print(f"wrote {model.save(out)}")
    pool = generate_pool(model)
    runs = pool.drafters[entry.drafter].run_length
    assert runs is not None  # pools have run lengths
    gamma = len(entry.rates)
    found = tokens_per_round(runs, gamma, pool.offsets)
    print(f"{name}: tokens per round at γ = {gamma}: published {entry.tokens:.2f}, pool {found:.2f}")


def _select(name: str, folder: Path | None) -> None:
    for kind, group in CATALOGUE[name].items():
        for cell in group:
            data = _load(folder, cell)
            for classes, states in GRID:
                value = held_out_log_likelihood(data.runs, data.offsets, data.longest, classes, states)
                print(
                    f"{kind:14} {cell.drafter:6} classes {classes} states {states}: {value:.5f}", flush=True
                )


def _plot(
    model: RunModel,
    folder: Path | None,
    cells: dict[str, tuple[Cell, ...]],
    comparisons: Comparisons,
    directory: Path,
) -> None:
    """Draw data, model and i.i.d.: run lengths, autocorrelation, tokens per round."""
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    for drafter in model.drafters:
        figure, axes = plt.subplots(len(cells), 4, figsize=(15, 3.2 * len(cells)), squeeze=False)
        for row, (kind, group) in zip(axes, cells.items(), strict=True):
            cell = next(c for c in group if c.drafter == drafter)
            data = _load(folder, cell)
            both = comparisons[kind, drafter]
            wanted, found, alpha = both.wanted, both.found, both.alpha
            length = np.arange(data.longest + 1)
            iid = (1 - alpha) * alpha**length
            iid[-1] = alpha**data.longest
            row[0].semilogy(length, wanted.distribution, "o", color="black", label="data")
            row[0].semilogy(length, found.distribution, color="tab:blue", label="model")
            row[0].semilogy(length, iid, "--", color="tab:red", label=f"i.i.d. α = {alpha:.2f}")
            row[0].set_ylim(1e-5, 1.5)
            row[0].set(xlabel=f"run length (drafts; {data.longest}: or more)", ylabel="share of starts")
            row[0].set_title(f"{kind}: run lengths", fontsize=10)
            row[1].semilogx(LAGS, wanted.run_correlation, "o", color="black", label="runs, data")
            row[1].semilogx(LAGS, found.run_correlation, color="tab:blue", label="runs, model")
            row[1].semilogx(LAGS, wanted.first_correlation, "s", color="grey", label="first draft, data")
            row[1].semilogx(LAGS, found.first_correlation, color="tab:cyan", label="first draft, model")
            row[1].axhline(0.0, color="lightgrey", linewidth=0.8)
            row[1].set(xlabel="lag (tokens)", ylabel="autocorrelation")
            row[1].set_title(f"{kind}: memory", fontsize=10)
            row[2].plot(GAMMAS, wanted.tokens_per_round, "o", color="black", label="data")
            row[2].plot(GAMMAS, found.tokens_per_round, color="tab:blue", label="model")
            row[2].plot(GAMMAS, iid_tokens(alpha), "--", color="tab:red", label="i.i.d.")
            row[2].set_xticks((1, 4, 8, 12, 16))
            row[2].set(xlabel="γ (drafts per round)", ylabel="tokens per round")
            row[2].set_title(f"{kind}: tokens per round", fontsize=10)
            drawn = simulate_like(
                model.process(kind, drafter), data.longest, np.diff(data.offsets), 2, seed=1
            )
            runs = [("data", "black", "o", data.runs, data.offsets), ("model", "tab:blue", "-", *drawn)]
            for label, colour, mark, values, offsets in runs:
                means = np.sort(mean_by_request(values, offsets))
                share = (np.arange(len(means)) + 0.5) / len(means)
                style = {"linestyle": "none", "marker": ".", "markersize": 3} if mark == "o" else {}
                row[3].plot(means, share, color=colour, label=label, **style)
            row[3].set(xlabel="mean run length of a request", ylabel="share of requests below")
            row[3].set_title(f"{kind}: spread of requests", fontsize=10)
            for axis in row:
                axis.legend(fontsize=7)
        figure.tight_layout()
        path = directory / f"acceptance_{model.name}_{drafter}.png"
        write_atomically(path, partial(figure.savefig, format="png", dpi=80))
        plt.close(figure)
        print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parse(argv)
    if options.list:
        for name, kinds in CATALOGUE.items():
            print(f"{name}: {', '.join(kinds)}")
        for name, entry in PUBLISHED.items():
            print(f"{name}: {entry.kind} (published figures, needs no data)")
        return 0
    folder = data_dir(options.data_dir)
    known = [*CATALOGUE, *PUBLISHED]
    names = known if options.all else options.name
    if unknown := [name for name in names if name not in known]:
        print(f"unknown models {unknown}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    if folder is None and any(_needs_data(name) for name in names):
        print("name the data folder by --data-dir or DSD_DATA_DIR", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console(width=max(110, Console().width))
    try:
        for name in names:
            if name in PUBLISHED:
                if not options.select and not options.show:
                    _publish(name, options.out)
                continue
            if options.select:
                _select(name, folder)
                continue
            cells = CATALOGUE[name]
            if options.show:
                model = load_run_model(options.out / f"{name}.json")
                comparisons = {}
                for kind, cell in [(kind, cell) for kind, group in cells.items() for cell in group]:
                    print(f"comparing {name}: {kind}, {cell.drafter} ...", file=sys.stderr, flush=True)
                    process = model.process(kind, cell.drafter)
                    comparisons[kind, cell.drafter] = _compare(process, _load(folder, cell))
            else:
                model, comparisons = _fit(name, folder, options.out)
            if options.plot is not None:
                _plot(model, folder, cells, comparisons, options.plot)
            for (kind, drafter), both in comparisons.items():
                for table in _tables(name, kind, drafter, both):
                    console.print(table)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
