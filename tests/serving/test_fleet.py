"""Plans in the controller and the service: when they are made, guard rails, exchange, tensors, figures."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env.control.fleet import FleetError, FleetSpace
from dsd_env.policy import Policy, PolicyError, load
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.serving import (
    ClientJoined,
    Controller,
    Deployment,
    GuardConfig,
    NoPlanError,
    RequestArrived,
    RequestFinished,
    RequestQueued,
    RoundVerified,
    RttSample,
    TargetState,
    TokensCommitted,
)
from dsd_env.serving.engines.session import EngineSession
from dsd_env.serving.service import Service
from tests.scenarios import tiny
from tests.serving.samples import call, make_bundle, make_fleet_bundle
from tests.serving.test_fleet_parity import CLASSES


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def scenario(**changes: Any) -> Scenario:
    return tiny(**{**CLASSES, **changes})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_fleet_bundle(tmp_path / "bundle", FleetSpace(scenario(), 0.5))


def controller_of(policy: Any, clock: Clock, **settings: Any) -> Controller:
    return Controller(policy, scenario(), clock=clock, **settings)


def started(controller: Controller, name: str = "a", **how: Any) -> None:
    """Let a request arrive, be admitted and prefilled."""
    controller.observe(RequestArrived(name, 100, **how))
    target = controller.decide(name).target
    controller.observe_many([RequestQueued(name, target), TokensCommitted(name)])


class Fixed:
    """A policy whose plan is given by hand; or that fails, or sees what is not finite."""

    def __init__(self, policy: Policy, action: Any) -> None:
        self._policy, self.action, self.asked = policy, action, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def choose(self, observation: Any, mask: Any) -> Any:
        self.asked += 1
        if isinstance(self.action, Exception):
            raise self.action
        return self.action


def fix(controller: Controller, action: Any) -> Fixed:
    planner = controller._planner
    assert planner is not None
    fixed = Fixed(planner.policy, action)
    planner.policy = fixed  # type: ignore[assignment]
    return fixed


def choices(controller: Controller, gamma: int, batch: int, place: str) -> Any:
    assert controller.fleet_space is not None
    return controller.fleet_space.uniform(f"{gamma}/{batch}/{place}").ravel()


# ---------------------------------------------------------------------- plans


def test_a_plan_is_made_for_the_first_decision_of_a_period_and_held_until_the_next(
    bundle: Path, clock: Clock
) -> None:
    controller = controller_of(bundle, clock)
    fixed = fix(controller, choices(controller, 4, 2, "colocated"))
    clock.now_s = 0.2
    started(controller)
    assert fixed.asked == 1 and controller.counts["plans"] == 1
    answer = controller.decide("a")
    assert (answer.gamma, answer.batch_size, answer.site, answer.source) == (4, 2, "colocated", "policy")
    fixed.action = choices(controller, 0, 1, "edge")
    clock.now_s = 0.499
    assert controller.decide("a").gamma == 4 and fixed.asked == 1
    clock.now_s = 0.5
    assert controller.decide("a").gamma == 0 and fixed.asked == 2
    # Nobody asks for a while: the period is that of the clock, not of the last plan.
    clock.now_s = 7.3
    controller.decide("a")
    assert controller.plan().due_s == 7.5 and fixed.asked == 3


def test_groups_have_choices_of_their_own(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock)
    space = controller.fleet_space
    assert space is not None
    of_group = {
        name: (2, 1, "colocated") if "batch" in name else (0, 1, "edge") for name in space.group_names
    }
    fix(controller, space.action(list(of_group.values())))
    started(controller, "a", slo="batch")
    started(controller, "b", slo="chat")
    assert (controller.decide("a").gamma, controller.decide("b").gamma) == (2, 0)
    plan = controller.plan()
    assert {group.group: group.gamma for group in plan.groups} == {
        name: gamma for name, (gamma, _, _) in of_group.items()
    }
    assert plan.words.startswith("phone/chat=0/1/plain+phone/batch=2/1/colocated")


def test_what_is_seen_of_the_fleet(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock)
    controller.observe(ClientJoined("mine", number=2))
    started(controller, "a", slo="batch", client="mine")
    started(controller, "b", slo="batch", client="mine")
    controller.observe(RoundVerified("a", drafted=4, accepted=4, model="draft"))
    for _ in range(200):
        controller.observe(RttSample("mine", 0.25))
    view, space = controller.fleet_view(), controller.fleet_space
    assert space is not None
    groups = dict(zip(space.group_names, view.groups, strict=True))
    name = next(group.name for group in space.groups if 2 in group.devices and group.slo_classes == (1,))
    seen = groups.pop(name)
    assert seen.active_requests == 2.0 and seen.first_token_due == 0.0
    assert seen.context_tokens == pytest.approx((101 + 5 + 101) / 2)
    assert seen.acceptance_mean > 0.6 and seen.acceptance_spread == 0.0
    assert all(each.active_requests == 0.0 for each in groups.values())
    devices = next(group.devices for group in space.groups if group.name == name)
    nominal_s = Controller(bundle, scenario()).fleet_view().groups[space.group_names.index(name)].rtt_s
    assert seen.rtt_s == pytest.approx((nominal_s * (len(devices) - 1) + 0.25) / len(devices), rel=0.05)
    # A request whose last token is committed is no load any more, though its client waits for the answer.
    controller.observe(RoundVerified("a", drafted=4, accepted=1, model="draft", last=True))
    again = controller.fleet_view().groups[space.group_names.index(name)]
    assert again.active_requests == 1.0
    controller.observe_many([RequestFinished("a", met_slo=True), RequestFinished("b", met_slo=True)])
    assert controller.fleet_view().groups[space.group_names.index(name)].active_requests == 0.0


def test_a_request_that_waits_at_an_engine_is_seen_and_counted_once(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock)
    controller.observe(RequestArrived("a", 100, target="big"))
    controller.decide("a")
    assert sum(group.first_token_due for group in controller.fleet_view().groups) == 0.0
    controller.observe(RequestQueued("a"))
    assert sum(group.first_token_due for group in controller.fleet_view().groups) == 1.0
    other = controller_of(bundle, clock)
    other.observe_many([RequestArrived("a", 100), RequestQueued("a", "big")])
    clock.now_s = 1.0
    assert controller.fleet_view().system.arrivals_per_s == other.fleet_view().system.arrivals_per_s > 0.0


def test_requests_of_no_group_decode_plainly(tmp_path: Path, clock: Clock) -> None:
    slos = {"slo": {**CLASSES["slo"], "unused": {"ttft_s": 9.0, "tpot_s": 0.9}}}
    made = scenario(**slos)
    controller = Controller(make_fleet_bundle(tmp_path / "b", FleetSpace(made, 0.5)), made, clock=clock)
    fix(controller, choices(controller, 4, 1, "colocated"))
    started(controller, "a", slo="unused")
    started(controller, "b", slo="chat")
    answer = controller.decide("a")
    assert (answer.gamma, answer.source, answer.reason) == (0, "safe_rule", "no_group")
    assert (controller.decide("b").source, controller.decide("b").reason) == ("policy", "")
    assert sum(group.active_requests for group in controller.fleet_view().groups) == 1.0


def test_the_scheduler_made_of_a_bundle_is_taken_as_the_bundle(bundle: Path, clock: Clock) -> None:
    for policy in (bundle, f"policy:{bundle}", load(bundle), make_scheduler(f"policy:{bundle}")):
        controller = controller_of(policy, clock)
        assert controller.fleet_space is not None and controller.policy is not None
    rule = controller_of("cloud_ar", clock)
    assert rule.fleet_space is None
    with pytest.raises(NoPlanError, match="makes no plans"):
        rule.plan()


def test_a_bundle_that_does_not_fit_is_refused(bundle: Path, clock: Clock) -> None:
    with pytest.raises(PolicyError, match=r"does not fit the deployment .*its groups are"):
        Controller(bundle, "single_lan")
    with pytest.raises(FleetError, match="must be 'plain' or G/B/PLACE"):
        controller_of(bundle, clock, guard=GuardConfig(safe_plan="4"))
    with pytest.raises(FleetError, match="speculation length 5 is not one of"):
        controller_of(bundle, clock, guard=GuardConfig(safe_plan="5/1/edge"))


def test_an_engine_with_an_adapter_follows_the_plan(tmp_path: Path, clock: Clock) -> None:
    deployment = Deployment.of_engine(step_s=0.02, token_s=1e-4, draft_step_s=0.002, max_num_seqs=8)
    space = FleetSpace(deployment.scenario, 0.5)
    bundle = make_fleet_bundle(tmp_path / "engine", space, wanted=[(3, 1, "colocated")])
    controller = Controller(bundle, deployment, clock=clock)
    session = EngineSession(controller, "a", prompt_tokens=100)
    session.begin()
    for _ in range(3):
        clock.now_s += 0.3
        assert session.ask() == 3
        session.report(3, 2)
    assert controller.fleet_view().groups[0].active_requests == 1.0
    session.close(met_slo=True)
    assert controller.counts["plans"] == 2 and session.elsewhere == 0


# ---------------------------------------------------------------------- guard rails


def _late(clock: Clock) -> GuardConfig:
    return GuardConfig(safe_plan="1/1/colocated", streak=3, retry_s=5.0, stale_s=1.0)


@pytest.mark.parametrize("trouble", ["error", "not_finite", "time_out", "out_of_range", "stale"])
def test_trouble_brings_the_safe_plan_and_then_the_policy_back(
    trouble: str, bundle: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    controller = controller_of(bundle, clock, guard=_late(clock))
    fixed = fix(controller, choices(controller, 4, 1, "colocated"))
    clock.now_s = 0.1
    started(controller)
    target = controller.decide("a").target

    def period(bad: bool) -> tuple[int, str, str]:
        clock.now_s += 0.5
        good = choices(controller, 4, 1, "colocated")
        fixed.action = ValueError("broken") if bad and trouble == "error" else good
        if trouble == "not_finite":
            planner = controller._planner
            assert planner is not None
            observation = np.full(3, np.nan) if bad else np.zeros(3)
            monkeypatch.setattr(planner._encoder, "encode", lambda view: observation)
        if trouble == "time_out":
            budget_s = 1e-9 if bad else 10.0
            monkeypatch.setattr(
                controller.guard, "config", GuardConfig(budget_s=budget_s, streak=3, retry_s=5.0)
            )
        if trouble == "out_of_range" and bad:
            controller.observe(TargetState(target, kv_fraction=7.0))
        elif trouble != "stale" or not bad:
            controller.observe(TargetState(target, up=True))
        else:
            clock.now_s += 1.5
        answer = controller.decide("a")
        return answer.gamma, answer.source, answer.reason

    assert period(bad=False) == (4, "policy", "")
    with caplog.at_level(logging.WARNING, logger="dsd_env.serving"):
        at_once = trouble in ("error", "not_finite")
        for _ in range(2):
            assert period(bad=True) == ((1, "safe_plan", trouble) if at_once else (4, "policy", ""))
        assert period(bad=True) == (1, "safe_plan", trouble)
        assert period(bad=False) == (1, "safe_plan", trouble)
        asked = fixed.asked
        assert period(bad=False) == (1, "safe_plan", trouble) and fixed.asked == asked
        clock.now_s += 5.0
        assert period(bad=False) == (4, "policy", "")
    messages = [record.message for record in caplog.records if "policy" in record.message]
    assert messages == ["policy left for the safe rule", "policy recovered"]
    assert controller.counts["safe_plans"] == (5 if at_once else 3) == controller.counts["safe"]
    assert controller.stats()["trips"][trouble] == 1


def test_one_client_with_bad_numbers_among_many_does_not_end_the_trust(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock, guard=_late(clock))
    for name in "abc":
        started(controller, name)
    for _ in range(30):
        clock.now_s += 0.5
        controller.observe_many(
            [RoundVerified("a", 4, 3, confidence=9.0, model="draft"), TargetState(up=True)]
            + [TargetState(name, up=True) for name in controller.deployment.targets]
        )
        controller.decide("a")
    assert controller.guard.trusted and controller.counts["safe_plans"] == 0


def test_an_idle_fleet_is_not_stale(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock, guard=_late(clock))
    for _ in range(30):
        clock.now_s += 60.0
        started(controller)
        controller.observe(RequestFinished("a"))
    assert controller.guard.trusted and controller.counts["safe_plans"] == 0


def test_what_fails_before_the_policy_is_asked_brings_the_safe_plan(
    bundle: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = controller_of(bundle, clock, guard=_late(clock))

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(controller._state, "fleet", broken)
    started(controller)
    answer = controller.decide("a")
    assert (answer.gamma, answer.source, answer.reason) == (1, "safe_plan", "error")


# ---------------------------------------------------------------------- threads, memory, exchange


def test_threads_share_one_plan_and_nothing_is_lost(bundle: Path) -> None:
    controller = Controller(bundle, scenario())
    problems: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(60):
                each = f"{name}{number}"
                started(controller, each)
                assert controller.decide(each).source == "policy"
                controller.observe(RequestFinished(each))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert controller.counts["decisions"] == 4 * 60 * 2
    assert controller.counts["plans"] == controller.plan().number


def test_nothing_grows(bundle: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock, max_requests=50, max_clients=50)
    tracemalloc.start()
    sizes = []
    for stage in range(4):
        for number in range(400):
            clock.now_s += 0.3
            started(controller, f"{stage}.{number}", client=f"c{stage}.{number}")
            controller.decide(f"{stage}.{number}")
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[3] - sizes[2] < 20_000, sizes
    assert controller.counts["plans"] > 700


def test_a_plan_outlives_the_exchange_of_the_bundle(bundle: Path, tmp_path: Path, clock: Clock) -> None:
    controller = controller_of(bundle, clock)
    fix(controller, choices(controller, 4, 2, "colocated"))
    started(controller)
    planner = controller._planner
    assert planner is not None
    other = make_fleet_bundle(tmp_path / "other", FleetSpace(scenario(), 0.25), seed=5)
    controller.swap(other)
    assert controller._planner is not planner and controller._planner is not None
    np.testing.assert_array_equal(controller._planner.plan, planner.plan)
    controller.decide("a")
    assert controller.plan().number == 2 and controller.plan().due_s == 0.25
    # Either kind of bundle, and a rule, can follow: the estimators are the same.
    controller.swap(make_bundle(tmp_path / "single", scenario()))
    assert controller.decide("a").source == "policy" and controller.fleet_space is None
    controller.swap("cloud_ar")
    assert controller.decide("a").source == "rule"
    controller.swap(bundle)
    assert controller.decide("a").source == "policy" and controller.fleet_space is not None


# ---------------------------------------------------------------------- the service

pytest.importorskip("fastapi")
from dsd_env.serving.app import create_app  # noqa: E402

ARRIVED = {"type": "RequestArrived", "request": "a", "prompt_tokens": 200, "target": "big"}


@pytest.fixture
def service(bundle: Path) -> Service:
    return Service(Controller(bundle, scenario()), path=bundle)


def test_the_service_decides_by_the_plan_and_tells_it(service: Service) -> None:
    app = create_app(service)
    body = {"events": [ARRIVED], "requests": ["a"]}
    decided = call(app, "POST", "/v1/decide", body).json["decisions"][0]
    assert decided["source"] == "policy"
    plan = call(app, "GET", "/v1/plan").json
    space = service.controller.fleet_space
    assert space is not None
    assert [group["group"] for group in plan["groups"]] == list(space.group_names)
    assert plan["source"] == "policy" and plan["number"] >= 1 and plan["due_s"] > plan["made_s"]
    metrics = call(app, "GET", "/metrics").body.decode()
    first = plan["groups"][0]
    assert f'dsd_plan_gamma{{group="phone/chat",place="{first["place"]}"}} {first["gamma"]}\n' in metrics
    assert "\ndsd_plans_total " in metrics and "\ndsd_safe_plans_total 0\n" in metrics
    assert call(app, "POST", "/v1/plan").status == 405


def test_its_tensors_are_those_of_the_fleet(service: Service) -> None:
    app, space = create_app(service), service.controller.fleet_space
    assert space is not None
    told = call(app, "GET", "/v2/models/scheduler").json
    n_features = len(service.tensors.manifest.observation)
    assert [(each["name"], each["shape"]) for each in told["inputs"]] == [
        ("observation", [-1, n_features]),
        ("mask", [-1, sum(space.nvec)]),
    ]
    assert [(each["name"], each["shape"]) for each in told["outputs"]] == [
        ("actions", [-1, len(space.nvec)]),
        ("plans", [-1, len(space.nvec)]),
    ]
    assert told["parameters"]["groups"] == list(space.group_names)
    assert told["parameters"]["control_period_s"] == 0.5
    observations = np.random.default_rng(1).uniform(size=(3, n_features)).astype(np.float32)
    inputs = {
        "name": "observation",
        "datatype": "FP32",
        "shape": [3, n_features],
        "data": observations.ravel().tolist(),
    }
    reply = call(app, "POST", "/v2/models/scheduler/infer", {"inputs": [inputs]})
    assert reply.status == 200, reply.body
    actions, plans = reply.json["outputs"]
    policy = service.tensors
    expected = [policy.choose(each, space.mask) for each in observations]
    assert actions["data"] == np.ravel(expected).tolist() and actions["shape"] == [3, len(space.nvec)]
    meant = np.reshape(plans["data"], (3, len(space.groups), 3))
    for row, action in zip(meant.tolist(), expected, strict=True):
        said = [
            (c.gamma, c.batch_size, space.places.index(c.place)) for c in space.choices(space.plan(action))
        ]
        assert [tuple(each) for each in row] == said
    only = {"inputs": [inputs], "outputs": [{"name": "plans"}]}
    assert [o["name"] for o in call(app, "POST", "/v2/models/scheduler/infer", only).json["outputs"]] == [
        "plans"
    ]
    wrong = {"inputs": [inputs], "outputs": [{"name": "decisions"}]}
    reply = call(app, "POST", "/v2/models/scheduler/infer", wrong)
    assert reply.status == 400 and "known are actions, plans" in reply.json["error"]


def test_reloading_takes_a_bundle_of_the_same_kind_alone(service: Service, bundle: Path) -> None:
    app = create_app(service)
    digest = service.digest
    make_fleet_bundle(bundle, FleetSpace(scenario(), 0.25), seed=7, overwrite=True)
    assert call(app, "POST", "/v1/reload").status == 200
    assert service.controller.fleet_space is not None
    assert service.controller.fleet_space.control_period_s == 0.25
    assert call(app, "POST", "/v1/rollback").json["sha256"] == digest
    make_fleet_bundle(bundle, FleetSpace(scenario(), 0.5, "slo"), overwrite=True)
    reply = call(app, "POST", "/v1/reload")
    assert reply.status == 409 and "plans for the groups ['chat', 'batch']" in reply.json["error"]
    make_bundle(bundle, scenario(), overwrite=True)
    reply = call(app, "POST", "/v1/reload")
    assert reply.status == 409 and "one of decisions on single requests" in reply.json["error"]
    assert service.digest == digest and service.controller.fleet_space.control_period_s == 0.5
    single = Service(Controller(make_bundle(bundle, scenario(), overwrite=True), scenario()), path=bundle)
    make_fleet_bundle(bundle, FleetSpace(scenario(), 0.5), overwrite=True)
    reply = call(create_app(single), "POST", "/v1/reload")
    assert reply.status == 409 and "one of the fleet view" in reply.json["error"]
    assert call(create_app(single), "GET", "/v1/plan").status == 409
