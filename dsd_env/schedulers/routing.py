"""Which target a request goes to at its admission; it stays there, since moving prefills its context anew."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from dsd_env.control import DecisionView, Site, TargetView
from dsd_env.rng import Stream, key, uniform_from_key
from dsd_env.schedulers.rules import least_loaded, least_loaded_target, pick

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


@dataclass(frozen=True)
class ByLength:
    """Keep short and long prompts apart, so that those of one batch are alike.

    The first half of the targets, by number, takes the short ones (of an odd number the middle one, too), the
    rest the long ones; among these the one with the fewest requests. That is DSD's length-aware batching
    (arXiv 2511.21669) where batches are continuous: what is batched together is what shares a target.

    Attributes:
        tokens: Longest prompt that is short.
    """

    tokens: int

    def __call__(self, view: DecisionView, seed: int) -> int:
        """Return the number of the target."""
        targets = _offered(view)
        short = -(-len(targets) // 2)
        kept = targets[:short] if view.request.prompt_tokens <= self.tokens else targets[short:]
        return least_loaded(kept or targets)


def packed_target(view: DecisionView, most: int) -> int:
    """Return the first target, by number, that is up and has fewer than ``most`` requests, or the idlest.

    Targets fill one after the other, so that in quiet hours the last ones have nobody and cost nothing.

    Args:
        view: The decision.
        most: Requests up to which a target is filled.
    """
    full = {each.index for each in _offered(view) if each.resident + each.waiting >= most}
    return _first_open(view, full)


def _first_open(view: DecisionView, full: Container[int]) -> int:
    """Return the first target, by number, that is up and not full, or else the idlest."""
    for target in _offered(view):
        if target.up and target.index not in full:
            return target.index
    return least_loaded_target(view)


class Packing:
    """Fills targets one after the other, and lets one that was full work off its queue.

    Where ``until`` is less than ``most - 1``, the next target gets requests in bursts: all of them from the
    moment at which the one before it is full until that one has room again. In between it has nobody.

    Attributes:
        most: Requests up to which a target is filled.
        until: Requests that a full one must come down to before it gets others.
    """

    def __init__(self, most: int, until: int) -> None:
        """Begin an episode in which no target is full."""
        self.most, self.until = most, until
        self._full: set[int] = set()

    def target(self, view: DecisionView) -> int:
        """Return the number of the target that a request goes to; it is asked in the order of time."""
        for target in _offered(view):
            requests = target.resident + target.waiting
            if requests >= self.most:
                self._full.add(target.index)
            elif requests <= self.until:
                self._full.discard(target.index)
        return _first_open(view, self._full)


Route = Callable[[DecisionView, int], int]
"""From a view and the episode seed to the number of a target."""
ROUTES: dict[str, Route] = {
    "jsq": _shortest,
    "round_robin": _round_robin,
    "random": _random,
    "least_time": _least_time,
}
"""Routes by name, without parameters."""


@dataclass(frozen=True)
class _Parameter:
    """The one whole number that a route has."""

    make: Callable[[int], Route]
    key: str
    largest: int
    means: str


PARAMETRIC: dict[str, _Parameter] = {
    "fastest_first": _Parameter(FastestFirst, "most", 4096, "requests up to which a target is filled"),
    "by_length": _Parameter(ByLength, "tokens", 1_000_000, "tokens of the longest prompt that is short"),
}
"""Routes by name, with a parameter."""
ROUTE_USAGES = (*ROUTES, *(f"{name}+{each.key}=N" for name, each in PARAMETRIC.items()))
"""How the routes are written."""


def make_route(text: str) -> Route:
    """Return the route that a text names.

    Raises:
        ValueError: It names none, or its parameter is missing or out of range; the message says
            what to write.
    """
    if text in ROUTES:
        return ROUTES[text]
    name, _, given = text.partition("+")
    if name not in PARAMETRIC:
        raise ValueError(f"route {text!r} is not one of {', '.join(ROUTE_USAGES)}")
    parameter = PARAMETRIC[name]
    key, _, number = given.partition("=")
    if key != parameter.key or not number.isdecimal() or not 1 <= int(number) <= parameter.largest:
        raise ValueError(
            f"route {text!r}: write {name}+{parameter.key}=N, N {parameter.means}, a whole number in "
            f"1..{parameter.largest}"
        )
    return parameter.make(int(number))
