"""Frames of a multi-frame instance apart from it: only those asked for, or the whole file if need be."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless

import medimg
from medimg.errors import DecodeError, MedimgError, ReadError
from tests.io.dicomweb.fake_pacs import (
    BOUNDARY,
    FakePacs,
    Reply,
    Seen,
    get_frame,
    make_multi_frame,
    multipart,
    to_file,
    to_json,
)

SENT = f'multipart/related; type="application/octet-stream"; boundary={BOUNDARY}'
CHOSEN = [3, 7, 19]


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs([make_multi_frame(20)]) as found:
        yield found


def connect(pacs: FakePacs, **options: object) -> medimg.DicomWebServer:
    return medimg.dicomweb(pacs.url, **{"timeout": 10, "retries": 0, **options})  # type: ignore[arg-type]  # of any kind


def read_both(pacs: FakePacs, slices: list[int]) -> tuple[medimg.Volume, medimg.Volume]:
    """The slices from the server, and from the file."""
    local = medimg.scan([to_file(pacs.datasets[0])])[0]
    return medimg.scan(pacs.series_url)[0].read(slices), local.read(slices)


def check_equal(found: medimg.Volume, expected: medimg.Volume) -> None:
    assert found.array.dtype == expected.array.dtype
    assert found.array.tobytes() == expected.array.tobytes()
    assert found.voi == expected.voi
    assert found.report.transforms == expected.report.transforms
    assert found.report.frame_numbers == expected.report.frame_numbers


def asked_frames(pacs: FakePacs) -> list[int]:
    lists = [one.path.rpartition("/frames/")[2] for one in pacs.seen if "/frames/" in one.path]
    return sorted(int(number) for some in lists for number in some.split(","))


class TestWhatIsFetched:
    def test_three_frames_of_300(self, pacs: FakePacs) -> None:
        pacs.datasets = [make_multi_frame(300, size=64)]
        connect(pacs)
        series = medimg.scan(pacs.series_url)[0]
        before = pacs.sent
        found = series.read([7, 150, 299])
        assert asked_frames(pacs) == [8, 151, 300]
        assert pacs.count() == 0
        assert 3 * 64 * 64 * 2 <= pacs.sent - before < 3 * (64 * 64 * 2 + 300)
        check_equal(found, medimg.scan([to_file(pacs.datasets[0])])[0].read([7, 150, 299]))

    @pytest.mark.parametrize("count", [11, 20])
    def test_most_frames_are_one_file(self, pacs: FakePacs, count: int) -> None:
        connect(pacs)
        check_equal(*read_both(pacs, list(range(count))))
        assert pacs.count() == 1
        assert not asked_frames(pacs)

    def test_many_are_fetched_a_few_at_a_time_side_by_side(self, pacs: FakePacs) -> None:
        pacs.datasets = [make_multi_frame(300)]
        together, numbers = threading.Barrier(4), itertools.count(1)

        def wait(seen: Seen, _: BaseHTTPRequestHandler) -> None:
            # the first slice comes alone
            if "/frames/" in seen.path and 2 <= next(numbers) <= 5:
                together.wait(30)

        pacs.misbehave = wait
        connect(pacs, timeout=40)
        check_equal(*read_both(pacs, list(range(140))))
        assert not together.broken
        assert asked_frames(pacs) == list(range(1, 141))
        assert pacs.count("/frames/") == 16  # two rounds of eight

    def test_large_frames_are_fetched_one_by_one(
        self, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("medimg.io.dicom.pixels._fetched_frames._MAX_BYTES", 700)
        connect(pacs)
        check_equal(*read_both(pacs, list(range(10))))
        assert pacs.count("/frames/") == 10

    def test_pieces(self, pacs: FakePacs) -> None:
        connect(pacs)
        series = medimg.scan(pacs.series_url)[0]
        arrays = [piece.array for piece in series.pieces(4, range(2, 12))]
        expected = medimg.scan([to_file(pacs.datasets[0])])[0].read(range(2, 12)).array
        assert np.concatenate(arrays, 1).tobytes() == expected.tobytes()
        assert asked_frames(pacs) == list(range(3, 13))

    def test_pickles_and_new_readings(self, pacs: FakePacs) -> None:
        connect(pacs)
        series = pickle.loads(pickle.dumps(medimg.scan(pacs.series_url)[0]))
        for _ in range(2):
            check_equal(series.read([4]), read_both(pacs, [4])[1])
        assert pacs.count() == 0

    @pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
    def test_codestreams(self, pacs: FakePacs, syntax: str) -> None:
        pacs.datasets[0].compress(syntax)
        connect(pacs)
        check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count() == 0

    def test_odd_frames_are_padded(self, pacs: FakePacs) -> None:
        dataset = pacs.datasets[0]
        dataset.Rows = dataset.Columns = 7
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = np.random.default_rng(0).integers(0, 255, (20, 7, 7), np.uint8).tobytes()
        dataset["PixelData"].VR = "OB"
        frames = [get_frame(dataset, number + 1) + b"\0" for number in CHOSEN]
        pacs.misbehave = lambda seen, _: (
            Reply(200, multipart(*_chosen(seen, frames), content_type="application/octet-stream"), SENT)
            if "/frames/" in seen.path
            else None
        )
        connect(pacs)
        check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count() == 0

    def test_one_without_multipart(self, pacs: FakePacs) -> None:
        data = get_frame(pacs.datasets[0], 5)
        pacs.misbehave = lambda seen, _: (
            Reply(200, data, "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1")
            if "/frames/" in seen.path
            else None
        )
        connect(pacs)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count() == 0


def _chosen(seen: Seen, frames: list[bytes]) -> list[bytes]:
    numbers = [int(number) - 1 for number in seen.path.rpartition("/")[2].split(",")]
    return [frames[CHOSEN.index(number)] for number in numbers]


class TestWholeFiles:
    @pytest.mark.parametrize("status", [400, 404, 405, 406, 415, 500, 501])
    def test_servers_without_frames(
        self, pacs: FakePacs, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        pacs.misbehave = lambda seen, _: Reply(status) if "/frames/" in seen.path else None
        connect(pacs)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count() == 1
        asked = pacs.count("/frames/")
        check_equal(*read_both(pacs, [5]))
        assert pacs.count("/frames/") == asked == 1
        assert pacs.count() == 2
        assert caplog.text.count("whole multi-frame instances are read") == 1
        assert f"answers {status}" in caplog.text
        assert "1.2.3" not in caplog.text

    def test_they_are_remembered_by_transfer_syntax(
        self, pacs: FakePacs, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = make_multi_frame(20, number=1)
        other.compress(JPEGLSLossless)
        third = make_multi_frame(20, number=2)
        pacs.datasets = [pacs.datasets[0], other, third]
        for n, dataset in enumerate(pacs.datasets):
            dataset.SeriesInstanceUID = f"1.2.3.4{n}"
            dataset.AvailableTransferSyntaxUID = dataset.file_meta.TransferSyntaxUID

        def refuse(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            return Reply(500) if "/frames/" in seen.path and "1.2.3.41" not in seen.path else None

        pacs.misbehave = refuse
        connect(pacs)
        for n in range(3):
            medimg.scan(f"{pacs.study_url}/series/1.2.3.4{n}")[0].read([4])
        assert [one.path.split("/")[4] for one in pacs.seen if "/frames/" in one.path] == [
            "1.2.3.40",
            "1.2.3.41",
        ]
        assert pacs.count() == 2
        assert "transfer syntax 1.2.840.10008.1.2.1 " in caplog.text

    def test_servers_that_send_one_at_a_time(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda seen, _: Reply(400) if "," in seen.path else None
        connect(pacs)
        check_equal(*read_both(pacs, list(range(10))))
        assert pacs.count() == 0
        lists = sum("," in one.path for one in pacs.seen)
        check_equal(*read_both(pacs, list(range(9))))
        assert sum("," in one.path for one in pacs.seen) == lists <= 8

    @pytest.mark.parametrize(
        ("content_type", "change"),
        [
            ("application/json", lambda data: b'{"HttpStatus": 200}'),
            ("text/html", lambda data: data),
            ("application/octet-stream", lambda data: data[:-2]),
            ("application/octet-stream", lambda data: data + data),
            ("application/octet-stream", lambda data: b""),
            ("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.2", lambda data: data),
            ("application/octet-stream; transfer-syntax=1.2.3", lambda data: data),
            ("application/octet-stream; transfer-syntax=", lambda data: data),
            ("image/jpeg", lambda data: data),
            ("video/mp4; transfer-syntax=1.2.840.10008.1.2.4.102", lambda data: data),
        ],
    )
    def test_what_is_no_frame(
        self, pacs: FakePacs, content_type: str, change: Callable[[bytes], bytes]
    ) -> None:
        body = multipart(change(get_frame(pacs.datasets[0], 5)), content_type=content_type)
        pacs.misbehave = lambda seen, _: Reply(200, body, SENT) if "/frames/" in seen.path else None
        connect(pacs)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count() == 1

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_another_number_of_them(self, pacs: FakePacs, count: int) -> None:
        body = multipart(*[get_frame(pacs.datasets[0], 1)] * count)
        pacs.misbehave = lambda seen, _: Reply(200, body, SENT) if "/frames/" in seen.path else None
        connect(pacs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medimg.io.dicom.pixels._fetched_frames._AT_ONCE", 1)
            check_equal(*read_both(pacs, [3, 4]))
        assert pacs.count() == 1

    def test_decoded_colors_are_ambiguous(self, pacs: FakePacs) -> None:
        dataset = pacs.datasets[0]
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8).tobytes()
        connect(pacs)
        for photometric, planar, wholes in (("YBR_FULL", 0, 1), ("RGB", 1, 2), ("RGB", 0, 2)):
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = photometric, planar
            pacs.forget()
            connect(pacs)
            check_equal(*read_both(pacs, CHOSEN))
            assert pacs.count() == wholes
        # if it says that it does not decode them
        dataset.PhotometricInterpretation = "YBR_FULL"
        dataset.AvailableTransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        pacs.forget()
        connect(pacs)
        check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count() == 2

    def test_frames_that_were_made_lossy_are_not_used(self, pacs: FakePacs) -> None:
        imagecodecs = pytest.importorskip("imagecodecs")
        dataset = pacs.datasets[0]
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        pixels = np.random.default_rng(0).integers(0, 255, (20, 16, 16), np.uint8)
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OB"
        kind = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
        body = multipart(imagecodecs.jpeg8_encode(pixels[4]), content_type=kind)
        pacs.misbehave = lambda seen, _: Reply(200, body, SENT) if "/frames/" in seen.path else None
        connect(pacs)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count() == 1
        # if they were lossy before, it is what is stored
        dataset.LossyImageCompression = "01"
        pacs.forget()
        connect(pacs)
        found, expected = read_both(pacs, [4])
        assert pacs.count() == 1
        assert 0 < np.abs(found.array.astype(int) - expected.array).max() < 100

    def test_bits_that_share_a_byte(self, pacs: FakePacs) -> None:
        dataset = pacs.datasets[0]
        dataset.Rows = dataset.Columns = 5
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = dataset.PixelRepresentation = 0
        dataset.PixelData = np.random.default_rng(0).bytes(64)
        connect(pacs)
        check_equal(*read_both(pacs, CHOSEN))
        assert not asked_frames(pacs)

    def test_a_lookup_table_that_is_only_in_the_file(self, pacs: FakePacs) -> None:
        table = Dataset()
        table.LUTDescriptor, table.LUTData = [4096, 0, 16], np.arange(4096, dtype=np.uint16)[::-1].tobytes()
        table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
        table.ModalityLUTType = "US"
        dataset = pacs.datasets[0]
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.PixelRepresentation = 0
        dataset.ModalityLUTSequence = [table]
        item = to_json(dataset)
        item["00283000"]["Value"][0]["00283006"] = {"vr": "OW", "BulkDataURI": f"{pacs.url}/never"}
        body = json.dumps([item]).encode()
        pacs.misbehave = lambda seen, _: Reply(200, body) if seen.path.endswith("metadata") else None
        connect(pacs)
        check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count() == 1
        assert not asked_frames(pacs)


class TestErrors:
    def test_a_lost_connection_is_an_error_once(self, pacs: FakePacs) -> None:
        def cut(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            return True if "/frames/" in seen.path else None

        pacs.misbehave = cut
        connect(pacs)
        series = medimg.scan(pacs.series_url)[0]
        with pytest.raises(ConnectionError, match="/frames/") as raised:
            series.read(CHOSEN)
        assert isinstance(raised.value, ReadError)
        assert pacs.count() == 0
        pacs.misbehave = None
        check_equal(series.read(CHOSEN), read_both(pacs, CHOSEN)[1])

    @pytest.mark.parametrize(("status", "error"), [(401, PermissionError), (403, PermissionError)])
    def test_missing_rights_are_no_missing_frames(
        self, pacs: FakePacs, status: int, error: type[Exception]
    ) -> None:
        pacs.misbehave = lambda seen, _: Reply(status) if "/frames/" in seen.path else None
        connect(pacs)
        with pytest.raises(error):
            medimg.scan(pacs.series_url)[0].read([4])
        assert pacs.count() == 0

    def test_503_is_repeated(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda seen, _: (
            Reply(503) if "/frames/" in seen.path and pacs.count("/frames/") == 1 else None
        )
        connect(pacs, retries=2)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count("/frames/") == 2

    def test_cut_off_multiparts_are_repeated(self, pacs: FakePacs) -> None:
        def cut(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            if "/frames/" not in seen.path or pacs.count("/frames/") > 1:
                return None
            reply = pacs.serve(seen)
            return reply._replace(body=reply.body[:-20])

        pacs.misbehave = cut
        connect(pacs, retries=1)
        check_equal(*read_both(pacs, [4]))
        assert pacs.count("/frames/") == 2

    def test_endless_frames_are_not_read(self, pacs: FakePacs) -> None:
        body = multipart(bytes(10**6), content_type="application/octet-stream")
        pacs.misbehave = lambda seen, _: Reply(200, body, SENT) if "/frames/" in seen.path else None
        connect(pacs)
        with pytest.raises(ReadError, match=r"more than the .* bytes that it can sensibly have"):
            medimg.scan(pacs.series_url)[0].read([4])

    def test_metadata_with_more_frames_than_the_file(self, pacs: FakePacs) -> None:
        claim = make_multi_frame(25)
        body = json.dumps([to_json(claim)]).encode()
        pacs.misbehave = lambda seen, _: Reply(200, body) if seen.path.endswith("metadata") else None
        connect(pacs)
        series = medimg.scan(pacs.series_url)[0]
        assert series.read([4]).array.tobytes() == read_both(pacs, [4])[1].array.tobytes()
        with pytest.raises(MedimgError, match=r"contradict|frame 25 of 20"):
            series.read([24])

    def test_metadata_with_another_size_than_the_file(self, pacs: FakePacs) -> None:
        claim = make_multi_frame(20)
        claim.Rows = 8
        body = json.dumps([to_json(claim)]).encode()
        pacs.misbehave = lambda seen, _: Reply(200, body) if seen.path.endswith("metadata") else None
        connect(pacs)
        with pytest.raises(DecodeError, match="contradict the file"):
            medimg.scan(pacs.series_url)[0].read([4])


class TestCache:
    def test_frames_are_fetched_once(self, pacs: FakePacs, tmp_path: Path) -> None:
        for _ in range(2):
            connect(pacs, cache=tmp_path / "cache")
            check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count("/frames/") == 3
        check_equal(*read_both(pacs, [3, 8]))
        assert asked_frames(pacs) == [4, 8, 9, 20]

    def test_a_whole_file_has_them(self, pacs: FakePacs, tmp_path: Path) -> None:
        # a file of a tenth of the cache or more is not kept
        connect(pacs, cache=tmp_path / "cache")
        check_equal(*read_both(pacs, list(range(20))))
        check_equal(*read_both(pacs, CHOSEN))
        assert pacs.count() == 1
        assert not asked_frames(pacs)


def test_nothing_private_is_logged(pacs: FakePacs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pacs.misbehave = lambda seen, _: Reply(500) if "/frames/" in seen.path else None
    connect(pacs)
    read_both(pacs, CHOSEN)
    assert "ecret" not in caplog.text
    assert "SECRET" not in caplog.text
