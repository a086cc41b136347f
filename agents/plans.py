"""Plans of the fleet view by name, as configurations write them, and bundles that make such plans."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from agents.benchmark.cells import located
from agents.config import ConfigError
from dsd_env.control.fleet import FleetSpace, Plan
from dsd_env.policy import Policy, PolicyError, load
from dsd_env.whole_runs.fleet import Choose

POLICY = "policy:"
"""What the name of a bundle begins with."""


def plan_named(space: FleetSpace, words: str | Mapping[str, str]) -> Plan:
    """Return the plan of words.

    Args:
        space: The plans.
        words: One choice for all groups, ``G/B/PLACE`` or ``plain``; or one for each group, by its name, or
            as ``GROUP=G/B/PLACE+GROUP=plain``.

    Raises:
        ConfigError: It is no plan of the space.
    """
    if isinstance(words, str) and "=" in words:
        # A place may end with "+branches".
        pairs = [part.partition("=") for part in re.split(r"\+(?=[^+=]+=)", words)]
        words = {name: choice for name, _, choice in pairs}
    try:
        if isinstance(words, str):
            return space.uniform(words)
        if set(words) != set(space.group_names):
            raise ValueError(f"names {sorted(words)}, the groups are {list(space.group_names)}")
        return np.stack([space.uniform(words[name])[number] for number, name in enumerate(space.group_names)])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def plans_of(space: FleetSpace, bundle: str) -> Policy:
    """Return a bundle that makes plans of a space.

    Args:
        space: The plans.
        bundle: ``policy:DIR``; a relative path begins here, or at the root of the checkout.

    Raises:
        dsd_env.policy.PolicyError: It cannot be loaded, or is of other plans.
    """
    policy = load(located(bundle).removeprefix(POLICY))
    theirs = policy.fleet_space(space.scenario)
    if not theirs.is_like(space):
        raise PolicyError(
            f"{bundle}: a bundle with control_period_s = {theirs.control_period_s:g}, grouping = "
            f"{theirs.grouping!r}, name_targets = {theirs.name_targets}: the settings of fleet must be these"
        )
    return policy


def chooser_of(space: FleetSpace, words: str | Mapping[str, str]) -> Choose:
    """Return what makes plans by name: a bundle, which is asked, or a plan, which is always the same.

    Args:
        space: The plans.
        words: ``policy:DIR``, or a plan as :func:`plan_named` reads it.

    Raises:
        ConfigError: It is no plan of the space.
        dsd_env.policy.PolicyError: The bundle cannot be loaded, or is of other plans.
    """
    if isinstance(words, str) and words.startswith(POLICY):
        return plans_of(space, words).choose
    fixed: list[int] = plan_named(space, words).ravel().tolist()
    return lambda observation, mask: fixed
