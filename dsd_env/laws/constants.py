"""Numbers that several laws share."""

from __future__ import annotations

ACCEPTANCE_PRIOR = 0.6
"""What a controller assumes of a request's acceptance rate before it has seen a round."""
PRIOR_DRAFTS = 16.0
"""How many judged drafts that weighs in the running acceptance of a draft model over all requests."""
POOL_WEIGHT = 1.0 / 512.0
"""Weight of the newest verification in that: it remembers about 500 of them."""
POOL_AT_FIRST = {"right": ACCEPTANCE_PRIOR * PRIOR_DRAFTS, "judged": PRIOR_DRAFTS}
"""Drafts that were right, and those judged, before the first verification."""
TOKENS_PER_ROUND_PRIOR = 2.0
"""What it assumes of the tokens committed per draft round, likewise."""
REPORTS_KEPT = 64
"""Periodic reports that a controller may still be waiting for."""
SLOPE_TOKENS = 8
"""Distance over which a target's marginal time per token is taken; its largest batch has more."""
REQUESTS_PER_DEVICE = 1 << 24
"""Most requests of a device in an episode: request number i of device d draws as entity d · this + i."""
RATE_TIME_CONSTANT_S = 2.0
"""Time constant of the running arrival and token rates."""
ATTAINMENT_TIME_CONSTANT_S = 10.0
"""Time constant of the running shares of requests that met their SLO, by class."""
NO_BOUND_S = 1.0e9
"""A bound that a service-level objective does not have. Finite, so that observations of it are, too."""
