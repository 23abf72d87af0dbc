"""Processes by identity, and what they use.

A pid alone says little: it may have been given to another process since. With its start time it names one process for ever. On
Linux that is read in ticks since boot: psutil gives it as wall time, which moves when the clock is set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from mcp_server.schemas.base import Frozen
from mcp_server.system import machine
from mcp_server.system.paths import PACKAGE

_LINUX = sys.platform == "linux"


class ProcessId(Frozen):
    """`start` is opaque: it is compared, never computed with (clock ticks since boot plus the boot's id, or seconds)."""

    pid: int
    start: str


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now, or None. A zombie counts as gone."""
    start = _start(pid)
    return ProcessId(pid=pid, start=start) if start else None


def is_alive(process: ProcessId | None) -> bool:
    return process is not None and _start(process.pid) == process.start


def _start(pid: int) -> str | None:
    if not _LINUX:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
        return None
    try:
        # The command name is in parentheses and may hold anything; fields are counted from after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{fields[19]}@{_boot_id()}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def end_group(leader: ProcessId | None, grace_seconds: float = 2.0) -> bool:
    """End the process group that `leader` leads: SIGTERM, then SIGKILL after the grace. True when the leader is gone.

    Does nothing when the leader's pid belongs to another process by now.
    """
    if leader is None or not is_alive(leader):
        return True
    _signal_group(leader.pid, signal.SIGTERM)
    _wait_gone(leader, grace_seconds)
    _signal_group(leader.pid, signal.SIGKILL)  # also for members that outlived a leader that left in peace
    return _wait_gone(leader, 2.0)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _wait_gone(process: ProcessId, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    with contextlib.suppress(psutil.Error):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def anon_bytes(pid: int) -> int:
    """Memory of the process tree that cannot be reclaimed."""
    return sum(machine.anon_bytes(each) for each in tree(pid))


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
