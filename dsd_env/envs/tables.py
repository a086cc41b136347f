"""The tables of the environment's documentation, made from the code that they describe.

``python -m dsd_env.envs.tables`` prints them; tests compare them with the class docstring and with
``docs/environment.md``, so that neither can go stale.
"""

from __future__ import annotations

from dsd_env.control import Feature, ObservationEncoder


def observation_table() -> str:
    """Return the table of all features in Markdown, for any number of placements.

    The features of candidate `i` are listed once; those of the system come last.
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


def _scaling(feature: Feature) -> str:
    if feature.scale == "fraction":
        return "x"
    magnitude = "abs(x)" if feature.scale == "signed" else "x"
    return f"x / ({magnitude} + {feature.half:g})"


def _range(feature: Feature) -> str:
    return {"fraction": "[0, 1]", "squash": "[0, 1]", "signed": "[-1, 1]"}[feature.scale]


if __name__ == "__main__":
    print(observation_table())
