"""Messages between devices, edge servers and targets, and what they cost."""

from __future__ import annotations

from dsd_env.laws import reports
from dsd_env.sim.entities import Device, Request
from dsd_env.sim.events import EventKind, Order
from dsd_env.sim.reference.episode import Part


class Links(Part):
    """Sends messages: each function returns when its message arrives.

    A target may be farther away than the links reach (``extra_one_way_s``). What goes there or comes from
    there takes that much longer, behind the link, on which messages keep their order whatever their target.
    """

    def send_up(self, device: Device, payload_bytes: float, request: Request, target: int) -> float:
        """Send from a device to a target."""
        request.own_jobs = device.jobs
        return self._send_up(device, payload_bytes, request, target)

    def _send_up(self, device: Device, payload_bytes: float, request: Request, target: int) -> float:
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = device.up.send(self._now_s, size) + self._extra_s(target)
        self._sent(device, device.up.last_lost, size)
        return self._trace_message(f"up:{device.number}", request, 4 * device.number, arrives_s)

    def send_down(self, device: Device, payload_bytes: float, request: Request, target: int) -> float:
        """Send from a target to a device."""
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = device.down.send(self._now_s, size) + self._extra_s(target)
        self._sent(device, device.down.last_lost, size)
        self._totals.cloud_usd += size * 1e-9 * self._episode.scenario.egress_usd_per_gigabyte
        return self._trace_message(f"down:{device.number}", request, 4 * device.number + 1, arrives_s)

    def send_edge(self, device: Device, up: bool, payload_bytes: float, request: Request) -> float:
        """Send between a device and its edge server, up or down."""
        channel = device.edge_up if up else device.edge_down
        assert channel is not None
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = channel.send(self._now_s, size)
        self.count_bytes(size, device)
        return self._trace_message(
            f"lan:{device.number}", request, 4 * device.number + (2 if up else 3), arrives_s
        )

    def send_backhaul(
        self, edge: int, target: int, up: bool, payload_bytes: float, request: Request
    ) -> float:
        """Send between an edge server and a target, up or down."""
        channel = self._world.backhauls[edge][target][0 if up else 1]
        size = self._protocol.header_bytes + payload_bytes
        arrives_s = channel.send(self._now_s, size) + self._extra_s(target)
        self._totals.network_bytes += size
        return self._trace_message(
            f"backhaul:{edge}", request, 2 * channel.number + (0 if up else 1), arrives_s
        )

    def measure_round_trip(self, request: Request, round_trip_s: float, target: int) -> None:
        """Take a round trip to a target into what the device's controller knows of its own link."""
        access_s = reports.access_round_trip_s(round_trip_s, self._extra_s(target))
        request.device.measure(self._now_s, access_s, self._protocol.stats_window)
        request.own_jobs = request.device.jobs

    def time_tokens(self, request: Request, arrives_s: float) -> None:
        """Time tokens that have just been sent to a client until it acknowledges them.

        One message to a client is timed at a time.
        """
        device, target = request.device, request.target
        if device.timed_s >= 0.0:
            return
        device.timed_s = self._now_s
        self._env.call_at(
            arrives_s, Order.DELIVERY, request.number, lambda: self._acknowledge(request, target)
        )

    def _acknowledge(self, request: Request, target: int) -> None:
        device = request.device
        arrives_s = self._send_up(device, 0.0, request, target)

        def take() -> None:
            sample_s = reports.access_round_trip_s(self._now_s - device.timed_s, self._extra_s(target))
            device.measure(self._now_s, sample_s, self._protocol.stats_window)
            device.timed_s = -1.0

        self._env.call_at(arrives_s, Order.DELIVERY, request.number, take)

    def count_bytes(self, size_bytes: float, device: Device) -> None:
        """Count bytes of a device, and the energy of its radio."""
        joules = size_bytes * device.radio_joules_per_byte
        self._totals.network_bytes += size_bytes
        self._totals.energy_joules += joules
        self._totals.client_joules += joules

    def _extra_s(self, target: int) -> float:
        return self._world.targets[target].config.extra_one_way_s

    def _sent(self, device: Device, lost: int, size_bytes: float) -> None:
        device.loss += self._protocol.stats_window * ((1.0 if lost else 0.0) - device.loss)
        self.count_bytes(size_bytes, device)

    def _trace_message(self, lane: str, request: Request, channel: int, arrives_s: float) -> float:
        self._log(EventKind.SEND, channel, request, arrives_s)
        self._episode.add_bar(lane, "message", self._now_s, arrives_s, request.number)
        return arrives_s
