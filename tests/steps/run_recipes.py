"""Run recipes with mergekit itself, in one process because importing it takes seconds: a script of test_render_runs.py.

usage: run_recipes.py FOLDER

Makes four tiny models and two adapters under FOLDER/models, then reads FOLDER/recipes.json ({"name": {"runner", "text"}}), has
mergekit plan and run each, and writes FOLDER/report.json: name → {"error"}, or the merged model's number of layers and tensors,
whether every value is finite, and what transformers loads it as.

With --models-only the models are made and nothing else.
"""

import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.moe.config import MoEMergeConfig
from mergekit.options import MergeOptions
from mergekit.scripts import moe as moe_script
from mergekit.scripts import multimerge
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers

LAYERS = 4


def make_models(folder: Path) -> None:
    words = ["<s>", "</s>", "<unk>", "casual", "voice", "strict", "JSON", "hello", "call", "task", "list", "do"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(words), max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    for seed, name in enumerate(("base", "persona_full", "tools_full", "third_full")):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    for seed, (name, rank) in enumerate((("persona", 2), ("tools", 4))):
        torch.manual_seed(10 + seed)
        base = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        adapter = get_peft_model(
            base, LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
        adapter.save_pretrained(folder / name)


def run(one: dict[str, str], work: Path) -> dict[str, Any]:
    out = work / "out"
    options = MergeOptions(
        write_model_card=False,
        quiet=True,
        random_seed=1,
        num_threads=1,
        lora_merge_cache=str(work / "lora"),
        trust_remote_code=False,
    )
    work.mkdir(parents=True)
    if one["runner"] == "mergekit-moe":
        moe_script.build(MoEMergeConfig.model_validate(yaml.safe_load(one["text"])), str(out), options, device="cpu")
    elif one["runner"] == "mergekit-multi":
        (work / "recipe.yml").write_text(one["text"], encoding="utf-8")
        multimerge.main.callback(
            config_file=str(work / "recipe.yml"),
            intermediate_dir=str(work / "stages"),
            out_path=str(out),
            lazy=True,
            merge_options=options,
        )
    else:
        config = MergeConfiguration.model_validate(yaml.safe_load(one["text"]))
        run_merge(config, str(out), options=options)  # plans first, with the planner that mergekit-yaml uses
    return describe(out)


def describe(out: Path) -> dict[str, Any]:
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    finite, tensors = True, 0
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="pt") as data:
            for name in data.keys():  # noqa: SIM118 - no mapping, it only has keys()
                tensors += 1
                finite = finite and bool(torch.isfinite(data.get_tensor(name).float()).all())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    return {"layers": config["num_hidden_layers"], "tensors": tensors, "finite": finite, "loads": type(loaded).__name__}


def main() -> int:
    folder = Path(sys.argv[1])
    if not (folder / "models").is_dir():
        make_models(folder / "models")
    if "--models-only" in sys.argv:
        return 0
    report = {}
    for name, one in json.loads((folder / "recipes.json").read_text(encoding="utf-8")).items():
        try:
            report[name] = run(one, folder / "runs" / name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever mergekit raises is the finding
            report[name] = {"error": "".join(traceback.format_exception(error))[-3000:]}
        gc.collect()
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
