"""The policies with less work per step compute what Stable-Baselines3's own compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.policies import FastMaskablePolicy, FastPolicy

NVEC = [5, 3, 4]
N = 64


def policies(maskable: bool):
    """Return one of ours, Stable-Baselines3's with the same weights, and what to call them with."""
    space = spaces.Box(-1.0, 1.0, (7,), dtype=np.float32), spaces.MultiDiscrete(NVEC)
    pairs = ((FastPolicy, ActorCriticPolicy), (FastMaskablePolicy, MaskableActorCriticPolicy))
    ours, theirs = pairs[maskable]
    th.manual_seed(0)
    fast, original = (kind(*space, lambda _: 1e-3) for kind in (ours, theirs))
    with th.no_grad():
        for parameter in fast.parameters():
            parameter.normal_()
    original.load_state_dict(fast.state_dict())
    generator = np.random.default_rng(0)
    masks = generator.random((N, sum(NVEC))) < 0.5
    masks[:, [0, NVEC[0], NVEC[0] + NVEC[1]]] = True
    observations = th.as_tensor(generator.uniform(-1, 1, (N, 7)), dtype=th.float32)
    return fast, original, observations, ({"action_masks": masks} if maskable else {})


@pytest.mark.parametrize("maskable", [False, True])
def test_values_probabilities_and_gradients_are_the_original_ones(maskable: bool) -> None:
    fast, original, observations, options = policies(maskable)
    actions = original.get_distribution(observations, **options).get_actions()
    results = [
        policy.evaluate_actions(observations, actions.float(), **options) for policy in (fast, original)
    ]
    for mine, theirs in zip(*results, strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for policy, (values, log_probs, entropies) in zip((fast, original), results, strict=True):
        (values.sum() + log_probs.sum() + entropies.sum()).backward()
        assert all(parameter.grad is not None for parameter in policy.parameters())
    for mine, theirs in zip(fast.parameters(), original.parameters(), strict=True):
        th.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    with th.no_grad():
        for mine, theirs in zip(
            fast(observations, True, **options), original(observations, True, **options), strict=True
        ):
            th.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("maskable", [False, True])
def test_samples_have_the_probabilities_and_keep_to_the_mask(maskable: bool) -> None:
    fast, original, observations, options = policies(maskable)
    observations = observations[:1].repeat(20_000, 1)
    masks = options["action_masks"][:1].repeat(20_000, axis=0) if maskable else None
    options = {"action_masks": masks} if maskable else {}
    with th.no_grad():
        actions, _, log_probs = fast(observations, **options)
        expected = original.get_distribution(
            observations[:1], **({"action_masks": masks[:1]} if maskable else {})
        )
        th.testing.assert_close(log_probs[:9], expected.log_prob(actions[:9]), rtol=1e-4, atol=1e-5)
    start = 0
    for dimension, (size, marginal) in enumerate(
        zip(NVEC, getattr(expected, "distributions", None) or expected.distribution, strict=True)
    ):
        shares = np.bincount(actions[:, dimension].numpy(), minlength=size) / len(actions)
        np.testing.assert_allclose(shares, marginal.probs[0].numpy(), atol=0.015)
        if masks is not None:
            assert not shares[~masks[0, start : start + size]].any()
        start += size
