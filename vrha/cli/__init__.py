"""The command `vrha`: one file per noun; talks to the orchestrator over HTTP."""
