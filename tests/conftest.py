"""Where the real scans are, and what every test shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import Conformance


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if "conformance" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.conformance)
