"""Command line of ``calibrate.py`` for a user's own hardware: options, and what they run.

See docs/measuring.md. The work is done in :mod:`dsd_env.calibration.latency.importers`, ``measure`` and
``own``; here are options, files and messages.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_env.calibration.latency.importers import (
    LLAMA_BENCH_COMMAND,
    Imported,
    MeasurementError,
    check_plausible,
    import_csv,
    import_llama_bench,
    import_vllm,
    write_csv,
)
from dsd_env.calibration.latency.measure import (
    SHAPES,
    GridSpec,
    Measurement,
    StopRule,
    TorchRunner,
    build_model,
    environment,
    grid_cells,
    measure,
    model_info,
    processor_name,
)
from dsd_env.calibration.latency.own import Facts, own_profile
from dsd_env.files import write_text
from dsd_env.latency.profile import LatencyProfile, Power, ProfileError, Source, save_profile
from dsd_env.locks import hold
from dsd_env.paths import config_dir


def add_sources(group: Any) -> None:
    """Add the four ways to name measurements to the group of which one option is required."""
    group.add_argument(
        "--measure",
        metavar="MODEL",
        help="time a transformers model: a built-in shape "
        f"({', '.join(SHAPES)}) or a config.json with random weights; or a checkpoint "
        "directory, "
        "GGUF file or hub id",
    )
    group.add_argument(
        "--from-llama-bench", nargs="+", metavar="FILE", help="output of `llama-bench -o json|jsonl|csv`"
    )
    group.add_argument(
        "--from-vllm",
        nargs="+",
        metavar="FILE[@B,I,O]",
        help="output of `vllm bench latency` (batch, input and output length from the name or after @), "
        "and of "
        "`vllm bench serve --save-detailed`",
    )
    group.add_argument("--from-csv", metavar="FILE", help="table batch,q,context,seconds")


def _int_list(text: str) -> tuple[int, ...]:
    """``1,2,8-10`` -> (1, 2, 8, 9, 10)."""
    out: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        try:
            first, last = int(low), int(high) if dash else int(low)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r} is neither a number nor a range such as 1-17"
            ) from None
        if not 0 <= first <= last <= 2**20:
            raise argparse.ArgumentTypeError(f"{part!r}: out of range")
        out += range(first, last + 1)
    return tuple(dict.fromkeys(out))


def _positive_list(text: str) -> tuple[int, ...]:
    values = _int_list(text)
    if min(values) < 1:
        raise argparse.ArgumentTypeError("numbers must be >= 1")
    return values


def _watts(text: str) -> tuple[float, float]:
    try:
        idle, busy = (float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: two numbers IDLE,BUSY in watts, such as 2,12") from None
    if not 0.0 <= idle <= busy <= 1e5:
        raise argparse.ArgumentTypeError(f"{text!r}: IDLE,BUSY in watts, 0 <= IDLE <= BUSY <= 100000")
    return idle, busy


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the profile, and those of measuring."""
    facts = parser.add_argument_group("own hardware: facts that no timing can tell")
    facts.add_argument("--name", help="name of the profile; also that of its files")
    facts.add_argument("--role", choices=("target", "drafter"))
    facts.add_argument("--model", help="model name")
    facts.add_argument("--device-name", help="device name; default: as the system or the file says")
    facts.add_argument("--precision", help="number format of the weights, such as bf16 or Q4_K_M")
    facts.add_argument(
        "--parallelism", type=int, default=1, help="devices used together (default: %(default)s)"
    )
    facts.add_argument(
        "--shape", choices=sorted(SHAPES), help="known model: gives KV bytes and context limit"
    )
    facts.add_argument("--weight-bytes", type=int, help="bytes of weights over all devices")
    facts.add_argument("--kv-bytes-per-token", type=int, help="bytes of KV cache of one token")
    facts.add_argument("--context-limit", type=int, help="longest context in tokens")
    facts.add_argument("--memory-gib", type=float, help="memory of all devices; gives the room for KV")
    facts.add_argument("--power", type=_watts, metavar="IDLE,BUSY", help="watts of all devices together")
    facts.add_argument("--power-note", help="where the two numbers come from")
    facts.add_argument("--power-measured", action="store_true", help="they are a meter's, not a data sheet's")
    facts.add_argument(
        "--note", action="append", default=[], help="sentence for the profile (may be repeated)"
    )
    facts.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="llama-bench: use these rows only (true, 1 and on are the same; * lets the field differ)",
    )
    facts.add_argument(
        "--max-batched-tokens",
        type=int,
        default=8192,
        help="vLLM's max_num_batched_tokens (default: %(default)s)",
    )
    facts.add_argument(
        "--trust-units",
        action="store_true",
        help="do not ask whether times are in another unit; the profile and the table of cells say so",
    )
    grid, rule = GridSpec(), StopRule()

    def shown(values: Sequence[int]) -> str:
        return ",".join(map(str, values))

    m = parser.add_argument_group("own hardware: measuring")
    m.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: %(default)s)")
    m.add_argument("--dtype", help="default: float32 on cpu, else bfloat16")
    m.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    m.add_argument(
        "--attention",
        default="packed",
        help="packed: SDPA without copies of KV heads; or one of transformers' names (default: %(default)s)",
    )
    m.add_argument("--no-cuda-graph", action="store_true", help="launch kernels one by one")
    m.add_argument(
        "--batches", type=_positive_list, default=grid.batches, help=f"default: {shown(grid.batches)}"
    )
    m.add_argument(
        "--queries",
        type=_positive_list,
        default=grid.queries,
        help=f"new tokens; default: {shown(grid.queries)}",
    )
    m.add_argument(
        "--contexts", type=_int_list, default=grid.contexts, help=f"default: {shown(grid.contexts)}"
    )
    m.add_argument(
        "--chunks", type=_positive_list, default=grid.chunks, help=f"prefill; default: {shown(grid.chunks)}"
    )
    m.add_argument(
        "--prefixes", type=_int_list, default=grid.prefixes, help=f"default: {shown(grid.prefixes)}"
    )
    m.add_argument("--kv-limit-tokens", type=int, help="leave out cells with more tokens of KV than this")
    m.add_argument(
        "--warmup", type=int, default=rule.warmup, help="untimed iterations a visit (default: %(default)s)"
    )
    m.add_argument("--min-repeats", type=int, default=rule.min_repeats, help="default: %(default)s")
    m.add_argument("--max-repeats", type=int, default=rule.max_repeats, help="default: %(default)s")
    m.add_argument(
        "--per-visit", type=int, default=rule.per_visit, help="repeats a visit (default: %(default)s)"
    )
    m.add_argument(
        "--half-width-pct",
        type=float,
        default=100.0 * rule.half_width,
        help="a cell is done when its median is known this well (default: %(default)s)",
    )
    m.add_argument(
        "--budget-s", type=float, help="begin no visit after this many seconds; run again to go on"
    )
    m.add_argument("--cells-only", action="store_true", help="measure; fit no profile")


def wanted(args: argparse.Namespace) -> bool:
    """Whether one of the four ways was chosen."""
    return bool(args.measure or args.from_llama_bench or args.from_vllm or args.from_csv)


def _facts(args: argparse.Namespace, known: dict[str, Any], role: str | None) -> Facts:
    """Facts from options, else from what the files or the model state; names all that are missing at once."""
    if args.shape:
        shape = SHAPES[args.shape][1]
        known.setdefault("model", shape.name)
        known.setdefault("kv_bytes_per_token", shape.kv_bytes_per_token())
        known.setdefault("context_limit_tokens", shape.context_limit_tokens)
    found = {
        "--role": args.role or role,
        "--model": args.model or known.get("model"),
        "--device-name": args.device_name or known.get("device"),
        "--precision": args.precision or known.get("precision"),
        "--weight-bytes": args.weight_bytes or known.get("weight_bytes"),
        "--kv-bytes-per-token": args.kv_bytes_per_token or known.get("kv_bytes_per_token"),
        "--power": args.power,
        "--power-note": args.power_note,
    }
    missing = [flag for flag, value in found.items() if not value]
    if missing:
        hints = {
            "--kv-bytes-per-token": "--kv-bytes-per-token BYTES (or --shape NAME): "
            "2 * layers * KV heads * head dimension * bytes a value",
            "--power": "--power IDLE,BUSY: watts; a meter's or the data sheet's",
            "--power-note": "--power-note TEXT: where these come from",
        }
        lines = "\n  ".join(hints.get(flag, flag) for flag in missing)
        raise MeasurementError(f"a profile needs facts that cannot be derived here; give\n  {lines}")
    return Facts(
        name=args.name,
        role=found["--role"],
        model=found["--model"],
        device=found["--device-name"],
        precision=found["--precision"],
        weight_bytes=found["--weight-bytes"],
        kv_bytes_per_token=found["--kv-bytes-per-token"],
        power=Power(
            idle_w=args.power[0],
            busy_w=args.power[1],
            label="measured" if args.power_measured else "spec",
            note=args.power_note,
        ),
        parallelism=args.parallelism,
        context_limit_tokens=args.context_limit or known.get("context_limit_tokens"),
        memory_bytes=None if args.memory_gib is None else round(args.memory_gib * 1024**3),
    )


def _read(args: argparse.Namespace) -> tuple[Imported, str, str | None]:
    """What the files hold, the name of their source, and the role that it implies."""
    if args.from_csv:
        imported = import_csv(Path(args.from_csv), trust_units=args.trust_units)
        return imported, "measured cells of the user (CSV)", None
    if args.from_vllm:
        imported = import_vllm(args.from_vllm, args.max_batched_tokens, trust_units=args.trust_units)
        return imported, "vLLM benchmark", "target"
    select = dict(s.split("=", 1) for s in args.select if "=" in s)
    if len(select) != len(args.select):
        raise MeasurementError("--select: expected FIELD=VALUE, each field once")
    return import_llama_bench([Path(f) for f in args.from_llama_bench], select), "llama-bench", "drafter"


def _measure(args: argparse.Namespace, path: Path) -> Measurement:
    """Measure with a progress bar; what is there so far is in ``path`` at any time."""
    rule = StopRule(
        args.min_repeats,
        args.max_repeats,
        args.half_width_pct / 100.0,
        args.budget_s,
        args.per_visit,
        args.warmup,
    )
    try:
        import torch
    except ImportError as e:
        raise MeasurementError(
            f"measuring needs torch and transformers ({e}): pip install 'dsd-env[record]'"
        ) from e
    if args.threads:
        torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    graph = on_gpu and not args.no_cuda_graph
    print(f"calibrate: building {args.measure} ({dtype}) on {args.device}", file=sys.stderr, flush=True)
    name, weights, model = build_model(args.measure, args.device, dtype, args.attention)
    info = model_info(name, weights, model, args.device, dtype, args.attention, graph)
    grid = GridSpec(
        args.batches, args.queries, args.contexts, args.chunks, args.prefixes, args.kv_limit_tokens
    )
    cells = grid_cells(grid, info.context_limit_tokens)
    if not cells:
        raise MeasurementError("the grid holds no cell within the model's context and --kv-limit-tokens")
    from tqdm import tqdm

    with tqdm(total=len(cells), unit="cell", disable=None) as bar:

        def report(cell: str, done: int, total: int) -> None:
            bar.n = done
            bar.set_postfix_str(cell)

        runner = TorchRunner(model, args.device, graph)
        with hold(path.with_name(f"{path.name}.lock"), path):
            return measure(runner, info, cells, path, rule, environment(args.device), report)


def _command(argv: Sequence[str]) -> str:
    """The command for the provenance; folders of this machine are no part of the recipe."""
    words = [w if w.startswith("-") or not Path(w).is_absolute() else Path(w).name for w in argv]
    return shlex.join(["python", *words])


def _portable(note: str, args: argparse.Namespace) -> str:
    """A note with files by their names: folders of this machine are nobody's business."""
    files = [*(args.from_llama_bench or ()), *(args.from_vllm or ()), *filter(None, [args.from_csv])]
    for file in sorted((f.split("@")[0] for f in files), key=len, reverse=True):
        note = note.replace(file, Path(file).name)
    return note


def _coverage(m: Measurement, min_repeats: int) -> list[str]:
    """Lines on cells that were skipped or not reached, for the user and the profile's notes."""
    skipped = [c for c in m.cells if c.skipped]
    lines = [f"skipped: {c}: {c.skipped}" for c in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"skipped: {len(skipped) - 10} more cells that do not fit")
    few = sum(not c.skipped and len(c.samples_s) < min_repeats for c in m.cells)
    if few:
        lines.append(f"left out: {few} of {len(m.cells)} cells, not reached yet")
    return lines


def run(
    args: argparse.Namespace, argv: Sequence[str], print_table: Callable[[list[LatencyProfile]], None]
) -> int:
    """Import or measure, fit, and write profile and cells; returns the exit status."""
    out = args.out or config_dir() / "latency"
    try:
        if not args.name:
            raise MeasurementError("--name NAME is required: the profile's name and that of its files")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
            raise MeasurementError(
                f"--name {args.name!r}: letters, digits, dots, dashes and underscores only"
            )
        return _run(args, argv, print_table, out)
    except KeyboardInterrupt:
        print(
            "calibrate: interrupted; cells measured so far are kept, the same command goes on",
            file=sys.stderr,
        )
        return 130
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"])) or e.title
        print(f"calibrate: {field} = {first['input']!r:.60}: {first['msg']}", file=sys.stderr)
        return 1
    except (MeasurementError, ProfileError, RuntimeError, ValueError, OSError) as e:
        print(f"calibrate: {e}", file=sys.stderr)
        return 1


def _run(
    args: argparse.Namespace,
    argv: Sequence[str],
    print_table: Callable[[list[LatencyProfile]], None],
    out: Path,
) -> int:
    date = args.date or datetime.date.today().isoformat()
    measured = out / "measured" / args.name
    if args.measure:
        if not args.cells_only:
            # Asked before the hours of measuring, not after: what the model will tell is filled in for now.
            stand_in = {
                "model": "?",
                "device": "?",
                "precision": "?",
                "weight_bytes": 1,
                "kv_bytes_per_token": 1,
            }
            _facts(args, stand_in, None)
        m = _measure(args, measured.with_name(f"{measured.name}.json"))
        points = m.points(args.min_repeats)
        lines = _coverage(m, args.min_repeats)
        known: dict[str, Any] = {
            "model": m.info.model,
            "device": m.environment.get("gpu") or m.environment.get("processor") or processor_name(),
            "precision": {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}.get(
                m.info.dtype, m.info.dtype
            ),
            "weight_bytes": m.info.weight_bytes,
            "kv_bytes_per_token": m.info.kv_bytes_per_token,
            "context_limit_tokens": m.info.context_limit_tokens,
        }
        threads = f", {m.info.threads} threads" if m.info.threads else ""
        software = f"torch {m.environment.get('torch')}, transformers {m.environment.get('transformers')}"
        origin, role = f"own measurement ({software})", None
        notes = [
            f"whole iterations of transformers with {m.info.weights} weights, {m.info.attention} attention"
            f"{', CUDA graph' if m.info.cuda_graph else ''}{threads}; medians of at least "
            f"{args.min_repeats} repeats; "
            "a serving engine's scheduler and paged cache are not part of it",
            *lines,
        ]
        if not points:
            raise MeasurementError(
                f"no cell has {args.min_repeats} repeats yet: raise --budget-s, or run the same command again"
            )
    else:
        imported, origin, role = _read(args)
        points, known = list(imported.points), dict(imported.facts)
        notes, lines = list(imported.notes), []
        if software := known.pop("software", None):
            origin = f"{origin} ({software})"
    table = measured.with_name(f"{measured.name}.csv")
    if args.measure or args.cells_only:
        write_text(table, write_csv(points, trust_units=args.trust_units))
    print("\n".join([f"{len(points)} cells", *lines]), file=sys.stderr)
    if args.cells_only:
        print("\n".join(notes), file=sys.stderr)
        return 0
    facts = _facts(args, known, role)
    if not args.measure:
        per_device = float(facts.weight_bytes) / facts.parallelism
        notes += check_plausible(points, per_device, trust_units=args.trust_units)
    source = Source(name=origin, licence="own measurement", used_for="all coefficients")
    try:
        profile, fit, noise = own_profile(
            facts,
            points,
            source,
            _command(argv),
            date,
            [*(_portable(note, args) for note in notes), *args.note],
            trust_units=args.trust_units,
        )
    except MeasurementError as e:
        hint = f"; for example `{LLAMA_BENCH_COMMAND}`" if args.from_llama_bench else ""
        hint += "; run the same command again to measure the rest" if lines else ""
        raise MeasurementError(f"{e}{hint}") from e
    write_text(table, write_csv(points, trust_units=args.trust_units))
    if args.measure:
        summary = {
            "noise": None if noise is None else dataclasses.asdict(noise),
            "error": profile.error.model_dump(),
            "heldout_error_pct": {
                c.key: round(100.0 * float(e), 2) for c, e in zip(fit.heldout, fit.errors(), strict=True)
            },
        }
        write_text(measured.with_name(f"{measured.name}.fit.json"), json.dumps(summary, indent=1) + "\n")
    path = save_profile(profile, out / f"{args.name}.yaml")
    print_table([profile])
    print(profile.describe())
    print(f"written: {path}, {table}")
    return 0
