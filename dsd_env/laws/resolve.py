"""How a decision is executed that cannot be executed as given."""

from __future__ import annotations

AS_GIVEN, NO_DRAFTER, BATCH_CLIPPED, TARGET_DOWN = range(4)
"""Why a decision was not executed as given; the first of several reasons counts."""
REASONS: tuple[str | None, ...] = (None, "no_drafter", "batch_clipped", "target_down")
"""Their names, by number."""


def resolved(
    gamma: int, batch_size: int, moved: bool, can_draft: bool, max_batch_size: int
) -> tuple[int, int, int]:
    """Return (gamma, batch size, reason) as executed.

    Args:
        gamma: Speculation length asked for.
        batch_size: Batch size asked for.
        moved: The target asked for is believed down, another takes its place.
        can_draft: There is a drafter at the place in question.
        max_batch_size: Limit of the target in question.
    """
    reason = TARGET_DOWN if moved else AS_GIVEN
    if gamma > 0 and not can_draft:
        gamma = 0
        if reason == AS_GIVEN:
            reason = NO_DRAFTER
    if batch_size > max_batch_size:
        batch_size = max_batch_size
        if reason == AS_GIVEN:
            reason = BATCH_CLIPPED
    return gamma, batch_size, reason
