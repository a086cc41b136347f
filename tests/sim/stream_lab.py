"""Streams in the laboratory, and a model of one stream that is written from what a stream means.

The model handles tokens by name: a draft is right if it equals the target's token and so was all that it was
drafted from. It knows neither the engines' positions and flags nor their laws, so that a mistake shared by
both engines shows.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dsd_env.rng import Stream, uniform
from dsd_env.scenario import Scenario
from dsd_env.sim import Event, EventKind
from tests.lab import lab

NODE, OWN, EDGE = range(3)
"""Places of the laboratory's drafters: at the target, on the device, on the edge server."""

PROMPT = 100


def stream_lab(**changes: Any) -> Scenario:
    """Return a laboratory whose drafts are streamed, with a single request unless it is told otherwise."""
    return lab(**{"protocol__kind": "streaming", "requests": 1, "episode__total_requests": 1, **changes})


def with_edge(backhaul_s: float = 0.01, draft_s: float = 0.003, **drafter: Any) -> dict[str, Any]:
    """Return the changes that give the laboratory an edge server."""
    wire = {"uplink_bits_per_s": 1.0e15, "downlink_bits_per_s": 1.0e15}
    return {
        "links__backhaul": {"one_way_s": backhaul_s, **wire},
        "devices__client__edge_link": "wire",
        "edge_servers": {
            "box": {
                "count": 1,
                "drafter": {"model": "draft", "profile": {"t0_s": draft_s}, **drafter},
                "backhaul": "backhaul",
                "power": {"idle_w": 20.0, "busy_w": 100.0},
            }
        },
    }


def dedicated(**changes: Any) -> dict[str, Any]:
    """Return the changes that give the target's drafter a GPU of its own."""
    at = "targets__target__colocated_drafter__"
    return {f"{at}mode": "dedicated", f"{at}gpus": 1, f"{at}concurrency": 8, **changes}


def matches(scenario: Scenario, seed: int, tokens: int, uid: int = 0) -> list[bool]:
    """Return at which output positions the drafter is right, if acceptance is independent."""
    alpha = scenario.acceptance["draft"].alpha  # type: ignore[union-attr]
    return [uniform(seed, Stream.ACCEPTANCE_MATCH, uid, i) < alpha for i in range(tokens)]


def commits(events: Sequence[Event], request: int = 0) -> list[tuple[float, int]]:
    """Return when a request's tokens were committed, and how many at a time."""
    return [
        (event.time_s, int(event.value))
        for event in events
        if event.kind == EventKind.COMMIT and event.request == request
    ]


def of_kind(events: Sequence[Event], kind: EventKind) -> list[Event]:
    """Return the events of a kind."""
    return [event for event in events if event.kind == kind]


def token_times(events: Sequence[Event], request: int = 0) -> list[float]:
    """Return when each token of a request was committed."""
    return [time_s for time_s, tokens in commits(events, request) for _ in range(tokens)]


@dataclass
class Model:
    """One stream to an otherwise idle target, from the first token on.

    Attributes:
        right: Whether the drafter, on the true text, makes the target's token, by output position.
        window: Gamma.
        chunk: Drafts in a message.
        iteration_s: Time of an iteration.
        draft_s: Time of a draft step.
        lag_s: Time that each token takes that the drafter's step processes, in addition.
        up_s: Time of a message to the target.
        down_s: Time of a message to the drafter.
        first_s: When the first token is committed.
        warm_s: When the drafter has processed the prompt.
        committed: What was committed: time and tokens.
        sent: Drafts sent: time and position of the first.
        rollbacks: When the drafter went back.
    """

    right: list[bool]
    window: int
    chunk: int
    iteration_s: float
    draft_s: float
    lag_s: float
    up_s: float
    down_s: float
    first_s: float
    warm_s: float
    committed: list[tuple[float, int]] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)
    rollbacks: list[float] = field(default_factory=list)

    def play(self) -> Model:
        """Play it to the end."""
        self._queue: list[tuple[float, int, int, Any]] = []
        self._n = len(self.right)
        # The target: what is committed, the drafts of the newest generation that came, if they can be right.
        self._done = 1
        self._heard, self._drafts = -1, {}
        self._lost: set[int] = set()
        # The drafter: what it knows, the generation's drafts, what its KV holds, the step under way.
        self._known = -1
        self._generation, self._start, self._own = -1, 0, []
        self._kv = 0
        self._step = 0
        self._busy = False
        self.committed.append((self.first_s, 1))
        self._at(self.first_s + self.down_s, self._result, 1)
        self._at(self.first_s, self._iterate)
        self._at(self.warm_s, self._warmed)
        self._warm = False
        while self._queue and self._done < self._n:
            self.now_s, _, _, (action, values) = heapq.heappop(self._queue)
            action(*values)
        return self

    def _at(self, time_s: float, action: Any, *values: Any) -> None:
        # An iteration begins after everything else of its instant.
        self._count = getattr(self, "_count", 0) + 1
        heapq.heappush(self._queue, (time_s, int(action == self._iterate), self._count, (action, values)))

    # the target

    def _token(self, position: int) -> str:
        return f"t{position}"

    def _compare(self) -> None:
        """Drop a generation that differs from what is committed."""
        for position, token in self._drafts.items():
            if position < self._done and token != self._token(position):
                self._lost.add(self._heard)
        if self._heard in self._lost:
            self._drafts = {}

    def _iterate(self) -> None:
        taken = []
        while len(taken) < self.window and self._done + len(taken) in self._drafts:
            taken.append(self._drafts[self._done + len(taken)])
        self._at(self.now_s + self.iteration_s, self._verified, taken)

    def _verified(self, taken: list[str]) -> None:
        before = self._done
        for token in taken:
            if self._done >= self._n or token != self._token(self._done):
                break
            self._done += 1
        self._done = min(self._done + 1, self._n)
        self.committed.append((self.now_s, self._done - before))
        self._compare()
        self._at(self.now_s + self.down_s, self._result, self._done)
        self._at(self.now_s, self._iterate)

    def _drafts_come(self, generation: int, first: int, tokens: list[str]) -> None:
        if generation > self._heard:
            self._heard, self._drafts = generation, {}
        if generation in self._lost:
            return
        self._drafts.update({first + i: token for i, token in enumerate(tokens)})
        self._compare()

    # the drafter

    def _warmed(self) -> None:
        self._warm, self._kv = True, PROMPT
        self._draft()

    def _result(self, known: int) -> None:
        first_time, self._known = self._known < 0, known
        if first_time:
            self._begin()
        else:
            reached = self._start + len(self._own)
            wrong = [
                i for i, token in enumerate(self._own, self._start) if i < known and token != self._token(i)
            ]
            if wrong or reached < known:
                right = min([*wrong, known])
                if self._own:  # all but the newest of them are in its KV
                    self._kv = PROMPT + min(reached - 1, right)
                elif self._busy:
                    self._break_off(right)
                self.rollbacks.append(self.now_s)
                self._begin()
        self._draft()

    def _break_off(self, right: int) -> None:
        """Keep what the first step of a generation has read, and what the next ones have drafted."""
        began_s, first_s, took_s, lag, tokens = self._under_way
        spent_s = self.now_s - began_s
        if spent_s < first_s:
            self._kv += int(lag * (spent_s / first_s))
            return
        later_s = took_s - first_s
        made = 1 + int((tokens - 1) * (spent_s - first_s) / later_s) if later_s else tokens
        self._kv = PROMPT + min(self._start + made - 1, right)

    def _begin(self) -> None:
        self._generation += 1
        self._start, self._own = self._known, []
        self._step += 1
        self._busy = False

    def _draft(self) -> None:
        reached = self._start + len(self._own)
        tokens = min(self.chunk, self.window - (reached - self._known))
        if self._busy or not self._warm or self._known < 0 or tokens <= 0:
            return
        lag = 1 if self._own else PROMPT + self._known - self._kv
        self._busy = True
        took_s = tokens * self.draft_s + (lag + tokens - 1) * self.lag_s
        self._under_way = (self.now_s, self.draft_s + lag * self.lag_s, took_s, lag, tokens)
        self._at(self.now_s + took_s, self._drafted, self._step, tokens)

    def _drafted(self, step: int, tokens: int) -> None:
        if step != self._step:
            return
        self._busy = False
        first = self._start + len(self._own)
        made: list[str] = []
        for position in range(first, first + tokens):
            follows = [*self._own, *made]
            true = all(token == self._token(self._start + i) for i, token in enumerate(follows))
            knows = position < self._n and self.right[position]
            made.append(self._token(position) if true and knows else f"wrong {position}")
        self.sent.append((self.now_s, first))
        self._at(self.now_s + self.up_s, self._drafts_come, self._generation, first, made)
        self._own += made
        self._draft()


def by_request(events: Sequence[Event], kind: EventKind) -> dict[int, list[Event]]:
    """Return the events of a kind by their request."""
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == kind:
            found[event.request].append(event)
    return found
