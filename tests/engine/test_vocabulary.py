"""Sources whose tokenizers differ, merged into one vocabulary: against float64 by token, the tokenizer's own loader, mergekit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mcp_server.engine.coverage import covers
from mcp_server.engine.random_numbers import stream_start  # noqa: F401 - importing the engine's kernels once, not in each test
from mcp_server.errors import Incompatible, Malformed
from mcp_server.formats.identity import token_ids
from mcp_server.steps.verify import verify
from tests.engine.synthetic import HIDDEN, Tensors, load, low_rank, random_tensors, run, write_adapter, write_model

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghij"]


def write(
    folder: Path, seed: int, tokens: list[str], *, added: tuple[str, ...] = (), rows: int | None = None, head: bool = True
) -> Tensors:
    """A model with a word-level tokenizer: `tokens`, then `added` ones; its embedding may have more rows."""
    count = len(tokens) + len(added)
    numbers = np.random.default_rng(100 + seed)
    tensors = random_tensors(seed, head=head)
    for name in [EMBED, HEAD] if head else [EMBED]:
        tensors[name] = numbers.standard_normal((rows or count, HIDDEN))
    write_model(folder, tensors, "float32", config={"vocab_size": rows or count})
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return load(folder)


def recipe(
    root: Path, names: tuple[str, ...], tokenizer: dict[str, Any], method: str = "linear", base: str | None = "base"
) -> str:
    entries = [{"model": str(root / name), "parameters": {"weight": 1.0}} for name in names]
    body: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "float32", "tokenizer": tokenizer}
    return json.dumps(body | ({"base_model": str(root / base)} if base else {}))


def by_token(folder: Path, name: str = EMBED) -> dict[str, np.ndarray[Any, Any]]:
    ids = token_ids(folder)
    assert ids is not None
    return {token: load(folder)[name][row] for token, row in ids.items()}


@pytest.mark.parametrize("head", [True, False])
def test_a_union_takes_every_token_from_where_it_is(tmp_path: Path, small_blocks: None, head: bool) -> None:
    base = write(tmp_path / "base", 0, WORDS, rows=16, head=head)
    one = write(tmp_path / "one", 1, WORDS, added=("<x>", "<y>"), head=head)
    two = write(tmp_path / "two", 2, [*WORDS[:5], "k", *WORDS[5:]], added=("<y>",), head=head)  # other ids
    text = recipe(tmp_path, ("base", "one", "two"), {"source": "union"}, base=None)
    assert covers(text) == []
    run(text, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    ids = token_ids(tmp_path / "out")
    assert ids == {token: n for n, token in enumerate([*WORDS, "<x>", "<y>", "k"])}
    assert (config["vocab_size"], load(tmp_path / "out")[EMBED].shape[0]) == (16, 16)
    for name in (EMBED, HEAD) if head else (EMBED,):
        x, y, k = one[name][13], (one[name][14] + two[name][14]) / 2, two[name][5]
        own = {"<x>": x, "k": k}  # only one model has them
        found = by_token(tmp_path / "out", name)
        for n, token in enumerate(WORDS):
            want = (base[name][n] + one[name][n] + two[name][n + (n >= 5)]) / 3
            assert np.allclose(found[token], want, atol=1e-6), token
        assert all(np.allclose(found[token], row, atol=1e-6) for token, row in own.items())
        assert np.allclose(
            found["<y>"], (y + one[name][14] + two[name][14]) / 3, atol=1e-6
        )  # two of three: their mean for the third
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.get_vocab() == ids
    assert loaded("a <x> k").input_ids == [ids["a"], ids["<x>"], ids["k"]]
    entries = {
        e["content"]: e["special"] for e in json.loads((tmp_path / "out" / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    }
    assert entries == {"<x>": True, "<y>": True, "k": False}


def test_padded_rows_stay_and_new_tokens_take_them_first(tmp_path: Path) -> None:
    base = write(tmp_path / "base", 0, WORDS, rows=20)
    one = write(tmp_path / "one", 1, WORDS, added=("<x>",), rows=20)
    run(recipe(tmp_path, ("one",), {"source": "union"}, "task_arithmetic"), tmp_path / "out")
    found = load(tmp_path / "out")[EMBED]
    assert token_ids(tmp_path / "out") == token_ids(tmp_path / "one")
    assert np.allclose(found[:14], one[EMBED][:14], atol=1e-6)
    assert np.allclose(found[14:], one[EMBED][14:], atol=1e-6)  # padding of both, merged as it lies
    assert not np.allclose(found[13], base[EMBED][13])


@pytest.mark.parametrize("tokenizer", [{"source": "union"}, {"source": "base"}, {}])
def test_sources_that_number_alike_keep_their_rows_and_tokenizer(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    models = [write(tmp_path / name, n, WORDS, rows=16) for n, name in enumerate(("one", "two"))]
    text = recipe(tmp_path, ("one", "two"), tokenizer, base=None)
    assert covers(text) == []
    run(text, tmp_path / "out")
    assert token_ids(tmp_path / "out") == token_ids(tmp_path / "one")
    assert np.allclose(load(tmp_path / "out")[EMBED], (models[0][EMBED] + models[1][EMBED]) / 2, atol=1e-6)


def test_the_vocabulary_of_the_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base", 0, WORDS, rows=14)
    one = write(tmp_path / "one", 1, [*reversed(WORDS[3:]), *WORDS[:3]], added=("<x>",))
    text = recipe(tmp_path, ("one",), {"source": "base"}, "task_arithmetic")
    warnings = run(text, tmp_path / "out")["warnings"]
    ids = token_ids(tmp_path / "one")
    assert ids is not None
    assert token_ids(tmp_path / "out") == token_ids(tmp_path / "base")
    found = load(tmp_path / "out")[EMBED]
    assert np.allclose(found[:13], one[EMBED][[ids[token] for token in WORDS]], atol=1e-6)
    assert np.allclose(found[13], base[EMBED][13])  # a row of no token: the other model's row 13 belongs to one
    assert any("1 tokens of the sources are left out" in warning for warning in warnings)
    assert verify(tmp_path / "out", recipe=text).verdict != "failed"


def test_tokens_say_where_their_rows_come_from(tmp_path: Path) -> None:
    base = write(tmp_path / "base", 0, WORDS)
    one = write(tmp_path / "one", 1, WORDS, added=("<x>",))
    tokens = {
        "<x>": {"source": {"kind": "zero"}},
        "a": {"source": str(tmp_path / "one"), "force": True},
        "<new>": {"source": {"kind": "model_token", "model": str(tmp_path / "base"), "token": "b"}},
        "<row>": {"source": {"kind": "model_token", "model": str(tmp_path / "one"), "token_id": 4}},
    }
    text = recipe(tmp_path, ("base", "one"), {"source": "union", "tokens": tokens}, base=None)
    run(text, tmp_path / "out")
    found = by_token(tmp_path / "out")
    want = {"<x>": one[EMBED][13] / 2, "a": one[EMBED][3], "<new>": base[EMBED][4], "<row>": one[EMBED][4]}
    assert all(np.allclose(found[token], row, atol=1e-6) for token, row in want.items())


def test_padding_to_a_multiple_fills_with_the_mean(tmp_path: Path, small_blocks: None) -> None:
    base, one = write(tmp_path / "base", 0, WORDS), write(tmp_path / "one", 1, WORDS, added=("<x>",))
    run(recipe(tmp_path, ("base", "one"), {"source": "union", "pad_to_multiple_of": 8}, base=None), tmp_path / "out")
    found = load(tmp_path / "out")[EMBED]
    rows = (np.concatenate([base[EMBED], one[EMBED][13:]]) + one[EMBED]) / 2
    assert found.shape[0] == 16
    assert np.allclose(found[:14], rows, atol=1e-6)
    assert np.allclose(found[14:], rows.mean(axis=0), atol=1e-6)


def test_adapters_that_leave_the_vocabulary_alone(tmp_path: Path) -> None:
    base = write(tmp_path / "base", 0, WORDS)
    one = write(tmp_path / "one", 1, WORDS, added=("<x>",))
    module = "model.layers.0.self_attn.q_proj"
    factors = low_rank(3, {module: (HIDDEN, HIDDEN)}, 2)
    write_adapter(tmp_path / "lora", factors)
    run(recipe(tmp_path, ("one", f"base+{tmp_path}/lora"), {"source": "union"}, "task_arithmetic"), tmp_path / "out")
    found = load(tmp_path / "out")
    assert np.allclose(found[EMBED], one[EMBED], atol=1e-6)
    a, b = (factors[f"{module}.lora_{letter}.weight"].astype(np.float32).astype(np.float64) for letter in "AB")
    assert np.allclose(found[f"{module}.weight"], one[f"{module}.weight"] + 2 * b @ a, atol=1e-5)
    assert base[EMBED].shape[0] == 13


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ({"<x>": {"source": "elsewhere/model"}}, Incompatible, "not a source of the recipe"),
        ({"<n>": {}}, Malformed, "names no source"),
        ({"<n>": {"source": {"kind": "model_token", "model": "ONE", "token": "zzz"}}}, Incompatible, "has no such token"),
        ({"<n>": {"source": {"kind": "model_token", "model": "ONE", "token_id": 99}}}, Incompatible, "which has 14"),
    ],
)
def test_tokens_that_cannot_be_meant_are_refused(tmp_path: Path, tokens: Any, error: type[Exception], says: str) -> None:
    write(tmp_path / "base", 0, WORDS)
    write(tmp_path / "one", 1, WORDS, added=("<x>",))
    text = recipe(tmp_path, ("base", "one"), {"source": "union", "tokens": tokens}, base=None)
    with pytest.raises(error, match=says):
        run(text.replace('"ONE"', json.dumps(str(tmp_path / "one"))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pad", [None, 8])
def test_mergekit_makes_the_same_union(tmp_path: Path, pad: int | None) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    from tests.engine.test_mergekit import llama

    extra = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    for n, (name, added) in enumerate({"base": (), "one": ("<x>", "<y>"), "two": ("<y>",)}.items()):
        write(tmp_path / "plain" / name, n, WORDS, added=added)
        rows = {tensor: load(tmp_path / "plain" / name)[tensor] for tensor in (EMBED, HEAD)}
        write_model(tmp_path / name, llama(n) | rows, "float32", config=extra | {"vocab_size": len(rows[EMBED])})
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_bytes((tmp_path / "plain" / name / file).read_bytes())
    block = {"source": "union"} | ({"pad_to_multiple_of": pad} if pad else {})
    text = recipe(tmp_path, ("base", "one", "two"), block, base=None)
    run(text, tmp_path / "ours")
    run_merge(MergeConfiguration.model_validate_json(text), str(tmp_path / "theirs"), MergeOptions(quiet=True))
    seen = verify(tmp_path / "theirs", full=True, recipe=text)
    assert next(check.passed for check in seen.checks if check.name == "recomputed") is True, seen
    for name in (EMBED, HEAD):
        ours, theirs = by_token(tmp_path / "ours", name), by_token(tmp_path / "theirs", name)
        assert ours.keys() == theirs.keys()
        assert all(np.allclose(ours[token], theirs[token], atol=2e-6) for token in ours)
        padded = [load(tmp_path / side)[name] for side in ("ours", "theirs")]
        assert np.allclose(padded[0][len(ours) :], padded[1][len(ours) :], atol=2e-6)
