"""The contents of an environment's infos: everything, only numbers of fixed shape, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.due import DUE_FIELDS
from dsd_env.control.rewards import REWARD_TERMS
from dsd_env.laws.resolve import REASONS
from dsd_env.rng import as_int64
from dsd_env.sim.metrics import METRICS

INFOS = ("full", "numeric", "none")
"""Allowed values of the environments' argument `infos`."""

RESOLVED_CODES: Mapping[str | None, int] = {reason: number for number, reason in enumerate(REASONS)}
"""Code in ``info["resolved_code"]`` for each reason why an action was changed by rule."""

NOT_DUE = -1
"""Value of the fields of the decision now due in numeric infos, if no decision is due."""


def check_infos(infos: str) -> str:
    """Return the argument `infos`, checked.

    Raises:
        ValueError: The value is unknown.
    """
    if infos not in INFOS:
        raise ValueError(f"infos = {infos!r} is not one of {list(INFOS)}")
    return infos


@dataclass(frozen=True, slots=True)
class NumericInfos:
    """Infos with the same keys, types and shapes at every reset and step, so that buffers can store them.

    Attributes:
        price_delays: Whether infos hold ``decision_delay_caused_s``.
        discount_rate_per_s: Rate of ``discount``; None: infos hold no ``discount``.
    """

    price_delays: bool
    discount_rate_per_s: float | None

    def of(
        self, info: Mapping[str, Any], episode_seed: int, scenario_index: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Return an info of a reset or a step as arrays of fixed shape.

        Single numbers become arrays of shape (): some buffers read the `dtype` of every value, and
        Gymnasium's vector environments batch NumPy booleans in no other form.

        Args:
            info: The full info.
            episode_seed: Seed of the episode.
            scenario_index: Index of the episode's scenario in a mixture.
        """
        decision, metrics = info.get("decision"), info.get("episode_metrics")
        due = decision or {}
        terms = info.get("reward_terms", {})
        values: dict[str, Any] = {
            "now_s": info["now_s"],
            "dt_s": info["dt_s"],
            "decision_due": decision is not None,
            **{
                f"decision_{field.name}": due.get(field.name, False if field.is_flag else NOT_DUE)
                for field in DUE_FIELDS
            },
            "episode_seed": as_int64(episode_seed),
            "scenario_index": scenario_index,
            "reward_terms": [terms.get(name, 0.0) for name in REWARD_TERMS],
            "resolved_code": RESOLVED_CODES[info.get("resolved")],
            "invalid_actions": info.get("invalid_actions", 0),
            "completed_requests": len(info.get("completed", ())),
            "has_episode_metrics": metrics is not None,
            "episode_metrics": [(metrics or {}).get(name, math.nan) for name in METRICS],
        }
        if self.price_delays:
            values["decision_delay_caused_s"] = due.get("delay_caused_s", math.nan)
        if self.discount_rate_per_s is not None:
            values["discount"] = math.exp(-self.discount_rate_per_s * info["dt_s"])
        return {name: np.asarray(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class NumericFleetInfos:
    """Infos of the fleet view with the same keys, types and shapes at every reset and step.

    Attributes:
        discount_rate_per_s: Rate of ``discount``; None: infos hold no ``discount``.
    """

    discount_rate_per_s: float | None

    def of(
        self, info: Mapping[str, Any], episode_seed: int, plan: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Return an info of a reset or a step as arrays of fixed shape.

        Args:
            info: The full info.
            episode_seed: Seed of the episode.
            plan: The plan in force, int64, shape (groups, 3).
        """
        metrics = info.get("episode_metrics")
        terms, resolved = info.get("reward_terms", {}), info.get("resolved", {})
        values: dict[str, Any] = {
            "now_s": info["now_s"],
            "dt_s": info["dt_s"],
            "plan": plan.ravel().copy(),
            "episode_seed": as_int64(episode_seed),
            "reward_terms": [terms.get(name, 0.0) for name in REWARD_TERMS],
            "resolved": [resolved.get(reason, 0) for reason in REASONS if reason is not None],
            "invalid_actions": info.get("invalid_actions", 0),
            "completed_requests": info.get("completed_requests", 0),
            "has_episode_metrics": metrics is not None,
            "episode_metrics": [(metrics or {}).get(name, math.nan) for name in METRICS],
        }
        if self.discount_rate_per_s is not None:
            values["discount"] = math.exp(-self.discount_rate_per_s * info["dt_s"])
        return {name: np.asarray(value) for name, value in values.items()}
