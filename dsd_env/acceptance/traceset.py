"""Recorded acceptance on disk: ``NAME.npz`` with arrays and ``NAME.json`` with the card.

See ``docs/acceptance.md`` for the format and ``simulator.md`` section 7 of the design for why one
recording is the exact counterfactual for every speculation length, start and schedule.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance.source import MAX_RUN_LENGTH
from dsd_env.files import write_bytes
from dsd_env.text import TextError, read_text

FORMAT_VERSION = 2
"""Version written: 2 added the columns ``draft_prob`` and ``rank``."""
_READABLE = (1, 2)
DATA_DIR = Path(__file__).resolve().parent / "data"
ENTRY_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/ -]{0,78}[A-Za-z0-9._:/-])?")
"""Names of entries: those that a trace of requests can hold."""
_CARD_FIELDS = ("label", "target", "drafters", "sampling", "prompts", "software", "date", "licence")
_LABELS = ("measured", "fitted", "published", "synthetic")
_COMMON = {"offsets": np.int64, "kind": np.uint8, "prompt_tokens": np.int32}
_PER_DRAFTER = {
    "run_length": np.uint8,
    "accept_prob": np.float32,
    "top1_prob": np.float16,
    "entropy_nats": np.float16,
    "proposed": np.uint8,
    "draft_prob": np.float32,
    "rank": np.uint8,
}
_ROUNDING = 1e-5
"""By so much ``draft_prob`` may exceed ``accept_prob``: both are exponentials of float32 differences."""


class TraceError(ValueError):
    """A trace set is damaged, malformed or inconsistent."""


@dataclass(frozen=True)
class DrafterTrace:
    """One drafter's side of a trace set, flat over all entries. Exactly one of the first two is set.

    Attributes:
        run_length: uint8 ``[total]``: accepted drafts of an unlimited round from each start. For
            drafters whose proposal depends on where the round started.
        accept_prob: float32 ``[total]``: probability that the draft's token at each position is
            the committed one. For drafters whose proposal depends on the true prefix alone.
        top1_prob: float16 ``[total]``: the draft's top-1 probability.
        entropy_nats: float16 ``[total]``: entropy of the draft's distribution, nats.
        proposed: uint8 ``[total]``: most tokens that a round from each start proposes, at least its
            ``run_length``; a round of ``gamma`` drafts proposes ``min(gamma, proposed)``. For drafters that
            may have less to say than asked for, or nothing (look-up), beside ``run_length`` only. ``None``:
            always as many as asked for.
        draft_prob: float32 ``[total]``: probability that the draft's own token at each position is the
            committed one, where the target decided without seeing a draft. Not above ``accept_prob``, which
            is what it becomes by verification. ``None``: the same as for a verified draft (greedy).
        rank: uint8 ``[total]``: place of the committed token among the draft's tokens by probability there, 1
            for the most likely one; 255 stands for 255 and more. ``None``: not recorded.
    """

    run_length: NDArray[np.uint8] | None
    accept_prob: NDArray[np.float32] | None
    top1_prob: NDArray[np.float16]
    entropy_nats: NDArray[np.float16]
    proposed: NDArray[np.uint8] | None = None
    draft_prob: NDArray[np.float32] | None = None
    rank: NDArray[np.uint8] | None = None

    @property
    def guess_prob(self) -> NDArray[np.float32] | None:
        """``draft_prob``; ``None`` where it says no more than ``accept_prob``."""
        if self.draft_prob is None or self.accept_prob is None:
            return self.draft_prob
        return None if np.array_equal(self.draft_prob, self.accept_prob) else self.draft_prob

    @property
    def form(self) -> str:
        """``run_length`` or ``accept_prob``."""
        return "run_length" if self.run_length is not None else "accept_prob"


@dataclass(frozen=True)
class TraceSet:
    """Acceptance of one target and one or several drafters over a number of real requests.

    Attributes:
        name: Name, also that of its files.
        kinds: Kinds of request.
        offsets: int64 ``[n+1]``: entry ``i`` is positions ``offsets[i]:offsets[i+1]``.
        kind: uint8 ``[n]``: index into ``kinds``.
        prompt_tokens: int32 ``[n]``: prompt length in target tokens.
        drafters: Name of drafter -> its arrays.
        card: What was recorded, how, with what, when, and under which licence.
    """

    name: str
    kinds: tuple[str, ...]
    offsets: NDArray[np.int64]
    kind: NDArray[np.uint8]
    prompt_tokens: NDArray[np.int32]
    drafters: Mapping[str, DrafterTrace]
    card: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        """Check everything; a trace set that exists is valid."""
        _validate(self)

    @property
    def n_entries(self) -> int:
        """Number of recorded requests."""
        return len(self.kind)

    @property
    def total_tokens(self) -> int:
        """Number of recorded output positions."""
        return int(self.offsets[-1])

    @property
    def label(self) -> str:
        """``measured``, ``fitted``, ``published`` or ``synthetic``, from the card."""
        return str(self.card["label"])

    @property
    def gamma_max(self) -> int | None:
        """Longest run the recording could see (longer ones are recorded as this), if limited."""
        value = self.card.get("gamma_max")
        return None if value is None else int(value)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 ``[n]``: output positions of each entry."""
        return np.diff(self.offsets)

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which a workload names the entries: the card's ``entries``, else their numbers."""
        names = self.card.get("entries")
        if not isinstance(names, list | tuple) or len(names) != self.n_entries:
            names = ()
        named = {name for name in names if isinstance(name, str) and ENTRY_NAME.fullmatch(name)}
        return tuple(names) if len(named) == self.n_entries else tuple(map(str, range(self.n_entries)))

    def entries_of(self, kinds: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Return the numbers of the entries of some kinds, ascending; of all kinds by default.

        Raises:
            TraceError: A kind that the set does not have, or none at all.
        """
        if kinds is None:
            return np.arange(self.n_entries, dtype=np.int64)
        if unknown := [k for k in kinds if k not in self.kinds]:
            raise TraceError(f"{self.name}: unknown kinds {unknown}; it has: {', '.join(self.kinds)}")
        if not kinds:
            raise TraceError(f"{self.name}: no kinds asked for; it has: {', '.join(self.kinds)}")
        wanted = [self.kinds.index(k) for k in kinds]
        return np.flatnonzero(np.isin(self.kind, wanted)).astype(np.int64)

    def positions_of(self, kinds: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Return the flat positions of the entries of some kinds, in order."""
        entries = self.entries_of(kinds)
        return np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in entries])

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write ``NAME.npz`` and ``NAME.json`` atomically; return their paths.

        The same trace set always gives the same bytes. The card gets the hash of the arrays, so a
        card and arrays that do not belong together are found when they are loaded.
        """
        arrays: dict[str, NDArray[Any]] = {k: getattr(self, k) for k in _COMMON}
        for drafter, trace in self.drafters.items():
            for name in _PER_DRAFTER:
                values = getattr(trace, name)
                if values is not None:
                    arrays[f"{drafter}/{name}"] = values
        blob = _npz_bytes(arrays)
        card = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            **{k: v for k, v in self.card.items() if k not in ("format_version", "name")},
            "kinds": list(self.kinds),
            "entries_per_kind": {k: int((self.kind == i).sum()) for i, k in enumerate(self.kinds)},
            "positions": self.total_tokens,
            "npz_sha256": hashlib.sha256(blob).hexdigest(),
        }
        text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        paths = directory / f"{self.name}.npz", directory / f"{self.name}.json"
        for path, data in zip(paths, (blob, text.encode()), strict=True):
            write_bytes(path, data)
        return paths


def _npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a compressed npz archive; unlike numpy's own, without the time of writing in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _check_array(name: str, where: str, values: object, dtype: type, size: int | None = None) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.dtype(dtype) or values.ndim != 1:
        found = (
            f"{values.dtype}{list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        )
        raise TraceError(f"{name}: {where} must be one-dimensional {np.dtype(dtype)}, found {found}")
    if size is not None and len(values) != size:
        raise TraceError(f"{name}: {where} has {len(values)} values, {size} expected")


def _validate(trace: TraceSet) -> None:
    """Raise :class:`TraceError` unless shapes, dtypes, ranges and card are consistent."""
    name = trace.name
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise TraceError(f"trace set name {name!r} must be a plain file name")
    for array, dtype in _COMMON.items():
        _check_array(name, array, getattr(trace, array), dtype)
    n = len(trace.kind)
    if n == 0:
        raise TraceError(f"{name}: has no entries")
    _check_array(name, "offsets", trace.offsets, np.int64, n + 1)
    _check_array(name, "prompt_tokens", trace.prompt_tokens, np.int32, n)
    if trace.offsets[0] != 0 or (np.diff(trace.offsets) <= 0).any():
        raise TraceError(f"{name}: offsets must begin with 0 and increase strictly (no empty entries)")
    if (trace.prompt_tokens < 0).any():
        raise TraceError(f"{name}: prompt_tokens has negative values")
    if not trace.kinds or len(set(trace.kinds)) != len(trace.kinds):
        raise TraceError(f"{name}: kinds must be distinct names, found {list(trace.kinds)}")
    if int(trace.kind.max()) >= len(trace.kinds):
        raise TraceError(
            f"{name}: kind holds {int(trace.kind.max())}, but there are {len(trace.kinds)} kinds"
        )
    if missing := [f for f in _CARD_FIELDS if f not in trace.card]:
        raise TraceError(f"{name}: the card lacks {missing}")
    if trace.card["label"] not in _LABELS:
        raise TraceError(f"{name}: label is {trace.card['label']!r}, must be one of {list(_LABELS)}")
    gamma_max = trace.card.get("gamma_max")
    if gamma_max is not None and (type(gamma_max) is not int or not 1 <= gamma_max <= MAX_RUN_LENGTH):
        raise TraceError(f"{name}: gamma_max is {gamma_max!r}, must be an integer in 1..{MAX_RUN_LENGTH}")
    if not trace.drafters:
        raise TraceError(f"{name}: has no drafters")
    if not isinstance(trace.card["drafters"], Mapping) or set(trace.card["drafters"]) != set(trace.drafters):
        raise TraceError(f"{name}: the card's drafters are not those of the arrays {sorted(trace.drafters)}")
    total = int(trace.offsets[-1])
    for drafter, values in trace.drafters.items():
        if (values.run_length is None) == (values.accept_prob is None):
            raise TraceError(f"{name}: {drafter} must have either run_length or accept_prob")
        for column, wanted in _PER_DRAFTER.items():
            array = getattr(values, column)
            if array is None:
                continue
            where = f"{drafter}/{column}"
            _check_array(name, where, array, wanted, total)
            if column == "rank":
                continue  # below
            if column in ("run_length", "proposed"):
                if gamma_max is not None and int(array.max()) > gamma_max:
                    raise TraceError(f"{name}: {where} holds {int(array.max())}, above gamma_max {gamma_max}")
                continue
            low, high = float(array.min()), float(array.max())  # NaN anywhere makes both NaN
            limit = math.inf if column == "entropy_nats" else 1.0
            if not (low >= 0.0 and high <= limit and math.isfinite(high)):
                raise TraceError(f"{name}: {where} spans {low}..{high}, must be finite and in 0..{limit}")
        _check_proposed(name, drafter, values)
        _check_guesses(name, drafter, values, trace.card.get("temperature") == 0)


def _check_proposed(name: str, drafter: str, values: DrafterTrace) -> None:
    """Raise :class:`TraceError` where a drafter proposes fewer tokens than are accepted."""
    if values.proposed is None:
        return
    if values.run_length is None:
        raise TraceError(
            f"{name}: {drafter}/proposed needs {drafter}/run_length; a drafter with accept_prob proposes as "
            "many tokens as asked for"
        )
    if len(wrong := np.flatnonzero(values.run_length > values.proposed)):
        at = int(wrong[0])
        raise TraceError(
            f"{name}: {drafter}/proposed is {values.proposed[at]} at position {at}, where "
            f"{values.run_length[at]} are accepted"
        )


def _check_guesses(name: str, drafter: str, values: DrafterTrace, greedy: bool) -> None:
    """Raise :class:`TraceError` where ``draft_prob`` or ``rank`` are impossible beside the other columns."""
    rank, guess, accept = values.rank, values.draft_prob, values.accept_prob
    if rank is not None and len(wrong := np.flatnonzero(rank == 0)):
        raise TraceError(
            f"{name}: {drafter}/rank is 0 at position {int(wrong[0])}, the most likely token is 1"
        )
    if accept is None:
        return
    if guess is not None:
        wrong = np.flatnonzero(guess != accept if greedy else guess > accept + np.float32(_ROUNDING))
        if len(wrong):
            at = int(wrong[0])
            raise TraceError(
                f"{name}: {drafter}/draft_prob is {guess[at]} at position {at}, where accept_prob is "
                f"{accept[at]}; it must be {'equal to it (greedy)' if greedy else 'no greater'}"
            )
    if rank is not None and greedy and len(wrong := np.flatnonzero((rank == 1) != (accept == 1.0))):
        at = int(wrong[0])
        raise TraceError(
            f"{name}: {drafter}/rank is {rank[at]} at position {at}, where accept_prob is {accept[at]}; a "
            "greedy draft is right where the committed token has rank 1"
        )


def available_trace_sets() -> list[str]:
    """Return the names of the trace sets shipped with the package."""
    return sorted(p.stem for p in DATA_DIR.glob("*.npz"))


def load_trace_set(name_or_path: str | Path) -> TraceSet:
    """Load a trace set and check it completely.

    Args:
        name_or_path: Name of a shipped set (it wins over a file of that name in the current
            directory), or path of a ``.npz`` or ``.json`` file (its twin
            must lie beside it), or that path without its ending.

    Raises:
        TraceError: No such set, or the files are damaged, do not belong together, or are wrong.
    """
    stem = Path(name_or_path)
    if stem.suffix in (".npz", ".json"):
        stem = stem.with_name(stem.name.removesuffix(stem.suffix))
    if str(name_or_path) == stem.name and (DATA_DIR / f"{stem.name}.npz").exists():
        stem = DATA_DIR / stem.name
    npz, json_path = (stem.with_name(f"{stem.name}{ending}") for ending in (".npz", ".json"))
    for path in (npz, json_path):
        if not path.is_file():
            raise TraceError(
                f"{path} does not exist; shipped trace sets: {', '.join(available_trace_sets()) or 'none'}"
            )
    try:
        card = json.loads(read_text(json_path))
    except TextError as error:
        raise TraceError(str(error)) from error
    except (OSError, ValueError) as error:
        raise TraceError(f"{json_path}: not a readable JSON card: {error}") from error
    if not isinstance(card, dict):
        raise TraceError(f"{json_path}: the card must be a JSON object")
    version = card.get("format_version")
    if type(version) is not int or version not in _READABLE:
        raise TraceError(
            f"{json_path}: format_version is {version!r}; this version of dsd_env reads "
            f"{' and '.join(map(str, _READABLE))}"
        )
    blob = npz.read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    if digest != card.get("npz_sha256"):
        raise TraceError(
            f"{npz}: SHA-256 is {digest}, the card says {card.get('npz_sha256')}: "
            "the file is damaged or belongs to another card"
        )
    try:
        with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise TraceError(f"{npz}: not a readable npz archive: {error}") from error
    return _from_arrays(stem.name, arrays, card)


def _from_arrays(name: str, arrays: Mapping[str, NDArray[Any]], card: Mapping[str, Any]) -> TraceSet:
    """Build a trace set from the arrays of an npz file and its card."""
    if missing := [k for k in _COMMON if k not in arrays]:
        raise TraceError(f"{name}: the npz file lacks {missing}")
    columns: dict[str, dict[str, NDArray[Any]]] = {}
    for key, values in arrays.items():
        if key in _COMMON:
            continue
        drafter, _, column = key.rpartition("/")
        if not drafter or column not in _PER_DRAFTER:
            raise TraceError(f"{name}: unknown array {key!r} in the npz file")
        columns.setdefault(drafter, {})[column] = values
    for drafter, found in columns.items():
        if missing := [c for c in ("top1_prob", "entropy_nats") if c not in found]:
            raise TraceError(f"{name}: drafter {drafter!r} lacks {missing}")
    kinds = card.get("kinds")
    if not isinstance(kinds, list) or not all(isinstance(k, str) for k in kinds):
        raise TraceError(f"{name}: the card's kinds must be a list of names")
    return TraceSet(
        name=name,
        kinds=tuple(kinds),
        offsets=arrays["offsets"],
        kind=arrays["kind"],
        prompt_tokens=arrays["prompt_tokens"],
        drafters={
            drafter: DrafterTrace(
                found.get("run_length"),
                found.get("accept_prob"),
                found["top1_prob"],
                found["entropy_nats"],
                found.get("proposed"),
                found.get("draft_prob"),
                found.get("rank"),
            )
            for drafter, found in columns.items()
        },
        card=card,
    )
