"""Static rules, of fixed speculation length: plain decoding, single-node and edge speculative decoding."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

from dsd_env.control import Decision, DecisionView, Site
from dsd_env.control.actions import snap
from dsd_env.control.fleet import BOUNDS
from dsd_env.scenario import Scenario
from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.routing import Packing
from dsd_env.schedulers.rules import decision_at, drafters_at, stay_or_route

_bounds_of = attrgetter(*BOUNDS)


class StaticChoice(NamedTuple):
    """The fixed choice of a static rule.

    Attributes:
        gamma: Speculation length; the rule uses the largest listed length that is at most this.
        batch_size: Batch size B; 1 waits nowhere.
        sites: Draft sites in order of preference; if none is possible, the target decodes plainly.
        drafter: Draft model to use at the site; None: the site's first drafter.
        target: Number of the target to which requests go while it is on offer; None: the least loaded target.
        branches: Whether streams are to have branches.
        pack: Number of requests up to which targets are packed: a request goes to the first target, by
            number, that has fewer. 0: no packing.
        until: Number of requests to which a target that had ``pack`` requests must fall before it gets new
            ones; 0: it gets new ones as soon as it has fewer than ``pack``.
    """

    gamma: int
    batch_size: int
    sites: tuple[Site, ...]
    drafter: str | None = None
    target: int | None = None
    branches: bool = False
    pack: int = 0
    until: int = 0

    def check(self, scenario: Scenario, scheduler: str) -> None:
        """Check that a scenario has the drafter, the branches and the target of the choice.

        Raises:
            SchedulerError: The scenario lacks one of them.
        """
        known = [model for site in self.sites for model in drafters_at(scenario, site)]
        if self.drafter is not None and self.drafter not in known:
            raise SchedulerError(
                f"{scheduler}: scenario {scenario.name!r} has no drafter {self.drafter!r} there; it has "
                f"{', '.join(known) or 'none'}"
            )
        if self.branches and scenario.protocol.branches.fanout == 0:
            raise SchedulerError(
                f"{scheduler}: scenario {scenario.name!r} has no branches: protocol.branches.fanout is 0"
            )
        opened_at = {site for site, _, _, fanout in scenario.places if fanout > 0}
        if self.branches and not opened_at & set(self.sites):
            raise SchedulerError(
                f"{scheduler}: nothing that drafts there in scenario {scenario.name!r} can stream, so there "
                "are no branches"
            )
        if self.target is not None and self.target >= scenario.n_targets:
            raise SchedulerError(
                f"{scheduler}: scenario {scenario.name!r} has no target {self.target}; it has 0 to "
                f"{scenario.n_targets - 1}"
            )


class Packings:
    """State of packing: how full the targets are for a scheduler's packing choices, in one episode."""

    def __init__(self) -> None:
        """Start an episode, in which no target is full."""
        self._by_bounds: dict[tuple[int, int], Packing] = {}

    def target(self, view: DecisionView, choice: StaticChoice) -> int:
        """Return the target to which a choice sends a request; choices with equal bounds share the state."""
        bounds = (choice.pack, choice.until or choice.pack - 1)
        if bounds not in self._by_bounds:
            self._by_bounds[bounds] = Packing(*bounds)
        return self._by_bounds[bounds].target(view)


class StaticScheduler:
    """A static rule that makes the same choice for every decision of every request.

    At admission a request goes to the offered target with the fewest requests, unless the choice names a
    target or packs targets. The request stays at that target.

    Attributes:
        name: Canonical specification.
        choice: The fixed choice.
    """

    def __init__(self, name: str, choice: StaticChoice) -> None:
        """Build the rule ``choice`` under ``name``."""
        self.name = name
        self.choice = choice
        self._packings = Packings()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Check that the choice fits the scenario, and start with no target full."""
        self.choice.check(scenario, self.name)
        self._packings = Packings()

    def decide(self, view: DecisionView) -> Decision:
        """Return the fixed choice, or plain decoding if none of the choice's sites can draft."""
        return apply_static(view, self.choice, self._packings)

    def holds(self, view: DecisionView, decision: Decision) -> bool:
        """Return whether this decision stays the same while its placement can draft; see `choice_holds`."""
        return choice_holds(view, decision, self.choice)


class StaticMapScheduler:
    """A static choice per device class, per class of objectives (SLO), or per pair of both (``phone/chat``).

    A view holds the objectives of a request, not the name of their class. Classes with the same objectives
    must therefore have the same choice.

    Attributes:
        name: Canonical specification.
        choices: Static choice by name of the class.
    """

    def __init__(self, name: str, choices: Mapping[str, StaticChoice]) -> None:
        """Build the rule from choices by class."""
        self.name = name
        self.choices = dict(choices)
        self._by_device: list[StaticChoice] = []
        self._by_slo: list[dict[tuple[float, ...], StaticChoice]] = []
        self._packings = Packings()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Assign the choices to the scenario's devices, objectives, or pairs of both.

        Devices are numbered class by class in the scenario's order.

        Raises:
            SchedulerError: A class is missing or unknown in this scenario, or two classes that cannot be told
                apart have different choices.
        """
        named = set(self.choices)
        pairs = {f"{device}/{slo}" for device in scenario.devices for slo in scenario.slo}
        if named not in (set(scenario.devices), set(scenario.slo), pairs):
            raise SchedulerError(
                f"static_map names the classes {sorted(named)}, but scenario {scenario.name!r} has devices "
                f"{sorted(scenario.devices)} and objectives (slo) {sorted(scenario.slo)}; name each of "
                f"either once, or each pair of both, such as {min(pairs)!r}"
            )
        for choice in self.choices.values():
            choice.check(scenario, self.name)
        self._packings = Packings()
        self._by_device, self._by_slo = [], []
        if named == set(scenario.devices):
            for name, its in scenario.devices.items():
                self._by_device += [self.choices[name]] * its.count
            return
        for device, its in scenario.devices.items():
            table: dict[tuple[float, ...], StaticChoice] = {}
            for name, slo in scenario.slo.items():
                choice = self.choices[f"{device}/{name}" if named == pairs else name]
                if table.setdefault(tuple(slo.bounds()[bound] for bound in BOUNDS), choice) != choice:
                    raise SchedulerError(
                        f"static_map: the objectives of slo.{name} are those of another class, which is to "
                        "be decided otherwise; a scheduler cannot tell them apart"
                    )
            self._by_slo += [table] * its.count

    def _choice(self, view: DecisionView) -> StaticChoice:
        if self._by_device:
            return self._by_device[view.device]
        return self._by_slo[view.device][_bounds_of(view.request)]

    def decide(self, view: DecisionView) -> Decision:
        """Return the choice of the request's class."""
        return apply_static(view, self._choice(view), self._packings)

    def holds(self, view: DecisionView, decision: Decision) -> bool:
        """Return whether this decision stays the same while its placement can draft; see `choice_holds`."""
        return choice_holds(view, decision, self._choice(view))


def apply_static(view: DecisionView, choice: StaticChoice, packings: Packings | None = None) -> Decision:
    """Return the decision that a static choice makes in a view.

    Args:
        view: View of the decision.
        choice: The static choice.
        packings: State of packing; needed if the choice packs targets.
    """
    target = stay_or_route(view)
    if view.request.is_admission and choice.target in [each.target.index for each in view.candidates]:
        target = choice.target
    elif view.request.is_admission and choice.pack > 0:
        assert packings is not None, "a choice that packs targets needs to know which were full"
        target = packings.target(view, choice)
    gamma = snap(view.gammas, choice.gamma)
    return decision_at(view, choice.sites, target, gamma, choice.batch_size, choice.drafter, choice.branches)


def choice_holds(view: DecisionView, decision: Decision, choice: StaticChoice) -> bool:
    """Return whether a static choice repeats a decision while the decision's placement can draft.

    It does so once the request is at its target and drafts at the preferred site of the choice, or decodes
    plainly because the choice says so. On an edge server the request must also have begun to draft: until
    then the choice may take another edge server, or another one may stand at this placement.
    """
    if view.request.is_admission:
        return False
    gamma = snap(view.gammas, choice.gamma)
    chosen = view.candidates[decision.placement]
    if gamma == 0 or decision.gamma == 0:
        return gamma == decision.gamma
    begun = chosen.site != Site.EDGE_SERVER or chosen.is_current
    return chosen.site == choice.sites[0] and begun


def format_batch(batch_size: int) -> str:
    """Return the ``:B`` part of a canonical specification, which is empty for 1."""
    return "" if batch_size == 1 else f":{batch_size}"


EDGE_FIRST: tuple[Site, ...] = (Site.OWN_DEVICE, Site.EDGE_SERVER, Site.COLOCATED)
"""Draft sites of edge drafting in order of preference: own device, edge server, target's own drafter."""
