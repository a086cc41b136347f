"""The testbed held against its twin: the same requests in both, setting by setting.

The twin's workload generator says which client asks which question when; the testbed's clients follow it, and
its simulation does. What is compared is told of by :data:`METRICS`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dsd_env.files import write_json
from dsd_env.network.series import load_series
from dsd_env.paired import bootstrap_ratio
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.simulate import simulate
from dsd_env.testbed.client import ClientConfig, EdgeClient, Output
from dsd_env.testbed.connection import open_channel
from dsd_env.testbed.control import Decide, static
from dsd_env.testbed.drafters import LineMaker, Question
from dsd_env.testbed.link import LinkConfig, ShapedProxy
from dsd_env.testbed.serving import ControllerHook
from dsd_env.workload.generator import WorkloadGenerator

Protocol = Literal["synchronous", "streaming"]
SHORT: dict[Protocol, str] = {"synchronous": "sync", "streaming": "stream"}
#: Means within 5 %, the 95th percentile within 10 %: the goal that was set before anything was run.
GOALS_PCT = {"tpot_s_mean": 5.0, "e2e_s_mean": 5.0, "tpot_s_p95": 10.0, "e2e_s_p95": 10.0}
#: Resamples of the intervals of gains.
GAIN_RESAMPLES = 4000
#: What is compared, in the order of the tables.
METRICS = (
    "ttft_s_mean",
    "ttft_s_p95",
    "tpot_s_mean",
    "tpot_s_p95",
    "e2e_s_mean",
    "e2e_s_p95",
    "tokens_per_s",
    "accepted_per_round",
)


class ValidationError(ValueError):
    """A setting or a file of results is wrong; the message says which and why."""


@dataclass(frozen=True)
class Setting:
    """One way of decoding across one link.

    Attributes:
        rule: ``plain``, ``static:N``, ``hf``, ``goodput``, or ``policy:DIR``, an exported policy.
        protocol: Who waits for whom; for ``plain`` it says nothing.
        rtt_s: Round trip of the link alone.
        clients: Number of clients.
        label: Name of the rule in tables and files; default its own.
        series: Path of a series that the link replays from its beginning; "": it does not change.
        until_s: Requests are asked until then; 0: as many as the scenario says.
    """

    rule: str
    protocol: Protocol
    rtt_s: float
    clients: int
    label: str = ""
    series: str = ""
    until_s: float = 0.0

    @property
    def way(self) -> str:
        """The way of decoding, whatever the link."""
        if self.label:
            return self.label
        name = self.rule.replace(":", "")
        if self.rule.startswith("goodput:"):
            name = re.sub(r"[^A-Za-z0-9]+", "-", self.rule)
        return name if self.rule == "plain" else f"{SHORT[self.protocol]}-{name}"

    @property
    def name(self) -> str:
        """Name of the setting."""
        link = f"+{Path(self.series).stem.replace('_', '-')}" if self.series else ""
        return f"{self.way}_rtt{1e3 * self.rtt_s:g}{link}_c{self.clients}"

    @property
    def scheduler(self) -> str:
        """The rule as the registry of schedulers knows it.

        Raises:
            ValidationError: There is no such rule.
        """
        name, _, rest = self.rule.partition(":")
        if self.rule == "plain":
            return "cloud_ar"
        place = "own" if self.series else "edge"  # see dsd_env/testbed/changing.py
        if name == "static" and rest.isdecimal() and int(rest) > 0:
            return f"static:{rest}:1:{place}"
        if self.rule == "hf":
            return f"hf_heuristic:{place}"
        if name == "goodput":
            spec = "jsq_goodput" + (f":{rest}" if rest else "")
            try:
                make_scheduler(spec)
            except SchedulerError as error:
                raise ValidationError(f"rule {self.rule!r}: {error}") from error
            return spec
        if name == "policy" and rest:
            return self.rule
        raise ValidationError(
            f"rule {self.rule!r} is none of plain, static:N, hf, goodput, goodput:KEY=VALUE+..., policy:DIR"
        )

    def decide(self, scenario: Scenario) -> Decide:
        """Return the rule for the testbed: what the twin decides by, or for one length that length."""
        name, _, rest = self.rule.partition(":")
        if self.rule == "plain":
            return static(0)
        if name == "static":
            return static(int(rest))
        from dsd_env.serving import Controller, Deployment

        return ControllerHook(Controller(self.scheduler, Deployment.of(scenario)))


def settings_of(
    rules: Sequence[tuple[str, Protocol]], rtts_s: Sequence[float], clients: Sequence[int]
) -> list[Setting]:
    """Return every rule across every link with every number of clients.

    Raises:
        ValidationError: A rule or a number makes no sense.
    """
    found = [Setting(rule, protocol, rtt, n) for n in clients for rtt in rtts_s for rule, protocol in rules]
    for setting in found:
        _ = setting.scheduler
        if setting.protocol not in get_args(Protocol) or setting.rtt_s < 0 or setting.clients < 1:
            raise ValidationError(f"{setting}: no such protocol, or a number that is too small")
    return found


@dataclass(frozen=True)
class Served:
    """What became of one request, measured or simulated.

    Attributes:
        client: Number of its client.
        ordinal: Number of requests that the client had made before.
        kind: Its kind in the scenario.
        arrival_s: When it was asked, from the beginning.
        ttft_s: Time to first token.
        e2e_s: Time to the last.
        tokens: Output tokens.
        accepted: Drafts accepted.
        rounds: Iterations of the target that decided a token behind the first.
    """

    client: int
    ordinal: int
    kind: int
    arrival_s: float
    ttft_s: float
    e2e_s: float
    tokens: int
    accepted: int
    rounds: int

    @property
    def tpot_s(self) -> float:
        """Mean time per output token behind the first; NaN of a single token."""
        return (self.e2e_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else math.nan


def metrics_of(requests: Sequence[Served]) -> dict[str, float]:
    """Return what is compared of some requests.

    Raises:
        ValidationError: There are none.
    """
    if not requests:
        raise ValidationError("no request was served: there is nothing to compare")
    found: dict[str, float] = {}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = np.array([getattr(request, name) for request in requests])
        values = values[~np.isnan(values)]
        found[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
        found[f"{name}_p95"] = float(np.quantile(values, 0.95)) if len(values) else math.nan
    began = min(request.arrival_s for request in requests)
    ended = max(request.arrival_s + request.e2e_s for request in requests)
    found["tokens_per_s"] = sum(request.tokens for request in requests) / (ended - began)
    rounds = sum(request.rounds for request in requests)
    found["accepted_per_round"] = sum(request.accepted for request in requests) / rounds if rounds else 0.0
    return found


# ---------------------------------------------------------------------- the testbed


async def play(
    setting: Setting,
    scenario: Scenario,
    port: int,
    questions: Mapping[str, Question],
    make_line: LineMaker,
    *,
    seed: int,
    pool: Executor | None = None,
    config: ClientConfig | None = None,
    heard: list[list[int]] | None = None,
) -> list[Served]:
    """Let the testbed's clients ask what the scenario's clients ask.

    Args:
        setting: How they go about it.
        scenario: The twin of this setting.
        port: The server's port on this machine.
        questions: The question of each kind.
        make_line: Makes the drafter of a request.
        seed: Seed of the workload.
        pool: Where drafts are computed; all clients share it.
        config: Of the clients, but for the protocol.
        heard: Gets every output.

    Returns:
        One entry for each request, in the order in which they were asked.
    """
    generator = WorkloadGenerator(scenario, seed)
    total: float = generator.total_requests or scenario.episode.measured_requests
    if setting.until_s:
        total = math.inf
    kinds = list(scenario.workload.kinds)
    if missing := set(kinds) - set(questions):
        raise ValidationError(f"no question for the kinds {sorted(missing)}")
    config = (config or ClientConfig(retry_s=5.0, silence_s=120.0, give_up_s=300.0)).model_copy(
        update={
            "protocol": setting.protocol,
            "plain_chunk_tokens": scenario.protocol.plain_chunk_tokens,
            "stream_chunk_tokens": scenario.protocol.stream_chunk_tokens,
        }
    )
    series = load_series(setting.series) if setting.series else None
    link = LinkConfig(delay_s=setting.rtt_s / 2, header_bytes=0, series=series)
    served: list[Served] = []
    asked = 0
    async with AsyncExitStack() as stack:
        proxy = ShapedProxy(f"127.0.0.1:{port}", link, link)
        near = await stack.enter_async_context(proxy.serving())
        await proxy.ready()
        decide = setting.decide(scenario)
        began_s = time.monotonic()
        proxy.begin()

        async def work(number: int) -> None:
            nonlocal asked
            channel = open_channel(f"127.0.0.1:{near}")
            client = EdgeClient(channel, make_line, decide, config, number=number, pool=pool)
            try:
                # A channel that is open already: the first request shall not pay for it.
                await channel.channel_ready()
                ordinal = 0
                while True:
                    at_s = generator.think_end_s(number, ordinal, time.monotonic() - began_s)
                    await asyncio.sleep(max(0.0, at_s - (time.monotonic() - began_s)))
                    if asked >= total or (setting.until_s and time.monotonic() - began_s >= setting.until_s):
                        return
                    asked += 1
                    kind = generator.request(number, ordinal).kind
                    arrival_s = time.monotonic() - began_s
                    output = await client.generate(questions[kinds[kind]])
                    if heard is not None:
                        heard.append(output.tokens)
                    served.append(served_of(output, number, ordinal, kind, arrival_s))
                    ordinal += 1
            finally:
                await channel.close()

        await asyncio.gather(*(work(number) for number in range(setting.clients)))
    return sorted(served, key=lambda one: one.arrival_s)


def served_of(output: Output, client: int, ordinal: int, kind: int, arrival_s: float) -> Served:
    """Return what became of a request of the testbed."""
    return Served(
        client,
        ordinal,
        kind,
        arrival_s,
        output.ttft_s,
        output.e2e_s,
        len(output.tokens),
        output.accepted,
        max(0, output.iterations - 1),
    )


# ---------------------------------------------------------------------- the simulation


def simulated(setting: Setting, scenario: Scenario, seed: int, engine: str = "reference") -> list[Served]:
    """Return what becomes of the requests in the simulation of the twin.

    Args:
        setting: How they go about it.
        scenario: The twin of this setting.
        seed: Seed of the workload.
        engine: Engine that simulates; both give the same, and the reference needs no compiling.
    """
    result = simulate(scenario, setting.scheduler, seed, engine=engine, record_events=True)
    while setting.until_s and float(result.requests["arrival_s"].max()) < setting.until_s:
        more = 2 * scenario.episode.measured_requests
        scenario = load_scenario(scenario, episode__requests=more, episode__total_requests=more)
        result = simulate(scenario, setting.scheduler, seed, engine=engine, record_events=True)
    commits: dict[int, int] = {}
    for event in result.events:
        if event.kind.name == "COMMIT":
            commits[event.request] = commits.get(event.request, 0) + 1
    table = result.requests
    per_client: dict[int, int] = {}
    served = []
    for row in range(len(table["request"])):
        client = int(table["device"][row])
        ordinal = per_client.get(client, 0)
        per_client[client] = ordinal + 1
        served.append(
            Served(
                client,
                ordinal,
                int(table["kind"][row]),
                float(table["arrival_s"][row]),
                float(table["ttft_s"][row]),
                float(table["e2e_s"][row]),
                int(table["output_tokens"][row]),
                int(table["accepted_tokens"][row]),
                commits[int(table["request"][row])] - 1,
            )
        )
    return [one for one in served if not setting.until_s or one.arrival_s < setting.until_s]


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class Row:
    """One figure of one setting.

    Attributes:
        setting: Name of the setting.
        metric: One of :data:`METRICS`.
        measured: In the testbed.
        simulated: In its twin.
        error_pct: By how many per cent the simulation is off; None where nothing was measured to be off from.
    """

    setting: str
    metric: str
    measured: float
    simulated: float
    error_pct: float | None

    @property
    def goal_pct(self) -> float | None:
        """Error that was allowed before; None: the figure has no goal."""
        return GOALS_PCT.get(self.metric)

    @property
    def within(self) -> bool:
        """Whether the goal was met, or there was none."""
        goal = self.goal_pct
        return goal is None or (self.error_pct is not None and abs(self.error_pct) <= goal)


def compare(name: str, measured: Sequence[Served], twin: Sequence[Served]) -> list[Row]:
    """Return the figures of a setting side by side."""
    ours, theirs = metrics_of(measured), metrics_of(twin)
    rows = []
    for metric in METRICS:
        a, b = ours[metric], theirs[metric]
        error = round(100.0 * (b / a - 1.0), 3) if a > 0 else None
        rows.append(Row(name, metric, round(a, 6), round(b, 6), error))
    return rows


@dataclass(frozen=True)
class Ranking:
    """How the ways of decoding rank by mean request time, on one link with one number of clients.

    Attributes:
        where: Link and clients.
        measured: Ways, the fastest first, in the testbed.
        simulated: The same in the simulation.
        agree: Pairs of ways that both put in the same order.
        pairs: Pairs of ways.
        close: Pairs that differ by less than :data:`CLOSE_PCT` in the testbed.
        close_wrong: Those of them that the simulation orders otherwise.
    """

    where: str
    measured: tuple[str, ...]
    simulated: tuple[str, ...]
    agree: int
    pairs: int
    close: int
    close_wrong: int


#: Two ways that differ by less than this many per cent are as good as equal.
CLOSE_PCT = 5.0


def rankings(rows: Sequence[Row], metric: str = "e2e_s_mean") -> list[Ranking]:
    """Return the rankings of all links, from the figures of a metric of which less is better."""
    places: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.metric == metric:
            way, _, where = row.setting.partition("_")
            places.setdefault(where, {})[way] = row
    found = []
    for where, ways in places.items():
        agree = close = close_wrong = 0
        pairs = list(combinations(ways.values(), 2))
        for a, b in pairs:
            same = (a.measured < b.measured) == (a.simulated < b.simulated)
            near = abs(a.measured - b.measured) < CLOSE_PCT / 100 * min(a.measured, b.measured)
            agree += same
            close += near
            close_wrong += near and not same
        found.append(
            Ranking(
                where,
                tuple(sorted(ways, key=lambda way: ways[way].measured)),
                tuple(sorted(ways, key=lambda way: ways[way].simulated)),
                agree,
                len(pairs),
                close,
                close_wrong,
            )
        )
    return found


def save_run(path: Path, setting: Setting, served: Sequence[Served], facts: Mapping[str, Any]) -> None:
    """Write what a setting's requests came to, atomically."""
    data = {**facts, "setting": vars(setting), "requests": [vars(one) for one in served]}
    write_json(path, data)


def load_run(path: Path) -> tuple[dict[str, Any], list[Served]]:
    """Return what was written of a setting: the facts and its requests.

    Raises:
        ValidationError: The file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        served = [Served(**row) for row in data.pop("requests")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValidationError(
            f"{path}: not a run of a setting; delete it to run it again ({error})"
        ) from error
    return data, served


def paired_gain(ours: Sequence[Served], theirs: Sequence[Served]) -> tuple[float, float, float]:
    """Return by how many per cent the mean time of a request is below another way's, with a 95 % interval.

    Requests are paired by client and ordinal; those that only one of both served are left out. The interval
    is a bootstrap over the pairs.

    Raises:
        ValidationError: They share fewer than two requests.
    """
    other = {(one.client, one.ordinal): one.e2e_s for one in theirs}
    keys = [(one.client, one.ordinal) for one in ours]
    pairs = np.array([(one.e2e_s, other[k]) for one, k in zip(ours, keys, strict=True) if k in other])
    if len(pairs) < 2:
        raise ValidationError("fewer than two requests in common: no interval")
    change, low, high = bootstrap_ratio(pairs[:, 0], pairs[:, 1], GAIN_RESAMPLES)
    return -100.0 * change, -100.0 * high, -100.0 * low


def load_results(path: Path) -> list[Row]:
    """Return the figures that were written.

    Raises:
        ValidationError: The file is missing or damaged.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValidationError(f"{path}: no results; simulate first ({error})") from error
