"""The parts put together: an episode, stepped from decision to decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.actions import Decision, check_decision, resolve
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.control.view import DecisionView
from dsd_env.rng import checked_seed
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.entities import Request
from dsd_env.sim.events import Event, Order, Span
from dsd_env.sim.metrics import Totals, episode_metrics, requests_table
from dsd_env.sim.reference.accounts import Accounts
from dsd_env.sim.reference.arrivals import Arrivals
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode
from dsd_env.sim.reference.failures import Failures
from dsd_env.sim.reference.links import Links
from dsd_env.sim.reference.protocol import Protocol
from dsd_env.sim.reference.requests import Requests
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.streams import Streams
from dsd_env.sim.reference.targets import Targets
from dsd_env.sim.reference.timers import Timers
from dsd_env.sim.world import WorldBuilder
from dsd_env.workload import WorkloadGenerator


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
        self._max_num_seqs = scenario.max_num_seqs
        self._builder = builder or WorldBuilder(scenario)
        self._options = {
            "record_events": record_events,
            "record_spans": record_spans,
            "price_delays": price_delays,
        }
        workload = WorkloadGenerator(scenario, seed, self._builder.schedule)
        episode = Episode(scenario, seed, self._builder.build(seed), workload, **self._options)
        self._episode = episode
        self._env = episode.env
        self._accounts = Accounts(episode)
        self._links = Links(episode)
        self._drafters = Drafters(episode, self._accounts)
        self._targets = Targets(episode, self._accounts, self._links)
        self._requests = Requests(episode, self._accounts, self._links, self._drafters)
        self._timers = Timers(episode, self._links, self._requests)
        self._streams = Streams(episode, self._links, self._drafters, self._targets, self._requests)
        self._protocol = Protocol(
            episode,
            self._links,
            self._drafters,
            self._targets,
            self._requests,
            self._timers,
            self._streams,
        )
        self._arrivals = Arrivals(episode, self._requests, self._protocol.run)
        self._failures = Failures(episode, self._accounts, self._drafters, self._targets, self._requests)
        self.events: list[Event] = episode.events
        self.spans: list[Span] = episode.spans
        self.newly_completed: list[Request] = self._accounts.newly_completed
        self.resolved: dict[str, int] = {}
        self._decisions: list[Decision] = []
        self._arrivals.start()
        self._env.process(self._publish())
        self._failures.start()

    # SimPy's processes are generators, which can be neither copied nor pickled. A copy therefore keeps the
    # decisions taken so far and repeats them.

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": (self.scenario, self.seed),
            "options": {**self._options, "builder": self._builder},
            "decisions": tuple(self._decisions),
            "advanced": self._requests.pending is not None or self.terminated or self.truncated,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Repeat the episode up to the copied point, which takes as long as it took the first time."""
        ReferenceSimulation.__init__(self, *state["arguments"], **state["options"])
        for decision in state["decisions"]:
            self.next_decision()
            self.decide(decision)
        if state["advanced"]:
            self.next_decision()

    def _publish(self) -> Process:
        """Servers publish their state periodically; controllers elsewhere see it later."""
        number = 0
        period_s = self.scenario.protocol.telemetry_period_s
        while True:
            self._episode.telemetry.publish(self.now_s)
            number += 1
            yield self._env.at(number * period_s, Order.TELEMETRY, 0)

    # ------------------------------------------------------------------ stepping

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._episode.now_s

    @property
    def terminated(self) -> bool:
        """Whether the workload is finished: every request has arrived and completed."""
        return self._episode.terminated

    @property
    def truncated(self) -> bool:
        """Whether the episode's number of requests has completed, or its horizon is reached."""
        return self._episode.truncated

    def next_decision(self) -> DecisionView | None:
        """Advance to the next decision and return what its controller knows; None at the end of the episode.

        Raises:
            RuntimeError: The previous decision has not been answered.
        """
        if self._due_view() is not None:
            raise RuntimeError("answer the pending decision with decide() before asking for the next")
        horizon_s = self.scenario.episode.horizon_s
        env, accounts = self._env, self._accounts
        while not (self.terminated or self.truncated):
            if accounts.boundaries_s and env.peek() >= accounts.boundaries_s[0]:
                accounts.pass_boundary(accounts.boundaries_s.popleft())
                continue
            if env.peek() > horizon_s:
                self._episode.truncated = True
                accounts.accrue(horizon_s)
                env.jump(horizon_s)
                break
            env.step()
            if (view := self._due_view()) is not None:
                return view
        return None

    def _due_view(self) -> DecisionView | None:
        pending = self._requests.pending
        return None if pending is None else pending[2]

    def decide(self, decision: Decision) -> Resolution:
        """Answer the pending decision.

        Args:
            decision: Speculation length, batch size, placement, and perhaps a stop rule. A decision that
                cannot be executed is changed: a target that is believed down is replaced by the first
                candidate's that is believed up (``target_down``); drafting where no drafter is available
                becomes plain decoding at that candidate's target (``no_drafter``); a batch size above the
                target's `max_num_seqs` is clipped (``batch_clipped``).

        Returns:
            The decision as it will be executed.

        Raises:
            RuntimeError: No decision is pending.
            ValueError: gamma, batch size, placement or stop rule is out of range.
        """
        if self._requests.pending is None:
            raise RuntimeError("no decision is pending: call next_decision() first")
        _, answer, view = self._requests.pending
        resolution = self._resolve(view, decision)
        self._decisions.append(decision)
        self._requests.pending = None
        self.newly_completed.clear()
        answer.succeed(resolution)
        return resolution

    def _resolve(self, view: DecisionView, decision: Decision) -> Resolution:
        check_decision(decision, self.scenario.actions.gammas[-1], len(view.candidates))
        candidate, gamma, batch_size, reason = resolve(view, decision, self._max_num_seqs)
        target = candidate.target.index
        if reason is not None:
            self.resolved[reason] = self.resolved.get(reason, 0) + 1
        drafter_number = -1
        if gamma > 0:
            drafter_number = self._episode.telemetry.drafter_number(view.device, candidate)
        return Resolution(
            gamma,
            batch_size,
            candidate.site,
            drafter_number,
            candidate.edge_server,
            target,
            reason,
            candidate.fanout > 0,
            decision.stop if gamma > 0 else None,
        )

    # ------------------------------------------------------------------ results

    @property
    def due_request(self) -> Request | None:
        """The request that waits for a decision; None if none does."""
        return None if self._requests.pending is None else self._requests.pending[0]

    def fleet_telemetry(self) -> FleetTelemetry:
        """Return what the fleet's controller is told now; see :mod:`dsd_env.control.fleet_view`."""
        return self._episode.telemetry.fleet(self._episode.active.values(), self.now_s)

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy.

        Reading them does not change later sums: an episode has the same metrics, to the last bit, whether or
        not its totals were read.
        """
        return self._accounts.totals

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far, by name; NaN where nothing was observed."""
        accounts = self._accounts
        cohort = [request for request in accounts.completed if accounts.is_measured(request.number)]
        unfinished = []
        if self.scenario.episode.window_s is not None:
            unfinished = [
                (request.arrival_s, request.spec.slo_class)
                for request in self._episode.active.values()
                if accounts.is_measured(request.number)
            ]
        return episode_metrics(
            self.scenario,
            cohort,
            unfinished,
            accounts.windows,
            accounts.window(self.now_s),
            accounts.arrived,
            len(accounts.completed),
            self._builder.capacity_tokens_per_s,
        )

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival."""
        return requests_table(sorted(self._accounts.completed, key=lambda request: request.number))

    @property
    def active_requests(self) -> int:
        """Requests that have arrived and not completed."""
        return self._accounts.in_system
