"""Turns random scenarios into situations that are rare by chance and that expose wrong engines.

An engine is most likely wrong where something is lost that other parts still refer to: tokens drafted ahead
at a drafter that crashes, a head start kept through the latency of a decision, a request that is preempted
while it drafts elsewhere. Chance seldom brings these together, so half of the scenarios are made for one of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsd_env.sim.fuzz.dice import Data, Dice


@dataclass(frozen=True)
class Situation:
    """The situation that a scenario has been made for.

    Attributes:
        faults: Faults that it must have, as (kind, class).
        site: Where most decisions draft: ``any``, ``own device``, ``edge`` or ``target``.
    """

    faults: tuple[tuple[str, str], ...] = ()
    site: str = "any"


def bring_about(dice: Dice, scenario: Data) -> Situation | None:
    """Change a scenario into one of the situations, in half of all cases; return which.

    Args:
        dice: Source of draws.
        scenario: Scenario without faults; changed in place.
    """
    makers: list[Callable[[Dice, Data], Situation | None]] = [
        _edge_drafter_crashes,
        _drafter_beside_target_crashes,
        _busy_device_crashes,
        _tight_pool,
        _impatient,
        _long_chain,
        _stream_falls_silent,
        _socket_full,
    ]
    if dice.chance(0.5):
        return None
    situation = dice.of(makers)(dice, scenario)
    for target in scenario["targets"].values():
        target["kv_capacity_tokens"] = max(target["kv_capacity_tokens"], _longest_tokens(scenario))
    return situation


def _longest_tokens(scenario: Data) -> int:
    """Return the KV tokens of the longest request that the scenario allows."""
    workload, gammas = scenario["workload"], scenario["actions"]["gammas"]
    return int(workload["max_prompt_tokens"] + workload["max_output_tokens"] + max(gammas) + 1)


def _many_on_one_drafter(dice: Dice, scenario: Data) -> None:
    """Let several requests at a time use one drafter, drafting ahead and mostly right, for long answers."""
    if dice.has("pipelined", 0.8):
        scenario["protocol"]["kind"] = "pipelined"
    if dice.has("streaming", 0.5):
        scenario["protocol"]["kind"] = "streaming"
    if dice.has("decision_latency", 0.5):
        scenario["protocol"]["decision_latency_s"] = dice.of(dice.menu.wait_s)
    for name in scenario["acceptance"]:
        scenario["acceptance"][name] = dice.pick(
            {"source": "iid", "alpha": 1.0},
            {"source": "markov", "after_match": 0.95, "after_mismatch": 0.8},
        )
    if scenario["actions"]["gammas"] == [0]:
        scenario["actions"]["gammas"] = [0, 4]
    workload = scenario["workload"]
    for kind in workload["kinds"].values():
        kind["output_tokens"] = {"distribution": "constant", "value": dice.pick(40, 16)}
        kind.pop("length_correlation", None)
    scenario["episode"]["requests"] = dice.pick(40, 100)
    for key in ("total_requests", "warmup_s", "window_s"):
        scenario["episode"].pop(key, None)


def _more_devices(dice: Dice, scenario: Data) -> None:
    first = next(iter(scenario["devices"].values()))
    first["count"] = dice.pick(4, 3, 6)


def _calm(drafter: Data, places: int) -> None:
    drafter["concurrency"] = places
    drafter.pop("kv_capacity_tokens", None)


def _edge_drafter_crashes(dice: Dice, scenario: Data) -> Situation | None:
    """Let an edge server with several clients crash while it drafts, queues jobs, or drafts ahead."""
    if not scenario.get("edge_servers") or "edge_crash" not in dice.features:
        return None
    _many_on_one_drafter(dice, scenario)
    _more_devices(dice, scenario)
    for device in scenario["devices"].values():
        device.setdefault("edge_link", device["link"])
    for edge in scenario["edge_servers"].values():
        edge["count"] = 1
        _calm(edge["drafter"], dice.pick(2, 1, 3))
    return Situation((("edge_crash", "e0"),), "edge")


def _drafter_beside_target_crashes(dice: Dice, scenario: Data) -> Situation | None:
    """Let a target crash together with its own drafter, which works for several requests."""
    if not {"colocated", "target_crash"} <= dice.features:
        return None
    _many_on_one_drafter(dice, scenario)
    _more_devices(dice, scenario)
    target = scenario["targets"]["t0"]
    drafter = target.get("colocated_drafter")
    if drafter is None:
        drafter = {
            "model": next(iter(scenario["acceptance"])),
            "profile": {"t0_s": dice.of(dice.menu.draft_s)},
        }
    target["colocated_drafter"] = {
        **drafter,
        "mode": "dedicated",
        "gpus": 1,
        "concurrency": dice.pick(2, 1, 3),
    }
    return Situation((("target_crash", "t0"),), "target")


def _busy_device_crashes(dice: Dice, scenario: Data) -> Situation | None:
    """Let a device crash that has several requests at once."""
    if not {"poisson", "device_crash"} <= dice.features:
        return None
    _many_on_one_drafter(dice, scenario)
    name, device = next(iter(scenario["devices"].items()))
    device["count"] = dice.pick(1, 2)
    scenario["devices"] = {name: device}
    if "drafter" not in device:
        model, step_s = next(iter(scenario["acceptance"])), dice.of(dice.menu.draft_s)
        device["drafter"] = {"model": model, "profile": {"t0_s": step_s}}
    _calm(device["drafter"], dice.pick(1, 2, 3))
    scenario["workload"]["arrivals"] = {"kind": "poisson", "rate_per_s": dice.pick(16.0, 8.0, 64.0)}
    return Situation((("device_crash", name),), "own device")


def _tight_pool(dice: Dice, scenario: Data) -> Situation | None:
    """Make a KV pool too small for the requests that want it; drafts may run on the same GPUs."""
    _many_on_one_drafter(dice, scenario)
    _more_devices(dice, scenario)
    needed = _longest_tokens(scenario)
    preempts = dice.has("preempt", 0.8)
    for target in scenario["targets"].values():
        if preempts:
            target["kv_policy"] = "preempt"
            target["prefix_cache"] = dice.chance(0.5)
        target["kv_capacity_tokens"] = needed + dice.pick(0, 1, 30, needed)
        if dice.has("colocated", 0.6) and "colocated_drafter" not in target:
            model, step_s = next(iter(scenario["acceptance"])), dice.of(dice.menu.draft_s)
            target["colocated_drafter"] = {"model": model, "profile": {"t0_s": step_s}}
            target["max_num_seqs"] = min(8, target["max_num_seqs"])
    faults = (("target_crash", "t0"),) if dice.has("target_crash", 0.3) else ()
    return Situation(faults, dice.pick("target", "own device", "any", "edge"))


def _impatient(dice: Dice, scenario: Data) -> Situation | None:
    """Make patience and time-outs about as long as the delays they wait for; a device or its links fail."""
    names = [name for name in ("patience", "client_timeout") if name in dice.features]
    if not names:
        return None
    _many_on_one_drafter(dice, scenario)
    for name in names:
        wait_s = dice.pick(dice.of(dice.menu.wait_s), dice.of(dice.menu.way_s) + dice.of(dice.menu.draft_s))
        scenario["protocol"][f"{name}_s"] = wait_s
    kinds = [kind for kind in ("device_crash", "link_outage", "target_crash") if kind in dice.features]
    faults: tuple[tuple[str, str], ...] = ()
    if kinds and dice.chance(0.8):
        kind = dice.of(kinds)
        faults = ((kind, "t0" if kind == "target_crash" else "d0"),)
    return Situation(faults, dice.pick("own device", "edge", "any"))


def _long_chain(dice: Dice, scenario: Data) -> Situation | None:
    """Make one drafter right for a whole long answer, so that it keeps drafting ahead of verification."""
    _many_on_one_drafter(dice, scenario)
    scenario["workload"]["max_output_tokens"] = 500
    for kind in scenario["workload"]["kinds"].values():
        kind["output_tokens"] = {"distribution": "constant", "value": 400}
        kind.pop("length_correlation", None)
    owners: list[Any] = [*scenario["devices"].values(), *scenario.get("edge_servers", {}).values()]
    for owner in owners:
        if "drafter" in owner:
            owner["drafter"].pop("kv_capacity_tokens", None)
    return Situation((), dice.pick("own device", "edge", "target"))


def _stream_on_devices(dice: Dice, scenario: Data) -> Data | None:
    """Let drafts be streamed from the first class of devices; return that, None if streams are left out."""
    if "streaming" not in dice.features:
        return None
    _many_on_one_drafter(dice, scenario)
    scenario["protocol"]["kind"] = "streaming"
    device: Data = next(iter(scenario["devices"].values()))
    if "drafter" not in device:
        model, step_s = next(iter(scenario["acceptance"])), dice.of(dice.menu.draft_s)
        device["drafter"] = {"model": model, "profile": {"t0_s": step_s}}
    device["drafter"].pop("kv_capacity_tokens", None)
    return device


def _stream_falls_silent(dice: Dice, scenario: Data) -> Situation | None:
    """Let the target of a stream wait for drafts, about as long as they are on their way or its device down.

    Some devices crash and are back at once: drafts made before meet those made after.
    """
    device = _stream_on_devices(dice, scenario)
    if device is None:
        return None
    device["count"] = dice.pick(2, 1, 4)
    protocol = scenario["protocol"]
    if "patience" in dice.features and dice.chance(0.7):
        protocol["stream_idle"] = "wait"
        protocol["patience_s"] = dice.pick(dice.of(dice.menu.wait_s), 2 * dice.of(dice.menu.draft_s))
    kinds = [kind for kind in ("device_crash", "link_outage") if kind in dice.features]
    faults = tuple((kind, next(iter(scenario["devices"]))) for kind in kinds if dice.chance(0.7))
    return Situation(faults, "own device")


def _socket_full(dice: Dice, scenario: Data) -> Situation | None:
    """Let drafts leave a device more slowly than it makes them, so that too many are under way."""
    device = _stream_on_devices(dice, scenario)
    if device is None:
        return None
    device["drafter"]["profile"] = {"t0_s": min(dice.menu.draft_s) / dice.pick(1, 4)}
    scenario["protocol"]["header_bytes"] = 64.0
    scenario["links"][device["link"]]["uplink_bits_per_s"] = dice.pick(2.0**15, 2.0**14)
    scenario["actions"]["gammas"] = [0, 2, 64]
    for target in scenario["targets"].values():
        target["max_num_batched_tokens"] = max(65, target["max_num_batched_tokens"])
    scenario["workload"]["max_output_tokens"] = 500
    for kind in scenario["workload"]["kinds"].values():
        kind["output_tokens"] = {"distribution": "constant", "value": 400}
    return Situation((), "own device")
