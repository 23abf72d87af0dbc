"""Greedy replies and likelihoods for a fraction of the work, the same answers.

The text that all prompts of a suite share (system prompt, examples) is computed once and its keys and values are repeated over
the batch. A reply that is already known, of another model or the expected one, is a draft: one forward pass tells how far greedy
decoding would have written it, that part is kept, and generation goes on from the first difference. So every token is the arg max
given those before it, as without drafts; only last digits, and with them ties, move as they do with the size of a batch.
Likelihoods too begin after the shared text, and the vocabulary is scored where a continuation stands and nowhere else.

Models whose cache is not plain keys and values (state space, sliding windows) and settings that change the choice of a token
(sampling, penalties) take lm-eval's own way.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers.cache_utils import DynamicCache, DynamicLayer

from mcp_server.errors import BadInput
from mcp_server.workers.evaluating.growing import GROWTH, let_grow
from mcp_server.workers.evaluating.responses import scoring_batch

SHORTEST_PREFIX: Final = 8
"""Tokens that prompts must share before computing them apart pays."""
USEFUL: Final = 0.25
"""Share of a batch's draft tokens that must be right for drafts to be tried on the next one."""
PLAIN: Final = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id", "min_new_tokens", "encoder_repetition_penalty", "sequence_bias",
)  # fmt: skip
"""Settings of a model's generation_config that change which token is chosen."""
MOST_TOKENS: Final = 2048
"""Tokens of one pass over prompts: its activations stay small beside the weights, whatever the length of the prompts."""
KEPT_TOKENS: Final = 8192
KEPT_BYTES: Final = 256_000_000
"""Keys and values of a batch that generates behind a shared prefix may be of so many tokens, or where those take less, so many
bytes. Each step of a batch reads all the weights once, however many replies it goes on with. The estimate allows 9216 tokens."""
NEEDED: Final = frozenset({"attention_mask", "position_ids", "past_key_values", "logits_to_keep"})
Drafts = Callable[[Any], str | None]


class DraftingLM(HFLM):
    """lm-eval's model of transformers with its own greedy loop. `draft` gives the known reply to a request, or None."""

    draft: Drafts = staticmethod(lambda _request: None)
    drafted = 0
    accepted = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        answers: dict[int, str] = {}
        for numbers in groups.values():
            asked = [requests[number] for number in numbers]
            settings = normalize_gen_kwargs(dict(asked[0].args[1]), self.max_gen_toks)
            if self._is_plain(settings):
                found = self._greedy(asked, settings)
            else:
                found = super().generate_until(asked, disable_tqdm=disable_tqdm)
            answers.update(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _is_plain(self, settings: dict[str, Any]) -> bool:
        """Greedy, on a cache of keys and values that can be repeated and cut."""
        if self.backend != "causal" or self.think_end_token is not None:
            return False
        if settings.get("do_sample") or set(settings) - {"until", "max_gen_toks", "do_sample", "temperature"}:
            return False
        own = self.model.generation_config
        if any(getattr(own, name, None) not in (None, 1.0, 0, []) for name in PLAIN) or (own.num_beams or 1) > 1:
            return False
        return self._can_repeat_cache()

    def _can_repeat_cache(self) -> bool:
        """The model's cache is plain keys and values, and its forward pass takes what goes on from one."""
        if not inspect.signature(self.model.forward).parameters.keys() >= NEEDED:
            return False
        cache = DynamicCache(config=self.model.config)
        return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(Σ log p of the continuation, whether it is the greedy one) for each (request, context, continuation) in tokens."""
        if self.backend != "causal" or not self._can_repeat_cache():
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs))
        rows = [(context + scored)[-(self.max_length + 1) :][:-1] for _, context, scored in requests]
        wanted = [scored for _, _, scored in requests]
        if (longest := max(map(len, wanted))) > self.max_length:
            raise BadInput(
                f"an answer to be scored has {longest} tokens, the window is {self.max_length}",
                "shorten the answers of the suite",
            )
        shared = min(_shared(rows), *(len(row) - len(part) for row, part in zip(rows, wanted, strict=True)))
        prefix, cache = self._prefix(rows[0], shared)
        order = sorted(range(len(rows)), key=lambda number: (-len(wanted[number]), -len(rows[number])))
        rows_at_once = max(1, MOST_TOKENS // (max(map(len, rows)) - len(prefix)))
        answers: dict[int, tuple[float, bool]] = {}
        while len(answers) < len(order):
            keep = len(wanted[order[len(answers)]])
            most = min(rows_at_once, scoring_batch(keep, self.vocab_size))
            batch = order[len(answers) : len(answers) + most]
            ids, mask, positions = self._padded([rows[number][len(prefix) :] for number in batch], len(prefix))
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep,
                past_key_values=None if cache is None else _repeated(cache, len(batch)), use_cache=cache is not None,
            ).logits  # fmt: skip
            scores = torch.nn.functional.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            for place, number in enumerate(batch):
                target = torch.tensor(wanted[number], device=self.device)
                own = scores[place, keep - len(target) :]
                sure = float(own.gather(1, target[:, None]).sum())
                answers[number] = sure, bool((own.argmax(-1) == target).all())
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return [answers[number] for number in range(len(rows))]

    def _prefix(self, row: list[int], shared: int) -> tuple[list[int], Any]:
        """The tokens that all rows begin with and their keys and values; nothing where computing them apart does not pay."""
        if shared < SHORTEST_PREFIX:
            return [], None
        ids = torch.tensor([row[:shared]], device=self.device)
        return row[:shared], self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _padded(self, rows: list[list[int]], before: int) -> tuple[Any, Any, Any]:
        """(ids, mask, positions) of rows that go on after `before` tokens, padded on the left: they all end at the end."""
        width, device = max(map(len, rows)), self.device
        pads = [width - len(row) for row in rows]
        ids = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)], device=device)
        mask = torch.tensor([[1] * before + [0] * pad + [1] * (width - pad) for pad in pads], device=device)
        return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)[:, before:]

    @torch.inference_mode()
    def _greedy(self, requests: Sequence[Any], settings: dict[str, Any]) -> list[str]:
        room = int(settings["max_gen_toks"])
        stops = handle_stop_sequences(settings.get("until"), eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False))
        prompts = [self._tokens(request.args[0], self.max_length - room) for request in requests]
        prefix, cache = self._prefix(prompts[0], _shared(prompts))
        drafting = True
        order = sorted(range(len(requests)), key=lambda number: -len(prompts[number]))
        rows = int(self.batch_size)
        if cache is not None:
            longest = len(prompts[order[0]])
            room_for = max(KEPT_TOKENS, KEPT_BYTES * len(prefix) // _held_bytes(cache)) // (longest + room + GROWTH)
            rows = max(rows, min(room_for, MOST_TOKENS // (longest - len(prefix))))
        texts: dict[int, str] = {}
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            drafts = [self._draft(requests[number], room) if drafting else [] for number in batch]
            before = self.drafted, self.accepted
            rest = [prompts[number][len(prefix) :] for number in batch]
            replies = _Batch(self, rest, drafts, prefix, cache, stops, room).run()
            tried = self.drafted - before[0]
            drafting = tried == 0 or self.accepted - before[1] >= USEFUL * tried
            for number, tokens in zip(batch, replies, strict=True):
                texts[number] = postprocess_generated_text(self.tok_decode(tokens), stops, None)
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def _tokens(self, prompt: str, most: int) -> list[int]:
        """As lm-eval tokenises this prompt in a batch of its own."""
        ids, mask = self.tok_batch_encode([prompt], left_truncate_len=most, truncation=self.truncation)
        kept: list[int] = ids[0][mask[0].bool()].tolist()
        return kept

    def _draft(self, request: Any, room: int) -> list[int]:
        known = self.draft(request)
        tokens: list[int] = self.tokenizer.encode(known, add_special_tokens=False)[:room] if known else []
        return tokens

    def ends(self) -> set[int]:
        """Tokens that end a reply, by the tokenizer and by the model's generation settings."""
        own = self.model.generation_config.eos_token_id
        return {int(self.eot_token_id), *(own if isinstance(own, list) else [] if own is None else [own])}


def _shared(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with alike; the last one of a prompt is never shared, since its scores are needed."""
    if len(prompts) < 2:
        return 0
    least, most = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most)))
    return min(same, min(map(len, prompts)) - 1)


def _held_bytes(cache: Any) -> int:
    """Of its keys and values."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def _repeated(cache: Any, times: int) -> Any:
    """A copy of the prefix's keys and values for each row of a batch."""
    own = copy.deepcopy(cache)
    if times > 1:
        own.batch_repeat_interleave(times)
    return own


def _widened(all_rows: Any, some: Any, places: Any, width: int) -> Any:
    """The cache of all rows with `width` tokens more: those of `some` at their places, for the others room that is not seen."""
    for layer, longer in zip(all_rows.layers, some.layers, strict=True):
        for name in ("keys", "values"):
            wide = torch.nn.functional.pad(getattr(layer, name), (0, 0, 0, width))
            wide[places] = getattr(longer, name)
            setattr(layer, name, wide)
    return all_rows


class _Batch:
    """One batch of prompts, from its first forward pass to its last token.

    A draft is looked at only where its first token is what the model says to the prompt, so that a model that answers otherwise
    (a base, a source on another's prompts) is asked for no more than its prompts.
    """

    def __init__(
        self,
        lm: DraftingLM,
        rest: list[list[int]],
        drafts: list[list[int]],
        prefix: list[int],
        cache: Any,
        stops: list[str],
        room: int,
    ) -> None:
        self.lm, self.rest, self.drafts, self.prefix, self.stops, self.room = lm, rest, drafts, prefix, stops, room
        self.ends = lm.ends()
        self.replies: list[list[int]] = [[] for _ in rest]
        self.active = list(range(len(rest)))
        self.cache = let_grow(DynamicCache(config=lm.model.config) if cache is None else _repeated(cache, len(rest)))

    def run(self) -> list[list[int]]:
        ids, self.mask, positions = self.lm._padded(self.rest, len(self.prefix))
        self.next = [row[0] for row in self._best(ids, self.mask, positions, 1)]
        begun = [place for place, draft in enumerate(self.drafts) if draft[:1] == self.next[place : place + 1]]
        if begun:
            self._look_at_drafts(begun)
        self._close()
        while self.active:
            self._step()
        return self.replies

    def _look_at_drafts(self, places: list[int]) -> None:
        """One pass of these rows over their drafts: what greedy decoding would have written is kept."""
        drafts = [self.drafts[number] for number in places]
        width, device = max(map(len, drafts)), self.lm.device
        ids = torch.tensor([[0] * (width - len(draft)) + draft for draft in drafts], device=device)
        chosen, before = torch.tensor(places, device=device), self.cache
        self.mask = torch.nn.functional.pad(self.mask, (0, width))
        for place, draft in zip(places, drafts, strict=True):
            self.mask[place, -len(draft) :] = 1
        mask = self.mask[chosen]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        if len(places) < len(self.rest):
            self.cache = copy.deepcopy(before)
            self.cache.batch_select_indices(chosen)
        best = self._best(ids, mask, positions, width)
        if len(places) < len(self.rest):
            self.cache = _widened(before, self.cache, chosen, width)
        for row, (place, draft) in enumerate(zip(places, drafts, strict=True)):
            said = [draft[0], *best[row][width - len(draft) :]]
            right = next((i for i, token in enumerate(draft) if token != said[i] or token in self.ends), len(draft))
            self.lm.drafted += len(draft)
            self.lm.accepted += right
            self.replies[place] = draft[:right]
            self.next[place] = said[right]
            if right < len(draft):
                self.mask[place, self.mask.shape[1] - (len(draft) - right) :] = 0  # what was not written is not seen

    def _step(self) -> None:
        """One more token for every reply that goes on."""
        ids = torch.tensor([[token] for token in self.next], device=self.lm.device)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        positions = self.mask.sum(1, keepdim=True) - 1
        self.next = [row[0] for row in self._best(ids, self.mask, positions, 1)]
        self._close()

    def _best(self, ids: Any, mask: Any, positions: Any, keep: int) -> list[list[int]]:
        out = self.lm.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
            logits_to_keep=keep,
        )  # fmt: skip
        self.cache = out.past_key_values
        found: list[list[int]] = out.logits.argmax(-1).tolist()
        return found

    def _close(self) -> None:
        """Take over the newest tokens; replies that are whole leave the batch."""
        going: list[int] = []
        for place, number in enumerate(self.active):
            reply, token = self.replies[number], self.next[place]
            if token not in self.ends and len(reply) < self.room and not self._stopped(reply):
                reply.append(token)
                if len(reply) < self.room and not self._stopped(reply):
                    going.append(place)
        if len(going) < len(self.active):
            kept = torch.tensor(going, dtype=torch.long, device=self.lm.device)
            if going:
                self.cache.batch_select_indices(kept)
            self.mask = self.mask[kept]
            self.next = [self.next[place] for place in going]
            self.active = [self.active[place] for place in going]

    def _stopped(self, reply: list[int]) -> bool:
        text = self.lm.tok_decode(reply, skip_special_tokens=False)
        return any(stop in text for stop in self.stops)
