"""Readers of what vLLM and SGLang report: right counts of known rounds, or one error that says why not."""

import codecs
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_env.acceptance import TraceError
from dsd_env.calibration.acceptance.counts import half_unit, trials
from dsd_env.calibration.acceptance.importers import import_plain, import_specdecode_bench
from dsd_env.calibration.acceptance.rounds import (
    model_from_rounds,
    read_plain_rounds,
    read_sglang,
    read_vllm_bench,
    read_vllm_log,
    read_vllm_metrics,
    read_vllm_responses,
)
from tests.acceptance_engines import (
    accepted_of,
    draw_rounds,
    sglang_meta,
    tried_of,
    vllm_bench,
    vllm_log,
    vllm_metrics,
    vllm_response,
)

FIXED = draw_rounds(1, 400, [4], 0.8)
VARIED = draw_rounds(2, 4000, [1, 2, 4, 4], 0.9)
"""Rounds of several lengths; what they tried, and nothing else, tells 0.9 at every place."""


def lines_of(*values):
    return "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values)


def put(tmp_path, text, name="file.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


# ---------------------------------------------------------------------- right counts


def every_way(rounds, places, by_position=False):
    """Return the ways in which engines write rounds, and the reader of each."""
    return {
        "log": (vllm_log(rounds, places), read_vllm_log),
        "metrics": (vllm_metrics(rounds, places, by_position=by_position), read_vllm_metrics),
        "bench": (vllm_bench(rounds, places), read_vllm_bench),
        "responses": (lines_of(vllm_response(rounds, places)), read_vllm_responses),
        "sglang": (
            lines_of({"text": "x", "meta_info": sglang_meta(rounds, places, by_position=by_position)}),
            lambda path: read_sglang(path, places),
        ),
    }


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 900), places=st.integers(1, 7), p=st.floats(0.05, 0.97))
def test_rounds_of_one_length_are_read_as_they_were(tmp_path_factory, seed, n, places, p):
    rounds = draw_rounds(seed, n, [places], p)
    for text, reader in every_way(rounds, places).values():
        counts = reader(put(tmp_path_factory.mktemp("one"), text))
        np.testing.assert_allclose(counts.tried.sum(axis=0), tried_of(rounds, places), rtol=1e-9)
        np.testing.assert_allclose(
            counts.accepted.sum(axis=0), accepted_of(rounds, places), rtol=1e-9, atol=1e-9
        )
        assert counts.left_out == 0 and counts.notes == ()


@pytest.mark.parametrize("way", ["log", "metrics", "bench", "responses", "sglang"])
def test_rounds_of_several_lengths_are_refused_where_trials_are_not_told(tmp_path, way):
    text, reader = every_way(VARIED, 4)[way]
    drafted = sum(d for d, _ in VARIED)
    with pytest.raises(
        TraceError, match=rf"file\.txt.* {drafted} is fewer than 4000 rounds x 4 places = 16000"
    ):
        reader(put(tmp_path, text))


@pytest.mark.parametrize("level", ["detailed", "lengths"])
def test_rounds_of_several_lengths_one_by_one(tmp_path, level):
    text = lines_of(vllm_response(VARIED[:2000], 4, "a", level), vllm_response(VARIED[2000:], 4, "b", level))
    counts = read_vllm_responses(put(tmp_path, text))
    assert counts.tried.tolist() == [tried_of(VARIED[:2000], 4), tried_of(VARIED[2000:], 4)]
    assert counts.accepted.tolist() == [accepted_of(VARIED[:2000], 4), accepted_of(VARIED[2000:], 4)]
    np.testing.assert_allclose(counts.acceptance, 0.9, atol=0.02)


@pytest.mark.parametrize("way", ["metrics", "sglang"])
def test_rounds_of_several_lengths_by_place(tmp_path, way):
    text, reader = every_way(VARIED, 4, by_position=True)[way]
    counts = reader(put(tmp_path, text))
    assert counts.accepted.sum(axis=0).tolist() == accepted_of(VARIED, 4)
    np.testing.assert_allclose(counts.tried.sum(axis=0), tried_of(VARIED, 4), rtol=0.02)
    np.testing.assert_allclose(counts.acceptance, 0.9, atol=0.025)


def test_trials_by_place_stay_within_what_the_counts_leave():
    # One round drafted two and accepted two, one drafted one and accepted none: place 2 was tried once.
    assert trials(np.array([2.0, 1, 1]), np.array([2.0, 1]), "x").tolist() == [2, 1]
    # Every round of two was rejected at once: place 2 was tried by none of them if the short ones accepted.
    assert trials(np.array([4.0, 2, 0]), np.array([4.0, 2]), "x").tolist() == [4, 1]
    assert trials(np.array([3.0, 2, 1]), np.array([3.0, 3]), "x").tolist() == [3, 2]
    for reached, drafted, message in (
        ([2, 1, 1], [2, 0], "place 2 accepted 1 drafts of 0 drafted"),
        ([2, 1, 1], [1, 2], "place 2 was drafted 2 times"),
        ([2, 1, 1], [3, 1], "place 1 was drafted 3 times"),
    ):
        with pytest.raises(TraceError, match=f"here: {message}"):
            trials(np.array(reached, float), np.array(drafted, float), "here")


def test_a_few_missing_drafts_are_let_pass_and_said(tmp_path):
    rounds = [*FIXED, (3, 0)]
    for text, reader in every_way(rounds, 4).values():
        counts = reader(put(tmp_path, text))
        assert "1 drafts fewer than rounds times places" in counts.notes[0]
        np.testing.assert_allclose(
            counts.acceptance, np.divide(accepted_of(rounds, 4), tried_of(rounds, 4)), rtol=2e-3
        )


def test_a_depth_that_the_log_names_leaves_places_untried(tmp_path):
    short = draw_rounds(3, 300, [2], 0.7)
    text = lines_of(vllm_log(FIXED, 4, 4), vllm_log(short, 4, 2))
    counts = read_vllm_log(put(tmp_path, text))
    assert counts.tried[0].tolist() == np.add(tried_of(FIXED, 4), [*tried_of(short, 2), 0, 0]).tolist()
    with pytest.raises(TraceError, match="line 1: Drafted 600 is fewer than 300 rounds x 4 places"):
        read_vllm_log(put(tmp_path, vllm_log(short, 4)))


# ---------------------------------------------------------------------- records that count for nothing


def test_intervals_without_drafts_are_left_out_of_a_log(tmp_path):
    text = lines_of("INFO began", vllm_log([], 4), vllm_log(FIXED, 4), "noise", vllm_log([], 4))
    counts = read_vllm_log(put(tmp_path, text))
    assert counts.accepted[0].tolist() == accepted_of(FIXED, 4)
    assert (counts.left_out, counts.notes) == (2, ("2 lines left out: intervals without drafts",))
    with pytest.raises(TraceError, match="holds no round with drafts: Drafted is 0 in 1 line"):
        read_vllm_log(put(tmp_path, vllm_log([], 4)))


def test_a_message_inside_another_is_read_and_the_other_left_out(tmp_path):
    line = vllm_log(FIXED, 4)
    counts = read_vllm_log(put(tmp_path, line[:150] + line))
    assert counts.accepted[0].tolist() == accepted_of(FIXED, 4)
    assert counts.left_out == 1 and "another message begins in the middle" in counts.notes[0]
    with pytest.raises(TraceError, match="line 1: lacks Accepted of a metrics line"):
        read_vllm_log(put(tmp_path, line[:150]))


def test_colours_and_json_around_a_log_line(tmp_path):
    line = vllm_log(FIXED, 4)
    coloured = "\x1b[1;36m(EngineCore pid=9)\x1b[0;0m " + line.replace("0.", "\x1b[32m0.") + "\x1b[0m"
    for text in (
        coloured,
        json.dumps({"log": line + "\n", "stream": "stderr"}),
        json.dumps({"log": coloured}),
    ):
        assert read_vllm_log(put(tmp_path, text)).accepted[0].tolist() == accepted_of(FIXED, 4)


def test_requests_without_rounds_are_left_out_and_counted(tmp_path):
    silent = {"id": "n", "object": "chat.completion", "choices": [{"index": 0}], "metrics": None}
    rows = [
        vllm_response(FIXED, 4, "a"),
        silent,
        vllm_response([], 4, "b"),
        {"error": {"message": "too long"}},
    ]
    counts = read_vllm_responses(put(tmp_path, lines_of(*rows)))
    assert counts.tried.shape == (1, 4) and counts.left_out == 3
    assert counts.notes == ("3 requests left out: no rounds with drafts",)
    with pytest.raises(TraceError, match=r"no request with rounds \(1 without\).*--per-request-spec"):
        read_vllm_responses(put(tmp_path, lines_of(silent)))
    rows = [
        {"meta_info": sglang_meta(FIXED, 4, "a")},
        {"meta_info": {"id": "b", "completion_tokens": 1}},
        {"meta_info": {"id": "c", "completion_tokens": 1, "spec_verify_ct": 0, "spec_accept_length": 0}},
        {"error": {"message": "too long"}},
    ]
    counts = read_sglang(put(tmp_path, lines_of(*rows)))
    assert counts.tried.shape == (1, 4) and counts.left_out == 3
    rows = [{"kind": "k", "prompt_tokens": 1, "drafters": {"d": {"rounds": r}}} for r in ([[2, 1]], [[0, 0]])]
    counts = read_plain_rounds(put(tmp_path, lines_of(*rows)))["k"]["d"]
    assert counts.tried.tolist() == [[1, 1]] and counts.left_out == 1


def test_what_was_left_out_goes_into_the_model(tmp_path):
    counts = read_vllm_log(put(tmp_path, lines_of(vllm_log(FIXED, 4), vllm_log([], 4))))
    model = model_from_rounds(
        "m", {"chat": {"d": counts}}, target="t", date="2026-01-01", data="ours", licence="own data"
    )
    fit = model.card.fits["chat"]["d"]
    assert fit["left_out"] == 1 and fit["notes"] == ["1 line left out: intervals without drafts"]
    model.save(tmp_path)


# ---------------------------------------------------------------------- forms


def test_forms_of_sglang(tmp_path):
    meta = sglang_meta(FIXED, 4)
    details = {k: meta[k] for k in ("spec_accept_rate", "spec_verify_ct", "spec_correct_drafts_histogram")}
    usage = {"completion_tokens": meta["completion_tokens"]}
    chat = {"id": "a", "choices": [{"index": 0}], "usage": usage}
    full = {**details, "spec_num_correct_drafts": 0, "spec_cap_lens_histogram": [], "spec_accept_length": 0.0}
    chunk = {"id": "s", "object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}]}
    stream = [
        f"data: {json.dumps(row)}\n"
        for row in (chunk, {**chunk, "usage": usage, "sglext": {"spec_tokens_details": full}})
    ]
    early = {"id": "r-1", "completion_tokens": 1, "spec_verify_ct": 0}
    for text in (
        lines_of({"meta_info": meta}),
        lines_of([{"meta_info": meta}]),
        lines_of({"choices": [{"meta_info": meta}]}),
        lines_of(meta),
        lines_of({**chat, "sglext": {"spec_tokens_details": details}}),
        lines_of({**chat, "sglext": {"spec_tokens_details": full}}),
        json.dumps({"meta_info": meta}, indent=2),
        lines_of("INFO starting", "[2026-01-01 00:00:01] ready", {"meta_info": meta}),
        "".join(["event: x\n", *stream, ": keep-alive\n", "data: [DONE]\n"]),
        "".join(f"data: {json.dumps({'meta_info': m})}\n\n" for m in (early, meta)) + "data: [DONE]\n",
    ):
        counts = read_sglang(put(tmp_path, text))
        assert counts.tried.tolist() == [tried_of(FIXED, 4)] and counts.left_out == 0
        assert counts.tokens.tolist() == [meta["completion_tokens"]]


def test_forms_of_vllm_responses(tmp_path):
    row = vllm_response(FIXED, 4)
    last = {**row, "object": "chat.completion.chunk", "choices": []}
    first = {"id": row["id"], "object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}]}
    other = {**first, "id": "cut short"}
    for text, left_out in (
        (lines_of(row), 0),
        (lines_of([row]), 0),
        (json.dumps(row, indent=1), 0),
        (lines_of(row, row), 0),
        (lines_of("  % Total    % Received", row), 0),
        (lines_of(first, last), 0),
        (lines_of(first, other, last), 1),
        ("".join(f"data: {json.dumps(r)}\r\n\r\n" for r in (first, last)) + "data: [DONE]\n", 0),
        (lines_of(row["metrics"]["speculative_decoding"]), 0),
    ):
        counts = read_vllm_responses(put(tmp_path, text))
        assert counts.tried.tolist() == [tried_of(FIXED, 4)] and counts.left_out == left_out
        assert counts.tokens.tolist() == [row["usage"]["completion_tokens"]]
    again = vllm_response(FIXED[:10], 4)
    with pytest.raises(TraceError, match=r"line 2: id 'c-1' has other metrics than in .*line 1"):
        read_vllm_responses(put(tmp_path, lines_of(row, again)))


def test_forms_of_a_metrics_page(tmp_path):
    page = vllm_metrics(FIXED, 4)
    browser = "\n".join(re.sub(r"\} ", "} | ", line.replace(",", ", ")) for line in page.splitlines())
    for text in (page, browser, page.replace("} ", "} => "), page.replace("vllm:", "vllm_")):
        assert read_vllm_metrics(put(tmp_path, text)).accepted[0].tolist() == accepted_of(FIXED, 4)
    both = page + vllm_metrics(VARIED, 4, "1", by_position=True)
    counts = read_vllm_metrics(put(tmp_path, both))
    assert counts.accepted[0].tolist() == np.add(accepted_of(FIXED, 4), accepted_of(VARIED, 4)).tolist()
    before = put(tmp_path, vllm_metrics(FIXED[:100], 4), "before.txt")
    assert read_vllm_metrics(put(tmp_path, page), before).accepted[0].tolist() == accepted_of(FIXED[100:], 4)
    cut = "\n".join(line for line in page.splitlines() if "draft_tokens" not in line)
    assert "drafted tokens are not in the file" in read_vllm_metrics(put(tmp_path, cut)).notes[0]
    for text, message in (
        (page + page, r"line 11: .* stands in line 2, too: two pages in one file\?"),
        (page + vllm_metrics(FIXED, 4).replace('"m"', '"other"'), r"several models, \['m', 'other'\]"),
    ):
        with pytest.raises(TraceError, match=f"file.txt.*{message}"):
            read_vllm_metrics(put(tmp_path, text))


def test_several_results_of_a_benchmark_are_named(tmp_path):
    text = vllm_bench(FIXED, 4)
    with pytest.raises(
        TraceError, match=r"line 2: a second result begins: 2 stand in the file \(--append-result"
    ):
        read_vllm_bench(put(tmp_path, text + "\n" + text))
    with pytest.raises(TraceError, match=r"lacks.*spec_decode_num_drafts.*without speculation"):
        read_vllm_bench(put(tmp_path, json.dumps({"total_output_tokens": 9})))
    changed = {**json.loads(text), "spec_decode_per_position_acceptance_rates": [0.9, 0.8, 0.7, 0.6, None]}
    with pytest.raises(TraceError, match="newer versions give rates of the rounds that drafted a place"):
        read_vllm_bench(put(tmp_path, json.dumps(changed)))
    unrelated = text.replace("70.5", "NaN")
    assert read_vllm_bench(put(tmp_path, unrelated)).accepted[0].tolist() == pytest.approx(
        accepted_of(FIXED, 4)
    )


# ---------------------------------------------------------------------- numbers that contradict each other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_spec_steps": 7}, "num_spec_steps is 7, acceptance_histogram makes 4"),
        ({"num_accepted_draft_tokens": 9}, "num_accepted_draft_tokens is 9, acceptance_histogram makes 4"),
        ({"num_draft_tokens": 13}, r"num_draft_tokens is 13, must be in 4\.\.12"),
        (
            {"mean_acceptance_length": 2.5},
            "mean_acceptance_length is 2.5, but 4 drafts accepted in 4 rounds make 2",
        ),
        ({"draft_acceptance_rate": 0.5}, "draft_acceptance_rate is 0.5, but 4 of 12 drafts make 0.333"),
        ({"acceptance_histogram": [1, 2]}, "num_spec_steps is 4, acceptance_histogram makes 3"),
        ({"acceptance_histogram": [1] * 5}, "acceptance_histogram must be a list of 1 to 4 counts"),
        ({"num_spec_tokens": None}, "num_spec_tokens holds None"),
        ({"per_step_drafted": [3, 3, 3]}, "per_step_drafted has 3 steps, per_step_accepted 4"),
        (
            {"per_step_accepted": [3, 1, 0, 1]},
            "per_step_drafted counts other rounds than acceptance_histogram",
        ),
        (
            {"per_step_drafted": [3, 3, 3, 2]},
            "num_draft_tokens is 12, the draft lengths of the rounds make 11",
        ),
        (
            {"acceptance_histogram_by_draft_length": {"9": [1]}},
            "acceptance_histogram_by_draft_length has a draft length '9', must be 0..3",
        ),
    ],
)
def test_contradictions_of_vllm_responses(tmp_path, changes, message):
    row = vllm_response([(3, 3), (3, 1), (3, 0), (3, 0)], 3, level="detailed")
    row["metrics"]["speculative_decoding"] |= changes
    with pytest.raises(TraceError, match=rf"file\.txt, line 1: metrics\.speculative_decoding: {message}"):
        read_vllm_responses(put(tmp_path, lines_of(row)))


def test_tokens_that_rounds_cannot_have_made(tmp_path):
    row = vllm_response(FIXED, 4) | {"usage": {"completion_tokens": 5}}
    with pytest.raises(TraceError, match="completion_tokens is 5, but 400 rounds"):
        read_vllm_responses(put(tmp_path, lines_of(row)))
    with pytest.raises(TraceError, match="completion_tokens is 5, but 400 rounds"):
        read_sglang(put(tmp_path, lines_of(sglang_meta(FIXED, 4) | {"completion_tokens": 5})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spec_num_correct_drafts": 3},
            "spec_num_correct_drafts is 3, spec_correct_drafts_histogram makes 4",
        ),
        ({"spec_num_proposed_drafts": 3}, "spec_num_proposed_drafts is 3, but 4 were accepted"),
        ({"spec_num_proposed_drafts": 12.0}, r"spec_num_proposed_drafts holds 12\.0"),
        ({"spec_accept_rate": 0.9}, "spec_accept_rate is 0.9, but 4 of 12 drafts make 0.333"),
        ({"spec_accept_rate": 1.5}, "spec_accept_rate holds 1.5"),
        ({"spec_accept_length": 3.1}, "spec_accept_length is 3.1, but .* make 2"),
        (
            {"spec_cap_lens_histogram": [0, 2, 0, 2]},
            "spec_cap_lens_histogram has rounds that verified different",
        ),
        ({"spec_num_proposed_drafts_by_position": [4, 4, 3]}, "is 12, drafts by position sum to 11"),
        ({"spec_proposed_drafts_histogram": [0, 0, 0, 3]}, "sums to 3, there were 4 rounds"),
        (
            {"spec_num_proposed_drafts": None, "spec_accept_rate": 0.5},
            "by spec_accept_rate, at most 8.8.* is fewer than 4 rounds",
        ),
    ],
)
def test_contradictions_of_sglang(tmp_path, changes, message):
    meta = sglang_meta([(3, 3), (3, 1), (3, 0), (3, 0)], 3) | changes
    with pytest.raises(TraceError, match=rf"file\.txt, line 1: meta_info: .*{message}"):
        read_sglang(put(tmp_path, lines_of({"meta_info": meta})))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"Drafted: \d+(.*), Avg.*", r"Drafted: 9000\1", "Drafted 9000 is more than 40. rounds of 4 places"),
        (r"Drafted: \d+", "Drafted: 9000", "Draft acceptance rate is 57.9, but 926 of 9000 drafts make 10.2"),
        (r"Accepted: \d+(.*), Avg.*", r"Accepted: 3\1", "no number of rounds makes Accepted 3 and Mean"),
        (r"rate: [\d.]+%", "rate: 10.0%", "Draft acceptance rate is 10, but"),
        (r"Drafted: (\d+) tokens", r"Drafted: \1 tokens, Drafted: 5 tokens", "Drafted is given twice"),
        (r"Mean acceptance length: [\d.]+", "Mean acceptance length: nan", "length holds nan"),
        (r"Drafted: \d+", "Drafted: 0", "Accepted .* is above Drafted 0"),
    ],
)
def test_contradictions_of_the_log(tmp_path, old, new, message):
    line = re.sub(old, new, vllm_log(FIXED, 4))
    with pytest.raises(TraceError, match=f"file.txt, line 1: .*{message}"):
        read_vllm_log(put(tmp_path, line))


def test_half_a_unit_of_the_last_digit():
    assert half_unit("3.00") == pytest.approx(0.005) and half_unit(2.5) == pytest.approx(0.05)
    assert half_unit(7) == 0.5 and half_unit("1.5e-3") == pytest.approx(0.00005)


# ---------------------------------------------------------------------- whatever becomes of files


PLAIN = [
    {"kind": "code", "prompt_tokens": 7, "drafters": {"d": {"run_length": [2, 1, 0]}}},
    {"kind": "chat", "prompt_tokens": 9, "drafters": {"d": {"run_length": [0, 3]}}},
]
ROUNDS = [
    {"kind": "code", "prompt_tokens": 7, "drafters": {"d": {"rounds": [[4, 2], [4, 4]]}}},
    {"kind": "code", "prompt_tokens": 9, "drafters": {"d": {"rounds": [[3, 0]]}}},
]
BENCH = {
    "prompt_token_ids": [1, 2],
    "generated_token_ids": [1],
    "acc_eagle": {"acc_len": [3, 2, 1]},
    "acc_ngram": {"acc_len": [1, 1, 4]},
}
PARTS = [FIXED[:100], FIXED[100:250], FIXED[250:]]
FILES = {
    "log": (lines_of(*(vllm_log(part, 4) for part in PARTS), vllm_log([], 4)), read_vllm_log),
    "metrics": (vllm_metrics(FIXED, 4), read_vllm_metrics),
    "metrics by place": (vllm_metrics(VARIED, 4, by_position=True), read_vllm_metrics),
    "bench": (vllm_bench(FIXED, 4), read_vllm_bench),
    "responses": (
        lines_of(*(vllm_response(p, 4, f"c-{i}", "detailed") for i, p in enumerate(PARTS))),
        read_vllm_responses,
    ),
    "lengths": (
        lines_of(*(vllm_response(p, 4, f"c-{i}", "lengths") for i, p in enumerate(PARTS))),
        read_vllm_responses,
    ),
    "sglang": (
        lines_of(*({"text": "x", "meta_info": sglang_meta(p, 4, f"r-{i}")} for i, p in enumerate(PARTS))),
        read_sglang,
    ),
    "plain": (lines_of(*PLAIN), import_plain),
    "rounds": (lines_of(*ROUNDS), read_plain_rounds),
    "published": (lines_of(BENCH, BENCH), lambda path: import_specdecode_bench({"x": path})),
}
COUNTED = ("log", "metrics", "metrics by place", "bench", "responses", "lengths", "sglang")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
CHANGED = (
    "NaN",
    "nan",
    "-1",
    "-0.5",
    "1e999",
    "99999999999999999999",
    "0",
    "true",
    "null",
    '"7"',
    "3.5",
    "1000000",
)
CODINGS = {
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n").encode(),
}


def read(reader, path):
    """Return what a reader makes of a file, or ``None`` if it raises the one clear error."""
    try:
        return reader(path)
    except TraceError as error:
        message = str(error)
        assert path.name in message and "\n" not in message
        return None


def outcome(counts):
    return np.nan_to_num(counts.acceptance, nan=-1.0)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_files_in_other_encodings_are_read(tmp_path, name, coding):
    text, reader = FILES[name]
    plain, other = tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl"
    other.parent.mkdir()
    plain.write_text(text)
    other.write_bytes(CODINGS[coding](text))
    assert str(reader(other)) == str(reader(plain))


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_that_are_no_text_are_refused(tmp_path, name):
    text, reader = FILES[name]
    path = tmp_path / "a.jsonl"
    for raw in (
        text.encode("utf-16-le"),
        text.encode("utf-32"),
        text.encode() + b"\xff",
        b"\x1f\x8b\x08",
        b"",
    ):
        path.write_bytes(raw)
        with pytest.raises(TraceError, match=r"a\.jsonl: "):
            reader(path)


@pytest.mark.parametrize("name", COUNTED)
def test_order_and_doubled_files_change_no_acceptance(tmp_path, name):
    text, reader = FILES[name]
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    right = outcome(reader(path))
    lines = text.splitlines(keepends=True)
    shuffled = random.Random(1).sample(lines, len(lines))
    path.write_text("".join(shuffled))
    np.testing.assert_allclose(outcome(reader(path)), right, rtol=1e-9)
    if text.lstrip()[0] == "{":
        rows = [json.loads(line) for line in lines]
        path.write_text(lines_of(*(dict(reversed(row.items())) for row in rows)))
        np.testing.assert_allclose(outcome(reader(path)), right, rtol=1e-9)
    path.write_text(text + text if text.endswith("\n") else f"{text}\n{text}")
    doubled = read(reader, path)
    assert doubled is None or np.allclose(outcome(doubled), right)
    for line in lines:
        path.write_text(text + line)
        doubled = read(reader, path)
        assert doubled is None or np.allclose(outcome(doubled), right, rtol=0.2)


def test_fields_of_a_log_line_in_another_order(tmp_path):
    line = vllm_log(FIXED, 4)
    head, _, body = line.partition("metrics: ")
    fields = re.split(r", (?=[A-Z])", body)
    for seed in range(5):
        mixed = random.Random(seed).sample(fields, len(fields))
        counts = read_vllm_log(put(tmp_path, f"{head}metrics: {', '.join(mixed)}"))
        assert counts.accepted[0].tolist() == accepted_of(FIXED, 4)


@settings(max_examples=150)
@given(name=st.sampled_from(COUNTED), data=st.data())
def test_no_single_wrong_number_goes_through_with_another_result(tmp_path_factory, name, data):
    text, reader = FILES[name]
    path = tmp_path_factory.mktemp("number") / "a.jsonl"
    path.write_text(text)
    right = outcome(reader(path))
    match = data.draw(st.sampled_from(list(NUMBER.finditer(text))))
    new = data.draw(st.sampled_from(CHANGED))
    path.write_text(text[: match.start()] + new + text[match.end() :])
    made = read(reader, path)
    assert made is None or np.allclose(outcome(made), right, atol=0.02), (match, new)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_cut_and_damaged_files_raise_nothing_but_the_one_error(tmp_path_factory, name, data):
    text, reader = FILES[name]
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    raw = text.encode()
    kind = data.draw(st.sampled_from(["cut", "lines", "number", "twice", "bytes"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    elif kind == "lines":
        lines = raw.splitlines(keepends=True)
        raw = b"".join(data.draw(st.lists(st.sampled_from(lines), max_size=6)))
    elif kind == "number":
        match = data.draw(st.sampled_from(list(NUMBER.finditer(text))))
        raw = (text[: match.start()] + data.draw(st.sampled_from(CHANGED)) + text[match.end() :]).encode()
    elif kind == "twice":
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
        raw = raw[:stop] + raw[start:]
    else:
        at = data.draw(st.integers(0, len(raw)))
        raw = (
            raw[:at] + data.draw(st.binary(min_size=1, max_size=5)) + raw[at + data.draw(st.integers(0, 5)) :]
        )
    path.write_bytes(raw)
    made = read(reader, path)
    if kind == "cut" and made is not None and name in COUNTED:
        # Whole records that are left, or all but what is not read.
        assert made.tried.sum() > 0 and (made.accepted <= made.tried + 1e-6).all()
