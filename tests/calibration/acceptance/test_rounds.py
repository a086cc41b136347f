"""Importers of the plain format and of serving engines' logs; every sample is our own."""

import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_env.acceptance import TraceError, expected_tokens_iid, generate_pool, tokens_per_round
from dsd_env.calibration.acceptance.compare import simulate_like
from dsd_env.calibration.acceptance.importers import import_plain, import_specdecode_bench
from dsd_env.calibration.acceptance.rounds import (
    EXTRAPOLATED_PLACES,
    RoundCounts,
    fit_rounds,
    model_from_rounds,
    read_plain_rounds,
    read_sglang,
    read_vllm_bench,
    read_vllm_log,
    read_vllm_metrics,
    read_vllm_responses,
)

ABOUT = {"target": "a target", "date": "2026-01-01", "data": "our own", "licence": "Apache-2.0"}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------------- plain: values at every position


def plain(kind="code", prompt=7, **drafters):
    drafters = drafters or {"d": {"run_length": [2, 1, 0]}}
    return {"kind": kind, "prompt_tokens": prompt, "drafters": drafters}


def test_plain_runs_and_probabilities(tmp_path):
    rows = [
        {
            "card": {
                "target": {"model": "T"},
                "licence": "MIT",
                "gamma_max": 8,
                "drafters": {"look": {"model": "L"}},
            }
        },
        plain(
            look={"run_length": [2, 1, 0]}, model={"accept_prob": [1, 0.25, 0], "top1_prob": [0.9, 0.5, 0.1]}
        ),
        "",
        plain("chat", 0, look={"run_length": [8]}, model={"accept_prob": [0.5], "top1_prob": [0.7]}),
    ]
    trace = import_plain(write(tmp_path / "mine.jsonl", rows))
    assert (trace.name, trace.kinds, trace.label, trace.gamma_max) == (
        "mine",
        ("code", "chat"),
        "measured",
        8,
    )
    assert trace.lengths.tolist() == [3, 1] and trace.prompt_tokens.tolist() == [7, 0]
    assert trace.drafters["look"].run_length.tolist() == [2, 1, 0, 8]
    np.testing.assert_allclose(trace.drafters["model"].accept_prob, [1, 0.25, 0, 0.5])
    np.testing.assert_allclose(trace.drafters["model"].top1_prob, [0.9, 0.5, 0.1, 0.7], atol=1e-3)
    assert len(set(trace.drafters["look"].top1_prob.tolist())) == 1
    assert trace.card["drafters"] == {"look": {"model": "L"}, "model": {"model": "not stated"}}
    trace.save(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1: not JSON"),
        (["# mine", plain()], "line 1: not JSON.*it begins '# mine', but every line must be a JSON object"),
        (["[12:00:01] INFO", plain()], r"line 1: not JSON.*it begins '\[12:00:01\] INFO'"),
        ([plain(), '{"kind": "a", "kind": "b"}'], "line 2: not JSON: field 'kind' is given twice"),
        ([plain(), "[1, 2"], "line 2: not JSON"),
        (["[]"], "line 1: must be a JSON object, found list"),
        (["NaN"], "NaN is not a number"),
        (["[" * 50_000], "line 1: not JSON"),
        ([""], "holds no recorded request"),
        ([{"card": {}}], "holds no recorded request"),
        ([{"card": 1}], "card must be a dict"),
        ([{"card": {"colour": 1}}], "unknown fields.*colour"),
        ([{"card": {"gamma_max": 0}}], r"card\.gamma_max holds 0"),
        ([{"card": {"label": "guessed"}}], "label must be measured, fitted, published or synthetic"),
        ([{"prompt_tokens": 1, "drafters": {}}], "lacks a field of the format: 'kind'"),
        ([plain(prompt=-1)], "prompt_tokens holds -1"),
        ([plain(prompt=12.0)], r"prompt_tokens holds 12\.0, must be an integer"),
        ([{**plain(), "surprise": 1}], "unknown fields.*surprise"),
        ([plain(), plain(other={"run_length": [1]})], "line 2: drafters .*other.* differ"),
        ([plain(d=[1])], r"drafters\.d must be an object"),
        ([plain(d={})], "either run_length or accept_prob"),
        ([plain(d={"run_length": [1], "accept_prob": [1]})], "either run_length or accept_prob"),
        ([plain(d={"run_length": [1], "speed": [1]})], "unknown fields.*speed"),
        ([plain(d={"run_length": []})], "must be a list with a value"),
        ([plain(d={"run_length": [1, -1]})], r"drafters\.d\.run_length holds -1"),
        ([plain(d={"run_length": [1, 1.5]})], r"run_length holds 1\.5"),
        ([plain(d={"run_length": [True]})], "run_length holds True"),
        ([plain(d={"run_length": [256]})], "run_length holds 256"),
        ([plain(d={"accept_prob": [85]})], r"accept_prob holds 85, must be in 0..1 \(a percentage"),
        ([plain(d={"accept_prob": ["0.5"]})], "accept_prob holds '0.5', must be a number"),
        ([plain(d={"accept_prob": [None]})], "accept_prob holds None"),
        ([plain(d={"run_length": [1, 0], "top1_prob": [0.5]})], "lists differ in length"),
        ([plain(d={"run_length": [1], "entropy_nats": [-0.1]})], r"entropy_nats holds -0\.1"),
        ([plain(), plain(d={"accept_prob": [1]})], "line 2.*the first line"),
        ([plain(d={"rounds": [[1, 1]]})], "do not give runs at every start"),
        ([{"card": {"gamma_max": 1}}, plain()], "above gamma_max 1"),
    ],
)
def test_plain_faults_are_named(tmp_path, rows, message):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(TraceError, match=f"(?s)bad.*{message}"):
        import_plain(path)


# ---------------------------------------------------------------------- plain: rounds


def test_rounds_of_the_plain_format(tmp_path):
    rows = [
        plain(d={"rounds": [[4, 4], [4, 0], [2, 1], [0, 0]]}),
        plain(d={"rounds": [[3, 3]]}),
        plain("chat", d={"rounds": [[1, 0]]}),
    ]
    counts = read_plain_rounds(write(tmp_path / "r.jsonl", rows))
    assert set(counts) == {"code", "chat"}
    code = counts["code"]["d"]
    assert code.tried.tolist() == [[3, 2, 1, 1], [1, 1, 1, 0]]
    assert code.accepted.tolist() == [[2, 1, 1, 1], [1, 1, 1, 0]]
    assert code.tokens.tolist() == [9, 4]
    assert code.tokens_per_round == pytest.approx(1 + 8 / 4)


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([[2, 3]], "3 accepted of 2 drafted"),
        ([[-1, 0]], r"rounds \(drafted\) holds -1"),
        ([[2, 0.5]], r"rounds \(accepted\) holds 0\.5"),
        ([[2]], "pairs"),
        (3, "rounds must be a list"),
        ([[0, 0]], "no round with drafts"),
    ],
)
def test_impossible_rounds_are_named(tmp_path, rounds, message):
    path = write(tmp_path / "bad.jsonl", [plain(d={"rounds": rounds})])
    with pytest.raises(TraceError, match=f"bad.*{message}"):
        read_plain_rounds(path)


# ---------------------------------------------------------------------- vLLM


def log_line(rates=(0.8, 0.5, 0.3), drafts=1000, **changes):
    accepted = round(drafts * sum(rates))
    values = {
        "mean": f"{1 + accepted / drafts:.2f}",
        "accepted": accepted,
        "drafted": drafts * len(rates),
        "shown": ", ".join(f"{r:.3f}" for r in rates),
        "share": f"{100 * accepted / (drafts * len(rates)):.1f}",
        **changes,
    }
    return (
        "(APIServer pid=1) INFO 01-02 03:04:05 [metrics.py:1] SpecDecoding metrics: "
        f"Mean acceptance length: {values['mean']}, Accepted throughput: 10.00 tokens/s, "
        f"Drafted throughput: 20.00 tokens/s, Accepted: {values['accepted']} tokens, "
        f"Drafted: {values['drafted']} tokens, Per-position acceptance rate: {values['shown']}, "
        f"Avg Draft acceptance rate: {values['share']}%"
    )


def test_vllm_log(tmp_path):
    lines = [
        "INFO something else",
        log_line(),
        "noise",
        log_line((0.6, 0.3, 0.1), 500),
        log_line((0.0, 0.0, 0.0), 100),
    ]
    counts = read_vllm_log(write(tmp_path / "server.log", lines))
    assert not counts.per_request
    assert counts.tried[0, 0] == pytest.approx(1600)
    np.testing.assert_allclose(counts.accepted[0], [1100, 650, 350])
    assert counts.tokens_per_round == pytest.approx(1 + 2100 / 1600)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (log_line(mean="nan"), "Mean acceptance length holds nan"),
        (log_line(mean="x"), "Mean acceptance length holds 'x'"),
        (log_line(mean="1.2"), r"is not 1 \+ the sum of the rates"),
        (log_line(shown="80.0, 50.0, 30.0"), "rate holds 80.0.*percentage"),
        (log_line(shown="0.5, 0.8, 0.3"), "rises from 0.5 to 0.8 at place 2"),
        (log_line(shown="0.8,, 0.3"), "rate holds ''"),
        (log_line(accepted=5000), "Accepted 5000 is above Drafted 3000"),
        (log_line(accepted=-5), "Accepted holds -5"),
        (log_line()[:150], "lacks"),
        ("nothing", "has no line with"),
    ],
)
def test_vllm_log_faults_are_named(tmp_path, line, message):
    path = write(tmp_path / "bad.log", ["first line", line])
    with pytest.raises(TraceError, match=f"bad.log.*{message}"):
        read_vllm_log(path)


def metrics_page(drafts, places, engine="0", extra=""):
    label = f'engine="{engine}",model_name="m"'
    lines = [
        "# HELP vllm:spec_decode_num_drafts_total x",
        f"vllm:spec_decode_num_drafts_total{{{label}}} {drafts}",
    ]
    lines += [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{label},position="{j}"}} {v}'
        for j, v in enumerate(places)
    ]
    lines += [f"vllm:spec_decode_num_accepted_tokens_per_pos_created{{{label}}} 1.7e9", extra]
    return "\n".join(lines)


def test_vllm_metrics(tmp_path):
    page, before = tmp_path / "after.txt", tmp_path / "before.txt"
    page.write_text(metrics_page("1e3", (800.0, 500)) + "\n" + metrics_page(500, (300, 100), "1"))
    counts = read_vllm_metrics(page)
    assert counts.tried.tolist() == [[1500, 1100]] and counts.accepted.tolist() == [[1100, 600]]
    before.write_text(metrics_page(500, (300, 100)))
    assert read_vllm_metrics(page, before).accepted.tolist() == [[800, 500]]
    with pytest.raises(TraceError, match="below those of"):
        read_vllm_metrics(before, page)
    for text, message in (
        (metrics_page(100, (200,)), "rises from 100 to 200"),
        (metrics_page("NaN", (1,)), "num_drafts_total holds nan"),
        (metrics_page(100, (-1,)), "per_pos_total holds -1"),
        (metrics_page(0, (0,)), "no round with drafts"),
        ("vllm:spec_decode_num_drafts_total 5", "has no vllm:spec_decode_num_accepted"),
        (
            metrics_page(9, (5,), extra='vllm:spec_decode_num_accepted_tokens_per_pos_total{position="x"} 1'),
            "position is 'x'",
        ),
        (
            metrics_page(9, (5,), extra='vllm:spec_decode_num_accepted_tokens_per_pos_total{position="4"} 1'),
            "are not 0, 1, 2",
        ),
    ):
        page.write_text(text)
        with pytest.raises(TraceError, match=f"after.txt.*{message}"):
            read_vllm_metrics(page)


def bench(**changes):
    row = {
        "spec_decode_acceptance_rate": 53.3,
        "spec_decode_num_drafts": 1000,
        "spec_decode_accepted_tokens": 1600,
        "spec_decode_per_position_acceptance_rates": [0.8, 0.5, 0.3],
        **changes,
    }
    return {k: v for k, v in row.items() if v is not None}


def test_vllm_bench(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench()))
    counts = read_vllm_bench(path)
    assert counts.tokens_per_round == pytest.approx(2.6)
    for changes, message in (
        ({"spec_decode_num_drafts": None}, "lacks a field of the format: 'spec_decode_num_drafts'"),
        ({"spec_decode_num_drafts": 1000.5}, "num_drafts holds 1000.5"),
        ({"spec_decode_per_position_acceptance_rates": [80, 50, 30]}, "rates holds 80.*percentage"),
        ({"spec_decode_per_position_acceptance_rates": []}, "must have 1 to"),
        ({"spec_decode_accepted_tokens": 100}, "the rates of 1000 drafts make 1600"),
    ):
        path.write_text(json.dumps(bench(**changes)))
        with pytest.raises(TraceError, match=f"bench.json.*{message}"):
            read_vllm_bench(path)


# ---------------------------------------------------------------------- SGLang


def meta(histogram=(2, 1, 1), name="spec_accept_histogram", **changes):
    row = {
        "completion_tokens": 8,
        "spec_verify_ct": sum(histogram),
        name: list(histogram),
        "prompt_tokens": 5,
        **changes,
    }
    return {k: v for k, v in row.items() if v is not None}


def test_sglang(tmp_path):
    rows = [
        {"text": "x", "meta_info": meta()},
        [{"meta_info": meta((0, 3), spec_verify_ct=None)}],
        {"choices": [{"meta_info": meta((1, 0, 0, 1), "spec_correct_drafts_histogram")}]},
        meta((0, 0, 0)),
    ]
    counts = read_sglang(write(tmp_path / "s.jsonl", rows))
    assert counts.per_request and counts.tokens.tolist() == [8, 8, 8]  # the last request drafted nothing
    assert counts.tried.tolist() == [[4, 2, 1], [3, 3, 0], [2, 1, 1]]
    assert counts.accepted.tolist() == [[2, 1, 0], [3, 0, 0], [1, 1, 1]]
    assert read_sglang(tmp_path / "s.jsonl", 5).tried.shape == (3, 5)
    with pytest.raises(TraceError, match="has 4 entries; rounds of 2 drafts"):
        read_sglang(tmp_path / "s.jsonl", 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (meta(spec_accept_histogram=None, spec_accept_length=2.1), "lacks a field.*means only"),
        (meta(spec_accept_histogram=[1, -1]), "histogram holds -1"),
        (meta(spec_accept_histogram=[1, 0.5]), r"histogram holds 0\.5"),
        (meta(spec_accept_histogram=[]), "has 0 entries"),
        (meta(spec_accept_histogram="x"), "must be a list"),
        (meta(spec_verify_ct=9), "spec_verify_ct is 9, spec_accept_histogram sums to 4"),
        (meta(completion_tokens=None), "lacks a field of the format: 'completion_tokens'"),
        (meta(completion_tokens=8.0), r"completion_tokens holds 8\.0"),
        ({"choices": [1]}, "must be a JSON object, found int"),
        ({"meta_info": 3}, "must be a JSON object, found int"),
        (meta((0,)), "holds no request with rounds"),
    ],
)
def test_sglang_faults_are_named(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", [row])
    with pytest.raises(TraceError, match=f"bad.jsonl.*{message}"):
        read_sglang(path)


# ---------------------------------------------------------------------- the model of rounds


def test_an_aggregate_becomes_a_model_with_its_tokens_per_round():
    reached = np.array([[1000.0, 740, 540, 410, 310, 230, 170, 130]])
    counts = RoundCounts(reached[:, :-1], reached[:, 1:], np.zeros(1, np.int64), False, "a log")
    made = model_from_rounds("logged", {"chat": {"head": counts}}, **ABOUT)
    assert made.label == "fitted"
    assert made.longest_run == EXTRAPOLATED_PLACES
    assert len(made.processes["chat"]["head"].classes) == 1
    pool = generate_pool(made, entries=300)
    runs, offsets = pool.drafters["head"].run_length, pool.offsets
    # 0.6 % too many in large pools: after a round that was accepted whole, its run may go on.
    assert tokens_per_round(runs, 7, offsets) == pytest.approx(counts.tokens_per_round, rel=0.015)
    assert (runs.reshape(300, -1)[:, 0] >= 3).mean() == pytest.approx(0.41, abs=0.09)
    # Each draft more gives less: a log of seven drafts says nothing special about the seventh.
    gains = np.diff([tokens_per_round(runs, gamma, offsets) for gamma in range(1, 10)])
    assert (gains > 0).all()
    assert (np.diff(gains) < 0.03).all()


def test_requests_of_two_sorts_are_told_apart():
    rng = np.random.default_rng(0)
    rows = []
    for request in range(120):
        accept = 0.9 if request % 3 == 0 else 0.4
        runs = np.minimum(rng.geometric(1 - accept, 60) - 1, 5)
        rows.append(plain(d={"rounds": [[5, int(run)] for run in runs]}))
    tried, accepted = np.zeros((120, 5)), np.zeros((120, 5))
    for i, row in enumerate(rows):
        for _, run in row["drafters"]["d"]["rounds"]:
            tried[i, : min(run + 1, 5)] += 1
            accepted[i, :run] += 1
    counts = RoundCounts(tried, accepted, np.full(120, 150), True, "made up")
    process = fit_rounds(counts)
    assert len(process.classes) == 2
    hard, easy = process.classes
    assert hard.weight == pytest.approx(2 / 3, abs=0.02)
    np.testing.assert_allclose(hard.states[0].accept_fresh, 0.4, atol=0.12)
    np.testing.assert_allclose(easy.states[0].accept_fresh, 0.9, atol=0.03)
    runs, offsets = simulate_like(process, 5, np.full(400, 150), 1)
    means = np.add.reduceat(runs, offsets[:-1]) / 150
    assert means.std() > 0.5  # a single class would have about 0.1
    assert len(fit_rounds(counts, n_classes=1).classes) == 1
    with pytest.raises(TraceError, match="500 classes need"):
        fit_rounds(counts, n_classes=500)


def test_iid_rounds_give_iid_tokens_at_every_gamma():
    reached = 1e6 * 0.7 ** np.arange(11)[None, :]
    process = fit_rounds(RoundCounts(reached[:, :-1], reached[:, 1:], np.zeros(1, np.int64), False, "x"))
    runs, offsets = simulate_like(process, 10, np.full(300, 500))
    for gamma in (1, 3):
        assert tokens_per_round(runs, gamma, offsets) == pytest.approx(
            expected_tokens_iid(0.7, gamma), rel=0.02
        )


def test_models_of_rounds_are_checked():
    one = RoundCounts(np.ones((1, 1)), np.ones((1, 1)), np.ones(1, np.int64), True, "x")
    with pytest.raises(TraceError, match="no counts"):
        model_from_rounds("m", {}, **ABOUT)
    with pytest.raises(TraceError, match=r"kind 'a' has drafters \['d'\], others \['d', 'e'\]"):
        model_from_rounds("m", {"a": {"d": one}, "b": {"e": one}}, **ABOUT)
    with pytest.raises(TraceError, match="not a model"):
        model_from_rounds("m", {"a": {"d": one}}, **{**ABOUT, "date": "today"})
    for tried, accepted in (
        (np.ones((1, 2)), np.ones((1, 1))),
        (np.ones((1, 1)), 2 * np.ones((1, 1))),
        (np.full((1, 1), np.nan), np.zeros((1, 1))),
        (-np.ones((1, 1)), np.zeros((1, 1))),
        (np.zeros((1, 1)), np.zeros((1, 1))),
    ):
        with pytest.raises(TraceError):
            RoundCounts(tried, accepted, np.ones(1, np.int64), True, "x")


# ---------------------------------------------------------------------- whatever comes

BENCH_ROW = {
    "prompt_token_ids": [1, 2],
    "generated_token_ids": [1],
    "acc_eagle": {"acc_len": [3, 2, 1]},
    "acc_ngram": {"acc_len": [1, 1, 4]},
}
HISTOGRAM = {"acceptance_histogram": [1, 0, 1, 1]}
SAMPLES = {
    "plain": (json.dumps(plain()) + "\n" + json.dumps(plain(d={"run_length": [0, 3]})), import_plain),
    "rounds": (json.dumps(plain(d={"rounds": [[4, 2], [4, 4]]})), read_plain_rounds),
    "bench": (json.dumps(BENCH_ROW), lambda p: import_specdecode_bench({"x": p})),
    "log": (log_line() + "\n" + log_line((0.5, 0.2, 0.1)), read_vllm_log),
    "metrics": (metrics_page(1000, (800, 500)), read_vllm_metrics),
    "vllm bench": (json.dumps(bench()), read_vllm_bench),
    "vllm responses": (
        json.dumps(
            {"metrics": {"speculative_decoding": {**HISTOGRAM, "num_draft_tokens": 9, "num_spec_tokens": 3}}}
        ),
        read_vllm_responses,
    ),
    "sglang": (json.dumps({"meta_info": meta()}) + "\n" + json.dumps(meta((1, 1))), read_sglang),
}


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)))
def test_random_corruption_raises_nothing_but_trace_errors(tmp_path_factory, data, name):
    text, reader = SAMPLES[name]
    path = tmp_path_factory.mktemp("corrupt") / "file.jsonl"
    path.write_text(text)
    reader(path)  # sound as it is
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        piece = data.draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [
                        b"NaN",
                        b"-1",
                        b"1e999",
                        b"-0.0",
                        b"null",
                        b"[",
                        b"}",
                        b"99999999999999999999",
                        b"0.5",
                        b"true",
                        b"\n",
                    ]
                ),
                st.text(string.printable, max_size=4).map(str.encode),
            )
        )
        raw[at : at + data.draw(st.integers(0, 12))] = piece
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw))
    try:
        reader(path)
    except TraceError as error:
        assert "file" in str(error)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "kind",
                        "prompt_tokens",
                        "drafters",
                        "d",
                        "rounds",
                        "run_length",
                        "meta_info",
                        "choices",
                        "spec_accept_histogram",
                        "spec_tokens_details",
                        "sglext",
                        "metrics",
                        "speculative_decoding",
                        "acceptance_histogram",
                        "usage",
                        "completion_tokens",
                        "acc_eagle",
                        "acc_len",
                        "card",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_raises_nothing_but_trace_errors(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "file.jsonl"
    path.write_text(json.dumps(value))
    for _, reader in SAMPLES.values():
        with pytest.raises(TraceError, match="file"):
            reader(path)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        for _, reader in SAMPLES.values():
            with pytest.raises(TraceError, match=f"{path.name}: (there is no such file|is not a file)"):
                reader(path)
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b"{\xe9}")
    for _, reader in SAMPLES.values():
        with pytest.raises(TraceError, match=r"latin.jsonl: is not UTF-8 text.*byte 0xe9"):
            reader(file)
