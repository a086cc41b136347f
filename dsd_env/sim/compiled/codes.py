"""Numbers that stand for things in the records: `tables` writes them, the kernel reads them."""

from __future__ import annotations

from dsd_env.laws.streams import UNDER_WAY

NO_DRAFTER, DRAFTS_ALONE, DRAFTS_SHARED = range(3)
"""Modes of a place: nobody drafts there, a drafter of its own does, or one on the target's GPUs."""

MODEL, HEAD, LOOKUP = range(3)
"""Kinds of drafter; the numbers of :class:`dsd_env.control.DrafterKind`."""

JOBS = 3
"""Draft jobs of a request."""
ROUND_JOB, WARM_JOB, AHEAD_JOB = range(JOBS)
"""Its round's, its drafter's prefill, and what is drafted ahead of a verification."""

RING = UNDER_WAY + 1
"""Room for the messages of a stream that are under way in one direction: drafts, and word of its end."""

CLOSED, POISSON, RENEWAL, CLIENT_RENEWALS, REPLAY = range(5)
"""Arrivals: of clients who wait for their answers, and the open ones."""

MATCHES, RUNS, IID, MARKOV = range(4)
"""Sources of acceptance: recorded matches by position, recorded runs by start, and the two synthetic ones."""

AT_DEVICE, AT_EDGE, AT_TARGET = range(3)
"""What a fault hits."""
