"""The reference engine: the definition of the simulation, as SimPy processes.

A request is a process that reads like the protocol (:meth:`ReferenceSimulation._request`): arrive,
decide, prefill, then rounds of decide, draft, verify, deliver. A new protocol is a new kind of round.
Targets and drafters are queues with one timed event for the work under way.

Every event has an explicit place in the order of its instant (:class:`dsd_env.sim.events.Order`),
so that another engine can reproduce the same log.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from dsd_env.control.actions import Decision
from dsd_env.control.view import DecisionView, Site
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import Device, DraftJob, Job, JobKind, Request, Station, TargetServer
from dsd_env.sim.events import Event, EventKind, Order, Span
from dsd_env.sim.iteration import IterationCost, Share
from dsd_env.sim.metrics import Totals, Window, episode_metrics, requests_table
from dsd_env.sim.telemetry import Telemetry
from dsd_env.sim.world import World, WorldBuilder
from dsd_env.workload import RequestSpec, WorkloadGenerator

Process = Generator[simpy.Event, object, None]


class _Environment(simpy.Environment):
    """SimPy with absolute times and an explicit order of events at one instant.

    ``schedule`` would compute now + (t - now), which need not be t in floating point, so events go
    straight into the queue. SimPy's own priorities (0 and 1) come before every :class:`Order`.
    """

    def at(self, time_s: float, order: Order, entity: int, event: simpy.Event | None = None) -> simpy.Event:
        """Let an event happen at an absolute time, in the place that order and entity give it."""
        if event is None:
            event = simpy.Event(self)
        event._ok = True
        event._value = None
        queue: list[Any] = self._queue
        heapq.heappush(queue, (time_s, (order << 40) + entity, next(self._eid), event))
        return event


@dataclass(frozen=True, slots=True)
class Resolution:
    """A decision as it is executed.

    Attributes:
        gamma: Speculation length in force; 0 is plain decoding.
        batch_size: Batch size that comes into force at the target.
        site: Where drafts are made.
        station: Number of the drafter; -1 for plain decoding.
        edge_server: Number of the edge server; -1 elsewhere.
        target: Number of the target.
        reason: Why the decision was not executed as given; None if it was.
    """

    gamma: int
    batch_size: int
    site: Site
    station: int
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
        terminated: The workload is finished: every request arrived and completed.
        truncated: The episode's number of requests has completed, or its horizon is reached.
        events: Event log, if recorded.
        spans: Timeline bars, if recorded.
        resolved: Decisions that were not executed as given, by reason.
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
            builder: Builder of this scenario's worlds, to load profiles and traces only once.
        """
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
        self._workload = WorkloadGenerator(scenario, seed)
        self._world: World = (builder or WorldBuilder(scenario)).build(seed)
        self._env = _Environment()
        self._telemetry = Telemetry(scenario, self._world)
        self._pending: tuple[Request, simpy.Event, DecisionView] | None = None
        self._active: dict[int, Request] = {}
        self._completed: list[Request] = []
        self.newly_completed: list[Request] = []
        self._arrived = 0
        self._in_system = 0
        self._cohort = scenario.episode.warmup_requests + scenario.episode.requests
        self._cohort_left = self._cohort
        self._totals = Totals()
        self._window_start = Window(0.0, Totals(), [0.0] * len(self._world.targets))
        self._colocated_base = len(self._world.devices) + len(self._world.edges)
        self._start_processes()

    # ------------------------------------------------------------------ stepping

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self._env.now)

    def next_decision(self) -> DecisionView | None:
        """Advance to the next due decision and return what its controller knows; None at the end.

        Raises:
            RuntimeError: The decision before has not been answered.
        """
        if self._due_view() is not None:
            raise RuntimeError("answer the pending decision with decide() before asking for the next")
        horizon_s = self.scenario.episode.horizon_s
        env = self._env
        while not (self.terminated or self.truncated):
            if env.peek() > horizon_s:
                self.truncated = True
                self._accrue(horizon_s)
                env._now = horizon_s
                break
            env.step()
            if (view := self._due_view()) is not None:
                return view
        return None

    def _due_view(self) -> DecisionView | None:
        return None if self._pending is None else self._pending[2]

    def decide(self, decision: Decision) -> Resolution:
        """Answer the pending decision.

        Args:
            decision: Speculation length, batch size and placement. What cannot be done is resolved:
                drafting where no drafter is available becomes plain decoding at that candidate's
                target (``no_drafter``); a batch size above the target's limit is clipped
                (``batch_clipped``).

        Returns:
            The decision as it will be executed.

        Raises:
            RuntimeError: No decision is pending.
            ValueError: gamma or batch size negative or zero, or placement off the list.
        """
        if self._pending is None:
            raise RuntimeError("no decision is pending: call next_decision() first")
        _, answer, view = self._pending
        resolution = self._resolve(view, decision)
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
        candidate = view.candidates[placement]
        target = candidate.target.index
        reason = None
        if gamma > 0 and not candidate.valid:
            gamma, reason = 0, "no_drafter"
        limit = self._world.targets[target].config.max_batch_size
        if batch_size > limit:
            batch_size, reason = limit, reason or "batch_clipped"
        if reason is not None:
            self.resolved[reason] = self.resolved.get(reason, 0) + 1
        station = -1
        if gamma > 0:
            station = self._telemetry.station_number(
                view.device, candidate.site, candidate.edge_server, target
            )
        return Resolution(gamma, batch_size, candidate.site, station, candidate.edge_server, target, reason)

    # ------------------------------------------------------------------ results

    @property
    def due_request(self) -> Request | None:
        """The request whose decision is due."""
        return None if self._pending is None else self._pending[0]

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy.

        Looking does not change what is summed later: an observed episode has the same metrics to the
        last bit as one that nobody looked at.
        """
        totals = self._totals.copy()
        totals.accrue(self.now_s, self._in_system, self._world.idle_w)
        return totals

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far, by name; NaN where nothing was observed."""
        cohort = [
            r for r in self._completed if self.scenario.episode.warmup_requests <= r.number < self._cohort
        ]
        end = Window(self.now_s, self.totals, [target.busy_s for target in self._world.targets])
        return episode_metrics(
            self.scenario, cohort, self._window_start, end, self._arrived, len(self._completed)
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
        else:
            env.process(self._open_arrivals())
        env.process(self._publish())

    def _client(self, device: Device) -> Process:
        """A user who thinks, asks, reads the whole answer, and thinks again."""
        ordinal = 0
        while True:
            asks_s = self._workload.think_end_s(device.number, ordinal, self.now_s)
            yield self._env.at(asks_s, Order.ARRIVAL, device.number)
            if self._arrivals_are_over():
                return
            yield from self._request(device, self._workload.request(device.number, ordinal))
            ordinal += 1

    def _open_arrivals(self) -> Process:
        """Users who ask without waiting for one another."""
        ordinal = 0
        arrival_s = 0.0
        asked = [0] * len(self._world.devices)
        while not self._arrivals_are_over():
            arrival_s = self._workload.open_arrival_s(ordinal, arrival_s)
            yield self._env.at(arrival_s, Order.ARRIVAL, ordinal)
            device = self._world.devices[self._workload.open_device(ordinal)]
            self._env.process(
                self._request(device, self._workload.request(device.number, asked[device.number]))
            )
            asked[device.number] += 1
            ordinal += 1
            if self._arrivals_are_over(before=1):
                return

    def _arrivals_are_over(self, before: int = 0) -> bool:
        total = self.scenario.episode.total_requests
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
        """The life of one request."""
        request = self._arrive(device, spec)
        resolution = yield from self._decision(request)
        yield from self._prefill(request, resolution)
        while not request.finished:
            resolution = yield from self._decision(request)
            request.rounds += 1
            if resolution.gamma == 0:
                yield from self._plain_round(request, resolution)
            elif resolution.site == Site.COLOCATED:
                yield from self._colocated_round(request, resolution)
            else:
                yield from self._edge_round(request, resolution)
        yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
        self._complete(request)

    def _decision(self, request: Request) -> Generator[simpy.Event, object, Resolution]:
        """Wait for this request's turn among the decisions of the instant, and for the answer."""
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
        """The prompt goes up and is prefilled; the drafter prefills in parallel; one token comes back."""
        target = self._world.targets[resolution.target]
        device = request.device
        prompt = request.spec.prompt_tokens
        sent_s = self.now_s
        colocated = resolution.gamma > 0 and resolution.site == Site.COLOCATED
        if resolution.gamma > 0 and not colocated:
            self._env.process(self._warm_up(request, resolution))
        arrives_s = self._send_up(device, prompt * self._protocol.bytes_per_token, request)
        yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        self._telemetry.count_arrival()
        served_s = self.now_s
        yield from self._serve(request, target, JobKind.PREFILL, resolution, prefill=prompt, warm=colocated)
        served_s = self.now_s - served_s
        if request.finished:
            return
        if resolution.gamma > 0 and resolution.site == Site.OWN_DEVICE:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            self._measure(request, (self.now_s - sent_s) - served_s)
            request.control = (Site.OWN_DEVICE, device.number)
        elif resolution.gamma > 0 and resolution.site == Site.EDGE_SERVER:
            yield from self._move_control(request, (Site.EDGE_SERVER, resolution.edge_server), tokens=1)

    def _warm_up(self, request: Request, resolution: Resolution) -> Process:
        """The drafter prefills the prompt while the target does."""
        station = self._station(resolution)
        warmed = self._env.event()
        request.warming[station.number] = warmed
        if resolution.site == Site.EDGE_SERVER:
            channel = request.device.edge_up
            assert channel is not None
            size = self._protocol.header_bytes + request.spec.prompt_tokens * self._protocol.bytes_per_token
            arrives_s = channel.send(self.now_s, size)
            self._count_bytes(size, request.device)
            yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        prompt = request.spec.prompt_tokens
        yield self._draft_job(request, station, gamma=0, lag=prompt, context=prompt)
        request.drafter_valid[station.number] = prompt
        del request.warming[station.number]
        warmed.succeed()

    def _edge_round(self, request: Request, resolution: Resolution) -> Process:
        """Draft on the device or an edge server, verify at the target, return the result there."""
        station = self._station(resolution)
        on_device = resolution.site == Site.OWN_DEVICE
        place = (resolution.site, request.device.number if on_device else resolution.edge_server)
        if request.control != place:
            lag = request.drafter_lag(station.number)
            yield from self._move_control(request, place, tokens=min(lag, request.context_tokens))
        if station.number in request.warming:
            yield request.warming[station.number]
        context = request.context_tokens
        drafted = self._confident_drafts(request, station.number, resolution.gamma)
        yield self._draft_job(request, station, drafted, request.drafter_lag(station.number), context)

        target = self._world.targets[resolution.target]
        moves = resolution.target != request.target
        size = drafted * self._protocol.bytes_per_draft_token
        if moves:
            size += context * self._protocol.bytes_per_token
        sent_s = self.now_s
        if on_device:
            arrives_s = self._send_up(request.device, size, request)
        else:
            arrives_s = self._send_backhaul(resolution.edge_server, resolution.target, True, size, request)
        yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        request.control = (Site.COLOCATED, resolution.target)
        served_s = self.now_s
        yield from self._serve(
            request, target, JobKind.VERIFY, resolution, gamma=drafted, prefill=context - 1 if moves else 0
        )
        served_s = self.now_s - served_s
        if request.finished:
            return
        if on_device:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            self._measure(request, (self.now_s - sent_s) - served_s)
        else:
            result = request.round_tokens * self._protocol.bytes_per_token
            back_s = self._send_backhaul(resolution.edge_server, resolution.target, False, result, request)
            yield self._env.at(back_s, Order.DELIVERY, request.number)
        request.control = place

    def _colocated_round(self, request: Request, resolution: Resolution) -> Process:
        """Draft and verify at the target: no round trip; tokens stream down."""
        target = self._world.targets[resolution.target]
        prefill = yield from self._reach_target(request, resolution)
        if target.station is None:
            yield from self._serve(
                request, target, JobKind.COLOCATED, resolution, gamma=resolution.gamma, prefill=prefill
            )
            return
        station = target.station
        drafted = self._confident_drafts(request, station.number, resolution.gamma)
        yield self._draft_job(
            request, station, drafted, request.drafter_lag(station.number), request.context_tokens
        )
        yield from self._serve(request, target, JobKind.VERIFY, resolution, gamma=drafted, prefill=prefill)

    def _plain_round(self, request: Request, resolution: Resolution) -> Process:
        """The target decodes a chunk of tokens alone, streaming."""
        prefill = yield from self._reach_target(request, resolution)
        target = self._world.targets[resolution.target]
        yield from self._serve(request, target, JobKind.PLAIN, resolution, prefill=prefill)

    def _reach_target(self, request: Request, resolution: Resolution) -> Generator[simpy.Event, object, int]:
        """Bring control to the target; return the context tokens to prefill there first."""
        place = (Site.COLOCATED, resolution.target)
        moves = resolution.target != request.target
        if request.control != place:
            yield from self._move_control(request, place, tokens=request.context_tokens if moves else 0)
        return request.context_tokens - 1 if moves else 0

    def _move_control(self, request: Request, place: tuple[Site, int], tokens: int) -> Process:
        """Send a control message, with the tokens that the new place lacks, hop by hop."""
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
            yield self._env.at(arrives_s, Order.DELIVERY, request.number)
            request.control = hop

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
        if self._arrived == self.scenario.episode.warmup_requests:
            busy = [target.busy_s for target in self._world.targets]
            self._window_start = Window(now_s, self._totals.copy(), busy)
        self._arrived += 1
        self._in_system += 1
        self._active[request.number] = request
        self._log(EventKind.ARRIVAL, device.number, request, spec.prompt_tokens)
        return request

    def _complete(self, request: Request) -> None:
        now_s = self.now_s
        self._accrue(now_s)
        request.completed_s = now_s
        self._in_system -= 1
        del self._active[request.number]
        self._completed.append(request)
        self.newly_completed.append(request)
        self._totals.complete(request)
        self._log(EventKind.COMPLETE, request.device.number, request, now_s - request.arrival_s)
        if request.number < self._cohort:
            self._cohort_left -= 1
            if self._cohort_left == 0:
                self.truncated = True
        if self._arrivals_are_over() and self._in_system == 0:
            self.terminated = True
            self.truncated = False

    def _confident_drafts(self, request: Request, station: int, gamma: int) -> int:
        """Return how many tokens are drafted before the confidence stop ends the draft."""
        threshold = self._protocol.confidence_stop
        if threshold == 0.0:
            return gamma
        confidence = request.realise(self.seed, self._world.station_models[station]).top1_prob
        start = request.committed
        for drafted in range(1, gamma):
            position = start + drafted - 1
            if position >= len(confidence) or confidence[position] < threshold:
                return drafted
        return gamma

    def _verified(self, request: Request, station: int, drafted: int) -> None:
        """Commit the outcome of verifying ``drafted`` tokens: the accepted ones and one more."""
        realisation = request.realise(self.seed, self._world.station_models[station])
        start = request.committed
        left = request.spec.output_tokens - start
        accepted = min(drafted, int(realisation.run_length[start]), left)
        committed = min(accepted + 1, left)
        # The drafter has processed its own drafts but the last; those accepted are right.
        request.drafter_valid[station] = request.context_tokens + min(drafted - 1, accepted)
        request.drafted_at = station
        request.verifies += 1
        request.drafted += drafted
        request.accepted += accepted
        request.round_tokens = committed
        # Later drafts were made on a wrong path; the recorded confidence there is of the true one's future.
        last = min(start + min(accepted, drafted - 1), len(realisation.top1_prob) - 1)
        confidence = float(realisation.top1_prob[last])
        request.learn(drafted, accepted, committed, confidence, self._protocol.stats_window)
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
        request.delivery_s.append(arrives_s)
        request.delivery_tokens.append(tokens)
        if request.finished:
            self._release(request)

    def _measure(self, request: Request, round_trip_s: float) -> None:
        request.device.measure(self.now_s, round_trip_s, self._protocol.stats_window)
        request.own_jobs = self._own_jobs(request.device)

    @staticmethod
    def _own_jobs(device: Device) -> int:
        return 0 if device.station is None else len(device.station.active) + len(device.station.queue)

    # ------------------------------------------------------------------ links

    def _send_up(self, device: Device, payload_bytes: float, request: Request) -> float:
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = device.up.send(self.now_s, size)
        self._sent(device, device.up.last_lost, size)
        request.own_jobs = self._own_jobs(device)
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
        self._totals.network_bytes += size_bytes
        self._totals.energy_joules += size_bytes * device.radio_joules_per_byte

    def _trace_message(self, lane: str, request: Request, link: int, arrives_s: float) -> float:
        self._log(EventKind.SEND, link, request, arrives_s)
        if self._record_spans:
            self.spans.append(Span(lane, "message", self.now_s, arrives_s, request.number))
        return arrives_s

    # ------------------------------------------------------------------ drafters

    def _station(self, resolution: Resolution) -> Station:
        if resolution.site == Site.EDGE_SERVER:
            return self._world.edges[resolution.edge_server]
        station = self._world.devices[resolution.station].station
        assert station is not None
        return station

    def _draft_job(
        self, request: Request, station: Station, gamma: int, lag: int, context: int
    ) -> simpy.Event:
        """Queue a draft at a station; the event returned happens when it ends."""
        job = DraftJob(request, gamma, lag, context, self._env.event())
        station.queue.append(job)
        self._start_drafts(station)
        return job.done

    def _start_drafts(self, station: Station) -> None:
        now_s = self.now_s
        while station.queue and len(station.active) < station.concurrency:
            job = station.queue.popleft()
            if not station.active:
                station.busy_since_s = now_s
            station.active.append(job)
            kv_tokens = sum(other.context_tokens for other in station.active)
            duration_s = station.timer.draft_s(
                job.lag_tokens, job.context_tokens, job.gamma, len(station.active), kv_tokens
            )
            job.start_s = now_s
            self._log(EventKind.DRAFT_START, station.number, job.request, job.gamma)
            # The station takes note of the end before the request goes on.
            callbacks = job.done.callbacks
            assert callbacks is not None
            callbacks.insert(0, self._draft_ended(station, job))
            self._env.at(now_s + duration_s, Order.DRAFT_END, station.number, job.done)

    def _draft_ended(self, station: Station, job: DraftJob) -> Callable[[simpy.Event], None]:
        def ended(_event: simpy.Event) -> None:
            now_s = self.now_s
            duration_s = now_s - job.start_s
            station.active.remove(job)
            if not station.active:
                station.busy_s += now_s - station.busy_since_s
                self._totals.energy_joules += (station.power.busy_w - station.power.idle_w) * (
                    now_s - station.busy_since_s
                )
                self._drafter_cost(station, now_s - station.busy_since_s)
            station.mean_job_s += self._protocol.stats_window * (duration_s - station.mean_job_s)
            self._log(EventKind.DRAFT_END, station.number, job.request, job.gamma)
            if self._record_spans:
                kind = "draft" if job.gamma else "prefill"
                self.spans.append(Span(station.lane, kind, job.start_s, now_s, job.request.number))
            self._start_drafts(station)

        return ended

    def _drafter_cost(self, station: Station, busy_s: float) -> None:
        self._totals.gpu_s += busy_s * station.gpus
        self._totals.cloud_usd += busy_s * station.gpus * station.price_usd_per_gpu_hour / 3600.0

    # ------------------------------------------------------------------ targets

    def _serve(
        self,
        request: Request,
        target: TargetServer,
        kind: JobKind,
        resolution: Resolution,
        *,
        gamma: int = 0,
        prefill: int = 0,
        warm: bool = False,
    ) -> Process:
        """Queue a job at a target and wait until it is done."""
        chunk = self._protocol.plain_chunk_tokens
        job = Job(request, kind, gamma, chunk, prefill, warm, self._env.event(), resolution.station)
        target.batch_size = resolution.batch_size
        target.batch_set_by = request
        if request.target != target.number:
            if request.target >= 0:
                self._release(request)
            request.target = target.number
            target.resident += 1
            target.waiting.append(job)
            self._admit(target)
        else:
            self._join(target, job)
        request.control = (Site.COLOCATED, target.number)
        self._poke(target)
        yield job.done
        request.report = target.report(self.now_s)

    def _release(self, request: Request) -> None:
        """Free a request's KV at its target."""
        target = self._world.targets[request.target]
        target.kv_reserved_tokens -= request.kv_reserved_tokens
        request.kv_reserved_tokens = 0
        target.resident -= 1
        self._admit(target)
        self._poke(target)

    def _admit(self, target: TargetServer) -> None:
        """Admit waiting requests, first come first served, while the KV pool has room."""
        while target.waiting:
            job = target.waiting[0]
            need = self.scenario.kv_reservation_tokens(job.request.spec.prompt_tokens)
            if target.kv_reserved_tokens + need > target.config.kv_capacity_tokens:
                return
            target.waiting.popleft()
            target.kv_reserved_tokens += need
            job.request.kv_reserved_tokens = need
            self._log(EventKind.ADMIT, target.number, job.request, need)
            self._join(target, job)

    def _join(self, target: TargetServer, job: Job) -> None:
        job.queued_s = self.now_s
        job.sequence = target.joined
        target.joined += 1
        target.ready.append(job)
        self._log(EventKind.ENQUEUE, target.number, job.request, job.gamma + 1)

    def _poke(self, target: TargetServer) -> None:
        """See to it that an idle target looks at its queue when its batch is full or has waited enough."""
        if not target.idle or not target.ready:
            return
        now_s = self.now_s
        check_s = now_s
        if len(target.ready) < target.batch_size:
            oldest_s = min(job.queued_s for job in target.ready)
            check_s = max(now_s, oldest_s + target.config.max_batch_wait_s)
        if check_s < target.check_s:
            target.check_s = check_s
            event = self._env.at(check_s, Order.ITERATION_START, target.number)
            assert event.callbacks is not None
            event.callbacks.append(lambda _event: self._check(target, check_s))

    def _check(self, target: TargetServer, check_s: float) -> None:
        if target.check_s == check_s:
            target.check_s = float("inf")
        if not target.idle or not target.ready:
            return
        if len(target.ready) < target.batch_size:
            oldest_s = min(job.queued_s for job in target.ready)
            if self.now_s < oldest_s + target.config.max_batch_wait_s:
                self._poke(target)
                return
        self._start_iteration(target)

    def _start_iteration(self, target: TargetServer) -> None:
        now_s = self.now_s
        batch = target.compose()
        shares = self._shares(target, batch)
        cost = IterationCost(target.timer, target.colocated, shares)
        expected_s = cost.duration_s
        duration_s = expected_s * target.noise(self.seed)
        if self._price_delays:
            self._charge(target, batch, shares, cost)
        target.running = batch
        target.idle = False
        target.iterations += 1
        target.iteration_start_s = now_s
        target.expected_end_s = now_s + expected_s
        self._log(EventKind.ITERATION_START, target.number, None, len(batch))
        event = self._env.at(now_s + duration_s, Order.ITERATION_END, target.number)
        assert event.callbacks is not None
        event.callbacks.append(lambda _event: self._end_iteration(target))

    def _charge(
        self, target: TargetServer, batch: list[tuple[Job, int]], shares: list[Share], cost: IterationCost
    ) -> None:
        """Account to requests the time by which they delay others.

        A sequence delays everybody else at a busy target by what the iteration would be shorter without
        it. (Dividing the whole iteration among its sequences instead, the reading of the weights included,
        made policies leave the targets' own drafters, and everybody slower.) Whoever set the batch size in
        force delays those that it leaves out by a whole iteration, and those that were ready by the time
        for which the batch waited to fill.
        """
        others = target.resident - 1
        for (job, _), share in zip(batch, shares, strict=True):
            job.request.delay_caused_s += cost.caused_s(share) * others
        setter = target.batch_set_by
        if setter is not None:
            ready_s = min(job.queued_s for job, _ in batch)
            waited_s = self.now_s - max(ready_s, target.iteration_end_s)
            setter.delay_caused_s += len(target.ready) * cost.duration_s + len(batch) * waited_s

    def _shares(self, target: TargetServer, batch: list[tuple[Job, int]]) -> list[Share]:
        """Return what each sequence of a batch brings into the iteration."""
        shares = []
        station = self._colocated_base + target.number
        for job, tokens in batch:
            request = job.request
            context = request.context_tokens
            if job.prefill_tokens:
                kv = job.prefilled_tokens + tokens
                along = tokens if job.warm_drafter and target.colocated is not None else 0
                shares.append(Share(tokens, kv, along, kv if along else 0))
            elif job.kind == JobKind.COLOCATED:
                lag = request.drafter_lag(station)
                shares.append(Share(tokens, context + tokens - 1, lag, context, job.gamma))
            else:
                shares.append(Share(tokens, context + tokens - 1))
        return shares

    def _end_iteration(self, target: TargetServer) -> None:
        now_s = self.now_s
        duration_s = now_s - target.iteration_start_s
        batch, target.running = target.running, []
        target.iteration_end_s = now_s
        target.idle = True
        target.busy_s += duration_s
        target.iteration_s += self._protocol.stats_window * (duration_s - target.iteration_s)
        new_tokens = sum(tokens for _, tokens in batch)
        target.iteration_tokens += self._protocol.stats_window * (new_tokens - target.iteration_tokens)
        config = target.config
        self._totals.gpu_s += duration_s * config.gpus
        self._totals.cloud_usd += duration_s * config.gpus * config.price_usd_per_gpu_hour / 3600.0
        self._totals.energy_joules += duration_s * (config.power.busy_w - config.power.idle_w)
        self._log(EventKind.ITERATION_END, target.number, None, new_tokens)
        if self._record_spans:
            lane = f"target:{target.number}"
            self.spans.append(Span(lane, _kind_of(batch), target.iteration_start_s, now_s, -1))
        for job, tokens in batch:
            self._advance(target, job, tokens)
        self._poke(target)

    def _advance(self, target: TargetServer, job: Job, tokens: int) -> None:
        """Take what one iteration did for one job."""
        request = job.request
        if job.prefill_tokens:
            job.prefill_tokens -= tokens
            job.prefilled_tokens += tokens
            if job.warm_drafter and target.colocated is not None:
                request.drafter_valid[self._colocated_base + target.number] = job.prefilled_tokens
            if job.prefill_tokens or job.kind != JobKind.PREFILL:
                target.ready.append(job)
                return
            self._commit(request, 1)
        elif job.kind == JobKind.PLAIN:
            self._commit(request, 1)
            job.chunk_tokens -= 1
            if job.chunk_tokens > 0 and not request.finished:
                self._join(target, job)
                return
            request.recent_gammas = (0, *request.recent_gammas[:-1])
            request.recent_accepted = (0, *request.recent_accepted[:-1])
        elif job.kind == JobKind.COLOCATED:
            self._verified(request, self._colocated_base + target.number, job.gamma)
        else:
            self._verified(request, job.station, job.gamma)
        self._env.at(self.now_s, Order.JOB_DONE, request.number, job.done)

    # ------------------------------------------------------------------ bookkeeping

    def _accrue(self, now_s: float) -> None:
        """Bring the totals that grow with time up to now."""
        self._totals.accrue(now_s, self._in_system, self._world.idle_w)

    def _log(self, kind: EventKind, entity: int, request: Request | None, value: float) -> None:
        if self._record_events:
            number = -1 if request is None else request.number
            self.events.append(Event(self.now_s, kind, entity, number, float(value)))


def _kind_of(batch: list[tuple[Job, int]]) -> str:
    """Return the word for an iteration in a timeline: what most defines its length."""
    kinds = {JobKind.PREFILL if job.prefill_tokens else job.kind for job, _ in batch}
    if JobKind.COLOCATED in kinds:
        return "colocated"
    if JobKind.VERIFY in kinds:
        return "verify"
    return "plain" if JobKind.PLAIN in kinds else "prefill"
