"""Where does a remote drafter pay? A map over targets, remote drafters, distance, acceptance and load.

    python scripts/regimes.py --write docs/regimes.md --figure docs/figures/regimes.png --json regimes.json

For every cell the best length of each way of drafting is found by closed forms and latency profiles
(dsd_env.schedulers.worth): plain decoding, drafts on the target's own GPUs, remote drafts round by round,
remote drafts streamed. The target is always busy and all requests are alike; arrivals, prefill, jitter and
loss are left out. --confirm N simulates N cells drawn at random and says how far the closed forms are off.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _checkout  # noqa: F401
import _cli
import numpy as np

from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_json, write_text
from dsd_env.schedulers.worth import AT_TARGET, REMOTE, BusyTarget, Case, Cost, cheapest

RTTS_MS = (1.0, 5.0, 15.0, 40.0, 80.0)
ACCEPTANCES = (0.6, 0.75, 0.85)
ACTIVE = (1, 8, 32, 64, 128)
BLOCK = "regimes"
USUAL_GAMMA = 4
"""The usual single-node opponent: so many drafts on the target's GPUs."""
DARK = 25
"""Gains, in %, beyond which a cell of the figure is dark."""
LINES = (0.20, 0.35)
"""Gains that are marked, once and twice."""
WAYS = ("plain", "node", "rounds", "stream")


class Setup(NamedTuple):
    """A target and its drafters.

    Attributes:
        title: What it is.
        target: Profile of the target.
        beside: Profile of the drafter on them, at its best parallelism.
        remote: Profile of the remote drafter, one for each request.
    """

    title: str
    target: str
    beside: str
    remote: str


SETUPS = (
    Setup(
        "70B on 4 H100, 3B drafts, remote on an RTX 4090",
        "llama-3-70b_h100-sxm_tp4",
        "llama-3.2-3b_h100-sxm_tp2",
        "llama-3.2-3b-q4_rtx-4090",
    ),
    Setup(
        "70B on 4 H100, 3B drafts, remote on an Apple M3 Max",
        "llama-3-70b_h100-sxm_tp4",
        "llama-3.2-3b_h100-sxm_tp2",
        "llama-3.2-3b-q4_apple-m3-max",
    ),
    Setup(
        "70B on 4 H100, 3B drafts, remote on a Jetson AGX Orin",
        "llama-3-70b_h100-sxm_tp4",
        "llama-3.2-3b_h100-sxm_tp2",
        "llama-3.2-3b-int4_jetson-agx-orin",
    ),
    Setup(
        "70B on 4 L40S, 3B drafts, remote on an RTX 4090",
        "llama-3-70b_l40s_tp4",
        "llama-3.2-3b_l40s_tp1",
        "llama-3.2-3b-q4_rtx-4090",
    ),
    Setup(
        "70B on 2 RTX PRO 6000, 3B drafts, remote on an RTX 4090",
        "llama-3-70b_rtx-pro-6000_tp2",
        "llama-3.2-3b_rtx-pro-6000_tp1",
        "llama-3.2-3b-q4_rtx-4090",
    ),
    Setup(
        "8B on one H100, 1B drafts, remote on an RTX 4090",
        "llama-3-8b_h100-sxm_tp1",
        "llama-3.2-1b_h100-sxm_tp1",
        "llama-3.2-1b-q4_rtx-4090",
    ),
)


class Cell(NamedTuple):
    """One cell of the map.

    Attributes:
        setup: Target and drafters.
        rtt_ms: Round trip between the remote drafter and the target.
        acceptance: Chance that a draft is right, given that those before it were.
        active: Requests in every iteration.
    """

    setup: Setup
    rtt_ms: float
    acceptance: float
    active: int


class Verdict(NamedTuple):
    """What the ways of drafting come to in a cell.

    Attributes:
        costs: The best of each way.
        usual: Single-node drafting with the usual length.
    """

    costs: list[Cost]
    usual: Cost

    @property
    def best(self) -> Cost:
        """The best of all."""
        return min(self.costs, key=lambda cost: cost.token_s)

    @property
    def single_node(self) -> Cost:
        """The best without a remote drafter."""
        return cheapest(self.costs, AT_TARGET)

    @property
    def remote(self) -> Cost:
        """The best with one."""
        return cheapest(self.costs, REMOTE)

    @property
    def gain(self) -> float:
        """Share of the time per token that the best remote way saves over the best single-node one."""
        return 1.0 - self.remote.token_s / self.single_node.token_s

    @property
    def gain_over_usual(self) -> float:
        """The same over single-node drafting with the usual length."""
        return 1.0 - self.remote.token_s / self.usual.token_s


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every cell")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="replace the tables of a page, between its marks"
    )
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the map")
    parser.add_argument("--confirm", type=int, default=0, metavar="N", help="simulate so many cells, too")
    arguments = parser.parse_args()
    if arguments.confirm < 0:
        parser.error(f"--confirm {arguments.confirm}: must be at least 0")
    page = _cli.page_with(parser, arguments.write, BLOCK)
    verdicts = {cell: judge(cell) for cell in cells()}
    text = tables(verdicts)
    print(text)
    checked = confirm(verdicts, arguments.confirm)
    if checked:
        print(summary(checked))
    if arguments.json:
        write_json(arguments.json, {"cells": rows(verdicts), "simulated": checked})
    if arguments.write:
        write_text(arguments.write, replace_blocks(page, {BLOCK: text}))
    if arguments.figure:
        draw(verdicts, arguments.figure)
    return 0


def cells() -> Iterator[Cell]:
    """Yield every cell of the map."""
    for setup, rtt_ms, acceptance, active in itertools.product(SETUPS, RTTS_MS, ACCEPTANCES, ACTIVE):
        yield Cell(setup, rtt_ms, acceptance, active)


def case_of(cell: Cell) -> Case:
    """Return a cell as a question of its own, with a drafter for each request."""
    setup = cell.setup
    return Case(setup.target, setup.beside, setup.remote, cell.rtt_ms, cell.acceptance, cell.active)


@functools.cache
def _busy(setup: Setup) -> BusyTarget:
    """Return the target of a setup with its step times, for one request."""
    return case_of(Cell(setup, 0.0, 0.5, 1)).busy()


def judge(cell: Cell) -> Verdict:
    """Return what each way of drafting comes to."""
    busy = _busy(cell.setup)._replace(active=cell.active, acceptance=cell.acceptance)
    usual = busy.node(USUAL_GAMMA)
    assert usual is not None  # every setup has a drafter beside its target
    return Verdict(busy.best(case_of(cell).remote_step_s, 1e-3 * cell.rtt_ms), usual)


def marked(gain: float) -> str:
    """Return a gain as text, with a mark for each line that it passes."""
    return f"{-100.0 * gain:+.0f} %" + "*" * sum(gain >= line for line in LINES)


def tables(verdicts: dict[Cell, Verdict]) -> str:
    """Return a Markdown table per setup."""
    parts: list[str] = []
    for setup in SETUPS:
        parts += [f"### {setup.title}", "", "| round trip | alpha | " + " | ".join(map(str, ACTIVE)) + " |"]
        parts.append("|---|---|" + "---|" * len(ACTIVE))
        for rtt_ms, acceptance in itertools.product(RTTS_MS, ACCEPTANCES):
            row = [verdicts[Cell(setup, rtt_ms, acceptance, active)] for active in ACTIVE]
            texts = [
                f"{v.best.way} {v.best.gamma}: {marked(v.gain)}, {marked(v.gain_over_usual)}" for v in row
            ]
            parts.append(f"| {rtt_ms:g} ms | {acceptance:g} | " + " | ".join(texts) + " |")
        parts.append("")
    every = list(verdicts.values())
    counts = {way: sum(v.best.way == way for v in every) for way in WAYS}
    parts.append(
        f"Of {len(every)} cells "
        + ", ".join(f"{way} is best in {n}" for way, n in counts.items())
        + "; a remote drafter saves "
        + " and ".join(
            f"{100 * line:.0f} % or more in {sum(v.gain >= line for v in every)} against the best single-node"
            f" choice and in {sum(v.gain_over_usual >= line for v in every)} against single-node drafting "
            f"with gamma {USUAL_GAMMA}"
            for line in LINES
        )
        + "."
    )
    return "\n".join(parts)


def rows(verdicts: dict[Cell, Verdict]) -> list[dict[str, Any]]:
    """Return every cell as plain data."""
    return [
        {
            "target": cell.setup.target,
            "beside": cell.setup.beside,
            "remote": cell.setup.remote,
            "rtt_ms": cell.rtt_ms,
            "acceptance": cell.acceptance,
            "active": cell.active,
            "best": verdict.best.way,
            "gain": verdict.gain,
            "gain_over_usual": verdict.gain_over_usual,
            "ways": [cost._asdict() for cost in verdict.costs],
        }
        for cell, verdict in verdicts.items()
    ]


def confirm(verdicts: dict[Cell, Verdict], n: int) -> list[dict[str, Any]]:
    """Simulate the best single-node and the best remote way of cells drawn at random."""
    from agents.evaluation import Task
    from dsd_env.whole_runs.static import run_statics

    chosen = np.random.default_rng(0).permutation(len(verdicts))[:n]
    found = []
    for index in chosen.tolist():
        cell = list(verdicts)[index]
        verdict = verdicts[cell]
        simulated: list[float] = []
        for cost in (verdict.single_node, verdict.remote):
            scenario = case_of(cell).scenario(
                cost.protocol,
                episode__requests=None,
                episode__warmup_requests=0,
                episode__warmup_s=5.0,
                episode__window_s=20.0,
                episode__horizon_s=60.0,
            )
            task = Task("regimes", scenario, cost.rule, 1, "")
            ((_, metrics),) = run_statics([task])
            simulated.append(cell.active / metrics["throughput_tokens_per_s"])
        found.append(
            {
                "target": cell.setup.target,
                "remote": cell.setup.remote,
                "rtt_ms": cell.rtt_ms,
                "acceptance": cell.acceptance,
                "active": cell.active,
                "gain": verdict.gain,
                "simulated_gain": 1.0 - simulated[1] / simulated[0],
            }
        )
        print(f"simulated {len(found)} of {len(chosen)}", flush=True)
    return found


def summary(checked: Sequence[dict[str, Any]]) -> str:
    """Return in words how far the closed forms are off."""
    off = np.array([100.0 * (row["gain"] - row["simulated_gain"]) for row in checked])
    same = sum((row["gain"] > 0) == (row["simulated_gain"] > 0) for row in checked)
    return (
        f"{len(checked)} cells simulated: the gain by closed forms less the simulated one is between "
        f"{off.min():+.1f} and {off.max():+.1f} points, {off.mean():+.1f} on average; the same side wins in "
        f"{same}."
    )


def draw(verdicts: dict[Cell, Verdict], path: Path) -> None:
    """Draw the gain over the best single-node choice, a panel per setup and acceptance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(SETUPS),
        len(ACCEPTANCES),
        figsize=(10, 2.3 * len(SETUPS)),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for row, setup in enumerate(SETUPS):
        for column, acceptance in enumerate(ACCEPTANCES):
            axis = axes[row][column]
            gains = np.array(
                [[100 * verdicts[Cell(setup, rtt, acceptance, n)].gain for n in ACTIVE] for rtt in RTTS_MS]
            )
            image = axis.imshow(gains, cmap="PuOr", vmin=-40, vmax=40, aspect="auto")
            for y, x in itertools.product(range(len(RTTS_MS)), range(len(ACTIVE))):
                gain = gains[y, x]
                dark = abs(gain) > DARK
                axis.text(
                    x, y, f"{-gain:+.0f}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
                )
            axis.set_xticks(range(len(ACTIVE)), list(map(str, ACTIVE)))
            axis.set_yticks(range(len(RTTS_MS)), [f"{rtt:g} ms" for rtt in RTTS_MS])
            axis.set_title(f"alpha {acceptance:g}", fontsize=8)
        axes[row][0].set_ylabel(setup.title.replace(", ", ",\n"), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("requests in every iteration")
    figure.suptitle(
        "Change of the time per token by the best remote drafter, in % of the best single-node choice"
    )
    figure.colorbar(image, ax=axes, label="saved by the remote drafter, %", shrink=0.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    _cli.run(main)
