"""Reading recipes: mergekit's YAML as typed data."""

from mcp_server.formats.recipe.parse import Problem, parse_document
from mcp_server.formats.recipe.read import Read, merge_recipe, parse_recipe, read_recipe, read_text
from mcp_server.formats.recipe.refs import parse_ref
from mcp_server.formats.recipe.settings import (
    MISSING,
    as_flag,
    as_number,
    evaluate,
    has_fallback,
    is_filters,
    is_gradient,
    resolve,
    scalars,
)
from mcp_server.formats.recipe.types import KEEPS_TIES, Expert, Group, ModelRef, Module, OutputSlice, Recipe, Source, keeps_ties

__all__ = [
    "KEEPS_TIES",
    "MISSING",
    "Expert",
    "Group",
    "ModelRef",
    "Module",
    "OutputSlice",
    "Problem",
    "Read",
    "Recipe",
    "Source",
    "as_flag",
    "as_number",
    "evaluate",
    "has_fallback",
    "is_filters",
    "is_gradient",
    "keeps_ties",
    "merge_recipe",
    "parse_document",
    "parse_recipe",
    "parse_ref",
    "read_recipe",
    "read_text",
    "resolve",
    "scalars",
]
