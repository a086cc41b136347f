"""Arrivals, lengths and kinds of requests, all drawn by counter: the same for every scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import ClosedLoop, Scenario
from dsd_env.scenario.variates import draw
from dsd_env.workload.load import LoadClock

_ORDINALS = 1 << 24


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """What a request is, before anything happens to it.

    Attributes:
        uid: Number that addresses its random draws: the same request has the same uid whatever the
            scheduler does.
        device: Number of the device it comes from.
        kind: Number of its kind in the scenario's mix.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        slo_ttft_s: Bound on the time to first token.
        slo_tpot_s: Bound on the time per output token.
        acceptance_kinds: Kinds of recorded requests that may be replayed for it.
    """

    uid: int
    device: int
    kind: int
    prompt_tokens: int
    output_tokens: int
    slo_ttft_s: float
    slo_tpot_s: float
    acceptance_kinds: tuple[str, ...]


class WorkloadGenerator:
    """Draws the workload of one episode."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Prepare the workload of ``scenario`` for one episode seed."""
        self._workload = scenario.workload
        self._slo = scenario.slo
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

    @property
    def closed_loop(self) -> bool:
        """Whether clients wait for their answer before they ask again."""
        return isinstance(self._workload.arrivals, ClosedLoop)

    def think_end_s(self, device: int, ordinal: int, now_s: float) -> float:
        """Return when a client that starts to think at ``now_s`` asks its ``ordinal``-th question.

        The first thought is under way when the episode starts: a uniform share of it is left.
        """
        arrivals = self._workload.arrivals
        assert isinstance(arrivals, ClosedLoop)
        think = draw(arrivals.think_s, self._seed, Stream.THINK, device, 3 * ordinal)
        if ordinal == 0:
            think *= rng.uniform(self._seed, Stream.THINK, device, 2)
        return self.clock.advance(now_s, think)

    def open_arrival_s(self, ordinal: int, previous_s: float) -> float:
        """Return when the ``ordinal``-th request of an open arrival process comes."""
        arrivals = self._workload.arrivals
        assert not isinstance(arrivals, ClosedLoop)
        gap = rng.exponential(rng.uniform(self._seed, Stream.ARRIVAL, 0, ordinal)) / arrivals.rate_per_s
        return self.clock.advance(previous_s, gap)

    def open_device(self, ordinal: int) -> int:
        """Return the device of the ``ordinal``-th request of an open arrival process."""
        return int(rng.uniform(self._seed, Stream.ROUTING, 0, ordinal) * self._n_devices)

    def request(self, device: int, ordinal: int) -> RequestSpec:
        """Return the ``ordinal``-th request of a device."""
        uid = device * _ORDINALS + ordinal
        u = rng.uniform(self._seed, Stream.REQUEST_CLASS, uid, 0)
        number = next(
            i for i, bound in enumerate(self._cumulative) if u <= bound or i == len(self._kinds) - 1
        )
        kind = self._kinds[number]
        prompt = draw(kind.prompt_tokens, self._seed, Stream.LENGTH, uid, 0)
        output = draw(kind.output_tokens, self._seed, Stream.LENGTH, uid, 3)
        slo = self._slo[kind.slo]
        return RequestSpec(
            uid=uid,
            device=device,
            kind=number,
            prompt_tokens=min(max(1, round(prompt)), self._workload.max_prompt_tokens),
            output_tokens=min(max(1, round(output)), self._workload.max_output_tokens),
            slo_ttft_s=slo.ttft_s,
            slo_tpot_s=slo.tpot_s,
            acceptance_kinds=kind.acceptance_kinds,
        )
