"""A testbed whose link changes: one client, its own drafter, and a link that is good and bad by turns.

The twin of several clients has one edge server that drafts for all; how far that is from the target no report
measures, so that no scheduler could follow its link. One client drafts on its own device instead: the same
models, the same times, and a link that it measures itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsd_env.network.series import LinkSeries, load_series
from dsd_env.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from dsd_env.acceptance import TraceSet
    from dsd_env.testbed.against import Served

#: Bandwidth of every piece of a made series: nothing of what the testbed sends takes noticeable time.
_BITS_PER_S = 1e9
_RESAMPLES = 4000
_SEED = 0


def spells(
    seed: int,
    length_s: float,
    *,
    good_s: tuple[float, float, float] = (60.0, 15.0, 180.0),
    bad_s: tuple[float, float, float] = (30.0, 10.0, 90.0),
    delay_s: tuple[float, float] = (0.2, 0.5),
) -> LinkSeries:
    """Return a series of good and bad spells of random length.

    Args:
        seed: Seed of the draws.
        length_s: The series ends with the first bad spell that ends after this time.
        good_s: Mean, least and greatest length of a good spell: exponential, and moved to its bounds.
        bad_s: The same of a bad one.
        delay_s: Bounds of the further one-way delay of a bad spell, uniform.
    """
    draw = np.random.default_rng(seed)
    times, delays = [0.0], []
    while times[-1] < length_s:
        for (mean_s, least_s, most_s), further in ((good_s, 0.0), (bad_s, draw.uniform(*delay_s))):
            lasts_s = float(np.clip(draw.exponential(mean_s), least_s, most_s))
            times.append(round(times[-1] + lasts_s, 3))
            delays.append(round(float(further), 3))
    rates = (_BITS_PER_S,) * len(delays)
    return LinkSeries(tuple(times), rates, rates, tuple(delays))


def on_own_device(
    twin: Mapping[str, Any] | str | Path | Scenario, series: str | Path, **replay: Any
) -> Scenario:
    """Return the twin of one client with the edge's drafter on the client's own device, and a changing link.

    Args:
        twin: A twin of one client (:func:`dsd_env.testbed.twin.variant`).
        series: Path of the link's series.
        replay: Further keys of the link's ``replay``.

    Raises:
        ValueError: The twin has several clients, whose one drafter cannot be on the devices of all.
    """
    base = load_scenario(twin)
    (name,) = base.devices
    if base.devices[name].count != 1:
        raise ValueError(
            f"{base.devices[name].count} clients share one drafter, whose link no report measures: "
            "a changing link needs one client"
        )
    data = base.model_dump(mode="python", exclude_unset=True)
    (edge,) = data.pop("edge_servers").values()
    drafter = {key: value for key, value in edge["drafter"].items() if key != "concurrency"}
    device = {key: value for key, value in data["devices"][name].items() if key != "edge_link"}
    link = device["link"]
    data["devices"] = {name: {**device, "drafter": drafter}}
    data["links"] = {link: {**data["links"][link], "replay": {"file": str(series), **replay}}}
    return load_scenario(data)


def to_train_on(
    twin: Mapping[str, Any] | str | Path | Scenario, series: str | Path, trace: TraceSet, drafter: str
) -> Scenario:
    """Return what a policy for a changing link trains on: other links, and answers of many other questions.

    A twin's own questions are eight; a policy that trains on so few learns them by heart, and is no use with
    others. So acceptance comes of a recording of the same pair, whose kinds of request are equally frequent.

    Args:
        twin: A twin of one client.
        series: Path of the link's series; each episode begins elsewhere in it.
        trace: The recording.
        drafter: Which of its drafters.
    """
    base = on_own_device(twin, series)
    workload, usual = base.workload, next(iter(base.workload.kinds.values()))
    prompts = [kind.prompt_tokens.value for kind in workload.kinds.values()]  # type: ignore[union-attr]
    kinds = {
        kind: {
            "weight": 1.0,
            "slo": usual.slo,
            "acceptance_kinds": [kind],
            "prompt_tokens": {
                "distribution": "lognormal",
                "median": float(np.median(prompts)),
                "sigma": 0.15,
                "high": max(prompts),
            },
            "output_tokens": usual.output_tokens.model_dump(),
        }
        for kind in trace.kinds
    }
    data = base.model_dump(mode="python", exclude_unset=True)
    data["workload"] = {**data["workload"], "kinds": kinds}
    data["acceptance"] = {
        draft: {"source": "trace", "trace": trace.name, "drafter": drafter} for draft in data["acceptance"]
    }
    return load_scenario(data)


def is_bad(series: LinkSeries, at_s: float) -> bool:
    """Return whether the link has a further delay at a time; the series repeats."""
    piece = int(np.searchsorted(series.times_s, at_s % series.length_s, side="right")) - 1
    return series.extra_delay_s[min(piece, len(series.extra_delay_s) - 1)] > 0.0


def gain_by_spell(
    ours: Sequence[Served], theirs: Sequence[Served], path: str | Path
) -> tuple[float, float, float]:
    """Return by how many per cent the mean time of a request is below another way's, with a 95 % interval.

    Ways of different speed ask different questions in the same state of the link, so that requests have no
    partners. Clients ask again when they are answered: a way that is slow in bad spells asks less in them,
    and its mean counts them less, which flatters it. The interval is a bootstrap of each way's requests, of
    those asked in good and in bad spells apart, since the spells are given and not chance.

    Args:
        ours: Requests of one way.
        theirs: Of the other.
        path: The series that both ran with.

    Raises:
        ValueError: One of them has no requests.
    """
    if not ours or not theirs:
        raise ValueError("no requests: no interval")
    series, draw = load_series(path), np.random.default_rng(_SEED)
    means = [_means(way, series, draw) for way in (ours, theirs)]
    gains = 100.0 * (1.0 - means[0] / means[1])
    low, high = np.quantile(gains[1:], (0.025, 0.975))
    return float(gains[0]), float(low), float(high)


def _means(way: Sequence[Served], series: LinkSeries, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return the mean time of a request, and behind it those of resamples."""
    taken = np.array([one.e2e_s for one in way])
    bad = np.array([is_bad(series, one.arrival_s) for one in way])
    sums = np.zeros(_RESAMPLES)
    for spell in (taken[bad], taken[~bad]):
        if len(spell):
            sums += spell[draw.integers(len(spell), size=(_RESAMPLES, len(spell)))].sum(axis=1)
    return np.concatenate([[taken.mean()], sums / len(taken)])
