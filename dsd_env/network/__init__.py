"""Links between sites."""

from dsd_env.network.channel import Channel, duplex

__all__ = ["Channel", "duplex"]
