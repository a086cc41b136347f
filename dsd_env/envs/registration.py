"""Registration of the environments with Gymnasium."""

from __future__ import annotations

import gymnasium

ENV_ID = "dsd_env/EdgeCloud-v0"
"""ID of the per-request environment for ``gymnasium.make`` and ``gymnasium.make_vec``."""
FLEET_ENV_ID = "dsd_env/EdgeCloudFleet-v0"
"""ID of the fleet view, in which each step sets one plan for all requests."""


def register_envs() -> None:
    """Register the environments with Gymnasium; calling this again changes nothing."""
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
