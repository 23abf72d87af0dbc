"""One place where every tool call is checked on its way in and its result on its way out.

In: an argument that the tool does not have is an error that names the nearest one (the SDK would ignore it), and a value of
the wrong type or outside its bounds is reported as argument, problem and value found. Out: a `MergingError` becomes a
`ToolError` with its next step, the only form whose text reaches the model; results longer than the limit are shortened
(`bounds`). Bugs stay bugs: the model reads that the call failed, the log has the traceback.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, ValidationError

from mcp_server.errors import did_you_mean
from mcp_server.server.access import Access
from mcp_server.server.bounds import MAX_CHARACTERS, ROOM_FOR_NOTE, compact, keep_whole_result, shorten
from mcp_server.server.published import input_schema
from mcp_server.server.words import in_tool_words, told_in_tool_words
from mcp_server.system import guard
from mcp_server.system.os_errors import refusal


class CheckedTool(Tool):
    """A tool of the SDK whose calls go through the checks above."""

    async def run(self, arguments: dict[str, Any], context: Any, convert_result: bool = False) -> Any:
        known = self.parameters.get("properties", {})
        self._refuse_unknown(arguments, known)
        try:
            self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            raise ToolError("\n".join(_problems(error, self.fn_metadata.arg_model))) from error
        try:
            with guard.enforced(Access.now().policy):
                result = await super().run(arguments, context, convert_result=convert_result)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UnexpectedToolError) else error
            if (refused := refusal(cause)) is None:
                raise
            raise ToolError(_limited(in_tool_words(str(refused)))) from cause
        return self._bounded(result) if isinstance(result, CallToolResult) else result

    def _refuse_unknown(self, arguments: dict[str, Any], known: dict[str, Any]) -> None:
        for name in arguments:
            if name not in known:
                takes = f"{self.name} takes {', '.join(known)}" if known else f"{self.name} takes no arguments"
                raise ToolError(f"{self.name} has no argument {name!r}.{did_you_mean(name, known)}\n→ {takes}")

    def _bounded(self, result: CallToolResult) -> CallToolResult:
        data = told_in_tool_words(result.structured_content)
        if data is None or result.is_error:
            return result
        text = compact(data)
        if len(text) <= MAX_CHARACTERS:
            return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)
        shorter, cuts = shorten(data, MAX_CHARACTERS - ROOM_FOR_NOTE)
        whole = keep_whole_result(self.name, data)
        note = f"Shortened ({'; '.join(cuts[:6])}). The whole result is in {whole}"
        self.fn_metadata.convert_result(shorter)
        return CallToolResult(
            content=[TextContent(type="text", text=compact(shorter)), TextContent(type="text", text=note)],
            structured_content=shorter,
            _meta={"model-merging/shortened": cuts, "model-merging/whole_result": str(whole)},
        )


def checked(fn: Callable[..., Any], title: str, annotations: ToolAnnotations) -> CheckedTool:
    """Register `fn` under its own name; its docstring is what the model reads, its return model is the output schema.

    Several tools return the same model, so its schema is made once (the server's start counts in milliseconds).
    """
    description = _one_paragraph(fn.__doc__)
    tool = Tool.from_function(fn, title=title, description=description, annotations=annotations, structured_output=False)
    returned = get_type_hints(fn)["return"]
    tool.fn_metadata.output_model = returned
    tool.fn_metadata.output_schema = _output_schema(returned)
    fields = {name: getattr(tool, name) for name in Tool.model_fields}
    return CheckedTool(**{**fields, "parameters": input_schema(tool.parameters)})


@functools.cache
def _output_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What a client validates against. Descriptions and defaults are for those who fill a schema in; nobody fills in a result."""
    schema: dict[str, Any] = _without(model.model_json_schema(), frozenset({"title", "description", "default"}))
    return schema


def _without(schema: Any, annotations: frozenset[str] = frozenset({"title"})) -> Any:
    """The schema without these annotations; a property that is *named* so stays."""
    if isinstance(schema, list):
        return [_without(item, annotations) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            found[key] = {name: _without(item, annotations) for name, item in value.items()}
        elif key in ("examples", "const", "enum") or (key == "default" and key not in annotations):
            found[key] = value
        elif key not in annotations:
            found[key] = _without(value, annotations)
    return found


def _one_paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _limited(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _problems(error: ValidationError, arguments: type[BaseModel]) -> Iterator[str]:
    """One line a problem: where, what, the value found, and for a misspelt field the nearest right one. Eight lines at most."""
    problems = error.errors(include_url=False)
    for problem in problems[:8]:
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        if problem["type"] == "extra_forbidden":
            siblings = _fields_at(arguments, problem["loc"][:-1])
            hint = did_you_mean(str(problem["loc"][-1]), siblings) or (f" Known: {', '.join(siblings)}." if siblings else "")
            yield f"{where}: there is no such field.{hint}"
        elif problem["type"] == "missing":
            yield f"{where}: this argument is required"
        else:
            expected = problem.get("ctx", {}).get("expected", "")
            near = did_you_mean(str(problem["input"]), [part.strip(" '") for part in expected.replace(" or ", ",").split(",")])
            yield f"{where}: {problem['msg']}, found {_shown(problem['input'])}.{near}"
    if len(problems) > 8:
        yield f"… and {len(problems) - 8} more problems"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _fields_at(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The field names of the model at `where`, found through its JSON schema; empty when it is no model."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for part in where:
        options = _alternatives(node, definitions)
        step = [o["items"] for o in options if "items" in o] if isinstance(part, int) else []
        step += [o["properties"][part] for o in options if part in o.get("properties", {})]
        if not step:
            continue  # the name of a union's member, which is no step in the schema
        node = step[0]
    return [name for option in _alternatives(node, definitions) for name in option.get("properties", {})]


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _alternatives(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in node:
        return [found for option in node["anyOf"] for found in _alternatives(option, definitions)]
    return [node]
