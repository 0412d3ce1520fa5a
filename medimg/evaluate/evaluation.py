"""Evaluating a model on images it has not seen."""

import hashlib
import platform
import secrets
from datetime import UTC, datetime
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimg import __version__
from medimg.errors import DatasetError
from medimg.evaluate._protocols import Dataset, Model
from medimg.evaluate.bootstrap import Estimate, interval, resample
from medimg.evaluate.metrics import Support, estimate
from medimg.evaluate.notes import ClassCount, cautions
from medimg.evaluate.pictures import choose_pictures
from medimg.evaluate.report import Report
from medimg.evaluate.units import THRESHOLD, Unit, Units, check_pair, make_units

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    dataset: Dataset,
    *,
    unit: Unit = "patient",
    ci: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
    salt: str | None = None,
) -> Report:
    """
    Score a model on a dataset, with intervals that resample whole patients.

    Parameters
    ----------
    model : TransferClassifier
        The model.
    dataset : ImageDataset
        Images with labels that the model was not trained on.
    unit : {"patient", "series", "image"}
        What is scored. The probabilities of a unit are the mean of those of its images; their labels must
        agree.
    ci : float
        Share of the resamples between the ends of each interval, in (0, 1).
    n_resamples : int
        How many bootstrap resamples of the patients.
    seed : int
        Of the resamples and of the choice of pictures.
    batch_size : int
        Images given to the model at once.
    progress : bool
        Whether to show a progress bar.
    salt : str, optional
        Secret that the patients are hashed with; the same salt gives the same subjects in another report.
        Random and forgotten by default.

    Returns
    -------
    Report
        Metrics, confusion matrix, predictions, pictures and provenance.

    Raises
    ------
    DatasetError
        If the dataset is empty or does not fit the model, ``unit`` or the labels don't fit the dataset, or
        ``ci`` or ``n_resamples`` is out of range.
    TrainingError
        If what the model gives is no probability.

    Notes
    -----
    The metrics are defined in ``medimg.evaluate.metrics``, the intervals in
    ``medimg.evaluate.bootstrap``.

    Examples
    --------
    >>> report = medimg.evaluate(model, test)                                 # doctest: +SKIP
    >>> report.metrics["auroc"]                                               # doctest: +SKIP
    Estimate(value=0.981, low=0.962, high=0.994, dropped=0)
    """
    _check_settings(ci, n_resamples)
    check_pair(model, dataset)
    probabilities = model.predict_proba(dataset, batch_size=batch_size, progress=progress)
    units = make_units(dataset, probabilities, unit)
    classes = tuple(dataset.classes)
    support = Support.of(units.truth, dataset.task, classes)
    metrics = _metrics(units, support, ci=ci, n_resamples=n_resamples, seed=seed)
    subjects = _subjects(units.patient_names, salt)
    counts = _counts(units, classes)
    return Report(
        metrics=metrics,
        confusion=_confusion(units, dataset.task),
        classes=classes,
        task=dataset.task,
        unit=unit,
        n_units=len(units),
        n_patients=units.n_patients,
        n_images=len(dataset),
        predictions=_table(units, subjects, classes, dataset.task),
        counts=counts,
        notes=cautions(
            counts=counts,
            n_patients=units.n_patients,
            n_unknown=getattr(dataset, "n_unknown_patients", 0),
            metrics=metrics,
            n_resamples=n_resamples,
        ),
        provenance=_provenance(
            model,
            unit=unit,
            item=dataset.unit,
            ci=ci,
            n_resamples=n_resamples,
            seed=seed,
            threshold=THRESHOLD,
        ),
        pictures=choose_pictures(dataset, units, subjects, recipe=model.preprocess, seed=seed),
    )


def _check_settings(ci: float, n_resamples: int) -> None:
    if not 0 < ci < 1:
        raise DatasetError(f"ci={ci} was asked for; expected a number between 0 and 1, such as 0.95.")
    if n_resamples < 1:
        raise DatasetError(
            f"n_resamples={n_resamples} was asked for; expected at least 1, better 1000 or more."
        )


def _metrics(
    units: Units, support: Support, *, ci: float, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    values = estimate(units.truth, units.predicted, units.probabilities, support)
    if units.n_patients < 2:  # every resample would be the same patient
        return {name: Estimate(value, float("nan"), float("nan")) for name, value in values.items()}
    samples = resample(units, support, n_resamples=n_resamples, seed=seed)
    return {name: interval(value, samples[name], ci) for name, value in values.items()}


def _confusion(units: Units, task: str) -> NDArray[np.int64]:
    from sklearn.metrics import confusion_matrix

    n_classes = units.truth.shape[1]
    if task == "multiclass":
        pairs = [(units.truth.argmax(axis=1), units.predicted.argmax(axis=1))]
        labels = range(n_classes)
    else:
        pairs = [(units.truth[:, k], units.predicted[:, k]) for k in range(n_classes)]
        labels = range(2)
    matrices = [confusion_matrix(true, predicted, labels=list(labels)) for true, predicted in pairs]
    return np.asarray(matrices[0] if task == "multiclass" else np.stack(matrices), dtype=np.int64)


def _subjects(patients: tuple[str, ...], salt: str | None) -> tuple[str, ...]:
    """Hash each patient with a secret, so that knowing the identifiers does not give the subjects."""
    key = secrets.token_bytes(32) if salt is None else hashlib.sha256(salt.encode()).digest()
    return tuple(hashlib.blake2b(name.encode(), key=key, digest_size=6).hexdigest() for name in patients)


def _counts(units: Units, classes: tuple[str, ...]) -> tuple[ClassCount, ...]:
    return tuple(
        ClassCount(
            name=name,
            patients=len(np.unique(units.patient[units.truth[:, k]])),
            units=int(units.truth[:, k].sum()),
            images=int(units.n_items[units.truth[:, k]].sum()),
        )
        for k, name in enumerate(classes)
    )


def _table(units: Units, subjects: tuple[str, ...], classes: tuple[str, ...], task: str) -> "pd.DataFrame":
    import pandas as pd

    columns: dict[str, Any] = {
        "subject": [subjects[p] for p in units.patient],
        "item": units.first_item,
        "n_images": units.n_items,
    }
    if task == "multiclass":
        columns["label"] = [classes[k] for k in units.truth.argmax(axis=1)]
        columns["predicted"] = [classes[k] for k in units.predicted.argmax(axis=1)]
    else:
        columns |= {f"label_{name}": units.truth[:, k].astype(int) for k, name in enumerate(classes)}
        columns |= {f"predicted_{name}": units.predicted[:, k].astype(int) for k, name in enumerate(classes)}
    columns |= {f"p_{name}": units.probabilities[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame(columns)


def _provenance(model: Model, **settings: Any) -> dict[str, Any]:
    weights = None if model.weights_name is None else PurePath(model.weights_name).name
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"backbone": model.backbone_name, "weights": weights, "task": model.task},
        "recipe": model.preprocess.to_dict(),
        "recipe_fingerprint": model.preprocess.fingerprint,
        "evaluation": settings,
        "versions": {"medimg": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
    }
