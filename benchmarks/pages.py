"""Parts of the documentation's pages that benchmarks write."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["FEATURES", "list_table", "write_part"]

#: The page of embeddings and heads.
FEATURES: Final = Path(__file__).parent.parent / "docs" / "features.rst"


def write_part(page: Path, name: str, text: str) -> None:
    """
    Replace what stands between the comments that name a part of a page.

    Raises
    ------
    ValueError
        If the page has no such part.
    """
    start, end = f".. benchmark: {name}\n", f".. end of benchmark: {name}\n"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page.name} has no part {name!r}")
    page.write_text(f"{before}{start}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def list_table(rows: list[list[str]]) -> str:
    """
    Return a table in reStructuredText; the first row is its head.

    Examples
    --------
    >>> print(list_table([["a"], ["1"]]))
    .. list-table::
       :header-rows: 1
    <BLANKLINE>
       * - a
       * - 1
    """
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if n == 0 else '  -'} {cell}" for n, cell in enumerate(row)]
    return "\n".join(lines)
