"""The L3 agent: executes steps on its node and reports what is."""
