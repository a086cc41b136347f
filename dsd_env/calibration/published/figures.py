"""Figures of a source beside those of the simulator, and what counts as agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsd_env import strict_yaml

FACTS = Path(__file__).resolve().parent / "facts.yaml"


@dataclass(frozen=True)
class Figure:
    """One figure of a source and what the simulator makes of it.

    Attributes:
        what: Name of the figure.
        unit: Its unit; empty for shares and ranks.
        source: What was measured.
        simulated: What comes out.
        limit: Largest deviation that passes: a share of the source's figure, or, with `absolute`, a plain
            difference.
        absolute: Whether the deviation is a plain difference.
        one_sided: Whether only a value above the source's counts as off (a regret below its limit passes).
        calibrated: Whether a free constant of the check was set by this figure, so that meeting it says
            nothing.
    """

    what: str
    unit: str
    source: float
    simulated: float
    limit: float
    absolute: bool = False
    one_sided: bool = False
    calibrated: bool = False

    @property
    def deviation(self) -> float:
        """How far the simulated figure is from the source's, as `absolute` says."""
        difference = self.simulated - self.source
        return difference if self.absolute else difference / self.source

    @property
    def passes(self) -> bool:
        """Whether it is within the limit."""
        size = self.deviation if self.one_sided else abs(self.deviation)
        return math.isfinite(size) and size <= self.limit


@dataclass(frozen=True)
class Check:
    """What one source says, held against the simulator.

    Attributes:
        name: Short name, that of the option that picks it.
        title: Title in the document.
        source: Where the figures are from.
        inputs: What was taken from the source, and what was not to be had from it, in sentences.
        figures: The figures.
        remarks: What the misses come from, as far as it is known.
    """

    name: str
    title: str
    source: str
    inputs: str
    figures: tuple[Figure, ...]
    remarks: str = ""
    table: tuple[str, ...] = field(default=(), repr=False)

    @property
    def misses(self) -> tuple[Figure, ...]:
        """Figures beyond their limit."""
        return tuple(figure for figure in self.figures if not figure.passes)

    @property
    def passes(self) -> bool:
        """Whether every figure is within its limit."""
        return not self.misses

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "passes": self.passes,
            "figures": [
                {
                    "what": figure.what,
                    "unit": figure.unit,
                    "source": figure.source,
                    "simulated": figure.simulated,
                    "deviation": figure.deviation,
                    "limit": figure.limit,
                    "calibrated": figure.calibrated,
                    "passes": figure.passes,
                }
                for figure in self.figures
            ],
        }


def load_facts() -> Mapping[str, Any]:
    """Return the transcribed figures by source; keys that are whole numbers are whole numbers."""
    return {str(name): by_number(part) for name, part in strict_yaml.load(FACTS).items()}


def by_number(value: Any) -> Any:
    """Return facts with keys that are whole numbers as whole numbers."""
    if not isinstance(value, dict):
        return value
    return {int(key) if key.isdecimal() else key: by_number(part) for key, part in value.items()}


def summary(checks: Sequence[Check]) -> Iterator[str]:
    """Yield a Markdown table with a line for each check."""
    yield "| check | figures | within the limit | of these set by a calibration | largest miss |"
    yield "|---|---|---|---|---|"
    for check in checks:
        good = [figure for figure in check.figures if figure.passes]
        set_by = sum(figure.calibrated for figure in check.figures)
        miss = max(check.misses, key=lambda figure: abs(figure.deviation), default=None)
        shown = "none" if miss is None else f"{miss.what}: {_off(miss)}"
        yield f"| {check.title} | {len(check.figures)} | {len(good)} | {set_by} | {shown} |"


def _off(figure: Figure) -> str:
    return f"{figure.deviation:+.2f}" if figure.absolute else f"{100.0 * figure.deviation:+.1f} %"


def table(check: Check) -> Iterator[str]:
    """Yield a Markdown table of a check's figures; misses are bold."""
    yield "| figure | source | simulated | off by | limit | |"
    yield "|---|---|---|---|---|---|"
    for figure in check.figures:
        limit = f"{figure.limit:g}" if figure.absolute else f"{100.0 * figure.limit:g} %"
        verdict = "calibrated" if figure.calibrated else "within" if figure.passes else "**miss**"
        if figure.calibrated and not figure.passes:
            verdict = "**calibrated, and missed**"
        unit = f" {figure.unit}" if figure.unit else ""
        yield (
            f"| {figure.what} | {figure.source:.4g}{unit} | {figure.simulated:.4g}{unit} | {_off(figure)} | "
            f"{limit} | {verdict} |"
        )
