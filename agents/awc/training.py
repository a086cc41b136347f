"""From conditions to a network: sweep, label, record states, fit, and what held-out conditions say.

A run is a folder: ``sweep.jsonl`` has a line for every condition that has been swept, ``states`` a file for
every condition whose states have been recorded, ``round_N`` the network of each round. The same command goes
on with what is missing. Given a configuration and a machine, the result is the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dsd_env
from agents.awc.config import AwcConfig
from agents.awc.fitting import Floats, States, fit, split
from agents.awc.sweep import (
    Job,
    all_in_order,
    best_of,
    checked,
    choices_apart,
    choices_fused,
    device_classes,
    episode_seed,
    key_of,
    labels,
    nearest_choice,
    read_lines,
    recorded,
    swept,
)
from agents.config_files import config_sha256
from dsd_env.files import append_json_line, write_bytes
from dsd_env.schedulers.awc_network import (
    Description,
    WindowNetwork,
    described_features,
    save_network,
    to_tokens,
)

Times = Mapping[str, Mapping[str, float]]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Regret:
    """How much longer requests take than under the best static choice of the sweep, on held-out conditions.

    Attributes:
        network: Mean share, with the network's length and mode for the median state.
        worst: The largest.
        fixed: Mean share of the one choice that is best for the conditions trained on.
        choice: That choice.
        conditions: Number of held-out conditions.
    """

    network: float
    worst: float
    fixed: float
    choice: str
    conditions: int

    def rounded(self) -> dict[str, Any]:
        """Return it as files hold it."""
        return {
            "conditions": self.conditions,
            "network": round(self.network, 4),
            "network_worst": round(self.worst, 4),
            "best_fixed": round(self.fixed, 4),
            "best_fixed_choice": self.choice,
        }


class Training:
    """One training in its folder."""

    def __init__(self, config: AwcConfig, out: Path, jobs: int, report: Report) -> None:
        """Check every condition.

        Raises:
            dsd_env.scenario.ScenarioError: One is not valid.
            AwcError: At one's site nothing drafts.
        """
        self.config, self._out, self._jobs, self._report = config, out, jobs, report
        self.conditions = config.conditions()
        if len(self.conditions) < 2:
            raise ValueError("families: one condition alone leaves nothing to hold out")
        self._scenarios = [checked(condition, config.sweep) for condition in self.conditions]

    def run(self, network: Path) -> Description:
        """Sweep, record, fit; write the network to a folder and return its description."""
        times = self.sweep()
        states = [self._labelled(number, times[number]) for number in range(len(self.conditions))]
        chosen = [self._best_choices(number, times[number]) for number in range(len(self.conditions))]
        inputs = self._record(1, [{"choices": each} for each in chosen], states)
        for number in range(1, self.config.rounds):
            folder = self._out / f"round_{number}"
            self._fit(inputs, folder, f"round {number}", {})
            more = self._record(number + 1, [{"network": str(folder)}] * len(inputs), states)
            inputs = [_joined(pair) for pair in zip(inputs, more, strict=True)]
        regret = self.regret(inputs, times)
        training = {
            "version": dsd_env.__version__,
            "config_sha256": config_sha256(self.config),
            "conditions": len(self.conditions),
            "states": sum(len(each.inputs) for each in inputs),
            "rounds": self.config.rounds,
            "seed": self.config.seed,
            "held_out": regret.rounded(),
        }
        return self._fit(inputs, network, "all conditions", training)

    def sweep(self) -> list[Times]:
        """Return what every static choice takes in every condition; play what has not been played yet."""
        file = self._out / "sweep.jsonl"
        known = read_lines(file)
        jobs = [self._job(number) for number in range(len(self.conditions))]
        keys = [key_of(job) for job in jobs]
        number_of = {job: number for number, job in enumerate(jobs)}
        missing = [job for job, key in zip(jobs, keys, strict=True) if key not in known]
        self._report(f"{len(missing)} of {len(jobs)} conditions to sweep")
        for done, (job, times) in enumerate(all_in_order(missing, self._jobs, swept), 1):
            key = keys[number_of[job]]
            known[key] = times
            append_json_line(file, {"key": key, "condition": job.condition.name, "times": times})
            best = min(times, key=lambda name: times[name][""])
            self._report(f"{done:4}/{len(missing)}  {job.condition.name}: {best}  {times[best]['']:.4g} s")
        return [known[key] for key in keys]

    def _job(self, number: int, **what: Any) -> Job:
        seed = episode_seed(self.config.seed, number)
        return Job(self.conditions[number], self.config.sweep, seed, **what)

    def _labelled(self, number: int, times: Times) -> Floats:
        """Return the labels of every device of a condition, float32, shape (devices, 2)."""
        by_class = labels(self.conditions[number], self.config.sweep, times)
        return np.array(
            [by_class[name] for name in device_classes(self._scenarios[number])], dtype=np.float32
        )

    def _best_choices(self, number: int, times: Times) -> tuple[str, ...]:
        condition, sweep = self.conditions[number], self.config.sweep
        fused = choices_fused(self._scenarios[number], sweep)
        return best_of(choices_apart(condition, sweep), times), best_of(fused, times)

    def _record(
        self, number: int, players: Sequence[dict[str, Any]], of_device: Sequence[Floats]
    ) -> list[States]:
        """Return the states that players lead to, with their labels; play what has not been recorded yet."""
        folder = self._out / "states"
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [self._job(each, **what) for each, what in enumerate(players)]
        files = {job: folder / f"{key_of(job, number)}.npz" for job in jobs}
        missing = [job for job in jobs if not files[job].is_file()]
        self._report(f"round {number}: states of {len(missing)} of {len(jobs)} conditions to record")
        for job, (inputs, devices) in all_in_order(missing, self._jobs, recorded):
            buffer = io.BytesIO()
            np.savez(buffer, inputs=inputs, devices=devices)
            write_bytes(files[job], buffer.getvalue())
        found = []
        for each, job in enumerate(jobs):
            with np.load(files[job], allow_pickle=False) as data:
                found.append(States(data["inputs"], of_device[each][data["devices"]]))
        return found

    def _fit(
        self, states: Sequence[States], folder: Path, what: str, training: dict[str, Any]
    ) -> Description:
        usable = [each for each in states if len(each.inputs)]
        arrays = fit(usable, self.config.fit, self.config.seed)
        described = save_network(
            folder,
            arrays,
            width=self.config.fit.width,
            blocks=self.config.fit.blocks,
            control=self.config.control,
            training=training,
        )
        self._report(f"fitted {what}: {sum(len(each.inputs) for each in usable)} states, {folder}")
        return described

    def regret(self, states: Sequence[States], times: Sequence[Times]) -> Regret:
        """Return what a network loses that has not seen some of the conditions, there."""
        settings = self.config.fit
        shown, aside = split(len(states), settings.held_out, self.config.seed)
        usable = [states[number] for number in shown if len(states[number].inputs)]
        network = WindowNetwork(
            Description(
                features=described_features(),
                width=settings.width,
                blocks=settings.blocks,
                npz_sha256="0" * 64,
            ),
            fit(usable, settings, self.config.seed),
        )
        options = self._options()
        fixed = min(options, key=lambda option: self._mean_loss(shown, times, option))
        losses = []
        for number in aside:
            if len(states[number].inputs) == 0:
                continue
            window, length = np.median(network.outputs(states[number].inputs), axis=0).tolist()
            losses.append(self._loss(number, times[number], self._name(number, window, length)))
        regret = Regret(
            float(np.mean(losses)),
            float(np.max(losses)),
            self._mean_loss(aside, times, fixed),
            f"{fixed[0]} {fixed[1]}",
            len(losses),
        )
        self._report(
            f"held out, {regret.conditions} conditions: {100 * regret.network:.1f} % above the best static "
            f"choice (worst {100 * regret.worst:.1f} %); "
            f"{regret.choice} everywhere: {100 * regret.fixed:.1f} %"
        )
        return regret

    def _name(self, number: int, window: float, length: float) -> str:
        """Return the static choice nearest to what a network gives."""
        control, sweep = self.config.control, self.config.sweep
        tokens = to_tokens(window)
        if tokens < 0.5 * (control.fused_below + control.apart_above):
            return nearest_choice(choices_fused(self._scenarios[number], sweep), to_tokens(length))
        return nearest_choice(choices_apart(self.conditions[number], sweep), tokens)

    def _options(self) -> list[tuple[str, int]]:
        sweep = self.config.sweep
        return [("apart", n) for n in sweep.windows] + [("fused", n) for n in (0, *sweep.node_lengths)]

    def _mean_loss(self, numbers: Sequence[int], times: Sequence[Times], option: tuple[str, int]) -> float:
        losses = []
        for number in numbers:
            mode, tokens = option
            apart = choices_apart(self.conditions[number], self.config.sweep)
            fused = choices_fused(self._scenarios[number], self.config.sweep)
            name = nearest_choice(apart if mode == "apart" else fused, tokens)
            losses.append(self._loss(number, times[number], name))
        return float(np.mean(losses))

    def _loss(self, number: int, times: Times, name: str) -> float:
        return times[name][""] / min(each[""] for each in times.values()) - 1.0


def _joined(pair: tuple[States, States]) -> States:
    first, second = pair
    return States(
        np.concatenate([first.inputs, second.inputs]), np.concatenate([first.labels, second.labels])
    )


__all__ = ["Regret", "Training"]
