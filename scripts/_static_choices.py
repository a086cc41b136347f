"""Static choices of place and speculation length, for all devices or class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from dsd_env.control.actions import snap_up
from dsd_env.scenario import Scenario
from dsd_env.schedulers import Scheduler, make_scheduler
from dsd_env.schedulers.by_load import ByLoadScheduler
from dsd_env.schedulers.rules import SITES, drafters_at
from dsd_env.schedulers.static import EDGE_FIRST, StaticMapScheduler, StaticScheduler

BY_LOAD = "choices_by_load:"
"""How the names of two choices begin that are taken by the load; see :func:`make_static`."""

PLACES = ("colocated", "own", "edge")


def places_of(scenario: Scenario) -> list[str]:
    """Return the places to draft at: the sites' first drafters, and each of the others by name."""
    places = list(PLACES)
    for place in PLACES if scenario.has_menu else ():
        places += [f"{place}:{model}" for model in drafters_at(scenario, SITES[place])[1:]]
    return places


def drafting_places(scenario: Scenario, *, branches: bool = False) -> list[str]:
    """Return the places where anybody can draft.

    Where something fails now and then, each site away from the target is named once more, with the others to
    fall back on behind it.

    Args:
        scenario: The scenario.
        branches: Where each decision may ask for branches, name the places of streams a second time, with
            branches.
    """
    places = [place for place in places_of(scenario) if drafters_at(scenario, SITES[place.partition(":")[0]])]
    if scenario.faults:
        words = {site: word for word, site in SITES.items()}
        sites = [words[site] for site in EDGE_FIRST if words[site] in places]
        for first in sites if len(sites) > 1 else ():
            if first != "colocated":
                places.append("-".join([first, *(site for site in sites if site != first)]))
    if branches and scenario.actions.offer_branches:
        places += [f"{place}+branches" for place in places if not place.startswith("colocated")]
    return places


def listed_lengths(scenario: Scenario, gammas: Iterable[int]) -> list[int]:
    """Return those lengths that the scenario offers; another would be drawn to one of them."""
    return [gamma for gamma in gammas if gamma in scenario.actions.gammas]


def batch_sizes_of(scenario: Scenario) -> list[int]:
    """Return the batch sizes above 1 to try: 4 and 16, or what the scenario makes of them."""
    return sorted({snap_up(scenario.actions.batch_sizes, size) for size in (4, 16)} - {1})


def choices_for_all(places: Iterable[str], gammas: Sequence[int], sizes: Sequence[str] = ("1",)) -> list[str]:
    """Return the schedulers that choose the same for all: plain decoding, every place and length."""
    names = [f"static:0:{size}:plain" for size in sizes]
    return names + [
        f"static:{gamma}:{size}:{place}" for place in places for gamma in gammas for size in sizes
    ]


def class_options(start: str, places: Iterable[str], gammas: Sequence[int]) -> list[str]:
    """Return what a device class may choose instead of the choice for all that a search starts from."""
    batch = start.split(":", 3)[2]
    return [f"0/{batch}/plain"] + [f"{gamma}/{batch}/{place}" for place in places for gamma in gammas]


def class_choice(start: str) -> str:
    """Return the choice of ``static:G:B:PLACE`` as a class's: ``G/B/PLACE``."""
    return start.split(":", 1)[1].replace(":", "/", 2)


def same_for_all(scenario: Scenario, start: str) -> str:
    """Return the map that gives every device class the same choice, that of ``static:G:B:PLACE``."""
    return _map(dict.fromkeys(scenario.devices, class_choice(start)))


def descend(
    scenario: Scenario,
    start: str,
    options: Sequence[str],
    best_of: Callable[[list[str]], str],
    passes: int = 1,
) -> tuple[str, dict[str, str]]:
    """Improve a choice for all, device class by device class.

    Args:
        scenario: The scenario.
        start: The choice for all (``static:G:B:PLACE``).
        options: What each class may choose.
        best_of: Simulates schedulers and returns the best of them.
        passes: Times that every class is gone through, or fewer if nothing changes.

    Returns:
        The best scheduler found and its choice per device class.
    """
    choice = dict.fromkeys(scenario.devices, class_choice(start))
    for _ in range(passes):
        before = dict(choice)
        for device in scenario.devices:
            candidates = {_map({**choice, device: option}): option for option in options}
            choice[device] = candidates[best_of(list(candidates))]
        if choice == before:
            break
    return _map(choice), choice


def _map(choice: dict[str, str]) -> str:
    return "static_map:" + "+".join(f"{device}={option}" for device, option in choice.items())


def choice_of(name: str) -> dict[str, str]:
    """Return the choice per device class of a scheduler ``static_map:...``."""
    return dict(part.split("=", 1) for part in name.partition(":")[2].split("+"))


def _static(name: str) -> StaticScheduler | StaticMapScheduler:
    rule = make_scheduler(name)
    assert isinstance(rule, StaticScheduler | StaticMapScheduler), name
    return rule


def make_static(name: str) -> Scheduler:
    """Return a scheduler that chooses once per request, by its name.

    Besides those of the registry there is ``choices_by_load:N|QUIET|BUSY``, of two static rules of any kind.
    """
    if not name.startswith(BY_LOAD):
        return make_scheduler(name)
    above, quiet, busy = name.removeprefix(BY_LOAD).split("|")
    return ByLoadScheduler(name, int(above), _static(quiet), _static(busy))


def splits(scenario: Scenario, tolerance: float = 0.1) -> list[frozenset[str]]:
    """Return the groups of device classes that have about half of all devices, each half once.

    Args:
        scenario: The scenario.
        tolerance: How far a group's share may be from a half.
    """
    names = list(scenario.devices)
    found = []
    for size in range(1, len(names)):
        for group in combinations(names, size):
            share = sum(scenario.devices[name].count for name in group) / scenario.n_devices
            if abs(share - 0.5) <= tolerance:
                found.append(frozenset(group))
    return found
