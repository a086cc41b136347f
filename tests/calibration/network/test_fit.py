"""Fitting link processes to published statistics, and the fits that are shipped."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("scipy")

from dsd_env import list_scenarios, load_scenario, rng
from dsd_env.calibration.network.fit import (
    LAGS,
    PERCENTILES,
    FitError,
    NetworkRow,
    Statistics,
    deviations,
    fit_bandwidth,
    fit_delay,
    fit_spread,
    generate_bandwidth,
    generate_first_round_trips,
    generate_round_trips,
    marginal_mean,
    quantiles_in_service,
    read_rows,
    statistics_of,
)
from dsd_env.network.processes import OutageWindows
from dsd_env.rng import Stream
from dsd_env.scenario.schema import Ar1, BandwidthProcess, DelayProcess, Jitter, Link, Outages
from tests.conftest import ROOT

NETWORK = ROOT / "configs" / "network"
SHIPPED = sorted(path.stem for path in NETWORK.glob("*.yaml"))
COLUMNS = "trace,unit,n,p1,p5,p25,p50,p75,p95,p99,mean,cv,ac1_log,ac5_log,ac20_log"


def row(series: np.ndarray, unit: str, interval_s: float) -> NetworkRow:
    """Return the statistics of a series as a row of the file would give them."""
    correlated = not math.isnan(interval_s)
    return NetworkRow(
        "mahimahi test", unit, len(series), interval_s, statistics_of(series, 0.005, correlated=correlated)
    )


def off_by_more_than(given: Statistics, generated: Statistics, limit: float) -> dict[str, float]:
    return {name: value for name, value in deviations(given, generated).items() if abs(value) > limit}


# ---------------------------------------------------------------- statistics


def test_statistics_of_a_first_order_process() -> None:
    draws = np.random.default_rng(1)
    x = np.zeros(100_000)
    for index, noise in enumerate(draws.standard_normal(len(x) - 1).tolist()):
        x[index + 1] = 0.8 * x[index] + 0.6 * noise
    found = statistics_of(np.exp(0.5 * x), 1e-9)
    assert found.percentiles[3] == pytest.approx(1.0, rel=0.02)
    assert found.percentiles[5] == pytest.approx(math.exp(0.5 * 1.6449), rel=0.03)
    assert found.mean == pytest.approx(math.exp(0.125), rel=0.02)
    assert found.cv == pytest.approx(math.sqrt(math.exp(0.25) - 1.0), rel=0.04)
    assert found.autocorrelations == pytest.approx([0.8**lag for lag in LAGS], abs=0.03)


def test_deviations_are_relative_but_for_what_is_next_to_nothing() -> None:
    given = Statistics((0.0, 0.01, 1.0, 2.0, 3.0, 4.0, 5.0), 2.0, 0.5, (0.5, 0.2, 0.0))
    found = Statistics((0.01, 0.02, 1.1, 2.0, 3.0, 3.0, 5.0), 1.8, 0.5, (0.5, 0.1, 0.05))
    assert deviations(given, found) == pytest.approx(
        {"p1": 0.1, "p5": 0.1, "p25": 0.1, "p50": 0.0, "p75": 0.0, "p95": -0.25, "p99": 0.0, "mean": -0.1}
        | {"cv": 0.0, "ac1": 0.0, "ac5": -0.1, "ac20": 0.05}
    )


def test_quantiles_in_service_are_those_of_what_remains() -> None:
    series = np.random.default_rng(2).lognormal(0.0, 0.7, 400_000)
    given = statistics_of(series, 1e-9)
    assert quantiles_in_service(given, 1e-9, 0.0) == pytest.approx(given.percentiles, rel=1e-3)
    rest = np.sort(series)[int(0.2 * len(series)) :]
    wanted = np.quantile(rest, np.array(PERCENTILES) / 100.0)
    assert quantiles_in_service(given, 1e-9, 0.2) == pytest.approx(wanted, rel=0.02)


def test_the_mean_of_a_log_normal_by_its_quantiles() -> None:
    z = np.array([-2.326348, -1.644854, -0.674490, 0.0, 0.674490, 1.644854, 2.326348])
    assert marginal_mean(np.exp(0.5 * z).tolist()) == pytest.approx(math.exp(0.125), rel=1e-3)


# ---------------------------------------------------------------- reading


def test_rows_are_read_with_or_without_autocorrelations(tmp_path: Path) -> None:
    path = tmp_path / "stats.csv"
    path.write_text(
        f'{COLUMNS}\n"a, b",Mbps/1s,9,0,1,2,3,4,5,6,3,0.5,0.9,0.1,-0.1\nc,ms RTT,4,1,1,2,2,3,4,5,2.5,0.3,,,\n'
    )
    rows = read_rows(path)
    assert rows["a, b"].given == Statistics((0, 1, 2, 3, 4, 5, 6), 3.0, 0.5, (0.9, 0.1, -0.1))
    assert rows["a, b"].interval_s == 1.0 and rows["a, b"].samples == 9
    assert rows["c"].given.autocorrelations is None and math.isnan(rows["c"].interval_s)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trace,unit\na,b\n", ["line 1", "p99", "missing"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,1,2\n", ["line 2", "fields"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,1,2,x,4,5,6,3,0.5,,,\n", ["line 2", "p50 = 'x'"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,1,2,nan,4,5,6,3,0.5,,,\n", ["line 2", "p50 = 'nan'"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,1,2,3,4,5,6,3,0.5,0.9,,\n", ["line 2", "ac5_log = ''"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,1,2,9,4,5,6,3,0.5,,,\n", ["line 2", "must not fall"]),
        (f"{COLUMNS}\na,Mbps/1s,9,-1,1,2,3,4,5,6,3,0.5,,,\n", ["line 2", "negative"]),
        (f"{COLUMNS}\na,furlongs,9,0,1,2,3,4,5,6,3,0.5,,,\n", ["line 2", "unit = 'furlongs'"]),
        (f"{COLUMNS}\na,Mbps/1s,9,0,0,0,0,0,0,0,0,0.5,,,\n", ["line 2", "mean = 0.0"]),
        (f"{COLUMNS}\n" + 2 * "a,Mbps/1s,9,0,1,2,3,4,5,6,3,0.5,,,\n", ["line 3", "twice"]),
    ],
)
def test_a_broken_table_is_refused_by_line_and_field(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "stats.csv"
    path.write_text(text)
    with pytest.raises(FitError) as caught:
        read_rows(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="there is no such file"):
        read_rows(tmp_path / "none.csv")


# ---------------------------------------------------------------- fitting


def test_a_bandwidth_that_the_process_can_have_is_found_again() -> None:
    truth = Link(
        one_way_s=0.0,
        uplink_bits_per_s=5e6,
        downlink_bits_per_s=5e6,
        bandwidth=BandwidthProcess(
            fast=Ar1(sigma=0.6, correlation_s=1.5),
            slow=Ar1(sigma=0.8, correlation_s=30.0),
            quantiles=(0.05, 0.15, 0.6, 1.1, 1.4, 1.8, 2.1),
        ),
    )
    measured = row(1e-6 * generate_bandwidth(truth, 30_000, seed=5), "Mbps/1s", 1.0)
    found = fit_bandwidth(measured, generations=15)
    assert found.outages is None
    assert marginal_mean(found.bandwidth.quantiles) == pytest.approx(1.0, rel=0.01)
    again = statistics_of(1e-6 * generate_bandwidth(found.link(), 30_000, seed=6), measured.resolution)
    assert not off_by_more_than(measured.given, again, 0.1)


def test_seconds_without_throughput_become_outages() -> None:
    truth = Link(
        one_way_s=0.0,
        uplink_bits_per_s=2e6,
        downlink_bits_per_s=2e6,
        bandwidth=BandwidthProcess(fast=Ar1(sigma=0.3, correlation_s=3.0)),
        outages=Outages(mean_up_s=90.0, mean_down_s=7.0),
    )
    measured = row(1e-6 * generate_bandwidth(truth, 30_000, seed=5), "Mbps/1s", 1.0)
    assert measured.given.percentiles[:2] == (0.0, 0.0)
    found = fit_bandwidth(measured, generations=15)
    assert found.outages is not None
    share = found.outages.mean_down_s / (found.outages.mean_up_s + found.outages.mean_down_s)
    assert 0.05 <= share <= 0.1
    again = statistics_of(1e-6 * generate_bandwidth(found.link(), 30_000, seed=6), measured.resolution)
    # Between the last percentile that is 0 and the next nothing is known, so p25 is a guess.
    wrong = off_by_more_than(measured.given, again, 0.15)
    assert set(wrong) <= {"p25"}


def test_round_trips_that_the_process_can_have_are_found_again() -> None:
    truth = Link(
        one_way_s=0.01,
        uplink_bits_per_s=1e15,
        downlink_bits_per_s=1e15,
        loss_probability=0.1,
        delay=DelayProcess(
            quantiles_s=(0.001, 0.002, 0.004, 0.006, 0.012, 0.04, 0.07),
            sigma=0.6,
            correlation_s=0.1,
            slow=Ar1(sigma=0.8, correlation_s=4.0),
            both_ways=True,
        ),
    )
    trips = generate_round_trips(truth, 60_000, 0.1, seed=5)
    answered = trips[np.isfinite(trips)]
    assert len(answered) / len(trips) == pytest.approx(0.9**2, abs=0.01)
    measured = dataclasses.replace(row(1e3 * answered, "ms RTT", 0.1), sent=len(trips))
    found = fit_delay(measured, generations=8)
    assert found.loss_probability == pytest.approx(0.1, abs=0.005)
    again = generate_round_trips(found, 60_000, 0.1, seed=6)
    off = off_by_more_than(measured.given, statistics_of(1e3 * again[np.isfinite(again)], 0.25), 0.12)
    assert not off


def test_round_trips_whose_distance_is_not_known_are_refused() -> None:
    trips = np.random.default_rng(1).lognormal(3.0, 0.5, 1000)
    unknown = dataclasses.replace(row(trips, "ms RTT", 0.1), interval_s=math.nan)
    with pytest.raises(FitError, match="how far apart are the pings"):
        fit_delay(unknown)


def test_a_spread_of_places_is_found_again() -> None:
    truth = Link(
        one_way_s=0.02,
        one_way_spread=(0.5, 1.5),
        uplink_bits_per_s=1e15,
        downlink_bits_per_s=1e15,
        jitter=Jitter(median_s=0.0005, sigma=0.5),
    )
    measured = row(1e3 * generate_first_round_trips(truth, 5000, seed=5), "ms RTT", math.nan)
    found = fit_spread(measured, generations=8)
    again = statistics_of(1e3 * generate_first_round_trips(found, 5000, seed=6), 0.25, correlated=False)
    assert not off_by_more_than(measured.given, again, 0.06)
    assert found.one_way_spread[0] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("fit", [fit_bandwidth, fit_delay])
def test_a_row_of_the_wrong_kind_is_refused(fit: Callable[[NetworkRow], Any]) -> None:
    one_by_one = row(np.arange(1.0, 50.0), "Mbps", math.nan)
    with pytest.raises(FitError, match="mahimahi test"):
        fit(one_by_one)
    with pytest.raises(FitError, match="mahimahi test"):
        fit_spread(one_by_one)


def test_generated_bandwidth_is_what_a_channel_carries() -> None:
    link = Link(
        one_way_s=0.0,
        uplink_bits_per_s=1e6,
        downlink_bits_per_s=1e6,
        outages=Outages(mean_up_s=3.0, mean_down_s=2.0),
    )
    generated = generate_bandwidth(link, 500, seed=9)
    windows = OutageWindows(link.outages, rng.key(9, Stream.OUTAGE, 0))
    up = np.ones(500_000, dtype=bool)
    while windows.start_s < 500.0:
        up[round(1000 * windows.start_s) : round(1000 * windows.end_s)] = False
        windows.advance()
    assert generated == pytest.approx(1e6 * up.reshape(500, 1000).mean(axis=1), abs=3e3)


# ---------------------------------------------------------------- what is shipped


def shipped(name: str) -> dict[str, Any]:
    content = yaml.safe_load((NETWORK / f"{name}.yaml").read_text())
    assert content["name"] == name
    return content


def test_every_fit_of_the_catalogue_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fit_network

    assert sorted(fit_network.CATALOGUE) == SHIPPED
    for name, entry in fit_network.CATALOGUE.items():
        assert shipped(name)["source"]["row"] == entry.row


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_fit_is_part_of_a_valid_link(name: str) -> None:
    fields = dict(shipped(name)["link"])
    rate = fields.pop("bits_per_s", 1e9)
    link = Link.model_validate(
        {"one_way_s": 0.0, "uplink_bits_per_s": rate, "downlink_bits_per_s": rate} | fields
    )
    if link.bandwidth is not None:
        assert link.bandwidth.quantiles is not None
        # The nominal bandwidth is the mean.
        assert marginal_mean(link.bandwidth.quantiles) == pytest.approx(1.0, rel=0.01)


def test_shipped_fits_still_generate_what_was_given(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fit_network

    assert fit_network.main(["--data", str(data_dir), "--show"]) == 0
    table = capsys.readouterr().out.splitlines()
    lines = (ROOT / "docs" / "network.md").read_text().splitlines()
    begin = lines.index(table[0])
    for line, written in zip(table, lines[begin:], strict=False):
        assert numbers(line) == pytest.approx(numbers(written), rel=0.03, abs=0.02), line


def numbers(line: str) -> list[float]:
    """Return the numbers of a row of the table, its first cell and its stars left out."""
    cells = [cell.strip().removesuffix(r"\*") for cell in line.split("|")[3:-2]]
    return [float(cell) for cell in cells if re.fullmatch(r"-?[\d.e+]+", cell)]


def test_scenarios_hold_copies_of_the_fits() -> None:
    """A process in a shipped scenario has the numbers of one shipped fit, all of them."""
    bandwidths = {yaml.safe_dump(shipped(name)["link"].get("bandwidth")): name for name in SHIPPED}
    delays = {yaml.safe_dump(shipped(name)["link"].get("delay")): name for name in SHIPPED}
    used = set()
    for scenario in list_scenarios():
        for name, link in load_scenario(scenario).links.items():
            if link.bandwidth is not None:
                text = yaml.safe_dump(link.bandwidth.model_dump(mode="json"))
                assert text in bandwidths, f"{scenario}: links.{name}.bandwidth is no shipped fit"
                used.add(bandwidths[text])
            if link.delay is not None:
                text = yaml.safe_dump(link.delay.model_dump(mode="json", exclude_none=True))
                assert text in delays, f"{scenario}: links.{name}.delay is no shipped fit"
                used.add(delays[text])
    assert len(used) >= 4
    # Outages hit all links of a device at once, so there they are faults.
    mobile = load_scenario("mobile")
    for fit, fault in (("att-lte-driving-up", "dead_zone"), ("lumos5g-5g", "blockage")):
        outages = shipped(fit)["link"]["outages"]
        assert mobile.faults[fault].mean_interval_s == outages["mean_up_s"]
        assert mobile.faults[fault].duration_s.mean == outages["mean_down_s"]


# ---------------------------------------------------------------- the script


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "fit_network.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_the_script_lists_and_advises(tmp_path: Path) -> None:
    assert "starlink-rtt" in run("--list").stdout
    missing = run("--show")
    assert missing.returncode == 2 and "DSD_DATA_DIR" in missing.stderr
    unknown = run("--data", str(tmp_path), "--name", "teleport")
    assert unknown.returncode == 2 and "teleport" in unknown.stderr
    empty = run("--show", DSD_DATA_DIR=str(tmp_path))
    assert empty.returncode == 1 and "network_stats.csv" in empty.stderr
    assert "Traceback" not in missing.stderr + unknown.stderr + empty.stderr


@pytest.mark.slow
def test_the_script_writes_what_it_fits(tmp_path: Path) -> None:
    statistics = tmp_path / "network_stats.csv"
    name = "Ookla latency <100km 5G-NSA-Low-Band"
    statistics.write_text(f"{COLUMNS}\n{name},ms RTT,12,12,12,12.75,15,19,22.6,26.12,16.08,0.26,,,\n")
    done = run("--data", str(tmp_path), "--name", "ookla-5g-near-rtt", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((tmp_path / "out" / "ookla-5g-near-rtt.yaml").read_text())
    assert set(written["link"]) == set(shipped("ookla-5g-near-rtt")["link"])
    assert written["link"]["one_way_s"] == pytest.approx(
        shipped("ookla-5g-near-rtt")["link"]["one_way_s"], rel=0.2
    )
    assert "| given | 12 | 12 |" in done.stdout
    assert run("--data", str(tmp_path), "--name", "starlink-rtt").returncode == 1
