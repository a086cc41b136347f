"""Reading results: what is taken, and that damage is one line that says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_env.report import ReportError, read_results, reading, report_html
from dsd_env.report.content import content
from tests.report import samples


def test_an_evaluation_is_taken_as_it_stands(tmp_path):
    source = read_results(samples.write(tmp_path / "r.json", samples.evaluation()))
    (shown,) = content([source])["evaluations"]
    assert [one["name"] for one in shown["schedulers"]] == ["cloud_ar", "edge_sd:4"]
    given = samples.evaluation()["scenarios"]["single_lan"]["schedulers"]["edge_sd:4"]
    second = shown["schedulers"][1]
    assert second["metrics"]["e2e_s_mean"] == {
        key: given["metrics"]["e2e_s_mean"][key] for key in ("mean", "ci95", "per_seed")
    }
    # What is about another metric is no metric of its own; a ratio to 0 is no difference.
    assert "e2e_s_mean_se" not in shown["metrics"] and "slo_attainment" not in second["versus"]
    assert second["history"]["tokens_per_s"] == given["history"]["tokens_per_s"]


def test_a_training_run_is_its_validations(tmp_path):
    folder = samples.write_run(tmp_path / "run")
    run = read_results(folder).result
    assert isinstance(run, reading.Run)
    assert run.steps == (0, 128, 256) and run.best_step == 128
    assert run.curves == {"return": (-2.0, -1.5, -1.75), "e2e_s_mean": (3.0, 2.5, 2.75)}
    # The file alone names its run.
    assert read_results(folder / "validation.jsonl").result == run


def test_a_search_is_its_choices(tmp_path):
    (shown,) = content([read_results(samples.write(tmp_path / "b.json", samples.search()))])["searches"]
    assert [(one["place"], one["gamma"]) for one in shown["uniform"]] == [
        ("plain", 0),
        ("edge", 2),
        ("edge", 4),
    ]
    assert [row["against_best_percent"] for row in shown["table"]] == [0.0, 5.25]


def test_a_search_for_capacities_is_its_loads(tmp_path):
    (shown,) = content([read_results(samples.write(tmp_path / "c.json", samples.capacity()))])["capacities"]
    carries, none = shown["schedulers"]
    assert (shown["label"], shown["unit"], shown["share"]) == ("single_lan", "clients", 0.95)
    assert (carries["best"]["offered"], carries["above"]["offered"]) == (150.0, 200.0)
    assert [probe["offered"] for probe in carries["probes"]] == [100.0, 150.0, 200.0]
    assert none["best"] is None and none["probes"][0]["arrivals_per_s"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, "share: "),
        ({"scaled": 3}, "scaled: "),
        ({"schedulers": {}}, "schedulers: "),
        ({"schedulers": {"x": {"best": None, "above": None, "probes": []}}}, "schedulers.x.probes: "),
    ],
)
def test_damage_of_capacities_names_the_place(tmp_path, change, message):
    path = samples.write(tmp_path / "c.json", samples.capacity() | change)
    with pytest.raises(ReportError, match=message):
        read_results(path)


def test_equal_names_are_told_apart(tmp_path):
    sources = [
        read_results(samples.write(tmp_path / name, samples.evaluation())) for name in ("a.json", "b.json")
    ]
    labels = [one["label"] for one in content([*sources, sources[0]])["evaluations"]]
    assert labels == [
        f"single_lan ({tmp_path / 'a.json'})",
        f"single_lan ({tmp_path / 'b.json'})",
        f"single_lan ({tmp_path / 'a.json'}) #2",
    ]


def damaged(change) -> str:
    data = samples.evaluation()
    change(data["scenarios"]["single_lan"]["schedulers"]["edge_sd:4"], data)
    return json.dumps(data)


MEAN = "scenarios.single_lan.schedulers.edge_sd:4.metrics.e2e_s_mean.mean"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no result that a report knows"),
        ('{"a": 1, "a": 2}', "field 'a' is given twice"),
        ("[" * 100_000, "is nested too deep"),
        (damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(mean="3")), f"{MEAN}: is not a number"),
        (damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(mean=True)), f"{MEAN}: "),
        (
            damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(mean=float("nan"))),
            f"{MEAN}: is not a finite number",
        ),
        (damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(mean=10**400)), f"{MEAN}: "),
        (damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(ci95=[1.0])), "e2e_s_mean.ci95.1: "),
        (
            damaged(lambda one, _: one["metrics"]["e2e_s_mean"].update(per_seed=[1.0])),
            "e2e_s_mean.per_seed has 1 values for 2 seeds",
        ),
        (
            damaged(lambda one, _: one["history"]["places"].update(x=[1])),
            "its columns must all have 4 values",
        ),
        (damaged(lambda one, _: one["history"]["quantiles"].update(x=[None])), "quantiles must be numbers"),
        (damaged(lambda one, _: one["history"].update(decisions=[-1, 0, 0, 0])), "decisions.0: "),
        (
            damaged(lambda one, _: one["metrics"].update({f"m{k}": samples.value(1.0) for k in range(501)})),
            "at most 500 items",
        ),
        (damaged(lambda one, data: data["metadata"].update(seeds=[])), "metadata.seeds: "),
        (damaged(lambda one, data: data.update(scenarios={"a\n\x1b[31mb": 1})), "scenarios.a??[31mb: "),
        (damaged(lambda one, data: data.update(scenarios={"x" * 400: 1})), "xxx …: "),
        (damaged(lambda one, data: data.update(scenarios={"x" * 501: 1})), "at most 500 characters"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ReportError) as raised:
        read_results(path)
    said = str(raised.value)
    assert said.startswith(str(path)) and message in said and said.isprintable() and len(said) < 1000


def test_what_is_no_file_of_text_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ReportError, match="no such file"):
        read_results(tmp_path / "nowhere.json")
    with pytest.raises(ReportError, match="is no folder of a training run"):
        read_results(tmp_path)
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00\x01binary\x00")
    with pytest.raises(ReportError):
        read_results(tmp_path / "r.json")
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 100)
    with pytest.raises(ReportError, match="not read into memory"):
        read_results(samples.write(tmp_path / "large.json", samples.evaluation()))


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"step": -1}', '{"step": 1, "m": "x"}', '{"step": 1, "m": NaN}']
)
def test_damage_of_a_run_names_the_line(tmp_path, line):
    folder = samples.write_run(tmp_path / "run")
    with (folder / "validation.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ReportError, match=r"validation\.jsonl, line 5: "):
        read_results(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)
@given(at=st.integers(0, 10_000), other=JSON)
def test_any_value_in_any_place_is_shown_or_refused(tmp_path_factory, at, other):
    """Whatever replaces a part of a result, there is a page or a line that names the file."""
    data = samples.evaluation()
    places = list(_places(data))
    holder, key = places[at % len(places)]
    holder[key] = other
    path: Path = tmp_path_factory.mktemp("any") / "r.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    try:
        page = report_html([read_results(path)])
    except ReportError as error:
        assert str(error).startswith(str(path))
    else:
        assert page.startswith("<!DOCTYPE html>")


def _places(data):
    for key, inner in data.items() if isinstance(data, dict) else enumerate(data):
        yield data, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)
