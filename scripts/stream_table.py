"""Measure streams against drafting on the node: the table of docs/protocols.md.

    python scripts/stream_table.py --json stream_table.json --write docs/protocols.md

One saturated node (scenario stream_node) serves 1 to 128 requests at a time. For every number of requests and
every round trip it measures the time per token of plain decoding, of drafting on the node's GPUs (the best
speculation length, and the best parallelism of the drafter), of streams from a drafter on a GPU of its own
beside the node, and of streams from the clients (both with the best window), these also with branches (the
best of some fan-outs and depths). The best choices are found on one seed and confirmed on others. Beside it
stands what prototypes had found before anything was built, and the same cells without the engine's overhead,
which the prototypes left out. With --json an interrupted run continues where it stopped when started again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
from _runs import Runs
from _stream_node import (
    BRANCHES,
    DEDICATED,
    EDGE,
    NODE_TP1,
    NODE_TP2,
    PLAIN,
    Way,
    branching,
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
KEPT = (
    "throughput_tokens_per_s",
    "throughput_tokens_per_s_se",
    "tokens_per_iteration",
    "stream_idle_share",
    "branch_hit_share",
    "branch_tokens_per_token",
    "branch_tokens_used_per_token",
)
"""Metrics that are kept."""
KERNELS = "kernels alone"
ENGINES: dict[str, dict[str, Any]] = {"engine": {}, KERNELS: {"targets__node__engine_overhead": {}}}
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
PROTOTYPE_BRANCHES = {
    (1, 0.005): -14, (1, 0.015): 0, (1, 0.040): 22,
    (8, 0.005): -18, (8, 0.015): -5, (8, 0.040): 18,
    (32, 0.005): -24, (32, 0.015): -13, (32, 0.040): 6,
    (64, 0.005): -27, (64, 0.015): -17, (64, 0.040): -4,
    (128, 0.005): -17, (128, 0.015): -18, (128, 0.040): -10,
}  # fmt: skip
"""The same of another prototype for streams with branches, which knows of less: a wrong draft has a branch
with probability 0.7, all of it must have come, and a step with branches takes 1.3 times as long."""
AS_PROTOTYPE = [branching(1, depth, (0.7,), 1.3 * 0.003, 0.0) for depth in (2, 4)]
"""Branches as that prototype has them."""


def study(runs: Runs, requests: int, rtts_s: list[float], engine: str, confirm: int) -> dict[str, Any]:
    """Return what was found for one number of requests."""
    changes = ENGINES[engine]
    search, sure = slice(0, 1), slice(1, 1 + confirm)
    nodes: list[tuple[Way, Scenario]] = [
        (way, node(requests, way, **changes)) for way in (PLAIN, NODE_TP1, NODE_TP2, DEDICATED)
    ]
    branches = {"branch": [branching(*each) for each in BRANCHES]}
    if engine == KERNELS:
        branches["as_prototype"] = AS_PROTOTYPE
    edges = {f"edge_{_ms(rtt_s)}": [node(requests, EDGE, rtt_s, **changes)] for rtt_s in rtts_s}
    for kind, variants in branches.items():
        for rtt_s in rtts_s:
            edges[f"{kind}_{_ms(rtt_s)}"] = [
                node(requests, EDGE, rtt_s, **changes, **variant) for variant in variants
            ]
    wanted = [(scenario, name) for way, scenario in nodes for name in way.schedulers]
    wanted += [(each, name) for scenarios in edges.values() for each in scenarios for name in EDGE.schedulers]
    runs.run(wanted, search, f"{requests} requests, {engine}")

    def time_ms(choice: tuple[Scenario, str], seeds: slice) -> float:
        return ms_per_token(runs.rows(*choice, seeds), requests)

    def best(choices: list[tuple[Scenario, str]]) -> tuple[Scenario, str]:
        return min(choices, key=lambda choice: time_ms(choice, search))

    by_way = {way: [(scenario, name) for name in way.schedulers] for way, scenario in nodes}
    by_rtt = {
        key: [(scenario, name) for scenario in scenarios for name in EDGE.schedulers]
        for key, scenarios in edges.items()
    }
    on_node = by_way[NODE_TP1] + by_way[NODE_TP2]
    found: dict[str, tuple[Scenario, str]] = {
        "plain": by_way[PLAIN][0],
        "node_g4": best([choice for choice in on_node if choice[1].startswith("static:4:")]),
        "node": best(by_way[PLAIN] + on_node),
        "node_tp1": best(by_way[PLAIN] + by_way[NODE_TP1]),
        "dedicated": best(by_way[DEDICATED]),
        **{key: best(choices) for key, choices in by_rtt.items()},
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
            "fanout": scenario.protocol.branches.fanout,
            "depth": scenario.protocol.branches.depth,
            "branch_hit_share": _mean(rows, "branch_hit_share"),
            "branch_tokens_per_token": _mean(rows, "branch_tokens_per_token"),
            "branch_tokens_used_per_token": _mean(rows, "branch_tokens_used_per_token"),
            "drafter": str(menu[0].profile) if menu and int(name.split(":")[1]) else "",
            "tokens_per_iteration": _mean(rows, "tokens_per_iteration"),
            "all_ms": {
                other: time_ms((scenario, other), search)
                for choices in (*by_way.values(), *by_rtt.values())
                for tried, other in choices
                if tried is scenario
            },
        }
    return result


def _ms(time_s: float) -> str:
    return f"{1e3 * time_s:g}ms"


def _mean(rows: list[dict[str, float]], name: str) -> float:
    """Return the mean of a metric; 0 where it was not observed."""
    return sum(row.get(name, 0.0) for row in rows) / len(rows)


def gain(cell: dict[str, Any], rtt_s: float, against: str, way: str = "edge") -> float:
    """Return the change in time per token of streams from the clients against another way, per cent.

    Args:
        cell: What was found.
        rtt_s: Round trip between clients and node.
        against: The other way.
        way: Streams without branches (`edge`), with them (`branch`), or with those of the prototype.
    """
    edge, other = cell[f"{way}_{_ms(rtt_s)}"]["ms"], cell[against]["ms"]
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
    for requests, rtt_s, cell, bare in _settings(cells):
        alone = f"{gain(bare, rtt_s, 'node'):+.1f} | {gain(bare, rtt_s, 'node_tp1'):+.1f}" if bare else "|"
        lines.append(
            f"| {requests} | {1e3 * rtt_s:g} ms | {gain(cell, rtt_s, 'node_g4'):+.1f} "
            f"| **{gain(cell, rtt_s, 'node'):+.1f}** | {alone} | {_shown(PROTOTYPE, requests, rtt_s)} |"
        )
    lines += [
        "",
        "The same with branches: the best of their fan-outs and depths (F, L) and its window, and what they "
        "change; then against the prototype, which has one branch a draft: kernels alone, the node's drafter "
        "on one GPU, branches as it has them.",
        "",
        "| requests | round trip | ms per token (W; F, L) | against streams without | against γ = 4 "
        "| **against the best** | as the prototype | prototype | branch tokens made, used per token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for requests, rtt_s, cell, bare in _settings(cells):
        with_branches = cell[f"branch_{_ms(rtt_s)}"]
        like = f"{gain(bare, rtt_s, 'node_tp1', 'as_prototype'):+.1f}" if bare else ""
        lines.append(
            f"| {requests} | {1e3 * rtt_s:g} ms | {with_branches['ms']:.1f} (W {with_branches['gamma']}; "
            f"{with_branches['fanout']}, {with_branches['depth']}) "
            f"| {gain(cell, rtt_s, f'edge_{_ms(rtt_s)}', 'branch'):+.1f} "
            f"| {gain(cell, rtt_s, 'node_g4', 'branch'):+.1f} "
            f"| **{gain(cell, rtt_s, 'node', 'branch'):+.1f}** "
            f"| {like} | {_shown(PROTOTYPE_BRANCHES, requests, rtt_s)} "
            f"| {with_branches['branch_tokens_per_token']:.1f}, "
            f"{with_branches['branch_tokens_used_per_token']:.2f} |"
        )
    lines.append("")
    return "\n".join(lines)


def _settings(
    cells: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, float, dict[str, Any], dict[str, Any] | None]]:
    """Yield requests, round trip, and what was found with and without the engine's overhead."""
    for requests, cell in cells["engine"].items():
        for rtt_s in RTTS_S:
            yield requests, rtt_s, cell, cells.get(KERNELS, {}).get(requests)


def _shown(prototype: dict[tuple[int, float], int], requests: str, rtt_s: float) -> str:
    theirs = prototype.get((int(requests), rtt_s))
    return "" if theirs is None else f"{theirs:+d}"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
