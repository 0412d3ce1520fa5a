"""``write``: a volume as a file, in the format that the name has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg._validation import check_path
from medimg.errors import ConversionError
from medimg.io.files.atomic import atomic_path
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


def find_writer(path: str | os.PathLike[str]) -> tuple[Path, Callable[..., None], bool | None]:
    """Return a path, the writer that its suffix chooses, and whether the suffix says that it compresses."""
    target = check_path("path", path, error=ConversionError)
    suffix = next((suffix for suffix in _WRITERS if target.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ConversionError(
            f"the name of the file ends with {target.suffix!r}; expected one of {', '.join(_WRITERS)}, which "
            "chooses the format"
        )
    return (target, *_WRITERS[suffix])


def write(volume: Volume, path: str | os.PathLike[str], *, compress: bool = True) -> Path:
    """Write a volume atomically, and return the path; see `Volume.save`."""
    target, writer, stated = find_writer(path)
    with atomic_path(target) as temporary:
        writer(volume, temporary, compress=compress if stated is None else stated)
    return target
