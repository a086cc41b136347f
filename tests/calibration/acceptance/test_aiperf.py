"""Records of AIPerf: the rounds of known requests, or one error that says where and why not."""

import json

import numpy as np
import pytest

from dsd_env.acceptance import TraceError
from dsd_env.calibration.acceptance.rounds import read_aiperf, read_vllm_responses
from tests.acceptance_engines import aiperf_record as record
from tests.acceptance_engines import draw_rounds, tried_of, vllm_response

VARIED = draw_rounds(3, 900, [1, 2, 4, 4], 0.8)


def put(tmp_path, *rows):
    path = tmp_path / "profile_export.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_same_rounds_as_from_the_servers_own_response(tmp_path):
    found = read_aiperf(put(tmp_path, record(VARIED, 4)))
    assert found.tried.sum(axis=0).tolist() == tried_of(VARIED, 4)
    theirs = tmp_path / "responses.jsonl"
    theirs.write_text(json.dumps(vllm_response(VARIED, 4, level="detailed")) + "\n")
    same = read_vllm_responses(theirs)
    np.testing.assert_array_equal(found.tried, same.tried)
    np.testing.assert_array_equal(found.acceptance, same.acceptance)


def test_a_round_says_nothing_of_places_that_it_did_not_try(tmp_path):
    """Two rounds of one draft, both accepted, and one of three: the second place was tried once."""
    found = read_aiperf(put(tmp_path, record([(1, 1), (1, 1), (3, 1)], 3)))
    assert found.tried.tolist() == [[3, 1, 0]]
    assert found.acceptance[:2].tolist() == [1.0, 0.0]


def test_places_not_stated_are_the_most_that_a_round_drafted(tmp_path):
    """As AIPerf writes it of TensorRT-LLM."""
    found = read_aiperf(put(tmp_path, record([(2, 1), (3, 0)], None)))
    assert found.tried.tolist() == [[2, 1, 0]]
    with pytest.raises(TraceError, match=r"line 1: spec_decode_acceptance: num_spec_tokens .* null"):
        read_aiperf(put(tmp_path, record([(3, 1), (3, 0)], None, detailed=False)))


def test_warm_up_failures_and_requests_without_drafts_are_left_out(tmp_path):
    good, warm, bad, cancelled, silent = (
        record([(3, 1), (3, 0)], 3, "warmup" if n == 1 else "profiling") for n in range(5)
    )
    bad["error"] = {"code": 500, "message": "x"}
    cancelled["metadata"]["was_cancelled"] = True
    del silent["spec_decode_acceptance"]
    found = read_aiperf(put(tmp_path, good, warm, bad, cancelled, silent))
    assert len(found.tried) == 1
    assert found.left_out == 4
    assert any("1 request left out: of the warm-up" in note for note in found.notes)
    with pytest.raises(TraceError, match=r"holds no request with rounds \(1 request left out: without"):
        read_aiperf(put(tmp_path, silent))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acceptance_histogram": {"0": 1, "x": 1}}, r"acceptance_histogram has the key 'x', must be 0"),
        ({"acceptance_histogram": {"0": 1, "4": 1}}, r"acceptance_histogram has the key 4, rounds have 3"),
        ({"acceptance_histogram": {"0": 1, "00": 1}}, r"acceptance_histogram gives 0 twice"),
        ({"acceptance_histogram": {"0": 1, "1": -1}}, r"acceptance_histogram\.1"),
        ({"acceptance_histogram": [1, 1]}, r"acceptance_histogram must be a dict"),
        ({"acceptance_histogram": {"0": 2, "1": 1}}, r"num_spec_steps is 2, acceptance_histogram makes 3"),
        ({"num_draft_tokens": 7}, r"num_draft_tokens is 7"),
        ({"num_spec_tokens": 0}, r"num_spec_tokens"),
        ({"mean_acceptance_length": 2.5}, r"mean_acceptance_length"),
        ({"per_step_drafted": [3, "a"]}, r"per_step_drafted"),
        ({"num_spec_tokens": None, "per_step_drafted": 3}, r"per_step_drafted must be a list"),
        ({"completion_tokens": -1}, r"completion_tokens"),
    ],
)
def test_what_cannot_be_names_file_line_and_field(tmp_path, changes, message):
    path = put(tmp_path, record([(3, 1), (3, 0)], 3), record([(3, 1), (3, 0)], 3, **changes))
    with pytest.raises(TraceError, match=rf"{path}, line 2: spec_decode_acceptance: .*{message}"):
        read_aiperf(path)


def test_records_of_another_form(tmp_path):
    with pytest.raises(TraceError, match="line 1: lacks a field of the format: 'metadata'"):
        read_aiperf(put(tmp_path, {"spec_decode_acceptance": {}}))
    with pytest.raises(TraceError, match="line 1: spec_decode_acceptance must be a JSON object, found list"):
        read_aiperf(put(tmp_path, {"metadata": {}, "spec_decode_acceptance": []}))
