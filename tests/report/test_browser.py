"""The page in a real browser: drawn without a complaint, numbers equal to the results, safe, usable.

Needs Chromium or Chrome (Debian: ``apt install chromium``; another one is named by ``DSD_BROWSER``):
``make test-browser``.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dsd_env.report import write_report
from dsd_env.report.page import verdict_of
from dsd_env.report.words import better
from tests.report import samples

pytestmark = pytest.mark.browser

HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found">nothing</pre>
<iframe id="frame" width="%d" height="900" src="report.html%s"></iframe>
<script>
document.getElementById("frame").addEventListener("load", () => {
  const view = document.getElementById("frame").contentWindow;
  const page = view.document;
  const choose = (name, value) => {
    const select = page.querySelector(`select[name="${name}"]`);
    select.value = value;
    select.dispatchEvent(new view.Event("change"));
  };
  const tables = () => [...page.querySelectorAll("figure:not([hidden])")].map((figure) => ({
    title: figure.querySelector("figcaption").firstChild.textContent,
    shapes: figure.querySelectorAll(".plot :is(.row, .line, .shade, .point)").length,
    head: [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent),
    rows: [...figure.querySelectorAll("tbody tr")].map((row) => [...row.children].map(
      (cell) => "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent)),
  }));
  let found;
  try { found = { value: (() => { %s })() }; } catch (error) { found = { error: String(error) }; }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""
"""A page around the report that asks it things; what it finds stands in its own text."""


@pytest.fixture(scope="session")
def browser() -> str:
    """Return the browser's command."""
    names = (os.environ.get("DSD_BROWSER"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("no Chromium or Chrome found; install one, or name it by DSD_BROWSER")
    return found


@pytest.fixture
def ask(browser: str, tmp_path: Path):
    """Return a function that runs a program in the page and returns its value and what was complained of."""

    def run(program: str, width: int = 1000, choice: str = "") -> tuple[Any, list[str]]:
        (tmp_path / "harness.html").write_text(HARNESS % (width, choice, program), encoding="utf-8")
        options = ["--headless", "--disable-gpu", "--allow-file-access-from-files", "--disable-web-security"]
        options += ["--no-sandbox"] * (os.geteuid() == 0)
        options += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"]
        done = subprocess.run(
            [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/harness.html"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        (text,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
        found = json.loads(html.unescape(text))
        assert "error" not in found, found
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return found["value"], complaints

    return run


def write(tmp_path: Path, *results: Any) -> None:
    files = [samples.write(tmp_path / f"{number}.json", data) for number, data in enumerate(results)]
    write_report([*files, samples.write_run(tmp_path / "run")], tmp_path / "report.html")


TITLES = [
    "Means",
    "Difference from cloud_ar",
    "The most load",
    "Share that met its SLO (%)",
    "Percentiles",
    "Distribution",
    "Classes",
    "Requests at the targets",
    "Throughput (tokens/s)",
    "Window γ (tokens)",
    "Batch size B",
    "Place",
    "Decisions",
    "Cost",
    "mean request time (s) against occupied GPUs ($ per 1M tokens)",
    "mean request time (s) — less is better",
    "Mean request time (s) by place and window",
    "Against static:4:1:edge",
]


@pytest.mark.parametrize("width", [390, 1440])
def test_all_figures_are_drawn_and_fit(ask, tmp_path, width):
    write(tmp_path, samples.evaluation(), samples.search(), samples.capacity())
    (figures, wide, shown), complaints = ask(
        "return [tables(), page.documentElement.scrollWidth, view.innerWidth];", width
    )
    assert not complaints
    assert [figure["title"] for figure in figures] == TITLES
    assert all(figure["shapes"] > 0 and figure["rows"] for figure in figures)
    assert wide <= shown == width


def test_the_numbers_are_those_of_the_results(ask, tmp_path):
    given = samples.evaluation()
    write(tmp_path, given, samples.search())
    tables, complaints = ask("return tables();", choice="#metric=throughput_tokens_per_s&latency=ttft_s")
    assert not complaints
    found = {table["title"]: table["rows"] for table in tables}
    schedulers = given["scenarios"]["single_lan"]["schedulers"]

    def cells(metric: str) -> list[list[Any]]:
        values = {name: entry["metrics"][metric] for name, entry in schedulers.items()}
        return [[name, value["mean"], *value["ci95"]] for name, value in values.items()]

    assert [row[:4] for row in found["Means"]] == cells("throughput_tokens_per_s")
    assert found["Difference from cloud_ar"] == [["edge_sd:4", -0.25, -0.3, -0.2, "worse"]]
    assert [[row[0], *row[2:5]] for row in found["Percentiles"]] == [
        *cells("ttft_s_p50"),
        *cells("ttft_s_p95"),
        *cells("ttft_s_p99"),
    ]
    assert [row[2] for row in found["Classes"]] == [
        entry["metrics"][f"goodput_requests_per_s.{name}"]["mean"]
        for name in ("interactive", "patient")
        for entry in schedulers.values()
    ]
    history = samples.history()
    assert [row[2] for row in found["Throughput (tokens/s)"]] == history["tokens_per_s"]
    assert [row[2] for row in found["Window γ (tokens)"]] == ["–", 4, 2.5, "–"]
    columns = zip(*[row[1:] for row in found["Place"]], strict=True)
    assert [list(column) for column in columns] == list(history["places"].values())
    assert [row[1:] for row in found["mean request time (s) — less is better"]] == [
        [0, 3],
        [128, 2.5],
        [256, 2.75],
    ]
    assert [row[1] for row in found["Mean request time (s) by place and window"]] == [3, 1.75, 1.5]


def test_capacities_are_those_of_the_search(ask, tmp_path):
    write(tmp_path, samples.capacity(), samples.capacity("other", "colocated_sd:4"))
    found, complaints = ask("""
        const before = tables();
        choose("capacity", "other");
        return [before, tables(), page.getElementById("scoreboard").hidden];
    """)
    assert not complaints
    (most, loads), (others, _), no_scoreboard = found[0][:2], found[1][:2], found[2]
    assert most["rows"] == [["edge_sd:4", 150, 12.75, 0.96, 200]]
    assert others["rows"][0][0] == "colocated_sd:4"
    assert [row[1] for row in loads["rows"]] == [100, 150, 200, 50]
    assert loads["shapes"] == 2 and no_scoreboard


def test_marks_lie_where_the_axis_says(ask, tmp_path):
    given = samples.evaluation()
    write(tmp_path, given)
    (ticks, rows), complaints = ask("""
        const plot = page.querySelector("#scoreboard-figures .plot");
        const ticks = [...plot.querySelectorAll("svg > text[text-anchor=middle]")].slice(0, -1);
        const place = (node, name) => Number(node.getAttribute(name));
        const ends = (line) => line.getAttribute("d").match(/M(.*),.*H(.*)/).slice(1).map(Number);
        return [
          ticks.map((tick) => [Number(tick.textContent), place(tick, "x")]),
          [...plot.querySelectorAll(".row")].map((row) => ({
            mean: place(row.querySelector("circle:not(.seed)"), "cx"),
            interval: ends(row.querySelector(".interval")),
            seeds: [...row.querySelectorAll(".seed")].map((seed) => place(seed, "cx")),
          })),
        ];
    """)
    assert not complaints and len(ticks) >= 2
    (value, at), (other, further) = ticks[0], ticks[-1]

    def pixel(number: float) -> float:
        return at + (number - value) * (further - at) / (other - value)

    for row, entry in zip(rows, given["scenarios"]["single_lan"]["schedulers"].values(), strict=True):
        metric = entry["metrics"]["e2e_s_mean"]
        assert row["mean"] == pytest.approx(pixel(metric["mean"]), abs=0.5)
        assert row["interval"] == pytest.approx([pixel(end) for end in metric["ci95"]], abs=0.5)
        assert row["seeds"] == pytest.approx([pixel(one) for one in metric["per_seed"]], abs=0.5)


def test_scenario_and_metric_can_be_chosen(ask, tmp_path):
    write(tmp_path, samples.evaluation(), samples.evaluation(label="other", second="hf_heuristic"))
    found, complaints = ask("""
        choose("scenario", "other");
        choose("metric", "energy_j_per_1k_tokens");
        const boards = [...page.querySelectorAll(".scoreboard")].map((board) => board.hidden);
        return [tables()[0], boards, view.location.hash, page.activeElement.tagName];
    """)
    assert not complaints
    means, boards, address, _ = found
    assert [row[0] for row in means["rows"]] == ["cloud_ar", "hf_heuristic"]
    assert [row[1] for row in means["rows"]] == [12345.6, 12345.6 * 0.75]
    assert boards == [True, False]
    assert "scenario=other" in address and "metric=energy_j_per_1k_tokens" in address


def test_keys_read_figures_and_every_mark_has_a_name(ask, tmp_path):
    write(tmp_path, samples.evaluation(), samples.search())
    found, complaints = ask("""
        const tip = page.getElementById("tip");
        const plot = page.querySelector("#time .plot svg");
        plot.focus();
        const said = ["ArrowRight", "End", "Home"].map((key) => {
          plot.dispatchEvent(new view.KeyboardEvent("keydown", { key, bubbles: true }));
          return tip.textContent;
        });
        view.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape" }));
        const marks = [...page.querySelectorAll("svg .row")];
        const unnamed = [...page.querySelectorAll("svg[role], svg [tabindex], select, [role=region]")]
          .filter((node) => !node.getAttribute("aria-label"));
        return [said, tip.hidden, marks.every((mark) => mark.tabIndex === 0), unnamed.length];
    """)
    assert not complaints
    assert found == [["from second 0.5\n1.5", "from second 1.5\n1", "from second 0\n0"], True, True, 0]


def test_hostile_names_are_text_in_the_page_that_is_drawn(ask, tmp_path):
    name = samples.HOSTILE
    hostile = samples.evaluation(second=name, label=name)
    for entry in hostile["scenarios"][name]["schedulers"].values():
        entry["metrics"][name] = samples.value(1.0)
    write(tmp_path, hostile, samples.search(name))
    found, complaints = ask("""
        const scenario = page.querySelector("select[name=scenario]").value;
        const strangers = page.querySelectorAll("img, iframe");
        const counts = [strangers, page.scripts, page.styleSheets].map((all) => all.length);
        return [...counts, scenario, tables()[0].rows.map((row) => row[0])];
    """)
    assert not complaints
    assert found == [0, 2, 1, name, ["cloud_ar", name]]


def test_the_policy_is_obeyed(ask, tmp_path):
    """Were there a hole after all, what comes in could neither run nor speak to anybody."""
    write(tmp_path, samples.evaluation())
    path = tmp_path / "report.html"
    intruder = (
        "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x' onerror='document.title=1'>"
    )
    path.write_text(path.read_text().replace("</main>", f"{intruder}</main>"))
    title, complaints = ask("return page.title;")
    assert title == "Results: single_lan, run"
    assert sum("Content Security Policy" in line for line in complaints) >= 2


def test_verdicts_of_page_and_tables_agree(ask, tmp_path):
    """The program of the page and the tables made before it decide by the same rule."""
    write(tmp_path, samples.evaluation())
    metrics = ["e2e_s_mean", "goodput_requests_per_s", "throughput_tokens_per_s"]
    found, _ = ask(f"""
        const cases = {json.dumps(CASES)};
        return {json.dumps(metrics)}.map((metric) => cases.map(([relative, low, high]) =>
          view.verdict({{ relative, ci95: [low, high] }}, metric)));
    """)
    expected = [
        [verdict_of({"relative": r, "ci95": [low, high]}, m) for r, low, high in CASES] for m in metrics
    ]
    assert found == expected and {better(metric) for metric in metrics} == {-1, 1}


CASES = [(0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (0.1, -0.1, 0.2), (1e-16, 1e-16, 1e-16), (0.1, None, None)]
