"""The rules of an overlap of two instances, loaded and removed; see `vrha.render.overlap`."""

from __future__ import annotations

from vrha.errors import StepError
from vrha.linux import tools
from vrha.model.spec import InstanceSpec
from vrha.render.overlap import TABLE, overlap_text


def keep_apart(nft: str, spec: InstanceSpec, is_new: bool) -> None:
    """In the calling thread's namespace. Raises StepError `rules-rejected`."""
    text = overlap_text(spec, is_new)
    if text:
        _feed(nft, text)


def join(nft: str) -> None:
    """Remove the rules, if they are there. Raises StepError `rules-rejected`."""
    _feed(nft, f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")


def _feed(nft: str, text: str) -> None:
    done = tools.run([nft, "-f", "-"], text)
    if done.returncode != 0:
        raise StepError("rules-rejected", f"{TABLE} was not loaded: {done.complaint}")
