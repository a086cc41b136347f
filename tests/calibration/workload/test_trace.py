"""Traces of requests: importers, their complaints, cutting, scaling, saving."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsd_env.calibration.workload.importers import IMPORTERS, import_trace
from dsd_env.workload import RequestTrace, RequestTraceError, load_trace, save_trace

# Written by hand, in the formats of the published traces.
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:50.9951690,879,55
2023-11-16 23:59:59.5000000,91,16
2023-11-17 00:00:00.2500000,91,16
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 02:00:01+02:00,76,15
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3052, "input_length": 7237, "output_length": 794, "hash_ids": []}
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
118.5,GPT-4,1360,189,1549,API log
"""
BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,\
Total tokens,Log Type
5,7,0.5,ChatGPT,472,18,490,Conversation log
6,8,1.5,ChatGPT,10,20,30,Conversation log
9,7,1.5,ChatGPT,10,20,30,API log
"""
PLAIN = """arrival_s,prompt_tokens,output_tokens,client,kind
0.5,10,20,anna,chat
1.25,11,21,ben,code
2,12,22,anna,chat
"""
SAMPLES = {
    "azure": AZURE,
    "azure-2024": AZURE_2024,
    "mooncake": MOONCAKE,
    "burstgpt": BURSTGPT,
    "burstgpt-sessions": BURSTGPT_SESSIONS,
    "plain": PLAIN,
}


def write(folder: Path, text: str, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_azure(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, AZURE))
    np.testing.assert_allclose(
        trace.arrival_s, [0.0, 4.314579, 4.314579, 20652.81941, 20653.56941], atol=1e-9
    )
    assert trace.prompt_tokens.tolist() == [374, 396, 879, 91, 91]
    assert trace.output_tokens.tolist() == [44, 109, 55, 16, 16]
    assert trace.client is None and trace.kind is None


def test_azure_of_2024_has_offsets(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, AZURE_2024))
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.007405, 0.99007], atol=1e-9)


def test_mooncake(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, MOONCAKE))
    assert trace.arrival_s.tolist() == [0.0, 0.0, 3.052]
    assert trace.prompt_tokens.tolist() == [6758, 7322, 7237]
    assert trace.output_tokens.tolist() == [500, 490, 794]


def test_burstgpt_leaves_out_what_failed(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, BURSTGPT))
    assert trace.arrival_s.tolist() == [0.0, 40.0, 113.5]
    assert trace.dropped == 1
    assert trace.kinds == ("Conversation log", "API log")
    assert trace.kind is not None and trace.kind.tolist() == [0, 0, 1]
    sessions = import_trace(write(tmp_path, BURSTGPT_SESSIONS))
    assert sessions.clients == ("7", "8")
    assert sessions.client is not None and sessions.client.tolist() == [0, 1, 0]


def test_plain_is_saved_and_loaded_again(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, PLAIN))
    assert trace.arrival_s.tolist() == [0.5, 1.25, 2.0]
    again = load_trace(save_trace(trace, tmp_path / "sub" / "saved.csv"))
    _same(again, trace)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["saved.csv"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_is_imported_survives_saving_bit_for_bit(tmp_path: Path, sample: str) -> None:
    trace = import_trace(write(tmp_path, SAMPLES[sample]))
    _same(load_trace(save_trace(trace, tmp_path / "saved.csv")), trace)


def _same(one: RequestTrace, other: RequestTrace) -> None:
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    np.testing.assert_array_equal(one.output_tokens, other.output_tokens)
    for name in ("client", "kind"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs)
    assert one.clients == other.clients and one.kinds == other.kinds


def test_cutting(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, PLAIN))
    part = trace.cut(1.0, 1.0)
    assert part.arrival_s.tolist() == [0.25]
    assert part.clients == ("ben",) and part.kinds == ("code",)
    assert part.client is not None and part.client.tolist() == [0]
    assert len(trace.cut(1.0)) == 2 and len(trace.cut(first=2)) == 2
    with pytest.raises(RequestTraceError, match="no request comes from 5 s to 7 s"):
        trace.cut(5.0, 2.0)


def test_scaling_the_rate(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, PLAIN))
    np.testing.assert_allclose(trace.scaled(2.0).arrival_s, trace.arrival_s / 2.0)
    assert trace.scaled(0.5).client is trace.client
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate_scale"):
            trace.scaled(wrong)


def _with(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("sample", "change", "line", "message"),
    [
        ("azure", _with("374", "374.0"), 2, "ContextTokens = '374.0' is not a whole number of tokens"),
        ("azure", _with("374", "-374"), 2, "ContextTokens = '-374' is not a whole number"),
        ("azure", _with("396", "0"), 3, "ContextTokens = 0 must lie within 1 and"),
        ("azure", _with("109", "nan"), 3, "GeneratedTokens = 'nan' is not"),
        ("azure", _with("109", "99999999999"), 3, "GeneratedTokens = 99999999999 must lie within"),
        ("azure", _with("109", "9" * 5000), 3, "is not a whole number of tokens"),
        ("azure", _with("18:15:50", "18:15:40"), 3, "TIMESTAMP = .* comes before the first one"),
        ("azure", _with("23:59:59", "17:15:50"), 5, "TIMESTAMP = .* comes before the first one"),
        ("azure", _with("23:59:59", "18:15:48"), 5, "TIMESTAMP: .* comes before the request above it"),
        ("azure", _with("2023-11-16 18:15:46", "2023-13-16 18:15:46"), 2, "TIMESTAMP = '2023-13-16"),
        ("azure", _with("2023-11-16 18:15:46.6805900", "1700158546.68"), 2, "is not a time like"),
        ("azure", _with("396,109", "396"), 3, "2 fields, the header has 3"),
        ("azure", _with(",GeneratedTokens", ""), 1, "the header is"),
        ("mooncake", _with('"timestamp": 3052', '"timestamp": 3.052'), 3, "timestamp = 3.052 is not a whole"),
        ("mooncake", _with('"timestamp": 3052', '"timestamp": NaN'), 3, "not JSON: NaN"),
        ("mooncake", _with('"timestamp": 3052', '"timestamp": true'), 3, "timestamp = True is not a whole"),
        ("mooncake", _with('"timestamp": 3052', '"timestamp": -1'), 3, "timestamp = -1 ms is not within"),
        ("mooncake", _with('"timestamp": 0', '"timestamp": 1700158546000000'), 1, "timestamp = 17001"),
        ("mooncake", _with('"input_length": 7322', '"input_length": 0'), 2, "input_length = 0 must lie"),
        ("mooncake", _with('"output_length": 490, ', ""), 2, "output_length is missing"),
        ("mooncake", _with('"timestamp": 0', '"timestamp": 4000'), 2, "timestamp: 0.0 s comes before"),
        ("mooncake", _with("[0, 14]}", "[0, 14"), 2, "not JSON"),
        ("mooncake", _with("[0, 14]", "[" * 100_000), 2, "not JSON"),
        ("mooncake", _with('{"timestamp": 3052, "input_length": 7237', "[3052"), 3, "not JSON"),
        ("burstgpt", _with("490", "491"), 2, "Total tokens = 491 is not 472"),
        ("burstgpt", _with("45,", "4,"), 3, "Timestamp: 4.0 s comes before"),
        ("burstgpt", _with("45,", "-45,"), 3, "Timestamp = '-45' is not a finite number"),
        ("burstgpt", _with("45,", "inf,"), 3, "Timestamp = 'inf' is not a finite number"),
        ("burstgpt", _with("472", "4_72"), 2, "Request tokens = '4_72'"),
        ("plain", _with("1.25", ""), 3, "arrival_s = '' is not a finite number"),
        ("plain", _with("1.25", "1_0"), 3, "arrival_s = '1_0' is not a finite number"),
        ("plain", _with("2,12", "1,12"), 4, "arrival_s: 1.0 s comes before the request above it, 1.25 s"),
        ("plain", _with("2,12", "1700158546,12"), 4, "counted from 1970, or in milliseconds"),
        ("plain", _with("anna", "=cmd|x"), 2, "client = '=cmd|x' is not a name"),
        ("plain", _with("0.5,10", '"0.5,10'), 2, ""),
        ("plain", _with("client", "prompt_tokens"), 1, "each once"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(
    tmp_path: Path, sample: str, change: Callable[[str], str], line: int, message: str
) -> None:
    path = write(tmp_path, change(SAMPLES[sample]), "wrong.txt")
    with pytest.raises(RequestTraceError, match=rf"wrong\.txt: line \d+: .*{message}") as caught:
        IMPORTERS[sample](path)
    if message:
        assert f"line {line}:" in str(caught.value)
    assert len(str(caught.value)) < 600


def _plain(times_s: list[float]) -> str:
    return "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{time_s!r},5,6\n" for time_s in times_s)


def test_times_in_another_unit_are_refused(tmp_path: Path) -> None:
    milliseconds = write(tmp_path, _plain([float(1000 * n) for n in range(12)]), "ms.csv")
    with pytest.raises(
        RequestTraceError, match=r"ms.csv: arrival_s: requests come 1000 s apart.*milliseconds"
    ):
        import_trace(milliseconds)
    assert import_trace(milliseconds, trust_units=True).duration_s == 11_000.0
    kiloseconds = write(tmp_path, _plain([1e-6 * n for n in range(12)]), "tiny.csv")
    with pytest.raises(RequestTraceError, match=r"tiny.csv: arrival_s: requests come .* another unit"):
        import_trace(kiloseconds)
    seconds = "".join(
        json.dumps({"timestamp": n // 4000, "input_length": 4, "output_length": 5}) + "\n"
        for n in range(8000)
    )
    with pytest.raises(RequestTraceError, match="timestamp: requests come"):
        import_trace(write(tmp_path, seconds, "s.jsonl"))


@pytest.mark.parametrize(
    "text", ["", "\n\n", "arrival_s,prompt_tokens,output_tokens\n", "a,b\n1,2\n", "\0\0"]
)
def test_files_without_a_trace_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestTraceError, match=r"none.csv"):
        import_trace(write(tmp_path, text, "none.csv"))
    with pytest.raises(RequestTraceError, match=r"none.csv"):
        load_trace(tmp_path / "none.csv")


def test_missing_file_directory_and_bytes(tmp_path: Path) -> None:
    for path, fault in ((tmp_path / "missing.csv", "no such file"), (tmp_path, "is not a file")):
        with pytest.raises(RequestTraceError, match=fault):
            import_trace(path)
    (tmp_path / "bytes.csv").write_bytes(b"arrival_s,\xff\xfe")
    with pytest.raises(RequestTraceError, match=r"bytes.csv: is not UTF-8 text"):
        import_trace(tmp_path / "bytes.csv")
    with pytest.raises(RequestTraceError, match="unknown format 'csv'"):
        import_trace(write(tmp_path, PLAIN), "csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sample=st.sampled_from(sorted(SAMPLES)))
def test_corruption_is_a_trace_or_a_trace_error(tmp_path: Path, data: st.DataObject, sample: str) -> None:
    content = bytearray(SAMPLES[sample].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        match data.draw(st.sampled_from(["put", "drop", "insert", "end", "repeat"])):
            case "put" if content:
                content[at] = data.draw(st.integers(0, 255))
            case "drop":
                del content[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                piece = st.sampled_from([b"nan", b"-", b"1e999", b'"', b"\0", b",", b"\r", b"{", b"9" * 400])
                content[at:at] = data.draw(piece)
            case "end":
                del content[at:]
            case _:
                content[at:at] = content[: data.draw(st.integers(0, 60))]
    path = tmp_path / "corrupt.txt"
    path.write_bytes(bytes(content))
    for kind in (None, *IMPORTERS):
        try:
            trace = import_trace(path, kind)
        except RequestTraceError as error:
            assert "corrupt.txt" in str(error)
            continue
        assert np.isfinite(trace.arrival_s).all() and (np.diff(trace.arrival_s) >= 0).all()
        assert trace.prompt_tokens.min() >= 1 and trace.output_tokens.min() >= 1


def test_script_sums_up_cuts_and_saves(tmp_path: Path, checkout: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = checkout / "scripts" / "import_workload.py"
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    write(tmp_path, BURSTGPT, "burst.csv")
    done = run("burst.csv", "--rate-scale", "2", "--out", "cut.csv", "--scenario", "metro")
    assert done.returncode == 0, done.stderr
    assert "requests          3 over 56.75 s" in done.stdout and "1 that failed" in done.stdout
    assert "prompts cut short" in done.stdout
    assert load_trace(tmp_path / "cut.csv").arrival_s.tolist() == [0.0, 20.0, 56.75]
    wrong = run("burst.csv", "--start-s", "1e6")
    assert wrong.returncode == 1 and "no request comes" in wrong.stderr and "Traceback" not in wrong.stderr
    assert run("burst.csv", "--rate-scale", "nan").returncode == 2
