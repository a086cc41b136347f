"""Export of Stable-Baselines3 models as policy bundles, without importing Stable-Baselines3.

>>> model = sb3_contrib.MaskablePPO("MlpPolicy", dsd_env.make_sb3_vec_env("metro", 8))
>>> model.learn(100_000)
>>> dsd_env.policy.export_sb3(model, "metro", "policies/metro")

The zip file of a model holds the model's settings as text, pickled copies of the settings, and the weights as
tensors. This module reads only the text and the tensors (the latter with torch); it never opens the pickled
parts, which could run foreign code.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsd_env import provenance
from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.control.fleet import FleetSpace
from dsd_env.control.fleet_view import FleetEncoder
from dsd_env.policy.export import export_actor
from dsd_env.policy.manifest import Manifest, PolicyError, Training
from dsd_env.policy.network import Float32, MlpActor
from dsd_env.scenario import Scenario, load_scenario

NORMALISATIONS: dict[str, Literal[0, 1, 2]] = {"A2C": 1, "DQN": 0, "MaskablePPO": 2, "PPO": 1}
"""The algorithms that can be exported; :class:`dsd_env.policy.manifest.Network` explains the numbers."""

FLEET_SETTINGS = ("control_period_s", "grouping", "name_targets")
"""What a model of the fleet view was trained with, beside its scenario."""

_MAX_TEXT_BYTES = 100_000_000
_MAX_TENSOR_BYTES = 500_000_000
_N_PROBES = 200
_CLASSES = {
    "sb3_contrib.ppo_mask.ppo_mask.MaskablePPO": "MaskablePPO",
    "stable_baselines3.a2c.a2c.A2C": "A2C",
    "stable_baselines3.dqn.dqn.DQN": "DQN",
    "stable_baselines3.ppo.ppo.PPO": "PPO",
}
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"
_SUPPORTED = "PPO, A2C and MaskablePPO, and DQN with flat actions, all with MlpPolicy"


@dataclass(frozen=True)
class _Learner:
    """The parts of a model that the export of its actor needs.

    Attributes:
        algorithm: Name of the algorithm.
        state: Parameters of the policy by name.
        activation: Class of the activation, or its name.
        extractor: Full name of the class that extracts features.
        low: Lower bounds of the observation, shape (n,); None: the observation is not a vector.
        high: Upper bounds of the observation, likewise.
        sizes: Sizes of the dimensions of a ``MultiDiscrete`` action, or the size of a ``Discrete`` action.
        n_steps: Number of training steps.
        seed: Seed of the training.
        versions: Versions of the libraries: those of the training for a file, else those installed now.
        file: Name of the model's file.
    """

    algorithm: str
    state: Mapping[str, Any]
    activation: object
    extractor: str
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None
    sizes: tuple[int, ...]
    n_steps: int
    seed: int | None
    versions: dict[str, str]
    file: str | None = None


def export_sb3(
    model: Any,
    scenario: str | Path | Scenario | Mapping[str, Any],
    out: str | Path,
    *,
    overwrite: bool = False,
    notes: str = "",
    fleet: Mapping[str, Any] | None = None,
) -> Manifest:
    """Export a model trained with Stable-Baselines3 or sb3-contrib as a policy bundle.

    The bundle decides like ``model.predict(observation, action_masks=mask, deterministic=True)``.

    Args:
        model: A PPO, A2C or MaskablePPO model, or with flat actions any of these or DQN; the policy must be
            ``MlpPolicy`` with tanh or ReLU. Or the path of a zip file that ``model.save`` wrote; reading a
            file needs torch, but not Stable-Baselines3.
        scenario: The scenario that the model was trained on, or one with the same observation and action
            lists.
        out: Directory of the bundle to make.
        overwrite: Whether to replace an existing bundle.
        notes: Notes to record in the manifest.
        fleet: Settings of a model of the fleet view that differ from the defaults: `control_period_s`,
            `grouping`, `name_targets`. Needed only if the model does not have its environment, as when it is
            read from a file.

    Returns:
        The bundle's manifest.

    Raises:
        PolicyError: The model is of an unsupported kind or does not fit the scenario, the file is damaged,
            ``out`` exists, or the package onnx (for a file, also torch) is not installed.
        ScenarioError: The scenario is not valid.
    """
    scenario = load_scenario(scenario)
    if isinstance(model, (str, Path)):
        learner, where = _from_file(Path(model)), str(model)
    else:
        learner, where = _from_model(model), "the model"
    space = _fleet_space(None if isinstance(model, (str, Path)) else model, scenario, fleet)
    encoder = ObservationEncoder.of(scenario) if space is None else FleetEncoder.of(space)
    _check_observation(learner, scenario, encoder, where)
    heads = _check_actions(learner, scenario, space, where)
    if not isinstance(model, (str, Path)):
        _check_environment(model, scenario)
    try:
        if learner.extractor != _FLATTEN:
            raise ValueError(f"features are extracted by {learner.extractor}, not by SB3's FlattenExtractor")
        layers = q_layers(learner.state) if learner.algorithm == "DQN" else actor_layers(learner.state)
        actor = MlpActor(
            layers, activation_named(learner.activation), heads, NORMALISATIONS[learner.algorithm]
        )
    except ValueError as error:
        raise PolicyError(f"{where}: cannot be exported: {error}; supported are {_SUPPORTED}") from error
    if actor.n_inputs != len(encoder.features):
        raise PolicyError(f"{where}: its network reads {actor.n_inputs} numbers, its observation has others")
    if not isinstance(model, (str, Path)):
        _check_decisions(model, actor, encoder)
    training = Training(
        algorithm=learner.algorithm,
        seed=learner.seed,
        steps=learner.n_steps,
        checkpoint=learner.file,
        versions=learner.versions,
        notes=notes,
    )
    return export_actor(actor, scenario, training, out, overwrite=overwrite, fleet=space)


def _fleet_space(
    model: Any | None, scenario: Scenario, settings: Mapping[str, Any] | None
) -> FleetSpace | None:
    """Return the plan space of a model of the fleet view; None for other models."""
    env = None if model is None or settings is not None else model.get_env()
    if env is not None:
        try:
            trained = env.get_attr("space")[0]
        except (AttributeError, IndexError):
            trained = None
        if isinstance(trained, FleetSpace):
            settings = {name: getattr(trained, name) for name in FLEET_SETTINGS}
    if settings is None:
        return None
    if unknown := sorted(set(settings) - set(FLEET_SETTINGS)):
        raise PolicyError(
            f"fleet: no setting of the fleet view is called {unknown[0]!r}; there are "
            f"{', '.join(FLEET_SETTINGS)}"
        )
    return FleetSpace(scenario, **settings)


# ---------------------------------------------------------------------- networks


def actor_layers(state: Mapping[str, Any]) -> list[tuple[Float32, Float32]]:
    """Return (weight, bias) of every layer from observation to logits.

    Args:
        state: State dict of an SB3 `MlpPolicy` of PPO, A2C or MaskablePPO.

    Raises:
        ValueError: The state dict belongs to another kind of policy.
    """
    return _layers(state, "mlp_extractor.policy_net.", ["action_net"])


def q_layers(state: Mapping[str, Any]) -> list[tuple[Float32, Float32]]:
    """Return (weight, bias) of every layer from observation to action values.

    Args:
        state: State dict of an SB3 `MlpPolicy` of DQN.

    Raises:
        ValueError: The state dict belongs to another kind of policy.
    """
    return _layers(state, "q_net.q_net.", [])


def _layers(state: Mapping[str, Any], prefix: str, last: list[str]) -> list[tuple[Float32, Float32]]:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    if not all(re.fullmatch("[0-9]+", number) for number in numbers) or not (numbers or last):
        raise ValueError(f"not the state of an MlpPolicy; parameters are {sorted(state)}")
    names = [f"{prefix}{number}" for number in sorted(numbers, key=int)] + last
    foreign = sorted(name for name in state if "features_extractor." in name)
    if foreign or any(f"{name}.{part}" not in state for name in names for part in ("weight", "bias")):
        raise ValueError(f"not the state of an MlpPolicy; parameters are {sorted(state)}")
    return [(_array(state[f"{name}.weight"]), _array(state[f"{name}.bias"])) for name in names]


def _array(tensor: Any) -> Float32:
    # A copy, because the learner continues to change its parameters in place.
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32)


def activation_named(activation: object) -> Literal["tanh", "relu"]:
    """Return the name of an activation.

    Args:
        activation: A class of torch, or Python's text for it.

    Raises:
        ValueError: The activation is neither tanh nor ReLU.
    """
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(Tanh|ReLU)'>", str(activation))
    if found is None:
        raise ValueError(f"activation {activation} is not supported; use tanh or ReLU")
    return "tanh" if found[1] == "Tanh" else "relu"


# ---------------------------------------------------------------------- models in memory


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _from_model(model: Any) -> _Learner:
    names = [_full_name(kind) for kind in type(model).__mro__]
    algorithm = next((_CLASSES[name] for name in names if name in _CLASSES), None)
    if algorithm is None:
        raise PolicyError(f"{names[0]} cannot be exported; supported are {_SUPPORTED}")
    normalised = model.get_vec_normalize_env()
    if normalised is not None and normalised.norm_obs:
        raise PolicyError(
            "the model was trained behind VecNormalize, which changes observations before it sees them, and "
            "that no bundle holds; train it with norm_obs=False (observations are scaled already)"
        )
    observations, actions = model.observation_space, model.action_space
    is_vector = type(observations).__name__ == "Box" and len(observations.shape) == 1
    sizes = getattr(actions, "nvec", getattr(actions, "n", ()))
    return _Learner(
        algorithm=algorithm,
        state=model.policy.state_dict(),
        activation=getattr(model.policy, "activation_fn", None),
        extractor=_full_name(model.policy.features_extractor_class),
        low=np.asarray(observations.low, dtype=np.float64) if is_vector else None,
        high=np.asarray(observations.high, dtype=np.float64) if is_vector else None,
        sizes=tuple(int(n) for n in np.atleast_1d(sizes)),
        n_steps=int(model.num_timesteps),
        seed=None if model.seed is None else int(model.seed),
        versions=provenance.versions(),
    )


def _check_environment(model: Any, scenario: Scenario) -> None:
    """Check the scenario's action lists against those of the model's environment, if the model has one.

    Raises:
        PolicyError: The lists differ.
    """
    env = model.get_env()
    try:
        trained = None if env is None else env.get_attr("scenario")[0]
    except (AttributeError, IndexError):
        return
    if not isinstance(trained, Scenario):
        return
    was, now = ActionSpace.of(trained), ActionSpace.of(scenario)
    for key in ("gammas", "batch_sizes", "stop_thresholds"):
        if getattr(was, key) != getattr(now, key):
            raise PolicyError(
                f"the model was trained with {key} {getattr(was, key)} (scenario {trained.name!r}), those of "
                f"scenario {scenario.name!r} are {getattr(now, key)}"
            )


def _check_decisions(model: Any, actor: MlpActor, encoder: ObservationEncoder | FleetEncoder) -> None:
    """Compare the decisions of model and actor on random observations, to find policies that compute more.

    Raises:
        PolicyError: Many decisions differ. A few may differ, if two actions are equally good up to rounding.
    """
    shape = (_N_PROBES, len(encoder.low))
    probes = np.random.default_rng(0).uniform(encoder.low, encoder.high, shape).astype(np.float32)
    wanted = np.asarray(model.predict(probes, deterministic=True)[0]).reshape(_N_PROBES, -1)
    found = np.array([actor.action(probe) for probe in probes])
    different = int((wanted != found).any(axis=1).sum())
    if different > _N_PROBES // 20:
        raise PolicyError(
            f"the model cannot be exported: in {different} of {_N_PROBES} random states it decides otherwise "
            f"than its network alone would, so its policy ({_full_name(type(model.policy))}) does something "
            f"else; supported are {_SUPPORTED}"
        )


# ---------------------------------------------------------------------- files


def _from_file(path: Path) -> _Learner:
    """Read a file that `model.save` wrote: the text of the settings, and the tensors.

    Raises:
        PolicyError: The file is missing, damaged or of another kind, or torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise PolicyError(
            f"{path}: reading a model needs torch ({error}): pip install 'dsd-env[export]'"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(_member(archive, "data", _MAX_TEXT_BYTES))
            tensors = io.BytesIO(_member(archive, "policy.pth", _MAX_TENSOR_BYTES))
            versions = _versions(archive)
        with warnings.catch_warnings():
            # torch warns of pickle protocols that its weights-only reader supports in part; a protocol that
            # does not load is an error here anyway.
            warnings.simplefilter("ignore")
            state = torch.load(tensors, map_location="cpu", weights_only=True)
        return _from_settings(settings, state, versions, path)
    except PolicyError:
        raise
    except FileNotFoundError:
        raise PolicyError(f"{path}: there is no such file; give the zip file that model.save wrote") from None
    except (
        # Errors that a truncated file, or another kind of zip file, may raise.
        *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, RecursionError),
        *(RuntimeError, TypeError, UnpicklingError, ValueError, zipfile.BadZipFile),
    ) as error:
        raise PolicyError(
            f"{path}: is no model that Stable-Baselines3 saved, or is damaged "
            f"({type(error).__name__}: {error})"
        ) from error


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes, more than {limit:,}")
    return archive.read(name)


def _versions(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the versions that a file's ``system_info.txt`` lists."""
    if "system_info.txt" not in archive.namelist():
        return {}
    names = {"Python": "python", "Stable-Baselines3": "stable-baselines3", "PyTorch": "torch"}
    names |= {"Numpy": "numpy", "Gymnasium": "gymnasium"}
    text = _member(archive, "system_info.txt", 100_000).decode("utf-8", "replace")
    found = dict(re.findall(r"^- ([\w-]+): (\S{1,100})\s*$", text, re.MULTILINE))
    return {name: found[label] for label, name in names.items() if label in found}


def _from_settings(
    settings: Mapping[str, Any], state: Mapping[str, Any], versions: dict[str, str], path: Path
) -> _Learner:
    module = settings["policy_class"]["__module__"]
    algorithm = {
        "sb3_contrib.common.maskable.policies": "MaskablePPO",
        "stable_baselines3.common.policies": "PPO" if "clip_range" in settings else "A2C",
        "stable_baselines3.dqn.policies": "DQN",
    }.get(module)
    if algorithm is None or "cg_max_steps" in settings:  # TRPO has cg_max_steps
        own = "; a run of scripts/train.py is exported by its directory (--run)"
        raise PolicyError(
            f"{path}: a policy of module {module!r} cannot be exported; supported are {_SUPPORTED}"
            + own * str(module).startswith("agents.")
        )
    policy = settings["policy_kwargs"]
    standard = "ReLU" if algorithm == "DQN" else "Tanh"
    extractor = policy.get("features_extractor_class", f"<class '{_FLATTEN}'>")
    observations, actions = settings["observation_space"], settings["action_space"]
    is_vector = "spaces.box.Box" in observations[":type:"] and len(observations["_shape"]) == 1
    return _Learner(
        algorithm=algorithm,
        state=state,
        activation=policy.get("activation_fn", f"<class 'torch.nn.modules.activation.{standard}'>"),
        extractor=str(extractor).removeprefix("<class '").removesuffix("'>"),
        low=_numbers(observations["low"], observations["_shape"]) if is_vector else None,
        high=_numbers(observations["high"], observations["_shape"]) if is_vector else None,
        sizes=tuple(int(n) for n in re.findall("[0-9]+", str(actions.get("nvec", actions.get("n"))))),
        n_steps=int(settings["num_timesteps"]),
        seed=None if settings["seed"] is None else int(settings["seed"]),
        versions=versions,
        file=path.name,
    )


def _numbers(text: str, shape: list[int]) -> NDArray[np.float64]:
    """Return an array that NumPy wrote as text; NaN everywhere if NumPy abbreviated a long array."""
    if "..." in text:
        return np.full(shape, np.nan)
    return np.array([float(word) for word in text.strip("[]").split()]).reshape(shape)


# ---------------------------------------------------------------------- does it fit?


def _check_observation(
    learner: _Learner, scenario: Scenario, encoder: ObservationEncoder | FleetEncoder, where: str
) -> None:
    if learner.low is None or learner.high is None:
        raise PolicyError(f"{where}: its observation is no vector of numbers (Box of one dimension)")
    if len(learner.low) != len(encoder.features):
        if isinstance(encoder, FleetEncoder):
            why = "on another scenario, with other settings of the fleet view, or not on the fleet view"
        else:
            why = (
                "on a scenario with another number of placements, with n_placements, or on the fleet view "
                "(then say with which settings: --fleet of scripts/export.py, fleet= in Python)"
            )
        raise PolicyError(
            f"{where}: reads {len(learner.low)} features, scenario {scenario.name!r} gives "
            f"{len(encoder.features)}; it was trained {why}, or behind a wrapper that changes observations"
        )
    for index, feature in enumerate(encoder.features):
        was = learner.low[index], learner.high[index]
        now = float(encoder.low[index]), float(encoder.high[index])
        # The text of a file has eight digits.
        if not np.allclose(was, now, rtol=1e-6, atol=1e-9) and not np.isnan(was).any():
            raise PolicyError(
                f"{where}: feature {index} ranges from {was[0]:g} to {was[1]:g}, feature {feature.name!r} of "
                f"scenario {scenario.name!r} from {now[0]:g} to {now[1]:g}; it was trained behind a wrapper "
                "that changes observations, or with another version of dsd_env"
            )


def _check_actions(
    learner: _Learner, scenario: Scenario, space: FleetSpace | None, where: str
) -> tuple[int, ...]:
    """Check the model's action space, and return the sizes of its groups of logits (heads)."""
    if space is not None:
        if learner.sizes == space.nvec:
            return learner.sizes
        raise PolicyError(
            f"{where}: acts in dimensions {list(learner.sizes)}, the plans of scenario {scenario.name!r} for "
            f"{len(space.groups)} groups have {list(space.nvec)}"
        )
    actions = ActionSpace.of(scenario)
    if learner.sizes in (actions.nvec, (actions.n_flat,)):
        return learner.sizes
    has = f"MultiDiscrete({list(learner.sizes)})" if len(learner.sizes) > 1 else f"Discrete{learner.sizes}"
    raise PolicyError(
        f"{where}: acts in {has.replace(',)', ')')}, scenario {scenario.name!r} in "
        f"MultiDiscrete({list(actions.nvec)}), flat Discrete({actions.n_flat}): {len(actions.windows)} "
        f"speculation lengths, {len(actions.batch_sizes)} batch sizes, {actions.n_placements} placements"
    )


__all__ = ["activation_named", "actor_layers", "export_sb3", "q_layers"]
