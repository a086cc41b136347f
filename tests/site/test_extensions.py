"""What the documentation site makes by itself: the gallery, docstrings in Markdown, the keys of scenarios."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

import numpy as np
import pytest

from docs._ext import animations, gallery, markdown_docstrings, scenario_fields, units
from dsd_env.cli import main as cli
from dsd_env.scenario import list_scenarios, load_scenario
from dsd_env.scenario.schema import Actions, Link
from dsd_env.schedulers import make_scheduler
from dsd_env.sim.timeline.picture import draw_picture, rows_of
from dsd_env.sim.timeline.places import Places
from tests.conftest import ROOT

PAGE = """
**lan**: could serve 1 token/s

| scheduler | mean request time (s) | load |
|---|---|---|
| `a:1` (best for all) | 1.50 | 0.1 |
| `b` | 1.25 ± 0.02 | 0.2 |
| `per class` | 1.20 ± 0.02 | 0.2 |

Prose.

| what | else |
|---|---|
| `c` | 1 |

## Others

| scenario | scheduler | mean request time (s) | load |
|---|---|---|---|
| wan | `a:1` | 11.0 | 0.1 |
| wan | `b` | 9.5 | 0.1 |
| far | `b` | 7.0 | 0.1 |
"""


def test_scores_are_read_by_scenario_and_ranked() -> None:
    found = gallery.scores(PAGE)
    assert set(found) == {"lan", "wan", "far"}
    assert {name: table.best for name, table in found.items()} == {"lan": "b", "wan": "b", "far": "b"}
    assert found["lan"].ranked().rows == [
        ["`per class`", "1.20 ± 0.02", "0.2"],
        ["`b`", "1.25 ± 0.02", "0.2"],
        ["`a:1` (best for all)", "1.50", "0.1"],
    ]
    assert found["wan"].head == ["scheduler", "mean request time (s)", "load"]


def test_the_scores_of_the_page_are_of_scenarios_and_schedulers_that_exist() -> None:
    found = gallery.scores((ROOT / gallery.SCORES).read_text(encoding="utf-8"))
    assert {"metro", "single_lan", "mobile", "wan"} <= set(found) <= set(list_scenarios())
    for name, table in found.items():
        cli.parser().parse_args(["simulate", name, "--scheduler", table.best])
        assert len(table.rows) >= 3


def test_every_scenario_has_a_page_with_its_card_and_commands_that_are_understood() -> None:
    pages = gallery.pages(ROOT)
    assert set(pages) == {"index", *list_scenarios()}
    for name in list_scenarios():
        card = load_scenario(name).card
        plain = re.sub(r"[`\s]", "", pages[name])
        for text in (card.models, card.regime, card.utilisation, card.limits):
            assert re.sub(r"[`\s]", "", text) in plain
        assert f":link: {name}\n" in pages["index"]
        lines = re.findall(r"^dsd-env (.*)$", pages[name], re.MULTILINE)
        assert len(lines) == 3
        for line in lines:
            cli.parser().parse_args(line.split())
        given = cli.parser().parse_args(lines[1].split())
        assert given.cycles == 1, "as the card was measured"
        make_scheduler(given.scheduler).reset(load_scenario(name), 0)


def test_pages_name_the_best_of_the_benchmark_and_every_bundle() -> None:
    page = (ROOT / gallery.BENCHMARK).read_text(encoding="utf-8")
    board = gallery.held_out(page)
    pages = gallery.pages(ROOT)
    for name in set(board) & set(list_scenarios()):
        assert f"\n### {name}\n" in page and f"benchmark.md#{name})" in pages[name]
        assert f"best static choice {board[name].static}" in pages[name]
        assert f"best known: `{board[name].best}`" in pages["index"]
    folders = {file.parts[-3] for file in (ROOT / gallery.BUNDLES).glob("*/policy/manifest.json")}
    # One is of a scenario of its own, which is no shipped one.
    linked = {folder for folder in folders if any(f"/{folder}/README.md" in text for text in pages.values())}
    assert folders - linked == {"vllm_tinyllama"}


def test_a_scoreboard_of_other_columns_is_refused() -> None:
    page = "| scenario | compared by | fastest |\n|---|---|---|\n| `metro` | time | `x` 1 |\n"
    with pytest.raises(ValueError, match="fastest"):
        gallery.held_out(page)


def test_every_scenario_has_its_animation_which_is_small_and_comes_to_rest() -> None:
    image = pytest.importorskip("PIL.Image")
    folder = ROOT / animations.FOLDER
    assert {file.stem for file in folder.glob("*")} == set(list_scenarios()), (
        "scripts/draw_gallery.py draws them"
    )
    pages = gallery.pages(ROOT)
    for name in list_scenarios():
        file = folder / f"{name}.gif"
        assert f"{{figure}} ../figures/gallery/{name}.gif" in pages[name] and ":alt: " in pages[name]
        assert file.stat().st_size <= animations.MAX_BYTES, name
        with image.open(file) as found:
            assert found.size == animations.SIZE_PX and found.n_frames > animations.FRAMES // 2, name
            assert found.info["loop"] == animations.ROUNDS - 1


def test_an_animation_is_its_last_picture_up_to_a_time(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    images = animations.animate(
        load_scenario("single_lan"), "static:4:1:own", 1, 8.0, 9.5, engine="reference"
    )
    last = images[-1]
    assert len(images) == animations.FRAMES and {one.shape for one in images} == {last.shape}
    colours = {
        name: np.array(colour) for name, colour in (("draft", (0, 0x72, 0xB2)), ("band", (0xF4, 0xF5, 0xF7)))
    }
    height, width, _ = last.shape
    left, right = round(animations.AXES[0] * width), round(sum(animations.AXES[::2]) * width)
    drafts = [int((one[:, left:right] == colours["draft"]).all(axis=2).sum()) for one in images]
    assert drafts == sorted(drafts) and drafts[0] < drafts[-1]
    # Behind the present there is nothing but bands: the first row's is grey, the last one's is white.
    ahead = images[0][:, right - 20 : right - 5]
    top, bottom = round(0.125 * height) + 5, round(0.925 * height) - 5
    assert (ahead[top] == colours["band"]).all() and (ahead[bottom] == 255).all()
    assert {tuple(one) for one in ahead[top:bottom].reshape(-1, 3).tolist()} == {
        (244, 245, 247),
        (255, 255, 255),
    }
    size = animations.write(tmp_path / "x.gif", images)
    with image.open(tmp_path / "x.gif") as found:
        assert size == (tmp_path / "x.gif").stat().st_size and found.n_frames > 20


@pytest.mark.parametrize("rows", [1, 2, 17, 40])
def test_the_ground_of_an_animation_is_that_of_the_picture(rows: int) -> None:
    """Where nothing is drawn, what comes after the present is what the whole picture shows there."""
    pytest.importorskip("matplotlib")
    scenario = load_scenario("single_lan", targets__target__count=rows)
    places = Places(scenario)
    assert len(rows_of(places, [], 1.0)) == rows
    whole = draw_picture(places, [], 1.0, "nothing", window_s=1.0)
    first = animations.revealed(whole, rows, 10)[0]
    width = whole.shape[1]
    left, right = round(animations.AXES[0] * width), round(sum(animations.AXES[::2]) * width)
    apart = (first[:, left:right] != whole[:, left:right]).any(axis=2)
    # Lines of the grid and of the present apart, and the pixels where one row meets the next.
    assert (apart.mean(axis=1) > 0.05).sum() <= 2 * rows + 3
    wrong = (animations.revealed(whole, rows + 1, 10)[0] != whole).any(axis=2)[:, left:right]
    assert (wrong.mean(axis=1) > 0.05).sum() > 2 * rows + 100


def test_numbers_stay_with_their_units_in_tables() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert units.unbroken("+1.8 % (+1.3 … +2.3)") == f"+1.8{space}% (+1.3{space}…{space}+2.3)"
    assert units.unbroken("+24.3 ± 0.1 %") == f"+24.3{space}±{space}0.1{space}%"
    assert units.unbroken("chat 100 %, batch 9 %") == f"chat{space}100{space}%, batch{space}9{space}%"
    assert units.unbroken("> 1.1") == f">{space}1.1"
    assert units.unbroken("mean request time, s") == f"mean request time,{space}s"
    assert units.unbroken("goodput, so to say; 5 pages") == "goodput, so to say; 5 pages"


def test_links_of_the_gallery_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", "".join(gallery.pages(ROOT).values()))
    assert len(links) > 20
    folder = ROOT / gallery.FOLDER
    assert not [link for link in links if not (folder / link).resolve().is_file()]


@pytest.mark.parametrize("name", list_scenarios())
def test_a_picture_names_every_class_and_keeps_within_its_frame(name: str) -> None:
    scenario = load_scenario(name)
    picture = ElementTree.fromstring(gallery.picture(scenario))
    heads = [text.text or "" for text in picture.iter("text") if text.get("class") == "head"]
    classes = {**scenario.targets, **scenario.edge_servers, **scenario.devices}
    assert len(heads) == len(classes)
    assert [head.split(" × ")[0] for head in heads] == [str(one.count) for one in classes.values()]
    assert all(one in picture.get("aria-label", "") for one in classes)
    _, _, width, height = map(float, picture.get("viewBox", "").split())
    for box in picture.iter("rect"):
        x, y, w, h = (float(box.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert x >= 0.0 and y >= 0.0 and x + w <= width and y + h <= height
        inside = [
            t
            for t in picture.iter("text")
            if x < float(t.get("x", 0)) < x + w and y < float(t.get("y", 0)) < y + h
        ]
        assert len(inside) >= 2, "a box without its lines"
    assert len(list(picture.iter("path"))) == len(classes) - len(scenario.targets)


def test_clients_without_an_edge_server_are_wired_to_the_target() -> None:
    picture = gallery.picture(load_scenario("mobile"))
    wires = [tuple(map(float, wire)) for wire in re.findall(r"M(\S+) (\S+) L(\S+) (\S+)\"", picture)]
    lengths = sorted(low_y - high_y for _, low_y, _, high_y in wires)
    assert len(wires) == 5 and lengths[:-1] == [lengths[0]] * 4 and lengths[-1] > 2 * lengths[0], (
        "only the cabins"
    )


def test_hostile_names_are_escaped() -> None:
    scenario = load_scenario("single_lan")
    hostile = scenario.model_copy(update={"devices": {"<b>&": scenario.devices["workstation"]}})
    assert "<b>" not in gallery.picture(hostile) and "&lt;b&gt;&amp;" in gallery.picture(hostile)


def test_markdown_in_docstrings_becomes_restructured_text() -> None:
    lines = """One line.

## Part

See [a page](https://example.org/x) and `code`.

| a | b |
|---|---|
| 1 | x \\| y |

```python
>>> f()
```
End.""".splitlines()
    assert [line for line in markdown_docstrings.translated(lines) if line] == [
        "One line.",
        ".. rubric:: Part",
        "See `a page <https://example.org/x>`__ and `code`.",
        ".. list-table::",
        "   :header-rows: 1",
        "   * - a",
        "     - b",
        "   * - 1",
        "     - x | y",
        ".. code-block:: python",
        "   >>> f()",
        "End.",
    ]


def test_keys_are_listed_with_what_they_take() -> None:
    text = "\n".join(scenario_fields.table(Link))
    for name in Link.model_fields:
        assert f"``{name}``" in text
    assert "≥ 0, ≤ 0.5" in text and "must be given" in text
    assert "``[1, 2, 4, 8, 16, 32, 64, 128]``" in "\n".join(scenario_fields.table(Actions))
    assert scenario_fields.shown(Annotated[int, "x"] | None) == "int or nothing"
    assert scenario_fields.shown(Literal["a", "b"]) == "``a`` or ``b``"
    assert scenario_fields.shown(dict[str, tuple[float, ...]]) == "dict of str, list of float"
