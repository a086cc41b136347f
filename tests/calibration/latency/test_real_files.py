"""What real files of benchmarks hold: several settings, log lines, odd requests, slow devices."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from dsd_env.calibration.latency.importers import (
    MeasurementError,
    check_plausible,
    import_csv,
    import_llama_bench,
    import_vllm,
    write_csv,
)
from dsd_env.latency import load_profile
from tests.latency_samples import CSV, TESTS, llama_row, llama_text, serve_json, write

FACTS = ["--precision", "Q4", "--shape", "llama-3.2-1b", "--power", "1,2", "--power-note", "made up"]
GRID = [
    *((p, 0, d) for p in (8, 128, 512) for d in (0, 1024)),
    *((0, 32, d) for d in (0, 512, 2048, 4096)),
]


def slow(row: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same row on a slower device; both units follow."""
    return row | {
        "avg_ns": round(row["avg_ns"] * factor),
        "stddev_ns": round(row["stddev_ns"] * factor),
        "avg_ts": row["avg_ts"] / factor,
        "samples_ns": [round(s * factor) for s in row["samples_ns"]],
    }


# -------------------------------------------------------------------------------- llama-bench: configurations


@pytest.mark.parametrize(
    ("name", "was", "now", "shown"),
    [
        ("n_cpu_moe", 0, 20, "20"),
        ("no_kv_offload", False, True, "True"),
        ("devices", "auto", "CUDA0", "'CUDA0'"),
        ("tensor_split", "0.00", "1.00/1.00", "'1.00/1.00'"),
        ("n_ubatch", 512, 256, "256"),
        ("a_setting_of_next_year", 1, 2, "2"),
        ("model_n_params", 1, 2, "2"),
        ("use_mmap", True, None, r"\(missing\)"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_rows_of_different_settings_are_no_profile(tmp_path, kind, name, was, now, shown):
    rows = [llama_row(*t, **{name: was}) for t in TESTS]
    rows[3] = llama_row(*TESTS[3], **{name: now})
    if kind == "csv" and now is None:
        pytest.skip("a CSV has all columns")
    path = write(tmp_path / f"b.{kind}", llama_text(kind, rows))
    with pytest.raises(
        MeasurementError, match=rf"{name} = '?{shown.strip(chr(39))}'?, but .* --select {name}="
    ):
        import_llama_bench([path])
    if now is not None:
        assert len(import_llama_bench([path], {name: str(was)}).points) == len(TESTS) - 1
        assert len(import_llama_bench([path], {name: str(now)}).points) == 1
    else:
        for row in rows:
            if row[name] is None:
                del row[name]
        path = write(tmp_path / f"c.{kind}", llama_text(kind, rows))
        assert len(import_llama_bench([path], {name: str(was)}).points) == len(TESTS) - 1
        assert len(import_llama_bench([path], {name: "*"}).points) == len(TESTS)


def test_sizes_times_and_results_may_differ(tmp_path):
    rows = [llama_row(*t, test_time=f"2026-01-0{i + 1}T00:00:00Z", stddev_ts=i) for i, t in enumerate(TESTS)]
    assert len(import_llama_bench([write(tmp_path / "b.json", rows)]).points) == len(TESTS)


@pytest.mark.parametrize(
    ("value", "on", "off"),
    [
        (True, ["true", "True", "1", "on", "ON", "yes", "1.0"], ["false", "0", "off", "no", "2"]),
        ("1", ["true", "1", "on"], ["0", "false"]),
        (0, ["0", "0.0", "false", "off"], ["1", "on", "00x"]),
        (99, ["99", "99.0", "9.9e1"], ["9", "true"]),
        ("CUDA0", ["CUDA0"], ["cuda0", "CUDA"]),
        ("0.00", ["0.00", "0", "0.0"], ["1"]),
    ],
)
def test_select_compares_values_as_users_write_them(tmp_path, value, on, off):
    other = "else" if isinstance(value, str) and not value.replace(".", "").isdigit() else 7
    rows = [llama_row(0, 32, 0, setting=value), llama_row(0, 32, 512, setting=other)]
    path = write(tmp_path / "b.json", rows)
    for wanted in on:
        (point,) = import_llama_bench([path], {"setting": wanted}).points
        assert point.context == 15.5, wanted
    for wanted in off:
        with pytest.raises(MeasurementError, match="no row matches"):
            import_llama_bench([path], {"setting": wanted})


def test_a_setting_may_be_let_differ_and_the_profile_says_so(tmp_path):
    rows = [llama_row(*t, cpu_info=f"machine {i % 2}") for i, t in enumerate(TESTS)]
    got = import_llama_bench([write(tmp_path / "b.json", rows)], {"cpu_info": "*"})
    assert len(got.points) == len(TESTS)
    assert any("cpu_info differs" in n and "machine 1" in n for n in got.notes)


def test_the_same_settings_in_json_and_csv_are_the_same(tmp_path):
    rows = [llama_row(*t) for t in TESTS]
    files = [
        write(tmp_path / "a.jsonl", llama_text("jsonl", rows[:3])),
        write(tmp_path / "b.csv", llama_text("csv", rows[3:])),
    ]
    assert len(import_llama_bench(files).points) == len(TESTS)


def test_rows_repeated_exactly_count_once_and_contradictory_ones_are_refused(tmp_path):
    rows = [llama_row(*t) for t in TESTS]
    whole = llama_text("jsonl", rows)
    got = import_llama_bench([write(tmp_path / "a.jsonl", whole + whole)])
    assert len(got.points) == len(TESTS) and any(
        f"{len(TESTS)} row(s) repeated exactly" in n for n in got.notes
    )
    rows.append(slow(rows[0], 1.5) | {"test_time": "2026-02-02T00:00:00Z"})
    path = write(tmp_path / "b.jsonl", llama_text("jsonl", rows))
    with pytest.raises(
        MeasurementError, match=r"line 7: n_prompt 0, n_gen 32, n_depth 0 was already .*line 1"
    ):
        import_llama_bench([path])
    assert len(import_llama_bench([path], {"test_time": "2026-01-02T03:04:05Z"}).points) == len(TESTS)


def test_different_tests_of_one_cell_leave_the_plainer_one(tmp_path):
    # A prompt of 1024 in chunks of 512 has its mean chunk at 256 cached tokens.
    rows = [llama_row(1024, 0, 0), llama_row(512, 0, 256)]
    got = import_llama_bench([write(tmp_path / "a.json", rows)])
    assert [p.origin.rpartition(": ")[2] for p in got.points] == ["row 2"]
    assert any("row 1: left out: the same cell" in n for n in got.notes)


def test_a_test_without_tokens_is_left_out_and_said(tmp_path):
    rows = [llama_row(*t) for t in TESTS]
    rows.insert(1, llama_row(0, 32, 0) | {"n_gen": 0})
    got = import_llama_bench([write(tmp_path / "a.json", rows)])
    assert len(got.points) == len(TESTS) and any(
        "row 2: n_prompt and n_gen are both 0" in n for n in got.notes
    )


# ---------------------------------------------------------------------------------- llama-bench: text around

NOISE = "ggml_cuda_init: found 1 CUDA devices:\n  Device 0: GPU, capability 7.5\n[INFO] it's ready, \"go\n"


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_lines_of_other_programs_are_left_out_and_counted(tmp_path, kind):
    rows = [llama_row(*t) for t in TESTS]
    text = llama_text(kind, rows)
    plain = import_llama_bench([write(tmp_path / f"a.{kind}", text)])
    noisy = NOISE + text + "ggml_metal_free: deallocating\n"
    if kind == "jsonl":
        noisy = noisy.replace("\n{", "\nllama_perf: nothing\n{", 1)
    got = import_llama_bench([write(tmp_path / f"b.{kind}", noisy)])
    assert [p.seconds for p in got.points] == [p.seconds for p in plain.points]
    (said,) = [n for n in got.notes if "other programs" in n]
    assert f"{5 if kind == 'jsonl' else 4} line(s)" in said and "line 1, 2, 3" in said


def test_pieces_of_json_are_no_log_lines(tmp_path):
    lines = llama_text("jsonl", [llama_row(*t) for t in TESTS]).splitlines()
    tail = lines[0][len(lines[0]) // 2 :]
    with pytest.raises(MeasurementError, match=r"a\.jsonl: line 1: a piece of JSON without its beginning"):
        import_llama_bench([write(tmp_path / "a.jsonl", "\n".join([tail, *lines[1:]]))])
    text = llama_text("json", [llama_row(*t) for t in TESTS])
    middle = text.replace('  "cpu_info"', 'ggml_cuda: hello\n  "cpu_info"', 1)
    with pytest.raises(MeasurementError, match=r"line 5, column 3: not JSON.*another program's line"):
        import_llama_bench([write(tmp_path / "b.json", middle)])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding):
    rows = [llama_row(*t, cpu_info="Prozessor für alles") for t in TESTS]
    for kind in ("json", "jsonl", "csv"):
        (tmp_path / f"a.{kind}").write_bytes(llama_text(kind, rows).replace("\n", "\r\n").encode(encoding))
        got = import_llama_bench([tmp_path / f"a.{kind}"])
        assert len(got.points) == len(TESTS)
        assert got.facts["device"] in ("Prozessor für alles", "Prozessor f\\u00fcr alles")
    (tmp_path / "cells.csv").write_bytes(CSV.encode(encoding))
    assert len(import_csv(tmp_path / "cells.csv").points) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("| model | size |\n|---|---|\n", r"line 1: .*llama-bench -o md"),
        ("CREATE TABLE IF NOT EXISTS llama_bench (\n", r"line 1: .*llama-bench -o sql"),
        ("ggml_init: error\n", r"line 1: 'ggml_init: error' is neither JSON nor"),
        ("n_prompt;n_gen;avg_ns\n1;0;5\n", r"line 1: columns are separated by ';'"),
    ],
)
def test_other_formats_are_named(tmp_path, text, message):
    with pytest.raises(MeasurementError, match=message):
        import_llama_bench([write(tmp_path / "a.txt", text)])


# ------------------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace(",", ";"), r"line 1: columns are separated by ';'"),
        (CSV.replace(",", "\t"), r"line 1: columns are separated by tabs"),
        (
            "measured on Monday\n" + CSV,
            r"line 1: measured on Monday is not the header, which stands in line 2",
        ),
        (CSV.replace("0.0131", '"0,0131"'), r"line 4: seconds = '0,0131' is not a number: a decimal comma\?"),
        ("# only this\n", "nothing but comments"),
    ],
)
def test_format_and_header_are_looked_at_before_rows(tmp_path, text, message):
    with pytest.raises(MeasurementError, match=message) as error:
        import_csv(write(tmp_path / "a.csv", text))
    assert "ragged" not in str(error.value)


def test_comments_and_repeated_rows_are_no_faults(tmp_path):
    lines = CSV.splitlines()
    text = "\n".join(["# a laptop, it's fine", *lines[:3], "# from here, another day", *lines[2:]])
    got = import_csv(write(tmp_path / "a.csv", text))
    assert len(got.points) == 5 and got.points[3].origin.endswith("line 8")
    assert "1 row(s) repeated exactly" in got.notes[0]


# ---------------------------------------------------------------------------------------------- slow devices


def test_certain_units_beat_a_guess_and_travel_with_what_is_saved(tmp_path, calibrate):
    factor = 2000.0  # 16 s a step: a large model on a very small computer
    rows = [slow(llama_row(*t), factor) for t in GRID]
    path = write(tmp_path / "b.jsonl", llama_text("jsonl", rows))
    said = calibrate("--from-llama-bench", str(path), "--name", "slow", "--out", str(tmp_path), *FACTS)
    assert "taken as it is (the file's units are certain)" in said
    profile = load_profile(tmp_path / "slow.yaml")
    assert profile.trust_units and profile.step_s(1, 1025, 0) == pytest.approx(factor * 9.1e-3, rel=0.05)
    # The table of its cells is read back without a question too.
    cells = tmp_path / "measured" / "slow.csv"
    more = ["--role", "drafter", "--model", "M", "--device-name", "D", "--weight-bytes", "800000000"]
    calibrate("--from-csv", str(cells), "--name", "again", "--out", str(tmp_path), *FACTS, *more)
    assert load_profile(tmp_path / "again.yaml").step_s(1, 1, 0) > 10.0


def test_an_ordinary_device_needs_no_trust(tmp_path, calibrate):
    path = write(tmp_path / "b.jsonl", llama_text("jsonl", [llama_row(*t) for t in GRID]))
    calibrate("--from-llama-bench", str(path), "--name", "own", "--out", str(tmp_path), *FACTS)
    assert load_profile(tmp_path / "own.yaml").trust_units is None
    assert "trust_units" not in (tmp_path / "own.yaml").read_text()


def test_a_guess_is_overruled_by_the_user_and_names_how(tmp_path, calibrate):
    rows = [
        f"{b},{q},{c},{12 + 0.05 * b * q + 1e-4 * b * c}" for b in (1, 8) for q in (1, 64) for c in (0, 2048)
    ]
    path = write(tmp_path / "c.csv", "batch,q,context,seconds\n" + "\n".join(rows) + "\n")
    more = ["--role", "target", "--model", "M", "--device-name", "D", "--weight-bytes", "800000000"]
    command = ["--from-csv", str(path), "--name", "own", "--out", str(tmp_path), *FACTS, *more]
    said = calibrate(*command, code=1)
    assert (
        "is rare for such weights" in said
        and "--trust-units" in said
        and not (tmp_path / "own.yaml").exists()
    )
    assert "taken as it is (--trust-units)" in calibrate(*command, "--trust-units")
    profile = load_profile(tmp_path / "own.yaml")
    assert profile.trust_units and profile.step_s(1, 1, 0) > 10.0
    again = import_csv(tmp_path / "measured" / "own.csv").points
    assert check_plausible(again, 8e8)


def test_every_guess_has_its_override(tmp_path):
    rows = ["1,1,1024,0.006", "1,3,1024,6.09", "16,5,1024,0.0097", "1,512,0,90"]
    path = write(tmp_path / "a.csv", "batch,q,context,seconds\n" + "\n".join(rows))
    points = import_csv(path).points
    with pytest.raises(MeasurementError, match="--trust-units"):
        check_plausible(points, 16e9)
    notes = check_plausible(points, 16e9, trust_units=True)
    assert any("628 times" in n for n in notes) and any("between" in n for n in notes)
    path = write(tmp_path / "b.csv", "batch,q,context,seconds,std_s\n1,1,5,0.01,0.2\n")
    with pytest.raises(MeasurementError, match=r"line 2: std_s = 0\.2 .*--trust-units"):
        import_csv(path)
    assert len(import_csv(path, trust_units=True).points) == 1
    data = serve_json() | {"mean_ttft_ms": 4.0}
    path = write(tmp_path / "s.json", data)
    with pytest.raises(MeasurementError, match=r"mean_ttft_ms = 4.*--trust-units"):
        import_vllm([str(path)])
    assert not import_vllm([str(path)], trust_units=True).points[0].certain_unit
    assert all(p.certain_unit for p in import_vllm([str(write(tmp_path / "t.json", serve_json()))]).points)


def test_a_repeat_out_of_many_that_took_long_is_no_contradiction(tmp_path):
    total = 0.2
    samples = [total, total, total, total, 20 * total]
    row = llama_row(0, 32, 0) | {
        "samples_ns": [round(s * 1e9) for s in samples],
        "avg_ns": round(sum(samples) / 5 * 1e9),
        "stddev_ns": 1_700_000_000,
        "avg_ts": sum(32 / s for s in samples) / 5,
    }
    (point,) = import_llama_bench([write(tmp_path / "a.json", [row])]).points
    assert point.seconds == pytest.approx(total / 32)


def test_units_in_the_table_are_checked_words(tmp_path):
    points = import_llama_bench([write(tmp_path / "a.json", [llama_row(*t) for t in TESTS])]).points
    text = write_csv(points)
    assert all(p.certain_unit for p in import_csv(write(tmp_path / "a.csv", text)).points)
    with pytest.raises(MeasurementError, match="unit = 'ms'"):
        import_csv(write(tmp_path / "b.csv", text.replace("certain", "ms", 1)))


# ------------------------------------------------------------------------------------------------ vLLM serve


def by_cell(path: Any) -> dict[str, tuple[float, int | None]]:
    return {f"b{p.batch}_q{p.q}": (p.seconds, p.repeats) for p in import_vllm([str(path)]).points}


def noted(path: Any) -> str:
    return "\n".join(import_vllm([str(path)]).notes)


def changed(number: int, *, messages: int = 40, tokens: int = 41, requests: int = 24) -> dict[str, Any]:
    """A load test of which one request has other numbers of messages and tokens."""
    data = copy.deepcopy(serve_json(requests))
    gaps = data["itls"][number]
    while len(gaps) > messages:
        gaps[-2:] = [sum(gaps[-2:])]
    while len(gaps) < messages:
        gaps[-1:] = [gaps[-1] / 2, gaps[-1] / 2]
    data["output_lens"][number] = tokens
    return data


@pytest.mark.parametrize(
    ("shape", "words"),
    [({"messages": 38}, "several tokens in one message"), ({"tokens": 39}, "more messages than tokens")],
)
def test_one_request_with_odd_messages_is_left_out_of_the_gaps_only(tmp_path, shape, words):
    whole = by_cell(write(tmp_path / "a.json", serve_json(24)))
    path = write(tmp_path / "b.json", changed(7, **shape))
    got = by_cell(path)
    # Request 7 shared its time with request 6, whose gaps still are those of two sequences.
    assert got["b2_q1"][0] == pytest.approx(0.007) and got["b1_q1"][0] == pytest.approx(0.006)
    assert got["b2_q1"][1] == whole["b2_q1"][1] - 40 and got["b1_q1"] == whole["b1_q1"]
    assert got["b1_q100"] == whole["b1_q100"]
    said = noted(path)
    assert "gaps of 1 of 24 requests left out (request 7)" in said and words in said


def test_streams_that_are_not_one_token_a_message_are_refused_for_the_right_reason(tmp_path):
    merged = serve_json() | {"output_lens": [82] * 12}
    with pytest.raises(MeasurementError, match=r"several tokens came in one message"):
        import_vllm([str(write(tmp_path / "a.json", merged))])
    # One message more than tokens, and the first gap as long as any: the chunk came before the prefill.
    early = serve_json() | {"output_lens": [40] * 12}
    with pytest.raises(MeasurementError, match=r"40 itls for 40 output .*opening chunk of the chat") as error:
        import_vllm([str(write(tmp_path / "b.json", early))])
    assert "several tokens" not in str(error.value) and "/v1/completions" in str(error.value)
    recounted = serve_json() | {"output_lens": [35] * 12}
    with pytest.raises(MeasurementError, match="counted anew from the text"):
        import_vllm([str(write(tmp_path / "c.json", recounted))])


def test_an_opening_chunk_is_no_token(tmp_path):
    plain = by_cell(write(tmp_path / "a.json", serve_json()))
    data = serve_json()
    data["itls"] = [[1e-5, *gaps] for gaps in data["itls"]]
    path = write(tmp_path / "b.json", data)
    got = by_cell(path)
    assert {k: n for k, (_, n) in got.items()} == {k: n for k, (_, n) in plain.items()}
    assert got["b2_q1"][0] == pytest.approx(0.007)
    assert "12 of 12 answers begin with a message without a token" in noted(path)


def test_failed_and_empty_requests_are_left_out_and_counted(tmp_path):
    data = serve_json(24)
    for i, error in ((3, "timeout"), (5, "timeout"), (9, "")):
        data["errors"][i] = error
        data["itls"][i], data["output_lens"][i], data["ttfts"][i] = [], 0, 0.0
    data["output_lens"][10], data["ttfts"][10], data["itls"][10] = None, None, None
    path = write(tmp_path / "a.json", data)
    got, said = by_cell(path), noted(path)
    assert got["b2_q1"][0] == pytest.approx(0.007)
    assert "2 of 24 requests failed and are left out (request 3, 5)" in said
    assert "2 of 24 requests without tokens left out (request 9, 10)" in said


def test_a_request_that_failed_half_way_was_running_until_then(tmp_path):
    data = serve_json(24)
    data["errors"][7], data["output_lens"][7] = "connection reset", 0
    data["itls"][7] = data["itls"][7][:20]
    got = import_vllm([str(write(tmp_path / "a.json", data))])
    whole = {
        f"b{p.batch}_q{p.q}": p for p in import_vllm([str(write(tmp_path / "b.json", serve_json(24)))]).points
    }
    (two,) = [p for p in got.points if p.batch == 2]
    # Its own 40 gaps are gone; of its partner's, those during which it ran still are of two sequences.
    assert whole["b2_q1"].repeats is not None and two.repeats is not None
    assert whole["b2_q1"].repeats - two.repeats in range(58, 63)


def test_results_of_one_server_are_taken_together(tmp_path):
    data = serve_json(24)
    line = json.dumps(data)
    path = write(tmp_path / "a.json", line + "\n" + line)
    one = by_cell(write(tmp_path / "b.json", data))
    got = by_cell(path)
    assert got == {k: (seconds, 2 * n) for k, (seconds, n) in one.items()}
    assert "2 results in one file (--append-result; lines 1, 2)" in noted(path)
    files = [str(write(tmp_path / f"{n}.json", data)) for n in "cd"]
    assert sorted((p.seconds, p.repeats) for p in import_vllm(files).points) == sorted(got.values())


def test_results_of_different_servers_are_not_mixed(tmp_path):
    data = serve_json(24)
    other = data | {"tp": "4"}
    with pytest.raises(MeasurementError, match=r"a\.json: line 2: tp = '4', but '2' in .*line 1"):
        both = json.dumps(data | {"tp": "2"}) + "\n" + json.dumps(other)
        import_vllm([str(write(tmp_path / "a.json", both))])
    slower = data | {"itls": [[2 * g for g in gaps] for gaps in data["itls"]]}
    with pytest.raises(MeasurementError, match=r"was already given .* results of different servers"):
        import_vllm([str(write(tmp_path / "b.json", json.dumps(data) + "\n" + json.dumps(slower)))])


def test_without_start_times_only_one_request_at_a_time_says_what_ran(tmp_path):
    data = serve_json()
    del data["start_times"]
    with pytest.raises(MeasurementError, match=r"start_times missing: .*--max-concurrency 1"):
        import_vllm([str(write(tmp_path / "a.json", data))])
    alone = data | {
        "max_concurrency": 1,
        "itls": [[0.006] * 40] * 12,
        "ttfts": [0.02] * 12,
        "mean_ttft_ms": 20.0,
    }
    path = write(tmp_path / "b.json", alone)
    got = by_cell(path)
    assert got["b1_q1"][0] == pytest.approx(0.006) and got["b1_q1"][1] == 480
    assert got["b1_q100"][0] == pytest.approx(0.02) and got["b1_q100"][1] == 12
    assert "no start_times; with max_concurrency 1" in noted(path)
