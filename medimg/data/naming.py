"""Names for series that say nothing of a patient, and stay the same wherever the files lie."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from medimg.data.identity import content_of
from medimg.errors import DatasetError
from medimg.io.dicom.reading import StackReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.io.dicom.header import Frame
    from medimg.io.series import Series

__all__ = ["Name", "ids_of", "names_of"]

_DIGITS: Final = 32
_SKETCH: Final = 4
_THREADS: Final = 8


class Name(NamedTuple):
    """
    A series by hashes, of 32 hexadecimal digits each.

    Attributes
    ----------
    id : str
        Of the SOP Instance UIDs and numbers of its frames; of the bytes of its files where there are no UIDs.
    content : str
        Of the bytes of its files; "" where they were not read, or are on no disk.
    """

    id: str
    content: str


def names_of(several: Sequence[Series], *, contents: bool) -> list[Name]:
    """
    Return the names of series, by as many threads as disks like.

    Parameters
    ----------
    several : sequence of Series
        Which.
    contents : bool
        Whether the files of those with UIDs are read, too.

    Raises
    ------
    DatasetError
        If a series has no UIDs and its files can't be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda series: _name(series, contents=contents), several))


def ids_of(several: Sequence[Series]) -> list[tuple[str, ...]]:
    """
    Return what tells series from each other, without reading much.

    Parameters
    ----------
    several : sequence of Series
        Which.

    Returns
    -------
    list of tuple of str
        Hashes of SOP Instance UIDs, the four lowest of a series: another choice of the same images, such as
        each as a series of its own, or all but one, shares some of them. Where there are no UIDs, one hash of
        samples of the bytes of the files; none where these are on no disk.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_ids, several))


def _ids(series: Series) -> tuple[str, ...]:
    instances = {frame.instance.sop_instance_uid for frame in _identified(series)}
    if instances:
        return tuple(sorted(_hash([uid]) for uid in instances)[:_SKETCH])
    found = content_of(series, "blocks")
    return () if found is None else (_hash(sorted(found)),)


def _name(series: Series, *, contents: bool) -> Name:
    frames = _frames(series)
    content = ""
    if contents or not frames:
        found = content_of(series, "bytes")
        content = "" if found is None else _hash(sorted(found))
    if not frames and not content:
        raise DatasetError(
            f"{series.path} has no SOP Instance UIDs, and can't be read from a disk, so that nothing tells "
            "it from others: put it there"
        )
    return Name(_hash(frames) if frames else content, content)


def _frames(series: Series) -> list[str]:
    """Return what tells each frame of a series; nothing where one has no UID."""
    found = _identified(series)
    return sorted(str((f.instance.sop_instance_uid, f.facts.number, f.facts.corner)) for f in found)


def _identified(series: Series) -> list[Frame]:
    """Return the frames of a series; none where one has no SOP Instance UID."""
    if not isinstance(series.reader, StackReader):
        return []
    found = [frame for channel in series.reader.plan.channels for frame in channel]
    return found if all(frame.instance.sop_instance_uid for frame in found) else []


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]
