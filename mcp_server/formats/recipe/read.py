"""A recipe's text, read once: the YAML documents with their places, the `Recipe` that they make, and what is wrong with it.

Everybody who is handed a text asks `read_text`, which remembers the last few: in one process a text is parsed once, however many
steps look at it. What it gives is shared, so nobody changes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from mcp_server.errors import Malformed, Unsupported, did_you_mean
from mcp_server.formats.recipe.idle import is_idle
from mcp_server.formats.recipe.keys import dotted, tables
from mcp_server.formats.recipe.parse import Problem, kind_of, parse_document
from mcp_server.formats.recipe.types import Group, Recipe
from mcp_server.schemas.limits import MAX_SOURCES, MAX_STAGES
from mcp_server.system.yaml_io import Document, read_documents

NEXT: Final = "see `model-merging validate` for every finding"
REMEMBERED: Final = 8
REMEMBERED_LENGTH: Final = 100_000
"""Of longer texts nothing is remembered: their nodes take a thousand times the memory."""

_RUNNERS: Final = {"moe": "mergekit-moe makes mixtures of experts", "multi": "mergekit-multi runs recipes of several stages"}

_remembered: OrderedDict[str, Read] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Read:
    """`stages` has one entry for an ordinary recipe; `recipe` is that, or the recipe of all stages."""

    recipe: Recipe
    problems: tuple[Problem, ...]
    documents: tuple[Document, ...]
    stages: tuple[tuple[Recipe, tuple[Problem, ...]], ...]

    @property
    def refused_whole(self) -> bool:
        """Whether nothing more is to be said: a list is too long to be looked at, or it is another program's configuration."""
        return any(problem.code in ("MM116", "MM117") for problem in self.problems)


def read_text(text: str, what: str = "the recipe") -> Read:
    """Raises `Malformed` for broken YAML, in which `what` names the text."""
    if (found := _remembered.get(text)) is not None:
        _remembered.move_to_end(text)
        return found
    return _remember(_made_of(text, tuple(read_documents(text, what))))


def written(values: Sequence[Any], nodes: Sequence[yaml.Node]) -> str:
    """The YAML text of `values`. It is remembered as read, with the places that they had in the text that they come from."""
    text = yaml.safe_dump_all(values, sort_keys=False, allow_unicode=True)
    documents = tuple(Document(value, node) for value, node in zip(values, nodes, strict=True))
    _remember(_made_of(text, documents))
    return text


def _remember(found: Read) -> Read:
    text = found.recipe.text
    if len(text) <= REMEMBERED_LENGTH:
        _remembered[text] = found
        if len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)
    return found


def _made_of(text: str, documents: tuple[Document, ...]) -> Read:
    if len(documents) > MAX_STAGES:
        many = f"it holds {len(documents):,} documents, which exceeds the limit of {MAX_STAGES}"
        problem = Problem("MM116", many, "", "split it into several files")
        return Read(Recipe(kind="multi", text=text), (problem,), documents, ())
    if len(documents) <= 1:
        recipe, found = parse_document(documents[0].value if documents else None, text)
        problems = tuple(found)
        return Read(recipe, problems, documents, ((recipe, problems),))
    total = sum(_length(document.value) for document in documents)
    if total > MAX_SOURCES:
        many = f"its {len(documents)} documents list {total:,} entries, which exceeds the limit of {MAX_SOURCES:,}"
        return Read(Recipe(kind="multi", text=text), (Problem("MM116", many, "", "split it into several files"),), documents, ())
    stages, every = [], []
    for number, document in enumerate(documents):
        stage, found = parse_document(document.value, "", f"stage {number + 1}")
        stages.append((stage, tuple(found)))
        every += [Problem(p.code, p.message, f"stages[{number}].{p.where}".rstrip("."), p.fix) for p in found]
    recipe = Recipe(kind="multi", stages=tuple(stage for stage, _ in stages), text=text)
    return Read(recipe, tuple(every), documents, tuple(stages))


def _length(document: Any) -> int:
    """Models, slices and experts that a document lists; a list that is itself too long is told by its own message."""
    lists = [document.get(name) for name in ("models", "slices", "experts")] if isinstance(document, dict) else []
    return sum(min(len(entries), MAX_SOURCES // 2) for entries in lists if isinstance(entries, list))


def unread_keys(document: Document, recipe: Recipe, problems: Sequence[Problem]) -> list[Problem]:
    """One problem for each key that mergekit would ignore and that could mean something; none in a table that it refuses."""
    refused = [problem.where for problem in problems if problem.where]
    mixture = isinstance(document.value, dict) and kind_of(document.value) == "moe"
    return [
        Problem(
            "MM103",
            f"{dotted(table.path) or 'it'} has the unknown key {name!r}, which mergekit would ignore."
            + (did_you_mean(name, table.known) or f" Known: {', '.join(table.known)}."),
            dotted((*table.path, name)),
            "correct or remove it",
        )
        for table in tables(document.value, mixture=mixture, homes=document.homes)
        for name in table.unread()
        if not is_idle(name, table, recipe) and dotted(table.path) not in refused
    ]


def parse_recipe(text: str, what: str = "the recipe", *, unread: bool = False) -> tuple[Recipe, list[Problem]]:
    """Recipe text → recipe and problems, with `unread` also for keys that mergekit ignores; those come first.

    Several documents make a multi-stage recipe. Raises `Malformed` for broken YAML.
    """
    found = read_text(text, what)
    stages = zip(found.documents, found.stages, strict=True) if unread and found.stages else ()
    ignored = [problem for document, (recipe, own) in stages for problem in unread_keys(document, recipe, own)]
    return found.recipe, [*ignored, *found.problems]


def read_recipe(text: str, what: str = "the recipe", *, unread: bool = False) -> Recipe:
    """A recipe that mergekit's reader would accept. Raises `Malformed` with the first problem and how many more there are.

    With `unread`, keys that mergekit would ignore are problems too.
    """
    recipe, problems = parse_recipe(text, what, unread=unread)
    if problems:
        first = problems[0]
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Malformed(f"{what} cannot be used: {first.message}{more}", first.fix or NEXT, where=first.where, code=first.code)
    return recipe


def merge_recipe(text: str) -> Recipe:
    """The recipe of one merge, held to what a plan relies on.

    Keys that mergekit would ignore are errors, because a misspelt `parameters` changes the result without a word. Raises
    `Malformed` for what is no recipe, with the place and the value; `Unsupported` for a mixture of experts or several stages.
    """
    recipe = read_recipe(text, unread=True)
    if recipe.kind != "merge":
        raise Unsupported(f"{_RUNNERS[recipe.kind]}, this engine does not", "use --engine mergekit")
    for group in recipe.groups():
        _check_layers(group)
    return recipe


def _check_layers(group: Group) -> None:
    ranges = [(source.model, source.layer_range) for source in group.sources if source.layer_range is not None]
    for ref, (first, end) in ranges:
        if not 0 <= first < end:
            raise Malformed(f"layer_range [{first}, {end}] of {ref} holds no layer", "the end is exclusive and above the start")
    if len({end - first for _, (first, end) in ranges}) > 1:
        shown = ", ".join(f"{ref} [{first}, {end}]" for ref, (first, end) in ranges)
        raise Malformed(
            f"the sources of {group.where} have different numbers of layers: {shown}", "give them ranges of one length"
        )
