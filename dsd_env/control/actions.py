"""Decisions, the lists that actions index into, and masks."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.view import CandidateView, DecisionView
from dsd_env.laws import resolve as laws
from dsd_env.laws import stopping
from dsd_env.scenario.schema import Scenario


class StopKind(IntEnum):
    """What a stop rule goes by; see :func:`dsd_env.laws.stopping.doubts`."""

    TOP1 = stopping.TOP1
    SURVIVAL = stopping.SURVIVAL
    ENTROPY = stopping.ENTROPY
    BOUND = stopping.BOUND


class StopRule(NamedTuple):
    """When a draft ends before its speculation length, by the drafter's confidence.

    Attributes:
        kind: What it goes by.
        threshold: Its threshold: a probability (TOP1, SURVIVAL, BOUND) or a root of nats (ENTROPY).
        least: The fewest drafts that it leaves; 0: perhaps none, if it does not keep the doubted token.
        keeps: Whether the token at which it ends a round's draft is part of the draft. Otherwise that costs
            its step, and nobody gets it.
    """

    kind: StopKind
    threshold: float
    least: int = 1
    keeps: bool = True


class Decision(NamedTuple):
    """One scheduling decision; it opens one round of one request.

    Attributes:
        gamma: Speculation length in tokens; 0 is plain decoding. With a stop rule, the longest.
        batch_size: B. At admission, how far the request stands back for others: it enters its target once
            fewer than `max_num_seqs` / B requests are resident there. Afterwards, the smallest batch that its
            verification wants to be part of, where drafts are made elsewhere than on the target's GPUs. Both
            waits are limited; 1 waits nowhere.
        placement: Index into the request's candidate list.
        stop: When the draft ends before that; None: by the scenario's `protocol.confidence_stop`, if it has
            one. The action spaces have those of the scenario's `actions.stop_thresholds`.
    """

    gamma: int
    batch_size: int
    placement: int
    stop: StopRule | None = None

    def __repr__(self) -> str:
        """Return it as one would write it: without a stop rule if it has none."""
        parts = zip(self._fields, self, strict=True)
        return f"Decision({', '.join(f'{name}={value!r}' for name, value in parts if value is not None)})"


def stop_at(threshold: float) -> StopRule:
    """Return the stop rule of an entry of `stop_thresholds`.

    The draft ends behind the token with which the probability that some token of it is rejected, as the
    drafter sees it, is above the threshold, and has two tokens at least: SpecDec++'s rule (arXiv 2405.19715).
    """
    return StopRule(StopKind.SURVIVAL, threshold, stopping.LEAST_IN_DOUBT)


def check_decision(decision: Decision, largest_gamma: int, n_placements: int) -> None:
    """Refuse a decision that nobody could mean; what can be meant and not be done is resolved.

    Raises:
        ValueError: gamma, batch size, placement or a part of the stop rule is out of range.
    """
    gamma, batch_size, placement, stop = decision
    if not 0 <= gamma <= largest_gamma:
        raise ValueError(f"gamma = {gamma} is outside 0..{largest_gamma}")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    if not 0 <= placement < n_placements:
        raise ValueError(f"placement = {placement} is outside 0..{n_placements - 1}")
    if stop is not None:
        _check_stop(stop)


def _check_stop(stop: StopRule) -> None:
    if stop.kind not in tuple(StopKind):
        raise ValueError(f"stop.kind = {stop.kind!r} is not one of {', '.join(map(str, StopKind))}")
    low, high = (-math.inf, 1.0) if stop.kind == StopKind.BOUND else (0.0, 1.0)
    if stop.kind == StopKind.ENTROPY:
        high = math.inf
    if not (low <= stop.threshold <= high and math.isfinite(stop.threshold)):
        raise ValueError(
            f"stop.threshold = {stop.threshold} of {StopKind(stop.kind).name} is not a number in "
            f"{low:g}..{high:g}"
        )
    if stop.least < 0:
        raise ValueError(f"stop.least = {stop.least} must not be negative")


class Resolved(NamedTuple):
    """A decision as it is executed.

    Attributes:
        candidate: The candidate that is taken.
        gamma: Speculation length used.
        batch_size: Batch size used.
        reason: Why the decision was changed (``no_drafter``, ``batch_clipped``, ``target_down``); None if it
            was not.
    """

    candidate: CandidateView
    gamma: int
    batch_size: int
    reason: str | None


def resolve(view: DecisionView, decision: Decision, max_num_seqs: Sequence[int]) -> Resolved:
    """Return a decision as it can be executed.

    A target believed down is replaced by the first candidate's that is believed up (``target_down``);
    drafting where no drafter is available becomes plain decoding at that candidate's target (``no_drafter``);
    a batch size above the target's limit is clipped (``batch_clipped``). The first of these that applies is
    the reason. Of the speculation length it matters only whether it is 0.

    Args:
        view: What the controller knows.
        decision: What it decided; its placement is on the list.
        max_num_seqs: Largest batch size of each target, by number.
    """
    candidate = view.candidates[decision.placement]
    moved = False
    if not candidate.target.up:
        place = (candidate.site, candidate.edge_server, candidate.drafter, candidate.fanout)
        for other in view.candidates:
            if other.target.up and (other.site, other.edge_server, other.drafter, other.fanout) == place:
                candidate, moved = other, True
                break
    limit = max_num_seqs[candidate.target.index]
    gamma, batch_size, reason = laws.resolved(
        decision.gamma, decision.batch_size, moved, candidate.valid, limit
    )
    return Resolved(candidate, gamma, batch_size, laws.REASONS[reason])


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """The action lists of a scenario and the translation between indices and decisions.

    Attributes:
        gammas: Speculation lengths, increasing, the first 0.
        batch_sizes: Batch sizes, increasing.
        n_placements: Length of the candidate list, with the candidates that only fill it up.
        stop_thresholds: Further entries of the dimension of the speculation length, behind `gammas`: the
            largest of these with :func:`stop_at` each threshold, increasing.
    """

    gammas: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    n_placements: int
    stop_thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, scenario: Scenario, n_placements: int | None = None) -> ActionSpace:
        """Return the action space of a scenario.

        Args:
            scenario: The scenario.
            n_placements: Length to which the candidate list is filled up, so that scenarios with different
                numbers of candidates have one action space. Default: no more than the scenario's own.

        Raises:
            ValueError: The scenario has more candidates.
        """
        own = scenario.n_placements
        if n_placements is not None and n_placements < own:
            raise ValueError(
                f"n_placements = {n_placements} is less than the {own} candidates of scenario "
                f"{scenario.name!r}"
            )
        actions = scenario.actions
        return cls(actions.gammas, actions.batch_sizes, n_placements or own, actions.stop_thresholds)

    @property
    def windows(self) -> tuple[int, ...]:
        """The longest draft of each entry of the first dimension, in tokens."""
        return tuple(longest for longest, _ in self.lengths)

    @property
    def lengths(self) -> tuple[tuple[int, float | None], ...]:
        """The entries of the first dimension: the longest draft, and its stop threshold or None."""
        stops = ((self.gammas[-1], threshold) for threshold in self.stop_thresholds)
        return (*((gamma, None) for gamma in self.gammas), *stops)

    @property
    def nvec(self) -> tuple[int, int, int]:
        """Sizes of the three dimensions (speculation length, batch size, placement)."""
        return len(self.gammas) + len(self.stop_thresholds), len(self.batch_sizes), self.n_placements

    @property
    def n_flat(self) -> int:
        """Number of actions when the three dimensions are one (see :meth:`unflatten`)."""
        return math.prod(self.nvec)

    def indices(self, given: object, shape: tuple[int, ...], *, flat: bool = False) -> NDArray[np.integer]:
        """Return actions as an array of integers, without checking their ranges.

        Args:
            given: The actions: integers of any integer type, as an array or as lists.
            shape: The shape that they must have.
            flat: They are flat actions (see :meth:`unflatten`).

        Raises:
            ValueError: They are no integers (numbers such as 1.0, truth values and digits in a text are
                not), or have another shape.
        """
        found = integers(given, shape)
        if found is not None:
            return found
        raise refused_action(given, shape, (self.n_flat,) if flat else self.nvec)

    def checked(self, given: object) -> NDArray[np.int64]:
        """Return one MultiDiscrete action, checked, as an array: int64, shape (3,).

        Raises:
            ValueError: It is not in the action space; see :meth:`indices`.
        """
        found = self.indices(given, (3,))
        gamma, batch, placement = found.tolist()
        sizes = self.nvec
        if not (0 <= gamma < sizes[0] and 0 <= batch < sizes[1] and 0 <= placement < sizes[2]):
            raise refused_action(given, (3,), sizes)
        return found.astype(np.int64, copy=False)

    def decode(self, action: Sequence[int] | NDArray[np.integer]) -> Decision:
        """Return the decision of a MultiDiscrete action.

        Args:
            action: Three indices.

        Raises:
            ValueError: Not three integers, or one outside its dimension.
        """
        gamma, batch, placement = self.checked(action).tolist()
        return self.decision(gamma, batch, placement)

    def decision(self, gamma: int, batch: int, placement: int) -> Decision:
        """Return the decision of three indices, unchecked."""
        past = gamma - len(self.gammas)
        if past < 0:
            return Decision(self.gammas[gamma], self.batch_sizes[batch], placement)
        stop = stop_at(self.stop_thresholds[past])
        return Decision(self.gammas[-1], self.batch_sizes[batch], placement, stop)

    def encode(self, decision: Decision) -> NDArray[np.int64]:
        """Return the MultiDiscrete action (int64, shape (3,)) of a decision on the lists.

        Raises:
            ValueError: The decision is not on the lists; of stop rules these have the thresholds' alone.
        """
        try:
            gamma, batch = self._length_index(decision), self.batch_sizes.index(decision.batch_size)
        except ValueError:
            stops = f", stop_thresholds={self.stop_thresholds}" if decision.stop is not None else ""
            raise ValueError(
                f"{decision} is not on the lists gammas={self.gammas}, batch_sizes={self.batch_sizes}{stops}"
            ) from None
        if not 0 <= decision.placement < self.n_placements:
            raise ValueError(f"{decision}: placement must be in 0..{self.n_placements - 1}")
        return np.array([gamma, batch, decision.placement], dtype=np.int64)

    def nearest(self, decision: Decision) -> Decision:
        """Return a decision with the nearest threshold on the list, if its stop rule is one of a threshold.

        All else stays as it is, whether it is on the lists or not.
        """
        stop = decision.stop
        if stop is None or not self.stop_thresholds or stop != stop_at(stop.threshold):
            return decision
        listed = min(self.stop_thresholds, key=lambda threshold: abs(threshold - stop.threshold))
        return decision._replace(stop=stop_at(listed))

    def offered_by(self, other: ActionSpace) -> NDArray[np.bool_]:
        """Return which of these entries another space has, too (bool, shape (sum(nvec),)).

        An entry of `stop_thresholds` is the same entry only where the longest drafts are equally long.
        """
        return np.concatenate(
            [
                np.array([length in other.lengths for length in self.lengths], dtype=np.bool_),
                np.isin(self.batch_sizes, other.batch_sizes),
                np.arange(self.n_placements) < other.n_placements,
            ]
        )

    def _length_index(self, decision: Decision) -> int:
        gamma, stop = decision.gamma, decision.stop
        if stop is None or gamma == 0:
            return self.gammas.index(gamma)
        if stop != stop_at(stop.threshold):
            raise ValueError("it stops otherwise")
        return self.lengths.index((gamma, stop.threshold))

    def mask(self, view: DecisionView) -> NDArray[np.bool_]:
        """Return the concatenated mask (bool, shape (sum(nvec),)) of selectable indices.

        A placement is masked when drafting there is impossible now, or if it only fills the list up;
        candidate 0 never is. Gamma is masked down to 0 when no candidate can draft. Batch sizes are masked
        down to 1 where no candidate gives them an effect (:func:`dsd_env.laws.resolve.batch_matters`), and
        beyond the largest limit of those that do.
        """
        n_gamma, n_batch, n_placements = self.nvec
        mask = np.ones(sum(self.nvec), dtype=np.bool_)
        placements = [candidate.valid for candidate in view.candidates]
        if not any(placements):
            mask[1:n_gamma] = False
        placements[0] = True
        placements += [False] * (n_placements - len(placements))
        mask[n_gamma + n_batch :] = placements
        limits = [c.target.max_num_seqs for c in view.candidates if _batch_matters(c, c.valid)]
        largest = max(limits, default=1)
        mask[n_gamma + 1 : n_gamma + n_batch] = [batch_size <= largest for batch_size in self.batch_sizes[1:]]
        return mask

    def sample_mask(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int8], ...]:
        """Return a mask as ``MultiDiscrete.sample(mask=...)`` takes it: int8, one array per dimension.

        Args:
            mask: Concatenated mask, shape (sum(nvec),).
        """
        n_gamma, n_batch, _ = self.nvec
        return tuple(part.astype(np.int8) for part in np.split(mask, (n_gamma, n_gamma + n_batch)))

    def unflatten(self, actions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the MultiDiscrete actions (int64, shape (..., 3)) of flat ones.

        Placement varies fastest, then batch size, then speculation length, as in ``numpy.unravel_index``.

        Args:
            actions: Integers below :attr:`n_flat`, of any shape.

        Raises:
            ValueError: An action is no integer, or outside ``Discrete(n_flat)``.
        """
        indices = self.indices(actions, np.shape(actions), flat=True)
        outside = np.atleast_1d((indices < 0) | (indices >= self.n_flat))
        if outside.any():
            first = tuple(index[0] for index in outside.nonzero())
            world = int(first[0]) if indices.ndim else None
            raise refused_action(np.atleast_1d(indices)[first], (), (self.n_flat,), world)
        return np.stack(np.unravel_index(indices, self.nvec), axis=-1).astype(np.int64, copy=False)

    def flattened(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the flat actions that a mask by dimension allows (bool, shape (..., n_flat)).

        It cannot know what the three indices mean together; :meth:`flat_mask` does.

        Args:
            mask: Concatenated masks, shape (..., sum(nvec)).
        """
        n_gamma, n_batch, _ = self.nvec
        gamma, batch, placement = np.split(mask, (n_gamma, n_gamma + n_batch), axis=-1)
        valid: NDArray[np.bool_] = (
            gamma[..., :, None, None] & batch[..., None, :, None] & placement[..., None, None, :]
        )
        return valid.reshape(*mask.shape[:-1], self.n_flat)

    def flat_mask(self, view: DecisionView, max_num_seqs: Sequence[int]) -> NDArray[np.bool_]:
        """Return which flat actions are carried out as they are (bool, shape (n_flat,)).

        Unlike :meth:`mask` it knows what the three indices mean together: it excludes exactly the actions
        that :func:`resolve` would change, and those that differ from another only in a batch size without
        effect.

        Args:
            view: The due decision.
            max_num_seqs: Largest batch size of each target, by number (``scenario.max_num_seqs``).
        """
        n_gamma, n_batch, n_placements = self.nvec
        # Resolving depends on the speculation length only by whether it is 0.
        kinds = min(n_gamma, 2)
        valid = np.zeros((kinds, n_batch, n_placements), dtype=np.bool_)
        for gamma, batch, placement in np.ndindex(kinds, n_batch, min(n_placements, len(view.candidates))):
            decision = Decision(self.windows[gamma], self.batch_sizes[batch], placement)
            resolved = resolve(view, decision, max_num_seqs)
            as_given = resolved.reason is None
            valid[gamma, batch, placement] = as_given and (
                batch == 0 or _batch_matters(resolved.candidate, gamma > 0)
            )
        mask: NDArray[np.bool_] = np.repeat(valid, [1, n_gamma - 1][:kinds], axis=0)
        return mask.reshape(self.n_flat)


def _batch_matters(candidate: CandidateView, drafts: bool) -> bool:
    """Return whether a batch size has an effect at a candidate."""
    enters = candidate.target.up and not candidate.same_target
    return laws.batch_matters(enters, drafts, candidate.coalesces)


def integers(given: object, shape: tuple[int, ...]) -> NDArray[np.integer] | None:
    """Return what was given as an array of integers, or None if it is no integers or has another shape."""
    try:
        found = np.asarray(given)
    except (TypeError, ValueError):
        return None
    # NumPy turns truth values in a list of numbers into integers.
    mixed = not isinstance(given, np.ndarray) and _holds_bool(given)
    return found if found.dtype.kind in "iu" and found.shape == shape and not mixed else None


def refused_action(
    given: object, shape: tuple[int, ...], sizes: Sequence[int], world: int | None = None
) -> ValueError:
    """Return the error of an action that is not in the action space, the same for every environment.

    Args:
        given: What was given.
        shape: The shape that it should have.
        sizes: Sizes of the dimensions; one for flat actions.
        world: Number of the world whose action it is, where there are several.
    """
    flat = len(sizes) == 1
    space = f"Discrete({sizes[0]})" if flat else f"MultiDiscrete({list(sizes)})"
    highest = ", ".join(f"0..{size - 1}" for size in sizes)
    ranges = highest if flat else f"{highest} (speculation length, batch size, placement)"
    plain = given.tolist() if isinstance(given, (np.ndarray, np.generic)) else given
    return ValueError(
        f"{'' if world is None else f'world {world}: '}action {reprlib.repr(plain)} is outside {space}: "
        f"it is {_kind(given)}; expected integers of shape {shape} in {ranges}"
    )


def _kind(given: object) -> str:
    try:
        found = np.asarray(given)
    except (TypeError, ValueError):
        return f"{type(given).__name__} of no array's shape"
    return f"{'bool' if _holds_bool(given) else found.dtype} of shape {found.shape}"


def _holds_bool(given: object) -> bool:
    if isinstance(given, (list, tuple)):
        return any(_holds_bool(each) for each in given)
    return isinstance(given, (bool, np.bool_))


def snap(values: Sequence[int], wanted: float) -> int:
    """Return the largest of the increasing ``values`` that is at most ``wanted`` (the first if none)."""
    best = values[0]
    for value in values:
        if value <= wanted:
            best = value
    return best


def snap_up(values: Sequence[int], wanted: float) -> int:
    """Return the smallest of the increasing ``values`` that is at least ``wanted`` (the last if none)."""
    for value in values:
        if value >= wanted:
            return value
    return values[-1]


def selectable(candidates: Sequence[CandidateView]) -> list[int]:
    """Return the indices of candidates where drafting is possible now."""
    return [index for index, candidate in enumerate(candidates) if candidate.valid]
