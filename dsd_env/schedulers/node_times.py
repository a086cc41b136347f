"""How long the iterations of a target take when every sequence in them does the same, from latency profiles.

A rule that sees only the running mean of iteration times cannot tell what they would be if all chose
otherwise. The profiles of a target and of the drafters on its server say so, and a real controller has
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from dsd_env.latency import EngineOverhead, LatencyProfile
from dsd_env.latency.lookup import ProfileChoice, latency_profile, profile_overhead, target_overhead
from dsd_env.laws import step_times
from dsd_env.scenario.schema import ColocatedDrafter, Target


class StepTimes(NamedTuple):
    """Times of a model's steps.

    Attributes:
        compute_s: Time without attention by number of new tokens, what the engine adds per token included.
        k_bw_s: Time per KV token read when every sequence has one new token.
        k_multi_s: The same when some sequence has more.
        k_lat_s: Time per KV token of the longest such sequence.
    """

    compute_s: Sequence[float]
    k_bw_s: float
    k_multi_s: float
    k_lat_s: float

    @classmethod
    def of(cls, choice: ProfileChoice, most_tokens: int, engine: EngineOverhead) -> Self:
        """Tabulate a profile up to so many new tokens, with what an engine adds to each step and token."""
        profile = latency_profile(choice)
        its = profile.coefficients if isinstance(profile, LatencyProfile) else profile
        table = tuple(
            its.compute_s(tokens) + step_times.overhead_s(engine, 0, tokens, 0)
            for tokens in range(most_tokens + 2)
        )
        k_bw_s = its.k_bw_s_per_token
        return cls(table, k_bw_s, k_bw_s + its.k_multi_s_per_token, its.k_lat_s_per_token)

    def compute_at_s(self, tokens: float) -> float:
        """Return the time without attention for a number of new tokens, a mean perhaps; linear between."""
        tokens = min(max(tokens, 0.0), len(self.compute_s) - 2.0)
        whole = int(tokens)
        low, high = self.compute_s[whole], self.compute_s[whole + 1]
        return low + (tokens - whole) * (high - low)


class NodeTimes:
    """Times of one target.

    Attributes:
        engine: What its engine adds to an iteration.
        times: Times of its own steps.
        drafters: Times of the steps of each drafter beside it; None for one without a profile.
        kv_capacity_tokens: Size of its KV pool.
        max_num_seqs: Requests that can be resident.
    """

    def __init__(self, target: Target, step_tokens: int = 1) -> None:
        """Tabulate the profiles of a target and of the draft models beside it.

        Args:
            target: The target.
            step_tokens: Most tokens of a request that a draft step processes.
        """
        self.engine = target_overhead(target)
        self.times = StepTimes.of(target.profile, target.max_num_batched_tokens, self.engine)
        self.drafters = [
            _drafter_times(drafter, target.max_num_seqs * step_tokens) for drafter in target.menu
        ]
        self.kv_capacity_tokens = target.kv_capacity_tokens
        self.max_num_seqs = target.max_num_seqs

    def iteration_s(self, sequences: int, drafts: float, kv_tokens: float, longest_kv_tokens: float) -> float:
        """Return the time of an iteration that verifies some drafts of every sequence.

        Args:
            sequences: Sequences in it.
            drafts: Drafts of each of them, on average; 0: all decode plainly.
            kv_tokens: KV tokens of all.
            longest_kv_tokens: KV tokens of the longest.
        """
        times, engine = self.times, self.engine
        time_s = times.compute_at_s(sequences * (1.0 + drafts)) + engine.per_sequence_s * sequences
        if drafts == 0.0:
            return time_s + times.k_bw_s * kv_tokens
        attention_s = times.k_multi_s * kv_tokens + times.k_lat_s * longest_kv_tokens
        return time_s + attention_s + engine.per_verifying_iteration_s

    def draft_step_s(self, rank: int, sequences: int, kv_tokens: float, tokens_each: int = 1) -> float | None:
        """Return the time of a step in which a draft model beside the target drafts a token of each sequence.

        Args:
            rank: Its place in the target's list of drafters.
            sequences: Sequences that it drafts for at once.
            kv_tokens: Their KV tokens.
            tokens_each: Tokens that it processes of each: a draft, and those of its branches.

        Returns:
            The time; None for what has no profile: a look-up, or no drafter at all.
        """
        times = self.drafters[rank] if rank < len(self.drafters) else None
        if times is None:
            return None
        return times.compute_at_s(sequences * tokens_each) + times.k_bw_s * kv_tokens


def _drafter_times(drafter: ColocatedDrafter, most_tokens: int) -> StepTimes | None:
    if drafter.profile is None:
        return None
    overhead = profile_overhead(latency_profile(drafter.profile))
    passes = EngineOverhead(per_iteration_s=overhead.per_draft_pass_s)
    return StepTimes.of(drafter.profile, most_tokens, passes)
