"""``dsd-env picture``: a moment of an episode as an image, or some seconds of it as an animation."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_env.cli.arguments import (
    Commands,
    add_json,
    add_scenario,
    add_simulation,
    at_least_one,
    between,
    command,
    scenario_of,
)
from dsd_env.cli.output import check_folder, print_json
from dsd_env.cli.timeline import recorded
from dsd_env.files import write_atomically
from dsd_env.sim.timeline.picture import HEIGHT_PX, WIDTH_PX, WINDOW_S, palette

_EXAMPLES = """
dsd-env picture metro --scheduler static:16:1:edge --at-s 12 --out metro.png
dsd-env picture single_lan --scheduler edge_sd:4 --to-s 12 --out lan.gif"""

_NOTES = """
Rows are targets, edge servers and the busiest devices. A device's messages are
above its drafts, those to it below. Needs matplotlib (pip install
"dsd-env[plot]"). `dsd-env timeline` writes the same for a timeline viewer."""

_FRAME_S = 0.1
"""Time for which an animation shows each picture."""


def add(commands: Commands) -> None:
    """Add the command."""
    does = "Draw a moment of an episode, or some seconds as an animation."
    parser = command(commands, "picture", does, _EXAMPLES, run, notes=_NOTES)
    add_scenario(parser)
    add_simulation(parser)
    time_s = between(0.0, math.inf)
    parser.add_argument(
        "--at-s", type=time_s, default=10.0, metavar="S", help="the moment, in simulated seconds (default 10)"
    )
    parser.add_argument(
        "--to-s", type=time_s, metavar="S", help="of an animation: its last moment (default: 2 s later)"
    )
    parser.add_argument(
        "--frames", type=at_least_one, default=40, metavar="N", help="pictures of an animation (default 40)"
    )
    parser.add_argument(
        "--window-s",
        type=between(0.01, 1000.0),
        default=WINDOW_S,
        metavar="S",
        help="simulated time that a picture shows (default %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=int,
        choices=(WIDTH_PX, WIDTH_PX * 3 // 4, WIDTH_PX // 2),
        default=WIDTH_PX,
        help="pixels (default %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="NAME.png, or NAME.gif for an animation"
    )
    add_json(parser, "print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, draw, say what was written."""
    out: Path = arguments.out
    kind = out.suffix.lower()
    if kind not in (".png", ".gif"):
        raise ValueError(f"--out {out}: the name must end in .png, or in .gif for an animation")
    if kind == ".png" and arguments.to_s is not None:
        raise ValueError("--to-s: only an animation has a last moment; let --out end in .gif")
    check_folder(out)
    if importlib.util.find_spec("matplotlib") is None:  # said before minutes of simulation, not after
        raise ModuleNotFoundError('matplotlib is not installed; run `pip install "dsd-env[plot]"`')
    to_s = arguments.at_s if kind == ".png" else arguments.to_s
    to_s = arguments.at_s + 2.0 if to_s is None else to_s
    if to_s < arguments.at_s:
        raise ValueError(f"--to-s {to_s:g} must not be before --at-s {arguments.at_s:g}")
    result, timeline = recorded(arguments, scenario_of(arguments), to_s)
    if result.metrics["duration_s"] < to_s:
        end_s = result.metrics["duration_s"]
        raise ValueError(f"the episode is over at {end_s:.2f} s, before the last moment, {to_s:g} s")
    frames = arguments.frames if kind == ".gif" else 1
    times_s = np.linspace(arguments.at_s, to_s, frames).tolist()
    write_pictures(out, timeline.pictures(times_s, arguments.window_s), arguments.width)
    size_bytes = out.stat().st_size
    if arguments.json:
        print_json({"file": str(out), "bytes": size_bytes, "frames": frames, "engine": result.engine})
    else:
        print(f"wrote {out}: {frames} picture{'s' * (frames > 1)}, {1e-3 * size_bytes:,.0f} kB")
    return 0


def write_pictures(path: Path, pictures: Iterable[NDArray[np.uint8]], width: int = WIDTH_PX) -> None:
    """Write a picture, or several as an animation that begins anew for ever.

    Args:
        path: Its name ends in ``.png`` or ``.gif``.
        pictures: uint8, shape (800, 1280, 3) each.
        width: Pixels.

    Raises:
        ModuleNotFoundError: Pillow is missing, which matplotlib brings.
    """
    from PIL import Image

    size = (width, width * HEIGHT_PX // WIDTH_PX)
    images = [Image.fromarray(picture) for picture in pictures]
    if width != WIDTH_PX:
        images = [image.resize(size, Image.Resampling.LANCZOS) for image in images]
    if path.suffix.lower() == ".png":
        write_atomically(path, lambda temporary: images[0].save(temporary, format="PNG", optimize=True))
        return
    # One palette for all, and none that is made of the pictures: rare colours would be lost, others change.
    colours = Image.new("P", (1, 1))
    colours.putpalette([part for colour in palette() for part in colour])
    first, *others = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in images]

    def write(temporary: Path) -> None:
        milliseconds = round(1e3 * _FRAME_S)
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0
        )

    write_atomically(path, write)
