"""Fitting the network of adaptive window control with torch, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agents.awc.config import Fit
from dsd_env.schedulers.awc_network import Description, described_features

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class States:
    """States of one condition, and what is to be learned of them.

    Attributes:
        inputs: float32, shape (n, features).
        labels: float32, shape (n, 2): log2(1 + tokens) of window and length beside the target.
    """

    inputs: Floats
    labels: Floats


def split(count: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of conditions to train on, and of those that are held out: at least one of each."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    aside = min(max(1, round(held_out * count)), count - 1)
    return sorted(order[aside:]), sorted(order[:aside])


def fit(states: Sequence[States], settings: Fit, seed: int) -> dict[str, Floats]:
    """Fit a network with Smooth-L1; every condition weighs the same, however many states it has.

    Args:
        states: By condition.
        settings: How.
        seed: Of the first weights and of the order of batches.

    Returns:
        The weights by name, as :class:`dsd_env.schedulers.awc_network.WindowNetwork` takes them.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sum's order, and so the weights, do not depend on the machine's cores
    try:
        return _fit(states, settings, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)


def _fit(states: Sequence[States], settings: Fit, generator: torch.Generator) -> dict[str, Floats]:
    import torch

    inputs = torch.from_numpy(np.concatenate([each.inputs for each in states]))
    labels = torch.from_numpy(np.concatenate([each.labels for each in states]))
    mean = len(inputs) / len(states)
    weights = torch.from_numpy(
        np.concatenate([np.full(len(each.inputs), mean / len(each.inputs), np.float32) for each in states])
    )
    shapes = Description(
        features=described_features(), width=settings.width, blocks=settings.blocks, npz_sha256="0" * 64
    ).shapes()
    arrays = {name: _first(name, shape, generator) for name, shape in shapes.items()}
    optimiser = torch.optim.AdamW(
        list(arrays.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(settings.batch):
            predicted = _forward(arrays, inputs[batch], settings.blocks)
            loss = torch.nn.functional.smooth_l1_loss(predicted, labels[batch], reduction="none").sum(1)
            optimiser.zero_grad()
            (loss * weights[batch]).mean().backward()
            optimiser.step()
        schedule.step()
    return {name: array.detach().numpy().astype(np.float32) for name, array in arrays.items()}


def _first(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return first values: He's for weights; a residual block begins as the identity."""
    import torch

    if name.endswith("bias") or "_b_" in name:
        return torch.zeros(shape, requires_grad=True)
    first: torch.Tensor = torch.randn(shape, generator=generator) * (2.0 / shape[1]) ** 0.5
    return first.requires_grad_()


def _forward(arrays: Mapping[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """Return the outputs, as :meth:`dsd_env.schedulers.awc_network.WindowNetwork.outputs` does in NumPy."""
    hidden = (x @ arrays["in_weight"].T + arrays["in_bias"]).relu()
    for block in range(blocks):
        name = f"block_{block}"
        inner = (hidden @ arrays[f"{name}_a_weight"].T + arrays[f"{name}_a_bias"]).relu()
        hidden = hidden + inner @ arrays[f"{name}_b_weight"].T + arrays[f"{name}_b_bias"]
    return hidden @ arrays["out_weight"].T + arrays["out_bias"]


__all__ = ["States", "fit", "split"]
