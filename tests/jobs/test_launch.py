"""What is checked before a merge becomes a job, and what the request says when it does."""

import json
import re

import pytest

from mcp_server import jobs
from mcp_server.errors import BadInput, DoesNotFit, Malformed, NotAllowed, NotAModel, NotFound, OutputExists, Unsupported
from mcp_server.jobs import store as stored
from mcp_server.schemas.job import (
    AskRequest,
    CompareRequest,
    EvaluateRequest,
    ExportRequest,
    FetchRequest,
    MergeRequest,
    PublishRequest,
    SweepRequest,
    VerifyRequest,
)
from mcp_server.system.policy import Policy
from tests import tiny
from tests.fake_worker import FAKE


@pytest.fixture
def model(store, tmp_path):
    return tiny.write_model(tmp_path / "model")


def start(recipe, out, policy=None, **request):
    return jobs.start_merge(MergeRequest(recipe=recipe, out=str(out), **request), policy=policy, worker=FAKE)


def request_of(job_id):
    return json.loads((stored.find(job_id) / "request.json").read_text(encoding="utf-8"))


def nothing_was_written(tmp_path, *known):
    return sorted(p.name for p in tmp_path.iterdir()) == sorted(["home", "model", *known]) and jobs.list_jobs().total == 0


def test_relative_paths_start_at_the_recipes_folder(model, tmp_path):
    started = start(tiny.linear_recipe("model"), tmp_path / "out", recipe_folder=str(tmp_path))
    assert str(model) in request_of(started.job_id)["parameters"]["recipe"]


def test_a_recipe_of_absolute_paths_is_kept_byte_for_byte(model, tmp_path):
    recipe = "# my comment\n" + tiny.linear_recipe(model)
    assert request_of(start(recipe, tmp_path / "out").job_id)["parameters"]["recipe"] == recipe


def test_a_seed_is_drawn_when_none_is_given_and_kept_when_one_is(model, tmp_path):
    drawn = request_of(start(tiny.linear_recipe(model), tmp_path / "a").job_id)["parameters"]["seed"]
    assert 0 <= drawn < 2**31
    assert request_of(start(tiny.linear_recipe(model), tmp_path / "b", seed=0).job_id)["parameters"]["seed"] == 0


def test_auto_takes_the_streaming_engine_when_it_covers_the_recipe(model, tmp_path):
    assert start(tiny.linear_recipe(model), tmp_path / "out").engine == "stream"


def test_auto_takes_mergekit_for_what_only_mergekit_does(model, tmp_path):
    other = tiny.write_model(tmp_path / "other", seed=2)
    recipe = tiny.linear_recipe(model, other).replace("bfloat16", "float64")
    assert start(recipe, tmp_path / "out").engine == "mergekit"


def test_a_budget_that_no_engine_fits_is_an_answer_with_options(model, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    with pytest.raises(DoesNotFit, match=r"stream needs .* mergekit needs .* there are 0\.00 GiB of memory") as refused:
        start(tiny.linear_recipe(model), tmp_path / "out", ram_gib=0.001)
    assert "adapter" in refused.value.next_step
    assert nothing_was_written(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        ("merge_method: linear\nmodels:\n  - model: /nowhere/model\n    parameters: {weight: 1}\n", NotFound),
        ("merge_method: linear\nmodels: [", Malformed),
        ("just text", Malformed),
        ("", Malformed),
        ("a: !!python/object/apply:os.system [id]", Malformed),
    ],
)
def test_a_recipe_that_cannot_be_run_writes_nothing(recipe, error, model, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    with pytest.raises(error):
        start(recipe, tmp_path / "out")
    assert nothing_was_written(tmp_path)


def test_a_folder_that_is_no_model_writes_nothing(model, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAModel):
        start(tiny.linear_recipe(tmp_path / "empty"), tmp_path / "out")
    assert nothing_was_written(tmp_path, "empty")


def test_a_file_in_the_place_of_the_output_is_not_overwritten(model, tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(OutputExists):
            start(tiny.linear_recipe(model), tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": ""},
        {"config.json": '{"name": "webapp"}', "src/thesis.txt": "", ".git/HEAD": "ref: refs/heads/main"},
        {"config.json": "{}", "model.safetensors": ""},  # a fine-tune that somebody trained
        {"merge_provenance.json": '{"of": "another tool"}', "model.safetensors": ""},
        {**tiny.MERGE, "notes.txt": "measured for a week"},
        {**tiny.MERGE, ".git/HEAD": "ref: refs/heads/main"},
        {**tiny.MERGE, "model.safetensors.d/thesis.txt": ""},
    ],
)
def test_overwriting_replaces_nothing_but_our_own_merges(files, model, tmp_path):
    out = tmp_path / "somebodys"
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(OutputExists, match="so it is not replaced"):
        start(tiny.linear_recipe(model), out, overwrite=True)
    assert all((out / name).read_text(encoding="utf-8") == text for name, text in files.items())


def test_the_programs_own_memory_is_no_place_for_an_output(model, store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    inside = [store / "settings.toml", store / "jobs/merge-20261122-000000-aaaa", store / "cache/base/smollm2-135m-instruct"]
    for out in (*inside, store, store.parent, tmp_path / "hub/models--org--name/snapshots/0"):
        for overwrite in (False, True):
            with pytest.raises((NotAllowed, BadInput)):
                start(tiny.linear_recipe(model), out, overwrite=overwrite)


def test_a_name_that_is_too_long_for_the_folder_beside_it_is_refused_at_the_start(model, tmp_path):
    with pytest.raises(BadInput, match="too long"):
        start(tiny.linear_recipe(model), tmp_path / ("n" * 240))


def test_an_output_in_or_around_another_jobs_is_refused_at_the_start(model, tmp_path):
    other = tiny.linear_recipe(tiny.write_model(tmp_path / "elsewhere" / "other"))
    first = start(tiny.linear_recipe(model, script=[{"do": "block"}]), tmp_path / "place" / "out")
    try:
        for out in ("place/out/inner", "place"):
            with pytest.raises(BadInput, match=f"the output of job {first.job_id}"):
                start(other, tmp_path / out)
        with pytest.raises(BadInput, match=f"what job {first.job_id} reads"):
            start(other, model / "sub")
    finally:
        jobs.cancel(first.job_id)


@pytest.mark.parametrize("out", ["model", "model/inside", "."])
def test_an_output_at_inside_or_around_a_source_is_refused(out, model, tmp_path):
    with pytest.raises((BadInput, NotAllowed), match=r"one inside the other|the job store"):
        start(tiny.linear_recipe(model), tmp_path / out, overwrite=True)
    assert (model / "model.safetensors").is_file()


def test_models_and_outputs_outside_the_roots_are_refused(model, tmp_path):
    rules = Policy(roots=(tmp_path / "model", tmp_path / "allowed"))
    with pytest.raises(NotAllowed, match="may not write"):
        start(tiny.linear_recipe(model), tmp_path / "out", rules)
    other = tiny.write_model(tmp_path / "other")
    with pytest.raises(NotAllowed, match="may not read"):
        start(tiny.linear_recipe(other), tmp_path / "allowed" / "out", rules)
    (model / "link").symlink_to(other)
    with pytest.raises(NotAllowed, match="may not read"):
        start(tiny.linear_recipe(model / "link"), tmp_path / "allowed" / "out", rules)


def test_offline_refuses_a_hub_id_at_once_and_by_name(model, tmp_path):
    with pytest.raises(NotFound, match="owner/name is not in the local cache"):
        start(tiny.linear_recipe("owner/name"), tmp_path / "out", Policy(offline=True))


def test_remote_code_is_the_operators_word_not_the_requests(model, tmp_path):
    first = start(tiny.linear_recipe(model), tmp_path / "a")
    second = start(tiny.linear_recipe(model), tmp_path / "b", Policy(trust_remote_code=True))
    assert [request_of(j.job_id)["trust_remote_code"] for j in (first, second)] == [False, True]
    with pytest.raises(ValueError, match="trust_remote_code"):
        MergeRequest(recipe="", out="", trust_remote_code=True)  # type: ignore[call-arg]


def test_a_job_folder_can_be_read_by_its_owner_only(model, tmp_path):
    folder = stored.find(start(tiny.linear_recipe(model), tmp_path / "out").job_id)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "suites", [{"suites": ["./mine"]}, {"suites": ["general", "{root}/mine"]}, {"suite_folders": ["{root}"]}]
)
def test_a_suite_that_brings_code_is_the_operators_word_too(suites, model, store, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text("metric: acc", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    parameters = {key: [text.format(root=tmp_path) for text in texts] for key, texts in suites.items()}
    request = EvaluateRequest(**parameters, against={"one": str(model)})
    with pytest.raises(NotAllowed, match="Python code"):
        jobs.start(request, policy=Policy(roots=(tmp_path,)), worker=FAKE)
    for rules in (Policy(), Policy(roots=(tmp_path,), trust_remote_code=True)):
        assert jobs.start(request, policy=rules, worker=FAKE).state in ("running", "queued", "succeeded")


def test_files_of_prompts_are_data_under_roots_too_and_names_are_looked_up_first(model, store, tmp_path):
    own, more = tmp_path / "own.jsonl", tmp_path / "more.jsonl"
    for file in (own, more):
        file.write_text('{"prompt": "a", "expected": "b"}\n', encoding="utf-8")
    rules = Policy(roots=(tmp_path,))
    models = {"one": str(model)}
    request = EvaluateRequest(suites=[str(own)], data=[str(more)], against=models)
    assert jobs.start(request, policy=rules, worker=FAKE).state in ("running", "queued", "succeeded")
    before = jobs.list_jobs().total
    with pytest.raises(NotFound, match="task_api_tools"):
        jobs.start(EvaluateRequest(suites=["task_api_tool"], against=models), policy=rules, worker=FAKE)
    assert jobs.list_jobs().total == before


@pytest.mark.parametrize(
    ("lines", "request_", "words"),
    [
        ('{"prompt": "a"}', {}, r"line 1: expected is missing"),
        ('{"id": 7, "prompt": "a", "expected": "b"}\n{"id": 7, "prompt": "c", "expected": "d"}', {}, "line 2: id '7' stands on"),
        ('{"prompt": "a", "expected": "b", "split": "dev"}', {"split": "test"}, "has no line in the test split"),
        ('{"prompt": "a", "expected": "b"}', {"suites": ["own"]}, "neither a suite nor a task"),
        ('{"prompt": "a", "expected": "b"}', {"against": {}}, "nothing to measure"),
        ('{"prompt": "a", "expected": "b"}', {"against": {"one": "{root}"}}, "one: .* cannot be measured"),
        ('{"prompt": "a", "expected": "b"}', {"backend": "openai"}, "needs an endpoint"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_a_job_starts(lines, request_, words, model, store, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(lines + "\n", encoding="utf-8")
    wanted = {"data": [str(own)], "against": {"one": str(model)}} | request_
    wanted["against"] = {name: ref.format(root=tmp_path) for name, ref in wanted["against"].items()}
    with pytest.raises(BadInput, match=words) as refused:
        jobs.start(EvaluateRequest(**wanted), worker=FAKE)
    assert refused.value.next_step
    assert jobs.list_jobs().total == 0


def test_an_evaluation_says_how_long_it_takes_before_it_begins(model, store, tmp_path):
    started = jobs.start(EvaluateRequest(suites=["task_api_tools"], limit=8, against={"one": str(model)}), worker=FAKE)
    assert re.fullmatch(r"\d+( s| min)?( to \d+ (s|min))?", started.takes)


def test_what_an_other_kind_of_job_reads_passes_the_policy_too(store, tmp_path):
    rules = Policy(roots=(tmp_path,))
    outside = (
        VerifyRequest(out="/etc"),
        VerifyRequest(out=str(tmp_path), recipe="/etc/passwd"),
        EvaluateRequest(against={"base": "/etc"}),
        EvaluateRequest(sources={"x": "/etc@main"}),
        CompareRequest(base=str(tmp_path), refs=[f"{tmp_path}+/etc"]),
        SweepRequest(plan="/etc/passwd", out=str(tmp_path / "out")),
    )
    for request in outside:
        with pytest.raises(NotAllowed):
            jobs.start(request, policy=rules, worker=FAKE)
    with pytest.raises(BadInput):
        jobs.start(VerifyRequest(out="/tmp/a\x00"), policy=rules, worker=FAKE)


@pytest.fixture
def adapters(model, tmp_path):
    """A linear recipe of two adapters of the model."""
    folders = [tiny.write_adapter(tmp_path / f"lora{rank}", model, rank=rank, seed=rank) for rank in (1, 2)]
    listed = "".join(f"  - {{model: {model}+{folder}, parameters: {{weight: 0.5}}}}\n" for folder in folders)
    return f"merge_method: linear\nmodels:\n{listed}"


def test_an_adapter_output_is_admitted_by_its_own_estimate(adapters, tmp_path):
    job = start(adapters, tmp_path / "out", output="adapter").job_id
    as_model = start(adapters, tmp_path / "model-out").job_id
    assert 50e6 < stored.read(stored.find(job)).estimate_bytes < stored.read(stored.find(as_model)).estimate_bytes


def test_an_adapter_output_needs_no_base_and_fetches_none(adapters, model, tmp_path):
    away = adapters.replace(f"{model}+", "org/elsewhere+")
    job = start(away, tmp_path / "out", Policy(offline=True), output="adapter").job_id
    assert request_of(job)["online"] is False
    with pytest.raises(NotFound, match="org/elsewhere"):
        start(away, tmp_path / "model-out", Policy(offline=True))


def test_an_adapter_output_that_cannot_be_is_refused_before_it_starts(adapters, model, tmp_path):
    with pytest.raises(DoesNotFit, match="stream needs") as caught:
        start(adapters, tmp_path / "out", output="adapter", ram_gib=0.01)
    assert "--output adapter" not in caught.value.next_step
    with pytest.raises(Unsupported, match="mergekit engine does not make adapters"):
        start(adapters, tmp_path / "out", output="adapter", engine="mergekit")
    with pytest.raises(Unsupported, match="is a full model"):
        start(tiny.linear_recipe(model), tmp_path / "out", output="adapter")
    assert jobs.list_jobs().total == 0


def test_a_pinned_revision_of_a_cached_model_becomes_its_own_snapshot(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--owner--name"
    for name, commit, seed in (("main", "a" * 40, 3), ("v2", "b" * 40, 4)):
        tiny.write_model(cached / "snapshots" / commit, seed=seed)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(commit, encoding="utf-8")
    started = start(tiny.linear_recipe(model, "owner/name@v2"), tmp_path / "out")
    recipe = request_of(started.job_id)["parameters"]["recipe"]
    assert (started.engine, f"{cached}/snapshots/{'b' * 40}" in recipe, "@v2" in recipe) == ("stream", True, False)


NO_MERGE = {"missing": NotFound, "file": NotAModel, "empty": NotAModel, "notes": NotAModel}


@pytest.fixture
def no_merge(store, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("buy milk", encoding="utf-8")
    (tmp_path / "file").write_text("buy milk", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("what", NO_MERGE)
@pytest.mark.parametrize(
    "make",
    [
        lambda path, _: VerifyRequest(out=path),
        lambda path, _: EvaluateRequest(out=path),
        lambda path, _: AskRequest(out=path, text="hello"),
        lambda path, _: CompareRequest(base=path, refs=[path]),
        lambda path, base: CompareRequest(base=base, refs=[path]),
        lambda path, base: VerifyRequest(out=base, base=path),
        lambda path, base: VerifyRequest(out=base, sources=[path]),
        lambda path, base: ExportRequest(out=path, dest=f"{base}-dest", to="vllm"),
        lambda path, _: PublishRequest(out=path, repo="me/mine", yes=True),
        lambda path, base: MergeRequest(recipe=tiny.linear_recipe(base, path), out=f"{base}-out"),
    ],
)
def test_what_is_no_merge_or_model_leaves_no_job_and_no_file(make, what, no_merge):
    base = str(tiny.write_model(no_merge / "model"))
    before = sorted(no_merge.rglob("*"))
    with pytest.raises(BadInput) as refused:
        jobs.start(make(str(no_merge / what), base), worker=FAKE)
    assert str(no_merge / what) in refused.value.message
    assert refused.value.next_step
    assert jobs.list_jobs().total == 0
    assert sorted(path for path in no_merge.rglob("*") if "home" not in path.parts) == before


def test_a_recipe_that_cannot_be_read_is_refused_before_a_verification(model, tmp_path):
    (tmp_path / "broken.yml").write_text("merge_method: [", encoding="utf-8")
    for recipe, error in (("none.yml", NotFound), (".", BadInput), ("broken.yml", Malformed)):
        with pytest.raises(error):
            jobs.start(VerifyRequest(out=str(model), recipe=str(tmp_path / recipe)), worker=FAKE)
    assert jobs.list_jobs().total == 0


def test_a_comparison_of_models_that_do_not_fit_each_other_leaves_no_job(model, tmp_path):
    other = tiny.write_model(tmp_path / "other")
    tiny.write_safetensors(other / "model.safetensors", {"model.norm.weight": ("BF16", [4], tiny.bf16([1.0] * 4))})
    with pytest.raises(BadInput, match=r"is in .*model but not in .*other"):
        jobs.start(CompareRequest(base=str(model), refs=[str(other)]), worker=FAKE)
    assert jobs.list_jobs().total == 0


@pytest.mark.parametrize(
    "name", ["/nowhere", "./nowhere", "two words", "owner/name/more", "model", "owner/name@", "owner/name@../.."]
)
def test_what_no_hub_can_have_or_is_here_already_is_not_fetched(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"is not a hub id|is here already|is no revision"):
        jobs.start(FetchRequest(ref=name), worker=FAKE)
    assert jobs.list_jobs().total == 0
