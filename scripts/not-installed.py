"""What the launcher runs when no server is installed: a tiny MCP server whose only tool says how to install the real one.

Standard library only, any Python 3. A client that cannot start a server shows its user an error without words; this way the
agent reads what to do.
"""

import json
import sys

NEWEST_HANDSHAKE = "2025-11-25"


def main(root: str) -> None:
    help_text = (
        "The model-merging server is not installed, so its tools are missing. Install it in one of two ways, then "
        "restart the client:\n"
        f"1. in the clone {root}: make setup   (needs Python 3.11 or newer)\n"
        f"2. for every project: pipx install {root}   (puts model-merging-mcp on PATH)\n"
        "Or set MODEL_MERGING_SERVER to the full path of a model-merging-mcp. Meanwhile the skill works alone with "
        "plain mergekit-yaml."
    )
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if not isinstance(request, dict) or "id" not in request:
            continue
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        answer.update(reply(request.get("method"), request.get("params") or {}, help_text))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def reply(method: object, params: dict, help_text: str) -> dict:
    """The result or error of one request."""
    if method == "initialize":
        return {
            "result": {
                "protocolVersion": min(str(params.get("protocolVersion", NEWEST_HANDSHAKE)), NEWEST_HANDSHAKE),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "model-merging", "version": "not installed"},
                "instructions": help_text,
            }
        }
    if method == "ping":
        return {"result": {}}
    if method == "tools/list":
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        tool = {
            "name": "how_to_install",
            "title": "How to install model-merging",
            "description": help_text,
            "inputSchema": schema,
        }
        return {"result": {"tools": [tool]}}
    if method == "tools/call" and params.get("name") == "how_to_install":
        return {"result": {"content": [{"type": "text", "text": help_text}]}}
    return {"error": {"code": -32601, "message": help_text}}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
