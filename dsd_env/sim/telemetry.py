"""What a controller knows: delayed periodic reports and its own measurements, never the future."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from dsd_env.control.estimators import Learned, SystemEstimates, newest
from dsd_env.control.fleet_view import TARGET_FIELDS, FleetTelemetry, RequestColumns
from dsd_env.control.view import (
    CandidateView,
    DecisionView,
    DrafterKind,
    DrafterView,
    LinkView,
    RequestView,
    Site,
    SystemView,
    TargetView,
)
from dsd_env.laws import reports
from dsd_env.laws.view import fits, handover_s, time_per_token_s
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import Device, Report, Request, SiteDrafter, TargetServer
from dsd_env.sim.world import World

_COLUMNS: Mapping[str, Callable[[Any], float]] = {
    "device": attrgetter("device.number"),
    "slo_class": attrgetter("spec.slo_class"),
    "acceptance_rate": attrgetter("acceptance_rate"),
    "verifies": attrgetter("verifies"),
    "prompt_tokens": attrgetter("spec.prompt_tokens"),
    "committed": attrgetter("committed"),
    "arrival_s": attrgetter("arrival_s"),
    "first_commit_s": attrgetter("first_commit_s"),
    "last_commit_s": attrgetter("last_commit_s"),
}
"""Where the columns of the fleet's requests come from."""
_WHOLE = ("device", "slo_class", "verifies", "prompt_tokens", "committed")
_reported = attrgetter(*TARGET_FIELDS)


class Telemetry:
    """Publishes the servers' state periodically and assembles the view of a decision.

    A controller sees the following.

    * If it is at a target, it sees that target as it is now.
    * If it is elsewhere, it sees its request's target by the newer of two reports: the one that came with the
      last result, and the newest periodic report that can have reached it.
    * It sees every other server by the newest periodic report that can have reached it.
    * It sees its device's link and drafter by what the device's own past messages measured.

    How far each target is beyond the links (``extra_one_way_s``) everybody knows. Reports of a far target
    travel that much longer, and those for a controller there. What is counted over all servers counts as
    known where the links end.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        """Prepare the telemetry of one episode."""
        self._world = world
        self._actions = scenario.actions
        self._system = SystemEstimates(scenario)
        self._n_offered = min(scenario.actions.targets_offered, scenario.n_targets)
        self._gamma_max = max(scenario.actions.gammas)
        self._streaming = scenario.protocol.kind == "streaming"
        self._stream_waits = scenario.protocol.stream_idle == "wait"
        self._first_target = len(world.devices) + len(world.edges)
        self._places = [(Site(site), edge, rank, fanout) for site, edge, rank, fanout in scenario.places]
        self._depth = scenario.protocol.branches.depth
        self._offers_branches = scenario.actions.offer_branches
        self._n_edges_offered = scenario.n_edge_servers_offered if scenario.edge_servers_ordered else 0

    def count_completed(self, slo_class: int, good: bool) -> None:
        """Note that an answer is complete at its client, and whether it met its SLO."""
        self._system.count_completed(slo_class, good)

    def count_verified(self, model: str, drafted: int, accepted: int) -> None:
        """Note that a target has verified drafts by a model."""
        self._system.count_verified(model, drafted, accepted)

    def count_arrival(self) -> None:
        """Note that a prompt has reached a target."""
        self._system.count_arrival()

    def count_tokens(self, tokens: int) -> None:
        """Note that a target has committed tokens."""
        self._system.count_tokens(tokens)

    def publish(self, now_s: float) -> None:
        """Let every server publish its state."""
        for target in self._world.targets:
            target.reports.append(target.report(now_s))
            for drafter in target.drafters:
                if drafter.server is not None:
                    drafter.reports.append(drafter.report(now_s))
        for edge in self._world.edges:
            for drafter in edge:
                drafter.reports.append(drafter.report(now_s))
        self._system.publish(now_s)

    def drafter_number(self, device: int, candidate: CandidateView) -> int:
        """Return the number of a candidate's drafter, for a request of a device."""
        if candidate.site == Site.OWN_DEVICE:
            site = device
        elif candidate.site == Site.EDGE_SERVER:
            site = len(self._world.devices) + candidate.edge_server
        else:
            site = self._first_target + candidate.target.index
        return candidate.drafter * self._world.n_sites + site

    def view(self, request: Request, now_s: float) -> DecisionView:
        """Return what the controller of a request knows now."""
        device = request.device
        site = request.control[0]
        delay_s = self._delay_s(request)
        offered = self._offered(request, now_s - delay_s)
        reports = {target.number: self._report(target, request, now_s, delay_s) for target in offered}
        views = {target.number: _target_view(target, reports[target.number], now_s) for target in offered}
        if request.control[0] == Site.OWN_DEVICE:
            request.own_jobs = device.jobs
        arrivals_per_s, tokens_per_s = self._system.rates(now_s - delay_s)
        own, others = self._system.attainments(now_s - delay_s, request.spec.slo_class)
        active = sum(self._newest(target, now_s - delay_s).resident for target in self._world.targets)
        candidates = self._candidates(request, offered, views, now_s, delay_s)
        return DecisionView(
            now_s,
            request.number,
            device.number,
            request.decisions,
            _request_view(request, now_s),
            views[offered[0].number],
            _link_view(device, site, offered[0], now_s),
            self._drafter_view(request),
            candidates,
            SystemView(active, arrivals_per_s, tokens_per_s, own, others),
            self._actions.gammas,
            self._actions.batch_sizes,
        )

    def fleet(self, requests: Iterable[Request], now_s: float) -> FleetTelemetry:
        """Return what the fleet's controller is told now, which sits with the targets.

        Args:
            requests: The requests in the system, in order of arrival.
            now_s: Simulated time.
        """
        known = [request for request in requests if request.target >= 0 and not request.finished]
        columns: dict[str, Any] = {
            name: np.array(list(map(read, known)), dtype=np.int64 if name in _WHOLE else np.float64)
            for name, read in _COLUMNS.items()
        }
        targets, edges = self._world.targets, self._world.edges
        rates, attainments, acceptances = self._system.known(now_s)
        return FleetTelemetry(
            now_s,
            RequestColumns(**columns),
            np.array([device.rtt_s for device in self._world.devices]),
            np.array([device.rtt_deviation_s for device in self._world.devices]),
            tuple(tuple(map(float, _reported(self._newest(each, now_s)))) for each in targets),
            tuple(tuple(map(float, newest(first.reports, now_s)[1:])) for first, *_ in edges),  # type: ignore[misc]
            *rates[1:],
            attainments[1:],
            acceptances[1:],
        )

    def _delay_s(self, request: Request) -> float:
        """Return how long a server's report travels to where a request's decisions are taken."""
        site, number = request.control
        if site == Site.OWN_DEVICE:
            return request.device.down.one_way_s
        if site == Site.EDGE_SERVER:
            return self._world.backhauls[number][0][1].one_way_s
        return self.extra_s(self._world.targets[number])

    def extra_s(self, target: TargetServer) -> float:
        """Return how much longer what is known of a target travels than the links take."""
        return target.config.extra_one_way_s

    def _newest(self, target: TargetServer, visible_s: float) -> Report:
        """Return a target's newest periodic report that one has who sees those of a time where links end."""
        return newest_report(target, visible_s - self.extra_s(target))

    def _offered(self, request: Request, visible_s: float) -> list[TargetServer]:
        """Return the targets to choose from: the request's current target, then the least loaded ones."""
        targets = self._world.targets
        if len(targets) == 1:
            return targets
        current = request.target
        if self._n_offered == 1 and current >= 0:
            return [targets[current]]
        loads = []
        for target in targets:
            report = self._newest(target, visible_s)
            loads.append((target.number != current, not report.up, report.resident, target.number))
        loads.sort()
        return [targets[number] for *_, number in loads[: self._n_offered]]

    def _offered_edges(self, request: Request, visible_s: float) -> Sequence[int]:
        """Return the edge servers to choose from: the current one, then by when a next draft would come.

        The current one is where the request's last drafts were made. Of several drafters there the first
        counts. Without a limit, it is all of them by number.
        """
        edges = self._world.edges
        if self._n_edges_offered == 0:
            return range(len(edges))
        current = request.drafted_at % self._world.n_sites - len(self._world.devices)
        waits = []
        for number, (first, *_) in enumerate(edges):
            _, jobs, wait_s, up = newest(first.reports, visible_s)
            draft_s = wait_s + _shared_step_s(first, request, jobs)
            waits.append((request.drafted_at < 0 or number != current, not up, draft_s, number))
        waits.sort()
        return [number for *_, number in waits[: self._n_edges_offered]]

    def _report(self, target: TargetServer, request: Request, now_s: float, delay_s: float) -> Report:
        if request.control == (Site.COLOCATED, target.number):
            return target.report(now_s)
        latest = self._newest(target, now_s - delay_s)
        if (
            request.target == target.number
            and request.report is not None
            and request.report.time_s > latest.time_s
        ):
            return request.report
        return latest

    def _candidates(
        self,
        request: Request,
        offered: list[TargetServer],
        views: dict[int, TargetView],
        now_s: float,
        delay_s: float,
    ) -> tuple[CandidateView, ...]:
        device = request.device
        acceptances = self._system.acceptances(now_s - delay_s)
        edges = self._offered_edges(request, now_s - delay_s)
        candidates = []
        for target in offered:
            view = views[target.number]
            same_target = target.number == request.target
            move_s = 0.0
            if not same_target and request.target >= 0:
                move_s = request.known_context_tokens * target.prefill_token_s
            visible_s = now_s - delay_s
            for site, edge, rank, fanout in self._places:
                beside = fanout * self._depth
                if site == Site.COLOCATED:
                    candidate = self._colocated_candidate(
                        request, target, rank, view, same_target, move_s, visible_s, beside
                    )
                elif site == Site.OWN_DEVICE:
                    candidate = self._own_candidate(request, device, rank, view, same_target, move_s, beside)
                else:
                    candidate = self._edge_candidate(
                        request, edges[edge], rank, view, same_target, move_s, visible_s, beside
                    )
                self._tell_of_drafter(request, candidate, acceptances)
                self._tell_of_branches(request, candidate, fanout)
                candidates.append(candidate)
        return tuple(candidates)

    def _tell_of_drafter(
        self, request: Request, candidate: CandidateView, acceptances: tuple[float, ...]
    ) -> None:
        """Write what a controller knows of a candidate's drafter whatever its site."""
        drafter = self._world.drafters.get(self.drafter_number(request.device.number, candidate))
        if drafter is None:
            candidate.coalesces = not candidate.shares_target
            return
        candidate.kind, candidate.model = drafter.kind, drafter.model
        if drafter.kind == DrafterKind.LOOKUP:
            candidate.kv_lag_tokens = 1
        learned = request.learned.get(drafter.model, Learned())
        candidate.acceptance_rate = learned.acceptance_rate
        candidate.tokens_per_round = learned.tokens_per_round
        candidate.model_rounds = learned.model_rounds
        candidate.pooled_acceptance = acceptances[self._system.models[drafter.model]]
        candidate.streams = self._streaming and drafter.can_stream
        candidate.coalesces = not candidate.shares_target and (not candidate.streams or self._stream_waits)

    def _tell_of_branches(self, request: Request, candidate: CandidateView, fanout: int) -> None:
        """Write what branches a candidate's stream has; the current one is that which was asked for."""
        candidate.fanout, candidate.depth = fanout, self._depth if fanout else 0
        if self._offers_branches:
            candidate.is_current = candidate.is_current and request.drafted_branches == (fanout > 0)
            candidate.valid = candidate.valid and (fanout == 0 or candidate.streams)

    def _colocated_candidate(
        self,
        request: Request,
        target: TargetServer,
        rank: int,
        view: TargetView,
        same_target: bool,
        move_s: float,
        visible_s: float,
        beside: int,
    ) -> CandidateView:
        number = rank * self._world.n_sites + self._first_target + target.number
        drafter = _of_rank(target.drafters, rank)
        lag = request.drafter_lag(number)
        step_s = catch_up_s = wait_s = 0.0
        if drafter is not None:
            context, timer = request.known_context_tokens, drafter.timer
            step_s = timer.step_s(1 + (beside if drafter.can_stream else 0), context, 0)
            catch_up_s = timer.step_s(lag, context, context if lag > 1 else 0)
            if drafter.server is not None:
                here = request.control == (Site.COLOCATED, target.number)
                visible_s -= self.extra_s(target)
                seen = drafter.report(visible_s) if here else newest(drafter.reports, visible_s)
                wait_s = seen[2]
        return CandidateView(
            Site.COLOCATED,
            -1,
            view,
            drafter is not None and view.up,
            same_target and request.drafted_at == number,
            same_target,
            step_s,
            catch_up_s,
            wait_s,
            0.0,
            self._handover_s(request, Site.COLOCATED, target.number, -1),
            lag,
            move_s,
            drafter is not None and drafter.server is None,
            rank,
        )

    def _own_candidate(
        self,
        request: Request,
        device: Device,
        rank: int,
        view: TargetView,
        same_target: bool,
        move_s: float,
        beside: int,
    ) -> CandidateView:
        drafter = _of_rank(device.drafters, rank)
        number = rank * self._world.n_sites + device.number
        lag = request.drafter_lag(number)
        step_s = catch_up_s = wait_s = 0.0
        if drafter is not None:
            context = request.known_context_tokens
            step_s = drafter.timer.step_s(1 + (beside if drafter.can_stream else 0), context, 0)
            catch_up_s = drafter.timer.step_s(lag, context, context if lag > 1 else 0)
            mean_job_s = drafter.own_server.mean_job_s
            wait_s = reports.busy_drafter_wait_s(request.own_jobs, drafter.concurrency, mean_job_s)
        return CandidateView(
            Site.OWN_DEVICE,
            -1,
            view,
            view.up and self._fits(drafter, request),
            same_target and request.drafted_at == number,
            same_target,
            step_s,
            catch_up_s,
            wait_s,
            device.rtt_s + 2.0 * self._world.targets[view.index].config.extra_one_way_s,
            self._handover_s(request, Site.OWN_DEVICE, device.number, -1),
            lag,
            move_s,
            False,
            rank,
        )

    def _edge_candidate(
        self,
        request: Request,
        number: int,
        rank: int,
        view: TargetView,
        same_target: bool,
        move_s: float,
        visible_s: float,
        beside: int,
    ) -> CandidateView:
        drafter = _of_rank(self._world.edges[number], rank)
        drafter_number = rank * self._world.n_sites + len(self._world.devices) + number
        lag = request.drafter_lag(drafter_number)
        step_s = catch_up_s = wait_s = 0.0
        up: float = False
        if drafter is not None:
            context = request.known_context_tokens
            _, jobs, wait_s, up = newest(drafter.reports, visible_s)
            together = _together(drafter, jobs)
            step_s = _shared_step_s(drafter, request, jobs, 1 + (beside if drafter.can_stream else 0))
            catch_up_s = drafter.timer.step_s(
                lag + together - 1, together * context, context if lag > 1 else 0
            )
        backhaul = self._world.backhauls[number][view.index][0]
        return CandidateView(
            Site.EDGE_SERVER,
            number,
            view,
            bool(up) and view.up and request.device.edge_up is not None and self._fits(drafter, request),
            same_target and request.drafted_at == drafter_number,
            same_target,
            step_s,
            catch_up_s,
            wait_s,
            2.0 * backhaul.one_way_s + 2.0 * self._world.targets[view.index].config.extra_one_way_s,
            self._handover_s(request, Site.EDGE_SERVER, number, number),
            lag,
            move_s,
            False,
            rank,
        )

    def _handover_s(self, request: Request, site: Site, number: int, edge: int) -> float:
        """Return the expected one-way delay of moving control to a place."""
        at_site, at_number = request.control
        device, targets = request.device, self._world.targets
        backhaul_s = 0.0
        if at_site == Site.EDGE_SERVER and site == Site.COLOCATED:
            backhaul_s = self._world.backhauls[at_number][number][0].one_way_s
        elif at_site == Site.COLOCATED and site == Site.EDGE_SERVER:
            backhaul_s = self._world.backhauls[edge][at_number][1].one_way_s
        return handover_s(
            at_site,
            at_number,
            site,
            number,
            0.5 * device.rtt_s,
            0.0 if device.edge_up is None else device.edge_up.one_way_s,
            0.0 if device.edge_down is None else device.edge_down.one_way_s,
            backhaul_s,
            targets[at_number].config.extra_one_way_s if at_site == Site.COLOCATED else 0.0,
            targets[number].config.extra_one_way_s if site == Site.COLOCATED else 0.0,
        )

    def _drafter_view(self, request: Request) -> DrafterView:
        drafter = request.device.drafter
        if drafter is None:
            return DrafterView(False, 0.0, request.known_context_tokens, 0)
        step_s = drafter.timer.step_s(1, request.known_context_tokens, 0)
        lag = 1 if drafter.kind == DrafterKind.LOOKUP else request.drafter_lag(drafter.number)
        return DrafterView(self._fits(drafter, request), step_s, lag, request.own_jobs)

    def _fits(self, drafter: SiteDrafter | None, request: Request) -> bool:
        return drafter is not None and fits(
            request.known_context_tokens, self._gamma_max, drafter.kv_capacity_tokens
        )


def _of_rank(drafters: tuple[SiteDrafter, ...], rank: int) -> SiteDrafter | None:
    return drafters[rank] if rank < len(drafters) else None


def _together(drafter: SiteDrafter, jobs: float) -> int:
    """Return how many would draft together at an edge server's drafter with one more than reported."""
    return min(int(jobs) + 1, drafter.concurrency)


def _shared_step_s(drafter: SiteDrafter, request: Request, jobs: float, step_tokens: int = 1) -> float:
    """Return the time of a draft step there, all contexts being as long as the request's."""
    together = _together(drafter, jobs)
    return drafter.timer.step_s(together * step_tokens, together * request.known_context_tokens, 0)


def newest_report(target: TargetServer, visible_s: float) -> Report:
    """Return the newest periodic report made no later than ``visible_s`` (the first, if none was)."""
    for report in reversed(target.reports):
        if report.time_s <= visible_s:
            return report
    return target.reports[0]


def _target_view(target: TargetServer, report: Report, now_s: float) -> TargetView:
    return TargetView(
        target.number,
        report.up,
        report.queued,
        report.running,
        report.resident,
        report.remaining_s,
        report.iteration_s,
        report.kv_fraction,
        report.waiting,
        target.config.max_num_seqs,
        target.config.max_batch_wait_s,
        report.token_s,
        target.prefill_token_s,
        now_s - report.time_s,
        report.plain,
        report.colocated,
        report.remote,
        report.gamma_mean,
        report.prefill_tokens,
    )


def _request_view(request: Request, now_s: float) -> RequestView:
    spec, stream, known = request.spec, request.stream, request.known_tokens
    ttft_s = request.first_commit_s - request.arrival_s if known > 0 else 0.0
    tpot_s = time_per_token_s(request.first_commit_s, request.known_commit_s, known)
    return RequestView(
        request.target < 0,
        request.control[0],
        spec.prompt_tokens,
        known,
        now_s - request.arrival_s,
        spec.slo_ttft_s,
        spec.slo_tpot_s,
        spec.slo_itl_p99_s,
        spec.slo_first_s,
        spec.slo_per_token_s,
        ttft_s,
        tpot_s,
        request.rounds,
        request.acceptance_rate,
        request.tokens_per_round,
        request.recent_gammas,
        request.recent_accepted,
        request.last_confidence,
        0 if request.head_start is None else request.head_start.drafts,
        0 if stream is None else stream.window,
        0 if stream is None else stream.drafted - stream.known,
        0 if stream is None else stream.generation,
        0.0 if stream is None else now_s - stream.started_s,
        request.idle_share,
    )


def _link_view(device: Device, site: Site, target: TargetServer, now_s: float) -> LinkView:
    age_s = reports.sample_age_s(now_s, device.rtt_sample_s)
    # A controller sees the queue of the direction that it sends in.
    channel = device.up if site == Site.OWN_DEVICE else device.down
    return LinkView(
        channel.seems_up(now_s),
        device.rtt_s + 2.0 * target.config.extra_one_way_s,
        device.rtt_deviation_s,
        device.up.bits_per_s,
        device.down.bits_per_s,
        device.loss,
        age_s,
    )
