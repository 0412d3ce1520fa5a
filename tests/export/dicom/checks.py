"""What is checked of every result: it is saved, read again, and looked at by dciodvfy."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

NOON = datetime(2026, 2, 3, 12, 0, 0)


def save(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read_again(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(save(dataset)))


def list_errors(path: Path) -> set[str]:
    """Errors that dciodvfy finds in a file."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy of dicom3tools is not on PATH")
    done = subprocess.run([tool, str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    known = {"ComprehensiveSR", "SCImage", "ParametricMap", "Segmentation"}
    assert done.returncode in {0, 1}
    assert known & {line.strip() for line in lines} or "dciodvfy" not in path.name, lines
    return {re.sub(r"\s+", " ", line) for line in lines if "Error" in line}


def complaints(dataset: Dataset, folder: Path) -> set[str]:
    """Errors that dciodvfy finds in a result."""
    path = folder / "dciodvfy.dcm"
    path.write_bytes(save(dataset))
    return list_errors(path)


def list_private(dataset: Dataset) -> list[str]:
    return [str(element.tag) for element in dataset.iterall() if element.tag.is_private]
