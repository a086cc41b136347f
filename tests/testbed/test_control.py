"""Rules of the testbed, its log, and its generated protocol."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from dsd_env.sim.events import EventKind
from dsd_env.testbed import proto
from dsd_env.testbed.control import ExpectedTime, HfHeuristic, RoundDecision, Telemetry, parse_rule, static
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.log import EventLog, read_log
from dsd_env.testbed.wire import pb
from tests.testbed.pair import client, make_pair, questions, testbed


def test_names_of_rules():
    seen = Telemetry()
    assert parse_rule("plain")(seen).gamma == 0
    assert parse_rule("static:3")(seen) == RoundDecision(3, "edge")
    assert parse_rule("cloud:2")(seen) == RoundDecision(2, "cloud")
    assert isinstance(parse_rule("hf_heuristic"), HfHeuristic)
    for wrong in ("", "static", "static:0", "static:-1", "static:x", "plain:2", "hf_heuristic:2", "best"):
        with pytest.raises(ValueError, match="unknown rule"):
            parse_rule(wrong)


def test_hf_heuristic_goes_up_by_two_and_down_by_one_for_each_request():
    rule = HfHeuristic()
    seen = Telemetry(request=1)
    assert rule(seen).gamma == 5
    assert rule(replace(seen, last_drafted=5, last_accepted=5)).gamma == 7
    assert rule(replace(seen, last_drafted=7, last_accepted=6)).gamma == 6
    assert rule(Telemetry(request=2)).gamma == 5
    rule.finished(1)
    assert rule(seen).gamma == 5
    assert len(rule._length) == 2


def test_expected_time_by_hand():
    rule = ExpectedTime()
    seen = Telemetry(
        protocol="synchronous", acceptance_rate=0.5, rtt_s=0.01, draft_step_s=0.01, iteration_s=0.1
    )
    # gamma 2: (0.02 + 0.01 + 0.1) / 1.75
    assert rule.token_s(2, seen) == pytest.approx(0.13 / 1.75)
    best = min(rule.lengths, key=lambda g: (0.01 * g + 0.11) / ((1 - 0.5 ** (g + 1)) / 0.5))
    assert rule(seen).gamma == best
    assert rule(replace(seen, rtt_s=5.0)).gamma == 0  # too far away to draft for
    assert rule(replace(seen, draft_step_s=1.0)).gamma == 0
    assert rule(Telemetry(max_window=2)).gamma == 2  # nothing measured yet
    near, far = (replace(seen, protocol="streaming", acceptance_rate=0.9, rtt_s=r) for r in (0.001, 0.08))
    assert rule(near).gamma <= rule(far).gamma


def test_the_log_of_a_run_has_the_simulators_events(tmp_path):
    pair = make_pair(0.01)
    question = questions(1, 16)[0]
    edge, cloud = tmp_path / "edge.jsonl", tmp_path / "cloud.jsonl"

    async def run(protocol, decide):
        logs = EventLog(edge), EventLog(cloud, side="cloud")
        engine = EngineConfig(min_iteration_s=0.02)
        async with testbed(pair, engine=engine, log=logs[1]) as (_, _, channel):
            output = await client(channel, pair, protocol, decide, log=logs[0]).generate(question)
        for log in logs:
            log.close()
        return output

    output = asyncio.run(run("streaming", static(4)))
    head, events = read_log(edge)
    assert head["side"] == "edge"
    assert {e["kind"] for e in events} >= {
        "ARRIVAL", "DECISION", "DRAFT_START", "DRAFT_END", "STREAM_OPEN", "DRAFT_SENT", "COMMIT", "COMPLETE",
    }  # fmt: skip
    assert sum(e["value"] for e in events if e["kind"] == "COMMIT") == len(output.tokens)
    assert sum(e["value"] for e in events if e["kind"] == "DRAFT_END") == output.drafted
    times = [e["time_s"] for e in events]
    assert times == sorted(times) and times[0] >= 0
    head, events = read_log(cloud)
    kinds = [e["kind"] for e in events]
    assert head["side"] == "cloud"
    assert kinds[:3] == ["ENQUEUE", "ARRIVAL", "ADMIT"]
    assert kinds.count("ITERATION_START") == kinds.count("ITERATION_END") >= output.iterations
    assert sum(e["value"] for e in events if e["kind"] == "COMMIT") == len(output.tokens)
    asyncio.run(run("pipelined", static(4)))
    events = read_log(edge)[1]
    assert "DRAFT_SENT" in {e["kind"] for e in events}
    assert "STREAM_OPEN" not in {e["kind"] for e in events}


@pytest.mark.parametrize("text", ["", "{}", '{"log": "another"}', '["a"]'])
def test_another_file_is_no_log(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a log"):
        read_log(path)


def test_a_log_knows_its_events(tmp_path):
    log = EventLog(tmp_path / "log.jsonl")
    log.write(EventKind.COMMIT, 0, 0, 1)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "PARTY"}\n')
    with pytest.raises(ValueError, match="PARTY"):
        read_log(tmp_path / "log.jsonl")


def test_the_generated_protocol_is_the_sources():
    """Names, numbers and types of every field; `make testbed-proto` writes the files anew."""
    source = (Path(proto.__file__).parent / "testbed.proto").read_text()
    types = {"string": 9, "uint64": 4, "uint32": 13, "bytes": 12, "double": 1, "bool": 8, "fixed64": 6}
    written = re.findall(r"^message (\w+) \{", source, re.M)
    assert written == list(pb.DESCRIPTOR.message_types_by_name)
    for name, descriptor in pb.DESCRIPTOR.message_types_by_name.items():
        body = re.search(rf"^message {name} \{{(.*?)(^\}}|\}}$)", source, re.M | re.S).group(1)
        lines = re.findall(r"^\s*(repeated )?(\w+) (\w+) = (\d+);", body, re.M)
        assert len(lines) == len(descriptor.fields)
        for (repeated, kind, field, number), made in zip(lines, descriptor.fields, strict=True):
            assert (field, int(number)) == (made.name, made.number)
            assert made.is_repeated == bool(repeated)
            if kind in types:
                assert made.type == types[kind]
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        body = re.search(rf"^enum {name} \{{(.*?)^\}}", source, re.M | re.S).group(1)
        numbers = {word: int(number) for word, number in re.findall(r"^\s*(\w+) = (\d+);", body, re.M)}
        assert numbers == {value.name: value.number for value in enum.values}


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_generating_the_protocol_anew_changes_nothing(tmp_path):
    root = Path(proto.__file__).parents[3]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
    ]
    subprocess.run([*command, "dsd_env/testbed/proto/testbed.proto"], cwd=root, check=True)
    for name in ("testbed_pb2.py", "testbed_pb2.pyi"):
        place = Path("dsd_env", "testbed", "proto", name)
        assert (tmp_path / place).read_text() == (root / place).read_text()
