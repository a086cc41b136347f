"""Who enters a target, when its next iteration begins, and what a preempted request has lost.

A decision's batch size B belongs to the request that it is taken for. At admission it says how far the
request stands back for others; afterwards it is the smallest batch that its verification wants to be part of.
B = 1 waits nowhere.
"""

from __future__ import annotations


def may_enter(resident: int, max_num_seqs: int, batch_size: int, now_s: float, latest_s: float) -> bool:
    """Return whether a request that waits for admission may take a seat, KV apart.

    A request with batch size B leaves the seats to others until fewer than ``max_num_seqs / B`` are taken. It
    stands back for a limited time.

    Args:
        resident: Seats taken.
        max_num_seqs: Seats.
        batch_size: B of its decision.
        now_s: Now.
        latest_s: When it no longer stands back.
    """
    if resident >= max_num_seqs:
        return False
    return resident * batch_size < max_num_seqs or now_s >= latest_s


def least_batch(coalesces: bool, batch_size: int) -> int:
    """Return the smallest batch that a job wants to take part in.

    Only verifications of drafts that travelled can wait for company. All others are at the target anyway, and
    so is a stream that the target decodes for when it has no drafts.
    """
    return batch_size if coalesces else 1


def starts(ready: int, resident: int, least: int, now_s: float, due_s: float) -> bool:
    """Return whether an idle target with ready jobs starts an iteration.

    It does if some job has the company that it wants, if nobody else can come, or if some job has waited long
    enough.

    Args:
        ready: Ready jobs.
        resident: Requests with KV at the target.
        least: Smallest batch that any of the ready jobs wants.
        now_s: Now.
        due_s: When the job that has been ready longest has waited long enough.
    """
    return ready >= least or ready >= resident or now_s >= due_s


def cached_tokens(kept_tokens: int, given_tokens: int, overwritten_from_tokens: int) -> int:
    """Return how many of the KV tokens that a preempted request left behind are still in the prefix cache.

    An engine gives out the memory that has been free longest first, and of one request the end of its context
    before the beginning. So the memory that was free already goes first, then the request's own, from behind.

    Args:
        kept_tokens: KV tokens left behind.
        given_tokens: KV tokens that the target has given out since the beginning of the episode.
        overwritten_from_tokens: The same count, from which on its own are given out.
    """
    return max(0, kept_tokens - max(0, given_tokens - overwritten_from_tokens))
