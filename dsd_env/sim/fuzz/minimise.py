"""Makes a failing case smaller, greedily, until nothing more can be removed.

Everything works on the case's plain data. A change is kept if the case still fails in the same way (differs,
breaks a law, or raises an error). A change that makes the scenario invalid is dropped.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dsd_env.sim.fuzz.case import Action, Case
from dsd_env.sim.fuzz.compare import Difference, run_case
from dsd_env.sim.fuzz.engines import Factory, compiled_engine

Data = dict[str, Any]
Path = tuple[str | int, ...]

# Keys whose default would make a case longer, not shorter.
_KEPT = {"name", "card", "actions", "episode", "requests", "horizon_s", "gammas", "batch_sizes"}
_PLAIN: dict[str, list[Data]] = {
    "distribution": [{"distribution": "constant", "value": value} for value in (0, 1, 0.125, 4, 16, 32)],
    "source": [{"source": "iid", "alpha": alpha} for alpha in (1.0, 0.0)],
    "kind": [{"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}}],
    "t0_s": [{"t0_s": value} for value in (0.015625, 0.02)],
}
"""Plainer mappings in place of one that has the key."""


@dataclass(frozen=True)
class Smaller:
    """A case made smaller.

    Attributes:
        case: The case.
        difference: How it fails.
        tried: Cases tried.
        finished: Whether nothing more could be removed; otherwise the time was over.
    """

    case: Case
    difference: Difference
    tried: int
    finished: bool


def minimise(
    case: Case,
    difference: Difference,
    other: Factory = compiled_engine,
    *,
    seconds: float = 120.0,
    clock: Callable[[], float] = time.monotonic,
) -> Smaller:
    """Return a smaller case that fails in the same way.

    Args:
        case: A case that fails.
        difference: How it fails.
        other: The engine under test.
        seconds: Stop after this time.
        clock: Returns the time in seconds.
    """
    return _Search(case, difference, other, clock() + seconds, clock).run()


class _OutOfTimeError(Exception):
    """The time for the search is over."""


class _Search:
    def __init__(
        self,
        case: Case,
        difference: Difference,
        other: Factory,
        end_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.case, self.difference, self.other = case, difference, other
        self.end_s, self.clock = end_s, clock
        self.tried = 0
        self._passed: set[str] = set()

    def run(self) -> Smaller:
        passes = (self._decisions, self._actions, self._structure, self._lists, self._plainer, self._numbers)
        try:
            while True:
                before = self.case
                for change in (*passes, self._rest):
                    change()
                if self.case == before:
                    return Smaller(self.case, self.difference, self.tried, True)
        except _OutOfTimeError:
            return Smaller(self.case, self.difference, self.tried, False)

    def _keep_if_fails(self, candidate: Case) -> bool:
        """Try a case; keep it if it fails in the same way."""
        text = json.dumps(candidate.to_json(), sort_keys=True)
        if candidate == self.case or text in self._passed:
            return False
        self._passed.add(text)
        if self.clock() > self.end_s:
            raise _OutOfTimeError
        self.tried += 1
        try:
            run_case(candidate, self.other)
        except Difference as difference:
            if difference.kind != self.difference.kind:
                return False
            self.case, self.difference = candidate, difference
            return True
        except (ValueError, NotImplementedError):
            # The change made the scenario, a series or a trace set invalid.
            return False
        return False

    def _with(self, scenario: Data) -> bool:
        """Try another scenario, without what nothing in it names."""
        _repair(scenario)
        links, sources = scenario.get("links", {}).values(), scenario.get("acceptance", {}).values()
        files = {link["replay"].get("file") for link in links if link.get("replay")}
        files.add(scenario.get("workload", {}).get("arrivals", {}).get("trace"))
        traces = {source.get("trace") for source in sources}
        return self._keep_if_fails(
            dataclasses.replace(
                self.case,
                scenario=scenario,
                series={name: text for name, text in self.case.series.items() if name in files},
                traces={name: recipe for name, recipe in self.case.traces.items() if name in traces},
            )
        )

    # ------------------------------------------------------------------ passes

    def _decisions(self) -> None:
        """Remove the decisions after the difference, then try half as many."""
        used = self.difference.details.get("decisions before")
        if isinstance(used, int):
            self._keep_if_fails(dataclasses.replace(self.case, decisions=min(self.case.decisions, used + 1)))
        while self.case.decisions > 1 and self._keep_if_fails(
            dataclasses.replace(self.case, decisions=self.case.decisions // 2)
        ):
            pass

    def _actions(self) -> None:
        """Try one action for every decision, a shorter list of actions, or smaller indices."""
        actions = self.case.actions[: self.case.decisions]
        self._act(actions)
        for action in sorted(set(actions))[:64]:
            if self._act((action,)):
                break
        size = max(1, len(self.case.actions) // 2)
        while len(self.case.actions) > 1:
            at = 0
            while at < len(self.case.actions) and len(self.case.actions) > size:
                if not self._act(self.case.actions[:at] + self.case.actions[at + size :]):
                    at += size
            if size == 1:
                break
            size //= 2
        if len(self.case.actions) > 64:
            return
        for at in range(len(self.case.actions)):
            for part in range(3):
                self._smaller_index(at, part)

    def _smaller_index(self, at: int, part: int) -> None:
        """Try smaller indices in one place of one action."""
        action = self.case.actions[at]
        for smaller in sorted({0, 1, action[part] // 2}):
            changed = list(action)
            changed[part] = smaller
            if smaller < action[part] and self._act(
                (
                    *self.case.actions[:at],
                    (changed[0], changed[1], changed[2]),
                    *self.case.actions[at + 1 :],
                )
            ):
                return

    def _act(self, actions: tuple[Action, ...]) -> bool:
        return bool(actions) and self._keep_if_fails(dataclasses.replace(self.case, actions=actions))

    def _structure(self) -> None:
        """Remove keys (faults, processes, classes, options), the outermost first."""
        for path in sorted(_paths(self.case.scenario), key=len):
            if isinstance(path[-1], str) and path[-1] not in _KEPT:
                self._remove(path)

    def _lists(self) -> None:
        """Remove elements of lists, the last first."""
        for path in list(_paths(self.case.scenario)):
            if isinstance(path[-1], int):
                continue
            values = _at(self.case.scenario, path)
            if isinstance(values, list):
                for index in range(len(values) - 1, -1, -1):
                    self._remove((*path, index))

    def _plainer(self) -> None:
        """Replace laws, sources, arrivals and profiles by simpler ones."""
        for path in list(_paths(self.case.scenario)):
            value = _at(self.case.scenario, path)
            if path[-1] == "profile" and isinstance(value, str):
                value = {"t0_s": 0.0}
            if not isinstance(value, dict) or (path[0] == "faults" and len(path) == 2):
                continue
            for key, plain in _PLAIN.items():
                if key not in value or any(value == candidate for candidate in plain):
                    continue
                if key == "kind" and path != ("workload", "arrivals"):
                    continue
                for candidate in plain:
                    if self._put(path, dict(candidate)):
                        break

    def _numbers(self) -> None:
        """Make numbers smaller or shorter."""
        for path in list(_paths(self.case.scenario)):
            value = _at(self.case.scenario, path)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            for candidate in _simpler(value):
                if self._put(path, candidate):
                    break

    def _rest(self) -> None:
        """Try fewer stop rules, a small seed, no accounting of delays, and shorter series and traces."""
        self._keep_if_fails(dataclasses.replace(self.case, stops=()))
        for stop in self.case.stops if len(self.case.stops) > 1 else ():
            if self._keep_if_fails(dataclasses.replace(self.case, stops=(stop,))):
                break
        self._keep_if_fails(dataclasses.replace(self.case, price_delays=False))
        for seed in range(4):
            if self.case.seed <= seed or self._keep_if_fails(dataclasses.replace(self.case, seed=seed)):
                break
        for name, text in self.case.series.items():
            lines = text.splitlines()
            for index in range(len(lines) - 1, 0, -1):
                fewer = [line for number, line in enumerate(lines) if number != index]
                series = {**self.case.series, name: "\n".join(fewer) + "\n"}
                if self._keep_if_fails(dataclasses.replace(self.case, series=series)):
                    lines = fewer
        for name, recipe in self.case.traces.items():
            for index in range(len(recipe["lengths"]) - 3, -1, -1):
                now = self.case.traces[name]
                fewer_entries = {
                    **now,
                    "lengths": now["lengths"][:index] + now["lengths"][index + 1 :],
                    "kind": now["kind"][:index] + now["kind"][index + 1 :],
                }
                traces = {**self.case.traces, name: fewer_entries}
                self._keep_if_fails(dataclasses.replace(self.case, traces=traces))

    def _remove(self, path: Path) -> bool:
        """Try the scenario without the value at a path, if that still exists."""
        scenario = copy.deepcopy(dict(self.case.scenario))
        parent, key = _at(scenario, path[:-1]), path[-1]
        if not _has(parent, key):
            return False
        del parent[key]
        return self._with(scenario)

    def _put(self, path: Path, value: object) -> bool:
        """Try the scenario with another value at a path, if that still exists."""
        scenario = copy.deepcopy(dict(self.case.scenario))
        parent, key = _at(scenario, path[:-1]), path[-1]
        if not _has(parent, key):
            return False
        parent[key] = value
        return self._with(scenario)


def _has(parent: object, key: str | int) -> bool:
    """Return whether a mapping has a key, or a list an index."""
    if isinstance(parent, dict):
        return key in parent
    return isinstance(parent, list) and isinstance(key, int) and key < len(parent)


def _paths(data: Any, prefix: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in nested mappings and lists."""
    items: Any = ()
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    for key, value in items:
        yield (*prefix, key)
        yield from _paths(value, (*prefix, key))


def _at(data: Any, path: Path) -> Any:
    """Return the value at a path; None if there is none."""
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _simpler(value: float) -> list[float]:
    """Return numbers to try in place of one, the simplest first."""
    if isinstance(value, int):
        wanted: list[float] = [0, 1, 2]
        step = value // 2
        while step > 0:
            wanted.append(value - step)
            step //= 2
        return [number for number in dict.fromkeys(wanted) if abs(number) < abs(value)]
    wanted = [0.0, 1.0, float(f"{value:.1g}"), float(f"{value:.2g}")]
    return [
        number
        for number in dict.fromkeys(wanted)
        if (len(repr(number)), abs(number)) < (len(repr(value)), abs(value))
    ]


def _repair(scenario: Data) -> None:
    """Repair references to what has been removed, in place."""
    links, sources = scenario.get("links", {}), scenario.get("acceptance", {})
    devices, targets = scenario.get("devices", {}), scenario.get("targets", {})
    edges = scenario.get("edge_servers", {})
    first_link, first_source = next(iter(links), None), next(iter(sources), None)
    for device in devices.values():
        for key in ("link", "edge_link"):
            if key in device and device[key] not in links:
                device[key] = first_link
    for edge in edges.values():
        if edge.get("backhaul") not in links:
            edge["backhaul"] = first_link
    owners = [*devices.values(), *edges.values(), *targets.values()]
    for owner in owners:
        menu = [owner[key] for key in ("drafter", "colocated_drafter") if owner.get(key)]
        for drafter in (*menu, *owner.get("drafters", []), *owner.get("colocated_drafters", [])):
            if drafter.get("model") not in sources:
                drafter["model"] = first_source
    for kind in scenario.get("workload", {}).get("kinds", {}).values():
        if kind.get("slo") not in scenario.get("slo", {}):
            kind["slo"] = next(iter(scenario.get("slo", {})), None)
    classes = {**devices, **edges, **targets}
    for name, fault in list(scenario.get("faults", {}).items()):
        if fault.get("of") not in classes:
            del scenario["faults"][name]
        elif "member" in fault and fault["member"] >= classes[fault["of"]].get("count", 1):
            del fault["member"]
