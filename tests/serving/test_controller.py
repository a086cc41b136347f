"""The controller: estimators, guard rails, bounds on memory, threads."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dsd_env.control import Site
from dsd_env.laws.constants import ACCEPTANCE_PRIOR
from dsd_env.policy import PolicyError
from dsd_env.scenario import load_scenario
from dsd_env.schedulers import SchedulerError
from dsd_env.serving import (
    ClientJoined,
    Controller,
    ControlMoved,
    Deployment,
    DeploymentError,
    DrafterState,
    DraftKv,
    DraftState,
    GuardConfig,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestQueued,
    RoundVerified,
    RttSample,
    TargetState,
    TelemetryError,
    TokensCommitted,
)
from tests.serving.samples import make_bundle


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def engine(**changes) -> Deployment:
    numbers = {"step_s": 0.02, "token_s": 1e-4, "draft_step_s": 0.002, "max_num_seqs": 64}
    return Deployment.of_engine(**{**numbers, **changes})


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(controller: Controller, name: str = "a", prompt: int = 300) -> None:
    """Let a request arrive at the engine, be admitted and prefilled."""
    controller.observe(RequestArrived(name, prompt, target="engine"))
    controller.decide(name)
    controller.observe(TokensCommitted(name))


def test_importing_it_loads_neither_torch_nor_numba_nor_a_web_framework(checkout: Path) -> None:
    program = (
        "import sys, dsd_env.serving; "
        "print([m for m in ('torch', 'numba', 'fastapi', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_a_round_teaches(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    answer = controller.decide("a")
    assert (answer.gamma, answer.site, answer.target, answer.model) == (4, "colocated", "engine", "draft")
    clock.now_s = 0.5
    controller.observe(RoundVerified("a", drafted=4, accepted=3))
    request = controller.view("a").request
    weight = controller.deployment.scenario.protocol.stats_window
    assert request.committed_tokens == 1 + 4
    assert request.acceptance_rate == pytest.approx(ACCEPTANCE_PRIOR + weight * (0.75 - ACCEPTANCE_PRIOR))
    assert request.recent_gammas == (4, 0, 0, 0) and request.recent_accepted == (3, 0, 0, 0)
    assert (request.rounds, request.is_admission) == (1, False)
    # The newest token and the last draft accepted, which the drafter has not processed.
    assert controller.view("a").candidates[0].kv_lag_tokens == 1
    assert controller.decide("a").gamma == 3


def test_missing_fields_take_their_defaults(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    before = controller.view("a").target
    controller.observe(TargetState(queued=3))
    after = controller.view("a").target
    assert (after.queued, after.iteration_s, after.up) == (3, before.iteration_s, True)
    assert before.resident == after.resident == 1  # the one that the controller knows
    controller.observe(IterationDone(duration_s=0.06, new_tokens=10))
    assert before.iteration_s < controller.view("a").target.iteration_s < 0.06
    controller.observe(TargetState(iteration_s=0.5, resident=7))
    controller.observe(IterationDone(duration_s=0.06))
    assert controller.view("a").target.iteration_s == 0.5
    assert controller.view("a").target.resident == 7


def test_round_trips_are_told_apart_by_how_far_their_target_is(clock: Clock) -> None:
    scenario = load_scenario("metro_sync", targets__cloud__extra_one_way_s=0.1)
    controller = Controller("edge_sd:4", Deployment.of(scenario), clock=clock)
    controller.observe(ClientJoined("phone", device_class="laptop"))
    controller.observe(RequestArrived("a", 100, client="phone", slo=None))
    before = controller.view("a")
    own = next(each for each in before.candidates if each.site == Site.OWN_DEVICE)
    assert before.link.rtt_s == own.rtt_s == pytest.approx(0.02 + 0.2)
    controller.observe(RequestQueued("a"))
    for n in range(200):
        target = None if n % 2 else controller.deployment.targets[0]
        controller.observe(RttSample("phone", 0.27, target=target))
    assert controller.view("a").link.rtt_s == pytest.approx(0.27)
    assert not controller.moved
    controller.observe(RttSample("phone", 0.1))  # faster than the way there and back
    assert 0.2 < controller.view("a").link.rtt_s < 0.27
    assert controller.moved == {"RttSample.rtt_s": 1}
    with pytest.raises(TelemetryError, match="nowhere"):
        controller.observe(RttSample("phone", 0.1, target="nowhere"))


def test_links_drafters_and_streams_reach_the_view(clock: Clock) -> None:
    controller = Controller("edge_sd:4", "metro_sync", clock=clock)
    controller.observe(ClientJoined("phone", device_class="laptop", downlink_one_way_s=0.004))
    controller.observe(RequestArrived("a", 100, client="phone", slo=None))
    controller.observe(RttSample("phone", 0.5))
    controller.observe(LinkState("phone", up=False, uplink_bits_per_s=1e6, lost=True))
    controller.observe(DrafterState(client="phone", jobs=3, job_s=1.0))
    controller.observe(DraftState("a", head_start_tokens=2, window_tokens=8, lead_tokens=5, generations=2))
    view = controller.view("a")
    assert view.link.rtt_s > 0.03 and view.link.up is False and view.link.uplink_bits_per_s == 1e6
    assert 0.0 < view.link.loss < 1.0
    assert view.drafter.jobs == 3
    assert (view.request.window_tokens, view.request.lead_tokens, view.request.head_start_tokens) == (8, 5, 2)
    answer = controller.decide("a")
    assert answer.site == "own_device" and answer.target in controller.deployment.targets
    controller.observe(RequestQueued("a"))
    controller.observe(TokensCommitted("a"))
    controller.observe(DraftKv("a", 40))
    assert controller.view("a").drafter.kv_lag_tokens == 100 + 1 - 40
    controller.observe(ControlMoved("a", "edge_server"))
    assert controller.view("a").request.control_site == 2


def test_numbers_out_of_range_are_moved_counted_and_said_once(clock: Clock, caplog) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    with caplog.at_level(logging.WARNING, logger="dsd_env.serving"):
        for value in (1e9, -5.0, float("nan"), float("inf")):
            controller.observe(TargetState(kv_fraction=value, remaining_s=0.1))
    assert [record.field for record in caplog.records] == ["TargetState.kv_fraction"]
    assert controller.moved == {"TargetState.kv_fraction": 4}
    assert 0.0 <= controller.view("a").target.kv_fraction <= 1.0
    controller.observe(RoundVerified("a", drafted=2, accepted=50))
    assert controller.view("a").request.recent_accepted[0] == 2
    assert np.isfinite(controller.observation("a")).all()


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (RoundVerified("a", drafted="4", accepted=1), "drafted = '4' must be a number"),
        (RoundVerified("a", drafted=True, accepted=1), "drafted = True must be a number"),
        (RoundVerified("a", drafted=1.5, accepted=1), "drafted = 1.5 must be a whole number"),
        (RequestArrived(7), "request = 7 must be a text"),
        (RequestArrived("x" * 300), "must be a text of at most 200 characters"),
        (TargetState(up=1), "up = 1 must be true or false"),
        (TargetState("moon"), "target 'moon' is not in the deployment: engine"),
        (RequestArrived("b", slo="gold"), "slo 'gold' is not a class of: default"),
        (ControlMoved("a", "moon"), "site 'moon' is not one of colocated"),
        (DrafterState(edge_server=3), "edge_server 3 is not among the 0"),
        (RoundVerified("a", 1, 1, model="x"), "model 'x' is not a draft model of: draft"),
        (ClientJoined("c", device_class="x"), "device_class 'x' is not in the deployment: client"),
        ("text", "str is no observation"),
    ],
)
def test_what_is_of_the_wrong_type_or_unknown_is_refused(event, message: str, clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    with pytest.raises(TelemetryError, match=message.replace("(", r"\(")):
        controller.observe(event)
    assert controller.decide("a").source == "rule"


def test_numpy_numbers_are_numbers(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    controller.observe(RoundVerified("a", np.int64(4), np.int32(2), confidence=np.float32(0.5)))
    assert controller.view("a").request.recent_gammas[0] == 4


def test_an_unknown_request_decodes_plainly(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    answer = controller.decide("nobody")
    assert (answer.gamma, answer.target, answer.reason) == (0, "engine", "unknown_request")
    controller.observe(RoundVerified("nobody", 4, 4))
    assert controller.counts["unknown_request"] == 2


def test_an_answer_asked_for_twice_is_given_twice(clock: Clock) -> None:
    controller = Controller("random", engine(), clock=clock)
    started(controller)
    first = controller.decide("a", counter=1)
    assert controller.decide("a", counter=1) is first
    assert controller.decide("a", counter=2).counter == 2


# ---------------------------------------------------------------------- guard rails


class Broken:
    """A scheduler that fails, or takes its time."""

    name = "broken"

    def __init__(self, clock: Clock) -> None:
        self.fault: Exception | None = None

    def reset(self, scenario, seed) -> None: ...

    def decide(self, view):
        from dsd_env.control import Decision

        if self.fault is not None:
            raise self.fault
        return Decision(2, 1, 0)


@pytest.mark.parametrize("fault", [RuntimeError("no"), FloatingPointError("nan"), KeyError(3)])
def test_trouble_goes_to_the_safe_rule_once_said_and_back(fault, clock: Clock, caplog) -> None:
    scheduler = Broken(clock)
    guard = GuardConfig(safe_rule="colocated_sd:1", streak=3, retry_s=5.0)
    controller = Controller(scheduler, engine(), guard=guard, clock=clock)
    started(controller)
    assert controller.decide("a").source == "rule"
    scheduler.fault = fault
    reason = "not_finite" if isinstance(fault, FloatingPointError) else "error"
    with caplog.at_level(logging.WARNING, logger="dsd_env.serving"):
        for _ in range(20):
            answer = controller.decide("a")
            assert (answer.source, answer.gamma, answer.reason) == ("safe_rule", 1, reason)
        assert not controller.guard.trusted
        assert controller.stats()["trips"][reason] == 1
        scheduler.fault = None
        assert controller.decide("a").source == "safe_rule"  # not yet
        clock.now_s = 6.0
        controller.observe(TargetState())
        assert controller.decide("a").source == "rule"
    assert [record.message for record in caplog.records] == [
        "policy left for the safe rule",
        "policy recovered",
    ]


def test_slow_decisions_are_time_outs(clock: Clock) -> None:
    guard = GuardConfig(budget_s=1e-9, streak=4)
    controller = Controller("hf_heuristic", engine(), guard=guard, clock=clock)
    started(controller)
    sources = [controller.decide("a").source for _ in range(5)]
    # The admission was the first slow one.
    assert sources == ["rule", "rule", "safe_rule", "safe_rule", "safe_rule"]
    assert controller.guard.reason == "time_out"


def test_repeated_nonsense_ends_the_trust_and_one_does_not(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), guard=GuardConfig(streak=3), clock=clock)
    started(controller)
    for _ in range(2):
        controller.observe(TargetState(queued=-7))
        assert controller.decide("a").source == "rule"
    assert controller.decide("a").source == "rule"
    assert controller.guard.trusted
    for _ in range(3):
        controller.observe(RoundVerified("a", 4, -1))
        answer = controller.decide("a")
    assert (answer.source, answer.reason) == ("safe_rule", "out_of_range")


def test_old_telemetry_is_seen_less_old_and_ends_the_trust(clock: Clock) -> None:
    guard = GuardConfig(streak=3, stale_s=2.0, retry_s=4.0)
    controller = Controller("hf_heuristic", engine(), guard=guard, clock=clock)
    started(controller)
    controller.observe(TargetState(resident=1))
    clock.now_s = 100.0
    assert [controller.decide("a").source for _ in range(4)] == ["rule", "rule", "safe_rule", "safe_rule"]
    assert controller.guard.reason == "stale"
    clock.now_s = 110.0
    controller.observe(TargetState(resident=1))
    assert controller.decide("a").source == "rule"


def test_late_reports_do_not_undo_newer_ones(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    clock.now_s = 10.0
    started(controller)
    controller.observe(TargetState(queued=5, time_s=9.0))
    controller.observe(TargetState(queued=1, time_s=8.0))
    assert controller.view("a").target.queued == 5
    assert controller.counts["out_of_order"] == 1
    assert controller.view("a").target.age_s == 1.0


def test_times_ahead_of_the_clock_count_as_now(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock)
    started(controller)
    controller.observe(TargetState(queued=5, time_s=1e9))
    assert controller.decide("a", now_s=1e11).source == "rule"
    assert (controller.counts["ahead"], controller.counts["forgotten"]) == (2, 0)
    assert controller.view("a").target.queued == 5


@pytest.mark.parametrize("changes", [{"budget_s": 0.0}, {"streak": 0}, {"stale_s": float("nan")}])
def test_impossible_guard_rails(changes) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        GuardConfig(**changes)


# ---------------------------------------------------------------------- policies


def test_a_bundle_needs_no_description_and_decides_as_in_the_simulator(tmp_path: Path, clock: Clock) -> None:
    from dsd_env.schedulers import make_scheduler

    bundle = make_bundle(tmp_path / "policy")
    controller = Controller(bundle, clock=clock)
    scheduler = make_scheduler(f"policy:{bundle}")
    scheduler.reset(load_scenario("single_lan"), 0)
    controller.observe(RequestArrived("a", 200, target="target"))
    controller.decide("a")
    controller.observe(TokensCommitted("a"))
    rng = np.random.default_rng(0)
    for _ in range(50):
        clock.now_s += 0.05
        wanted = scheduler.decide(controller.view("a"))
        answer = controller.decide("a")
        assert answer.source == "policy"
        assert (answer.gamma, answer.placement) == (wanted.gamma, wanted.placement)
        controller.observe(RoundVerified("a", 4, int(rng.integers(5))))


def test_a_bundle_must_fit(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "policy")
    with pytest.raises(PolicyError, match="does not fit the deployment"):
        Controller(bundle, "metro_sync")
    with pytest.raises(DeploymentError, match="a rule needs a deployment"):
        Controller("hf_heuristic")
    own = load_scenario({**load_scenario("single_lan").model_dump(), "name": "elsewhere"})
    with pytest.raises(DeploymentError, match="'elsewhere', which is not a shipped scenario"):
        Controller(make_bundle(tmp_path / "own", own))
    assert Controller(make_bundle(tmp_path / "own2", own), own).policy is not None


def test_exchanging_what_decides_keeps_what_is_known(tmp_path: Path, clock: Clock) -> None:
    controller = Controller(make_bundle(tmp_path / "a"), clock=clock)
    controller.observe(RequestArrived("a", 200, target="target"))
    assert controller.decide("a").source == "policy"
    assert controller.swap("cloud_ar") == f"policy:{tmp_path / 'a'}"
    assert controller.decide("a").source == "rule"
    with pytest.raises(PolicyError):
        controller.swap(tmp_path / "nothing")
    with pytest.raises(SchedulerError, match="tells a length, or a threshold"):
        controller.swap("svip")
    assert controller.decide("a") == controller.decide("a")._replace(counter=2)


# ---------------------------------------------------------------------- memory and threads


def life(controller: Controller, name: str, *, ends: bool) -> None:
    controller.observe(RequestArrived(name, 100, client=name, target="engine"))
    controller.decide(name)
    controller.observe(TokensCommitted(name))
    controller.decide(name)
    controller.observe(RoundVerified(name, 4, 2))
    if ends:
        controller.observe(RequestFinished(name, met_slo=True))


def grown_bytes(controller: Controller, clock: Clock, lives: int, step_s: float) -> int:
    """Return by how much memory has grown over the second half of so many requests."""
    sizes = []
    tracemalloc.start()
    for half in range(2):
        for i in range(lives // 2):
            clock.now_s += step_s
            life(controller, f"{half}-{i}", ends=i % 3 > 0)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return sizes[1] - sizes[0]


def test_memory_is_bounded_by_number_and_by_age(clock: Clock) -> None:
    few = Controller("hf_heuristic", engine(), clock=clock, max_requests=50, max_clients=60)
    assert grown_bytes(few, clock, 400, 0.0) < 20_000
    assert len(few.requests) <= 50 and few.stats()["clients"] == 60
    young = Controller("hf_heuristic", engine(), clock=clock, forget_s=10.0)
    assert grown_bytes(young, clock, 400, 0.5) < 40_000
    assert len(young.requests) <= 10 and young.stats()["clients"] <= 25
    assert young.stats()["forgotten"] > 100


def test_a_request_that_is_forgotten_is_not_known_to_the_decision_that_comes_then(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock, forget_s=10.0)
    started(controller)
    started(controller, "b")
    clock.now_s = 20.0
    assert controller.decide("a").reason == "unknown_request"
    assert controller.decide_many(["a", "b"])[1].reason == "unknown_request"
    assert controller.counts["forgotten"] == 2


@pytest.mark.slow
def test_memory_over_many_decisions(clock: Clock) -> None:
    controller = Controller("hf_heuristic", engine(), clock=clock, max_requests=200, max_clients=200)
    assert grown_bytes(controller, clock, 4_000, 0.01) < 50_000
    for name in ("a", "b"):
        started(controller, name)
    tracemalloc.start()
    before = 0
    for i in range(100_000):
        if i == 10_000:
            before = tracemalloc.get_traced_memory()[0]
        clock.now_s += 0.001
        controller.decide("ab"[i % 2])
        if i % 10 == 0:
            controller.observe(RoundVerified("ab"[i % 2], 4, i % 5))
    assert tracemalloc.get_traced_memory()[0] - before < 20_000
    tracemalloc.stop()


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    controller = Controller(make_bundle(tmp_path / "policy"))
    failures: list[BaseException] = []
    answers = []

    def work(thread: int) -> None:
        try:
            for i in range(40):
                name = f"{thread}-{i}"
                controller.observe(RequestArrived(name, 100, target="target"))
                controller.decide(name)
                controller.observe(TokensCommitted(name))
                for _ in range(3):
                    answers.append(controller.decide(name).source)
                    controller.observe(RoundVerified(name, 4, 2))
                controller.observe(RequestFinished(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(answers) == {"policy"} and len(answers) == 480
    assert controller.stats()["requests"] == 0
    assert controller.counts["decisions"] == 4 * 40 * 4
