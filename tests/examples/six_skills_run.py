"""A shortened run of the six skills' benchmark on a two-layer Llama, as JSON on the last line: `python six_skills_run.py FOLDER`.

A process of its own, because transformers and peft warn on import and tests turn warnings into errors.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "workers")]
import tiny_language_model  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from benchmarks.six_skills import measure, run  # noqa: E402
from benchmarks.six_skills.recipes import EXAMPLE, NAMES, candidates  # noqa: E402

RANKS = {"terse": 4, "verbose": 8, "lights": 2, "home": 6, "notes": 8, "refuse": 4}


def made(folder: Path) -> None:
    tiny_language_model.model(0).to(torch.bfloat16).save_pretrained(folder / "base")
    tiny_language_model.tokenizer().save_pretrained(folder / "base")
    for seed, (name, rank) in enumerate(RANKS.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        targets = ["q_proj", "v_proj", "down_proj"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(base, config).save_pretrained(folder / name)


def ran(folder: Path, *more: str) -> None:
    sys.argv = ["run.py", str(folder / "base"), "--limit", "2", "--adapters", str(folder), "--rows", str(folder / "rows"), *more]
    run.main()


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows" / name).read_text(encoding="utf-8").splitlines()]


@torch.inference_mode()
def sum_of_two(folder: Path) -> float:
    """Farthest that a weight of the sum of two adapters is from PEFT's own products, in units of what bf16 rounds."""
    bench = measure.Bench(folder / "base", EXAMPLE / "suites", "dev", 2)
    recipe = candidates(("terse", "notes"), folder / "base", folder)["task_arithmetic lambda=1.0"].recipe
    bench.merge(recipe)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "terse", adapter_name="terse")
    model.load_adapter(folder / "notes", adapter_name="notes")
    worst = 0.0
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            wanted = module.base_layer.weight + module.get_delta_weight("terse") + module.get_delta_weight("notes")
            got = bench.weights[name.removeprefix("base_model.model.") + ".weight"]
            worst = max(worst, float(((got - wanted).abs() / (wanted.abs() * 2**-8 + 1e-6)).max()))
    return worst


@torch.inference_mode()
def counted(folder: Path) -> tuple[float, float]:
    """The score of prompts of which half have the model's own greedy answer, and that share by transformers' generate."""
    bench = measure.Bench(folder / "base", EXAMPLE / "suites", "dev", 8)
    plain = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    asked = []
    for number, row in enumerate(bench.asked["notes"]):
        ids = bench.texts.encode(bench.texts.chat(row))
        said = plain.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=2)[0, len(ids) :].tolist()
        text = bench.texts.tokenizer.decode(said, skip_special_tokens=True).replace(" ", "")
        asked.append(row | {"reply": text if number % 2 else text[:-1] + "#", "end": ""})
    bench.asked["notes"] = asked
    right = []
    for row in asked:
        prompt, reply = bench.texts.encode(bench.texts.chat(row)), bench.texts.encode(row["reply"])
        said = plain.generate(torch.tensor([prompt]), max_new_tokens=len(reply), do_sample=False, pad_token_id=2)[0]
        right.append(said[len(prompt) :].tolist() == reply)
    return bench.score("notes"), sum(right) / len(right)


def main(folder: Path) -> dict[str, Any]:
    made(folder)
    ran(folder)
    files = ("advice.jsonl", "sources.jsonl", "merges.jsonl")
    first = {name: rows(folder, name) for name in files}
    ran(folder)
    again = {name: rows(folder, name) for name in files}
    merges = first["merges.jsonl"]
    joint = shutil.copytree(folder / "terse", folder / "joint" / "terse-notes")
    (joint / "training.json").write_text("{}", encoding="utf-8")
    ran(folder, "--only", "joint", "--joint", str(folder / "joint"))
    ran(folder, "--only", "search", "--trials", "2", "--group", "terse notes")
    more = rows(folder, "merges.jsonl")[len(merges) :]
    return {
        "more": [(row["recipe"], row["sources"], row["split"], row.get("dev", {}).get("tried")) for row in more],
        "chosen": more[-1]["chosen"],
        "sources": [row["source"] for row in first["sources.jsonl"]],
        "groups": sorted({len(row["sources"]) for row in merges}),
        "ours": sum(not row["recipe"].startswith("peft") for row in merges),
        "refused": sorted({row["recipe"] for row in merges if "refused" in row}),
        "peft": sorted({row["recipe"] for row in merges if row["recipe"].startswith("peft") and "scores" in row}),
        "skills": all(sorted(row["scores"]) == sorted(row["sources"]) for row in merges if "scores" in row),
        "same": first == again,
        "names": NAMES,
        "sum": sum_of_two(folder),
        "counted": counted(folder),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
