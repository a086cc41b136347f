"""Which target a request goes to at its admission; it stays there, since moving prefills its context anew."""

from __future__ import annotations

from collections.abc import Callable

from dsd_env.control import DecisionView, Site, TargetView
from dsd_env.rng import Stream, key, uniform_from_key
from dsd_env.schedulers.rules import least_loaded_target, pick

ROUTING_DRAW = 9
"""Offset of the draw among those of a decision (:mod:`dsd_env.schedulers.lengths`)."""


def _offered(view: DecisionView) -> list[TargetView]:
    """Return the targets on offer, by number; those believed up, if any is."""
    targets = {each.target.index: each.target for each in view.candidates}
    up = [targets[number] for number in sorted(targets) if targets[number].up]
    return up or [targets[number] for number in sorted(targets)]


def _shortest(view: DecisionView, seed: int) -> int:
    return least_loaded_target(view)


def _round_robin(view: DecisionView, seed: int) -> int:
    targets = _offered(view)
    return targets[view.request_id % len(targets)].index


def _random(view: DecisionView, seed: int) -> int:
    targets = _offered(view)
    u = uniform_from_key(key(seed, Stream.SCHEDULER, view.request_id), ROUTING_DRAW)
    return pick(targets, u).index


def _least_time(view: DecisionView, seed: int) -> int:
    """Return the target where a first token would come soonest: iterations are what is waited for.

    What a target is farther away than the first one on offer counts twice, for the prompt and for the token.
    """
    ways_s = {each.target.index: each.handover_s for each in view.candidates if each.site == Site.COLOCATED}
    first_s = ways_s.get(view.target.index, 0.0)

    def first_token_s(target: TargetView) -> float:
        prompt_s = (target.prefill_tokens + view.request.prompt_tokens) * target.prefill_token_s
        # Who finds no seat waits until as many as wait before have left; an answer takes a seat for many
        # iterations, so this only says that a queue is bad.
        queue_s = target.waiting * target.iteration_s
        farther_s = 2.0 * (ways_s.get(target.index, first_s) - first_s)
        return target.remaining_s + target.iteration_s + prompt_s + queue_s + farther_s

    return min(_offered(view), key=lambda target: (first_token_s(target), target.index)).index


def packed_target(view: DecisionView, most: int) -> int:
    """Return the first target, by number, that is up and has fewer than ``most`` requests, or the idlest.

    Targets fill one after the other, so that in quiet hours the last ones have nobody and cost nothing.
    """
    for target in _offered(view):
        if target.up and target.resident + target.waiting < most:
            return target.index
    return least_loaded_target(view)


ROUTES: dict[str, Callable[[DecisionView, int], int]] = {
    "jsq": _shortest,
    "round_robin": _round_robin,
    "random": _random,
    "least_time": _least_time,
}
"""Routes by name: a function of a view and the episode seed to the number of a target."""
