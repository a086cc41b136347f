"""Measure streams against drafting on the node: the table of docs/protocols.md.

    python scripts/stream_table.py --json stream_table.json --write docs/protocols.md

One saturated node (scenario stream_node) serves 1 to 128 requests at a time. For every number of requests and
every round trip it measures the time per token of plain decoding, of drafting on the node's GPUs (the best
speculation length, and the best parallelism of the drafter), of streams from a drafter on a GPU of its own
beside the node, and of streams from the clients (both with the best window). The best choices are found on
one seed and confirmed on others. Beside it stands what a prototype had found before anything was built, and
the same cells without the engine's overhead, which the prototype left out. With --json an interrupted run
continues where it stopped when started again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
from _runs import Runs
from _stream_node import (
    DEDICATED,
    EDGE,
    NODE_TP1,
    NODE_TP2,
    PLAIN,
    Way,
    ms_per_token,
    node,
    relative_se,
)

from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_json, write_text
from dsd_env.scenario import Scenario

REQUESTS = (1, 8, 32, 64, 128)
RTTS_S = (0.005, 0.015, 0.040)
BLOCK = "stream table"
"""Name of the block of a page that the table is written into."""
KEPT = ("throughput_tokens_per_s", "throughput_tokens_per_s_se", "tokens_per_iteration", "stream_idle_share")
"""Metrics that are kept."""
ENGINES: dict[str, dict[str, Any]] = {"engine": {}, "kernels alone": {"targets__node__engine_overhead": {}}}
"""Variants: with the engine's overhead as fitted, and without."""
PROTOTYPE = {
    (1, 0.005): -11, (1, 0.015): 3, (1, 0.040): 31,
    (8, 0.005): -14, (8, 0.015): 2, (8, 0.040): 29,
    (32, 0.005): -19, (32, 0.015): -5, (32, 0.040): 16,
    (64, 0.005): -22, (64, 0.015): -11, (64, 0.040): 4,
    (128, 0.005): -15, (128, 0.015): -17, (128, 0.040): -3,
}  # fmt: skip
"""Change in time per token against the best choice on the node, per cent, that a prototype of a hundred lines
finds with the same latency profiles: kernels alone, 600 tokens of context, a drafter on one GPU."""


def study(runs: Runs, requests: int, rtts_s: list[float], engine: str, confirm: int) -> dict[str, Any]:
    """Return what was found for one number of requests."""
    changes = ENGINES[engine]
    search, sure = slice(0, 1), slice(1, 1 + confirm)
    nodes: list[tuple[Way, Scenario]] = [
        (way, node(requests, way, **changes)) for way in (PLAIN, NODE_TP1, NODE_TP2, DEDICATED)
    ]
    edges = {rtt_s: node(requests, EDGE, rtt_s, **changes) for rtt_s in rtts_s}
    wanted = [(scenario, name) for way, scenario in nodes for name in way.schedulers]
    wanted += [(scenario, name) for scenario in edges.values() for name in EDGE.schedulers]
    runs.run(wanted, search, f"{requests} requests, {engine}")

    def time_ms(choice: tuple[Scenario, str], seeds: slice) -> float:
        return ms_per_token(runs.rows(*choice, seeds), requests)

    def best(choices: list[tuple[Scenario, str]]) -> tuple[Scenario, str]:
        return min(choices, key=lambda choice: time_ms(choice, search))

    by_way = {way: [(scenario, name) for name in way.schedulers] for way, scenario in nodes}
    by_rtt = {rtt_s: [(scenario, name) for name in EDGE.schedulers] for rtt_s, scenario in edges.items()}
    on_node = by_way[NODE_TP1] + by_way[NODE_TP2]
    found: dict[str, tuple[Scenario, str]] = {
        "plain": by_way[PLAIN][0],
        "node_g4": best([choice for choice in on_node if choice[1].startswith("static:4:")]),
        "node": best(by_way[PLAIN] + on_node),
        "node_tp1": best(by_way[PLAIN] + by_way[NODE_TP1]),
        "dedicated": best(by_way[DEDICATED]),
        **{f"edge_{1e3 * rtt_s:g}ms": best(choices) for rtt_s, choices in by_rtt.items()},
    }
    runs.run(list(found.values()), sure, f"{requests} requests, {engine}, confirmed")
    result: dict[str, Any] = {}
    for key, (scenario, name) in found.items():
        rows = runs.rows(scenario, name, sure)
        menu = scenario.targets["node"].menu
        result[key] = {
            "ms": ms_per_token(rows, requests),
            "relative_se": relative_se(rows),
            "gamma": int(name.split(":")[1]),
            "drafter": str(menu[0].profile) if menu and int(name.split(":")[1]) else "",
            "tokens_per_iteration": sum(row["tokens_per_iteration"] for row in rows) / len(rows),
            "all_ms": {
                other: time_ms((scenario, other), search)
                for choices in (*by_way.values(), *by_rtt.values())
                for tried, other in choices
                if tried is scenario
            },
        }
    return result


def gain(cell: dict[str, Any], rtt_s: float, against: str) -> float:
    """Return the change in time per token of streams from the clients against another way, per cent."""
    edge, other = cell[f"edge_{1e3 * rtt_s:g}ms"]["ms"], cell[against]["ms"]
    return float(100.0 * (edge / other - 1.0))


def markdown(cells: dict[str, dict[str, Any]], command: str) -> str:
    """Return the tables.

    Args:
        cells: What was found, by engine and number of requests.
        command: What measured it.
    """
    lines = ["", f"    {command}", ""]
    lines += [
        "| requests | plain | node, gamma 4 | node, best | own GPU | "
        + " | ".join(f"edge, {1e3 * rtt_s:g} ms" for rtt_s in RTTS_S)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(RTTS_S),
    ]
    for requests, cell in cells["engine"].items():
        parallel = cell["node"]["drafter"].rpartition("_")[2] or "plain"
        columns = [
            requests,
            f"{cell['plain']['ms']:.1f}",
            f"{cell['node_g4']['ms']:.1f}",
            f"{cell['node']['ms']:.1f} (γ {cell['node']['gamma']}, {parallel})",
            f"{cell['dedicated']['ms']:.1f} (W {cell['dedicated']['gamma']})",
        ]
        for rtt_s in RTTS_S:
            edge = cell[f"edge_{1e3 * rtt_s:g}ms"]
            columns.append(f"{edge['ms']:.1f} (W {edge['gamma']})")
        lines.append("| " + " | ".join(columns) + " |")
    worst = max(row["relative_se"] for cell in cells["engine"].values() for row in cell.values())
    lines += [
        "",
        f"Milliseconds per token of a request; the standard error is at most {100 * worst:.1f} %. What "
        "streams from the clients change, in per cent, against the best choice on the node and against γ = 4 "
        "there; then step by step towards what the prototype compared: without the engine's overhead, and "
        "with the node's drafter on one GPU instead of its best parallelism.",
        "",
        "| requests | round trip | against γ = 4 | **against the best** | kernels alone "
        "| and drafter on 1 GPU | prototype |",
        "|---|---|---|---|---|---|---|",
    ]
    for requests, cell in cells["engine"].items():
        bare = cells.get("kernels alone", {}).get(requests)
        for rtt_s in RTTS_S:
            alone = (
                f"{gain(bare, rtt_s, 'node'):+.1f} | {gain(bare, rtt_s, 'node_tp1'):+.1f}" if bare else "|"
            )
            theirs = PROTOTYPE.get((int(requests), rtt_s))
            shown = "" if theirs is None else f"{theirs:+d}"
            lines.append(
                f"| {requests} | {1e3 * rtt_s:g} ms | {gain(cell, rtt_s, 'node_g4'):+.1f} "
                f"| **{gain(cell, rtt_s, 'node'):+.1f}** | {alone} | {shown} |"
            )
    lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="every simulation and the result"
    )
    parser.add_argument(
        "--requests", default=",".join(map(str, REQUESTS)), metavar="N,N", help="requests at a time"
    )
    parser.add_argument(
        "--confirm", type=int, default=2, metavar="N", help="other seeds to confirm on (default 2)"
    )
    parser.add_argument(
        "--engine-only", action="store_true", help="leave out the cells without the engine's overhead"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="page whose table is replaced, between its marks"
    )
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("confirm",))
    numbers = []
    for text in arguments.requests.split(","):
        if not text.isdecimal() or int(text) < 1:
            parser.error(f"--requests {arguments.requests}: {text!r} is no whole number of at least 1")
        numbers.append(int(text))
    page = _cli.page_with(parser, arguments.write, BLOCK)
    return _cli.alone("stream_table", arguments.json, lambda: _run(arguments, numbers, page))


def _run(arguments: argparse.Namespace, numbers: list[int], page: str) -> int:
    before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    runs = Runs.beside(arguments.json, before, KEPT)
    command = f"python scripts/stream_table.py --confirm {arguments.confirm} --json stream_table.json"
    engines = ["engine"] if arguments.engine_only else list(ENGINES)
    cells: dict[str, dict[str, Any]] = {engine: {} for engine in engines}
    for engine in engines:
        for requests in numbers:
            cells[engine][str(requests)] = study(runs, requests, list(RTTS_S), engine, arguments.confirm)
            cell = cells[engine][str(requests)]
            shown = {key: f"{row['ms']:.2f} ms (gamma {row['gamma']})" for key, row in cell.items()}
            print(f"{engine}, {requests} requests: {shown}", flush=True)
    write_json(arguments.json, {"command": command, "cells": cells, "simulations": runs.finished.results})
    runs.finished.discard()
    table = markdown(cells, command)
    print(table)
    if arguments.write:
        write_text(arguments.write, replace_blocks(page, {BLOCK: table}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
