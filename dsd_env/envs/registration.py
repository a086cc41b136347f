"""Registration of the environments with Gymnasium."""

from __future__ import annotations

import gymnasium

ENV_ID = "dsd_env/EdgeCloud-v0"
"""Name of the environment for ``gymnasium.make`` and ``gymnasium.make_vec``."""
FLEET_ENV_ID = "dsd_env/EdgeCloudFleet-v0"
"""Name of the fleet view: one plan for all requests per step."""


def register_envs() -> None:
    """Register the environments; doing so again changes nothing."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="dsd_env.envs.edge_cloud:EdgeCloudEnv",
            vector_entry_point="dsd_env.envs.vector:EdgeCloudVectorEnv",
        )
    if FLEET_ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=FLEET_ENV_ID,
            entry_point="dsd_env.envs.fleet:EdgeCloudFleetEnv",
            vector_entry_point="dsd_env.envs.fleet_vector:EdgeCloudFleetVectorEnv",
        )
