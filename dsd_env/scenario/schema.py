"""The scenario schema: every number that a simulation depends on, with its unit and its allowed range.

All models are frozen and reject unknown keys. Times are seconds, sizes bytes or tokens, rates per second,
power watts, energy joules, money US dollars. The parts of the schema are in modules by subject; this module
holds the whole scenario and re-exports all names of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Self, TypeVar

from pydantic import Field, PrivateAttr, model_validator

from dsd_env.scenario.acceptance import (
    AcceptanceConfig,
    FittedAcceptance,
    IidAcceptanceConfig,
    MarkovAcceptanceConfig,
    TraceAcceptance,
)
from dsd_env.scenario.base import Count, Fraction, Model, Name, NonNegative, Positive
from dsd_env.scenario.distributions import (
    Constant,
    Duration,
    Exponential,
    Geometric,
    Length,
    LogNormal,
    Quantiles,
)
from dsd_env.scenario.episode import MAX_GAMMA, Actions, Episode, Reward, RewardWeights
from dsd_env.scenario.faults import Fault
from dsd_env.scenario.links import Ar1, BandwidthProcess, DelayProcess, Jitter, Link, Outages, Replay
from dsd_env.scenario.protocol import Protocol
from dsd_env.scenario.servers import (
    ColocatedDrafter,
    DeviceClass,
    Drafter,
    EdgeServer,
    Lookup,
    Power,
    Profile,
    ProfileName,
    SyntheticProfile,
    Target,
)
from dsd_env.scenario.workload import (
    Arrivals,
    BurstyClients,
    ClosedLoop,
    LoadProfile,
    Poisson,
    RateModulation,
    Renewal,
    ReplayArrivals,
    RequestKind,
    Slo,
    TokenDeadlines,
    Workload,
)

__all__ = [
    "MAX_GAMMA",
    "MAX_PLACEMENTS",
    "AcceptanceConfig",
    "Actions",
    "Ar1",
    "Arrivals",
    "BandwidthProcess",
    "BurstyClients",
    "Card",
    "ClosedLoop",
    "ColocatedDrafter",
    "Constant",
    "Count",
    "DelayProcess",
    "DeviceClass",
    "Drafter",
    "Duration",
    "EdgeServer",
    "Episode",
    "Exponential",
    "Fault",
    "FittedAcceptance",
    "Fraction",
    "Geometric",
    "IidAcceptanceConfig",
    "Jitter",
    "Length",
    "Link",
    "LoadProfile",
    "LogNormal",
    "Lookup",
    "MarkovAcceptanceConfig",
    "Name",
    "NonNegative",
    "Outages",
    "Poisson",
    "Positive",
    "Power",
    "Profile",
    "ProfileName",
    "Protocol",
    "Quantiles",
    "RateModulation",
    "Renewal",
    "Replay",
    "ReplayArrivals",
    "RequestKind",
    "Reward",
    "RewardWeights",
    "Scenario",
    "Slo",
    "SyntheticProfile",
    "Target",
    "TokenDeadlines",
    "TraceAcceptance",
    "Workload",
]

MAX_PLACEMENTS = 256


class Card(Model):
    """Description of what a scenario represents, in words and measured numbers."""

    models: str = Field(description="The situation that the scenario represents, and its models.")
    regime: str = Field(description="What limits performance, and what a scheduler can gain.")
    utilisation: str = Field(
        description="Measured utilisation and queueing, with the command that measured them."
    )
    limits: str = Field(default="", description="What the scenario does not cover.")


class Scenario(Model):
    """A complete, validated scenario. See ``configs/scenarios/`` for the shipped ones."""

    name: Name = Field(description="Name of the scenario, for tables and messages.")
    version: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Raised whenever results of the scenario change."
    )
    card: Card = Field(description="What the scenario represents.")
    devices: dict[Name, DeviceClass] = Field(
        min_length=1, description="Classes of client devices by name; the devices are numbered in this order."
    )
    edge_servers: dict[Name, EdgeServer] = Field(default={}, description="Classes of edge servers by name.")
    targets: dict[Name, Target] = Field(min_length=1, description="Classes of target servers by name.")
    links: dict[Name, Link] = Field(
        min_length=1, description="Links by name; devices and edge servers name the ones that they use."
    )
    workload: Workload = Field(description="Which requests arrive, and when.")
    slo: dict[Name, Slo] = Field(
        min_length=1,
        description="Classes of service-level objectives by name; each kind of request names its class.",
    )
    acceptance: dict[Name, AcceptanceConfig] = Field(
        default={},
        description="Sources of acceptance by the name of the draft model, which drafters give.",
    )
    protocol: Protocol = Field(default=Protocol(), description="How drafter and target work together.")
    faults: dict[Name, Fault] = Field(default={}, description="Failures by name.")
    actions: Actions = Field(default=Actions(), description="What a scheduler may choose.")
    reward: Reward = Field(default=Reward(), description="What a learner is rewarded for.")
    episode: Episode = Field(
        default=Episode(), description="How long an episode lasts, and what it measures."
    )
    egress_usd_per_gigabyte: NonNegative = Field(
        default=0.0, description="Price of what targets send to clients, for each 10^9 bytes."
    )
    client_usd_per_kwh: NonNegative = Field(
        default=0.0, description="Price that users pay for the electricity of their devices."
    )
    _origin: str = PrivateAttr(default="")

    @property
    def where(self) -> str:
        """The scenario in error messages: the file that it was read from, if any, and its name."""
        return f"{self._origin}: scenario {self.name!r}" if self._origin else f"scenario {self.name!r}"

    def from_origin(self, origin: str) -> Self:
        """Return the same scenario, with the given origin for error messages."""
        scenario = self.model_copy()
        scenario._origin = origin
        return scenario

    def __eq__(self, other: object) -> bool:
        # The origin of a scenario is not part of its content.
        return isinstance(other, Scenario) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _references(self) -> Scenario:
        def need(key: str, name: str | None, table: dict[str, object], what: str) -> None:
            if name is not None and name not in table:
                raise ValueError(f"{key} = {name!r} is not among the {what}: {sorted(table)}")

        links, accept = dict[str, object](self.links), dict[str, object](self.acceptance)
        for name, device in self.devices.items():
            need(f"devices.{name}.link", device.link, links, "links")
            need(f"devices.{name}.edge_link", device.edge_link, links, "links")
            for key, drafter in _keys_of("drafter", device.menu, bool(device.drafters)):
                need(f"devices.{name}.{key}.model", drafter.model, accept, "acceptance sources")
        for name, edge in self.edge_servers.items():
            need(f"edge_servers.{name}.backhaul", edge.backhaul, links, "links")
            for key, drafter in _keys_of("drafter", edge.menu, bool(edge.drafters)):
                need(f"edge_servers.{name}.{key}.model", drafter.model, accept, "acceptance sources")
        for name, target in self.targets.items():
            for key, own in _keys_of("colocated_drafter", target.menu, bool(target.colocated_drafters)):
                need(f"targets.{name}.{key}.model", own.model, accept, "acceptance sources")
        for name, kind in self.workload.kinds.items():
            need(f"workload.kinds.{name}.slo", kind.slo, dict[str, object](self.slo), "SLO classes")
        sites: dict[str, dict[str, object]] = {
            "target_crash": {**self.targets},
            "edge_crash": {**self.edge_servers},
            "device_crash": {**self.devices},
        }
        if both := sorted(set(self.devices) & set(self.edge_servers)):
            raise ValueError(f"edge_servers {both} have the names of classes of devices: rename them")
        either: dict[str, object] = {**self.devices, **self.edge_servers}
        for name, fault in self.faults.items():
            table = sites.get(fault.kind, either)
            need(f"faults.{name}.of", fault.of, table, f"classes that a {fault.kind} can hit")
            count = getattr(table[fault.of], "count")  # noqa: B009
            if fault.member is not None and fault.member >= count:
                raise ValueError(
                    f"faults.{name}.member = {fault.member} must be below the count of {fault.of!r}, {count}"
                )
        self._fits()
        self._streams()
        self._whole_cycles()
        return self

    def _streams(self) -> None:
        """Check that the settings of streams, branches and offered edge servers fit the scenario."""
        if self.actions.edge_servers_offered is not None and self.n_edge_servers == 0:
            raise ValueError(
                f"actions.edge_servers_offered = {self.actions.edge_servers_offered} has none to offer: "
                "leave it out, or describe some in edge_servers"
            )
        if self.actions.offer_branches and self.protocol.branches.fanout == 0:
            raise ValueError(
                "actions.offer_branches = true needs branches to offer: protocol.branches.fanout = 0 must be "
                "1 to 8, with protocol.kind = 'streaming'"
            )
        if self.protocol.kind != "streaming":
            return
        if not self.streaming_models:
            raise ValueError(
                "protocol.kind = 'streaming' needs a drafter of kind 'model' on a device, on an edge server, "
                "or at a target in mode 'dedicated': there is none"
            )
        largest = max(self.actions.gammas)
        if largest == 0:
            raise ValueError(
                "protocol.kind = 'streaming' needs a window: actions.gammas holds only 0, plain decoding"
            )
        chunk = self.protocol.stream_chunk_tokens
        if chunk > largest:
            raise ValueError(
                f"protocol.stream_chunk_tokens = {chunk} does not fit into any window: at most {largest}, "
                "the largest of actions.gammas"
            )
        branches = self.protocol.branches
        if branches.fanout and branches.depth > largest:
            raise ValueError(
                f"protocol.branches.depth = {branches.depth} must be at most the largest window, {largest}: "
                "no branch gets longer"
            )

    def _whole_cycles(self) -> None:
        """Check that the window covers whole cycles of a changing load."""
        load, window_s = self.workload.load, self.episode.window_s
        if window_s is None or len({value for _, value in load.points}) == 1:
            return
        cycles = window_s / load.period_s
        if round(cycles) < 1 or abs(cycles - round(cycles)) > 1e-9 * cycles:
            few = max(1, int(cycles))
            raise ValueError(
                f"episode.window_s = {window_s} is {cycles:.4g} cycles of the load (workload.load.period_s = "
                f"{load.period_s}), not a whole number: {few * load.period_s:g} or "
                f"{(few + 1) * load.period_s:g}"
            )

    @property
    def load_cycles(self) -> int:
        """Number of whole load cycles in the window; 0 if the load is constant or there is no window."""
        load, window_s = self.workload.load, self.episode.window_s
        if window_s is None or len({value for _, value in load.points}) == 1:
            return 0
        return round(window_s / load.period_s)

    def _fits(self) -> None:
        needed = self.kv_reservation_tokens(self.workload.max_prompt_tokens)
        window = max(self.actions.gammas) + 1
        for name, target in self.targets.items():
            if target.max_num_batched_tokens < window:
                raise ValueError(
                    f"targets.{name}.max_num_batched_tokens = {target.max_num_batched_tokens} cannot hold "
                    f"the longest verification: at least {window} (largest gamma + 1)"
                )
            if target.kv_capacity_tokens < needed:
                raise ValueError(
                    f"targets.{name}.kv_capacity_tokens = {target.kv_capacity_tokens} cannot hold the "
                    f"longest request: at least {needed} "
                    "(max_prompt_tokens + max_output_tokens + largest gamma + 1)"
                )
        if self.n_placements > MAX_PLACEMENTS:
            raise ValueError(
                f"actions.targets_offered = {self.actions.targets_offered} makes {self.n_placements} "
                f"placements with the drafters there are; at most {MAX_PLACEMENTS} are supported"
            )

    def kv_reservation_tokens(self, prompt_tokens: int) -> int:
        """Return the KV tokens that a request reserves at its target for its whole stay."""
        return prompt_tokens + self.workload.max_output_tokens + max(self.actions.gammas) + 1

    @property
    def streaming_models(self) -> frozenset[str]:
        """Draft models whose drafters can stream, which are those not on a target's own GPUs."""
        sites: list[DeviceClass | EdgeServer] = [*self.devices.values(), *self.edge_servers.values()]
        elsewhere = (drafter for site in sites for drafter in site.menu)
        beside = (drafter for target in self.targets.values() for drafter in target.menu)
        return frozenset(
            [drafter.model for drafter in elsewhere if drafter.kind == "model"]
            + [drafter.model for drafter in beside if drafter.mode == "dedicated"]
        )

    def hits(self, model: str) -> tuple[float, ...]:
        """Return, for each fan-out from 1, the probability that a model's branches hold the right token."""
        source = self.acceptance[model]
        return () if isinstance(source, TraceAcceptance) else source.hits

    @property
    def n_targets(self) -> int:
        """Number of target servers."""
        return sum(target.count for target in self.targets.values())

    @property
    def max_num_seqs(self) -> tuple[int, ...]:
        """Largest number of requests resident at a time, for each target server by number."""
        return tuple(target.max_num_seqs for target in self.targets.values() for _ in range(target.count))

    @property
    def n_edge_servers(self) -> int:
        """Number of edge servers."""
        return sum(edge.count for edge in self.edge_servers.values())

    @property
    def n_devices(self) -> int:
        """Number of client devices."""
        return sum(device.count for device in self.devices.values())

    @property
    def places(self) -> tuple[tuple[int, int, int, int], ...]:
        """The places to draft at for each offered target, in the order of the target's candidates.

        Each place is (site, edge server or -1, index of the drafter in its site's list, fan-out of branches):
        first the drafters at the target, then those on the own device, then those on each edge server. The
        edge server is a number, or, if `actions.edge_servers_offered` is set, a position in the order of
        those on offer. There are as many places for targets, and for devices, as the one with the most
        drafters has, at least one each (with that setting also for edge servers); the candidate of a place
        that a site lacks is never valid. If branches are offered, a place that can stream comes twice:
        without branches, then with branches.
        """
        targets, devices, edges = self.targets.values(), self.devices.values(), self.edge_servers.values()
        at_target = max(1, *(len(target.menu) for target in targets))
        on_device = max(1, *(len(device.menu) for device in devices))
        found = [(0, -1, rank, _may_stream(targets, rank)) for rank in range(at_target)]
        found += [(1, -1, rank, _may_stream(devices, rank)) for rank in range(on_device)]
        servers: list[Sequence[EdgeServer]] = [[edge] for edge in edges for _ in range(edge.count)]
        if self.edge_servers_ordered:
            servers = [list(edges)] * self.n_edge_servers_offered
        found += [
            (2, number, rank, _may_stream(at_place, rank))
            for number, at_place in enumerate(servers)
            for rank in range(max(len(edge.menu) for edge in at_place))
        ]
        fanout, offered = self.protocol.branches.fanout, self.actions.offer_branches
        places: list[tuple[int, int, int, int]] = []
        for site, edge, rank, streams in found:
            if offered and streams:
                places.append((site, edge, rank, 0))
            places.append((site, edge, rank, fanout if streams else 0))
        return tuple(places)

    @property
    def edge_servers_ordered(self) -> bool:
        """Whether edge servers are offered in an order that depends on the moment, instead of by number."""
        return self.actions.edge_servers_offered is not None and self.n_edge_servers > 0

    @property
    def n_edge_servers_offered(self) -> int:
        """Number of edge servers in every request's candidate list."""
        return min(self.actions.edge_servers_offered or self.n_edge_servers, self.n_edge_servers)

    @property
    def n_placements(self) -> int:
        """Length of every request's candidate list."""
        return min(self.actions.targets_offered, self.n_targets) * len(self.places)

    @property
    def has_menu(self) -> bool:
        """Whether any site has several drafters, or a drafter that is a draft head or a look-up."""
        devices, edges, targets = self.devices.values(), self.edge_servers.values(), self.targets.values()
        sites: list[DeviceClass | EdgeServer | Target] = [*devices, *edges, *targets]
        return any(len(site.menu) > 1 or any(d.kind != "model" for d in site.menu) for site in sites)


def _may_stream(sites: Iterable[DeviceClass | EdgeServer | Target], rank: int) -> bool:
    """Return whether the drafter with index ``rank`` in its site's list can stream, at any of some sites."""
    return any(
        drafter.kind == "model" and not (isinstance(drafter, ColocatedDrafter) and drafter.mode == "shared")
        for site in sites
        for drafter in site.menu[rank : rank + 1]
    )


_D = TypeVar("_D", Drafter, ColocatedDrafter)


def _keys_of(key: str, menu: tuple[_D, ...], is_list: bool) -> list[tuple[str, _D]]:
    """Return the drafters of a site, each with its key in the scenario's file."""
    return [(f"{key}s.{rank}" if is_list else key, drafter) for rank, drafter in enumerate(menu)]
