"""The catalogue loads whole, and a file that is wrong is refused in words that a student can act on."""

import shutil
from pathlib import Path

import pytest

from mcp_server import catalog
from mcp_server.catalog.loader import read_rules
from mcp_server.catalog.models import Range
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.errors import NotFound
from mcp_server.formats.recipe.parameters import REQUIRED
from mcp_server.recompute.inputs import SPARSE
from mcp_server.recompute.pass_over import ADDITIVE
from mcp_server.steps.verify.landing import RANDOM
from mcp_server.system import paths

METHODS = [
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear",
    "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram", "ramplus_tl",
    "sce", "slerp", "task_arithmetic", "ties",
]  # fmt: skip
COUNT_IS_ZERO = "{signal: source_count, op: is, value: 0}"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return Path(shutil.copytree(paths.RULES, tmp_path / "rules"))


def problems(rules: Path) -> list[str]:
    return [f"{file}: {text}" for file, text in read_rules(rules).problems]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_all_twenty_methods_and_the_two_other_runners_are_described() -> None:
    assert sorted(catalog.load().strategies) == sorted([*METHODS, "moe", "keep_ends", "lines"])


def test_the_shipped_files_have_no_problem(rules: Path) -> None:
    assert problems(rules) == []


def test_every_number_says_why_and_where_it_comes_from() -> None:
    for threshold in catalog.load().thresholds.values():
        assert threshold.why
        assert threshold.source


def test_every_threshold_is_read_by_a_rule_a_strategy_or_the_code() -> None:
    names = catalog.load().thresholds
    data = [path.read_text(encoding="utf-8") for path in paths.RULES.rglob("*.yaml") if path.name != "thresholds.yaml"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths.PACKAGE.rglob("*.py"))
    unread = [name for name in names if f"threshold: {name}}}" not in "\n".join(data) and name not in code]
    assert unread == []


def test_a_threshold_is_its_number() -> None:
    assert catalog.threshold("overlap_retrain") == 0.5


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("strategies/ties.yaml", "idea:", "ideea:", "unknown field 'ideea'. Did you mean 'idea'?"),
        ("strategies/ties.yaml", "idea:", "ideea:", "the field 'idea' is missing"),
        ("strategies/ties.yaml", "base: required", "base: needed", "inputs.base: Input should be 'required'"),
        ("strategies/ties.yaml", "id: ties", "id: tie", "its id is 'tie'; name it like the file: ties"),
        (
            "strategies/ties.yaml",
            "range: {at_least: 0, at_most: 1}",
            "range: {above: 0.6, at_most: 1}",
            "0.5 is outside (0.6, 1]",
        ),
        ("strategies/ties.yaml", "id: ties", "id: ties\nid: ties", "line 2, column 1): the key 'id' appears twice"),
        (
            "strategies/ties.yaml",
            "threshold: density_start",
            "threshold: density",
            "there is no threshold 'density'. Did you mean",
        ),
        (
            "decision.yaml",
            COUNT_IS_ZERO,
            "{signal: source_cnt, op: is, value: 0}",
            "there is no signal 'source_cnt'. Did you mean 'source_count'",
        ),
        ("decision.yaml", "choose: slerp", "choose: slrp", "there is no strategy 'slrp'. Did you mean 'slerp'"),
        ("decision.yaml", "{threshold: overlap_retrain}", "{threshold: overlap}", "there is no threshold 'overlap'"),
        ("decision.yaml", "op: above, value: {threshold", "op: abovee, value: {threshold", "op: Input should be 'is'"),
        (
            "decision.yaml",
            "a data overlap of {data_overlap} is",
            "a data overlap of {cosine} is",
            "quotes {cosine}, which none of its conditions reads",
        ),
        ("decision.yaml", "- id: overlap_high", "- id: overlap_middle", "the rule 'overlap_middle' is given twice"),
        ("decision.yaml", "verdict: cannot_merge", "verdict: cannot_merge\n  choose: ties", "says 'verdict' and nothing else"),
        ("decision.yaml", COUNT_IS_ZERO, "{signal: source_count, op: below, value: few}", "'below' needs a number, found 'few'"),
        ("decision.yaml", COUNT_IS_ZERO, "{signal: verdict, op: is, value: merge}", "'verdict' is not decided yet"),
        (
            "questions.yaml",
            "signal: capabilities",
            "signal: capability",
            "there is no signal 'capability'. Did you mean 'capabilities'",
        ),
        ("thresholds.yaml", "name: overlap_caution", "name: overlap_retrain", "the threshold 'overlap_retrain' is given twice"),
        ("thresholds.yaml", "source: ", "sauce: ", "unknown field 'sauce'. Did you mean 'source'"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_what_was_meant(rules: Path, file: str, old: str, new: str, complaint: str) -> None:
    edit(rules / file, old, new)
    assert any(problem.startswith(f"{file}: ") and complaint in problem for problem in problems(rules)), problems(rules)


def test_all_mistakes_are_reported_at_once(rules: Path) -> None:
    edit(rules / "strategies" / "ties.yaml", "idea:", "ideea:")
    edit(rules / "strategies" / "linear.yaml", "title:", "titel:")
    files = {problem.split(":")[0] for problem in problems(rules)}
    assert files == {"strategies/ties.yaml", "strategies/linear.yaml"}


def test_a_missing_file_is_a_problem_and_not_a_crash(rules: Path) -> None:
    (rules / "questions.yaml").unlink()
    assert [p.split(":")[0] for p in problems(rules)] == ["questions.yaml"]


def test_an_unknown_strategy_says_what_was_probably_meant() -> None:
    with pytest.raises(NotFound, match="Did you mean 'slerp'"):
        catalog.strategy("slrep")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0.5, ""),
        (1, ""),
        (-0.1, "-0.1 is outside [0, 1]"),
        (1.5, "1.5 is outside [0, 1]"),
        ([0.2, 1.2], "1.2 is outside [0, 1]"),
        ([], "the list is empty"),
        (True, "True is not a number"),
        ("0.5", "'0.5' is not a number"),
        (float("nan"), "nan is not finite"),
    ],
)
def test_a_parameter_says_why_a_value_is_not_legal(value: object, problem: str) -> None:
    density = catalog.strategy("ties").parameter("density")
    assert density is not None
    assert density.problem(value) == problem


def test_a_range_prints_as_mathematicians_write_it() -> None:
    assert [str(Range(above=0, at_most=1)), str(Range(at_least=0)), str(Range(below=2))] == ["(0, 1]", "[0, ∞)", "(−∞, 2)"]


def test_exactly_the_methods_that_add_whole_changes_are_exact_on_adapters_alone() -> None:
    adding = {s.id for s in catalog.load().strategies.values() if s.deltas == "added" and s.sparsify == "none"}
    assert (
        adding == {s.id for s in catalog.load().strategies.values() if s.adapter_space} == {"linear", "task_arithmetic", "lines"}
    )


def test_what_a_method_sparsifies_it_has_a_density_for() -> None:
    for strategy in catalog.load().strategies.values():
        if strategy.sparsify != "none":
            assert strategy.parameter("density") is not None
            assert strategy.deltas != "none"


def test_the_engine_takes_its_parameters_from_here() -> None:
    for name, signature in SIGNATURES.items():
        mine = {p.name: p.default for p in catalog.strategy(name).parameters if not p.required}
        theirs = {
            key: default for key, (_, default) in {**signature.source, **signature.shared}.items() if default is not REQUIRED
        }
        assert mine == theirs


def test_what_recomputes_a_merge_by_tables_of_its_own_agrees() -> None:
    known = catalog.load().strategies.values()
    assert {s.merge_method for s in known if s.deltas == "added" and s.sparsify == "none"} == ADDITIVE
    assert {s.id for s in known if s.random} == RANDOM
    assert {s.id for s in known if s.sparsify != "none"} == set(SPARSE)
