"""Gives the sites of random scenarios several drafters, look-ups and draft heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsd_env.sim.fuzz.dice import Data, Dice

MOST_DRAFTERS = 4


def add_menus(dice: Dice, scenario: Data, traces: dict[str, Mapping[str, Any]]) -> None:
    """Make look-ups and heads of some drafters and put others beside some, in a part of all cases.

    Args:
        dice: Source of draws.
        scenario: Scenario, changed in place.
        traces: Recipes of its traces; that of a look-up which proposes few tokens or none is added.
    """
    if not ({"lookups", "heads", "menus"} & dice.features and dice.chance(0.4)):
        return
    models = list(scenario["acceptance"])
    if "trace" in dice.features and "lookups" in dice.features and dice.chance(0.7):
        name = f"made-{len(traces)}"
        traces[name] = {"lengths": [5, 17, 2, 9], "kind": [0, 1, 0, 1], "seed": dice.count(0, 10_000)}
        scenario["acceptance"]["look"] = {"source": "trace", "trace": name, "drafter": "look"}
    for site in (*scenario["devices"].values(), *scenario.get("edge_servers", {}).values()):
        _vary(dice, scenario, site, "drafter", models)
    for target in scenario["targets"].values():
        _vary(dice, scenario, target, "colocated_drafter", models)
        menu = target.get("colocated_drafters", [target.get("colocated_drafter") or {"mode": "dedicated"}])
        if any(drafter.get("mode", "shared") == "shared" for drafter in menu):
            # The table of a shared drafter's first pass holds the KV lag of eight sequences.
            target["max_num_seqs"] = min(8, target["max_num_seqs"])


def places_of(scenario: Data) -> list[int]:
    """Return the site of each place among an offered target's candidates; see ``Scenario.places``."""
    offered = scenario["actions"].get("offer_branches", False)

    def at(site: int, owners: list[Data], key: str) -> list[int]:
        menus = [owner.get(f"{key}s") or [owner.get(key) or {"kind": "none"}] for owner in owners]
        ranks = [[menu[n] for menu in menus if n < len(menu)] for n in range(max(map(len, menus)))]
        streams = [any(may_stream(drafter, site) for drafter in rank) for rank in ranks]
        return [site for each in streams for _ in range(2 if offered and each else 1)]

    def may_stream(drafter: Data, site: int) -> bool:
        model: bool = drafter.get("kind", "model") == "model"
        return model and (site != 0 or drafter.get("mode", "shared") == "dedicated")

    places = at(0, list(scenario["targets"].values()), "colocated_drafter")
    places += at(1, list(scenario["devices"].values()), "drafter")
    edges = list(scenario.get("edge_servers", {}).values())
    limit = scenario["actions"].get("edge_servers_offered")
    if limit is not None and edges:
        n_offered: int = min(limit, sum(edge["count"] for edge in edges))
        return places + n_offered * at(2, edges, "drafter")
    for edge in edges:
        places += edge["count"] * at(2, [edge], "drafter")
    return places


def _vary(dice: Dice, scenario: Data, site: Data, key: str, models: list[str]) -> None:
    """Change the drafter of a site, or make several of it."""
    if site.get(key) is None:
        return
    at_target = key == "colocated_drafter"
    first = site[key]
    if dice.chance(0.3):
        first = _other(dice, scenario, first, at_target, models)
    if not dice.has("menus", 0.7):
        site[key] = first
        return
    menu = [first]
    for _ in range(dice.pick(1, 2, MOST_DRAFTERS - 1)):
        menu.append(_other(dice, scenario, site[key], at_target, models))
    if dice.chance(0.5):
        menu.reverse()
    del site[key]
    site[f"{key}s"] = menu


def _other(dice: Dice, scenario: Data, drafter: Data, at_target: bool, models: list[str]) -> Data:
    """Return another drafter for the site of one."""
    if dice.has("lookups", 0.4):
        lookup: Data = {"cost_per_round_s": dice.pick(0.0, dice.of(dice.menu.draft_s), 2.0**-14)}
        if at_target and dice.chance(0.4):
            lookup["share_of_verify"] = dice.pick(0.5, 0.25)
        model = "look" if "look" in scenario["acceptance"] and dice.chance(0.8) else dice.of(models)
        return {"kind": "lookup", "model": model, "lookup": lookup}
    if drafter.get("kind", "model") != "model":
        drafter = {"profile": {"t0_s": dice.of(dice.menu.draft_s)}}
    other = {**drafter, "model": dice.of(models), "profile": {"t0_s": dice.of(dice.menu.draft_s)}}
    if dice.chance(0.3):
        other["profile"]["c_s_per_token"] = dice.of(dice.menu.per_token_s)
    if at_target and dice.has("heads", 0.4):
        return {"kind": "head", "model": other["model"], "profile": other["profile"]}
    return other
