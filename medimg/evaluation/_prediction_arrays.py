"""Labels and probabilities in anybody's arrays: NumPy, torch, pandas or lists, checked and in one form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._validation import check_choice
from medimg.data.class_names import are_same_classes, find_class, number_classes
from medimg.data.patients import normalize_number
from medimg.errors import DatasetError, also

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medimg.data.items import Task

__all__ = ["Predictions", "check_same_order", "is_missing", "name_classes", "read_predictions", "read_values"]

_ROUNDING: Final = 1e-6
_SUM_TOLERANCE: Final = 1e-3
#: Rows of half precision (bfloat16 has 8 bits) sum to 1 less exactly.
_HALF_TOLERANCE: Final = 2e-2
_PREFIX: Final = "p_"  # of the columns of `Report.predictions`


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels, (n,) int64 or (n, K) float32, and probabilities, (n, K) float64, of n images in K classes."""

    labels: NDArray[Any]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    task: Task


@dataclass(frozen=True, eq=False)
class _Values:
    """An array, and the names of its columns and its index if it was a table."""

    name: str
    array: NDArray[Any]
    columns: tuple[str, ...] | None = None
    index: Any = None
    is_half: bool = False


def read_predictions(
    y_true: object, y_prob: object, *, classes: Iterable[object] | None, task: str | None
) -> Predictions:
    """Return labels and probabilities in one form; DatasetError if they are not, or do not match."""
    if task is not None:
        check_choice("task", task, ("multiclass", "multilabel"), error=DatasetError)
    given = None if classes is None else name_classes(classes)
    truth, scores = read_values("y_true", y_true), read_values("y_prob", y_prob)
    check_same_order(truth, scores)
    if not scores.array.size:
        raise DatasetError("y_prob is empty; expected at least one row")
    if len(truth.array) != len(scores.array):
        raise DatasetError(
            f"y_true has {len(truth.array):,} rows, y_prob {len(scores.array):,}; expected one label for "
            "each row of probabilities"
        )
    numbers = _read_numbers(scores)
    found = _find_task(truth.array, numbers, task)
    if found == "multiclass" and (numbers.ndim == 1 or numbers.shape[1] == 1):
        _check_range(numbers, found)
        numbers = np.column_stack([1 - numbers.ravel(), numbers.ravel()])
        scores = replace(scores, columns=None)
    numbers = numbers[:, None] if numbers.ndim == 1 else numbers
    names, order = _order_classes(given, truth, scores, numbers.shape[1])
    numbers = numbers[:, order]
    _check_range(numbers, found)
    labels: NDArray[Any]
    if found == "multiclass":
        numbers = _check_sums(numbers, is_half=scores.is_half)
        labels = _number_labels(truth, names, as_numbers=_are_numbers(given))
    else:
        labels = _read_indicators(truth, names)
    return Predictions(labels, np.clip(numbers, 0, 1), names, found)


def read_values(name: str, values: object, *, most_axes: int = 2) -> _Values:
    """Return an array of one or two axes from an array, tensor, table, column or list."""
    columns = index = None
    is_half = False
    given: Any = values
    if hasattr(given, "to_numpy"):
        # pandas, polars and others
        index = getattr(given, "index", None)
        named = getattr(given, "columns", None)
        columns = None if named is None else tuple(named)
        given = given.to_numpy()
    elif hasattr(given, "detach"):
        is_half = "float16" in str(given.dtype)
        given = _from_tensor(given)
    elif isinstance(given, list | tuple):
        given = [_from_tensor(one) if hasattr(one, "detach") else one for one in given]
    if isinstance(given, str | bytes | dict | set) or not hasattr(given, "__len__"):
        raise also(DatasetError, TypeError)(
            f"{name} must be an array, tensor, table or list; found a {type(values).__name__}: pass one "
            "value or row for each image"
        )
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        raise DatasetError(f"the rows of {name} differ in length; expected a rectangular array") from None
    if np.ma.isMaskedArray(given) and np.ma.is_masked(given):
        raise DatasetError(f"{name} is masked in places; expected a value everywhere: remove these rows")
    if not 1 <= array.ndim <= most_axes:
        raise DatasetError(
            f"{name} has the shape {array.shape}; expected (n,)" + (" or (n, K)" if most_axes == 2 else "")
        )
    is_half = is_half or array.dtype == np.float16
    if columns is not None and (array.ndim == 1 or not all(isinstance(one, str) for one in columns)):
        columns = None
    return _Values(name, array, columns, index, is_half)


def check_same_order(*several: _Values) -> None:
    """Refuse tables of the same rows in different orders: by position they would be mixed up."""
    indexed = [one for one in several if one.index is not None]
    for one, other in combinations(indexed, 2):
        if len(one.index) != len(other.index) or one.index.equals(other.index):
            continue
        if one.index.sort_values().equals(other.index.sort_values()):
            raise DatasetError(
                f"{one.name} and {other.name} have the same index in another order, and rows are matched by "
                f"position; expected one order: use {other.name}.loc[{one.name}.index], or .to_numpy() if "
                "the rows already correspond"
            )


def _from_tensor(tensor: Any) -> Any:
    """Return a tensor on any device, with or without gradients, as an array."""
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _read_numbers(scores: _Values) -> NDArray[np.float64]:
    """Return probabilities as float64, (n,) or (n, K), all finite."""
    array = scores.array
    kind = array.dtype.kind
    if kind == "b":
        raise DatasetError(
            "y_prob is True and False; expected probabilities from 0 to 1: pass what is compared with the "
            "threshold"
        )
    if kind not in "iufO":
        raise DatasetError(f"y_prob has the type {array.dtype}; expected numbers from 0 to 1")
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError):
        raise DatasetError("y_prob has values that are not numbers; expected numbers from 0 to 1") from None
    missing = ~np.isfinite(numbers)
    if missing.any():
        rows = int((missing if missing.ndim == 1 else missing.any(axis=1)).sum())
        raise DatasetError(
            f"y_prob is not finite in {rows:,} of {len(numbers):,} rows; expected numbers from 0 to 1: "
            "remove these rows, or find out why the model gave none"
        )
    return numbers


def _check_range(numbers: NDArray[np.float64], task: Task) -> None:
    low, high = float(numbers.min()), float(numbers.max())
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return
    several = numbers.ndim == 2 and numbers.shape[1] > 1
    function = "softmax" if task == "multiclass" and several else "sigmoid"
    if high <= _ROUNDING:
        hint = "if they are logarithms of probabilities, use their exponential; of logits the " + function
    elif low >= -_ROUNDING and high <= 100 and np.abs(numbers).max() > 1:
        hint = f"divide percentages by 100; of logits, use the {function}"
    else:
        hint = f"these look like logits; use their {function}"
    raise DatasetError(f"y_prob ranges from {low:.3g} to {high:.3g}; expected from 0 to 1: {hint}")


def _check_sums(numbers: NDArray[np.float64], *, is_half: bool) -> NDArray[np.float64]:
    """Return rows that sum to 1; those of half precision are divided by their sum."""
    sums = numbers.sum(axis=1)
    tolerance = _HALF_TOLERANCE if is_half else _SUM_TOLERANCE
    if np.abs(sums - 1).max() > tolerance:
        raise DatasetError(
            f"the rows of y_prob sum to {sums.min():.3g} to {sums.max():.3g}; expected 1, as the classes "
            "exclude each other: use the softmax of the logits, or, if an image can have several labels, "
            'task="multilabel" with y_true of shape (n, K)'
        )
    return numbers / sums[:, None] if is_half else numbers


def _find_task(truth: NDArray[Any], scores: NDArray[np.float64], task: str | None) -> Task:
    """Return the task of labels (n,) or (n, K), which is ambiguous if these are one-hot."""
    several = truth.ndim == 2 and truth.shape[1] > 1
    if task == "multilabel":
        if truth.ndim == 1:
            raise DatasetError(
                f"y_true has the shape {truth.shape}; expected (n, K) with 0 and 1, one column for each "
                'label, for task="multilabel"'
            )
        return "multilabel"
    if task == "multiclass" or not several:
        return "multiclass"
    if scores.shape != truth.shape:
        raise DatasetError(
            f"y_true has the shape {truth.shape}, y_prob {scores.shape}; expected the same, or y_true of "
            "shape (n,)"
        )
    one_hot = truth.dtype.kind in "biuf" and bool((truth.sum(axis=1) == 1).all())
    if one_hot and np.abs(scores.sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        raise DatasetError(
            "every row of y_true has one label, and every row of y_prob sums to 1, as in a multiclass task; "
            'give task="multiclass", or task="multilabel" if an image can have several labels'
        )
    return "multilabel"


def name_classes(classes: object) -> tuple[str, ...]:
    """Return the names of classes given in an order; DatasetError for anything else."""
    if isinstance(classes, str | bytes | set | frozenset | dict) or not isinstance(classes, Iterable):
        raise also(DatasetError, TypeError)(
            f"classes must be a list of names, in the order of the outputs; found a {type(classes).__name__}"
        )
    several = list(classes)
    if any(is_missing(one) for one in several):
        raise DatasetError("classes has a missing name; expected a name for each class")
    return tuple(one if isinstance(one, str) else normalize_number(one) for one in several)


def _order_classes(
    given: tuple[str, ...] | None, truth: _Values, scores: _Values, count: int
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes, and the column of the probabilities of each."""
    columns = scores.columns
    if columns is not None and all(name.startswith(_PREFIX) for name in columns):
        columns = tuple(name.removeprefix(_PREFIX) for name in columns)
    if given is None:
        names = columns or (truth.columns if truth.array.shape[1:] == (count,) and count > 1 else None)
        names = names or tuple(map(str, range(count)))
    else:
        names = given
    if len({find_class(name) for name in names}) < len(names):
        raise DatasetError(f"classes has a name twice; expected {len(names)} different names")
    if len(names) != count:
        raise DatasetError(
            f"y_prob has {count} columns and there are {len(names)} classes; expected one column for each "
            "class, in the order of classes (for two, also one column: that of the second)"
        )
    return names, _order_columns("y_prob", columns, names)


def _order_columns(name: str, columns: tuple[str, ...] | None, classes: tuple[str, ...]) -> list[int]:
    """Return the index of each class among the columns of a table, or their order if they have no names."""
    if columns is None or are_same_classes(columns, classes):
        return list(range(len(classes)))
    at = {find_class(column): n for n, column in enumerate(columns)}
    missing = [one for one in classes if find_class(one) not in at]
    if missing or len(columns) != len(classes):
        raise DatasetError(
            f"the columns of {name} are {', '.join(columns)}; expected the classes {', '.join(classes)}: "
            f"rename them, or pass {name}.to_numpy() if they are in this order"
        )
    return [at[find_class(one)] for one in classes]


def _are_numbers(given: tuple[str, ...] | None) -> bool:
    """Whether numbers among the labels are names of classes, and not indices."""
    return given is not None and all(find_class(name).isdecimal() for name in given)


def _number_labels(truth: _Values, classes: tuple[str, ...], *, as_numbers: bool) -> NDArray[np.int64]:
    """Return the class index of each label, (n,), of names, indices or one-hot rows."""
    array = truth.array
    if array.ndim == 2 and array.shape[1] > 1:
        indicators = _read_indicators(truth, classes)
        if (indicators.sum(axis=1) != 1).any():
            wrong = int((indicators.sum(axis=1) != 1).sum())
            raise DatasetError(
                f"{wrong:,} of {len(array):,} rows of y_true do not have exactly one label; expected one for "
                'task="multiclass"'
            )
        return np.asarray(indicators.argmax(axis=1), np.int64)
    values = array.ravel()
    if _count_missing(values):
        raise DatasetError(
            f"y_true is missing in {_count_missing(values):,} of {len(values):,} rows; expected a label "
            "everywhere: remove these rows"
        )
    if values.dtype.kind == "O" and all(isinstance(one, bool | int | float | np.number) for one in values):
        values = values.astype(np.float64)
    if values.dtype.kind in "biuf" and not as_numbers:
        return _check_indices(values, len(classes))
    number_of = number_classes(classes)
    names = [one if isinstance(one, str) else normalize_number(one) for one in values.tolist()]
    found = [number_of.get(name, number_of.get(find_class(name), -1)) for name in names]
    unknown = found.count(-1)
    if unknown:
        hint = "name the classes in the order of the columns of y_prob: classes=[…]"
        raise DatasetError(
            f"{unknown:,} of {len(names):,} labels in y_true are none of the classes {', '.join(classes)}; "
            f"expected names or indices of these: {hint}"
        )
    return np.asarray(found, dtype=np.int64)


def _check_indices(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    inside = (values >= 0) & (values < count) & (values == np.floor(values.astype(np.float64)))
    if not inside.all():
        raise DatasetError(
            f"y_true ranges from {values.min():g} to {values.max():g}; expected whole numbers from 0 to "
            f"{count - 1}, the indices of the columns of y_prob: or name these with classes=[…]"
        )
    return values.astype(np.int64)


def _read_indicators(truth: _Values, classes: tuple[str, ...]) -> NDArray[np.float32]:
    """Return 0 and 1, (n, K), in the order of the classes."""
    array = truth.array if truth.array.ndim == 2 else truth.array[:, None]
    if array.shape[1] != len(classes):
        raise DatasetError(
            f"y_true has the shape {array.shape}; expected (n, {len(classes)}), one column for each class"
        )
    array = array[:, _order_columns("y_true", truth.columns, classes)]
    if _count_missing(array):
        raise DatasetError(
            f"y_true is missing in {_count_missing(array):,} of {array.size:,} cells; expected 0 or 1 "
            "everywhere: remove these rows or columns"
        )
    try:
        numbers = array.astype(np.float32)
    except (TypeError, ValueError):
        raise DatasetError(
            "y_true has cells that are not 0 or 1; expected one column for each label"
        ) from None
    if not np.isin(numbers, (0, 1)).all():
        raise DatasetError(
            f"y_true ranges from {numbers.min():g} to {numbers.max():g}; expected 0 and 1, one column for "
            "each label"
        )
    return numbers


def _count_missing(values: NDArray[Any]) -> int:
    """Count the cells that are NaN, None or a missing value of pandas."""
    if values.dtype.kind == "f":
        return int(np.isnan(values).sum())
    if values.dtype.kind != "O":
        return 0
    return sum(is_missing(one) for one in values.ravel().tolist())


def is_missing(value: object) -> bool:
    """Whether a cell is None, NaN or a missing value of pandas."""
    # pandas' has no truth value
    return value is None or (not isinstance(value, str) and str(value) in {"<NA>", "NaT", "nan"})
