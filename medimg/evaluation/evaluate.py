"""Evaluating a model on images it has not seen."""

from __future__ import annotations

import hashlib
import platform
import secrets
from datetime import UTC, datetime
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from medimg import __version__
from medimg._public import set_module
from medimg.data.identifiers import keyed_hash
from medimg.data.leakage.check_leaks import OnLeak
from medimg.data.protocols import EvaluationDataset, Model
from medimg.errors import DatasetError, LeakageError
from medimg.evaluation.aggregation import Unit, check_pair, check_units, make_units, thresholds_of
from medimg.evaluation.report.cautions import ClassCount, describe_constant_predictions, list_cautions
from medimg.evaluation.report.data_flow import count_data_flow
from medimg.evaluation.report.example_images import choose_images
from medimg.evaluation.report.report import Report
from medimg.evaluation.subgroups import Subgroups, few_in_subgroups, named_groups, subgroup_table
from medimg.metrics.classification import Support
from medimg.metrics.curves import curves_of
from medimg.metrics.intervals import IntervalMethod, check_intervals, estimates
from medimg.metrics.units import THRESHOLD, ScoredUnits

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["evaluate", "facts_of", "notes_on_seen"]


def facts_of(model: Model) -> dict[str, Any]:
    """
    Collect what is known of a model.

    Parameters
    ----------
    model : TransferClassifier
        The model.

    Returns
    -------
    dict
        Fit for JSON: ``model`` (backbone, name and hash of the weights it started from, task, pooling, number
        of parameters, digest), ``training`` (the settings, None where it was not trained), ``calibration``
        and ``ranges`` (what :func:`medimg.calibrate` and :func:`medimg.fine_tune` left in it, or None).
    """
    weights = None if model.weights_name is None else PurePath(model.weights_name).name
    known: dict[str, Any] = {"backbone": model.backbone_name, "weights": weights, "task": model.task}
    # the only place where a model may lack what a TransferClassifier has
    sha256, pool, ranges, calibration = (
        getattr(model, name, None) for name in ("weights_sha256", "pool", "training_ranges", "calibration")
    )
    known |= {"weights SHA-256": sha256} if sha256 else {}
    known |= {"pool": pool} if pool else {}
    if hasattr(model, "state_dict"):
        known |= _of_parameters(model)
    return {
        "model": known,
        "training": getattr(model, "training_summary", None),
        "ranges": None if ranges is None else ranges.to_dict(),
        "calibration": None if calibration is None else _calibration(calibration),
    }


def _of_parameters(model: Any) -> dict[str, Any]:
    from medimg.models.digest import model_digest

    return {"parameters": sum(p.numel() for p in model.parameters()), "digest": model_digest(model)}


def _calibration(calibration: Any) -> dict[str, Any]:
    return {**calibration.to_dict(), "outliers": calibration.outliers is not None}


_VAL: Final = (
    "Validation data are among what was evaluated ({}): they chose the epoch or the calibration of the "
    "model, and score better by what that choice gained."
)
_TARGET: Final = (
    "The model was adapted to some of what was evaluated ({}), without the labels: the scores are not those "
    "on images that come later."
)
_UNKNOWN: Final = (
    "{:,} series that the model was trained on can't be told from others, as they were on no disk: make sure "
    "that none of them was evaluated."
)


def notes_on_seen(model: Model, dataset: EvaluationDataset, on_leak: OnLeak) -> tuple[str, ...]:
    """
    Say what of a data set a model has seen before.

    Parameters
    ----------
    model : TransferClassifier
        Or what stands for one, and has seen nothing.
    dataset : ImageDataset
        To be evaluated.
    on_leak : {"raise", "report"}
        Whether training images are an error.

    Returns
    -------
    tuple of str
        Sentences for the report.

    Raises
    ------
    LeakageError
        If the model was trained on any of it, and that is an error.
    DatasetError
        If `on_leak` is unknown.
    """
    if on_leak not in get_args(OnLeak):
        raise DatasetError(f'on_leak is "raise" or "report"; found {on_leak!r}')
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
                f"the model was trained on {found} of the data to evaluate, and its scores would tell how "
                "well it remembers them: evaluate on a side of medimg.split(dataset) that it has not seen. "
                '(on_leak="report" scores it all the same, with a caution in the report.)'
            )
        notes.append(
            f"The model was trained on {found} of what was evaluated: the scores tell how well it remembers "
            "them, and nothing of how good it is."
        )
    if shared.any("val"):
        notes.append(_VAL.format(count_words(shared, "val")))
    if shared.any("target"):
        notes.append(_TARGET.format(count_words(shared, "target")))
    if seen.unknown:
        notes.append(_UNKNOWN.format(seen.unknown))
    return tuple(notes)


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
    Score a model on a dataset, with intervals that resample whole patients.

    Parameters
    ----------
    model : TransferClassifier
        The model.
    dataset : ImageDataset
        Images with labels that the model was not trained on.
    unit : {"patient", "series", "image"}
        What is scored. The probabilities of a unit are the mean of those of its images; their labels must
        agree. What is predicted is the most probable class, or the labels from 0.5 on, unless the model has
        operating points (:func:`medimg.calibrate`).
    ci : float
        Share of the resamples between the ends of each interval, in (0, 1).
    ci_method : {"auto", "bootstrap", "delong"}
        How the intervals of the AUROC of a class are found: by DeLong's variance where each patient has one
        unit, else by resampling patients, as all others are. "delong" refuses what is not independent.
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
    subgroups : str, sequence of str, or mapping, optional
        Groups of patients to score by themselves. Names: "sex" and "age" (in bands) from the files,
        "scanner", "site", "modality", "domain" (the table's), or a DICOM keyword; a mapping of names gives
        each a rule instead: a value for each item, a mapping of patients, or a function of a
        :class:`medimg.Series`.
        Groups of fewer than 5 patients are put together, and not shown if they still are so few.
    saliency : bool
        Whether the pictures of the report show where the model found what it predicted; see
        :func:`medimg.explain`.
    on_leak : {"raise", "report"}
        Whether images that the model was trained on are an error, or a caution in the report. Images that
        chose its epoch or its calibration, and those it was adapted to, always are a caution.

    Returns
    -------
    Report
        Metrics, confusion matrix, predictions, pictures and provenance.

    Raises
    ------
    DatasetError
        If the dataset is empty or does not fit the model, ``unit``, the labels or the subgroups don't fit the
        dataset, or ``ci``, ``ci_method``, ``n_resamples``, ``seed`` or ``salt`` can't be.
    LeakageError
        If the model was trained on some of the images; of a model that was trained in this process, on
        others of the same patients.
    TrainingError
        If what the model gives is no probability.

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
    key = _class_key(salt)
    check_pair(model, dataset)
    check_units(dataset, unit)
    of_items = named_groups(dataset, subgroups)
    known = notes_on_seen(model, dataset, on_leak)
    probabilities = model.predict_proba(dataset, batch_size=batch_size, progress=progress)
    thresholds = thresholds_of(model)
    units = make_units(dataset, probabilities, unit, thresholds)
    classes = tuple(dataset.classes)
    support = Support.of(units.truth, dataset.task, classes)
    settings: dict[str, Any] = {"ci": ci, "n_resamples": n_resamples, "seed": seed, "method": ci_method}
    metrics = estimates(units, support, **settings)
    groups = subgroup_table(of_items, units, dataset.task, classes, **settings) if of_items else None
    subjects = _subjects(units.patient_names, key)
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
        notes=(
            *known,
            *list_cautions(
                counts=counts,
                n_patients=units.n_patients,
                n_unknown=getattr(dataset, "n_unknown_patients", 0),
                metrics=metrics,
                n_resamples=n_resamples,
            ),
            *describe_constant_predictions(units.predicted, classes, dataset.task),
            *([] if groups is None else few_in_subgroups(groups)),
        ),
        provenance=_provenance(
            model,
            data=count_data_flow(dataset, units),
            unit=unit,
            item=dataset.unit,
            ci=float(ci),
            ci_method=ci_method,
            n_resamples=int(n_resamples),
            seed=int(seed),
            threshold=THRESHOLD,
            operating_points=None if thresholds is None else list(thresholds),
        ),
        pictures=choose_images(
            dataset,
            units,
            subjects,
            recipe=model.preprocess,
            seed=seed,
            explained_by=model if saliency else None,
        ),
        subgroups=groups,
        curves=curves_of(units.truth, units.probabilities, support),
    )


def _confusion(units: ScoredUnits, task: str) -> NDArray[np.int64]:
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


def _class_key(salt: object) -> bytes:
    if salt is None:
        return secrets.token_bytes(32)
    if not isinstance(salt, str) or not salt:
        raise DatasetError(
            f"salt is a secret text of at least one letter, or None for a random one; found a "
            f"{type(salt).__name__}{'' if salt else ' of none'}."
        )
    return hashlib.sha256(salt.encode()).digest()


def _subjects(patients: tuple[str, ...], key: bytes) -> tuple[str, ...]:
    """Hash each patient with a secret, so that knowing the identifiers does not give the subjects."""
    return tuple(map(keyed_hash(key), patients))


def _counts(units: ScoredUnits, classes: tuple[str, ...]) -> tuple[ClassCount, ...]:
    return tuple(
        ClassCount(
            name=name,
            patients=len(np.unique(units.patient[units.truth[:, k]])),
            units=int(units.truth[:, k].sum()),
            images=int(units.n_items[units.truth[:, k]].sum()),
        )
        for k, name in enumerate(classes)
    )


def _table(
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


def _provenance(model: Model, *, data: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts_of(model),
        "data": data,
        "recipe": model.preprocess.to_dict(),
        "recipe_fingerprint": model.preprocess.fingerprint,
        "evaluation": settings,
        "versions": {"medimg": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
    }
