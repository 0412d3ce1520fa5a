"""Stored values by decoders that medimg does not use: dcmtk, OpenJPEG, CharLS, pydicom itself."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels.utils import pixel_array

from medimg.io.dicom.header.attributes import quiet_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_UID = "1.2.840.10008.1.2."
_DCMTK = {_UID + "5": "dcmdrle"}
_DCMTK |= {_UID + f"4.{n}": "dcmdjpeg" for n in (50, 51, 57, 70)}
_DCMTK |= {_UID + f"4.{n}": "dcmdjpls" for n in (80, 81)}
_PLUGINS = {_UID + "5": "pydicom"}
_PLUGINS |= {_UID + f"4.{n}": "pyjpegls" for n in (80, 81)}
_PLUGINS |= {_UID + f"4.{n}": "pylibjpeg" for n in (90, 91, 201, 202, 203)}
_NATIVE = {"", *(_UID[:-1] + suffix for suffix in ("", ".1", ".1.99", ".2"))}


def dcmtk(tool: str) -> str:
    """The path of a tool of dcmtk; the test is skipped without it."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"dcmtk's {tool} is not installed")
    return path


def frames_by_others(path: Path, numbers: Sequence[int], folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """The name of each decoder that reads a file, and its frames as they are stored."""
    for plugin in ("pylibjpeg", "openjpeg", "jpeg_ls"):
        pytest.importorskip(plugin)
    with quiet_pydicom():
        dataset = pydicom.dcmread(path, force=True)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    if not syntax:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if syntax in _NATIVE:
        yield from _by_pydicom(dataset, numbers, "")
    if syntax in _PLUGINS:
        yield from _by_pydicom(dataset, numbers, _PLUGINS[syntax])
    if syntax in _DCMTK:
        plain = folder / "plain.dcm"
        command = [dcmtk(_DCMTK[syntax]), str(path), str(plain)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            with quiet_pydicom():
                decoded = pydicom.dcmread(plain, force=True)
            yield from (("dcmtk", frames) for _, frames in _by_pydicom(decoded, numbers, ""))


def _by_pydicom(
    dataset: pydicom.Dataset, numbers: Sequence[int], plugin: str
) -> Iterator[tuple[str, list[Any]]]:
    with quiet_pydicom():
        try:
            found = [
                np.asarray(pixel_array(dataset, index=n, raw=True, decoding_plugin=plugin)) for n in numbers
            ]
        # whatever goes wrong there: this decoder does not read the file
        except Exception:
            return
    yield plugin or "pydicom", found
