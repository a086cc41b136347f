"""What both ends of the wire agree on: digests of prefixes, limits, refusals and the checks of messages."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from dsd_env.extras import needs
from dsd_env.strict_model import StrictNumbers

with needs("testbed", "the testbed"):
    from dsd_env.testbed.proto import testbed_pb2 as pb

__all__ = [
    "SERVICE",
    "Limits",
    "MessageBudget",
    "Prefix",
    "Refused",
    "check_drafts",
    "check_open",
    "check_tokens",
    "next_digest",
    "pb",
    "prompt_digest",
]

SERVICE = "dsd_env.testbed.v1.DecoupledSpeculation"
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_SECRET_BYTES = range(16, 65)


class Refused(Exception):
    """A message that is not taken, with the code and the reason that the sender is told."""

    def __init__(self, code: pb.RefusalCode, reason: str) -> None:
        """Refuse with a code of the protocol and a reason in words."""
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Limits(StrictNumbers, BaseModel):
    """What a server takes from a client.

    Attributes:
        max_prompt_tokens: Longest prompt.
        max_new_tokens: Longest output.
        max_window: Most drafts of one message, and in one iteration of one request.
        max_message_bytes: Largest message; larger ones end the RPC before they are read.
        max_messages_per_s: Messages per second and RPC on the average.
        message_burst: Messages that may come at once.
        max_sessions: Requests that the server knows at a time, finished ones within their time to live
            included.
        max_sessions_per_owner: Those of one owner: an authenticated name, or else an address.
        handshake_s: Time in which an RPC must say which request it is for.
        session_ttl_s: How long a request outlives its last RPC, or its client's last message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_prompt_tokens: int = Field(4096, ge=1)
    max_new_tokens: int = Field(2048, ge=1)
    max_window: int = Field(32, ge=1, le=1024)
    max_message_bytes: int = Field(65536, ge=1024)
    max_messages_per_s: float = Field(400.0, gt=0)
    message_burst: int = Field(400, ge=1)
    max_sessions: int = Field(64, ge=1)
    max_sessions_per_owner: int = Field(8, ge=1)
    handshake_s: float = Field(10.0, gt=0)
    session_ttl_s: float = Field(120.0, gt=0)


def prompt_digest(prompt: Sequence[int]) -> int:
    """Return the digest of the empty output behind a prompt."""
    data = struct.pack(f"<{len(prompt)}I", *prompt)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def next_digest(digest: int, token: int) -> int:
    """Return the digest of a prefix and one more token."""
    data = struct.pack("<QI", digest, token)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Prefix:
    """Committed output tokens and the digest of every prefix of them."""

    def __init__(self, prompt: Sequence[int], tokens: Iterable[int] = ()) -> None:
        """Begin behind a prompt, with tokens that are committed already."""
        self.tokens: list[int] = []
        self._digests = [prompt_digest(prompt)]
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append committed tokens."""
        for token in tokens:
            self.tokens.append(token)
            self._digests.append(next_digest(self._digests[-1], token))

    def digest(self, length: int | None = None) -> int:
        """Return the digest of the first ``length`` tokens, by default of all."""
        return self._digests[len(self.tokens) if length is None else length]


class MessageBudget:
    """A token bucket: an average rate of messages, with a burst."""

    def __init__(self, limits: Limits, now_s: float) -> None:
        """Begin with a full bucket."""
        self._rate, self._most = limits.max_messages_per_s, float(limits.message_burst)
        self._left, self._at_s = self._most, now_s

    def spend(self, now_s: float) -> None:
        """Count one message.

        Raises:
            Refused: There have been too many.
        """
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1.0:
            raise Refused(pb.FLOOD, f"more than {self._rate:g} messages per second")
        self._left -= 1.0


def check_open(message: pb.EdgeMessage, limits: Limits, vocabulary: int) -> pb.DraftOpen:
    """Return what a message opens.

    Raises:
        Refused: It opens nothing, or a field is out of range.
    """
    if message.WhichOneof("body") != "open":
        raise Refused(pb.UNEXPECTED, "the first message of an RPC must be DraftOpen")
    if not _REQUEST_ID.fullmatch(message.request_id):
        raise Refused(pb.MALFORMED, "request_id must be 32 hexadecimal digits in lower case")
    opened = message.open
    if len(opened.secret) not in _SECRET_BYTES:
        raise Refused(pb.MALFORMED, f"secret has {len(opened.secret)} bytes, not 16 to 64")
    if not opened.prompt_token_ids:
        raise Refused(pb.MALFORMED, "prompt_token_ids is empty")
    if len(opened.prompt_token_ids) > limits.max_prompt_tokens:
        raise Refused(
            pb.TOO_LARGE, f"{len(opened.prompt_token_ids)} prompt tokens, at most {limits.max_prompt_tokens}"
        )
    if not 1 <= opened.max_new_tokens <= limits.max_new_tokens:
        raise Refused(
            pb.TOO_LARGE, f"max_new_tokens {opened.max_new_tokens} is not in 1 to {limits.max_new_tokens}"
        )
    if len(opened.committed_outputs) > opened.max_new_tokens:
        raise Refused(pb.MALFORMED, "more committed_outputs than max_new_tokens")
    if not 0.0 <= opened.temperature <= 100.0:  # refuses NaN as well
        raise Refused(pb.MALFORMED, f"temperature {opened.temperature} is not in 0 to 100")
    check_tokens(opened.prompt_token_ids, vocabulary, "prompt_token_ids")
    check_tokens(opened.committed_outputs, vocabulary, "committed_outputs")
    return opened


def check_tokens(tokens: Sequence[int], vocabulary: int, name: str) -> None:
    """Refuse token ids that the target does not know.

    Raises:
        Refused: There is one.
    """
    if tokens and max(tokens) >= vocabulary:
        raise Refused(
            pb.MALFORMED, f"{name} has token {max(tokens)}; the vocabulary has {vocabulary} of them"
        )


def check_drafts(drafts: pb.DraftTailStream, limits: Limits, vocabulary: int, max_new_tokens: int) -> None:
    """Refuse drafts whose numbers are out of range, whatever the state of their request.

    Raises:
        Refused: A field is out of range.
    """
    if drafts.mode not in (pb.VERIFY, pb.FREE_RUN, pb.PLAIN, pb.COLOCATED):
        raise Refused(pb.MALFORMED, f"unknown mode {drafts.mode}")
    if drafts.window > limits.max_window:
        raise Refused(pb.TOO_LARGE, f"window {drafts.window}, at most {limits.max_window}")
    if len(drafts.tokens) > limits.max_window:
        raise Refused(
            pb.TOO_LARGE, f"{len(drafts.tokens)} drafts in one message, at most {limits.max_window}"
        )
    if drafts.generation >= 1 << 62:
        raise Refused(pb.MALFORMED, f"generation {drafts.generation}")
    if (
        not drafts.base_committed_len
        <= drafts.start_token_pos
        <= drafts.base_committed_len + limits.max_window
    ):
        raise Refused(
            pb.MALFORMED,
            f"start_token_pos {drafts.start_token_pos} is not within {limits.max_window} of the base "
            f"{drafts.base_committed_len}",
        )
    if drafts.run_until_len > max_new_tokens:
        raise Refused(pb.MALFORMED, f"run_until_len {drafts.run_until_len}, at most {max_new_tokens}")
    check_tokens(drafts.tokens, vocabulary, "tokens")
