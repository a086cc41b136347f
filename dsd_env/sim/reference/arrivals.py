"""Who asks when, and for what."""

from __future__ import annotations

from collections.abc import Callable

from dsd_env.sim.entities import Device
from dsd_env.sim.events import Order
from dsd_env.sim.reference.environment import Process
from dsd_env.sim.reference.episode import Episode, Part
from dsd_env.sim.reference.requests import Requests
from dsd_env.workload import RequestSpec


class Arrivals(Part):
    """Lets users ask, alone or together, with or without waiting for answers."""

    def __init__(
        self, episode: Episode, requests: Requests, request: Callable[[Device, RequestSpec], Process]
    ) -> None:
        """Take part in an episode; `request` makes the process of an arriving request."""
        super().__init__(episode)
        self._requests = requests
        self._request = request
        self._workload = episode.workload

    def start(self) -> None:
        """Start the processes of all users."""
        if self._workload.closed_loop:
            for device in self._world.devices:
                self._env.process(self._client(device))
        elif self._workload.per_client:
            for device in self._world.devices:
                self._env.process(self._client_arrivals(device))
        else:
            self._env.process(self._open_arrivals())

    def _client(self, device: Device) -> Process:
        """A user of a closed loop, who thinks, asks, waits for the whole answer, and thinks again."""
        ordinal = 0
        while True:
            asks_s = self._workload.think_end_s(device.number, ordinal, self._now_s)
            yield self._env.at(asks_s, Order.ARRIVAL, device.number)
            if self._requests.arrivals_are_over():
                return
            yield from self._request(device, self._workload.request(device.number, ordinal))
            ordinal += 1

    def _open_arrivals(self) -> Process:
        """Users who share one arrival process and ask without waiting for answers."""
        ordinal = 0
        arrival_s = 0.0
        asked = [0] * len(self._world.devices)
        while not self._requests.arrivals_are_over():
            arrival_s = self._workload.open_arrival_s(ordinal, arrival_s)
            yield self._env.at(arrival_s, Order.ARRIVAL, ordinal)
            device = self._world.devices[self._workload.open_device(ordinal)]
            self._env.process(
                self._request(device, self._workload.request(device.number, asked[device.number], ordinal))
            )
            asked[device.number] += 1
            ordinal += 1
            if self._requests.arrivals_are_over(before=1):
                return

    def _client_arrivals(self, device: Device) -> Process:
        """A user with an arrival process of their own, who asks without waiting for answers."""
        arrival_s = 0.0
        ordinal = 0
        while not self._requests.arrivals_are_over():
            arrival_s = self._workload.client_arrival_s(device.number, arrival_s)
            yield self._env.at(arrival_s, Order.ARRIVAL, device.number)
            if self._requests.arrivals_are_over():
                return
            self._env.process(self._request(device, self._workload.request(device.number, ordinal)))
            ordinal += 1
            if self._requests.arrivals_are_over(before=1):
                return
