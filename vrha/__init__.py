"""vrha keeps Linux virtual routers serving while they are restarted, moved, upgraded or lost."""

from __future__ import annotations

__version__ = "0.2.0"
