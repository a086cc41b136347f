"""One world of the compiled engine, with the interface of the reference engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace
from dsd_env.control.actions import Decision
from dsd_env.control.view import (
    RECENT_ROUNDS,
    CandidateView,
    DecisionView,
    DrafterView,
    LinkView,
    RequestView,
    Site,
    SystemView,
    TargetView,
)
from dsd_env.rng import checked_seed
from dsd_env.scenario.schema import Scenario
from dsd_env.sim.compiled import kernel
from dsd_env.sim.compiled import layout as la
from dsd_env.sim.compiled.layout import FloatArray, IntArray, Layout, compile_scenario
from dsd_env.sim.events import Event, EventKind, Span
from dsd_env.sim.metrics import Totals, Window, episode_metrics, requests_table
from dsd_env.sim.reference import Resolution
from dsd_env.sim.world import WorldBuilder

REASONS = (None, "no_drafter", "batch_clipped", "target_down")
"""Why a decision was not executed as given, by the kernel's number."""


class EngineError(RuntimeError):
    """The compiled engine ran out of a bounded resource; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class CompletedSpec:
    """What the metrics need of a request's specification; see :class:`dsd_env.workload.RequestSpec`."""

    uid: int
    kind: int
    prompt_tokens: int
    output_tokens: int
    slo_ttft_s: float
    slo_tpot_s: float


@dataclass(frozen=True, slots=True)
class DeviceNumber:
    """The device of a completed request."""

    number: int


@dataclass(frozen=True, slots=True)
class CompletedRequest:
    """A completed request as the metrics read it; see :class:`dsd_env.sim.entities.Request`."""

    number: int
    spec: CompletedSpec
    device: DeviceNumber
    arrival_s: float
    completed_s: float
    rounds: int
    verifies: int
    drafted: int
    accepted: int
    delivery_s: list[float]
    delivery_tokens: list[int]


@dataclass(frozen=True, slots=True)
class NewlyCompleted:
    """A request that completed since the last decision was answered."""

    number: int
    completed_s: float
    delay_caused_s: float
    committed: int


@dataclass(frozen=True, slots=True)
class DueRequest:
    """The request whose decision is due."""

    number: int
    delay_caused_s: float


class WorldReader:
    """Reads what the kernel left in the row of one world."""

    def __init__(self, layout: Layout, f: FloatArray, s: IntArray) -> None:
        """Look at one world's rows."""
        self.layout = layout
        self.scenario = layout.scenario
        self.f, self.s = f, s
        self._offset = [int(x) for x in layout.ki[: la.K_HEADER]]

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self.f[la.WF_NOW])

    def check(self) -> None:
        """Raise :class:`EngineError` if the world failed."""
        error = int(self.s[la.WI_ERROR])
        if error != la.OK:
            raise EngineError(
                f"scenario {self.scenario.name!r}, seed {int(self.s[la.WI_SEED])}, at {self.now_s:.6f} s: "
                + la.ADVICE[error]
            )

    def view(self) -> DecisionView:
        """Return the view of the due decision."""
        o = self._offset
        n_targets = o[la.K_OFFERED]
        size = la.V_TARGETS + n_targets * la.VT_STRIDE + o[la.K_PLACES] * la.VC_STRIDE
        v = self.f[o[la.O_VIEW] : o[la.O_VIEW] + size].tolist()
        targets = [_target_view(v[at:]) for at in _blocks(la.V_TARGETS, n_targets, la.VT_STRIDE)]
        first = la.V_TARGETS + n_targets * la.VT_STRIDE
        candidates = tuple(
            _candidate_view(v[at:], targets) for at in _blocks(first, o[la.K_PLACES], la.VC_STRIDE)
        )
        actions = self.scenario.actions
        return DecisionView(
            v[la.V_NOW],
            int(v[la.V_REQUEST]),
            int(v[la.V_DEVICE]),
            int(v[la.V_COUNTER]),
            _request_view(v),
            targets[0],
            LinkView(v[la.V_LINK_UP] != 0.0, *v[la.V_RTT : la.V_LINK_AGE + 1]),
            DrafterView(v[la.V_AVAILABLE] != 0.0, v[la.V_STEP], int(v[la.V_LAG]), int(v[la.V_JOBS])),
            candidates,
            SystemView(int(v[la.V_ACTIVE]), v[la.V_ARRIVALS], v[la.V_TOKENS]),
            actions.gammas,
            actions.batch_sizes,
        )

    def totals(self) -> Totals:
        """Return the cumulative totals until now."""
        f, s = self.f, self.s
        totals = Totals(
            time_s=float(f[la.WF_ACCRUED]),
            request_seconds=float(f[la.WF_REQUEST_SECONDS]),
            output_tokens=int(s[la.WI_OUTPUT_TOKENS]),
            completed=int(s[la.WI_COMPLETED]),
            good=int(s[la.WI_GOOD]),
            slo_violations=int(s[la.WI_VIOLATIONS]),
            tpot_cost=float(f[la.WF_TPOT_COST]),
            drafted=int(s[la.WI_DRAFTED]),
            accepted=int(s[la.WI_ACCEPTED]),
            verified_rounds=int(s[la.WI_VERIFIED]),
            round_tokens=int(s[la.WI_ROUND_TOKENS]),
            gpu_s=float(f[la.WF_GPU_S]),
            cloud_usd=float(f[la.WF_CLOUD_USD]),
            energy_joules=float(f[la.WF_ENERGY]),
            network_bytes=float(f[la.WF_BYTES]),
            discarded=int(s[la.WI_DISCARDED]),
            takeovers=int(s[la.WI_TAKEOVERS]),
            interruptions=int(s[la.WI_INTERRUPTIONS]),
            late_messages=int(s[la.WI_LATE]),
            duplicate_messages=int(s[la.WI_DUPLICATES]),
            preemptions=int(s[la.WI_PREEMPTIONS]),
        )
        totals.accrue(self.now_s, int(s[la.WI_IN_SYSTEM]), float(self.layout.kf[la.KF_IDLE_W]))
        return totals

    def completed(self, *, deliveries: bool) -> list[CompletedRequest]:
        """Return the completed requests of the table, in order of completion.

        Args:
            deliveries: With every delivery, which only requests of the cohort have; otherwise with the
                first and the last alone.
        """
        o = self._offset
        n = int(self.s[la.WI_TABLE_N])
        whole = self.s[o[la.O_TABLE_I] : o[la.O_TABLE_I] + n * la.XI_STRIDE].reshape(n, la.XI_STRIDE).tolist()
        real = self.f[o[la.O_TABLE_F] : o[la.O_TABLE_F] + n * la.XF_STRIDE].reshape(n, la.XF_STRIDE).tolist()
        log = self._deliveries() if deliveries else {}
        requests = []
        for i, x in zip(whole, real, strict=True):
            number, tokens = i[la.XI_NUMBER], i[la.XI_DELIVERED]
            brief = ([x[la.XF_FIRST], x[la.XF_LAST]], [1, tokens - 1])
            delivery_s, delivery_tokens = log.get(number, brief)
            requests.append(
                CompletedRequest(
                    number,
                    CompletedSpec(
                        i[la.XI_UID],
                        i[la.XI_KIND],
                        i[la.XI_PROMPT],
                        i[la.XI_OUTPUT],
                        x[la.XF_SLO_TTFT],
                        x[la.XF_SLO_TPOT],
                    ),
                    DeviceNumber(i[la.XI_DEVICE]),
                    x[la.XF_ARRIVAL],
                    x[la.XF_COMPLETED],
                    i[la.XI_ROUNDS],
                    i[la.XI_VERIFIES],
                    i[la.XI_DRAFTED],
                    i[la.XI_ACCEPTED],
                    delivery_s,
                    delivery_tokens,
                )
            )
        return requests

    def _deliveries(self) -> dict[int, tuple[list[float], list[int]]]:
        """Return when which tokens arrived, by request."""
        o = self._offset
        n = int(self.s[la.WI_DELIVERIES])
        if n == 0:
            return {}
        pairs = self.s[o[la.O_DELIVERY_I] : o[la.O_DELIVERY_I] + 2 * n].reshape(n, 2)
        times = self.f[o[la.O_DELIVERY_F] : o[la.O_DELIVERY_F] + n]
        order = np.argsort(pairs[:, 0], kind="stable")
        numbers, starts = np.unique(pairs[order, 0], return_index=True)
        ends = [*starts[1:].tolist(), n]
        times_s, tokens = times[order].tolist(), pairs[order, 1].tolist()
        return {
            number: (times_s[start:end], tokens[start:end])
            for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True)
        }

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far; see :meth:`ReferenceSimulation.metrics`."""
        o, f = self._offset, self.f
        n_targets = o[la.K_TARGETS]
        at = o[la.O_WINDOW]
        window = f[at : at + 1 + la.N_TOTALS + n_targets].tolist()
        start = Window(window[0], Totals(*window[1 : 1 + la.N_TOTALS]), window[1 + la.N_TOTALS :])
        end = Window(self.now_s, self.totals(), [self._busy_until_s(number) for number in range(n_targets)])
        cohort = [
            request
            for request in self.completed(deliveries=True)
            if o[la.K_WARMUP] <= request.number < o[la.K_COHORT]
        ]
        arrived, completed = int(self.s[la.WI_ARRIVED]), int(self.s[la.WI_COMPLETED])
        metrics = episode_metrics(
            self.scenario,
            cohort,  # type: ignore[arg-type]
            start,
            end,
            arrived,
            completed,
        )
        if o[la.K_DELIVERY_CAP] == 0:
            metrics.update({name: float("nan") for name in metrics if name.startswith("itl_s")})
        return metrics

    def _busy_until_s(self, target: int) -> float:
        """Return the time that a target has been busy, the iteration under way included."""
        o, f = self._offset, self.f
        x = o[la.O_TGT_F] + target * la.TF_STRIDE
        if self.s[o[la.O_TGT_I] + target * la.TI_STRIDE + la.TI_IDLE] != 0:
            return float(f[x + la.TF_BUSY])
        return float(f[x + la.TF_BUSY] + (self.now_s - f[x + la.TF_START]))

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival.

        Raises:
            EngineError: More requests completed than the table holds.
        """
        if dropped := int(self.s[la.WI_TABLE_DROPPED]):
            raise EngineError(
                f"the table of requests lacks {dropped} that completed after the measured ones; "
                "use engine='reference' for the whole table"
            )
        requests = self.completed(deliveries=False)
        requests.sort(key=lambda request: request.number)
        return requests_table(requests)  # type: ignore[arg-type]

    def newly_completed(self) -> Iterator[NewlyCompleted]:
        """Yield the requests that completed since the last decision was answered."""
        o = self._offset
        for i in range(int(self.s[la.WI_NEWLY_N])):
            q = int(self.s[o[la.O_NEWLY] + i])
            number = int(self.s[o[la.O_REQ_I] + q * o[la.K_R_STRIDE] + la.RI_NUMBER])
            delay_s = float(self.f[o[la.O_REQ_F] + q * la.RF_STRIDE + la.RF_DELAY_CAUSED])
            committed = int(self.s[o[la.O_REQ_I] + q * o[la.K_R_STRIDE] + la.RI_COMMITTED])
            yield NewlyCompleted(number, self._completed_s(number), delay_s, committed)

    def due_request(self) -> DueRequest | None:
        """Return the request whose decision is due."""
        q = int(self.s[la.WI_PENDING])
        if q < 0:
            return None
        o = self._offset
        return DueRequest(
            int(self.s[o[la.O_REQ_I] + q * o[la.K_R_STRIDE] + la.RI_NUMBER]),
            float(self.f[o[la.O_REQ_F] + q * la.RF_STRIDE + la.RF_DELAY_CAUSED]),
        )

    def _completed_s(self, number: int) -> float:
        o = self._offset
        for n in range(int(self.s[la.WI_TABLE_N]) - 1, -1, -1):
            if int(self.s[o[la.O_TABLE_I] + n * la.XI_STRIDE + la.XI_NUMBER]) == number:
                return float(self.f[o[la.O_TABLE_F] + n * la.XF_STRIDE + la.XF_COMPLETED])
        return float("nan")

    def drain_events(self) -> list[Event]:
        """Return the events recorded since the last call."""
        n = int(self.s[la.WI_EVENTS])
        at = self._offset[la.O_EVENTS]
        rows = self.f[at : at + n * la.EVENT].reshape(n, la.EVENT).tolist()
        self.s[la.WI_EVENTS] = 0
        return [Event(t, EventKind(int(k)), int(e), int(r), v) for t, k, e, r, v in rows]


class CompiledSimulation:
    """One episode of one scenario on the compiled engine, stepped from decision to decision.

    The same episode as :class:`dsd_env.sim.ReferenceSimulation` on the same seed, event for event and bit for
    bit. It records no spans.

    Attributes:
        scenario: What is simulated.
        seed: Episode seed.
        terminated: The workload is finished: every request arrived and completed.
        truncated: The episode's number of requests has completed, or its horizon is reached.
        events: Event log, if recorded.
        spans: Always empty.
        f: State of the world, floats.
        s: State of the world, integers.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        record_events: bool = False,
        record_spans: bool = False,
        price_delays: bool = False,
        builder: WorldBuilder | None = None,
        layout: Layout | None = None,
        log_events: int = 1 << 18,
    ) -> None:
        """Set up an episode at time 0.

        Args:
            scenario: What to simulate.
            seed: Episode seed; all randomness follows from it.
            record_events: Keep the event log.
            record_spans: Not possible here.
            price_delays: Account to each request how long it makes others wait (`delay_caused_s`).
            builder: Builder of this scenario's worlds, to load profiles and traces only once.
            layout: The scenario as compiled before, to do so only once. With `record_events`, it must have
                been compiled with room for them.
            log_events: Room for recorded events between two decisions.

        Raises:
            NotImplementedError: Spans are asked for, or an acceptance source that only the reference knows.
            ValueError: The seed is not a whole number from 0 to 2^63 − 1.
        """
        if record_spans:
            raise NotImplementedError("the compiled engine records no spans; use engine='reference'")
        seed = checked_seed(seed)
        if layout is None:
            layout = compile_scenario(scenario, builder, log_events=log_events if record_events else 0)
        self.scenario = scenario
        self.seed = seed
        self.terminated = False
        self.truncated = False
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self._layout = layout
        self.f = np.zeros(layout.n_float)
        self.s = np.zeros(layout.n_int, dtype=np.int64)
        self._reader = WorldReader(layout, self.f, self.s)
        self._record_events = record_events
        self._view: DecisionView | None = None
        kernel.reset_world(layout.kf, layout.ki, self.f, self.s, seed, int(record_events), int(price_delays))

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._reader.now_s

    def next_decision(self) -> DecisionView | None:
        """Advance to the next due decision and return what its controller knows; None at the end.

        Raises:
            RuntimeError: The decision before has not been answered.
            EngineError: A bounded resource ran out.
        """
        if not self.advance():
            return None
        self._view = self._reader.view()
        return self._view

    def advance(self) -> bool:
        """Advance to the next due decision; False at the end. The view is not assembled.

        Raises:
            RuntimeError: The decision before has not been answered.
            EngineError: A bounded resource ran out.
        """
        if self.s[la.WI_PENDING] >= 0:
            raise RuntimeError("answer the pending decision with decide() before asking for the next")
        layout = self._layout
        self._view = None
        status = kernel.run_world(layout.kf, layout.ki, self.f, self.s)
        self._reader.check()
        if self._record_events:
            self.events += self._reader.drain_events()
        self.terminated, self.truncated = status == la.TERMINATED, status == la.TRUNCATED
        return bool(status == la.DUE)

    def decide(self, decision: Decision) -> Resolution:
        """Answer the pending decision; see :meth:`ReferenceSimulation.decide`.

        Raises:
            RuntimeError: No decision is pending.
            ValueError: gamma or batch size negative or zero, or placement off the list.
        """
        if self.s[la.WI_PENDING] < 0:
            raise RuntimeError("no decision is pending: call next_decision() first")
        gamma, batch_size, placement = decision
        if gamma < 0 or gamma > self.scenario.actions.gammas[-1]:
            raise ValueError(f"gamma = {gamma} is outside 0..{self.scenario.actions.gammas[-1]}")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be at least 1")
        if not 0 <= placement < self.scenario.n_placements:
            raise ValueError(f"placement = {placement} is outside 0..{self.scenario.n_placements - 1}")
        layout, s = self._layout, self.s
        kernel.answer_world(layout.ki, self.f, s, gamma, batch_size, placement)
        r = layout.ki[la.O_REQ_I] + s[la.WI_ANSWERED] * layout.ki[la.K_R_STRIDE]
        return Resolution(
            int(s[r + la.RI_GAMMA]),
            int(s[r + la.RI_BATCH]),
            Site(int(s[r + la.RI_RES_SITE])),
            int(s[r + la.RI_STATION]),
            int(s[r + la.RI_EDGE]),
            int(s[r + la.RI_RES_TARGET]),
            REASONS[s[la.WI_REASON]],
        )

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the observation and the mask of the due decision."""
        layout = self._layout
        observation = np.empty(layout.n_features, dtype=np.float32)
        mask = np.empty(sum(ActionSpace.of(self.scenario).nvec), dtype=np.bool_)
        kernel.observe_world(layout.kf, layout.ki, self.f, observation, mask)
        return observation, mask

    @property
    def resolved(self) -> dict[str, int]:
        """Decisions that were not executed as given, by reason."""
        counts = {
            "no_drafter": int(self.s[la.WI_NO_DRAFTER]),
            "batch_clipped": int(self.s[la.WI_CLIPPED]),
            "target_down": int(self.s[la.WI_TARGET_DOWN]),
        }
        return {reason: count for reason, count in counts.items() if count}

    @property
    def newly_completed(self) -> list[NewlyCompleted]:
        """Requests that completed since the last decision was answered."""
        return list(self._reader.newly_completed())

    @property
    def due_request(self) -> DueRequest | None:
        """The request whose decision is due."""
        return self._reader.due_request()

    @property
    def totals(self) -> Totals:
        """Cumulative totals from the start of the episode until now, as a copy."""
        return self._reader.totals()

    @property
    def active_requests(self) -> int:
        """Requests that have arrived and not completed."""
        return int(self.s[la.WI_IN_SYSTEM])

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far, by name; NaN where nothing was observed."""
        return self._reader.metrics()

    def requests_table(self) -> dict[str, NDArray[np.generic]]:
        """Return one column per property of the completed requests, in order of arrival."""
        return self._reader.requests_table()

    def save(self) -> tuple[FloatArray, IntArray]:
        """Return a copy of the world's state, for :meth:`restore`."""
        return self.f.copy(), self.s.copy()

    def restore(self, state: tuple[FloatArray, IntArray]) -> None:
        """Go back to a saved state of the same scenario; the event log is not wound back."""
        self.f[:], self.s[:] = state
        status = int(self.s[la.WI_STATUS])
        self.terminated, self.truncated = status == la.TERMINATED, status == la.TRUNCATED


def _blocks(first: int, count: int, stride: int) -> range:
    return range(first, first + count * stride, stride)


def _request_view(v: list[float]) -> RequestView:
    recent = range(RECENT_ROUNDS)
    return RequestView(
        v[la.V_ADMISSION] != 0.0,
        Site(int(v[la.V_SITE])),
        int(v[la.V_PROMPT]),
        int(v[la.V_COMMITTED]),
        v[la.V_AGE],
        v[la.V_SLO_TTFT],
        v[la.V_SLO_TPOT],
        v[la.V_TTFT],
        v[la.V_TPOT],
        int(v[la.V_ROUNDS]),
        v[la.V_ACCEPTANCE],
        v[la.V_TOKENS_PER_ROUND],
        tuple(int(v[la.V_RECENT_GAMMA + i]) for i in recent),
        tuple(int(v[la.V_RECENT_ACCEPTED + i]) for i in recent),
        v[la.V_CONFIDENCE],
        int(v[la.V_AHEAD]),
    )


def _target_view(v: list[float]) -> TargetView:
    return TargetView(
        int(v[la.VT_INDEX]),
        v[la.VT_UP] != 0.0,
        int(v[la.VT_QUEUED]),
        int(v[la.VT_RUNNING]),
        int(v[la.VT_RESIDENT]),
        v[la.VT_REMAINING],
        v[la.VT_ITERATION],
        v[la.VT_KV],
        int(v[la.VT_BATCH]),
        v[la.VT_WAIT],
        v[la.VT_TOKEN],
        v[la.VT_PREFILL_TOKEN],
        v[la.VT_AGE],
    )


def _candidate_view(v: list[float], targets: list[TargetView]) -> CandidateView:
    return CandidateView(
        Site(int(v[la.VC_SITE])),
        int(v[la.VC_EDGE]),
        targets[int(v[la.VC_OFFERED])],
        v[la.VC_VALID] != 0.0,
        v[la.VC_CURRENT] != 0.0,
        v[la.VC_SAME] != 0.0,
        v[la.VC_STEP],
        v[la.VC_CATCH_UP],
        v[la.VC_WAIT],
        v[la.VC_RTT],
        v[la.VC_HANDOVER],
        int(v[la.VC_LAG]),
        v[la.VC_MOVE],
        v[la.VC_SHARES] != 0.0,
    )
