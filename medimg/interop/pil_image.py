"""Pillow images: ``to_pil`` and ``from_pil``, and what their modes mean."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.core.display import render
from medimg.core.upright import describe_turn, is_turned_sideways, turn_upright
from medimg.errors import ConversionError, ReadError
from medimg.interop._exchange import as_volume, check_type, convert_image, own_values, warn_of_inversion
from medimg.interop.image_object import ImageObject, guard_conversion

if TYPE_CHECKING:
    import numpy.typing as npt
    import PIL.Image

    from medimg.core.display import WindowChoice
    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = [
    "COLOR_MODES",
    "GRAYSCALE_MODES",
    "ORIENTATION_TAG",
    "from_pil",
    "keep_gray",
    "move_channels",
    "open_pil",
    "to_channels",
    "to_pil",
]

ORIENTATION_TAG: Final = 0x0112
GRAYSCALE_MODES: Final = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})
COLOR_MODES: Final = frozenset({"P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"})
_TRANSPARENT_MODES: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
#: Type of the array that Pillow makes an image of, by type of the values: 8 and 16 bits, "I" and "F".
_TYPES: Final = {
    "uint8": np.uint8, "uint16": np.uint16, "int8": np.int32, "int16": np.int32, "int32": np.int32,
    "float16": np.float32, "float32": np.float32,
}  # fmt: skip


@set_module("medimg")
def to_pil(
    volume: Volume | Explanation, *, index: int | None = None, window: WindowChoice | None = None
) -> PIL.Image.Image:
    """
    Convert one slice of a volume to an image of Pillow.

    Without a window the values are unchanged, in the mode of their type: "L" or "RGB" (8 bits), "I;16", "I"
    (32-bit integers) or "F"; rows and columns are those of the volume. With a window the slice is rendered
    for viewing: windowed to 8 bits, inverted if the file says so, in display orientation. Pillow has no
    geometry: position, orientation and spacing are lost.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.
    index : int, optional
        Index of the slice along D; needed if there are several.
    window : str, int, Window or LookupTable, optional
        Window for viewing, as in :class:`Preprocess`: "auto", "dicom", "percentile", the name of a preset, an
        index among the windows of the file, or a window.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ConversionError
        If there are several slices and `index` is not given, there are channels that are no colors, or Pillow
        has no such values (float64, 64-bit integers, bool, colors that are not of 8 bits) and no window is
        given.
    PreprocessError
        If the window does not fit the volume.

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import image_affine
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), image_affine((2.0, 0.5, 0.5)), "CT", "HU")
    >>> medimg.to_pil(volume, index=2).mode, medimg.to_pil(volume, index=2, window="lung").mode
    ('I', 'L')
    """
    from PIL import Image

    volume = as_volume(volume, "to_pil")
    chosen = _check_index(volume, index)
    if volume.shape[0] > 1 and not volume.is_color:
        raise ConversionError(
            f"a Pillow image has one channel or colors, and this volume has {volume.shape[0]} channels; "
            "choose one: volume.select(channel)"
        )
    single = volume.take([chosen])
    if window is not None:
        return Image.fromarray(render(single, index=0, window=window))
    warn_of_inversion(volume, "Pillow")
    advice = 'choose a window for viewing, window="auto", or volume.with_array(volume.array.astype("{}"))'
    if volume.is_color:
        check_type(volume, ["uint8"], "a color image of Pillow", advice='window="auto" for viewing')
        return Image.fromarray(np.ascontiguousarray(single.array[:, 0].transpose(1, 2, 0)))
    kind = "uint8" if volume.array.dtype == np.bool_ else "float32"
    check_type(volume, _TYPES, "Pillow", advice=advice.format(kind))
    array = single.array[0, 0]
    return Image.fromarray(array.astype(_TYPES[array.dtype.newbyteorder("=").name]))


def _check_index(volume: Volume, index: int | None) -> int:
    depth = volume.shape[1]
    if index is None and depth == 1:
        return 0
    if not isinstance(index, int | np.integer) or not -depth <= index < depth:
        raise ConversionError(
            f"a Pillow image is one slice, and this volume has {depth}; expected index= a number "
            f"below {depth}, found {index!r}"
        )
    return range(depth)[int(index)]


@set_module("medimg")
def from_pil(image: PIL.Image.Image, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert an image of Pillow to a volume with one slice, with a copy of its values.

    As reading the file does: grayscale in its own depth, everything else RGB of 8 bits, transparency dropped,
    three equal channels read as one, turned upright by EXIF. There is no position in a patient
    (``space="image"``), and the spacing is 1.

    Parameters
    ----------
    image : PIL.Image.Image
        Single image.
    modality, units : str, optional
        As in :class:`Volume`; unknown by default.

    Returns
    -------
    Volume

    Raises
    ------
    ReadError
        If it is an animation, has a mode of no known meaning (LAB, HSV), or its file is damaged.

    Examples
    --------
    >>> import medimg
    >>> from PIL import Image
    >>> medimg.from_pil(Image.new("I;16", (80, 64)), modality="DX")
    Volume(1×1×64×80 uint16, DX, raw, spacing 1×1×1 mm, no patient geometry)
    """
    return convert_image(image, "Pillow", modality=modality, units=units)


@guard_conversion("Pillow")
def open_pil(image: PIL.Image.Image) -> ImageObject:
    """Return the size and mode of an image."""
    if image.mode not in GRAYSCALE_MODES | COLOR_MODES:
        raise ReadError(
            f"the Pillow image has the mode {image.mode}, which is not supported; convert it to RGB or L"
        )
    if getattr(image, "is_animated", False):
        raise ReadError(
            "the Pillow image is an animation of several frames; read each as an image: image.seek(n), then "
            "image.copy()"
        )
    is_color = image.mode in COLOR_MODES
    turn = _find_turn(image)
    width, height = image.size[::-1] if is_turned_sideways(turn) else image.size
    return ImageObject(
        format="Pillow",
        shape=(3 if is_color else 1, 1, height, width),
        affine=geometry.image_affine(),
        load=partial(_load, image, turn),
        space="image",
        photometric="RGB" if is_color else "MONOCHROME2",
        display_range=(0.0, 255.0),
        dtype="uint8",
    )


def _find_turn(image: PIL.Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none or it is unreadable."""
    try:
        turn = image.getexif().get(ORIENTATION_TAG)
    # damaged EXIF tags raise errors of many types, and do not affect the pixels
    except Exception:
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _load(image: PIL.Image.Image, turn: int) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, 1, H, W), C 1 or 3, upright."""
    array, steps = to_channels(image)
    array, steps = keep_gray(turn_upright(array, turn), (*steps, *describe_turn(turn, "EXIF")))
    return own_values(array)[:, None], steps


def to_channels(image: PIL.Image.Image) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return (C, H, W), grayscale in its own depth, everything else as 8-bit RGB, and the steps."""
    steps: list[str] = []
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        steps.append("transparency dropped")
    if image.mode in {"P", "PA"}:
        steps.append("palette applied")
    if image.mode == "CMYK":
        steps.append("CMYK to RGB")
    if "mp" in image.info:
        steps.append("the first image of a multi-picture file")
    if image.mode in {"LA", "La", "1"}:
        array = np.asarray(image.convert("L"))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Pillow warns of a direct conversion, which gives the same colors
        array = np.asarray(image.convert("RGBA").convert("RGB"))
    else:
        array = np.asarray(image if image.mode in GRAYSCALE_MODES else image.convert("RGB"))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return move_channels(array), tuple(steps)


def move_channels(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (C, H, W) of (H, W) or (H, W, C)."""
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def keep_gray(array: npt.NDArray[Any], steps: tuple[str, ...]) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return one channel of three (C, H, W) that are equal, and the steps."""
    if array.shape[0] == 3 and (array == array[:1]).all():
        return array[:1], (*steps, "gray in three equal channels: one kept")
    return array, steps
