"""Experiments of papers on parallel and distant drafting, simulated anew: theirs beside what comes out.

A reproduction states claims of a paper, with where each was read, and simulates a set-up in the paper's
shape. Nothing is tuned towards a paper's figure. Where a free constant had to be set by one figure of the
paper, the claim says *calibrated*, and meeting it means nothing. Choices are picked on one seed and measured
on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_env import strict_yaml
from dsd_env.calibration.published.figures import by_number
from dsd_env.scenario import Scenario
from dsd_env.simulate import simulate

PAPERS = Path(__file__).resolve().parent / "papers.yaml"
SEARCH_SEED = 101
SEEDS = (1, 2, 3)
RECALLED = "**recalled, not read**"

Runner = Callable[[Scenario, str, int, str], Mapping[str, float]]
"""What simulates: (scenario, scheduler, seed, engine) -> quantities by name."""


def run(scenario: Scenario, scheduler: str, seed: int, engine: str) -> dict[str, float]:
    """Simulate once.

    Returns:
        ``ms_per_token`` from the first to the last token of the requests, ``tokens_per_s`` of the whole
        system, and the mean time of a request ``e2e_s`` and to its first token ``ttft_s``.
    """
    result = simulate(scenario, scheduler, seed, engine=engine)
    column = {name: result.requests[name].astype(np.float64) for name in ("e2e_s", "ttft_s", "output_tokens")}
    after_first = float((column["output_tokens"] - 1.0).sum())
    decode_s = float((column["e2e_s"] - column["ttft_s"]).sum())
    return {
        "ms_per_token": 1e3 * decode_s / after_first if after_first > 0.0 else math.nan,
        "tokens_per_s": result.metrics["throughput_tokens_per_s"],
        "e2e_s": result.metrics["e2e_s_mean"],
        "ttft_s": result.metrics["ttft_s_mean"],
    }


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: One per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN of a single seed."""
        n = len(self.values)
        return float(np.std(self.values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan

    def __truediv__(self, other: Estimate) -> Estimate:
        """Ratio seed by seed: what the seeds have in common cancels."""
        return Estimate(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def shown(self, digits: int = 2, unit: str = "", sign: bool = False) -> str:
        """Return mean ± standard error in so many digits."""
        form = f"{'+' if sign else ''}.{digits}f"
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.mean:{form}}{error}{unit}"

    def percent(self, digits: int = 1) -> str:
        """Return a ratio as a change in percent."""
        return Estimate(tuple(100.0 * (value - 1.0) for value in self.values)).shown(digits, " %", sign=True)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of several estimates, seed by seed."""
    return Estimate(
        tuple(float(np.mean(each)) for each in zip(*(one.values for one in estimates), strict=True))
    )


class Lab:
    """Runs simulations for reproductions.

    Attributes:
        engine: Engine that simulates, as in :func:`dsd_env.simulate`.
    """

    def __init__(self, runner: Runner = run, engine: str = "auto", seeds: Sequence[int] = SEEDS) -> None:
        """Take what simulates, e.g. one that remembers.

        Args:
            runner: What simulates.
            engine: Which engine.
            seeds: Seeds that figures are measured on; choices are searched on another.
        """
        self._runner = runner
        self.engine = engine
        self._seeds = tuple(seeds)

    def on(self, seeds: int) -> Lab:
        """Return a lab that measures on so few of the seeds, for what takes long to simulate."""
        return Lab(self._runner, self.engine, self._seeds[:seeds])

    def measure(self, scenario: Scenario, scheduler: str, quantity: str = "ms_per_token") -> Estimate:
        """Return a quantity over the seeds."""
        rows = [self._runner(scenario, scheduler, seed, self.engine) for seed in self._seeds]
        return Estimate(tuple(row[quantity] for row in rows))

    def best(
        self, choices: Iterable[tuple[Scenario, str]], quantity: str = "ms_per_token", largest: bool = False
    ) -> tuple[Scenario, str]:
        """Return the scenario and scheduler with the least (or most) of a quantity on the search seed."""

        def cost(choice: tuple[Scenario, str]) -> float:
            found = self._runner(choice[0], choice[1], SEARCH_SEED, self.engine)[quantity]
            return -found if largest else found

        return min(choices, key=cost)


def windows(scenario: Scenario, gammas: Iterable[int], place: str) -> list[tuple[Scenario, str]]:
    """Return the static choices of a speculation length or window at one place."""
    return [(scenario, f"static:{gamma}:1:{place}") for gamma in gammas]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper beside what was simulated.

    Attributes:
        what: What is claimed.
        paper: The paper's figure.
        read: Where it was read, or that it was not.
        ours: What came out.
        calibrated: Whether a constant of the set-up was set by this very figure.
    """

    what: str
    paper: str
    read: str
    ours: str
    calibrated: bool = False


@dataclass(frozen=True)
class Reproduction:
    """A paper's experiment, simulated.

    Attributes:
        name: Short name: of the command, of the facts and of the block of the page.
        set_up: The set-up in a few words, for the overview.
        ours: How it is built here, and what is assumed.
        claims: Simulates and returns the claims, the one for the overview first.
        why: Why the figures differ, in a few sentences.
        short: The same for the overview.
    """

    name: str
    set_up: str
    ours: str
    claims: Callable[[Lab, Mapping[str, Any]], list[Claim]]
    why: str
    short: str


def load_papers() -> Mapping[str, Any]:
    """Return the papers' figures by name of the reproduction."""
    return {str(name): by_number(part) for name, part in strict_yaml.load(PAPERS).items()}


def results_of(reproduction: Reproduction, lab: Lab, papers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Simulate a reproduction; return its claims as plain data."""
    return [asdict(claim) for claim in reproduction.claims(lab, papers[reproduction.name])]


def block(reproduction: Reproduction, facts: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]) -> str:
    """Return a reproduction's part of the page."""
    arxiv = facts["arxiv"]
    lines = [
        f"{facts['title']}, [arXiv {arxiv}](https://arxiv.org/abs/{arxiv}).",
        "",
        f"*Theirs.* {facts['setting'].strip()}",
        "",
        f"*Ours.* {reproduction.ours}",
        "",
        "| claim | paper | read in | ours |",
        "|---|---|---|---|",
    ]
    for claim in claims:
        ours = claim["ours"] + (" (calibrated)" if claim["calibrated"] else "")
        lines.append(f"| {claim['what']} | {claim['paper']} | {claim['read']} | {ours} |")
    return "\n".join([*lines, "", f"*Why they differ.* {reproduction.why}"])


def overview(
    reproductions: Iterable[Reproduction],
    papers: Mapping[str, Any],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Return the table with a line for each paper: the first of its claims."""
    lines = ["| paper | set-up | claim | theirs | ours | why they differ |", "|---|---|---|---|---|---|"]
    for each in reproductions:
        title = str(papers[each.name]["title"]).partition(":")[0]
        first = found[each.name][0]
        theirs = first["paper"] + (f" ({RECALLED})" if first["read"] == RECALLED else "")
        lines.append(
            f"| {title} | {each.set_up} | {first['what']} | {theirs} | {first['ours']} | {each.short} |"
        )
    return "\n".join(lines)


def crossing(xs: Sequence[float], ys: Sequence[float], level: float = 1.0) -> float:
    """Return where a rising curve reaches a level, linear between its points; NaN outside of them."""
    points: NDArray[np.float64] = np.array(ys) - level
    for x0, x1, y0, y1 in zip(xs, xs[1:], points, points[1:], strict=False):
        if y0 <= 0.0 <= y1:
            return float(x0 if y1 == y0 else x0 - y0 * (x1 - x0) / (y1 - y0))
    return math.nan
