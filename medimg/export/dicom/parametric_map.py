"""Heat maps as parametric maps, at their position in the patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medimg._public import set_module
from medimg.core.content_hash import content_hash
from medimg.export.dicom._concepts import NO_UNITS, SALIENCY, describe_calibration
from medimg.export.dicom._general_modules import ResultSeries, import_highdicom, wrap_errors
from medimg.export.dicom._heat_map import find_explanation, identify_explanation
from medimg.export.dicom._source_images import SourceImages
from medimg.export.dicom.algorithm import SOFTWARE, Algorithm

if TYPE_CHECKING:
    import datetime

    from highdicom.pm import ParametricMap

    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier
    from medimg.saliency.explanation import Explanation

__all__ = ["parametric_map"]


@set_module("medimg.export")
def parametric_map(
    model: TransferClassifier,
    source: Source,
    *,
    target: str | int | None = None,
    explanation: Explanation | None = None,
    name: str | None = None,
    series: str | int | None = None,
    created: datetime.datetime | None = None,
) -> ParametricMap:
    """
    Make a DICOM Parametric Map of a heat map: values from 0 to 1 on the pixels of the source.

    :func:`medimg.read` reads it as a volume with the affine of the source; viewers can fuse both.

    Parameters
    ----------
    model, source, target, explanation, name, series, created
        See :func:`secondary_capture`. The source has a position in the patient.

    Returns
    -------
    highdicom.pm.ParametricMap
        32-bit floating-point values, a frame for each slice.

    Raises
    ------
    ConversionError
        If the source is not DICOM, or lacks an attribute that the map has to have, such as
        FrameOfReferenceUID.
    GeometryError
        If the explanation is not of this source.
    ReadError, SeriesError, PreprocessError, TrainingError
        See :func:`medimg.explain`.
    MissingDependencyError
        If highdicom is not installed (extra ``dicom-out``).
    """
    hd = import_highdicom()
    images = SourceImages.of(source, series)
    images.check_placed("parametric map")
    found = find_explanation(model, images, explanation, target)
    algorithm = Algorithm.of(model, name)
    made = ResultSeries.of(
        images,
        "pm",
        [algorithm.digest, algorithm.name, identify_explanation(found)],
        description=f"AI heat map (values): {found.target}",
        algorithm=algorithm,
        created=created,
    )
    heat = np.ascontiguousarray(found.heat, dtype=np.float32)
    references = images.refer_to_positions(found.slices)
    with wrap_errors(images, "parametric map"):
        saliency = hd.sr.CodedConcept(*SALIENCY)
        result = hd.pm.ParametricMap(
            source_images=references,
            pixel_array=heat,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                hd.pm.RealWorldValueMapping(
                    lut_label="heat",
                    lut_explanation="Saliency, relative to its maximum",
                    unit=hd.sr.CodedConcept(*NO_UNITS),
                    value_range=(0.0, 1.0),
                    slope=1.0,
                    intercept=0.0,
                    quantity_definition=saliency,
                )
            ],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
            content_label="HEAT_MAP",
            content_description=f"{algorithm.name} {algorithm.version}"[:64],
            **made.arguments(1, content_hash(heat.tobytes())),
        )
        result.DerivationDescription = (
            f"Heat map ({found.method}) of {found.target}, probability {found.probability:.3f} "
            f"({describe_calibration(model).meaning}), {algorithm.name} {algorithm.version}, {SOFTWARE}"
        )
    made.complete(result)
    # highdicom keeps a table of frames, from before references were complete
    completed: ParametricMap = hd.pm.ParametricMap.from_dataset(result, copy=False)
    return completed
