"""Run tests against a changed module: python -m tests.unit.mutant MODULE OLD NEW TESTS.."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import pytest


class _Changed(SourceFileLoader):
    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self._old, self._new = old, new

    def get_code(self, fullname: str):  # type: ignore[no-untyped-def]
        # Not by way of the cache on disk, which the unchanged module is in.
        source = self.get_data(self.path).decode()
        assert source.count(self._old) == 1, f"{self._old!r} in {self.path}"
        return compile(source.replace(self._old, self._new), self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, module: str, old: str, new: str) -> None:
        self._module, self._old, self._new = module, old, new

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Changed(fullname, spec.origin, self._old, self._new)
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, _Finder(*sys.argv[1:4]))
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--tb=no", *sys.argv[4:]]))
