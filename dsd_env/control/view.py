"""The typed view of one decision: everything a real controller could know at that moment, no more.

The simulator fills a :class:`DecisionView` from telemetry that is as old as the network makes it.
Heuristics read it by name; :mod:`dsd_env.control.encoding` flattens it for neural policies.
It holds no acceptance trace, no remaining output length and nothing of the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dsd_env.laws.constants import ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR

RECENT_ROUNDS = 4
"""How many past rounds of a request the view lists."""


class Site(IntEnum):
    """Where drafts are made."""

    COLOCATED = 0
    OWN_DEVICE = 1
    EDGE_SERVER = 2


class DrafterKind(IntEnum):
    """What proposes the drafts: a draft model, a head on the target's hidden states, or a look-up."""

    MODEL = 0
    HEAD = 1
    LOOKUP = 2


@dataclass(slots=True)
class RequestView:
    """The request that needs a decision.

    Attributes:
        is_admission: True for the first decision, which places the prompt; its gamma only says
            whether the drafter prefills (gamma > 0) or not.
        control_site: Where the decision is taken: at the target, on the device or the edge server.
        prompt_tokens: Length of the prompt.
        committed_tokens: Output tokens committed so far.
        age_s: Time since the request arrived.
        slo_ttft_s: Bound on the time to first token. This and the following: 1e9 if its class has none.
        slo_tpot_s: Bound on the mean time per output token.
        slo_itl_p99_s: Bound on the 99th percentile of its gaps between tokens.
        slo_first_s: When its first token is due, after its arrival.
        slo_per_token_s: Time between the deadlines of its tokens.
        ttft_s: Time to first token as far as known; 0 until then.
        tpot_s: Mean time per output token so far; 0 before the second token.
        rounds: Decisions executed so far (admission not counted).
        acceptance_rate: Running acceptance rate (EMA over draft rounds; prior 0.6).
        tokens_per_round: Running number of committed tokens per draft round (EMA; prior 2).
        recent_gammas: Drafted tokens of the last rounds, newest first, zeros before the first.
        recent_accepted: Accepted tokens of the last rounds, newest first.
        last_confidence: Top-1 probability of the drafter at the last token that it drafted on the true
            path (the first rejected one, if any was); 0 if unknown.
        head_start_tokens: Drafts of the next window that its last drafter has made ahead (pipelined).
        window_tokens: Gamma in force of its stream of drafts; 0 if none is open. This and the following:
            streaming.
        lead_tokens: Drafts in flight: made, and not yet known to be right or wrong.
        generations: Generations of drafts that its stream has begun.
        generation_age_s: Time since the present one began.
        idle_share: Running share of its iterations for which no draft had come (EMA).
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
    """A target as the controller knows it: state at the last report that reached it.

    Attributes:
        index: Number of the target.
        up: Whether it is believed to be up.
        queued: Requests that wait for admission or for an iteration.
        running: Sequences in the iteration under way.
        resident: Requests that are admitted there: they hold a seat and KV.
        remaining_s: Expected remaining time of the iteration under way, at the report.
        iteration_s: Running mean iteration time (EMA).
        kv_fraction: Share of the KV pool reserved.
        waiting: Requests that wait for admission there.
        max_num_seqs: Requests that can be resident at a time.
        max_batch_wait_s: Longest wait of a verification for the batch size that it asks for.
        token_s: Marginal time of one more new token in an iteration of the usual size, from the profile.
        prefill_token_s: Time per prompt token when prefilling in chunks, from the latency profile.
        age_s: Age of the report.
        plain: Requests at this target whose newest job there was plain decoding. This and the two following
            count each request whose target this is from its first job after the prefill on, also while it
            waits for admission, having moved here or lost its KV. So their sum may be above `resident`, and
            it is below where residents have had nothing but their prefill.
        colocated: Requests whose newest job there was drafted on its own GPUs.
        remote: Requests whose newest job there was to verify drafts made elsewhere, streams included.
        gamma_mean: Mean number of drafts in the newest jobs of the latter two; 0 without them.
        prefill_tokens: Context tokens that its jobs still have to prefill.
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
        """Share of its seats that are taken."""
        return self.resident / self.max_num_seqs


@dataclass(slots=True)
class LinkView:
    """The device's own link, as measured from its past rounds.

    Attributes:
        up: Whether the link is believed up: false while what the site has to send has not all left for
            longer than a retransmission time-out (links that can fail).
        rtt_s: Running mean round-trip time of the link (EMA; nominal before the first sample), and the way
            there and back from its end to the request's target: before admission, to the first one offered.
        rtt_deviation_s: Running mean absolute deviation of the round-trip time.
        uplink_bits_per_s: Uplink bandwidth as measured by messages that have left (EMA); nominal before
            the first, and where it does not change.
        downlink_bits_per_s: Downlink bandwidth, likewise.
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
        available: The device has a drafter, it is up, and the context fits into it.
        step_s: Time of one draft step.
        kv_lag_tokens: Committed tokens that it has not processed (1 is normal).
        jobs: Draft jobs running or queued there.
    """

    available: bool
    step_s: float
    kv_lag_tokens: int
    jobs: int


@dataclass(slots=True)
class CandidateView:
    """One placement: a drafter at a site, and a target.

    Attributes:
        site: Where drafts are made.
        edge_server: Number of the edge server, or -1.
        target: The target.
        valid: Whether drafting there is possible now (candidate 0 is always selectable).
        is_current: Same target, and same drafter as in the last draft round.
        same_target: The request's KV is at this target.
        draft_step_s: Time of one draft step there, with all the branches that it has; on an edge server as if
            the others there had as many.
        catch_up_s: Time of the first draft step, which processes the KV lag. A look-up takes this time and
            `draft_step_s`, which are equal, once a round.
        draft_wait_s: Expected wait for the drafter.
        rtt_s: Round-trip time between draft site and target (0 when co-located): that of the link, measured
            for a device's and nominal for an edge server's, and twice the target's `extra_one_way_s`.
        handover_s: Expected one-way delay to move control there from where it is now, likewise.
        kv_lag_tokens: Committed tokens that its drafter has not processed (1 for a look-up, which has no KV).
        move_s: Expected time to prefill the context anew at another target (0 at the current one).
        shares_target: Draft steps run on the target's own server and lengthen its iterations.
        drafter: Place of the drafter in its site's list, from 0.
        kind: What proposes there.
        model: Its draft model, as the scenario names it; empty where the site has no such drafter.
        acceptance_rate: Running acceptance rate of this request's drafts by that model (EMA; prior 0.6).
        tokens_per_round: Running number of tokens per round that they gave (EMA; prior 2); rounds in which a
            look-up proposed nothing count.
        model_rounds: How many such rounds there were.
        pooled_acceptance: Running chance that a draft by that model is right, given that those before it
            were, over all requests, from the targets' periodic reports; prior 0.6.
        streams: Its drafts are streamed to the target.
        coalesces: Verifications of its drafts wait for the batch size asked for: they come from elsewhere,
            and the target does not decode meanwhile.
        fanout: Branches that its stream opens at each draft; 0: none.
        depth: Tokens of such a branch.
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
        active_requests: Requests resident or queued at all targets.
        arrivals_per_s: Running arrival rate (EMA).
        tokens_per_s: Running rate of committed tokens (EMA).
        own_attainment: Running share of the requests of this request's class of SLO that met it (EMA).
        others_attainment: The least of those of the other classes; the same if there is but one.
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
        request: The request, as far as its controller knows: the target of a stream is ahead of that.
        target: Its current target.
        link: Its device's link.
        drafter: The first drafter on its own device.
        candidates: The placements on offer, fixed length and order: for each target on offer, the current one
            first, the drafters at it, those on the own device, those of each edge server on offer.
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
