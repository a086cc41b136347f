"""What n-gram look-up proposes at every start, against cases made by hand and a plain reading of the rule."""

import numpy as np
import pytest

from dsd_env.calibration.acceptance.ngram import ngram_proposals


def plainly(prompt, output, shortest, longest, limit):
    """For every start: the first earlier place of the longest last n-gram that has one, and what follows."""
    runs, proposed = [], []
    for start in range(len(output) + 1):
        seen, proposal = prompt + output[:start], []
        for n in range(min(longest, len(seen) - 1), shortest - 1, -1):
            places = [i for i in range(len(seen) - n) if seen[i : i + n] == seen[-n:]]
            if places:
                proposal = seen[places[0] + n :][:limit]
                break
        right = [a == b for a, b in zip(proposal, output[start:], strict=False)]
        proposed.append(len(proposal))
        runs.append(right.index(False) if False in right else len(right))
    return runs, proposed


def test_nothing_is_proposed_until_something_repeats():
    prompt, output = [1, 2, 3, 9], [1, 2, 3, 9, 5]
    runs, proposed = ngram_proposals(prompt, output, 3, 7, 20)
    # At start 3 "1 2 3" stood at the beginning, and "9 1 2 3" follows it in the text so far.
    assert proposed.tolist() == [0, 0, 0, 4, 4, 0]
    assert runs.tolist() == [0, 0, 0, 1, 0, 0]
    assert ngram_proposals(prompt, output, 3, 7, 2)[1].tolist() == [0, 0, 0, 2, 2, 0]
    assert not ngram_proposals([0, 1], [2, 3, 4], 1, 3, 5)[1].any()


@pytest.mark.parametrize("seed", range(20))
def test_as_the_rule_reads(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3 + seed % 4, 60).tolist()
    shortest = 1 + seed % 3
    longest = shortest + seed % 4
    runs, proposed = ngram_proposals(tokens[:9], tokens[9:], shortest, longest, 6)
    assert (runs.tolist(), proposed.tolist()) == plainly(tokens[:9], tokens[9:], shortest, longest, 6)
    assert proposed.any()
