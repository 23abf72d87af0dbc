"""The lm-eval task behind taskmaster_persona: two kinds of requests for one prompt, which YAML alone cannot ask for."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class PersonaTask(ConfigurableTask):
    """Asks for a greedy reply and, for the same prompt, for the log-likelihoods of TaskMaster's reply and of a neutral one."""

    def __init__(self, config: dict[str, Any]) -> None:
        # lm-eval 0.4.13 hands the key `class` on to a config that does not know it.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        reply = super().construct_requests(doc, ctx, **kwargs)
        scored = [
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, doc[field]), idx=idx, metadata=kwargs.get("metadata"))
            for idx, field in enumerate(("reply", "neutral"), start=1)
        ]
        return [reply, *scored]
