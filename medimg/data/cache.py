"""Pictures kept on disk, by what their files hold and the recipe that made them."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from medimg import __version__
from medimg.data.entries import SCHEMA, Address, read_entry, write_entry
from medimg.data.identity import Compare, content_of, frames_of
from medimg.data.pictures import DamagedError, Kept, Pictures, kept_as
from medimg.errors import DatasetError, MedimgWarning
from medimg.io.files import atomic_path

if TYPE_CHECKING:
    from medimg.io.series import Policies, Series
    from medimg.prep import Preprocess

__all__ = ["PictureCache", "as_cache"]

_STALE_SECONDS: Final = 24 * 3600


class PictureCache:
    """
    A folder of pictures that are made already, for :func:`read_tensors` and :class:`ImageDataset`.

    Pictures are kept before normalization, in one channel where three would be equal, and mapped into memory
    when they are needed. Several processes may use one folder at once. An entry is found by what its files
    hold, by the recipe, by how series are read, and by the version of medimg; a file that was changed or
    replaced has another entry, and one that is only moved has the same.

    Parameters
    ----------
    folder : str or Path
        Made where it is missing. It may be deleted at any time while no process uses it; within, there is a
        folder for each recipe, named by its fingerprint. Keep it as private as the images themselves.
    dtype : {"float16", "uint8", "float32"}
        What brightness, 0 to 1, is kept as. It is off by at most 0.00025 in "float16", after normalization
        by ImageNet's deviations 0.0011; in "uint8", which takes half the space, by 0.002 and 0.009; in
        "float32" by nothing.
    compare : {"samples", "bytes"}
        What tells that a file is the same as before. "samples": its size, time of modification to the
        nanosecond, and bytes from its start, middle and end; all bytes where it is smaller than 256 KiB.
        Larger files that are not DICOM, and archives, go by their path too. It misses a larger file whose
        pixels were changed elsewhere, with its size and time kept on purpose. "bytes": all bytes, which
        reads every file whole each time.

    Raises
    ------
    DatasetError
        If the folder can't be made, or an option is none of these.

    Examples
    --------
    >>> import tempfile
    >>> PictureCache(tempfile.mkdtemp(), dtype="uint8").dtype
    'uint8'
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, dtype: Kept = "float16", compare: Compare = "samples"
    ) -> None:
        if dtype not in get_args(Kept):
            raise DatasetError(f"dtype={dtype!r} is none of {', '.join(map(repr, get_args(Kept)))}")
        if compare not in get_args(Compare):
            raise DatasetError(f"compare={compare!r} is none of {', '.join(map(repr, get_args(Compare)))}")
        self.folder = Path(folder).absolute()
        self.dtype: Kept = dtype
        self.compare: Compare = compare
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(f"no cache can be kept in {self.folder}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"PictureCache({str(self.folder)!r}, dtype={self.dtype!r}, compare={self.compare!r})"

    def address(self, recipe: Preprocess, series: Series, policies: Policies) -> Address | None:
        """Return where the pictures of a series are or will be; None if they can't be kept."""
        if policies.on_duplicate == "keep":
            return None  # stacks files that a series does not list
        content = content_of(series, self.compare)
        if content is None:
            return None
        facts = [
            [SCHEMA, __version__, recipe.fingerprint, self.dtype, asdict(policies)],
            [series.format, "" if series.uid in series.files else series.uid],
            [list(series.shape), series.affine.tobytes().hex()],
            [content, frames_of(series)],
        ]
        text = json.dumps(facts, sort_keys=True).encode()
        key, secret = (hashlib.sha256(purpose + text) for purpose in (b"name ", b"secret "))
        return Address(key.hexdigest(), secret.digest())

    def path(self, address: Address, recipe: Preprocess) -> Path:
        """Return the file of an entry."""
        return self.folder / recipe.fingerprint / address.key[:2] / f"{address.key[2:]}.safetensors"

    def load(self, address: Address, recipe: Preprocess) -> Pictures | None:
        """Return the pictures of an entry, mapped; None if there is none, with a warning if it is damaged."""
        path = self.path(address, recipe)
        try:
            return read_entry(path, address, recipe, self.dtype)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.note_damage(address, error)
        except OSError as error:
            self._warn_once(f"{path} can't be opened ({error.strerror or type(error).__name__})")
        return None

    def note_damage(self, address: Address, error: DamagedError) -> None:
        """Warn of an entry that is damaged."""
        warnings.warn(
            f"cached pictures {address.key[:12]} are damaged: {error}; they are made anew",
            MedimgWarning,
            stacklevel=3,
        )

    def rounded(self, pictures: Pictures) -> Pictures:
        """Return pictures in the type that they are kept in, as they will be read."""
        return replace(pictures, planes=kept_as(pictures.planes, self.dtype))

    def store(self, address: Address, recipe: Preprocess, pictures: Pictures) -> Pictures:
        """
        Keep pictures of the cache's type, whole or not at all, and return them.

        Returns
        -------
        Pictures
            Mapped; as given where they can't be written, of which the first time warns.
        """
        path = self.path(address, recipe)
        try:
            with atomic_path(path) as temporary:
                write_entry(temporary, address, recipe, pictures)
            _remove_leftovers(path.parent)
            return read_entry(path, address, recipe, self.dtype)
        except (OSError, DamagedError) as error:
            # on Windows, a file that another process has mapped can't be replaced
            self._warn_once(f"no pictures can be kept in {self.folder} ({type(error).__name__})")
            return pictures

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; they are made anew each time", MedimgWarning, stacklevel=4)


def as_cache(cache: str | os.PathLike[str] | PictureCache | None) -> PictureCache | None:
    """Return the cache in a folder, with its defaults."""
    return cache if cache is None or isinstance(cache, PictureCache) else PictureCache(cache)


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for leftover in folder.glob(".*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        # another process was faster
        except OSError:
            continue
