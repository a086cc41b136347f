"""Links between sites, and what fails when."""

from dsd_env.network.channel import Channel, duplex
from dsd_env.network.faults import FaultMember, FaultWindows, fault_members

__all__ = ["Channel", "FaultMember", "FaultWindows", "duplex", "fault_members"]
