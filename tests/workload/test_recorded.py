"""Replayed requests that name the recorded request whose acceptance they had."""

import json

import numpy as np
import pytest

from dsd_env.acceptance import TraceError, TraceReplay
from dsd_env.acceptance.traceset import ENTRY_NAME
from dsd_env.calibration.acceptance.importers import import_plain, plain_requests
from dsd_env.scenario import ScenarioError
from dsd_env.sim.world import WorldBuilder
from dsd_env.workload import RequestTraceError, WorkloadGenerator, load_trace, reading, save_trace
from tests.acceptance_samples import card, make_trace
from tests.scenarios import tiny

ROWS = "arrival_s,prompt_tokens,output_tokens,recorded\n0,5,4,b\n0.5,6,9,\n1,7,3,a\n1.5,7,9,b\n"


@pytest.fixture
def recording(tmp_path):
    """Return the path of a recording of the requests a, b and c, of two kinds."""
    trace = make_trace(card=card(entries=["a", "b", "c"]))
    trace.save(tmp_path)
    return tmp_path / trace.name


def replay(tmp_path, recording, rows=ROWS, **changes):
    path = tmp_path / "requests.csv"
    path.write_text(rows)
    sources = {"draft": {"source": "trace", "trace": str(recording), "drafter": "look"}}
    return tiny(
        workload__arrivals={"kind": "replay", "trace": str(path)},
        **{"acceptance": sources, "episode__horizon_s": 8.0, **changes},
    )


def test_names_are_read_cut_and_written(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text(ROWS)
    trace = load_trace(path)
    assert trace.recordings == ("b", "a")
    assert trace.recorded is not None
    assert trace.recorded.tolist() == [0, -1, 1, 0]
    part = trace.cut(0.75)
    assert part.recorded is not None
    assert (part.recordings, part.recorded.tolist()) == (("a", "b"), [0, 1])
    again = load_trace(save_trace(trace, tmp_path / "again.csv"))
    assert again.recorded is not None
    assert (again.recordings, again.recorded.tolist()) == (("b", "a"), [0, -1, 1, 0])


def test_a_named_request_has_its_own_acceptance(tmp_path, recording):
    builder = WorldBuilder(replay(tmp_path, recording))
    source, drafter = builder.sources["draft"]
    assert isinstance(source, TraceReplay)
    trace = source.trace
    recorded = trace.drafters[drafter].run_length
    assert recorded is not None
    for seed in range(5):
        workload = WorkloadGenerator(builder.scenario, seed, builder.schedule)
        specs = [workload.request(0, place, place) for place in range(4)]
        assert [spec.recorded for spec in specs] == ["b", None, "a", "b"]
        for spec in specs:
            entries = source.entries(seed, spec.uid, spec.output_tokens, None, spec.recorded)
            if spec.recorded is None:
                assert entries == source.entries(seed, spec.uid, spec.output_tokens)
                continue
            first = trace.names.index(spec.recorded)
            assert entries[0] == first
            assert {int(trace.kind[e]) for e in entries} == {int(trace.kind[first])}
            found = source.realise(seed, spec.uid, spec.output_tokens, drafter, None, spec.recorded)
            begin, end = trace.offsets[first], trace.offsets[first + 1]
            n = min(spec.output_tokens, int(end - begin))
            np.testing.assert_array_equal(found.run_length[:n], recorded[begin : begin + n])


@pytest.mark.parametrize("drafter", ["look", "model"])
def test_both_engines(tmp_path, recording, drafter):
    pytest.importorskip("numba")
    from tests.engines import assert_engines_agree

    rows = "arrival_s,prompt_tokens,output_tokens,recorded\n" + "".join(
        f"{n / 8},{20 + n},{3 + n % 9},{'abc'[n % 3] if n % 4 else ''}\n" for n in range(30)
    )
    sources = {"draft": {"source": "trace", "trace": str(recording), "drafter": drafter}}
    scenario = replay(tmp_path, recording, rows, acceptance=sources)
    for seed in range(2):
        assert assert_engines_agree(scenario, "indices", seed, decisions=200) > 30


def test_unknown_names_are_errors(tmp_path, recording):
    wrong = ROWS.replace("1,7,3,a", "1,7,3,nobody")
    with pytest.raises(
        ScenarioError, match=r"requests\.csv, request 3: recorded = 'nobody': is not .* are a, b, c"
    ):
        WorldBuilder(replay(tmp_path, recording, wrong))
    synthetic = {"draft": {"source": "iid", "alpha": 0.5}}
    with pytest.raises(ScenarioError, match=r"request 1: recorded = 'b': no acceptance .* is a recording"):
        WorldBuilder(replay(tmp_path, recording, acceptance=synthetic))


def test_entries_without_names_of_their_own_are_named_by_their_numbers():
    source = TraceReplay(make_trace())
    assert source.names == {"0": 0, "1": 1, "2": 2}
    assert source.entries(1, 7, 2, None, "2")[0] == 2
    assert TraceReplay(make_trace(card=card(label="fitted"))).names == {}
    assert make_trace(card=card(entries=["HumanEval/0", "a b", "c:1"])).names == ("HumanEval/0", "a b", "c:1")
    for wrong in (["a", "b"], ["a", "b", "a"], ["a", "b", "c,d"], ["a", "b", 3], "abc"):
        assert make_trace(card=card(entries=wrong)).names == ("0", "1", "2")


def test_what_is_no_name_names_its_line(tmp_path):
    assert reading._RECORDING.pattern == ENTRY_NAME.pattern
    path = tmp_path / "requests.csv"
    path.write_text(ROWS.replace("7,3,a", "7,3,=a"))
    with pytest.raises(RequestTraceError, match=r"line 4: recorded = '=a' is not a name"):
        load_trace(path)


def plain(tmp_path, *changes):
    path = tmp_path / "log.jsonl"
    rows = [
        {"id": f"r{n}", "arrival_s": 10.0 + n, "kind": "chat", "prompt_tokens": 3 + n, "drafters": {"d": d}}
        for n, d in enumerate(({"run_length": [1, 0]}, {"run_length": [0, 2, 0]}))
    ]
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_log_with_both_makes_a_workload_that_names_its_own_acceptance(tmp_path):
    path = plain(tmp_path)
    trace = import_plain(path)
    assert trace.names == ("r0", "r1")
    saved = save_trace(plain_requests(path), tmp_path / "requests.csv")
    assert saved.read_text().splitlines() == [
        "arrival_s,prompt_tokens,output_tokens,kind,recorded",
        "0.0,3,2,chat,r0",
        "1.0,4,3,chat,r1",
    ]
    assert import_plain(plain(tmp_path, {"id": "r1"})).names == ("0", "1")  # not all have one of their own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": None}, r"log\.jsonl, line 2: lacks arrival_s"),
        ({"arrival_s": 1.0}, r"log\.jsonl, line 2: arrival_s is 1, before the line above it"),
        ({"arrival_s": "x"}, r"log\.jsonl, line 2: arrival_s holds 'x'"),
        ({"prompt_tokens": 0}, r"log\.jsonl, line 2: prompt_tokens is 0"),
    ],
)
def test_logs_that_are_no_workload(tmp_path, change, message):
    with pytest.raises(TraceError, match=message):
        plain_requests(plain(tmp_path, {}, change))
