"""Two models in one box, each on GPUs of its own: AMUSD, DSI and PEARL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsd_env.calibration.published.laboratory import scenario
from dsd_env.calibration.published.reproductions import (
    RECALLED,
    Claim,
    Estimate,
    Lab,
    Reproduction,
    windows,
)
from dsd_env.scenario import Scenario, load_scenario

OUTPUT_TOKENS = 400
REQUESTS = 20
WINDOWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
GAMMAS = (0, *WINDOWS)


def box(
    protocol: str,
    *,
    target: str | Mapping[str, Any],
    drafter: str | Mapping[str, Any],
    acceptance: Mapping[str, Any],
    acceptance_kinds: Sequence[str] = (),
) -> Scenario:
    """Return a box in which one request at a time is served: a target and a drafter on a GPU of its own."""
    return scenario(
        acceptance=acceptance,
        acceptance_kinds=acceptance_kinds,
        target=target,
        colocated={"profile": drafter, "mode": "dedicated", "gpus": 1.0},
        protocol=protocol,
        output_tokens=OUTPUT_TOKENS,
        requests=REQUESTS,
        gammas=GAMMAS,
    )


def tokens_per_round(alpha: float, gamma: int) -> float:
    """Return what a round of independent drafts commits on average, the target's own token included."""
    return float(sum(alpha**k for k in range(gamma + 1)))


def alpha_of(tokens: float, gamma: int) -> float:
    """Return the acceptance of independent drafts at which a round commits so many tokens."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tokens_per_round(middle, gamma) < tokens else (low, middle)
    return 0.5 * (low + high)


def alpha_of_rounds(rounds_by_tokens: Mapping[int, int], gamma: int) -> float:
    """Return the share of drafts accepted among those looked at, from rounds by tokens committed."""
    accepted = sum(count * (tokens - 1) for tokens, count in rounds_by_tokens.items())
    rejected = sum(count for tokens, count in rounds_by_tokens.items() if tokens <= gamma)
    return accepted / (accepted + rejected)


def iid(alpha: float) -> dict[str, Any]:
    """Return the acceptance of independent drafts."""
    return {"source": "iid", "alpha": alpha}


# ---------------------------------------------------------------- AMUSD


def amusd_steps(facts: Mapping[str, Any], decode_ms: float) -> tuple[dict[str, float], float]:
    """Return the coefficients of AMUSD's target, and its verification of a whole window in ms.

    What a verification takes beyond a decode step is spread evenly over the positions: the log has it for
    whole windows only.
    """
    per_position_ms = (facts["verify_ms"] - facts["decode_ms"]) / facts["lookahead"]
    target = {"t0_s": 1e-3 * (decode_ms - per_position_ms), "c_s_per_token": 1e-3 * per_position_ms}
    return target, decode_ms + facts["lookahead"] * per_position_ms


def amusd_speedups(
    lab: Lab, facts: Mapping[str, Any], decode_ms: float, alpha: float
) -> tuple[Estimate, Estimate]:
    """Return the simulated speed-ups over plain decoding: synchronous, and asynchronous."""
    target, _ = amusd_steps(facts, decode_ms)
    gamma = facts["lookahead"]
    rounds = box(
        "synchronous", target=target, drafter={"t0_s": 1e-3 * facts["draft_ms"]}, acceptance=iid(alpha)
    )
    stream = box(
        "streaming",
        target=target,
        drafter={"t0_s": 1e-3 * facts["draft_ms_beside_target"]},
        acceptance=iid(alpha),
    )
    plain = lab.measure(rounds, "cloud_ar")
    together = lab.measure(rounds, f"static:{gamma}:1:colocated")
    ahead = lab.measure(stream, f"static:{WINDOWS[-1]}:1:colocated")
    return plain / together, plain / ahead


def amusd_claims(lab: Lab, facts: Mapping[str, Any]) -> list[Claim]:
    """Simulate AMUSD's three data sets."""
    claims = []
    gamma = facts["lookahead"]
    for name, ms in facts["ms_per_token"].items():
        _, verify_ms = amusd_steps(facts, ms["plain"])
        alpha = alpha_of((gamma * facts["draft_ms"] + verify_ms) / ms["synchronous"], gamma)
        together, ahead = amusd_speedups(lab, facts, ms["plain"], alpha)
        theirs = {kind: f"{ms['plain'] / ms[kind]:.2f}×" for kind in ("synchronous", "asynchronous")}
        label = f"{name}, speed-up over plain decoding"
        claims += [
            Claim(f"{label}: asynchronous", theirs["asynchronous"], facts["source"], ahead.shown(unit="×")),
            Claim(
                f"{label}: synchronous, α = {alpha:.2f}",
                theirs["synchronous"],
                facts["source"],
                together.shown(unit="×"),
                calibrated=True,
            ),
        ]
    ms = facts["ms_per_token"]["HumanEval"]
    alpha = alpha_of_rounds(facts["rounds_by_tokens"], gamma)
    together, ahead = amusd_speedups(lab, facts, ms["plain"], alpha)
    claims.append(
        Claim(
            f"HumanEval with the acceptance of the one prompt in the log, α = {alpha:.2f}: synchronous, "
            f"asynchronous",
            f"{ms['plain'] / ms['synchronous']:.2f}×, {ms['plain'] / ms['asynchronous']:.2f}× (all prompts)",
            facts["log_source"],
            f"{together.shown(unit='×')}, {ahead.shown(unit='×')}",
        )
    )
    return claims


AMUSD = Reproduction(
    "amusd",
    "1B and 8B on a GPU each, one request",
    "Step times are the medians of the log of one prompt, but for the decode step, which is the data set's "
    "own. A verification costs more than a decode step in proportion to its drafts (assumed; the log has "
    "whole windows only). Acceptance is not published by data set: independent drafts, with the α at which "
    "the closed form of a round gives the paper's *synchronous* time; the asynchronous figure is then a "
    "prediction. AMUSD is `streaming` with a drafter of its own at the target (`mode: dedicated`), which "
    "decodes when no draft has come; the window of 16 never fills.",
    amusd_claims,
    "The α set by the synchronous time also pays for what is not in the set-up. The log's 74 rounds take "
    "6.99 s: five draft steps and a verification each explain 6.1 s, and a sixth draft step, which their "
    "code makes after a round that was accepted whole and ours does not need, another 0.7 s. With a higher "
    "α both would be faster, up to the pace of the drafter, which bounds the asynchronous run at 12 ms a "
    "token. Runs of accepted drafts in real text are longer and rarer than independent ones of the same "
    "mean, in MT-Bench's mixture of tasks above all.",
    "acceptance calibrated on their synchronous run, and independent from token to token",
)


# ---------------------------------------------------------------- DSI


def dsi_bound_ms(target_ms: float, drafter_ms: float, alpha: float) -> float:
    """Return the time per token of DSI with as many copies of the target as it takes, by hand.

    A run of m accepted drafts and the correction of the next take the m draft steps and one target step,
    which began when the last right draft was there; m is α / (1 − α) on average.
    """
    accepted = alpha / (1.0 - alpha)
    return (accepted * drafter_ms + target_ms) / (accepted + 1.0)


def waiting(stream: Scenario, chunk_tokens: int) -> Scenario:
    """Return a stream whose target waits for drafts instead of decoding, and gets so many at once."""
    return load_scenario(
        stream,
        protocol__stream_idle="wait",
        protocol__patience_s=1.0,
        protocol__stream_chunk_tokens=chunk_tokens,
    )


def dsi_claims(lab: Lab, facts: Mapping[str, Any]) -> list[Claim]:
    """Simulate pairs of DSI: synchronous speculation, and a stream to a single target."""
    rows: list[Claim] = []
    best: dict[str, list[float]] = {"decodes": [], "waits": [], "copies": []}
    lookaheads = facts["recalled_lookaheads"]
    named = ", ".join(map(str, lookaheads))
    for name, pair in facts["recalled"].items():
        times: dict[str, Any] = {
            "target": {"t0_s": 1e-3 * pair["target_ms"]},
            "drafter": {"t0_s": 1e-3 * pair["drafter_ms"]},
        }
        rounds = box("synchronous", acceptance=iid(pair["acceptance"]), **times)
        stream = box("streaming", acceptance=iid(pair["acceptance"]), **times)
        together = [lab.measure(*choice) for choice in windows(rounds, lookaheads, "colocated")]
        strongest = min(together, key=lambda each: each.mean)
        ahead = {
            "decodes": lab.measure(*lab.best(windows(stream, WINDOWS, "colocated"))),
            "waits": lab.measure(
                *lab.best(
                    choice
                    for chunk in (1, 4)
                    for choice in windows(waiting(stream, chunk), WINDOWS[3:], "colocated")
                )
            ),
        }
        for kind, pace in ahead.items():
            best[kind].append(strongest.mean / pace.mean)
        bound = dsi_bound_ms(pair["target_ms"], pair["drafter_ms"], pair["acceptance"])
        best["copies"].append(strongest.mean / bound)
        shown = {
            kind: ", ".join(f"{(each / pace).mean:.2f}×" for each in together) for kind, pace in ahead.items()
        }
        copies = ", ".join(f"{each.mean / bound:.2f}×" for each in together)
        rows.append(
            Claim(
                f"{name}: over synchronous speculation with a lookahead of {named}",
                f"{pair['speedup']:.2f}× (which lookahead unknown to us)",
                RECALLED,
                f"{shown['decodes']}; a target that waits {shown['waits']}; copies of the target, by hand, "
                f"{copies}",
            )
        )
    low, high = facts["speedup_range"]
    spans = {kind: f"{min(found):.2f}× to {max(found):.2f}×" for kind, found in best.items()}
    return [
        Claim(
            "over synchronous speculation, range over pairs",
            f"{low:.2f}× to {high:.2f}×",
            facts["source"],
            f"one target: {spans['decodes']}, {spans['waits']} if it waits for drafts; with copies of it, by "
            f"hand: {spans['copies']} (each over the best lookahead of {named})",
        ),
        *rows,
    ]


DSI = Reproduction(
    "dsi",
    "a drafter and a target of published times, one request",
    "The pairs' times and acceptance are inputs, recalled from the paper's table and not read: take the "
    "rows by pair as the shape of the claim, not as a check of its digits. A forward pass takes the same "
    "whatever it verifies, as there. Streaming with **one** target and the best window up to 16, once with "
    "a target that decodes when no draft has come (`stream_idle: decode`) and once with one that waits "
    "(`wait`; drafts come one by one or in fours). The paper adds copies of the target until no "
    "verification waits; what they would give is worked out by hand, not simulated: a run of accepted "
    "drafts costs its draft steps, a rejection one target step.",
    dsi_claims,
    "DSI's promise never to be slower than synchronous speculation is one of its copies of the target. A "
    "single target that never waits breaks it where the drafter is cheap: after a rejection it spends a "
    "whole step on one token, where a synchronous run would have waited a few milliseconds for five drafts. "
    "One that waits for drafts keeps it, for all four pairs. The rest is the opponent: of the lookahead of "
    "their synchronous run we know no more than that 1, 5 and 10 were used, and over the best of them even "
    "the copies gain less than the recalled figures of three of the four pairs.",
    "one target here, copies of it there; their opponent's lookahead is unknown to us",
)


# ---------------------------------------------------------------- PEARL


def pearl_claims(lab: Lab, facts: Mapping[str, Any]) -> list[Claim]:
    """Simulate PEARL's pair of the Llama family on A100s."""
    pair: dict[str, Any] = {
        "target": "llama-2-70b_a100-sxm_tp2",
        "drafter": "llama-3-8b_a100-sxm_tp1",
        "acceptance": {"source": "published", "model": "llama-3-70b_published", "drafter": "llama-3-8b"},
        "acceptance_kinds": ("code",),
    }
    rounds, piped, stream = (box(kind, **pair) for kind in ("synchronous", "pipelined", "streaming"))
    plain = lab.measure(rounds, "cloud_ar")
    best_round = lab.best(windows(rounds, WINDOWS, "colocated"))
    best_pipe = lab.best(windows(piped, WINDOWS, "colocated"))
    best_stream = lab.best(windows(stream, WINDOWS, "colocated"))
    together, pipelined, ahead = (lab.measure(*choice) for choice in (best_round, best_pipe, best_stream))
    gammas = [choice[1].split(":")[1] for choice in (best_round, best_pipe, best_stream)]
    example = lab.measure(rounds, f"static:{facts['example_gamma']}:1:colocated")
    shown = (
        f"streaming {{}}, pipelined {{}} (windows {gammas[2]} and {gammas[1]}; synchronous: γ = {gammas[0]})"
    )
    return [
        Claim(
            "over vanilla speculative decoding",
            f"up to {facts['over_synchronous']:.2f}×",
            facts["source"],
            shown.format((together / ahead).shown(unit="×"), (together / pipelined).shown(unit="×")),
        ),
        Claim(
            f"the same, vanilla with γ = {facts['example_gamma']}",
            "–",
            f"γ of the example in {facts['repository_source']}",
            f"streaming {(example / ahead).shown(unit='×')}, pipelined "
            f"{(example / pipelined).shown(unit='×')}",
        ),
        Claim(
            "over plain decoding",
            f"up to {facts['over_plain']:.2f}×",
            facts["source"],
            f"streaming {(plain / ahead).shown(unit='×')}, pipelined {(plain / pipelined).shown(unit='×')}, "
            f"synchronous {(plain / together).shown(unit='×')}",
        ),
        Claim(
            "over plain decoding, HumanEval",
            f"up to {facts['repository_humaneval_over_plain']:.2f}×",
            facts["repository_source"],
            "the row above: acceptance is that of code",
        ),
    ]


PEARL = Reproduction(
    "pearl",
    "8B and 70B on one and two A100s, one request, code",
    "Llama-2-70B on two A100s as target; as drafter Llama-3-8B on one, the nearest profile to a 7B. Both "
    "are measured kernels, not Transformers. Acceptance is the published one of a 70B with an 8B drafter, "
    "on code. PEARL's drafting while a window is verified is `pipelined`; its verification of a first draft "
    "while the others are made has its nearest relative in `streaming`, where a target takes what has come. "
    "Windows are the best of 1 to 16.",
    pearl_claims,
    "Their speed-ups are the best of several pairs and tasks, with acceptance that we do not have; ours are "
    "of one pair. A drafter in Transformers may be slower beside its target, which leaves more to overlap, "
    "and raises the gain over a synchronous run; ours takes a quarter of a target step. Pipelining gains "
    "only when a whole window and the guess after it are right; a stream does not wait for either.",
    "one pair and measured kernels here; the best of several pairs, in Transformers, there",
)
