"""What a run is at, live in a terminal: tokens, window, accepted, round trip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsd_env.extras import needs

with needs("testbed", "the live view"):
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

#: Results of which the accepted share is shown.
RECENT = 20
TEXT_WIDTH = 300


@dataclass
class _Row:
    """One request on show."""

    tokens: int = 0
    began_s: float = 0.0
    now_s: float = 0.0
    window: float = 0
    placement: str = "edge"
    rtt_s: float = 0.0
    drafted: int = 0
    rollbacks: int = 0
    commits: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    done: bool = False


class LiveView:
    """Takes events of the edge's log, and shows them. Hand :meth:`show` to rich's ``Live``."""

    def __init__(self, title: str, decode: Callable[[list[int]], str]) -> None:
        """Make a view.

        Args:
            title: What it shows.
            decode: Makes text of the target's tokens.
        """
        self.title, self._decode = title, decode
        self._rows: dict[int, _Row] = {}
        self._text: list[int] = []
        self._question = -1

    def watch(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        kind, row = event["kind"], self._rows.setdefault(event["request"], _Row(began_s=event["time_s"]))
        row.now_s = event["time_s"]
        if kind == "DECISION":
            row.window, row.placement = event["value"], event["placement"]
            row.rtt_s = event["rtt_s"]
        elif kind == "DRAFT_END":
            row.drafted += int(event["value"])
        elif kind in ("STREAM_ROLLBACK", "ROLLBACK"):
            row.rollbacks += 1
        elif kind == "COMMIT":
            row.commits.append(event["value"])
            row.tokens += int(event["value"])
        elif kind == "COMPLETE":
            row.done = True

    def tokens(self, question: int, new: list[int]) -> None:
        """Take in tokens that have become known; the text on show is that of the newest question."""
        if question > self._question:
            self._question, self._text = question, []
        if question == self._question:
            self._text += new

    def show(self) -> Group:
        """Return what there is to see now."""
        table = Table(expand=True)
        for name in (
            "request",
            "tokens",
            "tok/s",
            "window",
            "where",
            "per result",
            "drafted",
            "rollbacks",
            "RTT",
        ):
            table.add_column(name, justify="right")
        for number, row in list(self._rows.items())[-8:]:
            total = sum(row.commits) / max(1, len(row.commits))
            rate = row.tokens / max(1e-9, row.now_s - row.began_s)
            table.add_row(
                f"{number}{' ✓' if row.done else ''}",
                str(row.tokens),
                f"{rate:.1f}",
                f"{row.window:.0f}",
                row.placement if row.window else "—",
                f"{total:.2f}",
                str(row.drafted),
                str(row.rollbacks),
                f"{1e3 * row.rtt_s:.0f} ms" if row.rtt_s else "—",
            )
        said = self._decode(self._text)[-TEXT_WIDTH:]
        return Group(
            Panel(table, title=self.title), Panel(Text(said), title="the target's output, as it comes")
        )
