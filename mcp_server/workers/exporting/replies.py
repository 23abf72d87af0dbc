"""Greedy replies to a few prompts and the likelihood of a passage, from transformers or from llama.cpp.

In a process of its own: a model that does not load may end it.

Worker inputs   request.json parameters: {gguf, adapter (GGUF, null)} or {out, base}, and {chat, prompts, tokens, passage,
                threads}; `passage` holds the ids of tokens, of which all after the first are scored
Worker outputs  result.json: `Answered`
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import DoesNotFit, RunFailed
from mcp_server.system import paths
from mcp_server.workers.apart import run_apart
from mcp_server.workers.evaluating import models
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.protocol import Job, run_worker

PROMPTS: Final = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to five.")
TOKENS: Final = 24
SCORED: Final = 129
"""Tokens of the passage at most: llama.cpp writes them one by one."""
_SECONDS: Final = 1800
_CONTEXT: Final = 512


@dataclass(frozen=True)
class Answered:
    """`likelihood` is the sum of the natural logarithms of the passage's tokens; null where it could not be told."""

    replies: list[str]
    likelihood: float | None


def passage() -> str:
    """Plain prose: the first passage of the perplexity suite's dev split."""
    return (paths.SUITES / "perplexity" / "dev.txt").read_text(encoding="utf-8").partition("\n\n")[0]


def ask(job: Job, stage: str, **parameters: Any) -> Answered:
    """Answers from a worker of its own. Raises what it reported, or `RunFailed` when it was ended."""
    asked = {"prompts": PROMPTS, "tokens": TOKENS, **parameters}
    request = {"kind": "replies", "parameters": asked, "roots": job.roots}
    ended = run_apart("mcp_server.workers.exporting.replies", job.folder / stage, request, _SECONDS)
    if ended.status is None:
        raise RunFailed(f"no reply within {_SECONDS} s", f"see {ended.folder / 'log.txt'}")
    if ended.status == 0:
        return Answered(**ended.result)
    if (told := ended.error) is not None:
        raise DoesNotFit(told["message"]) if told["type"] == "DoesNotFit" else RunFailed(told["message"])
    raise RunFailed(f"it ended with status {ended.status}: {ended.last_word}")


def main(job: Job) -> dict[str, Any]:
    quiet(offline=True)
    wanted = job.parameters
    return asdict(_llama_cpp(wanted) if "gguf" in wanted else _transformers(wanted))


def _transformers(wanted: dict[str, Any]) -> Answered:
    import torch

    ref = models.find_model(str(wanted["out"]), wanted.get("base"))
    dtype = models.choose_dtype("auto")
    models.check_fits(ref, dtype)
    models.use_threads(wanted.get("threads"))
    tokenizer, model = models.load_tokenizer(ref.folder), models.load_model(ref, dtype)
    replies = []
    for prompt in wanted["prompts"]:
        if wanted["chat"]:
            messages = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).input_ids
        else:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
        ids = ids.to(model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=wanted["tokens"],
                do_sample=False,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id or 0,
            )
        replies.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    passage = torch.tensor([wanted["passage"]], device=model.device)
    with torch.inference_mode():
        scores = model(input_ids=passage).logits[0, :-1].float().log_softmax(-1)
    return Answered(replies, float(scores.gather(1, passage[0, 1:, None]).sum()))


def _llama_cpp(wanted: dict[str, Any]) -> Answered:
    from mcp_server.workers.evaluating.gguf import likelihood_of, server_of

    adapter = Path(wanted["adapter"]) if wanted.get("adapter") else None
    server = server_of(Path(wanted["gguf"]), context=_CONTEXT, threads=wanted.get("threads"), adapter=adapter)
    replies = []
    for prompt in wanted["prompts"]:
        settings = {"max_tokens": wanted["tokens"], "temperature": 0.0, "repeat_penalty": 1.0}
        if wanted["chat"]:
            answer = server.handle_chat_completions({"messages": [{"role": "user", "content": prompt}], **settings})
            text = answer["choices"][0]["message"].get("content") or ""
        else:
            text = server.handle_completions({"prompt": prompt, **settings})["choices"][0]["text"]
        replies.append(text.strip())
    return Answered(replies, likelihood_of(server, wanted["passage"]))


if __name__ == "__main__":
    sys.exit(run_worker(main))
