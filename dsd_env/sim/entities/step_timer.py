"""How long the steps of a model take: a latency profile as a table."""

from __future__ import annotations

import copy
import functools

from dsd_env.latency import NO_OVERHEAD, EngineOverhead, LatencyProfile, StepCoefficients
from dsd_env.laws import step_times
from dsd_env.scenario.schema import Lookup


@functools.lru_cache(maxsize=64)
def _compute_table_s(coefficients: StepCoefficients, max_tokens: int, pass_s: float) -> tuple[float, ...]:
    """Return the attention-free time of 0 … ``max_tokens`` new tokens; the same for every world."""
    return tuple(coefficients.compute_s(m) + pass_s for m in range(max_tokens + 1))


class StepTimer:
    """Iteration times of a latency profile, looked up in a table.

    Every engine reads the attention-free part from the same float64 table, so that all of them
    compute the same iteration times to the last bit.

    Attributes:
        compute_s: Attention-free time by number of new tokens; shared between timers.
        length: Entries of that table.
        factor: Factor on every time.
        k_bw_s: Seconds per KV token read when every sequence has one new token.
        k_multi_s: Seconds per KV token read when some sequence has more.
        k_lat_s: Seconds per KV token of the longest sequence with more than one new token.
        per_generation_s: What a drafter takes beside its steps at the beginning of a round or a stream's
            generation.
        draft_noise_sigma: How the time of a single draft scatters; see :func:`step_times.draft_noise`.
        per_round: It is that of a look-up, whose one step makes all proposals of a round.
        verify_share: Share of the target's part of an iteration that a look-up takes besides.
        per_iteration_s: What the engine adds to a target's iteration; see :func:`step_times.overhead_s`.
        per_sequence_s: The same for each sequence in it.
        per_token_s: The same for each new token.
        per_verifying_iteration_s: The same if it verifies drafts.
        token_limit: Beyond so many new tokens in an iteration, `per_token_s` is not added.
    """

    __slots__ = (
        "compute_s",
        "draft_noise_sigma",
        "factor",
        "k_bw_s",
        "k_lat_s",
        "k_multi_s",
        "length",
        "per_generation_s",
        "per_iteration_s",
        "per_round",
        "per_sequence_s",
        "per_token_s",
        "per_verifying_iteration_s",
        "token_limit",
        "verify_share",
    )

    def __init__(
        self,
        profile: LatencyProfile | StepCoefficients,
        max_tokens: int,
        engine: EngineOverhead = NO_OVERHEAD,
        pass_s: float = 0.0,
    ) -> None:
        """Tabulate a profile.

        Args:
            profile: The profile.
            max_tokens: Up to so many new tokens.
            engine: What the engine of a target adds to its iterations.
            pass_s: What an engine adds to each pass of a drafter.
        """
        coefficients = profile.coefficients if isinstance(profile, LatencyProfile) else profile
        self.compute_s = _compute_table_s(coefficients, max_tokens, pass_s)
        self.length = len(self.compute_s)
        self.factor = 1.0
        self.per_iteration_s = engine.per_iteration_s
        self.per_sequence_s = engine.per_sequence_s
        self.per_token_s = engine.per_token_s
        self.per_verifying_iteration_s = engine.per_verifying_iteration_s
        self.token_limit = engine.token_limit
        self.k_bw_s = coefficients.k_bw_s_per_token
        self.k_multi_s = coefficients.k_bw_s_per_token + coefficients.k_multi_s_per_token
        self.k_lat_s = coefficients.k_lat_s_per_token
        self.per_generation_s = 0.0
        self.draft_noise_sigma = 0.0
        self.per_round = False
        self.verify_share = 0.0

    @classmethod
    def of_lookup(cls, lookup: Lookup, max_tokens: int) -> StepTimer:
        """Return the timer of a look-up, whose step takes the same time whatever it processes."""
        timer = cls(StepCoefficients(t0_s=1.0, w_s=0.0, c_s_per_token=0.0, p=1.0), 0)
        timer.compute_s = (lookup.cost_per_round_s,) * (max_tokens + 1)
        timer.length = len(timer.compute_s)
        timer.per_round = True
        timer.verify_share = lookup.share_of_verify
        return timer

    def scaled(self, factor: float) -> StepTimer:
        """Return a timer whose every time is ``factor`` times this one's."""
        timer = copy.copy(self)
        timer.factor = self.factor * factor
        return timer

    def overhead_s(self, sequences: int, new_tokens: int, verifying: int) -> float:
        """Return what the engine adds to an iteration; see :func:`step_times.overhead_s`."""
        return step_times.overhead_s(self, sequences, new_tokens, verifying)

    def step_s(self, new_tokens: int, kv_tokens: int, max_kv_multi_tokens: int) -> float:
        """Return the time of one iteration; see :mod:`dsd_env.latency.profile` for the form."""
        return step_times.step_s(self, self.factor, new_tokens, kv_tokens, max_kv_multi_tokens)

    def draft_s(
        self, lag_tokens: int, context_tokens: int, gamma: int, active: int, active_kv_tokens: int
    ) -> float:
        """Return the time to process the KV lag and draft; see :func:`dsd_env.laws.step_times.draft_s`."""
        return step_times.draft_s(
            self, self.factor, lag_tokens, context_tokens, gamma, active, active_kv_tokens
        )
