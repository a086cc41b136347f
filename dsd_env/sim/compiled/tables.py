"""From a scenario to the tables of the compiled engine: its constants, a world before its seed is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.due import DUE_FIELDS
from dsd_env.control.rewards import TERMS
from dsd_env.laws import constants, step_times, variates
from dsd_env.network import fault_members
from dsd_env.scenario.schema import (
    ClosedLoop,
    ColocatedDrafter,
    Constant,
    Drafter,
    Exponential,
    Geometric,
    LogNormal,
    Poisson,
    Power,
    Quantiles,
    Renewal,
    Scenario,
)
from dsd_env.scenario.variates import quantile_table
from dsd_env.sim.compiled import codes
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.buffer import Buffer, Rows
from dsd_env.sim.compiled.table_acceptance import write_acceptance
from dsd_env.sim.compiled.table_arrivals import write_load, write_renewal, write_schedule
from dsd_env.sim.compiled.table_links import write_channels
from dsd_env.sim.compiled.table_writer import Writer
from dsd_env.sim.entities import StepTimer
from dsd_env.sim.iteration import padded_tokens
from dsd_env.sim.metrics import boundaries_s, growth_per_s
from dsd_env.sim.reference import NOT_YET
from dsd_env.sim.reference.stopping import rule_of
from dsd_env.sim.world import UNLIMITED_TOKENS, WorldBuilder, idle_w, kind_of

Bytes = NDArray[np.uint8]

SITES = {"device": codes.AT_DEVICE, "edge": codes.AT_EDGE, "target": codes.AT_TARGET}


@dataclass(frozen=True)
class Layout:
    """A scenario compiled to tables.

    Attributes:
        scenario: The scenario.
        constants: What no episode changes; it begins with a ``SCENARIO`` record. Nobody writes to it.
        bytes_per_world: Bytes of address space per world; what comes after the state is touched only as far
            as it is used.
        state_bytes: Bytes of the state. The queue of events, the tables and the logs follow.
        n_features: Length of an observation.
        n_mask: Length of an action mask.
        capacity_tokens_per_s: Saturated capacity of plain decoding.
    """

    scenario: Scenario
    constants: Bytes
    bytes_per_world: int
    state_bytes: int
    n_features: int
    n_mask: int
    capacity_tokens_per_s: float

    def __deepcopy__(self, memo: object) -> Layout:
        # Nobody writes to it, so that copies of a world can share it.
        return self

    @property
    def header(self) -> Any:
        """The scenario's record."""
        return self.constants[: rec.SCENARIO.itemsize].view(rec.SCENARIO.dtype)[0]

    def new_worlds(self, n: int) -> Bytes:
        """Return room for worlds, shape (n, bytes_per_world); each must be reset before it is used."""
        return np.zeros((n, self.bytes_per_world), dtype=np.uint8)


def compile_scenario(
    scenario: Scenario,
    builder: WorldBuilder | None = None,
    *,
    max_active_requests: int | None = None,
    heap_events: int | None = None,
    log_events: int = 0,
    keep_deliveries: bool = True,
) -> Layout:
    """Compile a scenario into tables.

    Args:
        scenario: The scenario.
        builder: Builder of its worlds, to load profiles and traces only once.
        max_active_requests: Most requests in the system at once. Default: twice the number of devices and 64
            more in a closed loop, where it cannot be reached but by drafters that never catch up; 4,096 in an
            open system.
        heap_events: Most scheduled events.
        log_events: Room for recorded events between two decisions; 0 records none.
        keep_deliveries: Keep when tokens arrive, which the metrics of inter-token latency need.

    Raises:
        NotImplementedError: An acceptance source is one that only the reference engine knows.
    """
    compiler = Compiler(scenario, builder or WorldBuilder(scenario))
    compiler.constants()
    return compiler.layout(max_active_requests, heap_events, log_events, keep_deliveries)


class Compiler(Writer):
    """Fills the tables of one scenario."""

    def __init__(self, scenario: Scenario, builder: WorldBuilder) -> None:
        super().__init__(scenario, builder)
        self.n_devices = scenario.n_devices
        self.n_edges = sum(edge.count for edge in scenario.edge_servers.values())
        self.n_targets = scenario.n_targets
        self.n_sites = self.n_devices + self.n_edges + self.n_targets
        self.n_ranks = 1 + max(rank for _, _, rank, _ in scenario.places)
        members = fault_members(scenario)
        self.crashing = [member for member in members if member.crashes]
        self.faults = self.crashing + [member for member in members if not member.crashes]
        self.models = {name: number for number, name in enumerate(scenario.acceptance)}
        self.fault_rows: Rows
        self.channels_of_rates: list[int] = []
        self.n_breaks_of_rates: list[int] = []

    # ------------------------------------------------------------------ constants

    def constants(self) -> None:
        """Write all constants but those of the world's size."""
        self._header()
        self._fault_table()
        self._drafters()
        self._targets()
        self.channels_of_rates, self.n_breaks_of_rates = write_channels(self, self.faults, self.fault_rows)
        self._workload()
        write_acceptance(self)
        self._terms()

    def _header(self) -> None:
        scenario, protocol, actions = self.scenario, self.scenario.protocol, self.scenario.actions
        space = ActionSpace.of(scenario)
        total = scenario.episode.total_requests
        if self.builder.schedule is not None:
            total = self.builder.schedule.total(total)
        if (stop := rule_of(protocol)) is not None:
            self.k_header["stop"] = (stop.kind, stop.least, stop.keeps, stop.threshold)
        self.set(
            n_devices=self.n_devices,
            n_edges=self.n_edges,
            n_targets=self.n_targets,
            n_sites=self.n_sites,
            n_ranks=self.n_ranks,
            n_drafters=self.n_ranks * self.n_sites,
            n_places=scenario.n_placements,
            n_offered=min(actions.targets_offered, self.n_targets),
            n_edges_offered=scenario.n_edge_servers_offered,
            edges_ordered=scenario.edge_servers_ordered,
            n_models=len(self.models),
            n_kinds=len(scenario.workload.kinds),
            n_gammas=len(space.windows),
            n_stops=len(space.stop_thresholds),
            n_batches=len(actions.batch_sizes),
            n_valid=self.n_ranks * (1 + self.n_edges + self.n_targets),
            n_crashes=len(self.crashing),
            ring=constants.REPORTS_KEPT,
            gamma_max=max(actions.gammas),
            plain_chunk_tokens=protocol.plain_chunk_tokens,
            max_prompt_tokens=scenario.workload.max_prompt_tokens,
            max_output_tokens=scenario.workload.max_output_tokens,
            by_number=scenario.episode.window_s is None,
            n_boundaries=len(boundaries_s(scenario)),
            n_classes=len(scenario.slo),
            attainment_weight=min(1.0, protocol.telemetry_period_s / constants.ATTAINMENT_TIME_CONSTANT_S),
            total=-1 if total is None else total,
            pipelined=protocol.kind == "pipelined",
            streaming=protocol.kind == "streaming",
            stream_waits=protocol.stream_idle == "wait",
            stream_chunk_tokens=protocol.stream_chunk_tokens,
            fanout=protocol.branches.fanout,
            depth=protocol.branches.depth,
            offers_branches=scenario.actions.offer_branches,
            token_acks=protocol.token_acks,
            horizon_s=scenario.episode.horizon_s,
            header_bytes=protocol.header_bytes,
            bytes_per_token=protocol.bytes_per_token,
            bytes_per_draft_token=protocol.bytes_per_draft_token,
            decision_latency_s=protocol.decision_latency_s,
            telemetry_period_s=protocol.telemetry_period_s,
            stats_weight=protocol.stats_window,
            rate_weight=min(1.0, protocol.telemetry_period_s / constants.RATE_TIME_CONSTANT_S),
            egress_usd_per_gigabyte=scenario.egress_usd_per_gigabyte,
            idle_w=idle_w(scenario),
            patience_s=protocol.patience_s or 0.0,
            client_timeout_s=protocol.client_timeout_s or 0.0,
            crash_detection_s=protocol.crash_detection_s,
        )
        self.k.point("gammas", self.buffer.numbers(space.windows, "i4"))
        self.k.point("stop_thresholds", self.buffer.numbers(space.stop_thresholds, "f8"))
        self.k.point("boundaries_s", self.buffer.numbers(boundaries_s(scenario), "f8"))
        self.k.point("batch_sizes", self.buffer.numbers(actions.batch_sizes, "i4"))

    def _fault_table(self) -> None:
        rows = self.fault_rows = self.buffer.rows(rec.FAULT_SPEC, len(self.faults))
        for i, member in enumerate(self.faults):
            fault = member.fault
            rows.set(
                i,
                number=member.number,
                site=SITES[member.site],
                entity=member.entity,
                is_random=fault.mean_interval_s is not None,
                n_times=len(fault.at_s),
                mean_interval_s=fault.mean_interval_s or 0.0,
                bandwidth_factor=member.bandwidth_factor,
            )
            rows.point("at_s", self.buffer.numbers(fault.at_s, "f8"), i)
            self._law(rows, "duration_s", fault.duration_s, i)
        self.k.point("faults", rows.at)

    def _law(
        self,
        rows: Rows,
        field: str,
        law: Constant | LogNormal | Exponential | Geometric | Quantiles,
        i: int = 0,
    ) -> None:
        """Write a law of variates; see :mod:`dsd_env.laws.variates`."""
        row = rows.array[field][i : i + 1]
        if isinstance(law, Constant):
            row["code"], row["a"] = variates.CONSTANT, law.value
        elif isinstance(law, Exponential):
            row["code"], row["a"] = variates.EXPONENTIAL, law.mean
        elif isinstance(law, Geometric):
            row["code"], row["a"] = variates.GEOMETRIC, law.mean
            row["b"] = 0.0 if law.mean == 1.0 else math.log(1.0 - 1.0 / law.mean)
        elif isinstance(law, LogNormal):
            row["code"], row["a"], row["b"] = variates.LOG_NORMAL, law.median, law.sigma
            row["low"], row["high"] = law.low, law.high
        else:
            table = quantile_table(law)
            row["code"], row["pieces"] = variates.QUANTILES, len(table.slopes)
            for name in ("scores", "logs", "slopes"):
                rows.point((field, name), self.buffer.numbers(getattr(table, name), "f8"), i)

    def _timer(self, rows: Rows, i: int, timer: StepTimer) -> None:
        """Write step times: coefficients, and the table of compute times, which is kept once."""
        rows.point("compute_s", self.once(id(timer.compute_s), timer.compute_s, "f8"), i)
        rows.set(
            i,
            length=len(timer.compute_s),
            k_bw_s=timer.k_bw_s,
            k_multi_s=timer.k_multi_s,
            k_lat_s=timer.k_lat_s,
        )

    def _drafters(self) -> None:
        scenario, builder = self.scenario, self.builder
        devices = self.buffer.rows(rec.DEVICE_SPEC, self.n_devices)
        rows = self.buffer.rows(rec.DRAFTER_SPEC, self.n_ranks * self.n_sites)
        rows.array["concurrency"] = 1
        rows.array["speed_low"] = rows.array["speed_high"] = 1.0
        n = 0

        def drafter(
            config: Drafter | ColocatedDrafter,
            timer: StepTimer,
            rank: int,
            mode: int,
            kv: int,
            **other: float,
        ) -> None:
            number = rank * self.n_sites + n
            self._timer(rows, number, timer)
            rows.set(
                number,
                mode=mode,
                kind=kind_of(config),
                host=number,
                per_round=timer.per_round,
                verify_share=timer.verify_share,
                per_generation_s=timer.per_generation_s,
                draft_noise_sigma=timer.draft_noise_sigma,
                concurrency=config.concurrency if mode == codes.DRAFTS_ALONE else 1,
                kv_capacity_tokens=kv,
                model=self.models[config.model],
                **other,
            )

        def on_one_server(
            menu: Sequence[Drafter], timers: Sequence[StepTimer], power: Power, **other: float
        ) -> None:
            """Write the drafters of a device or an edge server; its draft models share the hardware."""
            host = -1
            for rank, (config, timer) in enumerate(zip(menu, timers, strict=True)):
                number = rank * self.n_sites + n
                drafter(config, timer, rank, codes.DRAFTS_ALONE, config.kv_capacity_tokens, **other)
                if config.kind == "lookup":
                    rows.set(number, gpus=0.0)
                    continue
                host = number if host < 0 else host
                rows.set(number, host=host, busy_w=power.busy_w, idle_w=power.idle_w)

        for config, timers in zip(scenario.devices.values(), builder.device_timers, strict=True):
            link = scenario.links[config.link]
            for _ in range(config.count):
                devices.set(
                    n,
                    has_edge_link=config.edge_link is not None,
                    radio_joules_per_byte=config.radio_joules_per_byte,
                    uplink_bits_per_s=link.uplink_bits_per_s,
                    downlink_bits_per_s=link.downlink_bits_per_s,
                )
                low, high = config.speed_spread
                on_one_server(config.menu, timers, config.power, speed_low=low, speed_high=high)
                n += 1
        for edge, edge_timers in zip(scenario.edge_servers.values(), builder.edge_timers, strict=True):
            price = edge.price_usd_per_gpu_hour
            for _ in range(edge.count):
                on_one_server(
                    edge.menu, edge_timers, edge.power, gpus=edge.gpus, price_usd_per_gpu_hour=price
                )
                n += 1
        for target, (_, own_timers) in zip(scenario.targets.values(), builder.target_timers, strict=True):
            for _ in range(target.count):
                for rank, (own, timer) in enumerate(zip(target.menu, own_timers, strict=True)):
                    if own.mode == "shared":
                        drafter(own, timer, rank, codes.DRAFTS_SHARED, 0)
                        continue
                    drafter(
                        own,
                        timer,
                        rank,
                        codes.DRAFTS_ALONE,
                        UNLIMITED_TOKENS,
                        busy_w=own.power.busy_w,
                        idle_w=own.power.idle_w,
                        gpus=own.gpus,
                        price_usd_per_gpu_hour=target.price_usd_per_gpu_hour,
                    )
                n += 1
        places = self.buffer.rows(rec.PLACE_SPEC, len(scenario.places))
        for i, (site, edge_server, rank, fanout) in enumerate(scenario.places):
            places.set(i, site=site, edge_server=edge_server, rank=rank, fanout=fanout)
        self.k.point("places", places.at)
        self.k.point("devices", devices.at)
        self.k.point("drafters", rows.at)

    def _targets(self) -> None:
        rows = self.buffer.rows(rec.TARGET_SPEC, self.n_targets)
        n = 0
        for config, (timer, _) in zip(
            self.scenario.targets.values(), self.builder.target_timers, strict=True
        ):
            captured, length = config.graph_batch_tokens, len(timer.compute_s)
            chunk = config.max_num_batched_tokens
            for _ in range(config.count):
                self._timer(rows, n, timer)
                rows.set(
                    n,
                    max_num_seqs=config.max_num_seqs,
                    max_num_batched_tokens=chunk,
                    kv_capacity_tokens=config.kv_capacity_tokens,
                    prefill_first=config.order == "prefill_first",
                    shortest_first=config.within_class == "shortest_first",
                    preempts=config.kv_policy == "preempt",
                    caches_prefixes=config.prefix_cache,
                    pads=bool(captured),
                    max_batch_wait_s=config.max_batch_wait_s,
                    max_admission_wait_s=config.max_admission_wait_s,
                    prefill_token_s=step_times.prefill_token_s(timer, chunk),
                    per_iteration_s=timer.per_iteration_s,
                    per_sequence_s=timer.per_sequence_s,
                    per_token_s=timer.per_token_s,
                    per_verifying_iteration_s=timer.per_verifying_iteration_s,
                    token_limit=timer.token_limit,
                    front_end_s=config.front_end_s,
                    extra_one_way_s=config.extra_one_way_s,
                    iteration_noise_sigma=config.iteration_noise_sigma,
                    straggler_share=config.straggler_share,
                    straggler_factor=config.straggler_factor,
                    gpus=config.gpus,
                    price_usd_per_gpu_hour=config.price_usd_per_gpu_hour,
                    keep_alive_s=config.keep_alive_s,
                    busy_w=config.power.busy_w,
                    idle_w=config.power.idle_w,
                )
                if captured:
                    padded = [padded_tokens(m, captured) for m in range(length)]
                    rows.point("padded", self.once((captured, length), padded, "i4"), n)
                n += 1
        self.k.point("targets", rows.at)

    # ------------------------------------------------------------------ workload

    def _workload(self) -> None:
        workload = self.scenario.workload
        kinds, classes = list(workload.kinds.values()), list(self.scenario.slo)
        total = sum(kind.weight for kind in kinds)
        rows = self.buffer.rows(rec.KIND_SPEC, len(kinds))
        for i, kind in enumerate(kinds):
            correlation = kind.length_correlation
            rows.set(
                i,
                bound=sum(other.weight for other in kinds[: i + 1]) / total,
                slo_class=classes.index(kind.slo),
                **self.scenario.slo[kind.slo].bounds(),
                length_correlation=correlation,
                length_rest=math.sqrt(1.0 - correlation * correlation),
            )
            self._law(rows, "prompt_tokens", kind.prompt_tokens, i)
            self._law(rows, "output_tokens", kind.output_tokens, i)
        self.k.point("kinds", rows.at)
        write_load(self, workload.load)
        arrivals = workload.arrivals
        if isinstance(arrivals, ClosedLoop):
            self.set(closed=True, arrivals=codes.CLOSED)
            self._law(self.k, "think_s", arrivals.think_s)
        elif isinstance(arrivals, Poisson):
            self.set(arrivals=codes.POISSON, rate_per_s=arrivals.rate_per_s)
        elif isinstance(arrivals, Renewal):
            write_renewal(self, arrivals)
        if self.builder.schedule is not None:
            write_schedule(self)

    # ------------------------------------------------------------------ a world

    def layout(
        self, max_active_requests: int | None, heap_events: int | None, log_events: int, keep_deliveries: bool
    ) -> Layout:
        """Lay out a world, write what it is before its seed is known, and finish the constants."""
        scenario, h = self.scenario, self.k_header
        closed = isinstance(scenario.workload.arrivals, ClosedLoop)
        slots = max_active_requests or (2 * self.n_devices + 64 if closed else 4096)
        # Per request: its wait, its drafter's prefill, a draft ahead, timers, a message of its stream in each
        # direction, messages in vain. Per target: its iteration, its looks at who is ready, its keep-alive.
        # Per device: its next request, and a message of tokens that is timed.
        heap = heap_events or 8 * slots + 64 * self.n_targets + 2 * self.n_devices + len(self.crashing) + 64
        most_measured, most_rows = self._most_requests(slots)
        deliveries = self._most_deliveries(most_measured) if keep_deliveries else 0
        self.set(
            n_slots=slots,
            heap_capacity=heap,
            due_capacity=4 * slots,
            log_capacity=log_events,
            table_capacity=most_rows,
            delivery_capacity=deliveries,
        )
        world = Buffer()
        w = world.rows(rec.WORLD, 1)
        offered, places = int(h["n_offered"][0]), int(h["n_places"][0])
        ring, n_drafters = constants.REPORTS_KEPT, int(h["n_drafters"][0])
        w.array["pending"] = w.array["answered"] = -1
        w.array["free_n"] = slots
        self._measured(w)

        def block(name: str, record: rec.Record, n: int) -> Rows:
            rows = world.rows(record, n)
            w.point(name, rows.at)
            return rows

        view = block("due_view", rec.VIEW, 1)
        w.point("due_view_numbers", view.at)
        w.point("raw_features", world.room(8 * len(ObservationEncoder.of(scenario).features)))
        for name in ("totals_as_numbers", "totals_as_counts"):
            w.point(name, w.at + rec.WORLD.offsets["totals"])
        target_views = block("target_views", rec.TARGET_VIEW, offered)
        candidates = block("candidates", rec.CANDIDATE_VIEW, places)
        block("edges_offered", rec.EDGE_OFFERED, scenario.n_edge_servers_offered)
        targets = block("targets", rec.TARGET, self.n_targets)
        block("scratch", rec.REPORT, 1)
        block("requests", rec.REQUEST, slots).set_columns(number=-1, slot=np.arange(slots))
        w.point("valid_tokens", world.room(4 * slots * int(h["n_valid"][0])))
        block("learned", rec.LEARNED, slots * max(1, len(self.models)))
        block("chains", rec.CHAIN, slots * max(1, len(self.models)))
        block("jobs", rec.DRAFT_JOB, codes.JOBS * slots).set_columns(number=np.arange(codes.JOBS * slots))
        block("streams", rec.STREAM, slots)
        block("drafters", rec.DRAFTER, n_drafters).set_columns(number=np.arange(n_drafters))
        block("devices", rec.DEVICE, self.n_devices).set_columns(rtt_sample_s=-1.0, timed_s=-1.0)
        channels = block("channels", rec.CHANNEL, int(h["n_channels"][0]))
        self._world_rates(block("link_rates", rec.RATE, len(self.channels_of_rates)), channels, world)
        block("crashes", rec.CRASH, len(self.crashing)).array["window"]["index"] = -1
        arrivals = int(h["arrivals"][0])
        renewals = {codes.RENEWAL: 1, codes.CLIENT_RENEWALS: self.n_devices}.get(arrivals, 0)
        block("renewals", rec.RENEWAL, renewals)
        w.point("shares", world.room(8 * self.n_devices if h["has_shares"][0] else 0))
        w.point("free", world.numbers(np.arange(slots - 1, -1, -1), "i4"))
        w.point("newly", world.room(4 * slots))
        block("due_now", rec.DUE_NOW, 4 * slots)
        windows = max(1, int(h["n_boundaries"][0]))
        rows = block("windows", rec.WINDOW_START, windows)
        for i in range(windows):
            rows.point("busy_s", world.room(8 * self.n_targets), i)
        block("class_counts", rec.CLASS_COUNTS, len(scenario.slo))
        w.point("attainments", world.room(8 * ring * len(scenario.slo)))
        pools = block("pools", rec.POOL, max(1, len(self.models)))
        pools.set_columns(**constants.POOL_AT_FIRST)
        w.point("acceptances", world.room(8 * ring * max(1, len(self.models))))
        most = max(target.max_num_seqs for target in scenario.targets.values())
        targets.set_columns(
            number=np.arange(self.n_targets),
            least_batch=2**31 - 1,
            idle=True,
            check_s=np.inf,
            admission_check_s=np.inf,
            oldest_s=np.inf,
            iteration_tokens=1.0,
        )
        for n in range(self.n_targets):
            targets.point("ready", world.room(4 * slots), n)
            targets.point("running", world.rows(rec.SEAT, most).at, n)
        block("reports", rec.REPORT, self.n_targets * ring)
        away = self.n_edges + self.n_targets
        block("drafter_reports", rec.DRAFTER_REPORT, self.n_ranks * away * ring)
        block("rates", rec.RATES, ring)
        image_bytes = world.size
        heap_at = world.room(heap * rec.SCHEDULED.itemsize)
        w.point("heap", heap_at)
        under_way = codes.RING * slots if h["streaming"][0] else 0
        w.point("stream_messages", world.room(under_way * rec.DRAFT_MESSAGE.itemsize))
        w.point("stream_results", world.room(under_way * rec.STREAM_RESULT.itemsize))
        w.point("table", world.room(int(h["table_capacity"][0]) * rec.COMPLETED.itemsize))
        w.point("deliveries", world.room(deliveries * rec.DELIVERED.itemsize))
        w.point("log", world.room(log_events * rec.LOGGED.itemsize))
        image = world.array(image_bytes)
        self.set(image_bytes=len(image))
        self.k.point("image", self.buffer.numbers(image.view(np.uint64), "u8"))
        features = self._features(view, target_views, candidates)
        n_mask = sum(ActionSpace.of(scenario).nvec)
        # Whole cache lines, so that two worlds share none.
        size = -(-world.size // 64) * 64
        return Layout(
            scenario,
            self.buffer.array(),
            size,
            image_bytes,
            features,
            n_mask,
            self.builder.capacity_tokens_per_s,
        )

    def _measured(self, w: Rows) -> None:
        """Write which requests are measured, as far as that is known at the beginning."""
        episode = self.scenario.episode
        w.array["boundary_s"] = np.inf
        if episode.window_s is None:
            end = episode.warmup_requests + episode.measured_requests
            w.set_columns(first_measured=episode.warmup_requests, end_measured=end, cohort_left=end)
        else:
            w.set_columns(
                first_measured=NOT_YET, end_measured=NOT_YET, boundary_s=boundaries_s(self.scenario)[0]
            )

    def _most_requests(self, slots: int) -> tuple[int, int]:
        """Return bounds on the measured requests and on the rows of the table of requests.

        Of a window that is an estimate, with ample room: a client who asks four times a second, four times
        the mean rate of open arrivals.
        """
        scenario, episode = self.scenario, self.scenario.episode
        if episode.window_s is None:
            n = episode.warmup_requests + episode.measured_requests
            return episode.measured_requests, 4 * n + 1024
        arrivals = scenario.workload.arrivals
        peak = max(value for _, value in scenario.workload.load.points)
        if isinstance(arrivals, ClosedLoop):
            per_s = 4.0 * self.n_devices
        elif self.builder.schedule is not None:
            per_s = 4.0 * len(self.builder.schedule) / self.builder.schedule.period_s
        else:
            assert isinstance(arrivals, Poisson | Renewal)
            per_s = 4.0 * arrivals.rate_per_s * peak
        n = 1024 + int(per_s * episode.end_s)
        return n, 2 * n + slots

    def _most_deliveries(self, most_measured: int) -> int:
        """Return a bound on the times at which measured requests get tokens.

        There are no more than tokens; nor than targets can commit in three times the window, or in two
        minutes more.
        """
        scenario = self.scenario
        by_tokens = most_measured * scenario.workload.max_output_tokens
        window_s = scenario.episode.window_s
        if window_s is None:
            return by_tokens
        per_s = sum(
            target.count * target.max_num_seqs / timer.step_s(1, 0, 0)
            for target, (timer, _) in zip(scenario.targets.values(), self.builder.target_timers, strict=True)
        )
        return min(by_tokens, int(per_s * (3.0 * window_s + 120.0)) + 1024)

    def _world_rates(self, rows: Rows, channels: Rows, world: Buffer) -> None:
        """Let the channels that change point to their rates, and these to the windows of their faults."""
        for i, (channel, n_breaks) in enumerate(
            zip(self.channels_of_rates, self.n_breaks_of_rates, strict=True)
        ):
            channels.point("rate", rows.at_row(i), channel)
            rows.point("breaks", world.rows(rec.WINDOW, n_breaks).at, i)

    def _features(self, view: Rows, target_views: Rows, candidates: Rows) -> int:
        """Write where each feature's raw value stands in the view, and how it is scaled; return how many.

        Likewise what is told of the due decision.
        """
        encoder = ObservationEncoder.of(self.scenario)
        features = encoder.features
        sources = [_place(*feature.source, view, target_views, candidates) for feature in features]
        self.set(n_features=len(features), n_last_features=encoder.n_last, n_due_fields=len(DUE_FIELDS))
        self.k.point("feature_source", self.buffer.numbers(sources, "i4"))
        self.k.point("feature_half", self.buffer.numbers([feature.half for feature in features], "f8"))
        squashes = [0.0 if feature.scale == "fraction" else 1.0 for feature in features]
        self.k.point("feature_squashes", self.buffer.numbers(squashes, "f8"))
        groups = [field.source.rpartition(".")[::2] for field in DUE_FIELDS]
        places = [_place(group, field, None, view, target_views, candidates) for group, field in groups]
        self.k.point("due_source", self.buffer.numbers(places, "i4"))
        return len(features)

    def _terms(self) -> None:
        """Write which total each reward term follows, and how fast that grows with time."""
        names = [term.total for term in TERMS]
        totals = rec.TOTALS
        places = [totals.offsets[name] // 8 for name in names]
        counts = [totals.fields[name].kind == "i" for name in names]
        rates = {
            "term_per_request_s": growth_per_s(1.0, 0.0, 0.0, 0.0),
            "term_per_s": growth_per_s(0.0, idle_w(self.scenario), 0.0, 0.0),
            "term_per_gpu_s": growth_per_s(0.0, 0.0, 1.0, 0.0),
            "term_per_usd": growth_per_s(0.0, 0.0, 0.0, 1.0),
        }
        self.set(n_terms=len(names))
        self.k.point("term_total", self.buffer.numbers(places, "i4"))
        self.k.point("term_counts", self.buffer.numbers(counts, "?"))
        for field, growth in rates.items():
            self.k.point(field, self.buffer.numbers([growth.get(name, 0.0) for name in names], "f8"))


def _place(
    group: str, field: str, element: int | None, view: Rows, target_views: Rows, candidates: Rows
) -> int:
    """Return the number, counted in float64 from the view on, of a field of the view.

    The group ``request`` is a record of the view and the empty one the view itself; ``target`` is the first
    target on offer, ``candidate_3`` that candidate.
    """
    if group == "target":
        at, record = target_views.at, rec.TARGET_VIEW
    elif group.startswith("candidate_"):
        at, record = candidates.at_row(int(group.removeprefix("candidate_"))), rec.CANDIDATE_VIEW
    elif group:
        at, record = view.at + rec.VIEW.offsets[group], rec.VIEW.fields[group]
    else:
        at, record = view.at, rec.VIEW
    return (at + record.offsets[field] - view.at) // 8 + (element or 0)
