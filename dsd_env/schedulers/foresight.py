"""What will be right and what will be wrong: the side door for upper references, and for nothing else.

A view holds nothing of the future, and no engine has a way to ask for it. But every draw of an episode is a
function of its seed (:mod:`dsd_env.rng`), so whoever has the scenario and the episode's seed can draw the
same requests and the same acceptance again, beside the simulation. That is what this module does. No
scheduler that is to be compared with others may import it; a test walks the imports.
"""

from __future__ import annotations

from dsd_env.acceptance import AcceptanceRealisation, TraceReplay
from dsd_env.control import DecisionView
from dsd_env.scenario import Scenario
from dsd_env.schedulers.lengths import remember
from dsd_env.sim.world import WorldBuilder
from dsd_env.workload import RequestSpec, WorkloadGenerator


class Foresight:
    """Draws again what an episode will meet, request by request, as they are first seen.

    The views of an episode have to come from its beginning on: a request is the n-th of its device because
    n others of that device were seen before.

    Attributes:
        scenario: The scenario.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Load what the scenario's requests and their acceptance are drawn from.

        Args:
            scenario: The scenario, as it is simulated.
        """
        self.scenario = scenario
        self._builder = WorldBuilder(scenario)
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begin an episode of this seed."""
        self._seed = seed
        self._workload = WorkloadGenerator(self.scenario, seed, self._builder.schedule)
        self._asked = [0] * self.scenario.n_devices
        self._specs: dict[int, RequestSpec] = {}
        self._drawn: dict[int, dict[str, AcceptanceRealisation]] = {}

    def request(self, view: DecisionView) -> RequestSpec:
        """Return all that is fixed about the request of a view, the length of its answer too.

        Raises:
            RuntimeError: It is another one: the views are not those of the episode, from its beginning on.
        """
        spec = self._specs.get(view.request_id)
        if spec is None:
            spec = self._workload.request(view.device, self._asked[view.device], view.request_id)
            if spec.prompt_tokens != view.request.prompt_tokens:
                raise RuntimeError(
                    f"request {view.request_id} has a prompt of {view.request.prompt_tokens} tokens, "
                    f"{spec.prompt_tokens} were foreseen: foresight has to be asked from the beginning of an "
                    "episode on, with its scenario and seed"
                )
            self._asked[view.device] += 1
            self._specs[view.request_id] = spec
        return spec

    def acceptance(self, view: DecisionView, model: str) -> AcceptanceRealisation:
        """Return which drafts of a model will be right for the request of a view, at every position.

        Args:
            view: A view of the request.
            model: The draft model, as the scenario names it.
        """
        drawn = self._drawn.get(view.request_id)
        if drawn is None:
            drawn = {}
            remember(self._drawn, view.request_id, drawn)
        if model not in drawn:
            spec = self.request(view)
            source, drafter = self._builder.sources[model]
            kinds = spec.acceptance_kinds or None
            tokens = spec.output_tokens
            if isinstance(source, TraceReplay):
                drawn[model] = source.realise(self._seed, spec.uid, tokens, drafter, kinds, spec.recorded)
            else:
                drawn[model] = source.realise(self._seed, spec.uid, tokens, drafter, kinds)
        return drawn[model]
