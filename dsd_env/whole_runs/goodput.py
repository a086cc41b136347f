"""The goodput rule, decided inside the compiled engine: whole simulations, or one decision after the other.

The result of a simulation is that of :func:`dsd_env.simulate`, bit for bit, sooner. Where streams have
branches the rule is asked in Python, as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.actions import Decision, snap_up
from dsd_env.scenario import Scenario
from dsd_env.schedulers.goodput import GoodputScheduler

if TYPE_CHECKING:
    from dsd_env.schedulers.node_times import NodeTimes, StepTimes
    from dsd_env.sim.compiled import CompiledSimulation, Layout
    from dsd_env.sim.compiled.buffer import Buffer, Rows
    from dsd_env.sim.compiled.world import WorldReader

Bytes = NDArray[np.uint8]


def can_play(scenario: Scenario) -> bool:
    """Return whether the compiled rule knows all that a scenario has."""
    return scenario.protocol.branches.fanout == 0


class DueDecisions:
    """The rule's decisions on worlds of the compiled engine that somebody else steps."""

    def __init__(self, player: GoodputScheduler, scenario: Scenario) -> None:
        """Load the rule for a scenario that :func:`can_play` allows."""
        self._rule = rule_bytes(player, scenario)
        self._told = np.zeros(2, dtype=np.int64)
        self._batch_size = snap_up(scenario.actions.batch_sizes, player.parameters.batch_size)

    def __call__(self, reader: WorldReader) -> Decision:
        """Return the decision that is due in a world."""
        from dsd_env.whole_runs.goodput_kernel import decide_due

        decide_due(reader.layout.constants, reader.world, self._rule, self._told)
        return Decision(int(self._told[0]), self._batch_size, int(self._told[1]))


def play_goodput(rule: Bytes, simulation: CompiledSimulation, layout: Layout, seed: int) -> None:
    """Play a simulation to its end under the goodput rule.

    Args:
        rule: The rule, of :func:`rule_bytes`; it draws nothing, so that the seed does not matter to it.
        simulation: The simulation, at its beginning, without a log of events.
        layout: Its scenario as compiled for the compiled engine.
        seed: Its seed.
    """
    from dsd_env.sim.compiled.kernel.loop import RUN
    from dsd_env.sim.compiled.world import WorldReader
    from dsd_env.whole_runs.goodput_kernel import play

    if simulation.advance():
        play(RUN, layout.constants, simulation.world, rule)
        WorldReader(layout, simulation.world).check()


def rule_bytes(player: GoodputScheduler, scenario: Scenario) -> Bytes:
    """Return the rule as compiled code reads it, with what it loads for a scenario.

    Args:
        player: The rule, which is reset for the scenario.
        scenario: A scenario that :func:`can_play` allows.
    """
    from dsd_env.sim.compiled.buffer import Buffer
    from dsd_env.whole_runs.goodput_kernel import NODE, PLACES, RULE, YIELD

    player.reset(scenario, 0)
    buffer = Buffer()
    rule = buffer.rows(RULE, 1)
    for name in player.parameters.names():
        rule.array["parameters"][name] = getattr(player.parameters, name)
    rule.set_columns(
        streams=scenario.protocol.kind == "streaming",
        has_menu=scenario.has_menu,
        batch_size=snap_up(scenario.actions.batch_sizes, player.parameters.batch_size),
        plain_chunk_tokens=scenario.protocol.plain_chunk_tokens,
        stream_chunk_tokens=scenario.protocol.stream_chunk_tokens,
    )
    nodes = buffer.rows(NODE, len(player.nodes))
    rule.point("nodes", nodes.at)
    for number, node in enumerate(player.nodes):
        _write_node(buffer, nodes, number, node)
    rule.point("yields", buffer.rows(YIELD, PLACES).at)
    return buffer.array()


def _write_node(buffer: Buffer, nodes: Rows, number: int, node: NodeTimes) -> None:
    from dsd_env.whole_runs.goodput_kernel import STEP_TIMES

    nodes.set(
        number,
        per_sequence_s=node.engine.per_sequence_s,
        per_verifying_iteration_s=node.engine.per_verifying_iteration_s,
        kv_capacity_tokens=node.kv_capacity_tokens,
        max_num_seqs=node.max_num_seqs,
        n_drafters=len(node.drafters),
    )
    rows = buffer.rows(STEP_TIMES, 1 + len(node.drafters))
    nodes.point("times", rows.at, number)
    nodes.point("drafters", rows.at_row(1), number)
    for i, times in enumerate((node.times, *node.drafters)):
        if times is not None:
            _write_times(buffer, rows, i, times)


def _write_times(buffer: Buffer, rows: Rows, i: int, times: StepTimes) -> None:
    rows.set(i, n=len(times.compute_s), k_bw_s=times.k_bw_s, k_multi_s=times.k_multi_s, k_lat_s=times.k_lat_s)
    rows.point("compute_s", buffer.numbers(times.compute_s, "f8"), i)
