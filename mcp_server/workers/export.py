"""Makes of a merge what another program loads: GGUF (llama.cpp, Ollama), or the commands that serve its folder (vLLM, MLX).

Worker inputs   request.json parameters: `ExportRequest`
Worker outputs  result.json: `Exported`, also export.json in the folder
A job that is resumed goes on after the last step that was whole: conversion, quantisation.
Not covered     vision and audio towers of multimodal models (llama.cpp keeps them in a file of their own).
"""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import DoesNotFit, MergingError, RunFailed
from mcp_server.formats.exports import EXPORT_FILE
from mcp_server.formats.gguf import read_gguf
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.export import Exported, Perplexity, Quant, Reply
from mcp_server.schemas.job import ExportRequest
from mcp_server.steps.export import Source, disk_bytes, require_exportable
from mcp_server.steps.export.modelfile import Turns, modelfile, turns_of
from mcp_server.steps.export.serving import mlx_command, vllm_command
from mcp_server.system.files import write_json, write_text
from mcp_server.system.hashes import stamp
from mcp_server.workers.evaluating.models import load_tokenizer
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.exporting import replies
from mcp_server.workers.exporting.adapter import write_gguf_adapter
from mcp_server.workers.exporting.converter import code_free_view, convert, stored_type
from mcp_server.workers.exporting.quantise import Quantised, quantise
from mcp_server.workers.protocol import Job, run_worker

MODELFILE: Final = "Modelfile"
SERVE: Final = "serve.sh"


def main(job: Job) -> Exported:
    quiet(offline=True)
    request = job.request(ExportRequest)
    partial = Path(str(request.partial))
    partial.mkdir(parents=True, exist_ok=True)
    source = require_exportable(request, partial)
    made = _served(request, source, partial) if request.to in ("vllm", "mlx") else _gguf(request, source, partial, job)
    files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
    made = made.model_copy(update={"files": files})
    write_json(partial / EXPORT_FILE, made.model_dump(mode="json"))
    return made


def _served(request: ExportRequest, source: Source, partial: Path) -> Exported:
    if request.to == "vllm":
        adapter = source.config if source.kind == "adapter" else None
        base = str(source.base) if source.base else source.base_name
        command = vllm_command(source.folder, adapter, base)
    else:
        command = mlx_command(source.folder, str(Path(request.dest) / "model"), request.quant)
    write_text(partial / SERVE, f"#!/bin/sh\nexec {command}\n")
    return _record(request, source, command, notes=[f"nothing was copied: {request.to} reads {source.folder}"])


def _record(request: ExportRequest, source: Source, command: str, **more: Any) -> Exported:
    known = {"target": request.to, "folder": request.dest, "source": source.folder.name, "kind": source.kind, "files": {}}
    return Exported(**known, command=command, **more)


def _gguf(request: ExportRequest, source: Source, partial: Path, job: Job) -> Exported:
    model, adapter, quantised = None, None, None
    notes: list[str] = []
    if source.kind == "model" or request.to == "ollama" or request.check:
        model, quantised = _model(request, source, partial, job)
    if source.kind == "adapter":
        assert source.base is not None
        adapter = partial / f"{source.folder.name}-lora.gguf"
        write_gguf_adapter(source.folder, source.base, adapter, job)
    assert source.model is not None
    tokenizer = load_tokenizer(source.model)
    checked = _checked(request, source, model, adapter, tokenizer, job, notes) if request.check and model is not None else {}
    if source.kind == "adapter" and request.to == "gguf" and model is not None:
        model.unlink()  # made only to try the adapter on it
        model, quantised = None, None
    if request.to == "ollama":
        assert model is not None
        _write_modelfile(source, model, adapter, tokenizer, partial, notes)
    types = quantised.types if quantised else read_gguf_types(model or adapter)
    quant: Quant | None = request.quant if model is not None else None
    lost = {"weight_error": quantised.error, "worst_tensor": quantised.worst or None} if quantised else {}
    command = _command(request, model, adapter)
    return _record(request, source, command, quant=quant, tensor_types=types, notes=notes, **lost, **checked)


def read_gguf_types(file: Path | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind in read_gguf(file).types.values() if file else ():
        found[kind] = found.get(kind, 0) + 1
    return found


def _model(request: ExportRequest, source: Source, partial: Path, job: Job) -> tuple[Path, Quantised | None]:
    """The GGUF of the model (an adapter's base), quantised when that was asked for."""
    folder = source.model
    assert folder is not None
    outtype = stored_type(read_json(folder / "config.json"), request.quant)
    quant = None if request.quant in (None, "F16", "BF16") else request.quant
    whole = partial / f"{folder.name}-{outtype.upper()}.gguf"
    small = partial / f"{folder.name}-{quant}.gguf"
    stamps = {path.name: stamp(path) for path in sorted(folder.iterdir()) if path.is_file()}
    if quant is not None and small.is_file() and (kept := _done(job, "quantised", stamps)) is not None:
        return small, Quantised(**kept)
    if not (whole.is_file() and _done(job, "converted", stamps) is not None):
        growing = partial / f".{whole.name}.part"
        view = code_free_view(folder, job.folder / "view")
        convert(view, growing, outtype, folder.name, disk_bytes(request.model_copy(update={"quant": None}), source), job)
        growing.replace(whole)
        _keep_done(job, "converted", stamps, {})
    if quant is None:
        return whole, None
    growing = partial / f".{small.name}.part"
    found = quantise(whole, growing, quant, request.threads, job)
    growing.replace(small)
    _keep_done(job, "quantised", stamps, asdict(found))
    whole.unlink()
    return small, found


def _done(job: Job, step: str, stamps: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run of this job noted when it had done a step, if the source's files are as they were then."""
    file = job.folder / f"{step}.json"
    if not file.is_file():
        return None
    noted = read_json(file)
    found: dict[str, Any] = noted["found"]
    return found if noted["stamps"] == stamps else None


def _keep_done(job: Job, step: str, stamps: dict[str, Any], found: dict[str, Any]) -> None:
    write_json(job.folder / f"{step}.json", {"stamps": stamps, "found": found})


def _checked(
    request: ExportRequest, source: Source, model: Path, adapter: Path | None, tokenizer: Any, job: Job, notes: list[str]
) -> dict[str, Any]:
    """Whether llama.cpp loads it, and its replies and its perplexity beside the merge's."""
    job.progress("load in llama.cpp", 0, 2, unit="models")
    passage = tokenizer(replies.passage()).input_ids[: replies.SCORED]
    settings = {"chat": bool(tokenizer.chat_template), "threads": request.threads, "passage": passage}
    try:
        theirs = replies.ask(job, "llama.cpp", gguf=str(model), adapter=adapter and str(adapter), **settings)
    except DoesNotFit as error:
        notes.append(f"not loaded: {error.message}")
        return {"loads": None}
    except RunFailed as error:
        notes.append(f"llama.cpp does not load it: {error.message}")
        return {"loads": False}
    job.progress("load in transformers", 1, 2, unit="models")
    ours: list[str | None] = [None] * len(theirs.replies)
    likelihood = None
    try:
        base = str(source.base) if source.base else None
        answered = replies.ask(job, "transformers", out=str(source.folder), base=base, **settings)
        ours, likelihood = [*answered.replies], answered.likelihood
    except MergingError as error:
        notes.append(f"not compared with the merge in transformers: {error.message}")
    job.progress("load in transformers", 2, 2, unit="models")
    found = [Reply(prompt=p, merge=o, export=t) for p, o, t in zip(replies.PROMPTS, ours, theirs.replies, strict=True)]
    same = sum(o == t for o, t in zip(ours, theirs.replies, strict=True)) if None not in ours else None
    return {
        "loads": True,
        "replies": found,
        "same_replies": same,
        "perplexity": _perplexity(passage, likelihood, theirs.likelihood),
    }


def _perplexity(passage: list[int], merge: float | None, export: float | None) -> Perplexity | None:
    scored = len(passage) - 1
    if export is None or scored < 1:
        return None
    return Perplexity(
        tokens=scored, merge=None if merge is None else math.exp(-merge / scored), export=math.exp(-export / scored)
    )


def _write_modelfile(source: Source, model: Path, adapter: Path | None, tokenizer: Any, partial: Path, notes: list[str]) -> None:
    assert source.model is not None
    turns: Turns | None = None
    if tokenizer.chat_template:
        begins = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]  # then llama.cpp puts it there by itself
        first = tokenizer.bos_token if begins else ""

        def render(messages: Any, add_generation_prompt: bool) -> str:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            return str(text).removeprefix(first) if first else str(text)

        turns = turns_of(render)
        if turns is None:
            notes.append(
                "the chat template has no equal in Ollama's language, so the Modelfile has none: Ollama uses the one that it "
                "recognises in the GGUF; check with `ollama show --template`"
            )
    else:
        notes.append("the model has no chat template: Ollama continues text")
    generation = source.model / "generation_config.json"
    settings = read_json(generation) if generation.is_file() else {}
    ends = settings.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else []
    stops = [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if isinstance(number, int)]
    stops = list(dict.fromkeys([*stops, *([str(tokenizer.eos_token)] if tokenizer.eos_token else [])]))
    sampling = settings if settings.get("do_sample", True) else {"temperature": 0}
    text = modelfile(model.name, adapter=adapter.name if adapter else None, turns=turns, stops=stops, generation=sampling)
    write_text(partial / MODELFILE, text)


def _command(request: ExportRequest, model: Path | None, adapter: Path | None) -> str:
    folder = Path(request.dest)
    if request.to == "ollama":
        name = shlex.quote(folder.name.lower())
        return f"ollama create {name} -f {shlex.quote(str(folder / MODELFILE))} && ollama run {name}"
    if model is None:
        return f"llama-cli -m BASE.gguf --lora {shlex.quote(str(folder / (adapter.name if adapter else '')))}"
    return f"llama-cli -m {shlex.quote(str(folder / model.name))}"


if __name__ == "__main__":
    sys.exit(run_worker(main))
