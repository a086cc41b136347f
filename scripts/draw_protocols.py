"""Draw the three protocols on one time axis, from simulated events of one request.

Every protocol serves the same request on the same seed: one device with a draft model, one target, a link
between them. Bars are what the device and the target work at, slanted lines are messages, and the number in a
bar of the target is how many tokens it committed.

Example:
    python scripts/draw_protocols.py --out docs/figures/protocols.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _cli

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dsd_env.sim import ReferenceSimulation

DRAFT_S, ITERATION_S, ONE_WAY_S, ALPHA = 0.003, 0.014, 0.0075, 0.8
"""A 3B drafter on a 4090-class card, a 70B target on four H100, 15 ms of round trip, acceptance."""
TOKENS = 24
PROTOCOLS = {"synchronous": 4, "pipelined": 4, "streaming": 8}
"""The protocols, each with its gamma: drafts of a round, or the window of a stream."""
DRAFT, VERIFY, PLAIN, MESSAGE = "#0072B2", "#009E73", "#8C8C8C", "#D55E00"


def scenario_of(protocol: str) -> dict[str, Any]:
    """Return the scenario of one device and one target under a protocol."""
    return {
        "name": f"drawing-{protocol}",
        "card": {
            "models": "a 3B drafter on the client's card, a 70B target",
            "regime": "one request",
            "utilisation": "none",
        },
        "devices": {
            "device": {
                "count": 1,
                "drafter": {"model": "draft", "profile": {"t0_s": DRAFT_S}},
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
        "acceptance": {"draft": {"source": "iid", "alpha": ALPHA}},
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
        "protocol": {"kind": protocol},
        "actions": {"gammas": [0, 4, 8]},
        "episode": {"requests": 1, "warmup_requests": 0},
    }


def simulated(protocol: str, gamma: int, seed: int) -> ReferenceSimulation:
    """Simulate the request under a protocol, drafting on the device."""
    from dsd_env.control import Decision, Site
    from dsd_env.scenario import load_scenario
    from dsd_env.sim import ReferenceSimulation

    simulation = ReferenceSimulation(
        load_scenario(scenario_of(protocol)), seed=seed, record_events=True, record_spans=True
    )
    while (view := simulation.next_decision()) is not None:
        place = next(i for i, one in enumerate(view.candidates) if one.site == Site.OWN_DEVICE)
        simulation.decide(Decision(gamma, 1, place))
    return simulation


def draw(axes: Axes, simulation: ReferenceSimulation, title: str) -> None:
    """Draw what happened after the first token."""
    from dsd_env.sim import EventKind

    commits = {
        event.time_s: int(event.value) for event in simulation.events if event.kind == EventKind.COMMIT
    }
    zero_s = min(commits)
    for span in simulation.spans:
        if span.end_s <= zero_s:
            continue
        start, length = 1e3 * (span.start_s - zero_s), 1e3 * (span.end_s - span.start_s)
        if span.lane == "device:0" and span.kind == "draft":
            axes.broken_barh([(start, length)], (1.0, 0.5), color=DRAFT, edgecolor="white", linewidth=0.8)
        elif span.lane == "target:0":
            colour = VERIFY if span.kind == "verify" else PLAIN
            axes.broken_barh([(start, length)], (0.0, 0.5), color=colour, edgecolor="white", linewidth=0.8)
            if span.end_s in commits:
                axes.text(
                    start + length / 2,
                    0.25,
                    str(commits[span.end_s]),
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=9,
                )
        elif span.kind == "message":
            up = span.lane.startswith("up")
            axes.plot([start, start + length], [1.0, 0.5] if up else [0.5, 1.0], color=MESSAGE, linewidth=0.7)
    axes.set_yticks([0.25, 1.25], ["target", "device"])
    axes.set_ylim(-0.1, 1.7)
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/figures/protocols.png"), help="picture (PNG)")
    parser.add_argument("--seed", type=int, default=3, help="episode seed (default: %(default)s)")
    arguments = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    from dsd_env.files import write_atomically

    figure, rows = pyplot.subplots(len(PROTOCOLS), 1, sharex=True, figsize=(11, 6.2), layout="constrained")
    for axes, (protocol, gamma) in zip(rows, PROTOCOLS.items(), strict=True):
        simulation = simulated(protocol, gamma, arguments.seed)
        metrics = simulation.metrics()
        draw(
            axes,
            simulation,
            f"{protocol}, gamma = {gamma}: {TOKENS} tokens, {1e3 * metrics['tpot_s_mean']:.1f} ms per token",
        )
        print(f"{protocol:12s} gamma {gamma}: {1e3 * metrics['tpot_s_mean']:.2f} ms per token")
    rows[-1].set_xlabel("milliseconds after the first token was committed")
    legend = [
        Patch(color=DRAFT, label="draft step"),
        Patch(color=VERIFY, label="iteration with drafts"),
        Patch(color=PLAIN, label="iteration without"),
        Patch(color=MESSAGE, label="message"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    write_atomically(arguments.out, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    return 0


if __name__ == "__main__":
    _cli.run(main)
