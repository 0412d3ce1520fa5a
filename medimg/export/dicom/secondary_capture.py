"""Heat maps over images, as secondary capture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medimg._public import set_module
from medimg._validation import check_whole_number
from medimg.core.content_hash import content_hash
from medimg.core.geometry import display_code
from medimg.errors import ConversionError
from medimg.export.dicom._caption import add_caption
from medimg.export.dicom._concepts import describe_calibration
from medimg.export.dicom._general_modules import ResultSeries, import_highdicom, wrap_errors
from medimg.export.dicom._heat_map import find_explanation, identify_explanation
from medimg.export.dicom._source_images import SourceImages
from medimg.export.dicom.algorithm import SOFTWARE, Algorithm
from medimg.io.dicom.header.attributes import get_value

if TYPE_CHECKING:
    import datetime

    from highdicom.sc import SCImage

    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier
    from medimg.saliency.explanation import Explanation

__all__ = ["secondary_capture"]

_NOTICE: Final = "Derived by software, not for diagnostic use."
_PRIVACY: Final = ("BurnedInAnnotation", "RecognizableVisualFeatures")
_LOSSY: Final = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@set_module("medimg.export")
def secondary_capture(
    model: TransferClassifier,
    source: Source,
    *,
    target: str | int | None = None,
    explanation: Explanation | None = None,
    most: int = 12,
    name: str | None = None,
    series: str | int | None = None,
    created: datetime.datetime | None = None,
) -> list[SCImage]:
    """
    Make DICOM images of slices with their heat map in color (Secondary Capture), which any viewer shows.

    Below each image a caption has the class, its probability, whether it is calibrated, the slice, the model,
    and that software made it. Slices are in display orientation, in the window of the model, with square
    pixels; small ones are enlarged by a whole number. They have no position in the patient: see
    :func:`parametric_map`.

    Parameters
    ----------
    model : TransferClassifier
        Model to explain.
    source : str, Path, bytes, Series, or list of these
        DICOM images of one series; see :func:`medimg.read`.
    target : str or int, optional
        Class to explain; by default the most probable one. See :func:`medimg.explain`.
    explanation : Explanation, optional
        Explanation of this source by this model; by default it is computed.
    most : int
        Largest number of slices; those with the most heat are taken.
    name : str, optional
        Name of the algorithm; by default that of the backbone.
    series : str or int, optional
        UID or index of one of several series of the source.
    created : datetime, optional
        Date and time of the images; by default now. Their UIDs do not depend on it.

    Returns
    -------
    list of highdicom.sc.SCImage
        One image for each slice, in order, of one series.

    Raises
    ------
    ConversionError
        If the source is not DICOM, or lacks an attribute that the images have to have.
    GeometryError
        If the explanation is not of this source.
    ReadError, SeriesError, PreprocessError, TrainingError
        See :func:`medimg.explain`.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).
    """
    hd = import_highdicom()
    most = check_whole_number("most", most, least=1, error=ConversionError)
    images = SourceImages.of(source, series)
    found = find_explanation(model, images, explanation, target)
    algorithm = Algorithm.of(model, name)
    made = ResultSeries.of(
        images,
        "sc",
        [algorithm.digest, algorithm.name, identify_explanation(found), most],
        description=f"AI heat map: {found.target}",
        algorithm=algorithm,
        created=created,
    )
    hottest = np.argsort(-found.heat.max(axis=(1, 2)), kind="stable")[:most]
    chosen = sorted(found.slices[n] for n in hottest)
    pages = _Pages(hd, made, found, algorithm, describe_calibration(model).meaning)
    return [pages.make_page(number, index) for number, index in enumerate(chosen, 1)]


@dataclass(frozen=True, slots=True, eq=False)
class _Pages:
    """Maker of the images of a series."""

    hd: Any
    series: ResultSeries
    explanation: Explanation
    algorithm: Algorithm
    calibration: str

    def make_page(self, number: int, index: int) -> SCImage:
        """Return the image of a slice."""
        series, found = self.series, self.explanation
        source = series.source
        caption = self._write_caption(index)
        pixels = np.ascontiguousarray(add_caption(found.overlay(index), caption))
        (reference,) = source.refer_to_slices((index,))
        with wrap_errors(source, "secondary capture"):
            page: SCImage = self.hd.sc.SCImage.from_ref_dataset(
                ref_dataset=reference,
                pixel_array=pixels,
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=("L", "P"),
                transfer_syntax_uid=ExplicitVRLittleEndian,
                **series.arguments(number, content_hash(pixels.tobytes())),
            )
            page.PatientOrientation = _find_orientation(source, found)
            page.SourceImageSequence = [_refer(self.hd, reference)]
            page.DerivationDescription = " ".join(caption)
            page.ImageComments = _NOTICE
            for keyword in (*_PRIVACY, *_LOSSY):
                value = get_value(source.header, keyword)
                if value is not None and value != "":
                    setattr(page, keyword, value)
        series.complete(page)
        return page

    def _write_caption(self, index: int) -> list[str]:
        found, algorithm = self.explanation, self.algorithm
        depth = found.volume.shape[1]
        where = f", slice {index + 1} of {depth}" if depth > 1 else ""
        return [
            f"AI heat map: {found.target}, probability {found.probability:.3f}{where}.",
            f"{self.calibration}. {algorithm.name} {algorithm.version}, {SOFTWARE}.",
            _NOTICE,
        ]


def _refer(hd: Any, reference: Dataset) -> Dataset:
    """Return a reference to a slice as the source of an image."""
    item = Dataset()
    item.ReferencedSOPClassUID = reference.SOPClassUID
    item.ReferencedSOPInstanceUID = reference.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept("121322", "DCM", "Source image for image processing operation")
    ]
    return item


def _find_orientation(images: SourceImages, found: Explanation) -> list[str]:
    """Return the directions of rows and columns; of an image without a position those that it states."""
    if found.volume.space == "patient":
        code = display_code(found.volume.affine).replace("S", "H").replace("I", "F")
        return [code[2], code[1]]
    return images.stated_orientation
