"""Ask base, sources and merge the same thing at once, and remember nothing but the replies.

Worker inputs   request.json: `AskRequest`
Worker outputs  result.json: `Answers`
Not covered     sampling (replies are greedy, as in an evaluation) and conversations of more than one turn.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mcp_server.formats.lineage import read_lineage
from mcp_server.formats.own_data import Message
from mcp_server.schemas.job import AskRequest
from mcp_server.schemas.replies import Answers
from mcp_server.steps.evaluate.line_up import models_of, require_models
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.protocol import Job, run_worker


def main(job: Job) -> Answers:
    request = job.request(AskRequest)
    start = time.monotonic()
    refs = models_of(read_lineage(Path(request.out)), out=request.out, base=None, sources=None, against=request.against)
    require_models(refs)
    job.progress("starting", 0, len(refs), message="loading lm-eval")
    quiet(offline=True)
    from mcp_server.workers.evaluating.local import local_models
    from mcp_server.workers.evaluating.own_data import Asked, prompt_text

    system = [Message(role="system", content=request.system)] if request.system else []
    messages = [*system, Message(role="user", content=request.text)]
    models = local_models(refs, request.dtype, 1, request.threads)
    replies: dict[str, str] = {}
    for number, (label, opened) in enumerate(models.items()):
        job.progress(label, number, len(models), unit="models", message=f"model {number + 1} of {len(models)}")
        settings = {"until": [], "max_gen_toks": request.max_tokens, "do_sample": False}
        (replies[label],) = opened.model.generate_until([Asked((prompt_text(messages, opened.model), settings))])
        opened.release()
    return Answers(
        prompt=request.text,
        replies=replies,
        models={label: str(ref) for label, ref in refs.items()},
        numerics=next(iter(models.values())).numerics,
        seconds=round(time.monotonic() - start, 2),
    )


if __name__ == "__main__":
    sys.exit(run_worker(main))
