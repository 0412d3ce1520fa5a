"""Choosing the images that a report shows, and turning what the model saw back into pictures."""

from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medimg.data.protocols import EvaluationDataset, Model, Recipe
from medimg.metrics.units import ScoredUnits

__all__ = ["ExampleImage", "choose_images", "class_names", "to_pixels"]

PICTURES_PER_KIND = 6
"""At most so many right ones and so many wrong ones are shown."""


@dataclass(frozen=True, eq=False)
class ExampleImage:
    """
    An image that the model was given, with what it said of the unit the image belongs to.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (H, W) or (H, W, 3)
        Gray, or color where the image itself is in color.
    right : bool
        Whether everything that was predicted is true.
    subject : str
        Salted hash of the patient.
    label, predicted : str
        Names of the classes.
    confidence : str
        Probability of the predicted class; multilabel: of the label with the largest error, and its name.
    item : int
        Position in the dataset.
    overlay : ndarray of uint8, shape (rows, columns, 3), or None
        The same image, or the slice of the series that speaks most for it, with the heat of what was
        predicted; see :func:`medimg.explain`. None where it was not asked for.
    explained : str
        The class that the heat speaks for.
    """

    pixels: NDArray[np.uint8]
    right: bool
    subject: str
    label: str
    predicted: str
    confidence: str
    item: int
    overlay: NDArray[np.uint8] | None = None
    explained: str = ""


def choose_images(
    dataset: EvaluationDataset,
    units: ScoredUnits,
    subjects: tuple[str, ...],
    *,
    recipe: Recipe,
    seed: int,
    explained_by: Model | None = None,
) -> tuple[ExampleImage, ...]:
    """
    Choose the worst wrong units and some right ones, one of each patient.

    Of a wrong unit the image with the largest error is shown, of a right one that with the smallest. Right
    ones are drawn at random, the classes in turn.

    Parameters
    ----------
    dataset : ImageDataset
        Gives the images.
    units : ScoredUnits
        What was scored.
    subjects : tuple of str
        Salted hash of each patient.
    recipe : Preprocess
        How the images were normalized.
    seed : int
        Of the choice among the right ones.
    explained_by : TransferClassifier, optional
        Whose saliency is laid over the pictures.

    Returns
    -------
    tuple of Picture
        First the wrong ones, worst first, then the right ones.
    """
    classes = tuple(dataset.classes)
    error = np.abs(units.probabilities - units.truth).max(axis=1)
    item_error = np.abs(units.item_probabilities - units.truth[units.item_unit]).max(axis=1)
    wrong = (units.truth != units.predicted).any(axis=1)
    worst = np.flatnonzero(wrong)[np.argsort(-error[wrong], kind="stable")]
    chosen = [*_one_per_patient(worst, units), *_one_per_patient(_in_turn(~wrong, units, seed), units)]
    pictures = []
    for unit in chosen:
        items = np.flatnonzero(units.item_unit == unit)
        errors = item_error[items]
        item = int(items[errors.argmax() if wrong[unit] else errors.argmin()])
        target = _main_class(units, unit, dataset)
        pictures.append(
            ExampleImage(
                pixels=to_pixels(dataset[item][0], recipe),
                right=not wrong[unit],
                subject=subjects[units.patient[unit]],
                label=class_names(units.truth[unit], classes),
                predicted=class_names(units.predicted[unit], classes),
                confidence=_confidence(units.probabilities[unit, target], target, dataset),
                item=item,
                overlay=None if explained_by is None else _overlay(explained_by, dataset, item, target),
                explained="" if explained_by is None else classes[target],
            )
        )
    return tuple(pictures)


def to_pixels(image: Any, recipe: Recipe) -> NDArray[np.uint8]:
    """
    Undo the normalization of an image.

    Parameters
    ----------
    image : Tensor or ndarray, shape (3, H, W) or (N, 3, H, W)
        An item of a dataset; of a series the middle slice is taken.
    recipe : Preprocess
        Gives mean and standard deviation.

    Returns
    -------
    ndarray of uint8, shape (H, W) or (H, W, 3)
        Color only where the image is in color; where the channels hold several windows or neighboring slices,
        the middle channel.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> recipe = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), channels="repeat")
    >>> to_pixels(np.array([-2.0, 0.0, 2.0]) * np.ones((3, 1, 1)), recipe)
    array([[  0, 128, 255]], dtype=uint8)
    """
    array = np.asarray(image, dtype=np.float64)
    if array.ndim == 4:
        array = array[len(array) // 2]
    mean, std = (
        np.asarray(values, dtype=np.float64).reshape(-1, 1, 1) for values in (recipe.mean, recipe.std)
    )
    pixels = np.floor(np.clip(array * std + mean, 0, 1) * 255 + 0.5).astype(np.uint8)
    spread = int(np.ptp(pixels.astype(np.int16), axis=0).max())
    if recipe.channels == "repeat" and spread > 1:
        return np.moveaxis(pixels, 0, -1)
    return cast("NDArray[np.uint8]", pixels[len(pixels) // 2])


def class_names(indicators: NDArray[np.bool_], classes: tuple[str, ...]) -> str:
    """
    Name the classes that are set.

    Parameters
    ----------
    indicators : ndarray of bool, shape (K,)
        Which classes.
    classes : tuple of str
        Their names.

    Returns
    -------
    str
        The names, or ``"none"``.

    Examples
    --------
    >>> class_names(np.array([True, False, True]), ("a", "b", "c"))
    'a, c'
    """
    return ", ".join(name for name, is_set in zip(classes, indicators, strict=True) if is_set) or "none"


def _one_per_patient(candidates: NDArray[np.int64], units: ScoredUnits) -> list[int]:
    """Keep the first of each patient, few in all."""
    first: dict[int, int] = {}
    for unit in candidates.tolist():
        first.setdefault(int(units.patient[unit]), unit)
    return list(first.values())[:PICTURES_PER_KIND]


def _in_turn(right: NDArray[np.bool_], units: ScoredUnits, seed: int) -> NDArray[np.int64]:
    """Shuffle the units chosen, then order them so that the classes take turns."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(right))
    main_class = units.truth[shuffled].argmax(axis=1)
    turn = np.empty(len(shuffled), dtype=np.int64)
    for k in np.unique(main_class):
        turn[main_class == k] = np.arange(np.count_nonzero(main_class == k))
    return shuffled[np.lexsort((main_class, turn))]


def _confidence(probability: float, k: int, dataset: EvaluationDataset) -> str:
    named = "" if dataset.task == "multiclass" else f"{dataset.classes[k]} "
    return f"{named}{probability:.2f}"


def _main_class(units: ScoredUnits, unit: int, dataset: EvaluationDataset) -> int:
    """Return the class that was predicted; multilabel: the label with the largest error."""
    if dataset.task == "multiclass":
        return int(units.predicted[unit].argmax())
    return int(np.abs(units.probabilities[unit] - units.truth[unit]).argmax())


def _overlay(model: Any, dataset: Any, item: int, target: int) -> NDArray[np.uint8]:
    """Lay the heat of a class over the source of an item."""
    from medimg.saliency.explain import explain

    volume = dataset.series[item].read(**asdict(dataset._policies))
    picture = dataset.pictures[item]
    slices = None if picture is None else [model.preprocess.render(volume).slices[picture]]
    return explain(model, volume, target, slices=slices).overlay()
