"""Changes of a scenario by dotted key: what they mean, and that errors name keys as they were written."""

from __future__ import annotations

import pytest

from dsd_env.changes import changed_scenario, levels
from dsd_env.scenario import ScenarioError, load_scenario


def test_dots_and_double_underscores_mean_the_same() -> None:
    wanted = load_scenario("metro", devices__phone__count=8, protocol__kind="pipelined")
    for dotted in ({"devices.phone.count": 8, "protocol.kind": "pipelined"},):
        assert changed_scenario("metro", dotted) == wanted
        assert changed_scenario("metro", {key.replace(".", "__"): v for key, v in dotted.items()}) == wanted
        assert changed_scenario(load_scenario("metro"), dotted) == wanted
    assert changed_scenario("metro", {}) == load_scenario("metro")


def test_a_name_with_dots_in_it_is_one_level() -> None:
    name = "llama-3.2-3b"
    assert name in load_scenario("metro").acceptance
    for key in (f"acceptance.{name}.kinds", f"acceptance__{name}__kinds"):
        assert levels(key, load_scenario("metro").model_dump()) == ["acceptance", name, "kinds"]
    changed = changed_scenario("metro", {f"acceptance.{name}.drafter": "llama-3-8b"})
    assert changed.acceptance[name].drafter == "llama-3-8b"  # type: ignore[union-attr]
    assert levels("a.b.c", {}) == ["a", "b", "c"] and levels("name", {}) == ["name"]


@pytest.mark.parametrize("key", ["episode.requests", "episode__requests"])
def test_an_error_has_the_key_as_it_was_written(key: str) -> None:
    other = {"episode.requests": "episode__requests", "episode__requests": "episode.requests"}[key]
    with pytest.raises(ScenarioError) as found:
        changed_scenario("metro", {key: -1})
    assert f"metro.yaml with {key} overridden: {key} = -1" in str(found.value)
    assert other not in str(found.value)


@pytest.mark.parametrize(
    "key", ["workload.kinds.code.acceptance_kinds", "workload__kinds__code__acceptance_kinds"]
)
def test_so_does_one_that_shows_later(key: str) -> None:
    changed = changed_scenario("metro", {key: ["poetry"]})
    assert f"with {key} overridden" in changed.where and changed.where.endswith("scenario 'metro'")


def test_a_mistyped_name_is_told_from_those_that_there_are() -> None:
    with pytest.raises(ScenarioError) as found:
        changed_scenario("metro", {"devices.fone.count": 3})
    assert str(found.value) == (
        "devices.fone.count: devices has no 'fone'; it has jetson, laptop, phone, workstation"
    )
    both = {"devices.fone.count": 3, "episode.requests": -1}
    with pytest.raises(ScenarioError) as found:
        changed_scenario("metro", both)
    first, second = str(found.value).splitlines()
    assert "devices has no 'fone'" in first and "episode.requests = -1" in second
    # Two keys may be meant to make a new class, and what that lacks is told, too.
    with pytest.raises(ScenarioError) as found:
        changed_scenario("metro", {"devices.fone.count": 3, "devices.fone.link": "wifi"})
    assert "devices has no 'fone'" in str(found.value) and "is missing" in str(found.value)
    with pytest.raises(ScenarioError, match="unknown key 'devises'; did you mean 'devices'") as found:
        changed_scenario("metro", {"devises.phone.count": 3})
    assert len(str(found.value).splitlines()) == 1


def test_a_change_may_mend_a_scenario_that_is_not_valid_without(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mine.yaml"
    file.write_text("extends: single_lan\nname: mine\nepisode: {requests: -1}\n", encoding="utf-8")
    assert changed_scenario(file, {"episode.requests": 5}).episode.requests == 5
    with pytest.raises(ScenarioError, match=r"episode\.requests = -1"):
        changed_scenario(file, {"name": "other"})
