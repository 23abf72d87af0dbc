"""Perplexity of a passage in transformers: of a model, and of the model with the weights of its GGUF, unpacked by gguf's reader.

usage: score_gguf.py FOLDER GGUF
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcp_server.workers.exporting.replies import SCORED, passage


def main(folder: str, file: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(passage()).input_ids[:SCORED]])

    def perplexity(path: str, **settings: str) -> float:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **settings)
        with torch.inference_mode():
            return float(model(input_ids=ids, labels=ids).loss.exp())

    place = Path(file)
    rounded = perplexity(str(place.parent), gguf_file=place.name)
    print(json.dumps({"merge": perplexity(folder), "export": rounded}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
