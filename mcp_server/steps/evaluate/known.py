"""How many answers of an evaluation are remembered, told before it starts and without opening a model.

Answers lie in a file for each model's content and numerics, by the hash of the prompt as that model saw it. Who has not rendered
the prompts cannot look them up, so beside that file stands, for each suite and split, how many prompts from the first on were
answered. It is a hint for estimates: who answers looks for every single prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mcp_server.formats.content import known_content
from mcp_server.formats.gguf import gguf_files
from mcp_server.formats.own_data import Split
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.suites import DEFAULT_SPLIT, Suite, content_hash
from mcp_server.steps.estimate.minutes import Known
from mcp_server.steps.evaluate.exports import is_gguf
from mcp_server.system import paths
from mcp_server.system.files import private_folder, write_json
from mcp_server.system.hashes import known_sha256

LLAMA_CPP: Final = "xllamacpp"
"""What the numerics of a GGUF begin with."""
_COUNTS: Final = ".known.json"


def answers_file(content: str, numerics: str) -> Path:
    """Where the answers of a model are remembered."""
    return paths.cache_dir() / "evaluations" / content[:32] / f"{numerics}.jsonl"


def note_answered(answers: Path, suite: Suite, split: Split | None, prompts: int) -> None:
    """The first `prompts` of the split stand in the file `answers` now."""
    file = answers.with_name(answers.stem + _COUNTS)
    counts = _counts(file)
    key = _key(suite, split)
    if prompts > counts.get(key, 0):
        private_folder(file.parent)
        write_json(file, counts | {key: prompts})


def known_prompts(refs: Mapping[str, str], held: str, suites: Sequence[Suite], split: Split | None) -> Known:
    """`held`: how weights would be held now; answers in other numerics are others. Nothing is read but notes of earlier runs."""
    keys = {suite.name: _key(suite, split) for suite in suites}
    found: dict[tuple[str, str], int] = {}
    for label, ref in refs.items():
        if (content := _content(ref)) is None:
            continue
        folder = answers_file(content, "").parent
        numerics = LLAMA_CPP if is_gguf(ref) else held
        for file in folder.glob(f"{numerics}-*{_COUNTS}"):
            counts = _counts(file) if file.with_name(file.name.removesuffix(_COUNTS) + ".jsonl").is_file() else {}
            for suite, key in keys.items():
                if key in counts:
                    found[label, suite] = max(counts[key], found.get((label, suite), 0))
    return found


def in_words(known: Known, prompts: Mapping[str, int | None], labels: Sequence[str]) -> str:
    """ "174 of 232 answers are known": of every model to every prompt; nothing where none is, or a suite cannot be counted."""
    if any(count is None for count in prompts.values()):
        return ""
    every = len(labels) * sum(count or 0 for count in prompts.values())
    some = sum(min(known.get((label, suite), 0), count or 0) for label in labels for suite, count in prompts.items())
    if not some:
        return ""
    return f"all {every:,} answers are known" if some == every else f"{some:,} of {every:,} answers are known"


def _content(ref: str) -> str | None:
    """What the answers of a model lie under, by the hashes that were noted of its files; null where one was not."""
    try:
        if is_gguf(ref):
            parts = [known_sha256(part) for part in gguf_files(Path(ref))]
            return None if None in parts else hashlib.sha256("".join(map(str, parts)).encode()).hexdigest()
        parts_of = [ref] if Path(ref).is_dir() else ref.split("+")
        base, *adapter = (Path(resolve_ref(part, Path.cwd())) for part in parts_of)
        return known_content(base, *adapter)
    except OSError:
        return None


def _key(suite: Suite, split: Split | None) -> str:
    whole = suite.data is not None or suite.text is not None
    return f"{suite.name} {content_hash(suite)[:16]} {split or ('whole' if whole else DEFAULT_SPLIT)}"


def _counts(file: Path) -> dict[str, int]:
    """Nothing where there is no file, or none of ours."""
    try:
        return {str(key): int(count) for key, count in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
