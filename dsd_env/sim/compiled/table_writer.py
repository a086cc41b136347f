"""What all tables of constants are written with."""

from __future__ import annotations

from typing import Any

from dsd_env.scenario.schema import Scenario
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.buffer import Buffer
from dsd_env.sim.world import WorldBuilder


class Writer:
    """The buffer of a scenario's constants, and the record at its beginning.

    Attributes:
        scenario: The scenario.
        builder: What is loaded for it.
        buffer: The buffer.
        k: The scenario's record.
        k_header: The same as an array of one element.
    """

    def __init__(self, scenario: Scenario, builder: WorldBuilder) -> None:
        """Begin with the scenario's record."""
        self.scenario, self.builder = scenario, builder
        self.buffer = Buffer()
        self.k = self.buffer.rows(rec.SCENARIO, 1)
        self.k_header = self.k.array
        self._kept: dict[Any, int] = {}

    def set(self, **values: Any) -> None:
        """Set fields of the scenario's record."""
        for name, value in values.items():
            self.k_header[name] = value

    def once(self, key: Any, values: Any, dtype: str) -> int:
        """Put a table of numbers into the buffer, once; return where it begins."""
        if key not in self._kept:
            self._kept[key] = self.buffer.numbers(values, dtype)
        return self._kept[key]
