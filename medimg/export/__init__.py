"""Results as DICOM objects, for the archive and the viewers of radiologists."""

from medimg.export.parametric_map import parametric_map
from medimg.export.secondary_capture import secondary_capture
from medimg.export.segmentation import Segment, segmentation
from medimg.export.structured_report import structured_report
from medimg.export.write_results import make_results, write_results

__all__ = [
    "Segment",
    "make_results",
    "parametric_map",
    "secondary_capture",
    "segmentation",
    "structured_report",
    "write_results",
]
