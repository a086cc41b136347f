"""What a benchmark compares: scenarios, schedulers, seeds, window, objectives; typed, frozen, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from agents.config_files import ConfigModel, config_path, read_config
from agents.constraint import Constraint
from dsd_env import strict_json
from dsd_env.changes import changed_scenario
from dsd_env.scenario import Scenario
from dsd_env.scenario.measuring import steady
from dsd_env.sim.metrics import metric_names
from dsd_env.similar import hint, metrics_like

Role = Literal["static", "rules", "learned", "references"]
ROLES: tuple[Role, ...] = ("static", "rules", "learned", "references")
"""What schedulers are: choices that never change, rules that adapt, policies that were trained, and upper
references, which use what no scheduler can know and are not ranked."""

KEPT = (
    *(f"{name}_{how}" for name in ("e2e_s", "ttft_s", "tpot_s") for how in ("mean", "p95")),
    "e2e_s_mean_drift",
    "throughput_tokens_per_s",
    "goodput_requests_per_s",
    "slo_attainment",
    "cloud_usd_per_1m_tokens",
    "energy_j_per_1k_tokens",
    "load",
    "acceptance_rate",
    "tokens_per_iteration",
    "stream_share",
    "requests_measured",
    "requests_unfinished",
)
"""Metrics that records keep, beside those of objectives and the attainment by class; the digest of a record
vouches for all the others."""

TUNED = "tuned:"
"""What a specification begins with that stands for what tuning has found; the name of the rule follows."""
Found = dict[str, dict[str, Any]]
"""What tuning has found, by scenario and rule; see :mod:`agents.tuning_suite`."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$", max_length=80)]
Label = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^|,`\n]+$")]
Spec = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^,`\n]+$")]


class BenchmarkError(ValueError):
    """A benchmark, its records or a submission are wrong; the message says what, and what to do."""


class Objective(ConfigModel):
    """What schedulers are compared by in a scenario."""

    metric: str = Field(min_length=1)
    better: Literal["lower", "higher"]
    subject_to: Constraint | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it needs."""
        return (self.metric,) if self.subject_to is None else (self.metric, self.subject_to.metric)


class Schedulers(ConfigModel):
    """Schedulers by role and name, as `evaluate.py` takes them; a list names each by itself.

    ``tuned:RULE`` is the scheduler that ``scripts/tune.py --config`` has found for the scenario, or for the
    one that it is a variant of.
    """

    static: dict[Label, Spec] = Field(default={})
    rules: dict[Label, Spec] = Field(default={})
    learned: dict[Label, Spec] = Field(default={})
    references: dict[Label, Spec] = Field(default={})

    @field_validator(*ROLES, mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        if twice := sorted({str(each) for each in value if value.count(each) > 1}):
            raise ValueError(f"names {', '.join(twice)} twice")
        return {each: each for each in value}

    @model_validator(mode="after")
    def _once(self) -> Schedulers:
        names = [name for role in ROLES for name in getattr(self, role)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(map(repr, twice))}: has two roles")
        return self

    def by_name(self) -> dict[str, tuple[Role, str]]:
        """Return role and specification by name."""
        return {name: (role, spec) for role in ROLES for name, spec in getattr(self, role).items()}


class Entry(ConfigModel):
    """One scenario of a benchmark, or a variant of another one on which nothing was trained or tuned."""

    scenario: str | None = Field(default=None, min_length=1, description="Name or path; default: the key.")
    of: Name | None = Field(
        default=None,
        description="Generalisation: the entry of whose scenario this is a variant, with its objective, "
        "window and schedulers where none are given here. Its results are no part of the main scores.",
    )
    set: dict[str, Any] = Field(
        default={}, description="Changes of the scenario by dotted key, e.g. {devices.phone.count: 40}."
    )
    cycles: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Cycles of the load that are measured after the warm-up."
    )
    objective: Objective | None = None
    groups: tuple[Label, ...] = Field(default=(), description="Groups of the benchmark that take part.")
    schedulers: Schedulers = Schedulers()
    without: tuple[Label, ...] = Field(default=(), description="Schedulers and groups left out.")
    note: str = Field(default="", max_length=500)


class Contest(ConfigModel):
    """An entry with all that it takes from the benchmark and from the entry that it is a variant of.

    Attributes:
        name: Its name.
        of: The entry that it is a variant of.
        source: Name or path of the scenario.
        changes: Changes of the scenario, by dotted key.
        cycles: Cycles of the load that are measured.
        objective: What schedulers are compared by.
        schedulers: Role and specification by name.
        note: What to know about it.
    """

    name: Name
    of: Name | None
    source: str
    changes: dict[str, Any]
    cycles: int
    objective: Objective
    schedulers: dict[str, tuple[Role, str]]
    note: str

    def load(self) -> Scenario:
        """Return the scenario as it is measured: as ``evaluate.py --set … --cycles …`` does.

        Raises:
            dsd_env.scenario.ScenarioError: It does not exist or is not valid.
        """
        return steady(changed_scenario(self.source, self.changes), self.cycles)

    def metrics(self, scenario: Scenario) -> tuple[str, ...]:
        """Return the metrics that its records keep.

        Raises:
            BenchmarkError: The objective is by a metric that there is not.
        """
        known = metric_names(scenario)
        for metric in self.objective.metrics:
            if metric not in known:
                meant = hint(metrics_like([metric], known))
                raise BenchmarkError(f"scenarios.{self.name}: no metric {metric!r}{meant}")
        attainment = [name for name in known if name.startswith("slo_attainment.")]
        return tuple(dict.fromkeys([*KEPT, *self.objective.metrics, *attainment]))


class Suite(ConfigModel):
    """A benchmark."""

    title: str = Field(min_length=1, max_length=200)
    seeds: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=20, description="Episodes per scenario and scheduler: the first so many evaluation seeds."
    )
    cycles: Annotated[int, Field(ge=1, le=1000)] = 1
    objective: Objective = Objective(metric="e2e_s_mean", better="lower")
    baseline: Label | None = Field(
        default=None, description="Name of a scheduler that all are compared with besides."
    )
    schedulers: Schedulers = Field(default=Schedulers(), description="Those of every scenario.")
    groups: dict[Label, Schedulers] = Field(
        default={}, description="Schedulers that take part where an entry names their group."
    )
    scenarios: dict[Name, Entry] = Field(min_length=1)
    tuned: str | None = Field(
        default=None, min_length=1, description="Tunings of `tuned:RULE`: a name in configs/tune, or a path."
    )
    found: Found | None = Field(
        default=None, exclude=True, description="Their results; filled in at loading."
    )

    @model_validator(mode="after")
    def _whole(self) -> Suite:
        for name, entry in self.scenarios.items():
            parent = None if entry.of is None else self.scenarios.get(entry.of)
            if entry.of is not None and (parent is None or parent.of is not None):
                raise ValueError(f"scenarios.{name}.of = {entry.of!r} must name an entry that is no variant")
            if unknown := sorted(set(entry.groups) - set(self.groups)):
                raise ValueError(f"scenarios.{name}.groups: no {unknown}; there are {sorted(self.groups)}")
            known = self._offered(entry)
            for left_out in entry.without:
                if not known.keys() & self._named(left_out):
                    raise ValueError(f"scenarios.{name}.without: no scheduler {left_out!r} is given for it")
            contest = self.contest(name)
            if not any(role == "static" for role, _ in contest.schedulers.values()):
                raise ValueError(
                    f"scenarios.{name}: names no static scheduler, by the best of which scores are normalised"
                )
            if self.baseline is not None and self.baseline not in contest.schedulers:
                raise ValueError(f"baseline = {self.baseline!r} is no scheduler of scenarios.{name}")
        return self

    def _offered(self, entry: Entry) -> dict[str, tuple[Role, str]]:
        offered = self.schedulers.by_name()
        if entry.of is not None:
            parent = self.scenarios[entry.of]
            left_out = self._left_out(parent)
            offered = {k: v for k, v in self._offered(parent).items() if k not in left_out}
        for group in entry.groups:
            offered |= self.groups[group].by_name()
        return {**offered, **entry.schedulers.by_name()}

    def _named(self, name: str) -> set[str]:
        """Return the schedulers of a group, or the one of that name."""
        return set(self.groups[name].by_name()) if name in self.groups else {name}

    def _left_out(self, entry: Entry) -> set[str]:
        """Return the schedulers that an entry leaves out, those of groups included."""
        return {name for left_out in entry.without for name in self._named(left_out)}

    def contest(self, name: str) -> Contest:
        """Return an entry with all that it takes from elsewhere."""
        entry = self.scenarios[name]
        parent = Entry() if entry.of is None else self.scenarios[entry.of]
        order = {role: number for number, role in enumerate(ROLES)}
        left_out = self._left_out(entry)
        schedulers = {
            key: (role, self._found_for(entry.of or name, spec))
            for key, (role, spec) in self._offered(entry).items()
            if key not in left_out
        }
        return Contest(
            name=name,
            of=entry.of,
            source=entry.scenario or parent.scenario or entry.of or name,
            changes={**parent.set, **entry.set},
            cycles=entry.cycles or parent.cycles or self.cycles,
            objective=entry.objective or parent.objective or self.objective,
            schedulers=dict(sorted(schedulers.items(), key=lambda each: order[each[1][0]])),
            note=entry.note,
        )

    def _found_for(self, scenario: str, spec: str) -> str:
        """Return a specification with what tuning has found; as it is before results are known."""
        if not spec.startswith(TUNED) or self.found is None:
            return spec
        rule = spec.removeprefix(TUNED)
        try:
            return str(self.found[scenario][rule]["scheduler"])
        except KeyError:
            raise BenchmarkError(
                f"scenarios.{scenario}: {spec!r} is not found yet: run scripts/tune.py --config {self.tuned}"
            ) from None

    def contests(self) -> list[Contest]:
        """Return all entries, in order."""
        return [self.contest(name) for name in self.scenarios]


def load_suite(suite: str | Path, *, tuned: bool = True) -> Suite:
    """Load a benchmark.

    Args:
        suite: Path of a YAML file, or the name of a shipped one (``"core"``).
        tuned: With what tuning has found; otherwise specifications ``tuned:RULE`` stay as they are.

    Raises:
        BenchmarkError: Not found, not YAML, unknown key, or impossible value; something has not been tuned.
    """
    loaded = read_config(Suite, suite, "benchmark", "benchmark", BenchmarkError)
    if not tuned or loaded.tuned is None:
        return loaded
    return loaded.model_copy(update={"found": read_found(results_of(loaded.tuned), BenchmarkError)})


def contest_of(suite: str, entry: str, error: type[Exception]) -> Contest:
    """Return an entry of a benchmark.

    Args:
        suite: Path or name of the benchmark.
        entry: Name of the entry.
        error: What is raised where there is none of that name.
    """
    loaded = load_suite(suite)
    if entry not in loaded.scenarios:
        raise error(f"entry = {entry!r} is none of {sorted(loaded.scenarios)}")
    return loaded.contest(entry)


def results_of(tunings: str | Path) -> Path:
    """Return the file of results that lies beside a file of tunings, given by path or, shipped, by name."""
    return config_path(tunings, "tune").with_suffix(".json")


def read_found(path: Path, error: type[ValueError]) -> Found:
    """Return the results of tunings; none if there is no such file.

    Raises:
        ValueError: As ``error``: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        found: Found = strict_json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise error(f"{path}: no file of results ({problem})") from problem
    return found
