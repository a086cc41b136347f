#!/usr/bin/env python3
"""Import acceptance of your own as a trace set, and say how a scenario uses it.

    python scripts/import_traces.py mine.jsonl --out recordings
    python scripts/import_traces.py mine.jsonl --out recordings --name my-pair --workload

FILE is the plain format (JSON lines, a request each), with `run_length` or `accept_prob` at every output
position; docs/acceptance_models.md describes it. The trace set is two files, NAME.npz and NAME.json, which
are replaced if they are there. With --workload the requests are written as NAME.csv, too, for a replay in
which each has its own acceptance; every line needs `arrival_s` then.

What serving engines log (vLLM, SGLang, AIPerf), and the plain format with `rounds`, are rounds that took
place: they make no trace set, but a fitted model (scripts/fit_rounds.py).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import yaml

from dsd_env.acceptance import TraceError, TraceSet
from dsd_env.calibration.acceptance.importers import import_plain, plain_requests
from dsd_env.calibration.acceptance.rounds import format_of
from dsd_env.workload import RequestTrace, save_trace


def read(path: Path, name: str, out: Path) -> TraceSet:
    """Return the trace set of a file.

    Raises:
        TraceError: It is none, or has faults; of rounds the message says what to do with them.
    """
    try:
        return import_plain(path, name)
    except TraceError as error:
        try:
            found = format_of(path)
        except TraceError:
            raise error from None
        command = ["python", "scripts/fit_rounds.py", str(path), "--save", str(out / f"{name}.json")]
        raise TraceError(
            f"{path}: holds rounds that took place ({found}), which say nothing of rounds that begin "
            f"elsewhere, so that no trace set can be made of it; a fitted model can: {shlex.join(command)}"
        ) from error


def told(trace: TraceSet, files: Sequence[Path], workload: Path | None) -> Iterator[str]:
    """Yield lines that say what was written, and how a scenario uses it."""
    yield (
        f"wrote {' and '.join(map(str, files))}: {len(trace.kind)} requests ({', '.join(trace.kinds)}), "
        f"{trace.total_tokens} output positions"
    )
    if trace.gamma_max is None and any(values.run_length is not None for values in trace.drafters.values()):
        yield "note: the card states no gamma_max, so that the longest runs count as whole ones"
    if workload is not None:
        yield f"wrote {workload}: when the requests came, how long they were, and which recorded one each is"
    yield "\nin a scenario, with its own name of the draft model before the colon:\n"
    scenario: dict[str, Any] = {
        "acceptance": {
            drafter: {"source": "trace", "trace": str(files[0]), "drafter": drafter}
            for drafter in trace.drafters
        }
    }
    if workload is not None:
        scenario["workload"] = {"arrivals": {"kind": "replay", "trace": str(workload)}}
        scenario["episode"] = {"warmup_requests": 0, "requests": len(trace.kind)}
    yield yaml.safe_dump(scenario, sort_keys=False, default_flow_style=None, width=1000).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="recorded acceptance in the plain format")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the trace set")
    parser.add_argument("--name", help="name of the trace set (default: the file's)")
    parser.add_argument("--workload", action="store_true", help="write the requests, too, for a replay")
    options = parser.parse_args(argv)
    try:
        trace = read(options.file, options.name or options.file.stem, options.out)
        requests: RequestTrace | None = plain_requests(options.file) if options.workload else None
        options.out.mkdir(parents=True, exist_ok=True)
        files = trace.save(options.out)
        workload = None if requests is None else save_trace(requests, options.out / f"{trace.name}.csv")
    except (TraceError, OSError) as error:
        print(f"import_traces: {error}", file=sys.stderr)
        return 1
    for line in told(trace, files, workload):
        print(line)
    return 0


if __name__ == "__main__":
    _cli.run(main)
