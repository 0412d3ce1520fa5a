"""The table of predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg import __version__
from medimg._tables import make_table
from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.models.prediction.scored_source import Predictor, ScoredSource

__all__ = ["SHOWN", "PredictionTable", "plain_text"]

_EXAMPLES: Final = 3
#: Digits of a digest in tables.
SHOWN: Final = 12


class PredictionTable:
    """A table with a row per source or slice, and per source that can't be read if errors are collected."""

    def __init__(
        self, model: Predictor, digest: str, unit: str, *, ood: bool, collects: bool, provenance: bool
    ) -> None:
        self._model, self._digest, self._ood = model, digest, ood
        self._unit = unit
        self._collects = collects
        self._provenance = provenance
        self._sources = 0
        self._undecided = 0
        self._unlike: dict[str, list[str]] = {}

    def to_pandas(self, sources: Iterable[ScoredSource]) -> pd.DataFrame:
        """Return the table; warn of out-of-distribution images, and of those outside the calibration."""
        model = self._model
        attrs = {
            "model": self._digest[:SHOWN],
            "recipe": model.preprocess.fingerprint,
            "medimg": __version__,
        }
        rows = [row for scored in sources for row in self._rows(scored)]
        columns = self._columns()
        if self._provenance:
            columns += ["model", "recipe"]
            rows = [row | {name: attrs[name] for name in ("model", "recipe")} for row in rows]
        frame = make_table(rows, columns)
        if self._unit == "image" and self._collects:
            # integers, some of which are missing
            frame["slice"] = frame["slice"].astype("Int64")
        frame.attrs |= attrs
        self._warn()
        return frame

    def _columns(self) -> list[str]:
        model, calibration = self._model, self._model.calibration
        by_slice = self._unit == "image"
        columns = {
            "source": True,
            "series_uid": True,
            "sop_instance_uid": by_slice,
            "slice": by_slice,
            "predicted": True,
            "flagged": calibration is not None and self._has_flags(),
            "set": calibration is not None and calibration.coverage is not None,
            **{f"p_{name}": True for name in model.classes},
            "weight": by_slice,
            "ood": self._ood,
            "unlike": model.training_ranges is not None,
            "error": self._collects,
        }
        return [name for name, wanted in columns.items() if wanted]

    def _has_flags(self) -> bool:
        """Whether there is a threshold per class against the rest, by which no single class is predicted."""
        calibration, model = self._model.calibration, self._model
        return calibration is not None and model.task == "multiclass" and len(calibration.points) > 1

    def _rows(self, scored: ScoredSource) -> Iterator[dict[str, Any]]:
        self._sources += 1
        common = {"source": scored.name, "series_uid": scored.series_uid, "error": scored.error or None}
        if scored.error:
            yield common
            return
        for fact, value in scored.unlike.items():
            self._unlike.setdefault(fact, []).append(value)
        model, by_slice = self._model, self._unit == "image"
        common["unlike"] = "; ".join(f"{fact} {value}" for fact, value in scored.unlike.items())
        proba = np.concatenate(scored.proba)
        decisions = self._decision_columns(scored, proba)
        for n, scores in enumerate(proba):
            row = common | {name: values[n] for name, values in decisions.items()}
            row |= {f"p_{name}": float(p) for name, p in zip(model.classes, scores, strict=True)}
            if by_slice and scored.weights is not None:
                row |= {
                    "sop_instance_uid": scored.uids[n],
                    "slice": scored.slices[n],
                    "weight": float(scored.weights[n]),
                }
            yield row

    def _decision_columns(self, scored: ScoredSource, proba: NDArray[np.float64]) -> dict[str, Any]:
        """Return the columns of decisions, by the calibration if that is for the unit."""
        model, calibration = self._model, self._model.calibration
        found: dict[str, Any] = {"predicted": plain_text(model, proba)}
        if calibration is None:
            return found
        # a single image is both a slice and a series
        fits = calibration.unit == self._unit or len(scored.slices) == 1
        if scored.ood and (fits or model.pool == "none"):
            found["ood"] = np.concatenate(scored.ood).tolist()
        if not fits:
            self._undecided += bool(calibration.points) or calibration.coverage is not None
            return found
        if self._has_flags():
            found["flagged"] = calibration.flagged(proba, model.classes)
        elif calibration.points:
            found["predicted"] = calibration.decided(proba, model.classes, model.task)
        if calibration.coverage is not None:
            found["set"] = calibration.sets(proba, model.classes, model.task)
        return found

    def _warn(self) -> None:
        ranges, calibration = self._model.training_ranges, self._model.calibration
        for fact, values in self._unlike.items():
            shown = ", ".join(sorted(set(values))[:_EXAMPLES])
            expected = ranges.describe(fact) if ranges is not None else ""
            warnings.warn(
                f"{len(values)} of {self._sources} images are out of distribution in {fact}: {shown}; the "
                f"model was trained on {expected}; predictions on these images are not validated",
                MedimgWarning,
                stacklevel=5,
            )
        if self._undecided and calibration is not None:
            warnings.warn(
                f"{self._undecided} of {self._sources} images have no prediction set and no operating point: "
                f"the model was calibrated on unit={calibration.unit!r}, and they are predicted by "
                f"unit={self._unit!r}; calibrate on such a dataset, or predict by that unit",
                MedimgWarning,
                stacklevel=5,
            )


def plain_text(model: Predictor, proba: NDArray[np.float64]) -> list[str]:
    """Return the most probable class of each row (n, K), or with "multilabel" the labels of at least 0.5."""
    if model.task == "multiclass":
        return [model.classes[k] for k in proba.argmax(axis=1)]
    return [";".join(name for name, p in zip(model.classes, row, strict=True) if p >= 0.5) for row in proba]
