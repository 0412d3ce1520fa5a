"""Folders, archives and files elsewhere are read as on disk, bit for bit, and only what is needed of them."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg.core.volume import Volume
from medimg.errors import CheckpointError, MedimgError, ReadError
from medimg.io.files import listed_file
from medimg.io.files.local_copy import local_copy
from medimg.io.files.object_storage import explain_failure, explain_write_failure, is_remote_url
from medimg.io.series import Series
from tests.dicom_files import make_instance, stack_pixels, write, write_stack
from tests.storage import Server, Storage, WebFolder

SHAPE = (300, 300)


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    listed_file._HEADS.reset()
    yield
    listed_file._HEADS.reset()


def read_quietly(series: Series, **options: Any) -> Volume | MedimgError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return series.read(**options)
        except MedimgError as error:
            return error


def assert_same(local: Series, remote: Series, root: str, url: str) -> None:
    """Check all that a series tells, its values, and each of its errors."""

    def moved(text: str) -> str:
        return text.replace(root, url)

    assert moved(local.uid) == remote.uid
    assert tuple(map(moved, local.files)) == remote.files
    assert local.shape == remote.shape
    assert np.array_equal(local.affine, remote.affine)
    for field in ("modality", "description", "space", "format", "patient_id", "study_uid", "frame_times"):
        assert getattr(local, field) == getattr(remote, field)
    one, other = read_quietly(local), read_quietly(remote)
    if isinstance(one, MedimgError) or isinstance(other, MedimgError):
        assert moved(str(one)) == str(other)
        assert type(one) is type(other)
        return
    assert one.array.dtype == other.array.dtype
    assert np.array_equal(one.array, other.array, equal_nan=one.array.dtype.kind == "f")
    assert np.array_equal(one.affine, other.affine)
    assert (one.units, one.photometric, one.voi, one.channels) == (
        other.units, other.photometric, other.voi, other.channels
    )  # fmt: skip
    assert moved(repr(one.report)) == repr(other.report)


def assert_same_scan(folder: Path, url: str) -> int:
    local, remote = medimg.scan(folder), medimg.scan(url)
    assert len(local) == len(remote)
    moved = [(s.path.replace(str(folder), url), s.reason.replace(str(folder), url)) for s in local.skipped]
    assert moved == [(s.path, s.reason) for s in remote.skipped]
    for one, other in zip(local, remote, strict=True):
        assert_same(one, other, str(folder), url)
    return len(local)


@pytest.fixture(params=["s3", "memory"])
def put_folder(request: pytest.FixtureRequest) -> Callable[[Path, str], str]:
    """A function that copies a folder, and returns its URL."""
    if request.param == "s3":
        storage: Storage = request.getfixturevalue("storage")
        return storage.put_folder

    def put(folder: Path, name: str) -> str:
        import fsspec

        files = fsspec.filesystem("memory")
        if files.exists(f"/place/{name}"):
            files.rm(f"/place/{name}", recursive=True)
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/place/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://place/{name}"

    return put


def fill(folder: Path) -> None:
    """Write an image in each format, and things that are no images."""
    rng = np.random.default_rng(1)
    affine = np.diag([2.0, 0.5, 0.5, 1.0])[[2, 1, 0, 3]].astype(float)
    volume = Volume(array=rng.integers(-1000, 1000, (1, 5, 40, 30)).astype(np.int16), affine=affine)
    for name in ("a.nii", "a.nii.gz", "b/a.nrrd", "b/c/a.mha"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        volume.save(folder / name)
    write_stack(folder / "dicom", [float(z) for z in range(4)])
    raw = np.arange(4 * 5 * 6, dtype="<i2")
    (folder / "pair").mkdir()
    (folder / "pair" / "x.raw").write_bytes(raw.tobytes())
    (folder / "pair" / "x.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
        "ElementByteOrderMSB = False\nElementDataFile = x.raw\n"
    )
    import nibabel as nib
    from PIL import Image

    nib.save(nib.Nifti1Pair(raw.reshape(4, 5, 6), np.eye(4)), folder / "pair" / "y.hdr")
    for name in ("p.png", "p.tiff", "p.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(folder / name)
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        archive.write(folder / "a.nii", "a.nii")
    (folder / "text.txt").write_text("no image")
    (folder / "empty").touch()
    (folder / ".hidden").write_bytes((folder / "a.nii").read_bytes())
    (folder / ".git").mkdir()
    (folder / ".git" / "a.nii").write_bytes((folder / "a.nii").read_bytes())
    (folder / "b" / "z #?%20 ä.nii").write_bytes((folder / "a.nii").read_bytes())
    (folder / "cut.nii").write_bytes((folder / "a.nii").read_bytes()[:-10])


def test_a_folder_of_every_format(put_folder: Callable[[Path, str], str], tmp_path: Path) -> None:
    fill(tmp_path / "all")
    url = put_folder(tmp_path / "all", "all")
    assert assert_same_scan(tmp_path / "all", url) == 11
    assert len(medimg.scan(url + "/")) == 11


def test_files_of_a_web_server(web: tuple[Server, WebFolder], tmp_path: Path) -> None:
    from urllib.parse import quote

    server, folder = web
    fill(tmp_path)
    names = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    for name in names:
        folder.put(name, (tmp_path / name).read_bytes())
    for ranges in (True, False):
        folder.ranges = ranges
        listed_file._HEADS.reset()
        for name in names:
            if name in ("in.zip", "text.txt", "empty", "cut.nii", "pair/x.raw") or name.startswith("dicom"):
                continue
            local = medimg.read(tmp_path / name)
            assert np.array_equal(local.array, medimg.read(f"{server.url}/{quote(name)}").array)
        urls = [f"{server.url}/{name}" for name in names if name.startswith("dicom/")]
        assert np.array_equal(medimg.read(urls).array, medimg.read(tmp_path / "dicom").array)
        assert medimg.read(f"{server.url}/in.zip").shape == (1, 5, 40, 30)


@pytest.mark.parametrize(
    "name", ["lidc_3pat_excerpt", "nema_enhmr_dev", "highdicom", "dcmstack_multiecho", "fodicom_dev"]
)
def test_real_scans(real_data: Path, storage: Storage, name: str) -> None:
    folder = real_data / "dicom_misc" / name
    assert assert_same_scan(folder, storage.put_folder(folder, name)) > 0


def test_an_archive(put_folder: Callable[[Path, str], str], tmp_path: Path) -> None:
    fill(tmp_path / "all")
    (tmp_path / "zip").mkdir()
    for kind, name in ((zipfile.ZIP_DEFLATED, "packed.zip"), (zipfile.ZIP_STORED, "plain.zip")):
        path = tmp_path / "zip" / name
        with zipfile.ZipFile(path, "w", kind) as archive:
            for file in sorted((tmp_path / "all").rglob("*")):
                archive.write(file, file.relative_to(tmp_path / "all"))
        url = f"{put_folder(tmp_path / 'zip', 'zip')}/{name}"
        assert_same_scan(path, url)


def test_a_list_of_urls_and_others(storage: Storage, tmp_path: Path) -> None:
    paths = write_stack(tmp_path, [float(z) for z in range(4)])
    url = storage.put_folder(tmp_path, "stack")
    mixed = [paths[0], *(f"{url}/{path.name}" for path in paths[1:3]), paths[3].read_bytes()]
    assert np.array_equal(medimg.read(mixed).array, medimg.read(tmp_path).array)
    with pytest.raises(ReadError, match="is a folder; expected a file"):
        medimg.read([url, paths[0]])


def test_hidden_files_and_folders_in_the_url_itself_are_read(storage: Storage, tmp_path: Path) -> None:
    write_stack(tmp_path, [0.0])
    assert len(medimg.scan(storage.put_folder(tmp_path, ".cache/stack"))) == 1


def test_names_of_objects_that_no_folder_has(storage: Storage, tmp_path: Path) -> None:
    (path,) = write_stack(tmp_path, [0.0])
    names = ["x/a//b.dcm", "x/../c.dcm", "x/d#1?e=f.dcm", "x/g::h.dcm"]
    for name in names:
        storage.put(name, path.read_bytes())
    found = medimg.scan(f"{storage.url}/x")
    assert len(found) + len(found.skipped) >= 1
    assert np.array_equal(
        medimg.read(f"{storage.url}/x/d#1?e=f.dcm").array, medimg.read(f"{storage.url}/x/g::h.dcm").array
    )


def test_names_with_several_slashes_are_kept_apart(storage: Storage, tmp_path: Path) -> None:
    for name, path in zip(("x/a.dcm", "x//a.dcm"), write_stack(tmp_path, [0.0, 1.0]), strict=True):
        storage.put(name, path.read_bytes())
    index = medimg.scan(f"{storage.url}/x")
    assert not index.skipped
    assert index[0].read().shape == (1, 2, 12, 16)


def test_the_case_of_a_protocol_does_not_matter(storage: Storage, tmp_path: Path) -> None:
    (path,) = write_stack(tmp_path, [0.0])
    storage.put("x/a.dcm", path.read_bytes())
    for name in ("x", "x/a.dcm"):
        assert np.array_equal(medimg.read(f"S3://scans/{name}").array, medimg.read(path).array)


def test_a_login_in_a_url_reaches_no_log(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ReadError, match="s3://scans/x is given with a login"):
        medimg.read("s3://user:geheim@scans/x")
    assert "geheim" not in caplog.text


def test_copies_of_models_log_no_secrets(
    web: tuple[Server, WebFolder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, folder = web
    folder.put("model", b"data")
    url = f"{server.url.replace('//', '//user:geheim@')}/model?X-Amz-Signature=geheim"
    caplog.set_level(logging.DEBUG)
    with local_copy(url, error=CheckpointError) as copy:
        assert copy.read_bytes() == b"data"
    assert server.traffic.sent
    try:
        raise ValueError(f"no size of {url!r}")
    except ValueError:
        logging.getLogger("fsspec.http").debug("", exc_info=True)
    assert "no size of" in caplog.text
    assert "geheim" not in caplog.text


def count_objects(storage: Storage, part: str) -> tuple[int, int]:
    gets = storage.traffic.gets(part)
    return len({request.path for request in gets}), sum(request.sent for request in gets)


def test_three_slices_of_many_fetch_three_files(storage: Storage, tmp_path: Path) -> None:
    for z in range(60):
        write(
            make_instance(
                stack_pixels(z, SHAPE), ImagePositionPatient=[0, 0, float(z)], InstanceNumber=z + 1
            ),
            tmp_path / f"{z:03}.dcm",
        )
    url = storage.put_folder(tmp_path, "stack")
    (series,) = medimg.scan(url)
    # one listing, one request of each file
    assert len(storage.traffic.gets("stack/")) == 60
    assert len(storage.traffic.requests) <= 63
    storage.traffic.clear()
    volume = series.read([3, 20, 41])
    assert np.array_equal(volume.array, medimg.scan(tmp_path)[0].read([3, 20, 41]).array)
    files, sent = count_objects(storage, "stack/")
    assert files == 3
    assert sent <= 3 * (tmp_path / "000.dcm").stat().st_size


def multi_frame(folder: Path, count: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 4000, (count, *SHAPE), np.uint16)
    return write(
        make_instance(
            pixels,
            NumberOfFrames=count,
            Rows=SHAPE[0],
            Columns=SHAPE[1],
            SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2",
            PlanarConfiguration=None,
        ),
        folder / "frames.dcm",
    )


def test_frames_of_an_uncompressed_file_are_ranges(storage: Storage, tmp_path: Path) -> None:
    path = multi_frame(tmp_path, 40)
    (local,) = medimg.scan(path)
    (series,) = medimg.scan(storage.put_folder(tmp_path, "multi") + "/frames.dcm")
    frame = 2 * SHAPE[0] * SHAPE[1]
    storage.traffic.clear()
    expected = read_quietly(local, slices=[3, 20, 39])
    found = read_quietly(series, slices=[3, 20, 39])
    assert isinstance(found, Volume)
    assert isinstance(expected, Volume)
    assert np.array_equal(found.array, expected.array)
    assert 3 * frame <= storage.traffic.sent <= 3 * frame + 2**17
    storage.traffic.clear()
    whole = read_quietly(series)
    assert isinstance(whole, Volume)
    assert np.array_equal(whole.array[:, [3, 20, 39]], expected.array)
    assert len(storage.traffic.gets()) <= 2


def test_slices_of_a_nifti_file_are_ranges(storage: Storage, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4000, (1, 60, *SHAPE)).astype(np.int16)
    Volume(array=array, affine=np.eye(4)).save(tmp_path / "a.nii")
    (series,) = medimg.scan(storage.put_folder(tmp_path, "nifti"))
    storage.traffic.clear()
    assert np.array_equal(series.read([3, 20, 21]).array, medimg.scan(tmp_path)[0].read([3, 20, 21]).array)
    slice_bytes = 2 * SHAPE[0] * SHAPE[1]
    assert 3 * slice_bytes <= storage.traffic.sent <= 3 * slice_bytes + 2**16
    storage.traffic.clear()
    assert np.array_equal(series.read().array, medimg.read(tmp_path / "a.nii").array)
    assert storage.traffic.sent <= (tmp_path / "a.nii").stat().st_size + 2**16


def test_members_of_an_archive_are_ranges(storage: Storage, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for z in range(30):
            pixels = noise.integers(0, 4000, SHAPE, np.uint16)
            file = write(make_instance(pixels, ImagePositionPatient=[0, 0, float(z)]), tmp_path / "x.dcm")
            archive.write(file, f"{z:03}.dcm")
    url = storage.put("all.zip", path.read_bytes())
    (series,) = medimg.scan(url)
    size = path.stat().st_size
    storage.traffic.clear()
    volume = series.read([4, 5])
    assert np.array_equal(volume.array, medimg.scan(path)[0].read([4, 5]).array)
    assert storage.traffic.sent < size / 5


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_dicomdir(kind: str, request: pytest.FixtureRequest, real_data: Path) -> None:
    (path,) = sorted(real_data.rglob("DICOMDIR"))[:1]
    local = medimg.scan(path)
    if kind == "s3":
        storage: Storage = request.getfixturevalue("storage")
        url = storage.put_folder(path.parent, "cd")
    else:
        server, folder = request.getfixturevalue("web")
        url = server.url
        for file in path.parent.rglob("*"):
            if file.is_file():
                folder.put(file.relative_to(path.parent).as_posix(), file.read_bytes())
    remote = medimg.scan(f"{url}/DICOMDIR")
    assert [s.uid for s in local] == [s.uid for s in remote]
    assert len(local.skipped) == len(remote.skipped)
    for one, other in zip(local, remote, strict=True):
        assert_same(one, other, str(path.parent), url)


def test_a_signed_url(storage: Storage, tmp_path: Path) -> None:
    (path,) = write_stack(tmp_path, [0.0])
    storage.put("a.dcm", path.read_bytes())
    signed = storage.files.url("scans/a.dcm")
    assert "Signature" in signed
    (series,) = medimg.scan(signed)
    assert series.path == f"{storage.server.url}/scans/a.dcm"
    assert np.array_equal(series.read().array, medimg.read(path).array)


def test_changed_files_are_an_error(storage: Storage, tmp_path: Path) -> None:
    paths = write_stack(tmp_path, [float(z) for z in range(4)])
    url = storage.put_folder(tmp_path, "stack")
    (series,) = medimg.scan(url)
    storage.put(f"stack/{paths[2].name}", paths[1].read_bytes())
    listed_file._HEADS.reset()
    with pytest.raises(ReadError, match="changed since it was listed"):
        series.read()
    storage.files.rm_file(f"scans/stack/{paths[2].name}")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        series.read()


def test_what_cant_be_at_a_url(storage: Storage, tmp_path: Path) -> None:
    url = storage.put("x", b"data")
    for index in (f"{storage.url}/index", Path(f"{storage.url}/index")):
        with pytest.raises(ReadError, match="index must be a path on this machine"):
            medimg.scan(tmp_path, index=index)
    with pytest.raises(ReadError, match="scan a URL without it"):
        medimg.scan(url, index=tmp_path / "index")
    for source in (Path(url), [Path(url)]):
        with pytest.raises(ReadError, match="pass the URL as a str"):
            medimg.read(source)
    with pytest.raises(ReadError, match="can't be listed"):
        medimg.ImageDataset.from_folder("https://127.0.0.1:1/folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target", ["s3://scans/secret.raw", "http://127.0.0.1/x", "../secret.raw", "/etc/hostname"]
)
def test_headers_lead_nowhere_else(storage: Storage, target: str) -> None:
    storage.put("secret.raw", bytes(240))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
    header += f"ElementDataFile = {target}\n"
    url = storage.put("a/x.mhd", header.encode())
    with pytest.raises(ReadError, match=r"outside of its own folder|it is not there"):
        medimg.read(url)


def test_which_texts_are_urls() -> None:
    assert is_remote_url("S3://bucket/x")
    assert not any(
        map(is_remote_url, ("c://x", "file:///etc", "s3:/x", "zip://a::s3://b", b"s3://x", Path("s3://x")))
    )


def test_absent_credentials_are_named() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    for explain in (explain_failure, explain_write_failure):
        failure = explain(exceptions.NoCredentialsError(), "s3://bucket/secret.dcm")
        assert isinstance(failure, PermissionError)
        assert "no credentials were found" in str(failure)


@pytest.mark.parametrize("read", [medimg.read, medimg.scan])
def test_an_unknown_protocol_is_named(read: Callable[[str], object]) -> None:
    with pytest.raises(ReadError, match="s4:// is no protocol"):
        read("s4://bucket/x")
