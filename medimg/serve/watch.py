"""``medimg.serve.watch``: predict on new series of a DICOMweb server, and store the results there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from medimg._public import set_module
from medimg._validation import check_choice, check_number, check_path, check_texts, check_whole_number
from medimg.core.logger import get_logger
from medimg.errors import (
    MedimgError,
    MissingDependencyError,
    NotAnImageError,
    StoreError,
    TrainingError,
    also,
)
from medimg.io.dicomweb.transport import ServerAnswerError
from medimg.io.own_results import is_own_result
from medimg.serve._watch_state import StateError, WatchState

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

    from medimg.export.dicom.write_results import ResultKind
    from medimg.io.dicomweb.server import DicomWebServer
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["WatchResult", "watch"]

#: Errors of the server or the connection, after which the same series is tried again, however often.
_SERVER_ERRORS: Final = (ServerAnswerError, ConnectionError, TimeoutError, EOFError)
#: Errors after which no series could be done, or noted.
_FATAL: Final = (StateError, MissingDependencyError)
_LONGEST_WAIT: Final = 3600.0


@set_module("medimg.serve")
@dataclass(slots=True)
class WatchResult:
    """
    What a watch has done in this run.

    Attributes
    ----------
    stored : int
        Number of series whose results were stored.
    present : int
        Number of series whose results the server had already.
    failed : int
        Number of series that could not be predicted on, each time counted.
    waiting : int
        Number of series that were not settled, or wait for another attempt, at the last search.
    """

    stored: int = 0
    present: int = 0
    failed: int = 0
    waiting: int = 0


@set_module("medimg.serve")
def watch(
    model: TransferClassifier,
    server: DicomWebServer,
    state: str | os.PathLike[str],
    *,
    modality: str | Sequence[str] = (),
    conditions: Mapping[str, object] | None = None,
    results: Sequence[ResultKind] = ("sr", "sc"),
    codes: Mapping[str, Any] | None = None,
    name: str | None = None,
    interval: float = 30.0,
    settle: float = 60.0,
    attempts: int = 5,
    once: bool = False,
) -> WatchResult:
    """
    Predict on each new series of a DICOMweb server, and store the results there as DICOM.

    The server is searched again and again. A series is predicted on when it has had the same number of
    instances for a while, and again if it gets more. Results have UIDs derived from the images and the
    model: after a crash, the next run goes on with the same `state`, and nothing is stored twice.

    Parameters
    ----------
    model : TransferClassifier
        Model that predicts.
    server : DicomWebServer
        Server, from :func:`medimg.dicomweb`.
    state : path-like
        Folder of this user for what was done, as hashes. Only one watch may use it at a time.
    modality : str or sequence of str
        Modalities of the series to predict on, such as "CT"; by default those of the training data.
    conditions : mapping, optional
        Further conditions of :meth:`medimg.DicomWebServer.search`, such as ``{"body_part": "CHEST"}``.
    results : sequence of {"sr", "sc", "pm"}
        Kinds of results; see :func:`medimg.export.make_results`.
    codes, name
        See :func:`medimg.export.structured_report`.
    interval : float
        Seconds between two searches.
    settle : float
        Seconds for which the number of instances of a series must not have changed.
    attempts : int
        Number of attempts for a series that can't be predicted on, with growing pauses. Errors of the
        server, also when it stores results, are not counted. Results that the server refuses are not sent
        again, unless the series gets more instances.
    once : bool
        Whether to search once and return, as for a scheduled task, instead of watching until interrupted.

    Returns
    -------
    WatchResult
        What was done, if `once` is set.

    Raises
    ------
    TrainingError
        If a setting is invalid, or neither `modality` is given nor the model knows the modalities of its
        training data.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).
    MedimgError
        If the folder can't be used, another watch uses it, what was done can't be noted, or with `once` the
        server can't be searched, or does not accept the credentials (PermissionError, too): the next run goes
        on with the series that were not handled.

    Examples
    --------
    >>> server = medimg.dicomweb("https://pacs.example.org/dicom-web")  # doctest: +SKIP
    >>> watch(model, server, "watch-state", modality="CT", once=True)  # doctest: +SKIP
    WatchResult(stored=3, present=0, failed=0, waiting=1)
    """
    from medimg.export.dicom import write_results
    from medimg.models.digest import model_digest
    from medimg.models.predict import check_calibration

    check_calibration(model)
    kinds = [check_choice("results", kind, get_args(write_results.ResultKind)) for kind in results]
    if not kinds:
        raise TrainingError('results must be some of "sr", "sc" and "pm"; found none')
    pause = check_number("interval", interval, above=0)
    if conditions is not None and not isinstance(conditions, Mapping):
        raise also(TrainingError, TypeError)(
            f"conditions must be a mapping or None; found a {type(conditions).__name__}"
        )
    scope = "\0".join(["medimg.watch 1", model_digest(model), *sorted(kinds)])
    with WatchState(check_path("state", state), scope) as saved:
        watcher = _Watcher(
            model,
            server,
            saved,
            {**(conditions or {}), "modality": _find_modalities(model, modality)},
            {"kinds": kinds, "codes": codes, "name": name},
            pause,
            check_number("settle", settle, least=0),
            check_whole_number("attempts", attempts, least=1),
        )
        if once:
            return watcher.search()
        watcher.search_forever()
        return watcher.result


def _find_modalities(model: TransferClassifier, stated: str | Sequence[str]) -> list[str]:
    found = [stated] if isinstance(stated, str) else list(check_texts("modality", list(stated)))
    if not found and model.training_ranges is not None:
        found = list(model.training_ranges.modalities)
    if not found or not all(found):
        raise TrainingError(
            "the model does not know the modalities of its training data; pass modality=, such as "
            'modality="CT"'
        )
    return found


@dataclass(slots=True)
class _Watcher:
    """The searches of a watch."""

    model: TransferClassifier
    server: DicomWebServer
    state: WatchState
    conditions: dict[str, Any]
    settings: dict[str, Any]
    interval: float
    settle: float
    attempts: int
    result: WatchResult = field(default_factory=WatchResult)
    _server_errors: Counter[str] = field(default_factory=Counter)

    def search_forever(self) -> None:
        """Search until the process is interrupted; a server that can't be searched is asked again."""
        pause = self.interval
        while True:
            try:
                self.search()
                pause = self.interval
            except _FATAL:
                raise
            except MedimgError as error:
                pause = min(2 * pause, _LONGEST_WAIT)
                failure = "does not accept the credentials" if _is_refusal(error) else "can't be searched"
                get_logger().warning(
                    "the server %s (%s); the next attempt is in %.0f s", failure, _describe(error), pause
                )
            time.sleep(pause)

    def search(self) -> WatchResult:
        """Search once, and handle each series that is due."""
        self.result.waiting = 0
        due: list[tuple[int, str, Series]] = []
        # numbers of instances are those of this moment, however long other series take
        now = time.time()
        for series in self.server.search(**self.conditions):
            if self.state.is_result(series.uid):
                continue
            key = self.state.key(series.uid)
            count = getattr(series, "instance_count", None) or 0
            if self.state.is_due(key, count, now, settle=self.settle, attempts=self.attempts):
                due.append((self.state.count_interruptions(key), key, series))
            else:
                self.result.waiting += self.state.is_waiting(key, self.attempts)
        # one that ends the process, as by its memory, must not stop the others
        for interruptions, key, series in sorted(due, key=lambda one: one[0]):
            if interruptions:
                get_logger().warning("series %s: interrupted %d times before", key[:12], interruptions)
            self.state.mark_started(key)
            self._handle(series, key)
            self.state.mark_ended(key)
        return self.result

    def _handle(self, series: Series, key: str) -> None:
        try:
            stored = self._predict_and_store(series)
        except _FATAL:
            raise
        # whatever a library raises for one series
        except Exception as error:
            self._note_failure(key, error)
            # they are the same for the next series, and accounts are locked after a number of attempts
            if _is_refusal(error):
                self.state.mark_ended(key)
                raise
            return
        self.state.mark_done(key)
        self.result.stored += stored > 0
        self.result.present += stored == 0
        get_logger().info("series %s: %d results stored", key[:12], stored)

    def _note_failure(self, key: str, error: Exception) -> None:
        self.result.failed += 1
        if isinstance(error, StoreError) and error.causes == {"refused"}:
            self.state.give_up(key, self.attempts)
            get_logger().error(
                "series %s: the server refuses its results (%s); they are not sent again",
                key[:12],
                _describe(error),
            )
            return
        if isinstance(error, _SERVER_ERRORS) or _is_refusal(error):
            self._server_errors[key] += 1
            pause = self._pause(self._server_errors[key])
            self.state.postpone(key, time.time() + pause)
            get_logger().warning(
                "series %s: %s; it is tried again in %.0f s", key[:12], _describe(error), pause
            )
            return
        failures = self.state.count_failures(key) + 1
        pause = self._pause(failures)
        self.state.mark_failed(key, time.time() + pause)
        then = f"the next attempt is in {pause:.0f} s" if failures < self.attempts else "it is given up"
        get_logger().warning("series %s: %s, attempt %d; %s", key[:12], _describe(error), failures, then)

    def _pause(self, failures: int) -> float:
        return min(self.interval * 2.0 ** min(failures - 1, 20), _LONGEST_WAIT)

    def _predict_and_store(self, listed: Series) -> int:
        """Store the results on a series that the server lacks, and return their number."""
        found = self._make_results(listed)
        several: dict[str, list[Dataset]] = {}
        for dataset in found:
            several.setdefault(str(dataset.SeriesInstanceUID), []).append(dataset)
        # before they are stored, so that a later search does not take them for images
        for uid in several:
            self.state.add_result(uid)
        missing = [
            dataset
            for uid, datasets in several.items()
            if not self._has(listed.study_uid, uid, len(datasets))
            for dataset in datasets
        ]
        if missing:
            self.server.store(missing, study=listed.study_uid)
        return len(missing)

    def _make_results(self, listed: Series) -> list[Dataset]:
        """Return the results on each stack of a series; the error of the first if there is none."""
        from medimg.export import make_results

        index = self.server.scan(listed.study_uid, listed.uid)
        errors: list[MedimgError] = []
        results: list[Dataset] = []
        for stack in index:
            if is_own_result(stack):  # also of other watches
                continue
            try:
                results += make_results(self.model, [stack], progress=False, **self.settings)
            except MedimgError as error:
                errors.append(error)
        if not results and errors:
            raise errors[0]
        if not index:
            raise NotAnImageError("the series has no images")
        return results

    def _has(self, study: str, uid: str, count: int) -> bool:
        """Whether the server has a series of results."""
        found = self.server.search(study_uid=study, uid=uid)
        return any(getattr(one, "instance_count", None) == count for one in found)


def _is_refusal(error: Exception) -> bool:
    """Whether a server does not accept the credentials."""
    return isinstance(error, PermissionError)


def _describe(error: Exception) -> str:
    """Return the type of an error, and what a server says: messages have URLs, with the UIDs of the study."""
    name = type(error).__name__
    if isinstance(error, ServerAnswerError) and error.status:
        return f"{name}, {error.status}"
    if isinstance(error, StoreError) and error.result is not None:
        codes = sorted({f"0x{one.code:04X}" for one in error.result.failed if one.code})
        return ", ".join([name, *sorted(error.causes), *codes])
    return name
