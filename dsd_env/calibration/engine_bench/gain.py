"""How much one way of decoding gains on others in an engine, from runs that took turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_env.calibration.engine_bench.runs import Run

DRAWS = 10_000
"""Bootstrap draws of an interval."""


class Gain(NamedTuple):
    """What one setting takes less than another.

    Attributes:
        setting: The other setting.
        clients: Clients side by side; None: all runs together.
        e2e_s: Mean request time of the other setting, seconds.
        own_e2e_s: Mean request time of the one.
        gain_pct: Request time that the one takes less, per cent of the other's; negative: more.
        low_pct: Lower end of its 95 % interval.
        high_pct: Upper end.
    """

    setting: str
    clients: int | None
    e2e_s: float
    own_e2e_s: float
    gain_pct: float
    low_pct: float
    high_pct: float


def gains(runs: Sequence[Run], of: str) -> list[Gain]:
    """Return what a setting gains on every other one, by number of clients and over all.

    All settings ran the same questions in every repeat, and took turns. The interval is a bootstrap over
    repeats and questions, each drawn with replacement, of the ratio of mean request times: over repeats,
    since a machine is faster at one time than at another, and over questions, since others would be asked.

    Args:
        runs: At least two repeats; ``facts["repeat"]`` numbers them.
        of: Name of the setting.

    Raises:
        ValueError: It is not among the runs, there are fewer than two repeats, or a setting lacks runs.
    """
    names = list(dict.fromkeys(run.setting for run in runs))
    if of not in names:
        raise ValueError(f"no run of {of!r}; there are {names}")
    repeats = sorted({int(run.facts.get("repeat", 0)) for run in runs})
    if len(repeats) < 2:
        raise ValueError("an interval needs at least two repeats: measure with --repeats")
    clients = sorted({run.clients for run in runs})
    times: dict[tuple[str, int], NDArray[np.float64]] = {}
    for name in names:
        for number in clients:
            same = [run for run in runs if (run.setting, run.clients) == (name, number)]
            own = {int(run.facts.get("repeat", 0)): run for run in same}
            if sorted(own) != repeats:
                raise ValueError(
                    f"{name!r} with {number} clients ran in repeats {sorted(own)}, not in {repeats}; "
                    "the measurement was cut short: measure again"
                )
            times[name, number] = np.array([[a.e2e_s for a in own[each].answers] for each in repeats])
    found = []
    for name in names:
        if name == of:
            continue
        asked: list[int | None] = [*clients]
        if len(clients) > 1:
            asked.append(None)
        for of_clients in asked:
            blocks = clients if of_clients is None else [of_clients]
            own_s, other_s = ([times[which, block] for block in blocks] for which in (of, name))
            found.append(_gain(name, of_clients, own_s, other_s))
    return found


def _gain(
    name: str, clients: int | None, own: list[NDArray[np.float64]], other: list[NDArray[np.float64]]
) -> Gain:
    """Return the gain over blocks of request times, each of shape (repeats, questions)."""
    generator = np.random.default_rng(0)
    repeats = own[0].shape[0]
    sums = np.zeros((2, DRAWS))
    chosen = generator.integers(repeats, size=(DRAWS, repeats))
    for one, two in zip(own, other, strict=True):
        asked = generator.integers(one.shape[1], size=(DRAWS, one.shape[1]))
        for row, values in enumerate((one, two)):
            # The mean over drawn repeats of each question, then over drawn questions.
            sums[row] += np.take_along_axis(values[chosen].mean(axis=1), asked, axis=1).sum(axis=1)
    ratios = 100.0 * (1.0 - sums[0] / sums[1])
    low, high = np.quantile(ratios, [0.025, 0.975])
    count = sum(block.size for block in own)
    mean, reference = (sum(float(block.sum()) for block in blocks) / count for blocks in (own, other))
    return Gain(name, clients, reference, mean, 100.0 * (1.0 - mean / reference), float(low), float(high))


def lengths(runs: Sequence[Run], setting: str) -> dict[tuple[int, str], list[float]]:
    """Return how often a setting verified 0, 1, ... drafts, as shares of its rounds.

    Args:
        runs: The runs.
        setting: Name of the setting.

    Returns:
        By clients and kind of question.
    """
    counts: dict[tuple[int, str], dict[int, int]] = {}
    for run in runs:
        if run.setting != setting:
            continue
        for answer in run.answers:
            own = counts.setdefault((run.clients, answer.kind), {})
            for each in answer.rounds:
                own[each.drafted] = own.get(each.drafted, 0) + 1
    return {
        key: [own.get(k, 0) / sum(own.values()) for k in range(max(own) + 1)]
        for key, own in sorted(counts.items())
        if own
    }


def markdown(found: Sequence[Gain], decided: dict[tuple[int, str], list[float]], of: str) -> str:
    """Return the tables of documentation: gains, and what was decided."""
    clients = list(dict.fromkeys(each.clients for each in found))
    titles = ["all" if n is None else f"{n} client{'s' * (n > 1)}" for n in clients]
    lines = [f"| {of} against | " + " | ".join(titles) + " |", "|---" * (len(clients) + 1) + "|"]
    by_key: dict[tuple[str, int | None], Gain] = {(each.setting, each.clients): each for each in found}
    for name in dict.fromkeys(each.setting for each in found):
        cells = [_cell(by_key[name, number]) for number in clients]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Rounds of `{of}` by drafts verified:", ""]
    most = max((len(shares) for shares in decided.values()), default=0)
    lines.append("| clients | kind | " + " | ".join(str(k) for k in range(most)) + " |")
    lines.append("|---" * (most + 2) + "|")
    for (number, kind), shares in decided.items():
        padded = [*shares, *[0.0] * (most - len(shares))]
        lines.append(f"| {number} | {kind} | " + " | ".join(f"{100 * each:.0f} %" for each in padded) + " |")
    return "\n".join(lines)


def _cell(gain: Gain) -> str:
    told = f"{gain.gain_pct:+.1f} % ({gain.low_pct:+.1f} to {gain.high_pct:+.1f})"
    sure = gain.low_pct > 0.0 or gain.high_pct < 0.0
    return f"{gain.own_e2e_s:.2f} / {gain.e2e_s:.2f} s: " + (f"**{told}**" if sure else told)


def as_dicts(found: Sequence[Gain]) -> list[dict[str, Any]]:
    """Return the gains as what JSON can hold."""
    return [each._asdict() for each in found]
