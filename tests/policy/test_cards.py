"""Every bundle in the repository has a model card, and that says what its manifest says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

MANIFESTS = sorted(
    [*ROOT.glob("configs/policies/*/*/manifest.json"), *ROOT.glob("validation/*/manifest.json")]
)


def facts(manifest: dict[str, Any]) -> list[str]:
    training = manifest["training"]
    start = json.loads(training["warm_start"]) if training["warm_start"] else None
    searched = training["algorithm"] == "CMA-ES"
    imitation = f"imitation of `{start['scheduler']}`" if start else "without imitation"
    if start and "teachers" in start:
        imitation = f"imitation of {len(set(start['teachers'].values()))} schedulers"
    return [
        manifest["scenario"]["name"],
        training["algorithm"],
        f"{training['steps']:,} {'episodes' if searched else 'decisions'}",
        "-".join(map(str, manifest["network"]["layers"])),
        ", ".join(map(str, manifest["action"]["gammas"])),
        "" if searched else imitation,
    ]


def test_there_are_bundles() -> None:
    assert len(MANIFESTS) >= 3


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.parent.relative_to(ROOT).as_posix())
def test_the_card_says_what_the_manifest_says(file: Path) -> None:
    card = (file.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"`{file.parent.name}" in card
    said = re.sub(r"\s+", " ", card)
    assert not [fact for fact in facts(json.loads(file.read_text(encoding="utf-8"))) if fact not in said]
