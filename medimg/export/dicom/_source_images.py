"""The images that a result is derived from: their headers, order and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, SecondaryCaptureImageStorage

from medimg.errors import ConversionError, GeometryError
from medimg.export.dicom._patient_study import STUDY_KEYWORDS
from medimg.io.dicom.header.attributes import get_text, get_texts, get_value, quiet_pydicom
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.dicom.tags.header_dataset import check_unchanged
from medimg.io.read import find_series

if TYPE_CHECKING:
    from medimg.core.volume import Volume
    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.read import Source
    from medimg.io.series import Series

__all__ = ["SourceImages"]

#: UIDs below these stand for an instance or a slice, until :meth:`SourceImages.resolve_references`.
_INSTANCE: Final = "2.25.0.1."
_SLICE: Final = "2.25.0.2."
_ROUNDING: Final = 1e-3
_LOSSY: Final = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_EQUIPMENT: Final = ("Manufacturer", "ManufacturerModelName")
_LONGEST: Final = 64
#: What results copy, or look at: all that is read of a source but its pixels, also from a server.
_TAGS: Final = to_tags(
    *STUDY_KEYWORDS,
    *_LOSSY,
    *_EQUIPMENT,
    *("SOPInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientOrientation"),
    *(
        "BodyPartExamined",
        "Laterality",
        "ImageLaterality",
        "BurnedInAnnotation",
        "RecognizableVisualFeatures",
    ),
)
#: Below 1.2.840.10008.5.1.4.1.1: SOP classes of single images, which are referred to without frame numbers,
#: also if an instance has several frames against its class.
_SINGLE_FRAME: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "4", "6", "6.1", "7", "128"),
        *("77.1.1", "77.1.2", "77.1.3", "77.1.4", "77.1.7"),
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class SourceImages:
    """A DICOM series, what results need of its first header, and the frames of its first channel by slice."""

    series: Series
    header: Dataset
    frames: tuple[Frame, ...]
    instances: tuple[Instance, ...]

    @classmethod
    def of(cls, source: Source, series: str | int | None = None) -> SourceImages:
        """Read the headers of a source; ConversionError names what a result needs and they lack."""
        found, _ = find_series(source, series)
        if not isinstance(found.reader, StackReader):
            raise ConversionError(
                f"{found.path} is {found.format}; a DICOM result needs DICOM images, whose patient and study "
                "it is stored with"
            )
        plan = found.reader.plan
        instances = tuple({one.sop_instance_uid: one for one in plan.instances}.values())
        first = plan.first.instance
        header = open_dataset(first.blob, tags=_TAGS)
        check_unchanged(header, first)
        _check_identifiers(instances)
        return cls(found, header, tuple(plan.channels[0]), instances)

    @property
    def first(self) -> Instance:
        """Instance of the first slice."""
        return self.frames[0].instance

    @property
    def path(self) -> str:
        """Name of its first file, for messages."""
        return self.first.path

    @property
    def is_placed(self) -> bool:
        """Whether its pixels have a position in the patient."""
        return self.series.space == "patient" and all(one.has_geometry for one in self.frames)

    @property
    def stated_orientation(self) -> list[str]:
        """Directions of rows and columns that the first image states; empty if it states none."""
        stated = get_texts(self.header, "PatientOrientation")
        return list(stated) if len(stated) == 2 else []

    def check_volume(self, volume: Volume) -> None:
        """Raise GeometryError unless a volume has the voxels of the series, in its order."""
        expected, found = self.series.shape[1:], volume.shape[1:]
        if found != expected:
            raise GeometryError(
                f"the volume has {'×'.join(map(str, found))} voxels, the series {self.path} has "
                f"{'×'.join(map(str, expected))}: results are stored on the pixels of their source; pass the "
                "images that the volume was read from"
            )
        difference = np.abs(volume.affine - self.series.affine).max()
        if self.is_placed and (volume.space != "patient" or difference > _ROUNDING):
            raise GeometryError(
                f"the volume is not at the position of the series {self.path}, or in another orientation: "
                "results are stored on the pixels of their source"
            )

    def check_placed(self, what: str, *, single: bool = False) -> None:
        """Raise ConversionError if a result needs positions in the patient; a `single` image needs none."""
        if self.is_placed or (single and len(self.frames) == 1):
            return
        or_one = ", or one image" if single else "; secondary_capture needs none"
        raise ConversionError(
            f"{self.path}: a {what} needs positions in the patient (ImagePositionPatient, "
            f"ImageOrientationPatient), and they are missing; expected them for each of the "
            f"{len(self.frames)} image(s){or_one}"
        )

    def refer_to_instances(self) -> list[Dataset]:
        """Return what stands for each instance; see :meth:`resolve_references`."""
        return [self._make_reference(f"{_INSTANCE}{n}", one) for n, one in enumerate(self.instances)]

    def refer_to_slices(self, slices: tuple[int, ...]) -> list[Dataset]:
        """Return what stands for slices; see :meth:`resolve_references`."""
        return [self._make_reference(f"{_SLICE}{d}", self.frames[d].instance) for d in slices]

    def refer_to_positions(self, slices: tuple[int, ...]) -> list[Dataset]:
        """
        Return what stands for slices, with their positions if they have any.

        Raises ConversionError if positions, or their frame of reference, are not complete.
        """
        found = self.refer_to_slices(slices)
        if not self.is_placed:
            return found
        frame_of_reference = _read_uid(self.header, "FrameOfReferenceUID", self.path)
        indicator = get_text(self.header, "PositionReferenceIndicator")
        for made, d in zip(found, slices, strict=True):
            made.FrameOfReferenceUID = frame_of_reference
            made.PositionReferenceIndicator = indicator if len(indicator) <= _LONGEST else ""
            self._place(made, self.frames[d])
        return found

    def _place(self, made: Dataset, frame: Frame) -> None:
        facts = frame.facts
        if facts.pixel_spacing is None:
            raise ConversionError(f"{frame.instance.path} has a position, but no PixelSpacing")
        made.ImagePositionPatient = _to_decimals(facts.position or ())
        # of the first slice: others may differ by rounding, and an image of several frames has one
        made.ImageOrientationPatient = _to_decimals(self.frames[0].facts.orientation or ())
        made.PixelSpacing = _to_decimals(facts.pixel_spacing)
        between = self.series.spacing[0]
        made.SliceThickness = _to_decimals([facts.slice_thickness or between])[0]

    def _make_reference(self, uid: str, instance: Instance) -> Dataset:
        """Return a header with only what highdicom needs: it copies all else from there, valid or not."""
        made = Dataset()
        made.SOPClassUID = CTImageStorage if self.is_placed else SecondaryCaptureImageStorage
        made.SOPInstanceUID = uid
        made.StudyInstanceUID = instance.study_uid
        made.SeriesInstanceUID = instance.series_uid
        made.Modality = "OT"
        made.Rows, made.Columns, made.SamplesPerPixel = instance.rows, instance.columns, instance.samples
        for keyword in (
            *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
            *("StudyDate", "StudyTime", "ReferringPhysicianName"),
        ):
            setattr(made, keyword, "")
        for keyword in _EQUIPMENT:
            text = " ".join(get_texts(self.header, keyword))
            if text and len(text) <= _LONGEST:
                setattr(made, keyword, text)
        if get_value(self.header, "LossyImageCompression") == "01":
            for keyword in _LOSSY:
                value = get_value(self.header, keyword)
                if value is not None:
                    setattr(made, keyword, value)
        return made

    def resolve_references(self, dataset: Dataset) -> None:
        """Replace what stands for instances and slices, in all sequences, by references to them."""
        for element in dataset:
            if element.VR != "SQ":
                continue
            for item in element.value:
                self.resolve_references(item)
            references = [item for item in element.value if "ReferencedSOPInstanceUID" in item]
            if not references:
                continue
            with_frames = {
                id(item)
                for item in references
                if self._resolve(item, with_frame=element.keyword != "ReferencedInstanceSequence")
            }
            # one reference to each instance, unless they name frames
            seen: set[str] = set()
            kept = []
            for item in element.value:
                uid = str(item.get("ReferencedSOPInstanceUID", ""))
                if not uid or id(item) in with_frames or uid not in seen:
                    kept.append(item)
                seen.add(uid)
            if len(kept) < len(element.value):
                element.value = kept

    def _resolve(self, item: Dataset, *, with_frame: bool) -> bool:
        """Replace one reference; return whether it names a frame."""
        uid = str(item.ReferencedSOPInstanceUID)
        if not uid.startswith((_INSTANCE, _SLICE)):
            return False
        number = int(uid.rpartition(".")[2])
        frame = self.frames[number] if uid.startswith(_SLICE) else None
        instance = self.instances[number] if frame is None else frame.instance
        item.ReferencedSOPClassUID = instance.sop_class_uid
        item.ReferencedSOPInstanceUID = instance.sop_instance_uid
        if frame is None or not with_frame or instance.sop_class_uid in _SINGLE_FRAME:
            return False
        if not any(facts.number for facts in instance.facts):
            return False
        item.ReferencedFrameNumber = frame.facts.number + 1
        return True


def _check_identifiers(instances: tuple[Instance, ...]) -> None:
    """Raise ConversionError unless all instances have the UIDs by which they are referred to."""
    for one in instances:
        for keyword, uid in (
            ("SOPClassUID", one.sop_class_uid),
            ("SOPInstanceUID", one.sop_instance_uid),
            ("SeriesInstanceUID", one.series_uid),
            ("StudyInstanceUID", one.study_uid),
        ):
            _check_uid(keyword, uid, one.path)


def _read_uid(header: Dataset, keyword: str, path: str) -> str:
    with quiet_pydicom():
        return _check_uid(keyword, "\\".join(get_texts(header, keyword)), path)


def _check_uid(keyword: str, uid: str, path: str) -> str:
    if not uid:
        raise ConversionError(f"{path} has no {keyword}, which a result has to refer to")
    if not UID(uid).is_valid:
        raise ConversionError(f"{path} has a {keyword} that is not a UID, and a result has to refer to it")
    return uid


def _to_decimals(values: Any) -> list[Any]:
    """Return numbers as decimal strings of at most 16 characters."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]
