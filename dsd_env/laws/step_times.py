"""How long iterations and draft steps take.

A timer has ``compute_s`` (attention-free time by number of new tokens, fewer than ``length``), ``k_bw_s``,
``k_multi_s`` and ``k_lat_s`` (seconds per KV token read when every sequence has one new token, when some has
more, and per KV token of the longest sequence that has more); see :mod:`dsd_env.latency.profile` for the
form. Every engine reads the same float64 table, so that all of them compute the same times to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from dsd_env import rng
from dsd_env.rng import Stream

ITERATION_NOISE = int(Stream.ITERATION_NOISE)
STRAGGLER = int(Stream.STRAGGLER)
DRAFT_NOISE = int(Stream.DRAFT_NOISE)


class Timer(Protocol):
    """A tabulated latency profile; see the module."""

    @property
    def compute_s(self) -> Sequence[float]: ...
    @property
    def length(self) -> int: ...
    @property
    def k_bw_s(self) -> float: ...
    @property
    def k_multi_s(self) -> float: ...
    @property
    def k_lat_s(self) -> float: ...


class DraftTimer(Timer, Protocol):
    """The same of a drafter; a look-up takes its one step once a round (``per_round``).

    ``per_generation_s`` is what a round or a stream's generation takes beside its steps,
    ``draft_noise_sigma`` how the time of a single draft scatters.
    """

    @property
    def per_round(self) -> bool: ...
    @property
    def per_generation_s(self) -> float: ...
    @property
    def draft_noise_sigma(self) -> float: ...


class Overhead(Protocol):
    """What an engine takes beside its kernels; see :class:`dsd_env.latency.overhead.EngineOverhead`."""

    @property
    def per_iteration_s(self) -> float: ...
    @property
    def per_sequence_s(self) -> float: ...
    @property
    def per_token_s(self) -> float: ...
    @property
    def per_verifying_iteration_s(self) -> float: ...
    @property
    def token_limit(self) -> int: ...


class TargetTimer(Timer, Overhead, Protocol):
    """Times of a target: its kernels and its engine."""


class Noise(Protocol):
    """How iteration times scatter."""

    @property
    def iteration_noise_sigma(self) -> float: ...
    @property
    def straggler_share(self) -> float: ...
    @property
    def straggler_factor(self) -> float: ...


def attention_free_s(timer: Timer, new_tokens: int) -> float:
    """Return the attention-free time of an iteration or draft step.

    Beyond its table a timer goes on as straight as the table ends: so many tokens are bound by computation.
    They occur where a drafter that has processed nothing of many long contexts takes them all in at once.
    """
    last = timer.length - 1
    if new_tokens <= last:
        return timer.compute_s[new_tokens]
    end_s = timer.compute_s[last]
    return end_s + (new_tokens - last) * (end_s - timer.compute_s[last - 1])


def step_s(timer: Timer, speed: float, new_tokens: int, kv_tokens: int, longest_kv_tokens: int) -> float:
    """Return the time of one iteration or draft step.

    Args:
        timer: Its times.
        speed: Factor on all of them: 1, or that of a device that is slower or faster than its class.
        new_tokens: New tokens of all sequences.
        kv_tokens: KV tokens that they read.
        longest_kv_tokens: KV tokens of the longest sequence with more than one new token; 0: there is none.
    """
    compute_s = attention_free_s(timer, new_tokens) * speed
    if longest_kv_tokens == 0:
        return compute_s + timer.k_bw_s * speed * kv_tokens
    return compute_s + (timer.k_multi_s * speed * kv_tokens + timer.k_lat_s * speed * longest_kv_tokens)


def overhead_s(engine: Overhead, sequences: int, new_tokens: int, verifying: int) -> float:
    """Return what a target's engine adds to the kernels of one iteration: scheduling, inputs, sampling.

    Iteration noise does not scale it.

    Args:
        engine: Its parts.
        sequences: Sequences in the batch.
        new_tokens: New tokens of all of them, prefill chunks included.
        verifying: Sequences with more than one new token that is not a prompt's: they verify drafts.
    """
    counted = min(new_tokens, engine.token_limit)
    added_s = engine.per_iteration_s + engine.per_sequence_s * sequences + engine.per_token_s * counted
    if verifying > 0:
        added_s += engine.per_verifying_iteration_s
    return added_s


def draft_s(
    timer: DraftTimer,
    speed: float,
    lag_tokens: int,
    context_tokens: int,
    gamma: int,
    active: int,
    active_kv_tokens: int,
    branch_tokens: int = 0,
) -> float:
    """Return the time to process the KV lag and draft ``gamma`` tokens.

    The first step processes every committed token that the drafter has not seen and yields the first draft;
    each further step processes one draft and yields the next. Other sequences drafted at the same time add
    one token each to every step. A look-up takes one step for all its proposals.

    Args:
        timer: Times of the drafter's steps.
        speed: Factor on them.
        lag_tokens: Committed tokens not processed yet, the last one included (1 is normal).
        context_tokens: Committed tokens, prompt included.
        gamma: Drafts; 0 only processes the lag.
        active: Sequences drafted at the same time, this one included.
        active_kv_tokens: Their KV together, this one's included.
        branch_tokens: Tokens of branches that they process in each step beside their own.
    """
    longest = context_tokens if lag_tokens > 1 else 0
    beside = active - 1 + branch_tokens
    duration_s = step_s(timer, speed, lag_tokens + beside, active_kv_tokens, longest)
    if gamma > 1 and not timer.per_round:
        duration_s += (gamma - 1) * step_s(timer, speed, 1 + beside, active_kv_tokens, 0)
        duration_s += timer.k_bw_s * speed * (gamma * (gamma - 1) // 2)
    return duration_s


def random_factor(sigma: float, seed: int, stream: int, entity: int, counter: int) -> float:
    """Return a log-normal factor of mean one, drawn at an address; see :mod:`dsd_env.rng`."""
    noise_key = rng.key(seed, stream, entity)
    z = rng.normal(
        rng.uniform_from_key(noise_key, 2 * counter), rng.uniform_from_key(noise_key, 2 * counter + 1)
    )
    return math.exp(sigma * z - 0.5 * sigma * sigma)


def iteration_noise(spec: Noise, seed: int, target: int, iterations: int) -> float:
    """Return the random factor of a target's iteration number ``iterations``.

    Log-normal with mean one, and ``straggler_factor`` times that with probability ``straggler_share``.
    """
    factor = 1.0
    sigma = spec.iteration_noise_sigma
    if sigma != 0.0:
        factor = random_factor(sigma, seed, ITERATION_NOISE, target, iterations)
    share = spec.straggler_share
    if share != 0.0 and rng.uniform(seed, STRAGGLER, target, iterations) < share:
        factor *= spec.straggler_factor
    return factor


def draft_noise(timer: DraftTimer, seed: int, request: int, context_tokens: int, gamma: int) -> float:
    """Return the random factor on the time in which a drafter makes ``gamma`` drafts.

    Log-normal with mean one. Drafts scatter each for itself, so that more of them scatter less, relative to
    their time: the sigma of one is divided by the root of their number. The draw belongs to the place in the
    answer from which the drafter goes on, and so is the same whoever schedules.

    Args:
        timer: Times of the drafter.
        seed: Episode seed.
        request: Number of the request.
        context_tokens: Tokens that the drafts follow.
        gamma: Drafts; what a drafter only reads does not scatter.
    """
    if timer.draft_noise_sigma == 0.0 or gamma == 0:
        return 1.0
    return random_factor(
        timer.draft_noise_sigma / math.sqrt(gamma), seed, DRAFT_NOISE, request, context_tokens
    )


def prefill_token_s(timer: TargetTimer, chunk_tokens: int) -> float:
    """Return the time of a prompt's token in an iteration that prefills one chunk and does nothing else."""
    return (timer.compute_s[chunk_tokens] + overhead_s(timer, 1, chunk_tokens, 0)) / chunk_tokens


def marginal_token_s(timer: TargetTimer, length: int, usual_tokens: float, slope_tokens: int) -> float:
    """Return the time of one more new token in an iteration of the usual size: kernels and engine.

    Args:
        timer: The target's times.
        length: Entries of its table.
        usual_tokens: Running mean of an iteration's new tokens.
        slope_tokens: Distance over which the slope is taken.
    """
    tokens = min(int(usual_tokens), length - 1 - slope_tokens)
    kernels_s = timer.compute_s[tokens + slope_tokens] - timer.compute_s[tokens]
    limit = timer.token_limit
    counted = min(tokens + slope_tokens, limit) - min(tokens, limit)
    return (kernels_s + timer.per_token_s * counted) / slope_tokens
