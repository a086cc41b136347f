"""``report``: from what ``evaluate`` prints to a page, and that the script of a checkout is the same."""

from __future__ import annotations

import subprocess
import sys

from dsd_env.report import read_results
from dsd_env.report.content import content
from tests.report import samples


def test_what_the_command_prints_is_taken_too(dsd_env_command, tmp_path):
    arguments = ("single_lan", "--schedulers", "cloud_ar,edge_sd:4", "--seeds", 2, "--requests", 2)
    printed = dsd_env_command("evaluate", *arguments, "--engine", "reference", "--json", "--history").json
    (shown,) = content([read_results(samples.write(tmp_path / "r.json", printed))])["evaluations"]
    assert shown["label"] == "single_lan" and shown["baseline"] == "cloud_ar"
    change = printed["schedulers"]["edge_sd:4"]["versus"]["e2e_s_mean"]
    assert shown["schedulers"][1]["versus"]["e2e_s_mean"] == {
        "relative": change["relative"],
        "ci95": change["relative_ci95"],
    }
    kept = printed["schedulers"]["edge_sd:4"]["history"]
    assert kept["requests_measured"] == 2
    assert shown["schedulers"][1]["history"]["quantiles"]["e2e_s"] == kept["quantiles"]["e2e_s"]


def test_the_page_is_written_and_damage_leaves_no_file(dsd_env_command, tmp_path):
    result = samples.write(tmp_path / "r.json", samples.evaluation())
    out = tmp_path / "report.html"
    said = dsd_env_command("report", result, "--out", out, "--title", "Mine", "--json").json
    assert said == {"file": str(out), "bytes": out.stat().st_size, "results": [str(result)]}
    assert "<title>Mine</title>" in out.read_text()
    result.write_text("{")
    said = dsd_env_command("report", result, "--out", tmp_path / "nodir" / "other.html")
    assert said.status == 1 and "does not exist; make it first" in said.err
    assert not (tmp_path / "nodir").exists()
    said = dsd_env_command("report", result, "--out", tmp_path / "other.html")
    assert said.status == 1 and said.err.startswith(f"dsd-env: {result}: is not JSON")
    assert not (tmp_path / "other.html").exists()


def test_histories_need_json(dsd_env_command):
    said = dsd_env_command("evaluate", "single_lan", "--schedulers", "cloud_ar", "--history")
    assert said.status == 1 and said.err == "dsd-env: --history: only --json prints histories\n"


def test_the_script_writes_the_same_page(dsd_env_command, checkout, tmp_path):
    result = samples.write(tmp_path / "r.json", samples.evaluation())
    dsd_env_command("report", result, "--out", tmp_path / "command.html")
    script = [sys.executable, "scripts/report.py"]
    subprocess.run([*script, result, "--out", tmp_path / "script.html"], cwd=checkout, check=True)
    texts = [(tmp_path / f"{name}.html").read_text() for name in ("command", "script")]
    # But for the minute at which it was written.
    assert len({text.replace(text[text.index(" on 20") :][:22], "") for text in texts}) == 1
    done = subprocess.run(
        [*script, tmp_path / "nowhere", "--out", "x"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == f"report: {tmp_path / 'nowhere'}: there is no such file\n"
