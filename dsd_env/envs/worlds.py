"""Many worlds that each run episode after episode, of one scenario or of a mixture.

Both vector environments, Gymnasium's and Stable-Baselines3's, are built on this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from dsd_env import rng
from dsd_env.control import ActionSpace, DecisionView, ObservationEncoder
from dsd_env.control.due import DUE_FIELDS, due_of_row
from dsd_env.control.rewards import REWARD_TERMS, reward_factors, reward_weights
from dsd_env.envs import rendering
from dsd_env.envs.checks import check_discount, draw_episode_seed
from dsd_env.envs.edge_cloud import check_state
from dsd_env.envs.episodes import EnvState
from dsd_env.envs.infos import NOT_DUE, NumericInfos, check_infos
from dsd_env.envs.limits import checked_max_episode_steps
from dsd_env.laws.resolve import REASONS
from dsd_env.rng import Stream
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.sim.compiled import batch
from dsd_env.sim.compiled.status import DUE, TERMINATED, TRUNCATED
from dsd_env.sim.compiled.vector import WorldVector
from dsd_env.sim.engines import compiled_layout
from dsd_env.sim.metrics import METRICS, class_metrics

ScenarioLike = str | Path | Scenario | Mapping[str, Any]
EpisodeSeeds = Callable[[int, int], int]
"""Function of the world's index and the episode's number that returns the seed of that episode."""
RENDER_MODES = ("ansi",)
"""Render modes of many worlds at once; timelines are drawn by single environments only."""


def drawn_scenario(episode_seed: int, n_scenarios: int) -> int:
    """Return the index of the scenario that an episode of a mixture runs, a function of its seed alone."""
    return rng.number_below(n_scenarios, rng.uniform(episode_seed, Stream.SCENARIO, 0, 0))


def load_mixture(scenario: ScenarioLike | Sequence[ScenarioLike]) -> tuple[Scenario, ...]:
    """Return the scenarios of a mixture, or a single scenario as a tuple of one.

    Raises:
        ScenarioError: A scenario is not valid, the list is empty, or two different scenarios share a name.
    """
    listed: list[Any] = list(scenario) if isinstance(scenario, (list, tuple)) else [scenario]
    if not listed:
        raise ScenarioError("a mixture needs at least one scenario")
    scenarios = tuple(load_scenario(each) for each in listed)
    by_name: dict[str, Scenario] = {}
    for each in scenarios:
        if by_name.setdefault(each.name, each) != each:
            raise ScenarioError(
                f"two different scenarios of the mixture are named {each.name!r}, so that nobody could tell "
                "which one an episode ran; give one another name: load_scenario(..., name='...')"
            )
    return scenarios


def common_space(scenarios: Sequence[Scenario], n_placements: int | None) -> ActionSpace:
    """Return the action space that all scenarios of a mixture share.

    The scenarios must also have the same observation space: a menu of drafters or branches add features.

    Raises:
        ValueError: The scenarios differ; the message says in what, and how to align them.
    """
    spaces = [ActionSpace.of(scenario, n_placements) for scenario in scenarios]
    first, name = spaces[0], scenarios[0].name
    for scenario, space in zip(scenarios, spaces, strict=True):
        for what in ("gammas", "batch_sizes", "stop_thresholds"):
            own, other = getattr(first, what), getattr(space, what)
            if own != other:
                raise ValueError(
                    f"scenarios {name!r} and {scenario.name!r} have different action spaces: actions.{what} "
                    f"= {list(own)} and {list(other)}; load one with the other's list: "
                    f"load_scenario({scenario.name!r}, actions__{what}={list(own)})"
                )
        if scenario.has_menu != scenarios[0].has_menu:
            raise ValueError(
                f"of the scenarios {name!r} and {scenario.name!r} one has a menu of drafters and the other "
                "has not, so their observations differ; put them into separate environments"
            )
        if scenario.actions.offer_branches != scenarios[0].actions.offer_branches:
            raise ValueError(
                f"of the scenarios {name!r} and {scenario.name!r} one offers branches "
                "(actions.offer_branches) and the other does not, so their observations differ; put them "
                "into separate environments"
            )
        if space.n_placements != first.n_placements:
            most = max(space.n_placements for space in spaces)
            raise ValueError(
                f"scenarios {name!r} and {scenario.name!r} have {first.n_placements} and "
                f"{space.n_placements} placements, so their spaces differ; n_placements={most} fills "
                "the shorter lists up"
            )
    return first


class EpisodeWorlds:
    """Worlds that run episode after episode, each with its own generator of episode seeds.

    World ``i`` behaves as an :class:`~dsd_env.envs.EdgeCloudEnv` with that generator, however many worlds
    there are. In a mixture each episode draws its scenario from its seed; the scalar environment of that
    scenario runs the same episode with that seed.

    Attributes:
        scenarios: The scenarios, in the order in which they were given.
        actions: The action space.
        encoder: The observation encoder.
        flat: Whether actions are flat: one index instead of three.
        infos: How much infos hold; see `dsd_env.envs.infos`.
        steps: int64 (n,), steps taken in each world's episode.
        cut: bool (n,), True where `max_episode_steps` ended the episode.
        worlds: The worlds themselves, with all their arrays.
        members: One handle per world.
        episode_seeds: Seed of each world's episode, int.
        generators: Generator of each world's episode seeds.
    """

    def __init__(
        self,
        scenario: ScenarioLike | Sequence[ScenarioLike],
        n_worlds: int,
        *,
        engine: str = "auto",
        render_mode: str | None = None,
        discount_rate_per_s: float | None = None,
        price_delays: bool = False,
        n_placements: int | None = None,
        flat_actions: bool = False,
        name_seed: EpisodeSeeds | None = None,
        threads: int = 1,
        engine_options: Mapping[str, int] | None = None,
        max_episode_steps: int | None = None,
        infos: str = "full",
        offered: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compile the scenarios and allocate the worlds; see the environments for the arguments."""
        if engine not in ("auto", "compiled"):
            raise ValueError(
                f"engine = {engine!r}: many worlds at once run on the compiled engine alone; for the "
                "reference take gymnasium.make_vec(..., vectorization_mode='sync') or "
                "Stable-Baselines3's make_vec_env"
            )
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"render_mode = {render_mode!r} is not one of {list(RENDER_MODES)}; for timelines take "
                "gymnasium.make_vec(..., vectorization_mode='sync')"
            )
        check_discount(discount_rate_per_s)
        self.infos = check_infos(infos)
        self._max_steps = checked_max_episode_steps(max_episode_steps)
        self.scenarios = load_mixture(scenario)
        self.actions = common_space(self.scenarios, n_placements)
        self.encoder = ObservationEncoder.of(self.scenarios[0], self.actions.n_placements)
        self.flat = flat_actions
        self.single_observation_space = gym.spaces.Box(self.encoder.low, self.encoder.high, dtype=np.float32)
        self.single_action_space: gym.spaces.Discrete | gym.spaces.MultiDiscrete = (
            gym.spaces.Discrete(self.actions.n_flat)
            if flat_actions
            else gym.spaces.MultiDiscrete(list(self.actions.nvec))
        )
        # A scenario that is listed twice is drawn twice as often, but compiled once.
        distinct = list({each.name: each for each in self.scenarios}.values())
        self._number_of = [[each.name for each in distinct].index(each.name) for each in self.scenarios]
        layouts = [compiled_layout("compiled", each, options=engine_options) for each in distinct]
        self.worlds = WorldVector(
            [layout for layout in layouts if layout is not None],
            n_worlds,
            [reward_factors(each) for each in distinct],
            [reward_weights(each) for each in distinct],
            n_placements=self.actions.n_placements,
            price_delays=price_delays,
            threads=threads,
        )
        self._distinct = distinct
        self._offered = self._checked_offer(offered)
        self.render_mode = render_mode
        self.price_delays = price_delays
        self._discount_rate_per_s = discount_rate_per_s
        self._numeric = NumericInfos(price_delays, discount_rate_per_s)
        # A scenario that is listed several times goes by its first index.
        self._listed = np.array([self._number_of.index(number) for number in range(len(distinct))])
        self._name_seed = name_seed
        self.steps = np.zeros(n_worlds, dtype=np.int64)
        self.cut = np.zeros(n_worlds, dtype=np.bool_)
        self.generators: list[np.random.Generator | None] = [None] * n_worlds
        self.generator_seeds: list[int] = [-1] * n_worlds
        self.episode_seeds = [-1] * n_worlds
        self._episodes = [0] * n_worlds
        self.members = [WorldMember(self, world) for world in range(n_worlds)]
        self.all = np.arange(n_worlds)

    def _checked_offer(self, offered: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        if offered is None:
            return None
        shape = (len(self.scenarios), sum(self.actions.nvec))
        if self.flat or np.shape(offered) != shape:
            raise ValueError(
                f"offered: a mask of shape {shape} for actions of three parts, not {np.shape(offered)}"
            )
        return np.asarray(offered, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.worlds)

    # ------------------------------------------------------------------ episodes

    def seed(self, world: int, seed: int | None) -> None:
        """Seed a world's generator of episode seeds; None takes a seed from the operating system."""
        self.generators[world], self.generator_seeds[world] = seeding.np_random(seed)

    def generator(self, world: int) -> np.random.Generator:
        """Return the generator of a world's episode seeds."""
        if self.generators[world] is None:
            self.seed(world, None)
        generator = self.generators[world]
        assert generator is not None
        return generator

    def begin(self, worlds: NDArray[np.int64], seeds: Sequence[int | None] | None = None) -> None:
        """Start new episodes in some worlds.

        Args:
            worlds: Indices of the worlds.
            seeds: Episode seeds; where there is none, the world draws its own.
        """
        numbers = worlds.tolist()
        drawn = [
            self._next_seed(world) if seed is None else seed
            for world, seed in zip(numbers, seeds or [None] * len(numbers), strict=True)
        ]
        n = len(self.scenarios)
        scenario_numbers = [self._number_of[drawn_scenario(seed, n)] if n > 1 else 0 for seed in drawn]
        self.worlds.begin(
            worlds,
            np.array([rng.as_int64(seed) for seed in drawn], dtype=np.int64),
            np.array(scenario_numbers, dtype=np.int64),
        )
        for world, seed in zip(numbers, drawn, strict=True):
            self.episode_seeds[world] = seed
        self.steps[worlds] = 0
        self.cut[worlds] = False

    def _next_seed(self, world: int) -> int:
        if self._name_seed is None:
            return draw_episode_seed(self.generator(world))
        episode = self._episodes[world]
        self._episodes[world] += 1
        return rng.checked_seed(self._name_seed(world, episode), "episode_seed")

    def step(self, actions: object, stepping: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Step every world, or some of them; return the worlds whose episodes have ended.

        Args:
            actions: Integers, shape (n, 3), or (n,) with flat actions.
            stepping: Mask of the worlds that step; the actions of the others are ignored.

        Raises:
            ValueError: The actions are not integers, have another shape, or one is outside the action space;
                then no world has stepped.
        """
        chosen = self.actions.indices(actions, (len(self),) if self.flat else (len(self), 3), flat=self.flat)
        if self.flat:
            chosen = self.actions.unflatten(chosen if stepping is None else chosen * stepping)
        self.worlds.step(chosen, None if stepping is None else np.flatnonzero(stepping))
        self.steps += 1 if stepping is None else stepping
        ended: NDArray[np.bool_] = self.worlds.statuses != DUE
        if self._max_steps is not None:
            self.cut = self.steps >= self._max_steps
            ended |= self.cut
        return ended if stepping is None else ended & stepping

    def over(self, world: int) -> bool:
        """Return whether a world's episode has ended."""
        return bool(self.worlds.statuses[world] != DUE) or bool(self.cut[world])

    def truncations(self) -> NDArray[np.bool_]:
        """Return the worlds whose episodes have been truncated."""
        truncated: NDArray[np.bool_] = self.worlds.statuses == TRUNCATED
        return truncated if self._max_steps is None else truncated | self.cut

    def terminations(self) -> NDArray[np.bool_]:
        """Return the worlds whose episodes have terminated."""
        terminated: NDArray[np.bool_] = self.worlds.statuses == TERMINATED
        return terminated

    def scenario_of(self, world: int) -> Scenario:
        """Return the scenario of a world's episode."""
        return self._distinct[int(self.worlds.scenario_numbers[world])]

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks of all worlds: the engine's array; a new one with flat actions or `offered`."""
        if self._offered is not None:
            offered: NDArray[np.bool_] = self._offered[self._listed[self.worlds.scenario_numbers]]
            return self.worlds.masks & offered
        return self.worlds.flat_masks() if self.flat else self.worlds.masks

    def save(self, world: int) -> EnvState:
        """Return a world's state; see :meth:`dsd_env.envs.EdgeCloudEnv.clone_state`."""
        return EnvState(
            "compiled",
            self.scenario_of(world),
            self.episode_seeds[world],
            self.generator(world).bit_generator.state,
            self.worlds.save(world),
            steps=int(self.steps[world]),
            named=self._episodes[world],
        )

    def restore(self, world: int, state: EnvState) -> None:
        """Restore in a world the saved state of this world, of another one, or of a scalar environment.

        Raises:
            ValueError: The state does not fit; see :meth:`dsd_env.envs.EdgeCloudEnv.restore_state`.
        """
        if state.world is None:
            raise ValueError(f"the state was made on engine {state.engine!r}, this is 'compiled'")
        scenario_number = check_state(state, self._distinct, len(self.encoder.features))
        self.worlds.restore(world, state.world, scenario_number)
        self.episode_seeds[world] = state.episode_seed
        self.generator(world).bit_generator.state = dict(state.generator)
        self.steps[world] = state.steps
        self._episodes[world] = state.named or self._episodes[world]
        self.cut[world] = self._max_steps is not None and state.steps >= self._max_steps

    # ------------------------------------------------------------------ infos of one world

    def _decision(self, fact: list[int], delay_s: float) -> dict[str, Any]:
        described = due_of_row(fact[batch.FACT_DUE :])
        if self.price_delays:
            described["delay_caused_s"] = delay_s
        return described

    def decision(self, world: int) -> dict[str, Any]:
        """Return the description of a world's due decision."""
        return self._decision(self.worlds.facts[world].tolist(), float(self.worlds.delays[world, 0]))

    def _told(self, world: int, info: dict[str, Any]) -> dict[str, Any]:
        """Return a full info in the form that the argument `infos` asks for."""
        if self.infos == "full":
            return info
        index = int(self._listed[self.worlds.scenario_numbers[world]])
        return self._numeric.of(info, self.episode_seeds[world], index)

    def begin_info(self, world: int) -> dict[str, Any]:
        """Return the info of a world's reset."""
        if self.infos == "none":
            return {}
        now_s, dt_s = self.worlds.clocks[world].tolist()
        info = {
            "now_s": now_s,
            "dt_s": dt_s,
            "decision": self.decision(world),
            "episode_seed": self.episode_seeds[world],
            "scenario": self.scenario_of(world).name,
        }
        return self._told(world, info)

    def step_info(self, world: int) -> dict[str, Any]:
        """Return the info of a world's last step."""
        return next(self.step_infos([world]))

    def step_infos(self, worlds: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the infos of the last step of some worlds; None: of all worlds."""
        if self.infos == "none":
            yield from ({} for _ in (range(len(self)) if worlds is None else worlds))
            return
        w = self.worlds
        which: Any = slice(None) if worlds is None else worlds
        rows = zip(
            range(len(self)) if worlds is None else worlds,
            w.clocks[which].tolist(),
            w.terms[which].tolist(),
            w.facts[which].tolist(),
            w.delays[which, 0].tolist(),
            w.statuses[which].tolist(),
            strict=True,
        )
        for world, (now_s, dt_s), terms, fact, delay_s, status in rows:
            info: dict[str, Any] = {
                "now_s": now_s,
                "dt_s": dt_s,
                "reward_terms": dict(zip(REWARD_TERMS, terms, strict=True)),
                "resolved": REASONS[fact[batch.FACT_REASON]],
                "invalid_actions": fact[batch.FACT_INVALID],
                "completed": self._completed(world) if fact[batch.FACT_COMPLETED] else [],
            }
            if self._discount_rate_per_s is not None:
                info["discount"] = math.exp(-self._discount_rate_per_s * dt_s)
            if status == DUE:
                info["decision"] = self._decision(fact, delay_s)
            if status != DUE or self.cut[world]:
                info["episode_metrics"] = w.reader(world).metrics()
                info["episode_seed"] = self.episode_seeds[world]
                info["scenario"] = self.scenario_of(world).name
            yield self._told(world, info)

    def _completed(self, world: int) -> list[tuple[int, float, float, int]]:
        return [
            (request.number, request.completed_s, request.delay_caused_s, request.committed)
            for request in self.worlds.reader(world).newly_completed()
        ]

    # ------------------------------------------------------------------ infos of all worlds, as arrays

    def arrays(
        self,
        told: NDArray[np.bool_],
        begun: NDArray[np.bool_] | None = None,
        ended: NDArray[np.bool_] | None = None,
    ) -> dict[str, Any]:
        """Return infos in Gymnasium's form: arrays over the worlds, each with a mask of its valid entries.

        Args:
            told: Mask of the worlds that get the info of a step.
            begun: Mask of the worlds that get the info of a reset, if any. Entries of worlds in neither mask
                are 0 or None.
            ended: Mask of the worlds in `told` whose episodes have ended, if any.
        """
        if self.infos == "none":
            return {}
        # The masks are returned to the user, so they must be copies of the caller's.
        told = shown = due = told.copy()
        episodes = None
        if begun is not None or ended is not None:
            none = np.zeros(len(self), dtype=np.bool_)
            shown = told if begun is None else told | begun
            due = shown & (self.worlds.statuses == DUE)
            ended = none if ended is None else ended.copy()
            episodes = ended if begun is None else begun | ended
        if self.infos == "numeric":
            return _masked(self._numeric_arrays(shown, due, told, ended), shown)
        infos = self._now_arrays(shown, due)
        if shown is told or told.any():
            self._add_steps(infos, told)
        if episodes is not None:
            self._add_episodes(infos, episodes)
        if ended is not None and ended.any():
            columns = dict(zip(METRICS, self._metrics(ended, 0.0).T, strict=True))
            for world in np.flatnonzero(ended).tolist():
                # Metrics by class of SLO, which differ between scenarios.
                metrics = self.worlds.reader(world).metrics()
                for name in class_metrics(self.scenario_of(world)):
                    columns.setdefault(name, np.zeros(len(self)))[world] = metrics[name]
            infos["episode_metrics"], infos["_episode_metrics"] = _masked(columns, ended), ended
        return infos

    def _now_arrays(self, shown: NDArray[np.bool_], due: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the clocks of some worlds, and the decisions now due."""
        w = self.worlds
        now_s, dt_s = w.clocks.T * shown
        infos: dict[str, Any] = _masked({"now_s": now_s, "dt_s": dt_s}, shown)
        if due.any():
            facts = w.facts.T * due
            decision: dict[str, NDArray[Any]] = {
                field.name: row != 0 if field.is_flag else row
                for field, row in zip(DUE_FIELDS, facts[batch.FACT_DUE :], strict=True)
            }
            if self.price_delays:
                decision["delay_caused_s"] = w.delays[:, 0] * due
            infos["decision"], infos["_decision"] = _masked(decision, due), due
        return infos

    def _add_steps(self, infos: dict[str, Any], told: NDArray[np.bool_]) -> None:
        w, n = self.worlds, len(self)
        # Copies, with 0 where an episode has just begun: there the step belongs to the old episode.
        terms, invalid = w.terms.T * told, w.facts[:, batch.FACT_INVALID] * told
        infos["reward_terms"] = _masked(dict(zip(REWARD_TERMS, terms, strict=True)), told)
        infos["_reward_terms"] = told
        reasons, completed = np.full(n, None, dtype=object), np.full(n, None, dtype=object)
        for world in w.facts[:, batch.FACT_REASON].nonzero()[0].tolist():
            if told[world]:
                reasons[world] = REASONS[w.facts[world, batch.FACT_REASON]]
        counts = w.facts[:, batch.FACT_COMPLETED].tolist()
        for world, (here, count) in enumerate(zip(told.tolist(), counts, strict=True)):
            if here:
                completed[world] = self._completed(world) if count else []
        values = {"resolved": reasons, "invalid_actions": invalid, "completed": completed}
        if self._discount_rate_per_s is not None:
            values["discount"] = self._discounts(self._discount_rate_per_s) * told
        infos |= _masked(values, told)

    def _add_episodes(self, infos: dict[str, Any], which: NDArray[np.bool_]) -> None:
        names = np.full(len(self), None, dtype=object)
        for world in np.flatnonzero(which).tolist():
            names[world] = self.scenario_of(world).name
        infos |= _masked({"episode_seed": self._seeds(which), "scenario": names}, which)

    def _numeric_arrays(
        self,
        shown: NDArray[np.bool_],
        due: NDArray[np.bool_],
        told: NDArray[np.bool_],
        ended: NDArray[np.bool_] | None,
    ) -> dict[str, NDArray[Any]]:
        """Return the entries of :class:`~dsd_env.envs.infos.NumericInfos` for all worlds."""
        w = self.worlds
        ended = np.zeros(len(self), dtype=np.bool_) if ended is None else ended
        now_s, dt_s = w.clocks.T * shown
        facts = np.where(due, w.facts.T, NOT_DUE) * shown
        steps = w.facts.T * told
        values: dict[str, NDArray[Any]] = {"now_s": now_s, "dt_s": dt_s, "decision_due": due}
        values |= {
            f"decision_{field.name}": due & (row != 0) if field.is_flag else row
            for field, row in zip(DUE_FIELDS, facts[batch.FACT_DUE :], strict=True)
        }
        values |= {
            "episode_seed": self._seeds(shown),
            "scenario_index": self._listed[w.scenario_numbers] * shown,
            "reward_terms": w.terms * told[:, None],
            # The engine numbers the reasons by the same codes.
            "resolved_code": steps[batch.FACT_REASON],
            "invalid_actions": steps[batch.FACT_INVALID],
            "completed_requests": steps[batch.FACT_COMPLETED],
            "has_episode_metrics": ended,
            "episode_metrics": np.where(shown[:, None], self._metrics(ended, math.nan), 0.0),
        }
        if self.price_delays:
            delays = np.where(due, w.delays[:, 0], math.nan)
            values["decision_delay_caused_s"] = np.where(shown, delays, 0.0)
        if self._discount_rate_per_s is not None:
            values["discount"] = self._discounts(self._discount_rate_per_s) * shown
        return values

    def _metrics(self, ended: NDArray[np.bool_], empty: float) -> NDArray[np.float64]:
        """Return the metrics of ended episodes, shape (n, metrics); the rows of other worlds hold `empty`."""
        found = np.full((len(self), len(METRICS)), empty)
        for world in np.flatnonzero(ended).tolist():
            metrics = self.worlds.reader(world).metrics()
            found[world] = [metrics[name] for name in METRICS]
        return found

    def _discounts(self, rate_per_s: float) -> NDArray[np.float64]:
        return np.array([math.exp(-rate_per_s * dt_s) for dt_s in self.worlds.clocks[:, 1].tolist()])

    def _seeds(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        seeds = np.zeros(len(self), dtype=np.int64)
        for world in np.flatnonzero(which).tolist():
            seeds[world] = rng.as_int64(self.episode_seeds[world])
        return seeds


def _masked(values: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return arrays, each with its mask under Gymnasium's name; all share one mask array."""
    infos: dict[str, Any] = {}
    for name, value in values.items():
        infos[name] = value
        infos["_" + name] = mask
    return infos


class WorldMember:
    """Handle of one world, on which ``get_attr``, ``call`` and ``env_method`` act.

    The handle has the attributes of a scalar environment, except ``step`` and ``reset``, because the worlds
    step together.

    Attributes:
        action_space: The action space of one world.
        observation_space: The observation space of one world.
        actions: The action lists.
        encoder: The observation encoder.
        metadata: The render modes.
        render_mode: The render mode.
        engine: Always ``"compiled"``.
        spec: Always None.
    """

    def __init__(self, parent: EpisodeWorlds, world: int) -> None:
        """Make the handle of one world of a parent."""
        self._parent, self._world = parent, world
        self.action_space = parent.single_action_space
        self.observation_space = parent.single_observation_space
        self.actions, self.encoder = parent.actions, parent.encoder
        self.metadata = {"render_modes": list(RENDER_MODES)}
        self.render_mode = parent.render_mode
        self.engine = "compiled"
        self.spec = None

    @property
    def unwrapped(self) -> WorldMember:
        """The world itself."""
        return self

    @property
    def scenario(self) -> Scenario:
        """The scenario of the world's episode; before the first episode, the first one of a mixture."""
        return self._parent.scenario_of(self._world)

    @property
    def episode_seed(self) -> int:
        """Seed of the world's episode; -1 before the first episode."""
        return self._parent.episode_seeds[self._world]

    @property
    def np_random(self) -> np.random.Generator:
        """Generator of the world's episode seeds."""
        return self._parent.generator(self._world)

    @property
    def np_random_seed(self) -> int:
        """Seed of the generator of the world's episode seeds."""
        self._parent.generator(self._world)
        return self._parent.generator_seeds[self._world]

    @property
    def view(self) -> DecisionView:
        """Typed view of the decision now due."""
        return self._parent.worlds.reader(self._world).view()

    @property
    def simulation(self) -> Any:
        """The world's simulation, for inspection; valid until the world's next episode."""
        return self._parent.worlds.simulation(self._world)

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self._parent.worlds.clocks[self._world, 0])

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask of the due decision (bool; shape (sum(nvec),), or (n,) with flat actions)."""
        if self._parent.flat:
            return self._parent.worlds.flat_masks(self._world)
        mask: NDArray[np.bool_] = self._parent.masks()[self._world].copy()
        return mask

    def metrics(self) -> dict[str, float]:
        """Return every metric of the episode so far."""
        return self._parent.worlds.reader(self._world).metrics()

    def describe(self) -> dict[str, Any]:
        """Return the decision now due as ``info["decision"]`` of the scalar environment describes it."""
        return self._parent.decision(self._world)

    def clone_state(self) -> EnvState:
        """Return the world's state; see :meth:`dsd_env.envs.EdgeCloudEnv.clone_state`."""
        return self._parent.save(self._world)

    def render(self) -> str | None:
        """Render the decision now due as text, with ``render_mode="ansi"``."""
        if self.render_mode is None:
            gym.logger.warn('You are calling render without a render mode. Say render_mode="ansi".')
            return None
        return rendering.render_text(self.scenario, self.view, self.now_s)

    def has_wrapper_attr(self, name: str) -> bool:
        """Return whether the world has an attribute."""
        return hasattr(self, name)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute."""
        return getattr(self, name)
