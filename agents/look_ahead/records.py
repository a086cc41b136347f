"""Episodes of upper references as files, and what they say beside the benchmark's records of their seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.benchmark.cells import located
from agents.benchmark.config import BenchmarkError
from agents.benchmark.pages import in_words, number, percent, table
from agents.benchmark.records import Store
from agents.benchmark.running import metrics_digest
from agents.benchmark.scoring import standing
from agents.benchmark.statistics import gain
from agents.identity import digests_of, key_of
from agents.look_ahead.config import LookAheadConfig
from dsd_env import strict_json
from dsd_env.files import write_text
from dsd_env.scenario import Scenario

if TYPE_CHECKING:
    # Reading records takes no engine.
    from agents.look_ahead.futures import Step
    from agents.look_ahead.planning import Episode

FORMAT, FORMAT_VERSION = "dsd_env.look_ahead.records", 1
BLOCK = "upper references"
"""Name of the block of a page that the table is written into."""


@dataclass(frozen=True)
class Kept:
    """An episode as its file keeps it.

    Attributes:
        seed: Its seed.
        metrics: Metrics by name; NaN where nothing was observed.
        digest: SHA-256 of all metrics.
        plans: The plans that were followed, and until when: indices, three for each group.
        decisions: Decisions with a look ahead.
        changed: Those of them that left what was intended.
        futures: Futures played.
        simulated_s: Simulated time of these.
        wall_s: Time that the episode took, on whatever machine that was.
    """

    seed: int
    metrics: Mapping[str, float]
    digest: str
    plans: tuple[tuple[float, tuple[int, ...]], ...]
    decisions: int
    changed: int
    futures: int
    simulated_s: float
    wall_s: float

    @classmethod
    def of(cls, episode: Episode, metrics: Sequence[str], wall_s: float) -> Kept:
        """Return what is kept of an episode."""
        return cls(
            episode.seed,
            {name: episode.metrics[name] for name in metrics},
            metrics_digest(episode.metrics),
            tuple((until_s, tuple(plan.ravel().tolist())) for until_s, plan in episode.steps),
            episode.decisions,
            episode.changed,
            episode.futures,
            round(episode.simulated_s, 1),
            round(wall_s, 1),
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The plans as they are followed."""
        return tuple((until_s, np.array(plan, dtype=np.int64).reshape(-1, 3)) for until_s, plan in self.plans)

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON: NaN and infinity as null."""
        return {
            "seed": self.seed,
            "metrics": {name: _null(value) for name, value in self.metrics.items()},
            "metrics_sha256": self.digest,
            "decisions": self.decisions,
            "changed": self.changed,
            "futures": self.futures,
            "simulated_s": self.simulated_s,
            "wall_s": self.wall_s,
            "plans": [[_null(until_s), list(plan)] for until_s, plan in self.plans],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kept:
        """Return what JSON holds.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It holds no episode.
        """
        metrics = {str(k): math.nan if v is None else float(v) for k, v in data["metrics"].items()}
        plans = tuple(
            (math.inf if until_s is None else float(until_s), tuple(map(int, plan)))
            for until_s, plan in data["plans"]
        )
        counts = [int(data[name]) for name in ("decisions", "changed", "futures")]
        digest = str(data["metrics_sha256"])
        return cls(
            int(data["seed"]),
            metrics,
            digest,
            plans,
            counts[0],
            counts[1],
            counts[2],
            float(data["simulated_s"]),
            float(data["wall_s"]),
        )


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def inputs_of(config: LookAheadConfig, scenario: Scenario) -> str:
    """Return the digest of all that an episode depends on besides its seed and the code of the look-ahead."""
    settings = config.model_dump(mode="json")
    if not config.redraws:  # as before there were any
        del settings["redraws"], settings["surely"]
    base = None
    if config.is_policy:
        assert isinstance(config.base, str)
        base = located(config.base)
    return key_of(settings, *digests_of(scenario, base))


@dataclass(frozen=True)
class Reference:
    """The episodes of one upper reference.

    Attributes:
        name: Name of its file and its configuration.
        config: The configuration.
        about: What else the file says: scenario, digests, versions.
        episodes: By seed.
    """

    name: str
    config: LookAheadConfig
    about: Mapping[str, Any]
    episodes: Mapping[int, Kept]

    def write(self, path: Path) -> None:
        """Write the file, as a whole or not at all; an episode a line."""
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "about": dict(self.about),
            "config": self.config.model_dump(mode="json"),
        }
        text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        lines = [
            json.dumps(self.episodes[seed].to_json(), separators=(",", ":"), allow_nan=False)
            for seed in sorted(self.episodes)
        ]
        write_text(path, f'{text},\n "episodes": [\n' + ",\n".join(lines) + "\n]\n}\n")


def read(path: Path) -> Reference:
    """Read a file of episodes.

    Raises:
        BenchmarkError: It is damaged, or of another format.
    """
    try:
        data = strict_json.loads(path.read_text(encoding="utf-8"))
        if (data["format"], data["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {data['format']!r}, version {data['format_version']!r}")
        episodes = [Kept.from_json(each) for each in data["episodes"]]
        config = LookAheadConfig.model_validate(data["config"])
        return Reference(path.stem, config, data["about"], {each.seed: each for each in episodes})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path}: holds no episodes of an upper reference ({error}): take it from version control "
            "again, or delete it and run scripts/look_ahead.py"
        ) from error


@dataclass(frozen=True)
class Comparison:
    """An upper reference beside the benchmark's records of its seeds.

    Attributes:
        reference: The reference.
        seeds: Seeds that all of them have.
        names: Of the best static choice, rule and learned policy of the scenario, where there are.
        values: The objective by seed, of these and of ``reference``.
        feasible: Whether the reference keeps to the objective's constraint.
    """

    reference: Reference
    seeds: tuple[int, ...]
    names: Mapping[str, str]
    values: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    feasible: bool

    def share(self, what: str) -> float:
        """Return the share of what lies between best static choice and reference that another one gains."""
        static, top = self.values["static"].mean(), self.values["reference"].mean()
        lower = self.reference.config.contest().objective.better == "lower"
        if what not in self.values or top == static or (top < static) != lower:
            return math.nan
        return float((self.values[what].mean() - static) / (top - static))


def compare(reference: Reference, store: Store) -> Comparison:
    """Hold a reference against the benchmark's records.

    Raises:
        BenchmarkError: The benchmark has no record of its seeds.
    """
    contest = reference.config.contest(tuned=True)
    found = standing(contest, store.records(contest.name))
    if found is None:
        raise BenchmarkError(f"{reference.name}: the benchmark has no records of {contest.name!r}")
    best = {what: found.best[what] for what in ("static", "rule", "learned") if what in found.best}
    rows = {what: found.rows[name].values for what, name in best.items()}
    seeds = tuple(seed for seed in sorted(reference.episodes) if all(seed in row for row in rows.values()))
    if not seeds:
        raise BenchmarkError(f"{reference.name}: the benchmark has records of none of its seeds")
    metric, limit = contest.objective.metric, contest.objective.subject_to
    values = {what: np.array([row[seed] for seed in seeds]) for what, row in rows.items()}
    values["reference"] = np.array([reference.episodes[seed].metrics[metric] for seed in seeds])
    held = limit is None or limit.holds(
        float(np.mean([reference.episodes[seed].metrics[limit.metric] for seed in seeds]))
    )
    return Comparison(reference, seeds, best, values, held)


def page_table(compared: Iterable[Comparison]) -> str:
    """Return the table of a page."""
    rows = []
    for each in compared:
        objective = each.reference.config.contest().objective
        lower = objective.better == "lower"
        cells = [f"`{each.reference.name}`", in_words(objective), str(len(each.seeds))]
        for what in ("static", "rule", "learned"):
            value = f"`{each.names[what]}` {number(each.values[what].mean())}" if what in each.names else "–"
            cells.append(value)
        missed = "" if each.feasible else " (misses the constraint)"
        cells.append(number(each.values["reference"].mean()) + missed)
        cells.append(percent(gain(each.values["reference"], each.values["static"], lower_is_better=lower)))
        cells += [_share(each, what) for what in ("rule", "learned")]
        wall_s = np.mean([each.reference.episodes[seed].wall_s for seed in each.seeds])
        rows.append([*cells, f"{wall_s:.0f}"])
    head = ["reference", "compared by", "episodes", "best static", "best rule", "best learned", "look-ahead"]
    head += ["over best static", "share closed by best rule", "by best learned", "wall (s)"]
    return "\n".join(["", *table(head, rows), ""])


def _share(compared: Comparison, what: str) -> str:
    if compared.names.get(what) == compared.names["static"]:
        return "–"
    share = compared.share(what)
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"
