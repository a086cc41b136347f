"""The protocol between drafter and target, and the sizes of its messages."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dsd_env.scenario.base import Model, NonNegative, Positive, WithLaterKeys


class Branches(Model):
    """Branches: continuations that the drafter of a stream prepares for likely corrections of its drafts.

    A fan-out of 0 turns branches off whatever their depth, so that a variant of a scenario can do so.
    """

    fanout: Annotated[int, Field(ge=0, le=8)] = Field(
        default=0,
        description="Number of branches that open at each new draft, for its likeliest alternatives; 0: "
        "none.",
    )
    depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="Number of tokens in a branch after its first one."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "depth" in self.model_fields_set and "fanout" not in self.model_fields_set:
            raise ValueError(
                f"depth = {self.depth} says nothing without fanout (1 to 8; 0, its default: no branches)"
            )
        return self


class Protocol(WithLaterKeys):
    """The protocol by which drafter and target execute rounds or streams together."""

    later_keys: ClassVar[tuple[str, ...]] = ("token_acks",)

    kind: Literal["synchronous", "pipelined", "streaming"] = Field(
        default="synchronous",
        description="pipelined: while a window is verified, its drafter continues as if the whole window and "
        "the drafter's guess of the token after it were accepted. streaming: drafts are sent as they are "
        "made, up to gamma drafts ahead of what the drafter knows to be committed, and each iteration of the "
        "target verifies those that have arrived. Look-ups and drafters on a target's own GPUs keep to "
        "rounds.",
    )
    stream_chunk_tokens: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Number of drafts that a stream sends in one message; fewer if the window is smaller. "
        "This key and `stream_idle` have no effect without streams, so that a variant may change `kind` "
        "alone.",
    )
    stream_idle: Literal["decode", "wait"] = Field(
        default="decode",
        description="What a target does if no draft of a stream has arrived: decode a token itself, or wait "
        "for a draft, but no longer than `patience_s`.",
    )
    branches: Branches = Field(default=Branches(), description="Branches of streams.")
    header_bytes: NonNegative = Field(default=64.0, description="Size of a message beside its tokens.")
    bytes_per_token: NonNegative = Field(default=4.0, description="Size of each token in a message.")
    draft_probabilities: Literal["none", "scalar", "top_k"] = Field(
        default="none",
        description="Probabilities sent with each draft: none, its own, or those of the `top_k` likeliest "
        "tokens.",
    )
    top_k: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="Number of probabilities sent with each draft (top_k)."
    )
    bytes_per_probability: NonNegative = Field(
        default=2.0, description="Size of each probability in a message."
    )
    plain_chunk_tokens: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=8, description="Number of tokens that plain decoding makes before the next decision."
    )
    confidence_stop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Drafting ends after a token whose top-1 probability is below this value; 0: never.",
    )
    token_acks: bool = Field(
        default=False,
        description="Whether clients acknowledge tokens, as TCP does: one message of tokens at a time is "
        "timed for each client, so that the client's link is measured wherever drafts are made, and without "
        "drafts too. False: only results of drafts made on the client's device measure the link.",
    )
    decision_latency_s: NonNegative = Field(
        default=0.0, description="Time from when a decision is due until it takes effect."
    )
    patience_s: Positive | None = Field(
        default=None,
        description="Time that a target waits for drafts after sending a result before it decodes alone; "
        "None: forever.",
    )
    client_timeout_s: Positive | None = Field(
        default=None,
        description="Time that a device waits for a result before it sends its drafts again; each further "
        "wait is twice as long. None: it never sends them again.",
    )
    crash_detection_s: Positive = Field(
        default=0.25, description="Time from a target's crash until messages tell its clients."
    )
    telemetry_period_s: Positive = Field(default=0.05, description="How often servers publish their state.")
    stats_window: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="Weight of the newest sample in running estimates (EMA)."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "streaming" and self.stream_idle == "wait" and self.patience_s is None:
            raise ValueError(
                "stream_idle = wait needs patience_s (> 0): without it a stream whose drafter fell silent "
                "would wait for ever"
            )
        if self.branches.fanout == 0:
            return self
        if self.kind != "streaming":
            raise ValueError(
                f"branches.fanout = {self.branches.fanout} needs kind = 'streaming', not {self.kind!r}: "
                "branches belong to streams"
            )
        if self.stream_chunk_tokens != 1:
            raise ValueError(
                f"stream_chunk_tokens = {self.stream_chunk_tokens} must be 1 with branches (branches.fanout "
                f"= {self.branches.fanout}), which grow with every token that is sent"
            )
        return self

    @property
    def bytes_per_draft_token(self) -> float:
        """Size of one draft token in a message to the target, in bytes."""
        if self.draft_probabilities == "none":
            return self.bytes_per_token
        if self.draft_probabilities == "scalar":
            return self.bytes_per_token + self.bytes_per_probability
        return self.bytes_per_token + self.top_k * (self.bytes_per_probability + self.bytes_per_token)
