"""Data sets of synthetic tensors, and what tests of learning share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medimg import Preprocess, TransferClassifier

SMALL = Preprocess(size=64)


@dataclass
class Images:
    """Items whose brightness tells their class."""

    labels: NDArray[np.generic]
    preprocess: Preprocess = SMALL
    classes: tuple[str, ...] = ("a", "b")
    task: str = "multiclass"
    unit: str = "slice"
    prefix: str = "train"
    lengths: tuple[int, ...] = ()
    seed: int = 0
    images: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        side = self.preprocess.hw
        lengths = self.lengths or (1,) * len(self.labels)
        self.images = [
            torch.randn(n, self.preprocess.n_channels, *side, generator=generator)
            + 2.0 * float(np.ravel(label)[0])
            for n, label in zip(lengths, self.labels, strict=True)
        ]

    @property
    def patients(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{n}" for n in range(len(self)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        image = self.images[index] if self.unit == "series" else self.images[index][0]
        label = self.labels[index]
        return image, (torch.as_tensor(label) if self.task == "multilabel" else int(label))


def images(n: int = 8, **fields: Any) -> Images:
    """Alternate the classes."""
    outputs = len(fields.get("classes", ("a", "b")))
    return Images(np.arange(n) % outputs, **fields)


def classifier(backbone: str = "squeezenet1_1", **fields: Any) -> TransferClassifier:
    """A small classifier with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"classes": ("a", "b"), "weights": None, "preprocess": SMALL, **fields}
        return TransferClassifier(backbone, **settings)


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy that later steps don't change."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
