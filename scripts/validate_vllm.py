#!/usr/bin/env python
r"""Hold the simulator against a real vLLM on this machine.

Measured are plain decoding, static lengths 1 to 4, vLLM's own table by batch size and the policy, with 1, 4
and 8 clients that ask again as soon as they are answered. Just before, in the same engines, step times are
measured at several batch sizes and lengths. The simulator gets these times, and the acceptance of vLLM's own
per-step records. `measure` runs in the environment of `make vllm-demo`, `compare` in any.

    python scripts/validate_vllm.py measure --out out/vllm/runs.json
    python scripts/validate_vllm.py compare out/vllm/runs.json --out out/vllm/rows.json \
        --markdown out/vllm/table.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli

if TYPE_CHECKING:
    from dsd_env.calibration.engine_bench.compare import ByBatch
    from dsd_env.calibration.engine_bench.runs import Question, Step
    from dsd_env.calibration.engine_bench.times import StepTimes

CLIENTS = {1: 9, 4: 24, 8: 32}
"""Clients side by side, and the questions that they ask in all."""
PROBE_BATCHES = (1, 4, 8)
PROBE_TOKENS = 12
"""Output tokens of each probe of step times."""
TARGET = "TinyLlama-1.1B-Chat (IQ2_XXS, expanded)"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    from _vllm import add_engine_arguments

    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="run vLLM; needs an idle machine and about ten minutes")
    add_engine_arguments(measure, dtype="bfloat16")
    measure.add_argument("--out", type=Path, required=True, help="file for the runs")
    measure.add_argument("--scale", type=float, default=1.0, help="factor on the number of questions")
    compare = commands.add_parser("compare", help="simulate the same runs, and hold them against each other")
    compare.add_argument("runs", type=Path, help="file that `measure` wrote")
    compare.add_argument("--out", type=Path, required=True, help="file for the rows (JSON)")
    compare.add_argument("--markdown", type=Path, help="file for the tables")
    compare.add_argument("--seeds", type=int, default=20, help="simulations per setting (%(default)s)")
    compare.add_argument("--scenario", type=Path, help="the policy's, instead of the one of the measurement")
    found = parser.parse_args(arguments)
    if found.command == "measure" and not 0.05 <= found.scale <= 20:
        parser.error("--scale must be in 0.05..20")
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
    """Measure all settings and write the runs."""
    from _vllm import engine_spec, engines, every_setting, load_tokenizer, read_table

    from dsd_env.calibration.engine_bench.prompts import coders, questions
    from dsd_env.calibration.engine_bench.times import probes
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

    prompt = asked[8][0].prompt_ids
    probed: set[str] = set()
    with engines(spec, tell) as engine_of:
        for setting in every_setting(spec, table):
            engine = engine_of(setting)
            if setting.kind not in probed:
                engine.run("warm-up", asked[8][:8], 8)
            if setting.kind != "policy" and setting.kind not in probed:
                lengths = (0,) if setting.kind == "plain" else tuple(range(spec.longest + 1))
                for length in lengths:
                    if setting.kind == "table":
                        engine.use_table([(1, spec.max_num_seqs, length)])
                    for batch in PROBE_BATCHES:
                        name = f"{setting.kind} {length}"
                        run = engine.run(name, probes(prompt, batch, PROBE_TOKENS), batch)
                        found["probes"].append(run.as_dict())
                if setting.kind == "table":
                    engine.use_table(setting.table)
                tell(f"step times of {setting.kind} measured")
            probed.add(setting.kind)
            for clients, block in asked.items():
                before = busy_s()
                run = engine.run(setting.name, block, clients)
                after = busy_s()
                if before is not None and after is not None:
                    found["disturbed"].append([setting.name, clients, (after - before) / run.duration_s])
                found["runs"].append(run.as_dict())
                tokens = sum(len(answer.tokens) for answer in run.answers)
                tell(f"{setting.name}, {clients} clients: {tokens / run.duration_s:.1f} tokens/s")
            # After each setting, so that a measurement cut short has what it has measured.
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, found | {"wall_s": time.perf_counter() - began_s})
    tell(f"wrote {options.out}")


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
    runs = [Run.from_dict(each) for each in data["runs"]]
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
        else:
            scheduler = f"colocated_sd:{run.setting.split()[1]}"
        simulated = held.simulated(scenario, make_scheduler(scheduler), seeds=options.seeds)
        measured = summarise(run.answers, run.duration_s)
        rows += held.rows_of(f"{run.setting}, {run.clients} clients", measured, simulated)
        print(f"{run.setting}, {run.clients} clients", flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(rows, times, data) + "\n", encoding="utf-8")


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
    known = ", ".join(f"{m}: {1e3 * s:.0f}" for m, s in times.knots)
    lines += [
        "",
        f"Step times (fit: median error {times.error_median_pct:.1f} %, p95 {times.error_p95_pct:.1f} %, "
        f"{times.steps} steps): target by new tokens (ms) {known}; {1e3 * times.drafter_s:.1f} ms for the "
        f"drafter's first pass, {1e3 * times.draft_t0_s:.2f} ms and {1e3 * times.draft_c_s_per_token:.2f} ms "
        f"a request for each draft, {1e3 * times.verifying_s:.1f} ms where drafts are verified; "
        f"scatter {100 * times.noise_sigma:.1f} %.",
    ]
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
        (measure if options.command == "measure" else compare)(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, WeightsError, EngineError, OSError) as error:
        print(f"validate_vllm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _cli.run(main)
