"""What all results have in common: patient, study, series, equipment, dates and references."""

from __future__ import annotations

import datetime
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pydicom.valuerep import DA, DT, TM

from medimg._validation import check_choice
from medimg.errors import ConversionError, MedimgError, MissingDependencyError
from medimg.export.dicom._concepts import SCHEME
from medimg.export.dicom._derived_uid import derive_uid
from medimg.export.dicom._patient_study import copy_study, set_character_set
from medimg.export.dicom.algorithm import SOFTWARE, Algorithm
from medimg.io.dicom.header.attributes import get_text, quiet_pydicom
from medimg.io.own_results import MANUFACTURER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

    from medimg.export.dicom._source_images import SourceImages

__all__ = ["ResultSeries", "import_highdicom", "result_series_uid", "wrap_errors"]

#: Kinds of results, in the order of their series numbers.
KINDS: Final = ("sr", "sc", "pm", "seg")
_MOST_SERIES: Final = (2**31 - 1) // 100
_UNNUMBERED: Final = 9000
_OFFSET: Final = re.compile(r"[+-]\d{4}")
_LONGEST: Final = 64
_SIDES: Final = ("L", "R")
#: PS3.5 6.2: CS.
_CODE_STRING: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
#: Body parts without a side (PS3.16 annex L), for which Laterality is absent.
_TABLE: Final = """
    ABDOMEN ABDOMENPELVIS AORTA BACK BLADDER BRAIN CEREBELLUM CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS
    CIRCLEOFWILLIS COCCYX COLON CORONARYARTERY CSPINE CTSPINE DUODENUM ESOPHAGUS FACE GALLBLADDER HEAD
    HEADNECK HEART ILEUM ILIUM JAW JEJUNUM LARYNX LIVER LSPINE LSSPINE MAXILLA MEDIASTINUM MOUTH NECK
    NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE PANCREAS PELVIS PENIS PHARYNX PROSTATE RECTUM SCALP
    SKULL SPINE SPLEEN SSPINE STERNUM STOMACH THYMUS THYROID TLSPINE TONGUE TRACHEA TSPINE URETER URETHRA
    UTERUS VAGINA VULVA WHOLEBODY
"""
_UNPAIRED: Final = frozenset(_TABLE.split())


def import_highdicom() -> Any:
    """Import highdicom; MissingDependencyError says how to install it."""
    try:
        for name in ("color", "pm", "sc", "seg", "sr"):
            import_module(f"highdicom.{name}")
        return import_module("highdicom")
    except ImportError:
        raise MissingDependencyError(
            "results as DICOM need highdicom, which is not installed; install it with: "
            'pip install "medimg[dicom-out]"'
        ) from None


def result_series_uid(source: SourceImages, kind: str, *facts: object) -> str:
    """Return the UID of the series of a result: that of the same images, model and settings is the same."""
    uids = [one.sop_instance_uid for one in source.instances]
    return derive_uid(kind, source.first.series_uid, sorted(uids), SOFTWARE, *facts)


@dataclass(frozen=True, slots=True)
class ResultSeries:
    """A series of results of one kind: `facts` identify it, with its source."""

    source: SourceImages
    kind: str
    facts: tuple[object, ...]
    description: str
    algorithm: Algorithm | None
    created: datetime.datetime

    @classmethod
    def of(
        cls,
        source: SourceImages,
        kind: str,
        facts: Sequence[object],
        *,
        description: str,
        algorithm: Algorithm | None,
        created: datetime.datetime | None,
    ) -> ResultSeries:
        """Check and complete what a series is made of."""
        check_choice("kind", kind, KINDS)
        moment = _choose_moment(source, created)
        text = " ".join(description.replace("\\", "/").split())[:_LONGEST]
        return cls(source, kind, tuple(facts), text, algorithm, moment)

    @property
    def uid(self) -> str:
        """Series Instance UID."""
        return result_series_uid(self.source, self.kind, *self.facts)

    @property
    def number(self) -> int:
        """Series Number: that of the source, and two digits."""
        found = self.source.first.series_number
        base = found if isinstance(found, int) and 0 < found < _MOST_SERIES else _UNNUMBERED
        return base * 100 + 1 + KINDS.index(self.kind)

    def arguments(self, number: int, *content: object) -> dict[str, Any]:
        """Return arguments of highdicom's constructors, for one instance; `content` identifies it."""
        return {
            "series_instance_uid": self.uid,
            "series_number": self.number,
            "sop_instance_uid": derive_uid(self.uid, number, *content),
            "instance_number": number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.algorithm.name if self.algorithm else MANUFACTURER,
            "software_versions": SOFTWARE,
            "device_serial_number": self.algorithm.digest if self.algorithm else "0",
            "series_description": self.description,
        }

    def complete(self, dataset: Dataset) -> None:
        """Add to an instance what all results have in common; see PS3.3 C.7 and C.12.1."""
        source = self.source
        source.resolve_references(dataset)
        with quiet_pydicom():
            if "DimensionOrganizationSequence" in dataset:
                _set_dimension_uid(dataset, derive_uid(str(dataset.SOPInstanceUID), "dimensions"))
            for item in dataset.get("ContributingEquipmentSequence", ()):
                if "ContributionDateTime" in item:
                    item.ContributionDateTime = DT(self.created)
            date, time = DA(self.created.date()), TM(self.created.time())
            for name in ("InstanceCreation", "Series", "Content"):
                setattr(dataset, f"{name}Date", date)
                setattr(dataset, f"{name}Time", time)
            if "DateOfSecondaryCapture" in dataset:
                dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
            if dataset.Modality != "SR":
                _copy_body_part(source.header, dataset)
        copy_study(source.header, dataset, source.path)
        set_character_set(source.header, dataset, source.path)


def _choose_moment(source: SourceImages, created: datetime.datetime | None) -> datetime.datetime:
    """Return when a result was made, without time zone: in that of the source, if it states one."""
    if created is not None and not isinstance(created, datetime.datetime):
        raise ConversionError(f"created must be a datetime; found a {type(created).__name__}")
    stated = get_text(source.header, "TimezoneOffsetFromUTC")
    zone = None
    if _OFFSET.fullmatch(stated):
        minutes = int(stated[0] + "1") * (60 * int(stated[1:3]) + int(stated[3:]))
        zone = datetime.timezone(datetime.timedelta(minutes=minutes))
    moment = datetime.datetime.now(datetime.UTC) if created is None else created
    if moment.tzinfo is not None:
        moment = moment.astimezone(zone).replace(tzinfo=None)
    return moment.replace(microsecond=0)


def _copy_body_part(header: Dataset, dataset: Dataset) -> None:
    """Copy body part and side; the side of a part that can be paired is stated as unknown if it is."""
    body_part = get_text(header, "BodyPartExamined")
    if _CODE_STRING.fullmatch(body_part):
        dataset.BodyPartExamined = body_part
    # segments have their own
    if dataset.Modality == "SEG" or body_part in _UNPAIRED:
        return
    # radiographs state the side of each image
    stated = (get_text(header, keyword) for keyword in ("Laterality", "ImageLaterality"))
    dataset.Laterality = next((side for side in stated if side in _SIDES), "")


def _set_dimension_uid(dataset: Dataset, uid: str) -> None:
    """Replace the random UID of an organization of dimensions."""
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(keyword, ()):
            item.DimensionOrganizationUID = uid


@contextmanager
def wrap_errors(source: SourceImages, kind: str) -> Iterator[None]:
    """Raise ConversionError for what highdicom refuses; its texts, which can quote values, are left out."""
    try:
        with quiet_pydicom():
            yield
    except MedimgError:
        raise
    # whatever it finds: it raises AttributeError, KeyError, TypeError and ValueError
    except Exception as error:
        raise ConversionError(
            f"highdicom can't make a {kind} of {source.path} ({type(error).__name__})"
        ) from None


def coding_scheme() -> list[Any]:
    """Return the identification of the private coding scheme."""
    identification = import_module("highdicom.coding_schemes").CodingSchemeIdentificationItem
    return [
        identification(
            SCHEME,
            name="Concepts of medimg, and names of the classes of models",
            responsible_organization="medimg",
        )
    ]
