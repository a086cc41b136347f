"""Recorded series: what is read, how it repeats, and what is refused with file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_env.network import LinkSeries, SeriesError, duplex, load_series, save_series
from dsd_env.network.processes import SeriesCursor
from dsd_env.scenario.schema import Link

HEADER = "time_s,uplink_bits_per_s,downlink_bits_per_s"


def written(tmp_path: Path, text: str | bytes, name: str = "series.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---------------------------------------------------------------- CSV


def test_a_csv_is_read_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER},extra_delay_s\n10,1e6,2e6,0.01\n11,0,3e6,0\n\n13,5e5,1e6,0.2\n")
    series = load_series(path)
    assert series.times_s == (0.0, 1.0, 3.0, 5.0)  # the last piece is as long as the one before it
    assert series.uplink_bits_per_s == (1e6, 0.0, 5e5)
    assert series.downlink_bits_per_s == (2e6, 3e6, 1e6)
    assert series.extra_delay_s == (0.01, 0.0, 0.2)
    assert series.length_s == 5.0


def test_columns_may_stand_in_any_order_and_delay_may_be_absent(tmp_path: Path) -> None:
    text = "\ufeffdownlink_bits_per_s, time_s ,uplink_bits_per_s\r\n2e6,0,1e6\r\n4e6,1,3e6\r\n"
    series = load_series(written(tmp_path, text))
    assert series.uplink_bits_per_s == (1e6, 3e6) and series.downlink_bits_per_s == (2e6, 4e6)
    assert series.extra_delay_s == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "empty"]),
        ("\n1,2,3\n", ["line 2", "the header is"]),
        ("# nothing else\n", ["line 1", "empty"]),
        ("a,b,c\n1,2,3\n", ["line 1", "a", "uplink_bits_per_s"]),
        (f"{HEADER},latency\n0,1e6,1e6,5\n", ["line 1", "latency", "extra_delay_s"]),
        (f"{HEADER},time_s\n0,1e6,1e6,5\n", ["line 1", "each once"]),
        (HEADER.replace(",", "|") + "\n0|1e6|1e6\n", ["line 1", "the header is"]),
        (f"{HEADER}\n", ["0 rows", "at least 2"]),
        (f"{HEADER}\n0,1e6,1e6\n", ["1 rows", "at least 2"]),
        (f"{HEADER}\n0,1e6,1e6\n1,1e6\n", ["line 3", "2 fields", "3"]),
        (f"{HEADER}\n0,1e6,1e6\n1,1e6,1e6,7\n", ["line 3", "4 fields"]),
        (f"{HEADER}\n0,1e6,1e6\n # \n1,1e6,1e6\n", ["line 3", "1 fields"]),
        (f"{HEADER}\n0,1e6,fast\n1,1e6,1e6\n", ["line 2", "downlink_bits_per_s = 'fast'", "not a number"]),
        (f"{HEADER}\n0,1e6,1e6\n1,,1e6\n", ["line 3", "uplink_bits_per_s = ''", "not a number"]),
        (f"{HEADER}\n0,1e6,1e6\n1,1.2e,1e6\n", ["line 3", "uplink_bits_per_s = '1.2e'", "not a number"]),
        (f"{HEADER}\n0,1e6,1e6\n1,1e6,1\0\n", ["null bytes"]),
        (f"{HEADER}\n0,1e6,1e6\n1e300,1e6,1e6\n", ["line 3", "time_s = 1e300", "another unit"]),
        (f"{HEADER}\n0,1e6,1e6\n1,1_0,1e6\n", ["line 3", "uplink_bits_per_s = '1_0'", "not a number"]),
        (
            f"{HEADER},extra_delay_s\n0,1e6,1e6,0\n1,1e6,1e6,-1\n",
            ["line 3", "extra_delay_s = -1", "not negative"],
        ),
        ('{"rates": []}\n', ["line 1", "JSON"]),
        (f"{HEADER}\n0,nan,1e6\n1,1e6,1e6\n", ["line 2", "uplink_bits_per_s = nan", "finite"]),
        (f"{HEADER}\n0,1e6,inf\n1,1e6,1e6\n", ["line 2", "downlink_bits_per_s = inf", "finite"]),
        (f"{HEADER}\n0,1e6,1e6\n1,-5,1e6\n", ["line 3", "uplink_bits_per_s = -5", "not negative"]),
        (f"{HEADER}\n-1,1e6,1e6\n1,1e6,1e6\n", ["line 2", "time_s = -1", "not negative"]),
        (f"{HEADER}\n0,1e6,1e6\n0,1e6,1e6\n", ["line 3", "time_s = 0.0", "does not come after"]),
        (f"{HEADER}\n5,1e6,1e6\n4,1e6,1e6\n", ["line 3", "time_s = 4.0", "does not come after 5.0"]),
        (f"{HEADER}\n0,1e6,0\n1,1e6,0\n", ["downlink_bits_per_s", "never above 0"]),
        # Units: Mbit/s, kbit/s, milliseconds.
        (f"{HEADER}\n0,12.5,1e6\n1,3.1,1e6\n", ["uplink_bits_per_s", "never above 12.5", "Mbit/s"]),
        (f"{HEADER}\n0,1720,1e6\n1,900,1e6\n", ["uplink_bits_per_s", "never above 1720", "kbit/s"]),
        (
            f"{HEADER},extra_delay_s\n0,1e6,1e6,0\n1,1e6,1e6,34\n",
            ["line 3", "extra_delay_s = 34", "milliseconds"],
        ),
        # A field that a CSV reader refuses, and a quote that never ends.
        (f"{HEADER}\n0,{'1' * 140_000},1e6\n", ["line 2", "larger than field limit"]),
        (f'{HEADER}\n0,"1e6,1e6\n1,1e6,1e6\n', ["2 fields"]),
        # Mahimahi.
        ("1\n2\nthree\n", ["line 3", "'three'", "milliseconds"]),
        ("1\n2.5\n", ["line 2", "'2.5'"]),
        ("1\n-2\n", ["line 2", "'-2'"]),
        ("5\n3000\n4\n", ["line 3", "4 ms comes before 3000 ms"]),
        ("0\n0\n", ["the last time is 0 ms", "at least 1 ms"]),
        ("1\n" + "9" * 5000 + "\n", ["line 2", "longer than a day"]),
        ("1\n99999999\n", ["line 2", "longer than a day"]),
        ("1\n²\n", ["line 2", "'²'"]),
        ("²\n1\n", ["line 1", "the header is"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_line_and_field(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SeriesError) as caught:
        load_series(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_semicolons_comments_and_utf16_are_read(tmp_path: Path) -> None:
    text = "# a comment\n" + HEADER.replace(",", ";") + "\n0;1e6;2e6\n   \n# another\n1;3e6;4e6\n"
    for content in (text.encode(), text.encode("utf-16")):
        series = load_series(written(tmp_path, content))
        assert series.uplink_bits_per_s == (1e6, 3e6) and series.downlink_bits_per_s == (2e6, 4e6)


def test_a_saved_series_is_loaded_again(tmp_path: Path) -> None:
    whole = LinkSeries((0.0, 1.0, 3.0, 5.0), (8e3, 0.0, 80e3), (8e5,) * 3, (0.0, 0.5, 0.25))
    saved = save_series(whole, tmp_path / "new" / "saved.csv", comments=("made by hand",))
    assert load_series(saved) == whole


def test_a_last_piece_of_another_length_keeps_its_length(tmp_path: Path) -> None:
    """A file's last row holds as long as the one before it, so that such a piece is written as its halves."""
    series = LinkSeries((0.0, 60.0, 90.0), (8e5, 4e5), (8e5, 4e5), (0.0, 0.4))
    loaded = load_series(save_series(series, tmp_path / "spells.csv"))
    assert loaded.times_s == (0.0, 60.0, 75.0, 90.0) and loaded.extra_delay_s == (0.0, 0.4, 0.4)
    one = load_series(save_series(LinkSeries((0.0, 8.0), (8e5,), (8e5,), (0.0,)), tmp_path / "one.csv"))
    assert one.length_s == 8.0 and set(one.uplink_bits_per_s) == {8e5}


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SeriesError, match="'nowhere' does not exist"):
        load_series("nowhere")
    with pytest.raises(SeriesError, match="does not exist"):
        load_series(tmp_path)
    with pytest.raises(SeriesError, match="is not UTF-8 text"):
        load_series(written(tmp_path, HEADER.encode() + b"\n0,1e6,1\xe96\n"))
    with pytest.raises(SeriesError, match="seems to be UTF-16"):
        load_series(written(tmp_path, bytes(40)))


@given(
    text=st.text(alphabet="0123456789.,e+-nai\n\r\"' \t\0²_", max_size=120),
    mahimahi=st.booleans(),
)
def test_any_text_gives_a_series_or_a_series_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, mahimahi: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(("1\n" if mahimahi else f"{HEADER}\n0,1e6,1e6\n") + text, encoding="utf-8")
    try:
        series = load_series(path)
    except SeriesError as error:
        assert str(path) in str(error)
    else:
        assert len(series.times_s) == len(series.uplink_bits_per_s) + 1
        assert all(b > a for a, b in zip(series.times_s, series.times_s[1:], strict=False))


# ---------------------------------------------------------------- Mahimahi


def test_a_constant_mahimahi_trace_is_constant_to_its_end(tmp_path: Path) -> None:
    # One packet of 1,500 bytes each millisecond, from 1 on: 12 Mbit/s.
    series = load_series(written(tmp_path, "\n".join(str(ms) for ms in range(1, 3001))))
    assert series.times_s == (0.0, 1.0, 2.0, 3.0)
    assert series.uplink_bits_per_s == pytest.approx((12e6,) * 3)
    assert series.downlink_bits_per_s == series.uplink_bits_per_s
    assert series.extra_delay_s == (0.0,) * 3


@pytest.mark.parametrize(
    ("text", "packets_per_s"),
    [("1\n", 1000.0), ("1\n1\n", 2000.0), ("3\n", 1000 / 3), ("1\n2\n4\n", 750.0), ("10\n1000\n", 2.0)],
)
def test_a_trace_within_a_second_goes_round_at_its_mean_rate(
    tmp_path: Path, text: str, packets_per_s: float
) -> None:
    series = load_series(written(tmp_path, text))
    assert series.length_s == 2.0
    assert series.uplink_bits_per_s == pytest.approx((packets_per_s * 12e3,) * 2)
    assert series.downlink_bits_per_s == series.uplink_bits_per_s


def test_a_trace_below_two_seconds_is_taken_twice(tmp_path: Path) -> None:
    # 3 packets in the first half second, none after, again and again: 3 in each 1.5 s.
    series = load_series(written(tmp_path, "10\n20\n500\n1500\n"))
    assert series.times_s == (0.0, 1.0, 2.0, 3.0)
    assert series.uplink_bits_per_s == pytest.approx((3 * 12e3, 4 * 12e3, 1 * 12e3))


def test_a_mahimahi_trace_has_silent_seconds_and_a_last_piece_of_its_own_length(tmp_path: Path) -> None:
    series = load_series(written(tmp_path, "10\n20\n20\n3100\n3200\n\n3500\n"))
    assert series.times_s == (0.0, 1.0, 2.0, 3.5)
    assert series.uplink_bits_per_s == pytest.approx((3 * 12e3, 0.0, 3 * 12e3 / 1.5))
    # All packets are there.
    lengths = [b - a for a, b in zip(series.times_s, series.times_s[1:], strict=False)]
    bits = sum(rate * s for rate, s in zip(series.uplink_bits_per_s, lengths, strict=True))
    assert bits == pytest.approx(6 * 12e3)


# ---------------------------------------------------------------- repetition

SERIES = LinkSeries((0.0, 1.0, 3.0, 3.5), (8e3, 16e3, 80e3), (8e5,) * 3, (0.0, 0.5, 0.25))


@given(
    offset_s=st.floats(0.0, 3.49),
    times=st.lists(st.floats(0.0, 40.0), min_size=1, max_size=20),
)
def test_a_cursor_stands_where_the_repeated_series_is(offset_s: float, times: list[float]) -> None:
    cursor = SeriesCursor(SERIES, offset_s)
    for time_s in sorted(times):
        cursor.advance(time_s)
        place = (time_s + offset_s) % SERIES.length_s
        piece = sum(place >= begin_s for begin_s in SERIES.times_s[1:-1])
        # At an edge, rounding may put it on either side.
        near = min(abs(place - edge) for edge in SERIES.times_s) < 1e-9
        assert cursor.index == piece or near
        assert cursor.until_s > time_s


def replayed(*, random_start: bool, seed: int = 1, number: int = 0) -> tuple[list[float], list[float]]:
    link = Link(
        one_way_s=0.1,
        uplink_bits_per_s=1e9,
        downlink_bits_per_s=1e9,
        replay={"file": "any", "random_start": random_start},
    )
    up, down = duplex(link, seed, number, series=SERIES)
    sent = [0.25 * i for i in range(60)]
    return (
        [up.send(time_s, 1.0) - time_s for time_s in sent],
        [down.send(time_s, 1.0) - time_s for time_s in sent],
    )


def test_a_replayed_link_has_the_bandwidth_and_delay_of_its_series_again_and_again() -> None:
    up, down = replayed(random_start=False)
    # A byte at 8, 16 and 80 kbit/s, and 0.8 Mbit/s down; delay 0, 0.5, 0.25 s on top of 0.1.
    assert up[0] == pytest.approx(0.1 + 1e-3)
    assert up[4] == pytest.approx(0.6 + 5e-4)
    # 0.25 s after a change of the delay from 0.5 to 0.25 s, what was sent before no longer holds it up.
    assert up[13] == pytest.approx(0.35 + 1e-4)
    assert down[0] == pytest.approx(0.1 + 1e-5)
    assert up[14:28] == pytest.approx(up[0:14])  # one repetition is 14 steps of a quarter of a second
    assert up[28:42] == pytest.approx(up[0:14])


def test_a_random_start_differs_between_links_and_is_the_same_for_both_directions() -> None:
    assert replayed(random_start=True) == replayed(random_start=True)
    starts = {tuple(replayed(random_start=True, number=number)[0]) for number in range(12)}
    assert len(starts) > 4
    # The delay steps of up and down coincide: one place in the series for the link.
    up, down = replayed(random_start=True, number=5)
    assert [round(value, 1) for value in up] == [round(value, 1) for value in down]
