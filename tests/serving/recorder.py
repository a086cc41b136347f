"""Turns what happens in a reference simulation into the observations that an engine would send."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsd_env.control import Site
from dsd_env.scenario import Scenario
from dsd_env.serving import (
    ClientJoined,
    ControlMoved,
    Deployment,
    DrafterState,
    DraftKv,
    DraftState,
    Event,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestQueued,
    RoundVerified,
    RttSample,
    TargetState,
    TokensCommitted,
)
from dsd_env.serving.controller import SITES
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.entities import Device, Report, Request, TargetServer
from dsd_env.sim.metrics import meets_slo
from dsd_env.sim.reference import targets as targets_module
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.requests import Requests
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
        self.valid: dict[int, dict[int, int]] = {}
        self.ahead: set[int] = set()
        self._patch(monkeypatch)
        self.simulation = ReferenceSimulation(scenario, seed)
        self.world = self.simulation._episode.world
        for device in self.world.devices:
            self._join(device)

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

        def served(_: Any, request: Request, target: TargetServer, *args: Any, **kwargs: Any) -> None:
            if request.target != target.number:
                me.tell(RequestQueued(str(request.number), me.targets[target.number], me.now_s))

        original_serve = Targets.serve

        def serve(self: Any, request: Request, target: TargetServer, *args: Any, **kwargs: Any) -> Any:
            served(self, request, target)
            yield from original_serve(self, request, target, *args, **kwargs)
            me.state(target, request.report, request=str(request.number), periodic=False)

        monkeypatch.setattr(Targets, "serve", serve)

        def learnt(request: Request, *args: Any) -> None:
            assert request.stream is None, "streams are not recorded"
            me.learnt = args

        hook(Request, "learn", after=learnt)

        def committed(_: Any, request: Request, tokens: int) -> None:
            name, target = str(request.number), me.targets[request.target]
            if me.learnt is not None:
                model, drafted, accepted, of_round, confidence, _ = me.learnt
                assert of_round == tokens
                me.learnt = None
                me.tell(RoundVerified(name, drafted, accepted, tokens, confidence, target, model, me.now_s))
                # The controller knows by itself what the drafter's KV holds then.
                me.valid.setdefault(request.number, {})[request.drafted_at] = request.drafter_valid[
                    request.drafted_at
                ]
            else:
                me.tell(TokensCommitted(name, tokens, False, target, me.now_s))

        hook(Targets, "_commit", before=committed)

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

        def iterated(_: Any, target: TargetServer) -> None:
            duration_s = me.now_s - target.iteration_start_s
            tokens = sum(new for _, new in target.running)
            me.tell(IterationDone(duration_s, tokens, me.targets[target.number], me.now_s))

        hook(Targets, "_end_iteration", before=iterated)

        def measured(_: Any, request: Request, round_trip_s: float) -> None:
            me.tell(RttSample(f"d{request.device.number}", round_trip_s, me.now_s))
            me.jobs(request)

        hook(Links, "measure_round_trip", after=measured)
        hook(Links, "send_up", after=lambda _, device, size, request: me.jobs(request))

        def sent(_: Any, device: Device, lost: int, size: float) -> None:
            me.tell(LinkState(f"d{device.number}", lost=lost > 0, time_s=me.now_s))

        hook(Links, "_sent", after=sent)

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

        def completed(_: Any, request: Request) -> None:
            met = meets_slo(request)
            me.tell(RequestFinished(str(request.number), met, me.now_s))

        hook(Requests, "complete", after=completed)

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

    def before_decision(self) -> list[str]:
        """Tell what an engine tells when it asks; return what the controller would not have known."""
        request = self.simulation.due_request
        assert request is not None
        name, device, now_s = str(request.number), request.device, self.now_s
        told: list[str] = []
        if device.drafters:
            server = device.drafters[0].own_server
            here = request.control[0] == Site.OWN_DEVICE
            self.tell(
                DrafterState(
                    client=f"d{device.number}",
                    jobs=device.jobs if here else None,
                    mean_job_s=server.mean_job_s,
                    request=name,
                    time_s=now_s,
                )
            )
        for drafter, valid in request.drafter_valid.items():
            if self.valid.setdefault(request.number, {}).get(drafter) != valid:
                self.valid[request.number][drafter] = valid
                self.tell(DraftKv(name, valid, time_s=now_s, **self._where(drafter)))
                told.append("kv")
        drafts = 0 if request.head_start is None else request.head_start.drafts
        if drafts or request.number in self.ahead:
            self.ahead.add(request.number)
            self.tell(DraftState(name, head_start_tokens=drafts, time_s=now_s))
        site, number = request.control
        if site == Site.COLOCATED:
            target = self.world.targets[number]
            self.state(target, target.report(now_s), periodic=False)
            for rank, each in enumerate(target.drafters):
                if each.server is not None:
                    where = {"target": self.targets[number], "drafter": rank, "periodic": False}
                    self.drafter(each, now_s, **where)
        return told

    def _where(self, drafter: int) -> dict[str, Any]:
        rank, site = divmod(drafter, self.world.n_sites)
        if site < len(self.world.devices):
            return {"site": "own_device", "drafter": rank}
        site -= len(self.world.devices)
        if site < len(self.world.edges):
            return {"site": "edge_server", "edge_server": site, "drafter": rank}
        return {"site": "colocated", "target": self.targets[site - len(self.world.edges)], "drafter": rank}

    def move_control(self, request: Request) -> None:
        """Tell where the decision is taken."""
        site, number = request.control
        target = self.targets[number] if site == Site.COLOCATED else None
        edge = number if site == Site.EDGE_SERVER else None
        self.tell(ControlMoved(str(request.number), SITES[site], target, edge, self.now_s))
