"""What lies where in the compiled engine: one record per entity, with named fields of the width they need.

Two buffers of bytes hold everything. One begins with a :data:`SCENARIO` and holds what no episode changes,
shared by all worlds; each world has one that begins with a :data:`WORLD`. Rows of other records follow in
blocks; a field that says where a block begins counts bytes from its own record, so a world is copied by
copying its bytes. :mod:`dsd_env.sim.compiled.tables` lays both out, :mod:`dsd_env.sim.compiled.kernel.rows`
reads them in compiled code, and NumPy reads them through the records' structured dtypes.

Names are those of the reference engine's entities, since the laws that both engines share
(:mod:`dsd_env.laws`) ask either for them. A record named `...Spec` holds constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.laws.resolve import REASONS
from dsd_env.laws.streams import STEPS_KEPT
from dsd_env.network.processes import QUANTILE_Z
from dsd_env.sim.metrics import Totals

Element = Any
"""A :class:`Record`, or the dtype of a number."""


class Record:
    """A structured dtype whose fields may be records, arrays, blocks of rows and references to a row.

    Attributes:
        name: Name of the entity.
        fields: Fields by name, in their order.
        dtype: NumPy's view of a row, aligned as C would.
        offsets: Offset of each field in bytes.
    """

    def __init__(self, name: str, **fields: Any) -> None:
        """Define a record; the keyword arguments are its fields."""
        self.name = name
        self.fields: dict[str, Any] = {key: _element(field) for key, field in fields.items()}
        self.dtype = np.dtype([(key, *_stored(field)) for key, field in self.fields.items()], align=True)
        assert self.dtype.fields is not None
        self.offsets = {key: int(self.dtype.fields[key][1]) for key in self.fields}

    @property
    def itemsize(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Record({self.name})"


@dataclass(frozen=True)
class Array:
    """A field of so many elements, one after the other."""

    element: Element
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "element", _element(self.element))


@dataclass(frozen=True)
class Block:
    """A field that says where rows begin, in bytes from the record that the field is in."""

    element: Element

    def __post_init__(self) -> None:
        object.__setattr__(self, "element", _element(self.element))


@dataclass(frozen=True)
class Ref:
    """A field that says where one row lies, likewise; 0 if there is none."""

    element: Record


def _element(field: Any) -> Any:
    return np.dtype(field) if isinstance(field, str) else field


def _stored(field: Any) -> tuple[Any, ...]:
    if isinstance(field, Block | Ref):
        return (np.dtype("i8"),)
    if isinstance(field, Array):
        return _dtype(field.element), (field.length,)
    return (_dtype(field),)


def _dtype(element: Element) -> np.dtype[Any]:
    return element.dtype if isinstance(element, Record) else element


# ---------------------------------------------------------------------- laws of variates, processes on links

LAW_SPEC = Record(
    "LawSpec", code="i4", pieces="i4", a="f8", b="f8", low="f8", high="f8",
    scores=Block("f8"), logs=Block("f8"), slopes=Block("f8"),
)  # fmt: skip
"""A law of variates; see :mod:`dsd_env.laws.variates` for what the numbers of each mean."""

PROCESS_SPEC = Record(
    "ProcessSpec", period_s="f8", centre="f8", parts="i4", by_quantiles="?", spread="f8",
    sigma=Array("f8", 2), rho=Array("f8", 2), step=Array("f8", 2), pieces="i4",
    scores=Array("f8", len(QUANTILE_Z)), logs=Array("f8", len(QUANTILE_Z)), slopes=Array("f8",
    len(QUANTILE_Z)),
)  # fmt: skip
PROCESS = Record("Process", value="f8", until_s="f8", x=Array("f8", 2), key="u8", index="i8")
"""The exponential of a sum of Gaussian processes, constant for a period."""

FAULT_SPEC = Record(
    "FaultSpec", number="i4", site="i4", entity="i4", is_random="?", n_times="i4", mean_interval_s="f8",
    bandwidth_factor="f8", at_s=Block("f8"), duration_s=LAW_SPEC,
)  # fmt: skip
"""One device, edge server or target that a fault hits."""
WINDOW = Record("Window", start_s="f8", end_s="f8", index="i8", key="u8")
"""A window of an outage or a fault."""
CRASH = Record("Crash", window=WINDOW, down="?")
"""What becomes of one that crashes: its present window, and whether it is in it."""

CURSOR = Record("Cursor", begun_s="f8", until_s="f8", index="i8")
"""A place in a repeated series."""

BREAK_SPEC = Record("BreakSpec", fault=Ref(FAULT_SPEC))
"""A fault that hits a channel."""
RATE_SPEC = Record(
    "RateSpec", nominal_bits_per_s="f8", has_bandwidth="?", has_outages="?", has_delay="?",
    has_series_delay="?", random_start="?", direction="i4", delay_direction="i4", pieces="i4", n_breaks="i4",
    mean_up_s="f8", mean_down_s="f8", bandwidth=PROCESS_SPEC, delay=PROCESS_SPEC, times_s=Block("f8"),
    bits_per_s=Block("f8"), extra_delay_s=Block("f8"), breaks=Block(BREAK_SPEC),
)  # fmt: skip
RATE = Record(
    "Rate", measured_bits_per_s="f8", sample_bits_per_s="f8", sample_left_s="f8", busy_from_s="f8",
    bandwidth=PROCESS, delay=PROCESS, outage=WINDOW, cursor=CURSOR, delay_cursor=CURSOR, breaks=Block(WINDOW),
)  # fmt: skip
"""What a channel does over time, if it changes or fails."""

CHANNEL_SPEC = Record(
    "ChannelSpec", number="i4", changes="?", has_rate_row="?", seconds_per_byte="f8", jitter_median_s="f8",
    jitter_sigma="f8", loss_probability="f8", log_loss_probability="f8", rto_s="f8", one_way_s="f8",
    spread_low="f8", spread_high="f8", rate=Ref(RATE_SPEC),
)  # fmt: skip
CHANNEL = Record(
    "Channel", one_way_s="f8", free_s="f8", last_arrival_s="f8", jitter_key="u8", loss_key="u8",
    messages="i8", last_lost="i4", rate=Ref(RATE),
)  # fmt: skip
"""One direction of a link: of each device up, down, edge up and edge down, then the backhauls in pairs."""

# ---------------------------------------------------------------------- arrivals

RENEWAL_SPEC = Record(
    "RenewalSpec", power="f8", scale="f8", limit_s="f8", client_spread="f8", bursty_fraction="f8",
    bursty_power="f8", bursty_scale="f8", modulated="?", sigma="f8", rho="f8", step="f8", period_s="f8",
)  # fmt: skip
RENEWAL = Record(
    "Renewal", rate_per_s="f8", power="f8", scale="f8", arrival_s="f8", first="f8", x="f8", factor="f8",
    left_s="f8", gap_key="u8", rate_key="u8", ordinal="i8", period="i8",
)  # fmt: skip
"""An arrival process with Weibull gaps and a rate that may change."""
LOAD_SPEC = Record(
    "LoadSpec", period_s="f8", segments="i4", random_phase="?", times_s=Block("f8"), values=Block("f8")
)
REPLAYED = Record(
    "Replayed", arrival_s="f8", prompt_tokens="i4", output_tokens="i4", device="i4", kind="i4", recorded="i4"
)
"""A request of a replayed trace; `recorded` is the row of its acceptance in `MODEL_SPEC.named`, or -1."""
KIND_SPEC = Record(
    "KindSpec", bound="f8", slo_class="i4", slo_ttft_s="f8", slo_tpot_s="f8", slo_itl_p99_s="f8",
    slo_first_s="f8", slo_per_token_s="f8", slo_token_share="f8", length_correlation="f8", length_rest="f8",
    prompt_tokens=LAW_SPEC, output_tokens=LAW_SPEC,
)  # fmt: skip
"""A kind of request in the mix; `bound` is the cumulative share up to it."""

# ---------------------------------------------------------------------- acceptance

ENTRIES = Record("Entries", first="i8", n="i8")
"""Recorded requests to draw from: a stretch of entry numbers, as offsets into `SCENARIO.integers`."""
MODEL_SPEC = Record(
    "ModelSpec", source="i4", longest="i4", low="f8", high="f8", first="f8", flips="?", confidence="f8",
    entropy="f8", entropy_nats=Block("f8"),
    offsets=Block("i8"), kind_of=Block("i8"), accept_prob=Block("f8"), top1_prob=Block("f8"),
    run_length=Block("i8"), proposes="?", proposed=Block("u1"), same_kind=Block(ENTRIES),
    pools=Block(ENTRIES), has_named="?", named=Block("i8"), has_guess="?", draft_prob=Block("f8"),
    has_rank="?", rank=Block("u1"), hit_prob="f8",
)  # fmt: skip
"""The acceptance of one draft model; `draft_prob` decides guesses of a recording, if it `has_guess`."""
LEARNED = Record("Learned", acceptance_rate="f8", tokens_per_round="f8", model_rounds="i4")
"""What a request's controller has learned of a draft model."""
CHAIN = Record("Chain", entry="i4", start="i4", picks="i4")
"""Where a request stands in a recording: the entry, its first position, how many were picked."""

# ---------------------------------------------------------------------- drafters, targets

STOP = Record("Stop", kind="i4", least="i4", keeps="?", threshold="f8")
"""When a draft ends before its longest length; see :mod:`dsd_env.laws.stopping`."""

DRAFTER_SPEC = Record(
    "DrafterSpec", mode="i4", kind="i4", host="i4", per_round="?", verify_share="f8", per_generation_s="f8",
    draft_noise_sigma="f8", concurrency="i4", kv_capacity_tokens="i8", model="i4", length="i4",
    compute_s=Block("f8"), k_bw_s="f8", k_multi_s="f8", k_lat_s="f8", busy_w="f8", idle_w="f8", gpus="f8",
    price_usd_per_gpu_hour="f8", speed_low="f8", speed_high="f8",
)  # fmt: skip
PLACE_SPEC = Record("PlaceSpec", site="i4", edge_server="i4", rank="i4", fanout="i4")
"""A place to draft at among the candidates of an offered target; see ``Scenario.places``."""
DRAFTER = Record(
    "Drafter", number="i4", running="i4", active="i4", queued="i4", head="i4", tail="i4", down="i4",
    context_tokens="i8", branch_tokens="i8", starts="i8", speed="f8", mean_job_s="f8", busy_since_s="f8",
)  # fmt: skip
"""A drafter on a device, on an edge server or at a target, numbered in this order; its queue links jobs.

The second drafters of the sites have the numbers that follow, and so on. Those that share hardware have one
queue, that of their `host`; `running` is the one whose jobs are under way there.
"""
DRAFTER_REPORT = Record("DrafterReport", jobs="i4", up="?", wait_s="f8")

DRAFT_JOB = Record(
    "DraftJob", number="i4", gamma="i4", lag_tokens="i4", context_tokens="i4", drafter="i4", next="i4",
    state="i4", branch_tokens="i4", head_context_tokens="i4", head_drafts="i4", opens="?", run="i8",
    order="i8", start_s="f8", duration_s="f8", first_s="f8", head_done_s="f8",
)  # fmt: skip
"""Drafting for one request. `run` counts how often it was given up; `head_...` is its head start, if any."""

REPORT = Record(
    "Report", time_s="f8", remaining_s="f8", iteration_s="f8", kv_fraction="f8", token_s="f8", queued="i4",
    running="i4", resident="i4", waiting="i4", up="?", plain="i4", colocated="i4", remote="i4",
    gamma_mean="f8", prefill_tokens="i4",
)  # fmt: skip
"""State of a target as it reports it."""
RATES = Record("Rates", time_s="f8", arrivals_per_s="f8", tokens_per_s="f8")

TARGET_SPEC = Record(
    "TargetSpec", length="i4", max_num_seqs="i4", max_num_batched_tokens="i4", kv_capacity_tokens="i8",
    prefill_first="?", shortest_first="?", preempts="?", caches_prefixes="?", pads="?",
    compute_s=Block("f8"), padded=Block("i4"), k_bw_s="f8", k_multi_s="f8", k_lat_s="f8",
    max_batch_wait_s="f8", max_admission_wait_s="f8", prefill_token_s="f8", iteration_noise_sigma="f8",
    straggler_share="f8", straggler_factor="f8", gpus="f8", price_usd_per_gpu_hour="f8",
    keep_alive_s="f8", busy_w="f8", idle_w="f8", per_iteration_s="f8", per_sequence_s="f8",
    per_token_s="f8", per_verifying_iteration_s="f8", token_limit="i4", front_end_s="f8",
    extra_one_way_s="f8",
)  # fmt: skip
SEAT = Record("Seat", slot="i4", tokens="i4")
"""A job in the iteration under way, with its number of new tokens."""
TARGET = Record(
    "Target", number="i4", wait_head="i4", wait_tail="i4", waiting="i4", stands_back="i4", least_batch="i4",
    n_ready="i4", n_running="i4", resident="i4", down="i4", idle="?", kv_reserved_tokens="i8",
    kv_given_tokens="i8", iterations="i8", joined="i8", admissions="i8", busy_s="f8", iteration_start_s="f8",
    expected_end_s="f8", iteration_s="f8", check_s="f8", admission_check_s="f8", oldest_s="f8",
    iteration_tokens="f8", n_plain="i4", n_colocated="i4", n_remote="i4", gammas="i4", prefill_tokens="i4",
    is_occupied="?", keep_alive_set="?", kept_until_s="f8", ready=Block("i4"), running=Block(SEAT),
)  # fmt: skip
"""A target: requests that wait for admission, ready jobs, the iteration under way.

`stands_back` is how many of those who wait asked for a batch size above 1, `least_batch` the smallest batch
that any ready job wants. `check_s` is when the target next looks whether an iteration is due, and
`admission_check_s` when somebody has stood back long enough. `kept_until_s` is infinite while somebody is
there, and after that the end of the time that the target is kept and paid for.
"""

# ---------------------------------------------------------------------- devices, requests

DEVICE_SPEC = Record(
    "DeviceSpec",
    has_edge_link="?",
    radio_joules_per_byte="f8",
    uplink_bits_per_s="f8",
    downlink_bits_per_s="f8",
)
DEVICE = Record(
    "Device",
    rtt_s="f8",
    rtt_deviation_s="f8",
    rtt_sample_s="f8",
    loss="f8",
    timed_s="f8",
    timed_target="i4",
    ordinal="i4",
    down_faults="i4",
)

REQUEST = Record(
    "Request",
    # Who it is.
    slot="i4", number="i4", device="i4", kind="i4", prompt_tokens="i4", output_tokens="i4", recorded="i4",
    # Where it stands in its protocol.
    committed="i4", target="i4", lost_target="i4", site="i4", at="i4", waits_for="i4", epoch="i4", then="i4",
    to_site="i4", to="i4", hop_site="i4", hop="i4", moves="?", done="?", is_new="?", warms="?",
    waits_warm="?", guessed="?", drafts_ahead="?", has_report="?", patience_set="?",
    # Its decision in force.
    gamma="i4", batch_size="i4", draft_site="i4", drafter="i4", edge_server="i4", to_target="i4", drafts="i4",
    branches="?", stop=STOP, dropped="i4",
    # Its job at a target, and in the target's queue.
    job_task="i4", job_gamma="i4", job_chunk="i4", job_prefill="i4", job_prefilled="i4", job_sequence="i8",
    next="i4", kv_reserved_tokens="i4", admission="i8", queued_s="f8", asked_batch="i4", entered_s="f8",
    kept_tokens="i4", overwritten_from_tokens="i8",
    # Its drafters.
    drafted_at="i4", drafted_branches="?", warming="i4", chain_start="i4", head_drafter="i4",
    head_context_tokens="i4", head_tokens="i4", head_done_s="f8", own_jobs="i4",
    # What its controller learned.
    decisions="i4", rounds="i4", verifies="i4", drafted="i4", accepted="i4", round_tokens="i4",
    acceptance_rate="f8", tokens_per_round="f8", last_confidence="f8",
    recent_gammas=Array("i2", RECENT_ROUNDS), recent_accepted=Array("i2", RECENT_ROUNDS), report=REPORT,
    # Times.
    arrival_s="f8", slo_ttft_s="f8", slo_tpot_s="f8", first_commit_s="f8", last_commit_s="f8",
    first_delivery_s="f8", last_delivery_s="f8", delay_caused_s="f8", sent_s="f8", served_s="f8",
    move_bytes="f8", # Patience and the client's time-out.
    served="i4", exchange="i4", patience_served="i4", resend_exchange="i4", patience_at_s="f8",
    resend_at_s="f8", resend_wait_s="f8", resend_payload="f8", resend_timer_s="f8",
    uid="i8",
    # What it last asked of its target; what came late at its client.
    mode="i4", mode_gamma="i4", late_gaps="i4", late_tokens="i4", longest_gap_s="f8",
    # Its stream, if one is open.
    streams="?", job_coalesces="?", job_idle="?", job_closes="?", idle_timer_set="?", idle_until_s="f8",
    idle_share="f8",
)  # fmt: skip

STREAM = Record(
    "Stream",
    # The drafter's side.
    drafter="i4", site="i4", at="i4", target="i4", window="i4", batch_size="i4", stop=STOP, known="i4",
    generation="i4", start="i4", drafted="i4", branches="?", branch_start="i4", steps="i4", suspended="?",
    deciding="?", closing="?",
    known_commit_s="f8", started_s="f8",
    # The target's side.
    seen_window="i4", seen_batch="i4", seen_generation="i4", seen_start="i4", seen_branch_start="i4",
    seen_steps="i4", adopted_at="i4", arrived="i4", lost_at="i4", verifying="i4", verifying_start="i4",
    echo_sent_s="f8", echo_came_s="f8",
    # What is under way.
    messages="i4", first_message="i4", results="i4", first_result="i4",
    # Last, for it is long, and only branches use it.
    opened=Array("i4", STEPS_KEPT),
)  # fmt: skip
"""The stream of a request; the fields are those of :class:`dsd_env.sim.entities.Stream`."""
DRAFT_MESSAGE = Record(
    "DraftMessage", arrives_s="f8", sent_s="f8", generation="i4", start="i4", first="i4", tokens="i4",
    steps="i4", window="i4", batch_size="i4", closes="?", branches="?",
)  # fmt: skip
STREAM_RESULT = Record(
    "StreamResult", arrives_s="f8", echo_s="f8", commit_s="f8", confidence="f8", committed="i4", tokens="i4",
    drafted="i4", accepted="i4",
)  # fmt: skip

COMPLETED = Record(
    "Completed", number="i4", device="i4", kind="i4", prompt_tokens="i4", output_tokens="i4", delivered="i4",
    rounds="i4", verifies="i4", drafted="i4", accepted="i4", uid="i8", arrival_s="f8", first_delivery_s="f8",
    last_delivery_s="f8", completed_s="f8", late_gaps="i4", late_tokens="i4", longest_gap_s="f8",
)  # fmt: skip
"""A row of the table of completed requests."""
DELIVERED = Record("Delivered", arrives_s="f8", number="i4", tokens="i4")
LOGGED = Record("Logged", time_s="f8", kind="i4", entity="i4", number="i4", value="f8")
SCHEDULED = Record("Scheduled", time_s="f8", place="i8", sequence="i8", argument="i8")
"""An event to come: `place` is its order and its entity, which decide between events of one time."""
DUE_NOW = Record("DueNow", place="i8", argument="i8")
"""An event of the present instant."""

# ---------------------------------------------------------------------- the view of a decision

EDGE_OFFERED = Record("EdgeOffered", edge_server="i4", order="i4", draft_s="f8")
"""An edge server on offer; `order` is 0 for the current one, 1 for those believed up, 2 for the others."""
TARGET_VIEW = Record(
    "TargetView", index="f8", up="f8", queued="f8", running="f8", resident="f8", remaining_s="f8",
    iteration_s="f8", kv_fraction="f8", waiting="f8", max_num_seqs="f8", seat_fraction="f8",
    max_batch_wait_s="f8", token_s="f8", prefill_token_s="f8", age_s="f8", plain="f8", colocated="f8",
    remote="f8", gamma_mean="f8", prefill_tokens="f8",
)  # fmt: skip
CANDIDATE_VIEW = Record(
    "CandidateView", site="f8", edge_server="f8", offered="f8", valid="f8", is_current="f8", same_target="f8",
    draft_step_s="f8", catch_up_s="f8", draft_wait_s="f8", rtt_s="f8", handover_s="f8", kv_lag_tokens="f8",
    move_s="f8", shares_target="f8", drafter="f8", kind="f8", model="f8", acceptance_rate="f8",
    tokens_per_round="f8", model_rounds="f8", drafter_number="f8", colocated="f8", own_device="f8",
    is_head="f8", is_lookup="f8", target_queued="f8", target_resident="f8", target_colocated="f8",
    target_remote="f8", target_prefill_tokens="f8", target_iteration_s="f8", streams="f8", coalesces="f8",
    pooled_acceptance="f8", fanout="f8", depth="f8",
)  # fmt: skip
REQUEST_VIEW = Record(
    "RequestView", is_admission="f8", control_site="f8", control_at_target="f8", control_at_device="f8",
    control_at_edge_server="f8", prompt_tokens="f8", committed_tokens="f8", context_tokens="f8", age_s="f8",
    slo_ttft_s="f8", slo_tpot_s="f8", slo_itl_p99_s="f8", slo_first_s="f8", slo_per_token_s="f8",
    ttft_s="f8", tpot_s="f8", ttft_slack="f8", tpot_slack="f8", deadline_slack_s="f8", rounds="f8",
    acceptance_rate="f8", tokens_per_round="f8", recent_gammas=Array("f8", RECENT_ROUNDS),
    recent_accepted=Array("f8", RECENT_ROUNDS), last_confidence="f8", head_start_tokens="f8",
    window_tokens="f8", lead_tokens="f8", generations="f8", generation_age_s="f8", idle_share="f8",
)  # fmt: skip
LINK_VIEW = Record(
    "LinkView", up="f8", rtt_s="f8", rtt_deviation_s="f8", uplink_bits_per_s="f8", downlink_bits_per_s="f8",
    loss="f8", age_s="f8",
)  # fmt: skip
DRAFTER_VIEW = Record("DrafterView", available="f8", step_s="f8", kv_lag_tokens="f8", jobs="f8")
SYSTEM_VIEW = Record(
    "SystemView", active_requests="f8", arrivals_per_s="f8", tokens_per_s="f8", own_attainment="f8",
    others_attainment="f8",
)  # fmt: skip
VIEW = Record(
    "View", now_s="f8", request_id="f8", device="f8", counter="f8", request=REQUEST_VIEW, link=LINK_VIEW,
    drafter=DRAFTER_VIEW, system=SYSTEM_VIEW,
)  # fmt: skip
"""The view of the due decision, all of it float64: the encoder gathers its features from here by number."""

# ---------------------------------------------------------------------- world, scenario

_WHOLE = {name for name, field in Totals.__dataclass_fields__.items() if field.type == "int"}
TOTALS = Record("Totals", **{name: "i8" if name in _WHOLE else "f8" for name in Totals.__dataclass_fields__})
"""The running totals, with the fields of :class:`dsd_env.sim.metrics.Totals`."""
WINDOW_START = Record("WindowStart", time_s="f8", totals=TOTALS, busy_s=Block("f8"))
"""A boundary of the measured window or of its parts that has been passed."""
CLASS_COUNTS = Record(
    "ClassCounts", completed="i4", good="i4", completed_before="i4", good_before="i4", completed_per_s="f8",
    good_per_s="f8",
)  # fmt: skip
"""Completions of a class of SLO in this telemetry period and the one before, and their running rates."""
POOL = Record("Pool", right="f8", judged="f8")
"""What the verifications of a draft model's tokens have shown, over all requests; recent ones count most."""

WORLD = Record(
    "World",
    status="i4", error="i4", seed="i8", records="?", prices="?",
    now_s="f8", heap_n="i4", due_first="i4", due_end="i4", free_n="i4", newly_n="i4", pending="i4",
    answered="i4", reason="i4", arrived="i4", in_system="i4", cohort_left="i4", ordinal="i8", sequence="i8",
    ticks="i8", arrivals_seen="i4", tokens_seen="i4", events_n="i4", table_n="i4", table_dropped="i4",
    deliveries_n="i4", decisions="i8", events_done="i8", resolved=Array("i4", len(REASONS)),
    invalid="i4", trace_first="i8", load_offset_s="f8", open_arrival_s="f8",
    trace_offset_s="f8", arrivals_per_s="f8", tokens_per_s="f8", visible_s="f8", totals=TOTALS,
    totals_as_numbers=Block("f8"), totals_as_counts=Block("i8"),
    heap=Block(SCHEDULED), due_now=Block(DUE_NOW), due_view=Ref(VIEW), due_view_numbers=Block("f8"),
    raw_features=Block("f8"), target_views=Block(TARGET_VIEW), candidates=Block(CANDIDATE_VIEW),
    edges_offered=Block(EDGE_OFFERED),
    targets=Block(TARGET), reports=Block(REPORT), drafter_reports=Block(DRAFTER_REPORT), rates=Block(RATES),
    scratch=Ref(REPORT),
    requests=Block(REQUEST), valid_tokens=Block("i4"), learned=Block(LEARNED), chains=Block(CHAIN),
    jobs=Block(DRAFT_JOB), streams=Block(STREAM), stream_messages=Block(DRAFT_MESSAGE),
    stream_results=Block(STREAM_RESULT),
    drafters=Block(DRAFTER), devices=Block(DEVICE), channels=Block(CHANNEL), link_rates=Block(RATE),
    crashes=Block(CRASH), renewals=Block(RENEWAL), shares=Block("f8"), free=Block("i4"), newly=Block("i4"),
    windows=Block(WINDOW_START), n_windows="i4", boundary_s="f8", first_measured="i8", end_measured="i8",
    occupied_gpus="f8", occupied_usd_per_s="f8",
    class_counts=Block(CLASS_COUNTS), attainments=Block("f8"),
    pools=Block(POOL), acceptances=Block("f8"), table=Block(COMPLETED),
    deliveries=Block(DELIVERED), log=Block(LOGGED),
)  # fmt: skip
"""The header of a world.

`raw_features` are the features of the due decision before they are scaled; `visible_s` is up to when it sees
what was reported where the links end.

`pending` is the slot of the request whose decision is due, `answered` the last. `resolved` counts, by reason,
decisions not executed as given. `totals_as_numbers` and `totals_as_counts` point to `totals`, to gather from.
"""

SCENARIO = Record(
    "Scenario",
    n_devices="i4", n_edges="i4", n_targets="i4", n_drafters="i4", n_places="i4", n_offered="i4",
    n_edges_offered="i4", edges_ordered="?",
    n_slots="i4", n_models="i4", n_kinds="i4", n_gammas="i4", n_stops="i4", n_batches="i4",
    n_features="i4", n_valid="i4",
    n_links="i4", n_crashes="i4", n_channels="i4", n_sites="i4", n_ranks="i4",
    heap_capacity="i4", due_capacity="i4", log_capacity="i4", table_capacity="i4", delivery_capacity="i4",
    ring="i4", gamma_max="i4", plain_chunk_tokens="i4", max_prompt_tokens="i4", max_output_tokens="i4",
    by_number="?", n_boundaries="i4", boundaries_s=Block("f8"), n_classes="i4", attainment_weight="f8",
    total="i8", arrivals="i4", n_replayed="i8", closed="?", pipelined="?", streaming="?",
    stream_waits="?", stream_chunk_tokens="i4", fanout="i4", depth="i4", offers_branches="?", token_acks="?",
    has_shares="?", replays_devices="?", replays_kinds="?", replay_random="?",
    horizon_s="f8", header_bytes="f8", bytes_per_token="f8", bytes_per_draft_token="f8", stop=STOP,
    decision_latency_s="f8", telemetry_period_s="f8", stats_weight="f8", rate_weight="f8",
    egress_usd_per_gigabyte="f8", idle_w="f8", patience_s="f8", client_timeout_s="f8", crash_detection_s="f8",
    rate_per_s="f8", replay_period_s="f8", think_s=LAW_SPEC, renewal=RENEWAL_SPEC, load=LOAD_SPEC,
    gammas=Block("i4"), stop_thresholds=Block("f8"), batch_sizes=Block("i4"),
    devices=Block(DEVICE_SPEC), drafters=Block(DRAFTER_SPEC),
    places=Block(PLACE_SPEC), targets=Block(TARGET_SPEC), channels=Block(CHANNEL_SPEC),
    kinds=Block(KIND_SPEC),
    models=Block(MODEL_SPEC), faults=Block(FAULT_SPEC), replayed=Block(REPLAYED), integers=Block("i8"),
    n_last_features="i4", feature_source=Block("i4"), feature_half=Block("f8"), feature_squashes=Block("f8"),
    n_due_fields="i4", due_source=Block("i4"),
    told="?", n_terms="i4", term_total=Block("i4"), term_counts=Block("?"), term_per_request_s=Block("f8"),
    term_per_s=Block("f8"), term_per_gpu_s=Block("f8"), term_per_usd=Block("f8"),
    image_bytes="i8", image=Block("u8"),
)  # fmt: skip
"""The header of a scenario's constants; `tables` writes it.

`gammas` has the longest draft of every entry of the action's first dimension; the last `n_stops` of them are
those with `stop_thresholds`. `feature_source` and `due_source` say which number of the view is gathered.
`term_total` says which total a reward term follows, `term_counts` that it is an integer;
`term_per_request_s`, `term_per_gpu_s`, `term_per_usd` and `term_per_s` say how fast it grows with time, for
each request in the system, for each occupied GPU, for each dollar per second that these cost, and besides.
`image` is a world before its seed is known. `told` marks the world of a controller of real systems, in which
nothing happens: its state is told.
"""

# ---------------------------------------------------------------------- controllers of real systems

ASKED = Record(
    "Asked",
    seen="f8", client="f8", kind="f8", prompt_tokens="f8", arrival_s="f8", target="f8", site="f8", at="f8",
    committed="f8", known_tokens="f8", known_commit_s="f8", first_commit_s="f8", decisions="f8", rounds="f8",
    acceptance_rate="f8", tokens_per_round="f8", last_confidence="f8", drafted_at="f8",
    drafted_branches="f8", own_jobs="f8", head_tokens="f8", idle_share="f8", has_report="f8", streams="f8",
    window="f8", lead="f8", generation="f8", started_s="f8",
    recent_gammas=Array("f8", RECENT_ROUNDS), recent_accepted=Array("f8", RECENT_ROUNDS),
)  # fmt: skip
"""What a controller of real systems knows of a request, all of it float64, so that Python packs it at once.

It is `seen` where nothing about it is unusual. Behind it stand, for each of its possible drafters, how many
of its tokens that has processed, and for each draft model the three numbers of `LEARNED`.
"""
CLIENT = Record(
    "Client", device="f8", up_s="f8", down_s="f8", edge_up_s="f8", edge_down_s="f8", seems_up="f8",
    uplink_bits_per_s="f8", downlink_bits_per_s="f8", rtt_s="f8", rtt_deviation_s="f8", rtt_sample_s="f8",
    loss="f8", jobs="f8", speed="f8",
)  # fmt: skip
"""What it knows of a client, likewise; behind it stands the mean time of a job at each of its drafters."""
SERVED_OFFER = Record("ServedOffer", target="i4", up="?")
"""A target on offer."""
CARRIED = Record(
    "Carried", key="i8", gamma="i8", batch_size="i8", placement="i8", target="i8", site="i8",
    edge_server="i8", drafter="i8", model="i8", fanout="i8", reason="i8", counter="i8", stop="i8",
)  # fmt: skip
"""A decision as it is carried out. Those with the same `key` differ in the number of the client's device; -1
is no key. `stop` is the place of its stop threshold on the list, -1 if it has none."""
SERVED_CALL = Record(
    "ServedCall", now_s="f8", stale_s="f8", doubt="f8", n="i8", chooses="i8", n_mask="i8", n_heads="i8",
    flat="i8", normalisations="i8", at_devices="i8", asked_words="i8", client_words="i8",
    scenario=Ref(SCENARIO), world=Ref(WORLD), asked=Block("f8"), clients=Block("f8"), order=Block("i8"),
    heads=Block("i8"), observations=Block("f4"), masks=Block("?"), logits=Block("f4"), chosen=Block("i8"),
    offers=Block(SERVED_OFFER), edges=Block("i4"), valid=Block("?"), carried=Block(CARRIED),
    planned="i8", groups=Block("i8"), choices=Block("i8"),
)  # fmt: skip
"""What a call of the compiled part of a controller is about: `n` requests, by their rows in `order`.

`at_devices` counts those that are decided on clients' devices. For each request there are the targets and the
edge servers on offer, and which candidates are valid: with a choice, they say how it is carried out.

If it is `planned`, decisions follow a plan, with neither observations nor masks: `groups` has the number of a
request's group by device and class of objectives, `choices` the choice of each group.
"""
