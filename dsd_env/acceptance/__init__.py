"""Acceptance of draft tokens: recordings of real model pairs, their replay, and random models.

The simulator asks one thing of a source: for a request and a drafter, how many drafts would be
accepted by a round of unlimited length from every output position
(:meth:`AcceptanceSource.realise`). Recording itself is in
:mod:`dsd_env.calibration.acceptance.recording`, which alone needs torch and transformers.
"""

from dsd_env.acceptance.replay import TraceReplay
from dsd_env.acceptance.runmodel import (
    RunModel,
    available_run_models,
    generate_pool,
    load_pool,
    load_run_model,
)
from dsd_env.acceptance.source import (
    MAX_RUN_LENGTH,
    AcceptanceError,
    AcceptanceRealisation,
    AcceptanceSource,
    Label,
    run_lengths,
)
from dsd_env.acceptance.stats import (
    acceptance_rate,
    drafts_per_round,
    expected_tokens_iid,
    run_continuation_share,
    saturation_share,
    summary,
    tokens_at_random_start,
    tokens_per_round,
)
from dsd_env.acceptance.synthetic import (
    IidAcceptance,
    MarkovAcceptance,
    PerDrafterAcceptance,
    PositionalAcceptance,
)
from dsd_env.acceptance.traceset import (
    DrafterTrace,
    TraceError,
    TraceSet,
    available_trace_sets,
    load_trace_set,
)

__all__ = [
    "MAX_RUN_LENGTH",
    "AcceptanceError",
    "AcceptanceRealisation",
    "AcceptanceSource",
    "DrafterTrace",
    "IidAcceptance",
    "Label",
    "MarkovAcceptance",
    "PerDrafterAcceptance",
    "PositionalAcceptance",
    "RunModel",
    "TraceError",
    "TraceReplay",
    "TraceSet",
    "acceptance_rate",
    "available_run_models",
    "available_trace_sets",
    "drafts_per_round",
    "expected_tokens_iid",
    "generate_pool",
    "load_pool",
    "load_run_model",
    "load_trace_set",
    "run_continuation_share",
    "run_lengths",
    "saturation_share",
    "summary",
    "tokens_at_random_start",
    "tokens_per_round",
]
