"""Counts of rounds: how often each place of a round was tried and accepted, and checks of what files say.

A round that drafted fewer tokens than the most says nothing of the places that it did not try. Files that
count only accepted drafts by place therefore need a second number, the drafted tokens, which tells whether
all places were tried; :class:`Shortfall` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.traceset import TraceError

Floats = NDArray[np.float64]

MAX_COUNT = 10**15
"""Largest count that is believed."""
MAX_PLACES = MAX_RUN_LENGTH
"""Most drafts in a round."""
ASSUMED = "drafted tokens are not in the file: taken for granted that every round drafted {places}"
"""What to note where nothing tells whether all places were tried."""
SHORTFALL_TOLERANCE = 0.01
"""Missing drafts, as a share of the rounds that reached the last place, that are let pass (and noted)."""


@dataclass(frozen=True)
class RoundCounts:
    """How often each place of a round was tried and accepted.

    Attributes:
        tried: float64 ``[n, places]``: per request (or one row for all), rounds whose drafts before place
            ``j`` were all accepted and that drafted place ``j``.
        accepted: float64 ``[n, places]``: those of them that accepted it.
        tokens: int64 ``[n]``: output tokens of each request; 0 where not known.
        per_request: Whether rows are requests. If not, there is one row, and nothing is known of the spread.
        origin: What was read.
        left_out: Records of the file that hold no rounds with drafts and count for nothing.
        notes: What a reader of the figures should know: what was left out and why, what had to be assumed.
    """

    tried: Floats
    accepted: Floats
    tokens: NDArray[np.int64]
    per_request: bool
    origin: str
    left_out: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes and ranges.

        Raises:
            TraceError: Counts that cannot be.
        """
        if self.tried.ndim != 2 or self.tried.shape != self.accepted.shape or 0 in self.tried.shape:
            raise TraceError(f"{self.origin}: counts must be tables of requests by places")
        if not self.per_request and len(self.tried) != 1:
            raise TraceError(f"{self.origin}: aggregated counts have one row")
        if self.tried.shape[1] > MAX_PLACES:
            raise TraceError(f"{self.origin}: more than {MAX_PLACES} drafts in a round")
        for values in (self.tried, self.accepted):
            if not np.isfinite(values).all() or (values < 0).any():
                raise TraceError(f"{self.origin}: counts must be finite and not negative")
        if (self.accepted > self.tried * (1 + 1e-9) + 1e-6).any():
            raise TraceError(f"{self.origin}: more drafts accepted than tried")
        if not self.tried[:, 0].sum() > 0:
            raise TraceError(f"{self.origin}: holds no round with drafts")

    @property
    def tokens_per_round(self) -> float:
        """Tokens per round that drafted, bonus token included."""
        return 1.0 + float(self.accepted.sum() / self.tried[:, 0].sum())

    @property
    def acceptance(self) -> Floats:
        """float64 ``[places]``: acceptance by place, given the places before; NaN at a place never tried."""
        tried = self.tried.sum(axis=0)
        return np.where(tried > 0, self.accepted.sum(axis=0) / np.maximum(tried, 1e-300), np.nan)


def count_of(number: int, what: str) -> str:
    """Return ``1 line``, ``2 lines``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def half_unit(value: str | float) -> float:
    """Return half a unit of a number's last printed digit: by how much rounding may have changed it."""
    text = value if isinstance(value, str) else repr(value)
    digits, _, exponent = text.strip().lower().partition("e")
    try:
        return float(0.5 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])))
    except (ValueError, OverflowError):
        return 0.0


def check_printed(printed: float, half: float, exact: float, what: str, counted: str, where: str) -> None:
    """Check a number of a file against what others in the file make of it.

    Args:
        printed: The number.
        half: Half a unit of its last digit.
        exact: What the other numbers make.
        what: The number's name.
        counted: What makes ``exact``, in words.
        where: File and line.

    Raises:
        TraceError: They differ by more than rounding.
    """
    # A whole unit of the last digit: some programs cut digits off instead of rounding.
    if not abs(printed - exact) <= 2.0 * half * (1 + 1e-6) + 1e-9 * abs(exact):
        raise TraceError(f"{where}: {what} is {printed:g}, but {counted} make {exact:.6g}")


def check_falling(values: Sequence[float], name: str, where: str) -> None:
    """Check acceptance by place, which counts rounds that got *beyond* a place and so cannot rise.

    Raises:
        TraceError: It rises.
    """
    for place in range(1, len(values)):
        if values[place] > values[place - 1] * (1 + 1e-9) + 1e-9:
            raise TraceError(
                f"{where}: {name} rises from {values[place - 1]:g} to {values[place]:g} at place "
                f"{place + 1}: "
                "these must be rates of all rounds, not of those that came so far"
            )


def reached_by_place(histogram: Sequence[float], places: int) -> Floats:
    """Return float64 ``[places + 1]``: rounds that accepted at least 0, 1, ... drafts, from a histogram."""
    at_least = np.zeros(places + 1)
    values = np.asarray(histogram, dtype=np.float64)
    at_least[: len(values)] = values[::-1].cumsum()[::-1]
    return at_least


def trials(reached: Floats, drafted: Floats, where: str) -> Floats:
    """Return how often each place was tried, where the number of rounds that drafted it is known.

    How many of the rounds that drafted a place had accepted all before it is not known exactly unless every
    round drafted the same; it is estimated as if the length of a draft did not depend on how it fares, within
    the bounds that the counts leave.

    Args:
        reached: float64 ``[places + 1]``: rounds, then accepted drafts by place.
        drafted: float64 ``[places]``: rounds that drafted each place.
        where: File and line.

    Returns:
        float64 ``[places]``.

    Raises:
        TraceError: Counts that do not fit together.
    """
    slack = 1e-6 + 1e-9 * float(reached[0])
    before = np.concatenate([reached[:1], drafted[:-1]])
    if (rising := np.flatnonzero(drafted > before + slack)).size:
        place = int(rising[0])
        raise TraceError(
            f"{where}: place {place + 1} was drafted {drafted[place]:g} times, more often than the place "
            "before "
            f"it or than there were rounds ({before[place]:g})"
        )
    if (drafted < reached[1:] - slack).any():
        place = int(np.flatnonzero(drafted < reached[1:] - slack)[0])
        raise TraceError(
            f"{where}: place {place + 1} accepted {reached[place + 1]:g} drafts of {drafted[place]:g} drafted"
        )
    came = np.concatenate([drafted[:1], reached[1:-1]])
    shorter = before - drafted
    shorter[0] = 0.0
    high = np.minimum(came, drafted)
    low = np.maximum(reached[1:], came - shorter)
    share = np.where(before > 0, drafted / np.maximum(before, 1e-300), 0.0)
    share[0] = 1.0
    return np.asarray(np.clip(came * share, np.minimum(low, high), high))


class Shortfall:
    """Compares drafted tokens with rounds times places over the records of a file.

    Attributes:
        missing: Tokens by which rounds fell short of drafting all places.
    """

    def __init__(self, hint: str) -> None:
        """Remember what to advise.

        Args:
            hint: What file or option would have the counts of trials.
        """
        self.missing = 0.0
        self._hint = hint
        self._first: tuple[str, str, float, float, int] | None = None

    def add(self, where: str, name: str, drafted: float, rounds: float, places: int) -> None:
        """Look at a record.

        Args:
            where: File and line.
            name: The field that holds the drafted tokens.
            drafted: Drafted tokens.
            rounds: Rounds.
            places: Drafts in a round of full length.
        """
        missing = rounds * places - drafted
        if missing <= 1e-6 * drafted:
            return
        self.missing += missing
        if self._first is None:
            self._first = where, name, drafted, rounds, places

    def notes(self, reached_last: float) -> tuple[str, ...]:
        """Return what to note, if little is missing.

        Args:
            reached_last: Rounds that came to the last place, which a missing draft may be one of.

        Raises:
            TraceError: So much is missing that acceptance by place cannot be known.
        """
        if self._first is None:
            return ()
        where, name, drafted, rounds, places = self._first
        if self.missing > SHORTFALL_TOLERANCE * reached_last:
            raise TraceError(
                f"{where}: {name} {drafted:.10g} is fewer than {rounds:.10g} rounds x {places} places = "
                f"{rounds * places:.10g}: rounds drafted fewer tokens than the most, and a place that a "
                "round "
                "did not try is no rejection; which places were tried is not in the file, so acceptance by "
                f"place cannot be had from it. {self._hint}"
            )
        return (
            f"{self.missing:.0f} drafts fewer than rounds times places: some rounds drafted less; changes "
            f"acceptance at a place by at most {SHORTFALL_TOLERANCE:.0%}",
        )


def aggregate(
    reached: Floats, tried: Floats | None, origin: str, left_out: int = 0, notes: tuple[str, ...] = ()
) -> RoundCounts:
    """Return counts of all requests together.

    Args:
        reached: float64 ``[places + 1]``: rounds, then accepted drafts by place.
        tried: float64 ``[places]``: trials by place; by default each round tried what it came to.
        origin: What was read.
        left_out: Records without rounds.
        notes: What to know.
    """
    if tried is None:
        tried = reached[:-1]
    return RoundCounts(
        tried[None, :], reached[None, 1:], np.zeros(1, np.int64), False, origin, left_out, notes
    )


@dataclass(frozen=True)
class Request:
    """Rounds of one request.

    Attributes:
        reached: float64 ``[places + 1]``: its rounds, then accepted drafts by place.
        tried: float64 ``[places]``: trials by place.
        tokens: Output tokens.
    """

    reached: Floats
    tried: Floats
    tokens: int


def per_request(
    requests: Sequence[Request], places: int, origin: str, left_out: int = 0, notes: Sequence[str] = ()
) -> RoundCounts:
    """Return counts of requests one by one.

    Args:
        requests: At least one.
        places: Places of the table; those of no request are wider.
        origin: What was read.
        left_out: Requests without rounds.
        notes: What to know.
    """
    tried = np.array([np.pad(r.tried, (0, places - len(r.tried))) for r in requests])
    accepted = np.array([np.pad(r.reached[1:], (0, places + 1 - len(r.reached))) for r in requests])
    tokens = np.array([r.tokens for r in requests], np.int64)
    return RoundCounts(tried, accepted, tokens, True, origin, left_out, tuple(notes))


def file_notes(left_out: int, again: int, foreign: int) -> list[str]:
    """Return what to note of a file of responses.

    Args:
        left_out: Requests without rounds.
        again: Messages of requests that were there already.
        foreign: Lines of other programs before the first message.
    """
    notes = []
    if left_out:
        notes.append(f"{count_of(left_out, 'request')} left out: no rounds with drafts")
    if again:
        notes.append(f"{count_of(again, 'message')} passed over: of a request that is there already")
    if foreign:
        notes.append(f"{count_of(foreign, 'line')} before the first JSON object passed over")
    return notes
