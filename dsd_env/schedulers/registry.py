"""The registry of schedulers: builds schedulers from names on command lines and in configuration files.

The arguments of a scheduler contain no commas, so commas can separate schedulers in a list.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsd_env.control import Site
from dsd_env.schedulers.adaptive import AdaptiveScheduler
from dsd_env.schedulers.awc import APART, AwcScheduler, awc_parts, shipped_network
from dsd_env.schedulers.awc_network import load_network
from dsd_env.schedulers.base import Scheduler, SchedulerError
from dsd_env.schedulers.by_load import ByLoadScheduler
from dsd_env.schedulers.clairvoyant import ClairvoyantScheduler
from dsd_env.schedulers.fleet import FleetPolicyScheduler
from dsd_env.schedulers.goodput import GoodputScheduler
from dsd_env.schedulers.goodput_parameters import GoodputParameters
from dsd_env.schedulers.hf import HfHeuristicScheduler
from dsd_env.schedulers.lengths import LENGTHS, length_rule
from dsd_env.schedulers.policy import PolicyScheduler
from dsd_env.schedulers.random_choice import RandomScheduler
from dsd_env.schedulers.routing import ROUTE_USAGES, make_route
from dsd_env.schedulers.rules import SITES
from dsd_env.schedulers.static import (
    EDGE_FIRST,
    StaticChoice,
    StaticMapScheduler,
    StaticScheduler,
    format_batch,
)
from dsd_env.schedulers.stops import STOPS
from dsd_env.schedulers.table import TableScheduler, load_table

_BRANCHES = "+branches"
"""Suffix of a place at which streams are to have branches."""
_PLUS = rf"\+(?!{_BRANCHES[1:]}(?:[+@]|$))"
"""Pattern of the plus that separates the parts of a specification and does not begin :data:`_BRANCHES`."""
_PACK = "pack"
"""Prefix of the packing bounds that take the place of a target, if a choice packs targets."""
MAX_BATCH_SIZE = 4096
MAX_GAMMA = 64
MAX_REQUESTS = 1_000_000
_RULES = {**LENGTHS, **STOPS}
"""Rules for the speculation length, by name."""
DEFAULT_GAMMA = 4
_TUNED = "tuned"
"""Placeholder in benchmark files for a specification that tuning has found."""


@dataclass(frozen=True, slots=True)
class SchedulerEntry:
    """One name of the registry.

    Attributes:
        usage: Syntax of the specification, e.g. ``colocated_sd:G[:B]``.
        help: What the scheduler does, in one sentence.
        build: Function that builds the scheduler from the text after the first colon ("" without a colon).
    """

    usage: str
    help: str
    build: Callable[[str], Scheduler]


def make_scheduler(spec: str | Scheduler) -> Scheduler:
    """Return the scheduler for a specification.

    Args:
        spec: ``NAME`` or ``NAME:ARGUMENTS`` (see :func:`scheduler_help`), or a scheduler, which is
            returned unchanged.

    Raises:
        SchedulerError: The name is unknown or an argument is wrong; the message says what is allowed.
    """
    if not isinstance(spec, str):
        if isinstance(spec, Scheduler):
            return spec
        raise SchedulerError(
            "a scheduler is a specification such as 'colocated_sd:4', or an object with name, reset and "
            f"decide; got {type(spec).__name__}"
        )
    name, _, arguments = spec.strip().partition(":")
    entry = _ENTRIES.get(name)
    if name == _TUNED:
        raise SchedulerError(
            f"{spec!r} is known in files of benchmarks alone, where it stands for what tuning found in a "
            "scenario. The specification to write here is the `scheduler` of that scenario in "
            "configs/tune/core.json; `python scripts/benchmark_suite.py --scenarios SCENARIO` runs the "
            "benchmark's own"
        )
    if entry is None:
        close = difflib.get_close_matches(name, _ENTRIES, n=1)
        if close:
            usage = _ENTRIES[close[0]].usage
            raise SchedulerError(
                f"unknown scheduler {name!r}; did you mean {close[0]!r}? It is written {usage}; "
                "`dsd-env schedulers` lists all"
            )
        known = ", ".join(entry.usage for entry in _ENTRIES.values())
        raise SchedulerError(f"unknown scheduler {name!r}. Known are: {known}")
    return entry.build(arguments)


def scheduler_names() -> tuple[str, ...]:
    """Return the names of all schedulers."""
    return tuple(_ENTRIES)


def scheduler_entries() -> dict[str, SchedulerEntry]:
    """Return the registry entry of each scheduler, by name."""
    return dict(_ENTRIES)


def scheduler_help() -> str:
    """Return one line per scheduler, with its syntax and what it does."""
    width = max(len(entry.usage) for entry in _ENTRIES.values())
    return "\n".join(f"{entry.usage:<{width}}  {entry.help}" for entry in _ENTRIES.values())


def _split(name: str, arguments: str, most: int) -> list[str]:
    parts = arguments.split(":") if arguments else []
    if len(parts) > most:
        raise SchedulerError(f"{name}: too many arguments in {arguments!r}; write {_ENTRIES[name].usage}")
    return parts


def _integer(name: str, what: str, text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise SchedulerError(f"{name}: {what} = {text!r} must be a whole number in {low}..{high}")
    return value


def _gamma(name: str, text: str, low: int = 1) -> int:
    return _integer(name, "speculation length G", text, low, MAX_GAMMA)


def _batch(name: str, text: str) -> int:
    return _integer(name, "batch size B", text, 1, MAX_BATCH_SIZE)


def _no_arguments(name: str, arguments: str) -> None:
    _split(name, arguments, 0)


def _build_random(arguments: str) -> Scheduler:
    _no_arguments("random", arguments)
    return RandomScheduler()


def _build_cloud_ar(arguments: str) -> Scheduler:
    parts = _split("cloud_ar", arguments, 1)
    batch = _batch("cloud_ar", parts[0]) if parts else 1
    return StaticScheduler(f"cloud_ar{format_batch(batch)}", StaticChoice(0, batch, ()))


def _gamma_and_batch(name: str, arguments: str) -> tuple[int, int]:
    parts = _split(name, arguments, 2)
    gamma = _gamma(name, parts[0]) if parts else DEFAULT_GAMMA
    return gamma, _batch(name, parts[1]) if len(parts) > 1 else 1


def _build_colocated(arguments: str) -> Scheduler:
    gamma, batch = _gamma_and_batch("colocated_sd", arguments)
    name = f"colocated_sd:{gamma}{format_batch(batch)}"
    return StaticScheduler(name, StaticChoice(gamma, batch, (Site.COLOCATED,)))


def _build_edge(arguments: str) -> Scheduler:
    gamma, batch = _gamma_and_batch("edge_sd", arguments)
    return StaticScheduler(f"edge_sd:{gamma}{format_batch(batch)}", StaticChoice(gamma, batch, EDGE_FIRST))


def _site(name: str, text: str) -> Site:
    if text not in SITES:
        raise SchedulerError(f"{name}: draft site {text!r} is not one of {', '.join(SITES)}")
    return SITES[text]


def _build_hf(arguments: str) -> Scheduler:
    parts = _split("hf_heuristic", arguments, 2)
    word = parts[0] if parts else "colocated"
    batch = _batch("hf_heuristic", parts[1]) if len(parts) > 1 else 1
    return HfHeuristicScheduler(
        f"hf_heuristic:{word}{format_batch(batch)}", _preferred("hf_heuristic", word), batch
    )


def _preferred(name: str, word: str) -> tuple[Site, ...]:
    """Return the draft sites for a word, in order of preference.

    ``colocated`` has no substitute; for the other sites, the remaining sites follow as substitutes.
    """
    site = _site(name, word)
    return (site,) if site == Site.COLOCATED else (site, *(s for s in EDGE_FIRST if s != site))


def _build_adaptive(arguments: str) -> Scheduler:
    parts = _split("adaptive", arguments, 4)
    if not parts:
        raise SchedulerError(
            f"adaptive: needs a rule for the length: a whole number, table+N=G+..., {', '.join(_RULES)}"
        )
    return _joined("adaptive", parts[0], f"adaptive:{parts[0]}", parts[1:])


def _joined(name: str, length: str, begin: str, parts: Sequence[str]) -> Scheduler:
    """Build a scheduler from a rule for the speculation length, with site, route and batch size if given.

    Args:
        name: Name of the scheduler.
        length: The rule, as :func:`length_rule` reads it.
        begin: Beginning of the scheduler's specification.
        parts: Site, route and B, as far as they are given.
    """
    try:
        rule = length_rule(length, MAX_GAMMA, _RULES)
    except SchedulerError as error:
        if length.partition("+")[0] == name:
            raise
        raise SchedulerError(f"{name}: {error}") from None
    word = parts[0] if parts else "colocated"
    route = parts[1] if len(parts) > 1 else "jsq"
    try:
        make_route(route)
    except ValueError as error:
        raise SchedulerError(f"{name}: {error}") from None
    batch = _batch(name, parts[2]) if len(parts) > 2 else 1
    specification = f"{begin}:{word}:{route}{format_batch(batch)}"
    return AdaptiveScheduler(specification, rule, _preferred(name, word), route, batch)


def _stopping(name: str, default: float | None) -> Callable[[str], Scheduler]:
    """Return the builder of a rule that stops within a draft, from threshold, site, route and batch size."""

    def build(arguments: str) -> Scheduler:
        parts = _split(name, arguments, 4)
        if not parts and default is None:
            raise SchedulerError(f"{name}: needs a threshold; write {_ENTRIES[name].usage}")
        threshold = parts[0] if parts else f"{default:g}"
        if threshold in SITES:
            raise SchedulerError(
                f"{name}: the threshold comes before the site: write {name}:NUMBER:{threshold}"
                + ("" if default is None else f", as {name}:{default:g}:{threshold}")
            )
        return _joined(name, f"{name}+threshold={threshold}", f"{name}:{threshold}", parts[1:])

    return build


def _build_goodput(arguments: str) -> Scheduler:
    values: dict[str, float] = {}
    for part in filter(None, arguments.split("+")):
        key, equals, text = part.partition("=")
        if not equals:
            key, text = "load_weight", part
        if key not in GoodputParameters.names():
            raise SchedulerError(
                f"jsq_goodput: unknown parameter {key!r}; known are {', '.join(GoodputParameters.names())}"
            )
        if key in values:
            raise SchedulerError(f"jsq_goodput: parameter {key!r} is given twice in {arguments!r}")
        try:
            values[key] = float(text)
        except ValueError:
            raise SchedulerError(f"jsq_goodput: {key} = {text!r} is not a number") from None
    if 0.0 < values.get("hopeless", 0.0) < 1.0:
        raise SchedulerError(
            f"jsq_goodput: hopeless = {values['hopeless']:g} must be 0, off, or at least 1: below that "
            "requests would be given up that still keep their bounds"
        )
    canonical = "+".join(f"{key}={value:g}" for key, value in sorted(values.items()))
    parameters = GoodputParameters(**values)  # type: ignore[arg-type] # whole numbers are made so there
    return GoodputScheduler(f"jsq_goodput:{canonical}" if canonical else "jsq_goodput", parameters)


def _place(name: str, gamma: int, batch: int, place: str) -> StaticChoice:
    if place == "plain":
        return StaticChoice(0, batch, ())
    branches = place.endswith(_BRANCHES)
    place = place.removesuffix(_BRANCHES)
    site, colon, drafter = place.partition(":")
    words = site.split("-")
    _check_sites(name, place, words)
    if colon and not drafter:
        raise SchedulerError(f"{name}: placement {place!r} names no drafter after the colon")
    if colon and len(words) > 1:
        raise SchedulerError(f"{name}: placement {place!r} names a drafter and several sites; name one site")
    sites = tuple(SITES[word] for word in words)
    return StaticChoice(gamma, batch, sites, drafter or None, branches=branches)


def _check_sites(name: str, place: str, words: Sequence[str]) -> None:
    """Check the sites of a place, each of which substitutes for the one before."""
    chain = (
        "a site, or several such as 'edge-own-colocated', of which each stands in where the one before cannot"
    )
    for number, word in enumerate(words):
        if word in words[:number]:
            raise SchedulerError(f"{name}: placement {place!r} names {word!r} twice; a place is {chain}")
        if word in SITES:
            continue
        close = difflib.get_close_matches(word, SITES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if word == "plain":
            hint = "; plain decoding stands alone, and is what is done anyway where nothing can draft"
        raise SchedulerError(
            f"{name}: placement {place!r}: {word!r} is not one of {', '.join((*SITES, 'plain'))}{hint}. A "
            f"place is {chain}, or a site with one of its drafters such as 'colocated:MODEL'"
        )


def _slashed(name: str, text: str) -> StaticChoice:
    """Return the static choice that ``G/B/PLACE`` stands for."""
    gamma, batch, place = text.split("/")
    return _place(name, _gamma(name, gamma, 0), _batch(name, batch), place)


def _build_static(arguments: str) -> Scheduler:
    parts = _split("static", arguments, 4)
    if len(parts) < 3:
        raise SchedulerError(f"static: {arguments!r} is incomplete; write {_ENTRIES['static'].usage}")
    gamma, batch = _gamma("static", parts[0], 0), _batch("static", parts[1])
    return StaticScheduler(f"static:{arguments}", _place("static", gamma, batch, ":".join(parts[2:])))


def _pack_bounds(name: str, text: str) -> tuple[int, int]:
    """Return `pack` and `until` of a choice that packs targets, from ``N`` or ``N-M``."""
    most, dash, until = text.partition("-")
    if not most.isdecimal() or int(most) < 1:
        raise SchedulerError(f"{name}: N = {most!r} must be a whole number of at least 1")
    if dash and not (until.isdecimal() and 1 <= int(until) < int(most)):
        raise SchedulerError(
            f"{name}: M = {until!r} must be a whole number of at least 1, less than N = {most}"
        )
    return int(most), int(until) if dash else 0


def _build_pack(arguments: str) -> Scheduler:
    bounds, _, rest = arguments.partition(":")
    most, until = _pack_bounds("pack", bounds)
    parts = rest.split(":", 2)
    if len(parts) < 3:
        raise SchedulerError(f"pack: {arguments!r} is incomplete; write {_ENTRIES['pack'].usage}")
    gamma, batch = _gamma("pack", parts[0], 0), _batch("pack", parts[1])
    choice = _place("pack", gamma, batch, parts[2])
    return StaticScheduler(f"pack:{arguments}", choice._replace(pack=most, until=until))


def _build_static_map(arguments: str) -> Scheduler:
    choices: dict[str, StaticChoice] = {}
    for part in filter(None, re.split(_PLUS, arguments)):
        device, equals, choice = part.partition("=")
        if not equals or choice.count("/") != 2:
            raise SchedulerError(f"static_map: {part!r} is not CLASS=G/B/PLACE")
        if device in choices:
            raise SchedulerError(f"static_map: class {device!r} is given twice")
        choice, at, target = choice.partition("@")
        choices[device] = _slashed("static_map", choice)
        if at and target.startswith(_PACK):
            most, until = _pack_bounds("static_map", target.removeprefix(_PACK))
            choices[device] = choices[device]._replace(pack=most, until=until)
        elif at:
            if not target.isdecimal():
                raise SchedulerError(
                    f"static_map: target {target!r} in {part!r} must be a whole number, or {_PACK}N[-M]"
                )
            choices[device] = choices[device]._replace(target=int(target))
    if not choices:
        raise SchedulerError(f"static_map: names no class; write {_ENTRIES['static_map'].usage}")
    return StaticMapScheduler(f"static_map:{arguments}", choices)


def _build_by_load(arguments: str) -> Scheduler:
    parts: dict[str, str] = {}
    usage = f"write {_ENTRIES['by_load'].usage}"
    for part in re.split(_PLUS, arguments):
        key, _, value = part.partition("=")
        if key not in ("above", "quiet", "busy"):
            raise SchedulerError(f"by_load: {part!r} is none of above=N, quiet=... and busy=...; {usage}")
        if key in parts:
            raise SchedulerError(f"by_load: {key} is given twice; {usage}")
        if key != "above" and value.count("/") != 2:
            raise SchedulerError(f"by_load: {key} = {value!r} is not G/B/PLACE; {usage}")
        parts[key] = value
    missing = [key for key in ("above", "quiet", "busy") if key not in parts]
    if missing:
        raise SchedulerError(f"by_load: {', '.join(missing)} missing; {usage}")
    above = _integer("by_load", "above", parts["above"], 0, MAX_REQUESTS)
    quiet, busy = (
        StaticScheduler(parts[key], _slashed(f"by_load: {key}", parts[key])) for key in ("quiet", "busy")
    )
    name = f"by_load:above={above}+quiet={parts['quiet']}+busy={parts['busy']}"
    return ByLoadScheduler(name, above, quiet, busy)


def _build_awc(arguments: str) -> Scheduler:
    site, folder = awc_parts(arguments)
    name = f"awc:{site}" if folder == shipped_network() else f"awc:{site}:{folder}"
    return AwcScheduler(name, load_network(folder), APART[site])


def _build_clairvoyant(arguments: str) -> Scheduler:
    parts = _split("clairvoyant", arguments, 4)
    name = f"clairvoyant:{arguments}"
    if len(parts) == 1 and parts[0] in SITES:
        choice = StaticChoice(MAX_GAMMA, 1, _preferred("clairvoyant", parts[0]))
        return ClairvoyantScheduler(name, choice)
    if len(parts) < 3:
        raise SchedulerError(
            f"clairvoyant: {arguments!r} is incomplete; write {_ENTRIES['clairvoyant'].usage}"
        )
    gamma, batch = _gamma("clairvoyant", parts[0]), _batch("clairvoyant", parts[1])
    return ClairvoyantScheduler(name, _place("clairvoyant", gamma, batch, ":".join(parts[2:])))


def _build_policy(arguments: str) -> Scheduler:
    if not arguments:
        raise SchedulerError("policy: needs the folder of an exported policy; write policy:PATH")
    scheduler = PolicyScheduler(arguments)
    if scheduler.policy.fleet:
        return FleetPolicyScheduler(scheduler.name, scheduler.policy)
    return scheduler


def _build_table(arguments: str) -> Scheduler:
    if not arguments:
        raise SchedulerError("table: needs the file of a compiled table; write table:FILE")
    return TableScheduler(f"table:{arguments}", load_table(arguments))


_ENTRIES: dict[str, SchedulerEntry] = {
    "random": SchedulerEntry("random", "uniform over the valid actions", _build_random),
    "cloud_ar": SchedulerEntry("cloud_ar[:B]", "plain decoding at the target", _build_cloud_ar),
    "colocated_sd": SchedulerEntry(
        "colocated_sd:G[:B]", "speculation length G, drafts on the target's server", _build_colocated
    ),
    "edge_sd": SchedulerEntry(
        "edge_sd:G[:B]", "speculation length G, drafts on the own device, else edge server", _build_edge
    ),
    "hf_heuristic": SchedulerEntry(
        "hf_heuristic[:SITE[:B]]", "all accepted: k += 2, else k = max(1, k - 1)", _build_hf
    ),
    "adaptive": SchedulerEntry(
        "adaptive:LENGTH[:SITE[:ROUTE[:B]]]",
        f"LENGTH is a number, table+N=G+... (G drafts from N requests at the target on), "
        f"{', '.join(_RULES)}, with parameters as +KEY=VALUE; ROUTE is {', '.join(ROUTE_USAGES)}",
        _build_adaptive,
    ),
    "specdec_pp": SchedulerEntry(
        "specdec_pp[:THRESHOLD[:SITE[:ROUTE[:B]]]]",
        "SpecDec++: draft until some token is rejected with more than this probability (0.7)",
        _stopping("specdec_pp", 0.7),
    ),
    "svip": SchedulerEntry(
        "svip[:THRESHOLD[:SITE[:ROUTE[:B]]]]",
        "SVIP: draft until sqrt(0.15 entropy) of a token is above the threshold (0.3)",
        _stopping("svip", 0.3),
    ),
    "adaedl": SchedulerEntry(
        "adaedl[:THRESHOLD[:SITE[:ROUTE[:B]]]]",
        "AdaEDL: draft while 1 - sqrt(0.2 entropy) is above a threshold that adapts, from this on (0.5)",
        _stopping("adaedl", 0.5),
    ),
    "pmin": SchedulerEntry(
        "pmin:P[:SITE[:ROUTE[:B]]]",
        "llama.cpp's p-min: draft while a token's top-1 probability is at least P",
        _stopping("pmin", None),
    ),
    "jsq_goodput": SchedulerEntry(
        "jsq_goodput[:KEY=VALUE+...]",
        "argmax over placement and length of expected tokens per expected time; a number is load_weight",
        _build_goodput,
    ),
    "static": SchedulerEntry(
        "static:G:B:PLACE",
        "the same everywhere; PLACE is colocated, own, edge or plain, or several of the first three, each "
        "standing in where the one before cannot draft (edge-own-colocated); SITE:MODEL names one of its "
        "drafters, and +branches behind a place asks for streams with branches",
        _build_static,
    ),
    "pack": SchedulerEntry(
        "pack:N[-M]:G:B:PLACE",
        "as static, and requests go to the first target that has fewer than N, not to the least loaded; with "
        "M, one that had N gets others once it is down to M",
        _build_pack,
    ),
    "static_map": SchedulerEntry(
        "static_map:CLASS=G/B/PLACE[@T]+...",
        "a static choice per class of devices, of SLO, or pair of both (DEVICE/SLO); its requests go to "
        "target T, by packN[-M] as pack sends them, or to the least loaded",
        _build_static_map,
    ),
    "by_load": SchedulerEntry(
        "by_load:above=N+quiet=G/B/PLACE+busy=G/B/PLACE",
        "a static choice for requests that come while the targets have at most N, another for those that "
        "come while they have more",
        _build_by_load,
    ),
    "awc": SchedulerEntry(
        "awc[:SITE][:DIR]",
        "DSD's adaptive window control: a network predicts the window; SITE is own or edge, DIR a network",
        _build_awc,
    ),
    "clairvoyant": SchedulerEntry(
        "clairvoyant:[G:B:]PLACE",
        "no scheduler but an upper reference: knows which drafts will be right, and drafts those, at most G",
        _build_clairvoyant,
    ),
    "table": SchedulerEntry("table:FILE", "a table compiled from a policy or rule", _build_table),
    "policy": SchedulerEntry("policy:PATH", "a trained policy, exported as a bundle", _build_policy),
}
