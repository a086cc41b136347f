"""Trained policies without torch: bundles of plain arrays, checked on loading, without pickle."""

from dsd_env.policy.bundle import Policy, load, write_bundle
from dsd_env.policy.from_sb3 import export_sb3
from dsd_env.policy.manifest import FORMAT_VERSION, Manifest, PolicyError
from dsd_env.policy.network import MlpActor

__all__ = [
    "FORMAT_VERSION",
    "Manifest",
    "MlpActor",
    "Policy",
    "PolicyError",
    "export_sb3",
    "load",
    "write_bundle",
]
