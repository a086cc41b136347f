"""Builds the entities of one episode from a scenario and a seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from dsd_env import rng
from dsd_env.acceptance import (
    AcceptanceSource,
    IidAcceptance,
    MarkovAcceptance,
    TraceError,
    TraceReplay,
    load_pool,
    load_trace_set,
)
from dsd_env.control.view import DrafterKind
from dsd_env.latency.lookup import latency_profile, profile_overhead, target_overhead
from dsd_env.network import Channel, FaultMember, duplex, fault_members, load_series
from dsd_env.rng import Stream
from dsd_env.scenario import ScenarioError
from dsd_env.scenario.schema import (
    AcceptanceConfig,
    ColocatedDrafter,
    Drafter,
    FittedAcceptance,
    IidAcceptanceConfig,
    MarkovAcceptanceConfig,
    Power,
    ReplayArrivals,
    Scenario,
    Target,
    TraceAcceptance,
)
from dsd_env.sim.capacity import plain_capacity_tokens_per_s
from dsd_env.sim.entities import Device, DrafterServer, SiteDrafter, StepTimer, TargetServer
from dsd_env.workload import Schedule, load_trace, replay_schedule

UNLIMITED_TOKENS = 1 << 30
"""KV capacity of a drafter at a target: its KV comes out of the target's memory."""
_NO_POWER = Power(idle_w=0.0, busy_w=0.0)


@dataclass(frozen=True)
class World:
    """The entities of one episode.

    Attributes:
        devices: Client devices by number.
        edges: Drafters of each edge server, by its number.
        targets: Target servers by number.
        backhauls: (up, down) channels by edge server and target.
        sources: Acceptance source and its drafter by draft model.
        drafters: Every drafter by its number.
        idle_w: Idle power of all targets and edge servers together.
    """

    devices: list[Device]
    edges: list[tuple[SiteDrafter, ...]]
    targets: list[TargetServer]
    backhauls: list[list[tuple[Channel, Channel]]]
    sources: dict[str, tuple[AcceptanceSource, str]]
    drafters: dict[int, SiteDrafter]
    idle_w: float

    @property
    def n_sites(self) -> int:
        """Number of devices, edge servers and targets together."""
        return len(self.devices) + len(self.edges) + len(self.targets)


def acceptance_source(config: AcceptanceConfig) -> tuple[AcceptanceSource, str]:
    """Return the source that a configuration names, and the name of the drafter in it."""
    match config:
        case TraceAcceptance():
            return TraceReplay(load_trace_set(config.trace)), config.drafter
        case FittedAcceptance():
            # Both engines treat a model as one more recording.
            return TraceReplay(load_pool(config.model)), config.drafter
        case IidAcceptanceConfig():
            return _only(IidAcceptance(config.alpha))
        case MarkovAcceptanceConfig():
            return _only(MarkovAcceptance(config.after_match, config.after_mismatch))


def _source(scenario: Scenario, model: str) -> tuple[AcceptanceSource, str]:
    """Return the source of a draft model's acceptance; errors name the key that asks for it."""
    try:
        return acceptance_source(scenario.acceptance[model])
    except TraceError as error:
        raise TraceError(f"{scenario.where}: acceptance.{model}: {error}") from error


def _only(source: AcceptanceSource) -> tuple[AcceptanceSource, str]:
    """Return a synthetic source with the one drafter that it knows."""
    return source, source.drafters[0]


def _check_kinds(scenario: Scenario, sources: dict[str, tuple[AcceptanceSource, str]]) -> None:
    """Check that the recordings and fitted models contain what the scenario asks of them.

    The scenario's schema cannot check this, because it does not load them.

    Raises:
        ScenarioError: A drafter or a kind of request is not in the recording or model.
    """
    for model, (source, drafter) in sources.items():
        config = scenario.acceptance[model]
        what = f"{config.source} model" if isinstance(config, FittedAcceptance) else "recording"
        if isinstance(config, FittedAcceptance) and source.label != config.source:
            raise ScenarioError(
                f"{scenario.where}: acceptance.{model}.source = {config.source!r}, but the model "
                f"{config.model!r} is {source.label}"
            )
        if drafter not in source.drafters:
            raise ScenarioError(
                f"{scenario.where}: acceptance.{model}.drafter = {drafter!r} is not in the "
                f"{what}, which has {list(source.drafters)}"
            )
        for name, request_class in scenario.workload.kinds.items():
            unknown = [kind for kind in request_class.acceptance_kinds if kind not in source.kinds]
            if source.kinds and unknown:
                raise ScenarioError(
                    f"{scenario.where}: workload.kinds.{name}.acceptance_kinds = {unknown} is not "
                    f"in the {what} of {model!r}, which has {list(source.kinds)}"
                )


def _check_recorded(
    scenario: Scenario, sources: dict[str, tuple[AcceptanceSource, str]], schedule: Schedule | None
) -> None:
    """Check that the recordings have the requests that a replayed trace names.

    Raises:
        ScenarioError: A recording lacks one, or no recording is replayed.
    """
    if schedule is None or not schedule.recordings:
        return
    arrivals = scenario.workload.arrivals
    assert isinstance(arrivals, ReplayArrivals)
    replayed = {
        model: source.names
        for model, (source, _) in sources.items()
        if isinstance(source, TraceReplay) and source.names
    }
    fault = "" if replayed else "no acceptance of the scenario is a recording (source: trace)"
    name = schedule.recordings[0]
    for model, names in replayed.items():
        unknown = [one for one in schedule.recordings if one not in names]
        if unknown and not fault:
            name = unknown[0]
            config = scenario.acceptance[model]
            assert isinstance(config, TraceAcceptance)
            fault = (
                f"is not a request of the recording {config.trace} (acceptance.{model}), whose {len(names)} "
                f"are {', '.join(list(names)[:3])}, ..."
            )
    if fault:
        whole = load_trace(arrivals.trace, trust_units=arrivals.trust_units)
        assert whole.recorded is not None  # a part of it has names
        row = int((whole.recorded == whole.recordings.index(name)).argmax()) + 1
        raise ScenarioError(
            f"{scenario.where}: {arrivals.trace}, request {row}: recorded = {name!r}: {fault}"
        )


def _check_branches(scenario: Scenario, sources: dict[str, tuple[AcceptanceSource, str]]) -> None:
    """Check that it is known of every draft model that streams how often branches hold the right token.

    Raises:
        ScenarioError: It is not, for the fan-out asked for.
    """
    fanout = scenario.protocol.branches.fanout
    if fanout == 0:
        return
    for model in sorted(scenario.streaming_models):
        source, drafter = sources[model]
        where = f"{scenario.where}: protocol.branches.fanout = {fanout}: acceptance.{model}"
        if isinstance(source, TraceReplay) and isinstance(scenario.acceptance[model], TraceAcceptance):
            columns = source.trace.drafters[drafter]
            if columns.run_length is not None:
                raise ScenarioError(
                    f"{where} is a recording of a drafter whose proposals depend on where it starts; such a "
                    "drafter has no branches: set fanout = 0"
                )
            if columns.rank is not None:
                continue
            raise ScenarioError(
                f"{where} is a recording of format 1, which has no ranks of the right tokens among the "
                "drafter's: record the pair anew (python scripts/record_traces.py), or set fanout = 0"
            )
        if len(scenario.hits(model)) < fanout:
            raise ScenarioError(
                f"{where}.hits = {list(scenario.hits(model))} must hold at least {fanout} probabilities "
                "(0..1), one for each fan-out from 1"
            )


def idle_w(scenario: Scenario) -> float:
    """Return the idle power of all edge servers, targets and dedicated drafters together."""
    edges = [edge.power.idle_w for edge in scenario.edge_servers.values() for _ in range(edge.count)]
    targets = [target.power.idle_w for target in scenario.targets.values() for _ in range(target.count)]
    drafters = [
        drafter.power.idle_w
        for target in scenario.targets.values()
        for _ in range(target.count)
        for drafter in target.menu
        if drafter.mode == "dedicated"
    ]
    total_w = sum(edges)
    total_w += sum(targets)
    total_w += sum(drafters)
    return total_w


def kind_of(config: Drafter | ColocatedDrafter) -> DrafterKind:
    """Return what proposes at a drafter."""
    return DrafterKind[config.kind.upper()]


def draft_timer(config: Drafter | ColocatedDrafter, most_tokens: int) -> StepTimer:
    """Return the times of a drafter's steps, tabulated up to so many new tokens.

    They are those of its kernels, and what its engine adds to each pass.
    """
    if config.lookup is not None:
        return StepTimer.of_lookup(config.lookup, most_tokens)
    assert config.profile is not None  # as the schema requires
    profile = latency_profile(config.profile)
    timer = StepTimer(profile, most_tokens, pass_s=profile_overhead(profile).per_draft_pass_s)
    if isinstance(config, Drafter):
        timer.per_generation_s = config.per_generation_s
        timer.draft_noise_sigma = config.draft_noise_sigma
    return timer


class WorldBuilder:
    """Builds worlds of one scenario; what does not depend on the seed is built once."""

    def __init__(self, scenario: Scenario) -> None:
        """Load the profiles and traces that the scenario names.

        Raises:
            ProfileError: A latency profile is missing or invalid.
            TraceError: A trace set or a fitted model is missing or invalid.
            RequestTraceError: A trace of requests is missing or invalid.
            ScenarioError: The scenario asks for what a trace set does not have.
        """
        self.scenario = scenario
        self.sources = {model: _source(scenario, model) for model in scenario.acceptance}
        _check_kinds(scenario, self.sources)
        longest = scenario.workload.max_prompt_tokens + scenario.workload.max_output_tokens
        branches = scenario.protocol.branches
        _check_branches(scenario, self.sources)
        # One step can process the branches of all that a drafter serves.
        self._draft_tokens = longest + 256 + 256 * branches.fanout * branches.depth
        self.faults = fault_members(scenario)
        self.series = {
            name: load_series(link.replay.file) for name, link in scenario.links.items() if link.replay
        }
        self.schedule = (
            replay_schedule(scenario) if isinstance(scenario.workload.arrivals, ReplayArrivals) else None
        )
        _check_recorded(scenario, self.sources, self.schedule)
        self.target_timers: list[tuple[StepTimer, tuple[StepTimer, ...]]] = []
        for target in scenario.targets.values():
            most = max(target.max_num_batched_tokens, *target.graph_batch_tokens, 0)
            timer = StepTimer(latency_profile(target.profile), most, target_overhead(target))
            # One draft pass can process the KV lag of a whole batch.
            tokens = max(most, 8 * longest, self._draft_tokens if branches.fanout else 0)
            own = tuple(draft_timer(drafter, tokens) for drafter in target.menu)
            self.target_timers.append((timer, own))
        self.device_timers = [
            tuple(draft_timer(drafter, self._draft_tokens) for drafter in device.menu)
            for device in scenario.devices.values()
        ]
        self.edge_timers = [
            tuple(draft_timer(drafter, self._draft_tokens) for drafter in edge.menu)
            for edge in scenario.edge_servers.values()
        ]

    @functools.cached_property
    def capacity_tokens_per_s(self) -> float:
        """Saturated capacity of plain decoding; see :mod:`dsd_env.sim.capacity`."""
        timers = [timer for timer, _ in self.target_timers]
        return plain_capacity_tokens_per_s(self.scenario, timers, self.schedule)

    def __deepcopy__(self, memo: object) -> WorldBuilder:
        # A builder never changes, so copies of the objects that hold it share it.
        return self

    def build(self, seed: int) -> World:
        """Return fresh entities for one episode seed."""
        scenario = self.scenario
        devices: list[Device] = []
        for config, bases in zip(scenario.devices.values(), self.device_timers, strict=True):
            for _ in range(config.count):
                number = len(devices)
                faults = self._hitting("device", number)
                low, high = config.speed_spread
                speed = low + (high - low) * rng.uniform(seed, Stream.DEVICE_SPREAD, number, 0)
                timers = [base.scaled(speed) for base in bases]
                drafters = self._on_one_server(number, f"device:{number}", config.menu, timers, config.power)
                up, down = self._duplex(config.link, seed, 2 * number, faults)
                edge_up = edge_down = None
                if config.edge_link is not None:
                    edge_up, edge_down = self._duplex(config.edge_link, seed, 2 * number + 1, faults)
                devices.append(
                    Device(
                        number,
                        up,
                        down,
                        edge_up,
                        edge_down,
                        drafters,
                        config.radio_joules_per_byte,
                        up.one_way_s + down.one_way_s,
                    )
                )
        edges: list[tuple[SiteDrafter, ...]] = []
        for edge, edge_timers in zip(scenario.edge_servers.values(), self.edge_timers, strict=True):
            for _ in range(edge.count):
                number, lane = len(devices) + len(edges), f"edge:{len(edges)}"
                price = edge.price_usd_per_gpu_hour
                edges.append(
                    self._on_one_server(number, lane, edge.menu, edge_timers, edge.power, edge.gpus, price)
                )
        targets: list[TargetServer] = []
        for target, (timer, own_timers) in zip(scenario.targets.values(), self.target_timers, strict=True):
            for _ in range(target.count):
                own = self._at_target(len(targets), len(devices) + len(edges), target, own_timers)
                targets.append(TargetServer(len(targets), target, timer, own))
        sites = [*(device.drafters for device in devices), *edges, *(target.drafters for target in targets)]
        return World(
            devices,
            edges,
            targets,
            self._backhauls(seed, len(targets)),
            self.sources,
            {drafter.number: drafter for drafters in sites for drafter in drafters},
            idle_w(scenario),
        )

    def _number(self, site: int, rank: int) -> int:
        """Return the number of a drafter by its site's and its place in the site's list."""
        scenario = self.scenario
        return rank * (scenario.n_devices + scenario.n_edge_servers + scenario.n_targets) + site

    def _on_one_server(
        self,
        site: int,
        lane: str,
        menu: Sequence[Drafter],
        timers: Sequence[StepTimer],
        power: Power,
        gpus: float = 0.0,
        price_usd_per_gpu_hour: float = 0.0,
    ) -> tuple[SiteDrafter, ...]:
        """Return the drafters of a device or an edge server; its draft models share the hardware."""
        models: DrafterServer | None = None
        drafters = []
        for rank, (config, timer) in enumerate(zip(menu, timers, strict=True)):
            if config.kind == "lookup":
                server = DrafterServer(f"{lane}:{config.model}", timer, _NO_POWER)
            elif models is None:
                server = models = DrafterServer(lane, timer, power, gpus, price_usd_per_gpu_hour)
            else:
                server = models
            drafters.append(
                SiteDrafter(
                    self._number(site, rank),
                    kind_of(config),
                    config.model,
                    timer,
                    config.concurrency,
                    config.kv_capacity_tokens,
                    server,
                )
            )
        return tuple(drafters)

    def _at_target(
        self, number: int, first: int, target: Target, timers: Sequence[StepTimer]
    ) -> tuple[SiteDrafter, ...]:
        """Return the drafters at a target; a dedicated one has GPUs of its own."""
        drafters = []
        for rank, (config, timer) in enumerate(zip(target.menu, timers, strict=True)):
            server = None
            if config.mode == "dedicated":
                lane = f"draft:{number}" if rank == 0 else f"draft:{number}:{config.model}"
                server = DrafterServer(lane, timer, config.power, config.gpus, target.price_usd_per_gpu_hour)
            drafters.append(
                SiteDrafter(
                    self._number(first + number, rank),
                    kind_of(config),
                    config.model,
                    timer,
                    config.concurrency,
                    UNLIMITED_TOKENS,
                    server,
                )
            )
        return tuple(drafters)

    def _backhauls(self, seed: int, n_targets: int) -> list[list[tuple[Channel, Channel]]]:
        first = 2 * self.scenario.n_devices
        rows: list[list[tuple[Channel, Channel]]] = []
        for edge in self.scenario.edge_servers.values():
            for _ in range(edge.count):
                numbers = range(first + len(rows) * n_targets, first + (len(rows) + 1) * n_targets)
                faults = self._hitting("edge", len(rows))
                rows.append([self._duplex(edge.backhaul, seed, number, faults) for number in numbers])
        return rows

    def _hitting(self, site: str, entity: int) -> list[FaultMember]:
        """Return the faults that hit the links of a device or of an edge server."""
        return [member for member in self.faults if (member.site, member.entity) == (site, entity)]

    def _duplex(
        self, link: str, seed: int, number: int, faults: list[FaultMember]
    ) -> tuple[Channel, Channel]:
        weight = self.scenario.protocol.stats_window
        return duplex(
            self.scenario.links[link],
            seed,
            number,
            series=self.series.get(link),
            faults=faults,
            weight=weight,
        )
