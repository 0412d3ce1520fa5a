"""Servers for the tests of DICOMweb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import medimg
from tests.orthanc import PASSWORD, USER, Orthanc, find_orthanc

pytest.importorskip("requests")


@pytest.fixture(scope="session")
def started_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    found = find_orthanc()
    if isinstance(found, str):
        pytest.skip(found)
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), *found)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def orthanc(started_orthanc: Orthanc) -> Orthanc:
    """An empty Orthanc."""
    started_orthanc.clear()
    return started_orthanc


@pytest.fixture
def server(orthanc: Orthanc) -> medimg.DicomWebServer:
    return medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path
