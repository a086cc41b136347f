"""Rules for the speculation length and for the end of a draft, at the pace of the compiled engine.

A rule is asked in Python for the place of a request, at its admission. Every round after that is decided in
the engine's loop. The result is that of :func:`dsd_env.simulate`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import Decision, DecisionView, StopRule
from dsd_env.control.actions import snap_up, stop_at
from dsd_env.schedulers import Scheduler
from dsd_env.schedulers.adaptive import AdaptiveScheduler
from dsd_env.schedulers.hf import HfHeuristicScheduler
from dsd_env.schedulers.lengths import (
    FIRST_EMA_LENGTH,
    FIRST_EMA_TOKENS,
    SGLANG_TIERS,
    BanditSpec,
    BatchTable,
    ContextualBandit,
    EmaTiers,
    FixedLength,
    GlobalTopB,
    HuggingFace,
    TimeOut,
    UcbSpecStop,
)
from dsd_env.schedulers.stops import ADAEDL_STOP, AdaEdl, ConfidenceStop, ConfidentTopB, StoppingRule

if TYPE_CHECKING:
    from dsd_env.sim.compiled import CompiledSimulation, Layout

Bytes = NDArray[np.uint8]
Adaptive = AdaptiveScheduler | HfHeuristicScheduler
"""A scheduler with a rule for the speculation length."""


def can_follow(player: Scheduler) -> TypeGuard[Adaptive]:
    """Return whether the compiled loop knows a scheduler's rule for the length."""
    if type(player) is AdaptiveScheduler:
        return type(player.rule) in _KINDS
    return type(player) is HfHeuristicScheduler


def play_adaptive(player: Adaptive, simulation: CompiledSimulation, layout: Layout, seed: int) -> None:
    """Play a simulation to its end under a rule for the length.

    Args:
        player: A scheduler that :func:`can_follow` allows.
        simulation: The simulation, at its beginning, without a log of events.
        layout: Its scenario as compiled for the compiled engine.
        seed: Its seed.
    """
    from dsd_env.sim.compiled.kernel.loop import RUN
    from dsd_env.sim.compiled.status import DUE
    from dsd_env.sim.compiled.world import WorldReader
    from dsd_env.whole_runs.adaptive_kernel import go_on

    reader = WorldReader(layout, simulation.world)
    player.reset(simulation.scenario, seed)
    rule, told = _rule_bytes(player, layout, seed), np.zeros(2)
    due = simulation.advance()
    while due and go_on(RUN, layout.constants, simulation.world, rule, told) == DUE:
        simulation.decide(_at_admission(player, reader.view(), told))
        due = simulation.advance()
    reader.check()


def _at_admission(player: Adaptive, view: DecisionView, told: NDArray[np.float64]) -> Decision:
    """Return the decision at an admission, for which the engine has named the length and the threshold."""
    if not isinstance(player, AdaptiveScheduler):
        return player.decide(view)
    stop = _stop_of(player.stopping)
    if stop is not None:
        stop = stop._replace(threshold=float(told[1]))
    return player.with_length(view, int(told[0]), stop)


def _stop_of(rule: StoppingRule | None) -> StopRule | None:
    """Return when a rule ends a draft; the threshold may be another one at every decision."""
    if isinstance(rule, ConfidenceStop):
        return rule.rule
    if isinstance(rule, AdaEdl):
        return ADAEDL_STOP._replace(threshold=rule.threshold)
    return stop_at(1.0) if isinstance(rule, ConfidentTopB) else None


_KINDS = {
    FixedLength: "FIXED",
    HuggingFace: "HUGGING_FACE",
    BatchTable: "TABLE",
    GlobalTopB: "TOP_B",
    TimeOut: "TIME_OUT",
    EmaTiers: "EMA_TIERS",
    ConfidenceStop: "CONFIDENCE_STOP",
    AdaEdl: "ADAEDL",
    ConfidentTopB: "CONFIDENT_TOP_B",
    UcbSpecStop: "UCB",
    BanditSpec: "BANDIT",
    ContextualBandit: "CONTEXTUAL",
}
"""The kernel's names of the rules."""


def _rule_bytes(player: Adaptive, layout: Layout, seed: int) -> Bytes:
    """Return a scheduler's rule as compiled code reads it, at the beginning of an episode."""
    from dsd_env.sim.compiled.buffer import Buffer
    from dsd_env.whole_runs import adaptive_kernel as kernel

    rule = player.rule if isinstance(player, AdaptiveScheduler) else HuggingFace()
    actions = layout.scenario.actions
    buffer = Buffer()
    row = buffer.rows(kernel.RULE, 1)
    row.set_columns(
        kind=getattr(kernel, _KINDS[type(rule)]),
        seed=seed,
        batch_size=snap_up(actions.batch_sizes, player.batch_size),
        n_sites=len(player.sites),
        mean=FIRST_EMA_TOKENS,
        length=FIRST_EMA_LENGTH,
    )
    row.array["sites"][0, : len(player.sites)] = player.sites
    stop = _stop_of(player.stopping) if isinstance(player, AdaptiveScheduler) else None
    if stop is not None:
        row.array["stop"] = (stop.kind, stop.least, stop.keeps, stop.threshold)
    for name in kernel.CONSTANTS.dtype.names or ():
        if hasattr(rule, name):
            row.array["constants"][name] = getattr(rule, name)
    table: Sequence[tuple[int, Sequence[int]]] = SGLANG_TIERS
    if isinstance(rule, BatchTable):
        table = [(least, (gamma,)) for least, gamma in rule.steps]
    steps = buffer.rows(kernel.STEP, len(table))
    for number, (least, lengths) in enumerate(table):
        steps.set(number, least=least, n=len(lengths))
        steps.array["lengths"][number, : len(lengths)] = lengths
    row.set_columns(n_steps=len(table))
    row.point("steps", steps.at)
    row.point("arms", buffer.rows(kernel.ARM, kernel.CONTEXTS * len(actions.gammas)).at)
    memory = buffer.rows(kernel.MEMORY, int(layout.header["n_slots"]))
    memory.set_columns(decided_by=-1, length_of=-1, threshold_of=-1)
    row.point("memory", memory.at)
    return buffer.array()
