"""What a link does to requests: a fitted process held against a series that is replayed.

Statistics of a link are matched for the sake of the requests that cross it. Here the same small system runs
once with a link of a fitted process and once with a recorded series, and the times of its requests are
compared. Where the series itself is not at hand, :func:`slotted_series` makes one of the same statistics in
another way: a level that is drawn anew every 15 s, as satellites change, and what varies on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.network.pings import PingLog, series_of_pings
from dsd_env.extras import needs
from dsd_env.network.series import LinkSeries, save_series
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.schema import Link
from dsd_env.simulate import simulate

with needs("calibrate", "comparing network models"):
    from scipy.signal import lfilter
    from scipy.stats import norm

__all__ = ["Effect", "effect_of", "laboratory", "replayed_link", "slotted_series"]

FloatArray = NDArray[np.float64]
BITS_PER_S = 1e8
"""Bandwidth of both: pings measure none, and the messages are small."""


@dataclass(frozen=True)
class Effect:
    """Times of the requests that crossed a link.

    Attributes:
        p50_s: Median.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        spread_s: Standard deviation.
        requests: How many.
    """

    p50_s: float
    p95_s: float
    p99_s: float
    spread_s: float
    requests: int

    def named(self) -> dict[str, float]:
        """Return the times in seconds by name."""
        return {"p50": self.p50_s, "p95": self.p95_s, "p99": self.p99_s, "spread": self.spread_s}


def laboratory(link: Link, *, clients: int = 40, requests: int = 2000) -> Scenario:
    """Return a system in which nothing but the link and acceptance varies.

    Each client drafts on its own, 5 ms a token, and verifies over the link; the target takes 20 ms an
    iteration however many take part. Answers have 120 tokens. Clients think for a minute on average, so that
    requests meet the link at times that have little to do with one another.
    """
    data: dict[str, Any] = {
        "name": "link-laboratory",
        "card": {"models": "synthetic", "regime": "one link", "utilisation": "next to none"},
        "devices": {
            "client": {
                "count": clients,
                "drafter": {"model": "draft", "profile": {"t0_s": 0.005}},
                "link": "link",
                "power": {"idle_w": 1.0, "busy_w": 10.0},
            }
        },
        "targets": {
            "target": {
                "profile": {"t0_s": 0.020},
                "gpus": 1,
                "kv_capacity_tokens": 10_000_000,
                "max_batch_wait_s": 0.0,
                "power": {"idle_w": 100.0, "busy_w": 500.0},
            }
        },
        "links": {"link": link.model_dump(mode="json")},
        "acceptance": {"draft": {"source": "iid", "alpha": 0.75}},
        "slo": {"any": {"ttft_s": 10.0, "tpot_s": 1.0}},
        "workload": {
            "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "exponential", "mean": 60.0}},
            "kinds": {
                "question": {
                    "weight": 1.0,
                    "slo": "any",
                    "prompt_tokens": {"distribution": "constant", "value": 100},
                    "output_tokens": {"distribution": "constant", "value": 121},
                }
            },
        },
        "actions": {"gammas": [0, 4], "batch_sizes": [1], "targets_offered": 1},
        "episode": {"requests": requests, "horizon_s": 1e7},
    }
    return load_scenario(data)


def effect_of(
    link: Link, scheduler: str, *, seeds: tuple[int, ...] = (1, 2, 3), requests: int = 2000
) -> Effect:
    """Return the times of requests that cross a link.

    Args:
        link: The link.
        scheduler: Name of the scheduler.
        seeds: Seeds; the requests of all count together.
        requests: Requests of each seed.
    """
    scenario = laboratory(link, requests=requests)
    times = np.concatenate(
        [simulate(scenario, scheduler, seed).requests["e2e_s"].astype(np.float64) for seed in seeds]
    )
    p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
    return Effect(p50, p95, p99, float(times.std()), len(times))


def replayed_link(log: PingLog, path: Path, *, outage_s: float = 2.0) -> Link:
    """Write the series of a log of pings to a file, and return the link that replays it."""
    series, one_way_s, loss = series_of_pings(
        log, uplink_bits_per_s=BITS_PER_S, downlink_bits_per_s=BITS_PER_S, outage_s=outage_s
    )
    return _link_of(series, one_way_s, loss, path)


def _link_of(series: LinkSeries, one_way_s: float, loss: float, path: Path) -> Link:
    save_series(series, path)
    return Link.model_validate(
        {
            "one_way_s": one_way_s,
            "uplink_bits_per_s": BITS_PER_S,
            "downlink_bits_per_s": BITS_PER_S,
            "loss_probability": loss,
            "replay": {"file": str(path)},
        }
    )


def slotted_series(
    percentiles_ms: tuple[float, ...],
    levels: tuple[float, ...],
    *,
    length_s: float = 900.0,
    interval_s: float = 0.101,
    slot_s: float = 15.0,
    shares: tuple[float, float, float] = (0.50, 0.18, 0.32),
    fast_s: float = 0.5,
    lost: float = 0.15,
    run_pings: float = 1.0,
    seed: int = 1,
) -> PingLog:
    """Return a log of pings with given percentiles, made of slots with a level each.

    The normal score of a round trip is the sum of the slot's level, a fast first-order process and white
    noise; the scores are ranked, and each rank has the round trip of its percentile, so that the percentiles
    hold in every series and not only on average.

    Args:
        percentiles_ms: Round trips, in ms.
        levels: Per cent of the values below each.
        length_s: Length of the series.
        interval_s: Time between pings.
        slot_s: Length of a slot.
        shares: Of the variance: slots, fast process, noise.
        fast_s: Correlation time of the fast process.
        lost: Share of the pings without an answer.
        run_pings: Mean number of pings on end without one.
        seed: Seed of the series.
    """
    draws = np.random.default_rng(seed)
    n = int(length_s / interval_s)
    sent_s: FloatArray = interval_s * np.arange(n, dtype=np.float64)
    slots = np.floor((sent_s + draws.uniform(0.0, slot_s)) / slot_s).astype(np.int64)
    rho = math.exp(-interval_s / fast_s)
    noise = math.sqrt(1.0 - rho * rho) * draws.standard_normal(n + 100)
    fast = lfilter([1.0], [1.0, -rho], noise)[100:]
    score = math.sqrt(shares[0]) * draws.standard_normal(slots[-1] + 1)[slots]
    score = score + math.sqrt(shares[1]) * fast + math.sqrt(shares[2]) * draws.standard_normal(n)
    ranked = norm.ppf((np.argsort(np.argsort(score)) + 0.5) / n)
    knots, logs = norm.ppf(np.array(levels) / 100.0), np.log(percentiles_ms)
    low = (logs[1] - logs[0]) / (knots[1] - knots[0])
    high = (logs[-1] - logs[-2]) / (knots[-1] - knots[-2])
    value = np.interp(ranked, knots, logs)
    value += low * np.minimum(0.0, ranked - knots[0]) + high * np.maximum(0.0, ranked - knots[-1])
    rtt_s: FloatArray = np.asarray(1e-3 * np.exp(value), dtype=np.float64)
    # Runs without an answer: geometric lengths, and as many answered in between as the share asks for.
    gone = np.zeros(n, dtype=bool)
    at = 0
    while lost > 0.0 and at < n:
        at += int(draws.geometric(min(1.0, lost / ((1.0 - lost) * run_pings))))
        run = int(draws.geometric(1.0 / run_pings))
        gone[at : at + run] = True
        at += run
    rtt_s[gone] = math.nan
    return PingLog("slots of a level each", sent_s, rtt_s, "made up", loss_known=True)
