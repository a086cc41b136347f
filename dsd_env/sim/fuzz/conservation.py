"""Laws that hold in every episode on every engine, checked on the event log, the table and the totals."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NoReturn

from dsd_env.network import fault_members
from dsd_env.scenario.schema import DeviceClass, EdgeServer
from dsd_env.sim.events import Event, EventKind
from dsd_env.sim.fuzz.engines import Engine

_ROUNDING = 1e-9
"""Relative error allowed of sums that the engines add up in another order."""


class Violation(AssertionError):
    """A law does not hold; the message says which, and by how much."""


@dataclass
class _Life:
    """What the event log says about one request."""

    arrival_s: float
    committed: list[int] = field(default_factory=list)
    delivered_s: list[float] = field(default_factory=list)
    completed_s: float = math.nan


def check_conservation(engine: Engine) -> None:
    """Check an episode, which need not have ended.

    - Time: it never runs backwards, no message arrives before it is sent, and a target runs one iteration at
      a time.
    - Requests: each one that has arrived has either completed or is still active.
    - Tokens: a completed request received exactly its tokens, once and in order. The log and the table of
      requests agree on them and on the times of the first and the last.
    - Drafts: no more drafts were accepted than verified. The committed tokens are the accepted drafts and one
      token per commit, less the token that the end of an answer may cut off.
    - Drafts of streams: every one made was verified or discarded, once nobody is in the system.
    - Counts of take-overs, preemptions, late and duplicate messages are those of the log.
    - Little's law: the integral of the number of requests in the system is the sum of the times that they
      spend there, up to rounding.

    Args:
        engine: An engine that has recorded its events.

    Raises:
        Violation: A law does not hold.
    """
    lives = _read_log(engine)
    _check_requests(engine, lives)
    _check_tokens(engine, lives)
    _check_counts(engine)
    _check_little(engine, lives)


def _fail(law: str, *values: object) -> NoReturn:
    raise Violation(f"{law}: {', '.join(map(str, values))}")


def _read_log(engine: Engine) -> dict[int, _Life]:
    """Walk through the event log; return the life of each request by its number."""
    lives: dict[int, _Life] = {}
    iterating: set[int] = set()
    members = fault_members(engine.scenario)
    limits = [target.max_num_seqs for target in engine.scenario.targets.values() for _ in range(target.count)]
    far = any(target.extra_one_way_s > 0.0 for target in engine.scenario.targets.values())
    now_s = 0.0
    before: Event | None = None
    for number, event in enumerate(engine.events):
        if event.time_s < now_s:
            _fail(f"time runs back at events[{number}]", event, now_s)
        now_s = event.time_s
        if before is not None and before.kind == EventKind.COMMIT:
            # The target sends committed tokens to the client at once.
            if event.kind != EventKind.SEND or event.request != before.request:
                _fail(f"what is committed is not sent, events[{number}]", before, event)
            delivered_s = lives[event.request].delivered_s
            # What overtakes tokens of a target farther away waits for them at the client.
            waits_s = delivered_s[-1] if far and delivered_s else event.value
            delivered_s.append(max(event.value, waits_s))
        match event.kind:
            case EventKind.ARRIVAL:
                if event.request != len(lives):
                    _fail("requests are numbered in order of arrival", event, len(lives))
                lives[event.request] = _Life(event.time_s)
            case EventKind.COMMIT:
                if event.value < 1 or not math.isnan(lives[event.request].completed_s):
                    _fail("committed nothing, or after completion", event)
                lives[event.request].committed.append(int(event.value))
            case EventKind.COMPLETE:
                life = lives[event.request]
                if not math.isnan(life.completed_s):
                    _fail("completed twice", event)
                if event.value != event.time_s - life.arrival_s:
                    _fail("COMPLETE does not give the time since arrival", event, life.arrival_s)
                life.completed_s = event.time_s
            case EventKind.ITERATION_START:
                if event.entity in iterating:
                    _fail("a target runs two iterations at once", event)
                if not 1 <= event.value <= limits[event.entity]:
                    _fail("an iteration without sequences, or with too many", event, limits[event.entity])
                iterating.add(event.entity)
            case EventKind.ITERATION_END:
                if event.entity not in iterating:
                    _fail("an iteration ends that did not start", event)
                iterating.remove(event.entity)
            case EventKind.FAULT:
                if members[int(event.value)].site == "target":
                    iterating.discard(event.entity)
            case EventKind.SEND:
                if event.value < event.time_s:
                    _fail("a message arrives before it is sent", event)
        before = event
    return lives


def _check_requests(engine: Engine, lives: dict[int, _Life]) -> None:
    metrics = engine.metrics()
    completed = sum(not math.isnan(life.completed_s) for life in lives.values())
    arrived = len(lives)
    expected = {"arrived": arrived, "completed": completed, "active": arrived - completed}
    for name, count in expected.items():
        if metrics[f"requests_{name}"] != float(count):
            _fail(f"requests {name} in the metrics and in the log", metrics[f"requests_{name}"], count)
    if engine.active_requests != arrived - completed or engine.totals.completed != completed:
        _fail("requests active, completed", engine.active_requests, engine.totals.completed)
    if engine.terminated and engine.active_requests:
        _fail("the workload is finished with requests still active", engine.active_requests)


def _check_tokens(engine: Engine, lives: dict[int, _Life]) -> None:
    table = engine.requests_table()
    rows = {int(number): row for row, number in enumerate(table["request"])}
    completed = {number for number, life in lives.items() if not math.isnan(life.completed_s)}
    if set(rows) != completed:
        _fail("the table lists requests that did not complete, or lacks some", set(rows) ^ completed)
    totals = engine.totals
    if totals.output_tokens != sum(sum(life.committed) for life in lives.values()):
        _fail("tokens committed in the log and in the totals", totals.output_tokens)
    if not 0 <= totals.accepted <= totals.drafted:
        _fail("accepted drafts among those verified", totals.accepted, totals.drafted)
    if not totals.verified_rounds <= totals.round_tokens <= totals.accepted + totals.verified_rounds:
        _fail("tokens of draft rounds", totals.verified_rounds, totals.round_tokens, totals.accepted)
    for number, life in lives.items():
        if len(life.delivered_s) != len(life.committed):
            _fail(f"request {number}: deliveries and commits", len(life.delivered_s), len(life.committed))
        if any(
            later < earlier for earlier, later in zip(life.delivered_s, life.delivered_s[1:], strict=False)
        ):
            _fail(f"request {number}: tokens arrive out of order", life.delivered_s)
        if number in completed:
            row = {name: column[rows[number]].item() for name, column in table.items()}
            _check_answer(number, life, row, engine.scenario.protocol.kind == "streaming")
    for name in ("drafted", "accepted"):
        if int(table[f"{name}_tokens"].sum()) > getattr(totals, name):
            _fail(f"completed requests {name} more than all requests", getattr(totals, name))


def _check_answer(number: int, life: _Life, row: dict[str, float], streams: bool) -> None:
    """Check the answer of one completed request against its row in the table."""
    tokens = sum(life.committed)
    if not tokens == row["output_tokens"] == row["delivered_tokens"]:
        _fail(
            f"request {number}: tokens committed, asked for, delivered",
            tokens,
            row["output_tokens"],
            row["delivered_tokens"],
        )
    expected = {
        "arrival_s": life.arrival_s,
        "ttft_s": life.delivered_s[0] - life.arrival_s,
        "e2e_s": life.delivered_s[-1] - life.arrival_s,
        "completed_s": life.delivered_s[-1],
    }
    for name, value in expected.items():
        if row[name] != value:
            _fail(f"request {number}: {name} in the table and by the log", row[name], value)
    if life.completed_s != life.delivered_s[-1]:
        _fail(f"request {number}: completed when its last token arrived", life.completed_s)
    # Each commit has one token of the target; the others were accepted drafts. The end of the answer cuts at
    # most the last one.
    if row["accepted_tokens"] - (tokens - len(life.committed)) not in (0, 1):
        _fail(f"request {number}: accepted, commits, tokens", row["accepted_tokens"], life.committed)
    if not 0 <= row["accepted_tokens"] <= row["drafted_tokens"]:
        _fail(f"request {number}: accepted among drafted", row["accepted_tokens"], row["drafted_tokens"])
    # A stream verifies in many iterations after one decision.
    most = len(life.committed) if streams else min(row["rounds"], len(life.committed))
    if row["verifies"] > most:
        _fail(f"request {number}: verifications, rounds, commits", row["verifies"], row["rounds"])


def _check_counts(engine: Engine) -> None:
    kinds = Counter(event.kind for event in engine.events)
    totals = engine.totals
    for name, kind in (
        ("takeovers", EventKind.TAKEOVER),
        ("late_messages", EventKind.LATE),
        ("duplicate_messages", EventKind.DUPLICATE),
        ("preemptions", EventKind.PREEMPT),
    ):
        if getattr(totals, name) != kinds[kind]:
            _fail(f"{name} in the totals and in the log", getattr(totals, name), kinds[kind])
    rolled_back = sum(event.value for event in engine.events if event.kind == EventKind.ROLLBACK)
    if totals.discarded < rolled_back:
        _fail("drafts rolled back are among those discarded", totals.discarded, rolled_back)
    if engine.scenario.protocol.kind == "streaming":
        _check_drafts(engine)


def _check_drafts(engine: Engine) -> None:
    """Check that every draft of a stream is verified or discarded, once nobody is in the system.

    Drafts of rounds do not count here: those made on a target's own GPUs have no events of their own, and
    those that a round gives up on their way are counted nowhere.
    """
    scenario, totals = engine.scenario, engine.totals
    elsewhere: list[DeviceClass | EdgeServer] = [
        *scenario.devices.values(),
        *scenario.edge_servers.values(),
    ]
    kinds = {drafter.kind for site in elsewhere for drafter in site.menu}
    modes = {drafter.mode for target in scenario.targets.values() for drafter in target.menu}
    if kinds - {"model"} or "shared" in modes:
        return
    made = sum(event.value for event in engine.events if event.kind == EventKind.DRAFT_END)
    made += totals.branch_used
    settled = totals.drafted + totals.discarded
    if settled > made or (engine.active_requests == 0 and settled != made):
        _fail("drafts made, drafts verified and discarded", made, totals.drafted, totals.discarded)


def _check_little(engine: Engine, lives: dict[int, _Life]) -> None:
    now_s = engine.now_s
    spent_s = math.fsum(
        (now_s if math.isnan(life.completed_s) else life.completed_s) - life.arrival_s
        for life in lives.values()
    )
    integral = engine.totals.request_seconds
    if abs(integral - spent_s) > _ROUNDING * max(1.0, spent_s):
        _fail("Little's law: integral of the number in the system, sum of times there", integral, spent_s)
