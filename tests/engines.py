"""Runs both engines side by side and holds them against each other, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsd_env import make_scheduler
from dsd_env.control import ActionSpace, Decision, DecisionView
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim.fuzz import compare_engines
from tests.scenarios import TINY


def assert_engines_agree(
    scenario: Scenario, scheduler: str, seed: int, *, price_delays: bool = False, decisions: int = 10**9
) -> int:
    """Step both engines through one episode with the fuzzer's comparison; return the number of events.

    Args:
        scenario: The scenario.
        scheduler: Name of a scheduler, or ``indices`` for actions that ignore the mask.
        seed: Episode seed, and seed of the actions.
        price_delays: Compare the accounting of delays, too.
        decisions: Stop after so many.
    """
    actions, generator = ActionSpace.of(scenario), np.random.default_rng(seed)
    policy = None
    if scheduler != "indices":
        policy = make_scheduler(scheduler)
        policy.reset(scenario, seed)

    def decide(number: int, view: DecisionView) -> Decision:
        if policy is not None:
            return policy.decide(view)
        return actions.decode([int(generator.integers(size)) for size in actions.nvec])

    return compare_engines(scenario, seed, decide, decisions=decisions, price_delays=price_delays).events


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
