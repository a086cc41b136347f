"""Fits :mod:`dsd_env.acceptance.runmodel` to recorded run lengths by maximum likelihood (EM).

The hidden parts are the class of a request and its states. One iteration runs the forward-backward algorithm
(Baum et al., 1970; scaling as in Rabiner, Proc. IEEE 77(2), 1989) over every request under every class,
weighs by the classes' posterior, and turns expected counts into parameters, each shrunk to the pooled
estimate with the weight of :data:`SHRINKAGE` observations (a Beta prior; the fit is maximum a posteriori,
strictly).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.runmodel import AGES, RequestClass, RunProcess, RunState, Unseen, move_row

SHRINKAGE = 10.0
"""Observations that the pooled estimate counts for in every state's own."""
RETURN_SHAPE = (5, 9)
"""Rows and columns of ``return_to_hard_token``."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """A fitted process.

    Attributes:
        process: The process.
        log_likelihood: Of the run lengths and output lengths of all requests, nats.
        iterations: Iterations done.
    """

    process: RunProcess
    log_likelihood: float
    iterations: int


@dataclass
class _Parameters:
    """Working form: arrays over classes C, states S, runs R+1."""

    weight: Floats
    mean: Floats
    sd: Floats
    start: Floats
    move: Floats
    law: Floats
    beyond: Floats
    returns: Floats
    passes: Floats


def _context(runs: Integers, offsets: Integers) -> tuple[Integers, Integers]:
    """Return what each position knows of those before it.

    Returns:
        The age, and the run that the hard token needs (-1 where there is none), both int64 ``[total]``.
    """
    age, hard = np.zeros(len(runs), dtype=np.int64), np.full(len(runs), -1, dtype=np.int64)
    values, bounds = runs.tolist(), offsets.tolist()
    for begin, end in pairwise(bounds):
        ahead, since, previous = -1, 0, 0
        for s in range(begin, end):
            hard[s], age[s] = ahead, since
            since = min(since + 1, AGES - 1) if values[s] == previous - 1 else 0
            previous = values[s]
            ahead = max(ahead, previous) - 1
    return age, hard


@functools.cache
def _kernel() -> Callable[..., float]:
    """Return the compiled E-step. Numba is imported, and the code compiled, only where a model is fitted."""
    from numba import njit

    def expect(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
        runs, age, hard, offsets, prior, start, move, law, beyond, returns, passes,
        counts, passed_to, moved, began, came_back, passed, fell_short, posterior, likelihood,
    ):  # fmt: skip
        n_requests, (n_classes, n_states) = len(offsets) - 1, start.shape
        longest = 0
        for i in range(n_requests):
            longest = max(longest, offsets[i + 1] - offsets[i])
        forward = np.zeros((n_classes, longest, n_states))
        emit = np.zeros((n_classes, longest, n_states))
        scale = np.zeros((n_classes, longest))
        score = np.zeros(n_classes)
        backward, earlier = np.zeros(n_states), np.zeros(n_states)
        for i in range(n_requests):
            first = offsets[i]
            size = offsets[i + 1] - first
            for c in range(n_classes):
                total = 0.0
                for t in range(size):
                    p = runs[first + t - 1] if t > 0 else 0
                    run, b = runs[first + t], hard[first + t]
                    back, over = 0.0, 0.0
                    if b >= p:
                        row, column = min(p, returns.shape[0] - 1), min(b, returns.shape[1] - 1)
                        back, over = returns[row, column], passes[row, column]
                    z = 0.0
                    for s in range(n_states):
                        e = law[c, s, age[first + t], p, run] * (1.0 - back - over)
                        if b >= p and run == b:
                            e += back
                        if b >= p and run > b:
                            e += over * beyond[c, s, b + 1, run]
                        emit[c, t, s] = e
                        a = start[c, s]
                        if t > 0:
                            a = 0.0
                            for q in range(n_states):
                                a += forward[c, t - 1, q] * move[c, q, s]
                        forward[c, t, s] = a * e
                        z += a * e
                    for s in range(n_states):
                        forward[c, t, s] /= z
                    scale[c, t] = z
                    total += np.log(z)
                score[c] = total + prior[i, c]
            high = score.max()
            z = 0.0
            for c in range(n_classes):
                z += np.exp(score[c] - high)
            likelihood[i] = high + np.log(z)
            for c in range(n_classes):
                weight = np.exp(score[c] - likelihood[i])
                posterior[i, c] = weight
                if weight < 1e-9:
                    continue
                backward[:] = 1.0
                for t in range(size - 1, -1, -1):
                    p = runs[first + t - 1] if t > 0 else 0
                    run, b = runs[first + t], hard[first + t]
                    row, column = min(p, returns.shape[0] - 1), max(0, min(b, returns.shape[1] - 1))
                    for s in range(n_states):
                        g = weight * forward[c, t, s] * backward[s]
                        own = g
                        if b >= p:
                            fell_short[row, column] += g
                            if run == b:
                                share = returns[row, column] / emit[c, t, s]
                                came_back[row, column] += g * share
                                own = g * (1.0 - share)
                            elif run > b:
                                share = passes[row, column] * beyond[c, s, b + 1, run] / emit[c, t, s]
                                passed[row, column] += g * share
                                passed_to[c, s, b + 1, run] += g * share
                                own = g * (1.0 - share)
                        counts[c, s, age[first + t], p, run] += own
                    if t == 0:
                        for s in range(n_states):
                            began[c, s] += weight * forward[c, 0, s] * backward[s]
                    else:
                        for q in range(n_states):
                            v = 0.0
                            for s in range(n_states):
                                w = move[c, q, s] * emit[c, t, s] * backward[s] / scale[c, t]
                                v += w
                                moved[c, q, s] += weight * forward[c, t - 1, q] * w
                            earlier[q] = v
                        backward[:] = earlier
        return likelihood.sum()

    compiled: Callable[..., float] = njit(error_model="numpy")(expect)
    return compiled


# ---------------------------------------------------------------------- counts to parameters


def _tallies(counts: Floats, passed: Floats) -> tuple[Floats, list[tuple[Floats, Floats]]]:
    """Return what one state's counts, ``[AGES, R+1, R+1]`` and past the hard token ``[R+1, R+1]``, say.

    That is moves, and (events, trials) of the three laws.
    Moves are ``[AGES, rows, 3]``: same token, earlier, later. The laws are ``accept_fresh``,
    ``accept_beyond`` and ``end_before``, in trials of one place each (a life table).
    """
    longest = counts.shape[-1] - 1
    moves = np.zeros((AGES, move_row(longest, longest) + 1, 3))
    for p in range(1, longest + 1):
        row = move_row(p, longest)
        moves[:, row, 0] += counts[:, p, p - 1]
        moves[:, row, 1] += counts[:, p, : p - 1].sum(axis=1)
        moves[:, row, 2] += counts[:, p, p:].sum(axis=1)
    counts = counts.sum(axis=0)
    reached = counts + passed  # a run past the hard token obeys `accept_beyond`, too
    accept = []
    for rows in ([0], range(1, longest + 1)):
        events, trials = np.zeros(longest), np.zeros(longest)
        for p in rows:
            at_least = reached[p, p:][::-1].cumsum()[::-1]
            trials[p:] += at_least[:-1]
            events[p:] += at_least[1:]
        accept.append((events, trials))
    events, trials = np.zeros(longest), np.zeros(longest)
    for p in range(2, longest + 1):
        events[: p - 1] += counts[p, : p - 1]
        trials[: p - 1] += counts[p, : p - 1].cumsum()
    return moves, [*accept, (events, trials)]


def _states(counts: Floats, passed: Floats, shrinkage: float) -> list[list[RunState]]:
    """Return the states' laws from expected counts ``[C, S, AGES, R+1, R+1]``."""
    pooled_moves, pooled_laws = _tallies(counts.sum(axis=(0, 1)), passed.sum(axis=(0, 1)))
    ageless = pooled_moves.sum(axis=0) + 0.5
    ageless[0, 1] = 0.0  # nothing lies before the token that ended a run of one
    prior = pooled_moves + shrinkage * ageless / ageless.sum(axis=1, keepdims=True)
    prior /= prior.sum(axis=2, keepdims=True)
    base = [(events + 0.3) / (trials + 0.6) for events, trials in pooled_laws]
    found = []
    for group, beyond_hard in zip(counts, passed, strict=True):
        states = []
        for own, farther in zip(group, beyond_hard, strict=True):
            moves, laws = _tallies(own, farther)
            share = moves + shrinkage * prior
            share /= share.sum(axis=2, keepdims=True)
            fresh, beyond, before = (
                (events + shrinkage * b) / (trials + shrinkage)
                for (events, trials), b in zip(laws, base, strict=True)
            )
            states.append(
                RunState(
                    accept_fresh=tuple(fresh.tolist()),
                    accept_beyond=tuple(beyond.tolist()),
                    end_before=tuple(np.minimum(before, 1.0).tolist()),
                    same_token=_rows(share[:, :, 0]),
                    later_token=_rows(share[:, :, 2]),
                )
            )
        found.append(states)
    return found


def _rows(values: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def _first_counts(
    runs: Integers, age: Integers, offsets: Integers, classes: int, states: int, longest: int
) -> Floats:
    """Return counts to begin with: requests by their mean run, positions by the mean run around them."""
    counts = np.zeros((classes, states, AGES, longest + 1, longest + 1))
    pairs = list(pairwise(offsets.tolist()))
    parts = [runs[a:b] for a, b in pairs]
    rank = np.argsort(np.argsort([part.mean() for part in parts], kind="stable"), kind="stable")
    for place, part, (a, b) in zip(rank, parts, pairs, strict=True):
        c = min(int(place / len(parts) * classes), classes - 1)
        previous = np.concatenate([[0], part[:-1]])
        window = np.ones(min(15, len(part)))
        around = np.convolve(part, window, "same") / np.convolve(np.ones(len(part)), window, "same")
        state = np.searchsorted(np.quantile(around, np.arange(1, states) / states), around, side="left")
        np.add.at(counts[c], (state, age[a:b], previous, part), 1.0)
    return counts


def _prior(parameters: _Parameters, log_length: Floats) -> Floats:
    """Return each request's log prior of class and length, ``[n, C]``."""
    z = (log_length[:, None] - parameters.mean) / parameters.sd
    return np.ascontiguousarray(
        np.log(parameters.weight) - np.log(parameters.sd) - 0.5 * z**2 - 0.5 * math.log(2.0 * math.pi)
    )


def _expect(
    parameters: _Parameters, runs: Integers, context: tuple[Integers, Integers], offsets: Integers
) -> tuple[float, dict[str, Floats]]:
    n_classes, n_states = parameters.start.shape
    n = len(offsets) - 1
    out = {
        "counts": np.zeros(parameters.law.shape),
        "passed_to": np.zeros(parameters.beyond.shape),
        "moved": np.zeros((n_classes, n_states, n_states)),
        "began": np.zeros((n_classes, n_states)),
        "came_back": np.zeros(parameters.returns.shape),
        "passed": np.zeros(parameters.returns.shape),
        "fell_short": np.zeros(parameters.returns.shape),
        "posterior": np.zeros((n, n_classes)),
        "likelihood": np.zeros(n),
    }
    prior = _prior(parameters, np.log(np.diff(offsets)))
    given = [getattr(parameters, name) for name in ("start", "move", "law", "beyond", "returns", "passes")]
    return float(_kernel()(runs, *context, offsets, prior, *given, *out.values())), out


def _check(runs: NDArray[Any], offsets: NDArray[Any], longest: int) -> tuple[Integers, Integers]:
    values = np.minimum(np.asarray(runs, dtype=np.int64), longest)
    bounds = np.asarray(offsets, dtype=np.int64)
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(values) or (np.diff(bounds) < 1).any():
        raise ValueError("offsets must begin with 0, increase strictly and end with the number of runs")
    if (values < 0).any():
        raise ValueError("run lengths must not be negative")
    return values, bounds


def fit_process(
    runs: NDArray[Any],
    offsets: NDArray[Any],
    longest_run: int,
    n_classes: int,
    n_states: int,
    iterations: int = 200,
    tolerance: float = 1e-6,
    shrinkage: float = SHRINKAGE,
    progress: Callable[[int, float], None] | None = None,
) -> Fit:
    """Fit a process with a given number of classes and states.

    Args:
        runs: ``[total]``: run lengths, flat over requests; longer ones are taken as ``longest_run``.
        offsets: ``[n+1]``: bounds of the requests.
        longest_run: Longest run the recording could see.
        n_classes: Classes of requests.
        n_states: States within a request.
        iterations: Most iterations.
        tolerance: Stop when the log-likelihood grows by less than this share of itself.
        shrinkage: See :data:`SHRINKAGE`.
        progress: Called with the iteration and its log-likelihood.
    """
    values, bounds = _check(runs, offsets, longest_run)
    if n_classes < 1 or n_states < 1:
        raise ValueError("n_classes and n_states must be positive")
    context = _context(values, bounds)
    log_length = np.log(np.diff(bounds))
    spread = max(float(log_length.std()), 0.05)
    stay = 0.98 if n_states > 1 else 1.0
    move = np.full((n_states, n_states), (1.0 - stay) / max(n_states - 1, 1))
    np.fill_diagonal(move, stay)
    counts = _first_counts(values, context[0], bounds, n_classes, n_states, longest_run)
    states = _states(counts, np.zeros_like(counts[:, :, 0]), 5.0 * shrinkage)
    parameters = _Parameters(
        weight=np.full(n_classes, 1.0 / n_classes),
        mean=np.full(n_classes, log_length.mean()),
        sd=np.full(n_classes, spread),
        start=np.full((n_classes, n_states), 1.0 / n_states),
        move=np.repeat(move[None], n_classes, axis=0),
        law=np.array([[state.table() for state in group] for group in states]),
        beyond=np.array([[state.beyond() for state in group] for group in states]),
        returns=np.full(RETURN_SHAPE, 0.2),
        passes=np.full(RETURN_SHAPE, 0.1),
    )
    last, done = -math.inf, 0
    for done in range(1, iterations + 1):
        total, seen = _expect(parameters, values, context, bounds)
        if progress is not None:
            progress(done, total)
        if done > 5 and total - last < tolerance * abs(total):
            break
        last = total
        states = _states(seen["counts"], seen["passed_to"], shrinkage)
        _maximise(parameters, seen, states, log_length, spread)
    total, _ = _expect(parameters, values, context, bounds)
    return Fit(_process(parameters, states), total, done)


def _maximise(
    parameters: _Parameters,
    seen: dict[str, Floats],
    states: list[list[RunState]],
    log_length: Floats,
    spread: float,
) -> None:
    n_classes, n_states = parameters.start.shape
    mass = seen["posterior"].sum(axis=0)
    parameters.weight = (mass + 1.0) / (mass.sum() + n_classes)
    parameters.mean = (seen["posterior"].T @ log_length + log_length.mean()) / (mass + 1.0)
    squares = (seen["posterior"] * (log_length[:, None] - parameters.mean) ** 2).sum(axis=0)
    parameters.sd = np.sqrt((squares + 5.0 * spread**2) / (mass + 5.0))
    began = seen["began"] + 1.0
    parameters.start = began / began.sum(axis=1, keepdims=True)
    moved = seen["moved"] + 10.0 * np.eye(n_states) + 0.1
    parameters.move = moved / moved.sum(axis=2, keepdims=True)
    parameters.law = np.array([[state.table() for state in group] for group in states])
    parameters.beyond = np.array([[state.beyond() for state in group] for group in states])
    trials = seen["fell_short"]
    for name, events in (("returns", seen["came_back"]), ("passes", seen["passed"])):
        pooled = (events.sum() + 0.3) / (trials.sum() + 0.9)
        setattr(parameters, name, (events + SHRINKAGE * pooled) / (trials + SHRINKAGE))


def _round_all(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_round_all(v) if isinstance(v, (tuple, list)) else round(float(v), 4) for v in values)


def _law(values: NDArray[Any], digits: int = 5) -> tuple[float, ...]:
    """Round a distribution so that it still sums to 1."""
    rounded = [round(float(v), digits) for v in values]
    largest = int(np.argmax(values))
    rounded[largest] = round(1.0 - sum(v for i, v in enumerate(rounded) if i != largest), digits)
    return tuple(rounded)


def _process(parameters: _Parameters, states: list[list[RunState]]) -> RunProcess:
    """Return the parameters as they are stored: rounded, classes from hard to easy."""
    weights = _law(parameters.weight)
    order = np.argsort([np.mean([s.accept_fresh[0] for s in group]) for group in states], kind="stable")
    classes = []
    for c in order:
        classes.append(
            RequestClass(
                weight=weights[c],
                log_length_mean=round(float(parameters.mean[c]), 4),
                log_length_sd=round(float(parameters.sd[c]), 4),
                start=_law(parameters.start[c]),
                transition=tuple(_law(row) for row in parameters.move[c]),
                states=tuple(
                    RunState(**{k: _round_all(v) for k, v in state.model_dump().items()})
                    for state in states[c]
                ),
            )
        )
    returns = _round_all(parameters.returns.tolist())
    passes = _round_all(parameters.passes.tolist())
    return RunProcess(classes=tuple(classes), return_to_hard_token=returns, pass_hard_token=passes)


def fit_proposed(
    runs: NDArray[Any], proposed: NDArray[Any], longest_run: int
) -> tuple[tuple[float, ...], ...]:
    """Return the law of how many tokens a round proposes, given how many of them are accepted.

    The shares of a run length are shrunk to those of all runs (of what is possible) with the weight of
    :data:`SHRINKAGE` observations.

    Args:
        runs: ``[total]``: run lengths; longer ones are taken as ``longest_run``.
        proposed: ``[total]``: tokens proposed by an unlimited round, at least the run length.
        longest_run: Longest run of the model.

    Returns:
        ``[R+1][R+1]``, see :class:`~dsd_env.acceptance.runmodel.RunProcess`.
    """
    run, offer = (np.minimum(np.asarray(v, dtype=np.int64), longest_run) for v in (runs, proposed))
    if run.shape != offer.shape or (run > offer).any():
        raise ValueError("proposed must have a value per run, and none below it")
    counts = np.zeros((longest_run + 1, longest_run + 1))
    np.add.at(counts, (run, offer), 1.0)
    pooled = counts.sum(axis=0) + 1e-9
    rows = []
    for length, own in enumerate(counts):
        base = np.where(np.arange(longest_run + 1) >= length, pooled, 0.0)
        law = own + SHRINKAGE * base / base.sum()
        law = np.round(law / law.sum(), 4)
        law[law.argmax()] += 1.0 - law.sum()
        rows.append(tuple(round(float(p), 4) for p in law))
    return tuple(rows)


def fit_unseen(accept_prob: NDArray[Any], draft_prob: NDArray[Any]) -> Unseen:
    """Return how often guesses of a sampled recording are right, given what a verified draft meets there.

    Position ``i`` is accepted with probability ``a_i`` and guessed with ``q_i``, independently. So the
    means of ``q_i`` weighed by ``a_i`` and by ``1 - a_i`` are the two probabilities.

    Args:
        accept_prob: ``a_i``, of a drafter that goes by the true prefix alone.
        draft_prob: ``q_i``, as many.
    """
    accept, guess = (np.asarray(v, dtype=np.float64) for v in (accept_prob, draft_prob))
    if accept.shape != guess.shape or not len(accept):
        raise ValueError("draft_prob must have a value per accept_prob, and there must be some")
    right, wrong = (
        float((guess * weight).sum() / weight.sum()) if weight.sum() > 0.0 else float(guess.mean())
        for weight in (accept, 1.0 - accept)
    )
    return Unseen(where_right=round(right, 4), where_wrong=round(wrong, 4))


def log_likelihood(process: RunProcess, runs: NDArray[Any], offsets: NDArray[Any], longest_run: int) -> float:
    """Return the log-likelihood (nats) of run lengths and output lengths under a process."""
    values, bounds = _check(runs, offsets, longest_run)
    groups = process.classes
    if len({len(g.states) for g in groups}) != 1:
        raise ValueError("all classes must have the same number of states")
    parameters = _Parameters(
        weight=np.maximum([g.weight for g in groups], 1e-12),
        mean=np.array([g.log_length_mean for g in groups]),
        sd=np.array([g.log_length_sd for g in groups]),
        start=np.array([g.start for g in groups]),
        move=np.array([g.transition for g in groups]),
        # Rounding makes probabilities below 5e-5 zero; what then happens must not cost everything.
        law=np.maximum([[s.table() for s in g.states] for g in groups], 1e-7),
        beyond=np.maximum([[s.beyond() for s in g.states] for g in groups], 1e-7),
        returns=np.array(process.return_to_hard_token),
        passes=np.array(process.pass_hard_token),
    )
    total, _ = _expect(parameters, values, _context(values, bounds), bounds)
    return total


def halves(offsets: NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the numbers of the even and of the odd requests."""
    n = len(offsets) - 1
    return np.arange(0, n, 2, dtype=np.int64), np.arange(1, n, 2, dtype=np.int64)


def subset(
    runs: NDArray[Any], offsets: NDArray[Any], requests: Sequence[int] | Integers
) -> tuple[Integers, Integers]:
    """Return run lengths and bounds of some requests."""
    parts = [np.asarray(runs[offsets[i] : offsets[i + 1]], dtype=np.int64) for i in requests]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)


def held_out_log_likelihood(
    runs: NDArray[Any],
    offsets: NDArray[Any],
    longest_run: int,
    n_classes: int,
    n_states: int,
    iterations: int = 60,
) -> float:
    """Return nats per position of each half of the requests under the fit to the other half."""
    even, odd = (subset(runs, offsets, part) for part in halves(offsets))
    total = 0.0
    for train, test in ((even, odd), (odd, even)):
        process = fit_process(*train, longest_run, n_classes, n_states, iterations=iterations).process
        total += log_likelihood(process, *test, longest_run)
    return total / len(runs)
