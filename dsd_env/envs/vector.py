"""Many environments as one Gymnasium ``VectorEnv``, which steps all worlds in compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dsd_env.envs.checks import check_options, checked_episode_seed, checked_generator_seed
from dsd_env.envs.episodes import EnvState
from dsd_env.envs.limits import checked_max_episode_steps
from dsd_env.envs.worlds import RENDER_MODES, EpisodeWorlds, ScenarioLike

Floats = NDArray[np.float32]
VectorStep = tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]
"""Observations, rewards, terminations, truncations and infos."""


class EdgeCloudVectorEnv(VectorEnv[Floats, NDArray[np.int64], NDArray[Any]]):
    """Many :class:`~dsd_env.envs.EdgeCloudEnv`, stepped together by the compiled engine.

    ```python
    >>> import gymnasium as gym
    >>> import dsd_env
    >>> envs = gym.make_vec("dsd_env/EdgeCloud-v0", num_envs=3, scenario="single_lan")
    >>> envs
    EdgeCloudVectorEnv(dsd_env/EdgeCloud-v0, num_envs=3)
    >>> observations, infos = envs.reset(seed=1)
    >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    >>> envs.close()

    ```

    World ``i`` after ``reset(seed=s)`` is the scalar environment after ``reset(seed=s + i)``: the same
    observations, rewards, ends and infos, to the last bit, whatever the number of worlds and of threads.
    Observations, rewards and infos have the forms of Gymnasium's ``SyncVectorEnv``. `autoreset_mode` also
    works as there; it says what happens when an episode ends:

    - ``"NextStep"``: the step returns the last observation and infos of the episode. The next step ignores
      that world's action and begins the next episode: reward 0, and the first observation and infos.
    - ``"SameStep"``: the step returns the first observation and infos of the next episode;
      ``infos["final_obs"]`` and ``infos["final_info"]`` hold the last ones of the episode that ended.
    - ``"Disabled"``: the world must be reset, with ``options={"reset_mask": ...}``, before the next step.

    ## Mixtures

    ``scenario=["metro", "wan", "overload"]`` runs several scenarios: each episode of each world draws one of
    them, with equal probability, from the episode's seed (`dsd_env.envs.drawn_scenario`).
    ``infos["scenario"]`` and ``infos["episode_seed"]`` name the episode that has begun;
    ``EdgeCloudEnv(scenario)`` begins the same one with ``reset(options={"episode_seed": episode_seed})``. The
    scenarios need the same lists of speculation lengths and batch sizes. If they have different numbers of
    placements, `n_placements` pads the shorter lists of candidates: the features of a candidate that does not
    exist are 0, and its placement is masked.

    ## Whose arrays

    The engine writes observations and masks in place. ``reset`` and ``step`` return copies of the
    observations, which belong to the caller. With ``copy=False`` they return the array that the engine writes
    to and that the next step overwrites; :meth:`write_into` replaces that array by one of the caller's, such
    as a page of a trainer's buffer. Rewards, terminations, truncations and infos are always new arrays.

    ## Arguments

    | Parameter             | Type                                        | Default   | Description                       |
    |-----------------------|---------------------------------------------|-----------|-----------------------------------|
    | `num_envs`            | **int**                                     | `1`       | Number of worlds                  |
    | `scenario`            | as the scalar environment's, or a list      | `"metro"` | One scenario, or a mixture        |
    | `render_mode`         | **str** or None                             | `None`    | `"ansi"`                          |
    | `engine`              | **str**                                     | `"auto"`  | `"auto"` or `"compiled"`          |
    | `discount_rate_per_s` | **float** or None                           | `None`    | Adds `infos["discount"]`          |
    | `price_delays`        | **bool**                                    | `False`   | Accounts `delay_caused_s`         |
    | `n_placements`        | **int** or None                             | `None`    | Fills the candidates up           |
    | `engine_options`      | mapping or None                             | `None`    | Bounds of the compiled engine     |
    | `copy`                | **bool**                                    | `True`    | Return copies of observations     |
    | `flat_actions`        | **bool**                                    | `False`   | One index, as `FlatActionWrapper` |
    | `step_infos`          | **bool**                                    | `True`    | Infos of every step; without them |
    |                       |                                             |           | only of resets and ends: faster   |
    | `threads`             | **int**                                     | `1`       | Threads to step with              |
    | `max_episode_steps`   | **int** or None                             | `None`    | Truncates episodes                |
    | `infos`               | **str**                                     | `"full"`  | `"numeric"` or `"none"`           |
    | `autoreset_mode`      | **str** or ``AutoresetMode``                | see above | `"NextStep"`, `"SameStep"` or     |
    |                       |                                             |           | `"Disabled"`                      |

    On reset, ``options`` may hold ``"reset_mask"`` (bool, shape (num_envs,)), which resets only the worlds
    marked True, and ``"episode_seed"``: one integer for all worlds, or a sequence with one per world (None:
    drawn).

    Attributes:
        worlds: The worlds, with all their arrays.
        autoreset_mode: What happens when an episode ends; also in `metadata`.
        final_masks: With ``SAME_STEP``, the masks that belong to ``infos["final_obs"]``, in the form of
            :meth:`action_masks`, from the last step at which an episode ended.
    """  # noqa: E501

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: ScenarioLike | Sequence[ScenarioLike] = "metro",
        render_mode: str | None = None,
        engine: str = "auto",
        discount_rate_per_s: float | None = None,
        price_delays: bool = False,
        n_placements: int | None = None,
        engine_options: Mapping[str, int] | None = None,
        *,
        copy: bool = True,
        flat_actions: bool = False,
        step_infos: bool = True,
        threads: int = 1,
        max_episode_steps: int | None = None,
        infos: str = "full",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        super().__init__()
        if infos == "numeric" and not step_infos:
            raise ValueError("infos = 'numeric' are the same at every step, so step_infos must be True")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.copy = copy
        self.worlds = EpisodeWorlds(
            scenario,
            num_envs,
            engine=engine,
            render_mode=render_mode,
            discount_rate_per_s=discount_rate_per_s,
            price_delays=price_delays,
            n_placements=n_placements,
            flat_actions=flat_actions,
            threads=threads,
            engine_options=engine_options,
            max_episode_steps=max_episode_steps,
            infos=infos,
        )
        self.autoreset_mode = _checked_mode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self._step_infos = step_infos
        self.single_observation_space = self.worlds.single_observation_space
        self.single_action_space = self.worlds.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._begun = np.zeros(num_envs, dtype=np.bool_)
        self._spec: EnvSpec | None = None
        self._max_episode_steps = checked_max_episode_steps(max_episode_steps)
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._any_over = False
        self._everywhere = np.ones(num_envs, dtype=np.bool_)
        self.final_masks: NDArray[np.bool_] | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The specification from which ``gymnasium.make_vec`` made the environments, with the step limit."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        # make_vec passes the limit as an argument and leaves it out of the specification.
        if spec is not None and self._max_episode_steps is not None:
            spec.max_episode_steps = self._max_episode_steps
        self._spec = spec

    # ``VectorEnv`` has one generator; like ``SyncVectorEnv``, this class has one per world.
    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of episode seeds of each world."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each world's generator of episode seeds."""
        return self.get_attr("np_random_seed")

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Floats, dict[str, Any]]:
        """Start an episode in every world, or in those marked by ``options["reset_mask"]``.

        Args:
            seed: World ``i`` is seeded with ``seed + i``; or a list with a seed or None per world.
            options: Reset options, as the class describes them.

        Returns:
            Observations, float32, shape (num_envs, n), and infos.

        Raises:
            ValueError: A seed, an option or a shape is wrong.
            TypeError: The reset mask is not an array of bool.
        """
        options = options or {}
        check_options(options, ("episode_seed", "reset_mask"))
        mask = self._reset_mask(options)
        if isinstance(seed, (list, tuple, np.ndarray)):
            seeds = [checked_generator_seed(each) for each in self._per_world("seed", seed)]
        else:
            first = checked_generator_seed(seed)
            seeds = [None if first is None else first + world for world in range(self.num_envs)]
        given = options.get("episode_seed")
        episode_seeds = self._per_world("episode_seed", given if isinstance(given, (list, tuple)) else None)
        if not isinstance(given, (list, tuple)):
            episode_seeds = [given] * self.num_envs
        chosen = np.flatnonzero(mask)
        checked = [checked_episode_seed(episode_seeds[world]) for world in chosen.tolist()]
        for world in chosen.tolist():
            if seeds[world] is not None:
                self.worlds.seed(world, seeds[world])
        self.worlds.begin(chosen, checked)
        self._begun |= mask
        self._over &= ~mask
        self._any_over = bool(self._over.any())
        return self._observations(), self.worlds.arrays(np.zeros_like(mask), mask)

    def _per_world(self, name: str, values: Sequence[Any] | None) -> list[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                f"{name}: a list must have num_envs = {self.num_envs} entries, got {len(values)}"
            )
        return list(values)

    def _reset_mask(self, options: Mapping[str, Any]) -> NDArray[np.bool_]:
        if "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a numpy array of bool, got {mask!r}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] has shape {mask.shape}; expected {(self.num_envs,)}")
        if not mask.any():
            raise ValueError("options['reset_mask'] must be True for at least one world")
        return mask

    def step(self, actions: NDArray[np.int64]) -> VectorStep:
        """Step every world, and begin the next episode in worlds whose episode ends or has ended.

        Args:
            actions: Integers, shape (num_envs, 3), or (num_envs,) with flat actions.

        Returns:
            Observations (float32), rewards (float64), terminations and truncations (bool), infos.

        Raises:
            ValueError: An action is outside the action space; then no world has stepped.
            gymnasium.error.ResetNeeded: A world was never reset, or its episode is over and autoreset is
                disabled.
            EngineError: A bounded table of the engine is full (see `engine_options`).
        """
        if not self._begun.all():
            raise gym.error.ResetNeeded("call reset() before step()")
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            return self._step_and_begin(actions)
        if self._any_over and self.autoreset_mode is AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                f"the episodes of worlds {np.flatnonzero(self._over).tolist()} are over and autoreset is "
                "disabled: call reset(options={'reset_mask': ...})"
            )
        return self._step_or_begin(actions)

    def _step_or_begin(self, actions: NDArray[np.int64]) -> VectorStep:
        """Step every world, but begin the next episode in worlds whose episode ended at the last step."""
        worlds, begun = self.worlds, self._over if self._any_over else None
        stepping = None if begun is None else ~begun
        self._over = over = worlds.step(actions, stepping)
        self._any_over = bool(over.any())
        rewards = worlds.worlds.rewards.copy()
        if begun is not None:
            worlds.begin(np.flatnonzero(begun))
            rewards[begun] = 0.0
        infos: dict[str, Any] = {}
        if self._step_infos or self._any_over or begun is not None:
            told = over if not self._step_infos else self._everywhere if stepping is None else stepping
            infos = worlds.arrays(told, begun, over if self._any_over else None)
        return self._observations(), rewards, worlds.terminations(), worlds.truncations(), infos

    def _step_and_begin(self, actions: NDArray[np.int64]) -> VectorStep:
        """Step every world, and begin the next episode at once in worlds whose episode ends."""
        worlds = self.worlds
        ended = worlds.step(actions)
        rewards = worlds.worlds.rewards.copy()
        terminations, truncations = worlds.terminations(), worlds.truncations()
        infos: dict[str, Any] = {}
        if ended.any():
            numbers = np.flatnonzero(ended)
            for world in numbers.tolist():
                final = {
                    "final_obs": worlds.worlds.observations[world].copy(),
                    "final_info": worlds.step_info(world),
                }
                infos = self._add_info(infos, final, world)
            self.final_masks = worlds.masks().copy()
            worlds.begin(numbers)
        if self._step_infos or infos:
            told = ~ended if self._step_infos else np.zeros_like(ended)
            infos |= worlds.arrays(told, ended if ended.any() else None)
        return self._observations(), rewards, terminations, truncations, infos

    def _observations(self) -> Floats:
        observations = self.worlds.worlds.observations
        return observations.copy() if self.copy else observations

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the valid indices of every world (bool, shape (num_envs, sum(nvec)), or (num_envs, n) flat).

        Raises:
            gymnasium.error.ResetNeeded: A world was never reset.
        """
        if not self._begun.all():
            raise gym.error.ResetNeeded("call reset() before looking at the decisions")
        masks = self.worlds.masks()
        return masks.copy() if self.copy else masks

    def sample_mask(self) -> tuple[Any, ...]:
        """Return the masks in the form that ``sample(mask=...)`` of a space takes: int8.

        Returns:
            One entry per world, which ``single_action_space.sample(mask=...)`` takes: a tuple with one array
            per dimension, or one array with flat actions. With flat actions,
            ``action_space.sample(mask=...)`` takes the whole tuple. (Otherwise `action_space` takes no masks:
            it is a ``Box``.)

        Raises:
            gymnasium.error.ResetNeeded: A world was never reset.
        """
        masks = self.action_masks()
        if self.worlds.flat:
            return tuple(masks.astype(np.int8))
        return tuple(self.worlds.actions.sample_mask(mask) for mask in masks)

    def write_into(self, observations: Floats | None = None, masks: NDArray[np.bool_] | None = None) -> None:
        """Write observations and masks into the caller's arrays from now on, beginning with the current ones.

        Args:
            observations: float32, shape (num_envs, n), contiguous.
            masks: bool, shape (num_envs, sum(nvec)), contiguous.

        Raises:
            ValueError: An array does not fit.
        """
        self.worlds.worlds.write_into(observations, masks)

    def clone_state(self, world: int) -> EnvState:
        """Return the state of one world; see :meth:`dsd_env.envs.EdgeCloudEnv.clone_state`."""
        return self.worlds.save(world)

    def restore_state(self, state: EnvState, worlds: Sequence[int] | None = None) -> Floats:
        """Restore, in some worlds or in all, a state of a world here or of a scalar environment.

        To look ahead in parallel, restore the same state in all worlds.

        Args:
            state: The state, from an environment with the same arguments.
            worlds: Indices of the worlds; None: all.

        Returns:
            The observations of all worlds.

        Raises:
            ValueError: The state does not fit.
        """
        for world in range(self.num_envs) if worlds is None else worlds:
            self.worlds.restore(world, state)
            self._begun[world] = True
            self._over[world] = self.worlds.over(world)
        self._any_over = bool(self._over.any())
        return self._observations()

    def render(self) -> tuple[str | None, ...]:  # type: ignore[override]
        """Return the due decision of every world as text."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of every world, called if callable; see `dsd_env.envs.worlds.WorldMember`."""
        found = [getattr(member, name) for member in self.worlds.members]
        return tuple(each(*args, **kwargs) if callable(each) else each for each in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every world."""
        return self.call(name)

    def set_attr(self, name: str, values: list[Any] | tuple[Any, ...] | Any) -> None:
        """Set an attribute of every world, to one value for all or to one value per world from a list.

        Raises:
            ValueError: The list does not have one value per world.
        """
        each = (
            self._per_world(name, values) if isinstance(values, (list, tuple)) else [values] * self.num_envs
        )
        for member, value in zip(self.worlds.members, each, strict=True):
            setattr(member, name, value)


def _checked_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = [each.value for each in AutoresetMode]
        raise ValueError(f"autoreset_mode = {mode!r} is not one of {known}") from None
