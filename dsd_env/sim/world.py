"""Builds the entities of one episode from a scenario and a seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dsd_env import rng
from dsd_env.acceptance import (
    AcceptanceSource,
    IidAcceptance,
    MarkovAcceptance,
    TraceReplay,
    load_pool,
    load_trace_set,
)
from dsd_env.latency import LatencyProfile, StepCoefficients
from dsd_env.latency.lookup import ProfileChoice, latency_profile, profile_overhead, target_overhead
from dsd_env.network import Channel, FaultMember, duplex, fault_members, load_series
from dsd_env.rng import Stream
from dsd_env.scenario import ScenarioError
from dsd_env.scenario.schema import (
    AcceptanceConfig,
    FittedAcceptance,
    IidAcceptanceConfig,
    MarkovAcceptanceConfig,
    ReplayArrivals,
    Scenario,
    TraceAcceptance,
)
from dsd_env.sim.capacity import plain_capacity_tokens_per_s
from dsd_env.sim.entities import Device, DrafterServer, StepTimer, TargetServer
from dsd_env.workload import replay_schedule


@dataclass(frozen=True)
class World:
    """The entities of one episode.

    Attributes:
        devices: Client devices by number.
        edges: Drafters of the edge servers by number.
        targets: Target servers by number.
        backhauls: (up, down) channels by edge server and target.
        sources: Acceptance source and its drafter by draft model.
        drafter_models: Draft model by drafter number.
        idle_w: Idle power of all targets and edge servers together.
    """

    devices: list[Device]
    edges: list[DrafterServer]
    targets: list[TargetServer]
    backhauls: list[list[tuple[Channel, Channel]]]
    sources: dict[str, tuple[AcceptanceSource, str]]
    drafter_models: dict[int, str]
    idle_w: float

    def colocated_number(self, target: int) -> int:
        """Return the number of the drafter at a target."""
        return len(self.devices) + len(self.edges) + target


def acceptance_source(config: AcceptanceConfig) -> tuple[AcceptanceSource, str]:
    """Return the source that a configuration names, and the name of the drafter in it."""
    match config:
        case TraceAcceptance():
            return TraceReplay(load_trace_set(config.trace)), config.drafter
        case FittedAcceptance():
            # Both engines treat a fitted model as one more recording.
            return TraceReplay(load_pool(config.model)), config.drafter
        case IidAcceptanceConfig():
            return _only(IidAcceptance(config.alpha))
        case MarkovAcceptanceConfig():
            return _only(MarkovAcceptance(config.after_match, config.after_mismatch))


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
        what = "fitted model" if isinstance(scenario.acceptance[model], FittedAcceptance) else "recording"
        if drafter not in source.drafters:
            raise ScenarioError(
                f"scenario {scenario.name!r}: acceptance.{model}.drafter = {drafter!r} is not in the "
                f"{what}, which has {list(source.drafters)}"
            )
        for name, request_class in scenario.workload.kinds.items():
            unknown = [kind for kind in request_class.acceptance_kinds if kind not in source.kinds]
            if source.kinds and unknown:
                raise ScenarioError(
                    f"scenario {scenario.name!r}: workload.kinds.{name}.acceptance_kinds = {unknown} is not "
                    f"in the {what} of {model!r}, which has {list(source.kinds)}"
                )


def idle_w(scenario: Scenario) -> float:
    """Return the idle power of all edge servers, targets and dedicated drafters together."""
    edges = [edge.power.idle_w for edge in scenario.edge_servers.values() for _ in range(edge.count)]
    targets = [target.power.idle_w for target in scenario.targets.values() for _ in range(target.count)]
    drafters = [
        target.colocated_drafter.power.idle_w
        for target in scenario.targets.values()
        for _ in range(target.count)
        if target.colocated_drafter is not None and target.colocated_drafter.mode == "dedicated"
    ]
    total_w = sum(edges)
    total_w += sum(targets)
    total_w += sum(drafters)
    return total_w


def _drafter_timer(choice: ProfileChoice, max_tokens: int) -> StepTimer:
    """Return the step times of a drafter: of its kernels, and of what its engine adds to each pass."""
    profile = latency_profile(choice)
    return StepTimer(profile, max_tokens, pass_s=profile_overhead(profile).per_draft_pass_s)


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
        self.sources = {model: acceptance_source(config) for model, config in scenario.acceptance.items()}
        _check_kinds(scenario, self.sources)
        longest = scenario.workload.max_prompt_tokens + scenario.workload.max_output_tokens
        self._draft_tokens = longest + 256
        self.faults = fault_members(scenario)
        self.series = {
            name: load_series(link.replay.file) for name, link in scenario.links.items() if link.replay
        }
        self.schedule = (
            replay_schedule(scenario) if isinstance(scenario.workload.arrivals, ReplayArrivals) else None
        )
        self._profiles: dict[int, LatencyProfile | StepCoefficients] = {}
        self.target_timers: list[tuple[StepTimer, StepTimer | None]] = []
        for target in scenario.targets.values():
            most = max(target.max_num_batched_tokens, *target.graph_batch_tokens, 0)
            timer = StepTimer(latency_profile(target.profile), most, target_overhead(target))
            drafter = target.colocated_drafter
            colocated = None
            if drafter is not None:
                # One draft pass can process the KV lag of a whole batch.
                colocated = _drafter_timer(drafter.profile, max(most, 8 * longest))
            self.target_timers.append((timer, colocated))
        self.device_timers = [
            _drafter_timer(device.drafter.profile, self._draft_tokens) if device.drafter else None
            for device in scenario.devices.values()
        ]
        self.edge_timers = [
            _drafter_timer(edge.drafter.profile, self._draft_tokens)
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
        models: dict[int, str] = {}
        devices: list[Device] = []
        for config, base in zip(scenario.devices.values(), self.device_timers, strict=True):
            for _ in range(config.count):
                number = len(devices)
                faults = self._hitting("device", number)
                device_drafter = None
                if config.drafter is not None and base is not None:
                    low, high = config.speed_spread
                    speed = low + (high - low) * rng.uniform(seed, Stream.DEVICE_SPREAD, number, 0)
                    drafter = config.drafter
                    device_drafter = DrafterServer(
                        number,
                        f"device:{number}",
                        base.scaled(speed),
                        drafter.concurrency,
                        drafter.kv_capacity_tokens,
                        config.power,
                    )
                    models[number] = drafter.model
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
                        device_drafter,
                        config.radio_joules_per_byte,
                        up.one_way_s + down.one_way_s,
                    )
                )
        edges: list[DrafterServer] = []
        for edge, timer in zip(scenario.edge_servers.values(), self.edge_timers, strict=True):
            for _ in range(edge.count):
                number = len(devices) + len(edges)
                drafter = edge.drafter
                edges.append(
                    DrafterServer(
                        number,
                        f"edge:{len(edges)}",
                        timer,
                        drafter.concurrency,
                        drafter.kv_capacity_tokens,
                        edge.power,
                        edge.gpus,
                        edge.price_usd_per_gpu_hour,
                    )
                )
                models[number] = drafter.model
        targets: list[TargetServer] = []
        for target, (timer, colocated) in zip(scenario.targets.values(), self.target_timers, strict=True):
            for _ in range(target.count):
                number = len(devices) + len(edges) + len(targets)
                own = target.colocated_drafter
                dedicated = None
                if own is not None:
                    models[number] = own.model
                    if own.mode == "dedicated" and colocated is not None:
                        dedicated = DrafterServer(
                            number,
                            f"draft:{len(targets)}",
                            colocated,
                            own.concurrency,
                            1 << 30,
                            own.power,
                            own.gpus,
                            target.price_usd_per_gpu_hour,
                        )
                shared = colocated if own is not None and own.mode == "shared" else None
                targets.append(TargetServer(len(targets), target, timer, shared, dedicated))
        return World(
            devices,
            edges,
            targets,
            self._backhauls(seed, len(targets)),
            self.sources,
            models,
            idle_w(scenario),
        )

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
