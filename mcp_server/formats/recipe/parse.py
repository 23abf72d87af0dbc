"""One YAML document → `Recipe`. What mergekit's own reader refuses is refused here, in one pass that reports all of it.

Unknown keys pass, because mergekit ignores them: `read` and the linter name them where that is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from mcp_server.errors import Malformed
from mcp_server.formats.recipe.refs import parse_ref
from mcp_server.formats.recipe.settings import SCALARS
from mcp_server.formats.recipe.types import Expert, ModelRef, Module, OutputSlice, Recipe, RecipeKind, Settings, Source
from mcp_server.schemas.limits import MAX_GRADIENT, MAX_SOURCES


def kind_of(document: dict[str, Any]) -> RecipeKind:
    """Experts make a mixture; everything else is a merge. (`merge_method: moe` is refused by the linter, not guessed away.)"""
    return "moe" if "experts" in document and "merge_method" not in document else "merge"


def parse_document(document: Any, text: str = "", what: str = "the recipe") -> tuple[Recipe, list[Problem]]:
    """One YAML document → recipe and problems. The recipe holds what could be read."""
    reader = Reader()
    if not isinstance(document, dict):
        found = "empty" if document is None else f"{short(document)}, not a table of names and values"
        reader.refuse("MM101", f"{what} is {found}", "", "write at least merge_method and models")
        return Recipe(text=text), reader.problems
    table = reader.table(document, what)
    if "genome" in table and "merge_method" not in table:
        reader.refuse(
            "MM117",
            f"{what} is a genome of mergekit-evolve, which searches for a recipe",
            "genome",
            "give the recipe that it found",
        )
        return Recipe(text=text), reader.problems
    recipe = _moe(reader, table, text) if kind_of(table) == "moe" else _merge(reader, table, text)
    return recipe, reader.problems


def _merge(reader: Reader, table: dict[str, Any], text: str) -> Recipe:
    method = reader.text(table.get("merge_method"), "merge_method")
    if not method and "merge_method" not in [p.where for p in reader.problems]:
        reader.refuse("MM106", "the recipe has no merge_method", "merge_method", "add one, such as 'merge_method: linear'")
    forms = [name for name in ("models", "slices", "modules") if table.get(name)]
    if len(forms) != 1:
        found = which(table, ("models", "slices", "modules"))
        fix = "list the inputs under 'models:'" if not forms else f"keep one of {' and '.join(forms)}"
        reader.refuse("MM105", f"exactly one of models, slices and modules must be present; the recipe has {found}", "", fix)
    tokenizer = table.get("tokenizer")
    tokenizer_source = table.get("tokenizer_source")
    if isinstance(tokenizer_source, dict):
        tokenizer_source = str(reader.ref(tokenizer_source, "tokenizer_source") or "")
    if tokenizer and tokenizer_source:
        reader.refuse("MM112", "tokenizer and tokenizer_source are both given", "tokenizer_source", "keep 'tokenizer:'")
    return Recipe(
        method=method or "",
        name=reader.text(table.get("name"), "name"),
        base=reader.ref(table["base_model"], "base_model") if table.get("base_model") is not None else None,
        models=reader.models(table.get("models"), "models"),
        slices=reader.slices(table.get("slices"), "slices"),
        modules=reader.modules(table.get("modules")),
        parameters=reader.settings(table.get("parameters"), "parameters"),
        dtype=_dtype(reader.text(table.get("dtype"), "dtype")),
        out_dtype=_dtype(reader.text(table.get("out_dtype"), "out_dtype")),
        tokenizer_source=reader.text(tokenizer_source, "tokenizer_source"),
        tokenizer=reader.table(tokenizer, "tokenizer") if tokenizer is not None else None,
        chat_template=reader.text(table.get("chat_template"), "chat_template"),
        text=text,
    )


def _moe(reader: Reader, table: dict[str, Any], text: str) -> Recipe:
    if table.get("base_model") is None:
        reader.refuse("MM108", "a mixture of experts needs base_model", "base_model", "name the donor of attention and norms")
    per_token = table.get("experts_per_token", 2)
    if type(per_token) is not int:
        reader.refuse("MM108", f"experts_per_token is {short(per_token)}, not a whole number", "experts_per_token")
        per_token = 2
    return Recipe(
        kind="moe",
        base=reader.ref(table["base_model"], "base_model") if table.get("base_model") is not None else None,
        experts=reader.experts(table.get("experts"), "experts"),
        shared_experts=reader.experts(table.get("shared_experts"), "shared_experts"),
        gate_mode=reader.text(table.get("gate_mode"), "gate_mode") or "hidden",
        experts_per_token=per_token,
        dtype=_dtype(reader.text(table.get("dtype"), "dtype")),
        architecture=reader.text(table.get("architecture"), "architecture"),
        text=text,
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that mergekit's reader refuses. `code` is the linter's."""

    code: str
    message: str
    where: str
    fix: str = ""


@dataclass(slots=True)
class Reader:
    """Turns a raw document into a `Recipe` and collects problems on the way instead of stopping at the first."""

    problems: list[Problem] = field(default_factory=list)

    def refuse(self, code: str, message: str, where: str, fix: str = "") -> None:
        self.problems.append(Problem(code, message, where, fix))

    def ref(self, value: Any, where: str) -> ModelRef | None:
        try:
            return parse_ref(value, where)
        except Malformed as error:
            self.refuse("MM109", error.message, where, error.next_step)
            return None

    def table(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse("MM108", f"{where} is {short(value)}, not a table of names and values", where)
            return {}
        return {str(key): item for key, item in value.items()}

    def entries(self, value: Any, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse("MM108", f"{where} is {short(value)}, not a list", where, "start each entry with '- '")
            return []
        return value

    def text(self, value: Any, where: str) -> str | None:
        if value is None or isinstance(value, str):
            return value
        self.refuse("MM108", f"{where} is {short(value)}, not text", where, "put it in quotes")
        return None

    def number(self, value: Any, where: str) -> float | None:
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        self.refuse("MM108", f"{where} is {short(value)}, not a number", where)
        return None

    def settings(self, value: Any, where: str) -> Settings:
        table = self.table(value, where)
        for name, setting in table.items():
            self._setting(setting, f"{where}.{name}")
        return table

    def _setting(self, setting: Any, where: str, *, inside_filter: bool = False) -> None:
        if isinstance(setting, SCALARS):
            return
        if setting is None:
            self.refuse("MM108", f"{where} is empty", where, "give it a value, or remove the line")
            return
        if isinstance(setting, dict) and not inside_filter:
            if "value" not in setting:
                self.refuse("MM108", f"{where} is a table without 'value'", where, "write {filter: NAME, value: NUMBER}")
                return
            self.text(setting.get("filter"), f"{where}.filter")
            self._setting(setting["value"], where, inside_filter=True)
            return
        if isinstance(setting, list):
            if len(setting) > MAX_GRADIENT:
                text = f"{where} is a list of {len(setting):,} values, which exceeds the limit of {MAX_GRADIENT:,}"
                self.refuse("MM116", text, where, "a gradient needs at most one value per layer")
                return
            plain = [isinstance(item, SCALARS) for item in setting]
            if all(plain):
                return
            if not any(plain) and all(isinstance(item, dict) for item in setting) and not inside_filter:
                for number, item in enumerate(setting):
                    self._setting(item, f"{where}[{number}]")
                return
            fix = "either a list of numbers, or a list of {filter, value} entries"
            self.refuse("MM108", f"{where} mixes numbers and tables", where, fix)
            return
        self.refuse("MM108", f"{where} is {short(setting)}, not a number, a list of numbers or filters", where)

    def source(self, value: Any, where: str, *, ranged: bool) -> Source | None:
        if isinstance(value, str):
            self.refuse("MM108", f"{where} is the text {value!r}, not a table", where, f"write '- model: {value}'")
            return None
        table = self.table(value, where)
        if "model" not in table:
            self.refuse("MM108", f"{where} names no model", where, "write 'model: PATH'")
            return None
        ref = self.ref(table["model"], f"{where}.model")
        layers = self.layer_range(table.get("layer_range"), f"{where}.layer_range") if ranged else None
        settings = self.settings(table.get("parameters"), f"{where}.parameters")
        return Source(model=ref, layer_range=layers, parameters=settings) if ref else None

    def layer_range(self, value: Any, where: str) -> tuple[int, int] | None:
        if isinstance(value, list) and len(value) == 2 and None not in (ends := [as_layer(v) for v in value]):
            return ends[0], ends[1]  # type: ignore[return-value]
        found = "is missing" if value is None else f"is {short(value)}"
        self.refuse("MM108", f"{where} {found}; it is two whole numbers", where, "write [first layer, one past the last layer]")
        return None

    def slice(self, value: Any, where: str) -> OutputSlice:
        table = self.table(value, where)
        if not table.get("sources"):
            self.refuse("MM108", f"{where} has no sources", where, "list its inputs under 'sources:'")
        entries = self.inputs(table.get("sources"), f"{where}.sources")
        sources = [self.source(entry, f"{where}.sources[{n}]", ranged=True) for n, entry in enumerate(entries)]
        base = self.ref(table["base_model"], f"{where}.base_model") if table.get("base_model") is not None else None
        return OutputSlice(
            sources=tuple(s for s in sources if s),
            base_model=base,
            parameters=self.settings(table.get("parameters"), f"{where}.parameters"),
        )

    def inputs(self, value: Any, where: str) -> list[Any]:
        """The entries of a list of models or slices, none of them where there are more than anybody merges."""
        found = self.entries(value, where)
        if len(found) <= MAX_SOURCES:
            return found
        self.refuse(
            "MM116", f"{where} lists {len(found):,} entries, which exceeds the limit of {MAX_SOURCES:,}", where, "merge in stages"
        )
        return []

    def models(self, value: Any, where: str) -> tuple[Source, ...]:
        found = [self.source(entry, f"{where}[{n}]", ranged=False) for n, entry in enumerate(self.inputs(value, where))]
        return tuple(s for s in found if s)

    def slices(self, value: Any, where: str) -> tuple[OutputSlice, ...]:
        return tuple(self.slice(entry, f"{where}[{n}]") for n, entry in enumerate(self.inputs(value, where)))

    def modules(self, value: Any) -> dict[str, Module]:
        found = {}
        for name, entry in self.table(value, "modules").items():
            where = f"modules.{name}"
            table = self.table(entry, where)
            if bool(table.get("models")) == bool(table.get("slices")):
                self.refuse("MM105", f"{where} has {which(table, ('models', 'slices'))}", where, "give it 'models' or 'slices'")
            found[name] = Module(
                models=self.models(table.get("models"), f"{where}.models"),
                slices=self.slices(table.get("slices"), f"{where}.slices"),
                parameters=self.settings(table.get("parameters"), f"{where}.parameters"),
            )
        return found

    def expert(self, value: Any, where: str) -> Expert | None:
        table = self.table(value, where)
        if "source_model" not in table:
            self.refuse("MM108", f"{where} names no source_model", where, "write 'source_model: PATH'")
            return None
        ref = self.ref(table["source_model"], f"{where}.source_model")
        prompts = {
            name: tuple(
                text
                for n, item in enumerate(self.entries(table.get(name), f"{where}.{name}"))
                if (text := self.text(item, f"{where}.{name}[{n}]")) is not None
            )
            for name in ("positive_prompts", "negative_prompts")
        }
        scales = {name: self.number(table.get(name), f"{where}.{name}") for name in ("noise_scale", "residual_scale")}
        if ref is None:
            return None
        return Expert(
            source_model=ref,
            positive_prompts=prompts["positive_prompts"],
            negative_prompts=prompts["negative_prompts"],
            noise_scale=scales["noise_scale"],
            residual_scale=scales["residual_scale"],
        )

    def experts(self, value: Any, where: str) -> tuple[Expert, ...]:
        found = [self.expert(entry, f"{where}[{n}]") for n, entry in enumerate(self.inputs(value, where))]
        return tuple(e for e in found if e)


def as_layer(value: Any) -> int | None:
    """A layer's number as mergekit's reader takes it: whole, in quotes or not."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) else None
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1 else None


def which(table: dict[str, Any], names: tuple[str, ...]) -> str:
    present = [name for name in names if table.get(name)]
    return " and ".join(present) if present else "none of them"


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _dtype(name: str | None) -> str | None:
    """mergekit takes `torch.bfloat16` for `bfloat16`."""
    return name and name.removeprefix("torch.")
