"""The store: rows to values and back."""
