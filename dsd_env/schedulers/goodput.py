"""Join the shortest queue, then maximise expected tokens per expected time.

This rule applies the idea of SmartSpec/TurboSpec (arXiv 2406.14066) and of SGLang's `throughput_aware` mode
to several draft sites. For every draft site and speculation length it estimates how long the round will take
and how many tokens the round will commit, and picks the best ratio. Speculation length 0 (plain decoding)
competes on equal terms. The rule knows what a real controller knows: its view, and the calibrated latency
profiles of the targets. ``docs/schedulers.md`` derives the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.control import CandidateView, Decision, DecisionView, DrafterKind, RequestView, Site
from dsd_env.scenario import Scenario
from dsd_env.schedulers.branch_hits import branch_hits
from dsd_env.schedulers.busy_node import BusyNode
from dsd_env.schedulers.goodput_parameters import EXPLORED_TOKENS, GoodputParameters
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.schedulers.rounds import (
    drafter_acceptance,
    estimate_acceptance,
    expected_tokens,
    one_off_token_s,
    plain_token_s,
    round_line_s,
)
from dsd_env.schedulers.routing import packed_target
from dsd_env.schedulers.rules import batch_size_for, plain_placement, stay_or_route, stays_open

_NEVER_S = float("inf")
FEW_TOKENS = 8
"""Number of tokens before which a request's mean time per token is not judged."""


class GoodputScheduler:
    """Picks the speculation length and the drafter with the most expected tokens per expected time.

    With a menu of drafters, each drafter is judged by the results of this request's rounds with its draft
    model. Without a menu, all rounds of the request count for every drafter.

    The target with the fewest requests is chosen at admission and kept, because moving a running request
    prefills its context again, and requests that follow the shorter queue by delayed telemetry would all move
    at once.

    In a scenario that streams, draft places are compared as if all requests at the target made the same
    choice (:class:`~dsd_env.schedulers.busy_node.BusyNode`). The comparison uses the acceptance of each draft
    model over all requests, as the targets report it; for streams with branches it also uses the known hit
    rates of the model pair. `busy_phase` and the prior acceptance do not enter this comparison.

    Attributes:
        name: Canonical specification.
        parameters: Constants of the rule.
        nodes: Step times of each target in the scenario given to :meth:`reset`.
    """

    def __init__(self, name: str, parameters: GoodputParameters) -> None:
        """Build the rule."""
        self.name = name
        self.parameters = parameters
        self.nodes: list[NodeTimes] = []
        self._chunk_tokens = self._stream_chunk_tokens = 1
        self._streams = self._has_menu = False
        self._hits: dict[str, float] = {}
        self._models: tuple[str, ...] = ()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Load the targets' latency profiles, and the settings of the scenario that the rule needs."""
        protocol = scenario.protocol
        self._chunk_tokens, self._stream_chunk_tokens = (
            protocol.plain_chunk_tokens,
            protocol.stream_chunk_tokens,
        )
        self._streams, self._has_menu = protocol.kind == "streaming", scenario.has_menu
        self._hits = branch_hits(scenario)
        self._models = tuple(scenario.acceptance)
        self.nodes = []
        for target in scenario.targets.values():
            node = NodeTimes(target, 1 + protocol.branches.fanout * protocol.branches.depth)
            self.nodes += [node] * target.count

    def decide(self, view: DecisionView) -> Decision:
        """Return the decision with the least expected time per token."""
        parameters, request = self.parameters, view.request
        number = stay_or_route(view)
        if parameters.pack and request.is_admission:
            number = packed_target(view, parameters.pack)
        weight, prices = parameters.load_weight_of(request), parameters.prices
        times = self.nodes[number]
        table = times.times.compute_s
        acceptance = estimate_acceptance(request, parameters.prior_acceptance, parameters.prior_trials)
        tokens = expected_tokens(acceptance, view.gammas)
        # The prompt's prefill is the time to warm up a drafter: plain decoding does not compete at admission.
        warm_up = request.is_admission
        node = None
        if self._streams:
            node = BusyNode(times, view, number, weight, self._stream_chunk_tokens)
        # Reports of edge servers are old, and that of the current server counts the request's own stream. By
        # these reports another server would always seem better, so a stream stays while its server can draft.
        at_edge = [each for each in view.candidates if each.site == Site.EDGE_SERVER]
        settled = {
            (each.edge_server, each.drafter) for each in at_edge if each.valid and stays_open(each, view)
        }
        candidates = [
            (index, each)
            for index, each in enumerate(view.candidates)
            if each.target.index == number
            and not (
                settled and each.site == Site.EDGE_SERVER and (each.edge_server, each.drafter) not in settled
            )
        ]
        here = [each for _, each in candidates]
        all_stream = node is not None and self._streams_suit_all(node, view, here)
        best_cost_s = float("inf")
        best_gamma, best_placement = 0, plain_placement(view, number)
        if self._can_wait(view, node):
            return Decision(0, batch_size_for(view, parameters.batch_size), best_placement)
        tried = self._explored(view, here)
        for index, candidate in candidates:
            if tried and (candidate.model != tried or candidate.shares_target):
                continue
            if not tried and candidate.site == Site.COLOCATED and candidate.drafter == 0 and not warm_up:
                # Plain decoding runs at the target, so the first co-located candidate stands for it.
                if node is not None:
                    cost_s = node.plain_token_s() + candidate.handover_s / parameters.horizon_tokens
                else:
                    cost_s = plain_token_s(candidate, view, table, self._chunk_tokens, parameters, weight)
                if cost_s < best_cost_s:
                    best_cost_s, best_gamma, best_placement = cost_s, 0, index
            if not candidate.valid:
                continue
            if self._has_menu:
                acceptance = drafter_acceptance(candidate, parameters, parameters.prior_trials)
                tokens = expected_tokens(acceptance, view.gammas)
                shared = drafter_acceptance(candidate, parameters, parameters.shared_trials)
            else:
                shared = estimate_acceptance(request, parameters.prior_acceptance, parameters.shared_trials)
            if node is not None and candidate.streams:
                hit = self._hits.get(candidate.model, 0.0)
                costs_s = node.stream_token_s(candidate, view, candidate.pooled_acceptance, hit)
            elif node is not None and candidate.shares_target and candidate.kind != DrafterKind.LOOKUP:
                if all_stream:
                    costs_s = node.alone_token_s(candidate, view.gammas, candidate.pooled_acceptance, weight)
                else:
                    costs_s = node.shared_token_s(candidate, view.gammas, candidate.pooled_acceptance)
            else:
                base_s, slope_s, longest = round_line_s(
                    candidate, view, table, parameters, weight, shared, times.engine
                )
                costs_s = [
                    (base_s + slope_s * gamma) / expected if 0 < gamma <= longest else _NEVER_S
                    for gamma, expected in zip(view.gammas, tokens, strict=True)
                ]
            one_off_s, price = one_off_token_s(candidate, request, parameters), prices[candidate.site]
            for gamma, token_s in zip(view.gammas, costs_s, strict=True):
                cost_s = one_off_s + price * token_s
                if cost_s < best_cost_s:
                    best_cost_s, best_gamma, best_placement = cost_s, gamma, index
        best = view.candidates[best_placement]
        if node is not None and best_gamma > 0 and best.streams:
            # The place was chosen by estimates over all requests; the window follows the request's own ones.
            own = estimate_acceptance(request, best.pooled_acceptance, parameters.prior_trials)
            costs_s = node.stream_token_s(best, view, own, self._hits.get(best.model, 0.0))
            best_gamma = view.gammas[min(range(len(costs_s)), key=costs_s.__getitem__)]
        return Decision(best_gamma, batch_size_for(view, parameters.batch_size), best_placement)

    def _explored(self, view: DecisionView, candidates: Sequence[CandidateView]) -> str:
        """Return the draft model that a request explores, whether or not it is the best one; "": none.

        Without exploration, a draft model that no request uses would keep its prior acceptance forever.
        Requests do not explore drafters on a target's own GPUs, because every iteration would wait for them.
        """
        every, request = self.parameters.explore, view.request
        if not self._streams or len(self._models) < 2 or every == 0:
            return ""
        if view.request_id % every or request.committed_tokens >= EXPLORED_TOKENS:
            return ""
        model = self._models[view.request_id // every % len(self._models)]
        apart = (each for each in candidates if each.valid and not each.shares_target)
        return model if any(each.model == model for each in apart) else ""

    def _can_wait(self, view: DecisionView, node: BusyNode | None) -> bool:
        """Return whether a request should decode plainly, because it meets its objective or cannot meet it.

        A request that drafts goes on drafting unless it is well ahead of its objective or cannot meet it, so
        that requests do not switch back and forth all the time.
        """
        request, share = view.request, self.parameters.slo_margin
        if _relieved(request, self.parameters) or _hopeless(request, self.parameters):
            return True
        if share == 0.0:
            return False
        drafts = request.window_tokens > 0 or (request.rounds > 0 and request.recent_gammas[0] > 0)
        token_s = view.target.iteration_s if node is None else node.plain_token_s()
        bound_s = share * request.slo_tpot_s
        return not drafts and token_s <= bound_s and request.tpot_s <= bound_s

    def _streams_suit_all(
        self, node: BusyNode, view: DecisionView, candidates: Sequence[CandidateView]
    ) -> bool:
        """Return whether streams suit all requests at a target better than drafting on the target's GPUs.

        Both options are compared as if no request waited for a drafter. The option that most requests use now
        must be beaten by a margin: requests estimate places slightly differently, and those that switch
        before the others lose most.

        Args:
            node: The target.
            view: View of the decision.
            candidates: The candidates at the target that come into question.
        """
        streams_s = shared_s = _NEVER_S
        prices = self.parameters.prices
        for candidate in candidates:
            if candidate.valid and candidate.streams:
                hit = self._hits.get(candidate.model, 0.0)
                costs_s = node.stream_token_s(candidate, view, candidate.pooled_acceptance, hit, waits=False)
                streams_s = min(streams_s, prices[candidate.site] * min(costs_s))
            elif candidate.valid and candidate.shares_target and candidate.kind != DrafterKind.LOOKUP:
                costs_s = node.shared_token_s(candidate, view.gammas, candidate.pooled_acceptance)
                shared_s = min(shared_s, prices[candidate.site] * min(costs_s))
        target = candidates[0].target
        if target.remote > target.colocated:
            shared_s *= self.parameters.change_margin
        elif target.colocated > target.remote:
            streams_s *= self.parameters.change_margin
        return streams_s <= shared_s


def _relieved(request: RequestView, parameters: GoodputParameters) -> bool:
    """Return whether a request is far enough ahead of its objective to do without drafts."""
    ahead = 0.0 < request.tpot_s <= parameters.relief * request.slo_tpot_s
    return ahead and request.committed_tokens >= FEW_TOKENS


def _hopeless(request: RequestView, parameters: GoodputParameters) -> bool:
    """Return whether a request is not expected to meet its objectives, whatever the decision."""
    if parameters.hopeless == 0.0:
        return False
    first_s = request.ttft_s if request.committed_tokens > 0 else request.age_s
    late = request.tpot_s > parameters.hopeless * request.slo_tpot_s
    return first_s > request.slo_ttft_s or (late and request.committed_tokens >= FEW_TOKENS)
