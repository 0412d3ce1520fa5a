"""Which library is used, and what is said of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medimg
from medimg._native.library import load_library

SOURCE = Path(medimg.__file__).parent
ASK = "from medimg._native.library import *; print(load_library() is not None, describe_library(), sep='|')"


def ask(root: Path, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(root), "MEDIMG_PURE": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=root, env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with its Python files alone."""
    shutil.copytree(
        SOURCE, tmp_path / "medimg", ignore=shutil.ignore_patterns("*.so", "*.dll", "__pycache__", "src")
    )
    return tmp_path


def test_without_a_library(copy: Path) -> None:
    assert ask(copy) == ("False|not built: install a C++ compiler and reinstall medimg for faster reading")


def test_a_library_of_another_system(copy: Path) -> None:
    for suffix in ("so", "dll"):
        (copy / "medimg" / "_native" / f"medimg_native.{suffix}").write_bytes(b"nothing to run")
    assert ask(copy) == "False|built for another system: reinstall medimg"


def test_a_library_of_another_version(copy: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler")
    target = copy / "medimg" / "_native" / "medimg_native.so"
    code = "int medimg_interface(void) { return -1; }"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)], input=code, text=True, check=True
    )
    assert ask(copy) == "False|built from another version: reinstall medimg"


def test_a_library_that_is_not_wanted() -> None:
    root = SOURCE.parent
    assert ask(root, MEDIMG_PURE="1") == "False|not used, as MEDIMG_PURE is set"
    if load_library() is not None:
        assert ask(root, MEDIMG_PURE="0") == "True|used"
