"""What a model's probabilities mean, and what is decided by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg.calibration.conformal import checked_coverage, prediction_set
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import Criterion, OperatingPoint, checked_criterion
from medimg.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


__all__ = ["Calibration"]

_COLUMNS = ("probabilities", "predicted", "observed", "n")


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class Calibration:
    """
    What :func:`medimg.calibrate` found; a model that has one applies it to every prediction.

    Attributes
    ----------
    unit : {"slice", "series"}
        What an item of the validation data was: what thresholds and sets hold for.
    items, patients : int
        How many these were.
    temperature : tuple of float
        What logits are divided by: one number, or one for each label.
    loss : tuple of 2 floats
        Mean negative log likelihood on the validation data before and after.
    operating_point : str, mapping or None
        As asked for.
    points : tuple of OperatingPoint
        Thresholds: of the second of two classes, else of each class against the rest.
    coverage : float or None
        Of the prediction sets, as asked for.
    quantiles : tuple of float
        A class is in the set where 1 - its probability is at most this; one number, or one for each label.
    bins : tuple
        Rows of :meth:`reliability`.
    parameters_sha256 : str
        Of the parameters that were calibrated: for others it does not hold.
    outliers : MahalanobisDetector or None
        What usual embeddings are like; there where training data were given.
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

    def reliability(self) -> pd.DataFrame:
        """
        Return the reliability curve: what was predicted on the validation data against what occurred.

        Returns
        -------
        pandas.DataFrame
            Columns ``probabilities`` ("raw" or "calibrated"), ``predicted`` (mean probability), ``observed``
            (share that is so) and ``n``, by 15 bins of equal width, empty ones left out: of the probability
            of the second of two classes, of the highest probability of more, of all labels together.
        """
        import pandas as pd

        return pd.DataFrame(list(self.bins), columns=list(_COLUMNS))

    def to_pandas(self) -> pd.DataFrame:
        """Return a table of the operating points, one row each."""
        import pandas as pd

        return pd.DataFrame(
            [asdict(p) for p in self.points], columns=[f.name for f in fields(OperatingPoint)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all but the statistics of embeddings, as JSON can hold it."""
        values = asdict(replace(self, outliers=None))
        del values["outliers"]
        listed = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | listed | {"bins": [list(row) for row in self.bins]}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        outliers: MahalanobisDetector | None,
        classes: tuple[str, ...],
        task: str,
    ) -> Calibration:
        """
        Take it from a file.

        Raises
        ------
        CheckpointError
            If it does not fit the classes.
        """
        try:
            found = cls(
                unit=str(values["unit"]),
                items=int(values["items"]),
                patients=int(values["patients"]),
                temperature=tuple(map(float, values["temperature"])),
                loss=(float(values["loss"][0]), float(values["loss"][1])),
                operating_point=checked_criterion(values["operating_point"]),
                points=tuple(OperatingPoint.from_dict(point) for point in values["points"]),
                coverage=checked_coverage(values["coverage"]),
                quantiles=tuple(map(float, values["quantiles"])),
                bins=tuple((str(a), float(b), float(c), int(d)) for a, b, c, d in values["bins"]),
                parameters_sha256=str(values["parameters_sha256"]),
                outliers=outliers,
            )
            found._check(classes, task)
        except (TrainingError, ArithmeticError, KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"the calibration is unsound ({type(error).__name__})") from None
        return found

    def _check(self, classes: tuple[str, ...], task: str) -> None:
        numbers = 1 if task == "multiclass" else len(classes)
        called = [classes[1:]] if task == "multiclass" and len(classes) == 2 else [classes]
        sound = (
            self.unit in ("slice", "series")
            and len(self.temperature) == numbers
            and len(self.quantiles) == (0 if self.coverage is None else numbers)
            and all(np.isfinite(t) and t > 0 for t in self.temperature)
            and all(0 <= q <= 1 for q in self.quantiles)
            and (self.operating_point is None) == (not self.points)
            and (not self.points or tuple(p.label for p in self.points) in called)
            and all(0 <= p.threshold < 1.1 for p in self.points)
        )
        if not sound:
            raise ValueError

    def decided(self, proba: NDArray[np.float64], classes: tuple[str, ...], task: str) -> list[str]:
        """Return what is predicted by the thresholds, for each row (n, K): a name, or names joined by ";"."""
        if task == "multiclass" and len(self.points) == 1:
            return [classes[int(p >= self.points[0].threshold)] for p in proba[:, 1]]
        if task == "multilabel" and self.points:
            return _joined(proba >= self._thresholds(), classes)
        return []

    def flagged(self, proba: NDArray[np.float64], classes: tuple[str, ...]) -> list[str]:
        """Return the classes that reach their threshold against the rest, for each row (n, K)."""
        return _joined(proba >= self._thresholds(), classes)

    def sets(self, proba: NDArray[np.float64], classes: tuple[str, ...], task: str) -> list[str]:
        """Return the prediction set of each row (n, K), joined by ";"."""
        return _joined(prediction_set(proba, self.quantiles, task), classes)

    def _thresholds(self) -> NDArray[np.float64]:
        return np.array([point.threshold for point in self.points])


def _joined(kept: NDArray[np.bool_], classes: tuple[str, ...]) -> list[str]:
    return [";".join(name for name, there in zip(classes, row, strict=True) if there) for row in kept]
