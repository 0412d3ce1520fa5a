"""Pieces of HTML: tables, sections, numbers, small drawings."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.evaluate.bootstrap import Estimate
from medimg.evaluate.plots import line_style

__all__ = [
    "duration",
    "estimate_cell",
    "facts",
    "interval_bar",
    "jpeg_address",
    "number",
    "percent",
    "plot",
    "png_address",
    "scrolling",
    "section",
    "shown",
    "span",
    "stroke",
    "table",
]

_MOST_PIXELS = 448
"""Of a picture in a page, along its longer side."""


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", label: str = "Table"
) -> str:
    """Make a table whose first column names the rows; everything is escaped here."""
    columns = "".join(
        f'<th scope="col"{" class=number" if i else ""}>{escape(text)}</th>' for i, text in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return scrolling(
        f"<table>{title}<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>", caption or label
    )


def scrolling(table: str, label: str) -> str:
    """Let a wide table scroll on a narrow screen, by keyboard too."""
    return f'<div class="wrap" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def section(heading: str, content: str, *, long: bool = False) -> str:
    """Wrap content under a heading; a long section may break across pages."""
    opening = '<section class="long">' if long else "<section>"
    return f"{opening}<h2>{escape(heading)}</h2>{content}</section>"


def number(value: float) -> str:
    """Give three decimals, a dash for what is not defined."""
    return "–" if np.isnan(value) else f"{value:.3f}"


def span(estimate: Estimate) -> str:
    """Give the ends of an interval; nothing where there is none."""
    return "" if np.isnan(estimate.low) else f"{estimate.low:.3f}–{estimate.high:.3f}"


def shown(value: Any) -> str:
    """Put a setting or an entry of the history into text."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = (f"{str(k).replace('_', ' ')} {shown(v)}" for k, v in value.items() if v is not None)
        return ", ".join(parts) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "–"
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def estimate_cell(estimate: Estimate) -> str:
    """Make a cell of a table: the value, below it the interval."""
    ends = span(estimate)
    return f'<td class="number">{number(estimate.value)}{f"<small>{ends}</small>" if ends else ""}</td>'


def duration(seconds: float) -> str:
    """Put seconds into words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def interval_bar(estimate: Estimate) -> str:
    """Draw the interval on the line from 0 to 1; the numbers beside it say the same."""
    if np.isnan(estimate.low):
        return ""
    low, high, value = (100 * x for x in (estimate.low, estimate.high, estimate.value))
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="4" width="100" height="2" fill="#d5dde5"/>'
        f'<rect x="{low:.2f}" y="3" width="{max(high - low, 0.5):.2f}" height="4" fill="#7fb2d9"/>'
        f'<rect x="{min(max(value - 0.75, 0), 98.5):.2f}" y="0" width="1.5" height="10" fill="#0063a6"/>'
        "</svg>"
    )


def stroke(number: int) -> str:
    """Draw the line that a curve of the ROC plot has."""
    color, dashes = line_style(number)
    pattern = f' stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else ""
    return (
        '<svg viewBox="0 0 28 10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="28" y2="5" stroke="{color}" stroke-width="3"{pattern}/></svg>'
    )


def plot(heading: str, address: str, alt: str, key: Sequence[str], *, note: str = "") -> str:
    """Put a drawing of curves under a heading, and what each curve is below it; all is escaped here."""
    said = f"<p>{escape(note)}</p>" if note else ""
    items = "".join(f"<li>{stroke(n)}<span>{escape(text)}</span></li>" for n, text in enumerate(key))
    return (
        f'<figure class="plot"><h3>{escape(heading)}</h3><img src="{address}" alt="{escape(alt)}">'
        f'<figcaption><ul class="key">{items}</ul>{said}</figcaption></figure>'
    )


def facts(rows: Mapping[str, Any]) -> str:
    """Make a table of names and what they stand for, as code."""
    cells = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th>'
        f"<td><code>{escape(shown(value))}</code></td></tr>"
        for name, value in rows.items()
    )
    return f'<table class="facts"><tbody>{cells}</tbody></table>'


def png_address(pixels: NDArray[np.uint8]) -> str:
    """Encode gray or RGB pixels, (H, W) or (H, W, 3), as a ``data:`` address."""
    return _picture_address(pixels, "PNG", optimize=True)


def jpeg_address(pixels: NDArray[np.uint8]) -> str:
    """Encode pixels a tenth as large, with small errors."""
    return _picture_address(pixels, "JPEG", quality=88)


def _picture_address(pixels: NDArray[np.uint8], kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def percent(ci: float) -> str:
    """Name the level of the intervals."""
    return f"{ci * 100:g} %"
