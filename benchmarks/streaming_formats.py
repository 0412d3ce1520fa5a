"""
Formats to train from: medimg's prepared folder, WebDataset, and LitData, of the same images.

Run ``python -m benchmarks.streaming_formats``; needs ``pip install webdataset litdata pyarrow``. Each format
is written once and read in turns: opened until the first image, in its own order, and shuffled; an image is
read once it is normalized, (3, 224, 224) float32, as a network takes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.timing import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

_SIZE = 224
_PER_SERIES = 20
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Return an image (1, H, W) as a network takes it."""
    return (image.float().expand(3, -1, -1) - _MEAN) / _STD


def make_arrays(count: int) -> Iterator[npt.NDArray[np.float16]]:
    """Yield images (20, 1, 224, 224) of one series each, smooth with noise."""
    rng = np.random.default_rng(0)
    for _ in range(count // _PER_SERIES):
        smooth = rng.random((_PER_SERIES, 1, 7, 7)).repeat(32, 2).repeat(32, 3)
        noise = rng.random((_PER_SERIES, 1, _SIZE, _SIZE))
        yield (0.8 * smooth + 0.2 * noise).astype(np.float16)


class Prepared:
    """Shards and manifest of :func:`medimg.prepare`, written from arrays."""

    def write(self, folder: Path, arrays: Iterator[npt.NDArray[np.float16]]) -> None:
        """Write the arrays of all series."""
        import medimg

        images = [medimg.Volume(1000 * a[:, 0][None].astype(np.float32), np.eye(4)) for a in arrays]
        for number, volume in enumerate(images):
            volume.save(folder / "source" / f"{number:05d}.nii")
        recipe = medimg.Preprocess(size=_SIZE, window=medimg.Window(center=500.5, width=1001.0))
        medimg.prepare(sorted((folder / "source").iterdir()), recipe, folder / "out", progress=False)
        shutil.rmtree(folder / "source")

    def open(self, folder: Path) -> Any:
        """Return a dataset of images."""
        import medimg

        return medimg.ImageDataset.from_prepared(folder / "out")

    def read(self, folder: Path, *, shuffled: bool) -> int:
        """Read all images, and return their number."""
        data = self.open(folder)
        order = np.random.default_rng(1).permutation(len(data)) if shuffled else np.arange(len(data))
        parts = np.array_split(order, max(1, len(order) // 32))
        return sum(len(data.__getitems__(part.tolist())) for part in parts)


class Web:
    """Tar shards of WebDataset: one sample per image, shuffled in a buffer of 1,000."""

    def write(self, folder: Path, arrays: Iterator[npt.NDArray[np.float16]]) -> None:
        """Write the arrays of all series."""
        import webdataset

        (folder / "web").mkdir()
        pattern = f"{folder}/web/%06d.tar"
        with webdataset.ShardWriter(pattern, maxsize=2**27, verbose=0) as sink:
            for series, several in enumerate(arrays):
                for number, image in enumerate(several):
                    sink.write({"__key__": f"{series:05d}-{number:03d}", "npy": image})

    def read(self, folder: Path, *, shuffled: bool) -> int:
        """Read all images, and return their number."""
        return sum(1 for _ in self.open(folder, shuffled=shuffled))

    def open(self, folder: Path, *, shuffled: bool = False) -> Any:
        """Return a dataset of images."""
        import webdataset

        urls = sorted(map(str, (folder / "web").iterdir()))
        data = webdataset.WebDataset(urls, shardshuffle=len(urls) if shuffled else False)
        data = data.shuffle(1000) if shuffled else data
        return data.decode().map(lambda sample: normalize(torch.from_numpy(sample["npy"])))


class Lit:
    """Chunks of LitData, through its streaming dataset."""

    def write(self, folder: Path, arrays: Iterator[npt.NDArray[np.float16]]) -> None:
        """Write the arrays of all series."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder / "lit"), chunk_bytes=2**27)
        number = 0
        for several in arrays:
            for image in several:
                writer.add_item(number, {"image": torch.from_numpy(image)})
                number += 1
        writer.done()
        writer.merge()

    def open(self, folder: Path, *, shuffled: bool = False) -> Any:
        """Return a dataset of images."""
        from litdata import StreamingDataset

        return StreamingDataset(str(folder / "lit"), shuffle=shuffled)

    def read(self, folder: Path, *, shuffled: bool) -> int:
        """Read all images, and return their number."""
        return sum(len(normalize(one["image"])) // 3 for one in self.open(folder, shuffled=shuffled))


def main() -> None:
    """Write, read, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    formats: dict[str, Any] = {"medimg.prepare": Prepared(), "WebDataset": Web(), "LitData": Lit()}
    found: dict[str, dict[str, float]] = {name: {} for name in formats}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, one in formats.items():
            start = perf_counter()
            before = _size(folder)
            one.write(folder, make_arrays(options.images))
            found[name]["written_s"] = perf_counter() - start
            found[name]["mib"] = (_size(folder) - before) / 2**20
        for what, shuffled in (("in_order", False), ("shuffled", True)):
            _time(
                found,
                what,
                {n: _reader(f, folder, shuffled=shuffled) for n, f in formats.items()},
                options.rounds,
            )
        first = {name: _opener(one, folder) for name, one in formats.items()}
        _time(found, "first_image", first, options.rounds)
    for figures in found.values():
        for what in ("in_order", "shuffled"):
            figures[f"{what}_images_per_s"] = options.images / (figures.pop(f"{what}_ms") / 1000)
    print(json.dumps(found, indent=2))


def _reader(one: Any, folder: Path, *, shuffled: bool) -> Callable[[], Any]:
    return lambda: one.read(folder, shuffled=shuffled)


def _opener(one: Any, folder: Path) -> Callable[[], Any]:
    return lambda: next(iter(one.open(folder)))


def _time(found: dict[str, dict[str, float]], what: str, candidates: dict[str, Any], rounds: int) -> None:
    for name, times in interleaved(candidates, rounds, budget=120.0).items():
        found[name][f"{what}_ms"] = median(times)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
