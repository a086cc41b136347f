"""The reference engine, which defines the simulation. It is written as SimPy processes.

Each request is one process that reads like the protocol (:meth:`ReferenceSimulation._request`): it arrives,
decides and prefills, and then goes through rounds of deciding, drafting, verifying and delivering. To add a
protocol, write a new form of round. A target or a drafter is a queue, with one timed event for the work
under way.

:class:`dsd_env.sim.events.Order` says which of several events at one instant comes first, so that another
engine can reproduce the same event log.

Two terms: *plain decoding* is autoregressive decoding, in which the target generates its tokens without
drafts. An *iteration* is one engine step of a target, that is, one forward pass over its batch.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from dsd_env.control.actions import Decision, resolve
from dsd_env.control.view import DecisionView, DrafterKind, Site
from dsd_env.laws import drafting, slo
from dsd_env.laws.batching import may_enter
from dsd_env.network import FaultMember, FaultWindows, fault_members
from dsd_env.rng import checked_seed
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import (
    Device,
    DrafterServer,
    DraftJob,
    HeadStart,
    Job,
    JobState,
    Request,
    SiteDrafter,
    TargetServer,
    TargetTask,
    servers_of,
)
from dsd_env.sim.events import Event, EventKind, Order, Span
from dsd_env.sim.iteration import IterationCost, Share
from dsd_env.sim.metrics import Totals, Window, boundaries_s, episode_metrics, meets_slo, requests_table
from dsd_env.sim.telemetry import Telemetry
from dsd_env.sim.world import World, WorldBuilder
from dsd_env.workload import RequestSpec, WorkloadGenerator

Process = Generator[simpy.Event, object, None]

NOT_YET = 1 << 31
"""Stands for the number of a request that has not arrived yet."""


class _Environment(simpy.Environment):
    """SimPy with absolute times and an explicit order of events at one instant.

    SimPy's ``schedule`` takes a delay and would compute now + (t - now), which can differ from t in floating
    point. Events are therefore pushed straight onto SimPy's queue. SimPy's own priorities (0 and 1) come
    before every :class:`Order`.
    """

    def at(self, time_s: float, order: Order, entity: int, event: simpy.Event | None = None) -> simpy.Event:
        """Schedule an event at an absolute time; order and entity give its rank among those of that time."""
        if event is None:
            event = simpy.Event(self)
        event._ok = True
        event._value = None
        queue: list[Any] = self._queue
        heapq.heappush(queue, (time_s, (order << 40) + entity, next(self._eid), event))
        return event


class Interruption(Enum):
    """Why a request stops what it is doing."""

    TAKEOVER = auto()
    TARGET_LOST = auto()


class _TargetDownError(Exception):
    """A message has reached a target that is down."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A decision as it is executed.

    Attributes:
        gamma: Speculation length used; 0 is plain decoding.
        batch_size: B: how far the request stands back at admission, and the smallest batch that it wants to
            be verified in.
        site: Where drafts are made.
        drafter_number: Number of the drafter; -1 for plain decoding.
        edge_server: Number of the edge server; -1 elsewhere.
        target: Number of the target.
        reason: Why the decision was not executed as given; None if it was.
    """

    gamma: int
    batch_size: int
    site: Site
    drafter_number: int
    edge_server: int
    target: int
    reason: str | None


class ReferenceSimulation:
    """One episode of one scenario, stepped from decision to decision.

    Example:
        >>> simulation = ReferenceSimulation(load_scenario("single_lan"), seed=1)
        >>> while (view := simulation.next_decision()) is not None:
        ...     simulation.decide(Decision(gamma=4, batch_size=1, placement=0))
        >>> simulation.metrics()["e2e_s_mean"]

    Attributes:
        scenario: What is simulated.
        seed: Episode seed.
        terminated: Whether the workload is finished: every request has arrived and completed.
        truncated: Whether the episode's number of requests has completed, or its horizon is reached.
        events: Event log, if recorded.
        spans: Timeline bars, if recorded.
        resolved: Number of decisions that were not executed as given, by reason.
        newly_completed: Requests that completed since the last decision was answered.
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
    ) -> None:
        """Set up an episode at time 0.

        Args:
            scenario: What to simulate.
            seed: Episode seed; all randomness follows from it.
            record_events: Keep the event log.
            record_spans: Keep timeline bars for rendering.
            price_delays: Account to each request how long it makes others wait (`delay_caused_s`).
            builder: Builder of this scenario's worlds; pass one to load profiles and traces only once.

        Raises:
            ValueError: The seed is not a whole number from 0 to 2^63 − 1.
        """
        seed = checked_seed(seed)
        self.scenario = scenario
        self.seed = seed
        self.terminated = False
        self.truncated = False
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self.resolved: dict[str, int] = {}
        self._record_events = record_events
        self._record_spans = record_spans
        self._price_delays = price_delays
        self._protocol = scenario.protocol
        self._max_num_seqs = scenario.max_num_seqs
        builder = builder or WorldBuilder(scenario)
        self._workload = WorkloadGenerator(scenario, seed, builder.schedule)
        self._world: World = builder.build(seed)
        self._env = _Environment()
        self._telemetry = Telemetry(scenario, self._world)
        self._pending: tuple[Request, simpy.Event, DecisionView] | None = None
        self._active: dict[int, Request] = {}
        self._completed: list[Request] = []
        self.newly_completed: list[Request] = []
        self._arrived = 0
        self._in_system = 0
        episode = scenario.episode
        by_number = episode.window_s is None
        # Numbers of the first measured request and of the first after them, once they are known.
        self._first_measured = episode.warmup_requests if by_number else NOT_YET
        self._end_measured = episode.warmup_requests + episode.measured_requests if by_number else NOT_YET
        # Requests without whose completion the episode does not end.
        self._cohort_left = self._end_measured if by_number else 0
        self._boundaries_s = deque(boundaries_s(scenario))
        self._windows: list[Window] = []
        self._totals = Totals()
        self._occupied = (0.0, 0.0)
        drafters = [drafter for _, drafter in sorted(self._world.drafters.items())]
        servers = [drafter.server for drafter in drafters if drafter.server is not None]
        self._servers = [server for server in dict.fromkeys(servers) if server.gpus > 0.0]
        self._back: dict[tuple[Site, int], simpy.Event] = {}
        self._builder = builder
        self._decisions: list[Decision] = []
        self._start_processes()

    # SimPy's processes are generators, which can be neither copied nor pickled. A copy therefore keeps the
    # decisions taken so far and repeats them.

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": (self.scenario, self.seed),
            "options": {
                "record_events": self._record_events,
                "record_spans": self._record_spans,
                "price_delays": self._price_delays,
                "builder": self._builder,
            },
            "decisions": tuple(self._decisions),
            "advanced": self._pending is not None or self.terminated or self.truncated,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Repeat the episode up to the copied point, which takes as long as it took the first time."""
        ReferenceSimulation.__init__(self, *state["arguments"], **state["options"])
        for decision in state["decisions"]:
            self.next_decision()
            self.decide(decision)
        if state["advanced"]:
            self.next_decision()

    # ------------------------------------------------------------------ stepping

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self._env.now)

    def next_decision(self) -> DecisionView | None:
        """Advance to the next decision and return what its controller knows; None at the end of the episode.

        Raises:
            RuntimeError: The previous decision has not been answered.
        """
        if self._due_view() is not None:
            raise RuntimeError("answer the pending decision with decide() before asking for the next")
        horizon_s = self.scenario.episode.horizon_s
        env = self._env
        while not (self.terminated or self.truncated):
            if self._boundaries_s and env.peek() >= self._boundaries_s[0]:
                self._pass_boundary(self._boundaries_s.popleft())
                continue
            if env.peek() > horizon_s:
                self.truncated = True
                self._accrue(horizon_s)
                env._now = horizon_s
                break
            env.step()
            if (view := self._due_view()) is not None:
                return view
        return None

    def _pass_boundary(self, time_s: float) -> None:
        """Note what the window's metrics need at its start, at its end and between its parts.

        What happens at this instant comes after it.
        """
        self._windows.append(self._window(time_s))
        if len(self._windows) == 1:
            self._first_measured = self._arrived
        if not self._boundaries_s:
            self._end_measured = self._arrived
            if self._cohort_left == 0:
                self.truncated = True
                self._accrue(time_s)
                self._env._now = time_s

    def _window(self, time_s: float) -> Window:
        """Return the totals as they are at a time, which nothing has happened before."""
        totals = self._totals.copy()
        totals.accrue(time_s, self._in_system, self._world.idle_w, *self._occupied)
        return Window(time_s, totals, [target.busy_until_s(time_s) for target in self._world.targets])

    def _is_measured(self, request: Request) -> bool:
        return self._first_measured <= request.number < self._end_measured

    def _due_view(self) -> DecisionView | None:
        return None if self._pending is None else self._pending[2]

    def decide(self, decision: Decision) -> Resolution:
        """Answer the pending decision.

        Args:
            decision: Speculation length, batch size and placement. A decision that cannot be executed is
                changed: a target that is believed down is replaced by the first candidate's that is believed
                up (``target_down``); drafting where no drafter is available becomes plain decoding at that
                candidate's target (``no_drafter``); a batch size above the target's `max_num_seqs` is clipped
                (``batch_clipped``).

        Returns:
            The decision as it will be executed.

        Raises:
            RuntimeError: No decision is pending.
            ValueError: gamma, batch size or placement is out of range.
        """
        if self._pending is None:
            raise RuntimeError("no decision is pending: call next_decision() first")
        _, answer, view = self._pending
        resolution = self._resolve(view, decision)
        self._decisions.append(decision)
        self._pending = None
        self.newly_completed.clear()
        answer.succeed(resolution)
        return resolution

    def _resolve(self, view: DecisionView, decision: Decision) -> Resolution:
        gamma, batch_size, placement = decision
        if gamma < 0 or gamma > self.scenario.actions.gammas[-1]:
            raise ValueError(f"gamma = {gamma} is outside 0..{self.scenario.actions.gammas[-1]}")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be at least 1")
        if not 0 <= placement < len(view.candidates):
            raise ValueError(f"placement = {placement} is outside 0..{len(view.candidates) - 1}")
        candidate, gamma, batch_size, reason = resolve(view, decision, self._max_num_seqs)
        target = candidate.target.index
        if reason is not None:
            self.resolved[reason] = self.resolved.get(reason, 0) + 1
        drafter_number = -1
        if gamma > 0:
            drafter_number = self._telemetry.drafter_number(view.device, candidate)
        return Resolution(
            gamma, batch_size, candidate.site, drafter_number, candidate.edge_server, target, reason
        )

    # ------------------------------------------------------------------ results

    @property
    def due_request(self) -> Request | None:
        """The request that waits for a decision; None if none does."""
        return None if self._pending is None else self._pending[0]

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy.

        Reading them does not change later sums: an episode has the same metrics, to the last bit, whether or
        not its totals were read.
        """
        return self._window(self.now_s).totals

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far, by name; NaN where nothing was observed."""
        cohort = [request for request in self._completed if self._is_measured(request)]
        unfinished = []
        if self.scenario.episode.window_s is not None:
            unfinished = [
                (request.arrival_s, request.spec.slo_class)
                for request in self._active.values()
                if self._is_measured(request)
            ]
        return episode_metrics(
            self.scenario,
            cohort,
            unfinished,
            self._windows,
            self._window(self.now_s),
            self._arrived,
            len(self._completed),
            self._builder.capacity_tokens_per_s,
        )

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival."""
        return requests_table(sorted(self._completed, key=lambda request: request.number))

    @property
    def active_requests(self) -> int:
        """Requests that have arrived and not completed."""
        return self._in_system

    # ------------------------------------------------------------------ processes

    def _start_processes(self) -> None:
        env = self._env
        if self._workload.closed_loop:
            for device in self._world.devices:
                env.process(self._client(device))
        elif self._workload.per_client:
            for device in self._world.devices:
                env.process(self._client_arrivals(device))
        else:
            env.process(self._open_arrivals())
        env.process(self._publish())
        for member in fault_members(self.scenario):
            if member.crashes:
                env.process(self._fault(member))

    def _client(self, device: Device) -> Process:
        """A user of a closed loop, who thinks, asks, waits for the whole answer, and thinks again."""
        ordinal = 0
        while True:
            asks_s = self._workload.think_end_s(device.number, ordinal, self.now_s)
            yield self._env.at(asks_s, Order.ARRIVAL, device.number)
            if self._arrivals_are_over():
                return
            yield from self._request(device, self._workload.request(device.number, ordinal))
            ordinal += 1

    def _open_arrivals(self) -> Process:
        """Users who share one arrival process and ask without waiting for answers."""
        ordinal = 0
        arrival_s = 0.0
        asked = [0] * len(self._world.devices)
        while not self._arrivals_are_over():
            arrival_s = self._workload.open_arrival_s(ordinal, arrival_s)
            yield self._env.at(arrival_s, Order.ARRIVAL, ordinal)
            device = self._world.devices[self._workload.open_device(ordinal)]
            self._env.process(
                self._request(device, self._workload.request(device.number, asked[device.number], ordinal))
            )
            asked[device.number] += 1
            ordinal += 1
            if self._arrivals_are_over(before=1):
                return

    def _client_arrivals(self, device: Device) -> Process:
        """A user with an arrival process of their own, who asks without waiting for answers."""
        arrival_s = 0.0
        ordinal = 0
        while not self._arrivals_are_over():
            arrival_s = self._workload.client_arrival_s(device.number, arrival_s)
            yield self._env.at(arrival_s, Order.ARRIVAL, device.number)
            if self._arrivals_are_over():
                return
            self._env.process(self._request(device, self._workload.request(device.number, ordinal)))
            ordinal += 1
            if self._arrivals_are_over(before=1):
                return

    def _arrivals_are_over(self, before: int = 0) -> bool:
        total = self._workload.total_requests
        return total is not None and self._arrived + before >= total

    def _publish(self) -> Process:
        """Servers publish their state periodically; controllers elsewhere see it later."""
        number = 0
        period_s = self._protocol.telemetry_period_s
        while True:
            self._telemetry.publish(self.now_s)
            number += 1
            yield self._env.at(number * period_s, Order.TELEMETRY, 0)

    def _request(self, device: Device, spec: RequestSpec) -> Process:
        """Run one request from its arrival to its completion."""
        request = self._arrive(device, spec)
        request.process = self._env.active_process
        activity = self._turn(request)
        while not request.finished:
            try:
                yield from activity
                activity = self._turn(request)
            except simpy.Interrupt as interrupt:
                if interrupt.cause is Interruption.TAKEOVER:
                    activity = self._decode_alone(request)
                else:
                    activity = self._reconnect(request)
            except _TargetDownError:
                self._abandon(request)
                activity = self._reconnect(request)
        yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
        self._complete(request)

    def _turn(self, request: Request) -> Process:
        """Take one decision and carry it out: the prefill, or a round."""
        resolution = yield from self._decision(request)
        if request.committed == 0:
            yield from self._prefill(request, resolution)
            return
        request.rounds += 1
        if request.head_start is not None and request.head_start.drafter_number != resolution.drafter_number:
            self._discard_head_start(request)
        if resolution.gamma == 0:
            yield from self._plain_round(request, resolution)
        elif resolution.site == Site.COLOCATED:
            yield from self._colocated_round(request, resolution)
        else:
            yield from self._edge_round(request, resolution)

    def _decision(self, request: Request) -> Generator[simpy.Event, object, Resolution]:
        """Wait for the request's turn among the decisions of this instant, then for the answer."""
        while self._is_down(request.control):
            yield self._back.setdefault(request.control, self._env.event())
        yield self._env.at(self.now_s, Order.DECISION, request.number)
        answer = self._env.event()
        view = self._telemetry.view(request, self.now_s)
        self._pending = (request, answer, view)
        resolution = yield answer
        assert isinstance(resolution, Resolution)
        request.decisions += 1
        self._log(EventKind.DECISION, resolution.target, request, resolution.gamma)
        if self._protocol.decision_latency_s > 0.0:
            yield self._env.at(self.now_s + self._protocol.decision_latency_s, Order.DELIVERY, request.number)
        return resolution

    def _prefill(self, request: Request, resolution: Resolution) -> Process:
        """Send the prompt up and have it prefilled, by the drafter too; the target commits one token."""
        target = self._world.targets[resolution.target]
        device = request.device
        prompt = request.spec.prompt_tokens
        sent_s = self.now_s
        colocated = resolution.gamma > 0 and resolution.site == Site.COLOCATED
        if resolution.gamma > 0 and not colocated and self._is_cold(request, resolution.drafter_number):
            self._env.process(self._warm_up(request, resolution))
        arrives_s = self._send_up(device, prompt * self._protocol.bytes_per_token, request)
        front_end_s = target.config.front_end_s
        yield from self._travel(request, arrives_s + front_end_s)
        self._telemetry.count_arrival()
        served_s = self.now_s - front_end_s
        yield from self._serve(
            request, target, TargetTask.PREFILL, resolution, prefill=prompt, warm=colocated
        )
        served_s = self.now_s - served_s
        if request.finished:
            return
        if resolution.gamma > 0 and resolution.site != Site.COLOCATED:
            self._expect_drafts(request)
        if resolution.gamma > 0 and resolution.site == Site.OWN_DEVICE:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            self._measure(request, (self.now_s - sent_s) - served_s)
            request.control = (Site.OWN_DEVICE, device.number)
        elif resolution.gamma > 0 and resolution.site == Site.EDGE_SERVER:
            yield from self._move_control(request, (Site.EDGE_SERVER, resolution.edge_server), tokens=1)

    def _travel(self, request: Request, arrives_s: float) -> Process:
        """Wait for a message of this request to arrive.

        If the request stops waiting (see :meth:`_abandon`), the message still arrives and counts as late.
        """
        request.in_flight = self._env.at(arrives_s, Order.DELIVERY, request.number)
        yield request.in_flight
        request.in_flight = None

    @staticmethod
    def _is_cold(request: Request, drafter_number: int) -> bool:
        """Return whether a drafter has none of the request's context and no drafter is prefilling it."""
        return not request.warming and request.drafter_valid.get(drafter_number, 0) == 0

    def _warm_up(self, request: Request, resolution: Resolution) -> Process:
        """Let the drafter prefill the prompt while the target does."""
        drafter = self._drafter(resolution)
        warmed = self._env.event()
        request.warming[drafter.number] = warmed
        if resolution.site == Site.EDGE_SERVER:
            channel = request.device.edge_up
            assert channel is not None
            size = self._protocol.header_bytes + request.spec.prompt_tokens * self._protocol.bytes_per_token
            arrives_s = channel.send(self.now_s, size)
            self._count_bytes(size, request.device)
            yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        prompt = request.spec.prompt_tokens
        yield self._draft_job(DraftJob(request, drafter, 0, prompt, prompt, self._env.event()))
        request.drafter_valid[drafter.number] = prompt
        del request.warming[drafter.number]
        warmed.succeed()

    def _edge_round(self, request: Request, resolution: Resolution) -> Process:
        """Draft on the device or an edge server, verify at the target, return the result there."""
        drafter = self._drafter(resolution)
        on_device = resolution.site == Site.OWN_DEVICE
        place = (resolution.site, request.device.number if on_device else resolution.edge_server)
        if request.control != place:
            lag = request.drafter_lag(drafter.number)
            yield from self._move_control(request, place, tokens=min(lag, request.context_tokens))
        if drafter.number in request.warming:
            yield request.warming[drafter.number]
        context = request.context_tokens
        drafted = self._drafts(request, drafter, resolution.gamma)
        yield self._draft(request, drafter, drafted)

        target = self._world.targets[resolution.target]
        moves = resolution.target != request.target
        size = drafted * self._protocol.bytes_per_draft_token
        if moves:
            size += context * self._protocol.bytes_per_token
        sent_s = self.now_s
        if on_device:
            arrives_s = self._send_up(request.device, size, request)
            self._expect_result(request, size)
        else:
            arrives_s = self._send_backhaul(resolution.edge_server, resolution.target, True, size, request)
        self._draft_ahead(request, drafter, drafted)
        yield from self._travel(request, arrives_s)
        request.control = (Site.COLOCATED, resolution.target)
        served_s = self.now_s
        yield from self._serve(
            request, target, TargetTask.VERIFY, resolution, gamma=drafted, prefill=context - 1 if moves else 0
        )
        served_s = self.now_s - served_s
        if request.finished:
            return
        self._expect_drafts(request)
        if on_device:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            request.exchange += 1
            self._measure(request, (self.now_s - sent_s) - served_s)
        else:
            result = request.round_tokens * self._protocol.bytes_per_token
            back_s = self._send_backhaul(resolution.edge_server, resolution.target, False, result, request)
            yield self._env.at(back_s, Order.DELIVERY, request.number)
        request.control = place
        self._settle_ahead(request)

    def _colocated_round(self, request: Request, resolution: Resolution) -> Process:
        """Draft and verify at the target. Nothing travels but the tokens, which go down to the client."""
        target = self._world.targets[resolution.target]
        prefill = yield from self._reach_target(request, resolution)
        drafter = self._drafter(resolution)
        if drafter.server is None:
            drafted = resolution.gamma
            if drafter.kind == DrafterKind.LOOKUP:
                drafted = self._drafts(request, drafter, drafted)
            yield from self._serve(
                request, target, TargetTask.COLOCATED, resolution, gamma=drafted, prefill=prefill
            )
            return
        drafted = self._drafts(request, drafter, resolution.gamma)
        yield self._draft(request, drafter, drafted)
        self._draft_ahead(request, drafter, drafted)
        yield from self._serve(request, target, TargetTask.VERIFY, resolution, gamma=drafted, prefill=prefill)
        if not request.finished:
            self._settle_ahead(request)

    def _plain_round(self, request: Request, resolution: Resolution) -> Process:
        """Let the target decode a chunk of tokens without drafts and send each one at once."""
        prefill = yield from self._reach_target(request, resolution)
        target = self._world.targets[resolution.target]
        yield from self._serve(request, target, TargetTask.PLAIN, resolution, prefill=prefill)

    def _reach_target(self, request: Request, resolution: Resolution) -> Generator[simpy.Event, object, int]:
        """Bring control to the target; return the context tokens to prefill there first."""
        place = (Site.COLOCATED, resolution.target)
        moves = resolution.target != request.target
        if request.control != place:
            yield from self._move_control(request, place, tokens=request.context_tokens if moves else 0)
        if self._world.targets[resolution.target].down:
            raise _TargetDownError
        return request.context_tokens - 1 if moves else 0

    def _move_control(self, request: Request, place: tuple[Site, int], tokens: int) -> Process:
        """Move control to a place, hop by hop, by a message that carries the tokens the new place lacks."""
        device = request.device
        size = tokens * self._protocol.bytes_per_token
        while request.control != place:
            site, number = request.control
            to_site, to_number = place
            if site == Site.COLOCATED and to_site == Site.EDGE_SERVER:
                arrives_s = self._send_backhaul(to_number, number, False, size, request)
                hop = place
            elif site == Site.EDGE_SERVER and to_site == Site.COLOCATED:
                arrives_s = self._send_backhaul(number, to_number, True, size, request)
                hop = place
            elif site == Site.COLOCATED:
                arrives_s = self._send_down(device, size, request)
                hop = (Site.OWN_DEVICE, device.number)
            elif site == Site.EDGE_SERVER:
                arrives_s = self._send_edge(device, False, size, request)
                hop = (Site.OWN_DEVICE, device.number)
            elif to_site == Site.COLOCATED:
                arrives_s = self._send_up(device, size, request)
                hop = place
            else:
                arrives_s = self._send_edge(device, True, size, request)
                hop = place
            yield from self._travel(request, arrives_s)
            request.control = hop

    # ------------------------------------------------------------------ what goes wrong

    def _fault(self, member: FaultMember) -> Process:
        """Let one entity crash and return, time after time."""
        windows = FaultWindows(member, self.seed)
        while windows.start_s < float("inf"):
            yield self._env.at(windows.start_s, Order.FAULT, member.number)
            self._log(EventKind.FAULT, member.entity, None, member.number)
            self._crash(member)
            yield self._env.at(windows.end_s, Order.FAULT, member.number)
            self._log(EventKind.RETURN, member.entity, None, member.number)
            self._come_back(member)
            windows.advance()

    def _crash(self, member: FaultMember) -> None:
        if member.site == "target":
            target = self._world.targets[member.entity]
            target.down += 1
            if target.down == 1:
                self._crash_target(target)
        elif member.site == "edge":
            self._crash_drafters(self._world.edges[member.entity])
        else:
            device = self._world.devices[member.entity]
            device.down_faults += 1
            self._crash_drafters(device.drafters)

    def _come_back(self, member: FaultMember) -> None:
        if member.site == "target":
            target = self._world.targets[member.entity]
            target.down -= 1
            if target.down == 0:
                self._drafters_return(target.drafters)
            return
        if member.site == "edge":
            place = (Site.EDGE_SERVER, member.entity)
            self._drafters_return(self._world.edges[member.entity])
        else:
            place = (Site.OWN_DEVICE, member.entity)
            device = self._world.devices[member.entity]
            device.down_faults -= 1
            self._drafters_return(device.drafters)
        if not self._is_down(place) and place in self._back:
            self._back.pop(place).succeed()

    def _is_down(self, place: tuple[Site, int]) -> bool:
        """Return whether a place is down, so that no decision can be taken there.

        A target never counts as down here: its front end takes the decisions, and that does not crash.
        """
        site, number = place
        if site == Site.OWN_DEVICE:
            return self._world.devices[number].down_faults > 0
        return site == Site.EDGE_SERVER and self._world.edges[number][0].own_server.down > 0

    def _crash_target(self, target: TargetServer) -> None:
        """Take from a target its KV, its queue and the iteration under way, and interrupt its requests.

        Committed tokens are not lost: the front end, which survives and holds the connections, has sent them.
        """
        if not target.idle:
            self._iteration_over(target)
            assert target.end is not None and target.end.callbacks is not None
            target.end.callbacks.clear()
        target.ready.clear()
        target.waiting.clear()
        target.kv_reserved_tokens = 0
        target.resident = 0
        target.modes.clear()
        self._occupy(target)
        target.check_s = target.admission_check_s = float("inf")
        for request in list(self._active.values()):
            if request.target == target.number and not request.finished:
                request.target = -1
                request.kv_reserved_tokens = 0
                request.kept_tokens = 0
                self._totals.interruptions += 1
                self._interrupt(request, Interruption.TARGET_LOST)
        for drafter in target.drafters:
            self._lose_drafter_kv(drafter.number)
        self._crash_drafters(target.drafters)

    def _crash_drafters(self, drafters: tuple[SiteDrafter, ...]) -> None:
        """Take their KV from the drafters of a site that have servers of their own.

        They redo their drafts after their return, but not those drafted ahead.
        """
        for server in servers_of(drafters):
            server.down += 1
            if server.down > 1:
                continue
            for drafter in drafters:
                if drafter.server is server:
                    self._lose_drafter_kv(drafter.number)
            for job in [*server.active, *server.queue]:
                if job.is_ahead:
                    self._roll_back(job)
                    job.request.ahead = None
            if server.active:
                server.queue.extendleft(reversed(server.active))
                server.active.clear()
                self._drafting_over(server)
            for job in server.queue:
                job.begin_anew()

    def _drafters_return(self, drafters: tuple[SiteDrafter, ...]) -> None:
        for server in servers_of(drafters):
            server.down -= 1
            self._start_drafts(server)

    def _lose_drafter_kv(self, drafter_number: int) -> None:
        for request in self._active.values():
            request.drafter_valid.pop(drafter_number, None)
            if request.head_start is not None and request.head_start.drafter_number == drafter_number:
                self._discard_head_start(request)

    def _interrupt(self, request: Request, cause: Interruption) -> None:
        """Stop what a request is doing; its process goes on with what the cause calls for."""
        self._abandon(request)
        assert request.process is not None
        request.process.interrupt(cause)

    def _abandon(self, request: Request) -> None:
        """Cancel a request's drafts and messages under way; a message already sent will arrive too late."""
        request.served += 1
        request.exchange += 1
        if request.in_flight is not None:
            callbacks = request.in_flight.callbacks
            assert callbacks is not None
            callbacks.append(lambda _event: self._late(request))
            request.in_flight = None
        if request.draft is not None:
            self._totals.discarded += self._withdraw(request.draft)
            request.draft = None
        if request.ahead is not None:
            self._roll_back(request.ahead)
            request.ahead = None
        if request.head_start is not None:
            self._discard_head_start(request)

    def _late(self, request: Request) -> None:
        self._totals.late_messages += 1
        self._log(EventKind.LATE, -1, request, 0)

    def _reconnect(self, request: Request) -> Process:
        """Let the front end notice that the target is down and tell the client, who decides again."""
        detected_s = self.now_s + self._protocol.crash_detection_s
        yield self._env.at(detected_s, Order.DELIVERY, request.number)
        arrives_s = self._send_down(request.device, 0.0, request)
        yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        request.control = (Site.OWN_DEVICE, request.device.number)

    def _expect_drafts(self, request: Request) -> None:
        """Start the target's patience: it has sent a result and waits a limited time for the next drafts."""
        patience_s = self._protocol.patience_s
        if patience_s is not None:
            served = request.served
            timer = self._env.at(self.now_s + patience_s, Order.TIMEOUT, 2 * request.number)
            assert timer.callbacks is not None
            timer.callbacks.append(lambda _event: self._patience_ends(request, served))

    def _patience_ends(self, request: Request, served: int) -> None:
        if request.served == served and not request.finished:
            self._totals.takeovers += 1
            self._log(EventKind.TAKEOVER, request.target, request, float(self._protocol.patience_s or 0.0))
            self._interrupt(request, Interruption.TAKEOVER)

    def _decode_alone(self, request: Request) -> Process:
        """Let the target go on by plain decoding; the next decision is taken there."""
        target = self._world.targets[request.target]
        request.control = (Site.COLOCATED, target.number)
        yield from self._serve(request, target, TargetTask.PLAIN, None)

    def _expect_result(self, request: Request, size_bytes: float) -> None:
        """Start the device's time-out: it has sent drafts and sends them again if no result comes in time."""
        request.exchange += 1
        if self._protocol.client_timeout_s is not None:
            self._send_again_after(request, size_bytes, self._protocol.client_timeout_s, request.exchange)

    def _send_again_after(self, request: Request, payload_bytes: float, wait_s: float, exchange: int) -> None:
        timer = self._env.at(self.now_s + wait_s, Order.TIMEOUT, 2 * request.number + 1)

        def send_again(_event: simpy.Event) -> None:
            if request.exchange != exchange or request.finished:
                return
            if request.device.down_faults == 0:
                arrives_s = self._send_up(request.device, payload_bytes, request)
                duplicate = self._env.at(arrives_s, Order.DELIVERY, request.number)
                assert duplicate.callbacks is not None
                duplicate.callbacks.append(lambda _event: self._duplicate(request))
            self._send_again_after(request, payload_bytes, 2.0 * wait_s, exchange)

        assert timer.callbacks is not None
        timer.callbacks.append(send_again)

    def _duplicate(self, request: Request) -> None:
        """Count a message whose round number the target has seen before; the target ignores it."""
        self._totals.duplicate_messages += 1
        self._log(EventKind.DUPLICATE, -1, request, 0)

    # ------------------------------------------------------------------ requests

    def _arrive(self, device: Device, spec: RequestSpec) -> Request:
        now_s = self.now_s
        self._accrue(now_s)
        request = Request(
            number=self._arrived,
            spec=spec,
            device=device,
            arrival_s=now_s,
            control=(Site.OWN_DEVICE, device.number),
            acceptance={},
            sources=self._world.sources,
        )
        if self.scenario.episode.window_s is None:
            if self._arrived == self._first_measured:
                self._windows.append(self._window(now_s))
        elif self._is_measured(request):
            self._cohort_left += 1
        self._arrived += 1
        self._in_system += 1
        self._active[request.number] = request
        self._log(EventKind.ARRIVAL, device.number, request, spec.prompt_tokens)
        return request

    def _complete(self, request: Request) -> None:
        now_s = self.now_s
        self._accrue(now_s)
        if request.ahead is not None:
            self._roll_back(request.ahead)
            request.ahead = None
        request.completed_s = now_s
        self._in_system -= 1
        del self._active[request.number]
        self._completed.append(request)
        self.newly_completed.append(request)
        self._totals.complete(request)
        self._telemetry.count_completed(request.spec.slo_class, meets_slo(request))
        self._log(EventKind.COMPLETE, request.device.number, request, now_s - request.arrival_s)
        if self.scenario.episode.window_s is None:
            counts, over = request.number < self._end_measured, True
        else:
            counts, over = self._is_measured(request), self._end_measured != NOT_YET
        if counts:
            self._cohort_left -= 1
            if over and self._cohort_left == 0:
                self.truncated = True
        if self._arrivals_are_over() and self._in_system == 0:
            self.terminated = True
            self.truncated = False

    def _drafts(self, request: Request, drafter: SiteDrafter, gamma: int) -> int:
        """Return how many tokens a drafter proposes of those it is asked for.

        The confidence stop may end a draft, but not that of a look-up, which has no probabilities. It
        proposes what it has found, perhaps nothing.
        """
        if drafter.kind == DrafterKind.LOOKUP:
            return request.realise(self.seed, drafter.model).proposed_at(request.committed, gamma)
        threshold = self._protocol.confidence_stop
        if threshold == 0.0:
            return gamma
        confidence = request.realise(self.seed, drafter.model).top1_prob
        start = request.committed
        for drafted in range(1, gamma):
            position = start + drafted - 1
            if position >= len(confidence) or confidence[position] < threshold:
                return drafted
        return gamma

    def _verified(self, request: Request, drafter_number: int, drafted: int) -> None:
        """Commit the outcome of verifying ``drafted`` tokens: the accepted ones and one more."""
        model = self._world.drafters[drafter_number].model
        realisation = request.realise(self.seed, model)
        start = request.committed
        left = request.spec.output_tokens - start
        run = realisation.run_at(start, request.chain_start)
        accepted = drafting.accepted_tokens(drafted, run, left)
        committed = min(accepted + 1, left)
        request.guessed = run > drafted
        request.drafter_valid[drafter_number] = drafting.valid_after(
            request.context_tokens, drafted, accepted
        )
        request.drafted_at = drafter_number
        request.verifies += 1
        request.drafted += drafted
        request.accepted += accepted
        request.round_tokens = committed
        # Drafts after the first rejected one follow a wrong path, for which no confidence is recorded.
        last = min(start + max(0, min(accepted, drafted - 1)), len(realisation.top1_prob) - 1)
        confidence = float(realisation.top1_prob[last])
        request.learn(model, drafted, accepted, committed, confidence, self._protocol.stats_window)
        self._totals.verified(drafted, accepted, committed)
        self._commit(request, committed)

    def _commit(self, request: Request, tokens: int) -> None:
        """Commit output tokens at the target and send them to the client."""
        now_s = self.now_s
        if request.committed == 0:
            request.first_commit_s = now_s
        request.last_commit_s = now_s
        request.committed += tokens
        self._totals.output_tokens += tokens
        self._telemetry.count_tokens(tokens)
        self._log(EventKind.COMMIT, request.target, request, tokens)
        arrives_s = self._send_down(request.device, tokens * self._protocol.bytes_per_token, request)
        before = request.committed - tokens
        previous_s = request.delivery_s[-1] if before else arrives_s
        slo.note_delivery(request, request.spec, before, tokens, previous_s, arrives_s)
        request.delivery_s.append(arrives_s)
        request.delivery_tokens.append(tokens)
        if request.finished:
            self._release(request)

    def _measure(self, request: Request, round_trip_s: float) -> None:
        request.device.measure(self.now_s, round_trip_s, self._protocol.stats_window)
        request.own_jobs = request.device.jobs

    # ------------------------------------------------------------------ links

    def _send_up(self, device: Device, payload_bytes: float, request: Request) -> float:
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = device.up.send(self.now_s, size)
        self._sent(device, device.up.last_lost, size)
        request.own_jobs = device.jobs
        return self._trace_message(f"up:{device.number}", request, 2 * device.number, arrives_s)

    def _send_down(self, device: Device, payload_bytes: float, request: Request) -> float:
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = device.down.send(self.now_s, size)
        self._sent(device, device.down.last_lost, size)
        self._totals.cloud_usd += size * 1e-9 * self.scenario.egress_usd_per_gigabyte
        return self._trace_message(f"down:{device.number}", request, 2 * device.number, arrives_s)

    def _send_edge(self, device: Device, up: bool, payload_bytes: float, request: Request) -> float:
        channel = device.edge_up if up else device.edge_down
        assert channel is not None
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = channel.send(self.now_s, size)
        self._count_bytes(size, device)
        return self._trace_message(f"lan:{device.number}", request, 2 * device.number + 1, arrives_s)

    def _send_backhaul(
        self, edge: int, target: int, up: bool, payload_bytes: float, request: Request
    ) -> float:
        channel = self._world.backhauls[edge][target][0 if up else 1]
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = channel.send(self.now_s, size)
        self._totals.network_bytes += size
        return self._trace_message(f"backhaul:{edge}", request, channel.number, arrives_s)

    def _sent(self, device: Device, lost: int, size_bytes: float) -> None:
        device.loss += self._protocol.stats_window * ((1.0 if lost else 0.0) - device.loss)
        self._count_bytes(size_bytes, device)

    def _count_bytes(self, size_bytes: float, device: Device) -> None:
        joules = size_bytes * device.radio_joules_per_byte
        self._totals.network_bytes += size_bytes
        self._totals.energy_joules += joules
        self._totals.client_joules += joules

    def _trace_message(self, lane: str, request: Request, link: int, arrives_s: float) -> float:
        self._log(EventKind.SEND, link, request, arrives_s)
        if self._record_spans:
            self.spans.append(Span(lane, "message", self.now_s, arrives_s, request.number))
        return arrives_s

    # ------------------------------------------------------------------ drafters

    def _drafter(self, resolution: Resolution) -> SiteDrafter:
        return self._world.drafters[resolution.drafter_number]

    def _draft(self, request: Request, drafter: SiteDrafter, drafted: int) -> simpy.Event:
        """Draft a window, using a head start if there is one; return the event of its completion."""
        head, request.head_start = request.head_start, None
        if head is None:
            request.chain_start = request.committed
        else:
            self._totals.discarded += max(0, head.drafts - drafted)
        lag = request.drafter_lag(drafter.number)
        done = self._env.event()
        request.draft = DraftJob(
            request, drafter, drafted, lag, request.context_tokens, done, head_start=head
        )
        return self._draft_job(request.draft)

    def _draft_ahead(self, request: Request, drafter: SiteDrafter, drafted: int) -> None:
        """Draft ahead while a window is verified: guess the token after it and draft another window.

        A look-up has no time to gain by that.
        """
        context = request.context_tokens + drafted
        if drafter.kind == DrafterKind.LOOKUP:
            return
        if self._protocol.kind != "pipelined" or context + drafted + 1 > drafter.kv_capacity_tokens:
            return
        done = self._env.event()
        request.ahead = DraftJob(request, drafter, drafted + 1, 1, context, done, is_ahead=True)
        self._draft_job(request.ahead)

    def _settle_ahead(self, request: Request) -> None:
        """Keep what was drafted ahead if the result confirms it; otherwise roll it back."""
        job, request.ahead = request.ahead, None
        if job is None:
            return
        done_s = job.done_s(self.now_s)
        tokens = job.tokens_after(done_s)
        if tokens > 0 and request.context_tokens == job.context_tokens + 1:
            # The whole window was right, and the drafter has processed all of it.
            request.drafter_valid[job.drafter.number] = job.context_tokens
        if request.guessed and done_s > 0.0:
            self._withdraw(job)
            request.head_start = HeadStart(job.drafter.number, job.context_tokens, done_s, tokens)
        else:
            self._roll_back(job)

    def _roll_back(self, job: DraftJob) -> None:
        """Discard what a job has drafted ahead."""
        tokens = self._withdraw(job)
        self._totals.discarded += tokens
        self._log(EventKind.ROLLBACK, job.drafter.number, job.request, tokens)

    def _discard_head_start(self, request: Request) -> None:
        """Discard a head start that the next window cannot use."""
        head, request.head_start = request.head_start, None
        assert head is not None
        self._totals.discarded += head.tokens
        self._log(EventKind.ROLLBACK, head.drafter_number, request, head.tokens)

    def _withdraw(self, job: DraftJob) -> int:
        """Remove a job from its drafter; return how many of its tokens are complete."""
        tokens = job.tokens_after(job.done_s(self.now_s))
        if job.state == JobState.QUEUED:
            job.drafter.own_server.queue.remove(job)
        elif job.state == JobState.ACTIVE:
            assert job.timer is not None and job.timer.callbacks is not None
            job.timer.callbacks.clear()
            self._leave(job, tokens)
        return tokens

    def _draft_job(self, job: DraftJob) -> simpy.Event:
        """Queue a job at its drafter; return the event of its end."""
        server = job.drafter.own_server
        server.queue.append(job)
        self._start_drafts(server)
        return job.done

    def _start_drafts(self, server: DrafterServer) -> None:
        now_s = self.now_s
        while server.can_start:
            job = server.queue.popleft()
            begins = not server.active
            if begins:
                server.busy_since_s = now_s
            server.active.append(job)
            if begins and server.gpus > 0.0:
                self._occupancy_changes()
            job.start(now_s)
            number = job.drafter.number
            self._log(EventKind.DRAFT_START, number, job.request, job.gamma)
            job.timer = self._env.at(now_s + job.duration_s, Order.DRAFT_END, number)
            assert job.timer.callbacks is not None
            job.timer.callbacks.append(self._draft_ended(job))

    def _draft_ended(self, job: DraftJob) -> Callable[[simpy.Event], None]:
        def ended(_event: simpy.Event) -> None:
            server = job.drafter.own_server
            duration_s = self.now_s - job.start_s
            server.mean_job_s += self._protocol.stats_window * (duration_s - server.mean_job_s)
            if job.request.draft is job:
                job.request.draft = None
            # The job leaves the drafter before the request goes on.
            self._leave(job, job.gamma)
            job.done.succeed()

        return ended

    def _leave(self, job: DraftJob, tokens: int) -> None:
        """Let a job, complete or not, leave its drafter, and start the next."""
        server, now_s = job.drafter.own_server, self.now_s
        job.state = JobState.ENDED
        server.active.remove(job)
        if not server.active:
            self._drafting_over(server)
        self._log(EventKind.DRAFT_END, job.drafter.number, job.request, tokens)
        if self._record_spans:
            label = "draft" if job.gamma else "prefill"
            self.spans.append(Span(server.lane, label, job.start_s, now_s, job.request.number))
        self._start_drafts(server)

    def _drafting_over(self, server: DrafterServer) -> None:
        """Book the cost of a busy period of what drafters run on, which has just ended."""
        busy_s = self.now_s - server.busy_since_s
        server.busy_s += busy_s
        joules = (server.power.busy_w - server.power.idle_w) * busy_s
        self._totals.energy_joules += joules
        if server.gpus == 0.0:  # a user's device
            self._totals.client_joules += joules
        else:
            self._totals.gpu_s += busy_s * server.gpus
            self._occupancy_changes()

    def _occupancy_changes(self) -> None:
        """Accrue what the occupied GPUs have cost until now, and note which are occupied from now on."""
        self._accrue(self.now_s)
        gpus = usd_per_s = 0.0
        for target in self._world.targets:
            if target.is_occupied:
                gpus += target.config.gpus
                usd_per_s += target.config.gpus * target.config.price_usd_per_gpu_hour / 3600.0
        for server in self._servers:
            if server.active:
                gpus += server.gpus
                usd_per_s += server.gpus * server.price_usd_per_gpu_hour / 3600.0
        self._occupied = (gpus, usd_per_s)

    def _occupy(self, target: TargetServer) -> None:
        """Note whether requests are at a target, after that may have changed."""
        occupied = target.resident > 0 or len(target.waiting) > 0
        if target.is_occupied != occupied:
            target.is_occupied = occupied
            self._occupancy_changes()

    # ------------------------------------------------------------------ targets

    def _serve(
        self,
        request: Request,
        target: TargetServer,
        task: TargetTask,
        resolution: Resolution | None,
        *,
        gamma: int = 0,
        prefill: int = 0,
        warm: bool = False,
    ) -> Process:
        """Queue a job at a target and wait until it is done."""
        if target.down:
            raise _TargetDownError
        request.served += 1
        chunk = self._protocol.plain_chunk_tokens
        job = Job(request, task, gamma, chunk, prefill, warm, self._env.event())
        if resolution is not None:
            job.drafter_number = resolution.drafter_number
            job.asked_batch = resolution.batch_size
        if request.target != target.number:
            if request.target >= 0:
                self._release(request)
            request.target = target.number
            self._enter(target, job)
        elif request.kv_reserved_tokens == 0:
            # The target has preempted the request since its last job.
            job.prefill_again()
            self._enter(target, job)
        else:
            self._join(target, job)
        request.control = (Site.COLOCATED, target.number)
        if task != TargetTask.PREFILL:
            target.modes[request.number] = (task, gamma)
        self._wake(target)
        yield job.done
        request.report = target.report(self.now_s)

    def _release(self, request: Request) -> None:
        """Free a request's KV at its target."""
        target = self._world.targets[request.target]
        request.kept_tokens = 0
        if request.kv_reserved_tokens > 0:
            target.kv_reserved_tokens -= request.kv_reserved_tokens
            request.kv_reserved_tokens = 0
            target.resident -= 1
        target.modes.pop(request.number, None)
        self._occupy(target)
        self._admit(target)
        self._wake(target)

    def _enter(self, target: TargetServer, job: Job) -> None:
        """Let a job's request wait for admission."""
        job.entered_s = self.now_s
        target.waiting.append(job)
        self._occupy(target)
        self._admit(target)

    def _admit(self, target: TargetServer) -> None:
        """Admit waiting requests in order, past those that stand back, while there are seats and KV."""
        config = target.config
        for job in list(target.waiting):
            if target.resident >= config.max_num_seqs:
                return
            latest_s = job.entered_s + config.max_admission_wait_s
            if not may_enter(target.resident, config.max_num_seqs, job.asked_batch, self.now_s, latest_s):
                continue
            request = job.request
            need = self._kv_to_admit(target, job)
            if target.kv_reserved_tokens + need > config.kv_capacity_tokens:
                return
            target.waiting.remove(job)
            if request.kept_tokens > 0:
                job.skip_cached(target.cached_tokens(request))
                request.kept_tokens = 0
            self._give_kv(target, request, need)
            target.resident += 1
            request.admission = target.admissions
            target.admissions += 1
            self._log(EventKind.ADMIT, target.number, request, need)
            self._join(target, job)

    @staticmethod
    def _give_kv(target: TargetServer, request: Request, tokens: int) -> None:
        target.kv_reserved_tokens += tokens
        target.kv_given_tokens += tokens
        request.kv_reserved_tokens += tokens

    def _kv_to_admit(self, target: TargetServer, job: Job) -> int:
        """Return the free KV tokens that admission takes: a request's worst case, or what it needs now."""
        if target.config.kv_policy == "preempt":
            return job.request.context_tokens + job.gamma
        return self.scenario.kv_reservation_tokens(job.request.spec.prompt_tokens)

    def _join(self, target: TargetServer, job: Job) -> None:
        job.queued_s = self.now_s
        job.sequence = target.joined
        target.joined += 1
        target.ready.append(job)
        self._log(EventKind.ENQUEUE, target.number, job.request, job.gamma + 1)

    def _wake(self, target: TargetServer) -> None:
        """Schedule when a target next has something to do by itself.

        It starts an iteration, or admits a request that has stood back long enough.
        """
        if target.idle and target.ready:
            check_s = self.now_s if target.is_due(self.now_s) else target.due_s
            if check_s < target.check_s:
                target.check_s = check_s
                self._look_at(target, check_s)
        stood_back_s = self._stood_back_s(target)
        if stood_back_s < target.admission_check_s:
            target.admission_check_s = stood_back_s
            self._look_at(target, stood_back_s)

    def _look_at(self, target: TargetServer, time_s: float) -> None:
        event = self._env.at(time_s, Order.ITERATION_START, target.number)
        assert event.callbacks is not None
        event.callbacks.append(lambda _event: self._check(target))

    def _check(self, target: TargetServer) -> None:
        if target.check_s == self.now_s:
            target.check_s = float("inf")
        if target.admission_check_s == self.now_s:
            target.admission_check_s = float("inf")
            self._admit(target)
        if target.idle and target.ready and target.is_due(self.now_s):
            self._start_iteration(target)
        self._wake(target)

    def _stood_back_s(self, target: TargetServer) -> float:
        """Return when the first of those who stand back at a target no longer does (infinity: nobody)."""
        for job in target.waiting:
            latest_s = job.entered_s + target.config.max_admission_wait_s
            if job.asked_batch > 1 and latest_s > self.now_s:
                return latest_s
        return float("inf")

    def _start_iteration(self, target: TargetServer) -> None:
        now_s = self.now_s
        batch = target.compose()
        if target.config.kv_policy == "preempt":
            batch = self._make_room(target, batch)
            if not batch:
                return
        shares = self._shares(target, batch)
        prefills = any(job.prefill_tokens for job, _ in batch)
        captured = () if prefills else target.config.graph_batch_tokens
        cost = IterationCost(target.timer, target.shared, shares, captured)
        expected_s = cost.duration_s
        duration_s = cost.compute_s * target.noise(self.seed) + cost.overhead_s
        if self._price_delays:
            self._charge(target, batch, shares, cost)
        target.running = batch
        target.idle = False
        target.iterations += 1
        target.iteration_start_s = now_s
        target.expected_end_s = now_s + expected_s
        self._log(EventKind.ITERATION_START, target.number, None, len(batch))
        target.end = self._env.at(now_s + duration_s, Order.ITERATION_END, target.number)
        assert target.end.callbacks is not None
        target.end.callbacks.append(lambda _event: self._end_iteration(target))

    def _make_room(self, target: TargetServer, batch: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
        """Reserve the KV that each sequence of a batch needs; return the batch without preempted ones.

        While the pool would overflow, the request admitted last loses its KV, whether it is in this batch, in
        the ready queue, or drafting elsewhere.
        """
        capacity = target.config.kv_capacity_tokens
        for job, _ in batch:
            request = job.request
            need = request.context_tokens + (0 if job.prefill_tokens else job.gamma)
            while request.kv_reserved_tokens > 0 and (
                target.kv_reserved_tokens + max(0, need - request.kv_reserved_tokens) > capacity
            ):
                self._preempt(target, batch)
            if request.kv_reserved_tokens > 0:
                self._give_kv(target, request, max(0, need - request.kv_reserved_tokens))
        return [(job, tokens) for job, tokens in batch if job.request.kv_reserved_tokens > 0]

    def _preempt(self, target: TargetServer, batch: list[tuple[Job, int]]) -> None:
        """Preempt the request admitted last: it loses its KV, waits at the front and prefills again."""
        victim = max(
            (
                request
                for request in self._active.values()
                if request.target == target.number and request.kv_reserved_tokens > 0
            ),
            key=lambda request: request.admission,
        )
        self._totals.preemptions += 1
        self._log(EventKind.PREEMPT, target.number, victim, victim.kv_reserved_tokens)
        free = target.config.kv_capacity_tokens - target.kv_reserved_tokens
        victim.kept_tokens = victim.context_tokens
        victim.overwritten_from_tokens = target.kv_given_tokens + free
        target.kv_reserved_tokens -= victim.kv_reserved_tokens
        victim.kv_reserved_tokens = 0
        target.resident -= 1
        for number in target.shared:
            victim.drafter_valid.pop(number, None)
        for job in [*target.ready, *(job for job, _ in batch)]:
            if job.request is victim:
                if job.prefill_tokens:
                    victim.kept_tokens = job.prefilled_tokens
                job.prefill_again()
                job.entered_s = self.now_s
                target.waiting.appendleft(job)
        target.ready = [job for job in target.ready if job.request is not victim]

    def _charge(
        self, target: TargetServer, batch: list[tuple[Job, int]], shares: list[Share], cost: IterationCost
    ) -> None:
        """Add to each request the time by which it delays others.

        A sequence delays every other request in the batch or in the target's queues by its part of the
        iteration's time (see :meth:`IterationCost.caused_s`). Requests that are away, drafting elsewhere,
        wait for nothing here. (Another rule was tried: it divided the whole iteration's time, the reading of
        the weights included, among the sequences. Policies trained with it avoided the targets' own
        drafters, which made every request slower.)
        """
        others = len(batch) - 1 + len(target.ready) + len(target.waiting)
        for (job, _), share in zip(batch, shares, strict=True):
            job.request.delay_caused_s += cost.caused_s(share) * others

    def _shares(self, target: TargetServer, batch: list[tuple[Job, int]]) -> list[Share]:
        """Return what each sequence of a batch brings into the iteration."""
        shares = []
        for job, tokens in batch:
            request = job.request
            context, number = request.context_tokens, job.drafter_number
            if job.prefill_tokens:
                kv = job.prefilled_tokens + tokens
                timer = target.shared.get(number) if job.warm_drafter else None
                if timer is None or timer.per_round:
                    shares.append(Share(tokens, kv))
                else:
                    shares.append(Share(tokens, kv, tokens, kv, drafter=number))
            elif job.task == TargetTask.COLOCATED:
                lag = request.drafter_lag(number)
                shares.append(
                    Share(tokens, context + tokens - 1, lag, context, job.gamma, number, verifies=tokens > 1)
                )
            else:
                shares.append(Share(tokens, context + tokens - 1, verifies=tokens > 1))
        return shares

    def _end_iteration(self, target: TargetServer) -> None:
        now_s = self.now_s
        batch = target.running
        duration_s = self._iteration_over(target)
        target.iteration_s += self._protocol.stats_window * (duration_s - target.iteration_s)
        new_tokens = sum(tokens for _, tokens in batch)
        target.iteration_tokens += self._protocol.stats_window * (new_tokens - target.iteration_tokens)
        self._log(EventKind.ITERATION_END, target.number, None, new_tokens)
        if self._record_spans:
            lane = f"target:{target.number}"
            self.spans.append(Span(lane, _bar_label(batch), target.iteration_start_s, now_s, -1))
        for job, tokens in batch:
            self._advance(target, job, tokens)
        self._wake(target)

    def _iteration_over(self, target: TargetServer) -> float:
        """Make a target idle and book the cost of its iteration; return how long the iteration ran."""
        duration_s = self.now_s - target.iteration_start_s
        target.running = []
        target.idle = True
        target.busy_s += duration_s
        config = target.config
        self._totals.gpu_s += duration_s * config.gpus
        self._totals.energy_joules += duration_s * (config.power.busy_w - config.power.idle_w)
        return duration_s

    def _advance(self, target: TargetServer, job: Job, tokens: int) -> None:
        """Apply what one iteration did for one job."""
        request = job.request
        if job.prefill_tokens:
            job.prefill_tokens -= tokens
            job.prefilled_tokens += tokens
            if job.warm_drafter and job.drafter_number in target.shared:
                request.drafter_valid[job.drafter_number] = job.prefilled_tokens
            if job.prefill_tokens or job.task != TargetTask.PREFILL:
                target.ready.append(job)
                return
            self._commit(request, 1)
        elif job.task == TargetTask.PLAIN:
            self._commit(request, 1)
            job.chunk_tokens -= 1
            if job.chunk_tokens > 0 and not request.finished:
                self._join(target, job)
                return
            request.recent_gammas = (0, *request.recent_gammas[:-1])
            request.recent_accepted = (0, *request.recent_accepted[:-1])
        elif job.task == TargetTask.COLOCATED:
            request.chain_start = request.committed
            self._verified(request, job.drafter_number, job.gamma)
        else:
            self._verified(request, job.drafter_number, job.gamma)
        self._env.at(self.now_s, Order.JOB_DONE, request.number, job.done)

    # ------------------------------------------------------------------ bookkeeping

    def _accrue(self, now_s: float) -> None:
        """Update the totals that grow with time."""
        self._totals.accrue(now_s, self._in_system, self._world.idle_w, *self._occupied)

    def _log(self, kind: EventKind, entity: int, request: Request | None, value: float) -> None:
        if self._record_events:
            number = -1 if request is None else request.number
            self.events.append(Event(self.now_s, kind, entity, number, float(value)))


def _bar_label(batch: list[tuple[Job, int]]) -> str:
    """Return an iteration's label in a timeline: the task that most defines its length."""
    tasks = {TargetTask.PREFILL if job.prefill_tokens else job.task for job, _ in batch}
    if TargetTask.COLOCATED in tasks:
        return "colocated"
    if TargetTask.VERIFY in tasks:
        return "verify"
    return "plain" if TargetTask.PLAIN in tasks else "prefill"
