"""Predictions and heat maps of many series as DICOM files, and as datasets one after another."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args, overload

from pydicom.filereader import read_partial
from pydicom.uid import ComprehensiveSRStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import ConversionError, MedimgError, MedimgWarning
from medimg.export.dicom.parametric_map import parametric_map
from medimg.export.dicom.secondary_capture import secondary_capture
from medimg.export.dicom.structured_report import structured_report
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.files.object_storage import show_location
from medimg.io.files.output import atomic_output, check_target, has_target, join_target, read_target_start
from medimg.io.series import Series
from medimg.models.prediction.scored_source import list_sources
from medimg.saliency.explain import explain

if TYPE_CHECKING:
    import datetime

    import pandas as pd
    from pydicom.dataset import Dataset

    from medimg.export.dicom._concepts import ConceptLike
    from medimg.models.classifier import TransferClassifier
    from medimg.models.prediction.scored_source import PredictSource
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["ResultKind", "make_results", "name_instance", "write_instance", "write_results"]

#: Structured report, secondary capture, and parametric map.
ResultKind: TypeAlias = Literal["sr", "sc", "pm"]
_KINDS: Final = get_args(ResultKind)
_NEEDS_DICOM: Final = "a DICOM result needs DICOM images, whose patient and study it is stored with"
#: Images that are not DICOM raise an error, or are left out with a warning.
OtherFormatPolicy: TypeAlias = Literal["raise", "warn"]
#: Bytes of a file in which its UID is.
_START: Final = 2**14
_SOP_INSTANCE_UID: Final = 0x00080018
_PREFIXES: Final = {
    ComprehensiveSRStorage: "SR",
    SecondaryCaptureImageStorage: "SC",
    ParametricMapStorage: "PM",
}


@set_module("medimg.export")
def make_results(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    *,
    kinds: Sequence[ResultKind] = ("sr", "sc"),
    predictions: pd.DataFrame | None = None,
    codes: Mapping[str, ConceptLike] | None = None,
    most: int = 12,
    name: str | None = None,
    tta: ViewChoice = None,
    created: datetime.datetime | None = None,
    on_other_format: OtherFormatPolicy = "raise",
    progress: Progress = "auto",
) -> Iterator[Dataset]:
    """
    Yield the results of a model on every series of the sources as DICOM datasets.

    Parameters
    ----------
    model : TransferClassifier
        Model that predicts.
    sources : str, Path, bytes, Series, or iterable of these
        Files, folders and archives of one or more DICOM series, as for
        :meth:`medimg.TransferClassifier.predict`.
    kinds : sequence of {"sr", "sc", "pm"}
        Results of each series: :func:`structured_report`, :func:`secondary_capture` and
        :func:`parametric_map`, the latter two of the most probable class.
    predictions : pandas.DataFrame, optional
        What ``model.predict`` returned for the same sources, by series; by default they are predicted.
        Series whose row has an error are left out.
    codes, most, name, tta, created
        See :func:`structured_report` and :func:`secondary_capture`.
    on_other_format : {"raise", "warn"}
        Policy for images that are not DICOM, and can't have results; "warn" leaves them out, and warns of
        their number at the end. It is an error if all are.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Yields
    ------
    pydicom.Dataset
        Results, series after series.

    Raises
    ------
    ConversionError
        If a source is not DICOM, lacks an attribute that a result has to have, such as the positions of a
        parametric map, or `predictions` are not of these sources.
    ReadError, SeriesError, PreprocessError
        If a source can't be read.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).
    """
    chosen = _check_kinds(kinds)
    check_choice("on_other_format", on_other_format, get_args(OtherFormatPolicy), error=ConversionError)
    rows = None if predictions is None else _Rows(predictions)
    pairs = _pair(list_sources(sources, error=ConversionError), rows, progress)
    for series, row in _select_dicom(pairs, on_other_format):
        if "sr" in chosen:
            yield structured_report(
                model, series, prediction=row, codes=codes, name=name, tta=tta, created=created
            )
        if {"sc", "pm"} & set(chosen):
            found = explain(model, series, progress=False)
            if "sc" in chosen:
                yield from secondary_capture(
                    model, series, explanation=found, most=most, name=name, created=created
                )
            if "pm" in chosen:
                yield parametric_map(model, series, explanation=found, name=name, created=created)


@overload
def write_results(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    folder: Path,
    *,
    kinds: Sequence[ResultKind] = ("sr", "sc"),
    predictions: pd.DataFrame | None = None,
    codes: Mapping[str, ConceptLike] | None = None,
    most: int = 12,
    name: str | None = None,
    tta: ViewChoice = None,
    created: datetime.datetime | None = None,
    on_other_format: OtherFormatPolicy = "raise",
    progress: Progress = "auto",
) -> list[Path]: ...
@overload
def write_results(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    folder: str,
    *,
    kinds: Sequence[ResultKind] = ("sr", "sc"),
    predictions: pd.DataFrame | None = None,
    codes: Mapping[str, ConceptLike] | None = None,
    most: int = 12,
    name: str | None = None,
    tta: ViewChoice = None,
    created: datetime.datetime | None = None,
    on_other_format: OtherFormatPolicy = "raise",
    progress: Progress = "auto",
) -> list[Path] | list[str]: ...
@set_module("medimg.export")
def write_results(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    folder: str | Path,
    *,
    kinds: Sequence[ResultKind] = ("sr", "sc"),
    predictions: pd.DataFrame | None = None,
    codes: Mapping[str, ConceptLike] | None = None,
    most: int = 12,
    name: str | None = None,
    tta: ViewChoice = None,
    created: datetime.datetime | None = None,
    on_other_format: OtherFormatPolicy = "raise",
    progress: Progress = "auto",
) -> list[Path] | list[str]:
    """
    Write the results of a model on every series of the sources as DICOM files.

    The same images and model give the same UIDs and file names: files that are there already are kept, and
    a run that was interrupted goes on.

    Parameters
    ----------
    model, sources, kinds, predictions, codes, most, name, tta, created, on_other_format, progress
        See :func:`make_results`.
    folder : str or Path
        Folder to write to, or its URL in object storage, such as ``s3://bucket/results``; it is made if need
        be. It may be in a folder of the sources: results are not taken for images.

    Returns
    -------
    list of Path, or list of str
        The files, or their URLs if `folder` is one, ``SR.<SOP Instance UID>.dcm``, ``SC…`` and ``PM…``.

    Raises
    ------
    ConversionError, ReadError, SeriesError, PreprocessError, MissingDependencyError
        See :func:`make_results`; a ConversionError also if the URL can't be written to.
    OSError
        If a file can't be written; of a URL a :class:`~medimg.errors.StoreError`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import medimg
    >>> folder = Path(tempfile.mkdtemp())
    >>> ct = medimg.phantom.chest_ct(1, label="nodule", slices=3, size=48)
    >>> files = medimg.phantom.write_ct_series(ct, folder, medimg.phantom.Identity.derive("demo", 1))
    >>> model = medimg.TransferClassifier(
    ...     "squeezenet1_1", classes=["normal", "nodule"], weights=None, preprocess=medimg.Preprocess(size=96)
    ... )
    >>> results = tempfile.mkdtemp()
    >>> written = medimg.export.write_results(model, folder, results)
    >>> [path.name[:3] for path in written]
    ['SR.', 'SC.', 'SC.', 'SC.']
    >>> medimg.export.write_results(model, folder, results) == written
    True
    """
    target = check_target("folder", folder, error=ConversionError, is_folder=True)
    results = make_results(
        model,
        sources,
        kinds=kinds,
        predictions=predictions,
        codes=codes,
        most=most,
        name=name,
        tta=tta,
        created=created,
        on_other_format=on_other_format,
        progress=progress,
    )
    # all are of one type
    return cast("list[Path] | list[str]", [write_instance(dataset, target) for dataset in results])


def name_instance(dataset: Dataset) -> str:
    """Return the file name of a result."""
    return f"{_PREFIXES[dataset.SOPClassUID]}.{dataset.SOPInstanceUID}.dcm"


def write_instance(dataset: Dataset, folder: Path | str) -> Path | str:
    """Write an instance under its UID, unless it is there already, and return the file."""
    target = join_target(folder, name_instance(dataset))
    if _has_instance(target, str(dataset.SOPInstanceUID)):
        return target
    with atomic_output(target) as temporary, quiet_pydicom():
        dataset.save_as(temporary, enforce_file_format=True)
    return target


def _has_instance(target: Path | str, uid: str) -> bool:
    """Whether a file holds an instance; ConversionError if it holds something else."""
    if not has_target(target):
        return False
    start = read_target_start(target, _START)
    try:
        with quiet_pydicom():
            found = read_partial(BytesIO(start), stop_when=lambda tag, *_: tag > _SOP_INSTANCE_UID)
    except Exception:
        found = None
    if found is None or str(found.get("SOPInstanceUID")) != uid:
        raise ConversionError(
            f"{show_location(target)} exists and is another file; move it away, or name another folder"
        )
    return True


def _check_kinds(kinds: Sequence[ResultKind]) -> tuple[ResultKind, ...]:
    if isinstance(kinds, str) or not isinstance(kinds, Sequence) or not kinds:
        raise ConversionError(
            f'kinds must be some of "sr", "sc" and "pm", such as ("sr", "sc"); found {kinds!r}'
        )
    return tuple(check_choice("kinds", kind, _KINDS, error=ConversionError) for kind in kinds)


class _Rows:
    """Rows of a table of predictions, in the order in which sources are resolved."""

    def __init__(self, table: pd.DataFrame) -> None:
        missing = {"source", "series_uid"} - set(table.columns)
        by_image = {"slice"}.intersection(table.columns)
        if missing or by_image:
            raise ConversionError(
                'predictions must be the table of model.predict(sources, unit="series"); found the columns '
                f"{', '.join(map(str, table.columns))}"
            )
        #: Whether files that can't be read have rows.
        self.collects = "error" in table.columns
        rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
        self._rows: Iterator[dict[str, Any]] = iter(rows)

    def take(self, image: Series | Volume | None) -> Mapping[str, Any] | None:
        """Return the row of the next image, or of a source that has none; None if the row has an error."""
        row = next(self._rows, None)
        if row is not None and _read_text(row.get("error")):
            return None
        uid = "" if row is None else _read_text(row["series_uid"])
        found = image.uid.partition("#")[0] if isinstance(image, Series) else uid
        if row is None or image is None or (uid and found != uid):
            raise ConversionError(
                "predictions are of other sources; expected those of model.predict(sources)"
            )
        return row

    def check_finished(self) -> None:
        """Raise ConversionError if rows are left."""
        if next(self._rows, None) is not None:
            raise ConversionError("predictions are of more sources; expected those of model.predict(sources)")


def _read_text(value: object) -> str:
    """Return a text of a table; "" if it is missing."""
    return value if isinstance(value, str) else ""


def _pair(
    sources: Sequence[PredictSource], rows: _Rows | None, progress: Progress
) -> Iterator[tuple[Series | Volume, Mapping[str, Any] | None]]:
    """Yield each image with its row; without those whose row has an error."""
    for source in progress_bar(sources, desc="writing results", unit="source", progress=progress):
        try:
            found, lost = ResolvedSource.resolve_all(source)
        except MedimgError:
            if rows is None:
                raise
            rows.take(None)
            continue
        for one in found:
            row = None if rows is None else rows.take(one.image)
            if rows is None or row is not None:
                yield one.image, row
        if rows is not None and rows.collects:
            for _ in lost:
                rows.take(None)
    if rows is not None:
        rows.check_finished()


def _select_dicom(
    pairs: Iterable[tuple[Series | Volume, Mapping[str, Any] | None]], on_other_format: str
) -> Iterator[tuple[Series, Mapping[str, Any] | None]]:
    """Yield DICOM series with their rows; others raise an error, or are left out with a warning."""
    kept = left_out = 0
    for image, row in pairs:
        if isinstance(image, Series) and image.format == "DICOM":
            kept += 1
            yield image, row
            continue
        left_out += 1
        if on_other_format == "raise":
            what = "a Volume has no patient"
            if isinstance(image, Series):
                what = f"{image.path} is {image.format}"
            raise ConversionError(f"{what}; {_NEEDS_DICOM}")
    if left_out and not kept:
        raise ConversionError(f"none of the {left_out} images is DICOM; {_NEEDS_DICOM}")
    if left_out:
        warnings.warn(
            f"{left_out} of {kept + left_out} images are not DICOM and have no DICOM results",
            MedimgWarning,
            stacklevel=4,
        )
