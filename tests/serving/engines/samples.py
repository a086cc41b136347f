"""An engine described by step times, and schedulers that are easy to foresee."""

from __future__ import annotations

from dsd_env.control import Decision, DecisionView
from dsd_env.scenario import Scenario
from dsd_env.serving import Controller, Deployment

GAMMAS = (0, 1, 2, 3, 4, 6)


def engine(gammas: tuple[int, ...] = GAMMAS) -> Deployment:
    return Deployment.of_engine(
        step_s=0.02, token_s=2e-4, draft_step_s=0.004, max_num_seqs=16, gammas=gammas, name="engine"
    )


class Cycle:
    """Lengths that depend on how many rounds a request has had, and on nothing else."""

    name = "cycle"

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths

    def reset(self, scenario: Scenario, seed: int) -> None:
        pass

    def decide(self, view: DecisionView) -> Decision:
        return Decision(self.lengths[view.request.rounds % len(self.lengths)], 1, 0)


class Witness(Controller):
    """A controller that writes down its answers by request, the admission first."""

    def __init__(self, *arguments, **named):
        self.answers: dict[str, list[int]] = {}
        super().__init__(*arguments, **named)

    def _decide(self, name, now_s):
        answer = super()._decide(name, now_s)
        self.answers.setdefault(name, []).append(answer.gamma)
        return answer
