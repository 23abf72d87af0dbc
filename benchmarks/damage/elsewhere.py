"""Merges that mergekit or PEFT made: right and damaged in the same ways, given to verify as anybody's, with no record."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import peft
import transformers
import yaml

from benchmarks.damage.acts import Case
from benchmarks.damage.families import FAMILIES, Family
from benchmarks.damage.judge import faults, is_found, shrunk_sample, without_record
from benchmarks.damage.kinds import KINDS, Kind
from mcp_server.steps.verify import verify

RIGHT = "right"
PLAIN, FUSED, FOLDED = "Llama without biases", "Phi-3, fused QKV", "Llama, adapters folded"


def _families() -> dict[str, Family]:
    """Arrangements that mergekit 0.1.5 and transformers take as they are: of Mixtral mergekit loses the experts, of a Llama with
    biases the biases, and a class adds what a base lacks."""
    plain = replace(_without_biases(FAMILIES["Llama, tied head"]), name=PLAIN, dtype="bfloat16")
    fused = replace(FAMILIES[FUSED], config=FAMILIES[FUSED].config | {"pad_token_id": 0})  # the class has one of its own
    return {PLAIN: plain, FUSED: fused, FOLDED: _without_biases(FAMILIES[FOLDED])}


def _without_biases(family: Family) -> Family:
    return replace(
        family,
        config=family.config | {"attention_bias": False},
        shapes={name: shape for name, shape in family.shapes.items() if not name.endswith(".bias")},
        roles={role: name for role, name in family.roles.items() if role != "bias"},
    )


ARRANGEMENTS = _families()


class ByMergekit(Family):
    def merge(self, out: Path, recipe: str, seed: int = 5) -> None:
        from mergekit.config import MergeConfiguration  # here, because it warns on import
        from mergekit.merge import MergeOptions, run_merge

        options = MergeOptions(quiet=True, random_seed=seed)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), str(out), options)
        (file,) = out.glob("*.safetensors")
        file.rename(out / "model.safetensors")
        (out / "model.safetensors.index.json").unlink(missing_ok=True)


class ByPeft(Family):
    """One adapter folded. Its "recipe" says which adapter into which base."""

    def recipe(
        self,
        folder: Path,
        method: str = "",  # noqa: ARG002 - there is one
        weights: tuple[float, ...] = (),  # noqa: ARG002 - it is added whole
        base: str = "base",
        sources: tuple[str, ...] = ("one",),
        **settings: Any,  # noqa: ARG002 - there are none
    ) -> str:
        return json.dumps({"base": str(folder / base), "adapter": str(folder / sources[0])})

    def merge(self, out: Path, recipe: str, seed: int = 5) -> None:  # noqa: ARG002 - nothing is drawn
        named = json.loads(recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = transformers.AutoModelForCausalLM.from_pretrained(named["base"])
            peft.PeftModel.from_pretrained(model, named["adapter"]).merge_and_unload().save_pretrained(out)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copyfile(Path(named["base"]) / file, out / file)


@dataclass(frozen=True)
class Maker:
    """`known`: what verify is told besides base and sources, the recipe or nothing. `exact`: the values can be computed."""

    name: str
    kind: type[Family]
    family: str
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    known: bool = True
    exact: bool = True

    def made(self) -> Family:
        own = ARRANGEMENTS[self.family]
        return self.kind(**{one.name: getattr(own, one.name) for one in fields(Family)})


MAKERS = {
    maker.name: maker
    for maker in (
        Maker("mergekit, task_arithmetic", ByMergekit, PLAIN, "task_arithmetic"),
        Maker("mergekit, linear", ByMergekit, FUSED, "linear"),
        Maker("mergekit, slerp", ByMergekit, PLAIN, "slerp", {"t": 0.3}),
        Maker("mergekit, ties", ByMergekit, FUSED, "ties", {"density": 0.5}),
        Maker("mergekit, dare_ties without its seed", ByMergekit, PLAIN, "dare_ties", {"density": 0.5}, exact=False),
        Maker("mergekit, task_arithmetic without its recipe", ByMergekit, FUSED, "task_arithmetic", known=False, exact=False),
        Maker("PEFT, one adapter", ByPeft, FOLDED, known=False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Elsewhere:
    """`full`, `sample`, `named`: as in `judge.Judged`; of a right merge, whether it is called failed. `verdict`: in full."""

    kind: str
    maker: str
    full: bool
    sample: bool
    named: bool
    verdict: str
    said: str


def applicable() -> Iterator[tuple[Kind | None, Maker]]:
    """(kind of damage, or None for the right merge, maker)."""
    for maker in MAKERS.values():
        yield None, maker
        for kind in KINDS:
            if kind.fits(maker.made()) and not kind.seeded and _is_its(kind, maker):
                yield kind, maker


def _is_its(kind: Kind, maker: Maker) -> bool:
    """A kind that is another recipe belongs to the maker of the right one; PEFT saves no tokenizer."""
    if maker.kind is ByPeft and kind.name == "tokenizer missing":
        return False
    return not kind.of_recipe or (maker.kind is ByMergekit and kind.method == maker.method)


class Elsewheres:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def judge(self, kind: Kind | None, maker: Maker) -> Elsewhere:
        family = maker.made()
        models = self.folder / "-".join(
            ("of", *maker.family.replace(",", "").split())
        )  # others than those of the same name that are damaged elsewhere
        if not models.exists():
            family.build(models)
        sources: Sequence[str] = ("one",) if maker.kind is ByPeft or maker.method == "slerp" else ("one", "two")
        recipe = family.recipe(models, maker.method, sources=tuple(sources), **maker.settings)
        right = self.folder / f"by {maker.name}"
        if not right.exists():
            family.merge(right, recipe)
            without_record(right)
        out = self.folder / f"elsewhere-{self._count}"
        self._count += 1
        shutil.copytree(right, out)
        case = Case(family, models, out)
        if kind is not None:
            kind.act(case)
        given: dict[str, Any] = {"base": str(models / "base"), "sources": [str(models / name) for name in sources]}
        given |= {"recipe": recipe} if maker.known else {}
        full = verify(out, full=True, **given)
        with shrunk_sample():
            sample = is_found(verify(out, **given))
        said = faults(full) if kind is not None else json.dumps([c.model_dump() for c in full.checks if c.passed is not True])
        words = kind is None or not kind.words or any(word in said for word in kind.words)
        named = is_found(full) and words and any(name in said for name in case.told)
        for made in self.folder.glob(f"{out.name}*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        return Elsewhere(kind.name if kind else RIGHT, maker.name, is_found(full), sample, named, full.verdict, said)


def is_wrong(row: Elsewhere) -> bool:
    """A right merge that is called failed, or a damage that is missed or not named where the values can be computed."""
    if row.kind == RIGHT:
        return row.full or row.sample
    return MAKERS[row.maker].exact and not (row.full and row.named)


TEXT = """
## Merges from elsewhere

The same damages to what mergekit and PEFT write, without any record: verify is given base and sources, and the recipe where the
line does not say otherwise. {kinds} kinds, {cases} cases. Without the seed of a random method, or without the recipe, only what
no seed and no weights explain can be called wrong; the last column has the kinds that are not.

| made by | right merge | kinds | in full | sample | named | not told in full |
|---|---|---|---|---|---|---|
"""


def page(rows: Sequence[Elsewhere]) -> str:
    damaged = [row for row in rows if row.kind != RIGHT]
    if not rows:
        return ""
    text = TEXT.format(kinds=len({row.kind for row in damaged}), cases=len(damaged))
    for maker in MAKERS:
        right = next((row.verdict for row in rows if row.maker == maker and row.kind == RIGHT), "")
        own = [row for row in damaged if row.maker == maker]
        cells = [len(own), *(sum(getattr(row, how) for row in own) for how in ("full", "sample", "named"))]
        missed = ", ".join(row.kind for row in own if not row.full)
        text += f"| {maker} | {right} | {' | '.join(map(str, cells))} | {missed} |\n"
    return text
