"""The animations of the gallery: what happens in a scenario within a second or two, as a GIF.

The time axis stands still and the present moves across it, so that a GIF is not much larger than the one
picture that it ends with: each of its images is that picture up to a time, and the empty ground behind that.
After a few rounds it stands still and shows all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.files import write_atomically
from dsd_env.scenario import Scenario
from dsd_env.sim.timeline.picture import AXES, BAND, HEIGHT_PX, WIDTH_PX, draw_picture, palette, rows_of
from dsd_env.sim.timeline.places import Places
from dsd_env.simulate import simulate

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES, FRAME_MS, REST_MS = 30, 120, 2000
"""Images of an animation, for how long it shows each, and for how long the last one."""
ROUNDS = 3
"""How often it is shown before it stands still."""
SIZE_PX = (WIDTH_PX * 3 // 4, HEIGHT_PX * 3 // 4)
MAX_BYTES = 150_000
FOLDER = "docs/figures/gallery"
SEED = 1
SPAN_S = (12.0, 13.5)
"""What is shown, simulated seconds, if :data:`SPANS_S` says nothing else."""
SPANS_S: Mapping[str, tuple[float, float]] = {
    "cost": (69.6, 71.1),  # the second target comes in
    "metro": (12.0, 12.8),
    "overload": (12.0, 12.8),
    "tiers": (12.0, 12.8),
    "fleet_600": (5.0, 5.6),
    "dsd_paper": (8.0, 9.5),
    "single_lan": (8.0, 9.5),
}
"""What is shown of a scenario: less where much happens. Variants are like their scenario."""


def span_of(name: str) -> tuple[float, float]:
    """Return what is shown of a scenario: from when to when, in simulated seconds."""
    return SPANS_S.get(name) or SPANS_S.get(name.rsplit("_", 1)[0], SPAN_S)


_WHITE, _BAND, _NOW = (255, 255, 255), tuple(bytes.fromhex(BAND[1:])), (0x33, 0x33, 0x33)


def animate(
    scenario: Scenario, scheduler: str, seed: int, from_s: float, to_s: float, engine: str = "auto"
) -> list[NDArray[np.uint8]]:
    """Simulate an episode up to a time, and return the images of its last moments.

    Args:
        scenario: The scenario.
        scheduler: Name of the scheduler.
        seed: Episode seed.
        from_s: Where the time axis begins, simulated seconds.
        to_s: Where it ends.
        engine: As of :func:`dsd_env.simulate`.

    Returns:
        Images, uint8, shape (800, 1280, 3) each.

    Raises:
        ValueError: The episode is over before ``to_s``.
        ModuleNotFoundError: matplotlib is missing.
    """
    result = simulate(scenario, scheduler, seed, timeline=True, until_s=to_s, engine=engine)
    assert result.timeline is not None
    if result.metrics["duration_s"] < to_s:
        raise ValueError(f"{scenario.name}: the episode is over before {to_s:g} s")
    title = f"{scenario.name}: {scheduler}, seed {seed}"
    places, slices, window_s = Places(scenario), result.timeline.reading.slices, to_s - from_s
    whole = draw_picture(places, slices, to_s, title, window_s=window_s)
    return revealed(whole, len(rows_of(places, slices, to_s, window_s=window_s)), FRAMES)


def revealed(whole: NDArray[np.uint8], rows: int, frames: int) -> list[NDArray[np.uint8]]:
    """Return images in which a picture comes to be from left to right; the last one is the picture.

    Args:
        whole: A picture by ``draw_picture`` whose present is the end of its axis, shape (height, width, 3).
        rows: How many rows it has.
        frames: How many images.
    """
    height, width, _ = whole.shape
    left, right = round(AXES[0] * width), round((AXES[0] + AXES[2]) * width) + 2
    top, bottom = round((1.0 - AXES[1] - AXES[3]) * height), round((1.0 - AXES[1]) * height)
    ground = _ground(bottom - top, rows)
    images = []
    for at in np.linspace(left, right, frames + 1)[1:-1].astype(int):
        image = whole.copy()
        image[top:bottom, at:right] = ground[:, None]
        image[top:bottom, at : at + 2] = _NOW
        images.append(image)
    return [*images, whole]


def _ground(height: int, rows: int) -> NDArray[np.uint8]:
    """Return the colour behind each line of pixels: bands of equal height, grey and white in turn."""
    place = (np.arange(height) + 0.5) / height
    return np.where(((place * rows).astype(int) % 2 == 0)[:, None], _BAND, _WHITE).astype(np.uint8)


def write(path: Path, pictures: list[NDArray[np.uint8]]) -> int:
    """Write images as a GIF; return its size in bytes.

    Args:
        path: The file.
        pictures: uint8, shape (800, 1280, 3) each.
    """
    from PIL import Image

    def shrunk(picture: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(picture).resize(SIZE_PX, Image.Resampling.LANCZOS)

    colours = Image.new("P", (1, 1))
    colours.putpalette([part for colour in palette() for part in colour])
    first, *others = [
        shrunk(picture).quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures
    ]
    times_ms = [FRAME_MS] * len(others) + [REST_MS]

    def save(temporary: Path) -> None:
        # `loop` counts the repetitions.
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=times_ms, loop=ROUNDS - 1
        )

    write_atomically(path, save)
    return path.stat().st_size
