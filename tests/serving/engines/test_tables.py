"""Tables in the formats of engines."""

import json

import pytest

from dsd_env.serving.engines.tables import (
    TableExportError,
    sglang_config,
    steps_by_batch,
    tensorrt_llm_schedule,
    vllm_schedule,
)
from tests.schedulers.test_table import table

FALLING = table((4, 4, 2, 0), batch=(2, 4, 8))


def lower_bound(schedule, batch):
    """What TensorRT-LLM up to 1.2 reads: the largest key that is at most the batch."""
    return schedule[max(key for key in schedule if key <= batch)]


def upper_bound(schedule, batch):
    """What later versions read: the smallest key that is at least the batch; above the last, nothing."""
    return next((schedule[key] for key in sorted(schedule) if key >= batch), 0)


def test_equal_neighbours_are_one_step():
    assert steps_by_batch(FALLING, 16) == [(1, 3, 4), (4, 7, 2), (8, 16, 0)]
    assert steps_by_batch(FALLING, 5) == [(1, 3, 4), (4, 5, 2)]
    assert steps_by_batch(FALLING, 1) == [(1, 1, 4)]
    with pytest.raises(TableExportError, match="at least 1"):
        steps_by_batch(FALLING, 0)


def test_each_engine_reads_what_the_table_says():
    wanted = {batch: FALLING.length(batch, 1, 0.5, 0.0) for batch in range(1, 17)}
    ranges = vllm_schedule(FALLING, 16)
    assert ranges == [[1, 3, 4], [4, 7, 2], [8, 16, 0]]
    old, new = (tensorrt_llm_schedule(FALLING, version, 16) for version in ("1.2.0", "1.3.0rc2"))
    assert old == {1: 4, 4: 2, 8: 0}
    assert new == {3: 4, 7: 2, 16: 0}
    tiers = sglang_config(FALLING)
    assert json.loads(json.dumps(tiers)) == tiers
    for batch, gamma in wanted.items():
        assert [k for low, high, k in ranges if low <= batch <= high] == [gamma]
        assert lower_bound(old, batch) == gamma
        assert upper_bound(new, batch) == gamma
        assert lower_bound({int(key): each for key, each in tiers.items()}, batch) == {
            "candidate_steps": [gamma]
        }
    assert [lower_bound(new, batch) for batch in (3, 7, 16)] != [wanted[batch] for batch in (1, 4, 8)][::-1]


def test_what_a_format_cannot_say_is_refused():
    rising = table((1, 4), batch=(2,))
    assert tensorrt_llm_schedule(rising, "1.3", 4) == {1: 1, 4: 4}
    with pytest.raises(TableExportError, match="must be the longest"):
        tensorrt_llm_schedule(rising, "1.2", 4)
    with pytest.raises(TableExportError, match="two numbers"):
        tensorrt_llm_schedule(rising, "newest", 4)
    never = table((0, 0), batch=(2,))
    for export in (
        lambda: vllm_schedule(never, 4),
        lambda: sglang_config(never),
        lambda: tensorrt_llm_schedule(never, "1.2", 4),
    ):
        with pytest.raises(TableExportError, match="never drafts"):
            export()
