"""GGUF exports that are measured: what llama.cpp runs is held against the merge on the same prompts, skill by skill.

llama.cpp's server tells no likelihoods of a prompt, so suites that compare them leave exports out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mcp_server.errors import BadInput, NotAModel, NotFound, Unsupported
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.folder import classify, folder_of
from mcp_server.formats.gguf import gguf_files, read_gguf
from mcp_server.formats.gguf_model import require_made_of
from mcp_server.formats.suites import Suite
from mcp_server.formats.tensors import read_json
from mcp_server.steps.evaluate.listing import needs_likelihoods
from mcp_server.steps.export import EXTRA
from mcp_server.steps.export.mixture import FILE_TYPES

_QUANTS: Final = {number: name for name, number in FILE_TYPES.items()}


def as_gguf(ref: str) -> str:
    """The GGUF file that a ref names by itself or by its folder; any other ref as it is. Raises `Malformed` where several lie."""
    path = Path(ref)
    if path.is_dir() and classify(path).kind == "gguf" and not (path / "config.json").is_file():
        return str(gguf_files(path)[0])
    return ref


def is_gguf(ref: str) -> bool:
    return ref.endswith(".gguf") and Path(ref).is_file()


def exports_of(given: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Label → file, for files or the folders that hold them: the quantisation, or the file's name where that is taken or unknown.

    Raises `NotFound`, `NotAModel` for what is no GGUF, `BadInput` for one that is named twice.
    """
    found: dict[str, str] = {}
    for text in given:
        if not Path(text).exists():
            raise NotFound(f"{text} does not exist", "name a GGUF file, or the folder of an export")
        files = gguf_files(Path(text))
        if not files:
            raise NotAModel(f"{text} is no GGUF file and no folder that holds one", "name what `model-merging export` wrote")
        file = str(files[0])
        if file in found.values():
            raise BadInput(f"{file} is named twice", "name every export once")
        quant = _QUANTS.get(read_gguf(Path(file)).metadata.get("general.file_type", -1))
        label = quant if quant and quant not in {*found, *taken} else Path(file).stem
        if label in {*found, *taken}:
            raise BadInput(f"{file} would be called {label!r}, as another model is", "rename the file")
        found[label] = file
    return found


def require_runnable(refs: Mapping[str, str], exports: Sequence[str], suites: Sequence[Suite]) -> None:
    """Raise before anything starts where a GGUF among `refs` cannot be measured, or is none of the models beside it.

    `exports` are labels of exports beside the merge: only these may be left out by a suite that needs likelihoods.
    """
    files = {label: Path(ref) for label, ref in refs.items() if is_gguf(ref)}
    if not files:
        return
    if find_spec("xllamacpp") is None:
        raise Unsupported("measuring a GGUF needs xllamacpp, which is not installed", f"install it: {EXTRA}")
    needing = [suite.title or suite.name for suite in suites if needs_likelihoods(suite)]
    if needing and (len(needing) == len(suites) or set(files) - set(exports)):
        raise Unsupported(
            f"{', '.join(needing)}: llama.cpp tells no likelihoods of a prompt, which the suite compares",
            "name suites that are measured by replies (model-merging suites)",
        )
    for file in files.values():
        for part in gguf_files(file):
            read_gguf(part)
    configs = {label: _config_of(ref) for label, ref in refs.items() if label not in files}
    like = {label: configs[label] for label in (["merged"] if "merged" in configs else configs)}
    for file in files.values():
        for label, config in like.items():
            require_made_of(gguf_files(file), config, f"the config.json of {label}")


def _config_of(ref: str) -> dict[str, object]:
    folder = folder_of(locate(ref if Path(ref).exists() else ref.partition("+")[0]))
    return read_json(folder / "config.json")
