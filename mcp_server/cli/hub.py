"""fetch, export, publish: from a hub into the local cache, from a merge to the program that runs it, and to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, line, size, stderr
from mcp_server.cli.evidence import run_job
from mcp_server.cli.manners import starts_job
from mcp_server.cli.merging import merge_folder, output_path
from mcp_server.errors import NotAllowed
from mcp_server.formats.refs import anchor_whole, demo_aliases
from mcp_server.schemas.export import Exported
from mcp_server.schemas.hub import Fetched, MadeBase, Published
from mcp_server.schemas.job import ExportRequest, FetchRequest, PublishRequest
from mcp_server.steps.publish import publication


def register(app: typer.Typer) -> None:
    app.command()(fetch)
    app.command()(export)
    app.command()(publish)


@starts_job
def fetch(
    ref: Annotated[str, typer.Argument(help="hub id: owner/name, or owner/name@revision; or demo:smollm2-135m-instruct")],
    with_base: Annotated[bool, typer.Option(help="for an adapter, also fetch the base that it names")] = True,
    file: Annotated[str | None, typer.Option(help="of several GGUF models, the file or a part of its name: Q8_0")] = None,
    json: Json = False,
) -> int:
    """Download a model or adapter, resumable; a Ctrl-C or a cut connection loses nothing. Afterwards its id works everywhere."""
    result = run_job(FetchRequest(ref=ref, with_base=with_base, file=file), quiet=json)
    if ref in demo_aliases():
        made = MadeBase.model_validate(result)
        emit(made, json, lambda: show_made(made))
        return 0
    fetched = Fetched.model_validate(result)
    emit(fetched, json, lambda: show_fetched(fetched))
    return 0


def show_made(made: MadeBase) -> None:
    line("made" if made.built else "is there", made.path)


def show_fetched(found: Fetched) -> None:
    for part in filter(None, (found, found.base)):
        said = f"{part.kind} {part.ref}@{part.revision[:12]}: {part.files} files, {part.bytes / 1e6:,.1f} MB, in {part.folder}"
        line("fetched", said)
        for note in part.notes:
            stderr.print(note, markup=False, soft_wrap=True)
    line("next", f"model-merging inspect {found.ref}")


@starts_job
def export(
    out: Annotated[Path, typer.Argument(help="a merged model or adapter, or a job's id")],
    dest: Annotated[Path, typer.Argument(help="folder to write; must not exist")],
    to: Annotated[str, typer.Option(help="gguf (llama.cpp), ollama, vllm or mlx")],
    quant: Annotated[
        str | None, typer.Option(help="F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S or Q3_K_M; default: 16 bits")
    ] = None,
    base: Annotated[str | None, typer.Option(help="of an adapter, when its config does not say")] = None,
    check: Annotated[bool, typer.Option(help="load it in llama.cpp and compare its replies with the merge's")] = True,
    overwrite: Annotated[bool, typer.Option(help="replace an earlier export")] = False,
    threads: Annotated[int | None, typer.Option(help="worker threads; the result does not depend on them")] = None,
    json: Json = False,
) -> int:
    """Write a merge as GGUF for llama.cpp or Ollama, or the command that serves it with vLLM or MLX."""
    parameters = {
        "out": str(merge_folder(out)),
        "dest": str(output_path(dest)),
        "to": to,
        "quant": quant,
        "base": anchor_whole(base) if base else None,
        "check": check,
        "overwrite": overwrite,
        "threads": threads,
    }
    found = Exported.model_validate(run_job(ExportRequest.of(parameters), quiet=json))
    emit(found, json, lambda: show_exported(found))
    return exit_of_export(found)


def exit_of_export(found: Exported) -> int:
    """1 for a file that llama.cpp does not load."""
    return 1 if found.loads is False else 0


def show_exported(found: Exported) -> None:
    for name, count in found.files.items():
        line("wrote", f"{Path(found.folder) / name} ({size(count)})")
    if found.weight_error is not None:
        line("rounding", f"weights differ by {found.weight_error:.2%} (root mean square), most in {found.worst_tensor}")
    if (told := found.perplexity) is not None:
        of_merge = "" if told.merge is None else f", the merge {told.merge:.2f}"
        line("perplexity", f"{told.export:.2f}{of_merge}, over {told.tokens} tokens of plain prose (less is better)")
    for reply in found.replies:
        line("asked", reply.prompt)
        if reply.merge is not None:
            line("merge", reply.merge)
        line("export", reply.export)
    if found.same_replies is not None:
        line("replies", f"{found.same_replies} of {len(found.replies)} are the merge's word for word")
    for note in found.notes:
        stderr.print(note, markup=False, soft_wrap=True)
    line("next", found.command)


@starts_job
def publish(
    out: Annotated[Path, typer.Argument(help="a merged model or adapter, or a job's id")],
    repo: Annotated[str, typer.Argument(help="USER/NAME on the hub")],
    private: Annotated[bool, typer.Option("--private", help="only you may see it")] = False,
    licence: Annotated[str | None, typer.Option(help="of the merge, where its sources' licences leave a choice")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="upload; without it, only what would be uploaded is shown")] = False,
    json: Json = False,
) -> int:
    """Upload a merge with its card, recipe and evidence. Folders of this machine become hub ids or bare names."""
    folder = merge_folder(out)
    if not yes:
        planned = publication(folder, repo, private=private, licence=licence)
        for name in sorted([*planned.files, *planned.texts]):
            line("would send", name)
        line("licence", planned.licence or "none")
        for note in planned.notes:
            stderr.print(note, markup=False, soft_wrap=True)
        raise NotAllowed(
            f"nothing was uploaded: {size(planned.bytes)} would go to {repo}", "look at the list, then repeat it with --yes"
        )
    parameters = {"out": str(folder), "repo": repo, "private": private, "licence": licence, "yes": yes}
    found = Published.model_validate(run_job(PublishRequest.of(parameters), quiet=json))
    emit(found, json, lambda: show_published(found))
    return 0


def show_published(found: Published) -> None:
    line("published", f"{found.url}, {len(found.files)} files, {size(found.bytes)}, commit {found.commit[:12]}")
    for note in found.notes:
        stderr.print(note, markup=False, soft_wrap=True)
    line("next", f"model-merging fetch {found.repo}")
