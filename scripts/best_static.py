"""Find the best static choice of every scenario, and hold the rules against it, over whole load cycles.

    python scripts/best_static.py --scenarios metro,mobile --json best_static.json --write docs/scenarios.md

For every scenario it tries one choice for all (place and speculation length), then changes the choice of one
device class after the other where that helps, and compares the rules of the field with the best that it
found: on the same seeds, over the same window of simulated time in the steady state. The choices are
confirmed on other seeds than they were found on, or they would look better than they are. With --json an
interrupted run continues where it stopped when started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from tqdm import tqdm

from agents.evaluation import Task, run_all, tasks_of
from dsd_env.files import write_json, write_text
from dsd_env.locks import InUseError, hold
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import steady

GAMMAS = (1, 2, 4, 6)
"""Speculation lengths of a choice for all."""
CLASS_GAMMAS = (2, 4)
"""Speculation lengths tried for one class of devices."""
PLACES = ("colocated", "own", "edge")
RULES = (
    "cloud_ar",
    "colocated_sd:1",
    "colocated_sd:2",
    "colocated_sd:4",
    "edge_sd:4",
    "hf_heuristic",
    "jsq_goodput",
)
KEPT = ("e2e_s_mean", "e2e_s_mean_se", "e2e_s_p95", "ttft_s_mean", "tpot_s_mean", "slo_attainment", "load",
        "cloud_usd_per_1m_tokens", "throughput_tokens_per_s", "requests_in_system_mean")  # fmt: skip
BEGIN, END = "<!-- best static choices -->", "<!-- end of best static choices -->"
OBJECTIVE = "e2e_s_mean"


@dataclass
class Study:
    """Simulations of one scenario, remembered by scheduler and seed.

    Attributes:
        label: The scenario as the user named it.
        scenario: What is simulated, with its window.
        jobs: Processes.
        known: Metrics by digest of the simulation.
    """

    label: str
    scenario: Scenario
    jobs: int
    known: dict[str, dict[str, float]]
    names: dict[str, list[str]] = field(default_factory=dict)

    def run(self, schedulers: Sequence[str], seeds: slice) -> None:
        """Simulate what has not been simulated yet, on some of the evaluation seeds."""
        tasks: list[Task] = []
        for name in dict.fromkeys(schedulers):
            tasks += tasks_of(self.label, self.scenario, name, seeds.stop)[seeds]
        new = [task for task in tasks if task.key not in self.known]
        with tqdm(total=len(new), desc=self.label, leave=False, disable=not new) as bar:

            def note(task: Task, metrics: dict[str, float]) -> None:
                by_class = {key: value for key, value in metrics.items() if key.startswith("slo_attainment.")}
                self.known[task.key] = {**{key: metrics[key] for key in KEPT if key in metrics}, **by_class}
                bar.update()

            run_all(new, self.jobs, note)

    def rows(self, scheduler: str, seeds: slice) -> list[dict[str, float]]:
        """Return the metrics of a scheduler, seed by seed."""
        tasks = tasks_of(self.label, self.scenario, scheduler, seeds.stop)[seeds]
        return [self.known[task.key] for task in tasks]

    def mean(self, scheduler: str, seeds: slice, metric: str = OBJECTIVE) -> float:
        """Return the mean of a metric over seeds."""
        return float(np.mean([row[metric] for row in self.rows(scheduler, seeds)]))


def places_of(scenario: Scenario) -> tuple[str, ...]:
    """Return the places where anybody can draft in a scenario."""
    there = {
        "colocated": any(target.menu for target in scenario.targets.values()),
        "own": any(device.menu for device in scenario.devices.values()),
        "edge": bool(scenario.edge_servers),
    }
    return tuple(place for place in PLACES if there[place])


def static_choices(scenario: Scenario) -> list[str]:
    """Return the choices that are the same for all."""
    names = [f"static:{gamma}:1:{place}" for place in places_of(scenario) for gamma in GAMMAS]
    return ["static:0:1:plain", *names]


def per_class(study: Study, start: str, seeds: slice) -> str:
    """Return the best choice per device class that one pass of coordinate descent finds."""
    _, gamma, batch, place = start.split(":")
    choice = {name: f"{gamma}/{batch}/{place}" for name in study.scenario.devices}
    options = ["0/1/plain"]
    options += [f"{gamma}/1/{place}" for place in places_of(study.scenario) for gamma in CLASS_GAMMAS]
    best = _map(choice)
    study.run([best], seeds)
    for name in choice:
        tries = {option: _map({**choice, name: option}) for option in options if option != choice[name]}
        study.run(list(tries.values()), seeds)
        option = min(tries, key=lambda each: study.mean(tries[each], seeds))
        if study.mean(tries[option], seeds) < study.mean(best, seeds):
            choice[name] = option
            best = tries[option]
    return best


def _map(choice: dict[str, str]) -> str:
    return "static_map:" + "+".join(f"{name}={option}" for name, option in choice.items())


def study_scenario(study: Study, seeds: int, confirming: int) -> dict[str, Any]:
    """Return what was found in a scenario, searching on some seeds and confirming on others."""
    search, confirm = slice(0, seeds), slice(seeds, seeds + confirming)
    uniform = static_choices(study.scenario)
    study.run(uniform, search)
    best = min(uniform, key=lambda name: study.mean(name, search))
    mapped = per_class(study, best, search) if len(study.scenario.devices) > 1 else best
    second = sorted(uniform, key=lambda name: study.mean(name, search))[1]
    rules = [
        name for name in RULES if not name.startswith("colocated") or "colocated" in places_of(study.scenario)
    ]
    shown = list(dict.fromkeys([best, mapped, second, *rules]))
    study.run(shown, confirm)
    classes = [f"slo_attainment.{name}" for name in study.scenario.slo]
    table = []
    for name in shown:
        rows = study.rows(name, confirm)
        reference = [row[OBJECTIVE] for row in study.rows(best, confirm)]
        ratios = [100.0 * (row[OBJECTIVE] / other - 1.0) for row, other in zip(rows, reference, strict=True)]
        spread = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else float("nan")
        table.append(
            {
                "scheduler": name,
                **{key: float(np.mean([row[key] for row in rows])) for key in KEPT if key in rows[0]},
                "slo_by_class": {
                    key.partition(".")[2]: float(np.nanmean([row[key] for row in rows]))
                    for key in classes
                    if key in rows[0]
                },
                "against_best_percent": float(np.mean(ratios)),
                "against_best_percent_se": spread,
            }
        )
    return {
        "best_for_all": best,
        "best_per_class": mapped,
        "uniform_e2e_s": {name: study.mean(name, search) for name in uniform},
        "table": table,
    }


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Return the tables of all scenarios."""
    lines = [BEGIN, "", f"    {command}", ""]
    for label, result in found.items():
        lines += [
            f"**{label}**",
            "",
            "| scheduler | mean request time (s) | against the best for all | p95 (s) | TTFT (s) | TPOT (ms) "
            "| SLO met, by class | load | $ per 1M tokens |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in result["table"]:
            name = row["scheduler"]
            note = {
                result["best_for_all"]: " (best for all)",
                result["best_per_class"]: " (best per class)",
            }.get(name, "")
            shown = name if len(name) < 40 else "per class"
            error = "" if name == result["best_for_all"] else f" ± {row['against_best_percent_se']:.1f}"
            slo = ", ".join(f"{key} {100 * value:.0f} %" for key, value in row["slo_by_class"].items())
            tpot_ms = 1e3 * row["tpot_s_mean"]
            lines.append(
                f"| `{shown}`{note} | {row['e2e_s_mean']:.2f} | {row['against_best_percent']:+.1f}{error} % "
                f"| {row['e2e_s_p95']:.2f} | {row['ttft_s_mean']:.2f} | {tpot_ms:.1f} | {slo} "
                f"| {row['load']:.2f} | {row['cloud_usd_per_1m_tokens']:.1f} |"
            )
        if "+" in result["best_per_class"]:
            lines += ["", f"Per class: `{result['best_per_class'].partition(':')[2].replace('+', ', ')}`"]
        lines.append("")
    lines.append(END)
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", required=True, metavar="A,B", help="names, or paths of YAML files")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="episodes to search on (default 1)")
    parser.add_argument(
        "--confirm", type=int, default=2, metavar="N", help="other episodes to confirm on (default 2)"
    )
    parser.add_argument(
        "--cycles", type=int, default=1, metavar="C", help="cycles of the load in a window (default 1)"
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="every simulation and the result"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="page whose tables are replaced, between its marks"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
    arguments = parser.parse_args()
    for name in ("seeds", "confirm", "cycles", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: must be at least 1")
    page = arguments.write.read_text() if arguments.write else ""
    if arguments.write and not (BEGIN in page and END in page):
        parser.error(f"--write {arguments.write}: the page lacks the marks {BEGIN} and {END}")
    try:
        with hold(arguments.json.with_name(f".{arguments.json.name}.lock"), arguments.json):
            return _run(arguments, page)
    except InUseError as error:
        print(error, file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, page: str) -> int:
    labels = arguments.scenarios.split(",")
    before = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    known: dict[str, dict[str, float]] = dict(before.get("simulations", {}))
    found: dict[str, dict[str, Any]] = dict(before.get("scenarios", {}))
    command = (
        f"python scripts/best_static.py --scenarios {arguments.scenarios} --seeds {arguments.seeds} "
        f"--confirm {arguments.confirm} --cycles {arguments.cycles} --json best_static.json"
    )
    for label in labels:
        study = Study(label, steady(load_scenario(label), arguments.cycles), arguments.jobs, known)
        try:
            found[label] = study_scenario(study, arguments.seeds, arguments.confirm)
        finally:
            write_json(arguments.json, {"command": command, "scenarios": found, "simulations": known})
        print(markdown({label: found[label]}, command))
    if arguments.write:
        head, _, rest = page.partition(BEGIN)
        tables = markdown({label: found[label] for label in labels}, command)
        write_text(arguments.write, head + tables + rest.partition(END)[2])
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
