"""Guard rails: when the safe rule replaces the policy, and when the policy is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Choice = TypeVar("Choice")

logger = logging.getLogger("dsd_env.serving")

REASONS = ("error", "not_finite", "time_out", "out_of_range", "stale")
"""Kinds of trouble with a policy: it raised an error, its input was not finite, it was too slow, or telemetry
was out of range or stale."""


@dataclass(frozen=True)
class GuardConfig:
    """When to stop trusting a policy, and for how long.

    Attributes:
        safe_rule: Scheduler that decides while the policy is not trusted, by its name in the registry.
        safe_plan: Plan in force while a policy of the fleet view is not trusted: ``plain``, or ``G/B/PLACE``
            for all groups; see :meth:`dsd_env.control.fleet.FleetSpace.uniform`.
        budget_s: Time in seconds after which a decision counts as a time-out.
        streak: Number of decisions with one kind of trouble, without a trouble-free decision in between, that
            ends the trust. `not_finite` and `error` also replace the decision itself at once.
        stale_s: Age in seconds above which telemetry of a target is stale; the policy then sees this age.
        retry_s: Time in seconds for which the safe rule decides before the policy is tried again.
    """

    safe_rule: str = "cloud_ar"
    safe_plan: str = "plain"
    budget_s: float = 0.05
    streak: int = 8
    stale_s: float = 5.0
    retry_s: float = 5.0

    def __post_init__(self) -> None:
        for key in ("budget_s", "stale_s", "retry_s"):
            value = getattr(self, key)
            if not 0.0 < value < 1e6:
                raise ValueError(f"guard: {key} = {value!r} must be in (0, 1e6) seconds")
        if self.streak < 1:
            raise ValueError(f"guard: streak = {self.streak!r} must be at least 1")


class Guard:
    """Decides whether the policy or the safe rule answers.

    The policy loses the trust after `streak` decisions with one kind of trouble, if no decision without
    trouble came in between. The safe rule then answers for `retry_s`, after which the policy is tried again.
    One decision without trouble restores the trust; one with trouble keeps the policy out for another
    `retry_s`. Each loss and each return of the trust is logged once.

    Attributes:
        trusted: Whether the policy answers.
        reason: Why the policy does not answer; "" if it does.
        trips: Number of times the trust was lost, by reason.
    """

    def __init__(self, config: GuardConfig, clock: Callable[[], float]) -> None:
        """Start with a trusted policy."""
        self.config = config
        self._clock = clock
        self._streaks = dict.fromkeys(REASONS, 0)
        self._retry_at_s = 0.0
        self.trusted = True
        self.reason = ""
        self.trips = dict.fromkeys(REASONS, 0)

    def asks_policy(self) -> bool:
        """Return whether to ask the policy now: it is trusted, or it is time to try again."""
        return self.trusted or self._clock() >= self._retry_at_s

    def ask(self, choose: Callable[[], Choice], doubt: str, begin_s: float) -> tuple[Choice | None, str]:
        """Ask the policy for a decision, and note any trouble.

        Args:
            choose: Function that asks the policy; it raises `FloatingPointError` if the input is not finite.
            doubt: Trouble with the policy's input, one of :data:`REASONS`; "" for none.
            begin_s: Time at which the decision began, by `time.perf_counter`.

        Returns:
            The policy's choice and ""; or None and the kind of trouble, if the safe rule is to decide.
        """
        trouble, chosen = doubt, None
        try:
            chosen = choose()
        except FloatingPointError:
            trouble = "not_finite"
        except Exception as error:
            # The engine must get an answer, whatever goes wrong in a scheduler.
            trouble = "error"
            logger.debug("scheduler failed", exc_info=error)
        if chosen is not None and not trouble and time.perf_counter() - begin_s > self.config.budget_s:
            trouble = "time_out"
        self.note(trouble)
        if chosen is None or not self.trusted:
            return None, trouble
        return chosen, ""

    def note(self, trouble: str) -> None:
        """Record the outcome of a decision of the policy.

        Args:
            trouble: Kind of trouble, one of :data:`REASONS`; "" for none.
        """
        if not trouble:
            if self.trusted:
                if any(self._streaks.values()):
                    self._streaks = dict.fromkeys(REASONS, 0)
                return
            self.trusted = True
            logger.warning("policy recovered", extra={"reason": self.reason})
            self.reason = ""
            self._streaks = dict.fromkeys(REASONS, 0)
            return
        self._streaks[trouble] += 1
        if not self.trusted:
            self._retry_at_s = self._clock() + self.config.retry_s
        elif self._streaks[trouble] >= self.config.streak:
            self.trusted, self.reason = False, trouble
            self.trips[trouble] += 1
            self._retry_at_s = self._clock() + self.config.retry_s
            logger.warning(
                "policy left for the safe rule",
                extra={
                    "reason": trouble,
                    "rule": self.config.safe_rule,
                    "plan": self.config.safe_plan,
                    "retry_s": self.config.retry_s,
                },
            )
