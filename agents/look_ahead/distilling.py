"""A policy of the fleet view, fitted to what a look-ahead has decided on training episodes.

The look-ahead knows what no controller can know, or has tried plans on many futures, which takes long. What a
network can repeat of its decisions from what a controller observes is what remains without either. How well
it does is measured on labels of episodes that it was not fitted to: a label that only luck explains cannot be
told from the observation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from pydantic import Field, model_validator
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.actors import actor_of
from agents.config import ConfigError, Imitation, NetworkConfig, Ppo, TrainConfig
from agents.config_files import ConfigModel, config_sha256, read_config
from agents.environments import FleetEnv, TrainingEpisodes, make_vec_env
from agents.look_ahead.config import LookAheadConfig, load_look_ahead
from agents.look_ahead.labels import Labels, base_labels_of
from agents.look_ahead.planning import LookAhead
from agents.observing import choose_only
from agents.plans import chooser_of
from agents.provenance import git_commit, versions
from agents.seeds import training_seed, validation_seeds
from agents.training import build_model
from agents.warm_start import fit_actor
from dsd_env.control.fleet import FleetSpace
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.policy.export import export_actor
from dsd_env.policy.manifest import Manifest, Training
from dsd_env.policy.network import MlpActor
from dsd_env.whole_runs.fleet import Choose, play_plans

ALGORITHM = "imitation"
"""What a bundle's manifest calls this kind of training."""


class DistilConfig(ConfigModel):
    """One policy that is distilled from a look-ahead."""

    reference: str = Field(
        min_length=1, description="Whose decisions: a look-ahead's YAML file, or the name of one."
    )
    episodes: Annotated[int, Field(ge=2, le=10_000)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=12, description="Training episodes that the look-ahead plays: how many, or their numbers."
    )
    held_out: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=3, description="How many of them are not learned from, but say how well and when to stop."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    observe: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        max_length=1000,
        description="Features that the network sees, as patterns (`target_*`); none: all. A plan that is "
        "held for some periods is most easily foretold from the plan in force, which teaches nothing.",
    )
    changed_weight: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1,
        description="How many times a period counts in which the look-ahead left its base: these are few.",
    )
    own_rounds: Annotated[int, Field(ge=0, le=20)] = Field(
        default=2,
        description="How often the policy then plays itself: in the states that it comes to, where no "
        "look-ahead has been, it learns to do what the base would.",
    )
    own_episodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=4, description="Training episodes of each such round."
    )
    network: NetworkConfig = NetworkConfig()
    imitation: Imitation = Imitation(epochs=60)
    validation_episodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8, description="Episodes of validation seeds on which the policy meets its base."
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistilConfig:
        if len(set(self.numbers)) < len(self.numbers):
            raise ValueError(f"episodes = {list(self.numbers)} names one twice")
        if self.held_out >= len(self.numbers):
            raise ValueError(
                f"held_out = {self.held_out} leaves nothing of episodes = {self.episodes} to learn from"
            )
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the episodes."""
        return tuple(range(self.episodes)) if isinstance(self.episodes, int) else self.episodes

    @property
    def seeds(self) -> list[int]:
        """Seeds of the episodes, all of them training seeds."""
        return [training_seed(self.seed, number, 0, 0) for number in self.numbers]

    def own_seeds(self, number: int) -> list[int]:
        """Return seeds of the episodes of a round in which the policy plays itself; training seeds, too."""
        return [training_seed(self.seed, each, number + 1, 0) for each in range(self.own_episodes)]

    def look_ahead(self) -> LookAheadConfig:
        """Return the configuration of the look-ahead.

        Raises:
            ConfigError: There is none of this name, or it is wrong.
        """
        try:
            return load_look_ahead(self.reference)
        except ConfigError as error:
            raise ConfigError(f"reference: {error}") from error


def load_distilling(config: str | Path) -> DistilConfig:
    """Load what is distilled: a YAML file, or the name of one in ``configs/distill``.

    Raises:
        ConfigError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(DistilConfig, config, "distill", "distilling", ConfigError)


@dataclass(frozen=True)
class Distilled:
    """A network fitted to labels.

    Attributes:
        actor: The network.
        figures: What is worth keeping: numbers of labels, of those that left the base; of the held-out ones
            the shares that the base and the network repeat, and of those that left the base the share that
            the network repeats.
    """

    actor: MlpActor
    figures: dict[str, float]


def distil(config: DistilConfig, player: LookAhead, labels: Labels) -> Distilled:
    """Fit a fresh actor of a Stable-Baselines3 policy to labels; the best state by the held-out ones is kept.

    Args:
        config: How.
        player: The look-ahead, whose plans they are.
        labels: The labels, of all episodes of the configuration.

    Raises:
        ConfigError: A pattern of ``observe`` fits no feature.
    """
    th.set_num_threads(1)  # networks of this size
    space = player.space
    apart = np.isin(labels.seeds, config.seeds[-config.held_out :])
    shown, held = labels.of(~apart), labels.of(apart)
    model = _fresh(config, player)
    choose_only(model, _seen(labels, space.nvec))
    generator = np.random.default_rng(config.seed)
    best = _fit(config, model, shown, held, space, generator)
    own = 0
    for number in range(config.own_rounds):
        seeds = config.own_seeds(number)
        driver = actor_of(model, space.nvec).action
        visited = base_labels_of(player.world, player.base, driver, seeds, player.begin_s)
        shown, own = shown.and_those(visited), own + len(visited.plans)
        best = _fit(config, model, shown, held, space, generator)
    actor = actor_of(model, space.nvec)
    repeated = _repeated(actor, held, space.mask)
    changed = held.changed
    figures = {
        "labels": float(len(labels.plans)),
        "changed": float(labels.changed.sum()),
        "own": float(own),
        "held_out": float(len(held.plans)),
        "held_out_changed": float(changed.sum()),
        "base_repeats": float(1.0 - changed.mean()),
        "policy_repeats": float(repeated.mean()),
        "policy_repeats_changed": float(repeated[changed].mean()) if changed.any() else 0.0,
        "log_likelihood": best,
    }
    return Distilled(actor, {name: round(value, 4) for name, value in figures.items()})


def _fit(
    config: DistilConfig,
    model: OnPolicyAlgorithm,
    shown: Labels,
    held: Labels,
    space: FleetSpace,
    generator: np.random.Generator,
) -> float:
    """Fit a learner to labels, and leave it as it was after the epoch that was best by the held-out ones.

    Returns:
        The mean logarithm of the probability of a held-out label.
    """
    rows = np.repeat(np.arange(len(shown.plans)), np.where(shown.changed, config.changed_weight, 1))
    masks = np.tile(space.mask, (len(rows), 1))
    best, state = -math.inf, model.policy.state_dict()

    def keep_best() -> None:
        nonlocal best, state
        value = _log_likelihood(model, held, space.mask)
        if value > best:
            best = value
            state = {name: each.clone() for name, each in model.policy.state_dict().items()}

    fit_actor(
        model,
        shown.observations[rows],
        masks,
        shown.plans[rows],
        config.imitation,
        generator,
        "distilling",
        keep_best,
    )
    model.policy.load_state_dict(state)
    return best


def _fresh(config: DistilConfig, player: LookAhead) -> OnPolicyAlgorithm:
    """Return a learner that has learned nothing."""
    ahead, space = player.config, player.space
    settings = ahead.fleet.model_dump()
    training = TrainConfig(
        algorithm="maskable_ppo",
        scenario=ahead.contest().source,
        seed=config.seed,
        fleet=ahead.fleet,
        n_envs=1,
        observe=config.observe,
        network=config.network,
        ppo=Ppo(n_steps=2, batch_size=2),
    )
    make = FleetEnv(space.scenario, "compiled", settings)
    envs = make_vec_env(space.scenario, 1, TrainingEpisodes(config.seed, 0), "dummy", make=make)
    try:
        return build_model(training, space.scenario, envs)
    finally:
        envs.close()


def _seen(labels: Labels, nvec: Sequence[int]) -> NDArray[np.bool_]:
    """Return which choices some label has, bool, shape (sum(nvec),)."""
    seen = np.zeros(sum(nvec), dtype=np.bool_)
    for plans in (labels.plans, labels.base):
        for first, column in zip(np.cumsum([0, *nvec[:-1]]), plans.T, strict=True):
            seen[first + np.unique(column)] = True
    return seen


def _log_likelihood(model: OnPolicyAlgorithm, labels: Labels, mask: NDArray[np.bool_]) -> float:
    """Return the mean logarithm of the probability of labels."""
    masks = th.as_tensor(np.tile(mask, (len(labels.plans), 1)))
    policy: Any = model.policy  # one that takes masks
    with th.no_grad():
        _, log_prob, _ = policy.evaluate_actions(
            th.as_tensor(labels.observations), th.as_tensor(labels.plans), action_masks=masks
        )
    return float(log_prob.mean())


def _repeated(actor: MlpActor, labels: Labels, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where the actor's plan is that of a label, shape (N,)."""
    plans = [actor.action(observation, mask) for observation in labels.observations]
    return np.asarray((np.array(plans) == labels.plans).all(axis=1))


def validate(config: DistilConfig, player: LookAhead, actor: MlpActor) -> dict[str, Any]:
    """Return what base and policy come to on validation episodes, by the metrics of the objective.

    Args:
        config: How many episodes.
        player: The look-ahead, whose base it is.
        actor: The policy.
    """
    space, ahead = player.space, player.config
    settings = ahead.fleet.model_dump()
    env = EdgeCloudFleetEnv(space.scenario, engine="compiled", **settings)
    choose: dict[str, Choose] = {"base": chooser_of(space, ahead.base), "policy": actor.action}
    seeds = validation_seeds(config.validation_episodes)
    result: dict[str, Any] = {"validation_episodes": len(seeds)}
    for name, its in choose.items():
        played = [play_plans(env, its, seed)[1] for seed in seeds]
        result[name] = {
            metric: round(float(np.mean([metrics[metric] for metrics in played])), 5)
            for metric in player.objective.metrics
        }
    return result


def export_distilled(
    config: DistilConfig,
    player: LookAhead,
    found: Distilled,
    validated: dict[str, Any],
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write a distilled policy as a bundle.

    Raises:
        dsd_env.policy.PolicyError: ``out`` is taken.
    """
    teacher = {
        **config.imitation.model_dump(mode="json"),
        "scheduler": f"look_ahead:{Path(config.reference).stem}",
        "episodes": len(config.numbers),
        "result": found.figures,
    }
    training = Training(
        algorithm=ALGORITHM,
        seed=config.seed,
        steps=int(found.figures["labels"] + found.figures["own"] - found.figures["held_out"]),
        config_sha256=config_sha256(config),
        warm_start=json.dumps(teacher, sort_keys=True),
        versions=versions(),
        git_commit=git_commit(Path(__file__).parent),
        notes=json.dumps(validated, sort_keys=True),
    )
    return export_actor(
        found.actor, player.space.scenario, training, out, overwrite=overwrite, fleet=player.space
    )
