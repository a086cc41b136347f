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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from _static_choices import (
    choices_for_all,
    class_choice,
    class_options,
    descend,
    drafting_places,
    listed_lengths,
)
from tqdm import tqdm

from agents.evaluation import PartialResults, Task, run_all, tasks_of
from agents.seeds import SEARCH_SEEDS
from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_json, write_text
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import steady

GAMMAS = (1, 2, 4, 6)
"""Speculation lengths of a choice for all."""
WINDOWS = (8, 16)
"""Longer ones, for scenarios that stream: a window limits drafts in flight, not those of a round."""
CLASS_GAMMAS = (2, 4)
"""Speculation lengths tried for one class of devices; the longest window, too, where drafts are streamed."""
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
BLOCK = "best static choices"
"""Name of the block of a page that the tables are written into; a page with parts has one for each."""
OBJECTIVE = "e2e_s_mean"


@dataclass
class Study:
    """Simulations of one scenario, remembered by scheduler and seed.

    Attributes:
        label: The scenario as the user named it.
        scenario: What is simulated, with its window.
        jobs: Processes.
        finished: Simulations, found again by all that they depend on.
    """

    label: str
    scenario: Scenario
    jobs: int
    finished: PartialResults

    def run(self, schedulers: Sequence[str], seeds: slice) -> None:
        """Simulate what has not been simulated yet, on some of the seeds of searches."""
        tasks: list[Task] = []
        for name in dict.fromkeys(schedulers):
            tasks += tasks_of(self.label, self.scenario, name, SEARCH_SEEDS[seeds])
        new = [task for task in tasks if task.key not in self.finished.results]
        with tqdm(total=len(new), desc=self.label, leave=False, disable=not new) as bar:

            def note(task: Task, metrics: dict[str, float]) -> None:
                by_class = {key: value for key, value in metrics.items() if key.startswith("slo_attainment.")}
                self.finished.add(task, {**{key: metrics[key] for key in KEPT if key in metrics}, **by_class})
                bar.update()

            run_all(new, self.jobs, note)

    def rows(self, scheduler: str, seeds: slice) -> list[dict[str, float]]:
        """Return the metrics of a scheduler, seed by seed."""
        tasks = tasks_of(self.label, self.scenario, scheduler, SEARCH_SEEDS[seeds])
        return [self.finished.results[task.key] for task in tasks]

    def best_of(self, seeds: slice, schedulers: list[str]) -> str:
        """Simulate schedulers where that is needed; return the best."""
        self.run(schedulers, seeds)
        return min(schedulers, key=lambda name: self.mean(name, seeds))

    def mean(self, scheduler: str, seeds: slice, metric: str = OBJECTIVE) -> float:
        """Return the mean of a metric over seeds."""
        return float(np.mean([row[metric] for row in self.rows(scheduler, seeds)]))


def study_scenario(
    study: Study, seeds: int, confirming: int, compared: Sequence[str] = RULES
) -> dict[str, Any]:
    """Return what was found in a scenario, searching on some seeds and confirming on others."""
    search, confirm = slice(0, seeds), slice(seeds, seeds + confirming)
    places = drafting_places(study.scenario, branches=True)
    streams = study.scenario.protocol.kind == "streaming"
    lengths = listed_lengths(study.scenario, (*GAMMAS, *WINDOWS) if streams else GAMMAS)
    uniform = choices_for_all(places, lengths)
    study.run(uniform, search)
    best, second = sorted(uniform, key=lambda name: study.mean(name, search))[:2]
    mapped = best
    if len(study.scenario.devices) > 1:
        wanted = (*CLASS_GAMMAS, WINDOWS[-1]) if streams else CLASS_GAMMAS
        lengths = listed_lengths(study.scenario, wanted)
        # The choice that it starts from stays open to every class.
        options = [class_choice(best), *class_options(best, places, lengths)]
        options = list(dict.fromkeys(options))
        per_class, choice = descend(study.scenario, best, options, partial(study.best_of, search))
        mapped = per_class if set(choice.values()) != {options[0]} else best
    rules = [name for name in compared if not name.startswith("colocated") or "colocated" in places]
    shown = list(dict.fromkeys([best, mapped, second, *rules]))
    study.run(shown, confirm)
    classes = [f"slo_attainment.{name}" for name in study.scenario.slo]
    table = []
    for name in shown:
        rows = study.rows(name, confirm)
        reference = [row[OBJECTIVE] for row in study.rows(best, confirm)]
        ratios = [100.0 * (row[OBJECTIVE] / other - 1.0) for row, other in zip(rows, reference, strict=True)]
        # A single episode tells no error; JSON has no NaN.
        spread = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
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
        "n_classes": len(study.scenario.devices),
        "uniform_e2e_s": {name: study.mean(name, search) for name in uniform},
        "table": table,
    }


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Return the tables of all scenarios."""
    lines = ["", f"    {command}", ""]
    for label, result in found.items():
        first = result["table"][0]
        capacity = first["throughput_tokens_per_s"] / first["load"]
        lines += [
            f"**{label}**: plain decoding could serve {capacity:,.0f} tokens/s at most (load 1)",
            "",
            "| scheduler | mean request time (s) | against the best for all | p95 (s) | TTFT (s) | TPOT (ms) "
            "| SLO met, by class | load | $ per 1M tokens |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in result["table"]:
            name = row["scheduler"]
            note = {
                result["best_per_class"]: " (best per class)",
                result["best_for_all"]: " (best for all)",  # where no class has another choice, both
            }.get(name, "")
            shown = "per class" if name.startswith("static_map:") else name
            error = ""
            if name != result["best_for_all"] and row["against_best_percent_se"] is not None:
                error = f" ± {row['against_best_percent_se']:.1f}"
            slo = ", ".join(f"{key} {100 * value:.0f} %" for key, value in row["slo_by_class"].items())
            tpot_ms = 1e3 * row["tpot_s_mean"]
            lines.append(
                f"| `{shown}`{note} | {row['e2e_s_mean']:.2f} | {row['against_best_percent']:+.1f}{error} % "
                f"| {row['e2e_s_p95']:.2f} | {row['ttft_s_mean']:.2f} | {tpot_ms:.1f} | {slo} "
                f"| {row['load']:.2f} | {row['cloud_usd_per_1m_tokens']:.1f} |"
            )
        if result["best_per_class"] != result["best_for_all"]:
            choice = result["best_per_class"].partition(":")[2].replace("+branches", " with branches")
            lines += ["", f"Per class: `{choice.replace('+', ', ')}`"]
        elif result["n_classes"] > 1:
            lines += ["", "No class of devices gains by another choice than that for all."]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scenarios", required=True, metavar="A,B", help="names, or paths of YAML files")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="episodes to search on (default 1)")
    parser.add_argument(
        "--confirm", type=int, default=2, metavar="N", help="other episodes to confirm on (default 2)"
    )
    parser.add_argument(
        "--rules", default=",".join(RULES), metavar="A,B", help="what to compare with (default %(default)s)"
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
    parser.add_argument(
        "--part", default="", metavar="NAME", help="of the page's blocks of tables, the one of this name"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("seeds", "confirm", "cycles", "jobs"))
    block = f"{BLOCK}: {arguments.part}" if arguments.part else BLOCK
    page = _cli.page_with(parser, arguments.write, block)
    return _cli.alone("best_static", arguments.json, lambda: _run(arguments, page, block))


def _run(arguments: argparse.Namespace, page: str, block: str) -> int:
    labels, rules = arguments.scenarios.split(","), arguments.rules.split(",")
    before = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    found: dict[str, dict[str, Any]] = dict(before.get("scenarios", {}))
    finished = PartialResults(arguments.json.with_name(arguments.json.name + ".partial"))
    finished.results = {**before.get("simulations", {}), **finished.results}
    command = (
        f"python scripts/best_static.py --scenarios {arguments.scenarios} --seeds {arguments.seeds} "
        f"--confirm {arguments.confirm} --cycles {arguments.cycles} --json best_static.json"
    )
    if rules != list(RULES):
        command += f" --rules {arguments.rules}"
    for label in labels:
        study = Study(label, steady(load_scenario(label), arguments.cycles), arguments.jobs, finished)
        found[label] = study_scenario(study, arguments.seeds, arguments.confirm, rules)
        write_json(arguments.json, {"command": command, "scenarios": found, "simulations": finished.results})
        finished.discard()
        print(markdown({label: found[label]}, command))
    if arguments.write:
        tables = markdown({label: found[label] for label in labels}, command)
        write_text(arguments.write, replace_blocks(page, {block: tables}))
        print(arguments.write)
    return 0


if __name__ == "__main__":
    _cli.run(main)
