"""Lists of schedulers: names of their own, and what is said of misplaced commas and equals signs."""

from __future__ import annotations

import pytest

from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.lists import aliases, named_schedulers


def test_a_name_ends_at_the_first_equals_sign_before_any_colon() -> None:
    text = "cloud_ar, short windows = edge_sd:2,best=jsq_goodput:load_weight=2+prior_trials=30,policy:a=b"
    found = named_schedulers(text)
    assert found == {
        "cloud_ar": "cloud_ar",
        "short windows": "edge_sd:2",
        "best": "jsq_goodput:load_weight=2+prior_trials=30",
        "policy:a=b": "policy:a=b",
    }
    assert aliases(found) == [
        "short windows = edge_sd:2",
        "best = jsq_goodput:load_weight=2+prior_trials=30",
    ]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("jsq_goodput:load_weight=1,prior_trials=3", "write jsq_goodput:load_weight=1+prior_trials=3"),
        ("mine=jsq_goodput,prior_trials=3", "write jsq_goodput:prior_trials=3"),
        ("edge_sd:4,8", "write edge_sd:4,edge_sd:8"),
        (
            "static_map:phone=4/1/edge,laptop=8/1/own",
            "write static_map:phone=4/1/edge+laptop=8/1/own",
        ),
        ("edge_sd:4,batch=2", "its arguments"),
    ],
)
def test_a_comma_in_the_wrong_place_is_told_from_schedulers(text: str, advice: str) -> None:
    with pytest.raises(SchedulerError, match="a comma separates schedulers, \\+ the parameters") as found:
        named_schedulers(text)
    assert str(found.value).endswith(advice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no scheduler"),
        ("a=cloud_ar,a=random", "named twice: a"),
        ("cloud_ar,a=cloud_ar", "'a' and 'cloud_ar' are both cloud_ar"),
        ("random=cloud_ar", "'random' is the name of a rule"),
        ("colocated_sd=4", "write colocated_sd:4"),
        ("mine=", "gives a name and no scheduler"),
        ("=cloud_ar", "a name has letters"),
        ("a|b=cloud_ar", "a name has letters"),
        (f"{'a' * 81}=cloud_ar", "at most 80"),
    ],
)
def test_wrong_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(SchedulerError) as found:
        named_schedulers(text)
    assert message in str(found.value)


def test_a_mistyped_rule_is_left_to_the_registry() -> None:
    found = named_schedulers("cloud_ar,jsq_godput:load_weight=1,b=clod_ar")
    with pytest.raises(SchedulerError, match="did you mean 'jsq_goodput'"):
        make_scheduler(found["jsq_godput:load_weight=1"])
    with pytest.raises(SchedulerError, match=r"did you mean 'cloud_ar'\? It is written cloud_ar\[:B\]"):
        make_scheduler(found["b"])


def test_what_benchmarks_alone_know_is_told_where_it_stands() -> None:
    with pytest.raises(SchedulerError, match=r"configs/tune/core\.json.*benchmark_suite\.py"):
        make_scheduler("tuned:goodput tuned")


def test_giving_up_who_keeps_its_bounds_is_refused() -> None:
    with pytest.raises(SchedulerError, match=r"hopeless = 0\.5 must be 0, off, or at least 1"):
        make_scheduler("jsq_goodput:hopeless=0.5")
    assert make_scheduler("jsq_goodput:hopeless=0").name == "jsq_goodput:hopeless=0"
    assert make_scheduler("jsq_goodput:hopeless=1").name == "jsq_goodput:hopeless=1"
