"""What the scripts share that make a latency profile of a user's own measurements: facts, messages, files.

See docs/measuring.md.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_env.calibration.latency.fit import FitResult
from dsd_env.calibration.latency.importers import MeasuredPoint, MeasurementError, write_csv
from dsd_env.calibration.latency.noise import NoiseFit
from dsd_env.calibration.latency.own import Facts, own_profile
from dsd_env.calibration.latency.report import print_table
from dsd_env.calibration.latency.torch_runner import SHAPES
from dsd_env.files import write_text
from dsd_env.latency.profile import LatencyProfile, Power, ProfileError, Source, save_profile
from dsd_env.paths import config_dir


def _watts(text: str) -> tuple[float, float]:
    try:
        idle, busy = (float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: two numbers IDLE,BUSY in watts, such as 2,12") from None
    if not 0.0 <= idle <= busy <= 1e5:
        raise argparse.ArgumentTypeError(f"{text!r}: IDLE,BUSY in watts, 0 <= IDLE <= BUSY <= 100000")
    return idle, busy


def add_facts(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that describe the profile; return their group."""
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
        "--shape",
        choices=sorted(SHAPES),
        metavar="NAME",
        help=f"known model, which gives KV bytes and context limit: {', '.join(sorted(SHAPES))}",
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
        "--trust-units",
        action="store_true",
        help="do not ask whether times are in another unit; the profile and the table of cells say so",
    )
    parser.add_argument("--cells-only", action="store_true", help="write the cells; fit no profile")
    return facts


def facts_of(args: argparse.Namespace, known: dict[str, Any], role: str | None) -> Facts:
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


def _command(argv: Sequence[str]) -> str:
    """The command for the provenance; folders of this machine are no part of the recipe."""
    words = [w if w.startswith("-") or not Path(w).is_absolute() else Path(w).name for w in argv]
    return shlex.join(["python", *words])


def cells_file(args: argparse.Namespace) -> Path:
    """The table of cells that a profile rests on, in the folder that ``--out`` names."""
    out: Path = args.out or config_dir() / "latency"
    return out / "measured" / f"{args.name}.csv"


def save_cells(args: argparse.Namespace, points: Sequence[MeasuredPoint]) -> None:
    """Write that table."""
    write_text(cells_file(args), write_csv(points, trust_units=args.trust_units))


def guarded(program: str, args: argparse.Namespace, work: Callable[[], None], interrupted: str) -> int:
    """Do the work of a script; say what is wrong instead of raising; return the exit status.

    Args:
        program: Name of the script, before each message.
        args: The options; ``--name`` is looked at first.
        work: What to do.
        interrupted: What to say after Ctrl-C.
    """
    try:
        if not args.name:
            raise MeasurementError("--name NAME is required: the profile's name and that of its files")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
            raise MeasurementError(
                f"--name {args.name!r}: letters, digits, dots, dashes and underscores only"
            )
        work()
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"])) or e.title
        print(f"{program}: {field} = {first['input']!r:.60}: {first['msg']}", file=sys.stderr)
        return 1
    except (MeasurementError, ProfileError, RuntimeError, ValueError, OSError) as e:
        print(f"{program}: {e}", file=sys.stderr)
        return 1
    return 0


def save_own(
    args: argparse.Namespace,
    argv: Sequence[str],
    facts: Facts,
    points: Sequence[MeasuredPoint],
    origin: str,
    notes: Sequence[str],
    hint: str = "",
) -> tuple[LatencyProfile, FitResult, NoiseFit | None]:
    """Fit a profile to cells, and write it and the cells.

    Args:
        args: The options.
        argv: The command, for the provenance.
        facts: What no timing can tell.
        points: The cells.
        origin: Name of their source.
        notes: Sentences for the profile, before the user's own.
        hint: What to do if the cells do not suffice.

    Raises:
        MeasurementError: They do not.
    """
    date = args.date or datetime.date.today().isoformat()
    source = Source(name=origin, licence="own measurement", used_for="all coefficients")
    try:
        profile, fit, noise = own_profile(
            facts, points, source, _command(argv), date, [*notes, *args.note], trust_units=args.trust_units
        )
    except MeasurementError as e:
        raise MeasurementError(f"{e}{hint}") from e
    save_cells(args, points)
    return profile, fit, noise


def show_own(args: argparse.Namespace, profile: LatencyProfile) -> None:
    """Write a profile into its file, and print what it says."""
    path = save_profile(profile, (args.out or config_dir() / "latency") / f"{args.name}.yaml")
    print_table([profile])
    print(profile.describe())
    print(f"written: {path}, {cells_file(args)}")
