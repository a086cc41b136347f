"""When what fails: the windows of every fault, the same for every scheduler and every engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Fault, Scenario
from dsd_env.scenario.variates import draw


@dataclass(frozen=True, slots=True)
class FaultMember:
    """One entity that a fault of the scenario hits.

    Attributes:
        number: Running number over all faults and their members; the entity of its random draws.
        fault: The fault.
        site: ``device``, ``edge`` or ``target``.
        entity: Number of the device, the edge server or the target.
    """

    number: int
    fault: Fault
    site: str
    entity: int

    @property
    def crashes(self) -> bool:
        """Whether the entity itself goes down, not only its links."""
        return self.fault.kind.endswith("_crash")

    @property
    def bandwidth_factor(self) -> float:
        """What is left of the bandwidth of the entity's links while the fault lasts."""
        return self.fault.bandwidth_factor if self.fault.kind == "bandwidth_collapse" else 0.0


class _HasCount(Protocol):
    @property
    def count(self) -> int: ...


def _numbers(classes: Mapping[str, _HasCount], name: str) -> range:
    """Return the numbers of the members of one class."""
    first = 0
    for other, config in classes.items():
        if other == name:
            return range(first, first + config.count)
        first += config.count
    raise KeyError(name)


def fault_members(scenario: Scenario) -> list[FaultMember]:
    """Return every entity that a fault of the scenario hits, in the order of the scenario."""
    members: list[FaultMember] = []
    for fault in scenario.faults.values():
        if fault.kind == "target_crash":
            site, numbers = "target", _numbers(scenario.targets, fault.of)
        elif fault.of in scenario.devices and fault.kind != "edge_crash":
            site, numbers = "device", _numbers(scenario.devices, fault.of)
        else:
            site, numbers = "edge", _numbers(scenario.edge_servers, fault.of)
        if fault.member is not None:
            numbers = numbers[fault.member : fault.member + 1]
        first = len(members)
        members += [FaultMember(first + i, fault, site, number) for i, number in enumerate(numbers)]
    return members


class FaultWindows:
    """The windows of one member's fault, one after the other.

    Attributes:
        start_s: Beginning of the current window; infinite after the last.
        end_s: Its end.
    """

    __slots__ = ("_fault", "_index", "_number", "_seed", "end_s", "start_s")

    def __init__(self, member: FaultMember, seed: int) -> None:
        """Stand at the first window."""
        self._fault, self._number, self._seed = member.fault, member.number, seed
        self._index = -1
        self.start_s = self.end_s = 0.0
        self.advance()

    def advance(self) -> None:
        """Go on to the next window; it begins no earlier than this one ends."""
        self._index += 1
        index, fault = self._index, self._fault
        if fault.mean_interval_s is not None:
            u = rng.uniform(self._seed, Stream.FAULT, self._number, 3 * index)
            self.start_s = self.end_s + fault.mean_interval_s * rng.exponential(u)
        elif index < len(fault.at_s):
            self.start_s = max(fault.at_s[index], self.end_s)
        else:
            self.start_s = self.end_s = math.inf
            return
        self.end_s = self.start_s + draw(
            fault.duration_s, self._seed, Stream.FAULT, self._number, 3 * index + 1
        )
