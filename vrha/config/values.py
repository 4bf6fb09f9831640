"""Single values: text of a place to a value of the model, or a problem and None.

Names are matched with fullmatch: `$` would accept a line feed at the end.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv6Address,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TypeVar

from vrha.config.place import Place
from vrha.model.spec import Address, Cidr, Interface, PortRange

E = TypeVar("E", bound=StrEnum)

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
# Linux accepts nearly every byte in an interface name; /, :, % and blanks break tools and paths.
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_OWN_PORT = re.compile(r"vrh[0-9a-f]{8}-.*")
_RESERVED_BRIDGES = frozenset(("lo", "all", "default"))
_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# dnsmasq(8), --dhcp-host: such a word in the place of the name is a lease time or a keyword.
_DNSMASQ_WORD = re.compile(r"[0-9]+[smhdw]?|infinite|ignore", re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9._-]{0,63}")
_PREFIX = re.compile(r"[^/]+/[0-9]{1,3}")


def name(place: Place) -> str | None:
    """Name of a network, router, node or zone."""
    text = place.text()
    if text is None or NAME.fullmatch(text):
        return text
    place.wrong("must be 1 to 15 of a-z 0-9 -, and neither begin nor end with -")
    return None


def bridge(place: Place) -> str | None:
    """Name of a bridge of the node (IFNAMSIZ: 15 bytes)."""
    text = place.text()
    if text is None:
        return None
    if not _BRIDGE.fullmatch(text):
        place.wrong("must be 1 to 15 of A-Z a-z 0-9 _ . -, and begin with a letter or digit")
        return None
    if text in _RESERVED_BRIDGES or _OWN_PORT.fullmatch(text):
        place.wrong(f"{text} is reserved")
        return None
    return text


def host_name(place: Place) -> str | None:
    """One label of a host name (RFC 1123, section 2.1)."""
    text = place.text()
    if text is None:
        return None
    if not _HOST_LABEL.fullmatch(text):
        place.wrong("must be 1 to 63 of A-Z a-z 0-9 -, and neither begin nor end with -")
        return None
    if _DNSMASQ_WORD.fullmatch(text):
        place.wrong(f"{text} would be read as a lease time or keyword; use a name with letters")
        return None
    return text


def domain(place: Place) -> str | None:
    """A domain name without a dot at its end (RFC 1123, RFC 1035 section 2.3.4)."""
    text = place.text()
    if text is None:
        return None
    if len(text) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        place.wrong("must be a domain name such as web.example")
        return None
    return text


def mac(place: Place) -> str | None:
    """A unicast MAC address, in lower case."""
    text = place.text()
    if text is None:
        return None
    text = text.lower()
    if not _MAC.fullmatch(text):
        place.wrong("must be a MAC address such as 52:54:00:12:34:56")
        return None
    if int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        place.wrong("must be the address of one machine, not multicast or zero")
        return None
    return text


def number(place: Place, low: int, high: int) -> int | None:
    text = place.text()
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
        place.wrong(f"must be a number from {low} to {high}")
        return None
    return int(text)


def choice(place: Place, kind: type[E]) -> E | None:
    text = place.text()
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        place.wrong(f"must be one of {', '.join(member.value for member in kind)}")
        return None


def ports(place: Place) -> PortRange | None:
    """`80` or `8000-8100`."""
    text = place.text()
    if text is None:
        return None
    match = _PORTS.fullmatch(text)
    if match:
        first = int(match[1])
        last = int(match[2] or match[1])
        if 1 <= first <= last <= 65535:
            return PortRange(first, last)
    place.wrong("must be a port or a range such as 8000-8100, within 1 to 65535")
    return None


def address(place: Place) -> Address | None:
    """The address of one machine."""
    text = place.text()
    if text is None:
        return None
    try:
        found = ip_address(text)
    except ValueError:
        place.wrong("must be an IPv4 or IPv6 address")
        return None
    return found if _usable(place, found) else None


def interface(place: Place) -> Interface | None:
    """The address of one machine with its prefix length."""
    text = place.text()
    if text is None:
        return None
    try:
        found = ip_interface(text) if _PREFIX.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None:
        place.wrong("must be an address with prefix length, such as 203.0.113.10/24")
        return None
    if not _usable(place, found.ip):
        return None
    if not usable_in(found.ip, found.network):
        place.wrong("is the network or broadcast address of its prefix")
        return None
    return found


def cidr(place: Place) -> Cidr | None:
    """A prefix without host bits."""
    text = place.text()
    if text is None:
        return None
    try:
        if not _PREFIX.fullmatch(text) or "%" in text:
            raise ValueError
        loose = ip_network(text, strict=False)
    except ValueError:
        place.wrong("must be a prefix such as 10.1.0.0/24")
        return None
    if loose.network_address != ip_address(text.partition("/")[0]):
        place.wrong(f"has host bits set; did you mean {loose}?")
        return None
    return loose


def remote(place: Place) -> Cidr | None:
    """A prefix, or one address."""
    text = place.text()
    if text is not None and "/" not in text:
        one = address(place)
        return None if one is None else ip_network(one)
    return cidr(place)


def labels(place: Place, limit: int = 64) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in place.entries(limit):
        text = value.text()
        if not _LABEL_KEY.fullmatch(key):
            value.wrong("a label's key must be 1 to 63 of A-Z a-z 0-9 . _ / -")
        elif text is not None and not _LABEL_VALUE.fullmatch(text):
            value.wrong("a label's value must be at most 63 of A-Z a-z 0-9 . _ -")
        elif text is not None:
            found[key] = text
    return found


def usable_in(one: Address, prefix: Cidr) -> bool:
    """Whether `one` is no network or broadcast address of `prefix` (RFC 3021: /31 has none)."""
    if prefix.prefixlen >= prefix.max_prefixlen - 1:
        return True
    if one == prefix.network_address:
        return False
    return isinstance(one, IPv6Address) or one != prefix.broadcast_address


def _usable(place: Place, one: Address) -> bool:
    mapped = isinstance(one, IPv6Address) and (one.ipv4_mapped or one.scope_id)
    limited = isinstance(one, IPv4Address) and (int(one) >> 28 == 15 or int(one) >> 24 == 0)
    if mapped or limited or one.is_multicast or one.is_unspecified or one.is_loopback:
        place.wrong("must be the address of one machine")
        return False
    return True
