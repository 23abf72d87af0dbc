"""Ask mergekit's own planner whether it accepts a recipe, without running it: what `validate --deep` does.

Worker inputs   request.json parameters: {"text": recipe, "folder": what its relative paths are relative to}
Worker outputs  result.json: {"problems": [mergekit's objections, in its words], "tensors": how many it planned}

Every stage is planned as `mergekit-yaml` would, adapters included (a source `base+adapter` has the tensors of its base, so
nothing is folded), and every planned tensor is looked up in the sources' indexes, which mergekit itself does only when it runs.
A mixture of experts goes through mergekit-moe's own check.

Not covered: shapes and values (the linter and the run look at those); stages that use another stage's output, beyond their form;
hub ids that are not in the local cache: the worker answers with `NotFound` and never goes to the network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mcp_server.workers.protocol import Job, run_worker, tie_to_runner

os.environ["HF_HUB_OFFLINE"] = "1"
tie_to_runner()  # before mergekit, which takes seconds to import

import yaml  # noqa: E402
from mergekit.architecture import get_architecture_info  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.io.tasks import LoaderCache  # noqa: E402
from mergekit.merge import _model_out_config  # noqa: E402
from mergekit.moe.config import MoEMergeConfig, is_bad_config  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402
from mergekit.plan import MergePlanner  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from mcp_server.errors import NotFound  # noqa: E402
from mcp_server.formats.recipe import ModelRef, read_recipe  # noqa: E402
from mcp_server.formats.recipe.rewrite import rewrite_refs  # noqa: E402
from mcp_server.formats.refs import is_hub_id, resolve_ref  # noqa: E402
from mcp_server.formats.tensor_names import is_buffer, is_head, main_stack, split_layer, stacks  # noqa: E402

REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, OSError, NotImplementedError)
"""What mergekit raises for a recipe that it cannot plan; it has no exceptions of its own."""
SHOWN = 5


def main(job: Job) -> dict[str, Any]:
    text, folder = job.parameters["text"], Path(job.parameters["folder"])
    recipe = read_recipe(text)
    stages = {stage.name for stage in recipe.stages if stage.name}
    local = rewrite_refs(text, lambda ref: _local(ref, folder))
    documents = [document for document in yaml.safe_load_all(local) if document is not None]
    problems: list[str] = []
    planned = 0
    for number, document in enumerate(documents):
        job.progress("plan", number, len(documents))
        prefix = f"stage {number + 1}: " if len(documents) > 1 else ""
        try:
            found, tensors = _plan(document, stages, recipe.kind == "moe")
        except REFUSALS as refusal:
            found, tensors = [_short(refusal)], 0
        problems += [prefix + problem for problem in found]
        planned += tensors
    return {"problems": problems, "tensors": planned}


def _plan(document: dict[str, Any], stages: set[str], moe: bool) -> tuple[list[str], int]:
    if moe:
        config = MoEMergeConfig.model_validate(document)
        return (["mergekit-moe refuses the experts' settings (its log says which)"], 0) if is_bad_config(config) else ([], 0)
    document = {name: value for name, value in document.items() if name != "name"}
    config = MergeConfiguration.model_validate(document)
    if any(ref.model.path in stages for ref in config.referenced_models()):
        return [], 0
    options = MergeOptions(quiet=True)
    loaders = LoaderCache()
    loaders.setup(options)
    for ref in config.referenced_models():
        loaders.loaders[ref] = ref.model_copy(update={"lora": None}).lazy_loader()
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(config, architecture, options=options, out_model_config=_model_out_config(config, architecture))
    planner.normalize_config()
    for name, module in config.modules.items():
        planner.plan_module(name, module)
    return _missing(planner, loaders) + _left_out(planner, loaders, config), len(planner._tensors)


def _left_out(planner: Any, loaders: Any, config: Any) -> list[str]:
    """Stored tensors of the base that nothing planned reads or writes: mergekit would end well without them."""
    base = config.base_model or config.referenced_models()[0]
    index = loaders.get(base).index.tensor_paths
    planned = {weight.name for weight, _ in planner._tensors}
    for _, task in planner._tensors:
        gather = getattr(task.gather_tensors, "gather_tensors", task.gather_tensors)
        planned |= {load._resolve_name(loaders.get(load.model)) for load in gather.arguments().values()}
    sliced = any(module.slices for module in config.modules.values()) if config.modules else bool(config.slices)
    stack = main_stack(stacks(index)) if sliced else None
    left = [
        name
        for name in index
        if name not in planned
        and not is_buffer(name, ())
        and not is_head(name)
        and not name.endswith((".attn.bias", ".attention.bias"))
        and not (stack and (layer := split_layer(name)) and layer[0] == stack)
    ]
    if not left:
        return []
    return [f"it would leave out {len(left)} of the {len(index)} tensors of {base.model.path}, such as {left[0]}"]


def _missing(planner: Any, loaders: Any) -> list[str]:
    """Planned tensors that no source file holds: mergekit would stop at the first of them in mid-run."""
    missing: list[str] = []
    for _, task in planner._tensors:
        gather = task.gather_tensors
        gather = getattr(gather, "gather_tensors", gather)
        for load in gather.arguments().values():
            if not load.optional and load._resolve_name(loaders.get(load.model)) is None:
                missing.append(f"Tensor {load.tensor} required but not present in model {load.model}")
    more = [f"and {len(missing) - SHOWN} more tensors"] if len(missing) > SHOWN else []
    return list(dict.fromkeys(missing))[:SHOWN] + more


def _local(ref: ModelRef, folder: Path) -> ModelRef:
    """The ref with folders in place of names. Raises `NotFound` for a hub id that is not in the local cache."""
    found: dict[str, str | None] = {}
    for field, name, pinned in (("base", ref.base, "revision"), ("adapter", ref.adapter, "adapter_revision")):
        if name is not None:
            place = resolve_ref(name, folder, getattr(ref, pinned))
            found |= {field: place, pinned: None}  # the folder is that revision's
            if is_hub_id(place):
                raise NotFound(f"{name} is not on this machine, so mergekit's planner cannot be asked", f"hf download {name}")
    return ref.model_copy(update=found)


def _short(refusal: BaseException) -> str:
    if isinstance(refusal, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in refusal.errors()[:SHOWN])
    return " ".join(str(refusal).split())[:500] or type(refusal).__name__


if __name__ == "__main__":
    sys.exit(run_worker(main))
