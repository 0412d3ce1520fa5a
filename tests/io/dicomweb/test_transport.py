"""What servers and networks do wrong: clear errors in bounded time and memory, and credentials kept."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

import medimg
from medimg.errors import MedimgError, MedimgWarning, ReadError
from medimg.io.dicomweb.multipart import parse_parts
from medimg.io.dicomweb.transport import Answer
from tests.certificates import make_certificate
from tests.io.dicomweb.fake_pacs import (
    BOUNDARY,
    MULTIPART,
    SERIES,
    STUDY,
    FakePacs,
    Reply,
    Seen,
    make_slice,
    multipart,
    to_file,
    to_json,
)

SLICES = [make_slice(number) for number in range(4)]


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs(SLICES) as found:
        yield found


def connect(pacs: FakePacs, **options: object) -> medimg.DicomWebServer:
    return medimg.dicomweb(pacs.url, **{"timeout": 2, "retries": 2, **options})  # type: ignore[arg-type]  # of any kind


def is_instance(seen: Seen) -> bool:
    return "/instances/" in seen.path and not seen.path.endswith("metadata")


def drip_headers(seen: Seen, handler: BaseHTTPRequestHandler) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    for _ in range(60):
        handler.wfile.write(b"a")
        handler.wfile.flush()
        time.sleep(0.1)
    return True


class TestRetries:
    def test_503_then_success(self, pacs: FakePacs) -> None:
        failures: dict[str, int] = {}

        def fail_twice(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            failures[seen.path] = failures.get(seen.path, 0) + 1
            return Reply(503) if failures[seen.path] < 3 else None

        pacs.misbehave = fail_twice
        connect(pacs, timeout=20)
        assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_it_is_an_error_if_it_goes_on(self, pacs: FakePacs, status: int) -> None:
        pacs.misbehave = lambda *_: Reply(status)
        connect(pacs, retries=1)
        with pytest.raises(
            ReadError, match=rf"127.0.0.1 answers {status} .* to /studies/1.2.3/series/1.2.3.4/m"
        ):
            medimg.read(pacs.series_url)
        assert len(pacs.seen) == 2

    def test_other_errors_are_not_repeated(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda *_: Reply(500)
        connect(pacs)
        with pytest.raises(ReadError, match="answers 500"):
            medimg.read(pacs.series_url)
        assert len(pacs.seen) == 1

    def test_retry_after_is_honored(self, pacs: FakePacs) -> None:
        def wait_a_second(_: Seen, __: BaseHTTPRequestHandler) -> Reply | None:
            return Reply(503, headers={"Retry-After": "1"}) if len(pacs.seen) == 1 else None

        pacs.misbehave = wait_a_second
        connect(pacs, timeout=10)
        start = time.monotonic()
        medimg.scan(pacs.series_url)
        assert 1 <= time.monotonic() - start < 5

    def test_it_is_not_waited_for_longer_than_the_time_out(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda *_: Reply(503, headers={"Retry-After": "3600"})
        connect(pacs)
        start = time.monotonic()
        with pytest.raises(ReadError, match="503"):
            medimg.scan(pacs.series_url)
        assert time.monotonic() - start < 2.9

    @pytest.mark.parametrize(
        "stated", ["9" * 400, "1e9", "inf", "-3600", "Fri, 31 Dec 9999 23:59:59 GMT", "\xff", "soon", ""]
    )
    def test_any_retry_after_ends(self, pacs: FakePacs, stated: str) -> None:
        pacs.misbehave = lambda *_: Reply(503, headers={"Retry-After": stated})
        connect(pacs, retries=1)
        start = time.monotonic()
        with pytest.raises(ReadError, match="503"):
            medimg.scan(pacs.series_url)
        assert time.monotonic() - start < 2.9
        assert len(pacs.seen) <= 2

    @pytest.mark.parametrize("status", [400, 404, 500])
    def test_what_a_server_says_of_its_error_is_not_quoted(self, pacs: FakePacs, status: int) -> None:
        body = json.dumps({"Details": "Secret^Patient", "HttpStatus": status}).encode()
        pacs.misbehave = lambda seen, _: (
            Reply(status, body, "application/json") if is_instance(seen) else None
        )
        connect(pacs)
        with pytest.raises(ReadError, match=f"answers {status}") as raised:
            medimg.read(pacs.series_url)
        assert "Secret" not in str(raised.value)

    def test_an_error_with_a_status_of_success_is_no_file(self, pacs: FakePacs) -> None:
        body = b'{"Details": "Secret^Patient", "HttpStatus": 500}'
        pacs.misbehave = lambda seen, _: Reply(200, body, "application/json") if is_instance(seen) else None
        connect(pacs)
        with pytest.raises(ReadError, match="not a DICOM file") as raised:
            medimg.read(pacs.series_url)
        assert "Secret" not in str(raised.value)

    def test_a_refused_connection_is_an_error(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        medimg.dicomweb(f"http://127.0.0.1:{port}/dicom-web", retries=1, timeout=3)
        with pytest.raises(ConnectionError, match="check that the server runs") as raised:
            medimg.read(f"http://127.0.0.1:{port}/dicom-web/studies/1.2")
        assert isinstance(raised.value, ReadError)
        assert raised.value.__notes__ == ["after 2 attempt(s)"]


class TestTime:
    def test_silence_is_an_error(self, pacs: FakePacs) -> None:
        def sleep(_: Seen, __: BaseHTTPRequestHandler) -> bool:
            time.sleep(3)
            return True

        pacs.misbehave = sleep
        connect(pacs, timeout=0.5, retries=0)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"does not answer .* within 0.5 s"):
            medimg.read(pacs.series_url)
        assert time.monotonic() - start < 2.9

    def test_so_is_a_body_that_arrives_by_drops(self, pacs: FakePacs) -> None:
        def drip(seen: Seen, handler: BaseHTTPRequestHandler) -> bool:
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            for _ in range(40):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.1)
            return True

        pacs.misbehave = drip
        connect(pacs, timeout=0.5, retries=0)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"sent only \d+ bytes"):
            medimg.read(pacs.series_url)
        assert time.monotonic() - start < 2.9

    def test_so_are_headers_that_arrive_by_drops(self, pacs: FakePacs) -> None:
        pacs.misbehave = drip_headers
        connect(pacs, timeout=0.5, retries=0)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            medimg.read(pacs.series_url)
        assert time.monotonic() - start < 3


class TestTruncation:
    def test_headers_that_break_off_are_no_empty_result(self, pacs: FakePacs) -> None:
        def cut(seen: Seen, handler: BaseHTTPRequestHandler) -> bool:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
            return True

        pacs.misbehave = cut
        server = connect(pacs, retries=1)
        with pytest.raises(EOFError, match="breaks off in its headers"):
            server.search()
        assert len(pacs.seen) == 2

    def test_a_body_that_breaks_off_is_read_again(self, pacs: FakePacs) -> None:
        broken: set[str] = set()

        def break_once(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            if not is_instance(seen) or seen.path in broken:
                return None
            broken.add(seen.path)
            body = pacs.serve(seen).body
            handler.send_response(200)
            handler.send_header("Content-Type", MULTIPART)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2])
            return True

        pacs.misbehave = break_once
        connect(pacs, timeout=20)
        assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)
        assert pacs.count() == 8

    @pytest.mark.parametrize("kept", [0, 20, 200, -4, -20])
    def test_a_multipart_without_its_end_is_an_error(self, pacs: FakePacs, kept: int) -> None:
        def cut(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            return Reply(200, pacs.serve(seen).body[:kept], MULTIPART) if is_instance(seen) else None

        pacs.misbehave = cut
        connect(pacs, retries=1)
        with pytest.raises(EOFError, match="ends") as raised:
            medimg.read(pacs.series_url)
        assert isinstance(raised.value, ReadError)

    @pytest.mark.parametrize("stated", [True, False])
    def test_every_byte_of_a_multipart_is_needed(self, *, stated: bool) -> None:
        parts = [b"first\r\n--part", b"", bytes(range(256))]
        body = b""
        for part in parts:
            length = f"Content-Length: {len(part)}\r\n" if stated else ""
            body += f"--{BOUNDARY}\r\nContent-Type: a/b; c=d\r\n{length}\r\n".encode() + part + b"\r\n"
        body += f"--{BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": MULTIPART}
        # the line break after the last boundary is no part of it
        for cut in range(len(body) - 2):
            with pytest.raises(EOFError, match="ends"):
                parse_parts(Answer(200, headers, bytearray(body[:cut])))
        for cut in range(len(body) - 2, len(body) + 1):
            found = parse_parts(Answer(200, headers, bytearray(body[:cut])))
            assert [bytes(part.data) for part in found] == parts
            assert {part.content_type for part in found} == {"a/b; c=d"}

    @pytest.mark.parametrize("boundary", ["boundary8", "boundary", "boundary7-", "oundary7"])
    def test_another_boundary_than_stated(self, pacs: FakePacs, boundary: str) -> None:
        stated = MULTIPART.replace(BOUNDARY, boundary)
        pacs.misbehave = lambda seen, _: (
            pacs.serve(seen)._replace(content_type=stated) if is_instance(seen) else None
        )
        connect(pacs, retries=1)
        with pytest.raises(EOFError, match="ends"):
            medimg.read(pacs.series_url)

    def test_wrong_lengths_of_parts(self, pacs: FakePacs) -> None:
        def lie(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            if not is_instance(seen):
                return None
            reply = pacs.serve(seen)
            length = [b"0", b"7", b"9" * 30, b"-5"][pacs.count() % 4]
            start = b"\r\nContent-Length: " + length + b"\r\nContent-Type"
            return reply._replace(body=reply.body.replace(b"\r\nContent-Type", start, 1))

        pacs.misbehave = lie
        connect(pacs)
        assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)

    def test_a_body_shorter_than_declared(self, pacs: FakePacs) -> None:
        def lie(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            if not is_instance(seen):
                return None
            body = pacs.serve(seen).body
            handler.send_response(200)
            handler.send_header("Content-Type", MULTIPART)
            handler.send_header("Content-Length", str(len(body) + 1000))
            handler.end_headers()
            handler.wfile.write(body)
            return True

        pacs.misbehave = lie
        connect(pacs, retries=1)
        with pytest.raises(ConnectionError, match="broke off"):
            medimg.read(f"{pacs.series_url}/instances/{SERIES}.1")
        assert pacs.count() == 2

    def test_a_file_without_its_end_is_an_error(self, pacs: FakePacs) -> None:
        def cut(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            data = to_file(SLICES[0])
            return Reply(200, multipart(data[:-50]), MULTIPART) if is_instance(seen) else None

        pacs.misbehave = cut
        connect(pacs)
        with pytest.raises(EOFError, match=r"instances/1.2.3.4.1"):
            medimg.read(pacs.series_url + f"/instances/{SERIES}.1")


class TestBounds:
    def check(self, pacs: FakePacs, match: str) -> None:
        connect(pacs, timeout=20, retries=0)
        tracemalloc.start()
        with pytest.raises(ReadError, match=match):
            medimg.read(pacs.series_url)
        assert tracemalloc.get_traced_memory()[1] < 2**28
        tracemalloc.stop()

    def test_declared_sizes(self, pacs: FakePacs) -> None:
        def declare(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            if not is_instance(seen):
                return None
            handler.send_response(200)
            handler.send_header("Content-Length", str(10**15))
            handler.end_headers()
            return True

        pacs.misbehave = declare
        self.check(pacs, "more than the .* bytes that it can sensibly have")

    def test_files_far_larger_than_their_pixels(self, pacs: FakePacs) -> None:
        def pour(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            if not is_instance(seen):
                return None
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            piece = bytes(2**20)
            for _ in range(200):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            return True

        pacs.misbehave = pour
        self.check(pacs, "more than the .* bytes that it can sensibly have")

    def test_gzip_bombs(self, pacs: FakePacs) -> None:
        bomb = gzip.compress(bytes(2**28 + 2**20), 9)
        pacs.misbehave = lambda *_: Reply(200, bomb, headers={"Content-Encoding": "gzip"})
        connect(pacs, retries=0)
        with pytest.raises(ReadError, match="more than"):
            medimg.read(pacs.series_url)

    @pytest.mark.parametrize(
        ("encoding", "pack"),
        [
            ("gzip", lambda data: gzip.compress(data, 9)),
            ("deflate", lambda data: zlib.compress(data, 9)),
            ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data, 9), 9)),
        ],
    )
    def test_bombs_instead_of_files(
        self, pacs: FakePacs, encoding: str, pack: Callable[[bytes], bytes]
    ) -> None:
        bomb = pack(bytes(2**29))
        pacs.misbehave = lambda seen, _: (
            Reply(200, bomb, MULTIPART, {"Content-Encoding": encoding}) if is_instance(seen) else None
        )
        self.check(pacs, "more than the .* bytes that it can sensibly have")

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x", "gzip," * 9 + "gzip"])
    def test_other_encodings_than_stated(self, pacs: FakePacs, encoding: str) -> None:
        pacs.misbehave = lambda seen, _: (
            pacs.serve(seen)._replace(headers={"Content-Encoding": encoding}) if is_instance(seen) else None
        )
        connect(pacs, retries=0)
        if encoding == "x":
            # unknown ones are taken for none
            assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)
            return
        with contextlib.suppress(ReadError):
            assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)

    def test_declared_frames(self, pacs: FakePacs) -> None:
        bomb = make_slice(0)
        bomb.NumberOfFrames = 2**31 - 1
        pacs.datasets = [bomb]
        self.check(pacs, "declares 2147483647 frames")

    @pytest.mark.parametrize(
        ("body", "match"),
        [
            (b"[" * 10**5, "is not JSON"),
            (b'[{"00080005":' + b'{"vr":"SQ","Value":[' * 2000 + b"]}" * 2000 + b"}]", "is not JSON|levels|"),
            (b"[" + b"{}," * (2**22 + 1) + b"{}]", "invalid SOP Instance UID"),
            (b'[{"00080018":[' + b"{}," * (2**22 + 1) + b"{}]}]", "more than 4194304 JSON values"),
            (b"<html>", "is not JSON"),
            (b"\xff\xfe", "is not JSON"),
            (b"7", "not a list of objects"),
            (b"[7]", "not a list of objects"),
            (b'"x"', "not a list of objects"),
            (b"[]", "no instances"),
            (b"", "no instances"),
            (b'[{"0020000D": 5}]', "invalid SOP|no tag with an object|UID"),
        ],
    )
    def test_json(self, pacs: FakePacs, body: bytes, match: str) -> None:
        pacs.misbehave = lambda *_: Reply(200, body)
        self.check(pacs, match)

    def test_malformed_multiparts(self, pacs: FakePacs) -> None:
        for content_type in ("multipart/related", "multipart/related; boundary=\x00", "text/html", ""):
            pacs.misbehave = lambda seen, _, t=content_type: (
                Reply(200, multipart(b"x" * 200), t) if is_instance(seen) else None
            )
            connect(pacs, retries=0)
            with pytest.raises(ReadError):
                medimg.read(pacs.series_url)

    def test_several_files_instead_of_one(self, pacs: FakePacs) -> None:
        body = multipart(to_file(SLICES[0]), to_file(SLICES[1]))
        pacs.misbehave = lambda seen, _: Reply(200, body, MULTIPART) if is_instance(seen) else None
        self.check(pacs, "2 files for .*; expected 1")


class TestOtherData:
    def test_metadata_of_another_series(self, pacs: FakePacs) -> None:
        other = make_slice(0, series="1.2.9")
        pacs.misbehave = lambda *_: Reply(200, json.dumps([to_json(other)]).encode())
        connect(pacs)
        with pytest.raises(ReadError, match="metadata of other instances"):
            medimg.read(pacs.series_url)

    def test_file_of_another_instance(self, pacs: FakePacs) -> None:
        body = multipart(to_file(SLICES[1]))
        pacs.misbehave = lambda seen, _: Reply(200, body, MULTIPART) if is_instance(seen) else None
        connect(pacs)
        with pytest.raises(ReadError, match="another image"):
            medimg.read(pacs.series_url)

    def test_file_that_contradicts_its_metadata(self, pacs: FakePacs) -> None:
        def move(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            if not is_instance(seen):
                return None
            moved = make_slice(int(seen.path.rpartition(".")[2]) - 1)
            moved.ImagePositionPatient = [5, 5, 5]
            return Reply(200, multipart(to_file(moved)), MULTIPART)

        pacs.misbehave = move
        connect(pacs)
        with pytest.raises(ReadError, match="contradict the file"):
            medimg.read(pacs.series_url)

    def test_metadata_of_one_instance_twice(self, pacs: FakePacs) -> None:
        items = [to_json(dataset) for dataset in SLICES]
        pacs.misbehave = lambda seen, _: (
            Reply(200, json.dumps([*items, *items]).encode()) if seen.path.endswith("metadata") else None
        )
        connect(pacs)
        series = medimg.scan(pacs.series_url)[0]
        assert series.shape == (1, 4, 8, 8)
        assert series.read().report.duplicates == ()
        items.append({**items[0], "00200032": {"vr": "DS", "Value": [0, 0, 99]}})
        with pytest.raises(ReadError, match="different metadata of one instance"):
            medimg.scan(pacs.series_url)

    @pytest.mark.parametrize(
        "uid", ["../../admin", "1.2/../..", "1..2", ".", "1.2\r\nX: y", "1.2%2f", "9" * 65]
    )
    def test_uids_that_are_paths(self, pacs: FakePacs, uid: str) -> None:
        pacs.datasets = [make_slice(0)]
        tag = {"vr": "UI", "Value": [uid]}
        study, series = ({"vr": "UI", "Value": [one]} for one in ("1.2.3", "1.2.3.4"))

        def traverse(seen: Seen, _: BaseHTTPRequestHandler) -> Reply:
            if seen.path.endswith("metadata"):
                return Reply(
                    200, json.dumps([{"0020000D": study, "0020000E": series, "00080018": tag}]).encode()
                )
            return Reply(200, json.dumps([{"0020000D": study, "0020000E": tag}]).encode())

        pacs.misbehave = traverse
        server = connect(pacs)
        found = server.search()
        assert len(found) == 0
        assert "invalid Series Instance UID" in found.skipped[0].reason
        for url in (pacs.study_url, pacs.series_url):
            with pytest.raises(ReadError, match="invalid"):
                medimg.scan(url)
        with pytest.raises(ReadError, match="invalid"):
            server.read(uid)
        paths = {one.path for one in pacs.seen}
        assert paths <= {"/series", "/studies/1.2.3/series", "/studies/1.2.3/series/1.2.3.4/metadata"}


class TestRedirects:
    def test_loops_end(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda seen, _: Reply(302, headers={"Location": seen.path})
        connect(pacs)
        with pytest.raises(ReadError, match=r"redirects .* more than 5 times"):
            medimg.read(pacs.series_url)
        assert len(pacs.seen) == 6

    def test_they_are_followed_on_the_same_server(self, pacs: FakePacs) -> None:
        def move(seen: Seen, _: BaseHTTPRequestHandler) -> Reply | None:
            moved = seen.path.removeprefix("/moved/dicom-web")
            if moved != seen.path:
                return pacs.serve(seen._replace(path=moved))
            return Reply(307, headers={"Location": f"/moved/dicom-web{seen.path}"})

        pacs.misbehave = move
        connect(pacs, auth=("user", "secret"))
        assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)
        assert all("authorization" in one.headers for one in pacs.seen)

    def test_credentials_stay_with_the_server(self, pacs: FakePacs) -> None:
        with FakePacs(SLICES) as other:
            pacs.misbehave = lambda seen, _: Reply(302, headers={"Location": other.url + seen.path})
            for options in (
                {"auth": ("user", "secret")},
                {"token": lambda: "secret"},
                {"headers": {"X-Key": "secret", "Cookie": "secret"}},
            ):
                connect(pacs, **options)
                medimg.read(pacs.series_url)
            assert other.seen
            assert not any(
                "secret" in str(one.headers) or "authorization" in one.headers for one in other.seen
            )
            assert not any("x-key" in one.headers or "cookie" in one.headers for one in other.seen)

    @pytest.mark.parametrize(
        "target", ["http://example.org/x", "ftp://127.0.0.1/", "http://[", "http://u:p@127.0.0.1/", ""]
    )
    def test_others_are_not_followed(self, pacs: FakePacs, target: str) -> None:
        pacs.misbehave = lambda *_: Reply(302, headers={"Location": target})
        connect(pacs)
        with pytest.raises(ReadError, match=r"redirects|can't be requested"):
            medimg.read(pacs.series_url)
        assert len(pacs.seen) == 1


class TestCredentials:
    def test_basic(self, pacs: FakePacs) -> None:
        connect(pacs, auth=("user", "sécret"))
        medimg.scan(pacs.series_url)
        assert pacs.seen[0].headers["authorization"] == "Basic dXNlcjpzw6ljcmV0"

    def test_tokens_are_renewed(self, pacs: FakePacs) -> None:
        valid = "first"
        calls = []

        def issue() -> str:
            calls.append(valid)
            return valid

        pacs.misbehave = lambda seen, _: (
            None if seen.headers.get("authorization") == f"Bearer {valid}" else Reply(401)
        )
        connect(pacs, token=issue)
        series = medimg.scan(pacs.series_url)[0]
        valid = "second"
        assert series.read().array.shape == (1, 4, 8, 8)
        assert calls == ["first", "second"]

    def test_a_token_that_is_refused_again_is_an_error(self, pacs: FakePacs) -> None:
        pacs.misbehave = lambda *_: Reply(401)
        connect(pacs, token=lambda: "secret")
        with pytest.raises(PermissionError, match=r"401 .*check auth=, token=, headers= or .netrc") as raised:
            medimg.scan(pacs.series_url)
        assert "secret" not in str(raised.value)
        assert len(pacs.seen) == 2

    def test_threads_renew_a_token_once(self, pacs: FakePacs) -> None:
        pacs.datasets = [make_slice(number) for number in range(24)]
        valid = "first"
        calls = []

        def issue() -> str:
            calls.append(valid)
            time.sleep(0.05)
            return valid

        pacs.misbehave = lambda seen, _: (
            None if seen.headers.get("authorization") == f"Bearer {valid}" else Reply(401)
        )
        connect(pacs, token=issue, timeout=20)
        series = medimg.scan(pacs.series_url)[0]
        for token in ("second", "third"):
            valid = token
            assert series.read().array.shape == (1, 24, 8, 8)
        assert calls == ["first", "second", "third"]

    def test_a_token_that_cannot_be_renewed(self, pacs: FakePacs) -> None:
        issued = iter(["secret"])
        connect(pacs, token=lambda: next(issued))
        series = medimg.scan(pacs.series_url)[0]
        pacs.misbehave = lambda *_: Reply(401)
        with pytest.raises(ReadError, match=r"token\(\) raised StopIteration") as raised:
            series.read()
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("token", [lambda: None, lambda: "a\nb", lambda: "", lambda: 1 / 0])
    def test_invalid_tokens(self, pacs: FakePacs, token: Callable[[], str]) -> None:
        connect(pacs, token=token)
        with pytest.raises(ReadError, match=r"token\(\)"):
            medimg.scan(pacs.series_url)
        assert not pacs.seen

    def test_netrc(self, pacs: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login user password secret\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        connect(pacs)
        medimg.scan(pacs.series_url)
        connect(pacs, token=lambda: "mine")
        medimg.scan(pacs.series_url)
        connect(pacs, headers={"X-Key": "mine"})
        medimg.scan(pacs.series_url)
        found = [one.headers.get("authorization") for one in pacs.seen]
        assert found == ["Basic dXNlcjpzZWNyZXQ=", "Bearer mine", None]

    @pytest.mark.parametrize("password", ["pässword", "пароль"])
    def test_netrc_is_utf_8(
        self, pacs: FakePacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login user password {password}\n", encoding="utf-8")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        connect(pacs)
        medimg.scan(pacs.series_url)
        connect(pacs, auth=("user", password))
        medimg.scan(pacs.series_url)
        stated, given = (one.headers["authorization"] for one in pacs.seen[:1] + pacs.seen[-1:])
        assert stated == given

    def test_they_are_shown_nowhere(self, pacs: FakePacs) -> None:
        server = connect(pacs, auth=("user", "secret"))
        assert repr(server) == "DicomWebServer(127.0.0.1)"
        pacs.misbehave = lambda *_: Reply(403)
        with pytest.raises(PermissionError) as raised:
            server.search(PatientID="SECRET-ID")
        assert "secret" not in str(raised.value).lower()

    @pytest.mark.parametrize(
        "options",
        [
            {"auth": ("only",)},
            {"auth": 5},
            {"auth": (1, 2)},
            {"token": "static"},
            {"auth": ("u", "p"), "token": lambda: "t"},
            {"headers": ["secret"]},
            {"headers": {"X": "sec\r\nret"}},
            {"headers": {"X:": "secret"}},
            {"headers": {"X": 5}},
            {"verify": False},
            {"verify": "/nowhere/ca.pem"},
            {"verify": __file__},
            {"cert": "/nowhere/client.pem"},
            {"cert": __file__},
            {"cert": (__file__, __file__)},
            {"cert": ()},
            {"cert": ("a", "b", "c")},
            {"cert": 5},
            {"cert": (None, "secret")},
            {"timeout": 0},
            {"timeout": "long"},
            {"retries": -1},
            {"cache_bytes": 0},
        ],
    )
    def test_invalid_options(self, options: dict[str, object]) -> None:
        with pytest.raises(MedimgError) as raised:
            medimg.dicomweb("https://example.org", **options)  # type: ignore[arg-type]  # of any kind
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.org",
            "ftp://x",
            "http://",
            "http://u:secret@x/",
            "http://x/?key=secret",
            "http://x/a/../b",
            "http://x:y/",
            "http://x/#a",
            5,
        ],
    )
    def test_invalid_urls(self, url: str) -> None:
        with pytest.raises(ReadError, match="URL") as raised:
            medimg.dicomweb(url)
        assert "secret" not in str(raised.value)

    def test_a_warning_if_they_are_not_encrypted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError

        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
        server = medimg.dicomweb("http://pacs.example.org/rs", auth=("u", "p"), retries=0)
        with pytest.warns(MedimgWarning, match="unencrypted"), pytest.raises(ReadError):
            server.search()


class TestProxies:
    """Those of the environment; this server is one, and the other name exists nowhere."""

    @pytest.fixture(autouse=True)
    def environment(self, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{pacs.port}")
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{pacs.port}")

    def test_they_are_used(self, pacs: FakePacs) -> None:
        medimg.dicomweb("http://pacs.invalid/dicom-web", retries=0, timeout=5)
        url = f"http://pacs.invalid/dicom-web/studies/{STUDY}"
        assert medimg.read(url).array.shape == (1, 4, 8, 8)
        assert {one.headers["host"] for one in pacs.seen} == {"pacs.invalid"}
        assert all("proxy-authorization" in one.headers for one in pacs.seen)

    def test_headers_that_arrive_by_drops(self, pacs: FakePacs) -> None:
        pacs.misbehave = drip_headers
        server = medimg.dicomweb("http://pacs.invalid/dicom-web", retries=0, timeout=0.5)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            server.search()
        assert time.monotonic() - start < 3

    def test_not_for_those_that_need_none(self, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakePacs(SLICES) as other:
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            connect(other, timeout=20)
            assert medimg.read(other.series_url).array.shape == (1, 4, 8, 8)
            assert not pacs.seen

    def test_errors_name_no_password(self, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
        pacs.misbehave = lambda *_: Reply(407)
        server = medimg.dicomweb("http://pacs.invalid/dicom-web", retries=0, timeout=5)
        with pytest.raises(ReadError, match="407") as raised:
            server.search()
        assert "secret" not in str(raised.value)
        monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
        with pytest.raises(ConnectionError, match="ProxyError") as lost:
            server.search()
        assert "secret" not in str(lost.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("client"), "client")


class TestTls:
    @pytest.fixture
    def pacs(self, certificate: Path) -> Iterator[FakePacs]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.with_suffix(".crt"), certificate)
        with FakePacs(SLICES, tls=context) as found:
            yield found

    def test_unknown_authorities_are_refused(self, pacs: FakePacs) -> None:
        connect(pacs, auth=("user", "secret"))
        with pytest.raises(ReadError, match=r"certificate of 127.0.0.1 can't be verified; pass verify="):
            medimg.read(pacs.series_url)
        assert not pacs.seen

    def test_so_is_another_one(self, pacs: FakePacs, certificate: Path, tmp_path: Path) -> None:
        connect(pacs, verify=make_certificate(tmp_path, "other").with_suffix(".crt"))
        with pytest.raises(ReadError, match=r"certificate of 127.0.0.1 can't be verified"):
            medimg.read(pacs.series_url)
        assert not pacs.seen

    def test_a_given_authority_is_trusted(self, pacs: FakePacs, certificate: Path) -> None:
        connect(pacs, verify=certificate.with_suffix(".crt"))
        assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)

    def test_no_downgrade(self, pacs: FakePacs, certificate: Path) -> None:
        with FakePacs(SLICES) as plain:
            pacs.misbehave = lambda seen, _: Reply(302, headers={"Location": plain.url + seen.path})
            connect(pacs, verify=certificate.with_suffix(".crt"))
            with pytest.raises(ReadError, match="unencrypted"):
                medimg.read(pacs.series_url)
            assert not plain.seen

    def test_a_server_without_tls(self) -> None:
        with FakePacs(SLICES) as plain:
            url = plain.series_url.replace("http:", "https:")
            with pytest.raises(ConnectionError, match=r"no encrypted connection .* speaks https"):
                medimg.read(url)

    def test_a_connection_that_breaks_off_is_not_a_wrong_certificate(
        self, pacs: FakePacs, certificate: Path
    ) -> None:
        def cut(seen: Seen, handler: BaseHTTPRequestHandler) -> bool | None:
            if len(pacs.seen) > 1:
                return None
            # without the end that TLS has
            socket.socket.shutdown(handler.connection, socket.SHUT_RDWR)
            return True

        pacs.misbehave = cut
        connect(pacs, verify=certificate.with_suffix(".crt"))
        assert len(medimg.scan(pacs.series_url)) == 1
        assert len(pacs.seen) == 2


class TestClientCertificates:
    @pytest.fixture
    def pacs(self, certificate: Path, client: Path) -> Iterator[FakePacs]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.with_suffix(".crt"), certificate)
        context.load_verify_locations(client.with_suffix(".crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        with FakePacs(SLICES, tls=context) as found:
            yield found

    def test_pairs_and_single_files(
        self, pacs: FakePacs, certificate: Path, client: Path, tmp_path: Path
    ) -> None:
        both = tmp_path / "both.pem"
        both.write_bytes(client.read_bytes() + client.with_suffix(".crt").read_bytes())
        for cert in ((client.with_suffix(".crt"), client), both, str(both)):
            connect(pacs, verify=certificate.with_suffix(".crt"), cert=cert)
            assert medimg.read(pacs.series_url).array.shape == (1, 4, 8, 8)

    def test_none_and_unknown_ones(self, pacs: FakePacs, certificate: Path, tmp_path: Path) -> None:
        other = make_certificate(tmp_path, "other")
        for cert, match in (
            (None, "wants a client certificate"),
            ((other.with_suffix(".crt"), other), "client certificate"),
        ):
            connect(pacs, verify=certificate.with_suffix(".crt"), cert=cert, retries=9, timeout=20)
            # each time the server may close the connection before its alert is read
            with pytest.raises((PermissionError, ConnectionError), match=match) as raised:
                medimg.read(pacs.series_url)
            assert isinstance(raised.value, ReadError)
        assert not pacs.seen

    def test_they_stay_with_the_server(self, pacs: FakePacs, certificate: Path, client: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.with_suffix(".crt"), certificate)
        context.load_verify_locations(client.with_suffix(".crt"))
        context.verify_mode = ssl.CERT_OPTIONAL
        shown: list[object] = []

        def note(_: Seen, handler: BaseHTTPRequestHandler) -> None:
            shown.append(handler.connection.getpeercert())

        with FakePacs(SLICES, note, context) as other:
            pacs.misbehave = lambda seen, _: Reply(302, headers={"Location": other.url + seen.path})
            connect(pacs, verify=certificate.with_suffix(".crt"), cert=(client.with_suffix(".crt"), client))
            assert len(medimg.scan(pacs.series_url)) == 1
            assert shown
            assert not any(shown)

    def test_encrypted_keys_and_other_pairs(self, certificate: Path, client: Path, tmp_path: Path) -> None:
        locked = make_certificate(tmp_path, "locked", "-passout", "pass:secret")
        with pytest.raises(ReadError, match="is encrypted"):
            medimg.dicomweb("https://example.org", cert=(locked.with_suffix(".crt"), locked))
        with pytest.raises(ReadError, match="belong together"):
            medimg.dicomweb("https://example.org", cert=(client.with_suffix(".crt"), certificate))
