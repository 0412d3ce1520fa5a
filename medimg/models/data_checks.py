"""Checks that a dataset or source is one that a model takes, the same in every function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg.data.class_names import are_same_classes
from medimg.errors import PreprocessError, TrainingError, also
from medimg.interop.image_object import is_image_object
from medimg.models.input_checks import check_floating
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from medimg.errors import MedimgError

__all__ = [
    "CHECKS",
    "check_dataset",
    "check_images",
    "check_model",
    "check_same_unit",
    "check_source",
]

#: "type": a dataset; "items": at least one; "labels": labeled, with values of the task; "classes" and "task":
#: those of the model, unless the dataset has no labels and needs none; "preprocessing": the model's; "unit":
#: one that the model's pooling can be trained on.
Check: TypeAlias = Literal["type", "items", "labels", "classes", "task", "preprocessing", "unit"]

_SCORING: Final[frozenset[Check]] = frozenset({"type", "items", "labels", "classes", "task", "preprocessing"})

#: The checks of each function that takes a model and data (`predict` and `explain`: sources, not datasets).
CHECKS: Final[Mapping[str, frozenset[Check]]] = {
    **dict.fromkeys(("fine_tune", "fit_head", "lr_find", "cross_validate", "compare"), _SCORING | {"unit"}),
    **dict.fromkeys(("calibrate", "evaluate", "compare_models"), _SCORING),
    "predict_proba": _SCORING - {"labels"},
    **dict.fromkeys(("embed", "domain_shift"), frozenset[Check]({"type", "items", "preprocessing"})),
    **dict.fromkeys(("predict", "explain"), frozenset[Check]({"type"})),
}

_MEMBERS: Final = ("classes", "task", "unit", "preprocess", "patients", "__len__", "__getitem__")
_MODEL_MEMBERS: Final = ("classes", "task", "preprocess")


def check_dataset(
    function: str,
    model: Any,
    data: Any,
    name: str = "the dataset",
    *,
    error: type[MedimgError] = TrainingError,
    preprocess_error: type[MedimgError] | None = None,
) -> None:
    """Raise an error if model and dataset do not pass the checks of a function."""
    checks = CHECKS[function]
    check_model(model, error=error)
    if "unit" in checks and hasattr(model, "members"):
        raise error(
            f"{function} trains a model, and an Ensemble can't be trained; expected a TransferClassifier: "
            "train models, and make an Ensemble of them"
        )
    check_images(data, name, labels="labels" in checks, error=error)
    if "classes" in checks and getattr(data, "is_labeled", True):
        _check_outputs(model, data, name, error)
    check_same_preprocessing(data.preprocess, model.preprocess, name=name, error=preprocess_error or error)
    if "unit" in checks:
        _check_training_unit(model, data, name, error)
    if "labels" in checks:
        _check_labels(data, name, error)


def check_images(
    data: Any, name: str, *, labels: bool = False, error: type[MedimgError] = TrainingError
) -> None:
    """Raise an error for anything but a dataset with items, and with labels if these are needed."""
    _check_type(data, name, error)
    if len(data) == 0:
        raise error(f"{name} has no images; expected at least one: check the split")
    if labels and not getattr(data, "is_labeled", True):
        raise error(
            f"{name} has no labels, which are needed here: make it with label= (images without labels are "
            "for medimg.adapt, medimg.domain_shift, medimg.embed and predict_proba)"
        )


def check_model(model: Any, *, error: type[MedimgError] = TrainingError) -> None:
    """Raise an error for anything that is not a classifier."""
    if hasattr(model, "_orig_mod"):
        raise error(
            "the model is wrapped by torch.compile; expected the TransferClassifier itself: pass the model "
            "that was compiled, and fine_tune(compile=True) to train it faster"
        )
    if any(not hasattr(model, member) for member in _MODEL_MEMBERS):
        raise also(error, TypeError)(
            f"the model is a {type(model).__name__}; expected a TransferClassifier: make one, or read one "
            "from its file with medimg.load(path)"
        )
    if hasattr(model, "backbone"):
        check_floating(model, error=error)


def check_same_unit(
    data: Any, other: Any, names: tuple[str, str], *, error: type[MedimgError] = TrainingError
) -> None:
    """Raise an error if the items of two datasets are not of one unit."""
    if (data.unit == "series") != (other.unit == "series"):
        raise error(
            f"{names[0]} have unit={data.unit!r}, {names[1]} {other.unit!r}; expected the same: make both "
            "with one unit="
        )


def check_source(source: object, function: str, *, error: type[MedimgError] = PreprocessError) -> None:
    """Raise an error if an image source is a table, a dataset or an array, without geometry or headers."""
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset

    if is_image_object(source):
        return
    if hasattr(source, "to_csv") and hasattr(source, "columns"):
        raise error(
            f"{function} takes image files, series or volumes; found a {type(source).__name__}: pass its "
            'column of paths, such as list(table["path"])'
        )
    if isinstance(source, DataLoader):
        source = source.dataset
    if isinstance(source, Dataset) or all(hasattr(source, member) for member in _MEMBERS):
        raise also(error, TypeError)(
            f"{function} takes image files, series or volumes; found a dataset ({type(source).__name__}): "
            "pass its series (dataset.series), or use model.predict_proba(dataset) or medimg.embed(model, "
            "dataset), which take an ImageDataset"
        )
    if isinstance(source, Tensor) or (isinstance(source, np.ndarray) and source.dtype.kind in "biufc"):
        raise also(error, TypeError)(
            f"{function} takes image files, series or volumes; found a {type(source).__name__}: make a "
            "medimg.Volume of it, or call the model on model.preprocess(volume)"
        )


def _check_type(data: Any, name: str, error: type[MedimgError]) -> None:
    if all(hasattr(data, member) for member in _MEMBERS):
        return
    kind = type(data).__name__
    if kind == "SeriesIndex":
        hint = "make a dataset of its folder with ImageDataset.from_folder, label=None if it has no labels"
    elif isinstance(data, list | tuple | Mapping) or hasattr(data, "datasets"):
        hint = "join several datasets with ImageDataset.concat"
    elif hasattr(data, "dataset") and hasattr(data, "indices"):
        hint = "select a part of an ImageDataset with dataset.subset(indices) or medimg.split(dataset)"
    else:
        hint = (
            "make one with ImageDataset.from_folder or from_csv, or select a part of one with "
            "dataset.subset(indices); for image files there is model.predict(sources)"
        )
    raise also(error, TypeError)(f"expected an ImageDataset as {name}; found a {kind}: {hint}")


def _check_outputs(model: Any, data: Any, name: str, error: type[MedimgError]) -> None:
    """Raise an error if classes or task are not the model's."""
    if not are_same_classes(data.classes, model.classes):
        raise error(
            f"{name} has classes={list(data.classes)}, the model {list(model.classes)}; expected the same, "
            "in the same order: make the dataset with classes=model.classes"
        )
    if data.task != model.task:
        raise error(f"{name} has task={data.task!r}, the model {model.task!r}; expected the same")


def _check_training_unit(model: Any, data: Any, name: str, error: type[MedimgError]) -> None:
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise error(
            "the model has parameters made under torch.inference_mode(), which can't be trained: make it, or "
            "move it to its device, outside of that"
        )
    if data.unit == "series" and model.pool == "none":
        raise error(
            f'{name} has bags (unit="series"), and a model with pool="none" takes images: use unit="image", '
            'or pool="mean", "max" or "attention"'
        )
    if data.unit != "series" and model.pool == "attention":
        raise error(
            f'pool="attention" needs whole series, and {name} has single images, with which its attention '
            'would stay random: use unit="series", or pool="mean" or "max"'
        )


def _check_labels(data: Any, name: str, error: type[MedimgError]) -> None:
    """Raise an error if labels are not (n,) class indices, or (n, K) indicators."""
    labels, outputs = np.asarray(data.labels), len(data.classes)
    multilabel = data.task == "multilabel"
    shape = (len(data), outputs) if multilabel else (len(data),)
    if labels.shape != shape:
        raise error(f"the labels of {name} have shape {labels.shape}; expected {shape}: correct the labels")
    known = (0, 1) if multilabel else np.arange(outputs)
    if not np.isin(labels, known).all():
        raise error(
            f"the labels of {name} range from {labels.min()} to {labels.max()}; expected whole numbers from "
            f"0 to {len(known) - 1}: correct the labels"
        )
