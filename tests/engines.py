"""Runs both engines side by side and holds them against each other, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dsd_env import make_scheduler
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.world import WorldBuilder
from tests.scenarios import TINY


def assert_engines_agree(
    scenario: Scenario, scheduler: str, seed: int, *, price_delays: bool = False, decisions: int = 10**9
) -> int:
    """Step both engines through one episode; return the number of events compared.

    Compares the event log, every view, observation, mask, resolution, total and completed request, and at the
    end all metrics and the table of requests, all with ``==``.

    Args:
        scenario: The scenario.
        scheduler: Name of a scheduler, or ``indices`` for actions that ignore the mask.
        seed: Episode seed, and seed of the actions.
        price_delays: Compare the accounting of delays, too.
        decisions: Stop after so many.
    """
    builder = WorldBuilder(scenario)
    options: dict[str, Any] = {"record_events": True, "price_delays": price_delays, "builder": builder}
    reference = ReferenceSimulation(scenario, seed, **options)
    compiled = CompiledSimulation(scenario, seed, **options)
    encoder, actions = ObservationEncoder.of(scenario), ActionSpace.of(scenario)
    generator = np.random.default_rng(seed)
    policy = None
    if scheduler != "indices":
        policy = make_scheduler(scheduler)
        policy.reset(scenario, seed)
    compared = 0
    for _ in range(decisions):
        view, other = reference.next_decision(), compiled.next_decision()
        _same_events(reference, compiled, compared)
        compared = len(reference.events)
        assert other == view
        assert _completed(compiled) == _completed(reference)
        assert compiled.totals == reference.totals
        assert compiled.active_requests == reference.active_requests
        if view is None:
            break
        if price_delays:
            assert compiled.due_request.delay_caused_s == reference.due_request.delay_caused_s
        observation, mask = compiled.observe()
        np.testing.assert_array_equal(observation, encoder.encode(view))
        np.testing.assert_array_equal(mask, actions.mask(view))
        if policy is None:
            decision = actions.decode([int(generator.integers(size)) for size in actions.nvec])
        else:
            decision = policy.decide(view)
        assert compiled.decide(decision) == reference.decide(decision)
    assert compiled.terminated == reference.terminated
    assert compiled.truncated == reference.truncated
    assert compiled.now_s == reference.now_s
    assert compiled.resolved == reference.resolved
    expected, found = reference.metrics(), compiled.metrics()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == value or (math.isnan(value) and math.isnan(found[name])), name
    table = compiled.requests_table()
    for name, column in reference.requests_table().items():
        np.testing.assert_array_equal(table[name], column, err_msg=name)
    return compared


def _same_events(reference: ReferenceSimulation, compiled: CompiledSimulation, start: int) -> None:
    expected, found = reference.events[start:], compiled.events[start:]
    for number, (event, other) in enumerate(zip(expected, found, strict=False), start=start):
        assert other == event, f"event {number}, after {reference.events[max(0, number - 5) : number]}"
    assert len(found) == len(expected)


def _completed(simulation: Any) -> list[tuple[int, float, float]]:
    return [
        (request.number, request.completed_s, request.delay_caused_s)
        for request in simulation.newly_completed
    ]


def small_scenario(choices: dict[str, Any]) -> Scenario:
    """Return a small scenario with the choices of :data:`tests.sim.test_engines.CHOICES`."""
    data: dict[str, Any] = {key: value for key, value in TINY.items() if key != "reward"}
    overrides: dict[str, Any] = {
        "episode": {"requests": 8, "warmup_requests": choices["warmup"], "horizon_s": choices["horizon_s"]},
        "acceptance": {"draft": choices["acceptance"]},
        "protocol": choices["protocol"],
        "actions": choices["actions"],
        "faults": {name: fault for name, fault in choices["faults"].items() if fault is not None},
    }
    if choices["total"] is not None:
        overrides["episode"]["total_requests"] = choices["total"]
    workload = {**TINY["workload"], "arrivals": choices["arrivals"], "load": choices["load"]}
    kind = {**TINY["workload"]["kinds"]["question"], **choices["lengths"]}
    workload["kinds"] = {"question": kind}
    if choices["acceptance"]["source"] == "trace":
        terse = {**kind, "weight": 0.5, "acceptance_kinds": ["code", "chat"]}
        workload["kinds"] = {"question": kind, "terse": terse}
    overrides["workload"] = workload
    big = {**TINY["targets"]["big"], **choices["big"]}
    targets = {"big": big, "small": {**TINY["targets"]["small"], **choices["small"]}}
    overrides["targets"] = targets if choices["two_targets"] else {"big": big}
    if not choices["edge"]:
        overrides["edge_servers"] = {}
        overrides["faults"].pop("edge", None)
        overrides["faults"].pop("backhaul", None)
    if not choices["two_targets"]:
        overrides["faults"].pop("other_target", None)
    if choices["perfect_links"]:
        link = {"one_way_s": 0.01, "uplink_bits_per_s": 1e9, "downlink_bits_per_s": 1e9}
        overrides["links"] = {name: link for name in TINY["links"]}
    overrides["links"] = {
        name: {**link, **choices["link"]} for name, link in overrides.get("links", TINY["links"]).items()
    }
    if choices["equal_devices"]:
        # Equal devices on equal links do things at the same instant, which tests the order of ties.
        phone = {key: value for key, value in TINY["devices"]["workstation"].items() if key != "name"}
        overrides["devices"] = {"workstation": {**phone, "count": 5}}
        overrides["faults"].pop("phone", None)
        overrides["faults"].pop("phone_link", None)
    return load_scenario({**data, **overrides})
