"""Fitted generative models of run lengths: difficulty per request, memory along the output.

A model stands for a real pair whose recordings cannot be shipped. It says how the run length ``L_s`` of a
round at output position ``s`` depends on the one before it, and how requests differ:

- every request belongs to one of a few *classes* (difficulty), drawn by their weights;
- within a request a hidden *state* wanders by a Markov chain of its class (easy and hard stretches);
- given the state, ``L_s`` depends on ``p = L_{s-1}``. Either the drafter stumbles over the *same* token as
  before (``L_s = p - 1``), or over an earlier or a later one. The longer it has been the same already (the
  *age*), the more likely it stays so: some tokens are hard from everywhere. After ``p = 0`` the token it
  stumbled over has been committed, and the run is fresh;
- the *hard token* is the farthest one that any earlier round stumbled over. After a run that fell short of
  it, the next comes back to it with probability ``return_to_hard_token`` and goes beyond it with
  ``pass_hard_token``: the ground up to it was easy once and is easy again. This is memory of higher order;
  without it the runs of EAGLE lose their correlation too fast.

Everything is a probability of a place in the round, so a model is some hundred numbers per class and state
that can be read. :func:`generate_pool` turns a model into a trace set, by counter-based random numbers, which
is replayed as recordings are; both engines know how.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dsd_env import strict_json
from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.acceptance.traceset import DrafterTrace, TraceError, TraceSet
from dsd_env.files import write_text
from dsd_env.rng import Stream, uniforms
from dsd_env.strict_model import StrictNumbers, explain_type
from dsd_env.text import TextError, read_text

FORMAT_VERSION = 1
MODEL_DIR = Path(__file__).resolve().parent / "models"
POOL_ENTRIES = 400
"""Entries of each kind in a generated pool."""
POOL_POSITIONS = 512
"""Output positions of each entry of a generated pool."""
_MAX_FILE_BYTES = 4_000_000
_TOLERANCE = 1e-3

AGES = 4
"""Ages told apart: the same token 0, 1, 2, or 3 and more times in a row."""
MOVE_ROWS = 10
"""Runs from this on share their rows of moves, but for the longest."""

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def move_row(p: int, longest: int) -> int:
    """Return the row of ``same_token`` and ``later_token`` for a run of ``p``, 1 or more.

    The longest run has a row of its own, the last: it is censored, and the true one may be longer.
    """
    return min(longest, MOVE_ROWS + 1) - 1 if p == longest else min(p, MOVE_ROWS) - 1


class _Model(StrictNumbers, BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunState(_Model):
    """Law of the run length in one state; ``R`` is the model's ``longest_run``.

    Attributes:
        accept_fresh: ``[R]``: ``P(L >= j | L >= j-1)`` for ``j = 1 .. R``, where the round before accepted
            nothing.
        accept_beyond: ``[R]``: the same for a run that goes beyond the token that ended the one before it.
        end_before: ``[R]``: ``P(L = l | L <= l)`` for ``l = 0 .. R-1``, for a run that ends before that
            token.
        same_token: ``[AGES][rows]``: probability that a run after one of ``p`` ends on the same token; by age
            (how many starts in a row did so already, the last row: that many or more) and :func:`move_row`.
        later_token: ``[AGES][rows]``: probability that it goes beyond it. What is left is ending before it.
    """

    accept_fresh: tuple[Probability, ...]
    accept_beyond: tuple[Probability, ...]
    end_before: tuple[Probability, ...]
    same_token: tuple[tuple[Probability, ...], ...]
    later_token: tuple[tuple[Probability, ...], ...]

    def beyond(self) -> NDArray[np.float64]:
        """Return the law of a run that goes at least to ``p``, ``[R+1 (p), R+1]``; row 0: a fresh run."""
        longest = len(self.accept_fresh)
        law = np.zeros((longest + 1, longest + 1))
        for p in range(longest + 1):
            accept = np.array((*(self.accept_fresh if p == 0 else self.accept_beyond)[p:], 0.0))
            law[p, p:] = np.concatenate([[1.0], np.cumprod(accept[:-1])]) * (1.0 - accept)
        return law

    def table(self) -> NDArray[np.float64]:
        """Return ``P(L_s = l | age, L_{s-1} = p)``, ``[AGES, R+1, R+1]``, where no hard token is ahead."""
        longest = len(self.accept_fresh)
        table = np.zeros((AGES, longest + 1, longest + 1))
        before = np.array(self.end_before)
        beyond = self.beyond()
        table[:, 0] = beyond[0]
        for p in range(1, longest + 1):
            row = move_row(p, longest)
            same, later = (
                np.array([ages[row] for ages in moves]) for moves in (self.same_token, self.later_token)
            )
            table[:, p] = later[:, None] * beyond[p]
            table[:, p, p - 1] += same
            if p >= 2:
                stop = before[: p - 1].copy()
                stop[0] = 1.0
                left = np.concatenate([np.cumprod((1.0 - stop)[::-1])[::-1][1:], [1.0]])
                table[:, p, : p - 1] += np.maximum(1.0 - later - same, 0.0)[:, None] * stop * left
        return np.asarray(table / table.sum(axis=2, keepdims=True))


class RequestClass(_Model):
    """Requests of one difficulty.

    Attributes:
        weight: Share of requests.
        log_length_mean: Mean of the natural logarithm of their output length in tokens.
        log_length_sd: Its standard deviation. Lengths only serve the comparison with data, where easy
            requests may be the long ones; a simulated request's length comes from the workload.
        start: ``[S]``: law of the state at the first position.
        transition: ``[S][S]``: law of the next state given the state.
        states: ``[S]``.
    """

    weight: Probability
    log_length_mean: Finite
    log_length_sd: Positive
    start: tuple[Probability, ...] = Field(min_length=1)
    transition: tuple[tuple[Probability, ...], ...]
    states: tuple[RunState, ...]

    @model_validator(mode="after")
    def _consistent(self) -> RequestClass:
        n = len(self.states)
        if len(self.start) != n or len(self.transition) != n or any(len(row) != n for row in self.transition):
            raise ValueError(f"start and transition must fit the {n} states")
        for name, row in (("start", self.start), *(("transition", row) for row in self.transition)):
            if abs(sum(row) - 1.0) > _TOLERANCE:
                raise ValueError(f"{name} must sum to 1, sums to {sum(row):.6g}")
        return self


class Unseen(_Model):
    """How often a sampling drafter's own token is the one that the target chose without seeing a draft.

    Given what a verified draft would have met there; the mean of both, weighed, is the recorded mean of
    ``draft_prob``. How it varies beyond that along the output is not kept.

    Attributes:
        where_right: Probability where a verified draft would be accepted.
        where_wrong: Probability where it would be rejected.
    """

    where_right: Probability
    where_wrong: Probability


class RunProcess(_Model):
    """The law of the run lengths of one drafter on one kind of request.

    Attributes:
        classes: Classes of requests.
        return_to_hard_token: ``[P][B]``: probability that a run after one of ``p`` that fell short of the
            hard token ends exactly on it, when that needs a run of ``b``; the last row and column stand for
            all beyond.
        pass_hard_token: ``[P][B]``: probability that it goes beyond it. Otherwise it does as if there were
            none.
        proposed: ``[R+1][R+1]``: ``P(n | L)``, the law of how many tokens an unlimited round proposes that
            has ``L`` of them accepted; nothing below ``n = L``. Absent for drafters that always propose as
            many as they are asked for. Positions are independent given their runs.
        unseen: Guesses of tokens that the target chose without seeing a draft. Absent for greedy decoding,
            where they are right wherever a verified draft is.
    """

    classes: tuple[RequestClass, ...] = Field(min_length=1, max_length=32)
    return_to_hard_token: tuple[tuple[Probability, ...], ...] = Field(min_length=1)
    pass_hard_token: tuple[tuple[Probability, ...], ...] = Field(min_length=1)
    proposed: tuple[tuple[Probability, ...], ...] | None = None
    unseen: Unseen | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RunProcess:
        total = sum(c.weight for c in self.classes)
        if abs(total - 1.0) > _TOLERANCE:
            raise ValueError(f"the classes' weights must sum to 1, sum to {total:.6g}")
        shapes = [[len(row) for row in t] for t in (self.return_to_hard_token, self.pass_hard_token)]
        if shapes[0] != shapes[1] or len(set(shapes[0])) != 1 or not shapes[0][0]:
            raise ValueError("return_to_hard_token and pass_hard_token must be tables of one shape")
        for backs, beyonds in zip(self.return_to_hard_token, self.pass_hard_token, strict=True):
            if any(a + b > 1.0 + _TOLERANCE for a, b in zip(backs, beyonds, strict=True)):
                raise ValueError("return_to_hard_token + pass_hard_token must not be above 1")
        return self


class ModelCard(_Model):
    """What a model was fitted to, how, and how well it fits.

    Attributes:
        target: Target model.
        drafters: Drafter -> what it is.
        data: Where the data come from.
        licence: Licence of the data and of these parameters.
        method: How the parameters were found.
        command: Command that made the file.
        date: When, ISO.
        fits: Kind -> drafter -> figures of the fit: log-likelihood, requests, positions, errors.
        notes: What the model misses.
    """

    target: str = Field(min_length=1)
    drafters: dict[Name, str]
    data: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    method: str = Field(min_length=1)
    command: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    fits: dict[Name, dict[Name, dict[str, Any]]] = {}
    notes: tuple[str, ...] = ()


class RunModel(_Model):
    """A fitted model of acceptance: kinds of request, drafters, and a process for each pair of them.

    Attributes:
        format_version: Version of the file format.
        name: Name, also of its file.
        label: ``fitted`` to recordings, or ``published``: a fitted shape at the level published for the pair.
        longest_run: ``R``: longest run that the data could show; one of this length may be longer in truth.
        card: Provenance and errors.
        processes: Kind -> drafter -> process. Every kind has every drafter.
    """

    format_version: Literal[1]
    name: Name
    label: Literal["fitted", "published"]
    longest_run: int = Field(ge=1, le=MAX_RUN_LENGTH)
    card: ModelCard
    processes: dict[Name, dict[Name, RunProcess]] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> RunModel:
        drafters = set(self.card.drafters)
        if not drafters:
            raise ValueError("card.drafters is empty")
        for kind, found in self.processes.items():
            if set(found) != drafters:
                raise ValueError(
                    f"processes.{kind} must have the drafters {sorted(drafters)}, not {sorted(found)}"
                )
            for drafter, process in found.items():
                for number, group in enumerate(process.classes):
                    for state in group.states:
                        _check_state(state, self.longest_run, f"processes.{kind}.{drafter}.classes.{number}")
                _check_proposed(process.proposed, self.longest_run, f"processes.{kind}.{drafter}.proposed")
        for drafter in drafters:
            for name in ("proposed", "unseen"):
                if len({getattr(group[drafter], name) is None for group in self.processes.values()}) != 1:
                    raise ValueError(f"{drafter} must have {name} for all kinds, or for none")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of request."""
        return tuple(self.processes)

    @property
    def drafters(self) -> tuple[str, ...]:
        """Drafters."""
        return tuple(self.card.drafters)

    def process(self, kind: str, drafter: str) -> RunProcess:
        """Return the process of a kind and a drafter.

        Raises:
            TraceError: Unknown kind or drafter.
        """
        if kind not in self.processes:
            raise TraceError(f"{self.name}: unknown kind {kind!r}; it has: {', '.join(self.kinds)}")
        if drafter not in self.processes[kind]:
            raise TraceError(f"{self.name}: unknown drafter {drafter!r}; it has: {', '.join(self.drafters)}")
        return self.processes[kind][drafter]

    def save(self, directory: Path) -> Path:
        """Write ``NAME.json`` atomically, the same bytes for the same model, and return its path."""
        path = directory / f"{self.name}.json"
        data = self.model_dump(mode="json")
        for group in data["processes"].values():
            for process in group.values():
                for name in ("proposed", "unseen"):
                    if process[name] is None:
                        del process[name]
        write_text(path, _to_json(data) + "\n")
        return path


def _check_proposed(law: tuple[tuple[float, ...], ...] | None, longest: int, where: str) -> None:
    if law is None:
        return
    if len(law) != longest + 1 or any(len(row) != longest + 1 for row in law):
        raise ValueError(f"{where} must have longest_run + 1 = {longest + 1} rows of as many values")
    for run, row in enumerate(law):
        if any(row[:run]):
            raise ValueError(f"{where}.{run}: fewer than {run} proposed, where {run} are accepted")
        if abs(sum(row) - 1.0) > _TOLERANCE:
            raise ValueError(f"{where}.{run} must sum to 1, sums to {sum(row):.6g}")


def _check_state(state: RunState, longest: int, where: str) -> None:
    for name in ("accept_fresh", "accept_beyond", "end_before"):
        if len(getattr(state, name)) != longest:
            raise ValueError(f"{where}: {name} must have longest_run = {longest} values")
    rows = move_row(longest, longest) + 1
    for name in ("same_token", "later_token"):
        table = getattr(state, name)
        if len(table) != AGES or any(len(row) != rows for row in table):
            raise ValueError(f"{where}: {name} must have {AGES} rows of {rows} values")
    for age, (sames, laters) in enumerate(zip(state.same_token, state.later_token, strict=True)):
        for row, (same, later) in enumerate(zip(sames, laters, strict=True)):
            if not (0.0 < same + later <= 1.0 + _TOLERANCE):
                raise ValueError(
                    f"{where}: same_token + later_token is {same + later:.6g} at age {age}, row {row}; "
                    "must be above 0 and at most 1"
                )


def _to_json(value: Any, indent: str = "") -> str:
    """Return JSON with one line per list of plain values."""
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        body = [f"{inner}{json.dumps(k)}: {_to_json(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, (list, tuple, Mapping)) for v in value):
        return "[\n" + ",\n".join(f"{inner}{_to_json(v, inner)}" for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def available_run_models() -> list[str]:
    """Return the names of the fitted models shipped with the package."""
    return sorted(path.stem for path in MODEL_DIR.glob("*.json"))


def load_run_model(name_or_path: str | Path) -> RunModel:
    """Load a fitted model and check it completely.

    Args:
        name_or_path: Name of a shipped model, or path of a ``.json`` file.

    Raises:
        TraceError: No such model, or a file that is not a valid one; the message names file and field.
    """
    path = _resolve(name_or_path)
    return _load(path, path.stat().st_mtime_ns)


def _resolve(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    shipped = MODEL_DIR / f"{text}.json"
    if isinstance(name_or_path, str) and Path(text).name == text and shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path.resolve()
    raise TraceError(
        f"unknown fitted model {text!r}; shipped are: {', '.join(available_run_models()) or 'none'}; "
        "or give the path of a JSON file"
    )


@functools.lru_cache(maxsize=16)
def _load(path: Path, _mtime_ns: int) -> RunModel:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise TraceError(f"{path}: larger than {_MAX_FILE_BYTES} bytes, not a fitted model")
    try:
        data = strict_json.loads(read_text(path))
    except TextError as error:
        raise TraceError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(data, dict):
        raise TraceError(f"{path}: a fitted model is a JSON object, this is {type(data).__name__}")
    if data.get("format_version") != FORMAT_VERSION:
        raise TraceError(
            f"{path}: format_version is {data.get('format_version')!r}; "
            f"this version of dsd_env reads {FORMAT_VERSION}"
        )
    try:
        return RunModel.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False)[:8]:
            key = ".".join(str(part) for part in problem["loc"]) or "the file"
            wrong = explain_type(problem)
            if wrong is not None:
                lines.append(f"{path}: {key} = {problem['input']!r:.60} {wrong}")
            else:
                lines.append(f"{path}: {key}: {problem['msg'].removeprefix('Value error, ')}")
        raise TraceError("\n".join(lines)) from error


# ---------------------------------------------------------------------- drawing from a model


def class_given_length(process: RunProcess, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the law of the class of requests whose output lengths are known, ``[n, C]``."""
    log_length = np.log(lengths)[:, None]
    mean, sd, weight = (
        np.array([getattr(c, name) for c in process.classes])
        for name in ("log_length_mean", "log_length_sd", "weight")
    )
    with np.errstate(divide="ignore"):
        score = np.log(weight) - np.log(sd) - 0.5 * ((log_length - mean) / sd) ** 2
    law = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(law / law.sum(axis=1, keepdims=True))


def pick_classes(law: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a class for each row of ``law`` (``[n, C]``, or ``[C]`` for all) by uniforms ``[n]``."""
    bounds = np.cumsum(np.broadcast_to(law, (len(u), law.shape[-1])), axis=1)
    picked = (u[:, None] * bounds[:, -1:] >= bounds).sum(axis=1)
    return np.asarray(np.minimum(picked, law.shape[-1] - 1), dtype=np.int64)


def simulate_runs(
    process: RunProcess, longest_run: int, classes: NDArray[np.int64], lengths: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Draw the run lengths of requests.

    Args:
        process: The model.
        longest_run: Its longest run.
        classes: int64 ``[n]``: class of each request.
        lengths: int64 ``[n]``: output positions of each request, positive.
        seed: Request ``i`` draws at ``(seed, ACCEPTANCE_MATCH, i, 3 * position + 0, 1, 2)``.

    Returns:
        int64, flat over the requests in order. A longer request begins with the shorter one.
    """
    most = max(len(c.states) for c in process.classes)
    n, steps = len(classes), int(lengths.max())
    start = np.zeros((len(process.classes), most))
    move = np.zeros((len(process.classes), most, most))
    law = np.zeros((len(process.classes), most, AGES, longest_run + 1, longest_run + 1))
    for c, group in enumerate(process.classes):
        size = len(group.states)
        start[c, :size] = group.start
        move[c, :size, :size] = group.transition
        law[c, :size] = [state.table() for state in group.states]
    beyond = np.zeros((len(process.classes), most, longest_run + 1, longest_run + 1))
    for c, group in enumerate(process.classes):
        beyond[c, : len(group.states)] = [state.beyond() for state in group.states]
    returns = np.array(process.return_to_hard_token)
    passes = returns + np.array(process.pass_hard_token)
    start, move, law, beyond = (np.cumsum(table, axis=-1) for table in (start, move, law, beyond))
    draws = np.empty((n, steps, 3))
    for i in range(n):
        counters = np.arange(3 * int(lengths[i]), dtype=np.int64)
        draws[i, : lengths[i]] = uniforms(seed, Stream.ACCEPTANCE_MATCH, i, counters).reshape(-1, 3)

    def pick(bounds: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
        # Scaled by the last bound, so that rounding of the sum never picks beyond it.
        picked = (u[:, None] * bounds[:, -1:] >= bounds).sum(axis=1)
        return np.asarray(np.minimum(picked, bounds.shape[-1] - 1), dtype=np.int64)

    runs = np.zeros((n, steps), dtype=np.int64)
    state = np.zeros(n, dtype=np.int64)
    previous, age = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    hard = np.full(n, -1, dtype=np.int64)
    for t in range(steps):
        on = np.flatnonzero(lengths > t)
        mine, u = classes[on], draws[on, t]
        state[on] = pick(start[mine] if t == 0 else move[mine, state[on]], u[:, 0])
        run = pick(law[mine, state[on], age[on], previous[on]], u[:, 2])
        # The hard token needs a run of `hard` from here; -1 once it has been committed.
        short = hard[on] >= previous[on]
        row = np.minimum(previous[on], returns.shape[0] - 1)
        column = np.clip(hard[on], 0, returns.shape[1] - 1)
        farther = pick(beyond[mine, state[on], np.minimum(hard[on] + 1, longest_run)], u[:, 2])
        run = np.where(short & (u[:, 1] < passes[row, column]), farther, run)
        run = np.where(short & (u[:, 1] < returns[row, column]), hard[on], run)
        age[on] = np.where(run == previous[on] - 1, np.minimum(age[on] + 1, AGES - 1), 0)
        runs[on, t] = previous[on] = run
        hard[on] = np.maximum(hard[on], run) - 1
    return np.concatenate([runs[i, : lengths[i]] for i in range(n)])


def simulate_proposed(process: RunProcess, runs: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Draw how many tokens rounds propose whose run lengths are known.

    Args:
        process: The model; it must have ``proposed``.
        runs: int64 ``[n]``: run lengths.
        seed: Position ``i`` draws at ``(seed, ACCEPTANCE_MATCH, 0, i)``.
    """
    bounds = np.cumsum(np.array(process.proposed), axis=1)[runs]
    u = uniforms(seed, Stream.ACCEPTANCE_MATCH, 0, np.arange(len(runs), dtype=np.int64))
    return np.asarray((u[:, None] * bounds[:, -1:] >= bounds).sum(axis=1), dtype=np.int64)


def seed_of(*words: str) -> int:
    """Return the 63-bit seed that names stand for (SHA-256)."""
    digest = hashlib.sha256("\x1f".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_requests(
    process: RunProcess, longest_run: int, entries: int, positions: int, number: int
) -> NDArray[np.int64]:
    """Draw the run lengths of the requests of a pool, flat.

    Classes are drawn by stratified uniforms, so that a pool has its share of each, and dealt out.

    Args:
        process: The model.
        longest_run: Its longest run.
        entries: Requests.
        positions: Output positions of each.
        number: Seed.
    """
    order = np.arange(entries)
    u = (order + uniforms(number, Stream.ACCEPTANCE_PICK, 0, order)) / entries
    classes = pick_classes(np.array([c.weight for c in process.classes]), u)
    # Stratified classes come sorted. Dealt out, entry i of one drafter says nothing of another's.
    deal = np.argsort(uniforms(number, Stream.ACCEPTANCE_PICK, 1, order), kind="stable")
    lengths = np.full(entries, positions, dtype=np.int64)
    return simulate_runs(process, longest_run, classes[deal], lengths, number)


def generate_pool(
    model: RunModel, entries: int = POOL_ENTRIES, positions: int = POOL_POSITIONS, seed: int = 0
) -> TraceSet:
    """Return a trace set of requests drawn from a model, to be replayed like a recording.

    Requests are drawn by :func:`draw_requests`, of each drafter independently of the others. The same
    arguments always give the same trace set. A model knows no confidence: its columns are constants, the
    share of starts whose first draft is accepted and the entropy of a yes/no variable of that probability.

    Args:
        model: The model.
        entries: Requests of each kind.
        positions: Output positions of each request.
        seed: Another number gives another pool.
    """
    if entries < 1 or positions < 1:
        raise ValueError(f"entries {entries} and positions {positions} must be positive")
    traces: dict[str, DrafterTrace] = {}
    for drafter in model.drafters:
        parts, proposals, guesses = [], [], []
        for kind in model.kinds:
            process = model.process(kind, drafter)
            number = seed_of(model.name, kind, drafter, str(seed))
            parts.append(draw_requests(process, model.longest_run, entries, positions, number))
            if process.proposed is not None:
                other = seed_of(model.name, kind, drafter, str(seed), "proposed")
                proposals.append(simulate_proposed(process, parts[-1], other))
            if (unseen := process.unseen) is not None:
                guesses.append(np.where(parts[-1] > 0, unseen.where_right, unseen.where_wrong))
        runs = np.concatenate(parts)
        share = float(np.clip((runs > 0).mean(), 0.01, 0.99))
        entropy = -sum(p * math.log(p) for p in (share, 1.0 - share))
        traces[drafter] = DrafterTrace(
            run_length=runs.astype(np.uint8),
            accept_prob=None,
            top1_prob=np.full(len(runs), share, np.float16),
            entropy_nats=np.full(len(runs), entropy, np.float16),
            proposed=np.concatenate(proposals).astype(np.uint8) if proposals else None,
            draft_prob=np.concatenate(guesses).astype(np.float32) if guesses else None,
        )
    n = entries * len(model.kinds)
    card: dict[str, Any] = {
        "label": model.label,
        "gamma_max": model.longest_run,
        "target": {"model": model.card.target},
        "drafters": {d: {"model": what, "form": "run_length"} for d, what in model.card.drafters.items()},
        "confidence": "not known to the model; constants stand in",
        "sampling": f"drawn from the {model.label} model {model.name}",
        "prompts": [
            {"name": kind, "licence": "none: no prompts, drawn from a model"} for kind in model.kinds
        ],
        "software": {
            "model": model.name,
            "entries_of_each_kind": entries,
            "positions": positions,
            "seed": seed,
        },
        "date": model.card.date,
        "licence": model.card.licence,
    }
    return TraceSet(
        name=model.name,
        kinds=model.kinds,
        offsets=np.arange(n + 1, dtype=np.int64) * positions,
        kind=np.repeat(np.arange(len(model.kinds)), entries).astype(np.uint8),
        prompt_tokens=np.zeros(n, np.int32),
        drafters=traces,
        card=card,
    )


@functools.lru_cache(maxsize=4)
def _pool(path: Path, mtime_ns: int) -> TraceSet:
    return generate_pool(_load(path, mtime_ns))


def load_pool(name_or_path: str | Path) -> TraceSet:
    """Return the pool of a fitted model with the default size; generated once, then kept in memory.

    Raises:
        TraceError: As :func:`load_run_model`.
    """
    path = _resolve(name_or_path)
    return _pool(path, path.stat().st_mtime_ns)
