"""What a scenario leaves to its hardware, and what is refused because it does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from dsd_env.latency import load_profile
from dsd_env.latency.memory import kv_capacity_tokens, sequences_that_fit
from dsd_env.scenario import ScenarioError, load_scenario
from dsd_env.scenario.hardware import with_hardware


def test_a_pool_that_is_left_out_is_what_the_gpus_have_room_for() -> None:
    target = load_scenario("heavy_draft").targets["cloud"]
    drafter = target.colocated_drafter
    assert drafter is not None
    sizes = {
        "max_num_seqs": target.max_num_seqs,
        "max_num_batched_tokens": target.max_num_batched_tokens,
    }
    profiles = load_profile(str(target.profile)), load_profile(str(drafter.profile))
    assert target.kv_capacity_tokens == kv_capacity_tokens(profiles[0], [profiles[1]], **sizes)
    alone = load_scenario("heavy_draft", targets__cloud__colocated_drafter=None)
    assert alone.targets["cloud"].kv_capacity_tokens == kv_capacity_tokens(profiles[0], **sizes)
    auto = load_scenario("heavy_draft", targets__cloud__kv_capacity_tokens="auto")
    assert auto.targets == load_scenario("heavy_draft").targets


def test_a_drafter_on_gpus_of_its_own_takes_nothing_of_the_targets_memory() -> None:
    own = {"mode": "dedicated", "gpus": 1}
    dedicated = load_scenario("heavy_draft", targets__cloud__colocated_drafter=own)
    alone = load_scenario("heavy_draft", targets__cloud__colocated_drafter=None)
    assert dedicated.targets["cloud"].kv_capacity_tokens == alone.targets["cloud"].kv_capacity_tokens


def test_an_edge_server_batches_as_far_as_its_card_can() -> None:
    scenario = load_scenario("metro")
    (drafter,) = scenario.edge_servers["cabinet"].menu
    longest = (
        scenario.workload.max_prompt_tokens
        + scenario.workload.max_output_tokens
        + max(scenario.actions.gammas)
    )
    assert drafter.concurrency == sequences_that_fit(load_profile(str(drafter.profile)), longest)
    assert drafter.concurrency > 1
    few = load_scenario("metro", edge_servers__cabinet__drafter__concurrency=3)
    assert few.edge_servers["cabinet"].menu[0].concurrency == 3
    # A second model lies on the same card; a look-up takes no memory.
    menu = [drafter.model_dump(exclude={"concurrency"}, exclude_defaults=True)] * 2
    menu.append({"kind": "lookup", "model": drafter.model, "lookup": {"cost_per_round_s": 1e-5}})
    both = load_scenario(
        "metro", edge_servers__cabinet__drafter=None, edge_servers__cabinet__drafters=menu
    ).edge_servers["cabinet"]
    profile = load_profile(str(drafter.profile))
    fitting = sequences_that_fit(profile, longest, others=[profile])
    assert [each.concurrency for each in both.menu] == [fitting, fitting, 1]
    assert fitting is not None and 1 <= fitting < drafter.concurrency


def test_every_drafter_on_a_targets_gpus_takes_its_part_of_the_memory() -> None:
    one = load_scenario("heavy_draft").targets["cloud"]
    (drafter,) = one.menu
    again = drafter.model_dump(exclude_defaults=True)
    look = {"kind": "lookup", "model": drafter.model, "lookup": {"cost_per_round_s": 1e-5}}
    places = {"targets__cloud__colocated_drafter": None, "targets__cloud__kv_capacity_tokens": "auto"}
    same = load_scenario("heavy_draft", **places, targets__cloud__colocated_drafters=[look, again])
    assert same.targets["cloud"].kv_capacity_tokens == one.kv_capacity_tokens
    two = load_scenario("heavy_draft", **places, targets__cloud__colocated_drafters=[again, again])
    profiles = load_profile(str(one.profile)), load_profile(str(drafter.profile))
    sizes = {"max_num_seqs": one.max_num_seqs, "max_num_batched_tokens": one.max_num_batched_tokens}
    expected = kv_capacity_tokens(profiles[0], [profiles[1]] * 2, **sizes)
    assert two.targets["cloud"].kv_capacity_tokens == expected < one.kv_capacity_tokens
    with pytest.raises(
        ScenarioError, match=r"colocated_drafters\.0\.profile = .* and .*drafters\.1\.profile"
    ):
        load_scenario(
            "heavy_draft",
            **{**places, "targets__cloud__kv_capacity_tokens": one.kv_capacity_tokens * 3 // 2},
            targets__cloud__colocated_drafters=[again, again],
        )


@pytest.mark.parametrize(
    ("scenario", "change", "words"),
    [
        (
            "heavy_draft",
            {"targets__cloud__gpus": 2, "targets__cloud__profile": "llama-3-70b_h100-sxm_tp2"},
            ["targets.cloud.colocated_drafter.profile = 'llama-3-8b_h100-sxm_tp4'", "14.96 GiB", "leave "],
        ),
        (
            "heavy_draft",
            {"targets__cloud__kv_capacity_tokens": 500_000},
            ["targets.cloud.colocated_drafter.profile = 'llama-3-8b_h100-sxm_tp4'", "1 to 3"],
        ),
        (
            "heavy_draft",
            {"targets__cloud__kv_capacity_tokens": 5_000_000},
            ["targets.cloud.kv_capacity_tokens = 5000000", "1 to 5"],
        ),
        (
            "single_lan",
            {"targets__target__kv_capacity_tokens": "auto"},
            ["targets.target.kv_capacity_tokens = 'auto'", "1 to 1,000,000,000"],
        ),
        (
            "single_lan",
            {"targets__target__kv_capacity_tokens": None},
            ["targets.target.kv_capacity_tokens' is missing"],
        ),
        (
            "metro",
            {
                "edge_servers__cabinet__drafter__concurrency": "auto",
                "edge_servers__cabinet__drafter__profile": {"t0_s": 0.01},
            },
            ["edge_servers.cabinet.drafter.concurrency = 'auto'", "1 to 256"],
        ),
        (
            "metro",
            {"edge_servers__cabinet__drafter__concurrency": None, "workload__max_prompt_tokens": 500_000},
            ["edge_servers.cabinet.drafter.profile = 'llama-3.2-3b-q4_rtx-4090'", "no room for a context of"],
        ),
        (
            "single_lan",
            {"targets__target__front_end_s": 12.0},
            ["targets.target.front_end_s = 12.0", "equal to 1"],
        ),
    ],
)
def test_what_does_not_fit_names_file_key_value_and_range(
    scenario: str, change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(scenario, **change)
    for word in (f"{scenario}.yaml", *words):
        assert word in str(caught.value)


def test_data_that_are_no_scenario_are_left_to_the_schema() -> None:
    for data in ({}, {"targets": 7}, {"targets": {"t": 7}}, {"edge_servers": {"e": {"drafter": "x"}}}):
        assert with_hardware(dict(data)) == data


def test_a_target_has_as_many_gpus_as_its_profile() -> None:
    for gpus in (1, 8):
        with pytest.raises(
            ScenarioError, match=rf"targets.cloud.gpus = {gpus}, but profile .* is of 4; give gpus: 4"
        ):
            load_scenario("metro", targets__cloud__gpus=gpus)
    with pytest.raises(ScenarioError, match=r"gpus = 4, but profile 'llama-3-8b_h100-sxm_tp1' is of 1"):
        load_scenario("metro", targets__cloud__profile="llama-3-8b_h100-sxm_tp1")
