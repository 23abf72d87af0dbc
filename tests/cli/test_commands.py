"""The command line: exit codes, JSON on stdout and nothing else, errors that say what to do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.cli.knowledge import _is_of, write_new
from mcp_server.cli.merging import output_path
from mcp_server.errors import OutputExists
from tests.tiny import linear_recipe, write_adapter, write_model

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A base, two adapters of it, and a recipe that merges them."""
    base = write_model(tmp_path / "base")
    write_adapter(tmp_path / "persona", base, rank=2, seed=1)
    write_adapter(tmp_path / "tools", base, rank=4, seed=2)
    scenario = {
        "sources": [
            {"name": "persona", "ref": "./persona", "kind": "lora", "training_examples": 200, "status": "works"},
            {"name": "tools", "ref": "./tools", "kind": "lora", "training_examples": 500, "status": "works"},
        ],
        "base_model": "./base",
        "relation": {"data_overlap": 0.1, "capabilities": "complementary", "similarity": "distinct", "same_base": True},
        "constraints": {"ram_gib": 12},
    }
    (tmp_path / "scenario.yaml").write_text(json.dumps(scenario), encoding="utf-8")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    """Exit code and the parsed JSON of a command; that stdout is JSON and nothing else is part of the claim."""
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments] + ["--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_path_from_inspect_to_a_verified_merge(
    sources: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources)
    code, inspection = answer(capsys, "inspect", "./persona", "./tools", "--base", "./base")
    assert (code, inspection["compatible"]) == (0, True)
    assert [source["kind"] for source in inspection["sources"]] == ["full", "lora", "lora"]
    code, plan = answer(capsys, "recommend", "scenario.yaml", "-o", "plan.yaml")
    assert (code, plan["strategy"]["id"]) == (0, "ties")
    code, rendered = answer(capsys, "render", "plan.yaml", "-o", "recipe.yml", "--set", "sources.persona.weight=0.5")
    assert code == 0
    assert "weight: 0.5" in rendered["recipe"]
    code, validation = answer(capsys, "validate", "recipe.yml")
    assert (code, validation["ok"]) == (0, True)
    code, estimate = answer(capsys, "estimate", "recipe.yml", "--ram-gib", 12)
    assert (code, estimate["engines"]["stream"]["fits"]) == (0, True)
    code, merged = answer(capsys, "merge", "recipe.yml", "merged", "--engine", "stream", "--seed", 7)
    assert (code, merged["state"], merged["engine"], merged["seed"]) == (0, "succeeded", "stream", 7)
    code, again = answer(capsys, "merge", "recipe.yml", "merged", "--engine", "stream")
    assert (code, again["error"]["type"]) == (2, "OutputExists")
    code, listed = answer(capsys, "jobs")
    assert (code, [job["job_id"] for job in listed["jobs"]]) == (0, [merged["job_id"]])
    code, log = answer(capsys, "logs", merged["job_id"])
    assert (code, log["job_id"]) == (0, merged["job_id"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "nothing-here"], 2, "nothing-here"),
        (["inspect", "."], 2, "adapter_config.json"),
        (["recommend", "scenario-with-typo.yaml"], 2, "base_model"),
        (["merge", "recipe.yml", "out"], 2, "recipe.yml"),
        (["merge", "broken.yml", "out"], 2, "line 2, column 1"),
        (["validate", "no-weight.yml"], 1, "weight"),
        (["status", "merge-0"], 2, "merge-0"),
        (["merge", "no-weight.yml", "out", "--shard-size", "5 parsecs"], 2, "5 parsecs"),
        (["verify", "nothing-here"], 2, "nothing-here"),
        (["mrege"], 2, "mrege"),
        (["merge"], 2, "recipe"),
        (["estimate", "no-weight.yml", "--ram-gib", "much"], 2, "ram"),
    ],
)
def test_bad_input_says_what_was_found_and_writes_nothing(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "scenario-with-typo.yaml").write_text("base_modle: x\n", encoding="utf-8")
    (tmp_path / "broken.yml").write_text("models: [\n", encoding="utf-8")
    (tmp_path / "no-weight.yml").write_text("merge_method: linear\nmodels:\n- model: a\n- model: b\n", encoding="utf-8")
    assert cli.run(arguments) == code
    shown = capsys.readouterr()
    assert said in re.sub(r"\s+", " ", shown.out + shown.err)
    assert not (tmp_path / "out").exists()


def test_sizes_are_read_as_people_write_them() -> None:
    from mcp_server.cli.merging import parse_size

    sizes = {"5GB": 5 * 10**9, "500 MB": 5 * 10**8, "1GiB": 2**30, "1000000": 10**6}
    assert {text: parse_size(text) for text in sizes} == sizes


def test_every_command_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^model-merging (.+?)(?:\s+#.*)?$", README.read_text(encoding="utf-8"), re.M)
    assert len(lines) >= 9
    for line in lines:
        command, *rest = shlex.split(line)
        assert cli.run([command, "--help"]) == 0, line
        offered = capsys.readouterr().out
        for option in (word for word in rest if word.startswith("--")):
            assert option in offered, f"{option} of: {line}"


@pytest.mark.parametrize(
    ("kind", "own"), [("scenario", "sources: []\n"), ("plan", "verdict: merge\n"), ("recipe", "merge_method: linear\n")]
)
def test_overwriting_a_file_replaces_one_of_the_same_kind_only(tmp_path, store, monkeypatch, kind, own):
    """So no command replaces what it has read: `recommend s.yaml -o s.yaml`, `render plan.yaml -o plan.yaml`."""
    monkeypatch.chdir(tmp_path)
    others = ("sources: []\n", "verdict: merge\nsources: []\n", "models: []\n", "- a\n- b\n", "print('a year of work')\n")
    for before in others:
        if _is_of(kind, before):
            continue
        Path("it.yaml").write_text(before, encoding="utf-8")
        with pytest.raises(OutputExists, match=f"is not a {kind} of ours"):
            write_new(Path("it.yaml"), own, kind, overwrite=True)
        assert Path("it.yaml").read_text(encoding="utf-8") == before
    Path("it.yaml").write_text(own, encoding="utf-8")
    with pytest.raises(OutputExists, match="exists already"):
        write_new(Path("it.yaml"), f"# new\n{own}", kind)
    write_new(Path("it.yaml"), f"# new\n{own}", kind, overwrite=True)
    assert Path("it.yaml").read_text(encoding="utf-8") == f"# new\n{own}"


@pytest.mark.parametrize("command", ["compare base code chat", "evaluate merged --suite perplexity", "report base", "init ."])
def test_no_output_file_goes_into_the_programs_own_memory(store, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "code", "chat", "merged")):
        write_model(tmp_path / name, seed)
    for place in (store / "settings.toml", store / "jobs" / "page.html"):
        assert cli.run([*command.split(), "-o", str(place)]) == 2
        assert "the job store" in capsys.readouterr().err
        assert not place.exists()
    (tmp_path / "link.html").symlink_to(tmp_path / "base" / "config.json")
    assert cli.run([*command.split(), "-o", "link.html"]) == 2


def test_an_output_that_is_a_link_is_refused_and_home_is_not_made_anew(sources, store, monkeypatch, capsys):
    monkeypatch.chdir(sources)
    monkeypatch.setenv("HOME", str(sources / "home"))
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("recipe.yml").write_text(linear_recipe(sources / "base"), encoding="utf-8")
    write_model(sources / "code", 1)
    for command in ("merge recipe.yml link --overwrite", "extract base code link --overwrite", "export base link --to vllm"):
        assert cli.run(command.split()) == 2
        assert "is a symbolic link" in capsys.readouterr().err
    assert output_path(Path("~/merged")) == sources / "home" / "merged"
    assert output_path(Path("link")) == sources / "link"
    assert output_path(Path("link/inside")) == sources / "real" / "inside"
    assert output_path(Path("real/..")) == sources
