"""Tables compiled from policies: cells, votes, the file, and the scheduler."""

import json
from collections import Counter

import pytest

from dsd_env import simulate
from dsd_env.control import Decision
from dsd_env.scenario import load_scenario
from dsd_env.scenario.measuring import measuring
from dsd_env.schedulers import SchedulerError, make_scheduler
from dsd_env.schedulers.table import Axes, Table, TableBuilder, TableScheduler
from tests.views import make_view

ONE = {"context_tokens": (), "acceptance": (), "rtt_s": ()}


def table(gammas, batch=(2, 5), visits=None, **axes):
    found = Axes(batch=batch, **{**ONE, **axes})
    return Table(
        source="hand",
        scenario="none",
        axes=found,
        gamma=tuple(gammas),
        batch_size=(1,) * found.cells,
        place=tuple("colocated" if gamma else "plain" for gamma in gammas),
        visits=tuple(visits or (1,) * found.cells),
    )


def test_an_edge_belongs_to_the_cell_above():
    axes = Axes(batch=(2, 5), context_tokens=(100,), acceptance=(0.5,), rtt_s=(0.01, 0.1))
    assert axes.shape == (3, 2, 2, 3)
    assert axes.index(1, 99, 0.49, 0.0) == 0
    assert axes.index(1, 99, 0.49, 0.01) == 1
    assert axes.index(1, 99, 0.5, 0.0) == 3
    assert axes.index(1, 100, 0.0, 0.0) == 6
    assert axes.index(2, 0, 0.0, 0.0) == 12
    assert axes.index(10_000, 10_000, 1.0, 9.0) == axes.cells - 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma": (1,)}, "1 values for 3 cells"),
        ({"gamma": (0, 1, 1)}, "cell 0"),
        ({"version": 2}, "version"),
        ({"more": 1}, "more"),
        ({"axes": {"batch": [5, 2], "context_tokens": [], "acceptance": [], "rtt_s": []}}, "must rise"),
        ({"gamma": (1, 1, 1.5)}, "gamma.2"),
        ({"place": ("colocated", "colocated", "moon")}, "place.2"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path, change, words):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table((4, 2, 1)).model_dump(mode="json") | change))
    with pytest.raises(SchedulerError, match="table") as caught:
        make_scheduler(f"table:{path}")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"gamma": NaN}', "{" * 100_000])
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(SchedulerError, match="table"):
        make_scheduler(f"table:{path}")
    with pytest.raises(SchedulerError, match="table"):
        make_scheduler(f"table:{tmp_path / 'none.json'}")
    with pytest.raises(SchedulerError, match="table:FILE"):
        make_scheduler("table")


def test_a_saved_table_is_the_same_scheduler(tmp_path):
    path = tmp_path / "table.json"
    table((4, 0, 1)).save(path)
    scheduler = make_scheduler(f"table:{path}")
    assert isinstance(scheduler, TableScheduler)
    assert scheduler.table == table((4, 0, 1))
    assert scheduler.name == f"table:{path}"


def test_the_commonest_place_is_chosen_before_the_commonest_length():
    builder = TableBuilder(Axes(batch=(), **ONE))
    view = make_view()
    view.request.is_admission = False
    placements = {candidate.site.name: i for i, candidate in enumerate(view.candidates)}
    own, colocated = placements["OWN_DEVICE"], placements["COLOCATED"]
    seen = [(1, own)] * 3 + [(2, colocated)] * 2 + [(4, colocated)] * 2 + [(4, colocated)]
    for gamma, placement in seen:
        builder.see(view, Decision(gamma, 1, placement))
    view.request.is_admission = True
    builder.see(view, Decision(8, 1, own))
    made = builder.build("rule", "hand")
    assert made.cell(0) == (4, 1, "colocated")
    assert made.visits == (8,)


def test_cells_without_decisions_take_the_nearest():
    builder = TableBuilder(Axes(batch=(2, 3, 4, 5), **ONE))
    for resident, gamma in ((1, 4), (5, 1)):
        view = make_view()
        view.request.is_admission = False
        view.target.resident = resident
        builder.see(view, Decision(gamma, 1, 0))
    made = builder.build("rule", "hand")
    assert made.gamma == (4, 4, 4, 1, 1)
    assert made.visits == (1, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="no decision"):
        TableBuilder(Axes()).build("rule", "hand")


def test_by_batch_size_what_was_seen_most_counts():
    made = table((4, 2, 2, 0), batch=(9,), acceptance=(0.5,), visits=(1, 5, 0, 7))
    assert made.lengths_by_batch() == [(1, 2), (9, 0)]
    summed = made.by_batch()
    assert summed.gamma == (2, 0)
    assert summed.visits == (6, 7)
    assert summed.axes.shape == (2, 1, 1, 1)


def test_a_table_of_a_static_rule_is_that_rule():
    """Exactly: the same decisions in the same world, so the same metrics to the last bit."""
    scenario = measuring(load_scenario("single_lan"), 60)
    seen: Counter[int] = Counter()
    rule, builder = make_scheduler("colocated_sd:2"), TableBuilder(Axes())

    class Watch:
        name = "watch"

        def reset(self, scenario, seed):
            rule.reset(scenario, seed)

        def decide(self, view):
            decision = rule.decide(view)
            builder.see(view, decision)
            seen[decision.gamma] += 1
            return decision

    first = simulate(scenario, Watch(), seed=3, engine="reference")
    again = simulate(
        scenario, TableScheduler("table", builder.build(rule.name, scenario.name)), seed=3, engine="reference"
    )
    assert seen[2] > 20
    assert first.metrics == pytest.approx(again.metrics, rel=0, abs=0, nan_ok=True)
