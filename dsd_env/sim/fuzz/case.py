"""One case for two engines: a scenario, a seed, the actions, and the files that the scenario names."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.acceptance import DrafterTrace, TraceSet
from dsd_env.control import ActionSpace
from dsd_env.control.actions import Decision, StopKind, StopRule
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim.world import WorldBuilder

Action = tuple[int, int, int]

FORMAT = 1


@dataclass(frozen=True)
class Case:
    """One case. It is plain data, so that it can be saved, read and made smaller.

    Attributes:
        scenario: The scenario as a mapping. It names the files in `series` and `traces` without a folder.
        seed: Episode seed.
        actions: Indices of (gamma, batch size, placement), taken in turn and repeated from the beginning.
            Each index is taken modulo the length of its list, so that any action fits any scenario.
        decisions: The comparison stops after this number of decisions.
        price_delays: Whether to compare the accounting of delays, too.
        series: Text of each network series and each trace of requests that the scenario replays, by file
            name.
        traces: Recipe of each trace set that the scenario names: see :func:`made_up_trace`.
        stops: Stop rules of the decisions, taken in turn likewise; None among them is a decision without one.
            Empty: no decision has one.
    """

    scenario: Mapping[str, Any]
    seed: int
    actions: tuple[Action, ...]
    decisions: int = 300
    price_delays: bool = False
    series: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stops: tuple[StopRule | None, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the case as JSON data."""
        return {
            "format": FORMAT,
            "scenario": copy.deepcopy(dict(self.scenario)),
            "seed": self.seed,
            "actions": [list(action) for action in self.actions],
            "decisions": self.decisions,
            "price_delays": self.price_delays,
            "series": dict(self.series),
            "traces": {name: dict(recipe) for name, recipe in self.traces.items()},
            "stops": [None if stop is None else [int(stop.kind), *stop[1:]] for stop in self.stops],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """Return the case that :meth:`to_json` wrote.

        Raises:
            ValueError: The data are not a case, or have another format.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"format = {data.get('format')!r}: this is no case of format {FORMAT}")
        try:
            actions = tuple((int(g), int(b), int(p)) for g, b, p in data["actions"])
            stops = tuple(None if stop is None else _stop_of(*stop) for stop in data.get("stops", ()))
            case = cls(
                dict(data["scenario"]),
                int(data["seed"]),
                actions,
                int(data["decisions"]),
                bool(data["price_delays"]),
                dict(data["series"]),
                dict(data["traces"]),
                stops,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a case: {error!r}") from error
        if not actions:
            raise ValueError("not a case: its list of actions is empty")
        return case

    @contextlib.contextmanager
    def built(self) -> Iterator[tuple[Scenario, WorldBuilder]]:
        """Yield the validated scenario and the builder of its worlds, with the case's files in place.

        Raises:
            ScenarioError: The scenario is not valid.
        """
        data = copy.deepcopy(dict(self.scenario))
        with contextlib.ExitStack() as stack:
            if self.series or self.traces:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsd-case-")))
                self._write_files(folder, data)
            scenario = load_scenario(data)
            yield scenario, WorldBuilder(scenario)

    def _write_files(self, folder: Path, data: dict[str, Any]) -> None:
        """Write the files into a folder and name them in the scenario by their paths."""
        for link in data.get("links", {}).values():
            replay = link.get("replay")
            if replay and replay.get("file") in self.series:
                path = folder / replay["file"]
                path.write_text(self.series[replay["file"]], encoding="utf-8")
                replay["file"] = str(path)
        arrivals = data.get("workload", {}).get("arrivals", {})
        if arrivals.get("trace") in self.series:
            path = folder / arrivals["trace"]
            path.write_text(self.series[arrivals["trace"]], encoding="utf-8")
            arrivals["trace"] = str(path)
        for source in data.get("acceptance", {}).values():
            name = source.get("trace")
            if name in self.traces:
                npz, _ = made_up_trace(name, **self.traces[name]).save(folder)
                source["trace"] = str(npz)

    def decision(self, number: int, space: ActionSpace) -> Decision:
        """Return the answer to the `number`-th decision of the episode."""
        action = self.actions[number % len(self.actions)]
        decision = space.decode([index % size for index, size in zip(action, space.nvec, strict=True)])
        return decision._replace(stop=self.stops[number % len(self.stops)]) if self.stops else decision


def _stop_of(kind: int, threshold: float, least: int, keeps: bool) -> StopRule:
    return StopRule(StopKind(kind), float(threshold), int(least), bool(keeps))


def made_up_trace(name: str, *, lengths: list[int], kind: list[int], seed: int) -> TraceSet:
    """Return a synthetic trace set with one drafter of each form, ``look`` and ``model``.

    With short entries a request often continues from one entry into the next.

    Args:
        name: Its name.
        lengths: Output positions of each entry.
        kind: Kind of each entry, 0 (``code``) or 1 (``chat``).
        seed: Seed of its columns.
    """
    generator = np.random.default_rng(seed)
    total = sum(lengths)
    runs = [np.minimum(generator.integers(0, 17, n), np.arange(n, 0, -1)) for n in lengths]
    # What is beyond the accepted part of a proposal; a proposal of which nothing is right may be of length 0.
    run = np.concatenate(runs)
    proposed = np.minimum(run + generator.integers(0, 4, total), 16)
    shares = [generator.random(total).astype(np.float16) for _ in range(4)]
    accept = generator.random(total).astype(np.float32) ** 0.3
    # Every other recording was sampled: a guess of what the target chose alone is less often right.
    guess = (accept * generator.random(total)).astype(np.float32) if seed % 2 else None
    return TraceSet(
        name=name,
        kinds=("code", "chat"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        kind=np.array(kind, dtype=np.uint8),
        prompt_tokens=np.ones(len(lengths), dtype=np.int32),
        drafters={
            "look": DrafterTrace(run.astype(np.uint8), None, shares[0], shares[1], proposed.astype(np.uint8)),
            "model": DrafterTrace(None, accept.astype(np.float32), shares[2], shares[3], draft_prob=guess),
        },
        card={
            "label": "synthetic",
            "kinds": ["code", "chat"],
            "gamma_max": 16,
            "target": {"model": "none"},
            "drafters": {"look": {"model": "none"}, "model": {"model": "none"}},
            "sampling": "none",
            "prompts": [],
            "software": {},
            "date": "2026-01-01",
            "licence": "Apache-2.0",
        },
    )
