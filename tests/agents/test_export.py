"""Export: the bundle acts exactly as Stable-Baselines3's deterministic predict, with both backends."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from agents.actors import actor_of
from agents.export import export_actor, onnx_bytes
from dsd_env.control import ActionSpace, Decision, ObservationEncoder
from dsd_env.policy import PolicyError, load
from dsd_env.policy.manifest import Training
from dsd_env.scenario import Scenario, load_scenario

N_STATES = 10_000
TRAINING = Training(algorithm="test", seed=0, steps=0)


class Spaces(gym.Env):
    """Nothing but the spaces of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        encoder = ObservationEncoder.of(scenario)
        self.observation_space: gym.spaces.Box = gym.spaces.Box(encoder.low, encoder.high, dtype=np.float32)
        self.action_space = gym.spaces.MultiDiscrete(np.array(ActionSpace.of(scenario).nvec))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(len(self.observation_space.low), dtype=np.float32), {}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("metro")


def build(
    algorithm, scenario: Scenario, hidden=(64, 64), activation=th.nn.Tanh, gain: float = 1.0, seed: int = 0
):
    th.set_num_threads(1)
    arguments = {"net_arch": {"pi": list(hidden), "vf": [4]}, "activation_fn": activation}
    model = algorithm(
        "MlpPolicy", Spaces(scenario), policy_kwargs=arguments, n_steps=2, batch_size=2, seed=seed
    )
    with th.no_grad():
        # A fresh actor's logits are nearly equal (gain 0.01): the hardest case for ties. A larger gain is
        # like a trained one. Centred, so that no action wins in every state.
        model.policy.action_net.weight.mul_(gain)
        probe = th.as_tensor(states(scenario, 1000, masked=False)[0])
        latent = model.policy.mlp_extractor.forward_actor(probe)
        model.policy.action_net.bias.copy_(-model.policy.action_net(latent).mean(0))
    return model


def states(scenario: Scenario, n: int, masked: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    encoder, nvec = ObservationEncoder.of(scenario), ActionSpace.of(scenario).nvec
    observations = rng.uniform(encoder.low, encoder.high, (n, len(encoder.low))).astype(np.float32)
    masks = np.ones((n, sum(nvec)), dtype=bool)
    if masked:
        masks = rng.random(masks.shape) < rng.random((n, 1))
        masks[:, [0, nvec[0], nvec[0] + nvec[1]]] = True
    return observations, masks


CASES = [
    pytest.param(MaskablePPO, (64, 64), th.nn.Tanh, 1.0, id="maskable-fresh"),
    pytest.param(MaskablePPO, (64, 64), th.nn.Tanh, 100.0, id="maskable-trained"),
    pytest.param(MaskablePPO, (32,), th.nn.ReLU, 30.0, id="maskable-relu"),
    pytest.param(MaskablePPO, (), th.nn.Tanh, 1.0, id="maskable-linear"),
    pytest.param(PPO, (64, 64), th.nn.Tanh, 1.0, id="ppo-fresh"),
    pytest.param(PPO, (48, 32, 16), th.nn.ReLU, 100.0, id="ppo-relu"),
]


@pytest.mark.parametrize(("algorithm", "hidden", "activation", "gain"), CASES)
def test_golden(algorithm, hidden, activation, gain, scenario: Scenario, tmp_path: Path) -> None:
    model = build(algorithm, scenario, hidden, activation, gain)
    maskable = algorithm is MaskablePPO
    observations, masks = states(scenario, N_STATES, masked=maskable)
    options = {"action_masks": masks} if maskable else {}
    expected, _ = model.predict(observations, deterministic=True, **options)

    actions = ActionSpace.of(scenario)
    export_actor(actor_of(model, actions.nvec), scenario, TRAINING, tmp_path / "policy")
    policy = load(tmp_path / "policy", backend="numpy")
    got = np.array([policy.action(x, mask) for x, mask in zip(observations, masks, strict=True)])
    starts = np.cumsum((0, *actions.nvec))
    rounded = np.argwhere(got != expected)
    for row, dimension in rounded:
        # Two logits so near to each other that sums of float32 in another order exchange them.
        logits = policy.logits(observations[row])[starts[dimension] :]
        one, other = logits[got[row, dimension]], logits[expected[row, dimension]]
        assert abs(one - other) < 1e-6, (row, dimension, one, other)
    assert len(rounded) <= 3

    session = load(tmp_path / "policy", backend="onnx")._session
    assert session is not None
    batch, logits = session.run(["actions", "logits"], {"observation": observations, "mask": masks})
    assert (batch != expected).sum() <= 3
    np.testing.assert_allclose(logits[7], policy.logits(observations[7]), rtol=1e-4, atol=1e-6)
    assert len(np.unique(expected, axis=0)) > 100, "the comparison must see many different actions"


@pytest.mark.parametrize("algorithm", [MaskablePPO, PPO])
def test_golden_one_state_at_a_time(algorithm, scenario: Scenario, tmp_path: Path) -> None:
    model = build(algorithm, scenario, gain=20.0, seed=3)
    observations, masks = states(scenario, 500, masked=algorithm is MaskablePPO, seed=1)
    actions = ActionSpace.of(scenario)
    export_actor(actor_of(model, actions.nvec), scenario, TRAINING, tmp_path / "policy")
    policies = [load(tmp_path / "policy", backend=backend) for backend in ("numpy", "onnx")]
    for x, mask in zip(observations, masks, strict=True):
        options = {"action_masks": mask} if algorithm is MaskablePPO else {}
        expected, _ = model.predict(x, deterministic=True, **options)
        decision = Decision(actions.gammas[expected[0]], actions.batch_sizes[expected[1]], int(expected[2]))
        assert [policy.decide(x, mask) for policy in policies] == [decision, decision]


@pytest.mark.parametrize("algorithm", [MaskablePPO, PPO])
def test_ties_made_by_rounding_are_treated_as_in_training(algorithm, scenario: Scenario) -> None:
    """Logits a few float32 spacings apart: the trainer's rounding merges many, and the first wins."""
    model = build(algorithm, scenario, hidden=(), gain=0.0)
    nvec = ActionSpace.of(scenario).nvec
    observations, masks = states(scenario, 1, masked=False)
    rng = np.random.default_rng(0)
    differs_from_plain_argmax = 0
    for _ in range(300):
        # So small that hardly any falls exactly between two floats after normalisation, where it would depend
        # on the processor which way torch rounds.
        bias = (1e-4 + rng.uniform(0.0, 2e-7, sum(nvec))).astype(np.float32)
        with th.no_grad():
            model.policy.action_net.bias.copy_(th.as_tensor(bias))
        actor = actor_of(model, nvec)
        options = {"action_masks": masks[0]} if algorithm is MaskablePPO else {}
        expected = model.predict(observations[0], deterministic=True, **options)[0].tolist()
        assert actor.action(observations[0], masks[0]) == expected
        starts = np.cumsum((0, *nvec))
        plain = [int(bias[a:b].argmax()) for a, b in pairwise(starts)]
        differs_from_plain_argmax += plain != expected
    assert differs_from_plain_argmax > 30, "otherwise this test shows nothing"


def test_onnx_file_is_standard_and_self_contained(scenario: Scenario) -> None:
    model = build(MaskablePPO, scenario, (8,))
    content = onnx_bytes(actor_of(model, ActionSpace.of(scenario).nvec), '{"a":1}')
    parsed = onnx.load_from_string(content)
    onnx.checker.check_model(parsed, full_check=True)
    assert {node.domain for node in parsed.graph.node} == {""}
    assert not any(tensor.external_data for tensor in parsed.graph.initializer)
    used = {name for node in parsed.graph.node for name in node.input}
    assert {tensor.name for tensor in parsed.graph.initializer} <= used, "a constant that nothing reads"
    assert {p.key: p.value for p in parsed.metadata_props} == {"manifest": '{"a":1}'}
    assert content == onnx_bytes(actor_of(model, ActionSpace.of(scenario).nvec), '{"a":1}')


def test_onnx_of_another_bundle_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    nvec = ActionSpace.of(scenario).nvec
    for name, hidden in (("a", (8,)), ("b", (9,))):
        export_actor(actor_of(build(PPO, scenario, hidden), nvec), scenario, TRAINING, tmp_path / name)
    other = json.loads((tmp_path / "b" / "manifest.json").read_text())["files"]["policy.onnx"]
    data = json.loads((tmp_path / "a" / "manifest.json").read_text())
    data["files"]["policy.onnx"] = other
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(data))
    (tmp_path / "a" / "policy.onnx").write_bytes((tmp_path / "b" / "policy.onnx").read_bytes())
    load(tmp_path / "a", backend="numpy")
    with pytest.raises(PolicyError, match="carries another manifest"):
        load(tmp_path / "a", backend="onnx")


def test_manifest_says_where_the_policy_comes_from(scenario: Scenario, tmp_path: Path) -> None:
    actor = actor_of(build(PPO, scenario, (8,)), ActionSpace.of(scenario).nvec)
    export_actor(actor, scenario, TRAINING, tmp_path / "policy")
    policy = load(tmp_path / "policy")
    policy.check_scenario(scenario)
    data = json.loads((tmp_path / "policy" / "manifest.json").read_text())
    assert data["scenario"]["name"] == "metro"
    assert [feature["name"] for feature in data["observation"]] == list(ObservationEncoder.of(scenario).names)
    assert data["action"]["gammas"] == list(scenario.actions.gammas)
    policy.check_scenario(load_scenario(scenario, actions__targets_offered=1))
    larger = load_scenario(scenario, actions__edge_servers_offered=6)
    with pytest.raises(PolicyError, match=r"does not fit scenario 'metro'.*another number of placements"):
        policy.check_scenario(larger)
    others = load_scenario(scenario, actions__gammas=[0, 5])
    with pytest.raises(PolicyError, match=r"gammas are \(0, 5\).* leaves it no choice"):
        policy.check_scenario(others)


def test_unsupported_activation_is_refused(scenario: Scenario) -> None:
    with pytest.raises(ValueError, match=r"activation .* is not supported"):
        actor_of(build(PPO, scenario, (8,), th.nn.GELU), ActionSpace.of(scenario).nvec)
