"""Join the shortest queue, then maximise expected tokens per expected time.

The rule of SmartSpec/TurboSpec (arXiv 2406.14066) and of SGLang's `throughput_aware` mode, carried over
to several draft sites: for every draft site and speculation length it estimates how long the round will
take and how many tokens it will commit, and takes the best ratio. Speculation length 0 (plain decoding)
competes on equal terms. It knows what a real controller knows: its view, and the calibrated latency
profiles of the targets. ``docs/schedulers.md`` derives the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from dsd_env.control import (
    CandidateView,
    Decision,
    DecisionView,
    DrafterKind,
    RequestView,
    Site,
    TargetView,
)
from dsd_env.latency import NO_OVERHEAD, EngineOverhead
from dsd_env.scenario import Scenario
from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.branch_hits import branch_hits
from dsd_env.schedulers.busy_node import BusyNode
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.schedulers.routing import packed_target
from dsd_env.schedulers.rules import batch_size_for, plain_placement, stay_or_route, stays_open

LOWEST_ACCEPTANCE = 0.01
HIGHEST_ACCEPTANCE = 0.99
_NEVER_S = float("inf")
FEW_TOKENS = 8
"""A mean time per token is not judged before so many tokens."""
HALF_AGED_TOKENS = 128.0
"""Tokens after which a request counts as half aged."""

_RANGES: dict[str, tuple[float, float]] = {
    "load_weight": (0.0, 1e3),
    "horizon_tokens": (1.0, 1e6),
    "prior_acceptance": (0.0, 1.0),
    "prior_lookup": (0.0, 1.0),
    "prior_trials": (0.0, 1e6),
    "shared_trials": (0.0, 1e6),
    "busy_phase": (0.0, 1.0),
    "batch_size": (1.0, 4096.0),
    "slo_margin": (0.0, 1.0),
    "price_colocated": (0.01, 100.0),
    "price_own": (0.01, 100.0),
    "price_edge": (0.01, 100.0),
    "change_margin": (1.0, 100.0),
    "age_weight": (-10.0, 10.0),
    "pack": (0.0, 4096.0),
    "relief": (0.0, 1.0),
    "hopeless": (0.0, 100.0),
}
_WHOLE = ("batch_size", "pack")


@dataclass(frozen=True, slots=True)
class GoodputParameters:
    """Constants of the rule.

    Attributes:
        load_weight: Weight of the time by which the round's tokens delay the other sequences of the
            iteration; 0 considers the own request alone, 1 counts every delayed request like it.
        horizon_tokens: Tokens over which the one-off costs of a draft site (KV catch-up, handover of
            control) are spread: a controller cannot know how many are to come.
        prior_acceptance: Acceptance rate expected of an unknown request.
        prior_lookup: The same of a look-up, whose rounds without a proposal count as rejected.
        prior_trials: Weight of the prior in a request's own acceptance rate, in draft tokens.
        shared_trials: The same where a whole batch shares the draft steps: the length must suit every
            request in it, so a single request's luck counts little.
        busy_phase: Share of an iteration that a message from outside waits at a busy target.
        batch_size: Batch size B to choose; 1 waits nowhere.
        slo_margin: Who keeps this share of the bound on its time per token by plain decoding decodes plainly,
            and leaves drafts, which take time from all, to those who need them; 0: everybody drafts.
        price_colocated: What drafting at the target costs, in units of the estimate; plain decoding costs 1.
            This and the following prices stand for what the estimates miss; a search can find them.
        price_own: The same of drafting on the own device.
        price_edge: The same of drafting on edge servers.
        change_margin: By how much the other way of drafting must be faster before a target changes to it.
        age_weight: By how much more others' delay weighs for requests that have had many tokens (less, if it
            is negative): `load_weight` times exp(age_weight * (share - 1/2)), with the share that begins at 0
            and is 1/2 after 128 tokens. The longer an answer is already, the more is usually to come of it.
        relief: Who has had its tokens within this share of the bound on the time per token goes on without
            drafts until that is used up; 0: never.
        hopeless: Who has had its tokens so many times slower than the bound allows, or its first token too
            late, will hardly meet its objectives and gets no drafts, which take time from others; 0: never.
        pack: Requests up to which targets are filled, one after the other by number; 0: each request goes to
            the target with the fewest.
    """

    load_weight: float = 1.0
    horizon_tokens: float = 64.0
    prior_acceptance: float = 0.65
    prior_lookup: float = 0.25
    prior_trials: float = 16.0
    shared_trials: float = 400.0
    busy_phase: float = 0.5
    batch_size: int = 1
    slo_margin: float = 0.0
    price_colocated: float = 1.0
    price_own: float = 1.0
    price_edge: float = 1.0
    change_margin: float = 1.25
    age_weight: float = 0.0
    pack: int = 0
    relief: float = 0.0
    hopeless: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SchedulerError: A value is outside its range, or no whole number where it must be.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SchedulerError(f"jsq_goodput: {name} = {value:g} must be in [{low:g}, {high:g}]")
        for name in _WHOLE:
            value = getattr(self, name)
            if value != int(value):
                raise SchedulerError(f"jsq_goodput: {name} = {value:g} must be a whole number")
            object.__setattr__(self, name, int(value))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the parameters."""
        return tuple(field.name for field in fields(cls))

    @property
    def prices(self) -> tuple[float, float, float]:
        """What drafting costs in units of its estimate, by :class:`~dsd_env.control.Site`."""
        return self.price_colocated, self.price_own, self.price_edge

    def load_weight_of(self, request: RequestView) -> float:
        """Return the weight of others' delay for a request."""
        share = request.committed_tokens / (request.committed_tokens + HALF_AGED_TOKENS)
        return self.load_weight * math.exp(self.age_weight * (share - 0.5))


class GoodputScheduler:
    """Picks the speculation length and the drafter with the most expected tokens per expected time.

    Where a site has several drafters it weighs each by what this request's rounds with its draft model gave;
    where every site has one, all rounds count for all, as they did before there were menus.

    The target is chosen at admission, the one with the fewest requests, and kept: moving a running
    request prefills its context again, and requests that chase the shorter queue by late telemetry
    all move at once.

    Where the scenario streams, places are weighed as if all at the target chose alike
    (:class:`~dsd_env.schedulers.busy_node.BusyNode`), with the acceptance that the targets report of each
    draft model over all requests; streams with branches count the hits known of the pair. `busy_phase` and
    the prior acceptance have no say in that.

    Attributes:
        name: Canonical specification.
        parameters: Its constants.
        nodes: Step times of each target of the scenario that it was reset for.
    """

    def __init__(self, name: str, parameters: GoodputParameters) -> None:
        """Build the rule."""
        self.name = name
        self.parameters = parameters
        self.nodes: list[NodeTimes] = []
        self._chunk_tokens = self._stream_chunk_tokens = 1
        self._streams = self._has_menu = False
        self._hits: dict[str, float] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Load the targets' profiles, and note how many tokens a decision for plain decoding decodes."""
        protocol = scenario.protocol
        self._chunk_tokens, self._stream_chunk_tokens = (
            protocol.plain_chunk_tokens,
            protocol.stream_chunk_tokens,
        )
        self._streams, self._has_menu = protocol.kind == "streaming", scenario.has_menu
        self._hits = branch_hits(scenario)
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
        # The prompt's prefill is the time to warm a drafter up, so admission never asks for plain decoding.
        warm_up = request.is_admission
        node = None
        if self._streams:
            node = BusyNode(times, view, number, weight, self._stream_chunk_tokens)
        # Reports of edge servers are old and count the request's own stream where it is. By them, another
        # would always seem better, so a stream stays at its own as long as that can draft.
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
        all_stream = node is not None and self._streams_suit_all(node, view, [each for _, each in candidates])
        best_cost_s = float("inf")
        best_gamma, best_placement = 0, plain_placement(view, number)
        if self._can_wait(view, node):
            return Decision(0, batch_size_for(view, parameters.batch_size), best_placement)
        for index, candidate in candidates:
            if candidate.site == Site.COLOCATED and candidate.drafter == 0 and not warm_up:
                # Plain decoding runs at the target, so its first co-located candidate stands for it.
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
            # The place is the same for all, by what is known of all. The window is the request's own affair.
            own = estimate_acceptance(request, best.pooled_acceptance, parameters.prior_trials)
            costs_s = node.stream_token_s(best, view, own, self._hits.get(best.model, 0.0))
            best_gamma = view.gammas[min(range(len(costs_s)), key=costs_s.__getitem__)]
        return Decision(best_gamma, batch_size_for(view, parameters.batch_size), best_placement)

    def _can_wait(self, view: DecisionView, node: BusyNode | None) -> bool:
        """Return whether a request meets its objective without drafts, and so far has met it.

        A request that drafts goes on, so that nobody changes from one to the other all the time.
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
        """Return whether streams suit all at a target better than drafting on its GPUs does.

        Both are weighed as if nobody waited for a drafter. What most there do now has to be beaten clearly:
        each request sees places a little differently, and those that leave before the others lose most.

        Args:
            node: The target.
            view: The decision.
            candidates: The candidates there that come into question.
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
    """Return whether a request is so far ahead of its objective that it can do without drafts."""
    ahead = 0.0 < request.tpot_s <= parameters.relief * request.slo_tpot_s
    return ahead and request.committed_tokens >= FEW_TOKENS


def _hopeless(request: RequestView, parameters: GoodputParameters) -> bool:
    """Return whether a request is not expected to meet its objectives whatever is done."""
    if parameters.hopeless == 0.0:
        return False
    first_s = request.ttft_s if request.committed_tokens > 0 else request.age_s
    late = request.tpot_s > parameters.hopeless * request.slo_tpot_s
    return first_s > request.slo_ttft_s or (late and request.committed_tokens >= FEW_TOKENS)


def estimate_acceptance(request: RequestView, prior: float, prior_trials: float) -> float:
    """Return the chance that a draft token is accepted, given that those before it were.

    Maximum likelihood over the rounds in view, shrunk to the prior: a round with `a` accepted of `g`
    drafted shows `a` successes and, if ``a < g``, one failure (drafts after it say nothing).

    Args:
        request: The request.
        prior: Acceptance rate expected of an unknown request.
        prior_trials: Weight of the prior, in draft tokens.

    Returns:
        A value in [0.01, 0.99].
    """
    successes, trials = prior * prior_trials, prior_trials
    for drafted, accepted in zip(request.recent_gammas, request.recent_accepted, strict=True):
        successes += accepted
        trials += accepted + (accepted < drafted)
    rate = successes / trials if trials > 0.0 else prior
    return min(HIGHEST_ACCEPTANCE, max(LOWEST_ACCEPTANCE, rate))


def drafter_acceptance(candidate: CandidateView, parameters: GoodputParameters, trials: float) -> float:
    """Return the chance that a token of a candidate's drafter is accepted, given that those before were.

    It is the rate at which rounds of the usual length commit as many tokens as this request's rounds with
    that draft model did, shrunk to the prior. Those of a look-up commit less where it proposes little; the
    rate that would give as many tokens in rounds without an end counts for it.

    Args:
        candidate: The candidate.
        parameters: Constants of the rule.
        trials: Weight of the prior, in draft tokens.

    Returns:
        A value in [0.01, 0.99].
    """
    lookup = candidate.kind == DrafterKind.LOOKUP
    prior = parameters.prior_lookup if lookup else parameters.prior_acceptance
    tokens = candidate.tokens_per_round
    accepted = max(0.0, tokens - 1.0)
    drafted = float("inf") if lookup or accepted == 0.0 else accepted / max(candidate.acceptance_rate, 1e-3)
    low, high = 0.0, 1.0
    for _ in range(20):
        rate = 0.5 * (low + high)
        if (1.0 - rate ** (drafted + 1.0)) / (1.0 - rate) < tokens:
            low = rate
        else:
            high = rate
    seen = candidate.model_rounds * tokens
    rate = (prior * trials + low * seen) / (trials + seen) if trials + seen > 0.0 else prior
    return min(HIGHEST_ACCEPTANCE, max(LOWEST_ACCEPTANCE, rate))


def expected_tokens(acceptance: float, gammas: Sequence[int]) -> list[float]:
    """Return the expected tokens of a round for each speculation length.

    ``(1 - a^(gamma + 1)) / (1 - a)``: accepted drafts and the correction or bonus token
    (Leviathan et al., arXiv 2211.17192).
    """
    scale = 1.0 / (1.0 - acceptance)
    return [(1.0 - acceptance ** (gamma + 1)) * scale for gamma in gammas]


def others_at(target: TargetView) -> int:
    """Return how many other sequences an iteration at this target is expected to hold.

    These are the sequences that run or are ready. A decision taken at the target itself, between two
    iterations, does not see the requests that decide at the same instant, which neither run nor wait yet.
    There the number of resident requests is used instead.
    """
    ready = max(0, target.queued - target.waiting)
    if target.age_s == 0.0 and target.running == 0:
        return max(ready, target.resident - 1, 0)
    return target.running + ready


def target_wait_s(target: TargetView, *, arrives_later: bool, busy_phase: float) -> float:
    """Return the expected wait for an iteration at a target.

    A job that is there at once waits for the rest of the iteration under way, as reported. A job that comes
    later meets another iteration and waits `busy_phase` of it. All ready sequences take part in the next one.

    Args:
        target: The target.
        arrives_later: Whether the job is not at the target yet, or the report is old.
        busy_phase: See :class:`GoodputParameters`.
    """
    if not arrives_later:
        return target.remaining_s
    return busy_phase * target.iteration_s if target.running + target.queued > target.waiting else 0.0


def token_price_s(table: Sequence[float], others: int, tokens_each: int, load_weight: float) -> float:
    """Return what one more token in the iteration costs: its own delay and the weighted delay of others.

    Args:
        table: Iteration time by number of new tokens.
        others: Other sequences in the iteration.
        tokens_each: Assumed number of tokens of each of them.
        load_weight: Weight of the others' delay.
    """
    tokens = min((others + 1) * tokens_each, len(table) - 2)
    return (table[tokens + 1] - table[tokens]) * (1.0 + load_weight * others)


def one_off_token_s(candidate: CandidateView, request: RequestView, parameters: GoodputParameters) -> float:
    """Return the one-off cost of drafting at a candidate, spread over the horizon.

    It consists of the handover of control and the KV catch-up beyond the usual one token. At admission there
    is neither: the prompt goes to the target in any case, and the drafter prefills while the target does.
    """
    if request.is_admission:
        return 0.0
    lag_s = max(0.0, candidate.catch_up_s - candidate.draft_step_s)
    return (candidate.handover_s + lag_s) / parameters.horizon_tokens


def plain_token_s(
    candidate: CandidateView,
    view: DecisionView,
    table: Sequence[float],
    chunk_tokens: int,
    parameters: GoodputParameters,
    load_weight: float,
) -> float:
    """Return the expected time per token of plain decoding: an iteration and a share of the chunk's wait."""
    target = candidate.target
    later = candidate.handover_s > 0.0 or target.age_s > 0.0
    wait_s = target_wait_s(target, arrives_later=later, busy_phase=parameters.busy_phase)
    token_s = token_price_s(table, others_at(target), 1, load_weight)
    handover_s = candidate.handover_s / parameters.horizon_tokens
    return target.iteration_s + token_s + wait_s / chunk_tokens + handover_s


def round_line_s(
    candidate: CandidateView,
    view: DecisionView,
    table: Sequence[float],
    parameters: GoodputParameters,
    load_weight: float,
    shared_acceptance: float,
    engine: EngineOverhead = NO_OVERHEAD,
) -> tuple[float, float, int]:
    """Return (base, slope, longest): a round of gamma drafts takes ``base + slope * gamma``.

    The round consists of the draft steps, the way to the target and back, the wait there, and an iteration
    with gamma + 1 more tokens. On the target's own GPUs the whole batch takes its draft steps together, as
    many as its longest draft has. There the rule drafts no longer than pays for the batch
    (:func:`shared_length`). Up to that length, steps cost the request nothing extra, and the iteration is
    assumed to take at least as long as that of a batch in which every sequence drafts that length. A look-up
    takes its time once a round.

    Args:
        candidate: The candidate.
        view: The decision.
        table: Iteration time by number of new tokens.
        parameters: Constants of the rule.
        load_weight: Weight of the time by which the tokens delay others.
        shared_acceptance: Chance that a draft token is accepted, as of a whole batch that shares draft steps.
        engine: What the target's engine adds to an iteration.
    """
    target = candidate.target
    others = others_at(target)
    later = candidate.site != Site.COLOCATED or candidate.handover_s > 0.0 or target.age_s > 0.0
    wait_s = target_wait_s(target, arrives_later=later, busy_phase=parameters.busy_phase)
    base_s = candidate.draft_wait_s + candidate.rtt_s + wait_s + target.iteration_s
    step_s, longest = candidate.draft_step_s, view.gammas[-1]
    if candidate.kind == DrafterKind.LOOKUP:
        base_s, step_s = base_s + step_s, 0.0
    if candidate.shares_target:
        pooled = expected_tokens(shared_acceptance, view.gammas)
        longest = shared_length(table, others + 1, step_s, view.gammas, pooled, target.iteration_s, engine)
        base_s += max(0.0, batch_s(table, others + 1, longest, step_s, engine) - target.iteration_s)
        step_s = 0.0
    token_s = token_price_s(table, others, min(longest, 4) + 1, load_weight)
    return base_s + token_s, step_s + token_s, longest


def batch_s(
    table: Sequence[float], sequences: int, gamma: int, step_s: float, engine: EngineOverhead = NO_OVERHEAD
) -> float:
    """Return the time of an iteration in which every sequence drafts gamma tokens and has them verified."""
    tokens = sequences * (gamma + 1)
    duration_s = table[min(len(table) - 1, tokens)] + gamma * step_s + engine.per_sequence_s * sequences
    return duration_s + (engine.per_verifying_iteration_s if gamma > 0 else 0.0)


def shared_length(
    table: Sequence[float],
    sequences: int,
    step_s: float,
    gammas: Sequence[int],
    tokens: Sequence[float],
    iteration_s: float,
    engine: EngineOverhead = NO_OVERHEAD,
) -> int:
    """Return the speculation length that suits a batch which drafts on its target's own GPUs.

    SmartSpec's goodput, argmax over gamma of tokens(gamma) / T(batch, gamma). Plain decoding is weighed
    against the best of them with what iterations take beyond the profile (prompts being prefilled, KV
    reads), because drafting spreads that over more tokens.

    Args:
        table: Iteration time by number of new tokens, what the engine adds for each token included.
        sequences: Sequences in the batch.
        step_s: Time of one draft step of the batch.
        gammas: Speculation lengths on offer, the first 0.
        tokens: Expected tokens per round for each of them.
        iteration_s: Iteration time as observed.
        engine: What the engine adds for each sequence, and for drafts.
    """
    best, best_cost_s, best_tokens = 0, float("inf"), 1.0
    for gamma, expected in zip(gammas[1:], tokens[1:], strict=True):
        cost_s = batch_s(table, sequences, gamma, step_s, engine) / expected
        if cost_s < best_cost_s:
            best, best_cost_s, best_tokens = gamma, cost_s, expected
    excess_s = max(0.0, iteration_s - batch_s(table, sequences, best, step_s, engine))
    if batch_s(table, sequences, 0, step_s, engine) + excess_s <= best_cost_s + excess_s / best_tokens:
        return 0
    return best
