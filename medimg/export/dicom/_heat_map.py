"""The heat map that a result shows: given, or computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medimg.errors import ConversionError, also
from medimg.saliency.explain import explain
from medimg.saliency.explanation import Explanation

if TYPE_CHECKING:
    from medimg.export.dicom._source_images import SourceImages
    from medimg.models.classifier import TransferClassifier

__all__ = ["find_explanation", "identify_explanation"]


def find_explanation(
    model: TransferClassifier, images: SourceImages, explanation: Explanation | None, target: str | int | None
) -> Explanation:
    """Return an explanation of the source by the model; a given one has to be of its pixels."""
    if explanation is None:
        explanation = explain(model, images.series, target, progress=False)
    elif not isinstance(explanation, Explanation):
        raise also(ConversionError, TypeError)(
            "explanation must be an Explanation, as medimg.explain returns; found a "
            f"{type(explanation).__name__}"
        )
    elif target is not None:
        raise ConversionError("target has no effect on a given explanation; give one of them")
    images.check_volume(explanation.volume)
    return explanation


def identify_explanation(explanation: Explanation) -> list[Any]:
    """Return what distinguishes an explanation from others of the same model and images."""
    return [explanation.target, explanation.method, explanation.layer, list(explanation.slices)]
