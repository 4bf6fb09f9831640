"""The stream between two agents while a router moves from one to the other.

Mutual TLS 1.3 in which each side takes exactly one certificate: the one of the other agent, told
by the orchestrator together with the address and a token that is good for one connection.
"""

from vrha.peer.dial import dial
from vrha.peer.frames import MAX_FRAME
from vrha.peer.identity import Identity
from vrha.peer.link import PeerLink
from vrha.peer.server import Expectation, PeerServer, Refusal

__all__ = ["MAX_FRAME", "Expectation", "Identity", "PeerLink", "PeerServer", "Refusal", "dial"]
