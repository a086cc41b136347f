#!/usr/bin/env bash
# Build the wheel and use it as a stranger does: in a new environment with nothing but its own dependencies, from a
# folder where no checkout is in sight. Takes no options; PYTHON names an interpreter that has `build` and hatchling.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ $python == */* && $python != /* ]] && python=$PWD/$python
command -v "$python" >/dev/null || { echo "No interpreter at $python: run \`make test\` first." >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "Building the wheel"
(cd "$root" && "$python" -m build --no-isolation --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1) \
  || { cat "$work/build.log" >&2; exit 1; }
wheel=$(ls "$work"/dist/dsd_env-*.whl)
echo "  $(basename "$wheel"), $(du -k "$wheel" | cut -f 1) KB"

echo "Installing it in a new environment"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$wheel"

echo "Using it"
mkdir "$work/elsewhere"
cd "$work/elsewhere"
env -u PYTHONPATH "$work/venv/bin/python" -I -W error - <<'PY'
"""Runs in the clean environment; `-W error` makes a warning at import a failure."""
import importlib.util
import sys
from importlib import metadata
from pathlib import Path


def absent(name: str) -> None:
    assert importlib.util.find_spec(name) is None, f"{name} must not be importable after `pip install dsd-env`"


for name in ("torch", "stable_baselines3", "sb3_contrib", "onnx", "onnxruntime", "transformers", "matplotlib"):
    absent(name)
for name in ("agents", "scripts", "tests", "configs", "_checkout"):
    absent(name)

import dsd_env
from dsd_env.paths import config_dir

package = Path(dsd_env.__file__).resolve().parent
assert package.is_relative_to(Path(sys.prefix).resolve()), f"dsd_env comes from {package}, not from the wheel"
assert (package / "py.typed").is_file(), "py.typed is missing: type checkers would ignore the annotations"
assert config_dir() == package / "_configs", f"config_dir() is {config_dir()}"
assert dsd_env.__version__ == metadata.version("dsd-env"), "dsd_env.__version__ differs from the wheel's version"
assert callable(dsd_env.simulate)

from dsd_env.latency import load_profile
from dsd_env.scenario import load_scenario

scenarios = sorted(path.stem for path in (config_dir() / "scenarios").glob("*.yaml"))
assert "metro" in scenarios, f"scenarios in the wheel: {scenarios}"
for name in scenarios:
    load_scenario(name)
profiles = sorted(path.stem for path in (config_dir() / "latency").glob("*.yaml"))
assert profiles, "the wheel has no latency profile"
for name in profiles:
    load_profile(name)

from dsd_env.acceptance import load_trace_set

traces = sorted(path.stem for path in (package / "acceptance" / "data").glob("*.npz"))
assert traces, "the wheel has no acceptance trace"
for name in traces:
    load_trace_set(name)

import gymnasium

env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="single_lan")
observation, _ = env.reset(seed=7)
assert env.observation_space.contains(observation)
env.step(env.action_space.sample())
env.close()
assert "torch" not in sys.modules
print(f"  dsd_env {dsd_env.__version__}: {len(scenarios)} scenarios, {len(profiles)} latency profiles, "
      f"{len(traces)} trace sets, one environment step")
PY

echo "Using its command line"
command="$work/venv/bin/dsd-env"
version=$(env -u PYTHONPATH "$command" --version)
env -u PYTHONPATH "$command" list >list.txt
grep -q '^metro ' list.txt || { echo "dsd-env list does not show metro" >&2; exit 1; }
# The reference engine needs no compilation; a warning at import is a failure here, too.
env -u PYTHONPATH "$work/venv/bin/python" -I -W error -m dsd_env simulate single_lan --scheduler edge_sd:4 --seed 1 \
  --requests 3 --engine reference --json >metrics.json
env -u PYTHONPATH "$command" timeline single_lan --scheduler edge_sd:4 --seed 1 --requests 3 --engine reference \
  --out trace.json >/dev/null
env -u PYTHONPATH "$work/venv/bin/python" -I - <<'PY'
import json

metrics = json.load(open("metrics.json"))["metrics"]
assert metrics["requests_completed"] == 3.0, metrics
tokens = sum(e["args"]["tokens"] for e in json.load(open("trace.json"))["traceEvents"] if e["name"] == "commit")
assert tokens == round(metrics["throughput_tokens_per_s"] * metrics["window_s"]), tokens
PY
status=0
env -u PYTHONPATH "$command" show nowhere >/dev/null 2>error.txt || status=$?
[[ $status == 1 && $(wc -l <error.txt) == 1 ]] || { echo "dsd-env show nowhere: status $status" >&2; exit 1; }
env -u PYTHONPATH "$command" list | head -1 >/dev/null
env -u PYTHONPATH "$command" evaluate single_lan --schedulers cloud_ar,edge_sd:4 --seeds 1 --requests 1 --engine reference \
  --json --history >results.json
env -u PYTHONPATH "$command" report results.json --out report.html >/dev/null
grep -q '<title>Results: single_lan</title>' report.html || { echo "dsd-env report wrote no page" >&2; exit 1; }
echo "  $version: $(wc -l <list.txt) scenarios listed, one simulated, one timeline, one report"
echo "The wheel is sound"
