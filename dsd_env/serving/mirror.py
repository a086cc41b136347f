"""What a controller knows, mirrored into the compiled engine's records, from which that sees and decides.

The state in Python (:mod:`dsd_env.serving.state`) stays the authority. Each observation writes the rows of
the request and the client that it concerns; targets and drafters are marked and written before the next
decision. One call then makes the observations and masks of all decisions asked for, by the very functions
that make them in a simulation (:mod:`dsd_env.sim.compiled.kernel.observe`).

This module needs Numba; importing it compiles the engine, if that has not been done before.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterable, Sequence
from ctypes import PYFUNCTYPE, c_int64, c_void_p
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace
from dsd_env.control.estimators import Learned, newest
from dsd_env.control.fleet import FleetSpace, GroupChoice
from dsd_env.policy import Policy
from dsd_env.serving.world import (
    ServedDevice,
    ServedDrafter,
    ServedRequest,
    ServedTarget,
    ServedTelemetry,
    ServedWorld,
)
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.kernel import serve
from dsd_env.sim.compiled.kernel.telemetry import TOLD
from dsd_env.sim.compiled.table_plan import plan_rows
from dsd_env.sim.compiled.table_served import ServedTimers, compile_served
from dsd_env.sim.entities import Report
from dsd_env.sim.telemetry import newest_report

_PRESENT = PYFUNCTYPE(c_int64, c_void_p)
"""Called without letting other threads in: it takes microseconds, and getting the lock back may take more."""
_LOOK, _DECIDE = _PRESENT(serve.LOOK), _PRESENT(serve.DECIDE)
_ROWS = 64
"""Rows that there is room for at first; doubled as needed."""
_MOST = {"places": 1 << 10, "targets": 1 << 10, "edges": (1 << 10) - 1, "gammas": 1 << 6, "batches": 1 << 6}
"""Bounds within which a decision has a key of its own; see ``CARRIED``."""


def _memory(array: NDArray[Any]) -> memoryview[Any]:
    """Return the memory of an array, whose numbers Python reads and writes faster there."""
    return memoryview(cast(Any, array))


def packer(record: rec.Record) -> struct.Struct:
    """Return what packs the fields of a record, all of them numbers, as a row of it."""
    parts, at = ["="], 0
    for name, field in record.fields.items():
        if record.offsets[name] > at:
            parts.append(f"{record.offsets[name] - at}x")
        parts.append(field.char.replace("l", "q"))
        at = record.offsets[name] + field.itemsize
    return struct.Struct("".join(parts))


class Place:
    """A row that is its owner's as long as that lives.

    Attributes:
        row: Its number.
    """

    __slots__ = ("_free", "row")

    def __init__(self, row: int, free: list[int]) -> None:
        """Take a row; `free` gets it back."""
        self.row, self._free = row, free

    def __del__(self) -> None:
        self._free.append(self.row)


class Table:
    """Rows of float64, which grow in number.

    Attributes:
        array: The rows, shape (rows, words).
        row_bytes: Bytes of a row.
    """

    def __init__(self, words: int) -> None:
        """Make room for the first rows."""
        self.array: NDArray[np.float64] = np.zeros((_ROWS, words))
        self.row_bytes = 8 * words
        self._pack = struct.Struct(f"={words}d").pack_into
        self._buffer = _memory(self.array).cast("B")
        self._free = list(range(_ROWS - 1, -1, -1))

    def take(self) -> Place:
        """Return a free row."""
        if not self._free:
            n = len(self.array)
            self.array = np.concatenate((self.array, np.zeros_like(self.array)))
            self._buffer = _memory(self.array).cast("B")
            self._free.extend(range(2 * n - 1, n - 1, -1))
        return Place(self._free.pop(), self._free)

    def write(self, place: Place, *values: float) -> None:
        """Write a whole row."""
        self._pack(self._buffer, place.row * self.row_bytes, *values)


class Found(NamedTuple):
    """How a decision is carried out, by the numbers of what it names.

    Attributes:
        gamma: Drafts.
        batch_size: Batch size.
        placement: The candidate that is taken.
        target: Number of the target.
        site: Where drafts are made.
        edge_server: Number of the edge server, or -1.
        drafter: Number of the drafter; there may be none.
        model: Number of its draft model, or -1.
        fanout: Branches.
        reason: Why it was changed, by number (:data:`dsd_env.laws.resolve.REASONS`).
        counter: Number of the decision within the request.
        stop: Place of the stop threshold on the list, or -1.
    """

    gamma: int
    batch_size: int
    placement: int
    target: int
    site: int
    edge_server: int
    drafter: int
    model: int
    fanout: int
    reason: int
    counter: int
    stop: int


class Mirror:
    """The records of one controller, and the calls of compiled code on them.

    Attributes:
        observations: Observations of the last call, float32, a row for each decision; of others behind them.
        masks: Their masks, likewise.
    """

    def __init__(
        self, world: ServedWorld, telemetry: ServedTelemetry, stale_s: float, by_nominal_delay: bool
    ) -> None:
        """Make the records of a deployment.

        Args:
            world: Its targets and edge servers.
            telemetry: What says how old the reports are that a decision may use, and the running rates.
            stale_s: Telemetry of a target that is older is stale.
            by_nominal_delay: Reports travel, so that each decision has reports of its own.

        Raises:
            NotImplementedError: The deployment is larger than keys of decisions can tell.
        """
        scenario = world.scenario
        sizes = {
            "places": scenario.n_placements,
            "targets": scenario.n_targets,
            "edges": scenario.n_edge_servers,
            "gammas": ActionSpace.of(scenario).nvec[0],
            "batches": len(scenario.actions.batch_sizes),
        }
        if any(sizes[name] > most for name, most in _MOST.items()):
            raise NotImplementedError(f"the deployment is too large for compiled decisions: {sizes}")
        layout, self._constants, self._world = compile_served(scenario, ServedTimers(*world.timers))
        self._served, self._telemetry, self._system = world, telemetry, telemetry.system
        self._by_nominal_delay, self._stale_s = by_nominal_delay, stale_s
        sizes_of = layout.header
        self._n_devices, self._n_sites = int(sizes_of["n_devices"]), int(sizes_of["n_sites"])
        self._n_ranks, self._n_valid = int(sizes_of["n_ranks"]), int(sizes_of["n_valid"])
        self._away = self._n_sites - self._n_devices
        self._ring = int(sizes_of["ring"])
        self._models = tuple(scenario.acceptance)
        self._n_features, self._n_placements = layout.n_features, scenario.n_placements
        self._n_offered = int(sizes_of["n_offered"])
        self._n_edges_offered = max(1, int(sizes_of["n_edges_offered"]))
        self._lay_out()
        # Behind the record of a request: a place per drafter, three numbers per draft model.
        self._asked = Table(serve.ASKED_WORDS + self._n_valid + 3 * len(self._models))
        self._clients = Table(serve.CLIENT_WORDS + self._n_ranks)
        self._call: NDArray[Any] = np.zeros(1, dtype=rec.SERVED_CALL.dtype)
        self._call_at = int(self._call.ctypes.data)
        self._call["asked_words"] = self._asked.row_bytes // 8
        self._call["client_words"] = self._clients.row_bytes // 8
        self._call_bytes = _memory(self._call.view(np.uint8))
        self._at_devices = _memory(self._call["at_devices"])
        self._latest_s = -math.inf
        self._all_newest = False
        self._policy: Policy | None = None
        self._heads: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self._groups: NDArray[np.int64] = np.zeros((1, 1), dtype=np.int64)
        self._choices: NDArray[np.int64] = np.zeros((1, 1), dtype=np.int64)
        self._n_mask = self._room = 0

    def _lay_out(self) -> None:
        """Find the rows of the world that are written from here, and write what does not change."""
        header = self._world[: rec.WORLD.itemsize].view(rec.WORLD.dtype)[0]

        def rows(block: str, n: int) -> NDArray[Any]:
            at, element = int(header[block]), rec.WORLD.fields[block].element
            dtype = element.dtype if isinstance(element, rec.Record) else element
            return self._world[at : at + n * dtype.itemsize].view(dtype)

        scenario = self._served.scenario
        self._reports, self._drafter_reports = int(header["reports"]), int(header["drafter_reports"])
        self._own_report = int(header["requests"]) + rec.REQUEST.offsets["report"]
        self._buffer = _memory(self._world)
        self._rates = rows("rates", 1)
        self._attainments = rows("attainments", len(scenario.slo))
        self._acceptances = rows("acceptances", len(self._models))
        rows("drafters", self._n_ranks * self._n_sites)["speed"] = 1.0
        n_backhauls = 2 * scenario.n_edge_servers * scenario.n_targets
        channels = rows("channels", 4 * self._n_devices + n_backhauls)
        self._backhaul_delays_s = channels["one_way_s"][4 * self._n_devices :]
        self.write_backhauls()

    # ------------------------------------------------------------------ what decides

    def use(self, policy: Policy) -> None:
        """Let a policy decide from now on."""
        self._policy = policy
        heads = policy.manifest.action.heads()
        self._heads, self._n_mask = np.array(heads, dtype=np.int64), sum(heads)
        call = self._call
        call["n_mask"], call["n_heads"], call["flat"] = self._n_mask, len(heads), policy.flat
        call["planned"] = 0
        call["normalisations"] = policy.manifest.network.normalisations
        self._make_room(1)

    def follow(self, space: FleetSpace) -> None:
        """Let plans decide from now on; :meth:`use_plan` gives the first."""
        self._policy = None
        self._heads, self._n_mask = np.ones(3, dtype=np.int64), 1
        self._groups = np.ascontiguousarray(space.group_of)
        call = self._call
        call["n_mask"], call["n_heads"], call["flat"], call["planned"] = 1, 3, 0, 1
        self._make_room(1)

    def use_plan(self, choices: Iterable[GroupChoice]) -> None:
        """Let a plan decide from now on; `choices` are those of its groups."""
        self._choices = plan_rows(self._served.scenario, choices)
        self._point()

    def _make_room(self, n: int) -> None:
        """Make room for so many decisions at a time."""
        self._room = n
        self._order = np.zeros(n, dtype=np.int64)
        self.observations: NDArray[np.float32] = np.zeros((n, self._n_features), dtype=np.float32)
        self.masks: NDArray[np.bool_] = np.zeros((n, self._n_mask), dtype=np.bool_)
        self._logits = np.zeros((n, self._n_mask), dtype=np.float32)
        self._chosen = np.zeros((n, len(self._heads)), dtype=np.int64)
        self._offers: NDArray[Any] = np.zeros((n, self._n_offered), dtype=rec.SERVED_OFFER.dtype)
        self._edges: NDArray[np.int32] = np.zeros((n, self._n_edges_offered), dtype=np.int32)
        self._valid_places: NDArray[np.bool_] = np.zeros((n, self._n_placements), dtype=np.bool_)
        self._carried: NDArray[Any] = np.zeros(n, dtype=rec.CARRIED.dtype)
        self._keys = self._carried["key"]
        self._first_key = _memory(self._keys)
        self._rows = _memory(self._order).cast("B").cast("q")
        self._first_observation = self.observations[0]
        self._first_logits = self._logits[0]
        self._point()

    def _point(self) -> None:
        """Say in the call where everything lies."""
        self._pointed = self._asked.array, self._clients.array
        for name, memory in (
            ("scenario", self._constants),
            ("world", self._world),
            ("asked", self._asked.array),
            ("clients", self._clients.array),
            ("order", self._order),
            ("heads", self._heads),
            ("observations", self.observations),
            ("masks", self.masks),
            ("logits", self._logits),
            ("chosen", self._chosen),
            ("offers", self._offers),
            ("edges", self._edges),
            ("valid", self._valid_places),
            ("carried", self._carried),
            ("groups", self._groups),
            ("choices", self._choices),
        ):
            self._call[name] = memory.ctypes.data - self._call_at

    # ------------------------------------------------------------------ what is known

    def write_all(self, clients: Iterable[ServedDevice], requests: Iterable[ServedRequest]) -> None:
        """Write what is known of all clients, requests and servers."""
        for client in clients:
            self.write_client(client)
        for request in requests:
            # Its client may have been forgotten by name.
            self.write_client(request.device)
            self.write_request(request)
        self._all_newest = False

    def write_backhauls(self) -> None:
        """Write the delays between edge servers and targets."""
        backhauls = self._served.world.backhauls
        self._backhaul_delays_s[:] = [
            channel.one_way_s for edge in backhauls for pair in edge for channel in pair
        ]

    def write_client(self, client: ServedDevice) -> None:
        """Write what is known of a client."""
        place = client.place
        if place is None:
            client.place = place = self._clients.take()
        up, down, edge_up, edge_down = client.up, client.down, client.edge_up, client.edge_down
        drafters = client.drafters
        means = [drafter.own_server.mean_job_s for drafter in drafters]
        means += [0.0] * (self._n_ranks - len(means))
        self._clients.write(
            place,
            client.number,
            up.one_way_s,
            down.one_way_s,
            0.0 if edge_up is None else edge_up.one_way_s,
            0.0 if edge_down is None else edge_down.one_way_s,
            up.up,
            up.bits_per_s,
            down.bits_per_s,
            client.rtt_s,
            client.rtt_deviation_s,
            client.rtt_sample_s,
            client.loss,
            client.jobs,
            drafters[0].timer.factor if drafters else 1.0,
            *means,
        )

    def write_request(self, request: ServedRequest) -> None:
        """Write what is known of a request."""
        client = request.device
        if client.place is None:
            self.write_client(client)
        place = request.place
        if place is None:
            request.place = place = self._asked.take()
        spec, stream, head = request.spec, request.stream, request.head_start
        site, at = request.control
        window = lead = generation = 0
        started_s = 0.0
        if stream is not None:
            window, lead = stream.window, stream.drafted - stream.known
            generation, started_s = stream.generation, stream.started_s
        self._asked.write(
            place,
            client.as_listed and not request.doubts,
            client.place.row,
            spec.slo_class,
            spec.prompt_tokens,
            request.arrival_s,
            request.target,
            site,
            at,
            request.committed,
            request.known_tokens,
            request.known_commit_s,
            request.first_commit_s,
            request.decisions,
            request.rounds,
            request.acceptance_rate,
            request.tokens_per_round,
            request.last_confidence,
            request.drafted_at,
            request.drafted_branches,
            request.own_jobs,
            0 if head is None else head.drafts,
            request.idle_share,
            request.report is not None,
            stream is not None,
            window,
            lead,
            generation,
            started_s,
            *request.recent_gammas,
            *request.recent_accepted,
            *self._valid(request),
            *self._learned(request),
        )

    def _valid(self, request: ServedRequest) -> list[int]:
        """Return what each drafter's KV holds: that of the own device, then those elsewhere; by rank."""
        valid = [0] * self._n_valid
        for drafter, tokens in request.drafter_valid.items():
            rank, site = divmod(drafter, self._n_sites)
            if site >= self._n_devices:
                valid[rank * (1 + self._away) + 1 + site - self._n_devices] = tokens
            elif site == request.device.number:
                valid[rank * (1 + self._away)] = tokens
        return valid

    def _learned(self, request: ServedRequest) -> list[float]:
        """Return what has been learned of each draft model."""
        learned: list[float] = []
        for model in self._models:
            of_model = request.learned.get(model, _NOT_LEARNED)
            learned += (of_model.acceptance_rate, of_model.tokens_per_round, of_model.model_rounds)
        return learned

    # ------------------------------------------------------------------ what servers are known to do

    def _write_servers(self, visible_s: float) -> None:
        """Write what is known of servers by reports made no later than a time, and what each is now.

        Those of far targets, and of the drafters there, take longer.
        """
        visible_of = [visible_s] * self._n_sites
        for target in self._served.targets:
            of_target_s = visible_s - self._telemetry.extra_s(cast(Any, target))
            visible_of[target.number - len(self._served.targets)] = of_target_s
            self._write_target(target, newest_report(cast(Any, target), of_target_s))
        for drafter in self._served.away_drafters:
            seen_s = visible_of[drafter.number % self._n_sites]
            self._write_drafter(drafter, newest(drafter.reports, seen_s))
        self._write_system(visible_s)

    def _write_changes(self) -> None:
        """Write the newest state of the servers that were heard of."""
        for target in self._served.targets:
            if target.changed:
                self._write_target(target, target.state)
        for drafter in self._served.away_drafters:
            if drafter.changed:
                self._write_drafter(drafter, drafter.reports[-1])
        if self._system.latest_s != self._rates["time_s"][0]:
            self._write_system(math.inf)

    def _write_target(self, target: ServedTarget, report: Report) -> None:
        at = self._reports + target.number * self._ring * _REPORT_BYTES
        _pack_report(self._buffer, at, *_report_values(report))
        _pack_report(self._buffer, at + TOLD * _REPORT_BYTES, *_report_values(target.state))
        target.changed = False

    def _write_drafter(self, drafter: ServedDrafter, report: tuple[float, int, float, bool]) -> None:
        rank, site = divmod(drafter.number, self._n_sites)
        row = rank * self._away + site - self._n_devices
        at = self._drafter_reports + row * self._ring * _DRAFTER_BYTES
        time_s, jobs, wait_s, up = report
        _pack_drafter(self._buffer, at, jobs, up, wait_s)
        _, jobs, wait_s, up = drafter.report(0.0)
        _pack_drafter(self._buffer, at + TOLD * _DRAFTER_BYTES, jobs, up, wait_s)
        self._latest_s = max(self._latest_s, time_s)
        drafter.changed = False

    def _write_system(self, visible_s: float) -> None:
        rates, attainments, acceptances = self._system.known(visible_s)
        self._rates[0] = rates
        self._attainments[:] = attainments[1:]
        self._acceptances[:] = acceptances[1:]
        self._latest_s = max(self._latest_s, rates[0])

    def _bring_up_to_date(self, request: ServedRequest, now_s: float) -> None:
        if self._by_nominal_delay:
            self._write_servers(now_s - self._telemetry.delay_s(request))
            if request.report is not None:
                _pack_report(self._buffer, self._own_report, *_report_values(request.report))
            return
        if self._all_newest:
            if self._served.changed:
                self._write_changes()
            if now_s >= self._latest_s:
                self._served.changed = False
                return
        # Either nothing has been written yet, or somebody asks with a time that is past.
        self._latest_s = max(
            self._system.latest_s, *(drafter.reports[-1][0] for drafter in self._served.away_drafters), -1.0
        )
        self._write_servers(now_s)
        self._all_newest, self._served.changed = now_s >= self._latest_s, False

    # ------------------------------------------------------------------ decisions

    @property
    def at_once(self) -> bool:
        """Whether several decisions can be looked at by one call."""
        return not self._by_nominal_delay

    def look(self, requests: Sequence[ServedRequest], now_s: float) -> bool:
        """Write observations and masks of decisions; return whether nothing is unusual about any.

        Args:
            requests: Whose decisions; several only if :attr:`at_once`.
            now_s: When.
        """
        n = len(requests)
        if n > self._room:
            self._make_room(max(n, 2 * self._room))
        elif self._pointed[0] is not self._asked.array or self._pointed[1] is not self._clients.array:
            self._point()
        self._bring_up_to_date(requests[0], now_s)
        if n == 1:
            self._rows[0] = requests[0].place.row
        else:
            self._rows[:n] = array("q", [request.place.row for request in requests])
        _pack_call(self._call_bytes, 0, now_s, self._stale_s, 0.0, n, 1)
        return bool(_LOOK(self._call_at) == serve.FINE)

    def decide(self, n: int) -> None:
        """Let policy or plan decide on what the last look has seen, and resolve the decisions.

        Raises:
            Exception: What the policy raises, such as ValueError where there is nothing to select; nothing
                has been counted then.
        """
        policy = self._policy
        if policy is None:
            _pack_flag(self._call_bytes, _CHOOSES_AT, 0)
            _DECIDE(self._call_at)
            return
        actor, left = policy.actor, n
        if actor is None:
            self._chosen[:n, 0] = -1
        else:
            if n == 1:
                self._first_logits[:] = actor.logits(self._first_observation)
            else:
                self._logits[:n], doubt = actor.logits_of_many(self.observations[:n])
                _pack_doubt(self._call_bytes, _DOUBT_AT, doubt)
            left = _DECIDE(self._call_at)
        if left:
            for row in np.flatnonzero(self._chosen[:n, 0] == -1).tolist():
                self._chosen[row] = policy.choose(self.observations[row], self.masks[row])
            _pack_flag(self._call_bytes, _CHOOSES_AT, 0)
            _DECIDE(self._call_at)

    def keys(self, n: int) -> list[int]:
        """Return the keys of the decisions of the last call; -1 is none.

        Those with the same key have the same number within their requests, and are carried out alike but for
        the number of the client's device.
        """
        return [self._first_key[0]] if n == 1 else self._keys[:n].tolist()

    @staticmethod
    def parted(key: int) -> tuple[int, int]:
        """Return what a key says of how a decision is carried out, and its number within the request."""
        return key >> serve.COUNTER_BITS, key & (serve.MOST_COUNTED - 1)

    @property
    def some_at_devices(self) -> bool:
        """Whether any decision of the last call is taken on a client's device."""
        return bool(self._at_devices[0])

    def found(self, row: int) -> Found:
        """Return how a decision of the last call is carried out."""
        return Found(*self._carried[row].tolist()[1:])


_REPORT_BYTES, _DRAFTER_BYTES = rec.REPORT.itemsize, rec.DRAFTER_REPORT.itemsize
_pack_report, _pack_drafter = packer(rec.REPORT).pack_into, packer(rec.DRAFTER_REPORT).pack_into
_report_values = attrgetter(*rec.REPORT.fields)
_pack_call = struct.Struct("=dddqq").pack_into
_pack_doubt, _pack_flag = struct.Struct("=d").pack_into, struct.Struct("=q").pack_into
_DOUBT_AT, _CHOOSES_AT = rec.SERVED_CALL.offsets["doubt"], rec.SERVED_CALL.offsets["chooses"]
_NOT_LEARNED = Learned()
