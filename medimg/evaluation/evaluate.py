"""Evaluation of a model on images that it was not trained on."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast, get_args

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.data.leakage.check_leaks import OnLeak
from medimg.data.protocols import EvaluationDataset, Model
from medimg.errors import DatasetError, LeakageError, also
from medimg.evaluation.aggregation import Unit, check_pair, check_units, get_thresholds
from medimg.evaluation.build_report import NOT_CHECKED, ReportSettings, build_report
from medimg.evaluation.report.example_images import to_pixels
from medimg.evaluation.report.report import Report
from medimg.evaluation.subgroups import Subgroups, find_subgroups
from medimg.executors.executor_map import check_executor
from medimg.metrics.intervals import IntervalMethod
from medimg.models.classifier import TransferClassifier
from medimg.models.data_checks import check_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.protocols import Recipe
    from medimg.evaluation._external_model import Outputs

__all__ = ["as_model", "describe_model", "evaluate", "list_training_overlap"]


@set_module("medimg")
def evaluate(
    model: Model | Callable[[Any], Any],
    dataset: EvaluationDataset,
    *,
    classes: Sequence[object] | None = None,
    outputs: Outputs | None = None,
    preprocess: Recipe | None = None,
    device: str | torch.device | None = None,
    unit: Unit = "patient",
    ci: float = 0.95,
    ci_method: IntervalMethod = "auto",
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
    salt: str | None = None,
    subgroups: Subgroups | None = None,
    saliency: bool = False,
    on_leak: OnLeak = "raise",
) -> Report:
    """
    Evaluate a model on a dataset, with confidence intervals that resample patients.

    Parameters
    ----------
    model : TransferClassifier, nn.Module or callable
        Model to evaluate. A module or function of others takes batches of the dataset's images, (B, C, H, W)
        float32 (of a dataset of series, one series at a time, (1, N, C, H, W)), and returns a tensor or array
        (B, K), of two classes also (B,) or (B, 1) for the second. A module is in evaluation mode meanwhile;
        one that a function calls is not.
    dataset : ImageDataset
        Images with labels that the model was not trained on.
    classes : sequence of str, optional
        Classes in the order of the outputs; only for a module or function, which needs them.
    outputs : {"logits", "probabilities"}, optional
        What a module or function returns; only for these, which need it. Logits pass through a softmax, or a
        sigmoid for a multilabel dataset or a single output.
    preprocess : Preprocess, optional
        Preprocessing that a module or function was trained with, which must be that of the dataset; by
        default taken from it.
    device : str or torch.device, optional
        Device of a module or function during the evaluation; by default where a module is, and the CPU for a
        function.
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
    workers : int, optional
        Number of processes that read the images, by default none; or number of parts that an executor works
        on at once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the images and run a TransferClassifier, whole series at once; see
        :doc:`/scale`.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.
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
        If the dataset is empty or does not match the model, a module or function comes without ``classes`` or
        ``outputs``, ``unit``, the labels or the subgroups don't match
        the dataset, or ``ci``, ``ci_method``, ``n_resamples``, ``seed`` or ``salt`` is invalid.
    LeakageError
        If the model was trained on some of the images, or, if it was trained in this process, on other images
        of the same patients.
    TrainingError
        If the model's outputs are not probabilities.
    ExecutorError
        If the executor can't run tasks, or a series takes down the workers that read it.

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
    settings = ReportSettings(
        unit=unit, ci=ci, ci_method=ci_method, n_resamples=n_resamples, seed=seed, salt=salt
    )
    model = as_model(
        model,
        dataset,
        classes=classes,
        outputs=outputs,
        preprocess=preprocess,
        device=device,
        saliency=saliency,
    )
    check_pair(model, dataset)
    check_units(dataset, unit)
    groups = find_subgroups(dataset, subgroups)
    overlap = list_training_overlap(model, dataset, on_leak)
    return build_report(
        dataset,
        _predict(model, dataset, executor, batch_size=batch_size, workers=workers, progress=progress),
        settings,
        groups=groups,
        facts=describe_model(model),
        thresholds=get_thresholds(model),
        notes=overlap,
        get_pixels=lambda item: to_pixels(dataset[item][0], model.preprocess),
        explained_by=model if saliency else None,
    )


def _predict(
    model: Model, dataset: EvaluationDataset, executor: Executor | None, **options: Any
) -> NDArray[np.float64]:
    if check_executor(executor) is None:
        return model.predict_proba(dataset, **options)
    if not isinstance(model, TransferClassifier):
        raise also(DatasetError, TypeError)(
            f"executor= needs a TransferClassifier, which can be sent; found a {type(model).__name__}: leave "
            "executor out, and pass workers= processes"
        )
    images: Any = dataset
    return model.predict_proba(images, executor=executor, **options)


def as_model(
    model: Model | Callable[[Any], Any],
    dataset: EvaluationDataset,
    *,
    classes: Sequence[object] | None,
    outputs: object,
    preprocess: Recipe | None,
    device: object,
    saliency: bool,
) -> Model:
    """Return a model that says what it predicts; DatasetError if one says it and the arguments do too."""
    from medimg.evaluation._external_model import ExternalModel, is_external

    given = {"classes": classes, "outputs": outputs, "preprocess": preprocess, "device": device}
    if not is_external(model):
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise DatasetError(
                f"found {', '.join(named)} with a {type(model).__name__}, which has its own; expected these "
                "with a torch module or function only: leave them out (model.to(device) moves a model)"
            )
        return cast("Model", model)
    if saliency:
        raise also(DatasetError, TypeError)(
            f"saliency=True needs a TransferClassifier; found a {type(model).__name__}: leave it out"
        )
    check_images(dataset, "the dataset", labels=True, error=DatasetError)
    return ExternalModel.make(
        model,
        classes=classes,
        outputs=outputs,
        task=dataset.task,
        preprocess=dataset.preprocess if preprocess is None else preprocess,
        device=device,
    )


def _is_foreign(model: Model) -> bool:
    """Whether a model was made elsewhere, so that its training and calibration are unknown."""
    from medimg.evaluation._external_model import ExternalModel

    return isinstance(model, ExternalModel)


def list_training_overlap(model: Model, dataset: EvaluationDataset, on_leak: OnLeak) -> tuple[str, ...]:
    """Describe which images of a dataset a model was trained with; LeakageError if that is not allowed."""
    check_choice("on_leak", on_leak, get_args(OnLeak), error=DatasetError)
    if _is_foreign(model):
        return (NOT_CHECKED,)
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


def describe_model(model: Model) -> dict[str, Any]:
    """Return what is known of a model and its preprocessing, serializable as JSON."""
    recipe = {"recipe": model.preprocess.to_dict(), "recipe_fingerprint": model.preprocess.fingerprint}
    # a model may lack these attributes of a TransferClassifier
    sha256, pool, ranges, calibration, module = (
        getattr(model, name, None)
        for name in ("weights_sha256", "pool", "training_ranges", "calibration", "module")
    )
    known: dict[str, Any] = {"backbone": model.backbone_name}
    if _is_foreign(model):
        known["task"] = model.task
        if module is not None:
            known["parameters"] = sum(p.numel() for p in module.parameters())
        return {"model": known, **recipe}
    known["weights"] = None if model.weights_name is None else PurePath(model.weights_name).name
    before = [PurePath(str(one["name"])).name for one in getattr(model, "weights_chain", ())[1:]]
    known |= {"weights trained from": ", ".join(before)} if before else {}
    known["task"] = model.task
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
        **recipe,
    }
