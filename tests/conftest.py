"""Where the real scans are, and what every test shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance import Conformance
from tests.orthanc import Orthanc, find_orthanc


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The unpacked test data; a test that asks for it is skipped where there is none."""
    root = os.environ.get("MEDIMG_TEST_DATA")
    if not root:
        pytest.skip("MEDIMG_TEST_DATA is unset: no real scans here")
    path = Path(root)
    assert path.is_dir(), f"MEDIMG_TEST_DATA names {path}, which is no folder"
    return path


@pytest.fixture
def conformance(record_property: Callable[[str, object], None]) -> Conformance:
    """Where a test notes what it compared, for the table in the documentation."""
    return Conformance(record_property)


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if "conformance" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.conformance)
