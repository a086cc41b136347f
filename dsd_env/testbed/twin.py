"""The testbed's twin: a scenario of its measured parts, which the simulator runs and policies train on.

Clients share one device that drafts for them in turn, as an edge server does; so the twin has one edge server
with a drafter of one sequence at a time. Its link to the target and the clients' own have the same delay.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from dsd_env.calibration.latency.rising import rising
from dsd_env.files import write_text
from dsd_env.latency import LatencyProfile
from dsd_env.latency.profile import save_profile
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.strict_model import StrictNumbers
from dsd_env.testbed.timing import Times

Role = Literal["target", "drafter"]
#: Iterations this many times as long as the median of their kind are stragglers.
STRAGGLER = 1.25
#: Lengths on offer in the twin.
GAMMAS = (0, 1, 2, 3, 4, 6, 8)


class Live(StrictNumbers, BaseModel):
    """What plain decoding across an undelayed link showed beside the target's passes. Seconds.

    Attributes:
        round_trip_s: Round trip of a message without the link's own delay and without the time at the server.
        token_s: Time from one token to the next at the client.
        ttft_s: Times to first token.
        prompt_tokens: Of those requests.
        sequences: Requests answered at a time, for the next; 1 where that was not measured.
        together_s: Time from one token to the next while so many are answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round_trip_s: float = Field(ge=0)
    token_s: float = Field(gt=0)
    ttft_s: tuple[float, ...] = Field(min_length=1)
    prompt_tokens: tuple[int, ...] = Field(min_length=1)
    sequences: int = Field(1, ge=1)
    together_s: float | None = Field(None, gt=0)


class Parts(StrictNumbers, BaseModel):
    """Times of both models.

    Attributes:
        passes: The target's passes by new tokens.
        windows: The drafter's windows by drafts.
        first_steps: Its first step by prompt tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: tuple[Times, ...] = Field(min_length=3)
    windows: tuple[Times, ...] = Field(min_length=2)
    first_steps: tuple[Times, ...] = Field(min_length=1)

    def window_fit(self) -> tuple[float, float]:
        """Return the time of a draft and what a window takes beside its drafts, in seconds.

        A line through the means by drafts, weighted so that relative errors are least. Means, since windows
        differ by what is drafted: with another vocabulary a draft can take two steps. Where the line says
        that a draft takes no time, or what is beside it less than none, it is laid through 0.
        """
        drafts = np.array([times.work for times in self.windows], float)
        seconds = np.array([times.mean_s for times in self.windows])
        design = np.stack([drafts, np.ones_like(drafts)], axis=1) / seconds[:, None]
        (step_s, beside_s), *_ = np.linalg.lstsq(design, np.ones_like(drafts), rcond=None)
        if beside_s < 0 or step_s <= 0:
            return float((seconds / drafts).mean()), 0.0
        return float(step_s), float(beside_s)

    def draft_noise_sigma(self) -> float:
        """Return how the time of one draft scatters, if those of a window do so each for itself."""
        scaled = [
            times.work * (second / times.mean_s - 1.0) ** 2
            for times in self.windows
            for second in times.seconds
        ]
        return min(1.0, math.sqrt(math.log1p(statistics.fmean(scaled))))

    def pass_knots(self) -> list[tuple[int, float]]:
        """Return the medians of passes of two tokens and more, made not to fall; for one token the first."""
        knots = _rising([(times.work, times.median_s) for times in self.passes if times.work > 1])
        return [(1, knots[0][1]), *knots]

    def single_token_s(self) -> float:
        """Return what a pass of a single token takes more than one of two."""
        singles = [times.median_s for times in self.passes if times.work == 1]
        return max(0.0, singles[0] - self.pass_knots()[0][1]) if singles else 0.0

    def pass_s(self, tokens: int) -> float:
        """Return the time of a pass of the target, between the sizes measured on a line."""
        knots = self.pass_knots()
        seconds = float(np.interp(tokens, [size for size, _ in knots], [second for _, second in knots]))
        return seconds + (self.single_token_s() if tokens == 1 else 0.0)


class Calibration(StrictNumbers, BaseModel):
    """All that was measured of a testbed.

    Attributes:
        target: Name of the target.
        draft: Name of the draft model.
        dtype: Compute dtype of both.
        target_bytes: Bytes of the target's weights.
        draft_bytes: Bytes of the drafter's.
        processor: What ran them.
        software: Versions.
        date: When.
        apart: Times while the other model rested.
        together: Times while it worked, too: they share memory and caches.
        live: What plain decoding showed, with the drafter at rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    draft: str
    dtype: str
    target_bytes: int = Field(ge=1)
    draft_bytes: int = Field(ge=1)
    processor: str
    software: str
    date: str
    apart: Parts
    together: Parts
    live: Live | None = None

    def parts(self, apart: bool) -> Parts:
        """Return the times that hold where only one model works at a time, or both do."""
        return self.apart if apart else self.together

    def overhead_s(self) -> float:
        """Return what an iteration of one sequence takes beside the target's pass."""
        return 0.0 if self.live is None else max(0.0, self.live.token_s - self.apart.pass_s(1))

    def per_sequence_s(self) -> float:
        """Return what each further sequence adds to an iteration beside the longer pass.

        Decoding several requests at a time shows it, held against decoding one just before, so that a machine
        that has become slower since the passes were timed does not count.
        """
        if self.live is None or self.live.together_s is None or self.live.sequences < 2:
            return 0.0
        longer_s = self.apart.pass_s(self.live.sequences) - self.apart.pass_s(1)
        return max(0.0, self.live.together_s - self.live.token_s - longer_s) / (self.live.sequences - 1)

    def front_end_s(self) -> float:
        """Return what a prompt takes beside its way and its pass: opening its RPC, above all."""
        if self.live is None:
            return 0.0
        passes = [self.apart.pass_s(tokens) + self.overhead_s() for tokens in self.live.prompt_tokens]
        rest = [t - p - self.live.round_trip_s for t, p in zip(self.live.ttft_s, passes, strict=True)]
        return max(0.0, statistics.median(rest))


def _rising(knots: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return knots whose seconds do not fall."""
    seconds = rising([second for _, second in knots])
    return [(work, second) for (work, _), second in zip(knots, seconds, strict=True)]


def noise_of(groups: Sequence[Times]) -> dict[str, Any]:
    """Return how repeats of equal work scatter: a log-normal's sigma, and stragglers apart.

    Where the machine does other work at the same time, tiny passes scatter beyond what a profile can say; its
    bounds are taken then.
    """
    ratios = np.array([s / times.median_s for times in groups for s in times.seconds])
    slow = ratios > STRAGGLER
    usual = np.log(ratios[~slow])
    share = float(slow.mean())
    return {
        "sigma": round(min(1.0, float(np.sqrt((usual**2).mean()))), 5),
        "straggler_share": round(min(0.5, share), 5),
        "straggler_factor": round(min(100.0, float(ratios[slow].mean())) if share else 1.0, 4),
        "source": f"{len(ratios)} repeats of {len(groups)} kinds of work",
    }


def profile_of(found: Calibration, role: Role, name: str, command: str, *, apart: bool) -> LatencyProfile:
    """Return the latency profile of the target, or of the drafter, of which a step is a draft.

    Its error is that of the medians of one half of the repeats on the other half.

    Args:
        found: What was measured.
        role: Of which model.
        name: Name of the profile.
        command: What measured it.
        apart: Whether the other model is to rest meanwhile.
    """
    parts = found.parts(apart)
    single_s = None
    if role == "target":
        groups, knots = list(parts.passes), parts.pass_knots()
        single_s = round(parts.single_token_s(), 7)
        what = "whole passes of the testbed's target"
    else:
        groups = [*parts.windows, *parts.first_steps]
        step_s, _ = parts.window_fit()
        longer = [(t.work, t.median_s) for t in parts.first_steps if t.work > 2 and t.median_s > step_s]
        # Until the shortest prompt timed a step is taken to be as long as one of a token.
        knots = _rising([(1, step_s), (2, step_s), *longer]) if longer else [(1, step_s), (2, step_s)]
        what = "drafts of the testbed's windows, and its first steps"
    # Where the machine does other work, a pass can take ten times as long as its median; what a profile can
    # say of that ends at 1000 %.
    errors = np.minimum(_half_errors(groups), 1000.0)
    return LatencyProfile.model_validate(
        {
            "name": name,
            "role": role,
            "model": found.target if role == "target" else found.draft,
            "device": found.processor,
            "parallelism": 1,
            "precision": found.dtype,
            "label": "measured",
            "coefficients": {
                "t0_s": knots[0][1],
                "w_s": 0.0,
                "c_s_per_token": max(0.0, (knots[-1][1] - knots[0][1]) / (knots[-1][0] - knots[0][0])),
                "p": 1.0,
                "compute_knots": [(size, round(seconds, 7)) for size, seconds in knots],
                **({} if single_s is None else {"single_token_s": single_s}),
            },
            "weight_bytes": found.target_bytes if role == "target" else found.draft_bytes,
            "kv_bytes_per_token": 1,
            "power": {"idle_w": 0.0, "busy_w": 0.0, "label": "spec", "note": "not measured"},
            "provenance": {
                "sources": [
                    {"name": f"own measurement ({found.software})", "licence": "own measurement"},
                ],
                "command": command,
                "date": found.date,
            },
            "error": {
                "heldout_median_pct": float(np.median(errors)),
                "heldout_p95_pct": float(np.quantile(errors, 0.95)),
                "heldout_max_pct": float(errors.max()),
                "cells": len(errors),
                "method": "medians of one half of the repeats on the other half",
            },
            "noise": noise_of(groups),
            "notes": [
                f"{what}, one thread on one core, while the other model "
                + ("rested" if apart else "worked on another core")
            ],
        }
    )


def _half_errors(groups: Sequence[Times]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return by how many per cent the medians of both halves of repeats differ."""
    errors = []
    for times in groups:
        first, second = times.seconds[::2], times.seconds[1::2] or times.seconds
        errors.append(abs(statistics.median(first) / statistics.median(second) - 1) * 100)
    return np.array(errors)


def scenario_of(
    found: Calibration,
    name: str,
    kinds: Mapping[str, int],
    *,
    output_tokens: int,
    trace: str,
    folder: Path,
    think_s: float = 0.5,
    requests: int = 8,
) -> dict[str, Any]:
    """Return the twin of one client across 5 ms as a scenario's mapping; :func:`variant` makes others of it.

    Args:
        found: What was measured.
        name: Its name.
        kinds: Prompt tokens by kind of request; each kind is one recorded question.
        output_tokens: Length of every answer.
        trace: Path of the recorded acceptance.
        folder: Where the profiles are.
        think_s: Time between a client's answer and its next question.
        requests: Requests of an episode.
    """
    bits_per_s = 1e9  # the shim has no bandwidth of its own
    longest = max(kinds.values()) + output_tokens + max(GAMMAS) + 1
    nothing = {"idle_w": 0.0, "busy_w": 0.0}
    return {
        "name": name,
        "card": {
            "models": f"{found.target}, {found.dtype}, on one core, {found.draft} on another of "
            f"{found.processor}.",
            "regime": "The testbed's twin: one target, and one device that drafts for all clients in turn.",
            "utilisation": "Closed loop: as many requests in the system as clients, thinking apart.",
            "limits": "Made of measurements of one machine; it says nothing of others.",
        },
        "devices": {
            "client": {
                "count": 1,
                "link": "wan",
                "edge_link": "here",
                "power": nothing,
            }
        },
        "edge_servers": {
            "edge": {
                "drafter": {"model": "draft", "concurrency": 1, **_drafter(found, folder, True, False)},
                "backhaul": "wan",
                "power": nothing,
            }
        },
        "targets": {
            "target": {
                **_target(found, folder, True, False, usual_prompt(kinds)),
                "gpus": 1,
                "kv_capacity_tokens": 16 * longest,
                "max_num_seqs": 16,
                "max_num_batched_tokens": 512,
                "engine_overhead": _overhead(found),
                "power": nothing,
            }
        },
        "links": {
            "wan": {
                "one_way_s": _one_way_s(found, 0.005),
                "uplink_bits_per_s": bits_per_s,
                "downlink_bits_per_s": bits_per_s,
            },
            "here": {"one_way_s": 0.0, "uplink_bits_per_s": 1e12, "downlink_bits_per_s": 1e12},
        },
        "acceptance": {"draft": {"source": "trace", "trace": trace, "drafter": found.draft}},
        "slo": {
            "usual": {
                "ttft_s": round(2 * found.apart.pass_s(max(kinds.values())), 4),
                "tpot_s": round(found.apart.pass_s(1), 4),
            }
        },
        "workload": {
            "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": think_s}},
            "kinds": {
                kind: {
                    "weight": 1.0,
                    "slo": "usual",
                    "acceptance_kinds": [kind],
                    "prompt_tokens": {"distribution": "constant", "value": tokens},
                    "output_tokens": {"distribution": "constant", "value": output_tokens},
                }
                for kind, tokens in kinds.items()
            },
            "max_prompt_tokens": max(kinds.values()),
            "max_output_tokens": output_tokens,
        },
        # The testbed's clients measure their link with every token, as acknowledgements do here.
        "protocol": {"kind": "synchronous", "plain_chunk_tokens": 8, "token_acks": True},
        "actions": {"gammas": list(GAMMAS), "batch_sizes": [1], "targets_offered": 1},
        "reward": {"reference_e2e_s": round(output_tokens * found.apart.pass_s(1), 3)},
        "episode": {"requests": requests, "total_requests": requests},
    }


def _profile_path(folder: Path, role: Role, apart: bool) -> Path:
    return folder / f"{role}-{'apart' if apart else 'together'}.yaml"


def _one_way_s(found: Calibration, rtt_s: float) -> float:
    live_s = 0.0 if found.live is None else found.live.round_trip_s
    return round((rtt_s + live_s) / 2, 7)


def _target(found: Calibration, folder: Path, apart: bool, plain: bool, prompt_tokens: int) -> dict[str, Any]:
    """Return what of a target depends on whether the drafter works meanwhile.

    Both read a prompt at the same time, also where they take turns then: what that costs the target is added
    to a prompt's time.
    """
    noise = noise_of(found.apart.passes)  # what else the machine does; the other model is in the medians
    front_end_s = found.front_end_s()
    if apart and not plain:
        front_end_s += max(0.0, found.together.pass_s(prompt_tokens) - found.apart.pass_s(prompt_tokens))
    return {
        "front_end_s": round(front_end_s, 7),
        "profile": str(_profile_path(folder, "target", apart)),
        "iteration_noise_sigma": noise["sigma"],
        "straggler_share": noise["straggler_share"],
        "straggler_factor": noise["straggler_factor"],
    }


def _overhead(found: Calibration) -> dict[str, float]:
    """Return what iterations take beside their passes.

    Where the machine did other work meanwhile, that can be more than a scenario can say; its bounds are taken
    then.
    """
    sequence_s = found.per_sequence_s()
    return {
        "per_iteration_s": round(min(0.1, max(0.0, found.overhead_s() - sequence_s)), 7),
        "per_sequence_s": round(min(0.01, sequence_s), 7),
    }


def _drafter(found: Calibration, folder: Path, apart: bool, streams: bool) -> dict[str, Any]:
    """Return what of a drafter depends on whether the target works meanwhile, and on the protocol.

    A step under way is not broken off when a result of a stream comes: the next generation waits for its end,
    half a step on the average.
    """
    parts = found.parts(apart)
    step_s, beside_s = parts.window_fit()
    return {
        "profile": str(_profile_path(folder, "drafter", apart)),
        "per_generation_s": round(beside_s + (step_s / 2 if streams else 0.0), 7),
        "draft_noise_sigma": round(parts.draft_noise_sigma(), 5),
    }


def write_profiles(found: Calibration, folder: Path, command: str) -> None:
    """Write the latency profiles of both models, each while the other rests and works."""
    for role in ("target", "drafter"):
        for apart in (True, False):
            path = _profile_path(folder, role, apart)
            save_profile(profile_of(found, role, f"testbed-{path.stem}", command, apart=apart), path)


def write_scenario(path: Path, data: Mapping[str, Any], head: str) -> None:
    """Write a scenario's file, with a line of comment at its head."""
    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110)
    write_text(path, f"# {head}\n{text}")


def changes_of(
    found: Calibration,
    folder: Path,
    prompt_tokens: int,
    *,
    rtt_s: float,
    clients: int,
    protocol: str,
    plain: bool = False,
) -> dict[str, Any]:
    """Return what makes of the twin that of another setting, as a scenario's keys.

    With one client and synchronous rounds, and without drafts, only one of the models works at a time; else
    both do, and are slower by what they take from each other.

    Args:
        found: What was measured.
        folder: Where the profiles are.
        prompt_tokens: Length of a usual prompt.
        rtt_s: Round trip of the link alone.
        clients: Number of clients.
        protocol: Kind of the protocol.
        plain: Whether nobody drafts.
    """
    apart = plain or (protocol == "synchronous" and clients == 1)
    return {
        "devices": {"client": {"count": clients}},
        "links": {"wan": {"one_way_s": _one_way_s(found, rtt_s)}},
        "protocol": {"kind": protocol},
        "targets": {"target": _target(found, folder, apart, plain, prompt_tokens)},
        "edge_servers": {"edge": {"drafter": _drafter(found, folder, apart, protocol == "streaming")}},
    }


def variant(
    found: Calibration,
    twin: Mapping[str, Any] | str | Path | Scenario,
    folder: Path,
    *,
    rtt_s: float,
    clients: int,
    protocol: str,
    plain: bool = False,
    **overrides: Any,
) -> Scenario:
    """Return the twin of another setting; see :func:`changes_of`.

    Args:
        found: What was measured.
        twin: The twin.
        folder: Where the profiles are.
        rtt_s: Round trip of the link alone.
        clients: Number of clients.
        protocol: Kind of the protocol.
        plain: Whether nobody drafts.
        overrides: Further values, as :func:`dsd_env.scenario.load_scenario` takes them.
    """
    base = load_scenario(twin)
    prompts = usual_prompt({k: v.prompt_tokens.value for k, v in base.workload.kinds.items()})  # type: ignore[union-attr]
    changes = changes_of(found, folder, prompts, rtt_s=rtt_s, clients=clients, protocol=protocol, plain=plain)
    return load_scenario(base, **changes, **overrides)


def usual_prompt(kinds: Mapping[str, float]) -> int:
    """Return the length of a usual prompt, given those by kind."""
    return int(statistics.median_low(kinds.values()))
