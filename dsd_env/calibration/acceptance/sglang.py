"""Reader of what SGLang's responses report of speculative decoding.

The fields are those of SGLang's source up to 0.5.23. A number that stands in a response twice, or follows
from others in it, is checked against them, as exactly as it is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsd_env.acceptance.traceset import TraceError
from dsd_env.calibration.acceptance.counts import (
    ASSUMED,
    MAX_COUNT,
    MAX_PLACES,
    Floats,
    Request,
    RoundCounts,
    Shortfall,
    check_printed,
    file_notes,
    half_unit,
    per_request,
    reached_by_place,
    trials,
)
from dsd_env.calibration.acceptance.reading import each_item, field, integer, json_messages, number

# Newer names first.
_HISTOGRAM = ("spec_correct_drafts_histogram", "spec_accept_histogram")
_CORRECT = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
_PROPOSED = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
_CAPS = "spec_cap_lens_histogram"


class _Found:
    """One request's numbers as a response has them.

    Attributes:
        where: File, line, and where in the response.
        values: ``meta_info`` or ``spec_tokens_details``.
        tokens: Output tokens as the response has them, unchecked; ``None`` if it does not.
        zero_means_missing: ``spec_tokens_details`` shows 0 for what the server does not know.
    """

    def __init__(self, where: str, values: Mapping[str, Any], tokens: Any, zero_means_missing: bool) -> None:
        self.where = where
        self.values = values
        self.tokens = tokens
        self.zero_means_missing = zero_means_missing

    def first(self, names: tuple[str, ...]) -> str | None:
        """Return the first of some names that the response has a value for."""
        for name in names:
            value = self.values.get(name)
            if value is not None and not (self.zero_means_missing and value in (0, [])):
                return name
        return None

    def integer(self, names: tuple[str, ...]) -> tuple[str, int] | None:
        """Return name and value of a count, if it is there."""
        name = self.first(names)
        return None if name is None else (name, integer(self.values[name], name, self.where, 0, MAX_COUNT))

    def counts(self, name: str) -> list[int] | None:
        """Return a list of counts, if it is there and not empty."""
        if not (self.values.get(name) or self.values.get(name) == 0):
            return None
        values = field(self.values, name, self.where, list)
        if len(values) > MAX_PLACES + 1:
            raise TraceError(
                f"{self.where}: {name} has {len(values)} entries, at most {MAX_PLACES + 1} can be"
            )
        return [integer(v, name, self.where, 0, MAX_COUNT) for v in values]


def _found(where: str, row: Any) -> list[_Found] | None:
    """Return the requests of one response: its own form, that of OpenAI's interface, or ``meta_info`` alone.

    ``None`` for a response that tells nothing: a failure, a chunk of a stream, a request without the option.
    """
    if not isinstance(row, Mapping):
        raise TraceError(f"{where}: must be a JSON object, found {type(row).__name__}")
    if "meta_info" in row:
        return [_meta_info(f"{where}: meta_info", row["meta_info"])]
    details = row.get("sglext")
    details = details.get("spec_tokens_details") if isinstance(details, Mapping) else details
    if details is not None:
        place = f"{where}: sglext.spec_tokens_details"
        if not isinstance(details, Mapping):
            raise TraceError(f"{place}: must be a JSON object, found {type(details).__name__}")
        choices = row.get("choices")
        if isinstance(choices, list) and len(choices) > 1:
            return None  # They describe one of several outputs, and usage all of them.
        usage = row.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
        return [_Found(place, details, tokens, True)]
    if isinstance(row.get("choices"), list):
        made = []
        for position, choice in enumerate(row["choices"]):
            place = f"{where}: choices[{position}]"
            if not isinstance(choice, Mapping):
                raise TraceError(f"{place}: must be a JSON object, found {type(choice).__name__}")
            if choice.get("meta_info") is not None:
                made.append(_meta_info(f"{place}.meta_info", choice["meta_info"]))
        return made or None
    if row.get("error") is not None:
        return None
    return [_meta_info(where, row)]


def _meta_info(where: str, values: Any) -> _Found:
    if not isinstance(values, Mapping):
        raise TraceError(f"{where}: must be a JSON object, found {type(values).__name__}")
    return _Found(where, values, values.get("completion_tokens"), False)


def _request(found: _Found, drafts_per_round: int | None) -> list[int] | None:
    """Return the histogram of a request, checked; ``None`` if it had no rounds."""
    where = found.where
    name = found.first(_HISTOGRAM)
    verified = found.integer(("spec_verify_ct",))
    if name is None:
        means = found.values.get("spec_accept_length")
        if (verified is None or verified[1] == 0) and not means and found.tokens is not None:
            integer(found.tokens, "completion_tokens", where, 0, MAX_COUNT)
            return None
        raise TraceError(
            f"{where}: lacks a field of the format: {_HISTOGRAM[1]!r}. A server without it reports means "
            "only, which do not say how runs end"
        )
    values = field(found.values, name, where, list)
    limit = drafts_per_round if drafts_per_round is not None else MAX_PLACES
    if not 1 <= len(values) <= limit + 1:
        raise TraceError(
            f"{where}: {name} has {len(values)} entries; rounds of {limit} drafts have up to {limit + 1}"
        )
    counts = [integer(v, name, where, 0, MAX_COUNT) for v in values]
    rounds, accepted = sum(counts), sum(j * n for j, n in enumerate(counts))
    if verified is not None and verified[1] != rounds:
        raise TraceError(f"{where}: spec_verify_ct is {verified[1]}, {name} sums to {rounds}")
    correct = found.integer(_CORRECT)
    if correct is not None and correct[1] != accepted:
        raise TraceError(f"{where}: {correct[0]} is {correct[1]}, {name} makes {accepted}")
    if found.tokens is None:
        raise TraceError(f"{where}: lacks a field of the format: 'completion_tokens'")
    tokens = integer(found.tokens, "completion_tokens", where, 0, MAX_COUNT)
    if accepted + rounds > tokens + len(counts) + 1:
        raise TraceError(
            f"{where}: completion_tokens is {tokens}, but {rounds} rounds with {accepted} drafts accepted "
            "made "
            f"{accepted + rounds}"
        )
    length = found.values.get("spec_accept_length")
    if length and rounds:
        printed = number(length, "spec_accept_length", where, 0.0, 1e9)
        # Versions differ: output tokens per round, or accepted drafts and the bonus token.
        other = 1.0 + accepted / rounds
        nearer = min(tokens / rounds, other, key=lambda made: abs(made - printed))
        what = f"{tokens} tokens of {rounds} rounds with {accepted} drafts accepted"
        check_printed(printed, half_unit(length), nearer, "spec_accept_length", what, where)
    return counts if rounds else None


def _drafted(found: _Found, reached: Floats) -> Floats | None:
    """Return how many rounds drafted each place, ``[places]``, where a response has it."""
    name, by_place = "spec_num_proposed_drafts_by_position", None
    values = found.counts(name)
    if values is not None:
        by_place = np.array(values, dtype=np.float64)
    lengths = found.counts("spec_proposed_drafts_histogram")
    if lengths is not None:
        if sum(lengths) != reached[0]:
            raise TraceError(
                f"{found.where}: spec_proposed_drafts_histogram sums to {sum(lengths)}, there were "
                f"{reached[0]:g} rounds"
            )
        from_lengths = np.array(lengths[::-1], dtype=np.float64).cumsum()[::-1][1:]
        size = max(len(from_lengths), len(by_place) if by_place is not None else 0)
        from_lengths = np.pad(from_lengths, (0, size - len(from_lengths)))
        if by_place is not None and not np.array_equal(
            np.pad(by_place, (0, size - len(by_place))), from_lengths
        ):
            raise TraceError(f"{found.where}: {name} and spec_proposed_drafts_histogram tell of other rounds")
        by_place = from_lengths
    if by_place is None or not len(by_place):
        return None
    proposed = found.integer(_PROPOSED)
    if proposed is not None and proposed[1] != by_place.sum():
        raise TraceError(
            f"{found.where}: {proposed[0]} is {proposed[1]}, drafts by position sum to {by_place.sum():g}"
        )
    return by_place


def _compare(found: _Found, reached: Floats, places: int, short: Shortfall) -> None:
    """Compare drafted tokens with rounds times places, from whatever of them a response has."""
    rounds, accepted = float(reached[0]), float(reached[1:].sum())
    proposed = found.integer(_PROPOSED)
    rate_name = "spec_accept_rate"
    rate = found.values.get(rate_name)
    if proposed is not None:
        if proposed[1] < accepted:
            raise TraceError(f"{found.where}: {proposed[0]} is {proposed[1]}, but {accepted:g} were accepted")
        if rate and proposed[1]:
            printed = number(rate, rate_name, found.where, 0.0, 1.0)
            what = f"{accepted:g} of {proposed[1]} drafts"
            check_printed(printed, half_unit(rate), accepted / proposed[1], rate_name, what, found.where)
        # More than rounds times places is a tree of drafts.
        short.add(found.where, proposed[0], proposed[1], rounds, places)
    elif rate and accepted:
        printed = number(rate, rate_name, found.where, 0.0, 1.0)
        most = accepted / max(printed - half_unit(rate), 1e-9)
        if most < accepted * (1 - 1e-9):
            raise TraceError(f"{found.where}: {rate_name} is {printed:g}")
        short.add(found.where, f"drafted tokens by {rate_name}, at most", most, rounds, places)
    caps = found.counts(_CAPS)
    if caps is not None and sum(n > 0 for n in caps) > 1:
        raise TraceError(
            f"{found.where}: {_CAPS} has rounds that verified different numbers of drafts; which places "
            "were tried "
            "is not in the file, so acceptance by place cannot be had from it"
        )


def read_sglang(path: Path, drafts_per_round: int | None = None) -> RoundCounts:
    """Read responses of an SGLang server.

    The file holds responses of ``/generate``; of ``/v1/...`` with ``return_meta_info``
    (``choices[].meta_info``) or ``return_spec_tokens_details`` (``sglext.spec_tokens_details``); lists of
    such; or ``meta_info`` alone: one a line, one behind the other, or as events of streams, of which the last
    message of a request counts. Read are ``spec_correct_drafts_histogram`` (older name
    ``spec_accept_histogram``; entry ``n`` counts the rounds that accepted ``n`` drafts),
    ``completion_tokens``, and, where they are there, the drafted tokens: by position
    (``spec_num_proposed_drafts_by_position``, ``spec_proposed_drafts_histogram``), else in all.
    ``spec_verify_ct``, ``spec_num_correct_drafts``, ``spec_accept_length`` and ``spec_accept_rate`` are
    checked; alone they give means and are not enough. Requests without rounds are left out.

    Unless it reports drafts by position, SGLang does not count them but multiplies rounds by its setting, so
    adaptive numbers of steps cannot be seen in a file.

    Args:
        path: The file.
        drafts_per_round: The server's drafts per round (``--speculative-num-steps``); default the longest
            that any round of the file accepted.

    Raises:
        TraceError: No histograms, values that cannot be, or rounds that drafted fewer tokens than the most in
            a file that does not say which.
    """
    path = Path(path)
    messages, foreign = json_messages(path)
    requests: dict[tuple[str, int], tuple[_Found, bool]] = {}
    streams: set[str] = set()
    complete: set[str] = set()
    left_out = again = 0
    for where, row, streamed in each_item(messages):
        found = _found(where, row)
        name = str(row.get("id") or "")
        chunk = streamed or str(row.get("object", "")).endswith(".chunk")
        if found is None:
            if chunk:
                streams.add(name)
            else:
                left_out += 1
            continue
        complete.add(name)
        for position, one in enumerate(found):
            key = str(one.values.get("id") or name or where), position
            if key in requests:
                _same(requests[key], one, chunk)
                again += 1
            requests[key] = one, chunk
    left_out += len(streams - complete)
    sound = []
    for one, _ in requests.values():
        histogram = _request(one, drafts_per_round)
        if histogram is None:
            left_out += 1
        else:
            sound.append((one, np.trim_zeros(np.array(histogram), "b").tolist()))
    if not sound:
        other = any(isinstance(m.value, Mapping) and m.value.get("metrics") for m in messages)
        hint = "; these are responses of vLLM: read them as vllm-responses" if other else ""
        raise TraceError(f"{path}: holds no request with rounds ({left_out} without){hint}")
    return _table(path, sound, drafts_per_round, left_out, again, foreign)


def _same(before: tuple[_Found, bool], now: _Found, chunk: bool) -> None:
    """Check that a message is of the same request as one before it: the same, or later in one stream."""
    one, was_chunk = before
    if one.values == now.values:
        return
    later = isinstance(one.tokens, int) and isinstance(now.tokens, int) and now.tokens >= one.tokens
    if chunk and was_chunk and later:
        return
    raise TraceError(
        f"{now.where}: the same id has other numbers in {one.where}; of a stream, keep the last message of "
        "a request"
    )


def _table(
    path: Path,
    sound: list[tuple[_Found, list[int]]],
    drafts_per_round: int | None,
    left_out: int,
    again: int,
    foreign: int,
) -> RoundCounts:
    """Return the counts of requests that had rounds."""
    short = Shortfall(
        "Newer servers report spec_num_proposed_drafts_by_position; without it, run with a fixed number of "
        "steps."
    )
    drafted = [_drafted(one, reached_by_place(counts, max(1, len(counts) - 1))) for one, counts in sound]
    longest = max(len(counts) - 1 for _, counts in sound)
    known = [len(np.trim_zeros(by_place, "b")) for by_place in drafted if by_place is not None]
    places = drafts_per_round or max(1, longest, *known)
    if max([longest, *known]) > places:
        raise TraceError(
            f"{path}: a round drafted {max([longest, *known])} tokens, more than {places} per round"
        )
    requests = []
    for (one, counts), by_place in zip(sound, drafted, strict=True):
        reached = reached_by_place(counts, places)
        tried = reached[:-1]
        if by_place is None:
            _compare(one, reached, places, short)
        else:
            tried = trials(reached, np.pad(by_place, (0, max(0, places - len(by_place))))[:places], one.where)
        if tried[0] > 0:
            requests.append(Request(reached, tried, int(one.tokens)))
    left_out += len(sound) - len(requests)
    if not requests:
        raise TraceError(f"{path}: holds no request with rounds ({left_out} without)")
    reached_last = sum(float(request.tried[-1]) for request in requests)
    notes = [*file_notes(left_out, again, foreign), *short.notes(reached_last)]
    if not known and not any(one.first(_PROPOSED) or one.values.get("spec_accept_rate") for one, _ in sound):
        notes.append(ASSUMED.format(places=places))
    return per_request(requests, places, f"SGLang responses {path.name}", left_out, notes)
