"""Rules that stop within a draft: their papers' numbers, AdaEDL's threshold by hand, their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from dsd_env.acceptance import DrafterTrace, TraceSet
from dsd_env.control import DecisionView, Site, StopKind, StopRule
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.lengths import REMEMBERED, Outcome
from dsd_env.schedulers.stops import AdaEdl
from dsd_env.schedulers.table import Axes, TableBuilder
from dsd_env.simulate import simulate
from tests.acceptance_samples import card
from tests.lab import lab
from tests.views import make_candidate, make_request, make_target, make_view, views

SPECS = (
    "specdec_pp",
    "specdec_pp:0.5:edge:least_time:4",
    "svip",
    "svip:0.2:own",
    "adaedl",
    "adaedl:0.7:edge:round_robin",
    "pmin:0.75",
    "pmin:0.3:own",
    "adaptive:specdec_pp+threshold=0.4+most=8:own",
    "adaptive:adaedl+target=0.8+step=0.02:edge",
)


@given(view=views())
def test_decisions_are_possible_and_plain_decoding_has_no_rule(view: DecisionView) -> None:
    for spec in SPECS:
        scheduler = make_scheduler(spec)
        decision = scheduler.decide(view)
        assert decision.gamma in view.gammas and decision.batch_size in view.batch_sizes
        assert (decision.stop is None) == (decision.gamma == 0)
        assert decision.gamma == 0 or view.candidates[decision.placement].valid
        assert make_scheduler(scheduler.name).name == scheduler.name
        assert make_scheduler(scheduler.name).decide(view) == decision


@pytest.mark.parametrize(
    ("spec", "gamma", "stop"),
    [
        ("specdec_pp", 20, StopRule(StopKind.SURVIVAL, 0.7, least=2, keeps=True)),
        ("svip", 40, StopRule(StopKind.ENTROPY, 0.3, least=1, keeps=True)),
        ("adaedl", 64, StopRule(StopKind.BOUND, 0.5, least=1, keeps=False)),
        ("pmin:0.9", 16, StopRule(StopKind.TOP1, 0.9, least=0, keeps=False)),
        ("adaptive:pmin", 16, StopRule(StopKind.TOP1, 0.75, least=0, keeps=False)),
        ("adaptive:svip+threshold=0.1+most=6", 6, StopRule(StopKind.ENTROPY, 0.1)),
    ],
)
def test_rules_have_the_numbers_of_their_papers(spec: str, gamma: int, stop: StopRule) -> None:
    view = make_view()
    view.gammas = tuple(range(65))
    decision = make_scheduler(spec).decide(view)
    assert (decision.gamma, decision.batch_size, decision.stop) == (gamma, 1, stop)
    view.gammas = (0, 2, 5)
    assert make_scheduler(spec).decide(view).gamma == 5  # the longest that there is


def test_a_rule_goes_to_its_place_and_by_its_route() -> None:
    busy, idle = make_target(0, resident=9, iteration_s=0.02), make_target(1, resident=2, iteration_s=0.05)
    candidates = tuple(make_candidate(site, target) for target in (busy, idle) for site in Site)
    view = make_view(candidates=candidates, target=busy, request=make_request(is_admission=True))
    near = view.candidates[make_scheduler("svip:0.3:own:least_time").decide(view).placement]
    assert (near.site, near.target.index) == (Site.OWN_DEVICE, 0)
    assert view.candidates[make_scheduler("svip").decide(view).placement].target.index == 1


# ---------------------------------------------------------------------- AdaEDL's threshold


def told(drafted: int, accepted: int, request_id: int = 1) -> DecisionView:
    request = make_request(recent_gammas=(drafted, 0, 0, 0), recent_accepted=(accepted, 0, 0, 0))
    view = make_view(request=request)
    view.request_id = request_id
    return view


def test_the_threshold_of_adaedl_is_its_algorithm() -> None:
    """Worked by hand: the rate is half the last one, half the newest; the threshold moves a tenth of 0.01."""
    rule = AdaEdl(threshold=0.5, target=0.85)
    rounds = [
        # drafted, accepted, longest: rate, threshold
        ((4, 4, 4), 0.5, 0.501),  # below the target
        ((4, 4, 4), 0.75, 0.502),
        ((4, 4, 4), 0.875, 0.502),  # at it, the whole longest draft accepted
        ((3, 3, 4), 0.9375, 0.501),  # at it, and stopped too early
        ((3, 0, 4), 0.46875, 0.502),
    ]
    for (drafted, accepted, longest), rate, threshold in rounds:
        rule.learn(told(drafted, accepted), Outcome(longest, 0.05, accepted + 1))
        assert rule._kept[1] == pytest.approx((rate, threshold), abs=1e-12)
        assert rule.stop(told(1, 1)).threshold == pytest.approx(threshold, abs=1e-12)
    assert rule.stop(told(1, 1, request_id=2)).threshold == 0.5  # another request begins anew
    before = dict(rule._kept)
    rule.learn(told(0, 0), Outcome(4, 0.05, 1))  # a look-up that proposed nothing
    rule.learn(told(3, 3), Outcome(0, 0.05, 8))  # plain decoding
    assert rule._kept == before
    rule.reset(0)
    assert rule.stop(told(1, 1)).threshold == 0.5


def test_the_threshold_of_adaedl_stays_a_bound_of_a_probability() -> None:
    rule = AdaEdl(threshold=0.999, step=1.0)
    for _ in range(50):
        rule.learn(told(4, 0), Outcome(4, 0.05, 1))
    assert rule.stop(told(4, 0)).threshold == 1.0
    for request_id in range(REMEMBERED + 10):
        rule.learn(told(4, 0, request_id), Outcome(4, 0.05, 1))
    assert len(rule._kept) == REMEMBERED


# ---------------------------------------------------------------------- in simulations


@pytest.fixture
def honest(tmp_path: Path) -> Any:
    """Return the laboratory with a drafter that is right in runs of 1 to 9 tokens, and knows it."""
    right = np.concatenate([[True] * length + [False] for length in (1, 6, 2, 9, 3, 1, 8, 5, 2, 7) * 4])
    probability = np.where(right, 0.97, 0.2)
    entropy = np.where(right, 0.1, 3.0)
    values = DrafterTrace(
        None, right.astype(np.float32), probability.astype(np.float16), entropy.astype(np.float16)
    )
    trace = TraceSet(
        name="honest",
        kinds=("any",),
        offsets=np.array([0, len(right)], np.int64),
        kind=np.zeros(1, np.uint8),
        prompt_tokens=np.ones(1, np.int32),
        drafters={"d": values},
        card=card(("d",), label="synthetic"),
    )
    npz, _ = trace.save(tmp_path)
    return lab(
        draft_s=0.006,
        one_way_s=0.01,
        verify={"t0_s": 0.03, "c_s_per_token": 5e-4},
        output={"distribution": "constant", "value": len(right)},
        requests=3,
        acceptance={"draft": {"source": "trace", "trace": str(npz), "drafter": "d"}},
    )


@pytest.mark.parametrize("spec", ["specdec_pp", "svip", "adaedl", "pmin:0.5"])
def test_a_drafter_that_knows_its_mistakes_gains_by_every_rule(honest: Any, spec: str) -> None:
    name, _, threshold = spec.partition(":")
    rule = f"{name}:{threshold or {'specdec_pp': 0.7, 'svip': 0.3, 'adaedl': 0.5}[name]}:own"
    static = [simulate(honest, f"edge_sd:{gamma}", 1).metrics["e2e_s_mean"] for gamma in (1, 2, 3, 4, 6, 8)]
    mine = simulate(honest, rule, 1).metrics
    assert mine["e2e_s_mean"] < 0.95 * min(static)
    if name == "pmin":  # it drops every token that it doubts
        assert mine["acceptance_rate"] == 1.0


def test_what_a_rule_learned_in_one_episode_is_gone_in_the_next(honest: Any) -> None:
    scheduler = make_scheduler("adaedl:0.6:own")
    first = simulate(honest, scheduler, 3).metrics
    assert simulate(honest, scheduler, 3).metrics == first


# ---------------------------------------------------------------------- names, and where they do not go


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pmin", ["needs a threshold", "pmin:P"]),
        ("pmin:2", ["pmin: threshold = 2", "0..1"]),
        ("svip:much", ["svip: threshold = 'much' is not a number"]),
        ("svip:-1", ["threshold = -1"]),
        ("specdec_pp:nan", ["threshold = nan"]),
        ("specdec_pp:0.7:moon", ["'moon'", "colocated, own, edge"]),
        ("adaedl:0.5:own:far", ["route 'far'"]),
        ("adaedl:0.5:own:jsq:0", ["B = '0'"]),
        ("svip:0.3:own:jsq:1:1", ["too many arguments", "svip[:THRESHOLD"]),
        ("adaptive:svip+most=0", ["adaptive: svip: most = 0", "1..64"]),
        ("adaptive:svip+most=2.5", ["most = '2.5' is not a number"]),
        ("adaptive:adaedl+speed=1", ["'speed'", "threshold, most, target, step"]),
    ],
)
def test_errors_say_what_is_wrong_and_what_is_known(spec: str, words: list[str]) -> None:
    with pytest.raises(SchedulerError) as error:
        make_scheduler(spec)
    for word in words:
        assert word in str(error.value)


def test_no_table_of_lengths_is_made_of_such_a_rule() -> None:
    view = make_view()
    with pytest.raises(ValueError, match="stops within a draft"):
        TableBuilder(Axes()).see(view, make_scheduler("svip").decide(view))
