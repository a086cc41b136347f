"""Runs llama-cpp-python plainly and steered, and writes what happened as JSON. Used by test_llama_cpp.py.

Usage: python llama_cpp_run.py GGUF lookup|model OUT.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from dsd_env.serving.engines.llama_cpp import model_drafter, policy_draft_model
from tests.serving.engines.samples import Cycle, Witness, engine

TOKENS = 48
PROMPTS = (
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over",
    "def count(words):\n    total = 0\n    for word in words:\n        total += len(word)\n",
)


def main() -> None:
    gguf, kind, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    options: dict[str, Any] = {"model_path": gguf, "n_ctx": 256, "n_threads": 1, "verbose": False, "seed": 0}
    controller = Witness(Cycle((3, 0, 1, 5)), engine((0, 1, 3, 5)))
    drafter: Any = LlamaPromptLookupDecoding(num_pred_tokens=64)
    if kind == "model":
        drafter = model_drafter(Llama(**options))
    draft = policy_draft_model(drafter, controller)
    lengths: list[int] = []
    call = type(draft).__call__

    def counting(self: Any, input_ids: Any, /, **named: Any) -> Any:
        drafts = call(self, input_ids, **named)
        lengths.append(len(drafts))
        return drafts

    type(draft).__call__ = counting
    # Both evaluate with all logits, and so with the same arithmetic.
    plain, steered = Llama(**options, logits_all=True), Llama(**options, draft_model=draft)
    found = []
    for prompt in PROMPTS:
        lengths.clear()
        controller.answers.clear()
        texts = []
        for llama in (plain, steered):
            llama.reset()
            tokens = llama.tokenize(prompt.encode())
            texts.append(list(itertools.islice(llama.generate(tokens, temp=0.0), TOKENS)))
        draft.close()
        (answers,) = controller.answers.values()
        found.append(
            {
                "plain": texts[0],
                "steered": texts[1],
                "rounds": draft.rounds,
                "answers": answers,
                "returned": list(lengths),
            }
        )
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
