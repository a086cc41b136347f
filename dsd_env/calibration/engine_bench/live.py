"""What a run is at, live in a terminal: tokens, drafted length and accepted drafts, step by step."""

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

RECENT = 12
"""Steps of a request that are shown."""
TEXT_WIDTH = 300
"""Characters of the newest question's text that are shown."""


@dataclass
class _Row:
    """One client on show."""

    question: int = 0
    kind: str = ""
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    began_s: float = 0.0
    now_s: float = 0.0
    begun: bool = False
    steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RECENT))
    done: bool = False


class EngineView:
    """Takes the events of a run, and shows them. Hand :meth:`show` to rich's ``Live``."""

    def __init__(self, title: str, decode: Callable[[list[int]], str]) -> None:
        """Make a view.

        Args:
            title: What it shows.
            decode: Makes text of tokens.
        """
        self.title, self._decode = title, decode
        self._rows: dict[int, _Row] = {}
        self._asker: dict[int, int] = {}
        self._text: list[int] = []
        self._shown = -1
        self._time_s = self._step_s = 0.0
        self._tokens = 0

    def watch(self, event: dict[str, Any]) -> None:
        """Take in one event; see :class:`dsd_env.calibration.engine_bench.engine.Bench`."""
        if event["kind"] == "ask":
            self._asker[event["question"]] = event["client"]
            self._rows[event["client"]] = _Row(event["question"], event["text"], began_s=self._time_s)
        elif event["kind"] == "step":
            self._time_s, self._step_s = event["time_s"], event["duration_s"]
            for question, drafted, new in event["requests"]:
                self._step(question, drafted, new)
        elif event["kind"] == "done":
            self._rows[event["client"]].done = True

    def _step(self, question: int, drafted: int, new: list[int]) -> None:
        row = self._rows[self._asker[question]]
        row.now_s = self._time_s
        if new:
            if row.begun:
                row.steps.append((drafted, len(new) - 1))
            row.begun = True
        row.tokens += len(new)
        row.drafted += drafted
        row.accepted += max(0, len(new) - 1) if drafted else 0
        self._tokens += len(new)
        if self._shown not in self._asker or self._rows[self._asker[self._shown]].question != self._shown:
            self._shown, self._text = question, []
        if question == self._shown:
            self._text += new

    def show(self) -> Group:
        """Return what there is to see now."""
        table = Table(expand=True)
        for name, justify in (
            ("client", "right"),
            ("question", "left"),
            ("tokens", "right"),
            ("tok/s", "right"),
            ("drafted", "right"),
            ("accepted", "right"),
            (f"last {RECENT} steps: accepted of drafted", "left"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for client, row in sorted(self._rows.items()):
            seconds = row.now_s - row.began_s
            table.add_row(
                f"{client}{' ✓' if row.done else ''}",
                f"{row.question} {row.kind}",
                str(row.tokens),
                f"{row.tokens / seconds:.1f}" if seconds > 0 else "—",
                str(row.drafted),
                str(row.accepted),
                " ".join("·" if not drafted else f"{got}/{drafted}" for drafted, got in row.steps),
            )
        rate = self._tokens / self._time_s if self._time_s else 0.0
        below = f"{self._tokens} tokens, {rate:.1f} tok/s, last step {1e3 * self._step_s:.0f} ms"
        said = self._decode(self._text)[-TEXT_WIDTH:]
        return Group(
            Panel(table, title=self.title, subtitle=below),
            Panel(Text(said), title=f"question {max(0, self._shown)}, as it comes"),
        )
