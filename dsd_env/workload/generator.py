"""Draws arrivals, lengths and kinds of requests by counter, so that every scheduler meets the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsd_env import rng
from dsd_env.laws import arrivals as laws
from dsd_env.laws import variates
from dsd_env.laws.constants import REQUESTS_PER_DEVICE
from dsd_env.rng import Stream
from dsd_env.scenario.schema import (
    ClosedLoop,
    LogNormal,
    Poisson,
    Quantiles,
    Renewal,
    ReplayArrivals,
    RequestKind,
    Scenario,
)
from dsd_env.scenario.variates import draw, value_at
from dsd_env.workload.load import LoadClock
from dsd_env.workload.renewal import RenewalProcess, client_shares, longest_gap_s
from dsd_env.workload.replay import Schedule, replay_schedule


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """The properties of a request that do not depend on the simulation.

    Attributes:
        uid: Number that addresses its random draws: the same request has the same uid whatever the
            scheduler does.
        device: Number of the device it comes from.
        kind: Number of its kind in the scenario's mix.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        slo_class: Number of its class of SLO in the scenario.
        slo_ttft_s: Bound on the time to first token.
        slo_tpot_s: Bound on the time per output token.
        slo_itl_p99_s: Bound on the 99th percentile of its gaps between tokens.
        slo_first_s: When its first token is due, after its arrival.
        slo_per_token_s: Time between the deadlines of its tokens.
        slo_token_share: Share of its tokens that must be in time.
        acceptance_kinds: Kinds of recorded requests that may be replayed for it.
        recorded: Name of the recorded request that is replayed for it, if one is named.
    """

    uid: int
    device: int
    kind: int
    prompt_tokens: int
    output_tokens: int
    slo_class: int
    slo_ttft_s: float
    slo_tpot_s: float
    slo_itl_p99_s: float
    slo_first_s: float
    slo_per_token_s: float
    slo_token_share: float
    acceptance_kinds: tuple[str, ...]
    recorded: str | None = None


class WorkloadGenerator:
    """Draws the workload of one episode."""

    def __init__(self, scenario: Scenario, seed: int, schedule: Schedule | None = None) -> None:
        """Prepare the workload of ``scenario`` for one episode seed.

        Args:
            scenario: The scenario.
            seed: Episode seed.
            schedule: The requests that it replays, if they are loaded already; see :func:`replay_schedule`.
        """
        self._workload = scenario.workload
        classes = list(scenario.slo)
        self._bounds = [
            (classes.index(kind.slo), scenario.slo[kind.slo].bounds())
            for kind in scenario.workload.kinds.values()
        ]
        self._kinds = list(scenario.workload.kinds.values())
        total = sum(kind.weight for kind in self._kinds)
        self._cumulative = [
            sum(kind.weight for kind in self._kinds[: i + 1]) / total for i in range(len(self._kinds))
        ]
        self._seed = seed
        self._n_devices = scenario.n_devices
        load = scenario.workload.load
        phase = rng.uniform(seed, Stream.LOAD_PHASE, 0, 0) if load.random_phase else 0.0
        self.clock = LoadClock(load, phase)
        self._total = scenario.episode.total_requests
        self._shares: list[float] = []
        self._processes: list[RenewalProcess] = []
        self._schedule: Schedule | None = None
        arrivals = scenario.workload.arrivals
        if isinstance(arrivals, Renewal):
            self._prepare_renewal(arrivals, longest_gap_s(scenario))
        elif isinstance(arrivals, ReplayArrivals):
            self._schedule = replay_schedule(scenario) if schedule is None else schedule
            self._offset_s, self._first = self._schedule.start(seed)
            self._total = self._schedule.total(self._total)

    def _prepare_renewal(self, arrivals: Renewal, limit_s: float) -> None:
        rate_per_s = arrivals.rate_per_s
        if arrivals.per_client or arrivals.client_rate_cv > 0.0:
            self._shares = client_shares(arrivals, self._seed, self._n_devices)
        if arrivals.per_client:
            self._processes = [
                RenewalProcess(arrivals, rate_per_s * share, self._seed, device + 1, limit_s)
                for device, share in enumerate(self._shares)
            ]
        else:
            self._processes = [RenewalProcess(arrivals, rate_per_s, self._seed, 0, limit_s)]

    @property
    def closed_loop(self) -> bool:
        """Whether clients wait for their answer before they ask again."""
        return isinstance(self._workload.arrivals, ClosedLoop)

    @property
    def per_client(self) -> bool:
        """Whether each client has an arrival process of its own and asks without waiting for answers."""
        return isinstance(self._workload.arrivals, Renewal) and self._workload.arrivals.per_client

    @property
    def total_requests(self) -> int | None:
        """Number of requests after which the workload is finished; None: never."""
        return self._total

    def think_end_s(self, device: int, ordinal: int, now_s: float) -> float:
        """Return when a client that starts to think at ``now_s`` asks its ``ordinal``-th question.

        The first think time is under way when the episode starts, and a uniform share of it remains.
        """
        arrivals = self._workload.arrivals
        assert isinstance(arrivals, ClosedLoop)
        think = draw(arrivals.think_s, self._seed, Stream.THINK, device, 3 * ordinal)
        if ordinal == 0:
            think *= rng.uniform(self._seed, Stream.THINK, device, 2)
        return self.clock.advance(now_s, think)

    def client_arrival_s(self, device: int, previous_s: float) -> float:
        """Return when a client with a process of its own asks next; call once per request, in order."""
        return self.clock.advance(previous_s, self._processes[device].next_s())

    def open_arrival_s(self, ordinal: int, previous_s: float) -> float:
        """Return when the ``ordinal``-th request of an open arrival process arrives; call in order."""
        arrivals = self._workload.arrivals
        if self._schedule is not None:
            return max(previous_s, self._schedule.arrival_s(self._first + ordinal, self._offset_s))
        if isinstance(arrivals, Renewal):
            return self.clock.advance(previous_s, self._processes[0].next_s())
        assert isinstance(arrivals, Poisson)
        return self.clock.advance(previous_s, laws.poisson_gap_s(self._seed, ordinal, arrivals.rate_per_s))

    def open_device(self, ordinal: int) -> int:
        """Return the device of the ``ordinal``-th request of an open arrival process."""
        if self._schedule is not None and self._schedule.devices is not None:
            device = self._schedule.devices[(self._first + ordinal) % len(self._schedule)]
            if device >= 0:
                return device
        return laws.open_device(self._seed, ordinal, self._n_devices, bool(self._shares), self._shares)

    def request(self, device: int, ordinal: int, place: int = 0) -> RequestSpec:
        """Return the ``ordinal``-th request of a device.

        Args:
            device: Number of the device.
            ordinal: Number of requests that the device has made before.
            place: Number of the request in the open arrival process, and so its place in a replayed trace.
        """
        uid = device * REQUESTS_PER_DEVICE + ordinal
        u = rng.uniform(self._seed, Stream.REQUEST_CLASS, uid, 0)
        number = next(
            i for i, bound in enumerate(self._cumulative) if u <= bound or i == len(self._kinds) - 1
        )
        recorded = None
        if self._schedule is None:
            prompt, output = self._lengths(self._kinds[number], uid)
        else:
            row = (self._first + place) % len(self._schedule)
            prompt, output = self._schedule.prompt_tokens[row], self._schedule.output_tokens[row]
            if self._schedule.kinds is not None and self._schedule.kinds[row] >= 0:
                number = self._schedule.kinds[row]
            if self._schedule.recorded is not None and self._schedule.recorded[row] >= 0:
                recorded = self._schedule.recordings[self._schedule.recorded[row]]
        kind = self._kinds[number]
        slo_class, bounds = self._bounds[number]
        return RequestSpec(
            uid=uid,
            device=device,
            kind=number,
            prompt_tokens=prompt,
            output_tokens=output,
            slo_class=slo_class,
            acceptance_kinds=kind.acceptance_kinds,
            recorded=recorded,
            **bounds,
        )

    def _lengths(self, kind: RequestKind, uid: int) -> tuple[int, int]:
        """Return the lengths of prompt and answer, in tokens."""
        correlation = kind.length_correlation
        if correlation == 0.0:
            prompt = draw(kind.prompt_tokens, self._seed, Stream.LENGTH, uid, 0)
            output = draw(kind.output_tokens, self._seed, Stream.LENGTH, uid, 3)
        else:
            key = rng.key(self._seed, Stream.LENGTH, uid)
            z, own = (
                rng.normal(rng.uniform_from_key(key, counter), rng.uniform_from_key(key, counter + 1))
                for counter in (0, 3)
            )
            assert isinstance(kind.prompt_tokens, LogNormal | Quantiles)
            assert isinstance(kind.output_tokens, LogNormal | Quantiles)
            prompt = value_at(kind.prompt_tokens, z)
            rest = math.sqrt(1.0 - correlation * correlation)
            output = value_at(kind.output_tokens, correlation * z + rest * own)
        return (
            variates.whole_tokens(prompt, self._workload.max_prompt_tokens),
            variates.whole_tokens(output, self._workload.max_output_tokens),
        )
