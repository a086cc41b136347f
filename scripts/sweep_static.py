"""Sweep static choices of (speculation length, batch size, placement), by load and by device class.

    python scripts/sweep_static.py --scenario metro --seeds 3 --out docs/figures/metro_sweep

Answers what a scenario has to teach: which single static choice is best, whether that differs between a
quiet and a busy system and between device classes, and how much latency choosing well would save.

The load profile is replaced by a constant load (quiet or busy), or kept (mixed). The choice per device
class is found by coordinate descent: class by class, the best choice given the others'. It starts from the
best single choice, and with --from-plain again from plain decoding everywhere: drafting at the targets pays
when all do it or none, because the draft steps of one lengthen the iterations of all. With --split half of
the devices go to the first target and draft away from it, and the other half drafts at the second. Under
the changing load, the best choices of the quiet and the busy phase are also taken in turn, by the number of
requests at each request's admission. What is found on one set of seeds is confirmed on another. Writes
OUT.json, OUT.md and OUT.png; an interrupted run continues where it stopped when started again.

The best choice is the one with the least mean request time, or by another --metric, within a bound of one
more if --subject-to says so, as in --metric cloud_usd_per_1m_tokens --subject-to 'slo_attainment >= 0.95'.
Where no choice keeps to the bound, the one that comes nearest to it counts as the best.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  (finds agents/ beside scripts/)
import _cli
import numpy as np
from _objectives import bound, change_percent, metric_and_unit, spelled
from _runs import Runs
from _static_choices import (
    BY_LOAD,
    batch_sizes_of,
    choice_of,
    choices_for_all,
    class_choice,
    class_options,
    descend,
    drafting_places,
    listed_lengths,
    same_for_all,
    splits,
)

from agents.benchmark.config import Objective
from agents.benchmark.objectives import objective_by, rank
from agents.benchmark.pages import in_words, number
from dsd_env import Scenario, load_scenario
from dsd_env.calibration.pages import replace_blocks
from dsd_env.cli.output import finite
from dsd_env.files import write_atomically, write_json, write_text
from dsd_env.scenario.measuring import measuring, steady

PLAIN = "static:0:1:plain"
GAMMAS = (1, 2, 4, 8)
REQUESTS = 300
METRIC = "e2e_s_mean"
"""What choices are compared by unless another metric is asked for."""
REPORTED = (
    METRIC,
    "ttft_s_mean",
    "utilisation_target",
    "requests_in_system_mean",
    "slo_attainment",
    "load",
)
CONFIRMED = ("best_single", "best_per_class_name", "best_split", "by_load")
"""What is confirmed on other seeds."""
MEANINGS = {
    "best_per_class_name": "best per device class",
    "best_split": "best with targets that specialise",
    "by_load": "best of the quiet and the busy phase in turn",
}
"""What is held against the best single choice."""


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
        # The scenario's own period: with --cycles that is how long is measured.
        period_s = scenario.workload.load.period_s
        load = {"period_s": period_s, "points": [[0.0, self.multiplier]], "random_phase": False}
        return load_scenario(scenario, workload__load=load)


class Sweep:
    """Runs static choices on paired seeds and remembers every result.

    Attributes:
        objective: What they are compared by.
        results: Means of metrics, by phase and scheduler.
        confirmed: Metrics on the other seeds, seed by seed, by phase and scheduler.
    """

    def __init__(
        self,
        runs: Runs,
        objective: Objective,
        seeds: int,
        confirm: int,
        requests: int | None,
        cycles: int | None,
    ) -> None:
        """Set up a sweep that searches on some seeds and confirms on others."""
        self._runs, self.objective = runs, objective
        self._search, self._confirm = slice(0, seeds), slice(seeds, seeds + confirm)
        self._requests, self._cycles = requests, cycles
        self.results: dict[tuple[str, str], dict[str, float]] = {}
        self.confirmed: dict[tuple[str, str], list[dict[str, float]]] = {}

    def _loaded(self, phase: Phase, scenario: Scenario) -> Scenario:
        loaded = phase.apply(scenario)
        if self._cycles is not None:
            return steady(loaded, self._cycles)
        return measuring(loaded, self._requests or REQUESTS)

    def run(self, phase: Phase, scenario: Scenario, schedulers: list[str]) -> None:
        """Simulate the schedulers that have not been simulated in this phase yet."""
        loaded = self._loaded(phase, scenario)
        names = list(dict.fromkeys(schedulers))
        self._runs.run([(loaded, name) for name in names], self._search, phase.name)
        for name in names:
            rows = self._runs.rows(loaded, name, self._search)
            self.results[phase.name, name] = {
                key: float(np.mean([row.get(key, math.nan) for row in rows])) for key in self._runs.kept
            }

    def confirm(self, phase: Phase, scenario: Scenario, schedulers: list[str]) -> None:
        """Simulate schedulers on the other seeds."""
        loaded = self._loaded(phase, scenario)
        self._runs.run([(loaded, name) for name in schedulers], self._confirm, f"{phase.name}, confirmed")
        for name in schedulers:
            self.confirmed[phase.name, name] = self._runs.rows(loaded, name, self._confirm)

    def against(self, phase: Phase, scheduler: str, other: str) -> tuple[float, float]:
        """Return the change in the metric against another choice, and its standard error, per cent."""
        values, bases = (self._confirmed(self.objective.metric, phase, name) for name in (scheduler, other))
        changes = [change_percent(value, base) for value, base in zip(values, bases, strict=True)]
        spread = float(np.std(changes, ddof=1) / np.sqrt(len(changes))) if len(changes) > 1 else float("nan")
        return float(np.mean(changes)), spread

    def bounded(self, phase: Phase, scheduler: str) -> float | None:
        """Return what the bound holds for, on the other seeds; None without a bound."""
        limit = self.objective.subject_to
        return None if limit is None else float(np.mean(self._confirmed(limit.metric, phase, scheduler)))

    def _confirmed(self, metric: str, phase: Phase, scheduler: str) -> list[float]:
        return [row.get(metric, math.nan) for row in self.confirmed[phase.name, scheduler]]

    def value(self, phase: Phase, scheduler: str) -> float:
        """Return the mean of the metric under a scheduler in a phase."""
        return self.results[phase.name, scheduler][self.objective.metric]

    def names(self, phase: Phase) -> list[str]:
        """Return the choices for all that were simulated in a phase."""
        return [name for at, name in self.results if at == phase.name and name.startswith("static:")]

    def best_of(self, phase: Phase, scenario: Scenario, schedulers: list[str]) -> str:
        """Simulate schedulers where that is needed; return the best."""
        self.run(phase, scenario, schedulers)
        return self.best(phase, schedulers)

    def best(self, phase: Phase, schedulers: list[str]) -> str:
        """Return the best scheduler by the objective."""
        return min(schedulers, key=lambda name: rank(self.objective, self.results[phase.name, name]))


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scenario", default="metro")
    parser.add_argument(
        "--metric", default=METRIC, help="episode metric to compare choices by (default: %(default)s)"
    )
    parser.add_argument(
        "--subject-to",
        type=bound,
        metavar="BOUND",
        help="what the mean of another metric has to keep to, as in 'slo_attainment >= 0.95'",
    )
    parser.add_argument("--seeds", type=int, default=1, help="episodes to search on (default 1)")
    parser.add_argument("--confirm", type=int, default=2, help="other episodes to confirm on (default 2)")
    parser.add_argument("--requests", type=int, help="measured requests per episode (default 300)")
    parser.add_argument(
        "--cycles", type=int, help="measure so many cycles of the load after a warm-up instead of requests"
    )
    parser.add_argument(
        "--quiet", type=float, default=0.6, help="constant load multiplier of the quiet phase"
    )
    parser.add_argument("--busy", type=float, default=1.6, help="constant load multiplier of the busy phase")
    parser.add_argument(
        "--gammas",
        type=int,
        nargs="+",
        default=list(GAMMAS),
        help="speculation lengths drafted at the targets",
    )
    parser.add_argument(
        "--windows", type=int, nargs="+", default=list(GAMMAS), help="those drafted elsewhere"
    )
    parser.add_argument(
        "--class-gammas", type=int, nargs="+", default=[1, 2, 4], help="lengths tried per device class"
    )
    parser.add_argument(
        "--passes", type=int, default=1, help="rounds of coordinate descent over device classes"
    )
    parser.add_argument(
        "--descend",
        nargs="+",
        choices=("quiet", "busy", "mixed"),
        default=["quiet", "busy", "mixed"],
        help="phases to search class by class; the others take what was found before (default: all)",
    )
    parser.add_argument("--from-plain", action="store_true", help="descend from plain decoding too")
    parser.add_argument("--split", action="store_true", help="try targets that specialise (two targets)")
    parser.add_argument(
        "--switch-at",
        type=int,
        nargs="+",
        default=[],
        help="requests at the targets on offer that make it busy",
    )
    parser.add_argument("--brief", action="store_true", help="tables of the best choices alone")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="page whose tables are replaced, between its marks"
    )
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("seeds", "confirm", "requests", "cycles", "passes"))
    if arguments.requests is not None and arguments.cycles is not None:
        parser.error("--requests and --cycles: measure a number of requests or cycles of the load")
    if arguments.cycles is None:
        arguments.requests = arguments.requests or REQUESTS
    scenario = load_scenario(arguments.scenario)
    try:
        objective = objective_by(arguments.metric, arguments.subject_to, scenario)
    except ValueError as error:
        parser.error(str(error))
    for name in ("gammas", "windows", "class_gammas"):
        listed = listed_lengths(scenario, getattr(arguments, name))
        if not listed:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option}: {scenario.name} offers none, only {list(scenario.actions.gammas)}")
        setattr(arguments, name, listed)
    if arguments.split and scenario.n_targets != 2:
        parser.error(f"--split needs two targets; {scenario.name} has {scenario.n_targets}")
    block = f"choices by load: {scenario.name}"
    page = _cli.page_with(parser, arguments.write, block)
    file = arguments.out.with_suffix(".json")
    return _cli.alone("sweep_static", file, lambda: _run(arguments, scenario, objective, file, block, page))


def _single_choices(scenario: Scenario, arguments: argparse.Namespace) -> list[str]:
    """Return the choices for all: those of each place, with its own lengths."""
    names = [PLAIN]
    places = drafting_places(scenario)
    for place in places:
        lengths = arguments.gammas if place.startswith("colocated") else arguments.windows
        names += choices_for_all([place], lengths)[1:]
    if {"own", "edge"} <= set(places):
        names += [_mixed(scenario, window) for window in arguments.windows]
    return names


def _mixed(scenario: Scenario, window: int) -> str:
    """Return the map by which the last class uses its own drafters, the fastest, and the others the edge."""
    fastest = list(scenario.devices)[-1]
    parts = [f"{name}={window}/1/{'own' if name == fastest else 'edge'}" for name in scenario.devices]
    return "static_map:" + "+".join(parts)


def _split_choices(scenario: Scenario, arguments: argparse.Namespace) -> list[str]:
    """Return maps: half of the devices draft away from their target, the other half at the other target."""
    fastest = list(scenario.devices)[-1]
    names = []
    for group in splits(scenario):
        for window in arguments.class_gammas:
            parts = []
            for name in scenario.devices:
                if name in group:
                    parts.append(f"{name}={window}/1/{'own' if name == fastest else 'edge'}@0")
                else:
                    parts.append(f"{name}={max(arguments.gammas)}/1/colocated@1")
            names.append("static_map:" + "+".join(parts))
    return names


def _run(
    arguments: argparse.Namespace,
    scenario: Scenario,
    objective: Objective,
    file: Path,
    block: str,
    page: str,
) -> int:
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    kept = dict.fromkeys((*REPORTED, *objective.metrics))
    runs = Runs.beside(file, before, kept, objective.metrics)
    phases = [Phase("quiet", arguments.quiet), Phase("busy", arguments.busy), Phase("mixed", None)]
    singles = _single_choices(scenario, arguments)
    sweep = Sweep(runs, objective, arguments.seeds, arguments.confirm, arguments.requests, arguments.cycles)
    chosen: dict[str, dict[str, Any]] = {}
    for phase in phases:
        found_before = [each["best_per_class_name"] for each in chosen.values()]
        chosen[phase.name] = _searched(sweep, phase, scenario, arguments, singles, found_before)
        print(f"{phase.name}: {chosen[phase.name]}", flush=True)
    _switched(sweep, phases[-1], scenario, arguments, chosen)
    _confirmed(sweep, phases, scenario, chosen)
    command = _command(arguments)
    rows = [
        {"phase": phase, "scheduler": name, **metrics} for (phase, name), metrics in sweep.results.items()
    ]
    report = {"scenario": scenario.name, "command": command, "phases": chosen, "results": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, finite({**report, "simulations": runs.finished.results}))
    runs.finished.discard()
    if arguments.brief:
        markdown = brief_table(sweep, phases, chosen, command, scenario.name)
    else:
        markdown = table(sweep, phases, singles, chosen, command)
    write_text(arguments.out.with_suffix(".md"), markdown)
    plot(sweep, phases, drafting_places(scenario), arguments.out.with_suffix(".png"), scenario.name)
    print(markdown)
    if arguments.write:
        write_text(arguments.write, replace_blocks(page, {block: markdown}))
        print(arguments.write)
    return 0


def _searched(
    sweep: Sweep,
    phase: Phase,
    scenario: Scenario,
    arguments: argparse.Namespace,
    singles: list[str],
    found_before: list[str],
) -> dict[str, Any]:
    """Search a phase; return its best choice for all and the best per class, with their values.

    Args:
        sweep: Simulates.
        phase: Which load.
        scenario: The scenario.
        arguments: What is tried.
        singles: Choices for all, and maps beside them.
        found_before: The best choices per class of other phases.
    """
    short, places = _short(sweep.objective), drafting_places(scenario)
    sweep.run(phase, scenario, singles)
    best = sweep.best(phase, [name for name in singles if name.startswith("static:")])
    _, gamma, _, place = best.split(":", 3)
    sizes = [f"static:{gamma}:{batch}:{place}" for batch in batch_sizes_of(scenario)]
    sweep.run(phase, scenario, sizes)
    # A choice for all is one for each class, too: the best per class is never worse than it.
    tried = [same_for_all(scenario, best), *(name for name in singles if name.startswith("static_map:"))]
    tried += found_before
    starts = [best, *([PLAIN] if arguments.from_plain else [])]
    for start in dict.fromkeys(starts) if phase.name in arguments.descend else ():
        options = [class_choice(start), *class_options(start, places, arguments.class_gammas)]
        best_of = partial(sweep.best_of, phase, scenario)
        tried.append(descend(scenario, start, list(dict.fromkeys(options)), best_of, arguments.passes)[0])
    halves = _split_choices(scenario, arguments) if arguments.split else []
    tried += halves
    sweep.run(phase, scenario, tried)
    mapped = sweep.best(phase, tried)
    found = {
        "best_single": best,
        f"best_single_{short}": sweep.value(phase, best),
        f"batch_sizes_{short}": {name: sweep.value(phase, name) for name in sizes},
        "best_per_class": choice_of(mapped),
        "best_per_class_name": mapped,
        f"best_per_class_{short}": sweep.value(phase, mapped),
    }
    if halves:
        half = sweep.best(phase, halves)
        found |= {"best_split": half, f"best_split_{short}": sweep.value(phase, half)}
    return found


def _switched(
    sweep: Sweep,
    mixed: Phase,
    scenario: Scenario,
    arguments: argparse.Namespace,
    chosen: dict[str, dict[str, Any]],
) -> None:
    """Add to the results of the mixed load the best way of changing between the other phases' choices."""
    by_load = [
        f"{BY_LOAD}{limit}|{chosen['quiet'][key]}|{chosen['busy'][key]}"
        for limit in arguments.switch_at
        for key in ("best_single", "best_per_class_name")
    ]
    if by_load:
        sweep.run(mixed, scenario, by_load)
        chosen["mixed"]["by_load"] = sweep.best(mixed, by_load)


def _confirmed(
    sweep: Sweep, phases: list[Phase], scenario: Scenario, chosen: dict[str, dict[str, Any]]
) -> None:
    """Add what the best choice of each phase costs in the others, and what is found on other seeds."""
    limit, short = sweep.objective.subject_to, _short(sweep.objective)
    winners = [str(chosen[phase.name]["best_single"]) for phase in phases]
    for phase in phases:
        sweep.run(phase, scenario, winners)
        mine = chosen[phase.name]
        mine[f"others_best_{short}"] = {name: sweep.value(phase, name) for name in winners}
        shown = {key: mine[key] for key in CONFIRMED if key in mine}
        sweep.confirm(phase, scenario, list(dict.fromkeys(shown.values())))
        mine["against_best_single_percent"] = {
            key: sweep.against(phase, name, mine["best_single"]) for key, name in shown.items()
        }
        if limit is not None:
            mine[f"confirmed_{limit.metric}"] = {
                key: sweep.bounded(phase, name) for key, name in shown.items()
            }


def _command(arguments: argparse.Namespace) -> str:
    """Return the command line that does the same."""
    given = vars(arguments)
    command = f"python scripts/sweep_static.py --scenario {arguments.scenario}"
    if arguments.metric != METRIC:
        command += f" --metric {arguments.metric}"
    if arguments.subject_to is not None:
        command += f" --subject-to {shlex.quote(spelled(arguments.subject_to))}"
    command += f" --seeds {arguments.seeds} --confirm {arguments.confirm}"
    for name in ("requests", "cycles", "quiet", "busy"):
        if given[name] is not None:
            command += f" --{name} {given[name]}"
    for name in ("gammas", "windows", "class_gammas", "descend", "switch_at"):
        if given[name]:
            command += f" --{name.replace('_', '-')} {' '.join(map(str, given[name]))}"
    for name in ("from_plain", "split", "brief"):
        if given[name]:
            command += f" --{name.replace('_', '-')}"
    return f"{command} --out {arguments.out.name}"


def _short(objective: Objective) -> str:
    """Return what keys of the results end with that hold the metric's values."""
    return objective.metric.removesuffix("_mean")


def compared_by(objective: Objective) -> list[str]:
    """Return the lines that say what choices are compared by, none for the usual metric alone."""
    if objective == Objective(metric=METRIC, better="lower"):
        return []
    way = "less" if objective.better == "lower" else "more"
    return [f"Compared by {in_words(objective)}; {way} is better.", ""]


def value_text(objective: Objective, value: float) -> str:
    """Return a value of the metric as the tables write it."""
    return f"{value:.2f}" if objective.metric == METRIC else four_digits(value)


def four_digits(value: float) -> str:
    """Return a number of four digits, those that are 0, too."""
    return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else number(value)


def cell(objective: Objective, means: Mapping[str, float]) -> str:
    """Return a value of the metric with, in brackets, the load and what the bound holds for."""
    beside = f"{means['load']:.2f}"
    if objective.subject_to is not None:
        beside += f", {four_digits(means[objective.subject_to.metric])}"
    return f"{value_text(objective, means[objective.metric])} ({beside})"


def change_text(sweep: Sweep, phase: Phase, found: Mapping[str, Any], key: str) -> str:
    """Return by how much a choice changes the metric, with what the bound holds for in brackets."""
    change, error = found["against_best_single_percent"][key]
    held = sweep.bounded(phase, found[key])
    return f"{change:+.1f} ± {error:.1f} %" + ("" if held is None else f" ({four_digits(held)})")


def table(
    sweep: Sweep, phases: list[Phase], singles: list[str], chosen: dict[str, dict[str, Any]], command: str
) -> str:
    """Return the report as Markdown."""
    objective, limit = sweep.objective, sweep.objective.subject_to
    word, unit = metric_and_unit(objective.metric)
    of_bound = "" if limit is None else metric_and_unit(limit.metric)[0]
    title = f"{word[:1].upper()}{word[1:]}" + (f" ({unit})" if unit else "")
    in_brackets = f"load and {of_bound}" if limit else "load"
    meanings = {"best_single": "best for all", **MEANINGS} if limit else MEANINGS
    lines = [
        "",
        f"    {command}",
        "",
        *compared_by(objective),
        f"{title} of single choices, {in_brackets} in brackets:",
        "",
        "| choice | " + " | ".join(phase.name for phase in phases) + " |",
        "|---|" + "---|" * len(phases),
    ]
    for name in singles:
        cells = []
        for phase in phases:
            text = cell(objective, sweep.results[phase.name, name])
            cells.append(f"**{text}**" if chosen[phase.name]["best_single"] == name else text)
        lines.append(f"| {words(name)} | " + " | ".join(cells) + " |")
    by_phase = {phase: chosen[phase.name][f"batch_sizes_{_short(objective)}"].items() for phase in phases}
    if any(by_phase.values()):
        lines += [
            "",
            "B, the batch size that requests ask for, with the best single choice of the phase:",
            "",
        ]
    for phase, sizes in by_phase.items():
        if not sizes:
            continue
        lines.append(
            f"- **{phase.name}**: "
            + ", ".join(
                f"B {name.split(':')[2]}: {value_text(objective, value)}{unit and ' '}{unit}"
                for name, value in sizes
            )
        )
    lines += [
        "",
        f"What else was found, and what it changes in {word} against the best single choice of the "
        "phase (on seeds that nothing was searched on, ± the standard error over them"
        + (f"; {of_bound} in brackets" if limit else "")
        + "):",
        "",
        "| load | what | choice | change |",
        "|---|---|---|---|",
    ]
    for phase in phases:
        found = chosen[phase.name]
        for key, meaning in meanings.items():
            if key not in found:
                continue
            change = change_text(sweep, phase, found, key)
            lines.append(f"| {phase.name} | {meaning} | {words(found[key])} | {change} |")
    lines += [
        "",
        "The best single choice of each phase, in every phase" + (f" ({unit})" if unit else "") + ":",
        "",
    ]
    for phase in phases:
        others = chosen[phase.name][f"others_best_{_short(objective)}"].items()
        lines.append(
            f"- **{phase.name}**: "
            + ", ".join(f"{words(name)} {value_text(objective, value)}" for name, value in others)
        )
    return "\n".join(lines) + "\n"


def brief_table(
    sweep: Sweep, phases: list[Phase], chosen: dict[str, dict[str, Any]], command: str, title: str
) -> str:
    """Return the best choices alone as Markdown."""
    objective, limit = sweep.objective, sweep.objective.subject_to
    word, unit = metric_and_unit(objective.metric)
    of_bound = "" if limit is None else metric_and_unit(limit.metric)[0]
    beside = f"load, {of_bound}" if limit else "load"
    in_unit = f", {unit}" if unit else ""
    lines = [
        "",
        f"    {command}",
        "",
        *compared_by(objective),
        f"| {title} | best for all | {word}{in_unit} ({beside}) | plain decoding{in_unit} "
        "| best per class, and what it changes |",
        "|---|---|---|---|---|",
    ]
    for phase in phases:
        found = chosen[phase.name]
        best = cell(objective, sweep.results[phase.name, found["best_single"]])
        plain = value_text(objective, sweep.value(phase, PLAIN))
        per_class = change_text(sweep, phase, found, "best_per_class_name")
        classes = f"{words(found['best_per_class_name'])}: {per_class}"
        lines.append(f"| {phase.name} | {words(found['best_single'])} | {best} | {plain} | {classes} |")
    if "by_load" in (mixed := chosen["mixed"]):
        change = change_text(sweep, phases[-1], mixed, "by_load")
        lines += ["", f"In turn ({words(mixed['by_load'])}): {change}."]
    return "\n".join(lines) + "\n"


def words(name: str) -> str:
    """Return a scheduler's name as a reader wants it."""
    if name.startswith(BY_LOAD):
        limit, quiet, busy = name.removeprefix(BY_LOAD).split("|")
        return f"up to {limit} requests: {words(quiet)}; above: {words(busy)}"
    if name.startswith("static:"):
        _, gamma, batch, place = name.split(":", 3)
        return _words(gamma, batch, place)
    choices = choice_of(name)
    if len(set(choices.values())) == 1:
        return _words(*next(iter(choices.values())).split("/"))
    return ", ".join(f"{device}: {_words(*choice.split('/'))}" for device, choice in choices.items())


def _words(gamma: str, batch: str, place: str) -> str:
    place, _, target = place.partition("@")
    length = "plain" if gamma == "0" else f"{place} {gamma}"
    return length + (f", B {batch}" if batch != "1" else "") + (f" (target {target})" if target else "")


def plot(sweep: Sweep, phases: list[Phase], places: list[str], path: Path, title: str) -> None:
    """Draw the metric against speculation length, one panel per phase, one line per place."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    word, unit = metric_and_unit(sweep.objective.metric)
    # What more is better of may be 0.
    scale = "log" if sweep.objective.better == "lower" else "linear"
    figure, axes = plt.subplots(1, len(phases), figsize=(4.2 * len(phases), 3.6), layout="constrained")
    for axis, phase in zip(axes, phases, strict=True):
        plain = sweep.value(phase, PLAIN)
        for place in places:
            names = [name for name in sweep.names(phase) if name.endswith(f":1:{place}")]
            points = sorted((int(name.split(":")[1]), sweep.value(phase, name)) for name in names)
            lengths, values = zip(*points, strict=True)
            axis.plot((0, *lengths), (plain, *values), marker="o", markersize=4, label=place)
        axis.set(title=f"{title}, {phase.name}", xlabel="speculation length (tokens)", yscale=scale)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel(f"{word} ({unit})" if unit else word)
    axes[0].legend(title="drafts at", frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


if __name__ == "__main__":
    _cli.run(main)
