"""Training a small drafter with the target's vocabulary on the target's own output.

Three steps, each resumable and each a set of files in one work directory:

1. *Messages*: the target writes user messages by itself, by being read its chat template up to the place
   where a user's message begins (Xu et al., "Magpie", ICLR 2025). Prompts of one's own can be added.
2. *Runs*: the target answers them at the given temperatures. What its output head read is kept for every
   output token, so that its full distribution is at hand without a second pass of the target.
3. *Training*: a student made of some of the target's layers, with its embeddings and output head (both
   frozen), learns to minimise the divergence from the target's distribution at every output token
   (knowledge distillation on the target's own output, as DistillSpec, Zhou et al., ICLR 2024).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_env.calibration.acceptance.recording.models import LanguageModel
from dsd_env.calibration.acceptance.recording.prompts import Prompt
from dsd_env.calibration.acceptance.recording.record import RecordingError, make_batches, write_json
from dsd_env.calibration.acceptance.recording.target import Row, sampling_key, target_runs
from dsd_env.files import write_atomically

if TYPE_CHECKING:
    import torch

#: Runs made in one batch by :func:`make_runs`, and stored in one file.
RUNS_PER_FILE = 96


@dataclass(frozen=True)
class DistillSettings:
    """What defines the training data; a work directory belongs to one of these.

    Attributes:
        target: Target as named on the command line.
        messages: User messages that the target writes.
        message_tokens: Longest of them, tokens.
        max_tokens: Longest answer, tokens.
        temperatures: Every prompt is answered once at each.
        seed: Seed of every draw.
    """

    target: str
    messages: int
    message_tokens: int
    max_tokens: int
    temperatures: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Example:
    """One run of the target to learn from.

    Attributes:
        prompt_ids: Prompt tokens, int64 ``[p]``.
        output_ids: Output tokens, int64 ``[n]``.
        hidden: What the target's output head read for each output token, float16 ``[n, hidden]``.
    """

    prompt_ids: torch.Tensor
    output_ids: torch.Tensor
    hidden: torch.Tensor


def open_work(root: Path, settings: DistillSettings) -> None:
    """Create the work directory or check that it belongs to the same settings.

    Raises:
        RecordingError: It belongs to other settings.
    """
    (root / "runs").mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(asdict(settings)))
    path = root / "settings.json"
    if not path.exists():
        write_json(path, wanted)
    elif (found := json.loads(path.read_text())) != wanted:
        raise RecordingError(
            f"{root} holds training data of other settings ({found}); "
            "give the same ones to go on with it, or another --work directory"
        )


def message_prefix(target: LanguageModel) -> list[int]:
    """Return the tokens of the target's chat template up to where a user's message begins.

    Raises:
        RecordingError: The tokenizer has no chat template.
    """
    if not getattr(target.tokenizer, "chat_template", None):
        raise RecordingError(f"{target.name} has no chat template: it cannot write user messages by itself")
    mark = "MESSAGE-GOES-HERE"
    text = target.tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    return list(target.tokenizer(text.split(mark)[0], add_special_tokens=False)["input_ids"])


def write_messages(
    target: LanguageModel, root: Path, settings: DistillSettings, progress: Callable[[int], None]
) -> list[str]:
    """Return the messages that the target writes at temperature 1, distinct and not empty."""
    path = root / "messages.json"
    texts: list[str] = json.loads(path.read_text()) if path.exists() else []
    progress(len(texts))
    prefix = message_prefix(target)
    while len(texts) < settings.messages:
        numbers = range(len(texts), min(len(texts) + RUNS_PER_FILE, settings.messages))
        rows = [Row(0, 1.0, sampling_key(settings.seed, f"message {i}", 1.0)) for i in numbers]
        runs = target_runs(target, [prefix], rows, settings.message_tokens)
        texts += [target.decode(run.output_ids).strip() for run in runs]
        write_json(path, texts)
        progress(len(numbers))
    return [m for m in dict.fromkeys(texts) if m]


def make_runs(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    root: Path,
    settings: DistillSettings,
    progress: Callable[[int], None],
    most: int | None = None,
) -> None:
    """Let the target answer every prompt at every temperature, and keep what training needs.

    Args:
        target: The target.
        prompts: What it answers.
        root: Work directory.
        settings: Settings of the work directory.
        progress: Called after every file with the number of prompts answered.
        most: Answer about so many of the shuffled prompts (whole files, rounded up) instead of all.

    Raises:
        RecordingError: The work directory holds runs of other prompts.
    """
    import torch
    from safetensors.torch import save_file

    per_file = max(1, RUNS_PER_FILE // len(settings.temperatures))
    order = in_fair_order(prompts, settings.seed)
    listed, ids_in_order = root / "prompts.json", [p.id for p in order]
    if not listed.exists():
        write_json(listed, ids_in_order)
    elif json.loads(listed.read_text()) != ids_in_order:
        raise RecordingError(
            f"{root} holds runs of other prompts; give the same question files and numbers to go on with it"
        )
    wanted = len(order) if most is None else min(most, len(order))
    for number, begin in enumerate(range(0, wanted, per_file)):
        chosen = order[begin : begin + per_file]
        path = root / "runs" / f"{number:04d}.safetensors"
        if not path.exists():
            ids = [target.encode_chat(p.text, p.reply_prefix) for p in chosen]
            tensors: dict[str, torch.Tensor] = {}
            for batch in make_batches([len(i) for i in ids], per_file, 24_000, settings.max_tokens):
                rows = [
                    Row(k, t, sampling_key(settings.seed, f"{chosen[i].id}\0{chosen[i].text}", t))
                    for k, i in enumerate(batch)
                    for t in settings.temperatures
                ]
                hidden: list[list[torch.Tensor]] = []
                runs = target_runs(target, [ids[i] for i in batch], rows, settings.max_tokens, hidden=hidden)
                for run, states in zip(runs, hidden, strict=True):
                    if not run.output_ids:
                        continue
                    name = f"{len(tensors) // 3:04d}"
                    tensors[f"{name}/prompt"] = torch.tensor(run.prompt_ids)
                    tensors[f"{name}/output"] = torch.tensor(run.output_ids)
                    tensors[f"{name}/hidden"] = torch.stack(states)
            write_atomically(path, partial(save_file, tensors))
        progress(len(chosen))


def in_fair_order(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts shuffled: then any number of files is a fair sample of all sources."""
    import torch

    return [prompts[i] for i in torch.randperm(len(prompts), generator=_generator(seed)).tolist()]


def prompts_used(root: Path, settings: DistillSettings) -> dict[str, int]:
    """Return how many prompts of each set were answered so far (``self``: messages the target wrote)."""
    per_file = max(1, RUNS_PER_FILE // len(settings.temperatures))
    done = [int(p.stem) for p in (root / "runs").glob("*.safetensors")]
    ids: list[str] = json.loads((root / "prompts.json").read_text())
    answered = [i for number in done for i in ids[number * per_file : (number + 1) * per_file]]
    sets = sorted({i.split("/")[0] for i in answered})
    return {name: sum(i.split("/")[0] == name for i in answered) for name in sets}


def load_examples(root: Path) -> list[Example]:
    """Return every run stored in a work directory, in the order of files.

    Raises:
        RecordingError: There is none.
    """
    from safetensors.torch import load_file

    examples = []
    for path in sorted((root / "runs").glob("*.safetensors")):
        tensors = load_file(str(path))
        names = sorted({k.split("/")[0] for k in tensors})
        examples += [
            Example(*(tensors[f"{n}/{part}"] for part in ("prompt", "output", "hidden"))) for n in names
        ]
    if not examples:
        raise RecordingError(f"{root}: no runs of the target in it yet")
    return examples


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed & 0x7FFF_FFFF)


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Attributes:
        layers: Layers of the target that it begins with, in order.
        steps: Optimiser steps.
        batch_tokens: Most tokens in a step, padding included.
        learning_rate: Peak of the schedule: linear warm-up over 5 % of the steps, then a cosine to 0.
        seed: Seed of the order of the examples.
        held_out: Share of the examples that is only evaluated on, the last ones made.
    """

    layers: tuple[int, ...]
    steps: int
    batch_tokens: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0
    held_out: float = 0.06


@dataclass(frozen=True)
class Evaluation:
    """How well a student does on held-out output of the target, position by position.

    Attributes:
        tokens: Positions looked at.
        agreement: Share where both distributions have the same most likely token.
        acceptance: Mean of ``sum(min(p, q))``, the probability that a sampled draft is accepted at
            temperature 1.
        divergence_nats: Mean KL divergence of the student from the target, nats.
    """

    tokens: int
    agreement: float
    acceptance: float
    divergence_nats: float


def make_student(target: Any, layers: Sequence[int]) -> Any:
    """Return a model of some of the target's layers, with its embeddings, norm and output head.

    Raises:
        RecordingError: A layer that the target does not have, or an architecture whose layers are not
            numbered ``...layers.N...`` in its state.
    """
    import copy
    import re

    count = target.config.num_hidden_layers
    if not layers or any(not 0 <= i < count for i in layers):
        raise RecordingError(f"--layers {list(layers)}: must be numbers in 0..{count - 1}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    if hasattr(config, "quantization_config"):  # the target was read from a GGUF file; the student is not
        del config.quantization_config
    state = {}
    for name, value in target.state_dict().items():
        found = re.match(r"(.*\blayers\.)(\d+)(\..*)", name)
        if found is None:
            state[name] = value
            continue
        for place, layer in enumerate(layers):
            if int(found[2]) == layer:
                state[f"{found[1]}{place}{found[3]}"] = value
    student = type(target)(config)
    missing, unexpected = student.load_state_dict({k: v.clone() for k, v in state.items()}, strict=False)
    if missing or unexpected:
        raise RecordingError(f"cannot make a student of this architecture: {missing or unexpected}")
    student.tie_weights()
    student.generation_config = copy.deepcopy(target.generation_config)
    return student


def batches_of(examples: Sequence[Example], batch_tokens: int, order: Sequence[int]) -> list[list[Example]]:
    """Group examples in a given order; a batch, padded, has at most so many tokens, or one example."""
    batches: list[list[Example]] = []
    width = 0
    for index in order:
        size = len(examples[index].prompt_ids) + len(examples[index].output_ids)
        if batches and max(width, size) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(examples[index])
            width = max(width, size)
        else:
            batches.append([examples[index]])
            width = size
    return batches


def student_and_target(
    student: Any, head: Any, batch: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what both models say at every output token of a batch.

    Args:
        student: The student.
        head: The target's output head.
        batch: Examples.

    Returns:
        Log-probabilities of student and target ``[tokens, vocabulary]``, and what their output heads
        read, ``[tokens, hidden]``.
    """
    import torch

    width = max(len(e.prompt_ids) + len(e.output_ids) for e in batch) - 1
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    used = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, e in enumerate(batch):
        sequence = torch.cat([e.prompt_ids, e.output_ids])[:-1]
        ids[row, : len(sequence)] = sequence
        used[row, len(e.prompt_ids) - 1 : len(sequence)] = True
    # Padding stands at the end, where nothing that is used can see it.
    states = student.base_model(input_ids=ids, use_cache=False)[0][used]
    with torch.no_grad():
        target_states = torch.cat([e.hidden for e in batch]).to(states.dtype)
        log_p = head(target_states).log_softmax(dim=-1)
    return student.get_output_embeddings()(states).log_softmax(dim=-1), log_p, states, target_states


def evaluate(student: Any, head: Any, examples: Sequence[Example], batch_tokens: int) -> Evaluation:
    """Return how well a student does on some examples."""
    import torch

    student.eval()
    same = overlap = divergence = tokens = 0.0
    with torch.inference_mode():
        for batch in batches_of(examples, batch_tokens, range(len(examples))):
            log_q, log_p, _, _ = student_and_target(student, head, batch)
            p, q = log_p.exp(), log_q.exp()
            tokens += len(p)
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            overlap += float(torch.minimum(p, q).sum())
            divergence += float((p * (log_p - log_q)).sum())
    return Evaluation(int(tokens), same / tokens, overlap / tokens, divergence / tokens)


def learning_rate_at(step: int, training: Training) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to 0 at the last step."""
    warm = max(1, round(0.05 * training.steps))
    if step < warm:
        return training.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, training.steps - warm)
    return 0.5 * training.learning_rate * (1.0 + math.cos(math.pi * min(1.0, share)))


def train(
    target: LanguageModel,
    examples: Sequence[Example],
    root: Path,
    training: Training,
    *,
    checkpoint_every: int = 20,
    progress: Callable[[int, dict[str, float]], None] = lambda _done, _figures: None,
) -> tuple[Any, dict[str, Any]]:
    """Train a student, or go on with one; return it and what is to be said of it.

    The loss is the mean KL divergence of the student from the target over the output tokens, plus the mean
    cosine distance between what their output heads read. A run that is started again with another number of
    steps goes on from its last checkpoint with the schedule of the new number.

    Args:
        target: The target.
        examples: Its runs.
        root: Work directory; the checkpoint is kept in it.
        training: How to train.
        checkpoint_every: Steps between checkpoints.
        progress: Called with the steps done since the last call and the figures of the moment.
    """
    import torch

    student = make_student(target.model, training.layers)
    head = target.model.get_output_embeddings()
    for module in (student.get_input_embeddings(), student.get_output_embeddings()):
        module.requires_grad_(False)
    learnt = {k: v for k, v in student.named_parameters() if v.requires_grad}
    optimiser = torch.optim.AdamW(learnt.values(), betas=(0.9, 0.98), weight_decay=0.01)
    log = _load_checkpoint(root, training, learnt, optimiser)
    step = int(log["step"])
    progress(step, {})
    held = max(1, round(training.held_out * len(examples)))
    if held >= len(examples):
        raise RecordingError(f"{len(examples)} runs are too few to train on")
    learn, judge = examples[:-held], examples[-held:]
    before = log.setdefault("before", asdict(evaluate(student, head, judge, training.batch_tokens)))
    began = time.perf_counter()
    epoch = -1
    queue: list[list[Example]] = []
    done = 0
    while step < training.steps:
        while done + len(queue) <= step:  # the order depends on the seed and the epoch alone
            done += len(queue)
            epoch += 1
            order = torch.randperm(len(learn), generator=_generator(training.seed + 1 + epoch)).tolist()
            queue = batches_of(learn, training.batch_tokens, order)
        batch = queue[step - done]
        student.train()
        rate = learning_rate_at(step, training)
        for group in optimiser.param_groups:
            group["lr"] = rate
        log_q, log_p, states, target_states = student_and_target(student, head, batch)
        divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
        distance = 1.0 - torch.cosine_similarity(states, target_states, dim=-1).mean()
        optimiser.zero_grad()
        (divergence + distance).backward()
        torch.nn.utils.clip_grad_norm_(list(learnt.values()), 1.0)
        optimiser.step()
        step += 1
        progress(1, {"kl": float(divergence.detach()), "lr": rate})
        if step % checkpoint_every == 0 or step == training.steps:
            log["step"], log["examples"] = step, len(learn)
            log["seconds"] = log.get("seconds", 0.0) + time.perf_counter() - began
            began = time.perf_counter()
            _save_checkpoint(root, training, learnt, optimiser, log)
    after = asdict(evaluate(student, head, judge, training.batch_tokens))
    return student, {
        "layers_of_target": list(training.layers),
        "steps": step,
        "batch_tokens": training.batch_tokens,
        "learning_rate": training.learning_rate,
        "runs_learnt_from": len(learn),
        "output_tokens_learnt_from": sum(len(e.output_ids) for e in learn),
        "runs_held_out": len(judge),
        "held_out_before": before,
        "held_out": after,
        "training_wall_s": round(log.get("seconds", 0.0), 1),
    }


def _save_checkpoint(
    root: Path, training: Training, learnt: dict[str, torch.Tensor], optimiser: Any, log: dict[str, Any]
) -> None:
    """Write parameters and optimiser state, then the log that makes them valid."""
    from safetensors.torch import save_file

    tensors = {f"value/{k}": v.detach() for k, v in learnt.items()}
    for name, value in learnt.items():
        tensors |= {f"{k}/{name}": v for k, v in optimiser.state[value].items()}
    path = root / f"checkpoint-{log['step']}.safetensors"
    write_atomically(path, partial(save_file, {k: v.contiguous() for k, v in tensors.items()}))
    write_json(root / "checkpoint.json", {"layers": list(training.layers), **log})
    for other in root.glob("checkpoint-*.safetensors"):
        if other != path:
            other.unlink()


def _load_checkpoint(
    root: Path, training: Training, learnt: dict[str, torch.Tensor], optimiser: Any
) -> dict[str, Any]:
    """Load the last checkpoint, if there is one, and return its log."""
    import torch
    from safetensors.torch import load_file

    path = root / "checkpoint.json"
    if not path.exists():
        return {"step": 0}
    log: dict[str, Any] = json.loads(path.read_text())
    if log.pop("layers") != list(training.layers):
        raise RecordingError(f"{root} holds a student of other layers; give another --work directory")
    tensors = load_file(str(root / f"checkpoint-{log['step']}.safetensors"))
    with torch.no_grad():
        for name, value in learnt.items():
            value.copy_(tensors[f"value/{name}"])
            optimiser.state[value] = {
                k: tensors[f"{k}/{name}"]
                for k in ("step", "exp_avg", "exp_avg_sq")
                if f"{k}/{name}" in tensors
            }
    return log


def save_drafter(student: Any, target: LanguageModel, directory: Path, card: dict[str, Any]) -> None:
    """Write a checkpoint directory: ``config.json``, ``model.safetensors``, tokenizer and ``drafter.json``.

    The directory appears complete or not at all.

    Raises:
        RecordingError: It is there already.
    """
    if directory.exists():
        raise RecordingError(f"{directory} is there already; give another --out")
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    student.eval()
    student.save_pretrained(temporary, safe_serialization=True)
    target.tokenizer.save_pretrained(temporary)
    write_json(temporary / "drafter.json", card)
    os.replace(temporary, directory)
