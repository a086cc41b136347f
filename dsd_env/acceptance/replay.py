"""Replays recorded acceptance, which is exact for every speculation length, start and schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.source import (
    MAX_RUN_LENGTH,
    AcceptanceRealisation,
    Label,
    check_request,
    run_lengths,
)
from dsd_env.acceptance.traceset import TraceSet
from dsd_env.rng import Stream, key, number_below, uniform_from_key, uniforms


class TraceReplay:
    """Gives every simulated request the acceptance of a recorded one.

    The entry is picked by ``(seed, ACCEPTANCE_PICK, request)``, uniformly over the entries of the
    wanted kinds, and not by drafter: all drafters see the same recorded request. A replayed workload may
    name the entry instead. A request starts
    at its entry's first output token. One that needs more tokens than its entry holds goes on
    with further entries *of the same kind*, picked by the next counters of the same stream and
    never the same entry twice in a row where the kind has more than one.

    **A run never crosses a seam**: where one entry ends and the next begins, the run ends too.
    A recording may show that a run goes on beyond the last position of its entry. The replay ignores this,
    which costs a long request a little acceptance (one shortened round per seam).

    Prefix-only drafters (``accept_prob``) draw ``u`` once per position by
    ``(seed, ACCEPTANCE_MATCH, request, position)``, again not by drafter; the position matches
    iff ``u < accept_prob``. Where the recording says how probable the committed token was to the drafter
    (``draft_prob``), a position that the target decided without seeing a draft is guessed iff another draw,
    by ``(seed, ACCEPTANCE_GUESS, request, position)``, is below that.

    Args:
        trace: The recording.
        kinds: Kinds to use; default all. ``realise`` may narrow them further.

    Raises:
        TraceError: The recording has no such kind.
    """

    def __init__(self, trace: TraceSet, kinds: Sequence[str] | None = None) -> None:
        self._trace = trace
        self._drafters = tuple(trace.drafters)
        self._names: dict[str, int] | None = None
        self._default = trace.entries_of(kinds)
        self._kinds = tuple(trace.kinds[k] for k in np.unique(trace.kind[self._default]))
        self._by_kinds: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._by_kind_index = {
            k: trace.entries_of([name]) for k, name in enumerate(trace.kinds) if name in self._kinds
        }
        self._run = {
            d: None if t.run_length is None else t.run_length.astype(np.int32)
            for d, t in trace.drafters.items()
        }
        self._accept = {d: t.accept_prob for d, t in trace.drafters.items()}
        self._draft_prob = {d: t.guess_prob for d, t in trace.drafters.items()}
        self._proposed = {
            d: None if t.proposed is None else t.proposed.astype(np.int32) for d, t in trace.drafters.items()
        }
        self._top1 = {d: t.top1_prob.astype(np.float32) for d, t in trace.drafters.items()}
        self._entropy = {d: t.entropy_nats.astype(np.float32) for d, t in trace.drafters.items()}

    @property
    def trace(self) -> TraceSet:
        """The recording replayed."""
        return self._trace

    @property
    def label(self) -> Label:
        """Label of the recording."""
        label: Label = self._trace.card["label"]
        return label

    @property
    def drafters(self) -> tuple[str, ...]:
        """Drafters of the recording."""
        return self._drafters

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of request replayed."""
        return self._kinds

    @property
    def names(self) -> dict[str, int]:
        """Entry by name, of a recording; a model's pool has none."""
        if self._names is None:
            pool = self._trace.card["label"] in ("fitted", "published")
            self._names = {} if pool else {name: i for i, name in enumerate(self._trace.names)}
        return self._names

    def entries(
        self,
        seed: int,
        request: int,
        n_tokens: int,
        kinds: Sequence[str] | None = None,
        recorded: str | None = None,
    ) -> list[int]:
        """Return the entries that a request is made of, in order (at least one).

        Args:
            seed: Episode seed.
            request: Number of the request.
            n_tokens: Output tokens of the request.
            kinds: Kinds to draw from; default all of :attr:`kinds`.
            recorded: Name of the first entry, of any kind; without one, or if there are no names, it is
                drawn.
        """
        pool = self._default
        if kinds is not None:
            wanted = tuple(kinds)
            if wanted not in self._by_kinds:
                self._by_kinds[wanted] = self._trace.entries_of(wanted)
            pool = self._by_kinds[wanted]
        stream = key(seed, Stream.ACCEPTANCE_PICK, request)
        lengths = self._trace.lengths
        first = -1 if recorded is None or not self.names else self.names[recorded]
        if first < 0:
            first = int(pool[number_below(len(pool), uniform_from_key(stream, 0))])
        picked = [first]
        have = int(lengths[first])
        if have >= n_tokens:
            return picked
        same = self._by_kind_index[int(self._trace.kind[first])]
        place = int(np.searchsorted(same, first))
        while have < n_tokens:
            u = uniform_from_key(stream, len(picked))
            if len(same) > 1:  # skip over the entry just used
                place = (place + 1 + int(u * (len(same) - 1))) % len(same)
            picked.append(int(same[place]))
            have += int(lengths[picked[-1]])
        return picked

    def realise(
        self,
        seed: int,
        request: int,
        n_tokens: int,
        drafter: str,
        kinds: Sequence[str] | None = None,
        recorded: str | None = None,
    ) -> AcceptanceRealisation:
        """See :meth:`dsd_env.acceptance.source.AcceptanceSource.realise`; ``recorded`` names the entry."""
        check_request(self, n_tokens, drafter, kinds)
        offsets = self._trace.offsets
        bounds = [
            (int(offsets[e]), int(offsets[e + 1]))
            for e in self.entries(seed, request, n_tokens, kinds, recorded)
        ]
        remaining = np.concatenate([np.arange(b - a, 0, -1, dtype=np.int32) for a, b in bounds])
        runs = self._run[drafter]
        longest, proposed = 0, None
        if runs is not None:
            longest = self._trace.gamma_max or MAX_RUN_LENGTH
            run = np.concatenate([runs[a:b] for a, b in bounds])
            if (column := self._proposed[drafter]) is not None:
                proposed = np.concatenate([column[a:b] for a, b in bounds])[:n_tokens]
        else:
            accept = self._accept[drafter]
            assert accept is not None  # a trace set has one of the two forms
            u = uniforms(seed, Stream.ACCEPTANCE_MATCH, request, np.arange(len(remaining), dtype=np.int64))
            run = run_lengths(u < np.concatenate([accept[a:b] for a, b in bounds]))
        top1, entropy = (
            np.concatenate([values[drafter][a:b] for a, b in bounds])[:n_tokens]
            for values in (self._top1, self._entropy)
        )
        run = np.minimum(run, remaining)[:n_tokens]
        guess = None
        if (probability := self._draft_prob[drafter]) is not None:
            v = uniforms(seed, Stream.ACCEPTANCE_GUESS, request, np.arange(n_tokens, dtype=np.int64))
            guess = np.asarray(v < np.concatenate([probability[a:b] for a, b in bounds])[:n_tokens])
        rank = None
        if (ranks := self._trace.drafters[drafter].rank) is not None:
            rank = np.concatenate([ranks[a:b] for a, b in bounds])[:n_tokens]
        return AcceptanceRealisation(run, top1, entropy, longest, proposed, guess, rank)
