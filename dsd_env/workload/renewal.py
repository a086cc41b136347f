"""Renewal arrivals: Weibull gaps, at a rate that may change at random."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from dsd_env import rng
from dsd_env.laws import arrivals as laws
from dsd_env.rng import Stream
from dsd_env.scenario.schema import RateModulation, Renewal, Scenario

RUN_IN_GAPS, SHORTEST = laws.RUN_IN_GAPS, laws.SHORTEST
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

    Without this bound, the search for the next request of a client who hardly ever asks would not end.
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
    spec = renewal_law(arrivals)
    weights = [laws.client_weight(spec, seed, device) for device in range(n_devices)]
    total = 0.0
    for weight in weights:
        total += weight
    return [weight / total for weight in weights]


def process_cv(arrivals: Renewal, seed: int, process: int) -> float:
    """Return the CV of the gaps of a process; process 0 is the whole system's, 1 is the first device's."""
    if arrivals.bursty is not None and process > 0:
        u = rng.uniform_from_key(rng.key(seed, Stream.ROUTING, process), 2)
        if u < arrivals.bursty.fraction:
            return arrivals.bursty.cv
    return arrivals.cv


@dataclass(frozen=True, slots=True)
class RenewalLaw:
    """Arrivals of a scenario as numbers; see :func:`dsd_env.laws.arrivals.begin_renewal`."""

    power: float
    scale: float
    limit_s: float
    client_spread: float
    bursty_fraction: float = 0.0
    bursty_power: float = 0.0
    bursty_scale: float = 0.0
    modulated: bool = False
    sigma: float = 0.0
    rho: float = 0.0
    step: float = 0.0
    period_s: float = 0.0


def renewal_law(arrivals: Renewal, limit_s: float = math.inf) -> RenewalLaw:
    """Return the law of renewal arrivals.

    Args:
        arrivals: As the scenario says.
        limit_s: Longest time to the next arrival; see :func:`longest_gap_s`.
    """
    power, scale = weibull_gap(arrivals.cv)
    bursty, modulation = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)
    if arrivals.bursty is not None:
        bursty = (arrivals.bursty.fraction, *weibull_gap(arrivals.bursty.cv))
    if arrivals.modulation is not None:
        modulation = modulation_steps(arrivals.modulation)
    return RenewalLaw(
        power, scale, limit_s, client_spread(arrivals), *bursty, arrivals.modulation is not None, *modulation
    )


class RenewalProcess:
    """The state of one arrival process of :mod:`dsd_env.laws.arrivals`; it moves from arrival to arrival."""

    def __init__(
        self, arrivals: Renewal, rate_per_s: float, seed: int, process: int, limit_s: float = math.inf
    ) -> None:
        """Start at the beginning of the episode.

        Args:
            arrivals: The law of its gaps, and of its rate.
            rate_per_s: Its mean rate.
            seed: Episode seed.
            process: Number of the process, which addresses its draws. Process 0 is the whole system's; those
                of the devices begin at 1.
            limit_s: Longest time to the next arrival; see :func:`longest_gap_s`.
        """
        self._law = renewal_law(arrivals, limit_s)
        self.gap_key = self.rate_key = self.ordinal = self.period = 0
        self.rate_per_s = self.power = self.scale = self.first = self.x = self.left_s = 0.0
        self.factor = 1.0
        laws.begin_renewal(self, self._law, seed, rate_per_s, process)

    def next_s(self) -> float:
        """Return the time until the next arrival, in seconds of the load clock."""
        return laws.next_gap_s(self, self._law)
