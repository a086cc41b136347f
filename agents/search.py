"""Direct search of plan rules with CMA-ES: few parameters, common random numbers, whole episodes.

Each generation tries a population of parameter vectors on the same few training episodes, which are new ones
in the next generation, and moves the distribution towards the better half (CMA-ES, package `cmaes`). What is
kept is the distribution's mean with the best result on validation episodes, the starting plan included: a
search that finds nothing returns what it began with.

A run is a folder: the configuration, and ``generations.jsonl``, a line per generation. It is continued by
telling the optimiser again what it was told, which takes no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from agents.config import ChoicesConfig, ConfigError, FleetConfig, Positive
from agents.config_files import ConfigModel, config_sha256, read_config
from agents.evaluation import check_metrics
from agents.plan_rule import Choices, Floats, PlanRule
from agents.provenance import git_commit, versions
from agents.seeds import training_seed, validation_seeds
from dsd_env import strict_yaml
from dsd_env.changes import changed_scenario
from dsd_env.control.fleet import FleetSpace
from dsd_env.envs import EdgeCloudFleetEnv
from dsd_env.envs.fleet_vector import many
from dsd_env.extras import needs
from dsd_env.files import append_json_line, write_text
from dsd_env.policy.export import export_actor
from dsd_env.policy.manifest import Manifest, Training
from dsd_env.policy.network import MlpActor
from dsd_env.scenario import Scenario
from dsd_env.whole_runs.fleet import play_plans

CONFIG_FILE = "search.yaml"
LOG_FILE = "generations.jsonl"


class SearchConfig(ConfigModel):
    """One search."""

    scenario: str = Field(min_length=1, description="Name or path of the scenario.")
    overrides: dict[str, Any] = Field(
        default={}, description="Changes of the scenario by dotted key, e.g. {episode.requests: 200}."
    )
    fleet: FleetConfig = FleetConfig()
    features: tuple[str, ...] = Field(description="Features of the fleet view that the lines depend on.")
    choices: ChoicesConfig
    start: dict[str, int | str] = Field(
        description="What to begin with, by group: a speculation length, at the first of the places; or a "
        "length and a place, as in 8/own."
    )
    objective: str = Field(
        default="return", min_length=1, description="'return', or the name of an episode metric."
    )
    direction: Literal["max", "min"] = "max"
    generations: Annotated[int, Field(ge=1, le=10_000)] = 40
    population: Annotated[int, Field(ge=4, le=1000)] = 12
    episodes: Annotated[int, Field(ge=1, le=1000)] = Field(default=4, description="Episodes a candidate.")
    sigma: Positive = Field(default=0.5, description="Spread of the first population.")
    validation_episodes: Annotated[int, Field(ge=1, le=1000)] = 8
    validate_every: Annotated[int, Field(ge=1)] = Field(default=5, description="In generations.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def load_scenario(self) -> Scenario:
        """Return the scenario with the overrides.

        Raises:
            dsd_env.scenario.ScenarioError: It does not exist or is not valid.
        """
        return changed_scenario(self.scenario, self.overrides)

    def rule(self, scenario: Scenario) -> PlanRule:
        """Return the rule to search.

        Raises:
            ConfigError: A name is not known in this scenario.
        """
        space = FleetSpace(scenario, **self.fleet.model_dump())
        if set(self.start) != set(space.group_names):
            raise ConfigError(f"start: names {sorted(self.start)}, the groups are {list(space.group_names)}")
        try:
            begins = [_begins(self.start[name], self.choices.places[0]) for name in space.group_names]
            choices = Choices(
                **self.choices.model_dump(),
                start=tuple(gamma for gamma, _ in begins),
                start_places=tuple(place for _, place in begins),
            )
            return PlanRule(space, self.features, choices)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def checked(self, scenario: Scenario) -> PlanRule:
        """Return the rule to search, after everything that can be wrong before the first episode.

        Raises:
            ConfigError: A name is not known in this scenario, or nothing is left to choose.
        """
        rule = self.rule(scenario)
        if rule.size == 0:
            raise ConfigError("choices: leave nothing to choose")
        if self.objective != "return":
            try:
                check_metrics([self.objective], scenario)
            except ValueError as error:
                raise ConfigError(f"objective: {error}; or 'return'") from error
        return rule


def _begins(start: int | str, first_place: str) -> tuple[int, str]:
    """Return the speculation length and the place that a group begins with.

    Raises:
        ValueError: It is neither a length nor a length and a place.
    """
    gamma, slash, place = str(start).partition("/")
    if not gamma.isdigit() or (slash and not place):
        raise ValueError(f"start: {start!r} is no speculation length (8), nor one with a place (8/own)")
    return int(gamma), place or first_place


def load_search(config: str | Path) -> SearchConfig:
    """Load the configuration of a search: a YAML file, or the name of one in ``configs/search``.

    Raises:
        ConfigError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(SearchConfig, config, "search", "search", ConfigError)


class Episodes:
    """Plays episodes of one scenario with actors of the fleet view, several at a time."""

    def __init__(self, scenario: Scenario, fleet: FleetConfig, objective: str, threads: int) -> None:
        """Compile the scenario once for so many threads."""
        self._envs = many(threads, threads, {"scenario": scenario, **fleet.model_dump()})
        self._objective = objective

    def values(self, tasks: Iterable[tuple[MlpActor, int]]) -> list[float]:
        """Return the objective of each (actor, episode seed), in order."""
        waiting = list(enumerate(tasks))[::-1]
        found: dict[int, float] = {}

        def work(env: EdgeCloudFleetEnv) -> None:
            while True:
                try:
                    number, (actor, seed) = waiting.pop()
                except IndexError:
                    return
                found[number] = self._play(env, actor.copy(), seed)

        with ThreadPoolExecutor(len(self._envs)) as pool:
            for _ in pool.map(work, self._envs):
                pass
        return [found[number] for number in range(len(found))]

    def _play(self, env: EdgeCloudFleetEnv, actor: MlpActor, seed: int) -> float:
        total, metrics = play_plans(env, actor.action, seed)
        return total if self._objective == "return" else metrics[self._objective]


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generation found.

    Attributes:
        number: Its number, from 1.
        mean: Mean objective of its candidates.
        best: The best of them.
        validated: Mean objective of the distribution's mean on the validation episodes, where it was tried.
    """

    number: int
    mean: float
    best: float
    validated: float | None


def search(
    config: SearchConfig,
    folder: Path,
    *,
    threads: int = 1,
    report: Callable[[Generation], None] = lambda generation: None,
) -> tuple[PlanRule, Floats, dict[str, Any]]:
    """Search, or continue a search that was interrupted.

    Args:
        config: What to search.
        folder: Where the run is kept.
        threads: Episodes at a time.
        report: Called after every generation.

    Returns:
        The rule, the best validated parameters, and what is worth keeping of the run: episodes simulated,
        objective of the start and of the best on the validation episodes.

    Raises:
        ConfigError: The configuration is wrong, or the folder holds another search.
    """
    with needs("train", "searching plan rules"):
        from cmaes import CMA

    scenario = config.load_scenario()
    rule = config.checked(scenario)
    told = _told(config, folder)
    episodes = Episodes(scenario, config.fleet, config.objective, threads)
    sign = -1.0 if config.direction == "max" else 1.0  # CMA-ES minimises
    held_out = validation_seeds(config.validation_episodes)

    def validate(parameters: Floats) -> float:
        actor = rule.actor(parameters)
        return float(np.mean(episodes.values([(actor, seed) for seed in held_out])))

    optimiser = CMA(
        mean=rule.start(), sigma=config.sigma, population_size=config.population, seed=config.seed
    )
    first = told[0]["validated"] if told else validate(rule.start())
    if not told:
        append_json_line(folder / LOG_FILE, {"generation": 0, "validated": first})
    best, best_value = rule.start(), first
    for number in range(1, config.generations + 1):
        candidates = [optimiser.ask() for _ in range(config.population)]
        entry = told[number] if number < len(told) else None
        if entry is None:
            seeds = [training_seed(config.seed, worker, number, 0) for worker in range(config.episodes)]
            played = episodes.values((actor, seed) for actor in map(rule.actor, candidates) for seed in seeds)
            values = np.mean(np.reshape(played, (config.population, config.episodes)), axis=1).tolist()
        else:
            values = entry["values"]
        optimiser.tell([(each, sign * value) for each, value in zip(candidates, values, strict=True)])
        checked = None
        mean: Floats = optimiser.mean
        if number % config.validate_every == 0 or number == config.generations:
            checked = entry["validated"] if entry is not None else validate(mean)
            if sign * checked < sign * best_value:
                best, best_value = mean.copy(), checked
        if entry is None:
            line = {"generation": number, "values": values, "validated": checked}
            append_json_line(folder / LOG_FILE, line)
        top = max(values) if config.direction == "max" else min(values)
        report(Generation(number, float(np.mean(values)), top, checked))
    kept = {
        "objective": config.objective,
        "validation_episodes": config.validation_episodes,
        "start": first,
        "found": best_value,
        "episodes": config.generations * config.population * config.episodes,
        "parameters": [round(float(value), 6) for value in best],
    }
    return rule, best, kept


def export_search(
    config: SearchConfig,
    rule: PlanRule,
    parameters: Floats,
    kept: dict[str, Any],
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write the rule found as a policy bundle.

    Raises:
        dsd_env.policy.PolicyError: ``out`` is taken.
    """
    training = Training(
        algorithm="CMA-ES",
        seed=config.seed,
        steps=int(kept["episodes"]),
        config_sha256=config_sha256(config),
        versions=versions(),
        git_commit=git_commit(Path(__file__).parent),
        notes=json.dumps(kept, sort_keys=True),
    )
    return export_actor(
        rule.actor(parameters), rule.space.scenario, training, out, overwrite=overwrite, fleet=rule.space
    )


def _told(config: SearchConfig, folder: Path) -> Sequence[dict[str, Any]]:
    """Return the generations of a run to continue; begins one where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    text = strict_yaml.dumps(config.model_dump(mode="json"))
    kept = folder / CONFIG_FILE
    if kept.is_file():
        if kept.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{folder}: holds a search with another configuration; give another folder")
    else:
        write_text(kept, text)
    log = folder / LOG_FILE
    if not log.is_file():
        return []
    entries = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # a write that was cut off
            break
    write_text(log, "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries
