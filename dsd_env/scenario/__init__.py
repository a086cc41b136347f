"""Scenarios: typed, frozen and validated descriptions of what is simulated."""

from dsd_env.scenario.loader import ScenarioError, list_scenarios, load_scenario
from dsd_env.scenario.schema import Scenario

__all__ = ["Scenario", "ScenarioError", "list_scenarios", "load_scenario"]
