"""The controller: takes telemetry and returns decisions, inside an engine's process or behind a service."""

from __future__ import annotations

import importlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from dsd_env.control import ActionSpace, Decision, DecisionView, ObservationEncoder, Site
from dsd_env.control.actions import Resolved, resolve, stop_at
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetTelemetry, FleetView
from dsd_env.policy import Policy
from dsd_env.policy import load as load_bundle
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, SchedulerError, make_scheduler
from dsd_env.schedulers.adaptive import stopping_rule
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.stops import ends_by_threshold
from dsd_env.serving import telemetry as events
from dsd_env.serving.answers import SITES, Answers, ServedDecision
from dsd_env.serving.deployment import Deployment, DeploymentError
from dsd_env.serving.guard import Guard, GuardConfig
from dsd_env.serving.planner import Planner, ServedPlan
from dsd_env.serving.state import State
from dsd_env.serving.world import ServedRequest, Told

if TYPE_CHECKING:
    from dsd_env.serving.mirror import Mirror

logger = logging.getLogger("dsd_env.serving")

AHEAD_S = 1.0
"""How far ahead of the controller's clock an observation may be; further ahead, it counts as made now."""


class NoPlanError(RuntimeError):
    """A plan was requested, but no policy of the fleet view decides."""


class Controller:
    """Keeps the estimators of a deployment, and makes the decisions of its requests.

    :meth:`observe` takes observations (:mod:`dsd_env.serving.telemetry`), and :meth:`decide` returns the
    decision for a request. Features are computed by the same code as in training. All methods may be called
    from several threads. Memory is bounded: the controller forgets a request that has ended or that has not
    been heard of for `forget_s`, and the oldest ones if there are more than `max_requests`.

    :meth:`decide` never fails because of telemetry: a request that is unknown, or whose view cannot be made,
    gets plain decoding, with a reason.

    A policy of the fleet view makes plans instead. It is asked for a plan at the first decision at or after
    each multiple of its `control_period_s`; requests then follow that plan by the simulator's rules.
    :meth:`plan` returns the plan in force.

    Example:
        >>> controller = Controller("hf_heuristic", Deployment.of_engine(
        ...     step_s=0.02, token_s=1e-4, draft_step_s=0.002, max_num_seqs=64))
        >>> controller.observe(RequestArrived("a", prompt_tokens=300, target="engine"))
        >>> controller.decide("a")                                  # the admission
        >>> controller.observe(TokensCommitted("a", 1))             # its prefill is done
        >>> controller.decide("a").gamma                            # the first round
        >>> controller.observe(RoundVerified("a", drafted=4, accepted=4))

    Attributes:
        deployment: The deployment that the controller serves.
        scheduler: Name of the policy (``policy:PATH``) or rule that decides.
        policy: The loaded bundle; None if a rule decides.
        guard: State of the guard rails.
        counts: Numbers of observations and decisions so far, by outcome; see :meth:`stats`.
        lock: Lock held during every change; hold it to make several calls one unit.
    """

    def __init__(
        self,
        policy: str | Path | Policy | Scheduler,
        deployment: Deployment | Scenario | str | Path | Mapping[str, Any] | None = None,
        *,
        guard: GuardConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        origin_s: float | None = None,
        reports: Literal["as_received", "by_nominal_delay"] = "as_received",
        max_requests: int = 65_536,
        max_clients: int = 65_536,
        forget_s: float = 600.0,
        seed: int = 0,
        compiled: bool | None = None,
    ) -> None:
        """Load the policy or rule, and prepare the estimators.

        Args:
            policy: Directory of a bundle, a loaded bundle, a scheduler by name (``"hf_heuristic"``,
                ``"policy:DIR"``) or a scheduler.
            deployment: The system to serve; default: the scenario that the bundle was trained on.
            guard: When the safe rule replaces the policy; default: the defaults of the class.
            clock: Clock in seconds that never goes back; `time_s` of observations is a time on this clock.
            origin_s: Time on the clock that counts as the beginning; default: now.
            reports: Which reports a decision may use: all that have come in (``as_received``), or each only
                after the nominal delay from its server to the place of the decision (``by_nominal_delay``),
                as in the simulator.
            max_requests: Largest number of requests remembered at a time.
            max_clients: Largest number of clients remembered at a time.
            forget_s: Time in seconds after which a request or client that was not heard of is forgotten.
            seed: Seed for rules that draw random numbers.
            compiled: Whether compiled code makes a policy's decisions: the same decisions, some ten times
                faster. Compiled code needs Numba, and about a minute to compile unless it is cached. Default:
                compiled if Numba is installed.

        Raises:
            DeploymentError: Nothing describes the deployment.
            ImportError: Compiled code was requested but is not available.
            dsd_env.policy.PolicyError: The bundle is damaged, or does not fit the deployment.
            dsd_env.schedulers.base.SchedulerError: The name is wrong, or the rule stops within a draft in a
                way that decisions of this deployment cannot express.
        """
        self.lock = threading.RLock()
        self._clock = clock
        self._seed = seed
        scheduler, self.policy = _chosen(policy)
        if deployment is None:
            if self.policy is None:
                raise DeploymentError(
                    "a rule needs a deployment: give a scenario or Deployment.of_engine(...)"
                )
            deployment = Deployment.of_policy(self.policy)
        elif not isinstance(deployment, Deployment):
            deployment = Deployment.of(deployment)
        if deployment.note:
            logger.warning("deployment", extra={"note": deployment.note})
        self.deployment = deployment
        scenario = deployment.scenario
        self._encoder = ObservationEncoder.of(scenario)
        self._space = ActionSpace.of(scenario)
        self._max_num_seqs = scenario.max_num_seqs
        self._targets, self._edges = deployment.targets, deployment.edge_servers
        self._config = guard or GuardConfig()
        self._safe = make_scheduler(self._config.safe_rule)
        self._safe.reset(scenario, seed)
        self.guard = Guard(self._config, clock)
        self._compiled = compiled
        self._mirror: Mirror | None = None
        self._planner: Planner | None = None
        self._answers = Answers(deployment)
        self.counts: dict[str, int] = dict.fromkeys(
            (
                "observations",
                "decisions",
                "moved",
                "unknown_request",
                "out_of_order",
                "ahead",
                "forgotten",
                "safe",
                "plans",
                "safe_plans",
            ),
            0,
        )
        self.moved: dict[str, int] = {}
        self._origin_s = clock() if origin_s is None else origin_s
        self._state = State(
            deployment,
            by_nominal_delay=reports == "by_nominal_delay",
            max_requests=max_requests,
            max_clients=max_clients,
            forget_s=forget_s,
            origin_s=self._origin_s,
            counts=self.counts,
        )
        self._scheduler: Scheduler | None = None
        self.scheduler = ""
        self._use(scheduler, self.policy)

    # ------------------------------------------------------------------ in

    def observe(self, event: events.Event) -> None:
        """Take one observation.

        A number out of range is moved into its range, and counted. An observation of an unknown request is
        only counted.

        Raises:
            TelemetryError: The observation has a value of the wrong type, or names a target, class or model
                that the deployment lacks.
        """
        self.observe_many((event,))

    def observe_many(self, several: Iterable[events.Event], now_s: float | None = None) -> None:
        """Take several observations in order: all or none, and without calls of other threads in between.

        Args:
            several: The observations.
            now_s: Time on the clock for observations without a time; default: now, the same for all.

        Raises:
            TelemetryError: An observation is wrong, see :meth:`observe`; then none has been taken.
        """
        known = [events.checked(event) for event in several]
        with self.lock:
            moment_s = self._clock() if now_s is None else now_s
            for event, _ in known:
                self._state.check(event)
            for event, out_of_range in known:
                moved = (*out_of_range, *self._state.moved(event))
                if moved:
                    self._note_moved(event, moved)
                self.counts["observations"] += 1
                time_s = moment_s if event.time_s is None else event.time_s
                self._state.take(event, self._seconds(time_s), doubtful=bool(moved))

    def _note_moved(self, event: events.Event, fields: Sequence[str]) -> None:
        for field in fields:
            name = f"{type(event).__name__}.{field}"
            if name not in self.moved:
                self.moved[name] = 0
                unit = events.RANGES[field].unit if field in events.RANGES else "s"
                logger.warning("telemetry out of range", extra={"field": name, "unit": unit})
            self.moved[name] += 1
            self.counts["moved"] += 1

    def _seconds(self, time_s: float | None) -> float:
        """Return a time relative to the controller's origin; one too far ahead of the clock becomes now."""
        now_s = self._clock()
        if time_s is None:
            time_s = now_s
        elif not time_s <= now_s + AHEAD_S:
            self.counts["ahead"] += 1
            time_s = now_s
        return max(0.0, time_s - self._origin_s)

    # ------------------------------------------------------------------ out

    def now_s(self) -> float:
        """Return the time on the controller's clock, to pass to calls that belong to one moment."""
        return self._clock()

    def decide(
        self, request: str, now_s: float | None = None, *, counter: int | None = None
    ) -> ServedDecision:
        """Return the decision for a request that begins a round or asks to be admitted.

        Args:
            request: Name of the request.
            now_s: Time on the clock; default: now.
            counter: Number of the decision within the request, from 0. If the last answer has that number
                (it may have been lost on its way), the answer is repeated and nothing is counted.
        """
        with self.lock:
            return self._repeated(request, counter) or self._decide(request, self._seconds(now_s))

    def _repeated(self, request: str, counter: int | None) -> ServedDecision | None:
        """Return the last answer for a request, if that answer has the number ``counter``."""
        if counter is None or (known := self._state.requests.get(request)) is None:
            return None
        last = known.answer
        return cast(ServedDecision, last) if last is not None and last.counter == counter else None

    def decide_many(
        self,
        requests: Sequence[str],
        now_s: float | None = None,
        *,
        counters: Sequence[int | None] | None = None,
    ) -> list[ServedDecision]:
        """Return the decisions for several requests at one moment, by what is known at that moment.

        The answers equal those of calling :meth:`decide` for each request at that time, because a decision
        changes only the state of its own request. If compiled code decides, one call makes all observations,
        and one matrix product per layer makes all logits. A batch counts as too slow if it takes longer than
        the guard's `budget_s` times the number of its decisions.

        Args:
            requests: Names of the requests.
            now_s: Time on the clock; default: now.
            counters: Number of each decision within its request, as for :meth:`decide`.
        """
        with self.lock:
            seconds = self._seconds(now_s)
            self._state.pass_time(seconds)
            if counters is None or not any(map(self._repeated, requests, counters)):
                if answers := self._decide_at_once(requests, seconds):
                    return answers
                counters = counters or [None] * len(requests)
            return [
                self._repeated(request, counter) or self._decide(request, seconds)
                for request, counter in zip(requests, counters, strict=True)
            ]

    def _decide_at_once(self, requests: Sequence[str], now_s: float) -> list[ServedDecision] | None:
        """Decide for several known, distinct requests by one call of compiled code; None if impossible."""
        if self._mirror is None or not self._mirror.at_once or not len(set(requests)) == len(requests) > 1:
            return None
        known = self._state.requests
        try:
            found = [known[name] for name in requests]
        except KeyError:  # a request is not known
            return None
        if self._planner is not None:
            self._planned(now_s)
        answers = self._decide_compiled(found, now_s)
        if answers is not None:
            self.counts["decisions"] += len(answers)
        return answers

    def view(self, request: str, now_s: float | None = None) -> DecisionView:
        """Return the view of a request's next decision, as every scheduler sees it.

        Raises:
            KeyError: The request is unknown.
        """
        with self.lock:
            return self._state.view(self._state.requests[request], self._seconds(now_s))

    def observation(self, request: str, now_s: float | None = None) -> Any:
        """Return the observation that a policy reads (float32, shape (n_features,)).

        Raises:
            KeyError: The request is unknown.
        """
        return self._encoder.encode(self.view(request, now_s))

    def plan(self, now_s: float | None = None) -> ServedPlan:
        """Return the plan in force, for engines that carry out plans themselves; make a new one if it is due.

        Args:
            now_s: Time on the clock; default: now.

        Raises:
            NoPlanError: The policy or rule decides on single requests.
        """
        with self.lock:
            return self._planned(self._seconds(now_s)).served

    def fleet_view(self, now_s: float | None = None) -> FleetView:
        """Return the typed view from which a plan is made.

        Raises:
            NoPlanError: The policy or rule decides on single requests.
        """
        with self.lock:
            planner, seconds = self._need_planner(), self._seconds(now_s)
            self._state.pass_time(seconds)
            return planner.view(self._look_at_fleet(seconds)[0])

    @property
    def fleet_space(self) -> FleetSpace | None:
        """Groups and choices of the controller's plans; None if it decides on single requests."""
        return None if self._planner is None else self._planner.space

    def _need_planner(self) -> Planner:
        if self._planner is None:
            raise NoPlanError(f"{self.scheduler} decides on single requests; it makes no plans")
        return self._planner

    def _planned(self, now_s: float) -> Planner:
        """Return the planner, with the plan that is in force at the given time."""
        planner = self._need_planner()
        if planner.due(now_s):
            self._state.pass_time(now_s)
            planner.renew(lambda: self._look_at_fleet(now_s), now_s, self.guard)
            self.counts["plans"] += 1
            self.counts["safe_plans"] += planner.source == "safe_plan"
            self._follow(planner)
        return planner

    def _follow(self, planner: Planner) -> None:
        """Let compiled code, if it is in use, follow the plan in force."""
        if self._mirror is not None:
            self._mirror.use_plan(planner.space.choices(planner.plan))
        self._answers.made_by(planner.source, planner.reason)

    def _look_at_fleet(self, now_s: float) -> tuple[FleetTelemetry, str]:
        """Return the fleet's telemetry for a plan, and any doubt about the telemetry."""
        return self._state.fleet(self._need_planner().group_of, now_s, self._config.stale_s)

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code makes the decisions; it never makes those of a rule."""
        return self._mirror is not None

    def _decide(self, name: str, now_s: float) -> ServedDecision:
        self.counts["decisions"] += 1
        # Requests that are forgotten now are unknown from here on.
        self._state.pass_time(now_s)
        request = self._state.requests.get(name)
        if request is None:
            self.counts["unknown_request"] += 1
            return self._plain("unknown_request")
        planner = None if self._planner is None else self._planned(now_s)
        if self._mirror is not None and (answers := self._decide_compiled([request], now_s)):
            return answers[0]
        if planner is not None:
            return self._decide_by_plan(planner, request, now_s)
        begin_s = time.perf_counter()
        try:
            view = self._state.view(request, now_s)
        except (ArithmeticError, LookupError, ValueError) as error:
            self.guard.note("error")
            logger.debug("no view", exc_info=error)
            self.counts["safe"] += 1
            return self._plain("error", request)
        doubt = "out_of_range" if request.doubts else ""
        request.doubts = 0
        if self._stale(view):
            doubt = doubt or "stale"
        decision, source, reason = self._ask(view, doubt, begin_s)
        return self._carry_out(request, view, now_s, decision, source, reason)

    def _decide_by_plan(self, planner: Planner, request: ServedRequest, now_s: float) -> ServedDecision:
        self.counts["safe"] += planner.source == "safe_plan"
        try:
            view = self._state.view(request, now_s)
        except (ArithmeticError, LookupError, ValueError) as error:
            logger.debug("no view", exc_info=error)
            return self._plain("error", request)
        try:
            decision = planner.decide(view)
        except LookupError:
            return self._carry_out(request, view, now_s, self._safe.decide(view), "safe_rule", "no_group")
        return self._carry_out(request, view, now_s, decision, planner.source, planner.reason)

    def _carry_out(
        self,
        request: ServedRequest,
        view: DecisionView,
        now_s: float,
        decision: Decision,
        source: str,
        reason: str,
    ) -> ServedDecision:
        resolved = resolve(view, decision, self._max_num_seqs)
        answer = self._served(view, resolved, decision, source, reason)
        self._state.decided(request, resolved, now_s, answer)
        return answer

    def _decide_compiled(
        self, requests: Sequence[ServedRequest], now_s: float
    ) -> list[ServedDecision] | None:
        """Decide by compiled code; None in an unusual case, which Python code must then decide.

        Unusual cases are: the policy is not trusted, telemetry is old or was out of range, the observation is
        not finite, there is nothing to select, or the policy fails. Then nothing has changed.
        """
        mirror, guard, planner = self._mirror, self.guard, self._planner
        assert mirror is not None
        # A plan can be followed whether the policy or the guard made it.
        if planner is None and not guard.trusted:
            return None
        begin_s = time.perf_counter()
        if not mirror.look(requests, now_s):
            return None
        n = len(requests)
        try:
            mirror.decide(n)
        except Exception as error:
            # The decision fails again in Python, where the guard handles the failure.
            logger.debug("compiled decision failed", exc_info=error)
            return None
        told = self._answers.of(mirror, n)
        if planner is not None:
            self.counts["safe"] += n * (planner.source == "safe_plan")
        elif time.perf_counter() - begin_s > n * self._config.budget_s:
            return self._decided_late(requests, told, now_s)
        else:
            guard.note("")
        if mirror.some_at_devices:
            own_device = Site.OWN_DEVICE
            for request in requests:
                if request.control[0] is own_device:
                    request.own_jobs = request.device.jobs
        to_end = self._state.requests.move_to_end
        for request, each in zip(requests, told, strict=True):
            request.told, request.seen_s = each, now_s
            to_end(request.name)
        return [each.answer for each in told]

    def _decided_late(
        self, requests: Sequence[ServedRequest], told: Sequence[Told], now_s: float
    ) -> list[ServedDecision]:
        """Return late decisions while the policy is trusted, then decisions of the safe rule."""
        answers = []
        for request, each in zip(requests, told, strict=True):
            if self.guard.trusted:
                self.guard.note("time_out")
            if not self.guard.trusted:
                answers.append(self._by_safe_rule(request, now_s))
                continue
            if request.control[0] == Site.OWN_DEVICE:
                request.own_jobs = request.device.jobs
            request.told, request.seen_s = each, now_s
            self._state.requests.move_to_end(request.name)
            answers.append(each.answer)
        return answers

    def _by_safe_rule(self, request: ServedRequest, now_s: float) -> ServedDecision:
        """Return the safe rule's decision for a request, after the policy has just lost the trust."""
        view = self._state.view(request, now_s)
        self._stale(view)
        decision, source, reason = self._safe_decision(view, self.guard.reason)
        return self._carry_out(request, view, now_s, decision, source, reason)

    def _stale(self, view: DecisionView) -> bool:
        """Return whether telemetry of the current target is stale; limit the age of each to `stale_s`."""
        limit_s, stale = self._config.stale_s, False
        for target in {id(c.target): c.target for c in view.candidates}.values():
            if target.age_s > limit_s:
                target.age_s = limit_s
                stale = stale or target is view.target
        return stale

    def _ask(self, view: DecisionView, doubt: str, begin_s: float) -> tuple[Decision, str, str]:
        """Return the decision, its source (policy, rule or safe rule), and the reason for the safe rule."""
        guard = self.guard
        if not guard.asks_policy():
            return self._safe_decision(view, guard.reason)
        decision, trouble = guard.ask(lambda: self._choose(view), doubt, begin_s)
        if decision is None:
            return self._safe_decision(view, trouble)
        return decision, "rule" if self.policy is None else "policy", ""

    def _choose(self, view: DecisionView) -> Decision:
        if self.policy is None:
            assert self._scheduler is not None
            decision = self._scheduler.decide(view)
            if not 0 <= decision.placement < len(view.candidates):
                raise ValueError(f"{decision} is off the list of candidates")
            if decision.stop is None or decision.gamma == 0:
                return decision
            nearest = self._space.nearest(decision)
            if nearest.stop not in [stop_at(threshold) for threshold in self._space.stop_thresholds]:
                raise ValueError(f"{decision} has a stop rule; only a length can be told in this deployment")
            return nearest
        observation = self._encoder.encode(view)
        total = float(observation.dot(observation))
        if not math.isfinite(total):
            raise FloatingPointError("the observation is not finite")
        space = self._space
        mask = space.flat_mask(view, self._max_num_seqs) if self.policy.flat else space.mask(view)
        return self.policy.decide(observation, mask)

    def _safe_decision(self, view: DecisionView, reason: str) -> tuple[Decision, str, str]:
        self.counts["safe"] += 1
        return self._safe.decide(view), "safe_rule", reason

    def _served(
        self, view: DecisionView, resolved: Resolved, decision: Decision, source: str, reason: str
    ) -> ServedDecision:
        candidate = resolved.candidate
        placement = decision.placement
        if view.candidates[placement] is not candidate:
            placement = next(i for i, each in enumerate(view.candidates) if each is candidate)
        edge = self._edges[candidate.edge_server] if candidate.edge_server >= 0 else ""
        return ServedDecision(
            resolved.gamma,
            resolved.batch_size,
            placement,
            SITES[candidate.site],
            edge,
            self._targets[candidate.target.index],
            candidate.model if resolved.gamma else "",
            source,
            reason or resolved.reason or "",
            view.counter,
            candidate.fanout if resolved.gamma else 0,
            decision.stop.threshold if decision.stop is not None and resolved.gamma else None,
        )

    def _plain(self, reason: str, request: ServedRequest | None = None) -> ServedDecision:
        """Return plain decoding at the request's target, which is possible without any telemetry."""
        target = self._targets[max(0, request.target) if request else 0]
        counter = request.decisions if request else 0
        return ServedDecision(0, 1, 0, SITES[Site.COLOCATED], "", target, "", "safe_rule", reason, counter)

    # ------------------------------------------------------------------ what decides

    def swap(self, policy: str | Path | Policy | Scheduler) -> str:
        """Let another policy or rule decide from now on, and keep the estimators.

        The new policy or rule is loaded and checked first: if that fails, nothing changes.

        Returns:
            The name of the policy or rule that decided before.

        Raises:
            dsd_env.policy.PolicyError: The bundle is damaged, or does not fit the deployment.
            dsd_env.schedulers.base.SchedulerError: The rule is unknown or does not fit the deployment.
        """
        scheduler, bundle = _chosen(policy)
        if bundle is not None and self._compiled is not False:
            with suppress(ImportError):
                # Compile before taking the lock, so that no decision waits for the compilation.
                importlib.import_module("dsd_env.serving.mirror")
        with self.lock:
            before = self.scheduler
            self._use(scheduler, bundle)
            self.guard = Guard(self._config, self._clock)
        return before

    def _use(self, scheduler: Scheduler | str, policy: Policy | None) -> None:
        if policy is not None:
            self.deployment.check(policy)
            policy = policy.copy()
            planner = None
            if policy.fleet:
                scenario, safe_plan = self.deployment.scenario, self._config.safe_plan
                planner = Planner(policy, scenario, safe_plan, self._planner)
            self._use_compiled(policy, planner)
            self._planner = planner
            self._answers.made_by("policy", "")
            if planner is not None and self._mirror is not None:
                self._follow(planner)
            self._scheduler, self.policy, self.scheduler = None, policy, str(scheduler)
            return
        rule = cast(Scheduler, scheduler)
        _check_stopping(rule, self._space)
        rule.reset(self.deployment.scenario, self._seed)
        self._scheduler, self.policy, self.scheduler = rule, None, rule.name
        self._planner = None
        self._mirror = self._state.mirror = None

    def _use_compiled(self, policy: Policy, planner: Planner | None) -> None:
        """Let compiled code decide, if it is wanted and available."""
        if self._compiled is False:
            return
        try:
            mirror = self._state.mirrored(self._config.stale_s)
            if planner is None:
                mirror.use(policy)
            else:
                mirror.follow(planner.space)
            self._mirror = mirror
        except (ImportError, NotImplementedError) as error:
            if self._compiled:
                raise
            logger.info("decisions are not compiled", extra={"reason": str(error)})

    def stats(self) -> dict[str, Any]:
        """Return counts, sizes and the guard's state by name, for logs and metrics, and the plan in force."""
        with self.lock:
            return {
                **self.counts,
                "requests": len(self._state.requests),
                "clients": len(self._state.clients),
                "trusted": self.guard.trusted,
                "reason": self.guard.reason,
                "trips": dict(self.guard.trips),
                "moved_fields": dict(self.moved),
                "plan": None if self._planner is None else self._planner.served,
            }

    @property
    def requests(self) -> OrderedDict[str, ServedRequest]:
        """The remembered requests by name, beginning with the one heard of longest ago."""
        return self._state.requests


def _chosen(policy: str | Path | Policy | Scheduler) -> tuple[Scheduler | str, Policy | None]:
    """Return the scheduler, or the name of a bundle together with the bundle."""
    if isinstance(policy, Policy):
        return f"policy:{policy.manifest.scenario.name}", policy
    if isinstance(policy, FleetPolicyScheduler):
        return policy.name, policy.policy
    if isinstance(policy, Path):
        return f"policy:{policy}", load_bundle(policy)
    if isinstance(policy, str):
        name = policy.removeprefix("policy:")
        # No rule has a slash before its colon, so such a text is a folder, whether or not it exists.
        if name != policy or Path(policy).is_dir() or "/" in policy.partition(":")[0]:
            return f"policy:{name}", load_bundle(name)
    return make_scheduler(policy), None


def _check_stopping(rule: Scheduler, space: ActionSpace) -> None:
    """Refuse a rule that stops within a draft, unless served decisions can express its stop rule.

    Raises:
        SchedulerError: The rule stops by something other than a threshold, or the deployment lists no
            thresholds.
    """
    stopping = stopping_rule(rule)
    if stopping is None:
        return
    if not ends_by_threshold(stopping):
        raise SchedulerError(
            f"{rule.name} stops within a draft; to a real system a decision tells a length, or a threshold "
            "like that of specdec_pp"
        )
    if not space.stop_thresholds:
        raise SchedulerError(
            f"{rule.name} stops within a draft, and this deployment is told lengths only; list "
            "actions.stop_thresholds in its scenario if its engine can end a draft where the drafter doubts"
        )
