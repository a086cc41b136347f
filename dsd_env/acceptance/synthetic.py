"""Random models of acceptance, for tests of theory and for pairs known only by published figures.

Their confidence columns are constants: a model of acceptance says nothing about what the draft's
distribution looks like, and numbers that told a confidence rule which drafts will be accepted
would be a peek. The constants are the mean probability ``a`` that a draft is accepted and the
entropy of a yes/no variable of that probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.source import (
    MAX_RUN_LENGTH,
    AcceptanceError,
    AcceptanceRealisation,
    AcceptanceSource,
    Label,
    check_request,
    run_lengths,
)
from dsd_env.acceptance.stats import first_draft_indicator, hazards
from dsd_env.acceptance.traceset import TraceSet
from dsd_env.rng import Stream, uniforms

_LABELS = ("measured", "fitted", "published", "synthetic")


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise AcceptanceError(f"{name} is {value}; it must be in 0..1")


def _check_common(label: str, drafters: tuple[str, ...]) -> None:
    if label not in _LABELS:
        raise AcceptanceError(f"label is {label!r}; it must be one of {', '.join(_LABELS)}")
    if not drafters or len(set(drafters)) != len(drafters):
        raise AcceptanceError(f"drafters must be distinct names, found {list(drafters)}")


def _with_constant_confidence(run: NDArray[np.int32], accept: float) -> AcceptanceRealisation:
    entropy = -sum(p * math.log(p) for p in (accept, 1.0 - accept) if p > 0.0)
    return AcceptanceRealisation(
        run, np.full(len(run), accept, np.float32), np.full(len(run), entropy, np.float32)
    )


def _draws(seed: int, request: int, n: int) -> NDArray[np.float64]:
    return uniforms(seed, Stream.ACCEPTANCE_MATCH, request, np.arange(n, dtype=np.int64))


def _truncated_runs(matches: NDArray[np.bool_], n_tokens: int) -> NDArray[np.int32]:
    """Runs of ``n_tokens`` starts from matches that go ``MAX_RUN_LENGTH`` positions further."""
    return np.minimum(run_lengths(matches)[:n_tokens], np.int32(MAX_RUN_LENGTH))


@dataclass(frozen=True)
class IidAcceptance:
    """Every draft token is accepted with the same probability, independently.

    Tokens per round are ``(1 - alpha^(gamma+1)) / (1 - alpha)`` (Leviathan et al., "Fast inference
    from transformers via speculative decoding", ICML 2023, equation 1).

    Attributes:
        alpha: Acceptance probability of a token.
        label: ``synthetic``, or ``fitted``.
        drafters: Names of the drafters it answers for; they behave alike.
        kinds: Always empty: any kind is accepted and ignored.
    """

    alpha: float
    label: Label = "synthetic"
    drafters: tuple[str, ...] = ("draft",)
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_probability("alpha", self.alpha)
        _check_common(self.label, self.drafters)

    @classmethod
    def fit(cls, trace: TraceSet, drafter: str, kinds: Sequence[str] | None = None) -> IidAcceptance:
        """Fit ``alpha`` as accepted over examined drafts, over all starts of a recording."""
        examined, accepted = hazards(trace, drafter, kinds)
        return cls(float(accepted.sum() / examined.sum()), "fitted", (drafter,))

    def realise(
        self, seed: int, request: int, n_tokens: int, drafter: str, kinds: Sequence[str] | None = None
    ) -> AcceptanceRealisation:
        """See :meth:`dsd_env.acceptance.source.AcceptanceSource.realise`."""
        check_request(self, n_tokens, drafter, kinds)
        matches = _draws(seed, request, n_tokens + MAX_RUN_LENGTH) < self.alpha
        return _with_constant_confidence(_truncated_runs(matches, n_tokens), self.alpha)


@dataclass(frozen=True)
class PositionalAcceptance:
    """A draft's acceptance depends on its place in the round, independently between starts.

    ``P(L >= j) = a_1 ... a_j``. Fitted to a recording it has exactly the recorded distribution of
    run lengths over all starts up to the last place fitted, but not the dependence between starts.

    Attributes:
        accept_by_place: ``a_1, a_2, ...``: probability that the j-th draft of a round is accepted
            given that those before it were. Places beyond the last have the last value.
        label: ``synthetic``, or ``fitted``.
        drafters: Names of the drafters it answers for; they behave alike.
        kinds: Always empty: any kind is accepted and ignored.
    """

    accept_by_place: tuple[float, ...]
    label: Label = "synthetic"
    drafters: tuple[str, ...] = ("draft",)
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.accept_by_place:
            raise AcceptanceError("accept_by_place is empty; give at least one probability")
        for place, value in enumerate(self.accept_by_place, start=1):
            _check_probability(f"accept_by_place[{place}]", value)
        _check_common(self.label, self.drafters)

    @classmethod
    def fit(
        cls,
        trace: TraceSet,
        drafter: str,
        kinds: Sequence[str] | None = None,
        places: int | None = None,
        min_samples: int = 30,
    ) -> PositionalAcceptance:
        """Fit each place's acceptance over all starts of a recording.

        Args:
            trace: The recording.
            drafter: One of its drafters.
            kinds: Kinds to use; default all.
            places: Most places to fit; default as many as the recording can see.
            min_samples: Places examined less often than this are left to the last value.
        """
        examined, accepted = hazards(trace, drafter, kinds)
        enough = np.flatnonzero(examined[:places] < min_samples)
        end = int(enough[0]) if len(enough) else len(examined[:places])
        if end == 0:
            raise AcceptanceError(f"{trace.name}: fewer than {min_samples} starts to fit {drafter!r} to")
        values = accepted[:end] / examined[:end]
        return cls(tuple(float(v) for v in values), "fitted", (drafter,))

    def survival(self) -> NDArray[np.float64]:
        """Return ``P(L >= j)`` for ``j = 1 .. MAX_RUN_LENGTH``."""
        tail = MAX_RUN_LENGTH - len(self.accept_by_place)
        places = np.array(self.accept_by_place + self.accept_by_place[-1:] * max(tail, 0))
        return np.asarray(np.cumprod(places[:MAX_RUN_LENGTH]))

    def realise(
        self, seed: int, request: int, n_tokens: int, drafter: str, kinds: Sequence[str] | None = None
    ) -> AcceptanceRealisation:
        """See :meth:`dsd_env.acceptance.source.AcceptanceSource.realise`."""
        check_request(self, n_tokens, drafter, kinds)
        # L >= j iff u < P(L >= j); the survival falls with j, so count the j that hold.
        rising = -self.survival()
        run = np.searchsorted(rising, -_draws(seed, request, n_tokens), side="left").astype(np.int32)
        return _with_constant_confidence(run, self.accept_by_place[0])


@dataclass(frozen=True)
class MarkovAcceptance:
    """Matches of the draft form a two-state Markov chain along the output: easy and hard stretches.

    Starts in the stationary distribution. With ``after_match == after_mismatch`` it is i.i.d.

    Attributes:
        after_match: Probability that a position matches given that the one before it did.
        after_mismatch: The same given that the one before it did not.
        label: ``synthetic``, or ``fitted``.
        drafters: Names of the drafters it answers for; they behave alike.
        kinds: Always empty: any kind is accepted and ignored.
    """

    after_match: float
    after_mismatch: float
    label: Label = "synthetic"
    drafters: tuple[str, ...] = ("draft",)
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_probability("after_match", self.after_match)
        _check_probability("after_mismatch", self.after_mismatch)
        if self.after_match == 1.0 and self.after_mismatch == 0.0:
            raise AcceptanceError("after_match 1 with after_mismatch 0 never changes: no stationary start")
        _check_common(self.label, self.drafters)

    @property
    def stationary(self) -> float:
        """Long-run share of positions that match."""
        return self.after_mismatch / (1.0 - self.after_match + self.after_mismatch)

    @classmethod
    def fit(cls, trace: TraceSet, drafter: str, kinds: Sequence[str] | None = None) -> MarkovAcceptance:
        """Fit the chain to whether the first draft of a round from each start is accepted.

        For a drafter whose proposal depends on where the round started this is an approximation:
        its runs are not the runs of matches, and only the first draft's acceptance and its
        dependence from one position to the next are matched.
        """
        both, first, second, none = 0.0, 0.0, 0.0, 0.0
        for entry in first_draft_indicator(trace, drafter, kinds):
            here, after = entry[:-1], entry[1:]
            both += float((here * after).sum())
            first += float((here * (1 - after)).sum())
            second += float(((1 - here) * after).sum())
            none += float(((1 - here) * (1 - after)).sum())
        if both + first == 0 or second + none == 0:
            raise AcceptanceError(f"{trace.name}: {drafter!r} always or never matches; use IidAcceptance")
        return cls(both / (both + first), second / (second + none), "fitted", (drafter,))

    def realise(
        self, seed: int, request: int, n_tokens: int, drafter: str, kinds: Sequence[str] | None = None
    ) -> AcceptanceRealisation:
        """See :meth:`dsd_env.acceptance.source.AcceptanceSource.realise`."""
        check_request(self, n_tokens, drafter, kinds)
        n = n_tokens + MAX_RUN_LENGTH
        u = _draws(seed, request, n)
        low, high = sorted((self.after_match, self.after_mismatch))
        # Below `low` a position matches whatever came before, from `high` on it never does, and in
        # between it copies the state before it (or takes the opposite, if mismatches attract
        # matches). So each state is that of the last position that decided for itself.
        decides = (u < low) | (u >= high)
        value = u < low
        decides[0], value[0] = True, u[0] < self.stationary
        index = np.arange(n)
        last = np.maximum.accumulate(np.where(decides, index, 0))
        matches = value[last]
        if self.after_match < self.after_mismatch:
            matches = matches ^ ((index - last) % 2 == 1)
        return _with_constant_confidence(_truncated_runs(matches, n_tokens), self.stationary)


class PerDrafterAcceptance:
    """Several sources behind one: each drafter's name leads to a source and a drafter of it.

    Use it to let a scenario's drafters have names of their own, to give synthetic drafters
    different parameters, or to compare two drafters on the same requests. Sources built from the
    same recording pick the same entries.

    Args:
        sources: Drafter's name -> (source, name of the drafter there).

    Raises:
        AcceptanceError: No drafters, or one that its source does not have.
    """

    def __init__(self, sources: Mapping[str, tuple[AcceptanceSource, str]]) -> None:
        if not sources:
            raise AcceptanceError("sources is empty; give at least one drafter")
        for name, (source, inner) in sources.items():
            if inner not in source.drafters:
                raise AcceptanceError(
                    f"drafter {name!r} refers to {inner!r}; its source has: {', '.join(source.drafters)}"
                )
        self._sources = dict(sources)

    @property
    def label(self) -> Label:
        """The weakest of the sources' labels: synthetic, published, fitted, measured."""
        labels = {source.label for source, _ in self._sources.values()}
        order: tuple[Label, ...] = ("synthetic", "published", "fitted", "measured")
        return next(label for label in order if label in labels)

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names given to the drafters."""
        return tuple(self._sources)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that every source with kinds distinguishes."""
        known = [source.kinds for source, _ in self._sources.values() if source.kinds]
        return tuple(k for k in known[0] if all(k in other for other in known)) if known else ()

    def realise(
        self, seed: int, request: int, n_tokens: int, drafter: str, kinds: Sequence[str] | None = None
    ) -> AcceptanceRealisation:
        """See :meth:`dsd_env.acceptance.source.AcceptanceSource.realise`."""
        check_request(self, n_tokens, drafter, kinds)
        source, inner = self._sources[drafter]
        return source.realise(seed, request, n_tokens, inner, kinds)
