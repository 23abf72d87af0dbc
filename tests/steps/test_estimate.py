"""Estimates: parts that sum to the bound, budgets that decide, shapes from headers or from a name alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mcp_server.errors import Malformed, NotFound, Unsupported
from mcp_server.formats.recipe import read_recipe
from mcp_server.schemas.plan import Plan, StrategyChoice
from mcp_server.schemas.scenario import Constraints, Scenario, ScenarioSource
from mcp_server.steps.estimate import estimate, estimate_plan, evidence, mergekit
from mcp_server.steps.estimate.budget import METADATA_BYTES
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.estimate.shapes import known_shape, model_shape
from mcp_server.steps.estimate.work import OutputTensor, Work, work_of
from mcp_server.steps.validate.methods import merge_methods
from tests.checkpoints import cache_model, write_lora, write_model

LLAMA = """
merge_method: ties
base_model: meta-llama/Meta-Llama-3-8B
models:
  - {model: me/persona-Llama-3-8B}
  - {model: me/tools-Llama-3-8B}
parameters: {weight: 1, density: 0.5}
dtype: bfloat16
"""


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def work(*sizes: tuple[str, int], method: str = "linear", inputs: int = 2, width: int = 2, stored: int = 2) -> Work:
    tensors = tuple(OutputTensor(name, n, 1, n * width, width, (stored,) * inputs) for name, n in sizes)
    total = sum(n for _, n in sizes)
    return Work(method, inputs, tensors, inputs - 1, 0, 0, 0, total * stored * inputs, total * stored, ("headers",))


def test_an_8b_ties_fits_twelve_gib_with_stream_and_never_with_mergekit() -> None:
    """Stock TIES of this shape was killed in a 12 GiB cgroup at 12.5 GB; the stream engine needs a fraction of one."""
    found = estimate(LLAMA, ram_gib=12)
    assert found.recommended == "stream"
    assert found.engines["stream"].fits is True
    assert found.engines["stream"].peak_anon_bytes < 0.5e9
    assert found.engines["mergekit"].fits is False
    assert found.engines["mergekit"].peak_anon_bytes > 12.5e9
    assert found.notes[:1] == ["sizes from the table of well-known shapes (config.json of meta-llama/Meta-Llama-3-8B)"]


@pytest.mark.parametrize(("gib", "told"), [(64, []), (12, ["8 bits"] * 2), (7.8, ["4 bits"] * 2)])
def test_it_says_in_how_few_bits_the_result_will_be_verified_and_measured(
    monkeypatch: pytest.MonkeyPatch, gib: float, told: list[str]
) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: 2)
    notes = [note for note in estimate(LLAMA, ram_gib=gib).notes if "holds weights in" in note]
    assert [note.partition(" holds weights in ")[2][:6] for note in notes] == told


def test_parts_sum_to_the_bound_and_disk_holds_the_output() -> None:
    found = estimate(LLAMA)
    for engine in found.engines.values():
        assert sum(engine.breakdown.values()) == engine.peak_anon_bytes
        assert engine.disk_bytes >= 16_060_522_496
        assert engine.seconds.low < engine.seconds.high
        assert engine.fits is None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("Llama-3-8B", 8_030_261_248),
        ("me/My-Llama-3.2-3B-Instruct-tools", 3_212_749_824),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616),
    ],
)
def test_a_well_known_name_has_its_published_size(name: str, parameters: int) -> None:
    assert sum(math.prod(t.shape) for t in model_shape(name).tensors) == parameters


def test_the_longest_name_wins_and_an_unknown_one_is_none() -> None:
    shape = known_shape("mistralai/Mistral-7B-v0.3")
    assert shape is not None
    assert shape.vocabulary == 32768
    assert known_shape("org/something-else") is None


def test_an_unknown_model_says_how_to_make_it_known() -> None:
    with pytest.raises(NotFound) as raised:
        estimate("merge_method: linear\nmodels: [{model: org/a}, {model: org/b}]\nparameters: {weight: 1}")
    assert "model-merging fetch org/a" in raised.value.next_step
    assert "shapes.yaml" in raised.value.next_step


def test_a_recipe_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Malformed):
        estimate("merge_method: linear")


def test_the_shard_that_makes_mergekit_fit_is_named(tmp_path: Path) -> None:
    sizes = [(f"model.layers.{n:02d}.w", 50_000_000) for n in range(40)]
    whole = mergekit.anon_bytes(work(*sizes), 5_000_000_000)
    small = mergekit.anon_bytes(work(*sizes), 500_000_000)
    assert whole - small == pytest.approx(3.5e9, rel=0.1)
    assert mergekit.smallest_shard(work(*sizes), whole) == 5_000_000_000
    assert mergekit.smallest_shard(work(*sizes), small) == 500_000_000
    assert mergekit.smallest_shard(work(*sizes), 100_000_000) is None


def test_the_buffer_counts_only_what_came_before_the_large_tensor() -> None:
    """Work goes in the order of names: an embedding after the layers meets a full buffer, before them an empty one."""
    large, rest = 100_000_000, [(f"m.{n}", 10_000_000) for n in range(5)]
    first = mergekit.peak_of(work(("a", large), *rest, method="ties"), 5_000_000_000)
    last = mergekit.peak_of(work(("z", large), *rest, method="ties"), 5_000_000_000)
    assert last.total - first.total == 5 * 20_000_000


def test_inputs_of_another_precision_are_counted_as_copies() -> None:
    same = mergekit.peak_of(work(("a", 1_000_000)), 10**9)
    wider = mergekit.peak_of(work(("a", 1_000_000), width=4), 10**9)
    assert (same.converted, wider.converted) == (0, 2 * 4_000_000)


def test_adapters_cost_mergekit_a_copy_of_the_base_each_and_stream_nothing(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", hidden=64, intermediate=128, vocabulary=512)
    adapters = [write_lora(tmp_path / name, str(base), hidden=64, intermediate=128) for name in ("a", "b")]
    entries = "".join(f"  - {{model: {base}+{a}, parameters: {{weight: 1}}}}\n" for a in adapters)
    text = f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n{entries}dtype: bfloat16\n"
    found = estimate(text)
    size = model_shape(str(base)).nbytes
    assert found.engines["mergekit"].disk_bytes - found.engines["stream"].disk_bytes == 2 * size
    assert work_of(read_recipe(text)).factors == 2 * 2 * (64 + 128)


def test_a_stack_of_layers_is_as_large_as_its_slices(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", layers=4)
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: {model}, layer_range: [{a}, {b}]}}]\n" for a, b in ((0, 3), (1, 4))
    )
    shape = model_shape(str(model))
    layer = sum(t.nbytes for t in shape.tensors if ".layers.0." in t.name)
    assert work_of(read_recipe(text)).out_bytes == shape.nbytes + 2 * layer


def test_a_wider_output_takes_more_disk(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name) for name in ("a", "b")]
    text = f"merge_method: linear\nmodels: [{{model: {models[0]}}}, {{model: {models[1]}}}]\nparameters: {{weight: 1}}\n"
    narrow, wide = work_of(read_recipe(text)), work_of(read_recipe(text + "out_dtype: float32\n"))
    assert wide.out_bytes == 2 * narrow.out_bytes


def test_a_union_of_vocabularies_has_every_token(tmp_path: Path) -> None:
    a = write_model(tmp_path / "a", tokens=[f"t{n}" for n in range(16)])
    b = write_model(tmp_path / "b", tokens=[f"t{n}" for n in range(10)] + [f"u{n}" for n in range(6)])
    models = f"models: [{{model: {a}}}, {{model: {b}}}]"
    text = f"merge_method: linear\n{models}\nparameters: {{weight: 1}}\ntokenizer: {{source: union}}\n"
    embedding = next(t for t in work_of(read_recipe(text)).tensors if "embed" in t.name)
    assert embedding.elements == 22 * 8
    assert estimate(text).engines["stream"].covers is True


def test_stages_cost_what_the_largest_costs(tmp_path: Path) -> None:
    small, large = write_model(tmp_path / "s"), write_model(tmp_path / "l", vocabulary=64)
    one = f"merge_method: linear\nmodels: [{{model: {small}}}]\nparameters: {{weight: 1}}\n"
    two = f"merge_method: linear\nmodels: [{{model: first}}, {{model: {large}}}]\nparameters: {{weight: 1}}\n"
    assert work_of(read_recipe(f"name: first\n{one}---\n{two}")).out_bytes >= model_shape(str(small)).nbytes
    found = estimate(f"name: first\n{one}---\n{two}")
    assert found.engines["stream"].why_not == ["multi recipes are run by mergekit only"]
    assert found.recommended == "mergekit"


def test_a_mixture_writes_every_expert(tmp_path: Path) -> None:
    models = [cache_model(tmp_path / "hub", f"org/{n}") for n in "abc"]
    text = (
        "base_model: org/a\nexperts: [{source_model: org/b, positive_prompts: [x]}, {source_model: org/c, positive_prompts: [y]}]"
    )
    shape = model_shape(str(models[0]))
    forward = sum(t.nbytes for t in shape.tensors if ".mlp." in t.name)
    assert work_of(read_recipe(text)).out_bytes == shape.nbytes + forward


def test_too_little_disk_does_not_fit_whatever_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000_000))
    found = estimate(LLAMA, ram_gib=64, out=tmp_path / "new" / "out")
    assert {name: engine.fits for name, engine in found.engines.items()} == {"stream": False, "mergekit": False}
    assert found.recommended is None


def test_every_method_of_the_catalogue_was_measured() -> None:
    assert set(merge_methods()) <= set(costs().mergekit.methods)


@pytest.mark.parametrize(
    ("scenario", "engine", "fits"),
    [
        ({"base_model": "meta-llama/Meta-Llama-3-8B", "constraints": Constraints(ram_gib=12)}, "stream", True),
        ({"base_model": "meta-llama/Meta-Llama-3-8B"}, "stream", None),
        ({"base_model": "meta-llama/Meta-Llama-3-8B", "constraints": Constraints(ram_gib=0.1)}, "stream", False),
        ({"base_model": "org/unknown", "constraints": Constraints(ram_gib=12)}, "stream", None),
        ({}, "stream", None),
    ],
)
def test_a_plan_is_costed_before_there_is_a_recipe(scenario: dict[str, object], engine: str, fits: bool | None) -> None:
    sources = [ScenarioSource(name=name, kind="lora", rank=16) for name in ("persona", "tools")]
    plan = Plan(verdict="merge", strategy=StrategyChoice(id="ties"), scenario=Scenario(sources=sources, **scenario))  # type: ignore[arg-type]
    found = estimate_plan(plan)
    assert found is not None
    assert (found.id, found.fits) == (engine, fits)


def test_a_plan_that_merges_nothing_needs_no_engine() -> None:
    assert estimate_plan(Plan(verdict="retrain_combined")) is None


def lora_recipe(folder: Path, method: str, settings: str, *, base: bool = True) -> str:
    write_model(folder / "base", hidden=64, intermediate=128)
    for name, rank in (("a", 4), ("b", 12)):
        write_lora(folder / name, "base", hidden=64, intermediate=128, rank=rank)
    named = "base_model: base\n" if base else ""
    return f"merge_method: {method}\n{named}models: [{{model: base+a}}, {{model: base+b}}]\nparameters: {settings}\n"


def test_an_adapter_output_costs_its_factors_and_not_the_model(tmp_path: Path) -> None:
    """Ranks 4 and 12 add up; two layers, one 64 × 64 and one 64 × 128 matrix each, in float32."""
    text = lora_recipe(tmp_path, "linear", "{weight: 0.5}", base=False)
    found = estimate(text, folder=tmp_path, output="adapter", ram_gib=1)
    cost = found.engines["stream"]
    assert (set(found.engines), found.recommended, cost.fits) == ({"stream"}, "stream", True)
    assert cost.disk_bytes == METADATA_BYTES + 2 * 4 * 16 * ((64 + 64) + (64 + 128))
    assert sum(cost.breakdown.values()) == cost.peak_anon_bytes
    assert estimate(text, folder=tmp_path, output="adapter", ram_gib=0.01).recommended is None


def test_an_adapter_by_svd_costs_more_with_the_rank_and_needs_one(tmp_path: Path) -> None:
    text = lora_recipe(tmp_path, "ties", "{weight: 0.5, density: 0.5}")
    low, high = (estimate(text, folder=tmp_path, output="adapter", rank=rank).engines["stream"] for rank in (2, 32))
    assert (low.disk_bytes < high.disk_bytes, low.peak_anon_bytes < high.peak_anon_bytes) == (True, True)
    assert low.seconds.high <= high.seconds.high
    with pytest.raises(Malformed, match="ties does not keep updates low-rank"):
        estimate(text, folder=tmp_path, output="adapter")


def test_what_cannot_be_an_adapter_has_no_estimate(tmp_path: Path) -> None:
    text = lora_recipe(tmp_path, "linear", "{weight: 0.5}", base=False).replace("base+b", "base")
    with pytest.raises(Unsupported, match="is a full model"):
        estimate(text, folder=tmp_path, output="adapter")
    with pytest.raises(NotFound):
        estimate(text.replace("base+a", "base+absent"), folder=tmp_path, output="adapter")
