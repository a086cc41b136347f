"""The page: one HTML file with its data, its style and its program inside, which may load nothing else.

Text from results enters it in two ways only: escaped as HTML, or as JSON in which no character can end the
element that it stands in. The page's policy lets no other script or style run than the two it was written
with, by their digests, and lets nothing be fetched or sent.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import dsd_env
from dsd_env.files import write_text
from dsd_env.paired import FEW_SEEDS
from dsd_env.provenance import now_utc
from dsd_env.report.content import SCOREBOARD, content
from dsd_env.report.reading import Source, read_results
from dsd_env.report.words import better, metric_words

MAX_TITLE = 200
ROUNDING = 1e-9
"""Relative differences below this are those of the order in which equal numbers were added."""
_SCRIPTS = ("draw.js", "figures.js", "page.js")


def write_report(results: Iterable[str | Path], out: str | Path, title: str | None = None) -> int:
    """Write a report of results; return its size in bytes.

    Args:
        results: JSON files of evaluations and searches, and folders of training runs.
        out: The HTML file.
        title: Its title; None: one made of the results.

    Raises:
        ReportError: A result cannot be read, or there is none.
        OSError: The file cannot be written.
    """
    text = report_html([read_results(path) for path in results], title)
    write_text(Path(out), text)
    return len(text.encode("utf-8"))


def report_html(sources: Sequence[Source], title: str | None = None) -> str:
    """Return a report as HTML.

    Args:
        sources: The results.
        title: Its title; None: one made of the results.

    Raises:
        ReportError: There are no results.
    """
    data = content(sources)
    title = " ".join((title or _title(data)).split())[:MAX_TITLE]
    style, script = _asset("style.css"), "".join(_asset(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=html.escape(policy),
        title=html.escape(title),
        style=style,
        script=script,
        data=_json(data),
        made=html.escape(f"dsd_env {dsd_env.__version__} on {now_utc()[:16].replace('T', ', ')} UTC"),
        overview=_overview(data),
        scoreboards="\n".join(
            _scoreboard(number, evaluation) for number, evaluation in enumerate(data["evaluations"])
        ),
        capacity_hidden="" if data["capacities"] else "hidden",
        capacities="\n".join(_capacity(capacity) for capacity in data["capacities"]),
        provenance="\n".join(_source(source) for source in data["sources"]),
    )


def _asset(name: str) -> str:
    return (resources.files("dsd_env.report") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return how a policy names the content of an element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(data: Any) -> str:
    r"""Return JSON that can stand in HTML: ``<``, ``>`` and ``&`` are written as ``\u003c`` and the like."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # not ASCII is escaped, too
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _title(data: dict[str, Any]) -> str:
    labels = [
        one["label"] for one in [*data["evaluations"], *data["searches"], *data["capacities"], *data["runs"]]
    ]
    labels = list(dict.fromkeys(labels))  # a scenario may have an evaluation and a search
    shown = ", ".join(labels[:3]) + (" and more" if len(labels) > 3 else "")
    return f"Results: {shown}"


def _overview(data: dict[str, Any]) -> str:
    """Return what was run, a line for each result."""
    items = []
    for one in data["evaluations"]:
        names = f"{len(one['schedulers'])} scheduler{'s' * (len(one['schedulers']) > 1)}"
        text = f"<b>{html.escape(one['label'])}</b>: {names}; {html.escape(one['measured'])}."
        if 1 < len(one["seeds"]) < FEW_SEEDS:
            few = f"Intervals of {len(one['seeds'])} seeds are too narrow; take {FEW_SEEDS} or more."
            text += f" <em>{few}</em>"
        elif len(one["seeds"]) == 1:
            text += " <em>A single episode has no intervals.</em>"
        items.append(text)
    for one in data["searches"]:
        items.append(
            f"<b>{html.escape(one['label'])}</b>: search for the best static choice, held against "
            f"{len(one['table'])} schedulers."
        )
    for one in data["capacities"]:
        n, episodes = len(one["schedulers"]), one["seeds"]
        items.append(
            f"<b>{html.escape(one['label'])}</b>: search for the most load at which {100 * one['share']:g} % "
            f"of the requests meet their SLO; {n} scheduler{'s' * (n > 1)}, {episodes} "
            f"episode{'s' * (episodes > 1)} for each load, {one['window_s']:g} s after {one['warmup_s']:g} s "
            "of warm-up."
        )
    for one in data["runs"]:
        items.append(
            f"<b>{html.escape(one['label'])}</b>: training run, {max(one['steps']):,} decisions, "
            f"validated {len(one['steps'])} times."
        )
    return "\n".join(f"<li>{item}</li>" for item in items)


def _scoreboard(number: int, evaluation: dict[str, Any]) -> str:
    """Return the table of means and differences, which is there without JavaScript, too."""
    metrics = [name for name in SCOREBOARD if name in evaluation["metrics"]]
    heads = "".join(
        f'<th scope="col" title="{html.escape(name)}">{html.escape(metric_words(name))}'
        f"<br><small>{ {1: 'more is better', -1: 'less is better', 0: ''}[better(name)] }</small></th>"
        for name in metrics
    )
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(entry["name"])}</th>'
        + "".join(_cell(entry, name) for name in metrics)
        + "</tr>"
        for entry in evaluation["schedulers"]
    )
    label, baseline = html.escape(evaluation["label"]), html.escape(evaluation["baseline"])
    return (
        f'<div class="scoreboard" data-evaluation="{number}"><h3>{label}</h3>'
        f'<p class="lead">Means over the episodes; below, the difference from <b>{baseline}</b> with its '
        "95 % interval, paired by episode. ▲ better, ▼ worse: the interval excludes zero.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Scoreboard of {label}"><table>'
        f'<thead><tr><th scope="col">scheduler</th>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>{_specifications(evaluation)}</div>"
    )


def _specifications(evaluation: dict[str, Any]) -> str:
    """Return what the schedulers are that have names of their own."""
    own = [
        f"<b>{html.escape(entry['name'])}</b> = {html.escape(entry['specification'])}"
        for entry in evaluation["schedulers"]
        if entry["specification"] != entry["name"]
    ]
    return f'<p class="lead specifications">{"<br>".join(own)}</p>' if own else ""


def _cell(entry: dict[str, Any], metric: str) -> str:
    """Return mean and difference of one metric."""
    value = entry["metrics"].get(metric)
    if value is None:
        return "<td>–</td>"
    mean = f'<span data-value="{value["mean"]!r}">{number(value["mean"])}</span>'
    change = entry["versus"].get(metric)
    if change is None:
        return f"<td>{mean}</td>"
    verdict = verdict_of(change, metric)
    mark = {"better": "▲ ", "worse": "▼ "}.get(verdict, "")
    low, high = change["ci95"]
    interval = "" if low is None or high is None else f"<br>{percent(low)} to {percent(high)}"
    difference = f"{mark}{percent(change['relative'])} %{interval}"
    return f'<td>{mean}<br><small class="{verdict}">{difference}</small></td>'


def _capacity(capacity: dict[str, Any]) -> str:
    """Return the table of a search for capacities, which is there without JavaScript, too."""
    label, unit = html.escape(capacity["label"]), html.escape(capacity["unit"])
    most = max((one["best"]["offered"] for one in capacity["schedulers"] if one["best"]), default=None)
    rows = []
    for one in capacity["schedulers"]:
        best, above = one["best"], one["above"]
        if best is None:
            cells = ["none", "–", "–", "–"]
        else:
            bold = ("<b>", "</b>") if best["offered"] == most else ("", "")
            arrivals = best["arrivals_per_s"]
            cells = [
                f'{bold[0]}<span data-value="{best["offered"]!r}">{number(best["offered"])}</span>{bold[1]}',
                f"{best['scale']:.3g}",
                "–" if arrivals is None else number(arrivals),
                f"{100.0 * best['attainment']:.1f} %",
            ]
        too_much = "not found" if above is None else number(above["offered"])
        text = "".join(f"<td>{cell}</td>" for cell in [*cells, too_much])
        rows.append(f'<tr><th scope="row">{html.escape(one["name"])}</th>{text}</tr>')
    heads = (unit, "× its own load", "arrivals/s", "met there", "too much")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lead = (
        f"The most load, in {unit}, at which {100 * capacity['share']:g} % of requests meet their SLO, and "
        f"the least that was too much. They are {100 * capacity['tolerance']:g} % apart at most, or the next "
        "that can be tried."
    )
    return (
        f'<div class="capacity"><h3>{label}</h3><p class="lead">{lead}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Capacities in {label}"><table>'
        f'<thead><tr><th scope="col">scheduler</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def verdict_of(change: dict[str, Any], metric: str) -> str:
    """Return ``better``, ``worse``, ``differs`` (neither better nor worse), or ``chance``.

    A difference may be chance unless its interval excludes zero, and what rounding makes of equal values.
    """
    low, high = change["ci95"]
    if low is None or high is None or (low <= ROUNDING and high >= -ROUNDING):
        return "chance"
    direction = better(metric)
    if direction == 0:
        return "differs"
    return "better" if (change["relative"] > 0) == (direction > 0) else "worse"


def number(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a share in per cent with its sign: one decimal, or two digits of what is less than that."""
    if abs(share) <= ROUNDING:
        return "0.0"
    text = f"{100.0 * share:+.1f}" if abs(share) >= 0.0005 else f"{100.0 * share:+.1g}"
    return text.replace("-", "−")


def _source(source: dict[str, Any]) -> str:
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in source["facts"].items()
    )
    return f"<h3>{html.escape(source['file'])}</h3><p>{html.escape(source['kind'])}</p><dl>{facts}</dl>"
