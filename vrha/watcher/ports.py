"""Which ports of the node belong to which instance, kept up to date by the kernel's news."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vrha.core.names import PORT_PREFIX, PortTag, parse_tag
from vrha.errors import PreconditionError
from vrha.linux import rtnetlink
from vrha.model.ownership import instance_key

_RTMGRP_LINK = 1
_RECEIVE_BYTES = 1 << 21
_SO_RCVBUFFORCE = 33


class Ports:
    """The tagged ports of the namespace in which the object was made, by name."""

    def __init__(self) -> None:
        """Raises PreconditionError `no-rtnetlink`."""
        try:
            self._netlink = rtnetlink.open_route()
            self._news = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, rtnetlink.NETLINK_ROUTE
            )
            self._news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            self._news.bind((0, _RTMGRP_LINK))
        except OSError as error:
            raise PreconditionError("no-rtnetlink", f"rtnetlink: {error.strerror}") from error
        self.tags: dict[str, PortTag] = {}
        self.reload()

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        self._news.close()
        self._netlink.close()

    def reload(self) -> None:
        """Look at all links."""
        self.tags = {}
        for link in rtnetlink.links(self._netlink):
            self._take(link.name, link.alias)

    def follow(self) -> bool:
        """Take the news; whether anything of ours changed."""
        before = dict(self.tags)
        while True:
            try:
                data = self._news.recv(1 << 16)
            except BlockingIOError:
                return self.tags != before
            except OSError:
                # ENOBUFS: some news was lost, so all is looked at again (netlink(7)).
                self.reload()
                continue
            for is_there, name, alias in rtnetlink.link_news(data):
                if is_there:
                    self._take(name, alias)
                else:
                    self.tags.pop(name, None)

    def permitted(self, rights: Mapping[str, int]) -> frozenset[str]:
        """Ports of the instances that may speak."""
        return frozenset(name for name, tag in self.tags.items() if is_permitted(tag, rights))

    def _take(self, name: str, alias: str) -> None:
        if name.startswith(PORT_PREFIX):
            tag = parse_tag(alias)
            if tag is not None:
                self.tags[name] = tag
            else:
                self.tags.pop(name, None)


def is_permitted(tag: PortTag, rights: Mapping[str, int]) -> bool:
    """A right is for one instance: what is left of an earlier one of the router stays mute."""
    return instance_key(tag.ref) in rights
