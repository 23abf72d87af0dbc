"""How a sweep runs its tasks: on this machine or on a Ray cluster, behind one small interface. For the sweep worker only."""
