"""The small models and adapters that whole tasks start from: safetensors in Llama's names and shapes, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 96, 64, 128, 4, 4, 2
RANKS = {"persona": 8, "tools": 16, "verbose": 8, "concise": 8}
SAFETENSORS_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Tensors = dict[str, np.ndarray]


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of a folder's safetensors files as float32."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = np.frombuffer(data[8 + size + begin : 8 + size + end], SAFETENSORS_DTYPES[entry["dtype"]])
            if entry["dtype"] == "BF16":
                raw = (raw.astype(np.uint32) << 16).view(np.float32)
            found[name] = raw.astype(np.float32).reshape(entry["shape"])
    return found


def write_tensors(path: Path, tensors: Tensors) -> None:
    """One safetensors file, float32."""
    header: dict[str, object] = {}
    offset = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.size * 4]}
        offset += value.size * 4
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(value, "<f4").tobytes() for value in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def shapes(hidden: int = HIDDEN, vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint with untied embeddings."""
    kv = hidden // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {
            f"{at}self_attn.q_proj.weight": (hidden, hidden),
            f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, hidden),
            f"{at}mlp.gate_proj.weight": (INTERMEDIATE, hidden),
            f"{at}mlp.up_proj.weight": (INTERMEDIATE, hidden),
            f"{at}mlp.down_proj.weight": (hidden, INTERMEDIATE),
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_base(folder: Path, seed: int, hidden: int = HIDDEN, vocabulary: int = VOCABULARY) -> Tensors:
    """A model folder: config, tokenizer, weights."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(hidden, vocabulary).items():
        tensors[name] = np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.05, shape).astype(np.float32)
    write_model(folder, tensors, hidden, vocabulary)
    return tensors


def write_model(folder: Path, tensors: Tensors, hidden: int = HIDDEN, vocabulary: int = VOCABULARY) -> None:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, vocabulary)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": w, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False} for w, i in list(words.items())[:3]],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for name, content in (("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_tensors(folder / "model.safetensors", tensors)


def make_fine_tune(folder: Path, base: Tensors, seed: int, size: float = 0.01) -> None:
    """A full fine-tune: the base plus a small change everywhere but in the norms."""
    random = np.random.default_rng(seed)
    changed = {n: v if "norm" in n else v + random.normal(0, size, v.shape).astype(np.float32) for n, v in base.items()}
    write_model(folder, changed)


def make_adapter(folder: Path, base_folder: Path, seed: int, rank: int) -> None:
    """A LoRA adapter on q_proj and v_proj, alpha = 2 × rank."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in shapes().items():
        if "q_proj" not in name and "v_proj" not in name:
            continue
        at = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{at}.lora_A.weight"] = random.normal(0, 0.1, (rank, shape[1])).astype(np.float32)
        tensors[f"{at}.lora_B.weight"] = random.normal(0, 0.1, (shape[0], rank)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_folder.resolve()),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_tensors(folder / "adapter_model.safetensors", tensors)


def deltas(adapter: Path) -> Tensors:
    """ΔW = alpha / r · B · A of every module that the adapter changes."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = read_tensors(adapter)
    found = {}
    for name, a in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        short = module.split(".")[-1]
        rank = next((v for k, v in config.get("rank_pattern", {}).items() if k in module or k == short), config["r"])
        alpha = next((v for k, v in config.get("alpha_pattern", {}).items() if k in module or k == short), config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        found[f"{module}.weight"] = scale * (b @ a)
    return found


BROKEN_RECIPE = """\
merge_method: ties
slices:
  - sources:
      - model: ./code
        layer_range: [0, 32]
        parameters: {density: 1.5, weight: 0.6}
      - model: ./chat
        layer_range: [0, 32]
        density: 0.5
        parameters: {weight: 0.4}
dtype: float32
"""


BLOG_RECIPE = """\
# "One model to code and chat", from a blog. The post says: both at full weight, scaled by 0.5.
method: task-arithmetic
base: ./base
models:
  - model: ./code
    weight: 1.0
  - model: ./chat
    weight: 1.0
parameters:
  scaling: 0.5
dtype: bf16
"""

WRONG_BASE_RECIPE = """\
merge_method: task_arithmetic
base_model: ./other
models:
  - model: ./code
    parameters: {weight: 1.0}
  - model: ./chat
    parameters: {weight: 1.0}
parameters: {lambda: 0.7}
dtype: float32
"""

TICKETS = """\
question,answer,kind
Which ring shows the boiler is off?,blue,exact
Name the valve that closes first.,inlet valve,contains
What does code E7 mean?,low pressure,contains
How many bars at rest?,1.5,exact
Which key opens panel B?,key 3,contains
What colour is the return pipe?,red,exact
Which fuse feeds the pump?,F2,exact
Who signs the log?,the shift lead,contains
What is checked on Mondays?,the filter,contains
Which unit holds the spare belt?,unit 4,contains
What follows error E9?,a restart,contains
How long is the warm-up in minutes?,12,exact
"""


def wrong_base(workspace: Path) -> None:
    """code/ and chat/ were trained from base/; merged/ was made on other/, a base of the same shape that is not theirs."""
    other = make_base(workspace / "other", 7)
    code, chat = (read_tensors(workspace / name) for name in ("code", "chat"))
    merged = {n: v + 0.7 * ((code[n] - v) + (chat[n] - v)) if "norm" not in n else v for n, v in other.items()}
    write_model(workspace / "merged", merged)
    (workspace / "recipe.yml").write_text(WRONG_BASE_RECIPE, encoding="utf-8")


def prepare(task: str, workspace: Path) -> None:
    """Make the files that a task starts from, in an empty folder."""
    workspace.mkdir(parents=True, exist_ok=True)
    if task == "does-not-match":
        make_base(workspace / "small", 1)
        make_base(workspace / "wide", 2, hidden=128, vocabulary=160)
        return
    base = make_base(workspace / "base", 1)
    if task in ("broken-recipe", "pick-up-the-job", "blog-recipe", "gibberish", "favour-one", "own-data"):
        make_fine_tune(workspace / "code", base, 2)
        make_fine_tune(workspace / "chat", base, 3)
    names = {
        "two-adapters": ("persona", "tools"),
        "adapter-space": ("persona", "tools"),
        "retrain-instead": ("verbose", "concise"),
    }
    for seed, name in enumerate(names.get(task, ()), 10):
        make_adapter(workspace / name, workspace / "base", seed, RANKS[name])
    if task == "another-base":
        make_base(workspace / "other", 7)
        make_adapter(workspace / "persona", workspace / "base", 10, RANKS["persona"])
        make_adapter(workspace / "tools", workspace / "other", 11, RANKS["tools"])
    if task == "gibberish":
        wrong_base(workspace)
    if task == "own-data":
        (workspace / "tickets.csv").write_text(TICKETS, encoding="utf-8")
    if task == "blog-recipe":
        (workspace / "blog.yml").write_text(BLOG_RECIPE, encoding="utf-8")
    if task == "broken-recipe":
        (workspace / "recipe.yml").write_text(BROKEN_RECIPE, encoding="utf-8")
