"""One request in the thread of the model: scan the upload, predict on its series."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from medimg.errors import MedimgError, MedimgWarning, NotAnImageError
from medimg.serve._answer import Answer, ModelFacts, Prediction
from medimg.serve._dicom_answer import encode_results
from medimg.serve._problem import RequestError
from medimg.serve._unpacked_size import check_results, check_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medimg.export.dicom.write_results import ResultKind
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier
    from medimg.serve._job_source import JobSource
    from medimg.serve.limits import ServiceLimits

__all__ = ["CancelledJobError", "PredictionJob", "Unit"]

Unit = Literal["series", "image"]


class CancelledJobError(Exception):
    """The request of a job has ended before the job."""


@dataclass(slots=True, eq=False)
class PredictionJob:
    """Prediction on the images of a request; it ends early if it is cancelled."""

    model: TransferClassifier
    facts: ModelFacts
    source: JobSource
    unit: Unit
    batch_size: int
    limits: ServiceLimits
    kinds: tuple[ResultKind, ...] = ()
    instances: list[bytes] = field(default_factory=list)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let the job end soon: no more of the source can be read, and no other batch is predicted on."""
        self._cancelled.set()
        self.source.close()

    def run(self) -> Answer:
        """Return the predictions, and set `instances`; raise the error of the first file if there is none."""
        with _record_warnings() as notes, _before_each_batch(self.model, self._check):
            rows, errors = self._predict_all()
        # results in DICOM have no place for errors
        if not any(row.error is None for row in rows) or (self.kinds and errors):
            raise _summarize(errors)
        return Answer(rows, list(dict.fromkeys(notes)), self.facts)

    def _predict_all(self) -> tuple[list[Prediction], list[MedimgError]]:
        self._check()
        index, skipped = self.source.scan(self.limits)
        rows: list[Prediction] = []
        errors: list[MedimgError] = []
        for series in index:
            self._check()
            check_series(series, self.model.preprocess, self.limits)
            try:
                rows += self._predict(series)
            except RequestError:
                raise
            except MedimgError as error:
                errors.append(error)
                rows.append(_failed(series.path, error, series.uid))
        for file, lost in zip(index.skipped, skipped, strict=True):
            # a text among the images is no lost image, but all there is without any
            if not isinstance(lost, NotAnImageError) or not index:
                errors.append(lost)
                rows.append(_failed(file.path, lost))
        return rows, errors

    def _predict(self, series: Series) -> list[Prediction]:
        table = self.model.predict([series], unit=self.unit, batch_size=self.batch_size, progress=False)
        if self.kinds:
            for instance in encode_results(self.model, series, table, self.kinds):
                self._check()
                self.instances.append(instance)
                check_results(self.instances, self.limits)
        return [Prediction.of(row, self.model.classes) for row in table.to_dict("records")]

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledJobError


def _failed(source: str, error: MedimgError, series_uid: str | None = None) -> Prediction:
    return Prediction(source, series_uid=series_uid, error=f"{type(error).__name__}: {error}")


def _summarize(errors: list[MedimgError]) -> MedimgError:
    """Return the error of a request without any prediction."""
    if not errors:
        return NotAnImageError("the body contains no files; expected an image, or a zip of images")
    if len(errors) == 1:
        return errors[0]
    lost = [error for error in errors if not isinstance(error, NotAnImageError)]
    first = (lost or errors)[0]
    kinds = {type(error) for error in lost or errors}
    kind = kinds.pop() if len(kinds) == 1 else MedimgError
    return kind(f"none of the {len(errors)} files or series of the body can be read; the first: {first}")


@contextmanager
def _before_each_batch(model: TransferClassifier, check: Callable[[], None]) -> Iterator[None]:
    """Call a function whenever images pass a backbone: a series can have thousands of slices."""
    parts = (model, *getattr(model, "members", ()))
    hooks = [part.backbone.register_forward_pre_hook(lambda *_: check()) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _record_warnings() -> Iterator[list[str]]:
    """Collect the warnings of medimg; those of libraries can quote values of files, and are dropped."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield notes
    notes += [str(one.message) for one in found if issubclass(one.category, MedimgWarning)]
