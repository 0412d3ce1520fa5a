"""Servers for the tests of DICOMweb."""

from __future__ import annotations

from pathlib import Path

import pytest

import medimg
from tests.orthanc import PASSWORD, USER, Orthanc

pytest.importorskip("requests")


@pytest.fixture
def server(orthanc: Orthanc) -> medimg.DicomWebServer:
    return medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path
