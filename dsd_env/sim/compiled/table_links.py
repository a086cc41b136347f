"""Constants of the links: a row per channel, and how those channels change over time that do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from dsd_env.network import FaultMember
from dsd_env.network.processes import QUANTILE_Z, QuantileMarginal, log_centre
from dsd_env.scenario.schema import Ar1, Link
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.buffer import Rows
from dsd_env.sim.compiled.table_writer import Writer


def write_channels(
    out: Writer, faults: Sequence[FaultMember], fault_rows: Rows
) -> tuple[list[int], list[int]]:
    """Write four channels per device, in two pairs, then a pair per edge server and target.

    Args:
        out: Where to.
        faults: Members of the classes of faults, in the order of their rows.
        fault_rows: These rows.

    Returns:
        The channels whose rate or delay changes, and how many faults hit each of them.
    """
    scenario = out.scenario
    pairs: list[tuple[str | None, int, str, int]] = []
    device = 0
    for config in scenario.devices.values():
        for _ in range(config.count):
            pairs.append((config.link, 2 * device, "device", device))
            pairs.append((config.edge_link, 2 * device + 1, "device", device))
            device += 1
    server, link_number = 0, 2 * device
    for edge in scenario.edge_servers.values():
        for _ in range(edge.count):
            for _ in range(out.scenario.n_targets):
                pairs.append((edge.backhaul, link_number, "edge", server))
                link_number += 1
            server += 1
    changing: list[int] = []
    n_breaks: list[int] = []
    rows = out.buffer.rows(rec.CHANNEL_SPEC, 2 * len(pairs))
    for i, (name, number, site, entity) in enumerate(pairs):
        for direction in (0, 1):
            n = 2 * i + direction
            rows.array["number"][n] = number
            if name is not None:
                hitting = [
                    r for r, member in enumerate(faults) if (member.site, member.entity) == (site, entity)
                ]
                hitting.sort(key=lambda r: faults[r].number)
                if _channel(out, rows, n, name, direction, hitting):
                    changing.append(n)
                    n_breaks.append(len(hitting))
                    bits_per_s = _bits_per_s(out.scenario.links[name], direction)
                    rows.point("rate", _rate(out, fault_rows, name, direction, bits_per_s, hitting), n)
    out.set(n_channels=2 * len(pairs), n_links=len(changing))
    out.k.point("channels", rows.at)
    return changing, n_breaks


def _channel(out: Writer, rows: Rows, n: int, name: str, direction: int, hitting: list[int]) -> bool:
    """Write what a channel is; return whether its rate or its delay changes."""
    link = out.scenario.links[name]
    bits_per_s = _bits_per_s(link, direction)
    loss = link.loss_probability
    low, high = link.one_way_spread
    changes = bool(link.bandwidth or link.outages or out.builder.series.get(name) or hitting)
    has_rate_row = changes or link.delay is not None
    rows.set(
        n,
        changes=changes,
        has_rate_row=has_rate_row,
        one_way_s=link.one_way_s,
        spread_low=low,
        spread_high=high,
        seconds_per_byte=8.0 / bits_per_s,
        jitter_median_s=link.jitter.median_s,
        jitter_sigma=link.jitter.sigma,
        loss_probability=loss,
        log_loss_probability=math.log(loss) if loss > 0.0 else 0.0,
        rto_s=link.rto_s,
    )
    return has_rate_row


def _bits_per_s(link: Link, direction: int) -> float:
    return (link.uplink_bits_per_s, link.downlink_bits_per_s)[direction]


def _rate(
    out: Writer, fault_rows: Rows, name: str, direction: int, bits_per_s: float, hitting: list[int]
) -> int:
    """Write what a channel does over time; return where that lies."""
    link, series = out.scenario.links[name], out.builder.series.get(name)
    row = out.buffer.rows(rec.RATE_SPEC, 1)
    row.set(
        0,
        nominal_bits_per_s=bits_per_s,
        direction=direction,
        has_bandwidth=link.bandwidth is not None,
        has_outages=link.outages is not None,
        has_delay=link.delay is not None,
        random_start=link.replay is not None and link.replay.random_start,
        n_breaks=len(hitting),
    )
    if link.outages is not None:
        row.set(0, mean_up_s=link.outages.mean_up_s, mean_down_s=link.outages.mean_down_s)
    if series is not None:
        rates = (series.uplink_bits_per_s, series.downlink_bits_per_s)[direction]
        row.set(0, pieces=len(series.extra_delay_s), has_series_delay=any(series.extra_delay_s))
        for field, values in (
            ("times_s", series.times_s),
            ("bits_per_s", rates),
            ("extra_delay_s", series.extra_delay_s),
        ):
            row.point(field, out.once(id(values), values, "f8"))
    if link.bandwidth is not None:
        process = link.bandwidth
        spec = row.array["bandwidth"][0:1]
        _gaussian(spec, process.period_s, log_centre(process.parts), process.parts)
        if process.quantiles is not None:
            law = QuantileMarginal(process.quantiles, process.parts)
            spec["by_quantiles"], spec["spread"], spec["pieces"] = True, law.spread, len(law.slopes)
            spec["scores"][0], spec["logs"][0] = QUANTILE_Z, law.logs
            spec["slopes"][0, : len(law.slopes)] = law.slopes
    if link.delay is not None:
        _gaussian(row.array["delay"][0:1], link.delay.period_s, link.delay.median_s, link.delay.parts)
    breaks = out.buffer.rows(rec.BREAK_SPEC, len(hitting))
    for i, fault in enumerate(hitting):
        breaks.point("fault", fault_rows.at_row(fault), i)
    row.point("breaks", breaks.at)
    return row.at


def _gaussian(spec: NDArray[Any], period_s: float, centre: float, parts: tuple[Ar1, ...]) -> None:
    """Write the constants of a process; see :func:`dsd_env.laws.links.begin_process`."""
    spec["period_s"], spec["centre"], spec["parts"] = period_s, centre, len(parts)
    for i, part in enumerate(parts):
        rho = math.exp(-period_s / part.correlation_s)
        spec["sigma"][0, i], spec["rho"][0, i] = part.sigma, rho
        spec["step"][0, i] = part.sigma * math.sqrt(1.0 - rho * rho)
