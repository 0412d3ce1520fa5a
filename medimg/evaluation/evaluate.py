"""Evaluation of a model on images that it was not trained on."""

from __future__ import annotations

import hashlib
import platform
import secrets
from datetime import UTC, datetime
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from medimg import __version__
from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core.content_hash import keyed_hash
from medimg.data.leakage.check_leaks import OnLeak
from medimg.data.protocols import EvaluationDataset, Model
from medimg.errors import DatasetError, LeakageError
from medimg.evaluation.aggregation import Unit, check_pair, check_units, get_thresholds, make_units
from medimg.evaluation.report.cautions import ClassCount, describe_constant_predictions, list_cautions
from medimg.evaluation.report.data_flow import count_data_flow
from medimg.evaluation.report.example_images import choose_images
from medimg.evaluation.report.report import Report
from medimg.evaluation.subgroups import Subgroups, find_subgroups, list_small_subgroups, score_subgroups
from medimg.metrics.classification import Support
from medimg.metrics.curves import compute_curves
from medimg.metrics.intervals import IntervalMethod, check_intervals, estimate_metrics
from medimg.metrics.units import THRESHOLD, ScoredUnits

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["evaluate", "list_training_overlap"]


@set_module("medimg")
def evaluate(
    model: Model,
    dataset: EvaluationDataset,
    *,
    unit: Unit = "patient",
    ci: float = 0.95,
    ci_method: IntervalMethod = "auto",
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
    salt: str | None = None,
    subgroups: Subgroups | None = None,
    saliency: bool = False,
    on_leak: OnLeak = "raise",
) -> Report:
    """
    Evaluate a model on a dataset, with confidence intervals that resample patients.

    Parameters
    ----------
    model : TransferClassifier
        Model to evaluate.
    dataset : ImageDataset
        Images with labels that the model was not trained on.
    unit : {"patient", "series", "image"}
        Unit of the scores. The probabilities of a unit are the mean of those of its images; their labels
        must be the same. The prediction is the most probable class, or all labels with a probability of 0.5
        or more, unless the model has operating points (:func:`medimg.calibrate`).
    ci : float
        Confidence level of the intervals, in (0, 1).
    ci_method : {"auto", "bootstrap", "delong"}
        Method for the intervals of the AUROC of a class: "auto" uses DeLong's variance if each patient has
        one unit, else the bootstrap over patients, which all other metrics use. "delong" raises an error if
        units are not independent.
    n_resamples : int
        Number of bootstrap resamples of the patients.
    seed : int
        Seed for resampling and for the choice of example images.
    batch_size : int
        Number of images per forward pass.
    progress : bool
        Whether to show a progress bar.
    salt : str, optional
        Secret for hashing patients; the same salt gives the same subjects in another report. By default
        random and not stored.
    subgroups : str, sequence of str, or mapping, optional
        Groups of patients that are scored separately. Names: "sex" and "age" (in bands) from the headers,
        "scanner", "site", "modality", "domain" (from the table), or a DICOM keyword; a mapping gives each
        name a rule instead: a value for each item, a mapping of patients, or a function of a
        :class:`medimg.Series`.
        Groups of fewer than 5 patients are merged, and not shown if they still are so few.
    saliency : bool
        Whether the example images of the report have saliency maps; see :func:`medimg.explain`.
    on_leak : {"raise", "report"}
        Whether images that the model was trained on raise an error or are reported as a limitation. Images
        used to choose its epoch or its calibration, and those it was adapted to, are always reported.

    Returns
    -------
    Report
        Metrics, confusion matrix, predictions, example images and provenance.

    Raises
    ------
    DatasetError
        If the dataset is empty or does not match the model, ``unit``, the labels or the subgroups don't match
        the dataset, or ``ci``, ``ci_method``, ``n_resamples``, ``seed`` or ``salt`` is invalid.
    LeakageError
        If the model was trained on some of the images, or, if it was trained in this process, on other images
        of the same patients.
    TrainingError
        If the model's outputs are not probabilities.

    Notes
    -----
    The metrics are defined in ``medimg.metrics.classification``, the intervals in
    ``medimg.metrics.bootstrap`` and ``medimg.metrics.delong``.

    Examples
    --------
    >>> report = medimg.evaluate(model, test)                                 # doctest: +SKIP
    >>> report.metrics["auroc"]                                               # doctest: +SKIP
    Estimate(value=0.981, low=0.962, high=0.994, dropped=0)
    """
    check_intervals(ci, n_resamples, ci_method, seed)
    hash_patient = keyed_hash(_make_key(salt))
    check_pair(model, dataset)
    check_units(dataset, unit)
    groups = find_subgroups(dataset, subgroups)
    overlap = list_training_overlap(model, dataset, on_leak)

    probabilities = model.predict_proba(dataset, batch_size=batch_size, progress=progress)
    thresholds = get_thresholds(model)
    units = make_units(dataset, probabilities, unit, thresholds)

    classes, task = tuple(dataset.classes), dataset.task
    support = Support.count(units.truth, task, classes)
    settings: dict[str, Any] = {"ci": ci, "n_resamples": n_resamples, "seed": seed, "method": ci_method}
    metrics = estimate_metrics(units, support, **settings)
    table = score_subgroups(groups, units, task, classes, **settings) if groups else None

    subjects = tuple(map(hash_patient, units.patient_names))
    counts = tuple(
        ClassCount(
            name=name,
            patients=len(np.unique(units.patient[units.truth[:, k]])),
            units=int(units.truth[:, k].sum()),
            images=int(units.n_items[units.truth[:, k]].sum()),
        )
        for k, name in enumerate(classes)
    )
    notes = (
        *overlap,
        *list_cautions(
            counts=counts,
            n_patients=units.n_patients,
            n_unknown=getattr(dataset, "n_unknown_patients", 0),
            metrics=metrics,
            n_resamples=n_resamples,
        ),
        *describe_constant_predictions(units.predicted, classes, task),
        *([] if table is None else list_small_subgroups(table)),
    )
    provenance = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **_describe_model(model),
        "data": count_data_flow(dataset, units),
        "recipe": model.preprocess.to_dict(),
        "recipe_fingerprint": model.preprocess.fingerprint,
        "evaluation": {
            "unit": unit,
            "item": dataset.unit,
            "ci": float(ci),
            "ci_method": ci_method,
            "n_resamples": int(n_resamples),
            "seed": int(seed),
            "threshold": THRESHOLD,
            "operating_points": None if thresholds is None else list(thresholds),
        },
        "versions": {"medimg": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
    }
    explained_by = model if saliency else None
    return Report(
        metrics=metrics,
        confusion=_count_confusion(units, task),
        classes=classes,
        task=task,
        unit=unit,
        n_units=len(units),
        n_patients=units.n_patients,
        n_images=len(dataset),
        predictions=_tabulate_predictions(units, subjects, classes, task),
        counts=counts,
        notes=notes,
        provenance=provenance,
        pictures=choose_images(
            dataset, units, subjects, recipe=model.preprocess, seed=seed, explained_by=explained_by
        ),
        subgroups=table,
        curves=compute_curves(units.truth, units.probabilities, support),
    )


def list_training_overlap(model: Model, dataset: EvaluationDataset, on_leak: OnLeak) -> tuple[str, ...]:
    """Describe which images of a dataset a model was trained with; LeakageError if that is not allowed."""
    check_choice("on_leak", on_leak, get_args(OnLeak), error=DatasetError)
    seen: Any = getattr(model, "images_seen", None)
    if seen is None:
        return ()
    from medimg.models.training_images import count_words

    shared = seen.shared(dataset)
    notes = []
    if shared.any("train"):
        found = count_words(shared, "train")
        if on_leak == "raise":
            raise LeakageError(
                f"the model was trained on {found} of the data to evaluate, so that its scores would measure "
                "how well it remembers them: evaluate on a subset of medimg.split(dataset) that it was not "
                'trained on (on_leak="report" scores it anyway and reports the overlap)'
            )
        notes.append(
            f"The model was trained on {found} of the evaluation data: the scores measure how well it "
            "remembers them, not how good it is."
        )
    if shared.any("val"):
        notes.append(
            f"Validation data are among the evaluation data ({count_words(shared, 'val')}): they were used "
            "to choose the epoch or to calibrate the model, so that the scores are optimistic."
        )
    if shared.any("target"):
        notes.append(
            f"The model was adapted to some of the evaluation data ({count_words(shared, 'target')}), "
            "without their labels: the scores are not those on future images."
        )
    if seen.unknown:
        notes.append(
            f"{seen.unknown:,} series that the model was trained on can't be identified, as they were not on "
            "a disk: make sure that none of them was evaluated."
        )
    return tuple(notes)


def _describe_model(model: Model) -> dict[str, Any]:
    """Return model, training settings, training distribution and calibration, serializable as JSON."""
    weights = None if model.weights_name is None else PurePath(model.weights_name).name
    known: dict[str, Any] = {"backbone": model.backbone_name, "weights": weights, "task": model.task}
    # a model may lack these attributes of a TransferClassifier
    sha256, pool, ranges, calibration = (
        getattr(model, name, None) for name in ("weights_sha256", "pool", "training_ranges", "calibration")
    )
    known |= {"weights SHA-256": sha256} if sha256 else {}
    known |= {"pool": pool} if pool else {}
    if hasattr(model, "state_dict"):
        from medimg.models.digest import model_digest

        parameters: Any = model
        known["parameters"] = sum(p.numel() for p in parameters.parameters())
        known["digest"] = model_digest(parameters)
    return {
        "model": known,
        "training": getattr(model, "training_summary", None),
        "ranges": None if ranges is None else ranges.to_dict(),
        "calibration": None
        if calibration is None
        else {**calibration.to_dict(), "outliers": calibration.outliers is not None},
    }


def _count_confusion(units: ScoredUnits, task: str) -> NDArray[np.int64]:
    """Return the confusion matrix (K, K), or one of each label (K, 2, 2)."""
    from sklearn.metrics import confusion_matrix

    n_classes = units.truth.shape[1]
    if task == "multiclass":
        pair = units.truth.argmax(axis=1), units.predicted.argmax(axis=1)
        return np.asarray(confusion_matrix(*pair, labels=list(range(n_classes))), dtype=np.int64)
    matrices = [
        confusion_matrix(units.truth[:, k], units.predicted[:, k], labels=[0, 1]) for k in range(n_classes)
    ]
    return np.asarray(np.stack(matrices), dtype=np.int64)


def _make_key(salt: object) -> bytes:
    """Return the key that patients are hashed with, so that their identifiers don't give the subjects."""
    if salt is None:
        return secrets.token_bytes(32)
    if not isinstance(salt, str) or not salt:
        raise DatasetError(
            "salt must be a secret text of at least one character, or None for a random one; found "
            f"{'an empty text' if salt == '' else f'a {type(salt).__name__}'}"
        )
    return hashlib.sha256(salt.encode()).digest()


def _tabulate_predictions(
    units: ScoredUnits, subjects: tuple[str, ...], classes: tuple[str, ...], task: str
) -> pd.DataFrame:
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
