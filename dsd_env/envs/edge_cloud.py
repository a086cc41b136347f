"""The environment: one scheduling decision of edge-cloud speculative decoding per step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, DecisionView, ObservationEncoder
from dsd_env.control.rewards import REWARD_TERMS
from dsd_env.envs import rendering
from dsd_env.envs.base import EpisodicEnv
from dsd_env.envs.checks import check_discount
from dsd_env.envs.episodes import EnvState, make_episodes
from dsd_env.envs.infos import NumericInfos, check_infos
from dsd_env.envs.limits import checked_max_episode_steps, surrounding_time_limit
from dsd_env.scenario import Scenario, load_scenario


class EdgeCloudEnv(EpisodicEnv):
    """Scheduling edge-cloud speculative decoding, one decision per step.

    ## Description

    Clients at the network's edge send requests to large language models in the cloud. A small *drafter*
    proposes tokens and the large *target* verifies several of them in one iteration (speculative decoding;
    Leviathan et al.,
    ["Fast Inference from Transformers via Speculative Decoding"](https://arxiv.org/abs/2211.17192)). The
    drafter may sit on the client's device, on an edge server nearby, or on the target's own server. A request
    is served in *rounds*; each round commits the accepted drafts and one token of the target itself. Before
    each round a scheduler decides how many tokens to draft, how large a batch the target should form, and
    where to draft. That decision is one step of this environment. The simulation runs from each decision to
    the next one due, which may belong to another client's request.

    The stochastic part (arrivals, lengths, acceptance, network, noise) is a pure function of the episode's
    seed: two policies on the same seed meet the same requests.

    Two engines simulate the same events. The *compiled* engine is the default; the *reference* engine
    (`dsd_env.sim.ReferenceSimulation`) is slower and defines the simulation. `gym.make_vec` gives many
    environments that step together in compiled code: `dsd_env.envs.EdgeCloudVectorEnv`.

    ## Action Space

    The action is a `ndarray` with shape `(3,)`, dtype `int64`, in
    `MultiDiscrete([n_gamma, n_batch, n_placement])`; the lists come from the scenario (`actions`).

    | Num | Action             | Meaning                                                                          |
    |-----|--------------------|----------------------------------------------------------------------------------|
    | 0   | Speculation length | Index into `gammas` (default 0 … 16). 0 is plain decoding of a chunk of tokens.  |
    |     |                    | Behind them one for each of `stop_thresholds` (default none): the longest, until |
    |     |                    | the drafter thinks that a draft is rejected with more than this probability.     |
    | 1   | Batch size         | Index into `batch_sizes` (default 1, 2, … 128): B; 1 waits nowhere (below).      |
    | 2   | Placement          | Index into the request's candidates: a drafter at a site, and a target server.   |

    The list of candidates has one block per target on offer: first the request's current target, then the
    least loaded others. A block lists the drafters at the target, on the request's own device, and on edge
    server 0, 1, …, in the order of the scenario's lists. (`edge_servers_offered` changes the order of edge
    servers: first the one where the request drafts, then those whose next draft would come soonest.)
    Candidate 0 is always selectable.

    The first decision of a request is its *admission*, which places the prompt. It chooses the target and,
    with a speculation length above 0, the drafter that prefills the prompt at the same time.

    The batch size B belongs to the request. At admission it sets how far the request yields to others: the
    request enters its target once fewer than `max_num_seqs` / B requests are resident there. Afterwards B is
    the smallest batch in which the target should verify the request's drafts, if they are made anywhere but
    on the target's own GPUs. Both waits are limited.

    `action_masks()` marks the valid indices, concatenated over the three dimensions (`bool`, shape
    `(n_gamma + n_batch + n_placement,)`). An action that is masked, or that contradicts itself, is not an
    error: the simulator resolves it by rule (drafting where that is impossible becomes plain decoding at that
    target; a target that is down is replaced by the first one on offer that is up), reports the reason in
    `info["resolved"]`, and counts the action in `info["invalid_actions"]`.

    ## Observation Space

    The observation is a `ndarray` with shape `(n,)`, dtype `float32`, in a `Box` within [-1, 1]. It holds
    what the controller can know at the place of the decision: telemetry delayed by the network, and nothing
    about the future (no acceptance trace, no remaining output length). Scaling is fixed; `x` is the raw value
    in the unit given. `env.unwrapped.view` holds the same information as typed values.

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
    | 10 | `request.slo_itl_p99_s` | s | x / (x + 0.1) | [0, 1] | bound on the 99th percentile of gaps between tokens |
    | 11 | `request.slo_per_token_s` | s | x / (x + 0.05) | [0, 1] | time between token deadlines |
    | 12 | `request.ttft_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | 1 - (TTFT or age before it) / bound |
    | 13 | `request.tpot_slack` | 1 | x / (abs(x) + 0.5) | [-1, 1] | 1 - TPOT so far / bound |
    | 14 | `request.deadline_slack_s` | s | x / (abs(x) + 0.5) | [-1, 1] | time until the next token is due |
    | 15 | `request.rounds` | rounds | x / (x + 16) | [0, 1] | rounds executed |
    | 16 | `request.acceptance_rate` | 1 | x | [0, 1] | acceptance rate (EMA) |
    | 17 | `request.tokens_per_round` | tokens | x / (x + 3) | [0, 1] | committed tokens per draft round (EMA) |
    | 18 | `request.recent_gamma_0` | tokens | x / (x + 4) | [0, 1] | drafted, 0 rounds ago |
    | 19 | `request.recent_gamma_1` | tokens | x / (x + 4) | [0, 1] | drafted, 1 rounds ago |
    | 20 | `request.recent_gamma_2` | tokens | x / (x + 4) | [0, 1] | drafted, 2 rounds ago |
    | 21 | `request.recent_gamma_3` | tokens | x / (x + 4) | [0, 1] | drafted, 3 rounds ago |
    | 22 | `request.recent_accepted_0` | tokens | x / (x + 4) | [0, 1] | accepted, 0 rounds ago |
    | 23 | `request.recent_accepted_1` | tokens | x / (x + 4) | [0, 1] | accepted, 1 rounds ago |
    | 24 | `request.recent_accepted_2` | tokens | x / (x + 4) | [0, 1] | accepted, 2 rounds ago |
    | 25 | `request.recent_accepted_3` | tokens | x / (x + 4) | [0, 1] | accepted, 3 rounds ago |
    | 26 | `request.last_confidence` | 1 | x | [0, 1] | top-1 draft probability at the last token drafted on the true path |
    | 27 | `request.head_start_tokens` | tokens | x / (x + 4) | [0, 1] | drafts of the next window made ahead |
    | 28 | `request.window_tokens` | tokens | x / (x + 8) | [0, 1] | gamma in force of its stream; 0: none is open |
    | 29 | `request.lead_tokens` | tokens | x / (x + 8) | [0, 1] | its drafts in flight: not yet known to be right or wrong |
    | 30 | `request.generations` | generations | x / (x + 16) | [0, 1] | generations of drafts that its stream has begun |
    | 31 | `request.generation_age_s` | s | x / (x + 0.1) | [0, 1] | time since the present one began |
    | 32 | `request.idle_share` | 1 | x | [0, 1] | share of its iterations for which no draft had come (EMA) |
    | 33 | `target.queued` | sequences | x / (x + 16) | [0, 1] | waiting for admission or for an iteration |
    | 34 | `target.running` | sequences | x / (x + 32) | [0, 1] | sequences in the iteration under way |
    | 35 | `target.resident` | requests | x / (x + 64) | [0, 1] | admitted there: they hold a seat and KV |
    | 36 | `target.remaining_s` | s | x / (x + 0.02) | [0, 1] | expected rest of the iteration under way |
    | 37 | `target.iteration_s` | s | x / (x + 0.04) | [0, 1] | iteration time (EMA) |
    | 38 | `target.kv_fraction` | 1 | x | [0, 1] | share of the KV pool reserved |
    | 39 | `target.plain` | requests | x / (x + 32) | [0, 1] | its requests that decode plainly |
    | 40 | `target.colocated` | requests | x / (x + 32) | [0, 1] | its requests that draft on its GPUs |
    | 41 | `target.remote` | requests | x / (x + 32) | [0, 1] | its requests that draft elsewhere |
    | 42 | `target.gamma_mean` | tokens | x / (x + 4) | [0, 1] | mean drafts in force of those that draft |
    | 43 | `target.prefill_tokens` | tokens | x / (x + 1024) | [0, 1] | context tokens still to be prefilled |
    | 44 | `target.token_s` | s | x / (x + 0.0001) | [0, 1] | marginal time of a new token |
    | 45 | `target.prefill_token_s` | s | x / (x + 0.0001) | [0, 1] | time per prompt token |
    | 46 | `target.waiting` | requests | x / (x + 16) | [0, 1] | requests that wait for admission |
    | 47 | `target.seat_fraction` | 1 | x | [0, 1] | share of its seats (`max_num_seqs`) that are taken |
    | 48 | `target.age_s` | s | x / (x + 0.05) | [0, 1] | age of this report |
    | 49 | `link.up` | 0/1 | x | [0, 1] | own link believed up |
    | 50 | `link.rtt_s` | s | x / (x + 0.03) | [0, 1] | round-trip time (EMA) |
    | 51 | `link.rtt_deviation_s` | s | x / (x + 0.005) | [0, 1] | mean deviation of the round-trip time |
    | 52 | `link.uplink_bits_per_s` | bit/s | x / (x + 2e+07) | [0, 1] | uplink: nominal, or as measured where it changes (EMA) |
    | 53 | `link.downlink_bits_per_s` | bit/s | x / (x + 1e+08) | [0, 1] | downlink: nominal, or as measured where it changes (EMA) |
    | 54 | `link.loss` | 1 | x | [0, 1] | share of messages retransmitted |
    | 55 | `link.age_s` | s | x / (x + 0.5) | [0, 1] | age of the estimate |
    | 56 | `drafter.available` | 0/1 | x | [0, 1] | own device can draft |
    | 57 | `drafter.step_s` | s | x / (x + 0.01) | [0, 1] | own draft step time |
    | 58 | `drafter.kv_lag_tokens` | tokens | x / (x + 16) | [0, 1] | own drafter's KV lag |
    | 59 | `drafter.jobs` | jobs | x / (x + 1) | [0, 1] | draft jobs on the own device |
    | 60 + 20·i | `candidate_i.valid` | 0/1 | x | [0, 1] | drafting there is possible now |
    | 61 + 20·i | `candidate_i.is_current` | 0/1 | x | [0, 1] | same site and target as the last round |
    | 62 + 20·i | `candidate_i.same_target` | 0/1 | x | [0, 1] | the request's KV is at its target |
    | 63 + 20·i | `candidate_i.colocated` | 0/1 | x | [0, 1] | drafts on the target's server |
    | 64 + 20·i | `candidate_i.own_device` | 0/1 | x | [0, 1] | drafts on the own device |
    | 65 + 20·i | `candidate_i.draft_step_s` | s | x / (x + 0.01) | [0, 1] | draft step time |
    | 66 + 20·i | `candidate_i.catch_up_s` | s | x / (x + 0.02) | [0, 1] | first draft step, with the KV lag |
    | 67 + 20·i | `candidate_i.draft_wait_s` | s | x / (x + 0.02) | [0, 1] | expected wait for the drafter |
    | 68 + 20·i | `candidate_i.rtt_s` | s | x / (x + 0.03) | [0, 1] | round trip between draft site and target |
    | 69 + 20·i | `candidate_i.handover_s` | s | x / (x + 0.02) | [0, 1] | one-way delay to move control there |
    | 70 + 20·i | `candidate_i.move_s` | s | x / (x + 0.2) | [0, 1] | time to prefill the context at another target |
    | 71 + 20·i | `candidate_i.target_queued` | sequences | x / (x + 16) | [0, 1] | `queued` of its target |
    | 72 + 20·i | `candidate_i.target_resident` | requests | x / (x + 64) | [0, 1] | `resident` of its target |
    | 73 + 20·i | `candidate_i.target_colocated` | requests | x / (x + 32) | [0, 1] | `colocated` of its target |
    | 74 + 20·i | `candidate_i.target_remote` | requests | x / (x + 32) | [0, 1] | `remote` of its target |
    | 75 + 20·i | `candidate_i.target_prefill_tokens` | tokens | x / (x + 1024) | [0, 1] | prefill queued at its target |
    | 76 + 20·i | `candidate_i.target_iteration_s` | s | x / (x + 0.04) | [0, 1] | iteration time of its target (EMA) |
    | 77 + 20·i | `candidate_i.streams` | 0/1 | x | [0, 1] | its drafts are streamed to the target |
    | 78 + 20·i | `candidate_i.coalesces` | 0/1 | x | [0, 1] | its verifications wait for the batch size asked for |
    | 79 + 20·i | `candidate_i.pooled_acceptance` | 1 | x | [0, 1] | chance that a draft by its model is right, over all requests |
    | -5 | `system.active_requests` | requests | x / (x + 64) | [0, 1] | requests at all targets |
    | -4 | `system.arrivals_per_s` | 1/s | x / (x + 8) | [0, 1] | arrival rate (EMA) |
    | -3 | `system.tokens_per_s` | tokens/s | x / (x + 2000) | [0, 1] | rate of committed tokens (EMA) |
    | -2 | `system.own_attainment` | 1 | x | [0, 1] | share of its class of SLO that met it (EMA) |
    | -1 | `system.others_attainment` | 1 | x | [0, 1] | the least such share of other classes |

    `i` counts the candidates from 0; the last five features are numbered from the end. `target.plain`,
    `target.colocated` and `target.remote` count the requests whose target this is, including those that wait
    for admission, so their sum can be larger than `target.resident`. If any site has several drafters, or a
    drafter that is a draft head or a look-up, each candidate has these features too, after its other ones:

    | Observation of a menu | Unit | Scaling | Range | Meaning |
    |---|---|---|---|---|
    | `candidate_i.is_head` | 0/1 | x | [0, 1] | its drafter is a draft head |
    | `candidate_i.is_lookup` | 0/1 | x | [0, 1] | its drafter is a look-up |
    | `candidate_i.acceptance_rate` | 1 | x | [0, 1] | acceptance rate of its draft model (EMA) |
    | `candidate_i.tokens_per_round` | tokens | x / (x + 3) | [0, 1] | tokens per round of its draft model (EMA) |
    | `candidate_i.model_rounds` | rounds | x / (x + 4) | [0, 1] | rounds with its draft model |

    If branches are offered (`actions.offer_branches`), each candidate has these features too, after its other
    ones:

    | Observation of branches | Unit | Scaling | Range | Meaning |
    |---|---|---|---|---|
    | `candidate_i.fanout` | branches | x / (x + 2) | [0, 1] | branches that its stream opens at each draft |
    | `candidate_i.depth` | tokens | x / (x + 4) | [0, 1] | tokens of such a branch |

    ## Rewards

    The reward is the sum of the terms below, weighted by the scenario (`reward.weights`; by default `latency`
    alone). Each term covers the simulated time since the previous decision (at the first step, since the
    episode's start). Most are divided by a reference value of the scenario, which makes returns of different
    scenarios comparable. `info["reward_terms"]` holds all terms, unweighted.

    | Term | Value | Divided by |
    |---|---|---|
    | `latency` | − ∫ number of requests in the system dt | `reference_e2e_s` |
    | `tpot` | − Σ TPOT / its bound, over requests completed | – |
    | `goodput` | + requests completed that met every bound of their SLO | – |
    | `slo_violation` | − requests completed that did not | – |
    | `cloud_cost` | − dollars for occupied GPUs of targets, dedicated drafters and edge servers, and for egress | `reference_usd_per_request` |
    | `energy` | − joules of servers (idle and busy), drafting devices and radios | `reference_joules_per_request` |
    | `bytes` | − bytes sent over all links | `reference_bytes_per_request` |
    | `progress` | + output tokens committed | `reference_output_tokens` |

    By Little's law the undiscounted `latency` return of an episode that terminates is minus the sum of all
    end-to-end times over `reference_e2e_s`: maximising it minimises the mean request time. `progress` adds up
    to a constant over a finished workload, so it does not change what is optimal. With a weight of about the
    cost of a request it rewards tokens as they are committed, so that a learner with a short horizon sees
    what a round gained.

    ## Starting State

    The simulation starts empty at time 0 and runs to the first decision of the first request. The episode's
    seed is drawn from `np_random`, so `reset(seed=s)` fixes the seeds of this and all later episodes.

    ## Episode End

    1. Termination: the workload is finished (the scenario sets `episode.total_requests`, and all are done).
    2. Truncation: the window (`episode.warmup_s`, `episode.window_s`) is over and all requests that arrived
       in it have completed; without a window, the first `episode.warmup_requests + episode.requests` requests
       have completed; or `episode.horizon_s` has passed; or `max_episode_steps` decisions have been taken.

    The last step returns the observation of the last decision once more, because no further decision is due.
    Only if `max_episode_steps` cuts the episode off does it return the observation of the next decision,
    which is then due.

    ## Info

    | Key               | When      | Value                                                                          |
    |-------------------|-----------|--------------------------------------------------------------------------------|
    | `now_s`           | always    | Simulated time.                                                                |
    | `dt_s`            | always    | Simulated time since the decision before.                                      |
    | `decision`        | if one is | The decision now due: `request_id`, `device`, `counter`, `is_admission`,       |
    |                   | due       | `committed_tokens`, and with `price_delays` `delay_caused_s`.                  |
    | `episode_seed`    | reset,    | Seed of the episode; `reset(options={"episode_seed": …})` repeats it.          |
    |                   | last step |                                                                                |
    | `scenario`        | reset,    | Name of the scenario.                                                          |
    |                   | last step |                                                                                |
    | `reward_terms`    | step      | The terms by name, unweighted.                                                 |
    | `resolved`        | step      | Why the action was changed by rule; `None` if it was not.                      |
    | `invalid_actions` | step      | How many were so far in this episode.                                          |
    | `discount`        | step      | exp(−`discount_rate_per_s` · dt), if that argument is given.                   |
    | `completed`       | step      | Requests that completed: (`request_id`, time in s, `delay_caused_s`, tokens).  |
    | `episode_metrics` | last step | Every metric by name (docs/simulator.md).                                      |

    The table shows the infos with `infos="full"`. With `infos="numeric"` every info, also of a reset, has the
    same keys with numbers and arrays of fixed shape, which buffers can store (docs/environment.md has the
    table). With `infos="none"` all infos are empty.

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
    | `engine`              | **str**                              | `"auto"`      | `"compiled"` or `"reference"`     |
    | `discount_rate_per_s` | **float** or None                    | `None`        | Adds `info["discount"]`           |
    | `price_delays`        | **bool**                             | `False`       | Accounts `delay_caused_s`         |
    | `n_placements`        | **int** or None                      | `None`        | Fills the candidates up           |
    | `engine_options`      | mapping or None                      | `None`        | Bounds of the compiled engine     |
    | `max_episode_steps`   | **int** or None                      | `None`        | Truncates the episode             |
    | `infos`               | **str**                              | `"full"`      | `"numeric"` or `"none"`           |

    `gymnasium.make(..., max_episode_steps=N)` does not pass N to the environment, but wraps it in a
    `TimeLimit`. The infos do not differ: the info of the step at which the wrapper truncates is the episode's
    last, with metrics.

    `engine="auto"` takes the compiled engine, unless it does not simulate the scenario or Numba is not
    installed; then it takes the reference engine. The attribute `engine` says which engine runs. Tables of
    the compiled engine are bounded; if one is full, the error says which one to enlarge with `engine_options`
    (see `dsd_env.sim.compiled.compile_scenario`).

    `n_placements` above the scenario's own number gives scenarios with different numbers of candidates the
    same spaces. The features of a candidate that does not exist are 0, and its placement is masked; an action
    that takes it nevertheless means plain decoding at the current target (`no_drafter`).

    With `price_delays` the simulation adds up, for every request, the time by which its work and its batch
    sizes delay others; `info["decision"]["delay_caused_s"]` holds the sum so far of the request whose
    decision is due. The sum is not part of the observation; learners may use it to charge decisions for the
    delay that they cause.

    On reset, `options={"episode_seed": int}` sets the episode's own seed: the episode is then the one that
    `dsd_env.simulate(scenario, scheduler, seed)` runs with that seed.

    `clone_state()` and `restore_state(state)` return to an earlier decision, for planning by look-ahead.

    ## Version History

    * v0: Initial version.
    """  # noqa: E501

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Path | Scenario | Mapping[str, Any] = "metro",
        render_mode: str | None = None,
        engine: str = "auto",
        discount_rate_per_s: float | None = None,
        price_delays: bool = False,
        n_placements: int | None = None,
        engine_options: Mapping[str, int] | None = None,
        max_episode_steps: int | None = None,
        infos: str = "full",
    ) -> None:
        self._check_render_mode(render_mode)
        check_discount(discount_rate_per_s)
        self.render_mode = render_mode
        self.scenario = _one_scenario(scenario)
        self.actions = ActionSpace.of(self.scenario, n_placements)
        self.encoder = ObservationEncoder.of(self.scenario, n_placements)
        self.action_space = gym.spaces.MultiDiscrete(list(self.actions.nvec))
        self.observation_space = gym.spaces.Box(self.encoder.low, self.encoder.high, dtype=np.float32)
        self._episodes = make_episodes(
            engine,
            self.scenario,
            self.encoder,
            self.actions,
            record=render_mode == "rgb_array",
            price_delays=price_delays,
            options=engine_options,
        )
        self._film = rendering.Film(self.scenario)
        self._discount_rate_per_s = discount_rate_per_s
        self._infos = check_infos(infos)
        self._numeric = NumericInfos(price_delays, discount_rate_per_s)
        self._max_steps = checked_max_episode_steps(max_episode_steps)
        self._time_limit: int | None = None

    @property
    def engine(self) -> str:
        """Name of the engine that simulates: `compiled` or `reference`."""
        return self._episodes.engine

    @property
    def view(self) -> DecisionView:
        """Typed view of the decision now due; after the last step, of the last decision taken.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the decision")
        return self._episodes.view()

    @property
    def simulation(self) -> Any:
        """The simulation of this episode, for inspection of its totals, metrics and table of requests.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the simulation")
        return self._episodes.simulation()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of `np_random`, from which the seeds of this and later episodes are drawn.
            options: ``{"episode_seed": int}`` sets this episode's own seed.

        Returns:
            The first observation, and `info`.

        Raises:
            ValueError: An option is unknown, or a seed is not a whole number of at least 0; an episode's seed
                must also be below 2^63.
            RuntimeError: The scenario's horizon ends before the first request.
        """
        episode_seed = self._seed_of_reset(seed, options)
        episodes = self._episodes
        self._episode_seed = None
        episodes.begin(episode_seed)
        self._episode_seed = episode_seed
        self._steps = 0
        self._time_limit = surrounding_time_limit(self)
        if self._infos == "none":
            return episodes.observation, {}
        info = {
            "now_s": episodes.now_s,
            "dt_s": episodes.dt_s,
            "decision": episodes.decision(),
            "episode_seed": episode_seed,
            "scenario": self.scenario.name,
        }
        return episodes.observation, self._told(info)

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take the decision now due, and simulate until the next decision is due.

        Args:
            action: Indices of speculation length, batch size and placement, shape (3,).

        Raises:
            ValueError: The action is not three integers within the ranges of the action space.
            gymnasium.error.ResetNeeded: The episode is over or was never begun.
            EngineError: A bounded table of the compiled engine is full (see `engine_options`).
        """
        episodes = self._episodes
        if self._episode_seed is None or episodes.over or self._reached(self._max_steps):
            raise gym.error.ResetNeeded("the episode is over or was never begun: call reset()")
        over = episodes.step(self.actions.checked(action))
        self._steps += 1
        cut = self._reached(self._max_steps)
        terminated = over and episodes.terminated
        truncated = (over and not terminated) or cut
        if self._infos == "none":
            return episodes.observation, episodes.reward, terminated, truncated, {}
        info: dict[str, Any] = {
            "now_s": episodes.now_s,
            "dt_s": episodes.dt_s,
            "reward_terms": dict(zip(REWARD_TERMS, episodes.terms, strict=True)),
            "resolved": episodes.reason,
            "invalid_actions": episodes.invalid_actions,
            "completed": episodes.completed(),
        }
        if self._discount_rate_per_s is not None:
            info["discount"] = math.exp(-self._discount_rate_per_s * episodes.dt_s)
        if not over:
            info["decision"] = episodes.decision()
        if over or cut or self._reached(self._time_limit):
            info["episode_metrics"] = episodes.simulation().metrics()
            info["episode_seed"] = self._episode_seed
            info["scenario"] = self.scenario.name
        # When the episode is over, no decision is due: the last observation stands in for the next one.
        return episodes.observation, episodes.reward, terminated, truncated, self._told(info)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return an info in the form that the argument `infos` asks for."""
        if self._infos == "full":
            return info
        assert self._episode_seed is not None
        return self._numeric.of(info, self._episode_seed)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the valid indices, concatenated over the dimensions (bool, shape (sum(nvec),)).

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the decision")
        return self._episodes.mask()

    def sample_mask(self) -> tuple[NDArray[np.int8], ...]:
        """Return the masks for ``action_space.sample(mask=...)``: int8, one array per dimension.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        return self.actions.sample_mask(self.action_masks())

    def flat_action_masks(self) -> NDArray[np.bool_]:
        """Return which flat actions the simulator would carry out unchanged (bool, shape (n_flat,)).

        :class:`dsd_env.envs.FlatActionWrapper` returns this mask as its `action_masks`.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("looking at the decision")
        return self._episodes.flat_mask()

    def clone_state(self) -> EnvState:
        """Return the environment's state, which :meth:`restore_state` can restore any number of times.

        The state holds the world, the episode, and the generator of later episodes' seeds, so that everything
        continues as if the steps in between had never been taken. It does not cover wrappers. On the compiled
        engine the state is a copy of arrays; the reference engine keeps the actions and repeats the episode
        to return to the state.

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
        """
        self._need_episode("cloning the state")
        return EnvState(
            self.engine,
            self.scenario,
            generator=self.np_random.bit_generator.state,
            steps=self._steps,
            **self._episodes.save(),
        )

    def restore_state(self, state: EnvState) -> NDArray[np.float32]:
        """Restore a state of this environment, or of another one with the same arguments.

        Returns:
            The observation of the decision that is due in that state.

        Raises:
            ValueError: The state is from another engine or scenario, or has another number of placements.
        """
        if state.engine != self.engine:
            raise ValueError(f"the state was made on engine {state.engine!r}, this is {self.engine!r}")
        check_state(state, [self.scenario], len(self.encoder.features))
        self._episodes.restore(state)
        self._episode_seed, self._steps = state.episode_seed, state.steps
        self.np_random.bit_generator.state = dict(state.generator)
        return self._episodes.observation

    def render(self) -> Any:
        """Render as `render_mode` says: a text, or an image (uint8, shape (height, width, 3)).

        Raises:
            gymnasium.error.ResetNeeded: The environment was never reset.
            gymnasium.error.DependencyNotInstalled: ``rgb_array`` needs matplotlib, which is not installed.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "You are calling render method without specifying any render mode. "
                f'Say gym.make(..., render_mode="{self.metadata["render_modes"][0]}").'
            )
            return None
        now_s, view = self.simulation.now_s, self.view
        if self.render_mode == "ansi":
            return rendering.render_text(self.scenario, view, now_s)
        return self._film.picture(view, self._episodes.events(), now_s)


def _one_scenario(scenario: Any) -> Scenario:
    if isinstance(scenario, (list, tuple)):
        raise ValueError(
            "EdgeCloudEnv runs one scenario; for a mixture of several use gymnasium.make_vec or "
            "dsd_env.make_sb3_vec_env"
        )
    return load_scenario(scenario)


def check_state(state: EnvState, scenarios: list[Scenario], n_features: int) -> int:
    """Return the index of a state's scenario in a list of scenarios.

    Raises:
        ValueError: The list lacks the scenario, or the state has another number of placements.
    """
    own = state.scenario
    matches = [index for index, each in enumerate(scenarios) if each is own or each == own]
    if not matches:
        names = [scenario.name for scenario in scenarios]
        raise ValueError(
            f"the state is of a scenario {own.name!r} that is not among {names}, or not the same"
        )
    if state.world is not None and (found := len(state.world.outputs["observations"])) != n_features:
        raise ValueError(
            f"the state's observation has {found} features, not {n_features}: it was made with another "
            "n_placements"
        )
    return matches[0]
