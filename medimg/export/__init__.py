"""Results as DICOM objects, and models for use elsewhere."""

from medimg.export.dicom.parametric_map import parametric_map
from medimg.export.dicom.secondary_capture import secondary_capture
from medimg.export.dicom.segmentation import Segment, segmentation
from medimg.export.dicom.structured_report import structured_report
from medimg.export.dicom.write_results import make_results, write_results

__all__ = [
    "Segment",
    "make_results",
    "parametric_map",
    "secondary_capture",
    "segmentation",
    "structured_report",
    "write_results",
]
