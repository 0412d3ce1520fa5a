"""Files elsewhere are as those on disk: the same bytes, by few requests, of one version."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medimg.errors import ReadError
from medimg.io.files import listed_file
from medimg.io.files.blob import Blob
from medimg.io.files.byte_ranges import FIRST_BYTES
from medimg.io.files.listed_file import ListedFile, limit_read_ahead
from medimg.io.files.remote_folder import open_blob
from tests.storage import Server, Storage, WebFolder

DATA = np.random.default_rng(0).integers(0, 64, 900_000, np.uint8).tobytes()


@dataclass
class Place:
    """Somewhere to put files."""

    name: str
    put: Callable[[str, bytes], object]
    url: str
    server: Server | None = None

    def open(self, name: str) -> Blob:
        return open_blob(f"{self.url}/{name}")


def make_place(kind: str, request: pytest.FixtureRequest) -> Place:
    if kind == "s3":
        storage: Storage = request.getfixturevalue("storage")
        return Place(kind, storage.put, storage.url, storage.server)
    if kind == "memory":
        import fsspec

        files = fsspec.filesystem("memory")
        return Place(kind, lambda name, data: files.pipe_file(f"/place/{name}", data), "memory://place")
    server, folder = request.getfixturevalue("web")
    folder.ranges = kind == "web"
    return Place(kind, folder.put, server.url, server)


@pytest.fixture(params=["s3", "web", "web without ranges", "memory"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield make_place(request.param, request)
    listed_file._HEADS.reset()


@pytest.fixture(params=["s3", "web", "memory"])
def ranged(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield make_place(request.param, request)
    listed_file._HEADS.reset()


def remote_of(blob: Blob) -> ListedFile:
    assert isinstance(blob.remote, ListedFile)
    return blob.remote


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 300_000)),
        st.tuples(st.just("readline"), st.integers(-1, 2000)),
        st.tuples(st.just("seek"), st.integers(0, len(DATA) + 10)),
        st.tuples(st.just("back"), st.integers(0, len(DATA))),
        st.tuples(st.just("readinto"), st.integers(0, 100_000)),
    ),
    max_size=8,
)


def run(file: Any, steps: list[tuple[str, int]]) -> list[Any]:
    found: list[Any] = []
    for name, number in steps:
        if name == "seek":
            found.append(file.seek(number))
        elif name == "back":
            found.append(file.seek(-number, io.SEEK_END))
        elif name == "readinto":
            memory = bytearray(number)
            found.append((file.readinto(memory), bytes(memory)))
        else:
            found.append(getattr(file, name)(number))
        found.append(file.tell())
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_random_access_is_that_of_a_local_file(place: Place, steps: list[tuple[str, int]]) -> None:
    place.put("file", DATA)
    with place.open("file").open() as file:
        assert run(file, steps) == run(io.BytesIO(DATA), steps)


@pytest.mark.parametrize("size", [0, 1, FIRST_BYTES, FIRST_BYTES + 1])
def test_files_of_any_size(place: Place, size: int) -> None:
    place.put("file", DATA[:size])
    blob = place.open("file")
    assert blob.size() == blob.stored_size() == size
    assert blob.fetched().data == DATA[:size]
    assert blob.start(100) == DATA[: min(size, 100)]


def test_a_header_costs_one_request_and_the_rest_another(ranged: Place) -> None:
    ranged.put("file", DATA)
    blob = ranged.open("file")
    if ranged.server is None:
        return
    ranged.server.traffic.clear()
    listed_file._HEADS.reset()
    for _ in range(3):  # what is known of it is not fetched again
        assert blob.start() == DATA[:2048]
    assert [r.sent for r in ranged.server.traffic.requests] == [FIRST_BYTES]
    ranged.server.traffic.clear()
    assert blob.fetched().data == DATA
    assert [r.sent for r in ranged.server.traffic.requests] == [len(DATA) - FIRST_BYTES]


def test_only_what_is_asked_for_is_fetched_at_a_limit(ranged: Place) -> None:
    ranged.put("file", DATA)
    remote = remote_of(ranged.open("file"))
    if ranged.server is not None:
        ranged.server.traffic.clear()
    with remote.open() as file:
        limit_read_ahead(file, 500_000)
        file.seek(300_000)
        assert file.read(100_000) + file.read(100_000) == DATA[300_000:500_000]
    if ranged.server is not None:
        assert ranged.server.traffic.sent == 200_000


def test_read_ahead_grows_so_that_requests_are_few(ranged: Place) -> None:
    ranged.put("file", DATA)
    blob = ranged.open("file")
    if ranged.server is not None:
        ranged.server.traffic.clear()
    with blob.stream() as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == DATA
    if ranged.server is not None:
        assert len(ranged.server.traffic.requests) <= 4
        assert ranged.server.traffic.sent <= len(DATA)


def test_a_pickle_has_the_same_bytes(place: Place) -> None:
    place.put("file", DATA)
    blob = place.open("file")
    copy = pickle.loads(pickle.dumps(blob))
    assert copy == blob
    assert remote_of(copy).digest == remote_of(blob).digest
    assert copy.fetched().data == DATA


def test_versions_are_not_mixed(place: Place) -> None:
    place.put("file", DATA)
    blob = place.open("file")
    digest = remote_of(blob).digest
    assert len(digest) == 64
    with blob.open() as file:
        assert file.read(100) == DATA[:100]
        place.put("file", DATA[::-1])
        file.seek(400_000)
        with pytest.raises(ReadError, match="changed since it was listed"):
            file.read(100)
    assert remote_of(place.open("file")).digest != digest


def test_siblings_are_found_below_the_folder_alone(place: Place) -> None:
    for name in ("a/head er.mhd", "a/va lues#1?.raw", "a/b/deep", "secret"):
        place.put(name, name.encode())
    blob = open_blob(
        f"{place.url}/a/head er.mhd" if "web" not in place.name else f"{place.url}/a/head%20er.mhd"
    )
    found = blob.sibling("va lues#1?.raw")
    assert found is not None
    assert found.fetched().data == b"a/va lues#1?.raw"
    deep = blob.sibling("b/deep")
    assert deep is not None
    assert deep.start() == b"a/b/deep"
    for name in ("absent", "../secret", "..", "b/../../secret", "", "/secret", "b\\..\\..\\secret"):
        assert blob.sibling(name) is None, name
    if "web" in place.name:
        assert blob.sibling("%2e%2e/secret") is None


def test_a_server_without_versions_is_trusted_and_has_no_digest(web: tuple[Server, WebFolder]) -> None:
    server, folder = web
    folder.versions = False
    folder.put("file", DATA)
    blob = open_blob(f"{server.url}/file")
    assert remote_of(blob).digest == ""
    assert blob.fetched().data == DATA
    folder.put("file", DATA[:-1])
    with pytest.raises(ReadError, match="changed"):
        blob.fetched()


def test_a_file_without_a_size_is_held_in_memory(web: tuple[Server, WebFolder]) -> None:
    server, folder = web
    folder.ranges = folder.sizes = False
    for size in (10, len(DATA)):
        folder.put("file", DATA[:size])
        blob = open_blob(f"{server.url}/file")
        assert blob.fetched().data == DATA[:size]


def test_names_tell_queries_apart_without_telling_them(web: tuple[Server, WebFolder]) -> None:
    server, folder = web
    folder.put("get", DATA)
    blobs = [open_blob(f"{server.url}/get?id={n}&token=geheim") for n in range(2)]
    assert blobs[0].name != blobs[1].name
    signed = [open_blob(f"{server.url}/get?X-Amz-Signature={n}&X-Amz-Expires=9") for n in range(2)]
    assert {blob.name for blob in signed} == {f"{server.url}/get"}
    assert not any("geheim" in repr(blob) + blob.name + repr(blob.remote) for blob in blobs)
