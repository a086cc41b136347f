"""Replays a trace of requests in a scenario."""

from __future__ import annotations

import bisect
import logging
from dataclasses import dataclass

import numpy as np

from dsd_env import rng
from dsd_env.rng import Stream
from dsd_env.scenario.loader import ScenarioError
from dsd_env.scenario.schema import ReplayArrivals, Scenario
from dsd_env.workload.plain import load_trace
from dsd_env.workload.trace import RequestTrace

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """The requests that a scenario replays, in order.

    Attributes:
        times_s: Arrival times from the beginning of the replayed part, at the scenario's speed.
        prompt_tokens: Lengths of the prompts, cut to the scenario's bound.
        output_tokens: Lengths of the answers, cut to the scenario's bound.
        devices: Device of each request, by its client. Where it is -1, or if the array is None, the device is
            drawn from the seed.
        kinds: Number of each request's kind in the scenario. Where it is -1, or if the array is None, the
            kind is drawn from the seed.
        period_s: Length of the part; it ends after its last request.
        endless: Whether the part repeats at its end.
        random_start: Whether an episode begins at a place drawn from the seed.
        recorded: Number in ``recordings`` of the recorded request whose acceptance each request has. Where it
            is -1, or if the array is None, one is drawn from the seed.
        recordings: Names of recorded requests.
        capped_prompts: Number of requests whose prompt was longer than the scenario allows.
        capped_outputs: Number of requests whose answer was longer than the scenario allows.
    """

    times_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    devices: tuple[int, ...] | None
    kinds: tuple[int, ...] | None
    period_s: float
    endless: bool
    random_start: bool
    capped_prompts: int
    capped_outputs: int
    recorded: tuple[int, ...] | None = None
    recordings: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of requests of the part."""
        return len(self.times_s)

    def total(self, total_requests: int | None) -> int | None:
        """Return the number of requests of the workload, given the scenario's own bound."""
        if self.endless:
            return total_requests
        return len(self) if total_requests is None else min(total_requests, len(self))

    def start(self, seed: int) -> tuple[float, int]:
        """Return where an episode begins: seconds into the part, and the number of its first request."""
        if not self.random_start:
            return 0.0, 0
        offset_s = self.period_s * rng.uniform(seed, Stream.ARRIVAL, 0, 0)
        return offset_s, bisect.bisect_left(self.times_s, offset_s)

    def arrival_s(self, position: int, offset_s: float) -> float:
        """Return when request number ``position`` arrives; numbers go on through all repetitions."""
        lap, number = divmod(position, len(self.times_s))
        return self.times_s[number] + lap * self.period_s - offset_s


def replay_schedule(scenario: Scenario, trace: RequestTrace | None = None) -> Schedule:
    """Return the requests that a scenario with replayed arrivals replays.

    If requests are longer than the scenario allows, they are cut, and a warning says how many.

    Args:
        scenario: Its arrivals are of kind ``replay``.
        trace: The trace, if it has been loaded.

    Raises:
        RequestTraceError: The trace cannot be used, or no request is in the part of it.
        ScenarioError: The trace has no kinds, or others than the scenario.
    """
    workload = scenario.workload
    arrivals = workload.arrivals
    assert isinstance(arrivals, ReplayArrivals)
    if trace is None:
        part = load_trace(
            arrivals.trace,
            trust_units=arrivals.trust_units,
            start_s=arrivals.start_s,
            duration_s=arrivals.duration_s,
        )
    else:
        part = trace.cut(arrivals.start_s, arrivals.duration_s)
    if part.tick_s is not None:
        _LOGGER.warning(
            "%s: its clock ticks every %g s, and requests of one tick come at once; "
            "scripts/import_workload.py --spread-ticks spreads them",
            arrivals.trace,
            part.tick_s,
        )
    length_s = arrivals.duration_s
    if length_s is None:
        # As if one more request came after it, a mean gap later.
        length_s = float(part.arrival_s[-1]) * (1.0 + 1.0 / max(1, len(part) - 1)) or 1.0
    kinds = None
    if arrivals.trace_kinds:
        known = list(workload.kinds)
        if part.kind is None or not set(part.kinds) <= set(known):
            raise ScenarioError(
                f"scenario {scenario.name!r}: workload.arrivals.trace_kinds: {arrivals.trace} has the kinds "
                f"{list(part.kinds)}, the scenario {known}"
            )
        numbers = [known.index(name) for name in part.kinds]
        kinds = tuple(numbers[number] if number >= 0 else -1 for number in part.kind.tolist())
    devices = None
    if part.client is not None:
        n_devices = scenario.n_devices
        devices = tuple(number % n_devices if number >= 0 else -1 for number in part.client.tolist())
    horizon_s = scenario.episode.horizon_s
    late = int((part.arrival_s / arrivals.rate_scale > horizon_s).sum())
    if late and not arrivals.loop and not arrivals.random_start:
        _LOGGER.warning(
            "%s: of %d requests, %d come after the end of the episode (episode.horizon_s = %g)",
            arrivals.trace,
            len(part),
            late,
            horizon_s,
        )
    episode = scenario.episode
    played = len(part)
    if episode.window_s is None:
        played = episode.warmup_requests + episode.measured_requests
    if played < len(part) and not arrivals.loop and not arrivals.random_start:
        _LOGGER.warning(
            "%s: of %d requests, an episode measures %d after %d (episode.requests, episode.warmup_requests) "
            "and ends then",
            arrivals.trace,
            len(part),
            episode.measured_requests,
            episode.warmup_requests,
        )
    most_prompt, most_output = workload.max_prompt_tokens, workload.max_output_tokens
    capped_prompts = int((part.prompt_tokens > most_prompt).sum())
    capped_outputs = int((part.output_tokens > most_output).sum())
    if capped_prompts or capped_outputs:
        _LOGGER.warning(
            "%s: of %d requests, %d prompts are cut to %d tokens and %d answers to %d",
            arrivals.trace,
            len(part),
            capped_prompts,
            most_prompt,
            capped_outputs,
            most_output,
        )
    return Schedule(
        tuple((part.arrival_s / arrivals.rate_scale).tolist()),
        tuple(np.minimum(part.prompt_tokens, most_prompt).tolist()),
        tuple(np.minimum(part.output_tokens, most_output).tolist()),
        devices,
        kinds,
        length_s / arrivals.rate_scale,
        arrivals.loop,
        arrivals.random_start,
        capped_prompts,
        capped_outputs,
        None if part.recorded is None else tuple(part.recorded.tolist()),
        part.recordings,
    )
