"""A head fitted on embeddings that are computed once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from medimg._validation import check_choice, check_whole_number
from medimg.errors import TrainingError
from medimg.features.dataset_features import item_features
from medimg.models.training_distribution import record_training_distribution
from medimg.models.training_images import record_training_images
from medimg.training._logistic_regression import LinearFit
from medimg.training.checks import check_data
from medimg.training.linear_probe import Labeled, ProbeSearch

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["HeadFit", "check_pooling", "fit_head", "is_balanced", "labeled"]

_COLUMNS: Final = ("C", "log_loss", "auroc")


@dataclass(frozen=True, slots=True)
class HeadFit:
    """
    What :func:`medimg.fit_head` did.

    Attributes
    ----------
    method : str
        ``"logistic"`` or ``"sgd"``.
    C : float
        The inverse of the penalty.
    tried : tuple of dict
        For each C that was tried its ``log_loss`` and ``auroc`` on data held out: the validation data, or the
        inner folds. Empty where C was given, and no validation data.
    items : int
        How many it was fitted on.
    seconds : float
        How long it took, embedding included.
    """

    method: str
    C: float
    tried: tuple[dict[str, Any], ...] = field(repr=False)
    items: int
    seconds: float

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the C that was chosen; None where nothing was held out."""
        return next((row for row in self.tried if row["C"] == self.C), None)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row for each C that was tried."""
        import pandas as pd

        return pd.DataFrame(list(self.tried), columns=list(_COLUMNS))


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
    num_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> HeadFit:
    """
    Fit a classifier's head by logistic regression on embeddings: one pass over the images, no epochs.

    The embeddings are standardized, and the standardization is folded into the head's weights: what the model
    predicts afterwards is the regression's probability. The backbone stays as it is, whether frozen or not.

    Parameters
    ----------
    model : TransferClassifier
        Its head is set in place; it ends in evaluation mode. Bags are pooled by ``pool="mean"`` or ``"max"``.
    train : ImageDataset
        Made by the model's own recipe, of its classes.
    val : ImageDataset, optional
        To choose C by; without a patient in common with `train`. Else inner folds of `train` are used.
    method : {"logistic", "sgd"}
        scikit-learn's ``LogisticRegression``; or the same penalized loss by Adam on batches, for data that
        the former takes too long for.
    C : float or sequence of float, optional
        The inverse of the penalty, or several to choose from by the lowest log loss; by default 13 from
        0.0001 to 100. Values are tried in ascending order until the loss has risen twice.
    inner_folds : int
        Patient-wise, stratified folds; fewer where a class has fewer patients.
    balance : {"loss"} or None
        Whether classes weigh alike.
    cache : path-like, optional
        A folder where embeddings are kept; see :func:`medimg.embed`.
    batch_size, num_workers : int
        Pictures at once; processes that read.
    seed : int
        Of inner folds.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    HeadFit
        The C chosen, and the scores of all.

    Raises
    ------
    TrainingError
        If data and model don't fit, a class has no example or too few patients, a setting is unsound, or the
        model has ``pool="attention"``, whose parameters take training.
    LeakageError
        If a patient is in both data sets.

    Examples
    --------
    >>> fit = medimg.fit_head(model, train, cache="features")  # doctest: +SKIP
    >>> fit  # doctest: +SKIP
    HeadFit(method='logistic', C=0.01, items=2037, seconds=48.1)
    """
    started = time.perf_counter()
    check_choice("method", method, ("logistic", "sgd"))
    check_pooling(model)
    probing = ProbeSearch(
        model.task,
        model.classes,
        method,
        C,
        inner_folds=inner_folds,
        balanced=is_balanced(balance),
        seed=check_whole_number("seed", seed),
    )
    check_data(model, train, val)
    options = {"cache": cache, "batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    data = labeled(model, train, **options)
    chosen = probing.fit(data, None if val is None else labeled(model, val, **options))
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
        "seed": seed,
        "train_items": len(train),
        "val_items": len(val) if val is not None else 0,
        "best": fit.best,
    }
    model.eval()
    return fit


def check_pooling(model: TransferClassifier) -> None:
    """
    Refuse a model whose pooling has parameters.

    Raises
    ------
    TrainingError
        It says how they are trained.
    """
    if model.pool == "attention":
        raise TrainingError(
            'pool="attention" has parameters that no regression fits: train them with '
            'medimg.fine_tune(model, train, head_epochs=10, epochs=0), or use pool="mean" or "max"'
        )


def is_balanced(balance: object) -> bool:
    """
    Return whether classes are to weigh alike.

    Raises
    ------
    TrainingError
        If it is something else: nothing is drawn here that a sampler could draw.
    """
    if balance not in ("loss", None):
        raise TrainingError(f'balance is "loss" or None where a head is fitted; found {balance!r}')
    return balance == "loss"


def labeled(model: TransferClassifier, dataset: LabeledDataset, **options: Any) -> Labeled:
    """Return one embedding for each item, bags pooled, with labels and patients."""
    features = item_features(model, dataset, **options)
    return Labeled(features.pooled(model.pool).numpy(), np.asarray(dataset.labels), dataset.patients)


def _set_head(model: TransferClassifier, fit: LinearFit) -> None:
    """Give a model's head the weights of a regression."""
    with torch.no_grad():
        weight = torch.from_numpy(fit.weight)
        model.head.weight.copy_(weight.view_as(model.head.weight))
        if model.head.bias is not None:
            model.head.bias.copy_(torch.from_numpy(fit.bias))
