"""A caption below an image, in its pixels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["add_caption"]

#: Images are enlarged by a whole number up to this width, so that a caption is legible.
_LEAST_WIDTH: Final = 480
_CHARACTERS: Final = 72
_SMALLEST, _LARGEST = 9, 48
_LINE: Final = 1.35
_INK: Final = 235


def add_caption(image: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """Return an RGB image (H, W, 3) with lines of text below it; small ones are enlarged."""
    from PIL import Image, ImageDraw

    factor = max(1, -(-_LEAST_WIDTH // image.shape[1]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    width = enlarged.shape[1]
    size = min(_LARGEST, max(_SMALLEST, round(1.6 * width / _CHARACTERS)))
    font = _load_font(size)
    wrapped = [part for line in lines for part in _wrap(_make_printable(line), font, width - size)]
    step = round(_LINE * size)
    band = Image.new("RGB", (width, step * len(wrapped) + size))
    draw = ImageDraw.Draw(band)
    for n, line in enumerate(wrapped):
        draw.text((size // 2, size // 2 + n * step), line, font=font, fill=(_INK, _INK, _INK))
    return np.concatenate([enlarged, np.asarray(band, dtype=np.uint8)])


@lru_cache(maxsize=8)
def _load_font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(_find_font()), size)


@lru_cache(maxsize=1)
def _find_font() -> Path:
    """Return matplotlib's own font, which is the same everywhere."""
    import matplotlib as mpl

    return Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _known_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_find_font())).get_charmap())


def _make_printable(text: str) -> str:
    """Replace characters that the font lacks by their numbers."""
    known = _known_characters()
    return "".join(c if ord(c) in known and c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines that are not wider than `width` pixels, within words if need be."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}".strip()
        if line and font.getlength(joined) > width:
            lines.append(line)
            joined = word
        while len(joined) > 1 and font.getlength(joined) > width:
            fitting = next(
                n for n in range(len(joined), 0, -1) if n == 1 or font.getlength(joined[:n]) <= width
            )
            lines.append(joined[:fitting])
            joined = joined[fitting:]
        line = joined
    return [*lines, line]
