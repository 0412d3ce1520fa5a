"""Protocols of models, datasets, preprocessing and training results, as far as other modules need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from medimg.core.progress import Progress
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["EvaluationDataset", "FitHistory", "LabeledDataset", "Model", "Recipe", "ScoredDataset"]


class _Dataset(Protocol):
    """Dataset attributes needed by both learning and evaluation."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def unit(self) -> str:
        """Unit of an item: ``"image"`` or ``"series"``."""

    @property
    def labels(self) -> NDArray[Any]:
        """Class index (n,) or indicators (n, K)."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item; never shown."""

    def __len__(self) -> int: ...


class LabeledDataset(_Dataset, Protocol):
    """A dataset to learn from; :class:`medimg.ImageDataset` is one."""

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the items."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, int | Tensor]: ...


class Recipe(Protocol):
    """The part of :class:`medimg.Preprocess` that a report needs."""

    @property
    def mean(self) -> float | Sequence[float] | None:
        """Mean subtracted from each channel; None for intensities from 0 to 1."""

    @property
    def std(self) -> float | Sequence[float] | None:
        """Standard deviation each channel is divided by; None for intensities from 0 to 1."""

    @property
    def channels(self) -> str:
        """Content of the three channels."""

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-compatible values."""


class Model(Protocol):
    """The part of :class:`medimg.TransferClassifier` that evaluation needs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def preprocess(self) -> Recipe:
        """Preprocessing the model was trained with."""

    @property
    def backbone_name(self) -> str:
        """Name of the network."""

    @property
    def weights_name(self) -> str | None:
        """Name of the pretrained weights; None if trained from scratch."""

    def predict_proba(
        self, dataset: Any, *, batch_size: int = 32, workers: int | None = None, progress: Progress = "auto"
    ) -> NDArray[np.float64]:
        """Return the probabilities (n, K) of every item of a dataset."""


class ScoredDataset(_Dataset, Protocol):
    """What the scores of predictions need to know of their items."""

    @property
    def preprocess(self) -> Recipe | None:
        """Preprocessing of the items, if it is known."""

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Series UID of each item; may be empty."""

    @property
    def sources(self) -> tuple[str, ...]:
        """File or folder of each item; never shown."""


class EvaluationDataset(ScoredDataset, Protocol):
    """The part of :class:`medimg.ImageDataset` that evaluation needs."""

    @property
    def preprocess(self) -> Recipe:
        """Preprocessing of the items."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class FitHistory(Protocol):
    """The part of :class:`medimg.FitResult` that a report needs."""

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """One row per epoch."""

    @property
    def seconds(self) -> float:
        """Training time."""

    @property
    def checkpoint(self) -> Path | None:
        """Path of the saved model."""
