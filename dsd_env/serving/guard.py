"""Guard rails: when not to ask the policy, and when to ask it again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Choice = TypeVar("Choice")

logger = logging.getLogger("dsd_env.serving")

REASONS = ("error", "not_finite", "time_out", "out_of_range", "stale")
"""Why a policy is not asked: it raised an error, its input was not finite, it was too slow, or telemetry was
out of range or stale."""


@dataclass(frozen=True)
class GuardConfig:
    """When to leave a policy, and for how long.

    Attributes:
        safe_rule: Scheduler that decides meanwhile, by its name in the registry.
        safe_plan: What is in force meanwhile where a policy of the fleet view makes plans: ``plain``, or
            ``G/B/PLACE`` for all groups; see :meth:`dsd_env.control.fleet.FleetSpace.uniform`.
        budget_s: A decision that takes longer counts as a time-out.
        streak: So many decisions with one kind of trouble end the trust, if none without trouble came
            between; `not_finite` and `error` replace the decision itself at once.
        stale_s: Telemetry of a target that is older is stale; its age is seen as this.
        retry_s: How long the safe rule decides before the policy is tried again.
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

    Trouble of one kind in `streak` decisions ends the trust, if none without trouble came between: the safe
    rule answers for `retry_s`, then the policy is tried again. One decision without trouble restores the
    trust; one with trouble sends it away for another `retry_s`. Loss and return of the trust are logged once
    each.

    Attributes:
        trusted: Whether the policy answers.
        reason: Why it does not; "" if it does.
        trips: How often the trust was lost, by reason.
    """

    def __init__(self, config: GuardConfig, clock: Callable[[], float]) -> None:
        """Begin with trust."""
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
        """Ask the policy, and note how that went.

        Args:
            choose: Asks it; `FloatingPointError` says that what it reads is not finite.
            doubt: What makes its input doubtful, one of :data:`REASONS`; "" for nothing.
            begin_s: When the decision began, by `time.perf_counter`.

        Returns:
            What it has chosen, and ""; or None and what the trouble was, if the safe rule is to decide.
        """
        trouble, chosen = doubt, None
        try:
            chosen = choose()
        except FloatingPointError:
            trouble = "not_finite"
        except Exception as error:
            # Whatever goes wrong in a scheduler, the engine gets an answer.
            trouble = "error"
            logger.debug("scheduler failed", exc_info=error)
        if chosen is not None and not trouble and time.perf_counter() - begin_s > self.config.budget_s:
            trouble = "time_out"
        self.note(trouble)
        if chosen is None or not self.trusted:
            return None, trouble
        return chosen, ""

    def note(self, trouble: str) -> None:
        """Note how a decision of the policy went.

        Args:
            trouble: One of :data:`REASONS`; "" for none.
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
