"""Damaged files of requests and of networks: a result that is possible, or one clear error with the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsd_env.calibration.network.fit import FitError as NetworkFitError
from dsd_env.calibration.network.fit import read_rows
from dsd_env.calibration.network.pings import read_pings, series_of_pings
from dsd_env.calibration.workload.fit import FitError as WorkloadFitError
from dsd_env.calibration.workload.fit import read_servegen
from dsd_env.calibration.workload.importers import FORMATS, import_trace
from dsd_env.network import SeriesError, load_series
from dsd_env.workload import RequestTraceError
from tests.calibration.network import test_pings as ping_samples
from tests.calibration.workload import test_reading as workload_samples
from tests.calibration.workload import test_trace as trace_samples

SERIES = (
    "time_s,uplink_bits_per_s,downlink_bits_per_s,extra_delay_s\n0,1e6,2e6,0\n1,0,3e6,0.1\n2.5,2e6,1e6,0\n"
)
MAHIMAHI = "5\n10\n10\n900\n1700\n"
STATISTICS = (
    "trace,unit,n,p1,p5,p25,p50,p75,p95,p99,mean,cv,ac1_log,ac5_log,ac20_log\n"
    "mahimahi a,Mbps/1s,120,0.29,0.58,1.95,3.74,5.87,11.08,16.44,4.56,0.85,0.67,0.08,-0.12\n"
    "pings,ms RTT,144,22.72,31.45,57.0,74.5,83.0,100.85,104.0,70.13,0.29,,,\n"
)
WINDOWS = "0,2.0,1.5,Gamma,0.44,1\n600,0,0,,,\n1200,1.0,0.9,Exponential,1,0\n"
WORKLOADS = {
    **trace_samples.SAMPLES,
    "burstgpt-blank": workload_samples.BURSTGPT,
    "qwen": workload_samples.QWEN,
    "vidur": workload_samples.VIDUR,
    "blank": workload_samples.PLAIN,
}
VALUES = [
    "",
    "nan",
    "-1",
    "inf",
    "1e999",
    "9" * 400,
    "1,5",
    "0",
    "true",
    "null",
    "x",
    "²",
    "1_0",
    "'",
    '"',
    "-",
]


def read_workload(path: Path) -> None:
    for kind in (None, *FORMATS):
        for part in ({}, {"start_s": 1.0, "first": 2}):
            try:
                trace = import_trace(path, kind, spread_ticks=True, **part)  # type: ignore[arg-type]
            except RequestTraceError as error:
                told(path, error)
                continue
            assert len(trace) == len(trace.prompt_tokens) == len(trace.output_tokens)
            assert np.isfinite(trace.arrival_s).all() and (np.diff(trace.arrival_s) >= 0.0).all()
            assert trace.prompt_tokens.min() >= 1 and trace.output_tokens.min() >= 1
            for numbers, names in ((trace.client, trace.clients), (trace.kind, trace.kinds)):
                if numbers is not None:
                    assert len(numbers) == len(trace) and numbers.min() >= -1 and numbers.max() < len(names)


def read_series(path: Path) -> None:
    try:
        series = load_series(path)
    except SeriesError as error:
        told(path, error)
        return
    assert all(math.isfinite(time_s) for time_s in series.times_s)
    assert all(b > a for a, b in zip(series.times_s, series.times_s[1:], strict=False))
    for column in (series.uplink_bits_per_s, series.downlink_bits_per_s, series.extra_delay_s):
        assert len(column) == len(series.times_s) - 1
        assert all(math.isfinite(value) and value >= 0.0 for value in column)


def read_log(path: Path) -> None:
    read_series(path)
    try:
        log = read_pings(path)
    except SeriesError as error:
        told(path, error)
        return
    assert len(log.sent_s) == len(log) >= log.answered >= 2
    assert (np.diff(log.sent_s) >= 0.0).all() and np.isfinite(log.sent_s).all()
    trips_s = log.rtt_s[np.isfinite(log.rtt_s)]
    assert (trips_s >= 0.0).all() and (trips_s <= 20.0).all() and 0.0 <= log.loss < 1.0
    try:
        series, one_way_s, loss = series_of_pings(log, uplink_bits_per_s=1e6, downlink_bits_per_s=1e6)
    except SeriesError:
        assert log.sent_s[-1] == 0.0
        return
    assert min(series.extra_delay_s) >= 0.0 and one_way_s >= 0.0 and 0.0 <= loss < 1.0


def read_statistics(path: Path) -> None:
    try:
        rows = read_rows(path)
    except NetworkFitError as error:
        told(path, error)
        return
    for row in rows.values():
        assert row.given.mean > 0.0 and list(row.given.percentiles) == sorted(row.given.percentiles)


def read_windows(path: Path) -> None:
    client = path.with_name("chunk-0-trace.csv")
    path.replace(client)
    try:
        clients = read_servegen(path.parent)
    except WorkloadFitError as error:
        told(path.parent, error)
        return
    assert np.isfinite(clients.rate_per_s).all() and (clients.rate_per_s >= 0.0).all()


def told(path: Path, error: Exception) -> None:
    """Check that a message names the file and is not longer than a few lines."""
    assert str(path) in str(error) and len(str(error)) < 1000 + 3 * len(str(path)), str(error)


READERS: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "requests": (list(WORKLOADS.values()), read_workload),
    "series": ([SERIES, MAHIMAHI], read_series),
    "pings": (list(ping_samples.SAMPLES.values()), read_log),
    "statistics": ([STATISTICS], read_statistics),
    "windows": ([WINDOWS], read_windows),
}


def mutated(data: st.DataObject, text: str) -> bytes:
    """Return a file as something may have damaged it: lines, columns, values, encoding, end."""
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.integers(0, len(lines) - 1), "line")
        match data.draw(st.sampled_from(["double", "drop", "swap", "columns", "value", "noise", "blank"])):
            case "double":
                lines.insert(at, lines[at])
            case "drop" if len(lines) > 1:
                del lines[at]
            case "swap":
                lines[at], lines[-1] = lines[-1], lines[at]
            case "columns":
                lines = [",".join(reversed(line.split(","))) for line in lines]
            case "value":
                separator = data.draw(st.sampled_from([",", " ", ":"]))
                fields = lines[at].split(separator)
                fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(st.sampled_from(VALUES))
                lines[at] = separator.join(fields)
            case "noise":
                noise = ["Loading ...", "# a comment", "{", "[", "sep=;", "\x1b[0m", ",,,,", "NaN"]
                lines.insert(at, data.draw(st.sampled_from(noise)))
            case _:
                lines.insert(at, "")
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    changed = end.join(lines) + data.draw(st.sampled_from(["", end]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"]))
    content = changed.encode(encoding, errors="replace")
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content)))]
    return content


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_a_possible_result_or_one_error(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    samples, read = READERS[name]
    path = tmp_path / "damaged.txt"
    path.write_bytes(mutated(data, data.draw(st.sampled_from(samples))))
    read(path)


@pytest.mark.parametrize("name", READERS)
def test_undamaged_files_are_read(tmp_path: Path, name: str) -> None:
    samples, _ = READERS[name]
    for text in samples:
        path = tmp_path / "whole.txt"
        path.write_text(text, encoding="utf-8")
        match name:
            case "requests":
                assert len(import_trace(path)) >= 2
            case "series":
                assert load_series(path).length_s >= 2.0
            case "pings":
                assert len(read_pings(path)) >= 2
            case "statistics":
                assert len(read_rows(path)) == 2
            case _:
                path.replace(tmp_path / "chunk-0-trace.csv")
                assert read_servegen(tmp_path).window_s == 600.0


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        for read in (read_workload, read_series, read_log, read_statistics):
            if not (path == tmp_path and read is read_series):
                read(path)
        for fails, error in (
            (import_trace, RequestTraceError),
            (read_pings, SeriesError),
            (read_rows, NetworkFitError),
        ):
            with pytest.raises(error, match=r"no such file|is not a file"):
                fails(path)
