"""Scenarios: loading, inheritance, and errors that name file, key, value and range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dsd_env import Scenario, ScenarioError, list_scenarios, load_scenario, simulate
from dsd_env.latency import load_profile, save_profile
from tests.lab import lab

SHIPPED = list_scenarios()


def variant(tmp_path: Path, change: dict[str, Any] | str, name: str = "variant.yaml") -> Path:
    path = tmp_path / name
    text = change if isinstance(change, str) else yaml.safe_dump({"extends": "single_lan", **change})
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_loads_and_says_what_it_is(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert "not measured" not in scenario.card.utilisation
    assert load_scenario(scenario.model_dump(mode="json")) == scenario


def test_the_first_five_are_there() -> None:
    assert {"single_lan", "metro", "heavy_draft", "wan", "overload"} <= set(SHIPPED)


def test_variants_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    path = variant(tmp_path, {"name": "far", "links": {"lan": {"one_way_s": 0.1}}})
    far, near = load_scenario(path), load_scenario("single_lan")
    assert far.links["lan"].one_way_s == 0.1
    assert far.links["lan"].uplink_bits_per_s == near.links["lan"].uplink_bits_per_s
    assert far.devices == near.devices


def test_a_changed_kind_replaces_the_whole_mapping(tmp_path: Path) -> None:
    change = {"workload": {"arrivals": {"kind": "poisson", "rate_per_s": 2.0}}}
    assert load_scenario(variant(tmp_path, change)).workload.arrivals.kind == "poisson"


def test_null_removes_an_optional_part(tmp_path: Path) -> None:
    change = {"targets": {"target": {"colocated_drafter": None}}}
    assert load_scenario(variant(tmp_path, change)).targets["target"].colocated_drafter is None


def test_overrides_by_dotted_key() -> None:
    assert load_scenario("single_lan", episode__requests=7).episode.requests == 7
    with pytest.raises(ScenarioError, match=r"episode\.requests = 0"):
        load_scenario("single_lan", episode__requests=0)


def test_null_for_a_key_that_no_scenario_has_is_refused() -> None:
    for key in ("actions__nonsense", "nonsense", "episode__requests__of"):
        with pytest.raises(ScenarioError, match=key.split("__")[-1]):
            load_scenario("single_lan", **{key: None})
    # One that this scenario merely leaves out may be taken away.
    assert load_scenario("single_lan", episode__window_s=None) == load_scenario("single_lan")


def test_thresholds_that_end_no_draft_are_refused() -> None:
    some = load_scenario("single_lan", actions__gammas=(0, 3), actions__stop_thresholds=(0.5,))
    assert some.actions.stop_thresholds == (0.5,)
    for gammas in ((0,), (0, 1, 2)):
        with pytest.raises(ScenarioError, match=r"doubt ends none before 2 tokens"):
            load_scenario("single_lan", actions__gammas=gammas, actions__stop_thresholds=(0.5,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": {"gamma": 4}}, ["unknown key 'protocol.gamma'"]),
        ({"links": {"lan": {"one_way_s": -1}}}, ["links.lan.one_way_s = -1", "greater than or equal to 0"]),
        ({"links": {"lan": {"uplink_bits_per_s": 0}}}, ["links.lan.uplink_bits_per_s = 0", "greater than 0"]),
        (
            {"acceptance": {"draft": {"source": "iid", "alpha": 1.5}}},
            ["alpha = 1.5", "less than or equal to 1"],
        ),
        ({"acceptance": {"draft": {"source": "magic"}}}, ["source", "magic"]),
        ({"devices": {"workstation": {"link": "lte"}}}, ["devices.workstation.link = 'lte'", "['lan']"]),
        ({"devices": {"workstation": {"count": 0}}}, ["devices.workstation.count = 0"]),
        ({"workload": {"kinds": {"question": {"slo": "gold"}}}}, ["workload.kinds.question.slo = 'gold'"]),
        ({"actions": {"gammas": [1, 2]}}, ["gammas", "must begin with 0"]),
        ({"actions": {"gammas": [0, 2, 2]}}, ["strictly increasing"]),
        ({"targets": {"target": {"kv_capacity_tokens": 100}}}, ["kv_capacity_tokens = 100", "at least"]),
        ({"targets": {"target": {"initial_batch_size": 99}}}, ["initial_batch_size = 99", "leave it out"]),
        ({"targets": {"target": {"max_batch_size": 9}}}, ["max_batch_size = 9", "use max_num_seqs"]),
        ({"targets": {"target": {"max_num_seqs": 0}}}, ["max_num_seqs", "0"]),
        (
            {"targets": {"target": {"max_num_batched_tokens": 16}}, "actions": {"gammas": [0, 20]}},
            ["max_num_batched_tokens = 16", "at least 21"],
        ),
        ({"actions": {"batch_sizes": [2, 4]}}, ["batch_sizes (2, 4)", "begin with 1"]),
        ({"slo": {"interactive": {"ttft_s": float("nan")}}}, ["slo.interactive.ttft_s"]),
        ({"devices": {"workstation": {"power": {"idle_w": 9, "busy_w": 1}}}}, ["busy_w (1.0)"]),
        ({"workload": {"load": {"points": [[0.5, 1.0]]}}}, ["must start at 0"]),
    ],
)
def test_errors_name_file_key_value_and_range(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    path = variant(tmp_path, change)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not readable as YAML"),
        ("- a\n- b", "a scenario is a mapping"),
        ("name: a\nname: b", "duplicate key 'name'"),
        ("extends: 7", "extends = 7"),
        ("extends: nowhere", "unknown scenario 'nowhere'"),
        ("extends: variant.yaml", "goes deeper"),
        ("x: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("? [a, b]\n: c", "a key must be a plain word"),
    ],
)
def test_hostile_and_broken_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words.replace("[", r"\[")):
        load_scenario(variant(tmp_path, text))


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ScenarioError, match="metro"):
        load_scenario("metropolis")
    with pytest.raises(ScenarioError, match="does not exist"):
        load_scenario("no/such/file.yaml")


def test_scenarios_are_frozen() -> None:
    scenario: Scenario = lab()
    with pytest.raises(ValueError, match="frozen"):
        scenario.name = "other"  # type: ignore[misc]


def test_probabilities_on_the_wire_cost_bytes() -> None:
    none = lab(protocol__bytes_per_token=4).protocol
    scalar = lab(protocol__bytes_per_token=4, protocol__draft_probabilities="scalar").protocol
    top_k = lab(
        protocol__bytes_per_token=4, protocol__draft_probabilities="top_k", protocol__top_k=8
    ).protocol
    assert (none.bytes_per_draft_token, scalar.bytes_per_draft_token, top_k.bytes_per_draft_token) == (
        4,
        6,
        52,
    )


def test_changing_the_protocol_keeps_its_other_keys() -> None:
    scenario = lab(protocol__patience_s=0.3)
    pipelined = load_scenario(scenario, protocol__kind="pipelined")
    assert pipelined.protocol == scenario.protocol.model_copy(update={"kind": "pipelined"})


def test_a_mapping_extends_a_scenario_like_a_file() -> None:
    scenario = load_scenario({"extends": "metro", "name": "mine", "episode": {"requests": 7}})
    assert scenario == load_scenario("metro", name="mine", episode__requests=7)
    with pytest.raises(ScenarioError, match="<mapping>: extends: unknown scenario 'nowhere'"):
        load_scenario({"extends": "nowhere"})


def test_an_error_in_an_override_says_that_it_was_overridden() -> None:
    with pytest.raises(
        ScenarioError, match=r"metro\.yaml with episode__requests overridden: .*requests = -1"
    ):
        load_scenario("metro", episode__requests=-1)


def test_a_profile_may_be_the_path_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = load_profile("llama-3-8b_a100-sxm_tp1").model_copy(update={"name": "own"})
    save_profile(own, tmp_path / "own.yaml")
    monkeypatch.chdir(tmp_path)
    named = simulate(
        load_scenario("single_lan", targets__target__profile="llama-3-8b_a100-sxm_tp1"), "cloud_ar"
    )
    for path in (str(tmp_path / "own.yaml"), "own.yaml"):
        scenario = load_scenario("single_lan", targets__target__profile=path)
        assert simulate(scenario, "cloud_ar").metrics == named.metrics


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("no/such/file", "targets.target.profile = 'no/such/file': String should match pattern"),
        ({"t0_s": 0.0}, "targets.target.profile: t0_s + w_s must be > 0"),
        ({"t0": 0.1}, "unknown key 'targets.target.profile.t0'"),
    ],
)
def test_errors_in_profiles_name_the_key_alone(profile: Any, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario("single_lan", targets__target__profile=profile)
    assert words in str(caught.value)
    assert "<" not in str(caught.value).replace("<mapping>", "")


LOOKUP = {"cost_per_round_s": 1e-5}
MODEL = {"model": "draft", "profile": {"t0_s": 0.01}}
LOOKING = {"kind": "lookup", "model": "draft", "profile": None, "lookup": LOOKUP}
"""Mappings are merged into the laboratory's, so that null takes its profile away."""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("devices__client__drafter", {**MODEL, "kind": "head"}, r"devices\.client\.drafter.*kind = 'head'"),
        (
            "devices__client__drafter",
            {**LOOKING, "profile": {"t0_s": 0.01}},
            r"devices\.client\.drafter.*profile = .*0\.01.*of kind 'lookup'",
        ),
        ("devices__client__drafter", {**MODEL, "lookup": LOOKUP}, r"lookup = .*1e-05.*of kind 'model'"),
        ("devices__client__drafter", {"profile": None}, "of kind 'model' needs profile"),
        ("devices__client__drafter", {"kind": "lookup", "model": "draft"}, "kind = 'lookup' needs lookup"),
        (
            "devices__client__drafter",
            {**LOOKING, "lookup": {**LOOKUP, "share_of_verify": 0.1}},
            r"lookup\.share_of_verify = 0\.1 has a meaning only at a target",
        ),
        (
            "devices__client__drafter",
            {**LOOKING, "lookup": {"cost_per_round_s": -1}},
            "cost_per_round_s = -1",
        ),
        (
            "devices__client__drafter",
            {**LOOKING, "draft_noise_sigma": 0.1},
            r"draft_noise_sigma = 0\.1 has no meaning for a look-up",
        ),
        ("devices__client__drafter", {**MODEL, "draft_noise_sigma": 1.5}, "draft_noise_sigma = 1.5"),
        ("devices__client__drafters", [MODEL], r"drafter and drafters \(with 1\) are both given"),
        ("targets__target__colocated_drafters", [LOOKING], "colocated_drafters .* are both given"),
        (
            "targets__target__colocated_drafter",
            {**LOOKING, "mode": "dedicated", "gpus": 1},
            "mode = 'dedicated' needs kind 'model', not 'lookup'",
        ),
        (
            "targets__target__colocated_drafter",
            {**MODEL, "kind": "head", "mode": "dedicated", "gpus": 1},
            "mode = 'dedicated' needs kind 'model', not 'head'",
        ),
    ],
)
def test_impossible_drafters_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        lab(**{key: value})


def test_a_site_has_at_most_four_drafters_and_an_edge_server_at_least_one() -> None:
    with pytest.raises(ScenarioError, match=r"devices\.client\.drafters.*4"):
        lab(devices__client__drafter=None, devices__client__drafters=[MODEL] * 5)
    edge = {"backhaul": "wire", "power": {"idle_w": 0, "busy_w": 0}}
    with pytest.raises(ScenarioError, match=r"edge_servers\.edge.*needs a drafter"):
        lab(edge_servers={"edge": edge})
    with pytest.raises(ScenarioError, match=r"edge_servers\.edge\.drafters\.1\.model = 'nobody'"):
        lab(edge_servers={"edge": {**edge, "drafters": [MODEL, {**LOOKING, "model": "nobody"}]}})
