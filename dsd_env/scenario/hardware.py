"""Values that a scenario leaves to its hardware: KV pools, and the draft concurrency of edge servers.

A target without ``kv_capacity_tokens`` (or with ``auto``) holds as many tokens as fit into its GPUs' memory
beside weights, activations, graphs and the drafters on the same GPUs. An edge server whose drafter has no
``concurrency`` (or ``auto``) drafts for as many sequences at once as its card's memory holds of the longest
context. Both need latency profiles that state the memory of the GPUs. Values given as numbers must fit, too.
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
    """The hardware's memory is too small or unknown; the message names key, value and range."""


def with_hardware(data: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario's data with the values filled in that depend on the hardware.

    Malformed data are left for the schema to refuse.

    Args:
        data: The data of a scenario as read; they are not changed.

    Raises:
        HardwareError: A model or drafter does not fit, or ``auto`` is given but the memory is unknown.
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
    if profile is not None:
        _check_gpus(key, target, profile)
    if profile is None or profile.memory is None:
        if "kv_capacity_tokens" in target and given == AUTO:
            raise HardwareError(
                f"{key}.kv_capacity_tokens = 'auto': its profile does not say how much memory its GPUs have; "
                f"give 1 to {_MAX_TOKENS:,} tokens"
            )
        return target
    beside = [
        (where, drafter, found)
        for where, drafter in _menu(target, "colocated_drafter")
        if drafter.get("mode", "shared") == "shared"
        and (found := _profile(drafter.get("profile"), f"{key}.{where}", needed=False)) is not None
    ]
    drafters = [profile_of_drafter for _, _, profile_of_drafter in beside]
    named = " and ".join(
        f"{key}.{where}.profile = {drafter.get('profile')!r}" for where, drafter, _ in beside
    )
    sizes: dict[str, int] = {}
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        value = target.get(name, Target.model_fields[name].default)
        if type(value) is int and value > 0:
            sizes[name] = value
    if given == AUTO:
        try:
            tokens = kv_capacity_tokens(profile, drafters, **sizes)
        except MemoryShortageError as error:
            raise HardwareError(_refusal(key, named, error)) from error
        return {**target, "kv_capacity_tokens": min(tokens, _MAX_TOKENS)}
    if type(given) is int:
        _check_given(key, given, named, profile, drafters, sizes)
    return target


def _check_gpus(key: str, target: Mapping[str, Any], profile: LatencyProfile) -> None:
    """Refuse another number of GPUs than the profile's: its times would go with another machine's costs."""
    gpus, power = target.get("gpus"), profile.power
    if isinstance(gpus, int | float) and not isinstance(gpus, bool) and gpus != profile.parallelism:
        raise HardwareError(
            f"{key}.gpus = {gpus:g}, but profile {profile.name!r} is of {profile.parallelism}; give gpus: "
            f"{profile.parallelism} and the power of all of them (the profile says power: {{idle_w: "
            f"{power.idle_w:g}, busy_w: {power.busy_w:g}}}), or a profile of {gpus:g}"
        )


def _check_given(
    key: str,
    given: int,
    named: str,
    profile: LatencyProfile,
    drafters: list[LatencyProfile],
    sizes: dict[str, int],
) -> None:
    """Refuse a KV pool larger than the whole memory of the GPUs, and drafters that do not fit beside it."""
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
        raise HardwareError(_refusal(key, named, error)) from error
    if given > most and named:
        raise HardwareError(
            f"{named} does not fit beside kv_capacity_tokens = {given}: with its weights and KV there is "
            f"room for 1 to {most} tokens (leave kv_capacity_tokens out to have it computed)"
        )


def _refusal(key: str, named: str, error: MemoryShortageError) -> str:
    return f"{named}: {error}" if named else f"{key}.profile: {error}"


def _menu(site: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the drafters of a site as given, each with its key, without entries that are not mappings."""
    several = site.get(f"{key}s")
    listed = list(enumerate(several)) if isinstance(several, list | tuple) else []
    found = [(key, site.get(key)), *((f"{key}s.{rank}", drafter) for rank, drafter in listed)]
    return [(where, drafter) for where, drafter in found if isinstance(drafter, Mapping)]


def _edge_server(key: str, edge: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in how many sequences each drafter drafts at once; the drafters of a server share its card."""
    menu = _menu(edge, "drafter")
    profiles = [_profile(drafter.get("profile"), f"{key}.{where}", needed=False) for where, drafter in menu]
    filled: list[Mapping[str, Any]] = []
    for rank, (where, drafter) in enumerate(menu):
        others = [other for other in (*profiles[:rank], *profiles[rank + 1 :]) if other is not None]
        filled.append(_edge_drafter(f"{key}.{where}", drafter, others, data))
    if all(one is drafter for one, (_, drafter) in zip(filled, menu, strict=True)):
        return edge
    if "drafters" not in edge:
        return {**edge, "drafter": filled[0]}
    rest = iter(filled[1:] if isinstance(edge.get("drafter"), Mapping) else filled)
    several = [next(rest) if isinstance(drafter, Mapping) else drafter for drafter in edge["drafters"]]
    return {**edge, "drafters": several}


def _edge_drafter(
    key: str, drafter: Mapping[str, Any], others: list[LatencyProfile], data: Mapping[str, Any]
) -> Mapping[str, Any]:
    if drafter.get("concurrency", AUTO) != AUTO:
        return drafter
    asked = "concurrency" in drafter
    profile = _profile(drafter.get("profile"), key, needed=asked)
    context = _longest_context(data)
    fitting = None
    if profile is not None and context is not None:
        fitting = sequences_that_fit(profile, context, others=others)
    if fitting is None:
        if asked:
            raise HardwareError(
                f"{key}.concurrency = 'auto': its profile does not say how much memory its card has; "
                f"give 1 to {MAX_CONCURRENCY}"
            )
        return drafter
    if fitting < 1:
        assert profile is not None
        weights_gib = sum(each.weight_bytes for each in (profile, *others)) / 1024**3
        raise HardwareError(
            f"{key}.profile = {profile.name!r} does not fit its card: with {weights_gib:.2f} GiB of weights "
            f"there is no room for a context of {context} tokens"
        )
    return {**drafter, "concurrency": min(fitting, MAX_CONCURRENCY)}


def _profile(choice: object, key: str, *, needed: bool) -> LatencyProfile | None:
    """Return a profile given by name; None for coefficients, which state no memory.

    A wrong name gives None too unless the profile is needed, because the name is refused elsewhere.
    """
    if not isinstance(choice, str):
        return None
    try:
        return load_profile(choice)
    except ProfileError as error:
        if needed:
            raise HardwareError(f"{key}.profile = {choice!r}: {error}") from error
        return None


def _longest_context(data: Mapping[str, Any]) -> int | None:
    """Return the longest context of a request, drafts included; None if its parts are not numbers."""
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
