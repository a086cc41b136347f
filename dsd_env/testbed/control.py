"""The hook of a scheduler: what the client knows before a round, and what it is told to do.

Anything that takes a :class:`Telemetry` and returns a :class:`RoundDecision` steers the testbed: one of the
rules here, or a trained policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from dsd_env.testbed.client import Output

Placement = Literal["edge", "cloud"]
#: Weight of the newest value in a running mean.
EMA_WEIGHT = 0.2


@dataclass(frozen=True)
class RoundDecision:
    """What to do until the next decision.

    Attributes:
        gamma: Drafts of a round, or of a stream in flight; 0: the target decodes alone.
        placement: Where drafts are made: ``edge``, on this device; ``cloud``, beside the target. With gamma
            0 it says nothing.
    """

    gamma: int
    placement: Placement = "edge"


@dataclass(frozen=True)
class Telemetry:
    """What is known at a decision. Times in seconds; 0.0 where nothing has been measured yet.

    Attributes:
        request: Number of the request.
        protocol: ``synchronous``, ``pipelined`` or ``streaming``.
        prompt_tokens: Length of the prompt.
        max_new_tokens: Length of the output at most.
        committed_tokens: Output tokens known to be committed.
        age_s: Time since the request began.
        rounds: Results so far.
        last_drafted: Drafts that the target looked at since the last decision.
        last_accepted: Those that were right.
        acceptance_rate: Running share of drafts accepted; prior 0.6, the simulator's.
        tokens_per_round: Running number of tokens a result commits; prior 2.
        drafts_in_flight: Drafts made and not yet decided.
        window: Gamma in force.
        placement: Placement in force.
        rtt_s: Running mean of the round trip, without the time at the server.
        newest_rtt_s: Newest sample of it.
        draft_step_s: Running mean of the time that a draft takes.
        iteration_s: Duration of the target's last iteration.
        batch_sequences: Sequences in it.
        resident_sequences: Requests resident at the target.
        waiting_requests: Requests that wait to be.
        idle_share: Share of iterations of the stream for which no draft had come.
        max_window: Largest gamma that the server takes.
    """

    request: int = 0
    protocol: str = "streaming"
    prompt_tokens: int = 0
    max_new_tokens: int = 0
    committed_tokens: int = 0
    age_s: float = 0.0
    rounds: int = 0
    last_drafted: int = 0
    last_accepted: int = 0
    acceptance_rate: float = 0.6
    tokens_per_round: float = 2.0
    drafts_in_flight: int = 0
    window: int = 0
    placement: Placement = "edge"
    rtt_s: float = 0.0
    newest_rtt_s: float = 0.0
    draft_step_s: float = 0.0
    iteration_s: float = 0.0
    batch_sequences: int = 0
    resident_sequences: int = 0
    waiting_requests: int = 0
    idle_share: float = 0.0
    max_window: int = 32


Decide = Callable[[Telemetry], RoundDecision]


@runtime_checkable
class RequestScheduler(Protocol):
    """A scheduler that keeps something for each request, and is told when it can forget it."""

    def __call__(self, seen: Telemetry) -> RoundDecision:
        """Decide."""

    def finished(self, request: int, output: Output | None = None) -> None:
        """Forget a request.

        Args:
            request: Its number.
            output: Its whole answer; None if it was given up.
        """


def static(gamma: int, placement: Placement = "edge") -> Decide:
    """Return a rule that always decides the same."""
    decision = RoundDecision(gamma, placement)
    return lambda _: decision


@dataclass
class HfHeuristic:
    """Hugging Face's rule: two more when all drafts were right, one less otherwise.

    Attributes:
        initial: First length.
        most: Longest.
    """

    initial: int = 5
    most: int = 16
    _length: dict[int, int] = field(default_factory=dict)

    def __call__(self, seen: Telemetry) -> RoundDecision:
        """Return the next length."""
        length = self._length.get(seen.request, self.initial)
        if seen.last_drafted:
            length = length + 2 if seen.last_accepted >= seen.last_drafted else length - 1
        length = max(1, min(length, self.most, seen.max_window))
        self._length[seen.request] = length
        return RoundDecision(length)

    def finished(self, request: int, output: Output | None = None) -> None:
        """Forget a request."""
        self._length.pop(request, None)


@dataclass
class ExpectedTime:
    """The gamma with the least expected time per token, by a simple model of what is measured.

    With acceptance rate a, a round of gamma drafts commits (1 - a^(gamma+1)) / (1 - a) tokens. A synchronous
    round takes gamma draft steps, a round trip and an iteration; a pipelined one saves the head start that
    it has when everything was right. A stream's window needs to cover a round trip and an iteration and no
    more, and is no use where its first draft comes later than the target's own tokens. Decoding alone takes
    an iteration a token. The iteration is taken to be as long with drafts as without.

    Attributes:
        lengths: Choices beside 0.
    """

    lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)

    def __call__(self, seen: Telemetry) -> RoundDecision:
        """Return the next gamma."""
        if not (seen.rtt_s and seen.draft_step_s and seen.iteration_s):
            return RoundDecision(min(4, seen.max_window))  # measure first
        lengths = [gamma for gamma in self.lengths if gamma <= seen.max_window]
        best = min(lengths, key=lambda gamma: self.token_s(gamma, seen))
        if seen.iteration_s < self.token_s(best, seen):
            return RoundDecision(0)
        return RoundDecision(best)

    def token_s(self, gamma: int, seen: Telemetry) -> float:
        """Return the expected time per token."""
        a = min(seen.acceptance_rate, 0.98)
        committed = (1 - a ** (gamma + 1)) / (1 - a)
        if seen.protocol == "streaming":
            # What a full window brings in a loop: drafts, way there, iteration, way back.
            loop = max(gamma * seen.draft_step_s, seen.rtt_s + seen.iteration_s + seen.draft_step_s)
            # Until a loop closes after a wrong draft the target goes on alone.
            alone = loop / seen.iteration_s
            wrong = 1 - a**gamma
            return loop / max(committed, wrong * alone + (1 - wrong) * gamma)
        saved = gamma * seen.draft_step_s * a ** (gamma + 1) if seen.protocol == "pipelined" else 0.0
        return (gamma * seen.draft_step_s + seen.rtt_s + seen.iteration_s - saved) / committed


RULES: dict[str, Callable[[], Decide]] = {"hf_heuristic": HfHeuristic, "expected_time": ExpectedTime}


def parse_rule(text: str) -> Decide:
    """Return the rule that a text names: ``plain``, ``static:4``, ``cloud:4``, or a name of :data:`RULES`.

    Raises:
        ValueError: It names none.
    """
    name, _, number = text.partition(":")
    if name == "plain" and not number:
        return static(0)
    if name in ("static", "cloud") and number.isdecimal() and int(number) > 0:
        return static(int(number), "edge" if name == "static" else "cloud")
    if name in RULES and not number:
        return RULES[name]()
    raise ValueError(f"unknown rule {text!r}; known: plain, static:N, cloud:N, {', '.join(RULES)}")
