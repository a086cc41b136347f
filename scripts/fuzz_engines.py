"""Hold the compiled engine against the reference on random cases, for as long as you like.

    python scripts/fuzz_engines.py --minutes 60 --jobs 2
    python scripts/fuzz_engines.py --replay runs/fuzz/case-1-4711.json

Every episode is a case of its own (see dsd_env/sim/fuzz), a function of the seed and its number. Where the
engines differ, the case is made as small as possible and saved. A summary says what was compared and met, as
JSON beside the cases. The exit status is 0 if there was no difference.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import _checkout
import _cli
import _seeds

from agents import provenance
from dsd_env.files import write_json
from dsd_env.sim.fuzz import FEATURES, Case, Difference, draw_case, minimise, run_case

Message = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all episodes of a run share.

    Attributes:
        seed: Seed of the run.
        features: What scenarios may have.
        always: What they have wherever they can.
        decisions: An episode is left after so many decisions.
        minimise_s: Time to make a failing case smaller.
    """

    seed: int
    features: tuple[str, ...]
    always: tuple[str, ...]
    decisions: int
    minimise_s: float

    def case(self, number: int) -> Case:
        """Return the case of an episode."""
        return draw_case(Random(f"{self.seed}:{number}"), self.features, self.decisions, self.always)


def play(settings: Settings, number: int, say: Any) -> Message:
    """Play one episode; return what came of it."""
    case = settings.case(number)
    begin = time.perf_counter()
    try:
        outcome = run_case(case)
    except NotImplementedError as error:
        return {"number": number, "result": "refused", "error": str(error)}
    except Difference as difference:
        say({"number": number, "result": "minimising", "where": difference.where})
        smaller = minimise(case, difference, seconds=settings.minimise_s)
        return {
            "number": number,
            "result": "differs",
            "case": smaller.case.to_json(),
            "difference": smaller.difference.to_json(),
            "original": {"case": case.to_json(), "difference": difference.to_json()},
            "minimised": {"tried": smaller.tried, "finished": smaller.finished},
        }
    return {
        "number": number,
        "result": "agrees",
        "events": outcome.events,
        "decisions": outcome.decisions,
        "met": dict(outcome.met),
        "wall_s": time.perf_counter() - begin,
    }


def work(connection: Connection, settings: Settings) -> None:
    """Play the episodes whose numbers come in, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    # Made-up traces are longer than their scenarios allow on purpose.
    logging.getLogger("dsd_env.workload").setLevel(logging.ERROR)
    with contextlib.suppress(EOFError, OSError):
        while True:
            number = connection.recv()
            try:
                message = play(settings, number, connection.send)
            except Exception as error:  # a mistake of this script or of the generator: say which episode
                message = {"number": number, "result": "broken", "error": f"{type(error).__name__}: {error}"}
            connection.send(message)


@dataclass
class Worker:
    """A process that plays episodes, and the one that it is at."""

    process: BaseProcess
    connection: Connection
    number: int = -1
    begun_s: float = 0.0
    minimising: bool = False

    @classmethod
    def start(cls, settings: Settings) -> Worker:
        """Start a process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, settings), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, number: int) -> None:
        """Let it play an episode."""
        self.number, self.begun_s, self.minimising = number, time.monotonic(), False
        self.connection.send(number)

    def stop(self) -> int | None:
        """End the process; return its exit status."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


@dataclass
class Tally:
    """What a run has found so far."""

    episodes: int = 0
    events: int = 0
    decisions: int = 0
    met: Counter[str] = field(default_factory=Counter)
    slowest_s: tuple[float, int] = (0.0, -1)
    differences: list[Message] = field(default_factory=list)

    def count(self, message: Message) -> None:
        """Count an episode on which the engines agree."""
        self.episodes += 1
        self.events += message["events"]
        self.decisions += message["decisions"]
        self.met.update(message["met"])
        self.slowest_s = max(self.slowest_s, (message["wall_s"], message["number"]))


class Run:
    """One run: workers, progress, what is saved."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.settings = Settings(
            arguments.seed,
            arguments.features,
            arguments.always,
            arguments.decisions,
            arguments.minimise_seconds,
        )
        self.arguments = arguments
        self.tally = Tally()
        self.next = arguments.first
        self.begun = provenance.now_utc()
        self.begun_s = time.monotonic()
        self.workers: list[Worker] = []
        self.stopped = "time is over"
        self.commit = provenance.git_commit(_checkout.ROOT)

    def play(self) -> int:
        """Play until the time is over, Ctrl-C, or too many differences; return the exit status."""
        print(
            "Loading the engine; if its machine code is not in the cache, that takes a minute or two.",
            flush=True,
        )
        try:
            run_case(self.settings.case(self.arguments.first))
        except Difference:
            pass  # found again, and made smaller, below
        except NotImplementedError as error:
            print(f"fuzz: {error}; leave it out with --without", file=sys.stderr)
            return 2
        self.begun_s = time.monotonic()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends with a summary, as Ctrl-C does
        try:
            with _progress(60.0 * self.arguments.minutes) as bar:
                self._loop(bar)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            for worker in self.workers:
                worker.stop()
            self._save_summary()
        self._report()
        return 1 if self.tally.differences or self.stopped.startswith("error") else 0

    def _loop(self, bar: Any) -> None:
        end_s = self.begun_s + 60.0 * self.arguments.minutes
        self.workers = [Worker.start(self.settings) for _ in range(self.arguments.jobs)]
        for worker in self.workers:
            self._give(worker)
        saved_s = time.monotonic()
        while self.workers:
            ready = wait([worker.connection for worker in self.workers], timeout=1.0)
            now_s = time.monotonic()
            for worker in list(self.workers):
                if worker.connection in ready:
                    self._hear(worker, bar, now_s < end_s)
                elif not worker.minimising and now_s - worker.begun_s > self.arguments.limit:
                    worker.stop()
                    self._lost(worker, "hang", f"no end after {self.arguments.limit:.0f} s", bar)
            self._show(bar, now_s)
            if now_s - saved_s > 60.0:
                self._save_summary()
                saved_s = now_s
            if len(self.tally.differences) >= self.arguments.most or self.stopped.startswith("error"):
                return

    def _give(self, worker: Worker) -> None:
        worker.give(self.next)
        self.next += 1

    def _hear(self, worker: Worker, bar: Any, goes_on: bool) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            status = worker.stop()
            self._lost(worker, "died", f"its process ended with status {status}", bar)
            return
        match message["result"]:
            case "minimising":
                worker.minimising = True
                bar.write(f"episode {message['number']}: differs at {message['where']}; making it smaller")
                return
            case "agrees":
                self.tally.count(message)
            case "differs":
                self._save_case(message, bar)
            case _:
                self.stopped = f"error in episode {message['number']}: {message['error']}"
                return
        if goes_on:
            self._give(worker)
        else:
            worker.stop()
            self.workers.remove(worker)

    def _lost(self, worker: Worker, kind: str, how: str, bar: Any) -> None:
        """Save the case of a worker that died or hangs, and put another in its place."""
        self.workers.remove(worker)
        message = {
            "number": worker.number,
            "case": self.settings.case(worker.number).to_json(),
            "difference": {"kind": kind, "where": how},
        }
        self._save_case(message, bar)
        other = Worker.start(self.settings)
        self.workers.append(other)
        self._give(other)

    def _save_case(self, message: Message, bar: Any) -> None:
        difference = message["difference"]
        path = self.arguments.save / f"case-{self.settings.seed}-{message['number']}.json"
        data = {
            **message["case"],
            "difference": difference,
            "found": {
                "seed": self.settings.seed,
                "episode": message["number"],
                "features": list(self.settings.features),
                "always": list(self.settings.always),
                "decisions": self.settings.decisions,
                **message.get("minimised", {}),
            },
            "git_commit": self.commit,
            "versions": versions(),
        }
        if "original" in message:
            data["original"] = message["original"]
        write_json(path, data)
        self.tally.differences.append(
            {
                "episode": message["number"],
                "kind": difference["kind"],
                "where": difference["where"],
                "file": path.name,
            }
        )
        bar.write(f"episode {message['number']}: {difference['kind']} at {difference['where']}; saved {path}")

    def _show(self, bar: Any, now_s: float) -> None:
        elapsed_s = now_s - self.begun_s
        bar.n = min(elapsed_s, bar.total)
        bar.set_postfix_str(
            f"{self.tally.episodes} episodes, {self.tally.events / 1e6:.2f} M events, "
            f"{self.tally.episodes / max(elapsed_s, 1e-9):.1f} episodes/s, "
            f"{len(self.tally.differences)} differences"
        )

    def _save_summary(self) -> None:
        tally = self.tally
        write_json(
            self.arguments.save / "summary.json",
            {
                "begun": self.begun,
                "minutes": round((time.monotonic() - self.begun_s) / 60.0, 3),
                "stopped": self.stopped,
                "jobs": self.arguments.jobs,
                "seed": self.settings.seed,
                "first_episode": self.arguments.first,
                "episodes_begun": self.next - self.arguments.first,
                "episodes_compared": tally.episodes,
                "events_compared": tally.events,
                "decisions_compared": tally.decisions,
                "decisions_per_episode_at_most": self.settings.decisions,
                "slowest_episode_s": round(tally.slowest_s[0], 3),
                "slowest_episode": tally.slowest_s[1],
                "differences": tally.differences,
                "features_allowed": list(self.settings.features),
                "features_always": list(self.settings.always),
                "episodes_with": dict(sorted(tally.met.items())),
                "git_commit": self.commit,
                "versions": versions(),
            },
        )

    def _report(self) -> None:
        tally = self.tally
        minutes = (time.monotonic() - self.begun_s) / 60.0
        print(
            f"{tally.episodes} episodes, {tally.events} events, {tally.decisions} decisions compared in "
            f"{minutes:.1f} minutes ({self.stopped}): {len(tally.differences)} differences."
        )
        for difference in tally.differences:
            print(f"  episode {difference['episode']}: {difference['kind']} at {difference['where']}")
        print(f"Summary: {self.arguments.save / 'summary.json'}")


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    wanted = ("python", "dsd-env", "numpy", "pydantic", "simpy")
    found = {name: version for name, version in provenance.versions().items() if name in wanted}
    return {**found, "numba": metadata.version("numba")}


def _progress(total_s: float) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total_s,
        bar_format="{percentage:3.0f}%|{bar:20}| {n:.0f}/{total:.0f} s {postfix}",
        disable=None,
        smoothing=0,
    )


def replay(path: Path) -> int:
    """Play a saved case; return 1 if the engines still differ."""
    import json

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        cases = {"case": Case.from_json(data)}
        if "original" in data:
            cases["case before it was made smaller"] = Case.from_json(data["original"]["case"])
    except (OSError, ValueError) as error:
        print(f"fuzz: {path}: {error}", file=sys.stderr)
        return 2
    status = 0
    for name, case in cases.items():
        try:
            outcome = run_case(case)
        except NotImplementedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except Difference as difference:
            print(f"{name}: {difference}")
            status = 1
        else:
            print(f"{name}: no difference in {outcome.events} events, {outcome.decisions} decisions")
    return status


def _features(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(set(names) - set(FEATURES)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(FEATURES)}")
    return names


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be positive")
    return value


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--minutes", type=_positive, default=5.0, metavar="M", help="how long (default 5)")
    parser.add_argument(
        "--seed", type=_seeds.seed(), default=1, metavar="S", help="seed of the run (default 1)"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first episode")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    parser.add_argument(
        "--decisions", type=int, default=300, metavar="D", help="at most, per episode (default 300)"
    )
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("runs/fuzz"),
        metavar="DIR",
        help="where cases and summary go (default runs/fuzz)",
    )
    parser.add_argument(
        "--without",
        type=_features,
        default=(),
        metavar="A,B",
        help=f"leave out some of {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--always",
        type=_features,
        default=(),
        metavar="A,B",
        help="put these into every scenario that can have them",
    )
    parser.add_argument(
        "--most", type=int, default=5, metavar="K", help="stop after so many differences (default 5)"
    )
    parser.add_argument(
        "--minimise-seconds", type=_positive, default=120.0, metavar="T", help="per difference (default 120)"
    )
    parser.add_argument(
        "--limit", type=_positive, default=300.0, metavar="T", help="an episode longer than this hangs"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only play a saved case again")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("jobs", "decisions", "most"))
    arguments.features = tuple(name for name in FEATURES if name not in arguments.without)
    if arguments.replay is not None:
        return replay(arguments.replay)
    return Run(arguments).play()


if __name__ == "__main__":
    _cli.run(main)
