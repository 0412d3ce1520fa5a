"""
Figures of one GPU, in at most eight minutes: ``python -m benchmarks.gpu --out figures.json``.

- Preprocessing of a CT of 300×512² int16 on the GPU, as a multiple of the time of its copy to there, both of
  them from memory that is not pinned.
- Training of a ResNet-50 in mixed precision, batches of 128: images per second from a prepared folder, as a
  share of those from tensors that are on the GPU already.
- The profile of one training step.
- The tests of ``tests/gpu``, which compare the GPU with the CPU, in the time that is left.

The exit status is 1 if a part or a test fails; the figures of the others are written all the same. A goal
that is missed is no failure. On a machine without a GPU everything runs on the CPU with small sizes, and the
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import Callback

import medimg
from medimg._native.library import describe_library

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_REPOSITORY = Path(__file__).parents[1]
#: Goals of docs/performance.
_MOST_PREPROCESSING = 1.5
_LEAST_SHARE = 0.95
#: Seconds of the whole, and of the tests at least.
_LIMIT, _LEAST_FOR_TESTS = 480, 60


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str
    volume: tuple[int, int, int, int]
    batch: int
    series: int
    slices: int
    #: How often each image occurs in an epoch: images that lie in wait before the first step must not count.
    repeats: int
    workers: int
    backbone: str

    @classmethod
    def of(cls, device: str, workers: int) -> Sizes:
        """Return sizes for a GPU, or small ones."""
        if device == "cuda":
            return cls(device, (1, 300, 512, 512), 128, 64, 120, 4, workers, "resnet50")
        return cls(device, (1, 6, 64, 64), 4, 4, 6, 1, 0, "resnet18")


def main() -> int:
    """Measure, write the figures as JSON, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--workers", type=int, default=12, help="processes that read images")
    parser.add_argument("--no-tests", action="store_true", help="leave out tests/gpu")
    options = parser.parse_args()
    started = perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = Sizes.of(device, options.workers)
    found: dict[str, Any] = {"machine": describe_machine(device)}
    parts: dict[str, Callable[[Sizes], Any]] = {
        "preprocessing": measure_preprocessing,
        "training": measure_training,
        "profile": profile_step,
    }
    if not options.no_tests:
        parts["tests"] = lambda _: run_tests(_LIMIT - (perf_counter() - started))
    for name, measure in parts.items():
        start = perf_counter()
        # one that fails must not cost the others, as time on such a machine is short
        try:
            found[name] = measure(sizes)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        found[name]["seconds"] = round(perf_counter() - start, 1)
        write(options.out, found)
    print(json.dumps(found, indent=2))
    return int(any("failed" in found[name] for name in parts))


def write(path: Path, found: dict[str, Any]) -> None:
    """Write what is known so far."""
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def describe_machine(device: str) -> dict[str, Any]:
    """Return names and versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    return {
        "device": name,
        "devices": torch.cuda.device_count(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "medimg": medimg.__version__,
        "compiled core": describe_library(),
    }


def run_tests(seconds: float) -> dict[str, Any]:
    """Run tests/gpu in a process of its own, for so long at most."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", "tests/gpu"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        # in a file and a session of its own, since processes that it started may outlive it
        started = subprocess.Popen(
            command, cwd=_REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            rc: int | str = started.wait(timeout=max(seconds, _LEAST_FOR_TESTS))
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            rc = "out of time"
        output.seek(0)
        lines = output.read().strip().splitlines()
    named = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    result = {"rc": rc, "summary": lines[-1] if lines else "", "end": lines[-12:]}
    return result if rc == 0 else {**result, "failed": named or rc}


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_runs(work: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Return the median seconds of a run, after two that warm up."""
    taken = []
    for number in range(rounds + 2):
        synchronize(device)
        start = perf_counter()
        work()
        synchronize(device)
        if number >= 2:
            taken.append(perf_counter() - start)
    return median(taken)


def measure_preprocessing(sizes: Sizes) -> dict[str, Any]:
    """Time a CT volume from int16 in memory to (300, 3, 224, 224) on the device, and its copy there."""
    rng = np.random.default_rng(0)
    values = rng.integers(-1024, 2000, sizes.volume, np.int16)
    affine = np.diag([1.0, 0.7, 0.7, 1.0])[[2, 1, 0, 3]]
    volume = medimg.Volume(values, affine, "CT", "HU")
    recipe = medimg.Preprocess(window="lung")
    source = torch.from_numpy(volume.array.copy())
    copying = time_runs(lambda: source.to(sizes.device), sizes.device)
    pinned = None
    if sizes.device == "cuda":
        held = source.pin_memory()
        pinned = 1000 * time_runs(lambda: held.to(sizes.device, non_blocking=True), sizes.device)
    working = time_runs(lambda: recipe(volume, device=sizes.device), sizes.device)
    alone = time_runs(lambda: recipe(volume), "cpu", rounds=2)
    difference = (recipe(volume, device=sizes.device).cpu() - recipe(volume)).abs().max()
    return {
        "copy_ms": 1000 * copying,
        "copy_of_pinned_ms": pinned,
        "preprocess_ms": 1000 * working,
        "cpu_ms": 1000 * alone,
        "times_of_the_copy": working / copying if copying else None,
        "goal": f"at most {_MOST_PREPROCESSING}",
        "largest_difference": float(difference),
    }


@dataclass
class OnDevice:
    """A dataset whose items are on the device already, so that nothing is read or copied."""

    count: int
    device: str
    preprocess: medimg.Preprocess
    classes: tuple[str, ...] = ("a", "b")
    task: str = "multiclass"
    unit: str = "image"
    image: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.image = torch.randn(*self.preprocess.image_shape, device=self.device)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Alternating labels."""
        return np.arange(self.count) % 2

    @property
    def patients(self) -> tuple[str, ...]:
        """A patient for each item."""
        return tuple(f"s{n}" for n in range(self.count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.image, index % 2


class StepTimes(Callback):
    """Times of training steps, each ended by waiting for the device every tenth time only."""

    def __init__(self, device: str, batch: int) -> None:
        self._device, self._batch, self._every = device, batch, 10 if batch >= 128 else 1
        self._marks: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time at some steps."""
        step = trainer.global_step
        if step % self._every == 0:
            synchronize(self._device)
            self._marks.append((step, perf_counter()))

    @property
    def images_per_s(self) -> float:
        """Throughput of the last three quarters of the steps: the first ones warm up."""
        (first, start), (last, end) = self._marks[len(self._marks) // 4], self._marks[-1]
        return (last - first) * self._batch / max(end - start, 1e-9)


def make_model(sizes: Sizes) -> medimg.TransferClassifier:
    """Return a network with random weights on the device."""
    torch.manual_seed(0)
    model = medimg.TransferClassifier(sizes.backbone, classes=["a", "b"], weights=None)
    model.weights_name = None
    return model.to(sizes.device)


def train(sizes: Sizes, data: Any, workers: int) -> float:
    """Train some steps in mixed precision, and return images per second."""
    times = StepTimes(sizes.device, sizes.batch)
    medimg.fine_tune(
        make_model(sizes), data, head_epochs=0, epochs=1, batch_size=sizes.batch, augment=None,
        precision="bf16-mixed", workers=workers, callbacks=[times], progress=False,
    )  # fmt: skip
    return times.images_per_s


def measure_training(sizes: Sizes) -> dict[str, Any]:
    """Time training from a prepared folder, and from tensors on the device, in turns."""
    recipe = medimg.Preprocess()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = perf_counter()
        images = make_prepared(sizes, folder, recipe)
        writing = perf_counter() - start
        prepared = images.subset([*range(len(images))] * sizes.repeats)
        tensors = OnDevice(len(prepared), sizes.device, recipe)
        found: dict[str, list[float]] = {"prepared": [], "tensors": []}
        for _ in range(2):
            found["tensors"].append(train(sizes, tensors, 0))
            found["prepared"].append(train(sizes, prepared, sizes.workers))
    best = {name: max(values) for name, values in found.items()}
    return {
        "images": len(images),
        "steps": len(prepared) // sizes.batch,
        "batch": sizes.batch,
        "backbone": sizes.backbone,
        "workers": sizes.workers,
        "images_per_s": found,
        "share_of_tensors": best["prepared"] / best["tensors"],
        "goal": f"at least {_LEAST_SHARE}",
        "prepared_in_s": writing,
    }


def make_prepared(sizes: Sizes, folder: Path, recipe: medimg.Preprocess) -> medimg.ImageDataset:
    """Write noise as series, prepare it, and return the dataset."""
    rng = np.random.default_rng(1)
    table = []
    for number in range(sizes.series):
        values = rng.integers(-200, 300, (1, sizes.slices, 224, 224), np.int16)
        path = folder / "scans" / f"{number}.nii"
        medimg.Volume(values, np.eye(4), "CT", "HU").save(path)
        table.append({"path": str(path), "label": "ab"[number % 2], "patient": f"p{number}"})
    import pandas as pd

    data = medimg.ImageDataset.from_csv(pd.DataFrame(table), patient="patient", preprocess=recipe)
    medimg.prepare(data, None, folder / "prepared", progress=False)
    return medimg.ImageDataset.from_prepared(folder / "prepared")


def profile_step(sizes: Sizes) -> dict[str, Any]:
    """Profile training steps, and return the operations that take longest."""
    from torch.profiler import ProfilerActivity, profile

    # as fine_tune does
    model = make_model(sizes).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(sizes.batch, *model.preprocess.image_shape, device=sizes.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(sizes.batch, device=sizes.device) % 2

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(sizes.device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    seconds = time_runs(step, sizes.device, rounds=3)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if sizes.device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
        synchronize(sizes.device)
    name = "self_device_time_total" if sizes.device == "cuda" else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: float(getattr(row, name)), reverse=True)
    top = [
        {"operation": row.key[:80], "ms": float(getattr(row, name)) / 1000, "calls": row.count}
        for row in rows
    ]
    peak = torch.cuda.max_memory_allocated() / 2**30 if sizes.device == "cuda" else None
    return {"step_ms": 1000 * seconds, "peak_gib": peak, "top": top[:15]}


if __name__ == "__main__":
    sys.exit(main())
