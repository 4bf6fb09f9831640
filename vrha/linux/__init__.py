"""The kernel of a node: one thing per file, no decisions."""
