"""Claude Code itself: the plugin checked, offered, installed and connected, and a whole turn with a scripted fake model."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.fake_model import Block, Conversation, FakeModel, Step, last_result, say, use
from tests.clients.ground import DEMO_BASE, MADE, ROOT, SCRATCH, Check, Failed, environment, require, run

PREFIX = "mcp__model-merging__"
PROMPT = (
    "Merge examples/taskmaster/persona and examples/taskmaster/tools into one model and keep both skills. I have 12 GB of RAM."
)


def checks() -> list[Check]:
    return [
        ("Claude Code", "plugin validate --strict", validate),
        ("Claude Code", "marketplace add, plugin install, connected from another folder", install),
        ("Claude Code", "in the clone: one server, connected", in_the_clone),
        ("Claude Code", "a whole turn: skill, inspect … launch, status, verify on the demo's sources", whole_turn),
    ]


def validate() -> str:
    """Strictly what the plugin is made of. Of the whole clone one warning is left: CLAUDE.md speaks to contributors."""
    ended = run("claude", "plugin", "validate", plugin_copy(), "--strict")
    require(ended.returncode == 0 and "Validation passed" in ended.stdout, ended.stdout + ended.stderr)
    whole = run("claude", "plugin", "validate", ROOT).stdout
    require("Found 1 warning:" in whole and "CLAUDE.md at the plugin root" in whole, whole)
    return "passed"


def plugin_copy() -> Path:
    """What a user gets from the repository: the tracked files, beside this clone's environment.

    Claude Code copies the plugin's folder; with the environment in it that would be gigabytes.
    """
    folder = SCRATCH / "plugin"
    shutil.rmtree(folder, ignore_errors=True)
    listed = run("git", "ls-files", "-z").stdout.split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if name.startswith((".claude", "skills/", "scripts/", ".mcp.json")) and (source.exists() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    return folder


def install() -> str:
    """From a folder outside of the clone, where nothing but the plugin can declare the server."""
    with tempfile.TemporaryDirectory() as elsewhere:
        return installed_in(Path(elsewhere).resolve())


def installed_in(elsewhere: Path) -> str:
    folder = plugin_copy()
    server = {"MODEL_MERGING_SERVER": str(ROOT / ".venv" / "bin" / "model-merging-mcp")}
    for command in (("marketplace", "add", folder), ("install", "model-merging@model-merging")):
        ended = run("claude", "plugin", *command, cwd=elsewhere, timeout=300, **server)
        require(ended.returncode == 0, ended.stdout + ended.stderr)
    details = run("claude", "plugin", "details", "model-merging@model-merging", cwd=elsewhere, **server).stdout
    require("Skills (1)" in details and "MCP servers (1)" in details, details)
    listed = run("claude", "mcp", "list", cwd=elsewhere, **server).stdout
    lines = [line for line in listed.splitlines() if "model-merging" in line]
    run("claude", "plugin", "uninstall", "model-merging@model-merging", cwd=elsewhere)
    run("claude", "plugin", "marketplace", "remove", "model-merging", cwd=elsewhere)
    require(len(lines) == 1 and "Connected" in lines[0], listed)
    return "1 skill, 1 server, connected"


def trust(folder: Path) -> None:
    """What a user does in the dialog when Claude Code first opens a folder."""
    path = Path(environment()["HOME"]) / ".claude.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings["hasCompletedOnboarding"] = True
    settings.setdefault("projects", {}).setdefault(str(folder), {})["hasTrustDialogAccepted"] = True
    path.write_text(json.dumps(settings), encoding="utf-8")


def in_the_clone() -> str:
    trust(ROOT)
    listed = run("claude", "mcp", "list").stdout
    lines = [line for line in listed.splitlines() if "model-merging" in line]
    require(len(lines) == 1 and "Connected" in lines[0], listed)
    return "connected, approved by the committed settings"


class Script:
    """The model's moves. Each reads the result of the one before it, as a model would."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: dict[str, Any] = {}
        self.out = str(MADE / "claude-merge")

    def steps(self) -> list[Step]:
        return [
            self.load_skill,
            self.inspect,
            self.recommend,
            self.render,
            self.validate,
            self.estimate,
            self.launch,
            self.follow,
        ]

    def tool(self, name: str, **arguments: Any) -> list[Block]:
        self.calls += 1
        return use(f"{PREFIX}{name}", arguments, self.calls)

    def note(self, name: str, conversation: Conversation) -> Any:
        """Keep and return the newest tool result."""
        text = last_result(conversation)
        try:
            self.seen[name] = json.loads(text.splitlines()[0])
        except ValueError as error:
            raise Failed(f"{name} answered: {text[:500]}") from error
        return self.seen[name]

    def load_skill(self, _conversation: Conversation) -> list[Block]:
        return use("Skill", {"skill": "model-merging"}, 9000)

    def inspect(self, conversation: Conversation) -> list[Block]:
        self.seen["skill"] = "A merge is minutes of arithmetic" in json.dumps(conversation)
        return self.tool("inspect_models", refs=["examples/taskmaster/persona", "examples/taskmaster/tools"], base=DEMO_BASE)

    def recommend(self, conversation: Conversation) -> list[Block]:
        self.note("inspect", conversation)
        return self.tool("recommend_strategy", scenario_file="examples/taskmaster/scenario.yaml")

    def render(self, conversation: Conversation) -> list[Block]:
        return self.tool("render_config", plan=self.note("recommend", conversation))

    def validate(self, conversation: Conversation) -> list[Block]:
        return self.tool("validate_config", recipe=self.note("render", conversation)["recipe"])

    def estimate(self, conversation: Conversation) -> list[Block]:
        self.note("validate", conversation)
        return self.tool("estimate_ram", recipe=self.seen["render"]["recipe"], ram_gib=12, out=self.out)

    def launch(self, conversation: Conversation) -> list[Block]:
        self.note("estimate", conversation)
        verdict = self.seen["recommend"]["verdict"]
        return self.tool("launch_merge", recipe=self.seen["render"]["recipe"], out=self.out, ram_gib=12, seed=17, verdict=verdict)

    def follow(self, conversation: Conversation) -> list[Block]:
        """Wait for the merge, verify it, wait for that, and say so."""
        job = self.note("job", conversation)
        if job["state"] in ("queued", "running"):
            return self.tool("merge_status", job_id=job["job_id"], wait_seconds=50)
        self.seen[job["kind"]] = job
        if job["kind"] == "merge" and job["state"] == "succeeded":
            return self.tool("verify_merge", out=self.out)
        return say(f"The {job['kind']} job ended as {job['state']}.")


def whole_turn() -> str:
    trust(ROOT)
    script = Script()
    with FakeModel(script.steps()) as url:
        ended = run(
            "claude", "-p", PROMPT, "--output-format", "stream-json", "--verbose", "--allowedTools", f"Skill,{PREFIX}*",
            timeout=600, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sk-ant-fake-key-of-the-clients-check",
        )  # fmt: skip
    require(ended.returncode == 0, ended.stdout[-1500:] + ended.stderr)
    messages = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    begun = next(m for m in messages if m.get("subtype") == "init")
    require("model-merging" in begun["slash_commands"], "the skill is not offered")
    seen = script.seen
    require(seen.get("skill") is True, "the skill's text never reached the model")
    require(seen["inspect"]["compatible"] is True and seen["validate"]["ok"] is True, seen)
    require(seen.get("merge", {}).get("state") == "succeeded", seen.get("job"))
    require(seen.get("verify", {}).get("state") == "succeeded", seen.get("job"))
    verdict = seen["verify"]["result"]["verdict"]
    require(verdict == "verified", seen["verify"]["result"])
    return f"{script.calls} tool calls; {seen['merge']['engine']} engine; the merge is {verdict}"
