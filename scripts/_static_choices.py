"""Static choices of place and speculation length, for all devices or class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dsd_env.scenario import Scenario
from dsd_env.schedulers.rules import SITES, drafters_at

PLACES = ("colocated", "own", "edge")


def places_of(scenario: Scenario) -> list[str]:
    """Return the places to draft at: the sites' first drafters, and each of the others by name."""
    places = list(PLACES)
    for place in PLACES if scenario.has_menu else ():
        places += [f"{place}:{model}" for model in drafters_at(scenario, SITES[place])[1:]]
    return places


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
    choice = dict.fromkeys(scenario.devices, start.split(":", 1)[1].replace(":", "/", 2))
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
