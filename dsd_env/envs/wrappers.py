"""Wrappers around the environment: flat actions, and masks inside observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import DTypeLike, NDArray

from dsd_env.envs.edge_cloud import EdgeCloudEnv

if TYPE_CHECKING:
    from dsd_env.envs.vector import EdgeCloudVectorEnv

    _VectorWrapper = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:
    # The class can be subscripted only from Gymnasium 1.3 on.
    _VectorWrapper = gym.vector.VectorWrapper

Observation = NDArray[np.float32]
DictObservation = dict[str, NDArray[Any]]


class FlatActionWrapper(
    gym.ActionWrapper[Observation, np.int64, NDArray[np.int64]], gym.utils.RecordConstructorArgs
):
    """One `Discrete` action for algorithms without `MultiDiscrete`, such as DQN.

    Index ``i`` stands for ``numpy.unravel_index(i, nvec)``: placement varies fastest, then batch size,
    then speculation length.

    Args:
        env: An :class:`EdgeCloudEnv`, wrapped or not.

    Raises:
        TypeError: The innermost environment is not an :class:`EdgeCloudEnv`, or its observations already hold
            the masks of the three dimensions.
    """

    def __init__(self, env: gym.Env[Observation, NDArray[np.int64]]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        base = _base(type(self), env)
        space: gym.Space[Any] = env.observation_space
        if isinstance(space, gym.spaces.Dict):
            raise TypeError(
                "FlatActionWrapper must be inside DictObservationWrapper, whose masks are else those of the "
                "three dimensions: DictObservationWrapper(FlatActionWrapper(env))"
            )
        self._base = base
        self._actions = base.actions
        self.action_space = gym.spaces.Discrete(self._actions.n_flat)

    def action(self, action: np.int64) -> NDArray[np.int64]:
        """Return the MultiDiscrete action (int64, shape (3,)) that a flat action stands for."""
        return self._actions.unflatten(np.asarray(action))

    def flat_action(self, action: NDArray[np.int64]) -> int:
        """Return the flat action of a MultiDiscrete action, the inverse of :meth:`action`."""
        gamma, batch, placement = (int(index) for index in action)
        return int(np.ravel_multi_index((gamma, batch, placement), self._actions.nvec))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which flat actions are valid (bool, shape (n,)): those that are carried out unchanged.

        This mask is more exact than the masks of the three dimensions: the step of a valid action returns
        ``info["resolved"]`` None. The mask also leaves out batch sizes that would have no effect.
        """
        return self._base.flat_action_masks()

    def sample_mask(self) -> NDArray[np.int8]:
        """Return the mask for ``action_space.sample(mask=...)`` (int8, shape (n,))."""
        return self.action_masks().astype(np.int8)


class DictObservationWrapper(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Puts the mask of valid actions into the observations, for trainers that look for the mask there.

    The mask is the one that ``action_masks()`` returns; with a :class:`FlatActionWrapper` inside, it is the
    mask of the single ``Discrete`` action. At the end of an episode no decision is due, so the last mask is
    returned once more, like the last observation.

    | Trainer  | `observation_key` | `mask_key`      | `mask_dtype` |
    |----------|-------------------|-----------------|--------------|
    | RLlib    | `"observations"`  | `"action_mask"` | `float32`    |
    | tianshou | `"obs"`           | `"mask"`        | `bool`       |
    | TorchRL  | `"observation"`   | `"action_mask"` | `bool`       |

    Args:
        env: An :class:`EdgeCloudEnv`, wrapped or not.
        observation_key: Key of the observation.
        mask_key: Key of the mask.
        mask_dtype: Type of the mask's entries: bool, or an integer or float type (0 and 1). The default is
            the type that ``Discrete.sample(mask)`` takes.

    Raises:
        TypeError: The innermost environment is not an :class:`EdgeCloudEnv`.
        ValueError: The keys are equal or not text, or the type is neither bool nor numeric.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Any],
        observation_key: str = "observations",
        mask_key: str = "action_mask",
        mask_dtype: DTypeLike = np.int8,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, observation_key=observation_key, mask_key=mask_key, mask_dtype=np.dtype(mask_dtype).name
        )
        super().__init__(env)
        _base(type(self), env)
        self._keys, self._dtype = (observation_key, mask_key), np.dtype(mask_dtype)
        self._masks = env.get_wrapper_attr("action_masks")
        self.observation_space: gym.Space[Any] = _dict_space(
            env.observation_space, env.action_space, observation_key, mask_key, self._dtype
        )

    def _with_mask(self, observation: Observation) -> DictObservation:
        return dict(zip(self._keys, (observation, self._masks().astype(self._dtype)), strict=True))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[DictObservation, dict[str, Any]]:
        """Start an episode; return the first observation with its mask, and `info`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation), info

    def step(self, action: Any) -> tuple[DictObservation, Any, bool, bool, dict[str, Any]]:
        """Take the decision now due; the observation returned holds the mask of the next decision."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation), reward, terminated, truncated, info


class DictObservationVectorWrapper(_VectorWrapper, gym.utils.RecordConstructorArgs):
    """:class:`DictObservationWrapper` for many worlds at once.

    The wrapper works with every `autoreset_mode`; with ``SAME_STEP`` the observations in
    ``infos["final_obs"]`` hold their masks, too.

    Args:
        envs: An :class:`EdgeCloudVectorEnv`, wrapped or not. (For a ``SyncVectorEnv``, wrap each environment
            in a :class:`DictObservationWrapper` instead.)
        observation_key: Key of the observations.
        mask_key: Key of the masks.
        mask_dtype: Type of the masks' entries.

    Raises:
        TypeError: The innermost environment is not an :class:`EdgeCloudVectorEnv`.
        ValueError: The keys are equal or not text, or the type is neither bool nor numeric.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Observation, Any, NDArray[Any]],
        observation_key: str = "observations",
        mask_key: str = "action_mask",
        mask_dtype: DTypeLike = np.int8,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, observation_key=observation_key, mask_key=mask_key, mask_dtype=np.dtype(mask_dtype).name
        )
        super().__init__(envs)
        self._base = _vector_base(type(self), envs)
        self._keys, self._dtype = (observation_key, mask_key), np.dtype(mask_dtype)
        self.single_observation_space = _dict_space(
            envs.single_observation_space, envs.single_action_space, observation_key, mask_key, self._dtype
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _with_masks(self, observations: Observation, masks: NDArray[np.bool_]) -> DictObservation:
        return dict(zip(self._keys, (observations, masks.astype(self._dtype)), strict=True))

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[DictObservation, dict[str, Any]]:
        """Start episodes; return the first observations with their masks, and infos."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._with_masks(observations, self._base.action_masks()), infos

    def step(
        self, actions: Any
    ) -> tuple[DictObservation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take a step in every world."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            masks = self._base.final_masks
            assert masks is not None
            final: NDArray[np.object_] = np.full(self.num_envs, None, dtype=object)
            for world in np.flatnonzero(infos["_final_obs"]).tolist():
                final[world] = self._with_masks(infos["final_obs"][world], masks[world])
            infos = infos | {"final_obs": final}
        with_masks = self._with_masks(observations, self._base.action_masks())
        return with_masks, rewards, terminations, truncations, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of the due decisions; see :meth:`EdgeCloudVectorEnv.action_masks`."""
        return self._base.action_masks()

    def sample_mask(self) -> tuple[Any, ...]:
        """Return the masks for a space's ``sample(mask=...)``; see :meth:`EdgeCloudVectorEnv.sample_mask`."""
        return self._base.sample_mask()


def _base(wrapper: type, env: gym.Env[Any, Any]) -> EdgeCloudEnv:
    base = env.unwrapped
    if not isinstance(base, EdgeCloudEnv):
        raise TypeError(f"{wrapper.__name__} wraps EdgeCloudEnv, got {type(base).__name__}")
    return base


def _vector_base(wrapper: type, envs: gym.vector.VectorEnv[Any, Any, Any]) -> EdgeCloudVectorEnv:
    # Imported here because the module imports Numba; if such an environment exists, it is loaded already.
    from dsd_env.envs.vector import EdgeCloudVectorEnv

    base = envs.unwrapped
    if not isinstance(base, EdgeCloudVectorEnv):
        raise TypeError(
            f"{wrapper.__name__} wraps EdgeCloudVectorEnv, got {type(base).__name__}; into that put "
            "environments that have a DictObservationWrapper each"
        )
    return base


def _dict_space(
    observation: gym.Space[Any],
    action: gym.Space[Any],
    observation_key: str,
    mask_key: str,
    dtype: np.dtype[Any],
) -> gym.spaces.Dict:
    """Return the space of observations with masks.

    Raises:
        ValueError: The keys are equal or not text, or the type is neither bool nor numeric.
    """
    for key in (observation_key, mask_key):
        if not key or not isinstance(key, str):
            raise ValueError(f"the key {key!r} of an observation must be text")
    if observation_key == mask_key:
        raise ValueError(f"observation_key and mask_key are both {mask_key!r}; they must differ")
    if dtype.kind not in "biuf":
        raise ValueError(f"mask_dtype = {dtype.name!r} must be bool, or an integer or float type")
    assert isinstance(action, (gym.spaces.Discrete, gym.spaces.MultiDiscrete))
    size = int(action.n if isinstance(action, gym.spaces.Discrete) else action.nvec.sum())
    mask: gym.Space[Any] = gym.spaces.Box(0, 1, (size,), dtype=dtype.type)
    return gym.spaces.Dict({observation_key: observation, mask_key: mask})
