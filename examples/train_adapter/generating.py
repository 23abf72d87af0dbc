"""Greedy replies of many prompts at once: the shared system prompt is computed once and its cache repeated over the batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from packing import Row, Texts


@torch.inference_mode()
def replies(model: Any, texts: Texts, rows: list[Row], tokens: int, batch: int = 32) -> list[str]:
    """One greedy reply a row, at most `tokens` long, special tokens left out. Rows of one system prompt share its computation."""
    model.set_attn_implementation("sdpa")
    out = [""] * len(rows)
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for place, row in enumerate(rows):
        prefix, segment = texts.split({"said": ""} | row | {"reply": ""})
        groups.setdefault(prefix, []).append((place, segment.ids[: segment.learn_from]))
    for prefix, group in groups.items():
        cache = model(input_ids=torch.tensor([prefix], device=texts.device), use_cache=True).past_key_values if prefix else None
        group.sort(key=lambda item: len(item[1]))
        for at in range(0, len(group), batch):
            chunk = group[at : at + batch]
            done = continued(model, len(prefix), cache, [ids for _, ids in chunk], tokens, texts.tokenizer.eos_token_id)
            for (place, _), ids in zip(chunk, done, strict=True):
                out[place] = texts.tokenizer.decode(ids, skip_special_tokens=True)
    model.set_attn_implementation("packed")
    return out


def continued(model: Any, first: int, cache: Any, prompts: list[list[int]], tokens: int, end: int) -> list[list[int]]:
    """Left-padded prompts behind `first` cached tokens, continued until all have ended."""
    width, count, device = max(map(len, prompts)), len(prompts), model.device
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts], device=device)
    seen = torch.ones(count, first + width, dtype=torch.long, device=device)
    for i, p in enumerate(prompts):
        seen[i, first : first + width - len(p)] = 0
    positions = (seen.cumsum(1) - 1).clamp(min=0)[:, first:]
    if cache is not None:
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(count)
    found: list[list[int]] = [[] for _ in prompts]
    open_ = torch.ones(count, dtype=torch.bool, device=device)
    for _ in range(tokens):
        reply = model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache, new = reply.past_key_values, reply.logits[:, -1].argmax(-1)
        open_ &= new != end
        if not open_.any():
            break
        for i, (going, token) in enumerate(zip(open_.tolist(), new.tolist(), strict=True)):
            if going:
                found[i].append(token)
        ids, positions = new[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
    return found
