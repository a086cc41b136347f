"""What a token costs at a target that never waits, if every sequence there does as this one does.

Where drafts are streamed, a target always iterates, with every request that is resident. Then the question is no
longer how long a round takes, but what an iteration yields and how long it is. Both depend on what all do: one
sequence that drafts on the target's own GPUs holds up all streams, and a choice that pays for all may not pay for
the first to make it. So each choice is weighed as if all made it, by the profiles of target and drafters
(:class:`~dsd_env.schedulers.node_times.NodeTimes`) and the model of a stream
(:mod:`dsd_env.schedulers.stream_model`). Without that, what the others do now would decide, and none could leave it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.control import CandidateView, DecisionView, DrafterKind, Site
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.schedulers.stream_model import stream_yield

_NEVER_S = float("inf")
_ROUNDS = 3
"""Times that the length of an iteration and what streams bring into it are made to agree."""


class BusyNode:
    """A target as one decision sees it, with all that its iterations hold.

    Attributes:
        sequences: Sequences in an iteration, this one included.
    """

    def __init__(self, times: NodeTimes, view: DecisionView, target: int, load_weight: float) -> None:
        """Take from a view how many sequences an iteration holds, and how much KV.

        Args:
            times: The target's times.
            view: The decision.
            target: Number of the target.
            load_weight: Weight of the time by which drafts delay the others; 1 counts everybody alike.
        """
        seen = next(each.target for each in view.candidates if each.target.index == target)
        request = view.request
        newcomer = request.is_admission or view.target.index != target
        self._times = times
        self.sequences = max(1, min(seen.resident + newcomer, times.max_num_seqs))
        context = float(request.prompt_tokens + request.committed_tokens)
        self._kv_tokens = max(context, seen.kv_fraction * times.kv_capacity_tokens)
        self._longest_kv_tokens = max(context, self._kv_tokens / self.sequences)
        others = self.sequences - 1
        self._share = (1.0 + load_weight * others) / (1.0 + others)
        self._plain_s = self.iteration_s(0.0)

    def iteration_s(self, drafts: float) -> float:
        """Return the time of an iteration that verifies so many drafts of each sequence."""
        return self._times.iteration_s(self.sequences, drafts, self._kv_tokens, self._longest_kv_tokens)

    def plain_token_s(self) -> float:
        """Return the time per token of plain decoding."""
        return self._plain_s

    def stream_token_s(self, candidate: CandidateView, view: DecisionView, acceptance: float) -> list[float]:
        """Return the time per token of a stream from a candidate, for each window on offer; infinite for 0.

        Args:
            candidate: The candidate.
            view: The decision.
            acceptance: Chance that a draft is right, given that those before it were.
        """
        step_s = self._stream_step_s(candidate, view)
        costs = []
        for gamma in view.gammas:
            if gamma == 0:
                costs.append(_NEVER_S)
                continue
            iteration_s = self._plain_s
            for _ in range(_ROUNDS):
                gives = stream_yield(gamma, acceptance, step_s, step_s, candidate.rtt_s, iteration_s)
                iteration_s = self.iteration_s(gives.drafts)
            costs.append(self._weighed_s(iteration_s) / gives.tokens)
        return costs

    def shared_token_s(
        self,
        candidate: CandidateView,
        gammas: Sequence[int],
        tokens: Sequence[float],
        pooled: Sequence[float],
    ) -> list[float]:
        """Return the time per token of drafting on the target's own GPUs, for each length; infinite for 0.

        All take their draft steps together, as many as the longest draft has. That is the length which suits
        the batch; a request may draft less than that, not more.

        Args:
            candidate: The candidate.
            gammas: Speculation lengths on offer, the first 0.
            tokens: Expected tokens of a round of this request for each of them.
            pooled: The same of an average request.
        """
        step_s = self._times.draft_step_s(candidate.drafter, self.sequences, self._kv_tokens)
        if step_s is None:
            step_s = candidate.draft_step_s
        per_round = candidate.kind == DrafterKind.LOOKUP
        if per_round:
            step_s *= self.sequences
        batch, batch_s = 0, self._plain_s
        best_s = _NEVER_S
        for gamma, expected in zip(gammas[1:], pooled[1:], strict=True):
            iteration_s = self.iteration_s(gamma) + step_s * (1 if per_round else gamma)
            if iteration_s / expected < best_s:
                batch, batch_s, best_s = gamma, iteration_s, iteration_s / expected
        token_s = (self.iteration_s(batch) - self.iteration_s(min(batch, 1))) / max(1, batch - 1)
        costs = []
        for gamma, expected in zip(gammas, tokens, strict=True):
            if 0 < gamma <= batch:
                costs.append(self._weighed_s(batch_s - token_s * (batch - gamma)) / expected)
            else:
                costs.append(_NEVER_S)
        return costs

    def _weighed_s(self, iteration_s: float) -> float:
        """Return an iteration's time with the weight that counts for the delay of others."""
        return self._plain_s + self._share * (iteration_s - self._plain_s)

    def _stream_step_s(self, candidate: CandidateView, view: DecisionView) -> float:
        """Return the time from one draft of a stream to the next: a draft step, and the wait for the drafter.

        A stream's own draft is one of those under way on its device, and no reason to wait.
        """
        if candidate.site == Site.COLOCATED:
            step_s = self._times.draft_step_s(candidate.drafter, self.sequences, self._kv_tokens)
            return (step_s or candidate.draft_step_s) + candidate.draft_wait_s
        wait_s = candidate.draft_wait_s
        if candidate.site == Site.OWN_DEVICE and candidate.is_current and view.request.window_tokens > 0:
            wait_s = max(0.0, wait_s - candidate.draft_step_s)
        return candidate.draft_step_s + wait_s
