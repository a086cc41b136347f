"""The scheduler for vLLM: what it asks and tells, and, among the slow tests, inside vLLM itself.

The slow ones run in an environment that has vLLM and what dsd_env needs: this one, or that of the interpreter
named by DSD_VLLM_PYTHON. docs/serving.md says what was run so.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsd_env.schedulers.rounds import others_at
from dsd_env.serving import Controller
from dsd_env.serving.engines import EngineError
from dsd_env.serving.engines.session import controller_from_environment
from dsd_env.serving.engines.vllm import Steering
from tests.serving.engines import vllm_run
from tests.serving.engines.samples import Cycle, Witness, engine
from tests.serving.samples import make_bundle

DEPLOYMENT = {
    "step_s": 0.02,
    "token_s": 0.0002,
    "draft_step_s": 0.004,
    "max_num_seqs": 4,
    "gammas": [0, 1, 2, 3, 4],
}


def play(steering, lengths_of, steps, accept):
    """Do what vLLM does in a step, for requests that are all in every batch."""
    drafts = dict.fromkeys(lengths_of, 0)
    made = {name: [] for name in lengths_of}
    for step in range(steps):
        longest = steering.longest_wanted(list(lengths_of))
        steering.step_begins()
        for name, drafted in drafts.items():
            steering.committed(name, drafted, min(drafted, accept(step)) + 1)
        steering.step_ends(sum(drafts.values()) + len(drafts), resident=2, waiting=0, kv_fraction=0.1)
        drafts = {name: min(longest, steering.length(name)) for name in lengths_of}
        for name in lengths_of:
            made[name].append(drafts[name])
    return made


def test_each_request_gets_its_own_length():
    controller = Witness(Cycle((3, 0, 1)), engine())
    steering = Steering(controller, 6, record=True)
    steering.arrive("a", 10)
    steering.arrive("b", 20)
    made = play(steering, ["a", "b"], 7, lambda step: step % 3)
    for name in ("a", "b"):
        assert made[name] == controller.answers[name][1:]
        rounds = steering.rounds[name]
        assert [each.drafted for each in rounds] == [each.asked for each in rounds] == made[name][:-1]
    assert steering.drafted == sum(each.drafted for rows in steering.rounds.values() for each in rows)
    assert steering.accepted == sum(each.accepted for rows in steering.rounds.values() for each in rows)
    request = controller.requests["a"]
    assert request.committed == 1 + sum(each.accepted + 1 for each in steering.rounds["a"])
    assert controller.view("a").drafter.kv_lag_tokens == 1 or not controller.view("a").drafter.available
    assert controller.view("a").candidates[0].kv_lag_tokens == 1
    steering.finish("a")
    steering.finish("a")
    assert list(controller.requests) == ["b"]


def test_whoever_decides_between_two_steps_sees_the_target_as_it_is():
    """As in the simulator: the others are resident, no step is under way, and the report has no age."""
    seen = []

    class Looking(Cycle):
        def decide(self, view):
            seen.append(view.target)
            return super().decide(view)

    steering = Steering(Controller(Looking((2,)), engine()), 4)
    for name in ("a", "b"):
        steering.arrive(name, 10)
    play(steering, ["a", "b"], 3, lambda step: 1)
    last = seen[-1]
    assert (last.running, last.resident, last.queued, last.age_s) == (0, 2, 0, 0.0)
    assert others_at(last) == 1, "a request is none of the others"


def test_decisions_above_what_vllm_drafts_are_cut_and_counted():
    controller = Controller(Cycle((6,)), engine())
    steering = Steering(controller, 4)
    steering.arrive("a", 10)
    assert steering.longest_wanted(["a"]) == 4
    assert steering.longest_wanted(["a"]) == 4, "a decision that no drafts were made for stands"
    assert steering.length("a") == 4
    assert steering.cut == 1


def test_a_prefill_in_pieces_commits_nothing():
    controller = Controller("hf_heuristic", engine())
    steering = Steering(controller, 4, record=True)
    steering.arrive("a", 1000)
    steering.committed("a", 0, 0)
    assert controller.requests["a"].committed == 0
    steering.committed("a", 0, 1)
    assert controller.requests["a"].committed == 1
    assert steering.rounds["a"] == []


def test_strangers_are_let_through():
    steering = Steering(Controller("hf_heuristic", engine()), 4)
    assert steering.longest_wanted(["nobody"]) == 0
    assert steering.length("nobody") == 0
    steering.committed("nobody", 2, 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "DSD_POLICY"),
        ({"DSD_POLICY": "hf_heuristic"}, "DSD_DEPLOYMENT"),
        ({"DSD_POLICY": "hf_heuristic", "DSD_DEPLOYMENT": '{"steps": 1}'}, "describes no deployment"),
        ({"DSD_POLICY": "hf_heuristic", "DSD_DEPLOYMENT": "no_such_scenario"}, "describes no deployment"),
    ],
)
def test_a_wrong_environment_says_what_is_missing(environment, message):
    with pytest.raises(EngineError, match=message):
        controller_from_environment(environment)


def test_the_environment_describes_a_controller(tmp_path):
    environment = {"DSD_POLICY": "hf_heuristic", "DSD_DEPLOYMENT": json.dumps(DEPLOYMENT)}
    assert controller_from_environment(environment).deployment.scenario.max_num_seqs == (4,)
    bundle = make_bundle(tmp_path / "policy")
    assert controller_from_environment({"DSD_POLICY": str(bundle)}).policy is not None


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_the_class_says_so():
    import dsd_env.serving.engines.vllm as adapter

    with pytest.raises(EngineError, match="needs vLLM"):
        _ = adapter.PolicyScheduler


# ---------------------------------------------------------------- inside vLLM


def interpreter() -> str:
    named = os.environ.get("DSD_VLLM_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM: set DSD_VLLM_PYTHON to an interpreter that has it")
    return sys.executable


def run(mode, folder, policy="", deployment="") -> dict:
    out = folder / f"{mode}.json"
    root = Path(vllm_run.__file__).parents[3]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "DSD_POLICY": policy,
        "DSD_DEPLOYMENT": deployment or json.dumps(DEPLOYMENT),
        "DSD_RECORD_ROUNDS": "1",
    }
    done = subprocess.run(
        [interpreter(), vllm_run.__file__, mode, str(folder), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text()) if out.exists() else {}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    interpreter()
    folder = tmp_path_factory.mktemp("vllm")
    run("models", folder)
    return folder, run("plain", folder)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["hf_heuristic", "bundle"])
def test_inside_vllm(plain, tmp_path, policy):
    folder, without = plain
    if policy == "bundle":
        described = engine((0, 1, 2, 3, 4)).scenario
        policy = str(make_bundle(tmp_path / "policy", described, 2))
    found = run("steered", folder, policy)
    assert len(check(found, without)) >= 3, "the policy is too simple to show anything"


@pytest.mark.slow
def test_the_shipped_policy_steers_a_real_pair_inside_vllm(tmp_path, checkout):
    """TinyLlama and stories15M: what `make vllm-demo` shows, without times."""
    interpreter()
    pytest.importorskip("transformers", reason="needs the extra `record`")
    from dsd_env.calibration.acceptance.recording.weights import WeightsError
    from dsd_env.calibration.engine_bench import checkpoints
    from dsd_env.calibration.engine_bench.prompts import coders, questions

    try:
        target, draft = checkpoints.ensure_pair()
    except WeightsError as error:
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    (tmp_path / "target").symlink_to(target)
    (tmp_path / "draft").symlink_to(draft)
    asked = questions(*coders(AutoTokenizer.from_pretrained(target)), vllm_run.PROMPTS)
    (tmp_path / "prompts.json").write_text(json.dumps([list(each.prompt_ids) for each in asked]))
    without = run("plain", tmp_path)
    shipped = checkout / "configs" / "policies" / "vllm_tinyllama"
    found = run("steered", tmp_path, str(shipped / "policy"), str(shipped / "scenario.yaml"))
    assert len(check(found, without)) >= 2, "a policy that always drafts the same is none"
    # Beginnings of stories are what the drafter was trained on, so that many of its drafts are right.
    assert found["accepted"] > 0.1 * found["drafted"] > 0


def check(found, without) -> set[int]:
    """Make sure that a steered run gave the plain text with the policy's lengths; return those lengths."""
    assert found["scheduler"] == "dsd_env.serving.engines.vllm.PolicyScheduler"
    # float32 and greedy: the text is that of plain decoding, token for token.
    assert found["tokens"] == without["tokens"]
    assert all(len(tokens) == vllm_run.TOKENS for tokens in found["tokens"])
    # What vLLM verified is what the controller decided, round by round and request by request.
    assert found["cut"] == 0
    assert found["counts"]["safe"] == found["counts"]["unknown_request"] == 0
    assert len(found["rounds"]) == vllm_run.PROMPTS
    for name, rounds in found["rounds"].items():
        asked = [each[0] for each in rounds]
        assert asked == found["answers"][name][1 : len(asked) + 1]
        assert [each[1] for each in rounds] == asked
    # vLLM's own record of each request, which leaves out rounds without drafts, and its counters agree.
    for own, rounds in zip(found["own"], found["rounds"].values(), strict=True):
        drafting = [each for each in rounds if each[1]]
        assert own["per_step_drafted"] == [each[1] for each in drafting]
        assert own["per_step_accepted"] == [each[2] for each in drafting]
    metrics = found["metrics"]
    assert metrics["vllm:spec_decode_num_draft_tokens"] == found["drafted"]
    assert metrics["vllm:spec_decode_num_accepted_tokens"] == found["accepted"] > 0
    # Every request has ended for the controller too.
    assert found["left"] == 0
    return {each[1] for rounds in found["rounds"].values() for each in rounds}
