"""Verification of merges that are right, and of merges that are broken in one way each."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.provenance import Provenance, SourceRecord, identify, write_provenance
from mcp_server.schemas.evidence import Check, Verification
from mcp_server.steps.verify import verdict_of, verify, with_check
from tests.engine import definitions
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, save, write_adapter, write_model

WEIGHTS = {"one": 0.6, "two": 0.5}


def recipe(base: Path, sources: dict[str, Path], method: str = "task_arithmetic", **top: Any) -> str:
    models = [{"model": str(path), "parameters": {"weight": WEIGHTS[name]}} for name, path in sources.items()]
    document = {"merge_method": method, "base_model": str(base), "models": models, "dtype": "bfloat16"} | top
    return yaml.safe_dump(document)


def combined(base: Path, sources: dict[str, Path], weights: dict[str, float]) -> Tensors:
    start = load(base)
    moved = {name: load(path) for name, path in sources.items()}
    return {k: v + sum(weights[n] * (moved[n][k] - v) for n in sources) for k, v in start.items()}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    around = random_tensors(0)
    write_model(tmp_path / "base", around)
    for seed, name in enumerate(WEIGHTS, start=1):
        write_model(tmp_path / name, random_tensors(seed, around=load(tmp_path / "base")))
    return {name: tmp_path / name for name in WEIGHTS}


@pytest.fixture
def merged(tmp_path: Path, sources: dict[str, Path]) -> Path:
    """A task_arithmetic merge of two full models that is right in every way."""
    base = tmp_path / "base"
    out = write_model(tmp_path / "merged", combined(base, sources, WEIGHTS))
    (out / "mergekit_config.yml").write_text(recipe(base, sources), encoding="utf-8")
    return out


def answers(found: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in found.checks}


def failing(found: Verification) -> list[Check]:
    return [check for check in found.checks if check.passed is not True]


def rewrite(out: Path, change: Callable[[Tensors], None], dtype: str = "bfloat16") -> None:
    tensors = load(out)
    change(tensors)
    save(out / "model.safetensors", tensors, dtype)


def configure(out: Path, **fields: Any) -> None:
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


@pytest.mark.parametrize("full", [False, True])
def test_a_right_merge_is_verified(merged: Path, full: bool) -> None:
    found = verify(merged, full=full)
    assert failing(found) == []
    assert found.verdict == "verified"
    assert found.landed == {"one": pytest.approx(0.6, abs=0.05), "two": pytest.approx(0.5, abs=0.05)}
    assert all(0 <= (loss or 0) < 0.05 for loss in found.rounding_loss.values())


def test_a_missing_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        verify(tmp_path / "nothing")


def test_an_empty_folder_is_unreadable(tmp_path: Path) -> None:
    found = verify(tmp_path)
    assert (found.verdict, answers(found)) == ("unreadable", {"readable": False})


def test_a_truncated_file_is_unreadable_and_says_so(merged: Path) -> None:
    file = merged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    found = verify(merged)
    assert found.verdict == "unreadable"
    assert "truncated" in found.checks[0].detail


def test_a_recipe_that_cannot_be_read_is_an_answer_about_the_folder(merged: Path) -> None:
    (merged / "mergekit_config.yml").write_text("merge_method: [", encoding="utf-8")
    assert verify(merged).verdict == "unreadable"


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_fails(merged: Path, value: float) -> None:
    def poison(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = value

    rewrite(merged, poison)
    (check,) = [c for c in verify(merged).checks if c.name == "finite"]
    assert check.passed is False
    assert "model.layers.1.mlp.up_proj.weight" in check.detail


def test_what_samples_miss_full_finds(tmp_path: Path) -> None:
    tensors = random_tensors(0)
    tensors["model.embed_tokens.weight"] = np.zeros((20_000, 12))
    tensors["model.embed_tokens.weight"][:] = 0.5
    tensors["model.embed_tokens.weight"][4_000, 3] = np.nan
    out = write_model(tmp_path / "big", tensors, config={"vocab_size": 20_000})
    assert answers(verify(out))["finite"] is True
    assert answers(verify(out, full=True))["finite"] is False


def test_a_matrix_of_zeros_was_never_written(merged: Path) -> None:
    rewrite(merged, lambda tensors: tensors.update({"lm_head.weight": np.zeros((20, 12))}))
    assert answers(verify(merged))["not_empty"] is False


def test_a_missing_tensor_fails(merged: Path) -> None:
    rewrite(merged, lambda tensors: tensors.__delitem__("model.norm.weight"))
    assert [c.detail for c in failing(verify(merged))] == ["1 tensors of the base are missing, such as model.norm.weight"]


def test_a_missing_layer_fails(merged: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.2.")]:
            del tensors[name]

    rewrite(merged, drop)
    assert "config.json says 3 layers, the weights have 2" in [c.detail for c in failing(verify(merged))]


def test_a_layer_unlike_the_others_fails(merged: Path) -> None:
    rewrite(merged, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": np.ones((8, 12))}))
    details = [c.detail for c in failing(verify(merged))]
    assert any("model.layers.1.mlp.up_proj.weight has shape [8, 12], the sources have [16, 12]" in detail for detail in details)


def test_another_dtype_than_the_recipe_asks_for_fails(merged: Path) -> None:
    rewrite(merged, lambda _: None, dtype="float16")
    assert "the recipe asks for bfloat16, the weights are F16" in [c.detail for c in failing(verify(merged))]


def test_a_vocabulary_that_is_not_the_embeddings_fails(merged: Path) -> None:
    configure(merged, vocab_size=21)
    assert [c.detail for c in failing(verify(merged))] == ["vocab_size is 21, model.embed_tokens.weight has 20 rows"]


def test_a_tied_head_with_values_of_its_own_fails(merged: Path) -> None:
    configure(merged, tie_word_embeddings=True)
    assert answers(verify(merged))["tied"] is False
    rewrite(merged, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert answers(verify(merged))["tied"] is True


def test_an_untied_head_that_is_missing_fails(tmp_path: Path) -> None:
    out = write_model(tmp_path / "m", random_tensors(0, head=False), config={"tie_word_embeddings": False})
    assert answers(verify(out))["tied"] is False


def test_a_stale_weight_file_beside_the_shards_fails(tmp_path: Path, merged: Path, sources: dict[str, Path]) -> None:
    sharded = write_model(tmp_path / "sharded", load(merged), shards=3)
    (sharded / "mergekit_config.yml").write_text(recipe(tmp_path / "base", sources), encoding="utf-8")
    assert verify(sharded).verdict == "verified"
    shutil.copy(merged / "model.safetensors", sharded)
    assert answers(verify(sharded))["index"] is False


def tokenizer(folder: Path, highest: int) -> None:
    vocabulary = {f"t{number}": number for number in range(highest + 1)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")


def test_a_token_beyond_the_embedding_fails(merged: Path) -> None:
    tokenizer(merged, 19)
    assert answers(verify(merged))["tokenizer"] is True
    tokenizer(merged, 20)
    assert "token 't20' has id 20, the embedding has 20 rows" in [c.detail for c in failing(verify(merged))]


def test_a_special_token_beyond_the_embedding_fails(merged: Path) -> None:
    tokenizer(merged, 19)
    configure(merged, eos_token_id=[2, 99])
    assert [c.detail for c in failing(verify(merged))] == ["config.json gives eos_token_id 99, the embedding has 20 rows"]


def test_a_lost_tokenizer_and_a_lost_chat_template_fail(tmp_path: Path, merged: Path) -> None:
    tokenizer(tmp_path / "base", 19)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert answers(verify(merged))["tokenizer"] is False
    tokenizer(merged, 19)
    assert answers(verify(merged))["chat_template"] is False


def test_a_source_that_did_not_arrive_fails_and_every_tensor_is_named(
    tmp_path: Path, merged: Path, sources: dict[str, Path]
) -> None:
    save(merged / "model.safetensors", combined(tmp_path / "base", sources, {"one": 0.6, "two": 0.1}), "bfloat16")
    (check,) = failing(verify(merged))
    assert check.name == "recomputed"
    assert "nearly every tensor differs" in check.detail


def test_a_selecting_method_is_computed_again(tmp_path: Path, merged: Path, sources: dict[str, Path]) -> None:
    start = load(tmp_path / "base")
    moved = [load(path) for path in sources.values()]
    text = yaml.safe_load(recipe(tmp_path / "base", sources, "ties"))
    for model in text["models"]:
        model["parameters"]["density"] = 0.5
    (merged / "mergekit_config.yml").write_text(yaml.safe_dump(text), encoding="utf-8")

    def made(name: str, base: np.ndarray) -> np.ndarray:
        values = [model[name] for model in moved]
        masks = [definitions.magnitude_mask(value - base, 0.5) for value in values]
        return definitions.task_vectors(base, values, list(WEIGHTS.values()), masks, elect=True, normalize=True)

    save(merged / "model.safetensors", {name: made(name, base) for name, base in start.items()}, "bfloat16")
    found = verify(merged, full=True)
    assert (found.verdict, failing(found)) == ("verified", [])
    save(merged / "model.safetensors", combined(tmp_path / "base", sources, WEIGHTS), "bfloat16")
    assert [c.name for c in failing(verify(merged))] == ["recomputed"]


def test_a_normalised_linear_merge_is_expected_to_land_by_its_shares(
    tmp_path: Path, merged: Path, sources: dict[str, Path]
) -> None:
    shares = {"one": 0.6 / 1.1, "two": 0.5 / 1.1}
    save(merged / "model.safetensors", combined(tmp_path / "base", sources, shares), "bfloat16")
    text = yaml.safe_load(recipe(tmp_path / "base", sources, "linear"))
    models = [*text["models"], {"model": str(tmp_path / "base"), "parameters": {"weight": 0.0}}]
    (merged / "mergekit_config.yml").write_text(yaml.safe_dump(text | {"models": models}), encoding="utf-8")
    found = verify(merged)
    assert (found.verdict, failing(found)) == ("verified", [])


def test_adapters_are_measured_as_low_rank_updates(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_tensors(0))
    modules = {"model.layers.0.self_attn.q_proj": (12, 12), "model.layers.2.mlp.down_proj": (12, 16)}
    factors = low_rank(5, modules, 2)
    adapter = write_adapter(tmp_path / "adapter", factors)
    tensors = load(base)
    for module in modules:
        delta = 2.0 * factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + 0.6 * delta
    out = write_model(tmp_path / "out", tensors)
    text = recipe(base, {"one": Path(f"{base}+{adapter}")})
    found = verify(out, recipe=text, full=True)
    assert failing(found) == []
    assert found.landed == {"adapter": pytest.approx(0.6, abs=0.01)}


def test_an_adapter_as_output_is_verified_against_its_sources(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_tensors(0))
    factors = low_rank(5, {"model.layers.0.self_attn.q_proj": (12, 12)}, 2)
    adapter = write_adapter(tmp_path / "adapter", factors)
    scaled = {k: v * (0.6 if "lora_B" in k else 1.0) for k, v in factors.items()}
    out = write_adapter(tmp_path / "out", scaled)
    found = verify(out, recipe=recipe(base, {"one": Path(f"{base}+{adapter}")}))
    assert (found.verdict, found.landed) == ("verified", {"adapter": pytest.approx(0.6, abs=1e-5)})


def test_without_a_recipe_the_answer_is_inconclusive_and_says_how_to_decide(merged: Path) -> None:
    (merged / "mergekit_config.yml").unlink()
    found = verify(merged)
    assert found.verdict == "inconclusive"
    assert [c.name for c in failing(found)] == ["provenance", "recomputed"]
    assert "--recipe" in failing(found)[0].detail


def test_sources_that_are_gone_leave_the_values_unknown(tmp_path: Path, merged: Path) -> None:
    shutil.rmtree(tmp_path / "two")
    found = verify(merged)
    assert (found.verdict, [c.name for c in failing(found)]) == ("inconclusive", ["recomputed"])


def record(out: Path, base: Path, sources: dict[str, Path], text: str) -> None:
    listed = [SourceRecord(name="base", ref=str(base), role="base", identity=identify(base))]
    listed += [SourceRecord(name=f"the {n}", ref=str(p), role="model", identity=identify(p)) for n, p in sources.items()]
    provenance = Provenance(
        created="2026-01-01T00:00:00Z", job_id="merge-1", product="p", engine="stream", engine_version="e",
        method="task_arithmetic", recipe=text, sources=listed, output=identify(out), landed={"the one": 0.6},
        nonfinite={"merged": 0},
    )  # fmt: skip
    write_provenance(out, provenance)


def test_our_record_gives_names_and_is_compared_with_the_files(tmp_path: Path, merged: Path, sources: dict[str, Path]) -> None:
    record(merged, tmp_path / "base", sources, recipe(tmp_path / "base", sources))
    found = verify(merged)
    assert failing(found) == []
    assert set(found.landed) == {"the one", "the two"}
    configure(merged, rope_theta=5.0)
    assert [c.detail for c in failing(verify(merged))] == [
        "config.json differs from every model of the merge: rope theta is 5.0, base has 10000.0",
        "config.json of the output is not the file that was recorded",
    ]


def test_a_source_that_changed_since_is_named(tmp_path: Path, merged: Path, sources: dict[str, Path]) -> None:
    record(merged, tmp_path / "base", sources, recipe(tmp_path / "base", sources))
    configure(tmp_path / "two", note="retrained")
    found = verify(merged)
    assert found.verdict == "inconclusive"
    assert [c.detail.split(":")[0] for c in failing(found)] == ["the two changed since the merge"]


def test_a_broken_record_is_named(merged: Path) -> None:
    (merged / "merge_provenance.json").write_text('{"engine": "magic"}', encoding="utf-8")
    found = verify(merged)
    assert found.verdict == "unreadable"
    assert "merge_provenance.json is not a record of a merge" in found.checks[0].detail


def test_verdicts_follow_from_the_answers() -> None:
    yes, no, unknown = (Check(name="x", passed=p, detail="") for p in (True, False, None))
    assert verdict_of([yes, yes]) == "verified"
    assert verdict_of([yes, unknown]) == "inconclusive"
    assert verdict_of([unknown, no]) == "failed"
    first = Verification(verdict="verified", checks=[yes])
    assert with_check(first, unknown).verdict == "inconclusive"


def test_a_recipe_given_in_text_must_be_readable(merged: Path) -> None:
    (merged / "mergekit_config.yml").unlink()
    with pytest.raises(Malformed, match="the given recipe"):
        verify(merged, recipe="merge_method: [")


def test_verifying_needs_neither_torch_nor_numba(merged: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mcp_server.steps.verify import verify; "
        f"verify(Path({str(merged)!r})); print({{'torch', 'numba', 'transformers'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
