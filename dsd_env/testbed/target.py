"""The target: one model that reads the tokens of many requests in one pass.

All sequences lie in one row of the KV cache, one behind the other and mixed; a mask lets each token see
those of its own sequence only. A pass takes any number of new tokens of each, so prompts, single tokens and
windows of drafts share it without padding, and a request may join or leave between any two passes. Rejected
drafts and finished sequences leave dead columns, which are cleared away when they are many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.acceptance.recording.target import (
    growing_cache,
    inverse_cdf_sample,
    tempered_log_probs,
)
from dsd_env.rng import key, uniform_from_key

if TYPE_CHECKING:
    import torch

DEAD = -1
#: Stream of the draws that decide tokens, far from those of simulator and recordings.
TESTBED_STREAM = 1001
#: Dead columns are cleared away when they are more than this, and more than a quarter of all.
MOST_DEAD = 64


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen.

    Every position has a draw of its own, made of the seed alone. Hence a sampled output is as definite as a
    greedy
    one: the same seed gives the same tokens, however they come about.

    Attributes:
        temperature: 0 for greedy.
        seed: Seed of the draws.
    """

    temperature: float = 0.0
    seed: int = 0

    def draw(self, position: int) -> float:
        """Return the uniform draw for an output position."""
        return uniform_from_key(key(self.seed, TESTBED_STREAM, 0), position)


GREEDY = Sampling()


def choose(logits: torch.Tensor, sampling: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """Return the token that each row of logits gives.

    Args:
        logits: ``[rows, vocabulary]``.
        sampling: How each row chooses.
        positions: Output position that each row decides.
    """
    import torch

    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (how, position) in enumerate(zip(sampling, positions, strict=True)):
        if how.temperature > 0:
            probs = tempered_log_probs(logits[row : row + 1], how.temperature).exp()
            u = torch.tensor([how.draw(position)], dtype=torch.float64, device=logits.device)
            tokens[row] = int(inverse_cdf_sample(probs, u)[0])
    return tokens


@dataclass(frozen=True)
class Feed:
    """What one sequence adds to a pass.

    Attributes:
        sequence: Its number.
        tokens: New tokens, at least one.
        wanted: For how many of the last of them the target's choice is wanted; 0 for a part of a prompt.
        first_position: Output position that the first wanted choice decides.
        sampling: How tokens are chosen.
    """

    sequence: int
    tokens: Sequence[int]
    wanted: int
    first_position: int = 0
    sampling: Sampling = GREEDY


class PackedTarget:
    """A causal language model with the KV of many sequences in one row."""

    def __init__(self, model: Any) -> None:
        """Take a transformers model."""
        self._model = model
        self._cache = growing_cache(model.config)
        self._owner: NDArray[np.int64] = np.empty(0, np.int64)
        self._position: NDArray[np.int64] = np.empty(0, np.int64)
        self._lengths: dict[int, int] = {}

    @property
    def vocabulary(self) -> int:
        """Number of tokens that it knows."""
        return int(self._model.config.get_text_config().vocab_size)

    @property
    def columns(self) -> int:
        """Columns of the cache, dead ones included."""
        return len(self._owner)

    def length(self, sequence: int) -> int:
        """Return how many tokens of a sequence are in the cache."""
        return self._lengths.get(sequence, 0)

    def read(self, feeds: Sequence[Feed]) -> list[list[int]]:
        """Read new tokens of several sequences in one pass and return the choices wanted of each."""
        import torch

        ids = [token for feed in feeds for token in feed.tokens]
        owner = np.array([feed.sequence for feed in feeds for _ in feed.tokens], np.int64)
        position = np.concatenate(
            [np.arange(len(feed.tokens)) + self.length(feed.sequence) for feed in feeds]
        ).astype(np.int64)
        columns = np.concatenate([self._owner, owner])
        places = np.concatenate([self._position, position])
        mask = (columns[None, :] == owner[:, None]) & (places[None, :] <= position[:, None])
        ends = np.cumsum([len(feed.tokens) for feed in feeds])
        rows = [at for feed, end in zip(feeds, ends, strict=True) for at in range(end - feed.wanted, end)]
        device = self._model.device
        keep = torch.tensor(rows or [len(ids) - 1], device=device)
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.from_numpy(mask).to(device)[None, None],
                position_ids=torch.from_numpy(position).to(device)[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits[0]
        self._owner, self._position = columns, places
        for feed in feeds:
            self._lengths[feed.sequence] = self.length(feed.sequence) + len(feed.tokens)
        if not rows:
            return [[] for _ in feeds]
        sampling = [feed.sampling for feed in feeds for _ in range(feed.wanted)]
        decides = [feed.first_position + i for feed in feeds for i in range(feed.wanted)]
        chosen = iter(choose(logits, sampling, decides))
        return [[next(chosen) for _ in range(feed.wanted)] for feed in feeds]

    def crop(self, sequence: int, length: int) -> None:
        """Forget the tokens of a sequence behind the first ``length``; with 0 it is gone."""
        dead = (self._owner == sequence) & (self._position >= length)
        self._owner[dead] = DEAD
        if length:
            self._lengths[sequence] = min(length, self.length(sequence))
        else:
            self._lengths.pop(sequence, None)
        total = int((self._owner == DEAD).sum())
        if total > MOST_DEAD and 4 * total > len(self._owner):
            self._clear_away()

    def _clear_away(self) -> None:
        """Take dead columns out of the cache."""
        import torch

        alive = np.flatnonzero(self._owner != DEAD)
        self._owner, self._position = self._owner[alive], self._position[alive]
        if not len(alive):
            self._cache = growing_cache(self._model.config)
            return
        index = torch.from_numpy(alive).to(self._model.device)
        for layer in self._cache.layers:
            layer.keys = layer.keys.index_select(-2, index)
            layer.values = layer.values.index_select(-2, index)
