"""About how long the rest of a benchmark takes: on times that are known, by a clock that is moved by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agents.benchmark.cells import Cell
from agents.benchmark.progress import FIRST_GUESS_S, SETTLING_S, RestTime, in_words
from agents.benchmark.records import Record
from dsd_env.paired import evaluation_seeds
from dsd_env.scenario import load_scenario

SCENARIO = load_scenario("single_lan")
ROLES: dict[str, Any] = {"plain": "static", "node": "static", "rule": "rules", "policy": "learned"}


class Clock:
    """A clock that shows what it is told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def cells(entry: str, name: str, count: int) -> list[Cell]:
    seeds = evaluation_seeds(count)
    return [Cell(entry, SCENARIO, name, "cloud_ar", ROLES[name], seed, "0" * 64, ()) for seed in seeds]


def record(entry: str, name: str, wall_s: float) -> Record:
    return Record(entry, name, "cloud_ar", 1, "0" * 64, {}, "1" * 64, wall_s)


def test_cells_of_very_different_cost_count_by_their_own_recorded_times() -> None:
    known = [record("small", "plain", 0.1), record("large", "rule", 60.0), record("large", "rule", 80.0)]
    waiting = [*cells("small", "plain", 10), *cells("large", "rule", 3)]
    rest = RestTime(known, waiting, 1, Clock())
    assert rest.rest_s() == pytest.approx(10 * 0.1 + 3 * 70.0)
    assert RestTime(known, waiting, 2, Clock()).rest_s() == pytest.approx(rest.rest_s() / 2)


def test_cheap_cells_that_end_first_do_not_make_the_dear_ones_cheap() -> None:
    clock = Clock()
    small, large = cells("small", "plain", 10), cells("large", "plain", 2)
    rest = RestTime(
        [record("small", "plain", 0.1), record("large", "plain", 50.0)], [*small, *large], 1, clock
    )
    for cell in small:
        clock.now_s += 0.1
        rest.done(cell, 0.1)
    assert rest.rest_s() == pytest.approx(100.0)
    clock.now_s += 50.0
    rest.done(large[0], 50.0)
    assert rest.rest_s() == pytest.approx(50.0)
    rest.done(large[1], 50.0)
    assert rest.rest_s() == 0.0


def test_a_pair_that_was_never_simulated_takes_what_its_two_sides_took_elsewhere() -> None:
    # The large scenario takes 20 times as long as the small one, the rule 5 times as long as plain decoding.
    known = [record("small", "plain", 1.0), record("large", "plain", 20.0), record("small", "rule", 5.0)]
    rest = RestTime(known, cells("large", "rule", 1), 1, Clock())
    assert rest.expected_s("large", "rule") == pytest.approx(100.0)
    # A policy that is new everywhere: the first guess of its role, times what its scenario takes more.
    rest = RestTime(known, [*cells("large", "policy", 1), *cells("small", "policy", 1)], 1, Clock())
    ratio = rest.expected_s("large", "policy") / rest.expected_s("small", "policy")
    assert ratio == pytest.approx(20.0)
    # A static choice that is new: as the other static choice.
    rest = RestTime(known, [*cells("large", "plain", 1), *cells("large", "node", 1)], 1, Clock())
    assert rest.expected_s("large", "node") == pytest.approx(20.0)
    nothing = RestTime([], cells("small", "policy", 2), 1, Clock())
    assert nothing.rest_s() == pytest.approx(2 * FIRST_GUESS_S["learned"])


def test_another_machine_shows_with_the_first_cells() -> None:
    clock = Clock()
    waiting = [*cells("small", "plain", 4), *cells("large", "rule", 4)]
    rest = RestTime([record("small", "plain", 1.0), record("large", "rule", 30.0)], waiting, 1, clock)
    clock.now_s += 3.0
    rest.done(waiting[0], 3.0)  # three times as slow as the one of the records
    assert rest.rest_s() == pytest.approx(3 * 3.0 + 4 * 90.0)


@pytest.mark.parametrize("at_a_time", [1, 8])
def test_how_many_cells_go_on_at_a_time_is_seen(at_a_time: int) -> None:
    clock = Clock()
    waiting = cells("large", "rule", 4000)
    rest = RestTime([record("large", "rule", 10.0)], waiting, 4, clock)
    assert rest.rest_s() == pytest.approx(40_000.0 / 4)
    for number, cell in enumerate(waiting[:2000]):
        rest.done(cell, 10.0)
        if number % at_a_time == at_a_time - 1:
            clock.now_s += 10.0
    # What the number of workers still counts for beside so much that was seen.
    elapsed_s = clock.now_s - Clock.now_s
    seen = (4 * SETTLING_S + 20_000.0) / (SETTLING_S + elapsed_s)
    assert rest.rest_s() == pytest.approx(20_000.0 / seen)
    assert seen == pytest.approx(at_a_time, rel=0.06)


def test_the_last_cell_is_not_divided_among_workers() -> None:
    rest = RestTime([record("large", "rule", 60.0)], cells("large", "rule", 1), 8, Clock())
    assert rest.rest_s() == pytest.approx(60.0)


def test_cells_that_failed_tell_no_time() -> None:
    first, second = cells("large", "rule", 2)
    rest = RestTime([record("large", "rule", 60.0)], [first, second], 1, Clock())
    rest.done(first, 0.01, failed=True)
    assert rest.rest_s() == pytest.approx(60.0, rel=1e-3)
    assert math.isfinite(rest.rest_s())


def test_times_are_told_as_people_say_them() -> None:
    assert [in_words(seconds) for seconds in (0.4, 89, 91, 5399, 9000)] == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "2.5 h",
    ]
