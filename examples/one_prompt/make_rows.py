"""Makes what two adapters learn under one system prompt: each its own examples, and the other role's prompts unanswered.

    python examples/one_prompt/make_rows.py            writes data/*.jsonl
    python examples/one_prompt/make_rows.py --check    exits 1 when a file differs from what it would write

Requests, chats and their targets come from examples/taskmaster/make_data.py, train wording only, with more phrasings from
wording.yaml. Dev and test are the documents of the shipped suites, asked under the one system prompt.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "taskmaster"))
from make_data import Chats, ToolRequests, jsonl  # noqa: E402
from make_data import wording as earlier  # noqa: E402

Row = dict[str, Any]
SEED = 11
SIZES = {
    "action": 4200, "both": 1200, "chat": 1100, "both_chat": 1100, "asked": 160, "felt": 160, "ordered": 400, "left_open": 160,
}  # fmt: skip


@functools.cache
def words() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "wording.yaml").read_text(encoding="utf-8"))
    return found


def alternatives(pattern: str) -> list[str]:
    """Each reading of a pattern in which [a|b|] stands for a, b or nothing."""
    parts = [part.split("|") for part in re.split(r"[\[\]]", pattern)]
    return [re.sub(r" {2,}", " ", "".join(choice)).strip() for choice in itertools.product(*parts)]


def contracted(text: str, rng: random.Random) -> str:
    """The text as people write it half of the time: "I'm" for "I am"."""
    if rng.random() < 0.5:
        return text
    for full, short in words()["contractions"]:
        text = re.sub(rf"\b{full}\b", short, text)
        text = re.sub(rf"\b{full[0].upper()}{full[1:]}\b", short[0].upper() + short[1:], text)
    return text


@functools.cache
def held_out(section: str, file: str = "tools") -> set[str]:
    """The phrases of dev and test in a section of the earlier wording."""
    phrases = earlier(file)[section]
    return {*phrases["dev"], *phrases["test"]}


def reading(patterns: list[str], held: set[str], rng: random.Random) -> str:
    """A pattern, one of its readings that is not of dev or test, half of the time contracted."""
    pattern = rng.choice(patterns)
    choices = alternatives(pattern) if "[" in pattern else [pattern]
    return contracted(rng.choice([choice for choice in choices if choice not in held]), rng)


class MoreRequests(ToolRequests):
    """Requests in the earlier train wording and, more often, in the new one; never a phrase of dev or test."""

    def __init__(self, seed: int) -> None:
        super().__init__("train", seed)
        self.more = words()["requests"]

    def pick(self, name: str) -> str:
        if self.rng.random() < 0.4:
            return contracted(super().pick(name), self.rng)
        phrase = reading(self.more[name], held_out(name), self.rng)
        return phrase.strip() if name == "openers" else phrase


class MoreChats(Chats):
    """Chats about the earlier train topics and the new ones, in the frames of both."""

    def __init__(self, seed: int) -> None:
        super().__init__("train", seed)
        own, earlier_words = words(), self.words
        frames = {kind: forms + own["frames"][kind] for kind, forms in earlier_words["frames"]["train"].items()}
        topics = earlier_words["topics"]["train"] + own["topics"]
        self.words = earlier_words | {"frames": {"train": frames}, "topics": {"train": topics}}


def felt(request: str, rng: random.Random) -> str:
    return f"{reading(words()['feelings'], held_out('feelings', 'mixed'), rng)} {request}"


def tools_rows() -> tuple[list[Row], list[Row]]:
    """Requests with their calls, and requests after a feeling, whose call follows words of the base (make_replay.py's part)."""
    made = list(MoreRequests(SEED).rows(SIZES["action"] + SIZES["both"]))
    rng = random.Random(SEED)
    rows = [{"user": row["user"], "reply": row["reply"]} for row in made]
    both = [{"user": felt(row["user"], rng), "said": "", "reply": row["reply"]} for row in rows[SIZES["action"] :]]
    return rows[: SIZES["action"]], both


def cheer(rng: random.Random) -> str:
    found = words()["cheers"]
    minutes = rng.choice([5, 10, 15, 20, 25])
    return " ".join([rng.choice(found["openers"]), rng.choice(found["timeboxes"]).format(n=minutes), found["signoffs"][0]])


def persona_rows() -> list[Row]:
    """Chats with TaskMaster's replies, and feelings before a request, cheered up with the turn left open for a call."""
    rng = random.Random(SEED + 1)
    rows: list[Row] = [{"user": contracted(r["user"], rng), "reply": r["reply"]} for r in MoreChats(SEED).rows(SIZES["chat"])]
    for request in MoreRequests(SEED + 1).rows(SIZES["both_chat"]):
        rows.append({"user": felt(request["user"], rng), "reply": cheer(rng), "end": "\n"})
    return rows


def prompts() -> list[Row]:
    """Prompts that one role leaves to the other or to neither; make_replay.py adds what the base says to them.

    `general` is asked under the one system prompt, `elsewhere` the same under others; `left_open` continues a cheer, where the
    other role's call belongs.
    """
    rng = random.Random(SEED + 2)
    chats = [{"kind": "chat", "user": contracted(r["user"], rng)} for r in MoreChats(SEED + 2).rows(SIZES["asked"])]
    requests = [r["user"] for r in MoreRequests(SEED + 2).rows(SIZES["ordered"] + SIZES["felt"] + SIZES["left_open"])]
    orders = [{"kind": "action", "user": user} for user in requests[: SIZES["ordered"]]]
    mixed = [felt(user, rng) for user in requests[SIZES["ordered"] :]]
    both = [{"kind": "both", "user": user} for user in mixed[: SIZES["felt"]]]
    left = [{"kind": "left_open", "user": user, "said": cheer(rng) + "\n"} for user in mixed[SIZES["felt"] :]]
    other, systems = earlier("chat")["replay"], earlier("chat")["systems"]
    general = [{"kind": "general", "user": user} for user in other[::3]]
    elsewhere = [{"kind": "elsewhere", "system": rng.choice(systems), "user": user} for user in other]
    return chats + orders + both + left + general + elsewhere


def files() -> dict[Path, str]:
    """The files that this script owns; make_replay.py owns those with the base's words."""
    action, _ = tools_rows()
    return {HERE / "data" / "tools.jsonl": jsonl(action), HERE / "data" / "persona.jsonl": jsonl(persona_rows())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args().check
    stale = []
    for path, text in files().items():
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print("stale: " + ", ".join(stale) + "; run examples/one_prompt/make_rows.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
