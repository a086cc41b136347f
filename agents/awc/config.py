"""What the network of adaptive window control is trained on: typed, frozen, validated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from agents.config_files import ConfigModel, read_config
from dsd_env.changes import changed_scenario
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.schedulers.awc_network import Control

Factor = Annotated[float, Field(gt=0.0, le=1000.0)]
Site = Literal["own", "edge"]


class AwcError(ValueError):
    """A configuration, its sweep or its training is wrong; the message says what, and what to do."""


class Family(ConfigModel):
    """Conditions of one scenario: every combination of what is listed."""

    scenario: str = Field(min_length=1, description="Name or path.")
    sites: tuple[Site, ...] = Field(default=("own",), min_length=1, description="Where it drafts apart.")
    round_trips: tuple[Factor, ...] = Field(default=(1.0,), min_length=1, description="Factors of all links.")
    loads: tuple[Factor, ...] = Field(
        default=(1.0,), min_length=1, description="Constant multipliers in the place of the load's profile."
    )
    clients: tuple[Factor, ...] = Field(default=(1.0,), min_length=1, description="Factors of all counts.")
    acceptance: tuple[Annotated[float, Field(gt=0.0, lt=1.0)] | None, ...] = Field(
        default=(None,),
        min_length=1,
        description="Chance of every draft, one independent of the other, in the place of the scenario's "
        "acceptance; null: the scenario's own.",
    )


class Sweep(ConfigModel):
    """What is played in every condition."""

    windows: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    node_lengths: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(default=(1, 2, 4, 6), min_length=1)
    requests: Annotated[int, Field(ge=10, le=100_000)] = Field(default=120, description="Measured requests.")
    warmup: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        default=1.0, description="Requests before them, for each device."
    )
    softness: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.02,
        description="A choice so much slower than the best weighs 1/e of it in the label.",
    )
    states: Annotated[int, Field(ge=10, le=100_000)] = Field(default=400, description="Recorded an episode.")
    every: Annotated[int, Field(ge=1, le=1000)] = Field(default=7, description="Decisions between two.")


class Fit(ConfigModel):
    """How the network is fitted."""

    width: Annotated[int, Field(ge=1, le=256)] = 32
    blocks: Annotated[int, Field(ge=0, le=8)] = 2
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 60
    batch: Annotated[int, Field(ge=1, le=100_000)] = 512
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-4
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.2, description="Share of the conditions that is not trained on and tells the error."
    )


class AwcConfig(ConfigModel):
    """One training."""

    families: tuple[Family, ...] = Field(min_length=1)
    sweep: Sweep = Sweep()
    fit: Fit = Fit()
    control: Control = Control()
    rounds: Annotated[int, Field(ge=1, le=10)] = Field(
        default=2,
        description="1: states are those of static choices alone; each further round adds those that the "
        "network of the round before leads to.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def conditions(self) -> list[Condition]:
        """Return all conditions, in order."""
        return [
            Condition(family.scenario, site, *each)
            for family in self.families
            for site in family.sites
            for each in itertools.product(family.round_trips, family.loads, family.clients, family.acceptance)
        ]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; see :class:`Family` for what its parts mean.

    Attributes:
        scenario: Name or path of the scenario.
        site: Where it drafts apart from the target.
        round_trip: Factor of the links' delays.
        load: Constant multiplier of the load.
        clients: Factor of the counts of devices.
        acceptance: Chance of every draft; None: as the scenario has it.
    """

    scenario: str
    site: str
    round_trip: float
    load: float
    clients: float
    acceptance: float | None

    @property
    def name(self) -> str:
        """How it is shown."""
        own = "own" if self.acceptance is None else f"{self.acceptance:g}"
        return (
            f"{self.scenario} {self.site} rtt x{self.round_trip:g} load x{self.load:g} "
            f"clients x{self.clients:g} acceptance {own}"
        )

    def load_scenario(self, sweep: Sweep) -> Scenario:
        """Return the scenario under this condition, with the window of the sweep.

        Raises:
            dsd_env.scenario.ScenarioError: It does not exist, or is not valid under it.
        """
        scenario = load_scenario(self.scenario)
        changes: dict[str, Any] = {
            "workload.load": {"period_s": 20.0, "points": [[0.0, self.load]], "random_phase": False},
        }
        if self.round_trip != 1.0:
            for name, link in scenario.links.items():
                changes[f"links.{name}.one_way_s"] = link.one_way_s * self.round_trip
        if self.clients != 1.0:
            for name, device in scenario.devices.items():
                changes[f"devices.{name}.count"] = max(1, round(device.count * self.clients))
        if self.acceptance is not None:
            for name in scenario.acceptance:
                changes[f"acceptance.{name}"] = {"source": "iid", "alpha": self.acceptance}
        changed = changed_scenario(scenario, changes)
        warmup = round(sweep.warmup * changed.n_devices)
        return measuring(changed_scenario(changed, {"episode.warmup_requests": warmup}), sweep.requests)


def load_awc(config: str | Path) -> AwcConfig:
    """Load a configuration: a YAML file, or the name of one in ``configs/awc``.

    Raises:
        AwcError: Not found, not YAML, unknown key, or impossible value.
    """
    return read_config(AwcConfig, config, "awc", "configuration of adaptive window control", AwcError)
