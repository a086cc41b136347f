"""A request in the cloud: what is committed, which drafts have come, what its next iteration verifies.

No network and no model here: a session takes messages, says what to verify, and is told what the target
chose. Everything happens on one thread.

**Losses do no harm**, since a message can always be sent again. Drafts carry their place and their base, so
that taking them twice, late or in another order changes nothing; the answer to a client holds all that is
committed beyond what it has acknowledged. Whatever is lost, the target verifies every token on the true
prefix: the output cannot differ from its own, only its time can.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsd_env.testbed.wire import Limits, Prefix, Refused, check_drafts, pb

#: Sequence numbers remembered of one RPC; older ones are refused.
REPLAY_WINDOW = 512


class ReplayGuard:
    """Tells a message that is sent again from one that is new, and from one that pretends."""

    def __init__(self) -> None:
        """Begin with an RPC."""
        self._seen: OrderedDict[int, bytes] = OrderedDict()
        self.newest = 0

    def is_new(self, sequence: int, content: bytes) -> bool:
        """Return whether a message has not been seen.

        Raises:
            Refused: Its number has been used for another message, or is so old that nobody remembers.
        """
        if sequence == 0:
            raise Refused(pb.MALFORMED, "sequence numbers begin at 1")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        known = self._seen.get(sequence)
        if known is not None:
            if known != digest:
                raise Refused(pb.REPLAYED, f"sequence {sequence} was used for another message")
            return False
        if sequence + REPLAY_WINDOW <= self.newest:
            raise Refused(pb.REPLAYED, f"sequence {sequence} is too old; the newest is {self.newest}")
        if sequence > self.newest + REPLAY_WINDOW:
            raise Refused(pb.MALFORMED, f"sequence {sequence} leaps; the newest is {self.newest}")
        self._seen[sequence] = digest
        self.newest = max(self.newest, sequence)
        while len(self._seen) > REPLAY_WINDOW:
            del self._seen[min(self._seen)]
        return True


@dataclass
class Counters:
    """Totals of a session.

    Attributes:
        drafts_verified: Drafts that iterations looked at.
        drafts_accepted: Those that were right.
        iterations: Iterations that decided a token of it.
        idle_iterations: Those of a stream for which no draft had come.
        late_drafts: Drafts that came for a generation that was void, or for a place that was decided.
        duplicates: Messages that came again.
        resyncs: Messages whose digest differed.
    """

    drafts_verified: int = 0
    drafts_accepted: int = 0
    iterations: int = 0
    idle_iterations: int = 0
    late_drafts: int = 0
    duplicates: int = 0
    resyncs: int = 0


@dataclass
class Session:
    """One request.

    Attributes:
        number: Its number in the log.
        request_id: Name that its client chose.
        secret: What a client must know to take it up again.
        owner: Authenticated name or address of who opened it.
        prompt: Prompt tokens.
        max_new_tokens: Length at which it ends.
        temperature: 0 for greedy.
        seed: Seed of the draws.
        limits: The server's limits.
        vocabulary: Number of tokens.
        prefix: Committed output.
        prompt_text: The user's message as text, with how the reply begins; for drafters in the cloud.
        mode: What it is asked to do; ``MODE_UNSPECIFIED`` until the client says.
        window: Most drafts of one iteration.
        generation: Drafts of earlier generations are void.
        acknowledged: Committed tokens that the client is known to have.
        finish_reason: ``stop`` or ``length`` once it is finished.
        counters: Totals.
    """

    number: int
    request_id: str
    secret: bytes
    owner: str
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    limits: Limits
    vocabulary: int
    prefix: Prefix
    prompt_text: tuple[str, str] = ("", "")
    mode: int = pb.MODE_UNSPECIFIED
    window: int = 0
    generation: int = 0
    acknowledged: int = 0
    finish_reason: str = ""
    counters: Counters = field(default_factory=Counters)
    guard: ReplayGuard = field(default_factory=ReplayGuard)
    _drafts: dict[int, int] = field(default_factory=dict)
    _verify_at: int = -1
    _run_until: int = 0
    _mode_sequence: int = 0

    @property
    def finished(self) -> bool:
        """Whether its last token is committed."""
        return bool(self.finish_reason)

    @property
    def buffered_drafts(self) -> int:
        """Drafts that have come and are not verified."""
        return len(self._drafts)

    def knows(self, secret: bytes, owner: str) -> bool:
        """Return whether somebody may take it up again."""
        return hmac.compare_digest(self.secret, secret) and self.owner == owner

    def attach(self) -> None:
        """Begin with a new RPC: sequence numbers start anew, and drafts under way are forgotten."""
        self.guard = ReplayGuard()
        self._mode_sequence = 0
        self._drafts.clear()
        self._verify_at = -1
        self.generation += 1

    def take(self, sequence: int, drafts: pb.DraftTailStream) -> bool:
        """Take a message that is new.

        Returns:
            Whether the client must be told the whole state, as its prefix is another.

        Raises:
            Refused: It makes no sense.
        """
        check_drafts(drafts, self.limits, self.vocabulary, self.max_new_tokens)
        base = drafts.base_committed_len
        if base > len(self.prefix):
            raise Refused(pb.MALFORMED, f"base_committed_len {base}, but {len(self.prefix)} are committed")
        if drafts.base_digest != self.prefix.digest(base):
            self.counters.resyncs += 1
            return True
        self.acknowledged = max(self.acknowledged, base)
        self._take_tokens(drafts)
        if sequence > self._mode_sequence:
            self._mode_sequence = sequence
            self.mode, self.window = drafts.mode, drafts.window
            self._run_until = max(self._run_until, drafts.run_until_len)
            self._verify_at = -1
            if drafts.mode == pb.VERIFY and base == len(self.prefix) and drafts.start_token_pos == base:
                self._verify_at = base
        return False

    def _take_tokens(self, drafts: pb.DraftTailStream) -> None:
        """Keep drafts of the present generation, and see whether they are still good."""
        if drafts.generation < self.generation:
            self.counters.late_drafts += len(drafts.tokens)
            return
        if drafts.generation > self.generation:
            self.generation = drafts.generation
            self._drafts.clear()
        committed = self.prefix.tokens
        most = len(committed) + self.limits.max_window
        for position, token in enumerate(drafts.tokens, start=drafts.start_token_pos):
            if position < len(committed):
                self.counters.late_drafts += 1
                if token != committed[position]:
                    self._drop_generation()  # the target has decided otherwise, and all that follow are wrong
                    return
            elif position < most and self._drafts.setdefault(position, token) != token:
                raise Refused(pb.CONTRADICTION, f"two drafts for position {position} of one generation")

    def _drop_generation(self) -> None:
        self.counters.late_drafts += len(self._drafts)
        self._drafts.clear()
        self.generation += 1

    def is_ready(self) -> bool:
        """Return whether it takes part in the next iteration."""
        if self.finished:
            return False
        if self.mode == pb.VERIFY:
            return self._verify_at == len(self.prefix)
        if self.mode in (pb.PLAIN, pb.COLOCATED):
            return len(self.prefix) < self._run_until
        return self.mode == pb.FREE_RUN

    def drafts_to_verify(self) -> list[int]:
        """Return the drafts that the next iteration verifies; fewer where the output would get too long."""
        if self.mode not in (pb.VERIFY, pb.FREE_RUN):
            return []
        start = len(self.prefix)
        most = min(self.window, self.max_new_tokens - start - 1)
        found: list[int] = []
        while len(found) < most and start + len(found) in self._drafts:
            found.append(self._drafts[start + len(found)])
        return found

    def decided(
        self,
        drafts: Sequence[int],
        choices: Sequence[int],
        stop_ids: frozenset[int],
        end_after_tokens: int = 0,
    ) -> list[int]:
        """Commit what an iteration decided.

        Args:
            drafts: What it verified.
            choices: The target's own tokens: at the place of each draft, and behind the last.
            stop_ids: Tokens that end the output and are not part of it.
            end_after_tokens: Length at which the target ends it by itself; 0: none.

        Returns:
            The tokens committed.
        """
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == choices[accepted]:
            accepted += 1
        new = list(choices[: accepted + 1])
        stop = next((i for i, token in enumerate(new) if token in stop_ids), None)
        if stop is not None:
            new, self.finish_reason = new[:stop], "stop"
        if end_after_tokens and len(self.prefix) + len(new) >= end_after_tokens:
            new, self.finish_reason = new[: end_after_tokens - len(self.prefix)], "stop"
        self.counters.iterations += 1
        self.counters.drafts_verified += len(drafts)
        self.counters.drafts_accepted += min(accepted, len(new))
        self.counters.idle_iterations += self.mode == pb.FREE_RUN and not drafts
        self._settle(new, accepted == len(drafts))
        self.prefix.extend(new)
        if not self.finished and len(self.prefix) >= self.max_new_tokens:
            self.finish_reason = "length"
        if self.finished:
            self._drafts.clear()
        return new

    def _settle(self, new: Sequence[int], all_accepted: bool) -> None:
        """Forget the drafts for the places of new tokens, or all of them where one was wrong."""
        start = len(self.prefix)
        wrong = not all_accepted
        for position, token in enumerate(new, start=start):
            draft = self._drafts.pop(position, token)
            wrong = wrong or draft != token
        self._verify_at = -1
        if wrong:
            self._drop_generation()
