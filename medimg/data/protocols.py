"""What learning and evaluation ask of a model, a dataset, a recipe and a training result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["EvaluationDataset", "FitHistory", "LabeledDataset", "Model", "Recipe"]


class _Dataset(Protocol):
    """What learning and evaluation both ask of a dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def unit(self) -> str:
        """What an item is: ``"slice"`` or ``"series"``."""

    @property
    def labels(self) -> NDArray[Any]:
        """Class index (n,) or indicators (n, K)."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item. Never shown."""

    def __len__(self) -> int: ...


class LabeledDataset(_Dataset, Protocol):
    """What learning asks of a dataset; :class:`medimg.ImageDataset` is one."""

    @property
    def preprocess(self) -> Preprocess:
        """The recipe the items are made by."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, int | Tensor]: ...


class Recipe(Protocol):
    """The part of :class:`medimg.Preprocess` that a report shows or needs."""

    @property
    def mean(self) -> Sequence[float]:
        """Subtracted from each channel."""

    @property
    def std(self) -> Sequence[float]:
        """Each channel was divided by."""

    @property
    def channels(self) -> str:
        """What the three channels hold."""

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe."""

    def to_dict(self) -> dict[str, Any]:
        """Give every field in a form that JSON can hold."""


class Model(Protocol):
    """The part of :class:`medimg.TransferClassifier` that is evaluated."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def preprocess(self) -> Recipe:
        """The recipe the model was trained with."""

    @property
    def backbone_name(self) -> str:
        """Name of the network."""

    @property
    def weights_name(self) -> str | None:
        """Name of the weights training started from; None: from scratch."""

    def predict_proba(
        self, dataset: Any, *, batch_size: int = 32, progress: bool = False
    ) -> NDArray[np.float64]:
        """Give the probabilities, of shape (n, K), of every item of a dataset."""


class EvaluationDataset(_Dataset, Protocol):
    """The part of :class:`medimg.ImageDataset` that evaluation reads."""

    @property
    def preprocess(self) -> Recipe:
        """The recipe the items are made by."""

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Series of each item; may be empty for images that have none."""

    @property
    def sources(self) -> tuple[str, ...]:
        """File or folder of each item. Never shown."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class FitHistory(Protocol):
    """The part of :class:`medimg.FitResult` that a report draws."""

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """One row per epoch."""

    @property
    def seconds(self) -> float:
        """How long training took."""

    @property
    def checkpoint(self) -> Path | None:
        """Where the model was saved."""
