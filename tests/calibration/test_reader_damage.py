"""Damaged files: every reader of latency and of YAML gives a right result or one error naming the file."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import ConfigError, load_config
from dsd_env import load_scenario
from dsd_env.calibration.latency.edge import load_figures
from dsd_env.calibration.latency.importers import (
    MeasurementError,
    check_plausible,
    import_csv,
    import_llama_bench,
    import_vllm,
)
from dsd_env.calibration.latency.measure import load_measurement
from dsd_env.calibration.latency.splitwise import load_splitwise
from dsd_env.calibration.latency.tables import TableError, read_table
from dsd_env.latency import ProfileError, load_profile
from dsd_env.latency.profile import LatencyProfile
from dsd_env.paths import config_dir
from dsd_env.scenario import ScenarioError
from dsd_env.strict_yaml import StrictYamlError, dumps, loads
from tests.latency.test_profile import BASE
from tests.latency_samples import CSV, TESTS, latency_json, llama_row, llama_text, serve_json

MEASUREMENT: dict[str, Any] = {
    "format": "dsd_env latency measurement 1",
    "info": {
        "model": "m",
        "weights": "random",
        "device": "cpu",
        "dtype": "float32",
        "attention": "packed",
        "cuda_graph": False,
        "threads": 1,
        "weight_bytes": 1000,
        "kv_bytes_per_token": 10,
    },
    "environment": {"torch": "2"},
    "cells": [
        {
            "batch": 1,
            "q": q,
            "context": c,
            "phase": "decode" if q == 1 else "verify",
            "samples_s": [0.01, 0.011],
        }
        for q in (1, 5)
        for c in (0, 128)
    ],
}
FIGURES = """device,mem_bw_GBps,model,quant,decode_tok_s,prefill_tok_s,conditions,source
Some board,100,Llama-3.2-1B,Q4_K_M,20.5,300,pp512/tg128,somebody
Another,50,Llama-3.2-1B,Q4_K_M,10.5,,,somebody
"""
SPLITWISE = """model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel
llama,a100-80gb,512,1,128,60.5,30.5,4
llama,a100-80gb,512,2,128,90.5,31.5,4
"""
CONFIG = "scenario: metro\ntimesteps: 1e5\nseed: 3\nppo: {n_steps: 512, batch_size: 1024, gamma: 0.99}\n"


def points_of(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def points(path: Path) -> Any:
        got = read(path).points
        check_plausible(got, 8e8)
        for p in got:
            assert p.batch >= 1 and p.q >= 1 and p.context >= 0 and 0.0 < p.cell().seconds <= 1e6
        return {(p.key, p.seconds) for p in got}

    return points


def in_folder(folder: str, name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Readers of published tables take the folder above; give them one with this file at its place."""

    def whole(path: Path) -> Any:
        place = path.parent / folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
        return set(read(path.parent))

    return whole


def rows_of(path: Path) -> Any:
    return {tuple(sorted(v.items())) for v, _ in read_table(path, ("batch", "q", "context", "seconds"))}


def measured(path: Path) -> Any:
    return {(p.key, p.seconds) for p in load_measurement(path).points()}


Reader = tuple[str, Callable[[Path], Any], type[Exception]]
READERS: dict[str, Reader] = {
    "cells.csv": (CSV, points_of(import_csv), MeasurementError),
    "bench.json": (
        llama_text("json", [llama_row(*t) for t in TESTS]),
        points_of(lambda p: import_llama_bench([p])),
        MeasurementError,
    ),
    "bench.jsonl": (
        llama_text("jsonl", [llama_row(*t) for t in TESTS]),
        points_of(lambda p: import_llama_bench([p])),
        MeasurementError,
    ),
    "bench.csv": (
        llama_text("csv", [llama_row(*t) for t in TESTS]),
        points_of(lambda p: import_llama_bench([p])),
        MeasurementError,
    ),
    "lat_b8_i512_o1.json": (
        json.dumps(latency_json(8, 512, 1)),
        points_of(lambda p: import_vllm([str(p)])),
        MeasurementError,
    ),
    "serve.json": (
        json.dumps(serve_json(6, 50, 25)),
        points_of(lambda p: import_vllm([str(p)])),
        MeasurementError,
    ),
    "measurement.json": (json.dumps(MEASUREMENT, indent=1), measured, MeasurementError),
    "table.csv": (CSV, rows_of, TableError),
    "figures.csv": (FIGURES, in_folder("edge_bench", "edge_tokens_per_s.csv", load_figures), TableError),
    "splitwise.csv": (SPLITWISE, in_folder("splitwise-sim", "perf_model.csv", load_splitwise), TableError),
    "profile.yaml": (
        dumps(LatencyProfile.model_validate(BASE).model_dump(mode="json", exclude_none=True)),
        load_profile,
        ProfileError,
    ),
    "scenario.yaml": (
        (config_dir() / "scenarios" / "single_lan.yaml").read_text(encoding="utf-8"),
        load_scenario,
        ScenarioError,
    ),
    "train.yaml": (CONFIG, load_config, ConfigError),
    "any.yaml": (CONFIG, lambda p: loads(p.read_text(errors="replace"), str(p)), StrictYamlError),
}
TABLES = [name for name in READERS if name.endswith(".csv")]
PLACES = {"figures.csv": "edge_tokens_per_s.csv", "splitwise.csv": "perf_model.csv"}
TOKENS = [
    *(b"NaN", b"nan", b".nan", b"-1", b"-0.5", b"1e999", b"1e300", b"999999999999999999999", b"9" * 5000),
    *(
        b"null",
        b"true",
        b"010",
        b"1:30",
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a *a",
    ),
    *(b"\x00", b"\xff", b"\xc3\xbc", b"\xe2\x80\xa8", b"0", b"#", b": ", b"- ", b"!!int ", b"\r\n", b"0,5"),
]


def outcome(name: str, data: bytes, folder: Path) -> Any:
    """Return what the reader makes of the data, or None for its documented error, which names the file."""
    _, read, error = READERS[name]
    path = folder / name
    path.write_bytes(data)
    try:
        return read(path)
    except error as said:
        assert PLACES.get(name, name) in str(said), said
        assert "\n\n" not in str(said) and str(said).strip()
        return None


def damage(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    lines = bytes(data).split(b"\n")
    kind = rng.randrange(8)
    if kind == 0:
        data[at : at + 1] = rng.choice(TOKENS)
    elif kind == 1:
        del data[at : at + rng.randint(1, 40)]
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[:at]
    elif kind == 4:
        data[at] = rng.randrange(256)
    elif kind == 5:
        line = rng.randrange(len(lines))
        lines.insert(rng.randrange(len(lines)), lines[line])
        data = bytearray(b"\n".join(lines))
    elif kind == 6:
        rng.shuffle(lines)
        data = bytearray(b"\n".join(lines))
    else:
        # A number as a whole becomes something else: more telling than a byte of it.
        words = [
            i
            for i, byte in enumerate(data)
            if byte in b"0123456789" and (i == 0 or data[i - 1] in b' ,:[{"\n')
        ]
        if words:
            start = rng.choice(words)
            end = start
            while end < len(data) and data[end] in b"0123456789.eE+-":
                end += 1
            data[start:end] = rng.choice(TOKENS)
    return data or bytearray(b" ")


@pytest.mark.parametrize("name", READERS)
def test_undamaged_samples_are_read(tmp_path, name):
    assert outcome(name, READERS[name][0].encode(), tmp_path)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("name", READERS)
def test_damage_gives_a_result_or_the_documented_error(tmp_path_factory, name, seed):
    rng = random.Random(seed)
    folder = tmp_path_factory.getbasetemp()
    for _ in range(6):
        data = bytearray(READERS[name][0].encode())
        for _ in range(rng.randint(1, 4)):
            data = damage(data, rng)
        outcome(name, bytes(data), folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037"])
@pytest.mark.parametrize("name", READERS)
def test_another_encoding_is_read_or_named(tmp_path, name, encoding):
    if name == "any.yaml":
        pytest.skip("takes text, not a file")
    text = READERS[name][0]
    whole = outcome(name, text.encode(), tmp_path)
    got = outcome(name, text.encode(encoding), tmp_path)
    if encoding in ("utf-8-sig", "utf-16"):
        assert got == whole
    else:
        assert got is None


@pytest.mark.parametrize("name", READERS)
def test_a_file_written_twice_into_one_is_no_other_result(tmp_path, name):
    text = READERS[name][0].rstrip("\n") + "\n"
    whole = outcome(name, text.encode(), tmp_path)
    got = outcome(name, (text + text).encode(), tmp_path)
    assert got is None or got == whole


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", TABLES)
def test_the_order_of_columns_and_rows_does_not_matter(tmp_path, name, seed):
    text = READERS[name][0]
    header, *rows = list(csv.reader(io.StringIO(text)))
    rng = random.Random(seed)
    order = rng.sample(range(len(header)), len(header))
    rng.shuffle(rows)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[row[i] for i in order] for row in [header, *rows]])
    assert outcome(name, out.getvalue().encode(), tmp_path) == outcome(name, text.encode(), tmp_path)
