"""Lists of schedulers as command lines take them: ``X,Y``, each perhaps with its own name, ``NAME=X``."""

from __future__ import annotations

import re

from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.registry import make_scheduler, scheduler_names

LONGEST_NAME = 80
"""Letters of a name at most."""
_NAME = re.compile(r"[^\W_][\w .()+-]*")


def named_schedulers(text: str) -> dict[str, str]:
    """Return the specifications of a list by name, in order; without a name of its own each is its name.

    A name ends at the first ``=``. Where a colon comes first, that ``=`` belongs to the parameters of a rule
    without a name, as in ``jsq_goodput:load_weight=1``.

    Args:
        text: E.g. ``cloud_ar,short windows=edge_sd:2,tuned=jsq_goodput:load_weight=2+prior_trials=30``.

    Raises:
        SchedulerError: The list is empty, something in it is no scheduler or has no proper name, or a name
            or a specification is there twice. Arguments are not checked here.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, spec = _split(part)
        _check_parts(name, spec, next(reversed(found.values()), ""))
        if name is not None:
            _check_name(name, part)
        label = spec if name is None else name
        if label in found:
            raise SchedulerError(f"scheduler named twice: {label}")
        if spec in found.values():
            other = next(known for known, its in found.items() if its == spec)
            raise SchedulerError(f"scheduler named twice: {label!r} and {other!r} are both {spec}")
        found[label] = spec
    if not found:
        raise SchedulerError(f"{text!r} names no scheduler")
    return found


def aliases(schedulers: dict[str, str]) -> list[str]:
    """Return a line ``NAME = SPECIFICATION`` for each scheduler with a name of its own."""
    return [f"{name} = {spec}" for name, spec in schedulers.items() if name != spec]


def _split(part: str) -> tuple[str | None, str]:
    """Return the name of its own, if there is one, and the specification."""
    name, equals, spec = part.partition("=")
    if not equals or ":" in name:
        return None, part
    return name.strip(), spec.strip()


def _check_parts(name: str | None, spec: str, before: str) -> None:
    """Raise if something is no scheduler because a comma or an equals sign is in the wrong place.

    Args:
        name: The name of its own.
        spec: What is to be a specification.
        before: The specification before it in the list, or "".
    """
    rules = scheduler_names()
    if spec.partition(":")[0] in rules:
        return
    part = spec if name is None else f"{name}={spec}"
    if name is not None and not spec:
        raise SchedulerError(f"{part!r} gives a name and no scheduler; write NAME=SCHEDULER")
    if name in rules:
        raise SchedulerError(f"{part!r}: arguments follow a colon; write {name}:{spec}")
    if before and spec[:1].isdigit():
        if name is None:
            meant = f"{before},{before.partition(':')[0]}:{part}"
        else:
            meant = f"{before}{'+' if ':' in before else ':'}{part}"
        advice = f"; write {meant}" if all(map(_is_scheduler, meant.split(","))) else ""
        raise SchedulerError(
            f"{part!r} is no scheduler: a comma separates schedulers, + the parameters of one, and : its "
            f"arguments{advice}"
        )


def _is_scheduler(spec: str) -> bool:
    try:
        make_scheduler(spec)
    except (ValueError, OSError):
        return False
    return True


def _check_name(name: str, part: str) -> None:
    """Raise if a name is none that a table can show, or is that of a rule."""
    if name in scheduler_names():
        raise SchedulerError(f"{part!r}: {name!r} is the name of a rule; give it another one")
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise SchedulerError(
            f"{part!r}: a name has letters, digits, spaces and . _ - + ( ), begins with a letter or digit "
            f"and has at most {LONGEST_NAME} of them; {name!r} does not"
        )
