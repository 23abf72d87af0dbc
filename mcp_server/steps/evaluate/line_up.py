"""What an evaluation measures: which models (base, sources, others, and the merge last), by which suites, on how many prompts.

Whatever can be wrong with that is refused here, before a job starts and before anything is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcp_server.errors import BadInput, Malformed, NotAModel, NotFound
from mcp_server.formats.lineage import Lineage, read_lineage
from mcp_server.formats.own_data import of_split, read_data
from mcp_server.formats.suites import Suite, find_suite, list_suites
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.evaluate.exports import as_gguf, exports_of, is_gguf, require_runnable
from mcp_server.steps.evaluate.served import require_served
from mcp_server.steps.inspect import inspect_source

OTHER_SPLIT: Final = "choose the other split, or leave it out for the whole file"
NEUTRAL: Final = "refusals"
"""Plain prompts that no source was trained for: where the cross-context check looks for leaks into anything."""


def models_of(
    lineage: Lineage, *, out: str | None, base: str | None, sources: Mapping[str, str] | None, against: Mapping[str, str]
) -> dict[str, str]:
    """label → ref, in the order in which they are asked. What is not named comes from the merge's own record (`lineage`).

    `against` replaces the base or a source, or adds a model. Raises `BadInput` for a label with a meaning of its own.
    """
    base = against.get("base") or base or lineage.base
    sources = sources if sources is not None else lineage.sources
    if reserved := {"base", "merged"} & set(sources):
        raise BadInput(f"a source is called {sorted(reserved)[0]!r}, which has a meaning here", "rename that source")
    found = {"base": base} if base else {}
    found |= {name: _with_base(ref, base) for name, ref in sources.items()}
    if "merged" in against:
        raise BadInput("--against names a model 'merged', which is the one that is evaluated", "choose another name")
    for name, ref in against.items():
        if name != "base":
            found[name] = _with_base(ref, base)
    if out:
        found["merged"] = _with_base(out, base)
    if not found:
        raise BadInput("there is nothing to measure", "name a merged folder, or a base and sources")
    return found


def refs_of(request: EvaluateRequest, lineage: Lineage) -> tuple[dict[str, str], list[str]]:
    """(label → ref of every model that is measured, the labels of the merge's exports among them, which come last)."""
    out = as_gguf(request.out) if request.out else None
    refs = models_of(lineage, out=out, base=request.base, sources=request.sources, against=request.against)
    exports = exports_of(request.gguf, refs)
    return refs | exports, list(exports)


def lineage_of_request(request: EvaluateRequest) -> Lineage:
    """What the merge's own record says; nothing where sources alone, or a GGUF file, are measured."""
    return read_lineage(Path(request.out)) if request.out and Path(request.out).is_dir() else Lineage()


def require_models(refs: Mapping[str, str]) -> None:
    """Refuse what is no model before lm-eval is loaded; its own error would speak of tokenizers."""
    for label, ref in refs.items():
        if is_gguf(ref):
            continue
        for part in [ref] if Path(ref).is_dir() else ref.split("+"):
            try:
                found = inspect_source(part)
            except NotFound as missing:
                if label == "merged":
                    raise
                step = f"{missing.next_step}; or say where it is (against: {label}=FOLDER)"
                raise NotFound(f"{label}: {missing.message}", step, **missing.details) from missing
            if found.kind not in ("full", "lora"):
                raise NotAModel(f"{label}: {part} cannot be measured ({found.kind}); {found.detail}", "name a model's folder")


def _with_base(ref: str, base: str | None) -> str:
    """An adapter folder becomes `base+adapter`; everything else stays."""
    if base and "+" not in ref and Path(ref).joinpath("adapter_config.json").is_file():
        return f"{base}+{ref}"
    return ref


def require_measurable(request: EvaluateRequest) -> tuple[dict[str, str], list[Suite]]:
    """(models by label, suites) of a request that can be measured. Raises `BadInput` and its kin for one that cannot: a suite or
    a model that there is not, a file without prompts in the split, a server that does not answer or lacks what a suite needs."""
    refs, exports = refs_of(request, lineage_of_request(request))
    suites = suites_of(request, refs)
    for suite in suites:
        if suite.data is not None and not of_split(read_data(Path(suite.data)), request.split):
            raise Malformed(f"{suite.data} has no line in the {request.split} split", OTHER_SPLIT)
    if request.endpoint:
        if request.gguf:
            raise BadInput("a GGUF is run here, the other models at an endpoint", "measure them one after the other")
        require_served(request.endpoint, list(refs), request.served, suites)
    elif request.backend == "openai":
        raise BadInput("backend=openai needs an endpoint", "give its URL, such as http://localhost:8000/v1")
    else:
        require_models(refs)
        require_runnable(refs, exports, suites)
    return refs, suites


def suites_of(request: EvaluateRequest, labels: Iterable[str]) -> list[Suite]:
    """The suites that are asked for, else those about the models called `labels`. Raises `NotFound`, `Malformed`, `BadInput`."""
    if asked := [*request.suites, *request.data]:
        return distinct(find_suite(name, request.suite_folders) for name in asked)
    known = list_suites(request.suite_folders)
    wanted = {"perplexity", *labels} | ({NEUTRAL} if request.cross else set())
    return [suite for suite in known.values() if suite.name in wanted or suite.capability in wanted]


def distinct(suites: Iterable[Suite]) -> list[Suite]:
    """Raises `BadInput` where two have one name: their figures could not be told apart."""
    found = list(suites)
    if twice := [name for name, count in Counter(suite.name for suite in found).items() if count > 1]:
        raise BadInput(f"two suites or files are called {twice[0].removeprefix('data_')!r}", "rename one, or leave it out")
    return found


def limit_of(request: EvaluateRequest, suite: Suite) -> int | None:
    """The most prompts that are asked of a suite; null: all of its split."""
    return request.limit or (suite.demo_limit if request.quick else None)
