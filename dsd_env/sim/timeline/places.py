"""Where the events of a log belong: the process and the track of a timeline, by the numbers of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dsd_env.scenario import Scenario
from dsd_env.scenario.schema import ColocatedDrafter, Drafter

TARGET, EDGE, DEVICE = "target", "edge", "device"
"""The kinds of sites, as in :class:`dsd_env.network.FaultMember`."""


class Site(NamedTuple):
    """A device, an edge server or a target: one process of a timeline.

    Attributes:
        kind: ``target``, ``edge`` or ``device``.
        number: Its number among those of its kind.
    """

    kind: str
    number: int


class Track(NamedTuple):
    """A row of a process; several threads where what it shows overlaps.

    Attributes:
        site: The process.
        rank: Place among the tracks of its process.
        name: What the viewer calls it.
    """

    site: Site
    rank: int
    name: str


class _Class(Protocol):
    @property
    def count(self) -> int: ...


REQUESTS, ITERATIONS, DRAFTERS, UP, DOWN, LAN_UP, LAN_DOWN, BACKHAUL, FAULTS = range(9)
"""Ranks of the tracks of a process. Drafters with hardware of their own, and backhauls, share a rank."""


class Places:
    """The sites of a scenario, and what the numbers in its event log stand for.

    Attributes:
        n_devices: Number of devices.
        n_edges: Number of edge servers.
        n_targets: Number of targets.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Number the sites as the simulation does: devices, then edge servers, then targets."""
        self.n_devices, self.n_edges = scenario.n_devices, scenario.n_edge_servers
        self.n_targets = scenario.n_targets
        self._names = {
            DEVICE: _members(scenario.devices),
            EDGE: _members(scenario.edge_servers),
            TARGET: _members(scenario.targets),
        }
        self._menus: dict[str, list[Sequence[Drafter | ColocatedDrafter]]] = {
            DEVICE: [one.menu for one in scenario.devices.values() for _ in range(one.count)],
            EDGE: [one.menu for one in scenario.edge_servers.values() for _ in range(one.count)],
            TARGET: [one.menu for one in scenario.targets.values() for _ in range(one.count)],
        }

    def process(self, site: Site) -> tuple[int, str]:
        """Return a site's number among all, targets first, and its name with that of its class."""
        first = {TARGET: 0, EDGE: self.n_targets, DEVICE: self.n_targets + self.n_edges}[site.kind]
        word = "edge server" if site.kind == EDGE else site.kind
        return first + site.number, f"{word} {site.number} ({self.class_of(site)})"

    def class_of(self, site: Site) -> str:
        """Return the class that a site belongs to, as the scenario names it."""
        return self._names[site.kind][site.number]

    def site_of_drafter(self, number: int) -> Site:
        """Return where a drafter is."""
        site = number % (self.n_devices + self.n_edges + self.n_targets)
        if site < self.n_devices:
            return Site(DEVICE, site)
        if site < self.n_devices + self.n_edges:
            return Site(EDGE, site - self.n_devices)
        return Site(TARGET, site - self.n_devices - self.n_edges)

    def drafter(self, number: int) -> Track:
        """Return the track of what a drafter runs on: its site's hardware, or its own."""
        site = self.site_of_drafter(number)
        config = self._menus[site.kind][site.number][self._rank(number)]
        alone = site.kind == TARGET or config.kind == "lookup"
        return Track(site, DRAFTERS, f"drafter {config.model}" if alone else "drafter")

    def model(self, number: int) -> str:
        """Return the draft model of a drafter."""
        site = self.site_of_drafter(number)
        return self._menus[site.kind][site.number][self._rank(number)].model

    def _rank(self, number: int) -> int:
        return number // (self.n_devices + self.n_edges + self.n_targets)

    def channel(self, number: int) -> Track:
        """Return the track of one direction of a link: at the device, or at the edge server."""
        if number < 4 * self.n_devices:
            names = ((UP, "uplink"), (DOWN, "downlink"), (LAN_UP, "LAN up"), (LAN_DOWN, "LAN down"))
            rank, name = names[number % 4]
            return Track(Site(DEVICE, number // 4), rank, name)
        pair, down = divmod(number - 4 * self.n_devices, 2)
        edge, target = divmod(pair, self.n_targets)
        way = f"from target {target}" if down else f"to target {target}"
        return Track(Site(EDGE, edge), BACKHAUL, f"backhaul {way}")

    def leads_to_targets(self, channel: int) -> bool:
        """Return whether messages on a channel go to a target."""
        return channel % (4 if channel < 4 * self.n_devices else 2) == 0


def requests_of(device: int) -> Track:
    """Return the track of a device's requests."""
    return Track(Site(DEVICE, device), REQUESTS, "requests")


def iterations_of(target: int) -> Track:
    """Return the track of a target's iterations."""
    return Track(Site(TARGET, target), ITERATIONS, "iterations")


def faults_of(site: Site) -> Track:
    """Return the track of a site's faults."""
    return Track(site, FAULTS, "faults")


def _members(classes: Mapping[str, _Class]) -> list[str]:
    """Return the class of each member, by its number."""
    return [name for name, config in classes.items() for _ in range(config.count)]
