"""The reader of medimg as an image reader of MONAI; imports MONAI, and is itself imported on use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg.core.geometry import ras_from_lps
from medimg.core.volume import Volume
from medimg.errors import GeometryError, MedimgError, MissingDependencyError
from medimg.io.read import read
from medimg.io.scan import build_index
from medimg.io.series import Series

try:
    from monai.data.image_reader import ImageReader
except ImportError:
    raise MissingDependencyError(
        "medimg.MedImgReader needs MONAI, which is not installed; install it with: pip install monai"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.read import Source

__all__ = ["MedImgReader"]


@set_module("medimg")
class MedImgReader(ImageReader):
    """
    Reader of medimg for ``monai.transforms.LoadImage``: ``LoadImage(reader=medimg.MedImgReader)``.

    Reads what :func:`medimg.read` reads, a folder or an archive with one series included, and finds the
    format by the contents of a file. Values, checks and policies are those of :func:`medimg.read`; axes,
    affine and metadata are those of MONAI's own readers, always with three spatial axes.

    Parameters
    ----------
    **reading
        Keyword arguments of :func:`medimg.read`, such as ``series=…`` or ``on_missing="warn"``.

    Examples
    --------
    >>> from monai.transforms import Compose, EnsureChannelFirst, LoadImage
    >>> reader = MedImgReader(on_missing="warn")
    >>> load = Compose([LoadImage(reader=reader), EnsureChannelFirst()])  # doctest: +SKIP
    >>> load("study/ct").shape  # doctest: +SKIP
    torch.Size([1, 512, 512, 133])
    """

    def __init__(self, **reading: Any) -> None:
        super().__init__()
        self.reading = reading

    def verify_suffix(self, filename: Any) -> bool:
        """
        Return whether medimg can read a file, folder or archive, by its contents.

        Parameters
        ----------
        filename : path-like, or sequence of these
            Sources; all of them must be readable.

        Returns
        -------
        bool
        """
        return all(_holds_images(source) for source in _as_sources(filename))

    def read(self, data: Any, **kwargs: Any) -> Volume | list[Volume]:
        """
        Read a source, or several.

        Parameters
        ----------
        data : path-like, other source of :func:`medimg.read`, or sequence of these
            Source. Several files are a series if those of DICOM form one, else the channels of an image.
        **kwargs
            Keyword arguments of :func:`medimg.read`, which replace those of the reader.

        Returns
        -------
        Volume or list of Volume

        Raises
        ------
        ReadError, SeriesError
            As :func:`medimg.read` does.
        """
        options = {**self.reading, **kwargs}
        sources = _as_sources(data)
        if len(sources) == 1:
            return read(sources[0], **options)
        if _are_slices(sources):
            return read(list(sources), **options)
        return [read(source, **options) for source in sources]

    def get_data(self, img: Any) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """
        Return the values and metadata of volumes.

        Parameters
        ----------
        img : Volume or list of Volume
            Volume, or several of one geometry, which become channels.

        Returns
        -------
        array : numpy.ndarray
            (W, H, D), or (W, H, D, C) for several channels; several volumes are stacked along the first axis,
            or joined along their channels.
        metadata : dict
            ``affine`` and ``original_affine``, (4, 4) float64, index (i, j, k) to RAS millimeters;
            ``spatial_shape``, ``space`` ("RAS"), ``original_channel_dim`` (NaN without channels),
            ``spacing``, ``modality`` and ``units``.

        Raises
        ------
        GeometryError
            If several volumes differ in shape or affine.
        """
        volumes = [img] if isinstance(img, Volume) else list(img)
        arrays = [_to_monai_axes(volume) for volume in volumes]
        first = volumes[0]
        for volume, array in zip(volumes, arrays, strict=True):
            if array.shape != arrays[0].shape or not np.allclose(volume.affine, first.affine, atol=1e-3):
                raise GeometryError(
                    f"{len(volumes)} images become channels of one, but their shapes or positions differ "
                    f"({array.shape} and {arrays[0].shape}); load each of them by itself, or resample one"
                )
        is_plain = arrays[0].ndim == 3
        metadata = {**_make_metadata(first), "original_channel_dim": math.nan if is_plain else -1}
        if len(arrays) == 1:
            return arrays[0], metadata
        if is_plain:
            return np.stack(arrays), {**metadata, "original_channel_dim": 0}
        return np.concatenate(arrays, axis=-1), metadata


def _as_sources(data: Any) -> Sequence[Any]:
    return tuple(data) if isinstance(data, tuple | list) else (data,)


def _holds_images(source: Source) -> bool:
    try:
        return bool(build_index(source)[0])
    except (MedimgError, OSError):
        return False


def _are_slices(sources: Sequence[Any]) -> bool:
    """Whether several of the files belong to one series; folders and series do not."""
    if any(isinstance(source, Series) for source in sources):
        return False
    try:
        index, _ = build_index(list(sources))
    except MedimgError:
        return False
    return any(len(series.files) > 1 for series in index)


def _to_monai_axes(volume: Volume) -> npt.NDArray[Any]:
    """Return a copy of the values, (W, H, D), or (W, H, D, C): torch takes no arrays that are read-only."""
    values = np.array(volume.array).transpose(3, 2, 1, 0)
    return values if values.shape[-1] > 1 else values[..., 0]


def _make_metadata(volume: Volume) -> dict[str, Any]:
    affine = ras_from_lps(volume.affine)
    return {
        "affine": affine,
        "original_affine": affine.copy(),
        "spatial_shape": np.array(volume.shape[:0:-1]),
        "space": "RAS",
        "spacing": np.array(volume.spacing[::-1]),
        "modality": volume.modality,
        "units": volume.units,
    }
