"""The network of adaptive window control: its features, its NumPy form, and the two files that hold it.

The network (the paper's WC-DNN) is a small residual multilayer perceptron that reads a few numbers of a view
and gives two lengths: the window of a stream or round drafted away from the target, where 1 means that
drafting beside the target is better, and the length of such a draft, where 0 means plain decoding. Both are
learned as log2(1 + tokens).

``awc.json`` names features, scales, widths and constants and has the digest of ``awc.npz``, which holds the
arrays. Reading them executes nothing that they bring: JSON, and float32 arrays of known names and shapes.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsd_env import strict_json
from dsd_env.control import CandidateView, DecisionView
from dsd_env.files import write_bytes, write_text
from dsd_env.schedulers.base import SchedulerError

JSON_FILE, NPZ_FILE = "awc.json", "awc.npz"
_MOST_BYTES = 1 << 20
"""No file of a network of this kind is larger."""

Floats = NDArray[np.float32]


class Feature(NamedTuple):
    """One input of the network: value / scale, cut to 0 … `LARGEST`."""

    unit: str
    scale: float
    help: str


LARGEST = 8.0
"""Scaled values beyond it are cut off."""

FEATURES: dict[str, Feature] = {
    "queue": Feature("requests", 32.0, "requests resident or waiting at the target"),
    "seats": Feature("1", 1.0, "share of the target's seats that they would take"),
    "prefill": Feature("tokens", 2048.0, "prompt tokens that the target still has to process"),
    "iteration": Feature("s", 0.03, "running mean time of the target's iterations"),
    "token": Feature("s", 1e-3, "marginal time of a token in an iteration there"),
    "rtt": Feature("s", 0.03, "round trip between drafter and target"),
    "rtt_deviation": Feature("s", 0.03, "running deviation of the device's round trips"),
    "tpot": Feature("s", 0.03, "mean time per token of the request so far; 0 before the second"),
    "draft_step": Feature("s", 0.015, "time of a draft step at the drafter"),
    "draft_wait": Feature("s", 0.03, "expected wait for the drafter"),
    "node_step": Feature("s", 0.015, "time of a draft step beside the target; 0: nothing drafts there"),
    "node_shares": Feature("1", 1.0, "1: those steps are part of the target's iterations"),
    "streams": Feature("1", 1.0, "1: drafts are streamed, 0: they come by rounds"),
    "acceptance": Feature("1", 1.0, "running acceptance rate of the request"),
    "pooled_acceptance": Feature("1", 1.0, "running chance of a right draft over all requests"),
    "last_length": Feature("tokens", 8.0, "length of the request's last decision; 0 at admission"),
    "context": Feature("tokens", 2048.0, "prompt and output so far"),
}
"""Inputs by name, in order: what the paper's network reads (queue, acceptance, round trip, time per token,
the last window, the drafter's capability), and what tells targets and protocols apart."""

_SCALES = np.array([feature.scale for feature in FEATURES.values()])


def features_of(
    view: DecisionView, remote: CandidateView, node: CandidateView | None, last_length: int
) -> Floats:
    """Return the inputs of the network for a decision.

    Args:
        view: The decision.
        remote: The placement away from the target that would draft.
        node: The placement beside the target that would; None: there is none.
        last_length: Length of the request's last decision.

    Returns:
        float32, shape (len(FEATURES),), scaled, each in [0, `LARGEST`].
    """
    target, request = remote.target, view.request
    present = target.resident + target.waiting
    values = (
        present,
        present / target.max_num_seqs,
        target.prefill_tokens,
        target.iteration_s,
        target.token_s,
        remote.rtt_s,
        view.link.rtt_deviation_s,
        request.tpot_s,
        remote.draft_step_s,
        remote.draft_wait_s,
        0.0 if node is None else node.draft_step_s,
        0.0 if node is None else float(node.shares_target),
        float(remote.streams),
        request.acceptance_rate,
        remote.pooled_acceptance,
        last_length,
        request.prompt_tokens + request.committed_tokens,
    )
    inputs: NDArray[np.float32] = np.clip(np.array(values) / _SCALES, 0.0, LARGEST).astype(np.float32)
    return inputs


def to_scale(tokens: float) -> float:
    """Return a length in tokens as the network learns it."""
    return math.log2(1.0 + tokens)


def to_tokens(scaled: float) -> float:
    """Return a length in tokens from what the network gives, at least 0."""
    return max(0.0, math.pow(2.0, min(scaled, 10.0)) - 1.0)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Control(_Strict):
    """What makes decisions of predictions.

    Attributes:
        smoothing: Weight of the newest prediction in the running mean.
        largest: Windows are cut to 1 … this, tokens.
        fused_below: Smoothed windows below it speak for drafting beside the target, tokens.
        apart_above: Those above it speak for drafting away from it, tokens; between the two nothing changes.
        hold: Decisions in a row that have to speak for a change.
    """

    smoothing: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    largest: Annotated[int, Field(ge=1, le=64)] = 16
    fused_below: Annotated[float, Field(ge=1.0, le=64.0)] = 2.0
    apart_above: Annotated[float, Field(ge=1.0, le=64.0)] = 3.0
    hold: Annotated[int, Field(ge=1, le=1000)] = 4


class Described(_Strict):
    """One input, as a file names it."""

    name: str
    unit: str
    scale: float


class Description(_Strict):
    """What ``awc.json`` says.

    Attributes:
        format: Name and version of the format.
        features: The inputs, in order.
        outputs: The outputs, in order.
        width: Width of the hidden layers.
        blocks: Residual blocks.
        control: What makes decisions of predictions.
        npz_sha256: Digest of ``awc.npz``.
        training: Where the weights come from.
    """

    format: Literal["dsd-env awc 1"] = "dsd-env awc 1"
    features: tuple[Described, ...]
    outputs: tuple[str, ...] = ("window", "node_length")
    width: Annotated[int, Field(ge=1, le=256)]
    blocks: Annotated[int, Field(ge=0, le=8)]
    control: Control = Control()
    npz_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    training: dict[str, Any] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays by name, in order."""
        inner: dict[str, tuple[int, ...]] = {}
        for block in range(self.blocks):
            for part in ("a", "b"):
                inner[f"block_{block}_{part}_weight"] = (self.width, self.width)
                inner[f"block_{block}_{part}_bias"] = (self.width,)
        return {
            "in_weight": (self.width, len(self.features)),
            "in_bias": (self.width,),
            **inner,
            "out_weight": (len(self.outputs), self.width),
            "out_bias": (len(self.outputs),),
        }


@dataclass(frozen=True, slots=True)
class WindowNetwork:
    """A residual multilayer perceptron: y = out(h), h ← h + b(relu(a(h))), h₀ = relu(in(x)).

    Attributes:
        description: What its files say.
        arrays: Its weights by name, float32.
    """

    description: Description
    arrays: Mapping[str, Floats]

    def predict(self, inputs: Floats) -> tuple[float, float]:
        """Return window and length beside the target, in tokens, for inputs of shape (n_features,)."""
        window, node = self.outputs(inputs).tolist()
        return to_tokens(window), to_tokens(node)

    def outputs(self, inputs: Floats) -> Floats:
        """Return log2(1 + tokens) of both lengths, shape (..., 2), for inputs of shape (..., n_features)."""
        arrays = self.arrays
        hidden = np.maximum(inputs @ arrays["in_weight"].T + arrays["in_bias"], np.float32(0.0))
        for block in range(self.description.blocks):
            name = f"block_{block}"
            inner = hidden @ arrays[f"{name}_a_weight"].T + arrays[f"{name}_a_bias"]
            inner = np.maximum(inner, np.float32(0.0))
            hidden = hidden + inner @ arrays[f"{name}_b_weight"].T + arrays[f"{name}_b_bias"]
        return np.asarray(hidden @ arrays["out_weight"].T + arrays["out_bias"], dtype=np.float32)


def described_features() -> tuple[Described, ...]:
    """Return the inputs of this version, as files name them."""
    return tuple(Described(name=name, unit=each.unit, scale=each.scale) for name, each in FEATURES.items())


def save_network(folder: Path, arrays: Mapping[str, Floats], **description: Any) -> Description:
    """Write a network: ``awc.npz``, then ``awc.json``, which vouches for it.

    Args:
        folder: Where; made if it is not there.
        arrays: The weights by name.
        description: Fields of :class:`Description` besides features and digest.

    Raises:
        SchedulerError: Arrays are missing, of another shape, or not finite.
    """
    content = _packed(arrays)
    digest = hashlib.sha256(content).hexdigest()
    made = Description(features=described_features(), npz_sha256=digest, **description)
    _check_arrays(arrays, made, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / NPZ_FILE, content)
    write_text(folder / JSON_FILE, made.model_dump_json(indent=1) + "\n")
    return made


def load_network(folder: Path) -> WindowNetwork:
    """Read a network that may be a stranger's.

    Raises:
        SchedulerError: A file is missing, damaged, too large, or of another format or other features.
    """
    text = _read(folder / JSON_FILE)
    try:
        description = Description.model_validate(strict_json.loads(text.decode()))
    except (ValidationError, ValueError, RecursionError) as error:
        raise SchedulerError(
            f"awc: {folder / JSON_FILE}: is no description of a network ({error})"
        ) from error
    if description.features != described_features():
        raise SchedulerError(
            f"awc: {folder / JSON_FILE}: the network reads {[each.name for each in description.features]} "
            f"with their scales, this version gives {list(FEATURES)}: train it again (scripts/train_awc.py)"
        )
    if len(description.outputs) != 2:
        raise SchedulerError(f"awc: {folder / JSON_FILE}: outputs must be two lengths")
    content = _read(folder / NPZ_FILE)
    if hashlib.sha256(content).hexdigest() != description.npz_sha256:
        raise SchedulerError(
            f"awc: {folder / NPZ_FILE}: SHA-256 differs from {JSON_FILE}: damaged or mixed up; copy or train "
            "it again"
        )
    arrays = _unpacked(content, description, str(folder / NPZ_FILE))
    return WindowNetwork(description, arrays)


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise SchedulerError(
            f"awc: {path}: no such file, or none that is regular; name a folder with {JSON_FILE} and "
            f"{NPZ_FILE}"
        )
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SchedulerError(f"awc: {path}: larger than {_MOST_BYTES} bytes, which no such network is")
    return content


def _packed(arrays: Mapping[str, Floats]) -> bytes:
    buffer = io.BytesIO()
    # Not np.savez: it stamps the members with the time, and equal weights would have unequal digests.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, np.ascontiguousarray(array, dtype="<f4"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return buffer.getvalue()


def _unpacked(content: bytes, description: Description, where: str) -> dict[str, Floats]:
    wanted = [f"{name}.npy" for name in description.shapes()]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sorted(each.filename for each in members) != sorted(wanted):
                raise SchedulerError(f"awc: {where}: its arrays are not those of {JSON_FILE}")
            if any(each.compress_type != zipfile.ZIP_STORED for each in members):
                raise SchedulerError(f"awc: {where}: arrays are compressed; they are stored plainly")
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            arrays = {name: np.asarray(loaded[name]) for name in description.shapes()}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, KeyError) as error:
        raise SchedulerError(f"awc: {where}: not a readable npz file ({error})") from error
    except ValueError as error:
        if isinstance(error, SchedulerError):
            raise
        raise SchedulerError(f"awc: {where}: holds something else than plain arrays ({error})") from error
    _check_arrays(arrays, description, where)
    return arrays


def _check_arrays(arrays: Mapping[str, Floats], description: Description, where: str) -> None:
    shapes = description.shapes()
    if set(arrays) != set(shapes):
        raise SchedulerError(f"awc: {where}: arrays {sorted(arrays)} are not {sorted(shapes)}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape:
            raise SchedulerError(
                f"awc: {where}: {name} has type {array.dtype}, shape {array.shape}; not float32, {shape}"
            )
        if not np.isfinite(array).all():
            raise SchedulerError(f"awc: {where}: {name} holds a value that is not finite: training diverged")
