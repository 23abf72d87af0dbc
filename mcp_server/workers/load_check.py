"""Does the model load with transformers and produce a token? A process of its own, because the answer may be a killed process.

Worker inputs   request.json parameters: {out, base (for an adapter), tokens}
Worker outputs  result.json: {"loads": bool, "detail": str, "seconds": float, "peak_rss_bytes": int}
Not covered     whether the text is any good: that is the evaluation's matter.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from mcp_server.workers.evaluating import models
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.protocol import Job, run_worker

PROMPT = "The three primary colours are"


def main(job: Job) -> dict[str, Any]:
    """Load, feed a prompt, generate. A shape that does not fit the config, a missing tensor or a broken tokenizer shows here."""
    start = time.monotonic()
    quiet(offline=True)
    ref = models.find_model(str(job.parameters["out"]), job.parameters.get("base"))
    dtype = models.choose_dtype("auto")
    models.check_fits(ref, dtype)
    models.use_threads(job.parameters.get("threads"))
    job.progress("load", 0, 2)
    problems = missing_weights(ref)
    if problems:
        return _answer(False, problems, start)
    model = models.load_model(ref, dtype)
    job.progress("generate", 1, 2)
    text, finite = generate(model, ref, int(job.parameters.get("tokens", 8)))
    job.progress("generate", 2, 2)
    if not finite:
        return _answer(False, f"it loads, but its scores for {PROMPT!r} are not finite", start)
    return _answer(True, f"loads ({type(model).__name__}, {dtype}) and continues {PROMPT!r} with {text!r}", start)


def missing_weights(ref: models.ModelRef) -> str:
    """What transformers would invent or drop: it loads such a model without complaint, with random weights in the gaps."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mcp_server.formats.checkpoint import open_checkpoint

    config = AutoConfig.from_pretrained(str(ref.folder), local_files_only=True)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in shell.named_parameters(remove_duplicate=False)}
    tied = set(getattr(shell, "_tied_weights_keys", None) or ())
    stored = open_checkpoint(str(ref.folder)).tensors
    bare = {name.removeprefix(f"{shell.base_model_prefix}.") for name in stored} | set(stored)
    absent = [n for n in wanted if n not in bare and n.removeprefix(f"{shell.base_model_prefix}.") not in bare and n not in tied]
    if absent:
        return f"{len(absent)} weights that the architecture needs are not stored, such as {absent[0]}: a loader invents them"
    for name, tensor in stored.items():
        if name in wanted and wanted[name] != tensor.shape:
            return f"{name} has shape {list(tensor.shape)}, the architecture needs {list(wanted[name])}"
    return ""


def generate(model: Any, ref: models.ModelRef, tokens: int) -> tuple[str, bool]:
    """(continuation, whether the scores are finite). Without a tokenizer the prompt is token 0 and the ids are shown."""
    import torch

    has_tokenizer = any((ref.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    tokenizer = models.load_tokenizer(ref.folder) if has_tokenizer else None
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids if tokenizer else torch.zeros((1, 1), dtype=torch.long)
    with torch.inference_mode():
        scores = model(input_ids=ids.to(model.device)).logits[0, -1]
        finite = bool(torch.isfinite(scores).all())
        written = model.generate(
            ids.to(model.device),
            attention_mask=torch.ones_like(ids).to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer else 0,
        )[0, ids.shape[1] :]
    return (tokenizer.decode(written) if tokenizer else str(written.tolist())), finite


def _answer(loads: bool, detail: str, start: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"loads": loads, "detail": detail, "seconds": round(time.monotonic() - start, 2), "peak_rss_bytes": peak}


if __name__ == "__main__":
    sys.exit(run_worker(main))
