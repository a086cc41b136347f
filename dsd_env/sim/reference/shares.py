"""What the sequences of a batch bring into an iteration of a target, and what they cost others."""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.sim.entities import Job, TargetServer, TargetTask
from dsd_env.sim.iteration import IterationCost, Share

Batch = Sequence[tuple[Job, int]]
"""The jobs of an iteration, each with its number of new tokens."""


def shares_of(target: TargetServer, batch: Batch) -> list[Share]:
    """Return what each sequence of a batch brings into the iteration."""
    shares = []
    for job, tokens in batch:
        request = job.request
        context, number = request.context_tokens, job.drafter_number
        if job.prefill_tokens:
            kv = job.prefilled_tokens + tokens
            timer = target.shared.get(number) if job.warm_drafter else None
            if timer is None or timer.per_round:
                shares.append(Share(tokens, kv))
            else:
                shares.append(Share(tokens, kv, tokens, kv, drafter=number))
        elif job.task == TargetTask.COLOCATED:
            lag, made = request.drafter_lag(number), job.gamma + job.dropped
            shares.append(
                Share(tokens, context + tokens - 1, lag, context, made, number, verifies=tokens > 1)
            )
        else:
            shares.append(Share(tokens, context + tokens - 1, verifies=tokens > 1))
    return shares


def charge(target: TargetServer, batch: Batch, shares: Sequence[Share], cost: IterationCost) -> None:
    """Add to each request the time by which it delays others.

    A sequence delays every other request in the batch or in the target's queues by its part of the
    iteration's time (see :meth:`IterationCost.caused_s`). Requests that are away, drafting elsewhere,
    wait for nothing here. (Another rule was tried: it divided the whole iteration's time, the reading of
    the weights included, among the sequences. Policies trained with it avoided the targets' own
    drafters, which made every request slower.)
    """
    others = len(batch) - 1 + len(target.ready) + len(target.waiting)
    for (job, _), share in zip(batch, shares, strict=True):
        job.request.delay_caused_s += cost.caused_s(share) * others


def bar_label(batch: Batch) -> str:
    """Return an iteration's label in a timeline: the task that most defines its length."""
    tasks = {TargetTask.PREFILL if job.prefill_tokens else job.task for job, _ in batch}
    if TargetTask.STREAM in tasks:
        streams = [job for job, _ in batch if job.task == TargetTask.STREAM and not job.prefill_tokens]
        tasks.add(TargetTask.VERIFY if any(job.gamma for job in streams) else TargetTask.PLAIN)
    if TargetTask.COLOCATED in tasks:
        return "colocated"
    if TargetTask.VERIFY in tasks:
        return "verify"
    return "plain" if TargetTask.PLAIN in tasks else "prefill"
