"""Datasets, caches, checks and predictions of files in object storage are those of files on disk."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import medimg
from medimg.data.cache.keys import hash_files, stat_files
from medimg.errors import DatasetError, MedimgError, MedimgWarning
from medimg.io.files import listed_file
from tests.dicom_files import make_instance, write
from tests.storage import Disturbance, Request, Storage

RECIPE = medimg.Preprocess(size=32)


@pytest.fixture(autouse=True)
def _afresh() -> None:
    listed_file._HEADS.reset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six patients each, and a table of them."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, str]] = []
    for name in ("benign", "malignant"):
        for _ in range(6):
            pixels = rng.integers(0, 400 + 600 * (name == "malignant"), (40, 40), np.uint16)
            uid = f"1.2.{len(rows) + 1}"
            file = make_instance(
                pixels, SeriesInstanceUID=uid, PatientID=f"p{len(rows):02}", PatientName=None
            )
            path = write(file, tmp_path / "data" / name / f"p{len(rows):02}" / "a.dcm")
            rows.append((path.relative_to(tmp_path / "data").as_posix(), name, f"p{len(rows):02}"))
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(
        tmp_path / "data" / "labels.csv", index=False
    )
    return tmp_path / "data"


@pytest.fixture
def url(storage: Storage, folder: Path) -> str:
    return storage.put_folder(folder, "data")


def all_of(dataset: Any) -> torch.Tensor:
    return torch.stack([dataset[n][0] for n in range(len(dataset))])


def test_datasets(folder: Path, url: str) -> None:
    local = medimg.ImageDataset.from_folder(folder, RECIPE)
    table = medimg.ImageDataset.from_csv(folder / "labels.csv", patient="patient", preprocess=RECIPE)
    for remote in (
        medimg.ImageDataset.from_folder(url, RECIPE),
        medimg.ImageDataset.from_csv(f"{url}/labels.csv", patient="patient", preprocess=RECIPE),
        medimg.ImageDataset.from_csv(folder / "labels.csv", root=url, preprocess=RECIPE),
    ):
        assert remote.classes == local.classes
        assert sorted(remote.labels.tolist()) == sorted(local.labels.tolist())
        assert remote.patients == table.patients
        assert torch.equal(all_of(remote), all_of(local))
    ruled = medimg.ImageDataset.from_folder(url, RECIPE, patient=r"(p\d+)/")
    assert ruled.patients == table.patients
    called = medimg.ImageDataset.from_folder(url, RECIPE, patient=lambda path: path.parent.name)
    assert called.patients == table.patients
    assert len(medimg.ImageDataset.from_folder(url, RECIPE, label=None)) == 12


def test_a_table_of_urls_compressed_or_not(storage: Storage, folder: Path, url: str, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "labels.csv")
    table["path"] = url + "/" + table["path"]
    table.loc[0, "path"] = str(table.loc[0, "path"]).removesuffix("/a.dcm")  # a folder
    table.to_csv(tmp_path / "urls.csv.gz", index=False)
    expected = all_of(medimg.ImageDataset.from_folder(folder, RECIPE))
    packed = storage.put("urls.csv.gz", (tmp_path / "urls.csv.gz").read_bytes())
    for csv in (table, tmp_path / "urls.csv.gz", packed):
        assert torch.equal(all_of(medimg.ImageDataset.from_csv(csv, preprocess=RECIPE)), expected)


@pytest.mark.parametrize(
    "path", ["../secret.dcm", "/etc/passwd", "benign/../../x", "C:\\x", "..\\x", "\\\\host\\x"]
)
def test_a_table_leads_nowhere_else(storage: Storage, url: str, path: str) -> None:
    csv = storage.put("data/bad.csv", f"path,label\n{path},a\n".encode())
    with pytest.raises(DatasetError, match="leads out of s3://scans/data"):
        medimg.ImageDataset.from_csv(csv)


@pytest.mark.parametrize("protocol", ["hf", "ftp", "file"])
def test_tables_of_other_protocols_are_refused(protocol: str) -> None:
    with pytest.raises(DatasetError, match=f"begins like a URL, {protocol}:") as error:
        medimg.ImageDataset.from_csv(f"{protocol}://user:geheim@127.0.0.1/labels.csv")
    assert "geheim" not in str(error.value)


def test_rows_that_are_missing_are_named(storage: Storage, url: str) -> None:
    csv = storage.put("data/bad.csv", b"path,label\nbenign/absent.dcm,a\nbenign/p00/a.dcm,b\n")
    with pytest.raises(
        DatasetError, match=r"1 of 2 labeled images can't be read(?s:.*)there is no file s3://"
    ):
        medimg.ImageDataset.from_csv(csv)
    with pytest.raises(MedimgError, match=r"there is no file s3://scans/data/absent\.csv"):
        medimg.ImageDataset.from_csv(f"{url}/absent.csv")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_after_the_main_process_has_read(folder: Path, url: str, method: str) -> None:
    dataset = medimg.ImageDataset.from_folder(url, RECIPE, memory=1)
    dataset[0]  # there is a loop of fsspec now, whose thread no fork has
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method, timeout=120)
        found = torch.cat([images for images, _ in loader])
    assert torch.equal(found, all_of(medimg.ImageDataset.from_folder(folder, RECIPE)))


def test_training_from_storage_is_that_from_disk(folder: Path, url: str, storage: Storage) -> None:
    weights = []
    for root in (folder, url):
        torch.manual_seed(0)
        data = medimg.ImageDataset.from_folder(root, RECIPE)
        model = medimg.TransferClassifier("resnet18", weights=None, classes=data.classes, preprocess=RECIPE)
        medimg.fine_tune(model, data, epochs=1, head_epochs=0, seed=0, progress=False, workers=0)
        weights.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_a_cache_on_disk_of_files_in_storage(url: str, storage: Storage, tmp_path: Path) -> None:
    first = all_of(medimg.ImageDataset.from_folder(url, RECIPE, cache=tmp_path / "cache"))
    dataset = medimg.ImageDataset.from_folder(url, RECIPE, cache=tmp_path / "cache")
    storage.traffic.clear()
    assert torch.equal(all_of(dataset), first)
    assert not storage.traffic.requests


def test_a_cache_in_storage(folder: Path, url: str, storage: Storage) -> None:
    cache = f"{storage.url}/cache/"
    first = all_of(medimg.ImageDataset.from_folder(folder, RECIPE, cache=cache))
    assert len(storage.files.find("scans/cache")) == 12
    again = medimg.ImageDataset.from_folder(folder, RECIPE, cache=cache)
    storage.traffic.clear()
    assert torch.equal(all_of(again), first)
    assert [r.method for r in storage.traffic.requests] == ["GET"] * 12
    storage.traffic.clear()
    assert torch.equal(all_of(again), first)  # kept in memory
    assert not storage.traffic.requests
    # all in storage, by several processes that write the same
    both = medimg.ImageDataset.from_folder(url, RECIPE, cache=cache, memory=1)
    loader = DataLoader(both, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert torch.equal(torch.stack([image for image, _ in loader]), first)
        assert torch.equal(torch.stack([image for image, _ in loader]), first)


def test_a_damaged_cache_in_storage_is_rendered_again(folder: Path, storage: Storage) -> None:
    cache = f"{storage.url}/cache"
    first = all_of(medimg.ImageDataset.from_folder(folder, RECIPE, cache=cache))
    for name in storage.files.find("scans/cache"):
        data = bytearray(storage.files.cat_file(name))
        data[-100] ^= 1
        storage.files.pipe_file(name, bytes(data))
    with pytest.warns(MedimgWarning, match="are damaged"):
        assert torch.equal(all_of(medimg.ImageDataset.from_folder(folder, RECIPE, cache=cache)), first)
    again = medimg.ImageDataset.from_folder(folder, RECIPE, cache=cache)
    assert torch.equal(all_of(again), first)


def test_a_cache_in_a_storage_that_takes_nothing(folder: Path, storage: Storage) -> None:
    def refuse(request: Request) -> Disturbance | None:
        return ("403 FORBIDDEN", [("Content-Length", "0")], []) if "cache" in request.path else None

    storage.traffic.disturb = refuse
    dataset = medimg.ImageDataset.from_folder(folder, RECIPE, cache=f"{storage.url}/cache")
    with pytest.warns(MedimgWarning, match="may not be read.*rendered again each time") as caught:
        found = all_of(dataset)
    assert len(caught) == 1
    cached = medimg.ImageDataset.from_folder(folder, RECIPE, cache=medimg.ImageCache(folder / ".cache"))
    assert torch.equal(found, all_of(cached)) or torch.allclose(found, all_of(cached), atol=2e-3)


def test_which_caches_cant_be_at_a_url(folder: Path, storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="https:// is only read"):
        medimg.ImageCache("https://127.0.0.1/cache")
    with pytest.raises(MedimgError, match="pass the URL as a str"):
        medimg.ImageCache(Path("s3://scans/cache"))
    data = medimg.ImageDataset.from_folder(folder, RECIPE)
    model = medimg.TransferClassifier("resnet18", weights=None, classes=data.classes, preprocess=RECIPE)
    with pytest.raises(DatasetError, match="SQLite"):
        medimg.embed(model, data, cache=f"{storage.url}/features")
    assert not Path("s3:").exists()
    for wrong in (f"s3://user:geheim@{storage.url[5:]}/cache", f"{storage.url}/cache?X=geheim", "s3://"):
        with pytest.raises(DatasetError, match=r"with a login, a query|no folder") as error:
            medimg.ImageCache(wrong)
        assert "geheim" not in str(error.value)
        with pytest.raises(DatasetError, match=r"with a login, a query|no folder"):
            medimg.prepare(data, RECIPE, wrong)


def test_digests_are_those_of_copies_on_disk(
    folder: Path, url: str, tmp_path: Path, storage: Storage
) -> None:
    large = write(
        make_instance(np.random.default_rng(0).integers(0, 4000, (500, 500), np.uint16)), tmp_path / "x.dcm"
    )
    storage.put("data/x.dcm", large.read_bytes())
    for one, other in ((large, f"{url}/x.dcm"), (folder / "benign/p00/a.dcm", f"{url}/benign/p00/a.dcm")):
        local, remote = medimg.scan(one)[0], medimg.scan(other)[0]
        for compare in ("bytes", "blocks", "undated"):
            assert hash_files(local, compare) == hash_files(remote, compare)
        state, digest = stat_files(remote), hash_files(remote, "samples")
        assert state is not None
        assert stat_files(medimg.scan(other)[0]) == state
        storage.put(other[len(storage.url) + 1 :], one.read_bytes() + b"\0\0")
        assert stat_files(medimg.scan(other)[0]) != state
        assert hash_files(medimg.scan(other)[0], "samples") != digest


def test_leaks_between_disk_and_storage(folder: Path, url: str) -> None:
    local = medimg.ImageDataset.from_folder(folder, RECIPE)
    remote = medimg.ImageDataset.from_folder(url, RECIPE)
    with pytest.raises(medimg.errors.LeakageError):
        medimg.check_leaks(local, remote)


def test_predictions_embeddings_and_tensors(folder: Path, url: str) -> None:
    data = medimg.ImageDataset.from_folder(folder, RECIPE)
    model = medimg.TransferClassifier("resnet18", weights=None, classes=data.classes, preprocess=RECIPE)
    names = ["benign/p00/a.dcm", "malignant/p07/a.dcm"]
    local, remote = [folder / name for name in names], [f"{url}/{name}" for name in names]
    one, other = model.predict(local), model.predict(remote)
    pd.testing.assert_frame_equal(one.drop(columns="source"), other.drop(columns="source"))
    assert other["source"].tolist() == remote
    assert torch.equal(medimg.read_tensors(local, RECIPE).tensor, medimg.read_tensors(remote, RECIPE).tensor)
    assert np.array_equal(medimg.embed(model, local).array, medimg.embed(model, remote).array)


def test_no_secrets_in_tables_and_messages(url: str, storage: Storage) -> None:
    secret = url.replace("s3://", "s3://user:geheim@")
    model = medimg.TransferClassifier("resnet18", weights=None, classes=["a", "b"], preprocess=RECIPE)
    names = [f"{secret}/benign/p00/a.dcm", f"{secret}/absent"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = model.predict(names, on_error="collect")
    assert "geheim" not in table.to_csv() + "".join(str(one.message) for one in caught)
    assert "s3://scans/data/absent is given with a login" in table.to_csv()
    rows = pd.DataFrame({"path": names[:1] * 2, "label": ["a", "b"]})
    with pytest.raises(DatasetError, match="repeat a path") as error:
        medimg.ImageDataset.from_csv(rows)
    assert "geheim" not in str(error.value)


def test_the_command_line(url: str, storage: Storage) -> None:
    code = (
        "import sys, fsspec\n"
        f"fsspec.config.conf['s3'] = {storage.options!r}\n"
        "from medimg.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for command in (["scan", url], ["info", f"{url}/benign/p00/a.dcm"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "CT" in done.stdout
