"""Rules that several schedulers share: which target, which draft site, which batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from dsd_env.control import CandidateView, Decision, DecisionView, Site, TargetView
from dsd_env.control.actions import snap_up
from dsd_env.control.fleet import SITES, drafters_at
from dsd_env.rng import number_below

Item = TypeVar("Item")


def pick(values: Sequence[Item], u: float) -> Item:
    """Return the value that a uniform draw falls on."""
    return values[number_below(len(values), u)]


def batch_size_for(view: DecisionView, wanted: int) -> int:
    """Return the smallest listed batch size that is at least ``wanted`` (the largest if none is)."""
    return snap_up(view.batch_sizes, wanted)


def least_loaded_target(view: DecisionView) -> int:
    """Return the number of the offered target with the fewest requests, those that wait for admission too.

    Ties go to the shorter iteration time, then to the lower number. Down targets are taken only if
    there is no other.
    """
    return least_loaded(candidate.target for candidate in view.candidates)


def least_loaded(targets: Iterable[TargetView]) -> int:
    """Return the number of that one of some targets; see :func:`least_loaded_target`."""
    best = min(
        targets,
        key=lambda target: (
            not target.up,
            target.resident + target.waiting,
            target.iteration_s,
            target.index,
        ),
    )
    return best.index


def stay_or_route(view: DecisionView) -> int:
    """Return the request's target, or at admission the least loaded one.

    Moving to another target later would prefill the whole context again, which simple rules never do.
    """
    return least_loaded_target(view) if view.request.is_admission else view.target.index


def placement_of(
    view: DecisionView, site: Site, target: int, drafter: str | None = None, branches: bool = False
) -> int | None:
    """Return the selectable placement that drafts at ``site`` for ``target``, or None.

    Of several edge servers the one with the shortest expected wait is taken, or the shortest draft step where
    waits are equal; a stream that is open stays where it is.

    Args:
        view: The decision.
        site: Where to draft.
        target: Number of the target.
        drafter: Draft model of the drafter wanted, where the site has several; None: the site's first.
        branches: Only streams with branches will do; otherwise those without come first.
    """
    best: int | None = None
    best_key = (0, True, 0.0, 0.0)
    for index, candidate in enumerate(view.candidates):
        if not candidate.valid or candidate.site != site or candidate.target.index != target:
            continue
        if candidate.drafter != 0 if drafter is None else candidate.model != drafter:
            continue
        if branches and candidate.fanout == 0:
            continue
        fanout = 0 if branches else candidate.fanout
        waits = (candidate.draft_wait_s, candidate.draft_step_s)
        key = (fanout, not stays_open(candidate, view), *waits)
        if best is None or key < best_key:
            best, best_key = index, key
    return best


def stays_open(candidate: CandidateView, view: DecisionView) -> bool:
    """Return whether drafting at a candidate lets the stream go on that the request has open."""
    return candidate.is_current and candidate.streams and view.request.window_tokens > 0


def plain_placement(view: DecisionView, target: int) -> int:
    """Return a placement at ``target`` for plain decoding: the first co-located one, or else the first there.

    Plain decoding uses no drafter, so the candidate need not be able to draft.
    """
    fallback: int | None = None
    for index, candidate in enumerate(view.candidates):
        if candidate.target.index == target:
            if candidate.site == Site.COLOCATED:
                return index
            fallback = index if fallback is None else fallback
    return fallback or 0


def decision_at(
    view: DecisionView,
    sites: Sequence[Site],
    target: int,
    gamma: int,
    batch_size: int,
    drafter: str | None = None,
    branches: bool = False,
) -> Decision:
    """Return the decision to draft at the first of some sites that can, or to decode plainly.

    Args:
        view: The decision.
        sites: Draft sites in order of preference.
        target: Number of the target.
        gamma: A listed speculation length; 0 decodes plainly.
        batch_size: Batch size wanted.
        drafter: As for :func:`placement_of`.
        branches: As for :func:`placement_of`.
    """
    batch = batch_size_for(view, batch_size)
    for site in sites if gamma > 0 else ():
        placement = placement_of(view, site, target, drafter, branches)
        if placement is not None:
            return Decision(gamma, batch, placement)
    return Decision(0, batch, plain_placement(view, target))


__all__ = [
    "SITES",
    "batch_size_for",
    "decision_at",
    "drafters_at",
    "least_loaded_target",
    "pick",
    "placement_of",
    "plain_placement",
    "stay_or_route",
    "stays_open",
]
