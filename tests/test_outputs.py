"""Every output, on this machine, in memory and on a server of S3: the same bytes, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pandas as pd
import pytest

import medimg
from medimg import Preprocess, TransferClassifier, Volume
from medimg.cli.main import main
from medimg.errors import (
    CheckpointError,
    ConversionError,
    DatasetError,
    MedimgError,
    ReadError,
    StoreError,
)
from medimg.io.files.output import atomic_output
from tests.models.portable_models import portable_model, register
from tests.s3_server import Application, forget_storages, s3_server

Target = Path | str
SECRET = "SESAME"
RNG = np.random.default_rng(0)
VOLUME = Volume.from_array(RNG.integers(-1000, 1000, (4, 24, 24)).astype(np.int16))
REPORT = medimg.score(
    [0, 1, 0, 1, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]],
    patients=list("abcdef"), classes=["no", "yes"],
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder on this machine, or one that a URL names."""

    root: Target

    def target(self, name: str) -> Target:
        return self.root / name if isinstance(self.root, Path) else f"{self.root}/{name}"

    def names(self) -> list[str]:
        if isinstance(self.root, Path):
            return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())
        storage, path = fsspec.core.url_to_fs(self.root)
        storage.invalidate_cache()
        if not storage.exists(path):
            return []
        return sorted(name.removeprefix(path).lstrip("/") for name in storage.find(path))

    def read(self, name: str) -> bytes:
        target = self.target(name)
        if isinstance(target, Path):
            return target.read_bytes()
        storage, path = fsspec.core.url_to_fs(target)
        return bytes(storage.cat_file(path))


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(tmp_path / "out")
    start = "memory:/" if request.param == "memory" else request.getfixturevalue("bucket")
    return Place(f"{start}/{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def model() -> TransferClassifier:
    register()
    return portable_model()


@pytest.fixture(scope="session")
def ensemble(model: TransferClassifier) -> medimg.Ensemble:
    return medimg.Ensemble([model, portable_model(1)])


@pytest.fixture(scope="session")
def exported(model: TransferClassifier, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with ``m.onnx`` and ``m.json``."""
    folder = tmp_path_factory.mktemp("exported")
    model.export(folder / "m.onnx")
    return Place(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> medimg.ImageDataset:
    folder = tmp_path_factory.mktemp("data") / "xray"
    table = medimg.phantom.write_xray_dataset(folder, patients=6, size=(40, 40), classes=["normal", "nodule"])
    return medimg.ImageDataset.from_csv(
        table, path="file", patient="patient_id", preprocess=Preprocess(size=32)
    )


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    phantom = medimg.phantom.chest_ct(1, label="nodule", slices=3, size=40)
    medimg.phantom.write_ct_series(phantom, folder, medimg.phantom.Identity.derive("out", 1))
    return folder


@dataclass(frozen=True)
class Writer:
    """An output of the public interface, with the name of its file."""

    name: str
    write: Callable[[pytest.FixtureRequest, Any], Any]
    beside: tuple[str, ...] = ()
    error: type[MedimgError] = ConversionError
    is_deterministic: bool = True


def _model(request: pytest.FixtureRequest) -> TransferClassifier:
    found: TransferClassifier = request.getfixturevalue("model")
    return found


def _explain(request: pytest.FixtureRequest, path: Any) -> Any:
    return medimg.explain(_model(request), VOLUME, progress=False).save(path)


def _split(request: pytest.FixtureRequest, path: Any) -> Any:
    train, val, test = medimg.split(request.getfixturevalue("data"), fractions=(0.4, 0.3, 0.3))
    return medimg.save_split(path, train=train, val=val, test=test)


def _ensemble(request: pytest.FixtureRequest, path: Any) -> Any:
    found: medimg.Ensemble = request.getfixturevalue("ensemble")
    return found.save(path)


WRITERS = [
    Writer("v.nii.gz", lambda _, path: VOLUME.save(path)),
    Writer("v.nii", lambda _, path: VOLUME.save(path)),
    Writer("v.nrrd", lambda _, path: VOLUME.save(path)),
    Writer("v.mha", lambda _, path: VOLUME.save(path)),
    Writer("heat.nii.gz", _explain),
    Writer("m.safetensors", lambda r, path: _model(r).save(path), error=CheckpointError),
    Writer("e.safetensors", _ensemble, error=CheckpointError),
    Writer("m.onnx", lambda r, path: _model(r).export(path), ("m.json",), error=CheckpointError),
    Writer("m.pt2", lambda r, path: _model(r).export(path), ("m.json",), CheckpointError, False),
    Writer("p.csv", lambda _, path: REPORT.to_csv(path), error=DatasetError),
    Writer("r.html", lambda _, path: REPORT.to_html(path, card=True), ("r.md",), DatasetError),
    Writer("card.md", lambda _, path: REPORT.to_model_card(path), error=DatasetError),
    Writer("split.json", _split, error=DatasetError),
]  # fmt: skip
every_writer = pytest.mark.parametrize("writer", WRITERS, ids=lambda w: w.name)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What has been written to this machine."""
    return Place(tmp_path_factory.mktemp("references"))


@every_writer
def test_an_output_is_the_same_everywhere(
    writer: Writer, place: Place, references: Place, temporary: Path, request: pytest.FixtureRequest
) -> None:
    target = place.target(writer.name)
    assert writer.write(request, target) == target
    names = sorted([writer.name, *writer.beside])
    assert place.names() == names
    if writer.is_deterministic:
        expected = references.target(writer.name)
        if not Path(expected).exists():
            writer.write(request, expected)
        assert [place.read(name) for name in names] == [references.read(name) for name in names]
    assert not list(temporary.iterdir())


def test_an_output_is_replaced(place: Place) -> None:
    target = place.target("v.nii")
    for content in (b"old", b"older", b""):
        assert overwrite(place, "v.nii", content) == target
        assert place.read("v.nii") == content
    VOLUME.save(target)
    assert place.read("v.nii").startswith(b"\x5c\x01\0\0")
    assert place.names() == ["v.nii"]


@every_writer
def test_what_is_no_place_for_an_output_is_refused_before_any_work(
    writer: Writer, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad: list[Target] = [
        f"https://host/{writer.name}",
        f"http://me:{SECRET}@host/{writer.name}?token={SECRET}",
        f"s3://me:{SECRET}@bucket/{writer.name}",
        f"memory://folder/{writer.name}?token={SECRET}",
        f"memory://folder/../{writer.name}",
        f"memory://folder/a\n{writer.name}",
        f"s3://{writer.name}",
        f"memory://folder/{writer.name}/",
        f"file://{tmp_path}/{writer.name}",
        f"simplecache::memory://{writer.name}",
        Path(f"s3://bucket/{writer.name}"),
        Path(f"https://host/{writer.name}"),
        str(Path(f"s3://bucket/{writer.name}")),
    ]
    for target in bad:
        with (
            mock.patch("medimg.models.portable.export.check_calibration", side_effect=AssertionError),
            pytest.raises(writer.error, match=r"path|URL") as caught,
        ):
            writer.write(request, target)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not fsspec.filesystem("memory").exists("/folder")


def test_a_failing_writer_leaves_nothing(place: Place, temporary: Path) -> None:
    def write(error: BaseException) -> None:
        with atomic_output(place.target("a/x.txt")) as path:
            path.write_text("new, half")
            raise error

    with pytest.raises(ValueError, match="half"):
        write(ValueError("half"))
    assert place.names() == []
    overwrite(place, "a/x.txt", b"old")
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert place.names() == ["a/x.txt"]
    assert place.read("a/x.txt") == b"old"
    assert not list(temporary.iterdir())


def test_a_model_that_exports_something_else_is_not_written(model: TransferClassifier) -> None:
    place = Place("memory://other")
    with pytest.raises(CheckpointError, match="differ"):
        model.export(place.target("m.onnx"), tolerance=1e-30)
    assert place.names() == []


def test_a_folder_is_not_replaced(place: Place) -> None:
    VOLUME.save(place.target("a/v.nii"))
    with pytest.raises(OSError, match=r"not a regular file|files below it"):
        REPORT.to_csv(place.target("a"))
    assert place.names() == ["a/v.nii"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions of files")
def test_temporary_files_are_private(temporary: Path) -> None:
    with atomic_output("memory://private/x.txt") as path:
        assert path.is_relative_to(temporary)
        assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals and locks of files")
def test_what_a_killed_writer_leaves_is_removed(bucket: str, temporary: Path) -> None:
    url = f"{bucket}/{secrets.token_hex(4)}"
    code = (
        "import sys, time\nfrom medimg.io.files.output import atomic_output\n"
        "with atomic_output(sys.argv[1]) as path:\n path.write_text('half')\n print('writing', flush=True)\n"
        " time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", code, f"{url}/x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert len(list(temporary.iterdir())) == 1
    VOLUME.save(f"{url}/v.nii")
    assert Place(url).names() == ["v.nii"]
    assert not list(temporary.iterdir())


class Refusing:
    """Answers some requests of S3 in place of the server, and counts parts of uploads."""

    def __init__(
        self, status: str, code: str, *, parts: bool = False, methods: tuple[str, ...] = ("PUT", "POST")
    ) -> None:
        self.status, self.code, self.parts, self.methods = status, code, parts, methods
        self.is_on = True
        self.interrupt: Callable[[], None] | None = None
        #: POST of each upload of several parts that was completed, DELETE of each that was aborted.
        self.ends: queue.Queue[str] = queue.Queue()

    def wrap(self, app: Application) -> Application:
        def run(environ: dict[str, Any], start: Any) -> Any:
            query, method = environ.get("QUERY_STRING", ""), environ["REQUEST_METHOD"]
            if "uploadId" in query and method in ("POST", "DELETE"):
                self.ends.put(method)
            is_part = method == "PUT" and "partNumber=2" in query
            if is_part and self.interrupt is not None:
                self.interrupt()
            if self.is_on and (is_part if self.parts else method in self.methods):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                message = f"{SECRET} of arn:aws:iam::1234:user/{SECRET}"
                body = f"<Error><Code>{self.code}</Code><Message>{message}</Message></Error>".encode()
                start(self.status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
                return [] if method == "HEAD" else [body]
            return app(environ, start)

        return run


@pytest.mark.parametrize(
    ("status", "code", "builtin", "message"),
    [
        ("403 Forbidden", "AccessDenied", PermissionError, "may not be written with these credentials"),
        ("400 Bad Request", "EntityTooLarge", ConnectionError, r"\(OSError, HTTP 400, EntityTooLarge\)"),
        ("418 Teapot", "Strange", ConnectionError, r"\(OSError, HTTP 418, Strange\)"),
    ],
)
def test_refusals_of_the_server_are_errors_without_its_text(
    status: str, code: str, builtin: type[Exception], message: str, model: TransferClassifier
) -> None:
    refusing = Refusing(status, code)
    with s3_server(refusing.wrap) as url:
        for write in (VOLUME.save, model.save, REPORT.to_csv):
            with pytest.raises(StoreError, match=message) as caught:
                write(f"{url}/v.nii")
            assert isinstance(caught.value, builtin)
            assert SECRET not in str(caught.value)
            assert f"{url}/v.nii" in str(caught.value)
            assert caught.value.__suppress_context__
        refusing.is_on = False
        VOLUME.save(f"{url}/v.nii")
        assert Place(url).names() == ["v.nii"]


def test_who_may_only_write_writes(ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusing = Refusing("403 Forbidden", "AccessDenied", methods=("GET", "HEAD"))
    with s3_server(refusing.wrap) as url:
        VOLUME.save(f"{url}/v.nii")
        assert main(["read", str(ct), f"{url}/ct.nii", "--force"]) == 0
        assert main(["read", str(ct), f"{url}/ct.nii"]) == 1
        assert "may not be read with these credentials" in capsys.readouterr().err
        with pytest.raises(PermissionError, match="may not be read"):
            medimg.load(f"{url}/v.nii")
        refusing.is_on = False
        assert Place(url).names() == ["ct.nii", "v.nii"]


def test_a_bucket_that_is_not_there_is_a_clear_error(bucket: str) -> None:
    with pytest.raises(StoreError, match="no such bucket") as caught:
        VOLUME.save("s3://no-such-bucket/v.nii")
    assert isinstance(caught.value, FileNotFoundError)
    assert bucket


def test_a_server_that_is_down_is_an_error_of_the_connection(bucket: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        forget_storages()
        try:
            with mock.patch.dict(os.environ, AWS_ENDPOINT_URL=f"http://127.0.0.1:{closed.getsockname()[1]}"):
                for use in (lambda: VOLUME.save(f"{bucket}/v.nii"), lambda: medimg.load(f"{bucket}/m")):
                    with pytest.raises(ConnectionError, match=r"\(EndpointConnectionError\)"):
                        use()
        finally:
            forget_storages()


def make_large(path: Path) -> None:
    """Make a file of more than one part of an upload, which takes no space."""
    with path.open("wb") as file:
        file.truncate(120 * 2**20)


def list_uploads(url: str) -> list[Any]:
    answer = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket=url.removeprefix("s3://"))
    found: list[Any] = answer.get("Uploads", [])
    return found


def test_an_upload_of_several_parts_that_fails_is_aborted(temporary: Path) -> None:
    refusing = Refusing("403 Forbidden", "AccessDenied", parts=True)
    with s3_server(refusing.wrap) as url:
        with pytest.raises(StoreError, match="credentials"), atomic_output(f"{url}/x") as path:
            make_large(path)
        assert Place(url).names() == []
        assert list_uploads(url) == []
        refusing.is_on = False
        with atomic_output(f"{url}/x") as path:
            make_large(path)
        assert fsspec.filesystem("s3").size(f"{url}/x") == 120 * 2**20
    assert not list(temporary.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals")
def test_an_upload_of_several_parts_that_is_interrupted_is_aborted(temporary: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    refusing = Refusing("", "", parts=True)
    refusing.is_on = False
    handled = threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        handled.wait(10)

    refusing.interrupt = interrupt
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with s3_server(refusing.wrap) as url:
            with pytest.raises(Stop), atomic_output(f"{url}/x") as path:
                make_large(path)
            handled.set()
            assert refusing.ends.get(timeout=60) == "DELETE"
            assert Place(url).names() == []
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not list(temporary.iterdir())


def test_models_are_read_from_where_they_were_written(
    place: Place, model: TransferClassifier, ensemble: medimg.Ensemble, exported: Place
) -> None:
    def predict(one: TransferClassifier | medimg.OnnxClassifier) -> Any:
        return one.predict([VOLUME]).select_dtypes("float").to_numpy()

    path = model.save(place.target("m.safetensors"))
    for load in (medimg.load, TransferClassifier.load):
        assert np.array_equal(predict(load(path)), predict(model))
    path = ensemble.save(place.target("e.safetensors"))
    for load in (medimg.load, medimg.Ensemble.load):
        assert np.array_equal(predict(load(path)), predict(ensemble))
    for name in exported.names():
        overwrite(place, name, exported.read(name))
    assert np.allclose(
        predict(medimg.OnnxClassifier(place.target("m.onnx"))), predict(model), atol=1e-5, equal_nan=True
    )


def test_splits_are_read_from_where_they_were_written(place: Place, data: medimg.ImageDataset) -> None:
    train, test = medimg.split(data, fractions=(0.5, 0.5))
    path = medimg.save_split(place.target("s.json"), train=train, test=test)
    loaded = medimg.load_split(path, data)
    assert [len(part) for part in loaded.values()] == [len(train), len(test)]


def overwrite(place: Place, name: str, content: bytes) -> Target:
    target = place.target(name)
    with atomic_output(target) as path:
        path.write_bytes(content)
    return target


def test_damaged_files_are_errors_that_name_them(
    place: Place, model: TransferClassifier, data: medimg.ImageDataset, exported: Place
) -> None:
    model.save(place.target("m.safetensors"))
    overwrite(place, "m.json", exported.read("m.json"))
    content = bytearray(place.read("m.safetensors"))
    content[-3] ^= 1
    uses: list[tuple[str, bytes, type[MedimgError], Callable[[Any], Any]]] = [
        ("m.safetensors", bytes(content), CheckpointError, medimg.load),
        ("m.safetensors", bytes(content[:100]), CheckpointError, TransferClassifier.load),
        ("m.safetensors", b"no model", CheckpointError, medimg.Ensemble.load),
        ("m.onnx", exported.read("m.onnx") + b"\x72\0", CheckpointError, medimg.OnnxClassifier),
        ("m.onnx", b"no model", CheckpointError, medimg.OnnxClassifier),
        ("s.json", b"{}", DatasetError, lambda path: medimg.load_split(path, data)),
    ]
    for name, damaged, error, use in uses:
        with pytest.raises(error) as caught:
            use(overwrite(place, name, damaged))
        assert str(place.target(name)) in str(caught.value)
        assert ".medimg-" not in str(caught.value)


def test_a_hash_that_is_stated_is_compared(place: Place, model: TransferClassifier) -> None:
    path = model.save(place.target("m.safetensors"))
    with pytest.raises(CheckpointError, match="not the expected one"):
        medimg.load(path, sha256="0" * 64)


def test_files_that_are_not_there_are_not_found(place: Place, data: medimg.ImageDataset) -> None:
    for error, use in (
        (CheckpointError, medimg.load),
        (CheckpointError, TransferClassifier.load),
        (CheckpointError, medimg.OnnxClassifier),
        (DatasetError, lambda path: medimg.load_split(path, data)),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            use(place.target("absent"))
        assert isinstance(caught.value, error)


def test_files_larger_than_expected_are_refused(
    place: Place, data: medimg.ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = medimg.split(data, fractions=(0.5, 0.5))
    path = medimg.save_split(place.target("s.json"), train=train, test=test)
    monkeypatch.setattr("medimg.data.splits.split_file._MOST_BYTES", 100)
    with pytest.raises(DatasetError):
        medimg.load_split(path, data)


def test_a_path_that_was_a_url_is_refused_when_read(data: medimg.ImageDataset) -> None:
    path = Path("s3://bucket/m.safetensors")
    for use in (medimg.load, medimg.OnnxClassifier, lambda path: medimg.load_split(path, data)):
        with pytest.raises(MedimgError, match="was made a path"):
            use(path)


def test_results_are_written_once(
    place: Place, model: TransferClassifier, ct: Path, data: medimg.ImageDataset
) -> None:
    pytest.importorskip("highdicom")
    root: Any = place.root
    written = medimg.export.write_results(model, ct, root, kinds=("sr", "pm"))
    assert [str(path).startswith(str(root)) for path in written] == [True, True]
    assert sorted(str(path).rpartition("/")[2] for path in written) == place.names()
    before = [place.read(name) for name in place.names()]
    assert medimg.export.write_results(model, ct, root, kinds=("sr", "pm")) == written
    assert [place.read(name) for name in place.names()] == before
    name = place.names()[0]
    overwrite(place, name, b"something else")
    with pytest.raises(ConversionError, match="is another file"):
        medimg.export.write_results(model, ct, root, kinds=("sr", "pm"))
    assert place.read(name) == b"something else"


def test_results_are_refused_where_nothing_can_be_written(
    model: TransferClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("https://host/results", "ftp://host/results", Path("s3://bucket/results")):
        with pytest.raises(ConversionError, match="folder"):
            medimg.export.write_results(model, "no images", folder)
    assert not list(tmp_path.iterdir())


def test_what_needs_a_folder_of_this_machine_refuses_urls(
    data: medimg.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    model = portable_model(classes=data.classes, preprocess=data.preprocess)
    monkeypatch.chdir(tmp_path)
    train, val = medimg.split(data, fractions=(0.5, 0.5))
    for url in ("s3://bucket/x", Path("s3://bucket/x"), "https://host/x"):
        uses: list[Callable[[Any], Any]] = [
            lambda output: medimg.fine_tune(model, train, val, output=output),
            lambda output: medimg.fine_tune(model, train, val, output=output, adapt="auto", target=val),
            lambda output: medimg.cross_validate(model, data, fine_tune={"epochs": 1}, output=output),
            lambda storage: medimg.tune(model, data, storage=storage),
            lambda index: medimg.scan(tmp_path, index=index),
            medimg.phantom.write_ct_dataset,
            medimg.phantom.write_xray_dataset,
        ]
        for use in uses:
            with pytest.raises(MedimgError, match="must be a path on this machine"):
                use(url)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def saved(model: TransferClassifier, place: Place) -> str:
    target = place.target("model/m.safetensors")
    model.save(target)
    return str(target)


def test_commands_write_where_they_are_told(
    saved: str, place: Place, ct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    target = {name: str(place.target(name)) for name in ("p.csv", "dicom", "heat", "v.nii.gz", "m.png")}
    commands = [
        ["predict", saved, str(ct), "--out", target["p.csv"], "--dicom-out", target["dicom"]],
        ["explain", saved, str(ct), "--out", target["heat"]],
        ["read", str(ct), target["v.nii.gz"]],
        ["preview", str(ct), target["m.png"]],
    ]
    for command in commands:
        assert main(command) == 0, command
    out = capsys.readouterr().out.split()
    for name in ("p.csv", "v.nii.gz", "m.png"):
        assert target[name] in out
    names = place.names()
    assert {"p.csv", "heat/overlay.png", "heat/heat.nii.gz", "m.png", "v.nii.gz"} <= set(names)
    assert sum(name.startswith("dicom/") for name in names) == 4
    assert len(pd.read_csv(io.BytesIO(place.read("p.csv")))) == 1
    assert place.read("m.png").startswith(b"\x89PNG")
    before = {name: place.read(name) for name in names}
    for command in commands:
        assert main(command) == 1, command
        assert "--force" in capsys.readouterr().err
    assert {name: place.read(name) for name in place.names()} == before
    for command in commands:
        assert main([*command, "--force"]) == 0, command
    assert place.names() == names


def test_evaluate_writes_its_report(
    saved: str, place: Place, data: medimg.ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.DataFrame(
        {
            "path": [s.path for s in data.series],
            "label": ["a", "b"] * (len(data) // 2) + ["a"] * (len(data) % 2),
        }
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    html, out = str(place.target("r.html")), str(place.target("p.csv"))
    command = ["evaluate", saved, str(tmp_path / "t.csv"), "--unit", "image", "--n-resamples", "100"]
    assert main([*command, "--html", html, "--out", html]) == 1
    assert "name one file" in capsys.readouterr().err
    assert main([*command, "--html", html, "--out", out]) == 0
    assert {"r.html", "p.csv"} <= set(place.names())


def test_commands_refuse_what_is_read_only(
    saved: str, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["predict", saved, str(ct), "--out", f"https://me:{SECRET}@host/p.csv?{SECRET}"],
        ["predict", saved, str(ct), "--dicom-out", "https://host/x"],
        ["explain", saved, str(ct), "--out", "https://host/x"],
        ["read", str(ct), "https://host/x.nii"],
        ["preview", str(ct), "https://host/x.png"],
        ["evaluate", saved, "t.csv", "--html", "https://host/r.html"],
        ["train", "t.csv", "--output", "s3://bucket/run"],
        ["scan", str(ct), "--index", "s3://bucket/index"],
    ):
        assert main(command) == 1, command
        error = capsys.readouterr().err
        assert "only read" in error or "on this machine" in error
        assert SECRET not in error
        assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exported_model_that_was_changed_is_refused(place: Place, exported: Place) -> None:
    path = overwrite(place, "m.onnx", exported.read("m.onnx"))
    facts = json.loads(exported.read("m.json"))
    overwrite(place, "m.json", json.dumps({**facts, "file_sha256": "0" * 64}).encode())
    with pytest.raises(CheckpointError, match="is not the file that was exported with") as caught:
        medimg.OnnxClassifier(path)
    assert str(path) in str(caught.value)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and a body of unknown length at ``/endless``."""

    def do_GET(self) -> None:
        if self.path.startswith("/endless"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(bytes(2**16))
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web_server(folder: Target) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_models_are_read_from_web_servers(
    exported: Place, model: TransferClassifier, tmp_path: Path, data: medimg.ImageDataset
) -> None:
    for name in exported.names():
        (tmp_path / name).write_bytes(exported.read(name))
    model.save(tmp_path / "m.safetensors")
    with web_server(tmp_path) as url:
        assert medimg.load(f"{url}/m.safetensors?signature={SECRET}").classes == model.classes
        for query in ("", f"?signature={SECRET}"):
            assert medimg.OnnxClassifier(f"{url}/m.onnx{query}").classes == model.classes
        facts = json.loads(exported.read("m.json"))
        (tmp_path / "m.json").write_text(json.dumps({**facts, "file_sha256": "0" * 64}))
        with pytest.raises(CheckpointError, match=rf"^{url}/m.onnx is not the file"):
            medimg.OnnxClassifier(f"{url}/m.onnx")
        (tmp_path / "m.json").unlink()
        medimg.OnnxClassifier(f"{url}/m.onnx")
        with pytest.raises(FileNotFoundError, match="there is no file"):
            medimg.load(f"{url}/absent?signature={SECRET}")


def test_a_body_without_end_is_not_read_to_its_end(
    tmp_path: Path, data: medimg.ImageDataset, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr("medimg.data.splits.split_file._MOST_BYTES", 2**20)
    with web_server(tmp_path) as url, pytest.raises(DatasetError, match=r"endless is larger than expected"):
        medimg.load_split(f"{url}/endless", data)
    assert not list(temporary.iterdir())


def test_errors_of_reading_have_no_secrets(data: medimg.ImageDataset) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://me:{SECRET}@127.0.0.1:{closed.getsockname()[1]}/m.safetensors?token={SECRET}"
        for use in (medimg.load, medimg.OnnxClassifier, lambda url: medimg.load_split(url, data)):
            with pytest.raises((MedimgError, ReadError)) as caught:
                use(url)
            assert SECRET not in str(caught.value)
            assert caught.value.__suppress_context__
