"""The typed view of one decision: everything a real controller could know at that moment, no more.

The simulator fills a :class:`DecisionView` from telemetry that the network delays. Heuristics read the view
by name; :mod:`dsd_env.control.encoding` flattens it for neural policies. The view holds no acceptance trace,
no remaining output length and nothing else about the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dsd_env.laws.constants import ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR

RECENT_ROUNDS = 4
"""Number of past rounds of a request that the view lists."""


class Site(IntEnum):
    """The kinds of site at which drafts are made."""

    COLOCATED = 0
    OWN_DEVICE = 1
    EDGE_SERVER = 2


class DrafterKind(IntEnum):
    """The kinds of drafter: a draft model, a head on the target's hidden states, or a look-up."""

    MODEL = 0
    HEAD = 1
    LOOKUP = 2


@dataclass(slots=True)
class RequestView:
    """The request that needs a decision.

    Attributes:
        is_admission: True for the first decision, which places the prompt; its gamma only says
            whether the drafter prefills (gamma > 0) or not.
        control_site: Site at which the decision is taken: the target, the device or the edge server.
        prompt_tokens: Length of the prompt.
        committed_tokens: Output tokens committed so far.
        age_s: Time since the request arrived.
        slo_ttft_s: Bound on the time to first token. This bound and the next four are 1e9 if the request's
            class does not set them.
        slo_tpot_s: Bound on the mean time per output token.
        slo_itl_p99_s: Bound on the 99th percentile of the gaps between the request's tokens.
        slo_first_s: Time from arrival to the deadline of the first token.
        slo_per_token_s: Time between the deadlines of successive tokens.
        ttft_s: Time to first token; 0 until the controller knows it.
        tpot_s: Mean time per output token so far; 0 before the second token.
        rounds: Decisions executed so far, without the admission.
        acceptance_rate: Running acceptance rate (EMA over draft rounds; prior 0.6).
        tokens_per_round: Running number of committed tokens per draft round (EMA; prior 2).
        recent_gammas: Drafted tokens of the last rounds, newest first; zeros stand for missing rounds.
        recent_accepted: Accepted tokens of the last rounds, newest first.
        last_confidence: Top-1 probability of the drafter at the last token that it drafted on the true
            path (at the first rejected token, if there was one); 0 if unknown.
        head_start_tokens: Drafts of the next window that the request's last drafter has made ahead
            (pipelined protocol).
        window_tokens: Gamma in force of the request's stream of drafts; 0 if no stream is open. This field
            and the following ones belong to the streaming protocol.
        lead_tokens: Drafts in flight: made, and not yet known to be right or wrong.
        generations: Generations of drafts that the stream has begun.
        generation_age_s: Time since the current generation began.
        idle_share: Running share of the stream's iterations for which no draft had arrived (EMA).
    """

    is_admission: bool
    control_site: Site
    prompt_tokens: int
    committed_tokens: int
    age_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    slo_itl_p99_s: float
    slo_first_s: float
    slo_per_token_s: float
    ttft_s: float
    tpot_s: float
    rounds: int
    acceptance_rate: float
    tokens_per_round: float
    recent_gammas: tuple[int, ...]
    recent_accepted: tuple[int, ...]
    last_confidence: float
    head_start_tokens: int
    window_tokens: int = 0
    lead_tokens: int = 0
    generations: int = 0
    generation_age_s: float = 0.0
    idle_share: float = 0.0


@dataclass(slots=True)
class TargetView:
    """A target as the controller knows it, by the last report that has reached the controller.

    Attributes:
        index: Number of the target.
        up: Whether it is believed to be up.
        queued: Requests that wait for admission or for an iteration.
        running: Sequences in the iteration under way.
        resident: Requests admitted at the target; each holds a seat and KV.
        remaining_s: Expected remaining time of the iteration under way, at the time of the report.
        iteration_s: Running mean iteration time (EMA).
        kv_fraction: Share of the KV pool reserved.
        waiting: Requests that wait for admission at the target.
        max_num_seqs: Largest number of requests that can be resident at the same time.
        max_batch_wait_s: Longest time that a verification waits for its batch size.
        token_s: Marginal time of one more new token in an iteration of the usual size, from the profile.
        prefill_token_s: Time per prompt token when prefilling in chunks, from the latency profile.
        age_s: Age of the report.
        plain: Requests of this target whose newest job here was plain decoding. `plain`, `colocated` and
            `remote` count each request of this target from its first job after the prefill on, also while it
            waits for admission after a move or after losing its KV. Their sum can therefore exceed
            `resident`, and it is smaller while residents have had nothing but their prefill.
        colocated: Requests whose newest job here was drafted on the target's own GPUs.
        remote: Requests whose newest job here was to verify drafts made elsewhere, streams included.
        gamma_mean: Mean number of drafts in the newest jobs of the requests counted by `colocated` and
            `remote`; 0 without such requests.
        prefill_tokens: Context tokens that the target's jobs still have to prefill.
    """

    index: int
    up: bool
    queued: int
    running: int
    resident: int
    remaining_s: float
    iteration_s: float
    kv_fraction: float
    waiting: int
    max_num_seqs: int
    max_batch_wait_s: float
    token_s: float
    prefill_token_s: float
    age_s: float
    plain: int
    colocated: int
    remote: int
    gamma_mean: float
    prefill_tokens: int

    @property
    def seat_fraction(self) -> float:
        """Share of the target's seats that are taken."""
        return self.resident / self.max_num_seqs


@dataclass(slots=True)
class LinkView:
    """The link of the request's device, as measured from the device's past rounds.

    Attributes:
        up: Whether the link is believed up. It is believed down while messages of the site have waited to
            leave for longer than a retransmission time-out (only for links that can fail).
        rtt_s: Running mean round-trip time of the link (EMA; nominal before the first sample), plus the extra
            round trip from the end of the link to the request's target; before admission, to the first
            target offered.
        rtt_deviation_s: Running mean absolute deviation of the round-trip time.
        uplink_bits_per_s: Uplink bandwidth as measured from messages that have left (EMA); nominal before the
            first message, and if the bandwidth does not change.
        downlink_bits_per_s: Downlink bandwidth, measured in the same way.
        loss: Running share of messages that needed a retransmission.
        age_s: Age of the estimate.
    """

    up: bool
    rtt_s: float
    rtt_deviation_s: float
    uplink_bits_per_s: float
    downlink_bits_per_s: float
    loss: float
    age_s: float


@dataclass(slots=True)
class DrafterView:
    """The drafter on the request's own device.

    Attributes:
        available: Whether the device has a drafter, is up, and the context fits into the drafter.
        step_s: Time of one draft step.
        kv_lag_tokens: Committed tokens that the drafter has not processed (1 is normal).
        jobs: Draft jobs running or queued on the device.
    """

    available: bool
    step_s: float
    kv_lag_tokens: int
    jobs: int


@dataclass(slots=True)
class CandidateView:
    """One placement: a drafter at a site, and a target.

    Attributes:
        site: Site at which drafts are made.
        edge_server: Number of the edge server, or -1.
        target: The target.
        valid: Whether drafting with this candidate is possible now (candidate 0 is always selectable).
        is_current: Whether the last draft round had the same target and drafter, and if branches are offered
            the same choice of branches.
        same_target: Whether the request's KV is at this target.
        draft_step_s: Time of one draft step, including the step's branches; on an edge server, as if the
            other requests there had as many branches.
        catch_up_s: Time of the first draft step, which processes the KV lag. For a look-up this equals
            `draft_step_s`, and the look-up takes that time once per round.
        draft_wait_s: Expected wait for the drafter.
        rtt_s: Round-trip time between draft site and target (0 when co-located): that of the link, which is
            measured for a device and nominal for an edge server, plus twice the target's `extra_one_way_s`.
        handover_s: Expected one-way delay to move control to the draft site from where control is now, made
            up in the same way.
        kv_lag_tokens: Committed tokens that the drafter has not processed (1 for a look-up, which has no KV).
        move_s: Expected time to prefill the context anew at another target (0 at the current one).
        shares_target: Whether draft steps run on the target's own server and lengthen its iterations.
        drafter: Index of the drafter in its site's list, from 0.
        kind: Kind of the drafter.
        model: Draft model of the drafter, as the scenario names it; empty if the site has no such drafter.
        acceptance_rate: Running acceptance rate of this request's drafts by the draft model (EMA; prior 0.6).
        tokens_per_round: Running number of tokens per round of this request with the draft model (EMA; prior
            2); rounds in which a look-up proposed nothing count.
        model_rounds: Number of this request's rounds with the draft model.
        pooled_acceptance: Running probability that a draft by the draft model is right, given that those
            before it were, over all requests, from the targets' periodic reports; prior 0.6.
        streams: Whether drafts are streamed to the target.
        coalesces: Whether verifications of the drafts wait for the batch size: the drafts come from
            elsewhere, and the target does not decode meanwhile.
        fanout: Branches that the stream opens at each draft; 0: none.
        depth: Tokens of a branch.
    """

    site: Site
    edge_server: int
    target: TargetView
    valid: bool
    is_current: bool
    same_target: bool
    draft_step_s: float
    catch_up_s: float
    draft_wait_s: float
    rtt_s: float
    handover_s: float
    kv_lag_tokens: int
    move_s: float
    shares_target: bool
    drafter: int = 0
    kind: DrafterKind = DrafterKind.MODEL
    model: str = ""
    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    model_rounds: int = 0
    streams: bool = False
    coalesces: bool = True
    pooled_acceptance: float = ACCEPTANCE_PRIOR
    fanout: int = 0
    depth: int = 0


@dataclass(slots=True)
class SystemView:
    """The whole system, from the targets' periodic reports.

    Attributes:
        active_requests: Requests resident at all targets.
        arrivals_per_s: Running arrival rate (EMA).
        tokens_per_s: Running rate of committed tokens (EMA).
        own_attainment: Running share of requests of this request's SLO class that met their SLO (EMA).
        others_attainment: The least such share of the other SLO classes; `own_attainment` if there is only
            one class.
    """

    active_requests: int
    arrivals_per_s: float
    tokens_per_s: float
    own_attainment: float
    others_attainment: float


@dataclass(slots=True)
class DecisionView:
    """Everything the controller knows when it opens a round.

    Attributes:
        now_s: Simulated time.
        request_id: Number of the request (arrival order within the episode).
        device: Number of the device.
        counter: Number of this decision within the request; with `request_id` it addresses
            the scheduler's own random draws.
        request: The request, as far as its controller knows it; the target of a stream is ahead of that.
        target: The request's current target.
        link: The link of the request's device.
        drafter: The first drafter on the request's own device.
        candidates: The placements on offer, of fixed length and order. For each target on offer, the current
            one first: the drafters at the target, those on the own device, then those of each edge server on
            offer.
        system: The whole system.
        gammas: Speculation lengths on offer, increasing, the first 0.
        batch_sizes: Batch sizes on offer, increasing.
    """

    now_s: float
    request_id: int
    device: int
    counter: int
    request: RequestView
    target: TargetView
    link: LinkView
    drafter: DrafterView
    candidates: tuple[CandidateView, ...]
    system: SystemView
    gammas: tuple[int, ...]
    batch_sizes: tuple[int, ...]
