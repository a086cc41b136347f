"""How many tokens of KV cache fit into a target's GPUs beside weights, activations, graphs and drafters.

The way serving engines count it at start-up, for each of the GPUs that hold a model together::

    kv = utilisation · memory - weights - drafters' weights - activations - engine
    activations = max(bytes a sequence · max_num_seqs, bytes a token · max_num_batched_tokens)

The first activation is that of sampling (logits, their sorting and sums), the second that of a layer. The
engine's part is the CUDA context and captured graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsd_env.latency.profile import LatencyProfile

__all__ = ["ENGINE_BYTES", "UTILISATION", "MemoryShortageError", "kv_capacity_tokens", "sequences_that_fit"]

_GIB = 1024**3

UTILISATION = 0.9
"""Share of a GPU's memory that an engine takes (vLLM's default ``gpu_memory_utilization``)."""

ENGINE_BYTES = round((0.16 + 0.36) * _GIB)
"""What is no tensor, and captured graphs, on each GPU: as start-up logs of vLLM show them (pull request
12126; gpustack/runner 251; graphs took 0.1 to 0.4 GiB in the logs that were looked at)."""


class MemoryShortageError(ValueError):
    """A model or its drafters do not fit into a GPU's memory; the message names what takes how much."""


def kv_capacity_tokens(
    target: LatencyProfile,
    drafters: Sequence[LatencyProfile] = (),
    *,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    utilisation: float = UTILISATION,
) -> int:
    """Return the tokens of KV cache that fit into a target's GPUs.

    A drafter on the same GPUs takes its weights, and its KV of every token that the target holds.

    Args:
        target: Profile of the target, with its memory.
        drafters: Profiles of drafters on the same GPUs.
        max_num_seqs: Largest number of sequences.
        max_num_batched_tokens: Largest number of new tokens in an iteration.
        utilisation: Share of the memory that the engine takes.

    Raises:
        MemoryShortageError: No room is left.
        ValueError: The profile does not say how much memory its GPUs have.
    """
    if target.memory is None:
        raise ValueError(f"{target.name}: memory is missing: the profile does not say how much its GPUs have")
    gpus, memory = target.parallelism, target.memory
    activations = max(
        memory.activation_bytes_per_sequence * max_num_seqs,
        memory.activation_bytes_per_token * max_num_batched_tokens,
    )
    room = gpus * (utilisation * memory.gpu_memory_bytes - activations - ENGINE_BYTES) - target.weight_bytes
    shared = room - sum(drafter.weight_bytes for drafter in drafters)
    per_token = target.kv_bytes_per_token + sum(drafter.kv_bytes_per_token for drafter in drafters)
    tokens = int(shared // per_token)
    if tokens < 1:
        names = ", ".join(
            f"{drafter.name} ({drafter.weight_bytes / _GIB:.2f} GiB of weights)" for drafter in drafters
        )
        raise MemoryShortageError(
            f"{names or target.name} does not fit: {gpus} x {memory.gpu_memory_bytes / _GIB:.2f} GiB at "
            f"{utilisation:.0%} leave {room / _GIB:.2f} GiB beside {target.name}'s weights "
            f"({target.weight_bytes / _GIB:.2f} GiB), activations and graphs"
        )
    return tokens


def sequences_that_fit(
    drafter: LatencyProfile,
    context_tokens: int,
    utilisation: float = UTILISATION,
    *,
    others: Sequence[LatencyProfile] = (),
) -> int | None:
    """Return how many contexts fit into a drafter's own card at once; ``None``: its memory is not known.

    Args:
        drafter: Its profile.
        context_tokens: Longest context, drafts included.
        utilisation: Share of the memory that it may take.
        others: Profiles of other models that lie on the same card.
    """
    if drafter.memory is None:
        return None
    room = drafter.parallelism * utilisation * drafter.memory.gpu_memory_bytes - drafter.weight_bytes
    room -= sum(other.weight_bytes for other in others)
    return max(0, int(room // (drafter.kv_bytes_per_token * context_tokens)))
