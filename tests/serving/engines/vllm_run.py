"""Runs vLLM on a pair of models, plainly and steered, and writes what happened as JSON. Used by test_vllm.py.

Usage: python vllm_run.py models|plain|steered FOLDER OUT. FOLDER holds `target` and `draft`, which `models`
makes small and random, and perhaps `prompts.json`. The policy comes from the environment, as in a server.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROMPTS = 6
TOKENS = 40
LONGEST = 4


def make_models(folder: Path) -> None:
    """Write a random target and a drafter that is nearly the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=None,
        bos_token_id=None,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "target")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    model.save_pretrained(folder / "draft")


def random_prompts() -> list[list[int]]:
    """Return prompts for a vocabulary of 256."""
    return [[(7 * i + 3 * j) % 250 for j in range(5 + 9 * i)] for i in range(PROMPTS)]


def run(mode: str, folder: Path) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {
        "model": str(folder / "target"),
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "disable_log_stats": False,
        "enable_prefix_caching": False,
    }
    answers: dict[str, list[int]] = {}
    if mode == "steered":
        from dsd_env.serving import Controller

        decide = Controller._decide

        def witnessed(self: Controller, name: str, now_s: float) -> Any:
            answer = decide(self, name, now_s)
            answers.setdefault(name, []).append(answer.gamma)
            return answer

        Controller._decide = witnessed  # type: ignore[method-assign]
        options |= {
            "speculative_config": {
                "method": "draft_model",
                "model": str(folder / "draft"),
                "num_speculative_tokens": LONGEST,
            },
            "scheduler_cls": "dsd_env.serving.engines.vllm.PolicyScheduler",
            "async_scheduling": False,
            "per_request_spec_decode_metrics": "detailed",
        }
    engine = LLM(**options)
    given = folder / "prompts.json"
    ids = json.loads(given.read_text()) if given.exists() else random_prompts()
    prompts = [{"prompt_token_ids": each} for each in ids]
    parameters = SamplingParams(temperature=0.0, max_tokens=TOKENS, detokenize=False, ignore_eos=True)
    outputs = engine.generate(prompts, parameters)
    found: dict[str, Any] = {"tokens": [list(output.outputs[0].token_ids) for output in outputs]}
    if mode == "steered":
        scheduler = engine.llm_engine.engine_core.engine_core.scheduler
        steering = scheduler.steering
        found |= {
            "scheduler": f"{type(scheduler).__module__}.{type(scheduler).__qualname__}",
            "rounds": steering.rounds,
            "answers": answers,
            "drafted": steering.drafted,
            "accepted": steering.accepted,
            "cut": steering.cut,
            "left": len(steering.controller.requests),
            "counts": steering.controller.counts,
            "own": [spec_metrics(output) for output in outputs],
            "metrics": {
                metric.name: metric.value
                for metric in engine.get_metrics()
                if metric.name.startswith("vllm:spec_decode_num") and hasattr(metric, "value")
            },
        }
    return found


def spec_metrics(output: Any) -> Any:
    """Return vLLM's own record of a request: drafted and accepted per step."""
    for place in (output, output.outputs[0], getattr(output, "metrics", None)):
        for name in ("spec_decode_metrics", "spec_decode_stats"):
            found = getattr(place, name, None)
            if found is not None:
                return {key: getattr(found, key) for key in dir(found) if key.startswith("per_step")}
    return None


if __name__ == "__main__":
    mode, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if mode == "models":
        make_models(folder)
    else:
        result = run(mode, folder)
        out.write_text(json.dumps(result, default=str))
    sys.stdout.flush()
    os._exit(0)
