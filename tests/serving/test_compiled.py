"""Decisions made by compiled code are those made in Python, to the last bit of what the policy reads."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.policy import Policy, load
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.serving import (
    BackhaulState,
    ClientJoined,
    Controller,
    ControlMoved,
    DecisionDropped,
    DrafterState,
    DraftKv,
    DraftState,
    Event,
    GuardConfig,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestInterrupted,
    RequestQueued,
    RoundVerified,
    RttSample,
    StreamResult,
    TargetState,
    TokensCommitted,
)
from tests.scenarios import TINY, tiny
from tests.serving.endurance import controller_of, decide
from tests.serving.samples import make_bundle, make_fleet_bundle

pytest.importorskip("numba")

TRUST = GuardConfig(streak=1 << 30, budget_s=1e3)
"""Whatever happens, the policy stays."""
DOUBTFUL = GuardConfig(streak=3, stale_s=0.5, retry_s=0.5, budget_s=1e3)
"""It often goes; but not for the time that the machine takes."""


def few_edges() -> Scenario:
    """Four edge servers, of which two are on offer, by when a next draft would come."""
    content: dict[str, Any] = {**TINY, "name": "few_edges"}
    content["edge_servers"] = {"box": {**TINY["edge_servers"]["box"], "count": 4}}
    content["actions"] = {**TINY["actions"], "edge_servers_offered": 2}
    return load_scenario(content)


def menu() -> Scenario:
    """Two draft models and a look-up at several sites, one of them on GPUs of its own beside a target."""
    content: dict[str, Any] = {**TINY, "name": "menu"}
    small = {"model": "small", "profile": {"t0_s": 0.002}, "kv_capacity_tokens": 400}
    cost = {"cost_per_round_s": 0.0004, "share_of_verify": 0.0}
    lookup = {"model": "ngram", "kind": "lookup", "lookup": cost}
    power = {"idle_w": 10.0, "busy_w": 100.0}
    workstation = dict(TINY["devices"]["workstation"])
    workstation["drafters"] = [workstation.pop("drafter"), small, lookup]
    box = dict(TINY["edge_servers"]["box"])
    box["drafters"] = [box.pop("drafter"), small]
    big = dict(TINY["targets"]["big"])
    own = big.pop("colocated_drafter")
    big["colocated_drafters"] = [
        own,
        {"model": "small", "mode": "dedicated", "profile": {"t0_s": 0.001}, "gpus": 1, "power": power},
    ]
    content["devices"] = {**TINY["devices"], "workstation": workstation}
    content["edge_servers"] = {"box": {**box, "count": 2}}
    content["targets"] = {**TINY["targets"], "big": big}
    content["acceptance"] = {
        **TINY["acceptance"],
        "small": {"source": "iid", "alpha": 0.5},
        "ngram": {"source": "iid", "alpha": 0.3},
    }
    return load_scenario(content)


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "single_lan": lambda: load_scenario("single_lan"),
    "tiny": tiny,
    "far": lambda: tiny(targets__big__extra_one_way_s=0.02, targets__small__extra_one_way_s=0.2),
    "few_edges": few_edges,
    "menu": menu,
    "flat": tiny,
    "metro": lambda: load_scenario("metro"),
    "stream_node_branches": lambda: load_scenario("stream_node_branches"),
}


class Engine:
    """Draws what an engine could tell, sensible or not, from a seed."""

    def __init__(self, scenario: Scenario, controller: Controller, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scenario = scenario
        self.targets = controller.deployment.targets
        self.edges = scenario.n_edge_servers
        self.classes = list(scenario.devices)
        self.models = list(scenario.acceptance)
        self.slos = list(scenario.slo)
        self.ranks = 1 + max(rank for _, _, rank, _ in scenario.places)
        self.alive: list[str] = []
        self.n = 0

    def pick(self, of: Any) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def maybe(self, value: Any, share: float = 0.5) -> Any:
        return value if self.rng.random() < share else None

    def whole(self, high: int) -> int:
        return int(self.rng.integers(high))

    def seconds(self, high: float) -> float:
        return float(self.rng.random() * high)

    def client(self) -> str:
        return f"c{self.whole(6)}"

    def arrives(self) -> Event:
        self.n += 1
        self.alive.append(str(self.n))
        return RequestArrived(
            str(self.n),
            self.whole(900),
            self.maybe(self.client(), 0.9),
            self.maybe(self.pick(self.slos)),
            self.maybe(self.pick(self.targets)),
        )

    def event(self) -> Event:
        if not self.alive or (len(self.alive) < 20 and self.rng.random() < 0.1):
            return self.arrives()
        request = self.pick(self.alive)
        site = self.pick(["colocated", "own_device", *(["edge_server"] if self.edges else [])])
        edge = self.whole(self.edges) if site == "edge_server" else None
        kind = self.whole(16)
        if kind == 0:
            number = None
            if self.rng.random() < 0.3:
                number = self.whole(self.scenario.n_devices)
            return ClientJoined(
                self.client(),
                None if number is not None and self.rng.random() < 0.7 else self.pick(self.classes),
                number,
                self.maybe(0.5 + self.seconds(1.0)),
                self.maybe(self.seconds(0.1)),
                self.maybe(self.seconds(0.1)),
                self.maybe(self.seconds(0.01)),
                self.maybe(self.seconds(0.01)),
            )
        if kind == 1:
            return RequestQueued(request, self.maybe(self.pick(self.targets)))
        if kind == 2:
            tokens = self.maybe(self.whole(6))
            target = self.maybe(self.pick(self.targets))
            return TokensCommitted(request, tokens, target=target, heard=self.maybe(False, 0.2))
        if kind in (3, 4, 5):
            drafted = self.whole(9)
            return RoundVerified(
                request,
                drafted,
                self.whole(drafted + 1),
                confidence=self.maybe(self.seconds(1.0)),
                model=self.maybe(self.pick(self.models)),
                target=self.maybe(self.pick(self.targets), 0.2),
                heard=self.maybe(False, 0.2),
            )
        if kind == 6:
            return ControlMoved(request, site, self.maybe(self.pick(self.targets)), edge)
        if kind == 7:
            return DraftState(
                request,
                self.maybe(self.whole(5)),
                self.maybe(self.whole(9)),
                self.maybe(self.whole(9)),
                self.maybe(self.whole(30)),
                known_tokens=self.maybe(self.whole(200), 0.2),
                idle_share=self.maybe(self.seconds(1.0)),
            )
        if kind == 8:
            return DraftKv(request, self.whole(1200), site, None, edge, self.whole(self.ranks))
        if kind == 9:
            if self.rng.random() < 0.3:
                self.alive.remove(request)
                return RequestFinished(request, self.maybe(self.rng.random() < 0.7))
            return IterationDone(self.seconds(0.1), self.whole(200), self.pick(self.targets))
        if kind in (10, 11):
            return TargetState(
                self.pick(self.targets),
                up=self.rng.random() < 0.9,
                queued=self.maybe(self.whole(30)),
                running=self.maybe(self.whole(30)),
                resident=self.maybe(self.whole(60), 0.3),
                waiting=self.maybe(self.whole(9)),
                remaining_s=self.maybe(self.seconds(0.1)),
                iteration_s=self.maybe(self.seconds(0.1), 0.1),
                kv_fraction=self.maybe(self.seconds(1.0)),
                plain=self.maybe(self.whole(20), 0.1),
                gamma_mean=self.maybe(self.seconds(5.0), 0.1),
                prefill_tokens=self.maybe(self.whole(3000)),
                request=self.maybe(request, 0.2),
                periodic=self.rng.random() < 0.5,
                kv_lost=self.maybe(True, 0.1),
            )
        if kind == 12:
            return self.drafter(site, edge, request)
        if kind == 13:
            drafted = self.whole(5)
            return StreamResult(
                request,
                self.whole(200),
                committed=self.maybe(self.whole(6)),
                drafted=self.maybe(drafted),
                accepted=self.maybe(self.whole(drafted + 1)),
                confidence=self.maybe(self.seconds(1.0)),
                model=self.maybe(self.pick(self.models)),
            )
        if kind == 14:
            return self.pick([RequestInterrupted, DecisionDropped])(request)
        return self.link()

    def link(self) -> Event:
        if self.edges and self.rng.random() < 0.3:
            target, delay_s = self.maybe(self.pick(self.targets)), self.maybe(self.seconds(0.05))
            return BackhaulState(self.whole(self.edges), target, delay_s, self.maybe(self.seconds(0.05)))
        if self.rng.random() < 0.5:
            return RttSample(self.client(), self.seconds(0.2))
        return LinkState(
            self.client(),
            self.maybe(self.rng.random() < 0.7),
            self.maybe(1e6 + self.seconds(1e8)),
            self.maybe(1e6 + self.seconds(1e8)),
            self.maybe(self.rng.random() < 0.1),
            uplink_sample_bits_per_s=self.maybe(1e6 + self.seconds(1e8)),
            downlink_sample_bits_per_s=self.maybe(1e6 + self.seconds(1e8)),
        )

    def drafter(self, site: str, edge: int | None, request: str) -> Event:
        told = {
            "up": self.maybe(self.rng.random() < 0.8),
            "jobs": self.maybe(self.whole(6)),
            "wait_s": self.maybe(self.seconds(0.1), 0.2),
            "job_s": self.maybe(self.seconds(0.1)),
            "periodic": self.rng.random() < 0.7,
            "kv_lost": self.maybe(True, 0.1),
        }
        if site == "edge_server":
            return DrafterState(edge_server=edge, drafter=self.maybe(0), **told)
        own = [
            (name, rank)
            for name, target in zip(self.targets, self.per_target(), strict=True)
            for rank, drafter in enumerate(target.menu)
            if drafter.mode == "dedicated"
        ]
        if site == "colocated" and own:
            name, rank = self.pick(own)
            return DrafterState(target=name, drafter=rank, **told)
        return DrafterState(client=self.client(), request=self.maybe(request), **told)

    def per_target(self) -> list[Any]:
        return [target for target in self.scenario.targets.values() for _ in range(target.count)]


def both(
    scenario: Scenario, bundle: Path | Policy, reports: str, now: list[float], **other: Any
) -> tuple[Controller, ...]:
    """Return a controller that decides by compiled code, and one that does not."""
    return tuple(
        Controller(
            bundle,
            scenario,
            clock=lambda: now[0],
            origin_s=0.0,
            reports=reports,  # type: ignore[arg-type]
            compiled=compiled,
            **other,
        )
        for compiled in (True, False)
    )


def policy_of(name: str, scenario: Scenario, folder: Path) -> Path:
    return make_bundle(folder / "policy", scenario, flat=name == "flat")


CASES = [
    *((name, "as_received", TRUST) for name in SCENARIOS),
    *((name, "by_nominal_delay", TRUST) for name in SCENARIOS),
    ("tiny", "as_received", DOUBTFUL),
    ("metro", "as_received", DOUBTFUL),
]


@pytest.mark.parametrize(
    ("name", "reports", "guard"), CASES, ids=[f"{n}-{r}-{i}" for i, (n, r, _) in enumerate(CASES)]
)
def test_observations_masks_and_decisions_are_those_made_in_python(
    name: str, reports: str, guard: GuardConfig, tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]()
    bundle = policy_of(name, scenario, tmp_path)
    now = [0.0]
    fast, slow = both(scenario, bundle, reports, now, guard=guard)
    mirror = fast._mirror
    assert mirror is not None and slow._mirror is None
    engine = Engine(scenario, fast, 7)
    encoder, space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    compiled = 0
    for step in range(1500):
        now[0] += engine.seconds(0.05)
        event = engine.event()
        if engine.rng.random() < 0.1:
            # Clocks differ, and what was seen first need not be told first.
            event = replace(event, time_s=now[0] - 0.5 + engine.seconds(1.0))
        for controller in (fast, slow):
            controller.observe(event)
        if not engine.alive or step % 2:
            continue
        at_s = now[0] - (engine.seconds(0.4) if engine.rng.random() < 0.1 else 0.0)
        if step % 10 == 0:
            names = engine.alive[: engine.whole(8)] + ["nobody"] * (step % 50 == 0)
            assert fast.decide_many(names, at_s) == slow.decide_many(names, at_s)
        else:
            request = engine.pick(engine.alive)
            view = slow.view(request, at_s)
            fast.view(request, at_s)  # which notes how many jobs there are on its device
            slow._stale(view)
            mask = space.flat_mask(view, scenario.max_num_seqs) if name == "flat" else space.mask(view)
            if mirror.look([fast.requests[request]], max(0.0, at_s)):
                np.testing.assert_array_equal(mirror.observations[0], encoder.encode(view))
                np.testing.assert_array_equal(mirror.masks[0], mask)
                compiled += 1
            assert fast.decide(request, at_s) == slow.decide(request, at_s)
        for request in engine.alive:
            mine, theirs = fast.requests[request], slow.requests[request]
            for field in ("last", "decisions", "rounds", "own_jobs", "seen_s", "answer"):
                assert getattr(mine, field) == getattr(theirs, field), field
    assert compiled > 100
    assert list(fast.requests) == list(slow.requests)
    assert fast.stats() == slow.stats()


@pytest.mark.parametrize(
    ("name", "reports", "guard"),
    [
        *((name, "as_received", TRUST) for name in SCENARIOS if name != "flat"),
        ("menu", "by_nominal_delay", TRUST),
        ("metro", "by_nominal_delay", TRUST),
        ("tiny", "as_received", replace(DOUBTFUL, safe_plan="2/1/own")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_plans_are_followed_as_in_python(
    name: str, reports: str, guard: GuardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]()
    now = [0.0]
    space = FleetSpace(scenario, 0.2, name_targets=name in ("tiny", "menu"))
    bundle = make_fleet_bundle(tmp_path / "policy", space)
    fast, slow = both(scenario, bundle, reports, now, guard=guard)
    assert fast._mirror is not None and slow._mirror is None
    engine, sources, drafts, calls = Engine(scenario, fast, 7), set(), 0, []
    follow = fast._mirror.decide

    def counted(n: int) -> None:
        calls.append(n)
        follow(n)

    monkeypatch.setattr(fast._mirror, "decide", counted)
    rng = np.random.default_rng(1)
    plans = [[int(rng.integers(n)) for n in space.nvec] for _ in range(50)]
    for planner in (fast._planner, slow._planner):
        assert planner is not None
        # What telemetry at random brings about hardly changes a plan.
        monkeypatch.setattr(planner.policy, "choose", lambda *_, p=planner: plans[p.number % len(plans)])
    for step in range(1500):
        now[0] += engine.seconds(0.05)
        event = engine.event()
        for controller in (fast, slow):
            controller.observe(event)
        if not engine.alive or step % 2:
            continue
        names = engine.alive[: engine.whole(8)] if step % 10 == 0 else [engine.pick(engine.alive)]
        names += ["nobody"] * (step % 50 == 0)
        answers = fast.decide_many(names)
        assert answers == slow.decide_many(names)
        sources |= {answer.source for answer in answers}
        drafts += sum(answer.gamma > 0 for answer in answers)
        assert fast.plan() == slow.plan()
        for request in engine.alive:
            mine, theirs = fast.requests[request], slow.requests[request]
            for field in ("last", "decisions", "rounds", "own_jobs", "seen_s", "answer"):
                assert getattr(mine, field) == getattr(theirs, field), field
    assert list(fast.requests) == list(slow.requests)
    assert fast.stats() == slow.stats() and fast.counts["plans"] > 50
    assert sum(calls) > 200
    assert drafts > 20 and {"policy", "safe_rule"} <= sources  # the latter for nobody
    assert ("safe_plan" in sources) == (guard is not TRUST)


def test_many_requests_and_clients(tmp_path: Path) -> None:
    # More than there are rows at first, and some that end in between, whose rows others take.
    scenario = load_scenario("single_lan")
    now = [0.0]
    fast, slow = both(scenario, make_bundle(tmp_path / "policy"), "as_received", now, guard=TRUST)
    engine = Engine(scenario, fast, 1)
    for _ in range(4):
        for i in range(200):
            event = engine.arrives()
            event = replace(event, client=f"{event.request}" if i % 2 else "one")
            for controller in (fast, slow):
                controller.observe(event)
                controller.observe(RttSample(event.client, 0.001 * i))
        now[0] += 0.1
        answers = fast.decide_many(engine.alive)
        assert answers == slow.decide_many(engine.alive)
        assert {answer.source for answer in answers} == {"policy"}
        for name in engine.alive[::3]:
            engine.alive.remove(name)
            for controller in (fast, slow):
                controller.observe(RequestFinished(name))
    assert fast.stats() == slow.stats()


def test_too_slow_decisions_end_the_trust_alike(tmp_path: Path) -> None:
    now = [0.0]
    guard = GuardConfig(budget_s=1e-9, streak=4)
    scenario, bundle = load_scenario("single_lan"), make_bundle(tmp_path / "policy")
    sources = []
    for controller in both(scenario, bundle, "as_received", now, guard=guard):
        names = [str(i) for i in range(6)]
        for name in names:
            controller.observe(RequestArrived(name, 100, target="target"))
        sources.append([answer.source for answer in controller.decide_many(names)])
        sources[-1] += [controller.decide("0").source, controller.guard.reason]
        assert controller.counts["safe"] == 4
    assert sources[0] == sources[1] == [*["policy"] * 3, *["safe_rule"] * 4, "time_out"]


def test_a_policy_that_fails_is_answered_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    guard = GuardConfig(streak=3)
    stats = []
    for controller in both(tiny(), make_bundle(tmp_path / "policy", tiny()), "as_received", now, guard=guard):
        for name in "abcd":
            controller.observe(RequestArrived(name, 100))
        assert controller.decide("a").source == "policy"
        assert controller.policy is not None and controller.policy.actor is not None
        for method in ("logits", "logits_of_many", "action"):
            monkeypatch.setattr(controller.policy.actor, method, lambda *_: 1 // 0)
        answers = [controller.decide("a"), *controller.decide_many(list("abcd"))]
        assert {(answer.source, answer.reason) for answer in answers} == {("safe_rule", "error")}
        assert controller.requests["a"].decisions == 3
        stats.append(controller.stats())
    assert stats[0] == stats[1]
    assert stats[0]["trips"]["error"] == 1


def test_an_answer_lost_is_repeated_and_a_name_twice_is_decided_twice(tmp_path: Path) -> None:
    now = [0.0]
    for controller in both(load_scenario("single_lan"), make_bundle(tmp_path / "p"), "as_received", now):
        for name in "ab":
            controller.observe(RequestArrived(name, 100, target="target"))
        assert [answer.counter for answer in controller.decide_many(["a", "b", "a"])] == [0, 0, 1]
        last = controller.decide("a")
        assert controller.decide("a", counter=2) is last
        assert controller.decide_many(["a", "b"], counters=[2, 0])[0] is last
        assert controller.counts["decisions"] == 4
        # The next of each in one call, and the same call again.
        again = [controller.decide_many(["a", "b"], counters=[3, 1]) for _ in range(2)]
        assert again[0] == again[1] and [answer.counter for answer in again[0]] == [3, 1]
        assert controller.counts["decisions"] == 6


def test_what_decides_is_exchanged_with_what_is_known(tmp_path: Path) -> None:
    scenario = tiny()
    now = [0.0]
    fast, slow = both(scenario, make_bundle(tmp_path / "a", scenario), "as_received", now, guard=TRUST)
    other = make_bundle(tmp_path / "b", scenario, 1)
    engine = Engine(scenario, fast, 3)
    for policy in (None, "jsq_goodput", other):
        for controller in (fast, slow):
            if policy is not None:
                controller.swap(policy)
        assert fast.is_compiled == (policy != "jsq_goodput") and not slow.is_compiled
        for _ in range(200):
            now[0] += 0.02
            event = engine.event()
            for controller in (fast, slow):
                controller.observe(event)
        assert fast.decide_many(engine.alive) == slow.decide_many(engine.alive)


def test_a_network_in_onnxruntime_decides_on_the_same_observations(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    scenario = tiny()
    policy = load(make_bundle(tmp_path / "policy", scenario, onnx=True), "onnx")
    now = [0.0]
    fast, slow = both(scenario, policy, "as_received", now, guard=TRUST)
    assert fast.is_compiled and fast.policy is not None and fast.policy.backend == "onnx"
    engine = Engine(scenario, fast, 5)
    for _ in range(300):
        now[0] += 0.02
        event = engine.event()
        for controller in (fast, slow):
            controller.observe(event)
        assert fast.decide_many(engine.alive) == slow.decide_many(engine.alive)


def test_without_numba_python_decides(tmp_path: Path, checkout: Path) -> None:
    bundle = make_bundle(tmp_path / "policy")
    program = f"""
import sys
sys.modules["numba"] = None
from dsd_env.serving import Controller, RequestArrived
controller = Controller({str(bundle)!r})
controller.observe(RequestArrived("a", 100, target="target"))
print(controller.is_compiled, controller.decide("a").source, controller.decide_many(["a"])[0].counter)
try:
    Controller({str(bundle)!r}, compiled=True)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "False policy 1", done.stderr
    assert "needs Numba" in second


@pytest.mark.slow
def test_memory_over_a_million_decisions(tmp_path: Path) -> None:
    controller = controller_of(tmp_path)
    sizes = []
    tracemalloc.start()
    for half in range(2):
        decide(controller, 500_000, 500_000 * half)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert controller.counts["decisions"] == 1_000_000
    assert controller.counts["safe"] == 0
    # Answers that are kept to be given again are limited in number.
    assert sizes[1] - sizes[0] < 1_000_000
