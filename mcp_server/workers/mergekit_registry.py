"""Write down what the installed mergekit says about its own methods, for `model-merging check --engine`.

in    nothing but the job folder
out   result.json: {"mergekit": version, "methods": {name: {base, min_inputs, max_inputs, min_non_base, max_non_base,
      parameters: [{name, scope, type, required, default}]}}, "moe": [{name, scope, type, required, default}]}

Not covered: what a method computes; the tests hold the streaming engine against mergekit for that.
"""

from __future__ import annotations

import importlib.metadata
import sys
import typing
from typing import Any

from mcp_server.workers.protocol import Job, run_worker, tie_to_runner

tie_to_runner()  # before mergekit, which takes seconds to import

from mergekit.merge_methods.base import ParameterScope  # noqa: E402
from mergekit.merge_methods.registry import registered_methods  # noqa: E402
from mergekit.moe.config import MoEMergeConfig  # noqa: E402

MOE_PARAMETERS = ("gate_mode", "experts_per_token")


def main(job: Job) -> dict[str, Any]:
    job.progress("reading mergekit's registry", 0, 1)
    return {
        "mergekit": importlib.metadata.version("mergekit"),
        "methods": {method.spec.name: describe(method.spec) for method in registered_methods()},
        "moe": [moe_parameter(name) for name in MOE_PARAMETERS],
    }


def describe(spec: Any) -> dict[str, Any]:
    contract = spec.contract
    return {
        "base": contract.base.value,
        "min_inputs": contract.min_inputs,
        "max_inputs": contract.max_inputs,
        "min_non_base": contract.min_non_base,
        "max_non_base": contract.max_non_base,
        "parameters": [
            {
                "name": parameter.name,
                "scope": "shared" if parameter.scope == ParameterScope.SHARED else "source",
                "type": type_name(parameter.value_type),
                "required": parameter.required,
                "default": None if parameter.required else parameter.default,
            }
            for parameter in spec.parameters
        ],
    }


def type_name(value_type: Any) -> str:
    """'float' for float and for Optional[float]."""
    if isinstance(value_type, type):
        return value_type.__name__
    plain = [part for part in typing.get_args(value_type) if part is not type(None)]
    return plain[0].__name__ if len(plain) == 1 else str(value_type)


def moe_parameter(name: str) -> dict[str, Any]:
    field = MoEMergeConfig.model_fields[name]
    return {
        "name": name,
        "scope": "shared",
        "type": type_name(field.annotation),
        "required": field.is_required(),
        "default": field.default,
    }


if __name__ == "__main__":
    sys.exit(run_worker(main))
