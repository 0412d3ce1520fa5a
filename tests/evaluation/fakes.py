"""Stand-ins for a classifier and a dataset that have just what evaluation asks of them."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from medimg._native.headers import HeaderScan
from medimg._native.slices import read_alike
from medimg.core.progress import Progress

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class FakeRecipe:
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: str = "repeat"
    fingerprint: str = "0123456789abcdef"

    def to_dict(self) -> dict[str, Any]:
        return {
            "window": "auto",
            "channels": self.channels,
            "size": 64,
            "mean": list(self.mean),
            "fill": None,
        }


@dataclass(frozen=True)
class FakeDataset:
    labels: NDArray[Any]
    patients: tuple[str, ...]
    classes: tuple[str, ...] = ("normal", "pneumonia")
    task: Task = "multiclass"
    unit: str = "slice"
    series_uids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    preprocess: FakeRecipe = field(default_factory=FakeRecipe)
    size: int = 32

    def __post_init__(self) -> None:
        n = len(self.labels)
        object.__setattr__(self, "series_uids", self.series_uids or ("",) * n)
        object.__setattr__(self, "sources", self.sources or tuple(f"image{i}.png" for i in range(n)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        planes = torch.from_numpy(self.plane(index)).float().expand(3, -1, -1)
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        image = (planes - mean) / std
        return (image.expand(4, -1, -1, -1) if self.unit == "series" else image), self.labels[index]

    def plane(self, index: int) -> NDArray[np.float64]:
        """A blurred chest of sorts, another for each item."""
        generator = np.random.default_rng(index)
        y, x = np.mgrid[-1 : 1 : self.size * 1j, -1 : 1 : self.size * 1j]
        body = np.where((x / 0.9) ** 2 + y**2 < 0.9, 0.6, 0.05)
        for side in (-1, 1):
            body[((x - 0.4 * side) / 0.3) ** 2 + (y / 0.6) ** 2 < 1] = 0.15
        cx, cy = generator.uniform(-0.5, 0.5, 2)
        spot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.01)
        noisy: NDArray[np.float64] = body + 0.6 * spot + generator.normal(0, 0.02, body.shape)
        return noisy.clip(0, 1)


@dataclass(frozen=True)
class FakeModel:
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...] = ("normal", "pneumonia")
    task: Task = "multiclass"
    backbone_name: str = "resnet18"
    weights_name: str | None = "IMAGENET1K_V1"
    preprocess: FakeRecipe = field(default_factory=FakeRecipe)

    def predict_proba(
        self, dataset: Any, *, batch_size: int = 32, workers: int | None = None, progress: Progress = "auto"
    ) -> NDArray[np.float64]:
        assert batch_size >= 1
        assert not workers
        assert progress in ("auto", False)
        assert len(dataset) == len(self.probabilities)
        return self.probabilities


@dataclass(frozen=True)
class FakeFit:
    history: tuple[dict[str, Any], ...]
    seconds: float = 75.0
    checkpoint: None = None


def make_pair(
    task: Task = "multiclass",
    classes: tuple[str, ...] = ("normal", "pneumonia"),
    *,
    n_patients: int = 40,
    per_patient: int = 5,
    seed: int = 0,
    signal: float = 1.5,
    size: int = 32,
) -> tuple[FakeModel, FakeDataset]:
    """Patients with several images each, labels by patient, probabilities that know something of them."""
    generator = np.random.default_rng(seed)
    n, k = n_patients * per_patient, len(classes)
    patient = np.repeat(np.arange(n_patients), per_patient)
    shared = generator.normal(size=(n_patients, k))[patient]
    noise = shared + 0.5 * generator.normal(size=(n, k))
    if task == "multiclass":
        labels: NDArray[Any] = (np.arange(n_patients) % k)[patient]
        logits = signal * np.eye(k)[labels] + noise
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    else:
        labels = generator.integers(2, size=(n_patients, k))[patient].astype(np.float32)
        probabilities = 1 / (1 + np.exp(-(signal * (2 * labels - 1) + noise)))
    dataset = FakeDataset(labels, tuple(f"patient-{p}" for p in patient), classes, task, size=size)
    return FakeModel(probabilities, classes, task), dataset


def make_history(n: int = 6) -> tuple[dict[str, Any], ...]:
    """A history as training gives it."""
    return tuple(
        {
            "epoch": i,
            "phase": "head" if i < 2 else "full",
            "train_loss": 0.7 * 0.8**i,
            "val_loss": 0.72 * 0.85**i,
            "val_accuracy": 1 - 0.35 * 0.8**i,
            "val_auroc": 1 - 0.25 * 0.7**i,
            "lr": 1e-3 * 0.9**i,
            "seconds": 12.345,
        }
        for i in range(n)
    )


_watched: list[tuple[str, Counter[str]]] = []


def _note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(arguments[0])
        for root, opened in _watched:
            if name.startswith(root):
                opened[name] += 1


# a hook can't be taken off again
sys.addaudithook(_note_opening)


@contextmanager
def opened_files(root: Path) -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened, in whatever way and from whatever thread."""
    opened: Counter[str] = Counter()
    _watched.append((f"{root}{os.sep}", opened))
    add = HeaderScan.add

    # the compiled core opens files without a word to Python
    def spy_on_slices(library: Any, walk: Any, like: Any, files: Any, threads: int) -> list[bool]:
        for name, *_ in files:
            _note_opening("open", (name,))
        return read_alike(library, walk, like, files, threads)

    def spy_on_headers(self: HeaderScan, names: Sequence[str], threads: int) -> None:
        for name in names:
            _note_opening("open", (name,))
        add(self, names, threads)

    try:
        with (
            mock.patch("medimg.io.dicom.pixels._header_walk.read_alike", spy_on_slices),
            mock.patch.object(HeaderScan, "add", spy_on_headers),
        ):
            yield opened
    finally:
        _watched.pop()
