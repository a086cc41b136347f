"""``dsd-env list`` and ``dsd-env show``: which scenarios there are, and what is in one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from dsd_env.cli.arguments import Commands, add_json, add_scenario, command, scenario_of
from dsd_env.cli.output import number, paragraph, print_json, shortened, table, width
from dsd_env.scenario import Scenario, list_scenarios, load_scenario
from dsd_env.scenario.loader import has_own_card, scenario_dir
from dsd_env.scenario.schema import ColocatedDrafter, Drafter, Profile, ReplayArrivals
from dsd_env.workload.replay import replay_schedule

_LIST = """
dsd-env list
dsd-env list --json"""

_SHOW = """
dsd-env show metro
dsd-env show my_scenario.yaml
dsd-env show metro --set protocol.kind=synchronous --json"""

RULE = "cloud_ar"
"""The scheduler of the command line that measures a scenario."""


def add_list(commands: Commands) -> None:
    """Add the command ``list``."""
    add_json(command(commands, "list", "List the shipped scenarios, one a line.", _LIST, run_list))


def add_show(commands: Commands) -> None:
    """Add the command ``show``."""
    does = "Show what is in a scenario; a YAML file is validated."
    parser = command(commands, "show", does, _SHOW, run_show)
    add_scenario(parser)
    add_json(parser, "print the whole scenario as JSON, every key with its value")


def run_list(arguments: argparse.Namespace) -> int:
    """List the shipped scenarios."""
    names = list_scenarios()
    if arguments.json:
        print_json([_summary(name) for name in names])
        return 0
    room = max(map(len, names)) + 2
    for name in names:
        print(f"{name:{room}}{shortened(title_of(name), width() - room)}")
    return 0


def title_of(name: str) -> str:
    """Return what a shipped scenario is, in one sentence: its file begins with that, as a comment."""
    with (scenario_dir() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _summary(name: str) -> dict[str, Any]:
    scenario = load_scenario(name)
    return {
        "name": name,
        "title": title_of(name),
        "devices": scenario.n_devices,
        "edge_servers": scenario.n_edge_servers,
        "targets": scenario.n_targets,
        "protocol": _protocol(scenario),
    }


def _protocol(scenario: Scenario) -> str:
    branches = "+branches" if scenario.protocol.branches.fanout else ""
    return f"{scenario.protocol.kind}{branches}"


def run_show(arguments: argparse.Namespace) -> int:
    """Show one scenario."""
    scenario = scenario_of(arguments)
    if isinstance(scenario.workload.arrivals, ReplayArrivals):
        replay_schedule(scenario)  # which reads the trace, and says what is wrong with it
    if arguments.json:
        print_json(scenario.model_dump(mode="json"))
        return 0
    own_card = not arguments.changes and has_own_card(arguments.scenario)
    print("\n\n".join(_sections(scenario, own_card)))
    if scenario.card.utilisation and own_card:
        print(f"\nto measure it, as above:\n  {_measuring(arguments.scenario)}")
    return 0


def _measuring(scenario: str) -> str:
    """Return the command line that measures a scenario as its card does; the rule is one of many."""
    return f"dsd-env simulate {shlex.quote(scenario)} --cycles 1 --scheduler {RULE} --seed 1"


def _sections(scenario: Scenario, own_card: bool) -> Iterator[str]:
    """Yield what is said about a scenario, paragraph by paragraph.

    Args:
        scenario: The scenario.
        own_card: Its card is about this very scenario, and not about one that it extends or changes.
    """
    card = scenario.card
    yield scenario.name
    if not own_card:
        yield paragraph(
            "(The text below is of the scenario that this one changes; nothing of it was measured here.)"
        )
    for title, text in (
        ("situation", card.models),
        ("regime", card.regime),
        ("measured", card.utilisation if own_card else ""),
        ("limits", card.limits),
    ):
        if text:
            yield f"{title}:\n{paragraph(text, '  ')}"
    rows = [
        [name, str(one.count), _menu(one.menu), _link(scenario, one.link)]
        for name, one in scenario.devices.items()
    ]
    yield _table("devices", ["class", "count", "drafter", "link to the targets"], rows)
    if scenario.edge_servers:
        rows = [
            [name, str(one.count), _menu(one.menu), _link(scenario, one.backhaul)]
            for name, one in scenario.edge_servers.items()
        ]
        yield _table("edge servers", ["class", "count", "drafter", "link to the targets"], rows)
    rows = [
        [name, str(one.count), f"{one.gpus:g}", str(one.max_num_seqs), _profile(one.profile), _menu(one.menu)]
        for name, one in scenario.targets.items()
    ]
    head = ["class", "count", "GPUs", "seats", "profile", "drafters beside it"]
    ways_s = [one.extra_one_way_s for one in scenario.targets.values()]
    if any(ways_s):
        head.append("beyond the links")
        rows = [[*row, f"{1e3 * way_s:g} ms each way"] for row, way_s in zip(rows, ways_s, strict=True)]
    yield _table("targets", head, rows)
    yield "requests:\n" + "\n".join(_requests(scenario))
    changed = scenario.protocol.model_dump(mode="json", exclude_defaults=True)
    words = [f"{key}: {value}" for key, value in changed.items() if key != "kind"]
    yield paragraph("protocol: " + ", ".join([scenario.protocol.kind, *words]))
    actions = scenario.actions
    yield "\n".join(
        [
            "actions:",
            paragraph(f"gamma (drafts, or window of a stream): {_list(actions.gammas)}", "  "),
            *(
                [paragraph(f"or the longest, until in doubt by: {_list(actions.stop_thresholds)}", "  ")]
                if actions.stop_thresholds
                else []
            ),
            paragraph(f"batch sizes: {_list(actions.batch_sizes)}", "  "),
            paragraph(f"placements: {scenario.n_placements}", "  "),
        ]
    )


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    return f"{title}:\n{table([head, *rows], ' rrr' if 'GPUs' in head else ' r', indent='  ')}"


def _menu(drafters: Sequence[Drafter | ColocatedDrafter]) -> str:
    return ", ".join(drafter.model for drafter in drafters) or "none"


def _profile(profile: Profile) -> str:
    return profile if isinstance(profile, str) else "coefficients of its own"


def _link(scenario: Scenario, name: str) -> str:
    """Return a link's name, its mean round trip without jitter, and its nominal rate up."""
    link = scenario.links[name]
    return f"{name}: {2e3 * link.one_way_s:g} ms round trip, {1e-6 * link.uplink_bits_per_s:g} Mbit/s up"


def _requests(scenario: Scenario) -> Iterator[str]:
    workload, episode = scenario.workload, scenario.episode
    yield f"  arrivals: {workload.arrivals.kind}"
    share = sum(kind.weight for kind in workload.kinds.values())
    for name, kind in workload.kinds.items():
        slo = scenario.slo[kind.slo].model_dump(exclude_none=True)
        bounds = ", ".join(f"{key} {value:g}" for key, value in slo.items() if isinstance(value, float))
        yield f"  {name}: {100.0 * kind.weight / share:.0f} %, SLO {kind.slo}" + f" ({bounds})" * bool(bounds)
    if episode.window_s is None:
        yield f"  measured: {episode.requests} requests after {episode.warmup_requests}"
    else:
        yield f"  measured: {number(episode.window_s)} s after {number(episode.warmup_s)} s"


def _list(values: Sequence[float]) -> str:
    return " ".join(map(str, values))
