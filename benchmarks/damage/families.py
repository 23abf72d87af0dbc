"""Small models of eight arrangements, written with numpy alone: a base, two fine-tunes, an older state of one, another base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from tests import tiny
from tests.engine.synthetic import Tensors, run, save, write_adapter

Shapes = dict[str, tuple[int, ...]]
HIDDEN, KEYS, WIDE, WORDS, LAYERS, EXPERTS, RANK = 32, 16, 40, 48, 3, 4, 2
WEIGHTS = (0.6, 0.3)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Family:
    """`roles`: what a tensor is → its name. `adapted`: the sources are LoRA adapters of these modules; `adapter` merges them into
    one adapter, not into a model."""

    name: str
    config: dict[str, Any]
    shapes: Shapes
    roles: dict[str, str]
    dtype: str
    adapted: tuple[str, ...] = ()
    adapter: bool = False

    def recipe(
        self,
        folder: Path,
        method: str = "task_arithmetic",
        weights: tuple[float, ...] = WEIGHTS,
        base: str = "base",
        sources: tuple[str, ...] = ("one", "two"),
        **settings: Any,
    ) -> str:
        """`settings`: parameters of the whole recipe."""
        refs = [f"{folder / base}+{folder / name}" if self.adapted else str(folder / name) for name in sources]
        entries = [{"model": ref, "parameters": {"weight": weight}} for ref, weight in zip(refs, weights, strict=False)]
        made: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": self.dtype}
        made |= {"base_model": str(folder / base)} if method != "linear" else {}
        return json.dumps(made | ({"parameters": settings} if settings else {}))

    def merge(self, out: Path, recipe: str, seed: int = 5) -> None:
        if self.adapter:
            out.parent.mkdir(parents=True, exist_ok=True)
            merge_adapters(Request(recipe, out, out.with_suffix(".journal"), seed=seed), lambda *_: None)
        else:
            run(recipe, out, seed=seed)

    def build(self, folder: Path) -> Path:
        """The models that merges are made from."""
        base = self.weights(0)
        self.write(folder / "base", base)
        self.write(folder / "other", self.weights(7))
        for seed, name in ((1, "one"), (2, "two"), (3, "old")):
            if self.adapted:
                self.write_adapter(folder / name, seed)
            else:
                own = self.weights(seed)
                self.write(folder / name, {key: value + 0.2 * own[key] for key, value in base.items()})
        return folder

    def weights(self, seed: int) -> Tensors:
        generator = np.random.default_rng(seed)
        return {name: generator.standard_normal(shape) for name, shape in self.shapes.items()}

    def write(self, folder: Path, tensors: Tensors) -> None:
        folder.mkdir(parents=True)
        save(folder / "model.safetensors", tensors, self.dtype)
        config = self.config | {"torch_dtype": self.dtype, "bos_token_id": 1, "eos_token_id": 2}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}), encoding="utf-8")
        tiny.write_tokenizer(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}), encoding="utf-8")

    def write_adapter(self, folder: Path, seed: int) -> None:
        """LoRA on `adapted`; those that are folded have a pattern of alpha and a head saved whole."""
        generator = np.random.default_rng(seed)
        factors: Tensors = {}
        for module in self.adapted:
            rows, columns = self.shapes[f"{module}.weight"]
            factors[f"{module}.lora_A.weight"] = generator.standard_normal((RANK, columns)) * 0.3
            factors[f"{module}.lora_B.weight"] = generator.standard_normal((rows, RANK)) * 0.3
        more: dict[str, Any] = {"target_modules": sorted({module.rpartition(".")[2] for module in self.adapted})}
        if not self.adapter:
            factors["lm_head.weight"] = self.weights(0)["lm_head.weight"] + 0.2 * generator.standard_normal((WORDS, HIDDEN))
            more |= {"modules_to_save": ["lm_head"], "alpha_pattern": {"down_proj": 12}}
        write_adapter(folder, factors, r=RANK, lora_alpha=4, **more)


def _roles(names: Shapes, **roles: str) -> dict[str, str]:
    return {role: name for role, name in roles.items() if name in names}


def _family(name: str, config: dict[str, Any], shapes: Shapes, dtype: str, roles: dict[str, str], **more: Any) -> Family:
    return Family(name, config, shapes, roles, dtype, **more)


def _llama(*, head: bool) -> tuple[dict[str, Any], Shapes, dict[str, str]]:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "vocab_size": WORDS, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": not head,
        "attention_bias": True, "max_position_embeddings": 64,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for i in range(LAYERS):
        stem = f"model.layers.{i}."
        shapes |= {
            f"{stem}self_attn.q_proj.weight": (HIDDEN, HIDDEN), f"{stem}self_attn.q_proj.bias": (HIDDEN,),
            f"{stem}self_attn.k_proj.weight": (KEYS, HIDDEN), f"{stem}self_attn.v_proj.weight": (KEYS, HIDDEN),
            f"{stem}self_attn.o_proj.weight": (HIDDEN, HIDDEN), f"{stem}mlp.gate_proj.weight": (WIDE, HIDDEN),
            f"{stem}mlp.up_proj.weight": (WIDE, HIDDEN), f"{stem}mlp.down_proj.weight": (HIDDEN, WIDE),
            f"{stem}input_layernorm.weight": (HIDDEN,), f"{stem}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (HIDDEN,)} | ({"lm_head.weight": (WORDS, HIDDEN)} if head else {})
    roles = {
        "matrix": "model.layers.1.mlp.up_proj.weight", "square": "model.layers.0.self_attn.q_proj.weight",
        "other_square": "model.layers.0.self_attn.o_proj.weight", "gate": "model.layers.1.mlp.gate_proj.weight",
        "heads": "model.layers.2.self_attn.q_proj.weight", "norm": "model.layers.2.input_layernorm.weight",
        "bias": "model.layers.1.self_attn.q_proj.bias", "embedding": "model.embed_tokens.weight", "stack": "model.layers",
    }  # fmt: skip
    return config, shapes, roles | {"head": "lm_head.weight"} if head else roles | {"tied": "model.embed_tokens.weight"}


def _gpt2() -> Family:
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4,
        "vocab_size": WORDS, "n_positions": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }  # fmt: skip
    shapes: Shapes = {"transformer.wte.weight": (WORDS, HIDDEN), "transformer.wpe.weight": (64, HIDDEN)}
    for i in range(LAYERS):
        stem = f"transformer.h.{i}."
        shapes |= {
            f"{stem}ln_1.weight": (HIDDEN,), f"{stem}ln_1.bias": (HIDDEN,), f"{stem}attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
            f"{stem}attn.c_attn.bias": (3 * HIDDEN,), f"{stem}attn.c_proj.weight": (HIDDEN, HIDDEN),
            f"{stem}attn.c_proj.bias": (HIDDEN,), f"{stem}ln_2.weight": (HIDDEN,), f"{stem}ln_2.bias": (HIDDEN,),
            f"{stem}mlp.c_fc.weight": (HIDDEN, 2 * HIDDEN), f"{stem}mlp.c_fc.bias": (2 * HIDDEN,),
            f"{stem}mlp.c_proj.weight": (2 * HIDDEN, HIDDEN), f"{stem}mlp.c_proj.bias": (HIDDEN,),
        }  # fmt: skip
    shapes |= {"transformer.ln_f.weight": (HIDDEN,), "transformer.ln_f.bias": (HIDDEN,)}
    roles = {
        "matrix": "transformer.h.1.mlp.c_fc.weight", "square": "transformer.h.0.attn.c_proj.weight",
        "fused columns": "transformer.h.2.attn.c_attn.weight", "norm": "transformer.h.2.ln_1.weight",
        "bias": "transformer.h.1.attn.c_attn.bias", "embedding": "transformer.wte.weight", "tied": "transformer.wte.weight",
        "stack": "transformer.h",
    }  # fmt: skip
    return _family("GPT-2, Conv1D", config, shapes, "float32", roles)


def _phi3() -> Family:
    config = {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "vocab_size": WORDS, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for i in range(LAYERS):
        stem = f"model.layers.{i}."
        shapes |= {
            f"{stem}self_attn.qkv_proj.weight": (HIDDEN + 2 * KEYS, HIDDEN), f"{stem}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{stem}mlp.gate_up_proj.weight": (2 * WIDE, HIDDEN), f"{stem}mlp.down_proj.weight": (HIDDEN, WIDE),
            f"{stem}input_layernorm.weight": (HIDDEN,), f"{stem}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    roles = {
        "matrix": "model.layers.1.mlp.down_proj.weight", "square": "model.layers.0.self_attn.o_proj.weight",
        "fused rows": "model.layers.2.self_attn.qkv_proj.weight", "gate and up": "model.layers.1.mlp.gate_up_proj.weight",
        "norm": "model.layers.2.input_layernorm.weight", "embedding": "model.embed_tokens.weight", "head": "lm_head.weight",
        "stack": "model.layers",
    }  # fmt: skip
    return _family("Phi-3, fused QKV", config, shapes, "float16", roles)


def _mixtral() -> Family:
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "vocab_size": WORDS, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": False,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for i in range(LAYERS):
        stem = f"model.layers.{i}."
        shapes |= {
            f"{stem}self_attn.q_proj.weight": (HIDDEN, HIDDEN), f"{stem}self_attn.k_proj.weight": (KEYS, HIDDEN),
            f"{stem}self_attn.v_proj.weight": (KEYS, HIDDEN), f"{stem}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{stem}block_sparse_moe.gate.weight": (EXPERTS, HIDDEN), f"{stem}input_layernorm.weight": (HIDDEN,),
            f"{stem}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
        for e in range(EXPERTS):
            own = f"{stem}block_sparse_moe.experts.{e}."
            shapes |= {f"{own}w1.weight": (WIDE, HIDDEN), f"{own}w2.weight": (HIDDEN, WIDE), f"{own}w3.weight": (WIDE, HIDDEN)}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    roles = {
        "matrix": "model.layers.1.block_sparse_moe.experts.2.w1.weight", "square": "model.layers.0.self_attn.q_proj.weight",
        "other_square": "model.layers.0.self_attn.o_proj.weight", "gate": "model.layers.1.block_sparse_moe.experts.2.w3.weight",
        "heads": "model.layers.2.self_attn.q_proj.weight", "norm": "model.layers.2.input_layernorm.weight",
        "embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "stack": "model.layers",
        "router": "model.layers.1.block_sparse_moe.gate.weight", "expert": "model.layers.1.block_sparse_moe.experts.1.",
        "other expert": "model.layers.1.block_sparse_moe.experts.3.",
    }  # fmt: skip
    return Family("Mixtral, experts one by one", config, shapes, roles, "bfloat16")


def _stacked() -> Family:
    config = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "vocab_size": WORDS, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "sliding_window": 8,
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for i in range(LAYERS):
        stem = f"model.layers.{i}."
        shapes |= {
            f"{stem}self_attn.q_proj.weight": (HIDDEN, HIDDEN), f"{stem}self_attn.q_proj.bias": (HIDDEN,),
            f"{stem}self_attn.k_proj.weight": (KEYS, HIDDEN), f"{stem}self_attn.v_proj.weight": (KEYS, HIDDEN),
            f"{stem}self_attn.o_proj.weight": (HIDDEN, HIDDEN), f"{stem}self_attn.sinks": (4,),
            f"{stem}mlp.router.weight": (EXPERTS, HIDDEN), f"{stem}mlp.router.bias": (EXPERTS,),
            f"{stem}mlp.experts.gate_up_proj": (EXPERTS, HIDDEN, 2 * WIDE),
            f"{stem}mlp.experts.down_proj": (EXPERTS, WIDE, HIDDEN),
            f"{stem}mlp.experts.gate_up_proj_bias": (EXPERTS, 2 * WIDE), f"{stem}input_layernorm.weight": (HIDDEN,),
            f"{stem}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    roles = {
        "matrix": "model.layers.1.self_attn.k_proj.weight", "square": "model.layers.0.self_attn.q_proj.weight",
        "other_square": "model.layers.0.self_attn.o_proj.weight", "heads": "model.layers.2.self_attn.q_proj.weight",
        "norm": "model.layers.2.input_layernorm.weight", "bias": "model.layers.1.self_attn.q_proj.bias",
        "embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "stack": "model.layers",
        "router": "model.layers.1.mlp.router.weight", "experts": "model.layers.1.mlp.experts.gate_up_proj",
    }  # fmt: skip
    return _family("gpt-oss, stacked experts", config, shapes, "bfloat16", roles)


def _bart() -> Family:
    config = {
        "architectures": ["BartForConditionalGeneration"], "model_type": "bart", "d_model": HIDDEN, "vocab_size": WORDS,
        "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": WIDE, "decoder_ffn_dim": WIDE, "max_position_embeddings": 32, "activation_function": "gelu",
        "tie_word_embeddings": True, "decoder_start_token_id": 2,
    }  # fmt: skip
    shapes: Shapes = {"model.shared.weight": (WORDS, HIDDEN)}
    for part in ("encoder", "decoder"):
        shapes |= {f"model.{part}.embed_positions.weight": (34, HIDDEN), f"model.{part}.layernorm_embedding.weight": (HIDDEN,)}
        for i in range(LAYERS):
            stem = f"model.{part}.layers.{i}."
            for kind in ("self_attn", "encoder_attn")[: 2 if part == "decoder" else 1]:
                for letter in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= {f"{stem}{kind}.{letter}.weight": (HIDDEN, HIDDEN), f"{stem}{kind}.{letter}.bias": (HIDDEN,)}
            shapes |= {
                f"{stem}fc1.weight": (WIDE, HIDDEN), f"{stem}fc1.bias": (WIDE,), f"{stem}fc2.weight": (HIDDEN, WIDE),
                f"{stem}fc2.bias": (HIDDEN,), f"{stem}final_layer_norm.weight": (HIDDEN,),
                f"{stem}final_layer_norm.bias": (HIDDEN,),
            }  # fmt: skip
    roles = {
        "matrix": "model.decoder.layers.1.fc1.weight", "square": "model.encoder.layers.0.self_attn.q_proj.weight",
        "other_square": "model.encoder.layers.0.self_attn.k_proj.weight",
        "norm": "model.decoder.layers.2.final_layer_norm.weight",
        "heads": "model.decoder.layers.2.encoder_attn.q_proj.weight", "bias": "model.encoder.layers.1.fc1.bias",
        "embedding": "model.shared.weight", "tied": "model.shared.weight", "stack": "model.decoder.layers",
        "other stack": "model.encoder.layers",
    }  # fmt: skip
    return _family("BART, encoder and decoder", config, shapes, "float32", roles)


def _families() -> dict[str, Family]:
    config, shapes, roles = _llama(head=False)
    found = [_family("Llama, tied head", config, shapes, "bfloat16", roles), _gpt2(), _phi3(), _mixtral(), _stacked(), _bart()]
    config, shapes, roles = _llama(head=True)
    modules = tuple(
        f"model.layers.{i}.{module}" for i in range(LAYERS) for module in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    )
    own = {role: roles[role] for role in ("square", "matrix", "head", "norm", "bias", "embedding", "heads")}
    own["pattern"] = "model.layers.0.mlp.down_proj.weight"
    found.append(_family("Llama, adapters folded", config, shapes, "float32", own, adapted=modules))
    found.append(Family("Llama, adapters into one", config, shapes, {}, "float32", adapted=modules, adapter=True))
    return {family.name: family for family in found}


FAMILIES = _families()
