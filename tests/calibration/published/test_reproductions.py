"""Papers simulated anew: facts and their sources, set-ups against closed forms, the script and its page."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dsd_env.calibration.published import edge_cloud, one_box
from dsd_env.calibration.published.reproductions import (
    RECALLED,
    Estimate,
    Lab,
    crossing,
    load_papers,
    overview,
    run,
)
from dsd_env.scenario import Scenario, load_scenario
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reproductions.md"


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("reproduce")


@pytest.fixture(scope="module")
def papers() -> Any:
    return load_papers()


class Pretended:
    """Simulates nothing: figures that depend on the set-up, the choice and the seed, and a count."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, scenario: Scenario, scheduler: str, seed: int, engine: str) -> Mapping[str, float]:
        self.runs += 1
        size = sum(map(ord, scheduler + scenario.protocol.kind)) % 97 + seed
        clients = sum(device.count for device in scenario.devices.values())
        return {
            "ms_per_token": 10.0 + 0.1 * clients + 0.01 * size,
            "tokens_per_s": 100.0 * clients + size,
            "e2e_s": 2.0 + 0.01 * size,
            "ttft_s": 0.1,
        }


# ---------------------------------------------------------------- facts


def test_every_paper_has_a_source_and_a_setting(papers: Any, reproduce: Any) -> None:
    assert set(papers) == set(reproduce.REPRODUCTIONS)
    for facts in papers.values():
        assert facts["source"] and facts["setting"] and facts["title"]
        assert 2400.0 < float(facts["arxiv"]) < 2700.0
    ms = papers["amusd"]["ms_per_token"]["HumanEval"]
    assert [round(ms["plain"] / ms[kind], 2) for kind in ("synchronous", "asynchronous")] == [1.24, 1.57]
    rounds = papers["amusd"]["rounds_by_tokens"]
    assert (sum(rounds.values()), sum(k * n for k, n in rounds.items())) == (74, 389)


@pytest.mark.parametrize("name", ["amusd", "dsi", "pearl", "specedge", "distance", "dsd"])
def test_set_ups_are_valid_and_claims_say_where_they_are_from(papers: Any, reproduce: Any, name: str) -> None:
    facts, pretended = papers[name], Pretended()
    claims = reproduce.REPRODUCTIONS[name].claims(Lab(pretended), facts)
    assert pretended.runs > 5
    known = [value for key, value in facts.items() if key.endswith("source")]
    for claim in claims:
        assert claim.what and claim.paper and claim.ours
        if claim.paper != "–":
            assert claim.read == RECALLED or any(source in claim.read for source in known), claim
    recalled = [claim for claim in claims if claim.read == RECALLED]
    assert bool(recalled) == any(key.startswith("recalled") for key in facts)
    assert claims[0].read != RECALLED or name == "dsd"


# ---------------------------------------------------------------- by hand


def test_acceptance_from_tokens_and_from_rounds(papers: Any) -> None:
    assert one_box.tokens_per_round(0.5, 3) == 1.875
    assert one_box.alpha_of(one_box.tokens_per_round(0.83, 5), 5) == pytest.approx(0.83, abs=1e-9)
    # Two rounds of two drafts: one accepted whole, one that lost its first draft.
    assert one_box.alpha_of_rounds({3: 1, 1: 1}, 2) == pytest.approx(2 / 3)
    assert one_box.alpha_of_rounds(papers["amusd"]["rounds_by_tokens"], 5) == pytest.approx(0.952, abs=1e-3)


def test_the_pace_of_copies_of_a_target() -> None:
    # Every draft wrong: a target step a token. Three in four right: three draft steps and a target step for
    # four tokens.
    assert one_box.dsi_bound_ms(30.0, 5.0, 0.0) == 30.0
    assert one_box.dsi_bound_ms(30.0, 5.0, 0.75) == pytest.approx((3 * 5.0 + 30.0) / 4)


def test_where_a_curve_crosses_a_level() -> None:
    assert crossing([1.0, 2.0, 4.0], [0.5, 0.9, 1.1]) == pytest.approx(3.0)
    assert math.isnan(crossing([1.0, 2.0], [1.1, 1.2]))
    assert math.isnan(crossing([1.0, 2.0], [0.8, 0.9]))


def test_estimates() -> None:
    a, b = Estimate((2.0, 4.0)), Estimate((1.0, 2.0))
    assert (a / b).values == (2.0, 2.0)
    assert a.mean == 3.0 and a.error == pytest.approx(1.0)
    assert a.shown(1, "×") == "3.0 ± 1.0×"
    assert Estimate((0.9,)).percent() == "-10.0 %"


# ---------------------------------------------------------------- simulated


def _pace_ms(scenario: Scenario, scheduler: str) -> float:
    return run(load_scenario(scenario, episode__requests=4), scheduler, 1, "reference")["ms_per_token"]


def test_a_box_against_closed_forms(papers: Any) -> None:
    facts = papers["amusd"]
    target, verify_ms = one_box.amusd_steps(facts, 22.1)
    assert verify_ms == pytest.approx(facts["verify_ms"])
    pair: dict[str, Any] = {"target": target, "drafter": {"t0_s": 0.012}}
    rounds = one_box.box("synchronous", acceptance=one_box.iid(0.8), **pair)
    assert _pace_ms(rounds, "cloud_ar") == pytest.approx(22.1, rel=1e-6)
    by_hand = (5 * 12.0 + verify_ms) / one_box.tokens_per_round(0.8, 5)
    assert _pace_ms(rounds, "static:5:1:colocated") == pytest.approx(by_hand, rel=0.05)
    # A stream whose drafts are all right goes at the pace of its drafter.
    stream = one_box.box("streaming", acceptance=one_box.iid(1.0), **pair)
    assert _pace_ms(stream, "static:16:1:colocated") == pytest.approx(12.0, rel=0.01)


def test_dsd_paper_keeps_its_load_at_a_fifth_of_its_size() -> None:
    whole, part = load_scenario("dsd_paper"), edge_cloud.dsd_paper("streaming", tp=1)
    assert part.protocol.kind == "streaming"
    clients = [scenario.devices["site"].count for scenario in (whole, part)]
    targets = [sum(target.count for target in scenario.targets.values()) for scenario in (whole, part)]
    assert clients[0] / targets[0] == clients[1] / targets[1]
    for target in part.targets.values():
        assert target.colocated_drafter is not None
        assert str(target.colocated_drafter.profile).endswith("_tp1")


# ---------------------------------------------------------------- script and page


def test_the_script_lists_and_refuses(reproduce: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    assert "amusd      arXiv 2410.17375" in capsys.readouterr().out
    for arguments in ([], ["amsud"], ["amusd", "--write", "no-such-page.md"]):
        with pytest.raises(SystemExit):
            reproduce.main(arguments)
    assert "no paper amsud" in capsys.readouterr().err


def test_the_script_writes_its_page_and_goes_on(
    reproduce: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended = Pretended()
    monkeypatch.setattr(reproduce, "run", pretended)
    page, file = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text("# P\n\n<!-- begin: amusd -->\nold\n<!-- end: amusd -->\n")
    assert reproduce.main(["amusd", "--json", str(file), "--write", str(page)]) == 0
    assert "1.57×" in page.read_text() and "old" not in page.read_text()
    first = pretended.runs
    assert reproduce.main(["amusd", "--json", str(file), "--write", str(page)]) == 0
    assert pretended.runs == first > 0
    assert set(json.loads(file.read_text())["papers"]) == {"amusd"}
    assert "simulations" in capsys.readouterr().err


def test_the_page_is_that_of_the_set_ups(papers: Any, reproduce: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, each in reproduce.REPRODUCTIONS.items():
        block = text.split(f"<!-- begin: {name} -->")[1].split(f"<!-- end: {name} -->")[0]
        assert papers[name]["title"] in block and "| claim | paper | read in | ours |" in block
        assert each.ours in block and each.why in block, f"{name}: run scripts/reproduce.py anew"
    found = {name: [{"what": "w", "paper": "p", "read": RECALLED, "ours": "o"}] for name in papers}
    lines = overview(reproduce.REPRODUCTIONS.values(), papers, found).splitlines()
    assert all(RECALLED in line for line in lines[2:])
    table = text.split(f"<!-- begin: {reproduce.OVERVIEW} -->")[1].split("<!-- end: ")[0]
    assert table.count("\n| ") + table.count("\n|-") == len(lines)
