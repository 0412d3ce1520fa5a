"""The array of a volume, allocated once and filled slice by slice."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.rescale import rescale_into
from medimg.io.dicom.values.modality_lut import ModalityTransform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice

__all__ = ["VolumeBuffer"]


#: Stands for a slice that is not there yet.
_MISSING: Final = ModalityTransform(None)


class VolumeBuffer:
    """
    The array of a volume while it is filled, in any order and from any thread.

    Its type is that of the first slice, and becomes a wider one where a later slice needs that; in the end it
    is what stacking arrays of the slices would give.

    Parameters
    ----------
    count : int
        Slices of all channels.
    channels : int
        How many channels of images that are not colors; slices are numbered channel after channel.

    Attributes
    ----------
    meanings : list of ModalityTransform
        Of each slice, once it is there.
    shapes : list of tuple of int
        (C, H, W) of each slice.
    """

    def __init__(self, count: int, channels: int) -> None:
        self.meanings: list[ModalityTransform] = [_MISSING] * count
        self.shapes: list[tuple[int, ...]] = [()] * count
        self._dtypes: list[np.dtype[Any]] = [np.dtype(np.uint8)] * count
        self._depth = count // channels
        self._channels = channels
        self._lock = threading.Lock()
        self._array: npt.NDArray[Any] | None = None
        #: The same memory, by place: (channels * slices, H, W), or (slices, 3, H, W) of colors.
        self._slots: npt.NDArray[Any] | None = None
        self._padding: npt.NDArray[np.bool_] | None = None

    def slot(self, place: int) -> npt.NDArray[Any] | None:
        """Return where a slice will lie, (H, W) or (3, H, W) of colors; None before there is an array."""
        slots = self._slots
        return None if slots is None else slots[place]

    def _by_place(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.shapes[0][0] > 1:
            return array.swapaxes(0, 1)
        return array.reshape(-1, *array.shape[2:])

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return 0 if self._array is None else self._array.nbytes

    def put(self, place: int, loaded: LoadedSlice) -> npt.NDArray[Any] | None:
        """
        Put a slice in its place; the first that is put must be the first one of all.

        Parameters
        ----------
        place : int
            Channel · slices + slice.
        loaded : LoadedSlice
            Stored values, maybe in the memory of :meth:`slot`.

        Returns
        -------
        numpy.ndarray or None
            The values, where the array must become wider before they can be put there; see :meth:`widen`.
        """
        meaning, stored = loaded
        mask, dtype = meaning.mask(stored), meaning.dtype_of(stored)
        shape = (1, *stored.shape) if meaning.rgb is None else (3, *stored.shape[:2])
        self.meanings[place], self.shapes[place], self._dtypes[place] = meaning, shape, dtype
        if self._array is None:
            self._array = self._adopted(stored, dtype) if meaning.rgb is None else None
            if self._array is None:
                self._array = np.empty((self._channels * shape[0], self._depth, *shape[1:]), dtype)
            self._slots = self._by_place(self._array)
        if shape != self.shapes[0]:
            return None
        if mask is not None:
            self._mark(place, mask)
        assert self._slots is not None  # it is made with the array
        return _write_slice(meaning, stored, self._slots[place], dtype)

    def _adopted(self, stored: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """Return the only slice as the array itself, where its memory will do."""
        plain = stored.flags.c_contiguous and stored.flags.writeable and stored.ndim == 2
        if len(self.meanings) > 1 or not plain or stored.itemsize != dtype.itemsize:
            return None
        return stored.view(dtype)[None, None]

    def _mark(self, place: int, mask: npt.NDArray[np.bool_]) -> None:
        with self._lock:
            if self._padding is None:
                assert self._array is not None  # it is made by the first slice
                self._padding = np.zeros(self._array.shape, np.bool_)
        self._by_place(self._padding)[place] = mask

    def widen(self, misfits: Mapping[int, npt.NDArray[Any]]) -> None:
        """Make the array wide enough for slices that did not fit, and put them there."""
        if not misfits:
            return
        assert self._array is not None  # it is made by the first slice
        wide = np.result_type(self._array.dtype, *{values.dtype for values in misfits.values()})
        self._array = self._array.astype(wide)
        self._slots = self._by_place(self._array)
        for place, values in misfits.items():
            self._slots[place] = values

    def result(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Return array and padding, (C, D, H, W), once all slices are there."""
        assert self._array is not None  # it is made by the first slice
        wide = _find_stacked_dtype(self._dtypes, self._channels)
        return self._array.astype(wide, copy=False), self._padding


def _write_slice(
    meaning: ModalityTransform, stored: npt.NDArray[Any], slot: npt.NDArray[Any], dtype: np.dtype[Any]
) -> npt.NDArray[Any] | None:
    """Write values into a slot; return them if they don't fit."""
    if meaning.is_linear and slot.dtype == dtype and stored.dtype.kind != "f":
        if not meaning.is_stored:
            rescale_into(stored.reshape(-1), meaning.slope, meaning.intercept, slot.reshape(-1))
        elif not np.may_share_memory(slot, stored):
            slot[...] = stored
        return None
    values = meaning.values(stored)
    if np.can_cast(values.dtype, slot.dtype) and np.result_type(values.dtype, slot.dtype) == slot.dtype:
        slot[...] = values
        return None
    return values.copy() if np.may_share_memory(values, slot) else values


def _find_stacked_dtype(dtypes: Sequence[np.dtype[Any]], channels: int) -> np.dtype[Any]:
    """Return the type that stacking slices, and joining channels of these, gives."""
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    depth = len(dtypes) // channels
    return np.result_type(*(np.result_type(*dtypes[c * depth : (c + 1) * depth]) for c in range(channels)))
