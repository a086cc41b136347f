"""Draw the protocols on one time axis, from simulated events of one request.

Every protocol serves the same request on the same seed: one device with a draft model, one target, a link
between them. Rounds are of 4 drafts, streams have a window of 8: each is among the best for these times. The
request is the one, of many, whose times per token are nearest to their means, so that no lucky one is shown.

Boxes are what the device and the target work at, slanted lines are messages, and the number in a box of the
target is how many tokens that iteration committed.

Example:
    python scripts/draw_protocols.py --out docs/figures/protocols.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import _cli

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dsd_env.sim import ReferenceSimulation

STEP_S, TOKEN_S = 0.003, 58.6e-6
"""A draft step of one token, and what each further token adds: a 3B drafter on a 4090-class card."""
ITERATION_S, ONE_WAY_S, ALPHA = 0.014, 0.0075, 0.8
"""A 70B target on four H100, 15 ms of round trip, acceptance."""
ROUND, WINDOW, TOKENS = 4, 8, 24
"""Drafts of a round, drafts that may be in flight, tokens of the answer."""
FANOUT, DEPTH, HITS = 2, 4, (0.5, 0.7)
"""Branches, and how often the right token for a wrong draft opens one, by fan-out: assumed."""
DRAFT, BRANCHES, VERIFY, BRANCH, PLAIN, MESSAGE, LOST = (
    "#0072B2",
    "#9CCBE8",
    "#009E73",
    "#AA4499",
    "#8C8C8C",
    "#D55E00",
    "#B00020",
)


class Row(NamedTuple):
    """One row of the picture: a protocol, in words; its gamma; whether its drafts have branches."""

    words: str
    protocol: str
    gamma: int
    branches: bool = False


ROWS = (
    Row(f"synchronous, rounds of {ROUND} drafts", "synchronous", ROUND),
    Row(f"pipelined, rounds of {ROUND} drafts", "pipelined", ROUND),
    Row(f"streaming, window of {WINDOW} drafts", "streaming", WINDOW),
    Row(
        f"streaming, window of {WINDOW} drafts, {FANOUT} branches of {DEPTH} tokens at each draft",
        "streaming",
        WINDOW,
        branches=True,
    ),
)


def scenario_of(row: Row) -> dict[str, Any]:
    """Return the scenario of one device and one target under a protocol."""
    protocol: dict[str, Any] = {"kind": row.protocol}
    if row.branches:
        protocol["branches"] = {"fanout": FANOUT, "depth": DEPTH}
    return {
        "name": f"drawing-{row.protocol}",
        "card": {
            "models": "a 3B drafter on the client's card, a 70B target",
            "regime": "one request",
            "utilisation": "none",
        },
        "devices": {
            "device": {
                "count": 1,
                "drafter": {
                    "model": "draft",
                    "profile": {"t0_s": STEP_S - TOKEN_S, "c_s_per_token": TOKEN_S},
                },
                "link": "link",
                "power": {"idle_w": 20.0, "busy_w": 300.0},
            }
        },
        "targets": {
            "target": {
                "profile": {"t0_s": ITERATION_S, "c_s_per_token": 0.0001},
                "gpus": 4,
                "kv_capacity_tokens": 100000,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 2048,
                "power": {"idle_w": 400.0, "busy_w": 2000.0},
            }
        },
        "links": {"link": {"one_way_s": ONE_WAY_S, "uplink_bits_per_s": 1.0e8, "downlink_bits_per_s": 1.0e8}},
        "acceptance": {"draft": {"source": "iid", "alpha": ALPHA, "hits": list(HITS)}},
        "slo": {"chat": {"ttft_s": 1.0, "tpot_s": 0.05}},
        "workload": {
            "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}},
            "kinds": {
                "chat": {
                    "weight": 1.0,
                    "slo": "chat",
                    "prompt_tokens": {"distribution": "constant", "value": 16},
                    "output_tokens": {"distribution": "constant", "value": TOKENS},
                }
            },
            "max_prompt_tokens": 64,
            "max_output_tokens": 64,
        },
        "protocol": protocol,
        "actions": {"gammas": [0, row.gamma]},
        "episode": {"requests": 1, "warmup_requests": 0},
    }


def simulated(row: Row, seed: int) -> ReferenceSimulation:
    """Simulate the request of a seed under a protocol, drafting on the device."""
    from dsd_env.control import Decision, Site
    from dsd_env.scenario import load_scenario
    from dsd_env.sim import ReferenceSimulation

    simulation = ReferenceSimulation(
        load_scenario(scenario_of(row)), seed=seed, record_events=True, record_spans=True
    )
    while (view := simulation.next_decision()) is not None:
        place = next(i for i, one in enumerate(view.candidates) if one.site == Site.OWN_DEVICE)
        simulation.decide(Decision(row.gamma, 1, place))
    return simulation


def ms_per_token(simulation: ReferenceSimulation) -> float:
    """Return the time per token of the request, after the first."""
    return 1e3 * simulation.metrics()["tpot_s_mean"]


def typical(requests: int) -> tuple[int, list[float]]:
    """Return the seed whose times are nearest to the means, and the mean time per token of each row."""
    times = [[ms_per_token(simulated(row, seed)) for row in ROWS] for seed in range(requests)]
    means = [sum(column) / requests for column in zip(*times, strict=True)]

    def distance(seed: int) -> float:
        return math.dist(
            [time / mean for time, mean in zip(times[seed], means, strict=True)], [1.0] * len(means)
        )

    return min(range(requests), key=distance), means


def goes_on(start_s: float, taken: list[float], anew: list[float]) -> bool:
    """Return whether an iteration with drafts goes on with a branch.

    Args:
        start_s: When it starts.
        taken: When the target took up branches, since its last iteration with drafts.
        anew: When the drafter began anew; its first drafts come one way later.
    """
    newest = [time_s for time_s in taken if time_s <= start_s][-1:]
    return any(not any(each < time_s <= start_s - ONE_WAY_S for time_s in anew) for each in newest)


def draw(axes: Axes, simulation: ReferenceSimulation, title: str) -> None:
    """Draw what happened after the first token."""
    from dsd_env.sim import EventKind

    def at(kind: EventKind) -> list[float]:
        return [event.time_s for event in simulation.events if event.kind == kind]

    events = simulation.events
    commits = {event.time_s: int(event.value) for event in events if event.kind == EventKind.COMMIT}
    drafts = {event.time_s: int(event.value) for event in events if event.kind == EventKind.DRAFT_START}
    taken, anew = at(EventKind.BRANCH_TAKEN), at(EventKind.STREAM_ROLLBACK)
    zero_s = verified_s = min(commits)

    def box(start_s: float, end_s: float, bottom: float, colour: str) -> None:
        start, length = 1e3 * (start_s - zero_s), 1e3 * (end_s - start_s)
        axes.broken_barh([(start, length)], (bottom, 0.5), color=colour, edgecolor="white", linewidth=0.8)

    for span in simulation.spans:
        if span.end_s <= zero_s:
            continue
        if span.lane == "device:0" and span.kind == "draft":
            steps = drafts[span.start_s]
            if steps == 0:  # the window is full: only branches grow
                box(span.start_s, span.end_s, 1.0, BRANCHES)
            for step in range(steps):
                start_s = span.start_s + step * STEP_S
                end_s = span.end_s if step == steps - 1 else min(span.end_s, start_s + STEP_S)
                if end_s - start_s > 0.1 * STEP_S:
                    box(start_s, end_s, 1.0, DRAFT)
        elif span.lane == "target:0":
            colour = PLAIN
            if span.kind == "verify":
                is_branch = goes_on(span.start_s, [time_s for time_s in taken if time_s > verified_s], anew)
                colour = BRANCH if is_branch else VERIFY
                verified_s = span.start_s
            box(span.start_s, span.end_s, 0.0, colour)
            if span.end_s in commits:
                middle = 1e3 * (0.5 * (span.start_s + span.end_s) - zero_s)
                number = str(commits[span.end_s])
                axes.text(middle, 0.25, number, ha="center", va="center", color="white", fontsize=9)
        elif span.kind == "message":
            times = [1e3 * (span.start_s - zero_s), 1e3 * (span.end_s - zero_s)]
            heights = [1.0, 0.5] if span.lane.startswith("up") else [0.5, 1.0]
            axes.plot(times, heights, color=MESSAGE, linewidth=0.7)
    given_up = (EventKind.ROLLBACK, EventKind.STREAM_ROLLBACK)
    for time_s in [event.time_s for event in events if event.kind in given_up and event.value > 0]:
        axes.plot(1e3 * (time_s - zero_s), 1.62, marker="x", color=LOST, markersize=6, markeredgewidth=1.6)
    for time_s in at(EventKind.BRANCH_ADOPTED):
        axes.plot(1e3 * (time_s - zero_s), 1.62, marker="D", color=BRANCH, markersize=5)
    axes.set_yticks([0.25, 1.25], ["target", "device"])
    axes.set_ylim(-0.1, 1.8)
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("docs/figures/protocols.png"), help="picture (PNG)")
    parser.add_argument(
        "--requests", type=int, default=200, help="requests, of which one is drawn (default: %(default)s)"
    )
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ["requests"])

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from dsd_env.files import write_atomically

    seed, means = typical(arguments.requests)
    print(f"seed {seed}, of {arguments.requests} requests the nearest to the means")
    figure, all_axes = pyplot.subplots(len(ROWS), 1, sharex=True, figsize=(11, 8.4), layout="constrained")
    for axes, row, mean in zip(all_axes, ROWS, means, strict=True):
        simulation = simulated(row, seed)
        time = ms_per_token(simulation)
        draw(axes, simulation, f"{row.words}: {time:.1f} ms per token (mean of all {mean:.1f})")
        print(f"{row.words}: {time:.2f} ms per token, mean {mean:.2f}")
    all_axes[-1].set_xlabel("milliseconds after the first token was committed")
    legend = [
        Patch(color=DRAFT, label="draft step: one draft"),
        Patch(color=BRANCHES, label="draft step for branches alone"),
        Patch(color=VERIFY, label="iteration with drafts"),
        Patch(color=BRANCH, label="iteration that goes on with a branch"),
        Patch(color=PLAIN, label="iteration without drafts"),
        Line2D([], [], color=MESSAGE, label="message"),
        Line2D([], [], color=LOST, marker="x", linestyle="", label="drafts given up"),
        Line2D([], [], color=BRANCH, marker="D", linestyle="", label="branch adopted"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    write_atomically(arguments.out, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    return 0


if __name__ == "__main__":
    _cli.run(main)
