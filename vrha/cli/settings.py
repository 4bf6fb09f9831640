"""What the options before the command say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrha.cli.client import Client

DEFAULT_SOCKET = "/run/vrha/orchestrator.sock"
FORMATS = ("table", "json", "yaml")


@dataclass(slots=True)
class Settings:
    """Options of one call; an option of a command may override the one before it."""

    socket: str = DEFAULT_SOCKET
    output: str = FORMATS[0]
    debug: bool = False

    def client(self) -> Client:
        """A client of the orchestrator; imported here, so that help and usage stay quick."""
        from vrha.cli.client import Client

        return Client(self.socket)
