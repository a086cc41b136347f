"""scripts/fit_rounds.py: what it prints and saves."""

import json

import pytest

from dsd_env.acceptance import load_run_model
from tests.acceptance_engines import (
    aiperf_record,
    draw_rounds,
    sglang_meta,
    vllm_bench,
    vllm_log,
    vllm_metrics,
    vllm_response,
)

ROUNDS = draw_rounds(1, 400, [4], 0.8)
TOKENS = 1 + sum(a for _, a in ROUNDS) / 400
PLAIN = {"kind": "k", "prompt_tokens": 1, "drafters": {"d": {"rounds": [list(r) for r in ROUNDS]}}}


@pytest.fixture
def fit_rounds(checkout, monkeypatch, capsys):
    """Return the script as a function of its arguments that returns what it prints."""
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    import fit_rounds as script

    def run(*arguments, fails=False):
        capsys.readouterr()
        assert script.main([*map(str, arguments)]) == int(fails)
        said = capsys.readouterr()
        assert not (said.out if fails else said.err)
        return said.err if fails else said.out

    return run


def test_a_log_is_shown_with_what_was_left_out_and_saved(fit_rounds, tmp_path):
    log = tmp_path / "server.log"
    log.write_text(f"noise\n{vllm_log(ROUNDS, 4)}\n{vllm_log([], 4)}\n")
    saved = tmp_path / "models" / "pair.json"
    shown = fit_rounds(log, "--save", saved, "--kind", "chat", "--drafter", "head")
    assert "400 rounds, all requests together" in shown
    assert f"tokens per round: {TOKENS:.3f}" in shown
    assert "records left out: 1\n  note: 1 line left out: intervals without drafts" in shown
    model = load_run_model(saved)
    assert model.card.fits["chat"]["head"]["left_out"] == 1


@pytest.mark.parametrize(
    "text",
    [
        vllm_metrics(ROUNDS, 4),
        vllm_bench(ROUNDS, 4),
        json.dumps(vllm_response(ROUNDS, 4)),
        json.dumps({"meta_info": sglang_meta(ROUNDS, 4)}),
        json.dumps(aiperf_record(ROUNDS, 4)),
        json.dumps(PLAIN),
    ],
    ids=["metrics", "bench", "responses", "sglang", "aiperf", "plain"],
)
def test_formats_are_seen_in_the_file(fit_rounds, tmp_path, text):
    path = tmp_path / "some.file"
    path.write_text(text)
    (item,) = json.loads(fit_rounds(path, "--json"))
    assert item["tokens_per_round"] == pytest.approx(TOKENS) and item["left_out"] == 0
    assert item["rounds"] == 400


def test_faults_are_one_line(fit_rounds, tmp_path):
    path = tmp_path / "some.file"
    for text, words in (
        (vllm_bench(draw_rounds(1, 400, [1, 4], 0.8), 4), "is fewer than 400 rounds x 4 places"),
        ('{"a": 1}', "holds nothing of speculative decoding that is known"),
        ("hello", "holds no JSON object; it begins 'hello'"),
    ):
        path.write_text(text)
        message = fit_rounds(path, fails=True)
        assert message.startswith(f"{path}") and words in message and message.count("\n") == 1
