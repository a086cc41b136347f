"""Timelines: events are well-formed, nothing overlaps, arrows lead from slice to slice, numbers agree."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from dsd_env.control import ActionSpace
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.events import EventKind
from dsd_env.sim.fuzz import draw_case
from dsd_env.sim.reference import ReferenceSimulation
from dsd_env.sim.timeline import Timeline
from dsd_env.sim.timeline.places import ITERATIONS
from dsd_env.sim.timeline.reading import Reader
from dsd_env.sim.timeline.residence import Residence
from dsd_env.simulate import Result, simulate
from tests.scenarios import TINY, tiny

BRANCHES = {"kind": "streaming", "branches": {"fanout": 2, "depth": 3}}
CRASHES = {
    "cloud": {
        "kind": "target_crash",
        "of": "big",
        "at_s": [0.4, 1.1],
        "duration_s": {"distribution": "constant", "value": 0.2},
    },
    "desks": {
        "kind": "device_crash",
        "of": "workstation",
        "at_s": [0.3, 0.7, 1.5],
        "duration_s": {"distribution": "constant", "value": 0.1},
    },
}

CASES: dict[str, tuple[Scenario, str]] = {
    "rounds": (tiny(), "edge_sd:4"),
    "plain": (tiny(), "cloud_ar"),
    "at the target": (tiny(), "colocated_sd:3"),
    "any": (tiny(), "random"),
    "pipelined": (tiny(protocol__kind="pipelined"), "edge_sd:4"),
    "streams": (tiny(protocol__kind="streaming"), "edge_sd:6"),
    "any, streams": (tiny(protocol__kind="streaming"), "random"),
    "branches": (
        tiny(protocol=BRANCHES, acceptance__draft__hits=[0.6, 0.8], episode__requests=20),
        "edge_sd:6",
    ),
    "crashes": (tiny(faults=CRASHES, protocol__patience_s=0.2, episode__requests=30), "random"),
    "crashes, streams": (tiny(faults=CRASHES, protocol__kind="streaming", episode__requests=30), "edge_sd:6"),
}


@pytest.fixture(scope="module", params=CASES)
def result(request: pytest.FixtureRequest) -> Result:
    scenario, scheduler = CASES[request.param]
    return simulate(scenario, scheduler, seed=3, engine="reference", timeline=True)


def timeline_of(result: Result) -> Timeline:
    assert result.timeline is not None
    return result.timeline


def events_of(result: Result, **bounds: Any) -> list[dict[str, Any]]:
    return timeline_of(result).trace(**bounds)["traceEvents"]


# ---------------------------------------------------------------------- the format

FIELDS: dict[str, dict[str, type]] = {
    "X": {"name": str, "cat": str, "ts": int, "dur": int, "pid": int, "tid": int, "args": dict},
    "i": {"name": str, "cat": str, "ts": int, "pid": int, "tid": int, "s": str, "args": dict},
    "C": {"name": str, "ts": int, "pid": int, "args": dict},
    "s": {"name": str, "cat": str, "id": str, "ts": int, "pid": int, "tid": int},
    "t": {"name": str, "cat": str, "id": str, "ts": int, "pid": int, "tid": int},
    "f": {"name": str, "cat": str, "id": str, "ts": int, "pid": int, "tid": int, "bp": str},
    "M": {"name": str, "ts": int, "pid": int, "args": dict},
}
"""What each phase must have, by the document "Trace Event Format"; nothing else stands there but a thread."""
METADATA = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_sort_index": ("sort_index", int),
}


def check_format(events: list[dict[str, Any]]) -> None:
    """Check every event against the format."""
    for event in events:
        fields = FIELDS[event["ph"]]
        assert set(fields) | {"ph"} <= set(event) <= set(fields) | {"ph", "tid"}, event
        for name, kind in fields.items():
            assert type(event[name]) is kind, (name, event)
        assert event["ts"] >= 0 and event["pid"] > 0
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
            case "i":
                assert event["s"] in ("t", "p")
            case "C":
                assert event["args"] and all(type(value) is int for value in event["args"].values())
            case "f":
                assert event["bp"] == "e"
            case "M":
                key, kind = METADATA[event["name"]]
                assert type(event["args"][key]) is kind
                assert ("tid" in event) == event["name"].startswith("thread")


def test_every_event_is_as_the_format_wants_it(result: Result) -> None:
    events = events_of(result)
    check_format(events)
    assert {"M", "X", "i", "C", "s", "f"} <= {event["ph"] for event in events}
    times = [event["ts"] for event in events]
    assert times == sorted(times)


def test_every_process_and_thread_has_one_name(result: Result) -> None:
    events = events_of(result)
    named = Counter(
        (event["pid"], event.get("tid"))
        for event in events
        if event["ph"] == "M" and event["name"].endswith("_name")
    )
    assert set(named.values()) == {1}
    assert {(event["pid"], event["tid"]) for event in events if "tid" in event} == {
        ids for ids in named if ids[1] is not None
    }
    assert {event["pid"] for event in events} == {pid for pid, _ in named}
    threads = [tid for _, tid in named if tid is not None]
    assert len(threads) == len(set(threads)), "viewers take numbers of threads for unique"


def lying_in(events: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Return the slices of each thread; of two that overlap one must hold the other."""
    threads: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["tid"]].append(event)
    for slices in threads.values():
        stack: list[dict[str, Any]] = []
        for event in slices:
            while stack and stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"]:
                stack.pop()
            assert not stack or event["ts"] + event["dur"] <= stack[-1]["ts"] + stack[-1]["dur"], event
            stack.append(event)
    return threads


def thread_names(events: list[dict[str, Any]]) -> dict[int, str]:
    return {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name"
    }


def test_slices_of_a_thread_do_not_overlap_and_only_requests_have_parts(result: Result) -> None:
    events = events_of(result)
    names = thread_names(events)
    for tid, slices in lying_in(events).items():
        if names[tid].startswith("requests"):
            continue
        ends = [event["ts"] + event["dur"] for event in slices]
        assert all(event["ts"] >= end for event, end in zip(slices[1:], ends, strict=False)), names[tid]


def test_a_target_has_one_thread_of_iterations_and_a_device_one_of_drafts(result: Result) -> None:
    names = thread_names(events_of(result))
    assert not [name for name in names.values() if name.startswith("iterations ")]
    # Devices draft for one request at a time; the edge server for two.
    per_process: dict[int, set[str]] = defaultdict(set)
    for event in events_of(result):
        if event["ph"] == "X" and names[event["tid"]].startswith("drafter"):
            per_process[event["pid"]].add(names[event["tid"]])
    targets = result.scenario.n_targets
    assert all(len(threads) <= (2 if pid == targets + 1 else 1) for pid, threads in per_process.items())


def test_arrows_of_a_request_are_matched_and_lie_in_slices(result: Result) -> None:
    events = events_of(result)
    slices = lying_in(events)
    flows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in ("s", "t", "f"):
            flows[event["id"]].append(event)
    arrived = [event for event in result.events if event.kind == EventKind.ARRIVAL]
    assert set(flows) == {hex(event.request) for event in arrived}
    for number, steps in flows.items():
        assert "".join(event["ph"] for event in steps) == "s" + "t" * (len(steps) - 2) + "f"
        for step in steps:
            around = [
                one
                for one in slices[step["tid"]]
                if one["ts"] <= step["ts"] <= one["ts"] + one["dur"] and one["pid"] == step["pid"]
            ]
            requests = {one["args"].get("request", int(number, 16)) for one in around}
            assert int(number, 16) in requests, step


def test_viewers_bind_every_arrow_to_a_slice_of_its_request(result: Result) -> None:
    """As Perfetto does it: an arrow belongs to the top of its thread's stack, in the order of the file."""
    stacks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    arrows = 0
    for event in events_of(result):
        stack = stacks[event.get("tid", -1)]
        while (
            event["ph"] in ("X", "i") and stack and stack[-1]["ts"] + stack[-1].get("dur", 0) <= event["ts"]
        ):
            stack.pop()
        if event["ph"] == "X" or (event["ph"] == "i" and event["s"] == "t"):
            stack.append(event)
        elif event["ph"] in ("s", "t", "f"):
            arrows += 1
            bound = stack[-1]
            assert bound["ph"] == "X"
            of_batch = bound["name"] in ("iteration", "prefill") and "sequences" in bound["args"]
            assert of_batch or bound["args"]["request"] == int(event["id"], 16)
    assert arrows > 50


# ---------------------------------------------------------------------- the numbers


def named(result: Result, phase: str, name: str) -> list[dict[str, Any]]:
    return [event for event in events_of(result) if (event["ph"], event["name"]) == (phase, name)]


def test_tokens_are_those_of_the_metrics(result: Result) -> None:
    table = result.requests
    of_request: Counter[int] = Counter()
    for event in named(result, "i", "commit"):
        of_request[event["args"]["request"]] += event["args"]["tokens"]
    for number, tokens in zip(table["request"], table["output_tokens"], strict=True):
        assert of_request[int(number)] == tokens
    iterations = [*of_targets(result, "iteration"), *of_targets(result, "prefill")]
    assert sum(event["args"].get("committed_tokens", 0) for event in iterations) == of_request.total()
    in_window = result.metrics["throughput_tokens_per_s"] * result.metrics["window_s"]
    assert of_request.total() == pytest.approx(in_window), "the window holds the whole episode here"


def test_requests_last_as_long_as_the_metrics_say(result: Result) -> None:
    whole = [
        event
        for event in events_of(result)
        if event["ph"] == "X" and event["name"].startswith("request ") and "unfinished" not in event["args"]
    ]
    assert len(whole) == result.metrics["requests_completed"]
    by_number = {event["args"]["request"]: event for event in whole}
    for number, e2e_s in zip(result.requests["request"], result.requests["e2e_s"], strict=True):
        event = by_number[int(number)]
        assert event["args"]["e2e_s"] == e2e_s
        assert event["dur"] == pytest.approx(1e6 * e2e_s, abs=1.01)


def test_targets_are_as_busy_as_the_metrics_say(result: Result) -> None:
    busy_us = sum(event["dur"] for name in ("iteration", "prefill") for event in of_targets(result, name))
    share = 1e-6 * busy_us / (result.metrics["window_s"] * result.scenario.n_targets)
    assert share == pytest.approx(result.metrics["utilisation_target"], rel=1e-3)


def of_targets(result: Result, name: str) -> list[dict[str, Any]]:
    """Return the slices of a name on tracks of iterations: requests and drafters have prefills, too."""
    names = thread_names(events_of(result))
    return [event for event in named(result, "X", name) if names[event["tid"]] == "iterations"]


def test_drafts_and_messages_are_all_there(result: Result) -> None:
    kinds = Counter(event.kind for event in result.events)
    names = thread_names(events_of(result))
    slices = [event for event in events_of(result) if event["ph"] == "X"]
    messages = [
        event for event in slices if names[event["tid"]].startswith(("uplink", "downlink", "LAN", "backhaul"))
    ]
    assert len(messages) == kinds[EventKind.SEND]
    drafts = [event for event in slices if names[event["tid"]].startswith("drafter")]
    assert len(drafts) == kinds[EventKind.DRAFT_START]
    # Here no drafter that streams stands beside a target: all of its drafts travel.
    of_streams = [event for event in messages if "position" in event["args"]]
    assert len(of_streams) == kinds[EventKind.DRAFT_SENT]
    assert {event["name"] for event in of_streams} <= {"drafts", "branches"}
    assert not named(result, "i", "drafts sent")
    made = sum(event["args"].get("tokens", 0) for event in drafts)
    assert made == sum(event.value for event in result.events if event.kind == EventKind.DRAFT_END)
    for kind, name in (
        (EventKind.ROLLBACK, "rollback"),
        (EventKind.STREAM_ROLLBACK, "stream rollback"),
        (EventKind.BRANCH_TAKEN, "branch taken"),
        (EventKind.BRANCH_ADOPTED, "branch adopted"),
        (EventKind.STREAM_OPEN, "stream opened"),
        (EventKind.FAULT, "crash"),
        (EventKind.DECISION, "decision"),
    ):
        assert len(named(result, "i", name)) == kinds[kind]


def test_the_cases_hold_what_they_are_named_for() -> None:
    met: dict[str, set[str]] = {}
    for name, (scenario, scheduler) in CASES.items():
        events = simulate(scenario, scheduler, seed=3, engine="reference", record_events=True).events
        met[name] = {event.kind.name for event in events}
    assert "ROLLBACK" in met["pipelined"]
    assert {"STREAM_OPEN", "STREAM_ROLLBACK", "STREAM_CLOSE"} <= met["any, streams"]
    assert {"BRANCH_TAKEN", "BRANCH_ADOPTED"} <= met["branches"]
    assert {"FAULT", "RETURN"} <= met["crashes"] & met["crashes, streams"]


def test_a_crash_ends_what_was_under_way() -> None:
    scenario, scheduler = CASES["crashes"]
    result = simulate(scenario, scheduler, seed=3, engine="reference", timeline=True)
    slices = [event for event in events_of(result) if event["ph"] == "X"]
    lost = [event for event in slices if event["args"].get("lost")]
    assert {event["name"] for event in lost} >= {"iteration"}
    crashes = {event["ts"] for event in named(result, "i", "crash")}
    assert all(event["ts"] + event["dur"] in crashes for event in lost)
    down = named(result, "X", "down")
    assert {event["args"]["kind"] for event in down} == {"target_crash", "device_crash"}
    assert all(event["dur"] in (100_000, 200_000) for event in down if "unfinished" not in event["args"])


def test_a_draft_that_a_crash_ends_is_lost_and_made_anew() -> None:
    times_s = [0.3 + 0.17 * number for number in range(20)]
    crash = {**CRASHES["desks"], "at_s": times_s, "duration_s": {"distribution": "constant", "value": 0.05}}
    result = simulate(tiny(faults={"desks": crash}), "edge_sd:8", seed=3, engine="reference", timeline=True)
    drafts = [event for event in events_of(result) if event["name"] == "draft"]
    lost = [event for event in drafts if event["args"].get("lost")]
    assert lost
    crashes = {event["ts"] for event in named(result, "i", "crash")}
    for event in lost:
        assert event["ts"] + event["dur"] in crashes and "tokens" not in event["args"]
        anew = [
            other
            for other in drafts
            if other["tid"] == event["tid"] and other["ts"] >= event["ts"] + event["dur"] + 50_000
        ]
        assert anew[0]["args"]["request"] == event["args"]["request"]


# ---------------------------------------------------------------------- who is where


def who_is_where(simulation: ReferenceSimulation, decide: Any) -> list[tuple[float, list[tuple[int, int]]]]:
    """Play to the end; return residents and waiting requests of each target at each decision."""
    seen = []
    while (view := simulation.next_decision()) is not None:
        targets = simulation._episode.world.targets
        waiting = [len({job.request.number for job in target.waiting}) for target in targets]
        seen.append((view.now_s, list(zip([t.resident for t in targets], waiting, strict=True))))
        decide(simulation, view)
        if len(seen) == 150:
            break
    return seen


def compare_counts(seed: int) -> tuple[int, bool]:
    """Hold the counters of a random case against the reference's own queues.

    Returns:
        The comparisons made, and whether requests were preempted.
    """
    case = draw_case(Random(seed), decisions=150)
    with case.built() as (scenario, builder):
        space = ActionSpace.of(scenario)
        simulation = ReferenceSimulation(scenario, case.seed, record_events=True, builder=builder)
        numbers = iter(range(10**6))
        seen = who_is_where(simulation, lambda one, _: one.decide(case.decision(next(numbers), space)))
    beside = [drafter for target in scenario.targets.values() for drafter in target.menu]
    if any(drafter.mode == "dedicated" for drafter in beside):
        # Whether a request still drafts beside its target when the log ends is not to be seen.
        return 0, False
    events = simulation.events
    # Of those whose last token is under way at the end, the log does not say that they have finished.
    finished = [request for request in simulation._episode.active.values() if request.finished]
    unclear_s = min((request.last_commit_s for request in finished), default=math.inf)
    preempts = any(event.kind == EventKind.PREEMPT for event in events)
    reading = Timeline(scenario, events, "any", 0).reading
    counts = [count for count in reading.counts if count.name == "requests"]
    changes = {count.time_s for count in counts}
    last_s = events[-1].time_s if events else 0.0
    compared = 0
    for now_s, of_targets in seen:
        if now_s in changes or not now_s < min(unclear_s, last_s):
            continue
        for target, (resident, waiting) in enumerate(of_targets):
            values = {"resident": 0, "waiting": 0}
            for count in counts:
                if count.site.number == target and count.time_s < now_s:
                    values = count.values
            assert values["resident"] == resident, (seed, now_s, target)
            # A preempted request counts as waiting even while it drafts elsewhere.
            assert preempts or values["waiting"] == waiting, (seed, now_s, target)
            compared += 1
    return compared, preempts


def test_counters_say_who_is_resident_and_who_waits() -> None:
    found = [compare_counts(seed) for seed in range(40)]
    assert sum(compared for compared, _ in found) > 2000
    assert any(preempts for _, preempts in found)


def at_target_0_then_to_1() -> Residence:
    """Return a request that has decoded at target 0 and reaches target 1 after 3 s."""
    residence = Residence([0.25, 0.0])
    residence.decided(7, 0)
    residence.sent(7, 1.0)
    residence.admitted(7, 0, 1.5)
    residence.commits(7, 1, 2.0)
    residence.decided(7, 1)
    residence.sent(7, 3.0)
    return residence


def test_a_request_that_moves_leaves_when_it_arrives_elsewhere() -> None:
    residence = at_target_0_then_to_1()
    residence.admitted(7, 1, 4.0)
    assert residence.waits == {7: [(0, 1.25, 1.5), (1, 3.0, 4.0)]}, "prompts go through the front end"
    arrives = [(1.25, 0, 0, 1), (1.5, 0, 1, 0)]
    assert list(residence.counts()) == [*arrives, (3.0, 0, 0, 0), (3.0, 1, 0, 1), (4.0, 1, 1, 0)]


def test_a_request_that_has_moved_does_not_mind_a_crash_behind_it() -> None:
    residence = at_target_0_then_to_1()
    residence.crashed(0, 3.5)
    residence.admitted(7, 1, 4.0)
    assert residence.waits[7][1:] == [(1, 3.0, 4.0)]
    assert (3.0, 0, 0, 0) in list(residence.counts())


def test_a_request_that_is_on_its_way_is_lost_with_its_target() -> None:
    residence = at_target_0_then_to_1()
    residence.crashed(0, 2.5)
    residence.decided(7, 1)  # it is told, and asks again
    assert (2.5, 0, 0, 0) in list(residence.counts())


def test_what_is_under_way_to_another_target_is_late_after_a_take_over() -> None:
    residence = at_target_0_then_to_1()
    residence.taken_over(7)
    residence.ends(4.0)
    assert list(residence.counts())[-1] == (1.5, 0, 1, 0)
    residence = at_target_0_then_to_1()
    residence.ends(4.0)
    assert list(residence.counts())[-2:] == [(3.0, 0, 0, 0), (3.0, 1, 0, 1)]


def test_who_had_finished_before_a_crash_left_before_it() -> None:
    residence = at_target_0_then_to_1()
    residence.decided(7, 0)
    residence.crashed(0, 2.5)
    residence.completed(7)
    assert list(residence.counts())[-1] == (2.0, 0, 0, 0)


# ---------------------------------------------------------------------- a part of it


def test_a_span_of_time_is_cut_out(result: Result) -> None:
    from_s, to_s = 0.35, 0.8
    events = events_of(result, from_s=from_s, to_s=to_s)
    check_format(events)
    lying_in(events)
    whole = events_of(result)
    assert len(events) < len(whole)
    for event in events:
        if event["ph"] != "M":
            assert 350_000 <= event["ts"] <= 800_000
            assert event["ts"] + event.get("dur", 0) <= 800_000
    commits = [event for event in whole if event["name"] == "commit" and 350_000 <= event["ts"] <= 800_000]
    assert [event["args"] for event in events if event["name"] == "commit"] == [
        event["args"] for event in commits
    ]
    # Counters begin with what holds at the beginning.
    first = [event for event in events if event["ph"] == "C" and event["name"] == "requests"]
    before = [event for event in whole if event["ph"] == "C" and event["name"] == "requests"]
    for pid in {event["pid"] for event in before if event["ts"] < 350_000}:
        latest = [event for event in before if event["pid"] == pid and event["ts"] < 350_000][-1]
        assert next(event for event in first if event["pid"] == pid)["args"] == latest["args"]


def test_some_requests_are_picked_out(result: Result) -> None:
    events = events_of(result, only=[2, 3])
    check_format(events)
    lying_in(events)
    assert {event["args"]["request"] for event in events if "request" in event.get("args", {})} == {2, 3}
    assert {event["id"] for event in events if event["ph"] in "stf"} == {"0x2", "0x3"}
    spans = [event for event in events if event["ph"] == "X" and event["name"].startswith("request ")]
    assert min(event["ts"] for event in events if event["ph"] != "M") >= min(event["ts"] for event in spans)


def test_what_cannot_be_shown_is_refused() -> None:
    result = simulate(tiny(), "cloud_ar", engine="reference", timeline=True)
    with pytest.raises(ValueError, match="from_s = 3 must be at least 0 and below to_s = 2"):
        timeline_of(result).trace(3.0, 2.0)
    with pytest.raises(ValueError, match=r"requests \[-5, 999\] did not arrive; there are 0 to \d+"):
        timeline_of(result).trace(only=[999, 0, -5])


def test_an_episode_can_be_left_early() -> None:
    whole = simulate(tiny(), "random", seed=3, engine="reference", timeline=True)
    part = simulate(tiny(), "random", seed=3, engine="reference", timeline=True, until_s=0.8)
    assert 0.8 < part.events[-1].time_s < whole.events[-1].time_s
    assert whole.events[: len(part.events)] == part.events
    assert part.decisions < whole.decisions
    assert simulate(tiny(), "random", seed=3, engine="reference").timeline is None


# ---------------------------------------------------------------------- the file


def test_the_file_holds_the_trace_an_event_a_line(tmp_path: Path) -> None:
    result = simulate(tiny(), "edge_sd:4", seed=3, engine="reference", timeline=True)
    file = tmp_path / "deep" / "trace.json"
    count = timeline_of(result).write(file, to_s=1.0)
    text = file.read_text(encoding="utf-8")
    trace = json.loads(text)
    assert trace == json.loads(json.dumps(timeline_of(result).trace(to_s=1.0)))
    assert len(trace["traceEvents"]) == count == text.count("\n") - 2
    assert trace["otherData"] == {
        "scenario": "tiny",
        "scheduler": "edge_sd:4",
        "seed": 3,
        "simulator": "dsd_env",
    }
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_an_empty_log_gives_an_empty_trace(tmp_path: Path) -> None:
    empty = Timeline(load_scenario(TINY), [], "nobody", 0)
    assert empty.write(tmp_path / "trace.json") == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = '"},{"ph":"X"\n\x00\u2028</script><script>alert(1)</script>\ud800é'
    result = simulate(tiny(), "cloud_ar", seed=3, engine="reference", timeline=True)
    scenario = result.scenario.model_copy(update={"name": name})
    scenario = scenario.model_copy(update={"targets": {name: scenario.targets["big"]}})
    hostile = Timeline(scenario, [], name, 3)
    hostile.write(tmp_path / "trace.json")
    text = (tmp_path / "trace.json").read_bytes()
    assert text.isascii() and text.count(b"\n") == 2
    trace = json.loads(text)
    assert trace["otherData"]["scenario"] == trace["otherData"]["scheduler"] == name


def test_both_engines_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    for number, (scenario, scheduler) in enumerate(CASES.values()):
        files = []
        for engine in ("reference", "compiled"):
            result = simulate(scenario, scheduler, seed=5, engine=engine, timeline=True)
            assert result.engine == engine
            files.append(tmp_path / f"{number}-{engine}.json")
            timeline_of(result).write(files[-1])
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[0].stat().st_size > 10_000


def test_the_log_tells_the_directions_of_messages() -> None:
    """Committed tokens go down, prompts up; each device has four channels."""
    result = simulate(tiny(), "random", seed=3, engine="reference", record_events=True)
    device = {event.request: event.entity for event in result.events if event.kind == EventKind.ARRIVAL}
    first: dict[int, int] = {}
    down = np.zeros(4 * result.scenario.n_devices, dtype=bool)
    for before, event in zip(result.events, result.events[1:], strict=False):
        if event.kind != EventKind.SEND:
            continue
        first.setdefault(event.request, event.entity)
        if before.kind == EventKind.COMMIT:
            assert event.entity == 4 * device[event.request] + 1
            down[event.entity] = True
    assert first and down.any()
    assert all(channel == 4 * device[request] for request, channel in first.items())


@pytest.mark.parametrize("protocol", ["synchronous", "pipelined", "streaming"])
@pytest.mark.parametrize("scheduler", ["random", "colocated_sd:3", "edge_sd:4"])
def test_iterations_are_named_by_what_they_do(protocol, scheduler):
    """The reference engine knows what an iteration does; of the log the same can be read, but for streams."""
    scenario = tiny(protocol={"kind": protocol})
    simulation = ReferenceSimulation(scenario, 3, record_events=True, record_spans=True)
    decider = make_scheduler(scheduler)
    decider.reset(scenario, 3)
    while (view := simulation.next_decision()) is not None:
        simulation.decide(decider.decide(view))
    reader = Reader(scenario)
    for event in simulation.events:
        reader.take(event)
    iterations = [one for one in reader.slices if one.track.rank == ITERATIONS and not math.isnan(one.end_s)]
    read = {(f"target:{one.track.site.number}", one.start_s): one.work or "prefill" for one in iterations}
    known = {(span.lane, span.start_s): span.kind for span in simulation.spans if span.lane[:6] == "target"}
    assert read.keys() == known.keys() and len(set(known.values())) > 1
    wrong = {(known[key], read[key]) for key in known if known[key] != read[key]}
    # What streams have brought, and whether the last job of one has been done, the log has no word for.
    assert {kind for kind, _ in wrong} <= ({"plain", "verify"} if protocol == "streaming" else set())
