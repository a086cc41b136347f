"""The protocol of a request: prefill, then rounds of decide, draft, verify, deliver, at the place decided on.

Control is at one place at a time: on the device, at an edge server or at a target. A round begins by moving
it to where the round begins. A stream takes the place of many rounds; see
:mod:`dsd_env.sim.reference.streams`.
"""

from __future__ import annotations

from collections.abc import Generator

import simpy

from dsd_env.control.view import Site
from dsd_env.sim.entities import Device, DraftJob, Request, SiteDrafter, Stream, TargetTask
from dsd_env.sim.events import Order
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.requests import Interruption, Requests
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.streams import Streams
from dsd_env.sim.reference.targets import TargetDownError, Targets
from dsd_env.sim.reference.timers import Timers
from dsd_env.workload import RequestSpec


class Protocol(Part):
    """Runs requests, each as one process."""

    def __init__(
        self,
        episode: Episode,
        links: Links,
        drafters: Drafters,
        targets: Targets,
        requests: Requests,
        timers: Timers,
        streams: Streams,
    ) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._links = links
        self._drafters = drafters
        self._targets = targets
        self._requests = requests
        self._timers = timers
        self._streams = streams

    def run(self, device: Device, spec: RequestSpec) -> Process:
        """Run one request from its arrival to its completion."""
        request = self._requests.arrive(device, spec)
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
                    activity = self._requests.reconnect(request)
            except TargetDownError:
                self._requests.abandon(request)
                activity = self._requests.reconnect(request)
        yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
        self._requests.complete(request)

    def _turn(self, request: Request) -> Process:
        """Take one decision and carry it out: the prefill, a round, or a stream and what follows it."""
        resolution: Resolution | None = yield from self._requests.ask(request)
        if request.committed == 0:
            assert resolution is not None
            resolution = yield from self._prefill(request, resolution)
        else:
            request.rounds += 1
        while resolution is not None:
            resolution = yield from self._carry_out(request, resolution)

    def _carry_out(
        self, request: Request, resolution: Resolution
    ) -> Generator[simpy.Event, object, Resolution | None]:
        """Carry a decision out; return the next one, if that has been taken meanwhile."""
        if self._streams.uses(resolution):
            prefill = yield from self._reach_target(request, resolution)
            lag = min(request.drafter_lag(resolution.drafter_number), request.context_tokens)
            stream = self._streams.open(request, resolution)
            self._streams.tell_opened(request, stream, lag)
            return (yield from self._stream(request, resolution, stream, prefill))
        if request.head_start is not None and request.head_start.drafter_number != resolution.drafter_number:
            self._drafters.discard_head_start(request)
        if resolution.gamma == 0:
            yield from self._plain_round(request, resolution)
        elif resolution.site == Site.COLOCATED:
            yield from self._colocated_round(request, resolution)
        else:
            yield from self._edge_round(request, resolution)
        return None

    def _stream(
        self, request: Request, resolution: Resolution, stream: Stream, prefill: int
    ) -> Generator[simpy.Event, object, Resolution | None]:
        """Let a target serve a stream until it is closed; return the decision that closed it."""
        target = self._world.targets[resolution.target]
        yield from self._targets.serve(
            request, target, TargetTask.STREAM, resolution, prefill=prefill, stream=stream
        )
        if request.finished:
            return None
        stream.stop()
        request.control = (Site.COLOCATED, target.number)
        return stream.closing

    def _prefill(
        self, request: Request, resolution: Resolution
    ) -> Generator[simpy.Event, object, Resolution | None]:
        """Send the prompt up and have it prefilled, by the drafter too; the target commits one token.

        A stream follows at once; the decision that closes it is returned.
        """
        target = self._world.targets[resolution.target]
        device = request.device
        prompt = request.spec.prompt_tokens
        sent_s = self._now_s
        colocated = resolution.gamma > 0 and resolution.site == Site.COLOCATED
        if resolution.gamma > 0 and not colocated and self._is_cold(request, resolution.drafter_number):
            self._env.process(self._warm_up(request, resolution))
        size = prompt * self._protocol.bytes_per_token
        arrives_s = self._links.send_up(device, size, request, target.number)
        front_end_s = target.config.front_end_s
        yield from self._travel(request, arrives_s + front_end_s)
        self._episode.telemetry.count_arrival()
        served_s = self._now_s - front_end_s
        yield from self._targets.serve(
            request, target, TargetTask.PREFILL, resolution, prefill=prompt, warm=colocated
        )
        served_s = self._now_s - served_s
        if request.finished:
            return None
        if self._streams.uses(resolution):
            stream = self._streams.open(request, resolution)
            if resolution.site == Site.OWN_DEVICE:
                self._streams.tell_first_token(request, stream, sent_s + served_s)
            else:
                self._streams.tell_opened(request, stream, lag_tokens=1)
            return (yield from self._stream(request, resolution, stream, prefill=0))
        if resolution.gamma > 0 and resolution.site != Site.COLOCATED:
            self._timers.expect_drafts(request)
        if resolution.gamma > 0 and resolution.site == Site.OWN_DEVICE:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            self._links.measure_round_trip(request, (self._now_s - sent_s) - served_s, target.number)
            request.control = (Site.OWN_DEVICE, device.number)
        elif resolution.gamma > 0 and resolution.site == Site.EDGE_SERVER:
            yield from self._move_control(request, (Site.EDGE_SERVER, resolution.edge_server), tokens=1)
        return None

    def _warm_up(self, request: Request, resolution: Resolution) -> Process:
        """Let the drafter prefill the prompt while the target does."""
        drafter = self._drafter(resolution)
        warmed = self._env.event()
        request.warming[drafter.number] = warmed
        if resolution.site == Site.EDGE_SERVER:
            channel = request.device.edge_up
            assert channel is not None
            size = self._protocol.header_bytes + request.spec.prompt_tokens * self._protocol.bytes_per_token
            arrives_s = channel.send(self._now_s, size)
            self._links.count_bytes(size, request.device)
            yield self._env.at(arrives_s, Order.DELIVERY, request.number)
        prompt = request.spec.prompt_tokens
        yield self._drafters.queue_job(DraftJob(request, drafter, 0, prompt, prompt, self._env.event()))
        request.drafter_valid[drafter.number] = prompt
        del request.warming[drafter.number]
        warmed.succeed()
        self._streams.go_on(request)

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
        drafts = self._drafters.drafts(request, drafter, resolution)
        drafted = drafts.kept
        yield self._drafters.draft_window(request, drafter, drafts.made)

        target = self._world.targets[resolution.target]
        moves = resolution.target != request.target
        size = drafted * self._protocol.bytes_per_draft_token
        if moves:
            size += context * self._protocol.bytes_per_token
        sent_s = self._now_s
        if on_device:
            arrives_s = self._links.send_up(request.device, size, request, target.number)
            self._timers.expect_result(request, size, target.number)
        else:
            arrives_s = self._links.send_backhaul(
                resolution.edge_server, resolution.target, True, size, request
            )
        self._drafters.draft_ahead(request, drafter, drafted)
        yield from self._travel(request, arrives_s)
        request.control = (Site.COLOCATED, resolution.target)
        served_s = self._now_s
        prefill = context - 1 if moves else 0
        yield from self._targets.serve(
            request,
            target,
            TargetTask.VERIFY,
            resolution,
            gamma=drafted,
            dropped=drafts.dropped,
            prefill=prefill,
        )
        served_s = self._now_s - served_s
        if request.finished:
            return
        self._timers.expect_drafts(request)
        if on_device:
            yield self._env.at(request.delivery_s[-1], Order.DELIVERY, request.number)
            request.exchange += 1
            self._links.measure_round_trip(request, (self._now_s - sent_s) - served_s, target.number)
        else:
            result = request.round_tokens * self._protocol.bytes_per_token
            back_s = self._links.send_backhaul(
                resolution.edge_server, resolution.target, False, result, request
            )
            yield self._env.at(back_s, Order.DELIVERY, request.number)
        request.control = place
        self._drafters.settle_ahead(request)

    def _colocated_round(self, request: Request, resolution: Resolution) -> Process:
        """Draft and verify at the target. Nothing travels but the tokens, which go down to the client."""
        target = self._world.targets[resolution.target]
        prefill = yield from self._reach_target(request, resolution)
        drafter = self._drafter(resolution)
        drafts = self._drafters.drafts(request, drafter, resolution)
        task = TargetTask.COLOCATED
        if drafter.server is not None:
            task = TargetTask.VERIFY
            yield self._drafters.draft_window(request, drafter, drafts.made)
            self._drafters.draft_ahead(request, drafter, drafts.kept)
        yield from self._targets.serve(
            request, target, task, resolution, gamma=drafts.kept, dropped=drafts.dropped, prefill=prefill
        )
        if not request.finished:
            self._drafters.settle_ahead(request)

    def _plain_round(self, request: Request, resolution: Resolution) -> Process:
        """Let the target decode a chunk of tokens without drafts and send each one at once."""
        prefill = yield from self._reach_target(request, resolution)
        target = self._world.targets[resolution.target]
        yield from self._targets.serve(request, target, TargetTask.PLAIN, resolution, prefill=prefill)

    def _reach_target(self, request: Request, resolution: Resolution) -> Generator[simpy.Event, object, int]:
        """Bring control to the target; return the context tokens to prefill there first."""
        place = (Site.COLOCATED, resolution.target)
        moves = resolution.target != request.target
        if request.control != place:
            yield from self._move_control(request, place, tokens=request.context_tokens if moves else 0)
        if self._world.targets[resolution.target].down:
            request.lost_target = resolution.target
            raise TargetDownError
        return request.context_tokens - 1 if moves else 0

    def _move_control(self, request: Request, place: tuple[Site, int], tokens: int) -> Process:
        """Move control to a place, hop by hop, by a message that carries the tokens the new place lacks."""
        device = request.device
        size = tokens * self._protocol.bytes_per_token
        while request.control != place:
            site, number = request.control
            to_site, to_number = place
            if site == Site.COLOCATED and to_site == Site.EDGE_SERVER:
                arrives_s = self._links.send_backhaul(to_number, number, False, size, request)
                hop = place
            elif site == Site.EDGE_SERVER and to_site == Site.COLOCATED:
                arrives_s = self._links.send_backhaul(number, to_number, True, size, request)
                hop = place
            elif site == Site.COLOCATED:
                arrives_s = self._links.send_down(device, size, request, number)
                hop = (Site.OWN_DEVICE, device.number)
            elif site == Site.EDGE_SERVER:
                arrives_s = self._links.send_edge(device, False, size, request)
                hop = (Site.OWN_DEVICE, device.number)
            elif to_site == Site.COLOCATED:
                arrives_s = self._links.send_up(device, size, request, to_number)
                hop = place
            else:
                arrives_s = self._links.send_edge(device, True, size, request)
                hop = place
            yield from self._travel(request, arrives_s)
            request.control = hop

    def _decode_alone(self, request: Request) -> Process:
        """Let the target go on by plain decoding; the next decision is taken there."""
        target = self._world.targets[request.target]
        request.control = (Site.COLOCATED, target.number)
        yield from self._targets.serve(request, target, TargetTask.PLAIN, None)

    def _travel(self, request: Request, arrives_s: float) -> Process:
        """Wait for a message of this request to arrive.

        If the request stops waiting (see :meth:`Requests.abandon`), the message still arrives, and counts as
        late.
        """
        request.in_flight = self._env.at(arrives_s, Order.DELIVERY, request.number)
        yield request.in_flight
        request.in_flight = None

    @staticmethod
    def _is_cold(request: Request, drafter_number: int) -> bool:
        """Return whether a drafter has none of the request's context and no drafter is prefilling it."""
        return not request.warming and request.drafter_valid.get(drafter_number, 0) == 0

    def _drafter(self, resolution: Resolution) -> SiteDrafter:
        return self._world.drafters[resolution.drafter_number]
