"""The programs around a real vLLM, without vLLM: their arguments, their tables, and what they refuse."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs the extra `testbed`")

from rich.console import Console

from agents.config import load_config
from dsd_env.calibration.engine_bench import prompts
from dsd_env.calibration.engine_bench.engine import SCHEDULER, EngineSpec
from dsd_env.calibration.engine_bench.live import EngineView
from dsd_env.calibration.engine_bench.runs import Answer, Round, Run, Setting, Step
from dsd_env.latency import load_profile
from dsd_env.policy import load
from dsd_env.scenario import load_scenario
from dsd_env.serving import Controller


@pytest.fixture(autouse=True)
def scripts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))


SPEC = EngineSpec("target", "draft", "log", longest=3, policy="bundle")


def test_engines_of_settings():
    import _vllm

    settings = {setting.name: setting for setting in _vllm.every_setting(SPEC, [(1, 4, 2), (5, 8, 0)])}
    assert list(settings) == ["plain", "static 1", "static 2", "static 3", "table", "policy"]
    assert settings["static 2"].table == ((1, 8, 2),)
    plain = _vllm.engine_for(settings["plain"], SPEC).options()
    assert "speculative_config" not in plain
    assert "per_request_spec_decode_metrics" not in plain, "vLLM refuses it without speculation"
    static = _vllm.engine_for(settings["static 1"], SPEC)
    assert static == _vllm.engine_for(settings["table"], SPEC), "one engine serves all tables"
    assert static.options()["speculative_config"]["num_speculative_tokens_per_batch_size"] == [(1, 8, 3)]
    assert "scheduler_cls" not in static.options()
    policy = _vllm.engine_for(settings["policy"], SPEC).options()
    assert policy["scheduler_cls"] == SCHEDULER
    assert policy["speculative_config"]["num_speculative_tokens"] == 3


def test_a_table_of_another_form_is_refused(tmp_path):
    import _vllm

    path = tmp_path / "table.json"
    path.write_text("[[1, 2, 4], [3, 8, 0]]")
    assert _vllm.read_table(path) == ((1, 2, 4), (3, 8, 0))
    for text in ('{"1": 4}', "[[1, 2]]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match="must hold rows"):
            _vllm.read_table(path)


def test_a_target_alone_is_refused():
    import _vllm

    with pytest.raises(ValueError, match="go together"):
        _vllm.engine_spec(argparse.Namespace(target="x", draft=None))


def test_arguments_of_the_programs():
    import validate_vllm
    import vllm_demo

    assert vllm_demo.parse_arguments(["--phases", "1:2,4"]).phases == [(1, 2), (4, 4)]
    for wrong in (["--phases", "9"], ["--phases", "4:2"], ["--phases", "x"], ["--settings", "best"]):
        with pytest.raises(SystemExit):
            vllm_demo.parse_arguments(wrong)
    for wrong in (["measure"], ["measure", "--out", "x", "--scale", "0"], ["compare", "x"]):
        with pytest.raises(SystemExit):
            validate_vllm.parse_arguments(wrong)


def test_settings_that_take_turns_keep_their_engines(monkeypatch: pytest.MonkeyPatch):
    import _vllm

    told: list[str] = []
    open_now: list[EngineSpec] = []

    class Engine:
        def use_table(self, table: object) -> None:
            told.append(f"table {table}")

        def use_policy(self, policy: str) -> None:
            told.append(f"policy {policy}")

    @contextmanager
    def started(spec: EngineSpec) -> Iterator[Engine]:
        open_now.append(spec)
        yield Engine()
        open_now.remove(spec)

    monkeypatch.setattr(_vllm, "engine_process", started)
    settings = {each.name: each for each in _vllm.every_setting(SPEC, [(1, 8, 2)], ["hf_heuristic"])}
    for keep, most in ((False, 1), (True, 3)):
        started_before = 0
        with _vllm.engines(SPEC, lambda text: None, keep=keep) as engine_of:
            for name in ("plain", "static 1", "policy", "hf_heuristic", "table", "plain"):
                engine_of(settings[name])
                assert len(open_now) <= most
                started_before = max(started_before, len(open_now))
        assert started_before == most
        assert not open_now
    # Rules and the policy share an engine, which is told who decides.
    assert told[:3] == ["table ((1, 8, 1),)", "policy bundle", "policy hf_heuristic"]


def probed(kind: str, length: int, batch: int, seconds: float, steps: int = 20) -> dict[str, object]:
    # Contexts of many lengths, which take no time.
    took = [
        Step(seconds, batch, 0, 0, batch * length, (20 + 37 * n % 200) * batch, length) for n in range(steps)
    ]
    return Run(f"{kind} {length}", batch, [], took, seconds * steps).as_dict()


def test_an_engine_is_described_by_its_step_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import validate_vllm

    def step_s(new: int, drafts: int, drafter: bool) -> float:
        # One new token takes longer than two, as CPUs' kernels do.
        return 0.10 + 0.006 * new + (0.03 if new == 1 else 0.0) + (0.008 + 0.004 * drafts if drafter else 0.0)

    batches = (1, 2, 4, 8)
    probes = [probed("plain", 0, n, step_s(n, 0, False)) for n in batches]
    probes += [probed("table", k, n, step_s(n * (1 + k), k, True)) for n in batches for k in range(5)]
    data = {"probes": probes, "dtype": "bfloat16", "threads": 2, "date": "2026-01-01"}
    runs = tmp_path / "times.json"
    runs.write_text(json.dumps(data))
    assert validate_vllm.main(["describe", str(runs), "--out", str(tmp_path / "mine")]) == 0
    assert "target by new tokens" in capsys.readouterr().out
    engine = load_scenario(tmp_path / "mine" / "scenario.yaml").targets["engine"]
    target = load_profile(str(tmp_path / "mine" / "target.yaml"))
    times = [target.coefficients.compute_s(m) for m in (1, 2, 8, 40)]
    assert times == pytest.approx([0.136, 0.112, 0.148, 0.34], rel=0.03)
    assert engine.engine_overhead is not None
    assert engine.engine_overhead.per_iteration_s == pytest.approx(0.008, abs=0.004)
    config = load_config(tmp_path / "mine" / "train.yaml")
    assert config.scenario == str(tmp_path / "mine" / "scenario.yaml")


def turns(repeats: int, **e2e_s: float) -> list[dict[str, object]]:
    """Runs of two settings and more, of two questions each, a tenth slower in every further repeat."""
    found = []
    for repeat in range(repeats):
        for name, seconds in e2e_s.items():
            took = seconds * (1.0 + 0.1 * repeat)
            answers = [Answer(n, n, "story", 0.0, 0.1, took, [1, 2], [Round(2, 1)]) for n in range(2)]
            found.append(Run(name, 2, answers, [], took, {"repeat": repeat}).as_dict())
    return found


def test_what_a_setting_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import validate_vllm

    data = {"runs": turns(3, policy=0.9, plain=1.0), "dtype": "bfloat16", "threads": 2, "date": "2026-01-01"}
    runs, out = tmp_path / "turns.json", tmp_path / "gains.json"
    runs.write_text(json.dumps(data | {"questions": {"2": [1, 2]}}))
    assert validate_vllm.main(["gain", str(runs), "--out", str(out)]) == 0
    assert "**+10.0 % (+10.0 to +10.0)**" in capsys.readouterr().out, "a drift of the machine cancels"
    record = json.loads(out.read_text())
    assert record["repeats"] == 3
    assert record["gains"][0]["gain_pct"] == pytest.approx(10.0)
    assert record["drafts"] == {"2 story": [0.0, 0.0, 1.0]}
    runs.write_text(json.dumps(data | {"runs": turns(1, policy=0.9, plain=1.0), "questions": {}}))
    assert validate_vllm.main(["gain", str(runs), "--out", str(out)]) == 2
    assert "at least two repeats" in capsys.readouterr().err


def a_run(name: str, tokens: tuple[int, ...] = (5, 6, 7, 8)) -> Run:
    answer = Answer(0, 0, "story", 0.0, 1.0, 3.0, list(tokens), [Round(2, 2), Round(0, 1)])
    return Run(name, 1, [answer], [Step(0.1, 1, 0, 0, 2, 9, 2)], 4.0)


def shown(renderable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def test_the_comparison_and_its_verdict(tmp_path):
    import vllm_demo

    options = vllm_demo.parse_arguments(["--phases", "1", "--json", str(tmp_path / "figures.json")])
    results = {"policy": [a_run("policy")], "plain": [a_run("plain")]}
    text = shown(vllm_demo.table(results, options))
    # Four tokens in four seconds; two seconds for three of them; in two rounds one draft right.
    assert "1.0" in text
    assert "667" in text
    assert "0.50" in text
    console = Console(file=io.StringIO(), width=120)
    assert vllm_demo.report(results, options, console) == 0
    assert "all outputs are the same" in console.file.getvalue()
    assert "rounds × drafts 1 × 0, 1 × 2" in console.file.getvalue()
    assert set(json.loads((tmp_path / "figures.json").read_text())["runs"]) == {"policy", "plain"}
    results["policy"] = [a_run("policy", (5, 6, 7, 9))]
    assert vllm_demo.differing(results) == {"policy": 1, "plain": 0}
    assert vllm_demo.report(results, options, console) == 1, "float32 must not differ"
    options.dtype = "bfloat16"
    assert vllm_demo.report(results, options, console) == 0


def test_the_live_view_shows_drafts_and_accepted():
    view = EngineView("policy", lambda ids: " ".join(str(each) for each in ids))
    view.watch({"kind": "ask", "question": 0, "client": 0, "text": "story"})
    view.watch({"kind": "ask", "question": 1, "client": 1, "text": "chat"})
    view.watch({"kind": "step", "time_s": 1.0, "duration_s": 0.5, "requests": [(0, 0, [10]), (1, 0, [20])]})
    step = [(0, 4, [11, 12, 13]), (1, 0, [21])]
    view.watch({"kind": "step", "time_s": 2.0, "duration_s": 0.25, "requests": step})
    view.watch({"kind": "done", "question": 0, "client": 0})
    text = shown(view.show())
    assert "2/4" in text, "two of four drafts accepted"
    assert "0 ✓" in text
    assert "6 tokens, 3.0 tok/s, last step 250 ms" in text
    assert "10 11 12 13" in text
    view.watch({"kind": "ask", "question": 2, "client": 0, "text": "story"})
    view.watch({"kind": "step", "time_s": 3.0, "duration_s": 0.5, "requests": [(2, 0, [30]), (1, 0, [22])]})
    assert "30" in shown(view.show()), "the next question's text takes its place"


def test_the_shipped_policy_decides_by_load_and_kind(checkout: Path):
    """Facts of the shipped files: they belong together, and the policy is no constant."""
    import _vllm

    scenario = load_scenario(_vllm.POLICY / "scenario.yaml")
    policy = load(_vllm.POLICY / "policy")
    Controller(policy, scenario)
    assert policy.manifest.scenario.name == scenario.name
    table = _vllm.read_table(_vllm.POLICY / "vllm_table.json")
    assert [batch for low, high, _ in table for batch in range(low, high + 1)] == list(range(1, 9))
    lengths = [length for _, _, length in table]
    assert lengths == sorted(lengths, reverse=True), "the larger the batch, the fewer drafts"
    assert len(set(lengths)) > 1
    assert set(scenario.workload.kinds) == set(prompts.KINDS)
    assert Setting("table", "table", table).table == table


def test_measured_runs_are_held_against_simulated_ones(tmp_path, capsys):
    """From a file of runs to rows and tables, with runs that took what the step times say."""
    import validate_vllm

    own = {"per_step_drafted": [4] * 5, "per_step_accepted": [1, 0, 2, 4, 1]}

    def run(setting: str, tpot_s: float) -> Run:
        answers = []
        for number in range(4):
            kind = prompts.KINDS[number % 2]
            began = 3.0 * number
            rounds = [Round(4, 2)] * 12 if setting != "plain" else [Round(0, 1)] * 24
            answers.append(
                Answer(number, 0, kind, began, began + 0.1, began + 0.1 + 24 * tpot_s, [7] * 25, rounds)
            )
        facts = {"own_records": {str(number): own for number in range(4)}}
        return Run(setting, 1, answers, [], 12.0, facts)

    probes = []
    for name, lengths in (("plain", (0,)), ("table", (0, 2, 4))):
        for length in lengths:
            for batch in (1, 4):
                new = batch * (length + 1)
                time_s = 0.05 + 0.004 * new + (0.005 + 0.002 * length) * (name != "plain")
                steps = [Step(time_s, batch, 0, 0, batch * length, 50 * batch, length)] * 8
                probes.append(Run(f"{name} {length}", batch, [], steps, 1.0).as_dict())
    data = {
        "probes": probes,
        "runs": [
            run("plain", 0.054).as_dict(),
            run("static 4", 0.05).as_dict(),
            run("table", 0.05).as_dict(),
        ],
        "questions": {"1": [[prompts.KINDS[n % 2], [1] * 12, 25] for n in range(4)]},
        "table": [[1, 8, 4]],
        "policy": "",
        "scenario": "",
        "dtype": "bfloat16",
        "threads": 2,
        "max_num_seqs": 8,
        "date": "2026-01-01",
        "disturbed": [["plain", 1, 2.0]],
    }
    source, out, told = tmp_path / "runs.json", tmp_path / "rows.json", tmp_path / "table.md"
    source.write_text(json.dumps(data))
    arguments = ["compare", str(source), "--out", str(out), "--markdown", str(told), "--seeds", "4"]
    assert validate_vllm.main(arguments) == 0
    rows = {(row["setting"], row["metric"]): row for row in json.loads(out.read_text())}
    assert set(next(iter(rows.values()))) == {"setting", "metric", "measured", "simulated", "error_pct"}
    plain = rows["plain, 1 clients", "tpot_mean_s"]
    assert plain["measured"] == pytest.approx(0.054)
    assert plain["simulated"] == pytest.approx(0.054, rel=0.05)
    assert ("plain, 1 clients", "accepted_per_round") not in rows
    # The same acceptance and lengths by another scheduler: the same simulation.
    static, table = (
        rows[name, "e2e_mean_s"]["simulated"] for name in ("static 4, 1 clients", "table, 1 clients")
    )
    assert static == table
    text = told.read_text()
    assert "Ranking by mean E2E" in text
    assert "figures with a goal meet it" in text
