"""Gymnasium environments."""

from dsd_env.envs.edge_cloud import REWARD_TERMS, EdgeCloudEnv
from dsd_env.envs.registration import ENV_ID, register_envs
from dsd_env.envs.wrappers import FlatActionWrapper

__all__ = ["ENV_ID", "REWARD_TERMS", "EdgeCloudEnv", "FlatActionWrapper", "register_envs"]
