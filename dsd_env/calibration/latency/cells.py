"""One cell of a step table: an iteration's composition and its duration."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DECODE", "PREFILL", "VERIFY", "Cell"]

DECODE = "decode"
VERIFY = "verify"
PREFILL = "prefill"


@dataclass(frozen=True)
class Cell:
    """Duration of one whole iteration, and what was in it.

    Attributes:
        key: unique text of the cell; the train/held-out split depends on nothing else.
        region: ``decode`` (one new token a sequence), ``verify`` (2 … 17) or ``prefill`` (a chunk).
        new_tokens: new tokens over all sequences.
        kv_tokens: tokens attended to over all sequences (each one's context, its new tokens included).
        max_kv_multi_tokens: longest such context among sequences with more than one new token, 0 if none.
        seconds: duration.
        weight: weight in the fit.
    """

    key: str
    region: str
    new_tokens: int
    kv_tokens: int
    max_kv_multi_tokens: int
    seconds: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible cells at the door instead of letting them bend a fit."""
        if not (math.isfinite(self.seconds) and self.seconds > 0.0):
            raise ValueError(f"cell {self.key}: seconds = {self.seconds!r} must be finite and > 0")
        if self.new_tokens < 1 or self.kv_tokens < 0 or not 0 <= self.max_kv_multi_tokens <= self.kv_tokens:
            raise ValueError(
                f"cell {self.key}: need new_tokens >= 1 and 0 <= max_kv_multi_tokens <= kv_tokens, got "
                f"{self.new_tokens}, {self.max_kv_multi_tokens}, {self.kv_tokens}"
            )
        if not (math.isfinite(self.weight) and self.weight > 0.0):
            raise ValueError(f"cell {self.key}: weight = {self.weight!r} must be finite and > 0")
