"""Stored values by decoders that medimg does not use: dcmtk, GDCM, OpenJPEG, CharLS, pydicom's own."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.pixels import pixel_array

if TYPE_CHECKING:
    from collections.abc import Iterator

_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_RLE = "1.2.840.10008.1.2.5"
LOSSY = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51))


def dcmtk(tool: str) -> str:
    """The path of a tool of dcmtk; the test is skipped without it."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"dcmtk's {tool} is not installed")
    return path


def frames_by_others(path: Path, numbers: list[int], folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """The name of each decoder that reads a file, and its frames as they are stored."""
    dataset = pydicom.dcmread(path, force=True)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    tool = "dcmdjpeg" if syntax in _JPEG else "dcmdjpls" if syntax in _JPEG_LS else ""
    tool = "dcmdrle" if syntax == _RLE else tool
    if tool:
        plain = folder / "plain.dcm"
        done = subprocess.run([dcmtk(tool), str(path), str(plain)], capture_output=True, check=False)
        if done.returncode == 0:
            found = _by_pydicom(pydicom.dcmread(plain, force=True), numbers, "")
            if found is not None:
                yield tool, found
    if not syntax:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    for plugin in ("pylibjpeg", "pyjpegls", "gdcm", "pydicom"):
        found = _by_pydicom(dataset, numbers, plugin)
        if found is not None:
            yield plugin, found
    if not pydicom.uid.UID(syntax).is_private and syntax not in {*_JPEG, *_JPEG_LS, _RLE}:
        found = _by_pydicom(dataset, numbers, "")
        if found is not None:
            yield "pydicom", found


def _by_pydicom(
    dataset: pydicom.Dataset, numbers: list[int], plugin: str
) -> list[npt.NDArray[Any]] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return [
                np.asarray(pixel_array(dataset, index=n, raw=True, decoding_plugin=plugin)) for n in numbers
            ]
        # whatever goes wrong there: this decoder does not read the file
        except Exception:
            return None
