"""How often branches hold the right token: what is known of each draft model before anything is served."""

from __future__ import annotations

from dsd_env.acceptance import load_trace_set
from dsd_env.acceptance.stats import fanout_hits
from dsd_env.scenario import Scenario
from dsd_env.scenario.schema import TraceAcceptance


def branch_hits(scenario: Scenario) -> dict[str, float]:
    """Return the probability that the right token for a wrong draft opens a branch, by draft model.

    It is a property of target and drafter, measured on recordings like the profiles on hardware; a scenario
    without recordings states it (`hits`). Models that do not stream are left out; without branches all are.
    """
    fanout = scenario.protocol.branches.fanout
    known: dict[str, float] = {}
    for model in scenario.streaming_models if fanout else ():
        source = scenario.acceptance[model]
        if isinstance(source, TraceAcceptance):
            shares = fanout_hits(load_trace_set(source.trace), source.drafter, [fanout])
            known[model] = 0.0 if shares is None else float(shares[0])
        else:
            known[model] = scenario.hits(model)[fanout - 1]
    return known
