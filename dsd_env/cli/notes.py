"""What commands say about numbers that are right, but may not be those that were meant."""

from __future__ import annotations

import sys
from collections.abc import Collection

from dsd_env.control.fleet import SITES, drafters_at
from dsd_env.paired import FEW_SEEDS
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler
from dsd_env.schedulers.adaptive import AdaptiveScheduler
from dsd_env.schedulers.by_load import ByLoadScheduler
from dsd_env.schedulers.static import StaticChoice, StaticMapScheduler, StaticScheduler
from dsd_env.schedulers.stops import StoppingRule

START_UP = "A start-up, from an empty system on; --cycles 2 measures the steady state."


def start_up(scenario: Scenario) -> str:
    """Return the line that says that metrics are those of a start-up; "" if a window of time is measured."""
    return START_UP if scenario.episode.window_s is None else ""


def few_seeds(count: int) -> str:
    """Return the line that says that intervals of so few seeds are too narrow; "" if they are not."""
    few = f"Of {count} seeds these intervals are too narrow; take {FEW_SEEDS} or more."
    return few if 1 < count < FEW_SEEDS else ""


def closing_notes(scenarios: Collection[Scenario], seeds: int) -> list[str]:
    """Return what there is to say below a comparison of schedulers.

    Args:
        scenarios: What was simulated; if some alone are measured from their start-up, these are named.
        seeds: Number of episodes of each.
    """
    begun = [scenario.name for scenario in scenarios if start_up(scenario)]
    note = START_UP if begun else ""
    if begun and len(begun) < len(scenarios):
        note = f"{', '.join(begun)}: {START_UP}"
    return [line for line in (note, few_seeds(seeds)) if line]


def absent_sites(scheduler: Scheduler, scenario: Scenario) -> list[str]:
    """Return a line for each site that a static choice names and where the scenario has no drafter at all.

    Such a choice decodes plainly, as rules do wherever nothing can draft, which looks like a result of
    drafting there. Choices with several sites have one to fall back on, and a named drafter that is missing
    is an error already.
    """
    choices = _static_choices(scheduler)
    named = {choice.sites[0] for choice in choices if choice.gamma > 0 and len(choice.sites) == 1}
    there = [word for word, site in SITES.items() if drafters_at(scenario, site)]
    return [
        f"{scheduler.name}: scenario {scenario.name!r} has no drafter at {word!r}, so what is to draft there "
        f"decodes plainly; it has drafters at {', '.join(map(repr, there)) or 'no site'}"
        for word, site in SITES.items()
        if site in named and word not in there
    ]


def _static_choices(scheduler: Scheduler) -> list[StaticChoice]:
    if isinstance(scheduler, StaticScheduler):
        return [scheduler.choice]
    if isinstance(scheduler, StaticMapScheduler):
        return list(scheduler.choices.values())
    if isinstance(scheduler, ByLoadScheduler):
        return _static_choices(scheduler.quiet) + _static_choices(scheduler.busy)
    return []


def constant_confidence(scheduler: Scheduler, scenario: Scenario) -> list[str]:
    """Return a line if a rule stops by its drafter's confidence where that is the same for every token.

    Models of acceptance know no confidence: with them such a rule is a fixed length, or decodes plainly.
    """
    stops = isinstance(scheduler, AdaptiveScheduler) and isinstance(scheduler.rule, StoppingRule)
    if not stops or any(each.source == "trace" for each in scenario.acceptance.values()):
        return []
    return [
        f"{scheduler.name}: acceptance in scenario {scenario.name!r} comes from a model with one "
        "confidence for all tokens, so this rule is a fixed length there; recordings (trace) have more"
    ]


def tell_notes(scheduler: Scheduler, scenario: Scenario) -> None:
    """Print what there is to say of a scheduler in a scenario on stderr, where it is in nobody's JSON."""
    for line in absent_sites(scheduler, scenario) + constant_confidence(scheduler, scenario):
        print(f"dsd-env: note: {line}", file=sys.stderr)
