"""The watch of a DICOMweb server: what is predicted on, what is stored, and what happens after a crash."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest

import medimg
from medimg.cli.main import main
from medimg.errors import MedimgError, MissingDependencyError, StoreError, TrainingError, also
from medimg.serve import WatchResult, watch
from tests.io.dicomweb.fake_pacs import STUDY, FakePacs, Reply, Seen, make_slice
from tests.orthanc import PASSWORD, USER, Orthanc, find_orthanc
from tests.serve.uploads import make_model

pytest.importorskip("requests")
pytest.importorskip("highdicom")

ROOT = Path(medimg.__file__).parents[1]


class Archive(FakePacs):
    """A server that also keeps what is stored, and searches by every attribute."""

    def _store(self, seen: Seen) -> Reply:
        before = len(self.stored)
        reply = super()._store(seen)
        for data in self.stored[before:]:
            dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data))
            if all(dataset.SOPInstanceUID != one.SOPInstanceUID for one in self.datasets):
                self.datasets.append(dataset)
        return reply

    def _search(self, found: list[pydicom.Dataset], query: dict[str, str]) -> Reply:
        keys = [name for name in query if name[0].isupper() and name != "NumberOfSeriesRelatedInstances"]
        matching = [one for one in found if all(str(one.get(name, "")) == query[name] for name in keys)]
        return super()._search(matching, {k: v for k, v in query.items() if k not in keys})

    def kinds(self) -> list[str]:
        return sorted(str(one.Modality) for one in self.datasets)


def make_stack(series: str = "1.2.3.4", count: int = 3, **attributes: Any) -> list[pydicom.Dataset]:
    stack = [make_slice(n, series=series, size=24) for n in range(count)]
    for dataset in stack:
        dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyTime = dataset.StudyID = ""
        dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.SeriesNumber = "A1", "", 3
        for name, value in attributes.items():
            setattr(dataset, name, value)
    return stack


@pytest.fixture(scope="module")
def model() -> medimg.TransferClassifier:
    return make_model()


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(make_stack()) as found:
        yield found


def look(model: medimg.TransferClassifier, archive: Archive, folder: Path, **settings: Any) -> WatchResult:
    server = medimg.dicomweb(archive.url, retries=0, timeout=10)
    defaults: dict[str, Any] = {"modality": "CT", "results": ["sr"], "settle": 0, "once": True}
    return watch(model, server, folder / "state", **defaults | settings)


def test_results_are_stored_once(model: medimg.TransferClassifier, archive: Archive, tmp_path: Path) -> None:
    assert look(model, archive, tmp_path) == WatchResult(stored=1)
    assert archive.kinds() == ["CT", "CT", "CT", "SR"]
    (report,) = (one for one in archive.datasets if one.Modality == "SR")
    assert (report.StudyInstanceUID, report.AccessionNumber) == (STUDY, "A1")
    stored = len(archive.stored)
    assert look(model, archive, tmp_path) == WatchResult()
    # another state: what the server has is not stored again
    assert look(model, archive, tmp_path / "other") == WatchResult(present=1)
    assert len(archive.stored) == stored


def test_more_instances_make_new_results(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path
) -> None:
    look(model, archive, tmp_path)
    archive.datasets += make_stack(count=4)[3:]
    assert look(model, archive, tmp_path) == WatchResult(stored=1)
    assert archive.kinds().count("SR") == 2


def test_a_series_has_to_settle(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=1)
    now = 1059.0
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=1)
    archive.datasets += make_stack(count=4)[3:]
    now = 1070.0
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=1)
    now = 1131.0
    assert look(model, archive, tmp_path, settle=60) == WatchResult(stored=1)


def test_a_series_does_not_settle_while_others_are_predicted_on(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=1)
    now = 1055.0
    archive.datasets += make_stack(series="1.2.3.9", count=2)
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=2)
    now = 1061.0
    archive.misbehave = lambda seen, _: take_long() if seen.method == "POST" else None

    def take_long() -> None:
        nonlocal now
        now += 600

    # how many instances the other has was asked when it had arrived for 6 s
    assert look(model, archive, tmp_path, settle=60) == WatchResult(stored=1, waiting=1)
    assert look(model, archive, tmp_path, settle=60) == WatchResult(stored=1)


def test_a_clock_that_is_set_back(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10_000.0
    monkeypatch.setattr("time.time", lambda: now)
    look(model, archive, tmp_path, settle=60)
    now = 5_000.0
    assert look(model, archive, tmp_path, settle=60) == WatchResult(waiting=1), "it may still arrive"
    now = 5_061.0
    assert look(model, archive, tmp_path, settle=60) == WatchResult(stored=1)


@pytest.mark.parametrize("error", [RuntimeError("SENTINEL"), MemoryError(), ValueError("1.2.3.4")])
def test_a_series_that_a_library_fails_on_stops_no_other(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    caplog: Any,
    error: Exception,
) -> None:
    caplog.set_level(logging.INFO, "medimg")
    archive.datasets += make_stack(series="1.2.3.9")
    results = medimg.export.make_results

    def fail(model: Any, sources: Any, **settings: Any) -> Any:
        if sources[0].uid.startswith("1.2.3.4"):
            raise error
        return results(model, sources, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medimg.export.make_results", fail)
        assert look(model, archive, tmp_path, interval=1e-9) == WatchResult(stored=1, failed=1)
    assert f"{type(error).__name__}, attempt 1" in caplog.text
    assert "SENTINEL" not in caplog.text
    assert "1.2.3" not in caplog.text
    assert look(model, archive, tmp_path).stored == 1


def test_a_series_that_ends_the_process_comes_last(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.datasets += make_stack(series="1.2.3.9")
    results = medimg.export.make_results

    def end(model: Any, sources: Any, **settings: Any) -> Any:
        if sources[0].uid.startswith("1.2.3.4"):
            raise KeyboardInterrupt
        return results(model, sources, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("medimg.export.make_results", end)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                look(model, archive, tmp_path)
    assert archive.kinds().count("SR") == 1
    # nor is it given up: the process may have been ended by somebody
    assert look(model, archive, tmp_path, attempts=1) == WatchResult(stored=1)


def test_a_missing_library_is_no_attempt(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "highdicom", None)
        with pytest.raises(MissingDependencyError, match="dicom-out"):
            look(model, archive, tmp_path, attempts=1)
    assert look(model, archive, tmp_path, attempts=1) == WatchResult(stored=1)


@pytest.mark.parametrize("seed", range(8))
def test_a_state_that_is_damaged_or_cut_off(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, seed: int
) -> None:
    from medimg.serve._watch_state import WatchState

    with WatchState(tmp_path / "state", "x") as state:
        for number in range(300):
            state.is_due(state.key(str(number)), number, 0.0, settle=1, attempts=1)
            state.add_result(str(number))
    path = tmp_path / "state" / "watch.sqlite"
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    if seed % 2:
        del data[rng.randrange(100, len(data)) :]
    else:
        # not the first page, which has the schema
        start = rng.randrange(4096, len(data) - 4096)
        data[start : start + 8192] = rng.randbytes(len(data[start : start + 8192]))
    path.write_bytes(data)
    # what is damaged may not be needed now; no other error is raised
    with suppress(MedimgError):
        look(model, archive, tmp_path)
    assert archive.kinds().count("SR") <= 1
    path.unlink()
    look(model, archive, tmp_path)
    assert archive.kinds().count("SR") == 1


def test_a_state_that_cannot_be_written_ends_the_watch(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.serve._watch_state import WatchState

    prepare = WatchState._prepare

    def fill(state: WatchState) -> None:
        prepare(state)
        # as on a full disk
        state._connection.execute("PRAGMA query_only = ON")

    monkeypatch.setattr(WatchState, "_prepare", fill)
    with pytest.raises(MedimgError, match="can't be written"):
        look(model, archive, tmp_path, once=False)
    assert archive.kinds().count("SR") == 0


def test_own_results_are_no_images(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path
) -> None:
    settings = {"results": ["sr", "sc"], "modality": ["CT", "OT"]}
    look(model, archive, tmp_path, **settings)
    kinds = archive.kinds()
    assert {"CT", "SR"} < set(kinds)
    capture = next(one for one in archive.datasets if one.Modality not in ("CT", "SR"))
    modalities = ["CT", "SR", str(capture.Modality)]
    for folder in (tmp_path, tmp_path / "other"):
        look(model, archive, folder, results=["sr", "sc"], modality=modalities)
        assert archive.kinds() == kinds


def test_a_series_that_cannot_be_read_is_given_up(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    caplog.set_level(logging.INFO, "medimg")
    archive.datasets[:] = [make_stack(count=6)[n] for n in (0, 1, 2, 5)]
    archive.datasets += make_stack(series="1.2.3.9")
    assert look(model, archive, tmp_path, attempts=2, interval=10) == WatchResult(stored=1, failed=1)
    assert look(model, archive, tmp_path, attempts=2, interval=10) == WatchResult(waiting=1)
    now = 1011.0
    assert look(model, archive, tmp_path, attempts=2, interval=10) == WatchResult(failed=1)
    now = 2000.0
    assert look(model, archive, tmp_path, attempts=2, interval=10) == WatchResult()
    assert "MissingSlicesError, attempt 2; it is given up" in caplog.text
    assert "1.2.3" not in caplog.text
    assert "Secret" not in caplog.text


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_does_not_store_is_asked_again(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    archive.misbehave = lambda seen, _: Reply(status) if seen.method == "POST" else None
    for _ in range(3):
        assert look(model, archive, tmp_path, attempts=1) == WatchResult(failed=1)
        assert look(model, archive, tmp_path, attempts=1) == WatchResult(waiting=1)
        now += 100
    archive.misbehave = None
    assert look(model, archive, tmp_path, attempts=1) == WatchResult(stored=1)


def fail_to_store(code: int) -> bytes:
    failure = pydicom.Dataset()
    failure.ReferencedSOPInstanceUID, failure.FailureReason = "1.2.3", code
    answer = pydicom.Dataset()
    answer.FailedSOPSequence = [failure]
    return json.dumps([answer.to_json_dict()]).encode()


@pytest.mark.parametrize(("status", "code"), [(400, 0), (409, 0), (409, 0xA900), (202, 0x0122)])
def test_refused_results_are_not_sent_again(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    *,
    status: int,
    code: int,
) -> None:
    def refuse(seen: Seen, _: Any) -> Reply | None:
        if seen.method != "POST":
            return None
        found = re.search(rb"\x08\x00\x18\x00UI(.)\x00", seen.body, re.DOTALL)
        assert found is not None
        uid = seen.body[found.end() : found.end() + found[1][0]].strip(b"\0").decode()
        return Reply(status, fail_to_store(code).replace(b"1.2.3", uid.encode()) if code else b"")

    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    archive.misbehave = refuse
    assert look(model, archive, tmp_path) == WatchResult(failed=1)
    assert "the server refuses its results" in caplog.text
    assert f"0x{code:04X}" in caplog.text or not code
    assert "1.2" not in caplog.text
    now = 1e6
    archive.misbehave = None
    assert look(model, archive, tmp_path) == WatchResult()
    archive.datasets += make_stack(count=4)[3:]
    assert look(model, archive, tmp_path) == WatchResult(stored=1)


@pytest.mark.parametrize("code", [0x0213, 0xA700, 0xA710])
def test_a_full_server_is_asked_again(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    from medimg.io.dicomweb.store_instances import FailedInstance, StoreResult

    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    failed = FailedInstance("<dataset 0>", "1.2", "full", code, "server")
    error = also(StoreError, ConnectionError)("full", StoreResult((), (failed,)))
    with monkeypatch.context() as patched:
        patched.setattr("medimg.DicomWebServer.store", lambda *_, **__: raise_it(error))
        assert look(model, archive, tmp_path, attempts=1) == WatchResult(failed=1)
    now = 2000.0
    assert look(model, archive, tmp_path, attempts=1) == WatchResult(stored=1)


def raise_it(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_credentials_that_are_not_accepted_end_the_search(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    status: int,
    method: str,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    archive.datasets += make_stack(series="1.2.3.9")
    archive.misbehave = lambda seen, _: Reply(status) if seen.method == method else None
    with pytest.raises(PermissionError) as raised:
        look(model, archive, tmp_path, attempts=1)
    assert isinstance(raised.value, MedimgError)
    assert sum(one.method == method for one in archive.seen) == 1
    archive.misbehave = None
    now = 2000.0
    assert look(model, archive, tmp_path, attempts=1) == WatchResult(stored=2)


def test_a_watch_goes_on_after_refused_credentials(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    archive.misbehave = lambda seen, _: Reply(401 if len(pauses) < 3 else 500)
    with pytest.raises(KeyboardInterrupt):
        look(model, archive, tmp_path, once=False, interval=10)
    assert pauses == [20, 40, 80, 160]
    assert caplog.text.count("does not accept the credentials (ServerAnswerError, 401)") == 3
    assert caplog.text.count("can't be searched (ServerAnswerError, 500)") == 1


def test_a_server_that_is_gone(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    server = medimg.dicomweb("http://127.0.0.1:9/x", retries=0)
    with pytest.raises(MedimgError):
        watch(model, server, tmp_path / "state", modality="CT", once=True)


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_around_storing(
    model: medimg.TransferClassifier,
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        name = (
            "medimg.DicomWebServer.store"
            if step == "before"
            else "medimg.serve._watch_state.WatchState.mark_done"
        )
        patched.setattr(name, crash)
        with pytest.raises(KeyboardInterrupt):
            look(model, archive, tmp_path)
    assert len(archive.stored) == (step == "after")
    expected = WatchResult(present=1) if step == "after" else WatchResult(stored=1)
    assert look(model, archive, tmp_path) == expected
    assert len(archive.stored) == 1


def test_killed_while_storing(model: medimg.TransferClassifier, archive: Archive, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.safetensors")
    command = [
        sys.executable,
        "-m",
        "medimg",
        "watch",
        str(path),
        archive.url,
        "--state",
        str(tmp_path / "state"),
    ]
    command += ["--modality", "CT", "--results", "sr", "--settle", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)

    def kill(seen: Seen, _: Any) -> Reply | None:
        if seen.method != "POST":
            return None
        archive._store(seen)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return Reply(500)

    archive.misbehave = kill
    assert process.wait(120) == -signal.SIGKILL
    archive.misbehave = None
    assert archive.kinds().count("SR") == 1
    assert look(model, archive, tmp_path) == WatchResult(present=1)
    assert len(archive.stored) == 1


def test_the_state_holds_no_identifiers(
    model: medimg.TransferClassifier, archive: Archive, tmp_path: Path
) -> None:
    look(model, archive, tmp_path)
    folder = tmp_path / "state"
    for file in folder.iterdir():
        assert b"1.2.3" not in file.read_bytes()
        assert b"SECRET" not in file.read_bytes()
    assert folder.stat().st_mode & 0o077 == 0


def test_one_watch_at_a_time(model: medimg.TransferClassifier, archive: Archive, tmp_path: Path) -> None:
    from medimg.serve._watch_state import WatchState

    with WatchState(tmp_path / "state", "x"), pytest.raises(MedimgError, match="another watch uses it"):
        look(model, archive, tmp_path)
    assert look(model, archive, tmp_path).stored == 1
    (tmp_path / "damaged").mkdir(mode=0o700)
    (tmp_path / "damaged" / "state").mkdir(mode=0o700)
    (tmp_path / "damaged" / "state" / "watch.sqlite").write_bytes(b"no database at all" * 99)
    with pytest.raises(MedimgError, match="damaged"):
        look(model, archive, tmp_path / "damaged")
    (tmp_path / "open" / "state").mkdir(parents=True)
    (tmp_path / "open" / "state").chmod(0o755)
    with pytest.raises(MedimgError, match="chmod 700"):
        look(model, archive, tmp_path / "open")


def test_settings(model: medimg.TransferClassifier, archive: Archive, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(TrainingError, match="pass modality="):
        look(model, archive, tmp_path, modality=())
    for results in ([], ["sr", "xx"]):
        with pytest.raises(TrainingError, match="results must be"):
            look(model, archive, tmp_path, results=results)
    with pytest.raises(TrainingError, match="interval must be"):
        look(model, archive, tmp_path, interval=0)
    with pytest.raises(TrainingError, match="conditions must be"):
        look(model, archive, tmp_path, conditions=["a"])
    path = model.save(tmp_path / "model.safetensors")
    command = [
        "watch",
        str(path),
        archive.url,
        "--state",
        str(tmp_path / "cli"),
        "--modality",
        "CT",
        "--once",
    ]
    command += ["--settle", "0", "--results", "sr", "--condition", f"StudyInstanceUID={STUDY}", "--json"]
    assert main(command) == 0
    assert '"stored": 1' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--condition", "StudyDate"])


def test_with_orthanc(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    found = find_orthanc()
    if isinstance(found, str):
        pytest.skip(found)
    ct = medimg.phantom.chest_ct(1, label="nodule", slices=3, size=48)
    medimg.phantom.write_ct_series(ct, tmp_path / "ct", medimg.phantom.Identity.derive("watch", 1))
    files = [path for path in sorted((tmp_path / "ct").rglob("*")) if path.is_file()]
    orthanc = Orthanc(tmp_path, *found)
    orthanc.start()
    try:
        for file in files:
            orthanc.upload(file.read_bytes())
        server = medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=30)
        settings: dict[str, Any] = {"modality": "CT", "settle": 0, "once": True}
        assert watch(model, server, tmp_path / "state", **settings) == WatchResult(stored=1)
        stored = len(orthanc.call("instances"))
        assert stored > len(files)
        assert watch(model, server, tmp_path / "state", **settings) == WatchResult()
        assert watch(model, server, tmp_path / "other", **settings) == WatchResult(present=1)
        assert len(orthanc.call("instances")) == stored
        assert {one.modality for one in server.search()} > {"CT", "SR"}
    finally:
        orthanc.kill()
