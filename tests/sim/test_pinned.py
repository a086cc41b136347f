"""Results stay what they were."""

from __future__ import annotations

import json

import pytest

import dsd_env
from tests.pinned import FILE, SCHEDULERS, measure

PINNED = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_scenario_is_pinned() -> None:
    assert sorted(PINNED) == sorted(dsd_env.list_scenarios())


def _takes_long(name: str, scheduler: str) -> bool:
    """Return whether others show the same in less time.

    24 devices show as much as 600, metro as its variants; and the rule decides alike
    on metro and drafter_menu in the compiled engine (tests/whole_runs).
    """
    if name.startswith("fleet_600") or name in ("overload", "wan_stream", "metro_branches", "tiers"):
        return True
    return scheduler == "jsq_goodput" and name in ("metro", "drafter_menu")


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        pytest.param(name, each, marks=[pytest.mark.slow] if _takes_long(name, each) else [])
        for name in sorted(PINNED)
        for each in SCHEDULERS
    ],
)
def test_metrics_are_those_of_the_last_release(name: str, scheduler: str) -> None:
    expected, found = PINNED[name][scheduler], measure(name, scheduler)
    # NaN, where nothing was observed, is not equal to itself.
    same = [str(found[key]) == str(value) for key, value in expected.items()]
    assert all(same), f"expected {expected}, now {found}; see tests/pinned.py before you accept that"
