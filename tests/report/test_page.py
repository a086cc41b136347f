"""The page: nothing in it but what was put there, no number other than the results'."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

import dsd_env.report.page as page
from dsd_env.report import ReportError, read_results, report_html, write_report
from dsd_env.report.words import better, metric_words
from dsd_env.sim.metrics import METRICS
from tests.report import samples


class Read(HTMLParser):
    """The elements of a page, its scripts, and the numbers of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        self.texts.setdefault(self._inside, []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def html_of(tmp_path, *results) -> str:
    files = [samples.write(tmp_path / f"{number}.json", data) for number, data in enumerate(results)]
    return report_html([read_results(file) for file in files])


def test_names_of_strangers_stay_names(tmp_path):
    name = samples.HOSTILE
    plain = Read(html_of(tmp_path, samples.evaluation(), samples.search()))
    hostile = samples.evaluation(second=name, label=name)
    hostile["metadata"]["command"] = [name]
    hostile["metadata"]["versions"] = {name: name}
    entries = hostile["scenarios"][name]["schedulers"]
    for entry in entries.values():
        entry["metrics"][name] = samples.value(1.0)
    entries[name]["history"]["places"][name] = [1, 0, 0, 0]
    text = html_of(tmp_path, hostile, samples.search(name))
    read = Read(text)
    # The very same elements: none has been added and none has been ended early.
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)
    assert name in read.texts["th"] and name in read.texts["b"]
    data = json.loads(read.texts["script"][0])
    assert data["evaluations"][0]["label"] == name and data["evaluations"][0]["schedulers"][1]["name"] == name
    assert text.count("</script") == 2 and "<!--" not in text and "\u2028" not in text.split("<script")[1]


def test_what_a_name_stands_for_is_told_below_the_scoreboard(tmp_path):
    assert 'class="lead specifications"' not in html_of(tmp_path, samples.evaluation())
    named = samples.evaluation()
    named["scenarios"]["single_lan"]["schedulers"]["edge_sd:4"]["specification"] = samples.HOSTILE
    text = html_of(tmp_path, named)
    read = Read(text)
    assert 'class="lead specifications"' in text and samples.HOSTILE not in text
    assert any(samples.HOSTILE in words for words in read.texts["b"] + read.texts["p"])


def test_the_policy_names_what_is_there_and_nothing_else(tmp_path):
    text = html_of(tmp_path, samples.evaluation())
    (policy,) = [one["content"] for one in Read(text).attributes("meta") if "http-equiv" in one]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    for name, content in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not [one for one in Read(text).tags if set(one[1]) & {"src", "style", "srcset"}]
    assert "innerHTML" not in script and "eval(" not in script and "document.write" not in script


def test_the_scoreboard_has_the_numbers_of_the_results(tmp_path):
    given = samples.evaluation()
    text = html_of(tmp_path, given)
    shown = [float(one["data-value"] or "") for one in Read(text).attributes("span") if "data-value" in one]
    schedulers = given["scenarios"]["single_lan"]["schedulers"].values()
    assert shown == [one["metrics"][name]["mean"] for one in schedulers for name in page.SCOREBOARD]
    assert "▲ −25.0 %<br>−30.0 to −20.0" in text  # request time: less is better
    assert '<small class="worse">▼ −25.0 %' in text  # throughput: more is
    assert '<small class="chance">−1.0 %<br>−2.0 to +1.0' in text


def test_capacities_stand_in_a_table_of_their_own(tmp_path):
    text = html_of(tmp_path, samples.capacity(scheduler=samples.HOSTILE))
    table = text[text.index('<section id="capacity"') : text.index('<div id="figures">')]
    assert '<b><span data-value="150.0">150</span></b>' in table and "<td>12.75</td>" in table
    assert "<td>96.0 %</td><td>200</td>" in table and "<td>none</td>" in table and "<td>50</td>" in table
    assert samples.HOSTILE in Read(text).texts["th"] and "<img" not in table
    assert '<section id="capacity" hidden>' in html_of(tmp_path, samples.evaluation())


def test_a_difference_that_is_rounding_is_none():
    rounding = {"relative": 2e-16, "ci95": [1e-16, 3e-16]}
    assert page.verdict_of(rounding, "e2e_s_mean") == "chance"
    assert page.percent(rounding["relative"]) == "0.0"
    assert page.percent(-2e-4) == "−0.02"
    assert page.verdict_of({"relative": 0.1, "ci95": [0.05, 0.2]}, "e2e_s_p95") == "worse"
    assert page.verdict_of({"relative": 0.1, "ci95": [0.05, 0.2]}, "load") == "differs"
    assert page.verdict_of({"relative": 0.1, "ci95": [None, None]}, "e2e_s_p95") == "chance"


def test_metrics_that_exist_are_known_by_name():
    assert set(page.SCOREBOARD) <= set(METRICS)
    directions = {name: better(name) for name in METRICS if not name.endswith(("_se", "_drift"))}
    for name in ("e2e_s_mean", "itl_s_max", "bytes_per_token", "energy_j_per_1k_tokens"):
        assert directions[name] == -1, name
    for name in ("slo_attainment", "goodput_requests_per_s", "throughput_tokens_per_s", "jain_fairness"):
        assert directions[name] == 1, name
    for name in ("load", "acceptance_rate", "window_s", "duration_s", "requests_arrived", "takeovers"):
        assert directions[name] == 0, name
    assert better("slo_attainment.interactive") == 1
    assert metric_words("ttft_s_p99") == "99th percentile time to first token (s)"
    assert metric_words("slo_attainment.fast") == "share that met its SLO, class fast"


def test_few_episodes_are_told(tmp_path):
    assert "Intervals of 2 seeds are too narrow" in html_of(tmp_path, samples.evaluation())


def test_the_file_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    result = samples.write(tmp_path / "r.json", samples.evaluation())
    out = tmp_path / "out" / "report.html"
    size = write_report([result, samples.write_run(tmp_path / "run")], out, title="Mine & <yours>")
    assert out.stat().st_size == size and "<h1>Mine &amp; &lt;yours&gt;</h1>" in out.read_text()
    before = out.read_bytes()
    with pytest.raises(ReportError):
        write_report([result, tmp_path / "nowhere"], out)
    with pytest.raises(ReportError, match="at least one"):
        write_report([], out)
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["report.html"]
