#!/usr/bin/env python
r"""Hold the simulator against a real vLLM on this machine, and a policy against other ways of decoding in it.

Measured are plain decoding, static lengths 1 to 4, vLLM's own table by batch size, rules of the registry and
the policy, with 1, 4 and 8 clients that ask again as soon as they are answered. Just before, in the same
engines, step times are measured at several batch sizes and lengths. The simulator gets these times, and the
acceptance of vLLM's own per-step records. `measure` runs in the environment of `make vllm-demo` and takes
minutes, the others run in any.

    python scripts/validate_vllm.py measure --out out/vllm/runs.json
    python scripts/validate_vllm.py compare out/vllm/runs.json --out out/vllm/rows.json \
        --markdown out/vllm/table.md

A policy for this machine: measure its step times, describe the engine by them, train, and let it take turns
with the others.

    python scripts/validate_vllm.py measure --times-only --out out/vllm/times.json
    python scripts/validate_vllm.py describe out/vllm/times.json --out out/vllm/mine
    python scripts/train.py --config out/vllm/mine/train.yaml --out out/vllm/mine/run
    python scripts/export.py --run out/vllm/mine/run --out out/vllm/mine/policy
    python scripts/validate_vllm.py measure --repeats 4 --scale 0.5 --rules hf_heuristic jsq_goodput \
        --policy out/vllm/mine/policy --scenario out/vllm/mine/scenario.yaml --out out/vllm/turns.json
    python scripts/validate_vllm.py gain out/vllm/turns.json --out out/vllm/gains.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _cli
from _checkout import ROOT

if TYPE_CHECKING:
    from dsd_env.calibration.engine_bench.compare import ByBatch
    from dsd_env.calibration.engine_bench.engine import EngineProcess
    from dsd_env.calibration.engine_bench.runs import Question, Setting, Step
    from dsd_env.calibration.engine_bench.times import StepTimes

CLIENTS = {1: 9, 4: 24, 8: 32}
"""Clients side by side, and the questions that they ask in all."""
PROBE_BATCHES = (1, 2, 3, 4, 6, 8)
PROBE_TOKENS = 16
"""Output tokens of each probe of step times."""
MOST_DRAFTS = 4
"""Longest static length."""
TARGET = "TinyLlama-1.1B-Chat (IQ2_XXS, expanded)"
SCENARIO = ROOT / "configs" / "policies" / "vllm_tinyllama" / "scenario.yaml"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    from _vllm import add_engine_arguments

    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser(
        "measure", help="run vLLM; needs an idle machine and about ten minutes", allow_abbrev=False
    )
    add_engine_arguments(measure, dtype="bfloat16")
    measure.add_argument("--out", type=Path, required=True, help="file for the runs")
    measure.add_argument("--scale", type=float, default=1.0, help="factor on the number of questions")
    measure.add_argument("--times-only", action="store_true", help="measure step times and nothing else")
    measure.add_argument(
        "--settings", nargs="+", metavar="NAME", help="only these, such as plain or 'static 2'"
    )
    measure.add_argument("--rules", nargs="+", default=[], metavar="RULE", help="rules of the registry, too")
    measure.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="let all settings run so often, in turn; keeps three engines in memory (%(default)s)",
    )
    describe = commands.add_parser(
        "describe", help="write the scenario of a measured engine, and how to train on it", allow_abbrev=False
    )
    describe.add_argument("runs", type=Path, help="file that `measure` wrote")
    describe.add_argument(
        "--out", type=Path, required=True, help="folder for scenario.yaml, target.yaml and train.yaml"
    )
    describe.add_argument(
        "--scenario",
        type=Path,
        default=SCENARIO,
        help="what says the rest of it, with a train.yaml beside it (default: the shipped one)",
    )
    gain = commands.add_parser("gain", help="say what a setting gains on the others", allow_abbrev=False)
    gain.add_argument("runs", type=Path, help="file that `measure --repeats N` wrote")
    gain.add_argument("--of", default="policy", help="the setting (%(default)s)")
    gain.add_argument("--out", type=Path, required=True, help="file for the gains (JSON)")
    gain.add_argument("--markdown", type=Path, help="file for the tables")
    compare = commands.add_parser(
        "compare", help="simulate the same runs, and hold them against each other", allow_abbrev=False
    )
    compare.add_argument("runs", type=Path, help="file that `measure` wrote")
    compare.add_argument("--out", type=Path, required=True, help="file for the rows (JSON)")
    compare.add_argument("--markdown", type=Path, help="file for the tables")
    compare.add_argument("--seeds", type=int, default=20, help="simulations per setting (%(default)s)")
    compare.add_argument("--scenario", type=Path, help="the policy's, instead of the one of the measurement")
    found = parser.parse_args(arguments)
    if found.command == "measure" and not 0.05 <= found.scale <= 20:
        parser.error("--scale must be in 0.05..20")
    if found.command == "measure":
        _cli.at_least_one(measure, found, ("repeats", "threads"))
    if found.command == "compare":
        _cli.at_least_one(compare, found, ("seeds",))
    return found


# ---------------------------------------------------------------- measuring


def busy_s() -> float | None:
    """Return the seconds that the processors were busy since boot; None where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft = (float(each) for each in fields[:7])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace) -> None:
    """Measure step times and all settings, and write the runs."""
    from _vllm import engine_spec, engines, every_setting, load_tokenizer, read_table

    from dsd_env.calibration.engine_bench.prompts import coders, questions
    from dsd_env.files import write_json

    spec = engine_spec(options)
    coded = coders(load_tokenizer(spec.target))
    asked: dict[int, list[Question]] = {
        clients: questions(*coded, max(clients, round(number * options.scale)))
        for clients, number in CLIENTS.items()
    }
    table = read_table(options.table)
    began_s = time.perf_counter()
    found: dict[str, Any] = {
        "questions": {
            str(clients): [[each.kind, list(each.prompt_ids), each.output_tokens] for each in block]
            for clients, block in asked.items()
        },
        "table": [list(row) for row in table],
        "policy": str(options.policy),
        "scenario": str(options.scenario),
        "dtype": options.dtype,
        "threads": options.threads,
        "max_num_seqs": spec.max_num_seqs,
        "date": datetime.date.today().isoformat(),
        "probes": [],
        "runs": [],
        "disturbed": [],
    }

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - began_s:6.0f} s  {text}", flush=True)

    def keep() -> None:
        # After each setting, so that a measurement cut short has what it has measured.
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, found | {"wall_s": time.perf_counter() - began_s})

    settings = every_setting(spec, table, options.rules)
    if options.settings is not None:
        names = [setting.name for setting in settings]
        if unknown := [name for name in options.settings if name not in names]:
            raise ValueError(f"--settings: no {unknown[0]!r}; there are {', '.join(names)}")
        settings = [setting for setting in settings if setting.name in options.settings]
    with engines(spec, tell, keep=options.repeats > 1) as engine_of:
        known: set[str] = set()
        for repeat in range(0 if options.times_only else options.repeats):
            # In another order each time, so that what a machine does meanwhile meets all alike.
            order = settings if repeat == 0 else random.Random(repeat).sample(settings, len(settings))
            for setting in order:
                _first_time(setting, known, engine_of, asked[8], found["probes"], tell)
                engine = engine_of(setting)
                for clients, block in asked.items():
                    before = busy_s()
                    run = engine.run(setting.name, block, clients)
                    after = busy_s()
                    run.facts["repeat"] = repeat
                    if before is not None and after is not None:
                        found["disturbed"].append([setting.name, clients, (after - before) / run.duration_s])
                    found["runs"].append(run.as_dict())
                    tokens = sum(len(answer.tokens) for answer in run.answers)
                    tell(f"{setting.name}, {clients} clients: {tokens / run.duration_s:.1f} tokens/s")
                keep()
        if options.times_only:
            for setting in settings:
                _first_time(setting, known, engine_of, asked[8], found["probes"], tell)
            keep()
    tell(f"wrote {options.out}")


def _first_time(
    setting: Setting,
    known: set[str],
    engine_of: Callable[[Setting], EngineProcess],
    questions: Sequence[Question],
    found: list[dict[str, Any]],
    tell: Callable[[str], None],
) -> None:
    """Warm an engine up that was not used before, and measure its step times but under a policy."""
    from dsd_env.calibration.engine_bench.runs import Setting
    from dsd_env.calibration.engine_bench.times import probes

    if setting.kind in known:
        return
    known.add(setting.kind)
    engine = engine_of(setting)
    engine.run("warm-up", questions[:8], 8)
    if setting.kind == "policy":
        return
    for length in (0,) if setting.kind == "plain" else range(MOST_DRAFTS + 1):
        name = f"{setting.kind} {length}"
        if setting.kind == "table":
            engine = engine_of(Setting(name, "table", ((1, max(PROBE_BATCHES), length),)))
        for batch in PROBE_BATCHES:
            found.append(
                engine.run(name, probes(questions[0].prompt_ids, batch, PROBE_TOKENS), batch).as_dict()
            )
    tell(f"step times of {setting.kind} measured")


# ---------------------------------------------------------------- comparing


def fitted(data: dict[str, Any]) -> StepTimes:
    """Return step times of the probes, their prefills included."""
    from dsd_env.calibration.engine_bench.runs import Run
    from dsd_env.calibration.engine_bench.times import fit

    steps: dict[bool, list[Step]] = {False: [], True: []}
    for each in data["probes"]:
        run = Run.from_dict(each)
        steps[not run.setting.startswith("plain")] += run.steps
    return fit(steps[False], steps[True])


def compare(options: argparse.Namespace) -> None:
    """Simulate what was measured, and write rows and tables."""
    from dsd_env.calibration.engine_bench import compare as held
    from dsd_env.calibration.engine_bench.runs import Question, Run, summarise
    from dsd_env.schedulers import make_scheduler

    data = json.loads(options.runs.read_text())
    times = fitted(data)
    folder = options.out.parent / "simulated"
    folder.mkdir(parents=True, exist_ok=True)
    profile = folder / "target.yaml"
    times.write_target(profile, model=TARGET, precision=data["dtype"], date=data["date"])
    runs = held.joined([Run.from_dict(each) for each in data["runs"]])
    # Of the same questions: what others were accepted is no matter of the simulator.
    acceptance: dict[int, dict[str, str]] = {}
    for clients in dict.fromkeys(run.clients for run in runs):
        static = [run for run in runs if run.clients == clients and run.setting.startswith("static")]
        path, unknown = held.acceptance_trace(static, folder, f"measured-{clients}")
        print(f"{clients} clients: no round tells of {100 * unknown:.1f} % of the places")
        acceptance[clients] = {"source": "trace", "trace": str(path), "drafter": held.DRAFTER}
    # A model fitted to the longest drafts, for a scenario to train on: it has more than these few requests.
    longest = [run for run in runs if run.setting == "static 4" and run.clients == max(acceptance)]
    held.acceptance_model(
        longest,
        folder,
        "pair",
        target=TARGET,
        draft="stories15M",
        date=data["date"],
        command="scripts/validate_vllm.py",
    )
    rows: list[dict[str, Any]] = []
    for run in runs:
        block = [Question(kind, tuple(ids), n) for kind, ids, n in data["questions"][str(run.clients)]]
        scenario = held.describe(
            times,
            profile,
            acceptance[run.clients],
            block,
            clients=run.clients,
            drafter=run.setting != "plain",
            max_num_seqs=data["max_num_seqs"],
        )
        scheduler: str | ByBatch
        if run.setting == "plain":
            scheduler = "cloud_ar"
        elif run.setting == "table":
            scheduler = held.ByBatch(data["table"])
        elif run.setting == "policy":
            scheduler = f"policy:{data['policy']}"
        elif run.setting.startswith("static "):
            scheduler = f"colocated_sd:{run.setting.split()[1]}"
        else:
            scheduler = run.setting
        simulated = held.simulated(scenario, make_scheduler(scheduler), seeds=options.seeds)
        measured = summarise(run.answers, run.duration_s)
        rows += held.rows_of(f"{run.setting}, {run.clients} clients", measured, simulated)
        print(f"{run.setting}, {run.clients} clients", flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(rows, times, data) + "\n", encoding="utf-8")


def describe(options: argparse.Namespace) -> None:
    """Write the scenario of a measured engine: a shipped one with its step times."""
    import yaml

    from dsd_env.calibration.engine_bench import compare as held
    from dsd_env.files import write_text
    from dsd_env.scenario import load_scenario

    data = json.loads(options.runs.read_text())
    times = fitted(data)
    options.out.mkdir(parents=True, exist_ok=True)
    times.write_target(options.out / "target.yaml", model=TARGET, precision=data["dtype"], date=data["date"])
    described = yaml.safe_load(options.scenario.read_text(encoding="utf-8"))
    (engine,) = described["targets"].values()
    engine |= held.engine_of(times, str(options.out / "target.yaml"))
    described["card"]["models"] = (
        f"{TARGET} with stories15M as its drafter in one vLLM 0.32, {data['dtype']}, {data['threads']} "
        f"threads; step times measured on {data['date']} "
        f"({times.steps} steps, median error {times.error_median_pct:.1f} %)."
    )
    path = options.out / "scenario.yaml"
    write_text(path, yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=110))
    load_scenario(path)
    training = yaml.safe_load((options.scenario.parent / "train.yaml").read_text(encoding="utf-8"))
    training["scenario"] = str(path)
    write_text(options.out / "train.yaml", yaml.safe_dump(training, sort_keys=False))
    print(f"{path} {held.told(times)}")


def gain(options: argparse.Namespace) -> None:
    """Say what a setting gains on the others in the runs that took turns."""
    from dsd_env.calibration.engine_bench import gain as gained
    from dsd_env.calibration.engine_bench.runs import Run
    from dsd_env.files import write_json

    data = json.loads(options.runs.read_text())
    runs = [Run.from_dict(each) for each in data["runs"]]
    found = gained.gains(runs, options.of)
    shares = gained.lengths(runs, options.of)
    text = gained.markdown(found, shares, options.of)
    print(text)
    record = {
        "of": options.of,
        "dtype": data["dtype"],
        "threads": data["threads"],
        "date": data["date"],
        "repeats": 1 + max(int(run.facts["repeat"]) for run in runs),
        "questions": {number: len(block) for number, block in data["questions"].items()},
        "gains": gained.as_dicts(found),
        "drafts": {f"{clients} {kind}": each for (clients, kind), each in shares.items()},
    }
    write_json(options.out, record)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def markdown(rows: list[dict[str, Any]], times: StepTimes, data: dict[str, Any]) -> str:
    """Return the tables of docs/validation.md."""
    from dsd_env.calibration.engine_bench import compare as held

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    metrics = list(held.GOALS)
    lines = ["| setting | " + " | ".join(_title(metric) for metric in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    by_key = {(row["setting"], row["metric"]): row for row in rows}
    for setting in settings:
        cells = []
        for metric in metrics:
            row = by_key.get((setting, metric))
            if row is None:
                cells.append("—")
                continue
            scale = 1e3 if metric.startswith("tpot") else 1.0
            error = row["error_pct"]
            told = "—" if error is None else f"{error:+.1f} %"
            if error is not None and abs(error) > held.GOALS[metric]:
                told = f"**{told}**"
            cells.append(f"{scale * row['measured']:.3g} / {scale * row['simulated']:.3g} ({told})")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    lines += ["", "Ranking by mean E2E, fastest first:", ""]
    for clients in dict.fromkeys(setting.split(", ")[1] for setting in settings):
        own = [setting for setting in settings if setting.endswith(f", {clients}")]
        for key in ("measured", "simulated"):
            order = held.ranking(rows, own, "e2e_mean_s", key)
            lines.append(f"- {clients}, {key}: " + ", ".join(name.split(",")[0] for name in order))
    goals = [row for row in rows if held.GOALS[row["metric"]] < 1000 and row["error_pct"] is not None]
    met = sum(abs(row["error_pct"]) <= held.GOALS[row["metric"]] for row in goals)
    lines += ["", f"{met} of {len(goals)} figures with a goal meet it."]
    lines += ["", f"Step times {held.told(times)}"]
    if data["disturbed"]:
        worst = max(data["disturbed"], key=lambda each: each[2])
        lines.append(
            f"Processors busy during runs: {worst[2]:.2f} at most ({worst[0]}, {worst[1]} clients); "
            f"{data['threads']:.2f} are the engine's own threads."
        )
    return "\n".join(lines)


def _title(metric: str) -> str:
    name, *rest = metric.split("_")
    if metric == "tokens_per_s":
        return "tokens/s"
    if metric == "accepted_per_round":
        return "accepted per round"
    return f"{name.upper()} {rest[0]} ({'ms' if name == 'tpot' else 's'})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or compare."""
    options = parse_arguments(arguments)
    from dsd_env.calibration.acceptance.recording.weights import WeightsError
    from dsd_env.serving.engines.session import EngineError

    try:
        {"measure": measure, "compare": compare, "describe": describe, "gain": gain}[options.command](options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, WeightsError, EngineError, OSError) as error:
        print(f"validate_vllm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _cli.run(main)
