"""
Separable resampling of three axes, block by block: small matrix products on all cores.

The matrix that resamples an axis is zero but for a band about its diagonal. Cut into blocks, it costs a BLAS
library little more than the interpolation itself, in blocks that stay in a core's cache, with stored integers
converted on the way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.core.kernels import HALF
from medimg.core.parallel import available_cores
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.kernels import Band

__all__ = ["resample_axes"]

_Floats: TypeAlias = "npt.NDArray[np.float32]"

#: Multiplications of one matrix product. OpenBLAS would spread larger ones over threads of its own, which
#: wait for each other if several threads call it.
_PRODUCT: Final = 2**18
#: Slices that are converted together.
_SLICES: Final = 16
#: Most numbers buffered for the last axis, in each thread.
_WAITING: Final = 2**22
#: With fewer new slices at a time, the old ones between them would often be computed twice.
_FEWEST_SLICES: Final = 64
_MOST_THREADS: Final = 16
#: New voxels for which a second thread is worth starting.
_SMALL: Final = 2**17


@dataclass(frozen=True, slots=True, eq=False)
class _AxisPass:
    values: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_] | None
    fill: float
    axes: Sequence[Sequence[Band]]
    out: npt.NDArray[Any]

    def read(self, slices: slice, rows: slice) -> _Floats:
        block = np.empty(self.values[slices, rows].shape, dtype=np.float32)
        try:
            with np.errstate(over="raise", invalid="ignore"):
                np.copyto(block, self.values[slices, rows], casting="unsafe")
        except FloatingPointError:
            raise PreprocessError(
                "values beyond those of float32 can't be resampled; rescale or clip the array first"
            ) from None
        if self.mask is not None:
            np.copyto(block, np.float32(self.fill), where=self.mask[slices, rows])
        return block


def resample_axes(
    values: npt.NDArray[Any],
    axes: Sequence[Sequence[Band]],
    out: npt.NDArray[Any],
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    fill: float = 0.0,
) -> None:
    """
    Resample (D, H, W) along its axes into `out` (D', H', W') float32, those that shrink most first.

    If `out` is bool, it becomes whether the result is above a half. Values under `mask` (D, H, W) count as
    `fill`.
    """
    work = _AxisPass(values, mask, fill, axes, out)
    threads = 1 if out.size < _SMALL else min(available_cores(), _MOST_THREADS)
    tiles = list(_make_tiles(work, threads))
    if threads == 1 or len(tiles) == 1:
        for slab, rows in tiles:
            _resample_tile(work, slab, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda tile: _resample_tile(work, *tile), tiles):
            pass


def _compute_scale(bands: Sequence[Band]) -> float:
    return bands[-1].last / bands[-1].stop


def _is_slice_axis_first(axes: Sequence[Sequence[Band]]) -> bool:
    """Whether D comes before the other axes: it shrinks most, or is unchanged."""
    if axes[0][0].weights is None:
        return True
    return _compute_scale(axes[0]) > max(1.0, _compute_scale(axes[1]), _compute_scale(axes[2]))


def _make_tiles(work: _AxisPass, threads: int) -> Iterator[tuple[Sequence[Band], Band]]:
    """Yield parts of the result that need little of the array and of each other: bands of D with one of H."""
    slabs, (depth, _, width) = work.axes[0], work.out.shape
    height = work.axes[1][0].stop - work.axes[1][0].start
    most = _WAITING / (height * width * max(1.0, _compute_scale(slabs)))
    for_all = depth * len(work.axes[1]) / (4 * threads)
    step = int(max(_FEWEST_SLICES, min(most, for_all))) // (slabs[0].stop - slabs[0].start)
    step = max(step, 1)
    yield from product([slabs[i : i + step] for i in range(0, len(slabs), step)], work.axes[1])


def _resample_tile(work: _AxisPass, slab: Sequence[Band], rows: Band) -> None:
    target = work.out[slab[0].start : slab[-1].stop, rows.start : rows.stop]
    if target.dtype == np.bool_:
        source = work.values[min(b.first for b in slab) : max(b.last for b in slab), rows.first : rows.last]
        covered = bool(source.any())
        if not covered or source.all():
            target[...] = covered
            return
    result = target if target.dtype == np.float32 else np.empty(target.shape, dtype=np.float32)
    if _is_slice_axis_first(work.axes):
        for band in slab:
            block = work.read(slice(band.first, band.last), slice(rows.first, rows.last))
            part = result[band.start - slab[0].start : band.stop - slab[0].start]
            _apply_steps(work, block, [(0, [band]), *_order_in_plane_steps(work, rows)], part)
    else:
        _apply_steps(work, _resample_slices(work, slab, rows), [(0, slab)], result)
    if result is not target:
        np.greater(result, HALF, out=target)


def _order_in_plane_steps(work: _AxisPass, rows: Band) -> list[tuple[int, Sequence[Band]]]:
    steps: list[tuple[int, Sequence[Band]]] = [(1, [rows]), (2, work.axes[2])]
    return steps if _compute_scale(work.axes[1]) >= _compute_scale(work.axes[2]) else steps[::-1]


def _resample_slices(work: _AxisPass, slab: Sequence[Band], rows: Band) -> _Floats:
    """Return the old slices that a slab needs, with new rows and columns."""
    first, last = min(b.first for b in slab), max(b.last for b in slab)
    result = np.empty((last - first, rows.stop - rows.start, work.out.shape[2]), dtype=np.float32)
    for start in range(first, last, _SLICES):
        stop = min(start + _SLICES, last)
        block = work.read(slice(start, stop), slice(rows.first, rows.last))
        _apply_steps(work, block, _order_in_plane_steps(work, rows), result[start - first : stop - first])
    return result


def _apply_steps(
    work: _AxisPass, block: _Floats, steps: Sequence[tuple[int, Sequence[Band]]], out: _Floats
) -> None:
    """Resample a block along some axes; the last one is written into the result."""
    steps = [(axis, bands) for axis, bands in steps if bands[0].weights is not None]
    if not steps:
        out[...] = block
    for number, (axis, bands) in enumerate(steps, 1):
        size = bands[-1].stop - bands[0].start
        shape = (*block.shape[:axis], size, *block.shape[axis + 1 :])
        result = out if number == len(steps) else np.empty(shape, dtype=np.float32)
        _resample_axis(axis, block, bands, result)
        block = result


def _resample_axis(axis: int, block: _Floats, bands: Sequence[Band], out: _Floats) -> None:
    # a block has all columns, but begins with the first slice or row that one of the bands needs
    origin = 0 if axis == 2 else min(b.first for b in bands)
    if axis == 0:
        block, out = block.swapaxes(0, 1), out.swapaxes(0, 1)
    for start, stop, first, last, weights in bands:
        assert weights is not None  # was checked
        old, new = slice(first - origin, last - origin), slice(start - bands[0].start, stop - bands[0].start)
        step = max(1, _PRODUCT // weights.size)
        for other in range(0, block.shape[1 if axis == 2 else 2], step):
            some = slice(other, other + step)
            if axis == 2:
                np.matmul(block[:, some, old], weights.T, out=out[:, some, new])
            else:
                np.matmul(weights, block[:, old, some], out=out[:, new, some])
