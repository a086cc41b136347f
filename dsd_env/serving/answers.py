"""Decisions as they are answered, and those of compiled code, which are made only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dsd_env.control import Decision, Site
from dsd_env.control.actions import stop_at
from dsd_env.laws.resolve import REASONS
from dsd_env.serving.deployment import Deployment
from dsd_env.serving.world import Carried, Told

if TYPE_CHECKING:
    from dsd_env.serving.mirror import Found, Mirror

SITES = {Site.COLOCATED: "colocated", Site.OWN_DEVICE: "own_device", Site.EDGE_SERVER: "edge_server"}
"""Names of the sites where drafts are made."""
_MAX_KNOWN = 1 << 15
"""Answers kept at a time to be given again, and likewise what they are made of."""


class ServedDecision(NamedTuple):
    """A decision as an engine carries it out.

    Attributes:
        gamma: Drafts to make in the next round; 0 is plain decoding.
        batch_size: Smallest batch that the verification should wait for; 1: it does not wait.
        placement: Index into the list of candidates.
        site: Where to draft: ``colocated``, ``own_device`` or ``edge_server``.
        edge_server: Name of the edge server; "" elsewhere.
        target: Name of the target.
        model: Draft model; "" if nobody drafts.
        source: What decided: ``policy``, ``rule`` (a scheduler of the registry) or ``safe_rule``; with
            a policy of the fleet view what made the plan in force, ``policy`` or ``safe_plan``.
        reason: Why the decision was changed to what can be done, or why the safe rule decided; "" otherwise.
        counter: Number of the decision within the request.
        fanout: Branches that its stream should open at each draft; 0: none.
        stop_threshold: Where the draft ends before `gamma`: behind the token with which the drafter thinks
            that some token of it is rejected with more than this probability, two tokens at least (see
            :func:`dsd_env.control.actions.stop_at`); None: at `gamma`. Told only where the scenario of the
            deployment lists thresholds.
    """

    gamma: int
    batch_size: int
    placement: int
    site: str
    edge_server: str
    target: str
    model: str
    source: str
    reason: str
    counter: int
    fanout: int = 0
    stop_threshold: float | None = None

    @property
    def decision(self) -> Decision:
        """The three numbers, and the stop rule."""
        stop = None if self.stop_threshold is None else stop_at(self.stop_threshold)
        return Decision(self.gamma, self.batch_size, self.placement, stop)


class _Alike(NamedTuple):
    """Decisions that differ in nothing but their number: the answer before it, and the rest."""

    before: tuple[int, int, int, str, str, str, str, str, str]
    fanout: int
    stop_threshold: float | None
    carried: Carried
    rank: int

    def numbered(self, counter: int) -> Told:
        """Return one of them."""
        answer = ServedDecision(*self.before, counter, self.fanout, self.stop_threshold)
        return Told(answer, self.carried, self.rank)


class Answers:
    """The answers to decisions of compiled code: each is made once, and given again."""

    def __init__(self, deployment: Deployment) -> None:
        """Begin with none."""
        scenario = deployment.scenario
        self._models, self._thresholds = tuple(scenario.acceptance), scenario.actions.stop_thresholds
        self._n_sites = scenario.n_devices + scenario.n_edge_servers + scenario.n_targets
        self._targets, self._edges = deployment.targets, deployment.edge_servers
        # By the key of a decision, and by the key without the decision's number.
        self._known: dict[int, Told] = {}
        self._kinds: dict[int, _Alike] = {}
        self._maker = ("policy", "")

    def made_by(self, source: str, reason: str) -> None:
        """Say what decides from now on, and why if that is the safe plan."""
        if self._maker != (source, reason):
            # Answers that are kept say what has decided.
            self._maker = source, reason
            self._known.clear()
            self._kinds.clear()

    def of(self, mirror: Mirror, n: int) -> list[Told]:
        """Return the answers to the `n` decisions of the last call."""
        known, keys = self._known, mirror.keys(n)
        try:
            return [known[key] for key in keys]
        except KeyError:
            return [known.get(key) or self._told(mirror, key, row) for row, key in enumerate(keys)]

    def _told(self, mirror: Mirror, key: int, row: int) -> Told:
        """Return the decision with a key, of which the last call has one in a row."""
        if key < 0:
            found = mirror.found(row)
            return self._alike(found).numbered(found.counter)
        kind, counter = mirror.parted(key)
        alike = self._kinds.get(kind)
        if alike is None:
            if len(self._kinds) >= _MAX_KNOWN:
                self._kinds.clear()
            alike = self._kinds[kind] = self._alike(mirror.found(row))
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        told = self._known[key] = alike.numbered(counter)
        return told

    def _alike(self, found: Found) -> _Alike:
        """Return what all decisions have in common that differ from one in nothing but their number."""
        source, reason = self._maker
        drafts = found.gamma > 0
        site = Site(found.site)
        model = self._models[found.model] if drafts else ""
        fanout = found.fanout if drafts else 0
        drafter, rank = found.drafter if drafts else -1, -1
        if drafts and site == Site.OWN_DEVICE:
            # The number of the client's device is the one thing that a key leaves out.
            drafter, rank = -1, drafter - drafter % self._n_sites
        answer = (
            found.gamma,
            found.batch_size,
            found.placement,
            SITES[site],
            self._edges[found.edge_server] if found.edge_server >= 0 else "",
            self._targets[found.target],
            model,
            source,
            reason or REASONS[found.reason] or "",
        )
        carried = Carried(site, found.edge_server, found.target, drafter, model, found.gamma, fanout)
        threshold = self._thresholds[found.stop] if found.stop >= 0 else None
        return _Alike(answer, fanout, threshold, carried, rank)
