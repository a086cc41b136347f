"""What a request's controller learns of a verification."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from dsd_env.control.view import RECENT_ROUNDS
from dsd_env.laws import drafting
from dsd_env.sim.compiled.kernel.jit import jit


@jit
def remember(request, drafted, accepted):
    """Keep the outcome of the last rounds, newest first."""
    gammas, counts = request.recent_gammas, request.recent_accepted
    for i in range(RECENT_ROUNDS - 1, 0, -1):
        gammas[i] = gammas[i - 1]
        counts[i] = counts[i - 1]
    gammas[0] = drafted
    counts[0] = accepted


@jit
def learn(k, w, request, model, drafted, accepted, committed, confidence):
    """Take the outcome of verifying a draft model's tokens into what the controller knows."""
    request.last_confidence = confidence
    remember(request, drafted, accepted)
    drafting.learn_round(request, drafted, accepted, committed, k.stats_weight)
    learned = w.learned[k.n_models * request.slot + model]
    drafting.learn_round(learned, drafted, accepted, committed, k.stats_weight)
    learned.model_rounds += 1
