"""How the package is laid out: names of modules, size of folders, and the map in CONTRIBUTING."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import medimg

ROOT = Path(medimg.__file__).parent
#: Names that two modules may share: one of each belongs to another layer of users.
SHARED_NAMES = {"__init__.py", "dataset.py"}
MOST_MODULES = 18
MOST_LINES = 6


def modules() -> Iterator[Path]:
    return (path for path in sorted(ROOT.rglob("*.py")) if "__pycache__" not in path.parts)


def test_no_two_modules_share_a_name() -> None:
    counts = Counter(path.name.removeprefix("_") for path in modules() if path.name != "__init__.py")
    assert {name for name, count in counts.items() if count > 1} <= SHARED_NAMES


def test_no_folder_holds_too_many_modules() -> None:
    counts = Counter(path.parent for path in modules() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("path", [p for p in modules() if p.name[0] == "_" and p.name[1] != "_"], ids=str)
def test_docstrings_of_private_modules_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    long = {
        getattr(node, "name", path.name): len(text.splitlines())
        for node in documented
        if (text := ast.get_docstring(node)) and len(text.splitlines()) > MOST_LINES
    }
    assert long == {}


def test_the_map_in_contributing_names_what_is_there() -> None:
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    entries = re.findall(r"`([\w/]+\.py)`(?: \||:)? `(\w+)`", text)
    assert len(entries) > 60
    for path, name in entries:
        defined = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        assert name in defined, f"{path}: {name}"
    for path in set(re.findall(r"`([\w/]+\.py)`", text)):
        assert (ROOT / path).exists() or (ROOT.parent / path).exists(), path
