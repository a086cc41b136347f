"""Playing what is missing of an upper reference's episodes, each kept as it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.identity import engine_digest
from agents.look_ahead.config import LookAheadConfig
from agents.look_ahead.planning import LookAhead
from agents.look_ahead.records import Kept, Reference, inputs_of, read
from agents.provenance import git_commit, versions
from dsd_env.policy.manifest import scenario_ref


def play_missing(player: LookAhead, file: Path, seeds: Sequence[int], hint: str = "") -> Reference:
    """Play the episodes that a file lacks, and say so; those of other inputs are played anew.

    Args:
        player: The look-ahead.
        file: The file, whose name is the reference's.
        seeds: The episodes.
        hint: What is added where nothing is missing.

    Returns:
        All episodes of the file, and those played.

    Raises:
        BenchmarkError: The file is damaged.
    """
    config: LookAheadConfig = player.config
    scenario, name = player.space.scenario, file.stem
    kept = config.contest().metrics(scenario)
    about = {
        "scenario": scenario_ref(scenario).model_dump(),
        "inputs": inputs_of(config, scenario),
        "engine": engine_digest(),
        "git_commit": git_commit(Path(__file__).parent),
        "versions": versions(),
    }
    before = read(file) if file.is_file() else None
    same = before is not None and before.about["inputs"] == about["inputs"]
    episodes = dict(before.episodes) if before is not None and same else {}
    found = before if before is not None and same else Reference(name, config, about, episodes)
    if before is not None and not same:
        print(f"{file}: episodes of another configuration or other code, played anew")
    todo = [seed for seed in seeds if seed not in episodes]
    if len(todo) < len(seeds):
        rest = "" if todo else hint
        print(f"{name}: {len(seeds) - len(todo)} of {len(seeds)} episodes were played before ({file}){rest}")
    for seed in todo:
        start = time.perf_counter()
        with tqdm(
            total=round(scenario.episode.end_s),
            desc=f"{name} {seed}",
            unit="s",
            bar_format="{l_bar}{bar}| [{elapsed}]",
        ) as bar:
            episode = player.play(seed, lambda now_s: _advance(bar, now_s))
        episodes[seed] = Kept.of(episode, kept, time.perf_counter() - start)
        found = Reference(name, config, about, episodes)
        found.write(file)
        value = episode.metrics[player.objective.metric]
        print(f"{name}, seed {seed}: {player.objective.metric} {value:.5g}, {episode.futures} futures")
    return found


def _advance(bar: Any, now_s: float) -> None:
    bar.update(min(now_s, bar.total) - bar.n)
