"""The manifest of a policy bundle: the network's inputs, the meaning of its outputs, and its provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dsd_env.control import ActionSpace, Feature, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.scenario import Scenario
from dsd_env.scenario.loader import explain_validation_error
from dsd_env.strict_model import StrictNumbers

FORMAT = "dsd_env.policy"
FORMAT_VERSION = 4
"""Newest version of the format; it rises when older code can no longer read all bundles. A bundle states the
lowest version that describes it: 2 adds flat actions, logits that are not normalised, and trainings without a
seed; 3 adds the fleet view; 4 adds stop thresholds."""
OF_MENUS = ".is_lookup"
"""Ending of the name of a feature that only scenarios with a menu of drafters have."""

NPZ_FILE = "policy.npz"
ONNX_FILE = "policy.onnx"
MANIFEST_FILE = "manifest.json"

MAX_MANIFEST_BYTES = 1_000_000
MAX_FILE_BYTES = 64 * 1024 * 1024

_Text = Annotated[str, Field(max_length=2000)]
LONGEST_NAME = 200
_Word = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Width = Annotated[int, Field(ge=1, le=4096)]


class PolicyError(ValueError):
    """A policy bundle cannot be used; the message says what is wrong and what to do."""


class _Model(StrictNumbers, BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FeatureSpec(_Model):
    """One input of the network: a :class:`dsd_env.control.Feature` without its meaning."""

    name: _Word
    unit: Annotated[str, Field(max_length=40)]
    scale: Literal["fraction", "squash", "signed"]
    half: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Fleet(_Model):
    """The plan space of a policy of the fleet view; see :class:`dsd_env.control.fleet.FleetSpace`."""

    control_period_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    grouping: Literal["device", "slo", "device_slo"]
    name_targets: bool = False
    groups: tuple[_Word, ...] = Field(min_length=1, max_length=4096)
    places: tuple[_Word, ...] = Field(min_length=1, max_length=4096)

    @classmethod
    def of(cls, space: FleetSpace) -> Fleet:
        """Return the manifest's form of a plan space."""
        return cls(
            control_period_s=space.control_period_s,
            grouping=space.grouping,
            name_targets=space.name_targets,
            groups=space.group_names,
            places=tuple(place.word for place in space.places),
        )


class Actions(_Model):
    """The meaning of the indices in the three action dimensions; in the fleet view, those of each group."""

    gammas: tuple[Annotated[int, Field(ge=0, le=4096)], ...] = Field(min_length=1, max_length=4096)
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(min_length=1, max_length=4096)
    n_placements: Annotated[int, Field(ge=1, le=4096)]
    stop_thresholds: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = Field(
        default=(),
        max_length=4096,
        description="Further entries behind `gammas`: the largest of these with a stop rule each.",
    )
    flat: bool = Field(
        default=False,
        description="One logit per combination of the three indices, in the order of `numpy.unravel_index`.",
    )
    fleet: Fleet | None = Field(default=None, description="Set for policies of the fleet view.")

    @model_validator(mode="after")
    def _increasing(self) -> Actions:
        lists: tuple[tuple[str, tuple[float, ...]], ...] = (
            ("gammas", self.gammas),
            ("batch_sizes", self.batch_sizes),
            ("stop_thresholds", self.stop_thresholds),
        )
        for key, values in lists:
            if any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"{key} {values} must be strictly increasing")
        if self.fleet is not None and (self.flat or len(self.fleet.places) != self.n_placements):
            raise ValueError("fleet: its actions are not flat, and there are n_placements places")
        return self

    def space(self) -> ActionSpace:
        """Return the same lists as an :class:`~dsd_env.control.ActionSpace`."""
        return ActionSpace(self.gammas, self.batch_sizes, self.n_placements, self.stop_thresholds)

    def heads(self) -> tuple[int, ...]:
        """Return the sizes of the groups of logits; one logit of each group is chosen."""
        space = self.space()
        if self.fleet is not None:
            return space.nvec * len(self.fleet.groups)
        return (space.n_flat,) if self.flat else space.nvec

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The ONNX file carries the manifest's text, so bundles without newer keys must keep their old text.
        data: dict[str, Any] = serialise(self)
        absent = {
            "flat": not self.flat,
            "fleet": self.fleet is None,
            "stop_thresholds": not self.stop_thresholds,
        }
        return {key: value for key, value in data.items() if not absent.get(key, False)}


class Network(_Model):
    """The shape of the actor, a multilayer perceptron in float32.

    `normalisations` counts how often the trainer's distribution normalises the logits (x - logsumexp(x),
    rounded to float32) before it takes the argmax of their softmax: 1 for PPO and A2C, 2 for MaskablePPO, and
    0 for DQN, which takes the argmax of the action values directly. Rounding can make the two best of several
    almost equal logits exactly equal; then the first of them wins, see :mod:`dsd_env.policy.network`.
    """

    layers: tuple[_Width, ...] = Field(
        min_length=2, max_length=17, description="Widths from input to output."
    )
    activation: Literal["tanh", "relu"]
    normalisations: Literal[0, 1, 2]


class ScenarioRef(_Model):
    """Reference to the scenario that a policy was trained on."""

    name: _Word
    version: int
    sha256: _Sha256


class Training(_Model):
    """Provenance of a policy's training."""

    algorithm: _Word
    seed: int | None
    steps: Annotated[int, Field(ge=0)]
    config_sha256: _Sha256 | None = None
    warm_start: _Text | None = None
    checkpoint: _Text | None = Field(default=None, description="Which checkpoint of the run was exported.")
    versions: dict[_Word, _Text] = {}
    git_commit: _Text | None = None
    notes: _Text = ""


class FileEntry(_Model):
    """Digest and size of one file of the bundle."""

    sha256: _Sha256
    bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]


class Manifest(_Model):
    """The manifest: everything about a bundle except the weights."""

    format: Literal["dsd_env.policy"] = "dsd_env.policy"
    format_version: Literal[1, 2, 3, 4] = 1
    created: _Text
    observation: tuple[FeatureSpec, ...] = Field(min_length=1, max_length=4096)
    action: Actions
    network: Network
    scenario: ScenarioRef
    training: Training
    files: dict[Literal["policy.npz", "policy.onnx"], FileEntry] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [feature.name for feature in self.observation]
        if len(set(names)) != len(names):
            raise ValueError("observation: a feature's name occurs twice")
        if self.network.layers[0] != len(names):
            raise ValueError(
                f"network.layers begins with {self.network.layers[0]}, but there are {len(names)} features"
            )
        n_logits = sum(self.action.heads())
        if self.network.layers[-1] != n_logits:
            raise ValueError(
                f"network.layers ends with {self.network.layers[-1]}, but the actions need {n_logits}"
            )
        newer = self.action.flat or self.network.normalisations == 0 or self.training.seed is None
        if newer and self.format_version == 1:
            raise ValueError(
                "flat actions, logits that are not normalised, and no seed need format_version 2"
            )
        if self.action.fleet is not None and self.format_version < 3:
            raise ValueError("policies of the fleet view need format_version 3")
        if self.action.stop_thresholds and self.format_version < 4:
            raise ValueError("stop_thresholds need format_version 4")
        return self

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every array in the npz file; all are little-endian float32."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, (inputs, outputs) in enumerate(pairwise(self.network.layers)):
            shapes[f"weight_{index}"] = (outputs, inputs)
            shapes[f"bias_{index}"] = (outputs,)
        return shapes

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"

    def identity_json(self) -> str:
        """Return the manifest without digests as canonical JSON, which the ONNX file carries."""
        return canonical_json(self.model_dump(mode="json", exclude={"files"}))

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Manifest:
        """Return the manifest in a text, validated.

        Raises:
            PolicyError: The text is not JSON, has another format or version, or has unknown keys, missing
                keys or impossible values.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PolicyError(f"{where}: not JSON ({error}); export the policy again") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PolicyError(
                f"{where}: not the manifest of a policy bundle (key 'format' must be {FORMAT!r})"
            )
        version = data.get("format_version")
        if isinstance(version, bool) or version not in range(1, FORMAT_VERSION + 1):
            raise PolicyError(
                f"{where}: format_version {version!r} is not one of 1 to {FORMAT_VERSION}, which this "
                "dsd_env reads; export the policy again, or install the version that wrote it"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PolicyError(explain_validation_error(error, where)) from error


def feature_specs(features: tuple[Feature, ...]) -> tuple[FeatureSpec, ...]:
    """Return the manifest's form of the features of an observation."""
    return tuple(FeatureSpec(name=f.name, unit=f.unit, scale=f.scale, half=f.half) for f in features)


def scenario_ref(scenario: Scenario) -> ScenarioRef:
    """Return the reference to a scenario: name, version and digest."""
    digest = hashlib.sha256(canonical_json(scenario.model_dump(mode="json")).encode()).hexdigest()
    return ScenarioRef(name=scenario.name, version=scenario.version, sha256=digest)


def mixture_ref(scenarios: Sequence[Scenario]) -> ScenarioRef:
    """Return one reference for all scenarios of a mixture; for a single scenario, its own reference."""
    refs = [scenario_ref(scenario) for scenario in scenarios]
    if len(refs) == 1:
        return refs[0]
    digest = hashlib.sha256(canonical_json([ref.model_dump() for ref in refs]).encode()).hexdigest()
    name = f"mixture of {len(refs)}: {', '.join(ref.name for ref in refs)}"
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]} …"
    return ScenarioRef(name=name, version=max(ref.version for ref in refs), sha256=digest)


def explain_mismatch(manifest: Manifest, encoder: ObservationEncoder, actions: ActionSpace) -> str | None:
    """Return in words how a scenario's observation or actions differ from a policy's; None if equal."""
    if manifest.action.fleet is not None:
        return (
            "it is of the fleet view (dsd_env/EdgeCloudFleet-v0) and makes plans for groups, not decisions "
            "on single requests"
        )
    problem = _explain_features(manifest, encoder.features)
    if problem:
        return problem
    space = manifest.action.space()
    for key in ("gammas", "batch_sizes", "n_placements", "stop_thresholds"):
        was, now = getattr(space, key), getattr(actions, key)
        if was != now:
            return f"{key} are {now}, the policy was trained with {was}"
    return None


def explain_unfit(manifest: Manifest, scenario: Scenario) -> str | None:
    """Return in words why a policy cannot decide in a scenario; None if it can.

    The scenario's lists need not equal those of the training: it may offer fewer candidates, and other
    speculation lengths and batch sizes. The policy then chooses among the entries that both have.
    """
    space, own = manifest.action.space(), ActionSpace.of(scenario)
    if manifest.action.fleet is not None or manifest.action.flat or own.n_placements > space.n_placements:
        return explain_mismatch(manifest, ObservationEncoder.of(scenario), own)
    problem = _explain_features(manifest, ObservationEncoder.of(scenario, space.n_placements).features)
    if problem:
        return problem
    if 1 not in space.batch_sizes or len({0, *space.gammas} & {*own.gammas}) < min(2, len(space.gammas)):
        return (
            f"gammas are {own.gammas} and batch_sizes {own.batch_sizes}; the policy was trained with "
            f"{space.gammas} and {space.batch_sizes}, which leaves it no choice"
        )
    return None


def explain_fleet_mismatch(manifest: Manifest, space: FleetSpace) -> str | None:
    """Return in words how a scenario's plans or their features differ from a policy's; None if equal."""
    fleet, own = manifest.action.fleet, Fleet.of(space)
    if fleet is None:
        return "it decides on single requests (dsd_env/EdgeCloud-v0), and makes no plans"
    for key in ("groups", "places"):
        if getattr(fleet, key) != getattr(own, key):
            return (
                f"its {key} are {list(getattr(fleet, key))}, those of the scenario {list(getattr(own, key))}"
            )
    for key in ("gammas", "batch_sizes"):
        was, now = getattr(manifest.action, key), getattr(space, key)
        if was != now:
            return f"{key} are {now}, the policy was trained with {was}"
    return _explain_features(manifest, FleetEncoder.of(space).features)


def _explain_features(manifest: Manifest, features: tuple[Feature, ...]) -> str | None:
    wanted, got = manifest.observation, feature_specs(features)
    if len(wanted) != len(got):
        counts = f"the policy reads {len(wanted)} features, the scenario gives {len(got)}"
        menus = [any(each.name.endswith(OF_MENUS) for each in side) for side in (wanted, got)]
        if menus[0] != menus[1]:
            trained_with, offers = ("with", "offers none") if menus[0] else ("without", "offers one")
            return f"{counts}: it was trained {trained_with} a menu of drafters, the scenario {offers}"
        return f"{counts} (another number of placements?)"
    for index, (want, have) in enumerate(zip(wanted, got, strict=True)):
        if want != have:
            return f"feature {index} is {_describe(have)}, the policy reads {_describe(want)}"
    return None


def _describe(feature: FeatureSpec) -> str:
    return f"{feature.name!r} ({feature.scale}, half {feature.half:g} {feature.unit})"


def canonical_json(data: object) -> str:
    """Return JSON with sorted keys and without spaces, so that equal data give equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
