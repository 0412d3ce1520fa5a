"""Choice of the window for display, and 8-bit rendering of slices."""

from __future__ import annotations

import io
import warnings
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np

from medimg.core import geometry
from medimg.core.window import PRESETS, LookupTable, Voi, Window
from medimg.errors import MedimgWarning, PreprocessError

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.core.volume import Volume

__all__ = [
    "DECLARED",
    "WindowChoice",
    "choose_voi",
    "compute_percentile_window",
    "encode_png",
    "make_data_uri",
    "render",
]

WindowChoice: TypeAlias = "str | int | Window | LookupTable"

_NO_CONTENT: Final = "all pixels of this image are padding or not finite"
#: Prefix of a choice among the windows of a file: "dicom:1", "dicom:BONE".
DECLARED: Final = "dicom:"

#: Every CT of a patient has air below this, in Hounsfield units.
_MOST_OF_AIR: Final = -200
_COUNTED_AT_ONCE: Final = 2**20
_PROJECTION: Final = frozenset({"CR", "DX", "MG", "DR", "RF", "XA", "PX", "IO"})


def compute_percentile_window(volume: Volume, percentiles: tuple[float, float] = (0.5, 99.5)) -> Window:
    """Return the LINEAR_EXACT window between two percentiles of the whole volume, without padding."""
    values = volume.array if volume.padding is None else volume.array[~volume.padding]
    if np.issubdtype(values.dtype, np.floating):
        values = values[np.isfinite(values)]
    if values.size == 0:
        raise PreprocessError(_NO_CONTENT)
    low, high = _compute_percentiles(values.ravel(), percentiles)
    return Window.from_range(low, high)


def has_content(volume: Volume) -> bool:
    """Whether a pixel of the volume is finite and no padding; a slice with one ends the search."""
    floating = volume.array.dtype.kind == "f"
    if not floating and volume.padding is None:
        return True
    for d in range(volume.shape[1]):
        shown = np.isfinite(volume.array[:, d]) if floating else np.True_
        if (shown if volume.padding is None else shown & ~volume.padding[:, d]).any():
            return True
    return False


def _compute_percentiles(values: npt.NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return linearly interpolated percentiles, of small integers by counting, which is faster."""
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    if values.dtype.itemsize > 2 or not np.issubdtype(values.dtype, np.integer):
        low, high = np.percentile(values, percentiles)
        return float(low), float(high)
    least = int(values.min())
    counts = np.zeros(int(values.max()) - least + 1, dtype=np.int64)
    for start in range(0, values.size, _COUNTED_AT_ONCE):
        # bincount converts its input to int64
        part = values[start : start + _COUNTED_AT_ONCE].astype(np.int64)
        counts += np.bincount(part - least, minlength=counts.size)
    up_to = np.cumsum(counts)
    ranks = np.asarray(percentiles) / 100 * (values.size - 1)
    below, above = np.floor(ranks), np.ceil(ranks)
    first = np.searchsorted(up_to, below, side="right") + least
    second = np.searchsorted(up_to, above, side="right") + least
    low, high = first + (ranks - below) * (second - first)
    return float(low), float(high)


def choose_voi(
    volume: Volume,
    window: WindowChoice = "auto",
    percentiles: tuple[float, float] = (0.5, 99.5),
    *,
    full_range: bool = True,
) -> tuple[Voi, ...]:
    """
    Return the window or table of all slices (one), or of each.

    `full_range`: whether "auto" takes images that are ready for display (of 8 bits) at their full range.

    The choices are those of :class:`medimg.Preprocess`, an index among the declared windows, a window or
    table, or the explanation of a window in the file that is not the name of a preset.
    """
    if window == "auto":
        window = _choose_by_modality(volume, volume.display_range if full_range else None)
    if isinstance(window, Window | LookupTable):
        return (window,)
    if window == "percentile":
        return (compute_percentile_window(volume, percentiles),)
    if window == "dicom":
        return _get_declared(volume, 0)
    if isinstance(window, int):
        return _get_declared(volume, window)
    if window.startswith(DECLARED):
        return _find_by_choice(volume, window.removeprefix(DECLARED).strip())
    named = () if window in PRESETS else _find_explained(volume, window)
    return named or (_get_preset(volume, window),)


def _find_by_choice(volume: Volume, which: str) -> tuple[Voi, ...]:
    """Return the declared window with an explanation in every slice, else with an index."""
    explained = _find_explained(volume, which)
    if explained or not which.isdecimal():
        return explained or _raise_undeclared(volume, f"none has the explanation {which!r} in every slice")
    return _get_declared(volume, int(which))


def _find_explained(volume: Volume, name: str) -> tuple[Voi, ...]:
    """Return each slice's window with an explanation; none if one slice has none."""
    wanted = name.strip().casefold()
    found = [
        next((v for v in declared if wanted and v.explanation.strip().casefold() == wanted), None)
        for declared in volume.voi
    ]
    return tuple(v for v in found if v is not None) if None not in found else ()


def _choose_by_modality(volume: Volume, display_range: tuple[float, float] | None) -> str | Window:
    if volume.modality == "CT" and volume.units == "HU":
        return "soft_tissue"
    is_ready = display_range is not None and volume.units == "raw"
    if volume.voi and all(volume.voi) and (is_ready or volume.modality in _PROJECTION):
        return "dicom"
    return Window.from_range(*display_range) if is_ready and display_range else "percentile"


def _get_preset(volume: Volume, name: str) -> Window:
    preset = Window.preset(name)
    if volume.units != "HU" and volume.modality not in {"", "CT"}:
        raise PreprocessError(
            f"the preset {name!r} is in Hounsfield units, the image is {volume.modality} in {volume.units}; "
            'use window="auto", "percentile" or a Window'
        )
    if volume.units != "HU":
        _warn_without_hu(volume, name)
    return preset


def _warn_without_hu(volume: Volume, name: str) -> None:
    """Warn of a CT whose values are stated to be others, and of values that no CT has."""
    if volume.modality == "CT":
        found = f"the values of this CT are not (its units are {volume.units!r})"
    elif any((values < _MOST_OF_AIR).any() for values in volume.array[0]):
        return
    else:
        found = f"this image, of unknown units, has no value below {_MOST_OF_AIR}, as air has in a CT"
    warnings.warn(
        f'the preset {name!r} is in Hounsfield units, and {found}; use window="auto" or "percentile", or, '
        f"if its values are in Hounsfield units, window=medimg.Window.preset({name!r})",
        MedimgWarning,
        stacklevel=2,
    )


def _get_declared(volume: Volume, index: int) -> tuple[Voi, ...]:
    if not volume.voi or any(len(alternatives) <= index for alternatives in volume.voi) or index < 0:
        return _raise_undeclared(volume, f"index {index} was requested")
    return tuple(alternatives[index] for alternatives in volume.voi)


def _raise_undeclared(volume: Volume, wanted: str) -> NoReturn:
    fewest: tuple[Voi, ...] = min(volume.voi, key=len, default=())
    listed = "; ".join(f"{number}: {_describe_voi(voi)}" for number, voi in enumerate(fewest))
    raise PreprocessError(
        f"the file declares {len(fewest)} window(s) for every slice ({listed or 'none'}), and {wanted}; "
        'use window="auto", "percentile", a preset or a Window'
    )


def _describe_voi(voi: Voi) -> str:
    name = f"{voi.explanation} " if voi.explanation else ""
    if isinstance(voi, LookupTable):
        return f"{name}table of {voi.entries.size} entries"
    return f"{name}center {voi.center:g} width {voi.width:g}"


def render(
    volume: Volume, *, index: int | None = None, window: WindowChoice = "auto"
) -> npt.NDArray[np.uint8]:
    """
    Render one slice for display as (H, W) or (H, W, 3) uint8; the middle one by default.

    The slice is windowed, inverted if the file says so, and in display orientation. Pixels may be
    anisotropic; padding and non-finite values are black.
    """
    if volume.space == "patient":
        volume = volume.reorient(geometry.display_code(volume.affine))
    d = volume.shape[1] // 2 if index is None else index
    if volume.is_color:
        colors = np.ascontiguousarray(volume.array[:, d].transpose(1, 2, 0))
        return colors if colors.dtype == np.uint8 else np.rint(colors * (255 / volume.white)).astype(np.uint8)
    voi = choose_voi(volume, window)
    if not has_content(volume):
        raise PreprocessError(_NO_CONTENT)
    values = volume.array[0, d]
    shown = voi[d if len(voi) > 1 else 0].apply(np.nan_to_num(values))
    if volume.inverted:
        shown = 1.0 - shown
    shown = np.where(np.isfinite(values), shown, 0.0)
    if volume.padding is not None:
        shown = np.where(volume.padding[0, d], 0.0, shown)
    return np.rint(shown * 255).astype(np.uint8)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an (H, W) or (H, W, 3) uint8 image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def make_data_uri(volume: Volume) -> str:
    """Return the middle slice as a ``data:`` URI."""
    return "data:image/png;base64," + b64encode(encode_png(render(volume))).decode("ascii")
