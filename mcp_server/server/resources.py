"""What a client can read by address: a strategy's knowledge, its template, a job's folder in one document."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.mcpserver.resources import FunctionResource

from mcp_server import jobs
from mcp_server.errors import MergingError, NotFound, did_you_mean
from mcp_server.server.bounds import compact
from mcp_server.system import paths

YAML = "application/yaml"
JSON = "application/json"
LOG_TAIL_BYTES = 3_000


def register(server: MCPServer) -> None:
    """Templates for every address, and the strategies one by one, so that a client can list them."""
    server.resource(
        "merge://strategies/{id}",
        name="strategy",
        title="A merge strategy",
        description="Idea, inputs, parameters with legal ranges, when to use it and when not, with sources.",
        mime_type=YAML,
    )(told(strategy))
    server.resource(
        "merge://templates/{id}",
        name="template",
        title="A strategy's recipe template",
        description="The Jinja template that render_config fills in.",
        mime_type=YAML,
    )(told(template))
    server.resource(
        "merge://jobs/{id}",
        name="job",
        title="A job",
        description="Status, result or error, and the end of the log.",
        mime_type=JSON,
    )(told(job))
    for name in strategy_ids():
        server.add_resource(
            FunctionResource.from_function(
                partial(strategy, name),
                uri=f"merge://strategies/{name}",
                name=f"strategy-{name}",
                title=f"Strategy {name}",
                description="What it does, what it needs, when to use it.",
                mime_type=YAML,
            )
        )


def strategy_ids() -> list[str]:
    """By folder listing, as the catalogue finds them, without reading the files."""
    return sorted(path.stem for path in (paths.RULES / "strategies").glob("*.yaml"))


def strategy(id: str) -> str:
    return _known(id, "strategy", strategy_ids()) and (paths.RULES / "strategies" / f"{id}.yaml").read_text(encoding="utf-8")


def template(id: str) -> str:
    folder = paths.templates_dir()
    names = sorted(path.name.removesuffix(".yaml.j2") for path in folder.glob("*.yaml.j2"))
    return _known(id, "template", names) and (folder / f"{id}.yaml.j2").read_text(encoding="utf-8")


def job(id: str) -> str:
    status = jobs.status(id)
    return compact({"status": status.model_dump(mode="json"), "log_tail": _tail(Path(status.log_path))})


def _tail(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")


def _known(name: str, what: str, names: list[str]) -> str:
    if name not in names:
        raise NotFound(f"there is no {what} {name!r}.{did_you_mean(name, names)}", f"known: {', '.join(names)}")
    return name


def told(read: Callable[[str], str]) -> Callable[[str], str]:
    """The same function with our errors in the form whose text a client gets to see."""

    def told_read(id: str) -> str:
        try:
            return read(id)
        except NotFound as error:
            raise ResourceNotFoundError(str(error)) from error
        except MergingError as error:
            raise ResourceError(str(error)) from error

    return told_read
