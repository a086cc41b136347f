"""What serving engines would write of rounds that are known: files to try the readers of their reports on."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

Rounds = Sequence[tuple[int, int]]
"""Drafted and accepted tokens of each round."""


def draw_rounds(seed: int, n: int, lengths: Sequence[int], acceptance: float) -> list[tuple[int, int]]:
    """Return rounds of the given lengths in turn, each draft accepted with one probability."""
    rng = np.random.default_rng(seed)
    drafted = [lengths[i % len(lengths)] for i in range(n)]
    return [(d, int(np.minimum(rng.geometric(1.0 - acceptance) - 1, d))) for d in drafted]


def tried_of(rounds: Rounds, places: int) -> list[int]:
    return [sum(d > j and a >= j for d, a in rounds) for j in range(places)]


def accepted_of(rounds: Rounds, places: int) -> list[int]:
    return [sum(a > j for _, a in rounds) for j in range(places)]


def drafted_of(rounds: Rounds, places: int) -> list[int]:
    return [sum(d > j for d, _ in rounds) for j in range(places)]


def vllm_log(rounds: Rounds, places: int, depth: int | None = None) -> str:
    """Return a line of vLLM's log, formatted as it formats it; ``nan`` for an interval without drafts."""
    n = len(rounds)
    drafted, accepted = sum(d for d, _ in rounds), sum(a for _, a in rounds)
    mean = 1 + accepted / n if n else float("nan")
    rates = [a / n if n else float("nan") for a in accepted_of(rounds, places)]
    share = 100 * accepted / drafted if drafted else float("nan")
    return (
        "(APIServer pid=1) INFO 01-02 03:04:05 [metrics.py:100] SpecDecoding metrics: "
        f"Mean acceptance length: {mean:.2f}, "
        + ("" if depth is None else f"Current speculative depth: {depth}, ")
        + f"Accepted throughput: {accepted / 10:.2f} tokens/s, "
        f"Drafted throughput: {drafted / 10:.2f} tokens/s, "
        f"Accepted: {accepted} tokens, Drafted: {drafted} tokens, "
        f"Per-position acceptance rate: {', '.join(f'{r:.3f}' for r in rates)}, "
        f"Avg Draft acceptance rate: {share:.1f}%"
    )


def vllm_metrics(rounds: Rounds, places: int, engine: str = "0", by_position: bool = False) -> str:
    """Return a ``/metrics`` page of one engine."""
    label = f'engine="{engine}",model_name="m"'

    def counter(name: str, value: float, position: int | None = None) -> str:
        where = label if position is None else f'{label},position="{position}"'
        return f"vllm:spec_decode_num_{name}_total{{{where}}} {float(value)}"

    lines = ["# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts."]
    lines += [counter("drafts", len(rounds))]
    lines += [counter("draft_tokens", sum(d for d, _ in rounds))]
    lines += [counter("accepted_tokens", sum(a for _, a in rounds))]
    lines += [counter("accepted_tokens_per_pos", n, j) for j, n in enumerate(accepted_of(rounds, places))]
    if by_position:
        lines += [counter("draft_tokens_per_pos", n, j) for j, n in enumerate(drafted_of(rounds, places))]
    lines += [f"vllm:spec_decode_num_drafts_created{{{label}}} 1.7e+09"]
    return "\n".join(lines) + "\n"


def vllm_bench(rounds: Rounds, places: int) -> str:
    """Return the result of a benchmark."""
    n, drafted, accepted = len(rounds), sum(d for d, _ in rounds), sum(a for _, a in rounds)
    return json.dumps(
        {
            "total_output_tokens": n + accepted,
            "mean_ttft_ms": 70.5,
            "spec_decode_acceptance_rate": 100 * accepted / drafted,
            "spec_decode_acceptance_length": 1 + accepted / n,
            "spec_decode_num_drafts": n,
            "spec_decode_draft_tokens": drafted,
            "spec_decode_accepted_tokens": accepted,
            "spec_decode_per_position_acceptance_rates": [a / n for a in accepted_of(rounds, places)],
        }
    )


def vllm_response(rounds: Rounds, places: int, name: str = "c-1", level: str = "summary") -> dict[str, Any]:
    """Return a response with the metrics of one request.

    ``level`` is ``summary``, ``detailed``, or ``lengths`` for a summary with rounds by length of the draft.
    """
    n, drafted, accepted = len(rounds), sum(d for d, _ in rounds), sum(a for _, a in rounds)
    metrics: dict[str, Any] = {
        "mean_acceptance_length": 1 + accepted / n if n else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_histogram": [sum(a == j for _, a in rounds) for j in range(places + 1)],
        "num_spec_steps": n,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": places,
    }
    if level == "lengths":
        metrics["acceptance_histogram_by_draft_length"] = {
            str(k): [sum((d, a) == (k, j) for d, a in rounds) for j in range(k + 1)]
            for k in sorted({d for d, _ in rounds})
        }
    if level == "detailed":
        metrics |= {"per_step_accepted": [a for _, a in rounds], "per_step_drafted": [d for d, _ in rounds]}
    return {
        "id": name,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"content": "x"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": n + accepted},
        "metrics": {"speculative_decoding": metrics},
    }


def aiperf_record(
    rounds: Rounds, places: int | None, phase: str = "profiling", detailed: bool = True, **changes: Any
) -> dict[str, Any]:
    """Return a record as AIPerf writes it, of (drafted, accepted) rounds."""
    accepted = [run for _, run in rounds]
    values = {
        "engine": "vllm",
        "mean_acceptance_length": 1 + sum(accepted) / len(rounds),
        "draft_acceptance_rate": sum(accepted) / sum(length for length, _ in rounds),
        "acceptance_histogram": {str(j): accepted.count(j) for j in sorted(set(accepted))},
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(length for length, _ in rounds),
        "num_spec_steps": len(rounds),
        "num_spec_tokens": places,
        "completion_tokens": len(rounds) + sum(accepted),
        "per_step_accepted": accepted if detailed else None,
        "per_step_drafted": [length for length, _ in rounds] if detailed else None,
    }
    return {
        "metadata": {
            "session_num": 0,
            "x_request_id": "a",
            "benchmark_phase": phase,
            "request_start_ns": 1,
            "request_end_ns": 2,
            "was_cancelled": False,
        },
        "metrics": {"output_sequence_length": {"value": len(rounds) + sum(accepted), "unit": "tokens"}},
        "spec_decode_acceptance": {**values, **changes},
        "error": None,
    }


def sglang_meta(rounds: Rounds, places: int, name: str = "r-1", by_position: bool = False) -> dict[str, Any]:
    """Return the ``meta_info`` of one request."""
    n, drafted, accepted = len(rounds), sum(d for d, _ in rounds), sum(a for _, a in rounds)
    longest = max((a for _, a in rounds), default=0)
    meta = {
        "id": name,
        "prompt_tokens": 9,
        "completion_tokens": n + accepted,
        "spec_accept_rate": accepted / drafted if drafted else 0.0,
        "spec_accept_length": (n + accepted) / n if n else 0,
        "spec_num_correct_drafts": accepted,
        "spec_num_proposed_drafts": drafted,
        "spec_verify_ct": n,
        "spec_correct_drafts_histogram": [sum(a == j for _, a in rounds) for j in range(longest + 1)],
    }
    if by_position:
        meta["spec_num_proposed_drafts_by_position"] = drafted_of(rounds, places)
        meta["spec_proposed_drafts_histogram"] = [sum(d == k for d, _ in rounds) for k in range(places + 1)]
    return meta
