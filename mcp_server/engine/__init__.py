"""The streaming engine. Its compiled loops are kept where this user may write, which is settled before numba is imported."""

from mcp_server.system.compiled import choose_cache

choose_cache()
