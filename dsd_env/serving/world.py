"""The deployment's targets, drafters, clients and requests, as the controller knows them.

They have the attributes that the assembly of a view (:class:`dsd_env.sim.telemetry.Telemetry`) reads from the
simulator's entities. So the view of a real decision is made by the very code that makes it in training.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from dsd_env.control.estimators import Learned
from dsd_env.control.view import RECENT_ROUNDS, DrafterKind, Site
from dsd_env.latency.lookup import latency_profile, target_overhead
from dsd_env.laws import drafting, reports, step_times
from dsd_env.laws.constants import ACCEPTANCE_PRIOR, REPORTS_KEPT, SLOPE_TOKENS, TOKENS_PER_ROUND_PRIOR
from dsd_env.scenario.schema import DeviceClass, Drafter, Scenario, Target
from dsd_env.serving.deployment import Deployment
from dsd_env.sim.entities import Report, Request, StepTimer, TargetServer
from dsd_env.sim.telemetry import Telemetry
from dsd_env.sim.world import UNLIMITED_TOKENS, World, draft_timer, kind_of
from dsd_env.workload import RequestSpec

MODES = frozenset({"plain", "colocated", "remote", "gamma_mean"})
"""What of a target's state its residents' modes tell."""
Timers = tuple[StepTimer, ...]


@dataclass(slots=True)
class ServedChannel:
    """One direction of a link.

    Attributes:
        one_way_s: Its delay.
        bits_per_s: Its bandwidth, nominal or as measured.
        up: Whether it is believed up.
    """

    one_way_s: float
    bits_per_s: float
    up: bool = True

    def seems_up(self, now_s: float) -> bool:
        """Return whether it is believed up."""
        return self.up


@dataclass(slots=True)
class ServedHost:
    """What drafters run on.

    Attributes:
        mean_job_s: Running mean of a job's time.
        jobs: Jobs running or queued.
        wait_s: Expected wait as reported; None: from the jobs.
        up: Whether it runs.
    """

    mean_job_s: float
    jobs: int = 0
    wait_s: float | None = None
    up: bool = True


@dataclass(slots=True, eq=False)
class ServedDrafter:
    """A drafter; see :class:`dsd_env.sim.entities.SiteDrafter` for the attributes.

    `changed`: its server was heard of since it was mirrored.
    """

    number: int
    kind: DrafterKind
    model: str
    timer: StepTimer
    concurrency: int
    kv_capacity_tokens: int
    server: ServedHost | None
    reports: deque[tuple[float, int, float, bool]] = field(default_factory=lambda: deque(maxlen=REPORTS_KEPT))
    changed: bool = True

    @property
    def own_server(self) -> ServedHost:
        """The server of a drafter that does not share its target's."""
        assert self.server is not None
        return self.server

    @property
    def can_stream(self) -> bool:
        """Whether it can stream its drafts."""
        return self.server is not None and self.kind == DrafterKind.MODEL

    def report(self, now_s: float) -> tuple[float, int, float, bool]:
        """Return (time, jobs, expected wait, up) as known now."""
        host = self.own_server
        wait_s = host.wait_s
        if wait_s is None:
            active = min(host.jobs, self.concurrency)
            wait_s = reports.drafter_wait_s(active, host.jobs - active, self.concurrency, host.mean_job_s)
        return now_s, host.jobs, wait_s, host.up


class ServedTarget:
    """A target, with its newest state and its reports.

    Attributes:
        number: Its number.
        config: Its configuration.
        timer: Its iteration times.
        drafters: The drafters at it.
        shared: Numbers of those on its own GPUs.
        state: Its newest state.
        reports: Its periodic reports, newest last.
        reports_itself: Which fields of its state it has reported itself.
        modes: What each request there has last asked of it (``plain``, ``colocated``, ``remote``, "" before
            the first), and its drafts.
        changed: Whether its state has changed since it was mirrored.
    """

    def __init__(self, number: int, config: Target, timer: StepTimer, drafters: tuple[ServedDrafter, ...]):
        """Set up an idle target."""
        self.number = number
        self.config = config
        self.timer = timer
        self.drafters = drafters
        self.shared = {drafter.number for drafter in drafters if drafter.server is None}
        self.prefill_token_s = step_times.prefill_token_s(timer, config.max_num_batched_tokens)
        self.iteration_s = timer.step_s(1, 0, 0) + timer.overhead_s(1, 1, 0)
        self.iteration_tokens = 1.0
        self.reports_itself: set[str] = set()
        self.modes: dict[int, tuple[str, int]] = {}
        self.changed = True
        self.state = Report(
            0.0, 0, 0, 0, 0, 0.0, self.iteration_s, 0.0, self.marginal_token_s(), True, 0, 0, 0, 0.0, 0
        )
        self.reports: deque[Report] = deque((self.state,), maxlen=REPORTS_KEPT)

    def marginal_token_s(self) -> float:
        """Return the marginal time of a new token at the usual size of an iteration, from the profile."""
        timer = self.timer
        return step_times.marginal_token_s(timer, len(timer.compute_s), self.iteration_tokens, SLOPE_TOKENS)

    def report(self, now_s: float) -> Report:
        """Return the newest state: what its own front end knows."""
        state = self.state
        if state.remaining_s > 0.0 and now_s > state.time_s:
            return replace(state, remaining_s=max(0.0, state.remaining_s - (now_s - state.time_s)))
        return state

    def sign_of_life(self, now_s: float) -> None:
        """Note that it has done something, which is all that is known of a target that reports nothing."""
        self.changed = True
        if not self.reports_itself:
            self.state.time_s = now_s

    def enter(self, request: int) -> None:
        """Note that a request is there now."""
        self.modes.setdefault(request, ("", 0))
        self._count()

    def note_mode(self, request: int, mode: str, drafts: int) -> None:
        """Note what a resident has last asked for, and count the residents by that."""
        if self.modes.get(request) != (mode, drafts):
            self.modes[request] = (mode, drafts)
            self._count()

    def forget(self, request: int) -> None:
        """Forget a request that was there."""
        if self.modes.pop(request, None) is not None:
            self._count()

    def _count(self) -> None:
        """Count the residents by what they do, where the target does not tell it itself."""
        state, told = self.state, self.reports_itself
        self.changed = True
        if "resident" not in told:
            state.resident = len(self.modes)
        if told >= MODES:
            return
        counts = {"plain": 0, "colocated": 0, "remote": 0, "": 0}
        drafts = 0
        for mode, gamma in self.modes.values():
            counts[mode] += 1
            drafts += gamma
        mean = reports.mean_gamma(drafts, counts["colocated"] + counts["remote"])
        for name in MODES - told:
            setattr(state, name, mean if name == "gamma_mean" else counts[name])


@dataclass(slots=True, eq=False)
class ServedDevice:
    """A client; see :class:`dsd_env.sim.entities.Device` for the attributes.

    Attributes:
        name: Its name.
        hosts: What its drafters run on, each once.
        jobs: Draft jobs under way and waiting on it.
        requests: Its requests under way.
        seen_s: When it was last heard of.
        as_listed: It is of the class that the deployment lists under its number.
        place: Where it is mirrored; None: nowhere.
    """

    name: str
    number: int
    up: ServedChannel
    down: ServedChannel
    edge_up: ServedChannel | None
    edge_down: ServedChannel | None
    drafters: tuple[ServedDrafter, ...]
    rtt_s: float
    hosts: tuple[ServedHost, ...]
    rtt_deviation_s: float = 0.0
    rtt_sample_s: float = -1.0
    loss: float = 0.0
    jobs: int = 0
    requests: set[str] = field(default_factory=set)
    seen_s: float = 0.0
    as_listed: bool = True
    place: Any = None

    @property
    def drafter(self) -> ServedDrafter | None:
        """The first of its drafters; None if it has none."""
        return self.drafters[0] if self.drafters else None

    def count_jobs(self) -> None:
        """Count its jobs anew, after those of a host have changed."""
        self.jobs = sum(host.jobs for host in self.hosts)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Drafts made ahead; see :class:`dsd_env.sim.entities.HeadStart`."""

    drafts: int


@dataclass(slots=True)
class OpenStream:
    """A stream of drafts; see :class:`dsd_env.sim.entities.Stream`."""

    window: int
    drafted: int
    known: int
    generation: int
    started_s: float


class Carried(NamedTuple):
    """How a decision is carried out.

    Attributes:
        site: Where drafts are made.
        edge_server: Number of the edge server, or -1.
        target: Number of the target.
        drafter: Number of the drafter; -1 for plain decoding.
        model: Draft model; "" for plain decoding.
        gamma: Drafts.
        fanout: Branches that its stream opens at each draft; 0: none.
    """

    site: Site
    edge_server: int
    target: int
    drafter: int
    model: str
    gamma: int
    fanout: int = 0


class Told(NamedTuple):
    """A decision as it was answered and is carried out.

    Attributes:
        answer: The answer; it has the number of the decision within its request (``counter``).
        carried: How it is carried out.
        rank: If it is carried out by a drafter on the client's device whose number is not told yet: the
            number of the first one of that rank; -1 otherwise.
    """

    answer: Any
    carried: Any
    rank: int = -1


@dataclass(slots=True, eq=False)
class ServedRequest:
    """A request; see :class:`dsd_env.sim.entities.Request` for the attributes that are not here.

    Attributes:
        name: Its name.
        told: Its last decision; None before the first.
        early: Decisions before its first token was committed.
        verifies: Verifications of its drafts.
        finished: Its last token is committed at its target.
        counted: That it has come to a target is counted already.
        seen_s: When it was last heard of.
        doubts: Observations since its last decision with values that were moved or left out.
        place: Where it is mirrored; None: nowhere.
    """

    name: str
    number: int
    spec: RequestSpec
    device: ServedDevice
    arrival_s: float
    control: tuple[Site, int]
    committed: int = 0
    target: int = -1
    drafted_at: int = -1
    drafted_branches: bool = False
    drafter_valid: dict[int, int] = field(default_factory=dict)
    head_start: Ahead | None = None
    stream: OpenStream | None = None
    idle_share: float = 0.0
    report: Report | None = None
    own_jobs: int = 0
    told: Told | None = None
    early: int = 0
    verifies: int = 0
    finished: bool = False
    counted: bool = False
    first_commit_s: float = 0.0
    last_commit_s: float = 0.0
    known_tokens: int = 0
    known_commit_s: float = 0.0
    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    learned: dict[str, Learned] = field(default_factory=dict)
    recent_gammas: tuple[int, ...] = (0,) * RECENT_ROUNDS
    recent_accepted: tuple[int, ...] = (0,) * RECENT_ROUNDS
    last_confidence: float = 0.0
    seen_s: float = 0.0
    doubts: int = 0
    place: Any = None

    @property
    def answer(self) -> Any:
        """The last decision as it was answered; None before the first."""
        return None if self.told is None else self.told.answer

    @property
    def last(self) -> Any:
        """What the last decision is carried out as; None before the first."""
        told = self.told
        if told is None:
            return None
        if told.rank < 0:
            return told.carried
        return told.carried._replace(drafter=told.rank + self.device.number)

    @property
    def decisions(self) -> int:
        """Decisions so far."""
        return 0 if self.told is None else self.told.answer.counter + 1

    @property
    def rounds(self) -> int:
        """Decisions since the first token."""
        return self.decisions - self.early if self.committed > 0 else 0

    @property
    def known_context_tokens(self) -> int:
        """Prompt and the output that its controller knows of."""
        return self.spec.prompt_tokens + self.known_tokens

    def drafter_lag(self, drafter_number: int) -> int:
        """Return how many known tokens a drafter has not processed.

        That is at least the newest, but in a stream, whose drafter has taken its own draft for that.
        """
        # What is told may not fit what is known.
        return max(0, self.known_context_tokens - self.drafter_valid.get(drafter_number, 0))

    def commit(self, tokens: int, now_s: float, heard: bool) -> None:
        """Note that its target has committed tokens, which is known where it is decided on if it is heard."""
        if self.committed == 0:
            self.first_commit_s = now_s
            self.early = self.decisions
        self.committed += tokens
        self.last_commit_s = now_s
        if heard:
            self.know_all()

    def know_all(self) -> None:
        """Note that all that is committed is known where it is decided on."""
        self.known_tokens, self.known_commit_s = self.committed, self.last_commit_s

    def interrupt(self) -> None:
        """Note that its target has lost it: it is at none, and its client decides next."""
        self.close_stream()
        self.target, self.head_start = -1, None
        self.control = (Site.OWN_DEVICE, self.device.number)

    def close_stream(self) -> None:
        """Note that no stream is open, and all that is committed is known."""
        last = self.last
        if self.stream is not None and last is not None and last.drafter == self.drafted_at:
            # It was in force, not what closed the stream.
            self.drafted_branches = last.fanout > 0
        self.stream = None
        self.know_all()

    def note_drafted(self, drafter_number: int, drafted: int, accepted: int) -> None:
        """Note what a drafter's KV holds after a verification, before its tokens are committed."""
        context = self.spec.prompt_tokens + self.committed
        self.drafter_valid[drafter_number] = drafting.valid_after(context, drafted, accepted)
        self.drafted_at = drafter_number


class ServedWorld:
    """Targets, edge servers and drafters of a deployment; clients come and go.

    Attributes:
        world: The same, as the assembly of views reads it.
        targets: The targets by number.
        edges: Drafters of each edge server, by number.
        devices: By number the client heard of last that has this number, or what is known of one beforehand.
        away_drafters: The drafters on hardware of their own that is no client's.
        changed: Whether anything has been heard since the servers were mirrored.
    """

    def __init__(self, deployment: Deployment) -> None:
        """Set up a deployment in which nothing has happened yet."""
        scenario = deployment.scenario
        self.scenario = scenario
        self._n_sites = scenario.n_devices + scenario.n_edge_servers + scenario.n_targets
        branches = scenario.protocol.branches
        # A decision asks for the steps of one request, of which a simulation's tables hold the same; beyond
        # its table a timer goes on by itself. One step can process the branches of all that a drafter serves.
        longest = scenario.workload.max_prompt_tokens + scenario.workload.max_output_tokens
        self._draft_tokens = longest + 256 + 256 * branches.fanout * branches.depth
        # First number and timers of each class of devices.
        self._classes: dict[str, tuple[int, DeviceClass, tuple[StepTimer, ...]]] = {}
        self.devices: list[ServedDevice] = []
        drafters: dict[int, ServedDrafter] = {}
        number = 0
        for name, config in scenario.devices.items():
            timers = tuple(draft_timer(each, self._draft_tokens) for each in config.menu)
            self._classes[name] = (number, config, timers)
            for _ in range(config.count):
                self.devices.append(self.join("", name, number))
                drafters.update({each.number: each for each in self.devices[-1].drafters})
                number += 1
        self._joined = dict.fromkeys(self._classes, 0)
        self.edges: list[tuple[ServedDrafter, ...]] = []
        for edge in scenario.edge_servers.values():
            timers = tuple(draft_timer(each, self._draft_tokens) for each in edge.menu)
            for _ in range(edge.count):
                self.edges.append(self._menu(number, edge.menu, timers))
                number += 1
        self.targets = self._make_targets(scenario, number)
        self.changed = True
        self.away_drafters: list[ServedDrafter] = []
        for menu in (*self.edges, *(target.drafters for target in self.targets)):
            for each in menu:
                drafters[each.number] = each
                if each.server is not None:
                    each.reports.append(each.report(0.0))
                    self.away_drafters.append(each)
        backhauls = [
            [self._duplex(edge.backhaul) for _ in self.targets]
            for edge in scenario.edge_servers.values()
            for _ in range(edge.count)
        ]
        self.world = World(
            devices=cast(Any, self.devices),
            edges=cast(Any, self.edges),
            targets=cast(Any, self.targets),
            backhauls=cast(Any, backhauls),
            sources={},
            drafters=cast(Any, drafters),
            idle_w=0.0,
        )

    def _make_targets(self, scenario: Scenario, site: int) -> list[ServedTarget]:
        targets: list[ServedTarget] = []
        for config in scenario.targets.values():
            most = max(config.max_num_batched_tokens, *config.graph_batch_tokens, 0)
            timer = StepTimer(latency_profile(config.profile), most, target_overhead(config))
            timers = [draft_timer(each, self._draft_tokens) for each in config.menu]
            for _ in range(config.count):
                menu = []
                for rank, (own, own_timer) in enumerate(zip(config.menu, timers, strict=True)):
                    host = ServedHost(own_timer.step_s(1, 0, 0)) if own.mode == "dedicated" else None
                    menu.append(
                        ServedDrafter(
                            rank * self._n_sites + site + len(targets),
                            kind_of(own),
                            own.model,
                            own_timer,
                            own.concurrency,
                            UNLIMITED_TOKENS,
                            host,
                        )
                    )
                targets.append(ServedTarget(len(targets), config, timer, tuple(menu)))
        return targets

    def _menu(
        self, site: int, menu: tuple[Drafter, ...], timers: tuple[StepTimer, ...]
    ) -> tuple[ServedDrafter, ...]:
        """Return the drafters of a device or an edge server; its draft models share the hardware."""
        models: ServedHost | None = None
        drafters = []
        for rank, (config, timer) in enumerate(zip(menu, timers, strict=True)):
            host = models
            if config.kind == "lookup" or models is None:
                host = ServedHost(timer.step_s(1, 0, 0))
                if config.kind != "lookup":
                    models = host
            drafters.append(
                ServedDrafter(
                    rank * self._n_sites + site,
                    kind_of(config),
                    config.model,
                    timer,
                    config.concurrency,
                    config.kv_capacity_tokens,
                    host,
                )
            )
        return tuple(drafters)

    def _duplex(self, link: str) -> tuple[ServedChannel, ServedChannel]:
        config = self.scenario.links[link]
        return (
            ServedChannel(config.one_way_s, config.uplink_bits_per_s),
            ServedChannel(config.one_way_s, config.downlink_bits_per_s),
        )

    @property
    def timers(self) -> tuple[list[Timers], list[Timers], list[tuple[StepTimer, Timers]]]:
        """Step times of the drafters of each class of devices and edge servers, and at those of targets.

        With the latter, those of the targets themselves.
        """
        edges, targets = [], []
        first = 0
        for edge in self.scenario.edge_servers.values():
            edges.append(tuple(drafter.timer for drafter in self.edges[first]))
            first += edge.count
        first = 0
        for config in self.scenario.targets.values():
            target = self.targets[first]
            targets.append((target.timer, tuple(drafter.timer for drafter in target.drafters)))
            first += config.count
        return [timers for _, _, timers in self._classes.values()], edges, targets

    @property
    def device_classes(self) -> tuple[str, ...]:
        """Names of the classes of devices."""
        return tuple(self._classes)

    def join(
        self,
        name: str,
        device_class: str | None = None,
        number: int | None = None,
        draft_time_factor: float | None = None,
    ) -> ServedDevice:
        """Return a new client of a class, with its links at their nominal delays.

        A device that a scenario lists has a number of its own; of more clients than it lists, some share one.
        """
        if device_class is None:
            device_class = next(iter(self._classes))
            if number is not None:
                device_class = next(
                    each
                    for each, (first, config, _) in self._classes.items()
                    if number < first + config.count
                )
        first, config, timers = self._classes[device_class]
        if number is None:
            number = first + self._joined[device_class] % config.count
            self._joined[device_class] += 1
        if draft_time_factor is not None and draft_time_factor != 1.0:
            timers = tuple(timer.scaled(draft_time_factor) for timer in timers)
        drafters = self._menu(number, config.menu, timers)
        hosts = {id(drafter.server): drafter.own_server for drafter in drafters}
        up, down = self._duplex(config.link)
        edge_up, edge_down = (None, None) if config.edge_link is None else self._duplex(config.edge_link)
        rtt_s = up.one_way_s + down.one_way_s
        client = ServedDevice(
            name, number, up, down, edge_up, edge_down, drafters, rtt_s, tuple(hosts.values())
        )
        client.as_listed = first <= number < first + config.count
        return client


class ServedTelemetry(Telemetry):
    """The simulator's assembly of views, on a deployment.

    Where the controller's observations come as they are made or as the network brings them, what it has is
    what it knows (``as_received``). With ``by_nominal_delay`` it uses a report only once the nominal delay of
    the link between its server and the place of the decision has passed, as the simulator does.
    """

    def __init__(self, scenario: Scenario, world: World, by_nominal_delay: bool) -> None:
        """Prepare the assembly."""
        super().__init__(scenario, world)
        self._by_nominal_delay = by_nominal_delay
        self.system = self._system

    def publish(self, now_s: float) -> None:
        """Begin the next period of the running rates; servers report by observations."""
        self._system.publish(now_s)

    def delay_s(self, request: ServedRequest) -> float:
        """Return how long a server's report travels to where a request's decisions are taken."""
        return self._delay_s(cast(Any, request))

    def _delay_s(self, request: Request) -> float:
        return super()._delay_s(request) if self._by_nominal_delay else 0.0

    def extra_s(self, target: TargetServer) -> float:
        """Return how much longer what is known of a target travels than the links take."""
        return super().extra_s(target) if self._by_nominal_delay else 0.0
