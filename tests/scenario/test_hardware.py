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
    drafter = scenario.edge_servers["cabinet"].drafter
    longest = (
        scenario.workload.max_prompt_tokens
        + scenario.workload.max_output_tokens
        + max(scenario.actions.gammas)
    )
    assert drafter.concurrency == sequences_that_fit(load_profile(str(drafter.profile)), longest)
    assert drafter.concurrency > 1
    few = load_scenario("metro", edge_servers__cabinet__drafter__concurrency=3)
    assert few.edge_servers["cabinet"].drafter.concurrency == 3


@pytest.mark.parametrize(
    ("scenario", "change", "words"),
    [
        (
            "heavy_draft",
            {"targets__cloud__profile": "llama-3-70b_h100-sxm_tp2"},
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
