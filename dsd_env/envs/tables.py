"""The tables of the environment's documentation, generated from the code that they describe.

``python -m dsd_env.envs.tables`` prints the tables. With ``--write`` it puts them into the docstrings of
``EdgeCloudEnv`` and ``EdgeCloudFleetEnv`` and into ``docs/environment.md`` of a checkout. Tests compare the
copies with the code, so that none can go stale.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dsd_env.control import Feature, ObservationEncoder
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.control.rewards import TERMS


def observation_table() -> str:
    """Return the table of all features in Markdown, valid for any number of placements.

    The features of candidate `i` are listed once; the features of the system come last.
    """
    two = ObservationEncoder(2).features
    first = next(index for index, feature in enumerate(two) if feature.name.startswith("candidate_0."))
    second = next(index for index, feature in enumerate(two) if feature.name.startswith("candidate_1."))
    width = second - first
    rows = [(str(index), feature) for index, feature in enumerate(two[:first])]
    for offset, feature in enumerate(two[first:second]):
        name = feature.name.replace("candidate_0.", "candidate_i.")
        rows.append((f"{first + offset} + {width}·i", feature._replace(name=name)))
    system = two[second + width :]
    rows += [(str(index - len(system)), feature) for index, feature in enumerate(system)]
    lines = ["| Num | Observation | Unit | Scaling | Range | Meaning |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {number} | `{feature.name}` | {feature.unit} | {_scaling(feature)} | {_range(feature)} "
        f"| {feature.meaning} |"
        for number, feature in rows
    ]
    return "\n".join(lines)


def menu_table() -> str:
    """Return the table of the further features per candidate in a scenario with a menu of drafters."""
    return _besides("a menu", ObservationEncoder(1, has_menu=True))


def branches_table() -> str:
    """Return the table of the further features per candidate in a scenario that offers branches."""
    return _besides("branches", ObservationEncoder(1, offers_branches=True))


def _besides(subject: str, encoder: ObservationEncoder) -> str:
    """Return the table of an encoder's features that a plain scenario does not have."""
    plain = {feature.name for feature in ObservationEncoder(1).features}
    lines = [f"| Observation of {subject} | Unit | Scaling | Range | Meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{feature.name.replace('candidate_0.', 'candidate_i.')}` | {feature.unit} | {_scaling(feature)} "
        f"| {_range(feature)} | {feature.meaning} |"
        for feature in encoder.features
        if feature.name not in plain
    ]
    return "\n".join(lines)


def fleet_table() -> str:
    """Return the table of the fleet view's features, each kind of object once; i and j count from 0."""
    encoder = FleetEncoder(n_groups=1, n_places=1, n_targets=1, n_models=1)
    lines = ["| Observation of the fleet | Unit | Scaling | Range | Meaning |", "|---|---|---|---|---|"]
    for feature in encoder.features:
        name = feature.name.replace("place_0", "place_j").replace("_0.", "_i.")
        lines.append(
            f"| `{name}` | {feature.unit} | {_scaling(feature)} | {_range(feature)} | {feature.meaning} |"
        )
    return "\n".join(lines)


def _scaling(feature: Feature) -> str:
    if feature.scale == "fraction":
        return "x"
    magnitude = "abs(x)" if feature.scale == "signed" else "x"
    return f"x / ({magnitude} + {feature.half:g})"


def _range(feature: Feature) -> str:
    return {"fraction": "[0, 1]", "squash": "[0, 1]", "signed": "[-1, 1]"}[feature.scale]


def reward_table() -> str:
    """Return the table of all reward terms in Markdown."""
    lines = ["| Term | Value | Divided by |", "|---|---|---|"]
    for term in TERMS:
        reference = "–" if term.reference is None else f"`{term.reference}`"
        lines.append(f"| `{term.name}` | {'−' if term.sign < 0.0 else '+'} {term.meaning} | {reference} |")
    return "\n".join(lines)


TABLES = (observation_table, menu_table, branches_table, reward_table)
"""The tables of the per-request view; :func:`with_tables` finds each in a text by its first line."""
FLEET_TABLES = (fleet_table,)
"""The tables of the fleet view."""


def with_tables(text: str, tables: Sequence[Callable[[], str]] = TABLES) -> str:
    """Return a text in which each of the given tables is replaced by its current version."""
    lines = text.split("\n")
    for table in tables:
        new = table().split("\n")
        begin = next(n for n, line in enumerate(lines) if line.strip() == new[0])
        end = next(n for n in range(begin, len(lines)) if not lines[n].lstrip().startswith("|"))
        indent = lines[begin][: -len(new[0])]
        lines[begin:end] = [indent + line for line in new]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into the files that hold them."""
    if arguments != ["--write"]:
        print("\n\n".join(table() for table in (*TABLES, *FLEET_TABLES)))
        return
    here = Path(__file__)
    holders = {
        here.with_name("edge_cloud.py"): TABLES,
        here.with_name("fleet.py"): FLEET_TABLES,
        here.parents[2] / "docs" / "environment.md": (*TABLES, *FLEET_TABLES),
    }
    for file, tables in holders.items():
        file.write_text(with_tables(file.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
