"""Removing what a dead agent left: finders and removers, one module per kind, and the engine."""
