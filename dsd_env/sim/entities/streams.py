"""A stream of drafts: what its drafter knows, what its target has received, and what is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsd_env.control.actions import StopRule
from dsd_env.control.view import Site
from dsd_env.laws import streams
from dsd_env.sim.entities.drafters import SiteDrafter

if TYPE_CHECKING:
    import simpy

    from dsd_env.sim.entities.targets import Job
    from dsd_env.sim.reference.resolution import Resolution


@dataclass(frozen=True, slots=True)
class DraftMessage:
    """Drafts on their way to a target, or the request to close the stream.

    SGLang calls it ``DraftTailStreamOutput`` and ``DraftClose``.

    Attributes:
        arrives_s: When it arrives.
        sent_s: When it was sent.
        generation: Generation of its drafts.
        start: Output position at which that generation begins.
        first: Position of its first draft.
        tokens: How many drafts; 0 if it holds but tokens of branches.
        steps: Draft steps until it was sent.
        branches: Drafts of its generation have branches.
        window: Gamma of the decision in force when it was sent.
        batch_size: B of that decision.
        closes: It closes the stream.
    """

    arrives_s: float
    sent_s: float
    generation: int
    start: int
    first: int
    tokens: int
    steps: int
    window: int
    batch_size: int
    closes: bool = False
    branches: bool = False


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What an iteration has committed, on its way to the drafter; SGLang calls it ``VerifyCommit``.

    Attributes:
        arrives_s: When it arrives.
        echo_s: When the newest message that had come to the target was sent, and how long it has been there:
            what is left to the arrival of this result is a round trip. Negative: none has come since the last
            result.
        committed: Output tokens committed.
        commit_s: When they were.
        tokens: Tokens committed by this iteration; 0 if none was needed to tell this.
        drafted: Drafts that it verified.
        accepted: Those that were right.
        confidence: Top-1 probability of the drafter at the last of them that followed the true text.
    """

    arrives_s: float
    echo_s: float
    committed: int
    commit_s: float
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    confidence: float = 0.0


@dataclass(slots=True, eq=False)
class Stream:
    """The stream between a request's drafter and its target, from its opening until it is closed.

    Attributes:
        drafter: Who drafts.
        place: Site and number of the drafter's place, where the decisions of the stream are taken.
        target: Number of its target.
        window: Drafts that may lie beyond the known tokens: gamma of the decision in force.
        batch_size: B of the decision in force.
        stop_rule: When the drafter pauses by its confidence; None: never.
        stop: Ends the stream at once, because its request gives up what it is doing.
        tell: Tells the drafter what an iteration has done: called with tokens committed, drafts verified,
            drafts accepted, and the drafter's confidence.
        compare: Compares the drafts of a generation that came while the target verified those of another with
            what is committed, from a position on.
        take_branch: Goes on with a branch of the draft at `lost_at`, if one is right.
        known: Output tokens that the drafter knows to be committed; -1 until it has been told of the stream.
        known_commit_s: When the newest of them was committed.
        generation: Number of the present generation of drafts; 0 before the first.
        start: Output position at which it begins.
        started_s: When it began.
        drafted: Position after the newest draft.
        branches: The decision in force asks for branches; the next generation has them, the present one what
            the decision in force at its beginning asked for.
        branch_start: First position whose draft has branches; NOWHERE in a generation without.
        steps: Draft steps made.
        opened: Which step made the draft of a position, by the position modulo `STEPS_KEPT`.
        suspended: The drafter is down.
        renewal: Process of the decision that is being taken; None if none is.
        closing: The decision that closes the stream, once it is taken.
        messages: Messages under way to the target, in order.
        results: Results under way to the drafter, in order.
        seen_window: Gamma, as the newest message told the target.
        seen_batch: B, likewise.
        seen_generation: Newest generation of which a draft has come to the target; 0 before the first.
        seen_start: Where it begins.
        seen_branch_start: First position whose draft has branches; NOWHERE while it is but a branch, and in a
            generation without.
        seen_steps: Draft steps until the newest message.
        adopted_at: Position at which the generation before was wrong, if the target has gone on with a branch
            of it; NOWHERE if this one came from the drafter.
        arrived: Position after its newest draft that has come.
        lost_at: First position at which its drafts differ from what is committed; NOWHERE if none does.
        verifying: Drafts of that generation in the iteration under way.
        verifying_start: Where the generation begins of those that the iteration took in.
        echo_sent_s: When the newest message that has come was sent.
        echo_came_s: When it came; negative once a result has told so.
        job: The stream's job at its target.
    """

    drafter: SiteDrafter
    place: tuple[Site, int]
    target: int
    window: int
    batch_size: int
    stop_rule: StopRule | None
    stop: Callable[[], None]
    tell: Callable[[int, int, int, float], None]
    take_branch: Callable[[], None]
    compare: Callable[[int], None]
    known: int = -1
    known_commit_s: float = 0.0
    generation: int = 0
    start: int = 0
    started_s: float = 0.0
    drafted: int = 0
    branches: bool = False
    branch_start: int = streams.NOWHERE
    steps: int = 0
    opened: list[int] = field(default_factory=lambda: [0] * streams.STEPS_KEPT)
    suspended: bool = False
    renewal: simpy.Process | None = None
    closing: Resolution | None = None
    messages: deque[DraftMessage] = field(default_factory=deque)
    results: deque[StreamResult] = field(default_factory=deque)
    seen_window: int = 0
    seen_batch: int = 1
    seen_generation: int = 0
    seen_start: int = 0
    seen_branch_start: int = streams.NOWHERE
    seen_steps: int = 0
    adopted_at: int = streams.NOWHERE
    arrived: int = 0
    lost_at: int = streams.NOWHERE
    verifying: int = 0
    verifying_start: int = 0
    echo_sent_s: float = 0.0
    echo_came_s: float = -1.0
    job: Job | None = None

    def opened_at(self, position: int) -> int:
        """Return which step made the draft of a position."""
        return self.opened[position % streams.STEPS_KEPT]

    def drafts_to_take(self, committed: int) -> int:
        """Return how many drafts the target takes into the next iteration."""
        if self.lost_at < streams.NOWHERE:
            return 0
        return streams.drafts_to_take(self.seen_window, committed, self.arrived)
