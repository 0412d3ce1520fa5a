"""Copies of shards: whole or not there, within their bound, whoever else uses the folder."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import medimg
from medimg import ImageDataset
from medimg.errors import DatasetError, MedimgWarning, ReadError

if TYPE_CHECKING:
    from tests.storage import Storage

_SHARD = 30720


def images(data: ImageDataset) -> torch.Tensor:
    return torch.stack([data[n][0] for n in range(len(data))])


@pytest.fixture
def url(dataset: ImageDataset, storage: Storage) -> str:
    """Six shards of one series."""
    found = f"{storage.url}/prepared"
    medimg.prepare(dataset, None, found, shard_bytes=1, dtype="float32", progress=False)
    storage.traffic.clear()
    return found


def find_shard(data: ImageDataset, item: int) -> str:
    reader: Any = data.series[item].reader
    return str(reader.images.shard)


def list_sizes(cache: Path) -> list[int]:
    return [path.stat().st_size for path in cache.iterdir()]


def test_copies_stay_within_their_bound(url: str, dataset: ImageDataset, tmp_path: Path) -> None:
    cache = tmp_path / "shards"
    expected = images(dataset)
    data = ImageDataset.from_prepared(url, cache=cache, cache_bytes=4 * _SHARD)
    for n in [*range(len(data)), *np.random.default_rng(0).permutation(len(data)).tolist()]:
        assert torch.equal(data[n][0], expected[n])
        assert set(list_sizes(cache)) == {_SHARD}
        assert sum(list_sizes(cache)) <= 4 * _SHARD
    # a smaller one takes effect with the next copy, whatever is there
    images(ImageDataset.from_prepared(url, cache=cache))
    assert len(list_sizes(cache)) == 6
    first = data[:3]
    next(iter(cache.glob(f"{find_shard(data, 0)}*"))).unlink()
    first = pickle.loads(pickle.dumps(first))
    assert torch.equal(images(first), expected[:3])
    assert len(list_sizes(cache)) == 4


def test_the_least_recently_used_copies_are_removed(url: str, tmp_path: Path, storage: Storage) -> None:
    data = ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=4 * _SHARD)
    for n in (0, 3, 6, 9):  # the first images of four series
        data[n]
    for number, path in enumerate(sorted((tmp_path / "shards").iterdir())):
        os.utime(path, (number, number))
    again = ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=4 * _SHARD)
    oldest = min((tmp_path / "shards").iterdir(), key=lambda path: path.stat().st_mtime)
    uses = {find_shard(again, n): n for n in range(0, 18, 3)}
    again[uses[oldest.stem]]
    storage.traffic.clear()
    again[12]
    assert oldest.exists()
    assert len(storage.traffic.gets("shards")) == 1


def test_images_that_are_mapped_stay_valid(url: str, dataset: ImageDataset, tmp_path: Path) -> None:
    data = ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=4 * _SHARD)
    reader: Any = data.series[0].reader
    mapped = reader.load_images(reader.recipe)
    for _ in range(2):
        images(data)
    assert torch.equal(mapped.take(), torch.stack([dataset.planes(n) for n in range(3)]))


def test_bounds_that_make_no_sense(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"pass {4 * _SHARD} or more"):
        ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=4 * _SHARD - 1)
    with pytest.raises(DatasetError, match="pass cache=folder"):
        ImageDataset.from_prepared(url, cache_bytes=2**30)
    with pytest.raises(DatasetError, match="cache_bytes must be"):
        ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=0)


@pytest.mark.parametrize("most", [None, 4 * _SHARD])
def test_damaged_copies_are_fetched_again(
    url: str, dataset: ImageDataset, tmp_path: Path, most: int | None
) -> None:
    cache = tmp_path / "shards"
    images(ImageDataset.from_prepared(url, cache=cache, cache_bytes=most))
    for path in cache.iterdir():
        damaged = bytearray(path.read_bytes())
        damaged[3000] ^= 1
        path.write_bytes(damaged)
    data = ImageDataset.from_prepared(url, cache=cache, cache_bytes=most)
    with pytest.warns(MedimgWarning, match="is damaged"):
        last = data[15][0]
    assert torch.equal(last, dataset[15][0])
    # no other one is used
    for path in cache.iterdir():
        path.unlink()
    assert torch.equal(images(data), images(dataset))


def test_a_shard_that_is_damaged_in_the_storage_is_no_copy(
    url: str, storage: Storage, tmp_path: Path
) -> None:
    for name in storage.files.ls(f"{url.removeprefix('s3://')}/shards"):
        storage.files.pipe_file(name, storage.files.cat_file(name)[:-1])
    data = ImageDataset.from_prepared(url, cache=tmp_path / "shards")
    with pytest.raises(DatasetError, match="SHA-256"):
        data[0]
    assert not list((tmp_path / "shards").iterdir())
    storage.files.rm(f"{url.removeprefix('s3://')}/shards", recursive=True)
    with pytest.raises(ReadError, match="no file"):
        data[0]


def _read(url: str, cache: Path, most: int | None, seed: int, options: dict[str, Any]) -> list[float]:
    import fsspec

    fsspec.config.conf["s3"] = options
    data = ImageDataset.from_prepared(url, cache=cache, cache_bytes=most)
    order = np.random.default_rng(seed).permutation(len(data)).tolist() if most else range(len(data))
    sums = {n: float(data[n][0].double().sum()) for n in order}
    return [sums[n] for n in range(len(data))]


@pytest.mark.parametrize("most", [None, 4 * _SHARD])
def test_processes_share_the_copies(
    url: str, dataset: ImageDataset, storage: Storage, tmp_path: Path, most: int | None
) -> None:
    cache = tmp_path / "shards"
    expected = [float(image.double().sum()) for image in images(dataset)]
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(_read, url, cache, most, seed, storage.options) for seed in range(3)]
        assert [run.result() for run in runs] == [expected] * 3
    assert {path.suffix for path in cache.iterdir()} == {".tar"}
    if most is None:
        assert len(storage.traffic.gets("shards")) == 6


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_loaders(url: str, dataset: ImageDataset, tmp_path: Path, method: str) -> None:
    data = ImageDataset.from_prepared(url, cache=tmp_path / "shards", cache_bytes=4 * _SHARD)
    assert torch.equal(data[0][0], dataset[0][0])  # what is mapped here is not there
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=method)
    assert torch.equal(torch.cat([batch for batch, _ in loader]), images(dataset))


_CALL = """
import sys, time, fsspec, medimg
from medimg.io.files.storage_folder import StorageFolder
fsspec.config.conf["s3"] = eval(sys.argv[3])
def stop(self, name, target):
    target.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)
StorageFolder.copy = stop
medimg.ImageDataset.from_prepared(sys.argv[1], cache=sys.argv[2])[0]
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_copy_whose_process_is_killed(
    url: str, dataset: ImageDataset, storage: Storage, tmp_path: Path
) -> None:
    cache = tmp_path / "shards"
    with subprocess.Popen(
        [sys.executable, "-c", _CALL, url, str(cache), repr(storage.options)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert any(cache.iterdir())
    assert torch.equal(images(ImageDataset.from_prepared(url, cache=cache)), images(dataset))
    assert {path.suffix for path in cache.iterdir()} == {".tar"}
