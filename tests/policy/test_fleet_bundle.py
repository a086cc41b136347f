"""Policies of the fleet view: their bundles, and how they run beside rules."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import dsd_env
from agents.evaluation import run_group, tasks_of
from dsd_env import policy
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.policy import MlpActor, PolicyError
from dsd_env.policy.export import export_actor
from dsd_env.policy.manifest import Training
from dsd_env.scenario import Scenario
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from tests.envs.test_fleet import SCENARIOS
from tests.scenarios import tiny


def scenario_of(**overrides: Any) -> Scenario:
    return tiny(**{"protocol__kind": "streaming", "episode__requests": 15, **overrides})


def export(space: FleetSpace, out: Path, seed: int = 0) -> Path:
    """Write a bundle of a random network."""
    rng = np.random.default_rng(seed)
    widths = (len(FleetEncoder.of(space).features), 16, sum(space.nvec))
    layers = [
        (rng.normal(size=(n, m)).astype(np.float32), rng.normal(size=n).astype(np.float32))
        for m, n in pairwise(widths)
    ]
    training = Training(algorithm="PPO", seed=seed, steps=0)
    export_actor(MlpActor(layers, "tanh", space.nvec, 2), space.scenario, training, out, fleet=space)
    return out


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return export(FleetSpace(scenario_of(), 0.3, "device"), tmp_path / "bundle")


def test_the_manifest_says_that_it_is_of_the_fleet_view(bundle: Path) -> None:
    loaded = policy.load(bundle)
    assert loaded.fleet
    fleet = loaded.manifest.action.fleet
    assert fleet is not None
    assert (fleet.control_period_s, fleet.grouping, fleet.name_targets) == (0.3, "device", False)
    assert fleet.groups == ("phone", "laptop", "workstation")
    assert fleet.places == ("colocated", "own", "edge")
    assert loaded.manifest.format_version == 3
    assert loaded.manifest.observation[0].name == "group_0.active_requests"
    pytest.importorskip("onnxruntime")
    onnx = policy.load(bundle, backend="onnx")
    observation = np.random.default_rng(1).uniform(size=len(loaded.manifest.observation)).astype(np.float32)
    mask = FleetSpace(scenario_of(), 0.3, "device").mask
    assert onnx.choose(observation, mask) == loaded.choose(observation, mask)


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_as_a_scheduler_it_decides_what_the_environment_lets_it(bundle: Path, engine: str) -> None:
    scenario = scenario_of()
    loaded = policy.load(bundle)
    result = dsd_env.simulate(scenario, f"policy:{bundle}", 3, engine=engine)
    env = EdgeCloudFleetEnv(scenario, 0.3, "device")
    observation, info = env.reset(options={"episode_seed": 3})
    plans = set()
    while "episode_metrics" not in info:
        observation, _, _, _, info = env.step(np.array(loaded.choose(observation, env.action_masks())))
        plans.add(info["plan"])
    assert len(plans) > 1, "a policy that never changes its plan shows nothing"
    assert repr(result.metrics) == repr(info["episode_metrics"])


def test_evaluations_run_it_beside_rules_with_the_same_figures(bundle: Path) -> None:
    scenario, name = scenario_of(), f"policy:{bundle}"
    results = list(run_group(tasks_of("tiny", scenario, name, [7, 8])))
    assert len(results) == 2
    for task, metrics in results:
        assert repr(metrics) == repr(dsd_env.simulate(scenario, name, task.seed).metrics)


def test_a_model_of_stable_baselines_exports_with_the_settings_of_its_environment(tmp_path: Path) -> None:
    ppo = pytest.importorskip("stable_baselines3").PPO
    scenario = scenario_of()
    envs = dsd_env.make_sb3_fleet_vec_env(scenario, 1, control_period_s=0.4, grouping="slo")
    model = ppo("MlpPolicy", envs, n_steps=8, batch_size=8, device="cpu", seed=1)
    manifest = policy.export_sb3(model, scenario, tmp_path / "a")
    fleet = manifest.action.fleet
    assert fleet is not None and (fleet.control_period_s, fleet.grouping) == (0.4, "slo")
    assert dsd_env.simulate(scenario, f"policy:{tmp_path / 'a'}", 1).decisions > 0
    model.save(tmp_path / "model.zip")
    settings = {"control_period_s": 0.4, "grouping": "slo"}
    again = policy.export_sb3(tmp_path / "model.zip", scenario, tmp_path / "b", fleet=settings)
    assert again.files["policy.npz"] == manifest.files["policy.npz"]
    with pytest.raises(PolicyError, match="reads 54 features"):
        policy.export_sb3(tmp_path / "model.zip", scenario, tmp_path / "c")
    with pytest.raises(PolicyError, match="reads 54 features"):
        policy.export_sb3(tmp_path / "model.zip", scenario, tmp_path / "d", fleet={"grouping": "device"})
    envs.close()


def test_the_script_exports_a_file_of_it_with_the_settings_given(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo = pytest.importorskip("stable_baselines3").PPO
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    envs = dsd_env.make_sb3_fleet_vec_env("single_lan", 1, control_period_s=0.4, grouping="slo")
    file, out = tmp_path / "plans.zip", tmp_path / "policy"
    ppo("MlpPolicy", envs, n_steps=8, batch_size=8, device="cpu", seed=1).save(file)
    envs.close()

    def call(*fleet: str) -> tuple[object, str]:
        words = ["--model", str(file), "--scenario", "single_lan", "--out", str(out), *fleet]
        monkeypatch.setattr("sys.argv", ["export.py", *words])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(checkout / "scripts" / "export.py"), run_name="__main__")
        said = capsys.readouterr()
        return stopped.value.code, said.out + said.err

    for fleet, message in (
        ((), "say with which settings: --fleet of scripts/export.py"),
        (("--fleet", "period=0.4"), "no setting of the fleet view is called 'period'"),
        (("--fleet", "grouping=sites"), "grouping = 'sites' is not one of"),
    ):
        code, said = call(*fleet)
        assert code == 1 and message in said, said
    code, said = call("--fleet", "control_period_s=0.4", "grouping=slo")
    assert code == 0, said
    assert f"--scenarios single_lan --schedulers jsq_goodput,policy:{out}" in said
    made = policy.load(out).manifest.action.fleet
    assert made is not None and (made.control_period_s, made.grouping) == (0.4, "slo")


def test_it_is_refused_where_it_does_not_fit(bundle: Path) -> None:
    for other, message in (
        (scenario_of(actions__gammas=[0, 2, 4]), r"gammas are \(0, 2, 4\), the policy was trained with"),
        (scenario_of(**SCENARIOS["menu"]), "its places are"),
        (dsd_env.load_scenario("single_lan"), "its groups are"),
    ):
        with pytest.raises(PolicyError, match=message):
            make_scheduler(f"policy:{bundle}").reset(other, 0)


def test_without_the_fleets_telemetry_it_says_what_is_missing(bundle: Path) -> None:
    scheduler = make_scheduler(f"policy:{bundle}")
    assert isinstance(scheduler, FleetPolicyScheduler)
    view = dsd_env.ReferenceSimulation(scenario_of(), 1).next_decision()
    assert view is not None
    with pytest.raises(RuntimeError, match="call reset"):
        scheduler.decide(view)
    scheduler.reset(scenario_of(), 1)
    with pytest.raises(SchedulerError, match="needs more than the view of one request"):
        scheduler.decide(view)


def test_who_decides_on_single_requests_refuses_it(bundle: Path) -> None:
    from dsd_env.control import ActionSpace, ObservationEncoder

    loaded, scenario = policy.load(bundle), scenario_of()
    with pytest.raises(PolicyError, match="is of the fleet view"):
        loaded.check_schema(ObservationEncoder.of(scenario), ActionSpace.of(scenario))
    with pytest.raises(ValueError, match="makes plans"):
        loaded.decide(np.zeros(len(loaded.manifest.observation), dtype=np.float32))


def test_a_policy_for_single_requests_is_no_policy_of_the_fleet(tmp_path: Path) -> None:
    from tests.serving.samples import make_bundle

    out = make_bundle(tmp_path / "single", scenario_of())
    assert not policy.load(out).fleet
    with pytest.raises(PolicyError, match="decides on single requests"):
        policy.load(out).fleet_space(scenario_of())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_period_s": 0.0}, "control_period_s"),
        ({"grouping": "city"}, "grouping"),
        ({"groups": ["phone"]}, "network.layers ends with"),
        ({"places": ["edge"]}, "there are n_placements places"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, change: dict[str, Any], message: str
) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["action"]["fleet"].update(change)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError, match=message):
        policy.load(bundle)
    data["format_version"] = 2
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError):
        policy.load(bundle)
