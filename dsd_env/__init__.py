"""dsd_env: a reinforcement-learning environment for scheduling edge-cloud speculative decoding.

>>> import dsd_env, gymnasium
>>> env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="metro")
>>> dsd_env.simulate("metro", "jsq_goodput", seed=1).metrics["e2e_s_mean"]

>>> environments = gymnasium.make_vec("dsd_env/EdgeCloud-v0", num_envs=8, scenario="metro")

Importing the package registers the environments. It needs neither torch nor Stable-Baselines3, and imports
Numba only for what uses the compiled engine.
"""

from typing import TYPE_CHECKING, Any

from dsd_env import policy
from dsd_env.control import Decision, DecisionView, StopKind, StopRule
from dsd_env.envs.registration import register_envs
from dsd_env.scenario import Scenario, ScenarioError, list_scenarios, load_scenario
from dsd_env.schedulers import Scheduler, make_scheduler, scheduler_names
from dsd_env.sim import ReferenceSimulation
from dsd_env.simulate import Result, simulate

if TYPE_CHECKING:
    from dsd_env.envs.fleet_sb3 import FleetVecEnv
    from dsd_env.envs.sb3 import CompiledVecEnv

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "DecisionView",
    "ReferenceSimulation",
    "Result",
    "Scenario",
    "ScenarioError",
    "Scheduler",
    "StopKind",
    "StopRule",
    "__version__",
    "list_scenarios",
    "load_scenario",
    "make_sb3_fleet_vec_env",
    "make_sb3_vec_env",
    "make_scheduler",
    "policy",
    "scheduler_names",
    "simulate",
]


def make_sb3_vec_env(
    scenario: Any = "metro", n_envs: int = 8, seed: int | None = None, **options: Any
) -> "CompiledVecEnv":
    """Return many environments on the compiled engine as one Stable-Baselines3 ``VecEnv``.

    Args:
        scenario: Name, file or content of a scenario; or a list of scenarios, from which each episode draws
            one.
        n_envs: Number of worlds.
        seed: World ``i`` is the environment seeded with ``seed + i``.
        **options: See :class:`dsd_env.envs.sb3.CompiledVecEnv`.

    Raises:
        ImportError: Stable-Baselines3 or Numba is not installed; the message says what to install.
        ScenarioError: A scenario is not valid.
        ValueError: An argument is wrong, or the scenarios of a mixture have different observation or action
            spaces.
    """
    from dsd_env.envs.sb3 import CompiledVecEnv

    return CompiledVecEnv(scenario, n_envs, seed, **options)


def make_sb3_fleet_vec_env(
    scenario: Any = "metro", n_envs: int = 8, seed: int | None = None, *, threads: int = 1, **options: Any
) -> "FleetVecEnv":
    """Return many environments of the fleet view as one Stable-Baselines3 ``VecEnv``.

    Args:
        scenario: Name, file or content of a scenario.
        n_envs: Number of worlds.
        seed: World ``i`` is the environment seeded with ``seed + i``.
        threads: Number of threads that simulate.
        **options: Arguments of :class:`dsd_env.envs.EdgeCloudFleetEnv`.

    Raises:
        ImportError: Stable-Baselines3 is not installed; the message says what to install.
        ScenarioError: The scenario is not valid.
        ValueError: An argument is wrong.
    """
    from dsd_env.envs.fleet_sb3 import FleetVecEnv

    return FleetVecEnv(n_envs, seed, threads=threads, scenario=scenario, **options)


register_envs()
