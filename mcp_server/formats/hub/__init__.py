"""Repositories of a hub: what they hold, why they cannot be read, and the headers of their models."""
