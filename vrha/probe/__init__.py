"""ping-gap: the outage measured."""
