"""Predictions as a Structured Report (TID 1500)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from medimg._public import set_module
from medimg._validation import check_number
from medimg.errors import ConversionError, also
from medimg.export.dicom import _concepts as concepts
from medimg.export.dicom._concepts import class_concepts, code_concept, describe_calibration
from medimg.export.dicom._derived_uid import derive_uid
from medimg.export.dicom._general_modules import ResultSeries, coding_scheme, import_highdicom, wrap_errors
from medimg.export.dicom._source_images import SourceImages
from medimg.export.dicom.algorithm import Algorithm
from medimg.io.dicom.header.attributes import get_items, get_text
from medimg.io.own_results import MANUFACTURER

if TYPE_CHECKING:
    import datetime
    from collections.abc import Sequence

    from highdicom.sr import ComprehensiveSR
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

    from medimg.export.dicom._concepts import ConceptLike
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["structured_report"]

_DIGITS: Final = 4
_PROCEDURE: Final = ("363679005", "SCT", "Imaging procedure")
_DIGITS_OF_SCORE: Final = 3
#: Of a code, its scheme and its meaning (SH, SH and LO).
_LONGEST_FIELDS: Final = (16, 16, 64)


@set_module("medimg.export")
def structured_report(
    model: TransferClassifier,
    source: Source,
    *,
    prediction: Mapping[str, Any] | None = None,
    codes: Mapping[str, ConceptLike] | None = None,
    name: str | None = None,
    tta: ViewChoice = None,
    series: str | int | None = None,
    created: datetime.datetime | None = None,
) -> ComprehensiveSR:
    """
    Make a DICOM Structured Report of the prediction on a series (Comprehensive SR, TID 1500).

    There is a measurement group for each class, with the class as the finding, its probability, whether it is
    calibrated, whether the class is predicted, its threshold, and references to the images. Probabilities
    have four decimal places. Out-of-distribution findings have a group of their own.

    Parameters
    ----------
    model : TransferClassifier
        Model, which also decides on the prediction by its calibration and thresholds.
    source : str, Path, bytes, Series, or list of these
        DICOM images of one series; see :func:`medimg.read`.
    prediction : mapping, optional
        Row of the table that ``model.predict`` returned for this series; by default it is predicted.
    codes : mapping, optional
        Coded concept of each class, by its name: a ``pydicom.sr.coding.Code``, or its value, coding scheme
        and meaning. Others have a code of the private scheme "99MEDIMG".
    name : str, optional
        Name of the algorithm; by default that of the backbone.
    tta : int or sequence of str, optional
        Test-time augmentation; see :meth:`medimg.TransferClassifier.predict`.
    series : str or int, optional
        UID or index of one of several series of the source.
    created : datetime, optional
        Date and time of the report; by default now. Its UIDs do not depend on it.

    Returns
    -------
    highdicom.sr.ComprehensiveSR
        A pydicom dataset, which ``save_as`` writes. The same images, model and probabilities give the same
        UIDs.

    Raises
    ------
    ConversionError
        If the source is not DICOM, lacks an attribute that the report has to have, or a code is invalid.
    ReadError, SeriesError
        If the source can't be read.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import medimg
    >>> ct = medimg.phantom.chest_ct(1, label="nodule", slices=3, size=48)
    >>> folder = Path(tempfile.mkdtemp())
    >>> files = medimg.phantom.write_ct_series(ct, folder, medimg.phantom.Identity.derive("demo", 1))
    >>> model = medimg.TransferClassifier(
    ...     "squeezenet1_1", classes=["normal", "nodule"], weights=None, preprocess=medimg.Preprocess(size=96)
    ... )
    >>> report = medimg.export.structured_report(
    ...     model, folder, codes={"nodule": ("27925004", "SCT", "Nodule")}
    ... )
    >>> groups = report.content.get_image_measurement_groups()
    >>> [group.finding_type.meaning for group in groups]
    ['normal', 'Nodule']
    """
    hd = import_highdicom()
    images = SourceImages.of(source, series)
    found = class_concepts(model.classes, codes)
    row = _predict(model, images, tta) if prediction is None else prediction
    row = _check_row(model, row)
    algorithm = Algorithm.of(model, name)
    facts = [algorithm.digest, algorithm.name, {k: [c.value, c.scheme_designator] for k, c in found.items()}]
    made = ResultSeries.of(
        images,
        "sr",
        facts,
        description=f"AI classification: {algorithm.name}",
        algorithm=algorithm,
        created=created,
    )
    with wrap_errors(images, "structured report"):
        evidence = images.refer_to_instances()
        writer = _ReportWriter(hd.sr, model, images, algorithm, evidence, row)
        report: ComprehensiveSR = hd.sr.ComprehensiveSR(
            evidence=evidence,
            content=writer.make_content(found),
            is_complete=True,
            coding_schemes=coding_scheme(),
            **made.arguments(1, row),
        )
    made.complete(report)
    # highdicom keeps a copy of the content, from before references were complete
    completed: ComprehensiveSR = hd.sr.ComprehensiveSR.from_dataset(report, copy=False)
    return completed


def _is_nan(value: object) -> bool:
    """Whether a value of a table is missing."""
    return isinstance(value, float) and math.isnan(value)


def _predict(model: TransferClassifier, images: SourceImages, tta: ViewChoice) -> Mapping[str, Any]:
    table = model.predict(images.series, tta=tta, progress=False)
    return {str(name): value for name, value in table.iloc[0].items()}


def _check_row(model: TransferClassifier, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report says of a row of a table of predictions, with rounded numbers."""
    found: dict[str, Any] = {}
    for name in (f"p_{one}" for one in model.classes):
        if name not in row:
            raise also(ConversionError, KeyError)(
                f"prediction has no {name!r}; expected a row of the table that model.predict returns"
            )
        value = check_number(
            f"prediction[{name!r}]", row[name], least=0, most=1 + 1e-6, error=ConversionError
        )
        found[name] = value
    for name in ("predicted", "flagged", "set", "unlike"):
        text = row.get(name)
        if text is None or _is_nan(text):
            continue
        if not isinstance(text, str):
            raise also(ConversionError, TypeError)(f"prediction[{name!r}] must be text; found {text!r}")
        found[name] = text
    score = row.get("ood")
    if score is not None and not _is_nan(score):
        found["ood"] = round(
            check_number("prediction['ood']", score, error=ConversionError), _DIGITS_OF_SCORE
        )
    for point in () if model.calibration is None else model.calibration.points:
        found[f"reaches_{point.label}"] = found[f"p_{point.label}"] >= point.threshold
    return {k: round(min(v, 1.0), _DIGITS) if k.startswith("p_") else v for k, v in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _ReportWriter:
    """Content of a report: TID 1500 and the templates in it; `sr` is highdicom's module."""

    sr: Any
    model: TransferClassifier
    images: SourceImages
    algorithm: Algorithm
    evidence: Sequence[Dataset]
    row: Mapping[str, Any]

    def make_content(self, found: Mapping[str, Code]) -> Any:
        """Return the tree of the report."""
        sr = self.sr
        groups = [self._make_group(name, concept) for name, concept in found.items()]
        if "ood" in self.row or self.row.get("unlike"):
            groups.append(self._make_applicability())
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=self._make_observer()),
            procedure_reported=self._list_procedures(),
            imaging_measurements=groups,
        )
        items = report[0].ContentSequence
        items.insert(len(items) - 1, self._make_library())
        return report

    def _make_observer(self) -> Any:
        algorithm = self.algorithm
        device = self.sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid("device", algorithm.digest),
            name=algorithm.name,
            manufacturer_name=MANUFACTURER,
            model_name=algorithm.name,
            serial_number=algorithm.digest,
        )
        return self.sr.ObserverContext(
            observer_type=code_concept(self.sr, ("121007", "DCM", "Device")),
            observer_identifying_attributes=device,
        )

    def _list_procedures(self) -> list[Any]:
        """Return the procedures of the study; one that holds for any image if it states none."""
        found = []
        for item in get_items(self.images.header, "ProcedureCodeSequence"):
            fields = [get_text(item, k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
            lengths = zip(map(len, fields), _LONGEST_FIELDS, strict=True)
            if all(fields) and all(found <= most for found, most in lengths):
                found.append(code_concept(self.sr, fields))
        return found or [code_concept(self.sr, _PROCEDURE)]

    def _make_library(self) -> Any:
        """Return the image library (TID 1600), with what all images have in common."""
        sr, header = self.sr, self.images.header
        context, contains = sr.RelationshipTypeValues.HAS_ACQ_CONTEXT, sr.RelationshipTypeValues.CONTAINS
        group = sr.ContainerContentItem(
            name=code_concept(sr, ("126200", "DCM", "Image Library Group")), relationship_type=contains
        )
        group.ContentSequence = sr.ContentSequence()
        modality = self.images.first.modality
        if modality:
            group.ContentSequence.append(
                sr.CodeContentItem(
                    name=code_concept(sr, ("121139", "DCM", "Modality")),
                    value=code_concept(sr, (modality, "DCM", _MODALITIES.get(modality, modality))),
                    relationship_type=context,
                )
            )
        frame_of_reference = get_text(header, "FrameOfReferenceUID")
        if frame_of_reference:
            group.ContentSequence.append(
                sr.UIDRefContentItem(
                    name=code_concept(sr, ("112227", "DCM", "Frame of Reference UID")),
                    value=frame_of_reference,
                    relationship_type=context,
                )
            )
        for one in self.evidence:
            group.ContentSequence.append(
                sr.ImageContentItem(
                    name=code_concept(sr, ("260753009", "SCT", "Source")),
                    referenced_sop_class_uid=one.SOPClassUID,
                    referenced_sop_instance_uid=one.SOPInstanceUID,
                    relationship_type=contains,
                )
            )
        library = sr.ContainerContentItem(
            name=code_concept(sr, ("111028", "DCM", "Image Library")), relationship_type=contains
        )
        library.ContentSequence = sr.ContentSequence([group])
        return library

    def _make_group(self, name: str, concept: Code) -> Any:
        """Return the measurement group (TID 1501) of a class."""
        sr, row, calibration = self.sr, self.row, self.model.calibration
        point = next((p for p in (calibration.points if calibration else ()) if p.label == name), None)
        measurements = [
            sr.Measurement(
                name=code_concept(sr, concepts.PROBABILITY),
                value=row[f"p_{name}"],
                unit=code_concept(sr, concepts.NO_UNITS),
                method=code_concept(sr, describe_calibration(self.model)),
            )
        ]
        evaluations = []
        if "predicted" in row:
            evaluations.append(self._evaluate(concepts.PREDICTED, name in _split(row["predicted"])))
        if point is not None:
            measurements.append(
                sr.Measurement(
                    name=code_concept(sr, concepts.THRESHOLD),
                    value=round(point.threshold, _DIGITS),
                    unit=code_concept(sr, concepts.NO_UNITS),
                    method=code_concept(sr, concepts.OPERATING_POINT),
                )
            )
            evaluations.append(self._evaluate(concepts.REACHES_THRESHOLD, row[f"reaches_{name}"]))
        if "set" in row:
            evaluations.append(self._evaluate(concepts.IN_SET, name in _split(row["set"])))
        return self._wrap(name, concept, measurements, evaluations)

    def _evaluate(self, concept: Code, is_so: bool) -> Any:
        value = concepts.YES if is_so else concepts.NO
        return self.sr.QualitativeEvaluation(
            name=code_concept(self.sr, concept), value=code_concept(self.sr, value)
        )

    def _make_applicability(self) -> Any:
        """Return the group with what tells the images from those of the training."""
        sr, row = self.sr, self.row
        measurements = []
        if "ood" in row:
            measurements.append(
                sr.Measurement(
                    name=code_concept(sr, concepts.OUT_OF_DISTRIBUTION),
                    value=row["ood"],
                    unit=code_concept(sr, concepts.NO_UNITS),
                    method=code_concept(sr, concepts.MAHALANOBIS),
                )
            )
        group = self._wrap("out of distribution", concepts.OUT_OF_DISTRIBUTION, measurements, [])
        if row.get("unlike"):
            group[0].ContentSequence.append(
                sr.TextContentItem(
                    name=code_concept(sr, concepts.UNLIKE),
                    value=row["unlike"],
                    relationship_type=sr.RelationshipTypeValues.CONTAINS,
                )
            )
        return group

    def _wrap(self, name: str, concept: Code, measurements: list[Any], evaluations: list[Any]) -> Any:
        sr, algorithm = self.sr, self.algorithm
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=derive_uid("tracking", self.images.first.series_uid, algorithm.digest, name),
                identifier=name,
            ),
            finding_type=code_concept(sr, concept),
            algorithm_id=sr.AlgorithmIdentification(
                name=algorithm.name,
                version=algorithm.version,
                parameters=algorithm.parameters,
                manufacturer=MANUFACTURER,
            ),
            measurements=measurements or None,
            qualitative_evaluations=evaluations or None,
            source_images=[
                sr.SourceImageForMeasurementGroup(
                    referenced_sop_class_uid=one.SOPClassUID,
                    referenced_sop_instance_uid=one.SOPInstanceUID,
                )
                for one in self.evidence
            ],
        )


#: Meanings of the modalities that are read most (PS3.16 CID 29).
_MODALITIES: Final = {
    "CR": "Computed Radiography",
    "CT": "Computed Tomography",
    "DX": "Digital Radiography",
    "IO": "Intra-oral Radiography",
    "MG": "Mammography",
    "MR": "Magnetic Resonance",
    "NM": "Nuclear Medicine",
    "PT": "Positron emission tomography",
    "PX": "Panoramic X-Ray",
    "RF": "Radiofluoroscopy",
    "US": "Ultrasound",
    "XA": "X-Ray Angiography",
}


def _split(names: str) -> list[str]:
    """Return the names that a table joins by ";"."""
    return names.split(";") if names else []
