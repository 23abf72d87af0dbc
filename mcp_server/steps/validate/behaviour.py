"""MM318 to MM322: what a source's config and tokenizer say about its weights, and whether the sources agree on it."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.formats.behaviour import LABELS, differing
from mcp_server.formats.identity import token_ids, unread_tokenizer
from mcp_server.formats.tied import lacks_head
from mcp_server.steps.validate.checkpoints import has_tokenizer, two_or_more, vocabulary_rows
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.engines import plan_of
from mcp_server.steps.validate.registry import Found, check


@check("MM318")
def settings_agree(context: Context) -> Iterator[Found]:
    configs = {str(ref): model.config for ref, model in two_or_more(context).items()}
    for setting, values in differing(configs).items():
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        yield Found(f"the sources differ in {LABELS[setting]}: {shown}", "base_model" if context.recipe.base else "models")


@check("MM319")
def tokens_have_rows(context: Context) -> Iterator[Found]:
    on_hub = {ref: model for ref, model in context.opened().items() if unread_tokenizer(model.folder)}
    if on_hub:  # megabytes for a note that seldom comes; the merge, which downloads them, looks again
        raise Unknown(f"the tokenizer of {next(iter(on_hub))} stayed on the hub")
    for ref, model in context.opened().items():
        rows, ids = vocabulary_rows(model), token_ids(model.folder)
        if rows is not None and ids and max(ids.values()) >= rows:
            over = sum(number >= rows for number in ids.values())
            last = max(ids.values())
            text = f"{ref} has {rows} embedding rows and {len(ids)} tokens: {over} of them, up to id {last}, have no row"
            yield Found(text, context.where(ref))


@check("MM320")
def padding_is_kept(context: Context) -> Iterator[Found]:
    tokenizer = context.recipe.tokenizer or {}
    source = context.recipe.tokenizer_from
    if not has_tokenizer(context) or tokenizer.get("pad_to_multiple_of") or (source != "union" and not tokenizer.get("tokens")):
        return
    models = context.opened()
    if not models:
        raise Unknown("no source is on this machine")
    elsewhere = plan_of(context)
    if not isinstance(elsewhere, list) or not elsewhere:
        return  # the streaming engine keeps the rows of no token
    tables = [ids for model in models.values() if (ids := token_ids(model.folder))]
    tokens = len({token for ids in tables for token in ids})
    rows = max((rows for model in models.values() if (rows := vocabulary_rows(model))), default=0)
    if tables and tokens < rows:
        multiple = next((m for m in (64, 32, 16, 8) if rows % m == 0), None)
        advice = f"add pad_to_multiple_of: {multiple} under tokenizer" if multiple else ""
        yield Found(f"the embeddings have {rows} rows, the new vocabulary {tokens}: the padding is lost", "tokenizer", advice)


@check("MM321")
def heads_are_stored(context: Context) -> Iterator[Found]:
    for ref, model in context.opened().items():
        if lacks_head(model.config, {name: tensor.shape for name, tensor in model.tensors.items()}):
            text = f"{ref} has no output head (lm_head.weight), and its config says that it is not tied to the embedding"
            yield Found(text, context.where(ref))


@check("MM322")
def scales_lie_where_they_did(context: Context) -> Iterator[Found]:
    models = two_or_more(context)
    for ref, model in models.items() if len(models) > 1 else ():
        if kind := next((kind for kind in model.packed_as if kind.startswith("AWQ")), None):
            text = f"{ref} is packed as {kind}: its norms and matrices hold scales that AWQ chose for it alone"
            yield Found(text, context.where(ref))
