"""Serving engines: vLLM by the cost model that was fitted to it, and SGLang's grid of draft lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.published.figures import Check, Figure
from dsd_env.calibration.published.laboratory import scenario
from dsd_env.simulate import simulate

TPOT_LIMIT = 0.03
RANK_LIMIT = 0.4
"""A rank correlation below 0.6 says that the order of draft lengths is not the measured one."""
CLEAR = 0.02
"""A change of throughput smaller than this says nothing about its sign: figures of one run."""

PROFILE = "llama-3-8b_h100-sxm_tp1_vllm"
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 400
BATCHES, LENGTHS = (1, 8, 16, 32, 64), (0, 1, 3, 5)


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


def simulated_rounds(
    facts: Mapping[str, Any], batch: int, length: int, *, alpha: float
) -> tuple[float, list[NDArray[np.int64]]]:
    """Return the simulated mean time per token of a batch, and what its rounds committed.

    Args:
        facts: The model; the drafter's times are its own.
        batch: Sequences.
        length: Drafts of each round.
        alpha: Acceptance of each draft.
    """
    per_step = max(1, length)
    system = scenario(
        acceptance={"source": "iid", "alpha": alpha},
        target=PROFILE,
        # The model knows the time of a whole proposal; an equal part of it is a step.
        colocated={
            "t0_s": facts["draft_s_per_round"] / per_step,
            "c_s_per_token": facts["draft_s_per_token"] / batch,
            "k_bw_s_per_token": facts["draft_s_per_kv_token"] / per_step,
        },
        clients=batch,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        requests=batch,
        total_requests=batch,
        gammas=(0, 1, 3, 5),
    )
    rule = f"static:{length}:1:colocated" if length else "cloud_ar:1"
    result = simulate(system, rule, seed=1, record_events=True)
    from dsd_env.sim.events import EventKind

    rounds: dict[int, list[int]] = {}
    for event in result.events:
        if event.kind == EventKind.COMMIT:
            rounds.setdefault(event.request, []).append(int(event.value))
    # The first commit of each is the end of its prefill.
    committed = [np.array(values[1:], dtype=np.int64) for values in rounds.values()]
    return float(result.requests["tpot_s"].mean()), committed


def vllm(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold the shipped profile of vLLM, end to end, against the cost model fitted to vLLM."""
    del folder
    figures = []
    for batch in BATCHES:
        for length in LENGTHS:
            found_s, rounds = simulated_rounds(facts, batch, length, alpha=0.7)
            wanted_s = float(cost_model_tpot_s(facts, rounds, length).mean())
            figures.append(
                Figure(f"batch {batch}, {length} drafts", "ms", 1e3 * wanted_s, 1e3 * found_s, TPOT_LIMIT)
            )
    return Check(
        "vllm",
        "vLLM, 8B on one H100: time per token",
        facts["source"],
        f"The target is the shipped profile `{PROFILE}`; the time of a proposal is the model's own. The "
        "figures of the source are those of its cost model over the same rounds, in a loop of its own that "
        "shares no code with the simulator. The profile's overhead was fitted to this same model, so this "
        "holds the form and the engine, not the model, against vLLM.",
        tuple(figures),
        "The profile is a sum of measured kernels with their steps of tiles; the model is a straight line.",
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


def grid_tok_per_s(batch: int, length: int, *, profile: str, head: Mapping[str, Any], requests: int) -> float:
    """Return the simulated throughput of a batch with chains of some drafts."""
    system = scenario(
        acceptance={"source": "fitted", "model": "llama-3.1-8b_eagle3_mt-bench", "drafter": "eagle3"},
        target=profile,
        colocated=dict(head),
        clients=batch,
        prompt_tokens=64,
        output_tokens=256,
        requests=requests,
        total_requests=requests,
    )
    columns = simulate(system, f"static:{length}:1:colocated", seed=1).requests
    # Decoding alone, as throughput at a batch size has it.
    return batch / float(columns["tpot_s"].mean())


def sglang(facts: Mapping[str, Any], folder: Path) -> Check:
    """Hold sign and rank of the draft lengths at each batch size against SGLang's grid."""
    del folder
    profile = "llama-3-70b_h100-sxm_tp8"
    head = {"t0_s": 0.0011, "c_s_per_token": 2e-6}
    batches = facts["batch_sizes"]
    lengths = range(1, 7)
    found = {
        length: [
            grid_tok_per_s(batch, length, profile=profile, head=head, requests=max(4, batch))
            for batch in batches
        ]
        for length in lengths
    }
    figures = []
    for model, grid in facts["tok_per_s"].items():
        for column, batch in enumerate(batches):
            known = [length for length in grid if grid[length][column] is not None]
            wanted = [float(grid[length][column]) for length in known]
            here = [found[length][column] for length in known]
            figures.append(
                Figure(
                    f"{model}, batch {batch}: rank correlation", "", 1.0, kendall(wanted, here), RANK_LIMIT
                )
            )
            steps = [
                (later / earlier - 1.0, there / before - 1.0)
                for earlier, later, before, there in zip(wanted, wanted[1:], here, here[1:], strict=False)
            ]
            clear = [(change, simulated) for change, simulated in steps if abs(change) > CLEAR]
            same = sum((change > 0.0) == (simulated > 0.0) for change, simulated in clear)
            figures.append(
                Figure(
                    f"{model}, batch {batch}: one draft more, same sign",
                    "",
                    float(len(clear)),
                    float(same),
                    0.0,
                    absolute=True,
                )
            )
    return Check(
        "sglang",
        "SGLang: throughput by draft length and batch size",
        facts["source"],
        "No profile of either model (a 235B and a 355B mixture of experts, machine not stated) is "
        "at hand, and "
        f"none of their drafters. Stand-ins: `{profile}`, a head of 1.1 ms a step, and the recorded shape of "
        "EAGLE-3 on an 8B. So this is a check of the mechanism (more drafts help alone and hurt in a crowd), "
        f"not of these models. Changes below {100 * CLEAR:.0f} % are taken to have no sign.",
        tuple(figures),
        "Mixtures of experts read more weights the more tokens take part, which a dense model does not.",
    )
