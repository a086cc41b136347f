"""Rules that several schedulers share: which target, which draft site, which batch size."""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.control import DecisionView, Site, TargetView
from dsd_env.control.actions import snap, snap_up
from dsd_env.scenario import Scenario
from dsd_env.scenario.schema import ColocatedDrafter, Drafter

SITES: dict[str, Site] = {"colocated": Site.COLOCATED, "own": Site.OWN_DEVICE, "edge": Site.EDGE_SERVER}
"""Words for draft sites in scheduler specifications."""


def adaptive_batch_size(batch_sizes: Sequence[int], target: TargetView) -> int:
    """Return the listed batch size that suits the number n of sequences that may be in an iteration.

    n is the number of requests with KV at the target, or the number that wait, run or are added now, if that
    is larger. A batch size above n makes an idle server wait `max_batch_wait_s` for sequences that do not
    come. A batch size below n makes some sequences wait for a whole iteration. The rule takes the largest
    size of at most n if these waits cost less on average than the server's, and otherwise the smallest size
    of at least n.
    """
    n = max(target.queued + target.running + 1, target.resident)
    below = snap(batch_sizes, n)
    left_behind_s = (n - below) / n * target.iteration_s
    return below if below <= n and left_behind_s < target.max_batch_wait_s else snap_up(batch_sizes, n)


def batch_size_for(view: DecisionView, target: TargetView, fixed: int | None) -> int:
    """Return the batch size to choose at ``target``.

    Args:
        view: The decision.
        target: The target concerned.
        fixed: A batch size (the smallest listed one that is at least this is taken), or None for
            :func:`adaptive_batch_size`.
    """
    if fixed is None:
        return adaptive_batch_size(view.batch_sizes, target)
    return snap_up(view.batch_sizes, fixed)


def least_loaded_target(view: DecisionView) -> int:
    """Return the number of the offered target with the fewest requests, including those that wait for KV.

    Ties go to the shorter iteration time, then to the lower number. Down targets are taken only if
    there is no other.
    """
    best = min(
        (candidate.target for candidate in view.candidates),
        key=lambda target: (not target.up, target.resident, target.iteration_s, target.index),
    )
    return best.index


def stay_or_route(view: DecisionView) -> int:
    """Return the request's target, or at admission the least loaded one.

    Moving to another target later would prefill the whole context again, which simple rules never do.
    """
    return least_loaded_target(view) if view.request.is_admission else view.target.index


def placement_of(view: DecisionView, site: Site, target: int, drafter: str | None = None) -> int | None:
    """Return the selectable placement that drafts at ``site`` for ``target``, or None.

    Of several edge servers the one with the shortest expected wait is taken.

    Args:
        view: The decision.
        site: Where to draft.
        target: Number of the target.
        drafter: Draft model of the drafter wanted, where the site has several; None: the site's first.
    """
    best: int | None = None
    best_wait_s = 0.0
    for index, candidate in enumerate(view.candidates):
        if not candidate.valid or candidate.site != site or candidate.target.index != target:
            continue
        if candidate.drafter != 0 if drafter is None else candidate.model != drafter:
            continue
        if best is None or candidate.draft_wait_s < best_wait_s:
            best, best_wait_s = index, candidate.draft_wait_s
    return best


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


def drafters_at(scenario: Scenario, site: Site) -> list[str]:
    """Return the draft models that a scenario has at a site anywhere, in order, each once."""
    menus: list[Sequence[Drafter | ColocatedDrafter]]
    if site == Site.COLOCATED:
        menus = [target.menu for target in scenario.targets.values()]
    elif site == Site.OWN_DEVICE:
        menus = [device.menu for device in scenario.devices.values()]
    else:
        menus = [edge.menu for edge in scenario.edge_servers.values()]
    return list(dict.fromkeys(drafter.model for menu in menus for drafter in menu))
