"""Records what happened in an episode, to show what hours of fuzzing have covered."""

from __future__ import annotations

from collections import Counter, defaultdict

from dsd_env import rng
from dsd_env.control.view import DecisionView
from dsd_env.network import FaultMember, FaultWindows, fault_members
from dsd_env.network.processes import OutageWindows
from dsd_env.rng import Stream
from dsd_env.scenario import Scenario
from dsd_env.scenario.schema import DeviceClass, Drafter, EdgeServer, Target
from dsd_env.sim.events import Event, EventKind
from dsd_env.sim.fuzz.engines import Engine
from dsd_env.sim.fuzz.stream_coverage import StreamWatch
from dsd_env.sim.reference import Resolution

_QUIET = {EventKind.FAULT, EventKind.RETURN}


class Watch:
    """Records what one episode contains.

    Attributes:
        met: 1 for each of the following that occurred: ``has:FEATURE`` (the scenario has the feature),
            ``event:KIND`` (the log has such an event), ``fault:KIND`` (such a fault happened; if it hits a
            link, while a message was under way), ``fault:instant`` (a fault of zero length),
            ``fault:overlap`` (a fault of a member that was down already), ``outage`` (a message met one),
            ``seen:...`` (a controller saw it), ``reason:...`` (a decision was resolved for this reason),
            ``tie:...`` (these events happened at one instant), ``end:...`` (how the episode ended),
            ``stream:...`` (what happened to a stream of drafts), ``stop:KIND`` (a decision had such a stop
            rule).
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Note the features of the scenario."""
        self.scenario, self.seed = scenario, seed
        self.met: Counter[str] = Counter()
        self._seen: set[str] = {f"has:{name}" for name in features_of(scenario)}
        self._target: dict[int, int] = {}
        self._streams_to: dict[int, tuple[int, int]] = {}

    def decided(self, view: DecisionView, resolution: Resolution) -> None:
        """Note what a controller saw, and what became of its decision."""
        seen = self._seen
        if not view.link.up:
            seen.add("seen:link down")
        if not all(candidate.target.up for candidate in view.candidates):
            seen.add("seen:target down")
        if view.request.head_start_tokens > 0:
            seen.add("seen:head start")
        if view.request.is_admission and view.request.committed_tokens > 0:
            seen.add("seen:request without target")
        if resolution.reason is not None:
            seen.add(f"reason:{resolution.reason}")
        if resolution.stop is not None:
            seen |= {"has:stops", f"stop:{resolution.stop.kind.name}"}
        self._closes(view, resolution)
        before = self._target.setdefault(view.request_id, resolution.target)
        if before != resolution.target:
            seen.add("seen:move to another target")
            self._target[view.request_id] = resolution.target

    def _closes(self, view: DecisionView, resolution: Resolution) -> None:
        """Note why a decision closes a stream, if it does."""
        place = (resolution.drafter_number, resolution.target)
        if view.request.window_tokens > 0 and view.request_id in self._streams_to:
            drafter, target = self._streams_to[view.request_id]
            if resolution.gamma == 0:
                self._seen.add("stream:closed, no window")
            elif target != resolution.target:
                self._seen.add("stream:closed, other target")
            elif drafter != resolution.drafter_number:
                self._seen.add("stream:closed, other drafter")
        if resolution.gamma > 0:
            self._streams_to[view.request_id] = place

    def finish(self, engine: Engine) -> None:
        """Note what the event log contains."""
        seen = self._seen
        events = engine.events
        seen.update(f"event:{event.kind.name}" for event in events)
        if engine.totals.interruptions:
            seen.add("seen:interruption")
        seen.add(
            "end:" + ("terminated" if engine.terminated else "truncated" if engine.truncated else "left")
        )
        self._faults(events)
        self._ties(events)
        self._links(events)
        if self.scenario.protocol.kind == "streaming":
            seen.update(StreamWatch(self.scenario).read(events))
        self.met.update(seen)

    def _faults(self, events: list[Event]) -> None:
        members = fault_members(self.scenario)
        down: dict[tuple[str, int], int] = defaultdict(int)
        begun: dict[int, float] = {}
        for event in events:
            if event.kind not in _QUIET:
                continue
            member = members[int(event.value)]
            place = (member.site, member.entity)
            if event.kind == EventKind.FAULT:
                self._seen.add(f"fault:{member.fault.kind}")
                begun[member.number] = event.time_s
                if down[place]:
                    self._seen.add("fault:overlap")
                down[place] += 1
            else:
                down[place] -= 1
                if begun[member.number] == event.time_s:
                    self._seen.add("fault:instant")

    def _ties(self, events: list[Event]) -> None:
        at = -1.0
        kinds: Counter[EventKind] = Counter()
        for event in events:
            if event.time_s != at:
                self._tie(kinds)
                at = event.time_s
                kinds.clear()
            kinds[event.kind] += 1
        self._tie(kinds)

    def _tie(self, kinds: Counter[EventKind]) -> None:
        for kind in (EventKind.DECISION, EventKind.ITERATION_END, EventKind.DRAFT_END, EventKind.ARRIVAL):
            if kinds[kind] > 1:
                self._seen.add(f"tie:{kind.name} twice")
        if kinds[EventKind.FAULT] > 1:
            self._seen.add("tie:FAULT twice")
        for kind in (EventKind.FAULT, EventKind.RETURN, EventKind.TAKEOVER):
            for other in (EventKind.ITERATION_END, EventKind.ARRIVAL, EventKind.COMPLETE, EventKind.DECISION):
                if kinds[kind] and kinds[other]:
                    self._seen.add(f"tie:{kind.name} and {other.name}")

    def _links(self, events: list[Event]) -> None:
        """Note the outages and the faults of links that a message under way has met."""
        messages: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            if event.kind == EventKind.SEND:
                messages[event.entity // 2].append(event)  # both directions of a link
        for number, name, members in _link_members(self.scenario):
            sent = messages[number]
            if not sent:
                continue
            outages = self.scenario.links[name].outages
            if outages is not None:
                windows = OutageWindows(outages, rng.key(self.seed, Stream.OUTAGE, number))
                if _meets(windows, sent):
                    self._seen.add("outage")
            for member in members:
                if not member.crashes and _meets(FaultWindows(member, self.seed), sent):
                    self._seen.add(f"fault:{member.fault.kind}")


def _meets(windows: OutageWindows | FaultWindows, sent: list[Event]) -> bool:
    """Return whether a message was under way in a window; the messages are in order of time."""
    for event in sent:
        while windows.end_s <= event.time_s and windows.start_s < float("inf"):
            windows.advance()
        if windows.start_s < event.value:
            return True
    return False


def _link_members(scenario: Scenario) -> list[tuple[int, str, list[FaultMember]]]:
    """Return number, name and faults of every link of the episode."""
    members = fault_members(scenario)

    def hitting(site: str, entity: int) -> list[FaultMember]:
        return [member for member in members if (member.site, member.entity) == (site, entity)]

    links: list[tuple[int, str, list[FaultMember]]] = []
    number = 0
    for device in scenario.devices.values():
        for _ in range(device.count):
            links.append((2 * number, device.link, hitting("device", number)))
            if device.edge_link is not None:
                links.append((2 * number + 1, device.edge_link, hitting("device", number)))
            number += 1
    first, edges = 2 * number, 0
    for edge in scenario.edge_servers.values():
        for _ in range(edge.count):
            for target in range(scenario.n_targets):
                backhaul = first + edges * scenario.n_targets + target
                links.append((backhaul, edge.backhaul, hitting("edge", edges)))
            edges += 1
    return links


def features_of(scenario: Scenario) -> set[str]:
    """Return what a scenario uses of the schema: the names of ``FEATURES``, and more."""
    used_links = {device.link for device in scenario.devices.values()}
    used_links |= {device.edge_link for device in scenario.devices.values() if device.edge_link is not None}
    used_links |= {edge.backhaul for edge in scenario.edge_servers.values()}
    links = [scenario.links[name] for name in used_links]
    targets = list(scenario.targets.values())
    protocol = scenario.protocol
    colocated = {drafter.mode for target in targets for drafter in target.menu}
    sites: list[DeviceClass | EdgeServer | Target] = [
        *scenario.devices.values(),
        *scenario.edge_servers.values(),
        *targets,
    ]
    kinds = {drafter.kind for site in sites for drafter in site.menu}
    away = [drafter for site in sites for drafter in site.menu if isinstance(drafter, Drafter)]
    uses = {
        "bandwidth": any(link.bandwidth for link in links),
        "delay": any(link.delay for link in links),
        "outages": any(link.outages for link in links),
        "replay": any(link.replay for link in links),
        "loss": any(link.loss_probability > 0 for link in links),
        "jitter": any(link.jitter.median_s > 0 for link in links),
        "edge_servers": bool(scenario.edge_servers),
        "several_targets": scenario.n_targets > 1,
        "far_targets": any(target.extra_one_way_s > 0 for target in targets),
        "generations": any(drafter.per_generation_s > 0 for drafter in away),
        "draft_noise": any(drafter.draft_noise_sigma > 0 for drafter in away),
        "colocated": bool(colocated),
        "heads": "head" in kinds,
        "overhead": any(target.engine_overhead is not None or target.front_end_s > 0 for target in targets),
        "lookups": "lookup" in kinds,
        "menus": any(len(site.menu) > 1 for site in sites),
        "pipelined": protocol.kind == "pipelined",
        "streaming": protocol.kind == "streaming",
        "branches": protocol.branches.fanout > 0,
        "offered_branches": scenario.actions.offer_branches,
        "confidence_stop": protocol.confidence_stop > 0,
        "token_acks": protocol.token_acks,
        "decision_latency": protocol.decision_latency_s > 0,
        "patience": protocol.patience_s is not None,
        "client_timeout": protocol.client_timeout_s is not None,
        "keep_alive": any(target.keep_alive_s > 0 for target in targets),
        "preempt": any(target.kv_policy == "preempt" for target in targets),
        "stragglers": any(target.straggler_share > 0 for target in targets),
        "graph_steps": any(target.graph_batch_tokens for target in targets),
        "poisson": scenario.workload.arrivals.kind == "poisson",
        "renewal": scenario.workload.arrivals.kind == "renewal",
        "replayed_requests": scenario.workload.arrivals.kind == "replay",
        "correlated_lengths": any(kind.length_correlation for kind in scenario.workload.kinds.values()),
        "load": len(scenario.workload.load.points) > 1,
        "trace": any(source.source == "trace" for source in scenario.acceptance.values()),
        "fitted": any(source.source == "fitted" for source in scenario.acceptance.values()),
        "profiles": any(isinstance(target.profile, str) for target in targets),
        "total_requests": scenario.episode.total_requests is not None,
        "warmup": scenario.episode.warmup_requests > 0,
        "window": scenario.episode.window_s is not None,
        "token_deadlines": any(slo.deadlines is not None for slo in scenario.slo.values()),
        "itl_bound": any(slo.itl_p99_s is not None for slo in scenario.slo.values()),
    }
    found = {name for name, used in uses.items() if used}
    found |= {f"colocated {mode}" for mode in colocated}
    return found | {fault.kind for fault in scenario.faults.values()}
