"""The text of a dnsmasq lease file: what may stand in it, and who has what.

Its lines are those that dnsmasq 2.90 writes (src/lease.c, lease_update_file): `END MAC ADDRESS NAME
CLIENT-ID` for IPv4, `END IAID ADDRESS NAME DUID` for IPv6 (END in seconds, Unix time), and the
server's own `duid DUID`.
"""

from __future__ import annotations

import re

LARGEST = 192 * 1024
"""Characters of a lease file that cross the broker: some 2,500 leases."""

_LINE = re.compile(
    r"duid [0-9a-f:]{2,400}"
    r"|[0-9]{1,20} [0-9A-Za-z:-]{1,64} [0-9a-f.:]{2,45} [!-~]{1,255} (?:\*|[0-9a-f:]{2,800})"
)


def cleaned(text: str) -> str:
    """The lines that dnsmasq may have written: what a node says of its leases ends in a file that
    is read as root on another one. At most `LARGEST` characters, see `fitting`.
    """
    good = (line for line in text.split("\n") if _LINE.fullmatch(line))
    return fitting("".join(f"{line}\n" for line in good))


def fitting(text: str, most: int = LARGEST) -> str:
    """`text`, or where it has more than `most` characters, of its leases those that end last."""
    if len(text) <= most:
        return text
    kept: list[str] = []
    for line in sorted(text.splitlines(keepends=True), key=_end, reverse=True):
        most -= len(line)
        if most < 0:
            break
        kept.append(line)
    return "".join(kept)


def holders(text: str) -> frozenset[str]:
    """Who has what, and the server's own identity, whenever the leases end."""
    return frozenset(
        line if line.startswith("duid") else line.partition(" ")[2] for line in text.splitlines()
    )


def _end(line: str) -> float:
    first = line.partition(" ")[0]
    # An identity without which DHCPv6 clients hear nothing from their server comes first.
    return float(first) if first.isdigit() else float("inf")
