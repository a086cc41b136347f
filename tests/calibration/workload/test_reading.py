"""Reading recorded requests: empty cells, parts of files, coarse clocks, units, separators, closed pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsd_env import Scenario, load_scenario
from dsd_env.calibration.workload.clock import spread_ticks
from dsd_env.calibration.workload.importers import import_trace
from dsd_env.workload import (
    RequestTrace,
    RequestTraceError,
    WorkloadGenerator,
    clock_tick,
    load_trace,
    replay_schedule,
    save_trace,
)
from dsd_env.workload import reading as reading_module

BURSTGPT = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
10.0,s-1,4,GPT-4,90,46,136,Conversation log
13.0,,2,ChatGPT,36,29,65,API log
16.0,s-2,8,GPT-4,79,23,102,
19.0,,3,ChatGPT,93,0,93,API log
22.0,s-1,3,ChatGPT,93,17,110,API log
"""
PLAIN = """arrival_s,prompt_tokens,output_tokens,client,kind
0.5,10,20,,
1.25,11,21,ben,code
2,12,22,,chat
3,13,23,anna,
4,14,24,ben,code
"""
QWEN = "".join(
    json.dumps(
        {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": time_s,
            "input_length": 100 + chat,
            "output_length": 50,
            "type": kind,
            "turn": 1,
            "hash_ids": [1],
        }
    )
    + "\n"
    for chat, parent, time_s, kind in (
        (1, -1, 61.25, "text"),
        (2, -1, 62, "search"),
        (3, 1, 63.5, "text"),
        (5, 4, 64.0, None),
        (6, 3, 65.0, "text"),
    )
)
VIDUR = "num_prefill_tokens,num_decode_tokens,arrived_at\n374,44,0.0\n396,109,4.31\n396,0,5\n"


def write(folder: Path, text: str | bytes, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def plain(times_s: list[float]) -> str:
    return "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t!r},5,6\n" for t in times_s)


def numbers(values: np.ndarray | None) -> list[int] | None:
    return None if values is None else values.tolist()


def same(one: RequestTrace, other: RequestTrace) -> None:
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    np.testing.assert_array_equal(one.output_tokens, other.output_tokens)
    assert numbers(one.client) == numbers(other.client) and one.clients == other.clients
    assert numbers(one.kind) == numbers(other.kind) and one.kinds == other.kinds


# ---------------------------------------------------------------- empty cells


def test_a_request_without_a_session_has_no_client(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, BURSTGPT))
    assert trace.arrival_s.tolist() == [0.0, 3.0, 6.0, 12.0]
    assert trace.prompt_tokens.tolist() == [90, 36, 79, 93]
    assert trace.clients == ("s-1", "s-2") and numbers(trace.client) == [0, -1, 1, 0]
    assert trace.kinds == ("Conversation log", "API log") and numbers(trace.kind) == [0, 1, -1, 1]
    assert trace.dropped == 1 and trace.dropped_s.tolist() == [9.0]
    same(load_trace(save_trace(trace, tmp_path / "saved.csv")), trace)


def test_empty_cells_survive_cutting_and_saving(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, PLAIN))
    assert trace.clients == ("ben", "anna") and numbers(trace.client) == [-1, 0, -1, 1, 0]
    assert trace.kinds == ("code", "chat") and numbers(trace.kind) == [-1, 0, 1, -1, 0]
    part = trace.cut(2.0)
    assert part.clients == ("anna", "ben") and numbers(part.client) == [-1, 0, 1]
    assert part.kinds == ("chat", "code") and numbers(part.kind) == [0, -1, 1]
    same(load_trace(save_trace(part, tmp_path / "saved.csv")), part)
    # Nobody in it has a client.
    assert trace.cut(first=1).client is None and trace.cut(first=1).clients == ()


def replaying(path: Path, **more: object) -> Scenario:
    scenario = load_scenario("metro").model_dump(mode="json")
    scenario["workload"]["arrivals"] = {"kind": "replay", "trace": str(path), **more}
    scenario["workload"]["load"] = {"points": [[0.0, 1.0]]}
    return Scenario.model_validate(scenario)


def test_who_has_no_client_is_drawn_and_the_others_stay_in_step(tmp_path: Path) -> None:
    named = "arrival_s,prompt_tokens,output_tokens,client\n" + "".join(
        f"{n},10,20,{f'c{n % 3}' if n % 2 else ''}\n" for n in range(40)
    )
    scenario = replaying(write(tmp_path, named))
    schedule = replay_schedule(scenario)
    assert schedule.devices is not None
    without = replay_schedule(replaying(write(tmp_path, plain([float(n) for n in range(40)]), "none.csv")))
    assert without.devices is None
    first, second = (WorkloadGenerator(scenario, 7, some) for some in (schedule, without))
    for n in range(40):
        # Of three clients, in order of their first request: c1, c0, c2.
        wanted = {1: 0, 0: 1, 2: 2}[n % 3] if n % 2 else second.open_device(n)
        assert first.open_device(n) == wanted


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("text", [BURSTGPT, PLAIN, QWEN, VIDUR])
@pytest.mark.parametrize(
    "part",
    [
        {},
        {"first": 1},
        {"first": 2},
        {"start_s": 2.0},
        {"start_s": 1.0, "duration_s": 2.5},
        {"start_s": 1.0, "duration_s": 50.0, "first": 2},
    ],
)
def test_a_part_is_the_same_read_and_cut(tmp_path: Path, text: str, part: dict[str, float | int]) -> None:
    path = write(tmp_path, text)
    try:
        wanted = import_trace(path).cut(**part)  # type: ignore[arg-type]
    except RequestTraceError as error:
        with pytest.raises(RequestTraceError, match="no request comes from"):
            import_trace(path, **part)  # type: ignore[arg-type]
        assert "no request comes from" in str(error)
        return
    found = import_trace(path, **part)  # type: ignore[arg-type]
    same(found, wanted)
    np.testing.assert_array_equal(found.dropped_s, wanted.dropped_s)


def test_a_published_trace_in_a_replay_is_sent_to_the_importer(tmp_path: Path) -> None:
    for text, name in ((BURSTGPT, "burstgpt"), (QWEN, "qwen"), (VIDUR, "vidur")):
        path = write(tmp_path, text)
        with pytest.raises(RequestTraceError, match=rf"line 1: .* {name}, not plain: .*import_workload.py"):
            replay_schedule(replaying(path))
        with pytest.raises(RequestTraceError, match=rf"line 1: .* {name}, not azure: leave the format out"):
            import_trace(path, "azure")


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "_JUDGED", 50)
    text = plain([n / 4 for n in range(400)]) + "broken\n" * 1000
    path = write(tmp_path, text)
    for part in ({"first": 10}, {"duration_s": 5.0}, {"first": 60}, {"start_s": 20.0, "duration_s": 5.0}):
        assert len(import_trace(path, **part)) == part.get("first", 20)  # type: ignore[arg-type]
    # Looking further for the units meets the fault and says nothing of it.
    monkeypatch.setattr(reading_module, "_JUDGED", 500)
    assert len(import_trace(path, first=10)) == 10
    with pytest.raises(RequestTraceError, match="line 402: 1 fields"):
        import_trace(path, first=401)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start_s": -1.0}, "start_s = -1"),
        ({"start_s": float("nan")}, "start_s = nan"),
        ({"duration_s": 0.0}, "duration_s = 0"),
        ({"first": 0}, "first = 0"),
        ({"spread_ticks": "wide"}, "spread_ticks = 'wide'"),
    ],
)
def test_parts_that_make_no_sense_are_refused(tmp_path: Path, part: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_trace(write(tmp_path, PLAIN), **part)  # type: ignore[arg-type]


def test_units_are_judged_by_more_than_the_part(tmp_path: Path) -> None:
    # A quiet beginning is no other unit.
    quiet = [30.0 * n for n in range(20)] + [600.0 + n for n in range(400)]
    path = write(tmp_path, plain(quiet))
    assert len(import_trace(path, first=15)) == 15
    # Milliseconds are, however few are wanted.
    path = write(tmp_path, plain([1000.0 * n for n in range(400)]))
    with pytest.raises(RequestTraceError, match="milliseconds"):
        import_trace(path, first=2)


def test_large_files_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    rows = 30_000
    with path.open("w") as file:
        file.write("arrival_s,prompt_tokens,output_tokens,client\n")
        file.writelines(f"{n / 50},{n % 900 + 1},{n % 70 + 1},client-{n % 100}\n" for n in range(rows))
    code = (
        "import sys, tracemalloc; from dsd_env.calibration.workload.importers import import_trace;"
        "tracemalloc.start();"
        "trace = import_trace(sys.argv[1]); print(len(trace), tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    read, peak_bytes = (int(word) for word in done.stdout.split())
    assert read == rows and peak_bytes < 150 * rows


# ---------------------------------------------------------------- units that travel


def test_what_is_saved_is_replayed_although_it_looks_like_another_unit(tmp_path: Path) -> None:
    sparse = write(tmp_path, plain([float(1000 * n) for n in range(12)]))
    with pytest.raises(RequestTraceError, match=r"--trust-units .*trust_units=True .*trust_units: true"):
        load_trace(sparse)
    trace = import_trace(sparse, trust_units=True)
    saved = save_trace(trace, tmp_path / "saved.csv")
    assert saved.read_text().startswith("# trust_units: true\narrival_s,")
    same(load_trace(saved), trace)
    assert len(replay_schedule(replaying(saved))) == 12
    # The scenario may say it itself.
    with pytest.raises(RequestTraceError, match="trust_units: true"):
        replay_schedule(replaying(sparse))
    assert len(replay_schedule(replaying(sparse, trust_units=True))) == 12
    # A slowed or a sparse part of a dense trace is read again as well.
    dense = import_trace(write(tmp_path, plain([float(n) for n in range(50)])))
    assert "trust" not in save_trace(dense, tmp_path / "dense.csv").read_text()
    same(load_trace(save_trace(dense.scaled(0.001), tmp_path / "slow.csv")), dense.scaled(0.001))


# ---------------------------------------------------------------- coarse clocks


def ticking(tick_s: float, ticks: int, per_tick: int, seed: int = 1) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(per_tick, ticks)
    return np.repeat(tick_s * np.arange(ticks), counts)


def test_a_coarse_clock_is_found_and_others_are_not() -> None:
    assert clock_tick(ticking(3.0, 50, 10)) == pytest.approx(3.0)
    assert clock_tick(ticking(1.0, 500, 2)) == pytest.approx(1.0)
    assert clock_tick(ticking(0.1, 500, 2)) == pytest.approx(0.1)
    jitter = np.random.default_rng(2).uniform(-0.05, 0.05, 50)
    jittered = np.repeat(3.0 * np.arange(50) + jitter, 10)
    assert clock_tick(jittered) == pytest.approx(3.0, rel=0.05)
    # Requests a few times as far apart as the clock ticks hardly share times.
    assert clock_tick(np.floor(np.cumsum(np.random.default_rng(3).exponential(5.0, 900)))) is None
    # Bursts at irregular times are bursts.
    irregular = np.repeat(np.cumsum(np.random.default_rng(4).exponential(3.0, 60)), 10)
    assert clock_tick(irregular) is None
    assert clock_tick(np.zeros(50)) is None and clock_tick(np.array([0.0, 0.0, 3.0])) is None


@pytest.mark.parametrize("how", ["draws", "even"])
def test_spreading_keeps_order_ticks_and_what_is_not_time(tmp_path: Path, how: str) -> None:
    times_s = ticking(3.0, 60, 10)
    lines = "".join(
        json.dumps({"timestamp": int(1000 * t), "input_length": n + 1, "output_length": 5}) + "\n"
        for n, t in enumerate(times_s)
    )
    path = write(tmp_path, lines, "trace.jsonl")
    coarse = import_trace(path)
    assert coarse.tick_s == pytest.approx(3.0)
    spread = import_trace(path, spread_ticks=how, seed=5)  # type: ignore[arg-type]
    assert spread.tick_s is None
    assert (np.diff(spread.arrival_s) >= 0.0).all()
    np.testing.assert_array_equal(np.floor(spread.arrival_s / 3.0 + 1e-9) * 3.0, coarse.arrival_s)
    np.testing.assert_array_equal(spread.prompt_tokens, coarse.prompt_tokens)
    same(spread, import_trace(path, spread_ticks=how, seed=5))  # type: ignore[arg-type]
    if how == "even":
        first = spread.arrival_s[coarse.arrival_s == 0.0]
        np.testing.assert_allclose(first, 3.0 * np.arange(len(first)) / len(first))
    else:
        assert import_trace(path, spread_ticks=True, seed=6).arrival_s[0] != spread.arrival_s[0]
        gaps = np.diff(spread.arrival_s)
        assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.15)  # as of a Poisson process
    part = import_trace(path, duration_s=10.0, spread_ticks=how)  # type: ignore[arg-type]
    assert len(part) == len(coarse.cut(0.0, 10.0)) and part.arrival_s[-1] < 10.0
    # A tick is known from what comes after the part, too.
    assert import_trace(path, first=5).tick_s == pytest.approx(3.0)
    assert len(np.unique(import_trace(path, first=5, spread_ticks=True).arrival_s)) == 5


def test_a_trace_without_ticks_is_not_spread(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, PLAIN))
    assert spread_ticks(trace) is trace


def test_a_replay_says_that_a_clock_is_coarse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    replay_schedule(replaying(write(tmp_path, plain(ticking(3.0, 20, 10).tolist()))))
    assert "ticks every 3 s" in caplog.text and "--spread-ticks" in caplog.text


# ---------------------------------------------------------------- formats


def test_qwen_has_seconds_and_conversations(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, QWEN))
    assert trace.arrival_s.tolist() == [0.0, 0.75, 2.25, 2.75, 3.75]
    assert trace.prompt_tokens.tolist() == [101, 102, 103, 105, 106]
    # 3 and 6 go on with 1; the beginning of 5 is not in the file.
    assert trace.clients == ("1", "2", "4") and numbers(trace.client) == [0, 1, 0, 2, 0]
    assert trace.kinds == ("text", "search") and numbers(trace.kind) == [0, 1, 0, -1, 0]
    assert trace.unused == ("turn", "hash_ids")
    # Conversations go on through a cut.
    assert numbers(import_trace(write(tmp_path, QWEN), start_s=2.0).client) == [0, 1, 0]


def test_vidur_and_the_multimodal_azure_trace(tmp_path: Path) -> None:
    trace = import_trace(write(tmp_path, VIDUR))
    assert trace.arrival_s.tolist() == [0.0, 4.31] and trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109] and trace.dropped == 1
    azure = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    azure += "2024-10-15 00:00:00.0,2,900,120\n2024-10-15 00:00:01.5,0,800,1\n2024-10-15 00:00:02,0,800,0\n"
    trace = import_trace(write(tmp_path, azure))
    assert trace.arrival_s.tolist() == [0.0, 1.5] and trace.prompt_tokens.tolist() == [900, 800]
    assert trace.unused == ("NumImages",) and trace.dropped == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_change_nothing(tmp_path: Path, encoding: str, end: str) -> None:
    for text in (BURSTGPT, PLAIN, QWEN, VIDUR):
        wanted = import_trace(write(tmp_path, text))
        same(import_trace(write(tmp_path, text.replace("\n", end).encode(encoding))), wanted)


def test_separators_quotes_and_comments_change_nothing(tmp_path: Path) -> None:
    wanted = import_trace(write(tmp_path, PLAIN))
    for separator in (";", "\t"):
        same(import_trace(write(tmp_path, PLAIN.replace(",", separator))), wanted)
    same(import_trace(write(tmp_path, "sep=;\n" + PLAIN.replace(",", ";"))), wanted)
    quoted = "".join(",".join(f'"{f}"' for f in line.split(",")) + "\n" for line in PLAIN.splitlines())
    same(import_trace(write(tmp_path, quoted)), wanted)
    commented = "# from somewhere\n\n" + PLAIN.replace("\n2,", '\n# a comment, "of two" parts\n2 , ')
    same(import_trace(write(tmp_path, commented)), wanted)
    reordered = "".join(",".join(reversed(line.split(","))) + "\n" for line in PLAIN.splitlines())
    same(import_trace(write(tmp_path, reordered)), wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"timestamp": 0, "input_length": 1, "output_length":2 6}\n',
            r"line 1: not JSON: Expecting ',' delim.* at column 55",
        ),
        ("{\n", "line 1: JSON over several lines"),
        ('[{"timestamp": 0}]\n', "line 1: a JSON array"),
        ("0.5,10,20\n1,10,20\n", "line 1: '0.5,10,20': there is no header"),
        ("num_prefill_tokens,num_decode_tokens\n3,4\n", "line 1: no known format"),
        (
            "arrived_at,num_prefill_tokens\n3,4\n",
            r"line 1: the header is .*: missing \['num_decode_tokens'\]",
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,User\n1,2,3,4\n", r"line 1: .*: unknown \['User'\]"),
        (PLAIN.replace(",", "|"), "line 1: no known format"),
        (
            PLAIN.replace("1.25,11", "1.25;11;21;ben;code\n1.25,11"),
            "line 3: .* this line is separated by ';'",
        ),
        (PLAIN.replace("1.25,11,21,ben,code", "Loading the trace ..."), "line 3: 1 fields, .* is not a row"),
        (PLAIN.replace(",", ";").replace("1.25", "1,25"), "line 3: arrival_s = '1,25' .* with a comma"),
        (PLAIN.replace("1.25", "1,25"), "line 3: 6 fields, the header has 5; .* decimal comma"),
        (PLAIN.replace("1.25", ""), "line 3: arrival_s = '' .* the cell is empty"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (PLAIN.encode("utf-16-le"), "UTF-16 text without a byte order mark"),
        (PLAIN.replace("ben", "bén").encode("latin-1"), "is not UTF-8 text.* Latin-1"),
        (PLAIN.replace("ben", "bén"), "line 3: client = 'bén' is not a name"),
        (QWEN.replace("62", "NaN", 1), "line 2: not JSON: NaN"),
        (QWEN.replace("62", "1e999", 1), "line 2: timestamp = inf is not a finite number"),
        (QWEN.replace('"chat_id": 2', '"chat_id": [2]'), r"line 2: chat_id = \[2\] is neither"),
        (QWEN.replace("102", "102.5"), "line 2: input_length = 102.5 is not a whole number"),
        ('{"timestamp": 0, "hash_ids": [' + "1, " * 5_000_000, "line 1: longer than"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(RequestTraceError, match=rf"trace\.txt: .*{message}") as caught:
        import_trace(write(tmp_path, text))
    assert len(str(caught.value)) < 800


# ---------------------------------------------------------------- the script


def run(checkout: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "scripts" / "import_workload.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_the_script_says_what_is_coarse_and_spreads_it(tmp_path: Path, checkout: Path) -> None:
    write(tmp_path, plain(ticking(3.0, 20, 10).tolist()), "coarse.csv")
    said = run(checkout, tmp_path, "coarse.csv")
    assert "coarse clock      it ticks every 3 s" in said.stdout and "--spread-ticks" in said.stdout
    done = run(checkout, tmp_path, "coarse.csv", "--spread-ticks", "--seed", "3", "--out", "spread.csv")
    assert "spread            over ticks of 3 s" in done.stdout and "coarse clock" not in done.stdout
    spread = load_trace(tmp_path / "spread.csv")
    same(spread, import_trace(tmp_path / "coarse.csv", spread_ticks=True, seed=3))
    again = run(checkout, tmp_path, "spread.csv", "--spread-ticks")
    assert "no coarse clock was found" in again.stdout


def test_a_closed_pipe_costs_neither_the_file_nor_a_traceback(tmp_path: Path, checkout: Path) -> None:
    write(tmp_path, plain([n / 4 for n in range(200)]), "in.csv")
    script = checkout / "scripts" / "import_workload.py"
    reader, writer = os.pipe()
    os.close(reader)  # nobody will read
    try:
        done = subprocess.run(
            [sys.executable, str(script), "in.csv", "--out", "out.csv"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    finally:
        os.close(writer)
    assert done.stderr == "" and done.returncode == 0
    assert len(load_trace(tmp_path / "out.csv")) == 200


def test_what_is_done_after_the_reader_has_gone_is_done(tmp_path: Path, checkout: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import _cli

def main():
    for number in range(20_000):
        print("line", number)
    print("warning", file=sys.stderr)
    open("saved.txt", "w").write("saved")
    return 3

_cli.run(main)
"""
    command = [sys.executable, "-c", code, str(checkout / "scripts")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == "warning\n"
        assert process.wait(timeout=60) == 3
    assert (tmp_path / "saved.txt").read_text() == "saved"
    whole = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert whole.stdout.endswith("line 19999\n") and whole.stdout.count("\n") == 20_000


def test_scripts_with_results_survive_a_closed_pipe(checkout: Path) -> None:
    for script in sorted((checkout / "scripts").glob("[!_]*.py")):
        if script.name == "minimal_ppo.py":  # reads top to bottom and saves nothing
            continue
        text = script.read_text(encoding="utf-8")
        assert text.endswith('if __name__ == "__main__":\n    _cli.run(main)\n'), script.name


# ---------------------------------------------------------------- any file


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.integers(0, 40), min_size=2, max_size=30),
    sessions=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=30, max_size=30),
    failed=st.lists(st.booleans(), min_size=30, max_size=30),
    start_s=st.integers(0, 30),
    duration_s=st.none() | st.integers(1, 40),
    first=st.none() | st.integers(1, 10),
)
def test_reading_a_part_is_cutting_it(
    tmp_path: Path,
    times: list[int],
    sessions: list[str],
    failed: list[bool],
    start_s: int,
    duration_s: int | None,
    first: int | None,
) -> None:
    head = "Timestamp,Session ID,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text = head + "".join(
        f"{t},{sessions[n]},m,{n + 1},{0 if failed[n] else 5},{n + 1 + (0 if failed[n] else 5)},log\n"
        for n, t in enumerate(sorted(times))
    )
    path = write(tmp_path, text)
    part = {"start_s": float(start_s), "duration_s": duration_s, "first": first}
    try:
        wanted = import_trace(path, trust_units=True).cut(**part)  # type: ignore[arg-type]
    except RequestTraceError:
        if start_s > 0 or first is None:
            with pytest.raises(RequestTraceError):
                import_trace(path, trust_units=True, **part)  # type: ignore[arg-type]
        return
    same(import_trace(path, trust_units=True, **part), wanted)  # type: ignore[arg-type]
