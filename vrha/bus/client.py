"""The two ends of the bus: `Publisher` with confirms, `Consumer` with acknowledgements."""

from vrha.bus.consumer import Consumer, Counts, Headers
from vrha.bus.publisher import Publisher

__all__ = ["Consumer", "Counts", "Headers", "Publisher"]
