"""The environment of a worker: what it needs, named; everything else of the caller's, secrets included, stays behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mcp_server.core.paths import PACKAGE

_NAMES: Final = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    }
)  # fmt: skip
_PREFIXES: Final = (
    "LC_", "XDG_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "OMP_", "MKL_",
    "OPENBLAS_", "NUMBA_", "RAY_", "LM_EVAL_", "COVERAGE_", "MODEL_MERGING_", "PYTORCH_", "TORCH",
)  # fmt: skip
_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


def worker_environment(
    caller: Mapping[str, str], *, threads: int | None, online: bool, mergekit_bin: Path | None = None
) -> dict[str, str]:
    """Offline unless the job names a hub id and the operator allows the network; only then does the hub token go along."""
    kept = {k: v for k, v in caller.items() if k in _NAMES or k.startswith(_PREFIXES)}
    if not online:
        kept = {k: v for k, v in kept.items() if k not in _TOKENS}
        kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    kept |= dict.fromkeys(_THREADS, str(threads or os.cpu_count() or 1))
    if mergekit_bin is not None:
        kept["MODEL_MERGING_MERGEKIT_BIN"] = str(mergekit_bin)
    return kept | {
        "MODEL_MERGING_RUNNER_PID": str(os.getpid()),
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
    }
