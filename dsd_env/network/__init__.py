"""Links between sites, and what fails when."""

from dsd_env.network.channel import Channel, duplex
from dsd_env.network.faults import FaultMember, FaultWindows, fault_members
from dsd_env.network.series import LinkSeries, SeriesError, load_series

__all__ = [
    "Channel",
    "FaultMember",
    "FaultWindows",
    "LinkSeries",
    "SeriesError",
    "duplex",
    "fault_members",
    "load_series",
]
