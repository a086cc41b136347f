"""What is asked about a scheduler; typed, frozen, validated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agents.config_files import ConfigModel

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class ExplainError(ValueError):
    """Something cannot be explained as asked; the message says what, and what to do."""


class Settings(ConfigModel):
    """What is asked about a scheduler."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2, description="Validation episodes whose states are noted."
    )
    test_seeds: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=6, description="Further validation episodes, played in pairs; 0: nothing is played."
    )
    states: Annotated[int, Field(ge=50, le=1_000_000)] = Field(
        default=20_000, description="Most states that are kept, a random sample of those met."
    )
    axes: tuple[str, str] = Field(
        default=("link.rtt_s", "target.resident"), description="Features of the heat maps: across, upwards."
    )
    alone: bool = Field(
        default=False,
        description="Change a feature of the heat maps alone, not with others that tell the same number.",
    )
    bins: Annotated[int, Field(ge=2, le=40)] = Field(default=8, description="Most cells along an axis.")
    sweep_states: Count = Field(default=300, description="States that are changed for each cell.")
    few: Count = Field(default=20, description="Cells with fewer visits are marked.")
    repeats: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="Permutations of the states that are averaged."
    )
    replace: Literal["shuffle", "mean"] = Field(
        default="shuffle",
        description="What stands for features in the simulator: those of a random state, or their means.",
    )
    singles: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=6, description="Single features that are replaced in the simulator: those that change most."
    )
    leaves: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(8, 32), description="Most leaves of each tree; none: no tree."
    )
    depth: Annotated[int, Field(ge=1, le=64)] = Field(default=8, description="Most depth of the trees.")
    passes: Annotated[int, Field(ge=1, le=20)] = Field(
        default=2, description="In the first the scheduler acts, in the others the largest tree so far."
    )
    tree_features: tuple[str, ...] = Field(
        default=(), description="Features that the trees may use: names, groups, patterns; none: all."
    )

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if self.axes[0] == self.axes[1]:
            raise ValueError(f"axes: {self.axes[0]!r} is named twice; a heat map needs two features")
        if len(set(self.leaves)) != len(self.leaves):
            raise ValueError(f"leaves = {list(self.leaves)} names something twice")
        return self
