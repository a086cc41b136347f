"""The fleet view of the environment: each step sets one plan for all requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control.fleet import CONTROL_PERIOD_S, FleetSpace, Plan
from dsd_env.control.fleet_view import FleetEncoder, FleetView, fleet_view
from dsd_env.control.rewards import REWARD_TERMS, reward_factors, reward_weights, running_totals
from dsd_env.envs.base import EpisodicEnv
from dsd_env.envs.checks import check_discount
from dsd_env.envs.episodes import ended_before_it_began
from dsd_env.envs.fleet_worlds import CompiledFleetWorld, FleetWorld, SavedFleet, make_fleet_world
from dsd_env.envs.infos import NumericFleetInfos, check_infos
from dsd_env.envs.limits import checked_max_episode_steps, surrounding_time_limit
from dsd_env.scenario import Scenario, load_scenario

_OF_EPISODE = (
    "_over",
    "_plan",
    "_totals",
    "_completed",
    "_steps",
    "_invalid",
    "_now_s",
    "_time_limit",
)
"""Attributes that hold the state of an episode, apart from the world."""


@dataclass(frozen=True, slots=True)
class FleetState:
    """A saved state of an environment of the fleet view; see :meth:`EdgeCloudFleetEnv.clone_state`.

    Attributes:
        engine: Engine that the state was made on.
        space: Plan space of the scenario.
        episode_seed: Seed of the episode.
        generator: State of the generator from which the seeds of later episodes are drawn.
        world: The world.
        of_episode: The environment's other attributes that belong to the episode, by name.
    """

    engine: str
    space: FleetSpace
    episode_seed: int
    generator: Mapping[str, Any]
    world: SavedFleet
    of_episode: Mapping[str, Any]


class EdgeCloudFleetEnv(EpisodicEnv):
    """Scheduling edge-cloud speculative decoding, one plan for the whole fleet per step.

    ## Description

    The world is that of `dsd_env/EdgeCloud-v0`: clients at the network's edge send requests to large language
    models in the cloud, drafters propose tokens, and targets verify them. There a step decides for a single
    request, many thousand times a second. Here one step every `control_period_s` sets a *plan*: for every
    *group* of requests (a class of devices, a class of objectives, or one of each) a speculation length, a
    batch size and a place to draft at. Until the next plan, each request's decisions follow its group's
    choice by the rule of `static_map`: at admission the request goes to the offered target with the fewest
    requests; its drafts are made at the place of the plan, and if that is an edge server, at the one with the
    shortest wait; if no drafter there can draft now, the request decodes plainly. A fixed plan is
    `static_map` with the same choices, bit for bit.

    The fleet view suits choices from which no single request profits: whose drafts may lengthen an iteration
    for all requests in it, how far windows should go as the load changes, who should yield at admission.

    Episodes, seeds, engines, reward terms and metrics are those of the per-request view. The same seed gives
    the same world, so plans, rules and policies of both views can be compared episode by episode. The
    compiled engine carries out the plan inside compiled code.

    A plan is due at every multiple of `control_period_s` in simulated time. The step ends when the first
    request at or after that time needs a decision, because a plan can have no effect before; a period without
    a decision is therefore no step. Requests under way follow a new plan from their next decision on, which
    is their next round or the next renewal of their stream.

    ## Action Space

    The action is a `ndarray` with shape `(3 · n_groups,)`, dtype `int64`, in
    `MultiDiscrete([n_gamma, n_batch, n_places] * n_groups)`. `env.unwrapped.space` names the groups and
    places, and translates between indices and words (`space.action([(8, 1, "edge"), …])`,
    `space.describe(plan)`). For group i:

    | Num     | Action             | Meaning                                                                      |
    |---------|--------------------|------------------------------------------------------------------------------|
    | 3·i     | Speculation length | Index into `gammas`; 0 is plain decoding.                                    |
    | 3·i + 1 | Batch size         | Index into `batch_sizes`: B; 1 waits nowhere (see `dsd_env/EdgeCloud-v0`).   |
    | 3·i + 2 | Place              | Index into `places`: a site, with its drafter where a site has several.      |

    Groups are ordered by class of devices and, within a class, by class of objectives, both in the scenario's
    order; classes with the same objectives form one group. Places are written as in `static_map`:
    `colocated`, `own`, `edge`, followed by `:MODEL` if a site has several drafters, and by `+branches` if
    branches are offered. With `name_targets` each place also comes once per target, by number (`edge@1`); the
    group's new requests then go to that target.

    `action_masks()` marks the choices that can be executed (`bool`, shape `(sum(nvec),)`); the mask never
    changes. A group whose devices have no drafter cannot draft at `own`, and no batch size may be larger than
    the largest `max_num_seqs`. A masked action is not an error: drafting where none of a group's requests
    ever can becomes plain decoding, and a batch size that is too large is clipped. `info["invalid_actions"]`
    counts such choices.

    ## Observation Space

    The observation is a `ndarray` with shape `(n,)`, dtype `float32`, in a `Box` within [-1, 1]. It holds
    what a controller beside the targets can know: periodic reports of the servers, the targets' knowledge of
    their requests, round-trip times measured by the devices, and nothing about the future. Scaling is fixed;
    `x` is the raw value in the unit given. The features of group 0 come first, then those of group 1, …, of
    the targets, of the draft models, and of the system. `env.unwrapped.view` holds the same information as
    typed values.

    | Observation of the fleet | Unit | Scaling | Range | Meaning |
    |---|---|---|---|---|
    | `group_i.active_requests` | requests | x / (x + 16) | [0, 1] | its requests that a target knows, not finished |
    | `group_i.first_token_due` | requests | x / (x + 8) | [0, 1] | those of them that have no token yet |
    | `group_i.context_tokens` | tokens | x / (x + 1024) | [0, 1] | mean length of their contexts |
    | `group_i.acceptance_mean` | 1 | x | [0, 1] | mean of their acceptance rates (EMA); 0.6 before any draft |
    | `group_i.acceptance_spread` | 1 | x | [0, 1] | standard deviation of these |
    | `group_i.rtt_s` | s | x / (x + 0.03) | [0, 1] | mean round-trip time of its devices (EMA) |
    | `group_i.rtt_deviation_s` | s | x / (x + 0.005) | [0, 1] | mean of its mean deviations |
    | `group_i.attainment` | 1 | x | [0, 1] | share that met its SLO (EMA), the least of its classes |
    | `group_i.ttft_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | mean of 1 - age / bound on TTFT, of those without a token |
    | `group_i.tpot_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | mean of 1 - TPOT so far / bound |
    | `group_i.late_share` | 1 | x | [0, 1] | share whose TPOT so far is above its bound |
    | `group_i.gamma` | tokens | x / (x + 4) | [0, 1] | speculation length of the plan in force |
    | `group_i.batch_size` | requests | x / (x + 4) | [0, 1] | B of the plan in force |
    | `group_i.place_j` | 0/1 | x | [0, 1] | the plan in force drafts at place j |
    | `target_i.up` | 0/1 | x | [0, 1] | up, by its newest report; so are the following |
    | `target_i.resident` | requests | x / (x + 64) | [0, 1] | admitted there: they hold a seat and KV |
    | `target_i.waiting` | requests | x / (x + 16) | [0, 1] | requests that wait for admission |
    | `target_i.queued` | sequences | x / (x + 16) | [0, 1] | waiting for admission or for an iteration |
    | `target_i.running` | sequences | x / (x + 32) | [0, 1] | sequences in the iteration under way |
    | `target_i.iteration_s` | s | x / (x + 0.04) | [0, 1] | iteration time (EMA) |
    | `target_i.token_s` | s | x / (x + 0.0001) | [0, 1] | marginal time of a new token |
    | `target_i.kv_fraction` | 1 | x | [0, 1] | share of the KV pool reserved |
    | `target_i.prefill_tokens` | tokens | x / (x + 1024) | [0, 1] | context tokens still to be prefilled |
    | `target_i.plain` | requests | x / (x + 32) | [0, 1] | its requests that decode plainly |
    | `target_i.colocated` | requests | x / (x + 32) | [0, 1] | its requests that draft on its GPUs |
    | `target_i.remote` | requests | x / (x + 32) | [0, 1] | its requests that draft elsewhere |
    | `target_i.gamma_mean` | tokens | x / (x + 4) | [0, 1] | mean drafts in force of those that draft |
    | `target_i.seat_fraction` | 1 | x | [0, 1] | share of its seats (`max_num_seqs`) that are taken |
    | `target_i.iteration_tokens` | tokens | x / (x + 128) | [0, 1] | new tokens of an iteration of all its requests |
    | `model_i.pooled_acceptance` | 1 | x | [0, 1] | chance that a draft by it is right, over all requests |
    | `system.active_requests` | requests | x / (x + 64) | [0, 1] | requests resident at all targets |
    | `system.arrivals_per_s` | 1/s | x / (x + 8) | [0, 1] | arrival rate (EMA) |
    | `system.tokens_per_s` | tokens/s | x / (x + 2000) | [0, 1] | rate of committed tokens (EMA) |
    | `system.edge_up` | 1 | x | [0, 1] | share of the edge servers that are up |
    | `system.edge_jobs` | jobs | x / (x + 4) | [0, 1] | mean number of draft jobs at an edge server |
    | `system.edge_wait_s` | s | x / (x + 0.02) | [0, 1] | mean expected wait for an edge server |
    | `system.edge_wait_most_s` | s | x / (x + 0.02) | [0, 1] | longest expected wait for one |

    ## Rewards

    The reward is the sum of the terms of `dsd_env/EdgeCloud-v0` (`info["reward_terms"]`), weighted by the
    scenario (`reward.weights`), over the simulated time since the previous plan.

    ## Starting State

    The system is empty, and the first decision of the first request is due. The plan in force is then plain
    decoding for all groups, but no request is decided by it. The episode's seed is drawn from `np_random`, so
    `reset(seed=s)` fixes the seeds of this and all later episodes, as in the per-request view: the same seeds
    give the same worlds.

    ## Episode End

    1. Termination: the workload is finished (the scenario sets `episode.total_requests`, and all are done).
    2. Truncation: as in the per-request view; `max_episode_steps` counts plans.

    The last step returns the observation at the moment at which the episode ended.

    ## Info

    | Key                  | When      | Value                                                                       |
    |----------------------|-----------|-----------------------------------------------------------------------------|
    | `now_s`              | always    | Simulated time.                                                             |
    | `dt_s`               | always    | Simulated time since the plan before (at reset: since the start).           |
    | `plan`               | always    | The plan in force in words, `GROUP=G/B/PLACE+…`.                            |
    | `episode_seed`       | reset,    | Seed of the episode; `reset(options={"episode_seed": …})` repeats it.       |
    |                      | last step |                                                                             |
    | `scenario`           | reset,    | Name of the scenario.                                                       |
    |                      | last step |                                                                             |
    | `reward_terms`       | step      | The terms by name, unweighted.                                              |
    | `completed_requests` | step      | Requests that completed during the step.                                    |
    | `resolved`           | step      | Decisions on requests changed by rule so far in this episode, by reason.    |
    | `invalid_actions`    | step      | Choices of groups that could not be executed, so far in this episode.       |
    | `discount`           | step      | exp(−`discount_rate_per_s` · dt), if that argument is given.                |
    | `episode_metrics`    | last step | Every metric by name (docs/simulator.md).                                   |

    The table shows the infos with `infos="full"`. With `infos="numeric"` every info, also of a reset, has the
    same keys with arrays of the same shapes: `plan` as indices, `resolved` as a count per reason,
    `reward_terms` and `episode_metrics` as arrays in the order of `dsd_env.envs.REWARD_TERMS` and `METRICS`.
    The metrics are NaN before the last step, which `has_episode_metrics` marks. With `infos="none"` all infos
    are empty.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import dsd_env
    >>> env = gym.make("dsd_env/EdgeCloudFleet-v0", scenario="single_lan")
    >>> env
    <OrderEnforcing<PassiveEnvChecker<EdgeCloudFleetEnv<dsd_env/EdgeCloudFleet-v0>>>>
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    ```

    | Parameter             | Type                                 | Default        | Description                       |
    |-----------------------|--------------------------------------|----------------|-----------------------------------|
    | `scenario`            | **str**, **Path**, Scenario, mapping | `"metro"`      | Name, file or content             |
    | `control_period_s`    | **float**                            | `0.5`          | Time between two plans, in s      |
    | `grouping`            | **str**                              | `"device_slo"` | `"device"`, `"slo"`, or both      |
    | `name_targets`        | **bool**                             | `False`        | Places name targets               |
    | `render_mode`         | **str** or None                      | `None`         | `"ansi"`                          |
    | `engine`              | **str**                              | `"auto"`       | `"compiled"` or `"reference"`     |
    | `discount_rate_per_s` | **float** or None                    | `None`         | Adds `info["discount"]`           |
    | `engine_options`      | mapping or None                      | `None`         | Bounds of the compiled engine     |
    | `max_episode_steps`   | **int** or None                      | `None`         | Truncates the episode             |
    | `infos`               | **str**                              | `"full"`       | `"numeric"` or `"none"`           |

    `clone_state()` and `restore_state(state)` return to an earlier plan, for planning by look-ahead.

    `gym.make_vec("dsd_env/EdgeCloudFleet-v0", num_envs=8, threads=2)` makes many environments at once, and
    `dsd_env.make_sb3_fleet_vec_env` does so for Stable-Baselines3. On reset, `options={"episode_seed": int}`
    sets the episode's own seed: the episode is then the one that
    `dsd_env.simulate(scenario, scheduler, seed)` runs with it.

    ## Version History

    * v0: Initial version.
    """  # noqa: E501

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Path | Scenario | Mapping[str, Any] = "metro",
        control_period_s: float = CONTROL_PERIOD_S,
        grouping: str = "device_slo",
        name_targets: bool = False,
        render_mode: str | None = None,
        engine: str = "auto",
        discount_rate_per_s: float | None = None,
        engine_options: Mapping[str, int] | None = None,
        max_episode_steps: int | None = None,
        infos: str = "full",
        *,
        like: EdgeCloudFleetEnv | None = None,
    ) -> None:
        # `like` is an environment with the same arguments, whose compiled scenario this one shares.
        self._check_render_mode(render_mode)
        check_discount(discount_rate_per_s)
        self.render_mode = render_mode
        if like is None:
            self.scenario = _one_scenario(scenario)
            self.space = FleetSpace(self.scenario, control_period_s, grouping, name_targets)
        else:
            self.scenario, self.space = like.scenario, like.space
        twin: FleetWorld | None = None if like is None else like._world
        layout = twin.layout if isinstance(twin, CompiledFleetWorld) else None
        self._world: FleetWorld = make_fleet_world(engine, self.space, engine_options, layout)
        self.encoder = FleetEncoder.of(self.space)
        self.action_space = gym.spaces.MultiDiscrete(list(self.space.nvec))
        self.observation_space = gym.spaces.Box(self.encoder.low, self.encoder.high, dtype=np.float32)
        self._factors = reward_factors(self.scenario)
        weights = reward_weights(self.scenario)
        self._weighted = [(index, weight) for index, weight in enumerate(weights) if weight]
        self._discount_rate_per_s = discount_rate_per_s
        self._max_steps = checked_max_episode_steps(max_episode_steps)
        self._infos, self._numeric = check_infos(infos), NumericFleetInfos(discount_rate_per_s)
        self._time_limit: int | None = None
        self._over = True
        self._ahead: tuple[Plan, bool] | None = None

    @property
    def engine(self) -> str:
        """Name of the engine that simulates: `compiled` or `reference`."""
        return self._world.engine

    @property
    def view(self) -> FleetView:
        """Typed view of what the controller knows now.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the fleet")
        return self._view

    @property
    def plan(self) -> Plan:
        """The plan in force: indices, int64, shape (groups, 3)."""
        self._need_episode("looking at the plan")
        return self._plan

    @property
    def simulation(self) -> Any:
        """The simulation of this episode, for inspection.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the simulation")
        return self._world.simulation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of `np_random`, from which the seeds of this and later episodes are drawn.
            options: ``{"episode_seed": int}`` sets this episode's own seed.

        Returns:
            The first observation, and `info`.

        Raises:
            ValueError: An option is unknown, or a seed is not a whole number of at least 0; an episode's seed
                must also be below 2^63.
            RuntimeError: The scenario's horizon ends before the first request.
        """
        episode_seed = self._seed_of_reset(seed, options)
        self._episode_seed, self._over, self._ahead = None, True, None
        if not self._world.begin(episode_seed):
            raise ended_before_it_began(self.scenario)
        self._episode_seed, self._over = episode_seed, False
        self._plan = self.space.first_plan
        self._totals: tuple[float, ...] = (0.0,) * len(self._factors)
        self._completed = self._steps = self._invalid = 0
        self._now_s: float = self._world.simulation.now_s
        self._time_limit = surrounding_time_limit(self)
        info = {
            "now_s": self._now_s,
            "dt_s": self._now_s,
            "plan": self.space.describe(self._plan),
            "episode_seed": episode_seed,
            "scenario": self.scenario.name,
        }
        return self._look(), self._told(info)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return an info in the form that the argument `infos` asks for."""
        if self._infos == "full":
            return info
        assert self._episode_seed is not None
        return {} if self._infos == "none" else self._numeric.of(info, self._episode_seed, self._plan)

    def _look(self) -> NDArray[np.float32]:
        self._view = fleet_view(self.space, self._world.simulation.fleet_telemetry(), self._plan)
        return self.encoder.encode(self._view)

    def simulate_ahead(self, action: NDArray[np.int64]) -> None:
        """Simulate ahead of time what ``step(action)`` will simulate, so that the step returns at once.

        Vectors of environments call this in threads: compiled code of several worlds runs in parallel, while
        the rest of a step does not.

        Raises:
            ValueError: The action is not in the action space.
            gymnasium.error.ResetNeeded: The episode is over or was never begun.
            EngineError: A bounded table of the compiled engine is full.
        """
        if self._episode_seed is None or self._over:
            raise gym.error.ResetNeeded("the episode is over or was never begun: call reset()")
        plan = self.space.plan(action)
        due = self._world.follow(plan, self.space.next_tick_s(self._now_s))
        self._ahead = plan, due

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Set a plan, and simulate until the next plan is due.

        Args:
            action: Indices of speculation length, batch size and place of each group, shape (3 · groups,).

        Raises:
            ValueError: The action is not in the action space, or differs from the one given to
                :meth:`simulate_ahead`.
            gymnasium.error.ResetNeeded: The episode is over or was never begun.
            EngineError: A bounded table of the compiled engine is full (see `engine_options`).
        """
        if self._ahead is None:
            self.simulate_ahead(action)
        elif not np.array_equal(self.space.plan(action), self._ahead[0]):
            raise ValueError("simulate_ahead has been called with another action: step with that one")
        assert self._ahead is not None
        (self._plan, due), self._ahead = self._ahead, None
        simulation = self._world.simulation
        self._steps += 1
        self._invalid += self.space.invalid(self._plan)
        cut = self._reached(self._max_steps)
        terminated = not due and bool(simulation.terminated)
        truncated = (not due and not terminated) or cut
        self._over = terminated or truncated
        totals = simulation.totals
        now = running_totals(totals)
        terms = [
            factor * (after - before)
            for factor, after, before in zip(self._factors, now, self._totals, strict=True)
        ]
        reward = 0.0
        for index, weight in self._weighted:
            reward += weight * terms[index]
        dt_s = simulation.now_s - self._now_s
        info: dict[str, Any] = {
            "now_s": simulation.now_s,
            "dt_s": dt_s,
            "plan": self.space.describe(self._plan),
            "reward_terms": dict(zip(REWARD_TERMS, terms, strict=True)),
            "completed_requests": totals.completed - self._completed,
            "resolved": dict(sorted(simulation.resolved.items())),
            "invalid_actions": self._invalid,
        }
        self._totals, self._now_s, self._completed = now, simulation.now_s, totals.completed
        if self._discount_rate_per_s is not None:
            info["discount"] = math.exp(-self._discount_rate_per_s * dt_s)
        if self._over or self._reached(self._time_limit):
            info["episode_metrics"] = simulation.metrics()
            info["episode_seed"] = self._episode_seed
            info["scenario"] = self.scenario.name
        return self._look(), reward, terminated, truncated, self._told(info)

    def clone_state(self) -> FleetState:
        """Return the environment's state, which :meth:`restore_state` can restore any number of times.

        The state holds the world, the episode, and the generator of later episodes' seeds, so that everything
        continues as if the steps in between had never been taken. It does not cover wrappers. On the compiled
        engine the state is a copy of the world; the reference engine keeps the plans and repeats the episode
        to return to the state.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("cloning the state")
        assert self._episode_seed is not None
        return FleetState(
            self.engine,
            self.space,
            self._episode_seed,
            self.np_random.bit_generator.state,
            self._world.save(),
            {name: getattr(self, name) for name in _OF_EPISODE},
        )

    def restore_state(self, state: FleetState) -> NDArray[np.float32]:
        """Restore a state of this environment, or of another one with the same arguments.

        Returns:
            The observation for the plan that is due in that state.

        Raises:
            ValueError: The state is from another engine or scenario, or has another control period, grouping
                or `name_targets`.
        """
        if state.engine != self.engine:
            raise ValueError(f"the state was made on engine {state.engine!r}, this is {self.engine!r}")
        if state.space is not self.space and not state.space.is_like(self.space):
            raise ValueError(
                f"the state is of scenario {state.space.scenario.name!r} with control_period_s = "
                f"{state.space.control_period_s:g}, grouping = {state.space.grouping!r}, name_targets = "
                f"{state.space.name_targets}; this is another one"
            )
        self._world.restore(state.episode_seed, state.world)
        self._episode_seed, self._ahead = state.episode_seed, None
        for name, value in state.of_episode.items():
            setattr(self, name, value)
        self.np_random.bit_generator.state = dict(state.generator)
        return self._look()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which choices can be executed, by dimension (bool, shape (sum(nvec),)); it never changes."""
        return self.space.mask.copy()

    def render(self) -> str | None:
        """Render the fleet and the plan in force as text, with ``render_mode="ansi"``.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        if self.render_mode is None:
            gym.logger.warn('You are calling render without a render mode. Say render_mode="ansi".')
            return None
        view = self.view
        lines = [f"{self.scenario.name}  t = {view.now_s:.3f} s  {view.system.active_requests:.0f} requests"]
        choices = self.space.choices(self._plan)
        for group, state, choice in zip(self.space.groups, view.groups, choices, strict=True):
            place = choice.place.word if choice.gamma > 0 else "plain"
            lines.append(
                f"  {group.name:<24} {state.active_requests:4.0f} active  "
                f"acceptance {state.acceptance_mean:.2f}  met {state.attainment:4.0%}  "
                f"plan {choice.gamma}/{choice.batch_size}/{place}"
            )
        for number, target in enumerate(view.targets):
            lines.append(
                f"  target {number:<17} {target.resident:4.0f} resident  {target.waiting:.0f} waiting  "
                f"iteration {1e3 * target.iteration_s:.1f} ms" + ("" if target.up else "  down")
            )
        return "\n".join(lines)


def _one_scenario(scenario: Any) -> Scenario:
    if isinstance(scenario, (list, tuple)):
        raise ValueError(
            "the fleet view runs one scenario: groups and places of several would differ; "
            f"got a list of {len(scenario)}"
        )
    return load_scenario(scenario)
