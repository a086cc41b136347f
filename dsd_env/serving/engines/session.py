"""What every adapter does around a controller: open a request, ask for a length, report the round."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from dsd_env.scenario import ScenarioError
from dsd_env.serving.answers import ServedDecision
from dsd_env.serving.controller import Controller
from dsd_env.serving.deployment import Deployment, DeploymentError
from dsd_env.serving.telemetry import RequestArrived, RequestFinished, RoundVerified, TokensCommitted

POLICY_VARIABLE = "DSD_POLICY"
"""Environment variable that names what decides: the folder of a bundle, or a scheduler of the registry."""
DEPLOYMENT_VARIABLE = "DSD_DEPLOYMENT"
"""Environment variable that describes the deployment: a scenario's name or file, or the arguments of
:meth:`dsd_env.serving.Deployment.of_engine` as a JSON object."""


class EngineError(RuntimeError):
    """An engine is missing, of another version, or set up in a way that the adapter cannot steer."""


class Round(NamedTuple):
    """One round of a request.

    Attributes:
        asked: Drafts that the controller wanted.
        drafted: Drafts that were verified. Fewer than asked where the request was about to end, or its
            drafter came to the end of the text.
        accepted: Those that were right.
    """

    asked: int
    drafted: int
    accepted: int


class EngineSession:
    """One request in one engine.

    The engine drafts where it drafts: of a decision only the length is carried out. Decisions for another
    place than the engine's own drafter are counted in `elsewhere`.

    Attributes:
        controller: What decides.
        request: Name of the request.
        rounds: The rounds so far, oldest first; the prefill is none.
        elsewhere: Decisions that would have drafted at another place.
    """

    def __init__(
        self,
        controller: Controller,
        request: str,
        *,
        prompt_tokens: int,
        slo: str | None = None,
        time_s: float | None = None,
        keep_rounds: bool = True,
    ) -> None:
        """Tell the controller that a request has arrived at its first target, and admit it.

        Args:
            controller: What decides.
            request: Its name, not in use.
            prompt_tokens: Length of its prompt.
            slo: Its class of service-level objectives; default: the deployment's first.
            time_s: When, on the controller's clock; default: now.
            keep_rounds: Keep the list of rounds; a long-running engine does not need it.

        Raises:
            EngineError: The deployment lists stop thresholds, and an engine is told a length only.
        """
        thresholds = controller.deployment.scenario.actions.stop_thresholds
        if thresholds:
            raise EngineError(
                f"the deployment's scenario has actions.stop_thresholds = {list(thresholds)}, but this "
                "engine is told a length only and cannot end drafts where the drafter doubts; use a scenario "
                "and a policy without them"
            )
        self.controller = controller
        self.request = request
        self.rounds: list[Round] = []
        self.elsewhere = 0
        self._keep = keep_rounds
        self._begun = False
        self._asked = 0
        target = controller.deployment.targets[0]
        controller.observe(
            RequestArrived(request, prompt_tokens=prompt_tokens, slo=slo, target=target, time_s=time_s)
        )
        controller.decide(request, time_s)

    @property
    def begun(self) -> bool:
        """Whether its first token has been committed."""
        return self._begun

    def begin(self, time_s: float | None = None) -> None:
        """Report the token that the prefill gave."""
        self._begun = True
        self.controller.observe(TokensCommitted(self.request, 1, time_s=time_s))

    def ask(self, now_s: float | None = None) -> int:
        """Return how many tokens to draft in the next round."""
        answer = self.controller.decide(self.request, now_s)
        return self.take(answer)

    def take(self, answer: ServedDecision) -> int:
        """Return the length of a decision that was taken together with others."""
        if answer.gamma and answer.site != "colocated":
            self.elsewhere += 1
        self._asked = answer.gamma
        return answer.gamma

    def report(
        self, drafted: int, accepted: int, committed: int | None = None, time_s: float | None = None
    ) -> None:
        """Report a round: what was verified, and what came of it.

        Args:
            drafted: Drafts verified; 0: a step of plain decoding.
            accepted: Those that were right.
            committed: Tokens committed; default: the accepted ones and one more.
            time_s: When, on the controller's clock; default: now.
        """
        if self._keep:
            self.rounds.append(Round(self._asked, drafted, accepted))
        if drafted:
            self.controller.observe(
                RoundVerified(self.request, drafted, accepted, committed=committed, time_s=time_s)
            )
        else:
            self.controller.observe(TokensCommitted(self.request, committed or 1, time_s=time_s))

    def close(self, *, met_slo: bool | None = None, time_s: float | None = None) -> None:
        """Report that the request has ended."""
        self.controller.observe(RequestFinished(self.request, met_slo=met_slo, time_s=time_s))


def deployment_of(text: str) -> Deployment:
    """Return the deployment that a text describes.

    Args:
        text: Name or file of a scenario, or a JSON object with the arguments of
            :meth:`dsd_env.serving.Deployment.of_engine`.

    Raises:
        EngineError: It describes none.
    """
    try:
        if not text.lstrip().startswith("{"):
            return Deployment.of(text)
        arguments: dict[str, Any] = json.loads(text)
        return Deployment.of_engine(**arguments)
    except (ScenarioError, TypeError, ValueError) as error:
        raise EngineError(f"{DEPLOYMENT_VARIABLE} = {text!r} describes no deployment: {error}") from error


def controller_from_environment(environment: Mapping[str, str] | None = None, **options: Any) -> Controller:
    """Return the controller that the environment variables describe, for engines that load a class by name.

    Args:
        environment: The variables; default: those of the process.
        options: Passed on to :class:`dsd_env.serving.Controller`.

    Raises:
        EngineError: ``DSD_POLICY`` is not set, or names nothing that can decide.
    """
    found = os.environ if environment is None else environment
    policy = found.get(POLICY_VARIABLE, "")
    if not policy:
        raise EngineError(
            f"set {POLICY_VARIABLE} to the folder of an exported policy or to a scheduler such as "
            "'hf_heuristic'"
        )
    described = found.get(DEPLOYMENT_VARIABLE, "")
    deployment = deployment_of(described) if described else None
    try:
        return Controller(policy, deployment, **options)
    except DeploymentError as error:
        raise EngineError(f"{POLICY_VARIABLE} = {policy!r}: {error}; set {DEPLOYMENT_VARIABLE}") from error
