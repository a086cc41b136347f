"""The command that holds the simulator against the testbed, from calibration to report, on tiny models."""

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
transformers = pytest.importorskip("transformers", reason="needs the extra `testbed`")

import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

WORDS = ("the", "a", "function", "is", "what", "step", "in", "how", "Write", "Explain", "Python")


def save_model(folder: Path, seed: int) -> None:
    """A tiny checkpoint with a vocabulary of words."""
    vocabulary = {word: number for number, word in enumerate(["?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture
def validate_sim(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    return importlib.import_module("validate_sim")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Arguments of a small validation; its steps fill the folder one after the other."""
    folder = tmp_path_factory.mktemp("validation")
    save_model(folder / "model", 0)
    return [
        "--out", str(folder / "out"), "--target", str(folder / "model"), "--draft", str(folder / "model"),
        "--dtype", "float32", "--cores", "", "--tokens", "6", "--repeats", "1", "--requests", "2",
        "--rtt-ms", "1", "--clients", "1", "--rules", "plain:synchronous", "static:2:synchronous",
    ]  # fmt: skip


def test_all_steps_and_resume(validate_sim, arguments, capsys, monkeypatch):
    out = Path(arguments[1])
    monkeypatch.setattr(validate_sim, "MOST_OF_OTHERS", 1e9)  # tests share the machine
    monkeypatch.setattr(validate_sim, "QUESTIONS", {"a": "Write a function", "b": "Explain what is a step"})
    monkeypatch.setattr(validate_sim, "TRAINING", {"c": "Write the function in Python", "d": "Explain how"})
    assert validate_sim.main(["run", *arguments]) == 2
    assert "calibrate first" in capsys.readouterr().err
    assert validate_sim.main(["all", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "0 of 2 settings are there" in printed and "pairs in the same order" in printed
    rows = json.loads((out / "results.json").read_text())
    assert set(rows[0]) == {"setting", "metric", "measured", "simulated", "error_pct"}
    assert {row["setting"] for row in rows} == {"plain_rtt1_c1", "sync-static2_rtt1_c1"}
    # The drafter is the target: all its drafts are right, two of each of the two rounds of a request.
    accepted = [row for row in rows if row["metric"] == "accepted_per_round" and row["setting"][0] == "s"]
    assert [(row["measured"], row["simulated"]) for row in accepted] == [(2.0, 2.0)]
    assert json.loads((out / "runs" / "plain_rtt1_c1.json").read_text())["same_outputs"] == 2
    from dsd_env.scenario import load_scenario

    train = load_scenario(out / "testbed-train_rtt1_c1.yaml")
    assert train.workload.kinds.keys() == {"c", "d"} and train.episode.total_requests is None

    # One setting is lost: it alone runs again, and only if it is asked for.
    kept = (out / "runs" / "plain_rtt1_c1.json").stat().st_mtime_ns
    (out / "runs" / "sync-static2_rtt1_c1.json").unlink()
    monkeypatch.setattr(validate_sim, "edge", None)  # nothing may be loaded for settings that are there
    assert validate_sim.main(["run", *arguments, "--settings", "plain*"]) == 0
    assert "1 of 1 settings are there" in capsys.readouterr().out
    assert validate_sim.main(["calibrate", *arguments]) == 0
    assert "is there already" in capsys.readouterr().out
    assert validate_sim.main(["simulate", *arguments]) == 0
    assert "sync-static2_rtt1_c1 has not run yet" in capsys.readouterr().err
    assert (out / "runs" / "plain_rtt1_c1.json").stat().st_mtime_ns == kept

    (out / "runs" / "plain_rtt1_c1.json").write_text("not JSON")
    assert validate_sim.main(["simulate", *arguments]) == 2
    assert "delete it to run it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rules", "nothing:synchronous"], "rule 'nothing' is none of plain"),
        (["--rules", "static:4:pipelined"], "no such protocol"),
        (["--rules", "policy:synchronous"], "needs --policy DIR"),
        (["--rules", "goodput:oops=1:synchronous"], "rule 'goodput:oops=1': "),
        (["--replay", "nowhere.csv"], "network series 'nowhere.csv' does not exist"),
        (["--settings", "none*"], "no such setting; there are plain_rtt5_c1"),
    ],
)
def test_wrong_settings_are_told_before_any_work(validate_sim, tmp_path, capsys, more, message):
    assert validate_sim.main(["all", "--out", str(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--cores", "1"],
        ["--cores", "a,b"],
        ["--tokens", "1"],
        ["--clients", "0"],
        ["--rtt-ms", "-1"],
        ["--replay", "spells.csv", "--clients", "4"],
    ],
)
def test_wrong_arguments(validate_sim, capsys, more):
    with pytest.raises(SystemExit) as stopped:
        validate_sim.main(["run", *more])
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


def test_nothing_to_report(validate_sim, tmp_path, capsys):
    assert validate_sim.main(["report", "--out", str(tmp_path)]) == 2
    assert "simulate first" in capsys.readouterr().err
    assert validate_sim.main(["simulate", "--out", str(tmp_path)]) == 2
    assert "no setting has run yet" in capsys.readouterr().err
