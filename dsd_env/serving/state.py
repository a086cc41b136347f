"""What a controller knows of a deployment, and how each observation changes it."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from dsd_env.control.actions import Resolved
from dsd_env.control.estimators import note_lengths, note_round
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.control.view import DecisionView, Site
from dsd_env.laws import reports
from dsd_env.serving import telemetry as events
from dsd_env.serving.deployment import Deployment
from dsd_env.serving.telemetry import TelemetryError
from dsd_env.serving.world import (
    Ahead,
    Carried,
    OpenStream,
    ServedDevice,
    ServedDrafter,
    ServedRequest,
    ServedTarget,
    ServedTelemetry,
    ServedWorld,
    Told,
)
from dsd_env.sim.entities import Report
from dsd_env.sim.telemetry import newest_report
from dsd_env.workload import RequestSpec

if TYPE_CHECKING:
    from dsd_env.serving.mirror import Mirror

SITE_NAMES = {"colocated": Site.COLOCATED, "own_device": Site.OWN_DEVICE, "edge_server": Site.EDGE_SERVER}
ANYBODY = ""
"""Name of the client of requests that name none."""
_MAX_PERIODS = 1024
"""Periods without an observation that are made up for one by one; the running rates are about 0 then."""
_REPORT_FIELDS = tuple(field.name for field in dataclasses.fields(Report) if field.name != "time_s")


class State:
    """The estimators of a deployment.

    Attributes:
        requests: By name, the one heard of longest ago first.
        clients: By name, likewise.
        mirror: The same for compiled code; None if nothing reads it.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        by_nominal_delay: bool,
        max_requests: int,
        max_clients: int,
        forget_s: float,
        origin_s: float,
        counts: dict[str, int],
    ) -> None:
        """Begin with nothing seen; see :class:`dsd_env.serving.Controller` for the arguments.

        All times are seconds since `origin_s` but those within observations.
        """
        if min(max_requests, max_clients) < 1:
            raise ValueError("max_requests and max_clients must be at least 1")
        scenario = deployment.scenario
        self._served = ServedWorld(deployment)
        self.targets = self._served.targets
        self._telemetry = ServedTelemetry(scenario, self._served.world, by_nominal_delay)
        self._system = self._telemetry.system
        self._weight = scenario.protocol.stats_window
        self._by_nominal_delay = by_nominal_delay
        if by_nominal_delay:
            # Reports travel, so each is kept as it was made; otherwise the one report is the newest state.
            for target in self.targets:
                target.reports[0] = dataclasses.replace(target.state)
        self._target_numbers = {name: number for number, name in enumerate(deployment.targets)}
        self._slos = [(name, slo.bounds()) for name, slo in scenario.slo.items()]
        self._slo_numbers = {name: number for number, (name, _) in enumerate(self._slos)}
        self._max_requests, self._max_clients, self._forget_s = max_requests, max_clients, forget_s
        self._origin_s, self._counts = origin_s, counts
        self.requests: OrderedDict[str, ServedRequest] = OrderedDict()
        self.clients: OrderedDict[str, ServedDevice] = OrderedDict()
        self.mirror: Mirror | None = None
        # Requests and clients have their rows in this one, also while nothing reads it.
        self._kept_mirror: Mirror | None = None
        self._number = 0
        self._periods = 1
        self._telemetry.publish(0.0)
        self._next_period_s = self._system.period_s
        self._takes: dict[type[Any], Callable[[Any, float], ServedRequest | None]] = {
            events.ClientJoined: self._joined,
            events.RequestArrived: self._arrived,
            events.RequestQueued: self._queued,
            events.TokensCommitted: self._committed,
            events.RoundVerified: self._verified,
            events.StreamResult: self._result,
            events.RequestInterrupted: self._interrupted,
            events.DecisionDropped: self._dropped,
            events.ControlMoved: self._moved,
            events.DraftState: self._draft_state,
            events.DraftKv: self._draft_kv,
            events.RequestFinished: self._finished,
            events.TargetState: self._target_state,
            events.IterationDone: self._iteration,
            events.DrafterState: self._drafter_state,
            events.RttSample: self._rtt,
            events.LinkState: self._link,
            events.BackhaulState: self._backhaul,
        }

    # ------------------------------------------------------------------ time

    def check(self, event: Any) -> None:
        """Make sure that the deployment has what an observation names.

        Raises:
            TelemetryError: It has not.
        """
        kind = type(event)
        if getattr(event, "target", None) is not None:
            self._target(event.target)
        if getattr(event, "edge_server", None) is not None:
            self._edge(event.edge_server)
        if getattr(event, "site", None) is not None and _site(event.site) == Site.EDGE_SERVER:
            self._edge(event.edge_server)
        if kind is events.RequestArrived and event.slo is not None and event.slo not in self._slo_numbers:
            raise TelemetryError(f"slo {event.slo!r} is not a class of: {', '.join(self._slo_numbers)}")
        if kind is events.ClientJoined:
            classes, n_devices = self._served.device_classes, self._served.scenario.n_devices
            if event.device_class is not None and event.device_class not in classes:
                raise TelemetryError(
                    f"device_class {event.device_class!r} is not in the deployment: {', '.join(classes)}"
                )
            if event.number is not None and event.number >= n_devices:
                raise TelemetryError(
                    f"device number {event.number} is not below the deployment's {n_devices}"
                )
        if kind is events.RoundVerified or kind is events.StreamResult:
            models = self._system.models
            if not models or (event.model is not None and event.model not in models):
                raise TelemetryError(
                    f"model {event.model!r} is not a draft model of: {', '.join(models) or 'none'}"
                )
        if kind is events.DrafterState and event.client is None:
            menu = self._target(event.target).drafters
            if event.edge_server is not None:
                menu = self._edge(event.edge_server)
            if not any(drafter.server is not None for drafter in _meant(menu, event.drafter)):
                raise TelemetryError("DrafterState names a place without a drafter on hardware of its own")

    def take(self, event: events.Event, now_s: float, *, doubtful: bool) -> None:
        """Take in an observation made at a time; `doubtful`: some of its numbers were moved."""
        self.pass_time(now_s)
        name = getattr(event, "request", None)
        if name is not None and not isinstance(event, events.RequestArrived) and name not in self.requests:
            self._counts["unknown_request"] += 1
            if not isinstance(event, (events.TargetState, events.DrafterState)):
                return
        request = self._takes[type(event)](event, now_s)
        self._served.changed = True
        if request is not None:
            request.seen_s = now_s
            self.requests.move_to_end(request.name)
            if doubtful:
                request.doubts += 1
            if self.mirror is not None:
                self.mirror.write_request(request)
        elif doubtful and isinstance(event, (events.TargetState, events.IterationDone)):
            number = self._target(event.target).number
            for each in self.requests.values():
                if each.target == number:
                    each.doubts += 1
                    self._tell_mirror(each)

    def _tell_mirror(self, request: ServedRequest) -> None:
        if self.mirror is not None:
            self.mirror.write_request(request)

    def _tell_mirror_of_client(self, client: ServedDevice) -> None:
        # One that is not mirrored yet is so with its first request.
        if self.mirror is not None and client.place is not None:
            self.mirror.write_client(client)

    def mirrored(self, stale_s: float) -> Mirror:
        """Return a mirror of all that is known, which follows what becomes known until it is dropped.

        Args:
            stale_s: Telemetry of a target that is older is stale.

        Raises:
            ImportError: There is no Numba, or its code cannot be compiled.
            NotImplementedError: The deployment is too large for it.
        """
        from dsd_env.serving.mirror import Mirror

        if self._kept_mirror is None:
            self._kept_mirror = Mirror(self._served, self._telemetry, stale_s, self._by_nominal_delay)
        if self.mirror is None:
            self.mirror = self._kept_mirror
            self.mirror.write_all(self.clients.values(), self.requests.values())
        return self.mirror

    def pass_time(self, now_s: float) -> None:
        """Publish the running rates of every period that has ended by now."""
        if now_s < self._next_period_s:
            return
        period_s = self._system.period_s
        missed = int(now_s / period_s) - self._periods
        if missed > _MAX_PERIODS:
            self._periods += missed - _MAX_PERIODS
        while self._periods * period_s <= now_s:
            self._telemetry.publish(self._periods * period_s)
            self._periods += 1
        self._next_period_s = self._periods * period_s
        self._forget_old(now_s)
        self._served.changed = True

    def _forget_old(self, now_s: float) -> None:
        while self.requests:
            request = next(iter(self.requests.values()))
            if now_s - request.seen_s <= self._forget_s:
                break
            self._forget(request)
        while self.clients:
            client = next(iter(self.clients.values()))
            if now_s - client.seen_s <= self._forget_s or client.requests:
                break
            del self.clients[client.name]

    def _forget(self, request: ServedRequest) -> None:
        self._counts["forgotten"] += 1
        self._drop(request)

    def _drop(self, request: ServedRequest) -> None:
        del self.requests[request.name]
        request.device.requests.discard(request.name)
        if request.target >= 0:
            self.targets[request.target].forget(request.number)

    def _told_s(self, time_s: float, now_s: float) -> float:
        """Return a time that an observation names, which is past, since the origin."""
        return min(max(0.0, time_s - self._origin_s), now_s)

    # ------------------------------------------------------------------ who is meant

    def _target(self, name: str | None, default: int = 0) -> ServedTarget:
        if name is None:
            return self.targets[max(0, default)]
        number = self._target_numbers.get(name)
        if number is None:
            raise TelemetryError(
                f"target {name!r} is not in the deployment: {', '.join(self._target_numbers)}"
            )
        return self.targets[number]

    def _edge(self, number: int | None) -> tuple[ServedDrafter, ...]:
        edges = self._served.edges
        if not 0 <= (number or 0) < len(edges):
            raise TelemetryError(f"edge_server {number or 0} is not among the {len(edges)} of the deployment")
        return edges[number or 0]

    def _client(self, name: str, now_s: float) -> ServedDevice:
        client = self.clients.get(name)
        if client is None:
            client = self._add_client(self._served.join(name))
        client.seen_s = now_s
        self.clients.move_to_end(name)
        return client

    def _add_client(self, client: ServedDevice) -> ServedDevice:
        while len(self.clients) >= self._max_clients:
            oldest = next(iter(self.clients.values()))
            del self.clients[oldest.name]
        self.clients[client.name] = client
        return client

    def _target_of(self, request: ServedRequest, name: str | None) -> ServedTarget:
        """Return a target by name, else that of a request's last decision, else its own."""
        last = request.last
        return self._target(name, request.target if last is None else last.target)

    # ------------------------------------------------------------------ clients

    def _joined(self, event: events.ClientJoined, now_s: float) -> None:
        known = self.clients.pop(event.client, None)
        client = self._served.join(event.client, event.device_class, event.number, event.draft_time_factor)
        for channel, delay_s in (
            (client.up, event.uplink_one_way_s),
            (client.down, event.downlink_one_way_s),
            (client.edge_up, event.edge_uplink_one_way_s),
            (client.edge_down, event.edge_downlink_one_way_s),
        ):
            if channel is not None and delay_s is not None:
                channel.one_way_s = delay_s
        client.rtt_s = client.up.one_way_s + client.down.one_way_s
        client.seen_s = now_s
        self._served.devices[client.number] = client
        if known is not None:
            client.requests = known.requests
            for name in known.requests:
                request = self.requests[name]
                if request.told is not None:
                    # It is carried out by a drafter of the device that it was decided for.
                    request.told = Told(request.answer, request.last)
                request.device = client
                self._tell_mirror(request)
        self._add_client(client)

    def _rtt(self, event: events.RttSample, now_s: float) -> None:
        client = self._client(event.client, now_s)
        extra_s = self._sampled(client, event.target).config.extra_one_way_s
        access_s = reports.access_round_trip_s(event.rtt_s, extra_s)
        reports.measure_round_trip(client, now_s, access_s, self._weight)
        self._served.devices[client.number] = client
        self._tell_mirror_of_client(client)

    def moved(self, event: events.Event) -> tuple[str, ...]:
        """Return the fields of an observation that this deployment cannot have, and that are moved.

        A round trip shorter than the way to its target is one: that to the client counts as none then.
        """
        if not isinstance(event, events.RttSample):
            return ()
        client = self.clients.get(event.client)
        target = self._target(event.target) if client is None else self._sampled(client, event.target)
        way_s = 2.0 * target.config.extra_one_way_s
        return ("rtt_s",) if event.rtt_s < way_s * (1.0 - 1e-6) else ()

    def _sampled(self, client: ServedDevice, name: str | None) -> ServedTarget:
        """Return the target that a round trip was measured with, by name or that of the newest request."""
        if name is None and len(self.targets) > 1:
            served = [self.requests[of] for of in client.requests if self.requests[of].target >= 0]
            if served:
                return self.targets[max(served, key=lambda request: request.number).target]
        return self._target(name)

    def _link(self, event: events.LinkState, now_s: float) -> None:
        client = self._client(event.client, now_s)
        if event.up is not None:
            client.up.up = client.down.up = event.up
        if event.uplink_bits_per_s is not None:
            client.up.bits_per_s = event.uplink_bits_per_s
        if event.downlink_bits_per_s is not None:
            client.down.bits_per_s = event.downlink_bits_per_s
        for channel, sample_bits_per_s in (
            (client.up, event.uplink_sample_bits_per_s),
            (client.down, event.downlink_sample_bits_per_s),
        ):
            if sample_bits_per_s is not None:
                channel.bits_per_s = reports.moved(channel.bits_per_s, sample_bits_per_s, self._weight)
        if event.lost is not None:
            client.loss = reports.moved(client.loss, 1.0 if event.lost else 0.0, self._weight)
        self._tell_mirror_of_client(client)

    # ------------------------------------------------------------------ requests

    def _arrived(self, event: events.RequestArrived, now_s: float) -> ServedRequest:
        slo_class = 0 if event.slo is None else self._slo_numbers[event.slo]
        target = None if event.target is None else self._target(event.target)
        if (before := self.requests.get(event.request)) is not None:
            self._forget(before)
        while len(self.requests) >= self._max_requests:
            self._forget(next(iter(self.requests.values())))
        client = self._client(ANYBODY if event.client is None else event.client, now_s)
        spec = RequestSpec(
            uid=self._number,
            device=client.number,
            kind=0,
            prompt_tokens=event.prompt_tokens or 0,
            output_tokens=0,
            slo_class=slo_class,
            acceptance_kinds=(),
            recorded=None,
            **self._slos[slo_class][1],
        )
        control = (Site.OWN_DEVICE, client.number)
        request = ServedRequest(event.request, self._number, spec, client, now_s, control)
        self._number += 1
        self.requests[event.request] = request
        client.requests.add(event.request)
        if target is not None:
            request.control = (Site.COLOCATED, target.number)
            self._system.count_arrival()
            request.counted = True
        return request

    def _queued(self, event: events.RequestQueued, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        target = self._target_of(request, event.target)
        if request.committed == 0 and not request.counted:
            self._system.count_arrival()
        request.counted = False
        self._enter(request, target, now_s)
        request.control = (Site.COLOCATED, target.number)
        return request

    def _enter(self, request: ServedRequest, target: ServedTarget, now_s: float) -> None:
        """Note that a request is at a target, maybe another one than before."""
        target.sign_of_life(now_s)
        if request.target != target.number:
            if request.target >= 0:
                self.targets[request.target].forget(request.number)
            request.target = target.number
            target.enter(request.number)

    def _committed(self, event: events.TokensCommitted, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        target = self._target_of(request, event.target)
        self._enter(request, target, now_s)
        first = request.committed == 0
        tokens = 1 if event.tokens is None else event.tokens
        self._system.count_tokens(tokens)
        if event.round_over or (event.round_over is None and not first):
            note_lengths(request, 0, 0)
        heard = event.heard is not False
        if heard and not first:
            target.note_mode(request.number, "plain", 0)
        request.commit(tokens, now_s, heard)
        request.finished = request.finished or event.last is True
        if heard:
            self._take_control(
                request, target, drafts=first and request.last is not None and request.last.gamma > 0
            )
        return request

    def _verified(self, event: events.RoundVerified, now_s: float) -> ServedRequest:
        request, last = self.requests[event.request], self.requests[event.request].last
        target = self._target_of(request, event.target)
        model = self._model_of(request, event.model)
        accepted = event.accepted
        committed = accepted + 1 if event.committed is None else event.committed
        heard = event.heard is not False
        self._enter(request, target, now_s)
        if heard and last is not None and last.drafter >= 0:
            request.note_drafted(last.drafter, event.drafted, accepted)
            request.drafted_branches = last.fanout > 0
            colocated = last.drafter in target.shared
            target.note_mode(request.number, "colocated" if colocated else "remote", event.drafted)
        if heard:
            confidence = 0.0 if event.confidence is None else event.confidence
            note_round(request, model, event.drafted, accepted, committed, confidence, self._weight)
        if event.drafted:
            self._system.count_verified(model, event.drafted, accepted)
        self._system.count_tokens(committed)
        request.verifies += 1
        request.commit(committed, now_s, heard)
        request.finished = request.finished or event.last is True
        if heard:
            self._take_control(request, target, drafts=True)
        return request

    def _result(self, event: events.StreamResult, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        drafted, committed = event.drafted or 0, event.committed or 0
        if committed:
            idle = 0.0 if drafted else 1.0
            request.idle_share = reports.moved(request.idle_share, idle, self._weight)
        if drafted:
            accepted = event.accepted or 0
            model = self._model_of(request, event.model)
            confidence = 0.0 if event.confidence is None else event.confidence
            note_round(request, model, drafted, accepted, committed, confidence, self._weight)
        request.known_tokens = event.known_tokens
        request.known_commit_s = request.last_commit_s
        if event.known_commit_s is not None:
            request.known_commit_s = self._told_s(event.known_commit_s, now_s)
        self._take_control(request, self.targets[max(0, request.target)], drafts=True)
        return request

    def _model_of(self, request: ServedRequest, model: str | None) -> str:
        """Return a draft model by name, else that of a request's last decision, else any."""
        last = request.last
        return model or (last.model if last is not None else "") or next(iter(self._system.models))

    def _interrupted(self, event: events.RequestInterrupted, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        self._interrupt(request)
        return request

    def _dropped(self, event: events.DecisionDropped, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        request.early = min(request.early + 1, request.decisions)
        return request

    def _interrupt(self, request: ServedRequest) -> None:
        if request.target >= 0:
            self.targets[request.target].forget(request.number)
        request.interrupt()

    def _lose_kv(self, lost: set[int]) -> None:
        """Note that drafters hold nothing of any request, nor what was drafted ahead there."""
        for request in self.requests.values():
            held = lost & request.drafter_valid.keys()
            for number in held:
                del request.drafter_valid[number]
            if request.drafted_at in lost:
                request.head_start = None
            if held or request.drafted_at in lost:
                self._tell_mirror(request)

    @staticmethod
    def _take_control(request: ServedRequest, target: ServedTarget, *, drafts: bool) -> None:
        """Say where the next decision is taken: where drafts are made, otherwise at the target."""
        last = request.last
        request.control = (Site.COLOCATED, target.number)
        if drafts and last is not None and last.drafter >= 0:
            if last.site == Site.OWN_DEVICE:
                request.control = (Site.OWN_DEVICE, request.device.number)
            elif last.site == Site.EDGE_SERVER:
                request.control = (Site.EDGE_SERVER, last.edge_server)

    def _moved(self, event: events.ControlMoved, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        site = _site(event.site)
        if site == Site.COLOCATED:
            request.control = (site, self._target(event.target, request.target).number)
        elif site == Site.OWN_DEVICE:
            request.control = (site, request.device.number)
        else:
            self._edge(event.edge_server)
            request.control = (site, event.edge_server or 0)
        return request

    def _draft_state(self, event: events.DraftState, now_s: float) -> ServedRequest:
        request, last = self.requests[event.request], self.requests[event.request].last
        request.head_start = Ahead(event.head_start_tokens) if event.head_start_tokens else None
        if not event.window_tokens:
            request.close_stream()
        elif last is not None and last.drafter >= 0:
            request.drafted_at, request.drafted_branches = last.drafter, last.fanout > 0
        request.stream = None
        if event.known_tokens is not None:
            request.known_tokens = event.known_tokens
        if event.known_commit_s is not None:
            request.known_commit_s = self._told_s(event.known_commit_s, now_s)
        if event.window_tokens:
            known = request.known_tokens
            began_s = now_s
            if event.generation_started_s is not None:
                began_s = self._told_s(event.generation_started_s, now_s)
            request.stream = OpenStream(
                event.window_tokens,
                known + (event.lead_tokens or 0),
                known,
                event.generations or 0,
                began_s,
            )
            if request.target >= 0:
                self.targets[request.target].note_mode(request.number, "remote", event.window_tokens)
        if event.idle_share is not None:
            request.idle_share = event.idle_share
        return request

    def _draft_kv(self, event: events.DraftKv, now_s: float) -> ServedRequest:
        request = self.requests[event.request]
        last = request.last
        if event.site is None:
            number = last.drafter if last is not None else -1
        else:
            site, menu = _site(event.site), request.device.drafters
            if site == Site.COLOCATED:
                menu = self._target(event.target, request.target).drafters
            elif site == Site.EDGE_SERVER:
                menu = self._edge(event.edge_server)
            rank = event.drafter or 0
            number = menu[rank].number if rank < len(menu) else -1
        if number >= 0:
            request.drafter_valid[number] = event.valid_tokens
        return request

    def _finished(self, event: events.RequestFinished, now_s: float) -> None:
        request = self.requests[event.request]
        if event.met_slo is not None:
            self._system.count_completed(request.spec.slo_class, event.met_slo)
        self._drop(request)

    # ------------------------------------------------------------------ servers

    def _target_state(self, event: events.TargetState, now_s: float) -> None:
        target = self._target(event.target)
        state = target.state
        if now_s < state.time_s and "time_s" in target.reports_itself:
            # A late report must not undo a newer one.
            self._counts["out_of_order"] += 1
            return
        for name in _REPORT_FIELDS:
            value = getattr(event, name)
            if value is not None:
                setattr(state, name, value)
                target.reports_itself.add(name)
        target.reports_itself.add("time_s")
        state.time_s = now_s
        target.changed = True
        if event.token_s is None:
            state.token_s = target.marginal_token_s()
        if event.kv_lost:
            self._lose_kv({drafter.number for drafter in target.drafters})
            for request in self.requests.values():
                if request.target == target.number:
                    self._interrupt(request)
                    self._tell_mirror(request)
        if self._by_nominal_delay:
            if event.periodic:
                target.reports.append(dataclasses.replace(state))
            if event.request is not None and event.request in self.requests:
                self.requests[event.request].report = dataclasses.replace(state)
                self._tell_mirror(self.requests[event.request])

    def _iteration(self, event: events.IterationDone, now_s: float) -> None:
        target, weight = self._target(event.target), self._weight
        tokens = 1 if event.new_tokens is None else event.new_tokens
        target.iteration_s = reports.moved(target.iteration_s, event.duration_s, weight)
        target.iteration_tokens = reports.moved(target.iteration_tokens, tokens, weight)
        if "iteration_s" not in target.reports_itself:
            target.state.iteration_s = target.iteration_s
        if "token_s" not in target.reports_itself:
            target.state.token_s = target.marginal_token_s()
        target.sign_of_life(now_s)

    def _drafter_state(self, event: events.DrafterState, now_s: float) -> None:
        if event.client is not None:
            client = self._client(event.client, now_s)
            menu = client.drafters
        elif event.edge_server is not None:
            menu = self._edge(event.edge_server)
        else:
            menu = self._target(event.target).drafters
        own = [drafter for drafter in _meant(menu, event.drafter) if drafter.server is not None]
        if not own:
            # A client without a drafter; what it says of one concerns nobody.
            return
        if event.kv_lost:
            self._lose_kv({drafter.number for drafter in own})
        host = own[0].own_server
        if event.up is not None:
            host.up = event.up
        if event.jobs is not None:
            host.jobs, host.wait_s = event.jobs, None
        if event.wait_s is not None:
            host.wait_s = event.wait_s
        if event.mean_job_s is not None:
            host.mean_job_s = event.mean_job_s
        if event.job_s is not None:
            host.mean_job_s = reports.moved(host.mean_job_s, event.job_s, self._weight)
        if event.client is not None:
            client.count_jobs()
            self._tell_mirror_of_client(client)
            if event.jobs is not None:
                for name in client.requests if event.request is None else (event.request,):
                    if name in self.requests:
                        self.requests[name].own_jobs = client.jobs
                        self._tell_mirror(self.requests[name])
            return
        for drafter in menu:
            drafter.changed = True
        if event.periodic:
            for drafter in own:
                if drafter.server is host:
                    drafter.reports.append(drafter.report(now_s))

    def _backhaul(self, event: events.BackhaulState, now_s: float) -> None:
        targets = self.targets if event.target is None else [self._target(event.target)]
        self._edge(event.edge_server)
        for target in targets:
            up, down = self._served.world.backhauls[event.edge_server][target.number]
            if event.uplink_one_way_s is not None:
                up.one_way_s = event.uplink_one_way_s
            if event.downlink_one_way_s is not None:
                down.one_way_s = event.downlink_one_way_s
        if self._kept_mirror is not None:
            self._kept_mirror.write_backhauls()

    # ------------------------------------------------------------------ decisions

    def fleet(self, group_of: list[list[int]], now_s: float, stale_s: float) -> tuple[FleetTelemetry, str]:
        """Return what is known for a plan, and what makes it doubtful; "" if nothing does.

        ``stale``: nothing has been heard of a target with requests under way for longer than `stale_s`.
        ``out_of_range``: numbers of at least half of the requests were moved since this was asked before.

        Args:
            group_of: Number of a request's group by device and class of objectives; those of none (-1) are
                left out.
            now_s: When.
            stale_s: How long is too long.
        """
        # In order of arrival, as the simulator sums them up.
        known = sorted(
            (
                each
                for each in self.requests.values()
                if group_of[each.device.number][each.spec.slo_class] >= 0
            ),
            key=attrgetter("number"),
        )
        told = self._telemetry.fleet(cast(Any, known), now_s)
        doubtful = [each for each in known if each.doubts]
        for each in doubtful:
            each.doubts = 0
            self._tell_mirror(each)
        busy = {each.target for each in known if each.target >= 0 and not each.finished}
        if any(now_s - newest_report(cast(Any, self.targets[n]), now_s).time_s > stale_s for n in busy):
            return told, "stale"
        return told, "out_of_range" if 0 < len(known) <= 2 * len(doubtful) else ""

    def view(self, request: ServedRequest, now_s: float) -> DecisionView:
        """Return what is known for a decision on a request."""
        self.pass_time(now_s)
        view = self._telemetry.view(request, now_s)  # type: ignore[arg-type]
        # The number of jobs on a request's own device is kept as it was when a decision was last taken there.
        self._tell_mirror(request)
        return view

    def decided(self, request: ServedRequest, resolved: Resolved, now_s: float, answer: Any) -> None:
        """Note how a decision is carried out, and how it was answered."""
        candidate = resolved.candidate
        drafter = -1
        if resolved.gamma > 0:
            drafter = self._telemetry.drafter_number(request.device.number, candidate)
        carried = Carried(
            candidate.site,
            candidate.edge_server,
            candidate.target.index,
            drafter,
            candidate.model if resolved.gamma > 0 else "",
            resolved.gamma,
            candidate.fanout if resolved.gamma > 0 else 0,
        )
        request.told = Told(answer, carried)
        request.seen_s = now_s
        self.requests.move_to_end(request.name)
        self._tell_mirror(request)


def _meant(menu: tuple[ServedDrafter, ...], rank: int | None) -> tuple[ServedDrafter, ...]:
    """Return the drafter at a place of a list, or all."""
    return menu if rank is None else menu[rank : rank + 1]


def _site(name: str) -> Site:
    site = SITE_NAMES.get(name)
    if site is None:
        raise TelemetryError(f"site {name!r} is not one of {', '.join(SITE_NAMES)}")
    return site
