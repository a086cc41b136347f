"""``dsd-env profiles``: the measured parts that a scenario can name."""

from __future__ import annotations

import argparse
from typing import Any

from dsd_env.acceptance import available_run_models, available_trace_sets, load_run_model, load_trace_set
from dsd_env.cli.arguments import Commands, add_json, command
from dsd_env.cli.output import print_json, table
from dsd_env.latency import list_profiles, load_profile

_EXAMPLES = """
dsd-env profiles
dsd-env profiles --json"""

_NOTES = """
A scenario names latency profiles under `profile` of targets and drafters; the
`gpus` of a target are as many as its profile has. Under `acceptance` stands
{source: trace, trace: NAME, drafter: D} for a recording, and for a model
{source: KIND, model: NAME, drafter: D}. Files of your own are named by path.
--json has models, devices, precisions and kinds of requests, too."""

Row = dict[str, Any]


def add(commands: Commands) -> None:
    """Add the command."""
    does = "List the shipped latency profiles, recordings and models of acceptance."
    add_json(command(commands, "profiles", does, _EXAMPLES, run, notes=_NOTES))


def run(arguments: argparse.Namespace) -> int:
    """List what there is."""
    profiles, recordings, models = latency_profiles(), trace_sets(), acceptance_models()
    if arguments.json:
        print_json({"latency_profiles": profiles, "trace_sets": recordings, "acceptance_models": models})
        return 0
    keys = ("name", "role", "gpus", "kind")
    rows = [["name", "role", "GPUs", "kind"], *([str(row[key]) for key in keys] for row in profiles)]
    print(f"latency profiles:\n{table(rows, '  r', indent='  ')}")
    print(f"\nrecordings of acceptance (source: trace):\n{_pairs(recordings)}")
    print(f"\nmodels of acceptance (source: its kind):\n{_pairs(models)}")
    return 0


def latency_profiles() -> list[Row]:
    """Return the shipped latency profiles: what each is of, and what its times were fitted to."""
    profiles = [load_profile(name) for name in list_profiles()]
    return [
        {
            "name": profile.name,
            "role": profile.role,
            "gpus": profile.parallelism,
            "kind": profile.label,
            "model": profile.model,
            "device": profile.device,
            "precision": profile.precision,
        }
        for profile in profiles
    ]


def trace_sets() -> list[Row]:
    """Return the shipped recordings of acceptance."""
    recordings = [load_trace_set(name) for name in available_trace_sets()]
    return [
        {"name": each.name, "kind": each.label, "drafters": list(each.drafters), "requests": list(each.kinds)}
        for each in recordings
    ]


def acceptance_models() -> list[Row]:
    """Return the shipped models of acceptance; each kind of request has all drafters."""
    models = [load_run_model(name) for name in available_run_models()]
    return [
        {
            "name": each.name,
            "kind": each.label,
            "drafters": list(next(iter(each.processes.values()))),
            "requests": list(each.processes),
        }
        for each in models
    ]


def _pairs(rows: list[Row]) -> str:
    """Return a line for each target with its drafters."""
    lines = [[row["name"], row["kind"], ", ".join(row["drafters"])] for row in rows]
    return table([["name", "kind", "drafters"], *lines], indent="  ")
