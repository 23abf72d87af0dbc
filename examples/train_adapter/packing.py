"""Several examples in one row behind their shared system prompt, so that the prompt is computed once and nothing is padding.

A row of a data file has `user` and `reply`, and may have `system`; `kind: text` with a `reply` alone is plain prose. `said` is
text that the reply begins with and that is not learned; `end` is what closes the reply where that is not the end of the turn (""
for one cut short).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Row = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """One example behind a shared prefix: token ids, and from which token on they are learned."""

    ids: list[int]
    learn_from: int


@dataclass(frozen=True)
class Pack:
    """Several segments in one row: the prefix ends at bounds[0], segment i at bounds[i + 1]. `rows` are positions whose next
    token, `targets`, counts; `counts[i]` of them belong to segment i."""

    ids: Tensor
    positions: Tensor
    bounds: list[int]
    rows: Tensor
    targets: Tensor
    counts: list[int]


def pack(prefix: list[int], segments: list[Segment], device: str = "cpu") -> Pack:
    """Lay segments out behind one prefix; each sees the prefix and itself, causally."""
    ids, positions, bounds = list(prefix), list(range(len(prefix))), [len(prefix)]
    rows: list[int] = []
    for segment in segments:
        start = len(ids)
        ids += segment.ids
        positions += range(len(prefix), len(prefix) + len(segment.ids))
        bounds.append(len(ids))
        rows += range(start + segment.learn_from - 1, start + len(segment.ids) - 1)
    tokens, at, places = (torch.tensor(values, device=device) for values in (ids, rows, positions))
    counts = [len(segment.ids) - segment.learn_from for segment in segments]
    return Pack(tokens[None], places[None], bounds, at, tokens[at + 1], counts)


def packed_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """Causal attention in which each segment sees the prefix and itself.

    (1, heads, tokens, width) in, (1, tokens, heads, width) out. On a processor, the segments as a batch cost a fraction of one
    masked call over the whole row; on a GPU the one call is faster, whatever it computes in vain.
    """
    bounds: list[int] = more["bounds"]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.is_cuda:
        return masked_attention(query, key, value, bounds), None
    first = bounds[0]
    q, k, v = (x[:, :, :first] for x in (query, key, value))
    parts = [attention(q, k, v, torch.ones(first, first, dtype=torch.bool).tril())] if first else []
    if len(bounds) > 1:
        parts.append(padded_attention(query, key, value, bounds))
    return torch.cat(parts, 2).transpose(1, 2), None


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """In plain products: the gradient of torch's fused call takes several times as long on a processor."""
    hidden = torch.zeros(seen.shape, dtype=query.dtype).masked_fill(~seen, -1e4)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + hidden
    return scores.softmax(-1).to(value.dtype) @ value


def padded_attention(query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
    """What the tokens behind the prefix see: the segments side by side as a batch, each with the prefix before it.

    (1, heads, tokens, width) in, (1, heads, tokens - bounds[0], width) out.
    """
    first, lengths = bounds[0], [stop - start for start, stop in pairwise(bounds)]
    longest = max(lengths)

    def beside(x: Tensor) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in x[:, :, first:].split(lengths, 2)])

    k, v = (torch.cat([x[:, :, :first].expand(len(lengths), -1, -1, -1), beside(x)], 2) for x in (key, value))
    out = attention(beside(query), k, v, torch.ones(longest, first + longest, dtype=torch.bool).tril(first))
    return torch.cat([part[:, :length] for part, length in zip(out.unbind(), lengths, strict=True)], 1)[None]


def masked_attention(query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
    """The same in one call with a mask over the whole row."""
    place = torch.arange(query.shape[2], device=query.device)
    segment = torch.bucketize(place, torch.tensor(bounds, device=query.device), right=True)
    seen = (place[:, None] >= place) & ((segment[:, None] == segment) | (segment == 0))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


ALL_ATTENTION_FUNCTIONS.register("packed", packed_attention)


class Texts:
    """Turns rows of the data files into packs, in the words of the model's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: str = "cpu") -> None:
        self.tokenizer, self.device = tokenizer, device
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def chat(self, row: Row) -> str:
        """The whole prompt as the chat template writes it, its default system turn included."""
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        turns = [*system, {"role": "user", "content": row["user"]}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def shared(self, system: str) -> list[int]:
        """The tokens that all prompts under this system prompt begin with."""
        if system not in self.known:
            one, other = (self.encode(self.chat({"system": system, "user": user})) for user in ("a", "1"))
            self.known[system] = one[: next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)]
        return self.known[system]

    def split(self, row: Row) -> tuple[tuple[int, ...], Segment]:
        """The shared prefix of a row's prompt, and the rest with the reply; where the row does not begin with it, it is empty."""
        if row.get("kind") == "text":
            return (), Segment(self.encode(row["reply"]), 1)
        asked = self.encode(self.chat(row)) + self.encode(row.get("said", ""))
        prefix = self.shared(row.get("system", ""))
        if asked[: len(prefix)] != prefix:
            prefix = []
        end = row.get("end", self.tokenizer.eos_token)
        return tuple(prefix), Segment(asked[len(prefix) :] + self.encode(row["reply"] + end), len(asked) - len(prefix))

    def packs(self, rows: list[Row], size: int, rng: random.Random | None = None) -> list[Pack]:
        """Pack rows of equal system prompt together, at most `size` a pack; in random order where a generator is given."""
        groups: dict[tuple[int, ...], list[Segment]] = {}
        for row in rng.sample(rows, len(rows)) if rng else rows:
            prefix, segment = self.split(row)
            groups.setdefault(prefix, []).append(segment)
        out = [
            pack(list(prefix), group[at : at + size], self.device)
            for prefix, group in groups.items()
            for at in range(0, len(group), size)
        ]
        if rng:
            rng.shuffle(out)
        return out
