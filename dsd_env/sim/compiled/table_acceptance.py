"""Constants of the acceptance sources: synthetic ones by their numbers, recordings whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_env.acceptance import MAX_RUN_LENGTH, IidAcceptance, MarkovAcceptance, TraceReplay
from dsd_env.sim.compiled import codes
from dsd_env.sim.compiled import records as rec
from dsd_env.sim.compiled.buffer import Rows
from dsd_env.sim.compiled.table_writer import Writer


def write_acceptance(out: Writer) -> None:
    """Write a row per acceptance source of the scenario."""
    rows = out.buffer.rows(rec.MODEL_SPEC, len(out.scenario.acceptance))
    entries = _Entries(out)
    fanout = out.scenario.protocol.branches.fanout
    for i, (model, (source, drafter)) in enumerate(out.builder.sources.items()):
        hits = out.scenario.hits(model)
        if 0 < fanout <= len(hits):
            rows.set(i, hit_prob=hits[fanout - 1])
        if isinstance(source, TraceReplay):
            _recording(out, entries, rows, i, source, drafter)
        elif isinstance(source, IidAcceptance):
            alpha = source.alpha
            rows.set(
                i,
                source=codes.IID,
                low=alpha,
                high=alpha,
                first=alpha,
                confidence=float(np.float32(alpha)),
                entropy=_entropy_nats(source),
            )
        elif isinstance(source, MarkovAcceptance):
            low, high = sorted((source.after_match, source.after_mismatch))
            rows.set(
                i,
                source=codes.MARKOV,
                low=low,
                high=high,
                first=source.stationary,
                flips=source.after_match < source.after_mismatch,
                confidence=float(np.float32(source.stationary)),
                entropy=_entropy_nats(source),
            )
        else:
            raise NotImplementedError(
                f"the compiled engine does not know acceptance source {type(source).__name__}; "
                "use engine='reference'"
            )
    out.k.point("models", rows.at)
    out.k.point("integers", out.buffer.numbers(np.concatenate([[0], *entries.numbers]), "i8"))


def _entropy_nats(source: IidAcceptance | MarkovAcceptance) -> float:
    """Return the entropy that a synthetic source has everywhere."""
    return float(source.realise(0, 0, 1, source.drafters[0]).entropy_nats[0])


class _Entries:
    """Lists of recorded entries, one after the other in a table of whole numbers that begins with a 0."""

    def __init__(self, out: Writer) -> None:
        self._buffer = out.buffer
        self._n_numbers = 0
        self.numbers: list[NDArray[np.int64]] = []

    def write(self, lists: Sequence[NDArray[np.int64]]) -> int:
        """Write lists of recorded entries; return where their stretches lie."""
        rows = self._buffer.rows(rec.ENTRIES, len(lists))
        for i, entries in enumerate(lists):
            rows.set(i, first=1 + self._n_numbers, n=len(entries))
            self.numbers.append(np.asarray(entries, dtype=np.int64))
            self._n_numbers += len(entries)
        return rows.at


def _recording(out: Writer, entries: _Entries, rows: Rows, i: int, source: TraceReplay, drafter: str) -> None:
    trace = source.trace
    columns = trace.drafters[drafter]
    kinds = out.scenario.workload.kinds.values()
    rows.point("offsets", out.buffer.numbers(trace.offsets, "i8"), i)
    rows.point("kind_of", out.buffer.numbers(trace.kind, "i8"), i)
    rows.point("same_kind", entries.write([trace.entries_of([name]) for name in trace.kinds]), i)
    rows.point("pools", entries.write([trace.entries_of(kind.acceptance_kinds or None) for kind in kinds]), i)
    schedule = out.builder.schedule
    if schedule is not None and schedule.recordings and source.names:
        named = np.array([source.names[name] for name in schedule.recordings], dtype=np.int64)
        rows.set(i, has_named=True)
        rows.point("named", out.buffer.numbers(named, "i8"), i)
    rows.point("top1_prob", out.buffer.numbers(columns.top1_prob.astype(np.float32), "f8"), i)
    rows.point("entropy_nats", out.buffer.numbers(columns.entropy_nats.astype(np.float32), "f8"), i)
    if columns.run_length is not None:
        rows.set(i, source=codes.RUNS, longest=trace.gamma_max or MAX_RUN_LENGTH)
        rows.point("run_length", out.buffer.numbers(columns.run_length, "i8"), i)
        if columns.proposed is not None:
            rows.set(i, proposes=True)
            rows.point("proposed", out.buffer.numbers(columns.proposed, "u1"), i)
    else:
        rows.set(i, source=codes.MATCHES, longest=MAX_RUN_LENGTH)
        rows.point("accept_prob", out.buffer.numbers(columns.accept_prob, "f8"), i)
    if columns.rank is not None:
        rows.set(i, has_rank=True)
        rows.point("rank", out.buffer.numbers(columns.rank, "u1"), i)
    if (guess_prob := columns.guess_prob) is not None:
        rows.set(i, has_guess=True)
        rows.point("draft_prob", out.buffer.numbers(guess_prob, "f8"), i)
