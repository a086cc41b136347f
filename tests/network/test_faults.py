"""When what fails: members, windows, and their independence of who looks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dsd_env import Scenario, ScenarioError
from dsd_env.network import FaultMember, FaultWindows, fault_members
from dsd_env.scenario.schema import Fault
from dsd_env.sim.world import WorldBuilder
from tests.scenarios import tiny

SECOND = {"distribution": "constant", "value": 1.0}


def with_faults(**faults: dict[str, Any]) -> Scenario:
    return tiny(faults=faults)


def windows_of(fault: Fault, seed: int = 1, number: int = 0, count: int = 5) -> list[tuple[float, float]]:
    windows = FaultWindows(FaultMember(number, fault, "device", 0), seed)
    found = []
    for _ in range(count):
        found.append((windows.start_s, windows.end_s))
        windows.advance()
    return found


def test_members_are_those_of_the_class_in_the_order_of_the_scenario() -> None:
    scenario = with_faults(
        radio={"kind": "link_outage", "of": "laptop", "mean_interval_s": 9.0, "duration_s": SECOND},
        cable={"kind": "bandwidth_collapse", "of": "box", "at_s": [1.0], "duration_s": SECOND},
        power={"kind": "target_crash", "of": "small", "at_s": [2.0], "duration_s": SECOND},
        battery={
            "kind": "device_crash",
            "of": "workstation",
            "member": 1,
            "at_s": [2.0],
            "duration_s": SECOND,
        },
        fire={"kind": "edge_crash", "of": "box", "at_s": [3.0], "duration_s": SECOND},
    )
    members = fault_members(scenario)
    # Two phones come before the laptops, three laptops before the workstations, "big" before "small".
    assert [(m.number, m.site, m.entity) for m in members] == [
        (0, "device", 2),
        (1, "device", 3),
        (2, "device", 4),
        (3, "edge", 0),
        (4, "target", 1),
        (5, "device", 6),
        (6, "edge", 0),
    ]
    assert [m.crashes for m in members] == [False, False, False, False, True, True, True]
    assert [m.bandwidth_factor for m in members] == [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0]


def test_scheduled_windows_begin_as_scheduled_but_never_within_one_another() -> None:
    fault = Fault(
        kind="link_outage",
        of="any",
        at_s=(1.0, 1.5, 9.0),
        duration_s={"distribution": "constant", "value": 2.0},
    )
    assert windows_of(fault) == [
        (1.0, 3.0),
        (3.0, 5.0),
        (9.0, 11.0),
        (math.inf, math.inf),
        (math.inf, math.inf),
    ]


def test_random_windows_have_their_means_and_do_not_overlap() -> None:
    fault = Fault(
        kind="link_outage",
        of="any",
        mean_interval_s=30.0,
        duration_s={"distribution": "lognormal", "median": 2.0, "sigma": 0.5, "low": 0.5, "high": 20.0},
    )
    found = windows_of(fault, count=20_000)
    starts, ends = np.array(found).T
    ups = starts - np.concatenate([[0.0], ends[:-1]])
    downs = ends - starts
    assert (ups > 0.0).all() and (downs >= 0.5 - 1e-9).all()
    assert ups.mean() == pytest.approx(30.0, rel=0.03)
    assert ups.std() == pytest.approx(30.0, rel=0.05)
    assert np.median(downs) == pytest.approx(2.0, rel=0.03)
    assert abs(np.corrcoef(ups, downs)[0, 1]) < 0.03
    assert all(b[0] >= a[1] for a, b in pairwise(found))


def test_windows_depend_on_seed_and_member_only() -> None:
    fault = Fault(kind="device_crash", of="any", mean_interval_s=10.0, duration_s=SECOND)
    assert windows_of(fault) == windows_of(fault)
    assert windows_of(fault, seed=2) != windows_of(fault)
    assert windows_of(fault, number=1) != windows_of(fault)


def test_both_directions_and_all_links_of_a_device_fail_together() -> None:
    scenario = with_faults(
        radio={"kind": "link_outage", "of": "laptop", "member": 0, "at_s": [1.0], "duration_s": SECOND}
    )
    world = WorldBuilder(scenario).build(seed=1)
    hit, spared = world.devices[2], world.devices[3]
    for channel in (hit.up, hit.down, hit.edge_up, hit.edge_down):
        assert channel is not None and channel.changes
        assert channel.send(1.5, 10.0) >= 2.0
    for channel in (spared.up, spared.down, spared.edge_up, spared.edge_down):
        assert channel is not None and not channel.changes
    assert not any(channel.changes for row in world.backhauls for pair in row for channel in pair)


def test_a_fault_of_an_edge_server_hits_its_backhauls() -> None:
    scenario = with_faults(cable={"kind": "link_outage", "of": "box", "at_s": [1.0], "duration_s": SECOND})
    world = WorldBuilder(scenario).build(seed=1)
    assert all(channel.changes for row in world.backhauls for pair in row for channel in pair)
    assert not any(device.up.changes for device in world.devices)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            {"kind": "target_crash", "of": "laptop", "at_s": [1], "duration_s": SECOND},
            "faults.bad.of = 'laptop'",
        ),
        ({"kind": "edge_crash", "of": "big", "at_s": [1], "duration_s": SECOND}, "faults.bad.of = 'big'"),
        ({"kind": "link_outage", "of": "big", "at_s": [1], "duration_s": SECOND}, "faults.bad.of = 'big'"),
        (
            {"kind": "device_crash", "of": "phone", "member": 2, "at_s": [1], "duration_s": SECOND},
            "member = 2",
        ),
        ({"kind": "device_crash", "of": "phone", "at_s": [2, 1], "duration_s": SECOND}, "increase strictly"),
        ({"kind": "device_crash", "of": "phone", "duration_s": SECOND}, "either at_s"),
        (
            {"kind": "device_crash", "of": "phone", "at_s": [1], "mean_interval_s": 3, "duration_s": SECOND},
            "either at_s",
        ),
    ],
)
def test_impossible_faults_are_refused(fault: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words.replace(".", r"\.")):
        with_faults(bad=fault)
