"""Where the real scans are, and what every test shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance import Conformance
from tests.orthanc import Orthanc, find_orthanc
from tests.storage import Server, Storage, WebFolder, set_environment


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The unpacked test data; a test that asks for it is skipped where there is none."""
    root = os.environ.get("MEDIMG_TEST_DATA")
    if not root:
        pytest.skip("MEDIMG_TEST_DATA is unset: no real scans here")
    path = Path(root)
    assert path.is_dir(), f"MEDIMG_TEST_DATA names {path}, which is no folder"
    return path


@pytest.fixture(scope="session")
def _started_storage() -> Iterator[Storage]:
    pytest.importorskip("moto", reason="moto is not installed: no object storage here")
    pytest.importorskip("s3fs", reason="s3fs is not installed: no object storage here")
    storage = Storage()
    yield storage
    storage.server.stop()


@pytest.fixture
def storage(_started_storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty bucket of a server of S3."""
    import fsspec

    set_environment(monkeypatch)
    monkeypatch.setitem(fsspec.config.conf, "s3", _started_storage.options)
    # for processes that are not forked
    for name in ("endpoint_url", "key", "secret"):
        monkeypatch.setenv(f"FSSPEC_S3_{name.upper()}", _started_storage.options[name])
    _started_storage.empty()
    return _started_storage


@pytest.fixture
def web() -> Iterator[tuple[Server, WebFolder]]:
    """A web server without files."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: no files of web servers here")
    pytest.importorskip("werkzeug", reason="werkzeug is not installed: no web server here")
    folder = WebFolder()
    server = Server(folder)
    yield server, folder
    server.stop()


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
