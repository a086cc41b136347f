"""What servers report and controllers measure."""

from __future__ import annotations

from typing import Any

from dsd_env.laws.constants import POOL_WEIGHT, SLOPE_TOKENS
from dsd_env.laws.step_times import marginal_token_s

Report = Any
Server = Any
Device = Any
Pool = Any


def remaining_s(idle: bool, expected_end_s: float, now_s: float) -> float:
    """Return the expected rest of the iteration under way, 0 if none is."""
    rest_s = 0.0 if idle else expected_end_s - now_s
    return rest_s if rest_s > 0.0 else 0.0


def target_token_s(spec: Server, iteration_tokens: float) -> float:
    """Return a target's marginal time of a new token at its usual iteration; see ``marginal_token_s``."""
    return marginal_token_s(spec, spec.length, iteration_tokens, SLOPE_TOKENS)


def places_taken(active: int, queued: int, concurrency: int, same: bool) -> int:
    """Return how many of a drafter's places are taken, for one that shares its server with others.

    Args:
        active: Jobs under way on the server.
        queued: Jobs waiting there.
        concurrency: Places of the drafter.
        same: Those under way are this drafter's.
    """
    blocked = active > 0 and (not same or queued > 0)
    return max(active, concurrency) if blocked else active


def drafter_wait_s(active: int, queued: int, concurrency: int, mean_job_s: float) -> float:
    """Return the expected wait for a drafter with so many places and jobs."""
    if active < concurrency:
        return 0.0
    return mean_job_s * (queued + 1) / concurrency


def busy_drafter_wait_s(jobs: int, concurrency: int, mean_job_s: float) -> float:
    """Return the expected wait for a device's own drafter, of which only the number of jobs is known."""
    return mean_job_s * (jobs - concurrency + 1) if jobs >= concurrency else 0.0


def moved(mean: float, sample: float, weight: float) -> float:
    """Return a running mean with one more sample in it."""
    return mean + weight * (sample - mean)


def measure_round_trip(device: Device, now_s: float, sample_s: float, weight: float) -> None:
    """Take a round-trip sample into a device's running estimates."""
    device.rtt_deviation_s += weight * (abs(sample_s - device.rtt_s) - device.rtt_deviation_s)
    device.rtt_s += weight * (sample_s - device.rtt_s)
    device.rtt_sample_s = now_s


def access_round_trip_s(sample_s: float, extra_one_way_s: float) -> float:
    """Return what of a measured round trip the device's own link took, not the way from there to the target.

    Args:
        sample_s: The round trip, without the time at the target.
        extra_one_way_s: How far the target is beyond the link, each way.
    """
    if extra_one_way_s == 0.0:
        return sample_s
    return max(sample_s - 2.0 * extra_one_way_s, 0.0)


def sample_age_s(now_s: float, sample_s: float) -> float:
    """Return the age of an estimate whose newest sample was taken at a time (negative: never)."""
    return now_s - sample_s if sample_s >= 0.0 else now_s


def attainment(good_per_s: float, done_per_s: float) -> float:
    """Return the running share of completed requests that met their SLO; 1 before any has completed."""
    return good_per_s / done_per_s if done_per_s > 0.0 else 1.0


def mean_gamma(gammas: int, drafting: int) -> float:
    """Return the mean number of drafts of those that draft; 0 if nobody does."""
    return gammas / drafting if drafting > 0 else 0.0


def note_verified(pool: Pool, drafted: int, accepted: int) -> None:
    """Take a verification into the running acceptance of a draft model over all requests.

    Of its drafts, the accepted ones were right and the next, if there was one, was wrong. Those behind it
    follow a wrong path and tell nothing.
    """
    pool.right += accepted - POOL_WEIGHT * pool.right
    pool.judged += accepted + (1.0 if accepted < drafted else 0.0) - POOL_WEIGHT * pool.judged


def pooled_acceptance(pool: Pool) -> float:
    """Return the share of drafts that were right, given that those before them were."""
    share: float = pool.right / pool.judged
    return share
