"""Spec to text through `templates/`."""
