"""One world of the compiled engine, with the interface of the reference engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace
from dsd_env.control.actions import Decision, StopKind, StopRule, check_decision
from dsd_env.control.fleet_view import TARGET_FIELDS, FleetTelemetry, RequestColumns
from dsd_env.control.view import DecisionView, Site
from dsd_env.laws import stopping
from dsd_env.laws.resolve import REASONS
from dsd_env.rng import checked_seed
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.compiled import plan, status
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.kernel import loop
from dsd_env.sim.compiled.tables import Bytes, Layout, compile_scenario
from dsd_env.sim.compiled.views import ViewReader
from dsd_env.sim.events import Event, EventKind, Span
from dsd_env.sim.metrics import Totals, Window, episode_metrics, requests_table
from dsd_env.sim.reference import Resolution
from dsd_env.sim.world import WorldBuilder


class EngineError(RuntimeError):
    """The compiled engine ran out of a bounded resource; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class CompletedSpec:
    """What the metrics need of a request's specification; see :class:`dsd_env.workload.RequestSpec`."""

    uid: int
    kind: int
    prompt_tokens: int
    output_tokens: int
    slo_class: int
    slo_ttft_s: float
    slo_tpot_s: float
    slo_itl_p99_s: float
    slo_first_s: float
    slo_per_token_s: float
    slo_token_share: float


@dataclass(frozen=True, slots=True)
class DeviceNumber:
    """The device of a completed request."""

    number: int


@dataclass(frozen=True, slots=True)
class CompletedRequest:
    """A completed request as the metrics read it; see :class:`dsd_env.sim.entities.Request`."""

    number: int
    spec: CompletedSpec
    device: DeviceNumber
    arrival_s: float
    completed_s: float
    rounds: int
    verifies: int
    drafted: int
    accepted: int
    delivery_s: list[float]
    delivery_tokens: list[int]
    longest_gap_s: float
    late_gaps: int
    late_tokens: int


@dataclass(frozen=True, slots=True)
class NewlyCompleted:
    """A request that completed since the last decision was answered."""

    number: int
    completed_s: float
    delay_caused_s: float
    committed: int


@dataclass(frozen=True, slots=True)
class DueRequest:
    """The request whose decision is due."""

    number: int
    delay_caused_s: float


class WorldReader:
    """Reads what the kernel left in one world.

    Attributes:
        layout: The compiled scenario.
        scenario: The scenario.
        world: The world, uint8.
        header: Its record `WORLD`; what is written to it is written to the world.
    """

    def __init__(self, layout: Layout, world: Bytes) -> None:
        """Look at one world."""
        self.layout = layout
        self.scenario = layout.scenario
        self.world = world
        self.header: Any = world[: rec.WORLD.itemsize].view(rec.WORLD.dtype)[0]
        self._sizes = layout.header
        # Where rows are only a world that was reset says, so these begin with the first question.
        self._views: ViewReader | None = None
        self._requests: NDArray[Any] | None = None

    # The header looks at the world: a copy of such a view would be a record of its own.

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "world": self.world}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WorldReader.__init__(self, **state)

    def rows(self, block: str, n: int) -> NDArray[Any]:
        """Return the first rows of a block of the world, a structured array."""
        return self._rows_at(int(self.header[block]), rec.WORLD.fields[block].element, n)

    def _rows_at(self, at: int, record: rec.Record, n: int) -> NDArray[Any]:
        return self.world[at : at + n * record.itemsize].view(record.dtype)

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self.header["now_s"])

    def check(self) -> None:
        """Raise :class:`EngineError` if the world failed."""
        error = int(self.header["error"])
        if error != status.OK:
            raise EngineError(
                f"scenario {self.scenario.name!r}, seed {int(self.header['seed'])}, at {self.now_s:.6f} s: "
                + status.ADVICE[error]
            )

    def view(self) -> DecisionView:
        """Return the view of the due decision."""
        if self._views is None:
            self._views = ViewReader(self.layout, self.world)
        return self._views.view()

    def totals(self) -> Totals:
        """Return the cumulative totals until now."""
        totals = Totals(*self.header["totals"].item())
        header = self.header
        totals.accrue(
            self.now_s,
            int(header["in_system"]),
            float(self._sizes["idle_w"]),
            float(header["occupied_gpus"]),
            float(header["occupied_usd_per_s"]),
        )
        return totals

    def completed(self, *, deliveries: bool) -> list[CompletedRequest]:
        """Return the completed requests of the table, in order of completion.

        Args:
            deliveries: With every delivery, which only requests of the cohort have; otherwise with the
                first and the last alone.
        """
        table = self.rows("table", int(self.header["table_n"]))
        columns = {name: table[name].tolist() for name in rec.COMPLETED.fields}
        log = self._deliveries() if deliveries else {}
        requests = []
        classes = list(self.scenario.slo)
        bounds = [
            {"slo_class": classes.index(kind.slo), **self.scenario.slo[kind.slo].bounds()}
            for kind in self.scenario.workload.kinds.values()
        ]
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            brief = ([row["first_delivery_s"], row["last_delivery_s"]], [1, row["delivered"] - 1])
            delivery_s, delivery_tokens = log.get(row["number"], brief)
            spec = CompletedSpec(
                row["uid"], row["kind"], row["prompt_tokens"], row["output_tokens"], **bounds[row["kind"]]
            )
            requests.append(
                CompletedRequest(
                    row["number"],
                    spec,
                    DeviceNumber(row["device"]),
                    row["arrival_s"],
                    row["completed_s"],
                    row["rounds"],
                    row["verifies"],
                    row["drafted"],
                    row["accepted"],
                    delivery_s,
                    delivery_tokens,
                    row["longest_gap_s"],
                    row["late_gaps"],
                    row["late_tokens"],
                )
            )
        return requests

    def _deliveries(self) -> dict[int, tuple[list[float], list[int]]]:
        """Return when which tokens arrived, by request."""
        n = int(self.header["deliveries_n"])
        if n == 0:
            return {}
        lines = self.rows("deliveries", n)
        lines = lines[np.argsort(lines["number"], kind="stable")]
        numbers, starts = np.unique(lines["number"], return_index=True)
        ends = [*starts[1:].tolist(), n]
        times_s, tokens = lines["arrives_s"].tolist(), lines["tokens"].tolist()
        return {
            number: (times_s[start:end], tokens[start:end])
            for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True)
        }

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far; see :meth:`ReferenceSimulation.metrics`."""
        n_targets = int(self._sizes["n_targets"])
        windows = [self._window(row) for row in self.rows("windows", int(self.header["n_windows"]))]
        now = Window(self.now_s, self.totals(), self._busy_until_s(n_targets))
        first, end = int(self.header["first_measured"]), int(self.header["end_measured"])
        cohort = [r for r in self.completed(deliveries=True) if first <= r.number < end]
        metrics = episode_metrics(
            self.scenario,
            cohort,  # type: ignore[arg-type]
            self._unfinished(first, end),
            windows,
            now,
            int(self.header["arrived"]),
            int(self.header["totals"]["completed"]),
            self.layout.capacity_tokens_per_s,
        )
        if self._sizes["delivery_capacity"] == 0:
            metrics.update({name: float("nan") for name in metrics if name.startswith("itl_s")})
        return metrics

    def _window(self, row: Any) -> Window:
        """Return a boundary of the measured window."""
        n_targets = int(self._sizes["n_targets"])
        # The row says where its busy times lie, in bytes from itself.
        at = row.__array_interface__["data"][0] - self.world.__array_interface__["data"][0]
        at += int(row["busy_s"])
        busy_s = self.world[at : at + 8 * n_targets].view(np.float64).tolist()
        return Window(float(row["time_s"]), Totals(*row["totals"].item()), busy_s)

    def _unfinished(self, first: int, end: int) -> list[tuple[float, int]]:
        """Return arrival and class of SLO of the requests of the window that have not completed, in order."""
        if self.scenario.episode.window_s is None:
            return []
        rows = self.rows("requests", int(self._sizes["n_slots"]))
        rows = rows[
            (rows["number"] >= first) & (rows["number"] < end) & (rows["number"] >= 0) & ~rows["done"]
        ]
        rows = rows[np.argsort(rows["number"])]
        classes, kinds = list(self.scenario.slo), list(self.scenario.workload.kinds.values())
        return [(float(row["arrival_s"]), classes.index(kinds[int(row["kind"])].slo)) for row in rows]

    def _busy_until_s(self, n_targets: int) -> list[float]:
        """Return the time that each target has been busy, the iteration under way included."""
        targets = self.rows("targets", n_targets)
        return [
            float(row["busy_s"] if row["idle"] else row["busy_s"] + (self.now_s - row["iteration_start_s"]))
            for row in targets
        ]

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival.

        Raises:
            EngineError: More requests completed than the table holds.
        """
        if dropped := int(self.header["table_dropped"]):
            raise EngineError(
                f"the table of requests lacks {dropped} that completed after the measured ones; "
                "use engine='reference' for the whole table"
            )
        requests = self.completed(deliveries=False)
        requests.sort(key=lambda request: request.number)
        return requests_table(requests)  # type: ignore[arg-type]

    def request(self, slot: int) -> Any:
        """Return the record of a request in the system."""
        if self._requests is None:
            self._requests = self.rows("requests", int(self._sizes["n_slots"]))
        return self._requests[slot]

    def fleet_telemetry(self) -> FleetTelemetry:
        """Return what the fleet's controller is told now; see :mod:`dsd_env.control.fleet_view`."""
        sizes, header = self._sizes, self.header
        n_targets, n_edges, ring = int(sizes["n_targets"]), int(sizes["n_edges"]), int(sizes["ring"])
        # The newest of what is published; every publication has come at once, but for the targets far away.
        ticks = int(header["ticks"])
        latest = (ticks - 1) % ring
        published = self.rows("rates", ring)
        rates = published[latest]
        of_target = []
        for target, extra_s in enumerate(self._extras_s):
            seen = next(
                (
                    tick
                    for tick in range(ticks - 1, max(0, ticks - ring), -1)
                    if published["time_s"][tick % ring] <= self.now_s - extra_s
                ),
                max(0, ticks - ring),
            )
            of_target.append(target * ring + seen % ring)
        reports = self.rows("reports", n_targets * ring)[of_target]
        edges = self.rows("drafter_reports", n_edges * ring)[latest::ring]
        n_classes, n_models = int(sizes["n_classes"]), int(sizes["n_models"])
        devices = self.rows("devices", int(sizes["n_devices"]))
        return FleetTelemetry(
            self.now_s,
            self._fleet_requests(),
            devices["rtt_s"],
            devices["rtt_deviation_s"],
            tuple(zip(*(reports[name].astype(float).tolist() for name in TARGET_FIELDS), strict=True)),
            tuple(
                zip(*(edges[name].astype(float).tolist() for name in ("jobs", "wait_s", "up")), strict=True)
            ),
            float(rates["arrivals_per_s"]),
            float(rates["tokens_per_s"]),
            self._numbers("attainments", latest * n_classes, n_classes),
            self._numbers("acceptances", latest * n_models, n_models),
        )

    def _numbers(self, block: str, first: int, n: int) -> tuple[float, ...]:
        """Return some numbers of a block of float64."""
        at = int(self.header[block]) + 8 * first
        return tuple(self.world[at : at + 8 * n].view(np.float64).tolist())

    def _fleet_requests(self) -> RequestColumns:
        rows = self.rows("requests", int(self._sizes["n_slots"]))
        known = (rows["number"] >= 0) & ~rows["done"] & (rows["target"] >= 0)
        known &= rows["committed"] < rows["output_tokens"]
        slots = np.flatnonzero(known)
        slots = slots[np.argsort(rows["number"][slots])]
        classes = np.array(self._slo_classes)
        columns = {
            "device": rows["device"][slots],
            "slo_class": classes[rows["kind"][slots]],
            **{name: rows[name][slots] for name in ("verifies", "prompt_tokens", "committed")},
        }
        times = ("acceptance_rate", "arrival_s", "first_commit_s", "last_commit_s")
        return RequestColumns(
            **{name: column.astype(np.int64) for name, column in columns.items()},
            **{name: rows[name][slots] for name in times},
        )

    @property
    def _extras_s(self) -> list[float]:
        """How far each target is beyond the links, each way."""
        targets = self.scenario.targets.values()
        return [target.extra_one_way_s for target in targets for _ in range(target.count)]

    @property
    def _slo_classes(self) -> list[int]:
        """Number of the class of objectives of each kind of request."""
        classes = list(self.scenario.slo)
        return [classes.index(kind.slo) for kind in self.scenario.workload.kinds.values()]

    def newly_completed(self) -> Iterator[NewlyCompleted]:
        """Yield the requests that completed since the last decision was answered."""
        at, n = int(self.header["newly"]), int(self.header["newly_n"])
        for slot in self.world[at : at + 4 * n].view(np.int32).tolist():
            row = self.request(slot)
            number = int(row["number"])
            yield NewlyCompleted(
                number, self._completed_s(number), float(row["delay_caused_s"]), int(row["committed"])
            )

    def due_request(self) -> DueRequest | None:
        """Return the request whose decision is due."""
        slot = int(self.header["pending"])
        if slot < 0:
            return None
        row = self.request(slot)
        return DueRequest(int(row["number"]), float(row["delay_caused_s"]))

    def _completed_s(self, number: int) -> float:
        table = self.rows("table", int(self.header["table_n"]))
        found = np.flatnonzero(table["number"][::-1] == number)
        return float(table["completed_s"][::-1][found[0]]) if len(found) else float("nan")

    def drain_events(self) -> list[Event]:
        """Return the events recorded since the last call."""
        lines = self.rows("log", int(self.header["events_n"])).tolist()
        self.header["events_n"] = 0
        return [Event(t, EventKind(k), e, r, v) for t, k, e, r, v in lines]


class CompiledSimulation:
    """One episode of one scenario on the compiled engine, stepped from decision to decision.

    The same episode as :class:`dsd_env.sim.ReferenceSimulation` on the same seed, event for event and bit for
    bit. It records no spans.

    Attributes:
        scenario: What is simulated.
        seed: Episode seed.
        terminated: The workload is finished: every request arrived and completed.
        truncated: The episode's number of requests has completed, or its horizon is reached.
        events: Event log, if recorded.
        spans: Always empty.
        world: State of the world, uint8; see :mod:`dsd_env.sim.compiled.records`.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        record_events: bool = False,
        record_spans: bool = False,
        price_delays: bool = False,
        builder: WorldBuilder | None = None,
        layout: Layout | None = None,
        log_events: int = 1 << 18,
    ) -> None:
        """Set up an episode at time 0.

        Args:
            scenario: What to simulate.
            seed: Episode seed; all randomness follows from it.
            record_events: Keep the event log.
            record_spans: Not possible here.
            price_delays: Account to each request how long it makes others wait (`delay_caused_s`).
            builder: Builder of this scenario's worlds, to load profiles and traces only once.
            layout: The scenario as compiled before, to do so only once. With `record_events`, it must have
                been compiled with room for them.
            log_events: Room for recorded events between two decisions.

        Raises:
            NotImplementedError: Spans are asked for, or an acceptance source that only the reference knows.
            ValueError: The seed is not a whole number from 0 to 2^63 − 1.
        """
        if record_spans:
            raise NotImplementedError("the compiled engine records no spans; use engine='reference'")
        seed = checked_seed(seed)
        if layout is None:
            layout = compile_scenario(scenario, builder, log_events=log_events if record_events else 0)
        self.scenario = scenario
        self.seed = seed
        self.terminated = False
        self.truncated = False
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self._layout = layout
        self._n_placements = scenario.n_placements
        self.world = layout.new_worlds(1)[0]
        self._reader = WorldReader(layout, self.world)
        self._record_events = record_events
        self._view: DecisionView | None = None
        loop.reset_world(layout.constants, self.world, seed, int(record_events), int(price_delays))

    @property
    def _header(self) -> Any:
        return self._reader.header

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._reader.now_s

    def next_decision(self) -> DecisionView | None:
        """Advance to the next due decision and return what its controller knows; None at the end.

        Raises:
            RuntimeError: The decision before has not been answered.
            EngineError: A bounded resource ran out.
        """
        if not self.advance():
            return None
        self._view = self._reader.view()
        return self._view

    def advance(self) -> bool:
        """Advance to the next due decision; False at the end. The view is not assembled.

        Raises:
            RuntimeError: The decision before has not been answered.
            EngineError: A bounded resource ran out.
        """
        if self._header["pending"] >= 0:
            raise RuntimeError("answer the pending decision with decide() before asking for the next")
        self._view = None
        reached = loop.run_world(self._layout.constants, self.world)
        self._reader.check()
        if self._record_events:
            self.events += self._reader.drain_events()
        self.terminated, self.truncated = reached == status.TERMINATED, reached == status.TRUNCATED
        return reached == status.DUE

    def follow(self, groups: NDArray[np.int64], choices: NDArray[np.int64], until_s: float) -> bool:
        """Answer the pending decision and all after it by a plan, until one is due at or after a time.

        Args:
            groups: Number of each request's group by device and class of objectives; int64, contiguous.
            choices: What :func:`dsd_env.sim.compiled.table_plan.plan_rows` makes of the groups' choices.
            until_s: Simulated time.

        Returns:
            Whether a decision is due; False at the end of the episode.

        Raises:
            RuntimeError: No decision is pending.
            EngineError: A bounded resource ran out.
        """
        if self._header["pending"] < 0:
            raise RuntimeError("no decision is pending: call next_decision() or advance() first")
        self._view = None
        reached = plan.follow_plan(self._layout.constants, self.world, groups, choices, until_s)
        self._reader.check()
        if self._record_events:
            self.events += self._reader.drain_events()
        self.terminated, self.truncated = reached == status.TERMINATED, reached == status.TRUNCATED
        return reached == status.DUE

    def fleet_telemetry(self) -> FleetTelemetry:
        """Return what the fleet's controller is told now; see :mod:`dsd_env.control.fleet_view`."""
        return self._reader.fleet_telemetry()

    def decide(self, decision: Decision) -> Resolution:
        """Answer the pending decision; see :meth:`ReferenceSimulation.decide`.

        Raises:
            RuntimeError: No decision is pending.
            ValueError: gamma, batch size, placement or stop rule is out of range.
        """
        if self._header["pending"] < 0:
            raise RuntimeError("no decision is pending: call next_decision() first")
        check_decision(decision, self.scenario.actions.gammas[-1], self._n_placements)
        gamma, batch_size, placement, stop = decision
        loop.answer_world(self._layout.constants, self.world, gamma, batch_size, placement)
        if stop is not None:
            kind, threshold, least, keeps = stop
            loop.stop_world(self.world, int(kind), float(threshold), int(least), bool(keeps))
        row = self._reader.request(int(self._header["answered"]))
        return Resolution(
            int(row["gamma"]),
            int(row["batch_size"]),
            Site(int(row["draft_site"])),
            int(row["drafter"]),
            int(row["edge_server"]),
            int(row["to_target"]),
            REASONS[int(self._header["reason"])],
            bool(row["branches"]),
            _stop_rule(row["stop"]),
        )

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the observation and the mask of the due decision."""
        layout = self._layout
        observation = np.empty(layout.n_features, dtype=np.float32)
        mask = np.empty(sum(ActionSpace.of(self.scenario).nvec), dtype=np.bool_)
        loop.observe_world(layout.constants, self.world, observation, mask)
        return observation, mask

    @property
    def resolved(self) -> dict[str, int]:
        """Decisions that were not executed as given, by reason."""
        counts = zip(REASONS, self._header["resolved"].tolist(), strict=True)
        return {reason: count for reason, count in counts if reason is not None and count}

    @property
    def decisions(self) -> int:
        """Decisions answered so far."""
        return int(self._header["decisions"])

    @property
    def newly_completed(self) -> list[NewlyCompleted]:
        """Requests that completed since the last decision was answered."""
        return list(self._reader.newly_completed())

    @property
    def due_request(self) -> DueRequest | None:
        """The request whose decision is due."""
        return self._reader.due_request()

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy."""
        return self._reader.totals()

    @property
    def active_requests(self) -> int:
        """Requests that have arrived and not completed."""
        return int(self._header["in_system"])

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far, by name; NaN where nothing was observed."""
        return self._reader.metrics()

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival."""
        return self._reader.requests_table()

    def save(self) -> Bytes:
        """Return a copy of the world's state, for :meth:`restore`."""
        copy: Bytes = self.world.copy()
        return copy

    def restore(self, state: Bytes) -> None:
        """Go back to a saved state of the same scenario; the event log is not wound back."""
        self.world[:] = state
        reached = int(self._header["status"])
        self.terminated, self.truncated = reached == status.TERMINATED, reached == status.TRUNCATED


def _stop_rule(row: Any) -> StopRule | None:
    if row["kind"] == stopping.NEVER:
        return None
    return StopRule(
        StopKind(int(row["kind"])), float(row["threshold"]), int(row["least"]), bool(row["keeps"])
    )
