"""Compares drafting with transformers' own greedy generate: `python drafting_check.py MODEL`; prints one JSON object.

A process of its own, because transformers warns on import and tests turn warnings into errors.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcp_server.workers.evaluating.generation import DraftingLM

SYSTEM = "<system>You are asked small things, one after the other.\n"
PROMPTS = [f"{SYSTEM}<user>{text}\n<a>" for text in ("abc", "What is it?", "no", "yes, I do", "0123", "hello there", "x")]
ROOM = 24


def oracle(model: Any, tokenizer: Any, stop: str) -> list[str]:
    """One prompt at a time by `generate`, cut at the stop string."""
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            whole = model.generate(ids, max_new_tokens=ROOM, do_sample=False, pad_token_id=2)
        texts.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).split(stop)[0])
    return texts


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lm = DraftingLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=256, backend="causal")
    found: dict[str, Any] = {}
    for stop in ("\n", "q"):
        right = oracle(model, tokenizer, stop)
        written = [text[::2] for text in right]  # this tokenizer puts a blank between the characters that it decodes
        asked = [SimpleNamespace(args=(p, {"until": [stop], "max_gen_toks": ROOM, "do_sample": False})) for p in PROMPTS]
        drafts = {
            "none": lambda _: None,
            "right": lambda request, written=written: written[PROMPTS.index(request.args[0])],
            "half": lambda request, written=written: written[PROMPTS.index(request.args[0])][:9] + "zzzz",
            "wrong": lambda _: "{zzzz}",
            "longer": lambda request, written=written: written[PROMPTS.index(request.args[0])] + "abc" * 20,
        }
        for name, draft in drafts.items():
            lm.draft, lm.drafted, lm.accepted = draft, 0, 0
            found[f"{name} {stop!r}"] = {
                "same": lm.generate_until(asked) == right,
                "accepted": lm.accepted,
                "drafted": lm.drafted,
            }
        found[f"alone {stop!r}"] = {"same": lm.generate_until(asked[:1]) == right[:1]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
