"""The script that compiles a policy into tables: what it writes, and that each of its files can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsd_env import simulate
from dsd_env.control.fleet import FleetSpace
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.schedulers import make_scheduler
from tests.scenarios import TINY, tiny
from tests.serving.samples import make_fleet_bundle


@pytest.fixture(autouse=True)
def scripts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))


def compile_policy(monkeypatch: pytest.MonkeyPatch, folder: Path, policy: str, *more: str) -> int:
    import compile_policy as script

    arguments = ["--policy", policy, "--scenario", "single_lan", "--requests", "6", "--seeds", "1"]
    arguments += ["--passes", "2", "--test-seeds", "2", "--out", str(folder / "table.json"), *more]
    monkeypatch.setattr(sys, "argv", ["compile_policy.py", *arguments])
    return int(script.main())


def test_a_static_rule_comes_out_as_it_went_in(tmp_path, monkeypatch, capsys) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("report", "vllm", "sglang", "tensorrt-llm")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    options += ["--tensorrt-llm-version", "1.2"]
    assert compile_policy(monkeypatch, tmp_path, "colocated_sd:3", *options) == 0
    # The table decides what the rule decides, so both simulations are the same.
    scenario = measuring(load_scenario("single_lan"), 6)
    one = simulate(scenario, "colocated_sd:3", seed=1000).metrics
    other = simulate(scenario, make_scheduler(f"table:{tmp_path / 'table.json'}"), seed=1000).metrics
    assert one["e2e_s_mean"] == other["e2e_s_mean"]
    assert one["tpot_s_mean"] == other["tpot_s_mean"]
    report = json.loads(files["report"].read_text())
    assert report["scenario"] == "single_lan"
    assert set(report["metrics"]) == {"policy", "table", "by batch size"}
    for name in ("table", "by batch size"):
        assert report["metrics"][name]["e2e_s_mean"]["change"] == [0.0, 0.0, 0.0]
    # Every batch size that the engine can have, up to the scenario's, has one length.
    most = max(scenario.max_num_seqs)
    rows = json.loads(files["vllm"].read_text())
    assert [batch for low, high, _ in rows for batch in range(low, high + 1)] == list(range(1, most + 1))
    assert {length for _, _, length in rows} == {3}
    assert {tuple(tier["candidate_steps"]) for tier in json.loads(files["sglang"].read_text()).values()} == {
        (3,)
    }
    assert set(json.loads(files["tensorrt-llm"].read_text()).values()) == {3}
    assert "by batch size" in capsys.readouterr().out


def test_a_rule_that_never_drafts_has_no_table_for_an_engine(tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        compile_policy(monkeypatch, tmp_path, "cloud_ar", "--vllm", str(tmp_path / "vllm.json"))
    assert "never drafts" in capsys.readouterr().err
    assert not (tmp_path / "vllm.json").exists()


@pytest.mark.parametrize(
    ("policy", "more", "told"),
    [
        ("no_such_rule", (), "unknown scheduler"),
        ("colocated_sd:3", ("--tensorrt-llm", "x.json"), "--tensorrt-llm-version"),
        ("colocated_sd:3", ("--seeds", "0"), "seeds"),
        ("specdec_pp:0.8", (), "where the drafter doubts"),
        ("colocated_sd:3", ("--batch", "3,1"), "batch"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, monkeypatch, capsys, policy, more, told) -> None:
    with pytest.raises(SystemExit):
        compile_policy(monkeypatch, tmp_path, policy, *more)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


def test_a_policy_of_the_fleet_view_is_compiled_by_group_too(tmp_path, monkeypatch, capsys) -> None:
    # A policy without weights but a bias plans the same for ever, so its tables say what it plans.
    scenario = tiny(
        slo={"chat": {"ttft_s": 0.5, "tpot_s": 0.04}, "batch": {"ttft_s": 5.0, "tpot_s": 0.1}},
        workload__kinds={
            "question": TINY["workload"]["kinds"]["question"],
            "essay": {**TINY["workload"]["kinds"]["question"], "slo": "batch"},
        },
    )
    space = FleetSpace(scenario, 0.3, "slo")
    bundle = make_fleet_bundle(tmp_path / "bundle", space, wanted=[(4, 1, "colocated"), (2, 1, "colocated")])
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(scenario.model_dump(mode="json")), encoding="utf-8")
    options = ["--scenario", str(file), "--vllm", str(tmp_path / "vllm.json"), "--batch", "3"]
    report = ["--report", str(tmp_path / "report.json")]
    assert compile_policy(monkeypatch, tmp_path, str(bundle), *options, "--group", "chat", *report) == 0
    told = capsys.readouterr().out
    most = max(scenario.max_num_seqs)
    assert f"chat: speculation length by batch size 1-{most}: 4\n" in told
    assert f"batch: speculation length by batch size 1-{most}: 2\n" in told
    assert {length for _, _, length in json.loads((tmp_path / "vllm.json").read_text())} == {4}
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert set(metrics) == {"policy", "table", "by batch size", "by group and batch size"}
    # By group the plan is told without loss; one length for both is another thing.
    assert metrics["by group and batch size"]["e2e_s_mean"]["change"] == [0.0, 0.0, 0.0]
    assert metrics["by batch size"]["e2e_s_mean"]["change"] != [0.0, 0.0, 0.0]
    with pytest.raises(SystemExit):
        compile_policy(monkeypatch, tmp_path, str(bundle), *options, "--group", "nobody")
    assert "--group 'nobody' is not one of chat, batch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compile_policy(monkeypatch, tmp_path, "colocated_sd:3", "--group", "chat")
    assert "only policies of the fleet view" in capsys.readouterr().err
