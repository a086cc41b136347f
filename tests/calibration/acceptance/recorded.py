"""Recordings made by tests, and their replayed streams held against direct ones."""

from __future__ import annotations

from dataclasses import replace

from dsd_env.acceptance import load_trace_set
from dsd_env.calibration.acceptance.recording import validate
from dsd_env.calibration.acceptance.recording.direct import speculative_runs
from dsd_env.calibration.acceptance.recording.record import (
    WorkDir,
    assemble,
    record_drafters,
    record_targets,
)
from dsd_env.calibration.acceptance.recording.target import sampling_key


def record(name, target, drafter, prompts, settings, directory, temperature=0.0, *, batch_size=32):
    """Record a pair, save the recording under its name, and load it.

    Args:
        name: What the recording is called.
        target: Its target.
        drafter: Its drafter, with the model as ``draft``.
        prompts: The requests.
        settings: Of the recording; the drafter goes by their name of it.
        directory: Where recording and work go.
        temperature: Of target and drafter.
        batch_size: Requests that the target decodes at a time.

    Returns:
        The recording and its folder of work.
    """
    work = WorkDir(directory / f"work_{name}")
    work.open(settings)
    temperatures = (temperature,)
    record_targets(target, prompts, work, settings, temperatures=temperatures, batch_size=batch_size)
    record_drafters(drafter, prompts, work, settings, temperatures=temperatures)
    cards = target.card, drafter.draft.card, settings.drafter, "Apache-2.0"
    assemble(name, prompts, work, settings, *cards, temperature).save(directory)
    return load_trace_set(directory / name), work


WINDOW = 3


def heard(entry):
    """Return how many drafts have arrived at each output position of an entry."""
    return validate.arrivals(sampling_key(11, f"{entry}", 1.0), WINDOW)


def direct_streams(pair, trace, ids, temperature):
    """Return the lengths of the chains of direct streams, by entry; entries without output are left out."""
    target, draft = pair
    n = int(trace.card["max_tokens"])
    entries = range(trace.n_entries)
    arrived = [heard(e) for e in entries]
    keys = [sampling_key(6, f"stream {e}", temperature) for e in entries]
    prompts = [ids[trace.card["entries"][e]] for e in entries]
    runs = speculative_runs(
        target, draft, prompts, WINDOW, n, temperature, keys, arrived=lambda i, at: arrived[i](at)
    )
    if temperature > 0:
        idle = [r for run in runs for r in run.rounds if r.drafted == 0]
        assert len(idle) > 100, "the target goes on without drafts, too"
    return {
        e: validate.chain_lengths(run.rounds, min(n, len(run.output_ids)))
        for e, run in zip(entries, runs, strict=True)
        if run.output_ids
    }


def replayed_streams(trace, entries):
    """Return the lengths of the chains of replayed streams with the arrivals of the direct ones."""
    replay = []
    for e in entries:
        realised = validate.replayed(trace, e, "draft", 4)
        rounds = validate.stream_of_replay(realised, heard(e))
        replay.append(validate.chain_lengths(rounds, len(realised.run_length)))
    return replay


def check_streams(pair, trace, ids, tokens, permutations=2000):
    """Assert that replayed streams at a temperature above 0 have the law of direct ones."""
    direct = direct_streams(pair, trace, ids, trace.card["temperature"])
    chains = list(direct.values())
    result = validate.compare_sampled(
        chains, replayed_streams(trace, direct), tokens, permutations=permutations
    )
    assert min(result.direct_rounds, result.replay_rounds) >= 2000
    assert result.p_value > 1e-3, result
    # Guards the test: with the meaning of version 1, guesses are right as often as verified drafts.
    values = trace.drafters["draft"]
    old = replace(trace, drafters={**trace.drafters, "draft": replace(values, draft_prob=None)})
    guard = validate.compare_sampled(chains, replayed_streams(old, direct), tokens, permutations=permutations)
    assert guard.p_value < 0.01, guard
    return result, guard
