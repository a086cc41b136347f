"""The interface of a source of acceptance, which is all that the simulator needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Label = Literal["measured", "fitted", "published", "synthetic"]

#: Longest run length any source returns; runs longer than this are reported as this.
MAX_RUN_LENGTH = 255

#: Largest rank recorded of a committed token among the draft's tokens; ranks beyond it are recorded as this.
MAX_RANK = 255


@dataclass(frozen=True)
class AcceptanceRealisation:
    """What one drafter would do at every output position of one request.

    Position ``s`` (from 0) is the index of the *next* output token to commit. A round of ``gamma``
    drafts that starts there accepts ``min(gamma, run_length[s])`` of them and commits one more.

    Attributes:
        run_length: int32 ``[n]``, accepted drafts of a round with unlimited drafts.
        top1_prob: float32 ``[n]``, top-1 probability of the draft's distribution at the position.
        entropy_nats: float32 ``[n]``, entropy of that distribution, nats.
        longest_run: For drafters whose proposals depend on where they started: the longest run the source
            knows; one of this length may be longer in truth. 0 for those that go by the true prefix alone.
        proposed: int32 ``[n]``, most tokens that a round from the position proposes, at least
            ``run_length``; ``None`` for drafters that always propose as many as they are asked for.
        guess: bool ``[n]``, whether the drafter's own token at the position is the one that the target
            committed there *without having seen a draft*. ``None``: wherever a verified draft is right.
        rank: uint8 ``[n]``, place of the committed token among the draft's tokens by probability, from 1; 255
            stands for all from there on. ``None`` if it is not known.
    """

    run_length: NDArray[np.int32]
    top1_prob: NDArray[np.float32]
    entropy_nats: NDArray[np.float32]
    longest_run: int = 0
    proposed: NDArray[np.int32] | None = None
    guess: NDArray[np.bool_] | None = None
    rank: NDArray[np.uint8] | None = None

    def proposed_at(self, start: int, gamma: int) -> int:
        """Return how many tokens a round of ``gamma`` drafts that begins anew at a position proposes."""
        return gamma if self.proposed is None else min(gamma, int(self.proposed[start]))

    def run_at(self, start: int, chain: int) -> int:
        """Return the run length at a position for a drafter that has not begun anew since an earlier one.

        A drafter whose proposals depend on where it started continues, in a window that was drafted ahead and
        kept, the run of the position where it last started, as far as that run is known. Beyond its end,
        where a right guess may lead, nothing is known but the run of the present position.

        Args:
            start: Position of the round.
            chain: Position at which the drafter began, `start` itself or before it.
        """
        run = int(self.run_length[chain])
        known = run < self.longest_run and (self.guess is None or run >= start - chain)
        return run - (start - chain) if known else int(self.run_length[start])

    def guessed_at(self, position: int, chain_start: int) -> bool:
        """Return whether the drafter's own token is the one that the target chose without seeing a draft.

        That is the target's bonus token, or one that it decoded alone. Under sampling it equals the drafter's
        sample less often than a verified draft is accepted: verification leans towards the draft.

        Args:
            position: Output position; False at the end of the output and beyond.
            chain_start: Position at which the drafter began, `position` itself or before it.
        """
        if position >= len(self.run_length):
            return False
        if self.guess is not None:
            return bool(self.guess[position])
        return self.run_at(position, chain_start) >= 1

    def guessed_after(self, start: int, drafted: int, chain_start: int) -> bool:
        """Return whether all of a verified window is right, and the drafter's guess of the token after it.

        Args:
            start: Position of the window.
            drafted: Drafts verified.
            chain_start: Position at which the drafter began, `start` itself or before it.
        """
        if start + drafted >= len(self.run_length):
            return False
        run = self.run_at(start, chain_start)
        if self.guess is None:  # the same run goes on
            return run > drafted
        return run >= drafted and self.guessed_at(start + drafted, chain_start)


@runtime_checkable
class AcceptanceSource(Protocol):
    """A source of acceptance: a replayed recording or a random model.

    Attributes:
        label: ``measured``, ``fitted`` to a measurement, ``published`` (a shape fitted elsewhere at the level
            that was published for the pair), or ``synthetic``.
        drafters: Names of the drafters it knows.
        kinds: Kinds of request it distinguishes; empty if none.
    """

    @property
    def label(self) -> Label: ...  # noqa: D102

    @property
    def drafters(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def kinds(self) -> tuple[str, ...]: ...  # noqa: D102

    def realise(
        self, seed: int, request: int, n_tokens: int, drafter: str, kinds: Sequence[str] | None = None
    ) -> AcceptanceRealisation:
        """Return what ``drafter`` would do for one request.

        A pure function of its arguments. A longer realisation begins with the shorter one.

        Args:
            seed: Episode seed.
            request: Number of the request.
            n_tokens: Output tokens of the request.
            drafter: One of :attr:`drafters`.
            kinds: Kinds of request to draw from; default all.

        Returns:
            Arrays of length ``n_tokens``.

        Raises:
            AcceptanceError: Unknown drafter or kind, or a negative length.
        """
        ...


class AcceptanceError(ValueError):
    """A source does not have what it was asked for, or its parameters are impossible."""


def check_request(source: AcceptanceSource, n_tokens: int, drafter: str, kinds: Sequence[str] | None) -> None:
    """Raise :class:`AcceptanceError` for arguments of ``realise`` that a source cannot serve."""
    if n_tokens < 0:
        raise AcceptanceError(f"n_tokens is {n_tokens}; it must not be negative")
    if drafter not in source.drafters:
        raise AcceptanceError(f"unknown drafter {drafter!r}; this source has: {', '.join(source.drafters)}")
    if kinds is not None:
        if not kinds:
            raise AcceptanceError("kinds is empty; give at least one kind, or None for all")
        if source.kinds and (unknown := [k for k in kinds if k not in source.kinds]):
            raise AcceptanceError(f"unknown kinds {unknown}; this source has: {', '.join(source.kinds)}")


def run_lengths(matches: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return, per position, how many matches in a row begin there.

    Args:
        matches: bool ``[n]``, whether the draft's token at the position is the true one.

    Returns:
        int32 ``[n]``; the last run ends where the array ends.
    """
    n = len(matches)
    index = np.arange(n, dtype=np.int32)
    next_mismatch = np.where(matches, np.int32(n), index)
    next_mismatch = np.minimum.accumulate(next_mismatch[::-1])[::-1]
    return np.asarray(next_mismatch - index, dtype=np.int32)
