"""The folder in which the files of the benchmarks are kept."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.data.archive import write_archive
from benchmarks.data.ct import SYNTAXES, stored_slices, write_ct, write_nifti, write_tree
from benchmarks.data.enhanced import write_enhanced
from benchmarks.data.xray import write_xrays

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from benchmarks.data.scale import Scale

__all__ = ["CODECS", "Data", "default_root"]

#: Codecs of the compressed CT.
CODECS: Final = tuple(codec for codec in SYNTAXES if codec != "native")
#: Raised whenever the same scale gives other files than before.
_REVISION: Final = 1


def default_root() -> Path:
    """Where files are kept unless said otherwise: below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "medimg-benchmarks"


class Data:
    """
    Files of one scale, each kind of them written when it is first asked for.

    Parameters
    ----------
    root : Path
        Where to keep them.
    scale : Scale
        How many there are.
    """

    def __init__(self, root: Path, scale: Scale) -> None:
        self.scale = scale
        self.folder = root / f"{scale.name}-{_REVISION}"

    @cached_property
    def stored(self) -> npt.NDArray[np.uint16]:
        """Stored values of the CT: (D, H, W)."""
        return stored_slices(self.scale)

    def ct(self, codec: str = "native") -> Path:
        """Folder of the CT series in one of :data:`SYNTAXES`."""
        return self._once(f"ct_{codec}", lambda folder: write_ct(folder, self.stored, codec))

    def xrays(self) -> Path:
        """Folder of the X-rays."""
        return self._once("xrays", lambda folder: write_xrays(folder, self.scale))

    def tree(self) -> Path:
        """Tree of small files."""
        return self._once("tree", lambda folder: write_tree(folder, self.scale))

    def layouts(self) -> Path:
        """The same with many layouts of headers."""
        scale = self.scale
        return self._once("layouts", lambda folder: write_tree(folder, scale, layouts=scale.layouts))

    def fewer_layouts(self) -> Path:
        """A fifth of the files, of a fifth of the layouts."""
        scale = self.scale
        fifth = replace(scale, series=max(1, scale.series // 5), layouts=max(1, scale.layouts // 5))
        return self._once("fewer_layouts", lambda folder: write_tree(folder, fifth, layouts=fifth.layouts))

    def archive(self) -> Path:
        """Tree of files of many makers and modalities."""
        return self._once("archive", lambda folder: write_archive(folder, self.scale))

    def enhanced(self) -> Path:
        """Folder of the enhanced CT."""
        return self._once("enhanced", lambda folder: write_enhanced(folder, self.scale))

    def nifti(self) -> Path:
        """The CT as one .nii file."""
        return self._niftis() / "ct.nii"

    def zipped_nifti(self) -> Path:
        """The CT as one .nii.gz file, with no .nii beside it."""
        return self._niftis() / "zipped" / "ct.nii.gz"

    def _niftis(self) -> Path:
        return self._once("nifti", lambda folder: write_nifti(folder, self.stored))

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        """Write a folder under another name first, so that one half written is never used."""
        folder = self.folder / name
        if folder.exists():
            return folder
        print(f"writing {folder}", file=sys.stderr, flush=True)
        unfinished = self.folder / f"{name}.unfinished-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            write(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return folder
