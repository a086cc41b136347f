"""What is explained: a policy, whose observations can be changed, or a rule, which reads views."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from agents.environments import engine_for
from agents.understanding.settings import ExplainError
from dsd_env.control import ActionSpace
from dsd_env.policy import Policy
from dsd_env.policy.other_lists import places, sources
from dsd_env.scenario import Scenario
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.policy import PolicyScheduler

Observations = NDArray[np.float32]
Masks = NDArray[np.bool_]
Actions = NDArray[np.int64]
DecideMany = Callable[[Observations, Masks], Actions]
"""(observations (n, features), masks (n, sum(nvec))) -> actions (n, 3)."""

_AT_ONCE = 4096
"""States whose logits are computed by one product."""


def policy_of(scheduler: str, scenario: Scenario) -> Policy | None:
    """Return the policy of a scheduler's specification; None if it is a rule.

    Raises:
        ExplainError: It is a policy of the fleet view, or the engine cannot show it what it reads.
        ValueError: The scheduler is unknown, or the policy cannot decide on the scenario.
    """
    player = make_scheduler(scheduler)
    if isinstance(player, FleetPolicyScheduler):
        raise ExplainError(
            f"{scheduler}: makes plans of the fleet view; only schedulers that decide for each request "
            "are explained here. scripts/compile_policy.py shows plans as tables"
        )
    player.reset(scenario, 0)
    if not isinstance(player, PolicyScheduler):
        return None
    if player.policy.actions.n_placements != scenario.n_placements and engine_for(scenario) != "compiled":
        raise ExplainError(
            f"{scheduler}: reads {player.policy.actions.n_placements} candidates, scenario {scenario.name!r} "
            f"has {scenario.n_placements}; only the compiled engine fills the list up, and it cannot be used "
            "for this scenario here"
        )
    return player.policy


class PolicyOfMany:
    """A policy asked for many states at once; every decision is that of :meth:`dsd_env.policy.Policy.action`.

    Logits come from products over many states, whose roundings differ a little; where that could matter, the
    policy is asked for the single state. Masks and actions are those of a scenario; a policy with other
    lengths and batch sizes chooses among those of its lists that the scenario has, too.
    """

    def __init__(self, policy: Policy, own: ActionSpace | None = None) -> None:
        """Take the policy.

        Args:
            policy: The policy.
            own: Lists of the scenario, with as many placements as the policy has; None: the policy's.

        Raises:
            ExplainError: It is not run by NumPy.
        """
        if policy.actor is None:
            raise ExplainError("the policy is run by onnxruntime; load it with backend='numpy'")
        self._policy, self._actor = policy, policy.actor
        self._bounds = list(pairwise(accumulate(policy.actor.nvec, initial=0)))
        lists = policy.actions
        own = own or lists
        self._same = lists == own
        self._columns = sources(lists, own)
        self._lengths = np.array(places(lists.lengths, own.lengths))
        self._batches = np.array(places(lists.batch_sizes, own.batch_sizes))

    def __call__(self, observations: Observations, masks: Masks) -> Actions:
        """Return the actions: int64, shape (n, 3)."""
        if not self._same:
            masks = np.where(self._columns >= 0, masks[:, self._columns], False)
        parts = [
            self._some(observations[at : at + _AT_ONCE], masks[at : at + _AT_ONCE])
            for at in range(0, len(observations), _AT_ONCE)
        ]
        actions = np.concatenate(parts) if parts else np.zeros((0, 3), dtype=np.int64)
        if not self._same:
            gamma, batch, placement = actions.T
            actions = np.stack([self._lengths[gamma], self._batches[batch], placement], axis=1)
        return actions

    def _some(self, observations: Observations, masks: Masks) -> Actions:
        observations = np.ascontiguousarray(observations, dtype=np.float32)
        logits, doubt = self._actor.logits_of_many(observations)
        allowed = self._policy.actions.flattened(masks) if self._policy.flat else masks
        rows = np.arange(len(observations))
        # The trainer's rounding of normalised logits is relative to their size; see `choose`.
        margin = doubt + 1e-5 * (4.0 + 2.0 * np.abs(logits).max(axis=1))
        chosen, doubtful = [], np.zeros(len(rows), dtype=np.bool_)
        for start, stop in self._bounds:
            part = np.where(allowed[:, start:stop], logits[:, start:stop], -np.inf)
            best = part.argmax(axis=1)
            top = part[rows, best]
            part[rows, best] = -np.inf
            doubtful |= ~(top - part.max(axis=1) > margin)
            chosen.append(best)
        actions = np.stack(chosen, axis=1).astype(np.int64)
        if self._policy.flat:
            actions = np.stack(np.unravel_index(actions[:, 0], self._policy.actions.nvec), axis=1)
        for row in np.flatnonzero(doubtful).tolist():
            actions[row] = self._policy.action(observations[row], masks[row])
        return actions.astype(np.int64, copy=False)
