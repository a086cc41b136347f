"""Measure what branches add to streams when it is distrusted: other hit rates, longer steps, crowded cards.

    python scripts/stream_branches.py --json stream_branches.json --write docs/protocols.md

On the scenario stream_node, saturated by 32 or 128 requests at 5 or 15 ms of round trip, it compares streams
with branches with those without. Both have the best window, and the former the best of some fan-outs and
depths, found on one seed and measured on others. One thing varies at a time: how often the right token for a
wrong draft opens a branch (whatever the fan-out), how much longer a step with branches takes, and how many
requests share the card that drafts, which then stands in a cabinet near the clients. With --json an
interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from _runs import Runs
from _stream_node import BRANCHES, DRAFTER, EDGE, STEP_S, TOKEN_S, branching, ms_per_token, node

from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_json, write_text
from dsd_env.scenario import Scenario

SETTINGS = ((32, 0.005), (32, 0.015), (128, 0.005), (128, 0.015))
"""Requests at a time, and round trips, that are looked at."""
BLOCK = "stream branches"
"""Name of the block of a page that the table is written into."""
WINDOWS = (4, 8, 12, 16)
KEPT = ("throughput_tokens_per_s", "throughput_tokens_per_s_se")
"""Metrics that are kept."""
HIT_RATES = (0.1, 0.3, 0.5, 0.7)
LONGER_STEPS = (1.0, 1.3, 2.0)
"""How much longer a step with branches takes, however many."""
SHARED, SHARING, MOST_SHARED = "requests per card", (1, 4), 32
"""Requests that share a card; looked at with at most so many at a time, which takes long enough."""
NO_BRANCHES: dict[str, Any] = {"protocol__branches": {"fanout": 0}}

Study = tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]
"""What varies, how it is written, changes without branches, and with them."""


def cabinets(requests: int, sharing: int) -> dict[str, Any]:
    """Return the changes that put the clients' card into cabinets, each shared by so many requests."""
    drafter = {
        "model": DRAFTER,
        "profile": {"t0_s": STEP_S - TOKEN_S, "c_s_per_token": TOKEN_S},
        "concurrency": 64,
        "kv_capacity_tokens": 1_000_000,
    }
    power = {"idle_w": 25.0, "busy_w": 450.0}
    return {
        "devices__client__edge_link": "street",
        "links__street": {"one_way_s": 1e-4, "uplink_bits_per_s": 1e9, "downlink_bits_per_s": 1e9},
        "edge_servers__cabinet": {
            "count": max(1, requests // sharing),
            "drafter": drafter,
            "backhaul": "link",
            "power": power,
        },
        "actions__edge_servers_offered": 2,
    }


def studies(requests: int) -> list[Study]:
    """Return what is varied."""
    found: list[Study] = [
        (
            "hit rate",
            f"{hits:g}",
            [NO_BRANCHES],
            [branching(fanout, depth, (hits,) * 4) for fanout, depth in BRANCHES],
        )
        for hits in HIT_RATES
    ]
    found += [
        (
            "step with branches",
            f"×{longer:g}",
            [NO_BRANCHES],
            [branching(fanout, depth, step_s=longer * STEP_S, token_s=0.0) for fanout, depth in BRANCHES],
        )
        for longer in LONGER_STEPS
    ]
    for sharing in SHARING:
        shared = cabinets(requests, sharing)
        found.append(
            (
                SHARED,
                f"{sharing}",
                [{**NO_BRANCHES, **shared}],
                [{**branching(fanout, depth), **shared} for fanout, depth in BRANCHES],
            )
        )
    return found


def measure(runs: Runs, requests: int, rtt_s: float, study: Study, confirm: int) -> dict[str, Any]:
    """Return what branches change in one setting, with the choices of either side."""
    what, value, without, with_branches = study
    place = "edge" if what == SHARED else "own"
    search, sure = slice(0, 1), slice(1, 1 + confirm)
    names = [f"static:{window}:1:{place}" for window in WINDOWS]
    sides = [
        [(node(requests, EDGE, rtt_s, **changes), name) for changes in side for name in names]
        for side in (without, with_branches)
    ]
    label = f"{requests} requests, {1e3 * rtt_s:g} ms, {what} {value}"
    runs.run([choice for side in sides for choice in side], search, label)

    def time_ms(choice: tuple[Scenario, str], seeds: slice) -> float:
        return ms_per_token(runs.rows(*choice, seeds), requests)

    best = [min(side, key=lambda choice: time_ms(choice, search)) for side in sides]
    runs.run(best, sure, label)
    times = [
        np.array([1e3 * requests / row["throughput_tokens_per_s"] for row in runs.rows(*choice, sure)])
        for choice in best
    ]
    changes = 100.0 * (times[1] / times[0] - 1.0)
    branches = best[1][0].protocol.branches
    return {
        "without_ms": float(times[0].mean()),
        "with_ms": float(times[1].mean()),
        "change": float(changes.mean()),
        "change_se": float(changes.std(ddof=1) / len(changes) ** 0.5) if confirm > 1 else 0.0,
        "windows": [int(name.split(":")[1]) for _, name in best],
        "fanout": branches.fanout,
        "depth": branches.depth,
    }


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Return the table; `found` is by what varies, its value and the setting, divided by bars."""
    heads = [f"{requests} requests, {1e3 * rtt_s:g} ms" for requests, rtt_s in SETTINGS]
    lines = ["", f"    {command}", "", f"| what varies | value | {' | '.join(heads)} |"]
    lines.append("|---|---|" + "---|" * len(heads))
    rows: dict[str, list[str]] = {}
    for key, cell in found.items():
        what, value, _ = key.split("|")
        rows.setdefault(f"{what} | {value}", []).append(
            f"{cell['change']:+.1f} ± {cell['change_se']:.1f} "
            f"(W {cell['windows'][0]}; W {cell['windows'][1]}, {cell['fanout']}, {cell['depth']})"
        )
    for row, cells in rows.items():
        cells += ["–"] * (len(heads) - len(cells))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        "What branches change in the time per token of streams, per cent, ± the standard error over seeds; "
        "in brackets the window without, then window, fan-out and depth with.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="every simulation and the result"
    )
    parser.add_argument(
        "--confirm", type=int, default=3, metavar="N", help="other seeds to confirm on (default 3)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="page whose table is replaced, between its marks"
    )
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("confirm",))
    page = _cli.page_with(parser, arguments.write, BLOCK)
    return _cli.alone("stream_branches", arguments.json, lambda: _run(arguments, page))


def _run(arguments: argparse.Namespace, page: str) -> int:
    before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    runs = Runs.beside(arguments.json, before, KEPT)
    command = f"python scripts/stream_branches.py --confirm {arguments.confirm} --json stream_branches.json"
    found: dict[str, dict[str, Any]] = {}
    for n in range(len(studies(1))):
        for requests, rtt_s in SETTINGS:
            study = studies(requests)[n]
            if study[0] == SHARED and requests > MOST_SHARED:
                continue
            cell = measure(runs, requests, rtt_s, study, arguments.confirm)
            found[f"{study[0]}|{study[1]}|{requests} {rtt_s}"] = cell
            print(f"{study[0]} {study[1]}, {requests} requests, {1e3 * rtt_s:g} ms: {cell}", flush=True)
    write_json(arguments.json, {"command": command, "found": found, "simulations": runs.finished.results})
    runs.finished.discard()
    table = markdown(found, command)
    print(table)
    if arguments.write:
        write_text(arguments.write, replace_blocks(page, {BLOCK: table}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
