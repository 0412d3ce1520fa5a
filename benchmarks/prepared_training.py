"""
Training from shards in object storage against training from the image cache on disk.

Run ``python -m benchmarks.prepared_training``; needs ``pip install medimg[prepare,s3] moto[server]``. An S3
server on loopback, in a process of its own, has a prepared folder. A small network, for which loading is a
large part of the work, is trained with one seed from

- the image cache of the sources on disk, filled before,
- the prepared folder on disk,
- the prepared folder on the server, with an empty cache of shards and with a full one,
- the same with a cache that has room for some shards only, whose order is another one.

All are trained in turns. The ratios are of runs of one round, and their median is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

import medimg
from benchmarks.streaming_formats import make_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SIZE = 224
_BUCKET = "prepared"
_REFERENCE = "image cache"


@contextmanager
def serve_s3() -> Iterator[None]:
    """Serve a bucket from another process, and let fsspec find it."""
    import fsspec

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://127.0.0.1:{port}", "key": "reader", "secret": "of-this-benchmark",
        "client_kwargs": {"region_name": "us-east-1"},
    }  # fmt: skip
    try:
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        fsspec.filesystem("s3").call_s3("create_bucket", Bucket=_BUCKET)
        yield
    finally:
        server.terminate()
        server.wait()


def write_sources(folder: Path, count: int) -> pd.DataFrame:
    """Write series of two classes, one darker than the other, and return their table."""
    rows = []
    for number, array in enumerate(make_arrays(count)):
        intensities = array[:, 0][None].astype(np.float32) * (1000 - 100 * (number % 2))
        volume = medimg.Volume(intensities, np.eye(4))
        path = folder / f"{number:05d}.nii"
        volume.save(path)
        rows.append({"path": str(path), "label": "ab"[number % 2], "patient": number})
    return pd.DataFrame(rows)


def make_network() -> nn.Module:
    """Return a network of 15 million multiplications for an image."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Run(NamedTuple):
    """Loss and seconds of each epoch, and CPU seconds of all, those of loader processes included."""

    rows: list[dict[str, Any]]
    cpu: float


def train(data: medimg.ImageDataset, epochs: int, workers: int) -> Run:
    """Train a new network."""
    torch.manual_seed(0)
    model = medimg.TransferClassifier("small", classes=data.classes, weights=None, preprocess=data.preprocess)
    options: dict[str, Any] = {
        "lr": 0.01,
        "backbone_lr_scale": 1.0,
        "head_epochs": 0,
        "augment": None,
        "batch_size": 32,
        "progress": False,
    }
    before = os.times()
    result = medimg.fine_tune(model, data, epochs=epochs, workers=workers, **options)
    # user and system, of this process and of its children
    cpu = sum(os.times()[:4]) - sum(before[:4])
    return Run([dict(row) for row in result.history], cpu)


def make_openings(
    folder: Path, table: pd.DataFrame, count: int
) -> dict[str, Callable[[], medimg.ImageDataset]]:
    """Prepare the images, and return how each dataset is opened before a run."""
    recipe = medimg.Preprocess(size=_SIZE, window=medimg.Window(center=500.5, width=1001.0))
    cached = medimg.ImageDataset.from_csv(
        table, preprocess=recipe, patient="patient", cache=folder / "cache", progress=False
    )
    cached.fill_cache(progress=False)
    url, local = f"s3://{_BUCKET}/out", folder / "local"
    shard_bytes = count * _SIZE**2 * 2 // 12
    medimg.prepare(cached, None, local, shard_bytes=shard_bytes, progress=False)
    medimg.prepare(cached, None, url, shard_bytes=shard_bytes, progress=False)
    size = sum(path.stat().st_size for path in (local / "shards").iterdir())

    def open_empty(name: str, most: int | None = None) -> medimg.ImageDataset:
        shutil.rmtree(folder / name, ignore_errors=True)
        return medimg.ImageDataset.from_prepared(url, cache=folder / name, cache_bytes=most)

    for path in (local / "shards").iterdir():
        (folder / "full").mkdir(exist_ok=True)
        shutil.copy(path, folder / "full")
    return {
        _REFERENCE: lambda: cached,
        "prepared, on disk": lambda: medimg.ImageDataset.from_prepared(local),
        "prepared, S3, empty cache": lambda: open_empty("empty"),
        "prepared, S3, full cache": lambda: medimg.ImageDataset.from_prepared(url, cache=folder / "full"),
        "prepared, S3, room for 60 %": lambda: open_empty("part", int(0.6 * size)),
    }


def summarize(runs: dict[str, list[Run]], count: int) -> dict[str, Any]:
    """Return images per second, their ratios to the cache's, and whether the losses are equal."""
    found = {}
    for name, several in runs.items():
        pairs = list(zip(several, runs[_REFERENCE], strict=True))
        first = [_rate(one.rows[:1], count) / _rate(other.rows[:1], count) for one, other in pairs]
        later = [_rate(one.rows[1:], count) / _rate(other.rows[1:], count) for one, other in pairs]
        found[name] = {
            "first_epoch_images_per_s": round(median(_rate(run.rows[:1], count) for run in several)),
            "first_epoch_ratio": round(median(first), 3),
            "later_images_per_s": round(median(_rate(run.rows[1:], count) for run in several)),
            "later_ratio": round(median(later), 3),
            "later_ratios": [round(one, 3) for one in later],
            "cpu_ms_per_image": median(1000 * run.cpu / count / len(run.rows) for run in several),
            "losses": _list_losses(several[0]),
            "losses_equal": all(_list_losses(one) == _list_losses(other) for one, other in pairs),
        }
    return found


def _rate(rows: list[dict[str, Any]], count: int) -> float:
    return float(count * len(rows) / sum(row["seconds"] for row in rows))


def _list_losses(run: Run) -> list[float]:
    return [row["train_loss"] for row in run.rows]


def main() -> None:
    """Prepare, train in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    medimg.register_backbone("small", make_network, size=_SIZE, features=32)
    with tempfile.TemporaryDirectory() as temporary, serve_s3():
        folder = Path(temporary)
        (folder / "sources").mkdir()
        table = write_sources(folder / "sources", options.images)
        openings = make_openings(folder, table, options.images)
        names = list(openings)
        runs: dict[str, list[Run]] = {name: [] for name in names}
        train(openings[_REFERENCE](), 1, options.workers)  # what is done once
        for number in range(options.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                runs[name].append(train(openings[name](), options.epochs, options.workers))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(json.dumps(summarize(runs, options.images), indent=2))


if __name__ == "__main__":
    main()
