"""The actor network in NumPy with float32, and the rule that turns the network's logits into an action.

The trainers (Stable-Baselines3's PPO, sb3-contrib's MaskablePPO) do not take the argmax of the logits. They
normalise the logits (x - logsumexp(x), in float32, once or twice), apply the mask, take the softmax, and then
the first maximum. In exact arithmetic the result is the same, but not in float32: normalised logits are
around -3, where neighbouring floats are 2.4e-7 apart, while raw logits of a young network are around 0.01,
where floats are a hundred times denser. Two logits that differ by less than the coarser spacing become
*equal* after normalisation, and the first wins even if the second was larger. This happens in some thirty of
a million states of an untrained network.

So this module takes the plain masked argmax. If a logit at an earlier index is so close to the maximum that
rounding could make the two equal, it repeats the trainer's own sequence of float32 operations for that
dimension.

What can still differ is the order in which the libraries add products and powers. That order depends on the
processor's vector width, so even two machines that run the trainer itself may disagree. It can matter only
where two logits are within a few float32 spacings of each other *and* of a rounding boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_MASKED_LOGIT = np.float32(-1e8)
"""The value with which sb3-contrib replaces a masked logit."""

_ROUNDING = 2.0**-24
"""Largest relative rounding error of one float32 operation."""
_LARGE = 4.0
"""Multiple of the expected size of an activation that counts as a large activation."""
_DOUBTS = 16.0
"""Multiple of the expected difference between two ways to compute a logit that counts as possible."""

Float32 = NDArray[np.float32]
Real = NDArray[np.floating[Any]]
"""Arrays that are converted to float32 on input."""


class MlpActor:
    """A multilayer perceptron with a masked argmax per action dimension.

    An actor computes in its own buffers: use one instance per thread (:meth:`copy` shares the weights).

    Attributes:
        nvec: Sizes of the action dimensions.
        n_inputs: Length of the observation.
        activation: Activation between the layers.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Real, Real]],
        activation: Literal["tanh", "relu"],
        nvec: Sequence[int],
        normalisations: Literal[0, 1, 2] = 2,
    ) -> None:
        """Set the weights.

        Args:
            layers: (weight (out, in), bias (out,)) per layer, float32, from input to logits.
            activation: Activation between the layers; the last layer is linear.
            nvec: Sizes of the action dimensions, which sum to the number of logits; a single size for flat
                actions.
            normalisations: How often the trainer normalises the logits; see
                :class:`dsd_env.policy.manifest.Network`.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        self.nvec = tuple(int(n) for n in nvec)
        self.activation = activation
        self.normalisations = normalisations
        self.layers = [
            (np.ascontiguousarray(w, dtype=np.float32), np.asarray(b, dtype=np.float32)) for w, b in layers
        ]
        widths = [self.layers[0][0].shape[1]] + [w.shape[0] for w, _ in self.layers]
        for index, (weight, bias) in enumerate(self.layers):
            if weight.shape != (widths[index + 1], widths[index]) or bias.shape != (widths[index + 1],):
                raise ValueError(f"layer {index}: weight {weight.shape} and bias {bias.shape} do not fit")
        if sum(self.nvec) != widths[-1]:
            raise ValueError(f"{widths[-1]} logits cannot serve action dimensions {self.nvec}")
        self.n_inputs = widths[0]
        self.n_logits = widths[-1]
        self._bounds = tuple(pairwise(accumulate(self.nvec, initial=0)))
        self._doubts: dict[float, float] = {}
        # Products with several observations read the weights by input, so keep them transposed as well.
        self._by_input = [np.ascontiguousarray(weight.T) for weight, _ in self.layers]
        self._many = [np.empty((0, n), dtype=np.float32) for n in widths[1:]]
        self._buffers = [np.empty(n, dtype=np.float32) for n in widths[1:]]
        self._hidden = [(w, b, out) for (w, b), out in zip(self.layers[:-1], self._buffers[:-1], strict=True)]
        self._last = (*self.layers[-1], self._buffers[-1])

    def copy(self) -> MlpActor:
        """Return an actor with the same weights and buffers of its own."""
        return MlpActor(self.layers, self.activation, self.nvec, self.normalisations)

    def logits(self, observation: Real) -> Float32:
        """Return the logits of one observation, before masking.

        Args:
            observation: float32, shape (n_inputs,).

        Returns:
            float32, shape (sum(nvec),): a buffer that the next call overwrites.

        Raises:
            ValueError: The shape is wrong, or a value is not finite.
        """
        x = np.asarray(observation, dtype=np.float32)
        if x.shape != (self.n_inputs,):
            raise ValueError(f"the observation has shape {x.shape}, the policy reads ({self.n_inputs},)")
        # The product is finite exactly if all entries are (and none is astronomically large); this is three
        # times faster than isfinite().all().
        if not np.dot(x, x) < np.inf:
            raise ValueError("the observation holds a value that is not finite")
        if self.activation == "tanh":
            for weight, bias, out in self._hidden:
                np.dot(weight, x, out=out)
                np.add(out, bias, out=out)
                x = np.tanh(out, out=out)
        else:
            for weight, bias, out in self._hidden:
                np.dot(weight, x, out=out)
                np.add(out, bias, out=out)
                x = np.maximum(out, 0.0, out=out)
        weight, bias, out = self._last
        np.dot(weight, x, out=out)
        return np.add(out, bias, out=out)

    def logits_of_many(self, observations: Float32) -> tuple[Float32, float]:
        """Return the logits of several observations, computed by one matrix product per layer.

        A matrix product adds in another order than :meth:`logits`, so its results may differ in the last
        digits. The second return value bounds the effect: a logit that is the maximum by more than this
        tolerance is the maximum either way.

        Args:
            observations: float32, shape (n, n_inputs), all finite.

        Returns:
            The logits, float32, shape (n, sum(nvec)), in a buffer that the next call overwrites; and the
            tolerance: how far the difference of two logits may be from that of :meth:`logits`.
        """
        n = len(observations)
        if len(self._many[0]) < n:
            self._many = [np.empty((n, weight.shape[0]), dtype=np.float32) for weight, _ in self.layers]
        x = observations
        largest = max(float(x.max(initial=1.0)), -float(x.min(initial=-1.0)))
        for index, (weight, room) in enumerate(zip(self._by_input, self._many, strict=True)):
            out, bias = room[:n], self.layers[index][1]
            np.dot(x, weight, out=out)
            x = np.add(out, bias, out=out)
            if index == len(self.layers) - 1:
                break
            x = np.tanh(x, out=x) if self.activation == "tanh" else np.maximum(x, 0.0, out=x)
        return x, self._doubt(largest)

    def _doubt(self, largest: float) -> float:
        """Return how far the difference of two logits may depend on the order of additions.

        Rounding errors are taken to be independent. Each of the n additions of a product may be off by one
        rounding of a sum as large as the root of the sum of squares; this counts twice, once for each of the
        two orders. Later layers add such errors in squares, too, and activations enlarge none. The result is
        `_DOUBTS` times the error expected in this way.

        Args:
            largest: Largest absolute value among the inputs.
        """
        if largest in self._doubts:
            return self._doubts[largest]
        reach = largest
        variance = np.zeros(self.n_inputs)
        for index, (weight, bias) in enumerate(self.layers):
            w2, b2 = np.square(weight, dtype=np.float64), np.square(bias, dtype=np.float64)
            n = weight.shape[1] + 1
            squares = w2.sum(axis=1) * reach**2 + b2
            variance = w2 @ variance + 2.0 * n * _ROUNDING**2 * squares
            if index == len(self.layers) - 1:
                break
            if self.activation == "tanh":
                variance += (2.0 * _ROUNDING) ** 2
                reach = 1.0
            else:
                reach = _LARGE * math.sqrt(float(squares.max()))
        doubt = _DOUBTS * math.sqrt(2.0 * float(variance.max()))
        if len(self._doubts) < 16:
            self._doubts[largest] = doubt
        return doubt

    def action(self, observation: Real, mask: NDArray[np.bool_] | None = None) -> list[int]:
        """Return the deterministic action: one index per dimension.

        Args:
            observation: float32, shape (n_inputs,).
            mask: bool, shape (sum(nvec),), True where selectable; None: everything is selectable.

        Raises:
            ValueError: A shape is wrong, a value is not finite, or a dimension has nothing to select.
        """
        logits = self.logits(observation)
        return choose(logits, mask, self._bounds, self.normalisations)


def choose(
    logits: Float32,
    mask: NDArray[np.bool_] | None,
    bounds: tuple[tuple[int, int], ...],
    normalisations: int,
) -> list[int]:
    """Return the index chosen in every dimension, with the trainer's treatment of ties.

    Args:
        logits: float32, shape (n,).
        mask: bool, shape (n,); None: all True.
        bounds: (start, stop) of every dimension within the logits.
        normalisations: 0 (DQN), 1 (PPO, A2C) or 2 (MaskablePPO).

    Raises:
        ValueError: The mask has a wrong shape, a dimension has nothing to select, or logits are not finite.
    """
    values = logits.tolist()
    if mask is None:
        allowed = [True] * len(values)
    else:
        if mask.shape != logits.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the policy needs {logits.shape}")
        allowed = mask.tolist()
    chosen: list[int] = []
    # A loop over some thirty Python floats is faster here than NumPy calls on three short slices.
    for start, stop in bounds:
        best, top, earlier, masked = -1, -np.inf, -np.inf, -np.inf
        for index in range(start, stop):
            value = values[index]
            if allowed[index]:
                if value > top:
                    earlier, top, best = top, value, index
            elif value > masked:
                masked = value
        if best < 0:
            raise ValueError(
                f"the mask leaves nothing to select in dimension {len(chosen)}, or the logits are not finite"
            )
        # Normalised logits have about the size of `reach`; there, one float32 rounding is at most 1.2e-7 of
        # that size.
        reach = 4.0 + abs(top) + max(masked - top, 0.0)
        if normalisations and top - earlier <= 1e-6 * reach:
            part = np.asarray(allowed[start:stop], dtype=np.bool_)
            chosen.append(_as_the_trainer(logits[start:stop], part, normalisations))
        else:
            chosen.append(best - start)
    return chosen


def _as_the_trainer(logits: Float32, mask: NDArray[np.bool_], normalisations: int) -> int:
    """Return the first maximum of the softmax, computed by the trainer's float32 operations one by one."""
    x = _normalise(logits)
    if normalisations == 2:
        x = _normalise(np.where(mask, x, _MASKED_LOGIT))
    powers = _exp(x - x.max())
    probabilities = powers / _sum(powers)
    # PPO itself has no mask, but a mask that is given must be respected.
    return int(np.argmax(np.where(mask, probabilities, np.float32(-1.0))))


def _normalise(x: Float32) -> Float32:
    top = x.max()
    total = _sum(_exp(x - top))
    normalised: Float32 = x - (np.float32(np.log(np.float64(total))) + top)
    return normalised


def _exp(x: Float32) -> Float32:
    # Round only once: NumPy's float32 exp rounds exp(-1.2e-7) to the wrong neighbour, which decides ties.
    rounded: Float32 = np.exp(x.astype(np.float64)).astype(np.float32)
    return rounded


def _sum(x: Float32) -> np.float32:
    # Add one after the other, as torch adds up to eight numbers; NumPy adds in pairs.
    return np.float32(np.add.accumulate(x)[-1])
