"""A recipe's chat template beside mergekit: what transformers reads of both outputs is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from benchmarks.recipes.models import write_models
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed, NotFound, Unsupported
from mcp_server.steps.verify import verify
from mcp_server.workers.chat_templates import named_template

SHORT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
LONG = "\n{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}\n"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """BASE has SHORT in its settings, A and C have LONG (in a file; among others), B has none."""
    found = write_models(tmp_path / "models")
    settings("BASE", found, chat_template=SHORT)
    (Path(found["A"]) / "chat_template.jinja").write_text(LONG, encoding="utf-8")
    settings("A", found, chat_template=SHORT)  # the file comes first
    settings("C", found, chat_template=[{"name": "default", "template": LONG}, {"name": "tool_use", "template": SHORT}])
    return found


def settings(name: str, models: dict[str, str], **more: Any) -> None:
    path = Path(models[name]) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | more), encoding="utf-8")


def recipe(models: dict[str, str], template: str, names: str = "ABC", base: str = "BASE") -> str:
    entries = [{"model": models[name], "parameters": {"weight": 0.5}} for name in names]
    table = {"merge_method": "task_arithmetic", "base_model": models[base], "models": entries, "dtype": "float32"}
    return yaml.safe_dump(table | {"chat_template": template})


def ours(text: str, out: Path) -> Path:
    request = Request(text, out, out.with_suffix(".journal"), threads=1, chat_template=named_template(text))
    merge(request, lambda *_: None)
    return out


def theirs(text: str, out: Path) -> Path:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), MergeOptions(quiet=True))
    return out


def template(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("auto", "ABC"), ("auto", "B"), ("alpaca", "AB"), ("chatml", "AB"), ("exaone", "AB"), ("llama3", "C"), ("mistral", "AB"),
        (LONG, "A"),
    ],
)  # fmt: skip
def test_the_output_has_the_template_that_mergekit_gives_it(
    wanted: str, names: str, models: dict[str, str], tmp_path: Path
) -> None:
    text = recipe(models, wanted, names)
    assert template(ours(text, tmp_path / "ours")) == template(theirs(text, tmp_path / "theirs"))


def test_auto_takes_what_most_models_have_and_no_reader_finds_another(models: dict[str, str], tmp_path: Path) -> None:
    out = ours(recipe(models, "auto", base="C"), tmp_path / "out")
    assert (out / "chat_template.jinja").read_text("utf-8") == LONG.strip()
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text("utf-8"))
    assert template(out) == LONG.strip()


def test_auto_leaves_the_tokenizer_as_it_is_where_no_model_has_a_template(models: dict[str, str], tmp_path: Path) -> None:
    out = ours(recipe(models, "auto", "B", base="TIED"), tmp_path / "out")
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wanted", ["auto", LONG, "chatml"])
def test_verify_takes_the_template_that_mergekit_gave_and_no_other(wanted: str, models: dict[str, str], tmp_path: Path) -> None:
    text = recipe(models, wanted)
    out = theirs(text, tmp_path / "theirs")
    assert verify(out, recipe=text).verdict == "verified"
    if wanted != "chatml":
        (out / "chat_template.jinja").write_text(SHORT, encoding="utf-8")
        found = verify(out, recipe=text)
        assert [check.detail for check in found.checks if check.passed is False] == [
            "the chat template is not the one that the recipe asks for"
        ]


def test_an_unknown_name_is_refused_before_anything_is_written(models: dict[str, str], tmp_path: Path) -> None:
    text = recipe(models, "chat-ml")
    with pytest.raises(Malformed, match=r"no chat template named 'chat-ml'.* 'chatml'"):
        merge(Request(text, tmp_path / "out", tmp_path / "journal"), lambda *_: None)
    with pytest.raises(NotFound, match="mergekit has no chat template named 'chat-ml'"):
        named_template(text)
    with pytest.raises(Unsupported, match="'chatml' is mergekit's, and was not given"):
        merge(Request(recipe(models, "chatml"), tmp_path / "out", tmp_path / "journal"), lambda *_: None)
    assert not (tmp_path / "out").exists()
