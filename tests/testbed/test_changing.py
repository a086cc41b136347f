"""A testbed whose link changes: the same spells in both, a twin that measures its link, gains by spell."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from dsd_env.network.series import LinkSeries, load_series, save_series
from dsd_env.simulate import simulate
from dsd_env.testbed.against import Served, Setting, play, simulated
from dsd_env.testbed.changing import gain_by_spell, is_bad, on_own_device, spells, to_train_on
from dsd_env.testbed.client import ClientConfig
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.server import CloudServer
from dsd_env.testbed.timing import Times
from dsd_env.testbed.twin import Parts, scenario_of, variant, write_profiles, write_scenario

from .pair import QUICK, STOP
from .twins import PAIR, QUESTIONS, TOKENS, variant_of

RATES = (1e9, 1e9)


def test_spells_take_turns_within_their_bounds():
    series = spells(3, 5000.0)
    lengths, delays = np.diff(series.times_s), np.array(series.extra_delay_s)
    good, bad = lengths[::2], lengths[1::2]
    assert series.length_s >= 5000.0 and len(good) == len(bad)
    assert (delays[::2] == 0.0).all() and ((delays[1::2] >= 0.2) & (delays[1::2] <= 0.5)).all()
    assert good.min() >= 15.0 and good.max() <= 180.0 and bad.min() >= 10.0 and bad.max() <= 90.0
    assert spells(3, 5000.0) == series != spells(4, 5000.0)
    fixed = spells(0, 90.0, good_s=(60.0,) * 3, bad_s=(30.0,) * 3, delay_s=(0.4, 0.4))
    assert fixed.times_s == (0.0, 60.0, 90.0) and fixed.extra_delay_s == (0.0, 0.4)


def test_where_a_spell_begins_and_ends():
    series = LinkSeries((0.0, 60.0, 90.0), RATES, RATES, (0.0, 0.4))
    assert [is_bad(series, at_s) for at_s in (0.0, 59.9, 60.0, 89.9, 90.0, 155.0)] == [
        False, False, True, True, False, True,
    ]  # fmt: skip


def parts_of_steady_times():
    """A pass takes 0.3 s and a little more for each token, a draft 0.05 s, a window 0.06 s beside."""
    return Parts(
        passes=tuple(Times(work=n, seconds=(s, s)) for n, s in ((1, 0.3), (2, 0.3), (10, 0.4), (64, 1.0))),
        windows=tuple(Times(work=n, seconds=(0.06 + 0.05 * n,)) for n in (1, 2, 4, 8)),
        first_steps=(Times(work=40, seconds=(0.2,)),),
    )


@pytest.fixture
def steady(twin, tmp_path):
    """A twin of times that do not depend on what else this machine does, by round trip and clients."""
    parts = parts_of_steady_times()
    found = twin[3].model_copy(update={"apart": parts, "together": parts, "live": None})
    kinds = {kind: len(question.prompt_ids) for kind, question in QUESTIONS.items()}
    write_profiles(found, tmp_path, "a test")
    data = scenario_of(
        found, "steady", kinds, trace=str(twin[0] / "tiny"), folder=tmp_path, output_tokens=TOKENS
    )
    write_scenario(tmp_path / "steady.yaml", data, "a test")

    def of(rtt_s, clients=1):
        return variant(
            found, tmp_path / "steady.yaml", tmp_path, rtt_s=rtt_s, clients=clients, protocol="synchronous",
            episode__requests=60, episode__total_requests=60,
        )  # fmt: skip

    return of


def test_the_drafter_moves_to_the_device_and_nothing_becomes_faster(steady, tmp_path):
    """On a link that does not change after all, rounds and times are those of the edge server."""
    path = save_series(LinkSeries((0.0, 1.0, 2.0), RATES, RATES, (0.0, 0.0)), tmp_path / "same.csv")
    before = steady(0.02)
    after = on_own_device(before, path, random_start=False)
    assert not after.edge_servers and after.devices["client"].drafter is not None
    ours = simulate(after, "static:4:1:own", seed=2).requests
    theirs = simulate(before, "static:4:1:edge", seed=2).requests
    assert (ours["accepted_tokens"] == theirs["accepted_tokens"]).all()
    np.testing.assert_allclose(ours["e2e_s"], theirs["e2e_s"], rtol=0.01)
    with pytest.raises(ValueError, match="3 clients share one drafter"):
        on_own_device(steady(0.02, clients=3), path)


def test_a_client_that_measures_its_link_leaves_off_drafting_while_it_is_bad(steady, tmp_path):
    """The goodput rule drafts in good spells and decodes plainly in bad ones; a fixed length cannot."""
    series = spells(0, 90.0, good_s=(60.0,) * 3, bad_s=(30.0,) * 3, delay_s=(0.5, 0.5))
    path = save_series(series, tmp_path / "spells.csv")
    scenario = on_own_device(steady(0.001), path, random_start=False)
    table = simulate(scenario, "jsq_goodput", seed=1).requests
    bad = np.array([is_bad(series, at_s) for at_s in table["arrival_s"]])
    drafted = np.array(table["drafted_tokens"])
    assert bad.sum() >= 5 and (~bad).sum() >= 5
    assert drafted[~bad].mean() > 2.0 * drafted[bad].mean()


def test_testbed_and_twin_see_the_same_spells(twin, tmp_path):
    """Requests asked while the link is bad wait for their first token as much longer in both."""
    series = spells(0, 6.0, good_s=(2.0,) * 3, bad_s=(4.0,) * 3, delay_s=(0.25, 0.25))
    path = save_series(series, tmp_path / "spells.csv")
    setting = Setting("static:4", "synchronous", 0.002, 1, series=str(path), until_s=6.0)
    assert setting.name == "sync-static4_rtt2+spells_c1" and setting.scheduler == "static:4:1:own"
    scenario = on_own_device(variant_of(twin, setting), path, random_start=False)

    async def measure():
        server = CloudServer(PAIR.target, STOP, engine=EngineConfig(end_after_tokens=TOKENS))
        with ThreadPoolExecutor(1) as pool:
            async with server.serving() as port:
                return await play(
                    setting, scenario, port, QUESTIONS, PAIR.line, seed=3, pool=pool,
                    config=ClientConfig(**QUICK),
                )  # fmt: skip

    for way in (asyncio.run(measure()), simulated(setting, scenario, seed=3)):
        assert way and max(one.arrival_s for one in way) < 6.0
        bad = [one.ttft_s for one in way if is_bad(series, one.arrival_s)]
        good = [one.ttft_s for one in way if not is_bad(series, one.arrival_s)]
        assert min(bad) >= 0.25 and min(good) < 0.25


def served(arrival_s, e2e_s):
    return Served(0, int(arrival_s), 0, arrival_s, 0.1, e2e_s, 24, 0, 23)


def test_a_gain_is_told_with_what_the_spells_do_not_explain(tmp_path):
    """Times that differ by spell alone leave no doubt; others do."""
    path = save_series(LinkSeries((0.0, 60.0, 90.0), RATES, RATES, (0.0, 0.4)), tmp_path / "spells.csv")
    series = load_series(path)
    at = [10.0 * n for n in range(36)]
    slow = [served(t, 12.0 if is_bad(series, t) else 6.0) for t in at]
    fast = [served(t, 6.0) for t in at]
    assert gain_by_spell(fast, slow, path) == pytest.approx((25.0, 25.0, 25.0))
    draw = np.random.default_rng(0)
    noisy = [served(one.arrival_s, one.e2e_s + draw.normal(0.0, 1.0)) for one in fast]
    gain, low, high = gain_by_spell(noisy, slow, path)
    assert low < gain < high and 1.0 < high - low < 15.0
    with pytest.raises(ValueError, match="no requests"):
        gain_by_spell([], slow, path)


def test_a_training_has_other_questions_and_other_spells(steady, tmp_path):
    from dsd_env.acceptance import load_trace_set

    path = save_series(spells(1, 300.0), tmp_path / "train.csv")
    trace = load_trace_set("qwen2.5-coder-1.5b_smollm2-135m_greedy")
    base = steady(0.002)
    scenario = to_train_on(base, path, trace, "smollm2-135m")
    assert tuple(scenario.workload.kinds) == tuple(trace.kinds)
    assert not set(scenario.workload.kinds) & set(base.workload.kinds)
    link = scenario.links[scenario.devices["client"].link]
    assert link.replay.random_start and link.replay.file == str(path)
    assert simulate(scenario, "static:4:1:own", seed=0).metrics["e2e_s_mean"] > 0
