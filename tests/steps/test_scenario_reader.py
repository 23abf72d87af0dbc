"""Scenarios from people: what is misspelt, unknown or contradictory is named; what is absent stays unknown."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import BadInput, Malformed, MergingError, NotFound
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.recommend import recommend
from mcp_server.steps.scenario import read_plan, read_scenario, with_cross_context


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sorces: []", "unknown field 'sorces'. Did you mean 'sources'"),
        (
            "sources: [{name: a, trainning_examples: 3}]",
            "unknown field 'sources[0].trainning_examples'. Did you mean 'training_examples'",
        ),
        ("constraints: {ram_gb: 12}", "unknown field 'constraints.ram_gb'. Did you mean 'ram_gib'"),
        ("relation: {data_overlap: 30}", "relation.data_overlap: Input should be less than or equal to 1 (found '30')"),
        ("relation: {capabilities: complimentary}", "Input should be 'complementary', 'partial' or 'conflicting'"),
        ("sources: [{name: a}, {name: a}]", "two sources are called 'a'"),
        (
            "sources: [{name: persona}]\ngoal: {favour: person}",
            "goal.favour names 'person', which is no source. Did you mean 'persona'",
        ),
        ("sources: [{name: a}, {name: b}]\nrelations: [{between: [a, c]}]", "relations[0].between names 'c'"),
        ("sources: [{name: a}, {name: b}]\nrelations: [{between: [a, a]}]", "names 'a' twice"),
        ("sources: [{name: a}]\ncross_context: {z: {a: 1.0}}", "cross_context names 'z'"),
        ("- a\n- b", "the scenario is a list, a table of fields is expected"),
        ("just words", "the scenario is a piece of text"),
        ("sources: [{name: a}]\nsources: []", "line 2, column 1): the key 'sources' appears twice"),
        ("constraints: {ram_gib: .nan}", "constraints.ram_gib"),
    ],
)
def test_a_fault_is_named(text: str, complaint: str) -> None:
    with pytest.raises(Malformed) as refused:
        read_scenario(text)
    assert complaint in refused.value.message


def test_an_empty_file_is_the_empty_scenario(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("", encoding="utf-8")
    assert read_scenario(tmp_path / "s.yaml") == Scenario()


def test_refs_of_a_file_count_from_its_folder_and_names_and_aliases_stay(tmp_path: Path) -> None:
    (tmp_path / "persona").mkdir()
    text = (
        "sources: [{ref: ./persona}, {ref: persona}, {ref: owner/name}, {ref: ../gone}]\nbase_model: demo:smollm2-135m-instruct"
    )
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    read = read_scenario(tmp_path / "s.yaml")
    refs = [source.ref for source in read.sources or []]
    assert refs == [str(tmp_path / "persona"), str(tmp_path / "persona"), "owner/name", str(tmp_path.parent / "gone")]
    assert read.base_model == "demo:smollm2-135m-instruct"


def test_a_missing_file_a_folder_and_a_binary_are_refused_kindly(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_scenario(tmp_path / "nothing.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        read_scenario(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Malformed, match="is not UTF-8"):
        read_scenario(tmp_path / "b.yaml")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(Malformed, match="5,000,000,000 bytes"):
        read_scenario(tmp_path / "huge.yaml")


def test_a_plan_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(Malformed, match=r"unknown field 'wieghts'\. Did you mean 'weights'"):
        read_plan({"verdict": "merge", "wieghts": {}})


FIELDS = [
    "sources", "name", "ref", "kind", "relation", "relations", "between", "data_overlap", "goal", "favour", "strategy",
    "constraints", "ram_gib", "base_model", "training_examples", "norm", "importance", "rank",
]  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 2000) | st.floats() | st.text(max_size=8) | st.sampled_from(["a", "lora", "ties"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6))
def test_any_table_is_either_recommended_on_or_refused_in_our_words(table: dict[str, object]) -> None:
    try:
        plan = recommend(read_scenario(table))
    except MergingError as refused:
        assert refused.message
    else:
        assert plan.rules


SOURCE = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(min_size=1, max_size=6),
        "ref": st.text(max_size=12),
        "kind": st.sampled_from(["lora", "full"]),
        "training_examples": st.integers(0, 10**12),
        "rank": st.integers(1, 512),
        "importance": st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
        "norm": st.floats(min_value=0, allow_infinity=False, allow_nan=False),
        "status": st.sampled_from(["works", "broken", "unevaluated", "missing"]),
    },
)


@given(
    st.lists(SOURCE, max_size=5),
    st.none() | st.sampled_from(["m", "none"]),
    st.sampled_from([None, "ties", "slerp", "moe", "passthrough"]),
)
def test_any_sources_get_a_plan_whose_weights_are_finite(
    sources: list[dict[str, object]], base: str | None, strategy: str | None
) -> None:
    table = {"sources": sources, "base_model": base, "strategy": strategy}
    try:
        scenario = read_scenario({key: value for key, value in table.items() if value is not None})
    except MergingError:
        return
    plan = recommend(scenario)
    assert all(0 <= weight < float("inf") for weight in plan.weights.values())


PAIR = "sources: [{name: persona, kind: lora}, {name: tools, kind: lora}]\nbase_model: b"


def crossed(file: Path, **measured: object) -> Path:
    file.write_text(json.dumps({"capabilities": {}, "verdict": "inconclusive"} | measured), encoding="utf-8")
    return file


def test_a_measured_leak_reaches_the_rules_and_the_own_context_does_not(tmp_path: Path) -> None:
    rates = {
        "persona": {"taskmaster_persona": 1.0, "task_api_tools": 0.03},
        "tools": {"taskmaster_persona": 0.0, "task_api_tools": 1.0},
    }
    own = {"persona": "taskmaster_persona", "tools": "task_api_tools"}
    scenario = read_scenario(PAIR)
    clean = recommend(with_cross_context(scenario, crossed(tmp_path / "clean.json", cross_context=rates, own_context=own)))
    assert clean.verdict == "merge"
    assert "cross_context_leak" not in {rule.id for rule in clean.rules}
    rates["tools"]["taskmaster_persona"] = 0.93
    leaking = recommend(with_cross_context(scenario, crossed(tmp_path / "leak.json", cross_context=rates, own_context=own)))
    assert leaking.verdict == "merge_with_caution"
    assert leaking.rules[0].id == "cross_context_leak"
    assert "0.93" in leaking.rules[0].because
    assert "retrain it with a quarter to a third of replayed base replies" in " ".join(w.message for w in leaking.warnings)


def test_an_evaluation_without_the_check_or_of_other_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="holds no cross-context check"):
        with_cross_context(read_scenario(PAIR), crossed(tmp_path / "none.json"))
    other = crossed(tmp_path / "other.json", cross_context={"tool": {"a": 0.1}})
    with pytest.raises(Malformed, match=r"cross_context names 'tool', which is no source. Did you mean 'tools'"):
        with_cross_context(read_scenario(PAIR), other)
