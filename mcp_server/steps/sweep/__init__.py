"""Compare candidates instead of arguing: which recipes to try, which to stop early, which to choose. Pure; the worker runs them.

candidates   from a grid, or the default shortlist: the plan, its runner-ups, and λ from 0.3 to 1 for the methods that take one
choose       Pareto front, early stop, winner
"""

from mcp_server.steps.sweep.candidates import Candidate, from_grid, shortlist
from mcp_server.steps.sweep.choose import choose, hopeless, pareto_front

__all__ = ["Candidate", "choose", "from_grid", "hopeless", "pareto_front", "shortlist"]
