"""Steps for SGLang: calls like those of its controller, and its released sources where they can be had."""

import ast
import importlib.util
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from dsd_env.serving import Controller
from dsd_env.serving.engines import EngineError
from dsd_env.serving.engines import sglang as adapter
from dsd_env.serving.engines.sglang import ControllerSteps, PolicySteps, TableSteps
from tests.schedulers.test_table import table
from tests.serving.engines.samples import Cycle, engine

VERSION = "0.5.23"
#: The methods of SGLang's protocol `AdaptiveSpecPolicy`, with their parameters.
PROTOCOL = {
    "candidate_steps": ["self"],
    "set_cuda_graph_bs": ["self", "cuda_graph_bs"],
    "get_steps_for_batch": ["self", "batch_size"],
    "on_verify_complete": ["self", "num_correct_drafts_per_req", "batch_size"],
    "cuda_graph_bs_for_step": ["self", "step"],
}
#: What SGLang makes its policy with.
MADE_WITH = ["self", "initial_steps", "cfg_path"]


class AdaptiveController:
    """Calls a policy as SGLang's controller of that name does; a step that was not prepared is an error."""

    def __init__(self, policy, initial_steps, sizes=None):
        self.policy, self.steps = policy, initial_steps
        policy.set_cuda_graph_bs(sizes)
        self.graphs = {step: policy.cuda_graph_bs_for_step(step) for step in policy.candidate_steps}
        self.activate(initial_steps)

    def activate(self, steps):
        assert steps in self.graphs
        self.steps = steps

    def batch(self, size, accepted):
        self.activate(self.policy.get_steps_for_batch(size))
        if self.graphs[self.steps] is not None:
            assert padded(size) in self.graphs[self.steps]
        drafted = self.steps
        new = self.policy.on_verify_complete([min(accepted, drafted)] * size, size)
        if new is not None:
            self.activate(new)
        return drafted


def padded(size):
    return next(each for each in SIZES if each >= size)


SIZES = [1, 2, 4, 8, 16]


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_a_table_gives_its_steps(sizes):
    made = table((4, 2, 0), batch=(2, 5))
    controller = AdaptiveController(TableSteps(made, 3), 3, sizes)
    assert sorted(controller.graphs) == [0, 2, 3, 4]
    for size in range(1, 17):
        read = size if sizes is None else padded(size)
        assert controller.batch(size, 1) == made.length(read, 1, 0.5, 0.0)


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_a_controller_gives_its_steps(sizes):
    served = Controller(Cycle((4, 0, 2)), engine())
    controller = AdaptiveController(ControllerSteps(served, 3), 3, sizes)
    drafted = [controller.batch(size, 2) for size in (1, 4, 8, 8, 2, 1, 1)]
    assert drafted == [3, 4, 0, 2, 4, 0, 2]
    request = next(iter(served.requests.values()))
    assert request.committed == 1 + sum(min(2, each) + 1 for each in drafted)
    assert served.view("sglang").target.resident == 1
    assert controller.policy.on_verify_complete([], 1) is None


def test_the_environment_chooses(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    table((4, 2, 0), batch=(2, 5)).save(path)
    monkeypatch.setenv("DSD_POLICY", f"table:{path}")
    assert isinstance(PolicySteps(3, None), TableSteps)
    monkeypatch.setenv("DSD_POLICY", "hf_heuristic")
    monkeypatch.setenv("DSD_DEPLOYMENT", "single_lan")
    assert isinstance(PolicySteps(3), ControllerSteps)


def test_the_plugin_registers_itself(monkeypatch):
    calls = []

    class HookType:
        REPLACE = "replace"

    class HookRegistry:
        @classmethod
        def register(cls, target, hook, hook_type, *, source=None):
            calls.append((target, hook, hook_type))

    hooks = types.ModuleType("sglang.srt.plugins.hook_registry")
    hooks.HookRegistry, hooks.HookType = HookRegistry, HookType
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, hooks.__name__, hooks)
    adapter.register()
    assert calls == [(adapter.TARGET, PolicySteps, "replace")]
    # SGLang refuses a class as any other kind of hook.
    assert isinstance(PolicySteps, type)


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is here")
def test_without_sglang_it_says_so():
    with pytest.raises(EngineError, match="needs SGLang"):
        adapter.register()


def arguments_of(tree, name):
    """Return the parameters of the methods of a class."""
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.name: [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
        for node in found.body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_adapter_has_the_signatures_written_down():
    tree = ast.parse(Path(adapter.__file__).read_text(encoding="utf-8"))
    for name in ("TableSteps", "ControllerSteps"):
        methods = arguments_of(tree, name)
        for method, parameters in PROTOCOL.items():
            if method != "candidate_steps":
                assert methods[method] == parameters
    assert arguments_of(tree, "PolicySteps")["__new__"][1:] == MADE_WITH[1:]


@pytest.mark.slow
def test_the_released_wheel_has_them_too(tmp_path):
    """Downloads the wheel (39 MB), or takes the folder of downloaded wheels that DSD_WHEELS names."""
    folder = Path(os.environ.get("DSD_WHEELS") or tmp_path)
    if not list(folder.glob(f"sglang-{VERSION}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), f"sglang=={VERSION}"], check=True)
    with zipfile.ZipFile(next(folder.glob(f"sglang-{VERSION}-*.whl"))) as wheel:

        def source(path):
            return ast.parse(wheel.read(f"sglang/srt/{path}.py"))

        protocol = arguments_of(source("speculative/adaptive_runtime_state"), "AdaptiveSpecPolicy")
        assert protocol == PROTOCOL
        params = source("speculative/adaptive_spec_params")
        assert arguments_of(params, "AdaptiveSpeculativeParams")["__init__"] == MADE_WITH
        hooks = arguments_of(source("plugins/hook_registry"), "HookRegistry")
        assert hooks["register"] == ["cls", "target", "hook", "hook_type", "source"]
        assert '"sglang.srt.plugins"' in wheel.read("sglang/srt/plugins/__init__.py").decode()
        # SGLang's own reader takes what the exporter writes.
        text = wheel.read("sglang/srt/speculative/adaptive_spec_params.py").decode()
        assert 'entry.get("candidate_steps")' in text and "bisect.bisect_right(self._bs_list, target)" in text
