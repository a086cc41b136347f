"""Both engines are one simulation: event for event, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

import dsd_env
from dsd_env.control import Decision, DecisionView
from dsd_env.laws import step_times
from dsd_env.scenario import load_scenario
from dsd_env.sim.compiled import CompiledSimulation, EngineError, compile_scenario
from dsd_env.sim.fuzz import compare_engines
from tests.engines import assert_engines_agree, small_scenario
from tests.lab import lab
from tests.scenarios import tiny

_CONSTANT_ARRIVALS = {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.25}}
_NOISE_FREE = {"iteration_noise_sigma": 0.0}
_DEDICATED = {
    "model": "draft",
    "profile": {"t0_s": 0.003, "c_s_per_token": 1e-5, "k_bw_s_per_token": 1e-8},
    "mode": "dedicated",
    "gpus": 1,
    "concurrency": 2,
    "power": {"idle_w": 20.0, "busy_w": 90.0},
}
_SHARED = {
    "model": "draft",
    "profile": {"t0_s": 0.002, "c_s_per_token": 1e-5, "k_bw_s_per_token": 1e-8, "k_lat_s_per_token": 1e-9},
}


def _fault(kind: str, of: str) -> st.SearchStrategy[dict[str, Any] | None]:
    """Return nothing, random faults, or faults at fixed times that meet, overlap or last no time."""
    often = {"mean_interval_s": 0.6, "duration_s": {"distribution": "exponential", "mean": 0.2}}
    fixed = {"at_s": (0.0, 0.5, 1.0), "duration_s": {"distribution": "constant", "value": 0.5}}
    brief = {"at_s": (0.75,), "duration_s": {"distribution": "constant", "value": 0.0}}
    law = {"distribution": "lognormal", "median": 0.3, "sigma": 1.0}
    rare = {"mean_interval_s": 3.0, "duration_s": law}
    return st.one_of(
        st.none(),
        st.sampled_from([{"kind": kind, "of": of, **times} for times in (often, fixed, brief, rare)]),
    )


FAULTS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "target": _fault("target_crash", "big"),
            "again": _fault("target_crash", "big"),
            "other_target": _fault("target_crash", "small"),
            "edge": _fault("edge_crash", "box"),
            "phone": _fault("device_crash", "phone"),
            "workstation": _fault("device_crash", "workstation"),
            "phone_link": _fault("link_outage", "phone"),
            "link": _fault("bandwidth_collapse", "workstation"),
            "backhaul": _fault("link_outage", "box"),
        }
    ),
)
LINKS = st.fixed_dictionaries(
    {},
    optional={
        "bandwidth": st.sampled_from(
            [
                {"period_s": 0.1, "fast": {"sigma": 1.0, "correlation_s": 0.3}},
                {
                    "period_s": 0.05,
                    "fast": {"sigma": 0.5, "correlation_s": 0.1},
                    "slow": {"sigma": 1.0, "correlation_s": 2.0},
                    "quantiles": [0.01, 0.05, 0.4, 0.8, 1.4, 2.0, 4.0],
                },
            ]
        ),
        "delay": st.sampled_from(
            [
                {"median_s": 0.01, "sigma": 1.0, "correlation_s": 0.5, "period_s": 0.02},
                {
                    "quantiles_s": [0.001, 0.002, 0.004, 0.008, 0.015, 0.05, 0.08],
                    "sigma": 0.6,
                    "correlation_s": 0.05,
                    "slow": {"sigma": 0.8, "correlation_s": 3.0},
                    "both_ways": True,
                },
            ]
        ),
        "outages": st.sampled_from([{"mean_up_s": 0.5, "mean_down_s": 0.1}]),
    },
)
CHOICES = st.fixed_dictionaries(
    {
        "arrivals": st.sampled_from(
            [
                _CONSTANT_ARRIVALS,
                {"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 0.3}},
                {
                    "kind": "closed_loop",
                    "think_s": {"distribution": "lognormal", "median": 0.5, "sigma": 0.5},
                },
                {"kind": "poisson", "rate_per_s": 5.0},
                {"kind": "poisson", "rate_per_s": 30.0},
                {"kind": "renewal", "rate_per_s": 10.0, "cv": 3.0, "client_rate_cv": 1.5},
                {
                    "kind": "renewal",
                    "rate_per_s": 10.0,
                    "cv": 0.5,
                    "per_client": True,
                    "bursty": {"fraction": 0.5, "cv": 6.0},
                    "modulation": {"sigma": 1.0, "correlation_s": 2.0, "period_s": 0.25},
                },
            ]
        ),
        "load": st.sampled_from(
            [{}, {"period_s": 3.0, "points": [[0.0, 0.5], [0.4, 2.0], [0.7, 2.0]], "random_phase": True}]
        ),
        "lengths": st.sampled_from(
            [
                {},
                {"output_tokens": {"distribution": "constant", "value": 1}},
                {"output_tokens": {"distribution": "geometric", "mean": 4}},
                {
                    "prompt_tokens": {"distribution": "lognormal", "median": 60, "sigma": 1.0},
                    "output_tokens": {
                        "distribution": "quantiles",
                        "levels": [0.05, 0.5, 0.95],
                        "values": [1, 8, 40],
                    },
                    "length_correlation": -0.5,
                },
                {
                    "prompt_tokens": {"distribution": "constant", "value": 300},
                    "output_tokens": {"distribution": "constant", "value": 24},
                },
            ]
        ),
        "acceptance": st.sampled_from(
            [
                {"source": "iid", "alpha": 0.0},
                {"source": "iid", "alpha": 0.7},
                {"source": "iid", "alpha": 1.0},
                {"source": "markov", "after_match": 0.9, "after_mismatch": 0.3},
                {"source": "markov", "after_match": 0.2, "after_mismatch": 0.9},
                {
                    "source": "trace",
                    "trace": "qwen2.5-coder-1.5b_smollm2-135m_greedy",
                    "drafter": "smollm2-135m",
                },
            ]
        ),
        "protocol": st.fixed_dictionaries(
            {
                "confidence_stop": st.sampled_from([0.0, 0.5]),
                "token_acks": st.booleans(),
                "decision_latency_s": st.sampled_from([0.0, 0.003]),
                "plain_chunk_tokens": st.sampled_from([1, 3, 8]),
                "telemetry_period_s": st.sampled_from([0.01, 0.05, 0.5]),
                "draft_probabilities": st.sampled_from(["none", "top_k"]),
                "kind": st.sampled_from(["synchronous", "pipelined"]),
                "patience_s": st.sampled_from([None, 0.02, 0.1]),
                "client_timeout_s": st.sampled_from([None, 0.03, 0.1]),
                "crash_detection_s": st.sampled_from([0.02, 0.5]),
            }
        ),
        "faults": FAULTS,
        "actions": st.fixed_dictionaries(
            {
                "gammas": st.sampled_from([(0, 1, 2, 4), (0,), (0, 8)]),
                "batch_sizes": st.sampled_from([(1, 2, 4, 16), (1,)]),
                "targets_offered": st.sampled_from([1, 2]),
            }
        ),
        "big": st.fixed_dictionaries(
            {
                "colocated_drafter": st.sampled_from([None, _SHARED, _DEDICATED]),
                "order": st.sampled_from(["decode_first", "prefill_first"]),
                "within_class": st.sampled_from(["fifo", "shortest_first"]),
                "kv_capacity_tokens": st.sampled_from([1300, 4000, 50000]),
                "kv_policy": st.sampled_from(["reserve", "preempt"]),
                "graph_batch_tokens": st.sampled_from([(), (1, 2, 4, 8, 16, 32), (3, 40)]),
                "max_batch_wait_s": st.sampled_from([0.0, 0.004, 0.1]),
                "max_num_seqs": st.sampled_from([3, 64]),
                "keep_alive_s": st.sampled_from([0.0, 0.05, 2.0]),
                "max_admission_wait_s": st.sampled_from([0.0, 0.2, 2.0]),
                "prefix_cache": st.booleans(),
                "max_num_batched_tokens": st.sampled_from([32, 256]),
                "iteration_noise_sigma": st.sampled_from([0.0, 0.2]),
                "straggler_share": st.sampled_from([0.0, 0.1]),
                "straggler_factor": st.sampled_from([1.0, 3.0]),
                "profile": st.sampled_from(
                    [
                        {"t0_s": 0.02},
                        {
                            "t0_s": 0.005,
                            "w_s": 0.01,
                            "c_s_per_token": 2e-4,
                            "p": 2.0,
                            "k_bw_s_per_token": 1e-7,
                            "k_multi_s_per_token": 1e-7,
                            "k_lat_s_per_token": 1e-6,
                        },
                    ]
                ),
            }
        ),
        "small": st.sampled_from([{}, {"colocated_drafter": _SHARED}, {"colocated_drafter": _DEDICATED}]),
        "two_targets": st.booleans(),
        "edge": st.booleans(),
        "perfect_links": st.booleans(),
        "link": LINKS,
        "equal_devices": st.booleans(),
        "warmup": st.sampled_from([0, 3]),
        "total": st.sampled_from([None, 4, 9]),
        "horizon_s": st.sampled_from([1.5, 1000.0]),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choices=CHOICES, seed=st.integers(0, 2**62), price_delays=st.booleans())
def test_random_scenarios(choices: dict[str, Any], seed: int, price_delays: bool) -> None:
    assert_engines_agree(small_scenario(choices), "indices", seed, price_delays=price_delays, decisions=600)


@pytest.mark.parametrize("name", dsd_env.list_scenarios())
@pytest.mark.parametrize(
    ("scheduler", "decisions"), [("indices", 1500), ("jsq_goodput", 600), ("edge_sd:4", 1000)]
)
def test_shipped_scenarios(name: str, scheduler: str, decisions: int) -> None:
    scenario = load_scenario(name, episode__requests=20, episode__warmup_requests=5)
    events = assert_engines_agree(scenario, scheduler, 5, price_delays=True, decisions=decisions)
    assert events > decisions * 2 // 3


@pytest.mark.parametrize("scheduler", ["random", "colocated_sd:4", "cloud_ar", "hf_heuristic"])
def test_tiny_to_the_end(scheduler: str) -> None:
    assert_engines_agree(tiny(), scheduler, 3, price_delays=True)


def test_saved_world_goes_on_as_if_never_left() -> None:
    simulation = CompiledSimulation(tiny(), 4)
    assert simulation.advance()
    state = simulation.save()
    futures = []
    for _ in range(2):
        trail = []
        while True:
            simulation.decide(dsd_env.Decision(4, 2, len(trail) % 3))
            if not simulation.advance():
                break
            trail.append((simulation.now_s, simulation.observe()[0].tobytes()))
        futures.append((trail, simulation.metrics()["e2e_s_mean"]))
        simulation.restore(state)
    assert futures[0] == futures[1]
    assert len(futures[0][0]) > 10


def test_full_table_says_what_to_do() -> None:
    layout = compile_scenario(tiny(), max_active_requests=1)
    simulation = CompiledSimulation(tiny(), 1, layout=layout)
    with pytest.raises(EngineError, match="max_active_requests"):
        while simulation.advance():
            simulation.decide(dsd_env.Decision(0, 1, 0))
    layout = compile_scenario(tiny(), heap_events=8)
    simulation = CompiledSimulation(tiny(), 1, layout=layout)
    with pytest.raises(EngineError, match="heap_events"):
        while simulation.advance():
            simulation.decide(dsd_env.Decision(4, 1, 0))


def test_spans_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="reference"):
        CompiledSimulation(tiny(), 1, record_spans=True)


@pytest.mark.parametrize("columns", [3, 5])
@pytest.mark.parametrize("options", [{}, {"loop": True}, {"random_start": True}, {"rate_scale": 3.0}])
def test_replayed_requests(tmp_path: Path, columns: int, options: dict[str, Any]) -> None:
    rows = ["arrival_s,prompt_tokens,output_tokens,client,kind"]
    # Two requests at a time, and lengths beyond what the scenario allows.
    rows += [f"{n // 2 / 8},{1 + 97 * n % 5000},{1 + 7 * n % 60},c{n % 7},question" for n in range(30)]
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(",".join(row.split(",")[:columns]) for row in rows) + "\n")
    arrivals = {"kind": "replay", "trace": str(path), "trace_kinds": columns == 5, **options}
    scenario = tiny(workload__arrivals=arrivals, episode__horizon_s=8.0)
    for seed in range(2):
        assert assert_engines_agree(scenario, "indices", seed, decisions=300) > 200


def test_a_drafter_that_has_seen_nothing_of_a_whole_batch_takes_it_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All decode plainly until the drafter beside them lags by all their contexts, then all draft.
    # Its first pass has more tokens than its table of step times; the engines once broke off there.
    beyond = 0
    attention_free_s = step_times.attention_free_s

    def noted(timer: step_times.Timer, new_tokens: int) -> float:
        nonlocal beyond
        beyond = max(beyond, new_tokens - timer.length)
        return attention_free_s(timer, new_tokens)

    monkeypatch.setattr(step_times, "attention_free_s", noted)
    scenario = lab(
        clients=24,
        requests=24,
        prompt={"distribution": "constant", "value": 400},
        output={"distribution": "constant", "value": 60},
        workload__max_prompt_tokens=400,
        workload__max_output_tokens=64,
        protocol__plain_chunk_tokens=1,
        targets__target__max_num_batched_tokens=512,
        targets__target__colocated_drafter={
            "model": "draft",
            "profile": {"t0_s": 0.002, "c_s_per_token": 1e-5, "k_bw_s_per_token": 1e-8},
        },
    )

    def decide(number: int, view: DecisionView) -> Decision:
        # Where the first decision would draft is where the prompt warms a drafter up.
        return Decision(4, 1, 0) if number > 600 else Decision(0, 1, 1)

    assert compare_engines(scenario, 3, decide, decisions=10**9).events > 0
    assert beyond > 0
