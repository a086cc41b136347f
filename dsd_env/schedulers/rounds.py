"""What a round of drafts costs and yields, as the goodput rule estimates it from the view of a decision.

``docs/schedulers.md`` derives the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.control import CandidateView, DecisionView, DrafterKind, RequestView, Site, TargetView
from dsd_env.latency import NO_OVERHEAD, EngineOverhead
from dsd_env.schedulers.goodput_parameters import GoodputParameters

LOWEST_ACCEPTANCE = 0.01
HIGHEST_ACCEPTANCE = 0.99


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
