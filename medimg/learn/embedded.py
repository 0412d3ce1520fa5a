"""A data set of embeddings, in the place of one of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from medimg.learn.loaders import LabeledImages
    from medimg.prep import Preprocess

__all__ = ["EmbeddedImages"]


class EmbeddedImages:
    """
    The items of a data set as a frozen backbone sees them.

    Parameters
    ----------
    images : LabeledImages
        Where labels and all else come from.
    embeddings : Tensor
        (total, F) float32.
    offsets : Tensor
        (n + 1,) int64: item i has the rows from offsets[i] to offsets[i + 1].
    """

    def __init__(self, images: LabeledImages, embeddings: Tensor, offsets: Tensor) -> None:
        self._images = images
        self._labels = images.labels
        self._embeddings = embeddings
        self._offsets: list[int] = offsets.tolist()
        self._bags = images.unit == "series"
        self._several = images.task == "multilabel"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._images.classes

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""
        return self._images.task

    @property
    def unit(self) -> str:
        """What an item is: ``"slice"`` or ``"series"``."""
        return self._images.unit

    @property
    def preprocess(self) -> Preprocess:
        """The recipe the images were made by."""
        return self._images.preprocess

    @property
    def labels(self) -> NDArray[np.generic]:
        """Of each item."""
        return self._labels

    @property
    def patients(self) -> tuple[str, ...]:
        """Of each item."""
        return self._images.patients

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return (F,), or of a bag (N, F), and the label."""
        start, end = self._offsets[index], self._offsets[index + 1]
        rows = self._embeddings[start:end] if self._bags else self._embeddings[start]
        label = self._labels[index]
        return rows, Tensor(label) if self._several else int(label)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int | Tensor]]:
        """Return several items."""
        return [self[index] for index in indices]
