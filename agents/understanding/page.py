"""An explanation as a page of Markdown, and as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
"""Columns of a terminal."""
_MOST_FEATURES = 12
"""Single features that page and terminal list."""


def page(result: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Return the page.

    Args:
        result: From :meth:`agents.understanding.explain.Explanation.result`.
        figures: Names of the figures that lie beside the page.
    """
    parts = [_head(result), _maps(result, "heat_maps.png" in figures)]
    if "importance" in result:
        parts.append(_importance(result, "importance.png" in figures))
    elif result["kind"] == "rule":
        parts.append(
            "## Which features decide\n\nNot asked: a rule reads the view, not the observation, so that "
            "nothing can be put in the place of its features.\n"
        )
    if result.get("trees"):
        parts.append(_trees(result, "trees.png" in figures))
    return "\n".join(parts)


def _head(result: Mapping[str, Any]) -> str:
    states, settings = result["states"], result["settings"]
    lines = [
        f"# What `{result['scheduler']}` does on `{result['scenario']['label']}`",
        "",
        f"States: {states['kept']:,} of {states['met']:,} decisions met in {settings['seeds']} validation "
        f"episodes ({_measured(result)}), {states['rounds']:,} of them rounds; the others are admissions.",
    ]
    if "itself" in result:
        metric = result["objective"]["metric"]
        lines.append(
            f"Costs: change of `{metric}` ({result['objective']['better']} is better) towards the worse, on "
            f"{len(result['test_seeds'])} further validation episodes, paired by seed, with the 95 % "
            f"bootstrap interval. The scheduler itself has {_number(result['itself']['means'][metric])}."
        )
    return "\n".join(lines) + "\n"


def _measured(result: Mapping[str, Any]) -> str:
    if result.get("window_s") is None:
        return "from their start on"
    return f"the window of {result['window_s']:g} s after {result['warmup_s']:g} s of warm-up"


def _maps(result: Mapping[str, Any], drawn: bool) -> str:
    maps = result["maps"]
    lines = [
        "## Speculation length and place",
        "",
        f"Over `{maps['across']['feature']}` and `{maps['upwards']['feature']}`, rounds only. A decision to "
        "draft where nobody can counts as plain decoding, which it becomes.",
        "",
    ]
    if drawn:
        lines += ["![Heat maps of speculation length and place](heat_maps.png)", ""]
    lines += ["Mean speculation length in states as they were met, in tokens (states):", ""]
    lines += _grid(maps, "visited", result["settings"]["few"])
    if "changed" in maps:
        along = {name: with_it for name, with_it in maps["changed_with"].items() if with_it}
        told = "; ".join(
            f"with `{name}` also {', '.join(f'`{each}`' for each in with_it)} where they tell the same number"
            for name, with_it in along.items()
        )
        lines += [
            "",
            f"The same with the two features changed in {result['settings']['sweep_states']} of these "
            f"states, the rest as it was{f' ({told})' if told else ''}:",
            "",
        ]
        lines += _grid(maps, "changed", None)
    return "\n".join(lines) + "\n"


def _grid(maps: Mapping[str, Any], kind: str, few: int | None) -> list[str]:
    """Return a table of speculation lengths, the largest value of the upward axis first."""
    across, upwards = maps["across"], maps["upwards"]
    lines = [
        f"| {upwards['feature']} \\ {across['feature']} | " + " | ".join(_ranges(across)) + " |",
        "|---" * (1 + len(across["middles"])) + "|",
    ]
    rows = list(zip(_ranges(upwards), maps[kind]["gamma_mean"], maps[kind]["states"], strict=True))
    for words, lengths, counts in reversed(rows):
        cells = []
        for length, count in zip(lengths, counts, strict=True):
            text = "–" if length is None else f"{length:.2f}"
            if few is not None and count:
                text += f" ({count}{' *' if count < few else ''})"
            cells.append(text)
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    if few is not None:
        lines += ["", f"\\* fewer than {few} states; –: none."]
    return lines


def _ranges(axis: Mapping[str, Any]) -> list[str]:
    edges, n = axis["edges"], len(axis["middles"])
    unit = "" if axis["unit"] in ("1", "0/1") else f" {axis['unit']}"
    return [f"{edges[i]:.3g}–{edges[i + 1]:.3g}{unit}" for i in range(n)]


def _importance(result: Mapping[str, Any], drawn: bool) -> str:
    importance = result["importance"]
    how = {
        "shuffle": "comes from a random state at every decision",
        "mean": "has its mean at every decision",
    }[result["settings"]["replace"]]
    lines = [
        "## Which features decide",
        "",
        "*Decisions changed*: share of the states in which another decision is made when the feature, or all "
        "of the group together, is that of another state. *Cost*: of playing on when it " + how + ".",
        "",
    ]
    if drawn:
        lines += ["![Importance of features](importance.png)", ""]
    for title, entries in (
        ("group", list(importance["groups"].items())),
        ("feature", list(importance["features"].items())[:_MOST_FEATURES]),
    ):
        lines += [
            f"| {title} | decisions changed | length changed | place changed | "
            "mean change of length (tokens) | cost |",
            "|---|---|---|---|---|---|",
        ]
        for name, entry in entries:
            changed = entry["changed"]
            lines.append(
                f"| `{name}` | {_share(changed['decision'])} | {_share(changed['gamma'])} | "
                f"{_share(changed['place'])} | {changed['gamma_tokens']:.2f} | {_cost(entry)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _trees(result: Mapping[str, Any], drawn: bool) -> str:
    seen = result["trees"][0]["compared_on"]["seen_before"]
    lines = [
        "## A small tree in its place",
        "",
        "Agreement is measured on states "
        + ("that the trees were made from" if seen else "of other episodes than the trees were made from")
        + ". Thresholds have the units of their features; of two lines at one depth the second is the rest.",
        "",
    ]
    if drawn:
        lines += ["![Agreement and cost of trees](trees.png)", ""]
    lines += [
        "| leaves | depth | same decision | same length | same place | cost |",
        "|---|---|---|---|---|---|",
    ]
    for tree in result["trees"]:
        agreement = tree["agreement"]
        lines.append(
            f"| {tree['leaves']} | {tree['depth']} | {_share(agreement['decision'])} | "
            f"{_share(agreement['gamma'])} | {_share(agreement['place'])} | {_cost(tree)} |"
        )
    for tree in result["trees"]:
        lines += ["", f"### {tree['leaves']} leaves", "", "```text", tree["rules"].rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """Return what a terminal of 80 columns shows."""
    states, metric = result["states"], result["objective"]["metric"]
    lines = [
        _cut(f"{result['scheduler']} on {result['scenario']['label']}"),
        f"{states['kept']:,} of {states['met']:,} decisions, {len(result['test_seeds'])} episodes in pairs",
    ]
    if "itself" in result:
        lines.append(f"{metric}: {_number(result['itself']['means'][metric])} by itself")
    maps = result["maps"]
    lines += ["", "mean speculation length, states as met"]
    lines += _lengths(maps)
    if "importance" in result:
        lines += ["", f"{'features':<38}{'changed':>9}  {'cost (95 % interval)':<30}".rstrip()]
        entries = [*result["importance"]["groups"].items()]
        entries += [item for item in result["importance"]["features"].items() if "simulated" in item[1]]
        for name, entry in entries:
            share = _share(entry["changed"]["decision"])
            lines.append(_cut(f"{_cut(name, 37):<38}{share:>9}  {_cost(entry)}".rstrip()))
    if result.get("trees"):
        lines += ["", f"{'tree':<38}{'agrees':>9}  {'cost (95 % interval)':<30}".rstrip()]
        for tree in result["trees"]:
            words = f"{tree['leaves']} leaves, {len(tree['features'])} features"
            lines.append(f"{words:<38}{_share(tree['agreement']['decision']):>9}  {_cost(tree)}".rstrip())
    return "\n".join(lines) + "\n"


def _lengths(maps: Mapping[str, Any]) -> list[str]:
    """Return the map of lengths as lines; of many cells across as many as there is room for."""
    across, upwards = maps["across"], maps["upwards"]
    n = min(len(across["middles"]), (WIDTH - 12) // 8)
    lines = [
        _cut(f"{upwards['feature']} upwards, {across['feature']} across: middles of the cells"),
        f"{'':<12}" + "".join(f"{middle:>8.2g}" for middle in across["middles"][:n]),
    ]
    for middle, lengths in reversed(
        list(zip(upwards["middles"], maps["visited"]["gamma_mean"], strict=True))
    ):
        cells = ("–" if length is None else f"{length:.2f}" for length in lengths[:n])
        lines.append(f"{middle:>12.4g}" + "".join(f"{cell:>8}" for cell in cells))
    return lines


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _cost(entry: Mapping[str, Any]) -> str:
    simulated = entry.get("simulated")
    if simulated is None or simulated["cost"] is None:
        return ""
    low, high = simulated["ci95"]
    interval = "" if low is None or high is None else f" ({100 * low:+.1f} … {100 * high:+.1f})"
    return f"{100 * simulated['cost']:+.1f} %{interval}"
