"""Import of published acceptance lengths; the sample lines are our own."""

import json

import numpy as np
import pytest

from dsd_env.acceptance import TraceError, TraceReplay, load_trace_set, tokens_per_round
from dsd_env.calibration.acceptance.importers import import_specdecode_bench


def row(eagle, ngram, generated=None, prompt=(1, 2, 3)):
    generated = len(ngram) if generated is None else generated
    return {
        "id": "x",
        "prompt_token_ids": list(prompt),
        "generated_token_ids": list(range(generated)),
        "acc_eagle": {"acc_len": eagle},
        "acc_ngram": {"acc_len": ngram},
    }


def runs(trace, drafter):
    run_length = trace.drafters[drafter].run_length
    assert run_length is not None
    return run_length


def write(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    return path


def test_import(tmp_path):
    one = write(
        tmp_path / "combined_maths.jsonl",
        [row([3, 2, 1, 1, 1], [1, 1, 1, 4]), row([], [1, 1], 2), row([1, 5], [2, 1, 1], prompt=(1,))],
    )
    two = write(tmp_path / "combined_news.jsonl", [row([1, 1, 16], [1, 21, 1])])
    trace = import_specdecode_bench([one, two])
    assert trace.label == "measured"
    assert "redistribution" in trace.card["licence"]
    assert trace.kinds == ("maths", "news")
    assert trace.lengths.tolist() == [4, 2, 3]  # cut to the shorter list, the empty request left out
    assert trace.card["skipped_empty_requests"] == 1
    assert trace.kind.tolist() == [0, 0, 1]
    assert trace.prompt_tokens.tolist() == [3, 1, 3]
    assert runs(trace, "eagle").tolist() == [2, 1, 0, 0, 0, 4, 0, 0, 15]
    assert runs(trace, "ngram").tolist() == [0, 0, 0, 3, 1, 0, 0, 20, 0]
    assert trace.gamma_max == 20
    for values in trace.drafters.values():
        assert len(set(values.top1_prob.tolist())) == 1
        assert np.isfinite(values.entropy_nats).all()
    whole = import_specdecode_bench([one], drafters=["eagle"])  # nothing of it is cut
    assert runs(whole, "eagle").tolist() == [2, 1, 0, 0, 0, 0, 4]
    assert tuple(whole.drafters) == tuple(whole.card["drafters"]) == ("eagle",)
    with pytest.raises(TraceError, match="must be some of"):
        import_specdecode_bench([one], drafters=["medusa"])
    trace.save(tmp_path)
    again = load_trace_set(tmp_path / trace.name)
    assert TraceReplay(again, ["news"]).realise(0, 0, 3, "ngram").run_length.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: must be a JSON object, found list"),
        (json.dumps({**row([1], [1]), "acc_eagle": [1]}), "acc_eagle must be a dict"),
        (json.dumps({**row([1], [1]), "prompt_token_ids": 3}), "prompt_token_ids must be a list"),
        ("NaN", "NaN is not a number"),
        (json.dumps({"id": "x"}), "lacks a field.*prompt_token_ids"),
        (json.dumps(row([0, 1], [1, 1])), r"acc_eagle\.acc_len holds 0"),
        (json.dumps(row([1, 1], [1, 999])), r"acc_ngram\.acc_len holds 999"),
        (json.dumps(row([1.5, 1], [1, 1])), r"acc_eagle\.acc_len holds 1\.5"),
        (json.dumps(row([True, 1], [1, 1])), r"acc_eagle\.acc_len holds True"),
        ("", "no recorded request"),
    ],
)
def test_malformed_files_are_named(tmp_path, text, message):
    path = tmp_path / "combined_x.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        import_specdecode_bench({"x": path})


def test_missing_files(tmp_path):
    with pytest.raises(TraceError, match=r"combined_x\.jsonl: there is no such file"):
        import_specdecode_bench([tmp_path / "combined_x.jsonl"])
    with pytest.raises(TraceError, match="no files"):
        import_specdecode_bench([])


#: Tokens per round at speculation lengths 1, 3, 5, 8, computed independently when the data were collected.
PUBLISHED = {
    ("gsm8k", "eagle"): (1.70, 2.39, 2.67, 2.78),
    ("cnn", "eagle"): (1.67, 2.33, 2.58, 2.72),
    ("sharegpt", "eagle"): (1.66, 2.25, 2.48, 2.61),
    ("gsm8k", "ngram"): (1.11, 1.16, 1.18, 1.18),
    ("sharegpt", "ngram"): (1.24, 1.40, 1.45, 1.49),
}


def test_the_published_data_where_they_are(data_dir):
    folder = data_dir / "accept" / "specdecode_bench"
    files = sorted(folder.glob("combined_*.jsonl"))
    if not files:
        pytest.skip(f"needs the files of {folder}")
    assert import_specdecode_bench(files).n_entries > 850
    for (kind, drafter), expected in PUBLISHED.items():
        trace = import_specdecode_bench([folder / f"combined_{kind}.jsonl"], drafters=[drafter])
        got = [tokens_per_round(runs(trace, drafter), g, trace.offsets) for g in (1, 3, 5, 8)]
        assert got == pytest.approx(expected, abs=0.0051), (kind, drafter)
