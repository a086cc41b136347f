"""The gallery of the documentation site: a page for each shipped scenario, made when the site is built.

A page shows a picture of the scenario, its card, the scores that ``docs/scenarios.md`` has of it, and how to
run it. Nothing here is measured: picture and card are the scenario's own file, and the scores are read
from the page that the scripts named there have written.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from docs._ext import animations
from dsd_env.cli.scenarios import title_of
from dsd_env.scenario import Scenario, list_scenarios, load_scenario
from dsd_env.schedulers import scheduler_names

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "docs/gallery"
SCORES = "docs/scenarios.md"
BENCHMARK = "docs/benchmark.md"
BUNDLES = "configs/policies"
MEAN = "mean request time (s)"
"""The column that schedulers are ranked by."""

PER_CLASS = "per class"
"""A row of several choices, one for each class, which is no scheduler's name."""

MORE: Mapping[str, Sequence[tuple[str, str]]] = {
    "metro": (
        ("Who should draft, by load", "../scenarios.md#who-should-draft-on-metro-by-load"),
        ("What a trained policy gains", "../../README.md#two-commands"),
    ),
    "tiers": (("Whose drafts: scores in goodput", "../scenarios.md#whose-drafts-tiers"),),
    "heavy_draft": (("The claims of DSD", "../scenarios.md#the-claims-of-dsd"),),
    "dsd_paper": (("The claims of DSD", "../scenarios.md#the-claims-of-dsd"),),
    "dsd_paper_stream": (("The claims of DSD", "../scenarios.md#the-claims-of-dsd"),),
    "stream_node": (("Streams against the best of the node", "../protocols.md"),),
    "stream_node_branches": (("Branches against streams", "../protocols.md"),),
    "metro_branches": (("Branches against streams", "../protocols.md"),),
    "reasoning": (
        ("Long answers: who should draft", "../scenarios.md#long-answers-reasoning"),
        ("Streams against the best of the node", "../protocols.md"),
    ),
    "cost": (("Paid by the second: scores in dollars", "../scenarios.md#paid-by-the-second-cost"),),
    "sure_drafters": (
        ("Rules that stop within a draft", "../schedulers.md#stopping-within-a-draft"),
        ("The recording", "../acceptance.md"),
    ),
    "drafter_menu": (("Where the drafters' acceptance comes from", "../acceptance_models.md"),),
    "no_room": (("Where the drafters' acceptance comes from", "../acceptance_models.md"),),
    "replay": (("What the arrivals were fitted to", "../workload.md"),),
    "replay_servegen": (("What the arrivals were fitted to", "../workload.md"),),
    "regions": (
        ("Scores by route", "../scenarios.md#targets-at-different-distances-regions"),
        ("What a distance does", "../simulator.md#links"),
    ),
    "experts": (
        ("Choices by load", "../scenarios.md#a-mixture-of-experts-experts"),
        ("What more tokens cost", "../calibration.md#mixtures-of-experts"),
    ),
    "single_lan": (("Where the first numbers come from", "../quickstart.md"),),
    "mobile": (("What the links were fitted to", "../network.md"),),
    "mobile_stream": (("What the links were fitted to", "../network.md"),),
}
"""Where else a scenario is measured: by its name, titles and links."""

OF_THE_CARD: Mapping[str, str] = {
    "reasoning": "static:8:1:own",
    "slow_cloud": "static:8:1:own",
    "sure_drafters": "specdec_pp:0.8:own",
    "drafter_menu": "static_map:workstation=8/1/own+laptop=2/1/colocated:eagle3",
    "no_room": "colocated_sd:6",
    "cost": "pack:32:4:1:colocated",
    "regions": "adaptive:4:colocated:least_time",
    "replay": "colocated_sd:4",
    "replay_servegen": "colocated_sd:4",
}
"""The best scheduler of a scenario's card, where no table of scores has the scenario."""
OTHERWISE = "jsq_goodput"
"""The scheduler of a page where neither table nor card names one."""


ORDER = (
    "single_lan",
    "metro",
    "wan",
    "overload",
    "tiers",
    "heavy_draft",
    "stream_node",
    "reasoning",
    "slow_cloud",
    "sure_drafters",
    "experts",
    "drafter_menu",
    "no_room",
    "cost",
    "regions",
    "replay",
    "replay_servegen",
    "mobile",
    "flaky",
    "dsd_paper",
    "fleet_24",
    "fleet_600",
)
"""Scenarios in the order in which they are shown; a new one comes behind them."""


class Scores(NamedTuple):
    """A table of scores: its head, and a row for each scheduler."""

    head: list[str]
    rows: list[list[str]]

    def ranked(self) -> Scores:
        """Return the same table without its column of scenarios, the best scheduler first."""
        at = self.head.index(MEAN)
        return Scores(self.head, sorted(self.rows, key=lambda row: float(row[at].split()[0])))

    @property
    def best(self) -> str:
        """The scheduler with the least mean request time, as the command line writes it."""
        at = self.head.index("scheduler")
        names = [row[at].split("`")[1] for row in self.ranked().rows]
        return next(name for name in names if name != PER_CLASS)


class HeldOut(NamedTuple):
    """What the benchmark's scoreboard says of a scenario, as it stands there.

    Attributes:
        by: What is compared.
        static: The best static choice and its score; `rule` and `learned` likewise, "–" where there is none.
        best: The best of all.
    """

    by: str
    static: str
    rule: str
    learned: str
    best: str


def held_out(page: str) -> dict[str, HeldOut]:
    """Return the scoreboard of the benchmark by scenario.

    Args:
        page: Text of ``docs/benchmark.md``.
    """
    head, rows = next(
        (head, rows) for _, head, rows in _tables(page) if head[:2] == ["scenario", "compared by"]
    )
    if head[2:5] != ["best static", "best rule", "best learned"]:
        raise ValueError(
            f"{BENCHMARK}: the scoreboard has the columns {head}, which the gallery does not know"
        )
    return {
        row[0].strip("`"): HeldOut(row[1], row[2], row[3], row[4], best=row[-1].split("`")[1]) for row in rows
    }


def bundles(root: Path) -> dict[str, list[str]]:
    """Return the shipped bundles' folders by scenario; one trained on several scenarios stands with each."""
    found: dict[str, list[str]] = {}
    for manifest in sorted((root / BUNDLES).glob("*/policy/manifest.json")):
        trained_on = json.loads(manifest.read_text(encoding="utf-8"))["scenario"]["name"]
        for name in trained_on.rpartition(": ")[2].split(", "):
            found.setdefault(name, []).append(manifest.parts[-3])
    return found


def scores(page: str) -> dict[str, Scores]:
    """Return the scores of each scenario that a page has a table of.

    A table belongs to the scenario of the bold line before it, or names one in its first column.

    Args:
        page: Text of ``docs/scenarios.md``.
    """
    found: dict[str, Scores] = {}
    for caption, head, rows in _tables(page):
        if MEAN not in head or "scheduler" not in head:
            continue
        if head[0] == "scenario":
            for row in rows:
                found.setdefault(row[0], Scores(head[1:], [])).rows.append(row[1:])
        elif caption:
            found[caption] = Scores(head, rows)
    return found


def _tables(page: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield caption, head and rows of each table; the caption is the bold line before it, if there is one."""
    caption, lines = "", []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if len(lines) > 2:
            yield caption, lines[0], lines[2:]
            caption = ""
        lines = []
        if bold := re.fullmatch(r"\*\*(\w+)\*\*(?:: .*)?", line):
            caption = bold[1]
        elif line.startswith("#"):
            caption = ""


def pages(root: Path) -> dict[str, str]:
    """Return the gallery's pages by name: ``index``, and one for each scenario.

    Args:
        root: The checkout.
    """
    known = scores((root / SCORES).read_text(encoding="utf-8"))
    board = held_out((root / BENCHMARK).read_text(encoding="utf-8"))
    trained = bundles(root)
    names = sorted(list_scenarios(), key=_place)
    made = {
        name: _page(load_scenario(name), known.get(name), board.get(name), trained.get(name, ()))
        for name in names
    }
    return {"index": _index(names, known, board), **made}


def _place(name: str) -> tuple[int, str]:
    """Return where a scenario stands in the gallery: variants behind what they are a variant of."""
    of = [at for at, base in enumerate(ORDER) if name == base or name.startswith(f"{base}_")]
    return (max(of) if of else len(ORDER), name)


def _page(scenario: Scenario, known: Scores | None, board: HeldOut | None, trained: Sequence[str]) -> str:
    """Return the page of one scenario, as Markdown."""
    card = scenario.card
    rule = scheduler_of(scenario.name, known)
    parts = [
        f"# {scenario.name}",
        title_of(scenario.name),
        picture(scenario),
        _animation(scenario.name, rule),
        "## Card",
        f"**Situation.** {_prose(card.models)}",
    ]
    parts.append(f"**Regime.** {_prose(card.regime)}")
    parts.append(f"**Measured.** {_prose(card.utilisation)}")
    if card.limits:
        parts.append(f"**Limits.** {_prose(card.limits)}")
    parts.append(_facts(scenario))
    parts.append("## Best known scores")
    if board is not None:
        learned = "none trained" if board.learned == "–" else board.learned
        parts.append(
            f"On held-out episodes, by {board.by} ([benchmark](../benchmark.md#{scenario.name}), "
            f"which has every scheduler): best static choice {board.static}, best rule {board.rule}, best "
            f"learned policy {learned}."
        )
    if trained:
        links = ", ".join(f"[{name}](../../{BUNDLES}/{name}/README.md)" for name in trained)
        parts.append(f"Trained bundles, each with its model card: {links}.")
    if known is not None:
        parts.append(
            "By mean request time, the best first, from "
            f"[what the scenarios teach](../{Path(SCORES).name}), which names the command and the episodes."
        )
        parts.append(_markdown(known.ranked()))
    elif board is None:
        of_the_card = OF_THE_CARD.get(scenario.name)
        best = f": the best there is `{of_the_card}`" if of_the_card else ""
        parts.append(
            f"No table ranks schedulers on this scenario; what was measured stands in the card above{best}."
        )
    if more := MORE.get(scenario.name):
        parts.append("More: " + ", ".join(f"[{text}]({link})" for text, link in more) + ".")
    parts.append("## Run it")
    parts.append(
        "With `--cycles 1` the steady state is measured, as it was for the card, with any scheduler and seed."
    )
    to_s = animations.span_of(scenario.name)[1]
    parts.append(
        f"```sh\ndsd-env show {scenario.name}\n"
        f"dsd-env simulate {scenario.name} --cycles 1 --scheduler {rule} --seed 1\n"
        f"dsd-env picture {scenario.name} --scheduler {rule} --at-s {to_s:g} --out {scenario.name}.png\n```"
    )
    parts.append(
        "```python\nimport dsd_env\nimport gymnasium\n\n"
        f'env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="{scenario.name}")\n```'
    )
    parts.append(
        "To score a scheduler of yours beside these: [quick start](../quickstart.md#compare-schedulers)."
    )
    return "\n\n".join(parts) + "\n"


def scheduler_of(name: str, known: Scores | None) -> str:
    """Return the scheduler that a scenario's page runs and shows: the best of its table, or of its card."""
    return known.best if known is not None else OF_THE_CARD.get(name, OTHERWISE)


def _animation(name: str, rule: str) -> str:
    """Return the animation of a scenario, with words for those who cannot see it."""
    from_s, to_s = animations.span_of(name)
    of = f"seconds {from_s:g} to {to_s:g} of an episode (seed {animations.SEED})"
    return (
        f"```{{figure}} ../{Path(animations.FOLDER).relative_to('docs')}/{name}.gif\n"
        f":alt: Timeline of targets, edge servers and the busiest devices of {name} under {rule}: {of}\n"
        f":width: 100%\n:figclass: animation\n\n`{rule}`, {of}. "
        "Rows are targets, edge servers and the busiest devices: what they work at, a device's messages "
        "above its drafts, those to it below. It comes to a rest by itself.\n```"
    )


def _prose(text: str) -> str:
    """Return a card's text as Markdown that shows it as it is: calls, rules and names with _ are code."""
    plain = " ".join(text.split())
    rule = rf"(?:{'|'.join(scheduler_names())}):[\w.:/=+-]*\w"
    call = r"simulate\(.*?seed(?:=\d+)?\)"
    return re.sub(rf"(?<![\w`/.-])({call}|{rule}|[\w./-]*\w_\w[\w.:/-]*\w)(?![\w`(])", r"`\1`", plain)


def _facts(scenario: Scenario) -> str:
    rows = [
        ["clients", str(scenario.n_devices)],
        ["edge servers", str(scenario.n_edge_servers)],
        ["targets", str(scenario.n_targets)],
        ["protocol", scenario.protocol.kind],
        ["arrivals", scenario.workload.arrivals.kind],
        ["speculation lengths on offer", " ".join(map(str, scenario.actions.gammas))],
        ["placements on offer", str(scenario.n_placements)],
        ["faults", ", ".join(scenario.faults) or "none"],
    ]
    return _markdown(Scores(["what", "value"], rows))


def _markdown(table: Scores) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _index(names: Sequence[str], known: Mapping[str, Scores], board: Mapping[str, HeldOut]) -> str:
    """Return the gallery's first page: a card for each scenario."""
    cards = []
    for name in names:
        scenario = load_scenario(name)
        best = ""
        if name in board or name in known or name in OF_THE_CARD:
            rule = board[name].best if name in board else scheduler_of(name, known.get(name))
            best = f"\n```{{card-footer}}\nbest known: `{rule}`\n```\n"
        cards.append(
            f":::{{grid-item-card}} {name}\n:link: {name}\n:link-type: doc\n\n"
            f"{picture(scenario)}\n\n{title_of(name)}\n\n"
            f"{_count(scenario.n_devices, 'client')}, {_count(scenario.n_edge_servers, 'edge server')}, "
            f"{_count(scenario.n_targets, 'target')}, {scenario.protocol.kind}\n{best}:::"
        )
    toc = "\n".join(names)
    return (
        "# Scenarios\n\nEvery shipped scenario with its picture, its card, the best scores that we know, "
        "and how to run it. `dsd-env list` prints this list, `dsd-env show NAME` a card.\n\n"
        "::::{grid} 1 2 2 3\n:gutter: 2\n\n"
        + "\n\n".join(cards)
        + f"\n\n::::\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    )


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' * (number != 1)}"


_WIDTH, _BOX, _HIGH, _PER_ROW = 448, 104, 74, 4
_GAP, _BETWEEN, _MARGIN = 8, 34, 8


def picture(scenario: Scenario) -> str:
    """Return a drawing of who may draft and verify where, as inline SVG.

    Targets stand above, edge servers in the middle, classes of devices below. It takes the page's colours, so
    that it can be read in light and dark, and says in words what it shows to those who cannot see it.
    """
    placed, y = [], _MARGIN
    for boxes in _levels(scenario):
        for at in range(0, len(boxes), _PER_ROW):
            row = boxes[at : at + _PER_ROW]
            left = (_WIDTH - len(row) * _BOX - (len(row) - 1) * _GAP) / 2
            placed += [_Placed(box, left + i * (_BOX + _GAP), y) for i, box in enumerate(row)]
            y += _HIGH + _BETWEEN
    wires = "".join(_wire(one, placed) for one in placed if one.box.above)
    said = "; ".join(f"{box.title}: {', '.join(box.lines)}" for box, _, _ in placed)
    title = html.escape(f"Topology of {scenario.name}")
    return (
        f'<svg class="topology" viewBox="0 0 {_WIDTH} {y - _BETWEEN + _MARGIN}" role="img" '
        f'aria-label="{title}: {html.escape(said)}"><title>{title}</title>'
        f'<g class="wires">{wires}</g>{"".join(map(_draw, placed))}</svg>'
    )


class _Box(NamedTuple):
    """What is drawn for a class: its head, lines below it, its kind, and the kind that it is wired to."""

    title: str
    lines: list[str]
    kind: str
    above: str = ""


class _Placed(NamedTuple):
    box: _Box
    x: float
    y: int


def _levels(scenario: Scenario) -> Iterator[list[_Box]]:
    """Yield the boxes from the targets down to the devices."""
    yield [
        _Box(f"{one.count} × {name}", [*_gpus(one.gpus), _menu(one)], "target")
        for name, one in scenario.targets.items()
    ]
    yield [
        _Box(f"{one.count} × {name}", [_menu(one), _rtt(scenario, one.backhaul, "target")], "edge", "target")
        for name, one in scenario.edge_servers.items()
    ]
    boxes = []
    for name, one in scenario.devices.items():
        lines = [_menu(one), _rtt(scenario, one.link, "target")]
        edge_link = one.edge_link if scenario.edge_servers else None
        if edge_link is not None:
            lines.append(_rtt(scenario, edge_link, "edge"))
        boxes.append(_Box(f"{one.count} × {name}", lines, "device", "edge" if edge_link else "target"))
    yield boxes


def _wire(low: _Placed, placed: Sequence[_Placed]) -> str:
    """Return the line from a box to the nearest of those that it is wired to."""
    high = min(
        (one for one in placed if one.box.kind == low.box.above), key=lambda one: (abs(one.x - low.x), -one.y)
    )
    return f'<path d="M{low.x + _BOX / 2:g} {low.y} L{high.x + _BOX / 2:g} {high.y + _HIGH}"/>'


def _draw(placed: _Placed) -> str:
    box, x, y = placed
    lines = [_short(line) for line in (box.title, *box.lines)]
    text = "".join(_line(line, x + _BOX / 2, y + 18 + 15 * at, at == 0) for at, line in enumerate(lines))
    return f'<rect class="{box.kind}" x="{x:g}" y="{y}" width="{_BOX}" height="{_HIGH}" rx="6"/>{text}'


def _line(text: str, x: float, y: float, is_head: bool) -> str:
    style = ' class="head"' if is_head else ""
    return f'<text x="{x:g}" y="{y:g}"{style}>{html.escape(text)}</text>'


def _short(text: str, most: int = 17) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _gpus(gpus: float) -> list[str]:
    return [f"{_count(gpus, 'GPU')} each"] if gpus else []


def _menu(site: Any) -> str:
    """Return what drafts at a site."""
    models = [drafter.model for drafter in site.menu]
    if not models:
        return "no drafter"
    return models[0] if len(models) == 1 else f"{models[0]} +{len(models) - 1}"


def _rtt(scenario: Scenario, link: str, to: str) -> str:
    return f"{2e3 * scenario.links[link].one_way_s:.3g} ms to {to}"


def write(root: Path) -> None:
    """Write the gallery's pages below ``docs/gallery``; what has not changed keeps its time."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    made = pages(root)
    for name, text in made.items():
        page = folder / f"{name}.md"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in folder.glob("*.md"):
        if page.stem not in made:
            page.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir)))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
