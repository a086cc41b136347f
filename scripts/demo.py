"""The whole way in one command: train, evaluate on unseen episodes, compare, plot, export, load, decide.

    python scripts/demo.py --out demo_out

Everything goes through the same functions as the other scripts; see them for each step alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import numpy as np

BASELINES = ("cloud_ar", "colocated_sd:4", "colocated_sd:2", "edge_sd:4", "hf_heuristic", "jsq_goodput")
METRICS = (
    "e2e_s_mean",
    "e2e_s_p95",
    "ttft_s_mean",
    "tpot_s_mean",
    "slo_attainment",
    "throughput_tokens_per_s",
)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo", help="training configuration (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), metavar="DIR", help="where results go")
    parser.add_argument("--timesteps", type=int, help="decisions to train for, instead of the file's")
    parser.add_argument("--seeds", type=int, default=5, help="evaluation episodes per scheduler")
    parser.add_argument("--requests", type=int, help="measured requests per evaluation episode")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the evaluation")
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
    train_afresh_or_resume(config, run)

    console.rule("2. Export: a file that needs neither torch nor Stable-Baselines3")
    from agents.export import export_run

    manifest = export_run(run, bundle, "best", overwrite=True)
    for name, entry in manifest.files.items():
        print(f"{bundle / name}: {entry.bytes:,} bytes")

    console.rule("3. Evaluate: episodes that training never saw, the same for every scheduler")
    learned = f"policy:{bundle}"
    summary = evaluate(config.scenario, [*BASELINES, learned], arguments)

    from agents.report import print_tables

    print_tables(summary, METRICS, console)
    schedulers = summary["scenarios"][config.scenario]["schedulers"]
    print(verdict(schedulers, learned))
    figure = arguments.out / "comparison.png"
    plot(schedulers, learned, config.scenario, figure)
    print(f"figure: {figure}")

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
            print(f"begins anew: {error}")
            shutil.rmtree(run)
    train(config, run)


def evaluate(scenario: str, schedulers: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the summary of a paired evaluation, also written to ``evaluation.json``."""
    from tqdm import tqdm

    from agents.evaluation import PartialResults, plan, run_all, summarise
    from agents.files import write_json

    tasks = plan([scenario], schedulers, arguments.seeds, arguments.requests)
    partial = PartialResults(None)
    with tqdm(total=len(tasks), desc="evaluate", unit="episode") as bar:

        def keep(task: Any, metrics: dict[str, float]) -> None:
            partial.add(task, metrics)
            bar.update()

        run_all(tasks, arguments.jobs, keep)
    summary: dict[str, Any] = summarise(tasks, partial.results, {"made_by": "scripts/demo.py"})
    write_json(arguments.out / "evaluation.json", summary)
    return summary


def verdict(schedulers: dict[str, Any], learned: str) -> str:
    """Return in plain words what the learned policy gained or lost against each baseline.

    A difference counts if the 95 % bootstrap interval of the paired differences excludes zero.
    """
    from agents.evaluation import bootstrap_ratio

    def per_seed(name: str) -> np.ndarray:
        return np.array(schedulers[name]["metrics"]["e2e_s_mean"]["per_seed"], dtype=np.float64)

    lines = ["Mean request time of the learned policy, episode by episode against:"]
    best = min((name for name in schedulers if name != learned), key=lambda name: per_seed(name).mean())
    for name in schedulers:
        if name == learned:
            continue
        change, low, high = bootstrap_ratio(per_seed(learned), per_seed(name))
        word = "shorter" if change < 0 else "longer"
        sure = "" if high < 0 or low > 0 else ", which may be chance"
        mark = "  <- the best baseline" if name == best else ""
        interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} %"
        lines.append(f"  {name:16} {100 * abs(change):5.1f} % {word} ({interval}){sure}{mark}")
    change, low, high = bootstrap_ratio(per_seed(learned), per_seed(best))
    if high < 0:
        lines.append(f"The learned policy beats every baseline here; the closest is {best}.")
    elif low > 0:
        lines.append(f"The learned policy LOSES to {best} here, by {100 * change:.1f} %.")
    else:
        lines.append(f"The learned policy and {best} cannot be told apart on these episodes.")
    return "\n".join(lines)


def plot(schedulers: dict[str, Any], learned: str, scenario: str, path: Path) -> None:
    """Draw three metrics side by side, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = (
        ("e2e_s_mean", "mean request time (s)"),
        ("e2e_s_p95", "95th percentile of request time (s)"),
        ("tpot_s_mean", "mean time per output token (s)"),
    )
    names = list(schedulers)
    labels = ["learned policy" if name == learned else name for name in names]
    colours = ["#d1495b" if name == learned else "#30638e" for name in names]
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained", sharey=True)
    for axis, (metric, title) in zip(axes, panels, strict=True):
        means = np.array([schedulers[name]["metrics"][metric]["mean"] for name in names])
        intervals = [schedulers[name]["metrics"][metric]["ci95"] for name in names]
        low = np.array([mean if ci[0] is None else ci[0] for mean, ci in zip(means, intervals, strict=True)])
        high = np.array([mean if ci[1] is None else ci[1] for mean, ci in zip(means, intervals, strict=True)])
        axis.barh(labels, means, color=colours, xerr=(means - low, high - means), error_kw={"elinewidth": 1})
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    figure.suptitle(f"Scenario {scenario}: unseen episodes, means with 95 % bootstrap intervals", fontsize=11)
    temporary = path.with_name(path.name + ".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
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
    sys.exit(main())
