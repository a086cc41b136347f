"""A policy whose window depends on one feature alone: all importance is there, and a tree loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.evaluation import PartialResults
from agents.understanding.arena import objective_of
from agents.understanding.explain import Explanation, Question
from agents.understanding.page import page, summary
from agents.understanding.settings import ExplainError, Settings
from dsd_env.scenario import load_scenario
from tests.agents.understanding.samples import by_residents, crowd, exported, window

pytest.importorskip("numba")
pytest.importorskip("sklearn")

SETTINGS = Settings(
    seeds=2,
    test_seeds=3,
    axes=("request.acceptance_rate", "target.resident"),
    sweep_states=20,
    repeats=2,
    singles=2,
    leaves=(32,),
    passes=1,
    tree_features=("target.resident", "request.is_admission"),
)


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    scenario, folder = crowd(), tmp_path_factory.mktemp("bundle") / "policy"
    exported(by_residents(scenario), scenario, folder)
    return Question("crowd", scenario, f"policy:{folder}", SETTINGS)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("partial") / "partial"


@pytest.fixture(scope="module")
def result(question: Question, file: Path) -> dict[str, Any]:
    return Explanation(question, PartialResults(file)).result()


def test_all_importance_is_where_the_policy_looks(result: dict[str, Any]) -> None:
    groups, features = result["importance"]["groups"], result["importance"]["features"]
    for name, entry in (groups | features).items():
        if name in ("target", "target.resident"):
            assert entry["changed"]["decision"] > 0.2
            assert entry["changed"]["place"] > 0.0, "a window of 0 is plain decoding"
            assert len(set(entry["simulated"]["per_seed"])) == 3
            assert entry["simulated"]["per_seed"] != result["itself"]["per_seed"]
        else:
            assert set(entry["changed"].values()) == {0.0}, name
            if name in groups:
                assert entry["simulated"]["per_seed"] == result["itself"]["per_seed"]
                assert entry["simulated"]["cost"] == 0.0 and entry["simulated"]["ci95"] == [0.0, 0.0]
            else:
                assert "simulated" not in entry, "what changes nothing is not played"
    assert groups["target"]["changed"] == features["target.resident"]["changed"]
    assert groups["target"]["simulated"] == features["target.resident"]["simulated"]
    assert next(iter(features)) == "target.resident"


def test_its_tree_loses_nothing(result: dict[str, Any]) -> None:
    tree = result["trees"][0]
    assert set(tree["features"]) <= {"target.resident", "request.is_admission"}
    assert tree["differs"] == {"decision": 0.0, "gamma": 0.0, "place": 0.0, "gamma_tokens": 0.0}
    assert tree["agreement"] == {"decision": 1.0, "gamma": 1.0, "place": 1.0}
    assert tree["simulated"]["per_seed"] == result["itself"]["per_seed"]
    assert tree["simulated"]["cost"] == 0.0
    for words in (
        "if target.resident <= ",
        " requests:",
        "gamma 8, colocated",
        "plain",
        "request.is_admission",
    ):
        assert words in tree["rules"], words
    cuts = {node["at_most"] for node in tree["nodes"] if node.get("feature") == "target.resident"}
    assert all(any(abs(cut - between) < 0.51 for between in (1.5, 3.5, 5.5)) for cut in cuts)


def test_its_maps_show_the_rule(result: dict[str, Any]) -> None:
    maps = result["maps"]
    middles = maps["upwards"]["middles"]
    assert len(middles) >= 6
    for middle, visited, changed in zip(
        middles, maps["visited"]["gamma_mean"], maps["changed"]["gamma_mean"], strict=True
    ):
        assert set(visited) <= {None, window(middle)}
        assert set(changed) == {window(middle)}
    assert maps["changed_with"]["target.resident"] == [
        "candidate_0.target_resident",
        "candidate_1.target_resident",
    ]


def test_it_is_json_and_can_be_read(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    text = page(result, ["heat_maps.png", "importance.png", "trees.png"])
    assert text.count("![") == 3
    assert "| `target.resident` | " in text and "### " in text and "0.0 %" in text
    assert all(len(line) <= 80 for line in summary(result).splitlines())


def test_nothing_is_played_twice(question: Question, file: Path, result: dict[str, Any]) -> None:
    before = file.read_bytes()
    again = Explanation(question, PartialResults(file)).result()
    assert file.read_bytes() == before
    assert again == result


def test_means_and_a_tree_that_acts(question: Question) -> None:
    """Another way to replace features, a second pass that the tree plays, a tree that is too small."""
    settings = SETTINGS.model_copy(
        update={"replace": "mean", "passes": 2, "leaves": (2,), "singles": 0, "repeats": 1}
    )
    result = Explanation(Question("crowd", question.scenario, question.scheduler, settings)).result()
    tree = result["trees"][0]
    assert tree["leaves"] == 2 and 0.0 < tree["differs"]["decision"] < 1.0
    assert tree["simulated"]["per_seed"] != result["itself"]["per_seed"]
    assert tree["states"] > result["states"]["kept"]
    groups = result["importance"]["groups"]
    assert groups["link"]["simulated"]["cost"] == 0.0
    assert groups["target"]["simulated"]["per_seed"] != result["itself"]["per_seed"]


def test_a_rule_has_maps_and_trees() -> None:
    settings = SETTINGS.model_copy(update={"tree_features": (), "leaves": (4,), "seeds": 1, "test_seeds": 2})
    result = Explanation(Question("crowd", crowd(10), "colocated_sd:4", settings)).result()
    assert result["kind"] == "rule" and "importance" not in result and "changed" not in result["maps"]
    lengths = [each for row in result["maps"]["visited"]["gamma_mean"] for each in row if each is not None]
    assert set(lengths) == {4.0}
    tree = result["trees"][0]
    assert tree["differs"]["decision"] == 0.0 and tree["simulated"]["cost"] == 0.0
    assert "a rule reads the view" in page(result, [])


def test_objectives() -> None:
    scenario = load_scenario("cost")
    assert objective_of("cost", scenario).metrics == ("cloud_usd_per_1m_tokens", "slo_attainment")
    assert objective_of("my.yaml", scenario).metric == "e2e_s_mean"
    assert objective_of("cost", scenario, "goodput_requests_per_s").better == "higher"
    assert objective_of("cost", scenario, "tpot_s_p95").better == "lower"
    assert objective_of("cost", scenario, "itl_s_max").better == "lower"
    with pytest.raises(ValueError, match="neither more nor less of takeovers is better"):
        objective_of("cost", scenario, "takeovers")
    with pytest.raises(ValueError, match="did you mean 'e2e_s_mean'"):
        objective_of("cost", scenario, "e2e_mean")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"axes": ("link.rtt", "target.resident")}, "did you mean 'link.rtt_s'"),
        ({"tree_features": ("targts",)}, "did you mean 'target'"),
    ],
)
def test_wrong_names_are_found_before_anything_runs(question: Question, change, words: str) -> None:
    settings = SETTINGS.model_copy(update=change)
    with pytest.raises(ExplainError) as told:
        Explanation(Question("crowd", question.scenario, question.scheduler, settings))
    assert words in str(told.value)


def test_costs_point_to_the_worse(question: Question) -> None:
    explanation = Explanation(
        Question("crowd", question.scenario, question.scheduler, SETTINGS, metric="goodput_requests_per_s")
    )
    arena = explanation._arena("x")
    rows = [{"goodput_requests_per_s": value} for value in (1.0, 2.0, 3.0)]
    half = [{"goodput_requests_per_s": value / 2.0} for value in (1.0, 2.0, 3.0)]
    cost = arena.cost(half, rows)
    assert cost.cost == pytest.approx(0.5) and np.allclose(cost.ci95, 0.5)
