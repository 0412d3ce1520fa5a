"""Pieces of HTML: tables, sections, numbers, small drawings."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.evaluation.report.plots import line_style
from medimg.metrics.bootstrap import Estimate

__all__ = [
    "CSS",
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


CSS = """
:root { --ink: #1b2733; --soft: #52616f; --line: #d5dde5; --panel: #f5f8fa; --accent: #0063a6;
  --warn: #fff6e0; --warn-line: #d99a00; --page: #fff; --shade: #0003; color-scheme: light; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --soft: #a9b6c2; --line: #344250; --panel: #1d2731; --accent: #6cb6f2;
    --warn: #33290f; --warn-line: #d99a00; --page: #131a21; --shade: #fff4; color-scheme: dark; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.notice { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px;
  padding: .7rem 1rem; margin: 1.2rem 0; }
.notice p { max-width: none; margin: .25rem 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0 .8rem; padding: 0; list-style: none; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem .9rem; }
.card .name { color: var(--soft); font-size: .9rem; }
.card .value { display: block; font-size: 1.9rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card .range { font-size: .85rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.card svg { display: block; width: 100%; height: 10px; margin-top: .45rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem 2.5rem; align-items: start; }
.columns > * { min-width: 0; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.beside > * { min-width: 0; max-width: 100%; }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 27rem; height: auto; }
figure.plot { background: #fff; color: #1b2733; border-radius: 6px; }
figure.plot h3 { margin-top: .2rem; }
figure.plot figcaption { color: #1b2733; }
@media screen and (prefers-color-scheme: dark) { figure.plot { padding: .8rem; } }
.wrap { overflow-x: auto; max-width: 100%; background:
  linear-gradient(to left, var(--page) 1.2rem, transparent) right / 1rem calc(100% + 2px) no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll; }
.wrap:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
table.dense { font-size: .8rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 500; overflow-wrap: break-word; min-width: 6rem; max-width: 16rem; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.number, th.number { padding-right: 0; }
th.number { max-width: 8.5rem; }
td.note, th.note { padding-left: .8rem; min-width: 9rem; max-width: 15rem; }
.wrap + .wrap { margin-top: 1.2rem; }
.columns > .wrap + .wrap { margin-top: 0; }
.columns > div > h3:first-child { margin-top: .2rem; }
td.number + td.number, th.number + th.number { padding-left: .8rem; }
td small { display: block; color: var(--soft); font-size: .8rem; }
table.confusion td { text-align: center; min-width: 5rem; padding: .6rem .5rem;
  border: 2px solid var(--page); font-weight: 600; color: #1b2733; }
table.confusion th { border: 0; padding: .35rem .6rem .35rem 0; max-width: 9rem;
  overflow-wrap: break-word; vertical-align: middle; }
table.confusion thead th { text-align: center; padding-left: .4rem; vertical-align: bottom; }
table.confusion thead th:first-child { text-align: left; padding-left: 0; }
table.confusion td small { font-weight: 400; color: inherit; }
table.confusion td, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.key { list-style: none; margin: .4rem 0 0; padding: 0; font-size: .9rem; }
.key li { display: flex; gap: .6rem; align-items: baseline; overflow-wrap: anywhere; }
.key svg { flex: none; width: 28px; height: 10px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
.pictures.wide { grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .3rem; }
.pictures img { width: 100%; max-width: none; aspect-ratio: 1; object-fit: contain;
  background: #000; border-radius: 4px; }
.pictures figcaption { margin-top: .35rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures b { color: var(--ink); }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .92em; overflow-wrap: anywhere; }
table.facts { width: 100%; table-layout: fixed; }
table.facts th { width: 9.5rem; max-width: none; color: var(--soft); }
table.facts td { overflow-wrap: anywhere; }
footer { margin: 2.5rem auto 2rem; color: var(--soft); font-size: .85rem; }
footer p { border-top: 1px solid var(--line); padding-top: .8rem; max-width: none; }
@media (max-width: 30rem) {
  .cards { grid-template-columns: 1fr 1fr; }
  .pictures { grid-template-columns: 1fr 1fr; }
  .pictures.wide { grid-template-columns: 1fr; }
  table.facts th { width: 7rem; }
  table.confusion td { min-width: 4rem; }
}
@media print {
  body { font-size: 10pt; }
  main, header, footer { max-width: none; padding: 0; }
  section, figure, .card, tr { break-inside: avoid; }
  section.long { break-inside: auto; }
  h2, h3 { break-after: avoid; }
  .wrap { overflow: visible; }
  .pictures { grid-template-columns: repeat(5, 1fr); }
  .pictures.wide { grid-template-columns: repeat(3, 1fr); }
}
""".strip()
