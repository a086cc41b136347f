"""Links between sites, and the times of faults."""

from dsd_env.network.channel import Channel, duplex
from dsd_env.network.errors import SeriesError
from dsd_env.network.faults import FaultMember, FaultWindows, fault_members
from dsd_env.network.series import LinkSeries, load_series, save_series

__all__ = [
    "Channel",
    "FaultMember",
    "FaultWindows",
    "LinkSeries",
    "SeriesError",
    "duplex",
    "fault_members",
    "load_series",
    "save_series",
]
