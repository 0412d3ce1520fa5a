"""Searching, reading and storing with a real Orthanc, which is killed and started again."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

import medimg
from medimg.errors import ReadError
from tests.io.dicomweb.fake_pacs import SERIES, STUDY, make_multi_frame, make_slice, to_file
from tests.orthanc import PASSWORD, USER, Orthanc


@pytest.fixture
def filled(orthanc: Orthanc, server: medimg.DicomWebServer) -> medimg.DicomWebServer:
    result = server.store([make_slice(number, size=64) for number in range(24)])
    assert len(result.stored) == 24
    return server


def test_it_finds_what_was_stored(filled: medimg.DicomWebServer) -> None:
    index = filled.search(modality="CT", PatientID="SECRET*", StudyDate="20240101-20241231")
    assert [series.uid for series in index] == [SERIES]
    assert index.to_pandas().files.tolist() == [24]
    assert len(filled.search(modality=["MR", "PT"])) == len(filled.search(StudyDate="20250101-")) == 0
    assert len(filled.search(study_uid=STUDY, uid=[SERIES, "1.2.5"])) == 1
    expected = medimg.read([to_file(make_slice(number, size=64)) for number in range(24)])
    assert index[0].read().array.tobytes() == expected.array.tobytes()
    # Orthanc gives another file for the same instance
    assert filled.store(make_slice(0, size=64)).stored == (f"{SERIES}.1",)


def test_what_it_refuses_is_named(filled: medimg.DicomWebServer) -> None:
    unknown = make_slice(30)
    unknown.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
    unknown["PixelData"].is_undefined_length = True
    unknown.PixelData = (
        b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0\xff\x4f\xff\x51\xfe\xff\xdd\xe0\0\0\0\0"
    )
    result = filled.store([make_slice(31), to_file(unknown), make_slice(32)], on_error="collect")
    assert len(result.stored) >= 2
    assert {one.source for one in result.failed} <= {"<bytes 1>"}


def test_wrong_password(filled: medimg.DicomWebServer, orthanc: Orthanc) -> None:
    url = f"{orthanc.url}/studies/{STUDY}"
    for auth in ((USER, "wrong"), (USER, ""), None):
        medimg.dicomweb(orthanc.url, auth=auth)
        with pytest.raises(PermissionError, match=r"127.0.0.1 answers 401") as raised:
            medimg.read(url)
        assert isinstance(raised.value, ReadError)
        assert "wrong" not in str(raised.value)


def test_it_agrees_with_dicomweb_client(filled: medimg.DicomWebServer, orthanc: Orthanc) -> None:
    api = pytest.importorskip("dicomweb_client.api")
    sessions = pytest.importorskip("dicomweb_client.session_utils")
    session = sessions.create_session_from_user_pass(USER, PASSWORD)
    session.auth = (USER.encode(), PASSWORD.encode())
    client = api.DICOMwebClient(orthanc.url, session=session)
    found = client.search_for_series()
    assert [one["0020000E"]["Value"][0] for one in found] == [series.uid for series in filled.search()]
    volume = filled.read(STUDY, SERIES)
    for number in (0, 11, 23):
        dataset = client.retrieve_instance(STUDY, SERIES, f"{SERIES}.{number + 1}")
        np.testing.assert_array_equal(volume.array[0, number], dataset.pixel_array.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_frames_are_read_without_their_file(
    server: medimg.DicomWebServer, syntax: UID, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.io.dicomweb.retrieval import Retriever

    dataset = make_multi_frame(30)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    server.store(dataset)
    expected = medimg.scan([to_file(dataset)])[0].read([3, 7, 28])
    series = server.search()[0]
    monkeypatch.setattr(Retriever, "_fetch_file", None)
    assert series.read([3, 7, 28]).array.tobytes() == expected.array.tobytes()


def test_killed_in_mid_series(
    filled: medimg.DicomWebServer, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.io.dicomweb.retrieval import Retriever

    medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=3, retries=3)
    url = f"{orthanc.url}/studies/{STUDY}/series/{SERIES}"
    series = medimg.scan(url)[0]
    fetch = Retriever._fetch_file
    lock, count = threading.Lock(), 0

    def fetch_and_kill(self: Retriever, *args: object) -> object:
        nonlocal count
        with lock:
            count += 1
            if count == 5:
                orthanc.kill()
        return fetch(self, *args)  # type: ignore[arg-type]  # of any kind

    monkeypatch.setattr(Retriever, "_fetch_file", fetch_and_kill)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"connection to 127.0.0.1 failed .* /studies/1.2.3/series"):
        series.read()
    # twice the time-out, and what a busy machine adds
    assert time.monotonic() - start < 10
    assert 5 <= count < 24
    monkeypatch.undo()
    orthanc.start()
    expected = medimg.read([to_file(make_slice(number, size=64)) for number in range(24)])
    assert series.read().array.tobytes() == expected.array.tobytes()


def test_killed_between_frames(
    server: medimg.DicomWebServer, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.io.dicomweb.retrieval import Retriever

    dataset = make_multi_frame(60)
    server.store(dataset)
    medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=5, retries=2)
    series = medimg.scan(f"{orthanc.url}/studies/{STUDY}")[0]
    read = Retriever.read_frames
    lock, count = threading.Lock(), 0

    def read_and_kill(self: Retriever, *args: object) -> object:
        nonlocal count
        with lock:
            count += 1
            if count == 3:
                orthanc.kill()
        return read(self, *args)  # type: ignore[arg-type]  # of any kind

    monkeypatch.setattr(Retriever, "read_frames", read_and_kill)
    with pytest.raises(ConnectionError, match=r"connection to 127.0.0.1 failed .*/frames/"):
        series.read(list(range(30)))
    monkeypatch.undo()
    orthanc.start()
    expected = medimg.scan([to_file(dataset)])[0].read(list(range(30)))
    assert series.read(list(range(30))).array.tobytes() == expected.array.tobytes()


def test_started_again_while_it_is_read(filled: medimg.DicomWebServer, orthanc: Orthanc) -> None:
    medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=60, retries=15)
    series = medimg.scan(f"{orthanc.url}/studies/{STUDY}")[0]
    orthanc.kill()
    restart = threading.Timer(1, orthanc.start)
    restart.start()
    try:
        assert series.read().array.shape == (1, 24, 64, 64)
    finally:
        restart.join()
