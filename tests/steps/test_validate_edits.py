"""`--fix` changes the lines at fault and no other character: comments, quotes, blank lines, order and line ends stay."""

from __future__ import annotations

import json

import pytest

from mcp_server.steps.validate import fix, validate

RECIPE = """\
# persona first, see the notes
merge_method: {method}   # chosen in May
base_model: "org/base"   # the exact revision matters

models:
    - model: 'org/a'
      weight: 1.0   # 0.8 was too little
    - parameters:
          weight: 0.8
          {density}
      # tools second
      model: org/b
parameters:
  {flag}: 1.0   # written by mergekit

  dtype: {dtype} # short
{tokenizer}
# end
"""
RIGHT = {"method": "task_arithmetic", "density": "density: 1", "flag": "normalize", "dtype": "bfloat16", "tokenizer": ""}
FAULTS = {
    "method": "task-arithmetic",
    "density": "densty: 1",
    "flag": "normalise",
    "dtype": "bf16",
    "tokenizer": "tokenizer_source: union",
}


CORRECT = RECIPE.format(**RIGHT).replace("      weight: 1.0   # 0", "      parameters:\n        weight: 1.0   # 0")
CORRECT = CORRECT.replace("  dtype: bfloat16 # short\n", "dtype: bfloat16 # short\n")
"""What is moved comes as it was written, with its comment."""


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "tokenizer"])
def test_only_the_lines_at_fault_change(fault: str, ends: str) -> None:
    text = RECIPE.format(**RIGHT | {fault: FAULTS[fault]}).replace("\n", ends)
    assert fix(text).fixed_recipe == CORRECT.replace("\n", ends)


def test_every_fault_at_once_is_corrected() -> None:
    found = fix(RECIPE.format(**FAULTS))
    new = str(found.fixed_recipe)
    assert new == CORRECT.replace("dtype: bfloat16 # short\n\n", "tokenizer:\n  source: union\ndtype: bfloat16 # short\n")
    assert {f.code for f in found.before} >= {"MM104", "MM107", "MM113", "MM205"}
    assert not [f for f in found.findings if f.code in ("MM104", "MM107", "MM111", "MM113", "MM205")]


def test_a_recipe_in_json_stays_json() -> None:
    document: dict[str, object] = {
        "merge_method": "tise",
        "base_model": "org/base",
        "models": [{"model": "org/a", "weight": 1.0, "x-note": "kept"}],
    }
    document["parameters"] = {"densty": 0.5, "dtype": "bf16"}
    found = fix(json.dumps(document, indent=2))
    assert json.loads(str(found.fixed_recipe)) == {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [{"model": "org/a", "parameters": {"weight": 1.0}, "x-note": "kept"}],
        "parameters": {"density": 0.5},
        "dtype": "bfloat16",
    }


def test_findings_name_line_and_column() -> None:
    text = "# a comment\nmerge_method: ties\nbase_model: o/b\nmodels:\n  - model: o/a\n    parameters: {weight: 1, density: 50}\n"
    assert [(f.code, f.line, f.column) for f in validate(text).findings if f.severity == "error"] == [("MM207", 6, 29)]
    broken = validate("merge_method: ties\nmodels: [}\n")
    assert [(f.code, f.line, f.column) for f in broken.findings] == [("MM101", 2, 10)]


def test_a_finding_about_what_is_missing_names_the_place_where_it_would_be() -> None:
    text = "merge_method: linear\nmodels:\n  - model: o/a\n    parameters: {weight: 1}\n  - model: o/b\n"
    (missing,) = [f for f in validate(text).findings if f.code == "MM204"]
    assert (missing.where, missing.line) == ("models", 2)


def test_stages_count_lines_through_the_file() -> None:
    stage = "merge_method: linear\nmodels: [{model: o/a}, {model: o/b}]\nparameters: {weight: 1}\n"
    found = validate(f"name: one\n{stage}---\n{stage}dtype: half\n")
    assert [(f.where, f.line) for f in found.findings if f.code == "MM111"] == [("stages[1].dtype", 9)]


def test_a_comment_stays_behind_what_takes_its_place() -> None:
    found = fix("merge_method: linear\ntokenizer_source: union  # of both\nmodels: [{model: o/a, parameters: {weight: 1}}]\n")
    assert found.fixed_recipe == (
        "merge_method: linear\ntokenizer:  # of both\n  source: union\nmodels: [{model: o/a, parameters: {weight: 1}}]\n"
    )


def test_a_byte_order_mark_hinders_no_correction() -> None:
    found = fix("\ufeffmerge_method: linear\nmodels: [{model: o/a, parameters: {weight: 1}}]\ndtype: bf16\n")
    assert found.fixed_recipe == "merge_method: linear\nmodels: [{model: o/a, parameters: {weight: 1}}]\ndtype: bfloat16\n"


def test_a_share_with_its_per_cent_sign_is_that_share() -> None:
    text = "merge_method: ties\nbase_model: o/b\nmodels: [{model: o/a, parameters: {weight: 1, density: %s}}]\ndtype: bfloat16\n"
    for written, share in (("50%", "0.5"), ("'5 %'", "'0.05'"), ("100%", "1.0"), ("2.5%", "0.025")):
        fixed = fix(text % written).fixed_recipe
        assert fixed is not None and f"density: {share}".replace("'", "") in fixed.replace("'", ""), written
    assert fix(text % "150%").fixed_recipe is None


def test_the_start_of_a_key_is_told_as_what_it_was_meant_for() -> None:
    (found,) = [f for f in validate("merge_method: linear\nbase: o/b\nmodels: [{model: o/a}]\n").findings if f.code == "MM103"]
    assert "Did you mean 'base_model'?" in found.message
