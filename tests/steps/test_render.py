"""What is rendered says what the plan means, and nothing that a user names can say anything else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mcp_server import catalog
from mcp_server.catalog.models import Strategy
from mcp_server.errors import BadInput, Malformed, MergingError, NotFound
from mcp_server.schemas.plan import Plan
from mcp_server.steps.recommend import read_scenario, recommend
from mcp_server.steps.render import parse_overrides, render, render_strategy
from mcp_server.steps.render.yaml_text import to_yaml
from mcp_server.steps.validate import validate
from mcp_server.system import paths
from tests.tiny import write_adapter, write_model

STRATEGIES = sorted(catalog.load().strategies)
GOLDEN = Path(__file__).parent.parent / "golden"


def plan_for(strategy: str | None = None, **changes: Any) -> Plan:
    scenario = {
        "sources": [
            {"name": "persona", "ref": "/m/persona", "kind": "lora", "capability": "voice", "training_examples": 200},
            {"name": "tools", "ref": "/m/tools", "kind": "lora", "capability": "JSON", "training_examples": 500},
        ],
        "base_model": "/m/base",
        "layers": 32,
        **changes,
    }
    return recommend(read_scenario({**scenario, "strategy": strategy} if strategy else scenario))


def recipe(plan: Plan, *overrides: str) -> dict[str, Any]:
    document = yaml.safe_load(render(plan, parse_overrides(list(overrides))).recipe)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_renders_its_golden_recipe(name: str) -> None:
    assert render_strategy(name).recipe == (GOLDEN / f"{name}.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_template_is_short_enough_to_read(name: str) -> None:
    assert len((paths.templates_dir() / f"{name}.yaml.j2").read_text(encoding="utf-8").splitlines()) <= 30


def test_the_verification_prompt_renders_its_recipe_whole() -> None:
    assert recipe(plan_for()) == {
        "merge_method": "ties",
        "base_model": "/m/base",
        "models": [
            {"model": "/m/base+/m/persona", "parameters": {"weight": 0.39, "density": 0.5}},
            {"model": "/m/base+/m/tools", "parameters": {"weight": 0.61, "density": 0.5}},
        ],
        "dtype": "bfloat16",
    }


def test_another_strategy_starts_afresh_with_its_own_parameters_and_weights() -> None:
    assert recipe(plan_for(), "strategy=task_arithmetic") == {
        "merge_method": "task_arithmetic",
        "base_model": "/m/base",
        "models": [
            {"model": "/m/base+/m/persona", "parameters": {"weight": 1.0}},
            {"model": "/m/base+/m/tools", "parameters": {"weight": 1.0}},
        ],
        "parameters": {"lambda": 0.7},
        "dtype": "bfloat16",
    }


def test_slerp_names_one_of_its_sources_as_the_base_and_counts_t_from_it() -> None:
    document = recipe(plan_for("slerp"))
    assert document["base_model"] == document["models"][0]["model"]
    assert document["parameters"] == {"t": 0.5}


def test_a_share_under_slerp_moves_t() -> None:
    assert recipe(plan_for("slerp"), "sources.persona.weight=0.7")["parameters"] == {"t": 0.3}


def test_weights_gradients_and_filters_are_set_per_source() -> None:
    document = recipe(
        plan_for(),
        "sources.persona.weight=0.7",
        "sources.persona.density=[0.3, 0.9]",
        "sources.tools.density=[{filter: self_attn, value: 0.3}, {value: 0.8}]",
    )
    assert [one["parameters"] for one in document["models"]] == [
        {"weight": 0.7, "density": [0.3, 0.9]},
        {"weight": 0.61, "density": [{"filter": "self_attn", "value": 0.3}, {"value": 0.8}]},
    ]


def test_a_shared_value_replaces_what_was_set_for_one_source() -> None:
    plan = plan_for().model_copy(update={"source_parameters": {"persona": {"density": 0.9}}})
    assert [m["parameters"]["density"] for m in recipe(plan)["models"]] == [0.9, 0.5]
    assert [m["parameters"]["density"] for m in recipe(plan, "parameters.density=0.4")["models"]] == [0.4, 0.4]


def test_dtype_and_tokenizer_are_set_for_the_whole_recipe() -> None:
    document = recipe(plan_for(), "dtype=float32", "tokenizer=union")
    assert (document["dtype"], document["tokenizer"]) == ("float32", {"source": "union"})


def test_the_dtype_is_the_bases_own_unless_the_plan_says_another(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"torch_dtype": "float16"}', encoding="utf-8")
    plan = plan_for(base_model=str(tmp_path / "base"))
    assert recipe(plan)["dtype"] == "float16"
    assert recipe(plan, "dtype=float32")["dtype"] == "float32"
    assert [w.code for w in render(plan).warnings] == ["ties_blunts_weights", "changes_not_measured"]


def test_a_dtype_that_nothing_tells_is_assumed_aloud() -> None:
    assert [w.code for w in render(plan_for()).warnings] == ["ties_blunts_weights", "changes_not_measured", "dtype_assumed"]


def test_the_warnings_are_those_of_the_strategy_that_is_rendered() -> None:
    plan = plan_for().model_copy(update={"dtype": "bfloat16"})
    codes = {name: [w.code for w in render(plan, {"strategy": name}).warnings] for name in ("linear", "dare_ties", "moe")}
    assert codes == {
        "linear": [],
        "dare_ties": ["dare_needs_seed", "density_low_is_risky", "lambda_cliff"],
        "moe": ["moe_needs_memory"],
    }


def test_small_floats_are_numbers_to_yaml_1_1() -> None:
    document = recipe(plan_for("ram"), "parameters.epsilon=0.00001")
    assert document["parameters"] == {"epsilon": 1e-5}


def test_a_deeper_model_takes_the_layers_given_or_overlapping_windows() -> None:
    ranges = [piece["sources"][0]["layer_range"] for piece in recipe(plan_for("passthrough"))["slices"]]
    assert ranges == [[0, 24], [8, 32]]
    set_ = ("sources.persona.layer_range=[0, 16]", "sources.tools.layer_range=[8, 24]")
    ranges = [piece["sources"][0]["layer_range"] for piece in recipe(plan_for("passthrough"), *set_)["slices"]]
    assert ranges == [[0, 16], [8, 24]]


def test_a_deeper_model_of_one_source_repeats_its_middle() -> None:
    plan = plan_for("passthrough", sources=[{"name": "a", "ref": "/m/a", "kind": "full"}], goal="deeper_model")
    assert [piece["sources"][0]["layer_range"] for piece in recipe(plan)["slices"]] == [[0, 24], [8, 32]]


@pytest.mark.parametrize(
    ("depth", "ranges"),
    [(40, [[0, 20], [12, 32]]), (65, [[0, 22], [5, 27], [11, 32]]), (24, [[0, 12], [20, 32]])],
)
def test_a_model_of_one_source_gets_the_depth_that_was_asked_for(depth: int, ranges: list[list[int]]) -> None:
    source = [{"name": "a", "ref": "/m/a", "kind": "full"}]
    asked = plan_for("passthrough", sources=source, goal="deeper_model", depth=depth)
    later = recipe(plan_for("passthrough", sources=source, goal="deeper_model"), f"depth={depth}")
    for document in (recipe(asked), later):
        found = [piece["sources"][0]["layer_range"] for piece in document["slices"]]
        assert found == ranges
        assert sum(end - start for start, end in found) == depth


def test_a_depth_that_the_windows_cannot_add_up_to_is_refused() -> None:
    with pytest.raises(BadInput, match="2 windows of 32 layers make no model of 65"):
        render(plan_for("passthrough", depth=65))


def test_experts_are_routed_by_their_prompts_or_else_by_their_capability() -> None:
    document = recipe(plan_for("moe"), 'sources.tools.prompts=["create a task", "list my tasks"]')
    assert "merge_method" not in document
    assert [expert["positive_prompts"] for expert in document["experts"]] == [["voice"], ["create a task", "list my tasks"]]


def test_two_stages_keep_the_bases_ends() -> None:
    first, last = yaml.safe_load_all(render(plan_for("keep_ends"), {"parameters.ends": "4"}).recipe)
    assert first["name"] == "merged_middle"
    pieces = [piece["sources"][0] for piece in last["slices"]]
    assert [(piece["model"], piece["layer_range"]) for piece in pieces] == [
        ("/m/base", [0, 4]),
        ("merged_middle", [4, 28]),
        ("/m/base", [28, 32]),
    ]


def test_an_adapter_folded_into_its_base_keeps_all_of_it() -> None:
    plan = plan_for(None, sources=[{"name": "persona", "ref": "/m/persona", "kind": "lora"}, {"ref": "/m/base"}])
    assert recipe(plan) == {
        "merge_method": "task_arithmetic",
        "base_model": "/m/base",
        "models": [{"model": "/m/base+/m/persona", "parameters": {"weight": 1.0}}],
        "parameters": {"lambda": 1.0},
        "dtype": "bfloat16",
    }


def test_the_base_of_an_adapter_is_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}', encoding="utf-8")
    plan = plan_for("task_arithmetic", sources=[{"name": "a", "ref": "./adapter"}], base_model=None)
    document = yaml.safe_load(render(plan, {"strategy": "task_arithmetic"}, relative_to=tmp_path).recipe)
    assert document["base_model"] == "owner/base"
    assert document["models"][0]["model"] == f"owner/base+{tmp_path / 'adapter'}"


def test_full_models_without_a_base_are_averaged_under_their_own_names() -> None:
    sources = [{"name": "a", "ref": "owner/a", "kind": "full"}, {"name": "b", "ref": "owner/b", "kind": "full"}]
    document = recipe(plan_for("linear", sources=sources, base_model="none"))
    assert document == {
        "merge_method": "linear",
        "models": [{"model": "owner/a", "parameters": {"weight": 0.5}}, {"model": "owner/b", "parameters": {"weight": 0.5}}],
        "dtype": "bfloat16",
    }


def test_a_path_with_a_plus_or_an_at_goes_in_table_form() -> None:
    document = recipe(plan_for(), "sources.tools.ref=/m/tools+v2@main")
    assert document["models"][1]["model"] == {"model": {"path": "/m/base"}, "lora": {"path": "/m/tools+v2@main"}}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["strategy=slrp"], "there is no strategy 'slrp'. Did you mean 'slerp'"),
        (["parameters.denisty=0.5"], "ties has no parameter 'denisty'. Did you mean 'density'"),
        (["parameters.density=1.5"], "density: 1.5 is outside [0, 1]"),
        (["parameters.density=[0.5, -1]"], "density: -1 is outside [0, 1]"),
        (["parameters.density=[{filter: mlp}]"], "a filter is {filter: NAME, value: VALUE}"),
        (["parameters.normalize=maybe"], "'maybe' is not true or false"),
        (["parameters.weight=0.5"], "weights are set per source"),
        (["sources.person.weight=1"], "there is no source 'person'. Did you mean 'persona'"),
        (["sources.persona.wieght=1"], "a source of ties has no 'wieght'. Did you mean 'weight'"),
        (["sources.persona.lambda=1"], "lambda of ties is one for the whole recipe"),
        (["dtype=bf16"], "dtype 'bf16' is not one of"),
        (["dytpe=float32"], "there is nothing called 'dytpe' to set. Did you mean 'dtype'"),
        (["sources.persona.kind=qlora"], "Input should be 'lora' or 'full'"),
        (["strategy=keep_ends", "parameters.ends=16"], "ends 16 at each side leave nothing of 32 layers"),
        (["strategy=slerp", "sources.persona.weight=1.7"], "between two sources a share lies in [0, 1]"),
        (["persona"], "'persona' is not KEY=VALUE"),
        (["dtype=float32", "dtype=float16"], "'dtype' is set twice"),
        (["parameters.density=!!python/name:os.system"], "the tag"),
    ],
)
def test_an_override_that_cannot_be_is_refused_with_what_was_meant(overrides: list[str], complaint: str) -> None:
    with pytest.raises(BadInput) as refused:
        render(plan_for(), parse_overrides(overrides))
    assert complaint in refused.value.message
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("changes", "strategy", "complaint"),
    [
        ({"sources": [{"name": "a", "kind": "lora"}, {"name": "b", "kind": "lora"}]}, "ties", "the source 'a' has no ref"),
        ({"base_model": None}, "ties", "is an adapter and its base is not known"),
        ({"layers": None}, "passthrough", "nothing says how many they have"),
        (
            {"base_model": "none", "sources": [{"ref": "/a", "kind": "full"}, {"ref": "/b", "kind": "full"}]},
            "ties",
            "ties needs the base",
        ),
        ({"sources": [{"ref": "/a", "kind": "full"}, {"ref": "/b", "kind": "full"}]}, "moe", "has no prompts to route by"),
        ({"sources": [{"ref": "/a", "kind": "lora"}]}, "model_stock", "model_stock takes 2 sources at least, the plan has 1"),
    ],
)
def test_a_missing_fact_is_named_with_how_to_give_it(changes: dict[str, Any], strategy: str, complaint: str) -> None:
    with pytest.raises(BadInput) as refused:
        render(plan_for(**changes), {"strategy": strategy})
    assert complaint in refused.value.message
    assert refused.value.next_step


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tunes and two adapters of different rank, a few hundred bytes each."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_model(folder / "base")
    for number, name in enumerate(("persona", "tools"), 1):
        write_adapter(folder / name, base, rank=2 * number, seed=number)
        write_model(folder / f"{name}_full", seed=number)
    return folder


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "keep_ends"])  # its ends need more than the one layer
def test_the_linter_finds_no_fault_in_a_rendered_recipe(tiny: Path, name: str, kind: str) -> None:
    sources = [
        {"name": n, "ref": str(tiny / (n if kind == "lora" else f"{n}_full")), "kind": kind, "capability": f"{n} prompts"}
        for n in ("persona", "tools")
    ]
    text = render(plan_for(sources=sources, base_model=str(tiny / "base"), layers=None), {"strategy": name}).recipe
    found = validate(text, folder=tiny)
    assert found.level == "checkpoints"
    assert [finding for finding in found.findings if finding.severity != "note"] == []


def test_a_plan_that_says_no_is_not_rendered_without_being_asked() -> None:
    plan = plan_for(relation={"capabilities": "conflicting"})
    with pytest.raises(BadInput, match="verdict is retrain_combined"):
        render(plan)
    assert recipe(plan, "strategy=ties")["merge_method"] == "ties"


HOSTILE = st.text(min_size=1, max_size=30) | st.sampled_from(
    [
        "a: b", "x\nmerge_method: linear", "{{ 7 * 7 }}", "{% raw %}", "'", '"', "# no", "- a", "&a", "*a", "!!str", "\t", "null",
        "1", "\x85\u2028", "🦙", "~", "a+b", "@", "\x00", "\ud800", "../../..", "%s", "\\x41",
    ]
)  # fmt: skip


@given(name=HOSTILE, path=HOSTILE, capability=HOSTILE, strategy=st.sampled_from(STRATEGIES))
def test_no_name_path_or_prompt_can_break_out_of_its_place(name: str, path: str, capability: str, strategy: str) -> None:
    sources = [
        {"name": name, "ref": "/m/" + path, "kind": "lora", "capability": capability},
        {"name": f"{name}2", "ref": "/m/tools", "kind": "lora", "capability": "JSON"},
    ]
    try:
        plan = plan_for(sources=sources)
        text = render(plan, {"strategy": strategy}).recipe
    except MergingError as refused:
        assert "surrogate" in refused.message or "cannot be a path" in refused.message
        return
    assert [shape(document) for document in yaml.safe_load_all(text)] == plain_shape(strategy)


@functools.cache
def plain_shape(strategy: str) -> list[Any]:
    return [shape(document) for document in yaml.safe_load_all(render(plan_for(), {"strategy": strategy}).recipe)]


def shape(document: Any) -> Any:
    """Keys and lengths; refs (whose text and form may differ) and prompts are left out."""
    if isinstance(document, dict):
        return {key: "ref" if key in ("model", "base_model", "source_model") else shape(value) for key, value in document.items()}
    return [shape(item) for item in document] if isinstance(document, list) else "value"


JSONISH = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(JSONISH)
def test_the_yaml_filter_reads_back_as_exactly_what_went_in(value: Any) -> None:
    try:
        text = to_yaml(value)
    except BadInput as refused:
        assert "surrogate" in refused.message
        return
    assert "\n" not in text
    assert yaml.safe_load(text) == value


def write(folder: Path, text: str) -> Path:
    (folder / "ties.yaml.j2").write_text(text, encoding="utf-8")
    for part in ("_parameters.j2", "_ending.j2"):
        (folder / part).write_text((paths.templates_dir() / part).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("merge_method: ties\nbase_model: {{ base }}\n", "is printed raw; write {{ … | yaml }}"),
        ("merge_method: ties\nbase_model: {{ bsae | yaml }}\n", "(line 2): 'bsae' is undefined"),
        ("merge_method: ties\n{% for x in %}\n", "(line 2)"),
        ("merge_method: tie\nbase_model: {{ base | yaml }}\n", "merge_method: 'tie', the plan means 'ties'"),
        ("merge_method: ties\nbase_model: {{ base | yaml }}\nmodels: []\n", "the plan means [{'model'"),
        ("merge_method: ties\nbase_model: {{ base | yaml }}\nnormalise: true\nmodels: []\n", "rendered"),
        ("{{ ''.__class__.__mro__ }}", "templates/ties.yaml.j2"),
        ("merge_method: [ties\n", "cannot be read"),
    ],
)
def test_a_template_that_says_something_else_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(Malformed) as refused:
        render_strategy("ties", write(tmp_path, text))
    assert complaint in refused.value.message
    assert "ties.yaml.j2" in refused.value.message


def test_a_strategy_without_a_template_says_which_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"templates/ties.yaml.j2 does not exist"):
        render_strategy("ties", tmp_path)


def test_a_copied_strategy_renders_under_its_own_name(tmp_path: Path) -> None:
    data = catalog.strategy("linear").model_dump()
    mine: dict[str, Strategy] = {"my_mean": Strategy.model_validate({**data, "id": "my_mean"})}
    write(tmp_path, "")
    template = (paths.templates_dir() / "linear.yaml.j2").read_text(encoding="utf-8")
    (tmp_path / "my_mean.yaml.j2").write_text(template.replace("merge_method: linear", "merge_method: my_mean"), encoding="utf-8")
    assert yaml.safe_load(render_strategy("my_mean", tmp_path, mine).recipe)["merge_method"] == "my_mean"
