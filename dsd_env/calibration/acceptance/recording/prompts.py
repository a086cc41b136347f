"""Real prompts for recording: readers of well-known question files, and of a user's own file.

The text of the prompts is read from a directory that the user names (``--data-dir`` or
``$DSD_DATA_DIR``) and is never stored in a recording; the card names every prompt by its id.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_env.text import TextError, open_text


class PromptError(ValueError):
    """Prompts are missing or malformed."""


@dataclass(frozen=True)
class Prompt:
    """One user message.

    Attributes:
        id: Stable name, ``<set>/<number>``.
        kind: Kind of request, such as ``code``.
        text: The user message as the chat template receives it.
        reply_prefix: Beginning of the reply, given to both models; the output comes after it.
    """

    id: str
    kind: str
    text: str
    reply_prefix: str = ""


@dataclass(frozen=True)
class PromptSet:
    """A question file and how to read it.

    Attributes:
        name: Name for the card.
        kind: Kind of request its prompts are.
        file: File name in the data directory.
        licence: Licence as its origin states it.
        origin: Where the file comes from.
        read: Takes line number and JSON object and returns ``(number, question)``.
        instruction: Template of the user message; ``{}`` is the question.
        reply_prefix: Template of the reply's beginning.
    """

    name: str
    kind: str
    file: str
    licence: str
    origin: str
    read: Callable[[int, dict[str, Any]], tuple[str, str]]
    instruction: str = "{}"
    reply_prefix: str = ""


def _first_turn(_: int, row: dict[str, Any]) -> tuple[str, str]:
    return str(row["question_id"]), str(row["turns"][0])


def _human_eval(_: int, row: dict[str, Any]) -> tuple[str, str]:
    return str(row["task_id"]).split("/")[-1], str(row["prompt"])


def _gsm8k(number: int, row: dict[str, Any]) -> tuple[str, str]:
    return str(number), str(row["question"])


_EAGLE = "github.com/SafeAILab/EAGLE"
# The reply to a HumanEval question begins with the question's own code, as instruction-tuned models
# are commonly evaluated on it; else most of the output would be a copy of the question.
PROMPT_SETS: tuple[PromptSet, ...] = (
    PromptSet(
        name="HumanEval",
        kind="code",
        file="HumanEval.jsonl.gz",
        licence="MIT",
        origin="github.com/openai/human-eval",
        read=_human_eval,
        instruction="Complete the following Python function.\n\n```python\n{}```",
        reply_prefix="```python\n{}",
    ),
    PromptSet("GSM8K", "maths", "gsm8k_test.jsonl", "MIT", "github.com/openai/grade-school-math", _gsm8k),
    PromptSet(
        "MT-bench", "chat", "mtbench_question.jsonl", "Apache-2.0", "github.com/lm-sys/FastChat", _first_turn
    ),
    PromptSet("Alpaca", "instruction", "eagle_alpaca_question.jsonl", "Apache-2.0", _EAGLE, _first_turn),
    PromptSet("NaturalQuestions", "qa", "eagle_qa_question.jsonl", "Apache-2.0", _EAGLE, _first_turn),
    PromptSet("CNN-DM", "summarisation", "eagle_sum_question.jsonl", "Apache-2.0", _EAGLE, _first_turn),
)
KINDS: tuple[str, ...] = tuple(s.kind for s in PROMPT_SETS)


def find_data_dir(explicit: Path | None = None) -> Path | None:
    """Return the directory of question files, or ``None`` where none was named or found.

    Order: ``explicit``, ``$DSD_DATA_DIR``, then ``../shared/data`` beside the checkout; in each
    the files may lie directly or in ``prompts/``.
    """
    beside_checkout = Path(__file__).resolve().parents[4].parent / "shared" / "data"
    candidates = [explicit, os.environ.get("DSD_DATA_DIR"), beside_checkout]
    for candidate in candidates:
        if candidate is None:
            continue
        for directory in (Path(candidate) / "prompts", Path(candidate)):
            if any((directory / s.file).exists() for s in PROMPT_SETS):
                return directory
        if candidate is explicit:
            raise PromptError(f"{candidate}: holds none of {[s.file for s in PROMPT_SETS]}")
    return None


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = -1
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open_text(path) as stream
        ):
            for number, line in enumerate(stream):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise PromptError(f"{path}, line {number + 1}: must be a JSON object, one a line")
                    yield number, row
    except TextError as error:
        raise PromptError(str(error)) from error
    except json.JSONDecodeError as error:
        raise PromptError(f"{path}, line {number + 1}: not JSON: {error}") from error
    except (OSError, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error


def read_prompts(
    data_dir: Path, kinds: Sequence[str] | None = None, cut_words: Mapping[str, int] | None = None
) -> dict[str, list[Prompt]]:
    """Read every prompt of the wanted kinds, in file order.

    Args:
        data_dir: Directory of question files, see :func:`find_data_dir`.
        kinds: Kinds wanted; default every kind whose file is there.
        cut_words: Kind -> words. A question with more words (separated by white space) ends after so
            many, and ``@N`` words is added to its id: long articles, of which a summary's beginning
            hardly needs more.

    Returns:
        kind -> prompts.

    Raises:
        PromptError: Unknown kind, missing or malformed file.
    """
    wanted = set(KINDS if kinds is None else kinds)
    cuts = dict(cut_words or {})
    if unknown := (wanted | set(cuts)) - set(KINDS):
        raise PromptError(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
    prompts: dict[str, list[Prompt]] = {}
    for s in PROMPT_SETS:
        path = data_dir / s.file
        if s.kind not in wanted or (kinds is None and not path.exists()):
            continue
        if not path.exists():
            raise PromptError(f"{path} is missing: kind {s.kind!r} needs it (origin: {s.origin})")
        rows = prompts.setdefault(s.kind, [])
        for number, row in _json_lines(path):
            try:
                identity, question = s.read(number, row)
            except (KeyError, IndexError, TypeError) as error:
                raise PromptError(f"{path}, line {number + 1}: missing field {error}") from error
            limit = cuts.get(s.kind)
            if limit is not None and len(words := question.split()) > limit:
                identity, question = f"{identity}@{limit}", " ".join(words[:limit])
            message = s.instruction.replace("{}", question)
            prefix = s.reply_prefix.replace("{}", question)
            rows.append(Prompt(f"{s.name}/{identity}", s.kind, message, prefix))
    return prompts


def read_prompt_file(path: Path) -> dict[str, list[Prompt]]:
    """Read a user's own prompts: JSON lines with ``prompt``, optionally ``id``, ``kind``, ``reply_prefix``.

    Raises:
        PromptError: Missing or malformed file, or a line without ``prompt``.
    """
    prompts: dict[str, list[Prompt]] = {}
    for number, row in _json_lines(path):
        if not isinstance(row.get("prompt"), str):
            raise PromptError(f"{path}, line {number + 1}: needs a string field 'prompt'")
        kind = str(row.get("kind", "custom"))
        identity = str(row.get("id", f"{path.stem}/{number}"))
        prefix = str(row.get("reply_prefix", ""))
        prompts.setdefault(kind, []).append(Prompt(identity, kind, row["prompt"], prefix))
    if not prompts:
        raise PromptError(f"{path}: no prompts in it")
    return prompts
