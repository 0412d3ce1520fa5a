"""Searching, reading and storing, by a server that counts what it sends."""

from __future__ import annotations

import datetime
import io
import itertools
import json
import pickle
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

import medimg
from medimg.errors import (
    AmbiguousSeriesError,
    MedimgError,
    MedimgWarning,
    NotAnImageError,
    ReadError,
    StoreError,
)
from tests.io.dicomweb.fake_pacs import (
    SERIES,
    STUDY,
    FakePacs,
    Reply,
    Seen,
    make_slice,
    to_file,
    to_json,
)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs([make_slice(number) for number in range(12)]) as found:
        yield found


@pytest.fixture
def server(pacs: FakePacs) -> medimg.DicomWebServer:
    return medimg.dicomweb(pacs.url, timeout=10)


def read_files(pacs: FakePacs) -> medimg.Volume:
    return medimg.read([to_file(dataset) for dataset in pacs.datasets])


class TestReading:
    def test_three_slices_of_300_fetch_three(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pacs.datasets = [make_slice(number) for number in range(300)]
        series = medimg.scan(pacs.series_url)[0]
        assert pacs.count() == 0
        found = series.read([7, 150, 299])
        assert pacs.count() == 3
        assert {one.path.rpartition(".")[2] for one in pacs.seen[-3:]} == {"8", "151", "300"}
        expected = [make_slice(number).pixel_array.astype(np.int16) - 1024 for number in (7, 150, 299)]
        np.testing.assert_array_equal(found.array[0], expected)

    def test_metadata_of_many_instances_are_parsed_in_pieces(
        self, pacs: FakePacs, server: medimg.DicomWebServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("medimg.io.dicomweb.dicom_json._PIECE", 2**12)
        monkeypatch.setattr("medimg.io.dicomweb.dicom_json._MAX_NODES", 2**10)
        pacs.datasets = [make_slice(number) for number in range(300)]
        series = medimg.scan(pacs.series_url)[0]
        assert series.shape == (1, 300, 8, 8)
        assert series.read([7, 150]).array.tobytes() == read_files(pacs).array[:, [7, 150]].tobytes()
        monkeypatch.setattr("medimg.io.dicomweb.remote_series._MAX_INSTANCES", 299)
        with pytest.raises(ReadError, match="more than 299 instances"):
            medimg.scan(pacs.series_url)

    def test_all_equal_the_files(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        expected = read_files(pacs)
        for found in (medimg.read(pacs.series_url), server.read(STUDY, SERIES), server.read(STUDY)):
            assert found.array.tobytes() == expected.array.tobytes()
            np.testing.assert_array_equal(found.affine, expected.affine)
        assert pacs.count() == 3 * 12

    def test_they_are_fetched_side_by_side(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        together, numbers = threading.Barrier(4), itertools.count(1)

        def wait(seen: Seen, _: BaseHTTPRequestHandler) -> None:
            # the first slice comes alone
            if 2 <= next(numbers) <= 5:
                together.wait(30)

        series = medimg.scan(pacs.series_url)[0]
        pacs.misbehave = wait
        series.read()
        assert not together.broken

    def test_pieces(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        series = medimg.scan(pacs.series_url)[0]
        pieces = series.pieces(5, range(10))
        assert next(pieces).array.shape == (1, 5, 8, 8)
        assert pacs.count() == 5

    def test_one_instance(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        found = medimg.read(f"{pacs.series_url}/instances/{SERIES}.7/")
        np.testing.assert_array_equal(found.array[0, 0], read_files(pacs).array[0, 6])
        assert pacs.count() == 1

    def test_header_and_tags(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        series = server.search()[0]
        assert series.tags("StudyDate", "PatientID", "PixelSpacing") == {
            "StudyDate": "20240305", "PatientID": "SECRET-ID", "PixelSpacing": (0.3, 0.7),
        }  # fmt: skip
        assert pacs.count() == 0
        assert series.header.PatientName == "Secret^Patient"
        assert pacs.count() == 1

    def test_lists_of_urls_and_files(
        self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path
    ) -> None:
        other = make_slice(0, series="1.2.99")
        path = tmp_path / "other.dcm"
        path.write_bytes(to_file(other))
        index = medimg.scan([pacs.series_url, str(path)])
        assert sorted(series.uid for series in index) == [SERIES, "1.2.99"]

    def test_what_is_no_image_is_skipped(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        report = make_slice(400)
        for name in ("Rows", "Columns", "PixelData"):
            delattr(report, name)
        pacs.datasets.append(report)
        index = medimg.scan(pacs.study_url)
        assert len(index) == 1
        assert "without pixels" in index.skipped[0].reason
        pacs.datasets = [report]
        with pytest.raises(NotAnImageError):
            medimg.read(pacs.study_url)

    def test_several_series_are_an_error(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pacs.datasets = [make_slice(0), make_slice(1), make_slice(0, series="1.2.5")]
        with pytest.raises(AmbiguousSeriesError, match="2 series in http"):
            medimg.read(pacs.study_url)
        with pytest.raises(AmbiguousSeriesError, match="2 stacks of images"):
            server.read(STUDY)
        assert medimg.read(pacs.study_url, series="1.2.5").array.shape == (1, 1, 8, 8)

    def test_a_study_without_search_is_read_by_its_metadata(
        self, pacs: FakePacs, server: medimg.DicomWebServer
    ) -> None:
        pacs.misbehave = lambda seen, _: Reply(501) if seen.path.endswith("/series") else None
        assert len(medimg.scan(pacs.study_url)) == 1

    def test_servers_that_only_convert(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        def refuse(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            return Reply(406) if "transfer-syntax=*" in seen.headers.get("accept", "") else None

        pacs.misbehave = refuse
        assert medimg.read(pacs.series_url).array.tobytes() == read_files(pacs).array.tobytes()
        assert pacs.count() < 30

    def test_what_is_not_there(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        with pytest.raises(FileNotFoundError, match="404"):
            medimg.read(pacs.study_url + "/series/1.9")
        with pytest.raises(ReadError, match="pass series="):
            server.read(STUDY, instance="1.2")
        with pytest.raises(ReadError, match="not of this server"):
            server.read("http://127.0.0.1:1/dicom-web/studies/1.2")

    def test_pickles_read_on(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        for series in (medimg.scan(pacs.series_url)[0], server.search()[0]):
            copy = pickle.loads(pickle.dumps(series))
            assert copy.uid == SERIES
            np.testing.assert_array_equal(copy.read([3]).array, series.read([3]).array)

    def test_repr_of_nothing_private(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        index = server.search()
        texts = [repr(server), repr(index), repr(index[0]), index[0]._repr_html_(), index._repr_html_()]
        assert not any("SECRET" in text or SERIES in text for text in texts)
        assert pacs.count() == pacs.count("metadata") == 0


class TestBulkData:
    def test_needed_ones_are_fetched(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        """A position that the server gives by reference."""
        pacs.datasets = pacs.datasets[:3]
        origin = pacs.url.removesuffix("/dicom-web")

        def refer(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            number = next((n for n in range(3) if seen.path.endswith(f"bulk/{n}")), None)
            if number is not None:
                text = "\\".join(map(str, pacs.datasets[number].ImagePositionPatient))
                return Reply(200, text.encode(), "application/octet-stream")
            if not seen.path.endswith("metadata"):
                return None
            items = [to_json(dataset) for dataset in pacs.datasets]
            # absolute, relative, and by a name of the server that only it knows
            uris = [
                f"{pacs.url}/bulk/0",
                "../../../../bulk/1",
                "http://internal.example:8042/dicom-web/bulk/2",
            ]
            for item, uri in zip(items, uris, strict=True):
                item["00200032"] = {"vr": "DS", "BulkDataURI": uri}
                item["00091010"] = {"vr": "UN", "BulkDataURI": f"{origin}/never"}
            return Reply(200, json.dumps(items).encode())

        pacs.misbehave = refer
        found = medimg.read(pacs.series_url)
        np.testing.assert_array_equal(found.affine, read_files(pacs).affine)
        assert pacs.count("bulk") == 3
        assert pacs.count("never") == 0

    @pytest.mark.parametrize(
        "uri", ["http://169.254.169.254/latest", "file:///etc/passwd", "http://[", "//other.example/x"]
    )
    def test_other_servers_are_not_asked(
        self, pacs: FakePacs, server: medimg.DicomWebServer, uri: str
    ) -> None:
        item = to_json(pacs.datasets[0])
        item["00200032"] = {"vr": "DS", "BulkDataURI": uri}
        pacs.misbehave = lambda seen, _: Reply(200, json.dumps([item]).encode())
        with pytest.raises(ReadError, match=r"another server|bulk data"):
            medimg.read(pacs.series_url)


class TestSearch:
    def test_pages(
        self, pacs: FakePacs, server: medimg.DicomWebServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("medimg.io.dicomweb.series_search._PAGE", 7)
        pacs.datasets = [make_slice(0, series=f"1.2.{n}") for n in range(20)]
        assert len(server.search()) == 20
        assert len(server.search(limit=9)) == 9
        served = pacs.serve
        # a server without offset, and one with shorter pages
        pacs.misbehave = lambda seen, _: served(
            seen._replace(query={**seen.query, "offset": "0", "limit": "30"})
        )
        assert len(server.search()) == 20
        pacs.misbehave = lambda seen, _: served(seen._replace(query={**seen.query, "limit": "3"}))
        assert len(server.search()) == 20

    def test_conditions(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        server.search(modality="CT", description="Test*", StudyDate=datetime.date(2024, 3, 5), EchoTime=30.5)
        query = pacs.seen[-1].query
        assert query["Modality"] == "CT"
        assert query["SeriesDescription"] == "Test*"
        assert query["StudyDate"] == "20240305"
        assert query["EchoTime"] == "30.5"
        server.search(study_uid=STUDY, uid=[SERIES, "1.2.5"])
        assert pacs.seen[-1].path == f"/studies/{STUDY}/series"
        assert pacs.seen[-1].query["SeriesInstanceUID"] == f"{SERIES},1.2.5"

    def test_several_values_are_several_searches(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        other = make_slice(0, series="1.2.5")
        other.Modality = "MR"
        pacs.datasets = [make_slice(0), other, make_slice(1, series="1.2.6")]
        assert [series.uid for series in server.search(modality=["CT", "MR"])] == [SERIES, "1.2.5", "1.2.6"]
        assert [series.uid for series in server.search(modality={"MR"})] == ["1.2.5"]

    def test_what_a_server_did_not_compare_is_left_out(
        self, pacs: FakePacs, server: medimg.DicomWebServer
    ) -> None:
        served = pacs.serve
        pacs.misbehave = lambda seen, _: served(seen._replace(query={}))
        with pytest.warns(MedimgWarning, match="1 series that do not meet"):
            assert len(server.search(PatientID="OTHER")) == 0

    @pytest.mark.parametrize(
        ("conditions", "error"),
        [
            ({"slices": 3}, KeyError),
            ({"Modallity": "CT"}, KeyError),
            ({"modality": None}, ReadError),
            ({"modality": []}, ReadError),
            ({"modality": ""}, ReadError),
            ({"modality": True}, ReadError),
            ({"uid": "1.2/../3"}, ReadError),
            ({"limit": 0}, ReadError),
            ({"StudyDate": "2024-01-01"}, ReadError),
            ({"StudyDate": ["20240101", "2024-01-01-2024-12-31"]}, ReadError),
            ({"Modality": "ABCDEFGHIJK", "StudyID": range(200)}, ReadError),
        ],
    )
    def test_invalid_conditions(
        self,
        pacs: FakePacs,
        server: medimg.DicomWebServer,
        conditions: dict[str, object],
        error: type[Exception],
    ) -> None:
        with pytest.raises(error) as raised:
            server.search(**conditions)  # type: ignore[arg-type]  # of any kind
        assert isinstance(raised.value, MedimgError)
        assert not pacs.seen

    def test_a_file_that_is_not_stored_is_named_once(
        self, server: medimg.DicomWebServer, tmp_path: Path
    ) -> None:
        (tmp_path / "note.txt").write_text("no DICOM")
        with pytest.raises(StoreError) as raised:
            server.store(tmp_path)
        assert str(raised.value).count("note.txt") == 1

    @pytest.mark.parametrize("status", [400, 405])
    def test_a_wrong_base_url_is_named_as_a_cause(
        self, pacs: FakePacs, server: medimg.DicomWebServer, status: int
    ) -> None:
        pacs.misbehave = lambda seen, reply: Reply(status, b"")
        with pytest.raises(ReadError, match="check the base URL"):
            server.search()

    def test_the_index_reads_what_is_used(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pacs.datasets = [make_slice(n, series=f"1.2.{s}") for s in range(3) for n in range(2 + s)]
        index = server.search()
        table = index.to_pandas()
        assert table.uid.tolist() == ["1.2.0", "1.2.1", "1.2.2"]
        assert table.files.tolist() == [2, 3, 4]
        assert table.slices.isna().all()
        assert pacs.count("metadata") == 0
        assert index["1.2.1"].shape == (1, 3, 8, 8)
        assert pacs.count("metadata") == 1
        assert len(index.where(slices=4)) == 1
        assert pacs.count("metadata") == 3
        assert index.where(StudyDate="20240305", modality="ct").series == index.series

    def test_stacks(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        localizer = make_slice(9)
        localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        pacs.datasets = [*pacs.datasets[:3], localizer]
        with pytest.raises(AmbiguousSeriesError, match=r"2 stacks of images, .*\n.*\n.*\n.*medimg.scan"):
            server.search()[0].read()
        assert len(medimg.scan(server.search()[0].path)) == 2

    def test_connections_are_used_for_urls_below(self, pacs: FakePacs) -> None:
        medimg.dicomweb(pacs.url + "/", headers={"X-Key": "mine"})
        medimg.scan(pacs.series_url)
        assert pacs.seen[-1].headers["x-key"] == "mine"
        medimg.dicomweb(pacs.url + "/elsewhere", headers={"X-Key": "other"})
        medimg.scan(pacs.series_url)
        assert pacs.seen[-1].headers["x-key"] == "mine"


class TestCache:
    def test_files_are_fetched_once(self, pacs: FakePacs, tmp_path: Path) -> None:
        pacs.datasets = pacs.datasets[:5]
        expected = read_files(pacs)
        for _ in range(2):
            medimg.dicomweb(pacs.url, cache=tmp_path / "new" / "cache")
            assert medimg.read(pacs.series_url).array.tobytes() == expected.array.tobytes()
        assert pacs.count() == 5
        files = list((tmp_path / "new" / "cache").iterdir())
        assert len(files) == 5
        assert not any("1.2.3" in path.name or "SECRET" in path.name for path in files)
        if sys.platform != "win32":
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
            assert stat.S_IMODE((tmp_path / "new" / "cache").stat().st_mode) == 0o700
        # another header is another file
        pacs.datasets[0] = make_slice(0)
        pacs.datasets[0].SeriesDescription = "Changed"
        medimg.read(pacs.series_url)
        assert pacs.count() == 6

    def test_damage_is_noticed(
        self, pacs: FakePacs, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        pacs.datasets = pacs.datasets[:1]
        medimg.dicomweb(pacs.url, cache=tmp_path / "cache")
        expected = medimg.read(pacs.series_url)
        path = next((tmp_path / "cache").iterdir())
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        found = medimg.read(pacs.series_url)
        assert "damaged" in caplog.text
        assert found.array.tobytes() == expected.array.tobytes()
        assert pacs.count() == 2

    def test_it_is_bounded(self, pacs: FakePacs, tmp_path: Path) -> None:
        pacs.datasets = [make_slice(n, size=200) for n in range(20)]
        medimg.dicomweb(pacs.url, cache=tmp_path / "cache", cache_bytes=2**20)
        medimg.read(pacs.series_url)
        sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
        assert 2**19 < sum(sizes) <= 2**20

    @pytest.mark.skipif(sys.platform == "win32", reason="no permissions as on POSIX")
    def test_open_folders_are_refused(self, pacs: FakePacs, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir(mode=0o755)
        (tmp_path / "open").chmod(0o755)
        (tmp_path / "link").symlink_to(tmp_path / "open")
        (tmp_path / "file").write_text("")
        for name in ("open", "link", "file", "file/below"):
            with pytest.raises(ReadError, match="cache folder"):
                medimg.dicomweb(pacs.url, cache=tmp_path / name)


class TestStore:
    def test_files_and_datasets(self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path) -> None:
        data = to_file(make_slice(0))
        (tmp_path / "a.dcm").write_bytes(data)
        assert repr(server.store(tmp_path)) == "StoreResult(1 stored, 0 failed)"
        assert server.store(str(tmp_path / "a.dcm"), study=STUDY).stored == (f"{SERIES}.1",)
        assert server.store([data, make_slice(1)]).stored == (f"{SERIES}.1", f"{SERIES}.2")
        assert pacs.stored[0] == pacs.stored[1] == pacs.stored[2] == data
        assert pacs.seen[-1].path == "/studies"
        assert pacs.seen[-2].path == f"/studies/{STUDY}"
        found = pydicom.dcmread(io.BytesIO(pacs.stored[3]))
        assert found.PixelData == make_slice(1).PixelData

    def test_many_are_sent_a_few_at_a_time(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        result = server.store([make_slice(n) for n in range(150)])
        assert len(result.stored) == len(pacs.stored) == 150
        assert [one.method for one in pacs.seen] == ["POST"] * 3

    def test_failures_are_named(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        answer = {
            "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [f"{SERIES}.1"]},
                                                "00081196": {"vr": "US", "Value": [45056]}}]},
            "00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [f"{SERIES}.2"]},
                                                "00081197": {"vr": "US", "Value": [0xC122]}}]},
        }  # fmt: skip
        pacs.misbehave = lambda *_: Reply(202, json.dumps(answer).encode())
        sources: list[object] = [make_slice(0), make_slice(1), make_slice(2), b"no DICOM"]
        result = server.store(sources, on_error="collect")
        assert result.stored == result.changed == (f"{SERIES}.1",)
        reasons = {one.source: one.reason for one in result.failed}
        assert "not a DICOM file" in reasons["<bytes 3>"]
        assert reasons["<dataset 1>"].endswith("does not accept this transfer syntax (0xC122)")
        assert "does not confirm" in reasons["<dataset 2>"]
        assert isinstance(result.to_pandas(), pd.DataFrame)
        with pytest.raises(StoreError, match="3 of 4 instances were not stored") as raised:
            server.store(sources)
        assert raised.value.result == result
        assert pickle.loads(pickle.dumps(raised.value)).result == result

    def test_one_that_spoils_its_request(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pacs.misbehave = lambda seen, _: Reply(400) if b"Spoiled" in seen.body else None
        sources = [make_slice(n) for n in range(9)]
        sources[5].SeriesDescription = "Spoiled"
        result = server.store(sources, on_error="collect")
        assert len(result.stored) == 8
        assert [one.source for one in result.failed] == ["<dataset 5>"]

    def test_a_lost_server_names_what_was_not_sent(self, pacs: FakePacs) -> None:
        server = medimg.dicomweb(pacs.url, retries=0)
        pacs.misbehave = lambda *_: Reply(503) if len(pacs.seen) > 1 else None
        result = server.store([make_slice(n) for n in range(100)], on_error="collect")
        assert len(result.stored) == 64
        assert len(result.failed) == 36
        assert result.failed[0].reason.startswith("not sent: 127.0.0.1 answers 503")

    @pytest.mark.parametrize(
        ("reply", "builtin", "cause"),
        [
            (True, ConnectionError, "server"),
            (Reply(503), ConnectionError, "server"),
            (Reply(500), ConnectionError, "server"),
            (Reply(507), ConnectionError, "server"),
            (Reply(429), ConnectionError, "server"),
            (0xA700, ConnectionError, "server"),
            (0x0213, ConnectionError, "server"),
            (Reply(401), PermissionError, "credentials"),
            (Reply(403), PermissionError, "credentials"),
            (0x0124, PermissionError, "credentials"),
            (Reply(400), None, "refused"),
            (Reply(404), None, "refused"),
            (Reply(409), None, "refused"),
            (Reply(413), None, "refused"),
            (0x0110, None, "refused"),
            (0xA900, None, "refused"),
            (Reply(200), None, "unconfirmed"),
            (Reply(200, b"<html>"), None, "unconfirmed"),
        ],
    )
    def test_errors_tell_what_to_do(
        self, pacs: FakePacs, reply: Reply | bool | int, builtin: type[Exception] | None, cause: str
    ) -> None:
        if not isinstance(reply, Reply | bool):
            reference = {
                "00081155": {"vr": "UI", "Value": [f"{SERIES}.1"]},
                "00081197": {"vr": "US", "Value": [reply]},
            }
            answer = json.dumps([{"00081198": {"vr": "SQ", "Value": [reference]}}])
            reply = Reply(409, answer.encode())
        pacs.misbehave = lambda *_: reply
        server = medimg.dicomweb(pacs.url, retries=0, timeout=5)
        with pytest.raises(StoreError) as raised:
            server.store(make_slice(0))
        assert raised.value.causes == {cause}
        for one in (ConnectionError, TimeoutError, PermissionError):
            assert isinstance(raised.value, one) == (one is builtin)
        copy = pickle.loads(pickle.dumps(raised.value))
        assert (type(copy), copy.result) == (type(raised.value), raised.value.result)
        result = server.store([make_slice(0)], on_error="collect")
        assert [one.cause for one in result.failed] == [cause]
        assert result.to_pandas().cause.tolist() == [cause]

    def test_a_silent_server_is_a_time_out(self, pacs: FakePacs) -> None:
        def wait(*_: object) -> bool:
            time.sleep(2)
            return True

        pacs.misbehave = wait
        with pytest.raises(TimeoutError) as raised:
            medimg.dicomweb(pacs.url, retries=0, timeout=0.5).store(make_slice(0))
        assert isinstance(raised.value, StoreError)
        assert raised.value.causes == {"server"}

    def test_it_is_repeated_after_503(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pacs.misbehave = lambda *_: Reply(503) if len(pacs.seen) == 1 else None
        assert server.store(make_slice(0)).stored == (f"{SERIES}.1",)
        assert pacs.seen[0].body == pacs.seen[1].body
        assert len(pacs.stored) == 1

    def test_redirects_are_not_followed(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        for status in (301, 302, 303):
            pacs.misbehave = lambda *_, s=status: Reply(s, headers={"Location": "/dicom-web/studies"})
            with pytest.raises(StoreError, match="redirects"):
                server.store(make_slice(0))

    @pytest.mark.parametrize(
        "body", [b"[]", b"{}", b"[5]", b"<html>", b'[{"00081199": 5}]', b'[{"00081199": {"Value": [5]}}]']
    )
    def test_unreadable_answers_confirm_nothing(
        self, pacs: FakePacs, server: medimg.DicomWebServer, body: bytes
    ) -> None:
        pacs.misbehave = lambda *_: Reply(200, body)
        with pytest.raises(StoreError, match="1 of 1 instances were not stored"):
            server.store(make_slice(0))

    def test_wrong_study(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        with pytest.raises(StoreError, match="another study"):
            server.store(make_slice(0), study="1.2.4")
        with pytest.raises(ReadError, match="Study Instance UID"):
            server.store(make_slice(0), study="../x")
        assert not pacs.seen


class TestDatasets:
    def test_a_table_of_urls(self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        for n in range(4):
            one = make_slice(0, series=f"1.2.7.{n}", study=f"1.2.{n}")
            one.PatientID = f"P{n}"
            pacs.datasets.append(one)
        rows = [(f"{pacs.url}/studies/1.2.{n}/series/1.2.7.{n}", "ab"[n % 2]) for n in range(3)]
        rows.append((f"{pacs.url}/studies/1.2.3/series/1.2.7.3", "b"))
        table = tmp_path / "labels.csv"
        pd.DataFrame(rows, columns=["url", "label"]).to_csv(table, index=False)
        recipe = medimg.Preprocess(size=32, window="percentile")
        data = medimg.ImageDataset.from_csv(table, path="url", label="label", preprocess=recipe)
        assert len(data) == 4
        assert len(set(data.patients)) == 4
        image = data[2][0]
        expected = recipe(to_file(pacs.datasets[-2]))
        assert (image == expected[0]).all()
        twice = pd.DataFrame([rows[0], rows[0]], columns=["url", "label"])
        with pytest.raises(MedimgError, match="repeat a path"):
            medimg.ImageDataset.from_csv(twice, path="url", label="label")
        absent = pd.DataFrame([(f"{pacs.url}/studies/1.9", "a")], columns=["url", "label"])
        with pytest.raises(MedimgError, match="404"):
            medimg.ImageDataset.from_csv(absent, path="url", label="label")

    def test_cached_images_need_no_pixels(
        self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path
    ) -> None:
        torch = pytest.importorskip("torch")
        pacs.datasets = pacs.datasets[:4]
        recipe = medimg.Preprocess(size=32, window="percentile")
        cache = medimg.ImageCache(tmp_path / "cache", dtype="float32")

        def read(source: object = None) -> object:
            sources = [source or pacs.series_url]
            (found,) = medimg.iter_tensors(sources, recipe, cache=cache, workers=1, on_error="raise")
            return found.tensor

        first = read()
        assert pacs.count() == 4
        # another connection, and a series that a search listed
        medimg.dicomweb(pacs.url, timeout=10)
        assert torch.equal(read(), first)
        assert torch.equal(read(server.search()[0]), first)
        assert pacs.count() == 4
        table = pd.DataFrame([(pacs.series_url, "a")], columns=["url", "label"])
        data = medimg.ImageDataset.from_csv(table, path="url", label="label", preprocess=recipe, cache=cache)
        assert torch.equal(data[2][0], first[2])  # type: ignore[index]  # a tensor
        assert pacs.count() == 4
        # other metadata are another image
        pacs.datasets[1].SeriesDescription = "Changed"
        pacs.forget()
        read()
        assert pacs.count() == 8

    def test_cached_embeddings_need_no_pixels(
        self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path
    ) -> None:
        pytest.importorskip("torch")
        pacs.datasets = pacs.datasets[:3]
        recipe = medimg.Preprocess(size=64, window="percentile")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = medimg.TransferClassifier("resnet18", classes=["a", "b"], weights=None, preprocess=recipe)
            first, second = (
                medimg.embed(model, [pacs.series_url], cache=tmp_path / "cache", progress=False)
                for _ in range(2)
            )
        np.testing.assert_array_equal(first.array, second.array)
        assert pacs.count() == 3

    def test_caches_by_all_bytes_are_an_error(
        self, pacs: FakePacs, server: medimg.DicomWebServer, tmp_path: Path
    ) -> None:
        pytest.importorskip("torch")
        cache = medimg.ImageCache(tmp_path / "cache", compare="bytes")
        with pytest.raises(MedimgError, match='compare="samples"'):
            list(medimg.iter_tensors([pacs.series_url], cache=cache, workers=1, on_error="raise"))
        assert pacs.count() == 0

    def test_predict(self, pacs: FakePacs, server: medimg.DicomWebServer) -> None:
        pytest.importorskip("torch")
        pacs.datasets = pacs.datasets[:4]
        recipe = medimg.Preprocess(size=64, window="percentile")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = medimg.TransferClassifier("resnet18", classes=["a", "b"], weights=None, preprocess=recipe)
            found = model.predict(pacs.series_url)
            expected = model.predict(medimg.scan([to_file(one) for one in pacs.datasets])[0])
        assert found.drop(columns="source").equals(expected.drop(columns="source"))
        assert found.source.tolist() == [pacs.series_url]
