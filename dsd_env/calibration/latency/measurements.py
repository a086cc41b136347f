"""Measured points: what every reader of measurements returns, and every fit takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY, Cell

__all__ = ["Imported", "MeasuredPoint", "MeasurementError", "phase_of", "unique_points"]

MAX_VERIFY_TOKENS = 17
"""Most new tokens of a sequence that counts as verification (16 drafts and the bonus position)."""


class MeasurementError(ValueError):
    """A measurement cannot be used; the message names file, line or row, field, and what is expected."""


@dataclass(frozen=True)
class MeasuredPoint:
    """Duration of one iteration of equal sequences.

    Attributes:
        batch: sequences in the iteration.
        q: new tokens of each sequence.
        context: tokens of each sequence that were cached before the iteration; a mean may be fractional.
        seconds: duration; the median where repeats are known.
        phase: ``decode``, ``verify`` or ``prefill``.
        origin: file and line (or row) it comes from, for messages.
        samples_s: durations of the repeats, if known.
        repeats: number of repeats, if known.
        std_s: standard deviation over repeats, if known.
        certain_unit: the file states the duration in two units that agree, so that no guess at its unit
            is needed.
    """

    batch: int
    q: int
    context: float
    seconds: float
    phase: str
    origin: str
    samples_s: tuple[float, ...] = ()
    repeats: int | None = None
    std_s: float | None = None
    certain_unit: bool = False

    @property
    def key(self) -> str:
        """Name of the point; the train/held-out split depends on nothing else."""
        chunk = "chunk_" if self.phase == PREFILL else ""
        return f"{chunk}b{self.batch}_q{self.q}_s{self.context:.10g}"

    def cell(self, weight: float = 1.0) -> Cell:
        """The point as a cell of a fit."""
        longest = self.context + self.q
        return Cell(
            key=self.key,
            region=self.phase,
            new_tokens=self.batch * self.q,
            kv_tokens=round(self.batch * longest),
            max_kv_multi_tokens=round(longest) if self.q > 1 else 0,
            seconds=self.seconds,
            weight=weight,
        )


@dataclass(frozen=True)
class Imported:
    """What one or several files hold.

    Attributes:
        points: measured points, keys unique.
        facts: what the files state: ``model``, ``device``, ``weight_bytes``, ``software``, as far as they do.
        notes: what was left out or is only approximate, for the profile and the user.
    """

    points: tuple[MeasuredPoint, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def phase_of(q: int) -> str:
    """Region of a point by its new tokens: 1 decodes, up to 17 verify, more are a prefill chunk."""
    return DECODE if q == 1 else VERIFY if q <= MAX_VERIFY_TOKENS else PREFILL


def unique_points(points: Iterable[MeasuredPoint]) -> tuple[MeasuredPoint, ...]:
    """Return the points, refusing a cell that is given twice with different numbers.

    A row that is repeated to the last digit (a file written twice into one) says nothing new and counts once.

    Raises:
        MeasurementError: naming both places.
    """
    seen: dict[str, MeasuredPoint] = {}
    for p in points:
        old = seen.setdefault(p.key, p)
        if old is not p and (old.seconds, old.samples_s, old.std_s) != (p.seconds, p.samples_s, p.std_s):
            raise MeasurementError(
                f"{p.origin}: batch {p.batch}, q {p.q}, context {p.context:g} was already given "
                f"({old.origin}) with {old.seconds:g} s, here {p.seconds:g} s; keep one of them"
            )
    return tuple(seen.values())
