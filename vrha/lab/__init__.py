"""A whole zone in network namespaces on one machine."""
