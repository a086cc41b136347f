"""Credit along each request's own decisions."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.credit import (
    Chains,
    Completions,
    CreditWeights,
    MaskableRequestRolloutBuffer,
    RequestCreditCallback,
    RequestRolloutBuffer,
    advantages,
    link,
    token_value,
)
from agents.tracking import Completed, Moments

OWN = CreditWeights(own=1.0, price=0.0, shared=0.0, reference_s=2.0)


def credit(
    requests,
    times,
    *,
    delays=None,
    tokens=None,
    rewards=None,
    values=None,
    done=None,
    episodes=None,
    weights=OWN,
    gamma=1.0,
    gae_lambda=1.0,
):
    """Return advantages and known of one environment.

    It stands there twice, beside one of other times where nobody completes: with the same numbers of episodes
    and requests, none takes the other's.
    """
    n = len(requests)

    def column(values, kind=np.float64):
        alone = np.zeros(n) if values is None else np.array(values)
        return np.repeat(alone[:, None], 3, axis=1).astype(kind)

    moments = Moments(column(requests, np.int64), column(times), column(delays), column(tokens, np.int64))
    moments.times_s[:, 0] *= 2.0
    parts: dict[int, Completed] = {}
    for (_, request), (*what, step) in (done or {}).items():
        before = parts.get(step, Completed(np.empty(0, dtype=np.int64), Moments.of(())))
        both = Moments.of([(request, *what)] * 2)
        parts[step] = Completed(np.append(before.worlds, [1, 2]), Moments.joined([before.moments, both]))
    numbers = column(episodes, np.int64)
    chains = link(moments, numbers, column(rewards), Completions.of(parts, numbers), weights)
    # Rewards relative to the mean cost per token: of one environment, not of the one that differs.
    one = Chains(*(getattr(chains, each.name)[:, 1:] for each in fields(Chains)))
    got = advantages(chains, column(values), token_value(one, weights), gamma, gae_lambda)
    np.testing.assert_array_equal(got[:, 1], got[:, 2])
    return got[:, 1], chains.known[:, 1]


def test_own_time_of_interleaved_requests() -> None:
    # Request 7 decides at 0, 3, 4 and completes at 10; request 8 decides at 1 and 6 and goes on.
    got, known = credit([7, 8, 7, 7, 8], [0, 1, 3, 4, 6], done={(0, 7): (10.0, 0.0, 0, 4)})
    np.testing.assert_allclose(got, [-10 / 2, -5 / 2, -7 / 2, -6 / 2, 0.0])
    assert known.tolist() == [True, True, True, True, False]


def test_discount_lambda_and_values_follow_the_own_chain() -> None:
    values = [0.5, 9.0, -1.0, 9.0, 2.0]
    got, known = credit(
        [1, 2, 1, 3, 1],
        [0, 1, 4, 5, 6],
        values=values,
        done={(0, 1): (8.0, 0.0, 0, 4)},
        gamma=0.9,
        gae_lambda=0.5,
    )
    delta_last = -1.0 - 2.0
    delta_middle = -1.0 + 0.9 * 2.0 + 1.0
    delta_first = -2.0 + 0.9 * -1.0 - 0.5
    middle = delta_middle + 0.45 * delta_last
    np.testing.assert_allclose(got[[0, 2, 4]], [delta_first + 0.45 * middle, middle, delta_last])
    assert known.tolist() == [True, False, True, False, True]


def test_shared_reward_is_what_the_environment_paid_meanwhile() -> None:
    shared = CreditWeights(own=0.0, price=0.0, shared=0.25, reference_s=1.0)
    got, _ = credit(
        [1, 2, 2, 1],
        [0, 1, 2, 3],
        rewards=[4, 8, 16, 32],
        done={(0, 1): (9.0, 0.0, 0, 3), (0, 2): (9.0, 0.0, 0, 2)},
        weights=shared,
    )
    np.testing.assert_allclose(got, [15.0, 6.0, 4.0, 8.0])


def test_the_price_is_the_delay_caused_meanwhile() -> None:
    priced = CreditWeights(own=0.0, price=0.5, shared=0.0, reference_s=2.0)
    got, _ = credit(
        [1, 2, 1], [0, 1, 2], delays=[0.0, 0.0, 4.0], done={(0, 1): (9.0, 10.0, 0, 2)}, weights=priced
    )
    # 4 s of others' time between its two decisions, 6 s after the second.
    np.testing.assert_allclose(got, [-0.5 * 10 / 2, 0.0, -0.5 * 6 / 2])


def test_the_outcome_is_the_reward_of_the_step_that_completes_the_request() -> None:
    outcome = CreditWeights(own=0.0, price=0.0, shared=0.0, reference_s=1.0, outcome=2.0)
    got, _ = credit(
        [1, 2, 2, 3, 1],
        [0, 1, 2, 3, 4],
        rewards=[4, 8, 16, 32, 64],
        # Requests 2 and 3 complete in the same step, and share its reward.
        done={(0, 1): (9.0, 0.0, 0, 4), (0, 2): (3.5, 0.0, 0, 3), (0, 3): (3.5, 0.0, 0, 3)},
        weights=outcome,
    )
    np.testing.assert_allclose(got, [128.0, 32.0, 32.0, 32.0, 128.0])


def test_rewards_relative_to_the_mean_cost_per_token_sum_to_nothing() -> None:
    relative = CreditWeights(own=1.0, price=0.0, shared=0.0, reference_s=1.0, per_token=True)
    # After admission and prefill, 9 s: 2 s for 1 token, then 4 s for 5 tokens, 1 s per token on average.
    got, _ = credit(
        [1, 1, 1],
        [0, 9, 11],
        tokens=[0, 1, 2],
        done={(0, 1): (15.0, 0.0, 7, 2)},
        weights=relative,
        gamma=0.0,
    )
    np.testing.assert_allclose(got, [-9 + 1, -2 + 1, -4 + 5])


def test_equal_request_numbers_of_two_episodes_are_two_requests() -> None:
    got, known = credit([1, 1, 1], [5, 0, 2], episodes=[0, 1, 1], done={(1, 1): (3.0, 0.0, 0, 2)})
    np.testing.assert_allclose(got, [0.0, -1.5, -0.5])
    assert known.tolist() == [False, True, True]


class Toy(gym.Env):
    """`width` requests at once. Action 1 costs its own request 3 s until its next decision, action 0 1 s.

    The environment's reward is minus the requests in system over time, as in the real one.
    """

    def __init__(self, width: int = 20, rounds: int = 5, episode: int = 200) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2,), dtype=np.float32)
        self.action_space = gym.spaces.MultiDiscrete([2])
        self.width, self.rounds, self.episode = width, rounds, episode
        self.log: list[tuple[int, float, int]] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.due = [(0.01 * k, k, self.rounds) for k in range(self.width)]
        self.next_request, self.now, self.steps = self.width, 0.0, 0
        return self._observation(), self._info()

    def _observation(self):
        return np.array([self.due[0][2] / self.rounds, 1.0], dtype=np.float32)

    def _info(self, completed=()):
        return {
            "decision": {"request_id": self.due[0][1], "committed_tokens": self.rounds - self.due[0][2]},
            "now_s": self.due[0][0],
            "completed": list(completed),
        }

    def action_masks(self):
        return np.ones(2, dtype=bool)

    def step(self, action):
        begin, request, left = self.due.pop(0)
        self.log.append((request, begin, int(action[0])))
        later = begin + (3.0 if action[0] else 1.0)
        completed = []
        if left > 1:
            self.due.append((later, request, left - 1))
        else:
            completed.append((request, later, 0.0, self.rounds))
            self.due.append((later + 1e-3, self.next_request, self.rounds))
            self.next_request += 1
        self.due.sort()
        reward = -self.width * (self.due[0][0] - begin)
        self.steps += 1
        return self._observation(), reward, False, self.steps >= self.episode, self._info(completed)


class Spy(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.request_ids = buffer.moments.requests.copy()
        self.times_s = buffer.moments.times_s.copy()
        for name in ("known", "advantages", "actions", "values", "episodes"):
            setattr(self, name, getattr(buffer, name).copy())


def run(algorithm, buffer, n_steps: int, **options):
    envs = [Toy(), Toy()]
    model = algorithm(
        "MlpPolicy",
        VecMonitor(DummyVecEnv([partial(lambda env: env, env) for env in envs])),
        n_steps=n_steps,
        batch_size=n_steps // 4 or 2,
        n_epochs=1,
        seed=0,
        rollout_buffer_class=buffer,
        rollout_buffer_kwargs={"weights": CreditWeights(1.0, 0.0, 0.0, 1.0)},
        policy_kwargs={"net_arch": [8]},
        **options,
    )
    spy = Spy()
    model.learn(2 * n_steps, callback=CallbackList([RequestCreditCallback(), spy]))
    return envs, spy, model


@pytest.mark.parametrize(
    ("algorithm", "buffer"), [(PPO, RequestRolloutBuffer), (MaskablePPO, MaskableRequestRolloutBuffer)]
)
def test_buffer_knows_whose_decision_each_transition_is(algorithm, buffer) -> None:
    envs, spy, _ = run(algorithm, buffer, 500)  # two and a half episodes: autoreset is crossed
    for index, env in enumerate(envs):
        requests, times, actions = (np.array(column) for column in zip(*env.log, strict=True))
        np.testing.assert_array_equal(spy.request_ids[:, index], requests)
        np.testing.assert_allclose(spy.times_s[:, index], times)
        np.testing.assert_array_equal(spy.actions[:, index, 0], actions)
    assert spy.episodes.max() == 2
    for index in range(2):
        # A consequence is known when the request decides again, or when this was its fifth and last decision.
        keys = list(zip(spy.episodes[:, index], spy.request_ids[:, index], strict=True))
        expected = [key in keys[t + 1 :] or keys[:t].count(key) == 4 for t, key in enumerate(keys)]
        assert spy.known[:, index].tolist() == expected
        assert 40 <= expected.count(False) <= 60, "nearly all of 20 requests at three ends"


def test_credit_is_the_own_consequence_exactly() -> None:
    _, spy, _ = run(PPO, RequestRolloutBuffer, 200, gae_lambda=0.0, gamma=0.0)
    cost = np.where(spy.actions[:, :, 0] == 1, 3.0, 1.0)
    expected = -cost - spy.values
    np.testing.assert_allclose(spy.advantages[spy.known], expected[spy.known], rtol=1e-4)
    assert set(np.unique(spy.actions)) == {0, 1}


def test_learning_finds_the_cheaper_action() -> None:
    options = {"gamma": 1.0, "gae_lambda": 0.9, "learning_rate": 1e-2}
    _, _, model = run(PPO, RequestRolloutBuffer, 400, **options)
    model.learn(12_000, callback=RequestCreditCallback(), reset_num_timesteps=True)
    chance = (
        model.policy.get_distribution(model.policy.obs_to_tensor(np.array([[0.6, 1.0]], dtype=np.float32))[0])
        .distribution[0]
        .probs[0, 1]
    )
    assert chance.item() < 0.2


def test_minibatches_hold_known_decisions_only_and_none_is_tiny() -> None:
    _, spy, model = run(PPO, RequestRolloutBuffer, 200)
    buffer = model.rollout_buffer
    sizes = [len(batch.advantages) for batch in buffer.get(64)]
    assert sum(sizes) == spy.known.sum() < spy.known.size
    assert max(sizes) - min(sizes) <= 1
    assert sum(len(batch.advantages) for batch in buffer.get(None)) == spy.known.sum()


def test_too_short_rollouts_are_explained() -> None:
    with pytest.raises(ValueError, match=r"raise ppo\.n_steps"):
        run(PPO, RequestRolloutBuffer, 8)


def test_forgotten_callback_is_noticed() -> None:
    model = PPO(
        "MlpPolicy",
        DummyVecEnv([Toy]),
        n_steps=8,
        batch_size=8,
        rollout_buffer_class=RequestRolloutBuffer,
        rollout_buffer_kwargs={"weights": CreditWeights(1.0, 0.0, 0.0, 1.0)},
    )
    with pytest.raises(RuntimeError, match="RequestCreditCallback is missing"):
        model.learn(8)
