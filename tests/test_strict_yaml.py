"""YAML as people mean it, in every file that the project reads, and numbers that are numbers."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from agents.config import ConfigError, load_config
from dsd_env import load_scenario, strict_yaml
from dsd_env.latency import ProfileError, load_profile
from dsd_env.latency.profile import LatencyProfile
from dsd_env.paths import config_dir
from dsd_env.scenario import ScenarioError
from dsd_env.strict_model import StrictNumbers
from dsd_env.strict_yaml import StrictYamlError, dumps, loads
from tests.latency.test_profile import BASE

SHIPPED = sorted(config_dir().rglob("*.yaml"))


def old(path: Path) -> Path:
    """Make a file look as if it had not been changed for a minute."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 60_000_000_000))
    return path


# ------------------------------------------------------------------------------------------------ the reader


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e6", 1e6),
        ("1E-6", 1e-6),
        ("-1.5e+3", -1500.0),
        ("010", "010"),
        ("-010", "-010"),
        ("01.5", "01.5"),
        ("0x10", "0x10"),
        ("0b1", "0b1"),
        ("0o7", "0o7"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1:30:00.5", "1:30:00.5"),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("=", "="),
        ("'7'", "7"),
        ('"true"', "true"),
        ("[1, a: 2]", [1, {"a": 2}]),
    ],
)
def test_plain_words_are_what_they_look_like(word, value):
    found = loads(f"a: {word}\n", "x")["a"]
    assert found == value and type(found) is type(value)


def test_anchors_repeat_and_share_nothing():
    data = loads("a: &x {b: [1]}\nc: *x\n", "x")
    data["a"]["b"].append(2)
    assert data["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"f\.yaml: .*line 3, column 1: duplicate key 'a': 'a' is given twice"),
        ("a:\n  true: 1\n", r"line 2.*key True \(line 2\) is not a word"),
        ("3: x\n", r"key 3 \(line 1\) is not a word"),
        ("a: !!int '010'\n", r"line 1.*the tag '!!int' is not allowed|is not a number that can be used"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag .* is not allowed"),
        ("a: !!timestamp 2026-01-01\n", "the tag '!!timestamp' is not allowed"),
        ("a: !!map [1]\n", "expected a mapping"),
        ("a: !!str [1]\n", "expected text"),
        ("a: !!int {b: 1}\n", "line 1.*expected a single value"),
        ("a: !!float [1]\n", "expected a single value"),
        ("a: !!bool {b: 1}\n", "expected a single value"),
        ("a: !!null [1]\n", "expected a single value"),
        ("a: 1e999\n", "1e999 is not a number that can be used"),
        (f"a: {'9' * 5000}\n", "is not a number that can be used"),
        ("a: &a [*a]\n", "recursive"),
        ("a: *nothing\n", "line 1"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("a: \x07\n", r"not readable as YAML"),
        ("a: [1\n", "line 2, column 1"),
        ("[" * 20_000, "nested too deep"),
        ("- " * 20_000, "nested too deep"),
        ("a:\r" + "- " * 50_000, "nested too deep"),
        ("a:\u2028" + "? " * 50_000, "nested too deep"),
        ("".join(" " * i + "a:\n" for i in range(1400)), "nested too deep"),
    ],
)
def test_what_is_refused_names_file_and_line(text, message):
    with pytest.raises(StrictYamlError, match=message) as error:
        loads(text, "f.yaml")
    assert str(error.value).startswith("f.yaml: not readable as YAML: ")


def test_anchors_that_multiply_are_refused():
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(StrictYamlError, match="more than 1,000,000 values"):
        loads("\n".join(levels), "f.yaml")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["010", "1:30", "yes", "1e6", "1.0", "null", "~", "", "2026-01-02", "0x1", "<<", "=", "1_0"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
@example({"1e6": "1e6", "true": "010", "<<": "="})
@example({"\x85": "\u2028a", "b\r": "\u2029"})
def test_what_is_written_is_read_back(data):
    assert loads(dumps(data), "x") == data
    # Others read the same, but for the words that YAML 1.1 has and 1.2 has not.
    assert loads(dumps(data, sort_keys=True, width=40), "x") == data


def with_exponents(data: Any) -> Any:
    """Make numbers of what YAML 1.1 takes for words: those with an exponent without a sign."""
    if isinstance(data, dict):
        return {key: with_exponents(value) for key, value in data.items()}
    if isinstance(data, list):
        return [with_exponents(value) for value in data]
    return float(data) if isinstance(data, str) and re.fullmatch(r"[0-9.]+e[0-9]+", data) else data


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_mean_what_they_meant_by_yaml_1_1(path):
    theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert strict_yaml.load(path) == with_exponents(theirs)


# ------------------------------------------------------------------------------------------------- the cache


def test_a_file_is_parsed_once_and_every_caller_has_a_copy(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1]}\n")
    old(path)
    first = strict_yaml.load(path)
    first["a"]["b"].append(2)
    first["c"] = 3
    monkeypatch.setattr(strict_yaml, "_read", lambda _: pytest.fail("parsed again"))
    assert strict_yaml.load(path) == {"a": {"b": [1]}}


def test_a_changed_file_is_read_again_even_if_size_and_time_stay(tmp_path):
    path = tmp_path / "a.yaml"
    for value in range(10):  # within one tick of the file system's clock
        path.write_text(f"a: {value}\n")
        assert strict_yaml.load(path) == {"a": value}
    old(path)
    assert strict_yaml.load(path) == {"a": 9}
    path.write_text("a: 5\n")
    assert strict_yaml.load(path) == {"a": 5}
    path.unlink()
    with pytest.raises(StrictYamlError, match="no such file"):
        strict_yaml.load(path)


def test_threads_may_load_at_the_same_time(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1]}\n")
    old(path)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(strict_yaml.load(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"a": {"b": [1]}}] * 8 and len({id(each["a"]) for each in found}) == 8


def test_a_scenario_is_validated_anew_when_what_it_extends_changes(tmp_path):
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    base.write_text("extends: single_lan\nepisode: {requests: 5}\n")
    top.write_text("extends: base.yaml\n")
    old(base), old(top)
    assert load_scenario(top).episode.requests == 5
    assert load_scenario(top).episode.requests == 5
    base.write_text("extends: single_lan\nepisode: {requests: 6}\n")
    assert load_scenario(top).episode.requests == 6


def test_a_loaded_scenario_shares_no_table_with_the_next(tmp_path):
    one = load_scenario("metro")
    one.devices.clear()
    one.workload.kinds.clear()
    two = load_scenario("metro")
    assert two.devices and two.workload.kinds
    assert load_profile("llama-3-70b_h100-sxm_tp4") is load_profile("llama-3-70b_h100-sxm_tp4")


# --------------------------------------------------------------------------------------- numbers are numbers


class Both(StrictNumbers, BaseModel):
    """Every way in which a number stands in a field."""

    whole: Annotated[int, Field(ge=0)] = 0
    real: float = 0.0
    flag: bool = False
    some: tuple[float, ...] = ()
    pairs: tuple[tuple[int, float], ...] | None = None
    table: dict[str, int] = {}
    inner: Both | None = None


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"whole": 3.0}, 3),
        ({"whole": 1e6}, 1_000_000),
        ({"whole": np.int64(3)}, 3),
        ({"whole": np.float64(3.0)}, 3),
        ({"real": 3}, 3.0),
        ({"real": np.float32(0.5)}, 0.5),
        ({"some": [1, 2.5]}, (1.0, 2.5)),
        ({"pairs": [[1, 2]]}, ((1, 2.0),)),
        ({"flag": True}, True),
    ],
)
def test_numbers_in_any_form_are_taken(given, seen):
    (name,) = given
    found = getattr(Both.model_validate(given), name)
    assert found == seen and type(found) is type(seen)


@pytest.mark.parametrize(
    "given",
    [
        {"whole": True},
        {"whole": "3"},
        {"whole": 2.5},
        {"whole": float("nan")},
        {"whole": None},
        {"real": False},
        {"real": "0.5"},
        {"real": float("inf")},
        {"real": 10**400},
        {"flag": 1},
        {"flag": "yes"},
        {"some": [True]},
        {"pairs": [[True, 1.0]]},
        {"table": {"a": True}},
        {"inner": {"whole": True}},
        {"inner": {"inner": {"real": "1"}}},
    ],
)
def test_nothing_else_becomes_a_number(given):
    with pytest.raises(ValidationError):
        Both.model_validate(given)


NO_NUMBERS = [("true", "True"), ("010", "'010'"), ("1:30", "'1:30'"), ("0x10", "'0x10'"), ("yes", "'yes'")]


@pytest.mark.parametrize(("word", "shown"), NO_NUMBERS)
def test_every_reader_of_yaml_refuses_what_is_no_number(tmp_path, word, shown):
    path = tmp_path / "x.yaml"
    path.write_text(f"extends: single_lan\nepisode: {{requests: {word}}}\n")
    with pytest.raises(ScenarioError) as error:
        load_scenario(path)
    assert str(error.value) == f"{path}: episode.requests = {shown} is not a number"
    path.write_text(f"ppo: {{gamma: {word}}}\n")
    with pytest.raises(ConfigError) as said:
        load_config(path)
    assert str(said.value) == f"{path}: ppo.gamma = {shown} is not a number"
    profile = LatencyProfile.model_validate(BASE).model_dump(mode="json", exclude_none=True)
    text = dumps(profile | {"parallelism": "HERE"}).replace("HERE", word)
    path.write_text(text)
    with pytest.raises(ProfileError, match=rf"x\.yaml.*\n.*parallelism = {shown}: "):
        load_profile(path)


@pytest.mark.parametrize("value", [True, "010", "50", np.True_])
def test_python_values_are_held_to_the_same(value):
    with pytest.raises(ScenarioError, match=r"episode\.requests = .* is not a number"):
        load_scenario("single_lan", episode__requests=value)
    with pytest.raises(ScenarioError, match=r"<mapping>: episode\.requests = .* is not a number"):
        load_scenario({"extends": "single_lan", "episode": {"requests": value}})


def test_exponents_are_numbers_everywhere(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("extends: single_lan\nepisode: {requests: 1e3, horizon_s: 1e6}\n")
    episode = load_scenario(path).episode
    assert (episode.requests, episode.horizon_s) == (1000, 1e6) and type(episode.requests) is int
    path.write_text("timesteps: 1e6\nppo: {learning_rate: 1e-4}\n")
    config = load_config(path)
    assert (config.timesteps, config.ppo.learning_rate) == (1_000_000, 1e-4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_other_editors_are_read(tmp_path, encoding):
    path = tmp_path / "x.yaml"
    path.write_bytes("extends: single_lan\r\nname: eigenes\r\n".encode(encoding))
    assert load_scenario(path).name == "eigenes"
    path.write_bytes("name: für mich".encode("latin-1"))
    with pytest.raises(ScenarioError, match=r"x\.yaml: cannot be read: .*Latin-1"):
        load_scenario(path)
