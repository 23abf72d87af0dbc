"""Does the model load with transformers and run? A process of its own, because the answer may be a killed process.

The class is the one that config.json names. What its loader reports (weights missing, left over, of another shape) is compared
with what it reports for the base: a class that loads its own base with a remark is no evidence against the merge. Without a
class of transformers' own (custom code, which is never run) there is no answer.

Worker inputs   request.json parameters: {out, base (null: unknown; for an adapter, its base), tokens}
Worker outputs  result.json: {"loads": bool or null, "detail": str, "seconds": float, "peak_rss_bytes": int}
Not covered     whether the text is any good: that is the evaluation's matter.
"""

from __future__ import annotations

import re
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError, Unsupported
from mcp_server.formats.identity import architectures
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.tensors import read_json
from mcp_server.steps.evaluate.held import BITS
from mcp_server.workers.evaluating import models
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.protocol import Job, run_worker

PROMPT = "The three primary colours are"
_KINDS = {
    "missing_keys": "weights that {cls} needs are not stored, such as {name}: a loader invents them",
    "mismatched_keys": "weights have another shape than {cls} needs, such as {name}",
    "unexpected_keys": "stored weights are not used by {cls}, such as {name}: a loader drops them",
}
"""What a loader reports, and what it means for a user, worst first."""


def main(job: Job) -> dict[str, Any]:
    """Load and run. A missing tensor, a shape that does not fit the config or a broken tokenizer shows here."""
    start = time.monotonic()
    quiet(offline=True)
    out, named = Path(str(job.parameters["out"])), job.parameters.get("base")
    try:
        ref = models.find_model(str(out), named)
    except MergingError as error:
        if not (out / "adapter_config.json").is_file():
            raise
        return _answer(None, f"the adapter's base cannot be opened: {error.message}", start)
    if ref.adapter is not None and not (ref.folder / "config.json").is_file():
        return _answer(None, f"the adapter's base is not here: {ref.folder}", start)
    cls, why = model_class(ref.folder)
    dtype = models.choose_held([ref], "auto") if cls is not None and is_causal(cls) else models.choose_dtype("auto")
    models.check_fits(ref, dtype)
    models.use_threads(job.parameters.get("threads"))
    job.progress("load", 0, 2)
    if cls is None:
        return _answer(None, why, start)
    base = None if ref.adapter else _base_folder(named)
    loads, said = attempt(cls, ref, base, dtype, int(job.parameters.get("tokens", 8)))
    job.progress("run", 2, 2)
    return _answer(loads, said, start)


def attempt(cls: Any, ref: models.ModelRef, base: Path | None, dtype: str, tokens: int) -> tuple[bool | None, str]:
    """(whether it loads, what to say). What the base alone cannot do here either is unknown of the merge, and no fault of it."""
    try:
        problem = "" if ref.adapter else differences(cls, ref.folder, base)
        model = None if problem else load(cls, ref, dtype)
    except Unsupported as error:
        return None, f"{error.message}; {error.next_step}"
    except Exception as error:  # noqa: BLE001 - whatever a class raises, it does not load
        refused = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, ImportError):
            return None, f"{cls.__name__} needs a package that is not installed ({refused})"
        alone = ref.folder if ref.adapter else base
        if alone is not None and (trouble := _trouble(cls, alone, dtype)):
            return (
                None,
                f"{cls.__name__} loads neither this nor its base alone ({trouble}); install what it needs, or load it elsewhere",
            )
        if ref.adapter and is_packed(ref.folder):
            return None, f"PEFT does not attach the adapter to packed weights here ({refused})"
        return False, f"{'PEFT' if ref.adapter else 'transformers'} refuses it: {refused}"
    if problem:
        return False, problem
    ran, said = run(model, ref.folder, tokens)
    del model
    if ran:
        return True, f"loads ({cls.__name__}, {dtype}) and {said}"
    alone = ref.folder if ref.adapter else base
    if alone is not None:
        if not _trouble(cls, alone, dtype, runs=True):
            return False, f"it loads, but {said}; the base runs"
        return (True, f"loads ({cls.__name__}, {dtype}); {said}") if ran is None else (None, f"{said}, nor are its base's")
    return (True, f"loads ({cls.__name__}, {dtype}); {said}") if ran is None else (False, f"it loads, but {said}")


def _trouble(cls: Any, folder: Path, dtype: str, *, runs: bool = False) -> str:
    """Why a base does not load by itself, or (with `runs`) does not run on text; '' when it does."""
    try:
        model = load(cls, models.ModelRef(folder), dtype)
    except Exception as error:  # noqa: BLE001 - whatever a class raises, it does not load
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not runs:
        return ""
    ran, said = run(model, folder, 1)
    return "" if ran else said


def is_packed(folder: Path) -> bool:
    """Whether the config says that weights are stored as codes."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def _base_folder(base: str | None) -> Path | None:
    """The base to compare with, when it is here."""
    if base is None:
        return None
    try:
        folder = Path(resolve_ref(base.partition("+")[0], Path.cwd()))
    except MergingError:
        return None
    return folder if (folder / "config.json").is_file() else None


def model_class(folder: Path) -> tuple[Any, str]:
    """transformers' class for a model folder, or (None, why there is none)."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_json(folder / "config.json")
    named = architectures(config)
    for name in named:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found, ""
    if named:
        return None, f"transformers {transformers.__version__} has no class {named[0]}, and a model's own code is never run"
    if config.get("model_type") in CONFIG_MAPPING:
        return transformers.AutoModel, ""
    return None, f"config.json names neither a class nor a model type of transformers {transformers.__version__}"


def is_causal(cls: Any) -> bool:
    """Whether it is a causal language model, which can be held in fewer bits than its files where these do not fit."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return cls.__name__ in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def differences(cls: Any, folder: Path, base: Path | None) -> str:
    """What the loader says about this folder that it does not say about the base; '' when that is nothing. No weight is read."""
    found = reported(cls, folder)
    if not any(found.values()):
        return ""
    known = reported(cls, base) if base is not None else {"unexpected_keys": found["unexpected_keys"]}
    for kind, text in _KINDS.items():
        expected = {_unnumbered(name) for name in known.get(kind, ())}
        if names := sorted(name for name in found[kind] if _unnumbered(name) not in expected):
            return f"{len(names)} {text.format(cls=cls.__name__, name=names[0])}"
    return ""


def reported(cls: Any, folder: Path) -> dict[str, set[str]]:
    """The names that the loader reports, by kind, when it maps the stored weights to the class without reading them."""
    _, info = cls.from_pretrained(
        str(folder), output_loading_info=True, ignore_mismatched_sizes=True, device_map="meta", dtype="auto", **_SAFE
    )
    return {kind: {str(n[0] if isinstance(n, tuple) else n) for n in info.get(kind) or ()} for kind in _KINDS}


_SAFE = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}


def _unnumbered(name: str) -> str:
    """Layers of a base and of a merge that stacks it otherwise are compared by what is in them."""
    return re.sub(r"\.\d+\.", ".N.", name)


def load(cls: Any, ref: models.ModelRef, dtype: str) -> Any:
    """The model in evaluation mode, an adapter attached by PEFT. Pickle weights and remote code are refused.

    Packed weights are unpacked where transformers can: PEFT attaches to weights, and few kinds of codes run on every processor.
    """
    import torch

    if dtype in BITS:
        return models.load_model(ref, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantization_config.*")  # that it is given twice is meant
        model = cls.from_pretrained(str(ref.folder), dtype="auto", **_unpacked(ref.folder), **_SAFE)
    packed = bool(getattr(model, "is_quantized", False))
    if ref.adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            model = PeftModel.from_pretrained(model, str(ref.adapter))
    if packed:
        return model.eval()  # codes have a dtype and a place of their own
    return model.to(device="cuda" if torch.cuda.is_available() else "cpu", dtype=getattr(torch, dtype)).eval()


def _unpacked(folder: Path) -> dict[str, Any]:
    """Settings that make transformers unpack a checkpoint, for kinds that it can unpack."""
    if not is_packed(folder):
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    settings = AutoQuantizationConfig.from_dict(dict(read_json(folder / "config.json")["quantization_config"]))
    if not hasattr(settings, "dequantize"):
        return {}
    settings.dequantize = True
    return {"quantization_config": settings}


def run(model: Any, folder: Path, tokens: int) -> tuple[bool | None, str]:
    """(whether it runs and its numbers are finite, what to say). None: it takes more than text, so it was not run."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None, f"not run: its input is {model.main_input_name}"
    try:
        with torch.inference_mode():
            if model.can_generate() and not getattr(config, "is_encoder_decoder", False):
                text, finite = generate(model, folder, tokens)
                said = f"continues {PROMPT!r} with {text!r}"
            else:
                ids = torch.zeros((1, 4), dtype=torch.long, device=model.device)
                more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
                output = model(input_ids=ids, **more)
                numbers = [v for v in output.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
                finite, said = all(bool(torch.isfinite(v).all()) for v in numbers), "runs on a few tokens"
    except Exception as error:  # noqa: BLE001 - whatever a class raises, it does not run on text alone
        return None, f"not run on text alone ({type(error).__name__}: {str(error)[:120]})"
    return (True, said) if finite else (False, f"its scores for {PROMPT!r} are not finite")


def generate(model: Any, folder: Path, tokens: int) -> tuple[str, bool]:
    """(continuation, whether the scores are finite). Without a tokenizer the prompt is token 0 and the ids are shown."""
    import torch

    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    tokenizer = models.load_tokenizer(folder) if has_tokenizer else None
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids if tokenizer else torch.zeros((1, 1), dtype=torch.long)
    scores = model(input_ids=ids.to(model.device)).logits[0, -1]
    written = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id if tokenizer else 0,
    )[0, ids.shape[1] :]
    return (tokenizer.decode(written) if tokenizer else str(written.tolist())), bool(torch.isfinite(scores).all())


def _answer(loads: bool | None, detail: str, start: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"loads": loads, "detail": detail, "seconds": round(time.monotonic() - start, 2), "peak_rss_bytes": peak}


if __name__ == "__main__":
    sys.exit(run_worker(main))
