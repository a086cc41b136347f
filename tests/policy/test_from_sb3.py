"""Models of Stable-Baselines3 itself: their bundle decides as they do, and what does not fit is named."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import dsd_env
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.envs import FlatActionWrapper
from dsd_env.policy import PolicyError, export_sb3, load
from dsd_env.scenario import Scenario, load_scenario

N_FEATURES = {name: len(ObservationEncoder.of(load_scenario(name)).low) for name in ("single_lan", "metro")}
OTHER_SPACE = f"reads {N_FEATURES['single_lan']} features, scenario 'metro' gives {N_FEATURES['metro']}"

N_STATES = 3000
ROLLOUT = {"n_steps": 8, "batch_size": 8}
SMALL: dict[Any, dict[str, Any]] = {
    PPO: ROLLOUT,
    MaskablePPO: ROLLOUT,
    A2C: {"n_steps": 8},
    DQN: {"learning_starts": 8, "buffer_size": 64},
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("single_lan", episode__requests=3)


def trained(algorithm: Any, scenario: Scenario, flat: bool = False, steps: int = 32, **kwargs: Any) -> Any:
    th.set_num_threads(1)
    env = dsd_env.make_sb3_vec_env(scenario, 2, seed=0, flat_actions=flat)
    model = algorithm("MlpPolicy", env, seed=1, **SMALL[algorithm], **kwargs)
    model.learn(steps)
    with th.no_grad():
        # A few steps leave all logits nearly equal. Further apart and centred, all actions occur.
        net = model.policy.q_net.q_net if algorithm is DQN else model.policy.action_net
        last, body = (net[-1], net[:-1]) if algorithm is DQN else (net, model.policy.mlp_extractor.policy_net)
        last.weight.mul_(30.0)
        last.bias.copy_(last.bias - last(body(th.as_tensor(states(scenario, False)[0]))).mean(0))
    return model


def states(scenario: Scenario, masked: bool, n: int = N_STATES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    encoder, nvec = ObservationEncoder.of(scenario), ActionSpace.of(scenario).nvec
    observations = rng.uniform(encoder.low, encoder.high, (n, len(encoder.low))).astype(np.float32)
    masks = np.ones((n, sum(nvec)), dtype=bool)
    if masked:
        masks = rng.random(masks.shape) < 0.6
        masks[:, [0, nvec[0], nvec[0] + nvec[1]]] = True
    return observations, masks


RELU = {"policy_kwargs": {"net_arch": [24, 16], "activation_fn": th.nn.ReLU}}
CASES = [
    pytest.param(MaskablePPO, False, {}, id="MaskablePPO"),
    pytest.param(MaskablePPO, True, RELU, id="MaskablePPO-flat"),
    pytest.param(PPO, False, RELU, id="PPO"),
    pytest.param(PPO, True, {"policy_kwargs": {"net_arch": {"pi": [], "vf": [8]}}}, id="PPO-flat-linear"),
    pytest.param(A2C, False, {}, id="A2C"),
    pytest.param(A2C, True, {}, id="A2C-flat"),
    pytest.param(DQN, True, {}, id="DQN-flat"),
    pytest.param(
        DQN, True, {"policy_kwargs": {"net_arch": [12], "activation_fn": th.nn.Tanh}}, id="DQN-flat-tanh"
    ),
]


@pytest.mark.parametrize(("algorithm", "flat", "options"), CASES)
def test_it_decides_as_predict(algorithm, flat, options, scenario: Scenario, tmp_path: Path) -> None:
    model = trained(algorithm, scenario, flat, **options)
    model.save(tmp_path / "model.zip")
    masked = algorithm is MaskablePPO
    observations, masks = states(scenario, masked)
    space = ActionSpace.of(scenario)
    given = {"action_masks": space.flattened(masks) if flat else masks} if masked else {}
    expected = model.predict(observations, deterministic=True, **given)[0]
    if flat:
        expected = space.unflatten(expected)
    assert len(np.unique(expected, axis=0)) > 15, "the comparison must see many different actions"
    for source, out in ((model, tmp_path / "a"), (tmp_path / "model.zip", tmp_path / "b")):
        manifest = export_sb3(source, scenario, out)
        assert (manifest.training.algorithm, manifest.training.seed) == (algorithm.__name__, 1)
        assert manifest.training.steps == model.num_timesteps >= 32
        assert manifest.training.versions["torch"] == th.__version__
        policy = load(out)
        policy.check_scenario(scenario)
        got = [policy.action(x, mask) for x, mask in zip(observations, masks, strict=True)]
        np.testing.assert_array_equal(got, expected)
    policy = load(tmp_path / "a", backend="onnx")
    got = [policy.action(x, mask) for x, mask in zip(observations[:300], masks[:300], strict=True)]
    np.testing.assert_array_equal(got, expected[:300])
    assert (tmp_path / "a" / "policy.npz").read_bytes() == (tmp_path / "b" / "policy.npz").read_bytes()


@pytest.mark.parametrize("flat", [False, True])
def test_as_a_scheduler_it_plays_the_episode_of_predict(
    flat: bool, scenario: Scenario, tmp_path: Path
) -> None:
    env: Any = gym.make("dsd_env/EdgeCloud-v0", scenario=scenario)
    env = FlatActionWrapper(env) if flat else env
    model = MaskablePPO("MlpPolicy", env, seed=3, **ROLLOUT)
    model.learn(16)
    export_sb3(model, scenario, tmp_path / "policy")
    observation, _ = env.reset(options={"episode_seed": 5})
    over, info = False, {}
    while not over:
        mask = env.get_wrapper_attr("action_masks")()
        action = model.predict(observation, action_masks=mask, deterministic=True)[0]
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    result = dsd_env.simulate(scenario, f"policy:{tmp_path / 'policy'}", 5)
    for name in ("e2e_s_mean", "ttft_s_mean", "decisions"):
        if name in result.metrics:
            assert result.metrics[name] == info["episode_metrics"][name]


def test_flat_policies_take_flat_masks(scenario: Scenario, tmp_path: Path) -> None:
    export_sb3(trained(DQN, scenario, True), scenario, tmp_path / "policy")
    space = ActionSpace.of(scenario)
    for backend in ("numpy", "onnx"):
        policy = load(tmp_path / "policy", backend=backend)  # type: ignore[arg-type]
        assert policy.logits(np.zeros(len(ObservationEncoder.of(scenario).low))).shape == (space.n_flat,)
        for x, mask in zip(*states(scenario, True, 50), strict=True):
            action = policy.action(x, mask)
            assert policy.action(x, space.flattened(mask)) == action
            assert space.flattened(mask)[np.ravel_multi_index(action, space.nvec)]
        with pytest.raises(ValueError, match="mask has shape"):
            policy.action(np.zeros(len(ObservationEncoder.of(scenario).low)), np.ones(5, dtype=bool))
        with pytest.raises(ValueError, match="nothing to select"):
            policy.action(
                np.zeros(len(ObservationEncoder.of(scenario).low)), np.zeros(space.n_flat, dtype=bool)
            )


def test_older_code_is_told_by_the_version_what_it_cannot_read(scenario: Scenario, tmp_path: Path) -> None:
    with_seed = export_sb3(trained(PPO, scenario), scenario, tmp_path / "a")
    assert with_seed.format_version == 1
    assert "flat" not in json.loads((tmp_path / "a" / "manifest.json").read_text())["action"]
    assert export_sb3(trained(PPO, scenario, True), scenario, tmp_path / "b").format_version == 2
    data = json.loads((tmp_path / "b" / "manifest.json").read_text())
    data["format_version"] = 1
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(PolicyError, match="need format_version 2"):
        load(tmp_path / "b")


# ---------------------------------------------------------------------- what does not fit


class Scaled(gym.ObservationWrapper):
    """Changes what observations mean, and says so in its space."""

    def __init__(self, env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gym.spaces.Box(space.low * 2, space.high * 2, dtype=np.float32)

    def observation(self, observation):
        return observation * 2


def made(scenario: Any) -> Any:
    return gym.make("dsd_env/EdgeCloud-v0", scenario=scenario)


def both_ways(model: Any, scenario: Any, message: str, tmp_path: Path) -> None:
    """See that a model is refused, as it is and as a file."""
    model.save(tmp_path / "model.zip")
    for source in (model, tmp_path / "model.zip"):
        with pytest.raises(PolicyError, match=message):
            export_sb3(source, scenario, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_other_spaces_are_refused(scenario: Scenario, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", made(scenario), **ROLLOUT)
    both_ways(model, "metro", OTHER_SPACE, tmp_path)
    fewer = load_scenario(scenario, actions__batch_sizes=[1, 2])
    both_ways(
        PPO("MlpPolicy", made(scenario), **ROLLOUT),
        fewer,
        r"acts in MultiDiscrete\(\[7, 4, 2\]\), scenario 'single_lan' in MultiDiscrete\(\[7, 2, 2\]\)|"
        r"batch_sizes \(1, 2, 4, 8\)",
        tmp_path,
    )
    flat = DQN("MlpPolicy", FlatActionWrapper(made(scenario)), buffer_size=10)
    flat.env = None
    both_ways(flat, fewer, r"acts in Discrete\(56\), .*flat Discrete\(28\)", tmp_path)
    scaled = PPO("MlpPolicy", Scaled(made(scenario)), **ROLLOUT)
    both_ways(scaled, scenario, r"feature 0 ranges from 0 to 2, feature '[\w.]+' of .* from 0 to 1", tmp_path)


def test_other_values_of_equally_long_lists_are_found_in_the_environment(
    scenario: Scenario, tmp_path: Path
) -> None:
    other = load_scenario(scenario, actions__gammas=[0, 1, 2, 3, 4, 6, 16])
    model = PPO("MlpPolicy", made(scenario), **ROLLOUT)
    with pytest.raises(PolicyError, match=r"trained with gammas \(0, 1, .* 8\) .* are \(0, 1, .* 16\)"):
        export_sb3(model, other, tmp_path / "policy")


class OwnExtractor(FlattenExtractor):
    """Without parameters, so that the weights do not tell of it."""

    def forward(self, observations):
        return -super().forward(observations)


class OwnPolicy(ActorCriticPolicy):
    """Decides otherwise than its network."""

    def _predict(self, observation, deterministic: bool = False):
        return super()._predict(-observation, deterministic)


def test_other_kinds_of_models_are_refused(scenario: Scenario, tmp_path: Path) -> None:
    env = made(scenario)
    both_ways(TRPO("MlpPolicy", env, **ROLLOUT), scenario, "cannot be exported; supported are PPO", tmp_path)
    gelu = PPO("MlpPolicy", env, policy_kwargs={"activation_fn": th.nn.GELU}, **ROLLOUT)
    both_ways(gelu, scenario, "activation .*GELU.* use tanh or ReLU", tmp_path)
    own = PPO("MlpPolicy", env, policy_kwargs={"features_extractor_class": OwnExtractor}, **ROLLOUT)
    both_ways(own, scenario, "features are extracted by .*OwnExtractor", tmp_path)
    model = PPO(OwnPolicy, env, **ROLLOUT)
    with th.no_grad():
        model.policy.action_net.weight.mul_(30.0)
    both_ways(model, scenario, "decides otherwise than its network|a policy of module", tmp_path)
    normalised = PPO("MlpPolicy", VecNormalize(DummyVecEnv([lambda: made(scenario)])), **ROLLOUT)
    with pytest.raises(PolicyError, match="VecNormalize"):
        export_sb3(normalised, scenario, tmp_path / "policy")
    with pytest.raises(PolicyError, match=r"builtins\.object cannot be exported"):
        export_sb3(object(), scenario, tmp_path / "policy")


@pytest.fixture(scope="module")
def model_file(scenario: Scenario, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    trained(MaskablePPO, scenario).save(path)
    return path


def test_damaged_and_foreign_files_are_refused(model_file: Path, scenario: Scenario, tmp_path: Path) -> None:
    content = model_file.read_bytes()
    bad = tmp_path / "bad.zip"

    def refused(message: str = "is no model that Stable-Baselines3 saved, or is damaged") -> None:
        with pytest.raises(PolicyError, match=message):
            export_sb3(bad, scenario, tmp_path / "policy")

    refused("there is no such file")
    for size in (0, 10, 1000, len(content) // 2, len(content) - 10):
        bad.write_bytes(content[:size])
        refused()
    with zipfile.ZipFile(model_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changes: list[dict[str, Any]] = [
        {"data": None},
        {"policy.pth": None},
        {"data": b"{}"},
        {"data": b"[]"},
        {"data": b"[" * 100_000},
        {"data": b"\xff"},
        {"policy.pth": b"garbage"},
    ]
    for key, value in (("policy_class", 1), ("policy_kwargs", []), ("observation_space", {}), ("seed", "x")):
        changes.append({"data": json.dumps({**json.loads(members["data"]), key: value}).encode()})
    for change in changes:
        with zipfile.ZipFile(bad, "w") as archive:
            for name, data in {**members, **change}.items():
                if data is not None:
                    archive.writestr(name, data)
        refused()
    assert not (tmp_path / "policy").exists()


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(model_file: Path, scenario: Scenario, tmp_path: Path) -> None:
    attack = pickle.dumps(Attack(tmp_path / "attacked"))
    poisoned = base64.b64encode(attack).decode()
    with zipfile.ZipFile(model_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    settings = {
        key: {**value, ":serialized:": poisoned} if isinstance(value, dict) and ":type:" in value else value
        for key, value in json.loads(members["data"]).items()
    }
    members["data"] = json.dumps(settings).encode()
    poison = io.BytesIO()
    th.save({"action_net.weight": Attack(tmp_path / "attacked")}, poison)
    (tmp_path / "attacked").rmdir() if (tmp_path / "attacked").exists() else None
    for tensors in (members["policy.pth"], poison.getvalue(), attack):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, data in {**members, "policy.pth": tensors}.items():
                archive.writestr(name, data)
        if tensors is members["policy.pth"]:
            export_sb3(tmp_path / "evil.zip", scenario, tmp_path / "policy")
        else:
            with pytest.raises(PolicyError, match="damaged"):
                export_sb3(tmp_path / "evil.zip", scenario, tmp_path / "other")
        assert not (tmp_path / "attacked").exists()


# ---------------------------------------------------------------------- how it is called


def test_the_script_exports_a_file(
    model_file: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["export.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(checkout / "scripts" / "export.py"), run_name="__main__")
        said = capsys.readouterr()
        return stopped.value.code, said.out + said.err  # type: ignore[return-value]

    out = tmp_path / "policy"
    code, said = call("--model", model_file, "--scenario", "single_lan", "--out", out)
    assert code == 0 and "MaskablePPO" in said
    assert load(out).manifest.training.checkpoint == "model.zip"
    code, said = call("--model", model_file, "--scenario", "single_lan", "--out", out)
    assert code == 1 and "exists" in said and "Traceback" not in said
    code, said = call("--model", model_file, "--scenario", "metro", "--out", tmp_path / "b")
    assert code == 1 and OTHER_SPACE in said
    code, said = call("--model", model_file, "--scenario", "atlantis", "--out", tmp_path / "b")
    assert code == 1 and "unknown scenario 'atlantis'" in said
    for wrong in (
        ("--model", model_file),
        (),
        ("--model", model_file, "--run", "x", "--scenario", "metro"),
        ("--run", "x", "--scenario", "metro"),
        ("--model", model_file, "--scenario", "metro", "--checkpoint", "last"),
    ):
        assert call(*wrong, "--out", tmp_path / "b")[0] == 2
    assert not (tmp_path / "b").exists()


def test_a_file_is_read_without_the_library_that_wrote_it(model_file: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules.update(stable_baselines3=None, sb3_contrib=None)  # None makes `import name` fail
import dsd_env
print(dsd_env.policy.export_sb3({str(model_file)!r}, "single_lan", {str(tmp_path / "policy")!r}).format)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "dsd_env.policy\n"), result.stderr


@pytest.mark.parametrize("missing", ["onnx", "torch"])
def test_missing_packages_are_named(
    missing: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PolicyError, match=rf"{missing}.*pip install 'dsd-env\[export\]'"):
        export_sb3(model_file, "single_lan", tmp_path / "policy")
