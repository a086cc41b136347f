"""Measure what is left of the gain of streams when it is distrusted, step by step.

    python scripts/stream_gain.py --json stream_gain.json --write docs/protocols.md

It starts where streams look best on the scenario stream_node: against a speculation length of 4 with a
drafter on one of the node's GPUs, on kernels alone, with independent acceptance and nothing but decoding.
Every step then takes one advantage away and keeps what the steps before took. Both sides choose anew at each
step, on one seed; what they chose is measured on others. At the end the same drafter gets a GPU of its own
beside the node, and money and energy are counted. With --json an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from _runs import Runs
from _stream_node import DEDICATED, DRAFTER, EDGE, NODE_TP1, NODE_TP2, PLAIN, Way, node

from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_json, write_text
from dsd_env.scenario import Scenario, load_scenario

SETTINGS = ((32, 0.005), (32, 0.015), (128, 0.005), (128, 0.015))
"""Requests at a time, and round trips, that are looked at."""
BLOCK = "stream gain"
"""Name of the block of a page that the tables are written into."""
KEPT = (
    "throughput_tokens_per_s",
    "e2e_s_mean",
    "tpot_s_mean",
    "cloud_usd_per_1m_tokens",
    "cloud_energy_j_per_1k_tokens",
    "client_energy_j_per_1k_tokens",
    "requests_in_system_mean",
    "requests_measured",
)
"""Metrics that are kept."""
KERNELS: dict[str, Any] = {"targets__node__engine_overhead": {}}
LINK: dict[str, Any] = {
    "links__link__jitter": {"median_s": 0.001, "sigma": 1.0},
    "links__link__loss_probability": 0.001,
    "links__link__rto_s": 0.2,
}
"""Jitter and loss of a cellular link, as in metro."""
PUBLISHED: dict[str, Any] = {
    f"acceptance__{DRAFTER}": {"source": "published", "model": "llama-3-70b_published", "drafter": DRAFTER},
    "workload__kinds__essay__acceptance_kinds": ["code", "maths", "chat", "qa"],
}
"""Acceptance that differs between requests and within them, at the level published for the pair."""
ON_GAMMA_4 = (NODE_TP1,)
ON_ONE_GPU = (PLAIN, NODE_TP1)
ON_BEST = (PLAIN, NODE_TP1, NODE_TP2)
THINKING_PER_REQUEST = 2.5
"""Clients beside each request in the system, who think: about as many requests at a time as without them."""


@dataclass(frozen=True)
class Step:
    """One step of distrust.

    Attributes:
        name: What it changes.
        opponents: Ways to serve on the node's own GPUs.
        gammas: Speculation lengths that they may choose from; None: all.
        changes: What is changed in the scenario.
        serves: Requests come, are prefilled and answered, instead of endless decoding.
    """

    name: str
    opponents: tuple[Way, ...]
    gammas: tuple[int, ...] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    serves: bool = False


STEPS = (
    Step("kernels alone, against γ = 4 with a drafter on one GPU", ON_GAMMA_4, (4,), KERNELS),
    Step("with the engine's overhead", ON_GAMMA_4, (4,)),
    Step("against the best γ, plain decoding included", ON_ONE_GPU),
    Step("with the node's drafter at its best parallelism", ON_BEST),
    Step("with jitter and loss", ON_BEST, None, LINK),
    Step("with acceptance of published level, request by request", ON_BEST, None, {**LINK, **PUBLISHED}),
    Step("with prefill and arrivals (mean request time)", ON_BEST, None, {**LINK, **PUBLISHED}, True),
)
"""From where streams look best to where they are used; each keeps what those before took."""


def scenario_of(step: Step, requests: int, rtt_s: float, way: Way) -> Scenario:
    """Return what one way is measured on in a step."""
    changes = dict(step.changes)
    if way is DEDICATED and f"acceptance__{DRAFTER}" in changes:
        changes[f"acceptance__{DRAFTER}-own-gpu"] = changes[f"acceptance__{DRAFTER}"]
    if not step.serves:
        return node(requests, way, rtt_s, **changes)
    users = load_scenario("metro").workload
    for name, kind in users.kinds.items():
        dumped = kind.model_dump()
        changes[f"workload__kinds__{name}"] = {**dumped, "slo": "chat"}
    changes["workload__kinds__essay"] = None
    changes.pop("workload__kinds__essay__acceptance_kinds", None)
    return node(
        round(requests * (1.0 + THINKING_PER_REQUEST)),
        way,
        rtt_s,
        workload__arrivals=users.model_dump()["arrivals"],
        workload__max_prompt_tokens=users.max_prompt_tokens,
        workload__max_output_tokens=users.max_output_tokens,
        episode__warmup_s=20.0,
        episode__window_s=20.0,
        episode__horizon_s=600.0,
        **changes,
    )


def time_of(rows: list[dict[str, float]], step: Step, requests: int) -> float:
    """Return what is compared: time per token, or mean request time; its mean over seeds."""
    if step.serves:
        return float(np.mean([row["e2e_s_mean"] for row in rows]))
    return float(np.mean([requests / row["throughput_tokens_per_s"] for row in rows]))


def study(runs: Runs, step: Step, requests: int, rtt_s: float, confirm: int) -> dict[str, Any]:
    """Return the best of both sides in one step, and what streams change."""
    search, sure = slice(0, 1), slice(1, 1 + confirm)

    def choices(*ways: Way, gammas: tuple[int, ...] | None = None) -> list[tuple[Scenario, str]]:
        found = []
        for way in ways:
            scenario = scenario_of(step, requests, rtt_s, way)
            lengths = [gamma for gamma in way.gammas if gammas is None or gamma in gammas]
            found += [(scenario, f"static:{gamma}:1:{way.place}") for gamma in lengths]
        return found

    sides = {
        "node": choices(*step.opponents, gammas=step.gammas),
        "own GPU": choices(DEDICATED),
        "edge": choices(EDGE),
    }
    if step is STEPS[-1]:
        sides["plain"] = choices(PLAIN)
    label = f"{requests} requests, {1e3 * rtt_s:g} ms: {step.name}"
    runs.run([choice for side in sides.values() for choice in side], search, label)
    best = {
        name: min(side, key=lambda each: time_of(runs.rows(each[0], each[1], search), step, requests))
        for name, side in sides.items()
    }
    runs.run(list(best.values()), sure, label)
    result: dict[str, Any] = {}
    for name, choice in best.items():
        rows = runs.rows(choice[0], choice[1], sure)
        result[name] = {
            "choice": choice[1],
            "drafter": str(menu[0].profile) if (menu := choice[0].targets["node"].menu) else "",
            "time_s": time_of(rows, step, requests),
            "changes_percent": [],
            **{key: float(np.mean([row[key] for row in rows])) for key in KEPT if key in rows[0]},
        }
    for other in ("node", "own GPU"):
        mine, theirs = runs.rows(*best["edge"], sure), runs.rows(*best[other], sure)
        changes = [
            100.0 * (time_of([row], step, requests) / time_of([base], step, requests) - 1.0)
            for row, base in zip(mine, theirs, strict=True)
        ]
        error = float(np.std(changes, ddof=1) / np.sqrt(len(changes))) if len(changes) > 1 else float("nan")
        result[other]["edge_against_percent"] = float(np.mean(changes))
        result[other]["edge_against_percent_se"] = error
    return result


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Return the tables."""
    labels = [f"{requests} requests, {1e3 * rtt_s:g} ms" for requests, rtt_s in SETTINGS]
    lines = ["", f"    {command}", "", "| step | " + " | ".join(labels) + " |"]
    lines.append("|---|" + "---|" * len(labels))

    def row(name: str, step: Step, other: str) -> str:
        cells = []
        for label in labels:
            each = found[label][step.name][other]
            window = found[label][step.name]["edge"]["choice"].split(":")[1]
            cells.append(
                f"{each['edge_against_percent']:+.1f} ± {each['edge_against_percent_se']:.1f} (W {window}; "
                f"{_words(each)})"
            )
        return f"| {name} | " + " | ".join(cells) + " |"

    for step in STEPS:
        lines.append(row(step.name, step, "node"))
    lines.append(row("the same, against a drafter on a GPU of its own", STEPS[-1], "own GPU"))
    lines += [
        "",
        "What streams from the clients change, per cent, ± the standard error over seeds; in brackets their "
        "window and the opponent's choice. Money and energy in the last step:",
        "",
        "| requests, round trip | served | request time (s) | cloud $ per 1M tokens | cloud J per 1k tokens "
        "| clients' J per 1k tokens |",
        "|---|---|---|---|---|---|",
    ]
    for label in labels:
        for name, each in found[label][STEPS[-1].name].items():
            lines.append(
                f"| {label} | {name}: {_words(each)} | {each['time_s']:.2f} "
                f"| {each['cloud_usd_per_1m_tokens']:.2f} | {each['cloud_energy_j_per_1k_tokens']:.0f} "
                f"| {each['client_energy_j_per_1k_tokens']:.0f} |"
            )
    lines.append("")
    return "\n".join(lines)


def _words(side: dict[str, Any]) -> str:
    """Return a choice in words."""
    _, gamma, _, place = side["choice"].split(":", 3)
    if gamma == "0":
        return "plain"
    if place == "colocated" and side["drafter"]:
        return f"{gamma}, {side['drafter'].rpartition('_')[2]}"
    return str(gamma)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="every simulation and the result"
    )
    parser.add_argument(
        "--confirm", type=int, default=2, metavar="N", help="other seeds to measure on (default 2)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="page whose tables are replaced, between its marks"
    )
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("confirm",))
    page = _cli.page_with(parser, arguments.write, BLOCK)
    return _cli.alone("stream_gain", arguments.json, lambda: _run(arguments, page))


def _run(arguments: argparse.Namespace, page: str) -> int:
    before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    runs = Runs.beside(arguments.json, before, KEPT)
    command = f"python scripts/stream_gain.py --confirm {arguments.confirm} --json stream_gain.json"
    found: dict[str, dict[str, Any]] = {}
    for requests, rtt_s in SETTINGS:
        label = f"{requests} requests, {1e3 * rtt_s:g} ms"
        found[label] = {}
        for step in STEPS:
            found[label][step.name] = study(runs, step, requests, rtt_s, arguments.confirm)
            change = found[label][step.name]["node"]["edge_against_percent"]
            print(f"{label}: {step.name}: {change:+.1f} %", flush=True)
    write_json(arguments.json, {"command": command, "found": found, "simulations": runs.finished.results})
    runs.finished.discard()
    tables = markdown(found, command)
    print(tables)
    if arguments.write:
        write_text(arguments.write, replace_blocks(page, {BLOCK: tables}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
