"""Settings of pytest for tests, doctests and documentation."""

from __future__ import annotations

import ast
import doctest
import functools
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

# the stub lacks it: doctest has no public way to say which objects a module defines
_plain: Any = doctest.DocTestFinder._from_module  # type: ignore[attr-defined]


@functools.cache
def _classes_in(path: str) -> frozenset[str]:
    body = ast.parse(Path(path).read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.ClassDef))


def _is_from_module(finder: doctest.DocTestFinder, module: ModuleType | None, value: Any) -> bool:
    """Whether a doctest belongs to a module: of what is public, ``__module__`` is not where it is defined."""
    if module is None or getattr(value, "__module__", None) != "medimg":
        return bool(_plain(finder, module, value))
    if inspect.isfunction(value):
        return value.__globals__ is module.__dict__
    return inspect.isclass(value) and value.__name__ in _classes_in(str(module.__file__))


doctest.DocTestFinder._from_module = _is_from_module  # type: ignore[attr-defined]  # as above
