"""The trace format: what is written is read back, and whatever is wrong is found and named."""

import hashlib
import json
import zipfile
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.acceptance import (
    DrafterTrace,
    TraceError,
    TraceSet,
    available_trace_sets,
    load_trace_set,
)
from dsd_env.acceptance.stats import summary
from dsd_env.acceptance.traceset import DATA_DIR
from tests.acceptance_samples import card, make_trace


def assert_equal(a: TraceSet, b: TraceSet) -> None:
    assert a.kinds == b.kinds
    assert list(a.drafters) == list(b.drafters)
    for name in ("offsets", "kind", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    for drafter, values in a.drafters.items():
        other = b.drafters[drafter]
        for name in (f.name for f in fields(DrafterTrace)):
            left, right = getattr(values, name), getattr(other, name)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(left, right, strict=True)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 2**31))
def test_round_trip(tmp_path_factory, lengths, seed):
    trace = make_trace(lengths, [i % 2 for i in range(len(lengths))], seed)
    directory = tmp_path_factory.mktemp("trace")
    npz, json_path = trace.save(directory)
    for source in (npz, json_path, directory / "sample", str(npz)):
        assert_equal(load_trace_set(source), trace)


def test_same_trace_gives_same_bytes_and_nothing_else_is_left(tmp_path):
    first = [p.read_bytes() for p in make_trace().save(tmp_path / "a")]
    second = [p.read_bytes() for p in make_trace().save(tmp_path / "b")]
    assert first == second
    loaded = load_trace_set(tmp_path / "a" / "sample")
    assert [p.read_bytes() for p in loaded.save(tmp_path / "c")] == first
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["sample.json", "sample.npz"]


def test_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch):
    make_trace().save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dsd_env.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_trace(seed=1).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_names_with_dots_and_files_in_the_current_directory(tmp_path, monkeypatch):
    replace(make_trace(), name="model-2.5_greedy").save(tmp_path)
    assert load_trace_set(tmp_path / "model-2.5_greedy").n_entries == 3
    monkeypatch.chdir(tmp_path)
    assert load_trace_set("model-2.5_greedy").n_entries == 3


def rewrite(directory, edit_arrays=None, edit_card=None):
    """Change a saved trace set and make its hash right again."""
    npz, json_path = directory / "sample.npz", directory / "sample.json"
    with np.load(npz, allow_pickle=False) as archive:
        arrays = {k: archive[k] for k in archive.files}
    if edit_arrays:
        edit_arrays(arrays)
    with npz.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    content = json.loads(json_path.read_text())
    content["npz_sha256"] = hashlib.sha256(npz.read_bytes()).hexdigest()
    if edit_card:
        edit_card(content)
    json_path.write_text(json.dumps(content))


def put(key, value):
    return lambda content: content.__setitem__(key, value)


def drop(key):
    return lambda content: content.pop(key)


def set_item(key, index, value):
    def edit(arrays):
        arrays[key][index] = value

    return edit


def with_guesses(**changes: Any) -> TraceSet:
    """Return a sampled recording with all columns of version 2, for a drafter of each form."""
    trace = make_trace()
    look, model = trace.drafters["look"], trace.drafters["model"]
    assert model.accept_prob is not None
    rank = np.arange(1, 13, dtype=np.uint8)
    columns: dict[str, Any] = {"draft_prob": model.accept_prob / 2, "rank": rank, **changes}
    drafters = {"look": replace(look, **columns), "model": replace(model, **columns)}
    return replace(trace, drafters=drafters)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("offsets"), r"lacks \['offsets'\]"),
        (drop("model/top1_prob"), r"'model' lacks \['top1_prob'\]"),
        (drop("look/run_length"), "either run_length or accept_prob"),
        (put("offsets", np.array([0, 5, 8, 12], np.int32)), "offsets must be one-dimensional int64"),
        (put("kind", np.array([0, 1, 0], np.int64)), "kind must be one-dimensional uint8"),
        (put("kind", np.array([0, 1], np.uint8)), "offsets has 4 values, 3 expected"),
        (put("kind", np.array([0, 2, 0], np.uint8)), "kind holds 2"),
        (put("offsets", np.array([0, 5, 5, 12], np.int64)), "increase strictly"),
        (put("offsets", np.array([0, 5, 8, 11], np.int64)), "has 12 values, 11 expected"),
        (put("prompt_tokens", np.array([3, -1, 2], np.int32)), "negative"),
        (put("look/run_length", np.zeros(12, np.int64)), "look/run_length must be one-dimensional uint8"),
        (put("look/run_length", np.zeros((12, 1), np.uint8)), "look/run_length must be one-dimensional"),
        (set_item("look/run_length", 3, 17), "above gamma_max 16"),
        (put("model/accept_prob", np.zeros(12, np.float64)), "accept_prob must be one-dimensional float32"),
        (set_item("model/accept_prob", 3, np.nan), "accept_prob spans nan"),
        (set_item("model/accept_prob", 3, 1.5), "accept_prob spans"),
        (set_item("model/accept_prob", 3, -0.1), "accept_prob spans"),
        (set_item("look/top1_prob", 3, np.nan), "top1_prob spans"),
        (set_item("look/top1_prob", 3, 1.01), "top1_prob spans"),
        (set_item("look/entropy_nats", 3, np.inf), "entropy_nats spans"),
        (set_item("look/entropy_nats", 3, -1), "entropy_nats spans"),
        (set_item("model/draft_prob", 3, np.nan), "model/draft_prob spans nan"),
        (set_item("model/draft_prob", 3, 1.5), "model/draft_prob spans"),
        (set_item("look/draft_prob", 3, -0.1), "look/draft_prob spans"),
        (put("model/draft_prob", np.zeros(12)), "model/draft_prob must be one-dimensional float32"),
        (put("model/rank", np.ones(12, np.int64)), "model/rank must be one-dimensional uint8"),
        (set_item("model/rank", 3, 0), "model/rank is 0 at position 3, the most likely token is 1"),
        (put("extra", np.zeros(3)), "unknown array 'extra'"),
        (put("look/other", np.zeros(3)), "unknown array 'look/other'"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, edit, message):
    with_guesses().save(tmp_path)
    rewrite(tmp_path, edit_arrays=edit)
    with pytest.raises(TraceError, match=message):
        load_trace_set(tmp_path / "sample")


def test_guesses_and_ranks_are_read_back(tmp_path):
    trace = with_guesses()
    npz, _ = trace.save(tmp_path)
    assert_equal(load_trace_set(npz), trace)


def test_a_recording_of_version_1_has_no_guesses(tmp_path):
    make_trace().save(tmp_path)
    rewrite(tmp_path, edit_card=put("format_version", 1))
    trace = load_trace_set(tmp_path / "sample")
    assert all(d.draft_prob is None and d.rank is None for d in trace.drafters.values())


def test_a_draft_is_accepted_at_least_as_often_as_it_is_right_unseen():
    accept = np.full(12, 0.5, np.float32)
    guess = accept.copy()
    guess[4] = 0.75
    model = replace(make_trace().drafters["model"], accept_prob=accept, draft_prob=guess)
    with pytest.raises(
        TraceError, match=r"m/draft_prob is 0\.75 at position 4, where accept_prob is 0\.5; .* no greater"
    ):
        make_trace(drafters={"m": model}, card=card(("m",)))
    # Rounding of the two exponentials is no fault.
    guess[4] = np.nextafter(np.float32(0.5), np.float32(1.0))
    make_trace(drafters={"m": replace(model, draft_prob=guess)}, card=card(("m",)))


def test_columns_of_a_greedy_recording_say_the_same():
    match = np.array([1.0, 0.0] * 6, np.float32)
    model = replace(make_trace().drafters["model"], accept_prob=match)
    greedy = card(("m",), temperature=0.0)
    rank = np.array([1, 2] * 6, np.uint8)
    for guess in (None, match):
        trace = make_trace(drafters={"m": replace(model, draft_prob=guess, rank=rank)}, card=greedy)
        assert trace.drafters["m"].guess_prob is None
    guess = match.copy()
    guess[2] = 0.5
    with pytest.raises(TraceError, match=r"draft_prob is 0\.5 at position 2, .* equal to it \(greedy\)"):
        make_trace(drafters={"m": replace(model, draft_prob=guess)}, card=greedy)
    rank[3] = 1
    with pytest.raises(TraceError, match=r"m/rank is 1 at position 3, where accept_prob is 0\.0"):
        make_trace(drafters={"m": replace(model, rank=rank)}, card=greedy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("format_version", 3), "format_version is 3; this version of dsd_env reads 1 and 2"),
        (put("format_version", True), "format_version is True"),
        (drop("format_version"), "format_version is None"),
        (drop("licence"), r"lacks \['licence'\]"),
        (put("label", "guessed"), "label is 'guessed'"),
        (put("gamma_max", "16"), "gamma_max is '16'"),
        (put("gamma_max", True), "gamma_max is True"),
        (put("gamma_max", 256), "gamma_max is 256"),
        (put("kinds", ["code"]), "there are 1 kinds"),
        (put("kinds", ["code", "code"]), "distinct"),
        (put("kinds", "code"), "list of names"),
        (put("drafters", {"look": {}}), "drafters are not those"),
        (put("npz_sha256", "0" * 64), "SHA-256"),
        (drop("npz_sha256"), "SHA-256"),
    ],
)
def test_wrong_cards_are_named(tmp_path, edit, message):
    make_trace().save(tmp_path)
    rewrite(tmp_path, edit_card=edit)
    with pytest.raises(TraceError, match=message):
        load_trace_set(tmp_path / "sample")


@given(data=st.data())
def test_any_damaged_byte_is_found(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("damaged")
    npz, _ = make_trace().save(directory)
    blob = bytearray(npz.read_bytes())
    index = data.draw(st.integers(0, len(blob) - 1))
    blob[index] ^= data.draw(st.integers(1, 255))
    npz.write_bytes(bytes(blob))
    with pytest.raises(TraceError, match="damaged"):
        load_trace_set(npz)


@given(size=st.floats(0, 0.999))
def test_truncated_archives_are_found_even_with_a_matching_hash(tmp_path_factory, size):
    directory = tmp_path_factory.mktemp("truncated")
    npz, json_path = make_trace().save(directory)
    blob = npz.read_bytes()[: int(size * npz.stat().st_size)]
    npz.write_bytes(blob)
    content = json.loads(json_path.read_text())
    content["npz_sha256"] = hashlib.sha256(blob).hexdigest()
    json_path.write_text(json.dumps(content))
    with pytest.raises(TraceError, match="not a readable npz"):
        load_trace_set(npz)


def test_pickles_are_refused(tmp_path):
    npz, json_path = make_trace().save(tmp_path)
    with npz.open("wb") as stream:
        np.savez(stream, offsets=np.array([{"a": 1}], dtype=object))
    content = json.loads(json_path.read_text())
    content["npz_sha256"] = hashlib.sha256(npz.read_bytes()).hexdigest()
    json_path.write_text(json.dumps(content))
    with pytest.raises(TraceError, match="not a readable npz"):
        load_trace_set(npz)


def test_missing_files_and_damaged_cards(tmp_path):
    with pytest.raises(TraceError, match="does not exist"):
        load_trace_set("no-such-trace-set")
    npz, json_path = make_trace().save(tmp_path)
    text = json_path.read_text()
    json_path.write_text(text[:-20])
    with pytest.raises(TraceError, match="not a readable JSON"):
        load_trace_set(npz)
    json_path.write_text("[]")
    with pytest.raises(TraceError, match="must be a JSON object"):
        load_trace_set(npz)
    json_path.unlink()
    with pytest.raises(TraceError, match=r"sample\.json does not exist"):
        load_trace_set(npz)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a\\b"])
def test_names_are_plain(name):
    with pytest.raises(TraceError, match="plain file name"):
        make_trace(name=name)


def test_kinds_select_entries():
    trace = make_trace()
    assert trace.entries_of().tolist() == [0, 1, 2]
    assert trace.entries_of(["code"]).tolist() == [0, 2]
    assert trace.positions_of(["chat"]).tolist() == [5, 6, 7]
    for wrong in (["maths"], []):
        with pytest.raises(TraceError, match="it has: code, chat"):
            trace.entries_of(wrong)


@pytest.mark.parametrize("name", available_trace_sets())
def test_shipped_trace_sets(name):
    trace = load_trace_set(name)
    assert trace.label == "measured"
    assert trace.card["licence"]
    assert len(trace.card["entries"]) == trace.n_entries
    assert sum(p.stat().st_size for p in DATA_DIR.glob(f"{name}.*")) < 1_000_000
    for drafter in trace.drafters:
        figures = summary(trace, drafter, (1, 2, 4, 8, 16))
        per_round = [figures[f"tokens_per_round@{gamma}"] for gamma in (1, 2, 4, 8, 16)]
        assert per_round == sorted(per_round)
        assert 1.0 < per_round[0] <= 2.0


def test_the_shipped_recording_is_what_the_project_promises():
    trace = load_trace_set("qwen2.5-coder-1.5b_smollm2-135m_greedy")
    assert trace.n_entries >= 100
    assert set(trace.drafters) == {"smollm2-135m", "prompt-lookup"}
    assert len(trace.kinds) >= 4
    assert min(np.bincount(trace.kind)) >= 25
    assert trace.card["target"]["sha256"].startswith("cc324af0")
    assert {p["licence"] for p in trace.card["prompts"]} <= {"MIT", "Apache-2.0"}
    with zipfile.ZipFile(DATA_DIR / f"{trace.name}.npz") as archive:
        assert archive.testzip() is None
