"""SGLang's adaptive speculation with steps from a compiled table, or from a controller.

Not run inside SGLang: written against ``sglang.srt.speculative.adaptive_runtime_state.AdaptiveSpecPolicy`` of
0.5.23, and tested against that wheel's sources and by calls like those of its ``AdaptiveController``.

SGLang has one length per batch and tells its policy two things: batch sizes and accepted counts. It works for
EAGLE and EAGLE3 with top-k 1. Enable it with ``--speculative-adaptive`` and install a package with the entry
point

    [project.entry-points."sglang.srt.plugins"]
    dsd_env = "dsd_env.serving.engines.sglang:register"

with the policy in the environment variables of :mod:`dsd_env.serving.engines.session`.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from dsd_env.schedulers.table import Table, load_table
from dsd_env.serving.controller import Controller
from dsd_env.serving.engines.session import (
    POLICY_VARIABLE,
    EngineError,
    EngineSession,
    controller_from_environment,
)

TARGET = "sglang.srt.speculative.adaptive_spec_params.AdaptiveSpeculativeParams"
"""The class of SGLang that :func:`register` replaces."""


class TableSteps:
    """Steps by batch size from a table; what its calls mean stands with SGLang's protocol.

    Attributes:
        candidate_steps: All steps that it may return, rising; SGLang prepares for each of them.
    """

    def __init__(self, table: Table, initial_steps: int | None = None) -> None:
        """Sum the table up by batch size.

        Args:
            table: The table.
            initial_steps: Steps that SGLang starts with; it prepares for them, too.
        """
        self._rows = table.lengths_by_batch()
        self._sizes: list[int] | None = None
        steps = {gamma for _, gamma in self._rows}
        self.candidate_steps = sorted(steps if initial_steps is None else steps | {initial_steps})

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Take the batch sizes with captured graphs: smaller batches are padded up to them."""
        self._sizes = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Return the steps for a batch."""
        return self._steps(_padded(batch_size, self._sizes))

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """Return None: a table does not change by what was accepted."""
        return None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Return the captured batch sizes that have these steps; None without graphs."""
        if self._sizes is None:
            return None
        return [size for size in self._sizes if self._steps(size) == step]

    def _steps(self, batch_size: int) -> int:
        return [gamma for low, gamma in self._rows if low <= max(1, batch_size)][-1]


class ControllerSteps:
    """Steps from a controller that takes the whole batch for one request with its mean acceptance.

    SGLang tells neither which requests are in a batch nor how long they are, so one session stands for all.
    Its acceptance is that of the batches, its target's residents are the batch size. A policy that looks at
    more than load and acceptance misses the rest; a compiled table says what that costs.

    Attributes:
        candidate_steps: All lengths of the deployment, rising.
        controller: What decides.
    """

    def __init__(self, controller: Controller, initial_steps: int | None = None) -> None:
        """Open the session that stands for the batch."""
        self.controller = controller
        gammas = set(controller.deployment.scenario.actions.gammas)
        self.candidate_steps = sorted(gammas if initial_steps is None else gammas | {initial_steps})
        self._sizes: list[int] | None = None
        self._session = EngineSession(controller, "sglang", prompt_tokens=1, keep_rounds=False)
        self._session.begin()
        self._steps = self.candidate_steps[0] if initial_steps is None else initial_steps

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Take the batch sizes with captured graphs; all of them may need every step."""
        self._sizes = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Return the newest decision; it is taken after each verification."""
        return self._steps

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """Report the batch's mean, decide anew, and return the steps if they have changed."""
        from dsd_env.serving.telemetry import TargetState

        if not num_correct_drafts_per_req:
            return None
        mean = sum(num_correct_drafts_per_req) / len(num_correct_drafts_per_req)
        self._session.report(self._steps, min(self._steps, round(mean)))
        # It is asked between two iterations, when none is under way, and sees the target as it is.
        now_s = self.controller.now_s()
        self.controller.observe(TargetState(resident=batch_size, running=0, time_s=now_s))
        before, self._steps = self._steps, self._session.ask(now_s)
        return self._steps if self._steps != before else None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Return all captured batch sizes; None without graphs."""
        return None if self._sizes is None else list(self._sizes)


def _padded(batch_size: int, sizes: Sequence[int] | None) -> int:
    if not sizes:
        return batch_size
    place = bisect_left(sizes, batch_size)
    return sizes[place] if place < len(sizes) else batch_size


def adaptive_params(initial_steps: int, cfg_path: str | None = None) -> TableSteps | ControllerSteps:
    """Return what stands in for SGLang's ``AdaptiveSpeculativeParams``, by the environment.

    Args:
        initial_steps: Steps that SGLang starts with.
        cfg_path: File of ``--speculative-adaptive-config``; not read.
    """
    policy = os.environ.get(POLICY_VARIABLE, "")
    if policy.startswith("table:"):
        return TableSteps(load_table(policy.removeprefix("table:")), initial_steps)
    return ControllerSteps(controller_from_environment(), initial_steps)


class PolicySteps:
    """The class that SGLang makes instead of its own; see :func:`adaptive_params`."""

    def __new__(cls, initial_steps: int, cfg_path: str | None = None) -> Any:
        """Return the steps that the environment describes."""
        return adaptive_params(initial_steps, cfg_path)


def register() -> None:
    """Tell SGLang to use :class:`PolicySteps`; the entry point of its plugins.

    Raises:
        EngineError: SGLang is missing, or has no hooks.
    """
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError as error:
        raise EngineError("needs SGLang 0.5.23 in this environment") from error
    HookRegistry.register(TARGET, PolicySteps, HookType.REPLACE)
