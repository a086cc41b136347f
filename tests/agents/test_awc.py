"""Sweeps, labels and the training of adaptive window control."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agents import identity
from agents.awc.config import AwcConfig, AwcError, Condition, Fit, Sweep, load_awc
from agents.awc.fitting import States, fit, split
from agents.awc.sweep import checked, choices_apart, choices_fused, labels, nearest_choice, read_lines
from agents.awc.training import Training
from dsd_env.schedulers import make_scheduler
from dsd_env.schedulers.awc_network import (
    FEATURES,
    NPZ_FILE,
    Description,
    WindowNetwork,
    described_features,
    load_network,
    to_scale,
)
from tests.scenarios import TINY

SWEEP = Sweep(windows=(2, 8), node_lengths=(2,), requests=10, warmup=0.3, states=40, every=2, softness=0.02)


@pytest.fixture
def small(tmp_path: Path) -> AwcConfig:
    """Two conditions of a small scenario, few requests, and a small network."""
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(yaml.safe_dump({**TINY, "protocol": {"kind": "streaming"}}))
    return AwcConfig.model_validate(
        {
            "families": [{"scenario": str(scenario), "round_trips": [1.0, 8.0]}],
            "sweep": SWEEP.model_dump(),
            "fit": {"width": 8, "blocks": 1, "epochs": 3, "batch": 64},
        }
    )


def condition(**changes: Any) -> Condition:
    given = {
        "scenario": "single_lan",
        "site": "own",
        "round_trip": 1.0,
        "load": 1.0,
        "clients": 1.0,
        "acceptance": None,
    }
    return Condition(**{**given, **changes})


# --- conditions and labels -------------------------------------------------------------------------


def test_conditions_change_what_they_say() -> None:
    base, far = condition(), condition(round_trip=4.0, load=0.5, clients=2.0, acceptance=0.5)
    before, after = base.load_scenario(SWEEP), far.load_scenario(SWEEP)
    for name, link in before.links.items():
        assert after.links[name].one_way_s == pytest.approx(4.0 * link.one_way_s)
    for name, device in before.devices.items():
        assert after.devices[name].count == 2 * device.count
    assert {each.source for each in after.acceptance.values()} == {"iid"}
    assert after.workload.load.points == ((0.0, 0.5),)
    assert after.episode.requests == 10
    with pytest.raises(AwcError, match="nothing drafts at the site 'edge'"):
        checked(condition(site="edge"), SWEEP)


def test_all_combinations_are_conditions() -> None:
    config = load_awc("core")
    expected = sum(
        len(each.sites)
        * math.prod(len(values) for values in (each.round_trips, each.loads, each.clients, each.acceptance))
        for each in config.families
    )
    conditions = config.conditions()
    assert len(conditions) == expected == len({each.name for each in conditions})
    for each in conditions:
        checked(each, config.sweep)


def test_labels_go_to_the_fastest_choice() -> None:
    here = condition()
    apart, fused = choices_apart(here, SWEEP), choices_fused(here.load_scenario(SWEEP), SWEEP)
    (device,) = here.load_scenario(SWEEP).devices

    def label(window_2: float, window_8: float, plain: float, node_2: float) -> tuple[float, float]:
        times = {apart[2]: window_2, apart[8]: window_8, fused[0]: plain, fused[2]: node_2}
        return labels(here, SWEEP, {name: {"": time, device: time} for name, time in times.items()})[device]

    assert label(2.0, 1.0, 9.0, 5.0) == pytest.approx((to_scale(8), to_scale(2)), abs=1e-6)
    assert label(1.0, 2.0, 5.0, 9.0) == pytest.approx((to_scale(2), 0.0), abs=1e-6)
    assert label(9.0, 9.0, 5.0, 1.0)[0] == pytest.approx(to_scale(1)), "fused"
    # Equal choices share the label.
    assert label(1.0, 1.0, 9.0, 9.0)[0] == pytest.approx((to_scale(2) + to_scale(8)) / 2, abs=1e-6)
    assert label(1.0, 2.0, 9.0, 1.0)[0] == pytest.approx((to_scale(2) + to_scale(1)) / 2, abs=1e-6)


def test_the_nearest_choice() -> None:
    choices = {0: "plain", 2: "two", 8: "eight"}
    assert [nearest_choice(choices, tokens) for tokens in (0.4, 1.0, 4.9, 5.1, 99.0)] == [
        "plain",
        "plain",
        "two",
        "eight",
        "eight",
    ]


# --- fitting ---------------------------------------------------------------------------------------


def test_a_fit_learns_a_rule_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)

    def states(count: int) -> States:
        inputs = rng.uniform(0, 2, size=(count, len(FEATURES))).astype(np.float32)
        return States(inputs, np.stack([1 + inputs[:, 5], 2 - inputs[:, 0]], axis=1))

    settings = Fit(width=16, blocks=1, epochs=40, batch=128)
    train = [states(400), states(1200)]
    arrays, again = fit(train, settings, 1), fit(train, settings, 1)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    description = Description(features=described_features(), width=16, blocks=1, npz_sha256="0" * 64)
    other = states(300)
    error = np.abs(WindowNetwork(description, arrays).outputs(other.inputs) - other.labels).mean()
    assert error < 0.15


def test_some_conditions_are_held_out() -> None:
    shown, aside = split(10, 0.2, 3)
    assert len(aside) == 2 and sorted(shown + aside) == list(range(10))
    assert [len(part) for part in split(2, 0.01, 0)] == [1, 1]


# --- the whole way ---------------------------------------------------------------------------------


def test_a_training_from_conditions_to_a_scheduler(small: AwcConfig, tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "run"
    made = Training(small, out, 1, told.append).run(tmp_path / "network")
    assert made.training["conditions"] == 2 and made.training["states"] > 40
    assert made.training["held_out"]["conditions"] == 1
    scheduler = make_scheduler(f"awc:edge:{tmp_path / 'network'}")
    assert scheduler.name.startswith("awc:edge:")

    # Interrupted in the middle of a line: what is missing is done again, and the result is the same.
    lines = (out / "sweep.jsonl").read_text().splitlines()
    (out / "sweep.jsonl").write_text(lines[0] + "\n" + lines[1][:30])
    assert len(read_lines(out / "sweep.jsonl")) == 1
    next((out / "states").glob("*.npz")).unlink()
    told.clear()
    again = Training(small, out, 1, told.append).run(tmp_path / "again")
    assert told[0] == "1 of 2 conditions to sweep"
    assert again == made
    assert (tmp_path / "again" / NPZ_FILE).read_bytes() == (tmp_path / "network" / NPZ_FILE).read_bytes()
    assert len(read_lines(out / "sweep.jsonl")) == 2


def test_one_condition_is_not_enough(small: AwcConfig, tmp_path: Path) -> None:
    family = small.families[0].model_copy(update={"round_trips": (1.0,)})
    with pytest.raises(ValueError, match="nothing to hold out"):
        Training(small.model_copy(update={"families": (family,)}), tmp_path, 1, print)


# --- the shipped one -------------------------------------------------------------------------------


def test_the_shipped_network_is_of_the_shipped_configuration() -> None:
    from agents.config_files import config_sha256
    from dsd_env.schedulers.awc import shipped_network

    described = load_network(shipped_network()).description
    config = load_awc("core")
    assert described.training["config_sha256"] == config_sha256(config)
    assert described.control == config.control
    assert described.training["conditions"] == len(config.conditions())


def test_a_network_counts_by_its_weights(tmp_path: Path) -> None:
    import shutil

    from dsd_env.schedulers.awc import shipped_network

    digest = identity.scheduler_digest("awc:own")
    copy = Path(shutil.copytree(shipped_network(), tmp_path / "copy"))
    assert identity.scheduler_digest(f"awc:own:{copy}") == digest == identity.scheduler_digest("awc")
    assert identity.scheduler_digest("awc:edge") != digest
    data = json.loads((copy / "awc.json").read_text())
    (copy / "awc.json").write_text(json.dumps({**data, "training": {"seed": 99}}))
    assert identity.scheduler_digest(f"awc:{copy}") != digest
