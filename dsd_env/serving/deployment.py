"""Deployments: the real system that a controller serves, described as a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_env.control import ActionSpace, ObservationEncoder
from dsd_env.policy import Policy
from dsd_env.policy.manifest import scenario_ref
from dsd_env.scenario import Scenario, ScenarioError, load_scenario
from dsd_env.scenario.schema import EdgeServer, Target


class DeploymentError(ValueError):
    """A deployment has no description, or its description does not fit the policy; the message says why."""


@dataclass(frozen=True)
class Deployment:
    """A real system as a policy or a rule knows it.

    The system is described as a scenario: targets with step times and limits, sites with their drafters,
    links with nominal delays, SLO classes, and the lists from which decisions are taken. Arrivals, prices and
    whatever else only a simulation needs are ignored.

    Attributes:
        scenario: The description of the system.
        source: Origin of the description, in words.
        note: Warning for the user, e.g. that the scenario differs from that of the training; "" if none.
    """

    scenario: Scenario
    source: str
    note: str = ""

    @classmethod
    def of(cls, scenario: str | Path | Scenario | Mapping[str, Any]) -> Deployment:
        """Return the deployment that a scenario describes.

        Args:
            scenario: Name of a shipped scenario, path of a YAML file, mapping, or scenario.

        Raises:
            dsd_env.scenario.ScenarioError: The scenario is not valid.
        """
        loaded = load_scenario(scenario)
        return cls(loaded, f"scenario {loaded.name!r}")

    @classmethod
    def of_policy(cls, policy: Policy) -> Deployment:
        """Return the deployment of the scenario that a policy's manifest names.

        Raises:
            DeploymentError: No shipped scenario has that name, so the user must describe the deployment.
        """
        reference = policy.manifest.scenario
        try:
            scenario = load_scenario(reference.name)
        except ScenarioError as error:
            raise DeploymentError(
                f"the policy was trained on {reference.name!r}, which is not a shipped scenario; give the "
                f"deployment: a scenario's file ({error})"
            ) from error
        note = ""
        if scenario_ref(scenario).sha256 != reference.sha256:
            note = (
                f"the shipped scenario {reference.name!r} is not to the letter the one that the policy was "
                "trained on"
            )
        return cls(scenario, f"the scenario of the policy's training, {scenario.name!r}", note)

    @classmethod
    def of_engine(
        cls,
        *,
        step_s: float,
        token_s: float,
        draft_step_s: float | None,
        max_num_seqs: int,
        gammas: Sequence[int] = (0, 1, 2, 3, 4),
        batch_sizes: Sequence[int] = (1,),
        kv_token_s: float = 0.0,
        kv_capacity_tokens: int = 1_000_000,
        max_num_batched_tokens: int = 8192,
        longest_context_tokens: int = 131_072,
        ttft_s: float = 1.0,
        tpot_s: float = 0.05,
        name: str = "engine",
    ) -> Deployment:
        """Return the deployment of a single engine that drafts on its own GPUs, from a few measured numbers.

        Candidate 0 is the engine's drafter. Candidate 1 is the client's own device, which has no drafter and
        is never valid. The target, the client class, the SLO class and the draft model are named ``engine``,
        ``client``, ``default`` and ``draft``.

        Args:
            step_s: Time of a decoding step of one sequence.
            token_s: Time that each further new token adds to a step.
            draft_step_s: Time of a draft step; None: the engine has no drafter.
            max_num_seqs: Largest number of requests resident at a time.
            gammas: Speculation lengths on offer; 0 is added.
            batch_sizes: Batch sizes on offer.
            kv_token_s: Time that each KV token read adds to a step.
            kv_capacity_tokens: Capacity of the engine's KV pool, in tokens.
            max_num_batched_tokens: Largest number of new tokens in a step.
            longest_context_tokens: Largest number of tokens in prompt and answer together.
            ttft_s: Bound on the time to first token.
            tpot_s: Bound on the time per output token.
            name: Name of the scenario that describes the engine.

        Raises:
            dsd_env.scenario.ScenarioError: A number is impossible.
        """
        target: dict[str, Any] = {
            "profile": {"t0_s": step_s, "c_s_per_token": token_s, "k_bw_s_per_token": kv_token_s},
            "gpus": 1.0,
            "kv_capacity_tokens": kv_capacity_tokens,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "price_usd_per_gpu_hour": 0.0,
            "power": {"idle_w": 0.0, "busy_w": 0.0},
        }
        acceptance: dict[str, Any] = {}
        if draft_step_s is not None:
            target["colocated_drafter"] = {"model": "draft", "profile": {"t0_s": draft_step_s}}
            acceptance["draft"] = {"source": "iid", "alpha": 0.6}
        half = longest_context_tokens // 2
        described = {
            "name": name,
            "card": {
                "models": "One engine, described by measured step times.",
                "regime": "Unknown.",
                "utilisation": "Unknown.",
            },
            "devices": {
                "client": {"count": 1, "link": "direct", "power": {"idle_w": 0.0, "busy_w": 0.0}},
            },
            "targets": {"engine": target},
            "links": {"direct": {"one_way_s": 0.0, "uplink_bits_per_s": 1.0e9, "downlink_bits_per_s": 1.0e9}},
            "acceptance": acceptance,
            "slo": {"default": {"ttft_s": ttft_s, "tpot_s": tpot_s}},
            "workload": {
                "arrivals": {
                    "kind": "closed_loop",
                    "think_s": {"distribution": "exponential", "mean": 1.0},
                },
                "kinds": {
                    "any": {
                        "weight": 1.0,
                        "slo": "default",
                        "prompt_tokens": {"distribution": "constant", "value": 1},
                        "output_tokens": {"distribution": "constant", "value": 1},
                    }
                },
                "max_prompt_tokens": half,
                "max_output_tokens": half,
            },
            "actions": {
                "gammas": sorted({0, *gammas}),
                "batch_sizes": sorted(set(batch_sizes)),
                "targets_offered": 1,
            },
        }
        return cls(load_scenario(described), "measured step times")

    def check(self, policy: Policy) -> None:
        """Check that a policy's features and action lists are those of this deployment.

        Raises:
            dsd_env.policy.PolicyError: They differ; the message says in what.
        """
        where = f"the deployment ({self.source})"
        if policy.fleet:
            policy.fleet_space(self.scenario, where)
            return
        policy.check_schema(ObservationEncoder.of(self.scenario), ActionSpace.of(self.scenario), where)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, by number; ``/`` and a number follow the name of a class of several."""
        return _names(self.scenario.targets)

    @property
    def edge_servers(self) -> tuple[str, ...]:
        """Names of the edge servers, by number, formed like those of the targets."""
        return _names(self.scenario.edge_servers)


def _names(classes: Mapping[str, Target | EdgeServer]) -> tuple[str, ...]:
    names: list[str] = []
    for name, each in classes.items():
        names += [name] if each.count == 1 else [f"{name}/{i}" for i in range(each.count)]
    return tuple(names)
