"""Importers of a user's own measurements: valid samples and broken ones."""

from __future__ import annotations

import json

import pytest

from dsd_env.calibration.latency.cells import DECODE, PREFILL, VERIFY
from dsd_env.calibration.latency.importers import (
    LLAMA_BENCH_COMMAND,
    MeasurementError,
    check_plausible,
    import_csv,
    import_llama_bench,
    import_vllm,
    write_csv,
)
from dsd_env.latency import load_profile
from tests.latency_samples import (
    CSV,
    TESTS,
    latency_json,
    llama_row,
    llama_text,
    serve_json,
    step_s,
    write,
)

# ------------------------------------------------------------------------------------------------------ CSV


def test_csv_gives_cells_and_comes_back_as_written(tmp_path):
    got = import_csv(write(tmp_path / "a.csv", CSV)).points
    assert [p.phase for p in got] == [DECODE, DECODE, DECODE, VERIFY, PREFILL]
    cell = got[2].cell()
    assert (cell.new_tokens, cell.kv_tokens, cell.max_kv_multi_tokens) == (4, 4 * 1025, 0)
    cell = got[3].cell()
    assert (cell.new_tokens, cell.kv_tokens, cell.max_kv_multi_tokens) == (5, 1029, 1029)
    again = import_csv(write(tmp_path / "b.csv", write_csv(got))).points
    assert [(p.key, p.seconds, p.repeats) for p in again] == [(p.key, p.seconds, p.repeats) for p in got]


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("0.0109", "nan", 3, "seconds = 'nan'"),
        ("0.0109", "inf", 3, "seconds = 'inf'"),
        ("0.0109", "-0.0109", 3, "seconds = '-0.0109'"),
        ("0.0109", "fast", 3, "seconds = 'fast' is not a number"),
        ("0.0109", "", 3, "seconds = '' is not a number"),
        ("4,1,1024", "4.5,1,1024", 4, "batch = '4.5' must be a whole number"),
        ("4,1,1024", "0,1,1024", 4, "batch = '0' must be finite and >= 1"),
        ("4,1,1024", "4,1,-3", 4, "context = '-3'"),
        ("4,1,1024", "1,1,1024", 4, "already given"),
        ("4,1,1024,0.0131,,,", "4,1,1024", 4, "3 fields where the header has 7: ragged or truncated"),
        ("verify", "guess", 5, "phase = 'guess'"),
        ("verify", "decode", 5, "phase = 'decode'"),
        ("0.0003,verify", "0.3,verify", 5, "std_s = 0.3"),
        ("seconds", "ms", 1, "'ms' is not 'seconds': convert the unit"),
        ("repeats", "batch", 1, "given twice: batch"),
    ],
)
def test_broken_csv_names_file_line_and_field(tmp_path, old, new, line, field):
    path = write(tmp_path / "cells.csv", CSV.replace(old, new, 1))
    with pytest.raises(MeasurementError) as error:
        import_csv(path)
    text = str(error.value)
    assert str(path) in text and f"line {line}" in text
    assert field in text


@pytest.mark.parametrize("content", ["", "\n\n", "batch,q,context,seconds\n"])
def test_empty_csv_is_refused(tmp_path, content):
    with pytest.raises(MeasurementError, match=r"empty file|no rows"):
        import_csv(write(tmp_path / "a.csv", content))


def test_missing_binary_and_wrong_files_are_refused(tmp_path):
    with pytest.raises(MeasurementError, match=r"nothing\.csv: cannot be read"):
        import_csv(tmp_path / "nothing.csv")
    (tmp_path / "b.csv").write_bytes(b"batch,q\xff\xfe")
    with pytest.raises(MeasurementError, match="not UTF-8"):
        import_csv(tmp_path / "b.csv")
    with pytest.raises(MeasurementError, match="cannot be read"):
        import_csv(tmp_path)


@pytest.mark.parametrize(
    ("factor", "weight_bytes"),
    [(1e3, 2.5e9), (1e3, 16e9), (1e6, 2.5e9), (1e3, None), (1e6, None), (1e-3, 2.5e9)],
)
def test_milli_and_microseconds_in_the_seconds_column_are_noticed(tmp_path, factor, weight_bytes):
    rows = [
        f"{b},{q},{c},{factor * (8e-3 + 1e-4 * b * q + 1e-7 * b * c)}"
        for b in (1, 8)
        for q in (1, 5)
        for c in (128, 2048)
    ]
    points = import_csv(write(tmp_path / "a.csv", "batch,q,context,seconds\n" + "\n".join(rows))).points
    with pytest.raises(MeasurementError, match=r"a\.csv: line \d+: seconds = "):
        check_plausible(points, weight_bytes)


def test_one_point_in_another_unit_is_noticed(tmp_path):
    rows = ["1,1,1024,0.006", "1,3,1024,6.09", "16,5,1024,0.0097", "1,512,0,0.02"]
    points = import_csv(write(tmp_path / "a.csv", "batch,q,context,seconds\n" + "\n".join(rows))).points
    with pytest.raises(MeasurementError, match=r"a\.csv: line 3: seconds = 6.09 is 628 times .*line 4"):
        check_plausible(points, 16e9)


def test_tokens_per_second_and_times_per_token_are_noticed(tmp_path):
    step = {(b, q): 8e-3 + 1e-4 * b * q for b in (1, 8, 64) for q in (1, 5)}
    for what in (lambda b, q: b * q / step[b, q], lambda b, q: step[b, q] / (b * q)):
        rows = [f"{b},{q},512,{what(b, q)}" for b, q in step]
        points = import_csv(write(tmp_path / "a.csv", "batch,q,context,seconds\n" + "\n".join(rows))).points
        with pytest.raises(MeasurementError, match="line"):
            check_plausible(points, None)
    rows = [f"{b},{q},512,{s}" for (b, q), s in step.items()]
    check_plausible(
        import_csv(write(tmp_path / "b.csv", "batch,q,context,seconds\n" + "\n".join(rows))).points, 2e9
    )


# ---------------------------------------------------------------------------------------------- llama-bench


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_llama_bench_gives_the_law_behind_it(tmp_path, kind):
    rows = [llama_row(*t) for t in TESTS]
    got = import_llama_bench([write(tmp_path / f"bench.{kind}", llama_text(kind, rows))])
    assert [(p.batch, p.q, p.context, p.phase) for p in got.points] == [
        (1, 1, 15.5, DECODE),
        (1, 1, 1039.5, DECODE),
        (1, 8, 1024, VERIFY),
        (1, 512, 0, PREFILL),
        (1, 512, 1024, PREFILL),
        (1, 512, 256, PREFILL),
    ]
    for p in got.points:
        assert p.seconds == pytest.approx(step_s(p.q, p.context), rel=1e-6)
        single = p.q > 1 and (p.q, p.context) != (512, 256)
        assert len(p.samples_s) == (5 if single and kind != "csv" else 0)
    assert got.facts["weight_bytes"] == 800_000_000 and got.facts["device"] == "made-up CPU"
    assert any("last token only" in n for n in got.notes)


def test_llama_bench_leaves_out_what_it_cannot_split(tmp_path):
    rows = [llama_row(0, 32, 0), llama_row(512, 32, 0), llama_row(700, 0, 0)]
    got = import_llama_bench([write(tmp_path / "a.json", llama_text("json", rows))])
    assert len(got.points) == 1
    assert "row 2" in got.notes[0] and "pg512,32" in got.notes[0]
    assert "row 3" in got.notes[1] and "pp700" in got.notes[1]


def test_llama_bench_without_depth_is_an_older_version(tmp_path):
    row = llama_row(0, 32, 0)
    del row["n_depth"]
    assert import_llama_bench([write(tmp_path / "a.json", [row])]).points[0].context == 15.5


def test_llama_bench_of_two_configurations_needs_a_choice(tmp_path):
    rows = [llama_row(0, 32, 0), llama_row(0, 32, 512, n_gpu_layers=99)]
    path = write(tmp_path / "a.json", rows)
    with pytest.raises(MeasurementError, match=r"a\.json: row 2: n_gpu_layers = 99.*--select n_gpu_layers"):
        import_llama_bench([path])
    assert len(import_llama_bench([path], {"n_gpu_layers": "99"}).points) == 1
    with pytest.raises(MeasurementError, match=r"no row matches n_gpu_layers=5; there are .*=0"):
        import_llama_bench([path], {"n_gpu_layers": "5"})
    with pytest.raises(MeasurementError, match="no field 'ngl'"):
        import_llama_bench([path], {"ngl": "5"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"avg_ns": 288.0}, "avg_ns = 288.0 and avg_ts = .* contradict"),
        ({"avg_ns": -5}, "avg_ns = -5 must be finite and > 0"),
        ({"avg_ns": "12"}, "avg_ns = '12' is not a number"),
        ({"avg_ns": True}, "avg_ns = True is not a number"),
        ({"samples_ns": [1, 2, 3]}, "samples_ns has mean"),
        ({"samples_ns": []}, "field 'samples_ns' is missing or not a list"),
        ({"n_gen": 32.5}, "n_gen = 32.5 must be a whole number"),
        ({"n_gen": 0}, "n_prompt and n_gen are both 0"),
        ({"n_depth": -1}, "n_depth = -1"),
        ({"n_gen": None}, "field 'n_gen' is missing"),
        ({"model_size": 0}, "model_size = 0"),
    ],
)
def test_broken_llama_bench_names_row_and_field(tmp_path, changes, message):
    path = write(tmp_path / "a.json", [llama_row(0, 32, 0, **changes)])
    with pytest.raises(MeasurementError, match=rf"a\.json: row 1: {message}"):
        import_llama_bench([path])


def test_damaged_json_is_located(tmp_path):
    whole = llama_text("json", [llama_row(*t) for t in TESTS])
    with pytest.raises(MeasurementError, match=r"a\.json: line \d+, column \d+: not JSON: .*truncated"):
        import_llama_bench([write(tmp_path / "a.json", whole[: len(whole) // 2].rsplit("\n", 1)[0] + "\n")])
    lines = llama_text("jsonl", [llama_row(*t) for t in TESTS]).splitlines()
    lines[2] = lines[2][:100]
    with pytest.raises(MeasurementError, match=r"b\.jsonl: line 3: column"):
        import_llama_bench([write(tmp_path / "b.jsonl", "\n".join(lines))])
    nan = json.dumps([llama_row(0, 32, 0, avg_ns=float("nan"))])
    with pytest.raises(MeasurementError, match="NaN is not a number"):
        import_llama_bench([write(tmp_path / "c.json", nan)])
    twice = lines[0].replace('"n_gen": 32', '"n_gen": 32, "n_gen": 64')
    with pytest.raises(MeasurementError, match="'n_gen' is given twice"):
        import_llama_bench([write(tmp_path / "d.jsonl", twice)])
    with pytest.raises(MeasurementError, match="not the output of `llama-bench -o csv`"):
        import_llama_bench([write(tmp_path / "e.md", "| model | t/s |\n| --- | --- |\n")])
    with pytest.raises(MeasurementError, match=r"not usable JSON|not JSON"):
        import_llama_bench([write(tmp_path / "g.json", "[" * 100_000)])


# ------------------------------------------------------------------------------------------------------ vLLM


def test_vllm_latency_gives_steps_between_output_lengths_and_prefill(tmp_path):
    specs = [str(write(tmp_path / f"lat_b8_i512_o{o}.json", latency_json(8, 512, o))) for o in (129, 1, 65)]
    other = write(tmp_path / "run.json", latency_json(2, 100, 1))
    got = import_vllm([*specs, f"{other}@2,100,1"])
    decode = [p for p in got.points if p.phase == DECODE]
    # Steps 1 ... 64 attend 513 ... 576 tokens, their own included: 544.5 on average, 543.5 cached.
    assert [(p.batch, p.context) for p in decode] == [(8, 543.5 + 0.0), (8, 607.5)]
    for p in decode:
        assert p.seconds == pytest.approx(6e-3 + 8e-5 + 8e-8 * (p.context + 1), rel=1e-9)
    prefill = {(p.batch, p.q): p.seconds for p in got.points if p.phase == PREFILL}
    assert prefill == {(8, 512): pytest.approx(5e-3 + 2e-5 * 4096), (2, 100): pytest.approx(9e-3)}
    assert any("verification is extrapolated" in n for n in got.notes)


def test_vllm_latency_says_what_is_missing(tmp_path):
    path = write(tmp_path / "latency.json", latency_json(8, 512, 128))
    with pytest.raises(MeasurementError, match=r"latency\.json: the file does not state the run's shape"):
        import_vllm([str(path)])
    with pytest.raises(MeasurementError, match=r"no iteration can be derived.*\n.*one output length only"):
        import_vllm([f"{path}@8,512,128"])
    with pytest.raises(MeasurementError, match="no longer than 64 tokens"):
        import_vllm([f"{path}@8,512,64", f"{path}@8,512,128"])
    with pytest.raises(MeasurementError, match="already given"):
        import_vllm([f"{path}@8,512,64", f"{path}@8,512,64"])
    with pytest.raises(MeasurementError, match="must all be >= 1"):
        import_vllm([f"{path}@8,0,64"])
    big = write(tmp_path / "big_b64_i512_o1.json", latency_json(64, 512, 1))
    with pytest.raises(MeasurementError, match="more than the 8192 tokens of one iteration"):
        import_vllm([str(big)])
    bad = write(tmp_path / "b1_i8_o8.json", latency_json(1, 8, 8) | {"avg_latency": 4.2})
    with pytest.raises(MeasurementError, match=r"b1_i8_o8\.json: avg_latency = 4\.2, but the mean"):
        import_vllm([str(bad)])


def test_vllm_serve_gives_steps_by_batch_and_lone_prefills(tmp_path):
    got = import_vllm([str(write(tmp_path / "serve.json", serve_json()))])
    found = {(p.batch, p.q): p for p in got.points}
    assert found[1, 1].seconds == pytest.approx(0.006) and found[2, 1].seconds == pytest.approx(0.007)
    assert found[2, 1].context == pytest.approx(120, abs=2)
    assert found[1, 100].seconds == pytest.approx(0.020) and found[1, 100].phase == PREFILL
    assert got.facts["model"] == "made-up" and any("at the client" in n for n in got.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"itls": None}, "--save-detailed"),
        ({"start_times": None}, "field start_times missing: .*records start_times"),
        ({"ttfts": [0.02]}, "lists of the same length"),
        ({"output_lens": [82] * 12}, "request 0: 40 itls for 82 output tokens"),
        ({"ttfts": [20.0] * 12}, "mean_ttft_ms = .*: units"),
        ({"output_lens": [0] * 12}, "no request finished"),
        ({"itls": [[-0.1] * 40] * 12}, r"request 0: itls\[0\] = -0.1"),
        ({"input_lens": ["x"] * 12}, "input_lens = 'x'"),
    ],
)
def test_vllm_serve_says_what_is_missing_or_wrong(tmp_path, changes, message):
    data = serve_json() | changes
    data = {k: v for k, v in data.items() if v is not None}
    with pytest.raises(MeasurementError, match=message) as error:
        import_vllm([str(write(tmp_path / "s.json", data))])
    assert "s.json" in str(error.value)


def test_vllm_other_json_is_refused(tmp_path):
    for content in ({"a": 1}, [1, 2], "3"):
        with pytest.raises(MeasurementError, match=r"neither|expected the object"):
            import_vllm([str(write(tmp_path / "x.json", content))])


# -------------------------------------------------------------------------------------------- to a profile

FACTS = ["--precision", "Q4", "--shape", "llama-3.2-1b", "--power", "1,2", "--power-note", "made up"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_llama_bench_becomes_a_drafter_that_keeps_the_law(tmp_path, calibrate, kind):
    tests = [(p, 0, d) for p in (2, 4, 8, 16, 128, 512) for d in (0, 512, 2048, 4096)]
    rows = [llama_row(*t) for t in [*tests, *((0, 32, d) for d in (0, 512, 2048, 4096))]]
    path = write(tmp_path / f"b.{kind}", llama_text(kind, rows))
    calibrate("--from-llama-bench", str(path), "--name", "own", "--out", str(tmp_path), *FACTS)
    profile = load_profile(tmp_path / "own.yaml")
    assert (profile.role, profile.label, profile.device) == ("drafter", "measured", "made-up CPU")
    assert profile.weight_bytes == 800_000_000 and profile.error.cells == 28
    assert profile.error.heldout_p95_pct < 1.0
    for q, context in ((1, 3000), (5, 100), (256, 1000)):
        predicted = profile.step_s(q, context + q, context + q if q > 1 else 0)
        assert predicted == pytest.approx(step_s(q, context), rel=0.02)
    assert (profile.noise is None) == (kind == "csv")


def test_llama_bench_defaults_are_too_few_and_the_message_says_what_to_run(tmp_path, calibrate):
    path = write(tmp_path / "b.json", [llama_row(512, 0, 0), llama_row(0, 128, 0)])
    said = calibrate("--from-llama-bench", str(path), "--name", "own", "--out", str(tmp_path), *FACTS, code=1)
    assert "2 point(s)" in said and LLAMA_BENCH_COMMAND in said
    assert not (tmp_path / "own.yaml").exists() and not (tmp_path / "measured").exists()


def test_vllm_latency_becomes_a_target_that_says_what_it_extrapolates(tmp_path, calibrate):
    files = [
        str(write(tmp_path / f"lat_b{b}_i128_o{o}.json", latency_json(b, 128, o)))
        for b in (1, 8, 32)
        for o in (1, 65, 257)
    ]
    more = ["--model", "M", "--device-name", "D", "--weight-bytes", "2000000000", "--memory-gib", "80"]
    calibrate("--from-vllm", *files, "--name", "own", "--out", str(tmp_path), *FACTS, *more)
    profile = load_profile(tmp_path / "own.yaml")
    assert profile.role == "target" and profile.kv_capacity_tokens is not None
    assert profile.step_s(8, 8 * 200, 0) == pytest.approx(6e-3 + 8e-5 + 8e-8 * 200, rel=0.1)
    assert any("verification is extrapolated" in n for n in profile.notes)
