"""Result and request models, one shape for CLI, MCP and tests."""
