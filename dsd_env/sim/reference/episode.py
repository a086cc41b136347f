"""What the parts of a simulation share: clock, entities, totals, and the record of what happened."""

from __future__ import annotations

from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import Request
from dsd_env.sim.events import Event, EventKind, Span
from dsd_env.sim.metrics import Totals
from dsd_env.sim.reference.environment import Environment
from dsd_env.sim.telemetry import Telemetry
from dsd_env.sim.world import World
from dsd_env.workload import WorkloadGenerator


class Episode:
    """One episode of one scenario, as all parts of the simulation see it.

    Attributes:
        scenario: What is simulated.
        seed: Episode seed.
        price_delays: Account to each request how long it makes others wait.
        env: SimPy's environment: the clock and the queue of events.
        world: Devices, edge servers, targets, drafters and links.
        workload: Who asks when, and for what.
        telemetry: What controllers know.
        totals: Cumulative totals.
        active: Requests that have arrived and not completed, by number.
        terminated: Whether the workload is finished: every request has arrived and completed.
        truncated: Whether the episode's number of requests has completed, or its horizon is reached.
        events: Event log, if recorded.
        spans: Timeline bars, if recorded.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        world: World,
        workload: WorkloadGenerator,
        *,
        record_events: bool,
        record_spans: bool,
        price_delays: bool,
    ) -> None:
        """Begin at time 0, with nothing under way."""
        self.scenario = scenario
        self.seed = seed
        self.price_delays = price_delays
        self.env = Environment()
        self.world = world
        self.workload = workload
        self.telemetry = Telemetry(scenario, world)
        self.totals = Totals()
        self.active: dict[int, Request] = {}
        self.terminated = False
        self.truncated = False
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self._record_events = record_events
        self._record_spans = record_spans

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self.env.now)

    def log(self, kind: EventKind, entity: int, request: Request | None, value: float) -> None:
        """Append what happens now to the event log, if it is recorded."""
        if self._record_events:
            number = -1 if request is None else request.number
            self.events.append(Event(self.now_s, kind, entity, number, float(value)))

    def add_bar(self, lane: str, label: str, start_s: float, end_s: float, request: int) -> None:
        """Append a bar to the timeline, if it is recorded; request is a number, -1 for none."""
        if self._record_spans:
            self.spans.append(Span(lane, label, start_s, end_s, request))


class Part:
    """A part of a simulation, with what nearly every part needs of the episode within reach."""

    def __init__(self, episode: Episode) -> None:
        """Make it a part of this episode."""
        self._episode = episode
        self._env = episode.env
        self._world = episode.world
        self._protocol = episode.scenario.protocol
        self._totals = episode.totals
        self._log = episode.log

    @property
    def _now_s(self) -> float:
        return self._episode.now_s
