"""What a scenario leaves to its hardware: KV pools, and how many sequences an edge server drafts at once.

A target without ``kv_capacity_tokens`` (or with ``auto``) holds as many tokens as its GPUs' memory has room
for beside weights, activations, graphs and the drafters on the same GPUs. An edge server whose drafter has no
``concurrency`` (or ``auto``) batches as far as its card holds the longest context. Both need profiles that
say how much memory their GPUs have. What was given in figures must fit, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsd_env.latency.memory import MemoryShortageError, kv_capacity_tokens, sequences_that_fit
from dsd_env.latency.profile import LatencyProfile, ProfileError, load_profile
from dsd_env.scenario.schema import Actions, Target, Workload

AUTO = "auto"
MAX_CONCURRENCY = 256
_MAX_TOKENS = 1_000_000_000


class HardwareError(ValueError):
    """The hardware has no room, or is not known; the message names key, value and range."""


def with_hardware(data: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario's data with what its hardware decides filled in.

    Whatever is not as it should be is left for the schema to refuse.

    Args:
        data: A scenario as read; it is not changed.

    Raises:
        HardwareError: A model or drafter does not fit, or ``auto`` stands where nothing is known.
    """
    filled = dict(data)
    for key, fill in (("targets", _target), ("edge_servers", _edge_server)):
        table = data.get(key)
        if isinstance(table, Mapping):
            filled[key] = {
                name: fill(f"{key}.{name}", entry, data) if isinstance(entry, Mapping) else entry
                for name, entry in table.items()
            }
    return filled


def _target(key: str, target: Mapping[str, Any], _data: Mapping[str, Any]) -> Mapping[str, Any]:
    given = target.get("kv_capacity_tokens", AUTO)
    profile = _profile(target.get("profile"), key, needed=given == AUTO)
    if profile is None or profile.memory is None:
        if "kv_capacity_tokens" in target and given == AUTO:
            raise HardwareError(
                f"{key}.kv_capacity_tokens = 'auto': its profile does not say how much memory its GPUs have; "
                f"give 1 to {_MAX_TOKENS:,} tokens"
            )
        return target
    drafter = target.get("colocated_drafter")
    drafters: list[LatencyProfile] = []
    if isinstance(drafter, Mapping) and drafter.get("mode", "shared") == "shared":
        found = _profile(drafter.get("profile"), f"{key}.colocated_drafter", needed=False)
        drafters = [found] if found is not None else []
    sizes: dict[str, int] = {}
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        value = target.get(name, Target.model_fields[name].default)
        if type(value) is int and value > 0:
            sizes[name] = value
    if given == AUTO:
        try:
            tokens = kv_capacity_tokens(profile, drafters, **sizes)
        except MemoryShortageError as error:
            raise HardwareError(_refusal(key, drafter, drafters, error)) from error
        return {**target, "kv_capacity_tokens": min(tokens, _MAX_TOKENS)}
    if type(given) is int:
        _check_given(key, given, drafter, profile, drafters, sizes)
    return target


def _check_given(
    key: str,
    given: int,
    drafter: Mapping[str, Any] | None,
    profile: LatencyProfile,
    drafters: list[LatencyProfile],
    sizes: dict[str, int],
) -> None:
    """Refuse a pool that the whole memory of the GPUs cannot hold, and drafters that do not fit beside it."""
    try:
        most = kv_capacity_tokens(profile, (), utilisation=1.0, **sizes)
        if given > most:
            raise HardwareError(
                f"{key}.kv_capacity_tokens = {given} does not fit into the memory of {profile.parallelism} x "
                f"{profile.device}: 1 to {most} (at a utilisation of 90 %: "
                f"{kv_capacity_tokens(profile, (), **sizes)})"
            )
        most = kv_capacity_tokens(profile, drafters, utilisation=1.0, **sizes)
    except MemoryShortageError as error:
        raise HardwareError(_refusal(key, drafter, drafters, error)) from error
    if given > most and drafter is not None:
        raise HardwareError(
            f"{key}.colocated_drafter.profile = {drafter.get('profile')!r} does not fit beside "
            f"kv_capacity_tokens = {given}: with its weights and KV there is room for 1 to {most} tokens "
            "(leave kv_capacity_tokens out to have it computed)"
        )


def _refusal(
    key: str, drafter: Mapping[str, Any] | None, drafters: list[LatencyProfile], error: MemoryShortageError
) -> str:
    if drafters and drafter is not None:
        return f"{key}.colocated_drafter.profile = {drafter.get('profile')!r}: {error}"
    return f"{key}.profile: {error}"


def _edge_server(key: str, edge: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    drafter = edge.get("drafter")
    if not isinstance(drafter, Mapping) or drafter.get("concurrency", AUTO) != AUTO:
        return edge
    asked = "concurrency" in drafter
    profile = _profile(drafter.get("profile"), f"{key}.drafter", needed=asked)
    context = _longest_context(data)
    fitting = sequences_that_fit(profile, context) if profile is not None and context is not None else None
    if fitting is None:
        if asked:
            raise HardwareError(
                f"{key}.drafter.concurrency = 'auto': its profile does not say how much memory its card has; "
                f"give 1 to {MAX_CONCURRENCY}"
            )
        return edge
    if fitting < 1:
        assert profile is not None
        raise HardwareError(
            f"{key}.drafter.profile = {profile.name!r} does not fit its card: with "
            f"{profile.weight_bytes / 1024**3:.2f} GiB of weights there is no room for a context of "
            f"{context} tokens"
        )
    return {**edge, "drafter": {**drafter, "concurrency": min(fitting, MAX_CONCURRENCY)}}


def _profile(choice: object, key: str, *, needed: bool) -> LatencyProfile | None:
    """Return a named profile; coefficients have no memory, and a wrong name is refused elsewhere."""
    if not isinstance(choice, str):
        return None
    try:
        return load_profile(choice)
    except ProfileError as error:
        if needed:
            raise HardwareError(f"{key}.profile = {choice!r}: {error}") from error
        return None


def _longest_context(data: Mapping[str, Any]) -> int | None:
    """Return the longest context of a request, drafts included; ``None`` if its parts are no numbers."""
    workload, actions = data.get("workload"), data.get("actions", {})
    if not isinstance(workload, Mapping) or not isinstance(actions, Mapping):
        return None
    parts = [
        workload.get(name, Workload.model_fields[name].default)
        for name in ("max_prompt_tokens", "max_output_tokens")
    ]
    gammas = actions.get("gammas", Actions.model_fields["gammas"].default)
    try:
        return int(sum(parts)) + int(max(gammas))
    except (TypeError, ValueError):
        return None
