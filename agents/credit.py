"""Credit along each request's own decisions, as rollout buffers for PPO and MaskablePPO.

The environment is one controller for many concurrent requests: between two of its steps lie other requests'
rounds, and the reward of a step (minus the integral of requests in system) mixes hundreds of them. Ordinary
advantage estimation therefore credits a decision with what other requests' decisions did next. Here the
trajectory of a decision is the sequence of decisions *of the same request*: k-th decision at time t_k in
state s_k,

    r_k = −own_weight · (t_{k+1} − t_k) / reference_s
          −price_weight · (delay caused to others by the request meanwhile) / reference_s
          +global_weight · Σ rewards of the environment meanwhile
          +outcome_weight · reward of the step in which the request completes, if it does next
          +token_value · (tokens committed meanwhile)
    δ_k = r_k + γ V(s_{k+1}) − V(s_k)                                   (V = 0 after the request's completion)
    A_k = δ_k + γ λ A_{k+1}

With `own_weight` alone the return of a request is minus its time in the system in units of `reference_s` (at
γ = 1), whose mean is what Little's law makes of the global `latency` term; what is left out is how a request
slows down *others*. `price_weight` charges for that: for the request's part of each iteration's time, times
the others that wait at the target meanwhile, as the simulator accounts it (`dsd_env.sim.iteration`): what
the target's own part would be shorter without it, and of draft steps on the target's GPUs its share among
those that asked for them. It is a Pigouvian tax, or a difference reward in the sense of Wolpert & Tumer
("Optimal payoff functions for members of collectives", 2001). `global_weight` brings the common reward back
as it is, with its noise. `outcome_weight` is for scenarios whose reward counts requests that meet their
objectives: the step in which a request completes then tells whether it met its own (shared evenly with those
that completed in the same step). γ and λ act per decision of a request, not per step.

How long an answer will be is nobody's merit, yet it makes most of the variance of a request's time. With
`per_token` the value of a token is set, at every rollout, to what tokens cost on average, so that rewards are
what a round gains or loses against the present cost per token. Minimising a ratio of expectations that way is
Dinkelbach's method ("On nonlinear fractional programming", 1967), or the average-reward criterion of
renewal theory; it allows a short horizon γ. Without it the value of a token is 0.

A decision whose successor lies beyond the rollout (or beyond a truncated episode) has no known consequence:
it is left out of the update. Choose `n_steps` at least ten times the number of requests that are active at
once, so that few are.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from agents.tracking import Completed, Float64, Int64, Moments, tracker_of


@dataclass(frozen=True)
class CreditWeights:
    """How a request's own time, the delay that it causes and the environment's reward mix.

    Attributes:
        own: Weight of minus the own elapsed time in units of `reference_s`.
        price: Weight of minus the delay caused to others, in the same units.
        shared: Weight of the environment's reward meanwhile.
        outcome: Weight of the environment's reward of the step in which the request completes.
        reference_s: Unit of time; or one for each environment, shape (n,), where their scenarios differ.
        per_token: Whether rewards are relative to the mean cost per token.
    """

    own: float
    price: float
    shared: float
    reference_s: float | Float64
    per_token: bool = False
    outcome: float = 0.0


class Completions(NamedTuple):
    """Requests that completed during a rollout.

    Attributes:
        worlds: Number of the environment, int64, shape (k,).
        episodes: Number of the episode within it, shape (k,).
        steps: Step whose transition reported it, shape (k,).
        moments: The completions, shape (k,).
    """

    worlds: Int64
    episodes: Int64
    steps: Int64
    moments: Moments

    @classmethod
    def of(cls, parts: Mapping[int, Completed], episodes: Int64) -> Completions:
        """Return the completions of a rollout.

        Args:
            parts: By step.
            episodes: Number of the episode of every step, shape (T, n).
        """
        if not parts:
            nobody = np.empty(0, dtype=np.int64)
            return cls(nobody, nobody, nobody, Moments.of(()))
        worlds = np.concatenate([part.worlds for part in parts.values()])
        steps = np.repeat(list(parts), [len(part.worlds) for part in parts.values()])
        moments = Moments.joined([part.moments for part in parts.values()])
        return cls(worlds, episodes[steps, worlds], steps, moments)


@dataclass(frozen=True)
class Chains:
    """The decisions of T steps of n environments, each linked to its request's next decision or completion.

    Attributes:
        following: Step of the next decision of the same request, shape (T, n); -1 if it completed, -2 if
            what follows is not known.
        rewards: Reward until then, shape (T, n); 0 where that is not known.
        tokens: Tokens committed until then, shape (T, n).
        decoding: Decisions of requests that have a token already, shape (T, n).
    """

    following: Int64
    rewards: Float64
    tokens: Float64
    decoding: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Decisions whose consequence is known, shape (T, n)."""
        known: NDArray[np.bool_] = self.following >= -1
        return known

    def complete(self) -> NDArray[np.bool_]:
        """Return the decisions from which the chain leads to the request's completion, shape (T, n)."""
        result: NDArray[np.bool_] = self.following == -1
        everywhere = np.arange(result.shape[1])
        for t in range(len(result) - 1, -1, -1):
            later = self.following[t]
            result[t] |= (later >= 0) & result[np.maximum(later, 0), everywhere]
        return result


def link(
    moments: Moments, episodes: Int64, rewards: Float64, completions: Completions, weights: CreditWeights
) -> Chains:
    """Link every decision to what follows for its request, and add up its reward until then.

    Args:
        moments: The decisions, in order of steps, shape (T, n).
        episodes: Number of the episode, shape (T, n); request numbers repeat between episodes.
        rewards: Reward of the environment's step that the decision began, shape (T, n).
        completions: Requests that completed.
        weights: The mix.
    """
    steps, worlds = episodes.shape
    # Everything in order of environment, then step. One number addresses a request of an episode of a world.
    begins, done = moments.by_world(), completions.moments
    n_requests = 1 + max(int(begins.requests.max(initial=0)), int(done.requests.max(initial=0)))
    n_episodes = 1 + int(episodes.max(initial=0))
    address = np.repeat(np.arange(worlds) * n_episodes, steps) + episodes.T.ravel()
    address = address * n_requests + begins.requests
    done_address = completions.worlds * n_episodes + completions.episodes
    done_address = done_address * n_requests + done.requests

    order = np.argsort(address, kind="stable")
    ordered = address[order]
    goes_on = np.append(ordered[1:] == ordered[:-1], False)
    now, later = order[goes_on], order[np.flatnonzero(goes_on) + 1]
    last = order[~goes_on]
    by_address = np.argsort(done_address)
    place = np.searchsorted(done_address[by_address], address[last])
    found = by_address[np.minimum(place, len(by_address) - 1)] if len(by_address) else place
    completed = np.zeros(len(last), dtype=np.bool_)
    if len(by_address):
        completed = done_address[found] == address[last]
    last, found = last[completed], found[completed]

    following = np.full(steps * worlds, -2, dtype=np.int64)
    following[now], following[last] = later % steps, -1
    # Rewards of the steps before each, per world: one more than there are steps.
    before = np.concatenate((np.zeros((1, worlds)), np.cumsum(rewards, axis=0))).T
    earned, tokens = np.zeros(steps * worlds), np.zeros(steps * worlds)
    references_s = np.broadcast_to(weights.reference_s, worlds)
    for which, ends, end_steps in (
        (now, begins.pick(later), later % steps),
        (last, done.pick(found), completions.steps[found] + 1),
    ):
        starts, world = begins.pick(which), which // steps
        earned[which] = -weights.own * (ends.times_s - starts.times_s) / references_s[world]
        earned[which] -= weights.price * (ends.delays_s - starts.delays_s) / references_s[world]
        earned[which] += weights.shared * (before[world, end_steps] - before[world, which % steps])
        tokens[which] = ends.tokens - starts.tokens
    if weights.outcome:
        step = completions.steps * worlds + completions.worlds
        together = np.bincount(step, minlength=steps * worlds)[step[found]]
        outcome = rewards[completions.steps[found], completions.worlds[found]] / together
        earned[last] += weights.outcome * outcome
    shape = (worlds, steps)
    return Chains(
        following.reshape(shape).T,
        earned.reshape(shape).T,
        tokens.reshape(shape).T,
        moments.tokens > 0,
    )


def token_value(chains: Chains, weights: CreditWeights) -> float:
    """Return the mean cost per token while decoding, or 0 if rewards are not relative to it.

    Admission and prefill are not part of it: they are due once, however many tokens follow, and would make
    tokens look dearer than the next one is.
    """
    tokens = float(chains.tokens[chains.decoding].sum())
    if not weights.per_token or tokens == 0.0:
        return 0.0
    return -float(chains.rewards[chains.decoding].sum()) / tokens


def advantages(
    chains: Chains, values: Float64, value_of_token: float, gamma: float, gae_lambda: float
) -> Float64:
    """Return the advantage of every decision along its own request; 0 where it is not known.

    Args:
        chains: From :func:`link`.
        values: V(s) at the decision, shape (T, n).
        value_of_token: From :func:`token_value`.
        gamma: Discount per decision of a request.
        gae_lambda: λ per decision of a request.
    """
    steps, worlds = values.shape
    known, goes_on = chains.known, chains.following >= 0
    later = np.maximum(chains.following, 0)
    everywhere = np.arange(worlds)
    coming = np.where(goes_on, np.take_along_axis(values, later, axis=0), 0.0)
    deltas = chains.rewards + value_of_token * chains.tokens + gamma * coming - values
    result = np.zeros(values.shape)
    for t in range(steps - 1, -1, -1):
        carried = np.where(goes_on[t], result[later[t], everywhere], 0.0)
        result[t] = np.where(known[t], deltas[t] + gamma * gae_lambda * carried, 0.0)
    return result


class _RequestCredit(RolloutBuffer):
    """The part that both buffers share; see the module's docstring."""

    def __init__(self, *args: Any, weights: CreditWeights, **kwargs: Any) -> None:
        """Take the mix besides the usual arguments."""
        self.weights = weights
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.moments = Moments.empty(shape)
        self.episodes = np.zeros(shape, dtype=np.int64)
        self.step_rewards = np.zeros(shape)
        self.known = np.zeros(shape, dtype=np.bool_)
        self.completed: dict[int, Completed] = {}
        super().reset()

    def record(self, episodes: Int64, due: Moments, rewards: NDArray[Any], completed: Completed) -> None:
        """Note whose decisions the transitions about to be added belong to.

        Args:
            episodes: Number of the episode in every environment, shape (n,).
            due: The decisions, shape (n,).
            rewards: The steps' rewards, without any bootstrap for truncation, shape (n,).
            completed: Completions during the step.
        """
        self.moments.put(self.pos, due)
        self.episodes[self.pos] = episodes
        self.step_rewards[self.pos] = rewards
        if len(completed.worlds):
            self.completed[self.pos] = completed

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NDArray[Any]) -> None:
        """Fill advantages and returns; the arguments are not needed, no trajectory ends with the rollout."""
        if (self.moments.requests < 0).any():
            raise RuntimeError("a transition was added without its request: RequestCreditCallback is missing")
        completions = Completions.of(self.completed, self.episodes)
        chains = link(self.moments, self.episodes, self.step_rewards, completions, self.weights)
        value = token_value(chains, self.weights)
        values = self.values.astype(np.float64)
        self.known[:] = chains.known
        self.advantages[:] = advantages(chains, values, value, self.gamma, self.gae_lambda)
        self.returns = self.advantages + self.values
        if self.known.sum() < 2:
            raise ValueError(
                f"none of the {self.known.size} decisions of a rollout had a known consequence: raise "
                "ppo.n_steps (ten times the number of concurrent requests), or use credit kind 'step'"
            )

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield minibatches of about ``batch_size`` known decisions, in random order."""
        assert self.full
        if not self.generator_ready:
            names = ["observations", "actions", "values", "log_probs", "advantages", "returns"]
            if isinstance(self, MaskableRolloutBuffer):
                names.append("action_masks")
            for name in names:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        usable = np.flatnonzero(self.swap_and_flatten(self.known))
        parts = 1 if batch_size is None else max(1, round(len(usable) / batch_size))
        for indices in np.array_split(np.random.permutation(usable), parts):
            yield self._get_samples(indices)


class RequestRolloutBuffer(_RequestCredit):
    """For PPO."""


class MaskableRequestRolloutBuffer(_RequestCredit, MaskableRolloutBuffer):
    """For MaskablePPO."""


class RequestCreditCallback(BaseCallback):
    """Tells a request-credit buffer whose decision each transition was."""

    def _on_training_start(self) -> None:
        self._tracker = tracker_of(self.training_env)
        self._due = self._tracker.due()
        self._episodes = np.zeros(self.training_env.num_envs, dtype=np.int64)

    def _on_rollout_start(self) -> None:
        # Worlds may have been put into other states since the last rollout.
        self._due = self._tracker.due()

    def _on_step(self) -> bool:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        dones = self.locals["dones"]
        completed = self._tracker.completed(self.locals["infos"], dones)
        buffer.record(self._episodes, self._due, self.locals["rewards"], completed)
        self._episodes += dones
        self._due = self._tracker.due()
        return True
