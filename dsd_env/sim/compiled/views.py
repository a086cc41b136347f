"""From what the kernel has written about the due decision to the view that a scheduler reads.

All of it is float64. So the rows are read as plain numbers, all at once, and whole numbers, truth values and
enumerations are made of them here; a scheduler in Python waits for little else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsd_env.control.view import (
    CandidateView,
    DecisionView,
    DrafterKind,
    DrafterView,
    LinkView,
    RequestView,
    Site,
    SystemView,
    TargetView,
)
from dsd_env.sim.compiled import records as rec

if TYPE_CHECKING:
    from dsd_env.sim.compiled.tables import Bytes, Layout

Row = Sequence[float]
_SITES, _KINDS = tuple(Site), tuple(DrafterKind)


def _places(record: rec.Record) -> dict[str, slice]:
    """Return where each field of a record of float64 is among its numbers."""
    assert all(base == np.dtype("f8") for base in _bases(record.dtype))
    ends = [*list(record.offsets.values())[1:], record.itemsize]
    return {
        name: slice(at // 8, end // 8) for (name, at), end in zip(record.offsets.items(), ends, strict=True)
    }


def _bases(dtype: np.dtype[Any]) -> list[np.dtype[Any]]:
    if dtype.fields is None:
        return [dtype.base]
    return [base for field, *_ in dtype.fields.values() for base in _bases(field)]


def _in_order_of(view: type[Any], record: rec.Record, **otherwise: str) -> Callable[[Row], tuple[float, ...]]:
    """Return what takes the fields of a view out of a row, in their order; of several numbers the first."""
    places = _places(record)
    return itemgetter(*(places[otherwise.get(field.name, field.name)].start for field in fields(view)))


_of_request = _in_order_of(RequestView, rec.REQUEST_VIEW)
_of_target = _in_order_of(TargetView, rec.TARGET_VIEW)
_of_candidate = _in_order_of(CandidateView, rec.CANDIDATE_VIEW, target="offered")
_VIEW, _REQUEST = _places(rec.VIEW), _places(rec.REQUEST_VIEW)
_NUMBERS = slice(_VIEW["now_s"].start, _VIEW["counter"].stop)
_GAMMAS, _ACCEPTED = _REQUEST["recent_gammas"], _REQUEST["recent_accepted"]


class ViewReader:
    """Reads the view of the decision that is due in one world."""

    def __init__(self, layout: Layout, world: Bytes) -> None:
        """Look at the rows of a world."""
        header = world[: rec.WORLD.itemsize].view(rec.WORLD.dtype)[0]

        def numbers(block: str, record: rec.Record, n: int) -> NDArray[np.float64]:
            at, width = int(header[block]), record.itemsize // 8
            return world[at : at + 8 * n * width].view(np.float64).reshape(n, width)

        self._due = numbers("due_view", rec.VIEW, 1)[0]
        self._targets = numbers("target_views", rec.TARGET_VIEW, int(layout.header["n_offered"]))
        self._candidates = numbers("candidates", rec.CANDIDATE_VIEW, int(layout.header["n_places"]))
        self._models = (*layout.scenario.acceptance, "")
        self._actions = layout.scenario.actions

    def view(self) -> DecisionView:
        """Return the view of the due decision."""
        due = self._due.tolist()
        now_s, request_id, device, counter = due[_NUMBERS]
        targets = [_target_view(row) for row in self._targets.tolist()]
        models = self._models
        up, *link = due[_VIEW["link"]]
        available, step_s, kv_lag_tokens, jobs = due[_VIEW["drafter"]]
        active_requests, *system = due[_VIEW["system"]]
        return DecisionView(
            now_s,
            int(request_id),
            int(device),
            int(counter),
            _request_view(due[_VIEW["request"]]),
            targets[0],
            LinkView(up != 0.0, *link),
            DrafterView(available != 0.0, step_s, int(kv_lag_tokens), int(jobs)),
            tuple([_candidate_view(row, targets, models) for row in self._candidates.tolist()]),
            SystemView(int(active_requests), *system),
            self._actions.gammas,
            self._actions.batch_sizes,
        )


def _request_view(row: Row) -> RequestView:
    (
        is_admission, control_site, prompt_tokens, committed_tokens, age_s, slo_ttft_s, slo_tpot_s,
        slo_itl_p99_s, slo_first_s, slo_per_token_s, ttft_s, tpot_s, rounds, acceptance_rate,
        tokens_per_round, _, _, last_confidence, head_start_tokens, window_tokens, lead_tokens,
        generations, generation_age_s, idle_share,
    ) = _of_request(row)  # fmt: skip
    return RequestView(
        is_admission != 0.0,
        _SITES[int(control_site)],
        int(prompt_tokens),
        int(committed_tokens),
        age_s,
        slo_ttft_s,
        slo_tpot_s,
        slo_itl_p99_s,
        slo_first_s,
        slo_per_token_s,
        ttft_s,
        tpot_s,
        int(rounds),
        acceptance_rate,
        tokens_per_round,
        tuple(map(int, row[_GAMMAS])),
        tuple(map(int, row[_ACCEPTED])),
        last_confidence,
        int(head_start_tokens),
        int(window_tokens),
        int(lead_tokens),
        int(generations),
        generation_age_s,
        idle_share,
    )


def _target_view(row: Row) -> TargetView:
    (
        index, up, queued, running, resident, remaining_s, iteration_s, kv_fraction, waiting, max_num_seqs,
        max_batch_wait_s, token_s, prefill_token_s, age_s, plain, colocated, remote, gamma_mean,
        prefill_tokens,
    ) = _of_target(row)  # fmt: skip
    return TargetView(
        int(index),
        up != 0.0,
        int(queued),
        int(running),
        int(resident),
        remaining_s,
        iteration_s,
        kv_fraction,
        int(waiting),
        int(max_num_seqs),
        max_batch_wait_s,
        token_s,
        prefill_token_s,
        age_s,
        int(plain),
        int(colocated),
        int(remote),
        gamma_mean,
        int(prefill_tokens),
    )


def _candidate_view(row: Row, targets: Sequence[TargetView], models: Sequence[str]) -> CandidateView:
    """Return a candidate; `models` ends with the name of none."""
    (
        site, edge_server, offered, valid, is_current, same_target, draft_step_s, catch_up_s, draft_wait_s,
        rtt_s, handover_s, kv_lag_tokens, move_s, shares_target, drafter, kind, model, acceptance_rate,
        tokens_per_round, model_rounds, streams, coalesces, pooled_acceptance, fanout, depth,
    ) = _of_candidate(row)  # fmt: skip
    return CandidateView(
        _SITES[int(site)],
        int(edge_server),
        targets[int(offered)],
        valid != 0.0,
        is_current != 0.0,
        same_target != 0.0,
        draft_step_s,
        catch_up_s,
        draft_wait_s,
        rtt_s,
        handover_s,
        int(kv_lag_tokens),
        move_s,
        shares_target != 0.0,
        int(drafter),
        _KINDS[int(kind)],
        models[int(model)],
        acceptance_rate,
        tokens_per_round,
        int(model_rounds),
        streams != 0.0,
        coalesces != 0.0,
        pooled_acceptance,
        int(fanout),
        int(depth),
    )
