"""Tokens that the target chose without a draft: whether the drafter guesses them, asked of both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_env import Decision, ReferenceSimulation
from dsd_env.acceptance import DrafterTrace, TraceSet
from dsd_env.scenario import load_scenario
from dsd_env.sim import EventKind
from dsd_env.sim.compiled import CompiledSimulation
from dsd_env.sim.fuzz.case import made_up_trace
from dsd_env.sim.world import WorldBuilder
from tests.acceptance_samples import card
from tests.engines import assert_engines_agree
from tests.lab import lab
from tests.scenarios import TINY

pytest.importorskip("numba")

SHORT = {"lengths": [5, 3, 9, 1, 4], "kind": [0, 1, 0, 1, 0]}
"""Entries so short that a request goes through many."""
OUTPUT = {"distribution": "constant", "value": 40}
SOURCES: dict[str, dict[str, Any]] = {
    "sampled": {"source": "trace", "trace": 1, "drafter": "model"},
    "greedy": {"source": "trace", "trace": 2, "drafter": "model"},
    "runs": {"source": "trace", "trace": 1, "drafter": "look"},
    "iid": {"source": "iid", "alpha": 0.6},
    "markov": {"source": "markov", "after_match": 0.2, "after_mismatch": 0.9},
}


def saved(source: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a source whose trace, so far the seed of a made-up one, is a file."""
    if "trace" not in source:
        return source
    npz, _ = made_up_trace("made-up", seed=source["trace"], **SHORT).save(folder)
    return {**source, "trace": str(npz)}


@pytest.fixture(scope="module")
def ask() -> Any:
    """Return the compiled engine's answer for a request: of a model, a chain's start and a position."""
    from numba import njit

    from dsd_env.sim.compiled.kernel.acceptance import guess_right
    from dsd_env.sim.compiled.kernel.loop import as_scenario, as_world, pointer

    @njit
    def answer(constants: Any, world: Any, slot: int, model: int, chain: int, position: int) -> Any:
        k, w = as_scenario(pointer(constants)), as_world(pointer(world))
        return guess_right(k, w, w.requests[slot], model, chain, position)

    return answer


@pytest.mark.parametrize("name", SOURCES)
def test_both_engines_guess_alike_at_every_position_of_every_chain(
    name: str, tmp_path: Path, ask: Any
) -> None:
    scenario = lab(acceptance={"draft": saved(SOURCES[name], tmp_path)}, output=OUTPUT)
    source, drafter = WorldBuilder(scenario).sources["draft"]
    right = asked = 0
    for seed in range(3):
        simulation = CompiledSimulation(scenario, seed)
        assert simulation.next_decision() is not None
        constants, world = simulation._layout.constants, simulation.world
        row = simulation._reader.request(0)
        n = int(row["output_tokens"])
        realised = source.realise(seed, int(row["uid"]), n, drafter)
        for chain in range(n):  # chains never begin further back than before
            for position in (chain, chain + 1, chain + 5, n - 1, n, n + 1):
                expected = realised.guessed_at(position, chain)
                assert bool(ask(constants, world, 0, 0, chain, position)) == expected
                right, asked = right + expected, asked + 1
    assert 0.2 * asked < right < 0.8 * asked


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("kind", "seed"), [("pipelined", 1), ("pipelined", 2), ("streaming", 3)])
def test_engines_agree_on_what_is_guessed(name: str, kind: str, seed: int, tmp_path: Path) -> None:
    scenario = load_scenario(
        {
            **TINY,
            "acceptance": {"draft": saved(SOURCES[name], tmp_path)},
            "protocol": {"kind": kind},
        }
    )
    assert assert_engines_agree(scenario, "edge_sd:2", seed) > 100


def recorded(accept: Any, guess: Any, folder: Path) -> dict[str, Any]:
    """Return a source with these probabilities: that a draft is accepted, and that it is what would come."""
    n = len(accept)
    sure, nothing = np.ones(n, np.float16), np.zeros(n, np.float16)
    trace = TraceSet(
        name="made",
        kinds=("any",),
        offsets=np.array([0, n], np.int64),
        kind=np.zeros(1, np.uint8),
        prompt_tokens=np.ones(1, np.int32),
        drafters={"d": DrafterTrace(None, accept, sure, nothing, draft_prob=guess)},
        card=card(("d",), label="synthetic"),
    )
    npz, _ = trace.save(folder)
    return {"source": "trace", "trace": str(npz), "drafter": "d"}


def stream(engine: Any, source: dict[str, Any], gamma: int, tokens: int, **changes: Any) -> Any:
    """Play one request whose drafts take 5 ms and 4 ms on their way, to a target with iterations of 30 ms."""
    scenario = lab(
        acceptance={"draft": source},
        draft_s=0.005,
        one_way_s=0.004,
        requests=1,
        protocol__kind="streaming",
        output={"distribution": "constant", "value": tokens},
        **changes,
    )
    simulation = engine(scenario, 1, record_events=True)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(gamma, 1, 1))
    return simulation


def committed_at(simulation: Any) -> list[tuple[float, float]]:
    return [(e.time_s, e.value) for e in simulation.events if e.kind == EventKind.COMMIT]


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def test_a_stream_is_lost_where_the_target_chooses_another_token_by_itself(
    engine: Any, tmp_path: Path
) -> None:
    """Every draft that is verified is accepted, but no token that the target chooses alone is guessed.

    A target that goes on by itself never verifies anything then. One that waits for a draft verifies it,
    and adds a token that ends the generation: two tokens an iteration, a message, a draft and a message back.
    """
    n = 101
    source = recorded(np.ones(n, np.float32), np.zeros(n, np.float32), tmp_path)
    lost = stream(engine, source, 8, n)
    assert lost.totals.late_drafts > 50 and lost.totals.drafted == 0
    assert committed_at(lost) == committed_at(stream(engine, source, 0, n))
    waits = stream(engine, source, 8, n, protocol__stream_idle="wait", protocol__patience_s=1.0)
    assert waits.totals.drafted == waits.totals.accepted
    rows = committed_at(waits)[3:-1]
    assert {tokens for _, tokens in rows} == {2}
    np.testing.assert_allclose(np.diff([time_s for time_s, _ in rows]), 0.03 + 2 * 0.004 + 0.005, rtol=1e-9)


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
def test_a_stream_that_guesses_all_is_that_of_a_drafter_that_is_always_right(
    engine: Any, tmp_path: Path
) -> None:
    n = 101
    ones = np.ones(n, np.float32)
    guessed = stream(engine, recorded(ones, ones, tmp_path), 8, n)
    right = stream(engine, {"source": "iid", "alpha": 1.0}, 8, n)
    assert guessed.events == right.events
    assert max(tokens for _, tokens in committed_at(right)) > 4


@pytest.mark.parametrize("engine", [ReferenceSimulation, CompiledSimulation], ids=["reference", "compiled"])
@pytest.mark.parametrize("every", [1, 2, 4, 1000])
def test_a_window_has_a_head_start_where_the_bonus_token_was_guessed(
    engine: Any, every: int, tmp_path: Path
) -> None:
    """All drafts are accepted, but the guess between two windows is right only at every so many windows."""
    gamma, windows, draft_s, one_way_s, verify_s = 4, 40, 0.005, 0.02, 0.03
    n = 1 + windows * (gamma + 1)
    guess = np.zeros(n, np.float32)
    guess[:: every * (gamma + 1)] = 1.0  # window i begins at 1 + 5 (i - 1), the token after it is 5 i
    scenario = lab(
        acceptance={"draft": recorded(np.ones(n, np.float32), guess, tmp_path)},
        draft_s=draft_s,
        one_way_s=one_way_s,
        verify={"t0_s": verify_s},
        requests=1,
        protocol__kind="pipelined",
        output={"distribution": "constant", "value": n},
    )
    simulation = engine(scenario, 1)
    while simulation.next_decision() is not None:
        simulation.decide(Decision(gamma, 1, 1))
    assert simulation.metrics()["block_efficiency"] == gamma + 1
    # Drafting ahead takes less time than the round trip and the verification, which hide it.
    hidden = (windows - 1) // every
    decode_s = windows * (2 * one_way_s + verify_s) + (windows - hidden) * gamma * draft_s
    table = simulation.requests_table()
    assert table["e2e_s"][0] - table["ttft_s"][0] == pytest.approx(decode_s, rel=1e-9)
