"""What a dead agent left on its node: what is whose, what may go, and in which order."""
