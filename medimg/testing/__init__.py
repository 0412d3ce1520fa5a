"""
Checks that a reader fulfills its contract.

Every reader of images for medimg, built in or yours, returns :class:`medimg.Series`, which read into
:class:`medimg.Volume`. Their contract is a list of named checks, each with its rule in one sentence:

- ``VOLUME_CHECKS``: a volume by itself — four axes, read-only plain numbers in memory, a valid affine,
  channels, colors, windows and padding that fit, voxels that keep their positions.
- ``READER_CHECKS``: a series and its reader — the promised shape and geometry, some slices bit-for-bit
  identical to those of the whole, equal values again and in threads, warnings repeated in the report, nothing
  printed, written, left open or changed, no patient named. They include the checks of volumes, and for DICOM
  compare with the files as pydicom reads them: positions, spacing, SOP Instance UIDs, rescaled stored values.
- ``FILE_CHECKS``: a format of single files — renamed, with others beside it, missing, truncated, damaged.

:mod:`medimg.testing.studies` writes DICOM of known content, and :mod:`medimg.testing.strategies` draws such
studies, volumes and affines for Hypothesis (``pip install "medimg[testing]"``).

Test a reader like this::

    import pytest
    import medimg.testing
    from mypackage import minc_series  # path → medimg.Series

    @pytest.mark.parametrize("check", medimg.testing.READER_CHECKS)
    def test_reader(check):
        check(minc_series("tests/brain.mnc"), secrets=["Doe^Jane"])

    @pytest.mark.parametrize("check", medimg.testing.FILE_CHECKS)
    def test_files(check):
        check("tests/brain.mnc", minc_series)

Examples
--------
>>> import tempfile
>>> import medimg
>>> from medimg.testing.studies import Study, write_dicom
>>> with tempfile.TemporaryDirectory() as folder:
...     (truth,) = write_dicom(Study(slices=4), folder)
...     (series,) = medimg.scan(folder)
...     volume = check_series(series)
>>> bool((volume.array == truth.array).all())
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.testing.check import Check
from medimg.testing.corruption import damaged
from medimg.testing.dicom_checks import DICOM_CHECKS
from medimg.testing.file_checks import FILE_CHECKS, FileCheck
from medimg.testing.observed_read import Reading
from medimg.testing.reader_checks import READER_CHECKS as _READER_CHECKS
from medimg.testing.volume_checks import VOLUME_CHECKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.volume import Volume
    from medimg.io.series import Series
    from medimg.testing.observed_read import Read

__all__ = [
    "FILE_CHECKS",
    "READER_CHECKS",
    "VOLUME_CHECKS",
    "Check",
    "FileCheck",
    "Reading",
    "check_series",
    "check_volume",
    "damaged",
]

#: Checks of every series and its reader.
READER_CHECKS: Final[tuple[Check, ...]] = (*_READER_CHECKS, *DICOM_CHECKS, *VOLUME_CHECKS)


def check_series(series: Series, *, read: Read | None = None, secrets: Sequence[str] = ()) -> Volume:
    """
    Check that a series and its reader fulfill the whole contract.

    Parameters
    ----------
    series : Series
        Series from :func:`medimg.scan`, or from your reader.
    read : callable, optional
        Function that reads some slices, or all for None; ``series.read`` by default. Set policies by
        ``functools.partial(series.read, on_missing="keep")``; those that resample or keep duplicates change
        the shape, and are outside the contract.
    secrets : sequence of str
        Texts of the file that identify the patient, which must not appear anywhere; those of DICOM are known.

    Returns
    -------
    Volume
        The volume.

    Raises
    ------
    AssertionError
        If a rule is broken; the message lists all that are.
    MedimgError
        If the reader refuses the series, so that there is nothing to check.
    """
    reading = Reading(series, read=read, secrets=secrets)
    _run_checks(READER_CHECKS, reading)
    return reading.volume


def check_volume(volume: Volume, *, secrets: Sequence[str] = ()) -> None:
    """
    Check that a volume fulfills the contract.

    Parameters
    ----------
    volume : Volume
        Volume read from any format, or made in memory.
    secrets : sequence of str
        Texts that identify the patient, which must not appear anywhere.

    Raises
    ------
    AssertionError
        If a rule is broken; the message lists all that are.
    """
    _run_checks(VOLUME_CHECKS, Reading.of_volume(volume, secrets=secrets))


def _run_checks(checks: Sequence[Check], reading: Reading) -> None:
    broken = []
    for check in checks:
        try:
            check(reading)
        except AssertionError as error:
            broken.append(str(error))
    if broken:
        raise AssertionError(f"{len(broken)} of {len(checks)} rules broken\n" + "\n".join(broken))
