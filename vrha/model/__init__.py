"""Frozen dataclasses and enums: what is wanted, what is, what is done about it, what is said."""
