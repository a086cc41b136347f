"""Records of finished cells: one file per scenario, and a line on disk for each as soon as it is finished."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.benchmark.cells import Cell
from agents.benchmark.config import BenchmarkError
from agents.benchmark.running import Outcome
from dsd_env import strict_json
from dsd_env.files import append_json_line, write_text

FORMAT = "dsd_env.benchmark.records"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One finished simulation.

    Attributes:
        entry: Name of the scenario in the benchmark.
        name: Name of the scheduler in the benchmark.
        scheduler: Its specification.
        seed: Episode seed.
        inputs: Digest of all that the result depends on.
        metrics: Metrics by name; NaN where nothing was observed.
        digest: SHA-256 of all metrics of the episode.
        wall_s: Time that the simulation took, on whatever machine that was.
        adopted: It was made of other inputs, and kept because another seed's replay was the same.
    """

    entry: str
    name: str
    scheduler: str
    seed: int
    inputs: str
    metrics: Mapping[str, float]
    digest: str
    wall_s: float
    adopted: bool = False

    @classmethod
    def of(cls, outcome: Outcome, spec: str) -> Record:
        """Return the record of an outcome; ``spec`` is the specification as the benchmark gives it."""
        cell = outcome.cell
        wall_s = round(outcome.wall_s, 3)
        return cls(
            cell.entry, cell.name, spec, cell.seed, cell.inputs, outcome.metrics, outcome.digest, wall_s
        )

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON, NaN as null."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        mark = {"adopted": True} if self.adopted else {}
        return {
            "scheduler": self.name,
            "spec": self.scheduler,
            "seed": self.seed,
            "inputs": self.inputs,
            "metrics": metrics,
            "metrics_sha256": self.digest,
            "wall_s": self.wall_s,
            **mark,
        }

    @classmethod
    def from_json(cls, entry: str, data: Mapping[str, Any]) -> Record:
        """Return the record that JSON holds.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It holds none.
        """
        metrics = {
            str(name): math.nan if value is None else float(value) for name, value in data["metrics"].items()
        }
        return cls(
            entry,
            str(data["scheduler"]),
            str(data["spec"]),
            int(data["seed"]),
            str(data["inputs"]),
            metrics,
            str(data["metrics_sha256"]),
            float(data["wall_s"]),
            bool(data.get("adopted", False)),
        )


def record_lines(records: Iterable[Record]) -> str:
    """Return records as a JSON list, one a line: a change shows as the lines that changed."""
    lines = [json.dumps(record.to_json(), separators=(",", ":"), allow_nan=False) for record in records]
    return "[\n" + ",\n".join(lines) + "\n]"


class Store:
    """The records of a benchmark in a folder: ``SCENARIO.json``, and ``SCENARIO.json.partial`` while it runs.

    Each record is a line of the partial file, flushed to disk before anything else happens; :meth:`tidy`
    merges them into the scenario's file, which is replaced as a whole. A record has its place by scheduler
    and seed: a newer one takes it.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Raises:
            BenchmarkError: A file is damaged, or of another format.
        """
        self.folder = folder
        self._records: dict[str, dict[tuple[str, int], Record]] = {}
        self._about: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            self._read(path)
        for path in sorted(folder.glob("*.json.partial")):
            self._read_partial(path)

    def _read(self, path: Path) -> None:
        try:
            data = strict_json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {data['format']!r}, version {data['format_version']!r}")
            records = [Record.from_json(path.stem, each) for each in data["records"]]
            self._about[path.stem] = dict(data["about"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(
                f"{path}: holds no records of a benchmark ({error}): take it from version control again, "
                "or delete it and run the benchmark"
            ) from error
        self._records[path.stem] = {(record.name, record.seed): record for record in records}

    def _read_partial(self, path: Path) -> None:
        entry = path.name.removesuffix(".json.partial")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = Record.from_json(entry, json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the line that an interrupt cut off
            self._records.setdefault(entry, {})[record.name, record.seed] = record

    def records(self, entry: str) -> list[Record]:
        """Return the records of a scenario."""
        return list(self._records.get(entry, {}).values())

    def __iter__(self) -> Iterator[Record]:
        for entry in sorted(self._records):
            yield from self.records(entry)

    def find(self, cell: Cell) -> Record | None:
        """Return the record of a cell: of the very same inputs, with all metrics that it is to keep."""
        record = self._records.get(cell.entry, {}).get((cell.name, cell.seed))
        if record is None or record.inputs != cell.inputs or not set(cell.metrics) <= set(record.metrics):
            return None
        return record

    def stale(self, cell: Cell) -> Record | None:
        """Return the record of a cell that was made of other inputs by the same name."""
        record = self._records.get(cell.entry, {}).get((cell.name, cell.seed))
        return None if record is None or self.find(cell) is not None else record

    def state(self, cell: Cell) -> str:
        """Return ``done``, ``stale`` (there is a record of other inputs) or ``missing``."""
        if self.find(cell) is not None:
            return "done"
        return "missing" if self.stale(cell) is None else "stale"

    def add(self, record: Record) -> None:
        """Keep a record, on disk before this returns."""
        self._records.setdefault(record.entry, {})[record.name, record.seed] = record
        append_json_line(self._partial(record.entry), record.to_json())

    def drop(self, entry: str, wanted: set[tuple[str, int]]) -> int:
        """Forget the records of a scenario that are not wanted, by name and seed; return how many."""
        before = self._records.get(entry, {})
        self._records[entry] = {place: record for place, record in before.items() if place in wanted}
        return len(before) - len(self._records[entry])

    def tidy(self, abouts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the files of scenarios, records in the order of scheduler and seed.

        Args:
            abouts: What the file says of the scenario, by name; these are written.
        """
        for entry, about in abouts.items():
            places = sorted(self._records.get(entry, {}))
            head = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": {**about}}
            text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
            body = record_lines(self._records[entry][place] for place in places) if places else "[]"
            write_text(self.folder / f"{entry}.json", f'{text},\n "records": {body}\n}}\n')
            self._about[entry] = dict(about)
            self._partial(entry).unlink(missing_ok=True)

    def about(self, entry: str) -> dict[str, Any]:
        """Return what the file of a scenario says of it."""
        return self._about.get(entry, {})

    def _partial(self, entry: str) -> Path:
        return self.folder / f"{entry}.json.partial"
