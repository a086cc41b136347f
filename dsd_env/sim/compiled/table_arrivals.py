"""Constants of when requests arrive: the load over time, renewal processes, replayed requests."""

from __future__ import annotations

from dsd_env.scenario.schema import LoadProfile, Renewal
from dsd_env.sim.compiled import codes
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.table_writer import Writer
from dsd_env.workload.renewal import client_spread, longest_gap_s, modulation_steps, weibull_gap


def write_load(out: Writer, load: LoadProfile) -> None:
    """Write the load over time."""
    points = [(phase * load.period_s, value) for phase, value in load.points]
    points.append((load.period_s, load.points[0][1]))
    spec = out.k_header["load"]
    spec["period_s"], spec["segments"], spec["random_phase"] = (
        load.period_s,
        len(points) - 1,
        load.random_phase,
    )
    for column, name in enumerate(("times_s", "values")):
        out.k.point(("load", name), out.buffer.numbers([point[column] for point in points], "f8"))


def write_renewal(out: Writer, arrivals: Renewal) -> None:
    """Write arrivals with independent gaps."""
    out.set(
        arrivals=codes.CLIENT_RENEWALS if arrivals.per_client else codes.RENEWAL,
        rate_per_s=arrivals.rate_per_s,
        has_shares=arrivals.per_client or arrivals.client_rate_cv > 0.0,
    )
    spec = out.k_header["renewal"]
    spec["power"], spec["scale"] = weibull_gap(arrivals.cv)
    spec["limit_s"] = longest_gap_s(out.scenario)
    spec["client_spread"] = client_spread(arrivals)
    if arrivals.bursty is not None:
        spec["bursty_fraction"] = arrivals.bursty.fraction
        spec["bursty_power"], spec["bursty_scale"] = weibull_gap(arrivals.bursty.cv)
    if arrivals.modulation is not None:
        spec["modulated"] = True
        spec["sigma"], spec["rho"], spec["step"], spec["period_s"] = modulation_steps(arrivals.modulation)


def write_schedule(out: Writer) -> None:
    """Write the requests that are replayed."""
    schedule = out.builder.schedule
    assert schedule is not None
    rows = out.buffer.rows(rec.REPLAYED, len(schedule))
    rows.array["arrival_s"] = schedule.times_s
    rows.array["prompt_tokens"], rows.array["output_tokens"] = (
        schedule.prompt_tokens,
        schedule.output_tokens,
    )
    if schedule.devices is not None:
        rows.array["device"] = schedule.devices
    if schedule.kinds is not None:
        rows.array["kind"] = schedule.kinds
    rows.array["recorded"] = -1 if schedule.recorded is None else schedule.recorded
    out.set(
        arrivals=codes.REPLAY,
        n_replayed=len(schedule),
        replay_random=schedule.random_start,
        replays_devices=schedule.devices is not None,
        replays_kinds=schedule.kinds is not None,
        replay_period_s=schedule.period_s,
    )
    out.k.point("replayed", rows.at)
