"""The windows in which faults hold, which are the same for every scheduler and every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dsd_env.laws import faults
from dsd_env.scenario.schema import Fault, Scenario
from dsd_env.scenario.variates import VariateTable, variate_table


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
        """Whether the entity itself goes down, and not only its links."""
        return self.fault.kind.endswith("_crash")

    @property
    def bandwidth_factor(self) -> float:
        """Share of its bandwidth that a link of the entity keeps while the fault lasts."""
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


@dataclass(slots=True)
class FaultTimes:
    """The law of the windows of one member's fault; see :class:`dsd_env.laws.faults.FaultLaw`.

    Attributes:
        number: Number of the member.
        is_random: Whether windows come at random times; otherwise they begin at `at_s`.
        mean_interval_s: Mean time from the end of a random window to the beginning of the next.
        n_times: Number of given times.
        at_s: The given times.
        duration_s: Law of the windows' lengths.
        bandwidth_factor: Share of its bandwidth that a link of the member keeps in a window.
    """

    number: int
    is_random: bool
    mean_interval_s: float
    n_times: int
    at_s: tuple[float, ...]
    duration_s: VariateTable
    bandwidth_factor: float

    @classmethod
    def of(cls, member: FaultMember) -> FaultTimes:
        """Return the law of a member's windows."""
        fault = member.fault
        return cls(
            member.number,
            fault.mean_interval_s is not None,
            fault.mean_interval_s or 0.0,
            len(fault.at_s),
            tuple(fault.at_s),
            variate_table(fault.duration_s),
            member.bandwidth_factor,
        )


class FaultWindows:
    """The windows of one member's fault, one after the other.

    Attributes:
        start_s: Beginning of the current window; infinite after the last.
        end_s: Its end.
        index: Its number.
        fault: Law of the windows.
        seed: Episode seed.
    """

    __slots__ = ("end_s", "fault", "index", "seed", "start_s")

    def __init__(self, member: FaultMember, seed: int) -> None:
        """Start at the first window."""
        self.fault, self.seed = FaultTimes.of(member), seed
        self.index = -1
        self.start_s = self.end_s = 0.0
        self.advance()

    def advance(self) -> None:
        """Go on to the next window; it begins no earlier than this one ends."""
        faults.next_window(self, self.fault, self.seed)
