"""What crashes, what that takes along, and what comes back."""

from __future__ import annotations

from dsd_env.control.view import Site
from dsd_env.network import FaultMember, FaultWindows, fault_members
from dsd_env.sim.entities import TargetServer
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.reference.accounts import Accounts
from dsd_env.sim.reference.drafters import Drafters
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.requests import Interruption, Requests
from dsd_env.sim.reference.targets import Targets


class Failures(Part):
    """Lets entities crash and return."""

    def __init__(
        self, episode: Episode, accounts: Accounts, drafters: Drafters, targets: Targets, requests: Requests
    ) -> None:
        """Take part in an episode."""
        super().__init__(episode)
        self._accounts = accounts
        self._drafters = drafters
        self._targets = targets
        self._requests = requests

    def start(self) -> None:
        """Start a process for each entity that can crash."""
        for member in fault_members(self._episode.scenario):
            if member.crashes:
                self._env.process(self._fault(member))

    def _fault(self, member: FaultMember) -> Process:
        """Let one entity crash and return, time after time."""
        windows = FaultWindows(member, self._episode.seed)
        while windows.start_s < float("inf"):
            yield self._env.at(windows.start_s, Order.FAULT, member.number)
            self._log(EventKind.FAULT, member.entity, None, member.number)
            self._crash(member)
            yield self._env.at(windows.end_s, Order.FAULT, member.number)
            self._log(EventKind.RETURN, member.entity, None, member.number)
            self._come_back(member)
            windows.advance()

    def _crash(self, member: FaultMember) -> None:
        """Let an entity go down."""
        if member.site == "target":
            target = self._world.targets[member.entity]
            target.down += 1
            if target.down == 1:
                self._crash_target(target)
        elif member.site == "edge":
            self._drafters.crash_drafters(self._world.edges[member.entity])
        else:
            device = self._world.devices[member.entity]
            device.down_faults += 1
            self._drafters.crash_drafters(device.drafters)

    def _come_back(self, member: FaultMember) -> None:
        """Let an entity go up again, unless another fault keeps it down."""
        if member.site == "target":
            target = self._world.targets[member.entity]
            target.down -= 1
            if target.down == 0:
                self._drafters.drafters_return(target.drafters)
            return
        if member.site == "edge":
            place = (Site.EDGE_SERVER, member.entity)
            self._drafters.drafters_return(self._world.edges[member.entity])
        else:
            place = (Site.OWN_DEVICE, member.entity)
            device = self._world.devices[member.entity]
            device.down_faults -= 1
            self._drafters.drafters_return(device.drafters)
        self._requests.returned(place)

    def _crash_target(self, target: TargetServer) -> None:
        """Take from a target its KV, its queue and the iteration under way, and interrupt its requests.

        Committed tokens are not lost: the front end, which survives and holds the connections, has sent them.
        """
        if not target.idle:
            self._targets.iteration_over(target)
            assert target.end is not None and target.end.callbacks is not None
            target.end.callbacks.clear()
        target.ready.clear()
        target.waiting.clear()
        target.kv_reserved_tokens = 0
        target.resident = 0
        target.modes.clear()
        self._accounts.occupy(target)
        target.check_s = target.admission_check_s = float("inf")
        for request in list(self._episode.active.values()):
            if request.target == target.number and not request.finished:
                request.target, request.lost_target = -1, target.number
                request.kv_reserved_tokens = 0
                request.kept_tokens = 0
                self._totals.interruptions += 1
                self._requests.interrupt(request, Interruption.TARGET_LOST)
        for drafter in target.drafters:
            self._drafters.lose_kv(drafter.number)
        self._drafters.crash_drafters(target.drafters)
