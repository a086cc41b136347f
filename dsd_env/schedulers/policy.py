"""A trained policy as a scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_env.control import ActionSpace, Decision, DecisionView, ObservationEncoder
from dsd_env.scenario import Scenario

if TYPE_CHECKING:
    from dsd_env.policy import Policy


class PolicyScheduler:
    """Runs an exported policy bundle: encodes the view, masks, takes the policy's decision.

    Attributes:
        name: ``policy:PATH``.
        policy: The loaded bundle.
    """

    def __init__(self, path: str | Path) -> None:
        """Load the bundle at ``path``.

        Raises:
            dsd_env.policy.PolicyError: The bundle is missing, tampered with, or of another schema.
        """
        # Imported here: most schedulers need no policy runtime.
        from dsd_env import policy

        self.name = f"policy:{path}"
        self.policy: Policy = policy.load(path)
        self._encoder: ObservationEncoder | None = None
        self._space: ActionSpace | None = None
        self._offered: NDArray[np.bool_] = np.ones(0, dtype=np.bool_)
        self._max_num_seqs: tuple[int, ...] = ()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Prepare encoder and mask of the scenario.

        Raises:
            dsd_env.policy.PolicyError: The policy was made for other action lists or features.
        """
        self.policy.check_scenario(scenario)
        self._space = self.policy.actions
        self._encoder = ObservationEncoder.of(scenario, self._space.n_placements)
        self._offered = self.policy.offered(scenario)
        self._max_num_seqs = scenario.max_num_seqs

    def decide(self, view: DecisionView) -> Decision:
        """Return the policy's deterministic decision."""
        if self._encoder is None or self._space is None:
            raise RuntimeError("call reset(scenario, seed) before decide(view)")
        space = self._space
        if self.policy.flat:
            mask = space.flat_mask(view, self._max_num_seqs)
        else:
            mask = space.mask(view) & self._offered
        return self.policy.decide(self._encoder.encode(view), mask)
