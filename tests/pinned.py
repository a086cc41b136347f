"""Metrics of one episode per scenario and scheduler, pinned: what changes them changes results of others.

``python -m tests.pinned`` writes them anew. Do so only for a change that is meant to change what is
simulated, and say in the CHANGELOG why, or raise the version of the environment's id.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import dsd_env

FILE = Path(__file__).with_name("pinned_metrics.json")
SCHEDULERS = ("random", "edge_sd:4", "jsq_goodput")
SHOWN = ("throughput_tokens_per_s", "utilisation_target", "energy_j_per_1k_tokens", "bytes_per_token")
"""Metrics written beside the digest, to see from a failure how far it is off."""
_SEED = 20_251


def measure(name: str, scheduler: str) -> dict[str, float | str]:
    """Return the digest of all metrics of an episode's first seconds, to ten digits, and a few of them."""
    scenario = dsd_env.load_scenario(
        name, episode__requests=40, episode__warmup_requests=2, episode__horizon_s=5.0
    )
    metrics = dsd_env.simulate(scenario, scheduler, _SEED).metrics
    text = "\n".join(f"{key} {value:.10g}" for key, value in sorted(metrics.items()))
    shown = {key: float(f"{metrics[key]:.10g}") for key in SHOWN}
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], **shown}


def main() -> None:
    """Write the file."""
    pinned = {
        name: {scheduler: measure(name, scheduler) for scheduler in SCHEDULERS}
        for name in dsd_env.list_scenarios()
    }
    FILE.write_text(json.dumps(pinned, indent=1) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(pinned)} scenarios, {len(SCHEDULERS)} schedulers")


if __name__ == "__main__":
    main()
