"""What an engine adds to its kernels, and how much memory it leaves for KV: by hand, and refused input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsd_env.latency import (
    EngineOverhead,
    LatencyProfile,
    OverheadError,
    list_overheads,
    list_profiles,
    load_overhead,
    load_profile,
    overhead,
    save_overhead,
)
from dsd_env.latency.lookup import latency_profile, profile_overhead, target_overhead
from dsd_env.latency.memory import ENGINE_BYTES, MemoryShortageError, kv_capacity_tokens, sequences_that_fit
from dsd_env.laws import step_times
from dsd_env.scenario import load_scenario
from dsd_env.sim.entities import StepTimer
from tests.latency.test_profile import BASE

GIB = 1024**3


def profile(**changes: Any) -> LatencyProfile:
    """Return a small profile."""
    return LatencyProfile.model_validate({**BASE, **changes})


# ---------------------------------------------------------------------- overhead


def test_shipped_overheads_load_and_name_their_engine() -> None:
    assert "vllm-v1-2025" in list_overheads()
    for name in list_overheads():
        loaded = load_overhead(name)
        assert loaded.engine and loaded.version and loaded.source
        assert loaded.per_iteration_s > 0.0 and loaded.per_token_s > 0.0


def test_kernel_profiles_carry_the_measured_engine_and_whole_iterations_carry_none() -> None:
    shipped = load_overhead("vllm-v1-2025")
    for name in list_profiles():
        loaded = load_profile(name)
        whole = name.endswith(("_splitwise2023", "_vllm")) or loaded.label in ("published", "measured")
        assert loaded.overhead == (None if whole else shipped), name
        # The constant of earlier versions is not counted twice.
        assert not any("0.667 ms" in note for note in loaded.notes)


def test_kernels_and_engine_together_meet_the_cost_model_of_a_real_one() -> None:
    """Step = 5.886 ms + 21.0 us a token + 39.3 ns a KV token + 1.207 ms (arXiv 2601.11580)."""
    timer = StepTimer(
        load_profile("llama-3-8b_h100-sxm_tp1"),
        1000,
        profile_overhead(load_profile("llama-3-8b_h100-sxm_tp1")),
    )
    errors = []
    for batch in (1, 8, 32, 64):
        for q in (1, 4, 6):
            tokens, kv = batch * q, batch * (1024 + q)
            ours = timer.step_s(tokens, kv, 1024 + q if q > 1 else 0)
            ours += timer.overhead_s(batch, tokens, batch if q > 1 else 0)
            errors.append(ours / (7.093e-3 + 21.0e-6 * tokens + 39.3e-9 * batch * 1024) - 1.0)
    assert abs(sum(errors) / len(errors)) < 0.03 and max(abs(error) for error in errors) < 0.1


def test_a_target_takes_the_scenarios_overhead_before_its_profiles() -> None:
    given = {"per_iteration_s": 0.002, "per_sequence_s": 1e-5}
    scenario = load_scenario("heavy_draft", targets__cloud__engine_overhead=given)
    assert target_overhead(scenario.targets["cloud"]) == EngineOverhead(**given)
    named = load_scenario("single_lan", targets__target__engine_overhead="vllm-v1-2025")
    assert target_overhead(named.targets["target"]) == load_overhead("vllm-v1-2025")
    assert target_overhead(load_scenario("single_lan").targets["target"]) == overhead.NO_OVERHEAD
    carried = load_profile("llama-3-70b_h100-sxm_tp4").overhead
    assert target_overhead(load_scenario("heavy_draft").targets["cloud"]) == carried


def test_each_pass_of_a_drafter_takes_what_its_engine_adds() -> None:
    head = load_profile("eagle-llama-3-8b_h100-sxm_tp1")
    assert head.overhead is not None
    timer = StepTimer(head, 10, pass_s=head.overhead.per_draft_pass_s)
    bare = StepTimer(head, 10)
    passes = timer.draft_s(2, 1024, 3, 1, 1024) - bare.draft_s(2, 1024, 3, 1, 1024)
    assert passes == pytest.approx(3 * head.overhead.per_draft_pass_s, rel=1e-9)
    # A round of three drafts of one sequence took 2.135 ms and 2.4 ns a KV token there.
    assert timer.draft_s(2, 1024, 3, 1, 1024) == pytest.approx(2.14e-3, rel=0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"per_iteration_s": 1.2}, ["engine_overhead.per_iteration_s = 1.2", "less than or equal to 0.1"]),
        ({"per_token_s": 0.011}, ["engine_overhead.per_token_s = 0.011", "less than or equal to 0.001"]),
        ({"per_sequence_s": 0.5}, ["engine_overhead.per_sequence_s = 0.5", "less than or equal to 0.01"]),
        (
            {"per_verifying_iteration_s": 1.207},
            ["engine_overhead.per_verifying_iteration_s = 1.207", "less than or equal to 0.1"],
        ),
        (
            {"per_iteration_s": -1e-3},
            ["engine_overhead.per_iteration_s = -0.001", "greater than or equal to 0"],
        ),
        ({"per_iteration_s": "1 ms"}, ["engine_overhead.per_iteration_s = '1 ms'"]),
        ({"per_iteration_ms": 1.2}, ["unknown key", "engine_overhead.per_iteration_ms"]),
        ({"token_limit": 0}, ["engine_overhead.token_limit = 0", "greater than or equal to 1"]),
        ("vllm-v1-2024", ["engine_overhead = 'vllm-v1-2024'", "known: vllm-v1-2025"]),
    ],
)
def test_overheads_in_milliseconds_and_wrong_names_are_refused(given: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_scenario("single_lan", targets__target__engine_overhead=given)
    for word in ("single_lan", "targets.target", *words):
        assert word in str(caught.value)


def test_a_broken_file_of_an_overhead_names_file_key_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "config_dir", lambda: tmp_path)
    (tmp_path / "engines").mkdir()
    save_overhead(EngineOverhead(per_iteration_s=1e-3, engine="mine"), tmp_path / "engines" / "mine.yaml")
    assert load_overhead("mine").per_iteration_s == 1e-3
    (tmp_path / "engines" / "ms.yaml").write_text("per_iteration_s: 1.2\n")
    with pytest.raises(
        OverheadError, match=r"ms\.yaml: per_iteration_s = 1\.2: .*less than or equal to 0\.1"
    ):
        load_overhead("ms")


def test_an_overhead_itself_satisfies_the_law() -> None:
    given = EngineOverhead(per_iteration_s=1e-3, per_token_s=1e-5, token_limit=3)
    assert step_times.overhead_s(given, 1, 10, 1) == pytest.approx(1e-3 + 3e-5)


# ---------------------------------------------------------------------- memory


CARD = {
    "gpu_memory_bytes": 10 * GIB,
    "activation_bytes_per_sequence": GIB // 100,
    "activation_bytes_per_token": 2,
}


def test_kv_has_what_weights_activations_engine_and_drafters_leave() -> None:
    target = profile(parallelism=2, weight_bytes=4 * GIB, kv_bytes_per_token=1000, memory=CARD)
    drafter = profile(name="draft", role="drafter", weight_bytes=GIB, kv_bytes_per_token=200, memory=CARD)
    room = 2 * (0.9 * 10 * GIB - 50 * (GIB // 100) - ENGINE_BYTES) - 4 * GIB
    assert kv_capacity_tokens(target, max_num_seqs=50) == int(room / 1000)
    assert kv_capacity_tokens(target, [drafter], max_num_seqs=50) == int((room - GIB) / 1200)
    # A layer's values are the larger peak from some number of tokens on.
    room = 2 * (0.9 * 10 * GIB - 2 * GIB - ENGINE_BYTES) - 4 * GIB
    assert kv_capacity_tokens(target, max_num_seqs=50, max_num_batched_tokens=GIB) == int(room / 1000)


def test_the_8b_has_the_room_that_a_log_of_its_engine_states() -> None:
    """vLLM's start-up (pull request 10511): 53.29 GiB beside 1.79 GiB counted as no tensor, before graphs."""
    tokens = kv_capacity_tokens(load_profile("llama-3-8b_h100-sxm_tp1"), max_num_seqs=256)
    stated = (53.29 + 1.79) * GIB - ENGINE_BYTES
    assert tokens * 131_072 == pytest.approx(stated, rel=0.01)
    # Weights alone would leave 54,400 tokens on an RTX 4090.
    assert 36_000 < kv_capacity_tokens(load_profile("llama-3-8b_rtx-4090_tp1"), max_num_seqs=256) < 42_000


def test_what_does_not_fit_is_named_with_its_size() -> None:
    target = profile(weight_bytes=6 * GIB, kv_bytes_per_token=1000, memory=CARD)
    drafter = profile(name="draft", role="drafter", weight_bytes=4 * GIB, kv_bytes_per_token=200)
    with pytest.raises(
        MemoryShortageError, match=r"draft \(4\.00 GiB of weights\) does not fit: 1 x 10\.00 GiB"
    ):
        kv_capacity_tokens(target, [drafter], max_num_seqs=1)
    with pytest.raises(MemoryShortageError, match=r"tiny does not fit"):
        kv_capacity_tokens(profile(weight_bytes=20 * GIB, memory=CARD))
    with pytest.raises(ValueError, match="tiny: memory is missing"):
        kv_capacity_tokens(profile())


def test_a_card_holds_as_many_contexts_as_its_memory() -> None:
    card = profile(role="drafter", weight_bytes=GIB, kv_bytes_per_token=GIB // 1024, memory=CARD)
    assert sequences_that_fit(card, 1024) == 8
    assert sequences_that_fit(card, 100 * 1024) == 0
    assert sequences_that_fit(profile(role="drafter"), 1024) is None


def test_profiles_of_several_gpus_say_what_joins_them() -> None:
    for name in list_profiles():
        loaded = load_profile(name)
        if loaded.label == "fitted" and loaded.parallelism > 1:
            assert loaded.interconnect is not None
            assert loaded.interconnect.kind == ("nvlink" if "SXM" in loaded.device else "pcie")
    assert latency_profile("llama-3-70b_l40s_tp4_pcie19") == load_profile("llama-3-70b_l40s_tp4_pcie19")
