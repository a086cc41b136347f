"""Plans of the fleet view: for every group of requests a speculation length, a batch size and a draft place.

A *group* is a class of devices, a class of objectives (SLO), or one of each. A *place* is a site with a
drafter, written as in static rules: ``edge``, ``colocated``, ``own``. A decision of the fleet view sets one
choice per group. Until the next decision, every request follows its group's choice, as in `static_map`.
:mod:`dsd_env.control.fleet_view` describes what the controller knows when it makes a plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.actions import integers, refused_action
from dsd_env.control.view import DecisionView, Site
from dsd_env.scenario.schema import ColocatedDrafter, DeviceClass, Drafter, EdgeServer, Scenario, Target

GROUPINGS = ("device", "slo", "device_slo")
"""What a group can be: a class of devices, a class of objectives, or one of each."""
CONTROL_PERIOD_S = 0.5
"""Default simulated time between two decisions of the fleet view, in seconds."""
SITES: dict[str, Site] = {"colocated": Site.COLOCATED, "own": Site.OWN_DEVICE, "edge": Site.EDGE_SERVER}
"""Draft sites, by the word that stands for each."""
BRANCHES = "+branches"
"""Suffix of the word for a place at which streams are to have branches."""
BOUNDS = ("slo_ttft_s", "slo_tpot_s", "slo_itl_p99_s", "slo_first_s", "slo_per_token_s")
"""The bounds of a request's objectives in its view, by which a controller recognises the request's class."""

Plan = NDArray[np.int64]
"""A plan: indices of speculation length, batch size and place, shape (groups, 3)."""


class FleetError(ValueError):
    """A setting of the fleet view is wrong; the message names key, value and range."""


class Place(NamedTuple):
    """A place at which a group's drafts are made.

    Attributes:
        site: The draft site.
        drafter: Draft model at the site, if any such site has several; None: the site's first drafter.
        branches: Whether streams are to have branches.
        target: Number of the target to which the group's new requests go; None: the least loaded target.
    """

    site: Site
    drafter: str | None = None
    branches: bool = False
    target: int | None = None

    @property
    def word(self) -> str:
        """The word for the place, as `static_map` writes it."""
        word = next(word for word, site in SITES.items() if site == self.site)
        word += "" if self.drafter is None else f":{self.drafter}"
        return word + BRANCHES * self.branches + ("" if self.target is None else f"@{self.target}")


class GroupChoice(NamedTuple):
    """A plan's choice for one group.

    Attributes:
        gamma: Speculation length in tokens; 0 is plain decoding.
        batch_size: Batch size B.
        place: Place at which drafts are made.
    """

    gamma: int
    batch_size: int
    place: Place


@dataclass(frozen=True, slots=True)
class Group:
    """A group of requests for which a plan makes one choice.

    Attributes:
        name: Name of the class of devices, of the class of objectives, or of both with a slash in between.
        devices: Numbers of the group's devices.
        slo_classes: Numbers of the group's classes of objectives, in the scenario's order.
        places: For each place of the space, whether any request of the group can ever draft there.
    """

    name: str
    devices: tuple[int, ...]
    slo_classes: tuple[int, ...]
    places: tuple[bool, ...]


def check_settings(control_period_s: object, grouping: object) -> None:
    """Check the settings of the fleet view.

    Raises:
        FleetError: A setting is wrong.
    """
    number = isinstance(control_period_s, (int, float)) and not isinstance(control_period_s, bool)
    if not number or not 0.0 < float(control_period_s) < math.inf:  # type: ignore[arg-type]
        raise FleetError(
            f"control_period_s = {control_period_s!r} must be a number of seconds above 0, and finite"
        )
    if grouping not in GROUPINGS:
        raise FleetError(f"grouping = {grouping!r} is not one of {list(GROUPINGS)}")


class FleetSpace:
    """The plan space of a scenario: its groups, their choices, and when the next plan is due.

    Attributes:
        scenario: The scenario.
        control_period_s: Time between two plans.
        grouping: What a group is, one of :data:`GROUPINGS`.
        name_targets: Whether places name targets.
        gammas: Speculation lengths.
        batch_sizes: Batch sizes.
        places: Places to draft at, the same list for every group.
        groups: The groups.
        group_of: int64, shape (devices, classes of objectives): number of the group of each request; -1 if
            the workload has no such requests.
        mask: bool, shape (sum(nvec),): the choices that can be executed, by dimension; it never changes.
    """

    def __init__(
        self,
        scenario: Scenario,
        control_period_s: float = CONTROL_PERIOD_S,
        grouping: str = "device_slo",
        name_targets: bool = False,
    ) -> None:
        """Derive groups and places from a scenario.

        Args:
            scenario: The scenario.
            control_period_s: Time between two plans.
            grouping: What a group is, one of :data:`GROUPINGS`.
            name_targets: Whether to list each place once for the least loaded target and once for every
                target by number, so that a plan can send each group to a target of its own.

        Raises:
            FleetError: A setting is wrong.
        """
        check_settings(control_period_s, grouping)
        self.scenario = scenario
        self.control_period_s = float(control_period_s)
        self.grouping = grouping
        self.name_targets = name_targets
        self.gammas, self.batch_sizes = scenario.actions.gammas, scenario.actions.batch_sizes
        self.places = _places(scenario, name_targets)
        self.groups, self.group_of = _groups(scenario, grouping, self.places)
        self.mask = self._mask()
        self._class_of = _classes_by_bounds(scenario)

    def is_like(self, other: FleetSpace) -> bool:
        """Return whether another space has the same scenario and the same settings."""
        settings = ("control_period_s", "grouping", "name_targets", "scenario")
        return all(getattr(self, name) == getattr(other, name) for name in settings)

    @property
    def nvec(self) -> tuple[int, ...]:
        """Sizes of the action's dimensions: three for each group."""
        return (len(self.gammas), len(self.batch_sizes), len(self.places)) * len(self.groups)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group.name for group in self.groups)

    def _mask(self) -> NDArray[np.bool_]:
        largest = max(self.scenario.max_num_seqs)
        parts: list[list[bool]] = []
        for group in self.groups:
            drafts = any(group.places)
            parts.append([drafts or index == 0 for index in range(len(self.gammas))])
            parts.append([size <= largest or index == 0 for index, size in enumerate(self.batch_sizes)])
            # Something must be selectable; with speculation length 0 alone the place does not matter.
            parts.append([can or (index == 0 and not drafts) for index, can in enumerate(group.places)])
        return np.array([each for part in parts for each in part], dtype=np.bool_)

    def checked(self, action: object) -> NDArray[np.int64]:
        """Return an action, checked: int64, shape (3 · groups,).

        Raises:
            ValueError: The action is not in the action space: integers, each within its dimension.
        """
        sizes = np.array(self.nvec)
        found = integers(action, sizes.shape)
        if found is None or ((found < 0) | (found >= sizes)).any():
            raise refused_action(action, sizes.shape, self.nvec)
        return found.astype(np.int64, copy=False)

    def plan(self, action: object) -> Plan:
        """Return the plan that an action stands for: int64, shape (groups, 3).

        Raises:
            ValueError: The action is not in the action space.
        """
        return self.checked(action).reshape(len(self.groups), 3)

    @property
    def first_plan(self) -> Plan:
        """The plan in force before the first decision: all groups decode plainly."""
        return np.zeros((len(self.groups), 3), dtype=np.int64)

    def invalid(self, plan: Plan) -> int:
        """Return the number of groups whose choice in a plan cannot be executed unchanged.

        Such a choice drafts at a place where none of the group's requests can ever draft, or has a batch size
        above the largest `max_num_seqs`. The requests then decode plainly, or the batch size is clipped.
        """
        parts = np.split(self.mask, np.cumsum(self.nvec)[:-1])
        count = 0
        for group, (gamma, batch, place) in enumerate(plan.tolist()):
            of_gamma, of_batch, of_place = parts[3 * group : 3 * group + 3]
            drafts = gamma > 0 and not (of_gamma[gamma] and of_place[place])
            count += bool(drafts or not of_batch[batch])
        return count

    def choices(self, plan: Plan) -> tuple[GroupChoice, ...]:
        """Return a plan's choices, group by group."""
        return tuple(
            GroupChoice(self.gammas[gamma], self.batch_sizes[batch], self.places[place])
            for gamma, batch, place in plan.tolist()
        )

    def action(self, choices: Sequence[tuple[int, int, str]]) -> NDArray[np.int64]:
        """Return the action for choices given in words.

        Args:
            choices: For each group, speculation length, batch size and place, e.g. ``(8, 1, "edge")``.

        Raises:
            ValueError: There is not one choice per group, or a value is not on its list.
        """
        words = [place.word for place in self.places]
        if len(choices) != len(self.groups):
            raise ValueError(f"{len(choices)} choices for {len(self.groups)} groups {list(self.group_names)}")
        action: list[int] = []
        for group, (gamma, batch, word) in zip(self.groups, choices, strict=True):
            lists: tuple[tuple[str, Any, Sequence[Any]], ...] = (
                ("speculation length", gamma, self.gammas),
                ("batch size", batch, self.batch_sizes),
                ("place", word, words),
            )
            for what, value, known in lists:
                if value not in known:
                    raise ValueError(f"group {group.name!r}: {what} {value!r} is not one of {list(known)}")
                action.append(known.index(value))
        return np.array(action, dtype=np.int64)

    def uniform(self, words: str) -> Plan:
        """Return the plan that makes the same choice for all groups.

        Args:
            words: ``G/B/PLACE``, e.g. ``4/1/edge``, or ``plain``: plain decoding that waits nowhere.

        Raises:
            FleetError: ``words`` has neither form, or a value is not on its list.
        """
        if words == "plain":
            return self.first_plan
        gamma, _, rest = words.partition("/")
        batch, _, place = rest.partition("/")
        if not (gamma.isdecimal() and batch.isdecimal() and place):
            raise FleetError(f"plan {words!r} must be 'plain' or G/B/PLACE, such as '4/1/edge'")
        try:
            return self.plan(self.action([(int(gamma), int(batch), place)] * len(self.groups)))
        except ValueError as error:
            raise FleetError(f"plan {words!r}: {error}") from error

    def group_of_view(self, view: DecisionView) -> int:
        """Return the number of the group to which the request of a view belongs.

        A view holds the bounds of the request's objectives, not the name of their class; classes with the
        same bounds belong to one group.
        """
        bounds = tuple(getattr(view.request, name) for name in BOUNDS)
        return int(self.group_of[view.device, self._class_of[bounds]])

    def next_tick_s(self, now_s: float) -> float:
        """Return the first multiple of the control period after a time."""
        period_s = self.control_period_s
        number = math.floor(now_s / period_s) + 1
        while number * period_s <= now_s:  # the quotient was rounded
            number += 1
        return number * period_s

    def describe(self, plan: Plan) -> str:
        """Return a plan in words, as `static_map` takes it: one ``GROUP=G/B/PLACE`` per group."""
        return "+".join(
            f"{group.name}={choice.gamma}/{choice.batch_size}/"
            + (choice.place.word if choice.gamma > 0 else "plain")
            for group, choice in zip(self.groups, self.choices(plan), strict=True)
        )


def drafters_at(scenario: Scenario, site: Site) -> list[str]:
    """Return all draft models that a scenario has at sites of one kind, in order and each once."""
    menus: list[Sequence[Drafter | ColocatedDrafter]]
    if site == Site.COLOCATED:
        menus = [target.menu for target in scenario.targets.values()]
    elif site == Site.OWN_DEVICE:
        menus = [device.menu for device in scenario.devices.values()]
    else:
        menus = [edge.menu for edge in scenario.edge_servers.values()]
    return list(dict.fromkeys(drafter.model for menu in menus for drafter in menu))


def _places(scenario: Scenario, name_targets: bool) -> tuple[Place, ...]:
    """Return the places of a scenario: one per site, or one per draft model if a site has several."""
    places: list[Place] = []
    for site in SITES.values():
        models = drafters_at(scenario, site)
        several = any(len(holder.menu) > 1 for holder in _holders(scenario, site))
        for model in models if several else [None] * bool(models):
            places.append(Place(site, model))
            if scenario.actions.offer_branches and _can_branch(scenario, site, model):
                places.append(Place(site, model, branches=True))
    if not places:
        places.append(Place(Site.COLOCATED))
    if name_targets:
        numbers: list[int | None] = [None, *range(scenario.n_targets)]
        places = [place._replace(target=target) for target in numbers for place in places]
    return tuple(places)


def _holders(scenario: Scenario, site: Site) -> list[DeviceClass | EdgeServer | Target]:
    if site == Site.COLOCATED:
        return list(scenario.targets.values())
    if site == Site.OWN_DEVICE:
        return list(scenario.devices.values())
    return list(scenario.edge_servers.values())


def _can_branch(scenario: Scenario, site: Site, model: str | None) -> bool:
    """Return whether any drafter of a place can stream, and so can have branches."""
    return any(
        drafter.kind == "model"
        and not (isinstance(drafter, ColocatedDrafter) and drafter.mode == "shared")
        and model in (None, drafter.model)
        for holder in _holders(scenario, site)
        for drafter in (holder.menu if model is not None else holder.menu[:1])
    )


def _reaches(scenario: Scenario, device: DeviceClass, place: Place) -> bool:
    """Return whether requests of a class of devices can ever draft at a place."""
    holders: list[DeviceClass | EdgeServer | Target] = [device]
    if place.site != Site.OWN_DEVICE:
        holders = _holders(scenario, place.site)
    if place.site == Site.COLOCATED and place.target is not None:
        by_number = [target for target in scenario.targets.values() for _ in range(target.count)]
        holders = [by_number[place.target]]
    if place.site == Site.EDGE_SERVER and device.edge_link is None:
        return False
    return any(
        drafter.model == place.drafter or place.drafter is None
        for holder in holders
        for drafter in holder.menu
    )


def _classes_by_bounds(scenario: Scenario) -> dict[tuple[float, ...], int]:
    """Return, by bounds, the number of the first class of objectives in the workload with these bounds."""
    used = {kind.slo for kind in scenario.workload.kinds.values()}
    found: dict[tuple[float, ...], int] = {}
    for number, (name, slo) in enumerate(scenario.slo.items()):
        if name in used:
            found.setdefault(tuple(slo.bounds()[bound] for bound in BOUNDS), number)
    return found


def _groups(
    scenario: Scenario, grouping: str, places: tuple[Place, ...]
) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """Return the groups, and the number of each request's group by device and class of objectives."""
    used = {kind.slo for kind in scenario.workload.kinds.values()}
    classes: dict[tuple[float, ...], list[int]] = {}
    for number, (name, slo) in enumerate(scenario.slo.items()):
        if name in used:
            classes.setdefault(tuple(slo.bounds()[bound] for bound in BOUNDS), []).append(number)
    names = list(scenario.slo)
    by_slo = [("|".join(names[number] for number in alike), tuple(alike)) for alike in classes.values()]
    by_device: list[tuple[str, tuple[int, ...], tuple[DeviceClass, ...]]] = []
    first = 0
    for name, device in scenario.devices.items():
        by_device.append((name, tuple(range(first, first + device.count)), (device,)))
        first += device.count
    if grouping == "device":
        by_slo = [("", tuple(number for _, alike in by_slo for number in alike))]
    elif grouping == "slo":
        by_device = [("", tuple(range(first)), tuple(scenario.devices.values()))]
    groups: list[Group] = []
    group_of = np.full((first, len(names)), -1, dtype=np.int64)
    for of_device, devices, kinds in by_device:
        can = tuple(any(_reaches(scenario, kind, place) for kind in kinds) for place in places)
        for of_slo, slo_classes in by_slo:
            group_of[np.ix_(devices, slo_classes)] = len(groups)
            name = "/".join(filter(None, (of_device, of_slo)))
            groups.append(Group(name, devices, slo_classes, can))
    # A class that the workload does not use joins the group of a class with the same objectives, if any.
    for number, slo in enumerate(scenario.slo.values()):
        alike = classes.get(tuple(slo.bounds()[bound] for bound in BOUNDS), [number])
        group_of[:, number] = group_of[:, alike[0]]
    return tuple(groups), group_of
