"""Run one mergekit command and follow it: its progress bars become events, its complaints become ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mcp_server.errors import BadInput, DiskFull, Incompatible, MergingError, OutOfMemory, RunFailed
from mcp_server.workers.protocol import Job, die_with_parent

_BAR: Final = re.compile(
    r"^(?P<stage>[^:|]{3,60}):\s*\d+%\|.*\|\s*(?P<done>[\d.]+)(?P<k1>[kMG]?)/(?P<total>[\d.]+)(?P<k2>[kMG]?)\s*\["
)
_UNITS: Final = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
_WARNING: Final = re.compile(r"^(?:\[?WARNING\]?|WARN|ERROR)[:\s](?:[\w.]+:)?\s*(?P<text>.+)")
_STAGES: Final = {
    "Warmup loader cache": "open",
    "Executing graph": "merge",
    "Merging models": "stages",
    "Expert prompts": "gates",
}
_SCRIPTS: Final = {"mergekit-yaml": "run_yaml", "mergekit-moe": "moe", "mergekit-multi": "multimerge"}

# (what mergekit says, our class, our message, what to do). `\1` is what the pattern caught.
_KNOWN: Final[tuple[tuple[re.Pattern[str], type[MergingError], str, str], ...]] = (
    (
        re.compile(r"No space left on device"),
        DiskFull,
        "the disk is full",
        "free some space and resume the job; the merge starts again from the beginning",
    ),
    (
        re.compile(r"MemoryError|DefaultCPUAllocator: can't allocate memory|std::bad_alloc"),
        OutOfMemory,
        "mergekit could not get the memory that it asked for",
        "",
    ),
    (
        re.compile(r"Tensor (\S+) required but not present in model (.+)"),
        Incompatible,
        r"\2 has no tensor \1, which the recipe needs",
        "compare the layer ranges with the models' number of layers: model-merging validate RECIPE --deep",
    ),
    (
        re.compile(r"Base input is not present in merge inputs|Merge method requires a base input"),
        BadInput,
        "the method needs the base model among the sources of every slice",
        "list base_model in each slice's sources, or use 'models:' instead of 'slices:'",
    ),
    (
        re.compile(r"Missing required parameter (\S+)"),
        BadInput,
        r"the recipe gives no value for \1",
        "add it under 'parameters:'",
    ),
    (
        re.compile(r"Tensor size mismatch for (\S+?)[,.]?(?:\s|$)"),
        Incompatible,
        r"the sources' tensors \1 differ in shape",
        "vocabularies differ: add a tokenizer block (tokenizer: {source: union})",
    ),
    (
        re.compile(r"SafetensorError: (.+)|Error while deserializing header: (.+)"),
        BadInput,
        "a source is not a sound safetensors file",
        "download or save the checkpoint again",
    ),
)


@dataclass(slots=True)
class Transcript:
    """What a command said that matters after it has ended."""

    warnings: list[str] = field(default_factory=list)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=60))


def command(name: str) -> list[str]:
    """The console script of this environment, run by this interpreter (no shebang, no PATH, no shell); else its module.

    The operator may name another folder of mergekit commands; those are run as they are.
    """
    if other := os.environ.get("MODEL_MERGING_MERGEKIT_BIN"):
        return [str(Path(other) / name)]
    script = Path(sys.executable).parent / name
    if script.is_file():
        return [sys.executable, "-P", str(script)]
    return [sys.executable, "-P", "-m", f"mergekit.scripts.{_SCRIPTS[name]}"]


def run(job: Job, arguments: list[str]) -> Transcript:
    """Run to the end. Raises one of our errors when the exit status is not 0, naming what mergekit said."""
    print("[model-merging] " + " ".join(arguments), flush=True)
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
    )
    transcript = Transcript()
    assert process.stdout is not None
    listen(job, process.stdout.fileno(), transcript)
    process.stdout.close()
    code = process.wait()
    if code != 0:
        raise explain(code, transcript, job.folder / "log.txt")
    return transcript


def listen(job: Job, pipe: int, transcript: Transcript) -> None:
    """Take in everything that is said, until the other end closes.

    A progress bar counts as soon as it is drawn: its line has no end until the next one is drawn over it.
    """
    rest = b""
    while data := os.read(pipe, 65_536):
        *lines, rest = re.split(rb"[\r\n]", rest + data)
        for line in lines:
            note(job, line.decode("utf-8", errors="replace").rstrip(), transcript)
        if len(rest) > 65_536:
            note(job, rest.decode("utf-8", errors="replace"), transcript)
            rest = b""
        elif _BAR.match(drawn := rest.decode("utf-8", errors="replace")):
            note(job, drawn, transcript)
    note(job, rest.decode("utf-8", errors="replace").rstrip(), transcript)


def note(job: Job, line: str, transcript: Transcript) -> None:
    """One line of output: progress becomes an event, the rest goes to the log."""
    if not line:
        return
    if bar := _BAR.match(line):
        done = float(bar["done"]) * _UNITS[bar["k1"]]
        total = float(bar["total"]) * _UNITS[bar["k2"]]
        job.progress(_STAGES.get(bar["stage"].strip(), bar["stage"].strip().lower()), done, total, unit="steps")
        return
    print(line[:4000], flush=True)
    transcript.last.append(line[:1000])
    if (warning := _WARNING.match(line)) and len(transcript.warnings) < 20:
        transcript.warnings.append(warning["text"][:300])


def explain(code: int, transcript: Transcript, log: Path) -> MergingError:
    """Why the command failed, in our words. Whether a kill was for lack of memory is the runner's to say: it counts them."""
    if code < 0:
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            name = signal.Signals(-code).name
            return RunFailed(f"mergekit was ended from outside ({name})", "resume the job to start it again", signal=-code)
        return RunFailed(f"mergekit crashed with signal {-code}", f"see {log}")
    text = "\n".join(transcript.last)
    for pattern, kind, message, step in _KNOWN:
        if found := pattern.search(text):
            return kind(found.expand(message), step or f"see {log}", log=str(log))
    last = next((line for line in reversed(transcript.last) if line.strip()), "nothing")
    return RunFailed(f"mergekit ended with status {code}: {last[:400]}", f"the whole log is in {log}", log=str(log))
