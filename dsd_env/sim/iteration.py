"""What one iteration of a target costs, and what each sequence in it adds to that.

Pure functions of the batch: no time, no state. The shared co-located drafter's steps come first and count
into the iteration of everybody in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from dsd_env.sim.entities import StepTimer


@dataclass(frozen=True, slots=True)
class Share:
    """What one sequence brings into an iteration.

    Attributes:
        new_tokens: New tokens for the target: a prefill chunk, gamma + 1, or 1.
        kv_tokens: KV tokens it reads there, its new ones included.
        lag_tokens: Tokens that the shared drafter processes in its first pass; 0 if it does not draft.
        draft_kv_tokens: Their KV tokens in that pass.
        gamma: Drafts that the shared drafter makes.
        verifies: Whether it has drafts verified: more than one new token, and no prompt's.
    """

    new_tokens: int
    kv_tokens: int
    lag_tokens: int = 0
    draft_kv_tokens: int = 0
    gamma: int = 0
    verifies: bool = False


class IterationCost:
    """The expected time of an iteration and the part of it that each sequence causes.

    Attributes:
        compute_s: Expected time of its kernels, drafting included.
        overhead_s: What the engine adds.
        duration_s: Expected time of the iteration, the sum of both.
    """

    __slots__ = (
        "_by_step",
        "_captured",
        "_drafter",
        "_drafting",
        "_kv",
        "_lag",
        "_lag_kv",
        "_lag_longest",
        "_longest",
        "_new",
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
        drafter: StepTimer | None,
        shares: Sequence[Share],
        captured: Sequence[int] = (),
    ) -> None:
        """Add up a batch.

        Args:
            target: Iteration times of the target.
            drafter: Step times of the drafter on the same GPUs, if there is one.
            shares: The batch.
            captured: Numbers of new tokens at which the iteration was captured, increasing; it runs at the
                next of them (CUDA graphs). Empty: at any.
        """
        self._target, self._drafter, self._captured = target, drafter, captured
        self._new = self._kv = self._lag = self._lag_kv = 0
        # The two longest, so that the longest of the others is known for each.
        self._longest = [0, 0]
        self._lag_longest = self._drafting = 0
        self._by_step: list[tuple[int, int]] = []
        self._sequences = len(shares)
        self._verifying = sum(share.verifies for share in shares)
        for share in shares:
            self._new += share.new_tokens
            self._kv += share.kv_tokens
            if share.new_tokens > 1:
                _insert(self._longest, share.kv_tokens)
            if share.lag_tokens:
                self._lag += share.lag_tokens
                self._lag_kv += share.draft_kv_tokens
                self._drafting += 1
                if share.lag_tokens > 1:
                    self._lag_longest = max(self._lag_longest, share.draft_kv_tokens)
        longest_draft = max((share.gamma for share in shares), default=0)
        for step in range(2, longest_draft + 1):
            contexts = [share.draft_kv_tokens for share in shares if share.gamma >= step]
            self._by_step.append((len(contexts), sum(contexts) + len(contexts) * (step - 1)))
        self.compute_s = self._target_s(self._new, self._kv, self._longest[0]) + self._drafting_s()
        self.overhead_s = target.overhead_s(self._sequences, self._new, self._verifying)
        self.duration_s = self.compute_s + self.overhead_s

    def _target_s(self, new_tokens: int, kv_tokens: int, longest: int) -> float:
        """Return the time of the target's part, at the captured number of tokens if there is one."""
        return self._target.step_s(padded_tokens(new_tokens, self._captured), kv_tokens, longest)

    def _drafting_s(self) -> float:
        """Return the time of the shared drafter's passes.

        The first processes everybody's KV lag (and the prompts that it prefills along); pass j >= 2 has
        one token of every sequence that drafts at least j.
        """
        if self._drafter is None or self._lag == 0:
            return 0.0
        time_s = self._drafter.step_s(self._lag, self._lag_kv, self._lag_longest)
        for sequences, kv_tokens in self._by_step:
            time_s += self._drafter.step_s(sequences, kv_tokens, 0)
        return time_s

    def caused_s(self, share: Share) -> float:
        """Return the part of the iteration's time that one of its sequences has to answer for.

        Of the target's own part that is the time by which it would be shorter without the sequence. Draft
        steps are shared by those that asked for them (Shapley's value of the airport game, Littlechild & Owen
        1973), since without one of two sequences a joint step takes about as long: by that difference alone
        nobody would ever gain by leaving.
        """
        widest = self._longest
        longest = widest[1] if share.new_tokens > 1 and share.kv_tokens == widest[0] else widest[0]
        caused_s = self._target_s(self._new, self._kv, widest[0]) + self.overhead_s
        if self._new > share.new_tokens:
            caused_s -= self._target_s(self._new - share.new_tokens, self._kv - share.kv_tokens, longest)
            others = self._sequences - 1, self._new - share.new_tokens, self._verifying - share.verifies
            caused_s -= self._target.overhead_s(*others)
        return caused_s + self._drafting_share_s(share)

    def _drafting_share_s(self, share: Share) -> float:
        """Return a sequence's share of the shared drafter's time; the shares of a batch sum to that time.

        Step j is shared equally by all that draft at least j tokens. The first pass is shared equally as far
        as it would take if everybody had a lag of one token; the rest in proportion to the further tokens.
        """
        drafter = self._drafter
        if drafter is None or share.lag_tokens == 0:
            return 0.0
        least_s = drafter.step_s(self._drafting, self._lag_kv, 0)
        share_s = least_s / self._drafting
        more = self._lag - self._drafting
        if more > 0:
            first_s = drafter.step_s(self._lag, self._lag_kv, self._lag_longest)
            share_s += (first_s - least_s) * (share.lag_tokens - 1) / more
        for sequences, kv_tokens in self._by_step[: max(0, share.gamma - 1)]:
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
