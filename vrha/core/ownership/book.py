"""What the store knows of rights, as the leader has it in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from vrha.core.ownership.commands import Commit, Right
from vrha.model.ownership import Electorate


@dataclass(slots=True)
class Book:
    """What the store knows: rights by router (none of them is free), the newest incarnation of each
    node that may have been granted anything, the electorates by which such incarnations may count,
    and the highest epoch of each router."""

    electorates: tuple[Electorate, ...]
    rights: dict[str, Right] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    by_node: dict[str, dict[str, Right]] = field(default_factory=dict)
    by_router: dict[str, dict[str, Right]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for right in list(self.rights.values()):
            self._place(right)

    def apply(self, commit: Commit) -> set[str]:
        """Take over what was committed; the nodes which it concerns."""
        concerned = {right.node for right in commit.rights}
        for right in commit.rights:
            before = self.rights.get(right.router)
            if before is not None:
                concerned.add(before.node)
                self.by_node.get(before.node, {}).pop(right.router, None)
                self.by_router.get(before.owned, {}).pop(right.router, None)
            self.rights.pop(right.router, None)
            self._place(right)
        self.incarnations.update(commit.incarnations)
        self.electorates = commit.electorates or self.electorates
        return concerned

    def of(self, node: str) -> list[Right]:
        """What the node has or is asked to give up, by name of router."""
        return [right for _, right in sorted(self.by_node.get(node, {}).items())]

    def next_epoch(self, right: Right) -> int:
        """Above all that were ever handed out for the router."""
        return max(right.epoch, self.epochs.get(right.owned, 0)) + 1

    def _place(self, right: Right) -> None:
        self.epochs[right.owned] = max(right.epoch, self.epochs.get(right.owned, 0))
        if right.node:
            self.rights[right.router] = right
            self.by_router.setdefault(right.owned, {})[right.router] = right
            self.by_node.setdefault(right.node, {})[right.router] = right
