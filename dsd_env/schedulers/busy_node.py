"""What a token costs at a target that never waits, if every sequence there does as this one does.

Where drafts are streamed, a target always iterates, with every request that is resident. Then the question
is no longer how long a round takes, but what an iteration yields and how long it is. Both depend on what
all do: one sequence that drafts on the target's own GPUs holds up all streams, and a choice that pays for
all may not pay for the first to make it. So each choice is weighed as if all made it, by the profiles of
target and drafters (:class:`~dsd_env.schedulers.node_times.NodeTimes`) and the model of a stream
(:mod:`dsd_env.schedulers.stream_model`). Without that, what the others do now would decide, and none could
leave it.

But if streams are what suits all, a request that drafts on the target's GPUs for a reason of its own (its
edge server is crowded, say) is alone with that, and pays for the time that it takes from everybody else
(:meth:`BusyNode.alone_token_s`).
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.control import CandidateView, DecisionView, Site
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.schedulers.stream_model import Branches, stream_yield

_NEVER_S = float("inf")
AGREED_ROUNDS = 2
"""Times that the length of an iteration and what the shortest window brings into it are made to agree."""


class BusyNode:
    """A target as one decision sees it, with all that its iterations hold.

    Attributes:
        sequences: Sequences in an iteration, this one included.
    """

    def __init__(
        self,
        times: NodeTimes,
        view: DecisionView,
        target: int,
        load_weight: float,
        stream_chunk_tokens: int = 1,
    ) -> None:
        """Take from a view how many sequences an iteration holds, and how much KV.

        Args:
            times: The target's times.
            view: The decision.
            target: Number of the target.
            load_weight: Weight of the time by which drafts delay the others; 1 counts everybody alike.
            stream_chunk_tokens: Drafts of a stream that are sent in one message.
        """
        seen = next(each.target for each in view.candidates if each.target.index == target)
        request = view.request
        newcomer = request.is_admission or view.target.index != target
        self._times, self._chunk_tokens = times, stream_chunk_tokens
        self._streams: dict[tuple[float, float, float, Branches | None], list[float]] = {}
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

    def stream_token_s(
        self,
        candidate: CandidateView,
        view: DecisionView,
        acceptance: float,
        hit: float = 0.0,
        *,
        waits: bool = True,
    ) -> list[float]:
        """Return the time per token of a stream from a candidate, for each window on offer; infinite for 0.

        Args:
            candidate: The candidate.
            view: The decision.
            acceptance: Chance that a draft is right, given that those before it were.
            hit: Chance that the right token for a wrong draft opens one of its branches, if it has any.
            waits: With the wait for the drafter that is expected there now.
        """
        branches = Branches(hit, candidate.depth) if candidate.fanout else None
        step_s = self._stream_step_s(candidate, view) if waits else candidate.draft_step_s
        stream = (step_s, candidate.rtt_s, acceptance, branches)
        if stream not in self._streams:
            self._streams[stream] = self._costs_of_stream_s(view.gammas, *stream)
        return self._streams[stream]

    def _costs_of_stream_s(
        self, gammas: Sequence[int], step_s: float, rtt_s: float, acceptance: float, branches: Branches | None
    ) -> list[float]:
        costs = [_NEVER_S]
        if len(gammas) == 1:
            return costs
        # What streams bring into an iteration depends on its length, and that on what they bring. For the
        # shortest window both are made to agree; each window begins with the length of the one before.
        iteration_s, chunk = self._plain_s, self._chunk_tokens
        for _ in range(AGREED_ROUNDS):
            gives = stream_yield(gammas[1], acceptance, step_s, step_s, rtt_s, iteration_s, branches, chunk)
            iteration_s = self.iteration_s(gives.drafts)
        for gamma in gammas[1:]:
            gives = stream_yield(gamma, acceptance, step_s, step_s, rtt_s, iteration_s, branches, chunk)
            iteration_s = self.iteration_s(gives.drafts)
            costs.append(self._weighed_s(iteration_s) / gives.tokens)
        return costs

    def shared_token_s(
        self, candidate: CandidateView, gammas: Sequence[int], acceptance: float
    ) -> list[float]:
        """Return the time per token of drafting on the target's own GPUs, for each length; infinite for 0.

        All take their draft steps together, and have as many drafts verified.

        Args:
            candidate: The candidate; no look-up.
            gammas: Speculation lengths on offer.
            acceptance: Chance that a draft is right, given that those before it were.
        """
        step_s = self._times.draft_step_s(candidate.drafter, self.sequences, self._kv_tokens)
        step_s = candidate.draft_step_s if step_s is None else step_s
        acceptance = min(acceptance, 0.99)
        costs = []
        for gamma in gammas:
            iteration_s = self.iteration_s(gamma) + gamma * step_s
            tokens = (1.0 - acceptance ** (gamma + 1)) / (1.0 - acceptance)
            costs.append(self._weighed_s(iteration_s) / tokens if gamma > 0 else _NEVER_S)
        return costs

    def alone_token_s(
        self, candidate: CandidateView, gammas: Sequence[int], acceptance: float, load_weight: float
    ) -> list[float]:
        """Return the time per token of drafting on the target's own GPUs while all others stream.

        They have nothing of the draft steps that their iterations wait for.

        Args:
            candidate: The candidate; no look-up.
            gammas: Speculation lengths on offer; infinite for 0.
            acceptance: Chance that a draft is right, given that those before it were.
            load_weight: Weight of the time by which the others are delayed.
        """
        step_s = self._times.draft_step_s(candidate.drafter, 1, self._longest_kv_tokens)
        step_s = candidate.draft_step_s if step_s is None else step_s
        acceptance = min(acceptance, 0.99)
        costs = []
        for gamma in gammas:
            added_s = gamma * step_s * (1.0 + load_weight * (self.sequences - 1))
            tokens = (1.0 - acceptance ** (gamma + 1)) / (1.0 - acceptance)
            costs.append((self._plain_s + added_s) / tokens if gamma > 0 else _NEVER_S)
        return costs

    def _weighed_s(self, iteration_s: float) -> float:
        """Return an iteration's time with the weight that counts for the delay of others."""
        return self._plain_s + self._share * (iteration_s - self._plain_s)

    def _stream_step_s(self, candidate: CandidateView, view: DecisionView) -> float:
        """Return the time from one draft of a stream to the next: a draft step, and the wait for the drafter.

        A stream's own draft is one of those under way on its device, and no reason to wait.
        """
        if candidate.site == Site.COLOCATED:
            tokens = 1 + candidate.fanout * candidate.depth
            step_s = self._times.draft_step_s(candidate.drafter, self.sequences, self._kv_tokens, tokens)
            return (step_s or candidate.draft_step_s) + candidate.draft_wait_s
        wait_s = candidate.draft_wait_s
        if candidate.site == Site.OWN_DEVICE and view.request.window_tokens > 0:
            current = next((each for each in view.candidates if each.is_current), None)
            if current is not None and (current.site, current.drafter) == (candidate.site, candidate.drafter):
                wait_s = max(0.0, wait_s - current.draft_step_s)
        return candidate.draft_step_s + wait_s
