"""Measure how fast the engines, the environments and training are, as figures of one run on this machine.

    python scripts/benchmark.py --json benchmark.json

Rates are per second of wall time, the best of several repeats; run it on an idle machine. Ratios stand beside
absolutes, since they travel better between machines: the compiled engine over the reference, PPO on this
environment over PPO on one that costs nothing. Decisions are the same everywhere (four drafts at the target,
everybody in one batch), and random ones in a row of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli
import numpy as np

from agents.provenance import now_utc, versions
from dsd_env.files import write_json

GAMMA, BATCH = 4, 64
"""The decision that is taken again and again: drafts, and sequences per iteration."""
SCENARIOS = ("metro", "dsd_paper", "fleet_600")
WORLDS = (1, 64, 1024)
MOST_BYTES = 10e9
"""Worlds that would take more memory than this are left out."""
SPEED_WORLDS = (64, 256, 512, 1024)
"""Numbers of worlds among which the best is sought."""
ROLLOUT = 16_384
"""Decisions between two updates of PPO; minibatches of 4,096, four epochs."""


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and all behind them")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of one run")
    parser.add_argument(
        "--skip",
        default="",
        help="parts to leave out: startup, engine, streams, envs, ppo, scaling, serving (with commas)",
    )
    arguments = parser.parse_args()
    skipped = {part for part in arguments.skip.split(",") if part}
    parts: dict[str, Callable[[Bench], None]] = {
        "startup": startup,
        "engine": engine,
        "streams": streams,
        "envs": envs,
        "ppo": ppo,
        "scaling": scaling,
        "serving": serving,
    }
    if unknown := skipped - set(parts):
        parser.error(f"--skip {','.join(sorted(unknown))}: known are {', '.join(parts)}")
    bench = Bench(arguments.repeats, arguments.seconds)
    for name, part in parts.items():
        if name not in skipped:
            print(f"\n== {name}")
            part(bench)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.note("peak_memory_bytes", peak_bytes, "bytes")
    if arguments.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        write_json(
            arguments.json,
            {**bench.figures, "machine": machine, "versions": versions(), "time": now_utc()},
        )
        print(f"\n{arguments.json}")
    return 0


class Bench:
    """Figures by name, printed as they come."""

    def __init__(self, repeats: int, seconds: float) -> None:
        """Measure each thing `repeats` times, for `seconds` at least."""
        self.repeats, self.seconds = repeats, seconds
        self.figures: dict[str, float] = {}

    def note(self, name: str, value: float, unit: str = "") -> None:
        """Keep a figure and print it."""
        self.figures[name] = value
        print(
            f"{name:58} {value:14,.4g} {unit}" if value < 100 else f"{name:58} {value:14,.0f} {unit}",
            flush=True,
        )

    def rate(self, work: Callable[[], int]) -> float:
        """Return the best rate of `work`, which returns how much it did, per second of wall time."""
        best = 0.0
        for _ in range(self.repeats):
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < self.seconds:
                done += work()
            best = max(best, done / (time.perf_counter() - begin))
        return best


# ---------------------------------------------------------------------- start-up

_IMPORT = "import time; t = time.perf_counter(); import dsd_env; print(time.perf_counter() - t)"
_FIRST = """
import time, warnings, logging
logging.disable(logging.WARNING)
import dsd_env, gymnasium
t = time.perf_counter()
envs = gymnasium.make_vec("dsd_env/EdgeCloud-v0", num_envs=2, scenario="single_lan", engine="compiled")
envs.reset(seed=0)
envs.step(envs.action_space.sample())
print(time.perf_counter() - t)
"""


def startup(bench: Bench) -> None:
    """Importing; the first steps when the engine has to be compiled, and when it is in the cache."""
    root = Path(__file__).resolve().parents[1]

    def fresh(program: str, cache: str) -> float:
        environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[-1])

    with tempfile.TemporaryDirectory() as cache:
        bench.note("import_s", min(fresh(_IMPORT, cache) for _ in range(bench.repeats)), "s")
        bench.note("first_call_s", fresh(_FIRST, cache), "s")
        bench.note("cached_call_s", min(fresh(_FIRST, cache) for _ in range(bench.repeats)), "s")


# ---------------------------------------------------------------------- engines


def usual_action(scenario: Any) -> list[int]:
    """Return the indices of the decision that is taken again and again, or what comes next to it."""
    gammas, sizes = scenario.actions.gammas, scenario.actions.batch_sizes
    return [
        max(i for i, gamma in enumerate(gammas) if gamma <= GAMMA),
        max(i for i, size in enumerate(sizes) if size <= BATCH),
        0,
    ]


class Worlds:
    """Many worlds of one scenario, stepped with the same decision or with random ones."""

    def __init__(
        self,
        name: str,
        n_worlds: int,
        threads: int,
        *,
        random: bool = False,
        placement: int = 0,
        protocol: str | None = None,
    ) -> None:
        """Set them up, past the first seconds of an empty system.

        Args:
            name: Scenario.
            n_worlds: How many worlds.
            threads: Threads to step them with.
            random: Take random decisions.
            placement: Where the usual decision drafts.
            protocol: Kind of protocol, if not the scenario's own.
        """
        import dsd_env
        from dsd_env.control.rewards import reward_factors, reward_weights
        from dsd_env.sim.compiled import compile_scenario
        from dsd_env.sim.compiled.vector import WorldVector

        changes = {} if protocol is None else {"protocol__kind": protocol}
        scenario = dsd_env.load_scenario(name, **changes)
        layout = compile_scenario(scenario)
        self.worlds = WorldVector(
            [layout], n_worlds, [reward_factors(scenario)], [reward_weights(scenario)], threads=threads
        )
        generator = np.random.default_rng(0)
        sizes = [len(scenario.actions.gammas), len(scenario.actions.batch_sizes), scenario.n_placements]
        usual = np.tile(np.array([*usual_action(scenario)[:2], placement]), (n_worlds, 1))
        self._actions = [
            np.column_stack([generator.integers(size, size=n_worlds) for size in sizes]) for _ in range(256)
        ]
        if not random:
            self._actions = [usual]
        self._seed = self._steps = self._events_of_ended = 0
        self._begin(np.arange(n_worlds))
        for _ in range(max(100, min(1500, 100_000 // n_worlds))):
            self.step()

    def _begin(self, worlds: np.ndarray) -> None:
        self.worlds.begin(worlds, np.arange(self._seed, self._seed + len(worlds)))
        self._seed += len(worlds)

    def step(self) -> int:
        """Step all worlds; return how many decisions that was."""
        worlds = self.worlds
        worlds.step(self._actions[self._steps % len(self._actions)])
        self._steps += 1
        if worlds.statuses.any():
            ended = np.flatnonzero(worlds.statuses)
            self._events_of_ended += sum(map(self._events, ended.tolist()))
            self._begin(ended)
        return len(worlds)

    def _events(self, world: int) -> int:
        return int(self.worlds.reader(world).header["events_done"])

    def events(self) -> int:
        """Return how many events the worlds have gone through."""
        return self._events_of_ended + sum(map(self._events, range(len(self.worlds))))

    def steps(self) -> int:
        """Step all worlds many times; return how many decisions that was."""
        return sum(self.step() for _ in range(max(1, 4096 // len(self.worlds))))


def engine(bench: Bench) -> None:
    """Decisions per second of both engines."""
    import dsd_env
    from dsd_env.sim import ReferenceSimulation
    from dsd_env.sim.compiled import compile_scenario

    cores = os.cpu_count() or 1
    for name in SCENARIOS:
        size = compile_scenario(dsd_env.load_scenario(name)).bytes_per_world
        bench.note(f"bytes_per_world/{name}", size, "bytes of address space at most")
        for n_worlds in WORLDS:
            if n_worlds * size > MOST_BYTES:
                continue
            for threads in sorted({1, min(cores, n_worlds)}):
                worlds = Worlds(name, n_worlds, threads)
                bench.note(
                    f"compiled/{name}/worlds={n_worlds}/threads={threads}", bench.rate(worlds.steps), "1/s"
                )
    random = Worlds("metro", 64, cores, random=True)
    bench.note(f"compiled/metro/worlds=64/threads={cores}/random", bench.rate(random.steps), "1/s")
    best = 0.0
    for n_worlds in SPEED_WORLDS:
        worlds = Worlds("metro", n_worlds, cores)
        best = max(best, bench.rate(worlds.steps))
    bench.note("compiled_decisions_per_s", best, "1/s")

    scenario = dsd_env.load_scenario("metro")
    gamma, size, placement = usual_action(scenario)
    decision = dsd_env.Decision(scenario.actions.gammas[gamma], scenario.actions.batch_sizes[size], placement)
    simulation = ReferenceSimulation(scenario, 0)

    def decide() -> int:
        nonlocal simulation
        for _ in range(200):
            if simulation.next_decision() is None:
                simulation = ReferenceSimulation(scenario, simulation.seed + 1)
            else:
                simulation.decide(decision)
        return 200

    bench.note("reference_decisions_per_s", bench.rate(decide), "1/s")
    bench.note(
        "compiled_over_reference",
        bench.figures["compiled_decisions_per_s"] / bench.figures["reference_decisions_per_s"],
    )


# ---------------------------------------------------------------------- streams

OWN_DEVICE = 1
"""Where `metro` lists the own device."""
OWN_DEVICE_PLAIN, OWN_DEVICE_WITH_BRANCHES = 3, 4
"""Where `stream_node_branches` lists it, without branches and with them."""


def streams(bench: Bench) -> None:
    """What a decision of a stream costs beside one of a round (`metro`), and with branches beside without.

    Both from own devices. Branches are those of `stream_node_branches`: four of four tokens at each draft.
    """
    rounds, streamed = (
        Worlds("metro", 64, 1, placement=OWN_DEVICE, protocol=kind) for kind in ("synchronous", "streaming")
    )
    ratio = by_turns(bench, {"metro/own/synchronous": rounds, "metro/own/streaming": streamed})
    bench.note("stream_decision_over_round_decision", ratio)
    plain, with_branches = (
        Worlds("stream_node_branches", 64, 1, placement=place)
        for place in (OWN_DEVICE_PLAIN, OWN_DEVICE_WITH_BRANCHES)
    )
    ratio = by_turns(bench, {"stream_node/own/plain": plain, "stream_node/own/branches": with_branches})
    bench.note("branches_decision_over_plain_decision", ratio)


def by_turns(bench: Bench, worlds: dict[str, Worlds]) -> float:
    """Measure two sets of worlds by turns, so that what else the machine does hits both alike.

    Returns:
        The median of the second's time per decision over the first's.
    """
    first, second = worlds
    spent_s, done, events = dict.fromkeys(worlds, 0.0), dict.fromkeys(worlds, 0), dict.fromkeys(worlds, 0)
    ratios = []
    for _ in range(max(5, 3 * bench.repeats)):
        turn: dict[str, float] = {}
        for name, stepped in worlds.items():
            begin, n = time.perf_counter(), 0
            before = stepped.events()
            while time.perf_counter() - begin < 0.2 * bench.seconds:
                n += stepped.steps()
            turn[name] = (time.perf_counter() - begin) / n
            spent_s[name] += turn[name] * n
            done[name] += n
            events[name] += stepped.events() - before
        ratios.append(turn[second] / turn[first])
    for name in worlds:
        bench.note(f"decisions_per_s/{name}", done[name] / spent_s[name], "1/s")
        bench.note(f"events_per_decision/{name}", events[name] / done[name])
        bench.note(f"us_per_event/{name}", 1e6 * spent_s[name] / events[name], "us")
    return float(np.median(ratios))


# ---------------------------------------------------------------------- environments


def envs(bench: Bench) -> None:
    """Steps per second of the scalar and of the vector environment, as Gymnasium measures them."""
    import gymnasium
    from gymnasium.utils.performance import benchmark_vector_step

    import dsd_env  # noqa: F401

    for kind in ("compiled", "reference"):
        env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="metro", engine=kind, disable_env_checker=True)
        scenario: Any = env.get_wrapper_attr("scenario")
        action = np.array(usual_action(scenario))
        env.reset(seed=0)

        def step(env: Any = env, action: Any = action) -> int:
            for _ in range(100):
                *_, terminated, truncated, _info = env.step(action)
                if terminated or truncated:
                    env.reset()
            return 100

        bench.note(f"env_steps_per_s/{kind}", bench.rate(step), "1/s")
    for n_envs in (64, 512):
        vector = gymnasium.make_vec("dsd_env/EdgeCloud-v0", num_envs=n_envs, scenario="metro")
        fastest = max(
            benchmark_vector_step(vector, target_duration=int(max(1, bench.seconds)), seed=0)
            for _ in range(bench.repeats)
        )
        bench.note(f"benchmark_vector_step/n={n_envs} (random actions)", fastest, "1/s")
        vector.close()


# ---------------------------------------------------------------------- training


def zero_cost_env(n_envs: int, like: Any) -> Any:
    """Return a VecEnv of the same spaces whose steps cost nothing: the ceiling of every trainer."""
    from stable_baselines3.common.vec_env import VecEnv

    class ZeroCost(VecEnv):
        def __init__(self) -> None:
            super().__init__(n_envs, like.observation_space, like.action_space)
            self._observations = np.zeros((n_envs, *like.observation_space.shape), dtype=np.float32)
            self._rewards = np.zeros(n_envs, dtype=np.float32)
            self._dones = np.zeros(n_envs, dtype=bool)
            self._infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]

        def reset(self) -> Any:
            return self._observations

        def step_async(self, actions: Any) -> None:
            pass

        def step_wait(self) -> Any:
            return self._observations, self._rewards, self._dones, self._infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * n_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            pass

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return [None] * n_envs

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * n_envs

    return ZeroCost()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: small networks are no faster in more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ppo(bench: Bench) -> None:
    """PPO of Stable-Baselines3, whole training and collection alone, against an environment without cost."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    import dsd_env

    class Clock(BaseCallback):
        """Adds up the time of rollouts."""

        collecting_s, begun_s = 0.0, 0.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            self.begun_s = time.perf_counter()

        def _on_rollout_end(self) -> None:
            self.collecting_s += time.perf_counter() - self.begun_s

    def train(vec_env: Any) -> tuple[float, float]:
        model = PPO(
            "MlpPolicy",
            vec_env,
            n_steps=ROLLOUT // vec_env.num_envs,
            batch_size=4096,
            n_epochs=4,
            device="cpu",
        )
        model.learn(ROLLOUT)
        clock = Clock()
        begin = time.perf_counter()
        model.learn(4 * ROLLOUT, callback=clock, reset_num_timesteps=False)
        return 4 * ROLLOUT / (time.perf_counter() - begin), 4 * ROLLOUT / clock.collecting_s

    n_envs = 64
    ours: list[tuple[float, float]] = []
    ceiling: list[tuple[float, float]] = []
    with _one_thread():
        vec_env = dsd_env.make_sb3_vec_env("metro", n_envs, seed=0, threads=os.cpu_count() or 1)
        for _ in range(bench.repeats):  # in turn, so that both meet the same machine
            ours.append(train(vec_env))
            ceiling.append(train(zero_cost_env(n_envs, vec_env)))
    bench.note("ppo_fps", max(fps for fps, _ in ours), "1/s")
    bench.note("ppo_fps_zero_cost_env", max(fps for fps, _ in ceiling), "1/s")
    bench.note("ppo_fraction_of_ceiling", bench.figures["ppo_fps"] / bench.figures["ppo_fps_zero_cost_env"])
    bench.note("ppo_collection_fps", max(fps for _, fps in ours), "1/s")
    bench.note("ppo_collection_fps_zero_cost_env", max(fps for _, fps in ceiling), "1/s")


# ---------------------------------------------------------------------- scaling


def scaling(bench: Bench) -> None:
    """Cost per decision with 24 and with 600 clients at equal load per target, one thread."""
    for name in ("fleet_24", "fleet_600"):
        worlds = Worlds(name, 16, 1)
        bench.note(f"ns_per_decision/{name}", 1e9 / bench.rate(worlds.steps), "ns")
    figures = bench.figures
    bench.note(
        "cost_per_decision_600_over_24",
        figures["ns_per_decision/fleet_600"] / figures["ns_per_decision/fleet_24"],
    )


# ---------------------------------------------------------------------- serving

BATCH_SERVED = 256
"""Requests that are decided on at one moment."""


def random_policy(scenario: Any, *, fleet: bool = False) -> Any:
    """Return a policy of the usual size for a scenario, with random weights; `fleet`: of the fleet view."""
    from dsd_env.control import ActionSpace, ObservationEncoder
    from dsd_env.control.fleet import FleetSpace
    from dsd_env.control.fleet_view import FleetEncoder
    from dsd_env.policy import Manifest, MlpActor, Policy
    from dsd_env.policy.manifest import Actions, Fleet, Network, Training, feature_specs, scenario_ref

    features, lists = ObservationEncoder.of(scenario).features, ActionSpace.of(scenario)
    plans, n_placements = FleetSpace(scenario), lists.n_placements
    if fleet:
        features, n_placements = FleetEncoder.of(plans).features, len(plans.places)
    space = plans if fleet else lists
    widths = (len(features), 64, 64, sum(space.nvec))
    generator = np.random.default_rng(0)
    layers = [(generator.normal(size=(n, m)) * m**-0.5, np.zeros(n)) for m, n in pairwise(widths)]
    manifest = Manifest(
        format_version=3 if fleet else 1,
        created=now_utc(),
        observation=feature_specs(features),
        action=Actions(
            gammas=space.gammas,
            batch_sizes=space.batch_sizes,
            n_placements=n_placements,
            fleet=Fleet.of(plans) if fleet else None,
        ),
        network=Network(layers=widths, activation="tanh", normalisations=2),
        scenario=scenario_ref(scenario),
        training=Training(algorithm="MaskablePPO", seed=0, steps=0),
    )
    return Policy(manifest, MlpActor(layers, "tanh", space.nvec))


def serving(bench: Bench) -> None:
    """Decisions in a serving process, by one and by the batch, beside SB3's `predict`.

    By compiled code, and in Python, which decides where Numba is not installed; and with a policy of the
    fleet view, the plan itself and decisions by it.
    """
    import dsd_env

    for name in ("single_lan", "metro"):
        scenario = dsd_env.load_scenario(name)
        policy = random_policy(scenario)
        for compiled in (True, False):
            _serve(scenario, policy, compiled, bench)
        _serve(scenario, random_policy(scenario, fleet=True), True, bench)
        _note_times("sb3_predict", name, _sb3_predictions(scenario, bench), bench)


def _serve(scenario: Any, policy: Any, compiled: bool, bench: Bench) -> None:
    from dsd_env.serving import Controller, RequestArrived, RoundVerified, TargetState, TokensCommitted

    now_s = [0.0]
    controller = Controller(policy, scenario, compiled=compiled, clock=lambda: now_s[0])
    targets = controller.deployment.targets
    names = [str(number) for number in range(BATCH_SERVED)]
    for i, each in enumerate(names):
        controller.observe(RequestArrived(each, 200, target=targets[i % len(targets)]))
        controller.decide(each)
        controller.observe(TokensCommitted(each))
    times_s: dict[str, list[float]] = {
        "serve_decide": [],
        "serve_observe": [],
        "serve_batch": [],
        **({"serve_plan": []} if policy.fleet else {"policy_alone": []}),
    }

    def timed(what: str, work: Callable[..., object], *arguments: Any) -> None:
        begin = time.perf_counter()
        work(*arguments)
        times_s[what].append(time.perf_counter() - begin)

    begin = time.perf_counter()
    n = 0
    while time.perf_counter() - begin < bench.repeats * bench.seconds or n < 5:
        n += 1
        now_s[0] += 1.0
        for target in targets:
            controller.observe(TargetState(target, resident=BATCH_SERVED, remaining_s=0.01))
        if policy.fleet:
            # It is due, as a second has passed.
            timed("serve_plan", controller.plan)
        for each in names:
            timed("serve_decide", controller.decide, each)
            timed("serve_observe", controller.observe, RoundVerified(each, 4, n % 5))
        if not policy.fleet:
            observation = controller.observation(names[0])
            for _ in names:
                timed("policy_alone", policy.action, observation)
        timed("serve_batch", controller.decide_many, names)
    how = ("" if compiled else "_in_python") + "_by_plan" * policy.fleet
    for what, measured in times_s.items():
        _note_times(what + how, scenario.name, measured, bench)
    safe = controller.counts["safe"] / controller.counts["decisions"]
    bench.note(f"safe_rule_share{how}/{scenario.name}", safe)


def _note_times(what: str, name: str, times_s: list[float], bench: Bench) -> None:
    for share in (50, 99):
        bench.note(f"{what}_us/{name}/p{share}", 1e6 * float(np.percentile(times_s, share)), "us")


def _sb3_predictions(scenario: Any, bench: Bench) -> list[float]:
    """Return the times of SB3's `predict` on one observation, with a network of the same size."""
    from gymnasium import spaces
    from stable_baselines3.common.policies import ActorCriticPolicy

    from dsd_env.control import ActionSpace, ObservationEncoder

    encoder = ObservationEncoder.of(scenario)
    policy = ActorCriticPolicy(
        spaces.Box(encoder.low, encoder.high),
        spaces.MultiDiscrete(list(ActionSpace.of(scenario).nvec)),
        lambda _: 0.0,
    )
    times_s: list[float] = []
    with _one_thread():
        x = np.full(len(encoder.features), 0.5, dtype=np.float32)
        begin = time.perf_counter()
        while time.perf_counter() - begin < bench.seconds:
            start = time.perf_counter()
            policy.predict(x, deterministic=True)
            times_s.append(time.perf_counter() - start)
    return times_s


if __name__ == "__main__":
    _cli.run(main)
