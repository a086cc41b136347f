"""Decisions, action spaces (the lists that actions index into), and action masks."""

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
    """The quantity that a stop rule compares with its threshold; see :func:`dsd_env.laws.stopping.doubts`."""

    TOP1 = stopping.TOP1
    SURVIVAL = stopping.SURVIVAL
    ENTROPY = stopping.ENTROPY
    BOUND = stopping.BOUND


class StopRule(NamedTuple):
    """A rule that ends a draft before its speculation length, by the drafter's confidence.

    Attributes:
        kind: The quantity that the rule compares with the threshold.
        threshold: The threshold: a probability (TOP1, SURVIVAL, BOUND) or a root of nats (ENTROPY).
        least: The fewest drafts that the rule leaves. With 0 there may be none, unless the rule keeps the
            doubted token.
        keeps: Whether the doubted token, at which the rule ends a round's draft, is part of the draft. If
            not, its draft step is spent and the token is dropped.
    """

    kind: StopKind
    threshold: float
    least: int = 1
    keeps: bool = True


class Decision(NamedTuple):
    """One scheduling decision; it opens one round of one request.

    Attributes:
        gamma: Speculation length in tokens; 0 is plain decoding. With a stop rule, the most drafts of the
            round.
        batch_size: B. At admission, how far the request yields to others: it enters its target once fewer
            than `max_num_seqs` / B requests are resident there. Afterwards, the smallest batch in which the
            request's drafts should be verified, if they are made anywhere but on the target's GPUs. Both
            waits are limited; 1 waits nowhere.
        placement: Index into the request's candidate list.
        stop: Rule that ends the draft before `gamma`; None: the scenario's `protocol.confidence_stop` holds,
            if it is set. Action spaces offer the rules of the scenario's `actions.stop_thresholds`.
    """

    gamma: int
    batch_size: int
    placement: int
    stop: StopRule | None = None

    def __repr__(self) -> str:
        """Return the decision as Python code, without `stop` if that is None."""
        parts = zip(self._fields, self, strict=True)
        return f"Decision({', '.join(f'{name}={value!r}' for name, value in parts if value is not None)})"


def stop_at(threshold: float) -> StopRule:
    """Return the stop rule that an entry of `stop_thresholds` stands for.

    This is SpecDec++'s rule (arXiv 2405.19715): the draft ends after the token that raises the probability of
    some token being rejected, as estimated by the drafter, above the threshold. A draft has at least two
    tokens.
    """
    return StopRule(StopKind.SURVIVAL, threshold, stopping.LEAST_IN_DOUBT)


def check_decision(decision: Decision, largest_gamma: int, n_placements: int) -> None:
    """Refuse a decision that is out of range; one that is in range but impossible now is resolved instead.

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
        candidate: The candidate used.
        gamma: The speculation length used.
        batch_size: The batch size used.
        reason: Why the decision was changed (``no_drafter``, ``batch_clipped``, ``target_down``); None if it
            was not.
    """

    candidate: CandidateView
    gamma: int
    batch_size: int
    reason: str | None


def resolve(view: DecisionView, decision: Decision, max_num_seqs: Sequence[int]) -> Resolved:
    """Return a decision in the form in which it can be executed.

    If the target is believed down, the first candidate with the same drafter and branches, at a target
    believed up, takes its place (``target_down``). Drafting where no drafter is available becomes plain
    decoding at that candidate's target (``no_drafter``). A batch size above the target's limit is clipped
    (``batch_clipped``). The first of these that applies is the reason. The result depends on the speculation
    length only by whether that is 0.

    Args:
        view: What the controller knows.
        decision: The decision, with a placement within the candidate list.
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
    """The action lists of a scenario, and the translation between indices and decisions.

    Attributes:
        gammas: Speculation lengths, increasing, the first 0.
        batch_sizes: Batch sizes, increasing.
        n_placements: Length of the candidate list, including candidates that only pad the list.
        stop_thresholds: Thresholds, increasing. Each adds an entry to the speculation lengths, after
            `gammas`: the largest of `gammas` with the stop rule :func:`stop_at` of the threshold.
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
            n_placements: Length to which the candidate list is padded, so that scenarios with different
                numbers of candidates have the same action space. Default: the scenario's own number.

        Raises:
            ValueError: The scenario has more candidates than `n_placements`.
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
        """Speculation length of each entry of the first dimension, in tokens."""
        return tuple(longest for longest, _ in self.lengths)

    @property
    def lengths(self) -> tuple[tuple[int, float | None], ...]:
        """The entries of the first dimension: speculation length, and stop threshold or None."""
        stops = ((self.gammas[-1], threshold) for threshold in self.stop_thresholds)
        return (*((gamma, None) for gamma in self.gammas), *stops)

    @property
    def nvec(self) -> tuple[int, int, int]:
        """Sizes of the three dimensions (speculation length, batch size, placement)."""
        return len(self.gammas) + len(self.stop_thresholds), len(self.batch_sizes), self.n_placements

    @property
    def n_flat(self) -> int:
        """Number of flat actions, which combine the three dimensions into one (see :meth:`unflatten`)."""
        return math.prod(self.nvec)

    def indices(self, given: object, shape: tuple[int, ...], *, flat: bool = False) -> NDArray[np.integer]:
        """Return actions as an array of integers, without checking their ranges.

        Args:
            given: The actions: integers of any integer type, as an array or as lists.
            shape: The shape that the actions must have.
            flat: Whether the actions are flat (see :meth:`unflatten`).

        Raises:
            ValueError: The actions are not integers (floats such as 1.0, booleans and digits in a string do
                not count), or have another shape.
        """
        found = integers(given, shape)
        if found is not None:
            return found
        raise refused_action(given, shape, (self.n_flat,) if flat else self.nvec)

    def checked(self, given: object) -> NDArray[np.int64]:
        """Return one MultiDiscrete action, checked, as an array: int64, shape (3,).

        Raises:
            ValueError: The action is not in the action space; see :meth:`indices`.
        """
        found = self.indices(given, (3,))
        gamma, batch, placement = found.tolist()
        sizes = self.nvec
        if not (0 <= gamma < sizes[0] and 0 <= batch < sizes[1] and 0 <= placement < sizes[2]):
            raise refused_action(given, (3,), sizes)
        return found.astype(np.int64, copy=False)

    def decode(self, action: Sequence[int] | NDArray[np.integer]) -> Decision:
        """Return the decision that a MultiDiscrete action stands for.

        Args:
            action: Three indices.

        Raises:
            ValueError: The action is not three integers, or one of them is outside its dimension.
        """
        gamma, batch, placement = self.checked(action).tolist()
        return self.decision(gamma, batch, placement)

    def decision(self, gamma: int, batch: int, placement: int) -> Decision:
        """Return the decision that three indices stand for, without checking the indices."""
        past = gamma - len(self.gammas)
        if past < 0:
            return Decision(self.gammas[gamma], self.batch_sizes[batch], placement)
        stop = stop_at(self.stop_thresholds[past])
        return Decision(self.gammas[-1], self.batch_sizes[batch], placement, stop)

    def encode(self, decision: Decision) -> NDArray[np.int64]:
        """Return the MultiDiscrete action (int64, shape (3,)) of a decision on the lists.

        Raises:
            ValueError: The decision is not on the lists. The only stop rules on the lists are those of
                `stop_thresholds`.
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
        """Return a decision with the nearest threshold on the list, if its stop rule is :func:`stop_at`'s.

        Everything else stays as it is, whether it is on the lists or not.
        """
        stop = decision.stop
        if stop is None or not self.stop_thresholds or stop != stop_at(stop.threshold):
            return decision
        listed = min(self.stop_thresholds, key=lambda threshold: abs(threshold - stop.threshold))
        return decision._replace(stop=stop_at(listed))

    def offered_by(self, other: ActionSpace) -> NDArray[np.bool_]:
        """Return which entries of this space another space also has (bool, shape (sum(nvec),)).

        An entry of `stop_thresholds` is the same entry only if both spaces have the same largest gamma.
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

        A placement is masked if drafting there is impossible now, or if it only pads the list; candidate 0 is
        never masked. If no candidate can draft, all speculation lengths but 0 are masked. If a batch size has
        an effect at no candidate (:func:`dsd_env.laws.resolve.batch_matters`), all batch sizes but 1 are
        masked; otherwise those above the largest limit of the candidates at which it has one.
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
        """Return a mask in the form of ``MultiDiscrete.sample(mask=...)``: int8, one array per dimension.

        Args:
            mask: Concatenated mask, shape (sum(nvec),).
        """
        n_gamma, n_batch, _ = self.nvec
        return tuple(part.astype(np.int8) for part in np.split(mask, (n_gamma, n_gamma + n_batch)))

    def unflatten(self, actions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the MultiDiscrete actions (int64, shape (..., 3)) that flat actions stand for.

        Placement varies fastest, then batch size, then speculation length, as in ``numpy.unravel_index``.

        Args:
            actions: Integers below :attr:`n_flat`, of any shape.

        Raises:
            ValueError: An action is not an integer, or is outside ``Discrete(n_flat)``.
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

        The result ignores what the three indices mean together; :meth:`flat_mask` takes that into account.

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
        """Return which flat actions are carried out unchanged (bool, shape (n_flat,)).

        Unlike :meth:`mask`, this mask takes into account what the three indices mean together. It excludes
        exactly the actions that :func:`resolve` would change, and those that differ from another one only in
        a batch size without effect.

        Args:
            view: View of the decision now due.
            max_num_seqs: Largest batch size of each target, by number (``scenario.max_num_seqs``).
        """
        n_gamma, n_batch, n_placements = self.nvec
        # `resolve` depends on the speculation length only by whether that is 0.
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
    """Return the given values as an array of integers; None if they are not integers of that shape."""
    try:
        found = np.asarray(given)
    except (TypeError, ValueError):
        return None
    # NumPy turns booleans in a list of numbers into integers.
    mixed = not isinstance(given, np.ndarray) and _holds_bool(given)
    return found if found.dtype.kind in "iu" and found.shape == shape and not mixed else None


def refused_action(
    given: object, shape: tuple[int, ...], sizes: Sequence[int], world: int | None = None
) -> ValueError:
    """Return the error for an action outside the action space, the same for every environment.

    Args:
        given: The action.
        shape: The shape that the action should have.
        sizes: Sizes of the dimensions; a single one for flat actions.
        world: Index of the world that the action is for, if there are several worlds.
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
