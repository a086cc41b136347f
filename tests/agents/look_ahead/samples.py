"""A small benchmark, and upper references of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.look_ahead.config import LookAheadConfig

SUITE = """
title: Tiny
seeds: 2
schedulers:
  static: {plain: cloud_ar, node: "colocated_sd:4"}
scenarios:
  single_lan: {set: {workload.load.period_s: 20.0}}
  fleet:
    scenario: fleet_24_stream
    set: {workload.load.period_s: 6.0}
  slow_cloud:
    set: {workload.load.period_s: 20.0, workload.arrivals.think_s.median: 6.0}
"""


def config(folder: Path, **changes: Any) -> LookAheadConfig:
    """Return an upper reference of a small benchmark that is written into a folder."""
    suite = folder / "tiny.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    given: dict[str, Any] = {
        "scenario": "single_lan",
        "suite": str(suite),
        "fleet": {"control_period_s": 0.5, "grouping": "device"},
        "base": "4/1/colocated",
        "gammas": [0, 2, 4, 8],
        "places": ["colocated", "own"],
        "holds": [2],
        "lead_s": 5.0,
    }
    return LookAheadConfig.model_validate(given | changes)
