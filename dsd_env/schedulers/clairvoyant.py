"""An upper reference: it knows how many of the next drafts will be right, and drafts exactly so many."""

from __future__ import annotations

from dsd_env.control import Decision, DecisionView
from dsd_env.control.actions import snap, snap_up
from dsd_env.scenario import Scenario
from dsd_env.schedulers.foresight import Foresight
from dsd_env.schedulers.lengths import remember
from dsd_env.schedulers.rules import batch_size_for, placement_of, plain_placement, stay_or_route
from dsd_env.schedulers.static import StaticChoice


class ClairvoyantScheduler:
    """Drafts as many tokens as the target will accept, at the place of a static choice.

    No scheduler can know that: this is a reference, which says what perfect speculation lengths would be
    worth at that place. Everything else, routing, place and batch size, is the static choice's, so it bounds
    neither what another place could win nor what requests do to each other.

    In a round the length is the largest listed one of which all will be accepted, and leaves the answer's
    last token to the target. Where not even the shortest would be, it decodes plainly, if a plain round is no
    longer than that lasts; else the shortest listed length stands in, whose drafts are then rejected. In a
    stream the window is what lies before the next rejection, or the next longer one listed: the drafter then
    stops where it would go wrong. At least the shortest window is kept, because 0 would close the stream.

    Attributes:
        name: Canonical specification.
        choice: The static choice; its length is the largest used.
    """

    def __init__(self, name: str, choice: StaticChoice) -> None:
        """Build the reference of a static choice."""
        self.name = name
        self.choice = choice
        self._foresight: Foresight | None = None
        self._chains: dict[int, tuple[int, str, int]] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Look ahead into the episode of this seed.

        Raises:
            SchedulerError: The scenario has not what the choice names.
        """
        self.choice.check(scenario, self.name)
        if self._foresight is None or self._foresight.scenario is not scenario:
            self._foresight = Foresight(scenario)
        self._foresight.begin(seed)
        self._chains.clear()

    def decide(self, view: DecisionView) -> Decision:
        """Return the length that will be accepted, at the first of the choice's sites that can draft."""
        if self._foresight is None:
            raise RuntimeError("call reset(scenario, seed) before decide(view)")
        self._foresight.request(view)  # requests are counted as they are first seen
        choice = self.choice
        target = stay_or_route(view)
        batch = batch_size_for(view, choice.batch_size)
        for site in choice.sites:
            placement = placement_of(view, site, target, choice.drafter, choice.branches)
            if placement is not None:
                gamma = self._length(view, placement)
                if gamma > 0:
                    return Decision(gamma, batch, placement)
                break
        return Decision(0, batch, plain_placement(view, target))

    def _length(self, view: DecisionView, placement: int) -> int:
        """Return how many tokens to draft at a placement; 0: decode plainly."""
        foresight = self._foresight
        assert foresight is not None
        lengths = [gamma for gamma in view.gammas if 0 < gamma <= self.choice.gamma]
        if not lengths:
            return 0
        candidate = view.candidates[placement]
        acceptance = foresight.acceptance(view, candidate.model)
        # The prefill commits the first token.
        start = max(1, view.request.committed_tokens)
        left = foresight.request(view).output_tokens - start
        if left <= 0:
            return lengths[0]
        chain = self._chain(view, start, candidate.model)
        wanted = min(acceptance.run_at(start, chain), left - 1)
        if candidate.streams:
            return snap_up(lengths, wanted)
        if wanted >= lengths[0]:
            return snap(lengths, wanted)
        if view.request.is_admission:
            return lengths[0]
        chunk = min(foresight.scenario.protocol.plain_chunk_tokens, left)
        useless = all(acceptance.run_length[at] < lengths[0] for at in range(start, start + chunk))
        return 0 if useless or left == 1 else lengths[0]

    def _chain(self, view: DecisionView, start: int, model: str) -> int:
        """Return where the drafter began: it matters to those whose proposals depend on it.

        A drafter goes on from there with a window that it has drafted ahead, or with a stream's generation.
        """
        request = view.request
        chain, before, generations = self._chains.get(view.request_id, (start, model, -1))
        goes_on = request.head_start_tokens > 0 or (
            request.lead_tokens > 0 and request.generations == generations
        )
        if not goes_on or before != model:
            chain = start
        remember(self._chains, view.request_id, (chain, model, request.generations))
        return chain
