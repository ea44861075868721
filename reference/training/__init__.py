"""Trains the built-in demo model: `python -m lavt_edge.reference.training --output DIR`."""
