"""
The contract of a reader, written down and executable.

Whatever reads images for medimg, its own readers or yours, hands out :class:`medimg.Series`, which read into
:class:`medimg.Volume`. What these must satisfy is a list of named checks, each with its rule in one sentence:

- ``VOLUME_CHECKS``: a volume by itself — four axes, read-only plain numbers in memory, a sound affine,
  channels, colors, windows and padding that fit, voxels that keep their places.
- ``READER_CHECKS``: a series and its reader — the promised shape and place, some slices equal to those
  of all bit by bit, equal values again and in threads, warnings that the report repeats, nothing printed,
  written, left open or changed, nobody named. They include those of volumes, and for DICOM what the files say
  as pydicom alone sees them: positions, spacing, SOP Instance UIDs, rescaled stored values.
- ``FILE_CHECKS``: a format of single files — renamed, with others beside it, gone, cut short, damaged.

Beside that, :mod:`medimg.testing.studies` writes DICOM whose content is known, and
:mod:`medimg.testing.strategies` draws such studies, volumes and affines for Hypothesis
(``pip install "medimg[testing]"``).

A reader is tested like this::

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

#: What every series and its reader must satisfy.
READER_CHECKS: Final[tuple[Check, ...]] = (*_READER_CHECKS, *DICOM_CHECKS, *VOLUME_CHECKS)


def check_series(series: Series, *, read: Read | None = None, secrets: Sequence[str] = ()) -> Volume:
    """
    Hold a series and its reader to the whole contract.

    Parameters
    ----------
    series : Series
        What :func:`medimg.scan` found, or your reader made.
    read : callable, optional
        Reads some slices, or all for None; ``series.read`` by default. Policies are given by
        ``functools.partial(series.read, on_missing="keep")``; those that resample or keep duplicates change
        the shape, and are no matter of this contract.
    secrets : sequence of str
        Texts of the file that identify the patient, which must turn up nowhere; those of DICOM are known.

    Returns
    -------
    Volume
        What was read.

    Raises
    ------
    AssertionError
        If a rule does not hold; the message names all that don't.
    MedimgError
        If the reader refuses the series, so that there is nothing to check.
    """
    reading = Reading(series, read=read, secrets=secrets)
    _run(READER_CHECKS, reading)
    return reading.volume


def check_volume(volume: Volume, *, secrets: Sequence[str] = ()) -> None:
    """
    Hold a volume to the contract.

    Parameters
    ----------
    volume : Volume
        Read from anything, or made in memory.
    secrets : sequence of str
        Texts that identify the patient, which must turn up nowhere.

    Raises
    ------
    AssertionError
        If a rule does not hold; the message names all that don't.
    """
    _run(VOLUME_CHECKS, Reading.of_volume(volume, secrets=secrets))


def _run(checks: Sequence[Check], reading: Reading) -> None:
    broken = []
    for check in checks:
        try:
            check(reading)
        except AssertionError as error:
            broken.append(str(error))
    if broken:
        raise AssertionError(f"{len(broken)} of {len(checks)} rules broken\n" + "\n".join(broken))
