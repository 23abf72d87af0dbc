"""Merges broken on purpose, each in one way, and the cause that is named; and sound merges, which are accused of nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_server.errors import NotFound
from mcp_server.schemas.evidence import Capability, Check, Evaluation, Interval
from mcp_server.schemas.replies import KeptReplies, PromptReplies
from mcp_server.steps.diagnose import CONSEQUENCES, ROOTS, diagnose, evidence
from mcp_server.steps.evaluate.replies import keep_replies
from mcp_server.steps.verify import landing, verify
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, run, save, write_adapter, write_model
from tests.engine.synthetic import shapes as model_shapes

MODULES = {name.removesuffix(".weight"): shape for name, shape in model_shapes().items() if "_proj.weight" in name}


@dataclass
class Ground:
    """A base with a tokenizer, two fine-tunes and two adapters of it, and a place to merge in."""

    folder: Path
    evidence: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self, name: str, shift: int = 0) -> None:
        words = {f"w{i}": (i + shift) % 20 for i in range(20)}
        text = json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}, "added_tokens": []})
        (self.folder / name / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}"}
        (self.folder / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    def model(self, name: str, tensors: Tensors, dtype: str = "bfloat16") -> str:
        write_model(self.folder / name, tensors, dtype)
        self.tokenizer(name)
        return str(self.folder / name)

    def adapter(self, name: str, seed: int, size: float = 0.05, base: str | None = None) -> str:
        factors = {k: v * (size if "lora_B" in k else 1.0) for k, v in low_rank(seed, MODULES, 2).items()}
        named = base or str(self.folder / "base")
        return f"{self.folder / 'base'}+{write_adapter(self.folder / name, factors, base_model_name_or_path=named)}"

    def tune(self, name: str, seed: int, size: float = 0.05, of: str = "base") -> str:
        return self.model(name, random_tensors(seed, around=load(self.folder / of), size=size))

    def merge(self, *models: str, weights: tuple[float, ...] = (), method: str = "task_arithmetic", **top: Any) -> Path:
        weights = weights or tuple(1.0 if method == "task_arithmetic" else 1 / len(models) for _ in models)
        entries = [{"model": m, "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
        recipe = {"merge_method": method, "models": entries, "dtype": "bfloat16", **top}
        if method != "linear":
            recipe["base_model"] = str(self.folder / "base")
        run(yaml.safe_dump(recipe), self.folder / "out", name="out")
        return self.folder / "out"


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    made = Ground(tmp_path)
    made.model("base", random_tensors(0))
    return made


def skill(expert: str, gain: float, n: int = 100, **more: Any) -> Capability:
    """A capability on which the base scores 0, `expert` 0.9, and the merge what its gain says."""
    ci = {"gain_recovered": Interval(low=gain - 0.1, high=gain + 0.1)}
    scores = {"base": 0.0, "sources": {"one": 0.0, "two": 0.0} | {expert: 0.9}, "merged": 0.9 * gain}
    settled = {"suite": f"{expert}_suite", "metric": "exact_match", "expert": expert, "retention": gain, "gain_recovered": gain}
    return Capability(**{**settled, **scores, "n": n, "ci": ci, **more})


def language(base: float, sources: float, merged: float) -> Capability:
    numbers = {"base": base, "sources": {"one": sources, "two": sources}, "merged": merged, "n": 10}
    return Capability(suite="perplexity", metric="perplexity", higher_is_better=False, **numbers)


def measured(out: Path, verdict: str = "adjust", **more: Any) -> Path:
    capabilities = more.pop("capabilities")
    found = Evaluation(capabilities=capabilities, verdict=verdict, **more)
    (out / "evaluation.json").write_text(found.model_dump_json(), encoding="utf-8")
    return out


def tensors_of(out: Path, change: Callable[[Tensors], None], dtype: str = "bfloat16") -> Path:
    tensors = load(out)
    change(tensors)
    save(out / "model.safetensors", tensors, dtype)
    return out


def sound(ground: Ground) -> Path:
    return ground.merge(ground.tune("one", 1), ground.tune("two", 2), weights=(0.7, 0.7))


def wrong_base(g: Ground) -> Path:
    g.tune("theirs", 9, size=0.8)
    return g.merge(*(g.tune(name, seed, of="theirs") for name, seed in (("one", 1), ("two", 2))))


def wrong_base_by_perplexity(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2))
    return measured(out, "failed", capabilities={"plain": language(5e6, 20.0, 4e7)}, perplexity_ratio=2e6)


def other_starts(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.model("two", random_tensors(77)), method="linear")


def adapter_of_another_base(g: Ground) -> Path:
    g.tune("elsewhere", 8, size=0.5)
    return g.merge(g.adapter("one", 1), g.adapter("two", 2, base=str(g.folder / "elsewhere")))


def swapped_tokenizer(g: Ground) -> Path:
    out = sound(g)
    g.tokenizer("out", shift=3)
    return out


def swapped_tokenizer_without_a_record(g: Ground) -> Path:
    out = swapped_tokenizer(g)
    (out / "merge_provenance.json").unlink()
    return out


def template_lost(g: Ground) -> Path:
    out = sound(g)
    (out / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return out


def edited_config(g: Ground) -> Path:
    out = sound(g)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}), encoding="utf-8")
    return out


def retouched_weights(g: Ground) -> Path:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name] * 1.05

    return tensors_of(sound(g), change)


def lambda_five(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1), g.adapter("two", 2), parameters={"lambda": 5.0})


def weight_four(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), weights=(4.0, 0.5))


def subtracted(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), weights=(-0.7, 0.7))


def near_copies(g: Ground) -> Path:
    g.tune("between", 3, size=0.05)
    return g.merge(*(g.tune(name, seed, size=0.008, of="between") for name, seed in (("one", 1), ("two", 2))))


def left_out_on_purpose(g: Ground) -> Path:
    """Breadcrumbs takes the largest and the smallest changes out, which is not rounding; that took a fifth."""
    sources = (g.adapter("one", 1, size=1.2e-3), g.adapter("two", 2, size=1.2e-3))
    return g.merge(*sources, weights=(1.0, 1.0), method="breadcrumbs", parameters={"density": 0.9, "gamma": 0.01})


def rounded_away(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1, size=2e-4), g.adapter("two", 2, size=2e-4))


def infinite(g: Ground) -> Path:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")

    return tensors_of(sound(g), change)


def never_written(g: Ground) -> Path:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][:] = 0.0

    return tensors_of(sound(g), change)


def cut_short(g: Ground) -> Path:
    out = sound(g)
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return out


def untrained_adapter(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1), g.adapter("two", 2, size=0.0))


def source_retrained(g: Ground) -> Path:
    out = sound(g)
    shutil.rmtree(g.folder / "two")
    g.model("two", random_tensors(33, around=load(g.folder / "base"), size=0.05), dtype="float32")
    return out


def weak_expert(g: Ground) -> Path:
    capabilities = {"one": skill("one", 0.95), "two": skill("two", 0.0, sources={"one": 0.0, "two": 0.0}, gain_recovered=None)}
    return measured(sound(g), capabilities=capabilities)


def leak(g: Ground) -> Path:
    rates = {"one": {"one_suite": 1.0, "two_suite": 0.93}, "two": {"one_suite": 0.0, "two_suite": 0.99}}
    own = {"one": "one_suite", "two": "two_suite"}
    return measured(
        sound(g), capabilities={"a": skill("one", 0.95), "b": skill("two", 0.3)}, cross_context=rates, own_context=own
    )


def one_skill_gone(g: Ground) -> Path:
    return measured(sound(g), capabilities={"a": skill("one", 0.97), "b": skill("two", 0.1)})


def source_too_weak(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2), weights=(0.97, 0.43))
    return measured(out, capabilities={"a": skill("one", 0.97), "b": skill("two", 0.1)})


def averaged_away(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2), method="linear")
    capabilities = {"a": skill("one", 0.2), "b": skill("two", 0.3)}
    return measured(out, "failed", capabilities=capabilities)


def skills_collide(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2), weights=(1.0, 1.0))
    return measured(out, "failed", capabilities={"a": skill("one", 0.2), "b": skill("two", 0.3)})


def all_too_weak(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2), weights=(0.3, 0.3))
    return measured(out, "failed", capabilities={"a": skill("one", 0.1), "b": skill("two", 0.0)})


def safety_lost(g: Ground) -> Path:
    refusals = Capability(suite="refusals", metric="right_choice", n=22, base=0.9, sources={"one": 0.86, "two": 0.9}, merged=0.4)
    return measured(sound(g), capabilities={"a": skill("one", 0.95), "b": skill("two", 0.95), "refusals": refusals})


def six_prompts(g: Ground) -> Path:
    wide = {"gain_recovered": Interval(low=0.5, high=1.0)}
    return measured(sound(g), capabilities={"a": skill("one", 0.95), "b": skill("two", 0.83, n=6, ci=wide)})


def too_long_in_sum(g: Ground) -> Path:
    out = g.merge(g.tune("one", 1), g.tune("two", 2), weights=(1.4, 1.4))
    capabilities = {"a": skill("one", 0.95), "b": skill("two", 0.95), "plain": language(11.0, 12.0, 20.0)}
    return measured(out, capabilities=capabilities, perplexity_ratio=1.67)


def template_file_of_another_family(g: Ground) -> Path:
    (g.folder / "base" / "chat_template.jinja").write_text("{{ messages }}!", encoding="utf-8")
    out = g.merge(g.adapter("one", 1), g.adapter("two", 2))
    (out / "chat_template.jinja").write_text("[INST] {{ messages[0].content }} [/INST]", encoding="utf-8")
    return out


def answers_that_do_not_end(g: Ground) -> Path:
    (g.folder / "base" / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    out = sound(g)
    (out / "generation_config.json").write_text('{"eos_token_id": 9}', encoding="utf-8")
    return out


def copies_cancelled(g: Ground) -> Path:
    g.tune("between", 3, size=0.05)
    return g.merge(*(g.tune(n, s, size=0.008, of="between") for n, s in (("one", 1), ("two", 2))), weights=(1.5, -1.0))


def one_percent(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), parameters={"lambda": 0.01})


def density_of_nothing(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), method="ties", parameters={"density": 0.004})


def lost_shard(g: Ground) -> Path:
    out = sound(g)
    names = dict.fromkeys(load(out), "model-00001-of-00002.safetensors")
    (out / "model.safetensors").rename(out / "model-00002-of-00002.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    return out


def two_layers_swapped(g: Ground) -> Path:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            other = name.replace("layers.0.", "layers.2.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return tensors_of(sound(g), change)


BROKEN = {
    template_file_of_another_family: ["template_changed"],
    answers_that_do_not_end: ["config_changed"],
    copies_cancelled: ["source_subtracted"],
    one_percent: ["nothing_arrived"],
    density_of_nothing: ["nothing_arrived"],
    lost_shard: ["damaged_file"],
    two_layers_swapped: ["weights_changed"],
    wrong_base: ["wrong_base"],
    wrong_base_by_perplexity: ["wrong_base"],
    other_starts: ["wrong_base"],
    adapter_of_another_base: ["adapter_of_another_base"],
    swapped_tokenizer: ["tokenizer_swapped"],
    swapped_tokenizer_without_a_record: ["tokenizer_swapped"],
    template_lost: ["template_changed"],
    edited_config: ["config_changed"],
    retouched_weights: ["weights_changed"],
    lambda_five: ["scale_absurd"],
    weight_four: ["scale_absurd"],
    subtracted: ["source_subtracted"],
    near_copies: ["copies_add_up"],
    rounded_away: ["precision_lost"],
    infinite: ["not_finite"],
    never_written: ["empty_weights"],
    cut_short: ["damaged_file"],
    untrained_adapter: ["broken_source"],
    source_retrained: ["source_changed"],
    weak_expert: ["broken_source"],
    leak: ["leak"],
    one_skill_gone: ["one_skill_gone"],
    source_too_weak: ["source_too_weak"],
    averaged_away: ["averaged_away"],
    skills_collide: ["skills_collide"],
    all_too_weak: ["source_too_weak"],
    safety_lost: ["safety_lost"],
    six_prompts: ["too_few_prompts"],
    too_long_in_sum: ["language_hurt"],
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_merge_is_named_by_its_cause(ground: Ground, broken: Callable[[Ground], Path]) -> None:
    found = diagnose(broken(ground))
    assert ([cause.code for cause in found.findings], found.ok) == (BROKEN[broken], False)
    assert all(cause.evidence and cause.next for cause in found.findings)


def full_models(g: Ground) -> Path:
    return sound(g)


def adapters(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1), g.adapter("two", 2), parameters={"lambda": 0.7})


def whole_adapters_in_float32(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1), g.adapter("two", 2), dtype="float32")


def ties(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), method="ties", weights=(0.5, 0.5))


def an_average(g: Ground) -> Path:
    return g.merge(g.tune("one", 1), g.tune("two", 2), method="linear")


def one_adapter_folded(g: Ground) -> Path:
    return g.merge(g.adapter("one", 1))


def a_moved_folder(g: Ground) -> Path:
    return sound(g).rename(g.folder / "elsewhere")


def measured_and_passed(g: Ground) -> Path:
    capabilities = {"a": skill("one", 0.97), "b": skill("two", 0.93), "plain": language(11.0, 12.0, 12.5)}
    return measured(sound(g), "passed", capabilities=capabilities, perplexity_ratio=1.04)


def a_domain_that_the_base_does_not_know(g: Ground) -> Path:
    """A base may be far worse than its fine-tunes on their own texts; the merge is not."""
    capabilities = {"a": skill("one", 0.97), "logs": language(900.0, 8.0, 9.0)}
    return measured(sound(g), "passed", capabilities=capabilities, perplexity_ratio=1.1)


def rounded_here_and_there(g: Ground) -> Path:
    """A sixth of the change falls back to the base's values, and most of that is gained where values round up."""
    return g.merge(g.adapter("one", 1, size=1e-3), g.adapter("two", 2, size=1e-3))


SOUND = (
    rounded_here_and_there,
    left_out_on_purpose,
    full_models,
    adapters,
    whole_adapters_in_float32,
    ties,
    an_average,
    one_adapter_folded,
    a_moved_folder,
)
SOUND_AND_MEASURED = (measured_and_passed, a_domain_that_the_base_does_not_know)


@pytest.mark.parametrize("made", [*SOUND, *SOUND_AND_MEASURED], ids=lambda f: f.__name__)
def test_a_sound_merge_is_accused_of_nothing(ground: Ground, made: Callable[[Ground], Path]) -> None:
    found = diagnose(made(ground))
    assert (found.findings, found.ok) == ([], True)
    assert "evaluation" in found.looked_at or any(text.startswith("skills") for text in found.unknown)


def test_a_root_cause_hides_what_follows_from_it(ground: Ground) -> None:
    out = measured(swapped_tokenizer(ground), "failed", capabilities={"a": skill("one", 0.0), "b": skill("two", 0.0)})
    assert [cause.code for cause in diagnose(out).findings] == ["tokenizer_swapped"]


def test_every_cause_is_shown_by_a_broken_merge_or_is_a_check_of_the_verification() -> None:
    shown = {code for codes in BROKEN.values() for code in codes}
    of_verification = {"tokenizer_misfit", "structure_wrong", "does_not_load"}
    assert (ROOTS | CONSEQUENCES | {"source_subtracted"}) - shown - of_verification == set()


def test_a_verification_of_the_same_files_is_not_made_twice(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ground.merge(ground.tune("one", 1), ground.tune("two", 2), weights=(0.5, 0.5))
    (out / "verification.json").write_text(verify(out).model_dump_json(), encoding="utf-8")
    keep_replies(out, KeptReplies(replies=[PromptReplies(suite="s", prompt="p", replies={"merged": "r"}, outcome="same")]))
    again = []
    measured = landing.measure
    monkeypatch.setattr(landing, "measure", lambda *given, **named: again.append(given) or measured(*given, **named))
    assert (diagnose(out).ok, again) == (True, [])
    ground.tokenizer("out", shift=1)
    assert "tokenizer_swapped" in [cause.code for cause in diagnose(out).findings]
    assert again, "files changed since the verification"


def test_a_method_that_sorts_whole_tensors_is_computed_again_in_part(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(checks: Iterable[Check]) -> int:
        return next(int(check.detail.split()[0]) for check in checks if check.name == "recomputed")

    out = ties(ground)
    whole = verify(out)
    monkeypatch.setattr(evidence, "COMPUTED_ELEMENTS", sum(t.size for t in load(out).values()) // 2)
    known = evidence.read_evidence(out)
    assert 0 < computed(known.checks.values()) < computed(whole.checks)
    assert known.landed == pytest.approx(dict(whole.landed), abs=0.2)
    assert any("computed again only in part" in text for text in known.unknown)
    assert diagnose(out).ok


def test_no_folder_is_no_diagnosis(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        diagnose(tmp_path / "nowhere")


@pytest.mark.parametrize(("made", "codes"), [(sound, []), (lambda_five, ["scale_absurd"]), (wrong_base, ["wrong_base"])])
def test_a_large_merge_is_judged_by_what_it_counted(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, made: Callable[[Ground], Path], codes: list[str]
) -> None:
    monkeypatch.setattr(evidence, "RECOMPUTED_BYTES", 0)
    monkeypatch.setattr(landing, "measure", lambda *_, **__: pytest.fail("computed again"))
    out = made(ground)
    found = diagnose(out)
    assert [one.code for one in found.findings] == codes
    assert [text for text in found.unknown if "what landed is what the merge counted" in text]
    (out / "merge_provenance.json").unlink()
    assert [text for text in diagnose(out).unknown if ", and so what landed" in text]
