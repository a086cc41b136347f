#!/usr/bin/env python3
"""Show what a serving engine reports of speculative decoding, and fit a model of acceptance to it.

    python scripts/fit_rounds.py server.log                           # vLLM's log
    python scripts/fit_rounds.py after.txt --before before.txt        # two /metrics pages of vLLM
    python scripts/fit_rounds.py responses.jsonl                      # responses of vLLM or SGLang
    python scripts/fit_rounds.py profile_export.jsonl                 # records of AIPerf
    python scripts/fit_rounds.py responses.jsonl --save models/my-pair.json --target "my target"

Which of vLLM's log, /metrics, `vllm bench serve` result and responses, SGLang's responses, AIPerf's records,
or the plain format with `rounds` it is, is seen in the file (`--format` says it instead). Records without
rounds are left out, and their number is shown. A saved model serves a scenario as `{source: fitted, model:
models/my-pair.json, drafter: NAME}`. See docs/acceptance_models.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np

from dsd_env.acceptance import TraceError
from dsd_env.calibration.acceptance.rounds import (
    FORMATS,
    RoundCounts,
    format_of,
    model_from_rounds,
    read_aiperf,
    read_plain_rounds,
    read_sglang,
    read_vllm_bench,
    read_vllm_log,
    read_vllm_metrics,
    read_vllm_responses,
)


def read(path: Path, options: argparse.Namespace) -> dict[str, dict[str, RoundCounts]]:
    """Return kind -> drafter -> counts.

    Raises:
        TraceError: The file cannot be read, or says too little.
    """
    name = options.format or format_of(path)
    if options.before is not None and name != "vllm-metrics":
        raise TraceError(f"{path}: --before is for /metrics pages, this is {name}")
    if name == "plain":
        return read_plain_rounds(path)
    readers: dict[str, Callable[[Path], RoundCounts]] = {
        "vllm-log": read_vllm_log,
        "vllm-metrics": lambda p: read_vllm_metrics(p, options.before),
        "vllm-bench": read_vllm_bench,
        "vllm-responses": read_vllm_responses,
        "sglang": lambda p: read_sglang(p, options.drafts_per_round),
        "aiperf": read_aiperf,
    }
    return {options.kind: {options.drafter: readers[name](path)}}


def figures(kind: str, drafter: str, counts: RoundCounts) -> dict[str, Any]:
    """Return what is shown of counts, as plain numbers."""
    return {
        "origin": counts.origin,
        "kind": kind,
        "drafter": drafter,
        "requests": len(counts.tried) if counts.per_request else None,
        "rounds": round(float(counts.tried[:, 0].sum())),
        "tokens_per_round": counts.tokens_per_round,
        "acceptance_by_place": [None if np.isnan(a) else float(a) for a in counts.acceptance],
        "tried_by_place": counts.tried.sum(axis=0).tolist(),
        "left_out": counts.left_out,
        "notes": list(counts.notes),
    }


def show(item: Mapping[str, Any]) -> None:
    """Print one drafter's figures."""
    requests = "all requests together" if item["requests"] is None else f"{item['requests']} requests"
    print(f"{item['origin']} ({item['kind']}, {item['drafter']}): {item['rounds']} rounds, {requests}")
    print(f"  tokens per round: {item['tokens_per_round']:.3f}")
    places = ", ".join("-" if a is None else f"{a:.3f}" for a in item["acceptance_by_place"])
    print(f"  acceptance by place, given the places before: {places}")
    print(f"  records left out: {item['left_out']}")
    for note in item["notes"]:
        print(f"  note: {note}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="what the engine wrote")
    parser.add_argument("--format", choices=FORMATS, help="what the file is; default: seen in it")
    parser.add_argument("--before", type=Path, metavar="FILE", help="an earlier /metrics page, subtracted")
    parser.add_argument("--drafts-per-round", type=int, metavar="N", help="SGLang's --speculative-num-steps")
    parser.add_argument("--kind", default="all", help="name of the kind of request (%(default)s)")
    parser.add_argument("--drafter", default="draft", help="name of the drafter (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--save", type=Path, metavar="NAME.json", help="write a fitted model there")
    parser.add_argument("--target", default="not stated", help="the target model, for the saved model's card")
    parser.add_argument("--licence", default="not stated", help="of the data, for the saved model's card")
    options = parser.parse_args(argv)
    if options.drafts_per_round is not None and not 1 <= options.drafts_per_round <= 255:
        parser.error("--drafts-per-round must be in 1..255")
    if options.save is not None and options.save.suffix != ".json":
        parser.error("--save must be a file named NAME.json")
    try:
        counts = read(options.file, options)
        shown = [figures(k, d, c) for k, group in counts.items() for d, c in group.items()]
        if options.save is not None:
            model = model_from_rounds(
                options.save.stem,
                counts,
                target=options.target,
                date=datetime.date.today().isoformat(),
                data=options.file.name,
                licence=options.licence,
                command="scripts/fit_rounds.py",
            )
            options.save.parent.mkdir(parents=True, exist_ok=True)
            model.save(options.save.parent)
    except (TraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(shown, indent=2, allow_nan=False))
    else:
        for item in shown:
            show(item)
    return 0


if __name__ == "__main__":
    _cli.run(main)
