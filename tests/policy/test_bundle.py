"""The torch-free policy runtime: inference, and everything that a damaged or foreign bundle can do wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dsd_env.control import ActionSpace, Decision, ObservationEncoder
from dsd_env.policy import FORMAT_VERSION, Manifest, MlpActor, PolicyError, load, write_bundle
from dsd_env.policy import bundle as bundle_module
from dsd_env.policy.manifest import Actions, Network, ScenarioRef, Training, feature_specs

GAMMAS, BATCHES, PLACEMENTS = (0, 2, 4), (1, 8), 2
WIDTHS = (len(ObservationEncoder(PLACEMENTS).features), 5, 7)


def manifest(**changes) -> Manifest:
    values = {
        "created": "2026-01-01T00:00:00+00:00",
        "observation": feature_specs(ObservationEncoder(PLACEMENTS).features),
        "action": Actions(gammas=GAMMAS, batch_sizes=BATCHES, n_placements=PLACEMENTS),
        "network": Network(layers=WIDTHS, activation="tanh", normalisations=2),
        "scenario": ScenarioRef(name="test", version=1, sha256="0" * 64),
        "training": Training(algorithm="MaskablePPO", seed=0, steps=10),
    }
    return Manifest(**{**values, **changes})


def random_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=s).astype(np.float32) for name, s in manifest().array_shapes().items()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "policy", manifest(), random_arrays(), b"not looked at by the numpy backend")
    return tmp_path / "policy"


def edit_manifest(bundle: Path, change) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree, as a tamperer would."""
    (bundle / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(bundle, lambda data: data["files"].update({name: entry}))


def npz(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED, version=(1, 0)) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=version, allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def test_inference_is_the_network(bundle: Path) -> None:
    arrays = random_arrays()
    policy = load(bundle)
    rng = np.random.default_rng(1)
    for _ in range(200):
        x = rng.uniform(-1, 1, WIDTHS[0]).astype(np.float32)
        hidden = np.tanh(arrays["weight_0"].astype(np.float64) @ x + arrays["bias_0"])
        logits = arrays["weight_1"] @ hidden + arrays["bias_1"]
        np.testing.assert_allclose(policy.logits(x), logits, rtol=1e-4, atol=1e-5)
        mask = rng.random(7) < 0.6
        mask[[0, 3, 5]] = True
        masked = np.where(mask, logits, -np.inf)
        gamma, batch, placement = (int(masked[a:b].argmax()) for a, b in ((0, 3), (3, 5), (5, 7)))
        assert policy.action(x, mask) == [gamma, batch, placement]
        assert policy.decide(x, mask) == Decision(GAMMAS[gamma], BATCHES[batch], placement)


def test_logits_are_not_overwritten_by_the_next_call(bundle: Path) -> None:
    policy = load(bundle)
    first = policy.logits(np.zeros(WIDTHS[0], dtype=np.float32))
    kept = first.copy()
    policy.logits(np.ones(WIDTHS[0], dtype=np.float32))
    np.testing.assert_array_equal(first, kept)
    assert policy.copy().decide(np.ones(WIDTHS[0])) == policy.decide(np.ones(WIDTHS[0]))


@pytest.mark.parametrize("normalisations", [1, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_exact_ties_go_to_the_first(activation, normalisations) -> None:
    actor = MlpActor([(np.zeros((7, 3)), np.zeros(7))], activation, (3, 2, 2), normalisations)
    x = np.zeros(3, dtype=np.float32)
    assert actor.action(x) == [0, 0, 0]
    assert actor.action(x, np.array([0, 1, 1, 0, 1, 0, 1], dtype=bool)) == [1, 1, 1]


def test_a_tie_by_rounding_goes_to_the_first_as_in_training() -> None:
    # The second logit is larger, but normalised to about -0.69 the two are the same float32.
    bias = np.array([0.01, 0.01 + 1e-9, 0.0, 0.0], dtype=np.float32)
    assert bias[1] > bias[0]
    actor = MlpActor([(np.zeros((4, 1)), bias)], "tanh", (2, 2), 2)
    assert actor.action(np.zeros(1, dtype=np.float32)) == [0, 0]
    # Further apart they are not.
    clear = MlpActor([(np.zeros((4, 1)), np.array([0.01, 0.01 + 1e-6, 0, 0]))], "tanh", (2, 2), 2)
    assert clear.action(np.zeros(1, dtype=np.float32)) == [1, 0]


def test_wrong_arguments_of_decide(bundle: Path) -> None:
    policy = load(bundle)
    good = np.zeros(WIDTHS[0], dtype=np.float32)
    with pytest.raises(ValueError, match="shape"):
        policy.decide(good[:-1])
    for poison in (np.nan, np.inf):
        bad = good.copy()
        bad[3] = poison
        with pytest.raises(ValueError, match="not finite"):
            policy.decide(bad)
    with pytest.raises(ValueError, match="mask has shape"):
        policy.decide(good, np.ones(6, dtype=bool))
    with pytest.raises(ValueError, match="nothing to select in dimension 1"):
        policy.decide(good, np.array([1, 1, 1, 0, 0, 1, 1], dtype=bool))


def test_missing_pieces(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match="unknown backend"):
        load(bundle, backend="torch")  # type: ignore[arg-type]
    for name in ("policy.npz", "policy.onnx", "manifest.json"):
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        with pytest.raises(PolicyError, match=name):
            load(bundle)
        (bundle / name).write_bytes(content)
    load(bundle)


@pytest.mark.parametrize("name", ["policy.npz", "policy.onnx"])
def test_every_flipped_byte_and_every_truncation_is_found(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=20):
        (bundle / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(PolicyError, match="SHA-256"):
            load(bundle)
        (bundle / name).write_bytes(content[:at])
        with pytest.raises(PolicyError, match="truncated or replaced"):
            load(bundle)
    (bundle / name).write_bytes(content + b"x")
    with pytest.raises(PolicyError, match="truncated or replaced"):
        load(bundle)


def test_truncated_manifest(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    for keep in range(0, len(text) - 1, 97):
        (bundle / "manifest.json").write_text(text[:keep])
        with pytest.raises(PolicyError, match=r"manifest\.json: not JSON"):
            load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not the manifest of a policy bundle"),
        (lambda d: d.update(format_version=FORMAT_VERSION + 1), "format_version 5 is not one of 1 to 4"),
        (lambda d: d.update(surprise=1), "unknown key 'surprise'"),
        (lambda d: d.pop("network"), "'network' is missing"),
        (lambda d: d["network"].update(activation="gelu"), "network.activation = 'gelu'"),
        (lambda d: d["network"].update(layers=[WIDTHS[0], 10**9, 7]), "layers.1 = 1000000000"),
        (lambda d: d["network"].update(layers=[WIDTHS[0], 6, 7]), "shape .* the manifest says"),
        (lambda d: d["network"].update(layers=[WIDTHS[0], 5, 5, 7]), "missing"),
        (lambda d: d["network"].update(layers=[WIDTHS[0] + 1, 5, 7]), "features"),
        (lambda d: d["action"].update(gammas=[0, 2]), "actions need 6"),
        (lambda d: d["action"].update(gammas=[0, 4, 2]), "strictly increasing"),
        (lambda d: d["observation"][0].update(name=d["observation"][1]["name"]), "occurs twice"),
        (lambda d: d["observation"][0].update(half=0), "half"),
        (lambda d: d["observation"][0].update(half=True), "half = True is not a number"),
        (lambda d: d["action"].update(n_placements=True), "n_placements = True is not a number"),
        (lambda d: d["action"].update(flat=0), "flat = 0 is neither true nor false"),
        (lambda d: d["files"].pop("policy.npz"), r"lacks 'policy\.npz'"),
        (lambda d: d["files"].update({"../evil": d["files"]["policy.npz"]}), r"\.\./evil"),
        (lambda d: d["files"]["policy.npz"].update(bytes=10**12), "bytes = 1000000000000"),
        (lambda d: d["files"]["policy.npz"].update(sha256="abc"), "sha256"),
    ],
)
def test_wrong_manifest(bundle: Path, change, message: str) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(PolicyError, match=message):
        load(bundle)


def test_wrong_arrays(bundle: Path) -> None:
    good = random_arrays()

    def refused(arrays, message, **options) -> None:
        replace_file(bundle, "policy.npz", npz(arrays, **options))
        with pytest.raises(PolicyError, match=message):
            load(bundle)

    refused({**good, "extra": np.zeros(1, dtype=np.float32)}, r"extra \['extra\.npy'\]")
    refused({k: v for k, v in good.items() if k != "bias_1"}, r"missing \['bias_1\.npy'\]")
    refused({**good, "bias_1": good["bias_1"].astype(np.float64)}, "type float64")
    refused({**good, "bias_1": good["bias_1"].astype(">f4")}, "type >f4")
    refused({**good, "weight_0": np.asfortranarray(good["weight_0"])}, "Fortran order")
    refused({**good, "bias_1": good["bias_1"][:-1]}, "shape")
    refused({**good, "bias_1": np.array([None] * 7)}, "type object")
    for poison in (np.nan, np.inf):
        refused({**good, "bias_1": np.full(7, poison, dtype=np.float32)}, "not finite")
    refused(good, "compressed", compression=zipfile.ZIP_DEFLATED)
    refused(good, "npy version", version=(2, 0))
    replace_file(bundle, "policy.npz", b"PK\x03\x04 not really a zip")
    with pytest.raises(PolicyError, match="not a readable npz"):
        load(bundle)


def test_a_header_that_lies_about_the_size_is_refused_before_memory_is_taken(bundle: Path) -> None:
    member = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(member, header)
    good = random_arrays()
    buffer = io.BytesIO(npz({k: v for k, v in good.items() if k != "bias_1"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("bias_1.npy", member.getvalue())
    replace_file(bundle, "policy.npz", buffer.getvalue())
    with pytest.raises(PolicyError, match="shape"):
        load(bundle)


def test_data_shorter_than_the_header_says(bundle: Path) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (7,)})
    buffer = io.BytesIO(npz({k: v for k, v in random_arrays().items() if k != "bias_1"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("bias_1.npy", member.getvalue() + b"\0" * 24)
    replace_file(bundle, "policy.npz", buffer.getvalue())
    with pytest.raises(PolicyError, match="wrong length"):
        load(bundle)


def test_symbolic_links_and_huge_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (bundle / "policy.npz").rename(elsewhere)
    (bundle / "policy.npz").symlink_to(elsewhere)
    with pytest.raises(PolicyError, match="symbolic link"):
        load(bundle)
    (bundle / "manifest.json").write_bytes(b" " * 1_000_001)
    with pytest.raises(PolicyError, match="larger than 1000000 bytes"):
        load(bundle)


def test_writing_never_replaces_by_accident(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="exists"):
        write_bundle(bundle, manifest(), random_arrays(1), b"onnx")
    before = load(bundle).logits(np.ones(WIDTHS[0]))
    write_bundle(bundle, manifest(), random_arrays(1), b"onnx", overwrite=True)
    assert not np.array_equal(load(bundle).logits(np.ones(WIDTHS[0])), before)
    (bundle / "thesis.txt").write_text("years of work")
    with pytest.raises(PolicyError, match="not a policy bundle"):
        write_bundle(bundle, manifest(), random_arrays(), b"onnx", overwrite=True)
    assert (bundle / "thesis.txt").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"], "no temporary files are left"


def test_an_interrupted_replacement_leaves_the_bundle_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(bundle).logits(np.ones(WIDTHS[0]))
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target) == bundle and Path(source).name == "new":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, manifest(), random_arrays(1), b"onnx", overwrite=True)
    assert np.array_equal(load(bundle).logits(np.ones(WIDTHS[0])), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]


def test_writing_refuses_what_loading_would(tmp_path: Path) -> None:
    arrays = random_arrays()
    with pytest.raises(PolicyError, match="not those of the manifest"):
        write_bundle(tmp_path / "a", manifest(), {k: v for k, v in arrays.items() if k != "bias_0"}, b"x")
    with pytest.raises(PolicyError, match="not finite"):
        write_bundle(tmp_path / "a", manifest(), {**arrays, "bias_0": np.full(5, np.nan)}, b"x")
    assert not (tmp_path / "a").exists()


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name, manifest(), random_arrays(), b"onnx")
    assert (tmp_path / "a" / "policy.npz").read_bytes() == (tmp_path / "b" / "policy.npz").read_bytes()


def test_schema_check_names_the_difference(bundle: Path) -> None:
    policy = load(bundle)
    encoder, actions = ObservationEncoder(PLACEMENTS), ActionSpace(GAMMAS, BATCHES, PLACEMENTS)
    policy.check_schema(encoder, actions)
    with pytest.raises(PolicyError, match=r"reads \d+ features, the scenario gives"):
        policy.check_schema(ObservationEncoder(PLACEMENTS + 1), actions)
    with pytest.raises(PolicyError, match=r"gammas are \(0, 2, 8\), the policy was trained with \(0, 2, 4\)"):
        policy.check_schema(encoder, ActionSpace((0, 2, 8), BATCHES, PLACEMENTS))
    first = encoder.features[4]
    encoder.features = (*encoder.features[:4], first._replace(half=7.0), *encoder.features[5:])
    with pytest.raises(PolicyError, match=f"feature 4 is '{first.name}'"):
        policy.check_schema(encoder, actions)


def test_loading_needs_no_learning_library(bundle: Path) -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'stable_baselines3', 'onnx', 'onnxruntime'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import dsd_env.policy, numpy as np\n"
        f"policy = dsd_env.policy.load({str(bundle)!r})\n"
        f"print(policy.decide(np.zeros({WIDTHS[0]}, dtype=np.float32)))\n"
        "try:\n"
        f"    dsd_env.policy.load({str(bundle)!r}, backend='onnx')\n"
        "except dsd_env.policy.PolicyError as error:\n"
        "    assert 'pip install onnxruntime' in str(error)\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Decision(gamma=")


@pytest.mark.benchmark
def test_a_decision_takes_microseconds() -> None:
    import timeit

    rng = np.random.default_rng(0)
    widths = (110, 64, 64, 29)
    layers = [(rng.normal(size=(o, i)) / i**0.5, np.zeros(o)) for i, o in pairwise(widths)]
    actor = MlpActor(layers, "tanh", (17, 8, 4))
    x, mask = rng.uniform(-1, 1, 110).astype(np.float32), np.ones(29, dtype=bool)
    best = min(timeit.repeat(lambda: actor.action(x, mask), number=5000, repeat=5)) / 5000
    assert best < 10e-6


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "policy.npz.bak", "Manifest.json", "a\nb"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_whatever_no_bundle_holds_is_refused(name: str, kind: str, bundle: Path, tmp_path: Path) -> None:
    extra = bundle / name
    if kind == "file":
        extra.write_text("")
    elif kind == "folder":
        extra.mkdir()
    else:
        extra.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match="move the rest elsewhere") as refused:
        load(bundle)
    assert repr(name) in str(refused.value)


def test_a_linked_directory_is_refused(bundle: Path, tmp_path: Path) -> None:
    chain = tmp_path / "absolute"
    for name, target in (("absolute", bundle), ("relative", Path("policy")), ("chain", chain)):
        (tmp_path / name).symlink_to(target)
        for given in (tmp_path / name, f"{tmp_path / name}/", f"{tmp_path / name}/."):
            with pytest.raises(PolicyError, match=f"{name}: is a symbolic link; give the directory"):
                load(given)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(PolicyError, match="dangling: is a symbolic link"):
        load(tmp_path / "dangling")
    # The way to it may lead over links: that is how systems mount and name their folders.
    (tmp_path / "parent").symlink_to(tmp_path)
    load(tmp_path / "parent" / "policy")


@pytest.mark.parametrize("name", ["manifest.json", "policy.npz", "policy.onnx"])
@pytest.mark.parametrize("kind", ["link", "link inside", "folder", "pipe", "device", "socket"])
def test_only_regular_files_are_read(name: str, kind: str, bundle: Path, tmp_path: Path) -> None:
    file = bundle / name
    message = r"is not a regular file|cannot be read"
    if kind.startswith("link"):
        # What it points to is all right; that it is a link is not.
        target = file.rename(tmp_path / "elsewhere")
        file.symlink_to(target if kind == "link" else Path("..") / target.name)
        message = "is a symbolic link; a bundle holds its files itself"
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)  # reading it would wait for ever
        elif kind == "device":
            try:
                os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zeros without end
            except PermissionError:
                pytest.skip("only root makes devices")
        else:
            with contextlib.chdir(bundle), socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
    with pytest.raises(PolicyError, match=f"{name}: .*({message})"):
        load(bundle)


def test_links_are_refused_where_directories_cannot_be_opened(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    load(bundle)
    (bundle / "policy.npz").rename(tmp_path / "elsewhere")
    (bundle / "policy.npz").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="is a symbolic link"):
        load(bundle)


def test_a_directory_exchanged_while_it_is_read_is_not_mixed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files come from the directory that was opened, whatever its name means meanwhile."""
    expected = load(bundle).logits(np.ones(WIDTHS[0]))
    read = bundle_module._read

    def exchange(source, name: str, limit: int) -> bytes:
        content = read(source, name, limit)
        if name == "manifest.json":
            bundle.rename(tmp_path / "old")
            bundle.mkdir()
        return content

    monkeypatch.setattr(bundle_module, "_read", exchange)
    np.testing.assert_array_equal(load(bundle).logits(np.ones(WIDTHS[0])), expected)


def test_a_directory_that_becomes_a_link_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and opening it."""
    (tmp_path / "link").symlink_to(bundle)
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    with pytest.raises(PolicyError, match="is a symbolic link"):
        load(tmp_path / "link")
