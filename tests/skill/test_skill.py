"""The skill is well formed, affordable, true to the tools it names, and whole without them."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SKILL = ROOT / "skills" / "model-merging"
TEXT = (SKILL / "SKILL.md").read_text(encoding="utf-8")
FRONT, BODY = TEXT.split("---\n", 2)[1:]
TOOLS = {tool["name"] for tool in json.loads((ROOT / "tests/server/contract.json").read_text(encoding="utf-8"))["tools"]}
EVALS = {
    name: json.loads((SKILL / "evals" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("triggers", "questions", "tasks")
}
REFERENCES = {"strategies", "templates", "ram", "lora", "moe-and-frankenmerges", "evaluation", "distillation", "deployment",
              "troubleshooting"}  # fmt: skip


def tokens(text: str) -> int:
    """More than any tokenizer in use needs for English and Markdown: a token for every five letters and every sign."""
    return len(re.findall(r"[A-Za-z]{1,5}|\d{1,2}|[^\sA-Za-z\d]", text))


def test_the_frontmatter_is_what_the_specification_allows():
    front = yaml.safe_load(FRONT)
    assert set(front) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert front["name"] == SKILL.name and len(front["name"]) <= 64
    assert len(front["description"]) <= 1024 and len(front["compatibility"]) <= 500


def test_the_description_says_what_when_and_when_not():
    description = yaml.safe_load(FRONT)["description"]
    for word in ("merg", "Use it whenever", "LoRA", "mergekit", "RAM", "retrain", "Not for training", "serving", "stacking"):
        assert word in description, word


def test_the_body_is_short_enough_to_be_read_whole():
    assert len(BODY.splitlines()) < 500
    assert tokens(TEXT) < 5_000


def test_references_are_one_level_deep_and_all_named():
    found = {path.stem for path in (SKILL / "references").iterdir()}
    assert found == REFERENCES
    assert set(re.findall(r"\]\(references/([a-z-]+)\.md\)", BODY)) == REFERENCES
    for path in (SKILL / "references").glob("*.md"):
        links = re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
        assert links == [], f"{path.name} sends the reader on to {links}"


@pytest.mark.parametrize("path", sorted(SKILL.rglob("*.md")), ids=lambda p: p.name)
def test_every_tool_that_a_text_calls_exists(path):
    called = set(re.findall(r"`([a-z]+_[a-z_]+)\(", path.read_text(encoding="utf-8")))
    assert called <= TOOLS, called - TOOLS


def test_tools_are_named_bare_because_their_prefix_depends_on_the_client():
    assert "mcp__" not in TEXT


def test_the_path_is_in_the_order_that_an_expert_works():
    path = ["inspect_models(", "recommend_strategy(", "render_config(", "validate_config(", "estimate_ram(", "launch_merge(",
            "verify_merge(", "evaluate_merge(", "write_report("]  # fmt: skip
    places = [BODY.index(call) for call in path]
    assert places == sorted(places)
    assert BODY.index("merge at all") < BODY.index("Choose the strategy") < BODY.index("Workflow with tools")


def test_every_recipe_in_the_texts_is_yaml_with_a_known_shape():
    count = 0
    for path in sorted(SKILL.rglob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            for recipe in yaml.safe_load_all(block):
                assert {"merge_method", "experts", "stages"} & set(recipe) or "models" in recipe, f"{path.name}: {block[:200]}"
                count += 1
    assert count >= 12


def test_the_skill_works_alone():
    for words in ("pip install", "mergekit-yaml recipe.yml", "--lora-merge-cache", "lm_eval"):
        assert words in BODY, words


def test_output_requirements_and_failure_rules_are_there():
    for words in (
        "merge config",
        "source inventory",
        "evaluation comparison",
        "method rationale",
        "architecture hash",
        "**10 %**",
        "**2×**",
    ):
        assert words in BODY, words


def test_half_of_the_forty_trigger_queries_are_near_misses():
    queries = EVALS["triggers"]["queries"]
    assert len({q["query"] for q in queries}) == 40
    assert sum(q["should_trigger"] for q in queries) == 20


def test_ten_questions_have_one_stable_answer_each():
    questions = EVALS["questions"]["questions"]
    assert len({q["id"] for q in questions}) == 10
    for question in questions:
        accepted = question.get("accept") or question["accept_all"]
        assert any(a.lower() in question["answer"].lower() for a in accepted), question["id"]


def test_questions_point_at_read_only_tools():
    named = {tool for q in EVALS["questions"]["questions"] for tool in q["tools"] if not tool.startswith("resource ")}
    assert named <= TOOLS


def test_twelve_tasks_each_have_a_checker():
    listing = (SKILL / "evals" / "checker.py").read_text(encoding="utf-8")
    names = [task["id"] for task in EVALS["tasks"]["tasks"]]
    assert len(names) == 12 and all(f'"{name}": ' in listing for name in names)
