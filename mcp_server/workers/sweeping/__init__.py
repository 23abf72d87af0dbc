"""A sweep: its candidates and their measurements, a search within minutes, and what it says. For the sweep worker only."""
