"""What one iteration of a target costs, and what each sequence in it adds to that.

Pure functions of the batch: no time, no state. The steps of drafters on the same server come first, one
drafter's after the other's, and count into the iteration of everybody in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsd_env.sim.entities import StepTimer


@dataclass(frozen=True, slots=True)
class Share:
    """What one sequence brings into an iteration.

    Attributes:
        new_tokens: New tokens for the target: a prefill chunk, gamma + 1, or 1.
        kv_tokens: KV tokens it reads there, its new ones included.
        lag_tokens: Tokens that a drafter on the same server processes in its first pass; 0 if none does.
        draft_kv_tokens: Their KV tokens in that pass.
        gamma: Drafts that it makes.
        drafter: Its number.
        verifies: Whether it has drafts verified: more than one new token, and no prompt's.
    """

    new_tokens: int
    kv_tokens: int
    lag_tokens: int = 0
    draft_kv_tokens: int = 0
    gamma: int = 0
    drafter: int = -1
    verifies: bool = False


class _Passes:
    """The passes of one drafter on a target's server for the sequences of an iteration that use it.

    The first pass processes everybody's KV lag (and the prompts that it prefills along); pass j >= 2 has one
    token of every sequence that drafts at least j. A look-up takes one step for each sequence instead.
    """

    __slots__ = ("by_step", "lag", "lag_kv", "lag_longest", "sequences", "timer")

    def __init__(self, timer: StepTimer, shares: Sequence[Share]) -> None:
        self.timer = timer
        self.sequences = len(shares)
        self.lag = sum(share.lag_tokens for share in shares)
        self.lag_kv = sum(share.draft_kv_tokens for share in shares)
        # The two longest, so that the longest of the others is known for each.
        self.lag_longest = [0, 0]
        for share in shares:
            if share.lag_tokens > 1:
                _insert(self.lag_longest, share.draft_kv_tokens)
        self.by_step: list[tuple[int, int]] = []
        longest_draft = max(share.gamma for share in shares)
        for step in range(2, longest_draft + 1):
            contexts = [share.draft_kv_tokens for share in shares if share.gamma >= step]
            self.by_step.append((len(contexts), sum(contexts) + len(contexts) * (step - 1)))

    def time_s(self) -> float:
        """Return how long they take."""
        timer = self.timer
        if timer.per_round:
            return self.sequences * timer.step_s(1, 0, 0)
        time_s = timer.step_s(self.lag, self.lag_kv, self.lag_longest[0])
        for sequences, kv_tokens in self.by_step:
            time_s += timer.step_s(sequences, kv_tokens, 0)
        return time_s


class IterationCost:
    """The expected time of an iteration and the part of it that each sequence causes.

    Attributes:
        compute_s: Expected time of its kernels, drafting included.
        overhead_s: What the engine adds.
        duration_s: Expected time of the iteration, the sum of both.
    """

    __slots__ = (
        "_captured",
        "_kv",
        "_longest",
        "_new",
        "_passes",
        "_sequences",
        "_target",
        "_verifying",
        "compute_s",
        "duration_s",
        "overhead_s",
    )

    def __init__(
        self,
        target: StepTimer,
        drafters: Mapping[int, StepTimer],
        shares: Sequence[Share],
        captured: Sequence[int] = (),
    ) -> None:
        """Add up a batch.

        Args:
            target: Iteration times of the target.
            drafters: Step times of the drafters on the same server, by number in their order. Their passes
                run one after the other.
            shares: The batch.
            captured: Numbers of new tokens at which the iteration was captured, increasing; it runs at the
                next of them (CUDA graphs). Empty: at any.
        """
        self._target, self._captured = target, captured
        self._new = self._kv = 0
        # The two longest, so that the longest of the others is known for each.
        self._longest = [0, 0]
        self._sequences = len(shares)
        self._verifying = sum(share.verifies for share in shares)
        for share in shares:
            self._new += share.new_tokens
            self._kv += share.kv_tokens
            if share.new_tokens > 1:
                _insert(self._longest, share.kv_tokens)
        self._passes: dict[int, _Passes] = {}
        for number, timer in drafters.items():
            users = [share for share in shares if share.drafter == number]
            if users:
                self._passes[number] = _Passes(timer, users)
        target_s = self._target_s(self._new, self._kv, self._longest[0])
        drafting_s = 0.0
        for passes in self._passes.values():
            drafting_s += passes.time_s() + passes.timer.verify_share * target_s
        self.compute_s = target_s + drafting_s
        self.overhead_s = target.overhead_s(self._sequences, self._new, self._verifying)
        self.duration_s = self.compute_s + self.overhead_s

    def _target_s(self, new_tokens: int, kv_tokens: int, longest: int) -> float:
        """Return the time of the target's part, at the captured number of tokens if there is one."""
        return self._target.step_s(padded_tokens(new_tokens, self._captured), kv_tokens, longest)

    def caused_s(self, share: Share) -> float:
        """Return the part of the iteration's time that one of its sequences has to answer for.

        Of the target's own part that is the time by which it would be shorter without the sequence. Draft
        steps are shared by those that asked for them (Shapley's value of the airport game, Littlechild & Owen
        1973), since without one of two sequences a joint step takes about as long: by that difference alone
        nobody would ever gain by leaving.
        """
        widest = self._longest
        longest = widest[1] if share.new_tokens > 1 and share.kv_tokens == widest[0] else widest[0]
        with_s = self._target_s(self._new, self._kv, widest[0])
        caused_s = with_s + self.overhead_s
        if self._new > share.new_tokens:
            caused_s -= self._target_s(self._new - share.new_tokens, self._kv - share.kv_tokens, longest)
            others = self._sequences - 1, self._new - share.new_tokens, self._verifying - share.verifies
            caused_s -= self._target.overhead_s(*others)
        if share.drafter < 0:
            return caused_s
        return caused_s + self._drafting_share_s(share, with_s)

    def _drafting_share_s(self, share: Share, target_s: float) -> float:
        """Return a sequence's share of its shared drafter's time; the shares of a batch sum to that time.

        Step j is shared equally by all that draft at least j tokens. The first pass is shared equally as far
        as it would take if everybody had a lag of one token; the rest in proportion to the further tokens.
        What verifying with the drafter adds to the target's part is shared equally.
        """
        passes = self._passes[share.drafter]
        drafter, users = passes.timer, passes.sequences
        share_s = drafter.verify_share * target_s / users
        if drafter.per_round:
            return share_s + drafter.step_s(1, 0, 0)
        least_s = drafter.step_s(users, passes.lag_kv, 0)
        share_s += least_s / users
        more = passes.lag - users
        if more > 0:
            first_s = drafter.step_s(passes.lag, passes.lag_kv, passes.lag_longest[0])
            share_s += (first_s - least_s) * (share.lag_tokens - 1) / more
        for sequences, kv_tokens in passes.by_step[: max(0, share.gamma - 1)]:
            share_s += drafter.step_s(sequences, kv_tokens, 0) / sequences
        return share_s


def padded_tokens(new_tokens: int, captured: Sequence[int]) -> int:
    """Return the captured number of tokens that an iteration runs at; its own beyond the largest."""
    at = bisect_left(captured, new_tokens)
    return new_tokens if at == len(captured) else captured[at]


def _insert(two_largest: list[int], value: int) -> None:
    if value > two_largest[0]:
        two_largest[0], two_largest[1] = value, two_largest[0]
    elif value > two_largest[1]:
        two_largest[1] = value
