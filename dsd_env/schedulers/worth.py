"""What a token costs under each way of drafting at a target that is always busy; no simulation.

The target decodes for some requests at a time, each of them with drafts that are right with one probability.
Iterations and draft steps take what latency profiles say; streams yield what
:mod:`dsd_env.schedulers.stream_model` says. Arrivals, prefill, jitter and loss are left out, and all requests
are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dsd_env.latency import LatencyProfile
from dsd_env.latency.lookup import latency_profile
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.schema import Target
from dsd_env.schedulers.node_times import NodeTimes
from dsd_env.schedulers.stream_model import stream_yield

GAMMAS = (1, 2, 3, 4, 6, 8)
"""Speculation lengths of rounds that are compared."""
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Windows of streams that are compared."""
AT_TARGET, REMOTE = ("plain", "node"), ("rounds", "stream")
"""Ways of drafting without a remote drafter, and with one."""
_PLACES = {"plain": "plain", "node": "colocated", "rounds": "own", "stream": "own"}
"""Where a way drafts, as static rules name it; requests draft for themselves here."""
_MODEL = "draft"
_ROUNDS = 8
"""Times that an iteration's length and what streams bring into it are made to agree."""


class Cost(NamedTuple):
    """What a way of drafting comes to.

    Attributes:
        way: ``plain``, ``node`` (on the target's GPUs), ``rounds`` (remote, one after the other) or
            ``stream`` (remote).
        gamma: Speculation length or window; 0 for plain decoding.
        token_s: Time per token of a request.
        iteration_s: Time of an iteration.
    """

    way: str
    gamma: int
    token_s: float
    iteration_s: float

    @property
    def rule(self) -> str:
        """The static rule that does it in a simulation."""
        return f"static:{self.gamma}:1:{_PLACES[self.way]}"

    @property
    def protocol(self) -> str:
        """The kind of protocol that it takes there."""
        return "synchronous" if self.way == "rounds" else "streaming"


def cheapest(costs: Sequence[Cost], ways: Sequence[str]) -> Cost:
    """Return the cost with the least time per token among those of some ways."""
    return min((cost for cost in costs if cost.way in ways), key=lambda cost: cost.token_s)


class Case(NamedTuple):
    """One user's question: these profiles, so far apart, so loaded.

    Attributes:
        target: Profile of the target.
        node_drafter: Profile of the drafter on its GPUs; ``none``: it has none.
        drafter: Profile of the remote drafter.
        rtt_ms: Round trip between remote drafter and target.
        acceptance: Chance that a draft is right, given that those before it were; below 1.
        active: Requests that the target serves at a time.
        per_card: Requests that share a remote drafter.
        context_tokens: Context of a request.
    """

    target: str
    node_drafter: str
    drafter: str
    rtt_ms: float
    acceptance: float
    active: int
    per_card: int = 1
    context_tokens: int = 600

    @property
    def remote_step_s(self) -> float:
        """Time of a draft step at the remote drafter, shared by so many requests."""
        profile = latency_profile(self.drafter)
        its = profile.coefficients if isinstance(profile, LatencyProfile) else profile
        n = self.per_card
        return float(its.compute_s(n) + its.k_bw_s_per_token * n * self.context_tokens)

    def scenario(self, kind: str = "streaming", **changes: Any) -> Scenario:
        """Return the case as a scenario, saturated: one client per request, no time to think.

        Args:
            kind: Kind of protocol.
            **changes: Further overrides, as of :func:`dsd_env.scenario.load_scenario`.

        Raises:
            ScenarioError: A profile is unknown, or a number impossible.
        """
        target = latency_profile(self.target)
        gpus = target.parallelism if isinstance(target, LatencyProfile) else 1
        at_target = [] if self.node_drafter == "none" else [{"model": _MODEL, "profile": self.node_drafter}]
        prompt = max(1, self.context_tokens - 300)
        return load_scenario(
            "stream_node",
            name="worth_it",
            devices__client__count=self.active,
            devices__client__drafter={"model": _MODEL, "profile": {"t0_s": self.remote_step_s}},
            targets__node__profile=self.target,
            targets__node__gpus=gpus,
            targets__node__colocated_drafters=at_target,
            targets__node__max_num_seqs=max(128, self.active),
            links__link__one_way_s=0.5e-3 * self.rtt_ms,
            acceptance={_MODEL: {"source": "iid", "alpha": self.acceptance}},
            workload__kinds__essay__prompt_tokens={"distribution": "constant", "value": prompt},
            workload__max_prompt_tokens=prompt,
            protocol__kind=kind,
            **changes,
        )

    def busy(self) -> BusyTarget:
        """Return the target with its step times.

        Raises:
            ValueError: A profile is unknown, or a number impossible.
        """
        (target,) = self.scenario().targets.values()
        return BusyTarget.of(target, self.active, float(self.context_tokens), self.acceptance)


class BusyTarget(NamedTuple):
    """A target and its requests.

    Attributes:
        times: Its step times; the first drafter on its list is the one on its GPUs.
        active: Requests in every iteration.
        context_tokens: Context of each.
        acceptance: Chance that a draft is right, given that those before it were; below 1.
    """

    times: NodeTimes
    active: int
    context_tokens: float
    acceptance: float

    @classmethod
    def of(cls, target: Target, active: int, context_tokens: float, acceptance: float) -> BusyTarget:
        """Tabulate a target's profiles.

        Raises:
            ValueError: A number is outside its range.
        """
        if not 1 <= active <= target.max_num_seqs:
            raise ValueError(f"active = {active} must be in 1..{target.max_num_seqs} (max_num_seqs)")
        if not 0.0 <= acceptance < 1.0:
            raise ValueError(f"acceptance = {acceptance} must be at least 0 and below 1")
        if not context_tokens >= 1.0:
            raise ValueError(f"context_tokens = {context_tokens} must be at least 1")
        return cls(NodeTimes(target), active, context_tokens, acceptance)

    def iteration_s(self, drafts: float) -> float:
        """Return the time of an iteration that verifies so many drafts of each request."""
        kv_tokens = self.active * self.context_tokens
        return self.times.iteration_s(self.active, drafts, kv_tokens, self.context_tokens)

    def tokens(self, gamma: int) -> float:
        """Return the expected tokens of a round (Leviathan et al., arXiv 2211.17192)."""
        return (1.0 - self.acceptance ** (gamma + 1)) / (1.0 - self.acceptance)

    def plain(self) -> Cost:
        """Return the cost of plain decoding."""
        iteration_s = self.iteration_s(0.0)
        return Cost("plain", 0, iteration_s, iteration_s)

    def node(self, gamma: int) -> Cost | None:
        """Return the cost of drafting on the target's GPUs; None without a drafter there.

        All draft together before each iteration, which is so much longer.
        """
        step_s = self.times.draft_step_s(0, self.active, self.active * self.context_tokens)
        if step_s is None:
            return None
        iteration_s = gamma * step_s + self.iteration_s(gamma)
        return Cost("node", gamma, iteration_s / self.tokens(gamma), iteration_s)

    def rounds(self, gamma: int, step_s: float, rtt_s: float) -> Cost:
        """Return the cost of drafting elsewhere, one round after the other.

        A round drafts, travels, and meets an iteration that has begun: it takes part in the next one that
        starts. So a request is in a share of the iterations only, and these are shorter.

        Args:
            gamma: Speculation length.
            step_s: Time of a draft step.
            rtt_s: Round trip between drafter and target.
        """
        away_s = gamma * step_s + rtt_s
        iteration_s = self.iteration_s(gamma)
        for _ in range(_ROUNDS):
            every = 1.0 + -(-away_s // iteration_s)  # it is in one of so many iterations
            present = max(1, round(self.active / every))
            kv_tokens = present * self.context_tokens
            iteration_s = self.times.iteration_s(present, gamma, kv_tokens, self.context_tokens)
        # With one request there is no other that the target could be busy with.
        cycle_s = away_s + iteration_s if self.active == 1 else every * iteration_s
        return Cost("rounds", gamma, cycle_s / self.tokens(gamma), iteration_s)

    def stream(self, gamma: int, step_s: float, rtt_s: float) -> Cost:
        """Return the cost of streaming from elsewhere; see :meth:`rounds` for the arguments."""
        iteration_s = self.iteration_s(0.0)
        tokens = 1.0
        for _ in range(_ROUNDS):
            gives = stream_yield(gamma, self.acceptance, step_s, step_s, rtt_s, iteration_s)
            tokens, iteration_s = gives.tokens, self.iteration_s(gives.drafts)
        return Cost("stream", gamma, iteration_s / tokens, iteration_s)

    def best(self, step_s: float, rtt_s: float) -> list[Cost]:
        """Return the best of each way, in the order plain, node, rounds, stream."""
        node = [cost for cost in map(self.node, GAMMAS) if cost is not None]
        rounds = [self.rounds(gamma, step_s, rtt_s) for gamma in GAMMAS]
        streams = [self.stream(gamma, step_s, rtt_s) for gamma in WINDOWS]
        ways: Sequence[Sequence[Cost]] = ([self.plain()], node, rounds, streams)
        return [min(way, key=lambda cost: cost.token_s) for way in ways if way]
