"""What an upper reference is: its scenario, plans that it may choose, how far it looks, what it goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agents.benchmark.config import Contest, Name, load_suite
from agents.config import ConfigError, FleetConfig, NonNegative, Positive
from agents.config_files import ConfigModel, read_config
from agents.plans import POLICY, plan_named
from dsd_env.control.fleet import FleetSpace, Plan

Periods = Annotated[int, Field(ge=1, le=100_000)]
Score = Literal["metric", "requests_in_system", "committed_tokens", "completed_requests", "reward"]


class LookAheadConfig(ConfigModel):
    """One upper reference."""

    scenario: Name = Field(description="Entry of the benchmark: its scenario, window, objective and records.")
    suite: str = Field(default="core", min_length=1, description="Name or path of the benchmark.")
    fleet: FleetConfig = FleetConfig()
    base: dict[str, str] | str = Field(
        description="What goes on where no plan is held: a plan for all groups (4/1/edge, plain), one by "
        "group, or a bundle of the fleet view (policy:DIR) with the same fleet settings."
    )
    gammas: tuple[int, ...] = Field(min_length=1, description="Speculation lengths that it may choose.")
    batch_sizes: tuple[int, ...] = Field(default=(1,), min_length=1)
    places: tuple[str, ...] = Field(min_length=1, description="Places that it may choose.")
    together: bool = Field(default=True, description="Try a choice for all groups before one for each.")
    every: Periods = Field(default=1, description="Control periods between two decisions.")
    holds: tuple[Periods, ...] = Field(
        default=(1,),
        min_length=1,
        description="Control periods for which a plan is held before the base goes on.",
    )
    horizon_s: Positive | None = Field(
        default=None, description="How far it looks, in simulated seconds. Null: to the end of the episode."
    )
    score: Score = Field(
        default="metric",
        description="What a future is worth: `metric`, the benchmark's objective of the whole episode; or, "
        "up to the horizon, `requests_in_system` (their integral over time), `committed_tokens`, "
        "`completed_requests`, `reward` (the scenario's).",
    )
    tail: NonNegative = Field(
        default=1.0,
        description="Worth of the tokens still to be made at the horizon, in units of what a token takes the "
        "base; for requests_in_system.",
    )
    redraws: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="How many other futures of the present a course is judged by, drawn anew at every "
        "decision; it is then no foresight. 0: by the very future that comes.",
    )
    surely: NonNegative = Field(
        default=0.0,
        description="With redraws: by how many standard errors of the difference a course must be better "
        "than the best so far.",
    )
    sweeps: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2,
        description="Most times that every group's choices are tried in one decision; 0: the base alone.",
    )
    budget: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=400, description="Most futures of one decision."
    )
    lead_s: NonNegative = Field(
        default=30.0, description="Simulated time before the measured window at which it begins."
    )

    @model_validator(mode="after")
    def _whole(self) -> LookAheadConfig:
        if self.score == "metric" and self.horizon_s is not None:
            raise ValueError(
                f"score = 'metric' is known at the end of an episode, not after horizon_s = "
                f"{self.horizon_s:g}: leave horizon_s out, or take another score"
            )
        if self.score != "metric" and self.horizon_s is None:
            raise ValueError(f"score = {self.score!r} needs horizon_s, in simulated seconds")
        longest_s = max(self.holds) * self.fleet.control_period_s
        if self.horizon_s is not None and longest_s > self.horizon_s:
            raise ValueError(
                f"holds = {list(self.holds)}: the longest takes {longest_s:g} s, horizon_s = "
                f"{self.horizon_s:g} is shorter"
            )
        if self.surely and self.redraws < 2:
            raise ValueError(
                f"surely = {self.surely:g} needs redraws of at least 2, not {self.redraws}: one future has "
                "no standard error"
            )
        for key in ("gammas", "batch_sizes", "places", "holds"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} = {list(values)} names something twice")
        return self

    def contest(self, *, tuned: bool = False) -> Contest:
        """Return the benchmark's entry.

        Args:
            tuned: With the schedulers that tuning has found, which only comparisons need.

        Raises:
            ConfigError: The benchmark has none of this name.
            agents.benchmark.config.BenchmarkError: There is no such benchmark.
        """
        suite = load_suite(self.suite, tuned=tuned)
        if self.scenario not in suite.scenarios:
            raise ConfigError(f"scenario = {self.scenario!r} is not one of {list(suite.scenarios)}")
        return suite.contest(self.scenario)

    def space(self, contest: Contest) -> FleetSpace:
        """Return the plans of the scenario, after a check of what may be chosen.

        Raises:
            ConfigError: Something is not on its list.
        """
        space = FleetSpace(contest.load(), **self.fleet.model_dump())
        words = [place.word for place in space.places]
        lists = (("gammas", space.gammas), ("batch_sizes", space.batch_sizes), ("places", words))
        for key, known in lists:
            if unknown := [value for value in getattr(self, key) if value not in known]:
                raise ConfigError(f"{key}: {unknown[0]!r} is not one of {list(known)}")
        if not self.is_policy:
            self.base_plan(space)
        return space

    @property
    def is_policy(self) -> bool:
        """Whether the base is a bundle."""
        return isinstance(self.base, str) and self.base.startswith(POLICY)

    def base_plan(self, space: FleetSpace) -> Plan:
        """Return the plan that the base is.

        Raises:
            ConfigError: It is none of the scenario.
        """
        try:
            return plan_named(space, self.base)
        except ConfigError as error:
            raise ConfigError(f"base: {error}") from error


def load_look_ahead(config: str | Path) -> LookAheadConfig:
    """Load an upper reference's configuration: a YAML file, or the name of one in ``configs/look_ahead``.

    Raises:
        ConfigError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(LookAheadConfig, config, "look_ahead", "look-ahead", ConfigError)
