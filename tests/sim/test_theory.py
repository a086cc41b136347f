"""Closed forms that the simulator must meet: queueing theory and speculative decoding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

import dsd_env
from dsd_env import Result
from tests.lab import lab

Simulate = Callable[..., Result]


@pytest.fixture(params=["reference", "compiled"])
def simulate(request: pytest.FixtureRequest) -> Simulate:
    """Simulation on one engine; every closed form is asked of both."""
    return functools.partial(dsd_env.simulate, engine=request.param)


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens per round with i.i.d. acceptance (Leviathan et al., arXiv 2211.17192)."""
    return gamma + 1.0 if alpha == 1.0 else (1.0 - alpha ** (gamma + 1)) / (1.0 - alpha)


def standard_error(values: np.ndarray, batches: int = 25) -> float:
    """Standard error of the mean of a correlated series, by batch means."""
    means = values[: len(values) // batches * batches].reshape(batches, -1).mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(batches))


def test_plain_decoding_alone_is_the_sum_of_its_iterations(simulate: Simulate) -> None:
    scenario = lab(verify={"t0_s": 0.03, "c_s_per_token": 1e-5, "k_bw_s_per_token": 1e-7}, requests=3)
    result = simulate(scenario, "cloud_ar:1", seed=3)
    prefill = 0.03 + 1e-5 * 100 + 1e-7 * 100
    decode = sum(0.03 + 1e-5 + 1e-7 * (100 + done) for done in range(1, 101))
    assert result.requests["ttft_s"] == pytest.approx(prefill, rel=1e-9)
    assert result.requests["e2e_s"] == pytest.approx(prefill + decode, rel=1e-9)


@pytest.mark.parametrize("gamma", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("site", ["own", "colocated"])
def test_everything_accepted_takes_the_fewest_rounds(simulate: Simulate, gamma: int, site: str) -> None:
    result = simulate(lab(alpha=1.0, requests=2), f"static:{gamma}:1:{site}", seed=1)
    assert (result.requests["verifies"] == math.ceil(100 / (gamma + 1))).all()


def test_nothing_accepted_commits_one_token_a_round(simulate: Simulate) -> None:
    result = simulate(lab(alpha=0.0, requests=2), "static:4:1:own", seed=1)
    assert (result.requests["verifies"] == 100).all()
    assert result.metrics["block_efficiency"] == 1.0
    assert result.metrics["acceptance_rate"] == 0.0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.3, 2), (0.7, 4), (0.9, 8)])
def test_tokens_per_round_with_independent_acceptance(simulate: Simulate, alpha: float, gamma: int) -> None:
    # Long answers, so that the round cut short by the end of the answer weighs little.
    scenario = lab(alpha=alpha, output={"distribution": "constant", "value": 2001}, requests=40)
    result = simulate(scenario, f"static:{gamma}:1:colocated", seed=5)
    per_request = 2000 / result.requests["verifies"]
    error = per_request.std(ddof=1) / math.sqrt(len(per_request))
    bias = (gamma + 1) / 2000 * expected_tokens(alpha, gamma)
    assert abs(per_request.mean() - expected_tokens(alpha, gamma)) < 4 * error + bias


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_one_client_pays_drafting_verification_and_the_round_trip(simulate: Simulate, gamma: int) -> None:
    """Time per token of synchronous edge drafting is (k t_d + t_v(k) + RTT) / B(k)."""
    scenario = lab(
        alpha=0.8,
        draft_s=0.007,
        one_way_s=0.02,
        verify={"t0_s": 0.03, "c_s_per_token": 1e-3},
        output={"distribution": "constant", "value": 1001},
        requests=10,
    )
    result = simulate(scenario, f"static:{gamma}:1:own", seed=2)
    round_s = gamma * 0.007 + (0.03 + 1e-3 * (gamma + 1)) + 0.04
    # Every round costs the same, so the time is exact given the number of rounds.
    first_s = result.requests["ttft_s"]
    assert result.requests["e2e_s"] - first_s == pytest.approx(
        result.requests["verifies"] * round_s, rel=1e-9
    )


def test_colocated_drafting_pays_no_round_trip(simulate: Simulate) -> None:
    scenario = lab(alpha=0.8, colocated_s=0.003, one_way_s=0.05, requests=5)
    result = simulate(scenario, "static:4:1:colocated", seed=2)
    decode_s = result.requests["e2e_s"] - result.requests["ttft_s"]
    assert decode_s == pytest.approx(result.requests["verifies"] * (4 * 0.003 + 0.030), rel=1e-9)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_single_server_with_constant_service_is_m_d_1(simulate: Simulate, load: float) -> None:
    service_s = 0.1
    scenario = lab(
        clients=50,
        verify={"t0_s": service_s},
        arrivals={"kind": "poisson", "rate_per_s": load / service_s},
        output={"distribution": "constant", "value": 1},
        requests=20_000,
        episode__warmup_requests=500,
        targets__target__max_num_seqs=1,
    )
    result = simulate(scenario, "cloud_ar:1", seed=11)
    waits = result.requests["e2e_s"][500:] - service_s
    assert abs(waits.mean() - load * service_s / (2 * (1 - load))) < 4 * standard_error(waits)
    assert result.metrics["utilisation_target"] == pytest.approx(load, rel=0.03)


def test_single_server_with_exponential_service_is_m_m_1(simulate: Simulate) -> None:
    # Prompts are geometric with a large mean, so that prefill times are exponential to within 1/400.
    mean_tokens, token_s, load = 400.0, 0.001, 0.7
    scenario = lab(
        clients=50,
        verify={"t0_s": 1e-12, "c_s_per_token": token_s},
        arrivals={"kind": "poisson", "rate_per_s": load / (mean_tokens * token_s)},
        prompt={"distribution": "geometric", "mean": mean_tokens},
        output={"distribution": "constant", "value": 1},
        requests=20_000,
        workload__max_prompt_tokens=60_000,
        targets__target__max_num_seqs=1,
        targets__target__max_num_batched_tokens=65_536,
        episode__warmup_requests=500,
    )
    result = simulate(scenario, "cloud_ar:1", seed=4)
    times = result.requests["e2e_s"][500:]
    service_s = mean_tokens * token_s
    assert abs(times.mean() - service_s / (1 - load)) < 4 * standard_error(times) + service_s / 100


@pytest.mark.parametrize(("sigma", "share", "factor"), [(0.0, 0.05, 8.0), (0.4, 0.0, 1.0), (0.3, 0.1, 3.0)])
def test_noise_and_stragglers_make_the_queue_m_g_1(
    simulate: Simulate, sigma: float, share: float, factor: float
) -> None:
    """Pollaczek-Khinchine: mean wait = rate E[S^2] / (2 (1 - load)), with S the noisy iteration time."""
    service_s, load = 0.010, 0.6
    # Mean and second moment of a factor that is log-normal with mean one, times `factor` now and then.
    mean = 1 + share * (factor - 1)
    second = math.exp(sigma**2) * (1 + share * (factor**2 - 1))
    rate = load / (service_s * mean)
    scenario = lab(
        clients=50,
        verify={"t0_s": service_s},
        arrivals={"kind": "poisson", "rate_per_s": rate},
        output={"distribution": "constant", "value": 1},
        requests=20_000,
        episode__warmup_requests=500,
        targets__target__max_num_seqs=1,
        targets__target__iteration_noise_sigma=sigma,
        targets__target__straggler_share=share,
        targets__target__straggler_factor=factor,
    )
    times = simulate(scenario, "cloud_ar:1", seed=5).requests["e2e_s"][500:]
    wait_s = rate * second * service_s**2 / (2 * (1 - load))
    assert abs(times.mean() - service_s * mean - wait_s) < 4 * standard_error(times)


def test_littles_law_over_a_whole_workload(simulate: Simulate) -> None:
    """Integral of the number in system = sum of times in system, exactly, when all have left."""
    scenario = lab(clients=8, requests=1000, one_way_s=0.01, episode__total_requests=200)
    result = simulate(scenario, "static:4:8:own", seed=9)
    # The measurement window opens with the first arrival.
    window_s = result.metrics["duration_s"] - result.requests["arrival_s"].min()
    in_system = result.metrics["requests_in_system_mean"] * window_s
    assert in_system == pytest.approx(result.requests["e2e_s"].sum(), rel=1e-9)


def test_offloaded_drafting_multiplies_capacity(simulate: Simulate) -> None:
    """In the memory-bound regime a target serves 1 + gamma t_d / t_v times as many (arXiv 2606.25091)."""
    gamma, verify_s, draft_s = 4, 0.030, 0.003
    crowd = dict(
        clients=200,
        alpha=0.7,
        draft_s=1e-4,
        colocated_s=draft_s,
        verify={"t0_s": verify_s},
        arrivals={"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.01}},
        # A prompt of one token, so that all of the budget of sixteen verifications an iteration is theirs.
        prompt={"distribution": "constant", "value": 1},
        targets__target__max_num_batched_tokens=16 * (gamma + 1),
        requests=600,
        episode__warmup_requests=200,
    )
    at_edge = simulate(lab(**crowd), f"static:{gamma}:1:own", seed=1).metrics
    at_target = simulate(lab(**crowd), f"static:{gamma}:1:colocated", seed=1).metrics
    gain = at_edge["throughput_tokens_per_s"] / at_target["throughput_tokens_per_s"]
    assert gain == pytest.approx(1 + gamma * draft_s / verify_s, rel=0.03)


def test_longer_round_trips_never_help_synchronous_edge_drafting(simulate: Simulate) -> None:
    latency = [
        simulate(lab(clients=6, one_way_s=delay, requests=60), "static:4:8:own", seed=7).metrics["e2e_s_mean"]
        for delay in (0.0, 0.005, 0.02, 0.08, 0.3)
    ]
    assert latency == sorted(latency)


@pytest.mark.parametrize("site", ["own", "colocated"])
def test_more_acceptance_never_raises_mean_latency(simulate: Simulate, site: str) -> None:
    latency = [
        simulate(lab(clients=6, alpha=alpha, requests=60), f"static:4:8:{site}", seed=7).metrics["e2e_s_mean"]
        for alpha in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert latency == sorted(latency, reverse=True)


def test_confidence_stop_ends_drafts_early(simulate: Simulate) -> None:
    """Independent acceptance reports confidence alpha everywhere: a stop above it drafts one token."""
    scenario = lab(alpha=0.7, requests=3, protocol__confidence_stop=0.75)
    result = simulate(scenario, "static:8:1:own", seed=1)
    assert (result.requests["drafted_tokens"] == result.requests["verifies"]).all()
