"""Closed forms of an engine's overhead and of its front end, on both engines of the simulator."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

import dsd_env
from dsd_env import Result
from tests.lab import lab

Simulate = Callable[..., Result]
ENGINE = {
    "per_iteration_s": 2e-3,
    "per_sequence_s": 3e-5,
    "per_token_s": 1e-5,
    "per_verifying_iteration_s": 5e-4,
}


@pytest.fixture(params=["reference", "compiled"])
def simulate(request: pytest.FixtureRequest) -> Simulate:
    """Simulation on one engine; every closed form is asked of both."""
    return functools.partial(dsd_env.simulate, engine=request.param)


def test_every_iteration_of_plain_decoding_takes_the_engines_part(simulate: Simulate) -> None:
    scenario = lab(requests=3, targets__target__engine_overhead=ENGINE)
    result = simulate(scenario, "cloud_ar:1", seed=3)
    prefill = 0.03 + 2e-3 + 3e-5 + 100 * 1e-5
    decode = 0.03 + 2e-3 + 3e-5 + 1e-5
    assert result.requests["ttft_s"] == pytest.approx(prefill, rel=1e-9)
    assert result.requests["e2e_s"] == pytest.approx(prefill + 100 * decode, rel=1e-9)


def test_tokens_beyond_the_limit_cost_no_more(simulate: Simulate) -> None:
    scenario = lab(requests=3, targets__target__engine_overhead={**ENGINE, "token_limit": 40})
    result = simulate(scenario, "cloud_ar:1", seed=3)
    assert result.requests["ttft_s"] == pytest.approx(0.03 + 2e-3 + 3e-5 + 40 * 1e-5, rel=1e-9)


@pytest.mark.parametrize("site", ["own", "colocated"])
def test_an_iteration_that_verifies_takes_its_part_and_a_prompts_does_not(
    simulate: Simulate, site: str
) -> None:
    # Five tokens a round; the last round of a request is as long, since what it commits is cut, not verified.
    scenario = lab(alpha=1.0, requests=3, targets__target__engine_overhead=ENGINE)
    result = simulate(scenario, f"static:4:1:{site}", seed=3)
    draft_s = 4 * (0.005 if site == "own" else 0.002)
    round_s = draft_s + 0.03 + 2e-3 + 3e-5 + 5 * 1e-5 + 5e-4
    decode_s = result.requests["e2e_s"] - result.requests["ttft_s"]
    assert decode_s == pytest.approx(result.requests["verifies"] * round_s, rel=1e-9)


def test_noise_does_not_scale_what_the_engine_adds(simulate: Simulate) -> None:
    """Stragglers of factor ten at every iteration: ten times the kernels, once the engine's part."""
    scenario = lab(
        requests=3,
        targets__target__engine_overhead=ENGINE,
        targets__target__straggler_share=1.0,
        targets__target__straggler_factor=10.0,
    )
    result = simulate(scenario, "cloud_ar:1", seed=3)
    decode_s = result.requests["e2e_s"] - result.requests["ttft_s"]
    assert decode_s == pytest.approx(100 * (0.3 + 2e-3 + 3e-5 + 1e-5), rel=1e-9)


@pytest.mark.parametrize("site", ["own", "colocated"])
def test_the_front_end_delays_the_first_token_only(simulate: Simulate, site: str) -> None:
    def times(front_end_s: float) -> Result:
        scenario = lab(requests=5, one_way_s=0.02, targets__target__front_end_s=front_end_s)
        return simulate(scenario, f"static:4:1:{site}", seed=3)

    without, with_it = times(0.0), times(0.0125)
    assert with_it.requests["ttft_s"] == pytest.approx(without.requests["ttft_s"] + 0.0125, rel=1e-9)
    assert with_it.requests["e2e_s"] == pytest.approx(without.requests["e2e_s"] + 0.0125, rel=1e-9)
