"""The saturated capacity of plain decoding: the yardstick of a scenario's load.

How busy a server is says nothing, since it is busy at any load that keeps a request there. What it could do
at most, without drafts and with as many residents as it holds, says how far a load is from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dsd_env.laws.variates import whole_tokens
from dsd_env.scenario.schema import (
    Geometric,
    Length,
    LogNormal,
    Quantiles,
    RequestKind,
    Scenario,
    Target,
)
from dsd_env.scenario.variates import value_at
from dsd_env.sim.entities import StepTimer
from dsd_env.sim.iteration import padded_tokens
from dsd_env.workload.replay import Schedule

_POINTS, _JOINT_POINTS = 256, 48
"""Points at which the laws of lengths are evaluated: each by itself, and two that are correlated."""


@dataclass(frozen=True)
class MeanRequest:
    """The usual request of a workload.

    Attributes:
        prompt_tokens: Mean length of a prompt.
        output_tokens: Mean length of an answer.
        context_tokens: Mean context of a request that decodes, averaged over its tokens.
        chunks: Mean number of iterations that a prompt takes, if each has a chunk to itself.
    """

    prompt_tokens: float
    output_tokens: float
    context_tokens: float
    chunks: float

    @classmethod
    def of(cls, scenario: Scenario, chunk_tokens: int, schedule: Schedule | None = None) -> MeanRequest:
        """Return the mean request of a scenario, or of the requests that it replays."""
        workload = scenario.workload
        sums = np.zeros(5)
        if schedule is not None:
            prompt = np.array(schedule.prompt_tokens, dtype=np.float64)
            output = np.array(schedule.output_tokens, dtype=np.float64)
            sums += _moments(prompt, output, float((prompt * output).mean()), chunk_tokens)
        else:
            total = sum(kind.weight for kind in workload.kinds.values())
            for kind in workload.kinds.values():
                prompt = _lengths(kind.prompt_tokens, _scores(_POINTS), workload.max_prompt_tokens)
                output = _lengths(kind.output_tokens, _scores(_POINTS), workload.max_output_tokens)
                product = _mean_product(kind, workload.max_prompt_tokens, workload.max_output_tokens)
                sums += kind.weight / total * _moments(prompt, output, product, chunk_tokens)
        mean_prompt, mean_output, product, output_places, chunks = sums.tolist()
        return cls(mean_prompt, mean_output, (product + output_places) / mean_output, chunks)


def _moments(
    prompt: NDArray[np.float64], output: NDArray[np.float64], product: float, chunk_tokens: int
) -> NDArray[np.float64]:
    """Return the means of prompt, answer, their product, Σ k over an answer's tokens, and chunks."""
    places = (output * (output + 1.0) / 2.0).mean()
    return np.array([prompt.mean(), output.mean(), product, places, np.ceil(prompt / chunk_tokens).mean()])


def _scores(n: int) -> list[float]:
    """Return the normal scores of the middles of n equally likely intervals."""
    normal = NormalDist()
    return [normal.inv_cdf((i + 0.5) / n) for i in range(n)]


def _lengths(law: Length, scores: Sequence[float], most: int) -> NDArray[np.float64]:
    """Return the lengths, in tokens, at some normal scores of their law."""
    if isinstance(law, LogNormal | Quantiles):
        values = [value_at(law, z) for z in scores]
    elif isinstance(law, Geometric) and law.mean > 1.0:
        normal = NormalDist()
        values = [math.ceil(math.log(1.0 - normal.cdf(z)) / math.log(1.0 - 1.0 / law.mean)) for z in scores]
    else:
        values = [law.mean if isinstance(law, Geometric) else law.value] * len(scores)
    return np.array([whole_tokens(value, most) for value in values], dtype=np.float64)


def _mean_product(kind: RequestKind, most_prompt: int, most_output: int) -> float:
    """Return the mean of prompt times answer."""
    correlation = kind.length_correlation
    scores = _scores(_JOINT_POINTS if correlation else _POINTS)
    prompts = _lengths(kind.prompt_tokens, scores, most_prompt)
    if correlation == 0.0:
        return float(prompts.mean() * _lengths(kind.output_tokens, scores, most_output).mean())
    rest = math.sqrt(1.0 - correlation * correlation)
    answers = [
        _lengths(kind.output_tokens, [correlation * z + rest * own for own in scores], most_output).mean()
        for z in scores
    ]
    return float((prompts * np.array(answers)).mean())


def saturated_tokens_per_s(
    target: Target, timer: StepTimer, request: MeanRequest, residents: float, chunk_tokens: int
) -> float:
    """Return the output tokens per second of one target whose seats are always taken, without drafts.

    A fluid model. Of ``residents`` requests, d decode in every iteration and the others prefill. An answer of
    n tokens takes n − 1 iterations after its prefill, whose end yields the first; so r = d / (n − 1) requests
    complete per iteration, each of which has had its prompt prefilled in ``chunks`` iterations: d + r ·
    chunks = residents. A share of the iterations carries prompts, and all iterations together r · prompt
    tokens.

    Args:
        target: The target.
        timer: Its iteration times.
        request: The usual request.
        residents: Requests that have a seat.
        chunk_tokens: Most prompt tokens per iteration.
    """
    decodes = max(request.output_tokens - 1.0, 1e-9)
    rate = residents / (decodes + request.chunks)
    # One iteration has no more than a chunk of prompts.
    rate = min(rate, chunk_tokens / request.prompt_tokens)
    decoding = rate * decodes
    share = min(1.0, rate * request.chunks)
    prompt_tokens = rate * request.prompt_tokens / share
    kv_tokens = decoding * request.context_tokens
    prefill_kv = 0.5 * request.prompt_tokens
    plain_tokens = max(1, round(decoding))
    captured = target.graph_batch_tokens
    plain_s = timer.step_s(padded_tokens(plain_tokens, captured), round(kv_tokens), 0)
    mixed_tokens = max(1, min(round(decoding + prompt_tokens), len(timer.compute_s) - 1))
    mixed_s = timer.step_s(
        mixed_tokens, round(kv_tokens + prefill_kv * prompt_tokens / request.prompt_tokens), round(prefill_kv)
    )
    kernels_s = share * mixed_s + (1.0 - share) * plain_s
    kernels_s *= 1.0 + target.straggler_share * (target.straggler_factor - 1.0)
    new_tokens = round(decoding + rate * request.prompt_tokens)
    iteration_s = kernels_s + timer.overhead_s(round(decoding + share), new_tokens, 0)
    return rate * request.output_tokens / iteration_s


def plain_capacity_tokens_per_s(
    scenario: Scenario, timers: list[StepTimer], schedule: Schedule | None = None
) -> float:
    """Return the saturated capacity of plain decoding of all targets of a scenario.

    As many requests are resident at each as it has seats and as its KV pool holds, of the mean context if it
    preempts, of the worst case if it reserves.

    Args:
        scenario: The scenario.
        timers: Iteration times by class of target.
        schedule: The requests that it replays, if it replays any.
    """
    total = 0.0
    for target, timer in zip(scenario.targets.values(), timers, strict=True):
        budget_tokens = target.max_num_batched_tokens
        request = MeanRequest.of(scenario, budget_tokens, schedule)
        held = request.context_tokens
        if target.kv_policy == "reserve":
            held = scenario.kv_reservation_tokens(math.ceil(request.prompt_tokens))
        residents = min(target.max_num_seqs, max(1.0, target.kv_capacity_tokens / held))
        # Prompts have what those that decode leave of an iteration's tokens.
        chunk_tokens = max(1, budget_tokens - math.ceil(residents))
        request = MeanRequest.of(scenario, chunk_tokens, schedule)
        total += target.count * saturated_tokens_per_s(target, timer, request, residents, chunk_tokens)
    return total
