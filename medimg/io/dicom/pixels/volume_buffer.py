"""The array of a volume, allocated once and filled slice by slice."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.rescale import rescale_into
from medimg.io.dicom.values.modality_lut import ModalityTransform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.pixels._single_frame_reader import AlikeSlices, LoadedSlice

__all__ = ["VolumeBuffer"]


#: Transform of a slice that is not stored yet.
_MISSING: Final = ModalityTransform(None)


class VolumeBuffer:
    """
    The array of a volume while it is filled in any order from any thread, channel by channel.

    Its type is that of the first slice, widened if a later slice needs it; the result equals stacking the
    slices.
    """

    def __init__(self, count: int, channels: int) -> None:
        self.modality_transforms: list[ModalityTransform] = [_MISSING] * count
        self.shapes: list[tuple[int, ...]] = [()] * count
        self._dtypes: list[np.dtype[Any]] = [np.dtype(np.uint8)] * count
        self._depth = count // channels
        self._channels = channels
        self._lock = threading.Lock()
        self._array: npt.NDArray[Any] | None = None
        #: The same memory by slice: (channels * slices, H, W), or (slices, 3, H, W) of colors.
        self._slots: npt.NDArray[Any] | None = None
        self._padding: npt.NDArray[np.bool_] | None = None

    def get_slot(self, index: int) -> npt.NDArray[Any] | None:
        """Return the memory of a slice, (H, W) or (3, H, W) for colors; None before the array exists."""
        slots = self._slots
        return None if slots is None else slots[index]

    def get_slots(self, indices: Sequence[int]) -> list[npt.NDArray[Any]]:
        """Return the memory of slices, once the array exists."""
        assert self._slots is not None  # made with the array
        return [self._slots[index] for index in indices]

    @property
    def has_padding(self) -> bool:
        """Whether a slice that is stored has padding."""
        return self._padding is not None

    def allocate(self, like: AlikeSlices) -> bool:
        """Make the array for such slices; return False if there is one for others."""
        shape = (1, *like.shape)
        if self._array is None:
            self._array = np.empty((self._channels, self._depth, *like.shape), like.dtype)
            self.shapes[0] = shape
            self._slots = self._reshape_by_slice(self._array)
        return self.shapes[0] == shape and self._array.dtype == like.dtype

    def clear(self) -> None:
        """Drop the array, as if none had been made."""
        self._array = self._slots = None

    def mark_stored(self, indices: Iterable[int], like: AlikeSlices) -> None:
        """Note that such slices, without padding, are in their memory."""
        for index in indices:
            self.modality_transforms[index], self._dtypes[index] = like.transform, like.dtype
            self.shapes[index] = (1, *like.shape)

    def _reshape_by_slice(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.shapes[0][0] > 1:
            return array.swapaxes(0, 1)
        return array.reshape(-1, *array.shape[2:])

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return 0 if self._array is None else self._array.nbytes

    def put(self, index: int, loaded: LoadedSlice) -> npt.NDArray[Any] | None:
        """Store a slice, slice 0 first; return its values if the array must be widened before."""
        transform, stored = loaded
        mask, dtype = transform.find_padding(stored), transform.find_dtype(stored)
        shape = (1, *stored.shape) if transform.rgb is None else (3, *stored.shape[:2])
        self.modality_transforms[index], self.shapes[index], self._dtypes[index] = transform, shape, dtype
        if self._array is None:
            self._array = self._adopt(stored, dtype) if transform.rgb is None else None
            if self._array is None:
                self._array = np.empty((self._channels * shape[0], self._depth, *shape[1:]), dtype)
            self._slots = self._reshape_by_slice(self._array)
        if shape != self.shapes[0]:
            return None
        if mask is not None:
            self._mark_padding(index, mask)
        assert self._slots is not None  # made with the array
        return _write_slice(transform, stored, self._slots[index], dtype)

    def _adopt(self, stored: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """Return the only slice as the array itself, if its memory is suitable."""
        plain = stored.flags.c_contiguous and stored.flags.writeable and stored.ndim == 2
        if len(self.modality_transforms) > 1 or not plain or stored.itemsize != dtype.itemsize:
            return None
        return stored.view(dtype)[None, None]

    def _mark_padding(self, index: int, mask: npt.NDArray[np.bool_]) -> None:
        with self._lock:
            if self._padding is None:
                assert self._array is not None  # made by the first slice
                self._padding = np.zeros(self._array.shape, np.bool_)
        self._reshape_by_slice(self._padding)[index] = mask

    def widen(self, misfits: Mapping[int, npt.NDArray[Any]]) -> None:
        """Widen the type of the array for slices that did not fit, and store them."""
        if not misfits:
            return
        assert self._array is not None  # made by the first slice
        wide = np.result_type(self._array.dtype, *{values.dtype for values in misfits.values()})
        self._array = self._array.astype(wide)
        self._slots = self._reshape_by_slice(self._array)
        for index, values in misfits.items():
            self._slots[index] = values

    def get_result(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Return array and padding, (C, D, H, W), once all slices are stored."""
        assert self._array is not None  # made by the first slice
        wide = _find_stacked_dtype(self._dtypes, self._channels)
        return self._array.astype(wide, copy=False), self._padding


def _write_slice(
    transform: ModalityTransform, stored: npt.NDArray[Any], slot: npt.NDArray[Any], dtype: np.dtype[Any]
) -> npt.NDArray[Any] | None:
    """Write modality values into a slot; return them if they do not fit."""
    if transform.is_linear and slot.dtype == dtype and stored.dtype.kind != "f":
        if not transform.is_stored:
            rescale_into(stored.reshape(-1), transform.slope, transform.intercept, slot.reshape(-1))
        elif not np.may_share_memory(slot, stored):
            slot[...] = stored
        return None
    values = transform.apply(stored)
    if np.can_cast(values.dtype, slot.dtype) and np.result_type(values.dtype, slot.dtype) == slot.dtype:
        slot[...] = values
        return None
    return values.copy() if np.may_share_memory(values, slot) else values


def _find_stacked_dtype(dtypes: Sequence[np.dtype[Any]], channels: int) -> np.dtype[Any]:
    """Return the type of stacking slices of these types, and of joining the channels."""
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    depth = len(dtypes) // channels
    return np.result_type(*(np.result_type(*dtypes[c * depth : (c + 1) * depth]) for c in range(channels)))
