"""Random cases on both engines, and proof that the harness finds, shrinks, saves and replays a difference."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import MethodType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from dsd_env.control import ActionSpace
from dsd_env.scenario import load_scenario
from dsd_env.sim.compiled import CompiledSimulation, compile_scenario
from dsd_env.sim.compiled.records import SCENARIO
from dsd_env.sim.entities import servers_of
from dsd_env.sim.events import Event, EventKind
from dsd_env.sim.fuzz import (
    FEATURES,
    Case,
    Difference,
    Violation,
    check_conservation,
    draw_case,
    first_difference,
    minimise,
    reference_engine,
    run_case,
)
from dsd_env.sim.fuzz.coverage import features_of
from dsd_env.sim.reference import ReferenceSimulation
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.targets import Targets
from tests.scenarios import TINY


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random=st.randoms(use_true_random=False))
def test_random_cases(random: Random) -> None:
    case = draw_case(random, decisions=100)
    note(json.dumps(case.to_json()))
    run_case(case)


# ---------------------------------------------------------------------- the generator


def test_every_feature_is_drawn_and_every_case_is_valid() -> None:
    drawn: Counter[str] = Counter()
    for number in range(120):
        case = draw_case(Random(f"features:{number}"), decisions=10)
        with case.built() as (scenario, _):
            drawn.update(features_of(scenario))
        drawn["stops"] += bool(case.stops)
    for feature in FEATURES:
        assert drawn[feature] >= 3, feature
    assert drawn["colocated dedicated"] and drawn["colocated shared"]


def test_a_feature_left_out_is_not_drawn() -> None:
    for number in range(200):
        without = FEATURES[number % len(FEATURES)]
        allowed = [feature for feature in FEATURES if feature != without]
        case = draw_case(Random(number), allowed, decisions=10)
        with case.built() as (scenario, _):
            assert without not in features_of(scenario)
        assert without != "stops" or not case.stops
    with pytest.raises(ValueError, match="unknown features"):
        draw_case(Random(1), ["rain"])


def test_a_case_is_a_function_of_its_seed_and_survives_json() -> None:
    series = traces = 0
    for number in range(60):
        case = draw_case(Random(f"json:{number}"), decisions=20)
        assert draw_case(Random(f"json:{number}"), decisions=20) == case
        again = Case.from_json(json.loads(json.dumps(case.to_json())))
        assert again == case
        series, traces = series + bool(case.series), traces + bool(case.traces)
    assert series and traces
    for damaged in ({}, {"format": 1}, {**case.to_json(), "actions": []}):
        with pytest.raises(ValueError, match="case"):
            Case.from_json(damaged)


# ---------------------------------------------------------------------- every part of the comparison can fail


def tiny_case(**changes: Any) -> Case:
    scenario = {key: value for key, value in TINY.items() if key != "reward"}
    actions = tuple((n % 5, n % 3, n % 6) for n in range(40))
    return dataclasses.replace(Case(scenario, 3, actions, 60, True), **changes)


class Tampered:
    """The reference engine, with one answer altered."""

    def __init__(self, *arguments: Any, attribute: str, alter: Any, call: bool) -> None:
        self._engine = reference_engine(*arguments)
        self._attribute, self._alter, self._call = attribute, alter, call

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if name != self._attribute:
            return value
        if self._call:
            return lambda *arguments: self._alter(value(*arguments))
        return self._alter(value)


def _nudged(value: float) -> float:
    return math.nextafter(value, math.inf)


def _without_last(events: list[Event]) -> list[Event]:
    return events[:-1]


def _other_time(events: list[Event]) -> list[Event]:
    return [*events[:-1], events[-1]._replace(time_s=_nudged(events[-1].time_s))] if events else events


def _later(view: Any) -> Any:
    if view is None or view.counter < 2:
        return view
    link = dataclasses.replace(view.link, rtt_s=_nudged(view.link.rtt_s))
    return dataclasses.replace(view, link=link)


def _table(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "ttft_s": np.nextafter(table["ttft_s"], np.inf)}


@pytest.mark.parametrize(
    ("attribute", "call", "alter", "where"),
    [
        ("events", False, _without_last, "events["),
        ("events", False, _other_time, "events["),
        ("next_decision", True, _later, "view.link.rtt_s"),
        ("totals", False, lambda t: dataclasses.replace(t, discarded=t.discarded + 1), "totals.discarded"),
        ("active_requests", False, lambda n: n + 1, "active_requests"),
        ("newly_completed", False, lambda requests: requests[1:], "len(newly_completed)"),
        (
            "decide",
            True,
            lambda r: dataclasses.replace(r, batch_size=r.batch_size + 1),
            "resolution.batch_size",
        ),
        ("now_s", False, _nudged, "now_s"),
        ("resolved", False, lambda counts: {**counts, "no_drafter": 10**6}, "resolved"),
        ("metrics", True, lambda m: {**m, "e2e_s_p50": _nudged(m["e2e_s_p50"])}, "metrics['e2e_s_p50']"),
        ("metrics", True, lambda m: {**m, "tpot_s_mean": math.nan}, "metrics['tpot_s_mean']"),
        ("requests_table", True, _table, "requests_table['ttft_s'][0]"),
    ],
)
def test_each_answer_of_an_engine_counts(attribute: str, call: bool, alter: Any, where: str) -> None:
    case = tiny_case(decisions=10**6)
    run_case(case, reference_engine)
    with pytest.raises(Difference) as caught:
        run_case(case, lambda *a: Tampered(*a, attribute=attribute, alter=alter, call=call))
    assert caught.value.kind == "difference"
    assert caught.value.where.startswith(where)
    json.dumps(caught.value.to_json(), allow_nan=False)


@pytest.mark.parametrize(("part", "where"), [(0, "observation["), (1, "mask[")])
def test_observation_and_mask_count(part: int, where: str) -> None:
    class Blind(CompiledSimulation):
        def observe(self) -> Any:
            seen = list(super().observe())
            seen[part] = ~seen[part] if part else np.nextafter(seen[part], np.float32(2))
            return tuple(seen)

    with pytest.raises(Difference, match="difference at " + where.replace("[", r"\[")):
        run_case(
            tiny_case(), lambda s, seed, b, p: Blind(s, seed, record_events=True, price_delays=p, builder=b)
        )


def test_an_error_of_an_engine_is_a_difference() -> None:
    def lose(_requests: Any, _request: Any) -> None:
        raise KeyError("lost")

    with pytest.raises(Difference) as caught:
        run_case(tiny_case(), reference_with("_requests", complete=lose))
    assert caught.value.kind == "error"
    assert "KeyError" in caught.value.details["error"]
    assert str(Path(__file__).parent) not in json.dumps(caught.value.to_json())


def test_nan_equals_nan_and_nothing_else() -> None:
    assert first_difference(math.nan, math.nan, "x") is None
    assert first_difference({"a": [1, math.nan]}, {"a": [1, math.nan]}, "x") is None
    assert first_difference(np.array([math.nan, 1.0]), np.array([math.nan, 1.0]), "x") is None
    assert first_difference({"a": [1, math.nan]}, {"a": [1, 2.0]}, "x") == ("x['a'][1]", "nan", "2.0")
    assert first_difference(np.array([1.0, 2.0]), np.array([1.0, 3.0]), "x") == ("x[1]", "2.0", "3.0")
    assert first_difference(np.zeros(2), np.zeros(2, np.float32), "x") is not None
    assert first_difference((1, 2), (1, 2, 3), "x") == ("len(x)", "2", "3")
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}, "x") is not None


# ---------------------------------------------------------------------- each law of conservation can fail


def _drop(kind: EventKind, which: int = 0) -> Any:
    def alter(events: list[Event]) -> list[Event]:
        at = [number for number, event in enumerate(events) if event.kind == kind][which]
        return events[:at] + events[at + 1 :]

    return alter


def _twice(kind: EventKind, which: int = 0) -> Any:
    def alter(events: list[Event]) -> list[Event]:
        at = [number for number, event in enumerate(events) if event.kind == kind][which]
        return [*events[: at + 1], events[at], *events[at + 1 :]]

    return alter


def _change(kind: EventKind, which: int = 0, **values: Any) -> Any:
    def alter(events: list[Event]) -> list[Event]:
        at = [number for number, event in enumerate(events) if event.kind == kind][which]
        return [*events[:at], events[at]._replace(**values), *events[at + 1 :]]

    return alter


def _unsent(events: list[Event]) -> list[Event]:
    at = next(number for number, event in enumerate(events) if event.kind == EventKind.COMMIT)
    return events[: at + 1] + events[at + 2 :]


def played(case: Case) -> Tampered:
    """Return the reference engine at the end of a case, to be tampered with."""
    with case.built() as (scenario, builder):
        engine = Tampered(scenario, case.seed, builder, False, attribute="", alter=None, call=False)
    space, number = ActionSpace.of(scenario), 0
    while engine.next_decision() is not None:
        engine.decide(case.decision(number, space))
        number += 1
    check_conservation(engine)
    return engine


@pytest.mark.parametrize(
    ("attribute", "alter", "law"),
    [
        ("events", lambda events: [*events[1:], events[0]], "time runs back|numbered|0"),
        ("events", _drop(EventKind.COMPLETE), "requests completed"),
        ("events", _twice(EventKind.COMPLETE), "completed twice"),
        ("events", _drop(EventKind.ITERATION_END), "two iterations at once"),
        ("events", _twice(EventKind.ITERATION_END), "did not start"),
        ("events", _change(EventKind.ITERATION_START, value=17.0), "too many"),
        ("events", _change(EventKind.COMMIT, 5, value=2.0), "tokens|accepted"),
        ("events", _change(EventKind.COMMIT, value=0.0), "committed nothing"),
        ("events", _change(EventKind.SEND, value=-1.0), "before it is sent"),
        ("events", _unsent, "not sent"),
        ("events", _change(EventKind.ARRIVAL, 1, request=7), "numbered in order"),
        ("events", lambda events: [*events, events[-1]._replace(kind=EventKind.LATE)], "late_messages"),
        ("totals", lambda t: dataclasses.replace(t, accepted=t.drafted + 1), "accepted drafts"),
        ("totals", lambda t: dataclasses.replace(t, output_tokens=t.output_tokens + 1), "tokens committed"),
        ("totals", lambda t: dataclasses.replace(t, request_seconds=t.request_seconds * 1.0001), "Little"),
        ("totals", lambda t: dataclasses.replace(t, takeovers=t.takeovers + 1), "takeovers"),
        ("totals", lambda t: dataclasses.replace(t, preemptions=t.preemptions + 1), "preemptions"),
        ("totals", lambda t: dataclasses.replace(t, round_tokens=t.round_tokens + 10**6), "draft rounds"),
        ("active_requests", lambda n: n + 1, "requests active"),
    ],
)
def test_each_law_can_fail(attribute: str, alter: Any, law: str) -> None:
    engine = played(tiny_case())
    engine._attribute, engine._alter = attribute, alter
    with pytest.raises(Violation, match=law):
        check_conservation(engine)


@pytest.mark.parametrize(
    ("column", "change"), [("accepted_tokens", 2), ("verifies", 10**6), ("e2e_s", 1e-9), ("request", 1)]
)
def test_each_row_of_the_table_can_fail(column: str, change: float) -> None:
    engine = played(tiny_case())
    engine._attribute, engine._call = "requests_table", True
    engine._alter = lambda table: {**table, column: table[column] + change}
    with pytest.raises(Violation, match=r"request |the table lists"):
        check_conservation(engine)


# ---------------------------------------------------------------------- what the cases are good for


def altered(name: str, change: Any) -> Any:
    """Return the compiled engine with one constant of its worlds altered."""

    def engine(scenario: Any, seed: int, builder: Any, price_delays: bool) -> CompiledSimulation:
        layout = compile_scenario(scenario, builder, log_events=1 << 18)
        constants = layout.constants.copy()
        header = constants[: SCENARIO.itemsize].view(SCENARIO.dtype)
        header[name] = change(header[name][0])
        return CompiledSimulation(
            scenario,
            seed,
            record_events=True,
            price_delays=price_delays,
            layout=dataclasses.replace(layout, constants=constants),
        )

    return engine


def find(engine: Any, episodes: int = 400) -> tuple[Case, Difference]:
    for number in range(episodes):
        case = draw_case(Random(f"find:{number}"), decisions=100)
        try:
            run_case(case, engine)
        except Difference as difference:
            return case, difference
    pytest.fail(f"no difference in {episodes} episodes")


def reference_with(part: str, **methods: Any) -> Any:
    """Return the reference engine with methods of one of its parts replaced."""

    def engine(scenario: Any, seed: int, builder: Any, price_delays: bool) -> ReferenceSimulation:
        simulation = ReferenceSimulation(
            scenario, seed, record_events=True, price_delays=price_delays, builder=builder
        )
        altered_part = getattr(simulation, part)
        for name, method in methods.items():
            assert callable(getattr(altered_part, name))
            setattr(altered_part, name, MethodType(method, altered_part))
        return simulation

    return engine


def _release_in_another_order(self: Targets, request: Any) -> None:
    target = self._world.targets[request.target]
    target.kv_reserved_tokens -= request.kv_reserved_tokens
    request.kv_reserved_tokens = 0
    target.resident -= 1
    self._wake(target)
    self._admit(target)


def _crash_in_reversed_order(self: Drafters, drafters: Any) -> None:
    """Let the drafts of a crashed drafter be queued again in reversed order."""
    for server in servers_of(drafters):
        server.active.reverse()
    Drafters.crash_drafters(self, drafters)


@pytest.mark.parametrize(
    "engine",
    [
        altered("crash_detection_s", _nudged),
        altered("patience_s", lambda s: s and _nudged(s)),
        altered("client_timeout_s", lambda s: s and _nudged(s)),
        altered("decision_latency_s", lambda s: s and _nudged(s)),
        altered("plain_chunk_tokens", lambda n: n + 1),
        altered("pipelined", lambda flag: not flag),
        reference_with("_targets", _release=_release_in_another_order),
        reference_with("_drafters", crash_drafters=_crash_in_reversed_order),
    ],
    ids=["detection", "patience", "timeout", "latency", "chunk", "pipelined", "reordered", "crashes"],
)
def test_small_alterations_are_found(engine: Any) -> None:
    find(engine)


def test_a_difference_is_made_small_and_can_be_replayed() -> None:
    engine = altered("crash_detection_s", _nudged)
    case, difference = find(engine)
    smaller = minimise(case, difference, engine, seconds=60)
    small = smaller.case
    assert smaller.tried > 10
    assert len(json.dumps(small.to_json())) < len(json.dumps(case.to_json())) / 2
    # What it takes: few devices, a target that crashes, at most one more fault that leads up to it.
    scenario = load_scenario({**small.scenario, "name": "small"})
    assert scenario.n_devices <= 2 and scenario.n_targets <= 2 and not scenario.edge_servers
    kinds = {fault.kind for fault in scenario.faults.values()}
    assert "target_crash" in kinds and len(scenario.faults) <= 2
    assert len(small.actions) <= 4 and small.decisions <= 20
    again = Case.from_json(json.loads(json.dumps(small.to_json())))
    with pytest.raises(Difference) as caught:
        run_case(again, engine)
    assert caught.value.to_json() == smaller.difference.to_json()
    run_case(again)


def test_minimising_stops_when_its_time_is_over() -> None:
    engine = altered("plain_chunk_tokens", lambda n: n + 1)
    case, difference = find(engine)
    ticks = iter(range(10**6))
    smaller = minimise(case, difference, engine, seconds=5.0, clock=lambda: float(next(ticks)))
    assert not smaller.finished
    assert smaller.tried <= 6


# ---------------------------------------------------------------------- the script


def fuzz(checkout: Path, *arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "scripts" / "fuzz_engines.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_script_runs_and_says_what_it_compared(checkout: Path, tmp_path: Path) -> None:
    done = fuzz(
        checkout, "--minutes", 0.1, "--seed", 5, "--decisions", 60, "--without", "trace", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "fuzz" / "summary.json").read_text())
    assert summary["episodes_compared"] > 0 and summary["events_compared"] > 50
    assert summary["differences"] == []
    assert "has:trace" not in summary["episodes_with"]
    assert summary["episodes_with"]["event:COMMIT"] > 0
    assert "0 differences" in done.stdout
    wrong = fuzz(checkout, "--without", "rain", cwd=tmp_path)
    assert wrong.returncode == 2 and "unknown: rain" in wrong.stderr


def test_script_replays_a_case(checkout: Path, tmp_path: Path) -> None:
    case = draw_case(Random("replay"), decisions=50)
    (tmp_path / "case.json").write_text(json.dumps(case.to_json()))
    done = fuzz(checkout, "--replay", "case.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no difference" in done.stdout
    (tmp_path / "other.json").write_text("{}")
    wrong = fuzz(checkout, "--replay", "other.json", cwd=tmp_path)
    assert wrong.returncode == 2 and "no case" in wrong.stderr
