"""Draws random cases over the whole scenario schema, made to expose differences in the order of effects.

Every function draws from a :class:`random.Random`, so the same generator serves a long run (a seeded one) and
Hypothesis (``st.randoms()``), which can then make a failing case smaller by itself.

Engines mostly differ where several things happen at one instant. Scenarios therefore make ties, in four
styles:

- **clock**: every time is a multiple of 1/128 s and messages have no bytes. Sums of such times are exact in
  float64, so that an arrival, the end of an iteration, a time-out and a crash can fall on exactly one
  instant, by whatever sums.
- **grid**: multiples of 1/1024 s, and rates that are powers of two: messages take time, ties are rarer but of
  more kinds.
- **tied**: equal members and constant times, in decimals.
- **loose**: noise everywhere; the rounding of sums counts.

In the first three styles clients are alike and often do not think, faults begin when others end, and one
class is a copy of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from dsd_env.control.actions import StopKind, StopRule
from dsd_env.sim.fuzz.case import Action, Case
from dsd_env.sim.fuzz.dice import CLOCK, FEATURES, GRID, LOOSE, TICK_S, TIED, Data, Dice
from dsd_env.sim.fuzz.menus import add_menus, places_of
from dsd_env.sim.fuzz.situations import Situation, bring_about

SHIPPED_TRACE = ("qwen2.5-coder-1.5b_smollm2-135m_greedy", ("smollm2-135m", "prompt-lookup"))
SHIPPED_MODEL = ("llama-3.1-8b_specdecode-bench", ("eagle", "ngram"))
TARGET_PROFILE = "llama-3-8b_h100-sxm_tp1"
DRAFT_PROFILE = "llama-3.2-1b-q4_rtx-4090"


def draw_case(
    random: Random, features: Sequence[str] = FEATURES, decisions: int = 300, always: Sequence[str] = ()
) -> Case:
    """Return a random case whose scenario is valid.

    Args:
        random: Source of the draws.
        features: Features that may be drawn, from :data:`FEATURES`.
        decisions: The comparison stops after this number of decisions.
        always: Features that are drawn wherever the scenario allows them, to look at them more often.

    Raises:
        ValueError: An unknown feature.
    """
    if unknown := sorted({*features, *always} - set(FEATURES)):
        raise ValueError(f"unknown features {unknown}; there are {', '.join(FEATURES)}")
    dice = Dice(random, features, always=always)
    dice.menu = dice.pick(CLOCK, CLOCK, CLOCK, GRID, GRID, TIED, LOOSE, LOOSE)
    series: dict[str, str] = {}
    traces: dict[str, Mapping[str, Any]] = {}
    scenario = _scenario(dice, series, traces)
    situation = bring_about(dice, scenario)
    add_menus(dice, scenario, traces)
    _make_streams_possible(dice, scenario)
    faults = _faults(dice, scenario, situation)
    if faults:
        scenario["faults"] = faults
    return Case(
        scenario,
        dice.count(0, 2**31),
        _actions(dice, scenario, situation, decisions),
        decisions,
        dice.chance(0.5),
        series,
        traces,
        _stops(dice),
    )


def _stops(dice: Dice) -> tuple[StopRule | None, ...]:
    """Return stop rules for the decisions to take in turn, decisions without one among them."""
    if not dice.has("stops", 0.3):
        return ()
    thresholds = {
        StopKind.TOP1: (0.5, 0.9, 0.1),
        StopKind.SURVIVAL: (0.5, 0.9, 0.1),
        StopKind.ENTROPY: (0.3, 0.1, 0.5),
        StopKind.BOUND: (0.7, 0.5, 0.9),
    }
    rules: list[StopRule | None] = []
    for _ in range(dice.count(1, 3)):
        kind = dice.of(tuple(StopKind))
        rules.append(StopRule(kind, dice.of(thresholds[kind]), dice.pick(1, 0, 2, 4), dice.pick(True, False)))
    return (*rules, None) if dice.chance(0.3) else tuple(rules)


def _scenario(dice: Dice, series: dict[str, str], traces: dict[str, Mapping[str, Any]]) -> Data:
    actions: Data = {
        "gammas": list(dice.pick((0, 4), (0, 1, 2, 4), (0, 3, 8), (0, 1), (0, 16), (0,), (0, 2, 64))),
        "batch_sizes": list(dice.pick((1, 2, 4), (1, 16), (1,), (1, 8, 4096))),
        "targets_offered": dice.count(1, 3),
    }
    workload = _workload(dice, series)
    acceptance = _acceptance(dice, traces)
    models = list(acceptance)
    links = {f"l{n}": _link(dice, series) for n in range(dice.pick(1, 2, 3))}
    names = list(links)
    edges = {}
    if dice.has("edge_servers", 0.6):
        edges = {f"e{n}": _edge_server(dice, models, names) for n in range(dice.pick(1, 1, 2))}
    devices = _devices(dice, models, names, bool(edges))
    targets = _targets(dice, models, workload, max(actions["gammas"]))
    if dice.chance(0.15):
        workload["kinds"]["k0"]["acceptance_kinds"] = ["chat"]  # of all recordings and models
    scenario: Data = {
        "name": "fuzz",
        "card": {"models": "none", "regime": "random", "utilisation": "not measured"},
        "devices": devices,
        "targets": targets,
        "links": links,
        "acceptance": acceptance,
        "slo": {"s0": {"ttft_s": 0.5, "tpot_s": 0.04}, "s1": _slo(dice)},
        "workload": workload,
        "protocol": _protocol(dice),
        "actions": actions,
        "episode": _episode(dice, workload),
    }
    if edges:
        scenario["edge_servers"] = edges
        if dice.chance(0.4):
            actions["edge_servers_offered"] = dice.count(1, 3)
    if dice.chance(0.3):
        scenario["egress_usd_per_gigabyte"] = 0.09
    return scenario


# ---------------------------------------------------------------------- who asks, and for what


def _workload(dice: Dice, series: dict[str, str]) -> Data:
    menu = dice.menu
    if dice.has("replayed_requests", 0.15):
        arrivals = _replay(dice, series)
    elif dice.has("renewal", 0.2):
        arrivals = _renewal(dice)
    elif dice.has("poisson", 0.3):
        arrivals = {"kind": "poisson", "rate_per_s": dice.pick(8.0, 32.0, 128.0, 2.0)}
    else:
        think = dice.pick(
            {"distribution": "constant", "value": 0.0},
            {"distribution": "constant", "value": 4 * menu.grain_s},
            {"distribution": "exponential", "mean": 0.3},
            {"distribution": "lognormal", "median": 0.2, "sigma": 0.7},
        )
        if menu in (CLOCK, GRID) and dice.chance(0.7):
            # The first thought is cut short at random: only one of no length keeps to the grid.
            think = {"distribution": "constant", "value": 0.0}
        arrivals = {"kind": "closed_loop", "think_s": think}
    kinds: Data = {}
    for n in range(dice.pick(1, 1, 2, 3)):
        kinds[f"k{n}"] = {
            "weight": dice.pick(1.0, 0.5),
            "slo": dice.pick("s0", "s1"),
            "prompt_tokens": dice.pick(
                {"distribution": "constant", "value": 32},
                {"distribution": "constant", "value": 100},
                {"distribution": "lognormal", "median": 60, "sigma": 0.9, "low": 4, "high": 200},
                {"distribution": "geometric", "mean": 40},
                {"distribution": "quantiles", "levels": [0.05, 0.5, 0.9], "values": [4, 50, 120]},
            ),
            "output_tokens": dice.pick(
                {"distribution": "constant", "value": 16},
                {"distribution": "constant", "value": 1},
                {"distribution": "constant", "value": 40},
                {"distribution": "constant", "value": 400},
                {"distribution": "geometric", "mean": 6},
                {"distribution": "geometric", "mean": 30},
                {"distribution": "lognormal", "median": 20, "sigma": 0.8},
                {"distribution": "quantiles", "levels": [0.1, 0.2, 0.6, 0.99], "values": [1, 6, 6, 300]},
            ),
        }
        laws = [kinds[f"k{n}"][key]["distribution"] for key in ("prompt_tokens", "output_tokens")]
        if set(laws) <= {"lognormal", "quantiles"} and dice.has("correlated_lengths", 0.5):
            kinds[f"k{n}"]["length_correlation"] = dice.pick(0.7, -0.4, 1.0)
    if arrivals.get("trace_kinds"):
        # As the made-up trace names them.
        kinds = {"k0": kinds["k0"], "k1": kinds.get("k1", kinds["k0"])}
    workload: Data = {
        "arrivals": arrivals,
        "kinds": kinds,
        "max_prompt_tokens": dice.pick(200, 64),
        "max_output_tokens": dice.pick(60, 20, 120, 500),
    }
    if arrivals["kind"] != "replay" and dice.has("load", 0.2):
        points = dice.pick(
            [[0.0, 0.5], [0.4, 2.0], [0.7, 2.0]],
            [[0.0, 1.0], [0.5, 4.0]],
            [[0.0, 2.0]],
        )
        workload["load"] = {
            "period_s": dice.pick(1.0, 3.0),
            "points": points,
            "random_phase": dice.chance(0.5),
        }
    return workload


def _renewal(dice: Dice) -> Data:
    arrivals: Data = {
        "kind": "renewal",
        "rate_per_s": dice.pick(8.0, 32.0, 128.0, 2.0),
        "cv": dice.pick(1.0, 3.0, 0.4, 10.0),
    }
    if dice.chance(0.5):
        arrivals["per_client"] = True
        if dice.chance(0.4):
            arrivals["bursty"] = {"fraction": 0.5, "cv": dice.pick(8.0, 0.5)}
    if dice.chance(0.5):
        arrivals["client_rate_cv"] = dice.pick(1.0, 5.0)
    if dice.chance(0.4):
        arrivals["modulation"] = {
            "sigma": dice.pick(0.5, 2.0),
            "correlation_s": dice.pick(1.0, 0.1),
            "period_s": dice.pick(0.25, 0.1, 1.0),
        }
    return arrivals


def _replay(dice: Dice, series: dict[str, str]) -> Data:
    """Return a replay of made-up requests, several of which may arrive at one instant."""
    columns = ["arrival_s", "prompt_tokens", "output_tokens"]
    columns += ["client"] if dice.chance(0.5) else []
    kinds = dice.chance(0.3)
    columns += ["kind"] if kinds else []
    lines, ticks = [",".join(columns)], 0
    for number in range(dice.pick(12, 40, 2, 5)):
        # The second one comes later, so that the trace has a length.
        ticks += number if number < 2 else dice.pick(0, 1, 4, 16)
        row = [
            str(ticks * dice.menu.grain_s),
            str(dice.pick(32, 1, 100, 400)),
            str(dice.pick(16, 1, 40, 300)),
        ]
        if "client" in columns:
            row.append(f"c{dice.count(0, 6)}")
        if kinds:
            row.append(dice.pick("k0", "k1"))
        lines.append(",".join(row))
    series["requests.csv"] = "\n".join(lines) + "\n"
    arrivals: Data = {"kind": "replay", "trace": "requests.csv", "trace_kinds": kinds}
    arrivals["loop"] = dice.chance(0.5)
    arrivals["random_start"] = dice.chance(0.4)
    if dice.chance(0.3):
        arrivals["rate_scale"] = dice.pick(2.0, 0.5, 0.3)
    if dice.chance(0.2):
        arrivals["duration_s"] = dice.pick(0.5, 0.125)
    return arrivals


def _acceptance(dice: Dice, traces: dict[str, Mapping[str, Any]]) -> Data:
    sources: Data = {}
    for n in range(dice.pick(1, 2, 3)):
        sources[f"m{n}"] = _source(dice, traces)
    return sources


def _source(dice: Dice, traces: dict[str, Mapping[str, Any]]) -> Data:
    if dice.has("fitted", 0.06):
        name, drafters = SHIPPED_MODEL
        return {"source": "fitted", "model": name, "drafter": dice.of(drafters)}
    if dice.has("trace", 0.3):
        if dice.chance(0.25):
            name, drafters = SHIPPED_TRACE
            return {"source": "trace", "trace": name, "drafter": dice.of(drafters)}
        name = f"made-{len(traces)}"
        entries = dice.pick(3, 1, 6)
        traces[name] = {
            # The last two are one of each kind, which a request may ask for.
            "lengths": [dice.pick(1, 2, 5, 17) for _ in range(entries + 2)],
            "kind": [*(dice.pick(0, 1) for _ in range(entries)), 0, 1],
            "seed": dice.count(0, 10_000),
        }
        return {"source": "trace", "trace": name, "drafter": dice.pick("look", "model")}
    return dice.pick(
        {"source": "iid", "alpha": 1.0},
        {"source": "iid", "alpha": 0.7},
        {"source": "markov", "after_match": 0.9, "after_mismatch": 0.3},
        {"source": "iid", "alpha": 0.0},
        {"source": "markov", "after_match": 0.2, "after_mismatch": 0.9},
        {"source": "markov", "after_match": 0.95, "after_mismatch": 0.9},
    )


def _slo(dice: Dice) -> Data:
    step_s = dice.menu.step_s[0]
    slo: Data = {}
    if dice.chance(0.6):
        slo["itl_p99_s"] = dice.pick(2, 1, 4) * step_s
    if dice.chance(0.4):
        slo["deadlines"] = {
            "first_s": dice.pick(8, 4, 32) * step_s,
            "per_token_s": dice.pick(1.0, 0.5, 2.0) * step_s,
            "token_share": dice.pick(1.0, 0.9, 0.5),
        }
    if not slo or dice.chance(0.4):
        slo |= {"ttft_s": 4 * step_s, "tpot_s": 0.01}
    return slo


def _episode(dice: Dice, workload: Data) -> Data:
    if dice.has("window", 0.25):
        load = workload.get("load") or {}
        cycle_s = load.get("period_s", 0.5) if len(load.get("points", ())) > 1 else 0.5
        warmup_s, window_s = dice.pick(0.0, 0.25, 1.0), dice.pick(2, 1, 5) * cycle_s
        most_s = warmup_s + window_s
        return {
            "warmup_s": warmup_s,
            "window_s": window_s,
            "horizon_s": dice.pick(20.0 + most_s, most_s, 1.5 + most_s),
        }
    episode: Data = {
        "requests": dice.pick(12, 40, 5, 100, 1),
        "horizon_s": dice.pick(20.0, 4.0, 1.5, 60.0),
        "warmup_requests": dice.pick(0, 0, 3),
    }
    if dice.chance(0.5):
        episode["total_requests"] = dice.pick(8, 16, 3, 50)
    return episode


# ---------------------------------------------------------------------- devices, servers


def _profile(dice: Dice, step_s: float) -> Data:
    menu = dice.menu
    profile: Data = {"t0_s": step_s}
    if dice.chance(0.5):
        profile["c_s_per_token"] = dice.of(menu.per_token_s)
    if dice.chance(0.4):
        profile["k_bw_s_per_token"] = dice.of(menu.per_kv_s)
    if dice.chance(0.3):
        profile["k_lat_s_per_token"] = dice.of(menu.per_kv_s)
    if dice.chance(0.2):
        profile["k_multi_s_per_token"] = dice.of(menu.per_kv_s)
    if dice.chance(0.2):
        profile["w_s"] = step_s
        profile["p"] = dice.pick(1.0, 2.0, 3.5)
    return profile


def _drafter(dice: Dice, models: list[str]) -> Data:
    drafter: Data = {"model": dice.of(models), "profile": _profile(dice, dice.of(dice.menu.draft_s))}
    if dice.has("profiles", 0.06):
        drafter["profile"] = DRAFT_PROFILE
    if dice.chance(0.4):
        drafter["concurrency"] = dice.pick(2, 1, 3)
    if dice.chance(0.2):
        # About as long as contexts get: it can draft for a while, then no more.
        drafter["kv_capacity_tokens"] = dice.pick(120, 60, 220)
    if dice.has("generations", 0.2):
        drafter["per_generation_s"] = dice.of(dice.menu.draft_s)
    if dice.has("draft_noise", 0.2):
        drafter["draft_noise_sigma"] = dice.pick(0.3, 0.1, 1.0)
    return drafter


def _power(dice: Dice) -> Data:
    return {"idle_w": dice.pick(10.0, 0.0), "busy_w": dice.pick(40.0, 10.0)}


def _devices(dice: Dice, models: list[str], links: list[str], edges: bool) -> Data:
    classes: Data = {}
    for n in range(dice.pick(1, 2, 3)):
        if n > 0 and not dice.menu.noisy and dice.chance(0.5):
            classes[f"d{n}"] = {**classes[f"d{n - 1}"], "count": dice.count(1, 3)}
            continue
        device: Data = {
            "count": dice.pick(2, 4, 1, 3),
            "link": dice.of(links),
            "power": _power(dice),
        }
        if dice.chance(0.8):
            device["drafter"] = _drafter(dice, models)
        if edges and dice.chance(0.85):
            device["edge_link"] = dice.of(links)
        if dice.chance(0.3):
            device["radio_joules_per_byte"] = 1e-6
        if dice.menu.noisy:
            device["speed_spread"] = [0.8, 1.3]
        classes[f"d{n}"] = device
    return classes


def _edge_server(dice: Dice, models: list[str], links: list[str]) -> Data:
    server: Data = {
        "count": dice.pick(1, 1, 2),
        "drafter": _drafter(dice, models),
        "backhaul": dice.of(links),
        "power": _power(dice),
    }
    if dice.chance(0.5):
        server["price_usd_per_gpu_hour"] = 0.5
    return server


def _targets(dice: Dice, models: list[str], workload: Data, gamma: int) -> Data:
    classes: Data = {}
    for n in range(dice.pick(1, 2) if "several_targets" in dice.features else 1):
        if n > 0 and dice.chance(0.5):
            classes[f"t{n}"] = {**classes[f"t{n - 1}"], "count": 1}
            continue
        classes[f"t{n}"] = _target(dice, models, workload, gamma)
    return classes


def _target(dice: Dice, models: list[str], workload: Data, gamma: int) -> Data:
    menu = dice.menu
    needed = workload["max_prompt_tokens"] + workload["max_output_tokens"] + gamma + 1
    target: Data = {
        "count": dice.pick(1, 1, 2) if "several_targets" in dice.features else 1,
        "profile": _profile(dice, dice.of(menu.step_s)),
        "gpus": dice.pick(1, 2),
        "max_num_seqs": dice.pick(8, 4, 2, 1, 16, 64),
        "max_num_batched_tokens": max(gamma + 1, dice.pick(64, 16, 256, 2048)),
        "max_batch_wait_s": dice.pick(0.0, dice.of(menu.wait_s), dice.of(menu.way_s)),
        "max_admission_wait_s": dice.pick(0.0, dice.of(menu.wait_s), 1.0),
        "power": _power(dice),
        # From a pool that holds one request to one that holds all.
        "kv_capacity_tokens": needed + dice.pick(20 * needed, 0, 1, needed // 2, needed, 2 * needed),
    }
    if dice.has("profiles", 0.06):
        target |= {"profile": TARGET_PROFILE, "gpus": 1}
    if dice.chance(0.4):
        target["order"] = "prefill_first"
    if dice.chance(0.3):
        target["within_class"] = "shortest_first"
    target["kv_policy"] = "reserve"
    if dice.has("preempt", 0.35):
        target["kv_policy"] = "preempt"
        target["prefix_cache"] = dice.chance(0.5)
        target["kv_capacity_tokens"] = needed + dice.pick(0, 1, 40, needed // 2, needed)
    if dice.has("graph_steps", 0.25):
        target["graph_batch_tokens"] = list(dice.pick((1, 2, 4, 8, 16), (8,), (3, 5, 64), (1,)))
    if dice.chance(0.5):
        target["price_usd_per_gpu_hour"] = 2.0
    if dice.has("keep_alive", 0.3):
        target["keep_alive_s"] = dice.of(menu.wait_s) * dice.pick(1.0, 8.0, 100.0)
    if menu.noisy:
        target["iteration_noise_sigma"] = dice.pick(0.1, 0.0)
        if dice.has("stragglers", 0.3):
            target["straggler_share"] = dice.pick(0.05, 0.3, 1.0)
            target["straggler_factor"] = dice.pick(2.0, 1.5, 10.0)
    if dice.has("colocated", 0.65):
        drafter: Data = {"model": dice.of(models), "profile": _profile(dice, dice.of(menu.draft_s))}
        if dice.chance(0.5):
            drafter["mode"] = "dedicated"
            drafter["gpus"] = 1
            drafter["concurrency"] = dice.pick(1, 2, 3)
            drafter["power"] = _power(dice)
        else:
            # The table of a shared drafter's first pass holds the KV lag of eight sequences.
            target["max_num_seqs"] = min(8, target["max_num_seqs"])
        target["colocated_drafter"] = drafter
    if dice.has("overhead", 0.35):
        target["engine_overhead"] = _overhead(dice)
    if dice.has("overhead", 0.25):
        target["front_end_s"] = dice.of(menu.wait_s)
    if dice.has("far_targets", 0.4):
        target["extra_one_way_s"] = dice.of(menu.way_s)
    return target


def _overhead(dice: Dice) -> Data:
    """Return parts of an engine's overhead, each there or not; the limit is reached by verifications."""
    step_s, token_s = dice.of(dice.menu.step_s), dice.of(dice.menu.per_token_s)
    overhead: Data = {"per_iteration_s": dice.pick(step_s, 0.0)}
    if dice.chance(0.5):
        overhead["per_sequence_s"] = step_s / 4
    if dice.chance(0.7):
        overhead["per_token_s"] = token_s
    if dice.chance(0.5):
        overhead["per_verifying_iteration_s"] = step_s
    if dice.chance(0.4):
        overhead["token_limit"] = dice.pick(4, 1, 40)
    return overhead


# ---------------------------------------------------------------------- links


def _link(dice: Dice, series: dict[str, str]) -> Data:
    menu = dice.menu
    link: Data = {
        "one_way_s": dice.of(menu.way_s),
        "uplink_bits_per_s": dice.of(menu.rates),
        "downlink_bits_per_s": dice.of(menu.rates),
    }
    if menu.noisy:
        link["one_way_spread"] = [0.8, 1.4]
    if dice.has("jitter", 0.3):
        sigma = dice.pick(0.8, 0.0) if menu.noisy else 0.0
        link["jitter"] = {"median_s": dice.of(menu.way_s), "sigma": sigma}
    if dice.has("loss", 0.25):
        link["loss_probability"] = dice.pick(0.1, 0.4, 0.02)
    if dice.chance(0.4):
        link["rto_s"] = dice.of(menu.wait_s)
    if dice.has("replay", 0.15):
        name = f"series-{len(series)}.csv"
        series[name] = _series(dice)
        link["replay"] = {"file": name, "random_start": dice.chance(0.5)}
    else:
        if dice.has("bandwidth", 0.25):
            link["bandwidth"] = _bandwidth(dice)
        if dice.has("outages", 0.2):
            link["outages"] = {
                "mean_up_s": dice.pick(0.4, 1.0, 0.05),
                "mean_down_s": dice.pick(0.1, 0.4, 0.01),
            }
    if dice.has("delay", 0.2):
        link["delay"] = {
            "median_s": dice.of(menu.way_s) or TICK_S,
            "sigma": dice.pick(0.0, 0.5) if not menu.noisy else 0.5,
            "correlation_s": dice.pick(0.5, 0.05),
            "period_s": dice.pick(1 / 16, 1 / 4),
        }
        if dice.chance(0.3):
            link["delay"]["slow"] = {"sigma": dice.pick(0.4, 0.0), "correlation_s": dice.pick(60.0, 2.0)}
        if link["delay"]["sigma"] > 0.0 and dice.chance(0.4):
            del link["delay"]["median_s"]
            link["delay"]["quantiles_s"] = [0.001, 0.002, 0.004, 0.008, 0.015, 0.05, 0.08]
        link["delay"]["both_ways"] = dice.chance(0.5)
    return link


def _bandwidth(dice: Dice) -> Data:
    process: Data = {
        "period_s": dice.pick(1 / 16, 1 / 4, 1.0),
        "fast": {"sigma": dice.pick(0.6, 0.0, 1.5), "correlation_s": dice.pick(1.0, 0.05)},
    }
    if dice.chance(0.5):
        process["slow"] = {"sigma": dice.pick(0.4, 0.0), "correlation_s": dice.pick(60.0, 2.0)}
    if process["fast"]["sigma"] > 0.0 and dice.chance(0.4):
        flat = [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0]
        process["quantiles"] = dice.pick(flat, [0.01, 0.05, 0.4, 0.8, 1.4, 2.0, 4.0])
    return process


def _series(dice: Dice) -> str:
    """Return a network series: CSV, at times without service, or Mahimahi."""
    if dice.chance(0.15):
        return (
            "".join(f"{time_ms}\n" for time_ms in sorted(dice.count(0, 2500) for _ in range(30))) + "2999\n"
        )
    rates = (*dice.menu.rates, 0.0)
    delays = dice.chance(0.5)
    rows = ["time_s,uplink_bits_per_s,downlink_bits_per_s" + (",extra_delay_s" if delays else "")]
    time_s = 0.0
    for n in range(dice.count(2, 6)):
        up, down = (dice.menu.rates[0], dice.menu.rates[0]) if n == 0 else (dice.of(rates), dice.of(rates))
        row = f"{time_s!r},{up!r},{down!r}"
        rows.append(row + (f",{dice.of(dice.menu.way_s)!r}" if delays else ""))
        time_s += dice.pick(1, 2, 4, 8) * dice.menu.grain_s
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------------- protocol, faults


def _protocol(dice: Dice) -> Data:
    menu = dice.menu
    protocol: Data = {
        "header_bytes": dice.pick(64.0, 0.0),
        "bytes_per_token": dice.pick(4.0, 0.0, 64.0),
        "draft_probabilities": dice.pick("none", "scalar", "top_k"),
        "plain_chunk_tokens": dice.pick(4, 1, 2, 8),
        "telemetry_period_s": dice.pick(1 / 16, 1 / 64, 1 / 2)
        if menu in (CLOCK, GRID)
        else dice.pick(0.05, 0.3, 0.02),
        "stats_window": dice.pick(0.2, 1.0),
    }
    if menu is CLOCK or dice.chance(0.2):
        protocol |= {"header_bytes": 0.0, "bytes_per_token": 0.0, "draft_probabilities": "none"}
    if dice.has("pipelined", 0.5):
        protocol["kind"] = "pipelined"
    if dice.has("streaming", 0.5):
        protocol["kind"] = "streaming"
        protocol["stream_chunk_tokens"] = dice.pick(1, 1, 2, 3)
        if "patience" in dice.features and dice.chance(0.3):
            protocol["stream_idle"] = "wait"
            protocol["patience_s"] = dice.of(menu.wait_s)
    if dice.has("token_acks", 0.3):
        protocol["token_acks"] = True
    if dice.has("confidence_stop", 0.2):
        protocol["confidence_stop"] = dice.pick(0.5, 0.7, 0.1)
    if dice.has("decision_latency", 0.2):
        protocol["decision_latency_s"] = dice.pick(dice.of(menu.wait_s), 4 * TICK_S)
    if dice.has("patience", 0.35):
        protocol["patience_s"] = dice.of(menu.wait_s)
    if dice.has("client_timeout", 0.35):
        protocol["client_timeout_s"] = dice.of(menu.wait_s)
    if dice.chance(0.6):
        protocol["crash_detection_s"] = dice.pick(dice.of(menu.wait_s), TICK_S)
    return protocol


def _make_streams_possible(dice: Dice, scenario: Data) -> None:
    """Let a scenario that has nothing to stream keep to rounds, and a chunk fit into the largest window.

    Where all acceptance is synthetic, drafts may have branches.
    """
    protocol, largest = scenario["protocol"], max(scenario["actions"]["gammas"])
    if protocol.get("kind") != "streaming":
        return
    own = [
        drafter
        for site in [*scenario["devices"].values(), *scenario.get("edge_servers", {}).values()]
        for drafter in [site.get("drafter"), *site.get("drafters", [])]
    ]
    own += [
        drafter if drafter and drafter.get("mode") == "dedicated" else None
        for target in scenario["targets"].values()
        for drafter in [target.get("colocated_drafter"), *target.get("colocated_drafters", [])]
    ]
    if largest == 0 or not any(drafter and drafter.get("kind", "model") == "model" for drafter in own):
        protocol["kind"] = "synchronous"
    protocol["stream_chunk_tokens"] = min(protocol.get("stream_chunk_tokens", 1), max(1, largest))
    synthetic = all(source["source"] in ("iid", "markov") for source in scenario["acceptance"].values())
    if protocol["kind"] == "streaming" and synthetic and dice.has("branches", 0.5):
        fanout = dice.pick(1, 2, 3)
        protocol["stream_chunk_tokens"] = 1
        protocol["branches"] = {"fanout": fanout, "depth": min(dice.pick(4, 1, 2, 8), largest)}
        for source in scenario["acceptance"].values():
            source["hits"] = [dice.pick(0.5, 1.0, 0.0)] * fanout
        if dice.has("offered_branches", 0.5):
            scenario["actions"]["offer_branches"] = True


FAULTS = ("target_crash", "edge_crash", "device_crash", "link_outage", "bandwidth_collapse")


def _faults(dice: Dice, scenario: Data, situation: Situation | None) -> Data:
    faults: Data = {}
    for n, (kind, of) in enumerate(situation.faults if situation else ()):
        faults[f"s{n}"] = _fault(dice, scenario, kind, of)
    kinds = [kind for kind in FAULTS if kind in dice.features]
    if not kinds or dice.chance(0.5 if faults else 0.35):
        return faults
    for n in range(dice.pick(1, 2, 3, 5)):
        kind = dice.of(kinds)
        table = _classes(scenario, kind)
        if not table:
            continue
        fault = _fault(dice, scenario, kind, dice.of(sorted(table)))
        faults[f"f{n}"] = fault
        if dice.chance(0.2):
            # Twice the same: what breaks at one instant, and is broken already.
            faults[f"f{n}-again"] = dict(fault)
    return faults


def _classes(scenario: Data, kind: str) -> Data:
    """Return the classes that a fault of a kind can hit."""
    devices, edges = scenario["devices"], scenario.get("edge_servers", {})
    only: dict[str, Data] = {
        "target_crash": scenario["targets"],
        "edge_crash": edges,
        "device_crash": devices,
    }
    return only.get(kind, {**devices, **edges})


def _fault(dice: Dice, scenario: Data, kind: str, of: str) -> Data:
    fault: Data = {"kind": kind, "of": of, **_when(dice)}
    if kind == "bandwidth_collapse":
        fault["bandwidth_factor"] = dice.of(dice.menu.factors)
    if dice.chance(0.4):
        fault["member"] = dice.count(0, _classes(scenario, kind)[of]["count"] - 1)
    return fault


def _when(dice: Dice) -> Data:
    menu = dice.menu
    if dice.chance(0.7):
        # On the grain, so that a fault may begin when it, or another, ends.
        span_s = dice.pick(dice.of(menu.span_s), menu.grain_s, 2 * menu.grain_s)
        times = dice.times(dice.pick(1, 3, 8))
        if dice.chance(0.3):
            start, gap = dice.count(0, 10), dice.pick(1, 2)
            times = [(start + gap * i) * menu.grain_s for i in range(dice.count(2, 6))]
        return {"at_s": times, "duration_s": {"distribution": "constant", "value": span_s}}
    duration = dice.pick(
        {"distribution": "constant", "value": dice.of(menu.span_s)},
        {"distribution": "exponential", "mean": 0.15},
        {"distribution": "lognormal", "median": 0.1, "sigma": 1.0, "high": 2.0},
    )
    return {"mean_interval_s": dice.pick(0.5, 2.0, 0.2), "duration_s": duration}


# ---------------------------------------------------------------------- what is decided


def _actions(dice: Dice, scenario: Data, situation: Situation | None, decisions: int) -> tuple[Action, ...]:
    """Return the indices to decide by: the same over and over, a short pattern, or a long random list."""
    n_gammas, n_batches = len(scenario["actions"]["gammas"]), len(scenario["actions"]["batch_sizes"])
    places = places_of(scenario)
    n_targets = sum(target["count"] for target in scenario["targets"].values())
    offered = min(n_targets, scenario["actions"]["targets_offered"])
    length = dice.pick(1, 5, decisions, decisions)
    # One draw decides the rest: a long list would be hundreds of draws to Hypothesis.
    source = Random(dice.count(0, 2**31))
    drafting = dice.pick(0.9, 1.0, 0.6)
    staying = dice.pick(0.9, 1.0, 0.5)
    where = dice.pick("any", "own device", "edge", "target", "any")
    if situation is not None:
        where, drafting = situation.site, max(drafting, 0.9)
    at_target, own, edge = ([n for n, site in enumerate(places) if site == wanted] for wanted in range(3))
    sites = len(places)
    site: Callable[[], int] = {
        "any": lambda: source.randrange(sites),
        "own device": lambda: source.choice(own) if source.random() < 0.9 else source.randrange(sites),
        "edge": lambda: source.choice(edge) if edge and source.random() < 0.9 else source.choice(own),
        "target": lambda: source.choice(at_target) if source.random() < 0.8 else source.randrange(sites),
    }[where]

    def action() -> Action:
        gamma = source.randrange(1, n_gammas) if n_gammas > 1 and source.random() < drafting else 0
        target = 0 if source.random() < staying else source.randrange(offered)
        return gamma, source.randrange(n_batches), target * sites + site()

    return tuple(action() for _ in range(length))
