"""Drafters that may propose fewer tokens than asked for: format, replay, model, figures."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from dsd_env.acceptance import (
    AcceptanceRealisation,
    RunModel,
    TraceError,
    TraceReplay,
    TraceSet,
    drafts_per_round,
    generate_pool,
    load_run_model,
    load_trace_set,
    summary,
)
from dsd_env.calibration.acceptance.importers import import_plain
from dsd_env.calibration.acceptance.runfit import fit_proposed
from tests.acceptance.test_runmodel import LONGEST, group, model, process, renewal
from tests.acceptance_samples import make_trace


def with_proposed(trace: TraceSet, proposed, drafter: str = "look") -> TraceSet:
    values = replace(trace.drafters[drafter], proposed=np.asarray(proposed))
    return replace(trace, drafters={**trace.drafters, drafter: values})


def some_proposed(trace: TraceSet) -> np.ndarray:
    runs = trace.drafters["look"].run_length
    assert runs is not None
    extra = np.random.default_rng(5).integers(0, 4, len(runs))
    return np.minimum(runs + extra, 16).astype(np.uint8)


def test_round_trip(tmp_path):
    trace = make_trace()
    proposed = some_proposed(trace)
    npz, _ = with_proposed(trace, proposed).save(tmp_path)
    loaded = load_trace_set(npz)
    np.testing.assert_array_equal(loaded.drafters["look"].proposed, proposed, strict=True)
    assert loaded.drafters["model"].proposed is None


@pytest.mark.parametrize(
    ("edit", "drafter", "message"),
    [
        (lambda p: p.astype(np.int64), "look", "look/proposed must be one-dimensional uint8"),
        (lambda p: p[1:], "look", "look/proposed has 11 values, 12 expected"),
        (lambda p: np.full_like(p, 17), "look", "look/proposed holds 17, above gamma_max 16"),
        (lambda p: np.zeros_like(p), "look", r"look/proposed is 0 at position \d+, where \d+ are accepted"),
        (lambda p: p, "model", "model/proposed needs model/run_length"),
    ],
)
def test_wrong_proposals_are_named(edit, drafter, message):
    trace = make_trace()
    with pytest.raises(TraceError, match=message):
        with_proposed(trace, edit(some_proposed(trace)), drafter)


def test_replay_gives_the_entrys_proposals_across_seams():
    trace = make_trace()
    proposed = some_proposed(trace)
    source = TraceReplay(with_proposed(trace, proposed))
    for request in range(6):
        entries = source.entries(3, request, 11)
        expected = np.concatenate([proposed[trace.offsets[e] : trace.offsets[e + 1]] for e in entries])[:11]
        run = source.realise(3, request, 11, "look")
        np.testing.assert_array_equal(run.proposed, expected)
        assert (run.run_length <= run.proposed).all()
        for start in range(11):
            assert run.proposed_at(start, 3) == min(3, expected[start])
        assert source.realise(3, request, 11, "model").proposed is None


def test_a_drafter_without_proposals_proposes_what_it_is_asked_for():
    flat = np.zeros(3, np.float32)
    run = AcceptanceRealisation(np.zeros(3, np.int32), flat, flat)
    assert [run.proposed_at(1, gamma) for gamma in (0, 4, 16)] == [0, 4, 16]


def test_drafts_per_round_by_hand():
    # Two entries, γ = 3: rounds at 0 (run 2, 3 drafts) and 3 (0, none); at 0 (run 1, 2) and 2 (0, 3 of 5).
    runs, proposed = [2, 1, 0, 0, 1, 0, 0], [4, 3, 2, 0, 2, 1, 5]
    assert drafts_per_round(runs, proposed, 3, [0, 4, 7]) == (3 + 0 + 2 + 3) / 4
    assert drafts_per_round(runs, [9] * 7, 3, [0, 4, 7]) == 3.0
    assert drafts_per_round(runs, proposed, 0, [0, 4, 7]) == 0.0


def test_summary_has_them_where_they_are_known():
    trace = make_trace()
    proposed = some_proposed(trace)
    found = summary(with_proposed(trace, proposed), "look", (1, 4))
    runs = trace.drafters["look"].run_length
    assert found["drafts_per_round@4"] == drafts_per_round(runs, proposed, 4, trace.offsets)
    assert "drafts_per_round@4" not in summary(trace, "look", (1, 4))


def test_the_plain_format_has_them(tmp_path):
    path = tmp_path / "mine.jsonl"
    columns = '{"run_length": [1, 0], "proposed": [%s]}'
    line = f'{{"kind": "code", "prompt_tokens": 3, "drafters": {{"look": {columns}}}}}'
    path.write_text(line % "4, 0" + "\n")
    proposed = import_plain(path).drafters["look"].proposed
    assert proposed is not None and proposed.tolist() == [4, 0]
    path.write_text(line % "4, -1" + "\n")
    with pytest.raises(TraceError, match=r"line 1: drafters\.look\.proposed .*-1"):
        import_plain(path)
    path.write_text(line % "0, 0" + "\n")
    with pytest.raises(TraceError, match=r"mine\.jsonl: .*look/proposed is 0 at position 0, where 1"):
        import_plain(path)


# ---------------------------------------------------------------------- the model


def law(*, nothing: float) -> list[list[float]]:
    """With nothing accepted, nothing is proposed by that share, and two tokens otherwise; else one more."""
    rows = np.zeros((LONGEST + 1, LONGEST + 1))
    rows[0, 0], rows[0, 2] = nothing, 1.0 - nothing
    for run in range(1, LONGEST + 1):
        rows[run, min(run + 1, LONGEST)] = 1.0
    return rows.tolist()


def look_up_model(proposed) -> RunModel:
    data = model("look-up", chat=process(group(1.0, renewal(0.6)))).model_dump(mode="json")
    data["processes"]["chat"]["head"]["proposed"] = proposed
    return RunModel.model_validate(data)


def test_a_pool_draws_proposals_by_their_law(tmp_path):
    made = look_up_model(law(nothing=0.3))
    pool = generate_pool(made)
    runs, proposed = pool.drafters["head"].run_length, pool.drafters["head"].proposed
    assert runs is not None and proposed is not None
    np.testing.assert_array_equal(proposed[runs > 0], np.minimum(runs[runs > 0] + 1, LONGEST))
    assert set(proposed[runs == 0].tolist()) == {0, 2}
    # 200,000 positions, some 40 % of them without a run: four standard errors.
    n = int((runs == 0).sum())
    assert abs(float((proposed[runs == 0] == 0).mean()) - 0.3) < 4 * (0.21 / n) ** 0.5
    # Runs are those of the same model without proposals, so adding the law changes no acceptance.
    bare = generate_pool(look_up_model(None)).drafters["head"]
    np.testing.assert_array_equal(bare.run_length, runs)
    assert bare.proposed is None
    path = made.save(tmp_path)
    assert load_run_model(path) == made
    assert '"proposed"' not in look_up_model(None).save(tmp_path / "bare").read_text()


@pytest.mark.parametrize(
    ("proposed", "message"),
    [
        (law(nothing=0.3)[1:], "must have longest_run \\+ 1 = 13 rows"),
        ([row[:-1] for row in law(nothing=0.3)], "must have longest_run \\+ 1 = 13 rows"),
        ([law(nothing=0.3)[0]] * (LONGEST + 1), "proposed.1: fewer than 1 proposed, where 1 are accepted"),
        ([[0.5] + [0.0] * LONGEST, *law(nothing=0.3)[1:]], "proposed.0 must sum to 1, sums to 0.5"),
    ],
)
def test_impossible_laws_are_named(proposed, message):
    with pytest.raises(ValidationError, match=message):
        look_up_model(proposed)


def test_fit_finds_the_law_that_made_the_data():
    made = look_up_model(law(nothing=0.3))
    pool = generate_pool(made).drafters["head"]
    assert pool.run_length is not None and pool.proposed is not None
    found = np.array(fit_proposed(pool.run_length, pool.proposed, LONGEST))
    np.testing.assert_allclose(found, law(nothing=0.3), atol=0.02)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-9)
    look_up_model(found.tolist())  # is one
    with pytest.raises(ValueError, match="none below it"):
        fit_proposed(np.array([2]), np.array([1]), LONGEST)
