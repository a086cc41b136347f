"""``dsd-env worth-it``: is a remote drafter worth it, for one's own target, drafters, distance and load?

``scripts/worth_it.py`` of a checkout is the same.
"""

from __future__ import annotations

import argparse

from dsd_env.cli.arguments import Commands, add_json, at_least_one, between, command
from dsd_env.cli.output import print_json
from dsd_env.latency import LatencyProfile
from dsd_env.latency.lookup import latency_profile
from dsd_env.schedulers.worth import AT_TARGET, REMOTE, Case, Cost, cheapest

_EXAMPLES = """
dsd-env worth-it --rtt-ms 5 --alpha 0.75 --active 32
dsd-env worth-it --rtt-ms 15 --alpha 0.8 --active 64 --per-card 8 --simulate"""

_NOTES = """
By closed forms and latency profiles, in a second: a target that is always
busy, all requests alike, nothing but decoding. With --simulate the engine
runs the best of each way as well, prompts included. Profiles are shipped
ones, or paths of your own."""

WORDS = {
    "plain": "plain decoding",
    "node": "drafts on the target's GPUs",
    "rounds": "remote drafts, round by round",
    "stream": "remote drafts, streamed",
}
SIMULATED_S, WARMUP_S = 10.0, 5.0


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Say whether a remote drafter is worth it."
    add_arguments(command(commands, "worth-it", does, _EXAMPLES, run, notes=_NOTES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of the user."""
    parser.add_argument(
        "--target", default="llama-3-70b_h100-sxm_tp4", help="profile, or path of one (default %(default)s)"
    )
    parser.add_argument(
        "--drafter", default="llama-3.2-3b-q4_rtx-4090", help="the remote drafter (default %(default)s)"
    )
    parser.add_argument(
        "--node-drafter",
        default="llama-3.2-3b_h100-sxm_tp2",
        help="what it is compared with: the drafter on the target's GPUs, or none (default %(default)s)",
    )
    parser.add_argument(
        "--rtt-ms",
        type=between(0.0, 10_000.0),
        required=True,
        metavar="MS",
        help="round trip between drafter and target",
    )
    parser.add_argument(
        "--alpha",
        type=between(0.0, 0.99),
        required=True,
        metavar="A",
        help="chance that a draft is right, at most 0.99",
    )
    parser.add_argument(
        "--active",
        type=at_least_one,
        required=True,
        metavar="N",
        help="requests that the target serves at a time",
    )
    parser.add_argument(
        "--per-card",
        type=at_least_one,
        default=1,
        metavar="N",
        help="requests that share a remote drafter (default 1)",
    )
    parser.add_argument(
        "--context",
        type=at_least_one,
        default=600,
        metavar="TOKENS",
        help="context of a request (default %(default)s)",
    )
    parser.add_argument("--simulate", action="store_true", help="simulate the best of each way, too")
    add_json(parser, "print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compute the costs and print them.

    Raises:
        ValueError: A profile is unknown, or a number impossible.
    """
    case = Case(
        arguments.target,
        arguments.node_drafter,
        arguments.drafter,
        arguments.rtt_ms,
        arguments.alpha,
        arguments.active,
        arguments.per_card,
        arguments.context,
    )
    costs = case.busy().best(case.remote_step_s, 1e-3 * case.rtt_ms)
    simulated_s = {cost.way: _simulated_s(case, cost) for cost in costs} if arguments.simulate else {}
    if arguments.json:
        print_json([{**cost._asdict(), "simulated_token_s": simulated_s.get(cost.way)} for cost in costs])
    else:
        print("\n".join([*_question(case), _table(costs, simulated_s), *_doubts(case)]))
    return 0


def _question(case: Case) -> list[str]:
    """Return what is compared, as lines."""
    return [
        f"target          {case.target}",
        f"drafter there   {case.node_drafter}",
        f"remote drafter  {case.drafter}, {case.rtt_ms:g} ms away",
        "",
    ]


def _doubts(case: Case) -> list[str]:
    """Return what about the profiles does not fit together, as lines."""
    found: list[str] = []
    target, remote = latency_profile(case.target), latency_profile(case.drafter)
    if case.node_drafter == "none" or not isinstance(target, LatencyProfile):
        return found
    node = latency_profile(case.node_drafter)
    if not isinstance(node, LatencyProfile):
        return found
    if node.device != target.device:
        found.append(
            f"Mind: --node-drafter was measured on {node.device}, the target runs on {target.device}."
        )
    if isinstance(remote, LatencyProfile) and node.model != remote.model:
        found.append(f"Mind: {node.model} and {remote.model} are taken to be right equally often (--alpha).")
    return found


def _simulated_s(case: Case, cost: Cost) -> float:
    """Return the time per token that the engine finds, in seconds."""
    from dsd_env.simulate import simulate

    scenario = case.scenario(
        cost.protocol,
        episode__requests=None,
        episode__warmup_requests=0,
        episode__warmup_s=WARMUP_S,
        episode__window_s=SIMULATED_S,
        episode__horizon_s=WARMUP_S + SIMULATED_S,
    )
    metrics = simulate(scenario, cost.rule, seed=1).metrics
    return float(case.active / metrics["throughput_tokens_per_s"])


def _table(costs: list[Cost], simulated_s: dict[str, float]) -> str:
    """Return the costs as text, and what they say."""
    at_target, remote = cheapest(costs, AT_TARGET), cheapest(costs, REMOTE)
    against = "against target's best"
    head = f"{'':30} {'gamma':>5} {'ms/token':>8} {against:>22}"
    lines = [head + (f" {'simulated':>9}" if simulated_s else "")]
    for cost in costs:
        change = 100.0 * (cost.token_s / at_target.token_s - 1.0)
        line = f"{WORDS[cost.way]:30} {cost.gamma:5} {1e3 * cost.token_s:8.2f} {change:+20.1f} %"
        lines.append(line + (f" {1e3 * simulated_s[cost.way]:9.2f}" if simulated_s else ""))
    gain = 100.0 * (1.0 - remote.token_s / at_target.token_s)
    worth = {
        True: f"A remote drafter is worth it: {gain:.0f} % less time per token, {WORDS[remote.way]}.",
        False: f"A remote drafter is not worth it: at best {-gain:.0f} % more time per token.",
    }
    return "\n".join([*lines, worth[gain > 0.0]])
