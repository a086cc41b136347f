"""Decisions made by compiled code are those made in Python, to the last bit of what the policy reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.serving import (
    ClientJoined,
    Controller,
    ControlMoved,
    DrafterState,
    DraftKv,
    DraftState,
    Event,
    GuardConfig,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestQueued,
    RoundVerified,
    RttSample,
    TargetState,
    TokensCommitted,
)
from tests.scenarios import TINY, tiny
from tests.serving.samples import make_bundle

pytest.importorskip("numba")

TRUST = GuardConfig(streak=1 << 30, budget_s=1e3)
"""Whatever happens, the policy stays."""


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
    lookup = {"model": "ngram", "kind": "lookup", "lookup": {"cost_per_round_s": 0.0004, "share_of_verify": 0.0}}
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
    "few_edges": few_edges,
    "menu": menu,
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
        kind = self.whole(14)
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
            return TokensCommitted(request, self.maybe(self.whole(6)), target=self.maybe(self.pick(self.targets)))
        if kind in (3, 4, 5):
            drafted = self.whole(9)
            return RoundVerified(
                request,
                drafted,
                self.whole(drafted + 1),
                confidence=self.maybe(self.seconds(1.0)),
                model=self.maybe(self.pick(self.models)),
                target=self.maybe(self.pick(self.targets), 0.2),
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
            )
        if kind == 12:
            return self.drafter(site, edge, request)
        if self.rng.random() < 0.5:
            return RttSample(self.client(), self.seconds(0.2))
        return LinkState(
            self.client(),
            self.maybe(self.rng.random() < 0.7),
            self.maybe(1e6 + self.seconds(1e8)),
            self.maybe(1e6 + self.seconds(1e8)),
            self.maybe(self.rng.random() < 0.1),
        )

    def drafter(self, site: str, edge: int | None, request: str) -> Event:
        told = {
            "up": self.maybe(self.rng.random() < 0.8),
            "jobs": self.maybe(self.whole(6)),
            "wait_s": self.maybe(self.seconds(0.1), 0.2),
            "job_s": self.maybe(self.seconds(0.1)),
            "periodic": self.rng.random() < 0.7,
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


def both(scenario: Scenario, bundle: Path, reports: str, now: list[float], **other: Any) -> tuple[Controller, ...]:
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


@pytest.mark.parametrize("reports", ["as_received", "by_nominal_delay"])
@pytest.mark.parametrize("name", [*SCENARIOS])
def test_observations_masks_and_decisions_are_those_made_in_python(
    name: str, reports: str, tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]()
    bundle = make_bundle(tmp_path / "policy", scenario)
    now = [0.0]
    fast, slow = both(scenario, bundle, reports, now, guard=TRUST)
    assert fast.is_compiled and not slow.is_compiled
    engine = Engine(scenario, fast, 7)
    encoder, space = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    compiled = 0
    for step in range(1500):
        now[0] += engine.seconds(0.05)
        event = engine.event()
        for controller in (fast, slow):
            controller.observe(event)
        if not engine.alive or step % 2:
            continue
        if step % 10 == 0:
            names = engine.alive[: engine.whole(8)]
            assert fast.decide_many(names) == slow.decide_many(names)
            continue
        request = engine.pick(engine.alive)
        view = slow.view(request)
        slow._stale(view)
        expected = encoder.encode(view), space.mask(view)
        mirror = fast._mirror
        assert mirror is not None
        # Asked before, as the engine that asks twice; the next decision looks anew.
        fast._state.pass_time(now[0])
        if fast.requests[request].device.as_listed and mirror.look([fast.requests[request]], now[0]):
            for mine, theirs in zip((mirror.observations[0], mirror.masks[0]), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            compiled += 1
        assert fast.decide(request) == slow.decide(request)
        mine_known, theirs_known = fast.requests[request], slow.requests[request]
        for field in ("last", "decisions", "rounds", "own_jobs", "seen_s", "answer"):
            assert getattr(mine_known, field) == getattr(theirs_known, field), field
    assert compiled > 200
    assert list(fast.requests) == list(slow.requests)
    assert fast.counts == slow.counts
