"""Requests, the devices that they come from, and what a controller learns of a draft model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import simpy

from dsd_env.acceptance import AcceptanceRealisation, AcceptanceSource, TraceReplay
from dsd_env.control.estimators import Learned, note_round
from dsd_env.control.view import RECENT_ROUNDS, Site
from dsd_env.laws import reports
from dsd_env.laws.constants import ACCEPTANCE_PRIOR, TOKENS_PER_ROUND_PRIOR
from dsd_env.network import Channel
from dsd_env.sim.entities.drafters import DraftJob, HeadStart, SiteDrafter, servers_of
from dsd_env.sim.entities.streams import Stream
from dsd_env.sim.entities.targets import Report
from dsd_env.workload import RequestSpec


@dataclass(slots=True)
class Device:
    """A client device with its links and its drafter, if it has one.

    Attributes:
        number: Number of the device.
        up: Channel towards the targets.
        down: Channel from the targets.
        edge_up: Channel towards the edge servers.
        edge_down: Channel from the edge servers.
        drafters: Its drafters, in order.
        radio_joules_per_byte: Energy of its radio.
        rtt_s: Running mean of the round-trip times of its link to the targets that its controller has
            measured; how far a target is beyond the link does not count.
        rtt_deviation_s: Running mean of their absolute deviations from it.
        rtt_sample_s: When the newest of them was measured.
        timed_s: When the tokens were sent that its acknowledgement will time; -1: none are timed.
        loss: Running share of messages that needed a retransmission.
        down_faults: Number of faults that keep it down; 0 while it is up.
    """

    number: int
    up: Channel
    down: Channel
    edge_up: Channel | None
    edge_down: Channel | None
    drafters: tuple[SiteDrafter, ...]
    radio_joules_per_byte: float
    rtt_s: float
    rtt_deviation_s: float = 0.0
    rtt_sample_s: float = -1.0
    timed_s: float = -1.0
    loss: float = 0.0
    down_faults: int = 0

    @property
    def drafter(self) -> SiteDrafter | None:
        """The first of its drafters; None if it has none."""
        return self.drafters[0] if self.drafters else None

    @property
    def jobs(self) -> int:
        """Draft jobs under way and waiting on it."""
        return sum(len(server.active) + len(server.queue) for server in servers_of(self.drafters))

    def measure(self, now_s: float, sample_s: float, weight: float) -> None:
        """Take a round-trip sample into the running estimates."""
        reports.measure_round_trip(self, now_s, sample_s, weight)


@dataclass(slots=True, eq=False)
class Request:
    """A request and its state.

    Attributes:
        number: Its rank by arrival in the episode, from 0.
        spec: What the workload draws: its class, its lengths and its SLO.
        device: The device that it comes from.
        arrival_s: When it arrived.
        acceptance: Realised acceptance by draft model.
        committed: Output tokens committed at the target.
        target: Target that holds its KV; -1 before admission.
        lost_target: Target whose front end last had to tell it that the target is down; -1: none.
        control: Site and number (of device, edge server or target) where its decisions are taken.
        drafted_at: Number of the drafter of the last draft round; -1 before the first.
        drafted_branches: It was asked for branches.
        drafter_valid: Number of its context tokens that each drafter's KV holds, by drafter number.
        warming: Drafter prefills under way, by drafter number.
        process: Its SimPy process.
        draft: Draft job of the present round; None once it has ended.
        ahead: Job that drafts ahead while the target verifies.
        head_start: What was drafted ahead, once the guess has turned out right.
        guessed: Whether the last window and the guess of the token after it were right.
        chain_start: Output position from which its drafter has drafted without beginning anew.
        stream: Its stream of drafts; None if none is open.
        idle_share: Running share of the iterations that had no drafts, of those that streams took part in.
        in_flight: Arrival of its message that is under way.
        served: Counter of jobs queued at targets and of cancellations. A target's patience has run out if
            the counter has not changed meanwhile.
        exchange: Counter of windows sent, results received and cancellations. A device's time-out has run
            out if the counter has not changed meanwhile.
        kv_reserved_tokens: KV tokens that it holds at its target; 0 while it waits for room there.
        admission: Its rank among the admissions to its target.
        kept_tokens: KV tokens that the target still had of it when it was preempted.
        overwritten_from_tokens: Reading of the target's `kv_given_tokens` from which on they are overwritten.
        report: Report of its target that came with the newest result.
        own_jobs: Number of draft jobs on its device when its controller last saw them.
        learned: What its controller has learned of each draft model, by name.
        delay_caused_s: Time by which it has delayed other requests, summed over them, if that is computed.
        longest_gap_s: Longest time between tokens at its client.
        late_gaps: Gaps longer than its SLO allows.
        late_tokens: Tokens that came after their deadlines.
    """

    number: int
    spec: RequestSpec
    device: Device
    arrival_s: float
    control: tuple[Site, int]
    acceptance: dict[str, AcceptanceRealisation]
    sources: dict[str, tuple[AcceptanceSource, str]]
    committed: int = 0
    target: int = -1
    lost_target: int = -1
    drafted_at: int = -1
    drafted_branches: bool = False
    drafter_valid: dict[int, int] = field(default_factory=dict)
    warming: dict[int, simpy.Event] = field(default_factory=dict)
    process: simpy.Process | None = None
    draft: DraftJob | None = None
    ahead: DraftJob | None = None
    head_start: HeadStart | None = None
    guessed: bool = False
    chain_start: int = 0
    stream: Stream | None = None
    idle_share: float = 0.0
    in_flight: simpy.Event | None = None
    served: int = 0
    exchange: int = 0
    kv_reserved_tokens: int = 0
    admission: int = 0
    kept_tokens: int = 0
    overwritten_from_tokens: int = 0
    report: Report | None = None
    own_jobs: int = 0
    delay_caused_s: float = 0.0
    decisions: int = 0
    rounds: int = 0
    verifies: int = 0
    drafted: int = 0
    accepted: int = 0
    round_tokens: int = 0
    first_commit_s: float = 0.0
    last_commit_s: float = 0.0
    delivery_s: list[float] = field(default_factory=list)
    delivery_tokens: list[int] = field(default_factory=list)
    completed_s: float = math.nan
    acceptance_rate: float = ACCEPTANCE_PRIOR
    tokens_per_round: float = TOKENS_PER_ROUND_PRIOR
    learned: dict[str, Learned] = field(default_factory=dict)
    recent_gammas: tuple[int, ...] = (0,) * RECENT_ROUNDS
    recent_accepted: tuple[int, ...] = (0,) * RECENT_ROUNDS
    last_confidence: float = 0.0
    longest_gap_s: float = 0.0
    late_gaps: int = 0
    late_tokens: int = 0

    def learn(
        self, model: str, drafted: int, accepted: int, committed: int, confidence: float, weight: float
    ) -> None:
        """Update the controller's statistics by the outcome of a draft round."""
        note_round(self, model, drafted, accepted, committed, confidence, weight)

    @property
    def context_tokens(self) -> int:
        """Prompt and committed output."""
        return self.spec.prompt_tokens + self.committed

    @property
    def known_tokens(self) -> int:
        """Committed output that its controller knows of; a stream's target gets ahead of that."""
        return self.committed if self.stream is None else self.stream.known

    @property
    def known_commit_s(self) -> float:
        """When the newest of these tokens was committed."""
        return self.last_commit_s if self.stream is None else self.stream.known_commit_s

    @property
    def known_context_tokens(self) -> int:
        """Prompt and the output that its controller knows of."""
        return self.spec.prompt_tokens + self.known_tokens

    @property
    def finished(self) -> bool:
        """Whether all its tokens are committed."""
        return self.committed >= self.spec.output_tokens

    def drafter_lag(self, drafter_number: int) -> int:
        """Return how many known tokens a drafter has not processed: at least 1, the newest."""
        return self.known_context_tokens - self.drafter_valid.get(drafter_number, 0)

    def realise(self, seed: int, model: str) -> AcceptanceRealisation:
        """Return the acceptance of a draft model's proposals; it is drawn at the first call."""
        realisation = self.acceptance.get(model)
        if realisation is None:
            source, drafter = self.sources[model]
            spec = self.spec
            kinds = spec.acceptance_kinds or None
            if isinstance(source, TraceReplay):
                realisation = source.realise(
                    seed, spec.uid, spec.output_tokens, drafter, kinds, spec.recorded
                )
            else:
                realisation = source.realise(seed, spec.uid, spec.output_tokens, drafter, kinds)
            self.acceptance[model] = realisation
        return realisation
