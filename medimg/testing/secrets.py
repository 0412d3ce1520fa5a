"""What in a header identifies the patient, for looking whether it turns up elsewhere."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from medimg.io.dicom.attributes import quiet_pydicom
from medimg.testing.raw import dataset_of

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["secrets_of"]

_KEYWORDS: Final = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate",
    "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers",
    "ReferringPhysicianName", "OperatorsName",
)  # fmt: skip
_SHORTEST: Final = 5
#: What stands in for names in test files, and in the texts of medimg for what it means.
_COMMON: Final = frozenset({"patient", "series", "volume", "image", "slice", "array", "unknown", "anonymous"})


def secrets_of(series: Series) -> frozenset[str]:
    """
    Return the texts of a series that identify the patient.

    Short ones are left out, as they turn up by chance, and those that stand in the path of the files or in
    the description, which whoever chose them shows anyway.
    """
    shown = " ".join((*series.files, series.description, series.uid, series.format)).lower()
    found = {series.patient_id} | (_in_file(series.path) if series.format == "DICOM" else frozenset())
    return frozenset(
        s for s in found if len(s) >= _SHORTEST and s.lower() not in _COMMON and s.lower() not in shown
    )


@lru_cache(maxsize=64)
def _in_file(path: str) -> frozenset[str]:
    dataset = dataset_of(path)
    if dataset is None:
        return frozenset()
    found: set[str] = set()
    with quiet_pydicom():
        for keyword in _KEYWORDS:
            try:
                text = str(dataset.get(keyword) or "").strip()
            # a damaged value identifies nobody
            except Exception:
                continue
            found |= {text, *text.replace("=", "^").split("^")}
    return frozenset(s.strip() for s in found)
