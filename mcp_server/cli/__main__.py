"""`python -m mcp_server.cli`, for scripts that must use this very interpreter."""

from mcp_server.cli import main

main()
