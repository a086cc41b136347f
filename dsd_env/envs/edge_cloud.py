"""The environment: one scheduling decision of edge-cloud speculative decoding per step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, DecisionView, ObservationEncoder
from dsd_env.envs import rendering
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.sim import ReferenceSimulation
from dsd_env.sim.world import WorldBuilder

REWARD_TERMS = ("latency", "tpot", "goodput", "slo_violation", "cloud_cost", "energy", "bytes", "progress")
"""Names of the reward terms, in the order of the scenario's weights."""

ENGINES = ("compiled", "reference")
"""Simulators to choose from: the same episodes, the first far faster, the second with timelines."""
MAX_SEED = 2**63 - 1
"""Episode seeds are drawn below this."""


class EdgeCloudEnv(gym.Env[NDArray[np.float32], NDArray[np.int64]]):
    """Scheduling edge-cloud speculative decoding, one decision per step.

    ## Description

    Clients at the network's edge ask large language models in the cloud. A small *drafter* proposes tokens and
    the large *target* verifies several of them in one iteration (speculative decoding; Leviathan et al.,
    ["Fast Inference from Transformers via Speculative Decoding"](https://arxiv.org/abs/2211.17192)). The drafter
    may sit on the client's device, on an edge server nearby, or on the target's own server. A request is served
    in *rounds*; each round commits the accepted drafts and one token of the target's. Before each round somebody
    has to decide how many tokens to draft, how large a batch the target should form, and where to draft. That
    decision is one step of this environment, and requests of all clients take turns in it: the simulation runs
    from each decision to the next one due, whosever it is.

    The stochastic part (arrivals, lengths, acceptance, network, noise) is a pure function of the episode's seed:
    two policies on the same seed meet the same requests. The simulation is `dsd_env.sim.ReferenceSimulation`.

    ## Action Space

    The action is a `ndarray` with shape `(3,)`, dtype `int64`, in
    `MultiDiscrete([n_gamma, n_batch, n_placement])`; the lists come from the scenario (`actions`).

    | Num | Action             | Meaning                                                                          |
    |-----|--------------------|----------------------------------------------------------------------------------|
    | 0   | Speculation length | Index into `gammas` (default 0 … 16). 0 is plain decoding of a chunk of tokens.  |
    | 1   | Batch size         | Index into `batch_sizes` (default 1, 2, 4, … 128): fill target and cap in force. |
    | 2   | Placement          | Index into the request's candidates: a draft site and a target server.           |

    Candidates come in blocks, one per target on offer (first the current one, then the least loaded others), each
    with the sites co-located, own device, edge server 0, 1, …. Candidate 0 is always selectable.

    The first decision of a request, its *admission*, places its prompt: only the target counts, and whether and
    where a drafter prefills along (speculation length above 0).

    `action_masks()` marks the valid indices, concatenated over the three dimensions (`bool`, shape
    `(n_gamma + n_batch + n_placement,)`). An action that is masked, or contradictory in itself, is not an error:
    the simulator resolves it by rule (drafting where that is impossible becomes plain decoding at that target, at
    the current one if the target is down), says so in `info["resolved"]`, and counts it in
    `info["invalid_actions"]`.

    ## Observation Space

    The observation is a `ndarray` with shape `(n,)`, dtype `float32`, in a `Box` within [-1, 1]. It holds what the
    controller can know where the decision is taken: telemetry as old as the network makes it, and nothing of the
    future (no acceptance trace, no remaining output length). Scaling is fixed; `x` is the raw value in the unit
    given. `env.unwrapped.view` offers the same as typed values.

    | Num | Observation | Unit | Scaling | Range | Meaning |
    |---|---|---|---|---|---|
    | 0 | `request.is_admission` | 0/1 | x | [0, 1] | first decision: places the prompt |
    | 1 | `request.control_at_target` | 0/1 | x | [0, 1] | the decision is taken at the target |
    | 2 | `request.control_at_device` | 0/1 | x | [0, 1] | the decision is taken on the client device |
    | 3 | `request.control_at_edge_server` | 0/1 | x | [0, 1] | the decision is taken on an edge server |
    | 4 | `request.prompt_tokens` | tokens | x / (x + 512) | [0, 1] | prompt length |
    | 5 | `request.committed_tokens` | tokens | x / (x + 64) | [0, 1] | output tokens committed |
    | 6 | `request.context_tokens` | tokens | x / (x + 1024) | [0, 1] | prompt and committed output |
    | 7 | `request.age_s` | s | x / (x + 4) | [0, 1] | time since arrival |
    | 8 | `request.slo_ttft_s` | s | x / (x + 1) | [0, 1] | bound on TTFT |
    | 9 | `request.slo_tpot_s` | s | x / (x + 0.05) | [0, 1] | bound on TPOT |
    | 10 | `request.ttft_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | 1 - (TTFT or age before it) / bound |
    | 11 | `request.tpot_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | 1 - TPOT so far / bound |
    | 12 | `request.rounds` | rounds | x / (x + 16) | [0, 1] | rounds executed |
    | 13 | `request.acceptance_rate` | 1 | x | [0, 1] | acceptance rate (EMA) |
    | 14 | `request.tokens_per_round` | tokens | x / (x + 3) | [0, 1] | committed tokens per draft round (EMA) |
    | 15 | `request.recent_gamma_0` | tokens | x / (x + 4) | [0, 1] | drafted, 0 rounds ago |
    | 16 | `request.recent_gamma_1` | tokens | x / (x + 4) | [0, 1] | drafted, 1 rounds ago |
    | 17 | `request.recent_gamma_2` | tokens | x / (x + 4) | [0, 1] | drafted, 2 rounds ago |
    | 18 | `request.recent_gamma_3` | tokens | x / (x + 4) | [0, 1] | drafted, 3 rounds ago |
    | 19 | `request.recent_accepted_0` | tokens | x / (x + 4) | [0, 1] | accepted, 0 rounds ago |
    | 20 | `request.recent_accepted_1` | tokens | x / (x + 4) | [0, 1] | accepted, 1 rounds ago |
    | 21 | `request.recent_accepted_2` | tokens | x / (x + 4) | [0, 1] | accepted, 2 rounds ago |
    | 22 | `request.recent_accepted_3` | tokens | x / (x + 4) | [0, 1] | accepted, 3 rounds ago |
    | 23 | `request.last_confidence` | 1 | x | [0, 1] | top-1 draft probability at the last token drafted on the true path |
    | 24 | `target.queued` | sequences | x / (x + 16) | [0, 1] | sequences waiting for an iteration |
    | 25 | `target.running` | sequences | x / (x + 32) | [0, 1] | sequences in the iteration under way |
    | 26 | `target.resident` | requests | x / (x + 64) | [0, 1] | requests with KV there |
    | 27 | `target.remaining_s` | s | x / (x + 0.02) | [0, 1] | expected rest of the iteration under way |
    | 28 | `target.iteration_s` | s | x / (x + 0.04) | [0, 1] | iteration time (EMA) |
    | 29 | `target.kv_fraction` | 1 | x | [0, 1] | share of the KV pool reserved |
    | 30 | `target.batch_size` | sequences | x / (x + 16) | [0, 1] | batch size in force |
    | 31 | `target.age_s` | s | x / (x + 0.05) | [0, 1] | age of this report |
    | 32 | `link.up` | 0/1 | x | [0, 1] | own link believed up |
    | 33 | `link.rtt_s` | s | x / (x + 0.03) | [0, 1] | round-trip time (EMA) |
    | 34 | `link.rtt_deviation_s` | s | x / (x + 0.005) | [0, 1] | mean deviation of the round-trip time |
    | 35 | `link.uplink_bits_per_s` | bit/s | x / (x + 2e+07) | [0, 1] | nominal uplink |
    | 36 | `link.downlink_bits_per_s` | bit/s | x / (x + 1e+08) | [0, 1] | nominal downlink |
    | 37 | `link.loss` | 1 | x | [0, 1] | share of messages retransmitted |
    | 38 | `link.age_s` | s | x / (x + 0.5) | [0, 1] | age of the estimate |
    | 39 | `drafter.available` | 0/1 | x | [0, 1] | own device can draft |
    | 40 | `drafter.step_s` | s | x / (x + 0.01) | [0, 1] | own draft step time |
    | 41 | `drafter.kv_lag_tokens` | tokens | x / (x + 16) | [0, 1] | own drafter's KV lag |
    | 42 | `drafter.jobs` | jobs | x / (x + 1) | [0, 1] | draft jobs on the own device |
    | 43 + 13·i | `candidate_i.valid` | 0/1 | x | [0, 1] | drafting there is possible now |
    | 44 + 13·i | `candidate_i.is_current` | 0/1 | x | [0, 1] | same site and target as the last round |
    | 45 + 13·i | `candidate_i.same_target` | 0/1 | x | [0, 1] | the request's KV is at its target |
    | 46 + 13·i | `candidate_i.colocated` | 0/1 | x | [0, 1] | drafts on the target's server |
    | 47 + 13·i | `candidate_i.own_device` | 0/1 | x | [0, 1] | drafts on the own device |
    | 48 + 13·i | `candidate_i.draft_step_s` | s | x / (x + 0.01) | [0, 1] | draft step time |
    | 49 + 13·i | `candidate_i.catch_up_s` | s | x / (x + 0.02) | [0, 1] | first draft step, with the KV lag |
    | 50 + 13·i | `candidate_i.draft_wait_s` | s | x / (x + 0.02) | [0, 1] | expected wait for the drafter |
    | 51 + 13·i | `candidate_i.rtt_s` | s | x / (x + 0.03) | [0, 1] | round trip between draft site and target |
    | 52 + 13·i | `candidate_i.handover_s` | s | x / (x + 0.02) | [0, 1] | one-way delay to move control there |
    | 53 + 13·i | `candidate_i.move_s` | s | x / (x + 0.2) | [0, 1] | time to prefill the context at another target |
    | 54 + 13·i | `candidate_i.target_queued` | sequences | x / (x + 16) | [0, 1] | sequences waiting at its target |
    | 55 + 13·i | `candidate_i.target_iteration_s` | s | x / (x + 0.04) | [0, 1] | iteration time of its target (EMA) |
    | -3 | `system.active_requests` | requests | x / (x + 64) | [0, 1] | requests at all targets |
    | -2 | `system.arrivals_per_s` | 1/s | x / (x + 8) | [0, 1] | arrival rate (EMA) |
    | -1 | `system.tokens_per_s` | tokens/s | x / (x + 2000) | [0, 1] | rate of committed tokens (EMA) |

    `i` counts the candidates; the last three are counted from the end.

    ## Rewards

    The reward is the sum of the terms below, weighted by the scenario (`reward.weights`; by default `latency`
    alone). Each covers the simulated time since the decision before (the first: since the episode's start), and is
    divided by a reference value of the scenario, so that returns of different scenarios compare.
    `info["reward_terms"]` holds all of them, unweighted.

    | Term            | Value                                                                                      |
    |-----------------|--------------------------------------------------------------------------------------------|
    | `latency`       | − ∫ requests in the system dt / `reference_e2e_s`                                          |
    | `tpot`          | − Σ TPOT / its bound, over the requests completed                                          |
    | `goodput`       | + requests completed that met their SLO                                                    |
    | `slo_violation` | − requests completed that missed it                                                        |
    | `cloud_cost`    | − dollars (target and edge servers' GPUs, egress) / `reference_usd_per_request`            |
    | `energy`        | − joules (servers, devices, radio) / `reference_joules_per_request`                        |
    | `bytes`         | − bytes over the network / `reference_bytes_per_request`                                   |
    | `progress`      | output tokens committed / `reference_output_tokens`                                        |

    By Little's law the undiscounted `latency` return of an episode that terminates is minus the sum of all
    end-to-end times over `reference_e2e_s`: maximising it minimises the mean request time. `progress` adds up to a
    constant over a finished workload, so it does not change what is optimal; weighted with about the cost of a
    request it pays for tokens when they come, which lets a learner with a short horizon see what a round was good for.

    ## Starting State

    An empty system at time 0, at the first decision of the first request. The episode's seed is drawn from
    `np_random`, so `reset(seed=s)` fixes it and all later ones.

    ## Episode End

    1. Termination: the workload is finished (the scenario sets `episode.total_requests`, and all are done).
    2. Truncation: the first `episode.warmup_requests + episode.requests` requests by arrival have completed, or
       `episode.horizon_s` has passed.

    The observation returned with the last step is that of the last decision, as no further one is due.

    ## Info

    | Key               | When      | Value                                                                          |
    |-------------------|-----------|--------------------------------------------------------------------------------|
    | `now_s`           | always    | Simulated time.                                                                |
    | `dt_s`            | always    | Simulated time since the decision before.                                      |
    | `decision`        | not last  | The decision now due: `request_id`, `device`, `counter`, `is_admission`,       |
    |                   |           | `committed_tokens`, and with `price_delays` `delay_caused_s`.                  |
    | `episode_seed`    | reset     | Seed of the episode; `reset(options={"episode_seed": …})` repeats it.          |
    | `reward_terms`    | step      | The terms by name, unweighted.                                                 |
    | `resolved`        | step      | Why the action was changed by rule; `None` if it was not.                      |
    | `invalid_actions` | step      | How many were so far in this episode.                                          |
    | `discount`        | step      | exp(−`discount_rate_per_s` · dt), if that argument is given.                   |
    | `completed`       | step      | Requests that completed: (`request_id`, time in s, `delay_caused_s`, tokens).  |
    | `episode_metrics` | last step | Every metric by name (docs/simulator.md).                                      |

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import dsd_env
    >>> env = gym.make("dsd_env/EdgeCloud-v0", scenario="single_lan")
    >>> env
    <OrderEnforcing<PassiveEnvChecker<EdgeCloudEnv<dsd_env/EdgeCloud-v0>>>>
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    ```

    | Parameter             | Type                                 | Default       | Description                       |
    |-----------------------|--------------------------------------|---------------|-----------------------------------|
    | `scenario`            | **str**, **Path**, Scenario, mapping | `"metro"`     | Name, file or content             |
    | `render_mode`         | **str** or None                      | `None`        | `"ansi"`, `"rgb_array"`: timeline |
    | `engine`              | **str**                              | `"reference"` | Or `"compiled"`: same, but faster |
    | `discount_rate_per_s` | **float** or None                    | `None`        | Adds `info["discount"]`           |
    | `price_delays`        | **bool**                             | `False`       | Accounts `delay_caused_s`         |

    With `price_delays` the simulation accounts to every request the time by which its work and its batch sizes
    delay others, and `info["decision"]["delay_caused_s"]` tells the due request's sum so far. It is no part of the
    observation; learners may use it to credit decisions with what they do to others.

    On reset, `options={"episode_seed": int}` sets the episode's seed itself: the episode is then the one that
    `dsd_env.simulate(scenario, scheduler, seed)` runs with that seed.

    ## Version History

    * v0: Initial version.
    """  # noqa: E501

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Path | Scenario | Mapping[str, Any] = "metro",
        render_mode: str | None = None,
        engine: str = "reference",
        discount_rate_per_s: float | None = None,
        price_delays: bool = False,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine = {engine!r} is unknown; known are {list(ENGINES)}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode = {render_mode!r} is not one of {self.metadata['render_modes']}")
        if discount_rate_per_s is not None and not 0.0 <= discount_rate_per_s < math.inf:
            raise ValueError(f"discount_rate_per_s = {discount_rate_per_s} must be at least 0 and finite")
        self.render_mode = render_mode
        self.scenario = load_scenario(scenario)
        self.actions = ActionSpace.of(self.scenario)
        self.encoder = ObservationEncoder.of(self.scenario)
        self.action_space = gym.spaces.MultiDiscrete(list(self.actions.nvec))
        self.observation_space = gym.spaces.Box(self.encoder.low, self.encoder.high, dtype=np.float32)
        self._new_simulation = _simulation_maker(engine, self.scenario)
        self._discount_rate_per_s = discount_rate_per_s
        self._price_delays = price_delays
        self._factors, self._weighted = reward_factors(self.scenario)
        self._simulation: ReferenceSimulation | None = None
        self._view: DecisionView | None = None
        self._over = True
        self._observation = np.zeros(len(self.encoder.features), dtype=np.float32)
        self._totals: tuple[float, ...] = (0.0,) * len(REWARD_TERMS)
        self._now_s = 0.0
        self._invalid_actions = 0

    @property
    def view(self) -> DecisionView:
        """The decision now due, typed; after the last step the last decision taken.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        if self._view is None:
            raise gym.error.ResetNeeded("call reset() before looking at the decision")
        return self._view

    @property
    def simulation(self) -> ReferenceSimulation:
        """The simulation of this episode.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        if self._simulation is None:
            raise gym.error.ResetNeeded("call reset() before looking at the simulation")
        return self._simulation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds `np_random`, from which this and later episodes draw their seeds.
            options: ``{"episode_seed": int}`` sets this episode's seed itself.

        Returns:
            The first observation, and `info`.

        Raises:
            ValueError: An unknown option, or a seed that is not a whole number of at least 0.
            RuntimeError: The scenario's horizon ends before the first request.
        """
        super().reset(seed=seed)
        episode_seed = _episode_seed(options or {})
        if episode_seed is None:
            episode_seed = int(self.np_random.integers(MAX_SEED))
        simulation = self._new_simulation(
            episode_seed,
            record_spans=self.render_mode == "rgb_array",
            price_delays=self._price_delays,
        )
        view = simulation.next_decision()
        if view is None:
            raise RuntimeError(
                f"scenario {self.scenario.name!r} ends before its first decision; "
                f"is episode.horizon_s = {self.scenario.episode.horizon_s:g} too short?"
            )
        self._simulation, self._view, self._over = simulation, view, False
        self._totals = (0.0,) * len(REWARD_TERMS)
        self._invalid_actions = 0
        dt_s = self._now_s = simulation.now_s
        self._observation = self.encoder.encode(view)
        info = {"now_s": dt_s, "dt_s": dt_s, "decision": self._describe(view), "episode_seed": episode_seed}
        return self._observation, info

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take the decision now due and run to the next one.

        Args:
            action: Indices of speculation length, batch size and placement, shape (3,).

        Raises:
            ValueError: The action is not in the action space.
            gymnasium.error.ResetNeeded: The episode is over or was never begun.
        """
        simulation = self._simulation
        if self._over or simulation is None:
            raise gym.error.ResetNeeded("the episode is over or was never begun: call reset()")
        resolution = simulation.decide(self.actions.decode(action))
        if resolution.reason is not None:
            self._invalid_actions += 1
        view = simulation.next_decision()

        totals = _running_totals(simulation)
        terms = [
            factor * (after - before)
            for factor, after, before in zip(self._factors, totals, self._totals, strict=True)
        ]
        reward = 0.0
        for index, weight in self._weighted:
            reward += weight * terms[index]
        now_s = simulation.now_s
        dt_s = now_s - self._now_s
        info: dict[str, Any] = {
            "now_s": now_s,
            "dt_s": dt_s,
            "reward_terms": dict(zip(REWARD_TERMS, terms, strict=True)),
            "resolved": resolution.reason,
            "invalid_actions": self._invalid_actions,
            "completed": [
                (request.number, request.completed_s, request.delay_caused_s, request.committed)
                for request in simulation.newly_completed
            ],
        }
        if self._discount_rate_per_s is not None:
            info["discount"] = math.exp(-self._discount_rate_per_s * dt_s)
        self._totals, self._now_s = totals, now_s
        if view is not None:
            self._view = view
            self._observation = self.encoder.encode(view)
            info["decision"] = self._describe(view)
            return self._observation, reward, False, False, info
        self._over = True
        info["episode_metrics"] = simulation.metrics()
        # No decision is due any more: the last observation stands in, as a copy that is the caller's own.
        return self._observation.copy(), reward, simulation.terminated, simulation.truncated, info

    def _describe(self, view: DecisionView) -> dict[str, Any]:
        described: dict[str, Any] = {
            "request_id": view.request_id,
            "device": view.device,
            "counter": view.counter,
            "is_admission": view.request.is_admission,
            "committed_tokens": view.request.committed_tokens,
        }
        request = self.simulation.due_request
        if self._price_delays and request is not None:
            described["delay_caused_s"] = request.delay_caused_s
        return described

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the valid indices, concatenated over the dimensions (bool, shape (sum(nvec),)).

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        return self.actions.mask(self.view)

    def render(self) -> Any:
        """Return the picture of `render_mode`: a text, or an image (uint8, shape (height, width, 3)).

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
            gymnasium.error.DependencyNotInstalled: ``rgb_array`` without matplotlib.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "You are calling render method without specifying any render mode. "
                f'Say gym.make(..., render_mode="{self.metadata["render_modes"][0]}").'
            )
            return None
        simulation, view = self.simulation, self.view
        if self.render_mode == "ansi":
            return rendering.render_text(self.scenario, view, simulation.now_s)
        return rendering.render_timeline(self.scenario, view, simulation.spans, simulation.now_s)


def _simulation_maker(engine: str, scenario: Scenario) -> Callable[..., Any]:
    """Return what makes an episode's simulation from its seed; the rest is built once."""
    builder = WorldBuilder(scenario)
    if engine == "reference":
        return functools.partial(ReferenceSimulation, scenario, builder=builder)
    # Numba is imported only by those who use it.
    from dsd_env.sim.compiled import CompiledSimulation, compile_scenario

    layout = compile_scenario(scenario, builder)
    return functools.partial(CompiledSimulation, scenario, layout=layout)


def reward_factors(scenario: Scenario) -> tuple[tuple[float, ...], tuple[tuple[int, float], ...]]:
    """Return the factor from total to term by term, and (index, weight) of the terms that count."""
    reward = scenario.reward
    factors = {
        "latency": -1.0 / reward.reference_e2e_s,
        "tpot": -1.0,
        "goodput": 1.0,
        "slo_violation": -1.0,
        "cloud_cost": -1.0 / reward.reference_usd_per_request,
        "energy": -1.0 / reward.reference_joules_per_request,
        "bytes": -1.0 / reward.reference_bytes_per_request,
        "progress": 1.0 / reward.reference_output_tokens,
    }
    weights = reward.weights.model_dump()
    weighted = [(index, float(weights[name])) for index, name in enumerate(REWARD_TERMS) if weights[name]]
    return tuple(factors[name] for name in REWARD_TERMS), tuple(weighted)


def _running_totals(simulation: ReferenceSimulation) -> tuple[float, ...]:
    """Return the running totals behind the reward terms, in their order."""
    totals = simulation.totals
    return (
        totals.request_seconds,
        totals.tpot_cost,
        totals.good,
        totals.slo_violations,
        totals.cloud_usd,
        totals.energy_joules,
        totals.network_bytes,
        totals.output_tokens,
    )


def _episode_seed(options: Mapping[str, Any]) -> int | None:
    unknown = set(options) - {"episode_seed"}
    if unknown:
        raise ValueError(f"unknown reset options {sorted(unknown)}; known is 'episode_seed'")
    seed = options.get("episode_seed")
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"episode_seed = {seed!r} must be a whole number of at least 0")
    return int(seed)
