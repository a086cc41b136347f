"""The log of a run, as JSON lines, with the names of the simulator's events.

The first line says what the file is. Every other is one event: ``time_s`` (since the epoch of the first
line), ``kind`` (a name of :class:`~dsd_env.sim.events.EventKind`, with the meaning of ``value`` documented
there), ``entity`` (number of the client, which is its drafter's, or of the server's target, 0), ``request``,
``value``, and what else there is to say, such as ``rtt_s``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from dsd_env.sim.events import EventKind

VERSION = 1


class EventLog:
    """Writes events to a file, and shows them to whoever looks."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        side: str = "edge",
        epoch_unix_s: float | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Open a log.

        Args:
            path: File to write; None for none.
            side: ``edge`` or ``cloud``.
            epoch_unix_s: Unix time that counts as 0; default now. Logs of one run should share it.
            watch: Called with every event.
        """
        self.epoch_unix_s = time.time() if epoch_unix_s is None else epoch_unix_s
        self._watch = watch
        self._file: TextIO | None = None
        if path is not None:
            self._file = path.open("w", encoding="utf-8")
            head = {
                "log": "dsd_env testbed",
                "version": VERSION,
                "side": side,
                "epoch_unix_s": self.epoch_unix_s,
            }
            self._file.write(json.dumps(head) + "\n")

    def write(self, kind: EventKind, entity: int, request: int, value: float, **more: Any) -> None:
        """Write one event that happens now."""
        if self._file is None and self._watch is None:
            return
        event: dict[str, Any] = {
            "time_s": round(time.time() - self.epoch_unix_s, 6),
            "kind": kind.name,
            "entity": entity,
            "request": request,
            "value": value,
            **more,
        }
        if self._file is not None:
            self._file.write(json.dumps(event) + "\n")
        if self._watch is not None:
            self._watch(event)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_log(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the first line of a log and its events.

    Raises:
        ValueError: The file is not such a log.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    head = json.loads(lines[0]) if lines else {}
    if not isinstance(head, dict) or head.get("log") != "dsd_env testbed" or head.get("version") != VERSION:
        raise ValueError(f"{path}: not a log of the testbed, version {VERSION}")
    events = [json.loads(line) for line in lines[1:]]
    for event in events:
        if event.get("kind") not in EventKind.__members__:
            raise ValueError(f"{path}: unknown event {event.get('kind')!r}")
    return head, events
