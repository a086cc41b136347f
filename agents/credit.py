"""Credit along each request's own decisions, as rollout buffers for PPO and MaskablePPO.

The environment is one controller for many concurrent requests: between two of its steps lie other requests'
rounds, and the reward of a step (minus the integral of requests in system) mixes hundreds of them. Ordinary
advantage estimation therefore credits a decision with what other requests' decisions did next. Here the
trajectory of a decision is the sequence of decisions *of the same request*: k-th decision at time t_k in
state s_k,

    r_k = −own_weight · (t_{k+1} − t_k) / reference_s
          −price_weight · (delay caused to others by the request meanwhile) / reference_s
          +global_weight · Σ rewards of the environment meanwhile
          +token_value · (tokens committed meanwhile)
    δ_k = r_k + γ V(s_{k+1}) − V(s_k)                                   (V = 0 after the request's completion)
    A_k = δ_k + γ λ A_{k+1}

With `own_weight` alone the return of a request is minus its time in the system in units of `reference_s` (at
γ = 1), whose mean is what Little's law makes of the global `latency` term; what is left out is how a request
slows down *others*. `price_weight` charges for that: for what each iteration would be shorter without the
request, times the others that wait meanwhile, as the simulator accounts it (`dsd_env.sim.iteration`). It is a
Pigouvian tax, or a difference reward in the sense of Wolpert & Tumer ("Optimal payoff functions for members
of collectives", 2001). `global_weight` brings the common reward back as it is, with its noise. γ and λ act
per decision of a request, not per step.

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

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

Float64 = NDArray[np.float64]


class Moment(NamedTuple):
    """What is known of a request at one of its decisions, or at its completion.

    Attributes:
        request: Its number.
        time_s: Simulated time.
        delay_s: Delay that it has caused to others so far.
        tokens: Output tokens committed so far.
    """

    request: int
    time_s: float
    delay_s: float
    tokens: int


Completions = Mapping[tuple[int, int], tuple[Moment, int]]
"""(episode, request) -> (its completion, step whose transition reported it)."""


@dataclass(frozen=True)
class CreditWeights:
    """How a request's own time, the delay that it causes and the environment's reward mix.

    Attributes:
        own: Weight of minus the own elapsed time in units of `reference_s`.
        price: Weight of minus the delay caused to others, in the same units.
        shared: Weight of the environment's reward meanwhile.
        reference_s: Unit of time.
        per_token: Whether rewards are relative to the mean cost per token.
    """

    own: float
    price: float
    shared: float
    reference_s: float
    per_token: bool = False


@dataclass(frozen=True)
class Chains:
    """The decisions of one environment, each linked to its request's next decision or completion.

    Attributes:
        following: Step of the next decision of the same request, shape (T,); -1 if it completed, -2 if
            what follows is not known.
        rewards: Reward until then, shape (T,); 0 where that is not known.
        tokens: Tokens committed until then, shape (T,).
    """

    following: NDArray[np.int64]
    rewards: Float64
    tokens: Float64

    @property
    def known(self) -> NDArray[np.bool_]:
        """Decisions whose consequence is known, shape (T,)."""
        return self.following >= -1


def link(
    moments: Sequence[Moment],
    episodes: NDArray[np.int64],
    rewards: Float64,
    completions: Completions,
    weights: CreditWeights,
) -> Chains:
    """Link every decision to what follows for its request, and add up its reward until then.

    Args:
        moments: The decisions, in order of steps.
        episodes: Number of the episode, shape (T,); request numbers repeat between episodes.
        rewards: Reward of the environment's step that the decision began, shape (T,).
        completions: Requests that completed.
        weights: The mix.
    """
    n = len(moments)
    following = np.full(n, -2, dtype=np.int64)
    own, tokens = np.zeros(n), np.zeros(n)
    before = np.concatenate(([0.0], np.cumsum(rewards)))
    later_steps: dict[tuple[int, int], int] = {}
    for t in range(n - 1, -1, -1):
        now = moments[t]
        address = (int(episodes[t]), now.request)
        later = later_steps.get(address)
        later_steps[address] = t
        if later is not None:
            end, end_step, following[t] = moments[later], later, later
        elif address in completions:
            end, reported = completions[address]
            end_step, following[t] = reported + 1, -1
        else:
            continue
        own[t] = -weights.own * (end.time_s - now.time_s) / weights.reference_s
        own[t] -= weights.price * (end.delay_s - now.delay_s) / weights.reference_s
        own[t] += weights.shared * (before[end_step] - before[t])
        tokens[t] = end.tokens - now.tokens
    return Chains(following, own, tokens)


def token_value(chains: Sequence[Chains], weights: CreditWeights) -> float:
    """Return the mean cost per token over the chains, or 0 if rewards are not relative to it."""
    tokens = sum(float(chain.tokens.sum()) for chain in chains)
    if not weights.per_token or tokens == 0.0:
        return 0.0
    return -sum(float(chain.rewards.sum()) for chain in chains) / tokens


def advantages(
    chains: Chains, values: Float64, value_of_token: float, gamma: float, gae_lambda: float
) -> Float64:
    """Return the advantage of every decision along its own request; 0 where it is not known.

    Args:
        chains: From :func:`link`.
        values: V(s) at the decision, shape (T,).
        value_of_token: From :func:`token_value`.
        gamma: Discount per decision of a request.
        gae_lambda: λ per decision of a request.
    """
    rewards = chains.rewards + value_of_token * chains.tokens
    result = np.zeros(len(values))
    for t in range(len(values) - 1, -1, -1):
        later = int(chains.following[t])
        if later == -2:
            continue
        value, carried = (values[later], result[later]) if later >= 0 else (0.0, 0.0)
        result[t] = rewards[t] + gamma * value - values[t] + gamma * gae_lambda * carried
    return result


def decision_of(info: Mapping[str, Any]) -> Moment:
    """Return the decision that an ``info`` announces."""
    decision = info["decision"]
    return Moment(
        int(decision["request_id"]),
        float(info["now_s"]),
        float(decision.get("delay_caused_s", 0.0)),
        int(decision["committed_tokens"]),
    )


def completions_in(info: Mapping[str, Any]) -> list[Moment]:
    """Return the requests that completed during the step of an ``info``."""
    return [
        Moment(int(request), float(time_s), float(delay_s), int(tokens))
        for request, time_s, delay_s, tokens in info["completed"]
    ]


class _RequestCredit(RolloutBuffer):
    """The part that both buffers share; see the module's docstring."""

    def __init__(self, *args: Any, weights: CreditWeights, **kwargs: Any) -> None:
        """Take the mix besides the usual arguments."""
        self.weights = weights
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.moments: list[list[Moment]] = [[] for _ in range(self.n_envs)]
        self.episodes = np.zeros(shape, dtype=np.int64)
        self.step_rewards = np.zeros(shape)
        self.known = np.zeros(shape, dtype=np.bool_)
        self.completions: list[dict[tuple[int, int], tuple[Moment, int]]] = [{} for _ in range(self.n_envs)]
        super().reset()

    def record(self, env: int, episode: int, moment: Moment, reward: float, done: Iterable[Moment]) -> None:
        """Note whose decision the transition about to be added belongs to.

        Args:
            env: Number of the environment.
            episode: Number of the episode in this environment.
            moment: The decision.
            reward: The step's reward, without any bootstrap for truncation.
            done: Completions during the step.
        """
        self.moments[env].append(moment)
        self.episodes[self.pos, env] = episode
        self.step_rewards[self.pos, env] = reward
        for completion in done:
            self.completions[env][episode, completion.request] = (completion, self.pos)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NDArray[Any]) -> None:
        """Fill advantages and returns; the arguments are not needed, no trajectory ends with the rollout."""
        if any(len(moments) != self.buffer_size for moments in self.moments):
            raise RuntimeError("a transition was added without its request: RequestCreditCallback is missing")
        chains = [
            link(
                self.moments[env],
                self.episodes[:, env],
                self.step_rewards[:, env],
                self.completions[env],
                self.weights,
            )
            for env in range(self.n_envs)
        ]
        value = token_value(chains, self.weights)
        for env, chain in enumerate(chains):
            values = self.values[:, env].astype(np.float64)
            self.known[:, env] = chain.known
            self.advantages[:, env] = advantages(chain, values, value, self.gamma, self.gae_lambda)
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

    The environment's ``info`` must hold ``now_s`` and ``decision.request_id``, ``.committed_tokens`` (with a
    price, also ``.delay_caused_s``) of the decision that is due next, and ``completed``: (request, time,
    delay caused, tokens) of the requests that completed during the step.
    """

    def _on_training_start(self) -> None:
        infos = self.training_env.unwrapped.reset_infos
        self._due = [decision_of(info) for info in infos]
        self._episodes = [0] * len(infos)

    def _on_step(self) -> bool:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        steps = zip(self.locals["infos"], self.locals["rewards"], self.locals["dones"], strict=True)
        for env, (info, reward, done) in enumerate(steps):
            buffer.record(env, self._episodes[env], self._due[env], float(reward), completions_in(info))
            if done:
                self._episodes[env] += 1
                self._due[env] = decision_of(self.training_env.unwrapped.reset_infos[env])
            else:
                self._due[env] = decision_of(info)
        return True
