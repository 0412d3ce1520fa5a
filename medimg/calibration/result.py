"""Result of a calibration: calibration map, thresholds, prediction sets, out-of-distribution statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg._tables import make_table
from medimg._validation import (
    check_choice,
    check_fields,
    check_item_unit,
    check_number,
    check_text,
    check_whole_number,
    stored_unit,
)
from medimg.calibration.conformal import check_coverage, prediction_set
from medimg.calibration.logit_map import METHODS, Curve, LogitMap, MapMethod, count_temperatures
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import Criterion, OperatingPoint, check_criterion
from medimg.errors import CheckpointError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


__all__ = ["Calibration"]

#: Fields that earlier versions did not write, with the values that they then have.
_ADDED: dict[str, Any] = {
    "method": "temperature",
    "offset": (),
    "bias": (),
    "curves": (),
    "selection": (),
    "members_sha256": "",
}
_COLUMNS = ("probabilities", "predicted", "observed", "n")


@set_module("medimg")
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """
    Result of :func:`medimg.calibrate`; a model that has one applies it to every prediction.

    Attributes
    ----------
    unit : {"image", "series"}
        Unit of the items of the validation data, for which thresholds and sets are valid.
    items, patients : int
        Number of items and of patients in the validation data.
    temperature : tuple of float
        Divisor of the logits: one number, one for each label, or with "vector" one for each class.
    loss : tuple of 2 floats
        Mean negative log likelihood on the validation data before and after calibration.
    operating_point : str, mapping or None
        Criterion for the thresholds, as passed to :func:`medimg.calibrate`.
    points : tuple of OperatingPoint
        Thresholds: of the second of two classes, else of each class against the rest.
    coverage : float or None
        Coverage of the prediction sets, as passed to :func:`medimg.calibrate`.
    quantiles : tuple of float
        A class is in the set if 1 - its probability is at most this; one number, or one for each label.
    bins : tuple
        Rows of :meth:`reliability`.
    parameters_sha256 : str
        Hash of the model's parameters; with other parameters the calibration is not valid.
    outliers : MahalanobisDetector or None
        Statistics of the embeddings of in-distribution images; None without training data.
    method : {"none", "temperature", "platt", "vector", "isotonic"}
        Method by which logits are calibrated.
    offset : tuple of float
        Added to the logits first: minus the logarithm of the class weights of the training; empty for none.
    bias : tuple of float
        Added to the divided logits, one for each class or label; empty for none.
    curves : tuple
        Knots of isotonic regression: log-odds of a class against the rest before and after calibration, for
        the second of two classes, else for each.
    selection : tuple of (str, float)
        Cross-validated mean negative log likelihood of each method that was tried; empty if none was chosen.
    members_sha256 : str
        Hash of the calibrations of an ensemble's members; with others that of their mean is not valid. Empty
        for single models, and unknown in older files.
    """

    unit: str
    items: int
    patients: int
    temperature: tuple[float, ...]
    loss: tuple[float, float]
    operating_point: Criterion
    points: tuple[OperatingPoint, ...]
    coverage: float | None
    quantiles: tuple[float, ...]
    bins: tuple[tuple[str, float, float, int], ...] = field(repr=False)
    parameters_sha256: str = field(repr=False)
    outliers: MahalanobisDetector | None = None
    method: MapMethod = "temperature"
    offset: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    selection: tuple[tuple[str, float], ...] = ()
    members_sha256: str = field(default="", repr=False)

    @property
    def logit_map(self) -> LogitMap:
        """Map of the logits."""
        return LogitMap(self.method, self.temperature, self.offset, self.bias, self.curves)

    def reliability(self) -> pd.DataFrame:
        """
        Return the reliability curve: predicted probability against observed frequency on the validation data.

        Returns
        -------
        pandas.DataFrame
            Columns ``probabilities`` ("raw" or "calibrated"), ``predicted`` (mean probability), ``observed``
            (observed fraction) and ``n``, for 15 bins of equal width without empty ones: of the probability
            of the second of two classes, of the highest probability of more classes, or of all labels
            together.
        """
        return make_table(list(self.bins), list(_COLUMNS))

    def to_pandas(self) -> pd.DataFrame:
        """Return a table of the operating points, one row each."""
        return make_table([asdict(p) for p in self.points], [f.name for f in fields(OperatingPoint)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the statistics of embeddings, serializable as JSON."""
        values = asdict(replace(self, outliers=None))
        del values["outliers"]
        values["unit"] = stored_unit(self.unit)
        # files and digests of earlier versions lack these
        for name, default in _ADDED.items():
            if values[name] == default:
                del values[name]
        return {name: _to_lists(value) for name, value in values.items()}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        outliers: MahalanobisDetector | None,
        classes: tuple[str, ...],
        task: str,
    ) -> Calibration:
        """
        Restore a calibration from :meth:`to_dict`.

        Raises
        ------
        CheckpointError
            If a field is missing or invalid, or does not match the classes.
        """
        names = [f.name for f in fields(cls) if f.name != "outliers" and f.name not in _ADDED]
        check_fields("calibration", values, names, others=True, error=CheckpointError)
        count = 1 if task == "multiclass" else len(classes)
        criterion = check_criterion(
            values["operating_point"], _name("operating_point"), error=CheckpointError
        )
        coverage = check_coverage(values["coverage"], _name("coverage"), error=CheckpointError)
        before, after = _check_numbers("loss", values["loss"], 2)
        added = {name: values.get(name, default) for name, default in _ADDED.items()}
        method = check_choice(_name("method"), added["method"], METHODS, error=CheckpointError)
        temperatures = count_temperatures(method, task, len(classes))
        return cls(
            unit=check_item_unit(values["unit"], name=_name("unit"), error=CheckpointError),
            items=check_whole_number(_name("items"), values["items"], least=1, error=CheckpointError),
            patients=check_whole_number(
                _name("patients"), values["patients"], least=1, error=CheckpointError
            ),
            temperature=_check_numbers("temperature", values["temperature"], temperatures, above=0),
            loss=(before, after),
            operating_point=criterion,
            points=_check_points(values["points"], criterion, classes, task),
            coverage=coverage,
            quantiles=_check_numbers(
                "quantiles", values["quantiles"], 0 if coverage is None else count, least=0, most=1
            ),
            bins=tuple(
                _check_bin(f"bins[{n}]", row) for n, row in enumerate(_check_list("bins", values["bins"]))
            ),
            parameters_sha256=check_text(
                _name("parameters_sha256"), values["parameters_sha256"], error=CheckpointError
            ),
            outliers=outliers,
            method=method,
            **{
                name: _check_numbers(name, added[name], len(classes) if added[name] else 0)
                for name in ("offset", "bias")
            },
            curves=_check_curves(added["curves"], method, task, len(classes)),
            selection=tuple(
                _check_selected(f"selection[{n}]", row)
                for n, row in enumerate(_check_list("selection", added["selection"]))
            ),
            members_sha256=added["members_sha256"]
            and check_text(_name("members_sha256"), added["members_sha256"], error=CheckpointError),
        )

    def decided(self, proba: NDArray[np.float64], classes: tuple[str, ...], task: str) -> list[str]:
        """Return the prediction by the thresholds of each row (n, K): a name, or names joined by ";"."""
        if task == "multiclass" and len(self.points) == 1:
            return [classes[int(p >= self.points[0].threshold)] for p in proba[:, 1]]
        if task == "multilabel" and self.points:
            return self.flagged(proba, classes)
        return []

    def flagged(self, proba: NDArray[np.float64], classes: tuple[str, ...]) -> list[str]:
        """Return the classes that reach their threshold against the rest, for each row (n, K)."""
        return _join_names(proba >= np.array([point.threshold for point in self.points]), classes)

    def sets(self, proba: NDArray[np.float64], classes: tuple[str, ...], task: str) -> list[str]:
        """Return the prediction set of each row (n, K), joined by ";"."""
        return _join_names(prediction_set(proba, self.quantiles, task), classes)


def _to_lists(value: Any) -> Any:
    """Replace tuples by lists, as JSON does."""
    return [_to_lists(one) for one in value] if isinstance(value, list | tuple) else value


def _check_curves(value: object, method: str, task: str, classes: int) -> tuple[Curve, ...]:
    """Return curves of ascending knots, as many as the method needs."""
    count = 0 if method != "isotonic" else 1 if task == "multiclass" and classes == 2 else classes
    found = []
    for n, curve in enumerate(_check_list("curves", value, count)):
        name = f"curves[{n}]"
        knots, values = _check_list(name, curve, 2)
        x = _check_numbers(f"{name}[0]", knots, max(1, len(_check_list(f"{name}[0]", knots))))
        y = _check_numbers(f"{name}[1]", values, len(x))
        if any(b <= a for a, b in pairwise(x)) or any(b < a for a, b in pairwise(y)):
            raise CheckpointError(f"{_name(name)} must have ascending knots and values; found others")
        found.append((x, y))
    return tuple(found)


def _check_selected(name: str, row: object) -> tuple[str, float]:
    method, loss = _check_list(name, row, 2)
    return (
        check_choice(_name(f"{name}[0]"), method, METHODS, error=CheckpointError),
        check_number(_name(f"{name}[1]"), loss, error=CheckpointError),
    )


def _name(name: str) -> str:
    return f"calibration.{name}"


def _check_list(name: str, value: object, count: int | None = None) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
        expected = "a list" if count is None else f"a list of {count}"
        found = f"{len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise CheckpointError(f"{_name(name)} must be {expected}; found {found}")
    return value


def _check_numbers(
    name: str,
    value: object,
    count: int,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> tuple[float, ...]:
    return tuple(
        check_number(
            f"{_name(name)}[{n}]", number, least=least, above=above, most=most, error=CheckpointError
        )
        for n, number in enumerate(_check_list(name, value, count))
    )


def _check_bin(name: str, row: object) -> tuple[str, float, float, int]:
    which, predicted, observed, count = _check_list(name, row, 4)
    return (
        check_text(_name(f"{name}[0]"), which, error=CheckpointError),
        check_number(_name(f"{name}[1]"), predicted, error=CheckpointError),
        check_number(_name(f"{name}[2]"), observed, error=CheckpointError),
        check_whole_number(_name(f"{name}[3]"), count, error=CheckpointError),
    )


def _check_points(
    value: object, criterion: Criterion, classes: tuple[str, ...], task: str
) -> tuple[OperatingPoint, ...]:
    expected: tuple[str, ...] = ()
    if criterion is not None:
        expected = classes[1:] if task == "multiclass" and len(classes) == 2 else classes
    listed = _check_list("points", value)
    points = tuple(OperatingPoint.from_dict(one, _name(f"points[{n}]")) for n, one in enumerate(listed))
    found = tuple(point.label for point in points)
    if found != expected:
        raise CheckpointError(
            f"{_name('points')} must be those of {list(expected)}, as operating_point is {criterion!r}; "
            f"found {list(found)}"
        )
    return points


def _join_names(kept: NDArray[np.bool_], classes: tuple[str, ...]) -> list[str]:
    return [";".join(name for name, there in zip(classes, row, strict=True) if there) for row in kept]
