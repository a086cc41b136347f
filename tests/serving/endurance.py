"""Lets a controller decide for a long time, and says what memory that takes.

python -m tests.serving.endurance --decisions 10000000
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from pathlib import Path
from typing import Any

from dsd_env.control.fleet import FleetSpace
from dsd_env.scenario import load_scenario
from dsd_env.serving import (
    Controller,
    GuardConfig,
    RequestArrived,
    RequestFinished,
    RoundVerified,
    TokensCommitted,
)
from tests.serving.samples import make_bundle, make_fleet_bundle

AT_ONCE = 50
"""Requests that are decided on at one moment."""
ROUNDS = 20
"""Decisions of a request."""


def controller_of(folder: Path, *, fleet: bool = False, **options: Any) -> Controller:
    """Return a controller with a policy of random weights, few requests and unlimited trust.

    Args:
        folder: Where to put its bundle.
        fleet: It is one of the fleet view, with a plan every 10 ms.
        **options: For the controller.
    """
    guard = GuardConfig(streak=1 << 30, budget_s=1e3)
    bundle = folder / "policy"
    if fleet:
        make_fleet_bundle(bundle, FleetSpace(load_scenario("single_lan"), 0.01))
    else:
        make_bundle(bundle)
    return Controller(
        bundle,
        compiled=True,
        max_requests=200,
        max_clients=200,
        guard=guard,
        **options,
    )


def decide(controller: Controller, decisions: int, first: int = 0) -> None:
    """Let requests come, be decided on, and end; every other one is forgotten without an end.

    Args:
        controller: Decides.
        decisions: How many; a multiple of `AT_ONCE` times `ROUNDS`.
        first: Number that sets the names of these requests apart.
    """
    lives, rest = divmod(decisions, AT_ONCE * ROUNDS)
    assert rest == 0
    for life in range(first, first + lives):
        names = [f"{life}-{i}" for i in range(AT_ONCE)]
        for name in names:
            controller.observe(RequestArrived(name, 100, client=name, target="target"))
        for number in range(ROUNDS):
            if number % 2:
                controller.decide_many(names)
            else:
                for name in names:
                    controller.decide(name)
            if number < 4:
                for name in names:
                    event = RoundVerified(name, 4, life % 5) if number else TokensCommitted(name)
                    controller.observe(event)
        for name in names[::2]:
            controller.observe(RequestFinished(name, life % 3 > 0))


def resident_bytes() -> int:
    """Return the memory that the process has in use (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--decisions", type=int, default=1_000_000, help="how many (%(default)s)")
    parser.add_argument("--fleet", action="store_true", help="by the plans of a policy of the fleet view")
    arguments = parser.parse_args()
    decisions = arguments.decisions
    with tempfile.TemporaryDirectory() as folder:
        controller = controller_of(Path(folder), fleet=arguments.fleet)
        tenth = decisions // 10
        for part in range(10):
            decide(controller, tenth, part * tenth)
            counts = controller.stats()
            print(
                f"{counts['decisions']:>12,} decisions: {resident_bytes() / 1e6:8.2f} MB, "
                f"{counts['requests']} requests, {counts['clients']} clients",
                flush=True,
            )


if __name__ == "__main__":
    main()
