"""Serving engines: vLLM by the cost model that was fitted to it, and SGLang's grid of draft lengths."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.acceptance.importers import import_specdecode_bench
from dsd_env.calibration.published.figures import Check, Figure
from dsd_env.calibration.published.laboratory import scenario
from dsd_env.sim.events import EventKind
from dsd_env.simulate import simulate

TPOT_LIMIT = 0.03
ROUNDS_LIMIT = 0.03
"""Of tokens per round, whose standard error is 0.3 to 2.1 % by what is drawn."""
RANK_LIMIT = 0.4
"""A rank correlation below 0.6 says that the order of draft lengths is not the measured one."""
CLEAR = 0.02
"""A change of throughput smaller than this says nothing about its sign: figures of one run."""

PROFILE = "llama-3-8b_h100-sxm_tp1_vllm"
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 400
BATCHES, LENGTHS = (1, 8, 16, 32, 64), (0, 1, 3, 5)
RECORDED = ("gsm8k", "cnn", "sharegpt")


# ---------------------------------------------------------------- vLLM


def cost_model_tpot_s(
    facts: Mapping[str, Any], rounds: Sequence[NDArray[np.int64]], length: int
) -> NDArray[np.float64]:
    """Return the mean time per token of each sequence of one batch, by the published cost model.

    A batch in lockstep, as the study's own simulator has it: every iteration proposes once, verifies all
    drafts of all sequences that are not finished, and pays its overhead.

    Args:
        facts: The model.
        rounds: For each sequence, the tokens that its rounds commit, in order.
        length: Drafts of each round; 0: plain decoding.
    """
    done = np.zeros(len(rounds), dtype=np.int64)
    ended_s = np.zeros(len(rounds))
    now_s, step = 0.0, 0
    while True:
        active = [i for i in range(len(rounds)) if step < len(rounds[i])]
        if not active:
            break
        kv = int((PROMPT_TOKENS + 1 + done[active]).sum())
        tokens = len(active) * (length + 1)
        now_s += facts["forward_s"] + facts["forward_s_per_token"] * tokens + facts["overhead_s"]
        now_s += facts["forward_s_per_kv_token"] * kv
        if length > 0:
            now_s += facts["draft_s_per_round"] + facts["draft_s_per_token"] * (length + 1)
            now_s += facts["draft_s_per_kv_token"] * kv
        for i in active:
            done[i] += rounds[i][step]
            ended_s[i] = now_s
        step += 1
    return np.asarray(ended_s / done, dtype=np.float64)


@dataclass(frozen=True)
class Engine:
    """What stands for vLLM in the simulator.

    Attributes:
        target: Latency profile of the target: a name or coefficients.
        head: Latency profile of its draft head.
        server: Other keys of the target.
    """

    target: str | Mapping[str, Any]
    head: Mapping[str, Any]
    server: Mapping[str, Any] = field(default_factory=dict)


def law(facts: Mapping[str, Any], batch: int, length: int) -> Engine:
    """Return the published cost model itself as coefficients.

    The model has the time of a whole proposal, and pays for the tokens of one sequence; a pass of the head
    is an equal part of it, and so is a token of each sequence.
    """
    passes = max(1, length)
    return Engine(
        target={
            "t0_s": facts["forward_s"],
            "c_s_per_token": facts["forward_s_per_token"],
            "k_bw_s_per_token": facts["forward_s_per_kv_token"],
        },
        head={
            "t0_s": facts["draft_s_per_round"] / passes,
            "c_s_per_token": facts["draft_s_per_token"] / batch,
            "k_bw_s_per_token": facts["draft_s_per_kv_token"] / passes,
        },
        server={"engine_overhead": {"per_iteration_s": facts["overhead_s"]}},
    )


def profiled(facts: Mapping[str, Any], batch: int, length: int) -> Engine:
    """Return the shipped profile of the target, with the proposals of the cost model."""
    return Engine(target=PROFILE, head=law(facts, batch, length).head)


def simulated_rounds(
    engine: Engine, batch: int, length: int, acceptance: Mapping[str, Any], *, seed: int = 1
) -> tuple[float, list[NDArray[np.int64]]]:
    """Return the simulated mean time per token of a batch, and what its rounds committed.

    Args:
        engine: What serves.
        batch: Sequences.
        length: Drafts of each round; 0: plain decoding.
        acceptance: Where acceptance comes from.
        seed: Episode seed.
    """
    system = scenario(
        acceptance=acceptance,
        target=engine.target,
        head=engine.head,
        clients=batch,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        requests=batch,
        total_requests=batch,
        gammas=LENGTHS,
        server=engine.server,
    )
    rule = f"static:{length}:1:colocated" if length else "cloud_ar:1"
    result = simulate(system, rule, seed=seed, record_events=True)
    rounds: dict[int, list[int]] = {}
    for event in result.events:
        if event.kind == EventKind.COMMIT:
            rounds.setdefault(event.request, []).append(int(event.value))
    # The first commit of each is the end of its prefill.
    committed = [np.array(values[1:], dtype=np.int64) for values in rounds.values()]
    return float(result.requests["tpot_s"].mean()), committed


IID = {"source": "iid", "alpha": 0.7}
"""Acceptance where no recording is at hand: what is held against the model is time, round by round."""


def _times(facts: Mapping[str, Any], engine: Callable[[Mapping[str, Any], int, int], Engine]) -> list[Figure]:
    figures = []
    for batch in BATCHES:
        for length in LENGTHS:
            found_s, rounds = simulated_rounds(engine(facts, batch, length), batch, length, IID)
            wanted_s = float(cost_model_tpot_s(facts, rounds, length).mean())
            figures.append(
                Figure(f"batch {batch}, {length} drafts", "ms", 1e3 * wanted_s, 1e3 * found_s, TPOT_LIMIT)
            )
    return figures


def vllm(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold the simulator with the coefficients of vLLM's cost model, end to end, against that model."""
    del folder
    return Check(
        "vllm",
        "vLLM, 8B on one H100: the simulator with the cost model's coefficients",
        facts["source"],
        "Target, head and overhead have the coefficients of the cost model, so a deviation would be the "
        "simulator's: how it batches, orders drafting and verification, counts KV and adds overheads. The "
        "figures of the source are those of its model over the same rounds, in a loop of its own that shares "
        f"no code with the simulator: {OUTPUT_TOKENS} tokens a sequence, each draft accepted with "
        f"{IID['alpha']}. How right the model is about vLLM, its authors say.",
        tuple(_times(facts, law)),
    )


def vllm_profile(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold the shipped profile of vLLM, end to end, against the cost model fitted to vLLM."""
    del folder
    return Check(
        "vllm-profile",
        "vLLM, 8B on one H100: the shipped profile",
        facts["source"],
        f"As above, but the target is the shipped profile `{PROFILE}`, whose overhead was fitted to this "
        "same model; the time of a proposal is still the model's own. So this holds the form of the profile "
        "against the model.",
        tuple(_times(facts, profiled)),
        "The profile is a sum of measured kernels with their steps of tiles; the model is a straight line.",
    )


def recorded_rounds(path: Path, length: int) -> tuple[float, int]:
    """Return tokens per round of a file of recorded acceptance, as the study walks it, and its requests.

    Every request goes from its first output token to its last, and counts alike.

    Args:
        path: A ``combined_KIND.jsonl`` of the study.
        length: Drafts of each round.
    """
    rounds_per_token = []
    for line in path.read_text(encoding="utf-8").splitlines():
        accepted = json.loads(line)["acc_eagle"]["acc_len"]
        at, rounds = 1, 0
        while at < len(accepted):
            at += min(accepted[at], length + 1)
            rounds += 1
        if rounds:
            rounds_per_token.append(rounds / (at - 1))
    return 1.0 / float(np.mean(rounds_per_token)), len(rounds_per_token)


def vllm_recorded(facts: Mapping[str, Any], folder: Path, data_dir: Path) -> Check:
    """Hold time per token and tokens per round against the model, with the study's recorded acceptance."""
    figures = []
    for kind in RECORDED:
        path = data_dir / "accept" / "specdecode_bench" / f"combined_{kind}.jsonl"
        trace = import_specdecode_bench({"any": path}, f"recorded_{kind}", ["eagle"]).save(folder)[0]
        acceptance = {"source": "trace", "trace": str(trace), "drafter": "eagle"}
        for length in LENGTHS[1:]:
            rounds_of = []
            for seed, batch in enumerate(BATCHES, 1):
                found_s, rounds = simulated_rounds(
                    law(facts, batch, length), batch, length, acceptance, seed=seed
                )
                rounds_of += rounds
                wanted_s = float(cost_model_tpot_s(facts, rounds, length).mean())
                what = f"{kind}, batch {batch}, {length} drafts"
                figures.append(Figure(what, "ms", 1e3 * wanted_s, 1e3 * found_s, TPOT_LIMIT))
            wanted, _ = recorded_rounds(path, length)
            found = sum(int(rounds.sum()) for rounds in rounds_of) / sum(len(rounds) for rounds in rounds_of)
            what = f"{kind}, {length} drafts: tokens per round"
            figures.append(Figure(what, "", wanted, found, ROUNDS_LIMIT))
    return Check(
        "vllm-recorded",
        "vLLM, 8B on one H100: with recorded acceptance",
        f"{facts['source']}; its recordings of EAGLE on GSM8K, CNN/DM and ShareGPT",
        "As the first, with the study's recorded acceptance in place of independent drafts. The recordings "
        "state no licence and are not shipped, so this is run only where they are. Tokens per round are "
        "those of the study's own walk through every recorded request; the simulator draws "
        f"{sum(BATCHES)} of them with replacement, which alone makes 0.3 to 1.1 % (ShareGPT: 0.7 to 2.1 %).",
        tuple(figures),
    )


# ---------------------------------------------------------------- SGLang


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's rank correlation; pairs that are equal in either count for nothing."""
    total, pairs = 0, 0
    for i in range(len(first)):
        for j in range(i):
            pairs += 1
            total += int(np.sign(first[i] - first[j]) * np.sign(second[i] - second[j]))
    return total / pairs


def grid_tok_per_s(batch: int, length: int, *, profile: str, head: str | Mapping[str, Any]) -> float:
    """Return the simulated throughput of a batch with chains of some drafts."""
    requests = max(4, batch)
    system = scenario(
        acceptance={"source": "fitted", "model": "llama-3.1-8b_eagle3_mt-bench", "drafter": "eagle3"},
        target=profile,
        head=head,
        clients=batch,
        prompt_tokens=64,
        output_tokens=256,
        requests=requests,
        total_requests=requests,
    )
    columns = simulate(system, f"static:{length}:1:colocated", seed=1).requests
    # Decoding alone, as throughput at a batch size has it.
    return batch / float(columns["tpot_s"].mean())


GRID_PROFILE, GRID_HEAD = "llama-3-70b_h100-sxm_tp8", "eagle3-llama-3-70b_h100-sxm_tp8"
GUESSED_HEAD = {"t0_s": 0.0011, "c_s_per_token": 2e-6}
"""A head of a guessed speed, as this check had it before there were profiles of heads."""


def _grid_figures(facts: Mapping[str, Any], head: str | Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Return the figures of each model, with a head in place of its own."""
    batches = facts["batch_sizes"]
    found = {
        length: [grid_tok_per_s(batch, length, profile=GRID_PROFILE, head=head) for batch in batches]
        for length in range(1, 7)
    }
    figures: dict[str, list[Figure]] = {}
    for model, grid in facts["tok_per_s"].items():
        figures[model] = []
        for column, batch in enumerate(batches):
            known = [length for length in grid if grid[length][column] is not None]
            wanted = [float(grid[length][column]) for length in known]
            here = [found[length][column] for length in known]
            what = f"{model}, batch {batch}: rank correlation"
            figures[model].append(Figure(what, "", 1.0, kendall(wanted, here), RANK_LIMIT))
            steps = [
                (later / earlier - 1.0, there / before - 1.0)
                for earlier, later, before, there in zip(wanted, wanted[1:], here, here[1:], strict=False)
            ]
            clear = [(change, simulated) for change, simulated in steps if abs(change) > CLEAR]
            same = float(sum((change > 0.0) == (simulated > 0.0) for change, simulated in clear))
            what = f"{model}, batch {batch}: one draft more, same sign"
            figures[model].append(Figure(what, "", float(len(clear)), same, 0.0, absolute=True))
    return figures


def _met(figures: Mapping[str, Sequence[Figure]]) -> str:
    return ", ".join(
        f"{sum(figure.passes for figure in of_model)} of {len(of_model)} for {model}"
        for model, of_model in figures.items()
    )


def sglang(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold sign and rank of the draft lengths at each batch size against SGLang's grid."""
    del folder
    figures = _grid_figures(facts, GRID_HEAD)
    guessed = _grid_figures(facts, GUESSED_HEAD)
    return Check(
        "sglang",
        "SGLang: throughput by draft length and batch size",
        facts["source"],
        "No profile of either model (a 235B and a 355B mixture of experts, machine not stated) is at hand, "
        f"and none of their drafters. Stand-ins: `{GRID_PROFILE}` with its engine's overhead, the head "
        f"`{GRID_HEAD}`, and the recorded shape of EAGLE-3 on an 8B, the same for both. So this is a check "
        "of the mechanism (more drafts help alone and hurt in a crowd), not of these models. Changes below "
        f"{100 * CLEAR:.0f} % are taken to have no sign.",
        tuple(figure for of_model in figures.values() for figure in of_model),
        f"Met: {_met(figures)}. With a guessed head of {1e3 * GUESSED_HEAD['t0_s']:.1f} ms a step: "
        f"{_met(guessed)}. A dearer step favours short drafts, as Qwen3 has them, a cheaper one long drafts, "
        "as GLM has them: which is right for which is not known, nor is the acceptance of either, and "
        "neither is fitted here. Mixtures of experts also read more weights the more tokens take part, which "
        "a dense model does not.",
    )
