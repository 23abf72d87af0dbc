#!/usr/bin/env python3
"""Load a model in one program and print its greedy continuation of fixed tokens, as one line of JSON.

usage: reply.py transformers FOLDER [ADAPTER]        reply.py llama.cpp GGUF [GGUF-ADAPTER]

A process of its own: a model that does not load may end it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

PROMPT = [1, 270, 264, 281, 300]
TOKENS = 8


def transformers(folder: str, adapter: str | None) -> dict[str, object]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
        )
    return {"tokens": out[0, len(PROMPT) :].tolist(), "version": version("transformers")}


def llama_cpp(file: str, adapter: str | None) -> dict[str, object]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = file, 128, False
    if adapter:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = adapter, 1.0
        params.lora_adapters = [lora]
    server = xllamacpp.Server(params)
    asked = {"max_tokens": TOKENS, "temperature": 0.0, "repeat_penalty": 1.0, "ignore_eos": True, "logprobs": 1}
    answer = server.handle_completions({"prompt": PROMPT, **asked})
    said = [byte for one in answer["choices"][0]["logprobs"]["content"] for byte in one["bytes"]]
    return {"bytes": said, "version": f"xllamacpp {version('xllamacpp')}"}


if __name__ == "__main__":
    program, model, more = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
    found = {"transformers": transformers, "llama.cpp": llama_cpp}[program](model, more)
    print("\n" + json.dumps(found), flush=True)
