"""Flat arrays of the compiled engine: their columns, and the compilation of a scenario into them.

Four arrays hold everything: `kf` and `ki` (float64, int64) hold the constants of a scenario and are shared by
all worlds; a row of `f` and of `s` (float64, int64) holds the state of one world. Each begins with a header
of named entries; blocks of rows follow, at offsets that the header of `ki` names. So every function of the
kernel takes four plain arrays, and a world is copied by copying two rows.

Naming: `K_` header of `ki`, `KF_` header of `kf`, `O_` offsets of blocks (in the header of `ki`), `WF_` and
`WI_` header of a world; then by entity: `R` request, `J` draft job, `D` device, `S` station (drafter), `T`
target, `C` channel, `M` acceptance model, `V` view; with `I` for integers and `F` for floats, `K` for
constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance import MAX_RUN_LENGTH, IidAcceptance, MarkovAcceptance, TraceReplay
from dsd_env.control import ObservationEncoder
from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.network import fault_members
from dsd_env.network.processes import QUANTILE_Z, QuantileMarginal, log_centre
from dsd_env.scenario.schema import (
    Ar1,
    ClosedLoop,
    Constant,
    Exponential,
    Geometric,
    LogNormal,
    Poisson,
    Quantiles,
    Renewal,
    Scenario,
)
from dsd_env.scenario.variates import quantile_table
from dsd_env.sim.entities import StepTimer
from dsd_env.sim.iteration import padded_tokens
from dsd_env.sim.world import WorldBuilder
from dsd_env.workload.renewal import client_spread, longest_gap_s, modulation_steps, weibull_gap

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RING = 64
"""Reports that telemetry keeps, as in the reference."""

# --- header of ki: sizes and options
(
    K_DEVICES,
    K_EDGES,
    K_TARGETS,
    K_PLACES,
    K_OFFERED,
    K_SLOTS,
    K_GAMMA_MAX,
    K_CLOSED,
    K_CHUNK,
    K_MAX_PROMPT,
    K_MAX_OUTPUT,
    K_WARMUP,
    K_COHORT,
    K_TOTAL,
    K_KINDS,
    K_LOAD_POINTS,
    K_RANDOM_PHASE,
    K_THINK_LAW,
    K_MODELS,
    K_GAMMAS,
    K_BATCHES,
    K_FEATURES,
    K_HEAP_CAP,
    K_EVENT_CAP,
    K_TABLE_CAP,
    K_DELIVERY_CAP,
    K_R_STRIDE,
    K_R_VALID,
    K_MAX_BATCH,
    K_PIPELINED,
    K_CRASHERS,
    K_LINKS,
    K_ARRIVALS,
    K_PROCESSES,
    K_SHARES,
    K_MODULATED,
    K_TRACE,
    K_TRACE_RANDOM,
    K_TRACE_DEVICES,
    K_TRACE_KINDS,
    # --- offsets of constant blocks in ki
    O_GAMMAS,
    O_BATCHES,
    O_DKI,
    O_SKI,
    O_TKI,
    O_CKI,
    O_KINDI,
    O_MKI,
    O_POOLS,
    O_XKI,
    O_LKI,
    O_BKI,
    O_TRACE_I,
    # --- offsets of constant blocks in kf
    O_DKF,
    O_SKF,
    O_TKF,
    O_CKF,
    O_KINDF,
    O_MKF,
    O_LOAD,
    O_HALF,
    O_SQUASH,
    O_XKF,
    O_LKF,
    O_TRACE_F,
    # --- offsets of state blocks in s
    O_HEAP_I,
    O_FREE,
    O_NEWLY,
    O_REQ_I,
    O_JOB_I,
    O_DEV_I,
    O_STA_I,
    O_TGT_I,
    O_READY,
    O_RUN,
    O_CHAN_I,
    O_CRASH_I,
    O_LINK_I,
    O_BREAK_I,
    O_PROCESS_I,
    O_TABLE_I,
    O_DELIVERY_I,
    # --- offsets of state blocks in f
    O_HEAP_F,
    O_REQ_F,
    O_JOB_F,
    O_DEV_F,
    O_STA_F,
    O_TGT_F,
    O_CHAN_F,
    O_REPORTS,
    O_STATION_REPORTS,
    O_RATES,
    O_WINDOW,
    O_SCRATCH,
    O_VIEW,
    O_CRASH_F,
    O_LINK_F,
    O_BREAK_F,
    O_PROCESS_F,
    O_SHARES,
    O_TABLE_F,
    O_DELIVERY_F,
    O_EVENTS,
    K_HEADER,
) = range(104)

# --- header of kf
(
    KF_HORIZON,
    KF_HEADER_BYTES,
    KF_BYTES_PER_TOKEN,
    KF_BYTES_PER_DRAFT,
    KF_CONFIDENCE,
    KF_LATENCY,
    KF_PERIOD,
    KF_WEIGHT,
    KF_RATE_WEIGHT,
    KF_EGRESS,
    KF_IDLE_W,
    KF_RATE_PER_S,
    KF_LOAD_PERIOD,
    KF_PATIENCE,
    KF_CLIENT_TIMEOUT,
    KF_DETECTION,
    KF_GAP_POWER,
    KF_GAP_SCALE,
    KF_GAP_LIMIT,
    KF_CLIENT_SPREAD,
    KF_BURSTY_FRACTION,
    KF_BURSTY_POWER,
    KF_BURSTY_SCALE,
    KF_RATE_SIGMA,
    KF_RATE_RHO,
    KF_RATE_STEP,
    KF_RATE_PERIOD,
    KF_TRACE_PERIOD,
    KF_THINK,
    KF_HEADER,
) = (*range(29), 32)

# --- header of s
(
    WI_STATUS,
    WI_ERROR,
    WI_SEED,
    WI_RECORD,
    WI_PRICE,
    WI_HEAP_N,
    WI_SEQUENCE,
    WI_FREE_N,
    WI_NEWLY_N,
    WI_PENDING,
    WI_ANSWERED,
    WI_REASON,
    WI_ARRIVED,
    WI_IN_SYSTEM,
    WI_COHORT_LEFT,
    WI_COMPLETED,
    WI_GOOD,
    WI_VIOLATIONS,
    WI_OUTPUT_TOKENS,
    WI_DRAFTED,
    WI_ACCEPTED,
    WI_VERIFIED,
    WI_ROUND_TOKENS,
    WI_TICKS,
    WI_ARRIVALS_SEEN,
    WI_TOKENS_SEEN,
    WI_ORDINAL,
    WI_TRACE_FIRST,
    WI_EVENTS,
    WI_TABLE_N,
    WI_TABLE_DROPPED,
    WI_DELIVERIES,
    WI_NO_DRAFTER,
    WI_CLIPPED,
    WI_DECISIONS,
    WI_EVENTS_DONE,
    WI_INVALID,
    WI_ARRIVAL_KEY,
    WI_TARGET_DOWN,
    WI_DISCARDED,
    WI_TAKEOVERS,
    WI_INTERRUPTIONS,
    WI_LATE,
    WI_DUPLICATES,
    WI_PREEMPTIONS,
    WI_HEADER,
) = range(46)

# --- header of f. The first seven are the totals behind the reward terms, in their order.
(
    WF_REQUEST_SECONDS,
    WF_TPOT_COST,
    WF_CLOUD_USD,
    WF_ENERGY,
    WF_BYTES,
    WF_GPU_S,
    WF_ACCRUED,
    WF_NOW,
    WF_LOAD_OFFSET,
    WF_OPEN_ARRIVAL,
    WF_TRACE_OFFSET,
    WF_ARRIVAL_RATE,
    WF_TOKEN_RATE,
    WF_HEADER,
) = range(14)

N_TOTALS = 21
"""Numbers in a copy of the totals, in the order of :class:`dsd_env.sim.metrics.Totals`."""

# --- request
(
    RI_NUMBER,
    RI_UID,
    RI_DEVICE,
    RI_KIND,
    RI_PROMPT,
    RI_OUTPUT,
    RI_COMMITTED,
    RI_TARGET,
    RI_SITE,
    RI_AT,
    RI_DRAFTED_AT,
    RI_WARMING,
    RI_WAITS_WARM,
    RI_OWN_JOBS,
    RI_DECISIONS,
    RI_ROUNDS,
    RI_VERIFIES,
    RI_DRAFTED,
    RI_ACCEPTED,
    RI_ROUND_TOKENS,
    RI_KV_RESERVED,
    RI_ADMISSION,
    RI_PC,
    RI_AFTER,
    RI_TO_SITE,
    RI_TO,
    RI_HOP_SITE,
    RI_HOP,
    RI_GAMMA,
    RI_BATCH,
    RI_RES_SITE,
    RI_STATION,
    RI_EDGE,
    RI_RES_TARGET,
    RI_JOB_KIND,
    RI_JOB_GAMMA,
    RI_JOB_CHUNK,
    RI_JOB_PREFILL,
    RI_JOB_PREFILLED,
    RI_JOB_WARM,
    RI_JOB_SEQUENCE,
    RI_NEXT,
    RI_HAS_REPORT,
    RI_DONE,
    RI_IS_NEW,
    RI_DRAFTS,
    RI_MOVES,
    RI_EPOCH,
    RI_SERVED,
    RI_EXCHANGE,
    RI_PATIENCE_SERVED,
    RI_PATIENCE_SET,
    RI_RESEND_EXCHANGE,
    RI_GUESSED,
    RI_CHAIN_START,
    RI_AHEAD,
    RI_HEAD_STATION,
    RI_HEAD_CONTEXT,
    RI_HEAD_TOKENS,
    RI_RECENT_GAMMA,
) = range(60)
RI_RECENT_ACCEPTED = RI_RECENT_GAMMA + RECENT_ROUNDS
RI_CHAIN = RI_RECENT_ACCEPTED + RECENT_ROUNDS
CHAIN = 3
"""Integers per acceptance model of a request: entry, its first position, entries picked."""

(
    RF_ARRIVAL,
    RF_SLO_TTFT,
    RF_SLO_TPOT,
    RF_FIRST_COMMIT,
    RF_LAST_COMMIT,
    RF_FIRST_DELIVERY,
    RF_LAST_DELIVERY,
    RF_DELAY_CAUSED,
    RF_ACCEPTANCE,
    RF_TOKENS_PER_ROUND,
    RF_CONFIDENCE,
    RF_SENT,
    RF_SERVED,
    RF_MOVE_SIZE,
    RF_QUEUED,
    RF_HEAD_DONE,
    RF_PATIENCE_AT,
    RF_RESEND_AT,
    RF_RESEND_WAIT,
    RF_RESEND_PAYLOAD,
    RF_RESEND_TIMER,
    RF_REPORT,
) = range(22)

# --- report of a target
(
    P_TIME,
    P_QUEUED,
    P_RUNNING,
    P_RESIDENT,
    P_REMAINING,
    P_ITERATION,
    P_KV,
    P_BATCH,
    P_TOKEN,
    P_UP,
    REPORT,
) = range(11)
RF_STRIDE = RF_REPORT + REPORT

# --- draft job (three per request: its round's, its drafter's prefill, what is drafted ahead)
JOBS = 3
ROUND_JOB, WARM_JOB, AHEAD_JOB = range(JOBS)
JOB_ENDED, JOB_QUEUED, JOB_ACTIVE = range(3)
(
    JI_GAMMA,
    JI_LAG,
    JI_CONTEXT,
    JI_STATION,
    JI_NEXT,
    JI_STATE,
    JI_RUN,
    JI_ORDER,
    JI_HEAD_CONTEXT,
    JI_HEAD_DRAFTS,
    JI_STRIDE,
) = range(11)
JF_START, JF_DURATION, JF_FIRST, JF_HEAD_DONE, JF_STRIDE = range(5)

# --- device
DI_ORDINAL, DI_DOWN, DI_STRIDE = range(3)
DF_RTT, DF_DEVIATION, DF_SAMPLE, DF_LOSS, DF_STRIDE = range(5)
DKI_HAS_EDGE_LINK, DKI_STRIDE = range(2)
DKF_RADIO, DKF_UP, DKF_DOWN, DKF_STRIDE = range(4)

# --- station: a drafter on a device, on an edge server or at a target
NO_DRAFTER, DRAFTS_ALONE, DRAFTS_SHARED = range(3)
SI_ACTIVE, SI_CONTEXT, SI_QUEUED, SI_HEAD, SI_TAIL, SI_DOWN, SI_STARTS, SI_STRIDE = range(8)
SF_FACTOR, SF_K_BW, SF_K_MULTI, SF_K_LAT, SF_MEAN_JOB, SF_BUSY_SINCE, SF_STRIDE = range(7)
SKI_MODE, SKI_TABLE, SKI_LENGTH, SKI_PLACES, SKI_KV, SKI_MODEL, SKI_STRIDE = range(7)
(
    SKF_K_BW,
    SKF_K_MULTI,
    SKF_K_LAT,
    SKF_BUSY_W,
    SKF_IDLE_W,
    SKF_GPUS,
    SKF_PRICE,
    SKF_LOW,
    SKF_HIGH,
    SKF_STRIDE,
) = range(10)

# --- target
(
    TI_BATCH,
    TI_SETTER,
    TI_SETTER_NUMBER,
    TI_WAIT_HEAD,
    TI_WAIT_TAIL,
    TI_WAITING,
    TI_READY,
    TI_RUNNING,
    TI_KV,
    TI_RESIDENT,
    TI_ITERATIONS,
    TI_JOINED,
    TI_IDLE,
    TI_DOWN,
    TI_ADMISSIONS,
    TI_STRIDE,
) = range(16)
(
    TF_BUSY,
    TF_START,
    TF_END,
    TF_EXPECTED_END,
    TF_ITERATION,
    TF_CHECK,
    TF_OLDEST,
    TF_TOKENS,
    TF_STRIDE,
) = range(9)
(
    TKI_TABLE,
    TKI_LENGTH,
    TKI_MAX_BATCH,
    TKI_INITIAL_BATCH,
    TKI_KV,
    TKI_CHUNK,
    TKI_PREFILL_FIRST,
    TKI_SHORTEST,
    TKI_PREEMPTS,
    TKI_PADDED,
    TKI_STRIDE,
) = range(11)
(
    TKF_K_BW,
    TKF_K_MULTI,
    TKF_K_LAT,
    TKF_WAIT,
    TKF_SIGMA,
    TKF_STRAGGLER_SHARE,
    TKF_STRAGGLER_FACTOR,
    TKF_GPUS,
    TKF_PRICE,
    TKF_BUSY_W,
    TKF_IDLE_W,
    TKF_PREFILL_TOKEN,
    TKF_STRIDE,
) = range(13)

# --- channel: four per device (up, down, edge up, edge down), then two per edge server and target
CI_MESSAGES, CI_JITTER_KEY, CI_LOSS_KEY, CI_LOST, CI_STRIDE = range(5)
CF_ONE_WAY, CF_FREE, CF_LAST, CF_STRIDE = range(4)
CKI_NUMBER, CKI_LINK, CKI_STRIDE = range(3)
(
    CKF_ONE_WAY,
    CKF_LOW,
    CKF_HIGH,
    CKF_S_PER_BYTE,
    CKF_MEDIAN,
    CKF_SIGMA,
    CKF_LOSS,
    CKF_LOG_LOSS,
    CKF_RTO,
    CKF_STRIDE,
) = range(10)

# --- channel that changes or fails: what its rate and its delay do, and the breaks that faults make in it.
# A Gaussian process is a block of constants (period, centre, and for each of its one or two parts the spread,
# the correlation and the step of the innovation), two integers and four floats of state.
GK_PERIOD, GK_CENTRE, GK_PARTS = range(3)
GK_SIGMA, GK_RHO, GK_STEP, GK_PART = range(4)
GK_STRIDE = GK_PARTS + 2 * GK_PART
GI_INDEX, GI_KEY, GI_STRIDE = range(3)
GF_VALUE, GF_UNTIL, GF_X, GF_STRIDE = (0, 1, 2, 4)
# A distribution by quantiles: spread of the variate, the quantiles' normal scores and logarithms, slopes.
MK_SPREAD, MK_Z, MK_LOG, MK_SLOPE, MK_STRIDE = (0, 1, 8, 15, 21)
(
    LKI_NUMBER,
    LKI_DIRECTION,
    LKI_HAS_RATE,
    LKI_PARTS,
    LKI_MARGINAL,
    LKI_OUTAGES,
    LKI_DELAY,
    LKI_PIECES,
    LKI_TIMES,
    LKI_BITS,
    LKI_SERIES_DELAY,
    LKI_RANDOM_START,
    LKI_BREAKS,
    LKI_N_BREAKS,
    LKI_STRIDE,
) = range(15)
LKF_NOMINAL, LKF_MEAN_UP, LKF_MEAN_DOWN, LKF_BANDWIDTH = range(4)
LKF_DELAY = LKF_BANDWIDTH + GK_STRIDE
LKF_STRIDE = LKF_DELAY + GK_STRIDE
LI_BANDWIDTH, LI_DELAY, LI_OUTAGE, LI_OUTAGE_KEY, LI_PIECE, LI_DELAY_PIECE, LI_STRIDE = (0, 2, 4, 5, 6, 7, 8)
LF_BANDWIDTH, LF_DELAY = 0, GF_STRIDE
(
    LF_OUTAGE_START,
    LF_OUTAGE_END,
    LF_BEGUN,
    LF_UNTIL,
    LF_DELAY_BEGUN,
    LF_DELAY_UNTIL,
    LF_SAMPLE,
    LF_SAMPLE_LEFT,
    LF_BUSY_FROM,
    LF_BITS,
    LF_STRIDE,
) = range(2 * GF_STRIDE, 2 * GF_STRIDE + 11)
BKI_FAULT, BKI_STRIDE = range(2)
BREAK_INDEX, BREAK_STRIDE = range(2)
BREAK_START, BREAK_END, BREAK_FLOATS = range(3)

# --- what fails: first those that crash (devices, edge servers, targets), then those whose links do
SITE_DEVICE, SITE_EDGE, SITE_TARGET = range(3)
XKI_NUMBER, XKI_SITE, XKI_ENTITY, XKI_LAW, XKI_TIMES, XKI_N_TIMES, XKI_STRIDE = range(7)
XKF_INTERVAL, XKF_FACTOR, XKF_DURATION, XKF_STRIDE = (0, 1, 2, 6)
CRASH_INDEX, CRASH_DOWN, CRASH_STRIDE = range(3)
CRASH_END = 1
"""Floats of the state of one that crashes: the end of its window."""

# --- open arrivals: which, the state of a renewal process, and the requests of a replayed trace
POISSON, RENEWAL, CLIENT_RENEWALS, REPLAY = range(4)
PROCI_ORDINAL, PROCI_PERIOD, PROCI_GAP_KEY, PROCI_RATE_KEY, PROCI_STRIDE = range(5)
(
    PROCF_RATE,
    PROCF_POWER,
    PROCF_SCALE,
    PROCF_ARRIVAL,
    PROCF_FIRST,
    PROCF_X,
    PROCF_FACTOR,
    PROCF_LEFT,
    PROCF_STRIDE,
) = range(9)
TRACE_PROMPT, TRACE_OUTPUT, TRACE_DEVICE, TRACE_KIND, TRACE_STRIDE = range(5)

# --- kind of request, and laws of variates
KINDI_PROMPT_LAW, KINDI_OUTPUT_LAW, KINDI_STRIDE = range(3)
LAW = 4
(
    KINDF_BOUND,
    KINDF_TTFT,
    KINDF_TPOT,
    KINDF_PROMPT,
    KINDF_OUTPUT,
    KINDF_CORRELATION,
    KINDF_REST,
    KINDF_STRIDE,
) = (0, 1, 2, 3, 7, 11, 12, 13)
LAW_CONSTANT, LAW_EXPONENTIAL, LAW_GEOMETRIC, LAW_LOGNORMAL, LAW_QUANTILES = range(5)

# --- acceptance model
TRACE_MATCHES, TRACE_RUNS, IID, MARKOV = range(4)
(
    MKI_TYPE,
    MKI_OFFSETS,
    MKI_ACCEPT,
    MKI_TOP1,
    MKI_RUNS,
    MKI_KIND,
    MKI_SAME,
    MKI_POOLS,
    MKI_LONGEST,
    MKI_STRIDE,
) = range(10)
MKF_LOW, MKF_HIGH, MKF_FIRST, MKF_FLIP, MKF_CONFIDENCE, MKF_STRIDE = range(6)

# --- view of a decision
MOST_FEATURES = 1024
"""More than an observation can have; see `MAX_PLACEMENTS` of the schema."""
(
    V_NOW,
    V_REQUEST,
    V_DEVICE,
    V_COUNTER,
    V_ADMISSION,
    V_SITE,
    V_PROMPT,
    V_COMMITTED,
    V_AGE,
    V_SLO_TTFT,
    V_SLO_TPOT,
    V_TTFT,
    V_TPOT,
    V_ROUNDS,
    V_ACCEPTANCE,
    V_TOKENS_PER_ROUND,
    V_RECENT_GAMMA,
) = range(17)
V_RECENT_ACCEPTED = V_RECENT_GAMMA + RECENT_ROUNDS
V_CONFIDENCE = V_RECENT_ACCEPTED + RECENT_ROUNDS
V_AHEAD = V_CONFIDENCE + 1
(
    V_LINK_UP,
    V_RTT,
    V_DEVIATION,
    V_UP,
    V_DOWN,
    V_LOSS,
    V_LINK_AGE,
    V_AVAILABLE,
    V_STEP,
    V_LAG,
    V_JOBS,
    V_ACTIVE,
    V_ARRIVALS,
    V_TOKENS,
    V_TARGETS,
) = range(V_AHEAD + 1, V_AHEAD + 16)
(
    VT_INDEX,
    VT_QUEUED,
    VT_RUNNING,
    VT_RESIDENT,
    VT_REMAINING,
    VT_ITERATION,
    VT_KV,
    VT_BATCH,
    VT_WAIT,
    VT_TOKEN,
    VT_PREFILL_TOKEN,
    VT_AGE,
    VT_UP,
    VT_STRIDE,
) = range(14)
(
    VC_SITE,
    VC_EDGE,
    VC_OFFERED,
    VC_VALID,
    VC_CURRENT,
    VC_SAME,
    VC_STEP,
    VC_CATCH_UP,
    VC_WAIT,
    VC_RTT,
    VC_HANDOVER,
    VC_LAG,
    VC_MOVE,
    VC_SHARES,
    VC_STRIDE,
) = range(15)

# --- table of completed requests, delivery log, event log
(
    XI_NUMBER,
    XI_UID,
    XI_DEVICE,
    XI_KIND,
    XI_PROMPT,
    XI_OUTPUT,
    XI_DELIVERED,
    XI_ROUNDS,
    XI_VERIFIES,
    XI_DRAFTED,
    XI_ACCEPTED,
    XI_STRIDE,
) = range(12)
XF_ARRIVAL, XF_FIRST, XF_LAST, XF_COMPLETED, XF_SLO_TTFT, XF_SLO_TPOT, XF_STRIDE = range(7)
EVENT = 5

# --- what a world is doing, and what can go wrong
DUE, TERMINATED, TRUNCATED, FAILED = range(4)
(
    OK,
    HEAP_FULL,
    SLOTS_FULL,
    EVENTS_FULL,
    TABLE_RANGE,
    DELIVERIES_FULL,
) = range(6)
ADVICE = {
    HEAP_FULL: "the event queue is full; give the engine a larger `heap_events`",
    SLOTS_FULL: "too many requests in the system at once; give the engine a larger `max_active_requests`",
    EVENTS_FULL: "the event log is full between two decisions; give the engine a larger `log_events`",
    TABLE_RANGE: "an iteration processes more tokens than its latency table holds; lower max_batch_size, "
    "or spread requests over more targets",
    DELIVERIES_FULL: "the log of deliveries is full; this is a bug, please report it",
}


@dataclass(frozen=True)
class Layout:
    """A scenario compiled to flat arrays.

    Attributes:
        scenario: The scenario.
        kf: Constants, float64. Nobody writes to them, but they are not marked so: Numba takes far longer to
            recognise arrays that are.
        ki: Constants and offsets, int64; likewise.
        n_float: Length of a world's row of floats.
        n_int: Length of a world's row of integers.
        n_features: Length of an observation.
        n_mask: Length of an action mask.
    """

    scenario: Scenario
    kf: FloatArray
    ki: IntArray
    n_float: int
    n_int: int
    n_features: int
    n_mask: int

    def __deepcopy__(self, memo: object) -> Layout:
        # Nobody writes to it, so that copies of a world can share it.
        return self

    @property
    def bytes_per_world(self) -> int:
        """Bytes of address space per world; the tables at the end are touched only as far as used."""
        return 8 * (self.n_float + self.n_int)


class _Pool:
    """Appends blocks of numbers and remembers where each begins."""

    def __init__(self, header: int, dtype: type) -> None:
        self._blocks: list[NDArray[Any]] = [np.zeros(header, dtype=dtype)]
        self._dtype = dtype
        self.size = header

    def add(self, values: object) -> int:
        block: NDArray[Any] = np.asarray(values, dtype=self._dtype).ravel()
        at = self.size
        self._blocks.append(block)
        self.size += len(block)
        return at

    def array(self) -> NDArray[np.generic]:
        return np.concatenate(self._blocks)


def compile_scenario(
    scenario: Scenario,
    builder: WorldBuilder | None = None,
    *,
    max_active_requests: int | None = None,
    heap_events: int | None = None,
    log_events: int = 0,
    keep_deliveries: bool = True,
) -> Layout:
    """Compile a scenario into flat arrays.

    Args:
        scenario: The scenario.
        builder: Builder of its worlds, to load profiles and traces only once.
        max_active_requests: Most requests in the system at once. Default: twice the number of devices and 64
            more in a closed loop, where it cannot be reached but by drafters that never catch up; 4,096 in an
            open system.
        heap_events: Most scheduled events.
        log_events: Room for recorded events between two decisions; 0 records none.
        keep_deliveries: Keep when tokens arrive, which the metrics of inter-token latency need.

    Raises:
        NotImplementedError: An acceptance source is one that only the reference engine knows.
    """
    return _Compiler(
        scenario,
        builder or WorldBuilder(scenario),
        max_active_requests,
        heap_events,
        log_events,
        keep_deliveries,
    ).layout()


class _Compiler:
    """Fills the arrays of one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        builder: WorldBuilder,
        max_active_requests: int | None,
        heap_events: int | None,
        log_events: int,
        keep_deliveries: bool,
    ) -> None:
        self.scenario = scenario
        self.builder = builder
        self.world = builder.build(0)
        self.n_devices = len(self.world.devices)
        self.n_edges = len(self.world.edges)
        self.n_targets = len(self.world.targets)
        closed = isinstance(scenario.workload.arrivals, ClosedLoop)
        self.slots = max_active_requests or (2 * self.n_devices + 64 if closed else 4096)
        members = fault_members(scenario)
        self.crashers = [member for member in members if member.crashes]
        self.faults = self.crashers + [member for member in members if not member.crashes]
        # Per request: its wait, its drafter's prefill, a draft ahead, two timers, messages in vain.
        self.heap = heap_events or (
            8 * self.slots + 64 * self.n_targets + self.n_devices + len(self.crashers) + 64
        )
        self.log_events = log_events
        self.keep_deliveries = keep_deliveries
        self.header = np.zeros(K_HEADER, dtype=np.int64)
        self.ints = _Pool(K_HEADER, np.int64)
        self.floats = _Pool(KF_HEADER, np.float64)
        self.models = {name: number for number, name in enumerate(scenario.acceptance)}
        self.tables: dict[int, int] = {}
        self.padded: dict[tuple[tuple[int, ...], int], int] = {}
        self.links_i: list[list[int]] = []
        self.links_f: list[list[float]] = []
        self.breaks: list[list[int]] = []

    def layout(self) -> Layout:
        self._sizes()
        self._devices()
        self._stations()
        self._targets()
        self._channels()
        self._workload()
        self._acceptance()
        self._faults()
        encoder = ObservationEncoder(self.scenario.n_placements)
        self.header[K_FEATURES] = len(encoder.features)
        self.header[O_HALF] = self.floats.add([feature.half for feature in encoder.features])
        self.header[O_SQUASH] = self.floats.add(
            [0.0 if feature.scale == "fraction" else 1.0 for feature in encoder.features]
        )
        n_int, n_float = self._state()
        ki = self.ints.array().astype(np.int64)
        ki[:K_HEADER] = self.header
        kf = self.floats.array().astype(np.float64)
        self._float_header(kf)
        actions = self.scenario.actions
        n_mask = len(actions.gammas) + len(actions.batch_sizes) + self.scenario.n_placements
        return Layout(self.scenario, kf, ki, n_float, n_int, len(encoder.features), n_mask)

    def _sizes(self) -> None:
        scenario, h = self.scenario, self.header
        h[K_DEVICES], h[K_EDGES], h[K_TARGETS] = self.n_devices, self.n_edges, self.n_targets
        h[K_PLACES] = scenario.n_placements
        h[K_OFFERED] = min(scenario.actions.targets_offered, self.n_targets)
        h[K_SLOTS] = self.slots
        h[K_GAMMA_MAX] = max(scenario.actions.gammas)
        h[K_CLOSED] = isinstance(scenario.workload.arrivals, ClosedLoop)
        h[K_CHUNK] = scenario.protocol.plain_chunk_tokens
        h[K_MAX_PROMPT] = scenario.workload.max_prompt_tokens
        h[K_MAX_OUTPUT] = scenario.workload.max_output_tokens
        h[K_WARMUP] = scenario.episode.warmup_requests
        h[K_COHORT] = scenario.episode.warmup_requests + scenario.episode.requests
        total = scenario.episode.total_requests
        if self.builder.schedule is not None:
            total = self.builder.schedule.total(total)
        h[K_TOTAL] = -1 if total is None else total
        h[K_KINDS] = len(scenario.workload.kinds)
        h[K_MODELS] = len(self.models)
        h[K_GAMMAS], h[K_BATCHES] = len(scenario.actions.gammas), len(scenario.actions.batch_sizes)
        h[O_GAMMAS] = self.ints.add(scenario.actions.gammas)
        h[O_BATCHES] = self.ints.add(scenario.actions.batch_sizes)
        h[K_HEAP_CAP] = self.heap
        h[K_EVENT_CAP] = self.log_events
        h[K_PIPELINED] = scenario.protocol.kind == "pipelined"
        h[K_CRASHERS] = len(self.crashers)
        h[K_MAX_BATCH] = max(target.config.max_batch_size for target in self.world.targets)

    def _float_header(self, kf: FloatArray) -> None:
        scenario = self.scenario
        protocol = scenario.protocol
        kf[KF_HORIZON] = scenario.episode.horizon_s
        kf[KF_HEADER_BYTES] = protocol.header_bytes
        kf[KF_BYTES_PER_TOKEN] = protocol.bytes_per_token
        kf[KF_BYTES_PER_DRAFT] = protocol.bytes_per_draft_token
        # The reference compares it with float32 probabilities, so in float32.
        kf[KF_CONFIDENCE] = float(np.float32(protocol.confidence_stop))
        if protocol.confidence_stop > 0.0 and kf[KF_CONFIDENCE] == 0.0:
            kf[KF_CONFIDENCE] = -1.0
        kf[KF_LATENCY] = protocol.decision_latency_s
        kf[KF_PATIENCE] = protocol.patience_s or 0.0
        kf[KF_CLIENT_TIMEOUT] = protocol.client_timeout_s or 0.0
        kf[KF_DETECTION] = protocol.crash_detection_s
        kf[KF_PERIOD] = protocol.telemetry_period_s
        kf[KF_WEIGHT] = protocol.stats_window
        kf[KF_RATE_WEIGHT] = min(1.0, protocol.telemetry_period_s / 2.0)
        kf[KF_EGRESS] = scenario.egress_usd_per_gigabyte
        kf[KF_IDLE_W] = self.world.idle_w
        arrivals = scenario.workload.arrivals
        if isinstance(arrivals, ClosedLoop):
            kf[KF_THINK : KF_THINK + LAW] = _law(arrivals.think_s)[1]
        elif isinstance(arrivals, Poisson):
            kf[KF_RATE_PER_S] = arrivals.rate_per_s
        elif isinstance(arrivals, Renewal):
            kf[KF_RATE_PER_S] = arrivals.rate_per_s
            kf[KF_GAP_POWER], kf[KF_GAP_SCALE] = weibull_gap(arrivals.cv)
            kf[KF_GAP_LIMIT] = longest_gap_s(scenario)
            kf[KF_CLIENT_SPREAD] = client_spread(arrivals)
            if arrivals.bursty is not None:
                kf[KF_BURSTY_FRACTION] = arrivals.bursty.fraction
                kf[KF_BURSTY_POWER], kf[KF_BURSTY_SCALE] = weibull_gap(arrivals.bursty.cv)
            if arrivals.modulation is not None:
                kf[KF_RATE_SIGMA : KF_RATE_PERIOD + 1] = modulation_steps(arrivals.modulation)
        if self.builder.schedule is not None:
            kf[KF_TRACE_PERIOD] = self.builder.schedule.period_s
        kf[KF_LOAD_PERIOD] = scenario.workload.load.period_s

    def _table(self, timer: StepTimer) -> int:
        """Put a latency table into the floats, once."""
        at = self.tables.get(id(timer))
        if at is None:
            at = self.tables[id(timer)] = self.floats.add(timer.compute_s)
        return at

    def _devices(self) -> None:
        integers, floats = [], []
        for config in self.scenario.devices.values():
            link = self.scenario.links[config.link]
            for _ in range(config.count):
                integers.append([config.edge_link is not None])
                floats.append(
                    [config.radio_joules_per_byte, link.uplink_bits_per_s, link.downlink_bits_per_s]
                )
        self.header[O_DKI] = self.ints.add(integers)
        self.header[O_DKF] = self.floats.add(floats)

    def _stations(self) -> None:
        integers: list[list[int]] = []
        floats: list[list[float]] = []

        def add(
            timer: StepTimer | None, mode: int, places: int, kv: int, model: str, numbers: list[float]
        ) -> None:
            if timer is None or mode == NO_DRAFTER:
                integers.append([NO_DRAFTER, 0, 0, 1, 0, 0])
                floats.append([0.0] * SKF_STRIDE)
                return
            integers.append([mode, self._table(timer), len(timer.compute_s), places, kv, self.models[model]])
            floats.append([timer.k_bw_s, timer.k_multi_s, timer.k_lat_s, *numbers])

        bases = self.builder._device_timers
        for config, base in zip(self.scenario.devices.values(), bases, strict=True):
            for _ in range(config.count):
                drafter, power = config.drafter, config.power
                if drafter is None:
                    add(None, NO_DRAFTER, 1, 0, "", [])
                else:
                    add(
                        base,
                        DRAFTS_ALONE,
                        drafter.concurrency,
                        drafter.kv_capacity_tokens,
                        drafter.model,
                        [power.busy_w, power.idle_w, 0.0, 0.0, *config.speed_spread],
                    )
        models = self.world.station_models
        for edge in self.world.edges:
            add(
                edge.timer,
                DRAFTS_ALONE,
                edge.concurrency,
                edge.kv_capacity_tokens,
                models[edge.number],
                [edge.power.busy_w, edge.power.idle_w, edge.gpus, edge.price_usd_per_gpu_hour, 1.0, 1.0],
            )
        for target in self.world.targets:
            number = self.world.colocated_number(target.number)
            station = target.station
            if station is not None:
                power = station.power
                add(
                    station.timer,
                    DRAFTS_ALONE,
                    station.concurrency,
                    station.kv_capacity_tokens,
                    models[number],
                    [power.busy_w, power.idle_w, station.gpus, station.price_usd_per_gpu_hour, 1.0, 1.0],
                )
            elif target.colocated is not None:
                add(target.colocated, DRAFTS_SHARED, 1, 0, models[number], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
            else:
                add(None, NO_DRAFTER, 1, 0, "", [])
        self.header[O_SKI] = self.ints.add(integers)
        self.header[O_SKF] = self.floats.add(floats)

    def _targets(self) -> None:
        integers, floats = [], []
        for target in self.world.targets:
            config, timer = target.config, target.timer
            integers.append(
                [
                    self._table(timer),
                    len(timer.compute_s),
                    config.max_batch_size,
                    config.initial_batch_size,
                    config.kv_capacity_tokens,
                    config.prefill_chunk_tokens,
                    config.order == "prefill_first",
                    config.within_class == "shortest_first",
                    config.kv_policy == "preempt",
                    self._padded(config.graph_batch_tokens, len(timer.compute_s)),
                ]
            )
            floats.append(
                [
                    timer.k_bw_s,
                    timer.k_multi_s,
                    timer.k_lat_s,
                    config.max_batch_wait_s,
                    config.iteration_noise_sigma,
                    config.straggler_share,
                    config.straggler_factor,
                    config.gpus,
                    config.price_usd_per_gpu_hour,
                    config.power.busy_w,
                    config.power.idle_w,
                    target.prefill_token_s,
                ]
            )
        self.header[O_TKI] = self.ints.add(integers)
        self.header[O_TKF] = self.floats.add(floats)

    def _padded(self, captured: tuple[int, ...], length: int) -> int:
        """Put a table from new tokens to the captured number into the integers; 0 if there is none."""
        if not captured:
            return 0
        key = (captured, length)
        if key not in self.padded:
            self.padded[key] = self.ints.add([padded_tokens(n, captured) for n in range(length)])
        return self.padded[key]

    def _channels(self) -> None:
        integers: list[list[int]] = []
        floats: list[list[float]] = []

        def add(name: str | None, number: int, site: str, entity: int) -> None:
            if name is None:
                for _ in range(2):
                    integers.append([number, -1])
                    floats.append([0.0] * CKF_STRIDE)
                return
            link = self.scenario.links[name]
            hitting = [
                row
                for row, member in enumerate(self.faults)
                if (member.site, member.entity) == (site, entity)
            ]
            hitting.sort(key=lambda row: self.faults[row].number)
            for direction, bits_per_s in enumerate((link.uplink_bits_per_s, link.downlink_bits_per_s)):
                loss = link.loss_probability
                integers.append([number, self._link(name, number, direction, bits_per_s, hitting)])
                floats.append(
                    [
                        link.one_way_s,
                        *link.one_way_spread,
                        8.0 / bits_per_s,
                        link.jitter.median_s,
                        link.jitter.sigma,
                        loss,
                        math.log(loss) if loss > 0.0 else 0.0,
                        link.rto_s,
                    ]
                )

        number = 0
        for config in self.scenario.devices.values():
            for _ in range(config.count):
                add(config.link, 2 * number, "device", number)
                add(config.edge_link, 2 * number + 1, "device", number)
                number += 1
        number *= 2
        server = 0
        for edge in self.scenario.edge_servers.values():
            for _ in range(edge.count):
                for _ in range(self.n_targets):
                    add(edge.backhaul, number, "edge", server)
                    number += 1
                server += 1
        self.n_channels = len(integers)
        self.n_links, self.n_breaks = len(self.links_i), len(self.breaks)
        self.header[K_LINKS] = self.n_links
        self.header[O_LKI] = self.ints.add(self.links_i)
        self.header[O_LKF] = self.floats.add(self.links_f)
        self.header[O_BKI] = self.ints.add(self.breaks)
        self.header[O_CKI] = self.ints.add(integers)
        self.header[O_CKF] = self.floats.add(floats)

    def _link(self, name: str, number: int, direction: int, bits_per_s: float, faults: list[int]) -> int:
        """Add what a channel does over time; return its row, or -1 if it does not change."""
        link, series = self.scenario.links[name], self.builder.series.get(name)
        has_rate = bool(link.bandwidth or link.outages or series or faults)
        if not has_rate and link.delay is None:
            return -1
        bandwidth, delay, outages = link.bandwidth, link.delay, link.outages
        parts = () if bandwidth is None else bandwidth.parts
        pieces = times = bits = series_delay = 0
        if series is not None:
            pieces, times = len(series.extra_delay_s), self._series(series.times_s)
            bits = self._series((series.uplink_bits_per_s, series.downlink_bits_per_s)[direction])
            if any(series.extra_delay_s):
                series_delay = self._series(series.extra_delay_s)
        marginal = 0
        if bandwidth is not None and bandwidth.quantiles is not None:
            law = QuantileMarginal(bandwidth.quantiles, parts)
            marginal = self.floats.add([law.spread, *QUANTILE_Z, *law.logs, *law.slopes])
        self.links_i.append(
            [
                number,
                direction,
                has_rate,
                len(parts),
                marginal,
                outages is not None,
                delay is not None,
                pieces,
                times,
                bits,
                series_delay,
                link.replay is not None and link.replay.random_start,
                len(self.breaks),
                len(faults),
            ]
        )
        self.breaks += [[row] for row in faults]
        factor = [0.0] * GK_STRIDE
        if bandwidth is not None:
            factor = _gaussian(bandwidth.period_s, log_centre(parts), parts)
        slow = [0.0] * GK_STRIDE
        if delay is not None:
            slow = _gaussian(delay.period_s, delay.median_s, delay.parts)
        up_s, down_s = (0.0, 0.0) if outages is None else (outages.mean_up_s, outages.mean_down_s)
        self.links_f.append([bits_per_s, up_s, down_s, *factor, *slow])
        return len(self.links_i) - 1

    def _series(self, values: tuple[float, ...]) -> int:
        """Put a column of a recorded series into the floats, once."""
        if id(values) not in self.tables:
            self.tables[id(values)] = self.floats.add(values)
        return self.tables[id(values)]

    def _workload(self) -> None:
        workload = self.scenario.workload
        kinds = list(workload.kinds.values())
        total = sum(kind.weight for kind in kinds)
        integers, floats = [], []
        for number, kind in enumerate(kinds):
            bound = sum(other.weight for other in kinds[: number + 1]) / total
            slo = self.scenario.slo[kind.slo]
            prompt, output = self._length(kind.prompt_tokens), self._length(kind.output_tokens)
            integers.append([prompt[0], output[0]])
            correlation = kind.length_correlation
            rest = math.sqrt(1.0 - correlation * correlation)
            floats.append([bound, slo.ttft_s, slo.tpot_s, *prompt[1], *output[1], correlation, rest])
        self.header[O_KINDI] = self.ints.add(integers)
        self.header[O_KINDF] = self.floats.add(floats)
        load = workload.load
        points = [(phase * load.period_s, value) for phase, value in load.points]
        points.append((load.period_s, load.points[0][1]))
        self.header[K_LOAD_POINTS] = len(points)
        self.header[K_RANDOM_PHASE] = load.random_phase
        self.header[O_LOAD] = self.floats.add([x for point in points for x in point])
        arrivals, h = workload.arrivals, self.header
        if isinstance(arrivals, ClosedLoop):
            h[K_THINK_LAW] = _law(arrivals.think_s)[0]
        elif isinstance(arrivals, Renewal):
            h[K_ARRIVALS] = CLIENT_RENEWALS if arrivals.per_client else RENEWAL
            h[K_PROCESSES] = self.n_devices if arrivals.per_client else 1
            h[K_SHARES] = self.n_devices if arrivals.per_client or arrivals.client_rate_cv > 0.0 else 0
            h[K_MODULATED] = arrivals.modulation is not None
        schedule = self.builder.schedule
        if schedule is not None:
            n = len(schedule)
            h[K_ARRIVALS], h[K_TRACE], h[K_TRACE_RANDOM] = REPLAY, n, schedule.random_start
            h[K_TRACE_DEVICES] = schedule.devices is not None
            h[K_TRACE_KINDS] = schedule.kinds is not None
            none = (0,) * n
            columns = (schedule.prompt_tokens, schedule.output_tokens, schedule.devices, schedule.kinds)
            h[O_TRACE_I] = self.ints.add(np.array([column or none for column in columns]).T)
            h[O_TRACE_F] = self.floats.add(schedule.times_s)

    def _length(self, law: Constant | LogNormal | Geometric | Quantiles) -> tuple[int, list[float]]:
        """Return the code and the four parameters of a law of lengths, its table put into the floats."""
        if not isinstance(law, Quantiles):
            return _law(law)
        table = quantile_table(law)
        at = self.floats.add([*table.scores, *table.logs, *table.slopes])
        return LAW_QUANTILES, [float(at), float(len(table.scores)), 0.0, 0.0]

    def _acceptance(self) -> None:
        integers, floats = [], []
        for source, drafter in self.world.sources.values():
            if isinstance(source, TraceReplay):
                integers.append(self._trace(source, drafter))
                floats.append([0.0] * MKF_STRIDE)
            elif isinstance(source, IidAcceptance):
                integers.append([IID] + [0] * (MKI_STRIDE - 1))
                floats.append(
                    [source.alpha, source.alpha, source.alpha, 0.0, float(np.float32(source.alpha))]
                )
            elif isinstance(source, MarkovAcceptance):
                low, high = sorted((source.after_match, source.after_mismatch))
                integers.append([MARKOV] + [0] * (MKI_STRIDE - 1))
                floats.append(
                    [
                        low,
                        high,
                        source.stationary,
                        float(source.after_match < source.after_mismatch),
                        float(np.float32(source.stationary)),
                    ]
                )
            else:
                raise NotImplementedError(
                    f"the compiled engine does not know acceptance source {type(source).__name__}; "
                    "use engine='reference'"
                )
        self.header[O_MKI] = self.ints.add(integers)
        self.header[O_MKF] = self.floats.add(floats)

    def _faults(self) -> None:
        sites = {"device": SITE_DEVICE, "edge": SITE_EDGE, "target": SITE_TARGET}
        integers, floats = [], []
        for member in self.faults:
            fault = member.fault
            law, parameters = _law(fault.duration_s)
            times = self.floats.add(fault.at_s)
            integers.append([member.number, sites[member.site], member.entity, law, times, len(fault.at_s)])
            floats.append([fault.mean_interval_s or 0.0, member.bandwidth_factor, *parameters])
        self.header[O_XKI] = self.ints.add(integers)
        self.header[O_XKF] = self.floats.add(floats)

    def _trace(self, source: TraceReplay, drafter: str) -> list[int]:
        trace = source.trace
        columns = trace.drafters[drafter]
        offsets = self.ints.add(trace.offsets)
        kind = self.ints.add(trace.kind)
        same = [trace.entries_of([name]) for name in trace.kinds]
        same_at = self.ints.add([x for s in [(self.ints.add(s), len(s)) for s in same] for x in s])
        pools = []
        for request in self.scenario.workload.kinds.values():
            pool = trace.entries_of(request.acceptance_kinds or None)
            pools += [self.ints.add(pool), len(pool)]
        pools_at = self.ints.add(pools)
        top1 = self.floats.add(columns.top1_prob.astype(np.float32))
        if columns.run_length is not None:
            runs, longest = self.ints.add(columns.run_length), trace.gamma_max or MAX_RUN_LENGTH
            return [TRACE_RUNS, offsets, 0, top1, runs, kind, same_at, pools_at, longest]
        accept = self.floats.add(columns.accept_prob)
        return [TRACE_MATCHES, offsets, accept, top1, 0, kind, same_at, pools_at, MAX_RUN_LENGTH]

    def _state(self) -> tuple[int, int]:
        """Lay out a world; return the lengths of its rows of integers and floats."""
        h, scenario = self.header, self.scenario
        n_stations = self.n_devices + self.n_edges + self.n_targets
        h[K_R_VALID] = RI_CHAIN + CHAIN * len(self.models)
        h[K_R_STRIDE] = h[K_R_VALID] + 1 + self.n_edges + self.n_targets
        cohort = int(h[K_COHORT])
        h[K_TABLE_CAP] = 4 * cohort + 1024
        h[K_DELIVERY_CAP] = (
            scenario.episode.requests * scenario.workload.max_output_tokens if self.keep_deliveries else 0
        )
        view = V_TARGETS + int(h[K_OFFERED]) * VT_STRIDE + int(h[K_PLACES]) * VC_STRIDE
        at = WI_HEADER
        for name, size in (
            (O_HEAP_I, 3 * self.heap),
            (O_FREE, self.slots),
            (O_NEWLY, self.slots),
            (O_REQ_I, self.slots * int(h[K_R_STRIDE])),
            (O_JOB_I, JOBS * self.slots * JI_STRIDE),
            (O_DEV_I, self.n_devices * DI_STRIDE),
            (O_STA_I, n_stations * SI_STRIDE),
            (O_TGT_I, self.n_targets * TI_STRIDE),
            (O_READY, self.n_targets * self.slots),
            (O_RUN, self.n_targets * 2 * int(h[K_MAX_BATCH])),
            (O_CHAN_I, self.n_channels * CI_STRIDE),
            (O_CRASH_I, len(self.crashers) * CRASH_STRIDE),
            (O_LINK_I, self.n_links * LI_STRIDE),
            (O_BREAK_I, self.n_breaks * BREAK_STRIDE),
            (O_PROCESS_I, int(h[K_PROCESSES]) * PROCI_STRIDE),
            (O_TABLE_I, int(h[K_TABLE_CAP]) * XI_STRIDE),
            (O_DELIVERY_I, 2 * int(h[K_DELIVERY_CAP])),
        ):
            h[name] = at
            at += size
        n_int = at
        at = WF_HEADER
        for name, size in (
            (O_HEAP_F, self.heap),
            (O_REQ_F, self.slots * RF_STRIDE),
            (O_JOB_F, JOBS * self.slots * JF_STRIDE),
            (O_DEV_F, self.n_devices * DF_STRIDE),
            (O_STA_F, n_stations * SF_STRIDE),
            (O_TGT_F, self.n_targets * TF_STRIDE),
            (O_CHAN_F, self.n_channels * CF_STRIDE),
            (O_REPORTS, self.n_targets * RING * REPORT),
            (O_STATION_REPORTS, (self.n_edges + self.n_targets) * RING * 3),
            (O_RATES, RING * 3),
            (O_WINDOW, 1 + N_TOTALS + self.n_targets),
            (O_SCRATCH, REPORT),
            (O_VIEW, view),
            (O_CRASH_F, len(self.crashers) * CRASH_END),
            (O_LINK_F, self.n_links * LF_STRIDE),
            (O_BREAK_F, self.n_breaks * BREAK_FLOATS),
            (O_PROCESS_F, int(h[K_PROCESSES]) * PROCF_STRIDE),
            (O_SHARES, int(h[K_SHARES])),
            (O_TABLE_F, int(h[K_TABLE_CAP]) * XF_STRIDE),
            (O_DELIVERY_F, int(h[K_DELIVERY_CAP])),
            (O_EVENTS, self.log_events * EVENT),
        ):
            h[name] = at
            at += size
        return n_int, at


def _gaussian(period_s: float, centre: float, parts: tuple[Ar1, ...]) -> list[float]:
    """Return the constants of a Gaussian process; see :class:`dsd_env.network.processes.LogProcess`."""
    constants = [period_s, centre]
    for part in parts:
        rho = math.exp(-period_s / part.correlation_s)
        constants += [part.sigma, rho, part.sigma * math.sqrt(1.0 - rho * rho)]
    return constants + [0.0] * (GK_STRIDE - len(constants))


def _law(law: Constant | LogNormal | Exponential | Geometric) -> tuple[int, list[float]]:
    """Return the code and the four parameters of a law."""
    if isinstance(law, Constant):
        return LAW_CONSTANT, [law.value, 0.0, 0.0, 0.0]
    if isinstance(law, Exponential):
        return LAW_EXPONENTIAL, [law.mean, 0.0, 0.0, 0.0]
    if isinstance(law, Geometric):
        log_rest = 0.0 if law.mean == 1.0 else math.log(1.0 - 1.0 / law.mean)
        return LAW_GEOMETRIC, [law.mean, log_rest, 0.0, 0.0]
    return LAW_LOGNORMAL, [law.median, law.sigma, law.low, law.high]
