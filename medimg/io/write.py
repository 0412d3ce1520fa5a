"""``write``: a volume as a file, in the format that the name has."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from medimg.errors import ConversionError
from medimg.io.files.output import atomic_output, check_target
from medimg.io.formats.metaimage_writer import write_metaimage
from medimg.io.formats.nifti_writer import write_nifti
from medimg.io.formats.nrrd_writer import write_nrrd

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from medimg.core.volume import Volume

__all__ = ["find_writer", "write"]

#: By the end of a file's name: the writer, and whether the name says that the values are compressed.
_WRITERS: Final[dict[str, tuple[Callable[..., None], bool | None]]] = {
    ".nii.gz": (write_nifti, True),
    ".nii": (write_nifti, False),
    ".nrrd": (write_nrrd, None),
    ".mha": (write_metaimage, None),
}


def find_writer(path: str | os.PathLike[str]) -> tuple[Path | str, Callable[..., None], bool | None]:
    """Return a target, the writer that its suffix chooses, and whether the suffix says that it compresses."""
    target = check_target("path", path, error=ConversionError)
    name = PurePath(target).name.lower()
    suffix = next((suffix for suffix in _WRITERS if name.endswith(suffix)), None)
    if suffix is None:
        raise ConversionError(
            f"the name of the file ends with {PurePath(target).suffix!r}; expected one of "
            f"{', '.join(_WRITERS)}, which chooses the format"
        )
    return (target, *_WRITERS[suffix])


def write(volume: Volume, path: str | os.PathLike[str], *, compress: bool = True) -> Path | str:
    """Write a volume atomically, and return the target; see `Volume.save`."""
    target, writer, stated = find_writer(path)
    with atomic_output(target) as temporary:
        writer(volume, temporary, compress=compress if stated is None else stated)
    return target
