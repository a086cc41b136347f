"""Links measured by acknowledgements of tokens: closed forms, causality, both engines alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dsd_env import make_scheduler, simulate
from dsd_env.control import DecisionView
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim import EventKind, ReferenceSimulation
from dsd_env.sim.compiled import CompiledSimulation
from tests.engines import assert_engines_agree
from tests.lab import lab
from tests.scenarios import TINY
from tests.sim.stream_lab import with_edge

ENGINES = {"reference": ReferenceSimulation, "compiled": CompiledSimulation}
STEP_S = 0.03
GOOD_S, BAD_S = 0.01, 0.21
"""One way, while the link is good and while it is bad."""


def acknowledging(**changes: Any) -> Scenario:
    """Return a laboratory whose clients acknowledge tokens, on a link of 10 ms."""
    return lab(**{"one_way_s": GOOD_S, "requests": 3, "protocol__token_acks": True, **changes})


def turning_bad(folder: Path, at_s: float, **changes: Any) -> Scenario:
    """Return that laboratory with a link that turns bad at a time, for good."""
    path, extra_s = folder / "turns_bad.csv", BAD_S - GOOD_S
    rows = [(0.0, 0.0), (at_s, extra_s), (4000.0, extra_s)]
    lines = [f"{time_s:g},1e15,1e15,{extra:g}" for time_s, extra in rows]
    path.write_text("\n".join(["time_s,uplink_bits_per_s,downlink_bits_per_s,extra_delay_s", *lines, ""]))
    return acknowledging(links__wire__replay={"file": str(path), "random_start": False}, **changes)


def views(engine: str, scenario: Scenario, rule: str = "cloud_ar", seed: int = 3) -> list[DecisionView]:
    """Return what every decision of an episode sees, at one of the engines."""
    scheduler, seen = make_scheduler(rule), []
    scheduler.reset(scenario, seed)
    simulation = ENGINES[engine](scenario, seed)
    while (view := simulation.next_decision()) is not None:
        seen.append(view)
        simulation.decide(scheduler.decide(view))
    return seen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["cloud_ar", "colocated_sd:4"])
def test_a_link_is_measured_while_nobody_drafts_far_away(engine: str, rule: str) -> None:
    """On a constant link every sample is the round trip; without acknowledgements there is none."""
    told = views(engine, acknowledging(), rule)
    assert [view.link.rtt_s for view in told] == pytest.approx([2 * GOOD_S] * len(told), abs=1e-9)
    untold = views(engine, acknowledging(protocol__token_acks=False), rule)
    assert all(view.link.age_s == view.now_s for view in untold)
    last = told[-1]
    # One message at a time is timed: the newest sample is no older than two round trips and an iteration.
    assert last.link.age_s <= 2 * 2 * GOOD_S + STEP_S + 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_a_link_that_turns_bad_shows_when_the_acknowledgement_is_there(engine: str, tmp_path: Path) -> None:
    """No decision knows of a delay before a message has taken it, there and back."""
    at_s = 1.0
    seen = views(engine, turning_bad(tmp_path, at_s, protocol__plain_chunk_tokens=1))
    before = [view.link.rtt_s for view in seen if view.now_s < at_s + BAD_S]
    assert before == pytest.approx([2 * GOOD_S] * len(before), abs=1e-9)
    after = [view.link.rtt_s for view in seen if view.now_s > at_s + 10.0]
    assert after and after[-1] == pytest.approx(2 * BAD_S, rel=0.02)
    changes = [b.now_s for a, b in pairwise(seen) if b.link.rtt_s != a.link.rtt_s and a.now_s > at_s]
    assert all(later - earlier >= 2 * BAD_S - 1e-9 for earlier, later in pairwise(changes))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_target_far_beyond_the_link_does_not_count(engine: str) -> None:
    far = acknowledging(targets__target__extra_one_way_s=0.05)
    told = views(engine, far)
    # The view's round trip is that to the target; what is measured is that of the link.
    assert [view.link.rtt_s for view in told] == pytest.approx([2 * (GOOD_S + 0.05)] * len(told), abs=1e-9)
    assert told[-1].link.age_s < told[-1].now_s


@pytest.mark.parametrize("rule", ["cloud_ar", "static:4:1:own", "static:4:1:edge"])
def test_acknowledgements_are_messages(rule: str) -> None:
    """They take bytes on the way up; on an ample link they hold nobody up."""
    silent, acknowledged = (
        simulate(acknowledging(protocol__token_acks=acks, **with_edge(0.002)), rule, 3, record_events=True)
        for acks in (False, True)
    )
    assert acknowledged.requests["e2e_s"] == pytest.approx(silent.requests["e2e_s"], abs=1e-9)
    ups = [
        sum(e.kind is EventKind.SEND and e.entity % 4 == 0 for e in r.events) for r in (silent, acknowledged)
    ]
    sent_bytes = [
        r.metrics["bytes_per_token"] * r.requests["output_tokens"].sum() for r in (silent, acknowledged)
    ]
    assert ups[1] > ups[0]
    header_bytes = acknowledging().protocol.header_bytes
    assert sent_bytes[1] - sent_bytes[0] == pytest.approx((ups[1] - ups[0]) * header_bytes)


@pytest.mark.parametrize("kind", ["synchronous", "pipelined", "streaming"])
@pytest.mark.parametrize("rule", ["cloud_ar", "random", "indices"])
def test_engines_agree(kind: str, rule: str) -> None:
    scenario = load_scenario(TINY, protocol__kind=kind, protocol__token_acks=True)
    assert assert_engines_agree(scenario, rule, 5) > 100
