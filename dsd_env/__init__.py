"""dsd_env: a reinforcement-learning environment for scheduling edge-cloud speculative decoding.

>>> import dsd_env, gymnasium
>>> env = gymnasium.make("dsd_env/EdgeCloud-v0", scenario="metro")
>>> dsd_env.simulate("metro", "jsq_goodput", seed=1).metrics["e2e_s_mean"]

Importing registers the environment and needs neither torch nor Stable-Baselines3.
"""

from dsd_env import policy
from dsd_env.control import Decision, DecisionView
from dsd_env.envs.registration import register_envs
from dsd_env.scenario import Scenario, ScenarioError, list_scenarios, load_scenario
from dsd_env.schedulers import Scheduler, make_scheduler, scheduler_names
from dsd_env.sim import ReferenceSimulation
from dsd_env.simulate import Result, simulate

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "DecisionView",
    "ReferenceSimulation",
    "Result",
    "Scenario",
    "ScenarioError",
    "Scheduler",
    "__version__",
    "list_scenarios",
    "load_scenario",
    "make_scheduler",
    "policy",
    "scheduler_names",
    "simulate",
]

register_envs()
