"""mergekit itself, run as a job on tiny checkpoints. Each run costs mergekit's start-up of 5 to 8 s, hence slow."""

import json
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.formats.provenance import read_provenance
from mcp_server.formats.recipe import read_recipe
from mcp_server.formats.safetensors import read_header
from mcp_server.schemas.job import MergeRequest
from tests import tiny
from tests.hub import COMMIT, Hub, serving
from tests.workers.test_mergekit_folding import tensors

pytestmark = pytest.mark.slow


@pytest.fixture
def models(store, tmp_path):
    base = tiny.write_model(tmp_path / "base")
    return base, [tiny.write_adapter(tmp_path / f"lora{n}", base, rank=n, seed=n) for n in (1, 2)]


def merged(recipe: str, out: Path, **request):
    ended = jobs.wait(jobs.start_merge(MergeRequest(recipe=recipe, out=str(out), **request)).job_id, 900)
    assert ended.state == "succeeded", (ended.error, jobs.logs(ended.job_id).text)
    return ended


def raw(folder):
    """Shape and bytes of every tensor of a model in one file."""
    file = folder / "model.safetensors"
    header, data = read_header(file), file.read_bytes()
    start = header.data_start
    return {name: (info.shape, data[start + info.begin : start + info.end]) for name, info in header.tensors.items()}


def lora_recipe(base, adapters):
    entries = "".join(
        f"  - model: {base}+{adapter}\n    parameters: {{weight: {weight}}}\n"
        for adapter, weight in zip(adapters, (0.75, 0.25), strict=True)
    )
    return f"merge_method: task_arithmetic\nbase_model: {base}\ndtype: float32\nmodels:\n{entries}"


def test_two_adapters_of_different_rank_are_merged_and_the_folder_says_from_what(models, tmp_path):
    base, adapters = models
    recipe = lora_recipe(base, adapters)
    ended = merged(recipe, tmp_path / "out", engine="mergekit", seed=5)
    result = ended.result
    assert (result["engine"], result["seed"], result["tensors"], result["state"]) == ("mergekit", 5, 12, "succeeded")
    assert result["peak_anon_bytes"] > 100_000_000
    record = read_provenance(tmp_path / "out")
    assert (record.recipe, record.seed, record.engine_version) == (recipe, 5, "mergekit 0.1.5")
    assert [(s.name, s.role) for s in record.sources] == [("base", "base"), ("lora1", "adapter"), ("lora2", "adapter")]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "task_arithmetic" in card and str(tmp_path) not in card
    assert read_recipe((tmp_path / "out" / "mergekit_config.yml").read_text(encoding="utf-8")).method == "task_arithmetic"


def test_both_engines_give_the_same_merge(models, tmp_path):
    import numpy as np

    base, adapters = models
    recipe = lora_recipe(base, adapters)
    for engine in ("mergekit", "stream"):
        merged(recipe, tmp_path / engine, engine=engine)
    ours, theirs = (tensors(tmp_path / engine / "model.safetensors") for engine in ("stream", "mergekit"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # mergekit works on adapters that were rounded to the base's bf16 when they were folded
        np.testing.assert_allclose(theirs[name], value, rtol=2**-7, atol=2e-3, err_msg=name)


def test_small_shards_are_written_with_an_index(models, tmp_path):
    base, _ = models
    other = tiny.write_model(tmp_path / "other", seed=3)
    merged(tiny.linear_recipe(base, other), tmp_path / "out", engine="mergekit", shard_size=600)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert {name for file in files for name in read_header(tmp_path / "out" / file).tensors} == set(index["weight_map"])


def test_a_recipe_of_several_stages_runs_and_leaves_no_stage_behind(models, tmp_path):
    base, _ = models
    other = tiny.write_model(tmp_path / "other", seed=3)
    stage = f"name: first\n{tiny.linear_recipe(base, other)}---\n{tiny.linear_recipe('first', base)}"
    ended = merged(stage, tmp_path / "out")
    assert ended.engine == "mergekit"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "merge_provenance.json",
        "mergekit_config.yml",
        "model.safetensors",
    ]


def test_a_mixture_of_experts_runs_on_mergekit_moe(models, tmp_path):
    experts = [tiny.write_tokenizer(tiny.write_model(tmp_path / f"expert{n}", seed=n)) for n in (3, 4)]
    recipe = f"base_model: {experts[0]}\ngate_mode: random\ndtype: bfloat16\nexperts:\n" + "".join(
        f"  - source_model: {expert}\n    positive_prompts: [a]\n" for expert in experts
    )
    ended = merged(recipe, tmp_path / "out")
    assert ended.engine == "mergekit"
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["architectures"], config["num_local_experts"]) == (["MixtralForCausalLM"], 2)
    assert read_provenance(tmp_path / "out").method == "moe"
    made = raw(tmp_path / "out")
    for number, expert in enumerate(experts):
        for ours, theirs in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
            stored = f"model.layers.0.block_sparse_moe.experts.{number}.{ours}.weight"
            assert made[stored] == raw(expert)[f"model.layers.0.mlp.{theirs}.weight"]


def test_hub_ids_are_fetched_and_stages_are_not(models, tmp_path, monkeypatch):
    """A recipe of two stages by ids gives the merge of the same folders, and the record holds the commits."""
    base, _ = models
    other = tiny.write_model(tmp_path / "other", seed=3)
    hub = Hub({})
    for name, folder in (("base", base), ("other", other)):
        hub.add(f"acme/{name}", folder)
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODEL_MERGING_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def two_stages(first, second):
        return f"name: first\n{tiny.linear_recipe(first, second)}---\n{tiny.linear_recipe('first', first)}"

    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        by_id = merged(two_stages("acme/base", "acme/other"), tmp_path / "by_id")
    assert by_id.engine == "mergekit"
    merged(two_stages(base, other), tmp_path / "by_path")
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("by_id", "by_path")]
    assert weights[0] == weights[1]
    assert {s.name: s.revision for s in read_provenance(tmp_path / "by_id").sources} == {"base": COMMIT, "other": COMMIT}
    assert not any("first" in line for line in hub.requests)
