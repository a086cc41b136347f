"""The benchmark on a local Ray cluster of two workers, one of which is killed: same numbers, none lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.benchmark.cells import plan
from agents.benchmark.cluster import run_on_ray
from agents.benchmark.running import Outcome, simulate_cell
from tests.agents.benchmark.samples import DiesOnce, suite

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]


@pytest.fixture
def cluster(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of two workers that import the checkout and this test."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps its token
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_worker_loses_nothing_and_the_numbers_are_those_of_one_process(
    cluster: None, tmp_path: Path
) -> None:
    cells = plan(suite())
    outcomes: list[Outcome] = []
    run_on_ray(cells, "local", outcomes.append, work=DiesOnce(tmp_path / "died"))
    assert (tmp_path / "died.0").exists()
    assert not [outcome.failure for outcome in outcomes if outcome.failure]
    digests = {outcome.cell.inputs: outcome.digest for outcome in outcomes}
    assert len(outcomes) == len(cells)
    assert digests == {cell.inputs: simulate_cell(cell).digest for cell in cells}
