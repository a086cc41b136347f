"""Turns what happens in a reference simulation into the observations that an engine would send."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsd_env.control import Site
from dsd_env.network import Channel
from dsd_env.scenario import Scenario
from dsd_env.serving import (
    BackhaulState,
    ClientJoined,
    ControlMoved,
    DecisionDropped,
    Deployment,
    DrafterState,
    DraftKv,
    DraftState,
    Event,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestInterrupted,
    RequestQueued,
    RoundVerified,
    RttSample,
    StreamResult,
    TargetState,
    TokensCommitted,
)
from dsd_env.serving.answers import SITES
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.entities import Device, Report, Request, TargetServer, TargetTask
from dsd_env.sim.metrics import meets_slo
from dsd_env.sim.reference import targets as targets_module
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.failures import Failures
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.requests import Requests
from dsd_env.sim.reference.streams import Streams
from dsd_env.sim.reference.targets import Targets
from dsd_env.sim.telemetry import Telemetry

ESTIMATED = ("iteration_s", "token_s")
"""What the controller is left to estimate of a target by itself, from the iterations."""


class Recorder:
    """A simulation that writes down what its engines would tell a controller."""

    def __init__(self, scenario: Scenario, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        self.targets = Deployment.of(scenario).targets
        self.slos = list(scenario.slo)
        self.learnt: tuple[Any, ...] | None = None
        # What a target has just verified: model, drafts, accepted.
        self.verified: tuple[str, int, int] | None = None
        # What the controller knows: of drafters' KV, who has drafted ahead or streams, whose link is up.
        self.valid: dict[int, dict[int, int]] = {}
        self.ahead: set[int] = set()
        self.link_up: dict[int, bool] = {}
        self._patch(monkeypatch)
        self.simulation = ReferenceSimulation(scenario, seed, record_events=True)
        self.world = self.simulation._episode.world
        self.channels = {
            id(channel): (f"d{device.number}", f"{direction}_sample_bits_per_s")
            for device in self.world.devices
            for channel, direction in ((device.up, "uplink"), (device.down, "downlink"))
        }
        for device in self.world.devices:
            self._join(device)
        for number, edge in enumerate(self.world.backhauls):
            for target, (up, down) in zip(self.targets, edge, strict=True):
                self.tell(BackhaulState(number, target, up.one_way_s, down.one_way_s, 0.0))

    @property
    def now_s(self) -> float:
        return self.simulation.now_s

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def taken(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    # ------------------------------------------------------------------ hooks

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        me = self

        def hook(owner: Any, name: str, before: Any = None, after: Any = None) -> None:
            original = getattr(owner, name)

            def called(self: Any, *args: Any, **kwargs: Any) -> Any:
                if before is not None:
                    before(self, *args, **kwargs)
                result = original(self, *args, **kwargs)
                if after is not None:
                    after(self, *args, **kwargs)
                return result

            monkeypatch.setattr(owner, name, called)

        def arrived(_: Any, device: Device, spec: Any) -> None:
            number = me.simulation._accounts.arrived - 1
            me.tell(
                RequestArrived(
                    str(number),
                    spec.prompt_tokens,
                    f"d{device.number}",
                    me.slos[spec.slo_class],
                    None,
                    me.now_s,
                )
            )

        hook(Requests, "arrive", after=arrived)

        original_serve = Targets.serve

        def serve(
            self: Any, request: Request, target: TargetServer, task: TargetTask, *args: Any, **kwargs: Any
        ) -> Any:
            name = str(request.number)
            # A prompt is seen by the front end, which refuses it while its target is down.
            refused = target.down and task == TargetTask.PREFILL
            if refused or (request.target != target.number and not target.down):
                me.tell(RequestQueued(name, me.targets[target.number], me.now_s))
            if refused:
                me.tell(RequestInterrupted(name, me.now_s))
            yield from original_serve(self, request, target, task, *args, **kwargs)
            me.state(target, request.report, request=name, periodic=False)

        monkeypatch.setattr(Targets, "serve", serve)
        self._patch_results(hook, monkeypatch)
        self._patch_servers(hook)
        self._patch_links(hook, monkeypatch)

        def completed(_: Any, request: Request) -> None:
            met = meets_slo(request)
            me.tell(RequestFinished(str(request.number), met, me.now_s))

        hook(Requests, "complete", after=completed)

    def _patch_results(self, hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record what targets commit, and of streams what their drafters hear of it."""
        me = self

        def learnt(request: Request, *args: Any) -> None:
            me.learnt = args

        hook(Request, "learn", after=learnt)

        def verified(_: Any, model: str, drafted: int, accepted: int) -> None:
            me.verified = (model, drafted, accepted)

        hook(Telemetry, "count_verified", after=verified)

        def committed(_: Any, request: Request, tokens: int) -> None:
            name, target = str(request.number), me.targets[request.target]
            learnt, me.learnt = me.learnt, None
            verified, me.verified = me.verified, None
            last = request.committed + tokens >= request.spec.output_tokens or None
            when: dict[str, Any] = {"last": last, "time_s": me.now_s}
            if request.stream is not None:
                of_stream: dict[str, Any] = {"target": target, "heard": False, **when}
                if verified is None:
                    me.tell(TokensCommitted(name, tokens, False, **of_stream))
                else:
                    model, drafted, accepted = verified
                    me.tell(RoundVerified(name, drafted, accepted, tokens, model=model, **of_stream))
            elif learnt is not None:
                model, drafted, accepted, of_round, confidence, _ = learnt
                assert of_round == tokens
                me.tell(RoundVerified(name, drafted, accepted, tokens, confidence, target, model, **when))
                # The controller knows by itself what the drafter's KV holds then.
                me.valid.setdefault(request.number, {})[request.drafted_at] = request.drafter_valid[
                    request.drafted_at
                ]
            else:
                me.tell(TokensCommitted(name, tokens, False, target, **when))

        hook(Targets, "_commit", before=committed)

        def heard(_: Any, request: Request, stream: Any, result: Any) -> None:
            me.learnt = None
            me.tell(
                StreamResult(
                    str(request.number),
                    result.committed,
                    result.commit_s,
                    result.tokens,
                    result.drafted,
                    result.accepted,
                    result.confidence,
                    stream.drafter.model,
                    me.now_s,
                )
            )

        hook(Streams, "_learn", after=heard)

        def opened(_: Any, request: Request, stream: Any, *_args: Any, **_how: Any) -> None:
            me.ahead.add(request.number)
            me.tell(DraftState(str(request.number), window_tokens=stream.window, time_s=me.now_s))

        hook(Streams, "tell_opened", after=opened)
        hook(Streams, "tell_first_token", after=opened)

        def lengths(request: Request, drafted: int, accepted: int) -> None:
            original_lengths(request, drafted, accepted)
            at = max(
                i
                for i, event in enumerate(me.events)
                if isinstance(event, TokensCommitted) and event.request == str(request.number)
            )
            me.events[at] = replace(me.events[at], round_over=True)

        original_lengths = targets_module.note_lengths
        monkeypatch.setattr(targets_module, "note_lengths", lengths)

    def _patch_servers(self, hook: Any) -> None:
        """Record what targets and drafters report, and their crashes."""
        me = self

        def iterated(_: Any, target: TargetServer) -> None:
            duration_s = me.now_s - target.iteration_start_s
            tokens = sum(new for _, new in target.running)
            me.tell(IterationDone(duration_s, tokens, me.targets[target.number], me.now_s))

        hook(Targets, "_end_iteration", before=iterated)

        def published(telemetry: Telemetry, now_s: float) -> None:
            if not hasattr(me, "simulation"):
                return
            for target in me.world.targets:
                me.state(target, target.reports[-1], periodic=True)
                for rank, drafter in enumerate(target.drafters):
                    if drafter.server is not None:
                        me.drafter(drafter, now_s, target=me.targets[target.number], drafter=rank)
            for number, edge in enumerate(me.world.edges):
                for rank, drafter in enumerate(edge):
                    me.drafter(drafter, now_s, edge_server=number, drafter=rank)

        hook(Telemetry, "publish", after=published)

        def target_lost(_: Any, target: TargetServer) -> None:
            me.state(target, target.report(me.now_s), periodic=False, kv_lost=True)

        hook(Failures, "_crash_target", after=target_lost)

        def drafter_lost(_: Any, number: int) -> None:
            for of_request in me.valid.values():
                of_request.pop(number, None)
            where = me._where(number)
            if where["site"] == "own_device":
                device = number % me.world.n_sites
                me.tell(
                    DrafterState(client=f"d{device}", drafter=where["drafter"], kv_lost=True, time_s=me.now_s)
                )
            elif where["site"] == "edge_server":
                del where["site"]
                me.tell(DrafterState(**where, kv_lost=True, time_s=me.now_s, periodic=False))

        hook(Drafters, "lose_kv", after=drafter_lost)

    def _patch_links(self, hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record what a device's messages show of its link."""
        me = self

        def measured(_: Any, request: Request, round_trip_s: float, target: int) -> None:
            client = f"d{request.device.number}"
            me.tell(RttSample(client, round_trip_s, me.now_s, target=me.targets[target]))
            me.jobs(request)

        asked: list[Request] = []  # whose result is being measured; else it is an acknowledgement
        acknowledging: dict[int, int] = {}

        def acknowledged(device: Device, *_: Any) -> None:
            if not asked:
                target = me.targets[acknowledging.pop(device.number)]
                me.tell(RttSample(f"d{device.number}", me.now_s - device.timed_s, me.now_s, target=target))

        def result_measured(_: Any, request: Request, round_trip_s: float, target: int) -> None:
            asked.clear()
            measured(_, request, round_trip_s, target)

        hook(
            Links,
            "_acknowledge",
            before=lambda _, request, target: acknowledging.update({request.device.number: target}),
        )
        hook(Device, "measure", after=acknowledged)
        hook(
            Links,
            "measure_round_trip",
            before=lambda _, request, round_trip_s, target: asked.append(request),
            after=result_measured,
        )
        hook(Links, "send_up", after=lambda _, device, size, request, target: me.jobs(request))

        def sent(_: Any, device: Device, lost: int, size: float) -> None:
            me.tell(LinkState(f"d{device.number}", lost=lost > 0, time_s=me.now_s))

        hook(Links, "_sent", after=sent)

        original_send = Channel.send

        def send(channel: Channel, now_s: float, size_bytes: float) -> float:
            rate = channel.rate if channel.changes and id(channel) in me.channels else None
            # What the message before has shown is known once it has left.
            if rate is not None and rate.sample_bits_per_s > 0.0 and rate.sample_left_s <= now_s:
                client, name = me.channels[id(channel)]
                sample: dict[str, Any] = {name: rate.sample_bits_per_s}
                me.tell(LinkState(client, **sample, time_s=me.now_s))
            return original_send(channel, now_s, size_bytes)

        monkeypatch.setattr(Channel, "send", send)

    # ------------------------------------------------------------------ what is told

    def _join(self, device: Device) -> None:
        timer = device.drafters[0].timer if device.drafters else None
        self.tell(
            ClientJoined(
                f"d{device.number}",
                number=device.number,
                draft_time_factor=None if timer is None else timer.factor,
                uplink_one_way_s=device.up.one_way_s,
                downlink_one_way_s=device.down.one_way_s,
                edge_uplink_one_way_s=None if device.edge_up is None else device.edge_up.one_way_s,
                edge_downlink_one_way_s=None if device.edge_down is None else device.edge_down.one_way_s,
                time_s=0.0,
            )
        )

    def state(self, target: TargetServer, report: Report | None, **how: Any) -> None:
        assert report is not None
        fields = {name: getattr(report, name) for name in Report.__slots__ if name not in ESTIMATED}
        self.tell(TargetState(target=self.targets[target.number], **fields, **how))

    def drafter(self, each: Any, now_s: float, /, **where: Any) -> None:
        _, jobs, wait_s, up = each.report(now_s)
        self.tell(
            DrafterState(
                **where,
                up=up,
                jobs=jobs,
                wait_s=wait_s,
                mean_job_s=each.own_server.mean_job_s,
                time_s=now_s,
            )
        )

    def jobs(self, request: Request) -> None:
        if request.device.drafters:
            self.tell(
                DrafterState(
                    client=f"d{request.device.number}",
                    jobs=request.device.jobs,
                    request=str(request.number),
                    time_s=self.now_s,
                )
            )

    def before_decision(self) -> None:
        """Tell what an engine tells when it asks."""
        request = self.simulation.due_request
        assert request is not None
        name, device, now_s = str(request.number), request.device, self.now_s
        here = request.control[0] == Site.OWN_DEVICE
        for rank, drafter in enumerate(device.drafters):
            self.tell(
                DrafterState(
                    client=f"d{device.number}",
                    drafter=rank,
                    jobs=device.jobs if here and rank == 0 else None,
                    mean_job_s=drafter.own_server.mean_job_s,
                    request=name,
                    time_s=now_s,
                )
            )
        up = (device.up if here else device.down).seems_up(now_s)
        if self.link_up.get(device.number, True) != up:
            self.link_up[device.number] = up
            self.tell(LinkState(f"d{device.number}", up=up, time_s=now_s))
        self._tell_kv(request)
        self._tell_drafts(request)
        site, number = request.control
        if site == Site.COLOCATED:
            target = self.world.targets[number]
            self.state(target, target.report(now_s), periodic=False)
            for rank, each in enumerate(target.drafters):
                if each.server is not None:
                    where = {"target": self.targets[number], "drafter": rank, "periodic": False}
                    self.drafter(each, now_s, **where)

    def _tell_kv(self, request: Request) -> None:
        """Tell what drafters' KV holds where the controller does not know it."""
        known = self.valid.setdefault(request.number, {})
        for drafter in known.keys() | request.drafter_valid.keys():
            valid = request.drafter_valid.get(drafter, 0)
            if known.get(drafter, 0) != valid:
                known[drafter] = valid
                self.tell(DraftKv(str(request.number), valid, time_s=self.now_s, **self._where(drafter)))

    def _tell_drafts(self, request: Request) -> None:
        """Tell what is drafted ahead, and the state of a stream; that there is none only once."""
        drafts = 0 if request.head_start is None else request.head_start.drafts
        stream = request.stream
        told: dict[str, Any] = {}
        if stream is not None:
            told = {
                "window_tokens": stream.window,
                "lead_tokens": stream.drafted - stream.known,
                "generations": stream.generation,
                "generation_started_s": stream.started_s,
            }
        if drafts or told or request.number in self.ahead:
            self.ahead.add(request.number)
            self.tell(DraftState(str(request.number), drafts, **told, time_s=self.now_s))
        if not drafts and not told:
            self.ahead.discard(request.number)

    def _where(self, drafter: int) -> dict[str, Any]:
        rank, site = divmod(drafter, self.world.n_sites)
        if site < len(self.world.devices):
            return {"site": "own_device", "drafter": rank}
        site -= len(self.world.devices)
        if site < len(self.world.edges):
            return {"site": "edge_server", "edge_server": site, "drafter": rank}
        return {"site": "colocated", "target": self.targets[site - len(self.world.edges)], "drafter": rank}

    def drop_decision(self, request: Request) -> None:
        """Tell that the last decision on a request was not carried out."""
        self.tell(DecisionDropped(str(request.number), self.now_s))

    def move_control(self, request: Request) -> None:
        """Tell where the decision is taken."""
        site, number = request.control
        target = self.targets[number] if site == Site.COLOCATED else None
        edge = number if site == Site.EDGE_SERVER else None
        self.tell(ControlMoved(str(request.number), SITES[site], target, edge, self.now_s))
