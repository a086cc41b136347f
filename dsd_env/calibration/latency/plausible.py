"""Guesses at wrong units, all in one place: what they look at, and who may overrule them.

A guess loses against a file that states durations in two units that agree
(:attr:`~dsd_env.calibration.latency.measurements.MeasuredPoint.certain_unit`), and against the user's word
(``--trust-units``). Then it is a note, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsd_env.calibration.latency.measurements import MeasuredPoint, MeasurementError

__all__ = ["LONGEST_S", "SHORTEST_S", "TRUST_HINT", "check_plausible"]

SHORTEST_S, LONGEST_S = 1e-6, 60.0
"""Bounds of one iteration; outside them a number is probably in another unit."""

TRUST_HINT = "; if the unit is right, say --trust-units"

_MAX_BANDWIDTH = 50e12
"""No device reads its weights faster (bytes per second)."""
_MIN_BANDWIDTH = 8e9
"""Few devices read them slower: a Raspberry Pi 5 reaches 10e9, one of generation 4 about 4e9 (bytes/s)."""
_MOST_NOTES = 3


@dataclass(frozen=True)
class _Doubt:
    """What looks odd about some points: a fact, and what it may come from."""

    points: tuple[MeasuredPoint, ...]
    fact: str
    guess: str


def check_plausible(
    points: Sequence[MeasuredPoint],
    weight_bytes: float | None = None,
    field_name: str = "seconds",
    *,
    trust_units: bool = False,
) -> list[str]:
    """Refuse points whose durations are probably in another unit.

    Four signs: a duration outside 1 µs … 60 s; a decode step so fast that the weights would be read at more
    than 50 TB/s, or so slow that a device reads them at less than 8 GB/s (a Raspberry Pi 5 reaches 10); one
    duration more than 20 times another of an iteration that does as much or more; and time that *falls* where
    batch, q and context grow (a duration per token given as that of the iteration).

    Args:
        points: what was read.
        weight_bytes: bytes of weights over all devices, if known.
        field_name: name of the field in messages.
        trust_units: the user says that the unit is right.

    Returns:
        What looked odd and was taken as it is, since the unit is certain or trusted; for the profile's notes.

    Raises:
        MeasurementError: naming the point's origin, the field, the unit it looks like, and the option that
            overrules the guess.
    """
    notes = []
    for doubt in _doubts(points, weight_bytes, field_name):
        if not trust_units and not all(p.certain_unit for p in doubt.points):
            raise MeasurementError(f"{doubt.fact}{doubt.guess}{TRUST_HINT}")
        why = "--trust-units" if trust_units else "the file's units are certain"
        notes.append(f"{doubt.fact}: taken as it is ({why})")
    more = len(notes) - _MOST_NOTES
    return [*notes[:_MOST_NOTES], *([f"{more} more such points taken as they are"] if more > 0 else [])]


def _doubts(points: Sequence[MeasuredPoint], weight_bytes: float | None, field_name: str) -> Iterator[_Doubt]:
    for p in points:
        if not SHORTEST_S <= p.seconds <= LONGEST_S:
            guess = "milli- or microseconds, or tokens/s" if p.seconds > LONGEST_S else "not seconds"
            fact = (
                f"{p.origin}: {field_name} = {p.seconds:g} must be between {SHORTEST_S:g} and {LONGEST_S:g} "
                "s for one iteration"
            )
            yield _Doubt((p,), fact, f"; it looks like {guess}")
    yield from _decode_doubts([p for p in points if p.q == 1], weight_bytes or 0.0, field_name)
    yield from _order_doubts(points, field_name)


def _decode_doubts(decode: Sequence[MeasuredPoint], weight_bytes: float, field_name: str) -> Iterator[_Doubt]:
    """Doubts about the fastest decode step."""
    if not decode:
        return
    fastest = min(decode, key=lambda p: p.seconds)
    told = f"{fastest.origin}: {field_name} = {fastest.seconds:g}"
    if weight_bytes / fastest.seconds > _MAX_BANDWIDTH:
        fact = f"{told}: reading {weight_bytes:.3g} bytes of weights that fast takes more than 50 TB/s"
        yield _Doubt((fastest,), fact, "; is it per token or layer, or are the weights' bytes wrong?")
    # Without the size: 2 s a step is slower than an 8B model on a Raspberry Pi.
    limit = max(weight_bytes / _MIN_BANDWIDTH, 0.05) if weight_bytes else 2.0
    if fastest.seconds > limit:
        fact = f"{told} is the fastest decode step; slower than {limit:.3g} s is rare for such weights"
        yield _Doubt((fastest,), fact, " and looks like milliseconds or tokens/s")


def _order_doubts(points: Sequence[MeasuredPoint], field_name: str) -> Iterator[_Doubt]:
    """Doubts about points of which one does as much as the other or more."""
    # Four times the work in less than half of the time, in many pairs: one pair may be a disturbed machine.
    pairs = 0
    wrong: list[tuple[MeasuredPoint, MeasuredPoint]] = []
    odd: set[str] = set()
    for a in points:
        for b in points:
            if not (b.batch >= a.batch and b.q >= a.q and b.context >= a.context):
                continue
            if a.seconds > 20.0 * b.seconds and a.key not in odd:
                odd.add(a.key)
                fact = (
                    f"{a.origin}: {field_name} = {a.seconds:g} is {a.seconds / b.seconds:.0f} times that of "
                    f"an iteration that does as much or more ({b.seconds:g}, {b.origin})"
                )
                yield _Doubt((a, b), fact, ": one of the two is in another unit")
            if b.batch * b.q >= 4 * a.batch * a.q:
                pairs += 1
                if b.seconds < 0.5 * a.seconds:
                    wrong.append((a, b))
    if wrong and len(wrong) > 0.3 * pairs:
        a, b = next(((a, b) for a, b in wrong if not (a.certain_unit and b.certain_unit)), wrong[0])
        fact = (
            f"{b.origin}: {field_name} = {b.seconds:g} is less than half of that of a smaller iteration "
            f"({a.seconds:g}, {a.origin}), as in {len(wrong)} of {pairs} such pairs"
        )
        yield _Doubt((a, b), fact, ": a duration per token, or tokens/s?")
