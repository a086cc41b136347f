"""The cloud-edge speculative decoding benchmark of KubeEdge-Ianvs with windows from a controller.

Not run inside Ianvs: written against ``BaseSpeculativeDrafter`` of its example
``cloud-edge-speculative-decoding-benchmark`` and tested by calls like those of its ``_run_draft_pipeline``.
Put the class before the drafter's own:

    class PolicyDrafter(PolicyWindow, MyDrafter):
        pass

The controller comes from the environment variables of :mod:`dsd_env.serving.engines.session`, or from
:meth:`PolicyWindow.use`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from dsd_env.serving.controller import Controller
from dsd_env.serving.engines.session import EngineSession, controller_from_environment

_NUMBERS = itertools.count()
_KEY = "_dsd_env"
"""Where a session keeps ours."""


class _Window:
    """What is open of a session: the request, and what its last round proposed."""

    __slots__ = ("committed", "drafted", "session")

    def __init__(self, session: EngineSession, committed: int) -> None:
        self.session = session
        self.committed = committed
        self.drafted: int | None = None


class PolicyWindow:
    """Mixin before a drafter of Ianvs: how many tokens a round may propose comes from a controller.

    A round is reported when the next one begins, from how the list of committed tokens has grown: one more
    than the drafts that were right. Ianvs has no rounds without drafts, as its drafter then makes no
    progress, so a decision for plain decoding proposes one token; those are counted.

    Attributes:
        plain: Decisions for plain decoding so far.
    """

    plain = 0
    _controller: Controller | None = None

    def use(self, controller: Controller) -> None:
        """Take the controller to ask."""
        self._controller = controller

    def resolve_draft_window(self, session: dict[str, Any], max_draft_tokens: int | None = None) -> int:
        """Return how many draft tokens the round may propose."""
        own: Any = super()
        allowed = int(own.resolve_draft_window(session, max_draft_tokens=max_draft_tokens))
        shared: Mapping[str, Any] = session["_shared_state"]
        committed = len(shared["committed_ids"])
        left = max(int(shared["completion_limit"]) - committed, 0)
        if allowed <= 0 or left <= 0:
            return 0
        window = session.get(_KEY)
        if window is None:
            window = session[_KEY] = self._open(shared, committed)
        else:
            self._report(window, committed)
        asked = window.session.ask()
        if asked == 0:
            self.plain += 1
        # `max_draft_tokens` is a limit; the drafter's own fixed length, which is to be replaced, is none.
        limit = left if max_draft_tokens is None else min(left, max(int(max_draft_tokens), 0))
        window.drafted = min(max(1, asked), limit)
        return int(window.drafted)

    def before_close_session(self, session: dict[str, Any]) -> None:
        """Report the last round and the end."""
        window = session.pop(_KEY, None)
        if window is not None:
            self._report(window, len(session["_shared_state"]["committed_ids"]))
            window.session.close()
        own: Any = super()
        own.before_close_session(session)

    def _open(self, shared: Mapping[str, Any], committed: int) -> _Window:
        if self._controller is None:
            self._controller = controller_from_environment()
        prompt = int(shared.get("prompt_token_count", 0) or 0)
        session = EngineSession(self._controller, f"ianvs-{next(_NUMBERS)}", prompt_tokens=prompt)
        session.begin()
        return _Window(session, committed)

    @staticmethod
    def _report(window: _Window, committed: int) -> None:
        grown, drafted = committed - window.committed, window.drafted
        window.committed = committed
        if drafted is None or grown < 1:
            return
        window.session.report(drafted, min(drafted, grown - 1), grown)
        window.drafted = None
