"""The orchestrator: desired state, journal, decisions. A thin loop around `vrha.core`."""
