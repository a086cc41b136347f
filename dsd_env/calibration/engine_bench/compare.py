"""An engine's measured runs against the simulator's runs of the same setting."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env import simulate
from dsd_env.calibration.acceptance.importers import import_plain
from dsd_env.calibration.acceptance.rounds import model_from_rounds, read_plain_rounds
from dsd_env.calibration.engine_bench.runs import METRICS, Answer, Question, Run
from dsd_env.calibration.engine_bench.times import StepTimes
from dsd_env.control import Decision, DecisionView, Site
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers import Scheduler
from dsd_env.schedulers.rules import placement_of, plain_placement

DRAFTER = "draft"
"""Name of the drafter in scenarios of this package."""
GOALS = {
    "ttft_mean_s": math.inf,
    "ttft_p95_s": math.inf,
    "tpot_mean_s": 5.0,
    "tpot_p95_s": 10.0,
    "e2e_mean_s": 5.0,
    "e2e_p95_s": 10.0,
    "tokens_per_s": math.inf,
    "accepted_per_round": math.inf,
}
"""Per cent that simulated may be off measured; infinite: reported, without a goal."""


class ByBatch:
    """Drafts at the target by the number of requests there, as vLLM does with a table.

    Attributes:
        name: Name of the rule.
    """

    def __init__(self, table: Sequence[tuple[int, int, int]], name: str = "by_batch") -> None:
        """Take the rows (smallest batch, largest batch, length)."""
        self.name = name
        self._rows = [tuple(row) for row in table]

    def reset(self, scenario: Scenario, seed: int) -> None:
        """There is nothing to prepare."""

    def decide(self, view: DecisionView) -> Decision:
        """Return the length for the batch; a batch beyond the table has the last row's."""
        here = view.candidates[0].target
        batch = max(1, here.resident)
        length = next((row[2] for row in self._rows if row[0] <= batch <= row[1]), self._rows[-1][2])
        drafting = placement_of(view, Site.COLOCATED, here.index) if length else None
        if drafting is None:
            return Decision(0, 1, plain_placement(view, here.index))
        return Decision(length, 1, drafting)


def acceptance_model(
    runs: Sequence[Run], folder: Path, name: str, *, target: str, draft: str, date: str, command: str
) -> Path:
    """Fit a model of acceptance to vLLM's own records of rounds, by kind, and return its file.

    vLLM counts what it accepted before the end of the answer cuts it, as the simulator does.

    Args:
        runs: Runs that drafted.
        folder: Where the rounds (``NAME.rounds.jsonl``) and the model (``NAME.json``) are written.
        name: Name of the model.
        target: The target, in words.
        draft: The drafter, in words.
        date: Date of the fit, ``YYYY-MM-DD``.
        command: What makes it.
    """
    lines = []
    for run in runs:
        for answer in run.answers:
            own = run.facts["own_records"][str(answer.question)]
            rounds = list(zip(own["per_step_drafted"], own["per_step_accepted"], strict=True))
            if any(drafted for drafted, _ in rounds):
                row = {"kind": answer.kind, "prompt_tokens": 1, "drafters": {DRAFTER: {"rounds": rounds}}}
                lines.append(json.dumps(row))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.rounds.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = model_from_rounds(
        name,
        read_plain_rounds(source),
        target=target,
        drafters={DRAFTER: draft},
        date=date,
        data=f"vLLM's own records of {len(lines)} requests",
        licence="measured here",
        command=command,
    )
    model.save(folder)
    return folder / f"{name}.json"


def right_tokens(answers: Sequence[Answer]) -> list[bool | None]:
    """Return at which places of an output the drafter was right, from rounds of several runs with it.

    A drafter with the target's vocabulary that drafts greedily proposes the same token at a place wherever
    the round began, so every round tells of its accepted drafts and of the one that was wrong. ``None``: no
    round tells, since it was always the target's own token behind drafts that were all right.
    """
    known: list[bool | None] = [None] * len(answers[0].tokens)
    for answer in answers:
        place = 1  # the prefill gave the first
        for drafted, committed in answer.rounds:
            known[place : place + committed - 1] = [True] * (committed - 1)
            # The last round may have been cut at the end of the output.
            if committed - 1 < drafted and place + committed < len(known):
                known[place + committed - 1] = False
            place += committed
    return known


def acceptance_trace(runs: Sequence[Run], folder: Path, name: str) -> tuple[Path, float]:
    """Write a recording of the drafter from rounds of runs that asked the same questions at several lengths.

    Runs whose output differs from the first one's are left out for that question.

    Args:
        runs: Static runs, with the same questions.
        folder: Where the recording is written.
        name: Name of the recording.

    Returns:
        Its file, and the share of places that no round tells of; there the drafter is taken to be right if it
        mostly is in requests of that kind.
    """
    outputs = []
    for answer in runs[0].answers:
        same = [other for run in runs for other in run.answers if other.question == answer.question]
        outputs.append((answer.kind, right_tokens([a for a in same if a.tokens == answer.tokens])))
    rates = {}
    for kind in {kind for kind, _ in outputs}:
        told = [each for of, known in outputs if of == kind for each in known[1:] if each is not None]
        rates[kind] = sum(told) / max(1, len(told))
    lines = []
    for kind, known in outputs:
        run_length, here = [], 0
        for each in reversed(known):
            here = here + 1 if (rates[kind] > 0.5 if each is None else each) else 0
            run_length.append(min(here, 16))
        row = {"kind": kind, "prompt_tokens": 1, "drafters": {DRAFTER: {"run_length": run_length[::-1]}}}
        lines.append(json.dumps(row))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    import_plain(source).save(folder)
    places = [each for _, known in outputs for each in known[1:]]
    return folder / f"{name}.npz", places.count(None) / len(places)


def joined(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each setting and number of clients, with the answers of all its repeats."""
    found: dict[tuple[str, int], Run] = {}
    for run in runs:
        known = found.setdefault((run.setting, run.clients), run)
        if known is not run:
            known.answers.extend(run.answers)
            known.steps.extend(run.steps)
            known.duration_s += run.duration_s
    return list(found.values())


def told(times: StepTimes) -> str:
    """Return step times in words."""
    known = ", ".join(f"{m}: {1e3 * s:.0f}" for m, s in times.knots)
    return (
        f"(fit: median error {times.error_median_pct:.1f} %, p95 {times.error_p95_pct:.1f} %, "
        f"{times.steps} steps): target by new tokens (ms) {known}; {1e3 * times.drafter_s:.1f} ms for the "
        f"drafter's first pass, {1e3 * times.draft_t0_s:.2f} ms and {1e3 * times.draft_c_s_per_token:.2f} ms "
        f"a request for each draft, {1e3 * times.verifying_s:.1f} ms where drafts are verified; "
        f"scatter {100 * times.noise_sigma:.1f} %"
    )


def engine_of(times: StepTimes, profile: str, *, drafter: bool = True, noise: bool = True) -> dict[str, Any]:
    """Return what step times say of a scenario's target.

    Args:
        times: Step times.
        profile: File that :meth:`StepTimes.write_target` wrote of them.
        drafter: The engine has a drafter, whose first pass every step takes.
        noise: Let step times scatter as the measured ones did about the fit.
    """
    return {
        "profile": profile,
        "engine_overhead": {
            "per_iteration_s": min(0.1, times.drafter_s) if drafter else 0.0,
            "per_verifying_iteration_s": min(0.1, times.verifying_s),
        },
        "iteration_noise_sigma": min(1.0, times.noise_sigma) if noise else 0.0,
        "colocated_drafter": {"model": DRAFTER, "profile": times.draft_profile()},
    }


def describe(
    times: StepTimes,
    target_profile: Path,
    acceptance: Mapping[str, Any],
    questions: Sequence[Question],
    *,
    clients: int,
    drafter: bool = True,
    max_num_seqs: int = 8,
    gammas: Sequence[int] = (0, 1, 2, 3, 4),
    name: str = "engine_bench",
    noise: bool = True,
) -> Scenario:
    """Return the scenario of a run: clients in a closed loop without pauses before one engine.

    Args:
        times: Step times.
        target_profile: File that :meth:`StepTimes.write_target` wrote of them.
        acceptance: Entry of the drafter in the scenario's table of acceptance sources.
        questions: What is asked; kinds, lengths and number are those.
        clients: Clients side by side.
        drafter: The engine has a drafter, whose first pass every step takes.
        max_num_seqs: Requests resident at a time.
        gammas: Speculation lengths on offer.
        name: Name of the scenario.
        noise: Let step times scatter as the measured ones did about the fit.
    """
    kinds = {}
    for kind, count in sorted(Counter(question.kind for question in questions).items()):
        own = [question for question in questions if question.kind == kind]
        kinds[kind] = {
            "weight": float(count),
            "slo": "default",
            "acceptance_kinds": [kind],
            "prompt_tokens": _law([len(question.prompt_ids) for question in own]),
            "output_tokens": _law([question.output_tokens for question in own]),
        }
    return load_scenario(
        {
            "name": name,
            "card": {
                "models": "One vLLM with a draft model, described by its measured step times.",
                "regime": f"{clients} clients, each asking again as soon as it is answered.",
                "utilisation": "The engine is never idle.",
            },
            "devices": {
                "client": {"count": clients, "link": "none", "power": {"idle_w": 0.0, "busy_w": 0.0}}
            },
            "targets": {
                "engine": {
                    **engine_of(times, str(target_profile), drafter=drafter, noise=noise),
                    "gpus": 1.0,
                    "kv_capacity_tokens": 100_000,
                    "max_num_seqs": max_num_seqs,
                    "max_num_batched_tokens": 2048,
                    "max_batch_wait_s": 0.0,
                    "price_usd_per_gpu_hour": 0.0,
                    "power": {"idle_w": 0.0, "busy_w": 0.0},
                }
            },
            "links": {"none": {"one_way_s": 0.0, "uplink_bits_per_s": 1.0e12, "downlink_bits_per_s": 1.0e12}},
            "acceptance": {DRAFTER: dict(acceptance)},
            "slo": {"default": {"ttft_s": 10.0, "tpot_s": 1.0}},
            "workload": {
                "arrivals": {"kind": "closed_loop", "think_s": {"distribution": "constant", "value": 0.0}},
                "kinds": kinds,
                "max_prompt_tokens": 256,
                "max_output_tokens": 256,
            },
            "actions": {
                "gammas": sorted({0, *gammas}),
                "batch_sizes": [1],
                "targets_offered": 1,
            },
            "episode": {"requests": len(questions), "total_requests": len(questions)},
        }
    )


def _law(values: Sequence[int]) -> dict[str, Any]:
    """Return a law of lengths with the quantiles of values."""
    if len(set(values)) == 1:
        return {"distribution": "constant", "value": values[0]}
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    return {
        "distribution": "quantiles",
        "levels": levels,
        "values": [float(each) for each in np.quantile(np.array(values), levels)],
    }


def simulated(scenario: Scenario, scheduler: str | Scheduler, *, seeds: int) -> dict[str, float]:
    """Return :data:`METRICS` of simulations, the mean over seeds."""
    rows = []
    for seed in range(seeds):
        found = simulate(scenario, scheduler, seed=seed).requests
        ttft, tpot, e2e = (np.asarray(found[key], np.float64) for key in ("ttft_s", "tpot_s", "e2e_s"))
        later = np.asarray(found["output_tokens"], np.float64) - 1.0
        rounds = float(np.asarray(found["verifies"], np.float64).sum())
        ended = float(np.asarray(found["completed_s"]).max() - np.asarray(found["arrival_s"]).min())
        rows.append(
            {
                "ttft_mean_s": float(ttft.mean()),
                "ttft_p95_s": float(np.quantile(ttft, 0.95)),
                "tpot_mean_s": float((e2e - ttft).sum() / later.sum()),
                "tpot_p95_s": float(np.quantile(tpot, 0.95)),
                "e2e_mean_s": float(e2e.mean()),
                "e2e_p95_s": float(np.quantile(e2e, 0.95)),
                "tokens_per_s": float(np.asarray(found["output_tokens"]).sum()) / ended,
                "accepted_per_round": (
                    float(np.asarray(found["accepted_tokens"]).sum()) / rounds if rounds else math.nan
                ),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}


def rows_of(setting: str, measured: Mapping[str, float], found: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return one row per metric: setting, metric, measured, simulated, error_pct; without what is NaN."""
    rows = []
    for metric in METRICS:
        one, other = measured[metric], found[metric]
        if math.isnan(one) or math.isnan(other):
            continue
        error = 100.0 * (other - one) / one if one else math.nan
        rows.append(
            {
                "setting": setting,
                "metric": metric,
                "measured": one,
                "simulated": other,
                "error_pct": None if math.isnan(error) else error,
            }
        )
    return rows


def ranking(rows: Sequence[Mapping[str, Any]], settings: Sequence[str], metric: str, key: str) -> list[str]:
    """Return settings from the least to the largest value of a metric, measured or simulated (`key`)."""
    values = {row["setting"]: row[key] for row in rows if row["metric"] == metric}
    return sorted((name for name in settings if name in values), key=lambda name: values[name])
