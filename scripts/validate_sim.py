#!/usr/bin/env python
r"""Hold the simulator against the testbed: the same requests in both, setting by setting.

Steps, each of which goes on where it was interrupted; `all` does them one after the other:

    calibrate   measure both models and the way between them, record acceptance, write the twin's scenario
    run         play every setting in the testbed that is not there yet
    simulate    simulate the same settings in the twin, and write results.json
    report      tables, and the plot, of what results.json has
    spells      write spells.csv, a link that is good and bad by turns, and the scenario of a training for it

    python scripts/validate_sim.py all --out validation
    python scripts/validate_sim.py run --out validation --settings 'sync-*_rtt5_c1'
    python scripts/validate_sim.py run --out validation --policy policies/twin --rules policy:synchronous

With --replay the link follows a series from its beginning, in the testbed as in the twin, for whole passes of
it, and one client drafts on a device of its own; results and plot have the series' name. `spells` writes such
a series, and what to train on for it:

    python scripts/validate_sim.py spells --out validation/spells
    python scripts/validate_sim.py run simulate report --out validation/spells \
        --replay validation/spells/spells.csv \
        --rules plain:synchronous static:4:synchronous policy:synchronous --policy validation/spells/policy

The target keeps to one core and everything at the edge (drafter, clients, link) to another: --cores.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _checkout  # noqa: F401
import _cli
import _seeds

from dsd_env.files import write_json
from dsd_env.locks import LOCK_FILE, hold

if TYPE_CHECKING:
    from dsd_env.testbed.against import Row, Setting
    from dsd_env.testbed.bench import CloudSpec
    from dsd_env.testbed.drafters import Question
    from dsd_env.testbed.twin import Calibration

#: Cores that other programs may keep busy meanwhile.
MOST_OF_OTHERS = 0.05
ALL = ("calibrate", "run", "simulate", "report")
STEPS = (*ALL, "all", "spells")
RULES = (
    "plain:synchronous",
    "static:1:synchronous",
    "static:4:synchronous",
    "static:8:synchronous",
    "static:4:streaming",
    "static:8:streaming",
    "hf:synchronous",
)
#: Questions of the comparison, and others of the same kinds for training alone.
QUESTIONS = {
    "code-1": "Write a Python function that returns the n-th Fibonacci number.",
    "code-2": "Write a Python class for a stack with push, pop and peek.",
    "code-3": "Write a Python function that reads a CSV file and returns a list of dictionaries.",
    "sql-1": "Write an SQL query that returns the ten customers with the most orders in 2024.",
    "maths-1": "A train goes 60 miles in 1.5 hours. How far does it go in 4 hours? Explain step by step.",
    "maths-2": "Explain step by step how to solve 3x + 7 = 22.",
    "chat-1": "What should I see in Rome in two days?",
    "chat-2": "Explain in plain words why the sky is blue.",
}
TRAINING = {
    "train-code-1": "Write a Python function that tells whether a word is a palindrome.",
    "train-code-2": "Write a Python class for a queue with enqueue and dequeue.",
    "train-code-3": "Write a Python function that counts the words in a text file.",
    "train-sql-1": "Write an SQL query that returns the average salary of each department.",
    "train-maths-1": "A shop sells 3 apples for 2 dollars. What do 12 apples cost? Explain step by step.",
    "train-maths-2": "Explain step by step how to find the area of a triangle with sides 3, 4 and 5.",
    "train-chat-1": "What should I pack for a week of hiking in Norway?",
    "train-chat-2": "Explain in plain words how a refrigerator works.",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("step", choices=STEPS, nargs="+", help="one or several")
    parser.add_argument("--out", type=Path, default=Path("validation"), help="directory (%(default)s)")
    models = parser.add_argument_group("testbed")
    models.add_argument("--target", default="qwen2.5-coder-1.5b", help="as for testbed_demo.py (%(default)s)")
    models.add_argument("--draft", default="smollm2-135m", help="the same (%(default)s)")
    models.add_argument("--dtype", default="bfloat16", help="compute dtype of both (%(default)s)")
    models.add_argument("--cores", default="0,1", help="of the target, and of the edge (%(default)s)")
    models.add_argument("--tokens", type=int, default=24, help="of each answer (%(default)s)")
    models.add_argument("--repeats", type=int, default=5, help="timed passes of each kind (%(default)s)")
    run = parser.add_argument_group("settings")
    run.add_argument("--rules", nargs="+", default=RULES, metavar="RULE:PROTOCOL", help="%(default)s")
    run.add_argument("--policy", type=Path, help="exported policy, for the rule `policy`")
    run.add_argument("--rtt-ms", type=float, nargs="+", help="(5 80; with --replay 5)")
    run.add_argument("--clients", type=int, nargs="+", help="(1 4; with --replay 1)")
    run.add_argument("--replay", type=Path, metavar="SERIES", help="CSV of a link that changes")
    run.add_argument("--cycles", type=int, default=4, help="passes of the series (%(default)s)")
    run.add_argument(
        "--requests", type=int, default=6, help="of each setting, at least 2 of each client (%(default)s)"
    )
    run.add_argument("--settings", nargs="+", help="only these, by name; * and ? stand for any")
    run.add_argument("--seed", type=_seeds.seed(), default=16, help="of the workload (%(default)s)")
    run.add_argument("--again", action="store_true", help="run settings that are there already anew")
    found = parser.parse_args(arguments)
    _cli.at_least_one(parser, found, ("tokens", "repeats", "requests", "cycles"))
    found.rtt_ms = found.rtt_ms or ([5.0] if found.replay else [5.0, 80.0])
    found.clients = found.clients or ([1] if found.replay else [1, 4])
    if found.replay and found.clients != [1]:
        parser.error(
            "--replay needs --clients 1: no report measures the link of a drafter that several share"
        )
    if found.tokens < 2 or any(n < 1 for n in found.clients) or any(rtt < 0 for rtt in found.rtt_ms):
        parser.error("--tokens must be at least 2, --clients at least 1, --rtt-ms not negative")
    try:
        found.cores = [(int(core),) for core in found.cores.split(",")] if found.cores else [(), ()]
        if len(found.cores) != 2:
            raise ValueError
    except ValueError:
        parser.error("--cores: two numbers with a comma between, or '' for any")
    return found


def chosen_settings(options: argparse.Namespace) -> list[Setting]:
    """Return the settings that were asked for."""
    from dsd_env.testbed.against import SHORT, ValidationError, settings_of

    rules: list[Any] = []
    for text in options.rules:
        rule, _, protocol = text.rpartition(":")
        if rule == "policy" and options.policy is None:
            raise ValidationError("the rule `policy` needs --policy DIR")
        rules.append((f"policy:{options.policy}" if rule == "policy" else rule, protocol))
    settings = settings_of(rules, [rtt / 1e3 for rtt in options.rtt_ms], options.clients)
    settings = [
        replace(s, label=f"{SHORT[s.protocol]}-policy") if s.rule.startswith("policy:") else s
        for s in settings
    ]
    if options.replay:
        from dsd_env.network.series import load_series

        until_s = options.cycles * load_series(options.replay).length_s
        settings = [replace(s, series=str(options.replay), until_s=until_s) for s in settings]
    if options.settings is None:
        return settings
    found = [s for s in settings if any(fnmatch.fnmatch(s.name, wanted) for wanted in options.settings)]
    if not found:
        raise ValidationError(
            f"--settings {' '.join(options.settings)}: no such setting; there are "
            f"{', '.join(s.name for s in settings)}"
        )
    return found


def make_questions(options: argparse.Namespace, texts: dict[str, str]) -> dict[str, Question]:
    """Return questions in the target's tokens."""
    from dsd_env.calibration.acceptance.recording.prompts import Prompt
    from dsd_env.testbed.drafters import Question
    from dsd_env.testbed.models import load_tokenizer

    target = load_tokenizer(options.target, dtype=options.dtype)
    # Longer than any answer, so that clients do not know where it ends; the target ends it.
    most = options.tokens + 64
    return {
        kind: Question(target.encode_chat(text), most, Prompt(kind, kind, text))
        for kind, text in texts.items()
    }


def cloud_spec(options: argparse.Namespace) -> CloudSpec:
    """Return the server."""
    from dsd_env.testbed.bench import CloudSpec
    from dsd_env.testbed.engine import EngineConfig

    return CloudSpec(
        options.target,
        dtype=options.dtype,
        cpus=options.cores[0],
        engine=EngineConfig(end_after_tokens=options.tokens),
    )


def edge(options: argparse.Namespace) -> Any:
    """Pin this process to the edge's core and return what makes lines of the drafter."""
    import torch

    from dsd_env.testbed.bench import load_drafter
    from dsd_env.testbed.timing import pin

    if options.cores[1] and not pin(options.cores[1]):
        print("this system cannot keep processes to cores; times will scatter more", file=sys.stderr)
    torch.set_num_threads(1)
    return load_drafter(options.draft, options.target, options.dtype)


def calibrate(options: argparse.Namespace) -> None:
    """Measure, record, and write the twin; what is there already stays."""
    from dsd_env.calibration.latency.torch_runner import processor_name
    from dsd_env.testbed import measuring
    from dsd_env.testbed.timing import time_drafter
    from dsd_env.testbed.twin import Calibration

    path = options.out / "calibration.json"
    if path.exists():
        print(f"{path} is there already")
        return
    questions = make_questions(options, {**QUESTIONS, **TRAINING})
    groups = [({k: questions[k] for k in QUESTIONS}, 1), ({k: questions[k] for k in TRAINING}, 8)]
    side = measuring.TargetSide(cloud_spec(options), groups, options.tokens, options.repeats)
    timed = list(TRAINING)[::2]
    try:
        make_line = edge(options)
        print("the target answers the questions and is timed alone ...", flush=True)
        outputs, alone, card, target_bytes = side.answers()

        def windows() -> Any:
            asked, said = [questions[k] for k in timed], [outputs[k] for k in timed]
            return time_drafter(make_line, asked, said)

        print("drafter and target are timed together ...", flush=True)
        rounds = [windows()]
        while side.is_timing:  # the drafter must not rest before the target is done
            rounds.append(windows())
        beside = side.passes()
    finally:
        side.close()
    print("the drafter is timed alone and recorded ...", flush=True)
    apart = measuring.parts_of(alone, [windows()])
    names = (Path(options.target).name, Path(options.draft).name)
    trace = measuring.trace_of(
        "testbed_greedy",
        make_line,
        questions,
        outputs,
        most=12,
        target={"model": options.target, **card},
        draft=names[1],
        draft_card={"model": options.draft},
    )
    trace.save(options.out)
    print("plain decoding across an undelayed link ...", flush=True)
    live = measuring.live_of(cloud_spec(options), [questions[k] for k in list(TRAINING)[:4]], make_line)
    write_json(options.out / "outputs.json", outputs)
    found = Calibration(
        target=names[0],
        draft=names[1],
        dtype=options.dtype,
        target_bytes=target_bytes,
        draft_bytes=bytes_of(options),
        processor=processor_name(),
        software=", ".join(f"{name} {version}" for name, version in measuring.software().items()),
        date=measuring.today(),
        apart=apart,
        together=measuring.parts_of(beside, rounds),
        live=live,
    )
    write_twins(options, found, questions)
    write_json(path, found.model_dump(mode="json"))
    print(f"wrote {path} and {options.out / 'testbed.yaml'}")


def write_twins(options: argparse.Namespace, found: Calibration, questions: dict[str, Question]) -> None:
    """Write profiles, the scenario of the comparison, and those of the other questions, to train on."""
    from dsd_env.testbed.twin import changes_of, scenario_of, usual_prompt, write_profiles, write_scenario

    command = f"python scripts/validate_sim.py calibrate --out {options.out}"
    head = f"The testbed's twin, measured {found.date}: {command}"
    write_profiles(found, options.out, command)
    for name, texts in (("testbed", QUESTIONS), ("testbed-train", TRAINING)):
        kinds = {kind: len(questions[kind].prompt_ids) for kind in texts}
        data = scenario_of(
            found,
            name,
            kinds,
            trace=str(options.out / "testbed_greedy"),
            folder=options.out,
            output_tokens=options.tokens,
            requests=options.requests,
        )
        write_scenario(options.out / f"{name}.yaml", data, head)
    for rtt_ms in options.rtt_ms:
        for clients in options.clients:
            name = f"testbed-train_rtt{rtt_ms:g}_c{clients}"
            changes = changes_of(
                found,
                options.out,
                usual_prompt(kinds),
                rtt_s=rtt_ms / 1e3,
                clients=clients,
                protocol="synchronous",
            )
            # Longer than an episode of the comparison, whose beginning and end weigh much.
            longer = {"requests": 16 * clients, "total_requests": None}
            data = {"extends": "testbed-train.yaml", "name": name, **changes, "episode": longer}
            write_scenario(options.out / f"{name}.yaml", data, head)


def write_spells(options: argparse.Namespace) -> None:
    """Write the link of a comparison, another to train on, and the scenario to train on."""
    from dsd_env.acceptance import TraceError, load_trace_set
    from dsd_env.network.series import save_series
    from dsd_env.testbed.changing import spells, to_train_on
    from dsd_env.testbed.twin import variant, write_scenario

    good_s, bad_s, delay_s = 60.0, 30.0, 0.4
    series = spells(
        0,
        good_s + bad_s,
        good_s=(good_s, good_s, good_s),
        bad_s=(bad_s, bad_s, bad_s),
        delay_s=(delay_s, delay_s),
    )
    told = f"{good_s:g} s good, {bad_s:g} s with {delay_s:g} s more each way"
    save_series(series, options.out / "spells.csv", comments=(told,))
    path = options.out / "spells-train.csv"
    save_series(spells(1, 7200.0), path, comments=("Spells of random length: dsd_env/testbed/changing.py",))
    pair = (Path(options.target).name, Path(options.draft).name)
    try:
        trace = load_trace_set("_".join((*pair, "greedy")))
    except TraceError:
        trace = load_trace_set(options.out / "testbed_greedy")
    twin = variant(
        calibration_of(options),
        options.out / "testbed.yaml",
        options.out,
        rtt_s=options.rtt_ms[0] / 1e3,
        clients=1,
        protocol="synchronous",
        episode__requests=64,
        episode__total_requests=None,
    )
    data = to_train_on(twin, path, trace, pair[1]).model_dump(mode="json", exclude_unset=True)
    data["name"] = "testbed-train_spells"
    head = f"The testbed's twin, to train on: python scripts/validate_sim.py spells --out {options.out}"
    write_scenario(options.out / "testbed-train_spells.yaml", data, head)
    print(f"wrote {options.out / 'spells.csv'} and {options.out / 'testbed-train_spells.yaml'}")


def bytes_of(options: argparse.Namespace) -> int:
    """Return the bytes of the drafter's weights; 1 for a look-up."""
    from dsd_env.testbed.models import load_model

    if options.draft == "lookup":
        return 1
    model = load_model(options.draft, dtype=options.dtype).model
    return int(sum(p.numel() * p.element_size() for p in model.parameters()))


def twin_of(options: argparse.Namespace, setting: Setting) -> Any:
    """Return the twin's scenario for a setting."""
    from dsd_env.testbed.changing import on_own_device
    from dsd_env.testbed.twin import variant

    requests = max(options.requests, 2 * setting.clients)
    twin = variant(
        calibration_of(options),
        options.out / "testbed.yaml",
        options.out,
        rtt_s=setting.rtt_s,
        clients=setting.clients,
        protocol=setting.protocol,
        plain=setting.rule == "plain",
        episode__requests=requests,
        episode__total_requests=requests,
    )
    return on_own_device(twin, setting.series, random_start=False) if setting.series else twin


def calibration_of(options: argparse.Namespace) -> Calibration:
    """Return what was measured."""
    from dsd_env.testbed.against import ValidationError
    from dsd_env.testbed.twin import Calibration

    try:
        return Calibration.model_validate_json((options.out / "calibration.json").read_text())
    except (OSError, ValueError) as error:
        raise ValidationError(f"{options.out}: calibrate first ({error})") from error


def disturbed(facts: dict[str, Any]) -> bool:
    """Return whether other programs took so much of the machine that a run says little."""
    others = facts.get("cores_of_others")
    return others is not None and others > MOST_OF_OTHERS


def is_there(path: Path) -> bool:
    """Return whether a setting has run undisturbed."""
    from dsd_env.testbed.against import load_run

    return path.exists() and not disturbed(load_run(path)[0])


def run(options: argparse.Namespace) -> None:
    """Play settings in the testbed that are not there yet."""
    from dsd_env.testbed import measuring
    from dsd_env.testbed.against import metrics_of, play, save_run
    from dsd_env.testbed.bench import cloud_process
    from dsd_env.testbed.timing import Neighbours

    settings = chosen_settings(options)
    folder = options.out / "runs"
    todo = [s for s in settings if options.again or not is_there(folder / f"{s.name}.json")]
    print(f"{len(settings) - len(todo)} of {len(settings)} settings are there", flush=True)
    if not todo:
        return
    scenarios = {s.name: twin_of(options, s) for s in todo}
    questions = make_questions(options, QUESTIONS)
    warm = make_questions(options, dict(list(TRAINING.items())[:2]))
    known = json.loads((options.out / "outputs.json").read_text())
    make_line = edge(options)

    async def all_of_them() -> None:
        with ThreadPoolExecutor(1) as pool:
            async with cloud_process(cloud_spec(options)) as port:
                # The first passes of a process are slower and shall not count.
                await measuring.live_at(port, list(warm.values()), make_line)
                for setting in todo:
                    outputs: list[list[int]] = []
                    began = time.perf_counter()
                    others = Neighbours([os.getpid(), *(p.pid or 0 for p in active_children())])
                    served = await play(
                        setting,
                        scenarios[setting.name],
                        port,
                        questions,
                        make_line,
                        seed=options.seed,
                        pool=pool,
                        heard=outputs,
                    )
                    facts = {
                        "date": measuring.today(),
                        "seed": options.seed,
                        "seconds": round(time.perf_counter() - began, 1),
                        "same_outputs": sum(tokens in known.values() for tokens in outputs),
                        "cores_of_others": share if (share := others.cores()) is None else round(share, 4),
                    }
                    save_run(folder / f"{setting.name}.json", setting, served, facts)
                    shown = metrics_of(served)
                    print(
                        f"{setting.name}: {1e3 * shown['tpot_s_mean']:.0f} ms per token, "
                        f"{shown['e2e_s_mean']:.2f} s, {facts['seconds']:.0f} s in all"
                        + (", disturbed: it will run again" if disturbed(facts) else ""),
                        flush=True,
                    )

    asyncio.run(all_of_them())


def compare_all(options: argparse.Namespace) -> None:
    """Simulate all settings that have run, and write the results."""
    from dsd_env.testbed.against import ValidationError, compare, load_run, simulated

    rows: list[Row] = []
    for setting in chosen_settings(options):
        path = options.out / "runs" / f"{setting.name}.json"
        if not path.exists():
            print(f"{setting.name} has not run yet", file=sys.stderr)
            continue
        _, served = load_run(path)
        rows += compare(setting.name, served, simulated(setting, twin_of(options, setting), options.seed))
    if not rows:
        raise ValidationError(f"{options.out / 'runs'}: no setting has run yet")
    path = results_of(options)
    write_json(path, [vars(row) for row in rows])
    print(f"wrote {path}")


def results_of(options: argparse.Namespace) -> Path:
    """Return where results go; the plot is beside them."""
    name: str = f"results-{options.replay.stem}.json" if options.replay else "results.json"
    return Path(options.out) / name


def report(options: argparse.Namespace) -> None:
    """Print the tables, and draw the plot."""
    from dsd_env.testbed.against import load_results, load_run
    from dsd_env.testbed.reporting import gains, markdown, plot

    rows = load_results(results_of(options))
    print(markdown(rows))
    wanted = {row.setting for row in rows} if options.replay else None
    files = sorted((options.out / "runs").glob("*.json"))
    found = {path.stem: load_run(path) for path in files if wanted is None or path.stem in wanted}
    if shared := [name for name, (facts, _) in found.items() if disturbed(facts)]:
        print(f"Other programs took more than {MOST_OF_OTHERS:g} cores during {', '.join(shared)}.\n")
    print(gains({name: served for name, (_, served) in found.items()}, options.replay))
    picture = results_of(options).with_suffix(".png").name.replace("results", "validation")
    plot(rows, options.out / picture)
    print(f"wrote {options.out / picture}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(arguments)
    steps = {
        "calibrate": calibrate,
        "run": run,
        "simulate": compare_all,
        "report": report,
        "spells": write_spells,
    }
    try:
        from dsd_env.network.errors import SeriesError
        from dsd_env.scenario import ScenarioError
        from dsd_env.testbed.against import ValidationError
        from dsd_env.testbed.measuring import MeasuringError

        try:
            if {"run", "simulate", "all"} & set(options.step):
                chosen_settings(options)  # what is wrong with them is told before hours of work
            with hold(options.out / LOCK_FILE, options.out):
                for name in ALL if "all" in options.step else options.step:
                    steps[name](options)
        except (ValidationError, MeasuringError, ScenarioError, SeriesError, OSError) as error:
            print(f"validate_sim: {error}", file=sys.stderr)
            return 2
    except ImportError as error:
        print(f"validate_sim: {error}; it needs pip install -e '.[testbed]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    _cli.run(main)
