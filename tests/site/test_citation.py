"""The record to cite, the page about it, and the badge for Gymnasium's list agree with the project."""

from __future__ import annotations

import re
import tomllib

import yaml

import dsd_env
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "citation.md").read_text(encoding="utf-8")


def test_the_record_is_that_of_this_version() -> None:
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert str(record["version"]) == dsd_env.__version__ == project["version"]
    assert record["license"] == project["license"]
    # What the format asks for: https://citation-file-format.github.io
    assert {"cff-version", "message", "title", "authors"} <= set(record)
    assert record["type"] == "software" and all("name" in author for author in record["authors"])


def test_the_page_cites_the_record() -> None:
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (title,) = re.findall(r"^  title   = \{(.*)\},$", PAGE, re.MULTILINE)
    (version,) = re.findall(r"^  version = \{(.*)\},$", PAGE, re.MULTILINE)
    assert (title, version) == (record["title"], str(record["version"]))


def test_the_badge_names_the_version_of_gymnasium_that_is_tested_with() -> None:
    (badge,) = re.findall(r"badge/Gymnasium-v([\d.]+)-", PAGE)
    assert f"\ngymnasium=={badge}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
