"""Measured times of a mixture of experts, and what a layer of it takes by the tokens of an iteration.

A dense MLP is read once, whatever the number of tokens. Of a mixture of experts an iteration reads the
experts that its tokens touch, and more tokens touch more. So a draft costs most where an iteration is
small, and little where a crowd touches all experts anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from dsd_env.calibration.latency.curves import Curve
from dsd_env.calibration.latency.shapes import ExpertsShape

__all__ = ["WARM_BELOW", "ExpertTimes"]

WARM_BELOW = 16
"""Experts below which a measured time is not taken: the weights of so few stay in the cache of a benchmark
that calls one layer again and again (8 experts of Qwen3-30B-A3B are 75 MB, the RTX PRO 6000 caches 128 MB),
and in an iteration of 48 layers they do not. Their time is read off the line through the next two cells."""


@dataclass(frozen=True)
class ExpertTimes:
    """Seconds of a layer's router and experts, by tokens and by experts touched.

    Attributes:
        rows: ``tokens -> curve`` over the number of experts touched; tokens rising.
    """

    rows: Mapping[int, Curve]

    @staticmethod
    def of(seconds: Mapping[tuple[int, int], float]) -> ExpertTimes:
        """Times from ``{(tokens, experts touched): seconds}``.

        Raises:
            ValueError: No number of tokens has two cells with :data:`WARM_BELOW` experts or more.
        """
        cold: dict[int, dict[float, float]] = {}
        for (tokens, touched), duration in seconds.items():
            if touched >= WARM_BELOW:
                cold.setdefault(tokens, {})[float(touched)] = duration
        rows = {}
        for tokens, cells in sorted(cold.items()):
            if len(cells) < 2:
                continue
            (a, first), (b, second) = sorted(cells.items())[:2]
            rows[tokens] = Curve.of({0.0: first - a * (second - first) / (b - a), **cells})
        if not rows:
            raise ValueError(f"no two cells of the same tokens with {WARM_BELOW} experts or more")
        return ExpertTimes(rows)

    def seconds(self, tokens: int, touched: float) -> float:
        """Return the seconds of ``tokens`` tokens that touch so many experts; linear between cells."""
        measured = list(self.rows)
        above = bisect_left(measured, tokens)
        if above == 0:
            return self.rows[measured[0]](touched)
        if above == len(measured):
            return self.rows[measured[-1]](touched) * tokens / measured[-1]
        few, many = measured[above - 1], measured[above]
        # Few tokens were measured with few experts only: from there on they rise as more tokens do.
        edge = min(touched, float(self.rows[few].x[-1]))
        more = self.rows[many]
        low = self.rows[few](edge) + more(touched) - more(edge)
        return low + (more(touched) - low) * (tokens - few) / (many - few)

    def layer_s(self, shape: ExpertsShape, tokens: int) -> float:
        """Return the seconds of a layer for so many tokens, which touch the experts to be expected."""
        return self.seconds(tokens, shape.touched(tokens))
