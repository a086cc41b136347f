"""``picture``: what is drawn is what an environment draws of the same moment, and animations move."""

from __future__ import annotations

import numpy as np
import pytest

import dsd_env

ARGUMENTS = ("picture", "single_lan", "--scheduler", "edge_sd:4", "--engine", "reference", "--requests", "5")


@pytest.fixture
def image():
    """Return Pillow's images; matplotlib brings it."""
    pytest.importorskip("matplotlib")
    from PIL import Image

    return Image


def test_a_picture_is_that_of_the_timeline(dsd_env_command, tmp_path, image):
    out = tmp_path / "one.png"
    said = dsd_env_command(*ARGUMENTS, "--at-s", 6, "--out", out)
    assert said.status == 0 and said.out.startswith(f"wrote {out}: 1 picture, ")
    timeline = dsd_env.simulate(
        "single_lan", "edge_sd:4", 0, requests=5, engine="reference", timeline=True
    ).timeline
    assert timeline is not None
    (expected,) = timeline.pictures([6.0])
    with image.open(out) as found:
        assert np.array_equal(np.asarray(found), expected)
    # Drafts, verification and messages are in it: their colours.
    colours = {tuple(colour) for colour in expected.reshape(-1, 3).tolist()}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0x56, 0xB4, 0xE9)} <= colours


def test_an_animation_moves(dsd_env_command, tmp_path, image):
    out = tmp_path / "some.gif"
    options = ("--at-s", 5, "--to-s", 6, "--frames", 3, "--width", 640, "--out", out, "--json")
    said = dsd_env_command(*ARGUMENTS, *options).json
    assert said == {"file": str(out), "bytes": out.stat().st_size, "frames": 3, "engine": "reference"}
    with image.open(out) as found:
        assert found.size == (640, 400) and found.n_frames == 3 and found.info["loop"] == 0
        frames = []
        for number in range(3):
            found.seek(number)
            frames.append(np.asarray(found.convert("RGB")))
    assert len({frame.tobytes() for frame in frames}) == 3
    # The legend's colours are all there, also those that no bar has.
    colours = {tuple(colour) for colour in frames[0].reshape(-1, 3).tolist()}
    assert {(0xCC, 0x79, 0xA7), (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)} <= colours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "x.jpg"), "must end in .png"),
        (("--to-s", "20", "--out", "x.png"), "let --out end in .gif"),
        (("--at-s", "6", "--to-s", "5", "--out", "x.gif"), "must not be before"),
        (("--at-s", "1e6", "--out", "x.png"), "the episode is over at"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(dsd_env_command, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    said = dsd_env_command(*ARGUMENTS, *options)
    assert said.status == 1 and message in said.err and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
