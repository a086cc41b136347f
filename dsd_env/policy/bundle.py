"""Reading and writing policy bundles.

A bundle is a directory with three files: ``manifest.json`` (schema, provenance, digests), ``policy.npz`` (the
weights as plain arrays) and ``policy.onnx`` (the same network with its masked argmax as a graph). Reading a
bundle executes no code from it: it holds only JSON, arrays of known name, shape and type, and a graph of
standard operators, which is loaded on request. Symbolic links, files that are not regular, and any fourth
file are refused.

The digests detect damage and mixed-up files. They are not a signature, because anyone who can write to the
directory can rewrite the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, Decision, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.files import write_bytes, write_text
from dsd_env.policy.manifest import (
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    NPZ_FILE,
    ONNX_FILE,
    FileEntry,
    Manifest,
    PolicyError,
    explain_fleet_mismatch,
    explain_mismatch,
    explain_unfit,
)
from dsd_env.policy.network import Float32, MlpActor, Real
from dsd_env.scenario import Scenario

Backend = Literal["auto", "numpy", "onnx"]
_FLOAT32 = np.dtype("<f4")
FILES = frozenset({MANIFEST_FILE, NPZ_FILE, ONNX_FILE})
"""Names of all files in a bundle's directory."""


class Policy:
    """A loaded policy, which maps an observation and a mask to a decision.

    A policy computes in its own buffers, so several threads must not use it at the same time; :meth:`copy`
    makes a policy for another thread.

    Attributes:
        manifest: Schema and provenance.
        actions: Action space, with the lists that decisions are taken from.
        backend: ``numpy`` or ``onnx``.
    """

    def __init__(self, manifest: Manifest, actor: MlpActor, session: Any | None = None) -> None:
        """Wrap a checked network; users call :func:`load`."""
        self.manifest = manifest
        self.actions: ActionSpace = manifest.action.space()
        self.backend: Literal["numpy", "onnx"] = "numpy" if session is None else "onnx"
        self._actor = actor
        self._session = session
        self._flat = manifest.action.flat
        self._bounds = tuple(pairwise(accumulate(manifest.action.heads(), initial=0)))
        self._all = np.ones((1, actor.n_logits), dtype=np.bool_)

    def __repr__(self) -> str:
        training = self.manifest.training
        return (
            f"Policy({self.manifest.scenario.name}, {training.algorithm}, {training.steps} steps, "
            f"layers {'-'.join(map(str, self.manifest.network.layers))}, backend {self.backend})"
        )

    def copy(self) -> Policy:
        """Return a policy with the same weights, for another thread."""
        return Policy(self.manifest, self._actor.copy(), self._session)

    @property
    def actor(self) -> MlpActor | None:
        """The network in NumPy; None if onnxruntime computes the network."""
        return self._actor if self._session is None else None

    @property
    def flat(self) -> bool:
        """Whether the policy chooses one flat action instead of three indices."""
        return self._flat

    @property
    def fleet(self) -> bool:
        """Whether the policy makes plans: :meth:`choose` then returns three indices for each group."""
        return self.manifest.action.fleet is not None

    def fleet_space(self, scenario: Scenario, where: str = "") -> FleetSpace:
        """Return the plan space of a scenario, for a policy of the fleet view.

        Args:
            scenario: The scenario.
            where: Name of the scenario in messages; default: its name.

        Raises:
            PolicyError: The policy decides on single requests, or has other groups, lists or features than
                the scenario.
        """
        fleet = self.manifest.action.fleet
        settings = () if fleet is None else (fleet.control_period_s, fleet.grouping, fleet.name_targets)
        space = FleetSpace(scenario, *settings)
        problem = explain_fleet_mismatch(self.manifest, space)
        if problem:
            raise PolicyError(
                f"the policy (trained on {self.manifest.scenario.name!r}) does not fit "
                f"{where or f'scenario {scenario.name!r}'}: {problem}"
            )
        return space

    def decide(self, observation: Real, mask: NDArray[np.bool_] | None = None) -> Decision:
        """Return the deterministic decision for one observation.

        Args:
            observation: Output of :class:`~dsd_env.control.ObservationEncoder`: float32, shape (n_features,).
            mask: Output of :meth:`~dsd_env.control.ActionSpace.mask`: bool, shape (sum(nvec),); None:
                everything is selectable. A policy with flat actions also takes a flat mask, shape (n_flat,).

        Raises:
            ValueError: A shape is wrong, a value is not finite, a dimension has nothing to select, or the
                policy belongs to the fleet view and makes plans.
        """
        if self.fleet:
            raise ValueError("a policy of the fleet view makes plans: ask choose(observation, mask)")
        gamma, batch, placement = self.action(observation, mask)
        return self.actions.decision(gamma, batch, placement)

    def action(self, observation: Real, mask: NDArray[np.bool_] | None = None) -> list[int]:
        """Return the MultiDiscrete action (three indices) behind the decision of :meth:`decide`."""
        if mask is not None:
            mask = np.asarray(mask, dtype=np.bool_)
            if self._flat and mask.shape == (sum(self.actions.nvec),):
                mask = self.actions.flattened(mask)
        chosen = self.choose(observation, mask)
        return list(map(int, np.unravel_index(chosen[0], self.actions.nvec))) if self._flat else chosen

    def choose(self, observation: Real, mask: NDArray[np.bool_] | None = None) -> list[int]:
        """Return the index chosen in each action dimension of the network; flat actions have one dimension.

        Args:
            observation: As for :meth:`decide`.
            mask: bool, as long as the logits; None: everything is selectable.

        Raises:
            ValueError: As for :meth:`decide`.
        """
        if self._session is None:
            return self._actor.action(observation, mask)
        x = self._checked(observation)
        allowed = self._all if mask is None else mask
        if allowed.size != self._all.size:
            raise ValueError(f"the mask has shape {allowed.shape}, the policy needs ({self._all.size},)")
        allowed = allowed.reshape(1, -1)
        for dimension, (start, stop) in enumerate(self._bounds):
            if not allowed[0, start:stop].any():
                raise ValueError(f"the mask leaves nothing to select in dimension {dimension}")
        actions: list[int] = self._session.run(["actions"], {"observation": x, "mask": allowed})[0][
            0
        ].tolist()
        return actions

    def logits(self, observation: Real) -> Float32:
        """Return the logits before masking (float32, shape (sum(nvec),); flat (n_flat,); a fresh array)."""
        if self._session is None:
            return self._actor.logits(observation).copy()
        x = self._checked(observation)
        logits: Float32 = self._session.run(["logits"], {"observation": x, "mask": self._all})[0][0]
        return logits

    def check_scenario(self, scenario: Scenario) -> None:
        """Check that the policy can decide in a scenario.

        The scenario must have the features that the policy reads. It may have fewer candidates, and other
        speculation lengths and batch sizes; :meth:`offered` says which entries of the policy's lists it has.

        Raises:
            PolicyError: The policy cannot decide in the scenario; the message says why.
        """
        if self.fleet:
            self.fleet_space(scenario)
            return
        problem = explain_unfit(self.manifest, scenario)
        if problem:
            raise PolicyError(
                f"the policy (trained on {self.manifest.scenario.name!r}) does not fit scenario "
                f"{scenario.name!r}: {problem}; train a policy on it, or on a mixture with it"
            )

    def offered(self, scenario: Scenario) -> NDArray[np.bool_]:
        """Return which entries of the policy's lists a scenario has (bool, shape (sum(nvec),))."""
        return self.actions.offered_by(ActionSpace.of(scenario))

    def check_schema(
        self, encoder: ObservationEncoder, actions: ActionSpace, where: str = "the scenario"
    ) -> None:
        """Check that an encoder and an action space equal those that the policy was trained with.

        Raises:
            PolicyError: They differ; the message says in what.
        """
        problem = explain_mismatch(self.manifest, encoder, actions)
        if problem:
            raise PolicyError(
                f"the policy (trained on {self.manifest.scenario.name!r}) does not fit {where}: {problem}; "
                "train a policy on a scenario with the same candidate and action lists"
            )

    def _checked(self, observation: Real) -> Float32:
        x = np.asarray(observation, dtype=np.float32)
        if x.shape != (self._actor.n_inputs,):
            raise ValueError(
                f"the observation has shape {x.shape}, the policy reads ({self._actor.n_inputs},)"
            )
        if not np.dot(x, x) < np.inf:
            raise ValueError("the observation holds a value that is not finite")
        return x.reshape(1, -1)


def load(path: str | Path, backend: Backend = "auto") -> Policy:
    """Load a policy bundle, and verify all of it.

    The directory must hold the three files of a bundle and nothing else. Neither the directory nor a file in
    it may be a symbolic link, because its content could then be exchanged after the check.

    Args:
        path: Directory of the bundle.
        backend: ``numpy``; ``onnx`` (needs the package onnxruntime); ``auto`` is ``numpy``, which is about as
            fast for networks of this size and starts at once.

    Raises:
        PolicyError: A file is missing, too large, unexpected or a link; a digest, schema, shape, type or
            value is wrong; or onnxruntime is not installed.
    """
    if backend not in ("auto", "numpy", "onnx"):
        raise PolicyError(f"unknown backend {backend!r}; choose 'auto', 'numpy' or 'onnx'")
    folder = Path(path)
    with _opened(folder) as source:
        manifest = Manifest.parse(
            _read(source, MANIFEST_FILE, MAX_MANIFEST_BYTES), str(folder / MANIFEST_FILE)
        )
        contents = {}
        for name in (NPZ_FILE, ONNX_FILE):
            entry = dict(manifest.files).get(name)  # type: ignore[call-overload]
            if entry is None:
                raise PolicyError(f"{folder / MANIFEST_FILE}: files lacks {name!r}; export the policy again")
            contents[name] = _read_verified(source, name, entry)
    actor = MlpActor(
        _unpack(contents[NPZ_FILE], manifest, str(folder / NPZ_FILE)),
        manifest.network.activation,
        manifest.action.heads(),
        manifest.network.normalisations,
    )
    session = (
        _onnx_session(contents[ONNX_FILE], manifest, str(folder / ONNX_FILE)) if backend == "onnx" else None
    )
    return Policy(manifest, actor, session)


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    arrays: Mapping[str, Float32],
    onnx_bytes: bytes,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle into a temporary directory, then rename that, so that no partial bundle is ever seen.

    Args:
        path: Directory to make.
        manifest: The manifest; its digests are filled in.
        arrays: Weights, by the names of :meth:`Manifest.array_shapes`.
        onnx_bytes: Content of the ONNX file.
        overwrite: Whether to replace an existing bundle (never a directory that holds anything else).

    Returns:
        The manifest as written.

    Raises:
        PolicyError: The path exists, or the arrays are not those of the manifest.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        replaceable = target.is_dir() and {p.name for p in target.iterdir()} <= FILES
        if not replaceable:
            raise PolicyError(f"{target}: exists and is not a policy bundle; choose another directory")
        if not overwrite:
            raise PolicyError(f"{target}: exists; choose another directory, or say `overwrite` (--overwrite)")
    npz = _pack(arrays, manifest)
    files = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in ((NPZ_FILE, npz), (ONNX_FILE, onnx_bytes))
    }
    manifest = Manifest.model_validate({**manifest.model_dump(), "files": files})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        write_bytes(new / NPZ_FILE, npz)
        write_bytes(new / ONNX_FILE, onnx_bytes)
        write_text(new / MANIFEST_FILE, manifest.to_json())
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(new, target)
        except BaseException:
            # The temporary directory, with the old bundle in it, is about to be deleted: move it back.
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
    return manifest


@dataclass(frozen=True)
class _Source:
    """A bundle's directory, open for reading.

    Attributes:
        folder: Path of the directory.
        descriptor: Descriptor of the open directory, so that all files are read from the same directory even
            if it is renamed meanwhile; None if the system cannot open directories.
    """

    folder: Path
    descriptor: int | None


@contextmanager
def _opened(folder: Path) -> Iterator[_Source]:
    """Open a bundle's directory, which must not be a link and may hold only the files of a bundle.

    Raises:
        PolicyError: The path is a link or not a directory, or the directory holds something else.
    """
    linked = PolicyError(f"{folder}: is a symbolic link; give the directory that it points to")
    absent = PolicyError(f"{folder}: no such directory; a policy bundle is a directory with {MANIFEST_FILE}")
    descriptor = None
    try:
        if folder.is_symlink():
            raise linked
        if not folder.is_dir():
            raise absent
        if os.open in os.supports_dir_fd and os.listdir in os.supports_fd:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        names = os.listdir(folder if descriptor is None else descriptor)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        if isinstance(error, PolicyError):
            raise
        if getattr(error, "errno", None) in (errno.ELOOP, errno.ENOTDIR):  # exchanged since the looks above
            raise linked from error
        raise PolicyError(f"{folder}: cannot be read ({error})") from error
    try:
        if extra := sorted(set(names) - FILES):
            some = ", ".join(map(repr, extra[:5])) + " …" * (len(extra) > 5)
            raise PolicyError(
                f"{folder}: holds {some}, which no policy bundle does; its files are "
                f"{', '.join(sorted(FILES))}: "
                + (f"did you mean {folder / 'policy'}?" if "policy" in extra else "move the rest elsewhere")
            )
        yield _Source(folder, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _read(source: _Source, name: str, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes."""
    path = source.folder / name
    linked = PolicyError(f"{path}: is a symbolic link; a bundle holds its files itself")
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    try:
        if source.descriptor is None:
            if path.is_symlink():
                raise linked
            descriptor = os.open(path, flags)
        else:
            descriptor = os.open(name, flags, dir_fd=source.descriptor)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyError(f"{path}: is not a regular file; copy or export the bundle again")
            content = file.read(limit + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked from error
        raise PolicyError(f"{path}: cannot be read ({error.strerror}); is the bundle complete?") from error
    if len(content) > limit:
        raise PolicyError(f"{path}: larger than {limit} bytes, which no file of a bundle is")
    return content


def _read_verified(source: _Source, name: str, entry: FileEntry) -> bytes:
    content = _read(source, name, MAX_FILE_BYTES)
    path = source.folder / name
    if len(content) != entry.bytes:
        raise PolicyError(
            f"{path}: {len(content)} bytes, the manifest says {entry.bytes}: truncated or replaced; "
            "copy or export it again"
        )
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise PolicyError(
            f"{path}: SHA-256 differs from the manifest: damaged or tampered with; copy or export it again"
        )
    return content


def _pack(arrays: Mapping[str, Float32], manifest: Manifest) -> bytes:
    shapes = manifest.array_shapes()
    if set(arrays) != set(shapes):
        raise PolicyError(f"arrays {sorted(arrays)} are not those of the manifest, {sorted(shapes)}")
    buffer = io.BytesIO()
    # Not np.savez, which stamps members with the time, so that equal weights would have unequal digests.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, shape in shapes.items():
            array = np.ascontiguousarray(arrays[name], dtype=_FLOAT32)
            if array.shape != shape:
                raise PolicyError(f"array {name!r} has shape {array.shape}, the manifest needs {shape}")
            if not np.isfinite(array).all():
                raise PolicyError(f"array {name!r} holds a value that is not finite: the training diverged")
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return buffer.getvalue()


def _unpack(content: bytes, manifest: Manifest, where: str) -> list[tuple[Float32, Float32]]:
    """Return the layers; each array's header is compared with the manifest before its data are read."""
    shapes = manifest.array_shapes()
    arrays: dict[str, Float32] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            wanted = [f"{name}.npy" for name in shapes]
            if sorted(names) != sorted(wanted):
                extra, lacking = sorted(set(names) - set(wanted)), sorted(set(wanted) - set(names))
                raise PolicyError(
                    f"{where}: arrays are not those of the manifest: extra {extra}, missing {lacking}"
                )
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(content):
                    raise PolicyError(
                        f"{where}: {member.filename} is compressed; bundles store arrays plainly"
                    )
                name = member.filename.removesuffix(".npy")
                arrays[name] = _parse_npy(archive.read(member), shapes[name], f"{where}: {name}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise PolicyError(f"{where}: not a readable npz file ({error}); copy or export it again") from error
    n_layers = len(manifest.network.layers) - 1
    return [(arrays[f"weight_{i}"], arrays[f"bias_{i}"]) for i in range(n_layers)]


def _parse_npy(raw: bytes, shape: tuple[int, ...], where: str) -> Float32:
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise PolicyError(f"{where}: npy version {version}, expected (1, 0)")
        got_shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except PolicyError:
        raise
    except Exception as error:  # a damaged header raises many kinds
        raise PolicyError(f"{where}: damaged array header ({error}); copy or export it again") from error
    if dtype != _FLOAT32 or fortran:
        raise PolicyError(
            f"{where}: type {dtype}{', Fortran order' if fortran else ''}; expected float32 in C order"
        )
    if got_shape != shape:
        raise PolicyError(f"{where}: shape {got_shape}, the manifest says {shape}")
    if len(raw) - stream.tell() != _FLOAT32.itemsize * int(np.prod(shape)):
        raise PolicyError(f"{where}: data of the wrong length; copy or export it again")
    array = np.frombuffer(raw, dtype=_FLOAT32, offset=stream.tell()).reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise PolicyError(
            f"{where}: holds a value that is not finite; the training diverged, export another checkpoint"
        )
    return array


def _onnx_session(content: bytes, manifest: Manifest, where: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise PolicyError(
            "backend 'onnx' needs the package onnxruntime: pip install onnxruntime, or use 'numpy'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds
        raise PolicyError(f"{where}: onnxruntime cannot load it ({error}); export it again") from error
    if session.get_modelmeta().custom_metadata_map.get("manifest") != manifest.identity_json():
        raise PolicyError(
            f"{where}: carries another manifest than {MANIFEST_FILE}; files of two bundles were mixed"
        )
    widths = manifest.network.layers
    ports = {
        port.name: (port.shape[-1], port.type) for port in (*session.get_inputs(), *session.get_outputs())
    }
    expected = {
        "observation": (widths[0], "tensor(float)"),
        "mask": (widths[-1], "tensor(bool)"),
        "actions": (len(manifest.action.heads()), "tensor(int64)"),
        "logits": (widths[-1], "tensor(float)"),
    }
    if ports != expected:
        raise PolicyError(f"{where}: inputs and outputs are {ports}, expected {expected}; export it again")
    return session


__all__ = ["Backend", "Policy", "load", "write_bundle"]
