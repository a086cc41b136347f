"""The configuration of a training run: typed, frozen, validated, and saved completely beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from agents.config_files import ConfigModel, config_sha256, read_config
from agents.constraint import Constraint
from agents.credit import CreditWeights
from dsd_env import strict_yaml
from dsd_env.changes import changed_scenario
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import CONTROL_PERIOD_S, FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.scenario import Scenario

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=10**12)]
Width = Annotated[int, Field(ge=1, le=4096)]


class ConfigError(ValueError):
    """A training configuration is wrong; the message names file, key, value and range."""


class Ppo(ConfigModel):
    """Settings of PPO, by their names in Stable-Baselines3.

    The defaults use few, large minibatches. For networks of this size that is some ten times faster than
    SB3's default (64 × 10), which spends its time on overhead per minibatch.
    """

    learning_rate: Positive = 3e-4
    learning_rate_schedule: Literal["constant", "linear"] = Field(
        default="linear", description="linear: the rate falls to zero at the last step."
    )
    n_steps: Annotated[int, Field(ge=2)] = Field(
        default=1024, description="Number of decisions per environment and update."
    )
    batch_size: Annotated[int, Field(ge=2)] = 4096
    n_epochs: Annotated[int, Field(ge=1)] = 4
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    clip_range: Positive = 0.2
    ent_coef: NonNegative = 0.01
    vf_coef: NonNegative = 0.5
    max_grad_norm: Positive = 0.5
    target_kl: Positive | None = None


class NetworkConfig(ConfigModel):
    """Hidden layers of actor and critic, which share no layers."""

    actor: tuple[Width, ...] = Field(default=(64, 64), max_length=15)
    critic: tuple[Width, ...] = Field(default=(64, 64), max_length=15)
    activation: Literal["tanh", "relu"] = "tanh"


class CheckpointConfig(ConfigModel):
    """How often checkpoints of the run are saved; a killed run loses at most `every_steps` steps."""

    every_steps: Steps = 50_000
    keep: Annotated[int, Field(ge=1)] = 3


class Validation(ConfigModel):
    """Validation during training, by episodes on validation seeds; the best model is kept."""

    every_steps: Steps = 50_000
    episodes: Annotated[int, Field(ge=1, le=1000)] = 3
    select_by: str = Field(
        default="return", min_length=1, description="'return', or the name of an episode metric."
    )
    direction: Literal["max", "min"] | None = Field(
        default=None,
        description="Whether the best value is the highest or the lowest; optional for 'return' and for "
        "times in seconds.",
    )
    subject_to: Constraint | None = Field(
        default=None,
        description="Bound on another metric: a model that keeps to the bound is preferred to all that do "
        "not.",
    )

    @model_validator(mode="after")
    def _known_direction(self) -> Validation:
        if self.direction is None and self.select_by != "return" and "_s_" not in self.select_by:
            raise ValueError(f"direction: say 'max' or 'min' for select_by = {self.select_by!r}")
        return self

    @property
    def maximise(self) -> bool:
        """Whether higher values of `select_by` are better."""
        if self.direction is not None:
            return self.direction == "max"
        return self.select_by == "return"


class Credit(ConfigModel):
    """How rewards are credited to decisions.

    `step`: generalised advantage estimation over the environment's steps, as in any PPO. The reward of a step
    then mixes all requests in the system. `request`: advantage estimation along each request's own decisions.
    The reward between two of them is − `own_weight` × elapsed time − `price_weight` × delay caused to others,
    both in units of the scenario's reference_e2e_s, + `global_weight` × the environment's reward meanwhile,
    + `outcome_weight` × the environment's reward in the step that completes the request, which shows whether
    the request met its objective if the scenario rewards that.
    """

    kind: Literal["step", "request"] = "step"
    own_weight: NonNegative = 1.0
    price_weight: NonNegative = 0.0
    global_weight: NonNegative = 0.0
    outcome_weight: NonNegative = 0.0
    per_token: bool = Field(
        default=False, description="Make rewards relative to the mean cost per token; allows a short horizon."
    )

    @model_validator(mode="after")
    def _something(self) -> Credit:
        weights = self.own_weight, self.price_weight, self.global_weight, self.outcome_weight
        if self.kind == "request" and not any(weights):
            raise ValueError(
                "own_weight, price_weight, global_weight, outcome_weight are all 0: there would be no reward"
            )
        return self

    def weights(self, reference_s: float | NDArray[np.float64]) -> CreditWeights:
        """Return the weights in the form that rollout buffers take, :class:`agents.credit.CreditWeights`."""
        return CreditWeights(
            self.own_weight,
            self.price_weight,
            self.global_weight,
            reference_s,
            self.per_token,
            self.outcome_weight,
        )


class Imitation(ConfigModel):
    """How an actor is fitted to recorded decisions (imitation learning)."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 10
    batch_size: Annotated[int, Field(ge=8)] = 512
    learning_rate: Positive = 1e-3
    entropy: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0,
        description="Weight of the actor's entropy: an actor that imitates with certainty would not explore "
        "in the training that follows.",
    )


class WarmStart(Imitation):
    """Imitation of a scheduler before PPO; the manifest of every exported policy records it too."""

    scheduler: str = Field(
        min_length=1,
        description="Scheduler to imitate, e.g. jsq_goodput; for the fleet view, a plan (8/1/own) or a "
        "bundle of the fleet view (policy:DIR).",
    )
    decisions: Annotated[int, Field(ge=64, le=10**8)] = Field(
        default=50_000, description="Number of decisions to imitate per round."
    )
    one_in: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=4,
        description="One decision in this many is used, chosen at random, because neighbours are much alike.",
    )
    n_envs: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=8, description="Number of environments that collect decisions."
    )
    rounds: Annotated[int, Field(ge=1, le=20)] = Field(
        default=2,
        description="Number of rounds: the first visits the scheduler's states, later ones the learner's "
        "(DAgger).",
    )
    critic: bool = Field(
        default=True, description="Whether to fit the critic to the discounted returns of the last round."
    )


class FleetConfig(ConfigModel):
    """Settings of the fleet view, in which each step sets one plan for all requests."""

    control_period_s: Positive = Field(default=CONTROL_PERIOD_S, description="Time between two plans.")
    grouping: Literal["device", "slo", "device_slo"] = Field(
        default="device_slo", description="What a group is: class of devices, of objectives, or one of each."
    )
    name_targets: bool = Field(default=False, description="Whether places name targets.")


class ChoicesConfig(ConfigModel):
    """The choices that plans may make, a subset of the scenario's lists."""

    gammas: tuple[int, ...] = Field(min_length=1)
    batch_sizes: tuple[int, ...] = Field(default=(1,), min_length=1)
    places: tuple[str, ...] = Field(min_length=1)

    def allowed(self, space: FleetSpace) -> NDArray[np.bool_]:
        """Return the mask of these choices in a plan space, without choices that cannot be executed.

        Args:
            space: The plan space.

        Returns:
            bool, shape (sum(nvec),).

        Raises:
            ConfigError: A choice is not on its list, or a group is left without choices.
        """
        words = [place.word for place in space.places]
        rows = []
        for key, known in (("gammas", space.gammas), ("batch_sizes", space.batch_sizes), ("places", words)):
            chosen: tuple[int | str, ...] = getattr(self, key)
            if unknown := [value for value in chosen if value not in known]:
                raise ConfigError(f"choices.{key}: {unknown[0]!r} is not one of {list(known)}")
            rows += [value in chosen for value in known]
        allowed: NDArray[np.bool_] = space.mask & np.tile(rows, len(space.groups))
        ends = np.cumsum(space.nvec)
        for number, (begin, end) in enumerate(zip(ends - space.nvec, ends, strict=True)):
            if not allowed[begin:end].any():
                raise ConfigError(
                    f"choices: leave group {space.group_names[number // 3]!r} nothing that can be executed"
                )
        return allowed


class Part(ConfigModel):
    """One scenario of a mixture."""

    scenario: str | None = Field(
        default=None, min_length=1, description="Name or path of the scenario; default: the key."
    )
    overrides: dict[str, Any] = Field(
        default={}, description="Overrides by dotted key, applied after those of the whole mixture."
    )
    imitate: str | None = Field(
        default=None, min_length=1, description="Scheduler to imitate here, instead of the common one."
    )


class TrainConfig(ConfigModel):
    """The configuration of one training run."""

    algorithm: Literal["ppo", "maskable_ppo"] = "maskable_ppo"
    scenario: str = Field(
        default="metro", min_length=1, description="Name or path of the scenario; the first one of a mixture."
    )
    mixture: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Part] = Field(
        default={},
        max_length=24,
        description="Several scenarios instead of one, each with its own name. Every world plays one of them "
        "throughout, so that each scenario has the same share of the decisions.",
    )
    overrides: dict[str, Any] = Field(
        default={}, description="Overrides of scenario keys by dotted key, e.g. {episode.requests: 200}."
    )
    timesteps: Steps = 500_000
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    fleet: FleetConfig | None = Field(
        default=None,
        description="Train on the fleet view with these settings. vec_env then means: compiled, environments "
        "on the compiled engine in this process; subproc, on the compiled engine in one process each; dummy, "
        "on the reference engine.",
    )
    choices: ChoicesConfig | None = Field(
        default=None,
        description="Entries of the scenario's lists that a learner of the fleet view may choose; None: all. "
        "Other entries get no weights, so that no training is spent on them; the bundle keeps the complete "
        "lists.",
    )
    n_envs: Annotated[int, Field(ge=1, le=4096)] = 8
    vec_env: Literal["compiled", "dummy", "subproc"] = Field(
        default="compiled",
        description="compiled: worlds of the compiled engine. dummy, subproc: environments of the reference "
        "engine, all in this process or in one process each.",
    )
    worlds_per_seed: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Number of worlds that play the same episodes. The advantage of a decision is then taken "
        "relative to that of the other worlds at the same place: the same request or, with credit by step, "
        "the same simulated time. This removes luck from the advantage. 1: no worlds share episodes.",
    )
    rollout_s: Positive | None = Field(
        default=None,
        description="Simulated time that a rollout should span in every world. ppo.n_steps then follows from "
        "a pilot episode, and n_envs is the largest number of worlds. Null: ppo.n_steps as it is.",
    )
    rollout_decisions: Steps = Field(
        default=2**19,
        description="With rollout_s: largest number of decisions in a rollout, over all worlds. If there are "
        "too many, the number of worlds is reduced first, and then the length of the rollout.",
    )
    stagger: bool = Field(
        default=True,
        description="Whether compiled worlds start at different points of their episodes. Without effect if "
        "the run starts with an untrained learner.",
    )
    torch_threads: Annotated[int, Field(ge=1, le=256)] = 1
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    observe: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        max_length=1000,
        description="Features that the learner sees, as patterns (`request.*`); empty: all. It has no "
        "weights for the other features: for ablations, and for engines that do not report them.",
    )
    ppo: Ppo = Ppo()
    network: NetworkConfig = NetworkConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: Validation | None = Validation()
    credit: Credit = Credit()
    warm_start: WarmStart | None = None

    @model_validator(mode="after")
    def _of_one_view(self) -> TrainConfig:
        if self.fleet is None and self.choices is not None:
            raise ValueError("choices are those of plans: cut actions.… by overrides, or give fleet")
        if self.fleet is not None and self.credit.kind == "request":
            raise ValueError("credit.kind = 'request' credits decisions on single requests; fleet has none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _first_of_mixture(cls, data: Any) -> Any:
        # This also reads back a complete configuration as saved, whose scenario is the mixture's first.
        if isinstance(data, dict) and isinstance(data.get("mixture"), dict) and data["mixture"]:
            return {"scenario": next(iter(data["mixture"]))} | data
        return data

    @model_validator(mode="after")
    def _can_be_mixed(self) -> TrainConfig:
        n = len(self.mixture)
        if n == 0:
            return self
        if self.scenario != next(iter(self.mixture)):
            raise ValueError("scenario and mixture are both given: a run is trained on one or the other")
        if n == 1:
            raise ValueError("mixture has one scenario: give it as `scenario`")
        if self.n_envs % n:
            raise ValueError(f"n_envs = {self.n_envs} is no multiple of the {n} scenarios of the mixture")
        if self.warm_start is not None and self.warm_start.n_envs % n:
            raise ValueError(
                f"warm_start.n_envs = {self.warm_start.n_envs} is no multiple of the mixture's {n} scenarios"
            )
        if self.fleet is not None or self.vec_env != "compiled":
            raise ValueError("mixture: needs vec_env: compiled, and no fleet")
        if self.rollout_s is not None:
            raise ValueError("rollout_s: scenarios of a mixture differ in pace; give ppo.n_steps")
        if self.credit.per_token:
            raise ValueError("credit.per_token: a token has no common price in a mixture")
        if self.validation is not None and self.validation.select_by == "return":
            raise ValueError(
                "validation.select_by: returns of a mixture's scenarios have no common scale; name a metric"
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> TrainConfig:
        if self.n_envs % (self.worlds_per_seed * max(1, len(self.mixture))):
            each = f" of each of the {len(self.mixture)} scenarios" if self.mixture else ""
            raise ValueError(
                f"n_envs = {self.n_envs} is no multiple of worlds_per_seed = {self.worlds_per_seed}{each}: "
                "a world would have a seed for itself"
            )
        if self.worlds_per_seed > 1 and self.credit.kind == "request" and self.vec_env != "compiled":
            raise ValueError(
                f"worlds_per_seed = {self.worlds_per_seed} with credit.kind = 'request' needs vec_env: "
                "compiled: other worlds cannot be put into one state, and requests would be mistaken"
            )
        return self

    @model_validator(mode="after")
    def _batches(self) -> TrainConfig:
        if self.rollout_s is not None:
            if self.ppo.batch_size > self.rollout_decisions:
                raise ValueError(
                    f"ppo.batch_size = {self.ppo.batch_size} exceeds rollout_decisions = "
                    f"{self.rollout_decisions}: lower one or raise the other"
                )
            return self
        rollout = self.ppo.n_steps * self.n_envs
        if self.ppo.batch_size > rollout:
            raise ValueError(
                f"ppo.batch_size = {self.ppo.batch_size} exceeds the rollout, ppo.n_steps × n_envs = "
                f"{rollout}: raise n_steps or n_envs, or lower batch_size"
            )
        if rollout % self.ppo.batch_size:
            raise ValueError(
                f"ppo.batch_size = {self.ppo.batch_size} does not divide the rollout, ppo.n_steps × n_envs = "
                f"{rollout}: the last minibatch would be smaller and weigh more; change one of them"
            )
        return self

    def load_scenario(self) -> Scenario:
        """Return the scenario with its overrides; the first one of a mixture.

        Raises:
            dsd_env.scenario.ScenarioError: The scenario does not exist or is not valid.
        """
        return self.load_scenarios()[0]

    def load_scenarios(self) -> tuple[Scenario, ...]:
        """Return the scenarios of the mixture, or the single scenario, with their overrides.

        Raises:
            dsd_env.scenario.ScenarioError: A scenario does not exist or is not valid.
        """
        if not self.mixture:
            return (changed_scenario(self.scenario, self.overrides),)
        return tuple(
            changed_scenario(part.scenario or name, {**self.overrides, **part.overrides, "name": name})
            for name, part in self.mixture.items()
        )

    def offered(self) -> NDArray[np.bool_] | None:
        """Return which entries of the common lists each scenario of a mixture offers; None without mixture.

        A scenario offers the entries of its own lists, as they are before the common lists override them.

        Returns:
            bool, shape (number of scenarios, sum(nvec)).
        """
        if not self.mixture:
            return None
        scenarios = self.load_scenarios()
        longest = most_placements(scenarios)
        lists = {
            f"actions{dot}{name}"
            for name in ("gammas", "batch_sizes", "stop_thresholds")
            for dot in (".", "__")
        }
        common = {key: value for key, value in self.overrides.items() if key not in lists}
        rows = []
        for (name, part), mixed in zip(self.mixture.items(), scenarios, strict=True):
            own = changed_scenario(part.scenario or name, {**common, **part.overrides})
            rows.append(ActionSpace.of(mixed, longest).offered_by(ActionSpace.of(own, longest)))
        return np.stack(rows)

    def teachers(self) -> dict[str, str]:
        """Return the scheduler that a warm start imitates, by scenario name; empty without a warm start."""
        common = self.warm_start
        if common is None:
            return {}
        if not self.mixture:
            return {self.load_scenario().name: common.scheduler}
        return {name: part.imitate or common.scheduler for name, part in self.mixture.items()}

    def fleet_space(self, scenario: Scenario) -> FleetSpace | None:
        """Return the plan space of a scenario if the run trains on the fleet view, else None."""
        return None if self.fleet is None else FleetSpace(scenario, **self.fleet.model_dump())

    def action_sizes(self, scenarios: Sequence[Scenario]) -> tuple[int, ...]:
        """Return the sizes of the action dimensions, for the scenario or the scenarios of the mixture."""
        space = self.fleet_space(scenarios[0])
        if space is not None:
            return space.nvec
        return ActionSpace.of(scenarios[0], most_placements(scenarios)).nvec

    def feature_names(self, scenarios: Sequence[Scenario]) -> tuple[str, ...]:
        """Return the names of the observation's features, for the scenario or those of the mixture."""
        space = self.fleet_space(scenarios[0])
        if space is not None:
            return FleetEncoder.of(space).names
        return ObservationEncoder.of(scenarios[0], most_placements(scenarios)).names

    def sha256(self) -> str:
        """Return the digest of the configuration; equal configurations have equal digests."""
        return config_sha256(self)

    def to_yaml(self) -> str:
        """Return the complete configuration, defaults included, as YAML."""
        return strict_yaml.dumps(self.model_dump(mode="json"))


def most_placements(scenarios: Sequence[Scenario]) -> int:
    """Return the length of the longest candidate list of some scenarios."""
    return max(scenario.n_placements for scenario in scenarios)


def load_config(config: str | Path, **changes: Any) -> TrainConfig:
    """Load a training configuration.

    Args:
        config: Path of a YAML file, or the name of a shipped one (``"metro"``).
        **changes: New values of top-level keys; None keeps the value of the file.

    Raises:
        ConfigError: The file is not found or not YAML, or has an unknown key or an impossible value.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    return read_config(TrainConfig, config, "train", "training configuration", ConfigError, given)
