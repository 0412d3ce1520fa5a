"""Linear probe: the head fitted on cached embeddings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_choice, check_whole_number
from medimg.errors import TrainingError
from medimg.features.dataset_features import item_features
from medimg.models.data_checks import check_model
from medimg.models.training_distribution import record_training_distribution
from medimg.models.training_images import record_training_images
from medimg.training._logistic_regression import LinearFit
from medimg.training.checks import check_data
from medimg.training.class_weights import list_class_weights
from medimg.training.linear_probe import LabeledEmbeddings, ProbeSearch

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd

    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["HeadFit", "check_balance", "check_pooling", "embed_items", "fit_head"]

_COLUMNS: Final = ("C", "log_loss", "standard_error", "auroc")


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class HeadFit:
    """
    Result of :func:`medimg.fit_head`: the selected penalty, and the scores of all.

    Attributes
    ----------
    method : str
        ``"logistic"`` or ``"sgd"``.
    C : float
        Inverse of the regularization strength.
    tried : tuple of dict
        ``log_loss``, its ``standard_error`` over patients, and ``auroc`` of each C on held-out data: the
        validation data, or the inner folds. Empty if C was given without validation data.
    items : int
        Number of training items.
    seconds : float
        Duration, including that of computing embeddings.
    """

    method: str
    C: float
    tried: tuple[dict[str, Any], ...] = field(repr=False)
    items: int
    seconds: float

    @property
    def best(self) -> dict[str, Any] | None:
        """Row of the selected C; None without held-out data."""
        return next((row for row in self.tried if row["C"] == self.C), None)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per C."""
        import pandas as pd

        return pd.DataFrame(list(self.tried), columns=list(_COLUMNS))


@set_module("medimg")
def fit_head(
    model: TransferClassifier,
    train: LabeledDataset,
    val: LabeledDataset | None = None,
    *,
    method: Literal["logistic", "sgd"] = "logistic",
    C: float | Sequence[float] | None = None,
    inner_folds: int = 3,
    balance: Literal["loss"] | None = "loss",
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    seed: int = 0,
    progress: Progress = "auto",
) -> HeadFit:
    """
    Fit the head of a classifier by logistic regression on embeddings (linear probe).

    Each image passes the backbone once. The embeddings are standardized, and the standardization is folded
    into the head's weights, so that the model predicts the probabilities of the regression. The backbone is
    not changed, whether frozen or not.

    Parameters
    ----------
    model : TransferClassifier
        Model whose head is fitted in place; it ends in evaluation mode. Bags are pooled by ``pool="mean"`` or
        ``"max"``.
    train : ImageDataset
        Training data with the model's preprocessing and classes.
    val : ImageDataset, optional
        Validation data for selecting C, without a patient in common with `train`; by default inner folds of
        `train` are used.
    method : {"logistic", "sgd"}
        scikit-learn's ``LogisticRegression``; or the same penalized loss minimized by Adam on batches, for
        large data.
    C : float or sequence of float, optional
        Inverse of the regularization strength, or several values to select from; by default 13 from 0.0001 to
        100. They are tried in ascending order until the log loss has risen twice. The strongest penalty is
        selected whose loss is at most one standard error above the lowest (Breiman et al., 1984): scores on
        similar patients are the same, and those on other scanners higher.
    inner_folds : int
        Number of patient-wise, stratified folds; fewer if a class has fewer patients.
    balance : {"loss"} or None
        Whether to weight classes inversely to their frequency.
    cache : path-like, optional
        Folder for cached embeddings; see :func:`medimg.embed`.
    batch_size : int
        Number of images per batch.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    seed : int
        Seed for the inner folds.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    HeadFit
        Selected C, and the scores of all.

    Raises
    ------
    TrainingError
        If data and model don't match, a class has no example or too few patients, a setting is invalid, or
        the model has ``pool="attention"``, whose parameters need training.
    LeakageError
        If a patient is in both datasets.

    Examples
    --------
    >>> fit = medimg.fit_head(model, train, cache="features")  # doctest: +SKIP
    >>> fit  # doctest: +SKIP
    HeadFit(method='logistic', C=0.01, items=2037, seconds=48.1)
    """
    started = time.perf_counter()
    check_model(model)
    check_choice("method", method, ("logistic", "sgd"))
    check_pooling(model)
    search = ProbeSearch(
        model.task,
        model.classes,
        method,
        C,
        inner_folds=inner_folds,
        balanced=check_balance(balance),
        seed=check_whole_number("seed", seed),
    )
    check_data(model, train, val)
    options = {"cache": cache, "batch_size": batch_size, "workers": workers, "progress": progress}
    data = embed_items(model, train, **options)
    held_out = None if val is None else embed_items(model, val, **options)
    chosen = search.fit(data, held_out, progress=progress)
    assert isinstance(chosen.fit, LinearFit)
    _set_head(model, chosen.fit)
    record_training_distribution(model, train)
    record_training_images(model, train=train, val=val)
    tried = tuple({name: row[name] for name in _COLUMNS} for row in chosen.tried)
    fit = HeadFit(method, chosen.setting, tried, len(train), time.perf_counter() - started)
    model.training_summary = {
        "fitted": "head",
        "method": method,
        "C": chosen.setting,
        "balance": balance,
        "class_weights": list_class_weights(data.labels, model.task, len(model.classes), balance),
        "seed": seed,
        "train_items": len(train),
        "val_items": len(val) if val is not None else 0,
        "best": fit.best,
    }
    model.eval()
    return fit


def check_pooling(model: TransferClassifier) -> None:
    """Raise TrainingError if the pooling of a model has parameters."""
    if model.pool == "attention":
        raise TrainingError(
            'pool="attention" has parameters that a linear probe does not fit: train them with '
            'medimg.fine_tune(model, train, head_epochs=10, epochs=0), or use pool="mean" or "max"'
        )


def check_balance(balance: object) -> bool:
    """Return whether classes are weighted; raise TrainingError if `balance` is not one of a linear probe."""
    if balance is not None and not (isinstance(balance, str) and balance == "loss"):
        raise TrainingError(f'balance must be "loss" or None for a linear probe; found {balance!r}')
    return balance == "loss"


def embed_items(model: TransferClassifier, dataset: LabeledDataset, **options: Any) -> LabeledEmbeddings:
    """Return one embedding per item, bags pooled, with labels and patients."""
    features = item_features(model, dataset, **options)
    return LabeledEmbeddings(
        features.pooled(model.pool).numpy(), np.asarray(dataset.labels), dataset.patients
    )


def _set_head(model: TransferClassifier, fit: LinearFit) -> None:
    """Set the weights of a model's head to those of a regression."""
    with torch.no_grad():
        weight = torch.from_numpy(fit.weight)
        model.head.weight.copy_(weight.view_as(model.head.weight))
        if model.head.bias is not None:
            model.head.bias.copy_(torch.from_numpy(fit.bias))
