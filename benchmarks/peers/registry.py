"""Which libraries there are, and what each can do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from benchmarks.peers.job import CannotError

if TYPE_CHECKING:
    from benchmarks.peers.job import Job

__all__ = ["COLUMNS", "COMMON", "NOT_ITS_WORK", "Task", "available", "task"]

Task: TypeAlias = "Callable[[Job], Callable[[], Any]]"

#: Column of the table → module.
COLUMNS: Final = {
    "limit": "limit",
    "medimg": "medimg_",
    "pydicom": "pydicom_",
    "pydicom + torch": "pydicom_torch",
    "pydicom + PIL": "pydicom_pil",
    "SimpleITK": "simpleitk",
    "MONAI ITK": "monai_itk",
    "MONAI pydicom": "monai_pydicom",
    "TorchIO": "torchio_",
    "dicomsdl": "dicomsdl_",
    "fastdicom": "fastdicom_",
    "medrs": "medrs_",
    "radreader": "radreader_",
    "highdicom": "highdicom_",
    "nibabel": "nibabel_",
}
#: Why most cells are empty.
NOT_ITS_WORK: Final = "no part of what the library does"
#: Columns that every run has.
COMMON: Final = ("limit", "medimg")


def available(column: str) -> str:
    """Return "" if a column can be run here, else the reason why not."""
    try:
        import_module(f"benchmarks.peers.{COLUMNS[column]}")
    except ImportError as error:
        return f"not installed ({error.name or error})"
    return ""


def task(column: str, kind: str) -> Task:
    """
    Return what prepares a kind of work in a column.

    Raises
    ------
    CannotError
        If the library is not installed, or can't do it.
    """
    reason = available(column)
    if reason:
        raise CannotError(reason)
    module = import_module(f"benchmarks.peers.{COLUMNS[column]}")
    found: Task | None = getattr(module, kind, None)
    if found is None:
        reasons: dict[str, str] = getattr(module, "CANNOT", {})
        raise CannotError(reasons.get(kind, NOT_ITS_WORK))
    return found
