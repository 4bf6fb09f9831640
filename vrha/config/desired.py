"""Desired state from YAML: every problem at once, each with file, line and path.

The form is that of `vrha.model.spec`, field for field; docs/zone.md shows it.
"""

from __future__ import annotations

from pathlib import Path

from vrha.config import checks, drafts
from vrha.config.document import MAX_BYTES, DocumentError, Mapping, compose
from vrha.config.drafts import MAX_OBJECTS
from vrha.config.export import to_document, to_yaml
from vrha.config.place import Place, Problems
from vrha.core.dhcp import seconds
from vrha.errors import InputError, SpecError
from vrha.model.spec import Desired

__all__ = ["load", "parse", "to_document", "to_yaml"]


def load(path: str | Path) -> Desired:
    """The desired state in the file. Raises SpecError; InputError (`spec-unreadable`)."""
    try:
        with Path(path).open("rb") as file:
            body = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError("spec-unreadable", f"{path}: {error.strerror}") from error
    try:
        return parse(body.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise SpecError([f"{path}:{line}: not UTF-8"]) from None


def parse(text: str, source: str) -> Desired:
    """The desired state in `text`; `source` names it in problems. Raises SpecError."""
    problems = Problems(source)
    try:
        root, duplicates = compose(text)
    except DocumentError as error:
        problems.add(error.line, "", error.what)
        raise SpecError(problems.lines()) from None
    for line, key in duplicates:
        problems.add(line, "", f"key {key!a} is given twice")
    desired = _desired(Place(problems, root))
    if desired is None:
        raise SpecError(problems.lines())
    return desired


def _desired(root: Place) -> Desired | None:
    """None where there is a problem."""
    if not isinstance(root.node, Mapping):
        root.wrong("must be a mapping with networks, routers and nodes")
        return None
    fields = root.fields("networks", "routers", "nodes")
    assert fields is not None
    networks = drafts.listed(fields["networks"], MAX_OBJECTS, drafts.network)
    routers = drafts.listed(fields["routers"], MAX_OBJECTS, drafts.router)
    nodes = drafts.listed(fields["nodes"], MAX_OBJECTS, drafts.node)
    checks.check([n for _, n in networks], [r for _, r in routers], nodes)
    if len(root.problems):
        return None
    built = tuple(n.build() for _, n in networks)
    own = tuple(r.build() for _, r in routers)
    return Desired(
        networks=built,
        routers=own + seconds(built, own),
        nodes=drafts.plain(nodes),
    )
