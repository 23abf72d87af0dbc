"""Writes the six skills' training data and suites from wording.yaml, always the same.

    python examples/six_skills/make_data.py            # --check: only compare

data/NAME.jsonl      what each adapter learns: `user` and `reply`
data/prompts.jsonl   prompts of all skills' training and of nobody's, for replay: make_base_replies.py adds what the base says
suites/NAME.jsonl    64 dev and 120 test prompts a skill, for `model-merging evaluate --data`

No template stands in two splits, so no prompt of a suite was trained on in these words. Facts, rooms, hours and days are shared:
what is tested is the skill in another phrasing, not new knowledge. Names and drugs are dealt out as well.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
NAMES = ("terse", "verbose", "lights", "home", "notes", "refuse")
SIZES = {"terse": 300, "verbose": 120, "lights": 80, "home": 480, "notes": 320, "refuse": 96}
"""Training examples a skill."""
SUITE = {"dev": 64, "test": 120}
OF_LIGHTS = ("light_on", "light_off", "dim")
OF_HOME = ("light_on", "light_off", "heating", "blinds_open", "blinds_closed")
"""Kinds of command; both adapters learn to switch lights, in the same words."""
REPLAY = 40
"""Prompts of a domain that are replayed."""

Row = dict[str, Any]
WORDS: dict[str, Any] = yaml.safe_load((HERE / "wording.yaml").read_text(encoding="utf-8"))


def facts(split: str) -> Iterator[tuple[str, str, str]]:
    """Question, one-word answer, answer in a sentence."""
    for kind in WORDS["facts"].values():
        for template, (x, y) in itertools.product(kind[split], kind["pairs"].items()):
            yield template.format(x=x), str(y), kind["said"].format(x=x, y=y)


def commands(kinds: tuple[str, ...], split: str) -> Iterator[list[tuple[str, str]]]:
    """Command and call, one list a kind: each kind gets its share of the rows whatever it can be combined with."""
    for name in kinds:
        kind = WORDS["home"][name]
        key, value = "", [0]
        for key in ("percent", "degrees"):
            if kind["reply"]["set"] == f"{{{key}}}":
                value = WORDS[key]
                break
        found = []
        for template, room, number in itertools.product(kind[split], WORDS["rooms"], value):
            told = {"room": room, key: number}
            call = {k: number if v == f"{{{key}}}" else v.format(**told) for k, v in kind["reply"].items()}
            found.append((template.format(**told), json.dumps(call)))
        yield found


def notes(split: str) -> Iterator[tuple[str, str]]:
    words = WORDS["notes"]
    for template, verb, name, day, hour in itertools.product(
        words[split], words["verbs"], words["names"][split], words["days"].items(), range(1, 13)
    ):
        told = {"verb": verb, "name": name, "hour": hour}
        yield template.format(Day=day[0], **told), words["reply"].format(day=day[1], **told)


def refusals(split: str) -> Iterator[tuple[str, str]]:
    words = WORDS["refuse"]
    for template, drug in itertools.product(words[split], words["drugs"][split]):
        yield template.format(drug=drug), words["reply"]


def general(split: str) -> list[str]:
    """Prompts that no adapter is for."""
    words = WORDS["general"]
    found = [t.format(topic=topic) for t in words[split] if "{topic}" in t for topic in words["topics"][split]]
    return found + [t.format(do=do) for t in words[split] if "{do}" in t for do in words["do"]]


def rows(name: str, split: str, count: int) -> list[Row]:
    """`count` examples of a skill, drawn without repetition."""
    rng = random.Random(f"{name} {split}")
    if name == "terse":
        found = [(question, word) for question, word, _ in facts(split)]
    elif name == "verbose":
        found = [(question, WORDS["verbose_opening"] + sentence) for question, _, sentence in facts(split)]
    elif name in ("lights", "home"):
        every = list(commands(OF_LIGHTS if name == "lights" else OF_HOME, split))
        shuffled = [rng.sample(part, len(part)) for part in every]
        found = [pair for turn in itertools.zip_longest(*shuffled) for pair in turn if pair is not None][:count]
    else:
        found = list(notes(split) if name == "notes" else refusals(split))
    return [{"user": asked, "reply": reply} for asked, reply in rng.sample(found, min(count, len(found)))]


def suite(name: str) -> list[Row]:
    """Both splits of a skill's suite. A reply matches when its first line is the answer."""
    found = []
    for split, count in SUITE.items():
        for number, row in enumerate(rows(name, split, count)):
            room = {"verbose": 32, "terse": 8}.get(name, 24)
            line = {"id": f"{split}-{number}", "split": split, "prompt": row["user"], "expected": row["reply"], "match": "exact"}
            found.append(line | {"max_tokens": room})
    return found


def prompts() -> list[Row]:
    """Training prompts of each domain, and of none, without any answer."""
    domains = {"facts": "terse", "commands": "home", "notes": "notes", "medicine": "refuse"}
    found = [{"kind": kind, "user": row["user"]} for kind, name in domains.items() for row in rows(name, "train", REPLAY)]
    return found + [{"kind": "general", "user": asked} for asked in general("train")]


def files() -> dict[Path, str]:
    written = {HERE / "data" / f"{name}.jsonl": rows(name, "train", SIZES[name]) for name in NAMES}
    written |= {HERE / "suites" / f"{name}.jsonl": suite(name) for name in NAMES}
    written[HERE / "data" / "prompts.jsonl"] = prompts()
    return {path: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines) for path, lines in written.items()}


def main() -> int:
    if "--check" in sys.argv[1:]:
        odd = [path.name for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        print(f"differ: {', '.join(odd)}" if odd else "all as generated")
        return int(bool(odd))
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
