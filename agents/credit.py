"""Credit along each request's own decisions, as rollout buffers for PPO and MaskablePPO.

The environment is one controller for many concurrent requests: between two of its steps lie other requests'
rounds, and the reward of a step (minus the integral of requests in system) mixes hundreds of them. Ordinary
advantage estimation therefore credits a decision with what other requests' decisions did next. Here the
trajectory of a decision is the sequence of decisions *of the same request*: k-th decision at time t_k in
state s_k,

    r_k = −own_weight · (t_{k+1} − t_k) / reference_s
          −price_weight · (delay caused to others by the request meanwhile) / reference_s
          +global_weight · Σ rewards of the environment meanwhile
    δ_k = r_k + γ V(s_{k+1}) − V(s_k)                                   (V = 0 after the request's completion)
    A_k = δ_k + γ λ A_{k+1}

With `own_weight` alone the return of a request is minus its time in the system in units of `reference_s` (at
γ = 1), whose mean is what Little's law makes of the global `latency` term; what is left out is how a request
slows down *others*. `price_weight` charges for that: for the target's time that the request uses, times the
others that wait meanwhile, as the simulator accounts it (`dsd_env.sim.iteration`). It is a Pigouvian tax, or
a difference reward in the sense of Wolpert & Tumer ("Optimal payoff functions for members of collectives",
2001). `global_weight` brings the common reward back as it is, with its noise. γ and λ act per decision of a
request, not per step.

A decision whose successor lies beyond the rollout (or beyond a truncated episode) has no known consequence:
it is left out of the update. Choose `n_steps` at least ten times the number of requests that are active at
once, so that few are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

Float64 = NDArray[np.float64]
Completions = Mapping[tuple[int, int], tuple[float, float, int]]
"""(episode, request) -> (time of completion in s, delay caused to others in s, step that reported it)."""


@dataclass(frozen=True)
class CreditWeights:
    """How a request's own time and the environment's reward mix.

    Attributes:
        own: Weight of minus the own elapsed time in units of `reference_s`.
        price: Weight of minus the delay caused to others, in the same units.
        shared: Weight of the environment's reward meanwhile.
        reference_s: Unit of time.
    """

    own: float
    price: float
    shared: float
    reference_s: float


def request_advantages(
    request_ids: NDArray[np.int64],
    episodes: NDArray[np.int64],
    times_s: Float64,
    delays_s: Float64,
    rewards: Float64,
    values: Float64,
    completions: Completions,
    weights: CreditWeights,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float64, NDArray[np.bool_]]:
    """Return the advantage of every decision of one environment along its own request.

    Args:
        request_ids: Whose decision, shape (T,).
        episodes: Number of the episode, shape (T,); request numbers repeat between episodes.
        times_s: Simulated time of the decision, shape (T,).
        delays_s: Delay that the request had caused to others by then, shape (T,).
        rewards: Reward of the environment's step that the decision began, shape (T,).
        values: V(s) at the decision, shape (T,).
        completions: Requests that completed, see :data:`Completions`.
        weights: The mix.
        gamma: Discount per decision of a request.
        gae_lambda: λ per decision of a request.

    Returns:
        Advantages (float64, shape (T,), 0 where unknown) and a bool mask (T,) of the known ones.
    """
    n = len(request_ids)
    advantages = np.zeros(n)
    known = np.zeros(n, dtype=np.bool_)
    before = np.concatenate(([0.0], np.cumsum(rewards)))
    following: dict[tuple[int, int], int] = {}
    for t in range(n - 1, -1, -1):
        request = (int(episodes[t]), int(request_ids[t]))
        later = following.get(request)
        following[request] = t
        if later is not None:
            end_s, end_delay_s, end_step = times_s[later], delays_s[later], later
            value, carried = values[later], advantages[later]
        elif request in completions:
            end_s, end_delay_s, reported = completions[request]
            end_step, value, carried = reported + 1, 0.0, 0.0
        else:
            continue
        reward = -weights.own * (end_s - times_s[t]) / weights.reference_s
        reward -= weights.price * (end_delay_s - delays_s[t]) / weights.reference_s
        reward += weights.shared * (before[end_step] - before[t])
        advantages[t] = reward + gamma * value - values[t] + gamma * gae_lambda * carried
        known[t] = True
    return advantages, known


def decision_of(info: Mapping[str, Any]) -> tuple[int, float, float]:
    """Return request, time and delay caused so far of the decision that an ``info`` announces."""
    decision = info["decision"]
    return int(decision["request_id"]), float(info["now_s"]), float(decision.get("delay_caused_s", 0.0))


def completions_in(info: Mapping[str, Any]) -> Iterable[tuple[int, float, float]]:
    """Return (request, time in s, delay caused in s) of those completed during the step of an ``info``."""
    return info["completed"]  # type: ignore[no-any-return]


class _RequestCredit(RolloutBuffer):
    """The part that both buffers share; see the module's docstring."""

    def __init__(
        self,
        *args: Any,
        own_weight: float,
        price_weight: float,
        global_weight: float,
        reference_s: float,
        **kwargs: Any,
    ) -> None:
        """Take the weights of :class:`CreditWeights` besides the usual arguments."""
        self.weights = CreditWeights(own_weight, price_weight, global_weight, reference_s)
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.request_ids = np.full(shape, -1, dtype=np.int64)
        self.episodes = np.zeros(shape, dtype=np.int64)
        self.times_s = np.zeros(shape)
        self.delays_s = np.zeros(shape)
        self.step_rewards = np.zeros(shape)
        self.known = np.zeros(shape, dtype=np.bool_)
        self.completions: list[dict[tuple[int, int], tuple[float, float, int]]] = [
            {} for _ in range(self.n_envs)
        ]
        super().reset()

    def record(
        self,
        env: int,
        request: int,
        episode: int,
        time_s: float,
        delay_s: float,
        reward: float,
        done: Iterable[tuple[int, float, float]],
    ) -> None:
        """Note whose decision the transition about to be added belongs to.

        Args:
            env: Number of the environment.
            request: Number of the request.
            episode: Number of the episode in this environment.
            time_s: Simulated time of the decision.
            delay_s: Delay that the request had caused to others by then.
            reward: The step's reward, without any bootstrap for truncation.
            done: (request, time, delay caused) of those that completed during the step.
        """
        self.request_ids[self.pos, env] = request
        self.episodes[self.pos, env] = episode
        self.times_s[self.pos, env] = time_s
        self.delays_s[self.pos, env] = delay_s
        self.step_rewards[self.pos, env] = reward
        for finished, finished_s, caused_s in done:
            self.completions[env][episode, int(finished)] = (float(finished_s), float(caused_s), self.pos)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NDArray[Any]) -> None:
        """Fill advantages and returns; the arguments are not needed, no trajectory ends with the rollout."""
        if (self.request_ids < 0).any():
            raise RuntimeError("a transition was added without its request: RequestCreditCallback is missing")
        for env in range(self.n_envs):
            advantages, self.known[:, env] = request_advantages(
                self.request_ids[:, env],
                self.episodes[:, env],
                self.times_s[:, env],
                self.delays_s[:, env],
                self.step_rewards[:, env],
                self.values[:, env].astype(np.float64),
                self.completions[env],
                self.weights,
                self.gamma,
                self.gae_lambda,
            )
            self.advantages[:, env] = advantages
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
    """Tells a request-credit buffer whose decision each transition was.

    The environment's ``info`` must hold ``decision.request_id`` and ``now_s`` of the decision that is due
    next (with a price, also ``decision.delay_caused_s``), and ``completed``, (request, time, delay caused) of
    the requests that completed during the step.
    """

    def _on_training_start(self) -> None:
        infos = self.training_env.unwrapped.reset_infos
        self._due = [decision_of(info) for info in infos]
        self._episodes = [0] * len(infos)

    def _on_step(self) -> bool:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        steps = zip(self.locals["infos"], self.locals["rewards"], self.locals["dones"], strict=True)
        for env, (info, reward, done) in enumerate(steps):
            request, time_s, delay_s = self._due[env]
            buffer.record(
                env, request, self._episodes[env], time_s, delay_s, float(reward), completions_in(info)
            )
            if done:
                self._episodes[env] += 1
                self._due[env] = decision_of(self.training_env.unwrapped.reset_infos[env])
            else:
                self._due[env] = decision_of(info)
        return True
