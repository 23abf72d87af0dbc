"""Compare candidates instead of arguing: which recipes to try, which to stop early, which to choose. Pure; the worker runs them.

candidates   from a grid, or the default shortlist: the plan, its runner-ups, and λ from 0.3 to 1 for the methods that take one
choose       Pareto front, early stop, winner
place        the folder that it is written to
"""

from mcp_server.steps.sweep.candidates import Candidate, from_grid, shortlist
from mcp_server.steps.sweep.choose import choose, hopeless, pareto_front
from mcp_server.steps.sweep.place import opened_plan, require_sweep_place

__all__ = [
    "Candidate",
    "choose",
    "from_grid",
    "hopeless",
    "opened_plan",
    "pareto_front",
    "require_sweep_place",
    "shortlist",
]
