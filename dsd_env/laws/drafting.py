"""How far a draft has come, and what a round's result teaches.

A draft job has ``gamma`` tokens to make, a ``state``, ``start_s``, ``duration_s`` and ``first_s`` (when it
started, how long it takes, how long its first token takes). With a head start, drafted ahead on a guess that
turned out right, ``head_context_tokens`` says from which context (0: it has none), ``head_drafts`` how many
drafts of this window are complete, and ``head_done_s`` how long the drafter has spent on them.
``opens`` says that it begins a round or a stream's generation, which takes ``per_generation_s`` beside the
steps. Where a drafter's times scatter, one random factor is on all that a job takes.
"""

from __future__ import annotations

from typing import Any

from dsd_env.laws.step_times import DraftTimer, draft_noise, draft_s

ENDED, QUEUED, ACTIVE = range(3)
"""What has become of a draft job."""

DraftJob = Any
Learner = Any


def start_job(
    job: DraftJob,
    timer: DraftTimer,
    speed: float,
    active: int,
    active_kv_tokens: int,
    branch_tokens: int,
    now_s: float,
    seed: int,
    request: int,
) -> None:
    """Let a job start at a drafter, of which it is one of the ``active`` jobs already.

    A job with a head start continues from it, if that is faster than drafting the window anew from the
    committed tokens.
    """
    gamma, lag, context = job.gamma, job.lag_tokens, job.context_tokens
    opening_s = timer.per_generation_s * speed if job.opens else 0.0
    noise = draft_noise(timer, seed, request, context, gamma)
    duration_s = noise * (
        opening_s + draft_s(timer, speed, lag, context, gamma, active, active_kv_tokens, branch_tokens)
    )
    if job.head_context_tokens > 0:
        head_context = job.head_context_tokens
        whole_s = draft_noise(timer, seed, request, head_context, gamma + 1) * draft_s(
            timer, speed, 1, head_context, gamma + 1, active, active_kv_tokens, branch_tokens
        )
        duration_s = min(duration_s, max(0.0, whole_s - job.head_done_s))
    job.start_s = now_s
    job.duration_s = duration_s
    first_s = opening_s + draft_s(timer, speed, lag, context, 1, active, active_kv_tokens, branch_tokens)
    job.first_s = min(duration_s, noise * first_s)


def done_s(job: DraftJob, now_s: float) -> float:
    """Return the time spent on a job until now."""
    if job.state == QUEUED:
        return 0.0
    return float(job.duration_s if job.state == ENDED else now_s - job.start_s)


def tokens_after(job: DraftJob, spent_s: float) -> int:
    """Return how many of a job's tokens are complete after so much time."""
    gamma: int = job.gamma
    if job.state == QUEUED:
        return 0
    if job.state == ENDED or spent_s >= job.duration_s:
        return gamma
    if job.head_context_tokens > 0:
        ready: int = min(gamma, job.head_drafts)
        return ready + int((gamma - ready) * (spent_s / job.duration_s))
    if spent_s < job.first_s or gamma == 0:
        return 0
    later: float = (gamma - 1) * (spent_s - job.first_s) / (job.duration_s - job.first_s)
    return min(gamma, 1 + int(later))


def caught_up_tokens(job: DraftJob, now_s: float) -> int:
    """Return how many tokens of its lag a job that is broken off now has processed in its first step.

    They are committed, and stay right whatever becomes of its drafts.
    """
    if job.state != ACTIVE or job.lag_tokens == 0:
        return 0
    spent_s = now_s - job.start_s
    if spent_s >= job.first_s:
        return int(job.lag_tokens)
    return int(job.lag_tokens * (spent_s / job.first_s))


def accepted_tokens(drafted: int, run: int, left: int) -> int:
    """Return how many of the drafts a verification accepts.

    Args:
        drafted: Drafts verified.
        run: How many would be right if there were no end of them.
        left: Output tokens that the request still lacks.
    """
    return min(drafted, run, left)


def valid_after(context_tokens: int, made: int, accepted: int) -> int:
    """Return how many tokens of the text are right in a drafter's KV after a round.

    It has processed its own drafts but the last; those accepted are right.

    Args:
        context_tokens: Committed tokens before the round, prompt included.
        made: Drafts made; 0 if a look-up proposed nothing.
        accepted: Those that were right.
    """
    return context_tokens + max(0, min(made - 1, accepted))


def learn_round(learner: Learner, drafted: int, accepted: int, committed: int, weight: float) -> None:
    """Take the outcome of a draft round into the running means that its controller keeps.

    A round in which a look-up proposed nothing says nothing of its acceptance rate.
    """
    if drafted > 0:
        learner.acceptance_rate += weight * (accepted / drafted - learner.acceptance_rate)
    learner.tokens_per_round += weight * (committed - learner.tokens_per_round)
