"""Compares drafting with transformers' own greedy generate, and likelihoods after a shared text with lm-eval's own way.

`python drafting_check.py MODEL` prints one JSON object.

A process of its own, because transformers warns on import and tests turn warnings into errors.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcp_server.workers.evaluating import generation
from mcp_server.workers.evaluating.few_tokens import use_for_few_tokens
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


def likelihoods(lm: DraftingLM, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Pairs with a shared text, without one, of one token, longer than the window, alone; and passages as a whole."""
    own = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=256, backend="causal")
    model.eval()
    pairs = [(prompt, end) for prompt in PROMPTS for end in ("a", "abc no", "What is it? " * 3)]
    lists = {
        "shared": pairs,
        "apart": [("x", "yes"), ("abc", "no 12")],
        "alone": pairs[:1],
        "long": [(p * 9, e * 6) for p, e in pairs[:4]],
    }
    found: dict[str, Any] = {}
    for name, asked in lists.items():
        requests = [SimpleNamespace(args=pair) for pair in asked]
        with counted(model) as ours:
            mine = lm.loglikelihood(requests, disable_tqdm=True)
        with counted(model) as theirs:
            right = own.loglikelihood(requests, disable_tqdm=True)
        found[name] = {"same": same(mine, right), "tokens": ours[0], "of": theirs[0]}
    passages = [SimpleNamespace(args=(text,)) for text in (SYSTEM * 2, "hello there", SYSTEM * 12)]
    mine, right = (each.loglikelihood_rolling(passages, disable_tqdm=True) for each in (lm, own))
    found["passages"] = {"same": same([(one, True) for one in mine], [(one, True) for one in right])}
    return found


def same(mine: list[tuple[float, bool]], right: list[tuple[float, bool]]) -> bool:
    return all(abs(a - b) < 1e-4 * abs(b) + 1e-4 and c == d for (a, c), (b, d) in zip(mine, right, strict=True))


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Tokens that go through the model, padding included."""
    count = [0]

    def add(_module: Any, _given: Any, named: dict[str, Any], _out: Any) -> None:
        count[0] += named["input_ids"].numel() if "input_ids" in named else _given[0].numel()

    hook = model.register_forward_hook(add, with_kwargs=True)
    yield count
    hook.remove()


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    quick = copy.deepcopy(model)
    use_for_few_tokens(quick)
    lm = DraftingLM(pretrained=quick, tokenizer=tokenizer, batch_size=3, max_length=256, backend="causal")
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
            "some": lambda request, written=written: (
                written[PROMPTS.index(request.args[0])][:9] + "zz" if PROMPTS.index(request.args[0]) % 3 else "{zzzz}"
            ),
            "longer": lambda request, written=written: written[PROMPTS.index(request.args[0])] + "abc" * 20,
        }
        for (name, draft), kept in itertools.product(drafts.items(), (0, 1 << 30)):
            generation.KEPT_BYTES = generation.KEPT_TOKENS = kept  # type: ignore[misc]
            lm.draft, lm.drafted, lm.accepted = draft, 0, 0
            found[f"{name} {stop!r} {'together' if kept else 'by three'}"] = {
                "same": lm.generate_until(asked) == right,
                "accepted": lm.accepted,
                "drafted": lm.drafted,
            }
        found[f"alone {stop!r}"] = {"same": lm.generate_until(asked[:1]) == right[:1]}
    print(json.dumps({"replies": found, "likelihoods": likelihoods(lm, model, tokenizer)}))


if __name__ == "__main__":
    main(sys.argv[1])
