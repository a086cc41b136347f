"""Gymnasium environments."""

from typing import TYPE_CHECKING, Any

from dsd_env.control.rewards import REWARD_TERMS
from dsd_env.envs.edge_cloud import EdgeCloudEnv
from dsd_env.envs.episodes import EnvState
from dsd_env.envs.fleet import EdgeCloudFleetEnv
from dsd_env.envs.infos import INFOS, RESOLVED_CODES
from dsd_env.envs.registration import ENV_ID, FLEET_ENV_ID, register_envs
from dsd_env.envs.wrappers import DictObservationVectorWrapper, DictObservationWrapper, FlatActionWrapper
from dsd_env.sim.metrics import METRICS

if TYPE_CHECKING:
    from dsd_env.envs.vector import EdgeCloudVectorEnv
    from dsd_env.envs.worlds import drawn_scenario

__all__ = [
    "ENV_ID",
    "FLEET_ENV_ID",
    "INFOS",
    "METRICS",
    "RESOLVED_CODES",
    "REWARD_TERMS",
    "DictObservationVectorWrapper",
    "DictObservationWrapper",
    "EdgeCloudEnv",
    "EdgeCloudFleetEnv",
    "EdgeCloudVectorEnv",
    "EnvState",
    "FlatActionWrapper",
    "drawn_scenario",
    "register_envs",
]


def __getattr__(name: str) -> Any:
    # These two import Numba, so they are imported only when used.
    if name == "EdgeCloudVectorEnv":
        from dsd_env.envs.vector import EdgeCloudVectorEnv

        return EdgeCloudVectorEnv
    if name == "drawn_scenario":
        from dsd_env.envs.worlds import drawn_scenario

        return drawn_scenario
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
