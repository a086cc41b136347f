"""Renewal arrivals: Weibull gaps, at a rate that may change at random."""

from __future__ import annotations

import functools
import math

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.schema import RateModulation, Renewal, Scenario

RUN_IN_GAPS = 32.0
"""Mean gaps for which a process has gone on when the episode starts.

A process that begins with a gap has, if its gaps vary much, more arrivals at first than later; and all
clients would begin together.
"""
SHORTEST = 1e-300
"""Instead of a unit exponential variate of 0, whose logarithm there is not; one in 2^53 is."""
_SHAPES = (0.05, 60.0)


def weibull_shape(cv: float) -> float:
    """Return the shape of the Weibull law with a coefficient of variation, by bisection.

    Its CV falls with the shape k: 1 + CV² = Γ(1 + 2/k) / Γ(1 + 1/k)².

    Args:
        cv: Within [0.1, 20].
    """
    wanted = math.log1p(cv * cv)
    low, high = _SHAPES
    for _ in range(200):
        middle = 0.5 * (low + high)
        if math.lgamma(1.0 + 2.0 / middle) - 2.0 * math.lgamma(1.0 + 1.0 / middle) > wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@functools.lru_cache(maxsize=256)
def weibull_gap(cv: float) -> tuple[float, float]:
    """Return (power, scale): a gap of mean one is scale * E^power for a unit exponential E."""
    power = 1.0 / weibull_shape(cv)
    return power, math.exp(-math.lgamma(1.0 + power))


def longest_gap_s(scenario: Scenario) -> float:
    """Return a time on the load clock that is certainly beyond the episode's horizon.

    Clients who hardly ever ask would otherwise be looked for through periods without end.
    """
    return 2.0 * scenario.episode.horizon_s * max(value for _, value in scenario.workload.load.points)


def modulation_steps(modulation: RateModulation) -> tuple[float, float, float, float]:
    """Return (sigma, correlation from one period to the next, size of the innovation, length of a period)."""
    rho = math.exp(-modulation.period_s / modulation.correlation_s)
    return modulation.sigma, rho, math.sqrt(1.0 - rho * rho), modulation.period_s


def client_spread(arrivals: Renewal) -> float:
    """Return the standard deviation of the logarithm of the clients' rates."""
    return math.sqrt(math.log1p(arrivals.client_rate_cv * arrivals.client_rate_cv))


def client_shares(arrivals: Renewal, seed: int, n_devices: int) -> list[float]:
    """Return the share of each device of the arrival rate; they sum to one."""
    spread = client_spread(arrivals)
    weights = []
    for device in range(n_devices):
        key = rng.key(seed, Stream.ROUTING, device + 1)
        z = rng.normal(rng.uniform_from_key(key, 0), rng.uniform_from_key(key, 1))
        weights.append(math.exp(spread * z))
    total = 0.0
    for weight in weights:
        total += weight
    return [weight / total for weight in weights]


def process_cv(arrivals: Renewal, seed: int, process: int) -> float:
    """Return the CV of the gaps of a process: 0 of the whole system, from 1 those of devices."""
    if arrivals.bursty is not None and process > 0:
        u = rng.uniform_from_key(rng.key(seed, Stream.ROUTING, process), 2)
        if u < arrivals.bursty.fraction:
            return arrivals.bursty.cv
    return arrivals.cv


class RenewalProcess:
    """One process; a cursor that goes from arrival to arrival.

    Gap number i is drawn at (``ARRIVAL``, process, i), the rate's factor of period k at (``LOAD_PHASE``,
    process + 1, 2k and 2k + 1).
    """

    def __init__(
        self, arrivals: Renewal, rate_per_s: float, seed: int, process: int, limit_s: float = math.inf
    ) -> None:
        """Stand at the start of the episode.

        Args:
            arrivals: The law of its gaps, and of its rate.
            rate_per_s: Its mean rate.
            seed: Episode seed.
            process: Number of the process, which addresses its draws: 0 of the one for the whole system, from
                1 those of devices.
            limit_s: Longest time to the next arrival; see :func:`longest_gap_s`.
        """
        self._rate_per_s = rate_per_s
        self._limit_s = limit_s
        self._power, self._scale = weibull_gap(process_cv(arrivals, seed, process))
        self._gap_key = rng.key(seed, Stream.ARRIVAL, process)
        self._rate_key = rng.key(seed, Stream.LOAD_PHASE, process + 1)
        self._steps = None if arrivals.modulation is None else modulation_steps(arrivals.modulation)
        self._ordinal = 0
        self._period = 0
        self._x = self._left_s = 0.0
        self._factor = 1.0
        if self._steps is not None:
            self._x = self._normal()
            self._begin_period()
        self._first = -RUN_IN_GAPS
        while self._first <= 0.0:
            self._first += self._gap()

    def next_s(self) -> float:
        """Return the time until the next arrival, in seconds of the load clock."""
        gaps = self._gap() if self._first == 0.0 else self._first
        self._first = 0.0
        amount_s = gaps / self._rate_per_s
        if self._steps is None:
            return min(amount_s, self._limit_s)
        _, rho, step, _ = self._steps
        elapsed_s = 0.0
        while amount_s > self._left_s * self._factor and elapsed_s < self._limit_s:
            amount_s -= self._left_s * self._factor
            elapsed_s += self._left_s
            self._period += 1
            self._x = rho * self._x + step * self._normal()
            self._begin_period()
        rest_s = amount_s / self._factor
        self._left_s = max(0.0, self._left_s - rest_s)
        return min(elapsed_s + rest_s, self._limit_s)

    def _gap(self) -> float:
        """Return the next gap, of mean one."""
        variate = max(rng.exponential(rng.uniform_from_key(self._gap_key, self._ordinal)), SHORTEST)
        self._ordinal += 1
        return self._scale * math.exp(self._power * math.log(variate))

    def _normal(self) -> float:
        counter = 2 * self._period
        return rng.normal(
            rng.uniform_from_key(self._rate_key, counter), rng.uniform_from_key(self._rate_key, counter + 1)
        )

    def _begin_period(self) -> None:
        assert self._steps is not None
        sigma, _, _, self._left_s = self._steps
        self._factor = math.exp(sigma * self._x - 0.5 * sigma * sigma)
