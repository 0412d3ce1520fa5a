"""Example images of a report: their choice, and the pixels that the model received."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from medimg.data.protocols import Model, Recipe, ScoredDataset
from medimg.metrics.units import ScoredUnits

__all__ = ["ExampleImage", "GetPixels", "choose_images", "join_class_names", "to_pixels"]

#: Returns the pixels of an item, (H, W) or (H, W, 3) uint8.
GetPixels: TypeAlias = Callable[[int], NDArray[np.uint8]]

_MOST_IMAGES: Final = 6  # of errors, and of correct predictions


@dataclass(frozen=True, eq=False)
class ExampleImage:
    """
    An image that the model received, with the prediction of its unit.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (H, W) or (H, W, 3)
        Grayscale, or RGB if the image is in color.
    right : bool
        Whether the whole prediction is correct.
    subject : str
        Salted hash of the patient.
    label, predicted : str
        Names of the true and the predicted classes.
    confidence : str
        Probability of the predicted class; multilabel: name and probability of the label with the largest
        error.
    item : int
        Index in the dataset.
    overlay : ndarray of uint8, shape (rows, columns, 3), or None
        Saliency map on the same image, or on the slice of the series with the most evidence for the
        prediction; see :func:`medimg.explain`. None if not requested.
    explained : str
        Class of the saliency map.
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
    dataset: ScoredDataset,
    units: ScoredUnits,
    subjects: tuple[str, ...],
    *,
    get_pixels: GetPixels,
    seed: int,
    explained_by: Model | None = None,
) -> tuple[ExampleImage, ...]:
    """
    Choose the units with the largest errors, then some correct ones, one of each patient.

    Of an error the image with the largest error is shown, of a correct unit that with the smallest. Correct
    ones are sampled at random, alternating between the classes. `subjects` are salted hashes of the patients;
    `explained_by` is the model whose saliency maps are wanted.
    """
    classes = tuple(dataset.classes)
    error = np.abs(units.probabilities - units.truth).max(axis=1)
    item_error = np.abs(units.item_probabilities - units.truth[units.item_unit]).max(axis=1)
    wrong = (units.truth != units.predicted).any(axis=1)
    worst = np.flatnonzero(wrong)[np.argsort(-error[wrong], kind="stable")]
    correct = _alternate_classes(~wrong, units, seed)
    images = []
    for unit in [*_keep_one_per_patient(worst, units), *_keep_one_per_patient(correct, units)]:
        items = np.flatnonzero(units.item_unit == unit)
        errors = item_error[items]
        item = int(items[errors.argmax() if wrong[unit] else errors.argmin()])
        target = _select_class(units, unit, dataset)
        images.append(
            ExampleImage(
                pixels=get_pixels(item),
                right=not wrong[unit],
                subject=subjects[units.patient[unit]],
                label=join_class_names(units.truth[unit], classes),
                predicted=join_class_names(units.predicted[unit], classes),
                confidence=_format_confidence(units.probabilities[unit, target], target, dataset),
                item=item,
                overlay=None
                if explained_by is None
                else _render_overlay(explained_by, dataset, item, target),
                explained="" if explained_by is None else classes[target],
            )
        )
    return tuple(images)


def to_pixels(image: Any, recipe: Recipe) -> NDArray[np.uint8]:
    """
    Undo the normalization of an image, (C, H, W), or of the middle slice of a series or volume.

    A series is (N, C, H, W), a volume of a recipe in 3-D (C, D, H, W).

    The result is (H, W), or (H, W, 3) for an image in color. If the channels are several windows or adjacent
    slices, it is the middle channel.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> recipe = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), channels="repeat")
    >>> to_pixels(np.array([-2.0, 0.0, 2.0]) * np.ones((3, 1, 1)), recipe)
    array([[  0, 128, 255]], dtype=uint8)
    """
    array = np.asarray(image, dtype=np.float64)
    if array.ndim == 4:
        # a protocol of recipes that need not know volumes
        is_volume = getattr(recipe, "dims", 2) == 3
        array = array[:, array.shape[1] // 2] if is_volume else array[len(array) // 2]
    mean: Any = 0.0
    std: Any = 1.0
    if recipe.mean is not None and recipe.std is not None:
        mean, std = (np.asarray(v, dtype=np.float64).reshape(-1, 1, 1) for v in (recipe.mean, recipe.std))
    pixels = np.floor(np.clip(array * std + mean, 0, 1) * 255 + 0.5).astype(np.uint8)
    spread = int(np.ptp(pixels.astype(np.int16), axis=0).max())
    if recipe.channels == "repeat" and spread > 1:
        return np.moveaxis(pixels, 0, -1)
    return cast("NDArray[np.uint8]", pixels[len(pixels) // 2])


def join_class_names(indicators: NDArray[np.bool_], classes: tuple[str, ...]) -> str:
    """
    Join the names of the classes that are set, (K,); "none" for none.

    >>> join_class_names(np.array([True, False, True]), ("a", "b", "c"))
    'a, c'
    """
    return ", ".join(name for name, is_set in zip(classes, indicators, strict=True) if is_set) or "none"


def _keep_one_per_patient(candidates: NDArray[np.int64], units: ScoredUnits) -> list[int]:
    """Keep the first unit of each patient, at most `_MOST_IMAGES`."""
    first: dict[int, int] = {}
    for unit in candidates.tolist():
        first.setdefault(int(units.patient[unit]), unit)
    return list(first.values())[:_MOST_IMAGES]


def _alternate_classes(chosen: NDArray[np.bool_], units: ScoredUnits, seed: int) -> NDArray[np.int64]:
    """Shuffle the chosen units, then order them so that the classes alternate."""
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(chosen))
    main_class = units.truth[shuffled].argmax(axis=1)
    turn = np.empty(len(shuffled), dtype=np.int64)
    for k in np.unique(main_class):
        turn[main_class == k] = np.arange(np.count_nonzero(main_class == k))
    return shuffled[np.lexsort((main_class, turn))]


def _format_confidence(probability: float, k: int, dataset: ScoredDataset) -> str:
    label = "" if dataset.task == "multiclass" else f"{dataset.classes[k]} "
    return f"{label}{probability:.2f}"


def _select_class(units: ScoredUnits, unit: int, dataset: ScoredDataset) -> int:
    """Select the predicted class; multilabel: the label with the largest error."""
    if dataset.task == "multiclass":
        return int(units.predicted[unit].argmax())
    return int(np.abs(units.probabilities[unit] - units.truth[unit]).argmax())


def _render_overlay(model: Any, dataset: Any, item: int, target: int) -> NDArray[np.uint8]:
    """Render the saliency map of a class on an item's image, (rows, columns, 3)."""
    from medimg.saliency.explain import explain

    volume = dataset.series[item].read(**asdict(dataset.policies))
    index = dataset.image_indices[item]
    slices = None if index is None else [model.preprocess.render(volume).slices[index]]
    return explain(model, volume, target, slices=slices).overlay()
