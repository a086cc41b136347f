"""What the comparison with a real engine is made of, without the engine."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from dsd_env import simulate
from dsd_env.acceptance.traceset import load_trace_set
from dsd_env.calibration.engine_bench import compare, prompts, times
from dsd_env.calibration.engine_bench.runs import METRICS, Answer, Question, Round, Run, Step, summarise


def answer(question: int = 0, tokens: int = 5, began: float = 1.0) -> Answer:
    return Answer(
        question,
        0,
        "story",
        asked_s=began,
        first_s=began + 0.5,
        done_s=began + 2.5,
        tokens=list(range(tokens)),
        rounds=[Round(2, 3), Round(0, 1)],
    )


def test_figures_of_answers():
    found = summarise([answer(), answer(1, tokens=3)], 4.0)
    assert list(found) == list(METRICS)
    assert found["ttft_mean_s"] == 0.5
    assert found["e2e_mean_s"] == 2.5
    # Six tokens behind the firsts in four seconds; by request 0.5 and 1 s a token.
    assert found["tpot_mean_s"] == pytest.approx(4.0 / 6.0)
    assert found["tpot_p95_s"] == pytest.approx(0.975)
    assert found["tokens_per_s"] == 2.0
    assert found["accepted_per_round"] == 2.0, "rounds without drafts do not count"


def test_a_run_survives_json():
    run = Run("policy", 1, [answer()], [Step(0.1, 1, 0, 0, 2, 30, 4)], 2.5, {"cut": 0})
    assert Run.from_dict(json.loads(json.dumps(run.as_dict()))) == run


def true_time(step: Step, *, drafter: bool) -> float:
    new = step.new_tokens
    target = 0.03 + max(0.05, 0.006 * new)
    return target + drafter * (0.008 + 0.003 * step.next_length)


def steps(*, drafter: bool) -> list[Step]:
    found = []
    for batch in (1, 2, 4, 8):
        for length in range(5) if drafter else (0,):
            for repeat in range(6):
                step = Step(0.0, batch, 0, 0, batch * length, 100 * batch + repeat, length)
                found.append(step._replace(duration_s=true_time(step, drafter=drafter)))
    return found


def test_step_times_that_are_known_are_found_again():
    found = times.fit(steps(drafter=False), steps(drafter=True))
    assert found.error_median_pct < 1.0
    assert found.error_p95_pct < 5.0
    known = dict(found.knots)
    assert known[1] == pytest.approx(0.08, rel=0.03)
    assert known[40] == pytest.approx(0.27, rel=0.03)
    assert found.drafter_s == pytest.approx(0.008, abs=0.002)
    # Four drafts for eight requests: the sum is what is measured, however its parts are told apart.
    drafts = 4 * (found.draft_t0_s + 8 * found.draft_c_s_per_token) + found.verifying_s
    assert drafts == pytest.approx(0.012, abs=0.004)
    assert all(after > 0.995 * before for before, after in pairwise(known.values())), "but for noise it rises"


def test_times_that_fall_are_believed_of_many_steps_and_too_few_refused():
    falling = [Step(0.09 if m == 1 else 0.07, m, 0, 0, 0, 10, 0) for m in (1, 4) for _ in range(5)]
    rising = [Step(0.2, 40, 0, 0, 0, 10, 0)] * 5
    knots = dict(times.fit([*falling, *rising], []).knots)
    assert knots[1] == knots[4] == pytest.approx(0.08, rel=0.05)
    knots = dict(times.fit([*falling * 2, *rising], []).knots)
    assert [knots[1], knots[4]] == pytest.approx([0.09, 0.07], rel=0.05)
    # The last two never fall: a profile goes on with their slope.
    last = dict(times.fit([*falling * 2, *[Step(0.05, 40, 0, 0, 0, 10, 0)] * 20], []).knots)
    assert last[4] == last[40] == pytest.approx(0.057, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        times.fit(falling[:4], [])


def test_the_table_of_step_times_leaves_mixed_steps_out():
    known = [Step(0.1, 2, 0, 0, 4, 10, 2), Step(0.3, 2, 0, 0, 4, 10, 2), Step(0.2, 2, 0, 0, 4, 10, 2)]
    mixed = [Step(9.0, 2, 1, 7, 4, 10, 2), Step(9.0, 2, 0, 0, 3, 10, 2), Step(9.0, 2, 0, 0, 4, 10, 0)]
    assert times.table([*known, *mixed]) == {(2, 2): (0.2, 3)}


QUESTIONS = [Question("story", (1,) * 20, 40), Question("chat", (1,) * 30, 24)] * 4


def world(tmp_path, clients=4, drafter=True):
    fitted = times.fit(steps(drafter=False), steps(drafter=True))
    path = tmp_path / "target.yaml"
    fitted.write_target(path, model="a target", precision="float32", date="2026-01-01")
    acceptance = {"source": "iid", "alpha": 0.6}
    return fitted, compare.describe(fitted, path, acceptance, QUESTIONS, clients=clients, drafter=drafter)


def test_a_simulated_run_takes_the_measured_times(tmp_path):
    fitted, scenario = world(tmp_path, clients=1, drafter=False)
    quiet = compare.describe(
        fitted,
        tmp_path / "target.yaml",
        {"source": "iid", "alpha": 0.6},
        QUESTIONS,
        clients=1,
        drafter=False,
        noise=False,
    )
    found = compare.simulated(quiet, "cloud_ar", seeds=2)
    assert found["tpot_mean_s"] == pytest.approx(0.08, rel=0.03)
    assert found["tokens_per_s"] < 1 / 0.08
    assert math.isnan(found["accepted_per_round"])
    requests = simulate(scenario, "cloud_ar", seed=3).requests
    assert len(requests["e2e_s"]) == len(QUESTIONS)
    assert set(np.asarray(requests["output_tokens"]).tolist()) <= {40, 24}


def test_lengths_by_batch_size(tmp_path):
    _, scenario = world(tmp_path, clients=1)
    alone = simulate(scenario, compare.ByBatch([(1, 1, 4), (2, 8, 0)]), seed=0).requests
    assert alone["drafted_tokens"].sum() > 0
    static = simulate(scenario, "colocated_sd:4", seed=0).requests
    assert alone["e2e_s"].tolist() == static["e2e_s"].tolist()
    _, busy = world(tmp_path, clients=8)
    plain = simulate(busy, "cloud_ar", seed=0).requests["e2e_s"].tolist()
    assert simulate(busy, compare.ByBatch([(1, 8, 0)]), seed=0).requests["e2e_s"].tolist() == plain


def test_rows_and_ranking():
    measured = {name: 2.0 for name in METRICS} | {"accepted_per_round": math.nan}
    rows = compare.rows_of("plain, 1 clients", measured, {name: 2.1 for name in METRICS})
    assert [row["metric"] for row in rows] == [name for name in METRICS if name != "accepted_per_round"]
    assert all(row["error_pct"] == pytest.approx(5.0) for row in rows)
    rows += compare.rows_of("policy, 1 clients", {name: 1.0 for name in METRICS}, dict.fromkeys(METRICS, 3.0))
    settings = ["plain, 1 clients", "policy, 1 clients"]
    assert compare.ranking(rows, settings, "e2e_mean_s", "measured") == settings[::-1]
    assert compare.ranking(rows, settings, "e2e_mean_s", "simulated") == settings


def test_acceptance_is_that_of_the_engines_own_records(tmp_path):
    own = {"per_step_drafted": [4] * 6, "per_step_accepted": [0, 2, 4, 3, 1, 0]}
    run = Run("static 4", 1, [answer(0), answer(1)], [], 1.0, {"own_records": {"0": own, "1": own}})
    path = compare.acceptance_model(
        [run], tmp_path, "pair", target="a", draft="b", date="2026-01-01", command="a test"
    )
    card = json.loads(path.read_text())["card"]
    # Accepted drafts and one more: (0 + 2 + 4 + 3 + 1 + 0 + 6) / 6.
    assert card["fits"]["story"]["draft"]["tokens_per_round"] == pytest.approx(2.6667, abs=1e-4)
    _, scenario = world(tmp_path)
    described = scenario.model_dump()
    described["acceptance"] = {"draft": {"source": "fitted", "model": str(path), "drafter": "draft"}}
    for kind in described["workload"]["kinds"].values():
        kind["acceptance_kinds"] = ["story"]
    found = compare.simulated(compare.load_scenario(described), "colocated_sd:4", seeds=6)
    assert found["accepted_per_round"] == pytest.approx(1.6667, abs=0.25)


def test_every_client_gets_both_kinds_of_question():
    asked = prompts.questions(lambda text: [1], lambda text: [2, 3], 24)
    for clients in (1, 4, 8):
        for client in range(clients):
            assert {question.kind for question in asked[client::clients]} == set(prompts.KINDS)
    assert [question.output_tokens for question in asked[:3]] == [48, 48, 32]


def spoken(rounds: list[Round], tokens: int = 9) -> Run:
    one = Answer(0, 0, "story", 0.0, 1.0, 2.0, list(range(tokens)), rounds)
    return Run("static", 1, [one], [], 2.0, {})


def test_rounds_of_several_lengths_make_a_recording(tmp_path):
    # Right at places 1, 2, 4, 5, 7, 8; wrong at 3 and 6; the prefill gave place 0.
    by_two = spoken([Round(2, 3), Round(2, 3), Round(2, 2)])
    by_four = spoken([Round(4, 3), Round(4, 3), Round(4, 2)])
    alone = compare.right_tokens(by_two.answers)
    assert alone == [None, True, True, None, True, True, None, True, None]
    both = compare.right_tokens([*by_two.answers, *by_four.answers])
    assert both == [None, True, True, False, True, True, False, True, None]
    path, unknown = compare.acceptance_trace([by_two, by_four], tmp_path, "pair")
    assert unknown == 1 / 8
    recorded = load_trace_set(path)
    # Mostly right, so the last place, of which no round tells, is taken to be right.
    assert recorded.drafters["draft"].run_length.tolist()[1:] == [2, 1, 0, 2, 1, 0, 2, 1]
    other = spoken([Round(4, 1)] * 8)
    other.answers[0].tokens[3] = 99
    again, _ = compare.acceptance_trace([by_two, by_four, other], tmp_path, "again")
    assert load_trace_set(again).drafters["draft"].run_length.tolist()[1:] == [2, 1, 0, 2, 1, 0, 2, 1]
