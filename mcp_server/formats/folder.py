"""What a folder holds: a full model, an adapter, or something that cannot be merged as it is, and then what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcp_server.errors import NotAModel, NotFound
from mcp_server.formats.companions import PROVENANCE_FILE, RECIPE_FILE
from mcp_server.formats.refs import nearby
from mcp_server.schemas.inspect import Kind

SAFE = "convert it to safetensors first, where you trust it: from_pretrained() it, then save_pretrained()"
_MODEL = (
    "from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')"
)
_ADAPTER = (
    "import torch; from safetensors.torch import save_file; "
    "save_file(torch.load('{folder}/adapter_model.bin', weights_only=True), '{folder}/adapter_model.safetensors')"
)
GGUF_ORIGINAL = "put config.json and the tokenizer files of the model that it was converted from into the folder of the GGUF"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """The kind of a folder and, when it is no plain model, why and what to do."""

    kind: Kind
    detail: str = ""
    """Why, and behind a semicolon what to do."""

    def refusal(self, message: str, otherwise: str, ref: str | None = None) -> NotAModel:
        """`message` with why, and what to do: `otherwise` where the kind itself does not say."""
        why, _, then = self.detail.partition("; ")
        about = {"kind": self.kind} if ref is None else {"kind": self.kind, "ref": ref}
        return NotAModel(f"{message}: {why}", then or otherwise, **about)


def classify(path: Path) -> FolderKind:
    """Look at names only; whether the weights are packed, their headers say."""
    if path.is_file():
        return _file(path)
    names = sorted(entry.name for entry in path.iterdir())
    adapter = "adapter_config.json" in names
    model = any(name in names for name in ("model.safetensors", "model.safetensors.index.json"))
    if adapter and not (model and "config.json" in names):
        return _adapter(path, names)
    if model and "config.json" in names:
        return FolderKind("full")
    if model:
        return FolderKind("not_a_model", "it has weights but no config.json; download or save the checkpoint again")
    if gguf := _ending(names, ".gguf"):
        if "config.json" in names:
            return FolderKind("gguf", f"its weights are GGUF ({gguf})")
        return FolderKind("gguf", f"{gguf} is GGUF, which holds no config.json, and none lies beside it; {GGUF_ORIGINAL}")
    if pickle := _ending(names, ".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return _pickle(pickle, _convert(_MODEL, path))
    if any(name.startswith("adapter_model.") for name in names):
        return FolderKind(
            "not_a_model", "it has the weights of an adapter but no adapter_config.json, which says their kind and scale"
        )
    if "consolidated.safetensors" in names:
        return FolderKind("not_a_model", "it has consolidated.safetensors, Mistral's own layout; download the other files")
    if shard := _ending(names, ".safetensors"):
        wanted = "model.safetensors or model.safetensors.index.json"
        return FolderKind("not_a_model", f"it has {shard} but no {wanted}: a download that was cut short, or another layout")
    if inner := next((entry.name for entry in sorted(path.iterdir()) if entry.is_dir() and _has_weights(entry)), None):
        return FolderKind("not_a_model", f"it has no weights, its folder {inner} does; name {path / inner}")
    if "config.json" in names:
        return FolderKind("not_a_model", "it has config.json but no weights: the download is not complete")
    found = ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "nothing"
    return FolderKind(
        "not_a_model", f"it holds {found}; a model has config.json and model.safetensors, an adapter adapter_config.json"
    )


def require_folder_there(out: Path) -> None:
    """Raise `NotFound` where no folder is, `NotAModel` for a file in its place."""
    if not out.exists():
        raise NotFound(f"{out} does not exist", f"name the folder of a merged model{nearby(out)}")
    if not out.is_dir():
        raise NotAModel(f"{out} is not a folder", "name the folder of a merged model")


def require_merge(out: Path) -> None:
    """Raise `NotFound` or `NotAModel` where nothing speaks of a merge: no files of a model or adapter, no record, no recipe.

    A merge whose weights are gone or broken is one: that is for the checks to say.
    """
    require_folder_there(out)
    found = classify(out)
    names = {entry.name for entry in out.iterdir()}
    spoken = {PROVENANCE_FILE, RECIPE_FILE} & names or _ending(sorted(names), ".safetensors", ".safetensors.index.json")
    if found.kind not in ("full", "lora") and not spoken:
        raise found.refusal(f"{out} is no merge", "name the folder of a merged model")


def folder_of(path: str | Path) -> Path:
    """Where config and tokenizer of a model lie: its folder; of a GGUF file the folder that it is in."""
    found = Path(path)
    return found.parent if found.suffix == ".gguf" and found.is_file() else found


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _file(path: Path) -> FolderKind:
    if path.suffix == ".gguf":
        if (path.parent / "config.json").is_file():
            return FolderKind("gguf", "its weights are GGUF")
        return FolderKind("gguf", f"it is GGUF, which holds no config.json, and none lies beside it; {GGUF_ORIGINAL}")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return _pickle("it", SAFE)
    if path.suffix == ".safetensors":
        return FolderKind("not_a_model", f"it is a single file; name its folder, {path.parent}")
    return FolderKind("not_a_model", "it is a file; name the folder that holds config.json and the weights")


def _adapter(folder: Path, names: list[str]) -> FolderKind:
    if "adapter_model.safetensors" in names:
        return FolderKind("lora")
    if "adapter_model.bin" in names:
        return _pickle("adapter_model.bin", _convert(_ADAPTER, folder))
    if "adapters.safetensors" in names:
        return FolderKind(
            "not_a_model", "it is an adapter of mlx-lm (adapters.safetensors); fuse it with mlx_lm.fuse, then merge models"
        )
    return FolderKind("not_a_model", "it has adapter_config.json but no adapter_model.safetensors; save the adapter again")


def _ending(names: list[str], *suffixes: str) -> str | None:
    return next((name for name in names if name.endswith(suffixes)), None)


def _pickle(what: str, convert: str) -> FolderKind:
    return FolderKind("pickle", f"{what} is a pickle, which can run code when it is opened; {convert}")


def _convert(code: str, folder: Path) -> str:
    return f'convert it to safetensors first, if you trust it: python -c "{code.format(folder=folder)}"'
