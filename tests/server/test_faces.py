"""What one face can ask of a job, the other can: fields of the typed requests, by the arguments of command and tool.

What only one face has is listed here with its reason; anything else that is missing on one side fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from mcp_server.cli import evidence as shell_evidence
from mcp_server.cli import going, hub, knowledge, merging, replies
from mcp_server.cli import validate as validating
from mcp_server.errors import NotAllowed
from mcp_server.schemas.job import (
    AskRequest,
    CompareRequest,
    EvaluateRequest,
    ExportRequest,
    FetchRequest,
    JobRequest,
    MergeRequest,
    PublishRequest,
    SweepRequest,
    VerifyRequest,
)
from mcp_server.server.access import Access
from mcp_server.server.tools import evidence, launch
from mcp_server.server.tools import hub as hub_tools
from mcp_server.server.tools import knowledge as knowledge_tools

FIELDS = {"suite": "suites", "source": "sources", "try": "tries", "hash": "hash", "suite_folder": "suite_folders"}

PAIRS: dict[type[JobRequest], tuple[Callable[..., object], Callable[..., object]]] = {
    MergeRequest: (merging.merge, launch.launch_merge),
    CompareRequest: (shell_evidence.compare, launch.compare_models),
    AskRequest: (replies.ask, evidence.ask_models),
    VerifyRequest: (shell_evidence.verify, evidence.verify_merge),
    EvaluateRequest: (shell_evidence.evaluate, evidence.evaluate_merge),
    SweepRequest: (shell_evidence.sweep, launch.sweep_merges),
    FetchRequest: (hub.fetch, hub_tools.fetch_model),
    ExportRequest: (hub.export, hub_tools.export_merge),
    PublishRequest: (hub.publish, hub_tools.publish_merge),
}
ONLY_SHELL = {
    # An agent's exports are always tried, take a new folder and the machine's threads.
    ExportRequest: {"check", "overwrite", "threads"},
    PublishRequest: {"yes", "licence"},  # an agent's user is asked, and chooses a licence for others' work in a shell
    EvaluateRequest: {"suite_folders"},  # its tasks may bring Python code, which only the operator lets run
    # Who may use how much of which machines is the operator's to say.
    MergeRequest: {"workers", "ray"},
    SweepRequest: {"workers", "ray", "cpus", "memory_gib", "gpus"},
}


def offered(face: Callable[..., object], request: type[JobRequest]) -> set[str]:
    names = {name.rstrip("_") for name in inspect.signature(face).parameters}
    return {FIELDS.get(name, name) for name in names} & set(request.model_fields)


@pytest.mark.parametrize("request_type", PAIRS)
def test_both_faces_offer_the_same_fields_of_a_request(request_type: type[JobRequest]) -> None:
    shell, tool = PAIRS[request_type]
    assert offered(shell, request_type) - offered(tool, request_type) == ONLY_SHELL.get(request_type, set())
    assert offered(tool, request_type) <= offered(shell, request_type)


@pytest.mark.parametrize(
    ("shell", "tool", "only_shell", "only_tool"),
    [
        (knowledge.inspect, knowledge_tools.inspect_models, set(), set()),
        (knowledge.estimate, knowledge_tools.estimate_ram, set(), set()),
        # mergekit's own planner is a process of its own, which the tools that only look never start; a code is docs/lint.md's.
        (validating.validate, knowledge_tools.validate_config, {"deep", "explain"}, set()),
        # Replacing is launch_merge's, which asks; threads and dtype change no adapter enough to be worth every turn's tokens.
        (merging.extract, launch.extract_adapter, {"overwrite", "threads", "dtype"}, set()),
        # The tool ends with the merge under way: measuring is its caller's next call. Replacing is launch_merge's, which asks.
        (going.go, launch.merge_adapters, {"suite", "data", "overwrite", "yes"}, {"go_on"}),
    ],
)
def test_both_faces_take_the_same_arguments_where_no_job_is_asked_for(
    shell: Callable[..., object], tool: Callable[..., object], only_shell: set[str], only_tool: set[str]
) -> None:
    left, right = ({*inspect.signature(face).parameters} - {"json"} for face in (shell, tool))
    assert (left - right, right - left) == (only_shell, only_tool)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.1:1/v1/chat/completions", "http://[::1]:80/v1"])
def test_an_agent_may_measure_a_server_on_this_machine(url: str) -> None:
    assert Access.now().endpoint(url) == url


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/v1", "https://localhost.example.org/v1", "http://localhost@evil.org/v1", "file:///etc/passwd", "x"]
)
def test_an_agent_sends_prompts_to_no_other_machine(url: str) -> None:
    with pytest.raises(NotAllowed):
        Access.now().endpoint(url)
