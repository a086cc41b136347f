"""How a decision is executed that cannot be executed as given."""

from __future__ import annotations

AS_GIVEN, NO_DRAFTER, BATCH_CLIPPED, TARGET_DOWN = range(4)
"""Why a decision was not executed as given; the first of several reasons counts."""
REASONS: tuple[str | None, ...] = (None, "no_drafter", "batch_clipped", "target_down")
"""Their names, by number."""


def resolved(
    gamma: int, batch_size: int, moved: bool, can_draft: bool, max_num_seqs: int
) -> tuple[int, int, int]:
    """Return (gamma, batch size, reason) as executed.

    Args:
        gamma: Speculation length asked for.
        batch_size: Batch size asked for.
        moved: The target asked for is believed down, another takes its place.
        can_draft: There is a drafter at the place in question.
        max_num_seqs: Largest batch size of the target in question.
    """
    reason = TARGET_DOWN if moved else AS_GIVEN
    if gamma > 0 and not can_draft:
        gamma = 0
        if reason == AS_GIVEN:
            reason = NO_DRAFTER
    if batch_size > max_num_seqs:
        batch_size = max_num_seqs
        if reason == AS_GIVEN:
            reason = BATCH_CLIPPED
    return gamma, batch_size, reason


def batch_matters(enters: bool, drafts: bool, coalesces: bool) -> bool:
    """Return whether a decision's batch size has an effect at a placement.

    It has one where the request waits for admission, and on verifications that wait for company.

    Args:
        enters: The request is not resident at that target.
        drafts: Drafts are made.
        coalesces: Their verification waits for the batch size asked for.
    """
    return enters or (drafts and coalesces)
