"""How the files of an adapter or a checkpoint are rewritten into another form: by numpy and JSON alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Edit = Callable[[Path], None]
WEIGHTS = "adapter_model.safetensors"
DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I32": torch.int32,
}  # fmt: skip


def read(folder: Path, file: str = WEIGHTS) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / file))


def write(folder: Path, tensors: dict[str, torch.Tensor], file: str = WEIGHTS, **metadata: str) -> None:
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / file, metadata={"format": "pt"} | metadata)


def fill(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


def config(*gone: str, file: str = "adapter_config.json", **new: Any) -> Edit:
    """Take keys out of a config, and put others in."""

    def edit(folder: Path) -> None:
        table = json.loads((folder / file).read_text("utf-8"))
        kept = {key: value for key, value in table.items() if key not in gone} | new
        (folder / file).write_text(json.dumps(kept), encoding="utf-8")

    return edit


def rename(pattern: str, to: str, file: str = WEIGHTS) -> Edit:
    def edit(folder: Path) -> None:
        write(folder, {re.sub(pattern, to, key): value for key, value in read(folder, file).items()}, file)

    return edit


def drop(pattern: str, file: str = WEIGHTS) -> Edit:
    return lambda folder: write(folder, {k: v for k, v in read(folder, file).items() if not re.search(pattern, k)}, file)


def add(shapes: dict[str, list[int]], metadata: dict[str, str] | None = None, file: str = WEIGHTS) -> Edit:
    return lambda folder: write(
        folder, read(folder, file) | {k: torch.ones(v) for k, v in shapes.items()}, file, **(metadata or {})
    )


def cast(dtype: str, *, only: str = "", exact: bool = False, widen: bool = False, file: str = WEIGHTS) -> Edit:
    """Store in another dtype; `exact`: numbers that it holds; `widen`: with twice the inputs."""

    def edit(folder: Path) -> None:
        found = {}
        for key, value in read(folder, file).items():
            new = (value * 8).round() / 8 if exact else value
            new = torch.cat((new, new), 1) if widen and "lora_A" in key else new
            found[key] = new.to(DTYPES[dtype]) if only in key else new
        write(folder, found, file)

    return edit


def first_only(value: float, file: str = WEIGHTS) -> Edit:
    """One number of the first matrix is this."""

    def edit(folder: Path) -> None:
        found = read(folder, file)
        found[min(found)].view(-1)[0] = value
        write(folder, found, file)

    return edit


def saved_under(prefix: str) -> Edit:
    """A module that is stored whole, by the name that PEFT gives it in memory."""
    return rename(r"(lm_head\.)weight$", rf"\1{prefix}weight")


def doubled(name: str, under: str) -> Edit:
    """A module that is stored whole, and the base's own beside it."""

    def edit(folder: Path) -> None:
        found = read(folder)
        key = next(key for key in found if key.endswith(name))
        value = found.pop(key)
        stem = key.removesuffix("weight")
        write(folder, found | {f"{stem}modules_to_save.default.weight": value, f"{stem}{under}weight": value * 0})

    return edit


def elsewhere(name: str) -> Edit:
    return lambda folder: fill(folder / name, b"{}")


def pickled(folder: Path) -> None:
    torch.save(read(folder), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def shard(folder: Path) -> None:
    """What a process of a sharded training saves of what lies with others."""
    write(folder, {key: value[:0] for key, value in read(folder).items()})


def both_names(folder: Path) -> None:
    found = {}
    for key, value in read(folder).items():
        for name in ("default", "other"):
            found[key.replace(".weight", f".{name}.weight")] = value
    write(folder, found)


def kohya(folder: Path) -> None:
    """sd-scripts: names with underscores, lora_down and lora_up, and an alpha beside each pair."""
    found = {}
    for key, value in read(folder).items():
        stem, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        name = "lora_te_" + stem.replace(".", "_")
        found[f"{name}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value
        found[f"{name}.alpha"] = torch.tensor(6.0)
    write(folder, found)


def mlx(folder: Path) -> None:
    """mlx-lm: lora_a and lora_b turned over, and its own config."""
    found = {}
    for key, value in read(folder).items():
        stem, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        found[f"{stem}.lora_{part[0].lower()}"] = value.T
    write(folder, found, "adapters.safetensors")
    (folder / WEIGHTS).unlink()
    table = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(table), encoding="utf-8")


def unnamed(folder: Path) -> None:
    write(folder, {f"{number}.lora_{'AB'[number % 2]}.weight": value for number, value in enumerate(read(folder).values())})


def names(folder: Path, file: str) -> list[str]:
    with safe_open(folder / file, "pt") as opened:
        return list(opened.keys())
