"""Which target a request goes to at its admission; it stays there, since moving prefills its context anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def _ways_s(view: DecisionView) -> dict[int, float]:
    """Return the one-way time to each target on offer, seconds, by its number."""
    return {each.target.index: each.handover_s for each in view.candidates if each.site == Site.COLOCATED}


def _least_time(view: DecisionView, seed: int) -> int:
    """Return the target where a first token would come soonest: iterations are what is waited for.

    What a target is farther away than the first one on offer counts twice, for the prompt and for the token.
    """
    ways_s = _ways_s(view)
    first_s = ways_s.get(view.target.index, 0.0)

    def first_token_s(target: TargetView) -> float:
        prompt_s = (target.prefill_tokens + view.request.prompt_tokens) * target.prefill_token_s
        # Who finds no seat waits until as many as wait before have left; an answer takes a seat for many
        # iterations, so this only says that a queue is bad.
        queue_s = target.waiting * target.iteration_s
        farther_s = 2.0 * (ways_s.get(target.index, first_s) - first_s)
        return target.remaining_s + target.iteration_s + prompt_s + queue_s + farther_s

    return min(_offered(view), key=lambda target: (first_token_s(target), target.index)).index


@dataclass(frozen=True)
class FastestFirst:
    """Fill the fastest target, then the next: an answer is waited for longer than its first token.

    A target is as fast as its profile says of a prompt's token, whatever it has to do; of two alike the
    nearer one is first. Where all are full, a request goes where its first token comes soonest.

    Attributes:
        most: Requests up to which a target is filled.
    """

    most: int

    def __call__(self, view: DecisionView, seed: int) -> int:
        """Return the number of the target."""
        ways_s = _ways_s(view)
        by_speed = sorted(
            (target.prefill_token_s, ways_s.get(target.index, 0.0), target.index, target)
            for target in _offered(view)
        )
        for _, _, number, target in by_speed:
            if target.resident + target.waiting < self.most:
                return number
        return _least_time(view, seed)


def packed_target(view: DecisionView, most: int) -> int:
    """Return the first target, by number, that is up and has fewer than ``most`` requests, or the idlest.

    Targets fill one after the other, so that in quiet hours the last ones have nobody and cost nothing.
    """
    for target in _offered(view):
        if target.up and target.resident + target.waiting < most:
            return target.index
    return least_loaded_target(view)


Route = Callable[[DecisionView, int], int]
"""From a view and the episode seed to the number of a target."""
ROUTES: dict[str, Route] = {
    "jsq": _shortest,
    "round_robin": _round_robin,
    "random": _random,
    "least_time": _least_time,
}
"""Routes by name, without parameters."""
FASTEST_FIRST = "fastest_first"
ROUTE_USAGES = (*ROUTES, f"{FASTEST_FIRST}+most=N")
"""How the routes are written."""
MOST_REQUESTS = 4096
"""Largest number of requests up to which a target may be filled."""


def make_route(text: str) -> Route:
    """Return the route that a text names.

    Raises:
        ValueError: It names none, or its parameter is missing or out of range; the message says
            what to write.
    """
    if text in ROUTES:
        return ROUTES[text]
    name, _, parameter = text.partition("+")
    if name != FASTEST_FIRST:
        raise ValueError(f"route {text!r} is not one of {', '.join(ROUTE_USAGES)}")
    key, _, number = parameter.partition("=")
    if key != "most" or not number.isdecimal() or not 1 <= int(number) <= MOST_REQUESTS:
        raise ValueError(
            f"route {text!r}: write {FASTEST_FIRST}+most=N, N requests up to which a target is filled, "
            f"a whole number in 1..{MOST_REQUESTS}"
        )
    return FastestFirst(int(number))
