"""
What each stage of a large study takes, on one core: ``python -m benchmarks.stages --scans FOLDER``.

Writes ``benchmarks/results/stages.json``, which :mod:`benchmarks.simulations.many_workers` computes with.
FOLDER has real scans, such as ``$MEDIMG_TEST_DATA/dicom_misc``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Final

import torch

import medimg
from medimg.errors import MedimgError, MedimgWarning
from medimg.executors.executor_map import executor_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RESULTS"]

RESULTS: Final = Path(__file__).parent / "results" / "stages.json"


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--only", help="one stage; the figures of the others stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", MedimgWarning)
    index = medimg.scan(options.scans)
    stages: dict[str, Callable[[], Any]] = {
        "scan": lambda: measure_scan(options.scans),
        "prepare": lambda: measure_prepare(index, medimg.Preprocess()),
        "embed": measure_embedding,
        "train": measure_training,
        "tasks": measure_tasks,
    }
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if options.only else {}
    found["machine"] = {"torch": torch.__version__, "medimg": medimg.__version__}
    for name, measure in stages.items():
        if options.only in (None, name):
            found[name] = measure()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: part for name, part in found.items() if name != "prepare"}, indent=1))


def measure_scan(folder: Path) -> dict[str, float]:
    """Time scanning, by file, with files in the page cache."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = []
    for _ in range(3):
        start = process_time()
        medimg.scan(folder, workers=1, progress=False)
        taken.append(process_time() - start)
    return {
        "files": len(files),
        "bytes_per_file": sum(path.stat().st_size for path in files) / len(files),
        "core_seconds_per_file": median(taken) / len(files),
    }


def measure_prepare(index: Sequence[medimg.Series], recipe: medimg.Preprocess) -> dict[str, Any]:
    """Time rendering and writing of each series by itself: the distribution that tasks have."""
    seconds, images, sizes = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for number, series in enumerate(index):
            out = Path(temporary) / str(number)
            start = perf_counter()
            try:
                folder = medimg.prepare([series], recipe, out, workers=1, progress=False)
            except MedimgError:
                continue
            seconds.append(perf_counter() - start)
            images.append(folder.n_images)
            sizes.append(sum(path.stat().st_size for path in (out / "shards").iterdir()))
    return {
        "seconds": [round(one, 5) for one in seconds],
        "images": images,
        "core_seconds_per_image": sum(seconds) / sum(images),
        "bytes_per_image": sum(sizes) / sum(images),
    }


def measure_embedding() -> dict[str, float]:
    """Time the forward pass of a ResNet-50 on images of 224×224, one core."""
    model = medimg.TransferClassifier("resnet50", classes=["a", "b"], weights=None).eval()
    batch = torch.randn(8, 3, 224, 224)
    taken = []
    with torch.inference_mode():
        for _ in range(4):
            start = perf_counter()
            model.embed(batch)
            taken.append(perf_counter() - start)
    return {"core_seconds_per_image": min(taken) / len(batch), "bytes_per_image": 4.0 * 2048}


def measure_training() -> dict[str, float]:
    """Time a training step of all of a ResNet-50 on images of 224×224, one core."""
    model = medimg.TransferClassifier("resnet50", classes=["a", "b"], weights=None).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch, labels = torch.randn(8, 3, 224, 224), torch.arange(8) % 2
    taken = []
    for _ in range(4):
        start = perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        taken.append(perf_counter() - start)
    return {"core_seconds_per_image": min(taken) / len(batch)}


def measure_tasks() -> dict[str, float]:
    """Time what the caller's process does for each task, which no worker takes from it."""
    count = 2000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(abs, 1).result()
        start = process_time()
        assert (
            len(list(executor_map(pool, abs, range(count), lost=lambda item, _: item, workers=64))) == count
        )
        taken = process_time() - start
    return {"caller_seconds_per_task": taken / count, "cores": float(os.cpu_count() or 1)}


if __name__ == "__main__":
    main()
