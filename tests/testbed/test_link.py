"""The shim against what its settings promise."""

import asyncio
import statistics
import time

import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from pydantic import ValidationError

from dsd_env.network.series import LinkSeries
from dsd_env.testbed.control import static
from dsd_env.testbed.link import LinkConfig, LinkState
from tests.testbed.pair import client, make_pair, questions, testbed


def deliver(config, sends, size=900):
    link = LinkState(config, 0.0)
    return link, [link.arrivals(at_s, size) for at_s in sends]


def test_delay_and_bandwidth_are_a_queue():
    """1000 bytes at 10 kB/s leave every 0.1 s, and travel for 0.05 s."""
    _, arrivals = deliver(LinkConfig(delay_s=0.05, bandwidth_bytes_per_s=1e4), [0.0, 0.0, 0.12, 1.0])
    assert [a for [a] in arrivals] == pytest.approx([0.15, 0.25, 0.35, 1.15])


def test_shares_of_lost_and_doubled_messages_and_moments_of_the_delay():
    n = 4000
    config = LinkConfig(delay_s=0.02, jitter_s=0.002, drop=0.3, duplicate=0.2, seed=1)
    link, arrivals = deliver(config, [float(i) for i in range(n)])
    assert link.lost == sum(not a for a in arrivals)
    assert link.lost / n == pytest.approx(0.3, abs=0.03)
    kept = [(i, a) for i, a in enumerate(arrivals) if a]
    assert sum(len(a) == 2 for _, a in kept) / len(kept) == pytest.approx(0.2, abs=0.03)
    delays = [a[0] - i for i, a in kept]
    assert statistics.fmean(delays) == pytest.approx(0.02, abs=0.0003)
    assert statistics.stdev(delays) == pytest.approx(0.002, abs=0.0003)
    assert deliver(config, [float(i) for i in range(n)])[1] == arrivals  # the seed decides


def test_messages_overtake_each_other_only_where_they_may():
    sends = [0.0005 * i for i in range(2000)]
    _, ordered = deliver(LinkConfig(delay_s=0.01, jitter_s=0.005), sends)
    assert [a for [a] in ordered] == sorted(a for [a] in ordered)
    _, mixed = deliver(LinkConfig(delay_s=0.01, reorder=0.1), sends)
    assert [a for [a] in mixed] != sorted(a for [a] in mixed)


def test_outages_lose_everything_and_end():
    config = LinkConfig(outages=((1.0, 2.0), (4.0, 4.5)))
    _, arrivals = deliver(config, [0.9, 1.0, 1.9, 2.0, 4.2, 5.0])
    assert [bool(a) for a in arrivals] == [True, False, False, True, False, True]


def test_a_series_says_bandwidth_and_delay_again_and_again():
    """1000 bytes take 1 s up and 0.5 s down; the second half of each 10 s is 0.25 s further away."""
    series = LinkSeries((0.0, 5.0, 10.0), (8e3, 8e3), (16e3, 16e3), (0.0, 0.25))
    config = LinkConfig(delay_s=0.05, series=series)
    _, up = deliver(config, [0.0, 0.0, 7.0, 11.0, 4.5])
    assert [a for [a] in up] == pytest.approx([1.05, 2.05, 8.3, 12.05, 13.05])
    down = LinkState(config, 100.0, upwards=False)
    assert down.arrivals(107.0, 900) == pytest.approx([107.8])
    down.begin(120.0)  # counted from then on, the link is good
    assert down.arrivals(121.0, 900) == pytest.approx([121.55])


def test_a_message_is_sent_piece_by_piece_and_waits_where_there_is_no_bandwidth():
    """Of 1000 bytes 250 leave in the first second, none in the next two, and the rest at twice the rate."""
    series = LinkSeries((0.0, 1.0, 3.0, 10.0), (2e3, 0.0, 4e3), (2e3, 0.0, 4e3), (0.0, 0.0, 0.0))
    _, arrivals = deliver(LinkConfig(series=series), [0.0])
    assert [a for [a] in arrivals] == pytest.approx([4.5])
    # What begins to leave in the last piece and does not fit goes on in the first one.
    _, arrivals = deliver(LinkConfig(series=series), [9.0])
    assert [a for [a] in arrivals] == pytest.approx([13.5])


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 1.0},
        {"delay_s": -1.0},
        {"delay_s": True},
        {"loss": 0.1},
        {"series": LinkSeries((0.0, 1.0), (1e6,), (0.0,), (0.0,))},
        {"bandwidth_bytes_per_s": 1e3, "series": LinkSeries((0.0, 1.0), (1e6,), (1e6,), (0.0,))},
    ],
)
def test_impossible_links_are_refused(wrong):
    with pytest.raises(ValidationError):
        LinkConfig(**wrong)


def test_the_round_trip_that_a_client_measures_is_the_links():
    pair = make_pair(0.0)
    link = LinkConfig(delay_s=0.03)

    async def run():
        async with testbed(pair, link) as (_, _, channel):
            began = time.monotonic()
            output = await client(channel, pair, "synchronous", static(4)).generate(questions(1, 11)[0])
            return output, time.monotonic() - began

    output, took_s = asyncio.run(run())
    assert output.results == 3
    assert took_s > 3 * 0.06  # opening, and two rounds
    # Nothing on the way may be faster than the link; how much slower is the machine's affair.
    assert 0.06 <= min(output.rtt_s) < 0.2
    assert 0.06 <= output.ttft_s < output.e2e_s <= took_s
