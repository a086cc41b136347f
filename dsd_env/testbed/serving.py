"""A controller of :mod:`dsd_env.serving` steers the testbed: a trained policy, or a rule by name."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dsd_env.laws.slo import is_met, note_delivery
from dsd_env.testbed.control import Placement, RoundDecision, Telemetry

if TYPE_CHECKING:
    from dsd_env.testbed.client import Output

#: Requests of one client have numbers from its own number times this on.
REQUESTS_PER_CLIENT = 1_000_000


class ControllerHook:
    """Tells a controller what a client sees, and does what it decides.

    The controller keeps the estimators, by the code that computes features in training. It decides among
    the places of its deployment: ``own_device`` is the edge here, ``colocated`` the cloud; an edge server
    counts as the edge.
    """

    def __init__(self, controller: Any) -> None:
        """Take a ``dsd_env.serving.Controller``."""
        self._controller = controller
        self._events = import_module("dsd_env.serving")
        self._committed: dict[int, int] = {}

    def __call__(self, seen: Telemetry) -> RoundDecision:
        """Decide a round."""
        tell, events = self._controller.observe, self._events
        name, client = str(seen.request), str(seen.request // REQUESTS_PER_CLIENT)
        if seen.request not in self._committed:
            tell(events.RequestArrived(name, prompt_tokens=seen.prompt_tokens, client=client))
            self._committed[seen.request] = 0
        else:
            self._tell_result(seen, name, client)
        decision = self._controller.decide(name)
        placement: Placement = "cloud" if decision.site == "colocated" else "edge"
        return RoundDecision(min(decision.gamma, seen.max_window), placement)

    def _tell_result(self, seen: Telemetry, name: str, client: str) -> None:
        """Pass on what a result brought."""
        tell, events = self._controller.observe, self._events
        if seen.newest_rtt_s:
            tell(events.RttSample(client, seen.newest_rtt_s))
        if seen.iteration_s:
            tell(events.IterationDone(seen.iteration_s, new_tokens=seen.batch_sequences + seen.last_drafted))
            tell(
                # Told with a result, as the iteration has ended and the next has not begun.
                events.TargetState(
                    running=0,
                    resident=seen.resident_sequences,
                    queued=seen.waiting_requests,
                    waiting=seen.waiting_requests,
                    request=name,
                )
            )
        if seen.protocol == "streaming":
            tell(
                events.DraftState(
                    name,
                    window_tokens=seen.window if seen.placement == "edge" else 0,
                    lead_tokens=seen.drafts_in_flight,
                    idle_share=seen.idle_share,
                )
            )
        new = seen.committed_tokens - self._committed[seen.request]
        self._committed[seen.request] = seen.committed_tokens
        if seen.last_drafted:
            tell(events.RoundVerified(name, seen.last_drafted, seen.last_accepted, committed=new))
        elif new:
            tell(events.TokensCommitted(name, new))

    def finished(self, request: int, output: Output | None = None) -> None:
        """Forget a request; its whole answer, if there is one, has met its objectives or not."""
        if self._committed.pop(request, None) is not None:
            met = None if output is None else self._is_met(output)
            self._controller.observe(self._events.RequestFinished(str(request), met_slo=met))

    def _is_met(self, output: Output) -> bool:
        """Return whether an answer met the objectives of the deployment's first class."""
        scenario = self._controller.deployment.scenario
        bounds = SimpleNamespace(**next(iter(scenario.slo.values())).bounds())
        late = SimpleNamespace(arrival_s=0.0, longest_gap_s=0.0, late_gaps=0, late_tokens=0)
        for before, (previous_s, at_s) in enumerate(pairwise([0.0, *output.times_s])):
            note_delivery(late, bounds, before, 1, previous_s, at_s)
        tokens = len(output.tokens)
        return is_met(bounds, output.ttft_s, output.tpot_s, tokens, late.late_gaps, late.late_tokens)
