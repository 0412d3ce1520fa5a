"""Scores and decisions as a table, and warnings of what should not be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg import __version__
from medimg.errors import MedimgWarning
from medimg.learn.provenance import SHOWN, model_digest

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.scoring import Scored

__all__ = ["PredictionTable"]

_EXAMPLES: Final = 3


class PredictionTable:
    """
    Rows for each source or slice, and for each source that can't be read.

    Parameters
    ----------
    model : TransferClassifier
        Its calibration decides.
    unit : {"series", "slice"}
        What a row is of.
    collects : bool
        Whether there is a column of errors.
    provenance : bool
        Whether there are columns of the model and the recipe.
    """

    def __init__(self, model: TransferClassifier, unit: str, *, collects: bool, provenance: bool) -> None:
        self._model = model
        self._unit = unit
        self._collects = collects
        self._provenance = provenance
        self._sources = 0
        self._undecided = 0
        self._unlike: dict[str, list[str]] = {}

    def frame(self, found: Iterable[Scored]) -> pd.DataFrame:
        """Return the table; warn of what was found on the way."""
        import pandas as pd

        model = self._model
        attrs = {
            "model": model_digest(model)[:SHOWN],
            "recipe": model.preprocess.fingerprint,
            "medimg": __version__,
        }
        rows = [row for scored in found for row in self._rows(scored)]
        columns = self._columns()
        if self._provenance:
            columns += ["model", "recipe"]
            rows = [row | {name: attrs[name] for name in ("model", "recipe")} for row in rows]
        frame = pd.DataFrame(rows, columns=columns)
        if self._unit == "slice" and self._collects:
            # whole numbers, though some are not there
            frame["slice"] = frame["slice"].astype("Int64")
        frame.attrs |= attrs
        self._warn()
        return frame

    def _columns(self) -> list[str]:
        model, calibration = self._model, self._model.calibration
        by_slice = self._unit == "slice"
        there = {
            "source": True,
            "series_uid": True,
            "sop_instance_uid": by_slice,
            "slice": by_slice,
            "predicted": True,
            "flagged": calibration is not None and self._flags(),
            "set": calibration is not None and calibration.coverage is not None,
            **{f"p_{name}": True for name in model.classes},
            "weight": by_slice,
            "ood": calibration is not None and calibration.outliers is not None,
            "unlike": model.training_ranges is not None,
            "error": self._collects,
        }
        return [name for name, wanted in there.items() if wanted]

    def _flags(self) -> bool:
        """Whether thresholds are of each class against the rest, and decide nothing."""
        calibration, model = self._model.calibration, self._model
        return calibration is not None and model.task == "multiclass" and len(calibration.points) > 1

    def _rows(self, scored: Scored) -> Iterator[dict[str, Any]]:
        self._sources += 1
        common = {"source": scored.name, "series_uid": scored.series_uid, "error": scored.error or None}
        if scored.error:
            yield common
            return
        for kind, value in scored.unlike.items():
            self._unlike.setdefault(kind, []).append(value)
        model, by_slice = self._model, self._unit == "slice"
        common["unlike"] = "; ".join(f"{kind} {value}" for kind, value in scored.unlike.items())
        proba = np.concatenate(scored.proba)
        decided = self._decided(scored, proba)
        for n, scores in enumerate(proba):
            row = common | {name: values[n] for name, values in decided.items()}
            row |= {f"p_{name}": float(p) for name, p in zip(model.classes, scores, strict=True)}
            if by_slice and scored.weights is not None:
                row |= {
                    "sop_instance_uid": scored.uids[n],
                    "slice": scored.slices[n],
                    "weight": float(scored.weights[n]),
                }
            yield row

    def _decided(self, scored: Scored, proba: NDArray[np.float64]) -> dict[str, Any]:
        """Return the columns of decisions: as calibrated, if that was for such units."""
        model, calibration = self._model, self._model.calibration
        found: dict[str, Any] = {"predicted": plainly(model, proba)}
        if calibration is None:
            return found
        # one picture is slice and series alike
        fits = calibration.unit == self._unit or len(scored.slices) == 1
        if scored.outlying and (fits or model.pool == "none"):
            found["ood"] = np.concatenate(scored.outlying).tolist()
        if not fits:
            self._undecided += bool(calibration.points) or calibration.coverage is not None
            return found
        if self._flags():
            found["flagged"] = calibration.flagged(proba, model.classes)
        elif calibration.points:
            found["predicted"] = calibration.decided(proba, model.classes, model.task)
        if calibration.coverage is not None:
            found["set"] = calibration.sets(proba, model.classes, model.task)
        return found

    def _warn(self) -> None:
        ranges, calibration = self._model.training_ranges, self._model.calibration
        for kind, values in self._unlike.items():
            shown = ", ".join(sorted(set(values))[:_EXAMPLES])
            expected = ranges.describe(kind) if ranges is not None else ""
            warnings.warn(
                f"{len(values)} of {self._sources} images are unlike the training data in {kind}: {shown}; "
                f"the model was trained on {expected}. What it says of them was never tested",
                MedimgWarning,
                stacklevel=5,
            )
        if self._undecided and calibration is not None:
            warnings.warn(
                f"{self._undecided} of {self._sources} images have no prediction set and no operating point: "
                f"the model was calibrated on unit={calibration.unit!r}, and they are predicted by "
                f"unit={self._unit!r}. Calibrate on such a data set, or predict by that unit",
                MedimgWarning,
                stacklevel=5,
            )


def plainly(model: TransferClassifier, proba: NDArray[np.float64]) -> list[str]:
    """Return the likeliest class, or the labels at 0.5 and above, for each row."""
    if model.task == "multiclass":
        return [model.classes[k] for k in proba.argmax(axis=1)]
    return [";".join(name for name, p in zip(model.classes, row, strict=True) if p >= 0.5) for row in proba]
