"""``dsd-env worth-it``: is a remote drafter worth it, for one's own target, drafters, distance and load?

``scripts/worth_it.py`` of a checkout is the same.
"""

from __future__ import annotations

import argparse

from dsd_env.cli.arguments import Commands, add_json, at_least_one, between, command
from dsd_env.cli.output import print_json
from dsd_env.latency import LatencyProfile
from dsd_env.latency.lookup import latency_profile
from dsd_env.scenario import Scenario, load_scenario
from dsd_env.schedulers.worth import BusyTarget, Cost

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
PLACES = {"plain": "plain", "node": "colocated", "rounds": "own", "stream": "own"}
"""Where a way drafts, as static choices name it; requests draft for themselves here."""
MODEL = "draft"
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
        "--drafter",
        default="llama-3.2-3b_h100-sxm_tp2",
        help="on the target's GPUs, or none (default %(default)s)",
    )
    parser.add_argument(
        "--remote", default="llama-3.2-3b-q4_rtx-4090", help="the remote drafter (default %(default)s)"
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
    scenario = scenario_of(arguments)
    (target,) = scenario.targets.values()
    busy = BusyTarget.of(target, arguments.active, float(arguments.context), arguments.alpha)
    costs = busy.best(remote_step_s(arguments), 1e-3 * arguments.rtt_ms)
    simulated_s = {cost.way: _simulated_s(arguments, cost) for cost in costs} if arguments.simulate else {}
    if arguments.json:
        print_json([{**cost._asdict(), "simulated_token_s": simulated_s.get(cost.way)} for cost in costs])
    else:
        print(_table(costs, simulated_s))
    return 0


def remote_step_s(arguments: argparse.Namespace) -> float:
    """Return the time of a draft step at the remote drafter, shared by so many requests."""
    profile = latency_profile(arguments.remote)
    its = profile.coefficients if isinstance(profile, LatencyProfile) else profile
    n = arguments.per_card
    return float(its.compute_s(n) + its.k_bw_s_per_token * n * arguments.context)


def scenario_of(arguments: argparse.Namespace, kind: str = "streaming") -> Scenario:
    """Return the scenario of the user's numbers, saturated: one client per request, no time to think.

    Raises:
        ScenarioError: A profile is unknown, or a number impossible.
    """
    target = latency_profile(arguments.target)
    gpus = target.parallelism if isinstance(target, LatencyProfile) else 1
    at_target = [] if arguments.drafter == "none" else [{"model": MODEL, "profile": arguments.drafter}]
    prompt = max(1, arguments.context - 300)
    return load_scenario(
        "stream_node",
        name="worth_it",
        devices__client__count=arguments.active,
        devices__client__drafter={"model": MODEL, "profile": {"t0_s": remote_step_s(arguments)}},
        targets__node__profile=arguments.target,
        targets__node__gpus=gpus,
        targets__node__colocated_drafters=at_target,
        targets__node__max_num_seqs=max(128, arguments.active),
        links__link__one_way_s=0.5e-3 * arguments.rtt_ms,
        acceptance={MODEL: {"source": "iid", "alpha": arguments.alpha}},
        workload__kinds__essay__prompt_tokens={"distribution": "constant", "value": prompt},
        workload__max_prompt_tokens=prompt,
        protocol__kind=kind,
        episode__requests=None,
        episode__warmup_requests=0,
        episode__warmup_s=WARMUP_S,
        episode__window_s=SIMULATED_S,
        episode__horizon_s=WARMUP_S + SIMULATED_S,
    )


def _simulated_s(arguments: argparse.Namespace, cost: Cost) -> float:
    """Return the time per token that the engine finds, in seconds."""
    from dsd_env.simulate import simulate

    scenario = scenario_of(arguments, "synchronous" if cost.way == "rounds" else "streaming")
    metrics = simulate(scenario, f"static:{cost.gamma}:1:{PLACES[cost.way]}", seed=1).metrics
    return float(arguments.active / metrics["throughput_tokens_per_s"])


def _table(costs: list[Cost], simulated_s: dict[str, float]) -> str:
    """Return the costs as text, and what they say."""
    at_target = min((cost for cost in costs if cost.way in ("plain", "node")), key=lambda cost: cost.token_s)
    against = "against target's best"
    head = f"{'':30} {'gamma':>5} {'ms/token':>8} {against:>22}"
    lines = [head + (f" {'simulated':>9}" if simulated_s else "")]
    for cost in costs:
        change = 100.0 * (cost.token_s / at_target.token_s - 1.0)
        line = f"{WORDS[cost.way]:30} {cost.gamma:5} {1e3 * cost.token_s:8.2f} {change:+20.1f} %"
        lines.append(line + (f" {1e3 * simulated_s[cost.way]:9.2f}" if simulated_s else ""))
    remote = min((cost for cost in costs if cost.way in ("rounds", "stream")), key=lambda cost: cost.token_s)
    gain = 100.0 * (1.0 - remote.token_s / at_target.token_s)
    worth = {
        True: f"A remote drafter is worth it: {gain:.0f} % less time per token, {WORDS[remote.way]}.",
        False: f"A remote drafter is not worth it: at best {-gain:.0f} % more time per token.",
    }
    return "\n".join([*lines, worth[gain > 0.0]])
