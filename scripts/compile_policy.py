"""Compile a policy or rule into a table, say what that costs in the simulator, and export it for engines.

    python scripts/compile_policy.py --policy policies/metro --scenario metro --out table.json

The policy decides in simulations; the table keeps, for every cell over batch size, context, acceptance and
RTT, its commonest decision. Further passes let the table decide and ask the policy what it would have done,
so that the table also knows where it leads to. Then both, and the table by batch size alone that engines
take, run on seeds that the table was not made from, paired.

What a policy of the fleet view plans is recorded in the same way. A table knows no groups, so beside the one
for all there is one by batch size for each group, for engines that serve one class each: --group NAME exports
that one. The comparison has both.

Exports: --vllm FILE, --sglang FILE, --tensorrt-llm FILE with --tensorrt-llm-version.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np
from tqdm import tqdm

from dsd_env import simulate
from dsd_env.control import Decision, DecisionView
from dsd_env.control.fleet_view import FleetTelemetry
from dsd_env.files import write_json
from dsd_env.paired import bootstrap_ratio
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.schedulers import Scheduler, SchedulerError, make_scheduler
from dsd_env.schedulers.adaptive import stopping_rule
from dsd_env.schedulers.base import FleetWatcher
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.schedulers.table import Axes, GroupTableScheduler, Table, TableBuilder, TableScheduler
from dsd_env.serving.engines.tables import (
    TableExportError,
    sglang_config,
    steps_by_batch,
    tensorrt_llm_schedule,
    vllm_schedule,
)

METRICS = (
    "e2e_s_mean",
    "tpot_s_mean",
    "ttft_s_mean",
    "slo_attainment",
    "goodput_requests_per_s",
    "throughput_tokens_per_s",
    "cloud_usd_per_1m_tokens",
)
"""What is compared."""
FIRST_TEST_SEED = 1000
"""Seeds of the comparison begin here; the table is made from those before."""


class Teacher:
    """Lets one scheduler decide and shows the views, with what another would decide, to builders.

    Attributes:
        name: Name of the pair.
    """

    def __init__(
        self, teacher: Scheduler, actor: Scheduler, builder: TableBuilder, of_groups: Sequence[TableBuilder]
    ) -> None:
        """Take the scheduler to be compiled, the one that acts (it may be the same), and the builders.

        Args:
            teacher: What is compiled.
            actor: What acts.
            builder: Sees all decisions.
            of_groups: See those of each group, if the teacher is a policy of the fleet view.
        """
        self.name = f"{teacher.name} by {actor.name}"
        self._teacher, self._actor = teacher, actor
        self._builder, self._of_groups = builder, of_groups

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare both."""
        self._teacher.reset(scenario, seed)
        self._actor.reset(scenario, seed)

    def watch(self, telemetry: Callable[[], FleetTelemetry]) -> None:
        """Hand the fleet's telemetry to the teacher, if it is of the fleet view."""
        for each in {id(each): each for each in (self._teacher, self._actor)}.values():
            if isinstance(each, FleetWatcher):
                each.watch(telemetry)

    def decide(self, view: DecisionView) -> Decision:
        """Return the actor's decision, and count the teacher's."""
        wanted = self._teacher.decide(view)
        self._builder.see(view, wanted)
        if isinstance(self._teacher, FleetPolicyScheduler) and self._teacher.space is not None:
            self._of_groups[self._teacher.space.group_of_view(view)].see(view, wanted)
        return wanted if self._actor is self._teacher else self._actor.decide(view)


def compile_table(
    scenario: Scenario, policy: Scheduler, axes: Axes, *, seeds: int, passes: int
) -> tuple[Table, dict[str, Table]]:
    """Return the table of a policy; of one of the fleet view also those by batch size of its groups.

    A group whose requests never came has the table of all.

    Args:
        scenario: Where it decides.
        policy: What decides.
        axes: Cells of the table.
        seeds: Simulations per pass.
        passes: In the first the policy acts, in the others the table made so far.
    """
    builder, actor = TableBuilder(axes), policy
    names: tuple[str, ...] = ()
    if isinstance(policy, FleetPolicyScheduler):
        names = policy.policy.fleet_space(scenario).group_names
    of_groups = [TableBuilder(axes) for _ in names]
    table: Table | None = None
    for number in range(passes):
        for seed in tqdm(range(seeds), desc=f"pass {number + 1}", leave=False):
            simulate(scenario, Teacher(policy, actor, builder, of_groups), seed=seed + number * seeds)
        table = builder.build(policy.name, scenario.name)
        actor = TableScheduler("table", table)
    assert table is not None
    by_group = {
        name: (each.build(f"{policy.name}, {name}", scenario.name) if each.seen else table).by_batch()
        for name, each in zip(names, of_groups, strict=True)
    }
    return table, by_group


def compare(scenario: Scenario, schedulers: dict[str, Scheduler], *, seeds: int) -> dict[str, Any]:
    """Return metrics by scheduler, and differences from the first, paired by seed, with 95 % intervals."""
    rows: dict[str, dict[str, list[float]]] = {}
    for name, scheduler in schedulers.items():
        rows[name] = {metric: [] for metric in METRICS}
        for seed in tqdm(range(FIRST_TEST_SEED, FIRST_TEST_SEED + seeds), desc=name, leave=False):
            metrics = simulate(scenario, scheduler, seed=seed).metrics
            for metric in METRICS:
                rows[name][metric].append(metrics[metric])
    first = next(iter(rows))
    found: dict[str, Any] = {}
    for name, columns in rows.items():
        found[name] = {}
        for metric, values in columns.items():
            known = np.array(values)
            found[name][metric] = {"mean": _number(known.mean())}
            if name != first:
                change = bootstrap_ratio(known, np.array(rows[first][metric]))
                found[name][metric]["change"] = [_number(each) for each in change]
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _edges(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--policy", required=True, help="folder of a bundle, or a scheduler by name")
    parser.add_argument("--scenario", required=True, help="name or file of the scenario to compile on")
    parser.add_argument("--out", type=Path, required=True, help="file of the table (JSON)")
    parser.add_argument("--seeds", type=int, default=4, help="simulations per pass (default 4)")
    parser.add_argument("--passes", type=int, default=2, help="passes (default 2)")
    parser.add_argument("--test-seeds", type=int, default=8, help="simulations to compare on (default 8)")
    parser.add_argument("--requests", type=int, help="requests to measure, instead of the scenario's window")
    defaults = Axes()
    for name in ("batch", "context_tokens", "acceptance", "rtt_s"):
        told = ",".join(f"{edge:g}" for edge in getattr(defaults, name))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_edges,
            help=f'edges of the cells; "" for one cell (default {told})',
        )
    parser.add_argument(
        "--group", help="export the table of this group, with a policy of the fleet view; default: of all"
    )
    parser.add_argument("--report", type=Path, help="file for the comparison (JSON)")
    parser.add_argument("--vllm", type=Path, help="write vLLM's num_speculative_tokens_per_batch_size")
    parser.add_argument("--sglang", type=Path, help="write SGLang's --speculative-adaptive-config")
    parser.add_argument("--tensorrt-llm", type=Path, help="write TensorRT-LLM's draft_len_schedule")
    parser.add_argument(
        "--tensorrt-llm-version", help="version it is for, such as 1.2; what its keys mean depends on it"
    )
    parser.add_argument(
        "--max-batch-size", type=int, help="largest batch of the engine (default: the scenario's)"
    )
    return parser


def _check_lengths(policy: Scheduler) -> None:
    """Refuse what ends drafts in doubt before it is simulated: a table holds lengths.

    Raises:
        ValueError: It does.
    """
    by_policy = isinstance(policy, PolicyScheduler) and policy.policy.actions.stop_thresholds
    if by_policy or stopping_rule(policy) is not None:
        raise ValueError(
            f"{policy.name} ends drafts where the drafter doubts, and a table holds lengths alone; compile a "
            "policy that was trained without actions.stop_thresholds"
        )


def main() -> int:
    """Compile, compare and export."""
    parser = _parser()
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("seeds", "passes", "requests", "max_batch_size"))
    if arguments.tensorrt_llm and not arguments.tensorrt_llm_version:
        parser.error("--tensorrt-llm needs --tensorrt-llm-version: what the keys mean depends on it")
    try:
        given = {
            name: getattr(arguments, name)
            for name in ("batch", "context_tokens", "acceptance", "rtt_s")
            if getattr(arguments, name) is not None
        }
        axes = Axes(**given)
        scenario = load_scenario(arguments.scenario)
        if arguments.requests:
            scenario = measuring(scenario, arguments.requests)
        name = arguments.policy
        policy = make_scheduler(f"policy:{name}" if Path(name).is_dir() else name)
        policy.reset(scenario, 0)
        _check_lengths(policy)
        _check_group(policy, arguments.group)
    except (ScenarioError, SchedulerError, ValueError) as error:
        parser.error(str(error))
    table, by_group = compile_table(scenario, policy, axes, seeds=arguments.seeds, passes=arguments.passes)
    table.save(arguments.out)
    seen = sum(1 for each in table.visits if each)
    print(f"{arguments.out}: {axes.cells} cells, {seen} of them visited")
    most = arguments.max_batch_size or max(scenario.max_num_seqs)
    by_batch = table.by_batch()
    for group, each in by_group.items():
        lengths = ", ".join(f"{low}-{high}: {gamma}" for low, high, gamma in steps_by_batch(each, most))
        print(f"{group}: speculation length by batch size {lengths}")
    told = table if arguments.group is None else by_group[arguments.group]
    for file, exported in (
        (arguments.vllm, lambda: vllm_schedule(told, most)),
        (arguments.sglang, lambda: sglang_config(told)),
        (arguments.tensorrt_llm, lambda: tensorrt_llm_schedule(told, arguments.tensorrt_llm_version, most)),
    ):
        if file is not None:
            try:
                write_json(file, exported())
            except TableExportError as error:
                parser.error(str(error))
            print(f"{file}: by batch size" + (f", {arguments.group}" if arguments.group else ""))
    if arguments.test_seeds > 0:
        compared: dict[str, Scheduler] = {
            "policy": policy,
            "table": TableScheduler("table", table),
            "by batch size": TableScheduler("by batch size", by_batch),
        }
        if isinstance(policy, FleetPolicyScheduler):
            fleet = policy.policy.manifest.action.fleet
            assert fleet is not None
            settings = fleet.model_dump(include={"control_period_s", "grouping", "name_targets"})
            compared["by group and batch size"] = GroupTableScheduler(
                "by group and batch size", list(by_group.values()), settings
            )
        found = compare(scenario, compared, seeds=arguments.test_seeds)
        _print(found)
        if arguments.report:
            write_json(
                arguments.report,
                {
                    "policy": policy.name,
                    "scenario": scenario.name,
                    "seeds": arguments.test_seeds,
                    "metrics": found,
                },
            )
    return 0


def _check_group(policy: Scheduler, group: str | None) -> None:
    """Make sure that there is the group whose table is to be exported.

    Raises:
        ValueError: There is none.
    """
    if group is None:
        return
    if not isinstance(policy, FleetPolicyScheduler) or policy.space is None:
        raise ValueError("--group: only policies of the fleet view plan for groups")
    if group not in policy.space.group_names:
        raise ValueError(f"--group {group!r} is not one of {', '.join(policy.space.group_names)}")


def _print(found: dict[str, Any]) -> None:
    print(f"{'metric':<26}" + "".join(f"{name:>34}" for name in found))
    for metric in METRICS:
        line = f"{metric:<26}"
        for columns in found.values():
            each = columns[metric]
            text = "-" if each["mean"] is None else f"{each['mean']:.5g}"
            if "change" in each and None not in each["change"]:
                change, low, high = (100 * x for x in each["change"])
                text += f" ({change:+.1f} %, {low:+.1f} to {high:+.1f})"
            line += f"{text:>34}"
        print(line)


if __name__ == "__main__":
    _cli.run(main)
