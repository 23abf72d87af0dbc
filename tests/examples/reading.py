"""What the examples' tests read: adapters' files, and the script that makes the data."""

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def header(adapter: Path) -> dict[str, Any]:
    """Tensor name → its entry in the header of the adapter's weights."""
    with (adapter / "adapter_model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    found.pop("__metadata__", None)
    return found


def read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def generator_of(example: Path) -> ModuleType:
    """The example's make_data.py, imported by its path."""
    spec = importlib.util.spec_from_file_location(f"{example.name}_make_data", example / "make_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
