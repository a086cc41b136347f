"""The simulator held against published figures: the parts that take seconds, and the page that tells all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env.calibration.published import edge, engines
from dsd_env.calibration.published.figures import Check, Figure, load_facts, summary, table
from dsd_env.sim.events import Event, EventKind
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "validation.md"


@pytest.fixture(scope="module")
def facts() -> Any:
    return load_facts()


# ---------------------------------------------------------------- facts and figures


def test_every_fact_has_a_source_and_a_setting(facts: Any) -> None:
    for part in facts.values():
        assert part["source"] and part["setting"]
    assert facts["ucb_specstop"]["cost_ms_per_token"][111][4] == 216.67
    assert facts["pipesd"]["clients"][8]["tok_per_s"] == 35.63
    assert facts["sglang_grid"]["tok_per_s"]["GLM"][5][-1] is None


def test_the_facts_are_those_of_the_shared_tables(facts: Any, data_dir: Path) -> None:
    text = (data_dir / "published" / "ucb_specstop_cost_ms_per_token.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    costs = facts["ucb_specstop"]["cost_ms_per_token"]
    assert [costs[int(delay)][int(k)] for delay, k, _, _ in rows] == [float(row[2]) for row in rows]
    text = (data_dir / "published" / "sglang_autospec_grid.csv").read_text()
    grid = facts["sglang_grid"]
    for model, steps, batch, rate in (line.split(",") for line in text.splitlines()[1:]):
        if steps != "auto":
            found = grid["tok_per_s"][model][int(steps)][grid["batch_sizes"].index(int(batch))]
            assert found == (float(rate) if rate else None)


def test_what_passes_and_what_is_a_miss() -> None:
    assert Figure("a", "ms", 100.0, 104.9, 0.05).passes
    assert not Figure("a", "ms", 100.0, 94.9, 0.05).passes
    assert not Figure("a", "ms", 100.0, float("nan"), 0.05).passes
    assert Figure("regret", "", 0.0, 0.009, 0.01, absolute=True, one_sided=True).passes
    assert not Figure("regret", "", 0.0, 0.011, 0.01, absolute=True, one_sided=True).passes
    check = Check("x", "X", "s", "i", (Figure("a", "ms", 1.0, 2.0, 0.1), Figure("b", "ms", 1.0, 1.0, 0.1)))
    assert not check.passes and [figure.what for figure in check.misses] == ["a"]
    assert "| a | 1 ms | 2 ms | +100.0 % | 10 % | **miss** |" in table(check)
    assert list(summary([check]))[-1] == "| X | 2 | 1 | 0 | a: +100.0 % |"


def test_run_lengths_have_exactly_the_given_shares() -> None:
    runs = edge.run_lengths((0.6, 0.3, 0.1), 1000)
    assert [int((runs >= k).sum()) for k in (0, 1, 2, 3, 4)] == [1000, 600, 300, 100, 0]


def test_acceptance_from_the_share_that_is_accepted() -> None:
    alpha = edge.alpha_of(4.0, (0.8 + 0.8**2 + 0.8**3 + 0.8**4) / 4.0)
    assert alpha == pytest.approx(0.8, abs=1e-9)
    # Windows of 4 and 5, half of each.
    accepted = (sum(0.7**i for i in range(1, 5)) + sum(0.7**i for i in range(1, 6))) / 2
    assert edge.alpha_of(4.5, accepted / 4.5) == pytest.approx(0.7, abs=1e-9)


def test_waits_and_batches_are_read_from_the_event_log() -> None:
    def event(time_s: float, kind: EventKind, request: int, value: float) -> Event:
        return Event(time_s, kind, 0, request, value)

    events = [
        event(1.0, EventKind.ENQUEUE, 1, 7.0),
        event(1.1, EventKind.ENQUEUE, 2, 7.0),
        event(1.2, EventKind.ITERATION_START, -1, 2.0),
        event(1.3, EventKind.ENQUEUE, 3, 1.0),
        event(1.5, EventKind.COMMIT, 1, 4.0),
        event(1.5, EventKind.COMMIT, 2, 1.0),
    ]
    found = edge.verifications(events, 6)
    assert [(job.ended_s, job.batch) for job in found] == [(1.5, 2), (1.5, 2)]
    assert [job.wait_s for job in found] == pytest.approx([0.2, 0.1])


def test_rank_correlation() -> None:
    assert engines.kendall([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == 1.0
    assert engines.kendall([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -1.0
    assert engines.kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(1.0 / 3.0)


def test_the_cost_model_of_a_batch_by_hand() -> None:
    model = {
        "forward_s": 1.0,
        "forward_s_per_token": 0.01,
        "forward_s_per_kv_token": 0.001,
        "draft_s_per_round": 0.5,
        "draft_s_per_token": 0.1,
        "draft_s_per_kv_token": 0.0,
        "overhead_s": 0.2,
    }
    prompt = engines.PROMPT_TOKENS
    # Two sequences: the second is done after its first round, and the first goes on alone.
    found = engines.cost_model_tpot_s(model, [np.array([2, 1]), np.array([3])], 2)
    first = 1.0 + 0.01 * 6 + 0.2 + 0.001 * 2 * (prompt + 1) + 0.5 + 0.1 * 3
    second = 1.0 + 0.01 * 3 + 0.2 + 0.001 * (prompt + 1 + 2) + 0.5 + 0.1 * 3
    assert found == pytest.approx([(first + second) / 3, first / 3])


# ---------------------------------------------------------------- what the simulator makes of it


def test_costs_of_ucb_specstop_at_one_delay(facts: Any, tmp_path: Path) -> None:
    part = facts["ucb_specstop"]
    measured = part["cost_ms_per_token"][111]
    costs = edge.ucb_costs(part, tmp_path, 111, (2, 4, 7), requests=15)
    for k, cost in costs.items():
        assert cost == pytest.approx(measured[k], rel=edge.COST_LIMIT)
        # And exactly what the same figures give without a simulator.
        tokens = 1.0 + sum(part["accepted_at_least"][:k])
        closed = (1e3 * edge.draft_s(part["draft_ms_per_token"], k) + 51.0 + 2 * 111.0) / tokens
        assert cost == pytest.approx(closed, rel=0.02)


def test_four_clients_of_pipesd_on_one_host(facts: Any) -> None:
    part = facts["pipesd"]
    found = edge.clients_figures(part, edge.clients_result(part, 4, edge.STEP_S))
    assert found["tok_per_s"] == pytest.approx(part["clients"][4]["tok_per_s"], rel=edge.CLIENTS_LIMIT)


def test_vanilla_at_ten_megabits(facts: Any) -> None:
    part = facts["pipesd"]
    draft_s, round_s = edge._two_unknowns(part, 80)
    found = edge.bandwidth_cost(part, "vanilla", 10, draft_s, round_s)
    measured = part["bandwidth_ms_per_accepted_token"]["vanilla"][10]
    assert found == pytest.approx(measured, rel=edge.BANDWIDTH_LIMIT)


def test_a_batch_of_vllm(facts: Any) -> None:
    model = facts["vllm_8b_h100"]
    # The coefficients of the model: what is left are the first rounds, in which the batch fills.
    for make, limit in ((engines.law, 1e-3), (engines.profiled, engines.TPOT_LIMIT)):
        found_s, rounds = engines.simulated_rounds(make(model, 8, 3), 8, 3, engines.IID)
        assert len(rounds) == 8
        assert all(committed.sum() == engines.OUTPUT_TOKENS - 1 for committed in rounds)
        wanted_s = float(engines.cost_model_tpot_s(model, rounds, 3).mean())
        assert found_s == pytest.approx(wanted_s, rel=limit)


def test_a_walk_through_recorded_acceptance(tmp_path: Path) -> None:
    path = tmp_path / "combined_any.jsonl"
    rows = [{"acc_eagle": {"acc_len": lengths}} for lengths in ([9, 3, 9, 9, 1, 9], [2, 1, 1], [5])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # With two drafts: 3 and 1 and 3 tokens in three rounds, from the second token on; 1 and 1; none.
    tokens_per_round, requests = engines.recorded_rounds(path, 2)
    assert tokens_per_round == pytest.approx(1.0 / ((3 / 7 + 1.0) / 2))
    assert requests == 2


def test_recorded_acceptance_comes_out_of_the_simulator(facts: Any, data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "accept" / "specdecode_bench" / "combined_gsm8k.jsonl"
    trace = engines.import_specdecode_bench({"any": path}, "recorded", ["eagle"]).save(tmp_path)[0]
    acceptance = {"source": "trace", "trace": str(trace), "drafter": "eagle"}
    model = facts["vllm_8b_h100"]
    found_s, rounds = engines.simulated_rounds(engines.law(model, 64, 3), 64, 3, acceptance)
    assert found_s == pytest.approx(float(engines.cost_model_tpot_s(model, rounds, 3).mean()), rel=1e-3)
    found = sum(int(each.sum()) for each in rounds) / sum(len(each) for each in rounds)
    # Three standard errors of 64 requests.
    assert found == pytest.approx(engines.recorded_rounds(path, 3)[0], rel=0.035)


# ---------------------------------------------------------------- the page


def _rows(text: str, name: str) -> list[str]:
    block = text.split(f"<!-- begin: {name} -->")[1].split(f"<!-- end: {name} -->")[0]
    return [line for line in block.splitlines() if line.startswith("| ") and not line.startswith("| figure")]


@pytest.mark.slow
def test_the_page_says_what_comes_out_today(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import validate_published

    monkeypatch.delenv("DSD_DATA_DIR", raising=False)
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    validate_published.main(["--write", str(page), "--json", str(tmp_path / "all.json")])
    assert page.read_text() == PAGE.read_text()
    assert {check["name"] for check in json.loads((tmp_path / "all.json").read_text())} == set(
        validate_published.CHECKS
    )


def test_the_page_has_every_check_and_hides_no_miss(facts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import validate_published

    text = PAGE.read_text()
    lines = _rows(text, "summary")[1:]
    assert len(lines) == len(validate_published.CHECKS)
    for name in (*validate_published.CHECKS, *validate_published.WITH_DATA):
        assert _rows(text, name), name
    # The source's figures on the page are the facts.
    for delay, costs in facts["ucb_specstop"]["cost_ms_per_token"].items():
        for k, cost in costs.items():
            assert f"| cost at {delay} ms, k = {k} | {cost:.4g} ms/token |" in text
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        block = next(
            part for part in validate_published.CHECKS if f"## {cells[0]}\n\n<!-- begin: {part} " in text
        )
        figures = _rows(text, block)
        missed = [row for row in figures if re.search(r"\*\*(miss|calibrated, and missed)\*\*", row)]
        assert (int(cells[1]), int(cells[2])) == (len(figures), len(figures) - len(missed))
