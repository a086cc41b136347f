"""A decision as it is executed."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_env.control.actions import StopRule
from dsd_env.control.view import Site


@dataclass(frozen=True, slots=True)
class Resolution:
    """A decision as it is executed.

    Attributes:
        gamma: Speculation length used; 0 is plain decoding.
        batch_size: B: how far the request stands back at admission, and the smallest batch that it wants to
            be verified in.
        site: Where drafts are made.
        drafter_number: Number of the drafter; -1 for plain decoding.
        edge_server: Number of the edge server; -1 elsewhere.
        target: Number of the target.
        reason: Why the decision was not executed as given; None if it was.
        branches: Its stream, if it is one, has branches.
        stop: Its own rule of when the draft ends; None if it has none, and for plain decoding.
    """

    gamma: int
    batch_size: int
    site: Site
    drafter_number: int
    edge_server: int
    target: int
    reason: str | None
    branches: bool = False
    stop: StopRule | None = None
