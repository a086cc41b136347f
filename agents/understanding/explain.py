"""Puts the parts together: states, maps, importance, trees, and what they cost; one result for a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.environments import engine_for
from agents.evaluation import PartialResults
from agents.rollouts import BySchedulers, Decide, play
from agents.seeds import validation_seeds
from agents.understanding import maps
from agents.understanding.arena import SIDE_BY_SIDE, Arena, digest_of, objective_of
from agents.understanding.decisions import Reading
from agents.understanding.features import column_of, columns_of, groups
from agents.understanding.importance import changed_by
from agents.understanding.settings import Settings
from agents.understanding.subject import PolicyOfMany, policy_of
from agents.understanding.tree import Tree
from agents.understanding.visits import Noting, Replaced, Visits
from dsd_env.policy import Policy
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario

Told = Callable[[str, int, int], object]
"""(what is being done, done so far, of how many; 0 if that is not known), for a bar of progress."""


@dataclass(frozen=True)
class Question:
    """What is to be explained.

    Attributes:
        label: The scenario as the user named it.
        scenario: Its content, as it is measured.
        scheduler: Specification of the scheduler.
        settings: What is asked.
        metric: What costs are counted in; None: the benchmark's objective of the scenario.
    """

    label: str
    scenario: Scenario
    scheduler: str
    settings: Settings = field(default_factory=Settings)
    metric: str | None = None


class Explanation:
    """Answers a question part by part; everything that names cannot be found for is refused at the start."""

    def __init__(
        self,
        question: Question,
        finished: PartialResults | None = None,
        told: Told = lambda what, done, total: None,
    ) -> None:
        """Prepare.

        Args:
            question: What is to be explained.
            finished: Episodes that were played before, and where new ones are kept; None: in memory.
            told: Is told how far it is.

        Raises:
            ExplainError: A feature does not exist, or the scheduler makes plans of the fleet view.
            ValueError: The scheduler is unknown or does not fit, or there is no such metric.
        """
        scenario, settings = question.scenario, question.settings
        self.question = question
        self.policy: Policy | None = policy_of(question.scheduler, scenario)
        # Of a policy with a longer list of candidates the scenario's is filled up.
        self._n_placements = None if self.policy is None else self.policy.actions.n_placements
        self.reading = Reading(scenario, self._n_placements)
        self.objective = objective_of(question.label, scenario, question.metric)
        for name in settings.axes:
            column_of(self.reading.features, name)
        wanted = settings.tree_features
        self._tree_columns = columns_of(self.reading.features, wanted) if wanted else None
        self._finished = PartialResults(None) if finished is None else finished
        self._told = told
        seeds = validation_seeds(settings.seeds * settings.passes + settings.test_seeds)
        self._noted_seeds = seeds[: len(seeds) - settings.test_seeds]
        self._test_seeds = seeds[len(seeds) - settings.test_seeds :]

    def result(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        settings = self.question.settings
        visits = self._visits(0, None)
        rounds = visits.where(~self.reading.is_admission(visits.observations))
        scenario = self.question.scenario
        result: dict[str, Any] = {
            "scheduler": self.question.scheduler,
            "kind": "rule" if self.policy is None else "policy",
            "scenario": {**scenario_ref(scenario).model_dump(), "label": self.question.label},
            "warmup_s": scenario.episode.warmup_s,
            "window_s": scenario.episode.window_s,
            "objective": self.objective.model_dump(),
            "settings": settings.model_dump(),
            "states": {
                "met": visits.met,
                "kept": len(visits),
                "rounds": len(rounds),
                "seeds": self._noted_seeds[: settings.seeds],
            },
            "test_seeds": self._test_seeds,
        }
        result["maps"] = self._maps(rounds)
        baseline: list[dict[str, float]] = []
        if settings.test_seeds:
            arena = self._arena("itself")
            baseline = arena.baseline()
            result["itself"] = arena.cost(baseline, baseline).json()
        if self.policy is not None:
            result["importance"] = self._importance(visits, self.policy, baseline)
        if settings.leaves:
            result["trees"] = self._trees(visits, baseline)
        return result

    def _visits(self, number: int, driver: Decide | None) -> Visits:
        """Return states of the episodes of one pass; without a driver the scheduler acts."""
        settings = self.question.settings
        seeds = self._noted_seeds[number * settings.seeds : (number + 1) * settings.seeds]
        return self._noted(f"noting states, pass {number + 1}", seeds, driver)

    def _noted(self, what: str, seeds: Sequence[int], driver: Decide | None) -> Visits:
        scenario = self.question.scenario
        noting = Noting(
            BySchedulers(self.question.scheduler),
            self.question.settings.states,
            driver=driver,
            after_s=scenario.episode.warmup_s,
        )
        kind = engine_for(scenario)
        self._told(what, 0, len(seeds))
        episodes = play(
            scenario,
            seeds,
            noting,
            kind=kind,
            side_by_side=SIDE_BY_SIDE,
            n_placements=self._n_placements,
        )
        for done, _ in enumerate(episodes, 1):
            self._told(what, done, len(seeds))
        return noting.visits()

    def _of_many(self, policy: Policy) -> PolicyOfMany:
        return PolicyOfMany(policy, self.reading.actions)

    def _arena(self, what: str) -> Arena:
        done: list[int] = []

        def told(seed: int) -> None:
            done.append(seed)
            self._told(f"playing {what}", len(done), len(self._test_seeds))

        question = self.question
        return Arena(
            question.label,
            question.scenario,
            question.scheduler,
            self._test_seeds,
            self.objective,
            self._finished,
            self._n_placements,
            told,
        )

    def _maps(self, rounds: Visits) -> dict[str, Any]:
        settings, reading = self.question.settings, self.reading
        across, upwards = maps.axes_of(reading, rounds, settings)
        found: dict[str, Any] = {
            "across": across.json(),
            "upwards": upwards.json(),
            "categories": list(reading.categories),
            "visited": maps.visited_map(reading, rounds, across, upwards).json(reading.categories),
        }
        if self.policy is not None:
            changed = maps.changed_map(
                reading,
                self._of_many(self.policy),
                rounds,
                across,
                upwards,
                settings,
                np.random.default_rng(0),
            )
            found["changed"] = changed.json(reading.categories)
            found["changed_with"] = maps.moved_along(reading, settings)
        return found

    def _importance(
        self, visits: Visits, policy: Policy, baseline: Sequence[Mapping[str, float]]
    ) -> dict[str, Any]:
        settings, features = self.question.settings, self.reading.features
        by_group = groups(features)
        singles = {feature.name: np.array([column]) for column, feature in enumerate(features)}
        columns = {**by_group, **singles}
        self._told("permuting features", 0, 0)
        changed = changed_by(
            self.reading,
            self._of_many(policy),
            visits,
            columns,
            settings.repeats,
            np.random.default_rng(0),
        )
        most = sorted(singles, key=lambda name: (-changed[name].decision, name))
        played = [*by_group, *[name for name in most[: settings.singles] if changed[name].decision > 0.0]]
        found: dict[str, Any] = {}
        for name in (*by_group, *most):
            entry: dict[str, Any] = {"features": len(columns[name]), "changed": changed[name]._asdict()}
            if baseline and name in played:
                entry["simulated"] = self._replaced(policy, name, columns[name], visits, baseline)
            found[name] = entry
        return {
            "groups": {name: found[name] for name in by_group},
            "features": {name: found[name] for name in most},
        }

    def _replaced(
        self,
        policy: Policy,
        name: str,
        columns: NDArray[np.int64],
        visits: Visits,
        baseline: Sequence[Mapping[str, float]],
    ) -> dict[str, Any]:
        how = self.question.settings.replace
        pool = visits.observations
        depends_on = {"how": how, "columns": columns.tolist(), "pool": digest_of(pool[:, columns])}
        arena = self._arena(f"without {name}")
        decide = Replaced(self._of_many(policy), columns, pool, how)
        return arena.cost(arena.variant("replaced", depends_on, decide), baseline).json()

    def _trees(self, visits: Visits, baseline: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
        settings = self.question.settings
        states = visits
        for number in range(1, settings.passes):
            states = states.and_also(self._visits(number, self._tree(states, max(settings.leaves))))
        held_out = states
        if self._test_seeds:
            held_out = self._noted("noting states to compare on", self._test_seeds[: settings.seeds], None)
        found = []
        for leaves in settings.leaves:
            tree = self._tree(states, leaves)
            difference = tree.difference(held_out)
            entry: dict[str, Any] = {
                "most_leaves": leaves,
                "leaves": tree.leaves,
                "depth": tree.depth,
                "features": tree.features,
                "states": len(states),
                "compared_on": {"states": len(held_out), "seen_before": not self._test_seeds},
                "differs": difference._asdict(),
                "agreement": {
                    "decision": 1.0 - difference.decision,
                    "gamma": 1.0 - difference.gamma,
                    "place": 1.0 - difference.place,
                },
                "nodes": tree.json(),
                "rules": tree.rules(),
            }
            if baseline:
                arena = self._arena(f"the tree of {tree.leaves} leaves")
                rows = arena.variant("tree", {"nodes": entry["nodes"]}, tree)
                entry["simulated"] = arena.cost(rows, baseline).json()
            found.append(entry)
        return found

    def _tree(self, states: Visits, leaves: int) -> Tree:
        depth = self.question.settings.depth
        return Tree(self.reading, states, leaves=leaves, depth=depth, columns=self._tree_columns)
