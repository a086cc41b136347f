"""Training runs of PPO or MaskablePPO on the environment, resumable and fully recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from agents import checkpoints, provenance
from agents.callbacks import CheckpointCallback, ProgressCallback, ValidationCallback
from agents.config import ConfigError, TrainConfig, load_config
from agents.credit import MaskableRequestRolloutBuffer, RequestCreditCallback, RequestRolloutBuffer
from agents.environments import EnvFactory, FleetEnv, TrainingEpisodes, make_vec_env
from agents.horizons import SpanCallback, rollout_shape, with_shape
from agents.observing import choose_only, see_only
from agents.policies import FastMaskablePolicy, FastPolicy
from agents.rollouts import ByPlans
from agents.shared_seeds import SharedSeedsCallback, groups_of
from agents.stagger import StaggerCallback
from agents.warm_start import warm_start
from dsd_env.files import write_json, write_text
from dsd_env.locks import LOCK_FILE, hold
from dsd_env.scenario import Scenario, load_scenario

CONFIG_FILE = "config.yaml"
SCENARIO_FILE = "scenario.json"
RECORD_FILE = "run.json"

_ACTIVATIONS: dict[str, type[th.nn.Module]] = {"tanh": th.nn.Tanh, "relu": th.nn.ReLU}


class RunError(ValueError):
    """A run's directory cannot be used as requested; the message says what to do."""


def build_model(
    config: TrainConfig, scenario: Scenario | Sequence[Scenario], vec_env: VecEnv
) -> OnPolicyAlgorithm:
    """Return an untrained learner for a configuration, on its scenario or the scenarios of its mixture."""
    ppo = config.ppo
    scenarios = [scenario] if isinstance(scenario, Scenario) else scenario
    references_s = np.resize([each.reward.reference_e2e_s for each in scenarios], vec_env.num_envs)
    maskable = config.algorithm == "maskable_ppo"
    buffer: dict[str, Any] = {}
    if config.credit.kind == "request":
        buffer = {
            "rollout_buffer_class": MaskableRequestRolloutBuffer if maskable else RequestRolloutBuffer,
            "rollout_buffer_kwargs": {"weights": config.credit.weights(references_s)},
        }
    linear = ppo.learning_rate_schedule == "linear"
    algorithm: Callable[..., OnPolicyAlgorithm] = MaskablePPO if maskable else PPO
    model = algorithm(
        FastMaskablePolicy if maskable else FastPolicy,
        vec_env,
        learning_rate=LinearSchedule(ppo.learning_rate, 0.0, 1.0) if linear else ppo.learning_rate,
        n_steps=ppo.n_steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.n_epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        ent_coef=ppo.ent_coef,
        vf_coef=ppo.vf_coef,
        max_grad_norm=ppo.max_grad_norm,
        target_kl=ppo.target_kl,
        policy_kwargs={
            "net_arch": {"pi": list(config.network.actor), "vf": list(config.network.critic)},
            "activation_fn": _ACTIVATIONS[config.network.activation],
        },
        seed=config.seed,
        device=config.device,
        **buffer,
    )
    if config.observe:
        see_only(model, config.feature_names(scenarios), config.observe)
    space = config.fleet_space(scenarios[0])
    if space is not None and config.choices is not None:
        choose_only(model, config.choices.allowed(space))
    return model


def scenarios_json(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """Return the content of ``scenario.json``: the scenario, or those of a mixture by name."""
    contents = {scenario.name: scenario.model_dump(mode="json") for scenario in scenarios}
    return {"mixture": contents} if len(contents) > 1 else contents[scenarios[0].name]


def scenarios_of_json(data: dict[str, Any]) -> tuple[Scenario, ...]:
    """Return the scenarios that the content of ``scenario.json`` describes."""
    return (
        tuple(map(load_scenario, data["mixture"].values())) if "mixture" in data else (load_scenario(data),)
    )


def check_run(config: TrainConfig, scenarios: Sequence[Scenario], run: Path, resume: bool) -> None:
    """Check that a run can be begun or resumed in a directory, without writing anything.

    Raises:
        RunError: The directory is in use, holds another configuration, or has no run to resume.
    """
    if resume:
        if not (run / CONFIG_FILE).is_file():
            raise RunError(
                f"{run}: no run to resume ({CONFIG_FILE} is missing); leave --resume out to begin one"
            )
        if load_config(run / CONFIG_FILE).model_copy(update={"timesteps": config.timesteps}) != config:
            raise RunError(
                f"{run}: was begun with another configuration, see {run / CONFIG_FILE}; resume with that one"
            )
        if json.loads((run / SCENARIO_FILE).read_text(encoding="utf-8")) != scenarios_json(scenarios):
            names = " or ".join(repr(scenario.name) for scenario in scenarios)
            raise RunError(f"{run}: scenario {names} has changed since the run began; begin a new run")
    elif run.exists() and (not run.is_dir() or {file.name for file in run.iterdir()} - {LOCK_FILE}):
        raise RunError(
            f"{run}: exists and is not empty; give --resume to continue it, or choose another directory"
        )


def prepare_run(
    config: TrainConfig, scenarios: Sequence[Scenario], run: Path, resume: bool
) -> checkpoints.Checkpoint | None:
    """Make a run's directory or find the checkpoint to resume from; write configuration, scenario and record.

    Returns:
        The checkpoint to continue from; None starts from the beginning.

    Raises:
        RunError: The directory is in use, holds another configuration, or has no run to resume.
    """
    check_run(config, scenarios, run, resume)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoints.newest(run) if resume else None
    write_text(run / CONFIG_FILE, config.to_yaml())
    write_json(run / SCENARIO_FILE, scenarios_json(scenarios))
    record = _read_record(run) if resume else {"starts": []}
    record["starts"].append(
        {
            "time": provenance.now_utc(),
            "step": checkpoint.num_timesteps if checkpoint else 0,
            "versions": provenance.versions(),
            "git_commit": provenance.git_commit(Path(__file__).parent),
            "arguments": sys.argv[1:],
        }
    )
    write_json(run / RECORD_FILE, record)
    return checkpoint


def _read_record(run: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run / RECORD_FILE}: not readable ({error}); restore it or begin a new run"
        ) from error
    return record


def train(
    config: TrainConfig,
    run: str | Path,
    *,
    resume: bool = False,
    make_env: EnvFactory | None = None,
    progress: bool = True,
) -> checkpoints.Checkpoint:
    """Train a scheduler.

    Args:
        config: The configuration.
        run: Directory of the run.
        resume: Whether to continue from the newest valid checkpoint (from the start if there is none yet).
        make_env: Function that makes one environment; None: the registered environment on the configured
            scenario.
        progress: Whether to show a progress bar.

    Returns:
        The last state, saved as ``final.zip``.

    Raises:
        RunError: The directory cannot be used.
        ConfigError: For the fleet view, `choices` do not fit the scenario, or the warm start's scheduler
            makes no plans for the scenario.
        dsd_env.locks.InUseError: Another process is training in the directory.
        dsd_env.scenario.ScenarioError: The scenario is not valid.
        KeyboardInterrupt: The user interrupted the training; the state has been saved as a checkpoint.
    """
    run = Path(run)
    scenarios = config.load_scenarios()
    priced = config.credit.price_weight > 0
    # All parts of a run use the same engine; only the collection of rollouts may use several processes.
    engine = "compiled" if config.vec_env == "compiled" else "dummy"
    if config.fleet is not None and make_env is None:
        simulates = "reference" if config.vec_env == "dummy" else "compiled"
        make_env, engine = FleetEnv(scenarios[0], simulates, config.fleet.model_dump()), "dummy"
    ground = scenarios if config.mixture else scenarios[0]
    make_envs = partial(make_vec_env, ground, price_delays=priced, make=make_env, offered=config.offered())
    th.set_num_threads(config.torch_threads)
    # Find errors before the directory is made.
    space = config.fleet_space(scenarios[0])
    if space is not None and config.choices is not None:
        config.choices.allowed(space)
    if space is not None and config.warm_start is not None:
        try:
            ByPlans(space, config.warm_start.scheduler)
        except ConfigError as error:
            raise ConfigError(f"warm_start.scheduler: {error}") from error
    make_envs(1, TrainingEpisodes(config.seed, 0), engine).close()
    check_run(config, scenarios, run, resume)
    with hold(run / LOCK_FILE, run):
        return _train(config, scenarios, run, resume, make_envs, engine, make_env, progress)


def _train(
    config: TrainConfig,
    scenarios: Sequence[Scenario],
    run: Path,
    resume: bool,
    make_envs: Callable[..., VecEnv],
    engine: str,
    make_env: EnvFactory | None,
    progress: bool,
) -> checkpoints.Checkpoint:
    """Train in a locked directory; see :func:`train`."""
    start, scenario = prepare_run(config, scenarios, run, resume), scenarios[0]
    step = start.num_timesteps if start else 0
    by_request = config.credit.kind == "request"
    shape = rollout_shape(config, scenario)
    if shape is not None:
        record = _read_record(run)
        record["starts"][-1]["rollout"] = shape._asdict()
        write_json(run / RECORD_FILE, record)
    config = with_shape(config, shape)
    kind = "dummy" if config.fleet is not None and config.vec_env == "compiled" else config.vec_env
    groups = groups_of(config.n_envs, config.worlds_per_seed, len(scenarios))
    vec_env = make_envs(config.n_envs, TrainingEpisodes(config.seed, step, tuple(groups.tolist())), kind)
    validation = (
        ValidationCallback(
            run,
            config.validation,
            scenarios,
            engine,
            make=make_env,
            at_start=config.warm_start is not None,
            offered=config.offered(),
        )
        if config.validation
        else None
    )
    bar = ProgressCallback(config.timesteps)
    try:
        model = build_model(config, scenarios, vec_env)
        model.set_logger(configure(str(run / "tensorboard"), ["tensorboard"]))
        if start:
            checkpoints.restore(model, start)
            # Draw other random numbers than the first start, for sampling actions and shuffling minibatches.
            model.set_random_seed((config.seed + step) % 2**31)
        elif config.warm_start:
            envs = partial(make_envs, kind=engine)
            teachers = config.teachers()
            space = config.fleet_space(scenario)
            figures = warm_start(
                model,
                envs,
                scenario,
                config.warm_start,
                config.credit,
                config.seed,
                teachers,
                space,
                progress,
            )
            record = _read_record(run)
            about = {**config.warm_start.model_dump(mode="json"), "result": figures}
            record["warm_start"] = about | ({"teachers": teachers} if config.mixture else {})
            write_json(run / RECORD_FILE, record)
        saver = CheckpointCallback(run, config.checkpoint)
        callbacks: list[BaseCallback] = [saver]
        if config.stagger and kind == "compiled" and (start or config.warm_start):
            episodes = TrainingEpisodes(config.seed, step)
            ahead = partial(make_envs, kind=engine)
            callbacks.append(StaggerCallback(ahead, scenario, episodes, mixed=len(scenarios)))
        if config.worlds_per_seed > 1:
            period_s = config.fleet.control_period_s if config.fleet else None
            callbacks.append(SharedSeedsCallback(groups, period_s))
        callbacks += [validation] if validation else []
        callbacks += [RequestCreditCallback()] if by_request else []
        callbacks += [SpanCallback(scenarios)]
        callbacks += [bar] if progress else []
        try:
            model.learn(
                max(0, config.timesteps - step),
                callback=CallbackList(callbacks),
                reset_num_timesteps=step == 0,
            )
        except KeyboardInterrupt:
            saver.save()
            raise
        final = checkpoints.save(model, run / checkpoints.LAST)
        saver.save()
        return final
    finally:
        bar.close()
        vec_env.close()


__all__ = ["ConfigError", "RunError", "build_model", "check_run", "prepare_run", "train"]
