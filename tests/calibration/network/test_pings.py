"""Logs of ping: what is read, what is a loss, what contradicts itself, and the series that comes of it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsd_env.calibration.network.pings import PingLog, read_pings, series_of_pings
from dsd_env.network import SeriesError, load_series

# Written by hand, as the programs print.
LINUX = """PING example.org (192.0.2.1) 56(84) bytes of data.
64 bytes from 192.0.2.1 (192.0.2.1): icmp_seq=1 ttl=57 time=20.0 ms
64 bytes from 192.0.2.1 (192.0.2.1): icmp_seq=2 ttl=57 time=30.0 ms
no answer yet for icmp_seq=3
64 bytes from 192.0.2.1 (192.0.2.1): icmp_seq=4 ttl=57 time=40.0 ms
64 bytes from 192.0.2.1 (192.0.2.1): icmp_seq=4 ttl=57 time=41.0 ms (DUP!)
From 192.0.2.9 icmp_seq=5 Destination Host Unreachable

--- example.org ping statistics ---
6 packets transmitted, 3 received, +1 duplicates, +1 errors, 50% packet loss, time 1000ms
rtt min/avg/max/mdev = 20.000/30.000/40.000/8.165 ms
"""
STAMPED = """PING 2001:db8::1(2001:db8::1) from 2001:db8::2 eth0: 56 data bytes
[1744680687.130000] 64 bytes from 2001:db8::1: icmp_seq=2 ttl=62 time=30.0 ms
[1744680687.220000] 64 bytes from 2001:db8::1: icmp_seq=3 ttl=62 time=20.0 ms
[1744680687.250000] no answer yet for icmp_seq=4
[1744680687.425000] 64 bytes from 2001:db8::1: icmp_seq=5 ttl=62 time=25.0 ms
"""
MACOS = """PING example.org (192.0.2.1): 56 data bytes
64 bytes from 192.0.2.1: icmp_seq=0 ttl=57 time=12.345 ms
Request timeout for icmp_seq 1
64 bytes from 192.0.2.1: icmp_seq=2 ttl=57 time=14.345 ms

--- example.org ping statistics ---
3 packets transmitted, 2 packets received, 33.3% packet loss
round-trip min/avg/max/stddev = 12.345/13.345/14.345/1.000 ms
"""
BUSYBOX = """PING 192.0.2.1 (192.0.2.1): 56 data bytes
64 bytes from 192.0.2.1: seq=0 ttl=57 time=12.345 ms
64 bytes from 192.0.2.1: seq=2 ttl=57 time=14.345 ms
"""
WINDOWS = """
Pinging 192.0.2.1 with 32 bytes of data:
Reply from 192.0.2.1: bytes=32 time=12ms TTL=57
Request timed out.
Reply from 192.0.2.1: bytes=32 time<1ms TTL=57
Reply from 192.0.2.9: Destination host unreachable.

Ping statistics for 192.0.2.1:
    Packets: Sent = 4, Received = 2, Lost = 2 (50% loss),
"""
FPING = """192.0.2.1 : [0], 64 bytes, 9.37 ms (9.37 avg, 0% loss)
192.0.2.1 : [1], timed out (9.37 avg, 50% loss)
192.0.2.1 : [2], 64 bytes, 8.72 ms (9.05 avg, 33% loss)

192.0.2.1 : xmt/rcv/%loss = 3/2/33%, min/avg/max = 8.72/9.04/9.37
"""
FPING_ROW = "192.0.2.1 : 9.37 - 8.72 10.1\n"
TABLE = "timestamp,rtt,uplink,downlink\n1705744800616897349,20,12,8\n1705744800626897349,0,0,-1\n"
TABLE += "1705744800636897349,-1,0,0\n1705744800646897349,30.5,20,10.5\n"
LENS = "timestamp,rtt\n1705744800.5,91.8\n1705744800.52,96.5\n1705744800.6,111.0\n"
SAMPLES = {
    "linux": LINUX,
    "stamped": STAMPED,
    "macos": MACOS,
    "busybox": BUSYBOX,
    "windows": WINDOWS,
    "fping": FPING,
    "fping-row": FPING_ROW,
    "table": TABLE,
    "lens": LENS,
}


def write(folder: Path, text: str | bytes, name: str = "ping.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes, **options: float | str) -> PingLog:
    return read_pings(write(folder, text), **options)  # type: ignore[arg-type]


def milliseconds(log: PingLog) -> list[float | None]:
    return [None if math.isnan(trip) else round(1000 * trip, 6) for trip in log.rtt_s.tolist()]


@pytest.mark.parametrize(
    ("sample", "trips_ms", "times_s"),
    [
        # The sixth was sent, as the last lines say, and they give the interval.
        ("linux", [20.0, 30.0, None, 40.0, None, None], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        # The first one is missing. Stamps are when replies came.
        ("stamped", [None, 30.0, 20.0, None, 25.0], [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("macos", [12.345, None, 14.345], [0.0, 1.0, 2.0]),
        ("busybox", [12.345, None, 14.345], [0.0, 1.0, 2.0]),
        ("windows", [12.0, None, 0.5, None], [0.0, 1.0, 2.0, 3.0]),
        ("fping", [9.37, None, 8.72], [0.0, 1.0, 2.0]),
        ("fping-row", [9.37, None, 8.72, 10.1], [0.0, 1.0, 2.0, 3.0]),
        ("table", [20.0, None, None, 30.5], [0.0, 0.01, 0.02, 0.03]),
        ("lens", [91.8, 96.5, 111.0], [0.0, 0.02, 0.1]),
    ],
)
def test_logs_are_read(
    tmp_path: Path, sample: str, trips_ms: list[float | None], times_s: list[float]
) -> None:
    log = read(tmp_path, SAMPLES[sample])
    assert milliseconds(log) == trips_ms
    np.testing.assert_allclose(log.sent_s, times_s, atol=2e-5 if sample == "stamped" else 1e-6)
    assert log.answered == sum(trip is not None for trip in trips_ms)
    assert log.loss_known == (sample != "lens")


@pytest.mark.parametrize("sample", SAMPLES)
def test_other_line_ends_and_encodings_change_nothing(tmp_path: Path, sample: str) -> None:
    text = SAMPLES[sample]
    log = read(tmp_path, text)
    for content in (text.replace("\n", "\r\n").encode(), text.encode("utf-16"), text.encode("utf-8-sig")):
        assert milliseconds(read(tmp_path, content)) == milliseconds(log)


def test_the_interval_is_told_where_the_log_does_not_have_it(tmp_path: Path) -> None:
    log = read(tmp_path, BUSYBOX, interval_s=0.01)
    np.testing.assert_allclose(log.sent_s, [0.0, 0.01, 0.02])
    with pytest.raises(ValueError, match="interval_s = 0"):
        read(tmp_path, BUSYBOX, interval_s=0.0)


def test_numbers_go_round_at_16_bits_and_answers_may_overtake(tmp_path: Path) -> None:
    lines = [f"64 bytes from h: icmp_seq={n % 65536} ttl=9 time=1.0 ms" for n in (65534, 65536, 65535, 65538)]
    assert milliseconds(read(tmp_path, "\n".join(lines) + "\n")) == [1.0, 1.0, 1.0, None, 1.0]


def test_the_last_line_of_a_stopped_ping_may_be_cut(tmp_path: Path) -> None:
    whole = "".join(f"64 bytes from h: icmp_seq={n} ttl=9 time=12.5 ms\n" for n in range(1, 5))
    assert len(read(tmp_path, whole)) == 4
    # "time=12.5" and less are cut; with a line end after it the same is a fault.
    assert milliseconds(read(tmp_path, whole[:-4])) == [12.5] * 3
    with pytest.raises(SeriesError, match=r"ping.txt: line 4: .* has no time in ms"):
        read(tmp_path, whole[:-4] + "\n")


def test_one_of_several_hosts_is_chosen(tmp_path: Path) -> None:
    two = FPING.replace("\n\n", "\n") + FPING.replace("192.0.2.1", "192.0.2.2").replace("9.37 ms", "5 ms")
    with pytest.raises(SeriesError, match=r"ping.txt: line 5: several hosts \(192.0.2.1, 192.0.2.2\)"):
        read(tmp_path, two)
    assert milliseconds(read(tmp_path, two, host="192.0.2.2")) == [5.0, None, 8.72]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: nothing begins no log"),
        ("time_s,uplink_bits_per_s\n0,1\n", "line 1: 'time_s,uplink_bits_per_s' begins no log"),
        (LINUX + LINUX, "line 12: a second log begins"),
        (LINUX.replace("icmp_seq=2 ttl", "icmp_seq=1 ttl"), "line 3: ping 1 is answered twice"),
        (LINUX.replace("3 received", "4 received"), "line 10: says that 6 pings had 4 answers; 3 answers"),
        (LINUX.replace("6 packets", "4 packets"), "line 10: says that 4 pings"),
        (LINUX.replace("time=30.0 ms", "time=99999 ms"), "line 3: time = 99999 ms is above"),
        (LINUX.replace("icmp_seq=2 ttl", "icmp_seq=70000 ttl"), "line 3: icmp_seq = 70000 is not below"),
        (LINUX.replace("icmp_seq=2 ttl", "icmp_seq=two ttl"), "line 3: .* has no number of a ping"),
        (STAMPED.replace("687.425", "685.425"), "its times go back by"),
        (STAMPED.replace("[1744680687.220000] ", ""), "2 of 3 answers have a time"),
        ("PING h (h): 56 data bytes\n64 bytes from h: icmp_seq=0 ttl=9 time=1.0 ms\n", "1 answers in it"),
        (TABLE.replace("30.5", "fast"), "line 5: rtt = 'fast' is not a number"),
        (TABLE.replace("30.5", "nan"), "line 5: rtt = nan is not a round trip"),
        (TABLE.replace("30.5", "-7"), "line 5: rtt = -7 is not a round trip"),
        (TABLE.replace("1705744800646897349", "soon"), "line 5: timestamp = 'soon' is no time"),
        (TABLE.replace(",10.5", ""), "line 5: 3 fields, the header has 4"),
        (LINUX.encode() + b"\xe9", "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SeriesError, match=rf"ping\.txt: {message}"):
        read(tmp_path, text)


def test_a_log_in_place_of_a_series_is_sent_to_the_importer(tmp_path: Path) -> None:
    for sample, text in SAMPLES.items():
        with pytest.raises(SeriesError, match=r"ping.txt: line \d: a .*scripts/import_network.py") as caught:
            load_series(write(tmp_path, text))
        assert ("table" in str(caught.value)) == (sample in ("table", "lens"))


def test_delays_losses_and_outages_become_a_series(tmp_path: Path) -> None:
    # 20 pings a second apart: number 4 is lost, 10 to 12 are an outage of three seconds.
    lines = [
        f"64 bytes from h: icmp_seq={n} ttl=9 time={20 + n} ms" for n in range(20) if n not in (4, 10, 11, 12)
    ]
    log = read(tmp_path, "\n".join(lines) + "\n")
    series, one_way_s, loss = series_of_pings(log, uplink_bits_per_s=1e6, downlink_bits_per_s=2e6)
    assert one_way_s == pytest.approx(0.010)
    assert (1.0 - loss) ** 2 == pytest.approx(1.0 - 1 / 17)
    assert series.times_s == tuple(float(n) for n in range(21))
    assert series.uplink_bits_per_s == (1e6,) * 10 + (0.0,) * 3 + (1e6,) * 7
    assert series.downlink_bits_per_s == (2e6,) * 10 + (0.0,) * 3 + (2e6,) * 7
    before = [n if n not in (4, 10, 11, 12) else {4: 3}.get(n, 9) for n in range(20)]
    np.testing.assert_allclose(series.extra_delay_s, [n / 2000 for n in before], atol=1e-9)
    # Nothing counts as an outage: four of twenty are lost.
    _, _, more = series_of_pings(log, uplink_bits_per_s=1e6, downlink_bits_per_s=2e6, outage_s=60.0)
    assert (1.0 - more) ** 2 == pytest.approx(0.8)
    halved, _, _ = series_of_pings(log, uplink_bits_per_s=1e6, downlink_bits_per_s=1e6, step_s=2.0)
    assert halved.times_s == tuple(2.0 * n for n in range(11))
    assert halved.extra_delay_s[0] == pytest.approx(0.00025)
    assert halved.uplink_bits_per_s[5:7] == (0.0, 1e6)  # down only where all of a piece is
    for wrong in ({"uplink_bits_per_s": 1.0}, {"step_s": -1.0}, {"outage_s": 0.0}):
        with pytest.raises(ValueError, match=r"needs at least|must not be"):
            series_of_pings(log, **{"uplink_bits_per_s": 1e6, "downlink_bits_per_s": 1e6, **wrong})


def test_the_script_sums_up_and_saves_what_a_link_replays(tmp_path: Path, checkout: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = checkout / "scripts" / "import_network.py"
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    write(tmp_path, LINUX)
    done = run("ping.txt", "--uplink-bits-per-s", "2e7", "--downlink-bits-per-s", "1e8", "--out", "link.csv")
    assert done.returncode == 0, done.stderr
    assert "pings             6 over 1 s; times: 0.2 s apart, its last lines" in done.stdout
    assert "no answer         3 (50.00 %), at most 2 on end" in done.stdout
    assert "one_way_s: 0.01\n" in done.stdout and "loss_probability: 0.2929" in done.stdout
    series = load_series(tmp_path / "link.csv")
    assert series.extra_delay_s == (0.0, 0.005, 0.005, 0.01, 0.01, 0.01)
    assert set(series.uplink_bits_per_s) == {2e7} and set(series.downlink_bits_per_s) == {1e8}
    assert "bandwidth" in run("ping.txt", "--out", "link.csv").stderr
    wrong = run("link.csv")
    assert wrong.returncode == 1 and "begins no log" in wrong.stderr and "Traceback" not in wrong.stderr
