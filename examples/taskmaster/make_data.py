"""Makes the running example's data: requests to a Task API and chats with a coach, in train, dev and test.

    python examples/taskmaster/make_data.py            writes data/*.jsonl and the suites' documents
    python examples/taskmaster/make_data.py --check    exits 1 when the files on disk differ from what it would write

Everything is drawn from wording/*.yaml with a fixed seed, so the files are reproducible byte for byte. The three splits share
no wording, no title, no topic, no task id and no date; tests/examples checks it. Targets are written by these rules, not
by a model, so every one is right.
"""

from __future__ import annotations

import argparse
import calendar
import json
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SUITES = HERE.parents[1] / "mcp_server" / "suites"
SPLITS = ("train", "dev", "test")
SIZES = {"tools": {"train": 1000, "dev": 100, "test": 200}, "persona": {"train": 200, "dev": 40, "test": 100}}
SHARE = {"train": range(0, 7), "dev": range(7, 8), "test": range(8, 10)}
"""A date or id belongs to a split by its hash modulo 10, so that no digit pattern tells the splits apart."""

STATEMENTS = frozenset(
    {
        "I", "a", "all", "can", "could", "do", "done", "everything", "finished", "for",
        "is", "it", "let", "my", "new", "no", "nothing", "number", "someone", "task",
        "that", "the", "there", "to", "we", "what", "which", "you",
    }
)  # fmt: skip
"""First words of sentences that are no orders."""

Row = dict[str, Any]


def wording(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((HERE / "wording" / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


def ordinal(day: int) -> str:
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def belongs(key: str, split: str) -> bool:
    return zlib.crc32(key.encode()) % 10 in SHARE[split]


def dates(split: str) -> list[tuple[int, int]]:
    """(month, day) pairs of 2026 that belong to a split; every month and every day number occurs in train."""
    pairs = [(m, d) for m in range(1, 13) for d in range(1, calendar.monthrange(2026, m)[1] + 1)]
    return [(m, d) for m, d in pairs if belongs(f"{m}-{d}", split)]


def titles(groups: list[Row], split: str) -> list[str]:
    return [f"{verb} {thing}" for group in groups for thing in group[split] for verb in group["verbs"]]


class ToolRequests:
    """Draws requests to the Task API for one split, each with the call that answers it."""

    def __init__(self, split: str, seed: int) -> None:
        self.words = wording("tools")
        self.split = split
        self.rng = random.Random(f"tools-{split}-{seed}")
        self.titles = titles(self.words["titles"], split)
        self.rng.shuffle(self.titles)
        self.dates = dates(split)
        self.ids = [i for i in range(1, 1000) if belongs(str(i), split)]
        self.used_titles = 0

    def pick(self, name: str) -> str:
        choice: str = self.rng.choice(self.words[name][self.split])
        return choice

    def date(self) -> tuple[str, str]:
        """A date as the user writes it, and in ISO form."""
        month, day = self.rng.choice(self.dates)
        iso = f"2026-{month:02d}-{day:02d}"
        form = self.rng.choice(self.words["date_forms"])
        return form.format(day=day, month=calendar.month_name[month], iso=iso, ordinal=ordinal(day)), iso

    def title(self) -> str:
        """The next unused title, so that as few as possible repeat."""
        self.used_titles += 1
        return self.titles[(self.used_titles - 1) % len(self.titles)]

    def polish(self, core: str, *, imperative: bool) -> str:
        """Add an opener and a closer the way people do; titles keep their spelling."""
        text = core
        if imperative and self.rng.random() < 0.55:
            text = f"{self.pick('openers')} {core}"
        text = text[0].upper() + text[1:]
        if core.endswith('"') or ": " in core:
            return text
        closers = self.words["closers"][self.split] if imperative else [".", "!"]
        closer = self.rng.choice(closers) if self.rng.random() < 0.75 else ""
        return text + closer

    def create(self) -> tuple[str, Row]:
        title = self.title()
        arguments: Row = {"title": title}
        parts = []
        if self.rng.random() < 0.7:
            written, arguments["due"] = self.date()
            parts.append(self.pick("due").format(date=written))
        if self.rng.random() < 0.45:
            arguments["priority"] = self.rng.choice(["low", "medium", "high"])
            parts.append(self.pick("priority").format(p=arguments["priority"]))
        rest = "".join(" " + part for part in parts)
        core = self.pick("create").format(title=title, lower=title[0].lower() + title[1:], rest=rest)
        return self.polish(core, imperative=is_order(core)), {"name": "create_task", "arguments": arguments}

    def change(self) -> tuple[str, Row]:
        arguments: Row = {"id": self.rng.choice(self.ids)}
        kind = self.rng.choice(["update_due", "update_due", "update_priority", "update_title", "update_both"])
        written, iso = self.date()
        fields: Row = {}
        if kind == "update_title":
            fields["title"] = self.title()
        if kind in ("update_due", "update_both"):
            fields["due"] = iso
        if kind in ("update_priority", "update_both"):
            fields["priority"] = self.rng.choice(["low", "medium", "high"])
        core = self.pick(kind).format(id=arguments["id"], date=written, p=fields.get("priority"), title=fields.get("title"))
        polished = core[0].upper() + core[1:] if kind == "update_title" else self.polish(core, imperative=is_order(core))
        return polished, {"name": "update_task", "arguments": arguments | fields}

    def by_id(self, kind: str) -> tuple[str, Row]:
        number = self.rng.choice(self.ids)
        core = self.pick(kind).format(id=number)
        return self.polish(core, imperative=is_order(core)), {"name": f"{kind}_task", "arguments": {"id": number}}

    def listing(self) -> tuple[str, Row]:
        kind = self.rng.choice(
            ["list_all", "list_status", "list_status", "list_due", "list_due", "list_priority", "list_status_due"]
        )
        written, iso = self.date()
        status, priority = self.rng.choice(["open", "done"]), self.rng.choice(["low", "medium", "high"])
        arguments: Row = {}
        if "status" in kind:
            arguments["status"] = status
        if "due" in kind:
            arguments["due"] = iso
        if "priority" in kind:
            arguments["priority"] = priority
        core = self.pick(kind).format(date=written, s=status, p=priority)
        if core.startswith(("what", "which", "can", "is ")):
            return core[0].upper() + core[1:] + "?", {"name": "list_tasks", "arguments": arguments}
        return self.polish(core, imperative=is_order(core)), {"name": "list_tasks", "arguments": arguments}

    def draw(self) -> tuple[str, Row]:
        kind = self.rng.choices(["create", "update", "complete", "list", "delete"], weights=[40, 22, 12, 14, 12])[0]
        if kind == "create":
            return self.create()
        if kind == "update":
            return self.change()
        if kind == "list":
            return self.listing()
        return self.by_id(kind)

    def rows(self, count: int) -> Iterator[Row]:
        """`count` rows with distinct requests."""
        seen: set[str] = set()
        while len(seen) < count:
            request, call = self.draw()
            if request in seen:
                continue
            seen.add(request)
            yield {
                "id": f"tools-{self.split}-{len(seen):04d}",
                "system": self.words["system"],
                "user": request,
                "reply": json.dumps(call),
            }


def is_order(core: str) -> bool:
    """False for statements and questions, which take no "Please" in front."""
    return core.split(" ", 1)[0].rstrip(",:") not in STATEMENTS


class Chats:
    """Draws coaching chats for one split, each with TaskMaster's reply and a plain one that says the same."""

    def __init__(self, split: str, seed: int) -> None:
        self.words = wording("persona")
        self.split = split
        self.rng = random.Random(f"persona-{split}-{seed}")

    def rows(self, count: int) -> Iterator[Row]:
        frames = [(kind, f) for kind, forms in self.words["frames"][self.split].items() for f in forms]
        pairs = [(topic, frame) for topic in self.words["topics"][self.split] for frame in frames]
        self.rng.shuffle(pairs)
        replies = self.words["replies"]
        for number, ((thing, step), (kind, frame)) in enumerate(pairs[:count], start=1):
            yours = f"your {thing.split(' ', 1)[1]}" if thing.startswith(("my ", "our ")) else thing
            minutes = self.rng.choice(replies["minutes"])
            parts = [
                self.rng.choice(replies["openers"][kind]).format(x=yours),
                self.rng.choice(replies["steps"]).format(step=step),
                self.rng.choice(replies["timeboxes"]).format(n=minutes),
                self.rng.choice(replies["signoffs"]),
            ]
            yield {
                "id": f"persona-{self.split}-{number:04d}",
                "system": self.words["system"],
                "user": frame.format(x=thing, X=thing[0].upper() + thing[1:]),
                "reply": " ".join(parts),
                "neutral": self.rng.choice(self.words["neutral"]).format(x=yours, step=step),
            }


def mixed_rows(split: str, per_mode: int, seed: int) -> list[Row]:
    """Chat, action and both-at-once prompts under one system prompt, each with the mode that is right and the call, if any."""
    words = wording("mixed")
    chats = [row["user"] for row in Chats(split, seed).rows(per_mode)]
    calls = list(ToolRequests(split, seed).rows(2 * per_mode))
    feelings = words["feelings"][split]
    rows: list[Row] = [{"mode": "chat", "user": user, "call": ""} for user in chats]
    rows += [{"mode": "action", "user": row["user"], "call": row["reply"]} for row in calls[:per_mode]]
    for number, row in enumerate(calls[per_mode:]):
        user = f"{feelings[number % len(feelings)]} {row['user']}"
        rows.append({"mode": "both", "user": user, "call": row["reply"]})
    order = random.Random(f"mixed-{split}-{seed}").sample(rows, len(rows))
    return [{"id": f"mixed-{split}-{n:03d}", "system": words["system"], **row} for n, row in enumerate(order, start=1)]


def jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def files(seed: int = 1) -> dict[Path, str]:
    """Every file that this script owns, with its content."""
    out: dict[Path, str] = {}
    for split in SPLITS:
        tools = list(ToolRequests(split, seed).rows(SIZES["tools"][split]))
        persona = list(Chats(split, seed).rows(SIZES["persona"][split]))
        folders = (HERE / "data",) * 2 if split == "train" else (SUITES / "task_api_tools", SUITES / "taskmaster_persona")
        names = ("tools_train", "persona_train") if split == "train" else (split, split)
        out[folders[0] / f"{names[0]}.jsonl"] = jsonl(tools)
        out[folders[1] / f"{names[1]}.jsonl"] = jsonl(persona)
    for split, per_mode in (("dev", 8), ("test", 20)):
        out[SUITES / "taskmaster_mixed" / f"{split}.jsonl"] = jsonl(mixed_rows(split, per_mode, seed + 2))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args().check
    stale = []
    for path, text in files().items():
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path.relative_to(HERE.parents[1])))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if stale:
        print("stale: " + ", ".join(stale) + "; run examples/taskmaster/make_data.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
