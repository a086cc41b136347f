"""The whole way in one command: train, evaluate on unseen episodes, compare, plot, export, load, decide.

    python scripts/demo.py --out demo_out

Everything goes through the same functions as the other scripts; see them for each step alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _checkout
import _cli
import numpy as np

from dsd_env.locks import LOCK_FILE, InUseError, hold

BASELINES = ("cloud_ar", "colocated_sd:4", "jsq_goodput")
"""Rules of the field that every scenario is compared with."""
STRONGEST = {"metro": "static:16:1:edge", "regions": "adaptive:4:colocated:fastest_first+most=22"}
"""The strongest opponent that the benchmark knows of a scenario, tuned for it.

The rule that the training imitated, if it is another, is compared with as well.
"""

LEARNED, IMITATED, TUNED = "learned policy", "imitated rule", "strongest rule"
METRICS = (
    "e2e_s_mean",
    "e2e_s_p95",
    "ttft_s_mean",
    "tpot_s_mean",
    "slo_attainment",
    "throughput_tokens_per_s",
)
COMPARED = (
    ("e2e_s_p95", True),
    ("ttft_s_mean", True),
    ("tpot_s_mean", True),
    ("slo_attainment", False),
    ("throughput_tokens_per_s", False),
    ("gpu_occupied_s_per_1k_tokens", True),
    ("energy_j_per_1k_tokens", True),
    ("bytes_per_token", True),
    ("jain_fairness", False),
)
"""Metrics of the verdict, and whether less of them is better."""


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="regions", help="training configuration (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), metavar="DIR", help="where results go")
    parser.add_argument("--timesteps", type=int, help="decisions to train for, instead of the file's")
    parser.add_argument("--seeds", type=int, default=6, help="evaluation episodes per scheduler")
    parser.add_argument(
        "--requests", type=int, help="measured requests per evaluation episode, instead of a load cycle"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes for the evaluation")
    parser.add_argument(
        "--history",
        action="store_true",
        help="show load and decisions over time in the report, too; recording two episodes takes minutes",
    )
    arguments = parser.parse_args()

    from rich.console import Console

    from agents.config import load_config

    console = Console()
    started = time.monotonic()
    config = load_config(arguments.config, timesteps=arguments.timesteps)
    run, bundle = arguments.out / "run", arguments.out / "policy"

    console.rule(
        f"1. Train: {config.algorithm} on scenario {config.scenario}, {config.timesteps:,} decisions"
    )
    try:
        train_afresh_or_resume(config, run)
    except InUseError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1

    console.rule("2. Export: a file that needs neither torch nor Stable-Baselines3")
    from agents.export import export_run

    manifest = export_run(run, bundle, "best", overwrite=True)
    for name, entry in manifest.files.items():
        print(f"{bundle / name}: {entry.bytes:,} bytes")

    console.rule("3. Evaluate: episodes that training never saw, the same for every scheduler")
    learned = f"policy:{bundle}"
    imitated = [config.warm_start.scheduler] if config.warm_start else []
    strongest = [STRONGEST[config.scenario]] if config.scenario in STRONGEST else []
    baselines = [*BASELINES, *strongest]
    names = list(dict.fromkeys([*baselines, *imitated, learned]))
    summary = evaluate(config.scenario, names, arguments)

    from agents.report import print_tables

    short = {learned: LEARNED}
    for label, rules in ((TUNED, set(strongest)), (IMITATED, set(imitated) - set(baselines))):
        for rule in rules:
            short[rule] = label
            print(f"{label}: {rule}")
    summary = with_short_names(summary, short)
    print_tables(summary, METRICS, console)
    schedulers = summary["scenarios"][config.scenario]["schedulers"]
    print(verdict(schedulers, LEARNED))
    print(origin(run))
    figure = arguments.out / "comparison.png"
    plot(schedulers, LEARNED, config.scenario, figure)
    print(f"figure: {figure}")

    from dsd_env.report import write_report

    page = arguments.out / "report.html"
    write_report([arguments.out / "evaluation.json", run], page, f"Demonstration on {config.scenario}")
    print(f"all of it, for a browser: {page}")

    console.rule("4. Load it as a serving system would, and ask")
    print(ask(bundle, config.scenario))
    print(f"\nall of it took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def train_afresh_or_resume(config: Any, run: Path) -> None:
    """Train, going on from an interrupted demo; a finished or different run is replaced."""
    from agents.training import RunError, train

    if run.exists():
        try:
            train(config, run, resume=True)
            return
        except RunError as error:
            with hold(run / LOCK_FILE, run):
                print(f"begins anew: {error}")
                shutil.rmtree(run)
    train(config, run)


def evaluate(scenario: str, schedulers: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the summary of a paired evaluation, also written to ``evaluation.json``.

    Args:
        scenario: Its name.
        schedulers: Their names, the learned policy last.
        arguments: The command line.
    """
    from tqdm import tqdm

    from agents import provenance
    from agents.evaluation import PartialResults, histories_of, plan, run_all, summarise
    from dsd_env.files import write_json

    # A whole cycle of the load in the steady state, unless a number of requests is asked for.
    cycles = 1 if arguments.requests is None else None
    tasks = plan([scenario], schedulers, arguments.seeds, arguments.requests, cycles=cycles)
    partial = PartialResults(None)
    with tqdm(total=len(tasks), desc="evaluate", unit="episode") as bar:

        def keep(task: Any, metrics: dict[str, float]) -> None:
            partial.add(task, metrics)
            bar.update()

        run_all(tasks, arguments.jobs, keep)
    histories = {}
    if arguments.history:
        # Over time, for the report: of the policy, and of the best that it is held against.
        told = [task for task in tasks if task.scheduler in (schedulers[-1], best_of(tasks, partial.results))]
        found = tqdm(histories_of(told, arguments.jobs), total=2, desc="histories", unit="episode")
        histories = {task.key: history for task, history in found}
    metadata = {
        "made_by": "scripts/demo.py",
        "created": provenance.now_utc(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(_checkout.ROOT),
    }
    summary: dict[str, Any] = summarise(tasks, partial.results, metadata, histories)
    write_json(arguments.out / "evaluation.json", summary)
    return summary


def best_of(tasks: Sequence[Any], results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the baseline with the least mean request time; the last scheduler of all is none of them.

    Args:
        tasks: The evaluation's tasks.
        results: Metrics by task key.
    """
    values: dict[str, list[float]] = {}
    for task in tasks:
        values.setdefault(task.scheduler, []).append(results[task.key]["e2e_s_mean"])
    *baselines, _ = values
    return min(baselines, key=lambda name: statistics.fmean(values[name]))


def with_short_names(summary: dict[str, Any], short: dict[str, str]) -> dict[str, Any]:
    """Return a summary with some schedulers under names that fit into a table."""
    scenarios = {
        name: {
            **result,
            "schedulers": {short.get(key, key): entry for key, entry in result["schedulers"].items()},
        }
        for name, result in summary["scenarios"].items()
    }
    return {**summary, "scenarios": scenarios}


def origin(run: Path) -> str:
    """Return in plain words where the exported policy comes from."""
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    chosen = json.loads((run / "best.json").read_text())["num_timesteps"]
    first = validations[0]
    best = min(validations, key=lambda line: line["e2e_s_mean"])
    words = (
        f"The exported policy is the state after {chosen:,} decisions, the best on the validation episodes"
    )
    if first["step"] == 0 and chosen == 0:
        words += (
            f":\n{first['e2e_s_mean']:.3f} s. That is imitation alone. PPO made it no "
            "better, so it has learned nothing\nbeyond the rule that it started from, and differences to "
            "that rule are those of imitating it."
        )
    elif first["step"] == 0:
        words += (
            f":\n{best['e2e_s_mean']:.3f} s, where imitating the rule that it started from had reached "
            f"{first['e2e_s_mean']:.3f} s. So much of what it can do was imitated, the rest was learned."
        )
    return words


def verdict(schedulers: dict[str, Any], learned: str) -> str:
    """Return in plain words what the learned policy gained and lost.

    A difference counts if the 95 % bootstrap interval of the paired differences excludes zero.
    """
    from dsd_env.paired import bootstrap_ratio

    def per_seed(name: str, metric: str) -> np.ndarray:
        return np.array(schedulers[name]["metrics"][metric]["per_seed"], dtype=np.float64)

    def compare(name: str, metric: str, lower_is_better: bool = True) -> str:
        change, low, high = bootstrap_ratio(per_seed(learned, metric), per_seed(name, metric))
        interval = f"{100 * change:+6.1f} %  (95 % interval {100 * low:+.1f} to {100 * high:+.1f} %)"
        if not (high < 0 or low > 0):
            return f"{interval}  may be chance"
        return f"{interval}  {'BETTER' if (change < 0) == lower_is_better else 'WORSE'}"

    others = [name for name in schedulers if name != learned]
    best = min(others, key=lambda name: per_seed(name, "e2e_s_mean").mean())
    width = max(map(len, others))
    lines = ["Mean request time of the learned policy, episode by episode against:"]
    for name in others:
        mark = "  <- the best baseline" if name == best else ""
        lines.append(f"  {name:{width}} {compare(name, 'e2e_s_mean')}{mark}")
    lines.append(f"Everything else against {best}:")
    for metric, lower_is_better in COMPARED:
        lines.append(f"  {metric:28} {compare(best, metric, lower_is_better)}")
    change, low, high = bootstrap_ratio(per_seed(learned, "e2e_s_mean"), per_seed(best, "e2e_s_mean"))
    if high < 0:
        gain = f"{-100 * change:.1f} %"
        lines.append(
            f"In mean request time the learned policy is {gain} faster than the best baseline, {best}."
        )
    elif low > 0:
        lines.append(f"In mean request time the learned policy LOSES to {best}, by {100 * change:.1f} %.")
    else:
        lines.append(f"In mean request time the learned policy and {best} cannot be told apart here.")
    return "\n".join(lines)


def plot(schedulers: dict[str, Any], learned: str, scenario: str, path: Path) -> None:
    """Draw three metrics side by side, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from dsd_env.files import write_atomically

    panels = (
        ("e2e_s_mean", "mean request time (s)"),
        ("e2e_s_p95", "95th percentile of request time (s)"),
        ("tpot_s_mean", "mean time per output token (s)"),
    )
    names = list(schedulers)
    colours = ["#d1495b" if name == learned else "#30638e" for name in names]
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained", sharey=True)
    for axis, (metric, title) in zip(axes, panels, strict=True):
        means = np.array([schedulers[name]["metrics"][metric]["mean"] for name in names])
        intervals = [schedulers[name]["metrics"][metric]["ci95"] for name in names]
        low = np.array([mean if ci[0] is None else ci[0] for mean, ci in zip(means, intervals, strict=True)])
        high = np.array([mean if ci[1] is None else ci[1] for mean, ci in zip(means, intervals, strict=True)])
        axis.barh(names, means, color=colours, xerr=(means - low, high - means), error_kw={"elinewidth": 1})
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    figure.suptitle(f"Scenario {scenario}: unseen episodes, means with 95 % bootstrap intervals", fontsize=11)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def ask(bundle: Path, scenario: str, repeats: int = 2000) -> str:
    """Load the bundle with the torch-free runtime, decide on real states, and time it."""
    from dsd_env import ReferenceSimulation, load_scenario, policy
    from dsd_env.control import ActionSpace, ObservationEncoder

    loaded = policy.load(bundle, backend="numpy")
    content = load_scenario(scenario)
    encoder, actions = ObservationEncoder.of(content), ActionSpace.of(content)
    simulation = ReferenceSimulation(content, seed=0)
    states: list[tuple[np.ndarray, np.ndarray]] = []
    decision = None
    while len(states) < 200 and (view := simulation.next_decision()) is not None:
        states.append((encoder.encode(view), actions.mask(view)))
        decision = loaded.decide(*states[-1])
        simulation.decide(decision)
    durations = []
    for index in range(repeats):
        begin = time.perf_counter()
        loaded.decide(*states[index % len(states)])
        durations.append(time.perf_counter() - begin)
    quantiles = statistics.quantiles(durations, n=100)
    return (
        f"{loaded}\nthe last of {len(states)} decisions: {decision}\n"
        f"one decision takes {1e6 * quantiles[49]:.1f} µs (median), "
        f"{1e6 * quantiles[98]:.1f} µs (99th percentile)"
    )


if __name__ == "__main__":
    _cli.run(main)
