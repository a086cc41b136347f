"""Sweep static choices of (speculation length, batch size, placement), by load and by device class.

    python scripts/sweep_static.py --scenario metro --seeds 3 --out docs/figures/metro_sweep

Answers what a scenario has to teach: which single static choice is best, whether that differs between a
quiet and a busy system and between device classes, and how much latency choosing well would save.

The load profile is replaced by a constant load (quiet or busy), or kept (mixed). The choice per device
class is found by coordinate descent: class by class, the best choice given the others'. It starts from the
best single choice, and with --from-plain again from plain decoding everywhere: drafting at the targets pays
when all do it or none, because the draft steps of one lengthen the iterations of all. Writes OUT.json,
OUT.md and OUT.png.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  (finds agents/ beside scripts/)
import _cli
import numpy as np
from _static_choices import choices_for_all, class_options, descend, places_of
from tqdm import tqdm

from dsd_env import Scenario, load_scenario, simulate
from dsd_env.files import write_atomically, write_json, write_text
from dsd_env.scenario.measuring import steady

GAMMAS = (1, 2, 4, 8)
BATCHES = (8, 32, 64, 128)
REPORTED = (
    "e2e_s_mean",
    "ttft_s_mean",
    "utilisation_target",
    "requests_in_system_mean",
    "slo_attainment",
    "load",
)


@dataclass(frozen=True)
class Phase:
    """A part of the load profile, simulated as constant load.

    Attributes:
        name: ``quiet``, ``busy`` or ``mixed``.
        multiplier: Constant load multiplier; None keeps the scenario's profile.
    """

    name: str
    multiplier: float | None

    def apply(self, scenario: Scenario) -> Scenario:
        """Return the scenario under this phase's load."""
        if self.multiplier is None:
            return scenario
        load = {"period_s": 60.0, "points": [[0.0, self.multiplier]], "random_phase": False}
        return load_scenario(scenario, workload__load=load)


def evaluate(task: tuple[Scenario, str, int, int | None]) -> dict[str, float]:
    """Simulate one (scenario, scheduler, seed, requests) and return the reported metrics.

    Without a number of requests, those of the scenario's window are measured.
    """
    scenario, scheduler, seed, requests = task
    metrics = simulate(scenario, scheduler, seed, requests=requests).metrics
    return {name: metrics[name] for name in REPORTED}


class Sweep:
    """Runs static choices on paired seeds and remembers every result."""

    def __init__(
        self, pool: ProcessPoolExecutor, seeds: int, requests: int | None, cycles: int | None
    ) -> None:
        """Set up an empty sweep."""
        self._pool = pool
        self._seeds = range(seeds)
        self._requests, self._cycles = requests, cycles
        self.results: dict[tuple[str, str], dict[str, float]] = {}

    def run(self, phase: Phase, scenario: Scenario, schedulers: list[str]) -> None:
        """Simulate the schedulers that have not been simulated in this phase yet."""
        new = [name for name in dict.fromkeys(schedulers) if (phase.name, name) not in self.results]
        loaded = phase.apply(scenario)
        if self._cycles is not None:
            loaded = steady(loaded, self._cycles)
        tasks = [(loaded, name, seed, self._requests) for name in new for seed in self._seeds]
        bar = tqdm(self._pool.map(evaluate, tasks), total=len(tasks), desc=phase.name, leave=False)
        rows = list(bar)
        for index, name in enumerate(new):
            mine = rows[index * len(self._seeds) : (index + 1) * len(self._seeds)]
            self.results[phase.name, name] = {
                key: float(np.mean([row[key] for row in mine])) for key in REPORTED
            }

    def latency_s(self, phase: Phase, scheduler: str) -> float:
        """Return the mean request time of a scheduler in a phase."""
        return self.results[phase.name, scheduler]["e2e_s_mean"]

    def best_of(self, phase: Phase, scenario: Scenario, schedulers: list[str]) -> str:
        """Simulate schedulers where that is needed; return the best."""
        self.run(phase, scenario, schedulers)
        return self.best(phase, schedulers)

    def best(self, phase: Phase, schedulers: list[str]) -> str:
        """Return the scheduler with the least mean request time."""
        return min(schedulers, key=lambda name: self.latency_s(phase, name))


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="metro")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, help="measured requests per episode (default 300)")
    parser.add_argument(
        "--cycles", type=int, help="measure so many cycles of the load after a warm-up instead of requests"
    )
    parser.add_argument(
        "--quiet", type=float, default=0.6, help="constant load multiplier of the quiet phase"
    )
    parser.add_argument("--busy", type=float, default=1.6, help="constant load multiplier of the busy phase")
    parser.add_argument(
        "--class-gammas", type=int, nargs="+", default=[1, 2, 4], help="gammas tried per device class"
    )
    parser.add_argument(
        "--passes", type=int, default=1, help="rounds of coordinate descent over device classes"
    )
    parser.add_argument("--from-plain", action="store_true", help="descend from plain decoding too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    arguments = parser.parse_args()

    if arguments.requests is not None and arguments.cycles is not None:
        parser.error("--requests and --cycles: measure a number of requests or cycles of the load")
    if arguments.cycles is None:
        arguments.requests = arguments.requests or 300
    scenario = load_scenario(arguments.scenario)
    starts = ["static:0:1:plain"] if arguments.from_plain else []
    phases = [Phase("quiet", arguments.quiet), Phase("busy", arguments.busy), Phase("mixed", None)]
    places = places_of(scenario)
    singles = choices_for_all(places, GAMMAS)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        sweep = Sweep(pool, arguments.seeds, arguments.requests, arguments.cycles)
        chosen: dict[str, dict[str, Any]] = {}
        for phase in phases:
            sweep.run(phase, scenario, singles)
            best = sweep.best(phase, singles)
            _, gamma, _, place = best.split(":", 3)
            sizes = [f"static:{gamma}:{batch}:{place}" for batch in BATCHES]
            sweep.run(phase, scenario, sizes)
            best_of = partial(sweep.best_of, phase, scenario)
            found = [
                descend(
                    scenario,
                    start,
                    class_options(start, places, arguments.class_gammas),
                    best_of,
                    arguments.passes,
                )
                for start in dict.fromkeys((best, *starts))
            ]
            mapped, choice = min(found, key=lambda pair: sweep.latency_s(phase, pair[0]))
            chosen[phase.name] = {
                "best_single": best,
                "best_single_e2e_s": sweep.latency_s(phase, best),
                "batch_sizes_e2e_s": {name: sweep.latency_s(phase, name) for name in sizes},
                "best_per_class": choice,
                "best_per_class_e2e_s": sweep.latency_s(phase, mapped),
            }
        # What the best choice of one phase costs in the others.
        winners = [str(chosen[phase.name]["best_single"]) for phase in phases]
        for phase in phases:
            sweep.run(phase, scenario, winners)
            chosen[phase.name]["others_best_e2e_s"] = {name: sweep.latency_s(phase, name) for name in winners}

    command = f"python scripts/sweep_static.py --scenario {arguments.scenario} --seeds {arguments.seeds}"
    for name in ("requests", "cycles"):
        if getattr(arguments, name) is not None:
            command += f" --{name} {getattr(arguments, name)}"
    command += f" --quiet {arguments.quiet} --busy {arguments.busy}"
    report = {"scenario": scenario.name, "command": command, "phases": chosen}
    rows = [
        {"phase": phase, "scheduler": name, **metrics} for (phase, name), metrics in sweep.results.items()
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out.with_suffix(".json"), {**report, "results": rows})
    markdown = table(sweep, phases, singles, chosen, command)
    write_text(arguments.out.with_suffix(".md"), markdown)
    plot(sweep, phases, places, arguments.out.with_suffix(".png"), scenario.name)
    print(markdown)
    return 0


def table(
    sweep: Sweep, phases: list[Phase], singles: list[str], chosen: dict[str, dict[str, Any]], command: str
) -> str:
    """Return the report as Markdown."""
    lines = [
        f"<!-- {command} -->",
        "",
        "Mean request time (s) of single static choices, utilisation in brackets:",
        "",
    ]
    lines += [
        "| gamma | place | " + " | ".join(phase.name for phase in phases) + " |",
        "|---|---|" + "---|" * len(phases),
    ]
    for name in singles:
        _, gamma, _, place = name.split(":", 3)
        cells = []
        for phase in phases:
            row = sweep.results[phase.name, name]
            text = f"{row['e2e_s_mean']:.2f} ({row['utilisation_target']:.2f})"
            cells.append(f"**{text}**" if chosen[phase.name]["best_single"] == name else text)
        lines.append(f"| {gamma} | {place} | " + " | ".join(cells) + " |")
    lines += ["", "Best choice per device class, and what it gains over the best single choice:", ""]
    for phase in phases:
        found = chosen[phase.name]
        single, mapped = found["best_single_e2e_s"], found["best_per_class_e2e_s"]
        choice = found["best_per_class"].items()
        words = ", ".join(f"{device} {option.replace('/1/', ' ')}" for device, option in choice)
        saved = 100 * (1 - mapped / single)
        lines.append(f"- **{phase.name}**: {single:.2f} s -> {mapped:.2f} s ({saved:.1f} % saved): {words}")
    lines += ["", "The best single choice of each phase, in every phase (s):", ""]
    for phase in phases:
        others = chosen[phase.name]["others_best_e2e_s"].items()
        lines.append(f"- **{phase.name}**: " + ", ".join(f"{name} {value:.2f}" for name, value in others))
    return "\n".join(lines) + "\n"


def plot(sweep: Sweep, phases: list[Phase], places: list[str], path: Path, title: str) -> None:
    """Draw mean request time against speculation length, one panel per phase, one line per place."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(phases), figsize=(4.2 * len(phases), 3.6), layout="constrained")
    for axis, phase in zip(axes, phases, strict=True):
        plain = sweep.latency_s(phase, "static:0:1:plain")
        for place in places:
            values = [sweep.latency_s(phase, f"static:{gamma}:1:{place}") for gamma in GAMMAS]
            axis.plot((0, *GAMMAS), (plain, *values), marker="o", markersize=4, label=place)
        axis.set(title=f"{title}, {phase.name}", xlabel="speculation length (tokens)", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("mean request time (s)")
    axes[0].legend(title="drafts at", frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


if __name__ == "__main__":
    _cli.run(main)
