"""The testbed and its twin: what is measured of tiny models becomes a scenario, and both serve the same."""

import asyncio
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra `testbed`")
pytest.importorskip("transformers", reason="needs the extra `testbed`")

from dsd_env.latency.profile import Noise
from dsd_env.scenario import load_scenario
from dsd_env.testbed.against import (
    GOALS_PCT,
    METRICS,
    Row,
    Served,
    Setting,
    ValidationError,
    compare,
    load_results,
    load_run,
    metrics_of,
    paired_gain,
    play,
    rankings,
    save_run,
    settings_of,
    simulated,
)
from dsd_env.testbed.client import ClientConfig
from dsd_env.testbed.engine import EngineConfig
from dsd_env.testbed.measuring import (
    MeasuringError,
    outputs_of,
    runs_of,
)
from dsd_env.testbed.reporting import gains, markdown, plot
from dsd_env.testbed.server import CloudServer
from dsd_env.testbed.target import PackedTarget
from dsd_env.testbed.timing import Times, pin
from dsd_env.testbed.twin import (
    Calibration,
    Live,
    Parts,
    noise_of,
    profile_of,
    scenario_of,
    variant,
)

from .pair import QUICK, STOP
from .twins import PAIR, QUESTIONS, TOKENS, variant_of


def test_the_answers_are_the_targets_own(twin):
    outputs = twin[2]
    for kind, question in QUESTIONS.items():
        assert outputs[kind] == PAIR.alone(replace(question, max_new_tokens=TOKENS))
    together = outputs_of(PackedTarget(PAIR.target), STOP, QUESTIONS, TOKENS, together=3)
    assert together == outputs


def test_an_answer_that_ends_too_soon_is_told():
    kind, question = next(iter(QUESTIONS.items()))
    token = PAIR.alone(replace(question, max_new_tokens=TOKENS))[3]
    with pytest.raises(MeasuringError, match=f"'{kind}': the answer ends before {TOKENS} tokens"):
        outputs_of(PackedTarget(PAIR.target), frozenset({token}), {kind: question}, TOKENS)


def test_runs_are_those_of_windows_from_every_position(twin):
    kind, question = next(iter(QUESTIONS.items()))
    output = twin[2][kind]
    runs = runs_of(PAIR.line, question, output, 8)
    assert len(runs) == TOKENS and sum(runs) > 0
    for start, run in enumerate(runs):
        line = PAIR.line(question)
        line.rebase(output[:start])
        drafts = [token for _ in range(8) for token in (line.step() or [])][: TOKENS - start]
        agree = next(
            (i for i, (a, b) in enumerate(zip(drafts, output[start:], strict=False)) if a != b), len(drafts)
        )
        assert run == min(agree, 8)


@pytest.mark.parametrize(("rule", "protocol"), [("static:4", "synchronous"), ("hf", "synchronous")])
def test_one_client_has_the_same_rounds_in_both(twin, rule, protocol):
    """Acceptance is replayed exactly and rules see what matters to them: the rounds are the same."""
    setting = Setting(rule, protocol, 0.002, 1)
    measured, simulation = both(twin, setting)
    assert [one.kind for one in measured] == [one.kind for one in simulation]
    for ours, theirs in zip(measured, simulation, strict=True):
        assert ours.tokens == theirs.tokens == TOKENS
        assert (ours.rounds, ours.accepted) == (theirs.rounds, theirs.accepted)
    assert sum(one.accepted for one in measured) > 0


def test_clients_that_stream_and_decode_plainly_ask_the_same(twin):
    for rule, clients in (("static:4", 2), ("plain", 2)):
        setting = Setting(rule, "streaming" if rule != "plain" else "synchronous", 0.002, clients)
        measured, simulation = both(twin, setting)
        # Who asks how much depends on who is faster, what is asked does not.
        ours = {(one.client, one.ordinal): one.kind for one in measured}
        theirs = {(one.client, one.ordinal): one.kind for one in simulation}
        common = ours.keys() & theirs.keys()
        assert len(ours) == len(theirs) == 4 and len(common) >= 2
        assert all(ours[key] == theirs[key] for key in common)
        if rule == "plain":
            assert all(one.accepted == 0 and one.rounds == TOKENS - 1 for one in [*measured, *simulation])
        rows = compare(setting.name, measured, simulation)
        assert [row.metric for row in rows] == list(METRICS)
        assert all(
            row.measured > 0 and row.simulated > 0 for row in rows if row.metric != "accepted_per_round"
        )


def both(twin, setting):
    outputs, scenario = twin[2], variant_of(twin, setting)

    async def measure():
        server = CloudServer(PAIR.target, STOP, engine=EngineConfig(end_after_tokens=TOKENS))
        heard = []
        with ThreadPoolExecutor(1) as pool:
            async with server.serving() as port:
                served = await play(
                    setting, scenario, port, QUESTIONS, PAIR.line, seed=3, pool=pool,
                    config=ClientConfig(**QUICK), heard=heard,
                )  # fmt: skip
        assert all(tokens in outputs.values() for tokens in heard)
        return served

    return asyncio.run(measure()), simulated(setting, scenario, seed=3)


def test_both_engines_simulate_the_twin_alike(twin):
    for protocol in ("synchronous", "streaming"):
        setting = Setting("static:4", protocol, 0.01, 2)
        scenario = variant_of(twin, setting)
        assert simulated(setting, scenario, 5) == simulated(setting, scenario, 5, engine="compiled")


def test_the_twin_is_what_was_measured(twin):
    _, path, _, found = twin
    scenario = load_scenario(path)
    step_s, beside_s = found.apart.window_fit()
    assert scenario.edge_servers["edge"].drafter.per_generation_s == pytest.approx(beside_s, abs=1e-6)
    sigma = found.apart.draft_noise_sigma()
    assert scenario.edge_servers["edge"].drafter.draft_noise_sigma == pytest.approx(sigma, abs=1e-5)
    profile = profile_of(found, "drafter", "any", "a test", apart=True)
    assert profile.coefficients.compute_s(1) == pytest.approx(step_s, abs=1e-6)
    target = profile_of(found, "target", "any", "a test", apart=True).coefficients
    for size, _ in found.apart.pass_knots():
        assert target.compute_s(size) == pytest.approx(found.apart.pass_s(size), abs=1e-6)
    assert scenario.links["wan"].one_way_s == pytest.approx((0.005 + found.live.round_trip_s) / 2, abs=1e-6)


def parts(passes=((1, 0.3), (2, 0.3), (10, 0.4)), windows=None) -> Parts:
    windows = windows or [(n, 0.06 + 0.05 * n) for n in (1, 2, 4, 8)]
    return Parts(
        passes=tuple(Times(work=n, seconds=(s, s)) for n, s in passes),
        windows=tuple(Times(work=n, seconds=(s,)) for n, s in windows),
        first_steps=(Times(work=40, seconds=(0.2,)),),
    )


def calibration(live=None, together=None) -> Calibration:
    return Calibration(
        target="t", draft="d", dtype="x", target_bytes=1, draft_bytes=1, processor="p", software="s",
        date="2026-01-01", apart=parts(), together=together or parts(), live=live,
    )  # fmt: skip


def test_windows_are_taken_apart_into_steps_and_a_beginning():
    assert parts().window_fit() == pytest.approx((0.05, 0.06))
    assert parts(windows=[(n, 0.05 * n - 0.01) for n in (1, 2, 4)]).window_fit()[1] == 0.0
    # Where the machine did other work meanwhile, longer windows can take less time than short ones.
    step_s, beside_s = parts(windows=[(1, 0.20), (2, 0.19), (4, 0.16)]).window_fit()
    assert step_s > 0.0 and beside_s == 0.0


def test_what_plain_decoding_shows_beside_the_passes():
    found = calibration(Live(round_trip_s=0.01, token_s=0.305, ttft_s=(0.44, 0.40), prompt_tokens=(10, 1)))
    assert found.overhead_s() == pytest.approx(0.005)
    # Of 0.44 s, the pass takes 0.4, the iteration 0.005 more, the way 0.01; of 0.40 s, 0.3, 0.005 and 0.01.
    assert found.front_end_s() == pytest.approx((0.025 + 0.085) / 2)
    assert calibration().overhead_s() == calibration().front_end_s() == 0.0


def test_what_several_sequences_show_beside_the_passes():
    """A pass of four tokens takes 0.025 s more than one of one, decoding four sequences 0.037 s more."""
    live = Live(
        round_trip_s=0.01, token_s=0.305, ttft_s=(0.4,), prompt_tokens=(10,), sequences=4, together_s=0.342
    )
    assert calibration(live).per_sequence_s() == pytest.approx((0.037 - 0.025) / 3)
    assert calibration(live.model_copy(update={"together_s": None})).per_sequence_s() == 0.0
    assert calibration().per_sequence_s() == 0.0


def test_rules_with_other_constants_have_other_names():
    plain, tuned = (Setting(rule, "synchronous", 0.005, 1) for rule in ("goodput", "goodput:load_weight=0.5"))
    assert plain.name == "sync-goodput_rtt5_c1" and plain.scheduler == "jsq_goodput"
    assert tuned.name == "sync-goodput-load-weight-0-5_rtt5_c1"
    assert tuned.scheduler == "jsq_goodput:load_weight=0.5"
    with pytest.raises(ValidationError, match="rule 'goodput:load_weight=-1': "):
        _ = Setting("goodput:load_weight=-1", "synchronous", 0.005, 1).scheduler


def test_what_a_disturbed_machine_shows_stays_within_what_a_scenario_can_say(tmp_path):
    live = Live(
        round_trip_s=0.01, token_s=2.0, ttft_s=(0.4,), prompt_tokens=(10,), sequences=4, together_s=9.0
    )
    found = calibration(live)
    data = scenario_of(found, "busy", {"q": 10}, output_tokens=12, trace="unused", folder=tmp_path)
    assert data["targets"]["target"]["engine_overhead"] == {"per_iteration_s": 0.0, "per_sequence_s": 0.01}
    live = live.model_copy(update={"together_s": None})
    data = scenario_of(
        calibration(live), "busy", {"q": 10}, output_tokens=12, trace="unused", folder=tmp_path
    )
    assert data["targets"]["target"]["engine_overhead"] == {"per_iteration_s": 0.1, "per_sequence_s": 0.0}


def test_passes_of_one_token_may_take_longer_and_others_do_not_fall():
    found = parts([(1, 0.34), (2, 0.32), (3, 0.30), (5, 0.35)])
    assert found.pass_knots() == [(n, pytest.approx(0.31)) for n in (1, 2, 3)] + [(5, 0.35)]
    assert found.single_token_s() == pytest.approx(0.03)
    assert (found.pass_s(1), found.pass_s(2)) == pytest.approx((0.34, 0.31))
    assert found.pass_s(4) == pytest.approx(0.33)


@pytest.mark.parametrize(
    ("protocol", "clients", "plain", "apart"),
    [
        ("synchronous", 1, False, True),
        ("synchronous", 4, False, False),
        ("synchronous", 4, True, True),
        ("streaming", 1, False, False),
    ],
)
def test_models_slow_each_other_down_where_both_work(twin, protocol, clients, plain, apart):
    folder, path, _, _ = twin
    busy = parts([(1, 0.5), (2, 0.5), (10, 0.6)], [(n, 0.08 + 0.06 * n) for n in (1, 2, 4, 8)])
    found = calibration(together=busy)
    scenario = variant(found, path, folder, rtt_s=0.08, clients=clients, protocol=protocol, plain=plain)
    assert scenario.devices["client"].count == clients and scenario.links["wan"].one_way_s == 0.04
    assert scenario.targets["target"].profile.endswith(f"target-{'apart' if apart else 'together'}.yaml")
    # A stream's generation waits for half a step besides, the one under way.
    expected = 0.06 if apart else 0.08 + (0.03 if protocol == "streaming" else 0.0)
    assert scenario.edge_servers["edge"].drafter.per_generation_s == pytest.approx(expected, abs=1e-6)


def test_the_scatter_of_a_draft_is_found_again_in_windows_of_any_length():
    rng = np.random.default_rng(0)
    sigma = 0.4
    windows = []
    for drafts in (1, 2, 4, 8):
        scattered = sigma / math.sqrt(drafts)
        seconds = 0.1 * drafts * np.exp(rng.normal(0.0, scattered, 4000) - scattered**2 / 2)
        windows.append(Times(work=drafts, seconds=tuple(seconds)))
    found = parts().model_copy(update={"windows": tuple(windows)})
    assert found.draft_noise_sigma() == pytest.approx(sigma, rel=0.05)


def test_noise_tells_stragglers_apart():
    noise = noise_of([Times(work=1, seconds=(1.0, 1.1, 1 / 1.1, 1.0, 3.0))])
    assert noise["straggler_share"] == 0.2 and noise["straggler_factor"] == pytest.approx(3.0)
    assert noise["sigma"] == pytest.approx(math.log(1.1) / math.sqrt(2), abs=1e-5)


def test_noise_of_a_busy_machine_stays_within_what_a_profile_can_say():
    noise = noise_of([Times(work=1, seconds=(0.001, 0.001, 1.0, 1.0, 1.0, 900.0))])
    Noise.model_validate(noise)
    assert noise["sigma"] == 1.0 and noise["straggler_factor"] == 100.0


def served(
    client=0, ordinal=0, arrival_s=0.0, ttft_s=1.0, e2e_s=3.0, tokens=5, accepted=2, rounds=2
) -> Served:
    return Served(client, ordinal, 0, arrival_s, ttft_s, e2e_s, tokens, accepted, rounds)


def test_metrics_by_hand():
    found = metrics_of([served(), served(ordinal=1, arrival_s=4.0, ttft_s=2.0, e2e_s=8.0, rounds=3)])
    assert found["ttft_s_mean"] == 1.5 and found["e2e_s_mean"] == 5.5
    assert found["tpot_s_mean"] == pytest.approx((0.5 + 1.5) / 2)
    assert found["e2e_s_p95"] == pytest.approx(7.75)
    assert found["tokens_per_s"] == pytest.approx(10 / 12)
    assert found["accepted_per_round"] == pytest.approx(4 / 5)
    with pytest.raises(ValidationError, match="no request was served"):
        metrics_of([])


def row(setting: str, measured: float, simulated_: float, metric: str = "e2e_s_mean") -> Row:
    return Row(setting, metric, measured, simulated_, 100 * (simulated_ / measured - 1))


def test_rankings_count_pairs_and_tell_close_ones():
    found = rankings(
        [row("a_x", 1.0, 1.0), row("b_x", 1.02, 0.99), row("c_x", 2.0, 2.1), row("a_y", 1.0, 1.0)]
    )
    assert [one.where for one in found] == ["x", "y"]
    assert found[0].measured == ("a", "b", "c") and found[0].simulated == ("b", "a", "c")
    assert (found[0].agree, found[0].pairs, found[0].close, found[0].close_wrong) == (2, 3, 1, 1)
    assert found[1].pairs == 0


def test_goals():
    assert row("a", 1.0, 1.04).within and not row("a", 1.0, 1.06).within
    assert row("a", 1.0, 0.91, "e2e_s_p95").within and not row("a", 1.0, 0.89, "e2e_s_p95").within
    assert row("a", 1.0, 9.0, "ttft_s_mean").within  # it has no goal
    assert set(GOALS_PCT) <= set(METRICS)


def test_a_gain_is_of_pairs_and_certain_where_all_are_alike():
    ours = [served(ordinal=n, e2e_s=2.0 + n) for n in range(4)]
    theirs = [served(ordinal=n, e2e_s=2 * (2.0 + n)) for n in range(5)]
    assert paired_gain(ours, theirs) == pytest.approx((50.0, 50.0, 50.0))
    mixed = [served(ordinal=n, e2e_s=1.0 if n % 2 else 9.0) for n in range(4)]
    gain, low, high = paired_gain(ours, mixed)
    assert low < gain < high
    with pytest.raises(ValidationError, match="fewer than two"):
        paired_gain(ours[:1], theirs)


def test_runs_are_kept_and_damaged_ones_told(tmp_path):
    setting = Setting("static:4", "streaming", 0.08, 4)
    path = tmp_path / "run.json"
    save_run(path, setting, [served(), served(1)], {"seed": 1})
    facts, requests = load_run(path)
    assert requests == [served(), served(1)] and facts["seed"] == 1 and facts["setting"]["rtt_s"] == 0.08
    path.write_text("{}")
    with pytest.raises(ValidationError, match="delete it to run it again"):
        load_run(path)


def test_settings_and_their_names():
    found = settings_of(
        [("plain", "synchronous"), ("static:4", "streaming"), ("hf", "synchronous")], [0.005], [1, 4]
    )
    assert [one.name for one in found][:3] == ["plain_rtt5_c1", "stream-static4_rtt5_c1", "sync-hf_rtt5_c1"]
    assert [one.scheduler for one in found][:3] == ["cloud_ar", "static:4:1:edge", "hf_heuristic:edge"]
    for rule in ("static", "static:0", "policy:", "nothing"):
        with pytest.raises(ValidationError, match="is none of plain"):
            settings_of([(rule, "synchronous")], [0.005], [1])
    with pytest.raises(ValidationError, match="no such protocol"):
        settings_of([("hf", "pipelined")], [0.005], [1])


def test_tables_and_plot(tmp_path):
    rows = [
        row(f"{way}_rtt5_c1", 1.0 + n, 1.2 + n, metric)
        for n, way in enumerate(("plain", "hf"))
        for metric in METRICS
    ]
    text = markdown(rows)
    assert "**1 s (+20.0 %)**" in text and "request time, mean: 0 of 2 settings within 5 %" in text
    assert "1 of 1 pairs in the same order" in text
    runs = {"sync-policy_x": [served(), served(1)], "plain_x": [served(e2e_s=6.0), served(1, e2e_s=6.0)]}
    assert "| x | sync-policy | plain | +50.0 % | +50.0 … +50.0 % |" in gains(runs)
    assert gains({"plain_x": [served()]}) == ""
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValidationError, match="simulate first"):
        load_results(tmp_path / "none.json")


def test_no_cores_are_no_error():
    assert pin(()) is False and pin((1000,)) is False


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="needs a system that keeps processes to cores"
)
def test_a_process_may_leave_the_cores_of_who_started_it():
    """The server is started by the edge, which keeps to its own core by then."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    script = (
        "import os\nfrom dsd_env.testbed.timing import pin\n"
        f"assert pin(({cores[0]},)) and pin(({cores[1]},))\nassert os.sched_getaffinity(0) == {{{cores[1]}}}"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("path", ["docs/testbed.md"])
def test_the_page_names_the_command(path):
    assert "validate_sim.py" in (Path(__file__).parents[2] / path).read_text(encoding="utf-8")
